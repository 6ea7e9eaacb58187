// SPDX-License-Identifier: GPL-2.0-or-later
//
// How volumes get back to the number of good copies they should have, and hosts that stay away are given up: the part of
// the leader's decisions (controller.h) that is in no hurry.
//
// A replica is *wanted* if it is to stay: not leaving, on a host that is neither evicted nor evacuated nor removed, and its
// disk not failed for longer than the grace time. For each volume that is ready, again and again:
//
//   fewer wanted than the redundancy    one more is added where there is most room; a host where it could not be made is
//                                       left out until something changes there
//   enough, all wanted ones in sync     one that is not wanted is removed. Those of an evicted host are kept in the record:
//   and online                          if the host comes back after all it needs only what changed since
//   more than the redundancy, all in    one is removed: not a pinned one; one that is where the rules do not want it (rules.cc), else
//   sync and online                     one on the fullest pool; neither the primary nor where it is open
//   the primary is not wanted           another good copy becomes primary first
//
// So a replica that is moved, evacuated, evicted, failed or superfluous goes through the same few steps, each of which names the
// version it saw, and any leader goes on where the last one stopped.
//
// Time. No clock is trusted and none is compared between hosts: the leader counts how long a host has been away and a replica
// failed (LifeClock), and writes that to the log now and then (life.elapsed); the next leader counts on from there. A change of
// leader loses what was not written yet: at most a twentieth of the shortest deadline, and a minute. Decisions are made from
// the written numbers alone.
#pragma once

#include "lockstepd/cluster/state.h"

#include <map>
#include <optional>
#include <tuple>
#include <vector>

namespace lockstep {

bool wanted(const State &state, const Replica &replica);

// Why the volume has fewer wanted replicas than its redundancy and none can be added; empty otherwise.
std::string repair_obstacle(const State &state, const Volume &volume);

// The rules that hold for the volume: its own, and of its group what it does not say itself.
Rules rules_of(const State &state, const Volume &volume);

// Why the replica on that host is where it should not be, by the volume's rules as they are now; empty: it may be there.
std::string rule_broken(const State &state, const Volume &volume, HostId host);

// Hosts with a good replica that should have a copy of the snapshot beside it and get none, and why.
std::map<HostId, std::string> copies_without_room(const State &state, const Snapshot &snapshot);

// An entry to propose for the volume, null if there is none.
nlohmann::json decide_repair(const State &state, const Volume &volume);

// How far a group is whose volumes are to get another redundancy: volumes that have it and as many good copies, and why one that has not
// cannot (empty: nothing is in the way).
struct GroupChange {
	size_t done = 0, all = 0;
	std::string obstacle;
};
GroupChange group_change(const State &state, const Group &group);

// Entries for hosts that are to be evicted.
std::vector<nlohmann::json> decide_evictions(const State &state);

// How many more ms until this host is evicted, by the written numbers; nullopt: it is not going to be, now. In *why: the reason
// that it is not although it is away.
std::optional<uint64_t> evicted_in_ms(const State &state, HostId host, std::string *why = nullptr);

// The leader's stop watch. Keep one a leadership: forget() when it begins or ends.
class LifeClock {
public:
	// To be called often. now_ms: any monotonic clock. The entry to propose, null if nothing is worth an entry yet.
	nlohmann::json look(const State &state, uint64_t now_ms);
	void forget() { marks_.clear(); }

private:
	using Key = std::tuple<uint32_t, uint64_t, HostId>;    // vid and added, or 0 and since_ms; host
	struct Mark {
		uint64_t written_ms;    // what the State says,
		uint64_t at_ms;         // and when this clock first saw it say that
	};
	std::map<Key, Mark> marks_;
};

constexpr uint64_t LIFE_TICK_MOST_MS = 60'000, LIFE_TICK_LEAST_MS = 500;

}    // namespace lockstep
