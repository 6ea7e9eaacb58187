// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep pool orphans|adopt|purge against the real API: which copy is chosen, and when none is.
#include "fake.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

json orphan(unsigned host, unsigned version, json absent = json::array())
{
	return {{"vg", "lockstep_group"}, {"lv", "lockstep.7"}, {"kind", "replica"}, {"uuid", uuid(77)}, {"lv_bytes", GIB + 4 * MIB}, {"thin_pool", "thin_device"},
		{"active", true}, {"open", false},
		{"content", {{"vid", 7}, {"host", host}, {"size_bytes", GIB}, {"block_size", 16384}, {"md_offset", GIB}, {"version", version}, {"term", 3},
			     {"clean", true}, {"absent", absent}}}};
}

}    // namespace

TEST_CASE("pool orphans lists what every host has, and says which were not asked")
{
	FakeDaemon d;
	CHECK(d.run({"pool", "orphans"}).out == "no orphans\n");
	d.orphans = {{1, json{orphan(1, 5)}}, {2, json{orphan(2, 6, {1})}}};
	d.online(3, false);
	Outcome o = d.run({"pool", "orphans"});
	CHECK(o.status == 0);
	CHECK(has(o.out, uuid(77)));
	CHECK(has(o.out, "lockstep_group/lockstep.7"));
	CHECK(has(o.out, "host id 1"));
	CHECK(has(o.out, "! not asked: host gamma is offline"));
	CHECK(d.json_of({"pool", "orphans", "--json"})["orphans"].size() == 2);
}

TEST_CASE("pool orphans of a host in no cluster: what is on its own disks, which nothing is made of before there is a cluster")
{
	FakeDaemon d(0);
	CHECK(d.run({"pool", "orphans"}).out == "no orphans\n");
	d.orphans[0] = json{orphan(1, 5)};
	const json j = d.json_of({"pool", "orphans", "--json"});
	REQUIRE(j["orphans"].size() == 1);
	CHECK(j["orphans"][0]["host"] == "alpha");
	CHECK(j["unreachable"].empty());
	CHECK(has(d.run({"pool", "adopt", uuid(77), "old"}).err, "lockstep cluster init"));
	// One that is of a cluster and has not heard from it yet does not know what its disks hold.
	d.facts.host = 1;
	CHECK(has(d.run({"pool", "orphans"}).err, "is starting"));
}

TEST_CASE("pool adopt takes the copy that was last told of a change, and lacks nothing")
{
	FakeDaemon d;
	d.orphans = {{1, json{orphan(1, 6)}}, {2, json{orphan(2, 6, {1, 3})}}, {3, json{orphan(3, 5)}}};
	Outcome o = d.run({"pool", "adopt", uuid(77), "old"});
	INFO(o.err);
	CHECK(o.status == 0);
	CHECK(has(o.out, "with the content that was left on beta"));
	CHECK(d.volume("old").replicas[0].host == 2);
	CHECK(d.volume("old").uuid == uuid(77));
	CHECK(d.volume("old").version > 6);
	CHECK(d.volume("old").vid > 7);
	Outcome again = d.run({"pool", "adopt", uuid(77), "older"});
	CHECK(again.status == 5);
	CHECK(has(again.err, "can only be purged"));
}

TEST_CASE("pool adopt: the volume's number is none that an orphan on any host has, or no replica of it could be made there")
{
	FakeDaemon d;
	json other = orphan(2, 5);
	other["uuid"] = uuid(78);
	other["lv"] = "lockstep.40";
	d.orphans = {{1, json{orphan(1, 6)}}, {2, json{other}}};
	REQUIRE(d.run({"pool", "adopt", uuid(77), "old"}).status == 0);
	CHECK(d.volume("old").vid > 40);
}

TEST_CASE("pool adopt chooses none where it is not sure, and takes the one that is named")
{
	FakeDaemon d;
	d.orphans = {{1, json{orphan(1, 6, {2})}}, {2, json{orphan(2, 6, {1})}}};
	Outcome o = d.run({"pool", "adopt", uuid(77), "old"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "no copy of volume " + uuid(77) + " is surely the newest"));
	d.orphans[1] = json::array();
	d.online(3, false);
	o = d.run({"pool", "adopt", uuid(77), "old"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "host gamma is offline, and may have a newer copy"));
	CHECK(d.run({"pool", "adopt", uuid(77), "old", "--host", "alpha"}).status == 3);
	CHECK(d.run({"pool", "adopt", uuid(77), "old", "--host", "nobody"}).status == 3);
	CHECK(d.run({"pool", "adopt", uuid(77), "old", "--host", "beta", "--redundancy", "3"}).status == 0);
	CHECK(d.volume("old").redundancy == 3);
}

TEST_CASE("pool adopt refuses what is in use, damaged or outside of any pool")
{
	FakeDaemon d;
	d.orphans[1] = json{orphan(1, 6)};
	d.orphans[1][0]["open"] = true;
	CHECK(has(d.run({"pool", "adopt", uuid(77), "old"}).err, "is in use"));
	d.orphans[1][0]["open"] = false;
	d.orphans[1][0]["vg"] = "elsewhere";
	CHECK(has(d.run({"pool", "adopt", uuid(77), "old"}).err, "make it one with `lockstep pool create`"));
	d.orphans[1][0]["content"] = {{"problem", "it has no valid superblock"}};
	CHECK(has(d.run({"pool", "adopt", uuid(77), "old"}).err, "host alpha: it has no valid superblock"));
	CHECK(d.run({"pool", "adopt", uuid(78), "old"}).status == 3);
	CHECK(d.state()->volumes.empty());
}

TEST_CASE("pool purge tells what it removed and what not")
{
	FakeDaemon d;
	CHECK(d.run({"pool", "purge", uuid(77)}).status == 3);
	d.orphans = {{1, json{orphan(1, 5)}}, {2, json{orphan(2, 6)}}};
	Outcome o = d.run({"pool", "purge", uuid(77), "--host", "beta"});
	CHECK(o.out == "removed: lockstep_group/lockstep.7 on host beta\n");
	CHECK(d.orphans[1].size() == 1);
	d.orphans_kept = json{{{"vg", "vg"}, {"lv", "x"}, {"message", "logical volume vg/x is in use"}}};
	o = d.run({"pool", "purge", uuid(77), "--host", "alpha"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "host alpha: logical volume vg/x is in use"));
}
