// SPDX-License-Identifier: GPL-2.0-or-later
//
// See controller.h. The decisions are made against a copy of the State in which the host statuses about to be proposed
// hold already, so that a silent host and the volumes it served need one round, not two. Every decision names the version
// it saw; a stale one is refused by the state machine.
#include "lockstepd/cluster/controller.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

bool somebody_needs_a_primary(const Volume &v)
{
	return !v.openers.empty() || std::any_of(v.replicas.begin(), v.replicas.end(), [](const Replica &r) {
		return r.state == ReplicaState::stale || r.state == ReplicaState::suspect;
	});
}

bool needs_failover(const State &s, const Volume &v)
{
	return v.primary ? !s.online(v.primary) : somebody_needs_a_primary(v);
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
		for (const Replica &r : v.replicas)
			if (!r.created && !s.online(r.host))
				return {{"op", "volume.abort"}, {"vid", v.vid},
					{"message", "volume " + v.name + " could not be created: host " + s.host_name(r.host) + " went offline"}};
		return nullptr;
	}
	if (v.phase != Phase::ready || !needs_failover(s, v))
		return nullptr;
	if (HostId primary = choose_primary(s, v)) {
		std::vector<HostId> keep;
		for (const Replica &r : v.replicas)
			if (r.clean() && s.online(r.host))
				keep.push_back(r.host);
		return failover(v, primary, keep);
	}
	if (HostId primary = choose_last_resort(s, v)) {
		json entry = failover(v, primary, {primary});
		entry["last_resort"] = true;
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
		decisions.push_back({{"op", "host.status"}, {"host", id}, {"online", host.online}, {"now_ms", now_ms}});
	}
	for (const auto &[vid, v] : state.volumes) {
		if (decisions.size() >= MAX_DECISIONS)
			break;
		json entry = decide_volume(expected, v);
		if (entry.is_null())
			continue;
		if (entry["op"] == "record.failover")
			expected.volumes.at(vid).primary = entry["primary"];    // counts for the balance of the next choices
		decisions.push_back(std::move(entry));
	}
	return decisions;
}

}    // namespace lockstep
