// SPDX-License-Identifier: GPL-2.0-or-later
//
// Rolling updates. level1.json was written by a program of feature level 1 and is never changed: a log, and the state that the program made of it.
#include "fixture.h"

#include "lockstepd/cluster/recover.h"

#include <filesystem>
#include <fstream>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

json frozen()
{
	const fs::path here = fs::path(__FILE__).is_absolute() ? fs::path(__FILE__).parent_path() : fs::path("test/unit/cluster");
	std::ifstream in(here / "level1.json");
	REQUIRE(in);
	return json::parse(in);
}

State of_snapshot(const json &j)
{
	const std::vector<uint8_t> bytes = json::to_cbor(j);
	auto state = restore(bytes);
	INFO((state ? "" : state.error().message));
	REQUIRE(state);
	return *state;
}

}    // namespace

TEST_CASE("the log and the snapshot of a program of level 1 lead to one and the same state")
{
	const json old = frozen();
	State replayed;
	for (const json &entry : old["log"])
		apply_bytes(replayed, replayed.applied + 1, json::to_cbor(entry));
	REQUIRE(replayed.applied == old["log"].size());
	CHECK(check(replayed) == "");
	State restored = of_snapshot(old["state"]);
	// It noted its own level for each host under another name.
	for (auto &[id, host] : restored.hosts)
		CHECK(host.level == 1);
	CHECK(replayed == restored);
	// All that it kept is kept, under the same names.
	const json now = to_json(replayed);
	for (const auto &[key, value] : old["state"].items()) {
		INFO(key);
		REQUIRE(now.contains(key));
		if (value.is_array() && !value.empty() && value[0].is_object() && key != "tokens") {
			for (size_t i = 0; i < value.size(); i++)
				for (const auto &[field, v] : value[i].items())
					CHECK(now[key][i][field] == v);
		} else {
			CHECK(now[key] == value);
		}
	}
}

TEST_CASE("what a program of level 1 has always understood is proposed as level 1")
{
	const json old = frozen();
	for (const json &entry : old["log"]) {
		json bare = entry;
		bare.erase("level");
		INFO(bare.dump());
		CHECK(json::from_cbor(encode(bare))["level"] == entry["level"]);
	}
}

TEST_CASE("what needs a higher level is not proposed while a host runs an older program, and stops that program if it is")
{
	Cluster c;
	c.form();
	const json rejoin = {{"op", "host.rejoin"}, {"host", 2}, {"raft_id", 2}};
	CHECK(json::from_cbor(encode(rejoin))["level"] == 2);
	CHECK(has(level_obstacle(c.state, rejoin), "host alpha runs an older lockstepd (feature level 1, this needs 2): update it first"));
	for (HostId host : {1, 3})
		c.good({{"op", "host.set"}, {"host", host}, {"addresses", c.state.host(host)->addresses}, {"host_level", 2}});
	CHECK(has(level_obstacle(c.state, rejoin), "host beta"));
	CHECK(level_obstacle(c.state, {{"op", "option.set"}}) == "");
	// The dead need not be updated.
	CHECK(level_obstacle(c.state, recover_entry(c.state, 1, {2}, {}, 5)) == "");
	CHECK(has(level_obstacle(c.state, recover_entry(c.state, 1, {3}, {}, 5)), "host beta"));
	c.good({{"op", "host.set"}, {"host", 2}, {"addresses", c.state.host(2)->addresses}, {"host_level", 2}});
	CHECK(level_obstacle(c.state, rejoin) == "");
	CHECK(c.state.level == 1);
	c.good(rejoin);
	CHECK(c.state.level == 2);
	// From now on no program of level 1 can follow this log.
	CHECK(has(c.bad(5, Cluster::host_entry(4, "delta")), "too old for this cluster"));
	c.good(with(Cluster::host_entry(4, "delta"), {{"host_level", 2}}));
	CHECK_THROWS(apply(c.state, c.index + 1, {{"op", "option.set"}, {"level", LEVEL + 1}}));
	CHECK(json::from_cbor(encode(with(Cluster::host_entry(5, "e"), {{"witness", true}})))["level"] == 2);
	CHECK(json::from_cbor(encode({{"op", "volume.delete"}, {"name", "v"}, {"force", true}}))["level"] == 2);
}
