// SPDX-License-Identifier: GPL-2.0-or-later
//
// Which parts of a volume differ between two points of time, without reading its data.
//
// Thin: two LVs of one pool share the blocks that neither has written since the one was made of the other, and the pool's metadata tell
// which (thin_delta). Thick: cow.h. There what the one or the other snapshot has of its own counts, and extents of which only one was ever
// written: such a one reads as zeros, whatever the LV holds.
//
// thin_delta reads a snapshot of the metadata that the kernel holds for it; there is one a pool, so there is one question at a time. It
// is given back in whatever way the question ends; one that was left all the same (SIGKILL) is given back by the next question.
//
// A block that was written with what it held before counts as changed. One that is not named has not changed: that is what holds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/error.h"

namespace lockstep {

constexpr uint32_t DIFF_BLOCK_BYTES = 64 << 10;
constexpr uint64_t DIFF_MAX_BYTES = 2ull << 40;    // of a volume: the answer has to fit into a message (FRAME_MAX_BYTES)
constexpr uint64_t DIFF_TIMEOUT_MS = 60'000;

struct ChangedBlocks {
	uint64_t blocks = 0;                // of DIFF_BLOCK_BYTES, the last perhaps partial
	uint64_t changed = 0;
	std::vector<uint8_t> bitmap;        // one bit each, the first block's is the highest of the first byte

	explicit ChangedBlocks(uint64_t size_bytes);    // of the volume
	void mark(uint64_t from_bytes, uint64_t to_bytes);    // what lies behind the volume is its metadata, and is left out
};

// Takes thin_delta's output as it comes.
class DeltaReader {
public:
	explicit DeltaReader(uint64_t size_bytes);    // of the volume: what lies behind is its metadata
	void feed(std::string_view text);
	Result<ChangedBlocks> finish();               // an Error if it was not whole, or not understood

private:
	void line(std::string_view text);
	uint64_t chunk_bytes_ = 0;
	std::string rest_, error_;
	bool whole_ = false;
	ChangedBlocks result_;
};

struct ThinPair {
	std::string metadata;       // path of the pool's metadata device, or of a file with a copy of it
	std::string pool;           // its name for dmsetup; empty: a file
	uint64_t from = 0, to = 0;  // thin ids
};

// Blocks.
Result<ChangedBlocks> thin_changes(const ThinPair &pair, uint64_t size_bytes);

std::string base64(const std::vector<uint8_t> &bytes);

}    // namespace lockstep
