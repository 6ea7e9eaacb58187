// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep volume diff against the real API: who is asked, and what is refused.
#include "fake.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

TEST_CASE("volume diff asks a host that has both, the primary first")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "a", "1GiB", "--on", "alpha,beta"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "a", "s1"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "a", "s2"}).status == 0);
	d.good({{"op", "volume.primary"}, {"vid", 1}, {"host", 2}});
	const HostId primary = d.volume("a").primary;
	Outcome o = d.run({"volume", "diff", "a", "s1"});
	CHECK(o.out == "volume a: 34 of 16384 blocks of 64 KiB have changed from snapshot s1 to now, at most 2.1 MiB\n");
	CHECK(d.diff_asked == std::vector<HostId>{primary});
	o = d.run({"volume", "diff", "a", "s1", "s2"});
	CHECK(has(o.out, "from snapshot s1 to snapshot s2"));
	json j = d.json_of({"volume", "diff", "a", "s1", "live", "--json"});
	CHECK(j["bitmap"] == "MEw=");
	CHECK(j["to"] == nullptr);
	// Another one is asked if that one does not answer.
	d.unreachable = {primary};
	d.diff_asked.clear();
	CHECK(d.run({"volume", "diff", "a", "s1"}).status == 0);
	CHECK(d.diff_asked == std::vector<HostId>{HostId(3 - primary)});
	d.unreachable = {1, 2};
	o = d.run({"volume", "diff", "a", "s1"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "cannot be compared: it cannot be reached"));
}

TEST_CASE("volume diff refuses what it cannot tell")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "a", "1GiB", "--on", "alpha,beta"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "a", "s1"}).status == 0);
	CHECK(d.run({"volume", "diff", "a", "nosuch"}).status == 3);
	CHECK(d.run({"volume", "diff", "a", "s1", "nosuch"}).status == 3);
	CHECK(d.run({"volume", "diff", "nosuch", "s1"}).status == 3);
	d.online(1, false);
	d.online(2, false);
	CHECK(has(d.run({"volume", "diff", "a", "s1"}).err, "no host that has both is online"));
	d.online(1, true);
	d.online(2, true);
	d.good({{"op", "pool.add"}, {"name", "slow"}, {"host", 3}, {"kind", "thick"}, {"vg", "vg2"}, {"size_bytes", 9 * GIB}, {"free_bytes", 9 * GIB}});
	REQUIRE(d.run({"volume", "create", "t", "1GiB", "--pool", "slow", "--on", "gamma"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "t", "s1"}).status == 0);
	CHECK(d.diff_asked.empty());
	CHECK(d.run({"volume", "diff", "t", "s1"}).status == 0);    // thick pools tell it as well
	CHECK(d.diff_asked == std::vector<HostId>{3});
}
