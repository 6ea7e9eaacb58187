// SPDX-License-Identifier: GPL-2.0-or-later
//
// Whose doing a change is: found in the log's entries, by what they are about.
#include <catch2/catch_test_macros.hpp>

#include "lockstepd/host/asked.h"
#include "ready.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

const Asker ROOT = {"root", "root", "alpha"}, BACKUP = {"backup", "admin", "beta"};

struct Log {
	FakeWorld w;
	Asked asked;
	uint32_t vid = 0;

	Log() { vid = apply({{"op", "volume.create"}, {"name", "db1"}, {"uuid", VOLUME_UUID}, {"size_bytes", GIB}, {"pool", "default"}, {"hosts", {1}}, {"now_ms", 1}}, &ROOT)["vid"]; }

	// As the daemon does it.
	Json apply(Json entry, const Asker *by)
	{
		if (by)
			entry = with_asker(entry, *by);
		const std::vector<uint8_t> bytes = encode(entry);
		const std::string_view text(reinterpret_cast<const char *>(bytes.data()), bytes.size());
		asked.note(w.state, text);
		Json answer = apply_bytes(w.state, ++w.log->index, bytes);
		REQUIRE(answer["ok"] == true);
		asked.note(w.state, text, answer);
		return answer;
	}
	std::optional<Asker> who(const std::string &kind, const std::string &name)
	{
		const Asker *asker = asked.who(kind, name);
		return asker ? std::optional(*asker) : std::nullopt;
	}
};

}    // namespace

TEST_CASE("who asked for a change is known by what it is about, until it has been told")
{
	Log l;
	CHECK(l.who("volume", "db1") == ROOT);
	CHECK(describe(ROOT) == " (by root on alpha)");
	l.asked.clear();
	CHECK(l.who("volume", "db1") == std::nullopt);

	l.apply({{"op", "replica.created"}, {"vid", l.vid}, {"host", 1}}, nullptr);    // a daemon, by itself
	CHECK(l.who("volume", "db1") == std::nullopt);
	l.apply({{"op", "volume.redundancy"}, {"vid", l.vid}, {"redundancy", 2}}, &BACKUP);
	CHECK(l.who("volume", "db1") == BACKUP);
	CHECK(describe(BACKUP) == " (by backup, admin, on beta)");
	l.apply({{"op", "record.open"}, {"vid", l.vid}, {"host", 1}}, nullptr);
	l.apply({{"op", "snapshot.create"}, {"name", "s1"}, {"vids", {l.vid}}, {"uuids", {UUID2}}, {"keep", true}, {"now_ms", 1}}, &ROOT);
	CHECK(l.who("snapshot", "s1") == ROOT);
	l.apply({{"op", "host.net"}, {"host", 2}, {"verb", "add"}, {"address", "10.9.9.9"}}, &BACKUP);
	CHECK(l.who("host", "beta") == BACKUP);
	CHECK(l.who("host", "alpha") == std::nullopt);
	// It is gone with the entry.
	l.apply({{"op", "host.status"}, {"host", 3}, {"online", false}, {"now_ms", 1}}, nullptr);
	l.apply({{"op", "host.lost"}, {"host", 3}}, &ROOT);
	CHECK(l.who("host", "gamma") == ROOT);
	l.apply({{"op", "pool.add"}, {"name", "fast"}, {"host", 1}, {"kind", "thick"}, {"vg", "vg2"}, {"size_bytes", GIB}, {"free_bytes", GIB}}, &BACKUP);
	CHECK(l.who("pool", "fast") == BACKUP);
}

TEST_CASE("that it is known who asked takes the place of no field that an operation has itself")
{
	Log l;
	l.apply({{"op", "pool.mend"}, {"name", "default"}, {"host", 1}, {"disk", "dead"}, {"by", "/dev/sdn"}}, &ROOT);
	CHECK(l.w.state.pool("default", 1)->mending_by == "/dev/sdn");
	CHECK(l.who("pool", "default") == ROOT);
}

TEST_CASE("what makes no sense in the place of who asked is passed over")
{
	const Json good = with_asker(Json::object(), BACKUP);
	CHECK(asker_of(good) == BACKUP);
	for (const Json &by : {Json(), Json("backup"), Json::object(), Json{{"client", 1}, {"role", "admin"}, {"host", "beta"}},
			       Json{{"client", "x"}, {"role", "admin"}}, Json{{"client", std::string(129, 'x')}, {"role", "admin"}, {"host", "beta"}}})
		CHECK(asker_of({{"asker", by}}) == std::nullopt);
	CHECK(asker_of(Json(3)) == std::nullopt);
}
