// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Requests of local openers: sent to the primary, by call or by message, and sent again when they may have been lost.
 *
 * X1: a request is repeated only after a lost connection, a refusal or a new term, and only the last try's reply counts: each
 * try has an id of its own. A read whose last try still has the disk writing into its buffer waits for that to end.
 */
#include "internal.h"

void lks_client_init(struct lks_vol *v)
{
	lks_list_init(&v->reqs);
	lks_list_init(&v->open_req.link);
	v->open_req.op = LKS_OP_OPEN;
}

/* This host's session in a record, 0 if none. One that was closed here is about to leave the record: never used again. */
static u64 session_in(const struct lks_vol *v, const struct lks_record *r)
{
	u64 session = 0;

	for (u32 i = 0; i < r->nopeners; i++)
		if (r->openers[i].host == v->p.self && r->openers[i].session > session)
			session = r->openers[i].session;
	return session > v->ended ? session : 0;
}

static void done(struct lks_vol *v, struct lks_req *req, int err)
{
	if (req == &v->open_req) {
		lks_list_del(&req->link);
		return;
	}
	lks_list_del(&req->link);
	v->pending--;
	if (!err && (req->op == LKS_OP_WRITE || req->op == LKS_OP_ZEROES || req->op == LKS_OP_DISCARD))
		v->completed++;
	if (!err && req->op == LKS_OP_FLUSH) {
		if (v->lost_cache)
			err = -EIO;	/* S2: once, as a disk that lost its cache must */
		v->lost_cache = false;
		if (req->after > v->flushed)
			v->flushed = req->after;
	}
	v->ops->req_done(v->ctx, req, err);
}

/*
 * X1: only the last try's reply counts. false: the disk still writes into its buffer, which may be the requester's own memory; for
 * the same reason a read that has not begun never will.
 */
static bool give_up(struct lks_vol *v, struct lks_req *req)
{
	struct lks_work *w = req->work;

	if (w && w->io_busy && req->op == LKS_OP_READ)
		return false;
	req->work = NULL;
	if (w)
		w->req = NULL;
	if (w && req->op == LKS_OP_READ)
		lks_work_free(v, w);
	return true;
}

static void fence(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;
	bool was = v->session;

	v->session = 0;
	lks_list_for_each_safe(pos, tmp, &v->reqs) {
		struct lks_req *req = lks_list_entry(pos, struct lks_req, link);

		if (!req->session || req == &v->open_req || !give_up(v, req))
			continue;	/* an open reader's; or its buffer is in use: it fails when refused */
		done(v, req, -EIO);
	}
	if (was)
		lks_event(v, LKS_EV_FENCED, 0);
}

/* A newer version is known. */
void lks_client_learn(struct lks_vol *v)
{
	u64 session = session_in(v, &v->note);

	if (v->incarnation != v->note.incarnation)
		v->lost_cache |= v->completed > v->flushed && LKS_ON(S2);
	v->incarnation = v->note.incarnation;
	if (v->session && v->session != session && LKS_ON(O1))
		fence(v);		/* O1 */
	if (!v->want_open || !session || v->session == session)
		return;
	if (!LKS_ON(O2)) {
		v->session = session;
		lks_event(v, LKS_EV_OPENED, 0);
		return;
	}
	if (lks_list_empty(&v->open_req.link)) {
		v->open_req.submitted_ms = v->now;
		lks_list_add_tail(&v->open_req.link, &v->reqs);
	}
	if (v->open_req.session != session)
		v->open_req.sent_to = 0;
	v->open_req.session = session;
}

static void try(struct lks_vol *v, struct lks_req *req)
{
	const struct lks_record *c = &v->note;
	struct lks_call call = { .req = req, .buf = req->buf, .offset = req->offset, .session = req->session,
				 .id = LKS_ON(X1) || !req->id ? ++v->ids : req->id,
				 .term = c->term, .length = req->length, .client = v->p.self, .op = req->op,
				 .flags = req->flags };
	struct lks_frame f = { .type = LKS_REQ, .flags = (u8)(req->flags | req->op << LKS_F_OP_SHIFT), .version = c->version,
			       .term = c->term, .seq = call.id, .stable = req->session, .offset = req->offset,
			       .tag = req->length };

	if (c->primary != v->p.self && !(v->links & LKS_BIT(c->primary)))
		return;
	req->sent_to = c->primary;
	req->sent_term = c->term;
	req->id = call.id;
	if (c->primary == v->p.self) {
		lks_request(v, &call);
		return;
	}
	f.length = req->op == LKS_OP_WRITE ? req->length : 0;
	lks_send_frame(v, c->primary, LKS_LANE_ANY, &f, f.length ? req->buf : NULL, NULL);
}

void lks_client_poll(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;

	lks_list_for_each_safe(pos, tmp, &v->reqs) {
		struct lks_req *req = lks_list_entry(pos, struct lks_req, link);

		if (req->sent_to && v->note.term <= req->sent_term && !v->aborted)
			continue;
		if (!give_up(v, req))
			continue;
		if (v->aborted && req != &v->open_req)
			done(v, req, v->aborted);
		else if (v->note.primary)
			try(v, req);
	}
}

/* What was refused is tried again after a while. */
void lks_client_tick(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;

	if (!lks_list_empty(&v->reqs))
		lks_todo(v, LKS_DO_CLIENT);
	if (!v->tune.freeze_ms)
		return;
	lks_list_for_each_safe(pos, tmp, &v->reqs) {
		struct lks_req *req = lks_list_entry(pos, struct lks_req, link);

		if (req != &v->open_req && v->now >= req->submitted_ms + v->tune.freeze_ms && give_up(v, req))
			done(v, req, -EIO);
	}
}

void lks_client_link_lost(struct lks_vol *v, u8 host)
{
	struct lks_list *pos;

	lks_list_for_each(pos, &v->reqs) {
		struct lks_req *req = lks_list_entry(pos, struct lks_req, link);

		if (req->sent_to == host) {
			req->sent_to = 0;
			req->id = LKS_ON(X1) ? 0 : req->id;
		}
	}
}

static void opened(struct lks_vol *v)
{
	v->session = v->open_req.session;
	lks_event(v, LKS_EV_OPENED, 0);
}

void lks_client_reply(struct lks_vol *v, struct lks_req *req, int err)
{
	req->work = NULL;
	done(v, req, err);
	if (req == &v->open_req && !err)
		opened(v);
}

void lks_client_refused(struct lks_vol *v, struct lks_req *req, bool fenced)
{
	req->work = NULL;
	req->sent_to = 0;
	req->id = LKS_ON(X1) ? 0 : req->id;
	if (fenced && req != &v->open_req)
		done(v, req, -EIO);
}

static struct lks_req *by_id(struct lks_vol *v, u8 host, u64 id)
{
	struct lks_list *pos;

	lks_list_for_each(pos, &v->reqs) {
		struct lks_req *req = lks_list_entry(pos, struct lks_req, link);

		if (id && req->id == id && (req->sent_to == host || (!LKS_ON(X1) && !req->work)))
			return req;
	}
	return NULL;
}

int lks_on_reply(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf)
{
	struct lks_req *req = by_id(v, host, h->seq);

	if (!req)
		return 0;
	if (h->stable > 4095 || (h->length && (req->op != LKS_OP_READ || h->length != req->length)))
		return -EPROTO;
	if (req->op == LKS_OP_READ && !h->stable) {
		if (!h->length)
			return -EPROTO;
		v->ops->buf_copy(req->buf, buf, req->length);
	}
	lks_client_reply(v, req, -(int)h->stable);
	return 0;
}

void lks_on_refused(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	struct lks_req *req = by_id(v, host, h->seq);

	if (req)
		lks_client_refused(v, req, h->stable);
}

/* ---- entry points that need nothing of the rest ---- */

void lks_client_open(struct lks_vol *v)
{
	u64 session = session_in(v, &v->note);

	v->want_open = true;
	if (v->session && v->session == session)
		lks_event(v, LKS_EV_OPENED, 0);
	else
		lks_client_learn(v);
	lks_todo(v, LKS_DO_CLIENT);
}

void lks_client_close(struct lks_vol *v)
{
	if (v->session)
		v->ended = v->session;
	v->want_open = false;
	v->session = 0;
	v->flushed = v->completed;
	v->lost_cache = false;
	lks_list_del(&v->open_req.link);
	if (v->open_req.work)
		((struct lks_work *)v->open_req.work)->req = NULL;
	v->open_req.work = NULL;
	v->open_req.session = 0;
	v->open_req.sent_to = 0;
	v->open_req.id = 0;
}

bool lks_vol_is_open(const struct lks_vol *v)
{
	return v->session != 0;
}

void lks_client_submit(struct lks_vol *v, struct lks_req *req)
{
	req->id = 0;
	req->sent_to = 0;
	req->work = NULL;
	req->session = v->session;
	req->submitted_ms = v->now;
	req->after = v->completed;
	lks_list_init(&req->link);
	if (!v->session && req->op != LKS_OP_READ) {
		v->ops->req_done(v->ctx, req, -EIO);
		return;
	}
	lks_list_add_tail(&req->link, &v->reqs);
	v->pending++;
	if (v->aborted)
		lks_todo(v, LKS_DO_CLIENT);
	else if (v->note.primary)
		try(v, req);	/* this one alone: whatever concerns the others polls them all */
}

/* Requests in whose buffer the disk still writes end when it has ended. */
void lks_client_abort(struct lks_vol *v, int err)
{
	v->aborted = err;
	lks_todo(v, LKS_DO_CLIENT);
}
