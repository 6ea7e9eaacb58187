// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler of host alpha (1) in a fake world with hosts beta (2) and gamma (3). What beta and gamma do is proposed
// by the tests.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <ctime>

#include <fmt/format.h>

#include "ready.h"

using namespace lockstep;
using namespace lockstep::test;

TEST_CASE("a volume comes into being, in the order that survives a crash")
{
	Ready r;
	CHECK(before(r.w, "lv_create 1", "format 1"));
	CHECK(before(r.w, "format 1", "replica.created 1"));
	CHECK(before(r.w, "replica.created 1", "volume_add 1"));
	CHECK(before(r.w, "volume_add 1", "replica_attach 1"));
	CHECK(before(r.w, "replica_attach 1", "admit 1"));
	CHECK(before(r.w, "device_add 1", "device.ready 1"));
	CHECK(r.w.kernel_host == 1);
	CHECK(r.w.peers == std::set<uint8_t>{2, 3});
	CHECK(r.w.violations.empty());
	CHECK(r.w.daemon().problems().empty());
}

TEST_CASE("nothing is left to do once a volume serves")
{
	Ready r;
	const auto calls = r.w.calls;
	const auto proposals = r.w.proposals;
	r.w.run_for(30'000);
	CHECK(r.w.calls == calls);
	CHECK(r.w.proposals == proposals);
}

namespace {

// So many volumes with a replica each, all as they should be.
std::unique_ptr<FakeWorld> at_rest(unsigned volumes)
{
	auto w = std::make_unique<FakeWorld>();
	w->groups["vg"].free_bytes = w->groups["vg"].size_bytes = 100'000 * GIB;
	for (auto &[key, pool] : w->state.pools)
		pool.size_bytes = pool.free_bytes = 100'000 * GIB;
	for (unsigned n = 1; n <= volumes; n++)
		w->propose({{"op", "volume.create"}, {"name", "v" + std::to_string(n)}, {"uuid", fmt::format("6c1c4f0e-1111-4222-8333-{:012}", n)},
			    {"size_bytes", GIB}, {"pool", "default"}, {"hosts", {1}}, {"now_ms", 1}});
	w->start_daemon();
	REQUIRE(w->run_until([&] { return std::ranges::all_of(w->state.volumes, [](const auto &v) { return v.second.devices.contains(1); }); }));
	w->run_for(SWEEP_MS + DUMP_PERIOD_MS);
	return w;
}

}    // namespace

TEST_CASE("volumes that are as they should be are looked at now and then only")
{
	const auto w = at_rest(50);
	const uint64_t before = w->daemon().looks(), steps = w->steps;
	w->run_for(30'000);
	CHECK(w->daemon().looks() - before <= (30'000 / SWEEP_MS + 1) * 50);
	CHECK(w->steps == steps);
	// One that is not is looked at all the time, and the others are not.
	w->failing["config_set"] = "ENOSYS";
	w->propose({{"op", "record.open"}, {"vid", 7}, {"host", 1}});
	w->daemon().look();
	w->run_for(1000);
	const uint64_t begun = w->daemon().looks();
	w->run_for(10'000);
	CHECK(w->daemon().looks() - begun >= 90);
	CHECK(w->daemon().looks() - begun <= (10'000 / SWEEP_MS + 1) * 50 + 150);
	// What nobody told of is found all the same.
	w->failing.clear();
	w->run_for(40'000);
	w->volumes.erase(9);
	w->daemon().kernel_changed();
	REQUIRE(w->run_until([&] { return serving(*w, 9); }, 1000));
	w->state.volumes.at(11).version++;
	CHECK(w->run_until([&] { return serving(*w, 11); }, SWEEP_MS + 500));
}

TEST_CASE("what a thousand volumes at rest cost", "[.bench]")
{
	for (unsigned volumes : {100u, 1000u}) {
		const auto w = at_rest(volumes);
		const auto cpu_ms = [] { return double(clock()) * 1000 / CLOCKS_PER_SEC; };
		const double begun = cpu_ms();
		w->run_for(30'000);
		WARN(volumes << " volumes: " << (cpu_ms() - begun) / 300 << " % of a processor for the reconciler");
		const double reported = cpu_ms();
		for (int n = 0; n < 10; n++)
			(void)w->daemon().soft_report();
		WARN("a report takes " << (cpu_ms() - reported) / 10 << " ms");
	}
}

TEST_CASE("a daemon that restarts finds everything in place and changes nothing")
{
	Ready r;
	const auto calls = r.w.calls.size();
	const auto proposals = r.w.proposals;
	r.w.kill_daemon();
	r.w.start_daemon();
	r.w.run_for(30'000);
	CHECK(r.w.proposals == proposals);
	REQUIRE(r.w.calls.size() == calls + 1);
	CHECK(r.w.calls.back() == "host_set 1");
}

TEST_CASE("a kernel that has another id is told, until the module has been reloaded")
{
	FakeWorld w;
	w.kernel_host = 9;
	w.start_daemon();
	w.run_for(5'000);
	CHECK(w.daemon().host_refused() == "another host id is set");
	CHECK(w.count("peer_set") == 0);
	w.kernel_host = 0;
	REQUIRE(w.run_until([&] { return w.daemon().host_refused().empty(); }));
	CHECK(w.kernel_host == 1);
}

TEST_CASE("a host without a replica gets the device")
{
	FakeWorld w;
	w.start_daemon();
	const uint32_t vid = create_volume(w, {2, 3});
	tell(w, {{"op", "replica.created"}, {"vid", vid}, {"host", 2}});
	tell(w, {{"op", "replica.created"}, {"vid", vid}, {"host", 3}});
	REQUIRE(w.run_until([&] { return serving(w, vid); }));
	CHECK(w.count("lv_") == 0);
	CHECK(w.count("replica_attach") == 0);
	CHECK(w.violations.empty());
}

TEST_CASE("killed or failing at any step, it converges")
{
	const Fault fault = GENERATE(Fault::fails, Fault::killed_before, Fault::killed_after);
	// How many steps are there without faults? Creation, restart unclean, deletion.
	uint64_t last = 1;
	for (uint64_t k = 0; k <= last; k++) {
		INFO("fault " << int(fault) << " at step " << k);
		FakeWorld w;
		w.fault = fault;
		w.fault_at = k;
		w.start_daemon();
		const uint32_t vid = create_volume(w);
		beta_created(w, vid);
		REQUIRE(w.run_until([&] { return serving(w, vid); }));
		w.lvs.at("/dev/vg/lockstep.1").hot = true;
		w.reboot();
		REQUIRE(w.run_until([&] { return serving(w, vid); }));
		CHECK(w.state.volume(vid)->replica(1)->state == ReplicaState::suspect);
		tell(w, {{"op", "volume.delete"}, {"vid", vid}});
		tell(w, {{"op", "replica.deleted"}, {"vid", vid}, {"host", 2}});
		REQUIRE(w.run_until([&] { return !w.state.volume(vid); }));
		CHECK(w.lvs.empty());
		CHECK(w.volumes.empty());
		CHECK(w.violations == std::vector<std::string>{});
		w.run_for(1000);
		CHECK(w.daemon().problems().empty());
		if (k == 0)
			last = w.steps;
	}
	CHECK(last > 15);
}

TEST_CASE("S1, S3: a suspect replica is recorded so, after a barrier, before it takes part")
{
	Ready r;
	r.w.lvs.at("/dev/vg/lockstep.1").hot = true;
	r.w.calls.clear();
	r.w.reboot();
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }));
	CHECK(before(r.w, "replica_attach 1", "record.suspect 1"));
	CHECK(before(r.w, "record.suspect 1", "admit 1"));
	CHECK(r.volume().replica(1)->state == ReplicaState::suspect);
	CHECK(r.w.violations.empty());
}

TEST_CASE("S3: without a quorum nothing is admitted, and nothing is made or removed")
{
	Ready r;
	r.w.calls.clear();
	r.w.quorum = false;
	r.w.reboot();
	r.w.run_for(60'000);
	CHECK(r.w.count("admit") == 0);
	CHECK(r.w.count("volume_add") == 0);
	CHECK(!r.w.daemon().problems().empty());
	// The message stands in the log once, however often it was tried.
	CHECK(std::count(r.w.log_lines.begin(), r.w.log_lines.end(), "cluster: no quorum: 1 of 3 voters reachable") == 1);
	r.w.quorum = true;
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }, 3000));
	CHECK(r.w.violations.empty());
}

TEST_CASE("S3: a quorum lost between attachment and barrier delays the admission")
{
	Ready r;
	r.w.calls.clear();
	r.w.on_call = [&](const std::string &call) {
		if (call == "replica_attach 1")
			r.w.quorum = false;
	};
	r.w.reboot();
	r.w.run_for(20'000);
	CHECK(r.w.count("replica_attach") == 1);
	CHECK(r.w.count("admit") == 0);
	r.w.quorum = true;
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }, 3000));
	CHECK(r.w.violations.empty());
}

TEST_CASE("S3: a primary that rebooted resigns before it is admitted")
{
	Ready r;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	REQUIRE(r.volume().primary == 1);
	r.w.calls.clear();
	r.w.reboot();
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid) && r.volume().openers.empty(); }));
	CHECK(before(r.w, "record.resign 1", "admit 1"));
	CHECK(r.volume().primary == 0);
	CHECK(r.w.violations.empty());
}

TEST_CASE("a daemon that restarts does not admit what an earlier one attached without a barrier of its own")
{
	Ready r;
	uint64_t barriers = 0;
	r.w.on_call = [&](const std::string &call) {
		if (call == "admit 1" && !barriers) {
			r.w.fault_at = r.w.steps + 1;
			barriers = r.w.barriers_begun;
		}
	};
	r.w.fault = Fault::killed_before;
	r.w.reboot();
	REQUIRE(r.w.run_until([&] { return barriers > 0; }));
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }));
	CHECK(r.w.barriers_begun >= barriers + 2);    // to begin at all, and for this replica
}

TEST_CASE("an open is granted, and its end leaves the record")
{
	Ready r;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	REQUIRE(r.volume().opener(1));
	const uint64_t session = r.volume().opener(1)->session;
	CHECK(r.volume().primary == 1);
	r.w.run_for(10'000);
	CHECK(r.volume().opener(1)->session == session);

	r.kernel().writers = r.kernel().openers = 0;
	KernelEvent closed = event(LKS_CMD_EV_CLOSE, r.vid);
	closed.session = session;
	r.w.daemon().kernel_event(closed);
	REQUIRE(r.w.run_until([&] { return r.volume().openers.empty(); }));

	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	CHECK(r.volume().opener(1)->session > session);
}

TEST_CASE("the wait of an open that has come to its end is not taken for another open")
{
	Ready r;
	r.w.opens_late = true;    // the primary drains first
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.w.daemon().dump()->volume(r.vid)->noted_version == r.volume().version && r.volume().opener(1); }));
	REQUIRE(r.w.daemon().dump()->volume(r.vid)->open_waiters == 1);
	r.kernel().open_waiters = 0;
	r.kernel().session_ended = r.volume().opener(1)->session;
	KernelEvent closed = event(LKS_CMD_EV_CLOSE, r.vid);
	closed.session = r.kernel().session_ended;
	r.w.daemon().kernel_event(closed);
	REQUIRE(r.w.run_until([&] { return r.volume().openers.empty(); }));
	r.w.run_for(3000);
	CHECK(r.w.count("record.open") == 1);
}

TEST_CASE("an open is found without its event")
{
	Ready r;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_resync();
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	CHECK(r.w.count("record.open") == 1);
}

TEST_CASE("an end of a session is found without its event")
{
	Ready r;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	const uint64_t session = r.volume().opener(1)->session;
	r.w.kill_daemon();
	r.kernel().writers = r.kernel().openers = 0;
	r.kernel().session_ended = session;
	r.w.start_daemon();
	REQUIRE(r.w.run_until([&] { return r.volume().openers.empty(); }));
}

TEST_CASE("an open that another host holds is refused at once")
{
	Ready r;
	tell(r.w, {{"op", "record.open"}, {"vid", r.vid}, {"host", 2}});
	r.w.in_use_there[2] = true;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.w.refused.contains(r.vid); }, 2000));
	CHECK(r.w.refused[r.vid] == -EBUSY);
	CHECK(r.w.log_lines == std::vector<std::string>{"volume db1: an open on host alpha was refused: it is open on host beta"});
	CHECK(r.w.daemon().problems().empty());
	CHECK(r.w.daemon().soft_report()["volumes"]["1"]["refused_for"] == 2);
	CHECK(r.volume().opener(2));
	CHECK(!r.volume().opener(1));
}

TEST_CASE("an open waits for a holder that does not answer, and succeeds when that is offline")
{
	Ready r;
	tell(r.w, {{"op", "record.open"}, {"vid", r.vid}, {"host", 2}});
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	r.w.run_for(3000);
	CHECK(r.w.refused.empty());
	CHECK(r.kernel().open_waiters == 1);
	tell(r.w, {{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 1}});
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }, 2000));
	CHECK(!r.volume().opener(2));
}

TEST_CASE("an open waits for a holder that is just closing")
{
	Ready r;
	tell(r.w, {{"op", "record.open"}, {"vid", r.vid}, {"host", 2}});
	r.w.in_use_there[2] = false;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	r.w.run_for(500);
	CHECK(r.w.refused.empty());
	tell(r.w, {{"op", "record.close"}, {"vid", r.vid}, {"host", 2}, {"session", r.volume().opener(2)->session}});
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }, 2000));
}

TEST_CASE("O1: a session lasts while a replica of the opener's host is being attached")
{
	Ready r({2, 3});
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	const Opener mine = *r.volume().opener(1);
	r.w.calls.clear();
	// Its disk is slow: several dumps are made meanwhile, and the log goes on.
	r.w.attaching.insert(r.vid);
	for (int i = 0; i < 3; i++) {
		r.w.daemon().kernel_resync();
		r.w.run_for(500);
		REQUIRE(!r.w.daemon().dump()->volume(r.vid)->whole);
		tell(r.w, {{"op", "record.suspect"}, {"vid", r.vid}, {"host", 3}});
	}
	REQUIRE(r.volume().opener(1));
	CHECK(*r.volume().opener(1) == mine);
	CHECK(r.w.count("config_set") == 0);
	r.w.attaching.clear();
	r.w.daemon().kernel_resync();
	REQUIRE(r.w.run_until([&] { return r.kernel().noted_version == r.volume().version; }));
	CHECK(*r.volume().opener(1) == mine);
	CHECK(r.w.violations.empty());
}

TEST_CASE("whether a volume is in use is said by the kernel as it is after the question")
{
	Ready r;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1 && r.w.daemon().dump()->volume(r.vid)->writers == 1; }));
	std::optional<bool> said;
	auto ask = [&] {
		said.reset();
		r.w.daemon().in_use(r.vid, [&](Result<bool> in_use) {
			REQUIRE(in_use);
			said = *in_use;
		});
		REQUIRE(r.w.run_until([&] { return said.has_value(); }));
		return *said;
	};
	CHECK(ask());
	r.w.daemon().kernel_resync();    // a dump is under way that shows the writer
	r.kernel().writers = r.kernel().openers = 0;
	CHECK(!ask());
}

TEST_CASE("an open waits while there is no quorum")
{
	Ready r;
	r.w.quorum = false;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	r.w.run_for(10'000);
	CHECK(r.kernel().open_waiters == 1);
	CHECK(r.w.refused.empty());
	r.w.quorum = true;
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }, 3000));
}

TEST_CASE("after a reboot the session of the time before is closed, and a new open gets a new one")
{
	Ready r;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	const uint64_t session = r.volume().opener(1)->session;
	r.w.reboot();
	REQUIRE(r.w.run_until([&] { return r.volume().openers.empty(); }));
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }));
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	CHECK(r.volume().opener(1)->session > session);
}

TEST_CASE("a proposal of the kernel is committed once, however often it is repeated")
{
	Ready r;
	tell(r.w, {{"op", "record.open"}, {"vid", r.vid}, {"host", 1}});
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }));
	KernelEvent e = event(LKS_CMD_EV_PROPOSE, r.vid);
	e.record = to_record(r.volume());
	e.record->version++;
	for (lks_record_replica &replica : e.record->replicas)
		if (replica.host == 2)
			replica.state = LKS_REPLICA_STALE;
	const uint64_t version = r.volume().version;
	for (int i = 0; i < 5; i++)
		r.w.daemon().kernel_event(e);
	REQUIRE(r.w.run_until([&] { return r.volume().version == version + 1 && serving(r.w, r.vid); }));
	CHECK(r.volume().replica(2)->state == ReplicaState::stale);
	for (int i = 0; i < 5; i++)
		r.w.daemon().kernel_event(e);
	r.w.run_for(2000);
	CHECK(r.volume().version == version + 1);
	CHECK(r.w.daemon().problems().empty());
}

TEST_CASE("a creation that LVM cannot carry out is rolled back with LVM's words")
{
	FakeWorld w;
	w.failing["lv_create"] = "cannot create logical volume vg/lockstep.1: insufficient free space";
	w.start_daemon();
	const uint32_t vid = create_volume(w);
	REQUIRE(w.run_until([&] { return !w.state.volume(vid) || w.state.volume(vid)->phase == Phase::deleting; }, 5000));
	CHECK(w.count("lv_create") == int(CREATE_TRIES));
	REQUIRE(w.state.volume(vid));
	CHECK(w.state.volume(vid)->failure.find("insufficient free space") != std::string::npos);
	CHECK(w.state.volume(vid)->failure.find("alpha") != std::string::npos);
}

TEST_CASE("somebody else's LV of our name is left alone, and the creation is given up at once and for good")
{
	FakeWorld w;
	FakeLv &foreign = w.lvs["/dev/vg/lockstep.1"];
	foreign.lv.vg = "vg";
	foreign.lv.name = "lockstep.1";
	foreign.lv.active = true;
	w.start_daemon();
	const uint32_t vid = create_volume(w);
	REQUIRE(w.run_until([&] { return w.state.volume(vid)->phase == Phase::deleting; }, 1000));
	CHECK(w.count("lv_create") == 1);
	tell(w, {{"op", "replica.deleted"}, {"vid", vid}, {"host", 2}});
	REQUIRE(w.run_until([&] { return !w.state.volume(vid); }, 5000));
	CHECK(w.lvs.size() == 1);
	CHECK(w.violations.empty());
}

TEST_CASE("a creation on a host without the module is refused at once")
{
	FakeWorld w;
	w.module_loaded = false;
	w.start_daemon();
	w.run_for(500);
	const uint32_t vid = create_volume(w);
	REQUIRE(w.run_until([&] { return w.state.volume(vid)->phase == Phase::deleting; }, 1000));
	CHECK(w.state.volume(vid)->failure.find("not loaded") != std::string::npos);
	CHECK(w.count("lv_create") == 0);
}

TEST_CASE("a module that is loaded later is taken into use")
{
	FakeWorld w;
	w.module_loaded = false;
	w.start_daemon();
	w.run_for(5000);
	w.module_loaded = true;
	w.daemon().module_changed("");
	const uint32_t vid = create_volume(w);
	beta_created(w, vid);
	REQUIRE(w.run_until([&] { return serving(w, vid); }));
	CHECK(w.daemon().problems().empty());
}

TEST_CASE("a deletion finishes when this host comes back")
{
	Ready r;
	r.w.kill_daemon();
	r.w.propose({{"op", "volume.delete"}, {"vid", r.vid}});
	r.w.propose({{"op", "replica.deleted"}, {"vid", r.vid}, {"host", 2}});
	r.w.volumes.clear();
	r.w.kernel_host = 0;
	r.w.start_daemon();
	REQUIRE(r.w.run_until([&] { return !r.w.state.volume(r.vid); }));
	CHECK(r.w.lvs.empty());
	CHECK(r.w.count("replica_attach") == 1);    // the one from before
	CHECK(r.w.violations.empty());
}

TEST_CASE("a deletion waits for an open device, and holds up nothing else")
{
	Ready r;
	r.kernel().openers = 1;    // read-only: in no record
	tell(r.w, {{"op", "volume.delete"}, {"vid", r.vid}});
	r.w.run_for(2000);
	CHECK(r.w.volumes.contains(r.vid));
	Json second = r.w.propose({{"op", "volume.create"}, {"name", "db2"}, {"uuid", UUID3}, {"size_bytes", GIB}, {"pool", "default"},
				   {"redundancy", 1}, {"hosts", {1}}, {"now_ms", 1}});
	REQUIRE(r.w.run_until([&] { return serving(r.w, second["vid"]); }, 2000));
	auto problems = r.w.daemon().problems();
	REQUIRE(problems.size() == 1);
	CHECK(problems[0].vid == r.vid);
	r.kernel().openers = 0;
	REQUIRE(r.w.run_until([&] { return !r.w.lvs.contains("/dev/vg/lockstep.1"); }));
	CHECK(!r.w.volumes.contains(r.vid));
}

TEST_CASE("a volume that is deleted while it is open loses its replica at once, and what waits there fails")
{
	const bool known = GENERATE(true, false);
	Ready r;
	r.kernel().openers = r.kernel().writers = 1;
	if (known) {
		tell(r.w, {{"op", "volume.delete"}, {"vid", r.vid}, {"force", true}});
	} else {
		r.w.kill_daemon();
		r.w.propose({{"op", "volume.delete"}, {"vid", r.vid}, {"force", true}});
		for (int host : {1, 2})
			r.w.propose({{"op", "replica.deleted"}, {"vid", r.vid}, {"host", host}});
		r.w.start_daemon();
	}
	REQUIRE(r.w.run_until([&] { return !r.kernel().replica; }));
	CHECK(r.w.count("abort") == 0);
	r.kernel().pending = 1;
	REQUIRE(r.w.run_until([&] { return r.w.count("abort") > 0; }));
	r.kernel().pending = 0;
	r.w.run_for(10000);
	const int so_far = r.w.count("abort");
	r.w.run_for(20000);
	CHECK(r.w.count("abort") == so_far);
	REQUIRE(r.w.volumes.contains(r.vid));
	r.kernel().openers = r.kernel().writers = 0;
	REQUIRE(r.w.run_until([&] { return r.w.volumes.empty(); }));
}

TEST_CASE("what the kernel holds of a volume that the cluster no longer knows is taken down")
{
	Ready r({2, 3});
	r.w.kill_daemon();
	r.w.propose({{"op", "volume.delete"}, {"vid", r.vid}});
	for (int host : {1, 2, 3})
		r.w.propose({{"op", "replica.deleted"}, {"vid", r.vid}, {"host", host}});
	REQUIRE(!r.w.state.volume(r.vid));
	r.w.start_daemon();
	REQUIRE(r.w.run_until([&] { return r.w.volumes.empty(); }));
}

TEST_CASE("a failed disk is recorded, detached, tried again and repaired")
{
	Ready r;
	r.kernel().replica->failed = true;
	r.w.failing["replica_attach"] = "cannot attach: Input/output error";
	r.w.daemon().kernel_event(event(LKS_CMD_EV_DISK_ERROR, r.vid));
	REQUIRE(r.w.run_until([&] { return r.volume().replica(1)->state == ReplicaState::failed && !r.kernel().replica; }, 5000));
	CHECK(r.kernel().has_device);
	r.w.failing.clear();
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }));
	CHECK(r.volume().replica(1)->state == ReplicaState::stale);
	CHECK(r.w.violations.empty());
}

TEST_CASE("the failed disk of the last good copy is not given up, but attached again")
{
	Ready r;
	auto failed = [&] { return std::count(r.w.proposals.begin(), r.w.proposals.end(), "record.failed"); };
	tell(r.w, {{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 9}});
	r.kernel().replica->failed = true;
	r.w.failing["replica_attach"] = "cannot attach: Input/output error";
	r.w.daemon().kernel_event(event(LKS_CMD_EV_DISK_ERROR, r.vid));
	REQUIRE(r.w.run_until([&] { return !r.kernel().replica; }, 5000));
	REQUIRE(!r.w.daemon().problems().empty());
	CHECK(r.w.daemon().problems()[0].message.find("no other host that is online has a good copy") != std::string::npos);
	const int tried = r.w.count("replica_attach");
	r.w.run_for(3 * DISK_RETRY_MS);
	CHECK((r.w.count("replica_attach") - tried >= 2 && r.w.count("replica_attach") - tried <= 4));
	CHECK((failed() == 0 && r.volume().replica(1)->in_sync()));
	r.w.failing.clear();
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid) && r.w.daemon().problems().empty(); }));
	CHECK((r.volume().replica(1)->in_sync() && r.w.violations.empty()));
}

TEST_CASE("a disk that answers nothing is left out, and attached anew when it answers again")
{
	Ready r;
	r.kernel().replica->stuck = true;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_STATE, r.vid));
	REQUIRE(r.w.run_until([&] { return r.volume().replica(1)->state == ReplicaState::failed; }, 5000));
	REQUIRE(!r.w.daemon().problems().empty());
	CHECK(r.w.daemon().problems()[0].message.find("answers nothing, others go on without it") != std::string::npos);
	r.w.run_for(3 * DISK_RETRY_MS);
	CHECK(r.w.count("replica_detach") == 0);    // what it was given it may yet write
	CHECK(std::count(r.w.proposals.begin(), r.w.proposals.end(), "record.failed") == 1);
	r.kernel().replica->stuck = false;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_STATE, r.vid));
	REQUIRE(r.w.run_until([&] { return r.w.count("replica_detach") == 1 && serving(r.w, r.vid); }));
	CHECK(r.volume().replica(1)->state == ReplicaState::stale);
	CHECK((r.w.daemon().problems().empty() && r.w.violations.empty()));
}

TEST_CASE("a disk that answers nothing stays the last good copy, and nobody waits to detach it")
{
	Ready r;
	tell(r.w, {{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 9}});
	r.kernel().replica->stuck = true;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_STATE, r.vid));
	r.w.run_for(3 * DISK_RETRY_MS);
	CHECK(r.volume().replica(1)->in_sync());
	CHECK(r.w.count("replica_detach") == 0);
	REQUIRE(!r.w.daemon().problems().empty());
	CHECK(r.w.daemon().problems()[0].message.find("no other host has a good copy") != std::string::npos);
	// The others are back: they go on without it.
	tell(r.w, {{"op", "host.status"}, {"host", 2}, {"online", true}, {"now_ms", 99}});
	REQUIRE(r.w.run_until([&] { return r.volume().replica(1)->state == ReplicaState::failed; }, 5000));
	CHECK(r.w.daemon().problems()[0].message.find("others go on without it") != std::string::npos);
	CHECK(r.w.count("replica_detach") == 0);
}

TEST_CASE("a replica whose LV is gone counts as failed, and the device serves on")
{
	Ready r;
	r.w.failing["lv_activate"] = "cannot activate logical volume vg/lockstep.1: a physical volume is missing";
	r.w.reboot();
	REQUIRE(r.w.run_until([&] { return r.volume().replica(1)->state == ReplicaState::failed; }));
	REQUIRE(r.w.run_until([&] { return r.kernel().noted_version == r.volume().version; }, 1000));
	CHECK(r.kernel().has_device);
	r.w.failing.clear();
	REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }));
	CHECK(r.volume().replica(1)->state == ReplicaState::stale);
	CHECK(r.w.violations.empty());
}

TEST_CASE("an error stands in the log once")
{
	Ready r;
	r.w.failing["lv_activate"] = "broken";
	r.w.reboot();
	r.w.run_for(60'000);
	CHECK(std::count(r.w.log_lines.begin(), r.w.log_lines.end(), "volume db1: broken") == 1);
	CHECK(r.w.count("lv_activate") > 5);
	CHECK(r.w.count("lv_activate") < 20);
}

TEST_CASE("a replica whose pool is full is left out if others can go on; the last good one waits for room")
{
	Ready r;
	auto failed = [&] { return std::count(r.w.proposals.begin(), r.w.proposals.end(), "record.failed"); };
	auto noticed = [&](bool full) {
		r.kernel().replica->full = full;
		r.w.daemon().kernel_resync();
		r.w.run_for(1000);
	};
	tell(r.w, {{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 9}});
	noticed(true);
	CHECK(failed() == 0);
	REQUIRE(r.w.daemon().problems().size() == 1);
	CHECK(r.w.daemon().problems()[0].message ==
	      "pool default on this host is full, and no other host has a good copy: what is written waits: extend it, then all goes on by itself");
	r.w.run_for(120'000);
	CHECK((failed() == 0 && r.kernel().replica && r.volume().replica(1)->state == ReplicaState::insync));
	noticed(false);
	CHECK(r.w.daemon().problems().empty());

	tell(r.w, {{"op", "host.status"}, {"host", 2}, {"online", true}, {"now_ms", 9}});
	noticed(true);
	CHECK(failed() == 1);
	CHECK(r.volume().replica(1)->state == ReplicaState::failed);
	CHECK(r.w.count("detach 1") + r.w.count("replica_detach 1") > 0);
}

TEST_CASE("a pool's space is reported when it changes, and only then")
{
	FakeWorld w;
	w.start_daemon();
	w.run_for(3 * POOL_PERIOD_MS);
	CHECK(std::count(w.proposals.begin(), w.proposals.end(), "pool.report") == 0);
	w.groups["vg"].free_bytes = 40 * GIB;
	w.run_for(2 * POOL_PERIOD_MS);
	CHECK(std::count(w.proposals.begin(), w.proposals.end(), "pool.report") == 1);
	CHECK(w.state.pool("default", 1)->free_bytes == 40 * GIB);
}

TEST_CASE("a thin pool's metadata grow before they are full; that they cannot is a problem, and the space is reported all the same")
{
	FakeWorld w;
	w.groups["vg"].extent_bytes = 4 << 20;
	LogicalVolume &pool = w.lvs["/dev/vg/tp"].lv;
	pool.vg = "vg";
	pool.name = "tp";
	pool.is_thin_pool = true;
	pool.size_bytes = 10 * GIB;
	pool.data_percent = 50;
	pool.metadata_percent = 60;
	pool.metadata_bytes = 64 << 20;
	w.propose({{"op", "pool.add"}, {"name", "t"}, {"host", 1}, {"kind", "thin"}, {"vg", "vg"}, {"thin_lv", "tp"}, {"size_bytes", 10 * GIB},
		   {"free_bytes", 5 * GIB}});
	w.start_daemon();
	w.run_for(2 * POOL_PERIOD_MS);
	CHECK(w.count("grow_metadata") == 0);

	pool.metadata_percent = 80;
	w.run_for(2 * POOL_PERIOD_MS);
	CHECK(w.count("grow_metadata") == 1);
	CHECK(pool.metadata_bytes == 80 << 20);
	CHECK(w.state.pool("t", 1)->metadata_percent == 64);
	CHECK(std::count(w.log_lines.begin(), w.log_lines.end(),
			 "pool t: the metadata of thin pool vg/tp were filling up and have grown by 16 MiB") == 1);

	w.failing["grow_metadata"] = "the metadata cannot grow";
	pool.metadata_percent = 90;
	pool.data_percent = 60;
	w.run_for(5 * POOL_PERIOD_MS);
	CHECK(w.state.pool("t", 1)->metadata_percent == 90);
	CHECK(w.state.pool("t", 1)->free_bytes == 4 * GIB);
	auto problems = w.daemon().problems();
	REQUIRE(problems.size() == 1);
	CHECK(problems[0].message == "the metadata cannot grow");
	CHECK(std::count(w.log_lines.begin(), w.log_lines.end(), "pool t: the metadata cannot grow") == 1);

	w.failing.clear();
	w.run_for(2 * POOL_PERIOD_MS);
	CHECK(w.daemon().problems().empty());
	CHECK(w.state.pool("t", 1)->metadata_percent == 57);    // two looks, two steps
}

TEST_CASE("a pool whose volume group is gone is a problem with a name")
{
	FakeWorld w;
	w.groups.clear();
	w.start_daemon();
	w.run_for(1000);
	auto problems = w.daemon().problems();
	REQUIRE(problems.size() == 1);
	CHECK(problems[0].message == "there is no volume group vg");
}

TEST_CASE("the soft report has the shape that the API expects")
{
	Ready r;
	r.kernel().peers = {{2, LKS_SYNC_RUNNING, 77}};
	r.kernel().role = LKS_ACTIVE;
	r.w.daemon().kernel_resync();
	r.w.run_for(500);
	const Json v = r.w.daemon().soft_report().at("volumes").at("1");
	CHECK(v.at("role") == "active");
	CHECK(v.at("lv_path") == "/dev/vg/lockstep.1");
	CHECK(v.at("admitted") == true);
	CHECK(v.at("peers").at("2") == Json{{"sync_state", "running"}, {"dirty_blocks", 77}});
	CHECK(!v.contains("problem"));
}

TEST_CASE("a host says what its replicas take of their pools, as LVM told when it was last asked")
{
	Ready r;
	auto said = [&] { return r.w.daemon().soft_report().at("volumes").at("1").value("allocated_bytes", Json()); };
	auto looks = [&] { r.w.run_for(2 * POOL_PERIOD_MS); };
	LogicalVolume &lv = r.w.lvs.at("/dev/vg/lockstep.1").lv;
	looks();
	CHECK(said() == lv.size_bytes);    // thick

	LogicalVolume pool;
	pool.vg = "vg", pool.name = "tp", pool.is_thin_pool = true, pool.size_bytes = 10 * GIB, pool.data_percent = 50;
	LvmReport report;
	LogicalVolume thin = lv;
	thin.pool = "tp", thin.data_percent = 12.5;
	report.volumes = {pool, thin, lv};
	CHECK(allocation(report, "vg", "tp") == std::map<std::string, uint64_t>{{thin.path, thin.size_bytes / 8}});
	CHECK(allocation(report, "vg", "") == std::map<std::string, uint64_t>{{lv.path, lv.size_bytes}});
	CHECK(allocation(report, "other", "").empty());
	report.volumes[1].data_percent = -1;    // inactive
	CHECK(allocation(report, "vg", "tp").empty());

	// A new figure makes a new report.
	const uint64_t revision = r.w.daemon().soft_revision();
	lv.size_bytes += 4 << 20;
	looks();
	CHECK(said() == lv.size_bytes);
	CHECK(r.w.daemon().soft_revision() != revision);
	r.w.failing["report"] = "LVM hangs";
	looks();
	CHECK(said() == lv.size_bytes);    // the last that was known
}

TEST_CASE("when a host's report is another one its revision is, too; when nothing happens neither is")
{
	FakeWorld w;
	w.start_daemon();
	Json report = w.daemon().soft_report();
	uint64_t revision = w.daemon().soft_revision();
	unsigned reports = 0;
	auto passes = [&](uint64_t ms) {
		for (uint64_t end = w.now_ms + ms; w.now_ms < end;) {
			w.run_for(100);
			Json now = w.daemon().soft_report();
			if (now == report)
				continue;
			CHECK(w.daemon().soft_revision() != revision);
			report = std::move(now);
			revision = w.daemon().soft_revision();
			reports++;
		}
	};
	const uint32_t vid = create_volume(w);
	passes(500);
	beta_created(w, vid);
	passes(3000);
	REQUIRE(serving(w, vid));
	w.volumes.at(vid).open_waiters = 1;
	w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, vid));
	passes(3000);
	bool held = false;
	w.daemon().suspend_writes(vid, 5, [&](Result<Json> answer) { held = bool(answer); });
	passes(5000);
	REQUIRE(held);
	REQUIRE(report["volumes"]["1"].contains("suspended_since_ms"));
	w.daemon().resume_writes(vid, [](Result<Json>) {});
	passes(5000);
	REQUIRE_FALSE(report["volumes"]["1"].contains("suspended_since_ms"));
	w.failing["config_set"] = "the kernel is out of memory";
	tell(w, {{"op", "record.failed"}, {"vid", vid}, {"host", 2}});
	passes(3000);
	REQUIRE(report["volumes"]["1"].contains("problem"));
	w.failing.clear();
	passes(40'000);
	REQUIRE_FALSE(report["volumes"]["1"].contains("problem"));
	CHECK(reports > 6);
	revision = w.daemon().soft_revision();
	w.run_for(DUMP_PERIOD_MS / 2);
	CHECK(w.daemon().soft_revision() <= revision + 3);    // one dump at most
}

TEST_CASE("events are numbered without a hole, or the kernel is dumped again")
{
	EventSequence s;
	CHECK(s.follows(7));
	CHECK(s.follows(8));
	CHECK(!s.follows(10));
	CHECK(s.follows(11));
	CHECK(!s.follows(11));
	s.forget();
	CHECK(s.follows(1));
}
