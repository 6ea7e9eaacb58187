// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep disk list|replace, pool add-disk|remove-disk against the real API.
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

	for (const auto &wrong : {std::vector<std::string>{"disk", "replace", "alpha", "sdb", "/dev/sde"},
				  {"disk", "replace", "alpha", "/dev/sdb", "/dev/sdb"}, {"pool", "add-disk", "default", "alpha", "/dev/../etc"}})
		CHECK(d.run(wrong).status == 2);
	CHECK(d.run({"disk", "replace", "nobody", "/dev/sdb", "/dev/sde"}).status == 3);
}
