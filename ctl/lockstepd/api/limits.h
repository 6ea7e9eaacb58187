// SPDX-License-Identifier: GPL-2.0-or-later
//
// How much of the API one caller may have (guard.h).
#pragma once

#include <cstddef>

namespace lockstep {

struct ApiLimits {
	unsigned connections = 8;             // of one client
	double per_second = 50, burst = 100;  // requests of one client
	size_t request_bytes = 128 << 10;     // head and body
	unsigned request_ms = 10'000;         // from a request's first byte to its last
	unsigned answer_ms = 60'000;          // likewise of an answer
};

constexpr size_t CLIENT_CONNECTIONS_MAX = 16;    // of all clients; a thread each, beside those of root

}    // namespace lockstep
