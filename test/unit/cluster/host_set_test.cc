// SPDX-License-Identifier: GPL-2.0-or-later
//
// HostSet is what std::set is, on random operations, and looks the same in JSON.
#include "lockstepd/cluster/host_set.h"

#include <catch2/catch_test_macros.hpp>

#include <random>
#include <set>
#include <vector>

using namespace lockstep;
using nlohmann::json;

TEST_CASE("a HostSet does what a std::set does")
{
	std::mt19937 random(7);
	HostSet set;
	std::set<uint8_t> naive;
	for (unsigned n = 0; n < 20'000; n++) {
		const auto host = uint8_t(random() % 64 + 1);
		switch (random() % 4) {
		case 0:
		case 1: {
			const auto [at, fresh] = set.insert(host);
			REQUIRE(fresh == naive.insert(host).second);
			REQUIRE(*at == host);
			break;
		}
		case 2: REQUIRE(set.erase(host) == naive.erase(host)); break;
		default:
			if (random() % 50 == 0) {
				set.clear();
				naive.clear();
			}
		}
		REQUIRE(set.contains(host) == naive.contains(host));
		REQUIRE(set.size() == naive.size());
		REQUIRE(set.empty() == naive.empty());
		REQUIRE(std::vector<uint8_t>(set.begin(), set.end()) == std::vector<uint8_t>(naive.begin(), naive.end()));
		if (n % 100 == 0) {
			REQUIRE(json(set) == json(naive));
			REQUIRE(json(naive).get<HostSet>() == set);
		}
	}
}

TEST_CASE("a HostSet takes ids of hosts alone")
{
	HostSet set = {1, 64};
	CHECK(set.size() == 2);
	CHECK_THROWS(set.insert(0));
	CHECK_THROWS(set.insert(65));
	CHECK_FALSE(set.contains(0));
	CHECK_FALSE(set.contains(65));
	CHECK(set.erase(0) == 0);
	CHECK(set.erase(65) == 0);
	CHECK_THROWS(json({1, 65}).get<HostSet>());
	CHECK_THROWS(json({1, "x"}).get<HostSet>());
	CHECK(set == HostSet{64, 1});
}
