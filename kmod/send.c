// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sending: a queue of frames for each lane, and the thread that empties it into the socket.
 *
 * The core queues frames under its volume's lock, so the frames of one volume are in each lane's queue in the order in
 * which the core gave them (C2). The queues have no bound of their own: the core's windows bound what it has in flight.
 * A frame that cannot be queued breaks the link, since the core counts on either its arrival or the link's loss.
 *
 * Data go out by reference: nothing is written to a buffer once it is to be sent, and its pages are not used again before TCP has let
 * go of them (buf.c). Those of the reserve are copied into the socket: they are used again as soon as their buffer is put.
 */
#include <linux/kthread.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include "buf.h"
#include "compat/net.h"
#include "host.h"
#include "volume.h"

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
	bool idle = list_empty(&lane->queue);

	list_add_tail(&tx->link, &lane->queue);
	lane->queued_bytes += sizeof(tx->h) + tx->h.length;
	if (idle)
		wake_up(&lane->wait);
}

/*
 * The lane with the shortest queue, in turn among equals. Lane 0 stays free of what may be long where there is another: the
 * leases' pings go there, and a promise that waits behind megabytes runs out.
 */
static unsigned int choose(struct lks_link *link)
{
	unsigned int first = link->nlanes > 1 ? LKS_CONTROL_LANE + 1 : 0;
	unsigned int i, best = first + link->turn++ % (link->nlanes - first);

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
		enqueue(&link->lanes[choose(link)], txs[0]);
	} else {
		enqueue(&link->lanes[lane % link->nlanes], txs[0]);
	}
	return true;
}

void lks_host_send(u8 host, u64 number, u8 lane, const struct lks_frame *h, struct lks_buf *buf, const void *bytes)
{
	struct lks_host *peer = lks_host_of(host);
	struct lks_tx *txs[LKS_MAX_LANES];
	struct lks_host_info info;
	unsigned int i, ntx;
	bool queued;

	/* frames are made without the spinlock; the link cannot change its number of lanes meanwhile, only end */
	lks_host_info(host, &info);
	if (!number || info.number != number || !info.up)
		return;
	ntx = lane == LKS_LANE_ALL ? info.nlanes : 1;
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

void lks_send_purge(struct lks_lane *lane)
{
	struct lks_tx *tx, *next;
	LIST_HEAD(queue);

	spin_lock_bh(&lane->link->peer->lock);
	list_splice_init(&lane->queue, &queue);
	lane->queued_bytes = 0;
	spin_unlock_bh(&lane->link->peer->lock);
	list_for_each_entry_safe(tx, next, &queue, link)
		free_tx(tx);
}

static int send_all(struct socket *sock, struct msghdr *msg)
{
	while (msg_data_left(msg)) {
		int n = sock_sendmsg(sock, msg);

		if (n <= 0)
			return n ? n : -EPIPE;
	}
	return 0;
}

static int send_frame(struct lks_lane *lane, struct lks_tx *tx, bool more)
{
	unsigned int flags = MSG_NOSIGNAL | (more ? MSG_MORE : 0);
	struct kvec head = { .iov_base = &tx->h, .iov_len = sizeof(tx->h) };
	struct msghdr msg = { .msg_flags = flags };
	int err;

	if (tx->buf)
		msg.msg_flags |= MSG_MORE;
	else
		head.iov_len += tx->h.length;	/* bytes[] follows h */
	iov_iter_kvec(&msg.msg_iter, ITER_SOURCE, &head, 1, head.iov_len);
	err = send_all(lane->sock, &msg);
	if (err || !tx->buf)
		return err;
	if (!tx->buf->reserved)
		return lks_send_pages(lane->sock, tx->buf->vecs, tx->buf->nvecs, tx->h.length, flags);
	msg.msg_flags = flags;
	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, tx->buf->vecs, tx->buf->nvecs, tx->h.length);
	return send_all(lane->sock, &msg);
}

static struct lks_tx *next_tx(struct lks_lane *lane, bool *more)
{
	struct lks_tx *tx;

	spin_lock_bh(&lane->link->peer->lock);
	tx = list_first_entry_or_null(&lane->queue, struct lks_tx, link);
	if (tx) {
		list_del(&tx->link);
		lane->queued_bytes -= sizeof(tx->h) + tx->h.length;
		lane->sent++;
		lane->sent_bytes += sizeof(tx->h) + tx->h.length;
		*more = !list_empty(&lane->queue);
	}
	spin_unlock_bh(&lane->link->peer->lock);
	return tx;
}

int lks_send_thread(void *arg)
{
	struct lks_lane *lane = arg;
	int err = 0;

	/*
	 * The socket is locked while TCP and TLS look for memory. If they tried to free some, that would wait for pages to be
	 * swapped out, which may be what we are here to send.
	 */
	memalloc_noreclaim_save();
	if (lks_lane_wait_up(lane)) {
		while (!err && !kthread_should_stop()) {
			bool more = false;
			struct lks_tx *tx = next_tx(lane, &more);

			if (!tx) {
				wait_event_idle(lane->wait, !list_empty_careful(&lane->queue) || kthread_should_stop());
				continue;
			}
			err = send_frame(lane, tx, more);
			free_tx(tx);
		}
		if (err)
			lks_lane_failed(lane, "sending failed");
	}
	wait_event_idle(lane->wait, kthread_should_stop());
	return 0;
}
