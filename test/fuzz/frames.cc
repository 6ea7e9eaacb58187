// SPDX-License-Identifier: GPL-2.0-or-later
//
// Frames of a hostile peer into a live volume. The input is a script: a state in which the volume is (see prepare()), then
// steps, most of which are frames whose header and payload are the input's bytes; what a peer would have to guess (volume,
// term, version, session, checksum) is put right where the step says so, since a checksum that never fits would keep the
// rest of the core out of reach. In between, transfers complete or fail, links break, time passes, requests begin, the daemon
// tells other records. At the end everything must come down in good order (I5).
//
// Layout of a script: state, shape, allocation period, then steps of one byte `step` and what that takes; seeds.cc writes some.
// A payload is 16 bytes repeated, so that inputs stay small.
#include "host.h"

#include <algorithm>

using namespace lockstep::fuzz;

namespace {

enum State { IDLE, MEMBER, SYNCING, ACTIVATING, ACTIVE, SOURCE, CLIENT, SUSPECT, STATES };
enum Step { FRAME, COMPLETE, TICK, LINK, SUBMIT, CONFIG, DOOR, DETACH, STEPS };
enum Fix { SEAL = 1, VOLUME = 2, TERM = 4, VERSION = 8, SESSION = 16, RECORD = 32, IN_RANGE = 64, LAST_SEQ = 128 };

struct Play {
	Input &in;
	Host h;
	lks_record record;    // the log's
	bool open = false;

	Play(Input &input, uint64_t size, uint32_t block_size) : in(input), h(size, block_size), record(base_record(2, size)) {}

	int deliver(uint8_t from, const lks_frame &f, const void *payload)
	{
		lks_buf *buf = nullptr;
		std::vector<uint8_t> bytes;
		if (f.length && lks_frame_has_data(&f)) {
			buf = h.new_buffer(f.length);
			memcpy(buf->data.data(), payload, f.length);
		} else if (f.length) {
			bytes.assign(static_cast<const uint8_t *>(payload), static_cast<const uint8_t *>(payload) + f.length);
		}
		int err = lks_vol_receive(h.core, from, &f, buf, f.length && !buf ? bytes.data() : nullptr, h.now);
		if (buf)
			Host::put(buf);
		CHECK(err == 0 || err == -EPROTO || (err == -ENOMEM && h.alloc_period));
		if (err)
			lks_vol_link_lost(h.core, from, h.now);
		return err;
	}

	void deliver_record(uint8_t from, uint8_t type, uint16_t session)
	{
		lks_frame f{};
		f.type = type;
		f.session = session;
		f.volume = h.params.vid;
		f.length = sizeof(record);
		f.version = record.version;
		f.term = record.term;
		deliver(from, f, &record);
	}

	void deliver_empty(uint8_t from, uint8_t type, uint16_t session)
	{
		lks_frame f{};
		f.type = type;
		f.session = session;
		f.volume = h.params.vid;
		f.version = record.version;
		f.term = record.term;
		deliver(from, f, nullptr);
	}

	void tick(uint64_t ms)
	{
		h.now += ms;
		lks_vol_tick(h.core, h.now);
	}

	// Brings the volume into a state; the daemon and the peers behave.
	bool prepare(State state, bool thick)
	{
		h.format();
		if (!h.create())
			return false;
		for (uint8_t peer : {2, 3, 4, 5})
			lks_vol_link_up(h.core, peer, h.now);
		if (state == CLIENT) {
			record.replicas[0].host = 6;    // no replica here
		} else {
			bool suspect;
			if (state == SUSPECT)
				make_hot();
			if (h.attach(thick, &suspect)) {
				lks_vol_destroy(h.core);
				CHECK(h.alloc_period && h.memory.empty());
				return false;
			}
			CHECK(suspect == (state == SUSPECT));
		}
		if (state == ACTIVATING || state == ACTIVE || state == SOURCE)
			record.primary = SELF;
		if (state == SYNCING)
			record.replicas[0].state = LKS_REPLICA_STALE;
		if (state == SOURCE)
			record.replicas[1].state = record.replicas[2].state = LKS_REPLICA_STALE;
		// A term begins above the version that it was admitted with (S3)
		lks_record before = record;
		before.version--;
		before.term--;
		before.primary = 0;
		lks_vol_config(h.core, &before, true, h.now);
		lks_vol_config(h.core, &record, true, h.now);
		if (state == MEMBER)
			deliver_record(2, LKS_ACTIVATE, 0);
		if (state == ACTIVE)
			for (uint8_t peer : {2, 3})
				deliver_empty(peer, LKS_ACTIVATED, 0);
		h.complete_all();
		if (state == SYNCING) {
			tick(5000);
			deliver_record(2, LKS_SYNCSTART, h.offered);
		} else if (state == ACTIVE || state == SOURCE) {
			for (int i = 0; i < 20; i++)
				tick(200);
			if (state == SOURCE)
				deliver_empty(2, LKS_ATTACH, 77);
		}
		h.complete_all();
		if (!h.alloc_period) {
			CHECK(h.core->role == (state == ACTIVATING ? LKS_ACTIVATING : state == ACTIVE || state == SOURCE ? LKS_ACTIVE : LKS_IDLE));
			CHECK(h.core->session_host == (state == MEMBER || state == SYNCING ? 2 : 0));
		}
		return true;
	}

	void make_hot()
	{
		auto *r = reinterpret_cast<lks_extent_record *>(&h.meta[h.layout.table_offset]);
		r->bits[0] = LKS_EXTENT_HOT | LKS_EXTENT_WRITTEN | LKS_EXTENT_WRITTEN << 2;
		lks_extent_record_seal(r);
	}

	uint8_t host() { return std::array<uint8_t, 8>{2, 3, 4, 5, 2, 3, 64, SELF}[in.below(8)]; }

	lks_record other_record()
	{
		lks_record r = record;
		r.version += in.u8() % 4;
		r.term += in.u8() % 2;
		for (unsigned n = in.u8() % 8; n; n--) {
			size_t at = in.take<uint16_t>() % sizeof(r);
			reinterpret_cast<uint8_t *>(&r)[at] = in.u8();
		}
		return r;
	}

	void frame()
	{
		uint8_t from = host(), fix = in.u8();
		lks_frame f = in.take<lks_frame>();
		std::vector<uint8_t> payload;
		if (fix & VOLUME)
			f.volume = h.params.vid;
		if (fix & TERM)
			f.term = h.core->cfg.term;
		if (fix & VERSION)
			f.version = h.core->cfg.version;
		if (fix & SESSION)
			f.session = h.core->session_id;
		if (fix & IN_RANGE && f.type == LKS_MAP) {
			f.offset = f.offset % 4 * LKS_LEAF_BITS;
			f.tag = (f.tag & 1 ? LKS_MAP_EVIDENCE : LKS_MAP_DIRTY) | (f.tag >> 1) % 8 << 8;
		} else if (fix & IN_RANGE) {
			f.offset = f.offset % h.params.size / LKS_SECTOR * LKS_SECTOR;
			f.tag = f.tag % (64 * LKS_SECTOR) / LKS_SECTOR * LKS_SECTOR + LKS_SECTOR;
			if (f.length && lks_frame_has_data(&f))
				f.length = f.tag;
		}
		if (fix & LAST_SEQ)
			f.seq = h.core->role != LKS_IDLE ? h.core->seq - f.seq % 4 : h.core->ids - f.seq % 4;
		if (fix & RECORD) {
			lks_record r = other_record();
			f.length = sizeof(r);
			f.version = r.version;
			f.term = r.term;
			payload.assign(reinterpret_cast<uint8_t *>(&r), reinterpret_cast<uint8_t *>(&r + 1));
		}
		if (fix & SEAL)
			lks_frame_seal(&f);
		if (lks_frame_check(&f))
			return;    // the lane is closed before the core sees it
		CHECK(f.length <= LKS_WIRE_DATA_MAX);
		if (f.length && !(fix & RECORD)) {
			auto pattern = in.take<std::array<uint8_t, 16>>();
			payload.resize(f.length);
			for (size_t i = 0; i < payload.size(); i++)
				payload[i] = pattern[i % pattern.size()];
		}
		deliver(from, f, payload.data());
	}

	void submit()
	{
		uint8_t op = static_cast<uint8_t>(LKS_OP_READ + in.below(5)), fua = in.u8() & LKS_F_FUA;
		uint64_t first = in.below(h.params.size / LKS_SECTOR), extent = LKS_EXTENT_BYTES / LKS_SECTOR;
		uint64_t count = std::min<uint64_t>({1 + in.below(256), extent - first % extent, h.params.size / LKS_SECTOR - first});
		if (h.requests.size() > 200)
			return;
		lks_req &req = h.requests.emplace_back().req;
		req.op = op;
		if (op != LKS_OP_READ && op != LKS_OP_FLUSH)
			req.flags = fua;
		if (op != LKS_OP_FLUSH) {
			req.offset = first * LKS_SECTOR;
			req.length = static_cast<uint32_t>(count * LKS_SECTOR);
		}
		if (op == LKS_OP_READ || op == LKS_OP_WRITE)
			req.buf = h.new_buffer(req.length);
		lks_vol_submit(h.core, &req, h.now);
	}

	void door()
	{
		switch (in.below(3)) {
		case 0:
			lks_vol_open(h.core, h.now);
			break;
		case 1:
			if (std::all_of(h.requests.begin(), h.requests.end(), [](const Request &r) { return r.ended; }))
				lks_vol_close(h.core, h.now);
			break;
		case 2:
			lks_vol_abort(h.core, -EIO, h.now);
			break;
		}
	}

	void detach(bool thick)
	{
		if (!h.core->attached)
			return;
		bool failed = h.core->failed, errors = h.disk_error, suspect;
		lks_vol_detach(h.core, h.now);
		h.complete_all();
		CHECK(h.detached);
		int err = h.attach(thick, &suspect);
		// A record told of a size to which this replica was never brought: it is not attached before it has been.
		const bool outgrown = err == -EUCLEAN && h.core->note.size > h.core->sb.size;
		CHECK(err == 0 || outgrown || h.alloc_period || failed || errors);
		if (!err)
			lks_vol_config(h.core, &record, true, h.now);
	}

	void step(bool thick)
	{
		switch (in.below(STEPS + 4)) {
		default:
			frame();
			break;
		case COMPLETE:
			h.complete(in.u8(), in.u8() == 0xff ? -EIO : 0);
			break;
		case TICK:
			tick(in.u8() * 20u);
			break;
		case LINK: {
			uint8_t peer = host();
			if (peer == SELF)
				h.complete_all();
			else if (h.core->links & LKS_BIT(peer))
				lks_vol_link_lost(h.core, peer, h.now);
			else
				lks_vol_link_up(h.core, peer, h.now);
			break;
		}
		case SUBMIT:
			submit();
			break;
		case CONFIG: {
			lks_record r = other_record();
			if (lks_record_check(&r))
				break;
			int err = lks_vol_config(h.core, &r, in.u8() & 1, h.now);
			CHECK(err == 0 || (err == -EINVAL && r.vid != h.params.vid));
			if (!err && r.version > record.version)
				record = r;
			break;
		}
		case DOOR:
			door();
			break;
		case DETACH:
			detach(thick);
			break;
		}
	}
};

}    // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	Input in(data, bytes);
	State state = static_cast<State>(in.below(STATES));
	uint8_t shape = in.u8(), period = in.u8();
	Play p(in, shape & 4 ? 16 * MIB : 9 * MIB + 4096, std::array<uint32_t, 4>{4096, 16384, 65536, 1u << 20}[shape & 3]);
	p.h.alloc_period = period ? period + 8 : 0;
	if (!p.prepare(state, shape & 8))
		return 0;
	for (unsigned n = 0; !in.empty() && n < 300; n++)
		p.step(shape & 8);
	p.h.tear_down();
	return 0;
}
