// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for groups and labels. Such a change is done when it is in the log; it is answered when this host's own
// status shows it.
#include "lockstepd/api/impl.h"

namespace lockstep {

using nlohmann::json;

void ApiServer::Impl::routes_groups()
{
	http.Post("/v1/groups", route(&Impl::group_create));
	http.Patch("/v1/groups/([^/]+)", route(&Impl::group_patch));
	http.Delete("/v1/groups/([^/]+)", route(&Impl::group_delete));
	http.Patch("/v1/volumes/([^/]+)", route(&Impl::volume_patch));
}

Result<json> ApiServer::Impl::logged(const json &entry, const json &answer)
{
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	if (Result<json> result = backend.propose(entry); !result)
		return result;
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	return answer;
}

Result<json> ApiServer::Impl::group_create(const httplib::Request &req)
{
	json body = body_of(req), entry = {{"op", "group.create"}, {"name", text_of(body, "name")}, {"pool", text_of(body, "pool", "default")}};
	if (body.contains("redundancy"))
		entry["redundancy"] = number_of(body, "redundancy", UINT32_MAX);
	if (body.contains("labels"))
		entry["labels"] = body["labels"];
	return logged(entry, {{"name", entry["name"]}, {"pool", entry["pool"]}});
}

Result<json> ApiServer::Impl::group_patch(const httplib::Request &req)
{
	std::string name = req.matches[1];
	const json body = body_of(req);
	if (body.contains("redundancy")) {
		const json entry = {{"op", "group.redundancy"}, {"name", name}, {"redundancy", number_of(body, "redundancy", UINT32_MAX)}};
		const json answer = {{"name", name}, {"operations", {"redundancy:" + name}}};
		if (Result<json> set = logged(entry, answer); !set || !body.contains("labels"))
			return set;
	}
	return logged({{"op", "group.label"}, {"name", name}, {"labels", body.value("labels", json())}}, {{"name", name}});
}

Result<json> ApiServer::Impl::group_delete(const httplib::Request &req)
{
	std::string name = req.matches[1];
	return logged({{"op", "group.delete"}, {"name", name}}, {{"name", name}});
}

Result<json> ApiServer::Impl::volume_patch(const httplib::Request &req)
{
	std::string name = req.matches[1];
	json body = body_of(req);
	if (body.contains("no_quorum"))
		if (Result<json> set = logged({{"op", "volume.set"}, {"name", name}, {"no_quorum", text_of(body, "no_quorum")}}, {{"name", name}});
		    !set || !body.contains("labels"))
			return set;
	return logged({{"op", "volume.label"}, {"name", name}, {"labels", body.value("labels", json())}}, {{"name", name}});
}

}    // namespace lockstep
