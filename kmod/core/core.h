/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The replication core: one volume on one host, as replica, as primary and as client. Sans-IO.
 *
 * Events come in through the functions below; actions go out through struct lks_ops. The rules are those of DESIGN
 * section 4 and model/protocol.py; a line that implements one names it.
 *
 * Locking: the caller serialises all calls on one volume with a lock of its own. Calls do not sleep. Actions are called
 * with that lock held; they must not sleep and must not call back into the core for any volume: they queue. Exceptions
 * are marked "may sleep".
 *
 * Time: every event carries now_ms, a monotonic clock of this host that goes on while it is suspended. It never goes
 * back between calls on a volume. Only its differences matter (rules L1..L4). Two hosts' clocks may run at most 8 percent
 * apart: LKS_DRIFT_PERCENT covers that.
 *
 * Memory: only from ops->alloc, which may fail at any time; ops->send and ops->submit cannot fail (see there).
 */
#ifndef LKS_CORE_CORE_H
#define LKS_CORE_CORE_H

#include "port.h"
#include "list.h"
#include "disk.h"
#include "wire.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LKS_TICK_MS 200			/* lks_vol_tick() is to be called this often, roughly */
#define LKS_LEASE_MS 3000		/* default length of a promise (L1) */
#define LKS_ANSWER_MS 45000		/* default time for an answer (L5): the daemon of a host whose disk is stuck acts before */
#define LKS_DRIFT_PERCENT 10		/* added to a promise by its giver */
#define LKS_REQ_MAX_BYTES LKS_WIRE_DATA_MAX	/* a request with data is no longer, and crosses no extent */

struct lks_vol;

/* A data buffer: pages of a bio, a vector in the simulator. Opaque to the core and reference-counted by the surroundings. */
struct lks_buf;

enum lks_op {
	LKS_OP_READ = 1,
	LKS_OP_WRITE,
	LKS_OP_FLUSH,
	LKS_OP_ZEROES,
	LKS_OP_DISCARD,
	LKS_OP_OPEN,		/* internal (O2) */
};

/*
 * A request of a local opener. Memory and buffer are the caller's; both stay valid from lks_vol_submit() to
 * ops->req_done(). offset and length are bytes, multiples of 512, inside the volume, and cross no extent (4 MiB) boundary;
 * DISCARD and ZEROES too. A FLUSH has neither. WRITE data must not change until req_done() and beyond, until the last
 * reference to buf is put. A READ's buf is written to any number of times before req_done(), and not
 * after it.
 */
struct lks_req {
	u8 op;			/* enum lks_op */
	u8 flags;		/* LKS_F_FUA */
	u8 pad[2];
	u32 length;
	u64 offset;
	struct lks_buf *buf;	/* READ, WRITE: length bytes */

	/* the core's */
	struct lks_list link;
	u64 id;			/* of the last try (X1) */
	u64 sent_term;
	u64 session;
	u64 submitted_ms;
	u64 after;		/* FLUSH: how many writes had completed before it was submitted */
	void *work;		/* what executes it here, if this host is the primary */
	u8 sent_to;		/* host it was sent to, 0: not sent */
};

/* A transfer with the backing device. Memory is the core's; done by lks_vol_io_done(). */
enum lks_io_op {
	LKS_IO_READ = 1,	/* buf */
	LKS_IO_WRITE,		/* buf; flag FUA */
	LKS_IO_FLUSH,
	LKS_IO_ZEROES,		/* [offset, offset + length) reads as zeros afterwards, by whatever means */
	LKS_IO_DISCARD,		/* likewise, and the space may be freed */
	LKS_IO_META,		/* write LKS_META_UNIT bytes from meta at offset, durably (FUA) on return if flag FUA */
};

#define LKS_IO_FUA 0x01

struct lks_io {
	u8 op;			/* enum lks_io_op */
	u8 flags;		/* LKS_IO_* */
	u8 pad[2];
	u32 length;		/* bytes */
	u64 offset;		/* bytes from the start of the backing device (data starts at 0) */
	struct lks_buf *buf;	/* READ, WRITE: the first length bytes of it; the core keeps a reference while in flight */
	void *meta;		/* META: LKS_META_UNIT bytes, aligned to that, unchanged while in flight */

	struct lks_list link;	/* the surroundings' from submit to lks_vol_io_done() */
	void *priv;		/* the surroundings', likewise */
	u8 kind;		/* the core's */
};

enum lks_event {
	LKS_EV_PROPOSE,		/* record: see uapi EV_PROPOSE */
	LKS_EV_OPENED,		/* O2: the session in the record is confirmed; open() may return */
	LKS_EV_FENCED,		/* O1: the session this host held is no longer in the record; it ends with -EIO */
	LKS_EV_SILENT,		/* L4, L5: host did not answer: close the link to it */
	LKS_EV_DISK_ERROR,	/* the replica stopped; error: errno, op: enum lks_io_op */
	LKS_EV_DETACHED,	/* lks_vol_detach() is done: no I/O in flight, memory may go */
	LKS_EV_STATE,		/* something that lks_vol_status() shows changed */
	LKS_EV_QUIESCED,	/* hold: all members hold the same, and will until it ends */
	LKS_EV_UNQUIESCED,	/* hold: it ended by itself */
	LKS_EV_META_MOVED,	/* offset: both places are current; with done: only the new one counts and the old one is zeros */
	LKS_EV_MISMATCH,	/* host, offset, length; done: it is being repaired */
	LKS_EV_VERIFIED,	/* the verify has ended */
	LKS_EV_UNREADABLE,	/* offset, length: the disk has lost them (error: errno), and no other host has a good copy */
};

struct lks_event_info {
	enum lks_event event;
	u8 host;
	u8 op;
	s32 error;
	u64 hold, offset, length;
	bool done;
	const struct lks_record *record;
};

/* ctx is what lks_vol_create() was given. */
struct lks_ops {
	/* Zeroed memory of at least 8-byte alignment (LKS_META_UNIT if bytes == LKS_META_UNIT), or NULL. */
	void *(*alloc)(void *ctx, size_t bytes);
	void (*free)(void *ctx, void *p, size_t bytes);

	/* A buffer of `bytes` (multiple of 512) with one reference, or NULL. get adds one, put drops one. */
	struct lks_buf *(*buf_alloc)(void *ctx, u32 bytes);
	void (*buf_get)(struct lks_buf *buf);
	void (*buf_put)(struct lks_buf *buf);
	/* All of src, `bytes` long, to the start of dst. */
	void (*buf_copy)(struct lks_buf *dst, struct lks_buf *src, u32 bytes);
	void (*buf_zero)(struct lks_buf *buf, u32 bytes);
	/* XXH64 with seed 0 of the first `bytes`: equal on all hosts. */
	u64 (*buf_hash)(struct lks_buf *buf, u32 bytes);

	/* Start a transfer; ends in lks_vol_io_done(), never from inside submit. */
	void (*submit)(void *ctx, struct lks_io *io);

	/*
	 * Queue a frame to a peer: header h (the surroundings seal it), then h->length bytes from buf (a reference is
	 * taken) or from bytes (copied). Frames of one lane stay in order. lane LKS_LANE_ALL: a copy down every lane (C2);
	 * LKS_LANE_ANY: the surroundings choose (see wire.h). Without a link to host: dropped. What cannot be queued for lack
	 * of memory must break the link, so that lks_vol_link_lost() follows.
	 */
	void (*send)(void *ctx, u8 host, u8 lane, const struct lks_frame *h, struct lks_buf *buf, const void *bytes);

	/* A local opener's request has ended: 0 or a negative errno. */
	void (*req_done)(void *ctx, struct lks_req *req, int err);

	void (*event)(void *ctx, const struct lks_event_info *info);

	/*
	 * Whether this volume is copying to other hosts (resync). Returns how many volumes of this host are, 1 or more: they share
	 * what one alone may do. Called with every event while it is. May be NULL: no others.
	 */
	u32 (*syncing)(void *ctx, bool on);

	/*
	 * How many frames of LKS_META_UNIT bytes to host the control lane has room for, before what is queued after them waits too
	 * long. Asked again with each event and tick until it is enough. May be NULL: for any number.
	 */
	u32 (*room)(void *ctx, u8 host);
};

#define LKS_LANE_ALL 0xff
#define LKS_LANE_ANY 0xfe

struct lks_vol_params {
	u32 vid;
	u8 uuid[16];
	u64 size;		/* bytes of the device, a multiple of 4096, at most LKS_SIZE_MAX; the record has the replicas' */
	u32 block_size;
	u8 self;		/* this host's id */
	u8 shared;		/* class */
	u32 lease_ms;
	u32 answer_ms;		/* L5: who owes answers and gives none for so long is given up */
};

/* NULL: no memory, or parameters out of range. All lists are empty, there is no replica, record is version 0. */
struct lks_vol *lks_vol_create(const struct lks_vol_params *p, const struct lks_ops *ops, void *ctx);

/* Only after DETACHED (if there was a replica) and with no request or I/O outstanding. */
void lks_vol_destroy(struct lks_vol *v);

/* ---- the replica ---- */

/* Reads bytes (multiple of LKS_META_UNIT) at offset of the backing device. 0 or -EIO. May sleep. */
typedef int (*lks_read_fn)(void *reader, u64 offset, void *to, u32 bytes);

/*
 * Attaches the replica whose metadata stand at meta_offset of the backing device. May sleep (calls read, allocates).
 * The caller makes sure that nothing else happens on the volume meanwhile. needs_zeroing: the device does not read zeros
 * where it was never written (thick). Out: suspect (S1). 0, -EUCLEAN (damaged, or another volume's, host's or size),
 * -EIO, -ENOMEM, -EBUSY (attached).
 * The replica takes part in nothing until lks_vol_config() with admit.
 */
int lks_vol_attach(struct lks_vol *v, u64 meta_offset, bool needs_zeroing, lks_read_fn read, void *reader, u64 now_ms,
		   bool *suspect, u64 *disk_version, u64 *disk_term);

/* Stops serving, drains local I/O, cools what may cool, flushes, writes the superblock; then DETACHED. Waits for no peer. */
void lks_vol_detach(struct lks_vol *v, u64 now_ms);

/* ---- events ---- */

/* What the log says (S3 with admit). r was checked by lks_record_check(). -EINVAL: another volume's. */
int lks_vol_config(struct lks_vol *v, const struct lks_record *r, bool admit, u64 now_ms);

/*
 * May lks_vol_io_done() with this result be called where an allocation must not wait, and be refused more often? Then what it does is
 * short, and needs no memory but for frames to send.
 */
bool lks_vol_io_is_quick(const struct lks_vol *v, const struct lks_io *io, int err);

void lks_vol_io_done(struct lks_vol *v, struct lks_io *io, int err, u64 now_ms);

/*
 * A frame for this volume has come from host over the current link. h passed lks_frame_check(). buf holds the payload if
 * lks_frame_has_data() and length > 0 (the core takes its own references), else bytes does. Frames of one lane in order.
 * -EPROTO: it is wrong; -ENOMEM: it could not be kept. Close the link in both cases.
 */
int lks_vol_receive(struct lks_vol *v, u8 host, const struct lks_frame *h, struct lks_buf *buf, const void *bytes, u64 now_ms);

/* All lanes to host are there. */
void lks_vol_link_up(struct lks_vol *v, u8 host, u64 now_ms);

/* The link to host is gone: nothing more is received over it, nothing that was sent is still queued. */
void lks_vol_link_lost(struct lks_vol *v, u8 host, u64 now_ms);

void lks_vol_tick(struct lks_vol *v, u64 now_ms);

/* ---- what the daemon asks for ---- */

/* M1: stop serving, drain, then EV_PROPOSE a term of `to`. -ESTALE: this host does not serve; -EINVAL: to is not in sync. */
int lks_vol_hand_over(struct lks_vol *v, u8 to, u64 now_ms);

/*
 * Holds writes back and drains those begun, for timeout_ms at most; EV_QUIESCED. If it stands already it is renewed, and
 * EV_QUIESCED comes again. The hold ends with lks_vol_resume(), by itself (EV_UNQUIESCED), or with the term. Numbers are
 * not 0 and grow. -ESTALE: this host does not serve, or this hold or a later one has ended; -EBUSY: another one stands.
 */
int lks_vol_quiesce(struct lks_vol *v, u64 hold, u32 timeout_ms, u64 now_ms);

/* Ends the hold. -ESTALE: it had ended before, or EV_QUIESCED had not come yet. */
int lks_vol_resume(struct lks_vol *v, u64 hold, u64 now_ms);

/*
 * Growing a replica. move: the metadata are written a second time at offset, laid out for a volume of `size` bytes, and both
 * places are kept current from EV_META_MOVED on; offset 0 gives it up. moved: the log names the new place. Repeating either
 * is harmless. -EINVAL: no replica, size or offset wrong (see META_MOVE), no such move; -EBUSY: another move; -ENOMEM.
 */
int lks_vol_meta_move(struct lks_vol *v, u64 offset, u64 size, u64 now_ms);
int lks_vol_meta_moved(struct lks_vol *v, u64 offset, u64 now_ms);

/*
 * The device has this size from now on: local openers' requests may go so far. What the replicas serve is in the record.
 * -EINVAL: smaller than it is, or more than the replica's metadata can describe.
 */
int lks_vol_resize(struct lks_vol *v, u64 size, u64 now_ms);

struct lks_verify {
	bool start;		/* (again), or stop it */
	bool repair;		/* rewrite what differs */
	u64 done, differ;	/* blocks: what an earlier primary has compared, and how many of them differed */
};

/* Compares the members' blocks with the primary's. -ESTALE: this host does not serve. */
int lks_vol_verify(struct lks_vol *v, const struct lks_verify *how, u64 now_ms);

struct lks_vol_tune {
	u32 freeze_ms;		/* requests that wait longer for a primary fail with -EIO; 0: never */
	u32 sync_rate_kib;	/* of resync reads a second; 0: no ceiling */
	u32 sync_floor_kib;	/* of resync reads a second, whatever the applications do; 0: 16 MiB */
	u32 sync_target_ms;	/* applications' requests are to take no longer on account of resync; 0: 50 */
};

void lks_vol_tune(struct lks_vol *v, const struct lks_vol_tune *t, u64 now_ms);

/* ---- the client ---- */

/*
 * A local opener wants this volume for writing. EV_OPENED follows once the record names this host and the primary has
 * confirmed (O2); if it had been before, at once. The surroundings ask the daemon for the record.
 */
void lks_vol_open(struct lks_vol *v, u64 now_ms);

/* The last local opener has gone: its session is not used again. Requests must have ended. */
void lks_vol_close(struct lks_vol *v, u64 now_ms);

/* true: the record lists a session of this host and the primary has confirmed it. */
bool lks_vol_is_open(const struct lks_vol *v);

/* Starts a request; ends in ops->req_done(). Reads need no session (they are served by the primary), the rest do. */
void lks_vol_submit(struct lks_vol *v, struct lks_req *req, u64 now_ms);

/* Ends all requests with err, from now on: teardown of the device. 0: no more. */
void lks_vol_abort(struct lks_vol *v, int err, u64 now_ms);

/* ---- what is going on ---- */

struct lks_peer_status {
	u8 host;
	u8 sync_state;		/* enum lks_sync_state */
	u8 linked;
	u64 dirty_blocks;
};

struct lks_vol_status {
	bool attached, admitted, suspect, failed, open;
	u8 role;		/* enum lks_role */
	u8 session_with;
	u64 version, term;	/* adopted */
	u64 noted_version;	/* newest known */
	u64 session;		/* this host's, 0: none */
	u32 pending;		/* requests of local openers */
	u32 oldest_ms;		/* age of the oldest */
	u32 hot_extents, written_extents;
	u32 spared_flushes;	/* primary: that nobody had to be asked for (F2); wraps */
	u64 hold;		/* of a quiesce, 0: none */
	u8 heir;		/* host of a planned handover under way, 0: none */
	u64 size, capacity;	/* bytes: of the volume; that the replica's metadata can describe */
	u64 meta_offset, move_offset;	/* bytes; move_offset 0: no move */
	bool move_current;	/* both places hold the same */
	bool retiring;		/* the new place counts; the old one is being zeroed. move_offset is set until that is done */
	u64 verify_total, verify_done, verify_differ;	/* blocks */
	bool verify_repair;
	u32 npeers;
	struct lks_peer_status peers[LKS_MAX_REPLICAS];
};

void lks_vol_status(const struct lks_vol *v, u64 now_ms, struct lks_vol_status *s);

#ifdef __cplusplus
}
#endif

#endif
