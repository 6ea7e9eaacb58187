// SPDX-License-Identifier: GPL-2.0-or-later
/* A volume's life on this host: entry points, the record, sessions, work objects. */
#include "internal.h"

/* ---- small things ---- */

void lks_todo(struct lks_vol *v, u32 what)
{
	v->todo |= what;
}

const struct lks_record_replica *lks_replica_of(const struct lks_record *r, u8 host)
{
	for (u32 i = 0; i < r->nreplicas; i++)
		if (r->replicas[i].host == host)
			return &r->replicas[i];
	return NULL;
}

struct lks_peer *lks_peer_of(struct lks_vol *v, u8 host)
{
	for (u32 i = 0; i < LKS_SLOTS; i++)
		if (v->peers[i].host == host && host)
			return &v->peers[i];
	return NULL;
}

u64 lks_peer_hosts(const struct lks_vol *v)
{
	u64 set = 0;

	for (u32 i = 0; i < LKS_SLOTS; i++)
		if (v->peers[i].host)
			set |= LKS_BIT(v->peers[i].host);
	return set;
}

void lks_event(struct lks_vol *v, enum lks_event event, u8 host)
{
	struct lks_event_info info = { .event = event, .host = host };

	v->ops->event(v->ctx, &info);
}

void lks_send_frame(struct lks_vol *v, u8 host, u8 lane, struct lks_frame *f, struct lks_buf *buf, const void *bytes)
{
	const struct lks_peer *p = lks_peer_of(v, host);

	f->volume = v->p.vid;
	if (v->role != LKS_IDLE && p)
		f->session = p->session;
	if (v->links & LKS_BIT(host))
		v->ops->send(v->ctx, host, lane, f, buf, bytes);
}

void lks_send(struct lks_vol *v, u8 host, u8 lane, u8 type, u64 seq, u64 stable)
{
	struct lks_frame f = { .type = type, .version = v->cfg.version, .term = v->cfg.term, .seq = seq, .stable = stable };

	lks_send_frame(v, host, lane, &f, NULL, NULL);
}

/* C2: a version or session start goes down every lane ahead of the data that depends on it */
void lks_send_record(struct lks_vol *v, u8 host, u8 type, const struct lks_record *r)
{
	struct lks_frame f = { .type = type, .version = r->version, .term = r->term, .length = sizeof(*r) };

	lks_send_frame(v, host, LKS_ON(C2) ? LKS_LANE_ALL : 0, &f, NULL, r);
}

void lks_send_leaf(struct lks_vol *v, u8 host, struct lks_frame *f, const struct lks_map *m, u32 i)
{
	f->offset = (u64)i * LKS_LEAF_BITS;
	f->length = LKS_MAP_CHUNK_BYTES;
	lks_map_get_chunk(m, i, v->map_page);
	lks_send_frame(v, host, 0, f, NULL, v->map_page);
}

/* All at once: it is of hot extents, which are few but for a volume that is written all over (HOT_CAP). Returns how many frames. */
u32 lks_send_evidence(struct lks_vol *v, u8 host, u64 term, const struct lks_map *m)
{
	struct lks_frame f = { .type = LKS_MAP, .version = v->cfg.version, .term = term, .tag = LKS_MAP_EVIDENCE };
	u32 sent = 0;

	for (u32 i = 0; i < m->nleaves && m->set; i++) {
		if (lks_map_leaf_empty(m, i))
			continue;
		lks_send_leaf(v, host, &f, m, i);
		sent++;
	}
	return sent;
}

/* ---- work ---- */

struct lks_work *lks_work_new(struct lks_vol *v, u8 kind, u64 offset, u32 length, struct lks_buf *buf)
{
	struct lks_work *w = v->ops->alloc(v->ctx, sizeof(*w));

	if (!w)
		return NULL;
	lks_list_init(&w->link);
	lks_list_init(&w->busy);
	lks_list_init(&w->hotwait);
	w->kind = kind;
	w->offset = offset;
	w->length = length;
	w->first = offset >> v->block_shift;
	w->last = length ? (offset + length - 1) >> v->block_shift : w->first;
	w->buf = buf;
	if (buf)
		v->ops->buf_get(buf);
	w->io.kind = LKS_IO_OF_WORK;
	v->works++;
	return w;
}

void lks_work_free(struct lks_vol *v, struct lks_work *w)
{
	struct lks_extent *e = w->ext;

	lks_list_del(&w->link);
	lks_list_del(&w->busy);
	lks_list_del(&w->hotwait);
	if (w->req)
		w->req->work = NULL;
	if (w->buf)
		v->ops->buf_put(w->buf);
	v->works--;
	v->ops->free(v->ctx, w, sizeof(*w));
	if (e)
		lks_extent_put(v, e);
}

void lks_work_drop(struct lks_vol *v, struct lks_work *w)
{
	if (!w->io_busy) {
		lks_work_free(v, w);
		return;
	}
	/*
	 * Its transfer cannot be called back; it keeps its blocks busy, and session starts waiting, until it is done. A
	 * local reader must not send its request elsewhere before, since the disk writes into its buffer.
	 */
	w->orphan = true;
	if (w->req && w->kind != LKS_WORK_READ) {
		w->req->work = NULL;
		w->req = NULL;
	}
	lks_list_move_tail(&w->link, &v->orphans);
}

void lks_work_io(struct lks_vol *v, struct lks_work *w, u8 op, u8 flags)
{
	w->io.op = op;
	w->io.flags = flags;
	w->io.offset = w->offset;
	w->io.length = w->length;
	w->io.buf = w->buf;
	w->io_busy = true;
	v->ios++;
	v->ops->submit(v->ctx, &w->io);
}

/* A write that p misses for certain. */
void lks_mark_missed(struct lks_vol *v, struct lks_peer *p, u64 first, u64 n)
{
	lks_map_add(v, &p->dirty, first, n);
	if (p->unsure.set)
		lks_map_remove(v, &p->unsure, first, n);
}

/* ---- the record ---- */

/* Every block of every written extent: what a replica misses of which nothing is known. */
static void add_written(struct lks_vol *v, struct lks_map *m)
{
	u64 per = LKS_EXTENT_BYTES >> v->block_shift, blocks = lks_data_blocks(v);

	for (u64 i = 0; i * per < blocks; i++)
		if (lks_extent_bits(v, i) & LKS_EXTENT_WRITTEN)
			lks_map_add(v, m, i * per, blocks - i * per < per ? blocks - i * per : per);
}

static struct lks_peer *peer_new(struct lks_vol *v, u8 host)
{
	for (u32 i = 0; i < LKS_SLOTS; i++) {
		struct lks_peer *p = &v->peers[i];

		if (p->host)
			continue;
		memset(p, 0, sizeof(*p));
		p->host = host;
		lks_map_init(v, &p->dirty, v->blocks);
		lks_map_init(v, &p->unsure, v->blocks);
		return p;
	}
	return NULL;	/* a record has at most LKS_SLOTS others */
}

static void peer_follow(struct lks_vol *v, struct lks_peer *p, const struct lks_record *r,
			const struct lks_record_replica *now, bool settle)
{
	bool known = v->cfg.version && lks_replica_of(&v->cfg, p->host);
	bool was_in = known && lks_insync(&v->cfg) & LKS_BIT(p->host);
	bool is_in = lks_insync(r) & LKS_BIT(p->host);

	if (is_in) {
		if (settle) {
			lks_map_clear(v, &p->dirty);	/* C4: who is in sync misses nothing */
			lks_map_clear(v, &p->unsure);
		}
	} else if (known ? p->added != now->added : p->since != now->since) {
		/*
		 * Another, empty replica; or what was saved before a restart is of another absence. Continuing in memory
		 * a map stays right whatever versions were skipped: every write since was marked (D1).
		 */
		lks_map_clear(v, &p->dirty);
		lks_map_clear(v, &p->unsure);
		add_written(v, &p->dirty);
	} else if (was_in && LKS_ON(C3)) {
		struct lks_list *pos;

		lks_list_for_each(pos, &v->unstable) {
			struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

			lks_map_add(v, &p->dirty, w->first, w->last - w->first + 1);
		}
	}
	/* What an attach has read stays named by the superblock: it must not be zeroed before it is saved anew (H2d). */
	if (p->since != now->since || (known && p->added != now->added) || is_in)
		p->slot_zeroed = false;
	p->since = now->since;
	p->added = now->added;
}

void lks_adopt(struct lks_vol *v, const struct lks_record *r, bool settle)
{
	for (u32 i = 0; i < LKS_SLOTS; i++) {
		struct lks_peer *p = &v->peers[i];

		if (p->host && !lks_replica_of(r, p->host)) {
			lks_map_free(v, &p->dirty);
			lks_map_free(v, &p->unsure);
			memset(p, 0, sizeof(*p));
		}
	}
	for (u32 i = 0; i < r->nreplicas; i++) {
		const struct lks_record_replica *now = &r->replicas[i];
		struct lks_peer *p;

		if (now->host == v->p.self)
			continue;
		p = lks_peer_of(v, now->host);
		if (p) {
			peer_follow(v, p, r, now, settle);
			continue;
		}
		p = peer_new(v, now->host);
		if (!p)
			continue;
		p->since = now->since;
		p->added = now->added;
		if (LKS_ON(H3)) {
			lks_map_or(v, &p->dirty, &v->doubt);
			lks_map_or(v, &p->unsure, &v->doubt);
		}
		if (settle && lks_insync(r) & LKS_BIT(now->host))
			lks_map_clear(v, &p->dirty);
		if (!(lks_insync(r) & LKS_BIT(now->host)))
			add_written(v, &p->dirty);
	}
	v->cfg = *r;
	v->sb_dirty = true;
	lks_save(v, false);
	lks_event(v, LKS_EV_STATE, 0);
}

static void learn(struct lks_vol *v)
{
	const struct lks_record *r = &v->note;

	if (!v->attached || !v->admitted || v->failed || v->detaching)	/* S3 */
		return;
	if (r->version <= v->cfg.version)
		return;
	/* A version of this very term that names another primary, or none, deposes this one, too: perhaps only its pool is full */
	if (v->role != LKS_IDLE && (r->term > v->cfg.term || r->primary != v->p.self))
		lks_demote(v);
	if (r->primary == v->p.self && r->term > v->cfg.term) {
		/*
		 * S4: a join that was proposed before this replica crashed may commit after it has read the log: the record
		 * then calls a suspect clean. Only a last resort since then (S2) makes it primary; the daemon sees SUSPECT and
		 * says so. A join counts here only with the superblock of its incarnation on disk (D2, J2).
		 */
		if (v->suspect && LKS_ON(S4) && r->incarnation <= v->incarnation_found)
			return;
		lks_begin_activation(v, r);
	} else if (v->role != LKS_IDLE) {
		lks_primary_version(v, r);
	}
	/* A member takes a version from its primary (C2), a replica without a session by the session it begins. */
}

static void admit_now(struct lks_vol *v)
{
	if (v->admitted && v->cfg.version)
		return;
	/* Dirty maps stay as they are: a suspect replica must keep what it doubts for every peer (H3). */
	if (!v->session_host && v->role == LKS_IDLE)
		lks_adopt(v, &v->note, false);	/* S3: this version and older terms do not activate it */
	v->admitted = true;
	lks_event(v, LKS_EV_STATE, 0);
}

/* ---- sessions ---- */

/* Everything the replica cannot vouch for (H4). */
void lks_evidence(struct lks_vol *v, struct lks_map *out)
{
	struct lks_list *pos;

	lks_map_or(v, out, &v->doubt);
	lks_map_or(v, out, &v->inherited);
	lks_list_for_each(pos, &v->unstable) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		lks_map_add(v, out, w->first, w->last - w->first + 1);
	}
}

static void inherit_list(struct lks_vol *v, struct lks_list *head)
{
	struct lks_list *pos;

	lks_list_for_each(pos, head) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		lks_map_add(v, &v->inherited, w->first, w->last - w->first + 1);
	}
}

void lks_demote(struct lks_vol *v)
{
	inherit_list(v, &v->writes);	/* R3 */
	if (!LKS_ON(R3))
		lks_map_clear(v, &v->inherited);
	lks_leave_office(v);
}

/* Member writes that are done stay listed as unstable; those with their io in flight go on as orphans (T2 waits). */
static void inherit_unstable(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;

	inherit_list(v, &v->unstable);
	lks_list_for_each_safe(pos, tmp, &v->unstable) {
		struct lks_work *w = lks_list_entry(pos, struct lks_work, link);

		w->ext->unstable--;
		lks_work_drop(v, w);
	}
	v->stable = 0;
}

void lks_end_session(struct lks_vol *v)
{
	struct lks_list *pos, *tmp;

	v->session_host = 0;
	v->session_id = v->offer = 0;
	v->answer_to = 0;
	v->prepare = v->prepare_running = false;
	v->maps = 0;
	lks_list_for_each_safe(pos, tmp, &v->incoming)
		lks_work_drop(v, lks_list_entry(pos, struct lks_work, link));
	/* Writes that still wait for their extent stay unstable, but are not carried out after the session (T1, T2). */
	lks_list_for_each(pos, &v->unstable)
		lks_list_del(&lks_list_entry(pos, struct lks_work, link)->hotwait);
	lks_event(v, LKS_EV_STATE, 0);
}

void lks_start_session(struct lks_vol *v, u8 host, const struct lks_record *r)
{
	if (v->role != LKS_IDLE)
		lks_demote(v);
	lks_end_session(v);
	lks_adopt(v, r, true);
	v->session_host = host;
	v->session_term = r->term;
	inherit_unstable(v);
}

/* The backing device failed: this replica takes part in nothing any more. Its client side goes on through other hosts. */
void lks_disk_failed(struct lks_vol *v, u8 op, int err)
{
	struct lks_event_info info = { .event = LKS_EV_DISK_ERROR, .op = op, .error = err };
	u8 host = v->session_host;

	if (v->failed || !v->attached)
		return;
	v->failed = true;
	if (host)
		lks_send(v, host, 0, LKS_DISK_FAILED, 0, 0);
	if (v->role != LKS_IDLE)
		lks_demote(v);
	lks_end_session(v);
	inherit_unstable(v);
	v->ops->event(v->ctx, &info);
	lks_todo(v, LKS_DO_CLIENT | LKS_DO_META);
}

/* ---- the end of every entry point ---- */

/* Does what events have made possible. Each step clears its flag first; it ends because each does finite new work. */
void lks_run(struct lks_vol *v)
{
	while (v->todo) {
		u32 todo = v->todo;

		v->todo = 0;
		if (todo & LKS_DO_META)
			lks_meta_step(v);
		if (todo & LKS_DO_ANSWER)
			lks_member_answer(v);
		if (todo & LKS_DO_ACTIVATE)
			lks_try_activate(v);
		if (todo & LKS_DO_READS)
			lks_answer_held(v);
		if (todo & LKS_DO_PUMP)
			lks_pump(v);
		lks_admin_step(v);
		if (v->join_stage == LKS_JOIN_MAPS)
			lks_send_dirty(v);
		if (todo & LKS_DO_SYNC) {
			lks_sync_step(v);
			lks_verify_step(v);
		}
		if (todo & LKS_DO_CLIENT)
			lks_client_poll(v);
	}
}

void lks_enter(struct lks_vol *v, u64 now_ms)
{
	v->now = now_ms > v->now ? now_ms : v->now;
	/* X1: a volume created anew must not take replies to its predecessor's requests that come over the same link */
	if (!v->ids && LKS_ON(X1))
		v->ids = v->now << 20;
}

/* ---- entry points ---- */

static void init_lists(struct lks_vol *v)
{
	struct lks_list *heads[] = {
		&v->extents, &v->to_write, &v->in_write, &v->unstable, &v->incoming, &v->queue, &v->heating, &v->writes,
		&v->live, &v->flushes, &v->reads, &v->held, &v->copies, &v->verifies, &v->orphans,
	};

	for (u32 i = 0; i < sizeof(heads) / sizeof(heads[0]); i++)
		lks_list_init(heads[i]);
}

struct lks_vol *lks_vol_create(const struct lks_vol_params *p, const struct lks_ops *ops, void *ctx)
{
	struct lks_vol *v;

	if (!p->size || p->size % LKS_META_UNIT || p->size > LKS_SIZE_MAX || p->block_size < LKS_BLOCK_MIN ||
	    p->block_size > LKS_BLOCK_MAX || p->block_size & (p->block_size - 1) || !p->self || p->self > LKS_MAX_HOSTS)
		return NULL;
	v = ops->alloc(ctx, sizeof(*v));
	if (!v)
		return NULL;
	v->map_page = ops->alloc(ctx, LKS_META_UNIT);
	if (!v->map_page) {
		ops->free(ctx, v, sizeof(*v));
		return NULL;
	}
	init_lists(v);
	v->p = *p;
	v->ops = ops;
	v->ctx = ctx;
	v->block_shift = (u32)__builtin_ctz(p->block_size);
	v->meta_io.kind = LKS_IO_OF_META;
	v->save_io.kind = LKS_IO_OF_SAVE;
	v->retire_io.kind = LKS_IO_OF_RETIRE;
	lks_client_init(v);
	return v;
}

void lks_vol_destroy(struct lks_vol *v)
{
	if (v->attached)
		lks_attach_undo(v);
	v->ops->free(v->ctx, v->map_page, LKS_META_UNIT);
	v->ops->free(v->ctx, v, sizeof(*v));
}

void lks_vol_detach(struct lks_vol *v, u64 now_ms)
{
	lks_enter(v, now_ms);
	if (!v->attached || v->detaching)
		return;
	if (v->session_host)
		lks_send(v, v->session_host, 0, LKS_DISK_FAILED, 0, 0);	/* as if it were lost: nobody waits for it */
	if (v->role != LKS_IDLE)
		lks_demote(v);
	lks_end_session(v);
	inherit_unstable(v);
	v->detaching = true;
	lks_todo(v, LKS_DO_META | LKS_DO_CLIENT);
	lks_run(v);
}

int lks_vol_config(struct lks_vol *v, const struct lks_record *r, bool admit, u64 now_ms)
{
	lks_enter(v, now_ms);
	if (r->vid != v->p.vid)
		return -EINVAL;
	if (r->version > v->note.version) {
		v->note = *r;
		lks_client_learn(v);
	}
	if (admit && v->attached)
		admit_now(v);
	learn(v);
	lks_todo(v, LKS_DO_CLIENT);
	lks_run(v);
	return 0;
}

/*
 * What a disk has lost for good (ENODATA: the medium; EILSEQ: its checksums) is lost for its reader, if no other host has a
 * good copy: giving up the replica would take the rest away, too. No rule is touched: an error is no answer that could be wrong.
 */
static bool only_unreadable(struct lks_vol *v, struct lks_work *w, int err)
{
	struct lks_event_info info = { .event = LKS_EV_UNREADABLE, .error = err, .offset = w->offset, .length = w->length };

	if ((err != -ENODATA && err != -EILSEQ) || v->role != LKS_ACTIVE || lks_insync(&v->cfg) != LKS_BIT(v->p.self) ||
	    (w->kind != LKS_WORK_READ && w->kind != LKS_WORK_COPY && w->kind != LKS_WORK_VERIFY))
		return false;
	v->ops->event(v->ctx, &info);
	return true;
}

static void work_io_done(struct lks_vol *v, struct lks_work *w, int err)
{
	w->io_busy = false;
	v->ios--;
	if (!v->ios)
		lks_todo(v, LKS_DO_ANSWER | LKS_DO_ACTIVATE | LKS_DO_META);
	if (w->orphan) {
		u8 op = w->io.op;

		lks_work_free(v, w);
		lks_todo(v, LKS_DO_CLIENT);
		if (err)
			lks_disk_failed(v, op, err);
		return;
	}
	if (err && !only_unreadable(v, w, err)) {
		/* The work is on one of the lists: failing drops it with all the others. */
		lks_disk_failed(v, w->io.op, err);
		return;
	}
	switch (w->kind) {
	case LKS_WORK_MEMBER:
	case LKS_WORK_SYNC:
	case LKS_WORK_MFLUSH:
	case LKS_WORK_MCOMPARE:
		lks_member_io_done(v, w, err);
		break;
	case LKS_WORK_COPY:
		lks_copy_io_done(v, w, err);
		break;
	case LKS_WORK_VERIFY:
		lks_verify_io_done(v, w, err);
		break;
	default:
		lks_primary_io_done(v, w, err);
	}
}

bool lks_vol_io_is_quick(const struct lks_vol *v, const struct lks_io *io, int err)
{
	const struct lks_work *w = lks_container(io, const struct lks_work, io);

	if (err || io->kind != LKS_IO_OF_WORK || v->failed || v->detaching || w->orphan)
		return false;
	/* what the end of this may set free (lks_run()) */
	if (v->role == LKS_ACTIVATING || v->answer_to || v->syncing || v->verifying || v->hold || v->heir || v->move ||
	    !lks_list_empty(&v->queue))
		return false;
	return w->kind == LKS_WORK_READ || w->kind == LKS_WORK_WRITE || w->kind == LKS_WORK_FLUSH || w->kind == LKS_WORK_MEMBER ||
	       w->kind == LKS_WORK_MFLUSH;
}

void lks_vol_io_done(struct lks_vol *v, struct lks_io *io, int err, u64 now_ms)
{
	lks_enter(v, now_ms);
	switch (io->kind) {
	case LKS_IO_OF_WORK:
		work_io_done(v, lks_container(io, struct lks_work, io), err);
		break;
	case LKS_IO_OF_EXTENT:
		lks_extent_zeroed(v, lks_container(io, struct lks_extent, zero), err);
		break;
	case LKS_IO_OF_RETIRE:
		lks_retire_done(v, err);
		break;
	default:
		lks_meta_io_done(v, io, err);
	}
	lks_run(v);
}

void lks_vol_link_up(struct lks_vol *v, u8 host, u64 now_ms)
{
	struct lks_peer *p = lks_peer_of(v, host);

	lks_enter(v, now_ms);
	v->links |= LKS_BIT(host);
	if (p)
		p->maps = 0;
	lks_todo(v, LKS_DO_CLIENT);
	lks_run(v);
}

void lks_vol_link_lost(struct lks_vol *v, u8 host, u64 now_ms)
{
	lks_enter(v, now_ms);
	if (!(v->links & LKS_BIT(host)))
		return;
	v->links &= ~LKS_BIT(host);
	if (v->session_host == host)
		lks_end_session(v);	/* T1 */
	lks_client_link_lost(v, host);
	lks_primary_link_lost(v, host);
	lks_run(v);
}

void lks_vol_tune(struct lks_vol *v, const struct lks_vol_tune *t, u64 now_ms)
{
	lks_enter(v, now_ms);
	v->tune = *t;
	lks_run(v);
}

void lks_vol_tick(struct lks_vol *v, u64 now_ms)
{
	lks_enter(v, now_ms);
	if (v->attached && !v->failed && !v->detaching) {
		lks_meta_tick(v);
		if (v->role == LKS_IDLE)
			lks_member_tick(v);
		else
			lks_primary_tick(v);
	}
	lks_todo(v, LKS_DO_PUMP | LKS_DO_ACTIVATE | LKS_DO_SYNC | LKS_DO_META | LKS_DO_READS | LKS_DO_ANSWER);
	lks_admin_tick(v);
	lks_client_tick(v);
	lks_run(v);
}

/* The record in a frame; NULL: it is no record, or another volume's. */
static const struct lks_record *record_in(const struct lks_vol *v, const struct lks_frame *h, const void *bytes)
{
	const struct lks_record *r = bytes;

	if (lks_record_check(r) || r->vid != v->p.vid || r->version != h->version || r->term != h->term)
		return NULL;
	return r;
}

static bool range_ok(u64 limit, u64 offset, u64 length)
{
	if (offset % LKS_SECTOR || !length || length % LKS_SECTOR || offset >= limit || length > limit - offset)
		return false;
	return offset / LKS_EXTENT_BYTES == (offset + length - 1) / LKS_EXTENT_BYTES;
}

/* Ranges of frames that carry or mean data. */
static bool frame_range_ok(const struct lks_vol *v, const struct lks_frame *h)
{
	u8 op = h->flags >> LKS_F_OP_SHIFT;

	switch (h->type) {
	case LKS_REPL:
		return range_ok(v->capacity, h->offset, h->length ? h->length : h->tag);
	case LKS_SYNC:
		return range_ok(v->capacity, h->offset, h->tag) && (!h->length || h->length == h->tag);
	case LKS_COMPARE:
		return range_ok(v->capacity, h->offset, h->tag) && (h->flags & LKS_F_ZEROES || h->tag <= LKS_REQ_MAX_BYTES);
	case LKS_REQ:
		if (op == LKS_OP_FLUSH || op == LKS_OP_OPEN)
			return true;
		return range_ok(LKS_SIZE_MAX, h->offset, h->tag) && (!h->length || h->length == h->tag) &&
		       (op == LKS_OP_ZEROES || op == LKS_OP_DISCARD || h->tag <= LKS_REQ_MAX_BYTES);
	default:
		return true;
	}
}

static int receive_record(struct lks_vol *v, u8 host, const struct lks_frame *h, const void *bytes)
{
	const struct lks_record *r = record_in(v, h, bytes);

	if (!r || r->primary != host)
		return -EPROTO;
	if (h->type == LKS_ACTIVATE)
		lks_on_activate(v, host, r);
	else if (h->type == LKS_CONFIG)
		lks_on_config(v, host, r, h->session);
	else
		lks_on_syncstart(v, host, r, h->session);
	return 0;
}

static int receive(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf, const void *bytes)
{
	switch (h->type) {
	case LKS_ACTIVATE:
	case LKS_CONFIG:
	case LKS_SYNCSTART:
		return receive_record(v, host, h, bytes);
	case LKS_MAP:
		return lks_on_map(v, host, h, bytes);
	case LKS_REPL:
		return lks_on_repl(v, host, h, buf);
	case LKS_SYNC:
		return lks_on_sync(v, host, h, buf);
	case LKS_REQ:
		return lks_on_req(v, host, h, buf);
	case LKS_REPLY:
		return lks_on_reply(v, host, h, buf);
	case LKS_ACTIVATED:
		lks_answered(v, host);
		lks_on_activated(v, host, h);
		return 0;
	case LKS_REFUSE:
	case LKS_DISK_FAILED:
		lks_on_refuse(v, host, h);
		return 0;
	case LKS_ATTACH:
		lks_on_attach(v, host, h);
		return 0;
	case LKS_ACK:
		lks_answered(v, host);
		lks_on_ack(v, host, h);
		return 0;
	case LKS_STABLE:
		lks_on_stable(v, host, h);
		return 0;
	case LKS_FLUSH:
		lks_on_flush(v, host, h);
		return 0;
	case LKS_FLUSHED:
		lks_answered(v, host);
		lks_on_flushed(v, host, h);
		return 0;
	case LKS_SYNCED:
		lks_answered(v, host);
		lks_on_synced(v, host, h);
		return 0;
	case LKS_PREPARE:
		lks_on_prepare(v, host, h);
		return 0;
	case LKS_PREPARED:
		lks_answered(v, host);
		lks_on_prepared(v, host, h);
		return 0;
	case LKS_PING:
		lks_on_ping(v, host, h);
		return 0;
	case LKS_PONG:
		lks_on_pong(v, host, h);
		return 0;
	case LKS_REFUSED:
		lks_on_refused(v, host, h);
		return 0;
	case LKS_COMPARE:
		lks_on_compare(v, host, h);
		return 0;
	case LKS_COMPARED:
		lks_answered(v, host);
		lks_on_compared(v, host, h);
		return 0;
	case LKS_READY:
		lks_todo(v, LKS_DO_CLIENT);
		return 0;
	}
	return -EPROTO;
}

/* Frames that concern a client only; the others need a replica that takes part. */
static bool for_client(u8 type)
{
	return type == LKS_REPLY || type == LKS_REFUSED || type == LKS_REQ || type == LKS_READY;
}

int lks_vol_receive(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf, const void *bytes, u64 now_ms)
{
	int err = 0;

	lks_enter(v, now_ms);
	if (!(v->links & LKS_BIT(host)))
		return 0;
	if (host == v->p.self || h->volume != v->p.vid)
		return -EPROTO;
	if (for_client(h->type) || (v->attached && v->admitted && !v->failed && !v->detaching)) {
		if (!frame_range_ok(v, h))
			return -EPROTO;
		err = receive(v, host, h, buf, bytes);
	}
	lks_run(v);
	return err;
}

/* ---- the client ---- */

void lks_vol_open(struct lks_vol *v, u64 now_ms)
{
	lks_enter(v, now_ms);
	lks_client_open(v);
	lks_run(v);
}

void lks_vol_close(struct lks_vol *v, u64 now_ms)
{
	lks_enter(v, now_ms);
	lks_client_close(v);
	lks_run(v);
}

void lks_vol_submit(struct lks_vol *v, struct lks_req *req, u64 now_ms)
{
	lks_enter(v, now_ms);
	lks_client_submit(v, req);
	lks_run(v);
}

void lks_vol_abort(struct lks_vol *v, int err, u64 now_ms)
{
	lks_enter(v, now_ms);
	lks_client_abort(v, err);
	lks_run(v);
}

/* ---- status ---- */

static u8 sync_state(const struct lks_vol *v, const struct lks_peer *p)
{
	u64 bit = LKS_BIT(p->host);

	if (v->lost & bit)
		return LKS_SYNC_LOST;
	if (lks_insync(&v->cfg) & bit)
		return LKS_SYNC_MEMBER;
	if (v->joining == p->host && v->ackset & bit)
		return LKS_SYNC_JOINING;
	return v->syncing & bit ? LKS_SYNC_RUNNING : LKS_SYNC_AWAY;
}

void lks_vol_status(const struct lks_vol *v, u64 now_ms, struct lks_vol_status *s)
{
	memset(s, 0, sizeof(*s));
	s->attached = v->attached;
	s->admitted = v->admitted;
	s->suspect = v->suspect;
	s->failed = v->failed;
	s->open = v->session != 0;
	s->role = v->role;
	s->session_with = v->session_host;
	s->version = v->cfg.version;
	s->term = v->cfg.term;
	s->noted_version = v->note.version;
	s->session = v->session;
	s->pending = v->pending;
	if (!lks_list_empty(&v->reqs)) {
		u64 since = lks_list_first(&v->reqs, struct lks_req, link)->submitted_ms;

		s->oldest_ms = now_ms > since ? (u32)(now_ms - since) : 0;
	}
	s->hold = v->hold;
	s->heir = v->heir;
	if (v->attached) {
		s->capacity = v->capacity;
		s->meta_offset = v->meta_offset;
		s->move_offset = v->move ? v->move_offset : 0;
		s->move_current = v->move == LKS_MOVE_CURRENT;
		s->retiring = v->move >= LKS_MOVE_RETIRING;
	}
	s->verify_total = v->verify_end;
	s->verify_done = v->verify_next;
	s->verify_differ = v->verify_differ;
	s->verify_repair = v->verify_repair;
	s->size = v->p.size;
	s->hot_extents = v->hot;
	s->spared_flushes = v->spared;
	s->written_extents = v->written;
	for (u32 i = 0; i < LKS_SLOTS; i++) {
		const struct lks_peer *p = &v->peers[i];

		if (!p->host)
			continue;
		s->peers[s->npeers].host = p->host;
		s->peers[s->npeers].sync_state = sync_state(v, p);
		s->peers[s->npeers].linked = v->links >> (p->host - 1) & 1;
		s->peers[s->npeers++].dirty_blocks = p->dirty.set;
	}
}
