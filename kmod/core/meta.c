// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Writing the metadata. Two writers, each with one transfer in flight.
 *
 * The *table writer* writes units of the extent table: those with extents that heat, first (group commit: everything that
 * has come up for a unit while another was being written goes in one write), then those in which bits were cleared. It
 * alone writes the table, so no write of a unit overtakes another.
 *
 * The *save* is a cycle: dirty maps, flush, superblock, and only then the bits of cold extents are cleared in memory (H2f,
 * H2d). An extent that was chosen to cool and is written meanwhile stays hot. Preparing a join (D2, J2) and detaching are
 * saves too.
 */
#include "internal.h"

#define COOL_AFTER_MS 10000u	/* an extent idle this long may cool */
#define SAVE_EVERY_MS 1000u
#define HOT_CAP 16384u		/* extents; 64 GiB: with more hot, idle ones cool at once */
#define AHEAD_WITHIN_MS 1000u	/* writes of the table so close to each other are of one who writes all over the volume */
#define AHEAD_MAX 512u		/* extents; 2 GiB: no longer than a moment under the lock */

/*
 * While the replica grows, every write goes to the first place and then to the second; only then has it been done. A crash in
 * between leaves the one that counts either with or without it, as ever.
 */
static bool second_place(struct lks_vol *v, struct lks_io *io, bool *second)
{
	*second = !*second && lks_doubling(v) && io->op != LKS_IO_FLUSH;
	if (!*second)
		return false;
	lks_move_second(v, io);
	v->ops->submit(v->ctx, io);
	return true;
}

static void meta_write(struct lks_vol *v, struct lks_io *io, u64 at, void *page, u8 flags)
{
	io->op = LKS_IO_META;
	io->flags = flags;
	io->offset = v->meta_offset + at;
	io->length = LKS_META_UNIT;
	io->meta = page;
	v->ops->submit(v->ctx, io);
}

/* ---- the table writer ---- */

/*
 * H1 asks for hot before written, not for hot as late as possible. Whoever writes all over a volume would wait for the table at each
 * extent that he comes to: each write of the table that follows another one closely makes twice as many extents hot as that one did,
 * of those behind the first that is wanted, up to half the cap. Only what was written before: it needs no zeroing, and what was never
 * written is to read as zeros without I/O. What nobody writes cools as ever, and costs reading at a crash's resync.
 */
static void heat_ahead(struct lks_vol *v, u32 unit, u64 wanted)
{
	u64 first = (u64)unit * LKS_EXTENTS_PER_UNIT;
	u32 left;

	if (v->now > v->heated_ms + AHEAD_WITHIN_MS)
		v->ahead = 0;
	else if (v->ahead < AHEAD_MAX)
		v->ahead = v->ahead ? v->ahead * 2 : 1;
	v->heated_ms = v->now;
	if (v->detaching || v->hot >= HOT_CAP / 2)
		return;
	left = v->ahead;
	for (u64 i = 1; left && i < LKS_EXTENTS_PER_UNIT; i++) {
		u64 index = first + (wanted - first + i) % LKS_EXTENTS_PER_UNIT;
		struct lks_extent *e;

		if (lks_extent_bits(v, index) != LKS_EXTENT_WRITTEN)
			continue;
		e = lks_extent_get(v, index);
		if (!e)
			return;
		lks_extent_set_bits(v, index, LKS_EXTENT_HOT | LKS_EXTENT_WRITTEN);
		e->heat = LKS_HEATING;
		e->used_ms = v->now;
		lks_list_move_tail(&e->all, &v->extents);
		lks_list_add_tail(&e->meta, &v->to_write);
		left--;
	}
}

static void write_unit(struct lks_vol *v, u32 unit)
{
	struct lks_extent_record *r = v->meta_page;
	struct lks_list *pos, *tmp;

	memcpy(r, &v->table[unit * LKS_RECORDS_PER_UNIT], LKS_META_UNIT);
	for (u32 i = 0; i < LKS_RECORDS_PER_UNIT; i++)
		lks_extent_record_seal(&r[i]);
	lks_list_for_each_safe(pos, tmp, &v->to_write) {
		struct lks_extent *e = lks_list_entry(pos, struct lks_extent, meta);

		if (e->index / LKS_EXTENTS_PER_UNIT == unit) {
			e->heat = LKS_WRITING;
			lks_list_move_tail(&e->meta, &v->in_write);
		}
	}
	if (v->unit_dirty[unit]) {
		v->unit_dirty[unit] = 0;
		v->units_dirty--;
	}
	v->meta_busy = true;
	meta_write(v, &v->meta_io, v->layout.table_offset + (u64)unit * LKS_META_UNIT, r, LKS_IO_FUA);
}

static void table_step(struct lks_vol *v)
{
	if (v->meta_busy)
		return;
	if (!lks_list_empty(&v->to_write)) {
		u64 wanted = lks_list_first(&v->to_write, struct lks_extent, meta)->index;
		u32 unit = (u32)(wanted / LKS_EXTENTS_PER_UNIT);

		heat_ahead(v, unit, wanted);
		write_unit(v, unit);
		return;
	}
	for (u32 i = 0; v->units_dirty && i < v->units; i++) {
		if (v->unit_dirty[i]) {
			write_unit(v, i);
			return;
		}
	}
}

static void table_written(struct lks_vol *v)
{
	while (!lks_list_empty(&v->in_write)) {
		struct lks_extent *e = lks_list_first(&v->in_write, struct lks_extent, meta);

		lks_list_del(&e->meta);
		lks_extent_heated(v, e);
		if (lks_list_empty(&e->busy))
			e->used_ms = v->now;
	}
}

/* ---- the save ---- */

static bool away(const struct lks_vol *v, const struct lks_peer *p)
{
	return p->host && !(lks_insync(&v->cfg) & LKS_BIT(p->host));
}

/* H2: a replica that is activating, out of sync or in doubt keeps what is hot */
static bool may_cool(const struct lks_vol *v)
{
	if (v->role == LKS_ACTIVATING || !v->admitted)
		return false;
	return v->role != LKS_IDLE || (!v->suspect && !v->doubt.set && lks_insync(&v->cfg) & LKS_BIT(v->p.self));
}

static void choose_cold(struct lks_vol *v)
{
	struct lks_list *pos;

	if (!may_cool(v))
		return;
	lks_list_for_each(pos, &v->extents) {
		struct lks_extent *e = lks_list_entry(pos, struct lks_extent, all);

		if (!v->save_cold_all && v->hot < HOT_CAP && e->used_ms + COOL_AFTER_MS > v->now)
			break;
		if (e->heat == LKS_HOT && !lks_extent_warm(v, e))
			e->heat = LKS_COOLING;
	}
}

static void begin_save(struct lks_vol *v)
{
	v->save_wanted = false;
	v->prepare_running = v->prepare;
	v->prepare = false;
	choose_cold(v);
	v->save_cold_all = false;
	if (v->move == LKS_MOVE_WANTED) {
		v->move = LKS_MOVE_COPYING;	/* from here on */
		v->move_saving = true;
		for (u32 i = 0; i < v->units; i++)
			v->unit_dirty[i] = 1;
		v->units_dirty = v->units;
	}
	v->retired_saving = v->move == LKS_MOVE_RETIRED;
	v->saved_ms = v->now;
	v->save_step = LKS_SAVE_ZERO;
	v->save_slot = v->save_leaf = 0;
}

void lks_zero_slot(struct lks_vol *v, u32 slot)
{
	v->save_io.op = LKS_IO_ZEROES;
	v->save_io.flags = 0;
	v->save_io.offset = v->meta_offset + v->layout.slot_offset + slot * v->layout.slot_bytes;
	v->save_io.length = (u32)v->layout.slot_bytes;
}

/* true: a transfer was started */
static bool zero_slots(struct lks_vol *v)
{
	for (; v->save_slot < LKS_SLOTS; v->save_slot++) {
		struct lks_peer *p = &v->peers[v->save_slot];

		if (!away(v, p) || p->slot_zeroed)
			continue;
		lks_zero_slot(v, v->save_slot);
		p->slot_zeroed = true;
		for (u32 i = 0; p->dirty.leaves && i < p->dirty.nleaves; i++)
			p->dirty.leaves[i].unsaved = p->dirty.leaves[i].set != 0;
		v->ops->submit(v->ctx, &v->save_io);
		return true;
	}
	return false;
}

static bool save_leaf(struct lks_vol *v)
{
	for (; v->save_slot < LKS_SLOTS; v->save_slot++, v->save_leaf = 0) {
		struct lks_peer *p = &v->peers[v->save_slot];

		if (!away(v, p) || !p->slot_zeroed || !LKS_ON(H2d))
			continue;
		while (v->save_leaf < p->dirty.nleaves) {
			u32 i = v->save_leaf++;

			bool unsaved = p->dirty.leaves ? p->dirty.leaves[i].unsaved : p->dirty.all;

			if (!unsaved && !(v->move_saving && !lks_map_leaf_empty(&p->dirty, i)))
				continue;
			if (p->dirty.leaves)
				p->dirty.leaves[i].unsaved = 0;
			lks_map_get_chunk(&p->dirty, i, v->save_page);
			meta_write(v, &v->save_io, v->layout.slot_offset + v->save_slot * v->layout.slot_bytes +
				   (u64)i * LKS_META_UNIT, v->save_page, 0);
			return true;
		}
	}
	return false;
}

/* A save may name a slot only if the flush has covered its zeroing and its leaves: both were in this save or before. */
static bool save_super(struct lks_vol *v)
{
	bool changed = v->sb_dirty || v->move_saving || v->sb.clean != v->save_clean;

	for (u32 i = 0; i < LKS_SLOTS; i++) {
		struct lks_peer *p = &v->peers[i];
		struct lks_disk_slot s = { 0 };

		if (away(v, p) && p->slot_zeroed) {
			s.host = p->host;
			s.since = p->since;
		}
		changed |= memcmp(&s, &v->sb.slots[i], sizeof(s)) != 0;
		v->sb.slots[i] = s;
	}
	if (!changed)
		return false;
	v->sb.version = v->cfg.version > v->sb.version ? v->cfg.version : v->sb.version;
	v->sb.term = v->cfg.term > v->sb.term ? v->cfg.term : v->sb.term;
	v->sb.incarnation = v->cfg.incarnation > v->sb.incarnation ? v->cfg.incarnation : v->sb.incarnation;
	v->sb.clean = v->save_clean;
	v->sb.sequence++;
	v->sb_dirty = false;
	memcpy(v->save_page, &v->sb, sizeof(v->sb));
	lks_superblock_seal(v->save_page);
	meta_write(v, &v->save_io, (v->sb.sequence & 1) ? 0 : LKS_META_UNIT, v->save_page, LKS_IO_FUA);
	return true;
}

/* H2: everything that would make these extents worth remembering is durable now */
static void clear_cold(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;
	bool cool = may_cool(v);	/* still? */

	lks_list_for_each_safe(pos, tmp, &v->extents) {
		struct lks_extent *e = lks_list_entry(pos, struct lks_extent, all);
		u64 unit = e->index / LKS_EXTENTS_PER_UNIT;

		if (e->heat != LKS_COOLING)
			continue;
		if (!cool || lks_extent_warm(v, e)) {
			e->heat = LKS_HOT;
			continue;
		}
		e->heat = LKS_COLD;
		lks_extent_set_bits(v, e->index, LKS_EXTENT_WRITTEN);
		v->units_dirty += !v->unit_dirty[unit];
		v->unit_dirty[unit] = 1;
		lks_extent_put(v, e);
	}
}

/* One step of the save; true: a transfer was started */
static bool save_step(struct lks_vol *v)
{
	switch (v->save_step) {
	case LKS_SAVE_ZERO:
		if (lks_move_save_step(v) || zero_slots(v))
			return true;
		v->save_slot = 0;
		break;
	case LKS_SAVE_LEAVES:
		if (save_leaf(v))
			return true;
		break;
	case LKS_SAVE_FLUSH:
		v->save_step++;
		if (v->prepare_running ? !LKS_ON(J2) : !LKS_ON(H2f))
			return false;
		v->save_io.op = LKS_IO_FLUSH;
		v->save_io.flags = 0;
		v->save_io.offset = 0;
		v->save_io.length = 0;
		v->ops->submit(v->ctx, &v->save_io);
		return true;
	case LKS_SAVE_SUPER:
		v->save_step++;
		return save_super(v);
	case LKS_SAVE_TABLE:
		clear_cold(v);
		v->save_step = LKS_SAVE_IDLE;
		lks_move_saved(v);
		if (v->prepare_running)
			lks_member_prepared(v);
		v->prepare_running = false;
		return false;
	}
	v->save_step++;
	return false;
}

static void detach_step(struct lks_vol *v)
{
	bool idle = v->save_step == LKS_SAVE_IDLE && !v->save_busy && !v->meta_busy && !v->retire_busy;

	if (v->ios || !idle || v->detached)
		return;
	if (!v->failed && v->detach_step == 0) {
		v->detach_step = 1;
		lks_save(v, true);
	} else if (!v->failed && v->detach_step == 1) {
		if (v->units_dirty || !lks_list_empty(&v->to_write))
			return;
		v->detach_step = 2;
		v->save_clean = v->hot == 0;
		v->sb_dirty = true;
		lks_save(v, false);
	} else {
		v->detached = true;
		lks_event(v, LKS_EV_DETACHED, 0);
	}
}

void lks_meta_step(struct lks_vol *v)
{
	if (!v->attached || v->detached)
		return;
	if (!v->failed) {
		table_step(v);
		if (v->save_step == LKS_SAVE_IDLE && v->save_wanted && !v->save_busy)
			begin_save(v);
		while (!v->save_busy && v->save_step != LKS_SAVE_IDLE)
			v->save_busy = save_step(v);
		table_step(v);	/* a finished save may have left units to write */
		lks_move_step(v);
	} else if (!v->save_busy) {
		v->save_step = LKS_SAVE_IDLE;
	}
	if (v->detaching)
		detach_step(v);
}

void lks_save(struct lks_vol *v, bool cold_all)
{
	v->save_wanted = true;
	v->save_cold_all |= cold_all;
	lks_todo(v, LKS_DO_META);
}

void lks_meta_io_done(struct lks_vol *v, struct lks_io *io, int err)
{
	bool *second = io->kind == LKS_IO_OF_META ? &v->meta_second : &v->save_second;

	if (!err && !v->failed && second_place(v, io, second))
		return;
	*second = false;
	if (io->kind == LKS_IO_OF_META)
		v->meta_busy = false;
	else
		v->save_busy = false;
	lks_todo(v, LKS_DO_META);
	if (err) {
		lks_disk_failed(v, LKS_IO_META, err);
		return;
	}
	if (io->kind == LKS_IO_OF_META && !v->failed)
		table_written(v);
}

void lks_meta_tick(struct lks_vol *v)
{
	struct lks_list *pos;

	if (!v->attached || v->failed || v->detaching || v->saved_ms + SAVE_EVERY_MS > v->now || !may_cool(v))
		return;
	lks_list_for_each(pos, &v->extents) {
		struct lks_extent *e = lks_list_entry(pos, struct lks_extent, all);

		if (v->hot < HOT_CAP && e->used_ms + COOL_AFTER_MS > v->now)
			return;
		if (e->heat == LKS_HOT && !lks_extent_warm(v, e)) {
			lks_save(v, false);
			return;
		}
	}
}
