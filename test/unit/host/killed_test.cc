// SPDX-License-Identifier: GPL-2.0-or-later
//
// Kill -9 of any daemon at any step of any operation leaves something that converges.
//
// Each operation runs once undisturbed, in a cluster whose volumes are written to, and its steps are counted (cluster.h). Then it runs
// again for each step, with the daemon that takes it killed before or after it, with all daemons killed, and with another one killed.
// A command whose daemon died is given again until what it is for has come true, as an administrator would. In the end the cluster is
// the same as after the undisturbed run, and nothing is left over: no logical volume, snapshot, kernel object, hold or entry.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include "cluster.h"
#include "lockstepd/host/disks.h"
#include "lockstepd/host/orphans.h"

namespace lockstep::test::killed {

using Json = nlohmann::json;

constexpr const char *MORE_UUIDS[] = {"70000000-0000-4000-8000-000000000001", "70000000-0000-4000-8000-000000000002",
				      "70000000-0000-4000-8000-000000000003", "70000000-0000-4000-8000-000000000004"};
constexpr HostId ALPHA = 1, BETA = 2, GAMMA = 3;

struct Operation {
	std::string name;
	PoolKind kind;
	std::function<void(Cluster &)> before;
	std::function<void(Cluster &)> command;
	std::function<bool(Cluster &)> done;
};

// ---- what is there before ----

static bool serves(Cluster &c, const std::string &name)
{
	const Volume *v = c.state.volume_named(name);
	return v && v->phase == Phase::ready && v->devices.size() == c.state.hosts.size();
}

static void create(Cluster &c, const std::string &name, const char *uuid, std::vector<int> hosts)
{
	(void)c.ask({{"op", "volume.create"}, {"name", name}, {"uuid", uuid}, {"size_bytes", GIB}, {"pool", "default"}, {"redundancy", hosts.size()},
		     {"hosts", hosts}, {"now_ms", 1}});
	c.waits([&] { return serves(c, name); });
}

// Takes it, or finds it there.
static void take(Cluster &c, const std::string &volume, const std::string &name, const char *uuid, bool temporary = false, bool prepare = true)
{
	auto ready = [&] {
		const Snapshot *s = c.state.snapshot_named(volume, name);
		return !s || s->phase == SnapshotPhase::ready;
	};
	Json entry = {{"op", "snapshot.create"}, {"name", name}, {"vids", {c.vid(volume)}}, {"uuids", {uuid}}, {"keep", true}, {"now_ms", c.log->now_ms}};
	if (temporary)
		entry["temporary"] = true;
	if (prepare)
		entry["prepare"] = true;
	(void)c.ask(entry);
	c.waits(ready);
}

// Volume db1 on alpha and beta, open on beta.
static void in_use(Cluster &c)
{
	create(c, "db1", VOLUME_UUID, {ALPHA, BETA});
	REQUIRE(serves(c, "db1"));
	c.open(BETA, "db1");
	REQUIRE(c.run_until([&] { return c.volume("db1").opener(BETA) && c.at(BETA).volumes.at(c.vid("db1")).writers; }));
	REQUIRE(c.settles());
	REQUIRE(c.wrong() == std::vector<std::string>{});
}

// ... with a snapshot
static void with_snapshot(Cluster &c)
{
	in_use(c);
	take(c, "db1", "s0", UUID3);
	REQUIRE(c.settles());
	REQUIRE(c.state.snapshot_named("db1", "s0"));
}

static void closed(Cluster &c)
{
	with_snapshot(c);
	c.close(BETA, "db1");
	REQUIRE(c.run_until([&] { return c.volume("db1").openers.empty(); }));
	REQUIRE(c.settles());
}

static void without_gamma(Cluster &c)
{
	create(c, "db1", VOLUME_UUID, {BETA, GAMMA});
	c.open(BETA, "db1");
	REQUIRE(c.run_until([&] { return c.volume("db1").opener(BETA); }));
	take(c, "db1", "s0", UUID3);
	c.power_off(GAMMA);
	REQUIRE(c.settles());
	REQUIRE_FALSE(c.state.online(GAMMA));
}

static void with_orphan(Cluster &c)
{
	in_use(c);
	for (const char *name : {"lockstep.7", "lockstep.7.s2.1"}) {
		FakeLv f;
		f.lv.vg = "vg";
		f.lv.name = name;
		f.lv.path = std::string("/dev/vg/") + name;
		f.lv.size_bytes = 2 * GIB;
		f.lv.tags = {std::string(name).ends_with("1") ? snapshot_lv_tag(MORE_UUIDS[2]) : replica_lv_tag(MORE_UUIDS[1]), replica_added_tag(3)};
		f.formatted = true;
		f.data = "precious";
		c.at(ALPHA).lvs[f.lv.path] = f;
	}
}

static void with_disks(Cluster &c)
{
	c.at(ALPHA).groups["vg"].extent_bytes = 4 << 20;
	if (c.state.pool("default", ALPHA)->kind == PoolKind::thin) {
		LogicalVolume &thin = c.at(ALPHA).lvs.at("/dev/vg/thin").lv;
		thin.chunk_bytes = 64 << 10;
		thin.metadata_bytes = 80 << 20;
		c.at(ALPHA).groups["vg"].free_bytes = 80 << 20;
	}
	c.at(ALPHA).disks["/dev/a"] = {.vg = "vg", .disk = "/dev/a", .size_bytes = 20 * GIB, .used_bytes = 8 * GIB, .uuid = "uuid-a"};
	c.at(ALPHA).disks["/dev/b"] = {.vg = "vg", .disk = "/dev/b", .size_bytes = 20 * GIB, .used_bytes = 2 * GIB, .uuid = "uuid-b"};
	in_use(c);
	REQUIRE(c.settles());
}

// The disk under alpha's replica of db1 is gone, and with it that replica.
static void with_dead_disk(Cluster &c)
{
	with_disks(c);
	FakeWorld &w = c.at(ALPHA);
	w.disks.at("/dev/a").missing = true;
	w.disks.at("/dev/a").used_bytes = 0;
	w.groups["vg"].incomplete = true;
	w.lvs.at(replica_lv_path("vg", c.vid("db1"))).lv.health = "partial";
	w.volumes.at(c.vid("db1")).replica->failed = true;
}

// Alpha has another pool, with a mark of a disk change on its volume group.
static void with_spare_pool(Cluster &c)
{
	FakeWorld &w = c.at(ALPHA);
	w.groups["spare"] = {.name = "spare", .size_bytes = 20 * GIB, .free_bytes = 20 * GIB, .extent_bytes = 4 << 20, .growing = true};
	w.disks["/dev/s"] = {.vg = "spare", .disk = "/dev/s", .size_bytes = 20 * GIB, .uuid = "uuid-s"};
	in_use(c);
	REQUIRE(c.ask({{"op", "pool.add"}, {"name", "spare"}, {"host", ALPHA}, {"kind", "thick"}, {"vg", "spare"}, {"size_bytes", 20 * GIB},
		       {"free_bytes", 20 * GIB}}));
	REQUIRE(c.settles());
}

// ---- commands ----

static std::function<void(Cluster &)> asks(Json entry, const std::string &volume = "db1")
{
	return [entry, volume](Cluster &c) mutable {
		if (!volume.empty())
			entry["vid"] = c.vid(volume);
		(void)c.ask(entry);
	};
}

static const Volume *find(Cluster &c, const std::string &name = "db1") { return c.state.volume_named(name); }

static std::function<bool(Cluster &)> on(std::set<HostId> hosts)
{
	return [hosts](Cluster &c) {
		std::set<HostId> in_sync;
		for (const Replica &r : find(c)->replicas)
			if (r.clean())
				in_sync.insert(r.host);
		return in_sync == hosts && find(c)->replicas.size() == hosts.size() && find(c)->remnants.empty();
	};
}

static void delete_snapshot(Cluster &c, const std::string &name)
{
	(void)c.ask({{"op", "snapshot.delete"}, {"volume", "db1"}, {"name", name}});
}

static void clone_db1(Cluster &c)
{
	take(c, "db1", "clone-1", MORE_UUIDS[0], true);
	const Snapshot *s = c.state.snapshot_named("db1", "clone-1");
	if (!s || s->phase != SnapshotPhase::ready)
		return;
	const uint32_t sid = s->sid;
	if (!c.ask({{"op", "snapshot.restore"}, {"sid", sid}, {"new", "db2"}, {"uuid", UUID2}}) || !c.waits([&] { return serves(c, "db2"); }))
		return;
	(void)c.ask({{"op", "snapshot.delete"}, {"sid", sid}});
}

static void purge_orphans(Cluster &c)
{
	const std::function<bool(FakeWorld &)> purge = [&](FakeWorld &w) {
		const Lvm lvm = w.lvm();
		for (const OrphanLv &o : orphans_in(c.state, ALPHA, *lvm.report_all()))
			(void)lvm.purge(o);
		return true;
	};
	(void)c.does(ALPHA, purge);
}

// Disk n comes, disk a goes; each if it is told.
static void change_disks(Cluster &c, bool comes, bool goes)
{
	const std::function<bool(FakeWorld &)> change = [&](FakeWorld &w) {
		const Lvm lvm = w.lvm();
		if (comes)
			(void)lvm.add_disk("vg", "/dev/n", c.state.pool("default", ALPHA)->kind == PoolKind::thin, goes ? "uuid-a" : "");
		if (goes && w.disks.contains("/dev/a") && !w.disks.at("/dev/a").leaving)
			(void)change_disks(lvm, c.state, ALPHA, "default", "", "/dev/a");
		w.daemon().look_at_disks();
		return true;
	};
	(void)c.does(ALPHA, change);
}

static bool has_disks(Cluster &c, const std::set<std::string> &wanted)
{
	std::set<std::string> there;
	for (const auto &[path, disk] : c.at(ALPHA).disks)
		there.insert(path);
	return there == wanted && !c.at(ALPHA).groups["vg"].growing && c.at(ALPHA).groups["vg"].grows_after.empty() &&
	       c.at(ALPHA).groups["vg"].grows_into.empty() && c.state.pool("default", ALPHA)->mending.empty();
}

static void replace_dead_disk(Cluster &c)
{
	Result<Json> entry = change_disks(c.at(ALPHA).lvm(), c.state, ALPHA, "", "", "/dev/a");
	if (!entry || !entry->contains("mend"))
		return;
	Json mend = (*entry)["mend"];
	mend["by"] = "/dev/n";
	(void)c.ask(mend);
}

static void remove_host(Cluster &c)
{
	if (!c.state.host(GAMMA))
		return;
	(void)c.ask({{"op", "host.evacuate"}, {"host", GAMMA}});
	auto empty = [&] {
		for (const auto &[vid, v] : c.state.volumes)
			if (v.replica(GAMMA) || v.remnant(GAMMA))
				return false;
		for (const auto &[sid, s] : c.state.snapshots)
			if (s.trace(GAMMA))
				return false;
		return true;
	};
	if (c.waits(empty))
		(void)c.ask({{"op", "host.remove"}, {"host", GAMMA}});
}

static void on_gamma(Cluster &c)
{
	create(c, "db1", VOLUME_UUID, {BETA, GAMMA});
	c.open(BETA, "db1");
	REQUIRE(c.run_until([&] { return c.volume("db1").opener(BETA); }));
	take(c, "db1", "s0", UUID3);
	REQUIRE(c.settles());
}

static const std::vector<Operation> &operations()
{
	constexpr PoolKind thin = PoolKind::thin, thick = PoolKind::thick;
	const auto gone = [](Cluster &c) { return c.state.volumes.size() == 1 && !find(c, "db2"); };
	const auto create_db2 = [](Cluster &c) { create(c, "db2", UUID2, {BETA, GAMMA}); };
	const auto create_both = [create_db2](Cluster &c) {
		in_use(c);
		create_db2(c);
		REQUIRE(c.settles());
	};
	const auto snapshot_there = [](const char *name) {
		return [name](Cluster &c) {
			const Snapshot *s = c.state.snapshot_named("db1", name);
			return s && s->phase == SnapshotPhase::ready;
		};
	};
	const auto no_snapshots = [](Cluster &c) { return c.state.snapshots.empty(); };
	const auto reverted = [](Cluster &c) {
		const auto lv = c.at(ALPHA).lvs.find(replica_lv_path("vg", c.vid("db1")));
		return serves(c, "db1") && lv != c.at(ALPHA).lvs.end() && lv->second.content.starts_with(UUID3);
	};
	static const std::vector<Operation> all = {
		{"create a volume", thin, in_use, create_db2, [](Cluster &c) { return serves(c, "db2"); }},
		{"create a volume", thick, in_use, create_db2, [](Cluster &c) { return serves(c, "db2"); }},
		{"delete a volume", thin, create_both, asks({{"op", "volume.delete"}, {"name", "db2"}}, ""), gone},
		{"delete a volume", thick, create_both, asks({{"op", "volume.delete"}, {"name", "db2"}}, ""), gone},
		{"resize a volume", thin, in_use, asks({{"op", "volume.resize"}, {"size_bytes", 3 * GIB}}),
		 [](Cluster &c) { return find(c)->size_bytes == 3 * GIB && !find(c)->grow_bytes; }},
		{"open a volume", thin, closed, [](Cluster &c) { c.open(ALPHA, "db1"); }, [](Cluster &c) { return bool(find(c)->opener(ALPHA)); }},
		{"close a volume", thin, in_use, [](Cluster &c) { c.close(BETA, "db1"); }, [](Cluster &c) { return find(c)->openers.empty(); }},
		{"add a replica", thin, with_snapshot, asks({{"op", "volume.redundancy"}, {"redundancy", 3}}), on({ALPHA, BETA, GAMMA})},
		{"add a replica", thick, in_use, asks({{"op", "volume.redundancy"}, {"redundancy", 3}}), on({ALPHA, BETA, GAMMA})},
		{"remove a replica", thin, with_snapshot,
		 [](Cluster &c) {
			 if (find(c)->redundancy > 1)
				 (void)c.ask({{"op", "replica.leave"}, {"vid", c.vid("db1")}, {"host", ALPHA}, {"lower", true}});
		 },
		 on({BETA})},
		{"move a replica", thin, with_snapshot, asks({{"op", "replica.move"}, {"from", ALPHA}, {"host", GAMMA}}), on({BETA, GAMMA})},
		{"move the primary's replica", thick, in_use, asks({{"op", "replica.move"}, {"from", BETA}, {"host", GAMMA}}), on({ALPHA, GAMMA})},
		{"make a replica anew", thin, in_use,
		 [](Cluster &c) {
			 const Replica *r = find(c)->replica(ALPHA);
			 if (r && r->added == 1 && r->clean())
				 (void)c.ask({{"op", "replica.invalidate"}, {"vid", c.vid("db1")}, {"host", ALPHA}});
		 },
		 [](Cluster &c) {
			 const Replica *r = find(c)->replica(ALPHA);
			 return r && r->added > 1 && r->clean();
		 }},
		{"choose a primary", thin, in_use, asks({{"op", "volume.primary"}, {"host", ALPHA}}), [](Cluster &c) { return find(c)->primary == ALPHA; }},
		{"take a snapshot", thin, in_use, [](Cluster &c) { take(c, "db1", "s1", UUID2); }, snapshot_there("s1")},
		{"take a snapshot", thick, in_use, [](Cluster &c) { take(c, "db1", "s1", UUID2); }, snapshot_there("s1")},
		{"take a snapshot as hosts with older programs do", thin, in_use, [](Cluster &c) { take(c, "db1", "s1", UUID2, false, false); }, snapshot_there("s1")},
		{"delete a snapshot", thin, with_snapshot, [](Cluster &c) { delete_snapshot(c, "s0"); }, no_snapshots},
		{"delete a snapshot", thick, with_snapshot, [](Cluster &c) { delete_snapshot(c, "s0"); }, no_snapshots},
		{"restore a snapshot", thin, with_snapshot,
		 asks({{"op", "snapshot.restore"}, {"volume", "db1"}, {"name", "s0"}, {"new", "db2"}, {"uuid", UUID2}}, ""),
		 [](Cluster &c) { return serves(c, "db2"); }},
		{"restore a snapshot", thick, with_snapshot,
		 asks({{"op", "snapshot.restore"}, {"volume", "db1"}, {"name", "s0"}, {"new", "db2"}, {"uuid", UUID2}}, ""),
		 [](Cluster &c) { return serves(c, "db2"); }},
		{"clone a volume", thin, in_use, clone_db1, [](Cluster &c) { return serves(c, "db2"); }},
		{"clone a volume", thick, in_use, clone_db1, [](Cluster &c) { return serves(c, "db2"); }},
		{"revert a volume", thin, closed,
		 [reverted](Cluster &c) {
			 if (!reverted(c))
				 (void)c.ask({{"op", "snapshot.revert"}, {"volume", "db1"}, {"name", "s0"}});
		 },
		 reverted},
		{"revert a volume", thick, closed,
		 [reverted](Cluster &c) {
			 if (!reverted(c))
				 (void)c.ask({{"op", "snapshot.revert"}, {"volume", "db1"}, {"name", "s0"}, {"in_place", true}});
		 },
		 reverted},
		{"create a pool", thin, in_use,
		 [](Cluster &c) {
			 (void)c.ask({{"op", "pool.add"}, {"name", "fast"}, {"host", ALPHA}, {"kind", "thick"}, {"vg", "vg"}, {"size_bytes", GIB},
				      {"free_bytes", GIB}});
		 },
		 [](Cluster &c) { return bool(c.state.pool("fast", ALPHA)); }},
		{"delete a pool", thin, with_spare_pool,
		 [](Cluster &c) {
			 if (c.state.pool("spare", ALPHA))
				 (void)c.ask({{"op", "pool.delete"}, {"name", "spare"}, {"host", ALPHA}});
		 },
		 [](Cluster &c) { return !c.state.pool("spare", ALPHA) && c.at(ALPHA).groups.contains("spare") && !c.at(ALPHA).groups["spare"].growing; }},
		{"add a disk", thin, with_disks, [](Cluster &c) { change_disks(c, true, false); },
		 [](Cluster &c) {
			 return has_disks(c, {"/dev/a", "/dev/b", "/dev/n"}) && c.at(ALPHA).lvs.at("/dev/vg/thin").lv.size_bytes > 110 * GIB;
		 }},
		{"remove a disk", thick, with_disks, [](Cluster &c) { change_disks(c, false, true); }, [](Cluster &c) { return has_disks(c, {"/dev/b"}); }},
		{"replace a disk", thin, with_disks, [](Cluster &c) { change_disks(c, true, true); },
		 [](Cluster &c) { return has_disks(c, {"/dev/b", "/dev/n"}); }},
		{"replace a dead disk", thick, with_dead_disk, replace_dead_disk,
		 [](Cluster &c) { return has_disks(c, {"/dev/b", "/dev/n"}) && on({BETA, GAMMA})(c); }},
		{"adopt an orphan", thin, with_orphan,
		 [](Cluster &c) {
			 if (!find(c, "old"))
				 (void)c.ask({{"op", "group.create"}, {"name", "sr"}, {"pool", "default"}});
			 (void)c.ask({{"op", "volume.adopt"}, {"name", "old"}, {"uuid", MORE_UUIDS[1]}, {"host", ALPHA}, {"pool", "default"},
				      {"lv", "lockstep.7"}, {"size_bytes", GIB}, {"block_size", 16384}, {"md_offset", GIB}, {"vid", 7}, {"version", 12},
				      {"term", 4}, {"redundancy", 2}, {"group", "sr"}});
			 if (find(c, "old"))
				 purge_orphans(c);
		 },
		 [](Cluster &c) {
			 return serves(c, "old") && find(c, "old")->replicas.size() == 2 && !c.at(ALPHA).lvs.contains("/dev/vg/lockstep.7.s2.1");
		 }},
		{"evacuate a host", thin, on_gamma, asks({{"op", "host.evacuate"}, {"host", GAMMA}}, ""), on({ALPHA, BETA})},
		{"remove a host", thin, on_gamma, remove_host, [](Cluster &c) { return !c.state.host(GAMMA); }},
		{"give up a host", thin, without_gamma,
		 [](Cluster &c) {
			 if (c.state.host(GAMMA))
				 (void)c.ask({{"op", "host.lost"}, {"host", GAMMA}, {"force", true}, {"snapshots", true}});
		 },
		 [](Cluster &c) { return !c.state.host(GAMMA) && on({ALPHA, BETA})(c); }},
	};
	return all;
}

// Runs it with this strike; gives the picture in the end, and how many steps it took.
static std::pair<Json, uint64_t> run(const Operation &op, Strike how, uint64_t step, HostId other)
{
	Cluster c(op.kind);
	op.before(c);
	const uint64_t begun = c.log->steps;
	c.strike(how, step, other);
	bool done = false;
	for (int tries = 0; !done && tries < 10; tries++) {
		op.command(c);
		done = c.run_until([&] { return op.done(c); }, 30'000);
	}
	for (const std::string &refusal : c.refusals)
		UNSCOPED_INFO("refused: " << refusal);
	CHECK(done);
	const bool settled = c.settles();
	CHECK(settled);
	CHECK(op.done(c));
	const std::vector<std::string> wrong = c.wrong();
	CHECK(wrong == std::vector<std::string>{});
	return {c.picture(), c.log->steps - begun};
}

}    // namespace lockstep::test::killed

using namespace lockstep;
using namespace lockstep::test;

TEST_CASE("whichever daemon is killed at whichever step of an operation, it converges", "[killed]")
{
	const killed::Operation &op = killed::operations()[GENERATE(Catch::Generators::range<size_t>(0, killed::operations().size()))];
	INFO(op.name << ", " << to_string(op.kind));
	const auto [picture, steps] = killed::run(op, Strike::none, 0, 0);
	INFO(steps << " steps");
	REQUIRE(steps > 1);
	for (uint64_t step = 1; step <= steps; step++)
		for (Strike how : {Strike::before, Strike::after, Strike::all, Strike::other})
			for (HostId other = 1; other <= (how == Strike::other ? 3 : 1); other++) {
				INFO("step " << step << " of " << steps << ", strike " << int(how) << " (host " << int(other) << ")");
				const auto [now, unused] = killed::run(op, how, step, other);
				CHECK(now == picture);
			}
}
