// SPDX-License-Identifier: GPL-2.0-or-later
//
// suspend-io and resume-io, by the reconciler of the host that serves, over a kernel that is played.
#include "ready.h"

#include <catch2/generators/catch_generators.hpp>

using namespace lockstep;
using namespace lockstep::test;

namespace {

struct Serving : Open {
	std::optional<Result<Json>> answer;
	void suspend() { w.daemon().suspend_writes(vid, 77, [this](Result<Json> a) { answer = std::move(a); }); }
	void resume() { w.daemon().resume_writes(vid, [this](Result<Json> a) { answer = std::move(a); }); }
	bool answered() { return w.run_until([&] { return answer.has_value(); }); }
	Json report() { return w.daemon().soft_report()["volumes"][std::to_string(vid)]; }
	size_t logged(const std::string &part)
	{
		return size_t(std::count_if(w.log_lines.begin(), w.log_lines.end(), [&](const std::string &line) { return line.find(part) != line.npos; }));
	}
	void suspended()
	{
		suspend();
		REQUIRE(answered());
		REQUIRE(*answer);
		answer.reset();
	}
};

}    // namespace

TEST_CASE("suspended writes stay so, much longer than a lease, until they are resumed")
{
	Serving s;
	s.suspended();
	CHECK(s.report()["suspended_since_ms"] == 77);
	const uint64_t hold = s.kernel().hold;
	REQUIRE(hold);
	s.w.run_for(10 * HOLD_MS);
	CHECK(s.kernel().hold == hold);
	CHECK(s.report()["suspended_since_ms"] == 77);
	SECTION("asked for again, it is the same")
	{
		s.suspended();
		CHECK(s.kernel().hold == hold);
	}
	s.resume();
	REQUIRE(s.answered());
	CHECK(*s.answer);
	CHECK(s.kernel().hold == 0);
	CHECK_FALSE(s.report().contains("suspended_since_ms"));
	s.w.run_for(10 * HOLD_MS);
	CHECK(s.kernel().hold == 0);
	s.resume();
	REQUIRE(s.answered());
	CHECK(s.answer->error().status == Status::forbidden);
	CHECK(s.logged("suspended until") == 1);
	CHECK(quiet(s.w));
}

TEST_CASE("a suspension that the kernel has ended is over, and is not begun anew by itself")
{
	Serving s;
	s.suspended();
	const bool told = GENERATE(true, false);    // or the kernel's event is lost
	if (told)
		s.w.unquiesce(s.vid);
	else
		s.kernel().hold = 0;
	s.w.run_for(3 * DUMP_PERIOD_MS);
	CHECK(s.kernel().hold == 0);
	CHECK_FALSE(s.report().contains("suspended_since_ms"));
	CHECK(s.logged("suspended no more") == 1);
	SECTION("whoever resumes is told")
	{
		s.resume();
		REQUIRE(s.answered());
		CHECK(s.answer->error().status == Status::failed);
		CHECK(s.answer->error().message.find("not of one point") != std::string::npos);
	}
	SECTION("whoever suspends anew gets a new one")
	{
		s.suspended();
		CHECK(s.kernel().hold);
	}
	CHECK(quiet(s.w));
}

TEST_CASE("a suspension ends with the daemon that renews it")
{
	Serving s;
	s.suspended();
	s.w.kill_daemon();
	SECTION("that comes back at once")
	{
		s.w.start_daemon();
		REQUIRE(s.w.run_until([&] { return !s.kernel().hold; }, HOLD_MS));
	}
	SECTION("that stays away: the kernel lets the writes go on")
	{
		s.w.now_ms += HOLD_MS;
		s.w.move_on();
		CHECK_FALSE(s.kernel().hold);
		s.w.start_daemon();
	}
	s.w.run_for(10'000);
	CHECK_FALSE(s.kernel().hold);
	s.resume();
	REQUIRE(s.answered());
	CHECK(s.answer->error().message.find("are not suspended") != std::string::npos);
}

TEST_CASE("what does not drain is not suspended, and goes on")
{
	Serving s;
	s.w.drains = false;
	s.suspend();
	REQUIRE(s.answered());
	CHECK(s.answer->error().message.find("did not end within 10 s") != std::string::npos);
	s.w.run_for(1000);
	CHECK(s.kernel().hold == 0);
}

TEST_CASE("no snapshot of a suspended volume is taken, and it stays suspended")
{
	Serving s;
	s.suspended();
	const uint64_t hold = s.kernel().hold;
	s.w.propose({{"op", "snapshot.create"}, {"name", "s1"}, {"vids", {s.vid}}, {"uuids", {UUID3}}, {"now_ms", 1}});
	s.w.run_for(5000);
	CHECK(s.w.state.snapshots.empty());
	REQUIRE(s.w.state.snapshot_failures.size() == 1);
	CHECK(s.w.state.snapshot_failures.begin()->second.message.find("`lockstep resume-io db1`") != std::string::npos);
	CHECK(s.kernel().hold == hold);
}
