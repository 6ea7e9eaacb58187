// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Bios of a volume's device.
 *
 * A bio becomes one request of the core: it is cut at extents and at the size of a frame first, and a write that asks for
 * a flush before it becomes a flush, then a write. What is written goes through a buffer of our own (buf.h).
 *
 * The memory of requests under way is bounded. A volume may have VOLUME_BYTES_SURE at any time, so that one that is frozen
 * holds up no other, and more while all volumes together stay below max_request_mib. Whoever comes then waits. A discard
 * has no data, but the block layer submits all of a large one at once: each counts as DISCARD_BYTES, for what it costs here
 * and at the members.
 *
 * REQ_NOWAIT: what would have to wait for room, memory or the volume's lock fails with EAGAIN, and the disk is left to a
 * worker. REQ_RAHEAD: a read that would have to wait for memory or for a primary fails; nobody needs it.
 */
#include <linux/blkdev.h>
#include <linux/mempool.h>
#include <linux/mm.h>
#include <linux/module.h>
#include "buf.h"
#include "compat/block.h"
#include "device.h"
#include "trace.h"
#include "trail.h"

#define REQUESTS_RESERVED 64
#define SPLITS_RESERVED 16
#define VOLUME_BYTES_SURE (4l << 20)
#define VOLUME_BYTES_MAX (64l << 20)
#define DISCARD_BYTES (64l << 10)
#define MEMORY_PARTS 16		/* requests of all volumes take at most this part of the memory */

static unsigned int max_request_mib;
module_param(max_request_mib, uint, 0644);
MODULE_PARM_DESC(max_request_mib, "data of requests under way, of all volumes (MiB; default: a 16th of the memory, at most 256)");

static mempool_t requests;
static struct bio_set splits;
static DEFINE_SPINLOCK(room_lock);
static atomic_long_t request_bytes;	/* of all volumes; grows under room_lock */

/* ---- room ---- */

static long room_of(const struct bio *bio)
{
	if (bio_has_data((struct bio *)bio))
		return bio->bi_iter.bi_size;
	return bio_sectors(bio) ? DISCARD_BYTES : 0;
}

static void give_room(struct lks_volume *v, long bytes)
{
	atomic_long_sub(bytes, &request_bytes);
	atomic_long_sub(bytes, &v->request_bytes);
	if (wq_has_sleeper(&v->room))
		wake_up_all(&v->room);
}

/* Takes nothing if there is not enough: whoever waits here must not be woken by his own try. */
static bool get_room(struct lks_volume *v, long bytes)
{
	long all, own;
	bool enough;

	spin_lock(&room_lock);
	all = atomic_long_read(&request_bytes) + bytes;
	own = atomic_long_read(&v->request_bytes) + bytes;
	enough = own <= VOLUME_BYTES_SURE ||
		 (own <= VOLUME_BYTES_MAX && all <= (long)READ_ONCE(max_request_mib) << 20);
	if (enough) {
		atomic_long_add(bytes, &request_bytes);
		atomic_long_add(bytes, &v->request_bytes);
	}
	spin_unlock(&room_lock);
	return enough;
}

/*
 * Waits for requests of this volume to end. They do without us: whatever they need of the disk has been submitted, since a
 * driver's own bios go before the next bio for the same driver.
 */
static bool wait_for_room(struct lks_volume *v, long bytes, bool nowait)
{
	if (get_room(v, bytes))
		return true;
	if (nowait)
		return false;
	while (!wait_event_timeout(v->room, get_room(v, bytes), HZ))
		;	/* other volumes that give back what they had of the common room do not wake us */
	return true;
}

/* ---- requests ---- */

static void drop(struct lks_bio *r)
{
	if (r->req.buf)
		lks_buf_put(r->req.buf);
	give_room(r->v, r->room);
	mempool_free(r, &requests);
}

void lks_device_done(struct lks_bio *r)
{
	struct bio *bio = r->bio;
	int err = r->err;

	trace_lockstep_complete(r->v->vid, op_is_write(bio_op(bio)), bio->bi_iter.bi_sector, bio_sectors(bio), err,
				ktime_get_ns() - r->start_ns);
	if (!err && r->req.op == LKS_OP_READ && !r->req.buf->borrowed)
		lks_buf_to_bio(r->req.buf, bio);
	if (r->accounted)
		bio_end_io_acct(bio, r->start);
	drop(r);
	bio->bi_status = errno_to_blk_status(err);
	bio_endio(bio);
}

/* Of what is written: a read or a flush changes nothing. */
static bool leaves_trail(const struct lks_bio *r)
{
	return r->v->trail && r->req.op != LKS_OP_READ && r->req.op != LKS_OP_FLUSH;
}

void lks_device_ended(struct lks_bio *r, int err)
{
	if (err && leaves_trail(r))
		lks_trail_lose(r->v, "a write failed");
	r->err = err;
	list_move_tail(&r->link, &r->v->done);
}

bool lks_device_goes_on(const struct lks_bio *r)
{
	return r->preflush && !r->err;
}

static int may_start(struct lks_bio *r)
{
	if (r->req.op == LKS_OP_READ)
		return r->bio->bi_opf & REQ_RAHEAD && !r->v->record.primary ? -EIO : 0;
	if (r->v->fenced)
		return -EIO;
	/* whoever has it open for reading may flush: there is nothing of his */
	if (!r->v->writers)
		return r->req.op == LKS_OP_FLUSH ? 1 : -EIO;
	return 0;
}

/* Zeros that may free the space are what the core calls a discard: it reads as zeros on every replica. */
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
		return bio->bi_opf & REQ_NOUNMAP ? LKS_OP_ZEROES : LKS_OP_DISCARD;
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
	trace_lockstep_request(v->vid, r->req.op, r->req.flags, r->req.offset, r->req.length);
	list_add_tail(&r->link, &v->requests);
	err = may_start(r);
	if (err) {
		lks_device_ended(r, min(err, 0));
		return;
	}
	if (leaves_trail(r))
		lks_trail_note(v, r->req.offset, r->req.length, r->bio->bi_opf & REQ_NOWAIT);
	lks_vol_submit(v->core, &r->req, v->now_ms);
}

void lks_device_go_on(struct lks_bio *r)
{
	r->preflush = false;
	list_del(&r->link);
	lks_device_start(r);
}

/* Sectors of a bio that one request may have. */
static u32 request_sectors(const struct bio *bio)
{
	u32 most = LKS_EXTENT_SECTORS - (bio->bi_iter.bi_sector & (LKS_EXTENT_SECTORS - 1));

	if (bio_op(bio) == REQ_OP_READ || bio_op(bio) == REQ_OP_WRITE)
		most = min_t(u32, most, LKS_DATA_SECTORS);
	return most;
}

/* The first part of a bio that is too long for one request; the rest goes back to the block layer. NULL: failed. */
static struct bio *cut(struct bio *bio)
{
	u32 most = request_sectors(bio);
	struct bio *part;

	if (bio_sectors(bio) <= most)
		return bio;
	if (bio->bi_opf & REQ_NOWAIT) {
		bio_wouldblock_error(bio);
		return NULL;
	}
	part = bio_split(bio, most, GFP_NOIO, &splits);
	if (IS_ERR_OR_NULL(part)) {
		bio_io_error(bio);
		return NULL;
	}
	bio_chain(part, bio);
	submit_bio_noacct(bio);
	return part;
}

/* A request with room and memory for its data. NULL: not without waiting, which the bio does not want. */
static struct lks_bio *prepare(struct lks_volume *v, struct bio *bio)
{
	bool nowait = bio->bi_opf & REQ_NOWAIT;
	bool data = bio_has_data(bio);
	long room = room_of(bio);
	struct lks_bio *r;

	if (room && !wait_for_room(v, room, nowait))
		return NULL;
	r = mempool_alloc(&requests, nowait ? GFP_NOWAIT | __GFP_NOWARN : GFP_NOIO);
	if (!r) {
		give_room(v, room);
		return NULL;
	}
	memset(r, 0, sizeof(*r));
	INIT_LIST_HEAD(&r->link);
	r->v = v;
	r->bio = bio;
	r->room = room;
	r->preflush = bio->bi_opf & REQ_PREFLUSH && op_of(bio) != LKS_OP_FLUSH;
	if (!data)
		return r;
	if (bio_op(bio) == REQ_OP_READ)
		r->req.buf = lks_buf_borrow(bio, nowait ? GFP_NOWAIT : GFP_NOIO);
	if (r->req.buf)
		;	/* nothing to copy */
	else if (nowait)
		r->req.buf = lks_buf_alloc_nowait(bio->bi_iter.bi_size);
	else if (bio->bi_opf & REQ_RAHEAD)
		r->req.buf = lks_buf_alloc(bio->bi_iter.bi_size);
	else
		r->req.buf = lks_buf_alloc_io(bio->bi_iter.bi_size);
	if (!r->req.buf) {
		drop(r);
		return NULL;
	}
	lks_buf_set_owner(r->req.buf, bio);
	if (op_is_write(bio_op(bio)))
		lks_buf_from_bio(r->req.buf, bio);
	return r;
}

void lks_device_submit(struct bio *bio)
{
	struct lks_volume *v = lks_bio_disk(bio)->private_data;
	bool nowait = bio->bi_opf & REQ_NOWAIT;
	struct lks_bio *r;
	u32 bytes;

	if (!op_of(bio)) {
		bio->bi_status = BLK_STS_NOTSUPP;
		bio_endio(bio);
		return;
	}
	bio = cut(bio);
	if (!bio)
		return;
	r = prepare(v, bio);
	if (r && !(nowait ? lks_volume_trylock(v) : (lks_volume_lock(v), true))) {
		drop(r);
		r = NULL;
	}
	if (!r) {
		if (nowait)
			bio_wouldblock_error(bio);
		else
			bio_io_error(bio);
		return;
	}
	bytes = bio->bi_iter.bi_size;	/* before it may have ended; a flush has none, and is sent at once */
	r->start_ns = ktime_get_ns();
	r->accounted = bio_sectors(bio);
	if (r->accounted)
		r->start = bio_start_io_acct(bio);
	if (op_of(bio) == LKS_OP_READ && !(bio->bi_opf & REQ_RAHEAD) && !v->record.primary)
		queue_work(lks_open_wq, &v->wake_work);
	lks_device_start(r);
	lks_volume_unlock_plugged(v, !nowait, bytes);
}

int lks_device_init(void)
{
	struct sysinfo memory;
	int err;

	lks_trail_init();
	si_meminfo(&memory);
	if (!max_request_mib)
		max_request_mib = clamp_t(u64, (u64)memory.totalram * memory.mem_unit / MEMORY_PARTS >> 20, 16, 256);
	err = mempool_init_kmalloc_pool(&requests, REQUESTS_RESERVED, sizeof(struct lks_bio));
	if (err)
		return err;
	err = bioset_init(&splits, SPLITS_RESERVED, 0, BIOSET_NEED_RESCUER);
	if (err)
		mempool_exit(&requests);
	return err;
}

void lks_device_exit(void)
{
	bioset_exit(&splits);
	mempool_exit(&requests);
}
