// SPDX-License-Identifier: GPL-2.0-or-later
//
// The small parts: sizes, tables, UUIDs, the resync meter, the health of volumes.
#include "fake.h"

#include "lib/table.h"
#include "lib/units.h"
#include "lib/uuid.h"
#include "lockstepd/api/meter.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

TEST_CASE("sizes are read")
{
	for (auto [text, bytes] : std::vector<std::pair<const char *, uint64_t>>{{"0", 0},
										 {"4096", 4096},
										 {"4096B", 4096},
										 {"1k", 1024},
										 {"1K", 1024},
										 {"1KiB", 1024},
										 {"10G", 10 * GIB},
										 {"10GiB", 10 * GIB},
										 {"3TiB", 3072 * GIB},
										 {"1P", 1ull << 50},
										 {"18446744073709551615", UINT64_MAX}}) {
		INFO(text);
		Result<uint64_t> size = parse_size(text);
		REQUIRE(size);
		CHECK(*size == bytes);
	}
	for (const char *text : {"", "G", "GiB", "-1", "+1", "1.5G", "1 G", "1GB", "1Gi", "1GiBx", "0x10", "1E", "18446744073709551616",
				 "16384P", "99999999999999999999999"}) {
		INFO(text);
		Result<uint64_t> size = parse_size(text);
		REQUIRE_FALSE(size);
		CHECK(size.error().status == Status::usage);
	}
}

TEST_CASE("sizes and times are written")
{
	CHECK(format_bytes(0) == "0 B");
	CHECK(format_bytes(1023) == "1023 B");
	CHECK(format_bytes(1024) == "1 KiB");
	CHECK(format_bytes(GIB + GIB / 2) == "1.5 GiB");
	CHECK(format_bytes(GIB - 1) == "1023 MiB");
	CHECK(format_bytes(64ull << 40) == "64 TiB");
	CHECK(format_bytes(UINT64_MAX) == "16383 PiB");
	CHECK(format_seconds(0) == "0 s");
	CHECK(format_seconds(59) == "59 s");
	CHECK(format_seconds(60) == "1 min");
	CHECK(format_seconds(200) == "3 min 20 s");
	CHECK(format_seconds(7500) == "2 h 5 min");
	CHECK(format_seconds(90000) == "1 d 1 h");
}

TEST_CASE("tables")
{
	Table t({"A", "LONG"});
	CHECK(t.empty());
	t.right(1);
	t.row({"abc", "1"});
	t.row({"x"});
	CHECK(t.text() == "A    LONG\nabc     1\nx\n");
}

TEST_CASE("UUIDs")
{
	std::string u = make_uuid();
	CHECK(valid_uuid(u));
	CHECK(u != make_uuid());
	CHECK(u[14] == '4');
	CHECK(uuid_text(*uuid_bytes(u)) == u);
	auto bytes = uuid_bytes("00112233-4455-6677-8899-aabbccddeeff");
	REQUIRE(bytes);
	CHECK((*bytes)[0] == 0x00);
	CHECK((*bytes)[15] == 0xff);
	CHECK((*bytes)[7] == 0x77);
	for (const char *bad : {"", "00112233-4455-6677-8899-aabbccddeef", "00112233-4455-6677-8899-AABBCCDDEEFF",
				"00112233x4455-6677-8899-aabbccddeeff", "00112233-4455-6677-8899-aabbccddeefg"})
		CHECK_FALSE(uuid_bytes(bad));
}

TEST_CASE("the meter measures over its window and starts anew with another resync")
{
	SyncMeter meter;
	auto rate = [&](uint64_t dirty, uint64_t now_ms, const char *state = "running") -> json {
		json report = {{"volumes", {{"1", {{"peers", {{"2", {{"sync_state", state}, {"dirty_blocks", dirty}}}}}}}}}};
		meter.measure(1, report, now_ms);
		return report["volumes"]["1"]["peers"]["2"].value("rate_blocks_s", json());
	};
	CHECK(rate(10000, 1000).is_null());
	CHECK(rate(9900, 1100).is_null());
	CHECK(rate(9000, 2000) == 1000);
	CHECK(rate(7000, 3000) == 1500);
	CHECK(rate(7000, 11900) == 202);
	CHECK(rate(7000, 12500) == 0);    // samples older than 10 s are gone
	CHECK(rate(8000, 13000).is_null());
	CHECK(rate(7000, 14000) == 1000);
	CHECK(rate(7000, 15000, "away").is_null());
	CHECK(rate(6000, 16000).is_null());
	json odd = {{"volumes", {{"1", {{"peers", {{"2", 5}, {"3", {{"sync_state", 7}}}}}}}, {"2", "x"}}}};
	meter.measure(1, odd, 17000);
	odd = "nonsense";
	meter.measure(1, odd, 17000);
	CHECK(rate(5000, 18000).is_null());    // a report without it ended the measurement
}

namespace {

json replica(HostId host, const char *state)
{
	return {{"host", host}, {"state", state}, {"since", 1}, {"pool", "default"}, {"md_offset", GIB}, {"created", true}};
}

// Health and reason of a volume on hosts 1, 2 with these states and primary.
std::pair<std::string, std::string> health(FakeDaemon &d, const char *one, const char *two, HostId primary, bool open, const json &soft = {})
{
	State s = *d.state();
	json j = to_json(s);
	json v = {{"vid", 1},	  {"uuid", uuid(5)},  {"name", "v"},	  {"minor", 0},	      {"size_bytes", GIB}, {"block_size", 16384},
		  {"class", 0},	  {"redundancy", 2},  {"phase", "ready"}, {"failure", ""},    {"devices", json::array()}, {"version", 5},
		  {"term", 3},	  {"incarnation", 0}, {"session_serial", 1}, {"primary", primary}, {"drained", false},
		  {"replicas", {replica(1, one), replica(2, two)}}, {"openers", json::array()}};
	if (open)
		v["openers"].push_back({{"host", 3}, {"session", 1}});
	j["volumes"] = {v};
	j["next_vid"] = 2;
	Result<State> restored = restore(json::to_cbor(j));
	INFO((restored ? "" : restored.error().message));
	REQUIRE(restored);
	json status = status_json(*restored, d.facts, soft);
	return {status["volumes"][0]["health"], status["volumes"][0]["reason"]};
}

}    // namespace

TEST_CASE("health")
{
	FakeDaemon d;
	using Pair = std::pair<std::string, std::string>;
	json running = {{"1", {{"volumes", {{"1", {{"peers", {{"2", {{"sync_state", "running"}, {"dirty_blocks", 10}}}}}}}}}}}};
	json slow = {{"1", {{"volumes", {{"1", {{"oldest_ms", 7000}}}}}}}};
	CHECK(health(d, "insync", "insync", 1, true) == Pair{"ok", ""});
	CHECK(health(d, "insync", "insync", 0, false) == Pair{"ok", ""});
	CHECK(health(d, "insync", "insync", 0, true) == Pair{"frozen", "a primary is being chosen"});
	CHECK(health(d, "insync", "insync", 1, true, slow) == Pair{"frozen", "a request has been waiting for 7 s"});
	CHECK(health(d, "insync", "stale", 1, true) == Pair{"degraded", "out of sync: beta"});
	CHECK(health(d, "insync", "stale", 1, true, running) == Pair{"syncing", "resync of beta"});
	CHECK(health(d, "insync", "failed", 1, true) == Pair{"degraded", "failed disk on beta"});
	CHECK(health(d, "insync", "suspect", 1, true) == Pair{"degraded", "out of sync: beta"});
	CHECK(health(d, "suspect", "suspect", 0, true) == Pair{"frozen", "all replicas in sync restarted unclean, one is being chosen"});
	d.online(2, false);
	CHECK(health(d, "insync", "insync", 1, true) == Pair{"degraded", "offline: beta"});
	CHECK(health(d, "insync", "stale", 1, true, running) == Pair{"degraded", "offline: beta"});
	CHECK(health(d, "insync", "insync", 2, true) == Pair{"frozen", "its primary beta is offline, another is being chosen"});
	CHECK(health(d, "suspect", "insync", 0, true) == Pair{"frozen", "only beta can serve: bring that host back"});
	CHECK(health(d, "stale", "insync", 2, true) == Pair{"offline", "no host with a replica in sync is online: bring back beta"});
	json odd = {{"1", 5}, {"2", {{"volumes", {{"1", "x"}}}}}};
	CHECK(health(d, "insync", "insync", 1, true, odd).first == "degraded");
}

TEST_CASE("what hosts say: equal things are kept once, a copy stays as it was, nonsense counts as not said")
{
	Reports r;
	const json idle = {{"has_device", true}, {"version", 5}}, replica = {{"has_device", true}, {"has_replica", true}};
	for (unsigned host = 1; host <= LKS_MAX_HOSTS; host++)
		r.set(HostId(host), {{"volumes", {{"7", host == 2 ? replica : idle}, {"12", idle}}}});
	REQUIRE(r.find(1, 7));
	CHECK((*r.find(1, 7) == idle && *r.find(2, 7) == replica && r.find(64, 7) == r.find(1, 7) && r.find(2, 12) == r.find(64, 12)));
	const Reports before = r;
	r.set(2, {{"volumes", {{"7", idle}}}});
	CHECK((r.find(2, 7) == r.find(1, 7) && !r.find(2, 12) && *before.find(2, 7) == replica));
	r.set(3, {{"volumes", {{"x", idle}, {"7x", idle}, {"12", 5}}}});
	CHECK((r.said(3) && !r.said_of_volumes(3) && !r.find(3, 12) && r.of(3, 12) == json::object()));
	r.set(4, json::array());
	CHECK((r.said(4) && !r.said_of_volumes(4)));
	r.erase(4);
	CHECK((!r.said(4) && before.said(4) && !r.said(0) && !r.said(200)));
	r.set(0, {{"volumes", {{"7", idle}}}});
	CHECK_FALSE(r.said(0));
}

TEST_CASE("what hosts say: what says nothing, or is read by nobody, is not kept")
{
	Reports r;
	const json idle = {{"role", "idle"}, {"has_replica", false}, {"has_device", false}, {"openers", 0}, {"failed", false}, {"problem", ""}, {"peers", json::object()},
			   {"term", 3}, {"hot_extents", 9}, {"written_extents", 9}, {"version", 5}, {"allocated_bytes", 0}};
	r.set(1, {{"volumes", {{"7", idle}}}});
	CHECK(r.of(1, 7) == json{{"has_replica", false}, {"has_device", false}, {"version", 5}, {"allocated_bytes", 0}});
	const json busy = {{"has_device", true}, {"openers", 1}, {"admitted", true}, {"problem", "x"}, {"peers", {{"2", {{"dirty_blocks", 0}}}}}};
	r.set(1, {{"volumes", {{"7", busy}}}});
	CHECK(r.of(1, 7) == busy);
}

TEST_CASE("the status as text is the status, and the list and the shorter views say the same of each volume")
{
	FakeDaemon d;
	for (const char *name : {"b", "a"})
		REQUIRE(d.run({"volume", "create", name, "1GiB", "--on", "alpha,beta"}).status == 0);
	d.good({{"op", "record.open"}, {"vid", d.volume("a").vid}, {"host", 1}});
	d.attach_all();
	const State s = *d.state();
	const json whole = status_json(s, d.facts, json::object());
	CHECK(json::parse(status_text(s, d.facts, json::object())) == whole);
	CHECK(json::parse(status_text(s, d.facts, json::object(), View::full, true))["consistent"] == true);
	CHECK(json::parse(volume_list_text(s, d.facts, json::object(), false)) == whole["volumes"]);
	const json brief = json::parse(volume_list_text(s, d.facts, json::object(), true));
	REQUIRE((brief.size() == 2 && brief[0]["name"] == "a" && brief[0]["in_sync"] == 2 && brief[0]["openers"] == json{"alpha"}));
	for (size_t i = 0; i < 2; i++)
		for (const auto &[field, value] : brief[i].items())
			if (field != "in_sync")
				CHECK(whole["volumes"][i][field] == value);
	for (const View view : {View::brief, View::desired}) {
		const json shorter = json::parse(status_text(s, d.facts, json::object(), view));
		CHECK(shorter == status_json(s, d.facts, json::object(), nullptr, view));
		REQUIRE(shorter["volumes"].size() == 2);
		for (size_t i = 0; i < 2; i++) {
			CHECK(shorter["volumes"][i].size() < whole["volumes"][i].size() / 2);
			for (const auto &[field, value] : shorter["volumes"][i].items())
				CHECK(whole["volumes"][i][field] == value);
		}
	}
	LocalFacts none;
	none.host_name = "alpha";
	CHECK(json::parse(status_text(s, none, json::object())) == status_json(s, none, json::object()));
	// Who waits for one volume hears of that one.
	const Client client(FakeDaemon::socket_path());
	const auto one = client.get("/v1/wait?index=0&ms=0&volume=b");
	REQUIRE(one);
	CHECK(((*one)["volumes"].size() == 1 && (*one)["volumes"][0]["name"] == "b" && (*one)["hosts"].size() == 3));
	CHECK((*client.get("/v1/wait?index=0&ms=0&volume="))["volumes"].empty());
	CHECK((*client.get("/v1/wait?index=0&ms=0"))["volumes"].size() == 2);
}
