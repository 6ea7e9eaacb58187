// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sending: a queue of frames for each lane, and whoever empties it into the socket.
 *
 * The core queues frames under its volume's lock, so the frames of one volume are in each lane's queue in the order in
 * which the core gave them (C2). The queues have no bound of their own: the core's windows bound what it has in flight, and of
 * maps it asks how much there is room for (lks_host_room()).
 * A frame that cannot be queued breaks the link, since the core counts on either its arrival or the link's loss.
 *
 * The lane's thread is woken for frames that come from a softirq. Whoever else has queued frames empties the queue himself once he has
 * released the volume (lks_send_now()): to wake a thread for each write costs more than sending it. He waits for nothing but the
 * socket's lock: what the socket has no room for is left to the thread, in the middle of a frame if need be. One at a time
 * has the lane (lks_lane.busy). A task that plugs has more to say: its frames go when it unplugs, together (lks_send_unplugged()).
 *
 * Data go out by reference: nothing is written to a buffer once it is to be sent, and its pages are not used again before TCP has let
 * go of them (buf.c). Those of the reserve are copied into the socket: they are used again as soon as their buffer is put.
 */
#include <linux/blkdev.h>
#include <linux/kthread.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include "buf.h"
#include "compat/net.h"
#include "host.h"
#include "volume.h"

#define PACKET_BYTES (64u << 10)	/* TCP makes no larger ones */
#define INLINE_BYTES (256u << 10)	/* so much, somebody else's among it, and the thread goes on; */
#define CONTROL_BYTES (512u << 10)	/* 50 ms on 100 Mbit/s; the shortest promise is of seconds */
#define FRAME_BYTES (4u << 10)		/* a frame counts as this at least */

static void free_tx(struct lks_tx *tx)
{
	if (tx->buf)
		lks_buf_put(tx->buf);
	kfree(tx);
}

static struct lks_tx *create_tx(const struct lks_frame *h, struct lks_buf *buf, const void *bytes)
{
	size_t inlined = buf ? 0 : h->length;
	struct lks_tx *tx = kmalloc(struct_size(tx, bytes, inlined), lks_gfp());

	/* what is to be sent may be a page being swapped out: worth the emergency reserve */
	if (!tx)
		tx = kmalloc(struct_size(tx, bytes, inlined), GFP_NOWAIT | __GFP_MEMALLOC | __GFP_NOWARN);
	if (!tx)
		return NULL;
	tx->h = *h;
	lks_frame_seal(&tx->h);
	tx->buf = buf;
	if (buf)
		lks_buf_get(buf);
	else if (inlined)
		memcpy(tx->bytes, bytes, inlined);
	return tx;
}

/* peer->lock is held, the link is up */
static void enqueue(struct lks_lane *lane, struct lks_tx *tx)
{
	list_add_tail(&tx->link, &lane->queue);
	lane->queued_bytes += sizeof(tx->h) + tx->h.length;
	if (in_serving_softirq() && !lane->busy)
		wake_up(&lane->wait);
}

/*
 * Small frames: the lane of this processor, so that what one submits goes together. Large ones, which take time to encrypt
 * and to copy at the other end, and small ones while their lane has more than a packet to send: the lane with the shortest
 * queue, in turn among equals. Lane 0 stays free of what may be long where there is another: the leases' pings go there,
 * and a promise that waits behind megabytes runs out.
 */
static unsigned int choose(struct lks_link *link, u32 bytes)
{
	unsigned int first = link->nlanes > 1 ? LKS_CONTROL_LANE + 1 : 0, n = link->nlanes - first;
	unsigned int i, best = first + smp_processor_id() % n;

	if (bytes < PACKET_BYTES / 2 && link->lanes[best].queued_bytes < PACKET_BYTES)
		return best;
	best = first + link->turn++ % n;
	for (i = first; i < link->nlanes; i++)
		if (link->lanes[i].queued_bytes < link->lanes[best].queued_bytes)
			best = i;
	return best;
}

/* peer->lock is held */
static bool enqueue_all(struct lks_link *link, u8 lane, struct lks_tx **txs)
{
	unsigned int i;

	if (link->state != LKS_LINK_UP)
		return false;
	if (lane == LKS_LANE_ALL) {
		for (i = 0; i < link->nlanes; i++)
			enqueue(&link->lanes[i], txs[i]);
	} else if (lane == LKS_LANE_ANY) {
		enqueue(&link->lanes[choose(link, txs[0]->h.length)], txs[0]);
	} else {
		enqueue(&link->lanes[lane % link->nlanes], txs[0]);
	}
	return true;
}

u32 lks_host_room(u8 host, u64 number)
{
	struct lks_host *peer = lks_host_of(host);
	u64 queued = CONTROL_BYTES;

	spin_lock_bh(&peer->lock);
	if (peer->link && peer->link->number == number && peer->link->state == LKS_LINK_UP)
		queued = peer->link->lanes[LKS_CONTROL_LANE].queued_bytes;
	spin_unlock_bh(&peer->lock);
	return queued < CONTROL_BYTES ? CONTROL_BYTES - queued : 0;
}

void lks_host_send(u8 host, u64 number, u8 lane, const struct lks_frame *h, struct lks_buf *buf, const void *bytes)
{
	struct lks_host *peer = lks_host_of(host);
	struct lks_tx *txs[LKS_MAX_LANES];
	struct lks_host_info info;
	unsigned int i, ntx;
	bool queued;

	if (!number)
		return;
	/* frames are made without the spinlock; the link cannot change its number of lanes meanwhile, only end */
	ntx = 1;
	if (lane == LKS_LANE_ALL) {
		lks_host_info(host, &info);
		if (info.number != number || !info.up)
			return;
		ntx = info.nlanes;
	}
	for (i = 0; i < ntx; i++) {
		txs[i] = create_tx(h, buf, bytes);
		if (!txs[i]) {
			lks_host_break(host, number, "out of memory", false);
			goto out;
		}
	}
	spin_lock_bh(&peer->lock);
	queued = peer->link && peer->link->number == number && enqueue_all(peer->link, lane, txs);
	spin_unlock_bh(&peer->lock);
	if (queued)
		return;
out:
	while (i--)
		free_tx(txs[i]);
}

static void purge(struct lks_lane *lane)
{
	struct lks_tx *tx, *next;
	LIST_HEAD(queue);

	spin_lock_bh(&lane->link->peer->lock);
	list_splice_init(&lane->queue, &queue);
	lane->queued_bytes = 0;
	spin_unlock_bh(&lane->link->peer->lock);
	list_for_each_entry_safe(tx, next, &queue, link)
		free_tx(tx);
	if (lane->current_tx)
		free_tx(lane->current_tx);
	lane->current_tx = NULL;
}

/* ---- into the socket: by whoever has the lane ---- */

static u32 head_bytes(const struct lks_tx *tx)
{
	return sizeof(tx->h) + (tx->buf ? 0 : tx->h.length);	/* bytes[] follows h */
}

static int send_head(struct lks_lane *lane, struct lks_tx *tx, unsigned int flags)
{
	struct kvec head = { .iov_base = (u8 *)&tx->h + lane->current_sent, .iov_len = head_bytes(tx) - lane->current_sent };
	struct msghdr msg = { .msg_flags = flags };

	if (tx->buf)
		msg.msg_flags |= MSG_MORE;
	iov_iter_kvec(&msg.msg_iter, ITER_SOURCE, &head, 1, head.iov_len);
	return sock_sendmsg(lane->sock, &msg);
}

static int send_data(struct lks_lane *lane, struct lks_tx *tx, unsigned int flags)
{
	u32 skip = lane->current_sent - head_bytes(tx);
	struct msghdr msg = { .msg_flags = flags };

	if (!tx->buf->reserved)
		return lks_send_pages(lane->sock, tx->buf->vecs, tx->buf->nvecs, skip, tx->h.length - skip, flags);
	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, tx->buf->vecs, tx->buf->nvecs, tx->h.length);
	iov_iter_advance(&msg.msg_iter, skip);
	return sock_sendmsg(lane->sock, &msg);
}

/* The rest of the current frame. -EAGAIN: the socket has no room now, and flags say not to wait. */
static int send_current(struct lks_lane *lane, unsigned int flags)
{
	struct lks_tx *tx = lane->current_tx;
	u32 all = sizeof(tx->h) + tx->h.length;

	while (lane->current_sent < all) {
		int n = lane->current_sent < head_bytes(tx) ? send_head(lane, tx, flags) : send_data(lane, tx, flags);

		if (n <= 0)
			return n ? n : -EPIPE;
		lane->current_sent += n;
	}
	lane->current_tx = NULL;
	free_tx(tx);
	return 0;
}

/* peer->lock is held */
static bool has_frames(const struct lks_lane *lane)
{
	return lane->current_tx || !list_empty(&lane->queue);
}

/* peer->lock is held */
static bool try_claim(struct lks_lane *lane)
{
	if (lane->link->state != LKS_LINK_UP || lane->busy || !has_frames(lane))
		return false;
	lane->busy = true;
	return true;
}

static bool claim(struct lks_lane *lane)
{
	spinlock_t *lock = &lane->link->peer->lock;
	bool mine;

	spin_lock_bh(lock);
	mine = try_claim(lane);
	spin_unlock_bh(lock);
	return mine;
}

/* After this the lane is not ours any more, and may not even be there. */
static void unclaim(struct lks_lane *lane)
{
	spinlock_t *lock = &lane->link->peer->lock;

	spin_lock_bh(lock);
	lane->busy = false;
	lane->left++;
	wake_up(&lane->wait);		/* the thread, if there are frames; whoever wants to remove the lane */
	spin_unlock_bh(lock);
}

/* Makes the next frame current. false: there is none, and the lane is not ours any more. */
static bool next_frame(struct lks_lane *lane, bool *more)
{
	spinlock_t *lock = &lane->link->peer->lock;
	struct lks_tx *tx;

	spin_lock_bh(lock);
	if (!lane->current_tx) {
		tx = list_first_entry_or_null(&lane->queue, struct lks_tx, link);
		if (!tx) {
			lane->busy = false;
			if (lane->link->state != LKS_LINK_UP)
				wake_up(&lane->wait);
			spin_unlock_bh(lock);
			return false;
		}
		list_del(&tx->link);
		lane->queued_bytes -= sizeof(tx->h) + tx->h.length;
		lane->sent++;
		lane->sent_bytes += sizeof(tx->h) + tx->h.length;
		lane->current_tx = tx;
		lane->current_sent = 0;
	}
	*more = !list_empty(&lane->queue);
	spin_unlock_bh(lock);
	return true;
}

/*
 * Empties the queue of a lane that is ours, which it is no more when this returns. The socket is locked while TCP and TLS look for
 * memory. If they tried to free some, that would wait for pages to be swapped out, which may be what we are here to send.
 */
static int empty(struct lks_lane *lane, unsigned int flags, u64 most_bytes)
{
	unsigned int noreclaim = memalloc_noreclaim_save();
	bool ours = true, more;
	u64 sent = 0;
	int err = 0;

	while (!err && sent < most_bytes && (ours = next_frame(lane, &more))) {
		sent += max(lane->current_tx->h.length, FRAME_BYTES);
		err = send_current(lane, flags | MSG_NOSIGNAL | (more ? MSG_MORE : 0));
	}
	memalloc_noreclaim_restore(noreclaim);
	if (ours)
		unclaim(lane);
	return err;
}

int lks_send_thread(void *arg)
{
	struct lks_lane *lane = arg;
	int err = 0;

	if (lks_lane_wait_up(lane)) {
		while (!err) {
			bool mine = false;

			wait_event_idle(lane->wait, (mine = claim(lane)) || kthread_should_stop());
			if (!mine)
				break;
			err = empty(lane, 0, U64_MAX);
		}
		if (err)
			lks_lane_failed(lane, "sending failed");
	}
	wait_event_idle(lane->wait, kthread_should_stop());
	return 0;
}

static bool is_busy(struct lks_lane *lane)
{
	bool busy;

	spin_lock_bh(&lane->link->peer->lock);
	busy = lane->busy;
	spin_unlock_bh(&lane->link->peer->lock);
	return busy;
}

void lks_send_end(struct lks_lane *lane)
{
	wait_event_idle(lane->wait, !is_busy(lane));
	purge(lane);
}

/* ---- by those who queued the frames ---- */

/* A lane of the link that stands now, from *i on; it is ours. NULL: there is none with frames that nobody sends. */
static struct lks_lane *claim_next(struct lks_host *peer, unsigned int *i)
{
	struct lks_lane *lane = NULL;

	spin_lock_bh(&peer->lock);
	while (!lane && peer->link && *i < peer->link->nlanes) {
		lane = &peer->link->lanes[(*i)++];
		if (!try_claim(lane))
			lane = NULL;
	}
	spin_unlock_bh(&peer->lock);
	return lane;
}

static void send_to(struct lks_host *peer)
{
	struct lks_lane *lane;
	unsigned int i = 0;

	while ((lane = claim_next(peer, &i))) {
		u64 number = lane->link->number;
		int err = empty(lane, MSG_DONTWAIT, INLINE_BYTES);

		/* the thread, which has been woken, goes on with what the socket has no room for, and when it has had enough of us */
		if (err && err != -EAGAIN)
			lks_host_break(peer->host, number, "sending failed", false);
	}
}

static void wake_for(struct lks_host *peer)
{
	unsigned int i;

	spin_lock_bh(&peer->lock);
	for (i = 0; peer->link && i < peer->link->nlanes; i++)
		if (has_frames(&peer->link->lanes[i]) && !peer->link->lanes[i].busy)
			wake_up(&peer->link->lanes[i].wait);
	spin_unlock_bh(&peer->lock);
}

static void for_each(u64 hosts, void (*what)(struct lks_host *peer))
{
	for (; hosts; hosts &= hosts - 1)
		what(lks_host_of(__ffs64(hosts) + 1));
}

void lks_send_now(u64 hosts)
{
	for_each(hosts, LKS_SEND_INLINE ? send_to : wake_for);
}

struct plugged {
	struct blk_plug_cb cb;
	u64 hosts;
	u32 bytes;
};

static void unplug(struct blk_plug_cb *cb, bool from_schedule)
{
	struct plugged *p = container_of(cb, struct plugged, cb);
	u64 hosts = p->hosts;

	kfree(p);
	/* about to sleep: no place to wait for a socket's lock */
	if (from_schedule)
		for_each(hosts, wake_for);
	else
		lks_send_now(hosts);
}

void lks_send_unplugged(u64 hosts, u32 bytes)
{
	struct blk_plug_cb *cb = blk_check_plugged(unplug, NULL, sizeof(struct plugged));
	struct plugged *p = container_of(cb, struct plugged, cb);

	if (!cb) {
		lks_send_now(hosts);
		return;
	}
	p->hosts |= hosts;
	p->bytes += bytes;
	if (p->bytes < PACKET_BYTES)
		return;
	hosts = p->hosts;
	p->hosts = 0;
	p->bytes = 0;
	lks_send_now(hosts);
}
