// SPDX-License-Identifier: GPL-2.0-or-later
//
// Snapshots, as they are agreed on: the transaction, its failures, deletion, restoring and reverting.
#include "fixture.h"

#include "lockstepd/cluster/controller.h"
#include "lockstepd/cluster/repair.h"

#include <catch2/generators/catch_generators.hpp>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct World : Cluster {
	uint32_t a = 0, b = 0;

	World()
	{
		form();
		a = volume("a", {1, 2});
		b = volume("b", {2, 3});
		open(a, 1);
		open(b, 3);
	}

	json create_of(std::vector<uint32_t> vids, const std::string &name = "s")
	{
		json uuids = json::array();
		for (size_t i = 0; i < vids.size(); i++)
			uuids.push_back(uuid(3000 + ++serial));
		return {{"op", "snapshot.create"}, {"name", name}, {"vids", vids}, {"uuids", uuids}, {"now_ms", 1}};
	}

	const Snapshot &snap(uint32_t sid) { return *state.snapshot(sid); }

	json of(const char *op, uint32_t sid, HostId host)
	{
		return {{"op", std::string("snapshot.") + op}, {"sid", sid}, {"host", host}, {"attempt", snap(sid).attempt}, {"hold", 100 + sid}};
	}

	// Takes a snapshot of one volume as a whole; its sid.
	uint32_t take(uint32_t vid, const std::string &name = "s")
	{
		uint32_t sid = good(create_of({vid}, name))["sids"][0];
		good(of("held", sid, vol(vid).primary));
		for (const SnapshotCopy &copy : std::vector<SnapshotCopy>(snap(sid).copies))
			good(of("taken", sid, copy.host));
		good(of("resumed", sid, vol(vid).primary));
		REQUIRE(snap(sid).phase == SnapshotPhase::ready);
		return sid;
	}
};

}    // namespace

TEST_CASE("several volumes are taken at one point: each phase waits for all of them")
{
	World w;
	json answer = w.good(w.create_of({w.a, w.b}));
	uint32_t x = answer["sids"][0], y = answer["sids"][1];
	CHECK(answer["set"] == x);
	CHECK(has(w.bad(5, w.of("held", x, 2)), "beta is not the primary"));
	CHECK(w.good(w.of("held", x, 1))["changed"] == true);
	CHECK(w.good(w.of("held", x, 1))["changed"] == false);
	CHECK(w.snap(x).phase == SnapshotPhase::quiescing);
	CHECK(w.good(w.of("taken", x, 1))["changed"] == false);    // too early: it counts for nothing
	w.good(w.of("held", y, 3));
	CHECK(w.snap(x).phase == SnapshotPhase::taking);
	CHECK(w.snap(y).copies.size() == 2);
	w.bad(3, w.of("taken", x, 3));
	for (auto [sid, host] : std::vector<std::pair<uint32_t, int>>{{x, 1}, {x, 2}, {y, 2}})
		w.good(w.of("taken", sid, HostId(host)));
	CHECK(w.good(w.of("resumed", x, 1))["changed"] == false);
	w.good(w.of("taken", y, 3));
	CHECK(w.snap(x).phase == SnapshotPhase::resuming);
	CHECK(has(w.bad(5, w.of("resumed", x, 2)), "does not hold it"));
	w.good(w.of("resumed", x, 1));
	CHECK(w.snap(x).phase == SnapshotPhase::resuming);
	w.good(w.of("resumed", y, 3));
	CHECK(w.snap(x).phase == SnapshotPhase::ready);
	CHECK(w.snap(y).phase == SnapshotPhase::ready);
	CHECK(restore(snapshot(w.state)).operator*() == w.state);
	CHECK(w.good({{"op", "snapshot.broken"}, {"set", x}, {"attempt", 1}, {"message", "late"}})["changed"] == false);
}

TEST_CASE("what a snapshot takes of a thin pool is known from when it is taken, and a copy of it takes the same")
{
	World w;
	for (auto &[id, host] : w.state.hosts)
		host.level = LEVEL;
	const uint32_t sid = w.good(w.create_of({w.a}))["sids"][0];
	w.good(w.of("held", sid, 1));
	const json taken = with(w.of("taken", sid, 1), {{"allocated", 5 << 20}});
	CHECK(level_of(taken) == LEVEL_ALLOCATED);
	CHECK(level_of(w.of("taken", sid, 2)) == LEVEL_FIRST);
	w.bad(2, with(taken, {{"allocated", -1}}));
	w.good(taken);
	w.good(w.of("taken", sid, 2));    // a host of a pool that does not tell
	w.good(w.of("resumed", sid, 1));
	CHECK(w.snap(sid).copy(1)->allocated_bytes == 5 << 20);
	CHECK(w.snap(sid).copy(2)->allocated_bytes == 0);
	w.good({{"op", "snapshot.copy"}, {"sid", sid}, {"host", 3}, {"pool", "default"}});
	w.good({{"op", "snapshot.copied"}, {"sid", sid}, {"host", 3}, {"added", w.snap(sid).arriving[0].added}, {"md_offset", w.snap(sid).size_bytes}});
	CHECK(w.snap(sid).copy(3)->allocated_bytes == 5 << 20);
	const auto again = restore(json::to_cbor(to_json(w.state)));
	REQUIRE(again);
	CHECK(again->snapshots == w.state.snapshots);
}

TEST_CASE("what takes time is done before the hold: all hosts prepare, then all hold, then they take")
{
	World w;
	const json entry = with(w.create_of({w.a, w.b}), {{"prepare", true}});
	CHECK(level_of(entry) == LEVEL_PREPARE);
	const uint32_t x = w.good(entry)["sids"][0], y = x + 1;
	CHECK(level_of(w.of("prepared", x, 1)) == LEVEL_PREPARE);
	CHECK(w.snap(x).phase == SnapshotPhase::preparing);
	CHECK(w.snap(x).copies.size() == 2);
	CHECK(w.good(w.of("held", x, 1))["changed"] == false);    // too early: it counts for nothing
	CHECK(w.good(w.of("taken", x, 1))["changed"] == false);
	CHECK(has(w.bad(5, {{"op", "snapshot.delete"}, {"sid", x}}), "still being taken"));
	CHECK(w.good(w.of("prepared", x, 1))["changed"] == true);
	CHECK(w.good(w.of("prepared", x, 1))["changed"] == false);
	w.bad(3, w.of("prepared", x, 3));
	w.good(w.of("prepared", x, 2));
	w.good(w.of("prepared", y, 2));
	CHECK(w.snap(x).phase == SnapshotPhase::preparing);    // as long as one of the set is not
	CHECK(restore(snapshot(w.state)).operator*() == w.state);
	w.good(w.of("prepared", y, 3));
	CHECK(w.snap(x).phase == SnapshotPhase::quiescing);
	w.good(w.of("held", x, 1));
	w.good(w.of("held", y, 3));
	CHECK(w.snap(x).phase == SnapshotPhase::taking);
	CHECK(w.snap(x).copies.size() == 2);
	CHECK(w.good(w.of("prepared", x, 1))["changed"] == false);
	for (auto [sid, host] : std::vector<std::pair<uint32_t, int>>{{x, 1}, {x, 2}, {y, 2}, {y, 3}})
		w.good(w.of("taken", sid, HostId(host)));
	w.good(w.of("resumed", x, 1));
	w.good(w.of("resumed", y, 3));
	CHECK(w.snap(y).phase == SnapshotPhase::ready);
	CHECK(restore(snapshot(w.state)).operator*() == w.state);
}

TEST_CASE("what happens to hosts while a snapshot is prepared")
{
	World w;
	for (auto &[id, host] : w.state.hosts)
		host.level = LEVEL;
	const uint32_t sid = w.good(with(w.create_of({w.a}), {{"prepare", true}}))["sids"][0];
	w.good({{"op", "snapshot.deadline"}, {"set", sid}, {"at_ms", 60'000}});
	const auto fail_beta = [&] { w.good({{"op", "record.failed"}, {"vid", w.a}, {"host", 2}}); };
	const auto removed = [&](HostId host) { w.good({{"op", "snapshot.removed"}, {"sid", sid}, {"host", host}}); };
	SECTION("one goes offline: nobody waits for it")
	{
		w.good(w.of("prepared", sid, 1));
		CHECK(decide(w.state, {}, 3).empty());
		w.good({{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 2}});
		json told;
		for (const json &d : decide(w.state, {}, 3))
			if (d["op"] == "snapshot.broken")
				told = d;
		REQUIRE(told.is_object());
		CHECK(told["message"] == "snapshot s of volume a was given up: host beta went offline meanwhile: try again");
		w.good(told);
		CHECK(w.snap(sid).phase == SnapshotPhase::discarding);
	}
	SECTION("one that has prepared goes offline: the hold will show")
	{
		w.good(w.of("prepared", sid, 2));
		w.good({{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 2}});
		for (const json &d : decide(w.state, {}, 3))
			CHECK(d["op"] != "snapshot.broken");
	}
	SECTION("one that has prepared is gone when all hold still: writes do not wait for it")
	{
		for (HostId host : {1, 2})
			w.good(w.of("prepared", sid, host));
		w.good(w.of("held", sid, 1));
		const auto broken = [&] {
			const auto list = decide(w.state, {}, 3);
			return std::ranges::count_if(list, [](const json &d) {
				return d["op"] == "snapshot.broken" && has(d["message"], "host beta went offline meanwhile");
			});
		};
		const bool after = GENERATE(false, true);
		if (after)
			w.good(w.of("taken", sid, 2));    // it has done its part, and the copy counts
		CHECK(broken() == 0);
		w.good({{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 2}});
		CHECK(broken() == !after);
	}
	SECTION("one takes too long")
	{
		const auto late = decide(w.state, {}, 60'001);
		REQUIRE(late.size() == 1);
		CHECK(has(late[0]["message"], "not all hosts could prepare it within 60 s"));
	}
	SECTION("the replica of one fails: its copy would be of another point; the second try is without it")
	{
		for (HostId host : {1, 2})
			w.good(w.of("prepared", sid, host));
		fail_beta();
		w.good(w.of("held", sid, 1));
		CHECK(w.snap(sid).phase == SnapshotPhase::discarding);
		CHECK(has(w.snap(sid).failure, "the replica on host beta went out of sync"));
		removed(1);
		removed(2);
		CHECK(w.snap(sid).phase == SnapshotPhase::preparing);
		CHECK(w.snap(sid).attempt == 2);
		CHECK(w.snap(sid).copies.size() == 1);
		CHECK_FALSE(w.snap(sid).copies[0].prepared);
		w.good(w.of("prepared", sid, 1));
		w.good(w.of("held", sid, 1));
		w.good(w.of("taken", sid, 1));
		w.good(w.of("resumed", sid, 1));
		CHECK(w.snap(sid).phase == SnapshotPhase::ready);
	}
	SECTION("a replica comes into sync: it gets no copy now")
	{
		w.good({{"op", "snapshot.broken"}, {"set", sid}, {"attempt", 1}, {"message", "x"}, {"final", true}});
		removed(1);
		removed(2);
		fail_beta();
		const uint32_t next = w.good(with(w.create_of({w.a}), {{"prepare", true}}))["sids"][0];
		w.good({{"op", "record.repaired"}, {"vid", w.a}, {"host", 2}});
		const Volume &v = w.vol(w.a);
		w.good({{"op", "record.propose"}, {"vid", w.a}, {"host", v.primary}, {"version", v.version}, {"term", v.term}, {"members", {1, 2}}});
		REQUIRE(w.vol(w.a).replica(2)->clean());
		w.good(w.of("prepared", next, 1));
		w.good(w.of("held", next, 1));
		CHECK(w.snap(next).phase == SnapshotPhase::taking);
		CHECK(w.snap(next).copies.size() == 1);
	}
	SECTION("none is left for a second try")
	{
		w.good({{"op", "snapshot.broken"}, {"set", sid}, {"attempt", 1}, {"message", "the last words"}});
		removed(1);
		w.good({{"op", "host.status"}, {"host", 1}, {"online", false}, {"now_ms", 2}});
		w.good({{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 2}});
		removed(2);
		CHECK(w.state.snapshots.empty());
		CHECK(w.state.snapshot_failures.at(sid).message == "the last words");
	}
	SECTION("one is lost for ever")
	{
		w.good({{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 2}});
		w.good({{"op", "host.lost"}, {"host", 2}, {"force", true}});
		CHECK(w.snap(sid).phase == SnapshotPhase::discarding);
		removed(1);
		CHECK(has(w.state.snapshot_failures.at(sid).message, "beta is lost"));
	}
}

TEST_CASE("of a volume without a good copy no snapshot is taken, whatever others are held for it")
{
	World w;
	const json answer = w.good(w.create_of({w.a, w.b}));
	const uint32_t x = answer["sids"][0], y = answer["sids"][1];
	w.good(w.of("held", x, 1));
	for (int host : {1, 2})
		w.good({{"op", "record.suspect"}, {"vid", w.a}, {"host", host}});
	// Programs before level 8 took it; all must make the same of an entry.
	State old = w.state;
	old.level = 7;
	CHECK(apply(old, w.state.applied + 1, w.of("held", y, 3))["ok"] == true);
	w.state.level = LEVEL_MEND;
	CHECK(has(w.bad(5, w.of("held", y, 3)), "no replica of volume a is in sync and certain"));
	CHECK(w.snap(x).phase == SnapshotPhase::quiescing);
	CHECK(w.snap(y).hold == 0);
	w.good({{"op", "snapshot.broken"}, {"set", x}, {"attempt", 1}, {"message", "late"}});
	CHECK(w.state.volume(w.b)->phase == Phase::ready);
}

TEST_CASE("a broken hold: what was taken is removed, then it is tried once more, then given up with the reason")
{
	World w;
	uint32_t sid = w.good(w.create_of({w.a}))["sids"][0];
	json broken = {{"op", "snapshot.broken"}, {"set", sid}, {"attempt", 1}, {"message", "the hold ended"}};
	for (unsigned attempt = 1; attempt <= 2; attempt++) {
		CHECK(w.snap(sid).attempt == attempt);
		CHECK(w.snap(sid).phase == SnapshotPhase::quiescing);
		w.good(w.of("held", sid, 1));
		w.good(w.of("taken", sid, 2));
		broken["attempt"] = attempt;
		w.good(broken);
		CHECK(w.good(broken)["changed"] == false);
		CHECK(w.snap(sid).phase == SnapshotPhase::discarding);
		CHECK(w.good(w.of("taken", sid, 1))["changed"] == false);
		CHECK(has(w.bad(5, {{"op", "snapshot.delete"}, {"sid", sid}}), "still being taken"));
		w.good({{"op", "snapshot.removed"}, {"sid", sid}, {"host", 1}});
		w.good({{"op", "snapshot.removed"}, {"sid", sid}, {"host", 2}});
	}
	CHECK(w.state.snapshots.empty());
	CHECK(w.state.snapshot_failures.at(sid).message == "the hold ended");
	CHECK(w.good(w.create_of({w.a}))["sids"][0] == sid + 1);    // its id is never used again
}

TEST_CASE("a snapshot that is given up does not wait for a host that is offline")
{
	World w;
	for (auto &[id, host] : w.state.hosts)
		host.level = LEVEL;
	const uint32_t c = w.volume("c", {1, 3});
	w.open(c, 1);
	const uint32_t set = w.good(w.create_of({w.a, w.b, c}))["set"], other = set + 1, third = set + 2;    // beta is to have the first two
	const json abandon = {{"op", "snapshot.abandon"}, {"set", set}};
	auto removed = [&](uint32_t sid, HostId host) { w.good({{"op", "snapshot.removed"}, {"sid", sid}, {"host", host}}); };
	auto decided = [&] { return decide(w.state, {}, 3); };
	auto told = [&] {
		const auto d = decided();
		return std::ranges::count(d, abandon);
	};
	w.good(w.of("held", set, 1));
	w.good(w.of("held", other, 3));
	w.good(w.of("held", third, 1));
	w.good({{"op", "host.status"}, {"host", 2}, {"online", false}, {"now_ms", 2}});
	CHECK(w.good(abandon)["changed"] == false);
	w.good({{"op", "snapshot.broken"}, {"set", set}, {"attempt", 1}, {"message", "not all hosts could take it"}, {"final", true}});
	CHECK(w.good(abandon)["changed"] == false);    // alpha and gamma have theirs, and are there to remove it
	CHECK(told() == 0);
	removed(set, 1);
	removed(other, 3);
	removed(third, 1);
	removed(third, 3);
	CHECK(has(w.bad(5, w.create_of({w.a}, "next")), "another snapshot of it is being taken"));
	REQUIRE(w.snap(set).phase == SnapshotPhase::discarding);
	CHECK(told() == 1);
	SECTION("it ends, and the host removes what it has when it is back")
	{
		CHECK(w.good(abandon)["changed"] == true);
		CHECK(w.good(abandon)["changed"] == false);
		CHECK(told() == 0);
		CHECK(w.state.snapshot_failures.at(set).message == "not all hosts could take it");
		CHECK(w.snap(set).phase == SnapshotPhase::deleting);
		CHECK_FALSE(w.state.snapshot(third));
		w.good(w.create_of({w.a}, "next"));
		removed(set, 2);
		CHECK_FALSE(w.state.snapshot(set));
		removed(other, 2);
		CHECK_FALSE(w.state.snapshot(other));
	}
	SECTION("a host that is back removes it before")
	{
		w.good({{"op", "host.status"}, {"host", 2}, {"online", true}, {"now_ms", 4}});
		CHECK(told() == 0);
		CHECK(w.good(abandon)["changed"] == false);
	}
	SECTION("nobody proposes it while a host runs an older program")
	{
		w.state.hosts.at(3).level = LEVEL_ABANDON - 1;
		CHECK(told() == 0);
		CHECK(level_of(abandon) == LEVEL_ABANDON);
	}
}

TEST_CASE("the leader ends what cannot come to an end")
{
	World w;
	uint32_t sid = w.good(w.create_of({w.a}))["sids"][0];
	auto decided = [&](uint64_t now_ms) { return decide(w.state, {}, now_ms); };
	auto first = decided(1000);
	REQUIRE(first.size() == 1);
	CHECK(first[0]["op"] == "snapshot.deadline");
	w.good(first[0]);
	CHECK(decided(1000 + SNAPSHOT_LIMIT_MS).empty());
	SECTION("it takes too long")
	{
		auto late = decided(1001 + SNAPSHOT_LIMIT_MS);
		REQUIRE(late.size() == 1);
		w.good(late[0]);
		CHECK(w.state.snapshots.empty());    // nothing had been taken
		CHECK(has(w.state.snapshot_failures.at(sid).message, "could not hold still within 60 s"));
	}
	SECTION("another primary: the hold of the former one is worth nothing")
	{
		w.good(w.of("held", sid, 1));
		w.good({{"op", "record.failover"}, {"vid", w.a}, {"version", w.vol(w.a).version}, {"primary", 2}, {"keep", {2}}});
		auto over = decided(2000);
		REQUIRE(over.size() == 1);
		w.good(over[0]);
		CHECK(w.snap(sid).phase == SnapshotPhase::discarding);
		CHECK(has(w.snap(sid).failure, "from alpha to beta"));
	}
	SECTION("a volume that nobody serves gets a primary for it")
	{
		w.good({{"op", "record.close"}, {"vid", w.a}, {"host", 1}, {"session", 1}});
		w.good({{"op", "record.resign"}, {"vid", w.a}, {"host", 1}});
		auto d = decided(2000);
		REQUIRE(d.size() == 1);
		CHECK(d[0]["op"] == "record.failover");
	}
}

TEST_CASE("snapshots are deleted in any order, also after their volume")
{
	World w;
	uint32_t first = w.take(w.a, "s1"), second = w.take(w.a, "s2"), third = w.take(w.a, "s3");
	CHECK(has(w.bad(5, w.create_of({w.a}, "s2")), "a snapshot named s2 already"));
	w.good({{"op", "record.close"}, {"vid", w.a}, {"host", 1}, {"session", 1}});
	auto remove = [&](uint32_t sid) {
		CHECK(w.good({{"op", "snapshot.delete"}, {"sid", sid}})["changed"] == true);
		CHECK(w.good({{"op", "snapshot.delete"}, {"sid", sid}})["changed"] == false);
		w.good({{"op", "snapshot.removed"}, {"sid", sid}, {"host", 2}});
		CHECK(w.snap(sid).copies.size() == 1);
		w.good({{"op", "snapshot.removed"}, {"sid", sid}, {"host", 1}});
		CHECK_FALSE(w.state.snapshot(sid));
	};
	remove(second);
	w.good({{"op", "volume.delete"}, {"vid", w.a}});
	for (HostId h : {1, 2})
		w.good({{"op", "replica.deleted"}, {"vid", w.a}, {"host", h}});
	CHECK_FALSE(w.state.volume(w.a));
	remove(first);
	CHECK(has(w.bad(3, {{"op", "snapshot.delete"}, {"volume", "a"}, {"name", "s1"}}), "no snapshot named s1"));
	CHECK(w.good({{"op", "snapshot.restore"}, {"sid", third}, {"new", "again"}, {"uuid", uuid(5)}})["hosts"] == json({1, 2}));
}

TEST_CASE("a snapshot is restored as a new volume on the hosts that have copies")
{
	World w;
	uint32_t sid = w.take(w.a);
	json entry = {{"op", "snapshot.restore"}, {"volume", "a"}, {"name", "s"}, {"new", "copy"}, {"uuid", uuid(4000)}};
	json answer = w.good(entry);
	uint32_t vid = answer["vid"];
	CHECK(w.vol(vid).source == sid);
	CHECK(w.vol(vid).replica(1)->md_offset == w.vol(w.a).replica(1)->md_offset);
	CHECK(has(w.bad(5, {{"op", "snapshot.delete"}, {"sid", sid}}), "volume copy is just being made from it"));
	CHECK(has(w.bad(5, entry), "a volume named copy already"));
	for (HostId h : {1, 2})
		w.good({{"op", "replica.created"}, {"vid", vid}, {"host", h}});
	CHECK(w.vol(vid).phase == Phase::ready);
	CHECK(w.vol(vid).source == 0);
	entry["new"] = "other";
	CHECK(has(w.bad(5, entry), "belongs to volume copy"));
	entry["uuid"] = uuid(4001);
	w.online(1, false);
	CHECK(w.good(entry)["hosts"] == json({2}));
	w.online(2, false);
	entry["new"] = "third";
	CHECK(has(w.bad(5, entry), "no host that has a copy is online"));
}

TEST_CASE("a volume is reverted: its replicas are made anew from the copies, others are behind")
{
	World w;
	uint32_t sid = w.take(w.a);
	json revert = {{"op", "snapshot.revert"}, {"sid", sid}};
	CHECK(has(w.bad(5, revert), "open on host alpha"));
	w.good({{"op", "record.close"}, {"vid", w.a}, {"host", 1}, {"session", 1}});
	w.good({{"op", "device.ready"}, {"vid", w.a}, {"host", 3}});
	uint64_t version = w.vol(w.a).version;
	CHECK(w.good(revert)["changed"] == true);
	CHECK(w.good(revert)["changed"] == false);
	CHECK(w.vol(w.a).phase == Phase::creating);
	CHECK(w.vol(w.a).version == version + 1);
	CHECK(w.vol(w.a).devices.empty());
	CHECK(w.vol(w.a).primary == 0);
	// It is never rolled back: that would delete the volume.
	CHECK(has(w.bad(5, {{"op", "replica.failed"}, {"vid", w.a}, {"host", 1}, {"message", "x"}}), "not given up"));
	CHECK(has(w.bad(5, {{"op", "volume.abort"}, {"vid", w.a}, {"message", "x"}}), "not given up"));
	w.online(1, false);
	CHECK(decide(w.state, {}, 1).empty());
	w.online(1, true);
	for (HostId h : {1, 2})
		w.good({{"op", "replica.created"}, {"vid", w.a}, {"host", h}});
	CHECK(w.vol(w.a).phase == Phase::ready);
	CHECK_FALSE(w.vol(w.a).reverting);
	CHECK(w.snap(sid).phase == SnapshotPhase::ready);
}

TEST_CASE("a revert gets by without a replica whose disk has failed, or that cannot be made, or whose host is lost: another one has the content")
{
	World w;
	const uint32_t sid = w.take(w.a);
	w.good({{"op", "record.close"}, {"vid", w.a}, {"host", 1}, {"session", 1}});
	const json revert = {{"op", "snapshot.revert"}, {"sid", sid}, {"without_failed", true}};
	const json cannot = {{"op", "replica.failed"}, {"vid", w.a}, {"host", 2}, {"message", "no"}, {"reverting", true}};
	const json lost = {{"op", "host.lost"}, {"host", 2}, {"reverts", true}};
	for (const json &entry : {revert, cannot, lost})
		CHECK(level_of(entry) == LEVEL_REVERT);
	const auto made = [&](HostId host) { w.good({{"op", "replica.created"}, {"vid", w.a}, {"host", host}}); };

	SECTION("failed before")
	{
		w.good({{"op", "record.failed"}, {"vid", w.a}, {"host", 2}});
		w.good(revert);
		CHECK(w.vol(w.a).replica(2) == nullptr);
		CHECK(w.vol(w.a).remnant(2));
		CHECK(w.vol(w.a).phase == Phase::creating);
		made(1);
	}
	SECTION("fails meanwhile")
	{
		w.good(revert);
		CHECK(has(w.bad(5, cannot), "not given up"));    // none has been made yet
		made(1);
		w.good(cannot);
		CHECK(w.vol(w.a).remnant(2));
		CHECK(w.state.failures.at(w.a).message == "no");
	}
	SECTION("its host is lost meanwhile, before the other one is made or after")
	{
		const bool before = GENERATE(true, false);
		w.good(revert);
		if (!before)
			made(1);
		w.online(2, false);
		w.good(lost);
		if (before)
			made(1);
		CHECK(w.vol(w.a).remnants.empty());
	}
	CHECK(w.vol(w.a).phase == Phase::ready);
	CHECK(w.vol(w.a).replicas.size() == 1);
	CHECK(w.vol(w.a).replica(1)->clean());
	CHECK(w.vol(w.a).redundancy == 2);
	// The missing one is made on the third host.
	const json repair = decide_repair(w.state, w.vol(w.a));
	CHECK(repair["op"] == "replica.add");
	CHECK(repair["host"] == 3);
}

TEST_CASE("the last host that has what a volume is reverted to is not given up without a word")
{
	World w;
	w.good({{"op", "record.failed"}, {"vid", w.a}, {"host", 2}});
	const uint32_t sid = w.take(w.a);
	w.good({{"op", "record.close"}, {"vid", w.a}, {"host", 1}, {"session", 1}});
	w.good({{"op", "snapshot.revert"}, {"sid", sid}, {"without_failed", true}});
	w.online(1, false);
	json lost = {{"op", "host.lost"}, {"host", 1}, {"reverts", true}};
	CHECK(has(w.bad(5, lost), "has the only copy of volume"));
	lost["force"] = true;
	w.good(lost);
	CHECK((!w.state.volume(w.a) || w.vol(w.a).phase == Phase::deleting));
}

TEST_CASE("a volume gets the content of another one, by a snapshot of that")
{
	World w;
	const uint32_t sid = w.take(w.a), b = w.b;
	const Snapshot &s = w.snap(sid);
	json onto = {{"op", "snapshot.revert"}, {"sid", sid}, {"onto", b}};
	CHECK(json::from_cbor(encode(onto))["level"] == 5);
	CHECK(json::from_cbor(encode({{"op", "snapshot.revert"}, {"sid", sid}}))["level"] == 1);
	CHECK(has(w.bad(3, {{"op", "snapshot.revert"}, {"sid", sid}, {"onto", 99}}), "is gone"));
	for (const Opener &o : std::vector<Opener>(w.vol(b).openers)) {
		CHECK(has(w.bad(5, onto), "is open on host"));
		w.good({{"op", "record.close"}, {"vid", b}, {"host", o.host}, {"session", o.session}});
	}
	const std::vector<Opener> others = w.vol(w.a).openers;
	const uint64_t version = w.vol(b).version;
	CHECK(w.good(onto)["changed"] == true);
	CHECK(w.good(onto)["changed"] == false);
	CHECK(w.vol(b).version == version + 1);
	CHECK(w.vol(b).source == sid);
	CHECK(w.vol(b).reverting);
	// The one it was taken of is as it was.
	CHECK(w.vol(w.a).phase == Phase::ready);
	CHECK(w.vol(w.a).openers.size() == others.size());
	const std::vector<Replica> replicas = w.vol(b).replicas;    // each entry puts a new volume in place of the old one
	for (const Replica &r : replicas) {
		CHECK(r.state == (s.copy(r.host) ? ReplicaState::insync : ReplicaState::stale));
		w.good({{"op", "replica.created"}, {"vid", b}, {"host", r.host}});
	}
	CHECK(w.vol(b).phase == Phase::ready);
}

TEST_CASE("another volume gets no content that does not fit it")
{
	Cluster c;
	c.form();
	auto make = [&](const char *name, json fields) {
		json entry = c.create_entry(name, 4 * GIB);
		entry["hosts"] = {1, 2};
		entry.update(fields);
		const uint32_t vid = c.good(entry)["vid"];
		for (const Replica &r : std::vector<Replica>(c.state.volume(vid)->replicas))
			c.good({{"op", "replica.created"}, {"vid", vid}, {"host", r.host}});
		return vid;
	};
	const uint32_t a = make("a", json::object()), larger = make("larger", {{"size_bytes", 5 * GIB}}), shared = make("shared", {{"class", "shared"}}),
		       apart = make("apart", {{"hosts", {3}}, {"redundancy", 1}});
	const uint32_t sid = c.good({{"op", "snapshot.create"}, {"name", "s"}, {"vids", {a}}, {"uuids", {uuid(900)}}, {"now_ms", 1}})["sids"][0];
	auto onto = [&](uint32_t vid) { return json{{"op", "snapshot.revert"}, {"sid", sid}, {"onto", vid}}; };
	CHECK(has(c.bad(5, onto(larger)), "is quiescing"));
	Snapshot &s = c.state.snapshots.at(sid);    // taken, as if its hosts had said so
	s.phase = SnapshotPhase::ready;
	s.resumed = true;
	s.copies = {{1, "default", 4 * GIB, true}, {2, "default", 4 * GIB, true}};
	CHECK(has(c.bad(5, onto(larger)), "has another size"));
	CHECK(has(c.bad(5, onto(shared)), "is shared"));
	CHECK(has(c.bad(5, onto(apart)), "has no replica on a host that has a copy"));
}

TEST_CASE("thick pools: room is reserved, and snapshots do not outlive their volume")
{
	Cluster c;
	c.form();
	for (HostId h : {1, 2}) {
		json pool = Cluster::pool_entry(h, 10 * GIB, "thick");
		pool["name"] = "thick";
		pool["vg"] = "vg2";
		c.good(pool);
	}
	json entry = c.create_entry("v", 4 * GIB);
	entry["pool"] = "thick";
	entry["hosts"] = {1, 2};
	uint32_t vid = c.good(entry)["vid"];
	for (HostId h : {1, 2})
		c.good({{"op", "replica.created"}, {"vid", vid}, {"host", h}});
	c.open(vid, 1);
	json create = {{"op", "snapshot.create"}, {"name", "s"}, {"vids", {vid}}, {"uuids", {uuid(1)}}, {"now_ms", 1}, {"reserve", 50}};
	uint64_t before = pool_available(c.state, *c.state.pool("thick", 1));
	uint32_t sid = c.good(create)["sids"][0];
	auto of = [&](const char *op, HostId host) {
		return json{{"op", std::string("snapshot.") + op}, {"sid", sid}, {"host", host}, {"attempt", 1}, {"hold", 9}};
	};
	c.good(of("held", 1));
	CHECK(pool_available(c.state, *c.state.pool("thick", 1)) == before - 2 * GIB);
	c.good(of("taken", 1));
	c.good(of("taken", 2));
	c.good(of("resumed", 1));
	c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 1}});
	CHECK(has(c.bad(5, {{"op", "volume.delete"}, {"vid", vid}}), "cannot outlive it"));
	CHECK(has(c.bad(5, {{"op", "volume.resize"}, {"vid", vid}, {"size_bytes", 5 * GIB}}), "delete them first"));
	create["name"] = "t";
	create["uuids"] = {uuid(2)};
	create["reserve"] = 100;
	CHECK(has(c.bad(5, create), "pool thick on host alpha has room for"));
}

namespace {

struct Thick : Cluster {
	uint32_t vid = 0;
	Thick()
	{
		form();
		for (auto &[key, pool] : state.pools)
			pool.kind = PoolKind::thick;
		vid = volume("v", {1, 2});
		open(vid, 1);
	}
	void close() { good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 1}}); }
	static json revert(uint32_t sid) { return {{"op", "snapshot.revert"}, {"sid", sid}, {"in_place", true}, {"without_failed", true}}; }
};

}    // namespace

TEST_CASE("thick pools: a volume gets the content of its latest snapshot where it is, and of no other while that is there")
{
	Thick c;
	const uint32_t first = c.take_snapshot(c.vid, "s1"), second = c.take_snapshot(c.vid, "s2");
	CHECK(has(c.bad(5, Thick::revert(second)), "is open on host alpha"));
	c.close();
	CHECK(has(c.bad(5, {{"op", "snapshot.revert"}, {"sid", second}}), "is in a thick pool and cannot be reverted"));    // as older programs have it
	CHECK(c.bad(5, Thick::revert(first)) == "volume v cannot be reverted: it is in a thick pool and snapshot s2 of volume v is newer, or was copied to host "
						"alpha, and its reserve would be filled: delete it first, or restore snapshot s1 of volume v as a new volume");
	const uint64_t offset = c.vol(c.vid).replicas[0].md_offset;
	c.good(with(Thick::revert(second), {{"past", {second}}}));
	CHECK(c.good(Thick::revert(second))["changed"] == false);
	CHECK(c.vol(c.vid).phase == Phase::creating);
	CHECK(c.vol(c.vid).reverting);
	CHECK(c.vol(c.vid).primary == 0);
	CHECK(has(c.bad(5, {{"op", "snapshot.delete"}, {"sid", second}}), "is just being made from it"));
	for (HostId h : {1, 2}) {
		CHECK(c.vol(c.vid).replica(h)->clean());
		CHECK(c.vol(c.vid).replica(h)->md_offset == offset);
		c.good({{"op", "replica.created"}, {"vid", c.vid}, {"host", h}});
	}
	CHECK(c.vol(c.vid).phase == Phase::ready);
	c.good({{"op", "snapshot.delete"}, {"sid", second}});
	CHECK(has(c.bad(5, Thick::revert(first)), "s2 of volume v is newer"));    // it is still there
	for (HostId h : {1, 2})
		c.good({{"op", "snapshot.removed"}, {"sid", second}, {"host", h}});
	c.state.snapshots.at(first).copies[1].added = 7;
	c.good(Thick::revert(first));    // which was copied here is none of its own affair
	CHECK(level_of(Thick::revert(first)) == LEVEL_IN_PLACE);
	CHECK(level_of(with(Thick::revert(first), {{"past", {2}}})) == LEVEL_PAST);
	CHECK(level_of({{"op", "snapshot.revert"}, {"without_failed", true}}) == LEVEL_REVERT);
}

TEST_CASE("thick pools: a volume gets the content of an earlier snapshot when its hosts have found room in all others")
{
	Thick c;
	const uint32_t first = c.take_snapshot(c.vid, "s1"), second = c.take_snapshot(c.vid, "s2"), third = c.take_snapshot(c.vid, "s3");
	c.close();
	c.state.snapshots.at(first).copies[1].added = 7;
	CHECK(has(c.bad(5, with(Thick::revert(second), {{"past", {first}}})), "s3 of volume v is newer"));    // it was taken after they were asked
	CHECK(has(c.bad(5, with(Thick::revert(second), {{"past", {third}}})), "s1 of volume v is newer, or was copied to host beta"));
	c.good(with(Thick::revert(second), {{"past", {first, third}}}));
	CHECK(c.vol(c.vid).source == second);
	for (HostId h : {1, 2})
		c.good({{"op", "replica.created"}, {"vid", c.vid}, {"host", h}});
	CHECK(c.vol(c.vid).phase == Phase::ready);
	CHECK(c.state.snapshots.size() == 3);
	for (const auto &[sid, s] : c.state.snapshots)
		CHECK((s.phase == SnapshotPhase::ready && s.copies.size() == 2));
}

TEST_CASE("thick pools: a revert is refused if the volume was open since its hosts were asked")
{
	Thick c;
	const uint32_t first = c.take_snapshot(c.vid, "s1"), second = c.take_snapshot(c.vid, "s2");
	c.close();
	const json revert = with(Thick::revert(first), {{"past", {second}}});
	const json asked = with(revert, {{"version", c.vol(c.vid).version}});
	const uint64_t session = c.open(c.vid, 2);
	CHECK(has(c.bad(5, asked), "is open on host beta"));
	c.good({{"op", "record.close"}, {"vid", c.vid}, {"host", 2}, {"session", session}});
	CHECK(has(c.bad(5, asked), "its record is at version"));
	CHECK(c.vol(c.vid).phase == Phase::ready);
	const State before = c.state;
	c.good(revert);    // as older programs have it
	c.state = before;
	c.index = before.applied;
	const json again = with(revert, {{"version", c.vol(c.vid).version}});
	c.good(again);
	CHECK(c.good(again)["changed"] == false);
	CHECK(level_of(revert) == LEVEL_PAST);
	CHECK(level_of(asked) == LEVEL_REVERT_VERSION);
}

TEST_CASE("thick pools: nothing is reverted that would lack a copy, and one that was copied to a host counts as newer")
{
	Thick c;
	const uint32_t first = c.take_snapshot(c.vid, "s1"), second = c.take_snapshot(c.vid, "s2");
	c.close();
	const State before = c.state;
	c.state.snapshots.at(first).copies[1].added = 7;
	CHECK(has(c.bad(5, Thick::revert(second)), "s1 of volume v is newer, or was copied to host beta"));
	c.state = before;
	c.index = before.applied;
	c.state.snapshots.at(second).copies.pop_back();
	CHECK(has(c.bad(5, Thick::revert(second)), "host beta has no copy of snapshot s2 of volume v beside its replica"));
	c.state = before;
	c.index = before.applied;
	c.good({{"op", "record.failed"}, {"vid", c.vid}, {"host", 2}});
	CHECK(has(c.bad(5, Thick::revert(second)), "its replica on host beta is failed, and in a thick pool none is made anew for that: put another disk in its "
						   "place with `lockstep disk replace`"));
	c.state = before;
	c.index = before.applied;
	const uint32_t other = c.volume("other", {1, 2});
	CHECK(has(c.bad(5, with(Thick::revert(second), {{"onto", other}})), "it can only get the content of its own snapshots"));
	c.online(2, false);
	CHECK(has(c.bad(5, Thick::revert(second)), "host beta is offline"));
}

TEST_CASE("pools of one name, thick on one host only: a failed replica does not take the copies of its snapshots along")
{
	Thick c;
	c.state.pools.at({"default", 1}).kind = PoolKind::thin;
	const uint32_t sid = c.take_snapshot(c.vid, "s1");
	c.close();
	c.good({{"op", "record.failed"}, {"vid", c.vid}, {"host", 2}});
	CHECK(has(c.bad(5, Thick::revert(sid)), "its replica on host beta is failed, and in a thick pool none is made anew for that"));
	const uint32_t other = c.volume("other", {1, 2});
	c.good({{"op", "record.failed"}, {"vid", other}, {"host", 2}});
	CHECK(has(c.bad(5, with(Thick::revert(sid), {{"onto", other}})), "it can only get the content of its own snapshots"));
	// What logs hold of older programs means what it meant: the copy goes with it. None of that is proposed any more, see use_test.cc.
	json old = Thick::revert(sid);
	old.erase("in_place");
	c.good(old);
	CHECK(c.vol(c.vid).remnant(2));
}

TEST_CASE("a volume gets no content from a copy in a thick pool that its replica is not in")
{
	Cluster c;
	c.form();
	for (HostId h : {1, 2})
		c.good(with(Cluster::pool_entry(h, 10 * GIB, "thick"), {{"name", "slow"}, {"vg", "vg2"}}));
	json entry = with(c.create_entry("source"), {{"pool", "slow"}, {"hosts", {1, 2}}});
	const uint32_t source = c.good(entry)["vid"];
	for (HostId h : {1, 2})
		c.good({{"op", "replica.created"}, {"vid", source}, {"host", h}});
	c.open(source, 1);
	const uint32_t sid = c.take_snapshot(source, "s"), vid = c.volume("v", {1, 2});
	CHECK(c.bad(5, with(Thick::revert(sid), {{"onto", vid}})) == "volume v cannot be reverted: on host alpha the copy of snapshot s of volume source is in thick "
								     "pool slow, its replica in pool default: restore the snapshot as a new volume");
}

TEST_CASE("thick pools: a disk that fails during a revert takes its copies of snapshots along, but no last one")
{
	Thick c;
	const uint32_t first = c.take_snapshot(c.vid, "s1"), second = c.take_snapshot(c.vid, "s2");
	c.close();
	c.good(Thick::revert(second));
	const json given_up = {{"op", "replica.failed"}, {"vid", c.vid}, {"host", 2}, {"message", "no"}, {"reverting", true}};
	c.bad(5, given_up);    // no other one is made yet
	c.good({{"op", "replica.created"}, {"vid", c.vid}, {"host", 1}});
	const State before = c.state;
	c.state.snapshots.at(first).copies.erase(c.state.snapshots.at(first).copies.begin());
	CHECK(has(c.bad(5, given_up), "is kept: snapshot s1 of volume v has its only copy beside it"));
	c.state = before;
	c.index = before.applied;
	c.good(given_up);
	CHECK(c.vol(c.vid).phase == Phase::ready);
	CHECK_FALSE(c.vol(c.vid).replica(2));
	CHECK(c.vol(c.vid).remnant(2));
	for (uint32_t sid : {first, second}) {
		CHECK(c.state.snapshot(sid)->copies.size() == 1);
		CHECK(c.state.snapshot(sid)->going.size() == 1);
	}
}
