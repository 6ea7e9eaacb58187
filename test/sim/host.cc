// SPDX-License-Identifier: GPL-2.0-or-later
//
// A host's life, and what the kernel module is to the core: struct lks_ops, with every call checked. The core's calls out
// only queue; what they ask for happens at later events, never from inside the core.
#include "world.h"

#include "core/internal.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace lockstep::sim {

namespace {

Instance &self(void *ctx) { return *static_cast<Instance *>(ctx); }

void *op_alloc(void *ctx, size_t bytes)
{
	Instance &i = self(ctx);
	if (i.world.spoils(i.world.profile.alloc_failures)) {
		i.world.stats[Stat::alloc_failures]++;
		return nullptr;
	}
	void *p = bytes == LKS_META_UNIT ? aligned_alloc(LKS_META_UNIT, bytes) : malloc(bytes);
	memset(p, 0, bytes);
	i.memory[p] = bytes;
	return p;
}

void op_free(void *ctx, void *p, size_t bytes)
{
	Instance &i = self(ctx);
	auto it = i.memory.find(p);
	if (it == i.memory.end())
		i.world.fail("h%u frees memory that it does not have", i.host.id);
	if (it->second != bytes)
		i.world.fail("h%u frees %zu bytes as %zu", i.host.id, it->second, bytes);
	i.memory.erase(it);
	memset(p, 0xee, bytes);
	free(p);
}

lks_buf *op_buf_alloc(void *ctx, u32 bytes)
{
	Instance &i = self(ctx);
	if (!bytes || bytes % SECTOR)
		i.world.fail("h%u wants a buffer of %u bytes", i.host.id, bytes);
	if (i.world.spoils(i.world.profile.alloc_failures)) {
		i.world.stats[Stat::alloc_failures]++;
		return nullptr;
	}
	return i.world.new_buffer(i, bytes);
}

void op_buf_get(lks_buf *buf)
{
	buf->refs++;
}

void op_buf_put(lks_buf *buf)
{
	buf->owner->world.put_buffer(buf);
}

void check_not_returned(const lks_buf *buf)
{
	if (buf->returned)
		buf->owner->world.fail("h%u writes to the buffer of a read that has ended", buf->owner->host.id);
}

void op_buf_copy(lks_buf *to, lks_buf *from, u32 bytes)
{
	check_not_returned(to);
	if (bytes > to->bytes || bytes > from->bytes)
		to->owner->world.fail("h%u copies %u bytes from %u to %u", to->owner->host.id, bytes, from->bytes, to->bytes);
	std::copy_n(from->sectors.begin(), bytes / SECTOR, to->sectors.begin());
}

void op_buf_zero(lks_buf *buf, u32 bytes)
{
	check_not_returned(buf);
	if (bytes > buf->bytes)
		buf->owner->world.fail("h%u zeroes %u bytes of %u", buf->owner->host.id, bytes, buf->bytes);
	std::fill_n(buf->sectors.begin(), bytes / SECTOR, 0);
}

// Not XXH64; but equal for equal content, which is all that the core may rely on.
u64 op_buf_hash(lks_buf *buf, u32 bytes)
{
	if (bytes > buf->bytes)
		buf->owner->world.fail("h%u hashes %u bytes of %u", buf->owner->host.id, bytes, buf->bytes);
	u64 hash = 0xcbf29ce484222325u;
	for (u32 k = 0; k < bytes / SECTOR; k++)
		hash = (hash ^ buf->sectors[k]) * 0x9e3779b97f4a7c15u ^ hash >> 29;
	return hash;
}

void op_submit(void *ctx, lks_io *io)
{
	if (io->op == LKS_IO_READ && io->buf)
		check_not_returned(io->buf);
	self(ctx).world.submit(self(ctx), io);
}

void op_send(void *ctx, u8 to, u8 lane, const lks_frame *h, lks_buf *buf, const void *bytes)
{
	self(ctx).world.send(self(ctx), to, lane, *h, buf, bytes);
}

// Other volumes that resync come and go.
u32 op_syncing(void *ctx, bool on)
{
	Instance &i = self(ctx);
	if (on && !i.crowd)
		i.crowd = i.world.crowd ? i.world.crowd : i.world.random.pick<u32>({1, 1, 3, 40, 2000});
	if (!on)
		i.crowd = 0;
	return i.crowd ? i.crowd : 1;
}

// Often none, and seldom for all: what is asked again later has seen the world change meanwhile.
u32 op_room(void *ctx, u8)
{
	World &w = self(ctx).world;
	return w.hostile ? w.random.pick<u32>({0, 0, 0, 1, 1, 2, 100}) : 100;
}

void op_req_done(void *ctx, lks_req *req, int err)
{
	Instance &i = self(ctx);
	auto known = std::find_if(i.ops.begin(), i.ops.end(), [&](auto &op) { return &op->req == req; });
	bool twice = std::any_of(i.ended.begin(), i.ended.end(), [&](auto &e) { return &e.first->req == req; });
	if (known == i.ops.end() || twice)
		i.world.fail("h%u ends a request that is not under way", i.host.id);
	if (req->op == LKS_OP_READ)
		req->buf->returned = true;
	i.ended.push_back({known->get(), err});
}

void op_event(void *ctx, const lks_event_info *info)
{
	Instance &i = self(ctx);
	Instance::Event e{*info, {}};
	if (info->record)
		e.record = *info->record;
	i.events.push_back(e);
}

}    // namespace

const lks_ops &core_ops()
{
	static const lks_ops ops = {
		.alloc = op_alloc,
		.free = op_free,
		.buf_alloc = op_buf_alloc,
		.buf_get = op_buf_get,
		.buf_put = op_buf_put,
		.buf_copy = op_buf_copy,
		.buf_zero = op_buf_zero,
		.buf_hash = op_buf_hash,
		.submit = op_submit,
		.send = op_send,
		.req_done = op_req_done,
		.event = op_event,
		.syncing = op_syncing,
		.room = op_room,
	};
	return ops;
}

bool World::spoils(double probability)
{
	return hostile && probability > 0 && random.chance(probability);
}

lks_buf *World::new_buffer(Instance &i, uint32_t bytes)
{
	auto *buf = new lks_buf{1, bytes, fresh(), &i, std::vector<uint64_t>(bytes / SECTOR, 0xbadull << 52)};
	i.buffers.insert({buf->number, buf});
	return buf;
}

void World::put_buffer(lks_buf *buf)
{
	if (buf->refs < 1)
		fail("h%u puts a buffer too often", buf->owner->host.id);
	if (--buf->refs)
		return;
	buf->owner->buffers.erase({buf->number, buf});
	delete buf;
}

Instance *World::find(uint8_t id, uint32_t vid, uint64_t instance_serial)
{
	Host &h = host(id);
	if (!h.up || vid < 1 || vid > h.instances.size())
		return nullptr;
	Instance *i = h.instances[vid - 1].get();
	return i && (!instance_serial || i->serial == instance_serial) ? i : nullptr;
}

uint64_t World::clock_ms(const Host &h) const
{
	return h.origin_ms + static_cast<uint64_t>(static_cast<double>(now - h.booted) * h.rate / MS);
}

// ---- a volume on all hosts

void World::add_volume()
{
	auto v = std::make_unique<Volume>();
	v->vid = static_cast<uint32_t>(volumes.size() + 1);
	for (size_t i = 0; i < v->uuid.size(); i++)
		v->uuid[i] = static_cast<uint8_t>(random.next());
	v->bytes = random.chance(.7) ? 16ull << 20 : (9ull << 20) + random.between(1, 700) * 4096;
	v->block_size = random.pick<uint32_t>({4096, 16384, 16384, 65536, 65536, 1u << 20});
	if (profile.bytes)
		v->bytes = profile.bytes;
	if (profile.block_size)
		v->block_size = profile.block_size;
	v->thick = random.chance(.5);
	v->shared = profile.shared ? profile.shared == 2 : random.chance(.25);
	lks_layout_of(v->bytes, v->block_size, &v->layout);
	v->history = std::make_unique<History>(v->sectors());
	if (profile.grows ? profile.grows == 2 : random.chance(.3))
		v->grow_to = v->bytes + random.between(1, 1500) * 4096;
	uint64_t meta_offset = LKS_ROUND_UP(v->bytes, LKS_META_UNIT) + random.below(3) * LKS_META_UNIT;
	lks_layout grown{};
	lks_layout_of(std::max(v->bytes, v->grow_to), v->block_size, &grown);

	std::vector<uint8_t> all;
	for (auto &h : hosts)
		all.push_back(h->id);
	size_t replicas = profile.replicas;
	if (!replicas)
		replicas = std::min<size_t>(random.pick<unsigned>({2, 2, 3, 3, 3, 3, 4}), hosts.size());
	for (size_t n = replicas; n; n--) {
		size_t at = profile.replicas ? 0 : random.below(all.size());    // given: the first hosts
		v->replicas.push_back(all[at]);
		all.erase(all.begin() + static_cast<long>(at));
	}
	std::sort(v->replicas.begin(), v->replicas.end());

	lks_record r{};
	r.version = r.term = 1;
	r.vid = v->vid;
	r.size = v->bytes;
	r.nreplicas = static_cast<uint8_t>(v->replicas.size());
	for (size_t i = 0; i < v->replicas.size(); i++) {
		r.replicas[i].host = v->replicas[i];
		r.replicas[i].state = LKS_REPLICA_INSYNC;
		r.replicas[i].since = r.replicas[i].added = 1;
	}
	if (lks_record_check(&r))
		fail("the first record is invalid");
	v->log.push_back(r);

	for (unsigned n = static_cast<unsigned>(random.between(6, 12)); n; n--) {
		uint64_t count = random.between(4, 20);
		// Hot places cluster, and some lie across a block's or extent's end.
		uint64_t extent = LKS_EXTENT_BYTES / SECTOR, block = v->block_size / SECTOR;
		uint64_t first = random.below(v->sectors());
		if (random.chance(.4))
			first = first / block * block - std::min(first / block * block, random.below(count));
		else if (random.chance(.2))
			first = first / extent * extent - std::min(first / extent * extent, random.below(count));
		v->windows.push_back({std::min(first, v->sectors() - count), count});
	}

	lks_superblock sb{};
	sb.vid = v->vid;
	memcpy(sb.uuid, v->uuid.data(), sizeof(sb.uuid));
	sb.size = v->bytes;
	sb.block_size = v->block_size;
	sb.version = sb.term = 1;
	for (auto &h : hosts) {
		h->instances.emplace_back();
		h->disks.emplace_back();
		h->ended_session.push_back(0);
		h->applied.push_back(0);
		if (!std::count(v->replicas.begin(), v->replicas.end(), h->id))
			continue;
		sb.host = h->id;
		uint64_t end = meta_offset + v->layout.total_bytes, next = std::max(v->grow_to, end);
		next = LKS_ROUND_UP(next, LKS_META_UNIT) + random.below(3) * LKS_META_UNIT;
		v->meta_of[h->id] = meta_offset;
		v->grow_offset[h->id] = next;
		auto disk = std::make_unique<Disk>((v->grow_to ? next + grown.total_bytes : end) / SECTOR, v->thick);
		disk->add_place(meta_offset / SECTOR, v->layout.total_bytes / SECTOR);
		if (v->grow_to)
			disk->add_place(next / SECTOR, grown.total_bytes / SECTOR);
		alignas(LKS_META_UNIT) uint8_t unit[LKS_META_UNIT];
		for (uint64_t at = 0; at < v->layout.slot_offset; at += LKS_META_UNIT) {
			lks_format_unit(&sb, at, unit);
			for (uint64_t s = 0; s < LKS_META_UNIT / SECTOR; s++) {
				MetaSector sector;
				memcpy(sector.data(), unit + s * SECTOR, SECTOR);
				disk->write_meta((meta_offset + at) / SECTOR + s, sector);
			}
		}
		disk->flush(disk->mark());
		h->disks.back() = std::move(disk);
	}
	volumes.push_back(std::move(v));
}

// ---- life

void World::start(Host &h)
{
	h.up = true;
	h.boot = fresh();
	h.origin_ms = random.pick<uint64_t>({0, random.below(5000), random.below(1u << 30)});
	h.booted = now;
	h.paused_until = h.stalled_until = h.full_until = 0;
	h.daemon = true;
	trace("h%u boots", h.id);
	for (auto &v : volumes) {
		h.instances[v->vid - 1] = std::make_unique<Instance>(*this, h, *v, fresh());
		if (const lks_record_opener *o = opener_in(v->record(), h.id))
			h.ended_session[v->vid - 1] = std::max<uint64_t>(h.ended_session[v->vid - 1], o->session);
	}
	for (auto &other : hosts)
		if (other->id != h.id)
			redial(h.id, other->id);
	at_host(h, random.between(1, 300) * MS, [this, &h] { daemon_wakes(h); });
}

void World::crash(Host &h, Time away)
{
	if (!h.up)
		return;
	stats[Stat::crashes]++;
	trace("h%u CRASHES for %llu ms", h.id, (unsigned long long)(away / MS));
	for (auto &i : h.instances) {
		if (h.disks[i->volume.vid - 1])
			power_off_disk(h, *i);
		for (auto &op : i->ops)
			if (op->req.op == LKS_OP_READ)
				i->volume.history->read_ends(op->issued);
		discard(*i);
		i.reset();
	}
	h.up = false;
	for (auto &other : hosts)
		if (other->id != h.id)
			break_link(h.id, other->id, h.id);
	at(away, [this, &h] { start(h); });
}

void World::discard(Instance &i)
{
	for (auto &[p, bytes] : i.memory)
		free(p);
	i.memory.clear();
	for (auto &[number, buf] : i.buffers)
		delete buf;
	i.buffers.clear();
	i.ops.clear();
	i.transfers.clear();
	i.core = nullptr;
}

void World::create(Instance &i)
{
	lks_vol_params p{};
	p.vid = i.volume.vid;
	memcpy(p.uuid, i.volume.uuid.data(), sizeof(p.uuid));
	p.size = i.volume.bytes;
	p.block_size = i.volume.block_size;
	p.self = i.host.id;
	p.shared = i.volume.shared;
	p.lease_ms = profile.lease_ms;
	p.answer_ms = profile.answer_ms;
	in_core = true;
	i.core = lks_vol_create(&p, &core_ops(), &i);
	in_core = false;
	if (!i.core) {
		if (profile.alloc_failures <= 0)
			fail("h%u could not create volume %u", i.host.id, p.vid);
		return;
	}
	trace("h%u creates volume %u", i.host.id, p.vid);
	if (struct lks_vol_tune tune{profile.freeze_ms, profile.sync_rate_kib, profile.sync_floor_kib, profile.sync_target_ms};
	    tune.freeze_ms || tune.sync_rate_kib || tune.sync_floor_kib || tune.sync_target_ms)
		enter(i, [&](lks_vol *v, uint64_t t) { lks_vol_tune(v, &tune, t); });
	i.attach_after = now + random.below(200) * MS;
	for (auto &other : hosts) {
		if (other->id == i.host.id)
			continue;
		Link *l = link_of(i.host.id, other->id);
		if (l && l->ends[l->hosts[1] == i.host.id].up && !l->ends[l->hosts[1] == i.host.id].lost)
			enter(i, [&](lks_vol *v, uint64_t t) { lks_vol_link_up(v, other->id, t); });
	}
	struct Ticking {
		static void tick(World &w, Instance &t)
		{
			if (!t.core)
				return;
			w.enter(t, [](lks_vol *v, uint64_t ms) { lks_vol_tick(v, ms); });
			w.at_instance(t, w.random.between(LKS_TICK_MS * 8 / 10, LKS_TICK_MS * 12 / 10) * MS, [&w](Instance &x) { tick(w, x); });
		}
	};
	at_instance(i, random.below(LKS_TICK_MS) * MS, [this](Instance &t) { Ticking::tick(*this, t); });
}

void World::destroy(Instance &i)
{
	trace("h%u destroys volume %u", i.host.id, i.volume.vid);
	in_core = true;
	lks_vol_destroy(i.core);
	in_core = false;
	i.core = nullptr;
	if (!i.memory.empty())
		fail("h%u leaks %zu allocations of volume %u", i.host.id, i.memory.size(), i.volume.vid);
	i.attach_after = now + 30 * SECOND;    // by when buffers that are being sent must have been put
}

int World::attach(Instance &i)
{
	auto read = [](void *reader, u64 offset, void *to, u32 bytes) { return self(reader).world.read_meta(self(reader), offset, to, bytes); };
	bool suspect = false;
	uint64_t version = 0, term = 0;
	uint64_t offset = i.volume.meta_of.at(i.host.id);
	int err = enter(i, [&](lks_vol *v, uint64_t t) {
		return lks_vol_attach(v, offset, i.volume.thick, read, &i, t, &suspect, &version, &term);
	});
	trace("h%u attaches volume %u: %d%s v%llu/t%llu", i.host.id, i.volume.vid, err, suspect ? " suspect" : "",
	      (unsigned long long)version, (unsigned long long)term);
	if (err && !(err == -ENOMEM && profile.alloc_failures > 0) && !(err == -EIO && profile.io_errors > 0))
		fail("h%u could not attach volume %u: error %d", i.host.id, i.volume.vid, err);
	if (err)
		return err;
	if (version > i.volume.record().version || term > i.volume.record().term)
		fail("h%u: the superblock of volume %u is newer than the log", i.host.id, i.volume.vid);
	i.attached = true;
	i.suspect = suspect;
	i.failed = false;
	if (!suspect)
		stats[Stat::clean_attaches]++;
	return 0;
}

// ---- after a call into the core

void World::left_core(Instance &i)
{
	if (i.core && (i.core->role != i.role || i.core->cfg.term != i.role_term))
		role_changed(i);
	while (!i.events.empty() || !i.ended.empty()) {
		auto events = std::move(i.events);
		auto ended = std::move(i.ended);
		i.events.clear();
		i.ended.clear();
		for (auto &e : events)
			handle(i, e);
		for (auto &[op, error] : ended)
			op_ended(i, op, error);
	}
}

void World::handle(Instance &i, const Instance::Event &e)
{
	switch (e.info.event) {
	case LKS_EV_PROPOSE:
		trace("h%u proposes %s", i.host.id, describe(e.record).c_str());
		if (i.host.daemon)
			at(random.between(50, 300) * MS, [this, id = i.host.id, vid = i.volume.vid, r = e.record] { propose(id, vid, r); });
		break;
	case LKS_EV_OPENED:
		opened(i);
		break;
	case LKS_EV_FENCED:
		fenced(i);
		break;
	case LKS_EV_SILENT:
		stats[Stat::silent]++;
		trace("h%u finds h%u silent", i.host.id, e.info.host);
		at_instance(i, random.below(3 * MS), [this, peer = e.info.host](Instance &x) { break_link(x.host.id, peer, x.host.id); });
		break;
	case LKS_EV_DISK_ERROR:
		trace("h%u: disk of volume %u failed: op %u, error %d", i.host.id, i.volume.vid, e.info.op, e.info.error);
		if (profile.io_errors <= 0 && !i.no_space)
			fail("h%u says that a disk failed that did not", i.host.id);
		stats[Stat::disk_errors]++;
		i.failed = true;
		break;
	case LKS_EV_UNREADABLE:
		trace("h%u: %llu bytes at %llu of volume %u cannot be read any more", i.host.id, (unsigned long long)e.info.length,
		      (unsigned long long)e.info.offset, i.volume.vid);
		if (profile.io_errors <= 0 && !i.unreadable)
			fail("h%u says that a disk lost what it did not", i.host.id);
		stats[Stat::unreadable]++;
		break;
	case LKS_EV_DETACHED:
		trace("h%u has detached volume %u", i.host.id, i.volume.vid);
		if (!i.detaching || !i.transfers.empty())
			fail("h%u says detached with %zu transfers under way", i.host.id, i.transfers.size());
		i.detaching = i.attached = i.admitted = i.failed = false;
		i.attach_after = now + random.below(i.hurry ? 50 : 3000) * MS;
		i.hurry = false;
		if (i.destroy)
			at_instance(i, 0, [this](Instance &x) { destroy(x); });
		break;
	case LKS_EV_QUIESCED:
		held(i, e.info.hold);
		break;
	case LKS_EV_UNQUIESCED:
		trace("h%u: hold %llu of volume %u ends by itself", i.host.id, (unsigned long long)e.info.hold, i.volume.vid);
		break;
	case LKS_EV_MISMATCH:
		stats[Stat::mismatches]++;
		trace("h%u: verify finds %llu bytes at %llu that differ on h%u", i.host.id, (unsigned long long)e.info.length,
		      (unsigned long long)e.info.offset, e.info.host);
		if (!i.volume.damaged)
			fail("I4 volume %u: h%u finds that %llu bytes at %llu differ on h%u", i.volume.vid, i.host.id,
			     (unsigned long long)e.info.length, (unsigned long long)e.info.offset, e.info.host);
		break;
	case LKS_EV_VERIFIED:
		trace("h%u has verified volume %u", i.host.id, i.volume.vid);
		stats[Stat::verified]++;
		break;
	case LKS_EV_META_MOVED:
		trace("h%u: metadata of volume %u at %llu are %s", i.host.id, i.volume.vid, (unsigned long long)e.info.offset,
		      e.info.done ? "the only ones" : "current");
		break;
	case LKS_EV_STATE:
		break;
	}
}

}    // namespace lockstep::sim
