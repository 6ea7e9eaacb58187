// SPDX-License-Identifier: GPL-2.0-or-later
//
// The least that the core needs to attach a replica: memory, and a device in memory of which only the metadata exist. No
// transfer is ever carried out; what the core submits is remembered.
#pragma once

#include "core/core.h"

#include <catch2/catch_test_macros.hpp>

#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

namespace lockstep::test {

constexpr uint64_t MIB = 1ull << 20;

struct Device {
	lks_vol_params params{};
	lks_layout layout{};
	uint64_t offset = 0;                     // of the metadata
	std::vector<uint8_t> meta;
	std::map<void *, size_t> memory;
	size_t allocations_left = SIZE_MAX;      // then allocation fails
	size_t transfers = 0;
	lks_vol *volume = nullptr;
	bool suspect = false;
	uint64_t version = 0, term = 0;

	explicit Device(uint64_t size = 64 * MIB, uint32_t block_size = LKS_BLOCK_DEFAULT)
	{
		params.vid = 7;
		for (size_t i = 0; i < sizeof(params.uuid); i++)
			params.uuid[i] = static_cast<uint8_t>(i + 1);
		params.size = size;
		params.block_size = block_size;
		params.self = 3;
		params.lease_ms = LKS_LEASE_MS;
		params.answer_ms = LKS_ANSWER_MS;
		lks_layout_of(size, block_size, &layout);
		offset = LKS_ROUND_UP(size, LKS_META_UNIT);
		meta.resize(layout.total_bytes, 0xa5);
	}
	Device(const Device &) = delete;
	~Device()
	{
		destroy();
		CHECK(memory.empty());
	}

	lks_superblock superblock() const
	{
		lks_superblock sb{};
		sb.vid = params.vid;
		memcpy(sb.uuid, params.uuid, sizeof(sb.uuid));
		sb.size = params.size;
		sb.block_size = params.block_size;
		sb.host = params.self;
		sb.version = 1;
		sb.term = 1;
		return sb;
	}

	// In the order that core/disk.h asks for: superblock A last.
	void format()
	{
		lks_superblock sb = superblock();
		for (uint64_t at = layout.slot_offset; at > 0; at -= LKS_META_UNIT)
			lks_format_unit(&sb, at - LKS_META_UNIT, &meta[at - LKS_META_UNIT]);
	}

	lks_superblock &copy(unsigned n) { return *reinterpret_cast<lks_superblock *>(&meta[n * LKS_META_UNIT]); }
	lks_extent_record &record(uint64_t n)
	{
		return *reinterpret_cast<lks_extent_record *>(&meta[layout.table_offset + n * sizeof(lks_extent_record)]);
	}
	uint8_t *slot(unsigned n) { return &meta[layout.slot_offset + n * layout.slot_bytes]; }

	void set_extent(uint64_t extent, unsigned bits)
	{
		lks_extent_record &r = record(extent / LKS_EXTENTS_PER_RECORD);
		uint64_t i = extent % LKS_EXTENTS_PER_RECORD;
		r.bits[i / 4] = static_cast<uint8_t>((r.bits[i / 4] & ~(3u << i % 4 * 2)) | bits << i % 4 * 2);
		lks_extent_record_seal(&r);
	}

	int attach()
	{
		destroy();
		volume = lks_vol_create(&params, ops(), this);
		if (!volume)
			return -ENOMEM;
		return lks_vol_attach(volume, offset, false, read, this, 1000, &suspect, &version, &term);
	}

	void destroy()
	{
		if (volume)
			lks_vol_destroy(volume);
		volume = nullptr;
	}

	struct lks_vol_status status() const
	{
		struct lks_vol_status s{};
		lks_vol_status(volume, 1000, &s);
		return s;
	}

	static int read(void *reader, u64 at, void *to, u32 bytes)
	{
		Device &d = *static_cast<Device *>(reader);
		if (at < d.offset || at % LKS_META_UNIT || bytes % LKS_META_UNIT || at + bytes > d.offset + d.meta.size())
			return -EIO;
		memcpy(to, &d.meta[at - d.offset], bytes);
		return 0;
	}

	static const lks_ops *ops()
	{
		static const lks_ops table = {
			.alloc = [](void *ctx, size_t bytes) -> void * {
				Device &d = *static_cast<Device *>(ctx);
				if (!d.allocations_left)
					return nullptr;
				d.allocations_left--;
				void *p = bytes == LKS_META_UNIT ? aligned_alloc(LKS_META_UNIT, bytes) : malloc(bytes);
				memset(p, 0, bytes);
				d.memory[p] = bytes;
				return p;
			},
			.free = [](void *ctx, void *p, size_t bytes) {
				Device &d = *static_cast<Device *>(ctx);
				REQUIRE(d.memory.count(p));
				CHECK(d.memory[p] == bytes);
				d.memory.erase(p);
				free(p);
			},
			.buf_alloc = [](void *, u32) -> lks_buf * { return nullptr; },
			.buf_get = [](lks_buf *) {},
			.buf_put = [](lks_buf *) {},
			.buf_copy = [](lks_buf *, lks_buf *, u32) {},
			.buf_zero = [](lks_buf *, u32) {},
			.buf_hash = [](lks_buf *, u32) -> u64 { return 0; },
			.submit = [](void *ctx, lks_io *) { static_cast<Device *>(ctx)->transfers++; },
			.send = [](void *, u8, u8, const lks_frame *, lks_buf *, const void *) {},
			.req_done = [](void *, lks_req *, int) {},
			.event = [](void *, const lks_event_info *) {},
			.syncing = nullptr,
			.room = nullptr,
		};
		return &table;
	}
};

}    // namespace lockstep::test
