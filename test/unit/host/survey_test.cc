// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a host says of its disks when all logs are lost.
#include <catch2/catch_test_macros.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "fakes.h"
#include "lockstepd/host/metadata.h"
#include "lockstepd/host/survey.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

constexpr uint64_t VOLUME_BYTES = 64 << 20, OFFSET = VOLUME_BYTES;

ReplicaMetadata replica_at(const std::string &path)
{
	return {path, OFFSET, 7, VOLUME_UUID, VOLUME_BYTES, LKS_BLOCK_DEFAULT, 2, 5, 3};
}

// A file in place of an LV.
struct File {
	File()
	{
		char name[] = "/tmp/lockstep-unit-XXXXXX";
		const int fd = mkstemp(name);
		REQUIRE(fd >= 0);
		REQUIRE(ftruncate(fd, off_t(replica_lv_bytes(OFFSET, VOLUME_BYTES, LKS_BLOCK_DEFAULT))) == 0);
		close(fd);
		path = name;
	}
	~File() { unlink(path.c_str()); }

	// Bits of the first extents.
	void set_extents(uint8_t bits)
	{
		lks_extent_record r;
		const int fd = open(path.c_str(), O_RDWR);
		const off_t at = off_t(OFFSET) + 2 * LKS_META_UNIT;
		REQUIRE(pread(fd, &r, sizeof r, at) == ssize_t(sizeof r));
		r.bits[0] = bits;
		lks_extent_record_seal(&r);
		REQUIRE(pwrite(fd, &r, sizeof r, at) == ssize_t(sizeof r));
		close(fd);
	}

	FoundCopy inspect(HostId host = 2, const std::string &uuid = VOLUME_UUID)
	{
		FoundCopy c;
		c.host = host;
		c.uuid = uuid;
		inspect_copy(path, c);
		return c;
	}

	std::string path;
};

}    // namespace

TEST_CASE("survey: a replica's metadata say which version it knows, and whether anything may be missing elsewhere")
{
	File f;
	CHECK(f.inspect().problem.find("no metadata of a replica") != std::string::npos);
	REQUIRE(format_replica(replica_at(f.path)));
	FoundCopy c = f.inspect();
	CHECK(c.problem == "");
	CHECK((c.vid == 7 && c.size_bytes == VOLUME_BYTES && c.block_size == LKS_BLOCK_DEFAULT && c.md_offset == OFFSET && c.version == 5 && c.term == 3));
	CHECK((c.quiet && c.written == 0 && c.absent.empty()));
	f.set_extents(LKS_EXTENT_WRITTEN | LKS_EXTENT_WRITTEN << 2);
	CHECK((f.inspect().quiet && f.inspect().written == 2));
	f.set_extents(LKS_EXTENT_WRITTEN | LKS_EXTENT_HOT);
	CHECK((!f.inspect().quiet && f.inspect().written == 1));
	CHECK(f.inspect(3).problem.find("host 2's replica") != std::string::npos);
	CHECK(f.inspect(2, UUID3).problem.find("another volume") != std::string::npos);
}

TEST_CASE("survey: what carries a tag of ours, its pools, and the numbers that are used up")
{
	FakeWorld w;
	auto put = [&](const std::string &name, std::vector<std::string> tags, bool active) {
		FakeLv f;
		f.lv.vg = "vg";
		f.lv.name = name;
		f.lv.path = "/dev/vg/" + name;
		f.lv.pool = "thin";
		f.lv.active = active;
		f.lv.tags = std::move(tags);
		w.lvs[f.lv.path] = f;
	};
	ReplicaLv lv;
	lv.vid = 7;
	lv.uuid = VOLUME_UUID;
	lv.added = 4;
	lv.cluster = UUID3;
	lv.name = "db.1";
	lv.pool = "fast";
	lv.group = "sr";
	lv.shared = true;
	put("lockstep.7", replica_tags(lv), true);
	put("lockstep.9.s12.1", {snapshot_lv_tag(UUID3)}, true);
	put("lockstep.8", {replica_lv_tag(UUID3)}, false);
	put("lockstep.5", {"lockstep.volume=nonsense"}, true);
	put("root", {"other"}, true);
	Lvm lvm = w.lvm();
	lvm.report_all = [report_all = lvm.report_all] {
		auto report = report_all();
		VolumeGroup torn;
		torn.name = "torn";
		torn.size_bytes = 77;
		torn.incomplete = true;
		report->groups.push_back(torn);
		return report;
	};
	FoundHost found;
	found.id = 2;
	std::vector<std::string> looked;
	REQUIRE(survey(lvm, found, [&](const std::string &path, FoundCopy &copy) {
		looked.push_back(path);
		copy.vid = 7;
	}));
	CHECK((found.top_vid == 9 && found.top_sid == 12));
	// A volume group that lacks a disk is known, as full.
	CHECK(found.incomplete == std::vector<std::string>{"torn"});
	const auto space = std::ranges::find(found.spaces, "torn", &FoundSpace::vg);
	REQUIRE(space != found.spaces.end());
	CHECK((space->size_bytes == 77 && space->free_bytes == 0));
	REQUIRE(found.copies.size() == 2);
	const FoundCopy &c = found.copies[0];
	CHECK((c.lv == "lockstep.7" && c.uuid == VOLUME_UUID && c.cluster == UUID3 && c.name == "db.1" && c.pool == "fast" && c.group == "sr" && c.shared && c.added == 4));
	CHECK((c.thin_pool == "thin" && c.problem == "" && c.host == 2));
	CHECK(w.count("show") == 1);
	// Its name is not that of the volume that it says it is of.
	CHECK(found.copies[1].problem.find("has not the name of a replica of volume number 7") != std::string::npos);
	CHECK(looked == std::vector<std::string>{"/dev/vg/lockstep.7", "/dev/vg/lockstep.8"});
}
