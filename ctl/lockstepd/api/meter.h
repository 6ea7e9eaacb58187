// SPDX-License-Identifier: GPL-2.0-or-later
//
// How fast resyncs go: remembers what primaries reported in the last WINDOW_MS about blocks still to copy, and puts the
// rate into the report as "rate_blocks_s". A rate needs two reports at least MIN_SPAN_MS apart; a growing number starts
// anew (another resync).
#pragma once

#include "lockstepd/cluster/state.h"

#include <deque>
#include <map>
#include <tuple>

namespace lockstep {

class SyncMeter {
public:
	static constexpr uint64_t WINDOW_MS = 10000, MIN_SPAN_MS = 800;

	// now_ms: of a clock that never goes back.
	void measure(HostId reporter, nlohmann::json &report, uint64_t now_ms);

private:
	struct Sample {
		uint64_t at_ms, dirty_blocks;
	};
	using Key = std::tuple<HostId, std::string, std::string>;    // reporter, vid, peer
	std::map<Key, std::deque<Sample>> samples_;
};

}    // namespace lockstep
