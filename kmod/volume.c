// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Volumes: their table, the lock around the core, the core's actions, and the commands. See volume.h.
 *
 * A volume holds a reference to the module, so that the module cannot be unloaded while there are any. A volume's memory
 * goes when the last reference does; VOLUME_DEL has stopped its timers and workers before. What still holds references
 * then (a receiver) finds it dead.
 */
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/netlink.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include "backing.h"
#include "buf.h"
#include "compat/block.h"
#include "debugfs.h"
#include "device.h"
#include "event.h"
#include "host.h"
#include "volume.h"

#define CREATE_TRACE_POINTS
#include "trace.h"
#include "trail.h"

#define UNUSED_SESSION_MS 2000
#define FULL_TOLD_MS 5000		/* what waits for room is tried again each second */
#define FROZEN_MS 1000		/* a request older than this is worth a trace */

static unsigned int stuck_ms = 30000;
module_param(stuck_ms, uint, 0644);
MODULE_PARM_DESC(stuck_ms, "a disk that has something to do and answers nothing for so long is stuck (milliseconds; 0: never)");

static atomic_t syncing = ATOMIC_INIT(0);	/* volumes that resync, from here */
static DEFINE_IDR(volumes);		/* vid -> struct lks_volume; read under RCU */
static DEFINE_MUTEX(lks_volumes_lock);

/* ---- the table ---- */

static void release(struct kref *ref)
{
	struct lks_volume *v = container_of(ref, struct lks_volume, refs);

	if (v->core)
		lks_vol_destroy(v->core);
	if (v->syncing)
		atomic_dec(&syncing);
	lks_notify_purge(v);
	lks_trail_end(v);
	WARN(v->allocated, "lockstep: volume %s: %zu bytes leaked\n", v->name, v->allocated);
	kfree_rcu(v, rcu);
}

void lks_volume_put(struct lks_volume *v)
{
	kref_put(&v->refs, release);
}

struct lks_volume *lks_volume_get(u32 vid)
{
	struct lks_volume *v;

	rcu_read_lock();
	v = idr_find(&volumes, vid);
	if (v && !kref_get_unless_zero(&v->refs))
		v = NULL;
	rcu_read_unlock();
	return v;
}

struct lks_volume *lks_volume_next(u32 vid)
{
	unsigned long index = vid;
	struct lks_volume *v;

	rcu_read_lock();
	while ((v = idr_get_next_ul(&volumes, &index)) && !kref_get_unless_zero(&v->refs))
		index++;
	rcu_read_unlock();
	return v;
}

/* ---- the lock ---- */

/*
 * The mutex is not all: completions of the backing device go to the core from a softirq, without a thread that would have to be
 * woken (complete_softly()). Whoever owns the volume may use the core. A softirq that finds it owned leaves what it has to the owner.
 */
#ifdef CONFIG_PREEMPT_RT
#error lockstep does not run on PREEMPT_RT kernels: own() spins for softirqs, which are threads there that it may keep from running
#endif
static void own(struct lks_volume *v)
{
	spin_lock_irq(&v->queue_lock);
	while (v->owned) {		/* by a softirq on another processor: it does not sleep */
		spin_unlock_irq(&v->queue_lock);
		cpu_relax();
		spin_lock_irq(&v->queue_lock);
	}
	v->owned = true;
	spin_unlock_irq(&v->queue_lock);
}

static void disown(struct lks_volume *v)
{
	local_bh_disable();
	spin_lock_irq(&v->queue_lock);
	v->owned = false;
	if (!lks_list_empty(&v->completed))
		tasklet_schedule(&v->complete);		/* runs at local_bh_enable() */
	spin_unlock_irq(&v->queue_lock);
	local_bh_enable();
}

void lks_volume_hold(struct lks_volume *v)
{
	mutex_lock(&v->lock);
	own(v);
}

void lks_volume_release(struct lks_volume *v)
{
	disown(v);
	mutex_unlock(&v->lock);
}

static void set_time(struct lks_volume *v)
{
	v->now_ms = max(v->now_ms, (u64)ktime_to_ms(ktime_get_boottime()));
}

static bool never(void *arg)
{
	return false;
}

static bool always(void *arg)
{
	return true;
}

bool lks_volume_lock_unless(struct lks_volume *v, bool (*stop)(void *arg), void *arg)
{
	for (;;) {
		lks_volume_hold(v);
		if (likely(!v->attaching))
			break;
		lks_volume_release(v);
		wait_event_idle(v->wait, !READ_ONCE(v->attaching) || stop(arg));
		if (stop(arg))
			return false;
	}
	set_time(v);
	return true;
}

void lks_volume_lock(struct lks_volume *v)
{
	lks_volume_lock_unless(v, never, NULL);
}

bool lks_volume_trylock(struct lks_volume *v)
{
	if (!mutex_trylock(&v->lock))
		return false;
	own(v);
	if (v->attaching) {
		lks_volume_release(v);
		return false;
	}
	set_time(v);
	return true;
}

/*
 * Without a plug, a device with an I/O scheduler has a thread of kblockd take each bio further. Our own plug holds nothing back if
 * whoever submits has one already. If he has none, we are called from submit_bio(), which would keep our bios until we have
 * returned, when the plug is over: so they go below at once. That is one level of the stack deeper, and no more: what the device
 * below submits is kept for it as ever. Nobody waits for what is kept above us: bios for the same device come after ours in any case.
 */
static void submit_ios(struct lks_volume *v, struct lks_list *ios, bool may_wait)
{
	struct bio_list *kept = current->bio_list;
	bool first = !current->plug;
	struct blk_plug plug;

	if (lks_list_empty(ios))
		return;
	blk_start_plug(&plug);
	if (first)
		current->bio_list = NULL;
	while (!lks_list_empty(ios)) {
		struct lks_io *io = lks_list_first(ios, struct lks_io, link);

		lks_list_del(&io->link);
		lks_backing_submit(v, io, may_wait);
	}
	blk_finish_plug(&plug);
	current->bio_list = kept;
}

static void unlock(struct lks_volume *v, bool may_wait, u32 plugged_bytes)
{
	struct lks_bio *r, *next;
	struct lks_list ios;
	LIST_HEAD(done);
	u64 hosts;

	/* Not under the lock anew: that waits while a replica is attached here, and a link's receiver must not wait for a disk. */
	list_for_each_entry_safe(r, next, &v->done, link)
		if (lks_device_goes_on(r))
			lks_device_go_on(r);
	hosts = v->to_send;
	v->to_send = 0;
	list_splice_tail_init(&v->done, &done);
	lks_list_init(&ios);
	lks_list_splice_tail(&v->ios, &ios);
	lks_volume_release(v);

	/* first to those who have the longer way */
	if (hosts && plugged_bytes)
		lks_send_unplugged(hosts, plugged_bytes);
	else if (hosts)
		lks_send_now(hosts);
	submit_ios(v, &ios, may_wait);
	list_for_each_entry_safe(r, next, &done, link) {
		list_del(&r->link);
		lks_device_done(r);
	}
}

void lks_volume_unlock(struct lks_volume *v, bool may_wait)
{
	unlock(v, may_wait, 0);
}

void lks_volume_unlock_plugged(struct lks_volume *v, bool may_wait, u32 bytes)
{
	unlock(v, may_wait, bytes);
}

static void submit_work(struct work_struct *work)
{
	struct lks_volume *v = container_of(work, struct lks_volume, submit_work);
	struct lks_list ios;

	lks_list_init(&ios);
	spin_lock_irq(&v->queue_lock);
	lks_list_splice_tail(&v->busy_ios, &ios);
	spin_unlock_irq(&v->queue_lock);
	submit_ios(v, &ios, true);
	lks_volume_lock(v);
	lks_volume_unlock(v, true);
}

/* ---- completions ---- */

/* The core is told of completions, as long as it needs no memory for them if quick; the rest is put back. */
static void tell_core(struct lks_volume *v, bool quick)
{
	struct lks_list completed;

	lks_list_init(&completed);
	spin_lock_irq(&v->queue_lock);
	lks_list_splice_tail(&v->completed, &completed);
	spin_unlock_irq(&v->queue_lock);
	while (!lks_list_empty(&completed)) {
		struct lks_io *io = lks_list_first(&completed, struct lks_io, link);
		int err = lks_backing_error(io);

		if (quick && !lks_vol_io_is_quick(v->core, io, err))
			break;
		lks_list_del(&io->link);
		lks_vol_io_done(v->core, io, err, v->now_ms);
	}
	if (lks_list_empty(&completed))
		return;
	spin_lock_irq(&v->queue_lock);
	lks_list_splice_tail(&v->completed, &completed);
	lks_list_splice_tail(&completed, &v->completed);
	spin_unlock_irq(&v->queue_lock);
	queue_work(lks_disk_wq, &v->complete_work);
}

static void complete_work(struct work_struct *work)
{
	struct lks_volume *v = container_of(work, struct lks_volume, complete_work);

	lks_volume_lock(v);
	tell_core(v, false);
	lks_volume_unlock(v, true);
}

/*
 * The softirq: what can be done without sleeping. Ends requests by itself, and leaves to submit_work what the core now wants from
 * the disk, and writes whose flush is done.
 */
static void complete_softly(struct tasklet_struct *tasklet)
{
	struct lks_volume *v = container_of(tasklet, struct lks_volume, complete);
	struct lks_bio *r, *next;
	LIST_HEAD(done);
	bool again;

	spin_lock_irq(&v->queue_lock);
	if (v->owned || lks_list_empty(&v->completed)) {
		spin_unlock_irq(&v->queue_lock);
		return;
	}
	v->owned = true;
	spin_unlock_irq(&v->queue_lock);

	set_time(v);
	tell_core(v, true);
	list_for_each_entry_safe(r, next, &v->done, link)
		if (!lks_device_goes_on(r))
			list_move_tail(&r->link, &done);
	if (!list_empty(&v->done) || !lks_list_empty(&v->ios))
		queue_work(lks_disk_wq, &v->submit_work);

	spin_lock_irq(&v->queue_lock);
	v->owned = false;
	/* a completion that needs a thread has one on its way */
	again = !lks_list_empty(&v->completed) && !work_pending(&v->complete_work);
	if (again)
		tasklet_schedule(&v->complete);
	spin_unlock_irq(&v->queue_lock);
	list_for_each_entry_safe(r, next, &done, link) {
		list_del(&r->link);
		lks_device_done(r);
	}
}

/* ---- the core's actions: the lock is held ---- */

static struct lks_buf *op_buf_alloc(void *ctx, u32 bytes)
{
	return in_serving_softirq() ? lks_buf_alloc_nowait(bytes) : lks_buf_alloc(bytes);
}

static void op_submit(void *ctx, struct lks_io *io)
{
	struct lks_volume *v = ctx;

	atomic_inc(&v->disk_ios);
	lks_list_add_tail(&io->link, &v->ios);
}

static void op_send(void *ctx, u8 host, u8 lane, const struct lks_frame *h, struct lks_buf *buf, const void *bytes)
{
	struct lks_volume *v = ctx;

	if (WARN_ON_ONCE(!host || host > LKS_MAX_HOSTS))
		return;
	if (h->type == LKS_REPL || h->type == LKS_FLUSH)
		trace_lockstep_replicate(v->vid, host, h->type, h->term, h->seq, h->offset, h->length);
	lks_host_send(host, v->link[host], lane, h, buf, bytes);
	if (!in_serving_softirq())
		v->to_send |= 1ull << (host - 1);
}

static void op_req_done(void *ctx, struct lks_req *req, int err)
{
	lks_device_ended(container_of(req, struct lks_bio, req), err);
}

static void op_event(void *ctx, const struct lks_event_info *info)
{
	lks_notify(ctx, info);
}

static u32 op_syncing(void *ctx, bool on)
{
	struct lks_volume *v = ctx;

	if (on != v->syncing)
		atomic_add(on ? 1 : -1, &syncing);
	v->syncing = on;
	return max(atomic_read(&syncing), 1);
}

static u32 op_room(void *ctx, u8 host)
{
	struct lks_volume *v = ctx;

	return lks_host_room(host, v->link[host]) / LKS_META_UNIT;
}

static const struct lks_ops ops = {
	.alloc = lks_core_alloc,
	.free = lks_core_free,
	.buf_alloc = op_buf_alloc,
	.buf_get = lks_buf_get,
	.buf_put = lks_buf_put,
	.buf_copy = lks_buf_copy,
	.buf_zero = lks_buf_zero,
	.buf_hash = lks_buf_hash,
	.submit = op_submit,
	.send = op_send,
	.req_done = op_req_done,
	.event = op_event,
	.syncing = op_syncing,
	.room = op_room,
};

/* ---- sessions, links and frames ---- */

u64 lks_volume_end_session(struct lks_volume *v)
{
	struct lks_vol_status s;

	if (v->writers || v->open_waiters || v->waking)
		return 0;
	lks_vol_status(v->core, v->now_ms, &s);
	lks_vol_close(v->core, v->now_ms);
	v->fenced = false;
	if (s.session <= v->session_ended)
		return 0;
	v->session_ended = s.session;
	return s.session;
}

/* This host's session in the newest record, 0 if none. */
static u64 granted(const struct lks_volume *v)
{
	const struct lks_record *r = &v->record;
	u64 session = 0;
	unsigned int i;

	for (i = 0; i < r->nopeners; i++)
		if (r->openers[i].host == lks_self)
			session = max(session, (u64)r->openers[i].session);
	return session;
}

/*
 * A session that came after whoever had asked for it gave up would keep all other hosts from the volume: it is taken up
 * after a while, and then given back like any other. Under the lock. Returns a session to report by EV_CLOSE, 0: none.
 */
static u64 give_back_unused(struct lks_volume *v)
{
	if (v->writers || v->open_waiters || v->waking || granted(v) <= v->session_ended) {
		v->unused_ms = 0;
		return 0;
	}
	if (lks_vol_is_open(v->core))
		return lks_volume_end_session(v);
	if (!v->unused_ms)
		v->unused_ms = v->now_ms;
	else if (v->now_ms - v->unused_ms > UNUSED_SESSION_MS)
		lks_vol_open(v->core, v->now_ms);
	return 0;
}

/* Under the lock. */
static void trace_freeze(struct lks_volume *v)
{
	struct lks_bio *oldest = list_first_entry_or_null(&v->requests, struct lks_bio, link);
	u64 age_ms = oldest ? v->now_ms - oldest->req.submitted_ms : 0;

	if (v->frozen == (age_ms > FROZEN_MS))
		return;
	v->frozen = !v->frozen;
	trace_lockstep_freeze(v->vid, v->frozen, age_ms);
}

/* A full pool is told when it is noticed, and when nothing has been refused for a while. */
static void tell_full(struct lks_volume *v)
{
	struct lks_event_info info = { .event = LKS_EV_STATE };
	bool full;

	spin_lock_irq(&v->queue_lock);
	full = v->full_ms && v->now_ms < v->full_ms + FULL_TOLD_MS;
	spin_unlock_irq(&v->queue_lock);
	if (full == v->full)
		return;
	v->full = full;
	if (full)
		pr_warn("lockstep: volume %s: the pool of its replica has no room left; what is written waits\n", v->name);
	else
		pr_info("lockstep: volume %s: the pool of its replica refuses nothing any more\n", v->name);
	lks_notify(v, &info);
}

/*
 * A disk may neither answer nor fail, for minutes or for ever. The daemon is told, and has this replica left out if others can go on
 * without it. What the disk has, it keeps: its buffers are not used again before it answers. Time is counted in ticks: those of a host
 * that was frozen do not pass, and its disk may answer when it goes on.
 */
static void tell_stuck(struct lks_volume *v)
{
	struct lks_event_info info = { .event = LKS_EV_STATE };
	unsigned int ms = READ_ONCE(stuck_ms);
	bool stuck;

	if (xchg(&v->disk_moved, false) || !atomic_read(&v->disk_ios))
		v->still_ticks = 0;
	else
		v->still_ticks++;
	stuck = ms && v->still_ticks > ms / LKS_TICK_MS;
	if (stuck == v->stuck)
		return;
	v->stuck = stuck;
	if (stuck)
		pr_warn("lockstep: volume %s: the disk of its replica has answered nothing for %u s\n", v->name, ms / 1000);
	else
		pr_info("lockstep: volume %s: the disk of its replica answers again\n", v->name);
	lks_notify(v, &info);
}

static void tick(struct work_struct *work)
{
	struct lks_volume *v = container_of(to_delayed_work(work), struct lks_volume, tick);
	u64 unused = 0;

	if (lks_volume_lock_unless(v, always, NULL)) {
		if (!v->dead) {
			lks_vol_tick(v->core, v->now_ms);
			trace_freeze(v);
			tell_full(v);
			tell_stuck(v);
			unused = give_back_unused(v);
		}
		lks_volume_unlock(v, false);
	}
	if (unused)
		lks_event_close(v->vid, unused);
	queue_delayed_work(lks_wq, &v->tick, msecs_to_jiffies(LKS_TICK_MS));
}

static void sync_link(struct lks_volume *v, u8 host)
{
	u64 up = lks_host_up(host);

	if (v->link[host] == up)
		return;
	if (v->link[host]) {
		v->link[host] = 0;
		lks_vol_link_lost(v->core, host, v->now_ms);
	}
	if (up) {
		v->link[host] = up;
		lks_vol_link_up(v->core, host, v->now_ms);
	}
}

void lks_volume_sync_links(struct lks_volume *v)
{
	unsigned int host;

	for (host = 1; host <= LKS_MAX_HOSTS; host++)
		sync_link(v, host);
}

void lks_volume_sync_all_links(void)
{
	struct lks_volume *v;
	u32 vid = 0;

	/* pairs with lks_volume_add(): either it sees the link's new state, or we see the volume */
	smp_mb();
	while ((v = lks_volume_next(vid))) {
		vid = v->vid + 1;
		if (lks_volume_lock_unless(v, always, NULL)) {
			if (!v->dead)
				lks_volume_sync_links(v);
			lks_volume_unlock(v, false);	/* one volume's disk does not hold up the others */
		}
		lks_volume_put(v);
		if (!vid)
			break;
	}
}

int lks_volume_deliver(struct lks_volume *v, u8 host, u64 number, const struct lks_frame *h, struct lks_buf *buf, const void *bytes)
{
	if (v->dead)
		return 0;
	/* the frame may be faster than whoever tells all volumes about the link */
	if (v->link[host] != number)
		sync_link(v, host);
	return v->link[host] == number ? lks_vol_receive(v->core, host, h, buf, bytes, v->now_ms) : 0;
}

int lks_volume_receive(struct lks_volume *v, struct lks_link *link, const struct lks_frame *h, unsigned int n, struct lks_buf *buf,
		       const void *bytes, bool (*stop)(void *arg), void *arg)
{
	u8 host = link->peer->host;
	unsigned int i;
	int err = 0;

	for (i = 0; i < n; i++)
		if (h[i].type == LKS_ACK || h[i].type == LKS_FLUSHED)
			trace_lockstep_ack(v->vid, host, h[i].type, h[i].term, h[i].seq, h[i].offset, h[i].length);
	lks_volume_hold(v);
	i = 0;
	if (unlikely(v->attaching)) {
		while (i < n && lks_early_keep(v, host, link->number, &h[i], buf, bytes))
			i++;
		lks_volume_release(v);
		if (i == n || !lks_volume_lock_unless(v, stop, arg))
			return 0;
	}
	set_time(v);
	for (; !err && i < n; i++)
		err = lks_volume_deliver(v, host, link->number, &h[i], buf, bytes);
	lks_volume_unlock(v, false);
	return err;
}

/* ---- commands ---- */

static bool same(const struct lks_volume *v, const struct lks_volume_params *p)
{
	return !strcmp(v->name, p->name) && !memcmp(v->uuid, p->core.uuid, sizeof(v->uuid)) && v->minor == p->minor &&
	       READ_ONCE(v->size) == p->core.size && v->block_size == p->core.block_size && v->class == p->core.shared;
}

/* lks_volumes_lock is held. 0: add it; 1: it is there already. */
static int check_new(const struct lks_volume_params *p, struct netlink_ext_ack *ack)
{
	unsigned long index;
	struct lks_volume *v;

	for (index = 0; (v = idr_get_next_ul(&volumes, &index)); index++) {
		if (v->vid == p->core.vid) {
			if (same(v, p))
				return 1;
			NL_SET_ERR_MSG(ack, "a volume with this VID and other properties is there");
			return -EEXIST;
		}
		if (v->minor == p->minor) {
			NL_SET_ERR_MSG(ack, "another volume has this minor number");
			return -EEXIST;
		}
		if (!strcmp(v->name, p->name)) {
			NL_SET_ERR_MSG(ack, "another volume has this name");
			return -EEXIST;
		}
	}
	return 0;
}

static struct lks_volume *create(const struct lks_volume_params *p)
{
	struct lks_volume *v = kzalloc(sizeof(*v), GFP_KERNEL);

	if (!v)
		return NULL;
	v->vid = p->core.vid;
	v->minor = p->minor;
	v->block_size = p->core.block_size;
	v->class = p->core.shared;
	v->size = p->core.size;
	memcpy(v->uuid, p->core.uuid, sizeof(v->uuid));
	strscpy(v->name, p->name, sizeof(v->name));
	kref_init(&v->refs);
	mutex_init(&v->admin);
	mutex_init(&v->lock);
	spin_lock_init(&v->queue_lock);
	init_waitqueue_head(&v->wait);
	lks_list_init(&v->ios);
	lks_list_init(&v->completed);
	lks_list_init(&v->busy_ios);
	lks_list_init(&v->slow_ios);
	lks_list_init(&v->full_ios);
	init_waitqueue_head(&v->room);
	INIT_LIST_HEAD(&v->requests);
	INIT_LIST_HEAD(&v->done);
	INIT_LIST_HEAD(&v->opens);
	INIT_LIST_HEAD(&v->early);
	INIT_LIST_HEAD(&v->news);
	INIT_WORK(&v->submit_work, submit_work);
	INIT_WORK(&v->complete_work, complete_work);
	tasklet_setup(&v->complete, complete_softly);
	INIT_WORK(&v->slow_io_work, lks_backing_slow_work);
	INIT_DELAYED_WORK(&v->full_work, lks_backing_full_work);
	INIT_WORK(&v->news_work, lks_notify_work);
	INIT_WORK(&v->wake_work, lks_open_wake_work);
	INIT_DELAYED_WORK(&v->tick, tick);
	v->core = lks_vol_create(&p->core, &ops, v);
	if (v->core)
		return v;
	lks_volume_put(v);
	return NULL;
}

int lks_volume_add(const struct lks_volume_params *p, struct netlink_ext_ack *ack)
{
	struct lks_volume *v;
	u32 vid = p->core.vid;
	int err;

	mutex_lock(&lks_volumes_lock);
	err = check_new(p, ack);
	if (err)
		goto out;
	err = -ENOMEM;
	v = create(p);
	if (!v)
		goto out;
	err = idr_alloc_u32(&volumes, v, &vid, vid, GFP_KERNEL);
	if (err) {
		lks_volume_put(v);
		goto out;
	}
	__module_get(THIS_MODULE);
	lks_debugfs_add(v);
	kref_get(&v->refs);
	smp_mb();	/* pairs with lks_volume_sync_all_links() */
	lks_volume_lock(v);
	lks_volume_sync_links(v);
	lks_volume_unlock(v, true);
	queue_delayed_work(lks_wq, &v->tick, msecs_to_jiffies(LKS_TICK_MS));
	lks_volume_put(v);
out:
	mutex_unlock(&lks_volumes_lock);
	return err < 0 ? err : 0;
}

/* v->admin is held */
static int delete(struct lks_volume *v, struct netlink_ext_ack *ack)
{
	int err;

	if (v->backing) {
		NL_SET_ERR_MSG(ack, "a replica is attached: REPLICA_DETACH comes first");
		return -EBUSY;
	}
	err = lks_disk_del(v, ack);
	if (err)
		return err;
	mutex_lock(&lks_volumes_lock);
	idr_remove(&volumes, v->vid);
	mutex_unlock(&lks_volumes_lock);
	lks_volume_hold(v);
	v->dead = true;
	lks_volume_release(v);
	lks_debugfs_del(v);
	cancel_work_sync(&v->wake_work);
	cancel_delayed_work_sync(&v->tick);
	cancel_work_sync(&v->submit_work);
	cancel_work_sync(&v->complete_work);
	cancel_work_sync(&v->slow_io_work);
	tasklet_kill(&v->complete);
	flush_work(&v->news_work);
	return 0;
}

int lks_volume_del(u32 vid, struct netlink_ext_ack *ack)
{
	struct lks_volume *v = lks_volume_get(vid);
	bool was_dead;
	int err = 0;

	if (!v)
		return 0;
	if (mutex_lock_killable(&v->admin)) {
		lks_volume_put(v);
		return -EINTR;
	}
	was_dead = v->dead;
	if (!was_dead)
		err = delete(v, ack);
	mutex_unlock(&v->admin);
	if (!was_dead && !err) {
		lks_volume_put(v);	/* the table's */
		module_put(THIS_MODULE);
	}
	lks_volume_put(v);
	return err;
}

static void explain_attach(int err, struct netlink_ext_ack *ack)
{
	switch (err) {
	case -EUCLEAN:
		NL_SET_ERR_MSG(ack, "the metadata are damaged, or belong to another volume or host");
		break;
	case -EIO:
		NL_SET_ERR_MSG(ack, "the metadata could not be read");
		break;
	default:
		NL_SET_ERR_MSG(ack, "the replica could not be attached");
	}
}

/* META_MOVED only asks; the core changes over when it can, and forgets where to when it has detached. */
u64 lks_volume_meta_offset(struct lks_volume *v, const struct lks_vol_status *s)
{
	if (s->attached)
		v->backing->offset = s->meta_offset;
	return v->backing->offset;
}

static u64 meta_offset_now(struct lks_volume *v)
{
	struct lks_vol_status s;

	lks_vol_status(v->core, v->now_ms, &s);
	return lks_volume_meta_offset(v, &s);
}

/* Has this very replica been attached before? */
static bool is_attached(struct lks_volume *v, const char *path, u64 offset)
{
	bool is;

	lks_volume_lock(v);
	is = !v->detaching && !strcmp(v->backing->path, path) && meta_offset_now(v) == offset;
	lks_volume_release(v);
	return is;
}

/* Under v->admin. */
int lks_volume_attach(struct lks_volume *v, const char *path, u64 offset, bool thin, struct netlink_ext_ack *ack)
{
	struct lks_backing *b;
	unsigned int noio;
	int err;

	if (v->backing) {
		if (is_attached(v, path, offset))
			return 0;
		NL_SET_ERR_MSG(ack, "another replica is attached, or this one is being detached");
		return -EBUSY;
	}
	b = lks_backing_open(v, path, offset, thin, ack);
	if (IS_ERR(b))
		return PTR_ERR(b);

	spin_lock_irq(&v->queue_lock);
	v->full_over = false;
	v->full_ms = 0;
	spin_unlock_irq(&v->queue_lock);
	/* from here on the core is ours, though its lock is free: nobody shall wait for our disk without an end */
	lks_volume_lock(v);
	WRITE_ONCE(v->attaching, true);
	v->full = v->stuck = false;
	v->still_ticks = 0;
	lks_volume_release(v);
	/* to free memory might swap out to this very volume, and wait for this to end */
	noio = memalloc_noio_save();
	err = lks_vol_attach(v->core, offset, !thin, lks_backing_read, b, v->now_ms, &v->suspect, &v->disk_version,
			     &v->disk_term);
	memalloc_noio_restore(noio);
	lks_volume_hold(v);
	if (!err) {
		v->backing = b;
		v->detached = false;
	}
	WRITE_ONCE(v->attaching, false);
	wake_up_all(&v->wait);
	set_time(v);
	lks_volume_sync_links(v);
	lks_early_deliver(v);
	lks_volume_unlock(v, true);
	if (err) {
		explain_attach(err, ack);
		lks_backing_close(b);
	}
	return err;
}

/* Under v->admin. */
int lks_volume_detach(struct lks_volume *v, struct netlink_ext_ack *ack)
{
	struct lks_backing *b = v->backing;

	if (!b)
		return 0;
	lks_volume_lock(v);
	if (!v->detaching) {
		v->detaching = true;
		meta_offset_now(v);
		lks_vol_detach(v->core, v->now_ms);
	}
	lks_volume_unlock(v, true);
	lks_backing_wait_no_more(v);
	if (wait_event_killable(v->wait, READ_ONCE(v->detached))) {
		NL_SET_ERR_MSG(ack, "interrupted; the replica goes on detaching");
		return -EINTR;
	}
	lks_volume_hold(v);
	v->backing = NULL;
	v->detaching = false;
	lks_volume_release(v);
	/* whoever was still on his way out with the last I/O */
	flush_work(&v->complete_work);
	cancel_delayed_work_sync(&v->full_work);
	flush_work(&v->submit_work);
	flush_work(&v->slow_io_work);
	lks_backing_close(b);
	return 0;
}

int lks_volume_config(struct lks_volume *v, const struct lks_record *r, bool admit, struct netlink_ext_ack *ack)
{
	int err = 0;

	lks_volume_lock(v);
	if (!v->dead) {
		err = lks_vol_config(v->core, r, admit, v->now_ms);
		if (!err && r->version > v->record.version) {
			v->record = *r;
			trace_lockstep_config(v->vid, r);
		}
	}
	lks_volume_unlock(v, true);
	if (err)
		NL_SET_ERR_MSG(ack, "the record was refused");
	return err;
}

/* Under v->admin. */
int lks_volume_meta_move(struct lks_volume *v, u64 offset, u64 size, struct netlink_ext_ack *ack)
{
	struct lks_layout layout;
	int err;

	if (!v->backing) {
		NL_SET_ERR_MSG(ack, "no replica is attached");
		return -EINVAL;
	}
	lks_layout_of(size, v->block_size, &layout);
	if (offset && !lks_backing_holds(v->backing->bdev, offset, layout.total_bytes)) {
		NL_SET_ERR_MSG(ack, "the backing device is smaller than data and metadata would be");
		return -EFBIG;
	}
	lks_volume_lock(v);
	err = lks_vol_meta_move(v->core, offset, size, v->now_ms);
	lks_volume_unlock(v, true);
	if (err == -EBUSY)
		NL_SET_ERR_MSG(ack, "the metadata are being moved elsewhere");
	else if (err)
		NL_SET_ERR_MSG(ack, "the metadata cannot be moved there");
	return err;
}

/* Under v->admin. */
int lks_volume_meta_moved(struct lks_volume *v, u64 offset, struct netlink_ext_ack *ack)
{
	int err = -EINVAL;

	lks_volume_lock(v);
	if (v->backing)
		err = lks_vol_meta_moved(v->core, offset, v->now_ms);
	lks_volume_unlock(v, true);
	if (err)
		NL_SET_ERR_MSG(ack, "no such move of the metadata is under way");
	return err;
}

/* Under v->admin. */
int lks_volume_resize(struct lks_volume *v, u64 size, struct netlink_ext_ack *ack)
{
	int err;

	lks_volume_lock(v);
	err = lks_vol_resize(v->core, size, v->now_ms);
	if (!err)
		WRITE_ONCE(v->size, size);
	lks_volume_unlock(v, true);
	if (err)
		NL_SET_ERR_MSG(ack, "the size is smaller than it is, or the replica's metadata have not been moved");
	else
		lks_disk_resized(v);
	return err;
}

void lks_volume_abort(struct lks_volume *v)
{
	pr_warn("lockstep: volume %s: waiting requests are failed on demand\n", v->name);
	lks_volume_lock(v);
	if (!v->dead) {
		lks_vol_abort(v->core, -EIO, v->now_ms);
		if (!v->openers)
			lks_vol_abort(v->core, 0, v->now_ms);	/* whoever comes later is not meant */
	}
	lks_volume_unlock(v, true);
	lks_open_refuse(v, -EIO);
}

void lks_volume_exit(void)
{
	rcu_barrier();
	idr_destroy(&volumes);
}
