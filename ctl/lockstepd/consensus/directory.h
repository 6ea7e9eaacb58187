// SPDX-License-Identifier: GPL-2.0-or-later
//
// What log.cc and directory.cc share; for these two files only.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "lockstepd/consensus/log.h"
#include "lockstepd/consensus/once.h"
#include "lockstepd/consensus/raft_shim.h"

namespace lockstep {

// `address` must outlive what it gives.
lks_raft_config shim_config(const ConsensusOptions &options, uv_loop_s *loop, const std::string &address);

// libraft drops the end of a log that does not add up as what a crash may leave, and knows nothing of files that are gone. So we note
// beside it, now and then, how far it was: what then has less than that has forgotten what it voted and acknowledged.
struct Reached {
	uint64_t term = 0, index = 0;
};
Done note_reached(const std::string &dir, Reached reached);
Reached read_reached(const std::string &dir);               // zeros: nothing was noted
Done check_reached(const ConsensusOptions &options);    // an Error, LOG_DAMAGED, if the directory has less than was noted

// What a snapshot holds: `state` is the state machine's, `once` is filled with the rest.
struct Unpacked {
	bool whole = false;         // it is what was written
	bool understood = false;    // as far as `once` goes
	std::string_view state;
};
Unpacked unpack_snapshot(std::string_view wrapped, Once &once);

}    // namespace lockstep
