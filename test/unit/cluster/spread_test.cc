// SPDX-License-Identifier: GPL-2.0-or-later
//
// The redundancy of a whole group: up and down, a few volumes at a time, and what has no room waits without holding up the rest.
#include "life.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct Spreading : Living {
	std::vector<uint32_t> vids;

	explicit Spreading(unsigned volumes, unsigned hosts = 3) : Living(hosts)
	{
		for (auto &[id, host] : state.hosts)
			host.level = LEVEL;
		good({{"op", "group.create"}, {"name", "g"}, {"pool", "default"}});
		for (unsigned n = 0; n < volumes; n++) {
			json entry = create_entry("v" + std::to_string(n), 64 * MIB);
			entry["group"] = "g";
			vids.push_back(good(entry)["vid"]);
			settle();
			open(vids.back(), vol(vids.back()).replicas[0].host);
		}
		volume("other");
		settle();
	}

	static json to(unsigned redundancy) { return {{"op", "group.redundancy"}, {"name", "g"}, {"redundancy", redundancy}}; }
	const Group &group() { return state.groups.at("g"); }
	size_t with_replicas(size_t n)
	{
		return size_t(std::ranges::count_if(vids, [&](uint32_t vid) { return vol(vid).replicas.size() == n && all_clean(vid); }));
	}
	size_t in_work()
	{
		return size_t(std::ranges::count_if(vids, [&](uint32_t vid) { return vol(vid).redundancy == group().redundancy; })) - with_replicas(group().redundancy);
	}
};

}    // namespace

TEST_CASE("all volumes of a group get another redundancy, up and down, a few at a time")
{
	Spreading s(20);
	REQUIRE(s.with_replicas(2) == 20);
	CHECK(s.good(Spreading::to(2))["changed"] == false);
	s.resync = false;    // nothing gets in sync
	CHECK(s.good(Spreading::to(3))["changed"] == true);
	CHECK(s.good(Spreading::to(3))["changed"] == false);
	s.settle();
	CHECK(s.in_work() == 8);
	CHECK(s.with_replicas(2) == 12);
	CHECK(group_change(s.state, s.group()).done == 0);
	CHECK(group_change(s.state, s.group()).all == 20);
	CHECK(group_change(s.state, s.group()).obstacle == "");
	CHECK(has(s.bad(5, {{"op", "group.spread"}, {"name", "g"}}), "does not have its redundancy yet"));
	s.resync = true;
	s.settle();
	CHECK(s.with_replicas(3) == 20);
	CHECK_FALSE(s.group().spreading);
	json created = s.create_entry("new");
	created["group"] = "g";
	CHECK(s.vol(s.good(created)["vid"]).redundancy == 3);
	s.good(Spreading::to(1));
	s.settle();
	CHECK(s.with_replicas(1) == 20);
	CHECK_FALSE(s.group().spreading);
	CHECK(s.on(s.state.volume_named("other")->vid).size() == 2);
	CHECK(*restore(snapshot(s.state)) == s.state);
}

TEST_CASE("a volume that cannot have its group's redundancy waits and holds up none; what can never be is refused")
{
	Spreading s(3, 4);
	CHECK(has(s.bad(5, Spreading::to(5)), "redundancy 5 needs as many hosts with pool default, there are 4"));
	CHECK(s.bad(2, Spreading::to(0)) != "");
	CHECK(s.bad(3, with(Spreading::to(2), {{"name", "none"}})) != "");
	s.goes(4);
	s.goes(3);
	s.good({{"op", "volume.redundancy"}, {"vid", s.vids[0]}, {"redundancy", 1}});
	s.good(Spreading::to(4));
	s.settle();
	CHECK(s.group().spreading);
	CHECK(has(group_change(s.state, s.group()).obstacle, "is offline"));
	s.comes(3);
	s.comes(4);
	CHECK(s.with_replicas(4) == 3);
	CHECK_FALSE(s.group().spreading);
}

TEST_CASE("volumes that wait for a host that is away do not hold up the others of their group")
{
	Spreading s(20, 4);
	const auto there = size_t(std::ranges::count_if(s.vids, [&](uint32_t vid) { return s.vol(vid).replica(3) != nullptr; }));
	REQUIRE(there > 8);
	s.goes(3);
	s.good(Spreading::to(3));
	s.settle();
	for (uint32_t vid : s.vids)
		CHECK(s.vol(vid).redundancy == 3);
	CHECK(s.with_replicas(3) == 20 - there);
	CHECK(s.group().spreading);
	CHECK(group_change(s.state, s.group()).done == 20 - there);
	CHECK(has(group_change(s.state, s.group()).obstacle, "host gamma, which has a replica of it, is offline"));
	s.comes(3);
	CHECK(s.with_replicas(3) == 20);
	CHECK_FALSE(s.group().spreading);
}
