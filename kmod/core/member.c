// SPDX-License-Identifier: GPL-2.0-or-later
/* A replica that takes a primary's data: as a member, or while it is being resynced. */
#include "internal.h"

#define ATTACH_EVERY_MS 1000u

/*
 * T1: a replica takes data only in its session. A session can end and another begin under the same primary, in the same
 * term, version and over the same link (the replica was detached meanwhile): the session's id tells them apart.
 */
static bool mine(const struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	return (v->session_host == host && v->session_term == h->term && v->session_id == h->session) || !LKS_ON(T1);
}

/* ---- beginning a session ---- */

void lks_on_activate(struct lks_vol *v, u8 host, const struct lks_record *r)
{
	if (v->suspect && LKS_ON(S4)) {
		struct lks_frame f = { .type = LKS_REFUSE, .version = r->version, .term = r->term };

		lks_send_frame(v, host, 0, &f, NULL, NULL);
		return;
	}
	if (r->version < v->cfg.version || (v->session_host == host && v->session_term == r->term))
		return;
	lks_start_session(v, host, r);
	v->answer_to = host;
	lks_todo(v, LKS_DO_ANSWER);
}

/* T2: told only once nothing of an earlier session can reach the disk any more */
void lks_member_answer(struct lks_vol *v)
{
	struct lks_frame f = { .type = LKS_ACTIVATED, .version = v->cfg.version, .term = v->cfg.term };

	if (!v->answer_to || (v->ios && LKS_ON(T2)))
		return;
	f.tag = lks_send_evidence(v, v->answer_to, v->cfg.term, &v->inherited);
	lks_send_frame(v, v->answer_to, 0, &f, NULL, NULL);
	v->answer_to = 0;
}

/* A replica that is not in sync offers itself to the primary, with what it cannot vouch for (H4). */
void lks_member_tick(struct lks_vol *v)
{
	const struct lks_record *c = &v->note;
	const struct lks_record_replica *me = lks_replica_of(c, v->p.self);
	struct lks_frame f = { .type = LKS_ATTACH, .version = c->version, .term = c->term };
	struct lks_map evidence;
	bool given_up = c->version > v->cfg.version && lks_insync(&v->cfg) & LKS_BIT(v->p.self);

	if (!v->admitted || !me || me->state != LKS_REPLICA_STALE || !c->primary || c->primary == v->p.self)
		return;
	/* A member that the log has given up since, though the link stands: its session is worth nothing any more. */
	if (v->session_host == c->primary && v->session_term == c->term && !given_up)
		return;
	if (v->session_host && LKS_ON(T2))
		lks_end_session(v);
	if ((v->ios && LKS_ON(T2)) || !(v->links & LKS_BIT(c->primary)) || v->attached_ms + ATTACH_EVERY_MS > v->now)
		return;
	v->attached_ms = v->now;
	/* Another number than that of any session whose frames may still be under way: offers are a second apart, and a
	 * lane that delivers nothing for minutes is broken. */
	if (!v->offer)
		v->offer = (u16)(1 + (v->now >> 3) % 0xffff);
	f.session = v->offer;
	if (LKS_ON(H4)) {
		lks_map_init(v, &evidence, v->blocks);
		lks_evidence(v, &evidence);
		f.tag = lks_send_evidence(v, c->primary, c->term, &evidence);
		lks_map_free(v, &evidence);
	}
	lks_send_frame(v, c->primary, 0, &f, NULL, NULL);
}

void lks_on_syncstart(struct lks_vol *v, u8 host, const struct lks_record *r, u16 id)
{
	if (host != v->note.primary || r->term != v->note.term || v->role != LKS_IDLE)
		return;
	if (v->session_host || !v->offer || id != v->offer)
		return;
	lks_start_session(v, host, r);
	v->session_id = id;
	if (LKS_ON(H4))
		lks_map_or(v, &v->doubt, &v->inherited);	/* kept until prepared */
	lks_map_clear(v, &v->inherited);
	for (u32 i = 0; i < LKS_SLOTS; i++)			/* D2 gives it new ones */
		if (v->peers[i].host) {
			lks_map_clear(v, &v->peers[i].dirty);
			lks_map_clear(v, &v->peers[i].unsure);
			v->peers[i].slot_zeroed = false;
		}
}

void lks_on_config(struct lks_vol *v, u8 host, const struct lks_record *r, u16 id)
{
	if (v->session_host == host && v->session_term == r->term && v->session_id == id && r->version > v->cfg.version)
		lks_adopt(v, r, true);
}

int lks_on_map(struct lks_vol *v, u8 host, const struct lks_frame *h, const void *bytes)
{
	u8 kind = h->tag & 0xff, about = h->tag >> 8 & 0xff;
	struct lks_peer *p = lks_peer_of(v, kind == LKS_MAP_DIRTY ? about : host);

	if (h->tag >> 16 || h->offset % LKS_LEAF_BITS)
		return -EPROTO;
	if (kind == LKS_MAP_DIRTY) {
		if (!mine(v, host, h))
			return 0;
		v->maps++;
		if (p && h->length && h->offset < v->blocks && LKS_ON(D2))
			lks_map_add_chunk(v, &p->dirty, h->offset, bytes);
		return 0;
	}
	if (kind != LKS_MAP_EVIDENCE || !h->length)
		return -EPROTO;
	if (!p)
		return 0;
	if (p->maps_term != h->term)
		p->maps = 0;
	p->maps_term = h->term;
	p->maps++;
	if (h->offset >= v->blocks)
		return 0;	/* the sender's metadata have moved to where a larger volume has them, ours not yet */
	if (v->role == LKS_ACTIVATING && h->term == v->cfg.term && v->wait & LKS_BIT(host))
		lks_map_add_chunk(v, &v->inherited, h->offset, bytes);		/* R1 */
	else {
		lks_map_add_chunk(v, &p->dirty, h->offset, bytes);		/* H4 */
		lks_map_add_chunk(v, &p->unsure, h->offset, bytes);
	}
	return 0;
}

/* ---- data ---- */

static void begin_io(struct lks_vol *v, struct lks_work *w)
{
	u8 op = w->op == LKS_OP_ZEROES ? LKS_IO_ZEROES : w->op == LKS_OP_DISCARD ? LKS_IO_DISCARD : LKS_IO_WRITE;

	lks_work_io(v, w, op, w->flags & LKS_F_FUA ? LKS_IO_FUA : 0);
}

void lks_member_hot(struct lks_vol *v, struct lks_work *w)
{
	begin_io(v, w);
}

static struct lks_work *incoming(struct lks_vol *v, u8 kind, u8 host, const struct lks_frame *h, u64 offset, u32 length,
				 struct lks_buf *buf)
{
	struct lks_work *w = lks_work_new(v, kind, offset, length, buf);

	if (!w)
		return NULL;
	w->host = host;
	w->session = h->term;
	w->id = h->seq;
	if (kind == LKS_WORK_MFLUSH || kind == LKS_WORK_MCOMPARE)
		return w;
	w->ext = lks_extent_get(v, offset / LKS_EXTENT_BYTES);
	if (!w->ext) {
		lks_work_free(v, w);
		return NULL;
	}
	lks_list_add_tail(&w->busy, &w->ext->busy);
	return w;
}

/* By number: they come nearly in that order. */
static void add_unstable(struct lks_vol *v, struct lks_work *w)
{
	struct lks_list *pos = v->unstable.prev;

	while (pos != &v->unstable && lks_list_entry(pos, struct lks_work, link)->seq > w->seq)
		pos = pos->prev;
	lks_list_insert(&w->link, pos->next);
}

int lks_on_repl(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf)
{
	struct lks_work *w;

	if (!mine(v, host, h))
		return 0;
	if (v->cfg.version < h->version && LKS_ON(C2) && LKS_ON(T1))
		return -EPROTO;		/* C2 is broken at the other end */
	w = incoming(v, LKS_WORK_MEMBER, host, h, h->offset, h->length ? h->length : h->tag, buf);
	if (!w)
		return -ENOMEM;
	w->op = h->length ? LKS_OP_WRITE : h->flags & LKS_F_DISCARD ? LKS_OP_DISCARD : LKS_OP_ZEROES;
	w->flags = h->flags & LKS_F_FUA;
	w->seq = h->seq;
	w->local = true;
	add_unstable(v, w);
	w->ext->unstable++;
	lks_set_stable(v, h->stable);
	for (u32 i = 0; i < LKS_SLOTS; i++) {			/* D1 */
		struct lks_peer *p = &v->peers[i];

		if (p->host && p->host != host && !(lks_insync(&v->cfg) & LKS_BIT(p->host)) && LKS_ON(D1))
			lks_mark_missed(v, p, w->first, w->last - w->first + 1);
	}
	lks_extent_heat(v, w);
	return 0;
}

static void unstable_done(struct lks_vol *v, struct lks_work *w)
{
	w->ext->unstable--;
	lks_work_free(v, w);
}

void lks_set_stable(struct lks_vol *v, u64 stable)
{
	struct lks_list *pos, *tmp;

	if (stable <= v->stable)
		return;
	v->stable = stable;
	lks_map_clear(v, &v->inherited);	/* R2: the primary of this term has rewritten it all */
	lks_list_for_each_safe(pos, tmp, &v->unstable) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		if (w->seq > stable)
			break;
		if (!w->local)
			unstable_done(v, w);
	}
}

/*
 * In this range the replica holds what the primary of its session holds. Nothing of it was in flight there (W2), so all members
 * hold the same; what is written to it from now on, they mark (D1). So a block need not be handed to a primary again (H4),
 * whoever that will be, and a resync that is interrupted goes on where it was. A crash of this host brings it all back: the
 * extents stay hot until the replica is in sync (H2).
 */
static void same_as_primary(struct lks_vol *v, u64 offset, u32 length)
{
	u64 end = offset + length, first = LKS_DIV_UP(offset, v->p.block_size);

	end = end < lks_size(v) ? end >> v->block_shift : LKS_DIV_UP(end, v->p.block_size);
	if (v->doubt.set && first < end)
		lks_map_remove(v, &v->doubt, first, end - first);
}

int lks_on_sync(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf)
{
	struct lks_work *w;

	if (!mine(v, host, h))
		return 0;
	if (!h->length && !(lks_extent_bits(v, h->offset / LKS_EXTENT_BYTES) & LKS_EXTENT_WRITTEN)) {
		same_as_primary(v, h->offset, h->tag);
		lks_send(v, host, LKS_LANE_ANY, LKS_SYNCED, h->seq, 0);		/* zeros both, no I/O */
		return 0;
	}
	w = incoming(v, LKS_WORK_SYNC, host, h, h->offset, h->tag, buf);
	if (!w)
		return -ENOMEM;
	w->op = h->length ? LKS_OP_WRITE : LKS_OP_ZEROES;
	lks_list_add_tail(&w->link, &v->incoming);
	lks_extent_heat(v, w);
	return 0;
}

void lks_on_flush(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	struct lks_work *w;

	if (!mine(v, host, h))
		return;
	w = incoming(v, LKS_WORK_MFLUSH, host, h, 0, 0, NULL);
	if (!w) {
		lks_event(v, LKS_EV_SILENT, host);	/* cannot answer: the link must go (F1) */
		return;
	}
	lks_list_add_tail(&w->link, &v->incoming);
	lks_work_io(v, w, LKS_IO_FLUSH, 0);
}

static void compared(struct lks_vol *v, u8 host, u64 id, enum lks_compared answer)
{
	struct lks_frame f = { .type = LKS_COMPARED, .version = v->cfg.version, .term = v->cfg.term, .seq = id, .stable = answer };

	lks_send_frame(v, host, LKS_LANE_ANY, &f, NULL, NULL);
}

/* The primary keeps these blocks busy (W2): nothing changes in them meanwhile. */
void lks_on_compare(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	bool written = lks_extent_bits(v, h->offset / LKS_EXTENT_BYTES) & LKS_EXTENT_WRITTEN;
	struct lks_work *w;
	struct lks_buf *buf;

	if (!mine(v, host, h))
		return;
	if (h->flags & LKS_F_ZEROES) {
		if (!written)
			same_as_primary(v, h->offset, h->tag);
		compared(v, host, h->seq, written ? LKS_CMP_DIFFERS : LKS_CMP_EQUAL);
		return;
	}
	buf = v->ops->buf_alloc(v->ctx, h->tag);
	w = buf ? incoming(v, LKS_WORK_MCOMPARE, host, h, h->offset, h->tag, buf) : NULL;
	if (buf)
		v->ops->buf_put(buf);
	if (!w) {
		compared(v, host, h->seq, LKS_CMP_UNKNOWN);
		return;
	}
	w->hash = h->stable;
	lks_list_add_tail(&w->link, &v->incoming);
	if (written) {
		lks_work_io(v, w, LKS_IO_READ, 0);
		return;
	}
	v->ops->buf_zero(buf, h->tag);
	lks_member_io_done(v, w, 0);
}

void lks_member_io_done(struct lks_vol *v, struct lks_work *w, int err)
{
	bool same = (v->session_host == w->host && v->session_term == w->session) || !LKS_ON(T1);
	u8 host = w->host;

	(void)err;
	if (w->kind == LKS_WORK_MEMBER) {
		u64 seq = w->seq;

		w->local = false;
		lks_list_del(&w->busy);
		if (w->buf)
			v->ops->buf_put(w->buf);
		w->buf = NULL;
		if (w->seq <= v->stable && same)
			unstable_done(v, w);	/* a live write: stable did not wait for it */
		if (same)
			lks_send(v, host, LKS_LANE_ANY, LKS_ACK, seq, 0);
		return;
	}
	if (same) {
		bool equal = w->kind == LKS_WORK_SYNC ||
			     (w->kind == LKS_WORK_MCOMPARE && v->ops->buf_hash(w->buf, w->length) == w->hash);

		if (equal)
			same_as_primary(v, w->offset, w->length);
		if (w->kind == LKS_WORK_MCOMPARE)
			compared(v, host, w->id, equal ? LKS_CMP_EQUAL : LKS_CMP_DIFFERS);
		else
			lks_send(v, host, LKS_LANE_ANY, w->kind == LKS_WORK_SYNC ? LKS_SYNCED : LKS_FLUSHED, w->id, 0);
	}
	lks_work_free(v, w);
}

void lks_on_stable(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	if (mine(v, host, h))
		lks_set_stable(v, h->stable);
}

/* ---- joining, promises ---- */

void lks_on_prepare(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	if (!mine(v, host, h) || v->session_host != host || h->tag != v->maps)
		return;
	v->maps = 0;
	v->prepare = true;
	lks_save(v, false);	/* J2, D2 */
}

/* The maps and the data are durable; all that was in doubt has been resynced (H4): what is left of it lies behind the data's end. */
void lks_member_prepared(struct lks_vol *v)
{
	if (!v->session_host)
		return;
	lks_map_clear(v, &v->doubt);
	v->suspect = false;
	lks_send(v, v->session_host, 0, LKS_PREPARED, 0, 0);
	lks_event(v, LKS_EV_STATE, 0);
}

void lks_on_ping(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	u64 until = v->now + (u64)v->p.lease_ms * (100 + LKS_DRIFT_PERCENT) / 100;

	if (!mine(v, host, h))
		return;
	if (until > v->promise_ms)
		v->promise_ms = until;		/* L1 */
	lks_send(v, host, 0, LKS_PONG, h->seq, 0);
}
