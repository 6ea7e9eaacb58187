// SPDX-License-Identifier: GPL-2.0-or-later
//
// Lanes of host beta (2) with alpha (1, who dials beta) and gamma (3, whom beta dials), in a fake world.
#include <catch2/catch_test_macros.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <deque>

#include "lockstepd/host/lanes.h"
#include "lockstepd/net/listener.h"

using namespace lockstep;

namespace {

using Json = nlohmann::json;

struct Net {
	State state;
	KernelDump dump;
	std::set<HostId> linked = {1, 2, 3};
	std::map<HostId, std::string> paths = {{3, "10.0.0.3:7788"}};
	std::deque<std::function<void()>> queue;
	uint64_t now = 10'000;
	std::vector<std::string> log_lines;

	Json prepared = {{"ready", true}, {"link", 0}};    // what gamma answers
	bool call_fails = false, dial_fails = false, add_fails = false;
	bool comes_up = true;                              // the kernel calls a link up when all lanes are there
	int calls = 0;
	std::vector<std::pair<uint32_t, uint64_t>> dialed; // lane, link
	std::vector<std::pair<HostId, uint64_t>> added;    // host, link
	std::vector<std::pair<HostId, uint64_t>> wants;    // to, link
	std::vector<int> given;                            // descriptors handed to lane_add
	unsigned lanes = 1;
	std::unique_ptr<Lanes> l;

	explicit Net(unsigned count = 1) : lanes(count)
	{
		const char *names[] = {"alpha", "beta", "gamma"};
		for (HostId id : {1, 2, 3}) {
			state.hosts[id].id = id;
			state.hosts[id].name = names[id - 1];
			if (id != 2)
				dump.peers[id] = {id, 0, 0, false};
		}
		LanesWorld w;
		w.state = [this]() -> const State & { return state; };
		w.dump = [this] { return &dump; };
		w.link_up = [this](HostId host) { return linked.contains(host); };
		w.path = [this](HostId host) { return paths[host]; };
		w.call = [this](HostId, const std::string &verb, Json, std::function<void(Result<Json>)> done) {
			CHECK(verb == "lane.prepare");
			calls++;
			queue.push_back([this, done] {
				if (call_fails)
					done(failed("connection lost"));
				else
					done(prepared);
			});
		};
		w.notify = [this](HostId host, const std::string &verb, Json body) {
			CHECK(verb == "lane.want");
			wants.emplace_back(host, body.at("link").get<uint64_t>());
		};
		w.dial = [this](const Host &host, uint32_t lane, uint32_t of, uint64_t link, std::function<void(Result<int>)> done) {
			CHECK(host.id == 3);
			CHECK(of == lanes);
			dialed.emplace_back(lane, link);
			queue.push_back([this, done] {
				if (dial_fails)
					done(failed("connection refused"));
				else
					done(7);
			});
		};
		w.lane_add = [this](HostId host, uint8_t, uint8_t, uint64_t link, int fd, std::function<void(Done)> done) {
			added.emplace_back(host, link);
			given.push_back(fd);
			queue.push_back([this, host, link, done] {
				if (add_fails)
					return done(failed("an older link"));
				done(Nothing{});
				if (comes_up && added.size() % lanes == 0)
					dump.peers[host] = {host, link, uint8_t(lanes), true};
			});
		};
		w.now_ms = [this] { return now; };
		w.log_about = [this](const std::string &, const std::string &line) { log_lines.push_back(line); };
		l = std::make_unique<Lanes>(2, lanes, std::move(w));
	}

	void run_for(uint64_t ms)
	{
		for (const uint64_t end = now + ms; now < end; now += 100) {
			l->look();
			while (!queue.empty()) {
				auto task = std::move(queue.front());
				queue.pop_front();
				task();
			}
		}
	}
};

}    // namespace

TEST_CASE("lanes follow the daemons' link to another address")
{
	Net n;
	n.run_for(3000);
	CHECK(n.dialed.size() == 1);
	n.l->path_changed(3, "10.0.0.3:7788");
	n.l->path_changed(1, "10.0.1.1:7788");    // that one dials us
	n.l->path_changed(3, "");
	n.run_for(1000);
	CHECK(n.dialed.size() == 1);
	n.paths[3] = "10.0.1.3:7788";
	n.l->path_changed(3, "10.0.1.3:7788");
	n.run_for(200);
	CHECK(n.dialed.size() == 2);
	CHECK(n.dialed[1].second > n.dialed[0].second);
	n.l->path_changed(3, "10.0.1.3:7788");
	n.run_for(3000);
	CHECK(n.dialed.size() == 2);
	CHECK(n.l->problems().empty());
}

TEST_CASE("the lower id dials, once, with a number above both kernels'")
{
	Net n;
	n.dump.peers[3].link = 4;
	n.prepared["link"] = 9;
	n.run_for(3000);
	CHECK(n.dialed == std::vector<std::pair<uint32_t, uint64_t>>{{0, 10}});
	CHECK(n.added == std::vector<std::pair<HostId, uint64_t>>{{3, 10}});
	CHECK(n.dump.peers[3].up);
	CHECK(n.l->problems().empty());
}

TEST_CASE("all lanes of a link carry one number")
{
	Net n(3);
	n.run_for(1000);
	CHECK(n.dialed == std::vector<std::pair<uint32_t, uint64_t>>{{0, 2}, {1, 2}, {2, 2}});
	CHECK(n.added.size() == 3);
}

TEST_CASE("a lost link is dialed again with a new number")
{
	Net n;
	n.run_for(1000);
	REQUIRE(n.dump.peers[3].up);
	n.dump.peers[3].up = false;
	n.run_for(1000);
	CHECK(n.dialed.size() == 2);
	CHECK(n.dialed[1].second == 4);
	CHECK(n.dump.peers[3].up);
}

TEST_CASE("failures are retried with back-off and logged once")
{
	Net n;
	SECTION("the peer's daemon does not answer") { n.call_fails = true; }
	SECTION("the peer's kernel is not ready") { n.prepared = {{"ready", false}, {"message", "its kernel is not ready for us yet"}}; }
	SECTION("the connection fails") { n.dial_fails = true; }
	SECTION("the kernel refuses the lane") { n.add_fails = true; }
	n.run_for(300);
	CHECK(n.calls == 2);
	CHECK(n.log_lines.empty());    // it may just have started
	n.run_for(30'000);
	CHECK(n.calls > 8);
	CHECK(n.calls < 20);
	CHECK(n.log_lines.size() == 1);
	CHECK(n.l->problems().size() == 1);
	n.call_fails = n.dial_fails = n.add_fails = false;
	n.prepared = {{"ready", true}, {"link", 0}};
	n.run_for(4000);
	CHECK(n.dump.peers[3].up);
	CHECK(n.l->problems().empty());
}

TEST_CASE("a link that does not come up is given up in time, or when the kernel says so")
{
	Net n;
	n.comes_up = false;
	n.run_for(LANE_UP_TIMEOUT_MS - 500);
	CHECK(n.dialed.size() == 1);
	n.run_for(2000);
	CHECK(n.dialed.size() == 2);
	const uint64_t link = n.dialed[1].second;
	n.l->link_down(3, link - 1);    // an older one: no news
	n.run_for(1000);
	CHECK(n.dialed.size() == 2);
	n.l->link_down(3, link);
	n.run_for(1500);
	CHECK(n.dialed.size() == 3);
}

TEST_CASE("without a connection of the daemons nothing is dialed")
{
	Net n;
	n.linked.erase(3);
	n.run_for(5000);
	CHECK(n.calls == 0);
	n.linked.insert(3);
	n.run_for(200);
	CHECK(n.calls == 1);
}

TEST_CASE("the higher id does not dial but says that it wants a link, until it has one")
{
	Net n;
	n.dump.peers[1].link = 5;
	n.run_for(2000);
	CHECK(n.wants.size() == 4);
	for (auto want : n.wants)
		CHECK(want == std::pair<HostId, uint64_t>{1, 5});
	CHECK(n.added == std::vector<std::pair<HostId, uint64_t>>{{3, 2}});
	n.dump.peers[1].up = true;
	n.run_for(2000);
	CHECK(n.wants.size() == 4);
}

TEST_CASE("a peer that lost its end gets a new link, but not because of a want that crossed the link")
{
	Net n;
	n.run_for(300);
	REQUIRE(n.dump.peers[3].up);
	n.l->wanted(3, 0);
	n.run_for(500);
	CHECK(n.dialed.size() == 1);
	n.run_for(LANE_WANT_GRACE_MS);
	n.l->wanted(3, 0);
	n.run_for(500);
	CHECK(n.dialed.size() == 2);
	CHECK(n.dialed[1].second == 4);
	// A want from a host that is to dial itself is none of ours.
	n.dump.peers[1].up = true;
	n.l->wanted(1, 0);
	n.run_for(500);
	CHECK(n.dialed.size() == 2);
}

TEST_CASE("lanes are made anew when the option lane-encryption changes, also by a daemon that was away meanwhile")
{
	Net n;
	n.run_for(300);
	REQUIRE(n.dump.peers[3].up);
	CHECK_FALSE(link_is_plain(n.dump.peers[3].link));
	n.state.options["lane-encryption"] = "off";
	n.run_for(500);
	CHECK(link_is_plain(n.dump.peers[3].link));
	CHECK(n.dialed.size() == 2);
	n.run_for(3000);
	CHECK(n.dialed.size() == 2);

	// The option changes while this daemon is dead; its kernel goes on.
	Net later;
	later.dump = n.dump;
	later.prepared["link"] = n.dump.peers[3].link;
	later.run_for(500);
	CHECK_FALSE(link_is_plain(later.dump.peers[3].link));
	CHECK(later.dump.peers[3].link > n.dump.peers[3].link);
	CHECK(later.dialed.size() == 1);

	// The other host has not heard of it yet: the old lanes stay meanwhile.
	later.state.options["lane-encryption"] = "off";
	later.dial_fails = true;
	later.run_for(2000);
	CHECK(later.dump.peers[3].up);
	CHECK_FALSE(link_is_plain(later.dump.peers[3].link));
	CHECK(later.log_lines.size() <= 4);
	later.dial_fails = false;
	later.run_for(RETRY_MAX_MS + 500);
	CHECK(link_is_plain(later.dump.peers[3].link));
}

TEST_CASE("an accepted lane goes to the kernel; a senseless one is closed")
{
	Net n;
	n.l->accepted(1, 0, 1, 8, 70);
	n.run_for(100);
	CHECK(n.added[0] == std::pair<HostId, uint64_t>{1, 8});
	CHECK(n.given[0] == 70);
	CHECK(n.l->prepare(1).at("link") == 8);
	const size_t added = n.added.size();
	struct {
		HostId from;
		uint32_t lane, lanes;
	} const senseless[] = {{3, 0, 1}, {9, 0, 1}, {1, 1, 1}, {1, 0, 0}, {1, 0, LKS_MAX_LANES + 1}};
	for (auto s : senseless) {
		int fd = open("/dev/null", O_RDONLY);
		REQUIRE(fd >= 0);
		n.l->accepted(s.from, s.lane, s.lanes, 9, fd);
		CHECK(fcntl(fd, F_GETFD) == -1);
	}
	CHECK(n.added.size() == added);
}

TEST_CASE("a kernel that does not know the peer yet is not ready")
{
	Net n;
	n.dump.peers.erase(1);
	CHECK(n.l->prepare(1).at("ready") == false);
	CHECK(n.l->prepare(3).at("ready") == true);
}
