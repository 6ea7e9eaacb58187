// SPDX-License-Identifier: GPL-2.0-or-later
//
// Where new replicas go: on distinct hosts that are online, have the pool with enough room and keep the rules (rules.cc), those with the
// most free space first. A refusal says of every host which rule it failed; it is for want of room (no-room) if more room alone would
// do, else for want of hosts (too-few-hosts).
//
// Rules bind hosts to each other, so the hosts are chosen together: of those where the "same" label has one value, one for each value of
// the "different" label, the one with most free space; and of these sets of hosts the one that has most. With one label of each kind this
// finds a set if there is one.
#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/repair.h"

#include "lib/units.h"

#include <algorithm>

namespace lockstep::cluster {

namespace {

struct Obstacle {
	std::string text;      // empty: none
	bool room = false;
};

// Why the host cannot take the replica.
Obstacle obstacle(const State &state, const Reservations &room, const std::map<HostId, std::string> &others, const Host &host, const Wanted &w)
{
	if (auto it = w.except.find(host.id); it != w.except.end())
		return {host.name + ": " + it->second};
	const Pool *pool = state.pool(w.pool, host.id);
	if (!pool)
		return {host.name + ": has no pool " + w.pool};
	if (pool->deleting)
		return {host.name + ": pool " + w.pool + " is being deleted"};
	if (!host.online)
		return {host.name + (host.evicted ? ": is evicted" : ": is offline")};
	if (!host.keeps_replicas())
		return {host.name + (host.removing ? ": is being removed" : ": is being evacuated")};
	if (!pool->mending.empty())
		return {host.name + ": pool " + w.pool + " has lost a disk, which is being taken out"};
	if (std::string rule = rule_obstacle(state, others, host, w); !rule.empty())
		return {host.name + ": " + rule};
	if (unsigned used = pool_used_percent(*pool); used > POOL_FULL_PERCENT)
		return {host.name + ": pool " + w.pool + " is " + std::to_string(used) + " % full, above " + std::to_string(POOL_FULL_PERCENT) +
				" % it takes nothing new", true};
	uint64_t needed = replica_bytes(w.size_bytes, w.block_size), available = room.available(*pool);
	if (available < needed)
		return {host.name + ": pool " + w.pool + " has room for " + format_bytes(available) + ", " + format_bytes(needed) + " needed",
			true};
	return {};
}

struct Candidate {
	uint64_t available;
	HostId host;
};

// Empty: it has none.
std::string label(const State &state, HostId host, const std::string &key)
{
	const Labels &labels = state.host(host)->labels;
	const auto at = labels.find(key);
	return at == labels.end() ? "" : at->second;
}

struct Choice {
	std::vector<HostId> hosts;      // as many as are wanted, or fewer
	std::string same;               // what the "same" label says of them
	uint64_t room = 0;
	bool operator<(const Choice &other) const { return std::pair(hosts.size(), room) < std::pair(other.hosts.size(), other.room); }
};

// candidates: most room first.
Choice choose(const State &state, const std::vector<Candidate> &candidates, const Wanted &w)
{
	const std::string same = same_parts(w.rules).first;
	std::map<std::string, std::vector<Candidate>> sets;
	for (const Candidate &c : candidates)
		sets[same.empty() ? "" : label(state, c.host, same)].push_back(c);
	Choice best;
	for (const auto &[value, set] : sets) {
		Choice choice = {{}, value};
		std::set<std::string> taken;
		for (const Candidate &c : set)
			if (choice.hosts.size() < w.redundancy && (w.rules.different.empty() || taken.insert(label(state, c.host, w.rules.different)).second)) {
				choice.hosts.push_back(c.host);
				choice.room += c.available / LKS_MAX_REPLICAS;
			}
		if (best < choice)
			best = std::move(choice);
	}
	return best;
}

// Why a host that could take one alone does not go with those that were chosen.
std::string does_not_go(const State &state, const Wanted &w, const Choice &best, HostId host)
{
	const std::string same = same_parts(w.rules).first;
	if (!same.empty() && label(state, host, same) != best.same)
		return "its " + same + " is " + label(state, host, same) + ", of more of the others it is " + best.same;
	for (HostId other : best.hosts)
		if (!w.rules.different.empty() && label(state, other, w.rules.different) == label(state, host, w.rules.different))
			return "its " + w.rules.different + " is " + label(state, host, w.rules.different) + ", as that of " + state.host_name(other);
	return {};
}

[[noreturn]] void refuse_all(const State &state, const Wanted &w, const Choice &best, const std::vector<Candidate> &candidates,
			     const std::vector<Obstacle> &obstacles, bool room_would_do)
{
	std::string message = "volume " + w.name + " needs " + std::to_string(w.redundancy) + (w.redundancy == 1 ? " host, " : " hosts, ") +
			      std::to_string(best.hosts.size()) + " can take it";
	for (const Candidate &c : candidates)
		if (!std::ranges::count(best.hosts, c.host))
			message += "; " + state.host_name(c.host) + ": " + does_not_go(state, w, best, c.host);
	for (const Obstacle &o : obstacles)
		message += "; " + o.text;
	if (room_would_do)
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

Wanted one_more(const State &state, const Volume &v)
{
	Wanted w;
	w.name = v.name;
	w.pool = v.replicas.empty() ? "" : v.replicas[0].pool;
	w.size_bytes = v.size_bytes;
	w.block_size = v.block_size;
	w.redundancy = 1;
	w.vid = v.vid;
	w.rules = rules_of(state, v);
	for (const Replica &r : v.replicas) {
		w.except[r.host] = "has a replica already";
		if (wanted(state, r))
			w.beside.insert(r.host);
	}
	for (const Remnant &r : v.remnants)
		w.except[r.host] = "still has to remove its former replica";
	return w;
}

std::map<HostId, std::string> crowded(const State &state, const Wanted &w)
{
	std::map<HostId, std::string> hosts;
	for (const auto &[vid, v] : state.volumes) {
		const bool named = std::ranges::binary_search(w.rules.apart, vid) || std::ranges::binary_search(v.rules.apart, w.vid);
		if (named && v.phase != Phase::deleting)
			for (const Replica &r : v.replicas)
				hosts.try_emplace(r.host, v.name);
	}
	return hosts;
}

std::string rule_obstacle(const State &state, const std::map<HostId, std::string> &crowded, const Host &host, const Wanted &w)
{
	if (w.rules.avoid.contains(host.id))
		return "is to be avoided";
	if (const auto other = crowded.find(host.id); other != crowded.end())
		return "has a replica of volume " + other->second + ", from which it is to be apart";
	const auto [same, value] = same_parts(w.rules);
	for (const std::string &key : {w.rules.different, same})
		if (!key.empty() && label(state, host.id, key).empty())
			return "has no label " + key;
	if (!value.empty() && label(state, host.id, same) != value)
		return "its " + same + " is " + label(state, host.id, same) + ", not " + value;
	for (HostId other : w.beside) {
		if (!same.empty() && label(state, other, same) != label(state, host.id, same))
			return "its " + same + " is " + label(state, host.id, same) + ", not that of " + state.host_name(other) + ", which has a replica";
		if (!w.rules.different.empty() && label(state, other, w.rules.different) == label(state, host.id, w.rules.different))
			return "its " + w.rules.different + " is " + label(state, host.id, w.rules.different) + ", as that of " + state.host_name(other) +
			       ", which has a replica";
	}
	return {};
}

std::vector<HostId> place(const State &state, const Wanted &w)
{
	refuse_unknown(state, w);
	std::vector<Candidate> candidates, with_more_room;
	std::vector<Obstacle> obstacles;
	const Reservations room(state);
	const std::map<HostId, std::string> others = crowded(state, w);
	for (const auto &[id, host] : state.hosts) {
		if (!w.hosts.empty() && std::find(w.hosts.begin(), w.hosts.end(), id) == w.hosts.end())
			continue;
		Obstacle o = obstacle(state, room, others, host, w);
		if (o.text.empty() || o.room)
			with_more_room.push_back({0, id});
		if (o.text.empty())
			candidates.push_back({room.available(*state.pool(w.pool, id)), id});
		else
			obstacles.push_back(std::move(o));
	}
	std::stable_sort(candidates.begin(), candidates.end(),
			 [](const Candidate &a, const Candidate &b) { return a.available > b.available; });
	Choice best = choose(state, candidates, w);
	if (best.hosts.size() < w.redundancy)
		refuse_all(state, w, best, candidates, obstacles, choose(state, with_more_room, w).hosts.size() >= w.redundancy);
	std::sort(best.hosts.begin(), best.hosts.end());
	return best.hosts;
}

}    // namespace lockstep::cluster
