// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a host knows of the cluster by itself: its own log, read without asking anybody. It may be old: what was decided since is not in it.
#pragma once

#include <set>

#include "lockstepd/cluster/state.h"
#include "lockstepd/consensus/host_file.h"
#include "lockstepd/consensus/log.h"

namespace lockstep {

struct LastKnown {
	State state;                     // as it was once: all its entries are known to be committed
	std::set<uint32_t> certain;      // volumes that may be assembled: may_assemble()
};

// Whether the replica of `self` is, on its disk, what `committed` says. That changes only by steps of this host itself, each taken when
// an entry had been applied here, hence stands in the log: `whole` is the state with all entries on this disk, those included of
// which it is not known whether they are committed. Where the two differ, or a growth is under way, it is not certain.
bool may_assemble(const State &committed, const State &whole, HostId self, uint32_t vid);

// Follows a log into both states; entries up to `committed` are known to be.
StateMachine into(State &known, State &whole, uint64_t committed);

// `certain` is empty unless the log is that of this membership. Works on a copy, also while the log is in use. Blocks.
Result<LastKnown> read_last_known(const ConsensusOptions &options, const HostFile &file);

}    // namespace lockstep
