// SPDX-License-Identifier: GPL-2.0-or-later
/* Resync and joining, from the primary's side. */
#include "internal.h"

#define COPY_WINDOW 8u		/* copies in flight to one peer, at most ... */
#define COPY_BYTES (256u << 10)	/* ... of so much each, */
#define COPY_LEAST (64u << 10)	/* or one of this, */
#define SYNC_BYTES (64u << 20)	/* as all volumes of this host that resync share this */
#define UNREADABLE_MS 10000u	/* what could not be read is tried again so much later, block by block */

void lks_on_attach(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	struct lks_peer *p = lks_peer_of(v, host);
	const struct lks_record_replica *r = lks_replica_of(&v->cfg, host);
	u64 bit = LKS_BIT(host);
	bool whole;

	if (!p || !r || r->state != LKS_REPLICA_STALE)
		return;
	/* What it cannot vouch for went ahead in MAP frames and is dirty already (H4) */
	whole = !h->tag || (p->maps_term == h->term && p->maps == h->tag);
	p->maps = 0;
	if ((v->ackset | v->syncing) & bit && h->session != p->session)
		lks_replica_lost(v, host);	/* it has begun anew */
	if (!whole || !h->session || v->role != LKS_ACTIVE || h->term != v->cfg.term || (v->ackset | v->syncing | v->lost) & bit)
		return;		/* it offers itself again */
	if (!v->syncing)
		lks_pace_begin(v);
	v->syncing |= bit;
	p->session = h->session;
	p->cursor = 0;
	p->live_blocks = 0;
	p->copies = 0;
	p->rest_ms = 0;
	p->careful = p->careful_end = 0;
	lks_send_record(v, host, LKS_SYNCSTART, &v->cfg);
	lks_event(v, LKS_EV_STATE, 0);
	lks_todo(v, LKS_DO_SYNC);
}

void lks_drop_sync(struct lks_vol *v, u8 host)
{
	struct lks_peer *p = lks_peer_of(v, host);
	struct lks_list *lists[] = { &v->heating, &v->writes, &v->live };
	struct lks_list *pos, *tmp;
	u64 bit = LKS_BIT(host);

	v->syncing &= ~bit;
	if (v->joining == host)
		v->joining = v->join_stage = 0;
	lks_list_for_each_safe(pos, tmp, &v->copies)
		if (lks_list_entry(pos, struct lks_work, link)->host == host)
			lks_work_drop(v, lks_list_entry(pos, struct lks_work, link));
	for (u32 i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
		lks_list_for_each_safe(pos, tmp, lists[i]) {
			struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

			w->live &= ~bit;
			if (w->done && !w->live)
				lks_work_free(v, w);
		}
	}
	if (p)
		p->copies = p->live_blocks = 0;
	lks_todo(v, LKS_DO_PUMP | LKS_DO_SYNC);
}

/* What this volume may have in flight to one peer. */
static u32 share(const struct lks_vol *v)
{
	u32 bytes = SYNC_BYTES / (v->crowd ? v->crowd : 1);

	if (bytes < COPY_LEAST)
		return COPY_LEAST;
	return bytes < COPY_WINDOW * COPY_BYTES ? bytes : COPY_WINDOW * COPY_BYTES;
}

static void send_copy(struct lks_vol *v, struct lks_work *w, bool zeros)
{
	struct lks_frame f = { .type = LKS_SYNC, .version = v->cfg.version, .term = v->cfg.term, .seq = w->id,
			       .stable = lks_list_empty(&v->writes) ? v->seq :
					 lks_list_first(&v->writes, struct lks_work, link)->seq - 1,
			       .offset = w->offset, .tag = w->length };

	f.length = zeros ? 0 : w->length;
	lks_send_frame(v, w->host, LKS_LANE_ANY, &f, zeros ? NULL : w->buf, NULL);
}

static bool careful(const struct lks_peer *p, u64 block)
{
	return block >= p->careful && block < p->careful_end;
}

/* In a run that could not be read as a whole, all may be good but one sector. The rest of the volume is copied as before. */
static void be_careful(struct lks_peer *p, const struct lks_work *w)
{
	if (w->first == w->last)
		return;
	if (!p->careful_end || w->first < p->careful)
		p->careful = w->first;
	if (w->last >= p->careful_end)
		p->careful_end = w->last + 1;
}

/* Copies the run of dirty blocks that begins at first and in which nothing is in flight. false: no memory. */
/* A run is either all in doubt or not at all: what is only in doubt is compared by hash first. */
static bool begin_copy(struct lks_vol *v, struct lks_peer *p, u64 first)
{
	u64 per = LKS_EXTENT_BYTES >> v->block_shift, last = first, end;
	struct lks_extent *e = lks_extent_get(v, first / per);
	struct lks_buf *buf = NULL;
	struct lks_work *w;
	bool zeros, unsure = lks_map_test(&p->unsure, first);
	u32 length, most = share(v) < COPY_BYTES ? share(v) : COPY_BYTES;

	if (!e)
		return false;
	while (!careful(p, first) && !careful(p, last + 1) && last + 1 < lks_data_blocks(v) && (last + 1) / per == first / per &&
	       (last + 2 - first) << v->block_shift <= most && lks_map_test(&p->dirty, last + 1) &&
	       lks_map_test(&p->unsure, last + 1) == unsure &&
	       !lks_blocks_busy(e, last + 1, last + 1))
		last++;
	end = (last + 1) << v->block_shift;
	length = (u32)((end < lks_size(v) ? end : lks_size(v)) - (first << v->block_shift));
	zeros = !(lks_extent_bits(v, e->index) & LKS_EXTENT_WRITTEN);
	if (!zeros)
		buf = v->ops->buf_alloc(v->ctx, length);
	w = zeros || buf ? lks_work_new(v, LKS_WORK_COPY, first << v->block_shift, length, buf) : NULL;
	if (buf)
		v->ops->buf_put(buf);
	if (!w) {
		lks_extent_put(v, e);
		return false;
	}
	w->host = p->host;
	w->id = ++v->ids;
	w->compare = unsure && !zeros;
	w->ext = e;
	lks_list_add_tail(&w->busy, &e->busy);		/* W2: a block being copied is locked */
	lks_list_add_tail(&w->link, &v->copies);
	p->copies++;
	p->cursor = last + 1;
	if (zeros)
		send_copy(v, w, true);
	else {
		lks_pace_copied(v, length);
		lks_work_io(v, w, LKS_IO_READ, 0);
	}
	return true;
}

void lks_copy_io_done(struct lks_vol *v, struct lks_work *w, int err)
{
	struct lks_peer *p = lks_peer_of(v, w->host);

	if (err) {		/* stays dirty: the peer does not join without it */
		if (p) {
			p->copies--;
			p->rest_ms = v->now + UNREADABLE_MS;
			be_careful(p, w);
		}
		lks_work_free(v, w);
		lks_todo(v, LKS_DO_SYNC | LKS_DO_PUMP);
		return;
	}
	if (w->compare) {
		w->hash = v->ops->buf_hash(w->buf, w->length);
		lks_send_compare(v, w->host, w, false);
		return;
	}
	send_copy(v, w, false);
}

static void copied(struct lks_vol *v, struct lks_peer *p, struct lks_work *w)
{
	lks_map_remove(v, &p->dirty, w->first, w->last - w->first + 1);
	if (p->unsure.set)
		lks_map_remove(v, &p->unsure, w->first, w->last - w->first + 1);
	p->copies--;
	lks_work_free(v, w);
	lks_todo(v, LKS_DO_SYNC | LKS_DO_PUMP);
}

void lks_copy_compared(struct lks_vol *v, struct lks_work *w, bool equal)
{
	struct lks_peer *p = lks_peer_of(v, w->host);

	if (equal && p) {
		copied(v, p, w);
		return;
	}
	w->compare = false;
	send_copy(v, w, false);
}

static void step_peer(struct lks_vol *v, struct lks_peer *p)
{
	bool wrapped = false;
	u32 window = share(v) / COPY_BYTES;

	while (p->copies < (window ? window : 1) && p->dirty.set && lks_pace_allows(v)) {
		u64 b = lks_map_next(&p->dirty, p->cursor);

		if (b >= lks_data_blocks(v)) {
			/* What lies behind the data was only rounded up to (map.c): nobody can have written there. */
			if (b < v->blocks)
				lks_map_remove(v, &p->dirty, lks_data_blocks(v), v->blocks - lks_data_blocks(v));
			if (wrapped || p->rest_ms > v->now)
				break;
			wrapped = true;
			p->cursor = 0;
			continue;
		}
		if (lks_blocks_busy(lks_extent_find(v, b / (LKS_EXTENT_BYTES >> v->block_shift)), b, b)) {
			p->cursor = b + 1;	/* whoever ends there comes here again */
			continue;
		}
		if (!begin_copy(v, p, b))
			break;
	}
}

void lks_sync_step(struct lks_vol *v)
{
	u64 rest, peers = v->role == LKS_ACTIVE ? v->syncing & ~v->ackset : 0;
	u8 h;

	if (peers || v->crowd) {
		v->crowd = v->ops->syncing ? v->ops->syncing(v->ctx, peers) : 1;
		if (!peers)
			v->crowd = 0;
	}
	lks_for_hosts(h, rest, peers) {
		struct lks_peer *p = lks_peer_of(v, h);

		if (!p)
			continue;
		step_peer(v, p);
		lks_check_joined(v, h);
	}
}

void lks_on_synced(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	struct lks_peer *p = lks_peer_of(v, host);
	struct lks_work *w;

	if (v->role == LKS_IDLE || h->term != v->cfg.term || !p)
		return;
	w = lks_work_by_id(&v->copies, h->seq);
	if (w && w->host == host && !w->io_busy && !w->compare)
		copied(v, p, w);
}

struct lks_work *lks_work_by_id(struct lks_list *head, u64 id)
{
	struct lks_list *pos;

	lks_list_for_each(pos, head) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		if (w->id == id)
			return w;
	}
	return NULL;
}

/* ---- joining ---- */

/* J3: nothing is missing any more but what is in flight to it live. One joins at a time. */
void lks_check_joined(struct lks_vol *v, u8 host)
{
	struct lks_peer *p = lks_peer_of(v, host);

	if (v->role != LKS_ACTIVE || !p || !(v->syncing & LKS_BIT(host)))
		return;
	if (!v->joining && p->dirty.set <= p->live_blocks) {
		v->joining = host;
		v->join_stage = LKS_JOIN_NONE;
		p->lease_ms = v->now;
		if (LKS_ON(J1))
			v->ackset |= LKS_BIT(host);
		v->soft++;		/* F2 */
		lks_event(v, LKS_EV_STATE, 0);
	}
	if (v->joining != host || v->join_stage || (p->dirty.set && LKS_ON(J3)))
		return;
	v->join_stage = LKS_JOIN_MAPS;
	v->maps_slot = 0;
	v->maps_block = 0;
	v->maps_sent = 0;
	lks_todo(v, LKS_DO_SYNC);
}

/*
 * D2: the other absent replicas' dirty maps, as much at a time as the control lane has room for: those of a volume of 2 TiB are 64 MiB
 * each, and pings go behind them. It is as if all went at once, at the end: what becomes dirty meanwhile is a write, which the
 * joiner has to acknowledge (J1) and marks by itself (D1), or comes with a version or an offer, from which it learns it, too (C3,
 * H4); what becomes clean meanwhile it has dirty, which copies too much.
 */
void lks_send_dirty(struct lks_vol *v)
{
	u32 room = v->ops->room ? v->ops->room(v->ctx, v->joining) : ~0u;
	struct lks_frame f = { .version = v->cfg.version, .term = v->cfg.term };

	while (v->maps_slot < LKS_SLOTS) {
		const struct lks_peer *q = &v->peers[v->maps_slot];

		if (q->host && q->host != v->joining && !(lks_insync(&v->cfg) & LKS_BIT(q->host)))
			v->maps_block = lks_map_next(&q->dirty, v->maps_block);
		else
			v->maps_block = q->dirty.bits;
		if (v->maps_block >= q->dirty.bits) {
			v->maps_slot++;
			v->maps_block = 0;
			continue;
		}
		if (!room--)
			return;
		f.type = LKS_MAP;
		f.stable = q->since;
		f.tag = LKS_MAP_DIRTY | (u32)q->host << 8;
		lks_send_leaf(v, v->joining, &f, &q->dirty, (u32)(v->maps_block / LKS_LEAF_BITS));
		v->maps_block = LKS_ROUND_UP(v->maps_block + 1, LKS_LEAF_BITS);
		v->maps_sent++;
	}
	v->join_stage = LKS_JOIN_PREPARE;
	f = (struct lks_frame){ .type = LKS_PREPARE, .version = v->cfg.version, .term = v->cfg.term, .tag = v->maps_sent };
	lks_send_frame(v, v->joining, 0, &f, NULL, NULL);
}

void lks_on_prepared(struct lks_vol *v, u8 host, const struct lks_frame *h)
{
	if (v->role == LKS_IDLE || h->term != v->cfg.term || v->joining != host || v->join_stage != LKS_JOIN_PREPARE)
		return;
	v->join_stage = LKS_JOIN_PROPOSE;
	if (v->role == LKS_ACTIVE)
		lks_propose_join(v);	/* else the version that ends the handover does it */
}

void lks_propose_join(struct lks_vol *v)
{
	lks_propose(v, lks_insync(&v->cfg) | LKS_BIT(v->joining), 0);
}
