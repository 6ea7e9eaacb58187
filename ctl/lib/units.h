// SPDX-License-Identifier: GPL-2.0-or-later
//
// Sizes and times as people write and read them. Sizes are binary: K, KiB, k are all 1024.
//
// Integer arithmetic only: the state machine uses these in its messages, and those must be equal on all hosts.
#pragma once

#include "lib/error.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace lockstep {

Result<uint64_t> parse_size(std::string_view text);     // "1GiB", "512MiB", "10G", "4096"; usage error otherwise
Result<uint64_t> parse_seconds(std::string_view text);  // "90s", "15m", "1h", "7d", "90"; usage error otherwise
std::string format_bytes(uint64_t bytes);               // "10 GiB", "1.5 GiB", "512 B"; rounded down
std::string format_seconds(uint64_t seconds);           // "45 s", "3 min 20 s", "2 h 5 min"

}    // namespace lockstep
