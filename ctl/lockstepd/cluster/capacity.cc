// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/cluster/capacity.h"

#include <algorithm>
#include <functional>

namespace lockstep {

namespace {

// The largest n in [0, most] for which holds(n); holds is true up to some n and false from there on.
uint64_t largest(uint64_t most, const std::function<bool(uint64_t)> &holds)
{
	uint64_t good = 0;
	while (good < most) {
		uint64_t middle = good + (most - good + 1) / 2;
		if (holds(middle))
			good = middle;
		else
			most = middle - 1;
	}
	return good;
}

}    // namespace

Capacity capacity(std::vector<uint64_t> pools, unsigned r)
{
	Capacity c;
	if (!r || pools.size() < r)
		return c;
	std::sort(pools.begin(), pools.end(), std::greater<>());
	c.simple_bytes = pools.back() / r * pools.size();
	uint64_t sum = 0;
	for (uint64_t p : pools)
		sum += p;
	c.many_bytes = largest(sum / r, [&](uint64_t t) {
		unsigned __int128 fits = 0;
		for (uint64_t p : pools)
			fits += std::min(p, t);
		return fits >= (unsigned __int128)r * t;
	});
	constexpr uint64_t unit = 4096;
	const uint64_t room = pools[r - 1];
	uint64_t units = largest(std::min(room, MAX_VOLUME_BYTES) / unit,
				 [&](uint64_t n) { return !n || replica_bytes(n * unit, LKS_BLOCK_DEFAULT) <= room; });
	c.largest_bytes = units * unit;
	return c;
}

PoolCapacity pool_capacity(const State &s, const std::string &name, unsigned r)
{
	PoolCapacity c;
	std::vector<uint64_t> total, available;
	const Reservations room(s);
	for (const auto &[key, p] : s.pools) {
		const Host *h = s.host(p.host);
		if (p.name != name || p.deleting || !h)
			continue;
		if (!h->online || !h->keeps_replicas()) {
			c.left_out++;
			continue;
		}
		c.pools++;
		total.push_back(p.size_bytes);
		available.push_back(room.available(p));
	}
	c.total = capacity(total, r);
	c.available = capacity(available, r);
	return c;
}

}    // namespace lockstep
