// SPDX-License-Identifier: GPL-2.0-or-later
//
// Who may use the API over TLS stands in the log: one key for each name.
#include "fixture.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

json client(const std::string &name, char key, uint64_t end_ms = 1000, uint64_t now_ms = 10)
{
	return {{"op", "client.add"}, {"name", name}, {"role", "read-only"}, {"key", std::string(64, key)}, {"end_ms", end_ms}, {"now_ms", now_ms}};
}

}    // namespace

TEST_CASE("a client of the API is known by one key, until it is replaced or removed")
{
	Cluster c;
	c.form();
	CHECK(c.good(client("monitor", '1'))["changed"] == true);
	CHECK(c.good(client("monitor", '1'))["changed"] == false);
	CHECK(c.state.clients.at("monitor") == ApiClient{"read-only", std::string(64, '1'), 1000});
	// The earlier one counts no more.
	c.good(with(client("monitor", '2'), {{"role", "admin"}}));
	CHECK(c.state.clients.size() == 1);
	CHECK(c.state.clients.at("monitor") == ApiClient{"admin", std::string(64, '2'), 1000});
	// It outlives a snapshot of the log.
	const auto again = restore(snapshot(c.state));
	REQUIRE(again);
	CHECK(again->clients == c.state.clients);
	CHECK(c.good({{"op", "client.remove"}, {"name", "monitor"}})["changed"] == true);
	CHECK(c.good({{"op", "client.remove"}, {"name", "monitor"}})["changed"] == false);
	CHECK(c.state.clients.empty());
}

TEST_CASE("clients of the API that make no sense are refused")
{
	Cluster c;
	c.form();
	c.bad(2, with(client("m", '1'), {{"role", "root"}}));
	c.bad(2, with(client("m", '1'), {{"key", "11"}}));
	c.bad(2, with(client("m", '1'), {{"name", "a:b"}}));
	c.bad(2, with(client("m", '1'), {{"name", ""}}));
	CHECK(has(c.bad(2, client("m", '1', 10, 10)), "ended already"));
	// A host's key is no client's.
	const std::string key(64, 'a');
	c.good(with(Cluster::host_entry(9, "keyed"), {{"key", key}}));
	CHECK(has(c.bad(5, with(client("m", '1'), {{"key", key}})), "key of a host"));
	CHECK(c.state.clients.empty());
}

TEST_CASE("clients of the API are bounded in number; those whose certificate has ended make room")
{
	Cluster c;
	c.form();
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		c.good(client("m" + std::to_string(i), '1', i == 7 ? 100 : 1000));
	CHECK(has(c.bad(5, client("one-more", '2')), "256 certificates already"));
	c.good(client("m3", '2'));    // one is replaced: no more than before
	c.good(client("one-more", '2', 1000, 100));
	CHECK(c.state.clients.size() == MAX_CLIENTS);
	CHECK_FALSE(c.state.clients.contains("m7"));
}

TEST_CASE("clients of the API wait for the last host to be updated")
{
	Cluster c;
	c.form();
	CHECK(level_of(client("m", '1')) == 7);
	CHECK(level_of({{"op", "client.remove"}, {"name", "m"}}) == 7);
	CHECK(has(level_obstacle(c.state, client("m", '1')), "runs an older lockstepd"));
}
