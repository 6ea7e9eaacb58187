// SPDX-License-Identifier: GPL-2.0-or-later
//
// Orphans: which logical volumes are, that nothing else is ever removed, and a volume made of one.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "fakes.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

using Json = nlohmann::json;

constexpr const char *OTHER_UUID = "6c1c4f0e-2222-4222-8333-944445555666";

FakeLv left_over(const std::string &name, const std::string &tag)
{
	FakeLv f;
	f.lv.vg = "vg";
	f.lv.name = name;
	f.lv.path = "/dev/vg/" + name;
	f.lv.size_bytes = 2 * GIB;
	f.lv.tags = {tag, replica_added_tag(3)};
	f.formatted = true;
	f.content = "precious";
	return f;
}

// Host alpha with a volume, its snapshot, and what an earlier cluster has left.
struct Left {
	FakeWorld w;
	bool quorum = true;
	std::function<void()> before_work;     // each time, on the worker
	std::optional<Result<Json>> answer;

	Left()
	{
		w.start_daemon();
		Json created = w.propose({{"op", "volume.create"}, {"name", "db1"}, {"uuid", VOLUME_UUID}, {"size_bytes", GIB}, {"pool", "default"},
					  {"hosts", {1}}, {"now_ms", 1}});
		w.daemon().look();
		REQUIRE(w.run_until([&] { return w.state.volume(created["vid"])->devices.contains(1); }));
		put("lockstep.7", replica_lv_tag(OTHER_UUID));
		put("lockstep.7.s2.1", snapshot_lv_tag(UUID3));
		put("root", "somebody.else");
	}

	void put(const std::string &name, const std::string &tag) { w.lvs["/dev/vg/" + name] = left_over(name, tag); }

	OrphanWorld world()
	{
		OrphanWorld o;
		o.self = 1;
		o.lvm = w.lvm();
		o.run = [this](const std::string &, std::function<void()> work, std::function<void()> done) {
			if (before_work)
				before_work();
			work();
			done();
		};
		o.barrier = [this](std::function<void(Done)> done) { done(quorum ? Done(Nothing{}) : Done(failed("no quorum"))); };
		o.state = [this]() -> const State & { return w.state; };
		o.published = [this] { return std::make_shared<const State>(w.state); };
		o.inspect = [](const std::string &path) { return Json{{"path", path}}; };
		return o;
	}

	Json list(const std::string &uuid = "", bool show = false)
	{
		list_orphans(world(), uuid, show, [this](Result<Json> a) { answer = std::move(a); });
		REQUIRE(*answer);
		return **answer;
	}

	Json purge(const std::string &uuid)
	{
		purge_orphans(world(), uuid, [this](Result<Json> a) { answer = std::move(a); });
		REQUIRE(*answer);
		return **answer;
	}

	uint32_t adopt()
	{
		Json adopted = w.propose({{"op", "volume.adopt"}, {"name", "old"}, {"uuid", OTHER_UUID}, {"host", 1}, {"pool", "default"}, {"lv", "lockstep.7"},
					  {"size_bytes", GIB}, {"block_size", 16384}, {"md_offset", GIB}, {"vid", 7}, {"version", 12}, {"term", 4},
					  {"redundancy", 1}});
		w.daemon().look();
		return adopted["vid"];
	}
};

}    // namespace

TEST_CASE("orphans are what carries a tag of ours and is in nothing that the log knows")
{
	Left l;
	Json all = l.list();
	REQUIRE(all.size() == 2);
	CHECK(all[0]["lv"] == "lockstep.7");
	CHECK(all[0]["kind"] == "replica");
	CHECK(all[0]["uuid"] == OTHER_UUID);
	CHECK(all[0]["content"] == nullptr);
	CHECK(all[1]["kind"] == "snapshot");
	CHECK(l.list(OTHER_UUID).size() == 1);
	CHECK(l.list(VOLUME_UUID).empty());
	CHECK(l.w.count("show") == 0);
	CHECK(l.list(OTHER_UUID, true)[0]["content"]["path"] == "/dev/vg/lockstep.7");
	// Its name alone does not make it the replica's, nor does its tag.
	l.put("lockstep.1", replica_lv_tag(OTHER_UUID));
	l.put("lockstep.9", replica_lv_tag(VOLUME_UUID));
	CHECK(l.list().size() == 4);
	CHECK(l.w.violations.empty());
}

TEST_CASE("on a host in no cluster all that carries a tag of ours is an orphan; it tells its name and its group, if it knows them")
{
	Left l;
	ReplicaLv told;
	told.uuid = OTHER_UUID;
	told.name = "db.7";
	told.group = "sr";
	l.w.lvs["/dev/vg/lockstep.7"].lv.tags = replica_tags(told);
	CHECK(l.list(OTHER_UUID)[0]["group"] == "sr");
	OrphanWorld bare = l.world();
	static const State none;
	bare.self = 0;
	bare.state = []() -> const State & { return none; };
	list_orphans(bare, "", false, [&](Result<Json> a) { l.answer = std::move(a); });
	REQUIRE(*l.answer);
	std::map<std::string, Json> by_lv;
	for (const Json &o : **l.answer)
		by_lv[o["lv"]] = o;
	REQUIRE(by_lv.size() == 3);
	CHECK((by_lv["lockstep.7"]["name"] == "db.7" && by_lv["lockstep.7"]["group"] == "sr"));
	CHECK((by_lv["lockstep.1"]["uuid"] == VOLUME_UUID && by_lv["lockstep.1"]["name"] == "db1" && by_lv["lockstep.1"]["group"] == ""));
	CHECK((by_lv["lockstep.7.s2.1"]["kind"] == "snapshot" && by_lv["lockstep.7.s2.1"]["group"] == ""));
	CHECK(l.w.count("show") == 0);
}

TEST_CASE("the LV of a replica tells the group that its volume is in")
{
	FakeWorld w;
	w.start_daemon();
	w.propose({{"op", "group.create"}, {"name", "sr"}, {"pool", "default"}, {"redundancy", 1}});
	const Json created = w.propose({{"op", "volume.create"}, {"name", "db1"}, {"uuid", VOLUME_UUID}, {"size_bytes", GIB}, {"group", "sr"}, {"hosts", {1}},
					{"now_ms", 1}});
	w.daemon().look();
	REQUIRE(w.run_until([&] { return w.state.volume(created["vid"])->devices.contains(1); }));
	const std::vector<std::string> &tags = w.lvs["/dev/vg/lockstep.1"].lv.tags;
	CHECK(std::ranges::count(tags, "lockstep.group=sr") == 1);
}

TEST_CASE("a remnant, a tombstone's replica and a snapshot's copy are no orphans")
{
	Left l;
	l.w.propose({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	l.w.daemon().look();
	REQUIRE(l.w.run_until([&] { return l.w.volumes[1].role == LKS_ACTIVE; }));
	Json taken = l.w.propose({{"op", "snapshot.create"}, {"name", "s1"}, {"vids", {1}}, {"uuids", {UUID2}}, {"now_ms", 1}});
	l.w.daemon().look();
	REQUIRE(l.w.run_until([&] { return l.w.state.snapshot(taken["sids"][0])->phase == SnapshotPhase::ready; }));
	CHECK(l.list().size() == 2);
	l.w.kill_daemon();
	l.w.propose({{"op", "snapshot.delete"}, {"sid", taken["sids"][0]}});
	CHECK(l.list().size() == 2);    // it is being removed
	Left other;
	other.w.kill_daemon();
	other.w.propose({{"op", "volume.delete"}, {"name", "db1"}});
	CHECK(other.w.lvs.contains("/dev/vg/lockstep.1"));
	CHECK(other.list().size() == 2);
}

TEST_CASE("a purge removes the orphans of that UUID and nothing else")
{
	Left l;
	const size_t before = l.w.lvs.size();
	Json purged = l.purge(OTHER_UUID);
	CHECK(purged["removed"] == Json{{{"vg", "vg"}, {"lv", "lockstep.7"}}});
	CHECK(purged["kept"].empty());
	CHECK(l.w.lvs.size() == before - 1);
	CHECK(l.purge(VOLUME_UUID)["removed"].empty());
	CHECK(l.w.lvs.contains("/dev/vg/lockstep.1"));
	CHECK(l.purge(OTHER_UUID)["removed"].empty());    // again: nothing left
	CHECK(l.w.violations.empty());
}

TEST_CASE("without quorum nothing is called an orphan and nothing is purged")
{
	Left l;
	l.quorum = false;
	purge_orphans(l.world(), OTHER_UUID, [&](Result<Json> a) { l.answer = std::move(a); });
	CHECK(!*l.answer);
	list_orphans(l.world(), "", false, [&](Result<Json> a) { l.answer = std::move(a); });
	CHECK(!*l.answer);
	CHECK(l.w.count("purge") == 0);
}

TEST_CASE("what the log comes to want between the question and its removal is kept")
{
	Left l;
	unsigned works = 0;
	l.before_work = [&] {
		if (++works == 2)    // the report is there, the removal is next
			l.adopt();
	};
	Json purged = l.purge(OTHER_UUID);
	CHECK(purged["removed"].empty());
	CHECK(purged["kept"][0]["message"] == "logical volume vg/lockstep.7 is wanted again");
	CHECK(l.w.count("purge") == 0);
	CHECK(l.w.lvs.contains("/dev/vg/lockstep.7"));
}

TEST_CASE("an orphan becomes a volume: killed or failing at any step, it converges and its content is kept")
{
	const Fault fault = GENERATE(Fault::none, Fault::fails, Fault::killed_before, Fault::killed_after);
	const bool reboot = GENERATE(false, true);
	uint64_t first = 0, last = 0;
	for (uint64_t k = 0; k <= last; k++) {
		INFO("fault " << int(fault) << " at step " << k << (reboot ? ", then a reboot" : ""));
		Left l;
		first = l.w.steps;
		l.w.fault = fault;
		l.w.fault_at = k ? first + k : 0;
		l.w.reboot_when_killed = reboot;
		const uint32_t vid = l.adopt();
		CHECK(vid == 8);    // beyond the one that it had
		REQUIRE(l.w.run_until([&] { return l.w.state.volume(vid)->devices.contains(1) && l.w.volumes.contains(vid) && l.w.volumes[vid].replica; }));
		CHECK_FALSE(l.w.lvs.contains("/dev/vg/lockstep.7"));
		const FakeLv &lv = l.w.lvs.at("/dev/vg/lockstep.8");
		CHECK(lv.content == "precious");
		CHECK(lv.lv.tags == std::vector<std::string>{replica_lv_tag(OTHER_UUID), replica_added_tag(13)});
		CHECK(l.list().size() == 1);    // the snapshot
		CHECK(l.w.violations.empty());
		if (k == 0 && fault != Fault::none)
			last = l.w.steps - first;
	}
	CHECK((last > 5 || fault == Fault::none));
}

TEST_CASE("a volume whose orphan is not there waits, and is not given up")
{
	Left l;
	l.w.lvs.erase("/dev/vg/lockstep.7");
	const uint32_t vid = l.adopt();
	l.w.run_for(120'000);
	CHECK(l.w.state.volume(vid)->phase == Phase::creating);
	CHECK(!l.w.daemon().problems().empty());
	l.put("lockstep.7", replica_lv_tag(OTHER_UUID));
	REQUIRE(l.w.run_until([&] { return l.w.state.volume(vid)->phase == Phase::ready; }));
}
