// SPDX-License-Identifier: GPL-2.0-or-later
//
// The state machine, command by command: what each changes and what it refuses. The fixture checks all invariants after every
// entry and that a refusal changes nothing.
#include "fixture.h"

#include "core/disk.h"

#include <algorithm>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct Refused {
	int status;
	json entry;
	const char *says;
};

json without(json entry, const char *field)
{
	entry.erase(field);
	return entry;
}

}    // namespace

TEST_CASE("before cluster.init everything else is refused")
{
	Cluster c;
	CHECK(has(c.bad(5, Cluster::host_entry(1, "alpha")), "no cluster"));
	json init = {{"op", "cluster.init"}, {"uuid", uuid(1000)}, {"name", "lab"}, {"host", Cluster::host_entry(1, "alpha")}, {"now_ms", 7}};
	CHECK(has(c.bad(2, with(init, {{"name", "-x"}})), "no valid name"));
	CHECK(has(c.bad(2, with(init, {{"uuid", "x"}})), "no UUID"));
	json answer = c.good(init);
	CHECK(answer["host"] == 1);
	CHECK(answer["raft_id"] == 1);
	CHECK(c.state.name == "lab");
	CHECK(c.state.host(1)->since_ms == 7);
	CHECK(c.good(init)["changed"] == false);
	CHECK(has(c.bad(5, with(init, {{"uuid", uuid(1001)}})), "cluster lab already"));
}

TEST_CASE("an entry that is no command is refused and counted")
{
	Cluster c;
	c.form();
	c.bad(2, json::array());
	c.bad(2, nullptr);
	c.bad(2, {{"op", 5}});
	c.bad(2, json::object());
	CHECK(has(c.bad(2, {{"op", "volume.explode"}}), "unknown operation"));
	CHECK(has(c.bad(2, {{"op", "record.explode"}}), "unknown operation"));
	std::vector<uint8_t> garbage = {0xff, 0x00, 0x13};
	json answer = apply_bytes(c.state, ++c.index, garbage);
	CHECK(answer["ok"] == false);
	CHECK(answer["status"] == 10);
	CHECK(c.state.applied == c.index);
	CHECK(apply(c.state, c.index, Cluster::host_entry(9, "z"))["status"] == 10);    // not twice
	CHECK_THROWS(apply(c.state, c.index + 1, {{"op", "host.add"}, {"level", LEVEL + 1}}));
}

TEST_CASE("hosts")
{
	Cluster c;
	c.form();
	CHECK(c.state.host(3)->raft_id == 3);
	CHECK(c.good(Cluster::host_entry(2, "beta"))["host"] == 2);    // the same UUID again
	CHECK(has(c.bad(5, Cluster::host_entry(9, "beta")), "named beta already (host 2)"));
	CHECK(has(c.bad(5, with(Cluster::host_entry(9, "delta"), {{"addresses", {"10.0.0.2"}}})), "belongs to host beta"));
	c.good(with(Cluster::host_entry(9, "delta"), {{"addresses", {"10.0.0.2"}}, {"port", 7789}}));
	for (json addresses : {json::array(), json("10.0.0.1"), json({"a", ""}), json({5}), json(std::vector<std::string>(9, "a"))})
		c.bad(2, with(Cluster::host_entry(10, "eta"), {{"addresses", addresses}}));
	c.bad(2, with(Cluster::host_entry(10, "eta"), {{"port", 65536}}));
	c.bad(2, without(Cluster::host_entry(10, "eta"), "now_ms"));
	c.bad(2, with(Cluster::host_entry(10, "eta"), {{"now_ms", -1}}));
	c.bad(2, Cluster::host_entry(10, ""));
	c.bad(2, Cluster::host_entry(10, "e\xc3\xa4"));

	CHECK(c.good({{"op", "host.set"}, {"host", 2}, {"addresses", {"10.9.0.2", "10.0.0.2"}}})["changed"] == true);
	CHECK(c.good({{"op", "host.set"}, {"host", 2}, {"addresses", {"10.9.0.2", "10.0.0.2"}}})["changed"] == false);
	c.bad(3, {{"op", "host.set"}, {"host", 7}, {"addresses", {"10.9.0.2"}}});
	c.bad(5, {{"op", "host.set"}, {"host", 1}, {"addresses", {"10.9.0.2"}}});

	c.good({{"op", "host.status"}, {"host", 3}, {"online", false}, {"now_ms", 99}});
	CHECK_FALSE(c.state.online(3));
	CHECK(c.state.host(3)->since_ms == 99);
	CHECK(c.good({{"op", "host.status"}, {"host", 3}, {"online", false}, {"now_ms", 120}})["changed"] == false);
	c.bad(3, {{"op", "host.status"}, {"host", 33}, {"online", false}, {"now_ms", 120}});
	c.bad(2, {{"op", "host.status"}, {"host", 0}, {"online", false}, {"now_ms", 120}});
	c.bad(2, {{"op", "host.status"}, {"host", 65}, {"online", false}, {"now_ms", 120}});
	c.bad(2, {{"op", "host.status"}, {"host", 3}, {"online", 1}, {"now_ms", 120}});
}

TEST_CASE("tokens: with an authority, only who is invited joins, and each token serves once")
{
	Cluster c;
	const std::string pem = "-----BEGIN X-----\nabc\n";
	const auto hash = [](char digit) { return std::string(64, digit); };
	json host = {{"uuid", uuid(1)}, {"name", "alpha"}, {"addresses", {"10.0.0.1"}}, {"key", hash('a')}};
	c.good({{"op", "cluster.init"}, {"uuid", uuid(99)}, {"name", "lab"}, {"host", host}, {"authority", {{"cert", pem}, {"key", pem}}}, {"now_ms", 1}});
	CHECK(c.state.authority == Authority{pem, pem});
	CHECK(c.state.host(1)->key == hash('a'));
	const auto add = [&](unsigned n, char key, char token, uint64_t now_ms) {
		return json{{"op", "host.add"},      {"uuid", uuid(n)},  {"name", "h" + std::to_string(n)}, {"addresses", {"10.0.0." + std::to_string(n)}},
			    {"key", hash(key)}, {"token", hash(token)}, {"now_ms", now_ms}};
	};
	json bare = add(2, 'b', '1', 10);
	bare.erase("token");
	c.bad(5, bare);
	c.bad(5, add(2, 'b', '1', 10));
	c.bad(2, {{"op", "token.add"}, {"hash", hash('1')}, {"end_ms", 10}, {"now_ms", 10}});
	c.bad(2, {{"op", "token.add"}, {"hash", "1"}, {"end_ms", 100}, {"now_ms", 10}});
	CHECK(c.good({{"op", "token.add"}, {"hash", hash('1')}, {"end_ms", 100}, {"now_ms", 10}})["changed"] == true);
	CHECK(c.good({{"op", "token.add"}, {"hash", hash('1')}, {"end_ms", 100}, {"now_ms", 10}})["changed"] == false);
	c.bad(5, add(2, 'b', '2', 20));
	c.bad(5, add(2, 'b', '1', 100));                                    // ended
	json taken = add(2, 'b', '1', 20);
	taken["name"] = "alpha";
	c.bad(5, taken);                                                    // refused: the token is not used up
	CHECK(c.good(add(2, 'b', '1', 20))["host"] == 2);
	CHECK(c.state.tokens.at(hash('1')).used_by == uuid(2));
	CHECK(c.good(add(2, 'b', '1', 200))["changed"] == false);           // its answer was lost
	c.bad(5, add(2, 'c', '1', 20));                                     // somebody else under its uuid
	c.bad(5, add(3, 'c', '1', 20));
	for (size_t i = 1; i < MAX_TOKENS; i++)
		c.good({{"op", "token.add"}, {"hash", sha256_hex(std::to_string(i))}, {"end_ms", 50 + i}, {"now_ms", 30}});
	c.bad(5, {{"op", "token.add"}, {"hash", hash('3')}, {"end_ms", 1000}, {"now_ms", 30}});
	c.good({{"op", "token.add"}, {"hash", hash('3')}, {"end_ms", 1000}, {"now_ms", 200}});
	CHECK(c.state.tokens.size() == 1);
	auto copy = restore(snapshot(c.state));
	REQUIRE(copy);
	CHECK(*copy == c.state);
}

TEST_CASE("addresses of a host: added, preferred, removed; never the last one, never one of another host")
{
	Cluster c;
	c.good({{"op", "cluster.init"}, {"uuid", uuid(99)}, {"name", "lab"}, {"now_ms", 1},
		{"host", {{"uuid", uuid(1)}, {"name", "alpha"}, {"addresses", {"10.0.0.1"}}}}});
	c.good({{"op", "host.add"}, {"uuid", uuid(2)}, {"name", "beta"}, {"addresses", {"10.0.0.2"}}, {"now_ms", 1}});
	const auto net = [](const char *verb, const char *address) {
		return json{{"op", "host.net"}, {"host", 1}, {"verb", verb}, {"address", address}};
	};
	c.bad(5, net("remove", "10.0.0.1"));
	c.bad(3, net("prefer", "10.0.1.1"));
	c.bad(5, net("add", "10.0.0.2"));
	c.bad(2, net("move", "10.0.1.1"));
	CHECK(c.good(net("add", "10.0.1.1"))["changed"] == true);
	CHECK(c.good(net("add", "10.0.1.1"))["changed"] == false);
	c.good(net("add", "10.0.2.1"));
	CHECK(c.good(net("prefer", "10.0.2.1"))["changed"] == true);
	CHECK(c.good(net("prefer", "10.0.2.1"))["changed"] == false);
	CHECK(c.state.host(1)->addresses == std::vector<std::string>{"10.0.2.1", "10.0.0.1", "10.0.1.1"});
	CHECK(c.good(net("remove", "10.0.0.1"))["changed"] == true);
	CHECK(c.good(net("remove", "10.0.0.1"))["changed"] == false);
	CHECK(c.state.host(1)->addresses == std::vector<std::string>{"10.0.2.1", "10.0.1.1"});
	for (int i = 3; i <= int(MAX_ADDRESSES); i++)
		c.good(net("add", ("10.1.0." + std::to_string(i)).c_str()));
	c.bad(5, net("add", "10.1.0.99"));
}

TEST_CASE("all host ids can be used, once")
{
	Cluster c;
	c.form(1);
	for (unsigned n = 2; n <= LKS_MAX_HOSTS; n++)
		CHECK(c.good(Cluster::host_entry(n, "h" + std::to_string(n)))["host"] == n);
	CHECK(has(c.bad(5, Cluster::host_entry(65, "h65")), "all 64 host ids"));
}

TEST_CASE("pools")
{
	Cluster c;
	c.form();
	CHECK(c.good(Cluster::pool_entry(1))["changed"] == false);
	CHECK(has(c.bad(5, with(Cluster::pool_entry(1), {{"vg", "other"}})), "alpha has a pool named default already, on vg/thin"));
	CHECK(has(c.bad(5, with(Cluster::pool_entry(1), {{"name", "fast"}})), "is pool default already"));
	c.good(with(Cluster::pool_entry(1, GIB, "thick"), {{"name", "fast"}}));
	c.bad(3, Cluster::pool_entry(9));
	const json entry = with(Cluster::pool_entry(1), {{"name", "p2"}, {"vg", "vg2"}});
	for (const json &changes : std::vector<json>{{{"kind", "round"}}, {{"vg", ""}}, {{"vg", "-a"}}, {{"vg", "a b"}}, {{"vg", "a/b"}},
						     {{"thin_lv", ""}}, {{"size_bytes", 0}}, {{"free_bytes", 21 * GIB}}, {{"name", "a/b"}},
						     {{"size_bytes", 1ull << 61}}, {{"size_bytes", "1"}}, {{"size_bytes", 1.5}}})
		c.bad(2, with(entry, changes));
	c.bad(2, without(entry, "thin_lv"));
	json report = {{"op", "pool.report"}, {"name", "default"}, {"host", 1}, {"size_bytes", 30 * GIB}, {"free_bytes", 10 * GIB}};
	CHECK(c.good(report)["changed"] == true);
	CHECK(c.good(report)["changed"] == false);
	c.bad(3, with(report, {{"name", "slow"}}));
	c.bad(2, with(report, {{"free_bytes", 31 * GIB}}));
}

TEST_CASE("volume.create refuses nonsense")
{
	Cluster c;
	c.form();
	c.volume("taken");
	const json entry = c.create_entry("v");
	const Refused table[] = {
		{2, with(entry, {{"size_bytes", 0}}), "size is 0"},
		{2, with(entry, {{"size_bytes", 4097}}), "multiple of 4096"},
		{2, with(entry, {{"size_bytes", 65ull << 40}}), "above the limit of 64 TiB"},
		{2, with(entry, {{"size_bytes", -4096}}), "size_bytes"},
		{2, without(entry, "size_bytes"), "missing"},
		{2, with(entry, {{"name", ""}}), "no valid volume name"},
		{2, with(entry, {{"name", ".hidden"}}), "no valid volume name"},
		{2, with(entry, {{"name", "a/b"}}), "no valid volume name"},
		{2, with(entry, {{"name", "a b"}}), "no valid volume name"},
		{2, with(entry, {{"name", std::string(128, 'x')}}), "no valid volume name"},
		{5, with(entry, {{"name", "taken"}}), "a volume named taken already"},
		{5, with(entry, {{"uuid", uuid(2001)}}), "UUID belongs to volume taken"},
		{2, with(entry, {{"uuid", "x"}}), "no UUID"},
		{2, with(entry, {{"redundancy", 0}}), "redundancy must be 1 to 8"},
		{2, with(entry, {{"redundancy", 9}}), "redundancy must be 1 to 8"},
		{5, with(entry, {{"redundancy", 4}}), "the cluster has 3"},
		{2, with(entry, {{"redundancy", 2}, {"hosts", {1, 2, 3}}}), "needs as many hosts"},
		{2, with(entry, {{"hosts", {1, 1}}}), "distinct"},
		{3, with(entry, {{"hosts", {1, 9}}}), "no host 9"},
		{3, with(entry, {{"pool", "gold"}}), "no host has a pool named gold"},
		{2, with(entry, {{"pool", "a/b"}}), "no valid name"},
		{2, with(entry, {{"block_size", 12288}}), "power of two"},
		{2, with(entry, {{"block_size", 2048}}), "power of two"},
		{2, with(entry, {{"class", "open"}}), "exclusive or shared"},
		{5, with(entry, {{"size_bytes", 1ull << 40}}), "alpha: pool default has room for 38.9 GiB"},
	};
	for (const Refused &r : table) {
		std::string message = c.bad(r.status, r.entry);
		INFO(message);
		CHECK(has(message, r.says));
	}
	CHECK(c.good(with(entry, {{"name", std::string(127, 'x')}}))["vid"] == 2);    // nothing above used up a vid
}

TEST_CASE("placement: most free space, distinct hosts, and a reason for each host that does not do")
{
	Cluster c;
	c.form(4);
	c.good({{"op", "pool.report"}, {"name", "default"}, {"host", 3}, {"size_bytes", 40 * GIB}, {"free_bytes", 40 * GIB}});
	c.good({{"op", "pool.report"}, {"name", "default"}, {"host", 4}, {"size_bytes", 30 * GIB}, {"free_bytes", 30 * GIB}});
	CHECK(c.good(c.create_entry("a"))["hosts"] == json({3, 4}));
	CHECK(c.good(with(c.create_entry("b"), {{"hosts", {2}}}))["hosts"] == json({2}));
	CHECK(c.vol(2).redundancy == 1);
	CHECK(c.good(with(c.create_entry("c"), {{"redundancy", 3}}))["hosts"] == json({1, 3, 4}));    // beta holds b already
	c.online(3, false);
	c.good(Cluster::host_entry(5, "epsilon"));
	std::string message = c.bad(5, c.create_entry("big", 50 * GIB));
	INFO(message);
	CHECK(has(message, "volume big needs 2 hosts, 1 can take it"));
	CHECK(has(message, "alpha: pool default has room for"));
	CHECK(has(message, "beta: pool default has room for"));
	CHECK(has(message, "gamma: is offline"));
	CHECK(has(message, "epsilon: has no pool default"));
	CHECK_FALSE(has(message, "delta"));
	const auto on = with(c.create_entry("on"), {{"hosts", {3, 4}}});
	CHECK(has(c.bad(5, on), "gamma: is offline"));
	// More room would help the first one only.
	CHECK(c.apply(c.create_entry("big", 50 * GIB))["code"] == "no-room");
	CHECK(c.apply(on)["code"] == "too-few-hosts");
}

TEST_CASE("thin pools are over-subscribed twice, thick ones never")
{
	Cluster c;
	c.form(1);
	json one = with(c.create_entry("a", 39 * GIB), {{"redundancy", 1}});
	c.good(one);
	CHECK(has(c.bad(5, with(c.create_entry("b", GIB), {{"redundancy", 1}})), "room for"));
	c.good({{"op", "volume.delete"}, {"name", "a"}});
	CHECK(has(c.bad(5, with(c.create_entry("b", 2 * GIB), {{"redundancy", 1}})), "room for"));    // the tombstone still takes space
	c.good({{"op", "replica.deleted"}, {"vid", 1}, {"host", 1}});
	c.good(with(c.create_entry("b", 39 * GIB), {{"redundancy", 1}}));

	c.good(with(Cluster::pool_entry(1, 10 * GIB, "thick"), {{"name", "thick"}, {"vg", "vg2"}}));
	json thick = {{"redundancy", 1}, {"pool", "thick"}};
	c.bad(5, with(c.create_entry("t", 10 * GIB), thick));    // metadata does not fit
	c.good({{"op", "pool.report"}, {"name", "thick"}, {"host", 1}, {"size_bytes", 10 * GIB}, {"free_bytes", 5 * GIB}});
	c.bad(5, with(c.create_entry("t", 6 * GIB), thick));     // somebody else's LVs
	uint32_t vid = c.good(with(c.create_entry("t", 4 * GIB), thick))["vid"];
	c.bad(5, with(c.create_entry("t2", GIB), thick));
	c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 1}});
	c.good({{"op", "pool.report"}, {"name", "thick"}, {"host", 1}, {"size_bytes", 10 * GIB}, {"free_bytes", 5 * GIB}});
	c.good(with(c.create_entry("t3", GIB), thick));
}

TEST_CASE("a replica's space agrees with the layout on disk")
{
	for (uint64_t size : {uint64_t(4096), 4 * MIB, GIB, 100 * GIB, uint64_t(1) << 40})
		for (uint32_t block : {uint32_t(LKS_BLOCK_MIN), uint32_t(LKS_BLOCK_DEFAULT), uint32_t(LKS_BLOCK_MAX)}) {
			lks_layout layout;
			lks_layout_of(size, block, &layout);
			uint64_t needed = size + layout.total_bytes, reserved = replica_bytes(size, block);
			INFO(size << " " << block);
			CHECK(reserved >= needed);
			CHECK(reserved < needed + 4 * MIB);
			CHECK(reserved % (4 * MIB) == 0);
		}
}

TEST_CASE("a volume is created, used and deleted")
{
	Cluster c;
	c.form();
	json entry = with(c.create_entry("v"), {{"hosts", {1, 2}}});
	json answer = c.good(entry);
	uint32_t vid = answer["vid"];
	CHECK(answer["minor"] == 0);
	CHECK(c.vol(vid).phase == Phase::creating);
	CHECK(c.vol(vid).primary == 0);
	CHECK(has(c.bad(5, {{"op", "record.open"}, {"vid", vid}, {"host", 1}}), "still being created"));
	CHECK(has(c.bad(5, {{"op", "device.ready"}, {"vid", vid}, {"host", 1}}), "creating"));
	CHECK(has(c.bad(3, {{"op", "replica.created"}, {"vid", vid}, {"host", 3}}), "no replica on host gamma"));
	CHECK(has(c.bad(5, c.create_entry("v")), "just being created"));
	CHECK(c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 2}})["phase"] == "creating");
	CHECK(c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 2}})["changed"] == false);
	CHECK(c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 1}})["phase"] == "ready");
	CHECK(c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 1}})["changed"] == false);
	c.bad(5, {{"op", "replica.failed"}, {"vid", vid}, {"host", 1}, {"message", "late"}});
	c.bad(5, {{"op", "volume.abort"}, {"vid", vid}, {"message", "late"}});
	for (HostId h : {1, 2, 3})
		CHECK(c.good({{"op", "device.ready"}, {"vid", vid}, {"host", h}})["changed"] == true);
	CHECK(c.good({{"op", "device.ready"}, {"vid", vid}, {"host", 3}})["changed"] == false);
	c.bad(5, {{"op", "replica.deleted"}, {"vid", vid}, {"host", 1}});

	uint64_t session = c.open(vid, 1);
	CHECK(has(c.bad(5, {{"op", "volume.delete"}, {"name", "v"}}), "open on host alpha"));
	c.bad(5, {{"op", "volume.delete"}, {"name", "v"}, {"force", false}});
	Cluster forced = c;
	CHECK(forced.good({{"op", "volume.delete"}, {"name", "v"}, {"force", true}})["vid"] == vid);
	CHECK(forced.vol(vid).phase == Phase::deleting);
	CHECK(forced.vol(vid).openers.empty());
	c.good({{"op", "record.close"}, {"vid", vid}, {"host", 1}, {"session", session}});
	CHECK(c.good({{"op", "volume.delete"}, {"name", "v"}})["vid"] == vid);
	CHECK(c.vol(vid).phase == Phase::deleting);
	CHECK(c.vol(vid).primary == 0);
	CHECK(has(c.bad(3, {{"op", "volume.delete"}, {"name", "v"}}), "no volume named v"));
	CHECK(c.good({{"op", "volume.delete"}, {"vid", vid}})["changed"] == false);
	CHECK(has(c.bad(5, {{"op", "record.open"}, {"vid", vid}, {"host", 1}}), "being deleted"));
	CHECK(c.good({{"op", "record.suspect"}, {"vid", vid}, {"host", 1}})["changed"] == false);
	c.bad(5, {{"op", "device.ready"}, {"vid", vid}, {"host", 1}});
	c.bad(5, {{"op", "replica.created"}, {"vid", vid}, {"host", 1}});

	uint32_t again = c.volume("v");    // the name is free at once, the minor is not
	CHECK(again != vid);
	CHECK(c.vol(again).minor == 1);
	CHECK(c.good({{"op", "replica.deleted"}, {"vid", vid}, {"host", 1}})["gone"] == false);
	CHECK(c.good({{"op", "replica.deleted"}, {"vid", vid}, {"host", 1}})["changed"] == false);
	CHECK(c.good({{"op", "replica.deleted"}, {"vid", vid}, {"host", 3}})["gone"] == false);    // only had the device
	CHECK(c.good({{"op", "replica.deleted"}, {"vid", vid}, {"host", 2}})["gone"] == true);
	CHECK(c.state.volume(vid) == nullptr);
	CHECK(c.good({{"op", "replica.deleted"}, {"vid", vid}, {"host", 2}})["gone"] == true);
	CHECK(c.vol(c.volume("w")).minor == 0);
	CHECK(c.vol(c.volume("x")).minor == 2);
}

TEST_CASE("a create that fails on one host is rolled back on all, and the reason stays")
{
	Cluster c;
	c.form();
	json entry = with(c.create_entry("v"), {{"hosts", {1, 2}}});
	uint32_t vid = c.good(entry)["vid"];
	c.good({{"op", "replica.created"}, {"vid", vid}, {"host", 1}});
	CHECK(c.good({{"op", "replica.failed"}, {"vid", vid}, {"host", 2}, {"message", "volume v on beta: lvcreate:\nno space \xc3\xa4"}})["changed"] == true);
	CHECK(c.good({{"op", "replica.failed"}, {"vid", vid}, {"host", 2}, {"message", "again"}})["changed"] == false);
	CHECK(c.vol(vid).phase == Phase::deleting);
	CHECK(c.vol(vid).failure == "volume v on beta: lvcreate: no space ??");
	c.good({{"op", "replica.deleted"}, {"vid", vid}, {"host", 2}});
	CHECK(c.good({{"op", "replica.deleted"}, {"vid", vid}, {"host", 1}})["gone"] == true);
	CHECK(has(c.state.failures.at(vid).message, "no space"));
	c.bad(3, {{"op", "replica.failed"}, {"vid", vid}, {"host", 2}, {"message", "x"}});

	uint32_t slow = c.good(c.create_entry("slow"))["vid"];
	CHECK(c.good({{"op", "volume.abort"}, {"vid", slow}, {"message", "too slow"}})["changed"] == true);
	CHECK(c.good({{"op", "volume.abort"}, {"vid", slow}, {"message", "too slow"}})["changed"] == false);
	CHECK(c.state.failures.at(slow).message == "too slow");
	uint32_t deleted = c.good(c.create_entry("deleted"))["vid"];
	c.good({{"op", "volume.delete"}, {"name", "deleted"}});
	CHECK(has(c.state.failures.at(deleted).message, "deleted while"));
}

TEST_CASE("only the last failures are remembered")
{
	Cluster c;
	c.form(1);
	for (size_t i = 0; i < MAX_FAILURES + 3; i++) {
		uint32_t vid = c.good(with(c.create_entry("v", 4096), {{"redundancy", 1}}))["vid"];
		c.good({{"op", "volume.abort"}, {"vid", vid}, {"message", "x"}});
	}
	CHECK(c.state.failures.size() == MAX_FAILURES);
	CHECK(c.state.failures.begin()->first == 4);
}

TEST_CASE("the snapshot refuses what is damaged or newer")
{
	Cluster c;
	c.form();
	c.volume("v");
	c.open(1, 2);
	std::vector<uint8_t> bytes = snapshot(c.state);
	Result<State> back = restore(bytes);
	REQUIRE(back);
	CHECK(*back == c.state);
	CHECK(snapshot(*back) == bytes);
	CHECK_FALSE(restore(std::span(bytes).first(bytes.size() - 1)));
	CHECK_FALSE(restore({}));
	json j = to_json(c.state);
	j["format"] = 2;
	Result<State> newer = restore(json::to_cbor(j));
	REQUIRE_FALSE(newer);
	CHECK(has(newer.error().message, "format 2"));
	j = to_json(c.state);
	j["volumes"][0]["primary"] = 3;
	CHECK_FALSE(restore(json::to_cbor(j)));
	j = to_json(c.state);
	j["volumes"][0]["replicas"][0]["state"] = "wonderful";
	CHECK_FALSE(restore(json::to_cbor(j)));
	State empty;
	empty.applied = 3;
	REQUIRE(restore(snapshot(empty)));
}

TEST_CASE("groups: volumes take pool and redundancy from theirs")
{
	Cluster c;
	c.form();
	json sr = {{"op", "group.create"}, {"name", "sr1"}, {"pool", "default"}, {"redundancy", 3}, {"labels", {{"kind", "xapi"}}}};
	CHECK(has(c.bad(3, with(sr, {{"pool", "other"}})), "no host has a pool named other"));
	CHECK(has(c.bad(5, with(sr, {{"redundancy", 4}})), "there are 3"));
	c.bad(2, with(sr, {{"redundancy", 0}}));
	c.bad(2, with(sr, {{"name", "-"}}));
	CHECK(c.good(sr)["changed"] == true);
	CHECK(c.good(sr)["changed"] == false);
	CHECK(has(c.bad(5, with(sr, {{"redundancy", 2}})), "already, in pool default with redundancy 3"));

	json entry = without(c.create_entry("v1", 8 * MIB), "pool");
	c.bad(2, entry);
	CHECK(has(c.bad(3, with(entry, {{"group", "sr2"}})), "no group named sr2"));
	uint32_t vid = c.good(with(entry, {{"group", "sr1"}, {"labels", {{"name", "disk 0 \xc3\xa4"}}}}))["vid"];
	CHECK(c.state.volume(vid)->replicas.size() == 3);
	CHECK(c.state.volume(vid)->labels.at("name") == "disk 0 \xc3\xa4");
	CHECK(restore(snapshot(c.state))->groups == c.state.groups);
	CHECK(has(c.bad(5, {{"op", "group.delete"}, {"name", "sr1"}}), "volume v1 is in it"));
	c.good({{"op", "volume.delete"}, {"vid", vid}});
	c.good({{"op", "group.delete"}, {"name", "sr1"}});    // the tombstone is in it no more
	CHECK(c.state.volume(vid)->group == "");
	CHECK(has(c.bad(3, {{"op", "group.delete"}, {"name", "sr1"}}), "no group named sr1"));
}

TEST_CASE("labels are set, changed and removed, and bounded")
{
	Cluster c;
	c.form();
	c.good(c.create_entry("v1", 8 * MIB));
	json label = {{"op", "volume.label"}, {"name", "v1"}, {"labels", {{"a", "1"}, {"b", "2"}}}};
	CHECK(c.good(label)["changed"] == true);
	CHECK(c.good(label)["changed"] == false);
	CHECK(c.good(with(label, {{"labels", {{"a", nullptr}, {"c", nullptr}}}}))["changed"] == true);
	CHECK(c.state.volume_named("v1")->labels == Labels{{"b", "2"}});
	c.bad(3, with(label, {{"name", "v2"}}));
	c.bad(2, with(label, {{"labels", nullptr}}));
	c.bad(2, with(label, {{"labels", {{"a", 1}}}}));
	c.bad(2, with(label, {{"labels", {{"a b", "1"}}}}));
	c.bad(2, with(label, {{"labels", {{"a", std::string(MAX_LABEL_BYTES + 1, 'x')}}}}));
	c.good(with(label, {{"labels", {{"a", std::string(MAX_LABEL_BYTES, 'x')}}}}));
	json many = json::object();
	for (size_t i = 0; i < MAX_LABELS; i++)
		many["k" + std::to_string(i)] = "";
	CHECK(has(c.bad(5, with(label, {{"labels", many}})), "more than 32 labels"));
	many["k32"] = "";
	c.bad(2, with(label, {{"labels", many}}));

	c.good({{"op", "group.create"}, {"name", "g"}, {"pool", "default"}});
	c.good({{"op", "group.label"}, {"name", "g"}, {"labels", {{"a", "1"}}}});
	CHECK(c.state.groups.at("g").labels.at("a") == "1");
	c.bad(3, {{"op", "group.label"}, {"name", "h"}, {"labels", {{"a", "1"}}}});
}

TEST_CASE("a witness votes, and has neither pools nor devices nor replicas")
{
	Cluster c;
	c.form(2);
	c.good(with(Cluster::host_entry(3, "gamma"), {{"witness", true}}));
	CHECK((c.state.host(3)->witness && !c.state.host(2)->witness));
	CHECK(restore(snapshot(c.state)).operator*() == c.state);
	CHECK(has(c.bad(5, Cluster::pool_entry(3)), "gamma is a witness: it has no pools"));
	uint32_t vid = c.volume("v");
	CHECK(has(c.bad(5, {{"op", "device.ready"}, {"vid", vid}, {"host", 3}}), "is a witness"));
	json three = c.create_entry("w");
	three["redundancy"] = 3;
	CHECK(has(c.bad(5, three), "gamma"));
	c.good({{"op", "host.remove"}, {"host", 3}});
	CHECK(c.state.host(3) == nullptr);    // it has nothing to take down first
}
