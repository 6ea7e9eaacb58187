// SPDX-License-Identifier: GPL-2.0-or-later
//
// Where libraft 0.22 does wrong and the shim mends it, each in the one order of events that shows it.
#include <catch2/catch_test_macros.hpp>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <map>
#include <mutex>
#include <utility>

#include "test/unit/consensus/node.h"
#include "test/unit/consensus/slow_wire.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

// Holds who writes a snapshot in a directory, when its file has its name already and libraft does not know yet. libraft ends the
// writing of a snapshot with linkat(), in a thread of libuv's.
struct SnapshotGate {
	std::mutex mutex;
	std::condition_variable changed;
	std::string dir;         // empty: nobody is held
	bool held = false;

	void close(std::string of)
	{
		const std::lock_guard lock(mutex);
		dir = std::move(of);
		held = false;
	}

	void open()
	{
		const std::lock_guard lock(mutex);
		dir.clear();
		changed.notify_all();
	}

	bool holds()
	{
		const std::lock_guard lock(mutex);
		return held;
	}

	void linked(const std::string &path)
	{
		std::unique_lock lock(mutex);
		if (dir.empty() || !path.starts_with(dir + "/snapshot-") || path.ends_with(".meta"))
			return;
		held = true;
		changed.wait(lock, [&] { return dir.empty(); });
	}
} gate;

std::unique_ptr<Node> node_of(Loop &loop, int host, const TempDir &tmp, uint16_t port = 0)
{
	const std::string dir = tmp.path + "/" + std::to_string(host);
	std::filesystem::create_directories(dir);
	auto node = std::make_unique<Node>(loop, host, dir, port);
	node->options.snapshot_threshold = 10;
	node->options.snapshot_trailing = 2;
	return node;
}

bool put(Loop &loop, Node &node, std::string entry)
{
	std::optional<Result<json>> got;
	node.log->propose(std::move(entry), [&](Result<json> r) { got = std::move(r); });
	return loop.run_until([&] { return got.has_value(); }, 12'000) && *got;
}

}    // namespace

// In place of the C library's, also for libraft.
extern "C" int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) noexcept
{
	const int error = int(syscall(SYS_linkat, from_dir, from, to_dir, to, flags));
	const int saved = errno;
	if (error == 0)
		gate.linked(to);
	errno = saved;
	return error;
}

TEST_CASE("a snapshot that the leader replaces while it sends one arrives with its own term")
{
	Loop loop;
	TempDir tmp;
	std::map<int, std::unique_ptr<Node>> nodes;
	const auto wait = [&](auto holds) { return loop.run_until(holds, 10'000); };
	const auto voters = [&](Node &node) {
		int n = 0;
		for (const Member &m : node.log->members())
			n += m.role == Role::voter;
		return n;
	};
	nodes[1] = node_of(loop, 1, tmp);
	nodes[2] = node_of(loop, 2, tmp);
	REQUIRE(ConsensusLog::bootstrap(nodes[1]->options));
	REQUIRE(ConsensusLog::prepare_join(nodes[2]->options));
	REQUIRE(nodes[1]->start());
	REQUIRE(put(loop, *nodes[1], host_entry(nodes[1]->me())));
	REQUIRE(nodes[2]->start());
	REQUIRE(put(loop, *nodes[1], host_entry(nodes[2]->me())));
	REQUIRE(wait([&] { return voters(*nodes[1]) == 2; }));
	for (int i = 0; i < 20; i++)
		REQUIRE(put(loop, *nodes[1], put_entry("old " + std::to_string(i))));
	REQUIRE(wait([&] { return nodes[2]->history.entries == nodes[1]->history.entries; }));

	// Two voters that start again elect, which makes a new term.
	for (auto &[host, node] : nodes) {
		const uint16_t port = node->listener.port();
		node.reset();
		node = node_of(loop, host, tmp, port);
	}
	for (auto &[host, node] : nodes)
		REQUIRE(node->start());
	REQUIRE(wait([&] { return nodes[1]->log->is_leader() || nodes[2]->log->is_leader(); }));
	Node &leader = *nodes[nodes[1]->log->is_leader() ? 1 : 2];

	// Its next snapshot is on disk, and it does not know so yet. Who joins now is sent this one.
	gate.close(leader.options.dir);
	for (int i = 0; i < 40 && !gate.holds(); i++)
		REQUIRE(put(loop, leader, put_entry("new " + std::to_string(i))));
	REQUIRE(wait([] { return gate.holds(); }));
	nodes[3] = node_of(loop, 3, tmp);
	REQUIRE(ConsensusLog::prepare_join(nodes[3]->options));
	REQUIRE(nodes[3]->start());
	REQUIRE(put(loop, leader, host_entry(nodes[3]->me())));
	const bool there = wait([&] { return nodes[3]->history.entries == leader.history.entries; });
	gate.open();
	REQUIRE(there);
	REQUIRE(put(loop, *nodes[3], put_entry("all")));
	CHECK(wait([&] { return nodes[3]->history.entries == leader.history.entries; }));
	nodes.clear();
}

// The shim makes a candidate's next election begin sooner than libraft does: here after 125 to 375 ms, while an answer takes
// 400. Were each election hurried, each would be over before its answers come.
TEST_CASE("a leader is elected where answers take longer than a hurried election")
{
	Loop loop;
	TempDir tmp;
	std::map<int, std::unique_ptr<SlowWire>> wires;
	std::map<int, std::unique_ptr<Node>> nodes;
	for (int host = 1; host <= 3; host++) {
		nodes[host] = node_of(loop, host, tmp);
		Node &node = *nodes[host];
		wires[host] = std::make_unique<SlowWire>(node.listener.port(), std::chrono::milliseconds(200));
		node.options.self.addresses = {"127.0.0.1:" + std::to_string(wires[host]->port())};
		REQUIRE((host == 1 ? ConsensusLog::bootstrap(node.options) : ConsensusLog::prepare_join(node.options)));
		REQUIRE(node.start());
		REQUIRE(put(loop, *nodes[1], host_entry(node.options.self)));
	}
	const auto vote = [&] {
		int n = 0;
		for (const Member &m : nodes[1]->log->members())
			n += m.role == Role::voter;
		return n == 3;
	};
	REQUIRE(loop.run_until(vote, 20'000));
	int leader = 0;
	const auto led = [&] {
		for (auto &[host, node] : nodes)
			if (node->log->is_leader())
				leader = host;
		return leader != 0;
	};
	const auto equal = [&] {
		for (auto &[host, node] : nodes)
			if (node->history.entries != nodes[leader]->history.entries)
				return false;
		return true;
	};
	for (int round = 0; round < 3; round++) {
		leader = 0;
		REQUIRE(loop.run_until(led, 30'000));
		REQUIRE(put(loop, *nodes[leader], put_entry(std::to_string(round))));
		REQUIRE(loop.run_until(equal, 20'000));    // so that either of the two that are left can win
		const int gone = std::exchange(leader, 0);
		const uint16_t port = nodes[gone]->listener.port();
		nodes.erase(gone);
		CHECK(loop.run_until(led, 20'000));
		nodes[gone] = node_of(loop, gone, tmp, port);
		nodes[gone]->options.self.addresses = {"127.0.0.1:" + std::to_string(wires[gone]->port())};
		REQUIRE(nodes[gone]->start());
	}
	nodes.clear();
}
