// SPDX-License-Identifier: GPL-2.0-or-later
//
// The metadata of a replica, as the daemon handles it: made once, looked at, invalidated before its LV goes.
//
// The format is core/disk.h's. While the kernel has the replica attached, only the kernel writes here.
// Everything blocks; for worker threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/disk.h"
#include "lib/error.h"

namespace lockstep {

struct ReplicaMetadata {
	std::string path;           // of the LV
	uint64_t offset = 0;        // bytes from its start to the metadata; a multiple of LKS_META_UNIT
	uint32_t vid = 0;
	std::string uuid;           // of the volume, as text
	uint64_t size_bytes = 0;    // of the volume
	uint32_t block_size = 0;
	uint8_t host = 0;
	uint64_t version = 0, term = 0;
};

// Bytes of LV that a replica of this size needs when its metadata is at `offset`.
uint64_t replica_lv_bytes(uint64_t offset, uint64_t size_bytes, uint32_t block_size);

// What marks the volume's extent records (core/disk.h).
uint64_t extent_tag(const lks_superblock &sb);

// The valid superblock that counts; nullopt: there is none (never formatted, or half).
Result<std::optional<lks_superblock>> read_superblock(const std::string &path, uint64_t offset);

// Idempotent: a replica of this volume and host that is formatted already is left as it is. What belongs to another volume
// is overwritten: it is a former content of the disk, since the LV carries our tag.
Done format_replica(const ReplicaMetadata &replica);

// Makes both superblocks invalid, durably: the space may come back under another LV.
Done wipe_replica(const std::string &path, uint64_t offset);

// The LV is a copy of another replica's LV, or of this one at another time, with metadata at the same offset and for the same
// size: makes them this replica's, of this version. What was written stays so, nothing is hot, no dirty map counts.
// Idempotent; interrupted anywhere, it can be repeated.
Done adopt_replica(const ReplicaMetadata &replica);

// How far the two below are. Read by other threads.
struct ContentProgress {
	std::atomic<uint64_t> done_bytes = 0, total_bytes = 0;    // of what was ever written
	std::atomic<uint64_t> changed_bytes = 0;                  // of those: written to the disk
	std::atomic<bool> stop = false;                           // break off: it can be begun anew
};

// Copies what was written from the LV of a snapshot to another LV, data and metadata; then adopt_replica() can follow.
Done copy_replica(const std::string &from, const ReplicaMetadata &to, ContentProgress &progress);

// Gives the replica the content of `from`, a snapshot of its own LV, as its metadata of this version. Writes only what differs: each write
// would take room of snapshots. While it is under way the LV is no replica to anybody. Nothing is changed if `from` is none.
// Idempotent; interrupted anywhere, it can be repeated.
Done revert_replica(const std::string &from, const ReplicaMetadata &to, ContentProgress &progress);

// Of each extent, from the first to before the end, whether it was ever written; a damaged record counts as written. The volume's size is
// the superblock's; what lies behind it was not written.
Result<std::vector<bool>> written_extents(const std::string &path, uint64_t offset, uint64_t first = 0, uint64_t end = UINT64_MAX);

// Makes the metadata of a replica with content: these extents were written. Whatever stood there is overwritten. Its superblock comes last.
Done stamp_replica(const ReplicaMetadata &replica, const std::vector<bool> &written);

// Whether revert_replica() could read that; `to`: the replica, of whatever version.
Done is_content_of(const std::string &from, const ReplicaMetadata &to);

// For people and `lockstep recover`.
Result<nlohmann::json> dump_replica(const std::string &path, uint64_t offset);

// What the reconciler uses of the above, so that tests put others in their place.
struct MetadataTools {
	std::function<Done(const ReplicaMetadata &)> format;
	std::function<Done(const std::string &path, uint64_t offset)> wipe;
	std::function<Done(const ReplicaMetadata &replica)> adopt;
	std::function<Done(const std::string &from, const ReplicaMetadata &to, ContentProgress &progress)> copy, revert;
};

MetadataTools metadata_tools();

}    // namespace lockstep
