// SPDX-License-Identifier: GPL-2.0-or-later
//
// The leader's decisions. Each test applies what is decided and decides again: a decision that has been carried out must not
// be made again.
#include "fixture.h"

#include "lockstepd/cluster/controller.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

using Hearing = std::map<HostId, Liveness>;

Hearing hearing(std::initializer_list<HostId> online, std::initializer_list<HostId> offline)
{
	Hearing h;
	for (HostId id : online)
		h[id] = {true, 0};
	for (HostId id : offline)
		h[id] = {false, 0};
	return h;
}

// Decides and applies until nothing is left to decide; returns the names of what was decided.
std::vector<std::string> settle(Cluster &c, const Hearing &h)
{
	std::vector<std::string> ops;
	for (int round = 0; round < 10; round++) {
		std::vector<json> decisions = decide(c.state, h, 1234);
		if (decisions.empty())
			return ops;
		for (const json &d : decisions) {
			c.good(d);
			ops.push_back(d["op"]);
		}
	}
	FAIL("the controller does not settle");
	return ops;
}

using Ops = std::vector<std::string>;

}    // namespace

TEST_CASE("nothing to decide without a cluster, or while all is well")
{
	Cluster c;
	CHECK(decide(c.state, hearing({1, 2}, {}), 1).empty());
	c.form();
	c.open(c.volume("v"), 1);
	c.volume("idle");
	CHECK(decide(c.state, hearing({1, 2, 3}, {}), 1).empty());
	CHECK(decide(c.state, {}, 1).empty());    // a new leader has no opinion yet
}

TEST_CASE("host status follows what is heard")
{
	Cluster c;
	c.form();
	CHECK(settle(c, hearing({1, 2}, {3})) == Ops{"host.status"});
	CHECK_FALSE(c.state.online(3));
	CHECK(c.state.host(3)->since_ms == 1234);
	CHECK(settle(c, hearing({1, 2}, {})).empty());    // no opinion: stays offline
	CHECK(settle(c, hearing({1, 2, 3}, {})) == Ops{"host.status"});
	CHECK(c.state.online(3));
}

TEST_CASE("a dead primary is replaced by an online clean member, which keeps those online")
{
	Cluster c;
	c.form(4);
	uint32_t vid = c.volume("v", {1, 2, 3});
	c.open(vid, 1);
	CHECK(settle(c, hearing({2, 3, 4}, {1})) == Ops{"host.status", "record.failover"});
	CHECK(c.vol(vid).primary == 2);
	CHECK(c.replica(vid, 1) == ReplicaState::stale);
	CHECK(c.replica(vid, 3) == ReplicaState::insync);
	CHECK(c.vol(vid).openers.size() == 1);    // waits for somebody to take over
	CHECK(settle(c, hearing({1, 2, 3, 4}, {})) == Ops{"host.status"});    // it comes back: the primary resyncs it
	CHECK(c.vol(vid).primary == 2);
}

TEST_CASE("the opener's host is preferred, then the one with fewest primaries")
{
	Cluster c;
	c.form(4);
	uint32_t a = c.volume("a", {1, 2, 3}), b = c.volume("b", {1, 2, 3}), d = c.volume("d", {1, 2, 3});
	for (uint32_t vid : {a, b, d})
		c.open(vid, 1);
	for (uint32_t vid : {a, b, d})
		c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 1}});
	c.open(a, 3);
	settle(c, hearing({2, 3, 4}, {1}));
	CHECK(c.vol(a).primary == 3);
	CHECK(c.vol(b).primary == 2);
	CHECK(c.vol(d).primary != c.vol(a).primary + c.vol(b).primary);
	CHECK((c.vol(d).primary == 2 || c.vol(d).primary == 3));
}

TEST_CASE("a dead member or client is not the controller's business")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	c.open(vid, 3);
	CHECK(c.vol(vid).primary == 1);
	CHECK(settle(c, hearing({1, 3}, {2})) == Ops{"host.status"});    // the primary proposes a version without it
	CHECK(settle(c, hearing({1, 2}, {3})) == Ops{"host.status", "host.status"});
	CHECK(c.vol(vid).opener(3));
}

TEST_CASE("total power loss: the last resort once all in sync are known to be suspect")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	c.suspect(vid, 1);    // the first one back; the other might be clean
	CHECK(settle(c, hearing({1, 3}, {2})) == Ops{"host.status"});
	CHECK(c.vol(vid).primary == 0);
	c.suspect(vid, 2);
	CHECK(settle(c, hearing({1, 2, 3}, {})) == Ops{"host.status", "record.failover"});
	CHECK(c.vol(vid).primary == 1);
	CHECK(c.vol(vid).incarnation == 1);
	CHECK(c.replica(vid, 2) == ReplicaState::stale);
}

TEST_CASE("the last resort needs one that is online, and none while a clean one is away")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2});
	c.open(vid, 1);
	c.suspect(vid, 1);
	CHECK(settle(c, hearing({1, 3}, {2})) == Ops{"host.status"});    // frozen: beta is clean and may come back
	CHECK(settle(c, hearing({1, 2, 3}, {})) == Ops{"host.status", "record.failover"});
	CHECK(c.vol(vid).primary == 2);
	CHECK(c.vol(vid).incarnation == 0);
	CHECK(c.replica(vid, 1) == ReplicaState::stale);

	uint32_t both = c.volume("both", {1, 2});
	c.open(both, 3);
	c.suspect(both, 1);
	c.suspect(both, 2);
	settle(c, hearing({3}, {1, 2}));
	CHECK(c.vol(both).primary == 0);
	settle(c, hearing({2, 3}, {1}));
	CHECK(c.vol(both).primary == 2);
	CHECK(c.vol(both).incarnation == 1);
}

TEST_CASE("a clean sole primary that is offline is waited for")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	c.good(c.proposal(vid, {1}));
	CHECK(settle(c, hearing({2, 3}, {1})) == Ops{"host.status"});    // beta is stale: never
	CHECK(c.vol(vid).primary == 1);
}

TEST_CASE("a volume without primary gets one only when somebody needs it")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	uint64_t session = c.open(vid, 1);
	c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", session}});
	c.good({{"op", "record.resign"}, {"vid", vid}, {"host", 1}});
	CHECK(settle(c, hearing({1, 2, 3}, {})).empty());
	c.suspect(vid, 1);    // to be resynced
	CHECK(settle(c, hearing({1, 2, 3}, {})) == Ops{"record.failover"});
	CHECK(c.vol(vid).primary == 2);
}

TEST_CASE("a create on a host that went offline is given up")
{
	Cluster c;
	c.form();
	json entry = c.create_entry("v");
	entry["hosts"] = {1, 2};
	uint32_t vid = c.good(entry)["vid"];
	c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 1}});
	CHECK(settle(c, hearing({2, 3}, {1})) == Ops{"host.status"});    // alpha is done already
	CHECK(settle(c, hearing({1, 3}, {2})) == Ops{"host.status", "host.status", "volume.abort"});
	CHECK(has(c.state.failures.at(vid).message, "beta went offline"));
	CHECK(settle(c, hearing({1, 3}, {2})).empty());
}

TEST_CASE("decisions are bounded and the rest follows")
{
	Cluster c;
	c.form();
	for (unsigned n = 0; n < MAX_DECISIONS + 20; n++) {
		json entry = c.create_entry("v" + std::to_string(n), 4096);
		entry["hosts"] = {1, 2};
		uint32_t vid = lockstep::apply(c.state, ++c.index, entry)["vid"];
		for (HostId h : {1, 2})
			lockstep::apply(c.state, ++c.index, {{"op", "replica.created"}, {"vid", vid}, {"host", h}});
		lockstep::apply(c.state, ++c.index, {{"op", "record.open"}, {"vid", vid}, {"host", 1}});
	}
	Hearing h = hearing({2, 3}, {1});
	CHECK(decide(c.state, h, 1).size() == MAX_DECISIONS);
	for (int round = 0; round < 2; round++)
		for (const json &d : decide(c.state, h, 1))
			REQUIRE(lockstep::apply(c.state, ++c.index, d)["ok"] == true);
	CHECK(decide(c.state, h, 1).empty());
	for (const auto &[vid, v] : c.state.volumes)
		CHECK(v.primary == 2);
}
