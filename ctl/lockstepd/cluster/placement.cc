// SPDX-License-Identifier: GPL-2.0-or-later
//
// Where new replicas go: on distinct hosts that are online and have the pool with enough room, those with the
// most free space first. A refusal says of every host which rule it failed; it is for want of room (no-room) if more room alone would
// do, else for want of hosts (too-few-hosts).
#include "lockstepd/cluster/internal.h"

#include "lib/units.h"

#include <algorithm>

namespace lockstep::cluster {

namespace {

struct Obstacle {
	std::string text;      // empty: none
	bool room = false;
};

// Why the host cannot take the replica.
Obstacle obstacle(const State &state, const Reservations &room, const Host &host, const Wanted &w)
{
	if (auto it = w.except.find(host.id); it != w.except.end())
		return {host.name + ": " + it->second};
	const Pool *pool = state.pool(w.pool, host.id);
	if (!pool)
		return {host.name + ": has no pool " + w.pool};
	if (!host.online)
		return {host.name + (host.evicted ? ": is evicted" : ": is offline")};
	if (!host.keeps_replicas())
		return {host.name + (host.removing ? ": is being removed" : ": is being evacuated")};
	if (!pool->mending.empty())
		return {host.name + ": pool " + w.pool + " has lost a disk, which is being taken out"};
	if (unsigned used = pool_used_percent(*pool); used > POOL_FULL_PERCENT)
		return {host.name + ": pool " + w.pool + " is " + std::to_string(used) + " % full, above " + std::to_string(POOL_FULL_PERCENT) +
				" % it takes nothing new", true};
	uint64_t needed = replica_bytes(w.size_bytes, w.block_size), available = room.available(*pool);
	if (available < needed)
		return {host.name + ": pool " + w.pool + " has room for " + format_bytes(available) + ", " + format_bytes(needed) + " needed",
			true};
	return {};
}

[[noreturn]] void refuse_all(const Wanted &w, size_t fitting, const std::vector<Obstacle> &obstacles)
{
	std::string message = "volume " + w.name + " needs " + std::to_string(w.redundancy) + (w.redundancy == 1 ? " host, " : " hosts, ") +
			      std::to_string(fitting) + " can take it";
	size_t without_room = 0;
	for (const Obstacle &o : obstacles) {
		message += "; " + o.text;
		without_room += o.room;
	}
	if (fitting + without_room >= w.redundancy)
		refuse(coded("no-room", forbidden(message)));
	refuse(coded("too-few-hosts", forbidden(message)));
}

void refuse_unknown(const State &state, const Wanted &w)
{
	for (HostId id : w.hosts)
		if (!state.host(id))
			refuse(coded("no-such-host", not_found("volume " + w.name + ": the cluster has no host " + std::to_string(id))));
	if (w.redundancy > state.hosts.size())
		refuse(forbidden("volume " + w.name + ": redundancy " + std::to_string(w.redundancy) + " needs as many hosts, the cluster has " +
				 std::to_string(state.hosts.size()) + ": add hosts or choose a lower redundancy"));
	for (const auto &[key, pool] : state.pools)
		if (pool.name == w.pool)
			return;
	refuse(coded("no-such-pool", not_found("volume " + w.name + ": no host has a pool named " + w.pool + ": create it with `lockstep pool create " + w.pool +
			 " --vg VG`")));
}

}    // namespace

Wanted one_more(const Volume &v)
{
	Wanted w;
	w.name = v.name;
	w.pool = v.replicas.empty() ? "" : v.replicas[0].pool;
	w.size_bytes = v.size_bytes;
	w.block_size = v.block_size;
	w.redundancy = 1;
	for (const Replica &r : v.replicas)
		w.except[r.host] = "has a replica already";
	for (const Remnant &r : v.remnants)
		w.except[r.host] = "still has to remove its former replica";
	return w;
}

std::vector<HostId> place(const State &state, const Wanted &w)
{
	refuse_unknown(state, w);
	struct Candidate {
		uint64_t available;
		HostId host;
	};
	std::vector<Candidate> candidates;
	std::vector<Obstacle> obstacles;
	const Reservations room(state);
	for (const auto &[id, host] : state.hosts) {
		if (!w.hosts.empty() && std::find(w.hosts.begin(), w.hosts.end(), id) == w.hosts.end())
			continue;
		Obstacle o = obstacle(state, room, host, w);
		if (o.text.empty())
			candidates.push_back({room.available(*state.pool(w.pool, id)), id});
		else
			obstacles.push_back(std::move(o));
	}
	if (candidates.size() < w.redundancy)
		refuse_all(w, candidates.size(), obstacles);
	std::stable_sort(candidates.begin(), candidates.end(),
			 [](const Candidate &a, const Candidate &b) { return a.available > b.available; });
	std::vector<HostId> hosts;
	for (unsigned i = 0; i < w.redundancy; i++)
		hosts.push_back(candidates[i].host);
	std::sort(hosts.begin(), hosts.end());
	return hosts;
}

}    // namespace lockstep::cluster
