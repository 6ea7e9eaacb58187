// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for orphans (host/orphans.h). Each host is asked what it has; a host that cannot be asked is named in the answer,
// and no copy is chosen behind its back.
#include "lockstepd/api/impl.h"

#include "lockstepd/api/soft.h"

#include <algorithm>
#include <optional>

namespace lockstep {

using nlohmann::json;

void ApiServer::Impl::routes_orphans()
{
	http.Get("/v1/orphans", route(&Impl::orphan_list));
	http.Post("/v1/orphans/([^/]+)/purge", route(&Impl::orphan_purge));
	http.Post("/v1/orphans/([^/]+)/adopt", route(&Impl::orphan_adopt));
}

// {"orphans": [as list_orphans() gives them, and "host"], "unreachable": [{host, message}]}
Result<json> ApiServer::Impl::ask_for_orphans(const State &s, const std::string &uuid, bool show, std::optional<HostId> only)
{
	json orphans = json::array(), unreachable = json::array();
	for (const auto &[id, h] : s.hosts) {
		if (h.witness || (only && id != *only))
			continue;
		Result<json> list = h.online ? backend.ask_host(id, "orphan.list", {{"uuid", uuid}, {"show", show}})
					     : Result<json>(failed("host " + h.name + " is offline"));
		if (!list)
			unreachable.push_back({{"host", h.name}, {"message", list.error().message}});
		else if (!list->is_array())
			unreachable.push_back({{"host", h.name}, {"message", "host " + h.name + " did not understand the question"}});
		else
			for (json &o : *list) {
				o["host"] = h.name;
				orphans.push_back(std::move(o));
			}
	}
	return json{{"orphans", std::move(orphans)}, {"unreachable", std::move(unreachable)}};
}

Result<json> ApiServer::Impl::orphan_list(const httplib::Request &)
{
	if (const LocalFacts local = backend.local(); !local.host) {
		Result<json> list = backend.bare_orphans();
		if (!list)
			return list;
		for (json &o : *list)
			o["host"] = local.host_name;
		return json{{"orphans", std::move(*list)}, {"unreachable", json::array()}};
	}
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	return ask_for_orphans(*backend.state(), "", false, std::nullopt);
}

Result<json> ApiServer::Impl::orphan_purge(const httplib::Request &req)
{
	const std::string uuid = req.matches[1];
	const json body = body_of(req);
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const std::shared_ptr<const State> s = backend.state();
	json removed = json::array(), kept = json::array(), unreachable = json::array();
	std::optional<HostId> only;
	if (body.contains("host")) {
		Result<HostId> id = host_of(*s, text_of(body, "host"));
		if (!id)
			return id.error();
		only = *id;
	}
	for (const auto &[id, h] : s->hosts) {
		if (h.witness || (only && id != *only))
			continue;
		Result<json> done = h.online ? backend.ask_host(id, "orphan.purge", {{"uuid", uuid}}) : Result<json>(failed("host " + h.name + " is offline"));
		if (!done) {
			unreachable.push_back({{"host", h.name}, {"message", done.error().message}});
			continue;
		}
		for (auto [field, all] : {std::pair("removed", &removed), std::pair("kept", &kept)})
			for (json line : done->value(field, json::array())) {
				line["host"] = h.name;
				all->push_back(std::move(line));
			}
	}
	if (removed.empty() && kept.empty() && unreachable.empty())
		return not_found("no host has an orphan with the UUID " + uuid + ": see `lockstep pool orphans`");
	return json{{"uuid", uuid}, {"removed", removed}, {"kept", kept}, {"unreachable", unreachable}};
}

namespace {

uint64_t content_number(const json &orphan, const char *field) { return soft_number(soft_object(orphan, "content"), field); }

bool usable(const json &orphan)
{
	return orphan["kind"] == "replica" && soft_has_number(soft_object(orphan, "content"), "version");
}

// Another copy that is as new says that this one lacked something.
bool is_behind(const json &orphan, const std::vector<json> &copies)
{
	const uint64_t host = content_number(orphan, "host");
	return std::any_of(copies.begin(), copies.end(), [&](const json &other) {
		const json &absent = other["content"]["absent"];
		return content_number(other, "version") >= content_number(orphan, "version") && std::count(absent.begin(), absent.end(), json(host)) > 0;
	});
}

// The number in the LV's name, "lockstep.7" or "lockstep.7.s2.1".
uint64_t number_in_name(const json &orphan)
{
	const std::string name = orphan["lv"], prefix = "lockstep.";
	uint64_t n = 0;
	for (size_t i = prefix.size(); name.starts_with(prefix) && i < name.size() && name[i] >= '0' && name[i] <= '9' && n < UINT32_MAX; i++)
		n = n * 10 + uint64_t(name[i] - '0');
	return n < UINT32_MAX ? n : 0;
}

// The pool that the LV lies in; empty if the cluster does not know it.
std::string pool_of(const State &s, HostId host, const json &orphan)
{
	for (const auto &[key, p] : s.pools)
		if (p.host == host && p.vg == orphan["vg"] && p.thin_lv == orphan["thin_pool"])
			return p.name;
	return {};
}

}    // namespace

// Without a host: the copy that was last told of a change, and of those equal one that no other says lacked something.
Result<json> ApiServer::Impl::orphan_adopt(const httplib::Request &req)
{
	const std::string uuid = req.matches[1];
	const json body = body_of(req);
	json entry = {{"op", "volume.adopt"}, {"name", text_of(body, "name")}, {"uuid", uuid}};
	if (body.contains("redundancy"))
		entry["redundancy"] = number_of(body, "redundancy", LKS_MAX_REPLICAS);
	if (body.contains("group"))
		entry["group"] = text_of(body, "group");
	if (body.contains("labels"))
		entry["labels"] = body["labels"];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const std::shared_ptr<const State> s = backend.state();
	std::string on;
	if (body.contains("host")) {
		on = text_of(body, "host");
		if (Result<HostId> known = host_of(*s, on); !known)
			return known.error();
	}
	Result<json> found = ask_for_orphans(*s, uuid, true, std::nullopt);
	if (!found)
		return found;
	if (const json &away = (*found)["unreachable"]; on.empty() && !away.empty())
		return forbidden(away[0]["message"].get<std::string>() + ", and may have a newer copy: name the host whose copy is to be taken");
	std::vector<json> copies;
	std::string problem;
	for (const json &o : (*found)["orphans"]) {
		if (usable(o))
			copies.push_back(o);
		else if (o["kind"] == "replica" && (on.empty() || o["host"] == on))
			problem = "host " + o["host"].get<std::string>() + ": " + soft_text(soft_object(o, "content"), "problem");
	}
	const json *best = nullptr;
	for (const json &o : copies) {
		if (on.empty() ? is_behind(o, copies) : o["host"] != on)
			continue;
		if (!best || content_number(o, "version") > content_number(*best, "version"))
			best = &o;
	}
	if (!best && !problem.empty())
		return forbidden("what is left of volume " + uuid + " cannot be adopted: " + problem);
	if (!best && !copies.empty() && on.empty())
		return forbidden("no copy of volume " + uuid + " is surely the newest: name the host whose copy is to be taken");
	if (!best)
		return not_found("no orphaned replica of volume " + uuid + (on.empty() ? "" : " on host " + on) + ": see `lockstep pool orphans`");
	Result<HostId> host = host_of(*s, (*best)["host"]);
	if (!host)
		return host.error();
	entry["pool"] = pool_of(*s, *host, *best);
	if (entry["pool"] == "")
		return forbidden("the copy on host " + s->host_name(*host) + " is in " + (*best)["vg"].get<std::string>() +
				 ", which is no pool of the cluster: make it one with `lockstep pool create`");
	if ((*best)["open"] == true)
		return forbidden("logical volume " + (*best)["vg"].get<std::string>() + "/" + (*best)["lv"].get<std::string>() + " on host " +
				 s->host_name(*host) + " is in use: end what uses it (`lockstep down`, if the kernel still serves it)");
	entry["host"] = *host;
	entry["lv"] = (*best)["lv"];
	for (const char *field : {"size_bytes", "block_size", "md_offset"})
		entry[field] = content_number(*best, field);
	for (const char *field : {"vid", "version", "term"}) {
		uint64_t most = 0;
		for (const json &o : copies)
			most = std::max(most, content_number(o, field));
		entry[field] = most;
	}
	// Other orphans' names are taken as well, also where the volume's further replicas will be.
	Result<json> all = ask_for_orphans(*s, "", false, std::nullopt);
	if (!all)
		return all;
	for (const json &o : (*all)["orphans"])
		entry["vid"] = std::max(entry["vid"].get<uint64_t>(), number_in_name(o));
	Result<json> begun = backend.propose(entry);
	if (!begun)
		return begun;
	const uint32_t vid = begun->at("vid");
	bool there = false;
	auto settled = [&](const State &now) {
		const Volume *v = now.volume(vid);
		there = v && v->phase == Phase::ready;
		for (const auto &[id, h] : now.hosts)
			there = there && (!h.online || !h.has_devices() || v->devices.contains(id));
		return there || (!v && now.next_vid > vid);
	};
	if (!wait_for(settled, options.effect_timeout_ms) || !there)
		return failed("volume " + entry["name"].get<std::string>() + " is being adopted, but is not there yet; it goes on by itself, see `lockstep status " +
			      entry["name"].get<std::string>() + "`");
	return json{{"name", entry["name"]}, {"uuid", uuid}, {"vid", vid}, {"device", "/dev/lockstep/" + entry["name"].get<std::string>()},
		    {"hosts", {s->host_name(*host)}}};
}

}    // namespace lockstep
