// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Opening and closing a volume's device.
 *
 * Opening for writing waits until the cluster has granted this host a session (O2): the daemon is asked by EV_OPEN, again
 * each second since it may have restarted meanwhile. The wait is bounded: by open_timeout_ms, by the volume's FREEZE_MS, by
 * OPEN_REFUSE and ABORT. Opening for reading needs no session and does not wait: udev opens every device just to lock it. A
 * read does need a primary; if there is none yet, a session of a moment brings one about.
 *
 * The block layer calls open() with a mutex of the disk held, so whoever opens or closes the same device would wait behind
 * an open that waits. It is let go meanwhile: nothing that it protects is half done at that point, and the disk does not
 * go away as long as somebody waits here (lks_disk_del()).
 *
 * O1: when another host has taken the volume over, what is still open here can write no more, not even in a session
 * granted to this host later: only when the last writer has closed it may it be opened for writing again.
 *
 * From 6.5 on the block layer does not say whose end a close is. There, a session lasts until the device is closed by
 * everybody, readers included.
 */
#include <linux/blkdev.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include "compat/block.h"
#include "device.h"
#include "event.h"

#define OPEN_REPEAT_MS 1000

static unsigned int open_timeout_ms = 20000;
module_param(open_timeout_ms, uint, 0644);
MODULE_PARM_DESC(open_timeout_ms, "how long an open for writing waits for the cluster (milliseconds)");

static void let_go(struct gendisk *disk)
{
#ifdef LKS_HAVE_open_mutex
	if (disk)
		mutex_unlock(&disk->open_mutex);
#endif
}

static void take_again(struct gendisk *disk)
{
#ifdef LKS_HAVE_open_mutex
	if (disk)
		mutex_lock(&disk->open_mutex);
#endif
}

/* ---- who has it open: for people, see debugfs.c ---- */

static struct lks_opener *create_opener(bool writes)
{
	struct lks_opener *o = kzalloc(sizeof(*o), GFP_NOIO);

	if (!o)
		return NULL;
	o->writes = writes;
	o->pid = task_tgid_nr(current);
	get_task_comm(o->command, current);
	return o;
}

/* The lock is held. */
static void note_opener(struct lks_volume *v, struct lks_opener *o)
{
	o->since_ms = v->now_ms;
	list_add_tail(&o->link, &v->opens);
	v->openers++;
	v->writers += o->writes;
}

/* The lock is held. The one of this process if there is one: a file may have been handed on. */
static void forget_opener(struct lks_volume *v, enum lks_close who)
{
	pid_t pid = task_tgid_nr(current);
	struct lks_opener *o, *found = NULL;

	list_for_each_entry(o, &v->opens, link)
		if ((who == LKS_CLOSE_ANY || o->writes == (who == LKS_CLOSE_WRITER)) && (!found || found->pid != pid))
			found = o;
	if (!WARN_ON_ONCE(!found)) {
		list_del(&found->link);
		kfree(found);
	}
}

/* ---- waiting for a session ---- */

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

/* v->lock is held, and let go meanwhile. */
static int wait_for_session(struct lks_volume *v, u32 refusals)
{
	unsigned long begin = jiffies;
	int state;

	while (!(state = open_state(v, refusals))) {
		bool freezes = v->tune.freeze_ms && v->tune.freeze_ms < open_timeout_ms;
		unsigned long deadline = begin + msecs_to_jiffies(freezes ? v->tune.freeze_ms : open_timeout_ms);
		u32 news = v->open_news;

		if (fatal_signal_pending(current))
			return -EINTR;
		if (time_after_eq(jiffies, deadline))
			return freezes ? -EIO : -ETIMEDOUT;
		lks_volume_unlock(v, true);
		lks_event_open(v->vid);
		wait_event_killable_timeout(v->wait, READ_ONCE(v->open_news) != news,
					    clamp_t(long, deadline - jiffies, 1, msecs_to_jiffies(OPEN_REPEAT_MS)));
		lks_volume_lock(v);
	}
	return state;
}

/* v->lock is held, and let go meanwhile. 1: there is a session; or an error. */
static int get_session(struct lks_volume *v, struct gendisk *disk)
{
	u32 refusals = v->refusals;
	int state = open_state(v, refusals);

	if (state)
		return state;
	if (disk) {
		v->open_waiters++;
		lks_vol_abort(v->core, 0, v->now_ms);	/* a reader's wish for a primary is no reason to go on */
	} else {
		v->waking = true;
	}
	lks_vol_open(v->core, v->now_ms);
	while (!(state = open_state(v, refusals))) {
		let_go(disk);
		state = wait_for_session(v, refusals);
		if (!disk)
			break;
		/* the disk's mutex is the outer one */
		lks_volume_unlock(v, true);
		take_again(disk);
		lks_volume_lock(v);
		if (state < 0)
			break;
	}
	if (disk)
		v->open_waiters--;
	else
		v->waking = false;
	return state;
}

static void unlock_and_end(struct lks_volume *v)
{
	u64 session = lks_volume_end_session(v);

	lks_volume_unlock(v, true);
	if (session)
		lks_event_close(v->vid, session);
}

int lks_open(struct lks_volume *v, struct gendisk *disk, bool writes)
{
	struct lks_opener *o = create_opener(writes);
	int state;

	if (!o)
		return -ENOMEM;
	if (!writes) {
		lks_volume_hold(v);
		state = v->device_going ? -ENXIO : 0;
		if (!state)
			note_opener(v, o);
		lks_volume_release(v);
	} else {
		lks_volume_lock(v);
		state = get_session(v, disk);
		if (state > 0) {
			note_opener(v, o);
			lks_volume_unlock(v, true);
			return 0;
		}
		unlock_and_end(v);
	}
	if (state)
		kfree(o);
	return state;
}

void lks_close(struct lks_volume *v, struct gendisk *disk, enum lks_close who)
{
	/* a reader that stays keeps the page cache: what is dirty in it needs the session */
	if (who == LKS_CLOSE_WRITER && READ_ONCE(v->writers) == 1)
		lks_sync_disk(disk);
	lks_volume_lock(v);
	forget_opener(v, who);
	v->openers--;
	if (who == LKS_CLOSE_WRITER)
		v->writers--;
	else if (!v->openers)
		v->writers = 0;
	if (!v->openers)
		lks_vol_abort(v->core, 0, v->now_ms);	/* ABORT was meant for those who have closed it now */
	if (who == LKS_CLOSE_READER)
		lks_volume_unlock(v, true);
	else
		unlock_and_end(v);
}

/*
 * Somebody reads, and nobody has opened the volume for writing since it was created or lost its primary. A session, held
 * for a moment, makes the cluster choose a primary, which stays when the session ends; the read waits in the core. If
 * another host is faster with its session, that has the same effect.
 */
void lks_open_wake_work(struct work_struct *work)
{
	struct lks_volume *v = container_of(work, struct lks_volume, wake_work);
	int state;

	lks_volume_lock(v);
	state = get_session(v, NULL);
	unlock_and_end(v);
	if (state == -ETIMEDOUT && !READ_ONCE(v->record.primary))
		queue_work(lks_open_wq, work);
}

/* ---- being told no ---- */

/* The lock is held. Whose session keeps this host from opening: told once, however often it is tried. */
static void tell_holder(struct lks_volume *v)
{
	const struct lks_record *r = &v->record;
	unsigned int i;

	for (i = 0; i < r->nopeners; i++) {
		if (r->openers[i].host == lks_self || r->openers[i].session == v->holder_told)
			continue;
		v->holder_told = r->openers[i].session;
		pr_info("lockstep: volume %s: cannot be opened for writing: host %u has it open\n", v->name, r->openers[i].host);
		return;
	}
}

void lks_open_refuse(struct lks_volume *v, int err)
{
	lks_volume_hold(v);
	if (err == -EBUSY)
		tell_holder(v);
	v->refused = err;
	v->refusals++;
	v->open_news++;
	lks_volume_release(v);
	wake_up_all(&v->wait);
}
