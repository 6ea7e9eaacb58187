// SPDX-License-Identifier: GPL-2.0-or-later
//
// A dead disk: what was on it is given up together, never the last of anything, and comes back from other hosts.
#include "life.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct Mending : Living {
	explicit Mending(unsigned hosts = 3) : Living(hosts)
	{
		for (auto &[id, host] : state.hosts)
			host.level = LEVEL;
	}

	static json mend(HostId host, const std::vector<uint32_t> &vids, const std::vector<uint32_t> &sids = {})
	{
		json entry = {{"op", "pool.mend"}, {"name", "default"}, {"host", host}, {"disk", "dead"}, {"by", "/dev/sdn"}};
		if (!vids.empty())
			entry["replicas"] = vids;
		if (!sids.empty())
			entry["copies"] = sids;
		return entry;
	}
	static json mended(HostId host) { return {{"op", "pool.mended"}, {"name", "default"}, {"host", host}, {"disk", "dead"}}; }
	const Pool &pool(HostId host) { return *state.pool("default", host); }
};

}    // namespace

TEST_CASE("what was on a dead disk is made anew elsewhere, and its pool takes nothing before the disk is out of it")
{
	Mending c;
	const uint32_t a = c.volume("a", {1, 2}), b = c.volume("b", {1, 3});
	c.open(a, 1);
	REQUIRE(c.vol(a).primary == 1);
	CHECK(has(c.bad(5, Mending::mend(1, {a, b})), "serves it still"));
	c.good({{"op", "record.failed"}, {"vid", a}, {"host", 1}});
	json done = c.good(Mending::mend(1, {a}));
	CHECK(done["replicas"] == 1);
	CHECK(c.pool(1).mending == "dead");
	CHECK(c.pool(1).mending_by == "/dev/sdn");
	CHECK(c.on(a) == Hosts{2});
	CHECK(c.vol(a).remnants.size() == 1);
	CHECK(c.on(b) == Hosts{1, 3});    // it has nothing there
	CHECK(c.good(Mending::mend(1, {a}))["changed"] == false);
	CHECK(has(c.bad(5, with(Mending::mend(1, {}), {{"disk", "other"}})), "just getting rid of another disk, dead"));
	CHECK(has(c.bad(5, with(c.create_entry("c"), {{"hosts", {1, 2}}})), "alpha: pool default has lost a disk"));
	c.settle();
	CHECK(c.on(a) == Hosts{2, 3});
	CHECK(c.all_clean(a));
	CHECK(c.good(with(Mending::mended(1), {{"disk", "other"}}))["changed"] == false);
	CHECK(c.good(Mending::mended(1))["changed"] == true);
	CHECK(c.pool(1).mending.empty());
	CHECK(c.good(Mending::mended(1))["changed"] == false);
	c.volume("c", {1, 2});
	const std::vector<uint8_t> bytes = snapshot(c.state);
	CHECK(*restore(bytes) == c.state);
}

TEST_CASE("of two hosts, the one with the dead disk gets its replicas again when it has a new one")
{
	Mending c(2);
	const uint32_t a = c.volume("a", {1, 2});
	c.open(a, 2);
	c.good({{"op", "record.failed"}, {"vid", a}, {"host", 1}});
	c.settle();
	c.good(Mending::mend(1, {a}));
	c.settle();
	CHECK(c.on(a) == Hosts{2});
	CHECK(has(repair_obstacle(c.state, c.vol(a)), "alpha: pool default has lost a disk"));
	c.good(Mending::mended(1));
	c.settle();
	CHECK(c.on(a) == Hosts{1, 2});
	CHECK(c.all_clean(a));
}

TEST_CASE("the last good copy and the last copy of a snapshot are not given up, nor anything else then")
{
	Mending c;
	const uint32_t a = c.volume("a", {1, 2}), b = c.volume("b", {1, 2});
	c.open(a, 2);
	c.open(b, 2);
	c.good(c.proposal(b, {2}));    // alpha's copy of b is stale
	CHECK(has(c.bad(5, Mending::mend(2, {b, a})), "volume b: its replica on host beta is on that disk and no other one is in sync"));
	CHECK(c.pool(2).mending.empty());
	c.good({{"op", "volume.delete"}, {"vid", b}, {"force", true}});
	const uint32_t sid = c.take_snapshot(a, "s1");
	c.good({{"op", "snapshot.drop"}, {"sid", sid}, {"host", 2}});
	c.good({{"op", "snapshot.removed"}, {"sid", sid}, {"host", 2}});
	CHECK(has(c.bad(5, Mending::mend(1, {a}, {sid})), "snapshot s1 of volume a has its only copy on that disk of host alpha"));
	CHECK(c.on(a) == Hosts{1, 2});
	c.good({{"op", "snapshot.delete"}, {"sid", sid}});
	c.good(Mending::mend(1, {a}, {sid}));
	CHECK(c.on(a) == Hosts{2});
}

TEST_CASE("copies of snapshots that were on a dead disk count no more and are made again")
{
	Mending c;
	const uint32_t a = c.volume("a", {1, 2});
	c.open(a, 2);
	const uint32_t sid = c.take_snapshot(a, "s1");
	c.good({{"op", "record.failed"}, {"vid", a}, {"host", 1}});
	CHECK(c.good(Mending::mend(1, {a}, {sid}))["copies"] == 1);
	CHECK(c.state.snapshot(sid)->copy(1) == nullptr);
	CHECK(c.state.snapshot(sid)->going.size() == 1);
	for (int i = 0; i < 60; i++) {
		c.settle();
		for (const SnapshotCopy &x : std::vector<SnapshotCopy>(c.state.snapshot(sid)->arriving))
			c.good({{"op", "snapshot.copied"}, {"sid", sid}, {"host", x.host}, {"added", x.added}, {"md_offset", GIB}});
	}
	CHECK(c.on(a) == Hosts{2, 3});
	CHECK(c.state.snapshot(sid)->copy(2));
	CHECK(c.state.snapshot(sid)->copy(3));
	CHECK(c.state.snapshot(sid)->copies.size() == 2);
}

TEST_CASE("a pool's disks are remembered by LVM's names for them; nonsense is refused")
{
	Mending c;
	const json report = {{"op", "pool.report"}, {"name", "default"}, {"host", 1}, {"size_bytes", GIB}, {"free_bytes", GIB}};
	CHECK(c.good(with(report, {{"disks", {{"u1", "/dev/sdb"}, {"u2", "/dev/sdc"}}}}))["changed"] == true);
	CHECK(c.pool(1).disks.at("u2") == "/dev/sdc");
	CHECK(c.good(report)["changed"] == false);    // said by who knows nothing of disks
	CHECK(c.pool(1).disks.size() == 2);
	c.bad(2, with(report, {{"disks", {1, 2}}}));
	c.bad(2, with(report, {{"disks", {{"u1", 5}}}}));
	c.bad(2, with(report, {{"disks", {{"", "/dev/sdb"}}}}));
	c.bad(2, with(Mending::mend(1, {}), {{"by", "sdn"}}));
	c.bad(2, with(Mending::mend(1, {}), {{"disk", ""}}));
	c.bad(3, with(Mending::mend(1, {}), {{"name", "none"}}));
	CHECK(level_of(report) == 1);
	CHECK(level_of(with(report, {{"disks", json::object()}})) == 8);
	CHECK(level_of(Mending::mend(1, {})) == 8);
}
