// SPDX-License-Identifier: GPL-2.0-or-later
//
// Copies of snapshots follow the volume's replicas, and the last one never goes.
#include "life.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct Copies : Living {
	uint32_t vid = 0;
	bool copying = true;    // hosts make the copies that arrive
	size_t least = 64;      // whole copies on hosts that were online, at any time

	explicit Copies(unsigned hosts = 3, const char *kind = "thin")
	{
		form(hosts);
		for (auto &[key, pool] : state.pools)
			pool.kind = std::string(kind) == "thin" ? PoolKind::thin : PoolKind::thick;
		for (auto &[id, host] : state.hosts) {
			host.level = LEVEL;
			hearing[id] = {true};
		}
		vid = volume("a", {1, 2});
		open(vid, 1);
	}

	uint32_t take(const std::string &name) { return take_snapshot(vid, name); }

	bool work()
	{
		std::vector<json> entries;
		for (const auto &[sid, s] : state.snapshots) {
			for (const SnapshotCopy &c : s.arriving)
				if (copying && up(c.host))
					entries.push_back({{"op", "snapshot.copied"}, {"sid", sid}, {"host", c.host}, {"added", c.added}, {"md_offset", s.size_bytes}});
			for (const SnapshotCopy &c : s.phase == SnapshotPhase::deleting ? s.copies : s.going)
				if (up(c.host))
					entries.push_back({{"op", "snapshot.removed"}, {"sid", sid}, {"host", c.host}});
		}
		for (const json &e : entries)
			good(e);
		for (const auto &[sid, s] : state.snapshots)
			if (s.phase == SnapshotPhase::ready)
				least = std::min(least, size_t(std::ranges::count_if(s.copies, [&](const SnapshotCopy &c) { return state.online(c.host); })));
		return !entries.empty();
	}

	void settle_all()
	{
		for (int i = 0; i < 60; i++)
			if (!round() && !work())
				return;
		FAIL("it does not settle");
	}

	std::vector<HostId> copies(uint32_t sid)
	{
		std::vector<HostId> hosts;
		for (const SnapshotCopy &c : state.snapshot(sid)->copies)
			hosts.push_back(c.host);
		return hosts;
	}
};

}    // namespace

TEST_CASE("a replica is moved: the snapshots are copied beside the new one, and go where the old one was")
{
	Copies c;
	const uint32_t s1 = c.take("s1"), s2 = c.take("s2");
	c.good({{"op", "replica.move"}, {"vid", c.vid}, {"from", 2}, {"host", 3}});
	c.copying = false;
	c.settle_all();
	// The newest first, one at a time; nothing goes before it is there.
	CHECK(c.state.snapshot(s2)->arriving.size() == 1);
	CHECK(c.state.snapshot(s1)->arriving.empty());
	CHECK(c.copies(s1) == Hosts{1, 2});
	CHECK(c.copies(s2) == Hosts{1, 2});
	c.copying = true;
	c.settle_all();
	CHECK(c.on(c.vid) == Hosts{1, 3});
	CHECK(c.copies(s1) == Hosts{1, 3});
	CHECK(c.copies(s2) == Hosts{1, 3});
	CHECK(c.state.snapshot(s1)->going.empty());
	CHECK(c.least == 2);
}

TEST_CASE("a copy that is not whole is used for nothing, and a snapshot deleted meanwhile goes everywhere")
{
	Copies c;
	const uint32_t sid = c.take("s1");
	c.good({{"op", "replica.add"}, {"vid", c.vid}, {"host", 3}, {"asked", true}});
	c.copying = false;
	c.settle_all();
	REQUIRE(c.state.snapshot(sid)->arriving.size() == 1);
	CHECK(c.state.snapshot(sid)->arriving[0].host == 3);
	CHECK(c.state.snapshot(sid)->copy(3) == nullptr);
	json made = c.good({{"op", "snapshot.restore"}, {"sid", sid}, {"new", "b"}, {"uuid", uuid(4001)}});
	CHECK(made["hosts"] == json({1, 2}));
	c.settle_all();
	CHECK(c.good({{"op", "snapshot.copy"}, {"sid", sid}, {"host", 3}, {"pool", "default"}})["changed"] == false);
	const uint64_t added = c.state.snapshot(sid)->arriving[0].added;
	c.bad(2, {{"op", "snapshot.copied"}, {"sid", sid}, {"host", 3}, {"added", added}, {"md_offset", 4096}});
	CHECK(c.good({{"op", "snapshot.copied"}, {"sid", sid}, {"host", 3}, {"added", added - 1}, {"md_offset", GIB}})["changed"] == false);
	c.good({{"op", "snapshot.delete"}, {"sid", sid}});
	CHECK(c.copies(sid) == Hosts{1, 2, 3});    // that may have something of it
	CHECK(c.good({{"op", "snapshot.copied"}, {"sid", sid}, {"host", 3}, {"added", added}, {"md_offset", GIB}})["changed"] == false);
	c.settle_all();
	CHECK(c.state.snapshots.empty());
}

TEST_CASE("the last whole copy on a host that is online does not go")
{
	Copies c;
	const uint32_t sid = c.take("s1");
	c.goes(2);
	CHECK(has(c.bad(5, {{"op", "snapshot.drop"}, {"sid", sid}, {"host", 1}}), "no other host that is online has one"));
	c.comes(2);
	c.good({{"op", "snapshot.drop"}, {"sid", sid}, {"host", 1}});
	CHECK(has(c.bad(5, {{"op", "snapshot.drop"}, {"sid", sid}, {"host", 2}}), "no other host that is online has one"));
	CHECK(has(c.bad(5, {{"op", "snapshot.copy"}, {"sid", sid}, {"host", 1}, {"pool", "default"}}), "still has to remove"));
	c.settle_all();
	CHECK(c.copies(sid) == Hosts{1, 2});    // where the replicas are, again
	const std::string why = [&] {
		c.good({{"op", "snapshot.drop"}, {"sid", sid}, {"host", 2}});
		c.goes(1);
		return c.bad(5, {{"op", "host.lost"}, {"host", 1}, {"snapshots", true}});
	}();
	CHECK(has(why, "has the only copy of snapshot s1 of volume a"));
}

TEST_CASE("a host that was away while a snapshot was taken gets it when its replica is in sync again")
{
	Copies c;
	c.goes(2);
	c.good({{"op", "record.propose"}, {"vid", c.vid}, {"host", 1}, {"version", c.vol(c.vid).version}, {"term", c.vol(c.vid).term}, {"members", {1}}});
	const uint32_t sid = c.take("s1");
	CHECK(c.copies(sid) == Hosts{1});
	c.settle_all();
	CHECK(c.state.snapshot(sid)->arriving.empty());
	c.comes(2);
	c.settle_all();
	CHECK(c.copies(sid) == Hosts{1, 2});
}

TEST_CASE("an evacuated host is left by its snapshots, too, and is empty only then")
{
	Copies c;
	const uint32_t sid = c.take("s1");
	c.good({{"op", "volume.label"}, {"name", "a"}, {"labels", {{"k", "v"}}}});
	c.copying = false;
	c.good({{"op", "host.evacuate"}, {"host", 2}});
	c.settle_all();
	CHECK(c.on(c.vid) == Hosts{1, 3});
	CHECK(has(c.bad(5, {{"op", "host.remove"}, {"host", 2}}), "it has a copy of snapshot s1"));
	c.copying = true;
	c.settle_all();
	CHECK(c.copies(sid) == Hosts{1, 3});
	c.good({{"op", "host.remove"}, {"host", 2}});
	CHECK(c.least == 2);
}

TEST_CASE("the snapshot of a volume that is gone keeps its number of copies")
{
	Copies c(4);
	const uint32_t sid = c.take("s1");
	c.good({{"op", "volume.delete"}, {"vid", c.vid}, {"force", true}});
	c.settle_all();
	REQUIRE(c.state.volumes.empty());
	CHECK(c.copies(sid) == Hosts{1, 2});
	c.good({{"op", "host.evacuate"}, {"host", 2}});
	c.settle_all();
	CHECK(c.copies(sid).size() == 2);
	CHECK_FALSE(c.state.snapshot(sid)->trace(2));
	c.goes(1);
	c.good({{"op", "host.lost"}, {"host", 1}});
	c.settle_all();
	CHECK(c.copies(sid) == Hosts{3, 4});
	CHECK(c.least >= 1);
}

TEST_CASE("thick: a replica leaves when its snapshots are elsewhere")
{
	Copies c(3, "thick");
	const uint32_t sid = c.take("s1");
	c.good({{"op", "replica.move"}, {"vid", c.vid}, {"from", 2}, {"host", 3}});
	c.copying = false;
	c.settle_all();
	CHECK(c.on(c.vid) == Hosts{1, 2, 3});    // it would go with it
	c.copying = true;
	c.settle_all();
	CHECK(c.on(c.vid) == Hosts{1, 3});
	CHECK(c.copies(sid) == Hosts{1, 3});
}

TEST_CASE("nothing is copied while a host runs an older program")
{
	Copies c;
	const uint32_t sid = c.take("s1");
	c.state.hosts[3].level = 4;
	c.good({{"op", "replica.add"}, {"vid", c.vid}, {"host", 3}, {"asked", true}});
	c.settle_all();
	CHECK(c.state.snapshot(sid)->arriving.empty());
	c.state.hosts[3].level = LEVEL;
	c.settle_all();
	CHECK(c.copies(sid) == Hosts{1, 2, 3});
}

TEST_CASE("copies that come and go survive a snapshot of the state")
{
	Copies c;
	const uint32_t sid = c.take("s1");
	c.copying = false;
	c.good({{"op", "replica.add"}, {"vid", c.vid}, {"host", 3}, {"asked", true}});
	c.settle_all();
	c.good({{"op", "snapshot.drop"}, {"sid", sid}, {"host", 2}});
	REQUIRE(c.state.snapshot(sid)->arriving.size() == 1);
	REQUIRE(c.state.snapshot(sid)->going.size() == 1);
	CHECK(restore(snapshot(c.state)).operator*() == c.state);
}
