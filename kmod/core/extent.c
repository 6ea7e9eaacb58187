// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Extents: which are hot and written, and what is in flight in them.
 *
 * The table of 2 bits an extent stays in memory in its disk format. An extent that is hot, or in which something is in
 * flight, also has a struct lks_extent in a hash table. The bits in the table run ahead of the disk: an extent's hot bit is
 * set when it begins to heat, and meta.c writes the unit of the table it is in; only then is it LKS_HOT (H1).
 */
#include "internal.h"

#define FIRST_HASH 64u

static struct lks_list *bucket(const struct lks_vol *v, u64 index)
{
	return &v->hash[(u32)(index * 0x9e3779b97f4a7c15ull >> 32) & (v->hash_size - 1)];
}

struct lks_extent *lks_extent_find(const struct lks_vol *v, u64 index)
{
	struct lks_list *pos, *head;

	if (!v->hash)
		return NULL;
	head = bucket(v, index);
	lks_list_for_each(pos, head) {
		struct lks_extent *e = lks_list_entry(pos, struct lks_extent, hash);

		if (e->index == index)
			return e;
	}
	return NULL;
}

/* Doubles the table when it is crowded; without memory it stays crowded. */
static bool grow(struct lks_vol *v)
{
	u32 old_size = v->hash_size, size = old_size ? old_size * 2 : FIRST_HASH;
	struct lks_list *old = v->hash, *pos;
	struct lks_list *hash;

	if (old && v->nextents < old_size * 2)
		return true;
	hash = v->ops->alloc(v->ctx, size * sizeof(*hash));
	if (!hash)
		return old;
	for (u32 i = 0; i < size; i++)
		lks_list_init(&hash[i]);
	v->hash = hash;
	v->hash_size = size;
	lks_list_for_each(pos, &v->extents) {
		struct lks_extent *e = lks_list_entry(pos, struct lks_extent, all);

		lks_list_add_tail(&e->hash, bucket(v, e->index));
	}
	if (old)
		v->ops->free(v->ctx, old, old_size * sizeof(*old));
	return true;
}

struct lks_extent *lks_extent_get(struct lks_vol *v, u64 index)
{
	struct lks_extent *e = lks_extent_find(v, index);

	if (e || !grow(v))
		return e;
	e = v->ops->alloc(v->ctx, sizeof(*e));
	if (!e)
		return NULL;
	e->index = index;
	e->used_ms = v->now;
	lks_list_init(&e->busy);
	lks_list_init(&e->waiters);
	lks_list_init(&e->meta);
	e->zero.kind = LKS_IO_OF_EXTENT;
	lks_list_add_tail(&e->hash, bucket(v, index));
	lks_list_add_tail(&e->all, &v->extents);
	v->nextents++;
	return e;
}

static void extent_free(struct lks_vol *v, struct lks_extent *e)
{
	lks_list_del(&e->hash);
	lks_list_del(&e->all);
	lks_list_del(&e->meta);
	v->nextents--;
	v->ops->free(v->ctx, e, sizeof(*e));
}

void lks_extent_put(struct lks_vol *v, struct lks_extent *e)
{
	if (e->heat == LKS_COLD && lks_list_empty(&e->busy) && lks_list_empty(&e->waiters) && !e->unstable)
		extent_free(v, e);
}

void lks_extents_free(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;

	lks_list_for_each_safe(pos, tmp, &v->extents)
		extent_free(v, lks_list_entry(pos, struct lks_extent, all));
	if (v->hash)
		v->ops->free(v->ctx, v->hash, v->hash_size * sizeof(*v->hash));
	v->hash = NULL;
	v->hash_size = 0;
}

/* ---- the table ---- */

static u8 *bits_of(const struct lks_vol *v, u64 index, u32 *shift)
{
	u32 i = (u32)(index % LKS_EXTENTS_PER_RECORD);

	*shift = i % 4 * 2;
	return &v->table[index / LKS_EXTENTS_PER_RECORD].bits[i / 4];
}

u32 lks_extent_bits(const struct lks_vol *v, u64 index)
{
	u32 shift;
	const u8 *byte = bits_of(v, index, &shift);

	return *byte >> shift & 3;
}

void lks_extent_set_bits(struct lks_vol *v, u64 index, u32 bits)
{
	u32 shift, old;
	u8 *byte = bits_of(v, index, &shift);

	old = *byte >> shift & 3;
	*byte = (u8)((*byte & ~(3u << shift)) | bits << shift);
	v->hot += (bits & LKS_EXTENT_HOT) - (old & LKS_EXTENT_HOT);
	v->written += (bits >> 1) - (old >> 1);
}

/* ---- heating (H1) ---- */

static void work_goes_on(struct lks_vol *v, struct lks_work *w)
{
	if (w->kind == LKS_WORK_MEMBER || w->kind == LKS_WORK_SYNC)
		lks_member_hot(v, w);
	else
		lks_replicate(v, w);
}

void lks_extent_heated(struct lks_vol *v, struct lks_extent *e)
{
	e->heat = LKS_HOT;
	while (!lks_list_empty(&e->waiters)) {
		struct lks_work *w = lks_list_first(&e->waiters, struct lks_work, hotwait);

		lks_list_del(&w->hotwait);
		work_goes_on(v, w);
	}
}

static void begin_heating(struct lks_vol *v, struct lks_extent *e)
{
	lks_extent_set_bits(v, e->index, LKS_EXTENT_HOT | LKS_EXTENT_WRITTEN);
	e->heat = LKS_HEATING;
	lks_list_add_tail(&e->meta, &v->to_write);
	lks_todo(v, LKS_DO_META);
}

/* First write to an extent of a thick replica: what stood on the disk before must never be read again. */
static void begin_zeroing(struct lks_vol *v, struct lks_extent *e)
{
	u64 at = e->index * LKS_EXTENT_BYTES;

	e->heat = LKS_ZEROING;
	e->zero.op = LKS_IO_ZEROES;
	e->zero.flags = 0;
	e->zero.offset = at;
	e->zero.length = (u32)(lks_size(v) - at < LKS_EXTENT_BYTES ? lks_size(v) - at : LKS_EXTENT_BYTES);
	v->ios++;
	v->ops->submit(v->ctx, &e->zero);
}

void lks_extent_zeroed(struct lks_vol *v, struct lks_extent *e, int err)
{
	v->ios--;
	if (!v->ios)
		lks_todo(v, LKS_DO_ANSWER | LKS_DO_ACTIVATE | LKS_DO_META);
	if (err || v->failed) {
		lks_disk_failed(v, e->zero.op, err ? err : -EIO);	/* drops its waiters */
		e->heat = LKS_COLD;
		lks_extent_put(v, e);
		return;
	}
	if (e->zero.op == LKS_IO_ZEROES) {
		/* The zeros must be there before a record says "written": nothing else orders the two. */
		e->zero.op = LKS_IO_FLUSH;
		v->ios++;
		v->ops->submit(v->ctx, &e->zero);
		return;
	}
	begin_heating(v, e);
}

void lks_extent_heat(struct lks_vol *v, struct lks_work *w)
{
	struct lks_extent *e = w->ext;

	e->used_ms = v->now;
	lks_list_move_tail(&e->all, &v->extents);
	if (!LKS_ON(H1)) {
		lks_extent_set_bits(v, e->index, lks_extent_bits(v, e->index) | LKS_EXTENT_WRITTEN);
		work_goes_on(v, w);
		return;
	}
	if (e->heat == LKS_COOLING)
		e->heat = LKS_HOT;	/* H2: it is hot on disk and stays so */
	if (e->heat == LKS_HOT) {
		work_goes_on(v, w);
		return;
	}
	lks_list_add_tail(&w->hotwait, &e->waiters);
	if (e->heat != LKS_COLD)
		return;
	if (v->needs_zeroing && !(lks_extent_bits(v, e->index) & LKS_EXTENT_WRITTEN))
		begin_zeroing(v, e);
	else
		begin_heating(v, e);
}

/* ---- H2: may it cool? ---- */

bool lks_extent_warm(struct lks_vol *v, struct lks_extent *e)
{
	u64 per = LKS_EXTENT_BYTES >> v->block_shift, first = e->index * per;
	u64 n = v->blocks - first < per ? v->blocks - first : per;

	if (!lks_list_empty(&e->busy) || !lks_list_empty(&e->waiters))
		return true;
	return LKS_ON(H2) && (e->unstable || lks_map_any(&v->inherited, first, n) || lks_map_any(&v->doubt, first, n));
}
