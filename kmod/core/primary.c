// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The primary: activation of a new term, requests, replication, leases, losses.
 *
 * A write lives through: queue -> heating (its blocks are taken, W2; its extent becomes hot, H1) -> writes (numbered, sent,
 * submitted; W1) -> answered, and if a syncing replica has yet to acknowledge it -> live -> freed. Reads take nothing:
 * their data are read at once and held back at the end while a write that was in flight to the same blocks is
 * unfinished (its new content may have been read, and may yet be rolled back by R1) or a promise is missing (L3).
 */
#include "internal.h"

#define RECON_WINDOW 16u	/* ranges in flight */
#define RECON_BLOCKS 16u	/* blocks of a range at most */
#define PROPOSE_EVERY_MS 500u
#define PINGS_PER_LEASE 5u

/* ---- activation ---- */

void lks_begin_activation(struct lks_vol *v, const struct lks_record *r)
{
	u64 rest;
	u8 h;

	lks_start_session(v, 0, r);
	v->session_term = 0;
	v->role = LKS_ACTIVATING;
	v->seq = 0;
	v->stable_told = 0;
	v->recon_begun = false;
	v->recon = 0;
	v->wait = lks_insync(r) & ~LKS_BIT(v->p.self);
	lks_for_hosts(h, rest, v->wait) {
		struct lks_peer *p = lks_peer_of(v, h);

		p->lease_ms = v->now;
		p->pinged_ms = 0;
		p->session = 0;
		lks_send_record(v, h, LKS_ACTIVATE, r);
	}
	lks_todo(v, LKS_DO_ACTIVATE);
}

void lks_on_refuse(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	if (v->role == LKS_IDLE || h->term > v->cfg.term)
		return;
	/* S4: it is no member, or no longer: from here on it is lost, as if its link had broken */
	if (h->type == LKS_DISK_FAILED || (v->role == LKS_ACTIVATING && v->wait & LKS_BIT(host)))
		lks_replica_lost(v, host);
}

void lks_on_activated(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	struct lks_peer *p = lks_peer_of(v, host);

	if (v->role != LKS_ACTIVATING || h->term != v->cfg.term || !(v->wait & LKS_BIT(host)) || !p)
		return;
	if (h->tag && (p->maps_term != h->term || p->maps != h->tag))
		return;		/* some of its evidence was not for us; cannot happen on one link */
	p->maps = 0;
	v->wait &= ~LKS_BIT(host);
	lks_todo(v, LKS_DO_ACTIVATE);
}

/* R1: the next range of unstable blocks is read, to be rewritten everywhere. false: no memory, or nothing left. */
static bool begin_recon(struct lks_vol *v)
{
	u64 first = lks_map_next(&v->inherited, v->recon), last = first;
	u64 per = LKS_EXTENT_BYTES >> v->block_shift, end = lks_size(v), blocks = lks_data_blocks(v);
	struct lks_extent *e;
	struct lks_work *w;
	struct lks_buf *buf;
	u32 length;

	if (first >= blocks)
		return false;
	while (last + 1 < blocks && (last + 1) / per == first / per && last - first + 1 < RECON_BLOCKS &&
	       ((last + 2) << v->block_shift) - (first << v->block_shift) <= LKS_REQ_MAX_BYTES &&
	       lks_map_test(&v->inherited, last + 1))
		last++;
	if ((last + 1) << v->block_shift < end)
		end = (last + 1) << v->block_shift;
	length = (u32)(end - (first << v->block_shift));
	e = lks_extent_get(v, first / per);
	if (!e)
		return false;
	buf = v->ops->buf_alloc(v->ctx, length);
	w = buf ? lks_work_new(v, LKS_WORK_RECON, first << v->block_shift, length, buf) : NULL;
	if (buf)
		v->ops->buf_put(buf);
	if (!w) {
		lks_extent_put(v, e);
		return false;
	}
	w->op = LKS_OP_WRITE;
	w->ext = e;
	lks_list_add_tail(&w->busy, &e->busy);
	lks_list_add_tail(&w->link, &v->heating);
	v->recon = last + 1;
	v->recons++;
	if (lks_extent_bits(v, e->index) & LKS_EXTENT_WRITTEN) {
		lks_work_io(v, w, LKS_IO_READ, 0);
	} else {
		v->ops->buf_zero(buf, length);
		lks_extent_heat(v, w);
	}
	return true;
}

/* Clients that knew of this term before its primary served have been refused, and would try again at their next tick. */
static void tell_ready(struct lks_vol *v)
{
	u64 rest;
	u8 h;

	lks_for_hosts(h, rest, v->links)
		lks_send(v, h, LKS_LANE_ALL, LKS_READY, 0, 0);
}

void lks_try_activate(struct lks_vol *v)
{
	if (v->role != LKS_ACTIVATING || v->wait)
		return;
	if (!v->recon_begun) {
		/* What an earlier session still has in flight to the disk would change what R1 reads (T2) */
		if (v->ios)
			return;
		v->recon_begun = true;
		v->ackset = lks_insync(&v->cfg) & ~LKS_BIT(v->p.self);
		v->soft++;		/* F2 */
		if (!LKS_ON(R1))
			v->recon = v->blocks;
	}
	while (v->recons < RECON_WINDOW && v->role == LKS_ACTIVATING && begin_recon(v))
		;
	if (v->role != LKS_ACTIVATING || v->recons || lks_map_next(&v->inherited, v->recon) < lks_data_blocks(v))
		return;
	if (LKS_ON(L1) && !(v->cfg.flags & LKS_RECORD_DRAINED) && v->now < v->promise_ms)
		return;
	v->role = LKS_ACTIVE;
	v->suspect = false;
	lks_map_clear(v, &v->doubt);
	lks_map_clear(v, &v->inherited);
	lks_event(v, LKS_EV_STATE, 0);
	tell_ready(v);
	lks_todo(v, LKS_DO_PUMP | LKS_DO_CLIENT | LKS_DO_SYNC);
}

/* ---- versions of the same term ---- */

static void maybe_done(struct lks_vol *v, struct lks_work *w);
static void maybe_flushed(struct lks_vol *v, struct lks_work *w);

/* host is no member any more: nothing waits for it, and what it may miss is dirty. */
void lks_forget(struct lks_vol *v, u8 host)
{
	struct lks_peer *p = lks_peer_of(v, host);
	struct lks_list *pos, *tmp;
	u64 bit = LKS_BIT(host);

	lks_list_for_each(pos, &v->writes) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		if (w->wait & bit && p)
			lks_map_add(v, &p->dirty, w->first, w->last - w->first + 1);
		w->wait &= ~bit;
	}
	lks_list_for_each(pos, &v->flushes)
		lks_list_entry(pos, struct lks_work, link)->wait &= ~bit;
	v->ackset &= ~bit;
	v->lost &= ~bit;
	v->wait &= ~bit;
	if (p)
		p->lease_ms = 0;
	lks_verify_forget(v, host);	/* may begin a repair: a write, which must not wait for it either */
	lks_drop_sync(v, host);
	lks_list_for_each_safe(pos, tmp, &v->writes)
		maybe_done(v, lks_list_entry(pos, struct lks_work, link));
	lks_list_for_each_safe(pos, tmp, &v->flushes)
		maybe_flushed(v, lks_list_entry(pos, struct lks_work, link));
	lks_todo(v, LKS_DO_READS | LKS_DO_PUMP | LKS_DO_ACTIVATE);
}

void lks_primary_version(struct lks_vol *v, const struct lks_record *r)
{
	u64 old = lks_insync(&v->cfg), now = lks_insync(r), self = LKS_BIT(v->p.self), rest;
	u8 h;

	lks_for_hosts(h, rest, lks_peer_hosts(v))
		if (!lks_replica_of(r, h))
			lks_forget(v, h);
	lks_adopt(v, r, false);
	lks_for_hosts(h, rest, (now | v->syncing) & ~self)
		lks_send_record(v, h, LKS_CONFIG, r);
	lks_for_hosts(h, rest, old & ~now & ~self)
		lks_forget(v, h);
	lks_for_hosts(h, rest, now & ~old & ~self) {
		v->syncing &= ~LKS_BIT(h);
		v->ackset |= LKS_BIT(h);
		v->soft++;		/* F2 */
		if (v->joining == h)
			v->joining = v->join_stage = 0;
	}
	if (v->joining && v->lost & LKS_BIT(v->joining))
		lks_forget(v, v->joining);	/* C5 settled: it has not joined */
	else if (v->join_stage == LKS_JOIN_PROPOSE)
		lks_propose_join(v);		/* outrun by another change */
	v->heir = 0;		/* M2: the handover cannot commit any more */
	if (v->role == LKS_DRAINING) {
		v->role = LKS_ACTIVE;
		lks_event(v, LKS_EV_STATE, 0);
	}
	lks_todo(v, LKS_DO_ACTIVATE | LKS_DO_PUMP | LKS_DO_SYNC | LKS_DO_READS);
}

static void drop_list(struct lks_vol *v, struct lks_list *head)
{
	struct lks_list *pos, *tmp;

	lks_list_for_each_safe(pos, tmp, head)
		lks_work_drop(v, lks_list_entry(pos, struct lks_work, link));
}

void lks_leave_office(struct lks_vol *v)
{
	struct lks_list *lists[] = { &v->queue, &v->heating, &v->writes, &v->live, &v->flushes, &v->reads, &v->held,
				     &v->copies, &v->verifies };

	v->role = LKS_IDLE;
	for (u32 i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		drop_list(v, lists[i]);
	lks_verify_stop(v);
	v->seq = v->stable_told = 0;
	v->wait = v->ackset = v->lost = v->syncing = 0;
	v->joining = v->join_stage = 0;
	v->heir = 0;
	lks_hold_end(v);
	v->recons = 0;
	v->recon_begun = false;
	for (u32 i = 0; i < LKS_SLOTS; i++) {
		v->peers[i].lease_ms = v->peers[i].live_blocks = 0;
		v->peers[i].copies = v->peers[i].maps = v->peers[i].mute_ticks = 0;
		v->peers[i].session = 0;
	}
	lks_event(v, LKS_EV_STATE, 0);
}

/* ---- requests ---- */

static bool listed(const struct lks_record *r, u64 session)
{
	for (u32 i = 0; i < r->nopeners; i++)
		if (r->openers[i].session == session)
			return true;
	return false;
}

static void refuse(struct lks_vol *v, struct lks_req *req, u8 client, u64 id, u64 session)
{
	bool fenced = session && session <= v->cfg.session_serial && !listed(&v->cfg, session);

	if (client == v->p.self) {
		if (req)
			lks_client_refused(v, req, fenced);
	} else {
		lks_send(v, client, LKS_LANE_ANY, LKS_REFUSED, id, fenced);
	}
}

static void reply(struct lks_vol *v, struct lks_work *w, int err)
{
	struct lks_frame f = { .type = LKS_REPLY, .version = v->cfg.version, .term = v->cfg.term, .seq = w->id,
			       .stable = (u64)-err };

	w->done = true;
	lks_pace_answered(v, w);
	if (!w->host)
		return;		/* its client's connection was lost */
	if (w->host == v->p.self) {
		struct lks_req *req = w->req;

		w->req = NULL;
		if (req)
			lks_client_reply(v, req, err);
		return;
	}
	if (w->kind == LKS_WORK_READ && !err)
		f.length = w->length;
	lks_send_frame(v, w->host, LKS_LANE_ANY, &f, f.length ? w->buf : NULL, NULL);
}

void lks_request(struct lks_vol *v, const struct lks_call *c)
{
	static const u8 kinds[] = {
		[LKS_OP_READ] = LKS_WORK_READ, [LKS_OP_WRITE] = LKS_WORK_WRITE, [LKS_OP_FLUSH] = LKS_WORK_FLUSH,
		[LKS_OP_ZEROES] = LKS_WORK_WRITE, [LKS_OP_DISCARD] = LKS_WORK_WRITE, [LKS_OP_OPEN] = LKS_WORK_OPEN,
	};
	struct lks_work *w = NULL;

	/* A client may know of a larger size before the primary does. */
	if (v->role == LKS_ACTIVE && (c->term == v->cfg.term || !LKS_ON(X2)) && c->offset + c->length <= lks_size(v))
		w = lks_work_new(v, kinds[c->op], c->offset, c->length, c->buf);
	if (!w) {
		refuse(v, c->req, c->client, c->id, c->session);
		return;
	}
	w->op = c->op;
	w->flags = c->flags;
	w->host = c->client;
	w->id = c->id;
	w->session = c->session;
	w->began_ms = v->now;
	w->req = c->req;
	if (c->req)
		c->req->work = w;
	lks_list_add_tail(&w->link, &v->queue);
	lks_todo(v, LKS_DO_PUMP);
}

int lks_on_req(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf)
{
	struct lks_call c = { .buf = buf, .offset = h->offset, .id = h->seq, .session = h->stable, .term = h->term,
			      .length = h->tag, .client = host, .op = h->flags >> LKS_F_OP_SHIFT,
			      .flags = h->flags & LKS_F_FUA };

	if (c.op == LKS_OP_FLUSH || c.op == LKS_OP_OPEN)
		c.offset = c.length = 0;
	if (c.op == LKS_OP_WRITE && !buf)
		return -EPROTO;
	lks_request(v, &c);
	return 0;
}

bool lks_blocks_busy(const struct lks_extent *e, u64 first, u64 last)
{
	struct lks_list *pos;

	if (!e || !LKS_ON(W2))
		return false;
	lks_list_for_each(pos, &e->busy) {
		const struct lks_work *w = lks_list_entry(pos, struct lks_work, busy);

		if (w->first <= last && first <= w->last)
			return true;
	}
	return false;
}

/* W2: others wait, in order */
bool lks_held_by_queue(struct lks_vol *v, struct lks_work *w)
{
	struct lks_list *pos;

	for (pos = v->queue.next; pos != &w->link && LKS_ON(W2); pos = pos->next) {
		struct lks_work *o = lks_list_entry(pos, struct lks_work, link);

		if ((o->kind == LKS_WORK_WRITE || o->kind == LKS_WORK_VERIFY) && lks_overlap(o, w))
			return true;
	}
	return false;
}

/*
 * An extent that was never written here reads as zeros on every member: R1 writes here what it finds elsewhere. To discard or zero
 * some of it is to write what is there already, and is done, under the leases as a read: nobody else has written meanwhile (L3). A
 * file system that is made discards its whole disk; that writes nothing, and a new replica need not copy it.
 */
static bool zeros_everywhere(struct lks_vol *v, u64 extent)
{
	return !(lks_extent_bits(v, extent) & LKS_EXTENT_WRITTEN) && lks_may_read(v);
}

static void begin_write(struct lks_vol *v, struct lks_work *w)
{
	u64 index = w->offset / LKS_EXTENT_BYTES;
	struct lks_extent *e;

	if (v->hold || lks_held_by_queue(v, w) || lks_blocks_busy(lks_extent_find(v, index), w->first, w->last))
		return;
	if (w->op != LKS_OP_WRITE && zeros_everywhere(v, index)) {
		reply(v, w, 0);
		lks_work_free(v, w);
		return;
	}
	e = lks_extent_get(v, index);
	if (!e)
		return;		/* tick tries again */
	w->ext = e;
	lks_list_add_tail(&w->busy, &e->busy);
	lks_list_move_tail(&w->link, &v->heating);
	lks_extent_heat(v, w);
}

static void begin_read(struct lks_vol *v, struct lks_work *w)
{
	if (!w->buf) {
		w->buf = v->ops->buf_alloc(v->ctx, w->length);
		if (!w->buf)
			return;
	}
	if (lks_extent_bits(v, w->offset / LKS_EXTENT_BYTES) & LKS_EXTENT_WRITTEN) {
		lks_list_move_tail(&w->link, &v->reads);
		lks_work_io(v, w, LKS_IO_READ, 0);
		return;
	}
	v->ops->buf_zero(w->buf, w->length);
	w->seq = v->seq;
	lks_list_move_tail(&w->link, &v->held);
	lks_todo(v, LKS_DO_READS);
}

/*
 * F2: a flush that would find nothing to do. What is acknowledged is on the disks of all members once a flush has come back from all
 * of them, and stays so with each write that is acknowledged with FUA; with anything else, and when somebody becomes a member, it does
 * not. A write counts when it has ended: a flush that began before does not cover it on all disks. The leases say that nobody else
 * serves meanwhile, as for a read.
 *
 * Who writes and flushes in turn, as databases and journals do, gets his writes carried out with FUA: what the flush would do is
 * then done along with the write, on all disks at the same time, and the flush costs no round of its own.
 */
#define ALONE_ENOUGH 4u

/* A client's write begins. */
static void foresee_flush(struct lks_vol *v, struct lks_work *w)
{
	if (v->since_flush)
		v->alone = 0;
	else if (v->alone >= ALONE_ENOUGH && w->op == LKS_OP_WRITE)
		w->flags |= LKS_F_FUA;
	v->since_flush = v->since_flush ? 2 : 1;
}

static void begin_flush(struct lks_vol *v, struct lks_work *w)
{
	u64 rest;
	u8 h;

	if (v->since_flush == 1 && v->alone < ALONE_ENOUGH)
		v->alone++;
	v->since_flush = 0;
	if ((v->soft == v->hard || !LKS_ON(F2)) && lks_may_read(v)) {
		v->spared++;
		reply(v, w, 0);
		lks_work_free(v, w);
		return;
	}
	w->soft = v->soft;
	lks_list_move_tail(&w->link, &v->flushes);
	w->seq = ++v->ids;
	w->wait = LKS_ON(F1) ? v->ackset : 0;
	w->local = true;
	lks_for_hosts(h, rest, w->wait)
		lks_send(v, h, 0, LKS_FLUSH, w->seq, 0);
	lks_work_io(v, w, LKS_IO_FLUSH, 0);
}

/* O2: what sessions no longer listed have begun may still take effect. */
static bool drained(struct lks_vol *v)
{
	struct lks_list *lists[] = { &v->heating, &v->writes };
	struct lks_list *pos;

	for (u32 i = 0; i < sizeof(lists) / sizeof(lists[0]) && LKS_ON(O2); i++)
		lks_list_for_each(pos, lists[i])
			if (!listed(&v->cfg, lks_list_entry(pos, struct lks_work, link)->session))
				return false;
	return true;
}

/* Begins what can be begun; the rest stays queued in order. */
void lks_pump(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;

	if (v->role != LKS_ACTIVE)
		return;
	lks_list_for_each_safe(pos, tmp, &v->queue) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);
		bool anyone = w->kind == LKS_WORK_VERIFY || (w->kind == LKS_WORK_READ && !w->session);

		if (!anyone && LKS_ON(O1) && !listed(&v->cfg, w->session)) {
			struct lks_req *req = w->req;
			u8 client = w->host;
			u64 id = w->id, session = w->session;

			lks_work_free(v, w);
			refuse(v, req, client, id, session);
		} else if (w->kind == LKS_WORK_OPEN) {
			if (!drained(v))
				continue;
			reply(v, w, 0);
			lks_work_free(v, w);
		} else if (w->kind == LKS_WORK_FLUSH) {
			begin_flush(v, w);
		} else if (w->kind == LKS_WORK_READ) {
			begin_read(v, w);
		} else if (w->kind == LKS_WORK_VERIFY) {
			lks_verify_begin(v, w);
		} else {
			begin_write(v, w);
		}
	}
}

/* ---- reads ---- */

bool lks_may_read(struct lks_vol *v)
{
	u64 rest;
	u8 h;

	lks_for_hosts(h, rest, v->ackset) {
		struct lks_peer *p = lks_peer_of(v, h);

		if (LKS_ON(L3) && (!p || p->lease_ms <= v->now))
			return false;
	}
	return true;
}

/* Has w's disk read seen a write that has not completed everywhere? */
static bool saw_unfinished(struct lks_vol *v, const struct lks_work *w)
{
	const struct lks_extent *e = lks_extent_find(v, w->offset / LKS_EXTENT_BYTES);
	struct lks_list *pos;

	if (!e || !LKS_ON(W2))
		return false;
	lks_list_for_each(pos, &e->busy) {
		const struct lks_work *o = lks_list_entry(pos, struct lks_work, busy);

		if (o->kind == LKS_WORK_WRITE && o->seq && !o->done && o->seq <= w->seq && lks_overlap(o, w))
			return true;
	}
	return false;
}

void lks_answer_held(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;

	if (lks_list_empty(&v->held) || v->role != LKS_ACTIVE || !lks_may_read(v))
		return;
	lks_list_for_each_safe(pos, tmp, &v->held) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		if (saw_unfinished(v, w))
			continue;
		reply(v, w, 0);
		lks_work_free(v, w);
	}
}

/* ---- replication ---- */

u64 lks_stable_now(const struct lks_vol *v)
{
	if (v->role == LKS_ACTIVATING && LKS_ON(R2))
		return 0;
	return lks_list_empty(&v->writes) ? v->seq : lks_list_first(&v->writes, struct lks_work, link)->seq - 1;
}

static u8 repl_flags(const struct lks_work *w)
{
	return w->flags | (w->op == LKS_OP_ZEROES ? LKS_F_ZEROES : w->op == LKS_OP_DISCARD ? LKS_F_DISCARD : 0);
}

/* The extent is hot: the write gets its number and goes everywhere at once (W1). */
void lks_replicate(struct lks_vol *v, struct lks_work *w)
{
	struct lks_frame f = { .type = LKS_REPL, .version = v->cfg.version, .term = v->cfg.term,
			       .offset = w->offset };
	u64 n = w->last - w->first + 1;

	if (w->kind == LKS_WORK_WRITE)
		foresee_flush(v, w);
	f.flags = repl_flags(w);
	lks_list_move_tail(&w->link, &v->writes);
	f.seq = w->seq = ++v->seq;
	f.stable = lks_stable_now(v);
	if (w->op == LKS_OP_WRITE)
		f.length = w->length;
	else
		f.tag = w->length;
	w->wait = LKS_ON(W1) ? v->ackset : 0;
	w->local = true;
	for (u32 i = 0; i < LKS_SLOTS; i++) {
		struct lks_peer *p = &v->peers[i];
		u64 bit = p->host ? LKS_BIT(p->host) : 0;
		bool member = v->ackset & bit;
		bool live = v->syncing & bit && !member && !lks_map_any(&p->dirty, w->first, n);	/* W4 */

		if (!p->host)
			continue;
		if (live) {
			w->live |= bit;
			p->live_blocks += n;
		}
		if (!member && (!live || LKS_ON(W4)))
			lks_mark_missed(v, p, w->first, n);		/* D1, W4 */
		if (member || live)
			lks_send_frame(v, p->host, LKS_LANE_ANY, &f, f.length ? w->buf : NULL, NULL);
	}
	lks_work_io(v, w, w->op == LKS_OP_WRITE ? LKS_IO_WRITE : w->op == LKS_OP_ZEROES ? LKS_IO_ZEROES : LKS_IO_DISCARD,
		    w->flags & LKS_F_FUA ? LKS_IO_FUA : 0);
}

static void maybe_done(struct lks_vol *v, struct lks_work *w)
{
	if (w->local || w->wait)
		return;
	if (w->op != LKS_OP_WRITE || !(w->flags & LKS_F_FUA))
		v->soft++;
	if (w->kind == LKS_WORK_RECON) {
		v->recons--;
		lks_todo(v, LKS_DO_ACTIVATE);
	} else {
		reply(v, w, 0);
	}
	if (w->live)
		lks_list_move_tail(&w->link, &v->live);
	else
		lks_work_free(v, w);
	lks_todo(v, LKS_DO_PUMP | LKS_DO_READS | LKS_DO_SYNC);
}

static void maybe_flushed(struct lks_vol *v, struct lks_work *w)
{
	if (w->local || w->wait)
		return;
	if (w->soft == v->soft)
		v->hard = v->soft;
	reply(v, w, 0);
	lks_work_free(v, w);
}

void lks_primary_io_done(struct lks_vol *v, struct lks_work *w, int err)
{
	switch (w->kind) {
	case LKS_WORK_READ:
		if (err) {		/* others fail the replica before they get here */
			reply(v, w, err);
			lks_work_free(v, w);
			break;
		}
		w->seq = v->seq;
		lks_list_move_tail(&w->link, &v->held);
		lks_todo(v, LKS_DO_READS);
		break;
	case LKS_WORK_FLUSH:
		w->local = false;
		maybe_flushed(v, w);
		break;
	case LKS_WORK_RECON:
		if (!w->seq) {
			lks_extent_heat(v, w);
			break;
		}
		/* fall through */
		__attribute__((__fallthrough__));
	default:
		w->local = false;
		maybe_done(v, w);
	}
}

static struct lks_work *by_seq(struct lks_list *head, u64 seq)
{
	struct lks_list *pos;

	lks_list_for_each(pos, head) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		if (w->seq == seq)
			return w;
	}
	return NULL;
}

void lks_on_ack(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	u64 bit = LKS_BIT(host);
	struct lks_peer *p = lks_peer_of(v, host);
	struct lks_work *w;

	if (v->role == LKS_IDLE || h->term != v->cfg.term || !p)
		return;
	w = by_seq(&v->writes, h->seq);
	if (!w)
		w = by_seq(&v->live, h->seq);
	if (!w)
		return;
	if (w->live & bit) {
		w->live &= ~bit;
		p->live_blocks -= w->last - w->first + 1;
		lks_map_remove(v, &p->dirty, w->first, w->last - w->first + 1);
	}
	w->wait &= ~bit;
	if (!w->done)
		maybe_done(v, w);
	else if (!w->live)
		lks_work_free(v, w);
	lks_check_joined(v, host);
	lks_todo(v, LKS_DO_PUMP | LKS_DO_SYNC);
}

void lks_on_flushed(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	struct lks_work *w = by_seq(&v->flushes, h->seq);

	if (!w || h->term != v->cfg.term)
		return;
	w->wait &= ~LKS_BIT(host);
	maybe_flushed(v, w);
}

/* ---- losses, leases ---- */

/*
 * What a client on host has begun goes on, but nobody is answered: over a new connection the answer could be taken for
 * that of another request (X1).
 */
static void mute(struct lks_vol *v, u8 host)
{
	struct lks_list *lists[] = { &v->heating, &v->writes, &v->flushes, &v->reads, &v->held };
	struct lks_list *pos;

	for (u32 i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		lks_list_for_each(pos, lists[i])
			if (lks_list_entry(pos, struct lks_work, link)->host == host)
				lks_list_entry(pos, struct lks_work, link)->host = 0;
}

/* The replica on host is lost; the clients there are not, if its link still stands. */
void lks_replica_lost(struct lks_vol *v, u8 host)
{
	u64 bit = LKS_BIT(host);

	if (v->role == LKS_IDLE)
		return;
	if ((lks_insync(&v->cfg) | v->ackset) & bit)
		v->lost |= bit;		/* W3, C5: it stays in the ack set */
	if (v->lost & bit && !(lks_insync(&v->cfg) & bit ? LKS_ON(W3) : LKS_ON(C5)))
		lks_forget(v, host);
	else if (v->syncing & ~v->ackset & bit)
		lks_drop_sync(v, host);
	lks_event(v, LKS_EV_STATE, 0);
}

void lks_primary_link_lost(struct lks_vol *v, u8 host)
{
	struct lks_list *pos, *tmp;

	mute(v, host);
	lks_list_for_each_safe(pos, tmp, &v->queue)
		if (lks_list_entry(pos, struct lks_work, link)->host == host && LKS_ON(X2))
			lks_work_free(v, lks_list_entry(pos, struct lks_work, link));
	lks_replica_lost(v, host);
}

/* Asks the daemon for the record with this in-sync set and primary. Once a while for the same one. */
void lks_propose(struct lks_vol *v, u64 insync, u8 heir)
{
	struct lks_record *r = &v->proposal;
	struct lks_event_info info = { .event = LKS_EV_PROPOSE, .record = r };

	if (v->proposed_version == v->cfg.version + 1 && v->proposed_set == insync && v->proposed_primary == heir &&
	    v->now < v->proposed_ms + PROPOSE_EVERY_MS)
		return;
	*r = v->cfg;
	r->version++;
	for (u32 i = 0; i < r->nreplicas; i++) {
		struct lks_record_replica *p = &r->replicas[i];
		bool was = lks_insync(&v->cfg) & LKS_BIT(p->host), is = insync & LKS_BIT(p->host);

		if (was && !is) {
			p->state = LKS_REPLICA_STALE;
			p->since = r->version;
		} else if (is && !was) {
			p->state = LKS_REPLICA_INSYNC;
		}
	}
	v->proposed_version = r->version;
	v->proposed_set = insync;
	v->proposed_primary = heir;
	if (heir) {		/* M1 */
		r->term++;
		r->primary = heir;
		r->flags |= LKS_RECORD_DRAINED;
	}
	v->proposed_ms = v->now;
	v->ops->event(v->ctx, &info);
}

static void ping(struct lks_vol *v, u64 members)
{
	u64 rest;
	u8 h;

	lks_for_hosts(h, rest, members) {
		struct lks_peer *p = lks_peer_of(v, h);

		if (!p)
			continue;
		if (v->now >= p->pinged_ms + v->p.lease_ms / PINGS_PER_LEASE) {
			p->pinged_ms = v->now;
			lks_send(v, h, 0, LKS_PING, v->now, 0);
		}
		if (p->lease_ms + v->p.lease_ms >= v->now || v->lost & LKS_BIT(h) || !LKS_ON(L4))
			continue;
		/*
		 * L4. Who has not even begun this term's session, since its replica is not attached yet, is given up without its link:
		 * there is no session to end, and all other volumes share the link.
		 */
		p->lease_ms = v->now;
		if (v->links & ~v->wait & LKS_BIT(h))
			lks_event(v, LKS_EV_SILENT, h);
		else
			lks_replica_lost(v, h);
	}
}

void lks_on_pong(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	struct lks_peer *p = lks_peer_of(v, host);
	u64 until = h->seq + v->p.lease_ms;	/* counted from the sending of the ping */

	if (v->role == LKS_IDLE || h->term != v->cfg.term || !p || h->seq > v->now)
		return;
	if (until > p->lease_ms)
		p->lease_ms = until;
	lks_todo(v, LKS_DO_READS);
}

void lks_tell_stable(struct lks_vol *v)
{
	u64 stable = lks_stable_now(v), rest;
	u8 h;

	if (stable == v->stable_told)
		return;
	v->stable_told = stable;
	lks_for_hosts(h, rest, v->ackset | v->syncing)
		lks_send(v, h, 0, LKS_STABLE, 0, stable);
}

/* Hosts whose answer others wait for, and whose alone: what the own disk has not done either would wait without them, too. */
static u64 owing(const struct lks_vol *v)
{
	const struct lks_list *lists[] = { &v->writes, &v->flushes, &v->verifies };
	const struct lks_list *pos;
	u64 hosts = v->role == LKS_ACTIVATING ? v->wait : 0;

	for (u32 i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		lks_list_for_each(pos, lists[i]) {
			const struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

			hosts |= w->local ? 0 : w->wait;
		}
	lks_list_for_each(pos, &v->live)	/* answered; until it is acknowledged no other begins in its blocks (W2) */
		hosts |= lks_list_entry(pos, struct lks_work, link)->live;
	lks_list_for_each(pos, &v->copies)	/* keeps writes out of its blocks (W2) */
		if (!lks_list_entry(pos, struct lks_work, link)->io_busy)
			hosts |= LKS_BIT(lks_list_entry(pos, struct lks_work, link)->host);
	return hosts;	/* a joiner that writes down the others' maps (D2) holds up nobody's writes, and may take minutes for it */
}

/*
 * L5: a host may answer pings while the disk of its replica answers nothing, and its daemon, which would have the replica left
 * out, may be as dead. Who owes answers and has given none for so many ticks is given up: a member without its link, as it hears
 * from the log what has become of it (H4); who is being resynced has no other way to learn that its session is over. Ticks, not
 * time: none pass while this host is frozen, and when it goes on the answers may be there.
 */
static void give_up_mute(struct lks_vol *v)
{
	u64 owed = owing(v) & ~v->lost & ~LKS_BIT(v->p.self);

	for (u32 i = 0; i < LKS_SLOTS; i++) {
		struct lks_peer *p = &v->peers[i];

		if (!p->host || !(owed & LKS_BIT(p->host))) {
			p->mute_ticks = 0;
			continue;
		}
		if (++p->mute_ticks <= v->p.answer_ms / LKS_TICK_MS || !v->p.answer_ms || !LKS_ON(L5))
			continue;
		p->mute_ticks = 0;
		if (lks_insync(&v->cfg) & LKS_BIT(p->host))
			lks_replica_lost(v, p->host);
		else
			lks_event(v, LKS_EV_SILENT, p->host);
	}
}

/* Something that was owed has come. */
void lks_answered(struct lks_vol *v, u8 host)
{
	struct lks_peer *p = lks_peer_of(v, host);

	if (p)
		p->mute_ticks = 0;
}

void lks_primary_tick(struct lks_vol *v)
{
	u64 insync = lks_insync(&v->cfg), rest;
	u8 h;

	give_up_mute(v);
	/* Who is lost, too: if its link stands, its promises let this host read (L3) until the log has decided. */
	ping(v, (insync | v->ackset) & ~LKS_BIT(v->p.self));
	lks_tell_stable(v);
	lks_pace_tick(v);
	if (v->role == LKS_ACTIVATING)
		lks_for_hosts(h, rest, v->wait & ~v->lost)	/* who has no session yet begins one; the others ignore it */
			lks_send_record(v, h, LKS_ACTIVATE, &v->cfg);
	if (v->lost & insync || (v->lost && LKS_ON(C6)))
		lks_propose(v, insync & ~v->lost, 0);	/* W3, C6 */
	else if (v->heir)
		lks_handover_tick(v);
	else if (v->join_stage == LKS_JOIN_PROPOSE)
		lks_propose_join(v);
}
