// SPDX-License-Identifier: GPL-2.0-or-later
//
// A revert in a thick pool: what is copied back into the replica's own LV, and what is asked before.
#include <catch2/catch_test_macros.hpp>

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "lockstepd/host/revert.h"
#include "test/unit/host/fakes.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

constexpr uint64_t REVERT_EXTENTS = 5, REVERT_BYTES = REVERT_EXTENTS * LKS_EXTENT_BYTES;

// A replica's LV and a snapshot of it, as files.
struct Reverting {
	std::string folder, lv, snapshot;
	ContentProgress progress;

	Reverting()
	{
		char name[] = "/tmp/lockstep-revert-XXXXXX";
		REQUIRE(mkdtemp(name));
		folder = name;
		lv = folder + "/lv";
		snapshot = folder + "/snapshot";
		std::ofstream(lv).close();
		std::filesystem::resize_file(lv, replica_lv_bytes(REVERT_BYTES, REVERT_BYTES, LKS_BLOCK_DEFAULT));
		REQUIRE(stamp_replica(replica(5), {true, true, false, true, false}));
		for (uint64_t extent = 0; extent < REVERT_EXTENTS; extent++)
			put(extent * LKS_EXTENT_BYTES, 3 * 4096, char('a' + extent));
		std::filesystem::copy_file(lv, snapshot);
	}
	~Reverting() { std::filesystem::remove_all(folder); }

	ReplicaMetadata replica(uint64_t version) const { return {lv, REVERT_BYTES, 1, VOLUME_UUID, REVERT_BYTES, LKS_BLOCK_DEFAULT, 1, version, 2}; }
	void put(uint64_t at, size_t bytes, char what)
	{
		std::fstream f(lv, std::ios::in | std::ios::out | std::ios::binary);
		f.seekp(std::streamoff(at));
		f << std::string(bytes, what);
	}
	std::string get(const std::string &path, uint64_t at, size_t bytes)
	{
		std::string s(bytes, '?');
		std::ifstream f(path, std::ios::binary);
		f.seekg(std::streamoff(at));
		f.read(s.data(), std::streamsize(bytes));
		return s;
	}
	// Of what counts as written in the snapshot.
	bool as_the_snapshot()
	{
		for (uint64_t extent : {0, 1, 3})
			if (get(lv, extent * LKS_EXTENT_BYTES, LKS_EXTENT_BYTES) != get(snapshot, extent * LKS_EXTENT_BYTES, LKS_EXTENT_BYTES))
				return false;
		auto written = written_extents(lv, REVERT_BYTES);
		return written && *written == std::vector<bool>{true, true, false, true, false};
	}
	uint64_t version()
	{
		auto sb = read_superblock(lv, REVERT_BYTES);
		return sb && *sb ? (*sb)->version : 0;
	}
};

}    // namespace

TEST_CASE("a replica gets the content of a snapshot of its own LV: only what differs is written, and metadata are of the new version")
{
	Reverting r;
	REQUIRE(stamp_replica(r.replica(8), {true, true, true, true, false}));    // one more extent since
	r.put(4096, 4096, 'x');
	r.put(3 * LKS_EXTENT_BYTES + 8192, 8192, 'y');
	r.put(2 * LKS_EXTENT_BYTES, 4096, 'z');    // it was never written by then: reads zeros again, whatever is there
	REQUIRE(revert_replica(r.snapshot, r.replica(9), r.progress));
	CHECK(r.as_the_snapshot());
	CHECK(r.version() == 9);
	CHECK(r.progress.total_bytes == 3 * LKS_EXTENT_BYTES);
	CHECK(r.progress.done_bytes == r.progress.total_bytes);
	CHECK(r.progress.changed_bytes <= 3 * 4096 + 16 * 4096);    // and some of the metadata
	CHECK(r.progress.changed_bytes >= 3 * 4096);
	CHECK(r.get(r.lv, 2 * LKS_EXTENT_BYTES, 4096) == std::string(4096, 'z'));
	// Done: it may be newer by now.
	r.put(0, 4096, 'n');
	REQUIRE(revert_replica(r.snapshot, r.replica(9), r.progress));
	CHECK(r.get(r.lv, 0, 4096) == std::string(4096, 'n'));
}

TEST_CASE("a revert that was broken off leaves no replica, and is done when it is begun anew")
{
	Reverting r;
	r.put(4096, 4096, 'x');
	r.progress.stop = true;
	CHECK(!revert_replica(r.snapshot, r.replica(9), r.progress));
	CHECK(r.version() == 0);    // for nobody: neither of them is all of it
	r.progress.stop = false;
	REQUIRE(revert_replica(r.snapshot, r.replica(9), r.progress));
	CHECK(r.as_the_snapshot());
	CHECK(r.version() == 9);
}

TEST_CASE("what is no snapshot of the replica changes nothing")
{
	Reverting r;
	ReplicaMetadata other = r.replica(9);
	other.host = 2;
	CHECK(!revert_replica(r.snapshot, other, r.progress));
	CHECK(!is_content_of(r.snapshot, other));
	CHECK(is_content_of(r.snapshot, r.replica(0)));
	CHECK(r.version() == 5);
	std::filesystem::resize_file(r.snapshot, REVERT_BYTES);
	CHECK(!revert_replica(r.snapshot, r.replica(9), r.progress));
	CHECK(r.version() == 5);
}

TEST_CASE("a host says before a revert whether its snapshots bear it")
{
	FakeWorld w;
	w.start_daemon();
	w.propose({{"op", "volume.create"}, {"name", "db1"}, {"uuid", VOLUME_UUID}, {"size_bytes", GIB}, {"pool", "default"}, {"redundancy", 1}, {"hosts", {1}},
		   {"now_ms", 1}});
	REQUIRE(w.run_until([&] { return w.state.volumes.at(1).phase == Phase::ready; }));
	const auto add = [&](uint32_t sid, double used) {
		Snapshot s;
		s.sid = s.set = sid;
		s.uuid = UUID3;
		s.name = "s" + std::to_string(sid);
		s.vid = 1;
		s.volume_uuid = VOLUME_UUID;
		s.volume = "db1";
		s.size_bytes = GIB;
		s.phase = SnapshotPhase::ready;
		s.copies = {{1, "default", GIB, true}};
		w.state.snapshots[sid] = s;
		FakeLv &f = w.lvs["/dev/vg/lockstep.1.s" + std::to_string(sid) + ".1"];
		f.lv.vg = "vg";
		f.lv.name = "lockstep.1.s" + std::to_string(sid) + ".1";
		f.lv.size_bytes = 200 << 20;
		f.lv.data_percent = used;
	};
	std::string asked;
	const auto can = [&] {
		return can_revert_in_place(w.lvm(), [&](const std::string &from, const ReplicaMetadata &to) {
			asked = from + " " + to.path;
			return Done(Nothing{});
		}, w.state, 1, 2);
	};
	add(1, 40);
	add(2, 50);
	CHECK(can());
	CHECK(asked == "/dev/vg/lockstep.1.s2.1 /dev/vg/lockstep.1");
	add(1, 99.9);
	REQUIRE(!can());
	INFO(can().error().message);
	CHECK(can().error().message.find("snapshot s1 of volume db1: its copy on host alpha has ") == 0);
	CHECK(can().error().message.find(" needed: delete it, or run `lvextend --size +") != std::string::npos);
	add(1, 100);
	CHECK(can());    // it is lost as it is
	add(2, 100);
	CHECK(can().error().message == "snapshot s2 of volume db1: its copy on host alpha is lost: its reserve was too small for what was written since");
	w.lvs.erase("/dev/vg/lockstep.1.s2.1");
	CHECK(!can());
	add(2, 50);
	CHECK(can_revert_in_place(w.lvm(), [](const std::string &, const ReplicaMetadata &) { return Done(failed("cannot read it")); }, w.state, 1, 2).error().message ==
	      "cannot read it");
	// A newer one takes what this one has more than it, at most; one that was copied here, or any if this one was, all of that; an older one nothing.
	add(3, 20);
	CHECK(can());
	add(3, 46);
	CHECK(can());
	w.lvs["/dev/vg/lockstep.1.s3.1"].lv.size_bytes = 110 << 20;    // 59 MiB left, 51 MiB used; of 100 MiB
	CHECK(can());
	w.lvs["/dev/vg/lockstep.1.s3.1"].lv.size_bytes = 90 << 20;     // 49 MiB left, 41 MiB used
	REQUIRE(!can());
	INFO(can().error().message);
	CHECK(can().error().message.find("snapshot s3 of volume db1: its copy on host alpha has 48.5 MiB left of its reserve, 60.6 MiB needed: ") == 0);
	add(3, 60);
	CHECK(can());
	w.state.snapshots[3].copies[0].added = 7;
	CHECK(!can());
	add(3, 40);
	w.state.snapshots[3].copies[0].added = 7;
	CHECK(can());
	add(1, 60);
	CHECK(can());
	w.state.snapshots[2].copies[0].added = 7;
	CHECK(!can());
	add(1, 40);
	CHECK(can());
}
