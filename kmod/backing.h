/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The backing device of a replica: carries out the core's struct lks_io. */
#ifndef LKS_BACKING_H
#define LKS_BACKING_H

#include "volume.h"

struct lks_backing {
	struct file *file;	/* what bdev_file_open_by_path() gave */
	struct block_device *bdev;
	u32 sector;		/* bytes: the smallest transfer */
	struct page *scratch;	/* LKS_META_UNIT bytes, for slow_io_work */
	u64 offset;		/* bytes: where the metadata are, or were when last asked: lks_volume_meta_offset() */
	bool thin;		/* reads zeros where it was never written, or was discarded in whole granules */
	char path[];
};

/* Opens path for us alone. A pointer or an ERR_PTR: -ENXIO, -EBUSY, -EFBIG, -EACCES, -EINVAL, -EOPNOTSUPP,
 * -ENOMEM. Sleeps. */
struct lks_backing *lks_backing_open(struct lks_volume *v, const char *path, u64 offset, bool thin,
				     struct netlink_ext_ack *ack);
/* Do bytes [offset, offset + bytes) of it exist? */
bool lks_backing_holds(struct block_device *bdev, u64 offset, u64 bytes);
/* Nothing is in flight. */
void lks_backing_close(struct lks_backing *b);

/* An lks_read_fn; reader is the struct lks_backing. */
int lks_backing_read(void *reader, u64 offset, void *to, u32 bytes);

/*
 * Starts a transfer; it ends in v->completed, with the error in io->priv, and v->complete. may_wait: may block on a busy device;
 * otherwise what would have to is left to v->submit_work. From a thread.
 */
void lks_backing_submit(struct lks_volume *v, struct lks_io *io, bool may_wait);
static inline int lks_backing_error(const struct lks_io *io)
{
	return (long)io->priv;
}

/*
 * Of v->full_work: tries again what a full pool did not take. wait_no_more: all that waits for room ends with -ENOSPC, now and from
 * now on. From a thread.
 */
void lks_backing_full_work(struct work_struct *work);
void lks_backing_wait_no_more(struct lks_volume *v);

/* Of v->slow_io_work: what a device cannot do in one asynchronous bio. */
void lks_backing_slow_work(struct work_struct *work);

int lks_backing_init(void);
void lks_backing_exit(void);

#endif
