// SPDX-License-Identifier: GPL-2.0-or-later
//
// Disks that come into pools and leave them: what is refused, and the reconciler's steps.
#include <catch2/catch_test_macros.hpp>

#include "lockstepd/host/disks.h"
#include "test/unit/host/fakes.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

nlohmann::json with(nlohmann::json entry, const nlohmann::json &changes)
{
	entry.update(changes);
	return entry;
}

struct Disks {
	Disks()
	{
		w.groups["vg"].extent_bytes = 4 << 20;
		w.disks["/dev/a"] = {.vg = "vg", .disk = "/dev/a", .size_bytes = 20 * GIB, .used_bytes = 8 * GIB, .uuid = "uuid-a"};
		w.disks["/dev/b"] = {.vg = "vg", .disk = "/dev/b", .size_bytes = 20 * GIB, .used_bytes = 2 * GIB, .uuid = "uuid-b"};
	}

	Result<nlohmann::json> change(const std::string &pool, const std::string &add, const std::string &remove)
	{
		return change_disks(w.lvm(), w.state, 1, pool, add, remove);
	}

	std::string refused(const std::string &pool, const std::string &add, const std::string &remove)
	{
		const auto before = w.disks;
		auto r = change(pool, add, remove);
		REQUIRE(!r);
		CHECK(w.disks == before);
		return r.error().message;
	}

	FakeWorld w;
};

}    // namespace

TEST_CASE("what cannot be done to its end with a disk is refused, and changes nothing")
{
	Disks d;
	CHECK(d.refused("", "", "/dev/nothing") == "/dev/nothing belongs to no pool of host alpha: see `lockstep disk list`");
	CHECK(d.refused("other", "/dev/c", "") == "host alpha has no pool other");
	CHECK(d.refused("default", "/dev/no-such-disk", "") == "host alpha: there is no disk /dev/no-such-disk");
	CHECK(d.refused("default", "/dev/null", "") == "host alpha: /dev/null is no disk");
	CHECK(d.refused("default", "", "/dev/c") == "host alpha: /dev/c is no disk of pool default: see `lockstep disk list`");
	d.w.disks["/dev/b"].used_bytes = 15 * GIB;
	CHECK(d.refused("", "", "/dev/b") == "host alpha: /dev/b holds 15 GiB, the other disks of volume group vg have room for 12 GiB");
	d.w.disks.erase("/dev/a");
	CHECK(d.refused("", "", "/dev/b") ==
	      "host alpha: /dev/b is the only disk of volume group vg: add another first, or use `lockstep disk replace`");
}

TEST_CASE("a disk is emptied step by step, also by the daemon of a later life, and then the pool grows into its new one")
{
	Disks d;
	auto r = d.change("", "", "/dev/a");
	INFO((r ? "" : r.error().message));
	REQUIRE(r);
	CHECK((*r)["changed"] == true);
	CHECK(d.w.disks["/dev/a"].leaving);
	CHECK((*d.change("", "", "/dev/a"))["changed"] == false);
	d.w.groups["vg"].growing = true;
	d.w.groups["vg"].size_bytes = 60 * GIB;    // with the disk that leaves
	d.w.groups["vg"].free_bytes = 30 * GIB;
	LogicalVolume &pool = d.w.lvs["/dev/vg/tp"].lv;
	pool.vg = "vg";
	pool.name = "tp";
	pool.is_thin_pool = true;
	pool.size_bytes = 20 * GIB;
	pool.data_percent = 10;
	pool.metadata_bytes = 80 << 20;
	pool.chunk_bytes = 64 << 10;
	d.w.propose({{"op", "pool.add"}, {"name", "t"}, {"host", 1}, {"kind", "thin"}, {"vg", "vg"}, {"thin_lv", "tp"}, {"size_bytes", 20 * GIB},
		     {"free_bytes", 18 * GIB}});
	d.w.start_daemon();
	REQUIRE(d.w.run_until([&] { return d.w.daemon().disk_percent().contains("/dev/a"); }));
	CHECK(d.w.count("grow_data") == 0);
	d.w.kill_daemon();
	d.w.start_daemon();
	REQUIRE(d.w.run_until([&] { return !d.w.disks.contains("/dev/a"); }, 30'000));
	REQUIRE(d.w.run_until([&] { return d.w.count("grow_data") > 0; }, 2 * POOL_PERIOD_MS));
	d.w.run_for(2 * POOL_PERIOD_MS);
	CHECK(d.w.count("grow_data") == 1);
	CHECK(pool.size_bytes == 20 * GIB + 10 * GIB - (80ull << 20));
	CHECK(std::count(d.w.log_lines.begin(), d.w.log_lines.end(), "pool t: disk /dev/a is empty, and out of volume group vg") == 1);
	CHECK(d.w.daemon().disk_percent().empty());
}

TEST_CASE("a disk that came before the daemon died is what the thin pool grows into when the command is given again")
{
	Disks d;
	const auto again = [&] {
		auto r = d.change("default", "/dev/b", "");
		INFO((r ? "" : r.error().message));
		REQUIRE(r);
		return (*r)["changed"] == true;
	};
	d.w.disks["/dev/b"].used_bytes = 0;
	CHECK_FALSE(again());    // a thick pool has it already
	d.w.make_thin();
	d.w.disks["/dev/b"].used_bytes = GIB;
	CHECK_FALSE(again());
	d.w.disks["/dev/b"].used_bytes = 0;
	CHECK(again());
	CHECK(d.w.groups["vg"].growing);
	CHECK_FALSE(again());
}

TEST_CASE("that a disk cannot be emptied is a problem until it can")
{
	Disks d;
	REQUIRE(d.change("", "", "/dev/a"));
	d.w.failing["drain_disk"] = "cannot move what is on /dev/a to other disks of volume group vg: no room";
	d.w.start_daemon();
	REQUIRE(d.w.run_until([&] { return !d.w.daemon().problems().empty(); }, 2 * POOL_PERIOD_MS));
	CHECK(d.w.daemon().problems()[0].message == d.w.failing["drain_disk"]);
	d.w.failing.clear();
	REQUIRE(d.w.run_until([&] { return !d.w.disks.contains("/dev/a") && d.w.daemon().problems().empty(); }, 60'000));
}

TEST_CASE("a pool that disks come into or go from is not deleted meanwhile, and none comes into one that is being deleted")
{
	Disks d;
	for (auto &[id, host] : d.w.state.hosts)
		host.level = LEVEL;
	const auto rest = [&] { return pool_at_rest(d.w.lvm(), d.w.state, 1, "default"); };
	CHECK(rest());
	CHECK(pool_at_rest(d.w.lvm(), d.w.state, 1, "other").error().code == "no-such-pool");
	d.w.disks["/dev/a"].leaving = true;
	REQUIRE(!rest());
	CHECK(rest().error().message == "pool default on host alpha: /dev/a is just being emptied: wait until it is out, see `lockstep disk list`");
	CHECK(rest().error().code == "pool-in-use");
	d.w.disks["/dev/a"].leaving = false;
	d.w.groups["vg"].growing = true;
	CHECK(rest());    // that is another one's affair: this is no thin pool
	d.w.state.pools.at({"default", 1}).kind = PoolKind::thin;
	d.w.state.pools.at({"default", 1}).thin_lv = "thin";
	CHECK(rest().error().message == "pool default on host alpha is just growing into a new disk: try again in a moment");

	d.w.propose({{"op", "pool.delete"}, {"name", "default"}, {"host", 1}});
	CHECK(d.refused("default", "", "/dev/b") == "host alpha: pool default is being deleted");
	d.w.groups.erase("vg");
	CHECK(rest());    // it went with its disks
}

TEST_CASE("the host lets go of a pool that is deleted, but not of a volume group that another pool is in")
{
	Disks d;
	for (auto &[id, host] : d.w.state.hosts)
		host.level = LEVEL;
	d.w.groups["vg"].growing = true;
	d.w.disks["/dev/a"].leaving = true;
	d.w.propose({{"op", "pool.add"}, {"name", "t"}, {"host", 1}, {"kind", "thin"}, {"vg", "vg"}, {"thin_lv", "tp"}, {"size_bytes", GIB}, {"free_bytes", GIB}});
	d.w.propose({{"op", "pool.delete"}, {"name", "t"}, {"host", 1}});
	d.w.failing["drain_disk"] = "not now";
	d.w.start_daemon();
	REQUIRE(d.w.run_until([&] { return !d.w.state.pool("t", 1); }));
	CHECK(d.w.count("let_go") == 0);
	CHECK(d.w.groups["vg"].growing);
	d.w.propose({{"op", "pool.delete"}, {"name", "default"}, {"host", 1}});
	d.w.failing = {{"let_go", "cannot let go of volume group vg: no answer"}};
	REQUIRE(d.w.run_until([&] { return !d.w.daemon().problems().empty() && d.w.daemon().problems()[0].message == d.w.failing["let_go"]; }));
	CHECK(d.w.state.pool("default", 1)->deleting);
	d.w.failing.clear();
	d.w.daemon().look();
	REQUIRE(d.w.run_until([&] { return !d.w.state.pool("default", 1) && d.w.daemon().problems().empty(); }));
	CHECK_FALSE(d.w.groups["vg"].growing);
	CHECK_FALSE(d.w.disks["/dev/a"].leaving);
	CHECK(std::count(d.w.log_lines.begin(), d.w.log_lines.end(), "pool default is deleted; its volume group stays as it is") == 1);
	const int calls = d.w.count("let_go");
	d.w.run_for(2 * POOL_PERIOD_MS);
	CHECK(d.w.count("let_go") == calls);
	CHECK(d.w.daemon().problems().empty());
}

// ---- a disk that is dead ----

namespace {

struct Dead : Disks {
	uint32_t vid = 0;
	Dead()
	{
		for (auto &[id, host] : w.state.hosts)
			host.level = LEVEL;
		vid = w.propose({{"op", "volume.create"}, {"name", "v"}, {"uuid", VOLUME_UUID}, {"size_bytes", GIB}, {"pool", "default"},
				 {"hosts", {1, 2}}, {"now_ms", 1}})["vid"];
		w.propose({{"op", "replica.created"}, {"vid", vid}, {"host", 2}});
		w.start_daemon();
		REQUIRE(w.run_until([&] {
			return w.state.volume(vid)->phase == Phase::ready && w.volumes.contains(vid) && w.volumes[vid].replica &&
			       !w.state.pool("default", 1)->disks.empty();
		}));
	}

	// LVM has no name for it, and its kernel device is gone.
	void dies(const std::string &disk)
	{
		w.disks[disk].missing = true;
		w.disks[disk].disk = "[unknown]";
		w.groups["vg"].incomplete = true;
		w.lvs["/dev/vg/lockstep." + std::to_string(vid)].lv.health = "partial";
	}

	nlohmann::json listed(const std::string &disk)
	{
		const nlohmann::json disks = *list_disks(w.lvm(), {*w.state.pool("default", 1)}, {});
		for (const nlohmann::json &d : disks)
			if (d["disk"] == disk)
				return d;
		return nullptr;
	}
};

}    // namespace

TEST_CASE("a dead disk is named by where it was, and replaced: what was on it is given up first")
{
	Dead d;
	CHECK(d.w.state.pool("default", 1)->disks == std::map<std::string, std::string>{{"uuid-a", "/dev/a"}, {"uuid-b", "/dev/b"}});
	d.dies("/dev/a");
	CHECK(d.listed("/dev/a")["missing"] == true);
	CHECK(d.listed("/dev/a")["leaving"] == false);
	for (const char *name : {"/dev/a", "uuid-a"}) {
		auto r = d.change("", "", name);
		INFO((r ? "" : r.error().message));
		REQUIRE(r);
		CHECK((*r)["remove"] == "/dev/a");
		CHECK((*r)["mend"] == nlohmann::json{{"op", "pool.mend"}, {"name", "default"}, {"host", 1}, {"disk", "uuid-a"}, {"replicas", {d.vid}}});
	}
	CHECK(d.refused("", "/dev/no-such-disk", "/dev/a") == "host alpha: there is no disk /dev/no-such-disk");
	d.w.run_for(2 * POOL_PERIOD_MS);
	CHECK(d.w.count("mend") == 0);    // nobody has agreed to it yet

	d.w.propose({{"op", "record.failed"}, {"vid", d.vid}, {"host", 1}});
	d.w.propose({{"op", "record.failover"}, {"vid", d.vid}, {"version", d.w.state.volume(d.vid)->version}, {"primary", 2}, {"keep", {2}}});
	d.w.propose(with((*d.change("", "", "/dev/a"))["mend"], {{"by", "/dev/n"}}));
	CHECK(d.listed("/dev/a")["leaving"] == true);
	REQUIRE(d.w.run_until([&] { return d.w.state.pool("default", 1)->mending.empty(); }));
	CHECK(d.w.disks.contains("/dev/n"));
	CHECK_FALSE(d.w.disks.contains("/dev/a"));
	CHECK_FALSE(d.w.volumes[d.vid].replica);
	REQUIRE(d.w.run_until([&] { return d.w.state.volume(d.vid)->remnants.empty(); }));
	CHECK(d.w.lvs.empty());
	REQUIRE(d.w.run_until([&] { return d.w.state.pool("default", 1)->disks.contains("uuid/dev/n"); }, 2 * POOL_PERIOD_MS));
	CHECK(d.w.daemon().problems().empty());
	CHECK(d.w.violations.empty());
}

TEST_CASE("a daemon that is killed at any step of replacing a dead disk leaves nothing half done")
{
	for (uint64_t at = 1; at < 8; at++)
		for (Fault fault : {Fault::killed_before, Fault::killed_after}) {
			Dead d;
			d.dies("/dev/a");
			d.w.propose({{"op", "record.failed"}, {"vid", d.vid}, {"host", 1}});
			d.w.propose({{"op", "record.failover"}, {"vid", d.vid}, {"version", d.w.state.volume(d.vid)->version}, {"primary", 2}, {"keep", {2}}});
			d.w.propose(with((*d.change("", "", "/dev/a"))["mend"], {{"by", "/dev/n"}}));
			d.w.fault_at = d.w.steps + at;
			d.w.fault = fault;
			INFO("step " << at << (fault == Fault::killed_before ? " before" : " after"));
			REQUIRE(d.w.run_until([&] { return d.w.state.pool("default", 1)->mending.empty() && d.w.state.volume(d.vid)->remnants.empty(); }));
			CHECK(d.w.disks.contains("/dev/n"));
			CHECK(d.w.lvs.empty());
			CHECK(d.w.violations.empty());
		}
}

TEST_CASE("a volume group that is gone with its only disk: all of it is given up, under the name that the disk had")
{
	Dead d;
	d.w.disks.clear();
	d.w.groups.clear();
	CHECK(d.listed("/dev/b")["missing"] == true);
	CHECK(d.refused("", "", "/dev/a") ==
	      "host alpha: /dev/a is the only disk of volume group vg: put another in its place with `lockstep disk replace`");
	d.w.disks["/dev/n"] = {.vg = "vg", .disk = "/dev/n", .uuid = "n"};    // as if it were there already
	auto r = d.change("", "/dev/n", "/dev/a");
	INFO((r ? "" : r.error().message));
	REQUIRE(r);
	CHECK((*r)["mend"]["replicas"] == nlohmann::json{d.vid});
}

TEST_CASE("what is on a dead disk and is not the cluster's is not removed with it")
{
	Dead d;
	d.dies("/dev/a");
	LogicalVolume &home = d.w.lvs["/dev/vg/home"].lv;
	home.vg = "vg";
	home.name = "home";
	home.health = "partial";
	CHECK(d.refused("", "", "/dev/a") ==
	      "host alpha: logical volume vg/home has something on /dev/a and does not belong to the cluster: it would be lost with it; remove it first");
}

TEST_CASE("what is lost with a disk: what has a part on it, and what is made of that")
{
	LvmReport r;
	auto add = [&](const char *name, const char *pool, const char *origin, const char *health) {
		LogicalVolume lv;
		lv.vg = "vg";
		lv.name = name;
		lv.pool = pool;
		lv.origin = origin;
		lv.health = health;
		r.volumes.push_back(lv);
	};
	add("s2", "", "s1", "");
	add("s1", "", "a", "");
	add("a", "", "", "partial");
	add("b", "", "", "");
	add("t", "tp", "", "");
	add("tp", "", "", "");
	CHECK(lost_volumes(r, "vg", "tp") == std::vector<std::string>{"a", "s1", "s2"});
	r.volumes.back().health = "partial";
	CHECK(lost_volumes(r, "vg", "tp") == std::vector<std::string>{"a", "s1", "s2", "t"});
	CHECK(lost_volumes(r, "other", "tp").empty());
	CHECK(group_devices("a-b", "a--b-lv Closed LVM-1\na--b-tp_tdata Open LVM-1\na--b--c-lv Closed LVM-2\na-b Closed LVM-2\na--b-x Closed CRYPT-1\n") ==
	      std::vector<std::string>{"a--b-lv", "a--b-tp_tdata"});
}

TEST_CASE("a thin pool is made anew as scripts/install makes it")
{
	ThinPoolPlan plan = plan_thin_pool(100 * GIB, 4 << 20);
	CHECK(plan.chunk_bytes == 64 << 10);
	CHECK(plan.metadata_bytes == 204 << 20);
	CHECK(plan.data_bytes == 100 * GIB - 3 * plan.metadata_bytes);
	CHECK(plan_thin_pool(5000 * GIB, 4 << 20).chunk_bytes == 128 << 10);
	CHECK(plan_thin_pool(12 << 20, 4 << 20).data_bytes == 0);
	CHECK(plan_thin_pool(0, 0).data_bytes == 0);
}

TEST_CASE("a thin pool leaves of a new disk what its metadata may need")
{
	LvmReport r;
	r.groups.push_back({.name = "vg", .size_bytes = 1000 * GIB, .free_bytes = 500 * GIB, .extent_bytes = 4 << 20});
	LogicalVolume pool;
	pool.vg = "vg";
	pool.name = "tp";
	pool.chunk_bytes = 64 << 10;
	pool.metadata_bytes = 1 * GIB;
	r.volumes.push_back(pool);
	// For 1000 GiB in chunks of 64 KiB: 2000 MiB; metadata and spare grow by 976 MiB each, 2000 MiB stay free.
	CHECK(data_growth(r, "vg", "tp") == 500 * GIB - (3 * 2000ull - 2 * 1024) * (1 << 20));
	r.volumes[0].metadata_bytes = 4 * GIB;
	CHECK(data_growth(r, "vg", "tp") == 496 * GIB);
	r.groups[0].free_bytes = 4 * GIB;
	CHECK(data_growth(r, "vg", "tp") == 0);
	CHECK(data_growth(r, "vg", "") == 0);
}
