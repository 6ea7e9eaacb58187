// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for groups, labels and rules of placement. Such a change is done when it is in the log; it is answered when this host's own
// status shows it.
#include "lockstepd/api/impl.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

void ApiServer::Impl::routes_groups()
{
	http.Post("/v1/groups", route(&Impl::group_create));
	http.Patch("/v1/groups/([^/]+)", route(&Impl::group_patch));
	http.Delete("/v1/groups/([^/]+)", route(&Impl::group_delete));
	http.Patch("/v1/volumes/([^/]+)", route(&Impl::volume_patch));
	http.Patch("/v1/hosts/([^/]+)", route(&Impl::host_patch));
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

Done ApiServer::Impl::tried(State &trial, const json &entry)
{
	const json answer = apply(trial, trial.applied + 1, entry);
	if (answer.value("ok", false))
		return Nothing{};
	return coded(answer.value("code", ""), Error{Status(answer.value("status", int(Status::failed))), answer.value("message", "")});
}

// One entry after the other, if none of them is refused: bad input changes nothing.
Result<json> ApiServer::Impl::all_logged(const std::vector<json> &entries, const json &answer)
{
	if (entries.size() > 1) {
		if (Done ready = ready_for_changes(); !ready)
			return ready.error();
		State trial = *backend.state();
		for (const json &entry : entries)
			if (Done good = tried(trial, entry); !good)
				return good.error();
	}
	for (const json &entry : entries)
		if (Result<json> set = logged(entry, answer); !set)
			return set;
	return answer;
}

// The names in a rule as ids, as entries have them. kind: "avoid" names hosts, "apart_from" volumes.
Result<json> ApiServer::Impl::named_in_rule(const std::string &kind, const json &names)
{
	if (!names.is_array() || !std::ranges::all_of(names, [](const json &n) { return n.is_string(); }))
		return usage_error("the rule \"" + kind + "\" is not a list of names");
	json ids = json::array();
	for (const json &name : names) {
		Result<uint32_t> id = 0u;
		if (kind == "apart_from")
			id = vid_of(name);
		else if (Result<HostId> host = host_of(*backend.state(), name); host)
			id = uint32_t(*host);
		else
			id = host.error();
		if (!id)
			return id.error();
		ids.push_back(*id);
	}
	return ids;
}

// Field "rules" of the body, for an entry.
Result<json> ApiServer::Impl::rules_of_body(const json &body)
{
	if (!body["rules"].is_object())
		return usage_error("the field \"rules\" is not an object");
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	json rules = json::object();
	for (const auto &[kind, value] : body["rules"].items()) {
		if (kind == "different" || kind == "same") {
			if (!value.is_string() && !value.is_null())
				return usage_error("the rule \"" + kind + "\" is not the label of hosts, or null");
			rules[kind] = value.is_null() ? json("") : value;
		} else if (kind == "avoid" || kind == "apart_from") {
			Result<json> ids = named_in_rule(kind, value);
			if (!ids)
				return ids;
			rules[kind == "avoid" ? "avoid" : "apart"] = *ids;
		} else {
			return usage_error("there is no rule \"" + kind + "\": there are different, same, avoid and apart_from");
		}
	}
	return rules;
}

Result<json> ApiServer::Impl::group_create(const httplib::Request &req)
{
	json body = body_of(req), entry = {{"op", "group.create"}, {"name", text_of(body, "name")}, {"pool", text_of(body, "pool", "default")}};
	if (body.contains("redundancy"))
		entry["redundancy"] = number_of(body, "redundancy", UINT32_MAX);
	if (body.contains("labels"))
		entry["labels"] = body["labels"];
	if (body.contains("rules")) {
		Result<json> rules = rules_of_body(body);
		if (!rules)
			return rules;
		entry["rules"] = *rules;
	}
	return logged(entry, {{"name", entry["name"]}, {"pool", entry["pool"]}});
}

Result<json> ApiServer::Impl::group_patch(const httplib::Request &req)
{
	const std::string name = req.matches[1];
	const json body = body_of(req);
	std::vector<json> entries;
	json answer = {{"name", name}};
	if (body.contains("redundancy")) {
		entries.push_back({{"op", "group.redundancy"}, {"name", name}, {"redundancy", number_of(body, "redundancy", UINT32_MAX)}});
		answer["operations"] = {"redundancy:" + name};
	}
	if (body.contains("rules")) {
		const Result<json> rules = rules_of_body(body);
		if (!rules)
			return rules;
		entries.push_back({{"op", "group.rules"}, {"name", name}, {"rules", *rules}});
	}
	if (entries.empty() || body.contains("labels"))
		entries.push_back({{"op", "group.label"}, {"name", name}, {"labels", body.value("labels", json())}});
	return all_logged(entries, answer);
}

Result<json> ApiServer::Impl::group_delete(const httplib::Request &req)
{
	std::string name = req.matches[1];
	return logged({{"op", "group.delete"}, {"name", name}}, {{"name", name}});
}

Result<json> ApiServer::Impl::volume_patch(const httplib::Request &req)
{
	const std::string name = req.matches[1];
	const json body = body_of(req);
	std::vector<json> entries;
	if (body.contains("no_quorum"))
		entries.push_back({{"op", "volume.set"}, {"name", name}, {"no_quorum", text_of(body, "no_quorum")}});
	if (body.contains("rules")) {
		const Result<json> rules = rules_of_body(body);
		if (!rules)
			return rules;
		entries.push_back({{"op", "volume.rules"}, {"name", name}, {"rules", *rules}});
	}
	if (entries.empty() || body.contains("labels"))
		entries.push_back({{"op", "volume.label"}, {"name", name}, {"labels", body.value("labels", json())}});
	return all_logged(entries, {{"name", name}});
}

Result<json> ApiServer::Impl::host_patch(const httplib::Request &req)
{
	const std::string name = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const Result<HostId> host = host_of(*backend.state(), name);
	if (!host)
		return host.error();
	return logged({{"op", "host.label"}, {"host", *host}, {"labels", body_of(req).value("labels", json())}}, {{"name", name}});
}

}    // namespace lockstep
