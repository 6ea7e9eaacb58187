// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The backing device of a replica. See backing.h.
 *
 * Reads, writes, metadata and flushes become one bio each. What has no asynchronous interface that works on every device
 * is done by a worker of the volume, one after the other: zeroing, and what begins or ends inside a sector of a device with
 * 4 KiB sectors. Such a sector is read, changed and written again; nobody else writes it meanwhile, since the core never has
 * two writes of one block (at least 4 KiB, aligned) in flight (W2).
 *
 * A discarded range must read as zeros on every replica. Only a thin volume promises that, and only for whole granules;
 * everything else is overwritten with zeros. What is less than a granule of a thin volume is looked at first: to write zeros
 * where nothing is allocated would take space from the pool, and a file system's trim of small free ranges fill it.
 */
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/netlink.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include "backing.h"
#include "buf.h"
#include "compat/block.h"

#define READ_CHUNK_BYTES (64u << 10)
#define BIOS_RESERVED 128
#define FULL_RETRY HZ

static struct bio_set bios;

/* From any context. Nothing here may use v once the lock is free: whoever takes the I/O may be the last to need it. */
static void finish(struct lks_volume *v, struct lks_io *io, int err)
{
	unsigned long flags;

	io->priv = (void *)(long)err;
	spin_lock_irqsave(&v->queue_lock, flags);
	WRITE_ONCE(v->disk_moved, true);
	atomic_dec(&v->disk_ios);
	lks_list_add_tail(&io->link, &v->completed);
	if (!v->owned)		/* or the owner does it */
		tasklet_schedule(&v->complete);
	spin_unlock_irqrestore(&v->queue_lock, flags);
}

/*
 * The thin pool is full. That is no broken disk: what it could not take is kept and tried again until there is room or the replica is
 * detached. To the core the disk is slow meanwhile. The daemon is told (tick() in volume.c), and has this replica left out if others
 * can go on without it. From any context; false: it is over, the error stands.
 */
static bool wait_for_room(struct lks_volume *v, struct lks_io *io)
{
	unsigned long flags;
	bool waits;

	spin_lock_irqsave(&v->queue_lock, flags);
	waits = !v->full_over;
	WRITE_ONCE(v->disk_moved, true);
	if (waits) {
		lks_list_add_tail(&io->link, &v->full_ios);
		v->full_ms = ktime_to_ms(ktime_get_boottime());
		queue_delayed_work(lks_wq, &v->full_work, FULL_RETRY);
	}
	spin_unlock_irqrestore(&v->queue_lock, flags);
	return waits;
}

/* From a thread: the softirq runs before this returns, not in another thread. */
static void finish_here(struct lks_volume *v, struct lks_io *io, int err)
{
	if (err == -ENOSPC && wait_for_room(v, io))
		return;
	local_bh_disable();
	finish(v, io, err);
	local_bh_enable();
}

/* It is submitted again by somebody who may wait. */
static void submit_later(struct lks_volume *v, struct lks_io *io)
{
	unsigned long flags;

	spin_lock_irqsave(&v->queue_lock, flags);
	lks_list_add_tail(&io->link, &v->busy_ios);
	queue_work(lks_disk_wq, &v->submit_work);
	spin_unlock_irqrestore(&v->queue_lock, flags);
}

static void end_io(struct bio *bio)
{
	struct lks_io *io = bio->bi_private;
	int err = blk_status_to_errno(bio->bi_status);
	/* whatever the reason: if there is more to it than a busy device, waiting will show */
	bool again = err && bio->bi_opf & REQ_NOWAIT;

	bio_put(bio);
	if (again)
		submit_later(io->priv, io);
	else if (err != -ENOSPC || !wait_for_room(io->priv, io))
		finish(io->priv, io, err);
}

void lks_backing_full_work(struct work_struct *work)
{
	struct lks_volume *v = container_of(to_delayed_work(work), struct lks_volume, full_work);

	spin_lock_irq(&v->queue_lock);
	if (!lks_list_empty(&v->full_ios)) {
		lks_list_splice_tail(&v->full_ios, &v->busy_ios);
		queue_work(lks_disk_wq, &v->submit_work);
	}
	spin_unlock_irq(&v->queue_lock);
}

void lks_backing_wait_no_more(struct lks_volume *v)
{
	struct lks_list ios;

	lks_list_init(&ios);
	spin_lock_irq(&v->queue_lock);
	v->full_over = true;
	lks_list_splice_tail(&v->full_ios, &ios);
	spin_unlock_irq(&v->queue_lock);
	while (!lks_list_empty(&ios)) {
		struct lks_io *io = lks_list_first(&ios, struct lks_io, link);

		lks_list_del(&io->link);
		finish_here(v, io, -ENOSPC);
	}
}

static struct page *page_of(const void *p)
{
	return is_vmalloc_addr(p) ? vmalloc_to_page(p) : virt_to_page(p);
}

/* Bytes [skip, skip + length) of buf. */
static void add_buf(struct bio *bio, struct lks_buf *buf, u32 skip, u32 length)
{
	unsigned int i = skip / PAGE_SIZE;
	u32 offset = skip % PAGE_SIZE;

	for (; length; i++, offset = 0) {
		u32 n = min_t(u32, length, PAGE_SIZE - offset);

		__bio_add_page(bio, buf->vecs[i].bv_page, n, offset);
		length -= n;
	}
}

static void submit_slowly(struct lks_volume *v, struct lks_io *io)
{
	spin_lock_irq(&v->queue_lock);
	lks_list_add_tail(&io->link, &v->slow_ios);
	queue_work(lks_slow_wq, &v->slow_io_work);	/* under the lock: as in finish() */
	spin_unlock_irq(&v->queue_lock);
}

static bool whole_sectors(const struct lks_backing *b, const struct lks_io *io)
{
	return !((io->offset | io->length) & (b->sector - 1));
}

void lks_backing_submit(struct lks_volume *v, struct lks_io *io, bool may_wait)
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
		if (!whole_sectors(v->backing, io)) {
			submit_slowly(v, io);
			return;
		}
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
		submit_slowly(v, io);
		return;
	default:
		WARN_ON_ONCE(1);
		finish_here(v, io, -EIO);
		return;
	}
	if (io->flags & LKS_IO_FUA)
		opf |= REQ_FUA;
	if (!may_wait && (io->op == LKS_IO_FLUSH || !bdev_nowait(v->backing->bdev))) {
		submit_later(v, io);
		return;
	}
	if (!may_wait)
		opf |= REQ_NOWAIT;
	bio = bio_alloc_bioset(v->backing->bdev, nvecs, opf, may_wait ? GFP_NOIO : GFP_NOWAIT, &bios);
	if (!bio) {
		submit_later(v, io);
		return;
	}
	bio->bi_iter.bi_sector = io->offset >> SECTOR_SHIFT;
	bio->bi_private = io;
	bio->bi_end_io = end_io;
	if (io->op == LKS_IO_META) {
		__bio_add_page(bio, page_of(io->meta), LKS_META_UNIT, offset_in_page(io->meta));
	} else if (nvecs) {
		add_buf(bio, io->buf, 0, io->length);
		lks_bio_set_css(bio, io->buf->css);
	}
	submit_bio(bio);
}

/* ---- the slow ways: in the worker ---- */

/* b->scratch, or the first bytes of it: whole sectors */
static int transfer_scratch(struct lks_backing *b, blk_opf_t opf, u64 at, u32 bytes)
{
	struct bio *bio = bio_alloc_bioset(b->bdev, 1, opf, GFP_NOIO, &bios);
	int err;

	bio->bi_iter.bi_sector = at >> SECTOR_SHIFT;
	__bio_add_page(bio, b->scratch, bytes, 0);
	err = submit_bio_wait(bio);
	bio_put(bio);
	return err;
}

static blk_opf_t write_flags(const struct lks_io *io)
{
	return REQ_OP_WRITE | REQ_SYNC | (io->flags & LKS_IO_FUA ? REQ_FUA : 0);
}

/* Bytes [from, to) of io, which lie in one sector. */
static int part_of_sector(struct lks_backing *b, struct lks_io *io, u64 from, u64 to)
{
	u64 at = rounddown(from, (u64)b->sector);
	u32 in_buf = from - io->offset, n;
	u32 in_sector = from - at;
	int err = transfer_scratch(b, REQ_OP_READ | REQ_SYNC, at, b->sector);

	for (; !err && from < to; from += n, in_buf += n, in_sector += n) {
		struct page *page = io->buf ? io->buf->vecs[in_buf / PAGE_SIZE].bv_page : NULL;

		n = min_t(u64, to - from, PAGE_SIZE - in_buf % PAGE_SIZE);
		if (io->op == LKS_IO_READ)
			memcpy_page(page, in_buf % PAGE_SIZE, b->scratch, in_sector, n);
		else if (io->op == LKS_IO_WRITE)
			memcpy_page(b->scratch, in_sector, page, in_buf % PAGE_SIZE, n);
		else
			memzero_page(b->scratch, in_sector, n);
	}
	if (err || io->op == LKS_IO_READ)
		return err;
	return transfer_scratch(b, write_flags(io), at, b->sector);
}

/* Bytes [from, to) of io: whole sectors. */
static int transfer_sectors(struct lks_backing *b, struct lks_io *io, u64 from, u64 to)
{
	blk_opf_t opf = io->op == LKS_IO_READ ? REQ_OP_READ | REQ_SYNC : write_flags(io);
	u32 skip = from - io->offset;
	struct bio *bio;
	int err;

	bio = bio_alloc_bioset(b->bdev, DIV_ROUND_UP(skip % PAGE_SIZE + to - from, PAGE_SIZE), opf, GFP_NOIO, &bios);
	bio->bi_iter.bi_sector = from >> SECTOR_SHIFT;
	add_buf(bio, io->buf, skip, to - from);
	err = submit_bio_wait(bio);
	bio_put(bio);
	return err;
}

static int zero_sectors(struct lks_backing *b, u64 from, u64 to, unsigned int flags)
{
	return blkdev_issue_zeroout(b->bdev, from >> SECTOR_SHIFT, (to - from) >> SECTOR_SHIFT, GFP_NOIO, flags);
}

/* Bytes [from, to) of io: read, written, or zeroed with these flags. */
static int do_range(struct lks_backing *b, struct lks_io *io, u64 from, u64 to, unsigned int flags)
{
	u64 first = min(roundup(from, (u64)b->sector), to);
	u64 last = max(rounddown(to, (u64)b->sector), first);
	int err = 0;

	if (from < first)
		err = part_of_sector(b, io, from, first);
	if (!err && last < to)
		err = part_of_sector(b, io, last, to);
	if (err || first == last)
		return err;
	if (io->op == LKS_IO_READ || io->op == LKS_IO_WRITE)
		return transfer_sectors(b, io, first, last);
	return zero_sectors(b, first, last, flags);
}

/* Bytes [from, to) of a thin volume, less than a granule. */
static int zero_edge(struct lks_backing *b, struct lks_io *io, u64 from, u64 to)
{
	u64 at = from;

	while (at < to) {
		u64 unit = rounddown(at, (u64)LKS_META_UNIT), end = min(unit + LKS_META_UNIT, to);
		int err = transfer_scratch(b, REQ_OP_READ | REQ_SYNC, unit, LKS_META_UNIT);

		if (err)
			return err;
		if (memchr_inv(page_address(b->scratch) + (at - unit), 0, end - at))
			break;
		at = end;
	}
	return at == to ? 0 : do_range(b, io, at, to, BLKDEV_ZERO_NOUNMAP);
}

static int discard(struct lks_backing *b, struct lks_io *io, u64 from, u64 to)
{
	u32 granule = bdev_discard_granularity(b->bdev);
	u64 first, last;
	int err;

	if (!b->thin || !bdev_max_discard_sectors(b->bdev) || !granule || bdev_discard_alignment(b->bdev))
		return do_range(b, io, from, to, 0);
	first = min(roundup(from, (u64)granule), to);
	last = max(rounddown(to, (u64)granule), first);
	err = zero_edge(b, io, from, first);
	if (!err)
		err = zero_edge(b, io, last, to);
	if (err || first == last)
		return err;
	err = blkdev_issue_discard(b->bdev, first >> SECTOR_SHIFT, (last - first) >> SECTOR_SHIFT, GFP_NOIO);
	return err == -EOPNOTSUPP ? zero_sectors(b, first, last, 0) : err;
}

static int flush(struct lks_backing *b)
{
	struct bio *bio = bio_alloc_bioset(b->bdev, 0, REQ_OP_WRITE | REQ_SYNC | REQ_PREFLUSH, GFP_NOIO, &bios);
	int err = submit_bio_wait(bio);

	bio_put(bio);
	return err;
}

/* There is no FUA for zeros that a device makes itself. */
static int zero(struct lks_backing *b, struct lks_io *io, u64 from, u64 to)
{
	int err;

	if (io->op == LKS_IO_DISCARD)
		err = discard(b, io, from, to);
	else
		err = do_range(b, io, from, to, BLKDEV_ZERO_NOUNMAP);
	return err || !(io->flags & LKS_IO_FUA) ? err : flush(b);
}

void lks_backing_slow_work(struct work_struct *work)
{
	struct lks_volume *v = container_of(work, struct lks_volume, slow_io_work);
	unsigned int noio = memalloc_noio_save();

	for (;;) {
		struct lks_io *io = NULL;
		u64 end;
		int err;

		spin_lock_irq(&v->queue_lock);
		if (!lks_list_empty(&v->slow_ios)) {
			io = lks_list_first(&v->slow_ios, struct lks_io, link);
			lks_list_del(&io->link);
		}
		spin_unlock_irq(&v->queue_lock);
		if (!io)
			break;
		end = io->offset + io->length;
		if (io->op == LKS_IO_READ || io->op == LKS_IO_WRITE)
			err = do_range(v->backing, io, io->offset, end, 0);
		else
			err = zero(v->backing, io, io->offset, end);
		finish_here(v, io, err);
	}
	memalloc_noio_restore(noio);
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

static int explain_open(int err, struct netlink_ext_ack *ack)
{
	switch (err) {
	case -EBUSY:
		NL_SET_ERR_MSG(ack, "the backing device is in use: is it mounted, or attached to another volume?");
		return err;
	case -EACCES:
	case -EROFS:
		NL_SET_ERR_MSG(ack, "the backing device is read-only");
		return -EACCES;
	case -ENOMEM:
		return err;
	default:
		NL_SET_ERR_MSG(ack, "there is no such backing device: is the logical volume active?");
		return -ENXIO;
	}
}

bool lks_backing_holds(struct block_device *bdev, u64 offset, u64 bytes)
{
	u64 size = bdev_nr_bytes(bdev);

	return bytes <= size && offset <= size - bytes;
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
	b->file = bdev_file_open_by_path(path, BLK_OPEN_READ | BLK_OPEN_WRITE, v, NULL);
	if (IS_ERR(b->file)) {
		err = explain_open(PTR_ERR(b->file), ack);
		goto err_free;
	}
	b->bdev = file_bdev(b->file);
	b->sector = bdev_logical_block_size(b->bdev);
	err = -EFBIG;
	if (!lks_backing_holds(b->bdev, offset, layout.total_bytes)) {
		NL_SET_ERR_MSG(ack, "the backing device is smaller than data and metadata");
		goto err_put;
	}
	err = -EOPNOTSUPP;
	if (b->sector > LKS_META_UNIT) {
		NL_SET_ERR_MSG(ack, "backing devices with sectors larger than 4096 bytes are not supported");
		goto err_put;
	}
	err = -ENOMEM;
	b->scratch = alloc_page(GFP_KERNEL);
	if (!b->scratch)
		goto err_put;
	return b;

err_put:
	bdev_fput(b->file);
err_free:
	kfree(b);
	return ERR_PTR(err);
}

void lks_backing_close(struct lks_backing *b)
{
	bdev_fput(b->file);
	__free_page(b->scratch);
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
