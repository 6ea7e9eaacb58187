// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a fuzz target puts around the core: memory, transfers that are carried out when the input says so, a device of which
// the metadata are real bytes and the data are not kept, and checks of everything that the core asks for. A peer or a disk may
// be as hostile as it likes; whatever the core then does must stay inside its own memory and inside its device, must send only
// frames that lks_frame_check() lets through, and must be able to end without anybody's help (invariant I5).
//
// CHECK ends the program: libFuzzer keeps the input.
#pragma once

#include "core/core.h"
#include "core/internal.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <set>
#include <vector>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #what); \
			abort(); \
		} \
	} while (0)

struct lks_buf {
	unsigned refs;
	uint32_t bytes;
	size_t *alive;
	std::vector<uint8_t> data;
};

namespace lockstep::fuzz {

constexpr uint8_t SELF = 1;
constexpr uint64_t MIB = 1ull << 20;

// The input, eaten from the front; behind its end there are zeros.
class Input {
public:
	Input(const uint8_t *data, size_t bytes) : at(data), end(data + bytes) {}

	bool empty() const { return at == end; }
	void bytes(void *to, size_t n)
	{
		size_t have = std::min(n, static_cast<size_t>(end - at));
		memset(to, 0, n);
		if (have)
			memcpy(to, at, have);
		at += have;
	}
	template <typename T> T take()
	{
		T value;
		bytes(&value, sizeof(value));
		return value;
	}
	uint8_t u8() { return take<uint8_t>(); }
	uint64_t below(uint64_t n) { return n <= 256 ? u8() % n : take<uint32_t>() % n; }

private:
	const uint8_t *at, *end;
};

struct Request {
	lks_req req{};
	bool ended = false;
	int error = 0;
};

struct Host {
	lks_vol_params params{};
	lks_layout layout{};
	uint64_t meta_offset = 0;
	std::vector<uint8_t> meta;               // what stands on the device behind the data
	lks_vol *core = nullptr;
	uint64_t now = 1000000;                  // ms
	unsigned alloc_period = 0;               // each so many-th allocation fails; 0: none
	uint64_t allocations = 0;
	std::set<void *> memory;
	size_t buffers = 0;
	std::deque<lks_io *> transfers;
	std::deque<Request> requests;
	bool detached = false, disk_error = false;
	bool too_small = false;                  // something behind the end of the device was wanted
	uint16_t offered = 0;                    // session id in the last ATTACH that was sent
	uint64_t sent = 0;

	Host(uint64_t size, uint32_t block_size)
	{
		params.vid = 7;
		for (size_t i = 0; i < sizeof(params.uuid); i++)
			params.uuid[i] = static_cast<uint8_t>(i + 1);
		params.size = size;
		params.block_size = block_size;
		params.self = SELF;
		params.lease_ms = LKS_LEASE_MS;
		lks_layout_of(size, block_size, &layout);
		meta_offset = LKS_ROUND_UP(size, LKS_META_UNIT);
		meta.resize(layout.total_bytes, 0xa5);
	}
	Host(const Host &) = delete;

	lks_superblock superblock() const
	{
		lks_superblock sb{};
		sb.vid = params.vid;
		memcpy(sb.uuid, params.uuid, sizeof(sb.uuid));
		sb.size = params.size;
		sb.block_size = params.block_size;
		sb.host = params.self;
		sb.version = sb.term = 1;
		return sb;
	}

	void format()
	{
		lks_superblock sb = superblock();
		for (uint64_t at = layout.slot_offset; at > 0; at -= LKS_META_UNIT)
			lks_format_unit(&sb, at - LKS_META_UNIT, &meta[at - LKS_META_UNIT]);
	}

	bool create()
	{
		core = lks_vol_create(&params, ops(), this);
		return core;
	}

	int attach(bool needs_zeroing, bool *suspect)
	{
		uint64_t version, term;
		detached = false;
		return lks_vol_attach(core, meta_offset, needs_zeroing, read, this, now, suspect, &version, &term);
	}

	void complete(size_t which, int err)
	{
		if (transfers.empty())
			return;
		auto it = transfers.begin() + static_cast<long>(which % transfers.size());
		lks_io *io = *it;
		transfers.erase(it);
		if (outside(*io)) {
			too_small = true;
			err = -EIO;
		}
		if (!err && io->op == LKS_IO_META)
			memcpy(&meta[io->offset - meta_offset], io->meta, LKS_META_UNIT);
		if (!err && io->op == LKS_IO_ZEROES && io->offset >= params.size)
			memset(&meta[io->offset - meta_offset], 0, io->length);
		lks_vol_io_done(core, io, err, now);
	}

	void complete_all()
	{
		for (unsigned n = 0; !transfers.empty(); n++) {
			CHECK(n < 100000);
			complete(0, 0);
		}
	}

	// The device goes: everything must end, though no peer and no daemon says anything more (I5).
	void tear_down()
	{
		for (uint8_t h = 1; h <= LKS_MAX_HOSTS; h++)
			lks_vol_link_lost(core, h, now);
		lks_vol_abort(core, -EIO, now);
		lks_vol_detach(core, now);
		complete_all();
		CHECK(detached || !core->attached);
		for (Request &r : requests)
			CHECK(r.ended);
		lks_vol_close(core, now);
		CHECK(transfers.empty());
		lks_vol_destroy(core);
		core = nullptr;
		requests.clear();
		CHECK(memory.empty());
		CHECK(buffers == 0);
	}

	lks_buf *new_buffer(uint32_t bytes)
	{
		buffers++;
		return new lks_buf{1, bytes, &buffers, std::vector<uint8_t>(bytes, 0x5a)};
	}

	static void put(lks_buf *b)
	{
		CHECK(b->refs);
		if (--b->refs)
			return;
		--*b->alive;
		delete b;
	}

	static Host &of(void *ctx) { return *static_cast<Host *>(ctx); }

	static int read(void *reader, u64 at, void *to, u32 bytes)
	{
		Host &h = of(reader);
		CHECK(bytes && bytes % LKS_META_UNIT == 0 && at % LKS_META_UNIT == 0);
		CHECK(at >= h.meta_offset);
		if (at + bytes > h.meta_offset + h.meta.size()) {    // the superblock names a larger size than there is space for
			h.too_small = true;
			return -EIO;
		}
		memcpy(to, &h.meta[at - h.meta_offset], bytes);
		return 0;
	}

	// Behind the end of the device: carried out with an error.
	bool outside(const lks_io &io) const
	{
		return io.offset >= meta_offset && io.op != LKS_IO_FLUSH &&
		       io.offset + (io.op == LKS_IO_META ? LKS_META_UNIT : io.length) > meta_offset + meta.size();
	}

	void check_transfer(const lks_io &io)
	{
		uint64_t end = meta_offset + core->layout.total_bytes;
		switch (io.op) {
		case LKS_IO_FLUSH:
			return;
		case LKS_IO_META:
			CHECK(io.meta && io.offset % LKS_META_UNIT == 0);
			CHECK(io.offset >= meta_offset && io.offset + LKS_META_UNIT <= end);
			return;
		case LKS_IO_READ:
		case LKS_IO_WRITE:
			CHECK(io.buf && io.buf->refs && io.buf->bytes >= io.length);
			[[fallthrough]];
		case LKS_IO_ZEROES:
		case LKS_IO_DISCARD:
			CHECK(io.length && io.length % LKS_SECTOR == 0 && io.offset % LKS_SECTOR == 0);
			if (io.op == LKS_IO_ZEROES && io.offset >= meta_offset)
				CHECK(io.offset + io.length <= end);
			else if (io.op == LKS_IO_ZEROES)    // old metadata among the data are zeroed when they are not needed any more
				CHECK(io.offset + io.length <= core->capacity);
			else
				CHECK(io.offset + io.length <= params.size);
			return;
		}
		CHECK(!"a transfer of a known kind");
	}

	void check_frame(uint8_t to, uint8_t lane, const lks_frame &h, lks_buf *buf, const void *bytes)
	{
		lks_frame f = h;
		lks_frame_seal(&f);
		CHECK(to >= 1 && to <= LKS_MAX_HOSTS && to != SELF && core->links & LKS_BIT(to));
		CHECK(lane == LKS_LANE_ALL || lane == LKS_LANE_ANY || lane == 0);
		CHECK(h.volume == params.vid);
		CHECK(lks_frame_check(&f) == 0);
		if (h.length && lks_frame_has_data(&h))
			CHECK(buf && buf->refs && buf->bytes >= h.length);
		else if (h.length)
			CHECK(bytes);
		if (h.type == LKS_ATTACH)
			offered = h.session;
		sent++;
	}

	static const lks_ops *ops()
	{
		static const lks_ops table = {
			.alloc = [](void *ctx, size_t bytes) -> void * {
				Host &h = of(ctx);
				CHECK(bytes);
				if (h.alloc_period && ++h.allocations % h.alloc_period == 0)
					return nullptr;
				void *p = bytes == LKS_META_UNIT ? aligned_alloc(LKS_META_UNIT, bytes) : malloc(bytes);
				memset(p, 0, bytes);
				h.memory.insert(p);
				return p;
			},
			.free = [](void *ctx, void *p, size_t) {
				CHECK(of(ctx).memory.erase(p));
				free(p);
			},
			.buf_alloc = [](void *ctx, u32 bytes) -> lks_buf * {
				Host &h = of(ctx);
				CHECK(bytes && bytes % LKS_SECTOR == 0);
				if (h.alloc_period && ++h.allocations % h.alloc_period == 0)
					return nullptr;
				return h.new_buffer(bytes);
			},
			.buf_get = [](lks_buf *b) { b->refs++; },
			.buf_put = [](lks_buf *b) { put(b); },
			.buf_copy = [](lks_buf *to, lks_buf *from, u32 bytes) {
				CHECK(to->refs && from->refs && to->bytes >= bytes && from->bytes >= bytes);
				memcpy(to->data.data(), from->data.data(), bytes);
			},
			.buf_zero = [](lks_buf *b, u32 bytes) {
				CHECK(b->refs && b->bytes >= bytes);
				memset(b->data.data(), 0, bytes);
			},
			.buf_hash = [](lks_buf *b, u32 bytes) -> u64 {
				CHECK(b->refs && b->bytes >= bytes);
				return lks_crc32c(0, b->data.data(), bytes);
			},
			.submit = [](void *ctx, lks_io *io) {
				of(ctx).check_transfer(*io);
				of(ctx).transfers.push_back(io);
			},
			.send = [](void *ctx, u8 to, u8 lane, const lks_frame *h, lks_buf *buf, const void *bytes) {
				of(ctx).check_frame(to, lane, *h, buf, bytes);
			},
			.req_done = [](void *ctx, lks_req *req, int err) {
				(void)ctx;
				Request &r = *reinterpret_cast<Request *>(req);
				CHECK(!r.ended && err <= 0);
				r.ended = true;
				r.error = err;
				if (req->buf)
					put(req->buf);
			},
			.event = [](void *ctx, const lks_event_info *info) {
				of(ctx).detached |= info->event == LKS_EV_DETACHED;
				of(ctx).disk_error |= info->event == LKS_EV_DISK_ERROR;
				if (info->event == LKS_EV_PROPOSE)
					CHECK(info->record);
			},
			.syncing = nullptr,
		};
		return &table;
	}
};

// Replicas on h1 (this host), h2, h3 and h4, the last one stale; openers on h1 and h5.
inline lks_record base_record(uint8_t primary, uint64_t size)
{
	lks_record r{};
	r.size = size;
	r.version = 10;
	r.term = 3;
	r.vid = 7;
	r.primary = primary;
	r.session_serial = 2;
	r.nreplicas = 4;
	for (uint8_t i = 0; i < 4; i++) {
		r.replicas[i].host = static_cast<uint8_t>(i + 1);
		r.replicas[i].state = i < 3 ? LKS_REPLICA_INSYNC : LKS_REPLICA_STALE;
		r.replicas[i].since = r.replicas[i].added = 1;
	}
	r.nopeners = 2;
	r.openers[0].host = SELF;
	r.openers[0].session = 1;
	r.openers[1].host = 5;
	r.openers[1].session = 2;
	return r;
}

}    // namespace lockstep::fuzz
