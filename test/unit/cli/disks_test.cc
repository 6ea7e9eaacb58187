// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep disk list|replace, pool add-disk|remove-disk, pool delete against the real API.
#include "fake.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

json disk(const std::string &name, uint64_t used)
{
	return {{"pool", "default"}, {"vg", "lockstep_group"}, {"disk", name}, {"size_bytes", 10 * GIB}, {"used_bytes", used}, {"missing", false},
		{"leaving", false}, {"percent", 0.0}};
}

}    // namespace

TEST_CASE("disks are listed, added, and watched until they are gone")
{
	FakeDaemon d;
	d.disks[1] = json{disk("/dev/sdb", GIB), disk("/dev/sdc", 0)};
	d.unreachable = {2};
	Outcome o = d.run({"disk", "list"});
	INFO(o.out << o.err);
	CHECK(o.status == 0);
	CHECK(has(o.out, "HOST   POOL     DISK        SIZE   USED"));
	CHECK(has(o.out, "alpha  default  /dev/sdb  10 GiB  1 GiB"));
	CHECK(has(o.out, "  ! not asked: "));
	CHECK(d.json_of({"disk", "list", "--json"})["disks"].size() == 2);

	CHECK(d.run({"pool", "add-disk", "default", "alpha", "/dev/sdd"}).out == "/dev/sdd is a disk of pool default on host alpha\n");
	CHECK(d.run({"pool", "remove-disk", "default", "alpha", "/dev/sdc", "--no-wait"}).out == "/dev/sdc is being emptied: see `lockstep disk list`\n");
	o = d.run({"disk", "replace", "alpha", "/dev/sdb", "/dev/sde"});
	CHECK(o.out == "/dev/sde is a disk of pool default on host alpha\n/dev/sdb is empty, and no disk of pool default on host alpha any more\n");
	CHECK(d.run({"disk", "list"}).status == 0);

	// A missing disk whose path another one has by now is named by its UUID; no other is.
	const std::string uuid = "tTKvMu-2Tyd-zzy6-Xfqb-x1d2-HwXw-Sax3LF";
	CHECK(d.run({"disk", "replace", "alpha", uuid, "/dev/sde"}).status == 0);
	CHECK(d.run({"disk", "replace", "alpha", "/dev/sdb", uuid}).status == 2);
	CHECK(d.run({"disk", "replace", "alpha", uuid.substr(1), "/dev/sde"}).status == 2);

	for (const auto &wrong : {std::vector<std::string>{"disk", "replace", "alpha", "sdb", "/dev/sde"},
				  {"disk", "replace", "alpha", "/dev/sdb", "/dev/sdb"}, {"pool", "add-disk", "default", "alpha", "/dev/../etc"}})
		CHECK(d.run(wrong).status == 2);
	CHECK(d.run({"disk", "replace", "nobody", "/dev/sdb", "/dev/sde"}).status == 3);
}

TEST_CASE("a dead disk is replaced: it is said what was lost with it, and nothing is given up that is the last of its kind")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "a", "1GiB", "--on", "alpha,beta"}).status == 0);
	const uint32_t vid = d.volume("a").vid;
	json dead = disk("/dev/sdb", GIB);
	dead["missing"] = true;
	d.disks[1] = json{dead};
	CHECK(has(d.run({"disk", "list"}).out, "MISSING"));
	d.mend[1] = {{"op", "pool.mend"}, {"name", "default"}, {"host", 1}, {"disk", "uuid-b"}, {"by", "/dev/sde"}, {"replicas", {vid}}};
	Outcome o = d.run({"disk", "replace", "alpha", "/dev/sdb", "/dev/sde"});
	INFO(o.out << o.err);
	CHECK(o.status == 0);
	CHECK(o.out == "/dev/sdb is lost, and with it 1 replica and 0 copies of snapshots: they are made anew from other hosts' wherever there is room, "
		       "see `lockstep status`\n/dev/sde is a disk of pool default on host alpha\n/dev/sdb is no disk of pool default on host alpha any more\n");
	CHECK_FALSE(d.volume("a").replica(1));
	CHECK(d.state()->pool("default", 1)->mending == "uuid-b");

	// The other one is the last now.
	d.disks[2] = json{dead};
	d.mend[2] = {{"op", "pool.mend"}, {"name", "default"}, {"host", 2}, {"disk", "uuid-c"}, {"replicas", {vid}}};
	o = d.run({"pool", "remove-disk", "default", "beta", "/dev/sdb"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "no other one is in sync"));
	CHECK(d.volume("a").replica(2)->state == ReplicaState::insync);
}

TEST_CASE("an empty pool is taken from a host, one that is in use is not")
{
	FakeDaemon d(3, 300);
	REQUIRE(d.run({"volume", "create", "a", "1GiB", "--on", "alpha,beta"}).status == 0);
	CHECK(has(d.run({"pool", "delete", "gamma", "default"}).err, "runs an older lockstepd"));
	const auto before = d.state();
	for (const auto &[id, host] : before->hosts)
		d.good({{"op", "host.set"}, {"host", id}, {"addresses", host.addresses}, {"host_level", LEVEL}});
	Outcome o = d.run({"pool", "delete", "alpha", "default"});
	CHECK(o.status == 5);
	CHECK(o.err == "lockstep: pool default on host alpha holds replicas of a: move them with `lockstep volume replica move VOLUME alpha`, or all that the "
		       "host has with `lockstep host evacuate alpha`\n");
	CHECK(d.run({"pool", "delete", "nobody", "default"}).status == 3);
	CHECK(d.run({"pool", "delete", "gamma", "other"}).status == 3);

	d.disks_move = {3};
	CHECK(d.run({"pool", "delete", "gamma", "default"}).err == "lockstep: pool default: /dev/sdb is just being emptied\n");
	CHECK_FALSE(d.state()->pool("default", 3)->deleting);
	d.disks_move = {};
	d.online(3, false);
	CHECK(has(d.run({"pool", "delete", "gamma", "default"}).err, "its host is offline"));
	d.online(3, true);

	d.idle = {3};
	o = d.run({"pool", "delete", "gamma", "default"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "pool default on host gamma is being deleted, but its host has not finished yet"));
	CHECK(has(d.run({"pool", "list"}).out, "is being deleted"));
	d.disks_move = {3};    // it has begun: nobody asks again
	d.wake();
	CHECK_FALSE(d.state()->pool("default", 3));
	d.disks_move = {};
	d.good({{"op", "pool.add"}, {"name", "default"}, {"host", 3}, {"kind", "thick"}, {"vg", "v"}, {"size_bytes", GIB}, {"free_bytes", GIB}});
	o = d.run({"pool", "delete", "gamma", "default"});
	INFO(o.err);
	CHECK(o.status == 0);
	CHECK(o.out == "pool default of host gamma is gone; its volume group and disks are as they were\n");
	CHECK(d.run({"pool", "delete", "gamma", "default"}).status == 3);
	CHECK(d.json_of({"pool", "list", "--json"}).size() == 2);
}
