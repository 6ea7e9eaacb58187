// SPDX-License-Identifier: GPL-2.0-or-later
//
// Copies of snapshots made for this host: the copying itself, on files, and the reconciler around it.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <stdlib.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "fakes.h"
#include "lockstepd/host/snapshot_copy.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

using Json = nlohmann::json;

constexpr uint64_t SIZE = 3 * LKS_EXTENT_BYTES + 12 * 4096;    // the last extent and the last block are partial
constexpr uint64_t BLOCKS = (SIZE + COPY_BLOCK_BYTES - 1) / COPY_BLOCK_BYTES;
constexpr uint64_t METADATA_ROOM = 1 << 20;

struct Disk {
	std::string path;
	std::vector<bool> written = std::vector<bool>(4);

	void fill(const std::string &bytes) const { std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size())); }
	std::string raw() const
	{
		std::ifstream in(path, std::ios::binary);
		return {std::istreambuf_iterator<char>(in), {}};
	}
	// As the volume reads it.
	std::string content() const
	{
		std::string bytes = raw().substr(0, SIZE);
		auto w = written_extents(path, SIZE);
		REQUIRE(w);
		for (size_t e = 0; e < 4; e++)
			if (!(*w)[e])
				bytes.replace(e * LKS_EXTENT_BYTES, std::min<uint64_t>(LKS_EXTENT_BYTES, SIZE - e * LKS_EXTENT_BYTES),
					      std::min<uint64_t>(LKS_EXTENT_BYTES, SIZE - e * LKS_EXTENT_BYTES), '\0');
		return bytes;
	}
};

struct Copier {
	std::string folder;
	Disk source, base, target;
	std::mt19937 random{7};
	CopyProgress progress;
	uint64_t asked = 0, fail_at = 0;
	std::vector<uint64_t> changed;    // what the other host's thin pool would name
	uint64_t whole = 0, begun = 0;
	Lvm lvm;
	AskHost ask;

	Copier()
	{
		char name[] = "/tmp/lockstep-copies-XXXXXX";
		REQUIRE(mkdtemp(name));
		folder = name;
		for (auto [disk, file] : {std::pair(&source, "source"), std::pair(&base, "base"), std::pair(&target, "target")})
			disk->path = folder + "/" + file;
		lvm.begin_copy = [this](const SnapshotLv &, const OrphanLv &from, const std::string &, uint64_t) -> Result<uint64_t> {
			if (whole)
				return whole;
			begun++;
			target.fill(from.name.empty() ? std::string(SIZE + METADATA_ROOM, '\0') : base.raw());
			return 0;
		};
		lvm.end_copy = [this](const SnapshotLv &, uint64_t md_offset) -> Done {
			whole = md_offset;
			return Nothing{};
		};
		ask = [this](HostId, const std::string &verb, Json body, uint64_t, const std::atomic<bool> &) -> Result<Json> {
			const CopySource from{source.path, SIZE, SIZE, LKS_BLOCK_DEFAULT};
			body = Json::from_cbor(Json::to_cbor(body));    // as it comes over a link
			if (++asked == fail_at)
				return failed("connection lost");
			if (verb == "snapshot.blocks")
				return source_blocks(from, body);
			if (verb == "snapshot.end")
				return Json::object();
			if (!body["base"].get<uint32_t>())
				return source_map(from);
			std::vector<uint8_t> bits((BLOCKS + 7) / 8);
			for (uint64_t b : changed)
				bits[b / 8] |= uint8_t(0x80 >> b % 8);
			return Json{{"changed", Json::binary(bits)}};
		};
	}
	~Copier() { std::filesystem::remove_all(folder); }

	std::string noise(size_t bytes)
	{
		std::string s(bytes, '\0');
		for (size_t i = 0; i + 4 <= bytes; i += 4) {
			const uint32_t n = random();
			memcpy(&s[i], &n, 4);
		}
		return s;
	}
	void make(Disk &d, const std::string &bytes, std::vector<bool> written)
	{
		d.fill(bytes + std::string(METADATA_ROOM, '\0'));
		REQUIRE(stamp_replica({d.path, SIZE, 1, UUID1, SIZE, LKS_BLOCK_DEFAULT, 2, 5, 3}, written));
	}
	CopyTask task(bool with_base, bool thin = true)
	{
		CopyTask t;
		t.lv = {"vg", thin, 1, 7, 1, UUID2, 0};
		t.path = target.path;
		t.thin_pool = thin ? "thin" : "";
		t.metadata = {target.path, SIZE, 1, UUID1, SIZE, LKS_BLOCK_DEFAULT, 1, 1, 1};
		if (with_base)
			t.base = CopyBase{{"vg", "lockstep.1", "tag"}, SIZE, SIZE, 0};
		t.source = 2;
		return t;
	}
	Done run(const CopyTask &t)
	{
		progress.sent_blocks = 0;
		whole = 0;
		auto offset = copy_snapshot(lvm, ask, t, progress);
		if (!offset)
			return offset.error();
		CHECK(*offset == SIZE);
		return Nothing{};
	}
};

}    // namespace

TEST_CASE("only what differs is brought over; extents never written read as zeros on either side")
{
	Copier c;
	const std::string bytes = c.noise(SIZE);
	// Extent 1 is written at the source only, extent 2 only here, extent 3 nowhere, though both disks hold something there.
	c.make(c.source, bytes, {true, true, false, false});
	std::string older = bytes;
	for (uint64_t block : {3, 17})
		older.replace(block * COPY_BLOCK_BYTES, 4096, c.noise(4096));
	c.make(c.base, older, {true, false, true, false});
	const bool thin = GENERATE(false, true);
	if (thin) {    // there, what was never written is zeros
		for (Disk *d : {&c.source, &c.base}) {
			std::string raw = d->content() + d->raw().substr(SIZE);
			d->fill(raw);
		}
	}
	REQUIRE(c.run(c.task(true, thin)));
	CHECK(c.target.content() == c.source.content());
	CHECK(c.progress.sent_blocks == 2 + 64 + 64);
	CHECK(c.progress.done_blocks == c.progress.total_blocks);
	CHECK((*written_extents(c.target.path, SIZE))[3] == false);
	auto sb = read_superblock(c.target.path, SIZE);
	REQUIRE((sb && *sb));
	CHECK((*sb)->host == 1);
	CHECK((*sb)->clean == 1);
	// Once more over itself: nothing is left to bring.
	c.base.fill(c.target.raw());
	REQUIRE(c.run(c.task(true, thin)));
	CHECK(c.progress.sent_blocks == 0);
}

TEST_CASE("of a thick copy only the pieces that differ are written: its reserve is spent in these")
{
	Copier c;
	std::string bytes(SIZE, '\0');
	c.make(c.base, bytes, {true, true, true, true});
	for (uint64_t block : {3, 17, 40})
		bytes.replace(block * COPY_BLOCK_BYTES + 2 * 4096, 4096, c.noise(4096));
	c.make(c.source, bytes, {true, true, true, true});
	// What nobody writes stays a hole.
	const auto begin = c.lvm.begin_copy;
	c.lvm.begin_copy = [&](const SnapshotLv &lv, const OrphanLv &from, const std::string &pool, uint64_t size) {
		auto begun = begin(lv, from, pool, size);
		std::filesystem::resize_file(c.target.path, 0);
		std::filesystem::resize_file(c.target.path, SIZE);
		std::ofstream(c.target.path, std::ios::binary | std::ios::app) << c.base.raw().substr(SIZE);
		return begun;
	};
	const bool thin = GENERATE(false, true);
	REQUIRE(c.run(c.task(true, thin)));
	CHECK(c.target.content() == c.source.content());
	CHECK(c.progress.sent_blocks == 3);
	struct stat st;
	REQUIRE(stat(c.target.path.c_str(), &st) == 0);
	const uint64_t data = uint64_t(st.st_blocks) * 512;
	CHECK((data < 3 * COPY_BLOCK_BYTES + METADATA_ROOM + COPY_BLOCK_BYTES) == true);
	CHECK((data < METADATA_ROOM + COPY_BLOCK_BYTES) == !thin);
}

TEST_CASE("without anything to begin with, all that was written and is not zeros is brought over")
{
	Copier c;
	std::string bytes(SIZE, '\0');
	bytes.replace(COPY_BLOCK_BYTES, 5000, c.noise(5000));
	bytes.replace(SIZE - 4096, 4096, c.noise(4096));
	c.make(c.source, bytes, {true, true, false, true});
	REQUIRE(c.run(c.task(false)));
	CHECK(c.target.content() == bytes);
	CHECK(c.progress.sent_blocks == 2);
}

TEST_CASE("with a snapshot that both have, only the blocks that the thin pool names are looked at")
{
	Copier c;
	const std::string bytes = c.noise(SIZE);
	c.make(c.source, bytes, {true, true, true, true});
	std::string other = bytes;
	other.replace(5 * COPY_BLOCK_BYTES, 4096, c.noise(4096));
	other.replace(SIZE - 4096, 4096, c.noise(4096));
	c.make(c.base, other, {true, true, true, true});
	c.changed = {5, 6, BLOCKS - 1};
	CopyTask t = c.task(true);
	t.base->sid = 9;
	t.source_has_base = true;
	REQUIRE(c.run(t));
	CHECK(c.target.content() == bytes);
	CHECK(c.progress.total_blocks == 3);
	CHECK(c.progress.sent_blocks == 2);
}

TEST_CASE("interrupted at any question a copy is nobody's replica, and begun anew it is whole")
{
	Copier c;
	const std::string bytes = c.noise(SIZE);
	c.make(c.source, bytes, {true, true, true, true});
	c.make(c.base, c.noise(SIZE), {true, true, true, true});
	const CopyTask t = c.task(true);
	REQUIRE(c.run(t));
	const uint64_t questions = c.asked - 1;    // the last one is only a courtesy
	REQUIRE(questions > 5);
	for (uint64_t n = 1; n <= questions; n++) {
		INFO("question " << n);
		c.asked = 0;
		c.fail_at = n;
		CHECK_FALSE(c.run(t));
		CHECK_FALSE(read_superblock(c.target.path, SIZE).operator*());
	}
	c.fail_at = 0;
	c.progress.stop = true;
	CHECK_FALSE(c.run(t));
	CHECK_FALSE(read_superblock(c.target.path, SIZE).operator*());
	c.progress.stop = false;
	CHECK(c.whole == 0);
	REQUIRE(c.run(t));
	CHECK(c.target.content() == bytes);
	// What is whole is not made anew.
	c.begun = c.asked = 0;
	CHECK(copy_snapshot(c.lvm, c.ask, t, c.progress).operator*() == SIZE);
	CHECK(c.begun + c.asked == 0);
}

TEST_CASE("an answer that makes no sense is an error, not content")
{
	Copier c;
	c.make(c.source, c.noise(SIZE), {true, true, true, true});
	const AskHost honest = c.ask;
	const int lie = GENERATE(range(0, 5));
	c.ask = [&, lie](HostId host, const std::string &verb, Json body, uint64_t timeout_ms, const std::atomic<bool> &stop) -> Result<Json> {
		Result<Json> answer = honest(host, verb, body, timeout_ms, stop);
		if (verb == "snapshot.map" && lie == 0)
			(*answer)["written"] = Json::binary({1, 2, 3});
		if (verb == "snapshot.blocks" && lie == 1)
			(*answer)["which"][0] = 1u << 20;
		if (verb == "snapshot.blocks" && lie == 2)
			(*answer)["data"] = Json::binary({1});
		if (verb == "snapshot.blocks" && lie == 3)
			answer = Json(nullptr);
		if (verb == "snapshot.blocks" && lie == 4)
			(*answer)["data"] = "text";
		return answer;
	};
	const Done done = c.run(c.task(false));
	REQUIRE_FALSE(done);
	CHECK(done.error().message.find("not understood") != std::string::npos);
	const CopySource from{c.source.path, SIZE, SIZE, LKS_BLOCK_DEFAULT};
	CHECK_FALSE(source_blocks(from, {{"blocks", {BLOCKS}}, {"sums", Json::binary(std::vector<uint8_t>(32))}}));
	CHECK_FALSE(source_blocks(from, {{"blocks", {2, 1}}, {"sums", Json::binary(std::vector<uint8_t>(64))}}));
	CHECK_FALSE(source_blocks(from, {{"blocks", {1}}, {"sums", Json::binary(std::vector<uint8_t>(31))}}));
}

// ---- the reconciler ----

namespace {

// A volume on alpha, beta and gamma with a snapshot that alpha did not take.
struct Missing {
	FakeWorld w;
	uint32_t vid = 0, sid = 0;

	Missing()
	{
		w.start_daemon();
		w.make_thin();
		vid = tell({{"op", "volume.create"}, {"name", "db1"}, {"uuid", VOLUME_UUID}, {"size_bytes", GIB}, {"pool", "default"}, {"redundancy", 2},
			    {"hosts", {2, 3}}, {"now_ms", 1}})["vid"];
		for (int host : {2, 3})
			tell({{"op", "replica.created"}, {"vid", vid}, {"host", host}});
		tell({{"op", "record.open"}, {"vid", vid}, {"host", 2}});
		sid = tell({{"op", "snapshot.create"}, {"name", "s1"}, {"vids", {vid}}, {"uuids", {UUID2}}, {"now_ms", 1}})["sids"][0];
		tell({{"op", "snapshot.held"}, {"sid", sid}, {"host", 2}, {"attempt", 1}, {"hold", 5}});
		for (int host : {2, 3})
			tell({{"op", "snapshot.taken"}, {"sid", sid}, {"host", host}, {"attempt", 1}});
		tell({{"op", "snapshot.resumed"}, {"sid", sid}, {"host", 2}, {"attempt", 1}});
		tell({{"op", "replica.add"}, {"vid", vid}, {"host", 1}, {"asked", true}});
		REQUIRE(w.run_until([&] { return v().replica(1)->created; }));
		tell({{"op", "record.propose"}, {"vid", vid}, {"host", 2}, {"version", v().version}, {"term", v().term}, {"members", {1, 2, 3}}});
	}

	Json tell(Json entry)
	{
		Json answer = w.propose(std::move(entry));
		if (!w.killed())
			w.daemon().look();
		return answer;
	}
	const Volume &v() const { return *w.state.volume(vid); }
	const Snapshot &s() const { return *w.state.snapshot(sid); }
	std::string lv() const { return "/dev/vg/lockstep.1.s" + std::to_string(sid) + ".1"; }
	void copy() { tell({{"op", "snapshot.copy"}, {"sid", sid}, {"host", 1}, {"pool", "default"}}); }
};

}    // namespace

TEST_CASE("a copy arrives, goes, and comes again: killed or failing at any step, it converges")
{
	const Fault fault = GENERATE(Fault::fails, Fault::killed_before, Fault::killed_after);
	uint64_t last = 1;
	for (uint64_t k = 0; k <= last; k++) {
		INFO("fault " << int(fault) << " at step " << k);
		Missing m;
		m.w.run_for(1000);
		const uint64_t begun = m.w.steps;
		m.w.fault = fault;
		m.w.fault_at = k ? begun + k : 0;
		m.copy();
		REQUIRE(m.w.run_until([&] { return m.s().copy(1) != nullptr; }));
		CHECK(m.w.lvs.at(m.lv()).content == "over lockstep.1");
		CHECK(m.s().copy(1)->md_offset == m.v().replica(1)->md_offset);
		m.tell({{"op", "snapshot.drop"}, {"sid", m.sid}, {"host", 1}});
		REQUIRE(m.w.run_until([&] { return !m.s().trace(1); }));
		CHECK_FALSE(m.w.lvs.contains(m.lv()));
		m.copy();
		REQUIRE(m.w.run_until([&] { return m.s().copy(1) != nullptr; }));
		m.w.run_for(60'000);
		CHECK(m.w.violations.empty());
		CHECK(m.w.daemon().problems().empty());
		const auto calls = m.w.calls.size();
		m.w.run_for(60'000);
		CHECK(m.w.calls.size() == calls);
		if (!k)
			last = m.w.steps - begun;
	}
	CHECK(last >= 6);
}

TEST_CASE("a snapshot is deleted, or its copy called off, while the copy is made")
{
	Missing m;
	m.w.failing["copy_snapshot"] = "connection lost";
	m.copy();
	m.w.run_for(5000);
	REQUIRE(m.w.daemon().problems().size() == 1);
	CHECK(m.w.daemon().problems()[0].message == "connection lost");
	m.w.lvs[m.lv()].lv.tags = {snapshot_lv_tag(UUID2)};    // half of it
	if (GENERATE(false, true)) {
		m.tell({{"op", "snapshot.drop"}, {"sid", m.sid}, {"host", 1}});
		REQUIRE(m.w.run_until([&] { return !m.s().trace(1); }));
	} else {
		m.tell({{"op", "snapshot.delete"}, {"sid", m.sid}});
		for (int host : {2, 3})
			m.tell({{"op", "snapshot.removed"}, {"sid", m.sid}, {"host", host}});
		REQUIRE(m.w.run_until([&] { return m.w.state.snapshots.empty(); }));
	}
	CHECK_FALSE(m.w.lvs.contains(m.lv()));
	m.w.run_for(1000);
	CHECK(m.w.daemon().problems().empty());
}

TEST_CASE("what a copy begins with, and whom it is asked of")
{
	Missing m;
	auto task = [&](unsigned tries = 0) { return copy_task(m.w.state, 1, m.s(), {1, "default", GIB, false}, tries); };
	REQUIRE(task());
	CHECK(task()->base->lv.name == "lockstep.1");
	CHECK_FALSE(task()->source_has_base);
	CHECK(std::set{task(0)->source, task(1)->source} == std::set<HostId>{2, 3});
	// A newer snapshot that this host and gamma have: gamma can say what differs.
	Snapshot newer = m.s();
	newer.sid = m.sid + 5;
	newer.uuid = UUID3;
	newer.copies = {{1, "default", GIB + 4096, true}, {3, "default", GIB, true}};
	m.w.state.snapshots[newer.sid] = newer;
	CHECK(task()->base->sid == newer.sid);
	CHECK(task()->metadata.offset == GIB + 4096);
	CHECK(task()->source == 3);
	CHECK(task()->source_has_base);
	CHECK(task(1)->source == 2);
	CHECK_FALSE(task(1)->source_has_base);
	// The nearer one is better; one of another size, or half copied, is none.
	Snapshot between = newer;
	between.sid = m.sid + 2;
	m.w.state.snapshots[between.sid] = between;
	CHECK(task()->base->sid == between.sid);
	m.w.state.snapshots[between.sid].size_bytes = 2 * GIB;
	CHECK(task()->base->sid == newer.sid);
	m.w.state.snapshots[newer.sid].copies.erase(m.w.state.snapshots[newer.sid].copies.begin());
	CHECK(task()->base->sid == 0);
	// The volume has grown: in a thin pool nothing of it may show behind the copy's end.
	m.w.state.volumes[m.vid].size_bytes = 2 * GIB;
	CHECK_FALSE(task()->base);
	CHECK(task()->metadata.offset == GIB);
	for (HostId h : {2, 3})
		m.w.state.hosts[h].online = false;
	CHECK(task().error().message == "snapshot s1 of volume db1: no host that has a whole copy is online");
}
