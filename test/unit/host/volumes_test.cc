// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler with volumes in use: handover, what happens without a quorum, growth, snapshots. The long ones are struck by a
// fault at every single step and must converge.
#include <catch2/generators/catch_generators.hpp>

#include "ready.h"

using namespace lockstep;
using namespace lockstep::test;

TEST_CASE("the primary follows the opener to its host, after a while, and only once")
{
	Open r;
	KernelEvent closed = event(LKS_CMD_EV_CLOSE, r.vid);
	closed.session = r.volume().opener(1)->session;
	r.kernel().writers = r.kernel().openers = 0;
	r.w.daemon().kernel_event(closed);
	REQUIRE(r.w.run_until([&] { return r.volume().openers.empty(); }));
	tell(r.w, {{"op", "record.open"}, {"vid", r.vid}, {"host", 2}});
	r.w.run_for(FOLLOW_AFTER_MS - 500);
	CHECK(r.w.count("hand_over") == 0);
	REQUIRE(r.w.run_until([&] { return r.volume().primary == 2; }, 3000));
	CHECK(r.volume().drained);
	CHECK(r.volume().term == 3);
	CHECK(r.w.count("hand_over") == 1);
	r.w.run_for(20'000);
	CHECK(r.w.count("hand_over") == 1);
	CHECK(quiet(r.w));
}

TEST_CASE("what an administrator chose is handed over to at once, also if the kernel refuses it first")
{
	Open r;
	r.w.failing["hand_over"] = "cannot hand over: not in sync";
	tell(r.w, {{"op", "volume.primary"}, {"vid", r.vid}, {"host", 2}});
	r.w.run_for(500);
	CHECK(r.w.count("hand_over") >= 1);
	CHECK(r.volume().primary == 1);
	r.w.failing.clear();
	REQUIRE(r.w.run_until([&] { return r.volume().primary == 2; }, 3000));
	r.w.run_for(1000);
	CHECK(quiet(r.w));
}

TEST_CASE("without a quorum requests fail only where that was asked for, and no longer when it is back")
{
	Open r;
	CHECK(r.w.count("tune") == 0);
	r.w.quorum = false;
	r.w.run_for(2000);
	CHECK(r.w.count("tune") == 0);
	r.w.quorum = true;
	tell(r.w, {{"op", "volume.set"}, {"vid", r.vid}, {"no_quorum", "error"}});
	r.w.run_for(1000);
	r.w.quorum = false;
	REQUIRE(r.w.run_until([&] { return r.w.tuned[r.vid].freeze_ms == ERROR_AFTER_MS; }, 1000));
	r.w.kill_daemon();
	r.w.start_daemon();
	r.w.quorum = true;
	REQUIRE(r.w.run_until([&] { return r.w.tuned[r.vid].freeze_ms == 0; }, 3000));
	CHECK(quiet(r.w));
	// The policy changes while this host's daemon is dead: the next one finds what the kernel was told.
	r.w.quorum = false;
	REQUIRE(r.w.run_until([&] { return r.w.tuned[r.vid].freeze_ms == ERROR_AFTER_MS; }, 1000));
	r.w.kill_daemon();
	r.w.propose({{"op", "volume.set"}, {"vid", r.vid}, {"no_quorum", "freeze"}});
	r.w.quorum = true;
	r.w.start_daemon();
	REQUIRE(r.w.run_until([&] { return r.w.tuned[r.vid].freeze_ms == 0; }, 3000));
	r.w.run_for(1000);
	CHECK(r.w.tuned[r.vid].freeze_ms == 0);
}

TEST_CASE("how fast resync goes is told to the kernel, also by a daemon that was away when it changed")
{
	Open r;
	CHECK(r.w.count("tune") == 0);
	tell(r.w, {{"op", "option.set"}, {"name", "resync-ceiling-mib"}, {"value", "200"}});
	REQUIRE(r.w.run_until([&] { return r.w.tuned[r.vid] == VolumeTune{0, 200 << 10, 0, 0}; }, 1000));
	r.w.kill_daemon();
	r.w.propose({{"op", "option.set"}, {"name", "resync-floor-mib"}, {"value", "1.5"}});
	r.w.propose({{"op", "option.set"}, {"name", "resync-target-ms"}, {"value", "20"}});
	r.w.propose({{"op", "option.set"}, {"name", "resync-ceiling-mib"}, {"value", "off"}});
	r.w.start_daemon();
	REQUIRE(r.w.run_until([&] { return r.w.tuned[r.vid] == VolumeTune{0, 0, 1536, 20}; }, 3000));
	CHECK(quiet(r.w));
}

TEST_CASE("a volume grows: killed or failing at any step, on this host or after a reboot, it converges")
{
	const Fault fault = GENERATE(Fault::none, Fault::fails, Fault::killed_before, Fault::killed_after);
	const bool reboot = GENERATE(false, true);
	uint64_t first = 0, last = 0;
	for (uint64_t k = 0; k <= last; k++) {
		INFO("fault " << int(fault) << " at step " << k << (reboot ? ", then a reboot" : ""));
		Open r;
		first = r.w.steps;
		r.w.fault = fault;
		r.w.fault_at = k ? first + k : 0;
		r.w.reboot_when_killed = reboot;
		tell(r.w, {{"op", "volume.resize"}, {"vid", r.vid}, {"size_bytes", 3 * GIB}});
		tell(r.w, {{"op", "replica.moved"}, {"vid", r.vid}, {"host", 2}, {"offset", 3 * GIB}});
		tell(r.w, {{"op", "replica.grown"}, {"vid", r.vid}, {"host", 2}});
		REQUIRE(r.w.run_until([&] { return all_moved(r.volume()); }));
		CHECK((!r.w.volumes.contains(r.vid) || r.kernel().size_bytes == GIB));
		tell(r.w, {{"op", "volume.grown"}, {"vid", r.vid}});
		REQUIRE(r.w.run_until([&] { return r.w.volumes.contains(r.vid) && r.kernel().size_bytes == 3 * GIB && serving(r.w, r.vid); }));
		CHECK(r.kernel().replica->offset == 3 * GIB);
		CHECK(r.kernel().replica->move_offset == 0);
		CHECK(r.w.lvs.at("/dev/vg/lockstep.1").lv.size_bytes >= 3 * GIB + metadata_bytes(3 * GIB, LKS_BLOCK_DEFAULT));
		r.w.run_for(60'000);
		CHECK(quiet(r.w));
		if (k == 0 && fault != Fault::none)
			last = r.w.steps - first;
	}
	CHECK((last > 5 || fault == Fault::none));
}

TEST_CASE("growth: after a reboot in between, the kernel zeroes what becomes data before the log hears of it")
{
	Open r;
	tell(r.w, {{"op", "volume.resize"}, {"vid", r.vid}, {"size_bytes", 3 * GIB}});
	r.w.on_call = [&](const std::string &call) {
		if (call == "meta_moved 1")
			throw std::string("power");
	};
	try {
		r.w.run_for(20'000);
		FAIL("it did not come so far");
	} catch (const std::string &) {
	}
	r.w.on_call = nullptr;
	CHECK(r.volume().replica(1)->wipe);
	r.w.calls.clear();
	r.w.reboot();
	REQUIRE(r.w.run_until([&] { return r.w.volumes.contains(r.vid) && r.kernel().replica && !r.volume().replica(1)->wipe; }));
	CHECK(r.w.lvs.at("/dev/vg/lockstep.1").retire_at == 0);
	CHECK(r.kernel().replica->offset == 3 * GIB);
	CHECK(r.w.count("meta_moved") == 0);
	CHECK(quiet(r.w));
}

namespace {

struct Taking : Open {
	uint32_t take(const std::string &name = "s1", bool prepare = false)
	{
		nlohmann::json entry = {{"op", "snapshot.create"}, {"name", name}, {"vids", {vid}}, {"uuids", {UUID3}}, {"now_ms", 1}};
		if (prepare)
			entry["prepare"] = true;
		auto answer = w.propose(entry);
		w.daemon().look();
		return answer["sids"][0];
	}
	// What beta does of it.
	void beta(uint32_t sid)
	{
		const Snapshot *s = w.state.snapshot(sid);
		const SnapshotCopy *copy = s ? s->copy(2) : nullptr;
		if (copy && s->phase == SnapshotPhase::preparing && !copy->prepared)
			tell(w, {{"op", "snapshot.prepared"}, {"sid", sid}, {"host", 2}, {"attempt", s->attempt}});
		else if (copy && s->phase == SnapshotPhase::taking && !copy->taken)
			tell(w, {{"op", "snapshot.taken"}, {"sid", sid}, {"host", 2}, {"attempt", s->attempt}});
		else if (copy && (s->phase == SnapshotPhase::discarding || s->phase == SnapshotPhase::deleting))
			tell(w, {{"op", "snapshot.removed"}, {"sid", sid}, {"host", 2}});
	}
	bool settled(uint32_t sid)
	{
		beta(sid);
		const Snapshot *s = w.state.snapshot(sid);
		return !s || s->phase == SnapshotPhase::ready;
	}
	size_t copies()
	{
		return size_t(std::count_if(w.lvs.begin(), w.lvs.end(), [](const auto &lv) { return lv.first.find(".s") != std::string::npos; }));
	}
};

}    // namespace

TEST_CASE("a snapshot is taken in the order that makes it one point, and deleted")
{
	Taking r;
	const uint32_t sid = r.take();
	REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
	REQUIRE(r.w.state.snapshot(sid));
	CHECK(r.w.state.snapshot(sid)->attempt == 1);
	CHECK(in_order(r.w, {"quiesce 1", "snapshot.held 0", "flush lockstep.1", "snapshot 1", "snapshot.taken 0", "resume 1", "snapshot.resumed 0"}));
	CHECK(r.kernel().hold == 0);
	CHECK(r.copies() == 1);
	const auto calls = r.w.calls;
	r.w.run_for(60'000);
	CHECK(r.w.calls == calls);
	tell(r.w, {{"op", "snapshot.delete"}, {"sid", sid}});
	REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
	CHECK(r.copies() == 0);
	CHECK(quiet(r.w));
}

TEST_CASE("the log is told what a snapshot takes of a thin pool, as soon as all programs understand that")
{
	for (const uint32_t level : {LEVEL_ALLOCATED - 1, LEVEL_ALLOCATED}) {
		Taking r;
		r.w.make_thin();
		LogicalVolume &replica = r.w.lvs.at("/dev/vg/lockstep.1").lv;
		replica.data_percent = 25;
		for (auto &[id, host] : r.w.state.hosts)
			host.level = level;
		const uint32_t sid = r.take();
		REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
		CHECK(r.w.state.snapshot(sid)->copy(1)->allocated_bytes == (level < LEVEL_ALLOCATED ? 0 : replica.size_bytes / 4));
		CHECK(r.w.state.snapshot(sid)->copy(2)->allocated_bytes == 0);    // beta's host has not told it
	}
}

TEST_CASE("what LVM does for a snapshot it does before writes are held")
{
	const bool thin = GENERATE(true, false);
	Taking r;
	if (thin)
		r.w.make_thin();
	const uint32_t sid = r.take("s1", true);
	REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
	REQUIRE(r.w.state.snapshot(sid));
	CHECK(r.w.state.snapshot(sid)->attempt == 1);
	CHECK(in_order(r.w, {"prepare 1", "flush lockstep.1", "snapshot.prepared 0", "quiesce 1", "snapshot.held 0", "snapshot 1", "snapshot.taken 0"}));
	const auto held = std::ranges::find(r.w.calls, "snapshot.held 0"), taken = std::ranges::find(r.w.calls, "snapshot 1");
	CHECK(std::count(held, taken, "flush lockstep.1") == 1);    // again
	CHECK(r.w.count("thin_delete") == (thin ? 1 : 0));
	CHECK(r.copies() == 1);
	CHECK(r.kernel().hold == 0);
	CHECK(quiet(r.w));
}

TEST_CASE("a snapshot that cannot be prepared holds up nobody, and LVM's words are the reason")
{
	Taking r;
	r.w.make_thin();
	r.w.failing["prepare"] = "cannot create logical volume vg/x: the pool is full";
	const uint32_t sid = r.take("s1", true);
	REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
	CHECK_FALSE(r.w.state.snapshot(sid));
	CHECK(r.w.state.snapshot_failures.at(sid).message ==
	      "snapshot s1 of volume db1 could not be prepared on host alpha: cannot create logical volume vg/x: the pool is full");
	CHECK(r.w.count("quiesce") == 0);
	CHECK(r.w.count("prepare") == 2);    // two tries
	CHECK(r.copies() == 0);
}

TEST_CASE("where disks do not confirm what they have in memory no copy is taken, and none is left")
{
	const auto [prepare, thin] = GENERATE(std::pair(false, false), std::pair(false, true), std::pair(true, false), std::pair(true, true));
	const bool in_hold = !prepare || GENERATE(false, true);
	Taking r;
	if (thin)
		r.w.make_thin();
	const std::string why = "what was written to /dev/mapper/vg-lockstep.1 cannot be made to last: Input/output error";
	if (in_hold)
		r.w.on_call = [&](const std::string &call) {
			if (call == "quiesce 1")
				r.w.failing["flush"] = why;
			else if (call == "prepare 1")
				r.w.failing.clear();
		};
	else
		r.w.failing["flush"] = why;
	const uint32_t sid = r.take("s1", prepare);
	REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
	CHECK_FALSE(r.w.state.snapshot(sid));
	CHECK(r.w.state.snapshot_failures.at(sid).message ==
	      "snapshot s1 of volume db1 could not be " + std::string(in_hold ? "taken" : "prepared") + " on host alpha: " + why);
	CHECK(r.w.count("snapshot 1") == 0);
	CHECK(r.w.count("quiesce") == (in_hold ? 2 : 0));    // two tries
	CHECK(r.copies() == 0);
	CHECK(r.kernel().hold == 0);
	CHECK(quiet(r.w));
}

TEST_CASE("a snapshot: killed or failing at any step, there is a whole one or none, and no hold stays")
{
	const auto [prepare, thin] = GENERATE(std::pair(false, false), std::pair(true, false), std::pair(true, true));
	const Fault fault = GENERATE(Fault::fails, Fault::killed_before, Fault::killed_after);
	uint64_t last = 1;
	for (uint64_t k = 0; k <= last; k++) {
		INFO("fault " << int(fault) << " at step " << k << (prepare ? ", prepared" : ""));
		Taking r;
		if (thin)
			r.w.make_thin();
		const uint64_t begun = r.w.steps;
		r.w.fault = fault;
		r.w.fault_at = k ? begun + k : 0;
		const uint32_t sid = r.take("s1", prepare);
		REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
		const bool there = r.w.state.snapshot(sid);
		CHECK(there);    // one fault does not use up both tries
		r.w.run_for(30'000);
		CHECK(r.copies() == (there ? 1 : 0));
		CHECK(r.kernel().hold == 0);
		CHECK(quiet(r.w));
		if (k == 0)
			last = r.w.steps - begun;
	}
	CHECK(last >= 6);
}

TEST_CASE("a hold that ends by itself: what was taken is discarded, one more try, then the reason")
{
	Taking r;
	const uint32_t sid = r.take();
	unsigned broken = 0;
	auto unhold = [&](unsigned times) {
		const Snapshot *s = r.w.state.snapshot(sid);
		if (s && s->phase == SnapshotPhase::taking && broken < times && r.kernel().hold) {
			broken++;
			r.w.unquiesce(r.vid);
		} else if (s && s->attempt > broken) {
			r.beta(sid);
		} else if (s && s->phase != SnapshotPhase::taking) {
			r.beta(sid);
		}
		return !s || s->phase == SnapshotPhase::ready;
	};
	SECTION("once")
	{
		REQUIRE(r.w.run_until([&] { return unhold(1); }));
		REQUIRE(r.w.state.snapshot(sid));
		CHECK(r.w.state.snapshot(sid)->attempt == 2);
		CHECK(r.copies() == 1);
	}
	SECTION("twice")
	{
		REQUIRE(r.w.run_until([&] { return unhold(2); }));
		CHECK_FALSE(r.w.state.snapshot(sid));
		CHECK(r.w.state.snapshot_failures.at(sid).message ==
		      "snapshot s1 of volume db1 was given up: its volume could not be held still for long enough");
		CHECK(r.copies() == 0);
	}
	CHECK(r.w.violations.empty());
}

TEST_CASE("a hold is renewed while a host is slow to take its copy, but not for ever, and not by a dead daemon")
{
	Taking r;
	const uint32_t sid = r.take();
	const auto taking = [&] { return r.w.state.snapshot(sid)->phase == SnapshotPhase::taking && r.w.state.snapshot(sid)->copy(1)->taken; };
	REQUIRE(r.w.run_until(taking));
	SECTION("it takes 15 s")
	{
		r.w.run_for(15'000);
		REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
		REQUIRE(r.w.state.snapshot(sid));
		CHECK(r.w.state.snapshot(sid)->attempt == 1);
		CHECK(r.kernel().hold == 0);
		CHECK(quiet(r.w));
	}
	SECTION("it takes too long")
	{
		r.w.run_for(HOLD_MOST_MS - 1000);
		CHECK(taking());
		CHECK(r.kernel().hold);
		REQUIRE(r.w.run_until([&] { return !r.kernel().hold; }, 2000));
		REQUIRE(r.w.run_until([&] { return r.w.state.snapshot(sid)->phase == SnapshotPhase::discarding; }, 1000));
	}
	SECTION("the daemon is dead")
	{
		r.w.kill_daemon();
		r.w.run_for(HOLD_MS + HOLD_RENEW_MS);
		CHECK(r.kernel().hold == 0);
	}
}

TEST_CASE("LVM's words are the reason for a snapshot that cannot be taken")
{
	Taking r;
	r.w.failing["snapshot"] = "cannot create logical volume vg/x: the pool is full";
	const uint32_t sid = r.take();
	REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
	CHECK_FALSE(r.w.state.snapshot(sid));
	CHECK(r.w.state.snapshot_failures.at(sid).message ==
	      "snapshot s1 of volume db1 could not be taken on host alpha: cannot create logical volume vg/x: the pool is full");
	CHECK(r.kernel().hold == 0);
}

namespace {

void close(Taking &r)
{
	KernelEvent closed = event(LKS_CMD_EV_CLOSE, r.vid);
	closed.session = r.volume().opener(1) ? r.volume().opener(1)->session : 1;
	r.kernel().writers = r.kernel().openers = 0;
	r.kernel().session_ended = closed.session;
	r.w.daemon().kernel_event(closed);
	REQUIRE(r.w.run_until([&] { return r.volume().openers.empty(); }));
}

}    // namespace

TEST_CASE("a revert is not held up by a disk that takes nothing, once another replica has the content")
{
	Taking r;
	r.w.make_thin();    // as reverting needs
	for (auto &[id, host] : r.w.state.hosts)
		host.level = LEVEL;
	const uint32_t sid = r.take();
	REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
	close(r);
	r.w.failing["clone"] = "cannot create logical volume vg/x: Input/output error";
	tell(r.w, {{"op", "snapshot.revert"}, {"sid", sid}});
	r.w.run_for(120'000);
	CHECK(r.volume().phase == Phase::creating);
	CHECK(r.volume().replica(1));
	beta_created(r.w, r.vid);
	REQUIRE(r.w.run_until([&] { return r.volume().phase == Phase::ready; }));
	CHECK_FALSE(r.volume().replica(1));
	CHECK(r.w.state.failures.at(r.vid).message == "volume db1 was reverted without its replica on host alpha: cannot create logical volume vg/x: Input/output error");
}

TEST_CASE("a volume is restored, another is reverted, the first gets its content: killed or failing at any step, it converges")
{
	const Fault fault = GENERATE(Fault::fails, Fault::killed_before, Fault::killed_after);
	uint64_t last = 1;
	for (uint64_t k = 0; k <= last; k++) {
		INFO("fault " << int(fault) << " at step " << k);
		Taking r;
		r.w.make_thin();    // as reverting needs
		const uint32_t sid = r.take();
		REQUIRE(r.w.run_until([&] { return r.settled(sid); }));
		const uint64_t begun = r.w.steps;
		r.w.fault = fault;
		r.w.fault_at = k ? begun + k : 0;
		uint32_t copy = r.w.propose({{"op", "snapshot.restore"}, {"sid", sid}, {"new", "db2"}, {"uuid", UUID2}})["vid"];
		beta_created(r.w, copy);
		REQUIRE(r.w.run_until([&] { return serving(r.w, copy); }));
		CHECK(r.w.lvs.at(replica_lv_path("vg", copy)).content == std::string(UUID3) + ".1");

		close(r);
		tell(r.w, {{"op", "snapshot.revert"}, {"sid", sid}});
		const std::string content = std::string(UUID3) + "." + std::to_string(r.volume().version);
		beta_created(r.w, r.vid);
		REQUIRE(r.w.run_until([&] { return serving(r.w, r.vid); }));
		CHECK(r.w.lvs.at("/dev/vg/lockstep.1").content == content);

		// The other one gets it once more, in its own place.
		tell(r.w, {{"op", "snapshot.revert"}, {"sid", sid}, {"onto", copy}});
		const std::string twice = std::string(UUID3) + "." + std::to_string(r.w.state.volume(copy)->version);
		CHECK(twice != std::string(UUID3) + ".1");
		beta_created(r.w, copy);
		REQUIRE(r.w.run_until([&] { return serving(r.w, copy); }));
		CHECK(r.w.lvs.at(replica_lv_path("vg", copy)).content == twice);
		r.w.run_for(60'000);
		CHECK(quiet(r.w));
		if (k == 0)
			last = r.w.steps - begun;
	}
	CHECK(last >= 15);
}
