// SPDX-License-Identifier: GPL-2.0-or-later
//
// volume.adopt: what it takes and refuses, and that nothing takes it back.
#include "fixture.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

json adopt_entry()
{
	return {{"op", "volume.adopt"}, {"name", "old"}, {"uuid", uuid(77)}, {"host", 2}, {"pool", "default"}, {"lv", "lockstep.7"}, {"size_bytes", GIB},
		{"block_size", 16384}, {"md_offset", 2 * GIB}, {"vid", 7}, {"version", 12}, {"term", 4}};
}

}    // namespace

TEST_CASE("an adopted volume has one replica at first, ids and versions above those of its former life, and gets the others by repair")
{
	Cluster c;
	c.form();
	const uint32_t vid = c.good(adopt_entry())["vid"];
	CHECK(vid == 8);
	CHECK(c.vol(vid).adopts == "lockstep.7");
	CHECK(c.vol(vid).redundancy == 2);
	CHECK(c.vol(vid).version == 13);
	CHECK(c.vol(vid).term == 5);
	auto restored = restore(snapshot(c.state));
	REQUIRE(restored);
	CHECK(*restored == c.state);
	c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 2}});
	CHECK(c.vol(vid).phase == Phase::ready);
	CHECK(c.vol(vid).adopts == "");
	CHECK(c.replica(vid, 2) == ReplicaState::insync);
	c.good({{"op", "replica.add"}, {"vid", vid}, {"host", 1}});
	CHECK(c.vol(vid).replica(1)->added > 13);
	CHECK(c.good(c.create_entry("next"))["vid"] == 9);
}

TEST_CASE("an adoption is not rolled back, for that would delete the copy")
{
	Cluster c;
	c.form();
	const uint32_t vid = c.good(adopt_entry())["vid"];
	CHECK(has(c.bad(5, {{"op", "replica.failed"}, {"vid", vid}, {"host", 2}, {"message", "no"}}), "being adopted and is not given up"));
	CHECK(has(c.bad(5, {{"op", "volume.abort"}, {"vid", vid}, {"message", "no"}}), "being adopted and is not given up"));
	c.online(2, false);
	CHECK(c.vol(vid).phase == Phase::creating);
	c.good({{"op", "volume.delete"}, {"name", "old"}});    // this is asked for
	CHECK(c.vol(vid).phase == Phase::deleting);
}

TEST_CASE("what cannot be adopted is refused with a reason")
{
	Cluster c;
	c.form();
	const uint32_t vid = c.volume("v1");
	CHECK(has(c.bad(5, with(adopt_entry(), {{"uuid", c.vol(vid).uuid}})), "can only be purged"));
	CHECK(has(c.bad(5, with(adopt_entry(), {{"name", "v1"}})), "choose another name"));
	CHECK(has(c.bad(3, with(adopt_entry(), {{"pool", "other"}})), "no pool named other"));
	CHECK(has(c.bad(2, with(adopt_entry(), {{"md_offset", GIB / 2}})), "do not fit together"));
	CHECK(has(c.bad(2, with(adopt_entry(), {{"block_size", 5000}})), "do not fit together"));
	c.bad(2, with(adopt_entry(), {{"redundancy", 0}}));
	c.bad(2, with(adopt_entry(), {{"lv", "-y"}}));
	c.good({{"op", "host.evacuate"}, {"host", 2}});
	CHECK(has(c.bad(5, adopt_entry()), "takes no replicas now"));
	CHECK(level_of(adopt_entry()) == 3);
}
