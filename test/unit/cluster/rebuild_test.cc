// SPDX-License-Identifier: GPL-2.0-or-later
//
// All logs are lost: which copy of each volume the disks speak for, where they leave a doubt, and what log is made of it.
#include "fixture.h"
#include "found.h"

#include "lockstepd/cluster/controller.h"
#include "lockstepd/cluster/recover.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct Found {
	explicit Found(unsigned hosts = 3) : in(found_input(hosts)) {}

	FoundCopy &copy(uint32_t vid, HostId host)
	{
		FoundHost &h = in.hosts[host - 1];
		for (FoundCopy &c : h.copies)
			if (c.vid == vid)
				return c;
		h.copies.reserve(8);
		return h.copies.emplace_back(found_copy_of(vid, host));
	}

	json row(uint32_t vid)
	{
		// As it comes from another host.
		for (FoundHost &h : in.hosts) {
			auto same = found_host(json::from_cbor(json::to_cbor(to_json(h))));
			REQUIRE(same);
			h = *same;
		}
		auto plan = plan_rebuild(in);
		INFO((plan ? "" : plan.error().message));
		REQUIRE(plan);
		rebuild = *plan;
		for (const json &r : rebuild.volumes)
			if (r["uuid"] == found_uuid(vid))
				return r;
		return nullptr;
	}

	std::string doubt(uint32_t vid)
	{
		const json r = row(vid);
		if (r["doubt"].is_null())
			return "";
		CHECK(r["copy"].is_null());
		CHECK_FALSE(rebuild.in_doubt.empty());
		return r["doubt"];
	}

	State state()
	{
		State s;
		const json answer = apply(s, 1, rebuild.entry);
		INFO(answer.dump());
		REQUIRE(answer["ok"] == true);
		CHECK(check(s) == "");
		return s;
	}

	RebuildInput in;
	Rebuild rebuild;
};

}    // namespace

TEST_CASE("from disks: copies that were detached clean are one as good as the other; the new log describes what is there")
{
	Found f;
	f.copy(3, 1);
	f.copy(3, 2);
	f.copy(4, 3).shared = true;
	f.in.hosts[1].top_vid = 12;
	f.in.hosts[2].raft_id = (2ull << EPOCH_SHIFT) + 7;
	f.in.hosts[2].host["raft_id"] = f.in.hosts[2].raft_id;
	const json r = f.row(3);
	CHECK(r["doubt"].is_null());
	CHECK((r["copy"] == "alpha" && r["others"] == json{"beta"}));
	CHECK(has(r["why"], "version 9, term 3, clean"));
	CHECK(has(f.row(4)["why"], "the only copy"));
	State s = f.state();
	CHECK((s.uuid == FOUND_CLUSTER && s.name == "lab" && s.epoch == 3 && s.hosts.size() == 3 && s.pools.size() == 3));
	CHECK(s.authority == f.in.authority);
	CHECK((s.host(1)->raft_id == (3ull << EPOCH_SHIFT) + 1 && s.is_member(*s.host(1)) && !s.is_member(*s.host(3))));
	CHECK((s.next_vid > 12 + RECOVERY_ID_JUMP && s.next_host == 4));
	const Volume &v = *s.volume_named("v3");
	CHECK((v.vid == 3 && v.uuid == found_uuid(3) && v.size_bytes == 1ull << 30 && v.phase == Phase::ready && v.redundancy == 2));
	CHECK((v.version > RECOVERY_JUMP && v.term > RECOVERY_JUMP && v.openers.empty() && v.primary == 0));
	CHECK((v.replica(1)->clean() && v.replica(2)->state == ReplicaState::stale && v.replica(2)->since == v.version));
	CHECK((v.replica(1)->created && v.replica(1)->pool == "default" && v.replica(1)->md_offset == 1ull << 30));
	CHECK((s.volume_named("v4")->cls == LKS_SHARED && s.volume_named("v4")->minor != v.minor));
	CHECK((s.pool("default", 1)->vg == "vg" && s.pool("default", 1)->thin_lv == "thin" && s.pool("default", 1)->kind == PoolKind::thin));
	// It is served, and the entry is the first of a log only.
	std::map<HostId, Liveness> alive = {{1, {true, 100}}, {2, {true, 100}}, {3, {true, 100}}};
	uint64_t index = 1;
	for (const json &e : decide(s, alive, 100))
		CHECK(apply(s, ++index, e)["ok"] == true);
	CHECK(apply(s, ++index, f.rebuild.entry)["changed"] == false);
	json other = f.rebuild.entry;
	other["epoch"] = 9;
	CHECK(has(apply(s, ++index, other)["message"], "is cluster lab already"));
	CHECK(restore(snapshot(s)).operator*() == s);
	// The others ask for their ids, and get them.
	CHECK(apply(s, ++index, {{"op", "host.rejoin"}, {"host", 3}, {"raft_id", f.in.hosts[2].raft_id}})["raft_id"] == (3ull << EPOCH_SHIFT) + 2);
}

TEST_CASE("from disks: groups come back with the volumes that say they are in them")
{
	Found f;
	for (HostId host : {1, 2, 3})
		f.copy(3, host).group = "sr";
	for (HostId host : {1, 2, 3}) {
		f.copy(4, host).group = "ha";
		f.copy(4, host).shared = true;
	}
	f.copy(5, 1).group = "no valid name";
	f.row(3);
	const State s = f.state();
	CHECK(s.groups.size() == 2);
	CHECK((s.groups.at("sr").pool == "default" && s.groups.at("sr").redundancy == 3));
	CHECK(s.groups.at("ha").redundancy == 2);    // a shared volume has more copies than its group asks for
	CHECK((s.volume_named("v3")->group == "sr" && s.volume_named("v4")->group == "ha" && s.volume_named("v5")->group == ""));
	CHECK(level_of(f.rebuild.entry) == LEVEL_GROUPS);
	CHECK(restore(snapshot(s)).operator*() == s);
	// One that is not in the entry is in no state.
	json torn = f.rebuild.entry;
	torn["groups"].erase(0);
	State other;
	CHECK(has(apply(other, 1, torn)["message"], "no group named"));
	// A program that does not know groups here may follow where there are none.
	for (FoundHost &h : f.in.hosts)
		for (FoundCopy &c : h.copies)
			c.group = "";
	f.row(3);
	CHECK(level_of(f.rebuild.entry) == LEVEL_REBUILD);
}

TEST_CASE("from disks: a copy that another one knows to be out of date is never taken")
{
	Found f;
	f.copy(3, 1).version = 8;
	f.copy(3, 2).absent = {1};
	f.copy(3, 2).quiet = false;    // it went on alone and lost power
	const json r = f.row(3);
	CHECK((r["copy"] == "beta" && r["doubt"].is_null()));
	CHECK(has(r["loss"], "not flushed"));
	const State s = f.state();
	CHECK((s.volume_named("v3")->replica(2)->state == ReplicaState::suspect && s.volume_named("v3")->replica(1)->state == ReplicaState::stale));
	// Also when it has heard of the same version since.
	f.copy(3, 1).version = 9;
	CHECK(f.row(3)["copy"] == "beta");
	// But what was written on beta that alpha has more of?
	f.copy(3, 1).written = 6;
	CHECK(has(f.doubt(3), "has 6 extents written"));
}

TEST_CASE("from disks: where either of two copies may be the newest, neither is taken unasked")
{
	Found f;
	FoundCopy &a = f.copy(3, 1), &b = f.copy(3, 2);
	std::string why;
	SECTION("both lost power while they were written to")
	{
		a.quiet = b.quiet = false;
		why = "either may hold the last writes";
	}
	SECTION("one lost power, the other was shut down before or after")
	{
		b.quiet = false;
		why = "either may hold the last writes";
	}
	SECTION("one knows a later version, and not that the other is out of date: it may itself be")
	{
		b.version = 10;
		why = "differ in what they know";
	}
	SECTION("each says that the other lacks something")
	{
		a.absent = {2};
		b.absent = {1};
		why = "lacks something";
	}
	SECTION("one is out of date by the other, but knows more")
	{
		a.version = 11;
		a.absent = {3};
		b.absent = {1};
		why = "knows version 11";
	}
	SECTION("a new, empty replica, of which the other has not written down yet that it is one")
	{
		b.written = 0;
		b.version = 10;
		why = "has 5 extents written";
	}
	SECTION("an incarnation of its own")
	{
		a.incarnation = 1;
		why = "differ in what they know";
	}
	SECTION("of another size")
	{
		b.size_bytes = 1ull << 29;
		why = "differ in size";
	}
	SECTION("one cannot be read")
	{
		b.problem = "cannot read /dev/vg/lockstep.3";
		why = "cannot be used: cannot read";
	}
	SECTION("none can be read")
	{
		a.problem = b.problem = "no disk";
		CHECK(has(f.doubt(3), "no copy can be used"));
		f.in.choices = {{"v3", "alpha"}};
		CHECK_FALSE(plan_rebuild(f.in));
		f.in.choices = {{"v3", "none"}};
		CHECK((f.row(3)["left"] == true && f.rebuild.in_doubt.empty() && f.state().volumes.empty()));
		return;
	}
	const std::string doubt = f.doubt(3);
	INFO(doubt);
	CHECK(has(doubt, why));
	CHECK(f.state().volumes.empty());
	// Named, it is: as a new incarnation, whatever it looks like.
	for (const std::string volume : {"v3", "all"}) {
		f.in.choices = {{volume, "alpha"}};
		const json r = f.row(3);
		CHECK((r["copy"] == "alpha" && f.rebuild.in_doubt.empty() && has(r["why"], "named by you")));
		const State s = f.state();
		CHECK(s.volume_named("v3")->replica(1)->state == ReplicaState::suspect);
		CHECK((s.volume_named("v3")->version > RECOVERY_JUMP + 8 && s.volume_named("v3")->incarnation >= f.copy(3, 2).incarnation));
	}
}

TEST_CASE("from disks: quiet copies of one version are the same, wherever they are, whoever is asked first")
{
	Found f;
	for (HostId host : {3, 2, 1})
		f.copy(3, host);
	CHECK(f.row(3)["copy"] == "alpha");
	f.copy(3, 2).quiet = false;
	f.copy(3, 1).absent = {2};
	CHECK(f.row(3)["copy"] == "alpha");
	CHECK(f.row(3)["others"] == json({"beta", "gamma"}));
}

TEST_CASE("from disks: what is named, and what is not there")
{
	Found f;
	f.copy(3, 1).quiet = false;
	f.copy(3, 2).quiet = false;
	f.copy(4, 1);
	f.in.choices = {{"v9", "alpha"}};
	CHECK(has(plan_rebuild(f.in).error().message, "no copy of a volume v9"));
	f.in.choices = {{"v3", "omega"}};
	CHECK(has(plan_rebuild(f.in).error().message, "host omega"));
	f.in.choices = {{"v3", "gamma"}};
	CHECK(has(plan_rebuild(f.in).error().message, "host gamma has no copy of it"));
	f.in.choices = {{"all", "gamma"}};    // it has none of those in doubt
	CHECK(f.row(3)["copy"].is_null());
	f.in.choices = {{"all", "beta"}, {found_uuid(3), "alpha"}};    // the one that is named counts
	CHECK(f.row(3)["copy"] == "alpha");
	CHECK(f.row(4)["why"].get<std::string>().find("named") == std::string::npos);
	f.in.choices = {{"all", "none"}};
	CHECK((f.row(3)["left"] == true && f.row(4)["copy"] == "alpha"));
	CHECK(f.state().volumes.size() == 1);
}

TEST_CASE("from disks: what earlier clusters and deleted volumes have left")
{
	Found f;
	f.copy(3, 1);
	f.copy(4, 2).cluster = "c0000000-0000-4000-8000-000000000002";
	f.copy(5, 2).name = "v3";    // made later
	f.copy(6, 2).name = "";      // by an older program
	f.copy(6, 2).pool = f.copy(6, 2).cluster = "";
	CHECK(f.row(4).is_null());
	CHECK(f.row(5)["volume"] == "v3");
	CHECK(f.row(3)["volume"] == "v3-" + found_uuid(3));
	CHECK(f.row(6)["volume"] == "recovered-" + found_uuid(6));
	CHECK((f.state().volume_named("recovered-" + found_uuid(6))->replica(2)->pool == "default" && f.state().pools.size() == 2));
	f.copy(6, 2).thin_pool = "";
	CHECK((f.row(6)["copy"] == "beta" && f.state().pool("vg", 2)));
	f.copy(6, 2).thin_pool = "thin";
	// Two volumes with one number: one of them has to be left out.
	FoundCopy twin = found_copy_of(7, 3);
	twin.vid = 3;
	twin.lv = "lockstep.3";
	f.in.hosts[2].copies.push_back(twin);
	CHECK(has(f.doubt(3), "the same number 3"));
	f.in.choices = {{found_uuid(7), "none"}};
	CHECK((f.row(3)["copy"] == "alpha" && f.rebuild.in_doubt.empty()));
	// Two of one volume on one host.
	f.in.hosts[0].copies.push_back(found_copy_of(3, 1));
	f.in.hosts[0].copies.back().vg = "vg2";
	CHECK(has(f.doubt(3), "there are two of it"));
}

TEST_CASE("from disks: hosts that are lost may have had a later copy, and their ids are not given out again")
{
	Found f(2);
	f.in.former = {3, 5};
	f.copy(3, 1);
	CHECK(has(f.row(3)["loss"], "unless a host that is lost had a later copy"));
	CHECK(f.state().next_host == 6);
	f.copy(3, 1).absent = {7};
	CHECK(f.row(3)["copy"] == "alpha");
	CHECK(f.state().next_host == 8);
}

TEST_CASE("from disks: an answer that makes no sense is refused")
{
	json j = to_json(found_input(1).hosts[0]);
	j.erase("copies");
	CHECK_FALSE(found_host(j));
	CHECK_FALSE(found_host(json()));
	Found f;
	f.copy(3, 1).size_bytes = 4097;
	CHECK_FALSE(plan_rebuild(f.in));
	f.copy(3, 1) = found_copy_of(3, 1);
	f.copy(3, 1).thin_pool = "other";
	CHECK(has(plan_rebuild(f.in).error().message, "does not say how large"));
}
