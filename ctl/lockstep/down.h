// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "lockstep/cli.h"
#include "lockstepd/host/kernel.h"

namespace lockstep::cli {

// What `lockstep down` does with this kernel; volume: empty for all. May block as long as the disks take. now_ms, sleep_ms: a
// monotonic clock.
struct DownClock {
	std::function<uint64_t()> now_ms;
	std::function<void(uint64_t ms)> sleep_ms;
};
Done take_down(Context &context, const Kernel &kernel, const DownClock &clock, const std::string &volume, bool force);

}    // namespace lockstep::cli
