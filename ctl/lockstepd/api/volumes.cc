// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for volumes. A command that makes or removes something returns when the State shows that all hosts that
// are online have done their part, or when it has been undone.
#include "lockstepd/api/impl.h"

#include "lib/uuid.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

constexpr unsigned ROLLBACK_TIMEOUT_MS = 20000;

// Hosts that still have something of a tombstone; online ones only.
std::vector<HostId> still_deleting(const State &s, const Volume &v)
{
	std::vector<HostId> hosts;
	for (HostId h : v.hosts_with_something())
		if (s.online(h))
			hosts.push_back(h);
	return hosts;
}

std::vector<HostId> without_device(const State &s, const Volume &v)
{
	std::vector<HostId> hosts;
	for (const auto &[id, h] : s.hosts)
		if (h.online && h.has_devices() && !v.devices.contains(id))
			hosts.push_back(id);
	return hosts;
}

}    // namespace

void ApiServer::Impl::routes_volumes()
{
	http.Post("/v1/volumes", route(&Impl::volume_create));
	http.Delete("/v1/volumes/(.+)", route(&Impl::volume_delete));
}

// Waits until the tombstone is gone from every host that is online, then says why.
Error ApiServer::Impl::create_failed(uint32_t vid, const std::string &name, const std::string &message)
{
	auto gone = [&](const State &s) {
		const Volume *v = s.volume(vid);
		return !v || (v->phase == Phase::deleting && still_deleting(s, *v).empty());
	};
	bool clean = wait_for(gone, ROLLBACK_TIMEOUT_MS);
	std::string reason = message;
	std::shared_ptr<const State> s = backend.state();
	if (auto it = s->failures.find(vid); it != s->failures.end())
		reason = it->second.message;
	if (!clean)
		reason += " (and what was made of it is not all removed yet: see `lockstep status " + name + "`)";
	return failed(reason);
}

// A create that took too long.
Error ApiServer::Impl::roll_back(uint32_t vid, const std::string &name)
{
	std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume(vid);
	std::string after = " after " + std::to_string(options.effect_timeout_ms / 1000) + " s";
	std::string message = "volume " + name + " could not be created: ";
	json undo = {{"op", "volume.delete"}, {"vid", vid}};
	if (!v) {
		message += "host " + backend.local().host_name + " does not hear of it" + after;
	} else if (v->phase == Phase::ready) {
		message += "no device on host " + host_names(*s, without_device(*s, *v)) + after;
	} else {
		std::vector<HostId> slow;
		for (const Replica &r : v->replicas)
			if (!r.created)
				slow.push_back(r.host);
		message += "no replica on host " + host_names(*s, slow) + after;
		undo = {{"op", "volume.abort"}, {"vid", vid}, {"message", message}};
	}
	Result<json> undone = backend.propose(undo);
	if (!undone && undone.error().status != Status::not_found)
		return failed(message + "; removing it failed too: " + undone.error().message);
	return create_failed(vid, name, message);
}

Result<json> ApiServer::Impl::volume_create(const httplib::Request &req)
{
	json body = body_of(req);
	std::string name = text_of(body, "name");
	json entry = {{"op", "volume.create"}, {"name", name}, {"uuid", body.contains("uuid") ? text_of(body, "uuid") : make_uuid()},
		      {"size_bytes", number_of(body, "size_bytes", UINT64_MAX >> 1)}, {"now_ms", api_now_ms()}};
	if (body.contains("pool") || !body.contains("group"))
		entry["pool"] = text_of(body, "pool", "default");
	if (body.contains("group"))
		entry["group"] = text_of(body, "group");
	if (body.contains("labels"))
		entry["labels"] = body["labels"];
	for (const char *field : {"class", "no_quorum"})
		if (body.contains(field))
			entry[field] = text_of(body, field);
	if (body.contains("redundancy"))
		entry["redundancy"] = number_of(body, "redundancy", UINT32_MAX);
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	if (std::string e = backend.local().module_error; !e.empty())
		return forbidden(e);
	if (body.contains("hosts")) {
		if (!body["hosts"].is_array() || body["hosts"].empty())
			return usage_error("the field \"hosts\" is not a list of host names");
		entry["hosts"] = json::array();
		for (const json &h : body["hosts"]) {
			Result<HostId> id = host_of(*backend.state(), h.is_string() ? h.get<std::string>() : h.dump());
			if (!id)
				return id.error();
			entry["hosts"].push_back(*id);
		}
	}
	if (body.contains("rules")) {
		const Result<json> rules = rules_of_body(body);
		if (!rules)
			return rules;
		entry["rules"] = *rules;
	}
	return finish_create(backend.propose(entry), name, entry["uuid"]);
}

// What it is made of is being copied, as in a thick pool, by hosts that are all there: that takes as long as it takes.
bool ApiServer::Impl::copies(const State &s, uint32_t vid)
{
	const Volume *v = s.volume(vid);
	if (!v || v->phase != Phase::creating || !v->source)
		return false;
	bool any = false;
	for (const Replica &r : v->replicas) {
		const Pool *pool = s.pool(r.pool, r.host);
		if (r.created)
			continue;
		if (!s.online(r.host) || !pool || pool->kind != PoolKind::thick)
			return false;
		any = true;
	}
	return any;
}

// begun: the answer to the entry that has the volume made.
Result<json> ApiServer::Impl::finish_create(const Result<json> &begun, const std::string &name, const std::string &uuid)
{
	if (!begun)
		return begun;
	uint32_t vid = begun->at("vid");
	bool there = false;
	auto settled = [&](const State &s) {
		const Volume *v = s.volume(vid);
		there = v && v->phase == Phase::ready && without_device(s, *v).empty();
		bool given_up = v ? v->phase == Phase::deleting : s.next_vid > vid;
		return there || given_up;
	};
	if (!wait_with_copies(settled, vid))
		return roll_back(vid, name);
	if (!there)
		return create_failed(vid, name, "volume " + name + " was deleted while it was being created");
	json hosts = json::array();
	for (const json &h : begun->at("hosts"))
		hosts.push_back(backend.state()->host_name(h));
	return json{{"name", name}, {"uuid", uuid}, {"vid", vid}, {"device", "/dev/lockstep/" + name}, {"hosts", hosts}};
}

Result<json> ApiServer::Impl::volume_delete(const httplib::Request &req)
{
	std::string name = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const bool force = given(req, "force", "true"), wait = !given(req, "wait", "false");
	json entry = {{"op", "volume.delete"}, {"name", name}};
	if (force)
		entry["force"] = true;
	Result<json> result = force ? backend.propose(entry) : propose_unused(entry, name);
	if (!result)
		return result;
	uint32_t vid = result->at("vid");
	auto gone = [&](const State &s) {
		const Volume *v = s.volume(vid);
		return !v || (v->phase == Phase::deleting && (!wait || still_deleting(s, *v).empty()));
	};
	bool done = wait_for(gone, options.effect_timeout_ms);
	std::shared_ptr<const State> s = backend.state();
	const Volume *rest = s->volume(vid);
	if (!done && rest)
		return failed("volume " + name + " is being deleted, but host " + host_names(*s, still_deleting(*s, *rest)) +
			      " has not finished yet; it goes on by itself, as soon as nobody there has the device open: see the log of lockstepd there");
	json pending = json::array();
	if (rest) {
		for (HostId h : rest->hosts_with_something())
			pending.push_back(s->host_name(h));
	}
	return json{{"name", name}, {"vid", vid}, {"pending_hosts", pending}};
}

}    // namespace lockstep
