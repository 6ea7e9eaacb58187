// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A replica grows: its metadata move from behind the data to behind where a larger volume's data end.
 *
 * The metadata are written a second time at the new place; from the beginning of that on every write of metadata goes to both
 * places, so once all has been written there, both are current, and it does not matter when the log names the new place, or
 * when this replica hears of it. The first cycle of the save (meta.c) with a second place writes it: no superblock, zeroed
 * dirty map slots, the units of the table that only a larger volume has, all dirty maps, then a superblock; and all
 * units of the table are marked dirty, so that the table writer writes them.
 *
 * When the log names the new place, only that one is written. What lies between the data and the new size held metadata, or
 * on a thick volume anything: it becomes zeros before the volume may grow over it. That this is still to be done stands in
 * the superblock of the new place from the start ("retire"); that it has been done is durable before anybody is told.
 */
#include "internal.h"

static void moved_event(struct lks_vol *v, bool done)
{
	struct lks_event_info info = { .event = LKS_EV_META_MOVED, .offset = v->move_offset, .done = done };

	v->ops->event(v->ctx, &info);
}

/* Behind the data, and below the larger volume's end: what held metadata, and of a written extent what nobody has zeroed. */
static void set_retire(const struct lks_vol *v, struct lks_superblock *sb)
{
	u64 from = lks_size(v), end = v->meta_offset + v->layout.total_bytes, rest = LKS_ROUND_UP(from, LKS_EXTENT_BYTES);

	if (v->needs_zeroing && end < rest)
		end = rest;
	if (end > v->move_size)
		end = v->move_size;
	sb->retire = end > from ? from : 0;
	sb->retire_end = end > from ? end : 0;
}

int lks_vol_meta_move(struct lks_vol *v, u64 offset, u64 size, u64 now_ms)
{
	if (!v->attached || v->failed || v->detaching)
		return -EINVAL;
	lks_enter(v, now_ms);
	if (!offset) {
		if (v->move <= LKS_MOVE_CURRENT) {
			v->move = LKS_MOVE_NONE;
			v->move_saving = v->move_switch = false;
		}
		return 0;
	}
	if (offset == v->meta_offset && size == v->capacity)
		return 0;
	if (v->move) {
		if (v->move > LKS_MOVE_CURRENT || offset != v->move_offset || size != v->move_size)
			return -EBUSY;
		if (v->move == LKS_MOVE_CURRENT)
			moved_event(v, false);
		return 0;
	}
	if (size < v->capacity || size % LKS_META_UNIT || size > LKS_SIZE_MAX || offset % LKS_META_UNIT || offset < size ||
	    offset < v->meta_offset + v->layout.total_bytes)
		return -EINVAL;
	v->move = LKS_MOVE_WANTED;
	v->move_offset = offset;
	v->move_size = size;
	lks_layout_of(size, v->p.block_size, &v->move_layout);
	v->move_cleared = v->move_saved = v->move_switch = false;
	v->move_unit = v->units;
	lks_save(v, false);
	lks_run(v);
	return 0;
}

int lks_vol_meta_moved(struct lks_vol *v, u64 offset, u64 now_ms)
{
	if (!v->attached || v->failed || v->detaching)
		return -EINVAL;
	lks_enter(v, now_ms);
	if (offset == v->meta_offset) {
		if (!v->move) {
			v->move_offset = offset;
			moved_event(v, true);
		}
		return 0;
	}
	if (v->move != LKS_MOVE_CURRENT || offset != v->move_offset)
		return -EINVAL;
	v->move_switch = true;
	lks_todo(v, LKS_DO_META);
	lks_run(v);
	return 0;
}

int lks_vol_resize(struct lks_vol *v, u64 size, u64 now_ms)
{
	lks_enter(v, now_ms);
	if (size < v->p.size || size % LKS_META_UNIT || size > LKS_SIZE_MAX || (v->attached && !v->detached && size > v->capacity))
		return -EINVAL;
	v->p.size = size;
	return 0;
}

/* ---- the second place ---- */

void lks_move_second(struct lks_vol *v, struct lks_io *io)
{
	u64 at = io->offset - v->meta_offset;

	if (at >= v->layout.slot_offset) {
		u64 slot = (at - v->layout.slot_offset) / v->layout.slot_bytes;

		at = v->move_layout.slot_offset + slot * v->move_layout.slot_bytes +
		     (at - v->layout.slot_offset) % v->layout.slot_bytes;
		if (io->op == LKS_IO_ZEROES)
			io->length = (u32)v->move_layout.slot_bytes;
	} else if (at < v->layout.table_offset && io->op == LKS_IO_META) {
		struct lks_superblock *sb = io->meta;

		sb->size = v->move_size;
		set_retire(v, sb);
		lks_superblock_seal(sb);
	}
	io->offset = v->move_offset + at;
}

static void submit_second(struct lks_vol *v)
{
	v->save_second = true;		/* there is no first */
	v->ops->submit(v->ctx, &v->save_io);
}

/* A unit of the table that only the larger volume has: nothing hot, nothing written. */
static void write_new_unit(struct lks_vol *v, u32 unit)
{
	u64 at = v->move_layout.table_offset + (u64)unit * LKS_META_UNIT;

	lks_format_unit(&v->sb, at, v->save_page);
	v->save_io.op = LKS_IO_META;
	v->save_io.flags = 0;
	v->save_io.offset = v->move_offset + at;
	v->save_io.length = LKS_META_UNIT;
	v->save_io.meta = v->save_page;
	submit_second(v);
}

bool lks_move_save_step(struct lks_vol *v)
{
	u32 units = (u32)(v->move_layout.table_bytes / LKS_META_UNIT), slot;

	if (!v->move_saving)
		return false;
	if (!v->move_cleared) {		/* a superblock of long ago must not count */
		v->move_cleared = true;
		v->move_slot = 0;
		v->save_io.op = LKS_IO_ZEROES;
		v->save_io.flags = 0;
		v->save_io.offset = v->move_offset;
		v->save_io.length = 2 * LKS_META_UNIT;
		submit_second(v);
		return true;
	}
	if (v->move_unit < units) {
		write_new_unit(v, v->move_unit++);
		return true;
	}
	while (v->move_slot < LKS_SLOTS) {
		slot = v->move_slot++;
		/* One that is in use in the first place must not be touched there. The others are zeroed when they are used. */
		if (!v->peers[slot].host || !v->peers[slot].slot_zeroed)
			continue;
		lks_zero_slot(v, slot);
		lks_move_second(v, &v->save_io);
		submit_second(v);
		return true;
	}
	return false;
}

/* A save has ended. */
void lks_move_saved(struct lks_vol *v)
{
	v->move_saved |= v->move_saving;
	v->move_saving = false;
	if (v->retired_saving && v->move == LKS_MOVE_RETIRED) {
		v->move = LKS_MOVE_NONE;
		moved_event(v, true);
	}
	v->retired_saving = false;
}

/* ---- the switch ---- */

#define GROWING_MAPS (2 * LKS_SLOTS + 2)

static u32 growing_maps(struct lks_vol *v, struct lks_map **maps)
{
	u32 n = 0;

	for (u32 i = 0; i < LKS_SLOTS; i++) {
		if (!v->peers[i].host)
			continue;
		maps[n++] = &v->peers[i].dirty;
		maps[n++] = &v->peers[i].unsure;
	}
	maps[n++] = &v->doubt;
	maps[n++] = &v->inherited;
	return n;
}

static void grow_table(struct lks_vol *v, struct lks_extent_record *table, u8 *unit_dirty, u32 units)
{
	memcpy(table, v->table, v->layout.table_bytes);
	memcpy(unit_dirty, v->unit_dirty, v->units);
	for (u32 i = v->units * LKS_RECORDS_PER_UNIT; i < units * LKS_RECORDS_PER_UNIT; i++) {
		table[i].index = i;
		table[i].tag = v->table[0].tag;
	}
	v->ops->free(v->ctx, v->table, v->layout.table_bytes);
	v->ops->free(v->ctx, v->unit_dirty, v->units);
	v->table = table;
	v->unit_dirty = unit_dirty;
	v->units = units;
}

/* Only the new place counts from here on. Without memory for it, nothing has changed; the next tick tries again. */
static void switch_over(struct lks_vol *v)
{
	struct lks_map *maps[GROWING_MAPS];
	struct lks_leaf *leaves[GROWING_MAPS] = { NULL };
	u64 blocks = LKS_DIV_UP(v->move_size, v->p.block_size);
	size_t bytes = LKS_DIV_UP(blocks, LKS_LEAF_BITS) * sizeof(struct lks_leaf);
	u32 n = growing_maps(v, maps), units = (u32)(v->move_layout.table_bytes / LKS_META_UNIT);
	struct lks_extent_record *table = v->ops->alloc(v->ctx, v->move_layout.table_bytes);
	u8 *unit_dirty = v->ops->alloc(v->ctx, units);
	bool all = table && unit_dirty;

	for (u32 i = 0; i < n && all; i++) {
		leaves[i] = v->ops->alloc(v->ctx, bytes);
		all = leaves[i];
	}
	if (!all) {
		for (u32 i = 0; i < n && leaves[i]; i++)
			v->ops->free(v->ctx, leaves[i], bytes);
		if (table)
			v->ops->free(v->ctx, table, v->move_layout.table_bytes);
		if (unit_dirty)
			v->ops->free(v->ctx, unit_dirty, units);
		return;
	}
	set_retire(v, &v->sb);
	for (u32 i = 0; i < n; i++)
		lks_map_grow(v, maps[i], blocks, leaves[i]);
	grow_table(v, table, unit_dirty, units);
	v->meta_offset = v->move_offset;
	v->layout = v->move_layout;
	v->blocks = blocks;
	v->capacity = v->sb.size = v->move_size;
	v->retire_at = v->sb.retire;
	v->move = LKS_MOVE_RETIRING;
	v->move_switch = false;
	lks_event(v, LKS_EV_STATE, 0);
}

static void retire_step(struct lks_vol *v)
{
	u64 rest = v->sb.retire_end > v->retire_at ? v->sb.retire_end - v->retire_at : 0;

	if (v->retire_busy || v->detaching)
		return;
	if (!rest) {
		v->move = LKS_MOVE_RETIRED;
		v->sb.retire = v->sb.retire_end = 0;
		v->sb_dirty = true;
		lks_save(v, false);
		return;
	}
	v->retire_io.op = LKS_IO_ZEROES;
	v->retire_io.flags = 0;
	v->retire_io.offset = v->retire_at;
	v->retire_io.length = (u32)(rest < LKS_EXTENT_BYTES ? rest : LKS_EXTENT_BYTES);
	v->retire_busy = true;
	v->ops->submit(v->ctx, &v->retire_io);
}

void lks_retire_done(struct lks_vol *v, int err)
{
	v->retire_busy = false;
	lks_todo(v, LKS_DO_META);
	if (err)
		lks_disk_failed(v, LKS_IO_ZEROES, err);
	else
		v->retire_at += v->retire_io.length;
}

void lks_move_step(struct lks_vol *v)
{
	bool idle = !v->meta_busy && !v->save_busy && v->save_step == LKS_SAVE_IDLE;

	if (v->move == LKS_MOVE_COPYING && v->move_saved && !v->units_dirty && !v->meta_busy) {
		v->move = LKS_MOVE_CURRENT;
		lks_event(v, LKS_EV_STATE, 0);
		moved_event(v, false);
	}
	if (v->move == LKS_MOVE_CURRENT && v->move_switch && idle)
		switch_over(v);
	if (v->move == LKS_MOVE_RETIRING)
		retire_step(v);
}
