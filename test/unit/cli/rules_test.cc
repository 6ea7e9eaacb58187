// SPDX-License-Identifier: GPL-2.0-or-later
//
// Labels of hosts, rules of placement and pins, as a user sets and sees them.
#include "fake.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct Labelled : FakeDaemon {
	Labelled()
	{
		for (auto [host, rack] : {std::pair("alpha", "rack=r1"), std::pair("beta", "rack=r1"), std::pair("gamma", "rack=r2")})
			REQUIRE(run({"host", "label", host, rack}).status == 0);
	}
};

}    // namespace

TEST_CASE("host label: set, shown, removed")
{
	Labelled d;
	CHECK(d.run({"host", "label", "alpha"}).out == "rack=r1\n");
	CHECK(d.run({"host", "label", "alpha", "rack=", "site=north pole"}).out == "site=north pole\n");
	CHECK(d.json_of({"host", "list", "--json"})[0]["labels"] == json{{"site", "north pole"}});
	CHECK(d.run({"host", "label", "alpha", "site="}).out == "host alpha has no labels\n");
	CHECK(has(d.run({"host", "label", "alpha", "rack"}).err, "neither LABEL=VALUE nor"));
	CHECK(d.run({"host", "label", "nobody", "a=b"}).status == 3);
	CHECK(d.run({"host", "label", "nobody"}).status == 3);
}

TEST_CASE("volume create with rules, which are shown, changed and taken back; a refusal says of each host which rule it fails")
{
	Labelled d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--different", "rack"}).status == 0);
	CHECK(d.volume("v").replica(3));
	CHECK(d.run({"volume", "rules", "v"}).out == "volume v: different rack\n");
	CHECK(has(d.run({"status", "v"}).out, "different rack"));
	Outcome o = d.run({"volume", "create", "w", "1GiB", "--redundancy", "3", "--different", "rack", "--avoid", "gamma"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "gamma: is to be avoided"));
	CHECK(has(o.err, ": its rack is r1, as that of "));
	REQUIRE(d.run({"volume", "create", "x", "1GiB", "--redundancy", "1", "--apart-from", "v"}).status == 0);
	CHECK(d.run({"volume", "rules", "x"}).out == "volume x: apart from v\n");
	CHECK(d.run({"volume", "rules", "v", "--different", "none", "--same", "rack", "--avoid", "alpha,beta"}).status == 0);
	o = d.run({"volume", "rules", "v"});
	CHECK(has(o.out, "volume v: same rack; avoid alpha, beta\n"));
	CHECK(has(o.out, "  ! the replica on host gamma is misplaced, and stays there for now: its rack is r2, not that of "));
	CHECK(has(d.run({"status"}).out, "  ! volume v: its replica on host gamma is misplaced: its rack is r2"));
	CHECK(has(d.run({"why", "v"}).out, "its replica on host gamma is where its rules do not want it"));
	CHECK(d.run({"volume", "rules", "v", "--same", "none", "--avoid", "none"}).out == "volume v: no rules\n");
	CHECK(d.run({"volume", "rules", "nothing"}).status == 3);
	CHECK(d.run({"volume", "rules", "v", "--apart-from", "nothing"}).status == 3);
	CHECK(d.run({"volume", "rules", "v", "--avoid", "nobody"}).status == 3);
	CHECK(d.run({"volume", "rules", "v", "--same", "a b"}).status == 2);
}

TEST_CASE("group rules hold for its volumes")
{
	Labelled d;
	d.good({{"op", "group.create"}, {"name", "g"}, {"pool", "default"}});
	CHECK(d.run({"group", "rules", "g"}).out == "group g: no rules\n");
	CHECK(d.run({"group", "rules", "g", "--different", "rack"}).out == "group g: different rack\n");
	json entry = {{"op", "volume.create"}, {"name", "in"}, {"uuid", uuid(77)}, {"size_bytes", GIB}, {"group", "g"}, {"redundancy", 3}, {"now_ms", 1}};
	CHECK(d.apply(entry)["code"] == "too-few-hosts");
	CHECK(d.run({"group", "rules", "none"}).status == 3);
	CHECK(d.run({"group", "rules", "none", "--same", "rack"}).status == 3);
}

TEST_CASE("volume replica pin and unpin")
{
	Labelled d;
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--on", "alpha,beta"}).status == 0);
	CHECK(d.run({"volume", "replica", "pin", "v", "beta"}).out == "the replica of volume v on beta stays there\n");
	d.attach_all();
	CHECK(has(d.run({"status"}).out, "beta insync, pinned"));
	CHECK(has(d.run({"volume", "replica", "move", "v", "beta"}).err, "is pinned: unpin it first"));
	CHECK(has(d.run({"host", "evacuate", "beta"}).err, "is pinned there"));
	CHECK(d.run({"volume", "replica", "unpin", "v", "beta"}).out == "the replica of volume v on beta may go\n");
	CHECK(d.run({"volume", "replica", "pin", "v", "gamma"}).status == 3);
	CHECK(d.run({"host", "evacuate", "beta", "--no-wait"}).status == 0);
}

TEST_CASE("several changes in one request: if one is refused, none is made")
{
	FakeDaemon d(3);
	d.good({{"op", "group.create"}, {"name", "g"}, {"pool", "default"}, {"redundancy", 2}});
	REQUIRE(d.run({"volume", "create", "v", "1GiB", "--redundancy", "2"}).status == 0);
	const Client client(FakeDaemon::socket_path());
	Result<json> answer = client.patch("/v1/groups/g", {{"redundancy", 3}, {"rules", {{"same", "a b"}}}});
	REQUIRE_FALSE(answer);
	CHECK(has(answer.error().message, "\"a b\" is no label"));
	CHECK(d.state()->groups.at("g").redundancy == 2);
	answer = client.patch("/v1/volumes/v", {{"no_quorum", "error"}, {"rules", {{"same", "a b"}}}});
	REQUIRE_FALSE(answer);
	CHECK(d.state()->volume_named("v")->no_quorum == NoQuorum::freeze);
	REQUIRE(client.patch("/v1/groups/g", {{"redundancy", 3}, {"rules", {{"same", "rack"}}}}));
	CHECK(d.state()->groups.at("g").redundancy == 3);
	CHECK(d.state()->groups.at("g").rules.same == "rack");
}
