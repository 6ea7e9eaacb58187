// SPDX-License-Identifier: GPL-2.0-or-later
//
// Disks that come into pools and leave them: what is refused, and the reconciler's steps.
#include <catch2/catch_test_macros.hpp>

#include "lockstepd/host/disks.h"
#include "test/unit/host/fakes.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

struct Disks {
	Disks()
	{
		w.groups["vg"].extent_bytes = 4 << 20;
		w.disks["/dev/a"] = {.vg = "vg", .disk = "/dev/a", .size_bytes = 20 * GIB, .used_bytes = 8 * GIB};
		w.disks["/dev/b"] = {.vg = "vg", .disk = "/dev/b", .size_bytes = 20 * GIB, .used_bytes = 2 * GIB};
	}

	Result<nlohmann::json> change(const std::string &pool, const std::string &add, const std::string &remove)
	{
		std::vector<Pool> pools(1);
		pools[0].name = "default";
		pools[0].vg = "vg";
		return change_disks(w.lvm(), pools, "alpha", pool, add, remove);
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
	d.w.disks["/dev/a"].missing = true;
	CHECK(d.refused("", "", "/dev/a") == "host alpha: /dev/a is missing: what is on it cannot be moved away");
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
	d.w.groups["vg"].size_bytes = 40 * GIB;
	d.w.groups["vg"].free_bytes = 10 * GIB;
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
