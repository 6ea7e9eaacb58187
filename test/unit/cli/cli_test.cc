// SPDX-License-Identifier: GPL-2.0-or-later
//
// The command line against the real API server over a real State: what people see, and the exit status and single line of
// every kind of bad input. Bad input must change nothing.
#include "fake.h"

#include "lib/http.h"

#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

TEST_CASE("a cluster is formed")
{
	FakeDaemon d(0);
	Outcome o = d.run({"status"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "in no cluster yet"));
	CHECK(d.json_of({"status", "--json"})["cluster"].is_null());
	CHECK(has(d.json_of({"status", "--json"})["message"], "no cluster yet"));
	for (std::vector<std::string> args : std::vector<std::vector<std::string>>{{"host", "list"},
										    {"pool", "list"},
										    {"volume", "list"},
										    {"volume", "create", "v", "1G"},
										    {"volume", "delete", "v"},
										    {"status", "v"},
										    {"wait-sync"},
										    {"pool", "create", "p", "--vg", "x"}}) {
		o = d.run(args);
		CHECK(o.status == 5);
		CHECK(has(o.err, "lockstep cluster init"));
	}
	CHECK(d.run({"cluster", "init", "--name", "a b"}).status == 2);
	o = d.run({"cluster", "init", "--name", "lab"});
	CHECK(o.status == 0);
	CHECK(has(o.out, "cluster lab is there"));
	o = d.run({"cluster", "init"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "alpha is in cluster lab already"));
	o = d.run({"cluster", "join", "lks1x", "10.77.2.9"});
	CHECK(o.status == 5);
	CHECK(d.joined().empty());
}

TEST_CASE("a host of a cluster whose daemon has just started does not pass for one without a cluster")
{
	FakeDaemon d(0);
	d.facts.host = 1;
	json status = d.json_of({"status", "--json"});
	CHECK(status["cluster"]["quorum"] == false);
	CHECK(status["cluster"]["name"].is_null());
	CHECK(has(status["message"], "is starting"));
	for (std::vector<std::string> args : std::vector<std::vector<std::string>>{{"status"}, {"host", "list"}, {"volume", "create", "v", "1G"}}) {
		Outcome o = d.run(args);
		CHECK(o.status == 5);
		CHECK(has(o.err, "host alpha is starting"));
	}
	Outcome o = d.run({"cluster", "init"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "in a cluster already"));
}

TEST_CASE("a host joins")
{
	FakeDaemon d(0);
	d.facts.host_name = "beta";
	CHECK(d.run({"cluster", "join", "lks1x", "10.0.0.9"}).status == 10);
	Outcome o = d.run({"cluster", "join", "lks1x", "10.77.2.1:7790"});
	CHECK(o.status == 0);
	CHECK(d.joined() == "lks1x 10.77.2.1 7790");
	CHECK(has(o.out, "part of cluster lab"));
	for (const char *bad : {"", ":7788", "a:", "a:0", "a:65536", "a:1x", "[::1", "[::1]x", "[]"}) {
		INFO(bad);
		CHECK(d.run({"cluster", "join", "lks1x", bad}).status == 2);
	}
}

TEST_CASE("a token needs a cluster")
{
	FakeDaemon d(0);
	CHECK(d.run({"cluster", "token"}).status == 5);
}

TEST_CASE("a token is all that is printed")
{
	FakeDaemon d;
	CHECK(d.run({"cluster", "token"}).out == "lks1token3600\n");
	CHECK(d.run({"cluster", "token", "--valid", "2d"}).out == "lks1token172800\n");
	CHECK(d.json_of({"cluster", "token", "--json"})["token"] == "lks1token3600");
	for (const char *bad : {"", "x", "1y", "-1", "1h1", "59s", "8d", "99999999999d"}) {
		INFO(bad);
		CHECK(d.run({"cluster", "token", "--valid", bad}).status == 2);
	}
}

TEST_CASE("addresses of a host are changed")
{
	FakeDaemon d;
	const size_t before = d.state()->host_named("beta")->addresses.size();
	CHECK(d.run({"host", "net", "add", "beta", "fd00::7"}).status == 0);
	CHECK(d.state()->host_named("beta")->addresses.size() == before + 1);
	CHECK(d.run({"host", "net", "prefer", "beta", "fd00::7"}).status == 0);
	CHECK(d.state()->host_named("beta")->addresses.front() == "fd00::7");
	CHECK(d.run({"host", "net", "remove", "beta", "fd00::7"}).status == 0);
	CHECK(d.state()->host_named("beta")->addresses.size() == before);
	for (const char *bad : {"", "x", "10.0.0", "10.0.0.1:7788", "[::1]", "[::1]:5"}) {
		INFO(bad);
		CHECK(d.run({"host", "net", "add", "beta", bad}).status == 2);
	}
	CHECK(d.run({"host", "net", "add", "nosuch", "10.0.0.77"}).status == 3);
	CHECK(d.run({"host", "net", "add", "beta"}).status == 2);
}

TEST_CASE("addresses of a host to join")
{
	for (auto [given, expected] : std::vector<std::pair<std::string, std::string>>{{"10.77.2.1", "10.77.2.1 7788"},
										       {"host:1", "host 1"},
										       {"fd00::1", "fd00::1 7788"},
										       {"[fd00::1]:99", "fd00::1 99"},
										       {"[fd00::1]", "fd00::1 7788"}}) {
		FakeDaemon d(0);
		CHECK(d.run({"cluster", "join", "lks1x", given}).status == 0);
		CHECK(d.joined() == "lks1x " + std::string(expected));
	}
}

TEST_CASE("hosts and pools are listed")
{
	FakeDaemon d;
	d.online(3, false);
	Outcome o = d.run({"host", "list"});
	CHECK(has(o.out, "HOST   ID  STATUS   SINCE"));
	CHECK(has(o.out, "alpha   1  online"));
	CHECK(has(o.out, "gamma   3  OFFLINE"));
	CHECK(d.json_of({"host", "list", "--json"})[1]["name"] == "beta");
	o = d.run({"pool", "list"});
	CHECK(has(o.out, "default  beta   lockstep_group/thin_device  20 GiB  15 GiB       0 B    40 GiB"));
	CHECK(d.json_of({"pool", "list", "--json"}).size() == 3);

	o = d.run({"pool", "create", "fast", "--vg", "vg1", "--thin", "t"});
	CHECK(o.status == 0);
	CHECK(has(o.out, "pool fast is there on host alpha"));
	CHECK(d.state()->pool("fast", 1)->thin_lv == "t");
	o = d.run({"pool", "create", "fast", "--vg", "vg1", "--host", "beta"});
	CHECK(o.status == 0);
	CHECK(d.state()->pool("fast", 2)->kind == PoolKind::thick);
	CHECK(d.run({"pool", "create", "fast", "--vg", "vg1", "--host", "omega"}).status == 3);
	CHECK(d.run({"pool", "create", "fast", "--vg", "vg9"}).status == 5);
	CHECK(d.run({"pool", "create", "fast", "--vg", "vg1", "--host", "gamma"}).status == 5);    // offline
	CHECK(d.run({"pool", "create", "slow", "--vg", "nowhere"}).status == 3);
	CHECK(d.run({"pool", "create", "a/b", "--vg", "x"}).status == 2);
	CHECK(d.run({"pool", "create", "x"}).status == 2);
}

TEST_CASE("a volume is created, listed and deleted")
{
	FakeDaemon d;
	Outcome o = d.run({"volume", "create", "vm1", "1GiB"});
	CHECK(o.status == 0);
	CHECK(o.out == "volume vm1 is there: 1 GiB on alpha, beta, device /dev/lockstep/vm1\n");
	CHECK(d.volume("vm1").devices.size() == 3);
	CHECK(d.run({"volume", "create", "vm2", "512MiB", "--redundancy", "3"}).status == 0);
	CHECK(d.run({"volume", "create", "vm3", "4096", "--on", "gamma,alpha"}).status == 0);
	CHECK(d.volume("vm3").replica(3));
	CHECK(d.run({"volume", "create", "vm4", "8k", "--on", "gamma", "--redundancy", "1"}).status == 0);
	o = d.run({"volume", "list"});
	CHECK(has(o.out, "VOLUME  HEALTH     SIZE  COPIES  PRIMARY  OPEN ON\n"));
	CHECK(has(o.out, "vm2     ok      512 MiB     3/3  -        -\n"));
	CHECK(d.json_of({"volume", "list", "--json"}).size() == 4);
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 2}});
	CHECK(has(d.run({"volume", "list"}).out, "vm1     ok        1 GiB     2/2  beta     beta"));
	o = d.run({"volume", "delete", "vm1"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "volume vm1 is open on host beta: close it there"));
	d.good({{"op", "record.open"}, {"vid", 4}, {"host", 3}});
	CHECK(d.run({"volume", "delete", "vm4"}).status == 5);
	CHECK(d.run({"volume", "delete", "vm4", "--force"}).out == "volume vm4 is deleted\n");
	CHECK(d.run({"volume", "create", "vm4", "8k", "--on", "gamma", "--redundancy", "1"}).status == 0);
	d.closing = {2};
	CHECK(d.run({"volume", "delete", "vm1"}).out == "volume vm1 is deleted\n");
	CHECK(d.run({"volume", "delete", "vm2"}).out == "volume vm2 is deleted\n");
	d.online(3, false);
	CHECK(d.run({"volume", "delete", "vm3"}).out == "volume vm3 is deleted; gamma will remove its part when it is back\n");
	CHECK(d.run({"volume", "create", "vm3", "4096"}).status == 0);    // the name is free
	d.online(3, true);
	CHECK(d.json_of({"volume", "list", "--json"}).size() == 2);
}

TEST_CASE("bad input gets one line, its exit status, and changes nothing")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "taken", "1G"}).status == 0);
	struct Bad {
		int status;
		std::vector<std::string> args;
		const char *says;
	};
	const Bad table[] = {
		{2, {}, "see `lockstep --help`"},
		{2, {"explode"}, "no command \"explode\""},
		{2, {"volume", "explode"}, "no command \"explode\""},
		{2, {"volume"}, "see `lockstep --help`"},
		{2, {"volume", "create", "v"}, "SIZE is required"},
		{2, {"volume", "create", "v", "1G", "x"}, "not expected: x"},
		{2, {"volume", "create", "v", "1G", "--colour", "red"}, "--colour"},
		{2, {"volume", "create", "v", "0"}, "size is 0"},
		{2, {"volume", "create", "v", "0GiB"}, "size is 0"},
		{2, {"volume", "create", "v", "4097"}, "multiple of 4096"},
		{2, {"volume", "create", "v", "-1"}, "lockstep"},
		{2, {"volume", "create", "v", "ten"}, "is no size"},
		{2, {"volume", "create", "v", "99999999999999999999"}, "too large"},
		{2, {"volume", "create", "v", "9000000TiB"}, "too large"},
		{2, {"volume", "create", "v", "100TiB"}, "above the limit"},
		{2, {"volume", "create", "a/b", "1G"}, "no valid volume name"},
		{2, {"volume", "create", "a\xff", "1G"}, "lockstep"},
		{2, {"volume", "create", "", "1G"}, "no valid volume name"},
		{2, {"volume", "create", "v", "1G", "--redundancy", "0"}, "redundancy must be"},
		{2, {"volume", "create", "v", "1G", "--redundancy", "-1"}, "redundancy must be"},
		{2, {"volume", "create", "v", "1G", "--redundancy", "9"}, "redundancy must be"},
		{2, {"volume", "create", "v", "1G", "--redundancy", "3", "--on", "alpha,beta"}, "needs as many hosts"},
		{2, {"volume", "create", "v", "1G", "--on", "alpha,alpha"}, "distinct"},
		{3, {"volume", "create", "v", "1G", "--on", "alpha,omega"}, "no host named omega"},
		{3, {"volume", "create", "v", "1G", "--pool", "gold"}, "no host has a pool named gold"},
		{5, {"volume", "create", "v", "1G", "--redundancy", "4"}, "the cluster has 3"},
		{5, {"volume", "create", "v", "1TiB"}, "alpha: pool default has room for"},
		{5, {"volume", "create", "taken", "1G"}, "a volume named taken already"},
		{3, {"volume", "delete", "nothing"}, "no volume named nothing"},
		{3, {"volume", "delete", "../x y"}, "no volume named ../x y"},
		{3, {"status", "nothing"}, "no volume named nothing"},
		{3, {"status", "nothing", "--json"}, "no volume named nothing"},
		{3, {"wait-sync", "taken", "nothing"}, "no volume named nothing"},
		{2, {"wait-sync", "--timeout", "never"}, "--timeout"},
		{2, {"wait-sync", "--timeout", "-3"}, "--timeout"},
	};
	auto before = d.state();
	for (const Bad &b : table) {
		Outcome o = d.run(b.args);
		INFO(o.err);
		CHECK(o.status == b.status);
		CHECK(has(o.err, b.says));
		CHECK(o.out.empty());
	}
	State after = *d.state();
	after.applied = before->applied;
	CHECK(after == *before);
}

TEST_CASE("not root, no daemon, no module, no quorum")
{
	FakeDaemon d;
	std::ostringstream out, err;
	cli::Context context{out, err, d.socket_path(), false, [] { return NOW_MS; }};
	CHECK(cli::run({"status"}, context) == 10);
	CHECK(has(err.str(), "must be run as root"));
	CHECK(cli::run({"--help"}, context) == 0);    // anybody may read
	CHECK(has(out.str(), "wait-sync"));

	err.str("");
	context.is_root = true;
	CHECK(cli::run({"--socket", "/tmp/lockstep-nobody.sock", "status"}, context) == 10);
	CHECK(has(err.str(), "lockstepd is not running on this host: start it with"));

	d.facts.module_error = "kernel module lockstep is not loaded on alpha: load it with `modprobe lockstep`";
	Outcome o = d.run({"volume", "create", "v", "1G"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "modprobe lockstep"));
	CHECK(has(d.run({"status"}).out, "! kernel module lockstep is not loaded"));
	d.facts.module_error = "";

	d.quorum = false;
	d.facts.leader = 0;
	CHECK(d.run({"volume", "create", "v", "1G"}).status == 10);
	o = d.run({"status"});
	CHECK(o.status == 0);
	CHECK(has(o.out, "! no quorum"));
}

TEST_CASE("a daemon that died leaves a socket that says so")
{
	std::string path = FakeDaemon::socket_path();
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	sockaddr_un address{};
	address.sun_family = AF_UNIX;
	std::snprintf(address.sun_path, sizeof address.sun_path, "%s", path.c_str());
	REQUIRE(bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
	close(fd);
	std::ostringstream out, err;
	cli::Context context{out, err, path, true, [] { return NOW_MS; }};
	CHECK(cli::run({"status"}, context) == 10);
	CHECK(has(err.str(), "lockstepd is not running"));
	FakeDaemon d;    // takes its place
	CHECK(d.run({"status"}).status == 0);
	struct stat st;
	REQUIRE(stat(path.c_str(), &st) == 0);
	CHECK((st.st_mode & 07777) == 0600);
	ApiServer second({}, {path, 1000});
	Done refused = second.start();
	REQUIRE_FALSE(refused);
	CHECK(has(refused.error().message, "another lockstepd"));
	CHECK(d.run({"status"}).status == 0);
}

TEST_CASE("a create that fails is rolled back and says why")
{
	FakeDaemon d;
	d.create_error = "lvcreate: insufficient free space";
	Outcome o = d.run({"volume", "create", "v", "1G"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "volume v could not be created on host alpha: lvcreate: insufficient free space"));
	CHECK(d.state()->volumes.empty());
}

TEST_CASE("a create that takes too long is rolled back")
{
	FakeDaemon d(3, 300);
	SECTION("a replica is not made; its host does not answer the roll-back either")
	{
		d.idle = {2};
		d.online(3, false);
		std::thread later([&] {
			while (d.state()->failures.empty())
				std::this_thread::yield();
			d.online(2, false);
		});
		Outcome o = d.run({"volume", "create", "v", "1G"});
		later.join();
		CHECK(o.status == 10);
		CHECK(has(o.err, "no replica on host beta after"));
		CHECK(d.state()->volumes.size() == 1);    // beta's tombstone
		d.idle = {};
		d.online(2, true);
		CHECK(d.state()->volumes.empty());
	}
	SECTION("a device does not appear")
	{
		d.idle = {3};
		Outcome o = d.run({"volume", "create", "v", "1G"});
		CHECK(o.status == 10);
		CHECK(has(o.err, "no device on host gamma after"));
		CHECK(d.state()->volumes.empty());
	}
}

TEST_CASE("status of a healthy cluster")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "vm1", "1GiB"}).status == 0);
	REQUIRE(d.run({"volume", "create", "vm2", "2GiB"}).status == 0);
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	d.attach_all();
	Outcome o = d.run({"status"});
	INFO(o.out);
	CHECK(has(o.out, "cluster lab: 3 hosts (all online), 2 volumes (2 ok)\n\nHOST"));
	CHECK(has(o.out, "alpha  online  1 min"));
	CHECK(has(o.out, "10.77.2.1  leader\n"));
	CHECK(has(o.out, "vm1     ok      1 GiB  alpha    alpha    alpha insync\n"
			 "                                         beta insync\n"));
	CHECK_FALSE(has(o.out, "!"));
	o = d.run({"status", "vm1"});
	CHECK(has(o.out, "volume vm1: ok\n"));
	CHECK(has(o.out, "version 2, term 2, incarnation 0"));
	CHECK_FALSE(has(o.out, "vm2"));
	CHECK(d.json_of({"status", "vm2", "--json"})["volumes"].size() == 1);
}

TEST_CASE("status of a degraded cluster says what is wrong and how long it will take")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "vm1", "1GiB"}).status == 0);
	REQUIRE(d.run({"volume", "create", "vm2", "1GiB", "--on", "gamma", "--redundancy", "1"}).status == 0);
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	d.good({{"op", "record.propose"}, {"vid", 1}, {"host", 1}, {"version", 2}, {"term", 2}, {"members", {1}}});
	d.online(3, false);
	auto report = [](uint64_t dirty) {
		return json{{"volumes", {{"1", {{"lv_path", "/dev/lockstep_group/x"}, {"peers", {{"2", {{"sync_state", "running"}, {"dirty_blocks", dirty}}}}}}}}}};
	};
	d.server().soft(1, report(20000));
	Outcome o = d.run({"status"});
	INFO(o.out);
	CHECK(has(o.out, "cluster lab: 3 hosts (1 OFFLINE), 2 volumes (1 offline, 1 syncing)\n"
			 "  ! host gamma is offline; evicted in 1 h\n"
			 "  ! volume vm1 is syncing: resync of beta\n"
			 "  ! volume vm2 is offline: no host with a replica in sync is online: bring back gamma\n\n"));
	CHECK(has(o.out, "beta syncing 69.4 %, 312 MiB to copy\n"));
	CHECK(has(o.out, "gamma insync (host offline)"));
	CHECK(has(d.run({"status", "vm1"}).out, "/dev/lockstep_group/x"));
	d.server().soft(1, nullptr);
	json v = d.json_of({"status", "vm1", "--json"})["volumes"][0];
	CHECK(v["replicas"][1]["state"] == "stale");
	CHECK(v["replicas"][1]["sync_percent"].is_null());
	CHECK(v["health"] == "degraded");
}

TEST_CASE("wait-sync returns when the last replica is in sync, or says what is missing")
{
	FakeDaemon d;
	CHECK(d.run({"wait-sync"}).out == "0 volumes in sync\n");
	REQUIRE(d.run({"volume", "create", "vm1", "1GiB"}).status == 0);
	REQUIRE(d.run({"volume", "create", "vm2", "1GiB", "--redundancy", "1", "--on", "gamma"}).status == 0);
	d.attach_all();
	CHECK(d.run({"wait-sync"}).out == "2 volumes in sync\n");
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	d.good({{"op", "record.propose"}, {"vid", 1}, {"host", 1}, {"version", 2}, {"term", 2}, {"members", {1}}});
	CHECK(d.run({"wait-sync", "vm2"}).out == "1 volume in sync\n");
	Outcome o = d.run({"wait-sync", "--timeout", "0.2"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "volume vm1: beta stale"));
	CHECK_FALSE(has(o.err, "vm2"));
	d.online(3, false);
	o = d.run({"wait-sync", "vm2", "--timeout", "0.2"});
	CHECK(o.status == 10);
	CHECK(has(o.err, "volume vm2: gamma insync (host offline)"));
	// A bar, drawn over again, and gone at the end.
	d.server().soft(1, {{"volumes", {{"1", {{"has_device", true}, {"has_replica", true}, {"admitted", true}, {"version", 3},
		{"peers", {{"2", {{"sync_state", "running"}, {"dirty_blocks", 8192}}}}}}}}}});    // 128 MiB of 1 GiB, and of as much that is there
	d.terminal = true;
	d.first_shown = [&] { d.good({{"op", "record.propose"}, {"vid", 1}, {"host", 1}, {"version", 3}, {"term", 2}, {"members", {1, 2}}}); };
	o = d.run({"wait-sync", "vm1"});
	CHECK(has(o.out, "\rin sync: [############################..]  93.8 %, 128 MiB to copy\033[K"));
	CHECK(o.out.ends_with("\r\033[K1 volume in sync\n"));
}

TEST_CASE("nobody waits for a device on a witness: it has none")
{
	FakeDaemon d(2);
	d.good({{"op", "host.add"}, {"uuid", uuid(3)}, {"name", "gamma"}, {"addresses", {"10.77.2.3"}}, {"witness", true}, {"now_ms", NOW_MS}});
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--redundancy", "2"}).status == 0);
	d.attach_all();
	CHECK(d.run({"wait-sync", "v", "--timeout", "0.2"}).out == "1 volume in sync\n");
	CHECK(d.json_of({"status", "v", "--json"})["volumes"][0]["devices_missing"].empty());
}

// What the record says of a replica is from before its host's restart until that host has attached it: it may turn out suspect.
TEST_CASE("a replica that its host has not attached yet does not count as in sync")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "vm1", "1GiB", "--on", "alpha,beta"}).status == 0);
	Outcome o = d.run({"wait-sync", "--timeout", "0.1"});    // nobody has said anything
	CHECK(o.status == 10);
	CHECK(has(o.err, "alpha insync, not attached yet; "));
	d.attach_all(2);
	o = d.run({"wait-sync", "--timeout", "0.1"});
	CHECK(o.err == "lockstep: not in sync after 0 s: volume vm1: beta insync, not attached yet\n");
	json v = d.json_of({"status", "vm1", "--json"})["volumes"][0];
	CHECK((v["replicas"][0]["attached"] == true && v["replicas"][1]["attached"] == false));
	CHECK((v["health"] == "degraded" && v["reason"] == "not attached yet on beta"));
	d.attach_all();
	CHECK(d.json_of({"status", "vm1", "--json"})["volumes"][0]["health"] == "ok");
	CHECK(d.run({"wait-sync"}).status == 0);

	// beta's kernel knows a newer record than this host: what this host would show is no longer true.
	d.server().soft(2, {{"volumes", {{"1", {{"has_device", true}, {"has_replica", true}, {"admitted", true}, {"version", d.volume("vm1").version + 1}}}}}});
	CHECK(d.run({"wait-sync", "--timeout", "0.1"}).status == 10);
}

TEST_CASE("requests are checked and bounded")
{
	FakeDaemon d;
	httplib::Client http(FakeDaemon::socket_path());
	http.set_address_family(AF_UNIX);
	auto expect = [](const httplib::Result &r, int http_status, int status) {
		REQUIRE(r);
		CHECK(r->status == http_status);
		json body = json::parse(r->body);
		CHECK(body["status"] == status);
		CHECK_FALSE(body["message"].get<std::string>().empty());
	};
	expect(http.Get("/v2/status"), 404, 3);
	expect(http.Post("/v1/volumes", "{", "application/json"), 400, 2);
	expect(http.Get("/v1/volumes?view=all"), 400, 2);
	expect(http.Post("/v1/volumes", "[]", "application/json"), 400, 2);
	expect(http.Post("/v1/volumes", "{}", "application/json"), 400, 2);
	expect(http.Post("/v1/volumes", R"({"name":5,"size_bytes":4096})", "application/json"), 400, 2);
	expect(http.Post("/v1/volumes", R"({"name":"v","size_bytes":"4096"})", "application/json"), 400, 2);
	expect(http.Post("/v1/volumes", R"({"name":"v","size_bytes":-4096})", "application/json"), 400, 2);
	expect(http.Post("/v1/volumes", R"({"name":"v","size_bytes":4096,"hosts":[]})", "application/json"), 400, 2);
	expect(http.Post("/v1/volumes", R"({"name":"v","size_bytes":4096,"hosts":[7]})", "application/json"), 404, 3);
	expect(http.Post("/v1/volumes", R"({"name":"v","size_bytes":4096,"redundancy":"2"})", "application/json"), 400, 2);
	expect(http.Post("/v1/volumes", R"({"name":"v","size_bytes":4096,"redundancy":7})", "application/json"), 409, 5);
	expect(http.Post("/v1/cluster/join", R"({"token":"x","address":""})", "application/json"), 400, 2);
	expect(http.Get("/v1/wait?index=x"), 400, 2);
	expect(http.Post("/v1/volumes", std::string(70 * 1024, ' '), "application/json"), 413, 2);
	CHECK(d.state()->volumes.empty());
}

TEST_CASE("the API answers root only, whatever the socket's mode")
{
	REQUIRE(geteuid() == 0);
	FakeDaemon d;
	struct stat node;
	REQUIRE(stat(FakeDaemon::socket_path().c_str(), &node) == 0);
	CHECK((node.st_mode & 07777) == 0600);
	REQUIRE(chmod(FakeDaemon::socket_path().c_str(), 0666) == 0);
	const std::string path = FakeDaemon::socket_path();
	// In a process of its own; no library is called there that may hold a lock of another thread.
	int out[2];
	REQUIRE(pipe(out) == 0);
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		sockaddr_un at{};
		at.sun_family = AF_UNIX;
		path.copy(at.sun_path, sizeof at.sun_path - 1);
		const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
		char buffer[1024];
		ssize_t n = 0;
		if (setuid(65534) != 0)
			_exit(1);
		if (connect(fd, reinterpret_cast<sockaddr *>(&at), sizeof at) != 0)
			_exit(errno);
		(void)!write(fd, "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 37);
		while ((n = read(fd, buffer, sizeof buffer)) > 0)
			(void)!write(out[1], buffer, size_t(n));
		_exit(0);
	}
	close(out[1]);
	std::string answer;
	char buffer[1024];
	ssize_t n;
	while ((n = read(out[0], buffer, sizeof buffer)) > 0)
		answer.append(buffer, size_t(n));
	close(out[0]);
	int status = 0;
	REQUIRE(waitpid(pid, &status, 0) == pid);
	CHECK(status == 0);
	CHECK(answer.starts_with("HTTP/1.1 403 "));
	CHECK(has(answer, "root only"));
	CHECK_FALSE(has(answer, "alpha"));
	CHECK(d.run({"status"}).status == 0);
}

TEST_CASE("stopping ends what waits")
{
	auto d = std::make_unique<FakeDaemon>();
	std::string answer;
	std::atomic<bool> asked = false;
	std::thread client([&] {
		httplib::Client http(FakeDaemon::socket_path());
		http.set_address_family(AF_UNIX);
		http.set_read_timeout(60);
		asked = true;
		auto r = http.Get("/v1/wait?index=999999&ms=30000");
		answer = r ? r->body : "";
	});
	while (!asked)
		std::this_thread::yield();
	auto begin = std::chrono::steady_clock::now();
	d.reset();
	client.join();
	CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
}
