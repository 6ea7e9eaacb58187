// SPDX-License-Identifier: GPL-2.0-or-later
//
// A lost majority is replaced: which copy of each volume is taken, what becomes of the others, and that nothing of the old epoch counts
// any more. New raft ids for hosts whose log is lost.
#include "fixture.h"

#include "lockstepd/cluster/controller.h"
#include "lockstepd/cluster/recover.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct Lost : Cluster {
	explicit Lost(unsigned hosts = 3) { form(hosts); }

	json entry(HostId host, std::set<HostId> dead, std::map<uint32_t, std::map<HostId, uint64_t>> versions = {})
	{
		return recover_entry(state, host, dead, versions, 77);
	}

	json row(const json &entry, const std::string &volume)
	{
		auto plan = recovery_plan(state, entry);
		REQUIRE(plan);
		for (const json &row : (*plan)["volumes"])
			if (row["volume"] == volume)
				return row;
		FAIL("no row of " << volume);
		return nullptr;
	}

	// The leader's decisions until there are none; all hosts of the state are there.
	void settle()
	{
		std::map<HostId, Liveness> alive;
		for (const auto &[id, h] : state.hosts)
			alive[id] = {true, 100};
		for (int round = 0; round < 20; round++)
			for (const json &e : decide(state, alive, 100))
				good(e);
	}
};

}    // namespace

TEST_CASE("a copy in sync survives: it goes on in a new term that no old record reaches")
{
	Lost c;
	uint32_t vid = c.volume("v", {1, 2});
	c.open(vid, 2);
	c.open(c.volume("w", {1, 3}), 1);
	const Volume before = c.vol(vid);
	const json e = c.entry(1, {2, 3});
	CHECK(c.row(e, "v")["copy"] == "alpha");
	CHECK(has(c.row(e, "v")["loss"], "nothing, unless"));
	CHECK(c.state.epoch == 0);    // a plan changes nothing
	const json answer = c.good(e);
	CHECK(answer["raft_id"] == (1ull << EPOCH_SHIFT) + 1);
	CHECK(c.state.epoch == 1);
	CHECK((c.state.hosts.size() == 1 && c.state.pools.size() == 1));
	const Volume &v = c.vol(vid);
	CHECK((v.version > before.version + 1000 && v.term > before.term + 1000 && v.session_serial > before.session_serial + 1000));
	CHECK((v.replicas.size() == 1 && v.replica(1)->clean() && v.primary == 0 && v.openers.empty()));
	CHECK(v.incarnation == before.incarnation);
	CHECK_FALSE(c.good(e)["changed"].get<bool>());
	c.open(vid, 1);
	CHECK(c.vol(vid).primary == 1);
	// What the lost hosts agreed on is refused.
	CHECK(has(c.bad(5, {{"op", "record.propose"}, {"vid", vid}, {"host", 1}, {"version", before.version}, {"term", before.term}, {"members", {1}}}), "version"));
	CHECK(restore(snapshot(c.state)).operator*() == c.state);
}

TEST_CASE("of several surviving copies one is the source, the others are copied in full")
{
	Lost c(4);
	uint32_t vid = c.volume("v", {1, 2, 3});
	c.open(vid, 2);
	CHECK(c.vol(vid).primary == 2);
	SECTION("the primary's")
	{
		c.good(c.entry(1, {3, 4}));
		CHECK(c.replica(vid, 2) == ReplicaState::insync);
		CHECK(c.replica(vid, 1) == ReplicaState::stale);
		CHECK(c.vol(vid).replica(1)->since == c.vol(vid).version);    // no dirty map is tied to this
		CHECK(c.vol(vid).opener(2) != nullptr);
	}
	SECTION("but rather one whose kernel has heard of a newer version")
	{
		c.good(c.entry(1, {3, 4}, {{vid, {{1, 9}, {2, 3}}}}));
		CHECK(c.replica(vid, 1) == ReplicaState::insync);
		CHECK(c.replica(vid, 2) == ReplicaState::stale);
	}
	SECTION("a stale one is never preferred, whatever its kernel says")
	{
		c.good(c.proposal(vid, {2, 3}));
		c.good(c.entry(1, {3, 4}, {{vid, {{1, 9}, {2, 3}}}}));
		CHECK(c.replica(vid, 2) == ReplicaState::insync);
		CHECK(c.replica(vid, 1) == ReplicaState::stale);
	}
}

TEST_CASE("only a stale copy survives: the last resort, a new incarnation, and the plan says what is lost")
{
	Lost c;
	uint32_t vid = c.volume("v", {1, 2});
	c.open(vid, 2);
	c.good(c.proposal(vid, {2}));
	const uint64_t since = c.vol(vid).replica(1)->since;
	const json e = c.entry(1, {2, 3});
	CHECK(c.row(e, "v")["copy"] == "alpha");
	CHECK(has(c.row(e, "v")["loss"], "all that was written since version " + std::to_string(since)));
	c.good(e);
	CHECK(c.replica(vid, 1) == ReplicaState::suspect);
	c.settle();
	CHECK(c.replica(vid, 1) == ReplicaState::insync);
	CHECK((c.vol(vid).primary == 1 && c.vol(vid).incarnation == 1));
}

TEST_CASE("no copy survives, or the volume was half made: it is given up, and that is remembered")
{
	Lost c;
	uint32_t gone = c.volume("gone", {2, 3});
	json half = c.create_entry("half");
	half["hosts"] = {1, 2};
	uint32_t making = c.good(half)["vid"];
	const json e = c.entry(1, {2, 3});
	CHECK(c.row(e, "gone")["copy"].is_null());
	CHECK(has(c.row(e, "gone")["loss"], "all of it"));
	c.good(e);
	CHECK(c.state.volume(gone) == nullptr);
	CHECK(c.vol(making).phase == Phase::deleting);
	CHECK(has(c.state.failures.at(gone).message, "no surviving host has a copy"));
	CHECK(c.state.failures.contains(making));
}

TEST_CASE("numbers of a lost majority are never given out again")
{
	Lost c;
	c.volume("v", {1, 2});
	const uint32_t vid = c.state.next_vid;
	c.good({{"op", "token.add"}, {"hash", std::string(64, 'a')}, {"end_ms", 10}, {"now_ms", 1}});
	c.good(c.entry(1, {2, 3}));
	CHECK((c.state.next_vid > vid + 1000 && c.state.tokens.empty()));
	CHECK(c.good(with(Cluster::host_entry(4, "delta"), {{"host_level", LEVEL}}))["raft_id"] == (1ull << EPOCH_SHIFT) + 2);
}

TEST_CASE("a surviving host must rejoin: it is a member of the log again with an id of the new epoch")
{
	Lost c;
	c.volume("v", {1, 2});
	c.good(c.entry(1, {3}));
	CHECK(c.state.is_member(*c.state.host(1)));
	CHECK_FALSE(c.state.is_member(*c.state.host(2)));
	const uint64_t old = c.state.host(2)->raft_id;
	const uint64_t first = c.good({{"op", "host.rejoin"}, {"host", 2}, {"raft_id", old}})["raft_id"];
	CHECK((c.state.is_member(*c.state.host(2)) && c.state.host(2)->former_raft_id == old));
	// The answer was lost, and it asks again: never the same id twice.
	const uint64_t second = c.good({{"op", "host.rejoin"}, {"host", 2}, {"raft_id", old}})["raft_id"];
	CHECK(second > first);
	CHECK(has(c.bad(5, {{"op", "host.rejoin"}, {"host", 2}, {"raft_id", first}}), "does not have"));
	CHECK(has(c.bad(5, {{"op", "host.rejoin"}, {"host", 2}, {"raft_id", 12345}}), "does not have"));
	c.bad(3, {{"op", "host.rejoin"}, {"host", 3}, {"raft_id", 3}});    // dead for good
	c.good({{"op", "host.rejoin"}, {"host", 2}, {"raft_id", second}});
	CHECK(c.state.host(2)->former_raft_id == second);
}

TEST_CASE("what makes no sense is refused, and nothing is changed")
{
	Lost c;
	uint32_t vid = c.volume("v", {1, 2});
	const json e = c.entry(1, {2, 3});
	CHECK(has(c.bad(2, with(e, {{"dead", {1, 2}}})), "among the dead"));
	c.bad(3, with(e, {{"dead", {2, 9}}}));
	CHECK(has(c.bad(5, with(e, {{"epoch", 2}})), "epoch"));
	CHECK(has(c.bad(2, with(e, {{"copies", {{vid, 2}}}})), "copies"));
	CHECK(has(c.bad(2, with(e, {{"copies", {{vid, 3}}}})), "copies"));
}
