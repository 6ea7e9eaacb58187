// SPDX-License-Identifier: GPL-2.0-or-later
//
// Rules of placement: kept by whatever makes a replica, explained host by host when they leave none, and pinned replicas stay.
#include "life.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

// alpha, beta in rack r1, gamma, delta in r2, epsilon in r3; alpha, beta, gamma at site north, the others south. Much room on alpha and beta.
struct Racks : Living {
	Racks() : Living(5)
	{
		const char *racks[] = {"r1", "r1", "r2", "r2", "r3"}, *sites[] = {"north", "north", "north", "south", "south"};
		for (HostId h = 1; h <= 5; h++) {
			good(label(h, {{"rack", racks[h - 1]}, {"site", sites[h - 1]}}));
			free(h, h <= 2 ? 20 : 10);
		}
	}

	static json label(HostId h, const json &labels) { return {{"op", "host.label"}, {"host", h}, {"labels", labels}}; }
	void free(HostId h, uint64_t gib)
	{
		good({{"op", "pool.report"}, {"name", "default"}, {"host", h}, {"size_bytes", gib * GIB}, {"free_bytes", gib * GIB}});
	}
	json create(const std::string &name, unsigned redundancy, const json &rules)
	{
		return with(create_entry(name), {{"redundancy", redundancy}, {"rules", rules}});
	}
	uint32_t ruled(const std::string &name, unsigned redundancy, const json &rules)
	{
		const uint32_t vid = good(create(name, redundancy, rules))["vid"];
		settle();
		open(vid, vol(vid).replicas[0].host);
		settle();
		return vid;
	}
	json rules(uint32_t vid, const json &r) { return {{"op", "volume.rules"}, {"name", vol(vid).name}, {"rules", r}}; }
	std::set<std::string> racks_of(uint32_t vid)
	{
		std::set<std::string> racks;
		for (HostId h : on(vid))
			racks.insert(state.host(h)->labels.at("rack"));
		return racks;
	}
};

}    // namespace

TEST_CASE("different and same: hosts are chosen together, by the labels they have")
{
	Racks c;
	CHECK(c.on(c.volume("plain", {1, 2})) == Hosts{1, 2});
	CHECK(c.racks_of(c.ruled("d", 3, {{"different", "rack"}})).size() == 3);
	// The two with most room are in one rack; of the south there are only two.
	CHECK(c.on(c.ruled("s", 2, {{"same", "site=south"}})) == Hosts{4, 5});
	const uint32_t both = c.ruled("b", 2, {{"same", "site"}, {"different", "rack"}});
	CHECK(c.racks_of(both).size() == 2);
	CHECK(c.state.host(c.on(both)[0])->labels.at("site") == c.state.host(c.on(both)[1])->labels.at("site"));
	// A host without the label takes none.
	c.good(Racks::label(5, {{"rack", nullptr}}));
	const std::string why = c.bad(5, c.create("x", 3, {{"different", "rack"}}));
	CHECK(has(why, "needs 3 hosts, 2 can take it; "));
	CHECK(has(why, "epsilon: has no label rack"));
	CHECK(has(why, ": its rack is r1, as that of "));
	CHECK(has(why, ": its rack is r2, as that of "));
	CHECK(has(c.bad(5, c.create("y", 3, {{"same", "site=south"}})), "alpha: its site is north, not south"));
	CHECK(has(c.bad(5, c.create("z", 4, {{"same", "site"}})), "delta: its site is south, of more of the others it is north"));
	// Named by hand they are held to the rules as well.
	CHECK(has(c.bad(5, with(c.create("w", 2, {{"different", "rack"}}), {{"hosts", {1, 2}}})), "its rack is r1, as that of"));
	CHECK(check(c.state) == "");
}

TEST_CASE("a set of hosts is found whenever there is one, though the roomiest hosts do not go together")
{
	Racks c;
	// The two with most room are in the south, where there is no third.
	for (HostId h : {4, 5})
		c.free(h, 30);
	const uint32_t vid = c.ruled("v", 3, {{"same", "site"}});
	CHECK(c.on(vid) == Hosts{1, 2, 3});
}

TEST_CASE("no-room is said when room alone would do, too-few-hosts when the rules leave none")
{
	Racks c;
	c.free(5, 1);
	json entry = c.create("v", 3, {{"different", "rack"}});
	entry["size_bytes"] = 4 * GIB;
	json answer = c.apply(entry);
	CHECK(answer["code"] == "no-room");
	c.good(Racks::label(5, {{"rack", "r2"}}));
	answer = c.apply(entry);
	CHECK(answer["code"] == "too-few-hosts");
}

TEST_CASE("repair, moves and evacuation keep the rules, and wait rather than break them")
{
	Racks c;
	const uint32_t vid = c.ruled("v", 3, {{"different", "rack"}});
	const auto in = [&](const char *rack) {
		for (HostId h : c.on(vid))
			if (c.state.host(h)->labels.at("rack") == rack)
				return h;
		return HostId(0);
	};
	// The other host of the same rack takes it, wherever there is more room.
	const HostId before = in("r2");
	c.good({{"op", "replica.move"}, {"vid", vid}, {"from", before}});
	c.settle();
	CHECK(c.racks_of(vid).size() == 3);
	CHECK(in("r2") == HostId(before == 3 ? 4 : 3));
	const HostId first = in("r1"), second = HostId(first == 1 ? 2 : 1);
	CHECK(has(c.bad(5, {{"op", "replica.add"}, {"vid", vid}, {"host", second}, {"asked", true}}), "its rack is r1, as that of "));
	c.good({{"op", "host.evacuate"}, {"host", first}});
	c.settle();
	CHECK(in("r1") == second);
	CHECK(c.all_clean(vid));
	// r3 has one host only.
	c.good({{"op", "host.evacuate"}, {"host", 5}});
	c.settle();
	CHECK(c.vol(vid).replica(5));
	CHECK(has(repair_obstacle(c.state, c.vol(vid)), ": its rack is r2, as that of "));
	CHECK(has(repair_obstacle(c.state, c.vol(vid)), "epsilon: has a replica already"));
	c.good({{"op", "host.restore"}, {"host", 5}});
	c.settle();
	CHECK(repair_obstacle(c.state, c.vol(vid)) == "");
	CHECK(c.racks_of(vid).size() == 3);
}

TEST_CASE("avoid and apart: of a volume and of its group, and the other way round")
{
	Racks c;
	const uint32_t a = c.ruled("a", 2, {{"avoid", {1, 2}}});
	CHECK(c.vol(a).replica(1) == nullptr);
	CHECK(c.vol(a).replica(2) == nullptr);
	const uint32_t b = c.ruled("b", 2, {{"apart", {a}}});
	for (HostId h : c.on(b))
		CHECK(c.vol(a).replica(h) == nullptr);
	// a does not say it, and is held to it.
	CHECK(has(c.bad(5, {{"op", "replica.add"}, {"vid", a}, {"host", c.on(b)[0]}}), "alpha: "));
	c.good(c.rules(a, {{"avoid", json::array()}}));
	CHECK(has(c.bad(5, {{"op", "replica.add"}, {"vid", a}, {"host", c.on(b)[0]}}), "has a replica of volume b, from which it is to be apart"));
	c.good({{"op", "group.create"}, {"name", "g"}, {"pool", "default"}, {"rules", {{"different", "rack"}, {"avoid", {1}}}}});
	json entry = c.create("in", 2, {{"avoid", {2}}});
	entry["group"] = "g";
	const uint32_t in = c.good(entry)["vid"];
	CHECK(c.racks_of(in) == std::set<std::string>{"r2", "r3"});
	CHECK(has(c.bad(2, {{"op", "group.rules"}, {"name", "g"}, {"rules", {{"apart", {a}}}}}), "only a volume can"));
	CHECK(has(c.bad(2, c.rules(b, {{"apart", {b}}})), "apart from itself"));
	CHECK(has(c.bad(3, c.rules(b, {{"apart", {99}}})), "no volume with vid 99"));
	CHECK(has(c.bad(2, c.rules(b, {{"same", "site="}})), "without its value"));
	CHECK(has(c.bad(2, c.rules(b, {{"different", "a b"}})), "no label of hosts"));
	CHECK(has(c.bad(2, Racks::label(1, {{"a=b", "c"}})), "no label of hosts"));
	CHECK(has(c.bad(2, Racks::label(1, {{"rack", ""}})), "is not a text of 1 to 64"));
	// What is gone is in no rule any more.
	c.good({{"op", "volume.delete"}, {"name", "a"}, {"force", true}});
	c.settle();
	CHECK(c.vol(b).rules.apart.empty());
	c.goes(1);
	c.good({{"op", "host.lost"}, {"host", 1}, {"force", true}});
	CHECK(c.state.groups.at("g").rules.avoid.empty());
	CHECK(*restore(snapshot(c.state)) == c.state);
}

TEST_CASE("a rule that is changed moves nothing; what is misplaced is told of, and goes first")
{
	Racks c;
	const uint32_t vid = c.volume("v", {1, 2, 5});
	c.open(vid, 5);
	c.settle();
	CHECK(rule_broken(c.state, c.vol(vid), 1) == "");
	CHECK(c.good(c.rules(vid, {{"different", "rack"}}))["changed"] == true);
	CHECK(c.good(c.rules(vid, {{"different", "rack"}}))["changed"] == false);
	c.settle();
	CHECK(c.on(vid) == Hosts{1, 2, 5});
	CHECK(has(rule_broken(c.state, c.vol(vid), 1), "its rack is r1, as that of beta"));
	CHECK(rule_broken(c.state, c.vol(vid), 5) == "");
	// gamma has least room, so that it would go if it were not for the rule.
	c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 4}});
	c.settle();
	REQUIRE(c.vol(vid).replicas.size() == 4);
	const HostId in_r2 = c.vol(vid).replica(3) ? 3 : 4;
	c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 3}});
	c.settle();
	CHECK(c.vol(vid).replica(in_r2));
	CHECK(c.racks_of(vid).size() == 3);
	CHECK(c.good(c.rules(vid, {{"different", ""}}))["changed"] == true);
	CHECK(c.vol(vid).rules.empty());
}

TEST_CASE("a pinned replica stays; if its host is given up it counts as lost, and back again it is kept")
{
	Racks c;
	const uint32_t vid = c.volume("v", {1, 4});
	c.open(vid, 1);
	c.settle();
	const json pin = {{"op", "replica.pin"}, {"vid", vid}, {"host", 4}, {"pinned", true}};
	CHECK(c.good(pin)["changed"] == true);
	CHECK(c.good(pin)["changed"] == false);
	CHECK(has(c.bad(5, {{"op", "replica.move"}, {"vid", vid}, {"from", 4}}), "is pinned: unpin it first, with `lockstep volume replica unpin v delta`"));
	CHECK(has(c.bad(5, {{"op", "replica.leave"}, {"vid", vid}, {"host", 4}}), "is pinned"));
	CHECK(has(c.bad(5, {{"op", "host.evacuate"}, {"host", 4}}), "the replica of volume v is pinned there"));
	CHECK(c.bad(3, with(pin, {{"host", 2}})) != "");
	// delta has least room, and stays.
	c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 3}});
	c.settle();
	c.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 2}});
	c.settle();
	CHECK(c.on(vid) == Hosts{1, 4});
	c.goes(4);
	c.pass(2 * HOUR, 10 * SECOND);
	CHECK(c.state.host(4)->evicted);
	REQUIRE(c.vol(vid).replicas.size() == 3);
	CHECK(c.vol(vid).replica(4)->pinned);
	c.comes(4);
	CHECK(c.on(vid) == Hosts{1, 4});
	CHECK(c.all_clean(vid));
	// Made anew it is still pinned.
	c.good({{"op", "replica.invalidate"}, {"vid", vid}, {"host", 4}});
	c.settle();
	CHECK(c.all_clean(vid));
	CHECK(c.vol(vid).replica(4)->pinned);
	CHECK(*restore(snapshot(c.state)) == c.state);
	c.good(with(pin, {{"pinned", false}}));
	c.good({{"op", "host.evacuate"}, {"host", 4}});
	CHECK(has(c.bad(5, pin), "about to go"));
	c.settle();
	CHECK(c.vol(vid).replica(4) == nullptr);
}

TEST_CASE("rules and pins are not proposed while a host runs a program that does not know them")
{
	Racks c;
	for (const json &entry : {Racks::label(1, {{"rack", "r1"}}), c.create("v", 2, {{"different", "rack"}}), json{{"op", "replica.pin"}}, json{{"op", "volume.rules"}},
				  json{{"op", "group.rules"}}, json{{"op", "group.create"}, {"rules", json::object()}}})
		CHECK(level_of(entry) == LEVEL_PLACEMENT);
	CHECK(level_of(c.create_entry("v")) == LEVEL_FIRST);
}
