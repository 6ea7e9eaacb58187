// SPDX-License-Identifier: GPL-2.0-or-later
//
// Changes of the record of truth: who may make them, what each does, what is refused.
#include "fixture.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

constexpr auto INSYNC = ReplicaState::insync, SUSPECT = ReplicaState::suspect, STALE = ReplicaState::stale, FAILED = ReplicaState::failed;

}    // namespace

TEST_CASE("the first open chooses a primary, the opener's own replica if it has one")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2}), far = c.volume("far", {1, 2});
	json answer = c.good({{"op", "record.open"}, {"vid", vid}, {"host", 2}});
	CHECK(answer["session"] == 1);
	CHECK(answer["version"] == 2);
	CHECK(answer["term"] == 2);
	CHECK(answer["primary"] == 2);
	CHECK(to_record(c.vol(vid)).flags == LKS_RECORD_DRAINED);    // nobody has been promised anything yet
	CHECK(c.vol(vid).openers == std::vector<Opener>{{2, 1}});
	json again = c.good({{"op", "record.open"}, {"vid", vid}, {"host", 2}});
	CHECK(again["changed"] == false);
	CHECK(again["session"] == 1);
	CHECK(c.good({{"op", "record.open"}, {"vid", far}, {"host", 3}})["primary"] == 1);    // fewest primaries
}

TEST_CASE("an exclusive volume has one opener")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	CHECK(c.open(vid, 1) == 1);
	CHECK(has(c.bad(5, {{"op", "record.open"}, {"vid", vid}, {"host", 3}}), "open on host alpha"));
	c.bad(3, {{"op", "record.open"}, {"vid", vid}, {"host", 9}});
	c.bad(3, {{"op", "record.open"}, {"vid", 77}, {"host", 1}});
	SECTION("closing frees it")
	{
		CHECK(c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 9}})["changed"] == false);
		CHECK(c.good({{"op", "record.close"}, {"vid", vid}, {"host", 2}, {"session", 1}})["changed"] == false);
		CHECK(c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 1}})["changed"] == true);
		CHECK(c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 1}})["changed"] == false);
		CHECK(c.vol(vid).primary == 1);    // it goes on serving nobody
		CHECK(c.open(vid, 3) == 2);
		CHECK(c.vol(vid).term == 2);
	}
	SECTION("an offline host's is taken over")
	{
		c.online(1, false);
		CHECK(c.open(vid, 2) == 2);
		CHECK(c.vol(vid).openers == std::vector<Opener>{{2, 2}});
		CHECK(c.vol(vid).primary == 1);    // fail-over is the controller's business
		CHECK(c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 1}})["changed"] == false);
	}
	SECTION("a session that ended is not granted again")
	{
		CHECK(c.good({{"op", "record.open"}, {"vid", vid}, {"host", 1}, {"ended", 0}})["session"] == 1);
		CHECK(c.good({{"op", "record.open"}, {"vid", vid}, {"host", 1}, {"ended", 1}})["session"] == 2);
		CHECK(c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 1}})["changed"] == false);    // a late close
		CHECK(c.vol(vid).openers == std::vector<Opener>{{1, 2}});
	}
}

TEST_CASE("an open without a primary needs a clean replica that is online")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	c.online(1, false);
	c.suspect(vid, 2);
	std::string message = c.bad(5, {{"op", "record.open"}, {"vid", vid}, {"host", 3}});
	CHECK(has(message, "alpha is offline"));
	CHECK(has(message, "beta restarted unclean"));
	c.online(1, true);
	CHECK(c.good({{"op", "record.open"}, {"vid", vid}, {"host", 3}})["primary"] == 1);
	CHECK(c.replica(vid, 2) == STALE);    // it cannot be a member
	CHECK(c.vol(vid).replica(2)->since == c.vol(vid).version);
}

TEST_CASE("the same host opens again after its primary was deposed: same session, new term")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	c.suspect(vid, 1);
	json answer = c.good({{"op", "record.open"}, {"vid", vid}, {"host", 1}});
	CHECK(answer["session"] == 1);
	CHECK(answer["primary"] == 2);
	CHECK(answer["term"] == 3);
}

TEST_CASE("a shared volume has any number of openers, and fences only an older session of the same host")
{
	Cluster c;
	c.form();
	json entry = c.create_entry("ha");
	CHECK(has(c.bad(2, with(entry, {{"class", "public"}})), "exclusive or shared"));
	entry = with(entry, {{"class", "shared"}, {"hosts", {1, 2}}});
	uint32_t vid = c.good(entry)["vid"];
	for (HostId h : {1, 2})
		c.good({{"op", "replica.created"}, {"vid", vid}, {"host", h}});
	CHECK(c.open(vid, 3) == 1);
	CHECK(c.open(vid, 1) == 2);
	CHECK(c.open(vid, 2) == 3);
	CHECK(c.open(vid, 2) == 3);
	CHECK(c.vol(vid).openers == std::vector<Opener>{{1, 2}, {2, 3}, {3, 1}});
	CHECK(c.vol(vid).term == 2);    // no role change
	CHECK(wanted_primary(c.state, c.vol(vid)) == c.vol(vid).primary);
	CHECK(c.good({{"op", "record.open"}, {"vid", vid}, {"host", 3}, {"ended", 1}})["session"] == 4);
	CHECK(c.vol(vid).openers == std::vector<Opener>{{1, 2}, {2, 3}, {3, 4}});
	c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", 2}});
	CHECK(c.vol(vid).openers == std::vector<Opener>{{2, 3}, {3, 4}});
	CHECK(restore(snapshot(c.state)).operator*() == c.state);
}

TEST_CASE("the primary follows the opener of an exclusive volume, unless an administrator chose otherwise")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2});
	auto choose = [&](int host) { return json{{"op", "volume.primary"}, {"vid", vid}, {"host", host}}; };
	auto hand_over = [&](HostId to) {
		c.good(with(c.proposal(vid, {1, 2}), {{"term", c.vol(vid).term + 1}, {"primary", to}}));
	};
	uint64_t session = c.open(vid, 1);
	CHECK(wanted_primary(c.state, c.vol(vid)) == 1);
	c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", session}});
	session = c.open(vid, 2);
	CHECK(c.vol(vid).primary == 1);
	CHECK(wanted_primary(c.state, c.vol(vid)) == 2);
	c.online(2, false);
	CHECK(wanted_primary(c.state, c.vol(vid)) == 1);
	c.online(2, true);
	hand_over(2);
	CHECK(wanted_primary(c.state, c.vol(vid)) == 2);
	SECTION("a choice holds")
	{
		CHECK(c.good(choose(1))["changed"] == true);
		CHECK(c.good(choose(1))["changed"] == false);
		CHECK(wanted_primary(c.state, c.vol(vid)) == 1);
		hand_over(1);
		CHECK(wanted_primary(c.state, c.vol(vid)) == 1);
		CHECK(c.good(choose(0))["changed"] == true);
		CHECK(wanted_primary(c.state, c.vol(vid)) == 2);
	}
	SECTION("... until it is opened elsewhere")
	{
		c.good(choose(1));
		c.good({{"op", "record.close"}, {"vid", vid}, {"host", 2}, {"session", session}});
		session = c.open(vid, 3);    // no replica there to follow to
		CHECK(wanted_primary(c.state, c.vol(vid)) == 1);
		c.good({{"op", "record.close"}, {"vid", vid}, {"host", 3}, {"session", session}});
		c.open(vid, 2);
		CHECK(c.vol(vid).chosen_primary == 0);
		CHECK(wanted_primary(c.state, c.vol(vid)) == 2);
	}
	SECTION("... or fails over")
	{
		c.good(choose(2));
		c.good({{"op", "record.failover"}, {"vid", vid}, {"version", c.vol(vid).version}, {"primary", 1}, {"keep", {1}}});
		CHECK(c.vol(vid).chosen_primary == 0);
	}
	SECTION("refusals")
	{
		CHECK(has(c.bad(5, choose(3)), "no replica on host gamma"));
		c.bad(3, choose(9));
		c.suspect(vid, 1);
		CHECK(has(c.bad(5, choose(1)), "is suspect"));
		c.online(2, false);
		CHECK(has(c.bad(5, choose(2)), "is offline"));
	}
	SECTION("who serves nowhere serves there at once")
	{
		c.good({{"op", "record.resign"}, {"vid", vid}, {"host", 2}});
		c.good(choose(1));
		CHECK(c.vol(vid).primary == 1);
	}
}

TEST_CASE("record.propose: the primary says who is in sync")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2, 3});
	c.open(vid, 1);
	SECTION("losing and regaining a member")
	{
		c.good(c.proposal(vid, {1, 3}));
		CHECK(c.replica(vid, 2) == STALE);
		CHECK(c.vol(vid).replica(2)->since == 3);
		CHECK(c.vol(vid).term == 2);
		c.good(c.proposal(vid, {1}));
		CHECK(c.vol(vid).replica(2)->since == 3);
		CHECK(c.vol(vid).replica(3)->since == 4);
		c.good(c.proposal(vid, {1, 2}));
		CHECK(c.replica(vid, 2) == INSYNC);
		CHECK(c.vol(vid).replica(2)->since == 5);
		c.good(c.proposal(vid, {1, 2}));    // C6: a version of its own
		CHECK(c.vol(vid).version == 6);
	}
	SECTION("refusals")
	{
		json p = c.proposal(vid, {1, 2});
		CHECK(has(c.bad(5, with(p, {{"version", 1}})), "is at version 2"));
		CHECK(has(c.bad(5, with(p, {{"version", 3}})), "is at version 2"));
		CHECK(has(c.bad(5, with(p, {{"host", 2}})), "beta is not its primary"));
		CHECK(has(c.bad(5, with(p, {{"term", 1}})), "of term 1"));
		CHECK(has(c.bad(5, with(p, {{"term", 3}})), "of term 3"));
		CHECK(has(c.bad(5, with(p, {{"primary", 2}})), "needs another term"));
		CHECK(has(c.bad(5, with(p, {{"primary", 2}, {"term", 4}})), "of term 4"));
		CHECK(has(c.bad(3, with(p, {{"primary", 0}, {"term", 3}})), "no replica on host"));
		CHECK(has(c.bad(5, with(p, {{"members", {2, 3}}})), "primary must stay"));
		CHECK(has(c.bad(5, with(p, {{"members", json::array()}})), "primary must stay"));
		CHECK(has(c.bad(3, with(p, {{"members", {1, 4}}})), "no replica on host"));
		c.bad(2, with(p, {{"members", {1, 99}}}));
		c.bad(2, with(p, {{"members", 1}}));
		c.good({{"op", "record.failed"}, {"vid", vid}, {"host", 2}});
		CHECK(has(c.bad(5, c.proposal(vid, {1, 2, 3})), "disk of its replica on host beta has failed"));
		c.good(c.proposal(vid, {1, 3}));
		CHECK(c.replica(vid, 2) == FAILED);
		c.good({{"op", "record.resign"}, {"vid", vid}, {"host", 1}});
		CHECK(has(c.bad(5, with(p, {{"version", c.vol(vid).version}})), "alpha is not its primary"));
	}
	SECTION("suspicion stays with a member and ends with membership")
	{
		c.suspect(vid, 3);
		c.good(c.proposal(vid, {1, 2, 3}));
		CHECK(c.replica(vid, 3) == SUSPECT);
		c.good(c.proposal(vid, {1, 2}));
		CHECK(c.replica(vid, 3) == STALE);
		c.good(c.proposal(vid, {1, 2, 3}));
		CHECK(c.replica(vid, 3) == INSYNC);
	}
}

TEST_CASE("propose_entry carries what the kernel proposes")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2, 3});
	c.open(vid, 1);
	c.good(c.proposal(vid, {1, 2}));
	lks_record record = to_record(c.vol(vid));
	CHECK(record.version == 3);
	CHECK(record.term == 2);
	CHECK(record.vid == vid);
	CHECK(record.primary == 1);
	CHECK(record.session_serial == 1);
	CHECK(record.nreplicas == 3);
	CHECK(record.nopeners == 1);
	CHECK(record.openers[0].host == 1);
	CHECK(record.openers[0].session == 1);
	CHECK(record.replicas[2].host == 3);
	CHECK(record.replicas[2].state == LKS_REPLICA_STALE);
	CHECK(record.replicas[2].since == 3);
	CHECK(record.replicas[3].host == 0);
	record.version++;
	record.replicas[1].state = LKS_REPLICA_STALE;
	record.replicas[2].state = LKS_REPLICA_INSYNC;
	json entry = propose_entry(record, 1);
	c.good(entry);
	CHECK(c.replica(vid, 2) == STALE);
	CHECK(c.replica(vid, 3) == INSYNC);
	CHECK(c.vol(vid).version == record.version);
	CHECK(has(c.bad(5, entry), "is at version 4"));
	record = to_record(c.vol(vid));
	record.version++;
	record.term++;
	record.primary = 2;
	CHECK(has(c.bad(5, propose_entry(record, 1)), "beta is not in sync"));
	record.primary = 3;
	record.flags = LKS_RECORD_DRAINED;
	c.good(propose_entry(record, 1));    // M1
	lks_record now = to_record(c.vol(vid));
	CHECK(now.primary == 3);
	CHECK(now.term == 3);
	CHECK(now.flags == LKS_RECORD_DRAINED);
	CHECK(c.replica(vid, 1) == INSYNC);
	CHECK(has(c.bad(5, propose_entry(record, 1)), "is at version 5"));
	c.good({{"op", "record.failover"}, {"vid", vid}, {"version", 5}, {"primary", 1}, {"keep", {1, 3}}});
	CHECK(c.vol(vid).term == 4);
	CHECK(to_record(c.vol(vid)).flags == 0);    // only the first term and that of the handover began so
}

TEST_CASE("suspect, resign, failed, repaired")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	SECTION("a suspect primary is deposed, its opener stays")
	{
		c.suspect(vid, 1);
		CHECK(c.replica(vid, 1) == SUSPECT);
		CHECK(c.vol(vid).primary == 0);
		CHECK(c.vol(vid).openers.size() == 1);
		CHECK(c.good({{"op", "record.suspect"}, {"vid", vid}, {"host", 1}})["changed"] == false);
	}
	SECTION("a suspect member leaves the primary alone")
	{
		c.suspect(vid, 2);
		CHECK(c.vol(vid).primary == 1);
	}
	SECTION("a stale one cannot become suspect")
	{
		c.good(c.proposal(vid, {1}));
		CHECK(c.good({{"op", "record.suspect"}, {"vid", vid}, {"host", 2}})["changed"] == false);
	}
	SECTION("resigning")
	{
		CHECK(c.good({{"op", "record.resign"}, {"vid", vid}, {"host", 2}})["changed"] == false);
		CHECK(c.good({{"op", "record.resign"}, {"vid", vid}, {"host", 1}})["changed"] == true);
		CHECK(c.vol(vid).primary == 0);
		CHECK(c.replica(vid, 1) == INSYNC);
	}
	SECTION("a failed disk")
	{
		c.good({{"op", "record.failed"}, {"vid", vid}, {"host", 1}});
		CHECK(c.replica(vid, 1) == FAILED);
		CHECK(c.vol(vid).primary == 0);
		CHECK(c.good({{"op", "record.failed"}, {"vid", vid}, {"host", 1}})["changed"] == false);
		CHECK(has(c.bad(5, {{"op", "record.failed"}, {"vid", vid}, {"host", 2}}), "last replica in sync"));
		uint64_t since = c.vol(vid).replica(1)->since;
		c.good({{"op", "record.repaired"}, {"vid", vid}, {"host", 1}});
		CHECK(c.replica(vid, 1) == STALE);
		CHECK(c.vol(vid).replica(1)->since == since);    // the others' dirty maps for it stay good
		CHECK(c.good({{"op", "record.repaired"}, {"vid", vid}, {"host", 1}})["changed"] == false);
		c.good({{"op", "record.failed"}, {"vid", vid}, {"host", 1}});
		CHECK(c.vol(vid).replica(1)->since == since);
	}
	SECTION("who has no replica has no say")
	{
		for (const char *op : {"record.suspect", "record.failed", "record.repaired"})
			c.bad(3, {{"op", op}, {"vid", vid}, {"host", 3}});
	}
	SECTION("any of them can name the version it saw")
	{
		c.bad(5, {{"op", "record.suspect"}, {"vid", vid}, {"host", 2}, {"version", 1}});
		c.good({{"op", "record.suspect"}, {"vid", vid}, {"host", 2}, {"version", 2}});
	}
}

TEST_CASE("fail-over")
{
	Cluster c;
	c.form();
	uint32_t vid = c.volume("v", {1, 2, 3});
	c.open(vid, 1);
	auto entry = [&](HostId primary, std::vector<HostId> keep) {
		return json{{"op", "record.failover"}, {"vid", vid}, {"version", c.vol(vid).version}, {"primary", primary}, {"keep", keep}};
	};
	SECTION("to a clean one")
	{
		c.good(entry(2, {2, 3}));
		const Volume &v = c.vol(vid);
		CHECK(v.term == 3);
		CHECK(v.primary == 2);
		CHECK(v.incarnation == 0);
		CHECK(v.openers.size() == 1);
		CHECK(c.replica(vid, 1) == STALE);
		CHECK(v.replica(1)->since == v.version);
		CHECK(c.replica(vid, 3) == INSYNC);
	}
	SECTION("refusals")
	{
		CHECK(has(c.bad(5, with(entry(2, {2}), {{"version", 1}})), "is at version"));
		c.bad(2, entry(2, {3}));
		c.bad(3, entry(4, {4}));
		c.suspect(vid, 2);
		CHECK(has(c.bad(5, entry(2, {2})), "beta is suspect"));
		CHECK(has(c.bad(5, entry(3, {2, 3})), "beta is suspect"));
		CHECK(has(c.bad(5, with(entry(2, {2}), {{"last_resort", true}})), "alpha is in sync and not suspect"));
		c.good(entry(3, {3}));
		CHECK(c.replica(vid, 2) == STALE);
		CHECK(has(c.bad(5, entry(2, {2})), "beta is stale"));
	}
	SECTION("the last resort")
	{
		for (HostId h : {1, 2})
			c.suspect(vid, h);
		c.good({{"op", "record.failed"}, {"vid", vid}, {"host", 3}});
		CHECK(has(c.bad(5, entry(1, {1})), "alpha is suspect"));
		CHECK(has(c.bad(5, with(entry(3, {3}), {{"last_resort", true}})), "gamma is failed"));
		c.good(with(entry(1, {1}), {{"last_resort", true}}));
		CHECK(c.vol(vid).incarnation == 1);
		CHECK(c.vol(vid).primary == 1);
		CHECK(c.replica(vid, 1) == INSYNC);
		CHECK(c.replica(vid, 2) == STALE);
		CHECK(c.replica(vid, 3) == FAILED);
	}
}
