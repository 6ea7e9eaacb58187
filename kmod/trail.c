// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Trails; see trail.h. They are for a volume that gets a part of its content from elsewhere: only what was written here is to
 * stand, sector by sector, while dirty maps and thin pools know no less than a block.
 *
 * A bitmap an extent, made at its first write. One extent's costs a 4096th of it, all trails together are bounded by
 * max_trail_mib.
 */
#include <linux/bitops.h>
#include <linux/idr.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/netlink.h>
#include <linux/random.h>
#include <linux/slab.h>
#include "trail.h"
#include "volume.h"

#define MEMORY_PARTS 16		/* trails take at most this part of the memory */

static unsigned int max_trail_mib;
module_param(max_trail_mib, uint, 0644);
MODULE_PARM_DESC(max_trail_mib, "what all trails may take (MiB; a 4096th of what is written; default: a 16th of the memory)");

static atomic_long_t trail_bytes;	/* of all volumes */

struct lks_trail {
	u64 number;
	u64 incarnation;	/* of the volume when it began */
	const char *lost;	/* why, NULL: it is whole */
	struct idr extents;	/* extent -> u8[LKS_TRAIL_BITMAP] */
};

void lks_trail_end(struct lks_volume *v)
{
	struct lks_trail *t = v->trail;
	unsigned long extent;
	void *bitmap;

	if (!t)
		return;
	for (extent = 0; (bitmap = idr_get_next_ul(&t->extents, &extent)); extent++) {
		kfree(bitmap);
		atomic_long_sub(LKS_TRAIL_BITMAP, &trail_bytes);
	}
	idr_destroy(&t->extents);
	kfree(t);
	v->trail = NULL;
}

void lks_trail_forget(struct lks_volume *v, u64 number)
{
	if (v->trail && v->trail->number == number)
		lks_trail_end(v);
}

void lks_trail_lose(struct lks_volume *v, const char *why)
{
	if (!v->trail || v->trail->lost)
		return;
	v->trail->lost = why;	/* its memory goes later: this may be a softirq, and there may be much */
	pr_warn("lockstep: volume %s: which sectors were written is not known any more: %s\n", v->name, why);
}

int lks_trail_begin(struct lks_volume *v, u64 *number, struct netlink_ext_ack *ack)
{
	struct lks_trail *t = v->trail;

	if (v->writers || v->open_waiters || (t && !t->lost && !idr_is_empty(&t->extents))) {
		NL_SET_ERR_MSG(ack, "the volume is open for writing, or was written to since a trail began");
		return -EBUSY;
	}
	if (!t || t->lost) {
		lks_trail_end(v);
		t = kzalloc(sizeof(*t), GFP_NOIO);
		if (!t)
			return -ENOMEM;
		idr_init(&t->extents);
		/* random: one of an earlier life of the module or the host is never taken for this one */
		get_random_bytes(&t->number, sizeof(t->number));
		t->number |= 1;		/* 0 means none */
		v->trail = t;
	}
	t->incarnation = v->record.incarnation;
	*number = t->number;
	return 0;
}

static u8 *add_extent(struct lks_trail *t, u32 extent, gfp_t gfp)
{
	u8 *bitmap;

	if (atomic_long_add_return(LKS_TRAIL_BITMAP, &trail_bytes) > (long)READ_ONCE(max_trail_mib) << 20)
		goto no_room;
	bitmap = kzalloc(LKS_TRAIL_BITMAP, gfp);
	if (!bitmap)
		goto no_room;
	if (idr_alloc(&t->extents, bitmap, extent, extent + 1, gfp) == extent)
		return bitmap;
	kfree(bitmap);
no_room:
	atomic_long_sub(LKS_TRAIL_BITMAP, &trail_bytes);
	return NULL;
}

void lks_trail_note(struct lks_volume *v, u64 offset, u32 length, bool nowait)
{
	gfp_t gfp = (nowait ? GFP_NOWAIT : GFP_NOIO | __GFP_NORETRY) | __GFP_NOWARN;
	u32 extent = offset / LKS_EXTENT_BYTES;
	u32 first = offset % LKS_EXTENT_BYTES / LKS_SECTOR, i;
	struct lks_trail *t = v->trail;
	u8 *bitmap;

	if (!t || t->lost)
		return;
	bitmap = idr_find(&t->extents, extent);
	if (!bitmap)
		bitmap = add_extent(t, extent, gfp);
	if (!bitmap) {
		lks_trail_lose(v, "there is no memory for it (module parameter max_trail_mib)");
		return;
	}
	for (i = first; i < first + length / LKS_SECTOR; i++)
		bitmap[i / 8] |= 1 << i % 8;
}

int lks_trail_next(struct lks_volume *v, u64 number, u64 *at, const u8 **bitmap, struct netlink_ext_ack *ack)
{
	struct lks_trail *t = v->trail;
	unsigned long extent = *at / LKS_EXTENT_BYTES;

	if (!t || t->number != number) {
		NL_SET_ERR_MSG(ack, "no trail of this number: the host or its module has been restarted, or the volume made anew");
		return -ENODATA;
	}
	if (v->writers) {
		NL_SET_ERR_MSG(ack, "the volume is open for writing");
		return -EBUSY;
	}
	if (v->record.incarnation != t->incarnation)
		lks_trail_lose(v, "the volume may have lost writes that were reported done");
	if (t->lost) {
		NL_SET_ERR_MSG(ack, "which sectors were written is not known any more; the kernel's log says why");
		return -ENODATA;
	}
	*bitmap = idr_get_next_ul(&t->extents, &extent);
	*at = (u64)extent * LKS_EXTENT_BYTES;
	return 0;
}

void lks_trail_init(void)
{
	struct sysinfo memory;

	BUILD_BUG_ON(LKS_TRAIL_BITMAP != LKS_EXTENT_BYTES / LKS_SECTOR / 8);
	si_meminfo(&memory);
	if (!max_trail_mib)
		max_trail_mib = max_t(u64, (u64)memory.totalram * memory.mem_unit / MEMORY_PARTS >> 20, 1);
}
