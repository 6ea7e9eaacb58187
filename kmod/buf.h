/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Data buffers of the core: reference-counted pages of our own.
 *
 * What a guest writes is copied into a buffer once, so that all replicas get the same bytes even if the guest scribbles
 * over its pages meanwhile. What it reads goes into its own pages, if each holds a page's worth; otherwise it is copied out of a
 * buffer. Any context that may sleep, if not said otherwise.
 */
#ifndef LKS_BUF_H
#define LKS_BUF_H

#include <linux/bio.h>
#include <linux/refcount.h>
#include "core/core.h"

struct lks_buf {
	refcount_t refs;
	bool reserved;		/* structure and pages came from the reserve */
	bool borrowed;		/* the pages are a bio's, and there until that ends: a read of whoever submitted it */
	struct cgroup_subsys_state *css;	/* the control group whose data they are, with a reference, or NULL */
	u32 bytes;
	unsigned int nvecs;
	struct bio_vec vecs[];	/* one page each, the last perhaps partly used */
};

/* 1 <= bytes <= LKS_REQ_MAX_BYTES. One reference. */
struct lks_buf *lks_buf_alloc(u32 bytes);		/* NULL if memory is short */
struct lks_buf *lks_buf_alloc_nowait(u32 bytes);	/* likewise, without any attempt to free some */
struct lks_buf *lks_buf_alloc_io(u32 bytes);		/* waits; from the reserve if need be. For submit_bio() */
struct lks_buf *lks_buf_alloc_wait(u32 bytes);		/* waits, never takes the reserve; NULL only if hopeless */
/* Of a read: its own pages. NULL: they are not whole, or memory is short. The bio must not end before the last use of the data. */
struct lks_buf *lks_buf_borrow(struct bio *bio, gfp_t gfp);
void lks_buf_get(struct lks_buf *buf);
void lks_buf_put(struct lks_buf *buf);
void lks_buf_copy(struct lks_buf *dst, struct lks_buf *src, u32 bytes);
void lks_buf_zero(struct lks_buf *buf, u32 bytes);

/* XXH64 with seed 0 of the first `bytes`. */
u64 lks_buf_hash(struct lks_buf *buf, u32 bytes);

/* The I/O that this buffer causes is the bio's owner's. Once. */
void lks_buf_set_owner(struct lks_buf *buf, struct bio *bio);

/* All of the bio's data, which is as long as buf. */
void lks_buf_from_bio(struct lks_buf *buf, struct bio *bio);
void lks_buf_to_bio(struct lks_buf *buf, struct bio *bio);

int lks_buf_init(void);
void lks_buf_exit(void);

#endif
