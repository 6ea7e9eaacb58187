// SPDX-License-Identifier: GPL-2.0-or-later
//
// Replicas added, moved, removed, rebuilt; hosts evicted, evacuated, lost, removed; the deadlines. Time is simulated.
#include "life.h"

#include <algorithm>
#include <cstring>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

// ---- replicas ------------------------------------------------------------------------------------------------------

TEST_CASE("a replica is added: in the record before it exists, a member when the primary says so")
{
	Living c;
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	uint64_t version = c.vol(vid).version;
	CHECK(c.good({{"op", "replica.add"}, {"vid", vid}, {"asked", true}})["host"] == 3);
	CHECK(c.vol(vid).redundancy == 3);
	const Replica r = *c.vol(vid).replica(3);
	CHECK((r.state == ReplicaState::stale && r.added == version + 1 && r.since == version + 1 && !r.created));
	CHECK(c.vol(vid).version == version + 1);
	lks_record record = to_record(c.vol(vid));
	CHECK((record.nreplicas == 3 && record.replicas[2].added == version + 1 && record.replicas[0].added == 1));
	CHECK(has(c.bad(5, c.proposal(vid, {1, 2, 3})), "not made yet"));
	c.settle();
	CHECK((c.on(vid) == Hosts{1, 2, 3} && c.all_clean(vid)));
	CHECK(c.vol(vid).replica(3)->added == version + 1);
	CHECK(has(c.bad(5, {{"op", "replica.add"}, {"vid", vid}, {"host", 2}}), "beta: has a replica already"));
	CHECK(has(c.bad(5, {{"op", "replica.add"}, {"vid", vid}}), "gamma: has a replica already"));
}

TEST_CASE("a replica is thrown away: out of the record, removed, and new where it was; never below a good copy")
{
	Living c(4);
	uint32_t vid = c.volume("v", {1, 2});
	c.open(vid, 1);
	const json gamma = {{"op", "replica.invalidate"}, {"vid", vid}, {"host", 2}};
	CHECK(level_of(gamma) == 4);
	CHECK(has(c.bad(5, {{"op", "replica.invalidate"}, {"vid", vid}, {"host", 1}}), "serves it"));
	CHECK(has(c.bad(3, {{"op", "replica.invalidate"}, {"vid", vid}, {"host", 3}}), "no replica on host"));
	const uint64_t version = c.vol(vid).version;
	c.good(gamma);
	// Its primary leaves it out before its host removes it; nobody adds one elsewhere meanwhile.
	CHECK((c.on(vid) == Hosts{1} && c.vol(vid).version == version + 1 && c.vol(vid).remnant(2)->renew));
	CHECK(decide(c.state, c.hearing, c.now_ms).empty());
	CHECK(c.good(gamma)["changed"] == false);
	auto again = restore(snapshot(c.state));
	REQUIRE(again);
	CHECK(*again == c.state);
	c.good({{"op", "replica.purged"}, {"vid", vid}, {"host", 2}});
	const Replica r = *c.vol(vid).replica(2);
	CHECK((r.state == ReplicaState::stale && r.added == version + 2 && r.since == version + 2 && !r.created && c.vol(vid).remnants.empty()));
	CHECK(c.good(gamma)["changed"] == false);
	// Now that of host 1 is the only good one.
	c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 2}});
	c.good({{"op", "record.resign"}, {"vid", vid}, {"host", 1}});
	CHECK(has(c.bad(5, {{"op", "replica.invalidate"}, {"vid", vid}, {"host", 1}}), "no other one is in sync and online"));
	c.settle();
	CHECK((c.on(vid) == Hosts{1, 2} && c.all_clean(vid) && c.vol(vid).redundancy == 2));
}

TEST_CASE("a replica that was thrown away comes back elsewhere if its host does not")
{
	Living c(4);
	uint32_t vid = c.volume("v", {1, 2});
	c.open(vid, 1);
	const json entry = {{"op", "replica.invalidate"}, {"vid", vid}, {"host", 2}};
	c.goes(2);
	CHECK(has(c.bad(5, entry), "offline"));
	c.comes(2);
	c.good(entry);
	c.goes(2);
	CHECK((c.on(vid).size() == 2 && c.all_clean(vid) && !c.vol(vid).replica(2)));
	c.comes(2);
	CHECK((c.on(vid).size() == 2 && c.vol(vid).remnants.empty()));    // it has been replaced
	// Nor is one thrown away if its pool would not take a new one.
	const HostId other = c.on(vid)[1];
	c.good({{"op", "pool.report"}, {"name", "default"}, {"host", other}, {"size_bytes", 100 * GIB}, {"free_bytes", GIB}});
	const Volume before = c.vol(vid);
	CHECK(c.bad(5, {{"op", "replica.invalidate"}, {"vid", vid}, {"host", other}}) != "");
	CHECK(c.vol(vid) == before);
}

TEST_CASE("a replica that cannot be made is taken back, with its redundancy")
{
	Living c(4);
	uint32_t vid = c.volume("v");
	c.cannot_create = {3};
	c.good({{"op", "replica.add"}, {"vid", vid}, {"host", 3}, {"asked", true}});
	c.settle();
	CHECK((c.on(vid) == Hosts{1, 2} && c.vol(vid).redundancy == 2 && c.vol(vid).remnants.empty()));
	CHECK(c.state.failures.at(vid).message == "no");
	// Asked for by redundancy: the next host is tried, the failing one not again and again.
	c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 3}});
	c.settle();
	CHECK((c.on(vid) == Hosts{1, 2, 4} && c.all_clean(vid)));
	c.cannot_create = {};
	c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 4}});
	c.settle();
	CHECK((c.on(vid) == Hosts{1, 2, 3, 4} && c.all_clean(vid)));
}

TEST_CASE("a move goes back if its target cannot be made, or goes offline before")
{
	Living c(4);
	uint32_t vid = c.volume("v");
	c.cannot_create = {3};
	c.good({{"op", "replica.move"}, {"vid", vid}, {"from", 2}, {"host", 3}});
	c.settle();
	CHECK((c.on(vid) == Hosts{1, 2} && !c.vol(vid).replica(2)->leaving));
	c.cannot_create = {};
	c.good({{"op", "replica.move"}, {"vid", vid}, {"from", 2}, {"host", 4}});
	c.goes(4);
	CHECK((c.on(vid) == Hosts{1, 2} && !c.vol(vid).replica(2)->leaving));
	CHECK(c.vol(vid).remnant(4));
	CHECK(has(c.bad(5, {{"op", "replica.add"}, {"vid", vid}, {"host", 4}}), "former replica"));
	c.comes(4);
	CHECK(c.vol(vid).remnants.empty());
}

TEST_CASE("a replica moves: the old one goes only when the new one is in sync, also if it is the primary")
{
	Living c;
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	REQUIRE(c.vol(vid).primary == 1);
	c.resync = false;
	c.good({{"op", "replica.move"}, {"vid", vid}, {"from", 1}});
	c.settle();
	CHECK(c.on(vid) == Hosts{1, 2, 3});
	CHECK(c.vol(vid).primary == 1);
	CHECK(has(c.bad(5, {{"op", "replica.remove"}, {"vid", vid}, {"host", 1}}), "is the primary"));
	CHECK(has(c.bad(5, {{"op", "replica.remove"}, {"vid", vid}, {"host", 2}}), "of the others 0 of 2 are in sync"));
	c.resync = true;
	c.settle();
	CHECK((c.on(vid) == Hosts{2, 3} && c.all_clean(vid) && c.vol(vid).redundancy == 2));
	CHECK((c.vol(vid).primary == 2 || c.vol(vid).primary == 3));
	CHECK(c.vol(vid).opener(1));    // who has it open keeps it
}

TEST_CASE("a replica is removed from the record first, its host cleans up when it is back")
{
	Living c;
	uint32_t vid = c.volume("v", {1, 2, 3});
	c.goes(3);
	c.good({{"op", "replica.leave"}, {"vid", vid}, {"host", 3}, {"lower", true}});
	c.settle();
	CHECK((c.on(vid) == Hosts{1, 2} && c.vol(vid).redundancy == 2));
	REQUIRE(c.vol(vid).remnant(3));
	CHECK(pool_reserved(c.state, *c.state.pool("default", 3)) > 0);    // its space is not free yet
	CHECK(has(c.bad(5, {{"op", "replica.add"}, {"vid", vid}, {"host", 3}}), "former replica"));
	c.comes(3);
	CHECK(c.vol(vid).remnants.empty());
	CHECK(pool_reserved(c.state, *c.state.pool("default", 3)) == 0);
}

TEST_CASE("a volume that is deleted waits for hosts that have remnants")
{
	Living c;
	uint32_t vid = c.volume("v", {1, 2, 3});
	c.goes(3);
	c.good({{"op", "replica.leave"}, {"vid", vid}, {"host", 3}, {"lower", true}});
	c.settle();
	c.good({{"op", "volume.delete"}, {"vid", vid}});
	c.settle();
	REQUIRE(c.state.volume(vid));
	c.comes(3);
	CHECK_FALSE(c.state.volume(vid));
}

TEST_CASE("the last good copy cannot leave")
{
	Living c;
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	c.goes(2);
	c.good(c.proposal(vid, {1}));
	CHECK(has(c.bad(5, {{"op", "replica.leave"}, {"vid", vid}, {"host", 1}, {"lower", true}}), "no other replica"));
	CHECK(has(c.bad(5, {{"op", "host.lost"}, {"host", 1}}), "is online"));
	c.good({{"op", "replica.leave"}, {"vid", vid}, {"host", 2}, {"lower", true}});
	c.settle();
	CHECK((c.on(vid) == Hosts{1} && c.vol(vid).redundancy == 1));
	CHECK(has(c.bad(5, {{"op", "replica.leave"}, {"vid", vid}, {"host", 1}, {"lower", true}}), "redundancy is 1"));
	CHECK(has(c.bad(5, {{"op", "replica.remove"}, {"vid", vid}, {"host", 1}}), ""));
}

TEST_CASE("redundancy goes up and down, and nothing is trimmed while a copy is missing")
{
	Living c(4);
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	CHECK(has(c.bad(5, {{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 5}}), "v"));
	CHECK(has(c.bad(2, {{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 0}}), "1 to 8"));
	c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 4}});
	c.settle();
	CHECK((c.on(vid) == Hosts{1, 2, 3, 4} && c.all_clean(vid)));
	c.goes(4);
	c.good(c.proposal(vid, {1, 2, 3}));
	c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 2}});
	c.settle();
	CHECK(c.on(vid) == Hosts{1, 2, 3, 4});    // delta is out of sync
	c.comes(4);
	CHECK((c.on(vid).size() == 2 && c.vol(vid).replica(1) && c.all_clean(vid)));
	CHECK(c.vol(vid).primary == 1);
	CHECK_FALSE(c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 2}})["changed"].get<bool>());
}

TEST_CASE("raising the redundancy is refused when there is no room, with the reason for each host")
{
	Living c(3);
	uint32_t vid = c.volume("v");
	c.good({{"op", "pool.report"}, {"name", "default"}, {"host", 3}, {"size_bytes", 20 * GIB}, {"free_bytes", GIB}});
	std::string message = c.bad(5, {{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 3}});
	CHECK(has(message, "gamma: pool default is 94 % full, above 90 % it takes nothing new"));
	CHECK(has(message, "alpha: has a replica already"));
	c.good({{"op", "pool.report"}, {"name", "default"}, {"host", 3}, {"size_bytes", 20 * GIB}, {"free_bytes", 20 * GIB}, {"metadata_percent", 91}});
	CHECK(has(c.bad(5, {{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 3}}), "91 % full"));
}

// ---- hosts ---------------------------------------------------------------------------------------------------------

TEST_CASE("a host that stays away for an hour is evicted; its replicas are made anew; it comes back by delta and the surplus goes")
{
	Living c(4);
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	c.goes(2);
	c.good(c.proposal(vid, {1}));
	uint64_t since = c.vol(vid).replica(2)->since, added = c.vol(vid).replica(2)->added;
	c.pass(59 * MINUTE);
	CHECK_FALSE(c.state.host(2)->evicted);
	CHECK(c.on(vid) == Hosts{1, 2});
	CHECK(*evicted_in_ms(c.state, 2) <= 2 * MINUTE);
	c.pass(2 * MINUTE);
	CHECK(c.state.host(2)->evicted);
	REQUIRE(c.on(vid).size() == 3);
	const Replica old = *c.vol(vid).replica(2);    // remembered: the same absence, so its dirty map still stands
	CHECK((old.since == since && old.added == added && old.state == ReplicaState::stale));
	CHECK((c.vol(vid).replica(3) ? c.replica(vid, 3) : c.replica(vid, 4)) == ReplicaState::insync);
	c.pass(48 * HOUR, 10 * MINUTE);
	CHECK(c.vol(vid).replica(2));
	c.resync = false;
	c.comes(2);
	CHECK_FALSE(c.state.host(2)->evicted);
	CHECK(c.on(vid).size() == 3);
	CHECK(c.vol(vid).replica(2)->since == since);
	c.resync = true;
	c.settle();
	CHECK((c.on(vid).size() == 2 && c.all_clean(vid) && c.vol(vid).replica(1) && c.vol(vid).remnants.empty()));
}

TEST_CASE("an idle volume is rebuilt too when a host that has a clean copy of it is evicted")
{
	Living c(4);
	uint32_t vid = c.volume("v");
	c.goes(2);
	c.pass(61 * MINUTE, MINUTE);
	CHECK(c.state.host(2)->evicted);
	CHECK(c.replica(vid, 2) == ReplicaState::stale);
	CHECK(c.on(vid).size() == 3);
}

TEST_CASE("deadlines are carried over from leader to leader, and no clock is trusted")
{
	Living c(4);
	c.goes(3);
	for (int leader = 0; leader < 6; leader++) {
		c.clock.forget();
		c.now_ms = 1000 + uint64_t(leader % 3) * 777'000'000;    // every leader has a clock of its own
		c.pass(10 * MINUTE + 30 * SECOND);
	}
	CHECK(c.state.host(3)->evicted);    // after 63 min: each change of leader loses less than half a minute here
	CHECK(c.state.host(3)->away_ms >= 60 * MINUTE);
}

TEST_CASE("a deadline is not reached early by flapping, nor by a leader that goes")
{
	Living c(4);
	for (int i = 0; i < 20; i++) {
		c.goes(3);
		c.pass(10 * MINUTE);
		c.comes(3);
	}
	CHECK_FALSE(c.state.host(3)->evicted);
	CHECK(c.state.host(3)->away_ms == 0);
	c.goes(3);
	for (int i = 0; i < 100; i++) {
		c.clock.forget();
		c.pass(30 * SECOND);
	}
	CHECK_FALSE(c.state.host(3)->evicted);
}

TEST_CASE("auto-evict: off, a deadline of its own, and never while too many hosts are away")
{
	Living c(4);
	uint32_t vid = c.volume("v");
	c.good({{"op", "option.set"}, {"name", "auto-evict-minutes"}, {"value", "off"}});
	c.goes(2);
	c.pass(100 * HOUR, 5 * MINUTE);
	CHECK_FALSE(c.state.host(2)->evicted);
	std::string why;
	CHECK_FALSE(evicted_in_ms(c.state, 2, &why));
	CHECK(why == "auto-evict is off");
	c.comes(2);
	c.good({{"op", "option.set"}, {"name", "auto-evict-minutes"}, {"value", "0.5"}});
	c.goes(2);
	c.goes(3);
	c.pass(HOUR, 10 * SECOND);
	CHECK_FALSE(c.state.host(2)->evicted);
	CHECK_FALSE(evicted_in_ms(c.state, 2, &why));
	CHECK(why == "more than 34 % of the hosts are away");
	CHECK(c.on(vid) == Hosts{1, 2});
	c.comes(3);
	CHECK(c.state.host(2)->evicted);
	CHECK(has(c.bad(5, {{"op", "host.evict"}, {"host", 3}}), "is online"));
}

TEST_CASE("with nowhere to go the volume waits, and a host added later repairs it")
{
	Living c(3);
	uint32_t vid = c.volume("v", {1, 2, 3});
	c.goes(3);
	c.pass(61 * MINUTE, MINUTE);
	CHECK(c.state.host(3)->evicted);
	CHECK(c.on(vid) == Hosts{1, 2, 3});
	CHECK(has(repair_obstacle(c.state, c.vol(vid)), "0 can take it"));
	c.good(Cluster::host_entry(4, "delta"));
	c.hearing[4] = {true, 0};
	c.settle();
	CHECK(has(repair_obstacle(c.state, c.vol(vid)), "delta: has no pool default"));
	c.good(Cluster::pool_entry(4));
	c.settle();
	CHECK(repair_obstacle(c.state, c.vol(vid)).empty());
	CHECK((c.on(vid) == Hosts{1, 2, 3, 4} && c.replica(vid, 4) == ReplicaState::insync));
}

TEST_CASE("evacuation moves everything away, and can be called off")
{
	Living c(4);
	std::vector<uint32_t> vids;
	for (int i = 0; i < 6; i++)
		vids.push_back(c.volume("v" + std::to_string(i), {1, HostId(2 + i % 3)}));
	for (uint32_t vid : vids)
		c.open(vid, 1);
	c.resync = false;
	c.good({{"op", "host.evacuate"}, {"host", 1}});
	c.settle();
	for (uint32_t vid : vids)
		CHECK((c.on(vid).size() == 3 && c.vol(vid).primary == 1));
	CHECK(has(c.bad(5, {{"op", "replica.add"}, {"vid", vids[0]}, {"host", 1}}), ""));
	c.good({{"op", "host.restore"}, {"host", 1}});
	c.resync = true;
	c.settle();
	for (uint32_t vid : vids)
		CHECK((c.on(vid).size() == 2 && c.all_clean(vid)));
	c.good({{"op", "host.evacuate"}, {"host", 1}});
	c.settle();
	for (uint32_t vid : vids)
		CHECK((c.on(vid).size() == 2 && c.all_clean(vid) && !c.vol(vid).replica(1) && c.vol(vid).primary != 1 && c.vol(vid).opener(1)));
	CHECK(has(c.bad(5, {{"op", "host.remove"}, {"host", 1}}), "is open there"));
	for (uint32_t vid : vids)
		c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", c.vol(vid).opener(1)->session}});
	c.good({{"op", "host.remove"}, {"host", 1}});
	CHECK(has(c.bad(5, {{"op", "device.ready"}, {"vid", vids[0]}, {"host", 1}}), "being removed"));
	c.settle();
	CHECK_FALSE(c.state.host(1));
	CHECK(c.state.next_host == 5);    // its number is never used again
}

TEST_CASE("a single copy moves away from an evacuated host")
{
	Living c(2);
	uint32_t vid = c.volume("v", {1});
	c.good({{"op", "host.evacuate"}, {"host", 1}});
	c.settle();
	CHECK((c.on(vid) == Hosts{2} && c.all_clean(vid)));
}

TEST_CASE("a lost host is forgotten at once, unless it has the only good copy")
{
	Living c(4);
	uint32_t both = c.volume("both", {1, 2}), only = c.volume("only", {2}), older = c.volume("older", {2, 3}), elsewhere = c.volume("else", {1, 3});
	c.open(older, 2);
	c.good(c.proposal(older, {2}));
	c.open(elsewhere, 2);
	c.good({{"op", "device.ready"}, {"vid", elsewhere}, {"host", 2}});
	c.hearing[3].online = false;
	c.goes(2);
	CHECK(has(c.bad(5, {{"op", "host.lost"}, {"host", 2}}), "only good copy of volume older"));
	CHECK(has(c.bad(5, {{"op", "host.lost"}, {"host", 2}, {"force", true}}), "only good copy of volume older"));
	c.good({{"op", "record.close"}, {"vid", older}, {"host", 2}, {"session", 1}});
	c.good({{"op", "volume.delete"}, {"vid", older}});
	CHECK(has(c.bad(5, {{"op", "host.lost"}, {"host", 2}}), "only copy of volume only"));
	json answer = c.good({{"op", "host.lost"}, {"host", 2}, {"force", true}});
	CHECK(answer["volumes_lost"] == json({"only"}));
	CHECK_FALSE(c.state.host(2));
	CHECK_FALSE(c.state.volume(only));
	CHECK((c.on(both) == Hosts{1} && c.vol(elsewhere).openers.empty() && c.vol(elsewhere).devices.empty()));
	c.comes(3);
	CHECK(c.on(both).size() == 2);
	CHECK_FALSE(c.state.volume(older));
	CHECK(c.bad(3, {{"op", "host.lost"}, {"host", 2}}) != "");
}

TEST_CASE("a failed disk: after the grace time its replica is made anew elsewhere, then forgotten; before, it may recover")
{
	Living c(3);
	uint32_t vid = c.volume("v");
	c.open(vid, 1);
	c.good({{"op", "record.failed"}, {"vid", vid}, {"host", 2}});
	c.pass(9 * MINUTE);
	CHECK(c.on(vid) == Hosts{1, 2});
	c.good({{"op", "record.repaired"}, {"vid", vid}, {"host", 2}});
	c.settle();
	CHECK((c.all_clean(vid) && c.vol(vid).replica(2)->failed_ms == 0));
	c.good({{"op", "record.failed"}, {"vid", vid}, {"host", 2}});
	c.clock.forget();
	c.pass(9 * MINUTE);
	c.clock.forget();
	CHECK(c.on(vid) == Hosts{1, 2});
	c.pass(2 * MINUTE);
	CHECK((c.on(vid) == Hosts{1, 3} && c.all_clean(vid)));
}

TEST_CASE("options are checked, kept, and taken back")
{
	Cluster c;
	c.form();
	CHECK(has(c.bad(3, {{"op", "option.set"}, {"name", "nosuch"}, {"value", "1"}}), "nosuch"));
	for (const char *bad : {"", "x", "-1", "1.", "1.234", "0.01", "off5", "99999999999"})
		CHECK(has(c.bad(2, {{"op", "option.set"}, {"name", "auto-evict-minutes"}, {"value", bad}}), "0.05 to 43200, or off"));
	CHECK(has(c.bad(2, {{"op", "option.set"}, {"name", "oversubscription"}, {"value", "off"}}), "1 to 100"));
	CHECK(has(c.bad(2, {{"op", "option.set"}, {"name", "oversubscription"}, {"value", "3"}, {"host", 1}}), "whole cluster"));
	uint64_t before = pool_available(c.state, *c.state.pool("default", 1));
	c.good({{"op", "option.set"}, {"name", "oversubscription"}, {"value", "1"}});
	CHECK(pool_available(c.state, *c.state.pool("default", 1)) < before);
	CHECK(option_value(c.state, "oversubscription") == "1");
	c.good({{"op", "option.set"}, {"name", "oversubscription"}, {"value", "default"}});
	CHECK(option_value(c.state, "oversubscription") == "2");
	CHECK(c.state.options.empty());
	CHECK(auto_evict_ms(c.state, 1) == 60 * MINUTE);
	c.good({{"op", "option.set"}, {"name", "auto-evict-minutes"}, {"value", "0.05"}});
	CHECK(auto_evict_ms(c.state, 1) == 3 * SECOND);
	c.good({{"op", "option.set"}, {"name", "auto-evict-minutes"}, {"value", "off"}, {"host", 1}});
	CHECK_FALSE(auto_evict_ms(c.state, 1));
	CHECK(auto_evict_ms(c.state, 2) == 3 * SECOND);
	CHECK(resync_pace(c.state).floor_kib == 0);
	CHECK(has(c.bad(2, {{"op", "option.set"}, {"name", "resync-floor-mib"}, {"value", "off"}}), "is not a number from 1 to 65536"));
	CHECK(level_of({{"op", "option.set"}, {"name", "resync-floor-mib"}, {"value", "1"}}) == 3);
	CHECK(level_of({{"op", "option.set"}, {"name", "oversubscription"}, {"value", "1"}}) == 1);
	CHECK(lanes_encrypted(c.state));
	CHECK(has(c.bad(2, {{"op", "option.set"}, {"name", "lane-encryption"}, {"value", "1"}}), "neither on nor off"));
	c.good({{"op", "option.set"}, {"name", "lane-encryption"}, {"value", "off"}});
	CHECK_FALSE(lanes_encrypted(c.state));
	c.good({{"op", "option.set"}, {"name", "lane-encryption"}, {"value", "on"}});
	CHECK(lanes_encrypted(c.state));
}
