// SPDX-License-Identifier: GPL-2.0-or-later
//
// See controller.h. The decisions are made against a copy of the State in which the host statuses about to be proposed
// hold already, so that a silent host and the volumes it served need one round, not two. Every decision names the version
// it saw; a stale one is refused by the state machine.
#include "lockstepd/cluster/controller.h"

#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/repair.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

bool somebody_needs_a_primary(const State &s, const Volume &v)
{
	return s.snapshot_in_progress(v.vid) || !v.openers.empty() || std::any_of(v.replicas.begin(), v.replicas.end(), [](const Replica &r) {
		return r.state == ReplicaState::stale || r.state == ReplicaState::suspect;
	});
}

bool needs_failover(const State &s, const Volume &v)
{
	return v.primary ? !s.online(v.primary) : somebody_needs_a_primary(s, v);
}

json failover(const Volume &v, HostId primary, const std::vector<HostId> &keep)
{
	return {{"op", "record.failover"}, {"vid", v.vid}, {"version", v.version}, {"primary", primary}, {"keep", keep}};
}

// S2: only if nothing clean is left at all; a clean replica that is merely away is waited for.
HostId choose_last_resort(const State &s, const Volume &v)
{
	HostId best = 0;
	for (const Replica &r : v.replicas) {
		if (r.clean())
			return 0;
		if (r.state == ReplicaState::suspect && s.online(r.host) && (!best || (v.opener(r.host) && !v.opener(best))))
			best = r.host;
	}
	return best;
}

// The decision for one volume; null if there is none.
json decide_volume(const State &s, const Volume &v)
{
	if (v.phase == Phase::creating) {
		if (!v.may_be_rolled_back())
			return nullptr;
		for (const Replica &r : v.replicas)
			if (!r.created && !s.online(r.host))
				return {{"op", "volume.abort"}, {"vid", v.vid},
					{"message", "volume " + v.name + " could not be created: host " + s.host_name(r.host) + " went offline"}};
		return nullptr;
	}
	if (v.phase == Phase::ready && all_moved(v))
		return {{"op", "volume.grown"}, {"vid", v.vid}};
	if (v.phase != Phase::ready || !needs_failover(s, v))
		return nullptr;
	if (HostId primary = choose_primary(s, v)) {
		return failover(v, primary, cluster::clean_and_online(s, v));
	}
	if (HostId primary = choose_last_resort(s, v)) {
		json entry = failover(v, primary, {primary});
		entry["last_resort"] = true;
		return entry;
	}
	return nullptr;
}

// The end of a set that cannot come to an end: its primary has changed, or it takes too long. Null if there is none.
json decide_snapshot(const State &s, const Snapshot &x, uint64_t now_ms)
{
	if (x.temporary && x.phase == SnapshotPhase::ready && x.deadline_ms && now_ms > x.deadline_ms &&
	    std::none_of(s.volumes.begin(), s.volumes.end(), [&](const auto &v) { return v.second.source == x.sid && v.second.phase == Phase::creating; }))
		return {{"op", "snapshot.delete"}, {"sid", x.sid}};
	if (x.phase == SnapshotPhase::discarding && all_understand(s, LEVEL_ABANDON) && cluster::waits_for_offline(s, x.set))
		return {{"op", "snapshot.abandon"}, {"set", x.set}};
	if (!x.in_progress())
		return nullptr;
	json entry = {{"op", "snapshot.broken"}, {"set", x.set}, {"attempt", x.attempt}};
	const Volume *v = s.volume(x.vid);
	if (!x.deadline_ms)
		return {{"op", "snapshot.deadline"}, {"set", x.set}, {"at_ms", now_ms + SNAPSHOT_LIMIT_MS}};
	if (now_ms > x.deadline_ms) {
		const char *what = x.phase == SnapshotPhase::preparing	 ? "not all hosts could prepare it"
				   : x.phase == SnapshotPhase::quiescing ? "its primary could not hold still"
									 : "not all hosts could take it";
		entry["message"] = "snapshot " + x.name + " of volume " + x.volume + " was given up: " + what + " within " +
				   std::to_string(SNAPSHOT_LIMIT_MS / 1000) + " s: see `lockstep status " + x.volume + "`";
		entry["final"] = true;
		return entry;
	}
	for (const SnapshotCopy &c : x.copies)
		// In `taking` writes are held back meanwhile.
		if (!s.online(c.host) && ((x.phase == SnapshotPhase::preparing && !c.prepared) || (x.phase == SnapshotPhase::taking && !c.taken))) {
			entry["message"] = "snapshot " + x.name + " of volume " + x.volume + " was given up: host " + s.host_name(c.host) +
					   " went offline meanwhile: try again";
			return entry;
		}
	if (x.holder && v && v->primary != x.holder) {
		entry["message"] = "snapshot " + x.name + " of volume " + x.volume + " was given up: its primary changed from " +
				   s.host_name(x.holder) + " to " + s.host_name(v->primary) + " meanwhile: try again";
		return entry;
	}
	return nullptr;
}

}    // namespace

std::vector<json> decide(const State &state, const std::map<HostId, Liveness> &liveness, uint64_t now_ms)
{
	std::vector<json> decisions;
	if (!state.initialized())
		return decisions;
	State expected = state;
	for (auto &[id, host] : expected.hosts) {
		auto it = liveness.find(id);
		if (it == liveness.end() || it->second.online == host.online)
			continue;
		host.online = it->second.online;
		host.evicted = false;
		host.away_ms = 0;
		decisions.push_back({{"op", "host.status"}, {"host", id}, {"online", host.online}, {"now_ms", now_ms}});
	}
	for (json &entry : decide_evictions(expected))
		decisions.push_back(std::move(entry));    // what follows from it, next time
	for (const auto &[vid, v] : state.volumes) {
		if (decisions.size() >= MAX_DECISIONS)
			break;
		json entry = decide_volume(expected, v);
		if (entry.is_null())
			entry = decide_repair(expected, v);
		if (entry.is_null())
			continue;
		// What was decided counts for the next choices: the balance of primaries, the room in pools.
		apply(expected, expected.applied + 1, entry);
		decisions.push_back(std::move(entry));
	}
	if (decisions.size() < MAX_DECISIONS)
		for (json &entry : cluster::decide_groups(expected, MAX_DECISIONS - decisions.size()))
			decisions.push_back(std::move(entry));
	if (decisions.size() < MAX_DECISIONS)
		for (json &entry : cluster::decide_copies(expected, MAX_DECISIONS - decisions.size()))
			decisions.push_back(std::move(entry));
	std::set<uint32_t> sets;
	for (const auto &[sid, x] : state.snapshots)
		if (json entry = sets.contains(x.set) ? json() : decide_snapshot(expected, x, now_ms); !entry.is_null()) {
			sets.insert(x.set);
			decisions.push_back(std::move(entry));
		}
	return decisions;
}

}    // namespace lockstep
