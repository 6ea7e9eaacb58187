// SPDX-License-Identifier: GPL-2.0-or-later
//
// What only a host with a thick pool can say before a volume there is reverted (cluster/snapshots.cc): whether its snapshots bear it.
#pragma once

#include "lockstepd/cluster/state.h"
#include "lockstepd/host/lvm.h"
#include "lockstepd/host/metadata.h"

namespace lockstep {

// Refused if the host's copy of the snapshot cannot be read, or that or another one of the volume has less room left in its reserve than
// new metadata may need, and what is copied back and it has not yet. Nobody writes to the volume by then, so what is true now is true when it is done. Blocks: for a worker thread.
Done can_revert_in_place(const Lvm &lvm, const std::function<Done(const std::string &from, const ReplicaMetadata &to)> &is_content, const State &state,
			 HostId self, uint32_t sid);

}    // namespace lockstep
