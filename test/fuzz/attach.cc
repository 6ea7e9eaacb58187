// SPDX-License-Identifier: GPL-2.0-or-later
//
// A replica's metadata as a broken or hostile disk may return them: superblocks, extent table, dirty maps. The input is a
// list of patches to a formatted image. Sealed, their checksums are put right and the superblock keeps its identity, so that
// everything behind the checks is reached; unsealed, nothing is.
//
// What can be attached must then be usable: it is admitted, told to serve or to follow, detached in good order, and attached
// again, clean, with the same dirty maps.
//
// Layout: shape, flags, then patches {region, offset u16, length, bytes}.
#include "host.h"

#include <algorithm>
#include <array>

using namespace lockstep::fuzz;

namespace {

enum Flags { SEALED = 1, SERVE = 2, THICK = 4, NO_IDENTITY = 8 };
enum Region { SUPER_A, SUPER_B, TABLE, SLOTS, ANYWHERE, REGIONS };

void seal(Host &h, bool identity)
{
	for (unsigned copy = 0; copy < 2; copy++) {
		auto *sb = reinterpret_cast<lks_superblock *>(&h.meta[copy * LKS_META_UNIT]);
		lks_superblock good = h.superblock();
		if (identity) {
			sb->vid = good.vid;
			memcpy(sb->uuid, good.uuid, sizeof(sb->uuid));
			sb->size = good.size;
			sb->block_size = good.block_size;
			sb->host = good.host;
		}
		lks_superblock_seal(sb);
	}
	uint64_t tag;
	memcpy(&tag, h.params.uuid, sizeof(tag));
	for (uint64_t i = 0; i < h.layout.table_bytes / sizeof(lks_extent_record); i++) {
		auto *r = reinterpret_cast<lks_extent_record *>(&h.meta[h.layout.table_offset + i * sizeof(lks_extent_record)]);
		r->index = static_cast<uint32_t>(i);
		r->tag = tag;
		lks_extent_record_seal(r);
	}
}

void patch(Host &h, Input &in)
{
	const lks_layout &l = h.layout;
	auto region = static_cast<Region>(in.below(REGIONS));
	const uint64_t begins[] = {0, LKS_META_UNIT, l.table_offset, l.slot_offset, 0};
	const uint64_t sizes[] = {LKS_META_UNIT, LKS_META_UNIT, l.table_bytes, LKS_SLOTS * l.slot_bytes, l.total_bytes};
	uint64_t at = begins[region] + in.take<uint16_t>() % sizes[region];
	uint64_t n = std::min<uint64_t>(1 + in.u8() % 64, h.meta.size() - at);
	in.bytes(&h.meta[at], n);
}

// Whatever the disk said: each other replica at most once, this host never.
void check_peers(const lks_vol &v)
{
	uint64_t seen = 0;
	for (const lks_peer &p : v.peers) {
		if (!p.host)
			continue;
		CHECK(p.host <= LKS_MAX_HOSTS && p.host != SELF && !(seen & LKS_BIT(p.host)));
		CHECK(p.dirty.bits == v.blocks && p.dirty.set <= v.blocks);
		seen |= LKS_BIT(p.host);
	}
	CHECK(v.hot <= v.layout.extents && v.written <= v.layout.extents && v.doubt.set <= v.blocks);
}

// A damaged record counts as "all hot and written".
void check_damaged(const Host &h)
{
	uint64_t tag, per = LKS_EXTENTS_PER_RECORD;
	memcpy(&tag, h.params.uuid, sizeof(tag));
	for (uint64_t i = 0; i * per < h.layout.extents; i++) {
		auto *r = reinterpret_cast<const lks_extent_record *>(&h.meta[h.layout.table_offset + i * sizeof(lks_extent_record)]);
		if (lks_extent_record_valid(r, static_cast<uint32_t>(i), tag))
			continue;
		for (uint64_t e = i * per; e < std::min((i + 1) * per, h.layout.extents); e++)
			CHECK(lks_extent_bits(h.core, e) == (LKS_EXTENT_HOT | LKS_EXTENT_WRITTEN));
	}
}

void use(Host &h, bool serve, bool thick)
{
	lks_record r = base_record(serve ? SELF : 2, h.params.size), before = r;
	const lks_superblock &sb = h.core->sb;
	if (std::max({sb.version, sb.term, sb.incarnation}) >> 62)
		return;    // newer than any log: the daemon refuses it
	r.version = before.version = std::max<uint64_t>(r.version, sb.version) + 2;
	r.term = before.term = std::max<uint64_t>(r.term, sb.term) + 2;
	r.replicas[1].state = r.replicas[2].state = serve ? LKS_REPLICA_STALE : LKS_REPLICA_INSYNC;
	r.incarnation = sb.incarnation + 1;    // as a last resort would: suspect or not, it may serve
	before.version--;
	before.term--;
	before.primary = 0;
	lks_vol_link_up(h.core, 2, h.now);
	lks_vol_config(h.core, &before, true, h.now);
	check_peers(*h.core);
	lks_vol_config(h.core, &r, false, h.now);
	for (int i = 0; i < 30; i++) {
		h.complete_all();
		h.now += 200;
		lks_vol_tick(h.core, h.now);
	}
	if (h.too_small)
		return;
	CHECK(h.core->role == (serve ? LKS_ACTIVE : LKS_IDLE));
	check_peers(*h.core);
	std::array<uint64_t, LKS_SLOTS> dirty{};
	for (unsigned i = 0; i < LKS_SLOTS; i++)
		dirty[i] = h.core->peers[i].host && !(lks_insync(&r) & LKS_BIT(h.core->peers[i].host)) ? h.core->peers[i].dirty.set : 0;
	bool doubted = h.core->doubt.set, suspect;
	lks_vol_detach(h.core, h.now);
	h.complete_all();
	CHECK(h.detached);
	if (h.too_small)
		return;
	CHECK(!h.disk_error);
	CHECK(h.attach(thick, &suspect) == 0);
	CHECK(suspect == doubted);
	check_peers(*h.core);
	for (unsigned i = 0; i < LKS_SLOTS; i++)
		CHECK(!dirty[i] || (h.core->peers[i].host && h.core->peers[i].dirty.set >= dirty[i]));
}

}    // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	Input in(data, bytes);
	uint8_t shape = in.u8(), flags = in.u8();
	static const uint64_t sizes[] = {4096, 9 * MIB + 4096, 64 * MIB, 9ull << 30};    // the last one has two records of extents
	Host h(sizes[shape >> 2 & 3], (shape >> 2 & 3) == 3 ? 1u << 20 : std::array<uint32_t, 4>{4096, 16384, 65536, 1u << 20}[shape & 3]);
	h.format();
	for (unsigned n = 0; !in.empty() && n < 200; n++)
		patch(h, in);
	if (flags & SEALED)
		seal(h, !(flags & NO_IDENTITY));
	bool suspect = false;
	CHECK(h.create());
	int err = h.attach(flags & THICK, &suspect);
	CHECK(err == 0 || err == -EUCLEAN || (err == -EIO && h.too_small));
	if (!err) {
		CHECK(suspect == (h.core->hot != 0));
		check_peers(*h.core);
		check_damaged(h);
		use(h, flags & SERVE, flags & THICK);
	}
	h.tear_down();
	return 0;
}
