// SPDX-License-Identifier: GPL-2.0-or-later
//
// Several hosts in one process on one loop.
#include <catch2/catch_test_macros.hpp>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>

#include "lockstepd/consensus/membership.h"
#include "lockstepd/consensus/once.h"
#include "lockstepd/consensus/snapshot.h"
#include "test/unit/consensus/node.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

struct Cluster {
	explicit Cluster(int n, std::function<void(ConsensusOptions &)> tune = {}) : tune(std::move(tune))
	{
		loop.set_log([this](const std::string &line) { lines.push_back(line); });
		add(1);
		REQUIRE(ConsensusLog::bootstrap(node(1).options));
		REQUIRE(node(1).start());
		propose_ok(1, host_entry(node(1).me()));
		for (int host = 2; host <= n; host++)
			join(host);
	}

	~Cluster()
	{
		// The last ones have no quorum to hand over to, and need none.
		nodes.clear();
	}

	void add(int host, uint64_t raft_id = 0)
	{
		const std::string dir = tmp.path + "/" + std::to_string(host);
		std::filesystem::create_directories(dir);
		auto n = std::make_unique<Node>(loop, host, dir, ports[host], raft_id);
		ports[host] = n->listener.port();
		if (tune)
			tune(n->options);
		nodes[host] = std::move(n);
	}

	void join(int host, uint64_t raft_id = 0)
	{
		add(host, raft_id);
		REQUIRE(ConsensusLog::prepare_join(node(host).options));
		REQUIRE(node(host).start());
		propose_ok(1, host_entry(node(host).me()));
	}

	void kill(int host) { nodes.erase(host); }

	void restart(int host)
	{
		add(host);
		const Done done = node(host).start();
		INFO((done ? std::string() : done.error().message));
		REQUIRE(done);
	}

	Node &node(int host) { return *nodes.at(host); }

	Result<json> propose(int host, std::string entry, uint64_t timeout_ms = 10'000)
	{
		std::optional<Result<json>> got;
		node(host).log->propose(
			std::move(entry), [&](Result<json> r) { got = std::move(r); }, timeout_ms);
		REQUIRE(loop.run_until([&] { return got.has_value(); }, timeout_ms + 2000));
		return *got;
	}

	json propose_ok(int host, std::string entry)
	{
		const auto r = propose(host, std::move(entry));
		INFO((r ? std::string() : r.error().message));
		REQUIRE(r);
		REQUIRE((*r).at("ok") == true);
		return *r;
	}

	bool wait(const std::function<bool()> &done, uint64_t ms = 15'000) { return loop.run_until(done, ms); }

	int leader()
	{
		for (auto &[host, n] : nodes) {
			if (n->log && n->log->is_leader())
				return host;
		}
		return 0;
	}

	std::map<Role, int> roles(int host)
	{
		std::map<Role, int> out;
		for (const Member &m : node(host).log->members())
			out[m.role]++;
		return out;
	}

	// Committed, not just proposed.
	void await_three_voters()
	{
		REQUIRE(wait([&] { return roles(1)[Role::voter] == 3; }));
		bool passed = false;
		node(1).log->barrier([&](Done done) { passed = bool(done); });
		REQUIRE(wait([&] { return passed; }));
	}

	bool all_equal()
	{
		for (auto &[host, n] : nodes) {
			if (n->history.entries != nodes.begin()->second->history.entries)
				return false;
		}
		return true;
	}

	TempDir tmp;
	std::function<void(ConsensusOptions &)> tune;
	std::vector<std::string> lines;
	Loop loop;
	std::map<int, uint16_t> ports;
	std::map<int, std::unique_ptr<Node>> nodes;
};

}    // namespace

TEST_CASE("three hosts apply the same entries in the same order, whoever proposes")
{
	std::set<int> counts;
	int answered = 0;
	Cluster c(3);
	c.await_three_voters();

	// Fired all at once from all hosts, so that they interleave.
	constexpr int EACH = 50;
	for (int i = 0; i < EACH; i++) {
		for (int host = 1; host <= 3; host++) {
			const std::string entry = put_entry(std::to_string(host) + "." + std::to_string(i));
			Node &n = c.node(host);
			n.log->propose(entry, [&, entry](Result<json> r) {
				REQUIRE(r);
				// The answer is that of this very entry, and the proposer has applied it.
				const int count = (*r).at("count");
				REQUIRE(int(n.history.entries.size()) >= count);
				REQUIRE(n.history.entries[size_t(count) - 1] == entry);
				counts.insert(count);
				answered++;
			});
		}
	}
	REQUIRE(c.wait([&] { return answered == 3 * EACH; }));
	CHECK(counts.size() == 3 * EACH);
	REQUIRE(c.wait([&] { return c.all_equal(); }));
	CHECK(c.node(1).history.entries.size() == 3 * EACH + 3);

	// A refusal of the state machine is an answer, not an error.
	const auto refused = c.propose(2, host_entry(c.node(3).me()));
	REQUIRE(refused);
	CHECK((*refused).at("ok") == false);
}

TEST_CASE("all hosts apply an entry soon after its commit, and pass a barrier, not with the leader's next heartbeat")
{
	Cluster c(3, [](ConsensusOptions &o) {
		o.heartbeat_ms = 20'000;
		o.election_ms = 60'000;
	});
	c.await_three_voters();
	for (const int proposer : {1, 2, 1, 3, 1}) {
		c.propose_ok(proposer, put_entry("x"));
		REQUIRE(c.wait([&] { return c.all_equal(); }, 10'000));
	}
	for (const int asked : {2, 3, 1}) {
		std::optional<bool> passed;    // false after 10 s
		c.node(asked).log->barrier([&](Done done) { passed = bool(done); });
		REQUIRE(c.wait([&] { return passed.has_value(); }, 15'000));
		CHECK(*passed);
	}
}

TEST_CASE("a barrier on any host sees all that was committed before it")
{
	Cluster c(3);
	c.await_three_voters();
	for (int round = 0; round < 10; round++) {
		const auto count = c.propose_ok(1, put_entry(std::to_string(round))).at("count").get<size_t>();
		bool passed = false;
		c.node(3).log->barrier([&](Done done) {
			REQUIRE(done);
			REQUIRE(c.node(3).history.entries.size() >= count);
			passed = true;
		});
		REQUIRE(c.wait([&] { return passed; }));
	}
}

TEST_CASE("the leader stops: the others go on, and it catches up when it is back")
{
	std::vector<std::pair<bool, int>> told;
	Cluster c(3);
	c.await_three_voters();
	const int old = c.leader();
	REQUIRE(old != 0);
	const int other = old == 1 ? 2 : 1;
	c.node(other).log->on_role_change([&](bool leads, int leader) { told.emplace_back(leads, leader); });
	c.kill(old);
	const uint64_t start = Loop::now_ms();
	c.propose_ok(other, put_entry("after"));
	printf("consensus: leader stopped, next commit after %llu ms\n", static_cast<unsigned long long>(Loop::now_ms() - start));
	CHECK(c.leader() != 0);
	REQUIRE_FALSE(told.empty());
	CHECK(told.back().second == c.leader());
	for (int i = 0; i < 20; i++)
		c.propose_ok(other, put_entry(std::to_string(i)));
	c.restart(old);
	REQUIRE(c.wait([&] { return c.all_equal(); }));
	c.propose_ok(old, put_entry("from the one that returned"));
}

TEST_CASE("without a quorum a proposal fails in bounded time and says why; with one again, all goes on")
{
	Cluster c(3);
	c.await_three_voters();
	c.kill(2);
	c.kill(3);
	for (int i = 0; i < 2; i++) {
		// The first may find a leader that does not know yet; the second finds none.
		const uint64_t start = Loop::now_ms();
		const auto r = c.propose(1, put_entry("nobody listens"), 3000);
		CHECK(Loop::now_ms() - start < 4000);
		REQUIRE_FALSE(r);
		INFO(r.error().message);
		CHECK(r.error().status == Status::failed);
		if (i == 1) {
			CHECK(r.error().message.find("no quorum: 1 of 3 voters reachable") != std::string::npos);
			CHECK(r.error().message.find("h2") != std::string::npos);
			CHECK(r.error().message.find("h3") != std::string::npos);
		}
	}
	bool failed_barrier = false;
	c.node(1).log->barrier(
		[&](Done done) {
			REQUIRE_FALSE(done);
			failed_barrier = true;
		},
		1000);
	REQUIRE(c.wait([&] { return failed_barrier; }, 3000));
	c.restart(2);
	c.propose_ok(1, put_entry("two of three"));
	c.restart(3);
	REQUIRE(c.wait([&] { return c.all_equal(); }));
}

TEST_CASE("state comes back from snapshot and log, also for a host that was away longer than the log reaches")
{
	Cluster c(3, [](ConsensusOptions &o) {
		o.snapshot_threshold = 20;
		o.snapshot_trailing = 5;
	});
	c.await_three_voters();
	c.kill(3);
	for (int i = 0; i < 100; i++)
		c.propose_ok(1, put_entry(std::to_string(i)));
	bool snapshot = false;
	for (const auto &f : std::filesystem::directory_iterator(raft_dir_of(c.node(1).dir)))
		snapshot |= f.path().filename().string().starts_with("snapshot-");
	REQUIRE(snapshot);

	c.restart(3);
	REQUIRE(c.wait([&] { return c.all_equal(); }));
	const auto before = c.node(1).history.entries;

	c.kill(1);
	c.kill(2);
	c.kill(3);
	c.restart(1);
	CHECK_FALSE(c.node(1).history.entries.empty());    // the snapshot, without anybody's help
	c.restart(2);
	c.restart(3);
	REQUIRE(c.wait([&] { return c.all_equal() && c.node(1).history.entries == before; }));
	c.propose_ok(2, put_entry("and on"));
}

TEST_CASE("a damaged snapshot is refused, not believed")
{
	Cluster c(1, [](ConsensusOptions &o) {
		o.snapshot_threshold = 10;
		o.snapshot_trailing = 2;
	});
	for (int i = 0; i < 60; i++)
		c.propose_ok(1, put_entry(std::to_string(i)));
	c.kill(1);
	int damaged = 0;
	for (const auto &f : std::filesystem::directory_iterator(c.tmp.path + "/1/raft")) {
		const std::string name = f.path().filename();
		if (!name.starts_with("snapshot-") || name.ends_with(".meta"))
			continue;
		std::fstream file(f.path(), std::ios::in | std::ios::out | std::ios::binary);
		file.seekp(100);
		file.put('#');
		damaged++;
	}
	REQUIRE(damaged > 0);
	c.add(1);
	const Done done = c.node(1).start();
	REQUIRE_FALSE(done);
	INFO(done.error().message);
	CHECK(done.error().message.find("checksum") != std::string::npos);
	CHECK(c.node(1).log->closed());
	c.node(1).log.reset();
	CHECK(c.node(1).history.entries.empty());
}

TEST_CASE("three vote among four, five among five, and a learner takes the place of a voter that stays away")
{
	Cluster c(4, [](ConsensusOptions &o) { o.voter_replace_ms = 1500; });
	const auto settled = [&](int voters, int learners) {
		auto r = c.roles(c.leader() ? c.leader() : 1);
		return r[Role::voter] == voters && r[Role::learner] == learners && r[Role::none] == 0;
	};
	REQUIRE(c.wait([&] { return settled(3, 1); }));
	REQUIRE(c.wait([&] { return c.all_equal(); }));

	SECTION("a learner proposes like any host")
	{
		for (const Member &m : c.node(1).log->members()) {
			if (m.role == Role::learner)
				c.propose_ok(m.host, put_entry("from a learner"));
		}
	}

	SECTION("a fifth host makes five voters, and one less makes three again")
	{
		c.join(5);
		REQUIRE(c.wait([&] { return settled(5, 0); }));
		c.propose_ok(2, json{{"op", "forget"}, {"host", 5}}.dump());
		REQUIRE(c.wait([&] { return settled(3, 1); }));
	}

	SECTION("a voter dies")
	{
		int victim = 0;
		for (const Member &m : c.node(1).log->members()) {
			if (m.role == Role::voter && m.host != c.leader())
				victim = m.host;
		}
		REQUIRE(victim != 0);
		c.kill(victim);
		const auto replaced = [&] {
			if (!settled(3, 1))
				return false;
			for (const Member &m : c.node(c.leader()).log->members()) {
				if (m.host == victim)
					return m.role == Role::learner;
			}
			return false;
		};
		REQUIRE(c.wait([&] { return c.leader() != 0 && replaced(); }));
		// So one more may now be lost.
		int second = 0;
		for (const Member &m : c.node(c.leader()).log->members()) {
			if (m.role == Role::voter)
				second = m.host;
		}
		c.kill(second);
		c.propose_ok(c.nodes.begin()->first, put_entry("still two of three"));
	}
}

TEST_CASE("a host that joins again comes under a new raft id, and the old one is removed")
{
	Cluster c(3);
	c.await_three_voters();
	c.kill(3);
	std::filesystem::remove_all(c.tmp.path + "/3");
	c.propose_ok(1, json{{"op", "forget"}, {"host", 3}}.dump());
	c.join(3, 777);
	REQUIRE(c.wait([&] {
		bool old = false, fresh = false;
		for (const Member &m : c.node(1).log->members()) {
			old |= m.raft_id == 103;
			fresh |= m.raft_id == 777 && m.role == Role::voter;
		}
		return fresh && !old;
	}));
	REQUIRE(c.wait([&] { return c.all_equal(); }));
	c.propose_ok(3, put_entry("here again"));
}

TEST_CASE("a leader that is no longer wanted hands over and is removed")
{
	Cluster c(3);
	c.await_three_voters();
	const int old = c.leader();
	const int other = old == 1 ? 2 : 1;
	c.propose_ok(other, json{{"op", "forget"}, {"host", old}}.dump());
	REQUIRE(c.wait([&] { return c.leader() != old && c.leader() != 0 && c.node(other).log->members().size() == 2; }));
	c.propose_ok(other, put_entry("two are left"));
}

TEST_CASE("a raft directory that was lost, or is in use, is not silently made anew")
{
	TempDir tmp;
	ConsensusOptions o;
	o.dir = raft_dir_of(tmp.path);
	o.self = {9, 4, {"127.0.0.1:1"}, Role::none};
	REQUIRE(ConsensusLog::prepare_join(o));
	REQUIRE(ConsensusLog::prepare_join(o));    // a join that was cut short is begun anew
	HostFile f{CLUSTER, "c", random_uuid(), 4, 9, "delta"};
	REQUIRE(store_host_file(tmp.path, f));
	REQUIRE(check_raft_dir(tmp.path, f));
	CHECK_FALSE(ConsensusLog::prepare_join(o));
	CHECK_FALSE(ConsensusLog::bootstrap(o));

	const auto loaded = load_host_file(tmp.path);
	REQUIRE(loaded);
	REQUIRE((*loaded).has_value());
	CHECK((**loaded).host_id == 4);
	CHECK((**loaded).raft_id == 9);
	CHECK((**loaded).host_uuid == f.host_uuid);
	CHECK((**loaded).cluster_uuid == CLUSTER);

	std::filesystem::remove_all(o.dir);
	const Done lost = check_raft_dir(tmp.path, f);
	REQUIRE_FALSE(lost);
	CHECK(lost.error().status == Status::forbidden);
	std::filesystem::create_directories(o.dir);    // emptied is as bad as gone
	CHECK_FALSE(check_raft_dir(tmp.path, f));
	std::ofstream(o.dir + "/member") << "8\n";    // another's is not ours
	CHECK_FALSE(check_raft_dir(tmp.path, f));

	std::ofstream(tmp.path + "/host.json") << "{\"format\": 1";
	CHECK_FALSE(load_host_file(tmp.path));
	std::filesystem::remove(tmp.path + "/host.json");
	const auto none = load_host_file(tmp.path);
	REQUIRE(none);
	CHECK_FALSE((*none).has_value());
}

TEST_CASE("snapshot envelope: every damage is found")
{
	const std::string payload = "some state that matters";
	const std::string good = wrap_snapshot(payload);
	CHECK(good.size() % 8 == 0);
	REQUIRE(unwrap_snapshot(good) == payload);
	CHECK(unwrap_snapshot(wrap_snapshot("")) == "");
	CHECK(crc32c("123456789") == 0xe3069283u);
	for (size_t i = 0; i < SNAPSHOT_HEADER_BYTES + payload.size(); i++) {
		if (i >= 12 && i < 16)
			continue;    // reserved
		std::string bad = good;
		bad[i] ^= 1;
		INFO("byte " << i);
		CHECK_FALSE(unwrap_snapshot(bad) == payload);
	}
	for (size_t n = 0; n < SNAPSHOT_HEADER_BYTES + payload.size(); n++)
		CHECK_FALSE(unwrap_snapshot(good.substr(0, n)));
}

TEST_CASE("once: copies of a proposal are known for long enough, and no longer")
{
	Once once;
	const auto id = [](size_t i) {
		std::string out(PROPOSAL_ID_BYTES, '\0');
		memcpy(out.data(), &i, sizeof i);
		return out;
	};
	CHECK_FALSE(once.result_of(id(0)));
	for (size_t i = 0; i < REMEMBERED + 10; i++)
		once.remember(id(i), i);
	once.remember(id(20), "another");
	Once copy;
	REQUIRE(copy.load(once.save()));
	for (Once *o : {&once, &copy}) {
		CHECK_FALSE(o->result_of(id(9)));
		for (size_t i = 10; i < REMEMBERED + 10; i++) {
			REQUIRE(o->result_of(id(i)));
			REQUIRE(*o->result_of(id(i)) == i);
		}
	}
	CHECK_FALSE(copy.load(json::object()));
	CHECK_FALSE(copy.load(json::array({1})));
	CHECK(copy.result_of(id(10)));    // a failed load changes nothing

	CHECK_FALSE(Once::too_late(1'000'000, 0));
	CHECK_FALSE(Once::too_late(5 + REMEMBERED, 5));
	CHECK(Once::too_late(6 + REMEMBERED, 5));

	const std::string wrapped = wrap_entry(id(3), 77, "payload");
	const auto e = unwrap_entry(wrapped);
	REQUIRE(e);
	CHECK(e->id == id(3));
	CHECK(e->first_try_at == 77);
	CHECK(e->payload == "payload");
	CHECK_FALSE(unwrap_entry("short"));
}

TEST_CASE("next_change: one step at a time, and never a step that risks more than it must")
{
	MembershipView v;
	v.self = 1;
	v.voter_replace_ms = 1000;
	std::set<int> silent, absent;
	v.silent_ms = [&](int host) { return silent.contains(host) ? 5000 : 0; };
	v.present = [&](const Member &m) { return !silent.contains(m.host) && !absent.contains(m.host); };
	const auto m = [](int id, Role role) { return Member{uint64_t(id), id, {"10.0.0.1:7788"}, role}; };
	const auto next = [&] { return next_change(v); };

	CHECK(voters_wanted(1) == 1);
	CHECK(voters_wanted(2) == 2);
	CHECK(voters_wanted(4) == 3);
	CHECK(voters_wanted(5) == 5);
	CHECK(voters_wanted(64) == 5);

	v.current = {m(1, Role::voter)};
	CHECK_FALSE(next());    // an empty wish changes nothing
	v.wanted = {m(1, Role::none), m(2, Role::none)};
	REQUIRE(next());
	CHECK(next()->what == MembershipChange::add);
	CHECK(next()->member.raft_id == 2);
	v.current.push_back(m(2, Role::none));
	CHECK(next()->what == MembershipChange::make_learner);
	v.current[1].role = Role::learner;
	CHECK(next()->what == MembershipChange::make_voter);
	absent = {2};
	CHECK_FALSE(next());    // not there: a voter that is away would cost the quorum
	absent = {};

	v.wanted = {m(1, Role::none), m(2, Role::none), m(3, Role::none), m(4, Role::none)};
	v.current = {m(1, Role::voter), m(2, Role::voter), m(3, Role::voter), m(4, Role::learner)};
	CHECK_FALSE(next());
	silent = {3};
	CHECK(next()->what == MembershipChange::make_voter);
	CHECK(next()->member.raft_id == 4);
	v.current[3].role = Role::voter;
	CHECK(next()->what == MembershipChange::make_learner);
	CHECK(next()->member.raft_id == 3);
	v.current[2].role = Role::learner;
	CHECK_FALSE(next());    // and the dead one is not promoted back
	silent = {3, 4};
	CHECK_FALSE(next());    // nobody is there to take over from 4

	silent = {};
	v.wanted = {m(2, Role::none), m(4, Role::none)};
	v.current = {m(1, Role::voter), m(2, Role::voter), m(3, Role::learner), m(4, Role::voter)};
	CHECK(next()->what == MembershipChange::remove);
	CHECK(next()->member.raft_id == 3);
	v.current.erase(v.current.begin() + 2);
	CHECK(next()->what == MembershipChange::make_learner);    // two hosts, two voters: not the leader first
	CHECK(next()->member.raft_id != 1);
	v.current = {m(1, Role::voter), m(2, Role::voter)};
	v.wanted = {m(2, Role::none)};
	CHECK(next()->what == MembershipChange::make_learner);
}

TEST_CASE("members are kept in raft's address field")
{
	const Member in{12, 7, {"10.77.2.1:7788", "[fd00::1]:7788"}, Role::none};
	CHECK(encode_member(in) == "12/7/10.77.2.1:7788,[fd00::1]:7788");
	const auto out = decode_member(encode_member(in));
	REQUIRE(out);
	CHECK(out->raft_id == 12);
	CHECK(out->host == 7);
	CHECK(out->addresses == in.addresses);
	for (const char *bad : {"", "12", "12/", "12/7", "/7/a", "0/7/a", "12/65/a", "12/0/a", "x/7/a", "12/-1/a"})
		CHECK_FALSE(decode_member(bad));
}
