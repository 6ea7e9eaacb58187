// SPDX-License-Identifier: GPL-2.0-or-later
//
// A verify that outlives its primary, by the reconciler of the next one, over a kernel that is played.
#include "ready.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

// beta serves the volume and verifies it.
struct OnBeta : Open {
	OnBeta()
	{
		serve(2);
		said({{"total_blocks", 100}, {"done_blocks", 40}, {"differ_blocks", 3}, {"repair", true}, {"begun_ms", 77}});
	}
	void serve(int host)
	{
		tell(w, {{"op", "record.failover"}, {"vid", vid}, {"version", volume().version}, {"primary", host}, {"keep", {1, 2}}});
		REQUIRE(volume().primary == host);
		REQUIRE(w.run_until([&] { return (kernel().role == LKS_ACTIVE) == (host == 1) && kernel().noted_version == volume().version; }));
	}
	void said(Json verify, const char *role = "active")
	{
		Json v = {{"role", role}};
		if (!verify.is_null())
			v["verify"] = std::move(verify);
		w.daemon().heard(2, {{"volumes", {{std::to_string(vid), v}}}});
	}
	Json report() { return w.daemon().soft_report()["volumes"][std::to_string(vid)]; }
};

}    // namespace

TEST_CASE("a verify goes on where the primary before was")
{
	OnBeta e;
	e.said(nullptr, "idle");    // it has handed over, and does not know of it any more
	e.serve(1);
	REQUIRE(e.w.run_until([&] { return e.report().contains("verify"); }));
	CHECK((e.kernel().verify_done == 40 && e.kernel().verify_differ == 3 && e.kernel().verify_repair));
	CHECK(e.report()["verify"]["begun_ms"] == 77);
	CHECK(std::count_if(e.w.log_lines.begin(), e.w.log_lines.end(), [](const std::string &line) { return line.find("goes on here") != line.npos; }) == 1);
	e.kernel().verify_total = 0;    // an end is one
	e.w.run_for(60'000);
	CHECK(e.kernel().verify_total == 0);
}

TEST_CASE("a verify that has ended, was stopped or replaced does not go on elsewhere")
{
	OnBeta e;
	SECTION("ended") { e.said({{"total_blocks", 100}, {"done_blocks", 100}, {"differ_blocks", 3}, {"begun_ms", 77}}); }
	SECTION("stopped") { e.said(nullptr); }
	SECTION("replaced by one here that has ended")
	{
		e.kernel().verify_total = e.kernel().verify_done = 50;
		e.w.daemon().kernel_changed();
		e.w.run_for(5000);
	}
	SECTION("not a report") { e.said("rubbish"); }
	e.serve(1);
	e.w.run_for(5000);
	CHECK_FALSE(e.kernel().verify_done == 40);
}

TEST_CASE("only the primary's word on a verify counts")
{
	OnBeta e;
	e.serve(1);
	REQUIRE(e.w.run_until([&] { return e.kernel().verify_done == 40; }));
	e.kernel().verify_total = e.kernel().verify_done = 0;
	e.w.daemon().kernel_changed();
	e.w.run_for(5000);
	e.said({{"total_blocks", 100}, {"done_blocks", 60}, {"begun_ms", 78}});    // late
	e.w.run_for(120'000);
	CHECK(e.kernel().verify_done == 0);
}
