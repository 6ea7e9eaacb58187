// SPDX-License-Identifier: GPL-2.0-or-later
//
// See recover.h. The entry names the copy to take of each volume, so that what the plan showed is what is done, whoever applies it.
#include "lockstepd/cluster/recover.h"

#include "lockstepd/cluster/internal.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

// The better of two copies: clean before suspect before stale before failed; then what its kernel knew last; then the primary.
HostId best_copy(const Volume &v, const std::set<HostId> &dead, const std::map<HostId, uint64_t> &versions)
{
	const auto rank = [&](const Replica &r) {
		const auto known = versions.find(r.host);
		const int state = r.clean() ? 3 : r.in_sync() ? 2 : r.state == ReplicaState::stale ? 1 : 0;
		return std::tuple(r.created, state, known == versions.end() ? 0 : known->second, r.host == v.primary);
	};
	const Replica *best = nullptr;
	for (const Replica &r : v.replicas)
		if (!dead.contains(r.host) && r.created && (!best || rank(r) > rank(*best)))
			best = &r;
	return best ? best->host : 0;
}

}    // namespace

json recover_entry(const State &state, HostId host, const std::set<HostId> &dead, const std::map<uint32_t, std::map<HostId, uint64_t>> &versions,
		   uint64_t now_ms)
{
	json copies = json::array();
	for (const auto &[vid, v] : state.volumes) {
		if (v.phase != Phase::ready)
			continue;
		const auto known = versions.find(vid);
		const HostId copy = best_copy(v, dead, known == versions.end() ? std::map<HostId, uint64_t>() : known->second);
		if (copy)
			copies.push_back({vid, copy});
	}
	return {{"op", "cluster.recover"}, {"epoch", state.epoch + 1}, {"host", host}, {"dead", dead}, {"copies", copies}, {"now_ms", now_ms}};
}

namespace cluster {

namespace {

std::map<uint32_t, HostId> copies_of(const State &state, const Fields &f, const std::vector<HostId> &dead)
{
	std::map<uint32_t, HostId> copies;
	for (const json &pair : f.raw("copies")) {
		const bool fits = pair.is_array() && pair.size() == 2 && pair[0].is_number_unsigned() && pair[1].is_number_unsigned();
		const Volume *v = fits ? state.volume(pair[0].get<uint32_t>()) : nullptr;
		const Replica *r = v && v->phase == Phase::ready ? v->replica(pair[1].get<HostId>()) : nullptr;
		if (!r || !r->created || std::ranges::count(dead, r->host))
			refuse(usage_error("the field \"copies\" does not name replicas of surviving hosts"));
		copies[v->vid] = r->host;
	}
	return copies;
}

// What is left of a volume that is ready: one copy, and others that are copied from it.
void keep_copy(Volume &v, HostId copy)
{
	v.version += RECOVERY_JUMP;
	v.term += RECOVERY_JUMP;
	v.session_serial += RECOVERY_JUMP;
	v.primary = 0;
	v.drained = false;
	for (Replica &r : v.replicas) {
		if (r.host == copy && !r.clean()) {
			r.state = ReplicaState::suspect;
			r.since = v.version;
			r.failed_ms = 0;
		} else if (r.host != copy && r.created) {
			if (r.in_sync())
				r.state = ReplicaState::stale;
			r.since = v.version;
		}
	}
}

}    // namespace

json cluster_recover(State &state, const Fields &f)
{
	const Host self = host_of(state, f);
	const uint64_t epoch = f.number("epoch", UINT32_MAX), now_ms = f.number("now_ms");
	const std::vector<HostId> dead = f.hosts("dead");
	if (epoch == state.epoch)
		return done(false);
	if (epoch != state.epoch + 1)
		refuse(forbidden("the cluster is in epoch " + std::to_string(state.epoch) + ", not " + std::to_string(epoch - 1)));
	if (std::ranges::count(dead, self.id))
		refuse(usage_error("host " + self.name + " cannot be among the dead: its log is the one to go on with"));
	for (HostId id : dead)
		if (!state.host(id))
			refuse(coded("no-such-host", not_found("the cluster has no host " + std::to_string(id))));
	const std::map<uint32_t, HostId> copies = copies_of(state, f, dead);

	State next = state;
	for (const auto &[vid, before] : state.volumes) {
		const bool lost = before.phase == Phase::ready && !copies.contains(vid);
		const bool half_made = before.phase == Phase::creating &&
				       std::ranges::any_of(before.replicas, [&](const Replica &r) { return std::ranges::count(dead, r.host) > 0; });
		if (!lost && !half_made)
			continue;
		Volume tomb = before;
		tomb.openers.clear();
		roll_back(next, tomb, "volume " + before.name + (lost ? " was given up: no surviving host has a copy" : " could not be created: a host is lost"));
	}
	for (HostId id : dead)
		forget_host(next, id);
	for (auto &[vid, v] : next.volumes)
		if (v.phase == Phase::ready)
			keep_copy(v, copies.at(vid));
	next.epoch = epoch;
	next.next_raft_id = (epoch << EPOCH_SHIFT) + 1;
	next.next_vid += RECOVERY_ID_JUMP;
	next.next_sid += RECOVERY_ID_JUMP;
	next.tokens.clear();
	Host &me = next.hosts.at(self.id);
	me.raft_id = next.next_raft_id++;
	me.former_raft_id = 0;
	me.online = true;
	me.since_ms = now_ms;
	me.evicted = false;
	me.away_ms = 0;
	if (std::string broken = check(next); !broken.empty())
		refuse(failed("the cluster cannot be recovered: " + broken));
	state = std::move(next);
	json answer = done();
	answer["raft_id"] = state.hosts.at(self.id).raft_id;
	return answer;
}

// A new raft id for a host whose log is lost or of an epoch that has ended. raft_id: the one that its certificate names, which is still
// believed afterwards, since the answer may get lost: then it asks again and gets another one. No id is handed out twice.
json host_rejoin(State &state, const Fields &f)
{
	Host next = host_of(state, f);
	const uint64_t shown = f.number("raft_id");
	if (shown != next.raft_id && shown != next.former_raft_id)
		refuse(forbidden("host " + next.name + " shows raft id " + std::to_string(shown) + ", which it does not have"));
	next.former_raft_id = shown;
	next.raft_id = state.next_raft_id++;
	state.hosts[next.id] = next;
	json answer = done();
	answer["raft_id"] = next.raft_id;
	return answer;
}

}    // namespace cluster

namespace {

constexpr const char *UNSEEN = "nothing, unless the lost hosts agreed on something that this log has not heard of";

json volume_row(const State &state, const Volume &v, HostId copy)
{
	json row = {{"volume", v.name}, {"copy", nullptr}, {"loss", nullptr}};
	const Replica *r = v.replica(copy);
	if (v.phase != Phase::ready) {
		row["why"] = v.phase == Phase::creating ? "it is still being created" : "it is being deleted";
		return row;
	}
	if (!r) {
		row["why"] = "no surviving host has a copy";
		row["loss"] = "all of it: it is given up";
		return row;
	}
	row["copy"] = state.host_name(copy);
	const std::string since = std::to_string(r->since);
	if (r->clean()) {
		row["why"] = "in sync as of version " + std::to_string(v.version);
		row["loss"] = UNSEEN;
	} else if (r->in_sync()) {
		row["why"] = "in sync, but restarted unclean; no clean copy survives";
		row["loss"] = "writes that were not flushed";
	} else {
		row["why"] = std::string(to_string(r->state)) + " since version " + since + "; no copy in sync survives";
		row["loss"] = "all that was written since version " + since + "; what had been copied since then is mixed with older data";
	}
	return row;
}

}    // namespace

Result<json> recovery_plan(const State &state, const json &entry)
{
	State after = state;
	const json answer = apply(after, after.applied + 1, entry);
	if (!answer["ok"].get<bool>())
		return Error{static_cast<Status>(answer["status"].get<int>()), answer["message"], answer["code"]};
	json plan = {{"epoch", after.epoch}, {"host", state.host_name(entry["host"])}, {"dead", json::array()}, {"kept", json::array()}, {"volumes", json::array()}};
	for (const auto &[id, h] : state.hosts)
		if (id != entry["host"])
			plan[after.host(id) ? "kept" : "dead"].push_back(h.name);
	std::map<uint32_t, HostId> copies;
	for (const json &pair : entry["copies"])
		copies[pair[0]] = pair[1];
	for (const auto &[vid, v] : state.volumes)
		plan["volumes"].push_back(volume_row(state, v, copies.contains(vid) ? copies[vid] : HostId(0)));
	return plan;
}

}    // namespace lockstep
