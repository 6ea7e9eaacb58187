// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for the disks under pools. Each host knows its own (host/disks.h).
#include "lockstepd/api/impl.h"

#include <algorithm>
#include <cctype>

namespace lockstep {

using nlohmann::json;

void ApiServer::Impl::routes_disks()
{
	http.Get("/v1/disks", route(&Impl::disk_list));
	http.Post("/v1/disks", route(&Impl::disk_change));
}

Result<json> ApiServer::Impl::disk_list(const httplib::Request &)
{
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const std::shared_ptr<const State> s = backend.state();
	json disks = json::array(), unreachable = json::array();
	for (const auto &[id, h] : s->hosts) {
		if (h.witness)
			continue;
		Result<json> list = h.online ? backend.ask_host(id, "disk.list", json::object()) : Result<json>(failed("host " + h.name + " is offline"));
		if (!list || !list->is_array()) {
			unreachable.push_back({{"host", h.name}, {"message", list ? "host " + h.name + " did not understand the question" : list.error().message}});
			continue;
		}
		for (json &d : *list) {
			d["host"] = h.name;
			disks.push_back(std::move(d));
		}
	}
	return json{{"disks", std::move(disks)}, {"unreachable", std::move(unreachable)}};
}

namespace {

// Of a missing disk, whose path another one may have by now. 32 letters and digits, in seven groups.
bool is_lvm_uuid(const std::string &text)
{
	return text.size() == 38 && std::count(text.begin(), text.end(), '-') == 6 &&
	       std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) || c == '-'; });
}

}    // namespace

Result<json> ApiServer::Impl::disk_change(const httplib::Request &req)
{
	const json body = body_of(req);
	const std::string pool = text_of(body, "pool", ""), add = text_of(body, "add", ""), remove = text_of(body, "remove", "");
	if (add.empty() && remove.empty())
		return usage_error("name a disk to add, or one to remove");
	if (pool.empty() && remove.empty())
		return usage_error("name the pool that " + add + " is for");
	for (const std::string &disk : {add, remove})
		if (!disk.empty() && (!disk.starts_with("/dev/") || disk.find("..") != std::string::npos) && !(disk == remove && is_lvm_uuid(disk)))
			return usage_error("\"" + disk + "\" is no disk: give its path, such as /dev/sdb");
	if (add == remove)
		return usage_error(add + " cannot replace itself");
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const std::shared_ptr<const State> s = backend.state();
	Result<HostId> host = host_of(*s, text_of(body, "host"));
	if (!host)
		return host.error();
	if (!s->online(*host))
		return coded("host-offline", forbidden("host " + s->host_name(*host) + " is offline: only it can change its disks"));
	Result<json> answer = backend.ask_host(*host, "disk.change", {{"pool", pool}, {"add", add}, {"remove", remove}});
	if (!answer)
		return answer;
	(*answer)["host"] = s->host_name(*host);
	(*answer)["operations"] = json::array();
	if (!remove.empty())
		(*answer)["operations"].push_back("disk:" + s->host_name(*host) + ":" + answer->value("remove", remove));
	return answer->contains("mend") ? disk_mend(std::move(*answer)) : answer;
}

// A dead disk: the log is told of each replica on it that it has failed, as far as nobody has noticed yet, so that none of them serves;
// then all are given up together. That it will be is tried on a copy first.
Result<json> ApiServer::Impl::disk_mend(json answer)
{
	const json entry = answer["mend"];
	answer.erase("mend");
	const std::shared_ptr<const State> s = backend.state();
	std::vector<json> failed_replicas;
	for (const json &vid : entry.value("replicas", json::array())) {
		const Volume *v = s->volume(vid.get<uint32_t>());
		const Replica *r = v && v->phase == Phase::ready ? v->replica(entry["host"].get<HostId>()) : nullptr;
		if (r && r->created && r->state != ReplicaState::failed)
			failed_replicas.push_back({{"op", "record.failed"}, {"vid", vid}, {"host", entry["host"]}});
	}
	State trial = *s;
	for (const json &e : failed_replicas)
		apply(trial, trial.applied + 1, e);
	if (Done good = tried(trial, entry); !good)
		return good.error();
	for (const json &e : failed_replicas)
		if (Result<json> told = backend.propose(e); !told)
			return told;
	Result<json> agreed = backend.propose(entry);
	if (!agreed)
		return agreed;
	answer["changed"] = (*agreed)["changed"];
	answer["lost"] = {{"replicas", (*agreed)["replicas"]}, {"copies", (*agreed)["copies"]}};
	return answer;
}

}    // namespace lockstep
