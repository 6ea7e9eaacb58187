// SPDX-License-Identifier: GPL-2.0-or-later
//
// Whole daemons as processes on loopback, as witnesses, which need neither module nor LVM: founded, joined, killed, started again as
// systemd would; logs that are lost, damaged or of an epoch that has ended.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <arpa/inet.h>
#include <csignal>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "lib/client.h"
#include "lockstepd/host/daemon.h"

using namespace lockstep;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr const char *HOSTS[] = {"", "alpha", "beta", "gamma", "delta", "epsilon"};

uint16_t free_port()
{
	const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	sockaddr_in a{};
	a.sin_family = AF_INET;
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	socklen_t size = sizeof a;
	REQUIRE(bind(fd, reinterpret_cast<sockaddr *>(&a), sizeof a) == 0);
	REQUIRE(getsockname(fd, reinterpret_cast<sockaddr *>(&a), &size) == 0);
	close(fd);
	return ntohs(a.sin_port);
}

struct Daemons {
	explicit Daemons(int n)
	{
		char name[] = "/tmp/lockstep-unit-XXXXXX";
		REQUIRE(mkdtemp(name));
		path = name;
		for (int host = 1; host <= n; host++)
			start(host);
		REQUIRE(post(1, "/v1/cluster/init", {{"name", "lab"}}));
		for (int host = 2; host <= n; host++) {
			auto token = post(1, "/v1/cluster/token", json::object());
			REQUIRE(token);
			auto joined = post(host, "/v1/cluster/join", {{"token", (*token)["token"]}, {"address", "127.0.0.1"}, {"port", ports[1]}});
			INFO((joined ? "" : joined.error().message));
			REQUIRE(joined);
		}
		for (int host = 1; host <= n; host++)
			REQUIRE(wait([&] { return status(host)["hosts"].size() == size_t(n) && has_leader(host); }));
		// Each of them votes: the log names all.
		REQUIRE(wait([&] { return count("a voter: done") >= n - 1 || n == 1; }));
	}

	~Daemons()
	{
		for (const auto &[host, pid] : pids) {
			::kill(pid, SIGKILL);
			waitpid(pid, nullptr, 0);
		}
		std::error_code ignored;
		fs::remove_all(path, ignored);
	}

	std::string dir(int host) const { return path + "/" + std::to_string(host); }
	std::string socket_of(int host) const { return dir(host) + "/sock"; }

	void start(int host)
	{
		fs::create_directories(dir(host));
		if (!ports.contains(host))
			ports[host] = free_port();
		const pid_t pid = fork();
		REQUIRE(pid >= 0);
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close_range(3, ~0u, 0);
			const int log = open((dir(host) + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
			dup2(log, 2);
			HostConfig config;
			config.name = HOSTS[host];
			config.addresses = {"127.0.0.1"};
			config.port = ports[host];
			config.state_dir = dir(host) + "/state";
			config.socket = socket_of(host);
			config.witness = true;
			Daemon daemon(config);
			if (Done started = daemon.start(); !started) {
				dprintf(2, "%s\n", started.error().message.c_str());
				_exit(99);
			}
			_exit(daemon.run());
		}
		pids[host] = pid;
		REQUIRE(wait([&] { return bool(Client(socket_of(host)).get("/v1/status")) || ended(host); }));
	}

	bool ended(int host)
	{
		if (!pids.contains(host))
			return true;
		if (waitpid(pids[host], nullptr, WNOHANG) != pids[host])
			return false;
		pids.erase(host);
		return true;
	}

	void kill(int host)
	{
		::kill(pids.at(host), SIGKILL);
		waitpid(pids.at(host), nullptr, 0);
		pids.erase(host);
	}

	json status(int host)
	{
		auto s = Client(socket_of(host)).get("/v1/status");
		return s ? *s : json{{"cluster", nullptr}, {"hosts", json::array()}};
	}

	bool has_leader(int host)
	{
		const json s = status(host);
		return s["cluster"].is_object() && s["cluster"]["leader"].is_string();
	}

	Result<json> post(int host, const std::string &path, const json &body) { return Client(socket_of(host)).post(path, body); }

	uint64_t raft_id(int host)
	{
		std::ifstream in(dir(host) + "/state/host.json");
		const json j = json::parse(in, nullptr, false);
		return j.is_discarded() ? 0 : j["raft_id"].get<uint64_t>();
	}

	std::string log(int host)
	{
		std::ifstream in(dir(host) + "/log");
		std::stringstream text;
		text << in.rdbuf();
		return text.str();
	}

	int count(const std::string &what)
	{
		int n = 0;
		for (int h = 1; h <= 5; h++) {
			const std::string text = log(h);
			for (size_t at = 0; (at = text.find(what, at)) != text.npos; at++)
				n++;
		}
		return n;
	}

	template <class Holds>
	bool wait(Holds holds, int seconds = 30)
	{
		using namespace std::chrono;
		const auto end = steady_clock::now() + std::chrono::seconds(seconds);
		while (!holds()) {
			if (steady_clock::now() > end) {
				std::string all;
				for (const auto &[host, port] : ports)
					all += std::string("---- ") + HOSTS[host] + "\n" + log(host);
				UNSCOPED_INFO(all);
				return false;
			}
			std::this_thread::sleep_for(50ms);
		}
		return true;
	}

	// A change that needs a majority.
	bool changes(int host, const std::string &value)
	{
		auto done = post(host, "/v1/options/auto-evict-minutes", {{"value", value}});
		INFO((done ? "" : done.error().message));
		return bool(done);
	}

	std::string path;
	std::map<int, uint16_t> ports;
	std::map<int, pid_t> pids;
};

}    // namespace

TEST_CASE("a log that is lost or damaged never votes again: the host rejoins by itself, with a new id")
{
	Daemons d(3);
	const uint64_t before = d.raft_id(3);
	REQUIRE(d.wait([&] { return fs::exists(d.dir(3) + "/state/raft/reached"); }));
	d.kill(3);
	const std::string how = GENERATE("lost", "emptied", "damaged");
	if (how == "lost") {
		fs::remove_all(d.dir(3) + "/state/raft");
	} else if (how == "emptied") {
		for (const auto &f : fs::directory_iterator(d.dir(3) + "/state/raft"))
			if (const std::string name = f.path().filename(); name != "member" && name != "reached")
				fs::remove(f.path());
	} else {
		int n = 0;
		for (const auto &f : fs::directory_iterator(d.dir(3) + "/state/raft"))
			if (const std::string name = f.path().filename(); name.starts_with("0000") || name.starts_with("open-1")) {
				std::fstream file(f.path(), std::ios::in | std::ios::out | std::ios::binary);
				file.seekp(60);
				file.put('#');
				n++;
			}
		REQUIRE(n > 0);
	}
	REQUIRE(d.changes(1, "50"));
	d.start(3);
	REQUIRE(d.wait([&] { return d.raft_id(3) > before && d.has_leader(3); }));
	CHECK(d.log(3).find("does not vote any more under its id") != std::string::npos);
	CHECK(d.log(3).find("rejoins the cluster under the id") != std::string::npos);
	REQUIRE(d.wait([&] { return d.status(3)["hosts"].size() == 3; }));
	// It votes again: with it and one other there is a majority.
	REQUIRE(d.wait([&] { return d.count("removing gamma (member 3): done") > 0 && d.count("making gamma a voter: done") >= 2; }));
	d.kill(2);
	REQUIRE(d.wait([&] { return d.changes(3, "51"); }));
	// And it survives the next start.
	const uint64_t after = d.raft_id(3);
	d.kill(3);
	d.start(3);
	REQUIRE(d.wait([&] { return d.has_leader(3); }));
	CHECK(d.raft_id(3) == after);
}

TEST_CASE("a lost majority is replaced by one log, and is told so when it comes back")
{
	Daemons d(3);
	REQUIRE(d.changes(1, "50"));
	// Nothing is recovered while there is a leader.
	auto refused = d.post(1, "/v1/cluster/recover", json::object());
	REQUIRE_FALSE(refused);
	CHECK(refused.error().message.find("nothing is to be recovered") != std::string::npos);
	d.kill(2);
	d.kill(3);
	Result<json> plan = json();
	REQUIRE(d.wait([&] { return bool(plan = d.post(1, "/v1/cluster/recover", json::object())); }));
	CHECK((*plan)["dead"] == json{"beta", "gamma"});
	CHECK((*plan)["done"] == false);
	CHECK((*plan)["vouch"].get<std::string>().find("beta, gamma are dead for good") != std::string::npos);
	refused = d.post(1, "/v1/cluster/recover", {{"yes", true}, {"dead", {"beta"}}});
	REQUIRE_FALSE(refused);
	CHECK(refused.error().message.find("exactly") != std::string::npos);
	CHECK_FALSE(d.ended(1));

	REQUIRE(d.post(1, "/v1/cluster/recover", {{"yes", true}, {"dead", {"gamma", "beta"}}}));
	REQUIRE(d.wait([&] { return d.ended(1); }));
	SECTION("at once") {}
	SECTION("killed before and after it had its new id")
	{
		d.start(1);
		d.kill(1);
	}
	d.start(1);
	REQUIRE(d.wait([&] { return d.has_leader(1) && d.status(1)["hosts"].size() == 1; }));
	CHECK(d.raft_id(1) == (1ull << 32) + 1);
	REQUIRE(d.changes(1, "52"));
	CHECK(d.wait([&] { return !fs::exists(d.dir(1) + "/state/pending.json"); }));

	// The dead come back, both, a majority of what they remember.
	d.start(2);
	d.start(3);
	REQUIRE(d.wait([&] { return d.ended(2) && d.ended(3); }));
	CHECK(d.raft_id(2) == 0);
	CHECK(d.log(2).find("removed from the cluster") != std::string::npos);
	CHECK(d.status(1)["hosts"].size() == 1);
	// And may join, as new hosts.
	d.start(2);
	auto token = d.post(1, "/v1/cluster/token", json::object());
	REQUIRE(token);
	REQUIRE(d.post(2, "/v1/cluster/join", {{"token", (*token)["token"]}, {"address", "127.0.0.1"}, {"port", d.ports[1]}}));
}

TEST_CASE("a host without a log survives a recovery: it keeps its place and gets the log anew")
{
	Daemons d(3);
	d.kill(3);
	d.kill(2);
	fs::remove_all(d.dir(2) + "/state/raft");
	d.start(2);
	CHECK_FALSE(d.post(2, "/v1/cluster/recover", json::object()));
	Result<json> plan = json();
	REQUIRE(d.wait([&] {
		plan = d.post(1, "/v1/cluster/recover", json::object());
		return plan && (*plan)["kept"] == json{"beta"};
	}));
	CHECK((*plan)["dead"] == json{"gamma"});
	REQUIRE(d.post(1, "/v1/cluster/recover", {{"yes", true}, {"dead", {"gamma"}}}));
	REQUIRE(d.wait([&] { return d.ended(1); }));
	d.start(1);
	REQUIRE(d.wait([&] { return d.has_leader(2) && d.status(2)["hosts"].size() == 2; }));
	CHECK(d.raft_id(2) > 1ull << 32);
	REQUIRE(d.changes(2, "53"));
}

TEST_CASE("no log survives: a new one is made of what the disks say, and the hosts follow it by themselves")
{
	Daemons d(3);
	REQUIRE(d.changes(1, "50"));
	REQUIRE(d.wait([&] {
		for (int host = 1; host <= 3; host++)
			if (!fs::exists(d.dir(host) + "/state/tls/authority-key.pem"))
				return false;
		return true;
	}));
	auto refused = d.post(1, "/v1/cluster/recover", {{"from_disks", true}});
	REQUIRE_FALSE(refused);
	CHECK(refused.error().message.find("has a log") != std::string::npos);
	for (int host = 1; host <= 3; host++) {
		d.kill(host);
		if (host != 3)
			fs::remove_all(d.dir(host) + "/state/raft");
	}
	// As long as there is one, it is the one to go on from.
	for (int host = 1; host <= 3; host++)
		d.start(host);
	REQUIRE(d.wait([&] {
		refused = d.post(1, "/v1/cluster/recover", {{"from_disks", true}});
		return !refused && refused.error().message.find("host gamma has a log") != std::string::npos;
	}));
	d.kill(3);
	fs::remove_all(d.dir(3) + "/state/raft");
	Result<json> plan = json();
	REQUIRE(d.wait([&] {
		plan = d.post(1, "/v1/cluster/recover", {{"from_disks", true}});
		return plan && (*plan)["dead"] == json{"gamma"};
	}));
	CHECK(((*plan)["done"] == false && (*plan)["epoch"] == 1));
	refused = d.post(1, "/v1/cluster/recover", {{"from_disks", true}, {"yes", true}});
	REQUIRE_FALSE(refused);
	CHECK(refused.error().message.find("exactly") != std::string::npos);
	d.start(3);
	REQUIRE(d.wait([&] {
		plan = d.post(1, "/v1/cluster/recover", {{"from_disks", true}});
		return plan && (*plan)["kept"] == json{"beta", "gamma"};
	}));
	REQUIRE(d.post(1, "/v1/cluster/recover", {{"from_disks", true}, {"yes", true}}));
	REQUIRE(d.wait([&] { return d.ended(1); }));
	const size_t begun = d.log(1).size();
	SECTION("at once") {}
	SECTION("killed before and after it had its new id")
	{
		d.start(1);
		d.kill(1);
	}
	d.start(1);
	for (int host = 1; host <= 3; host++)
		REQUIRE(d.wait([&] { return d.has_leader(host) && d.status(host)["hosts"].size() == 3; }));
	CHECK(d.raft_id(1) == (1ull << 32) + 1);
	CHECK((d.raft_id(2) > 1ull << 32 && d.raft_id(3) > 1ull << 32 && d.raft_id(2) != d.raft_id(3)));
	// They vote: the one that began can go.
	const auto says = [&](const char *what) { return d.log(1).find(what, begun) != std::string::npos; };
	REQUIRE(d.wait([&] { return says("making beta a voter: done") && says("making gamma a voter: done"); }));
	d.kill(1);
	REQUIRE(d.wait([&] { return d.changes(3, "51"); }));
	d.start(1);
	REQUIRE(d.wait([&] { return d.has_leader(1); }));
	CHECK_FALSE(fs::exists(d.dir(1) + "/state/pending.json"));
	// A host can be taken in, with the same authority.
	REQUIRE(d.post(2, "/v1/cluster/token", json::object()));
}

TEST_CASE("two of five survive: the log that holds more goes on, the other host follows it")
{
	Daemons d(5);
	REQUIRE(d.changes(1, "50"));
	for (int host = 3; host <= 5; host++)
		d.kill(host);
	Result<json> plan = json();
	int first = 0, second = 0;
	REQUIRE(d.wait([&] {
		for (int host = 1; host <= 2; host++)
			if ((plan = d.post(host, "/v1/cluster/recover", json::object()))) {
				first = host;
				second = 3 - host;
				return true;
			}
		return false;
	}));
	CHECK((*plan)["kept"] == json{HOSTS[second]});
	REQUIRE(d.post(first, "/v1/cluster/recover", {{"yes", true}, {"dead", (*plan)["dead"]}}));
	REQUIRE(d.wait([&] { return d.ended(first); }));
	d.start(first);
	REQUIRE(d.wait([&] { return d.ended(second); }));    // it was told that its log has ended
	CHECK(d.log(second).find("is in epoch 1: this host's log has ended") != std::string::npos);
	d.start(second);
	REQUIRE(d.wait([&] { return d.has_leader(second) && d.status(second)["hosts"].size() == 2; }));
	CHECK(d.raft_id(second) > 1ull << 32);
	REQUIRE(d.changes(second, "54"));
}

TEST_CASE("clients ask any host over TLS, as their certificates say; one that is revoked is cut off everywhere")
{
	Daemons d(2);
	const auto client = [&](int host, const std::string &bundle) { return Client(Remote{"127.0.0.1", std::to_string(d.ports[host]), bundle}); };
	const auto made = [&](const std::string &name, const std::string &role, uint64_t valid_s = 3600) {
		auto answer = d.post(1, "/v1/cluster/certs/" + name, {{"role", role}, {"valid_s", valid_s}});
		INFO((answer ? "" : answer.error().message));
		REQUIRE(answer);
		return (*answer)["bundle"].get<std::string>();
	};
	const std::string reader = made("reader", "read-only"), boss = made("boss", "admin");
	// The other host may hear of it a moment later.
	const auto known = [&](const std::string &bundle) { return d.wait([&] { return bool(client(2, bundle).get("/v1/status")); }); };
	REQUIRE(known(reader));
	REQUIRE(known(boss));
	for (int host : {1, 2}) {
		const auto status = client(host, reader).get("/v1/status");
		REQUIRE(status);
		CHECK((*status)["hosts"].size() == 2);
		const auto text = client(host, reader).get_text("/metrics");
		REQUIRE(text);
		CHECK(text->starts_with("#"));
		const auto no = client(host, reader).post("/v1/options/auto-evict-minutes", {{"value", "7"}});
		REQUIRE_FALSE(no);
		CHECK(no.error().code == "read-only");
		const auto yes = client(host, boss).post("/v1/options/auto-evict-minutes", {{"value", std::to_string(host + 10)}});
		INFO((yes ? "" : yes.error().message));
		CHECK(yes);
		CHECK(client(host, boss).post("/v1/cluster/token", json::object()).error().code == "root-only");
	}
	// Every host's log says who has changed what.
	REQUIRE(client(2, boss).post("/v1/hosts/alpha/net", {{"verb", "add"}, {"address", "127.0.0.2"}}));
	for (int host : {1, 2}) {
		CHECK(d.wait([&] { return d.log(host).find(" (by boss, admin, on beta)\n") != std::string::npos; }));
		CHECK(d.log(host).find("reader has a certificate for the API (read-only) (by root on alpha)\n") != std::string::npos);
	}
	// A long poll over TLS ends when its certificate is revoked, on a host that was not asked to.
	const auto open_there = [&] { return std::distance(fs::directory_iterator("/proc/" + std::to_string(d.pids[2]) + "/fd"), {}); };
	auto before = open_there();
	REQUIRE(d.wait([&, same = 0]() mutable {    // until those of earlier requests are closed
		same = open_there() == before ? same + 1 : 0;
		before = open_there();
		return same >= 10;
	}));
	const auto begin = std::chrono::steady_clock::now();
	std::thread poll([&] { CHECK_FALSE(client(2, reader).get("/v1/wait?index=999999999&ms=30000", 60)); });
	// The connection, and its two ends inside of the daemon.
	CHECK(d.wait([&] { return open_there() >= before + 3; }));
	CHECK(Client(d.socket_of(1)).del("/v1/cluster/certs/reader"));
	poll.join();
	CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
	CHECK(d.log(2).find("cut a connection with API client reader: its certificate was revoked") != std::string::npos);
	const auto later = client(2, reader).get("/v1/status");
	REQUIRE_FALSE(later);
	CHECK(later.error().code == "not-admitted");
	// Made again under the same name, the earlier one counts no more.
	const std::string second = made("boss", "read-only");
	CHECK(client(1, boss).get("/v1/status").error().code == "not-admitted");
	CHECK(client(1, second).get("/v1/status"));
	// It outlives a restart of the daemon.
	d.kill(1);
	d.start(1);
	REQUIRE(d.wait([&] { return bool(client(1, second).get("/v1/status")); }));
	CHECK_FALSE(client(1, boss).get("/v1/status"));
	// And one that ends, ends.
	const std::string brief = made("brief", "admin", 1);
	CHECK(d.wait([&] { return !client(1, brief).get("/v1/status"); }));
}
