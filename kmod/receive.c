// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Receiving: the thread of a lane that reads one frame after the other and hands each to its volume.
 *
 * It waits for the socket and for memory (which holds the peer back), never for a disk: what the core then wants from the
 * disk is submitted by the volume's worker. Frames for a volume that is not here (yet, or any more) are read and dropped.
 * A frame that is wrong in any way closes the link.
 *
 * What frames that came together want from disks is handed over together: the thread holds a plug until it would have to wait for the
 * socket. One notification of the device for many writes, and then their acknowledgements leave together, too.
 *
 * On a socket with kTLS the kernel says of what comes what kind of record it was in. Anything but data ends the lane: an
 * alert is the peer's farewell, and there is nobody here to answer a handshake message (a change of keys).
 */
#include <linux/blkdev.h>
#include <linux/kthread.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include "buf.h"
#include "compat/net.h"
#include "host.h"
#include "volume.h"

/* ends of a lane that are no errors of the socket */
#define END 1		/* the peer has closed the connection, between frames */
#define HANDSHAKE 2	/* a record of TLS that is for user space */

static bool should_stop(void *lane)
{
	return READ_ONCE(((struct lks_lane *)lane)->link->state) != LKS_LINK_UP || kthread_should_stop();
}

/* The plug of a receiver thread, for current->plug. */
struct receiver {
	struct lks_lane *lane;
	struct blk_plug plug;
	void *scratch;		/* LKS_WIRE_BYTES_MAX */
};

static void unplug(struct receiver *r)
{
	blk_finish_plug(&r->plug);
	blk_start_plug(&r->plug);
}

static int receive_all(struct receiver *r, struct iov_iter *iter)
{
	size_t bytes = iov_iter_count(iter);
	struct msghdr msg = { .msg_iter = *iter };
	struct lks_tls_control control;
	int flags = MSG_NOSIGNAL | MSG_DONTWAIT;

	while (msg_data_left(&msg)) {
		bool begun = msg_data_left(&msg) != bytes;
		int n;

		msg.msg_flags = flags;
		lks_tls_ask(&msg, &control);
		n = sock_recvmsg(r->lane->sock, &msg, flags);
		if (flags & MSG_DONTWAIT) {
			flags = MSG_NOSIGNAL | MSG_WAITALL;
			if (n == -EAGAIN || (n > 0 && msg_data_left(&msg)))
				unplug(r);
			if (n == -EAGAIN)
				continue;
		}
		if (n < 0)
			return n;
		switch (lks_tls_type(&msg, &control)) {
		case LKS_TLS_DATA:
			if (n)
				break;
			fallthrough;
		case LKS_TLS_ALERT:
			return begun ? -ECONNRESET : END;
		default:
			return HANDSHAKE;
		}
	}
	return 0;
}

static int receive_bytes(struct receiver *r, void *to, size_t bytes)
{
	struct kvec vec = { .iov_base = to, .iov_len = bytes };
	struct iov_iter iter;

	iov_iter_kvec(&iter, ITER_DEST, &vec, 1, bytes);
	return receive_all(r, &iter);
}

static int receive_buf(struct receiver *r, struct lks_buf *buf)
{
	struct iov_iter iter;

	iov_iter_bvec(&iter, ITER_DEST, buf->vecs, buf->nvecs, buf->bytes);
	return receive_all(r, &iter);
}

static int skip(struct receiver *r, u32 bytes)
{
	int err = 0;

	while (!err && bytes) {
		u32 n = min(bytes, LKS_WIRE_BYTES_MAX);

		err = receive_bytes(r, r->scratch, n);
		bytes -= n;
	}
	return err;
}

static int receive_payload(struct receiver *r, struct lks_volume *v, const struct lks_frame *h)
{
	struct lks_buf *buf = NULL;
	int err = 0;

	if (h->length && lks_frame_has_data(h)) {
		buf = lks_buf_alloc_wait(h->length);
		if (!buf)
			return -ENOMEM;
		err = receive_buf(r, buf);
	} else if (h->length) {
		err = receive_bytes(r, r->scratch, h->length);
	}
	if (!err)
		err = lks_volume_receive(v, r->lane->link, h, buf, r->scratch, should_stop, r->lane);
	if (buf)
		lks_buf_put(buf);
	return err;
}

static int receive_frame(struct receiver *r)
{
	struct lks_lane *lane = r->lane;
	struct lks_volume *v;
	struct lks_frame h;
	int err;

	err = receive_bytes(r, &h, sizeof(h));
	if (err)
		return err;
	err = lks_frame_check(&h);
	if (err)
		goto wrong;
	WRITE_ONCE(lane->received, lane->received + 1);
	v = lks_volume_get(h.volume);
	if (!v) {
		err = skip(r, h.length);
		return err == END ? -ECONNRESET : err;
	}
	err = receive_payload(r, v, &h);
	lks_volume_put(v);
	if (err == END)
		return -ECONNRESET;
	if (err != -EPROTO)
		return err;
wrong:
	pr_warn_ratelimited("lockstep: host %u: wrong frame (volume %u, type %u, length %u)\n", lane->link->peer->host,
			    h.volume, h.type, h.length);
	return err;
}

static const char *reason_of(int err)
{
	switch (err) {
	case END:
		return "the peer closed it";
	case HANDSHAKE:
		return "the peer wanted to change the keys of TLS";
	case -EBADMSG:
		return "what came over TLS was not what the peer sent";
	case -EPROTO:
		return "the peer sent a wrong frame";
	case -ENOMEM:
		return "out of memory";
	case -ETIMEDOUT:
		return "the peer did not answer";
	default:
		return "the connection broke";
	}
}

int lks_receive_thread(void *arg)
{
	struct lks_lane *lane = arg;
	struct receiver r = { .lane = lane };
	int err = 0;

	memalloc_noio_save();
	r.scratch = kmalloc(LKS_WIRE_BYTES_MAX, GFP_KERNEL);
	if (!r.scratch)
		lks_lane_failed(lane, "out of memory");
	if (r.scratch && lks_lane_wait_up(lane)) {
		blk_start_plug(&r.plug);
		while (!err && !should_stop(lane))
			err = receive_frame(&r);
		blk_finish_plug(&r.plug);
		if (err)
			lks_lane_failed(lane, reason_of(err));
	}
	kfree(r.scratch);
	wait_event_idle(lane->wait, kthread_should_stop());
	return 0;
}
