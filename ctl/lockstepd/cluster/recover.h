// SPDX-License-Identifier: GPL-2.0-or-later
//
// After the loss of a majority: what a surviving log becomes, and what that costs.
//
// Raft cannot tell a majority that is dead from one that is merely out of sight, so a human vouches for it: cluster.recover
// names the hosts that are dead for good. From then on the cluster is in its next *epoch*, and everything of before can be told
// from what is of now by its numbers alone:
//
//   - A raft id holds the epoch it was given out in (epoch_of()). The recovered host has the first one of the new epoch. A
//     surviving host keeps its place, but must ask for a new id before it may be a member of the log again (host.rejoin); a dead
//     one has no place: should it come back, it is told so and stops, whatever it remembers.
//   - Versions, terms, sessions, vids and sids jump by RECOVERY_JUMP, over anything that the lost majority may have agreed on
//     without this log hearing of it. So none of its records can pass for a newer one.
//   - Of each volume exactly one copy stays in sync: a primary's if it survives, else any clean one, else one that restarted
//     unclean, else a stale one, the last two by way of the last resort (S2): "suspect", a new incarnation. All others are stale as of the
//     new version, which no dirty map is tied to, hence are copied in full: what the log that is lost said of them is not known.
#pragma once

#include <set>

#include "lockstepd/cluster/state.h"

namespace lockstep {

constexpr uint64_t RECOVERY_JUMP = 1u << 20;            // of versions, terms and sessions
constexpr uint32_t RECOVERY_ID_JUMP = 1u << 12;         // of vids and sids

// host: the one whose log it is. versions: for each volume the newest version that a host's kernel has adopted, where known.
nlohmann::json recover_entry(const State &state, HostId host, const std::set<HostId> &dead,
			     const std::map<uint32_t, std::map<HostId, uint64_t>> &versions, uint64_t now_ms);

// What the entry does, for people: {"epoch", "host", "dead": [names], "kept": [names], "volumes": [{"volume", "copy": host or null, "why",
// "loss": text or null}]}. Nothing is changed. An Error if the entry is refused.
Result<nlohmann::json> recovery_plan(const State &state, const nlohmann::json &entry);

}    // namespace lockstep
