// SPDX-License-Identifier: GPL-2.0-or-later
//
// A copy of a snapshot, made on a host that was not there when it was taken. cluster/snapshot_copies.cc says where and when.
//
// The new copy begins as an LV snapshot of something on this host that is nearly the same: the next newer snapshot, or the
// volume's replica. In a thin pool it shares all blocks with that, in a thick one it is a classic snapshot with its reserve. Then
// only what differs is brought over from a host that has a whole copy, and written into it:
//
//   1. what may differ. Both hosts have the base as a whole, in thin pools: the other host's thin pool names the blocks by which the
//      snapshot differs from the base, without reading any (diff.h). Else: all that either of the two has ever written.
//   2. of those blocks this host sends its sums (SHA-256), the other one answers with the blocks that have others.
//   3. metadata at last: the extents written here or there, nothing hot, no dirty maps. Superblocks go first and come last, so what is
//      half done is no replica to anybody.
//
// What it starts from need not hold still in any particular order of writes: an LV snapshot never changes, and step 1 covers all of it. The
// base of names by thin_delta is another matter: it must be the same on both hosts, hence a snapshot, never the replica.
//
// It is begun anew whenever it was interrupted: the LV is removed and made again. Only when all is on the disk the LV gets a tag that calls it
// whole, and then this host says so to the log. A daemon that finds the tag makes nothing anew: another one before it may have said so
// already, and its word may still be on its way.
//
// All of it blocks; for worker threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lockstepd/cluster/state.h"
#include "lockstepd/host/lvm.h"
#include "lockstepd/host/metadata.h"

namespace lockstep {

constexpr uint32_t COPY_BLOCK_BYTES = 64 << 10;
constexpr unsigned COPY_BATCH = 32;                 // blocks of one question: its answer has at most 2 MiB
constexpr uint64_t COPY_ASK_TIMEOUT_MS = 10'000;
constexpr uint64_t COPY_MAP_TIMEOUT_MS = 90'000;    // thin_delta may take a while

struct CopyProgress {
	std::atomic<uint64_t> done_blocks = 0, total_blocks = 0, sent_blocks = 0;    // sent: they differed
	std::atomic<bool> stop = false;
};

struct CopyBase {
	OrphanLv lv;                    // name and tag
	uint64_t md_offset = 0, size_bytes = 0;    // of the volume, then
	uint32_t sid = 0;               // 0: the replica
};

struct CopyTask {
	SnapshotLv lv;
	std::string path;               // of that LV
	std::string thin_pool;          // empty: thick
	ReplicaMetadata metadata;       // of the copy; its path is `path`
	std::optional<CopyBase> base;   // none: an empty LV
	HostId source = 0;
	bool source_has_base = false;   // ... in a thin pool, beside the snapshot
};

// What the host is to do for a copy that arrives; an Error if no host that is online has a whole copy. tries: so many have failed, perhaps
// for the source's sake.
Result<CopyTask> copy_task(const State &state, HostId self, const Snapshot &s, const SnapshotCopy &copy, unsigned tries);

// Another host's answer to a verb of a link, or why there is none; gives up at once when it is told to stop.
using AskHost = std::function<Result<nlohmann::json>(HostId host, const std::string &verb, nlohmann::json body, uint64_t timeout_ms,
						     const std::atomic<bool> &stop)>;

// Bytes from the start of the LV to the copy's metadata.
Result<uint64_t> copy_snapshot(const Lvm &lvm, const AskHost &ask, const CopyTask &task, CopyProgress &progress);

// ---- the other side ----

struct CopySource {
	std::string path;
	uint64_t md_offset = 0, size_bytes = 0;
	uint32_t block_size = 0;
};

// {written: bits of extents, the first extent's is the lowest of the first byte}
Result<nlohmann::json> source_map(const CopySource &source);
// body: {blocks: [ascending numbers, at most COPY_BATCH], sums: 32 bytes of each}. {which: [those that differ], data: theirs}
Result<nlohmann::json> source_blocks(const CopySource &source, const nlohmann::json &body);

}    // namespace lockstep
