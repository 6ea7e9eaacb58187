// SPDX-License-Identifier: GPL-2.0-or-later
//
// Hosts with several addresses: which one a link goes over, what happens when it goes silent, and when it is back.
#include <catch2/catch_test_macros.hpp>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <thread>

#include "lockstepd/net/link.h"
#include "test/unit/consensus/node.h"
#include "test/unit/consensus/pki.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

// A network on the way to a port. Frozen, it takes connections and bytes and passes nothing on, as a dead switch does.
struct Network {
	explicit Network(uint16_t to) : to(to), door(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))
	{
		sockaddr_in at{};
		at.sin_family = AF_INET;
		at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		socklen_t length = sizeof at;
		REQUIRE(bind(door, reinterpret_cast<sockaddr *>(&at), sizeof at) == 0);
		REQUIRE(listen(door, 16) == 0);
		REQUIRE(getsockname(door, reinterpret_cast<sockaddr *>(&at), &length) == 0);
		port = ntohs(at.sin_port);
		thread = std::thread([this] { run(); });
	}

	~Network()
	{
		stop = true;
		thread.join();
		for (const auto &[from, other] : other_end)
			close(from);
		close(door);
	}

	void run()
	{
		while (!stop) {
			std::vector<pollfd> watched;
			if (!frozen) {
				watched.push_back({door, POLLIN, 0});
				for (const auto &[from, other] : other_end)
					watched.push_back({from, POLLIN, 0});
			}
			if (poll(watched.data(), watched.size(), 5) <= 0)
				continue;
			for (const pollfd &p : watched) {
				if (!p.revents || frozen)
					continue;
				if (p.fd == door) {
					const int near = accept4(door, nullptr, nullptr, SOCK_CLOEXEC), far = connect_to(to);
					set_blocking(far, true);
					other_end[near] = far;
					other_end[far] = near;
				} else if (other_end.contains(p.fd)) {
					pass(p.fd);
				}
			}
		}
	}

	void pass(int from)
	{
		char buffer[65536];
		const int other = other_end.at(from);
		const ssize_t n = recv(from, buffer, sizeof buffer, 0);
		if (n > 0 && send(other, buffer, size_t(n), MSG_NOSIGNAL) == n)
			return;
		for (const int fd : {from, other}) {
			other_end.erase(fd);
			close(fd);
		}
	}

	std::string address() const { return "127.0.0.1:" + std::to_string(port); }

	const uint16_t to;
	const int door;
	uint16_t port = 0;
	std::atomic<bool> frozen{false}, stop{false};
	std::map<int, int> other_end;    // the thread's
	std::thread thread;
};

struct LinkedHost {
	LinkedHost(Loop &loop, int id) : tls(loop, LaneEnd::relay), listener(loop, tls), dialer(loop, tls)
	{
		const Identity identity = {CLUSTER, id, uint64_t(id) + 100, "h" + std::to_string(id)};
		REQUIRE(tls.set_identity(identity_of(CLUSTER, id, uint64_t(id) + 100)));
		listener.set_identity(identity);
		dialer.set_identity(identity);
		REQUIRE(listener.listen({"127.0.0.1"}, 0));
		links.emplace(loop, listener, dialer,
			      LinkOptions{.heartbeat_ms = 100, .silence_ms = 3000, .fallback_ms = 500, .return_ms = 400});
	}
	std::string address() const { return "127.0.0.1:" + std::to_string(listener.port()); }
	Tls tls;
	Listener listener;
	Dialer dialer;
	std::optional<Links> links;
};

}    // namespace

TEST_CASE("a link falls back to another address within 2 s, and returns when the preferred one is well")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	LinkedHost one(loop, 1), two(loop, 2);
	Network preferred(two.listener.port()), other(two.listener.port());
	std::vector<std::string> ways;
	int changes = 0, downs = 0;
	one.links->on_path([&](int host, const std::string &address) {
		CHECK(host == 2);
		ways.push_back(address);
	});
	two.links->on_path([&](int, const std::string &address) {
		CHECK(address.empty());
		changes++;
	});
	one.links->on_peer_down([&](int) { downs++; });
	const std::vector<std::string> addresses = {preferred.address(), other.address()};
	one.links->set_peers({{2, "h2", addresses}});
	two.links->set_peers({{1, "h1", {one.address()}}});
	REQUIRE(loop.run_until([&] { return one.links->up(2) && two.links->up(1); }, 3000));
	CHECK(one.links->address(2) == preferred.address());
	CHECK(ways.empty());

	preferred.frozen = true;
	const uint64_t start = Loop::now_ms();
	REQUIRE(loop.run_until([&] { return one.links->address(2) == other.address(); }, 4000));
	CHECK(Loop::now_ms() - start < 2000);
	CHECK(one.links->up(2));
	REQUIRE(loop.run_until([&] { return ways == std::vector<std::string>{other.address()} && changes == 1; }, 1000));

	// It stays there while the preferred one is dead; then it goes back.
	loop.run_until([] { return false; }, 1500);
	CHECK(one.links->address(2) == other.address());
	preferred.frozen = false;
	REQUIRE(loop.run_until([&] { return one.links->address(2) == preferred.address(); }, 8000));
	REQUIRE(loop.run_until([&] { return ways.size() == 2 && changes >= 2; }, 1000));
	CHECK(ways[1] == preferred.address());

	// Another order, and then none of the addresses in use: the link follows.
	one.links->set_peers({{2, "h2", {other.address(), preferred.address()}}});
	REQUIRE(loop.run_until([&] { return one.links->address(2) == other.address(); }, 2000));
	one.links->set_peers({{2, "h2", {two.address()}}});
	REQUIRE(loop.run_until([&] { return one.links->address(2) == two.address() && one.links->up(2) && two.links->up(1); }, 3000));
	std::optional<Result<nlohmann::json>> answer;
	two.links->on_call("echo", [](int, nlohmann::json body, Links::Reply reply) { reply(std::move(body)); });
	one.links->call(2, "echo", 5, 2000, [&](Result<nlohmann::json> r) { answer = std::move(r); });
	REQUIRE(loop.run_until([&] { return answer.has_value(); }, 3000));
	CHECK(*answer);
}

TEST_CASE("dialing: an address that does not answer costs a quarter of a second, not its time-out")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	LinkedHost one(loop, 1), two(loop, 2);
	int links = 0;
	two.listener.handlers().on_link = [&](const Hello &, int fd) {
		links++;
		close(fd);
	};
	Network dead(two.listener.port());
	dead.frozen = true;
	Hello hello;
	hello.purpose = Purpose::link;
	std::optional<std::string> got;
	const uint64_t start = Loop::now_ms();
	one.dialer.dial({dead.address(), "127.0.0.1:1", two.address()}, 0, hello, [&](Result<int> fd, const HelloAnswer &answer) {
		REQUIRE(fd);
		close(*fd);
		got = answer.address;
	});
	REQUIRE(loop.run_until([&] { return got.has_value(); }, 3000));
	CHECK(*got == two.address());
	CHECK(Loop::now_ms() - start < 1000);
	CHECK(links == 1);
	one.links.reset();
	two.links.reset();
}

TEST_CASE("the port follows a change of addresses without interrupting those that stay")
{
	Loop loop;
	std::vector<std::string> lines;
	loop.set_log([&](const std::string &line) { lines.push_back(line); });
	LinkedHost one(loop, 1), two(loop, 2);
	one.links->set_peers({{2, "h2", {two.address()}}});
	two.links->set_peers({{1, "h1", {one.address()}}});
	REQUIRE(loop.run_until([&] { return one.links->up(2) && two.links->up(1); }, 3000));
	const auto answers = [&](const char *address) {
		const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		sockaddr_in to{};
		to.sin_family = AF_INET;
		to.sin_port = htons(two.listener.port());
		inet_pton(AF_INET, address, &to.sin_addr);
		const bool connected = connect(fd, reinterpret_cast<sockaddr *>(&to), sizeof to) == 0;
		close(fd);
		return connected;
	};
	CHECK_FALSE(answers("127.0.0.77"));
	REQUIRE(two.listener.change_addresses({"127.0.0.1", "127.0.0.77", "192.0.2.200"}));
	CHECK(answers("127.0.0.77"));
	CHECK(answers("127.0.0.1"));
	REQUIRE_FALSE(lines.empty());
	CHECK(lines.back().find("192.0.2.200") == 0);
	REQUIRE(two.listener.change_addresses({"127.0.0.1"}));
	CHECK_FALSE(answers("127.0.0.77"));
	CHECK(one.links->up(2));
	CHECK(two.links->up(1));
}
