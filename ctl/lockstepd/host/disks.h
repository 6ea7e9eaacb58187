// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a host says of the disks of its pools, and changes of them that it is asked for. All of it blocks: for a worker thread.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "lockstepd/cluster/state.h"
#include "lockstepd/host/lvm.h"

namespace lockstep {

constexpr const char *DISK_WORK = "disks";    // key of workers: what a host was asked to do with its disks is done in order

// The logical volumes of a group that are the cluster's, as the log has them.
struct LvmNames {
	struct Object {
		bool snapshot = false;
		uint32_t id = 0;       // vid or sid
	};
	std::map<std::string, Object> wanted;     // replicas, and copies of snapshots, whole or not
	std::set<std::string> expendable;         // given up: this host is to remove them
};
LvmNames lvm_names(const State &state, HostId self, const std::string &vg);

// Of all pools given: [{pool, vg, disk, uuid, size_bytes, used_bytes, missing, leaving, percent}], sorted by disk. percent: how far LVM is
// with what it is moving away from it now, as last looked at; 0 for others. A missing disk has the path where it was last seen, or if
// another device has that now, LVM's UUID.
Result<nlohmann::json> list_disks(const Lvm &lvm, const std::vector<Pool> &pools, const std::map<std::string, double> &percent);

// pool: empty if remove says which. add, remove: paths of disks, one may be empty; remove may be a UUID. Refused as a whole, by one line
// that begins with the host's name, if it cannot be done to its end; then nothing has changed. {pool, vg, add, remove, changed}: what is
// left to do is done by the reconciler. Idempotent. With "mend": the disk is missing, and nothing happens before that entry is agreed on.
Result<nlohmann::json> change_disks(const Lvm &lvm, const State &state, HostId self, const std::string &pool, std::string add, std::string remove);

// Refused (pool-in-use) while a disk is on its way into the pool or out of it.
Done pool_at_rest(const Lvm &lvm, const State &state, HostId self, const std::string &pool);

}    // namespace lockstep
