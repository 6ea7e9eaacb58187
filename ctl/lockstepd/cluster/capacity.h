// SPDX-License-Identifier: GPL-2.0-or-later
//
// How much a set of pools holds: three answers to three questions. Pure functions.
//
//   simple     what XOSTOR shows: the smallest pool times their number, divided by the redundancy
//   many       what many small volumes can take in all: the largest T for which r copies of T fit when no pool takes more than
//              T of it (a volume has one replica a host), that is, sum of min(size, T) >= r T. This is exact
//   largest    the largest single volume: as much as the r-th largest pool has, less its metadata
#pragma once

#include "lockstepd/cluster/state.h"

#include <string>
#include <vector>

namespace lockstep {

struct Capacity {
	uint64_t simple_bytes = 0, many_bytes = 0, largest_bytes = 0;
	bool operator==(const Capacity &) const = default;
};

// redundancy: 1..8. Empty, or fewer pools than the redundancy: all 0.
Capacity capacity(std::vector<uint64_t> pool_bytes, unsigned redundancy);

struct PoolCapacity {
	Capacity total;        // of empty pools, without over-subscription
	Capacity available;    // what can still be created, now
	unsigned pools = 0;    // on hosts that take replicas
	unsigned left_out = 0; // pools on hosts that do not: offline, evacuated
};
PoolCapacity pool_capacity(const State &state, const std::string &pool, unsigned redundancy);

}    // namespace lockstep
