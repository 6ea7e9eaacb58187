// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Data buffers. See buf.h.
 *
 * A write must get its buffer however short memory is, for memory may be freed only by writing. So there is a reserve for
 * one request of the largest size; a mutex sees to it that no two requests each hold half of it and wait for the other.
 * Buffers for data that come from peers do not touch it: they would be used up by a peer while a local write waits.
 *
 * None of this comes from the kernel's own emergency reserve, to which whoever frees memory by swapping has a right: the
 * sockets need that to send what is being swapped out, and a copy of it would eat it up first.
 *
 * Pages of buffers that are put are kept for the next ones: a kernel with init_on_alloc (Debian's) writes zeros over each page
 * that it gives out, which cost more than all else we do with it. Whoever gets a buffer fills it. A page that TCP still refers to
 * (send.c) is not kept: what is written to it next could be sent in a retransmission.
 */
#include <linux/highmem.h>
#include <linux/mempool.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/xxhash.h>
#include "buf.h"
#include "compat/block.h"

#define VECS_MAX (LKS_REQ_MAX_BYTES / PAGE_SIZE)
#define RESERVED_BUFS 64

#define KEPT_PAGES_MAX 2048		/* 8 MiB */

static mempool_t reserved_bufs, reserved_pages;
static DEFINE_MUTEX(reserve_lock);
static atomic_t live = ATOMIC_INIT(0);	/* buffers there are; a leak shows when the module is unloaded */

static DEFINE_SPINLOCK(kept_lock);
static LIST_HEAD(kept_pages);
static unsigned int nr_kept;

/* Up to n kept pages; returns how many. */
static unsigned int take_pages(struct bio_vec *vecs, unsigned int n)
{
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&kept_lock, flags);
	for (i = 0; i < n && nr_kept; i++, nr_kept--) {
		vecs[i].bv_page = list_first_entry(&kept_pages, struct page, lru);
		list_del(&vecs[i].bv_page->lru);
	}
	spin_unlock_irqrestore(&kept_lock, flags);
	return i;
}

static void put_pages(struct bio_vec *vecs, unsigned int n)
{
	unsigned long flags;
	unsigned int i, kept = 0;

	spin_lock_irqsave(&kept_lock, flags);
	for (i = 0; i < n; i++) {
		struct page *page = vecs[i].bv_page;

		if (nr_kept < KEPT_PAGES_MAX && page_count(page) == 1) {
			list_add(&page->lru, &kept_pages);
			nr_kept++;
		} else {
			vecs[kept++].bv_page = page;
		}
	}
	spin_unlock_irqrestore(&kept_lock, flags);
	while (kept--)
		__free_page(vecs[kept].bv_page);
}

static struct lks_buf *alloc(u32 bytes, gfp_t gfp, bool reserved)
{
	unsigned int i, kept, nvecs = DIV_ROUND_UP(bytes, PAGE_SIZE);
	struct lks_buf *buf;

	if (WARN_ON_ONCE(!bytes || bytes > LKS_REQ_MAX_BYTES))
		return NULL;
	gfp |= __GFP_NOMEMALLOC;
	buf = reserved ? mempool_alloc(&reserved_bufs, gfp) : kmalloc(struct_size(buf, vecs, nvecs), gfp);
	if (!buf)
		return NULL;
	atomic_inc(&live);
	refcount_set(&buf->refs, 1);
	buf->reserved = reserved;
	buf->borrowed = false;
	buf->css = NULL;
	buf->bytes = bytes;
	kept = reserved ? 0 : take_pages(buf->vecs, nvecs);
	for (i = 0; i < nvecs; i++) {
		if (i >= kept)
			buf->vecs[i].bv_page = reserved ? mempool_alloc(&reserved_pages, gfp) : alloc_page(gfp);
		buf->nvecs = i;
		if (!buf->vecs[i].bv_page) {
			lks_buf_put(buf);
			return NULL;
		}
		buf->vecs[i].bv_offset = 0;
		buf->vecs[i].bv_len = min_t(u32, bytes - i * PAGE_SIZE, PAGE_SIZE);
	}
	buf->nvecs = nvecs;
	return buf;
}

struct lks_buf *lks_buf_alloc(u32 bytes)
{
	return alloc(bytes, GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN, false);
}

struct lks_buf *lks_buf_alloc_nowait(u32 bytes)
{
	return alloc(bytes, GFP_NOWAIT | __GFP_NOWARN, false);
}

struct lks_buf *lks_buf_alloc_wait(u32 bytes)
{
	return alloc(bytes, GFP_NOIO, false);
}

struct lks_buf *lks_buf_alloc_io(u32 bytes)
{
	struct lks_buf *buf = lks_buf_alloc(bytes);

	if (likely(buf))
		return buf;
	mutex_lock(&reserve_lock);
	buf = alloc(bytes, GFP_NOIO, true);
	mutex_unlock(&reserve_lock);
	return buf;
}

static bool whole_pages(struct bio *bio)
{
	u32 left = bio->bi_iter.bi_size;
	struct bvec_iter iter;
	struct bio_vec segment;

	bio_for_each_segment(segment, bio, iter) {
		if (segment.bv_offset || segment.bv_len != min_t(u32, left, PAGE_SIZE))
			return false;
		left -= segment.bv_len;
	}
	return true;
}

struct lks_buf *lks_buf_borrow(struct bio *bio, gfp_t gfp)
{
	struct lks_buf *buf;
	struct bvec_iter iter;
	struct bio_vec segment;

	if (!whole_pages(bio))
		return NULL;
	buf = kmalloc(struct_size(buf, vecs, DIV_ROUND_UP(bio->bi_iter.bi_size, PAGE_SIZE)), gfp | __GFP_NOMEMALLOC | __GFP_NOWARN);
	if (!buf)
		return NULL;
	atomic_inc(&live);
	refcount_set(&buf->refs, 1);
	buf->reserved = false;
	buf->borrowed = true;
	buf->css = NULL;
	buf->bytes = bio->bi_iter.bi_size;
	buf->nvecs = 0;
	bio_for_each_segment(segment, bio, iter)
		buf->vecs[buf->nvecs++] = segment;
	return buf;
}

void lks_buf_get(struct lks_buf *buf)
{
	refcount_inc(&buf->refs);
}

void lks_buf_put(struct lks_buf *buf)
{
	unsigned int i;

	if (!refcount_dec_and_test(&buf->refs))
		return;
	lks_css_put(buf->css);
	if (buf->reserved) {
		for (i = 0; i < buf->nvecs; i++)
			mempool_free(buf->vecs[i].bv_page, &reserved_pages);
		mempool_free(buf, &reserved_bufs);
	} else {
		if (!buf->borrowed)
			put_pages(buf->vecs, buf->nvecs);
		kfree(buf);
	}
	atomic_dec(&live);
}

void lks_buf_copy(struct lks_buf *dst, struct lks_buf *src, u32 bytes)
{
	unsigned int i;

	if (WARN_ON_ONCE(bytes > dst->bytes || bytes > src->bytes))
		return;
	for (i = 0; bytes; i++) {
		u32 n = min_t(u32, bytes, PAGE_SIZE);

		memcpy_page(dst->vecs[i].bv_page, 0, src->vecs[i].bv_page, 0, n);
		bytes -= n;
	}
}

void lks_buf_zero(struct lks_buf *buf, u32 bytes)
{
	unsigned int i;

	if (WARN_ON_ONCE(bytes > buf->bytes))
		return;
	for (i = 0; bytes; i++) {
		u32 n = min_t(u32, bytes, PAGE_SIZE);

		memzero_page(buf->vecs[i].bv_page, 0, n);
		bytes -= n;
	}
}

u64 lks_buf_hash(struct lks_buf *buf, u32 bytes)
{
	struct xxh64_state state;
	unsigned int i;

	xxh64_reset(&state, 0);
	if (WARN_ON_ONCE(bytes > buf->bytes))
		return 0;
	for (i = 0; bytes; i++) {
		u32 n = min_t(u32, bytes, PAGE_SIZE);
		char *data = kmap_local_page(buf->vecs[i].bv_page);

		xxh64_update(&state, data, n);
		kunmap_local(data);
		bytes -= n;
	}
	return xxh64_digest(&state);
}

void lks_buf_set_owner(struct lks_buf *buf, struct bio *bio)
{
	buf->css = lks_bio_css(bio);
}

/* Copies a segment of a bio from or to byte `at` of buf. */
static void copy_segment(struct lks_buf *buf, u32 at, struct bio_vec segment, bool to_bio)
{
	while (segment.bv_len) {
		struct page *page = buf->vecs[at / PAGE_SIZE].bv_page;
		u32 n = min_t(u32, segment.bv_len, PAGE_SIZE - at % PAGE_SIZE);

		if (to_bio)
			memcpy_page(segment.bv_page, segment.bv_offset, page, at % PAGE_SIZE, n);
		else
			memcpy_page(page, at % PAGE_SIZE, segment.bv_page, segment.bv_offset, n);
		at += n;
		segment.bv_offset += n;
		segment.bv_len -= n;
	}
}

static void copy_bio(struct lks_buf *buf, struct bio *bio, bool to_bio)
{
	struct bvec_iter iter;
	struct bio_vec segment;
	u32 at = 0;

	if (WARN_ON_ONCE(bio->bi_iter.bi_size != buf->bytes))
		return;
	bio_for_each_segment(segment, bio, iter) {
		copy_segment(buf, at, segment, to_bio);
		if (to_bio)
			flush_dcache_page(segment.bv_page);
		at += segment.bv_len;
	}
}

void lks_buf_from_bio(struct lks_buf *buf, struct bio *bio)
{
	copy_bio(buf, bio, false);
}

void lks_buf_to_bio(struct lks_buf *buf, struct bio *bio)
{
	copy_bio(buf, bio, true);
}

int lks_buf_init(void)
{
	int err;

	err = mempool_init_kmalloc_pool(&reserved_bufs, RESERVED_BUFS,
					sizeof(struct lks_buf) + VECS_MAX * sizeof(struct bio_vec));
	if (err)
		return err;
	err = mempool_init_page_pool(&reserved_pages, VECS_MAX, 0);
	if (err)
		mempool_exit(&reserved_bufs);
	return err;
}

void lks_buf_exit(void)
{
	WARN(atomic_read(&live), "lockstep: %d buffers leaked\n", atomic_read(&live));
	mempool_exit(&reserved_pages);
	mempool_exit(&reserved_bufs);
	while (!list_empty(&kept_pages)) {
		struct page *page = list_first_entry(&kept_pages, struct page, lru);

		list_del(&page->lru);
		__free_page(page);
	}
}
