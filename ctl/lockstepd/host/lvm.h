// SPDX-License-Identifier: GPL-2.0-or-later
//
// LVM, through its own tools.
//
// A replica's LV is named "lockstep.<vid>" and carries the tags "lockstep.volume=<uuid of the volume>" and
// "lockstep.added=<version that added the replica>"; and, for whoever has lost the log and looks at the disks (cluster/rebuild.h),
// "lockstep.cluster=<uuid>", "lockstep.name=<of the volume>", "lockstep.pool=<name>", "lockstep.group=<name>" of a volume in a group, which for
// XAPI is the SR, and, of a shared volume, "lockstep.shared". Nothing without the first is ever changed or removed, whatever its name. All verbs are idempotent. They block (for worker threads, one a
// volume group) but end after LVM_TIMEOUT_MS: a volume group whose disks hang costs itself, not the host.
//
// LVM is told not to look into our own devices: what a guest keeps on its disk is none of the host's business, and a read
// there could wait for another host.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lib/error.h"

namespace lockstep {

constexpr uint64_t LVM_TIMEOUT_MS = 60'000;

struct VolumeGroup {
	std::string name;
	uint64_t size_bytes = 0, free_bytes = 0, extent_bytes = 0;
	bool incomplete = false;    // a physical volume is missing
	bool growing = false;       // its thin pool is to take what a new disk brought (lvm_disks.cc)
	std::vector<std::string> grows_after = {};    // LVM's UUIDs of disks that are to leave it before it is growing
	std::vector<std::string> grows_into = {};     // ... of disks that are to come into it before it is
	std::vector<std::string> departed = {};    // LVM's UUIDs of disks that have left it and may carry LVM's label still
	bool operator==(const VolumeGroup &) const = default;
};

struct LogicalVolume {
	std::string vg, name, path;
	std::string pool;                       // thin pool it lives in, or empty
	bool is_thin_pool = false;
	std::string origin;                     // of a snapshot
	bool active = false;
	bool open = false;                      // somebody has its device open
	uint64_t size_bytes = 0;
	double data_percent = -1;               // thin pools and thin volumes; -1: unknown
	double metadata_percent = -1;           // thin pools; -1: unknown
	uint64_t metadata_bytes = 0, chunk_bytes = 0;    // thin pools
	std::string health;                     // empty: well
	std::vector<std::string> tags;
	bool operator==(const LogicalVolume &) const = default;
};

// A disk of a volume group.
struct PhysicalVolume {
	std::string vg, disk;       // disk: /dev/..., or "[unknown]"
	uint64_t size_bytes = 0, used_bytes = 0;
	bool missing = false;       // LVM does not find it
	bool leaving = false;       // it is being emptied (lvm_disks.cc)
	std::string uuid = {};      // LVM's
	bool operator==(const PhysicalVolume &) const = default;
};

// How far a disk is that is being emptied.
struct DiskMove {
	bool gone = false;          // it is in the volume group no more
	double percent = 0;         // of what is being moved now
	bool operator==(const DiskMove &) const = default;
};

// The LV of a replica: where and how large.
struct ReplicaLv {
	std::string vg;
	std::string thin_pool;    // empty: thick
	uint32_t vid = 0;
	std::string uuid;         // of the volume
	uint64_t size_bytes = 0;  // least size: data and metadata
	uint64_t added = 1;       // version of the record that added the replica
	std::string cluster{}, name{}, pool{}, group{};    // uuid of the cluster, name of the volume, the pool and the group; for the tags of a new LV
	bool shared = false;
};

// A copy of a replica's LV.
struct SnapshotLv {
	std::string vg;
	bool thin = true;
	uint32_t vid = 0;          // of the volume it was taken of
	uint32_t sid = 0;
	unsigned attempt = 1;
	std::string uuid;          // of the snapshot
	uint64_t reserve_bytes = 0;    // thick: by how much it and its volume may come to differ
};

// An LV with a tag of ours that belongs to nothing in the log any more.
struct OrphanLv {
	std::string vg, name;
	std::string tag;           // lockstep.volume=... or lockstep.snapshot=...
};

struct LvmReport {
	std::vector<VolumeGroup> groups;
	std::vector<LogicalVolume> volumes;
	std::vector<PhysicalVolume> disks;

	const PhysicalVolume *disk(std::string_view vg, std::string_view name) const;
	const VolumeGroup *group(std::string_view vg) const;
	const LogicalVolume *volume(std::string_view vg, std::string_view name) const;
	// The replica's LV: it has the name and the tag. What has only the name is somebody else's, and none of ours is there.
	const LogicalVolume *replica(const ReplicaLv &lv) const;
};

std::string replica_lv_name(uint32_t vid);
std::string full_name(const ReplicaLv &lv);    // VG/LV
std::string replica_lv_tag(const std::string &uuid);
std::string replica_added_tag(uint64_t added);
std::vector<std::string> replica_tags(const ReplicaLv &lv);    // all that a new one gets
std::string replica_lv_path(const std::string &vg, uint32_t vid);
std::string snapshot_lv_name(const SnapshotLv &lv);
std::string snapshot_lv_tag(const std::string &uuid);
std::string snapshot_lv_path(const SnapshotLv &lv);

// Runs an LVM command ("lvcreate", ...) that does not look into our own devices. `what` begins the message of an Error. For
// the files of this interface.
Result<std::string> run_lvm(std::vector<std::string> args, const std::string &what);

// What each LV of a thin pool, or of a volume group without one, takes of it: device -> bytes. In a thin pool LVM tells it to a hundredth of
// a percent of the LV's size, blocks that several share count for each, and what is inactive is not told.
std::map<std::string, uint64_t> allocation(const LvmReport &report, const std::string &vg, const std::string &thin_pool);

// What a pool made of this volume group, or of this thin pool in it, has.
struct PoolSpace {
	uint64_t size_bytes = 0, free_bytes = 0;
	double metadata_percent = -1;
	std::map<std::string, std::string> disks = {};    // LVM's UUID -> path
};
Result<PoolSpace> pool_space(const LvmReport &report, const std::string &vg, const std::string &thin_pool);

// By how many bytes the thin pool's metadata should grow now; 0: they need not, or it is none. pools.cc.
uint64_t metadata_growth(const LvmReport &report, const std::string &vg, const std::string &thin_pool);

// By how many bytes the thin pool's data should grow to take what its volume group has free, but for what its metadata may need; 0:
// not at all, or it is none. lvm_disks.cc.
uint64_t data_growth(const LvmReport &report, const std::string &vg, const std::string &thin_pool);

// The name that LVM has for a disk, which may be another one (/dev/mapper/..., a link) for the same device. What LVM does not know keeps its.
std::string known_disk_name(const LvmReport &report, const std::string &disk);    // lvm_mend.cc

// lvm_mend.cc: logical volumes that lack something because a disk of the group is missing, or are made of such; not the thin pool itself.
std::vector<std::string> lost_volumes(const LvmReport &report, const std::string &vg, const std::string &thin_pool);
// Of "name open uuid" lines as dmsetup prints them, the names of those that are the group's.
std::vector<std::string> group_devices(const std::string &vg, const std::string &listed);
// How a thin pool is made that takes what is free in a group, as scripts/install does; data_bytes 0: there is no room.
struct ThinPoolPlan {
	uint64_t chunk_bytes = 0, metadata_bytes = 0, data_bytes = 0;
};
ThinPoolPlan plan_thin_pool(uint64_t free_bytes, uint64_t extent_bytes);

// What `lvm fullreport --reportformat json --units b --nosuffix` with our fields says.
Result<LvmReport> parse_lvm_report(std::string_view json);

// The tools. A struct of functions, so that tests put others in their place.
struct Lvm {
	// One volume group; an Error (not_found) if there is none of that name.
	std::function<Result<LvmReport>(const std::string &vg)> report;
	std::function<Result<LvmReport>()> report_all;    // all volume groups of the host
	// Makes the LV and activates it; an LV of that name with our tags and at least that size is taken as it is, one of an
	// earlier replica of the volume is removed first. Refused (forbidden) if something else has that name.
	std::function<Done(const ReplicaLv &)> create;
	std::function<Done(const ReplicaLv &)> activate;
	// Absent already: done. What has the name but not our tag is left alone: then ours is absent.
	std::function<Done(const ReplicaLv &)> remove;
	// The thin pool's metadata, by so many bytes, which it may be using. Not idempotent: by what the report has just said.
	std::function<Done(const std::string &vg, const std::string &thin_pool, uint64_t bytes)> grow_metadata;
	// Disks of a volume group; lvm_disks.cc. An empty, unused disk becomes part of it; grow: its thin pool is to take the room then, but not
	// before the disk with the UUID `after` (unless empty) has left: what is on that needs the room. In it already: done, and as long as
	// it is unused `grow` still counts.
	std::function<Done(const std::string &vg, const std::string &disk, bool grow, const std::string &after)> add_disk;
	// The disk is marked as one to be emptied. LVM remembers that, also over a restart.
	std::function<Done(const std::string &vg, const std::string &disk)> leave_disk;
	// The next step of emptying a disk so marked: begins to move what is on it, or looks how far that is, or takes it out. Returns
	// soon: LVM moves in the background. last: percent of the step before; a move that stands still is set going again.
	std::function<Result<DiskMove>(const std::string &vg, const std::string &disk, double last)> drain_disk;
	// A disk that is out of the group loses LVM's label. Its path; empty: it had none any more, or is somebody's again.
	std::function<Result<std::string>(const std::string &vg, const std::string &uuid)> clear_label;
	// The thin pool's data, by so many bytes; then the volume group counts as growing no more.
	std::function<Done(const std::string &vg, const std::string &thin_pool, uint64_t bytes)> grow_data;
	// Takes all missing disks out of the group, with the logical volumes that had something on them, puts `by` in (unless empty), and makes
	// the thin pool (unless empty) anew if it was lost; likewise a group that is gone as a whole. false: something of it is still in use, to
	// be tried again. Refused (forbidden) if more were lost than the expendable ones, which are names. Idempotent.
	std::function<Result<bool>(const std::string &vg, const std::string &thin_pool, const std::string &by, const std::set<std::string> &expendable)>
		mend;
	// Takes our marks off the group and its disks, and nothing else: what is being moved by LVM goes on. A group that is gone, or lacks a
	// disk, which LVM changes nothing in, is left as it is. Idempotent.
	std::function<Done(const std::string &vg)> let_go;
	// At least lv.size_bytes; never smaller.
	std::function<Done(const ReplicaLv &)> extend;
	// Of the replica's LV, which may be in use. One with our tag is taken as it is.
	std::function<Done(const SnapshotLv &)> snapshot;
	// The same in two steps. prepare: all that takes time; the LV is there, with what nobody is to read. Gives what `take` is to be told, 0 if it
	// does not matter. take: quick, and then it is what the replica is at that moment; taken already: left as it is. Both idempotent.
	std::function<Result<uint64_t>(const SnapshotLv &)> prepare;
	std::function<Done(const SnapshotLv &, uint64_t prepared)> take;
	// What the LV, which is active, has acknowledged is on its disks when this returns. Asks the kernel alone.
	std::function<Done(const std::string &vg, const std::string &lv)> flush;
	// Bytes that a thin LV which is active takes of its pool now; 0: nobody knows. Asks the kernel alone.
	std::function<uint64_t(const std::string &vg, const std::string &lv)> allocated;
	std::function<Done(const SnapshotLv &)> remove_snapshot;
	// The LV of a copy of a snapshot that is made here (snapshot_copy.h), active: an LV snapshot of `base`, or if that has no name a new one
	// of so many bytes in the thin pool. What has its name and tag already was half made and is removed first. not_found: no such base.
	// One that end_copy() has called whole is left alone: the offset of its metadata, else 0.
	std::function<Result<uint64_t>(const SnapshotLv &, const OrphanLv &base, const std::string &thin_pool, uint64_t bytes)> begin_copy;
	// As LVs of snapshots are: a thin one is not active, and does not become so by itself. md_offset: it is whole, with its metadata there; 0: it
	// was only read, after `show`.
	std::function<Done(const SnapshotLv &, uint64_t md_offset)> end_copy;
	// Makes the LV of a replica out of a snapshot's, and activates it. Thin: it shares the blocks. Thick: it is a new one, and
	// what the snapshot has is to be copied; the snapshot is readable afterwards. content: a text that names what it is made
	// from; an LV of the replica that was made from the same is taken as it is, another one is replaced (thin) or refused.
	std::function<Done(const SnapshotLv &, const ReplicaLv &, const std::string &content)> clone;
	// An orphan (orphans.h), which is told by its name and tag. Absent already: done. Refused (forbidden) while it is open, or a
	// classic snapshot of it exists, which would go with it.
	std::function<Done(const OrphanLv &)> purge;
	// So that its content can be read.
	std::function<Done(const OrphanLv &)> show;
	// Gives the orphan the replica's name and tags, and activates it; taken as it is if that has been done. Refused (forbidden)
	// while it is open or if something else has the replica's name; not_found if neither is there.
	std::function<Done(const OrphanLv &, const ReplicaLv &)> take_over;
};

Lvm lvm_tools();
void add_snapshot_tools(Lvm &lvm);    // lvm_snapshots.cc: extend, snapshot, prepare, take, flush, allocated, remove_snapshot, begin_copy, end_copy, clone
void add_orphan_tools(Lvm &lvm);      // lvm_orphans.cc: purge, show, take_over
void add_disk_tools(Lvm &lvm);        // lvm_disks.cc: add_disk, leave_disk, drain_disk, clear_label, grow_data, let_go
void add_mend_tools(Lvm &lvm);        // lvm_mend.cc: mend

constexpr uint64_t RECORD_BYTES = 8 << 20;    // of each disk, for LVM's record of the group: room for 5,000 logical volumes (scripts/install)
constexpr const char *LEAVING_TAG = "lockstep.leaving";    // of a physical volume
constexpr const char *GROWING_TAG = "lockstep.growing";    // of a volume group
constexpr const char *GROWING_AFTER_TAG = "lockstep.growing-after=";    // ... and the UUID of a disk that is to leave first
constexpr const char *GROWING_INTO_TAG = "lockstep.growing-into=";    // ... and the UUID of a disk that is to come first
constexpr const char *DEPARTED_TAG = "lockstep.departed=";    // of a volume group, and the UUID of a disk

}    // namespace lockstep
