// SPDX-License-Identifier: GPL-2.0-or-later
//
// Which chunks a classic LVM snapshot has of its own, as its store says (dm-snapshot, persistent). All others it reads from its origin. So a
// snapshot and its origin, or two snapshots of one origin, hold the same wherever neither has a chunk of its own, whatever has happened to
// them since: a restart, a revert of the origin, another host that served the volume, or that the snapshot was copied here long after it was taken.
//
// The store is the device VG-LV-cow. Chunk 0 is its header, chunk 1 the first area of a list, with as many entries as a chunk holds; as
// many chunks of content follow, then the next area. The first entry that names no chunk of the store ends the list: what stands
// behind it is old.
//
// It is read while the kernel adds to it. The kernel adds an entry, durably, before what it is about reaches the origin. It writes an area
// as a whole, with new entries behind those that were there, and clears the next one before an area is full. So wherever a read meets such
// a write, it finds all that was there when it began: what had been written by then, and perhaps more.
//
// The kernel adds to it behind the page cache, so it is read past that.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "lib/error.h"

namespace lockstep {

struct ChangedBlocks;

constexpr uint64_t COW_TIMEOUT_MS = 60'000;
constexpr uint64_t COW_OPEN_MS = 500, COW_PAUSE_MS = 300;    // LVM, which may want to remove it, tries every 200 ms, for 5 s

struct CowStore {
	std::string path;             // of the device, or of a file that holds the same
	std::string snapshot;         // device-mapper's name of the snapshot, which is asked whether all of it counts; empty: nobody is
	uint64_t origin_bytes = 0;
};

// The least number of areas that are full, as the kernel's status of a snapshot target tells; nullopt: it is invalid, or not understood.
std::optional<uint64_t> full_areas(std::string_view status, uint64_t chunk_bytes);

// Marks what the snapshot has of its own. An Error if that cannot be said for certain, with some of it marked. Blocks: for a worker thread.
Done mark_own_chunks(const CowStore &store, ChangedBlocks &changed);

}    // namespace lockstep
