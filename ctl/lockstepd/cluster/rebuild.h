// SPDX-License-Identifier: GPL-2.0-or-later
//
// After the loss of all logs: a log that is made of what the replicas' metadata say.
//
// recover.h needs one log that has survived. Without any, there is still what each replica's superblock (kmod/core/disk.h) and the tags
// of its LV (host/lvm.h) tell: of which volume it is, the last version and term it adopted, whether it was detached clean, and whom
// it knows to lack something. What a superblock does not tell is that it is out of date itself: only the others know. And a version is on
// the disk some moments after it began to count. So from the copies of a volume one is taken only if nothing speaks for another:
//
//   - no other copy names it among those that lack something;
//   - none has a later version, term or incarnation, and none has more extents written;
//   - every other that nobody names either is at the same version, and both are quiet: nothing hot, hence nothing written that the other might
//     not have. If one is not quiet, the last writes before the end may be on it alone.
//
// Where that does not hold the volume is in doubt, and an administrator has to name the copy, or to leave the volume out. Two hosts that
// lost power while a volume was being written to are such a case: no disk can tell which of the two was written to last.
//
// The others are stale as of a version that no dirty map is tied to, hence copied in full, as after recover.h. Nothing on a disk is
// touched; the new log merely describes what is there. Groups come back with the volumes that say they are in them. Lost are: labels,
// options, snapshots (their LVs stay, as orphans), device numbers, the redundancy that was asked for, pools without replicas and groups
// without volumes.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lockstepd/cluster/state.h"

namespace lockstep {

struct FoundCopy {
	HostId host = 0;
	std::string vg, lv, thin_pool;       // thin_pool: empty if thick
	std::string uuid;                    // of the volume, from the LV's tag, as all up to `shared`
	std::string cluster, name, pool;     // empty: the LV is older than these tags
	std::string group;                   // empty: in none
	uint64_t added = 1;
	bool shared = false;
	std::string problem;                 // not empty: it cannot be used, why; then nothing below counts
	uint32_t vid = 0;
	uint64_t size_bytes = 0;
	uint32_t block_size = 0;
	uint64_t md_offset = 0, version = 0, term = 0, incarnation = 0;
	bool quiet = false;                  // no extent is hot
	uint64_t written = 0;                // extents
	std::set<HostId> absent;             // whom it knows to lack something
};

struct FoundSpace {                          // a volume group (thin_lv empty) or a thin pool
	std::string vg, thin_lv;
	uint64_t size_bytes = 0, free_bytes = 0;
};

struct FoundHost {
	nlohmann::json host;                 // {id uuid name addresses port key host_level raft_id witness(o)}, for the entry
	HostId id = 0;
	std::string name;
	uint64_t raft_id = 0;
	bool has_log = false;
	uint64_t volumes_up = 0;             // in its kernel
	std::vector<std::string> incomplete; // volume groups that lack a disk
	uint32_t top_vid = 0, top_sid = 0;   // the highest in any LV's name
	std::vector<FoundSpace> spaces;
	std::vector<FoundCopy> copies;
};

nlohmann::json to_json(const FoundHost &host);
Result<FoundHost> found_host(const nlohmann::json &answer);    // of another host: checked

struct RebuildInput {
	std::string uuid, name;              // of the cluster
	Authority authority;
	HostId self = 0;
	std::vector<FoundHost> hosts;        // self included
	std::set<HostId> former;             // ids of hosts that are known and not among them: never given out again
	std::map<std::string, std::string> choices;    // by volume, its name or UUID, or "all": name of the host whose copy is to be taken, or "none"
	uint64_t now_ms = 0;
};

struct Rebuild {
	nlohmann::json entry;                // cluster.rebuild, the first of the new log
	// [{volume, uuid, copy: host or null, others: [hosts], why, loss, doubt: text or null, left: bool}]
	nlohmann::json volumes = nlohmann::json::array();
	std::vector<std::string> in_doubt;   // names of volumes for which a choice is missing
};

// An Error if a choice names nothing, or the result would not be a sound State.
Result<Rebuild> plan_rebuild(const RebuildInput &input);

}    // namespace lockstep
