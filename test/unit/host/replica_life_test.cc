// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler of host alpha while replicas come to it and go from it, and while it leaves the cluster.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "fakes.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

using Json = nlohmann::json;

// A volume on beta and gamma; alpha has only the device.
struct Elsewhere {
	FakeWorld w;
	uint32_t vid = 0;

	Elsewhere()
	{
		w.start_daemon();
		Json answer = w.propose({{"op", "volume.create"}, {"name", "db1"}, {"uuid", VOLUME_UUID}, {"size_bytes", GIB}, {"pool", "default"},
					 {"redundancy", 2}, {"hosts", {2, 3}}, {"now_ms", 1}});
		vid = answer["vid"];
		for (int host : {2, 3})
			tell({{"op", "replica.created"}, {"vid", vid}, {"host", host}});
		tell({{"op", "record.open"}, {"vid", vid}, {"host", 2}});
	}

	Json tell(Json entry)
	{
		Json answer = w.propose(std::move(entry));
		if (!w.killed())
			w.daemon().look();
		return answer;
	}
	const Volume &v() const { return *w.state.volume(vid); }
	bool takes_part()
	{
		auto k = w.volumes.find(vid);
		return v().replica(1) && v().replica(1)->created && k != w.volumes.end() && k->second.replica && k->second.replica->admitted;
	}
	void add() { tell({{"op", "replica.add"}, {"vid", vid}, {"host", 1}}); }
	void join() { tell({{"op", "record.propose"}, {"vid", vid}, {"host", 2}, {"version", v().version}, {"term", v().term}, {"members", {1, 2, 3}}}); }
	void remove() { tell({{"op", "replica.remove"}, {"vid", vid}, {"host", 1}}); }
	bool clean() { return !v().replica(1) && !v().remnant(1) && w.lvs.empty(); }
	bool well() { return w.violations.empty() && w.daemon().problems().empty(); }
};

}    // namespace

TEST_CASE("a replica is made for a volume that serves, takes part, and goes again")
{
	Elsewhere e;
	e.add();
	REQUIRE(e.w.run_until([&] { return e.takes_part(); }));
	CHECK(e.w.lvs.begin()->second.lv.tags[1] == replica_added_tag(e.v().replica(1)->added));
	e.join();
	e.w.run_for(5000);
	e.remove();
	REQUIRE(e.w.run_until([&] { return e.clean(); }));
	CHECK(e.well());
	e.add();    // and once more
	REQUIRE(e.w.run_until([&] { return e.takes_part(); }));
	CHECK(e.w.count("lv_create") == 2);
	CHECK(e.w.count("format") == 2);
	CHECK(e.well());
}

TEST_CASE("killed or failing at any step of a replica's life, it converges")
{
	const Fault fault = GENERATE(Fault::fails, Fault::killed_before, Fault::killed_after);
	uint64_t last = 1;
	for (uint64_t k = 0; k <= last; k++) {
		INFO("fault " << int(fault) << " at step " << k);
		Elsewhere e;
		REQUIRE(e.w.run_until([&] { return e.v().devices.contains(1); }));
		e.w.fault = fault;
		e.w.fault_at = k ? e.w.steps + k : 0;
		const uint64_t begin = e.w.steps;
		e.add();
		REQUIRE(e.w.run_until([&] { return e.takes_part(); }));
		e.join();
		e.w.run_for(1000);
		e.remove();
		REQUIRE(e.w.run_until([&] { return e.clean(); }));
		e.add();
		REQUIRE(e.w.run_until([&] { return e.takes_part(); }));
		CHECK(e.w.violations.empty());
		if (!k)
			last = e.w.steps - begin;
	}
	CHECK(last > 15);
}

TEST_CASE("what an earlier life of a replica left on a disk that was away is not taken for the new one")
{
	Elsewhere e;
	e.add();
	REQUIRE(e.w.run_until([&] { return e.takes_part(); }));
	e.join();
	e.w.run_for(1000);
	// The disk goes with the volume group; the replica is removed; the disk comes back.
	auto lvs = e.w.lvs;
	auto groups = e.w.groups;
	e.w.lvs.clear();
	e.w.groups.clear();
	e.remove();
	REQUIRE(e.w.run_until([&] { return e.clean(); }));
	e.w.groups = groups;
	e.w.lvs = lvs;
	e.add();
	REQUIRE(e.w.run_until([&] { return e.takes_part(); }));
	CHECK(e.w.lvs.begin()->second.lv.tags[1] == replica_added_tag(e.v().replica(1)->added));
	CHECK(e.w.count("format") == 2);
	CHECK(e.w.violations.empty());
}

TEST_CASE("a replica that cannot be made is taken back, and what was made of it removed")
{
	Elsewhere e;
	e.w.failing["format"] = "the disk is broken";
	e.add();
	REQUIRE(e.w.run_until([&] { return e.clean(); }));
	CHECK(e.w.state.failures.at(e.vid).message == "volume db1 gets no replica on host alpha: the disk is broken");
	CHECK(e.v().shunned == HostSet{1});
	CHECK(e.w.violations.empty());
}

TEST_CASE("a host that is away while its replica is removed cleans up when it is back; so it does when the volume is deleted")
{
	const bool deleted = GENERATE(false, true);
	Elsewhere e;
	e.add();
	REQUIRE(e.w.run_until([&] { return e.takes_part(); }));
	e.w.kill_daemon();
	e.remove();
	if (deleted) {
		e.tell({{"op", "record.close"}, {"vid", e.vid}, {"host", 2}, {"session", 1}});
		e.tell({{"op", "volume.delete"}, {"vid", e.vid}});
		for (int host : {2, 3})
			e.tell({{"op", "replica.deleted"}, {"vid", e.vid}, {"host", host}});
		REQUIRE(e.w.state.volume(e.vid));
	}
	e.w.reboot();
	REQUIRE(e.w.run_until([&] { return deleted ? !e.w.state.volume(e.vid) : e.clean(); }));
	CHECK(e.w.lvs.empty());
	CHECK(e.w.violations.empty());
}

TEST_CASE("a host that leaves takes its devices down, says so, and is told")
{
	const Fault fault = GENERATE(Fault::none, Fault::killed_before, Fault::fails);
	for (uint64_t k = 1; k <= 3; k++) {
		Elsewhere e;
		REQUIRE(e.w.run_until([&] { return e.v().devices.contains(1); }));
		e.w.fault = fault;
		e.w.fault_at = fault == Fault::none ? 0 : e.w.steps + k;
		e.tell({{"op", "host.remove"}, {"host", 1}});
		REQUIRE(e.w.run_until([&] { return !e.w.state.host(1); }));
		CHECK(e.w.run_until([&] { return e.w.removed; }, 1000));
		e.w.run_for(3000);    // the daemon ends a moment later
		CHECK(e.w.volumes.empty());
		CHECK(e.w.violations.empty());
	}
}
