// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The backing device of a replica. See backing.h.
 *
 * Reads, writes, metadata and flushes become one bio each. Zeroing has no asynchronous interface that works on every
 * device, so a worker of the volume does it, one after the other.
 *
 * A discarded range must read as zeros on every replica. Only a thin volume promises that, and only for whole granules;
 * everything else is overwritten with zeros.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/mm.h>
#include <linux/netlink.h>
#include <linux/slab.h>
#include "backing.h"
#include "buf.h"

#define READ_CHUNK_BYTES (64u << 10)
#define BIOS_RESERVED 128

static struct bio_set bios;

static void finish(struct lks_volume *v, struct lks_io *io, int err)
{
	unsigned long flags;

	io->priv = (void *)(long)err;
	spin_lock_irqsave(&v->queue_lock, flags);
	lks_list_add_tail(&io->link, &v->completed);
	spin_unlock_irqrestore(&v->queue_lock, flags);
	queue_work(lks_wq, &v->complete_work);
}

static void end_io(struct bio *bio)
{
	struct lks_io *io = bio->bi_private;
	int err = blk_status_to_errno(bio->bi_status);

	bio_put(bio);
	finish(io->priv, io, err);
}

static struct page *page_of(const void *p)
{
	return is_vmalloc_addr(p) ? vmalloc_to_page(p) : virt_to_page(p);
}

static void add_buf(struct bio *bio, struct lks_buf *buf, u32 length)
{
	unsigned int i;

	for (i = 0; length; i++) {
		u32 n = min_t(u32, length, buf->vecs[i].bv_len);

		__bio_add_page(bio, buf->vecs[i].bv_page, n, 0);
		length -= n;
	}
}

void lks_backing_submit(struct lks_volume *v, struct lks_io *io)
{
	blk_opf_t opf = REQ_OP_WRITE | REQ_SYNC | REQ_IDLE;
	unsigned int nvecs = 0;
	struct bio *bio;

	io->priv = v;
	switch (io->op) {
	case LKS_IO_READ:
		opf = REQ_OP_READ;
		fallthrough;
	case LKS_IO_WRITE:
		nvecs = DIV_ROUND_UP(io->length, PAGE_SIZE);
		break;
	case LKS_IO_META:
		opf |= REQ_META | REQ_PRIO;
		nvecs = 1;
		break;
	case LKS_IO_FLUSH:
		opf |= REQ_PREFLUSH;
		break;
	case LKS_IO_ZEROES:
	case LKS_IO_DISCARD:
		spin_lock_irq(&v->queue_lock);
		lks_list_add_tail(&io->link, &v->zeroes);
		spin_unlock_irq(&v->queue_lock);
		queue_work(lks_slow_wq, &v->zero_work);
		return;
	default:
		WARN_ON_ONCE(1);
		finish(v, io, -EIO);
		return;
	}
	if (io->flags & LKS_IO_FUA)
		opf |= REQ_FUA;
	bio = bio_alloc_bioset(v->backing->bdev, nvecs, opf, GFP_NOIO, &bios);
	bio->bi_iter.bi_sector = io->offset >> SECTOR_SHIFT;
	bio->bi_private = io;
	bio->bi_end_io = end_io;
	if (io->op == LKS_IO_META)
		__bio_add_page(bio, page_of(io->meta), LKS_META_UNIT, offset_in_page(io->meta));
	else if (nvecs)
		add_buf(bio, io->buf, io->length);
	submit_bio(bio);
}

static int zero(struct block_device *bdev, u64 from, u64 to, unsigned int flags)
{
	if (from >= to)
		return 0;
	return blkdev_issue_zeroout(bdev, from >> SECTOR_SHIFT, (to - from) >> SECTOR_SHIFT, GFP_NOIO, flags);
}

static int discard(struct lks_backing *b, u64 from, u64 to)
{
	u32 granule = bdev_discard_granularity(b->bdev);
	u64 first, last;
	int err;

	if (!b->thin || !bdev_max_discard_sectors(b->bdev) || !granule || bdev_discard_alignment(b->bdev))
		return zero(b->bdev, from, to, 0);
	first = min(roundup(from, (u64)granule), to);
	last = max(rounddown(to, (u64)granule), first);
	err = zero(b->bdev, from, first, BLKDEV_ZERO_NOUNMAP);
	if (!err)
		err = zero(b->bdev, last, to, BLKDEV_ZERO_NOUNMAP);
	if (err || first == last)
		return err;
	err = blkdev_issue_discard(b->bdev, first >> SECTOR_SHIFT, (last - first) >> SECTOR_SHIFT, GFP_NOIO);
	return err == -EOPNOTSUPP ? zero(b->bdev, first, last, 0) : err;
}

void lks_backing_zero_work(struct work_struct *work)
{
	struct lks_volume *v = container_of(work, struct lks_volume, zero_work);

	for (;;) {
		struct lks_io *io = NULL;
		int err;

		spin_lock_irq(&v->queue_lock);
		if (!lks_list_empty(&v->zeroes)) {
			io = lks_list_first(&v->zeroes, struct lks_io, link);
			lks_list_del(&io->link);
		}
		spin_unlock_irq(&v->queue_lock);
		if (!io)
			return;
		if (io->op == LKS_IO_DISCARD)
			err = discard(v->backing, io->offset, io->offset + io->length);
		else
			err = zero(v->backing->bdev, io->offset, io->offset + io->length, BLKDEV_ZERO_NOUNMAP);
		finish(v, io, err);
	}
}

static int read_chunk(struct block_device *bdev, u64 offset, struct page *page, void *to, u32 bytes)
{
	struct bio *bio = bio_alloc_bioset(bdev, 1, REQ_OP_READ | REQ_META | REQ_SYNC, GFP_NOIO, &bios);
	int err;

	bio->bi_iter.bi_sector = offset >> SECTOR_SHIFT;
	__bio_add_page(bio, page, bytes, 0);
	err = submit_bio_wait(bio);
	bio_put(bio);
	if (!err)
		memcpy(to, page_address(page), bytes);
	return err ? -EIO : 0;
}

int lks_backing_read(void *reader, u64 offset, void *to, u32 bytes)
{
	struct lks_backing *b = reader;
	unsigned int order = get_order(min(bytes, READ_CHUNK_BYTES));
	struct page *page = alloc_pages(GFP_KERNEL, order);
	int err = 0;

	if (!page)
		return -EIO;
	while (!err && bytes) {
		u32 n = min(bytes, READ_CHUNK_BYTES);

		err = read_chunk(b->bdev, offset, page, to, n);
		offset += n;
		to += n;
		bytes -= n;
	}
	__free_pages(page, order);
	return err;
}

struct lks_backing *lks_backing_open(struct lks_volume *v, const char *path, u64 offset, bool thin,
				     struct netlink_ext_ack *ack)
{
	struct lks_layout layout;
	struct lks_backing *b;
	int err;

	lks_layout_of(v->size, v->block_size, &layout);
	if (offset % LKS_META_UNIT || offset < v->size) {
		NL_SET_ERR_MSG(ack, "the metadata's offset must be a multiple of 4096 behind the data");
		return ERR_PTR(-EINVAL);
	}
	b = kzalloc(struct_size(b, path, strlen(path) + 1), GFP_KERNEL);
	if (!b)
		return ERR_PTR(-ENOMEM);
	strcpy(b->path, path);
	b->offset = offset;
	b->thin = thin;
	b->bdev = blkdev_get_by_path(path, FMODE_READ | FMODE_WRITE | FMODE_EXCL, v);
	if (IS_ERR(b->bdev)) {
		err = PTR_ERR(b->bdev);
		if (err == -EBUSY) {
			NL_SET_ERR_MSG(ack, "the backing device is in use: is it mounted, or attached to another volume?");
		} else if (err == -EACCES || err == -EROFS) {
			NL_SET_ERR_MSG(ack, "the backing device is read-only");
			err = -EACCES;
		} else if (err != -ENOMEM) {
			NL_SET_ERR_MSG(ack, "there is no such backing device: is the logical volume active?");
			err = -ENXIO;
		}
		goto err_free;
	}
	err = -EFBIG;
	if ((u64)bdev_nr_bytes(b->bdev) < offset + layout.total_bytes) {
		NL_SET_ERR_MSG(ack, "the backing device is smaller than data and metadata");
		goto err_put;
	}
	err = -EOPNOTSUPP;
	if (bdev_logical_block_size(b->bdev) > LKS_SECTOR) {
		NL_SET_ERR_MSG(ack, "backing devices with sectors larger than 512 bytes are not supported yet");
		goto err_put;
	}
	return b;

err_put:
	blkdev_put(b->bdev, FMODE_READ | FMODE_WRITE | FMODE_EXCL);
err_free:
	kfree(b);
	return ERR_PTR(err);
}

void lks_backing_close(struct lks_volume *v, struct lks_backing *b)
{
	blkdev_put(b->bdev, FMODE_READ | FMODE_WRITE | FMODE_EXCL);
	kfree(b);
}

int lks_backing_init(void)
{
	return bioset_init(&bios, BIOS_RESERVED, 0, BIOSET_NEED_BVECS | BIOSET_NEED_RESCUER);
}

void lks_backing_exit(void)
{
	bioset_exit(&bios);
}
