// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the leader decides: a pure function of the agreed state and of who it hears from.
//
// decide() is level-triggered: it is called again on every change and every second or so, and says what is to be proposed
// now. A proposal that got lost is proposed again, one that was outrun is refused by the state machine since it names the
// version it saw. So nothing is remembered here, and a new leader goes on where the old one stopped.
//
// Safety never depends on the judgement who is alive: a host taken for dead may well serve on, and the kernels wait its
// promises out (rule L1). What is decided here is only how soon a volume serves again, and that the last good copy is
// never given up:
//   - a volume whose primary's host is offline, or that has no primary though somebody needs one (an opener, or a replica
//     that is out of sync and waits to be resynced), gets a new one among the replicas in sync, not suspect and online;
//   - if there is none but one in sync and not suspect is merely offline, it waits: the volume is frozen;
//   - if every replica in sync is suspect, one of them that is online serves as a last resort (rule S2).
// An opener on an offline host stays listed until somebody else opens (take-over).
#pragma once

#include "lockstepd/cluster/state.h"

#include <map>
#include <vector>

namespace lockstep {

struct Liveness {
	bool online = false;
	uint64_t since_ms = 0;      // Unix time of the change, informative
};

// liveness: hosts that the leader has an opinion on; for others (a leader that has just been elected must give each host its
// time to call before it says offline) the committed status stands. now_ms: Unix time. Returns entries to propose in order,
// at most MAX_DECISIONS; empty without a cluster.
constexpr size_t MAX_DECISIONS = 256;
constexpr uint64_t SNAPSHOT_LIMIT_MS = 60'000;    // from the command to the end of the last try
std::vector<nlohmann::json> decide(const State &state, const std::map<HostId, Liveness> &liveness, uint64_t now_ms);

}    // namespace lockstep
