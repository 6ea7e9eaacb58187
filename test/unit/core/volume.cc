// SPDX-License-Identifier: GPL-2.0-or-later
//
// A volume's entry points where the simulator cannot go, since its peers and daemons are honest and its volumes small: what a
// peer or daemon asks for wrongly is refused, and a table that grows by whole units.
#include "device.h"

#include "core/internal.h"

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <random>
#include <set>

using namespace lockstep::test;

struct lks_buf {};

namespace {

lks_buf no_data;    // nothing here looks into a buffer
constexpr uint64_t GIB = 1024 * MIB;

// A Device whose transfers are carried out: all of them, when run() is called.
struct Live : Device {
	uint64_t now = 100000;    // ms
	std::deque<lks_io *> transfers;
	std::vector<lks_event_info> events;
	std::vector<int> ended;    // requests, how
	std::vector<lks_frame> sent;
	uint32_t room = UINT32_MAX;    // frames, in the control lane
	std::function<int(const lks_io &)> carry_out = [](const lks_io &) { return 0; };
	lks_record record{};

	explicit Live(uint64_t size = 64 * MIB, uint32_t block_size = LKS_BLOCK_DEFAULT) : Device(size, block_size)
	{
		record.size = size;
		record.version = 10;
		record.term = 3;
		record.vid = params.vid;
		record.primary = params.self;
		record.session_serial = 1;
		record.nreplicas = 3;
		for (uint8_t i = 0; i < 3; i++) {    // h1, h2 and h3, which is this host
			record.replicas[i].host = static_cast<uint8_t>(i + 1);
			record.replicas[i].state = LKS_REPLICA_INSYNC;
			record.replicas[i].since = record.replicas[i].added = 1;
		}
		record.nopeners = 1;
		record.openers[0].host = params.self;
		record.openers[0].session = 1;
	}

	static Live &of(void *ctx) { return *static_cast<Live *>(static_cast<Device *>(ctx)); }

	static const lks_ops *live_ops()
	{
		static const lks_ops table = [] {
			lks_ops t = *ops();
			t.submit = [](void *ctx, lks_io *io) { of(ctx).transfers.push_back(io); };
			t.buf_alloc = [](void *, u32) { return &no_data; };
			t.send = [](void *ctx, u8, u8, const lks_frame *h, lks_buf *, const void *) {
				of(ctx).sent.push_back(*h);
				if (h->type == LKS_MAP && of(ctx).room != UINT32_MAX)
					of(ctx).room--;
			};
			t.room = [](void *ctx, u8 host) -> u32 { return host == 2 ? of(ctx).room : 0; };
			t.req_done = [](void *ctx, lks_req *, int err) { of(ctx).ended.push_back(err); };
			t.event = [](void *ctx, const lks_event_info *info) { of(ctx).events.push_back(*info); };
			return t;
		}();
		return &table;
	}

	void create()
	{
		volume = lks_vol_create(&params, live_ops(), static_cast<Device *>(this));
		REQUIRE(volume);
		for (uint8_t peer : {1, 2, 5})
			lks_vol_link_up(volume, peer, now);
	}

	// Attached and admitted with the version before the record, then told the record.
	void start(bool anew = true)
	{
		if (anew)
			format();
		create();
		REQUIRE(lks_vol_attach(volume, offset, false, read, this, now, &suspect, &version, &term) == 0);
		lks_record before = record;
		before.version--;
		before.term--;
		before.primary = 0;
		REQUIRE(lks_vol_config(volume, &before, true, now) == 0);
		REQUIRE(lks_vol_config(volume, &record, false, now) == 0);
		run();
	}

	// As a client without a replica; h2 is the primary.
	void use()
	{
		record.replicas[2].host = 6;
		record.primary = 2;
		create();
		REQUIRE(lks_vol_config(volume, &record, false, now) == 0);
	}

	// As the primary that serves.
	void serve(bool anew = true)
	{
		start(anew);
		for (uint8_t peer : {1, 2})
			CHECK(receive(peer, frame(LKS_ACTIVATED)) == 0);
		now += 10000;    // the promise it may have given before (L2)
		lks_vol_tick(volume, now);
		run();
		REQUIRE(volume->role == LKS_ACTIVE);
	}

	void run()
	{
		for (unsigned n = 0; !transfers.empty(); n++) {
			REQUIRE(n < 100000);
			lks_io *io = transfers.front();
			transfers.pop_front();
			lks_vol_io_done(volume, io, carry_out(*io), now);
		}
	}

	void detach()
	{
		lks_vol_detach(volume, now);
		run();
		CHECK(count(LKS_EV_DETACHED) == 1);
	}

	lks_frame frame(uint8_t type) const
	{
		lks_frame f{};
		f.type = type;
		f.volume = params.vid;
		f.version = record.version;
		f.term = record.term;
		return f;
	}

	int receive(uint8_t from, const lks_frame &f, const void *bytes = nullptr)
	{
		return lks_vol_receive(volume, from, &f, nullptr, bytes, now);
	}

	// From a member: it has the newest write.
	void ack(uint8_t from)
	{
		lks_frame f = frame(LKS_ACK);
		f.seq = volume->seq;
		CHECK(receive(from, f) == 0);
	}

	// L3: both members promise.
	void promise()
	{
		for (uint8_t from : {1, 2}) {
			lks_frame f = frame(LKS_PONG);
			f.seq = now;
			CHECK(receive(from, f) == 0);
		}
	}

	long count(enum lks_event event) const
	{
		return std::count_if(events.begin(), events.end(), [&](auto &e) { return e.event == event; });
	}

	const lks_event_info &last(enum lks_event event) const
	{
		auto it = std::find_if(events.rbegin(), events.rend(), [&](auto &e) { return e.event == event; });
		REQUIRE(it != events.rend());
		return *it;
	}
};

}    // namespace

TEST_CASE("frames that are wrong are refused, whatever the volume is doing")
{
	Live d;
	d.serve();
	lks_frame f = d.frame(LKS_PING);
	CHECK(d.receive(9, f) == 0);                 // no link to h9: of an earlier one
	lks_vol_link_up(d.volume, d.params.self, d.now);
	CHECK(d.receive(d.params.self, f) == -EPROTO);
	f.volume++;
	CHECK(d.receive(1, f) == -EPROTO);
	CHECK(d.receive(1, d.frame(LKS_FRAME_TYPES)) == -EPROTO);

	lks_frame req = d.frame(LKS_REQ);
	req.tag = 4096;
	req.flags = LKS_OP_WRITE << LKS_F_OP_SHIFT;
	CHECK(d.receive(5, req) == -EPROTO);         // a write without data
	req.flags = LKS_OP_READ << LKS_F_OP_SHIFT;
	CHECK(d.receive(5, req) == 0);
	for (uint64_t offset : {uint64_t{1}, uint64_t{LKS_EXTENT_BYTES - 512}, uint64_t{LKS_SIZE_MAX}}) {
		req.offset = offset;
		CHECK(d.receive(5, req) == -EPROTO);
	}

	lks_record other = d.record;
	other.version++;
	other.primary = 2;
	lks_frame config = d.frame(LKS_CONFIG);
	config.version = other.version;
	config.length = sizeof(other);
	CHECK(d.receive(1, config, &other) == -EPROTO);    // a record of h2's, from h1
	other.vid++;
	CHECK(d.receive(2, config, &other) == -EPROTO);
	CHECK(lks_vol_config(d.volume, &other, false, d.now) == -EINVAL);
	lks_vol_link_lost(d.volume, 9, d.now);             // there was none
	CHECK(lks_vol_config(d.volume, &d.record, true, d.now) == 0);    // admitted already
	CHECK(d.volume->role == LKS_ACTIVE);
	d.detach();
	lks_vol_detach(d.volume, d.now);
	d.run();
	CHECK(d.count(LKS_EV_DETACHED) == 1);
}

TEST_CASE("dirty maps of a peer are checked, and those that concern nobody are ignored")
{
	Live d;
	d.serve();
	std::vector<uint8_t> chunk(LKS_MAP_CHUNK_BYTES, 0xff);
	lks_frame map = d.frame(LKS_MAP);
	map.length = LKS_MAP_CHUNK_BYTES;
	map.tag = 3;
	CHECK(d.receive(1, map, chunk.data()) == -EPROTO);       // no such kind
	map.tag = LKS_MAP_EVIDENCE | 1 << 16;
	CHECK(d.receive(1, map, chunk.data()) == -EPROTO);
	map.tag = LKS_MAP_EVIDENCE;
	map.offset = 1;
	CHECK(d.receive(1, map, chunk.data()) == -EPROTO);       // not where a leaf begins
	map.offset = 0;
	CHECK(d.receive(5, map, chunk.data()) == 0);             // h5 has no replica
	map.offset = 1000 * static_cast<uint64_t>(LKS_LEAF_BITS);
	CHECK(d.receive(1, map, chunk.data()) == 0);             // behind the end: perhaps h1 has grown already
	for (const lks_peer &p : d.volume->peers)
		CHECK(p.dirty.set == 0);
	d.detach();
}

TEST_CASE("a member takes no data above the version it knows, and no order to join that is not for it")
{
	Live d;
	d.record.primary = 2;
	d.start();
	d.record.version++;
	d.record.nreplicas = 4;    // added and joined while this host was not told
	d.record.replicas[3].host = 4;
	d.record.replicas[3].state = LKS_REPLICA_INSYNC;
	d.record.replicas[3].since = d.record.replicas[3].added = d.record.version;
	lks_frame activate = d.frame(LKS_ACTIVATE);
	activate.length = sizeof(d.record);
	CHECK(d.receive(2, activate, &d.record) == 0);
	REQUIRE(d.volume->session_host == 2);
	const lks_peer *added = lks_peer_of(d.volume, 4);
	REQUIRE(added);
	CHECK(added->dirty.set == 0);
	lks_frame repl = d.frame(LKS_REPL);
	repl.flags = LKS_F_ZEROES;
	repl.tag = 4096;
	repl.seq = 1;
	repl.version++;
	CHECK(d.receive(2, repl) == -EPROTO);                    // C2
	lks_frame prepare = d.frame(LKS_PREPARE);
	prepare.tag = 7;                                         // maps that have not come
	CHECK(d.receive(2, prepare) == 0);
	CHECK_FALSE(d.volume->prepare);
	d.detach();
}

TEST_CASE("a new primary does not go on without all of a member's evidence")
{
	Live d;
	d.start();
	lks_frame f = d.frame(LKS_ACTIVATED);
	f.tag = 2;
	CHECK(d.receive(1, f) == 0);
	CHECK(d.volume->wait & LKS_BIT(1));
	d.detach();
}

TEST_CASE("replies are checked against the request")
{
	Live d;
	d.use();
	lks_req req{};
	req.op = LKS_OP_READ;
	req.length = 4096;
	lks_vol_submit(d.volume, &req, d.now);
	REQUIRE(req.sent_to == 2);
	lks_frame reply = d.frame(LKS_REPLY);
	reply.seq = req.id;
	CHECK(d.receive(2, reply) == -EPROTO);    // a read without data
	reply.length = 512;
	CHECK(d.receive(2, reply) == -EPROTO);    // of another length
	reply.length = 0;
	reply.stable = 5000;
	CHECK(d.receive(2, reply) == -EPROTO);    // no errno
	reply.stable = EIO;
	reply.seq++;
	CHECK(d.receive(2, reply) == 0);          // to nothing that was asked
	CHECK(d.ended.empty());
	reply.seq--;
	CHECK(d.receive(2, reply) == 0);
	CHECK(d.ended == std::vector<int>{-EIO});
}

TEST_CASE("what a new primary has refused is tried again as soon as it says that it serves")
{
	Live d;
	d.use();
	lks_req req{};
	req.op = LKS_OP_READ;
	req.length = 4096;
	lks_vol_submit(d.volume, &req, d.now);
	lks_frame refused = d.frame(LKS_REFUSED);
	refused.seq = req.id;
	CHECK(d.receive(2, refused) == 0);
	CHECK(req.sent_to == 0);
	d.sent.clear();
	lks_req other{};
	other.op = LKS_OP_READ;
	other.length = 4096;
	lks_vol_submit(d.volume, &other, d.now);
	CHECK(d.sent.size() == 1);    // another request does not bring it about
	CHECK(req.sent_to == 0);
	d.sent.clear();
	CHECK(d.receive(2, d.frame(LKS_READY)) == 0);
	CHECK(req.sent_to == 2);
	CHECK(d.sent.size() == 1);
	lks_vol_abort(d.volume, -EIO, d.now);
	CHECK(d.ended.size() == 2);
}

TEST_CASE("a primary that begins to serve says so to everybody")
{
	Live d;
	d.start();
	for (uint8_t peer : {1, 2})
		CHECK(d.receive(peer, d.frame(LKS_ACTIVATED)) == 0);
	const auto told = [&] { return std::count_if(d.sent.begin(), d.sent.end(), [](auto &f) { return f.type == LKS_READY; }); };
	CHECK(told() == 0);    // it may have given a promise (L2)
	d.now += 10000;
	lks_vol_tick(d.volume, d.now);
	d.run();
	REQUIRE(d.volume->role == LKS_ACTIVE);
	CHECK(told() == 3);    // h1, h2 and h5, which has no replica
	d.detach();
}

TEST_CASE("only the end of what needs no memory may be told where there may be none")
{
	Live d;
	d.serve();
	lks_vol_open(d.volume, d.now);
	lks_req write{};
	write.op = LKS_OP_WRITE;
	write.length = 4096;
	write.buf = &no_data;
	lks_vol_submit(d.volume, &write, d.now);
	REQUIRE(d.transfers.size() == 1);
	CHECK_FALSE(lks_vol_io_is_quick(d.volume, d.transfers[0], 0));    // the table of extents: heats what waits for it
	lks_io *table = d.transfers.front();
	d.transfers.pop_front();
	lks_vol_io_done(d.volume, table, 0, d.now);
	REQUIRE(d.transfers.size() == 1);
	lks_io *io = d.transfers.front();
	REQUIRE(io->op == LKS_IO_WRITE);
	CHECK(lks_vol_io_is_quick(d.volume, io, 0));
	CHECK_FALSE(lks_vol_io_is_quick(d.volume, io, -EIO));
	REQUIRE(lks_vol_quiesce(d.volume, 1, 1000, d.now) == 0);
	CHECK_FALSE(lks_vol_io_is_quick(d.volume, io, 0));    // its end may be what the hold waits for
	REQUIRE(lks_vol_resume(d.volume, 1, d.now) == -ESTALE);
	d.now += 2000;
	lks_vol_tick(d.volume, d.now);
	CHECK(lks_vol_quiesce(d.volume, 1, 1000, d.now) == -ESTALE);    // the same one twice would hide that it was broken
	CHECK(lks_vol_io_is_quick(d.volume, io, 0));
	for (uint8_t peer : {1, 2}) {
		lks_frame ack = d.frame(LKS_ACK);
		ack.seq = 1;
		CHECK(d.receive(peer, ack) == 0);
	}
	const size_t allocations = d.allocations_left = 0;
	d.run();
	CHECK(d.ended == std::vector<int>{0});
	CHECK(d.allocations_left == allocations);
	d.allocations_left = SIZE_MAX;
	lks_vol_close(d.volume, d.now);
	d.detach();
}

TEST_CASE("opening what is open is answered at once")
{
	Live d;
	d.serve();
	CHECK_FALSE(lks_vol_is_open(d.volume));
	lks_vol_open(d.volume, d.now);
	REQUIRE(d.count(LKS_EV_OPENED) == 1);
	CHECK(lks_vol_is_open(d.volume));
	lks_vol_open(d.volume, d.now);
	CHECK(d.count(LKS_EV_OPENED) == 2);
	lks_vol_close(d.volume, d.now);
	CHECK_FALSE(lks_vol_is_open(d.volume));
	d.detach();
}

TEST_CASE("metadata are moved only to where they fit, one move at a time")
{
	Live d;
	uint64_t size = 128 * MIB, offset = 128 * MIB;
	d.create();
	CHECK(lks_vol_meta_move(d.volume, offset, size, d.now) == -EINVAL);    // no replica
	CHECK(lks_vol_meta_moved(d.volume, offset, d.now) == -EINVAL);
	d.destroy();
	d.start();
	auto move = [&](uint64_t to, uint64_t bytes) { return lks_vol_meta_move(d.volume, to, bytes, d.now); };
	CHECK(move(d.offset, d.params.size) == 0);           // there they are
	CHECK(move(offset, 32 * MIB) == -EINVAL);            // smaller
	CHECK(move(offset, size + 512) == -EINVAL);
	CHECK(move(offset + 512, size) == -EINVAL);
	CHECK(move(offset - 4096, size) == -EINVAL);         // among the data
	CHECK(move(d.offset + 4096, 64 * MIB) == -EINVAL);   // over the first place
	CHECK(d.events.size() == static_cast<size_t>(d.count(LKS_EV_STATE)));
	REQUIRE(move(offset, size) == 0);
	CHECK(move(offset, size) == 0);
	CHECK(move(offset + 4096, size) == -EBUSY);
	CHECK(lks_vol_meta_moved(d.volume, offset, d.now) == -EINVAL);         // not yet
	CHECK(move(0, 0) == 0);                              // given up
	CHECK(d.status().move_offset == 0);
	d.run();
	REQUIRE(move(offset, size) == 0);
	d.run();
	REQUIRE(d.count(LKS_EV_META_MOVED) == 1);
	CHECK_FALSE(d.last(LKS_EV_META_MOVED).done);
	CHECK(move(offset, size) == 0);
	CHECK(d.count(LKS_EV_META_MOVED) == 2);              // said again
	CHECK(lks_vol_meta_moved(d.volume, offset + 4096, d.now) == -EINVAL);
	CHECK(lks_vol_meta_moved(d.volume, offset, d.now) == 0);
	d.run();
	CHECK(d.last(LKS_EV_META_MOVED).done);
	CHECK(d.status().meta_offset == offset);
	CHECK(d.status().capacity == size);
	long said = d.count(LKS_EV_META_MOVED);
	CHECK(lks_vol_meta_moved(d.volume, offset, d.now) == 0);
	CHECK(d.count(LKS_EV_META_MOVED) == said + 1);
	CHECK(d.last(LKS_EV_META_MOVED).done);

	CHECK(lks_vol_resize(d.volume, 32 * MIB, d.now) == -EINVAL);
	CHECK(lks_vol_resize(d.volume, size + 4096, d.now) == -EINVAL);        // more than the metadata describe
	CHECK(lks_vol_resize(d.volume, size, d.now) == 0);
	d.detach();
}

TEST_CASE("a replica whose old metadata cannot be zeroed has failed")
{
	Live d;
	d.start();
	REQUIRE(lks_vol_meta_move(d.volume, 128 * MIB, 128 * MIB, d.now) == 0);
	d.run();
	d.carry_out = [&](const lks_io &io) { return io.op == LKS_IO_ZEROES && io.offset < 128 * MIB ? -EIO : 0; };
	REQUIRE(lks_vol_meta_moved(d.volume, 128 * MIB, d.now) == 0);
	d.run();
	CHECK(d.status().failed);
	CHECK(d.count(LKS_EV_DISK_ERROR) == 1);
	d.detach();
}

TEST_CASE("the extent table grows by whole units, which are valid before the place counts")
{
	Live d(60 * GIB, LKS_BLOCK_MAX);
	d.start();
	uint64_t offset = 200 * GIB;
	lks_layout grown;
	lks_layout_of(offset, LKS_BLOCK_MAX, &grown);
	uint64_t first = d.layout.table_bytes / LKS_META_UNIT, end = grown.table_bytes / LKS_META_UNIT, tag;
	REQUIRE(end > first);
	memcpy(&tag, d.params.uuid, sizeof(tag));
	std::set<uint64_t> written;
	d.carry_out = [&](const lks_io &io) {
		if (io.op != LKS_IO_META || io.offset < offset + grown.table_offset || io.offset >= offset + grown.slot_offset)
			return 0;
		uint64_t unit = (io.offset - offset - grown.table_offset) / LKS_META_UNIT;
		auto *records = static_cast<const lks_extent_record *>(io.meta);
		for (uint32_t i = 0; i < LKS_RECORDS_PER_UNIT; i++)
			CHECK(lks_extent_record_valid(&records[i], static_cast<uint32_t>(unit * LKS_RECORDS_PER_UNIT + i), tag));
		if (!d.count(LKS_EV_META_MOVED))
			written.insert(unit);
		return 0;
	};
	REQUIRE(lks_vol_meta_move(d.volume, offset, offset, d.now) == 0);
	d.run();
	REQUIRE(d.count(LKS_EV_META_MOVED) == 1);
	for (uint64_t unit = 0; unit < end; unit++)
		CHECK(written.count(unit));
	REQUIRE(lks_vol_meta_moved(d.volume, offset, d.now) == 0);
	d.run();
	CHECK(d.last(LKS_EV_META_MOVED).done);
	CHECK(d.volume->units == end);
	CHECK(d.status().capacity == offset);
	d.detach();
}

// H1: a write waits for the table only once where whoever writes is all over the volume; the rest is hot before it is wanted.
TEST_CASE("writes all over a volume make extents hot ahead of them, those written before only")
{
	Live d(4 * GIB);    // 1,024 extents, of which every fourth was never written
	d.format();
	for (uint64_t i = 0; i < 1024; i++)
		if (i % 4)
			d.set_extent(i, LKS_EXTENT_WRITTEN);
	d.serve(false);
	lks_vol_open(d.volume, d.now);
	d.run();
	REQUIRE(d.count(LKS_EV_OPENED) == 1);
	unsigned tables = 0;
	d.carry_out = [&](const lks_io &io) {
		tables += io.op == LKS_IO_META && io.offset >= d.offset + d.layout.table_offset;
		return 0;
	};
	auto write = [&](uint64_t extent) {
		lks_req req{};
		req.op = LKS_OP_WRITE;
		req.offset = extent * LKS_EXTENT_BYTES;
		req.length = LKS_META_UNIT;
		req.buf = &no_data;
		lks_vol_submit(d.volume, &req, d.now);
		d.run();
		for (uint8_t peer : {1, 2})
			d.ack(peer);
		d.now++;
	};
	for (uint64_t i = 0; i < 1024; i++)
		if (i % 4)
			write(i * 389 % 1024);    // 389 is odd: each once, those in between never
	CHECK(d.ended == std::vector<int>(768, 0));
	CHECK(tables <= 12);
	CHECK(d.status().hot_extents == 768);
	CHECK(d.status().written_extents == 768);
	// each write to an extent that was never written makes that one hot, as before
	tables = 0;
	write(0);
	CHECK(tables == 1);
	CHECK(d.status().written_extents == 769);
	// what nobody writes any more cools, whoever made it hot
	d.now += 60000;
	lks_vol_tick(d.volume, d.now);
	d.run();
	CHECK(d.status().hot_extents == 0);
	d.detach();
}

TEST_CASE("a dirty map without memory says too much, never too little")
{
	Live d;
	d.create();
	constexpr uint64_t BITS = 3 * static_cast<uint64_t>(LKS_LEAF_BITS) + 100;
	lks_map m, from;
	d.allocations_left = 0;
	lks_map_init(d.volume, &m, BITS);
	lks_map_add(d.volume, &m, 7, 1);
	CHECK(m.set == BITS);
	CHECK(lks_map_next(&m, 9) == 9);
	CHECK(lks_map_test(&m, BITS - 1));
	lks_map_grow(d.volume, &m, BITS + 50, nullptr);
	CHECK(m.set == BITS + 50);
	d.allocations_left = SIZE_MAX;
	lks_map_init(d.volume, &from, BITS + 50);
	d.allocations_left = 0;
	lks_map_or(d.volume, &from, &m);    // from one that knows no more than "all"; no memory for a leaf's bits, either
	d.allocations_left = SIZE_MAX;
	CHECK(from.set == BITS + 50);
	lks_map_remove(d.volume, &m, 0, LKS_LEAF_BITS);
	CHECK(m.set == BITS + 50 - LKS_LEAF_BITS);
	CHECK(lks_map_next(&m, 0) == LKS_LEAF_BITS);
	lks_map_remove(d.volume, &m, 5, 10);    // nothing there
	d.allocations_left = 0;
	lks_map_remove(d.volume, &m, LKS_LEAF_BITS + 5, 10);    // a part of a leaf that is set as a whole: no memory for its bits
	CHECK(m.set == BITS + 50 - LKS_LEAF_BITS);
	CHECK(lks_map_test(&m, LKS_LEAF_BITS + 5));
	d.allocations_left = SIZE_MAX;
	lks_map_remove(d.volume, &m, LKS_LEAF_BITS + 5, 10);
	CHECK(m.set == BITS + 40 - LKS_LEAF_BITS);
	lks_map_remove(d.volume, &from, 0, LKS_LEAF_BITS);
	size_t bytes = 4 * sizeof(lks_leaf);
	lks_map_grow(d.volume, &from, BITS + 70, static_cast<lks_leaf *>(Live::live_ops()->alloc(static_cast<Device *>(&d), bytes)));
	CHECK(from.set == BITS + 70 - LKS_LEAF_BITS);    // the last leaf was set as a whole, and is
	lks_map_free(d.volume, &m);
	lks_map_free(d.volume, &from);
}

TEST_CASE("of what a replica cannot vouch for only what is not empty is sent")
{
	Live d(512 * MIB, LKS_BLOCK_MIN);
	d.create();
	lks_map m;
	lks_map_init(d.volume, &m, 4 * static_cast<uint64_t>(LKS_LEAF_BITS));
	CHECK(lks_send_evidence(d.volume, 1, 3, &m) == 0);
	lks_map_add(d.volume, &m, 2 * static_cast<uint64_t>(LKS_LEAF_BITS) + 9, 1);
	CHECK(lks_send_evidence(d.volume, 1, 3, &m) == 1);
	REQUIRE(d.sent.size() == 1);
	CHECK(d.sent[0].offset == 2 * static_cast<uint64_t>(LKS_LEAF_BITS));
	CHECK(d.sent[0].length == LKS_MAP_CHUNK_BYTES);
	lks_map_free(d.volume, &m);
}

TEST_CASE("who joins is told what others miss as fast as the control lane takes it, and of each block that is written meanwhile")
{
	constexpr uint64_t LEAF = LKS_LEAF_BITS;
	Live d(1024 * MIB, LKS_BLOCK_MIN);
	REQUIRE(d.params.size / LKS_BLOCK_MIN / LEAF == 8);
	d.serve();
	for (uint8_t away : {1, 2})
		lks_vol_link_lost(d.volume, away, d.now);
	d.record.version++;
	for (unsigned i : {0, 1}) {
		d.record.replicas[i].state = LKS_REPLICA_STALE;
		d.record.replicas[i].since = d.record.version;
	}
	REQUIRE(lks_vol_config(d.volume, &d.record, false, d.now) == 0);
	d.run();
	lks_peer *away = lks_peer_of(d.volume, 1);
	for (uint64_t leaf : {0, 2, 3, 5, 7})
		lks_map_add(d.volume, &away->dirty, leaf * LEAF + 9, 2);

	d.room = 0;
	lks_vol_link_up(d.volume, 2, d.now);
	lks_frame attach = d.frame(LKS_ATTACH);
	attach.session = 77;
	CHECK(d.receive(2, attach) == 0);
	auto maps = [&] {
		std::vector<uint64_t> leaves;
		for (const lks_frame &f : d.sent)
			if (f.type == LKS_MAP) {
				CHECK(f.tag == (LKS_MAP_DIRTY | 1 << 8));
				CHECK(f.session == 77);
				leaves.push_back(f.offset / LEAF);
			}
		return leaves;
	};
	auto tick = [&] {
		lks_vol_tick(d.volume, d.now += LKS_TICK_MS);
		d.run();
	};
	tick();
	REQUIRE(d.volume->joining == 2);
	CHECK(d.volume->join_stage == LKS_JOIN_MAPS);
	CHECK(maps().empty());
	d.room = 2;
	tick();
	CHECK(maps() == std::vector<uint64_t>{0, 2});
	tick();
	CHECK(maps().size() == 2);    // full again

	lks_vol_open(d.volume, d.now);
	d.run();
	lks_req reqs[3]{};
	for (unsigned i : {0, 1, 2}) {    // in a leaf that was sent, in one that was not, and where nothing was dirty
		reqs[i].op = LKS_OP_WRITE;
		reqs[i].length = LKS_BLOCK_MIN;
		reqs[i].offset = std::array<uint64_t, 3>{2, 5, 6}[i] * LEAF * LKS_BLOCK_MIN;
		reqs[i].buf = &no_data;
		lks_vol_submit(d.volume, &reqs[i], d.now);
	}
	d.run();
	CHECK(std::count_if(d.sent.begin(), d.sent.end(), [](auto &f) { return f.type == LKS_REPL && f.session == 77; }) == 3);
	CHECK(d.ended.empty());    // J1
	for (const lks_req &r : reqs)
		CHECK(lks_map_test(&away->dirty, r.offset / LKS_BLOCK_MIN));

	d.room = 100;
	tick();
	CHECK(maps() == std::vector<uint64_t>{0, 2, 3, 5, 6, 7});
	CHECK(d.volume->join_stage == LKS_JOIN_PREPARE);
	auto prepare = std::find_if(d.sent.begin(), d.sent.end(), [](auto &f) { return f.type == LKS_PREPARE; });
	REQUIRE(prepare != d.sent.end());
	CHECK(prepare->tag == 6);
	for (lks_frame ack = d.frame(LKS_ACK); ack.seq < d.volume->seq;) {
		ack.seq++;
		ack.session = 77;
		CHECK(d.receive(2, ack) == 0);
	}
	CHECK(d.ended == std::vector<int>{0, 0, 0});

	// Lost in the middle, and back: from the beginning.
	lks_vol_link_lost(d.volume, 2, d.now);
	d.record.version++;
	REQUIRE(lks_vol_config(d.volume, &d.record, false, d.now) == 0);
	d.run();
	REQUIRE(d.volume->joining == 0);
	d.sent.clear();
	d.room = 1;
	lks_vol_link_up(d.volume, 2, d.now);
	attach.version = d.record.version;
	CHECK(d.receive(2, attach) == 0);
	tick();
	CHECK(maps() == std::vector<uint64_t>{0});
	d.detach();
}

TEST_CASE("a host grows with the volume when its replica has gone")
{
	Live d;
	d.serve();
	const uint64_t size = 128 * MIB;
	CHECK(lks_vol_resize(d.volume, size, d.now) == -EINVAL);    // its metadata describe the old size
	d.detach();
	CHECK(lks_vol_resize(d.volume, size, d.now) == 0);
}

static int verify(Live &d, bool repair, uint64_t done = 0, uint64_t differ = 0)
{
	const lks_verify how = {.start = true, .repair = repair, .done = done, .differ = differ};
	return lks_vol_verify(d.volume, &how, d.now);
}

TEST_CASE("a verify goes on where an earlier primary's was")
{
	Live d;
	d.serve();
	const uint64_t per = LKS_EXTENT_BYTES / d.params.block_size, blocks = d.params.size / d.params.block_size;
	d.sent.clear();
	REQUIRE(verify(d, false, 3 * per, 7) == 0);
	REQUIRE(d.sent.size() == 2);
	CHECK(d.sent[0].offset == 3 * LKS_EXTENT_BYTES);
	struct lks_vol_status s;
	lks_vol_status(d.volume, d.now, &s);
	CHECK((s.verify_done == 3 * per && s.verify_differ == 7 && s.verify_total == blocks && !s.verify_repair));
	d.detach();
}

TEST_CASE("a verify that is to go on behind the end has ended")
{
	Live d;
	d.serve();
	const uint64_t blocks = d.params.size / d.params.block_size;
	REQUIRE(verify(d, true, blocks + 1) == 0);
	CHECK(d.count(LKS_EV_VERIFIED) == 1);
	struct lks_vol_status s;
	lks_vol_status(d.volume, d.now, &s);
	CHECK((s.verify_done == blocks && s.verify_total == blocks && s.verify_repair));
	d.detach();
}

TEST_CASE("verify looks closer at an extent that only a member has written")
{
	Live d;
	d.serve();
	d.sent.clear();
	REQUIRE(verify(d, false) == 0);
	auto answer = [&](uint8_t from, lks_compared what) {
		lks_frame f = d.frame(LKS_COMPARED);
		REQUIRE(d.sent.back().type == LKS_COMPARE);
		f.seq = d.sent.back().seq;
		f.stable = what;
		CHECK(d.receive(from, f) == 0);
	};
	REQUIRE(d.sent.size() == 2);    // to h1 and h2: have you never written there?
	CHECK(d.sent[0].flags & LKS_F_ZEROES);
	answer(1, LKS_CMP_EQUAL);
	answer(2, LKS_CMP_DIFFERS);
	CHECK(d.count(LKS_EV_MISMATCH) == 0);    // perhaps it holds zeros
	REQUIRE(d.sent.size() == 4);
	CHECK(d.sent[2].offset == 0);
	CHECK_FALSE(d.sent[2].flags & LKS_F_ZEROES);
	CHECK(d.sent[2].tag < LKS_EXTENT_BYTES);
	answer(1, LKS_CMP_EQUAL);
	answer(2, LKS_CMP_DIFFERS);
	REQUIRE(d.count(LKS_EV_MISMATCH) == 1);
	CHECK(d.last(LKS_EV_MISMATCH).host == 2);
	d.detach();
}

// The version that gives a member up comes while a range waits for that one's answer alone, and another one differs.
TEST_CASE("a join whose maps take long to write down costs nobody a link")
{
	Live d;
	d.serve();
	lks_vol_link_lost(d.volume, 2, d.now);
	d.record.version++;
	d.record.replicas[1].state = LKS_REPLICA_STALE;
	d.record.replicas[1].since = d.record.version;
	REQUIRE(lks_vol_config(d.volume, &d.record, false, d.now) == 0);
	d.run();
	lks_vol_link_up(d.volume, 2, d.now);
	lks_frame attach = d.frame(LKS_ATTACH);
	attach.session = 77;
	CHECK(d.receive(2, attach) == 0);
	d.events.clear();    // of a start without promises
	for (uint64_t end = d.now + 2 * LKS_ANSWER_MS; d.now < end; d.run()) {
		d.promise();
		lks_vol_tick(d.volume, d.now += LKS_TICK_MS);
	}
	CHECK(d.volume->join_stage == LKS_JOIN_PREPARE);
	CHECK(d.count(LKS_EV_SILENT) == 0);
	CHECK(d.volume->lost == 0);
	d.detach();
}

TEST_CASE("what was aborted stays so when somebody wants a session only for a primary to be there")
{
	Live d;
	d.use();
	lks_vol_link_lost(d.volume, 2, d.now);
	lks_req reqs[3]{};
	for (lks_req &r : reqs) {
		r.op = LKS_OP_READ;
		r.length = LKS_META_UNIT;
		r.buf = &no_data;
	}
	lks_vol_submit(d.volume, &reqs[0], d.now);
	CHECK(d.ended.empty());
	lks_vol_abort(d.volume, -EIO, d.now);
	CHECK(d.ended.size() == 1);
	lks_vol_open(d.volume, d.now);
	lks_vol_submit(d.volume, &reqs[1], d.now);
	CHECK(d.ended == std::vector<int>{-EIO, -EIO});
	lks_vol_abort(d.volume, 0, d.now);
	lks_vol_submit(d.volume, &reqs[2], d.now);
	CHECK(d.ended.size() == 2);
	lks_vol_abort(d.volume, -EIO, d.now);
}

TEST_CASE("a repair does not wait for the member whose loss has set it off")
{
	Live d;
	d.format();
	d.set_extent(0, LKS_EXTENT_WRITTEN);
	d.serve(false);
	lks_vol_open(d.volume, d.now);
	d.run();
	lks_req req{};
	req.op = LKS_OP_WRITE;
	req.length = LKS_META_UNIT;
	req.buf = &no_data;
	lks_vol_submit(d.volume, &req, d.now);    // so that the extent is hot, and a repair begins at once
	d.run();
	for (uint8_t peer : {1, 2})
		d.ack(peer);
	REQUIRE(d.ended == std::vector<int>{0});

	REQUIRE(verify(d, true) == 0);
	d.run();
	REQUIRE(d.sent.back().type == LKS_COMPARE);
	lks_frame differs = d.frame(LKS_COMPARED);
	differs.seq = d.sent.back().seq;
	differs.stable = LKS_CMP_DIFFERS;
	CHECK(d.receive(1, differs) == 0);
	lks_vol_link_lost(d.volume, 2, d.now);
	d.record.version++;
	d.record.replicas[1].state = LKS_REPLICA_STALE;
	d.record.replicas[1].since = d.record.version;
	REQUIRE(lks_vol_config(d.volume, &d.record, false, d.now) == 0);
	d.run();
	REQUIRE(d.count(LKS_EV_MISMATCH) == 1);
	d.ack(1);
	CHECK(lks_list_empty(&d.volume->writes));
	CHECK(d.volume->pace_ms == 0);    // it is as old as it is, not as the host
	CHECK(lks_map_test(&lks_peer_of(d.volume, 2)->dirty, 0));
	d.detach();
}

TEST_CASE("a version of the same term that names another primary or none deposes the one that serves")
{
	Live d;
	d.serve();
	d.sent.clear();
	d.record.version++;
	d.record.primary = 0;    // the pool of its replica is full, say, and others can go on
	d.record.replicas[2].state = LKS_REPLICA_FAILED;
	d.record.replicas[2].since = d.record.version;
	REQUIRE(lks_vol_config(d.volume, &d.record, false, d.now) == 0);
	CHECK(d.volume->role == LKS_IDLE);
	CHECK(d.sent.empty());    // a record that does not name its sender closes the link
	d.detach();
}

TEST_CASE("to zero what was never written is done at once, if nobody else can have written there")
{
	Live d;
	d.serve();
	lks_vol_open(d.volume, d.now);
	d.run();
	REQUIRE(d.count(LKS_EV_OPENED) == 1);
	size_t carried = 0;
	d.carry_out = [&](const lks_io &) { carried++; return 0; };
	std::deque<lks_req> reqs;
	auto zero = [&](uint8_t op) {
		lks_req &req = reqs.emplace_back();
		req.op = op;
		req.length = LKS_EXTENT_BYTES;
		lks_vol_submit(d.volume, &req, d.now);
		d.run();
	};
	d.promise();
	d.sent.clear();
	zero(LKS_OP_DISCARD);
	zero(LKS_OP_ZEROES);
	CHECK(d.ended == std::vector<int>{0, 0});
	CHECK(carried == 0);
	CHECK(d.sent.empty());
	CHECK(d.status().written_extents == 0);
	d.now += LKS_LEASE_MS + 1;    // without a promise, another primary may have (L3)
	zero(LKS_OP_DISCARD);
	CHECK(d.ended.size() == 2);
	CHECK(carried > 0);
	CHECK(d.status().written_extents == 1);
	for (uint8_t peer : {1, 2})
		d.ack(peer);
	CHECK(d.ended.size() == 3);
	d.promise();
	zero(LKS_OP_DISCARD);         // written now: it goes to all
	CHECK(d.ended.size() == 3);
	for (uint8_t peer : {1, 2})
		d.ack(peer);
	CHECK(d.ended.size() == 4);
	d.detach();
}

TEST_CASE("a verify that repairs stands still during a hold")
{
	Live d;
	d.serve();
	REQUIRE(lks_vol_quiesce(d.volume, 1, 10000, d.now) == 0);
	d.sent.clear();
	REQUIRE(verify(d, true) == 0);
	d.run();
	CHECK(d.sent.empty());
	CHECK(lks_vol_resume(d.volume, 1, d.now) == -ESTALE);    // no promises here
	d.run();
	CHECK(d.sent.size() == 2);
	d.detach();
}

// L5 counts the ticks in which nothing comes of what is owed; those of an earlier term are none of this one's.
TEST_CASE("a member that was mute in one term has all the time to answer in the next one")
{
	Live d;
	d.format();
	d.set_extent(0, LKS_EXTENT_WRITTEN);
	d.serve(false);
	auto pass = [&](uint32_t ms) {
		for (uint64_t end = d.now + ms; d.now < end;) {
			d.now += LKS_TICK_MS;
			d.promise();
			lks_vol_tick(d.volume, d.now);
			d.run();
		}
	};
	lks_vol_open(d.volume, d.now);
	lks_req req{};
	req.op = LKS_OP_WRITE;
	req.length = LKS_META_UNIT;
	req.buf = &no_data;
	lks_vol_submit(d.volume, &req, d.now);
	pass(LKS_ANSWER_MS - 5000);
	CHECK(d.volume->lost == 0);
	d.record.version++;
	d.record.primary = 0;
	REQUIRE(lks_vol_config(d.volume, &d.record, false, d.now) == 0);
	d.record.version++;
	d.record.term++;
	d.record.primary = d.params.self;
	REQUIRE(lks_vol_config(d.volume, &d.record, false, d.now) == 0);
	REQUIRE(d.volume->role == LKS_ACTIVATING);
	pass(LKS_ANSWER_MS - 5000);
	CHECK(d.volume->lost == 0);
	pass(10000);
	CHECK(d.volume->lost == (LKS_BIT(1) | LKS_BIT(2)));
	lks_vol_abort(d.volume, -EIO, d.now);
	d.detach();
}
