// SPDX-License-Identifier: GPL-2.0-or-later
//
// Operations: what is under way is listed by its name, called off where it can be, and waited for; up and adjust.
#include "fake.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

std::set<std::string> ids(FakeDaemon &d)
{
	std::set<std::string> all;
	for (const json &o : d.json_of({"operation", "list", "--json"}))
		all.insert(o["id"]);
	return all;
}

using Ids = std::set<std::string>;

}    // namespace

TEST_CASE("operations: a resync is listed with how far it is, and waited for")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	CHECK(d.run({"operation", "list"}).out == "nothing is under way\n");
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	REQUIRE(d.run({"volume", "replica", "add", "v", "gamma"}).status == 0);
	CHECK(ids(d) == Ids{"sync:v@gamma"});
	d.server().soft(1, {{"volumes", {{"1", {{"peers", {{"3", {{"sync_state", "running"}, {"dirty_blocks", GIB / 16384 / 4}}}}}}}}}});
	json o = d.json_of({"operation", "show", "sync:v@gamma", "--json"});
	CHECK(o["percent"] == 75.0);
	CHECK(o["what"] == "256 MiB to copy");
	CHECK(o["done"] == false);
	CHECK(has(d.run({"operation", "list"}).out, "sync:v@gamma  75.0 %"));
	d.online(3, false);
	CHECK(has(d.run({"operation", "show", "sync:v@gamma"}).out, "WAITS: host gamma is offline"));
	Outcome no = d.run({"operation", "cancel", "sync:v@gamma"});
	CHECK(no.status == 5);
	CHECK(has(no.err, "cannot be called off"));
	no = d.run({"operation", "wait", "sync:v@gamma", "--timeout", "0.2"});
	CHECK(no.status == 10);
	CHECK(has(no.err, "not done after 0 s: WAITS: host gamma is offline"));
	d.online(3, true);
	const Volume v = d.volume("v");
	d.good({{"op", "record.propose"}, {"vid", 1}, {"host", 1}, {"version", v.version}, {"term", v.term}, {"members", {1, 2, 3}}});
	CHECK(d.run({"operation", "wait", "sync:v@gamma"}).out == "operation sync:v@gamma is done\n");
	CHECK(ids(d).empty());
	no = d.run({"operation", "show", "sync:w@gamma"});
	CHECK(no.status == 3);
	CHECK(has(no.err, "called off or overtaken, or never was"));
}

TEST_CASE("operations: an evacuation is called off by its name, and whoever waited for it is told")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	CHECK(d.run({"host", "evacuate", "beta", "--no-wait"}).status == 0);
	CHECK(ids(d) == Ids{"evacuate:beta"});
	CHECK(has(d.run({"operation", "show", "evacuate:beta"}).out, "1 replicas left"));
	CHECK(d.run({"operation", "cancel", "evacuate:beta"}).out == "operation evacuate:beta is called off\n");
	CHECK_FALSE(d.state()->host(2)->evacuating);
	CHECK(d.run({"operation", "wait", "evacuate:beta"}).status == 3);
	d.good({{"op", "host.evacuate"}, {"host", 3}});    // empty
	CHECK(d.run({"operation", "wait", "evacuate:gamma"}).status == 0);
}

TEST_CASE("operations: a move that is called off leaves the replica where it was, and the redundancy as it was")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	REQUIRE(d.run({"volume", "replica", "move", "v", "beta", "gamma"}).status == 0);
	CHECK(ids(d) == Ids{"move:v@beta", "sync:v@gamma"});
	CHECK(has(d.run({"operation", "show", "move:v@beta"}).out, "to host gamma"));
	REQUIRE(d.run({"operation", "cancel", "move:v@beta"}).status == 0);
	CHECK_FALSE(d.volume("v").replica(2)->leaving);
	CHECK(d.volume("v").replica(3)->leaving);
	CHECK(d.volume("v").redundancy == 2);
	d.repairs = true;
	d.good({{"op", "option.set"}, {"name", "disk-grace-minutes"}, {"value", "9"}});    // anything, so that the leader looks
	CHECK(d.volume("v").replica(2));
	CHECK_FALSE(d.volume("v").replica(3));
}

TEST_CASE("operations: a replica that was to leave stays when that is called off")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--redundancy", "3"}).status == 0);
	d.good({{"op", "replica.leave"}, {"vid", 1}, {"host", 3}, {"lower", true}});
	CHECK(ids(d) == Ids{"leave:v@gamma"});
	REQUIRE(d.volume("v").redundancy == 2);
	REQUIRE(d.run({"operation", "cancel", "leave:v@gamma"}).status == 0);
	CHECK(d.volume("v").redundancy == 3);
	CHECK_FALSE(d.volume("v").replica(3)->leaving);
}

TEST_CASE("operations: growth, verify, disks, deletes, hosts that leave")
{
	FakeDaemon d(3, 200);
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	REQUIRE(d.run({"volume", "create", "w", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	d.server().soft(1, {{"volumes", {{"1", {{"verify", {{"total_blocks", 8}, {"done_blocks", 2}, {"differ_blocks", 1}}}}}}},
			    {"disks", {{"/dev/sdb", 37.56}}}});
	d.idle = {2};
	CHECK(d.run({"resize", "v", "2GiB"}).status == 10);
	d.good({{"op", "volume.delete"}, {"name", "w"}});
	d.good({{"op", "host.evacuate"}, {"host", 3}});
	d.idle = {2, 3};
	d.good({{"op", "host.remove"}, {"host", 3}});
	CHECK(ids(d) == Ids{"delete:w", "disk:alpha:/dev/sdb", "remove:gamma", "resize:v", "verify:v"});
	CHECK(d.json_of({"operation", "show", "disk:alpha:/dev/sdb", "--json"})["percent"] == 37.5);
	CHECK(d.json_of({"operation", "show", "verify:v", "--json"})["percent"] == 25.0);
	CHECK(has(d.run({"operation", "show", "resize:v"}).out, "to 2 GiB: 1 of 2 replicas are ready"));
	CHECK(d.run({"operation", "cancel", "verify:v"}).status == 0);
	CHECK(d.asked() == R"(host 1 volume.verify {"repair":false,"start":false,"vid":1})");
	CHECK(d.run({"operation", "cancel", "remove:gamma"}).status == 0);
	CHECK_FALSE(d.state()->host(3)->removing);
	for (const std::string &line : {d.run({"operation", "list"}).out})
		for (size_t from = 0, to; (to = line.find('\n', from)) != line.npos; from = to + 1)
			CHECK(to - from <= 80);
}

TEST_CASE("adjust tells what differed, and what still does; up starts the daemon where it does not run")
{
	{
		FakeDaemon d;
		REQUIRE(d.run({"volume", "create", "v", "1GiB"}).status == 0);
		CHECK(d.run({"adjust"}).out == "nothing differs on host alpha\n");
		d.differs = {{{"volume", "v"}, {"what", "it has no device"}, {"error", ""}}};
		CHECK(d.run({"adjust", "v"}).out == "  volume v: it has no device: done\n");
		CHECK(d.asked() == R"(host 1 host.adjust {"retry":true,"vid":1})");
	}
	FakeDaemon slow(1, 300);
	slow.unheard = 3;
	CHECK(has(slow.run({"adjust"}).err, "has not heard"));
	CHECK(slow.run({"up", "all"}).out == "nothing differs on host alpha\n");
	slow.differs = {{{"volume", nullptr}, {"what", "this host"}, {"error", "LVM does not answer"}}};
	slow.differs_for_ever = true;
	Outcome o = slow.run({"up"});
	CHECK(o.status == 10);
	CHECK(o.out == "  this host: LVM does not answer\n  ! still: this host: LVM does not answer\n");
	CHECK(slow.run({"adjust", "nosuch"}).status == 3);
}

TEST_CASE("up without a daemon starts it, and says so if that fails")
{
	std::ostringstream out, err;
	unsigned started = 0;
	cli::Context context{out, err, "/tmp/lockstep-unit-none.sock", true, [] {
		static uint64_t now_ms = 0;
		return now_ms += 20'000;
	}};
	context.start_daemon = [&] {
		started++;
		return started == 1 ? Done(failed("lockstepd could not be started")) : Done(Nothing{});
	};
	CHECK(cli::run({"up"}, context) == 10);
	CHECK(err.str() == "lockstep: lockstepd could not be started\n");
	CHECK(cli::run({"up"}, context) == 10);
	CHECK(started == 2);
	CHECK(has(err.str(), "is not running on this host"));
	CHECK(cli::run({"adjust"}, context) == 10);
	CHECK(started == 2);
}

TEST_CASE("operations: what begins something that takes long answers with the ids under which it goes on")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	REQUIRE(d.run({"volume", "create", "w", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.good({{"op", "record.open"}, {"vid", 2}, {"host", 1}});
	const Client client(FakeDaemon::socket_path());
	const auto begun = [&](const std::string &path, const json &body = json::object()) {
		auto answer = client.post(path, body);
		INFO((answer ? answer->dump() : answer.error().message));
		REQUIRE(answer);
		return (*answer)["operations"];
	};
	CHECK(begun("/v1/volumes/v/replicas/beta/move", {{"to", "gamma"}}) == json{"move:v@beta", "sync:v@gamma"});
	CHECK(begun("/v1/volumes/w/replicas", {{"hosts", {"gamma"}}}) == json{"sync:w@gamma"});
	CHECK(begun("/v1/volumes/w/verify") == json{"verify:w"});
	CHECK(begun("/v1/volumes/w/verify", {{"stop", true}}) == json::array());
	CHECK(begun("/v1/hosts/beta/evacuate") == json{"evacuate:beta", "move:v@beta"});
	CHECK(begun("/v1/hosts/beta/restore") == json{"move:v@beta"});
	CHECK(begun("/v1/disks", {{"host", "alpha"}, {"remove", "/dev/sdb"}}) == json{"disk:alpha:/dev/sdb"});
	CHECK(begun("/v1/disks", {{"host", "alpha"}, {"pool", "default"}, {"add", "/dev/sdc"}}) == json::array());
	CHECK(begun("/v1/volumes/w/invalidate", {{"host", "beta"}}) == json{"sync:w@beta", "sync:w@gamma"});
	// Each of them is one that can be asked for.
	for (const char *id : {"move:v@beta", "sync:v@gamma", "sync:w@beta"})
		CHECK(client.get(std::string("/v1/operations/") + id));
	auto leaves = client.del("/v1/volumes/w/replicas/gamma");
	REQUIRE(leaves);
	CHECK((*leaves)["operations"].is_array());
}
