// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for snapshots. Taking one answers when it is there as a whole or has been given up; restoring, reverting and
// cloning when the volume's device is there on every host that is online.
#include "lockstepd/api/impl.h"

#include "lib/units.h"
#include "lib/uuid.h"
#include "lockstepd/host/diff.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

void ApiServer::Impl::routes_snapshots()
{
	http.Get("/v1/snapshots", route(&Impl::snapshot_list));
	http.Post("/v1/snapshots", route(&Impl::snapshot_create_set));
	http.Post("/v1/volumes/([^/]+)/snapshots", route(&Impl::snapshot_create));
	http.Patch("/v1/volumes/([^/]+)/snapshots/([^/]+)", route(&Impl::snapshot_patch));
	http.Delete("/v1/volumes/([^/]+)/snapshots/([^/]+)", route(&Impl::snapshot_delete));
	http.Post("/v1/volumes/([^/]+)/snapshots/([^/]+)/restore", route(&Impl::snapshot_restore));
	http.Post("/v1/volumes/([^/]+)/snapshots/([^/]+)/revert", route(&Impl::snapshot_revert));
	http.Get("/v1/volumes/([^/]+)/snapshots/([^/]+)/diff", route(&Impl::snapshot_diff));
	http.Post("/v1/volumes/([^/]+)/clone", route(&Impl::volume_clone));
}

Result<json> ApiServer::Impl::snapshot_list(const httplib::Request &req)
{
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	json list = json::array();
	const json now = status_without_volumes();
	for (const json &s : now["snapshots"])
		if (!req.has_param("volume") || s["volume"] == req.get_param_value("volume"))
			list.push_back(s);
	return list;
}

// entry: snapshot.create without volumes. Gives the snapshots, in the order of the volumes.
Result<json> ApiServer::Impl::take_snapshots(json entry, const std::vector<std::string> &volumes, const std::string &uuid)
{
	json vids = json::array(), uuids = json::array();
	for (const std::string &name : volumes) {
		Result<uint32_t> vid = vid_of(name);
		if (!vid)
			return vid.error();
		vids.push_back(*vid);
		uuids.push_back(uuid.empty() ? make_uuid() : uuid);
	}
	entry["op"] = "snapshot.create";
	entry["vids"] = vids;
	entry["uuids"] = uuids;
	entry["now_ms"] = api_now_ms();
	if (all_understand(*backend.state(), 5))
		entry["keep"] = true;
	if (all_understand(*backend.state(), LEVEL_PREPARE))
		entry["prepare"] = true;
	Result<json> begun = backend.propose(entry);
	if (!begun)
		return begun;
	const uint32_t set = begun->at("set");
	const std::vector<uint32_t> sids = begun->at("sids");
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	bool there = false;
	auto settled = [&](const State &s) {
		there = std::all_of(sids.begin(), sids.end(), [&](uint32_t sid) {
			const Snapshot *x = s.snapshot(sid);
			return x && x->phase == SnapshotPhase::ready;
		});
		const Snapshot *first = s.snapshot(sids[0]);
		return there || !first || first->phase == SnapshotPhase::deleting;
	};
	// The leader gives it up after a while; this is only for one that cannot.
	if (!wait_for(settled, options.effect_timeout_ms * 2))
		return failed("snapshot " + entry["name"].get<std::string>() + " is not there yet and goes on by itself: see `lockstep snapshot list`");
	const std::shared_ptr<const State> s = backend.state();
	if (!there) {
		auto why = s->snapshot_failures.find(set);
		return failed(why != s->snapshot_failures.end() ? why->second.message : "the snapshot has been deleted meanwhile");
	}
	json list = json::array();
	const json now = status_without_volumes();
	for (const json &x : now["snapshots"])
		if (std::count(sids.begin(), sids.end(), x["sid"].get<uint32_t>()))
			list.push_back(x);
	return list;
}

namespace {

json create_entry(const json &body)
{
	json entry = {{"name", text_of(body, "name")}};
	if (body.contains("labels"))
		entry["labels"] = body["labels"];
	if (body.contains("reserve_percent"))
		entry["reserve"] = number_of(body, "reserve_percent", 100);
	return entry;
}

}    // namespace

Result<json> ApiServer::Impl::snapshot_create_set(const httplib::Request &req)
{
	json body = body_of(req);
	auto volumes = body.find("volumes");
	bool texts = volumes != body.end() && volumes->is_array() && !volumes->empty() &&
		     std::all_of(volumes->begin(), volumes->end(), [](const json &v) { return v.is_string(); });
	if (!texts)
		return usage_error("the field \"volumes\" is not a list of names of volumes");
	Result<json> made = take_snapshots(create_entry(body), volumes->get<std::vector<std::string>>(), "");
	if (!made)
		return made;
	return json{{"snapshots", *made}};
}

Result<json> ApiServer::Impl::snapshot_create(const httplib::Request &req)
{
	json body = body_of(req);
	Result<json> made = take_snapshots(create_entry(body), {req.matches[1]}, text_of(body, "uuid", ""));
	if (!made)
		return made;
	return made->at(0);
}

Result<json> ApiServer::Impl::snapshot_patch(const httplib::Request &req)
{
	std::string volume = req.matches[1], name = req.matches[2];
	return logged({{"op", "snapshot.label"}, {"volume", volume}, {"name", name}, {"labels", body_of(req).value("labels", json())}},
		      {{"volume", volume}, {"name", name}});
}

Result<json> ApiServer::Impl::delete_snapshot(const json &which)
{
	Result<json> begun = backend.propose(which);
	if (!begun)
		return begun;
	const uint32_t sid = begun->at("sid");
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	std::vector<HostId> pending;
	auto gone = [&](const State &s) {
		const Snapshot *x = s.snapshot(sid);
		pending.clear();
		for (const SnapshotCopy &c : x ? x->copies : std::vector<SnapshotCopy>{})
			if (s.online(c.host))
				pending.push_back(c.host);
		return pending.empty();
	};
	if (!wait_for(gone, options.effect_timeout_ms))
		return failed("the snapshot is being deleted, but host " + host_names(*backend.state(), pending) +
			      " has not finished yet: see the log of lockstepd there");
	const std::shared_ptr<const State> s = backend.state();
	json later = json::array();
	if (const Snapshot *x = s->snapshot(sid))
		for (const SnapshotCopy &c : x->copies)
			later.push_back(s->host_name(c.host));
	return json{{"sid", sid}, {"pending_hosts", later}};
}

Result<json> ApiServer::Impl::snapshot_delete(const httplib::Request &req)
{
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	std::string volume = req.matches[1], name = req.matches[2];
	return delete_snapshot({{"op", "snapshot.delete"}, {"volume", volume}, {"name", name}});
}

Result<json> ApiServer::Impl::snapshot_restore(const httplib::Request &req)
{
	json body = body_of(req);
	std::string volume = req.matches[1], name = req.matches[2];
	json entry = {{"op", "snapshot.restore"}, {"volume", volume}, {"name", name}, {"new", text_of(body, "name")},
		      {"uuid", body.contains("uuid") ? text_of(body, "uuid") : make_uuid()}};
	for (const char *field : {"group", "labels"})
		if (body.contains(field))
			entry[field] = body[field];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	Result<json> made = finish_create(backend.propose(entry), entry["new"], entry["uuid"]);
	// Not all copies could be used: what is missing is added.
	const std::shared_ptr<const State> s = backend.state();
	const Snapshot *x = s->snapshot_named(volume, name);
	const Volume *v = s->volume_named(text_of(body, "name"));
	if (made && x && v && v->uuid == entry["uuid"] && v->redundancy < x->redundancy)
		if (Result<json> more = backend.propose({{"op", "volume.redundancy"}, {"vid", v->vid}, {"redundancy", x->redundancy}}); !more)
			(*made)["warning"] = "it has " + std::to_string(v->redundancy) + " replicas only: " + more.error().message;
	return made;
}

namespace {

std::vector<HostId> in_thick_pools(const State &s, const Volume &v)
{
	std::vector<HostId> hosts;
	for (const Replica &r : v.replicas)
		if (const Pool *pool = s.pool(r.pool, r.host); pool && pool->kind == PoolKind::thick)
			hosts.push_back(r.host);
	return hosts;
}

}    // namespace

// Before there was in_place, a replica in a thick pool whose disk had failed was done without, and took its copies of snapshots along
// unseen. With it, that is refused.
void ApiServer::Impl::add_ways_to_revert(json &entry, const State &s, const Volume *v)
{
	const bool thick = v && !in_thick_pools(s, *v).empty(), in_place = all_understand(s, LEVEL_IN_PLACE);
	if (in_place)
		entry["in_place"] = true;
	// Of which the hosts are asked (try_revert_in_place). One that is taken after this is none of them, and refused.
	if (thick && all_understand(s, LEVEL_PAST)) {
		for (const auto &[sid, x] : s.snapshots)    // a list that would be empty is left out
			if (x.vid == v->vid && x.phase == SnapshotPhase::ready)
				entry["past"].push_back(sid);
	}
	if (in_place || (all_understand(s, LEVEL_REVERT) && !thick))
		entry["without_failed"] = true;
}

// Each host with a replica in a thick pool says whether its snapshots bear it. What the log would say comes first: if it refuses, or has
// begun it already, that is the answer, for what the hosts were not asked about is not to be proposed.
Result<json> ApiServer::Impl::try_revert_in_place(json entry, const State &s, const Volume &v)
{
	State trial = s;
	if (Done good = tried(trial, entry); !good)
		return good.error();
	if (v.phase != Phase::ready)
		return json{{"vid", v.vid}};
	const uint32_t sid = s.snapshot_named(v.name, entry["name"].get<std::string>())->sid;
	entry["sid"] = sid;    // not another one that gets this name meanwhile
	for (HostId host : in_thick_pools(s, v))
		if (Result<json> can = backend.ask_host(host, "snapshot.can_revert", {{"sid", sid}}); !can)
			return can.error();
	return backend.propose(entry);
}

// In a thick pool first the volume is waited for to be closed, then the hosts are asked, then the log: it takes what the hosts' snapshots do
// not bear, too, and they would be lost. If the record has changed meanwhile, so may have what is written: they are asked again.
Result<json> ApiServer::Impl::propose_revert(const std::string &volume, const std::string &name)
{
	const Clock::time_point end = Clock::now() + std::chrono::milliseconds(options.effect_timeout_ms);
	for (;;) {
		if (Done reached = backend.barrier(); !reached)
			return reached.error();
		const std::shared_ptr<const State> s = backend.state();
		const Volume *v = s->volume_named(volume);
		json entry = {{"op", "snapshot.revert"}, {"volume", volume}, {"name", name}};
		add_ways_to_revert(entry, *s, v);
		if (!v || in_thick_pools(*s, *v).empty())
			return propose_unused(entry, volume);
		if (all_understand(*s, LEVEL_REVERT_VERSION))    // what is written after the hosts were asked, they have not reckoned with
			entry["version"] = v->version;
		if (!v->openers.empty() && Clock::now() < end && wait_closed(volume))
			continue;
		Result<json> result = try_revert_in_place(entry, *s, *v);
		if (result || result.error().status != Status::forbidden || Clock::now() >= end || is_stopping() || !backend.barrier())
			return result;
		const std::shared_ptr<const State> then = backend.state();
		const Volume *still = then->volume(v->vid);
		if (!still || still->version == v->version || !entry.contains("version"))
			return result;
	}
}

// The volume keeps its name, id and device; its device is away meanwhile.
Result<json> ApiServer::Impl::snapshot_revert(const httplib::Request &req)
{
	std::string volume = req.matches[1], name = req.matches[2];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	Result<json> done = finish_revert(propose_revert(volume, name), volume);
	if (!done)
		return done;
	return json{{"name", volume}, {"vid", done->at("vid")}, {"snapshot", name}};
}

Result<json> ApiServer::Impl::finish_revert(const Result<json> &begun, const std::string &volume)
{
	if (!begun)
		return begun;
	const uint32_t vid = begun->at("vid");
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	std::vector<HostId> behind;
	auto reverted = [&](const State &s) {
		const Volume *v = s.volume(vid);
		behind.clear();
		for (const auto &[id, h] : s.hosts)
			if (v && h.online && h.has_devices() && !v->devices.contains(id))
				behind.push_back(id);
		return !v || (v->phase == Phase::ready && behind.empty());
	};
	if (!wait_with_copies(reverted, vid))
		return failed("volume " + volume + " is being reverted, but host " + host_names(*backend.state(), behind) +
			      " has not finished yet; it goes on by itself, see `lockstep status " + volume + "`");
	return json{{"vid", vid}};
}

namespace {

// The hosts that can tell, the primary's first.
std::vector<HostId> who_can_compare(const State &s, const Snapshot &from, const Snapshot *to)
{
	std::vector<HostId> hosts;
	const Volume *v = s.volume(from.vid);
	for (const SnapshotCopy &c : from.copies) {
		const Pool *pool = s.pool(c.pool, c.host);
		const SnapshotCopy *other = to ? to->copy(c.host) : nullptr;
		const Replica *r = !to && v ? v->replica(c.host) : nullptr;
		const bool comparable = to ? other && other->pool == c.pool : r && r->clean() && r->pool == c.pool;
		if (pool && comparable && s.online(c.host))
			hosts.insert(v && v->primary == c.host ? hosts.begin() : hosts.end(), c.host);
	}
	return hosts;
}

}    // namespace

Result<json> ApiServer::Impl::snapshot_diff(const httplib::Request &req)
{
	const std::string volume = req.matches[1], name = req.matches[2], other = req.get_param_value("to");
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	const std::shared_ptr<const State> s = backend.state();
	const Snapshot *from = s->snapshot_named(volume, name), *to = other.empty() ? nullptr : s->snapshot_named(volume, other);
	for (auto [snapshot, called] : {std::pair(from, name), std::pair(other.empty() ? from : to, other)}) {
		if (!snapshot)
			return coded("no-such-snapshot", not_found("volume " + volume + " has no snapshot " + called));
		if (snapshot->phase != SnapshotPhase::ready)
			return forbidden("snapshot " + snapshot->name + " of volume " + volume + " is " + to_string(snapshot->phase));
	}
	const Volume *v = s->volume(from->vid);
	if (!to && (!v || v->phase != Phase::ready))
		return forbidden("volume " + volume + " is not there any more, or not ready: compare its snapshot " + name + " with another one");
	if (to && to->vid != from->vid)
		return forbidden("snapshots " + name + " and " + other + " are of two volumes that had the name " + volume);
	if (std::max(from->size_bytes, to ? to->size_bytes : v->size_bytes) > DIFF_MAX_BYTES)
		return forbidden("volume " + volume + " is larger than " + format_bytes(DIFF_MAX_BYTES) + ": its changes cannot be told");
	const std::vector<HostId> hosts = who_can_compare(*s, *from, to);
	if (hosts.empty())
		return forbidden("snapshot " + name + " of volume " + volume + " cannot be compared: no host that has both is online");
	Result<json> answer = failed("nobody was asked");
	for (HostId host : hosts) {
		answer = backend.ask_host(host, "volume.diff", {{"from", from->sid}, {"to", to ? to->sid : 0}});
		if (answer)
			break;
	}
	if (!answer)
		return failed("snapshot " + name + " of volume " + volume + " cannot be compared: " + answer.error().message);
	json result = {{"volume", volume}, {"from", name}, {"to", to ? json(other) : json()}};
	for (const char *field : {"block_bytes", "blocks", "changed_blocks", "bitmap"})
		result[field] = answer->value(field, json());
	return result;
}

namespace {

bool has_thick_copy(const State &s, uint32_t sid)
{
	const Snapshot *x = s.snapshot(sid);
	return x && std::ranges::any_of(x->copies, [&](const SnapshotCopy &c) {
		const Pool *pool = s.pool(c.pool, c.host);
		return pool && pool->kind == PoolKind::thick;
	});
}

}    // namespace

// By a snapshot of its own, which goes again; if this host dies in between the leader removes it.
Result<json> ApiServer::Impl::volume_clone(const httplib::Request &req)
{
	json body = body_of(req);
	std::string volume = req.matches[1], uuid = body.contains("uuid") ? text_of(body, "uuid") : make_uuid();
	json entry = {{"op", "snapshot.restore"}, {"new", text_of(body, "name")}, {"uuid", uuid}};
	for (const char *field : {"group", "labels"})
		if (body.contains(field))
			entry[field] = body[field];
	Result<json> made = take_snapshots({{"name", "clone-" + make_uuid()}, {"temporary", true}}, {volume}, "");
	if (!made)
		return made;
	const json sid = made->at(0)["sid"];
	entry["sid"] = sid;
	Result<json> result = finish_create(backend.propose(entry), entry["new"], uuid);
	// That it is to go is agreed; only in a thick pool is the volume in its way until it has.
	const json gone = {{"op", "snapshot.delete"}, {"sid", sid}};
	Result<json> removed = has_thick_copy(*backend.state(), sid.get<uint32_t>()) ? delete_snapshot(gone) : backend.propose(gone);
	if (result && !removed)
		(*result)["warning"] = removed.error().message;
	return result;
}

}    // namespace lockstep
