// SPDX-License-Identifier: GPL-2.0-or-later
//
// The commands for the life of replicas and hosts, options and capacity: what they say and what becomes of the State.
#include "fake.h"

#include "lockstepd/cluster/capacity.h"
#include "lockstepd/cluster/option.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

using Args = std::vector<std::string>;

struct LivingDaemon : FakeDaemon {
	explicit LivingDaemon(unsigned hosts = 3) : FakeDaemon(hosts) { repairs = resyncs = true; }
};

void create(LivingDaemon &d, const std::string &name, const std::string &on, HostId open_on = 1)
{
	REQUIRE(d.run({"volume", "create", name, "1GiB", "--on", on}).status == 0);
	d.good({{"op", "record.open"}, {"vid", d.volume(name).vid}, {"host", open_on}});
}

std::vector<HostId> on(const Volume &v)
{
	std::vector<HostId> hosts;
	for (const Replica &r : v.replicas)
		hosts.push_back(r.host);
	return hosts;
}

using Hosts = std::vector<HostId>;

}    // namespace

TEST_CASE("replica add, remove, move; redundancy")
{
	LivingDaemon d(4);
	create(d, "v", "alpha,beta");
	Outcome o = d.run({"volume", "replica", "add", "v", "gamma"});
	CHECK(has(o.out, "volume v has a new replica on gamma"));
	CHECK((on(d.volume("v")) == Hosts{1, 2, 3} && d.volume("v").redundancy == 3));
	d.attach_all();
	CHECK(d.run({"wait-sync", "v", "--timeout", "1"}).status == 0);
	o = d.run({"volume", "replica", "add", "v", "gamma"});
	CHECK((o.status == 5 && has(o.err, "gamma: has a replica already")));
	CHECK(d.run({"volume", "replica", "add", "v", "nosuch"}).status == 3);
	CHECK(d.run({"volume", "replica", "add", "nosuch"}).status == 3);
	o = d.run({"volume", "replica", "remove", "v", "beta"});
	CHECK((o.status == 0 && o.out == "volume v has no replica on beta any more\n"));
	CHECK(on(d.volume("v")) == Hosts{1, 3});
	CHECK(d.run({"volume", "replica", "remove", "v", "beta"}).status == 3);
	o = d.run({"volume", "replica", "move", "v", "gamma", "delta"});
	CHECK(has(o.out, "volume v gets a replica on delta; that on gamma goes"));
	CHECK(on(d.volume("v")) == Hosts{1, 4});
	o = d.run({"volume", "redundancy", "v", "4"});
	CHECK((o.status == 0 && on(d.volume("v")).size() == 4));
	o = d.run({"volume", "redundancy", "v", "1"});
	CHECK((o.status == 0 && on(d.volume("v")) == Hosts{1}));
	CHECK(d.run({"volume", "redundancy", "v", "0"}).status == 2);
	CHECK(d.run({"volume", "redundancy", "v", "5"}).status == 5);
	o = d.run({"volume", "replica", "remove", "v", "alpha"});
	CHECK((o.status == 5 && has(o.err, "redundancy is 1")));
}

TEST_CASE("invalidate: a replica is thrown away and made anew where it was, never the last good one")
{
	LivingDaemon d(4);
	create(d, "v", "beta,gamma");
	REQUIRE(d.volume("v").primary == 2);
	const uint64_t added = d.volume("v").replica(3)->added;
	Outcome o = d.run({"invalidate", "v@gamma"});
	CHECK((o.status == 0 && has(o.out, "the replica of volume v on gamma is new and gets all its content from another one")));
	CHECK(on(d.volume("v")) == Hosts{2, 3});
	CHECK(d.volume("v").replica(3)->added > added);
	d.attach_all();
	CHECK(d.run({"wait-sync", "v", "--timeout", "1"}).status == 0);
	CHECK(d.run({"invalidate-remote", "v@gamma", "--reset-bitmap=yes"}).status == 0);
	o = d.run({"invalidate", "v@beta"});
	CHECK((o.status == 5 && has(o.err, "serves it and cannot be thrown away: run `lockstep primary v HOST`")));
	o = d.run({"invalidate", "v"});    // this host has none
	CHECK((o.status == 3 && has(o.err, "no replica on host alpha")));
	CHECK(d.run({"invalidate", "nosuch@beta"}).status == 3);
	CHECK(d.run({"invalidate", "v@nosuch"}).status == 3);
	CHECK(d.run({"invalidate", "v@"}).status == 2);
	o = d.run({"invalidate-remote", "v"});
	CHECK((o.status == 2 && has(o.err, "Name its host")));
	o = d.run({"invalidate-remote", "v@gamma", "--reset-bitmap=no"});
	CHECK((o.status == 5 && has(o.err, "lockstep verify v --repair")));
	d.create_error = "no";
	o = d.run({"invalidate", "v@gamma"});
	CHECK((o.status == 10 && has(o.err, "none could be made on host gamma")));
}

TEST_CASE("a replica that cannot be made is told, and nothing is left of it")
{
	LivingDaemon d(3);
	create(d, "v", "alpha,beta");
	d.create_error = "no space in the thin pool";
	Outcome o = d.run({"volume", "replica", "add", "v"});
	CHECK((o.status == 10 && has(o.err, "volume v gets no replica on host gamma: no space in the thin pool")));
	CHECK((on(d.volume("v")) == Hosts{1, 2} && d.volume("v").redundancy == 2 && d.volume("v").remnants.empty()));
}

TEST_CASE("a replica that is needed stays until others are in sync; one on a host that is away leaves its LV there")
{
	LivingDaemon d(3);
	create(d, "v", "alpha,beta");
	d.resyncs = false;
	REQUIRE(d.run({"volume", "replica", "add", "v", "gamma"}).status == 0);
	Outcome o = d.run({"volume", "replica", "remove", "v", "beta"});
	CHECK((o.status == 0 && has(o.out, "goes as soon as enough others are in sync")));
	CHECK(on(d.volume("v")) == Hosts{1, 2, 3});
	d.attach_all();
	o = d.run({"wait-sync", "v", "--timeout", "0.1"});
	CHECK((o.status == 10 && has(o.err, "beta insync, leaves") && has(o.err, "gamma stale")));
	d.online(3, false);
	o = d.run({"volume", "replica", "remove", "v", "gamma"});
	CHECK((o.status == 0 && has(o.out, "gamma will remove its part when it is back")));
	CHECK(d.volume("v").remnant(3));
	json v = d.json_of({"status", "v", "--json"})["volumes"][0];
	CHECK((v["changes"]["left_behind"] == json({"gamma"}) && v["redundancy"] == 1));
}

TEST_CASE("hosts: evacuate, restore, remove, lost")
{
	LivingDaemon d(4);
	create(d, "v", "alpha,beta", 3);
	Outcome o = d.run({"host", "remove", "beta"});
	CHECK((o.status == 5 && has(o.err, "it has a replica of volume v: empty it with `lockstep host evacuate beta` first")));
	d.resyncs = false;
	o = d.run({"host", "evacuate", "beta", "--no-wait"});
	CHECK((o.status == 0 && has(o.out, "host beta: 1 replica left") && has(o.out, "`lockstep host restore beta` calls it off")));
	CHECK(has(d.run({"status"}).out, "host beta is being evacuated, 1 replicas left"));
	CHECK(has(d.run({"host", "list"}).out, "online, evacuating"));
	REQUIRE(d.run({"snapshot", "create", "v", "s"}).status == 0);
	o = d.run({"host", "evacuate", "beta", "--no-wait"});
	CHECK(has(o.out, "host beta: 1 replica left, 1 snapshot"));
	REQUIRE(d.run({"snapshot", "delete", "v", "s"}).status == 0);
	d.resyncs = true;
	d.idle = {2};
	o = d.run({"host", "evacuate", "beta", "--no-wait"});
	CHECK((o.status == 0 && has(o.out, "host beta: 0 replicas left, 1 to delete")));
	d.online(2, false);
	o = d.run({"host", "evacuate", "beta"});
	CHECK((o.status == 0 && has(o.out, "host beta holds nothing that is needed")));
	d.idle = {};
	d.online(2, true);
	o = d.run({"host", "evacuate", "beta"});
	CHECK((o.status == 0 && has(o.out, "host beta is empty")));
	o = d.run({"host", "restore", "beta"});
	CHECK((o.status == 0 && o.out == "host beta takes replicas as any other\n"));
	o = d.run({"host", "remove", "beta"});
	CHECK((o.status == 0 && o.out == "host beta is in the cluster no more\n"));
	CHECK_FALSE(d.state()->host(2));
	o = d.run({"host", "lost", "delta"});
	CHECK((o.status == 5 && has(o.err, "host delta is online")));
	HostId second = on(d.volume("v")).back();
	std::string name = d.state()->host_name(second);
	d.online(second, false);
	CHECK(has(d.run({"status"}).out, "host " + name + " is offline; evicted in 1 h"));
	o = d.run({"host", "lost", name});
	CHECK((o.status == 0 && has(o.out, "host " + name + " is forgotten")));
	CHECK(d.run({"host", "lost", name}).status == 3);
}

TEST_CASE("options")
{
	LivingDaemon d;
	CHECK(has(d.run({"option", "list"}).out, "auto-evict-minutes  60     60       -"));
	CHECK(d.run({"option", "set", "auto-evict-minutes", "off"}).status == 0);
	CHECK(d.run({"option", "set", "auto-evict-minutes", "5", "--host", "beta"}).out == "auto-evict-minutes is 5 for host beta\n");
	CHECK(has(d.run({"option", "list"}).out, "auto-evict-minutes  off    60       beta=5"));
	CHECK(d.json_of({"option", "list", "--json"})[0]["hosts"] == json({{"beta", "5"}}));
	CHECK(d.run({"option", "set", "nosuch", "5"}).status == 3);
	CHECK(d.run({"option", "set", "auto-evict-minutes", "x"}).status == 2);
	d.online(3, false);
	CHECK(has(d.run({"status"}).out, "host gamma is offline; it is not going to be evicted: auto-evict is off"));
}

TEST_CASE("capacity: what XOSTOR shows, the exact maximum, and the largest volume")
{
	CHECK(capacity({200, 200, 200}, 2).many_bytes == 300);
	CHECK(capacity({200, 200, 200}, 2).simple_bytes == 300);
	CHECK(capacity({100, 400, 400}, 2).simple_bytes == 150);
	CHECK(capacity({100, 400, 400}, 2).many_bytes == 450);
	CHECK(capacity({10, 10, 1000}, 2).many_bytes == 20);    // the large one cannot hold two copies
	CHECK(capacity({100, 100}, 3) == Capacity{});
	CHECK(capacity({}, 1) == Capacity{});
	Capacity c = capacity({GIB, GIB, GIB / 2}, 2);
	CHECK(replica_bytes(c.largest_bytes, LKS_BLOCK_DEFAULT) <= GIB);
	CHECK(replica_bytes(c.largest_bytes + 8 * MIB, LKS_BLOCK_DEFAULT) > GIB);
	// Nothing larger than `many` can be laid out: by trying for small numbers.
	for (uint64_t a = 0; a < 7; a++)
		for (uint64_t b = a; b < 7; b++)
			for (uint64_t e = b; e < 7; e++) {
				uint64_t x = a, y = b, z = e, made = 0;
				while (x + y + z) {    // always from the two fullest
					uint64_t *p[] = {&x, &y, &z};
					std::sort(p, p + 3, [](auto *l, auto *r) { return *l > *r; });
					if (!*p[1])
						break;
					--*p[0], --*p[1], made++;
				}
				CHECK(capacity({a, b, e}, 2).many_bytes == made);
			}
	LivingDaemon d;
	Outcome o = d.run({"pool", "capacity"});
	CHECK(has(o.out, "pool default at redundancy 2: 3 hosts"));
	CHECK(has(o.out, "many volumes, in all                    30 GiB      60 GiB"));
	CHECK(d.run({"pool", "capacity", "nosuch"}).status == 3);
	CHECK(d.run({"pool", "capacity", "default", "--redundancy", "9"}).status == 2);
}

TEST_CASE("a pool that fills up is told, and takes nothing new above 90 %")
{
	LivingDaemon d;
	auto fill = [&](uint64_t free) {
		d.good({{"op", "pool.report"}, {"name", "default"}, {"host", 2}, {"size_bytes", 20 * GIB}, {"free_bytes", free * GIB}});
	};
	fill(5);
	CHECK(has(d.run({"status"}).out, "! pool default on host beta is 74 % full\n"));
	fill(1);
	CHECK(has(d.run({"status"}).out, "! pool default on host beta is 94 % full: it takes nothing new; add a disk or remove volumes\n"));
	CHECK(d.json_of({"status", "--json"})["pools"][1]["alarm"] == "full");
	Outcome o = d.run({"volume", "create", "v", "1GiB", "--redundancy", "3"});
	CHECK((o.status == 5 && has(o.err, "beta: pool default is 94 % full, above 90 % it takes nothing new")));
}

TEST_CASE("cluster recover: first what would happen and what it costs, then with --yes")
{
	LivingDaemon d(3);
	create(d, "v1", "alpha,beta");
	create(d, "v2", "beta,gamma", 2);
	for (HostId host : {2, 3})
		d.good({{"op", "host.status"}, {"host", host}, {"online", false}, {"now_ms", 9}});
	const auto plan = d.run({"cluster", "recover"});
	REQUIRE(plan.status == 0);
	CHECK(has(plan.out, "alpha goes on alone"));
	CHECK(has(plan.out, "dead for good: beta, gamma"));
	CHECK(has(plan.out, "no surviving host has a copy"));
	CHECK(has(plan.out, "nothing has been changed. To do this: `lockstep cluster recover --dead beta --dead gamma --yes`"));
	CHECK(has(plan.out, "you vouch that"));
	CHECK(d.run({"cluster", "recover", "--yes"}).status == 5);
	const auto done = d.run({"cluster", "recover", "--dead", "beta", "--dead", "gamma", "--yes"});
	CHECK((done.status == 0 && has(done.out, "done: lockstepd on alpha starts anew")));
	CHECK(json::parse(d.run({"cluster", "recover", "--json"}).out)["volumes"].size() == 2);
}

TEST_CASE("cluster recover --from-disks: what is in doubt has to be named before it is done")
{
	LivingDaemon d(3);
	const auto plan = d.run({"cluster", "recover", "--from-disks"});
	REQUIRE(plan.status == 0);
	CHECK(has(plan.out, "no host has a log: alpha makes a new one of what the disks say"));
	CHECK(has(plan.out, "IN DOUBT"));
	CHECK(has(plan.out, "note: volume group vg of host beta lacks a disk"));
	CHECK(has(plan.out, "nothing has been changed. First name the copy to take of v3: --copy VOLUME=HOST"));
	CHECK_FALSE(has(plan.out, "--yes"));
	CHECK(d.run({"cluster", "recover", "--from-disks", "--yes"}).status == 5);
	const auto named = d.run({"cluster", "recover", "--from-disks", "--copy", "v3=beta"});
	CHECK(has(named.out, "To do this: `lockstep cluster recover --from-disks --copy v3=beta --yes`"));
	CHECK(has(named.out, "named by you"));
	const auto done = d.run({"cluster", "recover", "--from-disks", "--copy", "v3=none", "--yes"});
	CHECK((done.status == 0 && has(done.out, "done: lockstepd on alpha starts anew")));
	for (const char *wrong : {"v3", "=beta", "v3="})
		CHECK(d.run({"cluster", "recover", "--from-disks", "--copy", wrong}).status == 2);
	CHECK(d.run({"cluster", "recover", "--from-disks", "--copy", "v9=beta"}).status == 3);
}
