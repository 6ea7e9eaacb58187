// SPDX-License-Identifier: GPL-2.0-or-later
//
// A pool goes from a host that stays: only an empty one, and nothing comes into it meanwhile.
#include "life.h"

#include "lockstepd/cluster/capacity.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct Going : Living {
	using Living::Living;
	static json gone(HostId host) { return {{"op", "pool.deleted"}, {"name", "default"}, {"host", host}}; }
	static json goes(HostId host) { return {{"op", "pool.delete"}, {"name", "default"}, {"host", host}}; }
};

}    // namespace

TEST_CASE("a pool goes when it is empty, and is not there again before it is gone")
{
	Going c;
	CHECK(c.good(Going::goes(3))["changed"] == true);
	CHECK(c.good(Going::goes(3))["changed"] == false);
	CHECK(c.state.pool("default", 3)->deleting);
	const std::vector<uint8_t> bytes = snapshot(c.state);
	CHECK(*restore(bytes) == c.state);
	CHECK(has(c.bad(5, with(c.create_entry("a"), {{"redundancy", 3}})), "gamma: pool default is being deleted"));
	CHECK(has(c.bad(5, Cluster::pool_entry(3)), "just being deleted: try again in a moment"));
	CHECK(has(c.bad(5, with(Cluster::pool_entry(3), {{"name", "other"}})), "just being deleted"));
	CHECK(has(c.bad(5, {{"op", "pool.mend"}, {"name", "default"}, {"host", 3}, {"disk", "dead"}}), "is being deleted"));
	CHECK(pool_capacity(c.state, "default", 2).pools == 2);
	CHECK(pool_available(c.state, *c.state.pool("default", 3)) == 0);
	const uint32_t a = c.volume("a", {1, 2});
	CHECK(has(c.bad(5, {{"op", "volume.redundancy"}, {"vid", a}, {"redundancy", 3}}), "gamma: pool default is being deleted"));
	CHECK(has(c.bad(5, {{"op", "replica.move"}, {"vid", a}, {"from", 1}, {"host", 3}}), "gamma: pool default is being deleted"));

	CHECK(c.good(Going::gone(3))["changed"] == true);
	CHECK(c.good(Going::gone(3))["changed"] == false);
	CHECK_FALSE(c.state.pool("default", 3));
	CHECK(has(c.bad(3, Going::goes(3)), "host gamma has no pool named default"));
	CHECK(has(c.bad(5, with(c.create_entry("b"), {{"hosts", {1, 3}}})), "gamma: has no pool default"));
	c.good(Cluster::pool_entry(3));
	CHECK(c.good(Going::gone(3))["changed"] == false);    // late: this is another one
	REQUIRE(c.state.pool("default", 3));
	c.good({{"op", "volume.redundancy"}, {"vid", a}, {"redundancy", 3}});
	c.settle();
	CHECK(c.on(a) == Hosts{1, 2, 3});
}

TEST_CASE("a pool with something in it stays, and what that is is said")
{
	Going c;
	const uint32_t a = c.volume("a", {1, 2});
	const auto refused = [&](HostId host) {
		const json answer = c.apply(Going::goes(host));
		REQUIRE(answer["ok"] == false);
		CHECK(answer["code"] == "pool-in-use");
		return answer["message"].get<std::string>();
	};
	CHECK(refused(1) == "pool default on host alpha holds replicas of a: move them with `lockstep volume replica move VOLUME alpha`, or all that the "
			    "host has with `lockstep host evacuate alpha`");
	for (const char *more : {"b", "c", "d", "e"})
		c.volume(more, {1, 2});
	CHECK(has(refused(2), "of a, b, c and 2 more: "));

	c.open(a, 1);
	const uint32_t sid = c.take_snapshot(a, "s");
	for (const char *name : {"a", "b", "c", "d", "e"})
		c.good({{"op", "volume.delete"}, {"name", name}, {"force", true}});
	CHECK(has(refused(1), "holds copies of snapshot s of volume a: delete them"));
	c.settle();
	CHECK(has(refused(2), "holds copies of snapshot s of volume a: delete them"));
	c.good({{"op", "snapshot.delete"}, {"sid", sid}});
	CHECK(has(refused(1), "what is left there of snapshot s of volume a is still being removed: try again in a moment"));
	for (HostId host : {1, 2})
		c.good({{"op", "snapshot.removed"}, {"sid", sid}, {"host", host}});
	c.good(Going::goes(1));
	c.good(Going::gone(1));

	// A replica that is in the record no more, and is still there.
	const uint32_t f = c.volume("f", {2, 3});
	c.good({{"op", "volume.redundancy"}, {"vid", f}, {"redundancy", 1}});
	c.good({{"op", "replica.remove"}, {"vid", f}, {"host", 3}});
	CHECK(has(refused(3), "what is left there of f is still being removed"));
	c.good({{"op", "replica.purged"}, {"vid", f}, {"host", 3}});
	c.good(Going::goes(3));
	c.good({{"op", "pool.mend"}, {"name", "default"}, {"host", 2}, {"disk", "dead"}});
	CHECK(has(refused(2), "is just getting rid of a dead disk"));
}

TEST_CASE("a group keeps as many pools as it wants copies")
{
	Going c;
	c.good({{"op", "group.create"}, {"name", "sr"}, {"pool", "default"}, {"redundancy", 2}});
	c.good(Going::goes(3));
	CHECK(has(c.bad(5, Going::goes(2)), "pool default on host beta cannot go; group sr: redundancy 2 needs as many hosts with pool default, there are 1: "
					    "lower it with `lockstep group redundancy`, or delete the group"));
	c.good({{"op", "group.redundancy"}, {"name", "sr"}, {"redundancy", 1}});
	c.good(Going::goes(2));
	CHECK(has(c.bad(5, Going::goes(1)), "no host has a pool named default"));
	c.good({{"op", "group.delete"}, {"name", "sr"}});
	c.good(Going::goes(1));
	for (HostId host : {1, 2, 3})
		c.good(Going::gone(host));
	CHECK(c.state.pools.empty());
	CHECK(has(c.bad(3, c.create_entry("a")), "no host has a pool named default"));
	// A host without a pool is evicted, evacuated and removed as any other.
	for (HostId host : {2, 3})
		c.good({{"op", "host.evacuate"}, {"host", host}});
	c.good({{"op", "host.restore"}, {"host", 2}});
	c.settle();
}

TEST_CASE("deleting a pool needs programs that know of it")
{
	Going c;
	for (auto &[id, host] : c.state.hosts)
		host.level = id == 2 ? LEVEL_REVERT : LEVEL;
	CHECK(has(level_obstacle(c.state, Going::goes(1)), "host beta runs an older lockstepd (feature level 12, this needs 13)"));
	CHECK(json::from_cbor(encode(Going::gone(1)))["level"] == LEVEL_POOL_DELETE);
}
