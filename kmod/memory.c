// SPDX-License-Identifier: GPL-2.0-or-later
/* The core's memory: ops->alloc and ops->free. The lock is held, or an attach has the core to itself. */
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include "volume.h"

/*
 * What the core needs for a request is little, and the request may be the one that frees memory: a page being swapped out. It
 * is worth the emergency reserve.
 */
static void *alloc_in_need(size_t bytes)
{
	gfp_t gfp = GFP_NOWAIT | __GFP_MEMALLOC | __GFP_NOWARN;

	return bytes == LKS_META_UNIT ? (void *)get_zeroed_page(gfp) : kzalloc(bytes, gfp);
}

/*
 * Before 5.17 kvzalloc() is kzalloc() unless it is given all of GFP_KERNEL: where memory is in pieces, a large volume could not be
 * attached.
 */
static void *alloc_large(size_t bytes, gfp_t gfp)
{
	unsigned int noio = memalloc_noio_save();
	void *p = kvzalloc(bytes, gfp | GFP_KERNEL);

	memalloc_noio_restore(noio);
	return p;
}

void *lks_core_alloc(void *ctx, size_t bytes)
{
	struct lks_volume *v = ctx;
	gfp_t gfp = lks_gfp();
	void *p;

	if (bytes == LKS_META_UNIT)
		p = (void *)get_zeroed_page(gfp);
	else if (bytes <= PAGE_SIZE || in_serving_softirq())
		p = kzalloc(bytes, gfp);
	else
		p = alloc_large(bytes, gfp);
	if (!p && bytes <= PAGE_SIZE)
		p = alloc_in_need(bytes);
	if (p)
		v->allocated += bytes;
	return p;
}

void lks_core_free(void *ctx, void *p, size_t bytes)
{
	struct lks_volume *v = ctx;

	if (!p)
		return;
	if (bytes == LKS_META_UNIT)
		free_page((unsigned long)p);
	else
		kvfree(p);
	v->allocated -= bytes;
}
