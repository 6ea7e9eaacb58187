// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Comparing replicas by hash, from the primary's side.
 *
 * Verify goes through the volume range by range, one at a time, so that it yields to everything else. A range waits its turn
 * in the queue like a write and keeps its blocks busy (W2) until all members have answered; so what differs then differs for
 * good. With repair the primary's content, which is what readers see, is written everywhere like any other write.
 *
 * An extent that was never written here is asked about as a whole; only if some member has written it, its blocks are
 * compared with zeros.
 *
 * Resync asks by hash about what is only in doubt since a crash before it sends the data.
 */
#include "internal.h"

#define VERIFY_BYTES (256u << 10)	/* of one range */

int lks_vol_verify(struct lks_vol *v, const struct lks_verify *how, u64 now_ms)
{
	if (v->role != LKS_ACTIVE)
		return -ESTALE;
	lks_enter(v, now_ms);
	if (how->start) {
		v->verifying = true;
		v->verify_repair = how->repair;
		v->verify_deep = 0;
		v->verify_differ = how->differ;
		v->verify_end = lks_data_blocks(v);
		v->verify_next = how->done < v->verify_end ? how->done : v->verify_end;
	} else {
		lks_verify_stop(v);
	}
	lks_event(v, LKS_EV_STATE, 0);
	lks_todo(v, LKS_DO_SYNC);
	lks_run(v);
	return 0;
}

/* A range that is being compared goes on; nobody counts its result. */
void lks_verify_stop(struct lks_vol *v)
{
	v->verifying = false;
	v->verify_end = v->verify_next = v->verify_differ = 0;
	if (v->role == LKS_IDLE)
		v->verify_asked = false;
}

void lks_send_compare(struct lks_vol *v, u8 host, const struct lks_work *w, bool zeros)
{
	struct lks_frame f = { .type = LKS_COMPARE, .flags = zeros ? LKS_F_ZEROES : 0, .version = v->cfg.version,
			       .term = v->cfg.term, .seq = w->id, .stable = w->hash, .offset = w->offset, .tag = w->length };

	lks_send_frame(v, host, LKS_LANE_ANY, &f, NULL, NULL);
}

static bool written(const struct lks_vol *v, u64 extent)
{
	return lks_extent_bits(v, extent) & LKS_EXTENT_WRITTEN;
}

/* Queues the next range. */
void lks_verify_step(struct lks_vol *v)
{
	u64 per = LKS_EXTENT_BYTES >> v->block_shift, first = v->verify_next, extent = first / per, n, end;
	struct lks_work *w;

	/* A repair would have to wait for the end of a hold: until then the same range would be compared again and again. */
	if (!v->verifying || v->verify_asked || v->role != LKS_ACTIVE || (v->hold && v->verify_repair))
		return;
	if (first >= v->verify_end) {
		v->verifying = false;
		lks_event(v, LKS_EV_VERIFIED, 0);
		return;
	}
	n = (extent + 1) * per - first;
	if ((written(v, extent) || v->verify_deep == extent + 1) && n << v->block_shift > VERIFY_BYTES)
		n = VERIFY_BYTES >> v->block_shift ? VERIFY_BYTES >> v->block_shift : 1;
	end = (first + n) << v->block_shift;
	if (end > lks_size(v))
		end = lks_size(v);
	w = lks_work_new(v, LKS_WORK_VERIFY, first << v->block_shift, (u32)(end - (first << v->block_shift)), NULL);
	if (!w)
		return;		/* tick tries again */
	w->id = ++v->ids;
	v->verify_asked = true;
	lks_list_add_tail(&w->link, &v->queue);
	lks_todo(v, LKS_DO_PUMP);
}

static void ask(struct lks_vol *v, struct lks_work *w)
{
	u64 rest;
	u8 h;

	w->wait = v->ackset & lks_insync(&v->cfg);
	if (w->buf)
		w->hash = v->ops->buf_hash(w->buf, w->length);
	lks_for_hosts(h, rest, w->wait)
		lks_send_compare(v, h, w, !w->buf);
}

static void range_done(struct lks_vol *v, struct lks_work *w);

/* Its turn in the queue: nothing else is in flight in its blocks from now on. */
void lks_verify_begin(struct lks_vol *v, struct lks_work *w)
{
	u64 index = w->offset / LKS_EXTENT_BYTES;
	struct lks_extent *e = lks_extent_find(v, index);
	bool zeros = !written(v, index) && v->verify_deep != index + 1;

	if (lks_held_by_queue(v, w) || lks_blocks_busy(e, w->first, w->last))
		return;
	if (!zeros && w->length > LKS_REQ_MAX_BYTES) {		/* written meanwhile: in smaller ranges, then */
		w->unknown = true;
		range_done(v, w);
		return;
	}
	e = lks_extent_get(v, index);
	if (!e)
		return;
	w->ext = e;
	if (!zeros && !w->buf) {
		w->buf = v->ops->buf_alloc(v->ctx, w->length);
		if (!w->buf) {
			w->ext = NULL;
			lks_extent_put(v, e);
			return;
		}
	}
	lks_list_add_tail(&w->busy, &e->busy);
	lks_list_move_tail(&w->link, &v->verifies);
	if (!zeros && written(v, index)) {
		lks_work_io(v, w, LKS_IO_READ, 0);
		return;
	}
	if (w->buf)
		v->ops->buf_zero(w->buf, w->length);
	lks_verify_io_done(v, w, 0);
}

void lks_verify_io_done(struct lks_vol *v, struct lks_work *w, int err)
{
	if (err) {		/* there is nobody to compare with */
		v->verify_asked = false;
		if (v->verifying && w->first == v->verify_next)
			v->verify_next = w->last + 1;
		lks_work_free(v, w);
		lks_todo(v, LKS_DO_SYNC | LKS_DO_PUMP);
		return;
	}
	ask(v, w);
	if (!w->wait)
		range_done(v, w);
}

static void tell_difference(struct lks_vol *v, const struct lks_work *w)
{
	struct lks_event_info info = { .event = LKS_EV_MISMATCH, .offset = w->offset, .length = w->length,
				       .done = v->verify_repair };
	u64 rest;

	lks_for_hosts(info.host, rest, w->differ)
		v->ops->event(v->ctx, &info);
}

static void range_done(struct lks_vol *v, struct lks_work *w)
{
	bool counts = v->verifying && w->first == v->verify_next;
	/* A repair is a write: none begins while the primary drains (M1) or holds still. The range is compared again later. */
	bool may_write = v->role == LKS_ACTIVE && !v->hold;

	v->verify_asked = false;
	lks_todo(v, LKS_DO_SYNC | LKS_DO_PUMP);
	if (counts && w->differ && !w->buf) {
		v->verify_deep = w->offset / LKS_EXTENT_BYTES + 1;
	} else if (counts && !w->unknown && (!w->differ || !v->verify_repair || may_write)) {
		v->verify_next = w->last + 1;
		if (w->differ) {
			v->verify_differ += w->last - w->first + 1;
			tell_difference(v, w);
		}
	}
	if (!counts || w->unknown || !w->differ || !w->buf || !v->verify_repair || !may_write) {
		lks_work_free(v, w);
		return;
	}
	/* From here on it is a write that no client waits for; its blocks have been busy all the time. */
	w->kind = LKS_WORK_WRITE;
	w->op = LKS_OP_WRITE;
	w->host = 0;
	w->began_ms = v->now;
	lks_list_move_tail(&w->link, &v->heating);
	lks_extent_heat(v, w);
}

void lks_verify_forget(struct lks_vol *v, u8 host)
{
	struct lks_list *pos, *tmp;

	lks_list_for_each_safe(pos, tmp, &v->verifies) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		if (!(w->wait & LKS_BIT(host)))
			continue;
		w->wait &= ~LKS_BIT(host);
		w->differ &= ~LKS_BIT(host);
		if (!w->wait)
			range_done(v, w);
	}
}

void lks_on_compared(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	struct lks_work *w;

	if (v->role == LKS_IDLE || h->term != v->cfg.term)
		return;
	w = lks_work_by_id(&v->copies, h->seq);
	if (w && w->host == host && w->compare && !w->io_busy) {
		lks_copy_compared(v, w, h->stable == LKS_CMP_EQUAL);
		return;
	}
	w = lks_work_by_id(&v->verifies, h->seq);
	if (!w || !(w->wait & LKS_BIT(host)))
		return;
	w->wait &= ~LKS_BIT(host);
	if (h->stable == LKS_CMP_DIFFERS)
		w->differ |= LKS_BIT(host);
	else if (h->stable != LKS_CMP_EQUAL)
		w->unknown = true;
	if (!w->wait)
		range_done(v, w);
}
