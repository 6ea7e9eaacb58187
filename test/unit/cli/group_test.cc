// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep group list|adopt|destroy: what was left of a storage repository, in the log or on the disks, is found, taken up or removed.
#include "fake.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

// Volumes and snapshots that no log knows, as a host tells of them.
json left_behind(unsigned n, const char *kind = "replica")
{
	return {{"vg", "lockstep_group"}, {"lv", "lockstep." + std::to_string(n)}, {"kind", kind}, {"uuid", uuid(n)}, {"lv_bytes", GIB + 4 * MIB},
		{"thin_pool", "thin_device"}, {"active", true}, {"open", false},
		{"content", {{"vid", n}, {"host", 1}, {"size_bytes", GIB}, {"block_size", 16384}, {"md_offset", GIB}, {"version", 5}, {"term", 3},
			     {"clean", true}, {"absent", json::array()}}}};
}

struct Groups : FakeDaemon {
	Groups()
	{
		for (const char *name : {"used", "left"})
			good({{"op", "group.create"}, {"name", name}, {"pool", "default"}});
		REQUIRE(run({"volume", "create", "plain", "1GiB"}).status == 0);
		for (auto [name, group, gib] : {std::tuple("a", "used", 1), std::tuple("b", "left", 2)})
			good({{"op", "volume.create"}, {"name", name}, {"uuid", uuid(500 + unsigned(gib))}, {"size_bytes", gib * GIB}, {"group", group}, {"now_ms", 1}});
		REQUIRE(run({"snapshot", "create", "b", "s"}).status == 0);
		good({{"op", "record.open"}, {"vid", volume("a").vid}, {"host", 1}});
	}
};

}    // namespace

TEST_CASE("group list: all, and those of which nothing is open beside what is in no log")
{
	Groups d;
	Outcome o = d.run({"group", "list"});
	INFO(o.out << o.err);
	CHECK(has(o.out, "used"));
	CHECK(has(o.out, "left"));
	CHECK_FALSE(has(o.out, "NOT IN THE LOG"));
	d.orphans = {{1, json{left_behind(77)}}, {2, json{left_behind(77), left_behind(78, "snapshot")}}};
	d.orphans[2][1]["group"] = "gone";
	o = d.run({"group", "list", "--orphans"});
	CHECK_FALSE(has(o.out, "used"));
	CHECK(has(o.out, "left"));
	CHECK(has(o.out, "replica         " + uuid(77) + "  alpha, beta  -"));
	CHECK(has(o.out, "snapshot        " + uuid(78) + "  beta         gone"));
	json j = d.json_of({"group", "list", "--orphans", "--json"});
	REQUIRE(j["groups"].size() == 1);
	CHECK(j["groups"][0]["volumes"] == json({"b"}));
	CHECK(j["groups"][0]["snapshots"] == 1);
	CHECK(j["groups"][0]["size_bytes"] == 2 * GIB);
	CHECK(j["orphans"].size() == 3);
}

TEST_CASE("group destroy: nothing of one in use, nothing without --yes, then all of it")
{
	Groups d;
	Outcome o = d.run({"group", "destroy", "used", "--yes"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "volume a is open on alpha"));
	o = d.run({"group", "destroy", "left"});
	CHECK(o.status == 0);
	CHECK(has(o.out, "1 volumes (2 GiB) and 1 snapshots; --yes destroys them"));
	CHECK(d.state()->volume_named("b"));
	CHECK(d.run({"group", "destroy", "left", "--yes"}).status == 0);
	CHECK_FALSE(d.state()->volume_named("b"));
	CHECK(d.state()->snapshots.empty());
	CHECK_FALSE(d.state()->groups.contains("left"));
	CHECK(d.state()->groups.contains("used"));
	CHECK(d.run({"group", "destroy", "left", "--yes"}).status == 3);
	d.orphans = {{1, json{left_behind(77)}}, {2, json{left_behind(77)}}};
	CHECK(has(d.run({"group", "destroy", "--orphans"}).out, "1 volumes and snapshots that are not in the log; --yes removes them"));
	CHECK(d.orphans[1].size() == 1);
	CHECK(has(d.run({"group", "destroy", "--orphans", "--yes"}).out, "removed: replica " + uuid(77) + " on alpha, beta"));
	CHECK(d.orphans[1].empty());
	CHECK(d.run({"group", "destroy", "--orphans", "--yes"}).out == "no orphans\n");
	CHECK(d.run({"group", "destroy"}).status == 2);
	CHECK(d.run({"group", "destroy", "used", "--orphans"}).status == 2);
}

TEST_CASE("group adopt makes volumes of all orphaned replicas, in one group, and tells which it could not")
{
	Groups d;
	CHECK(d.run({"group", "adopt", "old"}).status == 3);
	CHECK_FALSE(d.state()->groups.contains("old"));
	d.orphans = {{1, json{left_behind(77), left_behind(78), left_behind(79, "snapshot")}}};
	d.orphans[1][1]["open"] = true;
	Outcome o = d.run({"group", "adopt", "old", "--redundancy", "1"});
	CHECK(o.status == 5);
	CHECK(has(o.out, "volume " + uuid(77) + " is there, with the content that was left on alpha"));
	CHECK(has(o.out, "! volume " + uuid(78) + ": "));
	CHECK(has(o.err, "1 of 2 volumes could not be adopted"));
	CHECK(d.volume(uuid(77)).group == "old");
	CHECK(d.state()->groups.at("old").redundancy == 1);
	CHECK_FALSE(d.state()->volume_named(uuid(78)));
	// What is in another pool stays, as does what was in another group, if one is named.
	d.orphans = {{1, json{left_behind(80), left_behind(81), left_behind(82)}}};
	d.orphans[1][0]["vg"] = "elsewhere";
	d.orphans[1][1]["group"] = "before";
	o = d.run({"group", "adopt", "old", "--from", "never"});
	CHECK(o.status == 3);
	CHECK(has(o.err, "orphaned replica of group never in pool default"));
	CHECK(d.run({"group", "adopt", "old", "--from", "before"}).status == 0);
	CHECK(d.state()->volume_named(uuid(81)));
	CHECK_FALSE(d.state()->volume_named(uuid(82)));
	d.orphans[1].erase(1);
	d.online(3, false);
	o = d.run({"group", "adopt", "old", "--json"});
	CHECK(o.status == 5);
	const json answer = json::parse(o.out);
	CHECK(answer["adopted"].empty());
	REQUIRE(answer["not_adopted"].size() == 1);
	CHECK(answer["not_adopted"][0]["uuid"] == uuid(82));
	CHECK(answer["unreachable"][0]["host"] == "gamma");
	d.online(3, true);
	CHECK(d.run({"group", "adopt", "old"}).status == 0);
	CHECK(d.state()->volume_named(uuid(82)));
	CHECK_FALSE(d.state()->volume_named(uuid(80)));
}

TEST_CASE("group redundancy: of all its volumes, waited for, and told why some cannot have it")
{
	Groups d;
	d.repairs = d.resyncs = true;
	Outcome o = d.run({"group", "redundancy", "used", "3"});
	INFO(o.out << o.err);
	CHECK(o.status == 0);
	CHECK(o.out == "all volumes of group used have 3 replicas\n");
	CHECK(d.volume("a").replicas.size() == 3);
	CHECK(d.volume("plain").redundancy == 2);
	CHECK(d.run({"group", "redundancy", "used", "2", "--no-wait"}).out == "the volumes of group used get 2 replicas: see `lockstep group list`\n");
	CHECK(d.run({"group", "redundancy", "used", "4"}).status == 5);
	CHECK(d.run({"group", "redundancy", "used", "0"}).status == 2);
	CHECK(d.run({"group", "redundancy", "none", "2"}).status == 3);
	d.online(3, false);
	o = d.run({"group", "redundancy", "left", "3"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "0 of 1 volumes of group left have it, the others get it as soon as they can: "));
	CHECK(has(d.run({"group", "list"}).out, "  ! 0 of 1 volumes of group left have 3 good copies: "));
	const json op = d.json_of({"operation", "show", "redundancy:left", "--json"});
	CHECK(op["what"] == "0 of 1 volumes have 3 good copies");
	CHECK(op["percent"] == 0);
	CHECK(has(op["waits_for"], "gamma"));
	CHECK(has(op["waits_for"], "is offline"));
	d.online(3, true);
	CHECK(d.run({"operation", "wait", "redundancy:left"}).out == "operation redundancy:left is done\n");
	CHECK(d.volume("b").replicas.size() == 3);
}
