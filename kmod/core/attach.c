// SPDX-License-Identifier: GPL-2.0-or-later
/* Reading a replica's metadata: superblocks, extent table, dirty maps. Everything here may sleep in read(). */
#include "internal.h"

/* Each other replica has one slot at most: with two, what is marked later would be missing in one of them. */
static bool slots_ok(const struct lks_superblock *sb)
{
	u64 seen = LKS_BIT(sb->host);

	for (u32 i = 0; i < LKS_SLOTS; i++) {
		u8 host = sb->slots[i].host;

		if (host && (host > LKS_MAX_HOSTS || seen & LKS_BIT(host)))
			return false;
		if (host)
			seen |= LKS_BIT(host);
	}
	return true;
}

static int read_super(struct lks_vol *v, lks_read_fn read, void *reader)
{
	int found = -EUCLEAN;

	for (u32 copy = 0; copy < 2; copy++) {
		struct lks_superblock *sb = v->meta_page;
		int err = read(reader, v->meta_offset + copy * LKS_META_UNIT, sb, LKS_META_UNIT);

		if (err)
			return err;
		if (lks_superblock_verify(sb) || (found == 0 && sb->sequence < v->sb.sequence))
			continue;
		v->sb = *sb;
		found = 0;
	}
	if (found)
		return found;
	if (v->sb.vid != v->p.vid || memcmp(v->sb.uuid, v->p.uuid, sizeof(v->sb.uuid)) || v->sb.host != v->p.self ||
	    v->sb.size < v->p.size || v->sb.size < v->note.size || v->sb.size % LKS_META_UNIT || v->sb.size > LKS_SIZE_MAX ||
	    v->sb.retire > v->sb.retire_end || v->sb.retire_end > v->sb.size || v->sb.retire % LKS_SECTOR ||
	    v->sb.retire_end % LKS_SECTOR || v->sb.block_size != v->p.block_size || !slots_ok(&v->sb))
		return -EUCLEAN;
	return 0;
}

/* A damaged record: everything it covers may have been written at any time. */
static void assume_hot(struct lks_vol *v, u32 index)
{
	struct lks_extent_record *r = &v->table[index];
	u64 first = (u64)index * LKS_EXTENTS_PER_RECORD;

	memset(r, 0, sizeof(*r));
	for (u64 i = first; i < v->layout.extents && i < first + LKS_EXTENTS_PER_RECORD; i++)
		lks_extent_set_bits(v, i, LKS_EXTENT_HOT | LKS_EXTENT_WRITTEN);
}

static int read_table(struct lks_vol *v, lks_read_fn read, void *reader)
{
	u64 tag;
	u32 records = v->units * LKS_RECORDS_PER_UNIT;

	memcpy(&tag, v->p.uuid, sizeof(tag));
	for (u32 unit = 0; unit < v->units; unit++) {
		int err = read(reader, v->meta_offset + v->layout.table_offset + (u64)unit * LKS_META_UNIT,
			       &v->table[unit * LKS_RECORDS_PER_UNIT], LKS_META_UNIT);
		if (err)
			return err;
	}
	for (u32 i = 0; i < records; i++) {
		struct lks_extent_record *r = &v->table[i];

		if (!lks_extent_record_valid(r, i, tag))
			assume_hot(v, i);
		r->index = i;
		r->tag = tag;
	}
	return 0;
}

/* Counts what is hot and written and makes the hot ones' objects; they are in doubt (H3, H4). */
static int count_extents(struct lks_vol *v)
{
	u64 per = LKS_EXTENT_BYTES >> v->block_shift;

	v->hot = v->written = 0;
	for (u64 i = 0; i < v->layout.extents; i++) {
		u32 bits = lks_extent_bits(v, i);
		struct lks_extent *e;
		u64 n = v->blocks - i * per < per ? v->blocks - i * per : per;

		v->written += bits >> 1;
		if (!(bits & LKS_EXTENT_HOT))
			continue;
		v->hot++;
		e = lks_extent_get(v, i);
		if (!e)
			return -ENOMEM;
		e->heat = LKS_HOT;
		lks_map_add(v, &v->doubt, i * per, n);
	}
	return 0;
}

static int read_maps(struct lks_vol *v, lks_read_fn read, void *reader)
{
	for (u32 i = 0; i < LKS_SLOTS; i++) {
		struct lks_peer *p = &v->peers[i];

		if (!v->sb.slots[i].host)
			continue;
		p->host = v->sb.slots[i].host;
		p->since = v->sb.slots[i].since;
		p->slot_zeroed = true;
		lks_map_init(v, &p->dirty, v->blocks);
		lks_map_init(v, &p->unsure, v->blocks);
		for (u32 leaf = 0; leaf < p->dirty.nleaves; leaf++) {
			int err = read(reader, v->meta_offset + v->layout.slot_offset + i * v->layout.slot_bytes +
				       (u64)leaf * LKS_META_UNIT, v->meta_page, LKS_META_UNIT);
			if (err)
				return err;
			lks_map_add_chunk(v, &p->dirty, (u64)leaf * LKS_LEAF_BITS, v->meta_page);
			if (p->dirty.leaves && !p->dirty.leaves[leaf].all)
				p->dirty.leaves[leaf].unsaved = 0;
		}
		if (LKS_ON(H3)) {
			lks_map_or(v, &p->dirty, &v->doubt);
			lks_map_or(v, &p->unsure, &v->doubt);
		}
	}
	return 0;
}

void lks_attach_undo(struct lks_vol *v)
{
	lks_extents_free(v);
	for (u32 i = 0; i < LKS_SLOTS; i++) {
		lks_map_free(v, &v->peers[i].dirty);
		lks_map_free(v, &v->peers[i].unsure);
		memset(&v->peers[i], 0, sizeof(v->peers[i]));
	}
	lks_map_free(v, &v->doubt);
	lks_map_free(v, &v->inherited);
	if (v->table)
		v->ops->free(v->ctx, v->table, v->layout.table_bytes);
	if (v->unit_dirty)
		v->ops->free(v->ctx, v->unit_dirty, v->units);
	if (v->meta_page)
		v->ops->free(v->ctx, v->meta_page, LKS_META_UNIT);
	if (v->save_page)
		v->ops->free(v->ctx, v->save_page, LKS_META_UNIT);
	v->table = NULL;
	v->unit_dirty = NULL;
	v->meta_page = v->save_page = NULL;
	v->units_dirty = v->hot = v->written = 0;
}

int lks_vol_attach(struct lks_vol *v, u64 meta_offset, bool needs_zeroing, lks_read_fn read, void *reader, u64 now_ms,
		   bool *suspect, u64 *disk_version, u64 *disk_term)
{
	int err;

	if (v->attached && !v->detached)
		return -EBUSY;
	if (v->attached)
		lks_attach_undo(v);
	v->attached = false;
	memset(&v->cfg, 0, sizeof(v->cfg));
	lks_enter(v, now_ms);
	v->meta_offset = meta_offset;
	v->needs_zeroing = needs_zeroing;
	v->units = v->units_dirty = 0;
	v->meta_page = v->ops->alloc(v->ctx, LKS_META_UNIT);
	v->save_page = v->ops->alloc(v->ctx, LKS_META_UNIT);
	err = v->meta_page && v->save_page ? read_super(v, read, reader) : -ENOMEM;
	if (err)
		goto undo;
	v->capacity = v->sb.size;
	v->blocks = LKS_DIV_UP(v->capacity, v->p.block_size);
	lks_layout_of(v->capacity, v->p.block_size, &v->layout);
	v->units = (u32)(v->layout.table_bytes / LKS_META_UNIT);
	v->table = v->ops->alloc(v->ctx, v->layout.table_bytes);
	v->unit_dirty = v->ops->alloc(v->ctx, v->units);
	err = -ENOMEM;
	if (!v->table || !v->unit_dirty)
		goto undo;
	lks_map_init(v, &v->doubt, v->blocks);
	lks_map_init(v, &v->inherited, v->blocks);
	err = read_table(v, read, reader);
	if (!err)
		err = count_extents(v);
	if (!err)
		err = read_maps(v, read, reader);
	if (err)
		goto undo;

	v->attached = true;
	v->admitted = !LKS_ON(S3);
	v->suspect = v->hot && LKS_ON(S1);
	v->promise_ms = LKS_ON(L2) ? now_ms + v->p.lease_ms * (100 + LKS_DRIFT_PERCENT) / 100 : 0;
	v->failed = v->detaching = v->detached = false;
	v->detach_step = 0;
	v->move = v->sb.retire_end ? LKS_MOVE_RETIRING : LKS_MOVE_NONE;
	v->move_offset = meta_offset;
	v->retire_at = v->sb.retire;
	if (v->retire_at < lks_size(v) || v->retire_at < v->note.size)	/* never what may hold data */
		v->retire_at = lks_size(v) > v->note.size ? lks_size(v) : v->note.size;
	v->move_saving = v->move_saved = v->move_switch = v->retire_busy = v->retired_saving = false;
	v->meta_second = v->save_second = false;
	v->save_clean = false;
	v->incarnation_found = v->sb.incarnation;
	*suspect = v->suspect;
	*disk_version = v->sb.version;
	*disk_term = v->sb.term;
	return 0;
undo:
	lks_attach_undo(v);
	return err;
}
