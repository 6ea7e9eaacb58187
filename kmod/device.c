// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The block device of a volume: /dev/lockstep/<volume>, lockstep<minor> in sysfs.
 *
 * A bio becomes one request of the core: it is cut at extents and at the size of a frame first, and a write that asks for
 * a flush before it becomes a flush, then a write. Data go through a buffer of our own in both directions.
 *
 * Opening for writing waits until the cluster has granted this host a session (O2): the daemon is asked by EV_OPEN, again
 * each second since it may have restarted meanwhile. The wait is bounded, since the block layer keeps everybody else who
 * opens or closes this device waiting, too. Opening for reading needs no session and does not wait: udev opens every device
 * just to lock it. A read does need a primary; if there is none yet, a session of a moment brings one about.
 *
 * O1: when another host has taken the volume over, what is still open here can write no more, not even in a session
 * granted to this host later: only when the last writer has closed it may it be opened for writing again.
 */
#include <linux/blkdev.h>
#include <linux/major.h>
#include <linux/mempool.h>
#include <linux/module.h>
#include <linux/netlink.h>
#include <linux/sched/signal.h>
#include "buf.h"
#include "device.h"
#include "event.h"

#define REQUESTS_RESERVED 64
#define OPEN_REPEAT_MS 1000
#define EXTENT_SECTORS (LKS_EXTENT_BYTES >> SECTOR_SHIFT)
#define DATA_SECTORS (LKS_REQ_MAX_BYTES >> SECTOR_SHIFT)

static unsigned int open_timeout_ms = 20000;
module_param(open_timeout_ms, uint, 0644);
MODULE_PARM_DESC(open_timeout_ms, "how long an open for writing waits for the cluster (milliseconds)");

static unsigned int major;
module_param(major, uint, 0444);
MODULE_PARM_DESC(major, "major number of the devices (0: any)");

static mempool_t requests;

/* ---- I/O ---- */

static void end_request(struct lks_bio *r)
{
	struct bio *bio = r->bio;

	if (!r->err && r->req.op == LKS_OP_READ)
		lks_buf_to_bio(r->req.buf, bio);
	if (r->req.buf)
		lks_buf_put(r->req.buf);
	if (r->accounted)
		bio_end_io_acct(bio, r->start);
	bio->bi_status = errno_to_blk_status(r->err);
	mempool_free(r, &requests);
	bio_endio(bio);
}

bool lks_device_done(struct lks_bio *r)
{
	if (r->preflush && !r->err) {
		r->preflush = false;
		return true;
	}
	end_request(r);
	return false;
}

static int may_start(struct lks_bio *r, u8 op)
{
	if (op == LKS_OP_READ)
		return 0;
	if (r->v->fenced)
		return -EIO;
	/* whoever has it open for reading may flush: there is nothing of his */
	if (!r->v->writers)
		return op == LKS_OP_FLUSH ? 1 : -EIO;
	return 0;
}

static u8 op_of(const struct bio *bio)
{
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return LKS_OP_READ;
	case REQ_OP_WRITE:
		return bio_sectors(bio) ? LKS_OP_WRITE : LKS_OP_FLUSH;
	case REQ_OP_FLUSH:
		return LKS_OP_FLUSH;
	case REQ_OP_WRITE_ZEROES:
		return LKS_OP_ZEROES;
	case REQ_OP_DISCARD:
		return LKS_OP_DISCARD;
	default:
		return 0;
	}
}

/* What the core is to do next for r. */
static void describe(struct lks_bio *r)
{
	struct lks_req *req = &r->req;
	struct bio *bio = r->bio;

	req->op = r->preflush ? LKS_OP_FLUSH : op_of(bio);
	req->flags = 0;
	req->offset = 0;
	req->length = 0;
	if (req->op == LKS_OP_FLUSH)
		return;
	req->offset = (u64)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	req->length = bio->bi_iter.bi_size;
	if (req->op != LKS_OP_READ && bio->bi_opf & REQ_FUA)
		req->flags = LKS_F_FUA;
}

void lks_device_start(struct lks_bio *r)
{
	struct lks_volume *v = r->v;
	int err;

	describe(r);
	err = may_start(r, r->req.op);
	if (err) {
		r->err = min(err, 0);
		list_add_tail(&r->link, &v->done);
		return;
	}
	lks_vol_submit(v->core, &r->req, v->now_ms);
}

/* The first part of a bio that is too long for one request; the rest goes back to the block layer. NULL: failed. */
static struct bio *cut(struct bio *bio)
{
	sector_t at = bio->bi_iter.bi_sector;
	u32 most = EXTENT_SECTORS - (at & (EXTENT_SECTORS - 1));
	struct bio *part;

	if (bio_op(bio) == REQ_OP_READ || bio_op(bio) == REQ_OP_WRITE)
		most = min_t(u32, most, DATA_SECTORS);
	if (bio_sectors(bio) <= most)
		return bio;
	part = bio_split(bio, most, GFP_NOIO, &bio->bi_bdev->bd_disk->bio_split);
	if (IS_ERR_OR_NULL(part)) {
		bio_io_error(bio);
		return NULL;
	}
	bio_chain(part, bio);
	submit_bio_noacct(bio);
	return part;
}

static void submit(struct bio *bio)
{
	struct lks_volume *v = bio->bi_bdev->bd_disk->private_data;
	struct lks_bio *r;

	if (!op_of(bio)) {
		bio->bi_status = BLK_STS_NOTSUPP;
		bio_endio(bio);
		return;
	}
	bio = cut(bio);
	if (!bio)
		return;
	r = mempool_alloc(&requests, GFP_NOIO);
	memset(r, 0, sizeof(*r));
	r->v = v;
	r->bio = bio;
	r->preflush = bio->bi_opf & REQ_PREFLUSH && op_of(bio) != LKS_OP_FLUSH;
	r->accounted = bio_sectors(bio);
	if (r->accounted)
		r->start = bio_start_io_acct(bio);
	if (bio_has_data(bio)) {
		r->req.buf = lks_buf_alloc_io(bio->bi_iter.bi_size);
		if (op_is_write(bio_op(bio)))
			lks_buf_from_bio(r->req.buf, bio);
	}
	lks_volume_lock(v);
	if (op_of(bio) == LKS_OP_READ && !v->record.primary)
		queue_work(lks_slow_wq, &v->wake_work);
	lks_device_start(r);
	lks_volume_unlock(v, true);
}

/* ---- opening ---- */

/* Has the wait of an open come to its end? 1: open; 0: not yet; or an error. v->lock is held. */
static int open_state(struct lks_volume *v, u32 refusals)
{
	if (v->device_going)
		return -ENXIO;
	if (v->fenced)
		return -EIO;
	if (lks_vol_is_open(v->core))
		return 1;
	if (v->refusals != refusals)
		return v->refused;
	return 0;
}

static int wait_for_session(struct lks_volume *v, u32 refusals)
{
	unsigned long deadline = jiffies + msecs_to_jiffies(open_timeout_ms);
	int state;

	for (;;) {
		lks_event_open(v->vid);
		wait_event_killable_timeout(v->wait, READ_ONCE(v->opened) || READ_ONCE(v->refusals) != refusals ||
					    READ_ONCE(v->fenced), msecs_to_jiffies(OPEN_REPEAT_MS));
		lks_volume_lock(v);
		v->opened = false;
		state = open_state(v, refusals);
		lks_volume_unlock(v, true);
		if (state)
			return state;
		if (fatal_signal_pending(current))
			return -EINTR;
		if (time_after_eq(jiffies, deadline))
			return -ETIMEDOUT;
	}
}

static int open_for_writing(struct lks_volume *v)
{
	u64 session = 0;
	u32 refusals;
	int state;

	lks_volume_lock(v);
	refusals = v->refusals;
	state = open_state(v, refusals);
	if (!state) {
		v->opened = false;
		v->open_waiters++;
		lks_vol_open(v->core, v->now_ms);
		state = open_state(v, refusals);
		if (!state) {
			lks_volume_unlock(v, true);
			state = wait_for_session(v, refusals);
			lks_volume_lock(v);
		}
		v->open_waiters--;
	}
	if (state > 0) {
		v->writers++;
		v->openers++;
	} else {
		session = lks_volume_end_session(v);
	}
	lks_volume_unlock(v, true);
	if (session)
		lks_event_close(v->vid, session);
	return min(state, 0);
}

static int open_for_reading(struct lks_volume *v)
{
	int err = 0;

	mutex_lock(&v->lock);
	if (v->device_going)
		err = -ENXIO;
	else
		v->openers++;
	mutex_unlock(&v->lock);
	return err;
}

static void close_once(struct lks_volume *v, bool writer)
{
	u64 session = 0;

	lks_volume_lock(v);
	v->openers--;
	if (writer) {
		v->writers--;
		session = lks_volume_end_session(v);
	}
	lks_volume_unlock(v, true);
	if (session)
		lks_event_close(v->vid, session);
}

static int open(struct block_device *bdev, fmode_t mode)
{
	struct lks_volume *v = bdev->bd_disk->private_data;

	return mode & FMODE_WRITE ? open_for_writing(v) : open_for_reading(v);
}

/*
 * Somebody reads, and nobody has opened the volume for writing since it was created or lost its primary. A session, held
 * for a moment, makes the cluster choose a primary, which stays when the session ends; the read waits in the core. If
 * another host is faster with its session, that has the same effect.
 */
void lks_device_wake_work(struct work_struct *work)
{
	struct lks_volume *v = container_of(work, struct lks_volume, wake_work);
	int err = open_for_writing(v);

	if (!err)
		close_once(v, true);
	else if (err == -ETIMEDOUT && !READ_ONCE(v->record.primary))
		queue_work(lks_slow_wq, work);
}

static void release(struct gendisk *disk, fmode_t mode)
{
	struct lks_volume *v = disk->private_data;

	/* a reader that stays keeps the page cache: what is dirty in it needs the session */
	if (mode & FMODE_WRITE && READ_ONCE(v->writers) == 1)
		sync_blockdev(disk->part0);
	close_once(v, mode & FMODE_WRITE);
}

void lks_device_refuse_open(struct lks_volume *v, int err)
{
	mutex_lock(&v->lock);
	v->refused = err;
	v->refusals++;
	mutex_unlock(&v->lock);
	wake_up_all(&v->wait);
}

/* ---- the device ---- */

static char *devnode(struct gendisk *disk, umode_t *mode)
{
	struct lks_volume *v = disk->private_data;

	return kasprintf(GFP_KERNEL, "lockstep/%s", v->name);
}

static const struct block_device_operations operations = {
	.owner = THIS_MODULE,
	.submit_bio = submit,
	.open = open,
	.release = release,
	.devnode = devnode,
};

static ssize_t name_show(struct device *dev, struct device_attribute *attr, char *to)
{
	struct lks_volume *v = dev_to_disk(dev)->private_data;

	return sysfs_emit(to, "%s\n", v->name);
}
static DEVICE_ATTR_RO(name);

static ssize_t vid_show(struct device *dev, struct device_attribute *attr, char *to)
{
	struct lks_volume *v = dev_to_disk(dev)->private_data;

	return sysfs_emit(to, "%u\n", v->vid);
}
static DEVICE_ATTR_RO(vid);

static struct attribute *attributes[] = { &dev_attr_name.attr, &dev_attr_vid.attr, NULL };
static const struct attribute_group attribute_group = { .name = "lockstep", .attrs = attributes };
static const struct attribute_group *attribute_groups[] = { &attribute_group, NULL };

static void set_limits(struct request_queue *q)
{
	blk_queue_logical_block_size(q, LKS_SECTOR);
	blk_queue_physical_block_size(q, 4096);
	blk_queue_io_min(q, 4096);
	blk_queue_max_hw_sectors(q, DATA_SECTORS);
	blk_queue_chunk_sectors(q, EXTENT_SECTORS);
	blk_queue_max_discard_sectors(q, EXTENT_SECTORS);
	blk_queue_max_write_zeroes_sectors(q, EXTENT_SECTORS);
	q->limits.discard_granularity = 4096;
	blk_queue_write_cache(q, true, true);
	blk_queue_flag_set(QUEUE_FLAG_NONROT, q);
	blk_queue_flag_clear(QUEUE_FLAG_ADD_RANDOM, q);
}

int lks_device_add(struct lks_volume *v, struct netlink_ext_ack *ack)
{
	struct gendisk *disk;
	int err;

	if (v->disk)
		return 0;
	disk = blk_alloc_disk(NUMA_NO_NODE);
	if (!disk)
		return -ENOMEM;
	disk->major = major;
	disk->first_minor = v->minor;
	disk->minors = 1;
	disk->flags |= GENHD_FL_NO_PART;
	disk->fops = &operations;
	disk->private_data = v;
	snprintf(disk->disk_name, sizeof(disk->disk_name), "lockstep%u", v->minor);
	set_limits(disk->queue);
	set_capacity(disk, v->size >> SECTOR_SHIFT);
	mutex_lock(&v->lock);
	v->device_going = false;
	mutex_unlock(&v->lock);
	err = device_add_disk(NULL, disk, attribute_groups);
	if (err) {
		NL_SET_ERR_MSG(ack, "the block layer refused the device");
		put_disk(disk);
		return err;
	}
	mutex_lock(&v->lock);
	v->disk = disk;
	mutex_unlock(&v->lock);
	return 0;
}

int lks_device_del(struct lks_volume *v, struct netlink_ext_ack *ack)
{
	struct gendisk *disk;
	bool busy;

	mutex_lock(&v->lock);
	disk = v->disk;
	busy = v->openers || v->open_waiters;
	if (disk && !busy) {
		v->device_going = true;
		v->disk = NULL;
	}
	mutex_unlock(&v->lock);
	if (busy) {
		NL_SET_ERR_MSG(ack, "the device is open on this host");
		return -EBUSY;
	}
	if (!disk)
		return 0;
	del_gendisk(disk);
	put_disk(disk);
	return 0;
}

int lks_device_init(void)
{
	int err;

	err = mempool_init_kmalloc_pool(&requests, REQUESTS_RESERVED, sizeof(struct lks_bio));
	if (err)
		return err;
	err = register_blkdev(major, "lockstep");
	if (err < 0) {
		pr_err("lockstep: major number %u is taken\n", major);
		mempool_exit(&requests);
		return err;
	}
	if (!major)
		major = err;
	return 0;
}

void lks_device_exit(void)
{
	unregister_blkdev(major, "lockstep");
	mempool_exit(&requests);
}
