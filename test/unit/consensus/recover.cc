// SPDX-License-Identifier: GPL-2.0-or-later
//
// Logs that are read without being used, forced to go on without a majority, found damaged, and left for a new raft id.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <map>

#include "lockstepd/consensus/snapshot.h"
#include "test/unit/consensus/node.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

constexpr uint64_t NEXT_EPOCH = 1ull << 32;

struct Hosts {
	explicit Hosts(int n, unsigned threshold = 1024) : threshold(threshold)
	{
		loop.set_log([this](const std::string &line) { lines.push_back(line); });
		add(1);
		REQUIRE(ConsensusLog::bootstrap(node(1).options));
		REQUIRE(node(1).start());
		put(1, host_entry(node(1).me()));
		for (int host = 2; host <= n; host++) {
			add(host);
			REQUIRE(ConsensusLog::prepare_join(node(host).options));
			REQUIRE(node(host).start());
			put(1, host_entry(node(host).me()));
		}
		REQUIRE(wait([&] { return voters(1) == n; }));
	}

	~Hosts() { nodes.clear(); }

	void add(int host, uint64_t raft_id = 0)
	{
		const std::string dir = dir_of(host);
		std::filesystem::create_directories(dir);
		auto n = std::make_unique<Node>(loop, host, dir, ports[host], raft_id);
		ports[host] = n->listener.port();
		n->options.snapshot_threshold = threshold;
		n->options.snapshot_trailing = 2;
		nodes[host] = std::move(n);
	}

	int voters(int host)
	{
		int n = 0;
		for (const Member &m : node(host).log->members())
			n += m.role == Role::voter;
		return n;
	}

	json put(int host, std::string entry)
	{
		std::optional<Result<json>> got;
		node(host).log->propose(std::move(entry), [&](Result<json> r) { got = std::move(r); });
		REQUIRE(loop.run_until([&] { return got.has_value(); }, 12'000));
		INFO((*got ? "" : got->error().message));
		REQUIRE(*got);
		return **got;
	}

	bool wait(std::function<bool()> holds) { return loop.run_until(std::move(holds), 10'000); }
	Node &node(int host) { return *nodes.at(host); }
	std::string dir_of(int host) const { return tmp.path + "/" + std::to_string(host); }
	std::string raft_of(int host) const { return raft_dir_of(dir_of(host)); }

	// All files of that kind are changed at one byte. How many.
	int damage(int host, const std::string &prefix, size_t at, char to)
	{
		int n = 0;
		for (const auto &f : std::filesystem::directory_iterator(raft_of(host))) {
			const std::string name = f.path().filename();
			if (!name.starts_with(prefix) || name.ends_with(".meta"))
				continue;
			std::fstream file(f.path(), std::ios::in | std::ios::out | std::ios::binary);
			file.seekp(at);
			file.put(to);
			n++;
		}
		return n;
	}

	const unsigned threshold;
	Loop loop;
	TempDir tmp;
	std::map<int, uint16_t> ports;
	std::vector<std::string> lines;
	std::map<int, std::unique_ptr<Node>> nodes;
};

StateMachine machine_of(LogHistory &history)
{
	return {[&](uint64_t, std::string_view e) { return history.apply(e); }, [&] { return history.snapshot(); },
		[&](std::string_view s) { return history.restore(s); }};
}

}    // namespace

TEST_CASE("a lost majority: one log is read while it is in use, goes on alone under a new id, and takes others in afresh")
{
	const unsigned threshold = GENERATE(8u, 1024u);
	std::vector<Member> wanted;    // outlives who asks for it
	Hosts c(3, threshold);
	for (int i = 0; i < 100; i++)
		c.put(1, put_entry(std::to_string(i)));
	REQUIRE(c.wait([&] { return c.node(2).history.entries == c.node(1).history.entries; }));
	const auto entries = c.node(1).history.entries;
	c.nodes.erase(1);
	c.nodes.erase(3);

	// Host 2 is up, without a leader.
	LogHistory seen;
	const auto at = ConsensusLog::replay(c.node(2).options, machine_of(seen));
	INFO((at ? "" : at.error().message));
	REQUIRE(at);
	CHECK(seen.entries == entries);
	CHECK((at->index >= entries.size() && at->term > 0));
	CHECK_FALSE(std::filesystem::exists(c.raft_of(2) + ".look"));
	// Of two logs the shorter one is told by its position.
	LogHistory other;
	const auto last = ConsensusLog::replay([&] { auto o = c.node(2).options; o.dir = c.raft_of(1); return o; }(), machine_of(other));
	REQUIRE(last);
	CHECK((last->index > 0 && other.entries.size() <= entries.size()));
	c.nodes.erase(2);

	c.add(2, NEXT_EPOCH + 1);
	REQUIRE(ConsensusLog::recover(c.node(2).options));
	REQUIRE(ConsensusLog::recover(c.node(2).options));    // again: nothing
	CHECK(std::filesystem::exists(c.raft_of(2) + ".before-recovery"));
	wanted = {c.node(2).me()};
	REQUIRE(c.node(2).start());
	c.node(2).log->set_wanted([&] { return wanted; });
	REQUIRE(c.wait([&] { return c.node(2).log->is_leader(); }));
	CHECK(c.node(2).history.entries == entries);
	CHECK(c.voters(2) == 1);
	c.put(2, put_entry("after"));

	// Host 3 is there again, with its old log. It must not come in with that; with a new id it follows.
	c.add(3, NEXT_EPOCH + 2);
	REQUIRE(ConsensusLog::prepare_rejoin(c.node(3).options));
	CHECK(std::filesystem::exists(c.raft_of(3) + ".ended"));
	REQUIRE(c.node(3).start());
	CHECK(c.node(3).history.entries.empty());
	wanted.push_back(c.node(3).me());
	c.node(2).links->set_peers({{3, "h3", c.node(3).me().addresses}});
	c.node(3).links->set_peers({{2, "h2", c.node(2).me().addresses}});
	c.node(3).log->set_wanted([&] { return wanted; });
	REQUIRE(c.wait([&] { return c.voters(2) == 2 && c.node(3).history.entries == c.node(2).history.entries; }));
	c.put(3, put_entry("both"));
}

TEST_CASE("how far the log is known to be committed is noted, and stays known through starts that hear nobody")
{
	Hosts c(3);
	for (int i = 0; i < 20; i++)
		c.put(1, put_entry(std::to_string(i)));
	const ConsensusOptions options = c.node(2).options;
	const uint64_t applied = c.node(1).log->applied_index();
	REQUIRE(c.wait([&] { return ConsensusLog::known_committed(options) >= applied; }));
	c.nodes.erase(1);
	c.nodes.erase(3);
	const uint64_t known = ConsensusLog::known_committed(options);
	for (int start = 0; start < 2; start++) {
		c.nodes.erase(2);
		c.add(2);
		REQUIRE(c.node(2).start());
		const uint64_t begin = Loop::now_ms();
		REQUIRE(c.wait([&] { return Loop::now_ms() - begin > 2 * options.rebalance_ms; }));    // it has looked whether there is anything to note
		CHECK(c.node(2).log->applied_index() < known);
		CHECK(ConsensusLog::known_committed(options) == known);
	}
	c.nodes.erase(2);
	CHECK(ConsensusLog::known_committed([&] { auto o = options; o.dir = c.raft_of(9); return o; }()) == 0);
}

TEST_CASE("a recovery that was killed between its two renames is finished by the next")
{
	Hosts c(1);
	c.put(1, put_entry("x"));
	const auto entries = c.node(1).history.entries;
	c.nodes.erase(1);
	c.add(1, NEXT_EPOCH + 1);
	std::filesystem::rename(c.raft_of(1), c.raft_of(1) + ".before-recovery");
	REQUIRE(ConsensusLog::recover(c.node(1).options));
	REQUIRE(c.node(1).start());
	c.node(1).log->set_wanted([] { return std::vector<Member>(); });
	REQUIRE(c.wait([&] { return c.node(1).log->is_leader(); }));
	CHECK(c.node(1).history.entries == entries);
}

TEST_CASE("what is damaged is told from what is only not understood")
{
	Hosts c(1, 20);
	for (int i = 0; i < 60; i++)
		c.put(1, put_entry(std::to_string(i)));
	c.nodes.erase(1);
	const auto code = [&] {
		c.add(1);
		const Done done = c.node(1).start();
		REQUIRE_FALSE(done);
		INFO(done.error().message);
		c.node(1).log.reset();
		return done.error().code;
	};
	SECTION("a snapshot's content")
	{
		REQUIRE(c.damage(1, "snapshot-", 100, '#') > 0);
		CHECK(code() == LOG_DAMAGED);
	}
	SECTION("a snapshot of another format")
	{
		REQUIRE(c.damage(1, "snapshot-", 7, '9') > 0);
		CHECK(code() != LOG_DAMAGED);
	}
	SECTION("an entry")
	{
		REQUIRE(c.damage(1, "00000000", 60, '#') > 0);
		CHECK(code() == LOG_DAMAGED);
	}
}

TEST_CASE("a raft id that its host does not have any more gets no connection")
{
	std::vector<Member> wanted;
	Hosts c(2);
	const uint64_t term = c.node(1).log->term();
	// Host 1 has heard that host 2 has a new id; what calls itself host 2, member 102, is a copy of its old disk.
	wanted = {c.node(1).me(), c.node(2).me()};
	wanted[1].raft_id = NEXT_EPOCH;
	REQUIRE(c.wait([&] { return c.node(1).log->is_leader(); }));
	c.nodes.erase(2);
	c.node(1).log->set_wanted([&] { return wanted; });
	const auto accept = c.node(1).listener.handlers().on_raft;
	REQUIRE(accept);
	int pair[2];
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	Hello hello;
	hello.from_host = 2;
	hello.from_raft = 102;
	hello.from_address = "102/2/127.0.0.1:1";
	accept(hello, pair[0]);
	char byte;
	CHECK(read(pair[1], &byte, 1) == 0);    // closed at once
	close(pair[1]);
	CHECK(c.node(1).log->term() == term);
}

TEST_CASE("a host that has not heard yet that it votes does vote")
{
	Hosts c(1);
	c.add(2);
	REQUIRE(ConsensusLog::prepare_join(c.node(2).options));
	REQUIRE(c.node(2).start());
	c.put(1, host_entry(c.node(2).me()));
	// From here on the leader needs host 2, which goes before it hears so.
	REQUIRE(c.wait([&] { return c.voters(1) == 2; }));
	c.nodes.erase(2);
	c.nodes.erase(1);    // and with it the messages that it still wanted to send
	c.add(1);
	REQUIRE(c.node(1).start());
	REQUIRE(c.voters(1) == 2);
	c.add(2);
	REQUIRE(c.node(2).start());
	REQUIRE(c.voters(2) == 1);
	c.put(1, put_entry("after"));
	CHECK(c.voters(2) == 2);
}

// libraft's own message (its uv_encoding.c): the first n entries of a log again, each 16 bytes, from a leader of this term.
static std::string first_entries_again(uint64_t term, unsigned n)
{
	std::string out;
	const auto put = [&out](uint64_t value, int bytes) {
		for (int i = 0; i < bytes; i++)
			out += char(value >> (8 * i));
	};
	put(1, 8);                                 // AppendEntries
	put(4 * 8 + 8 + 16 * uint64_t(n) + 8, 8);  // length of what follows, without the entries
	for (uint64_t field : {term, uint64_t(0), uint64_t(0), uint64_t(n)})    // previous index and term, committed
		put(field, 8);
	put(n, 8);
	for (unsigned i = 0; i < n; i++) {
		put(1, 8);     // term
		put(1, 4);     // a command
		put(16, 4);    // its length
	}
	put(0, 8);
	out.append(16 * size_t(n), '\0');
	return out;
}

TEST_CASE("entries that a snapshot has replaced may come again")
{
	Hosts c(2, 8);
	for (int i = 0; i < 100; i++)
		c.put(1, put_entry(std::to_string(i)));
	const auto entries = c.node(1).history.entries;
	REQUIRE(c.wait([&] { return c.node(2).history.entries == entries; }));

	const uint64_t term = c.node(2).log->term() + 1;
	int pair[2];
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	Hello hello;
	hello.from_host = 1;
	hello.from_raft = 101;
	hello.from_address = "101/1/127.0.0.1:" + std::to_string(c.ports[1]);
	c.node(2).listener.handlers().on_raft(hello, pair[0]);
	const std::string again = first_entries_again(term, 18);
	REQUIRE(write(pair[1], again.data(), again.size()) == ssize_t(again.size()));
	REQUIRE(c.wait([&] { return c.node(2).log->term() >= term; }));
	c.put(2, put_entry("after"));
	close(pair[1]);
	REQUIRE(c.wait([&] { return c.node(1).history.entries == c.node(2).history.entries; }));
	CHECK(c.node(2).history.entries.size() == entries.size() + 1);

	// Nothing of it has reached the disk either.
	c.nodes.erase(1);
	c.nodes.erase(2);
	LogHistory kept;
	c.add(2);
	REQUIRE(ConsensusLog::replay(c.node(2).options, machine_of(kept)));
	REQUIRE(kept.entries.size() >= entries.size());
	CHECK(std::equal(entries.begin(), entries.end(), kept.entries.begin()));
}
