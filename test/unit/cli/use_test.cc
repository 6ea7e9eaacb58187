// SPDX-License-Identifier: GPL-2.0-or-later
//
// Volumes in use and snapshots, by the command line and the API.
#include "fake.h"

#include "lib/http.h"

#include <catch2/generators/catch_generators.hpp>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

TEST_CASE("a shared volume has several openers")
{
	FakeDaemon d;
	CHECK(d.run({"volume", "create", "ha", "4MiB", "--shared", "--on-no-quorum", "error"}).status == 0);
	CHECK(d.volume("ha").cls == LKS_SHARED);
	CHECK(d.volume("ha").no_quorum == NoQuorum::error);
	for (int host : {1, 3})
		d.good({{"op", "record.open"}, {"vid", 1}, {"host", host}});
	json v = d.json_of({"status", "ha", "--json"})["volumes"][0];
	CHECK(v["class"] == "shared");
	CHECK(v["openers"] == json({"alpha", "gamma"}));
	CHECK(has(d.run({"volume", "list"}).out, "alpha, gamma"));
	CHECK(has(d.run({"status", "ha"}).out, "gives errors"));
	CHECK(has(d.run({"volume", "set", "ha", "--on-no-quorum", "freeze"}).out, "waits until there is one"));
	CHECK(d.volume("ha").no_quorum == NoQuorum::freeze);
	CHECK(d.run({"volume", "set", "ha", "--on-no-quorum", "panic"}).status == 2);
	CHECK(d.run({"volume", "set", "nothing", "--on-no-quorum", "error"}).status == 3);
}

TEST_CASE("primary and secondary")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	CHECK(d.run({"primary", "v", "beta"}).out == "volume v is served by beta\n");
	CHECK(d.volume("v").primary == 2);
	CHECK(has(d.run({"status", "v"}).out, "beta, chosen: beta"));
	CHECK(d.run({"primary", "v"}).out == "volume v is served by alpha\n");
	CHECK(d.run({"secondary", "v"}).out == "volume v is served by beta\n");
	CHECK(d.run({"secondary", "v"}).out == "volume v is served by beta\n");
	CHECK(d.run({"primary", "v", "--follow"}).status == 0);
	CHECK(d.volume("v").chosen_primary == 0);
	CHECK(d.volume("v").primary == 1);    // the opener's
	Outcome o = d.run({"primary", "v", "gamma"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "no replica on host gamma"));
	CHECK(d.run({"primary", "v", "omega"}).status == 3);
	CHECK(d.run({"primary", "w"}).status == 3);
	d.online(2, false);
	o = d.run({"secondary", "v"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "host alpha must serve it"));
}

TEST_CASE("a volume grows")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	auto report = [](uint64_t bytes) { return json{{"volumes", {{"1", {{"size_bytes", bytes}}}}}}; };
	for (HostId h : {1, 2, 3})
		d.server().soft(h, report(3 * GIB));
	CHECK(d.run({"resize", "v", "3GiB"}).out == "volume v has 3 GiB\n");
	CHECK(d.volume("v").size_bytes == 3 * GIB);
	CHECK(d.run({"volume", "resize", "v", "3GiB"}).status == 0);
	Outcome o = d.run({"resize", "v", "2GiB"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "cannot shrink"));
	CHECK(d.run({"resize", "v", "3000000001"}).status == 2);
	CHECK(d.run({"resize", "v", "1TiB"}).status == 5);
	CHECK(d.run({"resize", "w", "1TiB"}).status == 3);
}

TEST_CASE("what a volume takes is what its fullest replica takes, in the brief status as well; unknown is not 0")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	Reports soft;
	auto shown = [&] {
		json full = status_json(*d.state(), d.facts, soft), brief = status_json(*d.state(), d.facts, soft, nullptr, View::brief);
		CHECK(full["volumes"][0]["allocated_bytes"] == brief["volumes"][0]["allocated_bytes"]);
		json all = {full["volumes"][0]["allocated_bytes"]};
		for (const json &r : full["volumes"][0]["replicas"])
			all.push_back(r["allocated_bytes"]);
		return all;
	};
	auto report = [](const json &bytes) { return json{{"volumes", {{"1", {{"has_replica", true}, {"allocated_bytes", bytes}}}}}}; };
	CHECK(shown() == json{nullptr, nullptr, nullptr});
	soft.set(1, report(0));
	CHECK(shown() == json{0, 0, nullptr});
	soft.set(2, report(3 << 20));
	CHECK(shown() == json{3 << 20, 0, 3 << 20});
	soft.set(1, report("much"));
	soft.set(3, report(GIB));    // has no replica of it in the record
	CHECK(shown() == json{3 << 20, nullptr, 3 << 20});
}

TEST_CASE("a growth that takes long says who is waited for, and goes on")
{
	FakeDaemon d(3, 200);
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.idle = {2};
	Outcome o = d.run({"resize", "v", "2GiB"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "still growing: waiting for host beta"));
	CHECK(has(d.run({"status", "v"}).out, "2 GiB, 1 of 2 replicas are ready, waiting for beta"));
}

TEST_CASE("openers, verify and abort ask the hosts")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	CHECK(d.run({"openers", "v"}).out == "volume v is not open anywhere\n");
	Outcome o = d.run({"verify", "v", "--no-wait"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "not served by any host"));
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	d.server().soft(1, {{"volumes", {{"1", {{"openers", 2}, {"writers", 1}}}}}});
	CHECK(has(d.run({"openers", "v"}).out, "alpha        1     2        1  77 (tapdisk)"));
	CHECK(d.run({"verify", "v", "--no-wait"}).status == 0);
	CHECK(d.asked() == R"(host 1 volume.verify {"repair":false,"start":true,"vid":1})");
	uint64_t differ = 2;
	d.verify_report = [&](uint64_t begun_ms) -> nlohmann::json {
		return {{"volumes", {{"1", {{"verify", {{"total_blocks", 9}, {"done_blocks", 9}, {"differ_blocks", differ}, {"begun_ms", begun_ms}}}}}}}};
	};
	o = d.run({"verify", "v"});    // nothing is known of it at first
	CHECK(o.status == 10);
	CHECK(has(o.err, "2 blocks differ"));
	CHECK(has(d.run({"verify", "v", "--repair"}).out, "9 blocks compared, 2 differed and were repaired"));
	differ = 0;    // what the one before found is known at first
	CHECK(has(d.run({"verify", "v"}).out, "9 blocks compared, 0 differed\n"));
	CHECK(d.run({"verify", "v", "--stop"}).status == 0);
	CHECK(d.run({"volume", "abort", "v", "--host", "beta"}).out == "volume v: what waited on beta has failed\n");
	CHECK(d.asked() == R"(host 2 volume.abort {"vid":1})");
	d.quorum = false;    // that is when it is needed
	d.unreachable = {2, 3};
	CHECK(d.run({"volume", "abort", "v"}).out ==
	      "volume v: what waited on alpha has failed\nvolume v: beta, gamma cannot be reached: run the same command there\n");
	CHECK(d.asked() == R"(host 1 volume.abort {"vid":1})");
	o = d.run({"volume", "abort", "v", "--host", "beta"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "host beta: it cannot be reached"));
	CHECK(d.run({"volume", "abort", "w"}).status == 3);
}

TEST_CASE("what hosts complain of, and opens that were refused, stand in the status")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.server().soft(2, {{"volumes", {{"1", {{"problem", "cannot extend logical volume vg/x"}}}}}});
	d.server().soft(3, {{"volumes", {{"1", {{"refused_for", 2}}}}}});
	Outcome o = d.run({"status"});
	CHECK(has(o.out, "! volume v on host beta: cannot extend logical volume vg/x\n"));
	CHECK(has(o.out, "! volume v: an open on host gamma was refused, it is open on host beta\n"));
}

TEST_CASE("wait-sync waits for the devices of a host that has just booted")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	auto report = [](bool device) { return json{{"volumes", {{"1", {{"has_device", device}}}}}}; };
	d.attach_all();
	d.server().soft(3, report(false));
	Outcome o = d.run({"wait-sync", "--timeout", "0.2"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "volume v: no device yet on gamma"));
	d.server().soft(3, nullptr);
	CHECK(d.run({"wait-sync", "--timeout", "0.2"}).status == 10);
	d.server().soft(3, report(true));
	CHECK(d.run({"wait-sync"}).out == "1 volume in sync\n");
}

TEST_CASE("snapshots: taken, listed, restored, cloned, deleted")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "a", "1GiB", "--on", "alpha,beta"}).status == 0);
	REQUIRE(d.run({"volume", "create", "b", "1GiB", "--on", "beta,gamma"}).status == 0);
	CHECK(d.run({"snapshot", "list"}).out == "no snapshots: take one with `lockstep snapshot create VOLUME NAME`\n");
	Outcome o = d.run({"snapshot", "create", "a,b", "before"});
	CHECK(o.out == "snapshot before of volume a is there: 1 GiB on alpha, beta\n"
		       "snapshot before of volume b is there: 1 GiB on beta, gamma\n");
	CHECK(has(d.run({"snapshot", "list", "a"}).out, "a       before    1 GiB"));
	CHECK(d.json_of({"snapshot", "list", "--json"}).size() == 2);
	o = d.run({"snapshot", "create", "a", "before"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "has a snapshot named before already"));
	CHECK(d.run({"snapshot", "create", "a,nothing", "x"}).status == 3);
	CHECK(d.run({"snapshot", "create", "a,a", "x"}).status == 2);
	CHECK(d.run({"snapshot", "create", "a", "x y"}).status == 2);
	CHECK(d.run({"snapshot", "create", "a", "x", "--reserve", "0"}).status == 2);

	CHECK(d.run({"snapshot", "restore", "a", "before", "a2"}).out == "volume a2 is there on alpha, beta, device /dev/lockstep/a2\n");
	CHECK(d.run({"snapshot", "restore", "a", "nothing", "a3"}).status == 3);
	CHECK(d.run({"snapshot", "restore", "a", "before", "a2"}).status == 5);
	CHECK(d.run({"snapshot", "clone", "b", "b2"}).out == "volume b2 is there on beta, gamma, device /dev/lockstep/b2\n");
	CHECK(d.json_of({"snapshot", "list", "--json"}).size() == 2);    // the clone's own is gone
	CHECK(d.run({"snapshot", "revert", "a", "before"}).out == "volume a is as it was when snapshot before was taken\n");
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	CHECK(d.run({"snapshot", "revert", "a", "before"}).status == 5);

	CHECK(d.run({"snapshot", "delete", "a", "before"}).out == "snapshot before of volume a is deleted\n");
	d.online(3, false);
	CHECK(d.run({"snapshot", "delete", "b", "before"}).out == "snapshot before of volume b is deleted; gamma will remove its copy when it is back\n");
	d.online(3, true);
	CHECK(d.state()->snapshots.empty());
	CHECK(d.run({"snapshot", "delete", "b", "before"}).status == 3);
}

TEST_CASE("a copy of a snapshot that is on its way is listed apart, and is used for nothing")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "a", "1GiB", "--on", "alpha,beta"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "a", "before"}).status == 0);
	for (HostId h : {1, 2, 3})
		d.good({{"op", "host.set"}, {"host", h}, {"addresses", d.state()->host(h)->addresses}, {"host_level", LEVEL}});
	d.good({{"op", "snapshot.copy"}, {"sid", 1}, {"host", 3}, {"pool", "default"}});
	CHECK(has(d.run({"snapshot", "list"}).out, "alpha, beta; copying to gamma\n"));
	d.server().soft(3, {{"volumes", {{"1", {{"copies", {{"1", 43}}}}}}}});
	CHECK(has(d.run({"snapshot", "list"}).out, "alpha, beta; copying to gamma (43 %)\n"));
	json s = d.json_of({"snapshot", "list", "--json"})[0];
	CHECK(s["hosts"] == json({"alpha", "beta"}));
	CHECK(s["arriving"] == json({{{"host", "gamma"}, {"percent", 43}}}));
	CHECK(d.run({"snapshot", "restore", "a", "before", "a2"}).out == "volume a2 is there on alpha, beta, device /dev/lockstep/a2\n");
	d.good({{"op", "snapshot.copied"}, {"sid", 1}, {"host", 3}, {"added", d.state()->snapshot(1)->arriving[0].added}, {"md_offset", 1ull << 30}});
	d.good({{"op", "snapshot.drop"}, {"sid", 1}, {"host", 1}});
	s = d.json_of({"snapshot", "list", "--json"})[0];
	CHECK(s["hosts"] == json({"beta", "gamma"}));
	CHECK(s["arriving"] == json::array());
	CHECK(s["going"] == json({"alpha"}));
	// A volume that had more replicas than there are copies left gets them all the same.
	d.online(2, false);
	REQUIRE(d.run({"snapshot", "restore", "a", "before", "a3"}).status == 0);
	CHECK(d.state()->volume_named("a3")->redundancy == 2);
	d.online(2, true);
}

TEST_CASE("what is copied from a snapshot in a thick pool is waited for while the hosts that copy are there, in a thin one for so long only")
{
	constexpr unsigned EFFECT_MS = 200;
	FakeDaemon d(3, EFFECT_MS);
	for (unsigned host : {1, 2})
		d.good({{"op", "pool.add"}, {"name", "slow"}, {"host", host}, {"kind", "thick"}, {"vg", "vg2"}, {"size_bytes", 9 * GIB}, {"free_bytes", 9 * GIB}});
	REQUIRE(d.run({"volume", "create", "thick", "1GiB", "--pool", "slow"}).status == 0);
	REQUIRE(d.run({"volume", "create", "thin", "1GiB", "--on", "alpha,beta"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "thick,thin", "s"}).status == 0);
	d.idle = {2};
	Outcome o = d.run({"snapshot", "restore", "thin", "s", "t2"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "no replica on host beta after"));

	auto later = [&](std::function<void()> act) {
		return std::jthread([act] {
			std::this_thread::sleep_for(std::chrono::milliseconds(3 * EFFECT_MS));    // longer than other creates may take
			act();
		});
	};
	auto copied = later([&] { d.wake(); });
	o = d.run({"snapshot", "restore", "thick", "s", "t3"});
	INFO(o.err);
	CHECK(o.status == 0);
	CHECK(d.volume("t3").phase == Phase::ready);
	copied.join();
	d.idle = {2};
	auto lost = later([&] { d.online(2, false); });
	o = d.run({"snapshot", "restore", "thick", "s", "t4"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "no replica on host beta after"));
}

TEST_CASE("in a thick pool a revert is begun when the hosts bear it, and waited for while they copy")
{
	constexpr unsigned EFFECT_MS = 200;
	FakeDaemon d(3, EFFECT_MS);
	const auto hosts = d.state();
	for (const auto &[id, host] : hosts->hosts)
		d.good({{"op", "host.set"}, {"host", id}, {"addresses", host.addresses}, {"host_level", LEVEL}});
	for (unsigned host : {1, 2})
		d.good({{"op", "pool.add"}, {"name", "slow"}, {"host", host}, {"kind", "thick"}, {"vg", "vg2"}, {"size_bytes", 9 * GIB}, {"free_bytes", 9 * GIB}});
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--pool", "slow"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "v", "s"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "v", "newer"}).status == 0);
	d.no_revert = {2};
	Outcome o = d.run({"snapshot", "revert", "v", "s"});
	CHECK(o.status == 5);
	CHECK(o.err == "lockstep: snapshot s: its copy on that host is lost\n");
	CHECK(d.volume("v").phase == Phase::ready);
	// It is closed already, of which the log is yet to hear.
	const uint32_t vid = d.volume("v").vid;
	d.good({{"op", "record.open"}, {"vid", vid}, {"host", 1}});
	CHECK(has(d.run({"snapshot", "revert", "v", "s"}).err, "is open on host alpha"));
	d.closing = {1};
	o = d.run({"snapshot", "revert", "v", "s"});
	CHECK(o.status == 5);
	CHECK(o.err == "lockstep: snapshot s: its copy on that host is lost\n");
	CHECK(d.volume("v").phase == Phase::ready);
	// Written to when one has answered: what that answer says is not so any more.
	d.no_revert = {};
	std::vector<HostId> asked;
	d.before_can_revert = [&](HostId host) {
		asked.push_back(host);
		if (asked.size() != 2)
			return;
		d.good({{"op", "record.open"}, {"vid", vid}, {"host", 3}});
		d.good({{"op", "record.close"}, {"vid", vid}, {"host", 3}, {"session", d.volume("v").openers.at(0).session}});
		d.no_revert = {1};
	};
	o = d.run({"snapshot", "revert", "v", "s"});
	CHECK(o.status == 5);
	CHECK(o.err == "lockstep: snapshot s: its copy on that host is lost\n");
	CHECK(d.volume("v").phase == Phase::ready);
	CHECK(asked == std::vector<HostId>{1, 2, 1});
	d.before_can_revert = [](HostId) {};
	d.no_revert = {};
	d.idle = {2};
	std::jthread copied([&] {
		std::this_thread::sleep_for(std::chrono::milliseconds(5 * EFFECT_MS / 2));    // longer than other commands wait
		d.server().soft(2, {{"volumes", {{std::to_string(d.volume("v").vid), {{"making", {{"done_bytes", GIB / 4}, {"total_bytes", GIB / 2}, {"changed_bytes", 4096}}}}}}}});
		const json list = d.json_of({"operation", "list", "--json"});
		CHECK(list.dump().find("1 of 2 replicas are made; 256 MiB of 512 MiB are compared and copied, 4 KiB differed") != std::string::npos);
		CHECK(list.dump().find("75.0") != std::string::npos);
		d.good({{"op", "replica.created"}, {"vid", d.volume("v").vid}, {"host", 2}});
		std::this_thread::sleep_for(std::chrono::milliseconds(3 * EFFECT_MS / 4));    // past a time-out, and within the next one
		d.wake();
	});
	o = d.run({"snapshot", "revert", "v", "s"});
	copied.join();
	INFO(o.err);
	CHECK(o.status == 0);
	CHECK(o.out == "volume v is as it was when snapshot s was taken\n");
}

TEST_CASE("no revert does without a failed replica whose snapshots would go with it, whatever programs the hosts run")
{
	const uint32_t level = GENERATE(LEVEL_POOL_DELETE, LEVEL);
	FakeDaemon d;
	const auto hosts = d.state();
	for (const auto &[id, host] : hosts->hosts)
		d.good({{"op", "host.set"}, {"host", id}, {"addresses", host.addresses}, {"host_level", level}});
	const json pool = {{"op", "pool.add"}, {"name", "mixed"}, {"host", 2}, {"kind", "thick"}, {"vg", "vg2"}, {"size_bytes", 9 * GIB}, {"free_bytes", 9 * GIB}};
	d.good(pool);
	json thin = pool;
	thin.update({{"host", 1}, {"kind", "thin"}, {"thin_lv", "t"}});
	d.good(thin);
	for (const char *name : {"v", "w"})
		REQUIRE(d.run({"volume", "create", name, "1GiB", "--pool", "mixed"}).status == 0);
	REQUIRE(d.run({"snapshot", "create", "v,w", "s"}).status == 0);
	for (const char *name : {"v", "w"})
		d.good({{"op", "record.failed"}, {"vid", d.volume(name).vid}, {"host", 2}});
	Outcome o = d.run({"snapshot", "revert", "v", "s"});
	CHECK(o.status == 5);
	CHECK(has(o.err, level == LEVEL ? "put another disk in its place" : "is in a thick pool and cannot be reverted"));
	httplib::Client http(d.socket_path());
	http.set_address_family(AF_UNIX);
	const auto answer = http.Post("/v1/volumes/v/replace", json{{"source", "w"}}.dump(), "application/json");
	REQUIRE(answer);
	CHECK(answer->status == 409);
	CHECK(has(answer->body, "thick pool"));
	for (const char *name : {"v", "w"}) {
		CHECK(d.volume(name).phase == Phase::ready);
		CHECK(d.volume(name).replica(2));
		CHECK(d.state()->snapshot_named(name, "s")->copies.size() == 2);
	}
}

TEST_CASE("a snapshot whose hold breaks is tried once more, then the reason is told")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "a", "1GiB"}).status == 0);
	d.broken_holds = 1;
	CHECK(d.run({"snapshot", "create", "a", "s"}).status == 0);
	CHECK(d.state()->snapshots.begin()->second.attempt == 2);
	d.broken_holds = 2;
	Outcome o = d.run({"snapshot", "create", "a", "t"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "the hold was broken"));
	CHECK(d.state()->snapshots.size() == 1);
}

TEST_CASE("a clone in a thin pool is answered when it is there; in a thick one its snapshot, which is in the way of much, is gone by then")
{
	constexpr unsigned EFFECT_MS = 200;
	FakeDaemon d(3, EFFECT_MS);
	for (unsigned host : {1, 2})
		d.good({{"op", "pool.add"}, {"name", "slow"}, {"host", host}, {"kind", "thick"}, {"vg", "vg2"}, {"size_bytes", 9 * GIB}, {"free_bytes", 9 * GIB}});
	REQUIRE(d.run({"volume", "create", "thick", "1GiB", "--pool", "slow"}).status == 0);
	REQUIRE(d.run({"volume", "create", "thin", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.keep_snapshots = {1, 2};
	const json made = d.json_of({"snapshot", "clone", "thin", "thin2", "--json"});
	CHECK(made["hosts"] == json({"alpha", "beta"}));
	CHECK_FALSE(made.contains("warning"));
	REQUIRE(d.state()->snapshots.size() == 1);
	CHECK(d.state()->snapshots.begin()->second.phase == SnapshotPhase::deleting);
	CHECK(d.run({"snapshot", "clone", "thin2", "thin3"}).status == 0);
	CHECK(d.run({"volume", "delete", "thin"}).status == 0);
	const json late = d.json_of({"snapshot", "clone", "thick", "thick2", "--json"});
	CHECK(has(late.value("warning", ""), "the snapshot is being deleted, but host alpha, beta has not finished yet"));
	d.keep_snapshots = {};
	d.wake();
	REQUIRE(d.state()->snapshots.empty());
	CHECK(d.run({"snapshot", "clone", "thick", "thick3"}).out == "volume thick3 is there on alpha, beta, device /dev/lockstep/thick3\n");
	CHECK(d.state()->snapshots.empty());
	CHECK(d.run({"volume", "delete", "thick"}).status == 0);
}

TEST_CASE("the API for storage drivers: one volume, labels of a snapshot, a clone with a UUID")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "a", "1GiB"}).status == 0);
	httplib::Client http(FakeDaemon::socket_path());
	http.set_address_family(AF_UNIX);
	auto ok = [](const httplib::Result &r) {
		REQUIRE(r);
		INFO(r->body);
		REQUIRE(r->status == 200);
		return json::parse(r->body);
	};
	CHECK(ok(http.Get("/v1/volumes")).size() == 1);
	CHECK(ok(http.Get("/v1/volumes/a"))["size_bytes"] == GIB);
	CHECK(http.Get("/v1/volumes/b")->status == 404);
	json s = ok(http.Post("/v1/volumes/a/snapshots", json{{"name", uuid(9)}, {"uuid", uuid(9)}, {"labels", {{"k", "1"}}}}.dump(), "application/json"));
	CHECK(s["uuid"] == uuid(9));
	CHECK(s["labels"]["k"] == "1");
	ok(http.Patch("/v1/volumes/a/snapshots/" + uuid(9), R"({"labels":{"k":"2"}})", "application/json"));
	CHECK(ok(http.Get("/v1/status"))["snapshots"][0]["labels"]["k"] == "2");
	json c = ok(http.Post("/v1/volumes/a/clone", json{{"name", "c"}, {"uuid", uuid(10)}, {"labels", {{"k", "3"}}}}.dump(), "application/json"));
	CHECK(c["uuid"] == uuid(10));
	CHECK(d.volume("c").labels.at("k") == "3");
	json r = ok(http.Post("/v1/volumes/a/snapshots/" + uuid(9) + "/restore", json{{"name", "r"}, {"uuid", uuid(11)}}.dump(), "application/json"));
	CHECK(d.volume("r").uuid == uuid(11));
	ok(http.Delete("/v1/volumes/a/snapshots/" + uuid(9)));
	CHECK(http.Post("/v1/snapshots", R"({"volumes":[],"name":"x"})", "application/json")->status == 400);
}

TEST_CASE("writes are suspended on the primary's host, and everybody is told")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	Outcome o = d.run({"suspend-io", "v"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "not served by any host"));
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	o = d.run({"suspend-io", "v"});
	CHECK(o.out == "volume v: writes wait, and nothing is under way, until `lockstep resume-io v`, or until its primary on alpha or lockstepd there ends\n");
	CHECK(d.asked() == R"(host 1 volume.suspend {"suspended":true,"vid":1})");
	CHECK(has(d.run({"status"}).out, "! volume v: its writes are suspended; `lockstep resume-io v` lets them go on"));
	CHECK(has(d.run({"status", "v"}).out, "suspended since"));
	CHECK(has(d.run({"why", "v"}).out, "an administrator has suspended them, on host alpha"));
	o = d.run({"primary", "v", "beta"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "its primary cannot change"));
	CHECK(d.json_of({"resume-io", "v", "--json"}) == json{{"name", "v"}, {"host", "alpha"}, {"suspended", false}, {"since_ms", NOW_MS}});
	CHECK(d.asked() == R"(host 1 volume.suspend {"suspended":false,"vid":1})");
	CHECK_FALSE(has(d.run({"status"}).out, "suspended"));
	CHECK_FALSE(has(d.run({"why", "v"}).out, "suspended"));
	CHECK(d.run({"primary", "v", "beta"}).status == 0);
	CHECK(d.run({"suspend-io", "w"}).status == 3);
}
