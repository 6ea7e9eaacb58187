// SPDX-License-Identifier: GPL-2.0-or-later
//
// The commands that change a volume group's disks, given by the real tools and a real reconciler to a program that stands in for lvm and
// keeps a group in a file. The daemon is killed before and after each command that changes anything.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fakes.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

// Answers to what is asked, effects of what is told. After the command at which the daemon dies there are none of it any more.
constexpr const char *PROGRAM = R"(#!/usr/bin/python3
import json, os, sys
path = os.path.join(os.path.dirname(os.path.realpath(__file__)), 'group')
g = json.load(open(path))
args = [a for i, a in enumerate(sys.argv[1:]) if a != '--config' and sys.argv[i] != '--config']
GIB = 1 << 30

def tags(list, args):
    for verb, tag in zip(args, args[1:]):
        if verb == '--addtag' and tag not in list: list.append(tag)
        if verb == '--deltag' and tag in list: list.remove(tag)

def report():
    pvs = [{'pv_name': d, 'pv_uuid': p['uuid'], 'pv_size': str(20 * GIB), 'pv_used': str(p['used']), 'pv_missing': '', 'pv_tags': ','.join(p['tags'])}
           for d, p in g['disks'].items() if p['vg']]
    size = 20 * GIB * len(pvs)
    free = size - g['thin'] - sum(p['used'] for p in g['disks'].values() if p['vg'])
    thin = {'lv_name': 'thin', 'lv_path': '', 'lv_layout': 'thin,pool', 'lv_size': str(g['thin']), 'data_percent': '1', 'metadata_percent': '1',
            'lv_metadata_size': str(80 << 20), 'lv_tags': ''}
    return {'report': [{'vg': [{'vg_name': 'vg', 'vg_size': str(size), 'vg_free': str(free), 'vg_extent_size': str(4 << 20), 'vg_missing_pv_count': '0',
                                'vg_tags': ','.join(g['tags'])}], 'pv': pvs, 'lv': [thin], 'seg': [{'lv_name': 'thin', 'chunk_size': '65536'}]}]}

def change():
    verb, disk = args[0], g['disks'].get(args[-1])
    if verb == 'vgchange': tags(g['tags'], args)
    elif verb == 'pvchange': tags(disk['tags'], args)
    elif verb == 'pvcreate': disk['uuid'] = args[args.index('--uuid') + 1]
    elif verb == 'vgextend': disk['vg'] = 'vg'
    elif verb == 'vgreduce': disk['vg'], disk['tags'] = '', []
    elif verb == 'pvremove' and not disk['vg']: disk['uuid'] = ''
    elif verb == 'lvextend': g['thin'] += int(args[args.index('--size') + 1].strip('+b'))
    elif verb == 'pvmove': disk['used'] = 0
    else: sys.exit('lvm stand-in: ' + ' '.join(args))

if args[0] in ('fullreport', 'pvs', 'lvs', 'lvmconfig'):
    if args[0] == 'pvs':
        print(json.dumps({'report': [{'pv': [{'pv_name': d, 'pv_uuid': p['uuid'], 'vg_name': p['vg']} for d, p in g['disks'].items() if p['uuid']]}]}))
    elif args[0] == 'lvs':
        print(json.dumps({'report': [{'lv': []}]}))
    elif args[0] == 'fullreport':
        print(json.dumps({'report': []} if g.get('gone') else report()))
    sys.exit(0)
g['commands'] += 1
dead = g['dies_at'] and g['commands'] >= g['dies_at']
if args[0] == g.get('refuses'):
    sys.exit('refused')
if not dead or (g['commands'] == g['dies_at'] and g['after']):
    change()
    g['done'].append(' '.join(args))
json.dump(g, open(path, 'w'))
sys.exit('dead' if dead else 0)
)";

struct LvmGroup {
	std::string folder, path_before = getenv("PATH");
	FakeWorld w;

	LvmGroup()
	{
		char name[] = "/tmp/lockstep-lvm-XXXXXX";
		REQUIRE(mkdtemp(name));
		folder = name;
		std::ofstream(folder + "/lvm") << PROGRAM;
		REQUIRE(chmod((folder + "/lvm").c_str(), 0700) == 0);
		setenv("PATH", (folder + ":" + path_before).c_str(), 1);
		const auto disk = [](const char *uuid, const char *vg, uint64_t used) { return json{{"uuid", uuid}, {"vg", vg}, {"used", used}, {"tags", json::array()}}; };
		put({{"tags", json::array()}, {"commands", 0}, {"dies_at", 0}, {"after", false}, {"done", json::array()}, {"thin", 4 * GIB},
		     {"disks", {{"/dev/a", disk("uuid-a", "vg", 2 * GIB)}, {"/dev/b", disk("uuid-b", "vg", GIB)}, {"/dev/n", disk("uuid-n", "", 0)},
				{"/dev/x", disk("uuid-x", "", 0)}}}});
		w.make_thin();
		w.other_tools = [](Lvm &lvm) {
			const Lvm real = lvm_tools();
			lvm.report = real.report;
			add_disk_tools(lvm);
		};
	}
	~LvmGroup()
	{
		setenv("PATH", path_before.c_str(), 1);
		std::filesystem::remove_all(folder);
	}

	json get() { return json::parse(std::ifstream(folder + "/group")); }
	void put(const json &group) { std::ofstream(folder + "/group") << group; }
	void dies(unsigned at, bool after)
	{
		json g = get();
		g["dies_at"] = at ? g["commands"].get<unsigned>() + at : 0u;
		g["after"] = after;
		put(g);
	}
	bool dead() { return get()["dies_at"] != 0 && get()["commands"] >= get()["dies_at"]; }
	void another_daemon()
	{
		dies(0, false);
		w.start_daemon();
	}
	std::string tags() { return get()["tags"].dump(); }
};

}    // namespace

TEST_CASE("a disk that leaves a volume group has no label of LVM's in the end, whenever the daemon dies")
{
	unsigned commands = 0;
	for (unsigned at = 0; at <= commands; at++)
		for (bool after : {false, true}) {
			LvmGroup g;
			REQUIRE(g.w.lvm().leave_disk("vg", "/dev/a"));
			const unsigned before = g.get()["commands"];
			g.dies(at, after);
			INFO("command " << at << (after ? " after" : " before"));
			g.w.start_daemon();
			const auto out = [&] { return g.get()["disks"]["/dev/a"]["uuid"] == "" && g.tags() == "[]"; };
			REQUIRE(g.w.run_until([&] { return out() || g.dead(); }, 60'000));
			if (g.dead()) {
				g.w.kill_daemon();
				g.another_daemon();
			}
			REQUIRE(g.w.run_until(out, 60'000));
			g.w.run_for(2 * POOL_PERIOD_MS);
			CHECK(g.w.daemon().problems().empty());
			CHECK(g.get()["disks"]["/dev/a"]["vg"] == "");
			CHECK(g.get()["disks"]["/dev/x"]["uuid"] == "uuid-x");    // that of somebody else stays
			CHECK(g.get()["thin"] == 4 * GIB);
			if (!at)
				commands = g.get()["commands"].get<unsigned>() - before;
		}
	CHECK(commands == 5);    // pvmove, the mark, vgreduce, pvremove, the mark
}

TEST_CASE("a disk that has left is left alone when it is in use again")
{
	LvmGroup g;
	REQUIRE(g.w.lvm().leave_disk("vg", "/dev/a"));
	g.dies(3, true);    // it is out
	g.w.start_daemon();
	REQUIRE(g.w.run_until([&] { return g.dead(); }, 60'000));
	g.w.kill_daemon();
	CHECK(g.tags() == R"(["lockstep.departed=uuid-a"])");
	json group = g.get();
	group["disks"]["/dev/a"]["vg"] = GENERATE("vg", "other");
	g.put(group);
	g.another_daemon();
	REQUIRE(g.w.run_until([&] { return g.tags() == "[]"; }, 60'000));
	CHECK(g.get()["disks"]["/dev/a"]["uuid"] == "uuid-a");
	CHECK(g.w.daemon().problems().empty());
}

TEST_CASE("a thin pool grows when its new disk is in, whenever the daemon that was told of it died, and not before")
{
	for (unsigned at = 0; at <= 3; at++)
		for (bool after : {false, true}) {
			LvmGroup g;
			INFO("command " << at << (after ? " after" : " before"));
			g.dies(at, after);
			const bool added = bool(g.w.lvm().add_disk("vg", "/dev/n", true, ""));
			CHECK(added == !at);
			g.another_daemon();
			g.w.run_for(2 * POOL_PERIOD_MS);
			const bool in = g.get()["disks"]["/dev/n"]["vg"] == "vg";
			CHECK(in == (!at || (at == 3 && after)));
			CHECK((g.get()["thin"] > 40 * GIB) == in);
			// That of a disk which never came is no harm, and goes with the next one.
			CHECK((g.tags() == "[]") == (in || (at == 1 && !after)));
			// The command is given again.
			REQUIRE(g.w.lvm().add_disk("vg", "/dev/n", true, ""));
			g.w.run_for(2 * POOL_PERIOD_MS);
			CHECK(g.tags() == "[]");
			CHECK(g.get()["thin"] > 40 * GIB);
		}
}

TEST_CASE("the mark of a disk that comes just now stays when the pool has grown into another one")
{
	LvmGroup g;
	json group = g.get();
	const std::string other = std::string(GROWING_INTO_TAG) + "another";
	group["tags"] = {GROWING_TAG, other};
	g.put(group);
	g.w.start_daemon();
	g.w.run_for(2 * POOL_PERIOD_MS);
	CHECK(g.tags() == json{other}.dump());
	REQUIRE(g.w.lvm().let_go("vg"));
	CHECK(g.tags() == "[]");
}

TEST_CASE("a disk that LVM refuses leaves no mark, and one that comes has a UUID as LVM's are")
{
	LvmGroup g;
	json group = g.get();
	group["refuses"] = "vgextend";
	g.put(group);
	CHECK(!g.w.lvm().add_disk("vg", "/dev/n", true, ""));
	CHECK(g.tags() == "[]");
	const std::string uuid = g.get()["disks"]["/dev/n"]["uuid"];
	REQUIRE(uuid.size() == 38);
	for (size_t i = 0; i < uuid.size(); i++)
		CHECK((uuid[i] == '-') == (i == 6 || i == 11 || i == 16 || i == 21 || i == 26 || i == 31));
}

TEST_CASE("a thin pool does not take the room of a new disk before the disk that it replaces is out")
{
	LvmGroup g;
	json group = g.get();
	group["thin"] = 30 * GIB;    // what is on the old disk has no other place
	group["disks"]["/dev/a"]["used"] = 8 * GIB;
	g.put(group);
	REQUIRE(g.w.lvm().add_disk("vg", "/dev/n", true, "uuid-a"));
	g.w.start_daemon();    // the one that was asked has died here
	g.w.run_for(2 * POOL_PERIOD_MS);
	CHECK(g.get()["thin"] == 30 * GIB);
	CHECK(g.tags() == R"(["lockstep.growing-after=uuid-a"])");
	REQUIRE(g.w.lvm().leave_disk("vg", "/dev/a"));
	REQUIRE(g.w.run_until([&] { return g.tags() == "[]"; }, 4 * POOL_PERIOD_MS));
	CHECK(g.get()["disks"]["/dev/a"]["uuid"] == "");
	CHECK(g.get()["thin"] > 30 * GIB);
}

TEST_CASE("a volume group that is gone by the time its thin pool has grown is an error")
{
	LvmGroup g;
	json group = g.get();
	group["gone"] = true;
	g.put(group);
	const Done grown = g.w.lvm().grow_data("vg", "thin", 0);
	REQUIRE(!grown);
	CHECK(grown.error().message.find("the volume group is gone") != std::string::npos);
}
