// SPDX-License-Identifier: GPL-2.0-or-later
//
// The format on disk: sealing, layout, and what attaching makes of metadata that are sound, torn, damaged or another's.
#include "device.h"

#include <functional>
#include <random>

using namespace lockstep::test;

TEST_CASE("superblocks and extent records are sealed and verified")
{
	Device d;
	d.format();
	CHECK(lks_superblock_verify(&d.copy(0)) == 0);
	CHECK(lks_superblock_verify(&d.copy(1)) == -EUCLEAN);    // not valid yet
	uint64_t tag;
	memcpy(&tag, d.params.uuid, sizeof(tag));
	CHECK(lks_extent_record_valid(&d.record(0), 0, tag));
	CHECK_FALSE(lks_extent_record_valid(&d.record(0), 1, tag));         // misplaced
	CHECK_FALSE(lks_extent_record_valid(&d.record(0), 0, tag + 1));     // another volume's
	std::mt19937 random(3);
	for (unsigned n = 0; n < 4000; n++) {
		size_t bit = random() % (sizeof(lks_superblock) * 8);
		lks_superblock sb = d.copy(0);
		reinterpret_cast<uint8_t *>(&sb)[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
		CHECK(lks_superblock_verify(&sb) == -EUCLEAN);
		bit %= sizeof(lks_extent_record) * 8;
		lks_extent_record r = d.record(0);
		reinterpret_cast<uint8_t *>(&r)[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
		CHECK_FALSE(lks_extent_record_valid(&r, 0, tag));
	}
}

TEST_CASE("the layout is right at its limits")
{
	auto layout = [](uint64_t size, uint32_t block_size) {
		lks_layout l;
		lks_layout_of(size, block_size, &l);
		CHECK(l.table_offset == 2 * LKS_META_UNIT);
		CHECK(l.slot_offset == l.table_offset + l.table_bytes);
		CHECK(l.slot_offset % LKS_META_UNIT == 0);
		CHECK(l.slot_bytes % LKS_META_UNIT == 0);
		CHECK(l.slot_bytes * 8 >= l.blocks);
		CHECK(l.table_bytes / 512 * LKS_EXTENTS_PER_RECORD >= l.extents);
		CHECK(l.total_bytes == l.slot_offset + LKS_SLOTS * l.slot_bytes);
		return l;
	};
	lks_layout l = layout(4096, LKS_BLOCK_MAX);
	CHECK(l.extents == 1);
	CHECK(l.blocks == 1);
	CHECK(l.table_bytes == LKS_META_UNIT);
	CHECK(l.slot_bytes == LKS_META_UNIT);
	l = layout(LKS_EXTENT_BYTES, LKS_BLOCK_MIN);
	CHECK(l.extents == 1);
	CHECK(l.blocks == 1024);
	l = layout(LKS_EXTENT_BYTES + 4096, LKS_BLOCK_MIN);
	CHECK(l.extents == 2);
	CHECK(l.blocks == 1025);
	uint64_t unit = static_cast<uint64_t>(LKS_EXTENTS_PER_UNIT) * LKS_EXTENT_BYTES;
	CHECK(layout(unit, LKS_BLOCK_DEFAULT).table_bytes == LKS_META_UNIT);
	CHECK(layout(unit + 4096, LKS_BLOCK_DEFAULT).table_bytes == 2 * LKS_META_UNIT);
	uint64_t leaf = LKS_META_UNIT * 8ull * LKS_BLOCK_DEFAULT;
	CHECK(layout(leaf, LKS_BLOCK_DEFAULT).slot_bytes == LKS_META_UNIT);
	CHECK(layout(leaf + 4096, LKS_BLOCK_DEFAULT).slot_bytes == 2 * LKS_META_UNIT);
	l = layout(64ull << 40, LKS_BLOCK_MIN);
	CHECK(l.extents == 16ull << 20);
	CHECK(l.blocks == 16ull << 30);
	CHECK(l.slot_bytes == 2ull << 30);
	l = layout(1ull << 40, LKS_BLOCK_DEFAULT);
	CHECK(l.table_bytes <= 72 * 1024);    // about 64 KiB a TiB
}

TEST_CASE("a volume is created within its limits only")
{
	Device d;
	auto possible = [&](const std::function<void(lks_vol_params &)> &change) {
		lks_vol_params p = d.params;
		change(p);
		lks_vol *v = lks_vol_create(&p, Device::ops(), &d);
		if (v)
			lks_vol_destroy(v);
		return v != nullptr;
	};
	CHECK(possible([](lks_vol_params &) {}));
	CHECK(possible([](lks_vol_params &p) { p.size = 4096; }));
	CHECK(possible([](lks_vol_params &p) { p.size = 64ull << 40; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.size = 0; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.size = 4096 + 512; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.size = (64ull << 40) + 4096; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.block_size = 0; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.block_size = 2048; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.block_size = 12288; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.block_size = 2u << 20; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.self = 0; }));
	CHECK_FALSE(possible([](lks_vol_params &p) { p.self = 65; }));
}

TEST_CASE("what was formatted can be attached, and is clean")
{
	for (uint64_t size : std::vector<uint64_t>{4096, 64 * MIB, 9 * MIB + 4096, 100ull << 30}) {
		Device d(size);
		d.format();
		REQUIRE(d.attach() == 0);
		CHECK_FALSE(d.suspect);
		CHECK(d.version == 1);
		CHECK(d.term == 1);
		struct lks_vol_status s = d.status();
		CHECK(s.attached);
		CHECK_FALSE(s.admitted);
		CHECK(s.hot_extents == 0);
		CHECK(s.written_extents == 0);
		CHECK(d.transfers == 0);
		CHECK(lks_vol_attach(d.volume, d.offset, false, Device::read, &d, 1000, &d.suspect, &d.version, &d.term) == -EBUSY);
	}
}

TEST_CASE("half a format is no replica")
{
	Device d;
	CHECK(d.attach() == -EUCLEAN);
	lks_superblock sb = d.superblock();
	for (uint64_t at = d.layout.slot_offset; at > LKS_META_UNIT; at -= LKS_META_UNIT)
		lks_format_unit(&sb, at - LKS_META_UNIT, &d.meta[at - LKS_META_UNIT]);
	CHECK(d.attach() == -EUCLEAN);
}

TEST_CASE("the valid superblock with the larger sequence number counts")
{
	Device d;
	d.format();
	auto write = [&](unsigned n, uint64_t sequence, uint64_t version) {
		lks_superblock sb = d.superblock();
		sb.sequence = sequence;
		sb.version = version;
		lks_superblock_seal(&sb);
		d.copy(n) = sb;
	};
	write(0, 5, 50);
	write(1, 6, 60);
	REQUIRE(d.attach() == 0);
	CHECK(d.version == 60);
	write(0, 7, 70);
	REQUIRE(d.attach() == 0);
	CHECK(d.version == 70);

	SECTION("a torn write of either copy leaves the other, whichever sectors of it have arrived")
	{
		for (unsigned torn : {0u, 1u}) {
			write(1 - torn, 8, 80);
			lks_superblock before = d.superblock();
			before.sequence = 7;
			lks_superblock_seal(&before);
			lks_superblock after = before;
			after.sequence = 9;
			after.version = 90;
			after.slots[0] = {.host = 1, .pad = {}, .since = 3};
			lks_superblock_seal(&after);
			for (unsigned sectors = 0; sectors < 256; sectors++) {
				d.copy(torn) = before;
				for (unsigned s = 0; s < 8; s++)
					if (sectors >> s & 1)
						memcpy(&d.meta[torn * LKS_META_UNIT + s * 512], reinterpret_cast<uint8_t *>(&after) + s * 512, 512);
				REQUIRE(d.attach() == 0);
				bool whole = !memcmp(&d.copy(torn), &after, sizeof(after));
				REQUIRE(d.version == (whole ? 90 : 80));
			}
		}
	}
	SECTION("both damaged: no replica")
	{
		d.copy(0).crc ^= 1;
		d.copy(1).crc ^= 1;
		CHECK(d.attach() == -EUCLEAN);
	}
}

TEST_CASE("another volume's, host's or size's metadata are refused")
{
	Device d;
	d.format();
	auto refused = [&](const std::function<void(lks_superblock &)> &change) {
		lks_superblock sb = d.superblock();
		change(sb);
		sb.sequence = 1;
		lks_superblock_seal(&sb);
		d.copy(0) = sb;
		return d.attach() == -EUCLEAN;
	};
	CHECK_FALSE(refused([](lks_superblock &) {}));
	CHECK(refused([](lks_superblock &sb) { sb.vid = 8; }));
	CHECK(refused([](lks_superblock &sb) { sb.uuid[15] ^= 1; }));
	CHECK(refused([](lks_superblock &sb) { sb.host = 4; }));
	CHECK(refused([](lks_superblock &sb) { sb.size -= 4096; }));
	CHECK(refused([](lks_superblock &sb) { sb.size += 512; }));
	CHECK(refused([](lks_superblock &sb) { sb.size = LKS_SIZE_MAX + LKS_META_UNIT; }));
	CHECK(refused([](lks_superblock &sb) { sb.retire = 4096, sb.retire_end = 512; }));
	CHECK(refused([](lks_superblock &sb) { sb.retire_end = sb.size + 4096; }));
	CHECK(refused([](lks_superblock &sb) { sb.block_size = 4096; }));
	CHECK_FALSE(refused([](lks_superblock &sb) { sb.slots[6] = {.host = 64, .pad = {}, .since = 1}; }));
	CHECK(refused([](lks_superblock &sb) { sb.slots[6] = {.host = 65, .pad = {}, .since = 1}; }));
	CHECK(refused([](lks_superblock &sb) { sb.slots[0] = {.host = 3, .pad = {}, .since = 1}; }));    // itself
	CHECK(refused([](lks_superblock &sb) {
		sb.slots[1] = {.host = 9, .pad = {}, .since = 1};
		sb.slots[4] = {.host = 9, .pad = {}, .since = 2};
	}));
}

TEST_CASE("hot extents make a replica suspect")
{
	Device d;
	d.format();
	d.set_extent(3, LKS_EXTENT_WRITTEN);
	REQUIRE(d.attach() == 0);
	CHECK_FALSE(d.suspect);
	CHECK(d.status().written_extents == 1);
	d.set_extent(5, LKS_EXTENT_HOT | LKS_EXTENT_WRITTEN);
	REQUIRE(d.attach() == 0);
	CHECK(d.suspect);
	CHECK(d.status().hot_extents == 1);
	CHECK(d.status().written_extents == 2);
}

TEST_CASE("a damaged extent record counts as hot and written, and no more than that")
{
	Device d(3 * LKS_EXTENTS_PER_RECORD * uint64_t{LKS_EXTENT_BYTES});
	d.format();
	SECTION("flipped bit")
	{
		d.record(1).bits[100] ^= 4;
	}
	SECTION("another record in its place")
	{
		d.record(1) = d.record(2);
	}
	SECTION("garbage")
	{
		memset(&d.record(1), 0x77, sizeof(lks_extent_record));
	}
	SECTION("zeros")
	{
		memset(&d.record(1), 0, sizeof(lks_extent_record));
	}
	REQUIRE(d.attach() == 0);
	CHECK(d.suspect);
	CHECK(d.status().hot_extents == LKS_EXTENTS_PER_RECORD);
	CHECK(d.status().written_extents == LKS_EXTENTS_PER_RECORD);
}

TEST_CASE("of a damaged last record only the extents that exist count")
{
	Device d(10 * uint64_t{LKS_EXTENT_BYTES} + 4096);
	d.format();
	d.record(0).crc ^= 1;
	REQUIRE(d.attach() == 0);
	CHECK(d.status().hot_extents == 11);
}

TEST_CASE("attaching survives a failing allocation at each site")
{
	Device d;
	d.format();
	d.set_extent(1, LKS_EXTENT_HOT | LKS_EXTENT_WRITTEN);
	lks_superblock sb = d.superblock();
	sb.sequence = 2;
	sb.slots[2] = {.host = 9, .pad = {}, .since = 1};
	lks_superblock_seal(&sb);
	d.copy(0) = sb;
	unsigned failed = 0;
	for (size_t n = 0;; n++) {
		d.allocations_left = n;
		int err = d.attach();
		if (err == 0 && d.allocations_left)
			break;
		REQUIRE((err == 0 || err == -ENOMEM));    // where it goes on without, it must have assumed more, not less
		if (err == 0)
			CHECK(d.suspect);
		failed += err != 0;
		d.destroy();
		REQUIRE(d.memory.empty());
		REQUIRE(n < 1000);
	}
	CHECK(failed > 3);
}

TEST_CASE("an unreadable device is an error and leaves nothing behind")
{
	Device d;
	d.format();
	d.offset += d.layout.total_bytes;    // reads end behind the device
	lks_vol *v = lks_vol_create(&d.params, Device::ops(), &d);
	REQUIRE(v);
	auto fails = [](void *, u64, void *, u32) { return -EIO; };
	bool suspect;
	u64 version, term;
	CHECK(lks_vol_attach(v, d.offset, false, fails, nullptr, 1, &suspect, &version, &term) == -EIO);
	lks_vol_destroy(v);
	CHECK(d.memory.empty());
}
