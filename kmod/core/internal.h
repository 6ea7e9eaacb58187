/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of the core share. Everything here belongs to one volume and is protected by the caller's lock on it.
 *
 *	vol.c       life, the public entry points, configuration, sessions, work objects
 *	primary.c   activation, requests, replication, losses, leases
 *	member.c    taking a primary's data
 *	pace.c      how fast resync goes
 *	sync.c      resync and joining, from the primary's side
 *	admin.c     what the daemon asks of a primary: planned handover, quiesce
 *	verify.c    comparing replicas by hash: verify, and resync of what is only in doubt
 *	client.c    local openers' requests
 *	extent.c    hot and written extents, what is in flight in them
 *	meta.c      writing the metadata: activation, cooling, saving, detaching
 *	grow.c      moving the metadata to where a larger volume has them
 *	attach.c    reading the metadata
 *	map.c       sparse sets of blocks
 *	format.c    wire and disk formats
 *
 * No function calls back into an entry point. Whatever may have been made possible by an event is flagged (v->todo) and
 * done by lks_run() before the entry point returns; so lists may be walked without surprises.
 */
#ifndef LKS_CORE_INTERNAL_H
#define LKS_CORE_INTERNAL_H

#include "core.h"
#include "rules.h"

#ifdef __cplusplus	/* the simulator looks inside */
extern "C" {
#endif

/* ---- hosts as sets ---- */

#define LKS_BIT(host) (1ull << ((host) - 1))
#define lks_first_host(set) ((u8)(__builtin_ctzll(set) + 1))
#define lks_for_hosts(h, rest, set) \
	for ((rest) = (set); (rest) && ((h) = lks_first_host(rest), 1); (rest) &= (rest) - 1)

/* ---- sparse sets of blocks (map.c) ---- */

#define LKS_LEAF_BITS (LKS_META_UNIT * 8u)

struct lks_leaf {
	u64 *words;		/* LKS_META_UNIT bytes, or NULL: no bit set, or with all: every bit set */
	u32 set;		/* bits set */
	u8 all;			/* could not be allocated when it was needed: counts as wholly set */
	u8 unsaved;		/* differs from what is on disk */
};

/*
 * A set of blocks. Adding never fails: what lacks memory is rounded up to a whole leaf (512 MiB at 16 KiB a block), or,
 * with no leaf array, to everything. Removing may fail to have an effect. Both are on the safe side wherever maps are used.
 */
struct lks_map {
	u64 bits;		/* size of the universe */
	u32 nleaves;
	u8 all;			/* no leaf array: wholly set */
	u64 set;		/* bits set */
	struct lks_leaf *leaves;
};

void lks_map_init(struct lks_vol *v, struct lks_map *m, u64 bits);
void lks_map_free(struct lks_vol *v, struct lks_map *m);
void lks_map_add(struct lks_vol *v, struct lks_map *m, u64 first, u64 n);
void lks_map_remove(struct lks_vol *v, struct lks_map *m, u64 first, u64 n);
void lks_map_clear(struct lks_vol *v, struct lks_map *m);
/* Adds all of from. */
void lks_map_or(struct lks_vol *v, struct lks_map *m, const struct lks_map *from);
/* Adds the bits of a chunk of LKS_META_UNIT bytes that begins at bit first, a multiple of LKS_LEAF_BITS. */
void lks_map_add_chunk(struct lks_vol *v, struct lks_map *m, u64 first, const void *chunk);
/* Copies leaf i in disk and wire format. */
void lks_map_get_chunk(const struct lks_map *m, u32 i, void *chunk);
bool lks_map_leaf_empty(const struct lks_map *m, u32 i);
bool lks_map_test(const struct lks_map *m, u64 bit);
bool lks_map_any(const struct lks_map *m, u64 first, u64 n);
/* Gives m a larger universe; leaves is a zeroed array for it, which m takes, or NULL if it has none to take. */
void lks_map_grow(struct lks_vol *v, struct lks_map *m, u64 bits, struct lks_leaf *leaves);
/* First bit set at or after from, or m->bits. */
u64 lks_map_next(const struct lks_map *m, u64 from);

/* attach.c: frees everything that belongs to the replica */
void lks_attach_undo(struct lks_vol *v);

/* ---- extents (extent.c) ---- */

enum lks_heat {
	LKS_COLD,		/* not hot on disk, or being made so */
	LKS_ZEROING,		/* thick, first write: its old content is being zeroed, then flushed */
	LKS_HEATING,		/* its bit is set in memory and waits for a table write to begin */
	LKS_WRITING,		/* ... the write is in flight */
	LKS_HOT,		/* H1: hot on disk */
	LKS_COOLING,		/* hot on disk; a save has begun which will make it cold unless something is written */
};

/* Exists while the extent is hot or something is in flight in it. */
struct lks_extent {
	struct lks_list hash;
	struct lks_list all;	/* v->extents */
	struct lks_list busy;	/* struct lks_work.busy: writes, rewrites and copies in flight (W2) */
	struct lks_list waiters;	/* struct lks_work.hotwait: wait for LKS_HOT */
	struct lks_list meta;	/* v->to_write or v->in_write */
	u64 index;
	u64 used_ms;
	u32 unstable;		/* works on v->unstable in it */
	u8 heat;		/* enum lks_heat */
	struct lks_io zero;	/* ZEROING */
};

enum {			/* struct lks_io.kind */
	LKS_IO_OF_WORK = 1,
	LKS_IO_OF_EXTENT,	/* zeroing */
	LKS_IO_OF_META,
	LKS_IO_OF_SAVE,
	LKS_IO_OF_RETIRE,
};

/* ---- work: whatever goes on with a range of blocks ---- */

enum lks_work_kind {
	LKS_WORK_WRITE,		/* primary: a client's write */
	LKS_WORK_RECON,		/* primary: R1 */
	LKS_WORK_COPY,		/* primary: resync of a range to one peer */
	LKS_WORK_READ,		/* primary: a client's read */
	LKS_WORK_FLUSH,		/* primary: a client's flush */
	LKS_WORK_OPEN,		/* primary: a client's open (O2); never leaves the queue for long */
	LKS_WORK_VERIFY,	/* primary: comparing a range with all members */
	LKS_WORK_MEMBER,	/* member: REPL */
	LKS_WORK_SYNC,		/* syncing: SYNC */
	LKS_WORK_MFLUSH,	/* member: FLUSH */
	LKS_WORK_MCOMPARE,	/* member or syncing: COMPARE */
};

struct lks_work {
	struct lks_list link;	/* one of the lists of the volume, by what it waits for */
	struct lks_list busy;	/* in ext->busy while it keeps others out (W2) */
	struct lks_list hotwait;
	struct lks_extent *ext;
	struct lks_buf *buf;
	struct lks_req *req;	/* of a local client */
	struct lks_io io;
	u64 offset;
	u32 length;
	u8 kind;		/* enum lks_work_kind */
	u8 op;			/* enum lks_op */
	u8 flags;		/* LKS_F_FUA */
	u8 host;		/* client; peer that is copied to; primary that sent it */
	u64 first, last;	/* blocks, inclusive */
	u64 seq;		/* WRITE, RECON, MEMBER: of the term. READ: seq reached when its data came */
	u64 wait;		/* hosts whose ACK or FLUSHED is missing (W1, F1) */
	u64 live;		/* syncing hosts whose ACK is missing (W4) */
	u64 began_ms;		/* READ, WRITE: when the request came */
	u64 id, session;	/* of the client's request; id of a COPY, SYNC, MFLUSH */
	bool io_busy;		/* io is with the surroundings */
	bool local;		/* the local part is missing */
	bool done;		/* answered */
	bool compare;		/* COPY: the hash goes first */
	u64 differ;		/* VERIFY: hosts whose blocks differ */
	bool unknown;		/* VERIFY: some host could not tell */
	u64 soft;		/* FLUSH: v->soft when it began (F2) */
	u64 hash;		/* MCOMPARE: what the primary's blocks have */
	bool orphan;		/* its term or session is over: goes when its io does */
};

/* ---- the other replicas ---- */

enum lks_join_stage { LKS_JOIN_NONE, LKS_JOIN_MAPS, LKS_JOIN_PREPARE, LKS_JOIN_PROPOSE };

struct lks_peer {
	u8 host;		/* 0: free. The index in v->peers is the number of its dirty map slot */
	bool slot_zeroed;	/* its slot on disk holds nothing but what was saved of this map */
	u64 since, added;	/* as in the record */
	struct lks_map dirty;	/* blocks that it misses */
	struct lks_map unsure;	/* of these, some are only in doubt since a crash: a hash may tell that nothing is missing */
	u64 lease_ms;		/* primary: until when it has promised not to serve under others (L3) */
	u64 pinged_ms;
	u32 mute_ticks;		/* primary: in a row in which it owed answers and gave none (L5) */
	u64 cursor;		/* primary: next block to copy */
	u64 live_blocks;	/* primary: blocks of live writes to it in flight, all of them dirty */
	u32 copies;		/* primary: LKS_WORK_COPY in flight */
	u64 rest_ms;		/* primary: until then, what could not be read is not tried again ... */
	u64 careful, careful_end;	/* ... and then these block by block: first, and behind the last */
	u16 session;		/* primary: id of the session it has with us */
	u32 maps;		/* MAP frames received since the last that was used */
	u64 maps_term;
};

enum {			/* v->todo */
	LKS_DO_PUMP = 1,	/* requests may be executable */
	LKS_DO_ACTIVATE = 2,
	LKS_DO_SYNC = 4,
	LKS_DO_CLIENT = 8,
	LKS_DO_META = 16,
	LKS_DO_ANSWER = 32,	/* a session start waits for I/O in flight to end */
	LKS_DO_READS = 64,	/* held reads may be answerable */
};

/* Growing: the metadata move (grow.c) */
enum lks_move {
	LKS_MOVE_NONE,
	LKS_MOVE_WANTED,	/* waits for the next save */
	LKS_MOVE_COPYING,	/* every write goes to both places; not all of the new one has been written */
	LKS_MOVE_CURRENT,	/* both places hold the same */
	LKS_MOVE_RETIRING,	/* the new one counts; what was the old one is being zeroed */
	LKS_MOVE_RETIRED,	/* ... that is to be saved */
};

/* Steps of saving the metadata (meta.c) */
enum lks_save_step {
	LKS_SAVE_IDLE,
	LKS_SAVE_ZERO,		/* new dirty map slots */
	LKS_SAVE_LEAVES,
	LKS_SAVE_FLUSH,		/* H2f, H2d, J2 */
	LKS_SAVE_SUPER,
	LKS_SAVE_TABLE,		/* the cold extents' bits */
};

struct lks_vol {
	struct lks_vol_params p;
	const struct lks_ops *ops;
	void *ctx;
	u64 now;		/* ms */
	u32 todo;
	u64 links;		/* hosts linked to */

	/* the record */
	struct lks_record cfg;	/* adopted; version 0: none yet */
	struct lks_record note;	/* the newest the daemon has told */

	/* the replica */
	bool attached, admitted, suspect, failed, needs_zeroing;
	bool detaching, detached;
	u64 incarnation_found;	/* in the superblock, at attach */
	u64 blocks;		/* that maps describe: of the capacity */
	u32 block_shift;
	u64 capacity;		/* bytes of volume that the metadata are laid out for (with a replica) */
	struct lks_layout layout;
	u64 meta_offset;
	u8 move;		/* enum lks_move */
	bool move_saving, move_cleared, move_saved, move_switch, retire_busy, retired_saving;
	u32 move_unit, move_slot;
	u64 move_offset, move_size;
	struct lks_layout move_layout;
	struct lks_io retire_io;
	u64 retire_at;		/* RETIRING: zeros up to here */
	struct lks_peer peers[LKS_SLOTS];
	struct lks_map doubt;	/* content uncertain since an unclean restart, until resynced (H4) */
	struct lks_map inherited;	/* unstable in earlier terms (R1..R3) */

	/* extents */
	struct lks_list *hash;
	u32 hash_size, nextents;
	struct lks_list extents;	/* least recently used first */
	struct lks_extent_record *table;	/* as on disk, unsealed; layout.table_bytes */
	u32 hot, written;

	/* metadata writing */
	struct lks_superblock sb;
	bool sb_dirty;
	void *meta_page, *save_page, *map_page;
	struct lks_io meta_io;	/* table (activation) */
	struct lks_io save_io;
	bool meta_second, save_second;	/* the write under way is the one to the second place */
	bool meta_busy, save_busy;
	struct lks_list to_write;	/* extents in LKS_HEATING */
	struct lks_list in_write;	/* extents in LKS_WRITING */
	u64 heated_ms;		/* when the table was last written for extents that heat */
	u32 ahead;		/* how many others were made hot by that */
	u8 *unit_dirty;		/* by table unit: bits were cleared in memory (cooling) */
	u32 units, units_dirty;
	u8 save_step;
	bool save_wanted, save_cold_all, save_clean;
	u32 save_slot, save_leaf;
	u64 saved_ms;
	bool prepare;		/* a PREPARE waits for the next save */
	bool prepare_running;	/* ... which is running */
	u8 detach_step;

	/* a member's session (T1) */
	u8 session_host;
	u64 session_term;
	u16 session_id;		/* what tells it from others of the same primary, term and link */
	u16 offer;		/* session_id of the next one, 0: not chosen */
	u8 answer_to;		/* host that waits for ACTIVATED once ios is 0 */
	u64 stable;
	struct lks_list unstable;	/* LKS_WORK_MEMBER by number */
	struct lks_list incoming;	/* LKS_WORK_SYNC, LKS_WORK_MFLUSH */
	u32 maps;		/* MAP frames received since the last PREPARE */
	u64 attached_ms;	/* when it last offered itself to a primary */
	u64 promise_ms;		/* serve under nobody else before (L1) */
	u32 ios;		/* data I/O in flight */
	u32 works;

	/* the primary */
	u8 role;
	u64 seq, stable_told;
	struct lks_list queue;	/* works not begun */
	struct lks_list writes;	/* WRITE, RECON: begun, by seq once sent */
	struct lks_list heating;	/* WRITE, RECON: begun, wait for their extent */
	struct lks_list live;	/* WRITE answered, live ACKs missing */
	struct lks_list flushes;
	struct lks_list reads;	/* with the disk */
	struct lks_list held;	/* reads whose data are there, not to be answered yet */
	struct lks_list copies;	/* LKS_WORK_COPY */
	struct lks_list verifies;	/* LKS_WORK_VERIFY begun; one at a time */
	struct lks_list orphans;
	u64 wait, ackset, lost, syncing;	/* hosts */
	bool recon_begun;	/* everyone has told what is unstable (R1) */
	u64 recon;		/* next block to look at */
	u32 recons;		/* LKS_WORK_RECON in flight */
	u64 ids;		/* of copies, flushes, client requests; never one twice */
	u64 soft, hard;		/* +1 with all that may leave something in a disk's cache only; what of it a flush has covered (F2) */
	u8 since_flush;		/* a client's writes since the last flush, 2: more */
	u8 alone;		/* flushes in a row that each followed one write alone */
	u32 spared;		/* flushes that nobody had to be asked for; wraps */
	u8 joining;
	u8 join_stage;
	u8 maps_slot;		/* JOIN_MAPS: this peer's dirty map goes to the joiner next (D2), */
	u64 maps_block;		/* from this block on */
	u32 maps_sent;		/* frames */
	u64 proposed_ms, proposed_version, proposed_set;
	u8 proposed_primary;
	struct lks_record proposal;	/* of lks_propose(): too large for some kernels' stacks (4.19: 1 KiB a function) */
	u8 heir;		/* DRAINING: host that is to be primary (M1) */
	u64 hold;		/* of a quiesce, 0: none */
	u64 hold_until_ms;
	u64 hold_ended;		/* number of the last one: none up to it begins again */
	bool hold_told;
	bool verifying, verify_repair, verify_asked;	/* asked: a range is queued or compared */
	u64 verify_next, verify_end, verify_differ;	/* blocks */
	u64 verify_deep;	/* this extent minus 1 is compared block by block though it was never written here */
	struct lks_vol_tune tune;
	u64 sync_us;		/* when resync has used up what it may read */
	u32 crowd;		/* volumes of this host that resync, as told last; 0: this one does not */
	u64 pace_kib;		/* a second, of resync reads; 0: no limit (pace.c) */
	u64 pace_since_ms;	/* begin of this tick; in it so far: */
	u64 pace_bytes, pace_requests, pace_ms;	/* read for resync; answered; what these took together */

	/* the client */
	struct lks_list reqs;
	struct lks_req open_req;
	u64 session;		/* this host's in note, confirmed (O2); 0: none */
	u64 ended;		/* sessions up to this one were closed here */
	bool want_open;
	u64 completed, flushed;	/* writes: how many have, how many of them before a flush was submitted that succeeded */
	bool lost_cache;	/* S2: a new incarnation began meanwhile; the next flush must fail */
	u64 incarnation;
	int aborted;		/* errno with which requests end (lks_vol_abort()), 0: none */
	u32 pending;
};

static inline u64 lks_insync(const struct lks_record *r)
{
	u64 set = 0;

	for (u32 i = 0; i < r->nreplicas; i++)
		if (r->replicas[i].state == LKS_REPLICA_INSYNC || r->replicas[i].state == LKS_REPLICA_SUSPECT)
			set |= LKS_BIT(r->replicas[i].host);
	return set;
}

/* Bytes of the volume as the record that this replica acts on has it; blocks of that. Never more than the capacity. */
static inline u64 lks_size(const struct lks_vol *v)
{
	u64 size = v->cfg.size ? v->cfg.size : v->p.size;

	return v->attached && size > v->capacity ? v->capacity : size;
}

static inline u64 lks_data_blocks(const struct lks_vol *v)
{
	return LKS_DIV_UP(lks_size(v), v->p.block_size);
}

static inline bool lks_overlap(const struct lks_work *a, const struct lks_work *b)
{
	return a->first <= b->last && b->first <= a->last;
}

/* vol.c */
void lks_todo(struct lks_vol *v, u32 what);
/* Does what has become possible: the end of every entry point. */
void lks_run(struct lks_vol *v);
/* The beginning of every entry point. */
void lks_enter(struct lks_vol *v, u64 now_ms);
const struct lks_record_replica *lks_replica_of(const struct lks_record *r, u8 host);
struct lks_peer *lks_peer_of(struct lks_vol *v, u8 host);
void lks_mark_missed(struct lks_vol *v, struct lks_peer *p, u64 first, u64 n);
u64 lks_peer_hosts(const struct lks_vol *v);
/* Makes r the record this replica acts on. settle: those in sync in it miss nothing (C4). */
void lks_adopt(struct lks_vol *v, const struct lks_record *r, bool settle);
void lks_start_session(struct lks_vol *v, u8 host, const struct lks_record *r);
void lks_end_session(struct lks_vol *v);
void lks_demote(struct lks_vol *v);
void lks_disk_failed(struct lks_vol *v, u8 op, int err);
void lks_event(struct lks_vol *v, enum lks_event event, u8 host);
void lks_send(struct lks_vol *v, u8 host, u8 lane, u8 type, u64 seq, u64 stable);
void lks_send_frame(struct lks_vol *v, u8 host, u8 lane, struct lks_frame *f, struct lks_buf *buf, const void *bytes);
void lks_send_record(struct lks_vol *v, u8 host, u8 type, const struct lks_record *r);
/* Of m: leaf i as a MAP frame, of which the caller has set all but the place; or all of it as evidence (H4), and how many frames. */
void lks_send_leaf(struct lks_vol *v, u8 host, struct lks_frame *f, const struct lks_map *m, u32 i);
u32 lks_send_evidence(struct lks_vol *v, u8 host, u64 term, const struct lks_map *m);
void lks_evidence(struct lks_vol *v, struct lks_map *out);

struct lks_work *lks_work_new(struct lks_vol *v, u8 kind, u64 offset, u32 length, struct lks_buf *buf);
void lks_work_free(struct lks_vol *v, struct lks_work *w);
/* Gives up w: frees it now or when its io is done. */
void lks_work_drop(struct lks_vol *v, struct lks_work *w);
void lks_work_io(struct lks_vol *v, struct lks_work *w, u8 op, u8 flags);

/* primary.c */
void lks_begin_activation(struct lks_vol *v, const struct lks_record *r);
void lks_try_activate(struct lks_vol *v);
void lks_primary_version(struct lks_vol *v, const struct lks_record *r);
void lks_leave_office(struct lks_vol *v);
/* A request for the primary, from a local client (req) or another host's. Ends in a reply or a refusal. */
struct lks_call {
	struct lks_req *req;	/* local: its buffer is used; otherwise NULL */
	struct lks_buf *buf;
	u64 offset, id, session, term;
	u32 length;
	u8 client, op, flags;
};
void lks_request(struct lks_vol *v, const struct lks_call *c);
void lks_pump(struct lks_vol *v);
void lks_answer_held(struct lks_vol *v);
void lks_replicate(struct lks_vol *v, struct lks_work *w);
void lks_primary_link_lost(struct lks_vol *v, u8 host);
void lks_answered(struct lks_vol *v, u8 host);	/* L5 */
void lks_primary_tick(struct lks_vol *v);
void lks_primary_io_done(struct lks_vol *v, struct lks_work *w, int err);
void lks_on_ack(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_flushed(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_activated(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_refuse(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_pong(struct lks_vol *v, u8 host, const struct lks_frame *h);
int lks_on_req(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf);
/* W2: is something in flight in one of these blocks of e (which may be NULL)? */
bool lks_blocks_busy(const struct lks_extent *e, u64 first, u64 last);
/* W2: does anything queued before w want one of its blocks for itself? */
bool lks_held_by_queue(struct lks_vol *v, struct lks_work *w);
void lks_forget(struct lks_vol *v, u8 host);
void lks_replica_lost(struct lks_vol *v, u8 host);
/* heir: the primary of a new term (M1), 0: the same term */
void lks_propose(struct lks_vol *v, u64 insync, u8 heir);
u64 lks_stable_now(const struct lks_vol *v);
void lks_tell_stable(struct lks_vol *v);

bool lks_may_read(struct lks_vol *v);

/* verify.c */
void lks_verify_step(struct lks_vol *v);
void lks_verify_begin(struct lks_vol *v, struct lks_work *w);
void lks_verify_io_done(struct lks_vol *v, struct lks_work *w, int err);
void lks_verify_forget(struct lks_vol *v, u8 host);
void lks_verify_stop(struct lks_vol *v);
void lks_send_compare(struct lks_vol *v, u8 host, const struct lks_work *w, bool zeros);
void lks_on_compared(struct lks_vol *v, u8 host, const struct lks_frame *h);

/* admin.c */
void lks_handover_tick(struct lks_vol *v);
void lks_admin_step(struct lks_vol *v);
void lks_admin_tick(struct lks_vol *v);
void lks_hold_end(struct lks_vol *v);

/* sync.c */
void lks_sync_step(struct lks_vol *v);
void lks_drop_sync(struct lks_vol *v, u8 host);
void lks_check_joined(struct lks_vol *v, u8 host);
void lks_send_dirty(struct lks_vol *v);
void lks_propose_join(struct lks_vol *v);
void lks_copy_io_done(struct lks_vol *v, struct lks_work *w, int err);
void lks_on_attach(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_synced(struct lks_vol *v, u8 host, const struct lks_frame *h);
/* The answer to a copy whose hash went first. */
void lks_copy_compared(struct lks_vol *v, struct lks_work *w, bool equal);
struct lks_work *lks_work_by_id(struct lks_list *head, u64 id);
void lks_on_prepared(struct lks_vol *v, u8 host, const struct lks_frame *h);

/* member.c */
void lks_member_tick(struct lks_vol *v);
void lks_member_answer(struct lks_vol *v);
void lks_member_prepared(struct lks_vol *v);
void lks_member_io_done(struct lks_vol *v, struct lks_work *w, int err);
void lks_member_hot(struct lks_vol *v, struct lks_work *w);
void lks_set_stable(struct lks_vol *v, u64 stable);
void lks_on_activate(struct lks_vol *v, u8 host, const struct lks_record *r);
void lks_on_config(struct lks_vol *v, u8 host, const struct lks_record *r, u16 id);
void lks_on_syncstart(struct lks_vol *v, u8 host, const struct lks_record *r, u16 id);
int lks_on_map(struct lks_vol *v, u8 host, const struct lks_frame *h, const void *bytes);
int lks_on_repl(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf);
int lks_on_sync(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf);
void lks_on_stable(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_flush(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_prepare(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_compare(struct lks_vol *v, u8 host, const struct lks_frame *h);
void lks_on_ping(struct lks_vol *v, u8 host, const struct lks_frame *h);

/* client.c */
void lks_client_init(struct lks_vol *v);
void lks_client_tick(struct lks_vol *v);
void lks_client_open(struct lks_vol *v);
void lks_client_close(struct lks_vol *v);
void lks_client_submit(struct lks_vol *v, struct lks_req *req);
void lks_client_abort(struct lks_vol *v, int err);
void lks_client_learn(struct lks_vol *v);
void lks_client_poll(struct lks_vol *v);
void lks_client_link_lost(struct lks_vol *v, u8 host);
void lks_client_reply(struct lks_vol *v, struct lks_req *req, int err);
void lks_client_refused(struct lks_vol *v, struct lks_req *req, bool fenced);
int lks_on_reply(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf);
void lks_on_refused(struct lks_vol *v, u8 host, const struct lks_frame *h);

/* extent.c */
struct lks_extent *lks_extent_find(const struct lks_vol *v, u64 index);
struct lks_extent *lks_extent_get(struct lks_vol *v, u64 index);	/* NULL: no memory */
void lks_extent_put(struct lks_vol *v, struct lks_extent *e);	/* goes if cold and idle */
u32 lks_extent_bits(const struct lks_vol *v, u64 index);
void lks_extent_set_bits(struct lks_vol *v, u64 index, u32 bits);
/* Makes the extent of w hot; when it is, the work goes on (at once if it is already). */
void lks_extent_heat(struct lks_vol *v, struct lks_work *w);
void lks_extent_heated(struct lks_vol *v, struct lks_extent *e);
void lks_extent_zeroed(struct lks_vol *v, struct lks_extent *e, int err);
bool lks_extent_warm(struct lks_vol *v, struct lks_extent *e);	/* H2: must stay hot */
void lks_extents_free(struct lks_vol *v);

/* pace.c */
void lks_pace_begin(struct lks_vol *v);		/* a resync begins, there was none */
bool lks_pace_allows(const struct lks_vol *v);	/* one more copy */
void lks_pace_copied(struct lks_vol *v, u32 bytes);
void lks_pace_answered(struct lks_vol *v, const struct lks_work *w);
void lks_pace_tick(struct lks_vol *v);

/* grow.c */
void lks_move_step(struct lks_vol *v);
/* The part of a save that concerns the second place alone; true: a transfer was started. */
bool lks_move_save_step(struct lks_vol *v);
void lks_move_saved(struct lks_vol *v);
void lks_retire_done(struct lks_vol *v, int err);
/* Where a write of the metadata goes in the second place; io's offset is that in the first. */
void lks_move_second(struct lks_vol *v, struct lks_io *io);
static inline bool lks_doubling(const struct lks_vol *v)
{
	return v->move == LKS_MOVE_COPYING || v->move == LKS_MOVE_CURRENT;
}

/* meta.c */
void lks_meta_step(struct lks_vol *v);
void lks_meta_io_done(struct lks_vol *v, struct lks_io *io, int err);
void lks_save(struct lks_vol *v, bool cold_all);
/* Prepares save_io to zero a dirty map slot. */
void lks_zero_slot(struct lks_vol *v, u32 slot);
void lks_meta_tick(struct lks_vol *v);

#ifdef __cplusplus
}
#endif

#endif
