// SPDX-License-Identifier: GPL-2.0-or-later
//
// Growing a volume, as it is agreed on; and what can be set of a volume in use.
#include "fixture.h"

#include "lockstepd/cluster/controller.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

json resize(uint32_t vid, uint64_t size) { return {{"op", "volume.resize"}, {"vid", vid}, {"size_bytes", size}}; }

json moved(uint32_t vid, HostId host, uint64_t offset) { return {{"op", "replica.moved"}, {"vid", vid}, {"host", host}, {"offset", offset}}; }

json grown(uint32_t vid, HostId host) { return {{"op", "replica.grown"}, {"vid", vid}, {"host", host}}; }

}    // namespace

TEST_CASE("a volume grows when all its replicas have moved their metadata")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2});
	const uint64_t room = pool_available(c.state, *c.state.pool("default", 1));
	CHECK(c.good(resize(vid, GIB))["changed"] == false);
	CHECK(c.good({{"op", "volume.resize"}, {"name", "v"}, {"size_bytes", 3 * GIB}})["changed"] == true);
	CHECK(c.good(resize(vid, 3 * GIB))["changed"] == false);
	CHECK(has(c.bad(5, resize(vid, 4 * GIB)), "growing to 3 GiB already"));
	CHECK(pool_available(c.state, *c.state.pool("default", 1)) == room - 2 * GIB);
	CHECK(c.vol(vid).size_bytes == GIB);
	CHECK(c.vol(vid).replica(1)->next_offset == 3 * GIB);
	CHECK(c.good(grown(vid, 1))["changed"] == false);
	CHECK(has(c.bad(5, moved(vid, 1, 4 * GIB)), "not to move"));
	for (HostId h : {1, 2}) {
		CHECK(decide(c.state, {}, 1).empty());
		CHECK(has(c.bad(5, {{"op", "volume.grown"}, {"vid", vid}}), "has not moved"));
		CHECK(c.good(moved(vid, h, 3 * GIB))["changed"] == true);
		CHECK(c.good(moved(vid, h, 3 * GIB))["changed"] == false);
		CHECK(decide(c.state, {}, 1).empty());
		CHECK(c.good(grown(vid, h))["changed"] == true);
		CHECK(restore(snapshot(c.state)).operator*() == c.state);
	}
	auto decisions = decide(c.state, {}, 1);
	REQUIRE(decisions.size() == 1);
	c.good(decisions[0]);
	CHECK(c.vol(vid).size_bytes == 3 * GIB);
	CHECK(c.vol(vid).grow_bytes == 0);
	CHECK(c.vol(vid).version == 2);
	CHECK(to_record(c.vol(vid)).size == 3 * GIB);
	CHECK(decide(c.state, {}, 1).empty());
	CHECK(c.good({{"op", "volume.grown"}, {"vid", vid}})["changed"] == false);
}

TEST_CASE("growing by less than the metadata take moves them behind themselves")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2});
	c.good(resize(vid, GIB + 4096));
	CHECK(c.vol(vid).replica(1)->next_offset == GIB + metadata_bytes(GIB, LKS_BLOCK_DEFAULT));
	CHECK(c.vol(vid).replica(1)->next_offset % 4096 == 0);
}

TEST_CASE("a growth that cannot be is refused before anything is done")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2});
	CHECK(has(c.bad(2, resize(vid, GIB + 1)), "multiple of 4096"));
	CHECK(has(c.bad(5, resize(vid, GIB - 4096)), "cannot shrink"));
	CHECK(has(c.bad(2, resize(vid, MAX_VOLUME_BYTES + 4096)), "above the limit"));
	CHECK(has(c.bad(5, resize(vid, 100 * GIB)), "pool default on host alpha has room for"));
	c.bad(3, resize(77, GIB));
	c.online(2, false);
	CHECK(has(c.bad(5, resize(vid, 2 * GIB)), "host beta, which has a replica of it, is offline"));
	c.online(2, true);
	c.open(vid, 1);
	c.good({{"op", "record.failed"}, {"vid", vid}, {"host", 2}});
	CHECK(has(c.bad(5, resize(vid, 2 * GIB)), "on host beta has failed"));
	c.good({{"op", "record.repaired"}, {"vid", vid}, {"host", 2}});
	c.good(resize(vid, 2 * GIB));    // one that is behind may take part
	json create = {{"op", "snapshot.create"}, {"name", "s"}, {"vids", {vid}}, {"uuids", {uuid(1)}}, {"now_ms", 1}};
	CHECK(has(c.bad(5, create), "is growing"));
}

TEST_CASE("what happens without a quorum is set while the volume is in use")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	json set = {{"op", "volume.set"}, {"name", "v"}, {"no_quorum", "error"}};
	CHECK(c.good(set)["changed"] == true);
	CHECK(c.good(set)["changed"] == false);
	CHECK(c.vol(vid).no_quorum == NoQuorum::error);
	CHECK(restore(snapshot(c.state)).operator*() == c.state);
	set["no_quorum"] = "panic";
	c.bad(2, set);
	set["name"] = "w";
	c.bad(3, set);
}
