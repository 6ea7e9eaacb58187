// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the leader decides and cannot have carried out: tried again now and then, while all else goes on.
#include <catch2/catch_test_macros.hpp>

#include <deque>

#include "lockstepd/host/decisions.h"

using namespace lockstep;
using nlohmann::json;

namespace {

// A leader that decides the same until it has been carried out.
struct Leader {
	void look(uint64_t now_ms)
	{
		if (decisions.busy())
			return;
		looks++;
		std::vector<json> decided;
		for (json entry : wanted) {
			entry["now_ms"] = now_ms;
			decided.push_back(entry);
		}
		decisions.propose(std::move(decided), now_ms, [this, now_ms] { look(now_ms); });
	}

	// The log answers what is on its way.
	void answer()
	{
		while (!under_way.empty()) {
			auto [entry, done] = std::move(under_way.front());
			under_way.pop_front();
			std::erase_if(wanted, [&](const json &w) { return w["op"] == entry["op"]; });
			done(json{{"ok", true}});
		}
	}

	int proposed(const std::string &op) { return count[op]; }

	std::vector<json> wanted;
	std::map<std::string, int> count;
	std::map<std::string, std::string> refusals;    // operation -> why, at once
	std::deque<std::pair<json, std::function<void(Result<json>)>>> under_way;
	std::vector<std::string> lines;
	int looks = 0;
	Decisions decisions{[this](json entry, std::function<void(Result<json>)> done) {
				    const std::string op = entry["op"];
				    count[op]++;
				    if (refusals.contains(op))
					    done(forbidden(refusals[op]));
				    else
					    under_way.emplace_back(std::move(entry), std::move(done));
			    },
			    [this](const std::string &line) { lines.push_back(line); }};
};

}    // namespace

TEST_CASE("a decision that is refused at once is proposed again after a pause, and holds up no other")
{
	Leader leader;
	leader.wanted = {{{"op", "new"}}, {{"op", "old"}}};
	leader.refusals["new"] = "host beta runs an older lockstepd";
	leader.look(1000);
	REQUIRE(leader.looks == 1);    // and not for ever, each within the one before
	CHECK(leader.decisions.busy());
	leader.answer();
	CHECK(leader.looks == 2);    // something was carried out: what now?
	CHECK(leader.proposed("old") == 1);
	CHECK(leader.proposed("new") == 1);

	for (uint64_t now = 1000; now < 1000 + Decisions::RETRY_MIN_MS; now += 10)
		leader.look(now);
	CHECK(leader.proposed("new") == 1);
	// A minute of looks: the pauses grow, and it is said once.
	for (uint64_t now = 1000 + Decisions::RETRY_MIN_MS; now < 61000; now += 10)
		leader.look(now);
	CHECK(leader.proposed("new") > 5);
	CHECK(leader.proposed("new") < 15);
	CHECK(leader.lines == std::vector<std::string>{"a decision was not carried out: host beta runs an older lockstepd"});

	leader.refusals.clear();
	leader.look(61000 + Decisions::RETRY_MAX_MS);
	leader.answer();
	CHECK(leader.wanted.empty());
	CHECK(!leader.decisions.busy());
}

TEST_CASE("what is decided anew, or by a leader anew, does not wait for a pause")
{
	Leader leader;
	leader.wanted = {{{"op", "new"}, {"vid", 1}}};
	leader.refusals["new"] = "no";
	leader.look(1000);
	leader.wanted = {{{"op", "new"}, {"vid", 2}}};
	leader.look(1001);
	CHECK(leader.proposed("new") == 2);
	// It was not decided meanwhile: it is another decision now.
	leader.wanted = {{{"op", "new"}, {"vid", 1}}};
	leader.look(1002);
	CHECK(leader.proposed("new") == 3);
	leader.look(1003);
	CHECK(leader.proposed("new") == 3);
	leader.decisions.forget();
	leader.look(1004);
	CHECK(leader.proposed("new") == 4);
}
