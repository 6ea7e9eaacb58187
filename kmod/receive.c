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
 * The socket is asked for more than is wanted next: behind data for the header of the next frame, and where frames come without
 * data, as acknowledgements do, for some of them. What has come along waits in receiver.ahead; a run of such frames for one
 * volume goes to it at once. Nobody waits for what is only hoped for.
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

/* ends of a lane that are no errors of the socket; beyond any errno */
#define END (-10001)		/* the peer has closed the connection, between frames */
#define HANDSHAKE (-10002)	/* a record of TLS that is for user space */

#define AHEAD_FRAMES 16u	/* asked for where frames come without data */
#define AHEAD_VECS 16u		/* larger data are read without hoping for a header */

static bool should_stop(void *lane)
{
	return READ_ONCE(((struct lks_lane *)lane)->link->state) != LKS_LINK_UP || kthread_should_stop();
}

struct receiver {
	struct lks_lane *lane;
	struct blk_plug plug;	/* for current->plug */
	void *scratch;		/* LKS_WIRE_BYTES_MAX */
	u8 *ahead;		/* a page: received, not yet looked at ... */
	u32 begin, end;		/* ... are these bytes of it */
	bool bare;		/* the last frame had no payload */
	struct bio_vec vecs[AHEAD_VECS + 1];
	struct lks_frame run[AHEAD_FRAMES];
};

static void unplug(struct receiver *r)
{
	blk_finish_plug(&r->plug);
	blk_start_plug(&r->plug);
}

/* At least so many bytes, as many as iter takes if they are there. How many, or an error. */
static int receive_some(struct receiver *r, const struct iov_iter *iter, size_t least)
{
	struct msghdr msg = { .msg_iter = *iter };
	struct lks_tls_control control;
	int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
	size_t got = 0;

	while (got < least) {
		int n;

		msg.msg_flags = flags;
		lks_tls_ask(&msg, &control);
		n = sock_recvmsg(r->lane->sock, &msg, flags);
		if (flags & MSG_DONTWAIT && (n == -EAGAIN || (n > 0 && got + n < least))) {
			/* from here on we wait, for nothing but what is needed */
			flags = MSG_NOSIGNAL | MSG_WAITALL;
			iov_iter_truncate(&msg.msg_iter, least - got - max(n, 0));
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
			return got ? -ECONNRESET : END;
		default:
			return HANDSHAKE;
		}
		got += n;
	}
	return got;
}

/* In the middle of a frame; its end there is no good one. */
static int rest_of_frame(int got)
{
	return got == END ? -ECONNRESET : min(got, 0);
}

/* Takes what is ahead. */
static u32 take(struct receiver *r, struct iov_iter *iter)
{
	u32 n = min_t(size_t, r->end - r->begin, iov_iter_count(iter));

	n = copy_to_iter(r->ahead + r->begin, n, iter);
	r->begin += n;
	return n;
}

static int receive_bytes(struct receiver *r, void *to, size_t bytes)
{
	struct kvec vec = { .iov_base = to, .iov_len = bytes };
	struct iov_iter iter;

	iov_iter_kvec(&iter, ITER_DEST, &vec, 1, bytes);
	bytes -= take(r, &iter);
	return bytes ? rest_of_frame(receive_some(r, &iter, bytes)) : 0;
}

/* Data, and with them the next header if it is there. */
static int receive_buf(struct receiver *r, struct lks_buf *buf)
{
	bool hope = buf->nvecs <= AHEAD_VECS;
	u32 hoped = hope ? sizeof(struct lks_frame) : 0, left = buf->bytes;
	struct iov_iter iter;
	int n;

	if (hope) {
		memcpy(r->vecs, buf->vecs, buf->nvecs * sizeof(r->vecs[0]));
		r->vecs[buf->nvecs] = (struct bio_vec){ .bv_page = virt_to_page(r->ahead), .bv_len = hoped };
	}
	iov_iter_bvec(&iter, ITER_DEST, hope ? r->vecs : buf->vecs, buf->nvecs + hope, left);
	left -= take(r, &iter);
	if (!left)
		return 0;
	/* nothing is ahead now: there is room for what is hoped for */
	iov_iter_bvec(&iter, ITER_DEST, hope ? r->vecs : buf->vecs, buf->nvecs + hope, buf->bytes + hoped);
	iov_iter_advance(&iter, buf->bytes - left);
	n = receive_some(r, &iter, left);
	if (n < 0)
		return rest_of_frame(n);
	r->begin = 0;
	r->end = n - left;
	return 0;
}

/* END only between frames. */
static int receive_header(struct receiver *r, struct lks_frame *h)
{
	u32 have = r->end - r->begin;
	u32 wish = r->bare ? AHEAD_FRAMES * sizeof(*h) : sizeof(*h);

	if (have < sizeof(*h)) {
		struct kvec vec = { .iov_base = r->ahead + have, .iov_len = wish - have };
		struct iov_iter iter;
		int n;

		memmove(r->ahead, r->ahead + r->begin, have);
		r->begin = 0;
		r->end = have;
		iov_iter_kvec(&iter, ITER_DEST, &vec, 1, vec.iov_len);
		n = receive_some(r, &iter, sizeof(*h) - have);
		if (n < 0)
			return have ? rest_of_frame(n) : n;
		r->end += n;
	}
	memcpy(h, r->ahead + r->begin, sizeof(*h));
	r->begin += sizeof(*h);
	return 0;
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

	if (lks_frame_has_data(h)) {
		buf = lks_buf_alloc_wait(h->length);
		if (!buf)
			return -ENOMEM;
		err = receive_buf(r, buf);
	} else {
		err = receive_bytes(r, r->scratch, h->length);
	}
	if (!err)
		err = lks_volume_receive(v, r->lane->link, h, 1, buf, r->scratch, should_stop, r->lane);
	if (buf)
		lks_buf_put(buf);
	return err;
}

/* Frames without payload for the same volume that are there already follow run[0]. How many with it. */
static unsigned int follow(struct receiver *r)
{
	struct lks_frame *h = r->run;
	unsigned int n = 1;

	for (; n < AHEAD_FRAMES && r->end - r->begin >= sizeof(*h); n++, r->begin += sizeof(*h)) {
		memcpy(&h[n], r->ahead + r->begin, sizeof(*h));
		/* a wrong one is found to be wrong when its turn comes */
		if (h[n].volume != h->volume || h[n].length || lks_frame_check(&h[n]))
			break;
	}
	WRITE_ONCE(r->lane->received, r->lane->received + n - 1);
	return n;
}

static int receive_frame(struct receiver *r)
{
	struct lks_lane *lane = r->lane;
	struct lks_frame *h = r->run;
	struct lks_volume *v;
	int err;

	err = receive_header(r, h);
	if (err)
		return err;
	err = lks_frame_check(h);
	if (err)
		goto wrong;
	WRITE_ONCE(lane->received, lane->received + 1);
	r->bare = !h->length;
	v = lks_volume_get(h->volume);
	if (!v)
		return skip(r, h->length);
	if (h->length)
		err = receive_payload(r, v, h);
	else
		err = lks_volume_receive(v, lane->link, h, follow(r), NULL, NULL, should_stop, lane);
	lks_volume_put(v);
	if (err != -EPROTO)
		return err;
wrong:
	pr_warn_ratelimited("lockstep: host %u: wrong frame (volume %u, type %u, length %u)\n", lane->link->peer->host,
			    h->volume, h->type, h->length);
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

static void free_receiver(struct receiver *r)
{
	if (!r)
		return;
	kfree(r->scratch);
	free_page((unsigned long)r->ahead);
	kfree(r);
}

static struct receiver *create_receiver(struct lks_lane *lane)
{
	struct receiver *r = kzalloc(sizeof(*r), GFP_KERNEL);

	if (!r)
		return NULL;
	r->lane = lane;
	r->scratch = kmalloc(LKS_WIRE_BYTES_MAX, GFP_KERNEL);
	r->ahead = (u8 *)__get_free_page(GFP_KERNEL);
	if (r->scratch && r->ahead)
		return r;
	free_receiver(r);
	return NULL;
}

int lks_receive_thread(void *arg)
{
	struct lks_lane *lane = arg;
	struct receiver *r;
	int err = 0;

	memalloc_noio_save();
	r = create_receiver(lane);
	if (!r)
		lks_lane_failed(lane, "out of memory");
	if (r && lks_lane_wait_up(lane)) {
		blk_start_plug(&r->plug);
		while (!err && !should_stop(lane))
			err = receive_frame(r);
		blk_finish_plug(&r->plug);
		if (err)
			lks_lane_failed(lane, reason_of(err));
	}
	free_receiver(r);
	wait_event_idle(lane->wait, kthread_should_stop());
	return 0;
}
