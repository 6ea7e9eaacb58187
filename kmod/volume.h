/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A volume on this host: the core's state of it, the lock around that, and what surrounds it.
 *
 * Lock order, outermost first; nothing else nests:
 *
 *	lks_volume.admin	mutex: one command at a time on a volume (attach, detach, device)
 *	lks_volumes_lock	mutex: the table of volumes (add, delete; volume.c)
 *	lks_host.admin		mutex: one command at a time on a peer
 *	gendisk.open_mutex	the block layer's, around open() and release()
 *	lks_volume.lock		mutex: the core
 *	(ownership)		a flag, see below
 *	lks_host.lock		spinlock, bh: the link to a peer and its transmit queues
 *	lks_volume.queue_lock	spinlock, irq: I/O done by the backing device, events not sent yet
 *	lks_event_lock		mutex: the events' sequence (event.c). Never together with a spinlock
 *
 * The core's lock is a mutex: who calls it may sleep, allocations under it may wait a moment (GFP_NOIO) instead of failing, and a
 * contended mutex spins before it sleeps. Nobody waits for a disk or a peer under it. The exception are completions of the
 * backing device: waking a thread for each cost more than all else that is done for it. They come from a softirq, which cannot take
 * a mutex. So whoever has the mutex also owns the volume by a flag under queue_lock, and so does the softirq without the mutex: it
 * does what needs no memory that may be missing (lks_vol_io_is_quick()) and leaves the rest, and all if it finds the volume owned.
 *
 * The core's actions are queued under the lock and carried out by lks_volume_unlock(), which every caller of the core ends
 * with. Only frames go to their lane's queue at once, since their order counts (C2); they are sent after the unlock.
 */
#ifndef LKS_VOLUME_H
#define LKS_VOLUME_H

#include <linux/interrupt.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include "core/core.h"

struct dentry;
struct gendisk;
struct lks_backing;
struct lks_link;
struct lks_trail;
struct netlink_ext_ack;

struct lks_volume {
	/* what VOLUME_ADD said; constant */
	u32 vid;
	u32 minor;
	u32 block_size;
	u8 class;
	u8 uuid[16];
	char name[LKS_NAME_MAX + 1];

	struct kref refs;
	struct rcu_head rcu;
	struct mutex admin;
	struct mutex lock;
	wait_queue_head_t wait;		/* woken by changes of the fields below that somebody waits for */

	/* under lock */
	struct lks_vol *core;
	u64 size;			/* bytes; changed by RESIZE under admin, too */
	bool attaching;			/* lks_vol_attach() runs: it has the core to itself without holding the lock */
	bool dead;			/* VOLUME_DEL: no more calls of the core */
	size_t allocated;		/* bytes the core has */
	u64 now_ms;			/* time of the last call */
	u64 link[LKS_MAX_HOSTS + 1];	/* the link the core believes to be up, 0: none */
	struct lks_record record;	/* the newest that CONFIG_SET brought */
	struct lks_vol_tune tune;	/* VOLUME_TUNE */
	struct lks_list ios;		/* to be submitted */
	u64 to_send;			/* hosts for whom frames were queued, from a thread; bit 0: host 1 */
	struct list_head requests;	/* struct lks_bio: the core has them; the oldest first */
	struct list_head done;		/* struct lks_bio: ended */
	bool frozen;			/* as last traced */
	bool full;			/* as last told: the pool has no room */
	bool stuck;			/* as last told: the disk answers nothing */
	u32 still_ticks;		/* for so many ticks it has had something to do and answered nothing */
	struct list_head early;		/* frames that came during an attach; early.c */
	size_t early_bytes;
	bool fenced;			/* O1: whoever writes now does so no more, until the last one has closed */
	bool syncing;			/* counted among the volumes that resync */
	bool detached;

	/* under admin, changed under lock */
	struct lks_backing *backing;
	bool detaching;
	bool suspect;			/* as found at attach */
	u64 disk_version, disk_term;

	/* the device: under lock */
	struct gendisk *disk;
	bool device_going;		/* no more opens */
	u32 openers, writers, open_waiters;
	bool waking;			/* wake_work waits for a session */
	struct list_head opens;		/* struct lks_opener, for debugfs */
	u32 open_news;			/* +1 whenever what an open waits for may have changed */
	u64 session_ended;		/* sessions up to this one were closed here */
	u64 unused_ms;			/* since when a session is granted that nobody wants, 0: none */
	u32 refusals;			/* OPEN_REFUSEs and ABORTs so far */
	int refused;			/* error of the last one */
	struct lks_trail *trail;	/* NULL: nobody asked for one; trail.h */
	u64 holder_told;		/* session of another host that the log has been told of, as what keeps us from opening */

	atomic_long_t request_bytes;	/* room that the requests under way have taken; device.c */
	wait_queue_head_t room;

	atomic_t disk_ios;		/* lks_io that the core has submitted and not got back */
	bool disk_moved;		/* it has answered since the last tick */

	/* under queue_lock */
	spinlock_t queue_lock;
	bool owned;			/* by whoever has the lock, or by the softirq */
	struct lks_list busy_ios;	/* lks_io that could not be submitted without waiting for the device */
	struct lks_list completed;	/* lks_io the backing device is done with */
	struct lks_list slow_ios;	/* lks_io for slow_io_work */
	struct lks_list full_ios;	/* lks_io that wait for room in the pool */
	bool full_over;			/* the replica is being detached: nothing waits for room */
	u64 full_ms;			/* when the pool last had no room, 0: never */
	struct list_head news;		/* events to be sent, one after the other; notify.c */
	u32 nnews;
	bool news_lost;
	bool state_news;		/* EV_STATE is to be sent */
	bool proposal_news;		/* EV_PROPOSE is, with: */
	struct lks_record proposal;
	struct lks_record proposing;	/* of news_work alone: the one that it sends */

	struct work_struct submit_work;		/* submits ios for those who may not wait for a disk */
	struct tasklet_struct complete;		/* completed -> core */
	struct work_struct complete_work;	/* what of that needs a thread */
	struct work_struct slow_io_work;
	struct delayed_work full_work;
	struct work_struct news_work;
	struct work_struct wake_work;		/* finds a primary to read from */
	struct delayed_work tick;

	struct dentry *debugfs;
};

/* One reference, or NULL. */
struct lks_volume *lks_volume_get(u32 vid);
/* The first volume with at least this vid, with one reference, or NULL. */
struct lks_volume *lks_volume_next(u32 vid);
void lks_volume_put(struct lks_volume *v);

/*
 * Locks the core. Waits while an attach has it. The core may be used only if v->dead is false.
 * stop: give up and return false (not locked) when it becomes true while we wait for an attach.
 */
void lks_volume_lock(struct lks_volume *v);
bool lks_volume_lock_unless(struct lks_volume *v, bool (*stop)(void *arg), void *arg);
bool lks_volume_trylock(struct lks_volume *v);		/* waits for nobody */

/*
 * The lock alone, for fields that it protects: no wait for an attach, no calls of the core, which would leave things to be carried
 * out.
 */
void lks_volume_hold(struct lks_volume *v);
void lks_volume_release(struct lks_volume *v);

/* Unlocks, and carries out what the core has asked for. may_wait: submitting to a busy disk may block us. */
void lks_volume_unlock(struct lks_volume *v, bool may_wait);
/* The same, but frames may go when current unplugs. bytes: of the bio that it has submitted. */
void lks_volume_unlock_plugged(struct lks_volume *v, bool may_wait, u32 bytes);

/*
 * Under the lock: if nobody writes or waits to, the session this host has is over and never used again. Returns it, to be
 * reported by EV_CLOSE, or 0.
 */
u64 lks_volume_end_session(struct lks_volume *v);

/* Under the lock: tells the core which links are up now. */
void lks_volume_sync_links(struct lks_volume *v);
/* For all volumes; done when it returns, except for those being attached, which do it by themselves. */
void lks_volume_sync_all_links(void);

/*
 * n frames came over link from its host, in this order; several only if they have no payload. They were checked. -EPROTO: close the
 * link. stop(arg): the lane is to end, should it have to wait for an attach.
 */
int lks_volume_receive(struct lks_volume *v, struct lks_link *link, const struct lks_frame *h, unsigned int n, struct lks_buf *buf,
		       const void *bytes, bool (*stop)(void *arg), void *arg);

/* Under the lock, no attach under way: the core gets the frame if the link of this number is (still) the host's. As above. */
int lks_volume_deliver(struct lks_volume *v, u8 host, u64 number, const struct lks_frame *h, struct lks_buf *buf, const void *bytes);

/*
 * early.c. Under the lock. keep: during an attach, false if there is no room (the frame is the caller's still); deliver: after it. buf
 * and bytes remain the caller's.
 */
bool lks_early_keep(struct lks_volume *v, u8 host, u64 number, const struct lks_frame *h, struct lks_buf *buf, const void *bytes);
void lks_early_deliver(struct lks_volume *v);

/* Commands. 0 or a negative errno with a message in ack. */
struct lks_volume_params {
	struct lks_vol_params core;
	const char *name;
	u32 minor;
};
int lks_volume_add(const struct lks_volume_params *p, struct netlink_ext_ack *ack);
int lks_volume_del(u32 vid, struct netlink_ext_ack *ack);
int lks_volume_attach(struct lks_volume *v, const char *path, u64 offset, bool thin, struct netlink_ext_ack *ack);
int lks_volume_detach(struct lks_volume *v, struct netlink_ext_ack *ack);
int lks_volume_config(struct lks_volume *v, const struct lks_record *r, bool admit, struct netlink_ext_ack *ack);
int lks_volume_meta_move(struct lks_volume *v, u64 offset, u64 size, struct netlink_ext_ack *ack);
int lks_volume_meta_moved(struct lks_volume *v, u64 offset, struct netlink_ext_ack *ack);
int lks_volume_resize(struct lks_volume *v, u64 size, struct netlink_ext_ack *ack);
void lks_volume_abort(struct lks_volume *v);
/* Under the lock, with a backing device; s: what the core says now. Where the metadata are that an attach would have to read. */
u64 lks_volume_meta_offset(struct lks_volume *v, const struct lks_vol_status *s);

void lks_volume_exit(void);

/* notify.c: ops->event; the lock is held. The work tells the daemon. */
void lks_notify(struct lks_volume *v, const struct lks_event_info *info);
void lks_notify_work(struct work_struct *work);
void lks_notify_purge(struct lks_volume *v);

/* memory.c; ctx: the struct lks_volume */
void *lks_core_alloc(void *ctx, size_t bytes);
void lks_core_free(void *ctx, void *p, size_t bytes);

/* For small things that the core needs, wherever it was called from. */
static inline gfp_t lks_gfp(void)
{
	return (in_serving_softirq() ? GFP_ATOMIC : GFP_NOIO | __GFP_NORETRY) | __GFP_NOWARN;
}

/* main.c */
extern struct workqueue_struct *lks_wq;		/* short work that waits for nobody: ticks */
extern struct workqueue_struct *lks_disk_wq;	/* short work on the way of I/O; a busy disk may block it */
extern struct workqueue_struct *lks_slow_wq;	/* waits for transfers of a disk */
extern struct workqueue_struct *lks_link_wq;	/* ends of links, events: waits for our own threads, for a listener */
extern struct workqueue_struct *lks_open_wq;	/* waits for the cluster */
extern u8 lks_self;				/* HOST_SET */
extern u32 lks_lease_ms;			/* TUNE */
extern unsigned int lks_answer_ms;		/* module parameter */

#endif
