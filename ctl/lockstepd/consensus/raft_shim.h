/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libraft 0.22.1 (v0 API), reduced to what ConsensusLog needs, in a header that C++ can read (raft.h cannot be).
 *
 * All functions are called on the loop thread, and all callbacks come there. Status codes are libraft's (0 is success); see
 * lks_raft_strerror(). Texts given to callbacks live for the call only.
 *
 * The shim also guards against what libraft 0.22.1 gets wrong or leaves to the caller: one membership change at a time, no
 * request after close has begun, who owns an entry's buffer after a failed proposal.
 */
#ifndef LOCKSTEP_RAFT_SHIM_H
#define LOCKSTEP_RAFT_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct uv_loop_s;
struct lks_raft;
struct lks_raft_dial;	/* a connection that libraft asked for */

enum lks_raft_role { LKS_RAFT_STANDBY, LKS_RAFT_VOTER, LKS_RAFT_SPARE };

#define LKS_RAFT_ERRMSG_BYTES 256

struct lks_raft_ops {
	void *ctx;

	/* Apply a committed entry. The result is asked for by index in proposed(). */
	void (*apply)(void *ctx, uint64_t index, const void *data, size_t bytes);

	/* Give a snapshot of everything applied so far: memory from lks_raft_alloc(). False: out of memory. */
	bool (*snapshot)(void *ctx, void **data, size_t *bytes);

	/* Replace the state. False: the snapshot is damaged. */
	bool (*restore)(void *ctx, const void *data, size_t bytes);

	/*
	 * Outcome of lks_raft_propose(), _barrier() and _change(), with the token given there. A proposal that ends with a
	 * status other than 0 may or may not be committed later.
	 */
	void (*proposed)(void *ctx, void *token, int status, uint64_t index);
	void (*barrier_done)(void *ctx, void *token, int status);
	void (*changed)(void *ctx, int status);

	/* Connect to a member; end with lks_raft_dialed(), not from inside. cancel_dials: forget all that are under way. */
	void (*dial)(void *ctx, uint64_t id, const char *address, struct lks_raft_dial *dial);
	void (*cancel_dials)(void *ctx);

	/* Once in each turn of the loop, before it sleeps: the moment to look what has changed. */
	void (*turn)(void *ctx);

	/* A warning or error in libraft's words. */
	void (*diagnostic)(void *ctx, const char *message);
};

struct lks_raft_config {
	struct uv_loop_s *loop;
	const char *dir;	/* exists */
	uint64_t id;
	const char *address;	/* an opaque text to libraft; ours has meaning to dial() */
	unsigned heartbeat_ms;
	unsigned election_ms;
	unsigned snapshot_threshold;
	unsigned snapshot_trailing;
	unsigned seed;		/* random; differs between members */
};

/* Opens dir. NULL on failure, with the reason in errmsg. */
struct lks_raft *lks_raft_new(const struct lks_raft_config *config, const struct lks_raft_ops *ops, char *errmsg);

/* Writes a first configuration in which this member alone votes. Fails if dir has any log already. Before start. */
int lks_raft_bootstrap(struct lks_raft *r);

/* Appends to the log in dir a configuration in which this member alone votes, whoever voted before. Before start. */
int lks_raft_recover(struct lks_raft *r);

/* Term and index of the last entry in dir, and the term it is in. Changes the files of dir as a start does. Instead of a start. */
int lks_raft_position(struct lks_raft *r, uint64_t *term, uint64_t *index, uint64_t *current_term);

/*
 * Loads snapshot and log (restore() is called from inside). After a failure only errmsg() and close() may be called; the
 * latter then makes its last callback before it returns, except for done().
 */
int lks_raft_start(struct lks_raft *r);

/* Ends everything and frees r, some turns later; done() (may be NULL) is the last that is heard of it. Requests fail first. */
void lks_raft_close(struct lks_raft *r, void (*done)(void *arg), void *arg);

/* Requests: 0 means that the outcome will come by callback. The entry is copied. On success *index is where it was put. */
int lks_raft_propose(struct lks_raft *r, const void *data, size_t bytes, void *token, uint64_t *index);
int lks_raft_barrier(struct lks_raft *r, void *token);
int lks_raft_add(struct lks_raft *r, uint64_t id, const char *address);		/* as a spare */
int lks_raft_assign(struct lks_raft *r, uint64_t id, enum lks_raft_role role);
int lks_raft_remove(struct lks_raft *r, uint64_t id);
int lks_raft_transfer(struct lks_raft *r);	/* to any voter; no callback: watch lks_raft_is_leader() */

bool lks_raft_change_pending(const struct lks_raft *r);
bool lks_raft_is_leader(struct lks_raft *r);
uint64_t lks_raft_leader(struct lks_raft *r);	/* 0: unknown */
uint64_t lks_raft_term(struct lks_raft *r);
uint64_t lks_raft_last(struct lks_raft *r);	/* index of the last entry it has, committed or not */
uint64_t lks_raft_applied(struct lks_raft *r);
size_t lks_raft_members(const struct lks_raft *r);
void lks_raft_member(const struct lks_raft *r, size_t i, uint64_t *id, const char **address, enum lks_raft_role *role);
const char *lks_raft_errmsg(struct lks_raft *r);
const char *lks_raft_strerror(int status);
bool lks_raft_is_damage(int status);		/* of a start: what dir holds is not what was written there */
bool lks_raft_is_not_leader(int status);	/* of a request that was refused: nothing happened */

void *lks_raft_alloc(size_t bytes);

/* Takes over a connected socket on which a member has said hello. */
void lks_raft_accept(struct lks_raft *r, uint64_t id, const char *address, int fd);

/* Ends a dial: with a connected socket, taken over, or with fd = -1. */
void lks_raft_dialed(struct lks_raft_dial *dial, int fd);

#ifdef __cplusplus
}
#endif

#endif
