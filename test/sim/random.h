// SPDX-License-Identifier: GPL-2.0-or-later
//
// The simulator's only source of chance. A seed gives the same numbers on every machine and compiler, which the
// distributions of the standard library do not promise; so a seed is all that is needed to replay a run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lockstep::sim {

class Random {
public:
	explicit Random(uint64_t seed)
	{
		for (uint64_t &word : state) {    // splitmix64
			uint64_t z = seed += 0x9e3779b97f4a7c15u;
			z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
			z = (z ^ z >> 27) * 0x94d049bb133111ebu;
			word = z ^ z >> 31;
		}
	}

	uint64_t next()    // xoshiro256**
	{
		uint64_t result = rotl(state[1] * 5, 7) * 9, t = state[1] << 17;
		state[2] ^= state[0];
		state[3] ^= state[1];
		state[1] ^= state[2];
		state[0] ^= state[3];
		state[2] ^= t;
		state[3] = rotl(state[3], 45);
		return result;
	}

	uint64_t below(uint64_t n) { return n ? next() % n : 0; }
	uint64_t between(uint64_t low, uint64_t high) { return low + below(high - low + 1); }    // both included
	double real() { return static_cast<double>(next() >> 11) * 0x1p-53; }
	bool chance(double p) { return real() < p; }

	template <typename T> const T &pick(const std::vector<T> &from) { return from[below(from.size())]; }

	// Index into weights, each as likely as its weight.
	size_t weighted(const std::vector<unsigned> &weights)
	{
		uint64_t sum = 0;
		for (unsigned w : weights)
			sum += w;
		uint64_t x = below(sum);
		size_t i = 0;
		while (x >= weights[i])
			x -= weights[i++];
		return i;
	}

private:
	static uint64_t rotl(uint64_t x, int k) { return x << k | x >> (64 - k); }
	uint64_t state[4];
};

}    // namespace lockstep::sim
