// SPDX-License-Identifier: GPL-2.0-or-later
//
// why, events, metrics, status --watch: what they say, and that events have no gap that is not told.
#include "fake.h"

#include "lockstepd/api/events.h"
#include "lockstepd/api/metrics.h"
#include "lockstepd/host/journal.h"

#include <regex>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

std::set<std::string> codes(FakeDaemon &d, const std::string &name)
{
	std::set<std::string> set;
	const json answer = d.json_of({"why", name, "--json"});
	for (const json &c : answer["causes"])
		set.insert(c["code"]);
	return set;
}

using Codes = std::set<std::string>;

}    // namespace

TEST_CASE("events: a cursor finds what came after it; another life or too old is told as a gap")
{
	EventList list("abc");
	CHECK(list.after("")["events"].empty());
	CHECK(list.after("")["gap"] == false);
	CHECK(list.after("")["cursor"] == "abc:0");
	CHECK_FALSE(list.has_after("abc:0"));
	for (unsigned n = 1; n <= 3; n++)
		list.add("host", "h" + std::to_string(n), "line", n);
	CHECK(list.has_after("abc:0"));
	json all = list.after("abc:0");
	CHECK((all["events"].size() == 3 && all["gap"] == false && all["cursor"] == "abc:3"));
	CHECK(all["events"][0] == json({{"cursor", "abc:1"}, {"time_ms", 1}, {"kind", "host"}, {"name", "h1"}, {"message", "line"}}));
	CHECK(list.after("abc:2")["events"].size() == 1);
	CHECK(list.after("abc:2")["gap"] == false);
	CHECK(list.after("abc:3")["events"].empty());
	for (const char *bad : {"abc:4", "xyz:1", "abc", "abc:", "abc:-1", "abc:1x", "abc:99999999999999999999", ":1", ":"}) {
		INFO(bad);
		CHECK(list.has_after(bad));
		CHECK(list.after(bad)["gap"] == true);
		CHECK(list.after(bad)["events"].size() == 3);
	}
	for (size_t n = 3; n < EVENTS_KEPT; n++)
		list.add("volume", "v", "line", n);
	CHECK(list.after("abc:0")["gap"] == false);
	CHECK(list.after("abc:0")["events"].size() == EVENTS_KEPT);
	list.add("volume", "v", "line", 1);
	CHECK(list.after("abc:0")["gap"] == true);    // the first one is lost
	CHECK(list.after("abc:1")["gap"] == false);
	CHECK(list.after("abc:1")["events"].size() == EVENTS_KEPT);
	CHECK(list.about("host", "h2", 5).size() == 1);
	CHECK(list.about("host", "h1", 5).empty());
	CHECK(list.about("volume", "v", 5).size() == 5);
	CHECK(list.about("volume", "v", 5)[4]["cursor"] == "abc:" + std::to_string(EVENTS_KEPT + 1));
}

TEST_CASE("what an event is about")
{
	FakeDaemon d;
	const State before = *d.state();
	REQUIRE(d.run({"volume", "create", "v", "1GiB"}).status == 0);
	d.online(3, false);
	std::set<std::string> about;
	for (const Change &c : changes_between(before, *d.state())) {
		about.insert(c.kind + " " + c.name);
		CHECK(has(c.line, c.name));
	}
	CHECK(about == std::set<std::string>{"volume v", "host gamma"});
	for (const Change &c : changes_between(State(), before))
		about.insert(c.kind + " " + c.name);
	CHECK((about.contains("cluster lab") && about.contains("pool default") && about.contains("host alpha")));
}

TEST_CASE("lockstep events")
{
	FakeDaemon d;
	CHECK(d.run({"events"}).out.empty());
	d.server().happened("volume", "v", "volume v: is ready");
	d.server().happened("host", "beta", "host beta is offline");
	std::string out = d.run({"events"}).out;
	CHECK(std::regex_search(out, std::regex(R"(^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z volume v: is ready\n20.*host beta is offline\n$)")));
	std::istringstream lines(d.run({"events", "--json"}).out);
	std::string first, second;
	REQUIRE((std::getline(lines, first) && std::getline(lines, second) && lines.peek() == EOF));
	CHECK(json::parse(second)["name"] == "beta");
	std::string cursor = json::parse(first)["cursor"];
	out = d.run({"events", "--json", "--after", cursor}).out;
	CHECK(json::parse(out) == json::parse(second));
	out = d.run({"events", "--json", "--after", "another:1"}).out;
	CHECK(json::parse(out.substr(0, out.find('\n')))["gap"] == true);
	CHECK(has(out, "is ready"));
	CHECK(has(d.run({"events", "--after", "another:1"}).out, "... events are missing here"));
	CHECK(d.run({"events", "--after", std::string(65, 'x')}).status == 2);
	// What comes later is told when it comes.
	d.first_shown = [&] { d.server().happened("host", "beta", "host beta is online"); };
	d.rounds = 2;
	CHECK(has(d.run({"events", "--follow", "--after", json::parse(second)["cursor"]}).out, "host beta is online"));
}

TEST_CASE("why: a healthy volume, and each way of not being so")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	const uint32_t vid = d.volume("v").vid;
	d.good({{"op", "record.open"}, {"vid", vid}, {"host", 1}});
	CHECK(d.run({"why", "v"}).out == "volume v is ok: nothing is the matter\n");
	CHECK(d.run({"why", "nosuch"}).status == 3);
	CHECK(has(d.run({"why", "nosuch"}).err, "there is no volume and no host named nosuch"));
	CHECK(d.run({"why", "alpha"}).out == "host alpha is online: nothing is the matter\n");

	d.online(2, false);
	CHECK(codes(d, "v") == Codes{"host-offline"});
	Outcome o = d.run({"why", "v"});
	CHECK(has(o.out, "volume v is degraded\n  ! host beta with a replica is offline\n    -> bring it back; otherwise its replicas are made anew elsewhere in 1 h"));
	CHECK(has(o.out, "`lockstep host lost beta`"));
	CHECK(codes(d, "beta") == Codes{"host-offline"});
	REQUIRE(d.run({"option", "set", "auto-evict-minutes", "off"}).status == 0);
	CHECK(has(d.run({"why", "v"}).out, "nothing is made anew elsewhere by itself (auto-evict is off)"));

	const Volume &v = d.volume("v");
	d.good({{"op", "record.propose"}, {"vid", vid}, {"host", 1}, {"version", v.version}, {"term", v.term}, {"members", {1}}});
	d.online(2, true);
	CHECK(codes(d, "v") == Codes{"not-in-sync"});
	for (HostId h : {2, 3})
		d.server().soft(h, {{"volumes", {{std::to_string(vid), json::object()}}}});
	d.server().soft(1, {{"volumes", {{std::to_string(vid), {{"peers", {{"2", {{"sync_state", "running"}, {"dirty_blocks", 9}}}}}}}}}});
	CHECK(codes(d, "v") == Codes{"syncing"});
	CHECK(has(d.run({"why", "v"}).out, "the replica on host beta is being resynced, 144 KiB to copy"));
	CHECK(codes(d, "beta") == Codes{"not-in-sync"});
	d.server().soft(1, {{"volumes", {{std::to_string(vid), json::object()}}}});
	d.online(1, false);
	CHECK(codes(d, "v") == Codes{"no-good-copy", "host-offline", "not-in-sync"});
	CHECK(d.json_of({"why", "v", "--json"})["causes"][0]["code"] == "no-good-copy");
	d.online(1, true);
	d.good({{"op", "record.failed"}, {"vid", vid}, {"host", 2}});
	CHECK(codes(d, "v") == Codes{"disk-failed"});
	CHECK(codes(d, "beta") == Codes{"disk-failed"});
	CHECK(has(d.run({"why", "v"}).out, "`lockstep volume replica move v beta`"));

	d.facts.leader = 0;
	CHECK(codes(d, "v").contains("no-quorum"));
	CHECK(d.json_of({"why", "v", "--json"})["causes"][0]["code"] == "no-quorum");
	d.facts.leader = 1;
	d.facts.module_error = "the kernel module lockstep is not loaded on host alpha: run `modprobe lockstep`";
	CHECK(codes(d, "alpha").contains("module-missing"));
}

TEST_CASE("why: no room, a single copy, opens refused, events")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	const uint32_t vid = d.volume("v").vid;
	d.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 3}});
	CHECK(codes(d, "v") == Codes{"replica-missing"});
	for (HostId h : {1, 2, 3})
		d.good({{"op", "pool.report"}, {"name", "default"}, {"host", h}, {"size_bytes", 20 * GIB}, {"free_bytes", GIB}});
	CHECK(codes(d, "v") == Codes{"no-room"});
	CHECK(has(d.run({"why", "v"}).out, "1 of 3 replicas are missing, and no host can take one: "));
	CHECK(has(d.run({"why", "v"}).out, "`lockstep volume redundancy v 2`"));
	CHECK(codes(d, "gamma") == Codes{"pool-fills-up"});
	d.good({{"op", "volume.redundancy"}, {"vid", vid}, {"redundancy", 1}});
	CHECK(codes(d, "v") == Codes{"single-copy"});
	d.server().soft(3, {{"volumes", {{std::to_string(vid), {{"refused_for", 1}}}}}});
	CHECK(codes(d, "v") == Codes{"single-copy", "open-refused"});
	d.server().happened("volume", "v", "volume v: version 2");
	d.server().happened("volume", "other", "volume other: version 2");
	Outcome o = d.run({"why", "v"});
	CHECK((has(o.out, "what happened, as this host has seen it:\n") && has(o.out, "volume v: version 2") && !has(o.out, "other")));
	d.good({{"op", "host.evacuate"}, {"host", 2}});
	CHECK(codes(d, "beta").contains("evacuating"));
	d.good({{"op", "host.evacuate"}, {"host", 3}});
	CHECK(codes(d, "gamma").contains("evacuated"));
}

TEST_CASE("why: snapshots that get no copy beside a new replica, for its pool is too full")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	for (const char *name : {"s1", "s2"})
		REQUIRE(d.run({"snapshot", "create", "v", name}).status == 0);
	d.repairs = d.resyncs = true;
	REQUIRE(d.run({"volume", "replica", "add", "v", "gamma"}).status == 0);
	REQUIRE(d.volume("v").replica(3)->clean());
	d.attach_all();
	auto report = [&](uint64_t free_bytes) {
		d.good({{"op", "pool.report"}, {"name", "default"}, {"host", 3}, {"size_bytes", 100 * GIB}, {"free_bytes", free_bytes}});
	};
	report(50 * GIB);
	CHECK(codes(d, "v") == Codes{});
	report(5 * GIB);
	CHECK(codes(d, "v") == Codes{"no-room-for-snapshot"});
	CHECK(d.json_of({"why", "v", "--json"})["causes"][0]["what"] ==
	      "snapshot s1 and 1 more gets no copy on host gamma: pool default is 94 % full, above 90 % it takes nothing new");
	CHECK(d.json_of({"snapshot", "list", "--json"})[0]["without_room"][0]["host"] == "gamma");
	REQUIRE(d.run({"snapshot", "delete", "v", "s1"}).status == 0);
	REQUIRE(d.run({"snapshot", "delete", "v", "s2"}).status == 0);
	CHECK(codes(d, "v") == Codes{});
}

TEST_CASE("why: a volume that could not be made")
{
	FakeDaemon d(3, 300);
	d.create_error = "no space in the thin pool";
	CHECK(d.run({"volume", "create", "v", "1GiB"}).status == 10);
	Outcome o = d.run({"why", "v"});
	CHECK((o.status == 0 && has(o.out, "volume v does not exist\n  ! ") && has(o.out, "no space in the thin pool")));
	CHECK(codes(d, "v") == Codes{"not-made"});
}

TEST_CASE("status --watch shows each change once")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.first_shown = [&] { d.online(3, false); };
	d.rounds = 2;
	std::istringstream lines(d.run({"status", "--watch", "--json"}).out);
	std::string first, second;
	REQUIRE((std::getline(lines, first) && std::getline(lines, second)));
	CHECK(json::parse(first)["hosts"][2]["status"] == "online");
	CHECK(json::parse(second)["hosts"][2]["status"] == "offline");
	d.rounds = 1;
	CHECK(has(d.run({"status", "--watch"}).out, "gamma  OFFLINE"));
	CHECK(has(d.run({"status", "v", "--watch"}).out, "volume v: ok"));
	CHECK(d.run({"status", "nosuch", "--watch"}).status == 3);
}

TEST_CASE("an error has a code that programs can go by; with --json it is an object")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	auto error = [&](std::vector<std::string> args) {
		args.push_back("--json");
		Outcome o = d.run(args);
		json e = json::parse(o.err);
		CHECK((e["status"] == o.status && e.size() == 3 && !e["message"].get<std::string>().empty()));
		return e["code"].get<std::string>();
	};
	CHECK(error({"status", "nosuch"}) == "no-such-volume");
	CHECK(error({"why", "nosuch"}) == "not-found");
	CHECK(error({"resize", "v", "1"}) == "bad-request");
	CHECK(error({"primary", "v", "nosuch"}) == "no-such-host");
	CHECK(error({"events", "--after", std::string(65, 'x')}) == "bad-request");
	d.good({{"op", "record.open"}, {"vid", d.volume("v").vid}, {"host", 1}});
	d.online(3, false);
	CHECK(error({"primary", "v", "gamma"}) != "failed");
	Result<json> r = Client(FakeDaemon::socket_path()).del("/v1/volumes/v");
	REQUIRE_FALSE(r);
	CHECK((r.error().code == "volume-open" && r.error().status == Status::forbidden));
	r = Client(FakeDaemon::socket_path()).post("/v1/volumes", {{"name", "v"}, {"size_bytes", GIB}});
	CHECK(r.error().code == "name-taken");
	r = Client(FakeDaemon::socket_path()).post("/v1/volumes", {{"name", "w"}, {"size_bytes", 1000 * GIB}});
	CHECK(r.error().code == "no-room");
	r = Client(FakeDaemon::socket_path()).get("/v1/nosuch");
	CHECK(r.error().code == "no-such-route");
	CHECK(Client("/tmp/lockstep-no-such-socket").get("/v1/status").error().code == "no-daemon");
}

TEST_CASE("metrics are well formed, and say what the status says")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.good({{"op", "record.open"}, {"vid", d.volume("v").vid}, {"host", 1}});
	d.online(2, false);
	std::string text = d.run({"metrics"}).out;
	std::istringstream lines(text);
	const std::regex sample(R"re(^lockstep_([a-z_]+)(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.]+$)re"),
		comment(R"(^# (HELP|TYPE) lockstep_[a-z_]+ .+$)");
	std::string family;
	std::set<std::string> families;
	for (std::string line; std::getline(lines, line);) {
		INFO(line);
		std::smatch m;
		if (line.starts_with("# HELP")) {
			REQUIRE(std::regex_match(line, comment));
			family = line.substr(7, line.find(' ', 7) - 7);
			CHECK(families.insert(family).second);    // each once, its samples together
		} else if (!line.starts_with("#")) {
			REQUIRE(std::regex_match(line, m, sample));
			CHECK("lockstep_" + m[1].str() == family);
		}
	}
	for (const char *line : {"lockstep_quorum 1\n", "lockstep_host_online{host=\"beta\"} 0\n", "lockstep_volume_health{volume=\"v\",health=\"degraded\"} 1\n",
				 "lockstep_volume_health{volume=\"v\",health=\"ok\"} 0\n", "lockstep_replica_in_sync{volume=\"v\",host=\"alpha\"} 1\n",
				 "lockstep_replica_in_sync{volume=\"v\",host=\"beta\"} 0\n", "lockstep_pool_free_bytes{pool=\"default\",host=\"alpha\"} "}) {
		INFO(line);
		CHECK(has(text, line));
	}
	json odd = d.json_of({"status", "--json"});
	odd["hosts"][0]["name"] = "a\"b\\c\nd";
	CHECK(has(metrics_text(odd), "host=\"a\\\"b\\\\c d\""));
}

TEST_CASE("metrics of a host in no cluster")
{
	FakeDaemon d(0);
	CHECK(has(d.run({"metrics"}).out, "lockstep_quorum 0\n"));
}
