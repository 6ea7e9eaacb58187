// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a host says of the disks of its pools, and changes of them that it is asked for. All of it blocks: for a worker thread.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lockstepd/cluster/state.h"
#include "lockstepd/host/lvm.h"

namespace lockstep {

// Of all pools given: [{pool, vg, disk, size_bytes, used_bytes, missing, leaving, percent}], sorted by disk. percent: how far LVM is with
// what it is moving away from it now, as last looked at; 0 for others.
Result<nlohmann::json> list_disks(const Lvm &lvm, const std::vector<Pool> &pools, const std::map<std::string, double> &percent);

// pool: empty if remove says which. add, remove: paths of disks, one may be empty. Refused as a whole, by one line that begins with the
// host's name, if it cannot be done to its end; then nothing has changed. {pool, vg, add, remove, changed}: what is left to do is done by
// the reconciler. Idempotent.
Result<nlohmann::json> change_disks(const Lvm &lvm, const std::vector<Pool> &pools, const std::string &host, const std::string &pool,
				    std::string add, std::string remove);

}    // namespace lockstep
