/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Peers, links and lanes: the other hosts, and the connections to them that all volumes share.
 *
 * A *link* to a host is a set of lanes (TCP connections, dialled and authenticated by the daemons) that comes and goes as
 * one. Each lane has a thread that receives and one that sends, beside those who send their own frames (send.c). A link is
 * born with its first LANE_ADD (BUILDING), is UP when all its lanes are there, and CLOSING as soon as any of them ends,
 * for whatever reason; its closing shuts all its sockets down, waits for its threads, drops what is queued, tells every
 * volume, and then the daemon. A newer link to the same host begins only after that.
 *
 * Whether a volume's core believes the link to be up is a matter between the volume and the core (lks_volume.link): every
 * change of a link makes all volumes look at the links again (lks_volume_sync_links()). So the core always sees a link's
 * loss before the next link, and no volume that is busy elsewhere holds up the others.
 *
 * A struct lks_link lives from the first LANE_ADD to the end of its close_work, which waits for its threads.
 */
#ifndef LKS_HOST_H
#define LKS_HOST_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include "core/core.h"

#define LKS_CONTROL_LANE 0		/* carries no data if the link has another */
#define LKS_SILENT_TCP_MS 10000		/* TCP gives up on data that were not acknowledged for so long */
#define LKS_KEEPALIVE_IDLE_S 3		/* an idle lane is probed after this, */
#define LKS_KEEPALIVE_INTERVAL_S 1	/* this often, */
#define LKS_KEEPALIVE_PROBES 5		/* and given up after so many without an answer */

struct socket;
struct netlink_ext_ack;
struct lks_host;

enum lks_link_state { LKS_LINK_BUILDING, LKS_LINK_UP, LKS_LINK_CLOSING };

/* A frame waiting in a lane's queue. */
struct lks_tx {
	struct list_head link;
	struct lks_buf *buf;	/* a reference, or NULL: */
	struct lks_frame h;	/* then h.length bytes of payload follow */
	u8 bytes[];
};

struct lks_lane {
	struct lks_link *link;
	u8 index;
	struct socket *sock;		/* with a reference to its file; NULL: not there yet. Cleared under peer->lock */
	struct task_struct *sender, *receiver;
	struct list_head queue;		/* struct lks_tx; under peer->lock */
	u64 queued_bytes;		/* under peer->lock */
	u64 sent, received;		/* frames; sent: under peer->lock */
	u64 sent_bytes;			/* of those frames; under peer->lock */
	bool busy;			/* somebody sends: whoever has set it, under peer->lock; the next two fields are his */
	struct lks_tx *current_tx;	/* out of the queue, and not wholly in the socket */
	u32 current_sent;		/* bytes of it that are */
	u64 left;			/* how often who sent his own frames left some to the thread; under peer->lock */
	wait_queue_head_t wait;		/* of the sender and of a receiver that waits for the link */
};

struct lks_link {
	struct lks_host *peer;
	u64 number;
	u8 nlanes;
	u8 nready;			/* lanes that are there; under peer->admin */
	enum lks_link_state state;	/* under peer->lock; CLOSING is final */
	bool silent;			/* L4: closed because the host did not answer */
	unsigned int turn;		/* counts large frames for LKS_LANE_ANY; under peer->lock */
	const char *reason;		/* why it closes; a constant */
	struct work_struct close_work;
	struct lks_lane lanes[LKS_MAX_LANES];
};

struct lks_host {
	u8 host;
	struct mutex admin;
	spinlock_t lock;
	bool set;			/* PEER_SET. Under admin and lock */
	u64 newest;			/* largest link number seen. Under admin */
	struct lks_link *link;		/* under lock; set under admin, cleared by close_work */
	wait_queue_head_t gone;		/* link became NULL */
};

struct lks_host_info {
	bool set, up;
	u8 nlanes;
	u64 number;	/* 0: no link */
};

/* host is 1 .. LKS_MAX_HOSTS; never NULL */
struct lks_host *lks_host_of(u8 host);

int lks_host_set(u8 host, struct netlink_ext_ack *ack);
int lks_host_del(u8 host, struct netlink_ext_ack *ack);
/* Takes its own reference to fd's file. */
int lks_host_add_lane(u8 host, u8 lane, u8 nlanes, u64 number, int fd, struct netlink_ext_ack *ack);
void lks_host_info(u8 host, struct lks_host_info *info);

/* Number of the link to host if it is up, else 0. Any context. */
u64 lks_host_up(u8 host);

/*
 * How many bytes may be queued for the control lane of the link `number` before that makes what comes after wait for too long: leases'
 * pings are sent there, and maps of megabytes. 0: none, or the link is not up. Any context.
 */
u32 lks_host_room(u8 host, u64 number);

/*
 * Closes the link `number` to host if it is still the one; the rest happens later. reason: a constant. silent: rule L4.
 * Any context that may take peer->lock.
 */
void lks_host_break(u8 host, u64 number, const char *reason, bool silent);

/*
 * ops->send for the link `number`, see core.h. Dropped if it is not up. Called with a volume's lock held, after whose release
 * lks_send_now() or lks_send_unplugged() must follow, unless in a softirq.
 */
void lks_host_send(u8 host, u64 number, u8 lane, const struct lks_frame *h, struct lks_buf *buf, const void *bytes);

/* A lane's life; lane.c. add: takes over the socket on success. */
int lks_lane_add(struct lks_lane *lane, struct socket *sock);
void lks_lane_shutdown(struct lks_lane *lane);
void lks_lane_remove(struct lks_lane *lane);
/* The lane has come to its end: closes the link; the calling thread may return when told to stop. */
void lks_lane_failed(struct lks_lane *lane, const char *reason);
/* Waits until the link is up. false: it never will be. */
bool lks_lane_wait_up(struct lks_lane *lane);

int lks_send_thread(void *lane);	/* send.c */
void lks_send_end(struct lks_lane *lane);	/* its thread has been stopped: nobody sends any more when this returns */
int lks_receive_thread(void *lane);	/* receive.c */

/*
 * Sends what is queued for these hosts (bit 0: host 1): as much as their sockets take at once, the rest by the lanes' threads. May
 * sleep, but waits for no peer. No volume's lock may be held.
 */
void lks_send_now(u64 hosts);
/* The same when current unplugs, if it has a plug, or has queued enough (bytes: this time). For bios, which plugs are for. */
void lks_send_unplugged(u64 hosts, u32 bytes);

void lks_host_init(void);
void lks_host_exit(void);

#endif
