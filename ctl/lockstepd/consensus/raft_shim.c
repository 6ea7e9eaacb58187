/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See raft_shim.h. Three libraft objects (raft, raft_io on libuv, our transport) live in one struct lks_raft, which is freed
 * when raft_close() and the closing of our own prepare handle are both through.
 *
 * Connections: libraft asks its transport for connections and is told of accepted ones. Ours passes both on to the
 * caller, who does the hello, and turns the sockets into libuv streams. libraft frees these streams with raft_free().
 */
#define _GNU_SOURCE	/* asprintf() */
#include "lockstepd/consensus/raft_shim.h"

#include <raft.h>
#include <raft/uv.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* libraft's own default of 1 s would be felt in each fail-over; our dials have a timeout of their own. */
#define RETRY_MS 250

#define HURRIES 4u		/* two elections, each with a round of asking whether it would be won */

/*
 * A connection that libraft sends on. libraft 0.22.1 never reads from it, so it does not notice that the other's daemon has died and come
 * back: the first message then is written to nobody and lost. If that is an answer to a candidate, an election fails for it. So we read:
 * when the connection has ended, the next message goes to another spelling of the address, for which libraft makes a new one.
 */
struct sending {
	struct sending *next;
	raft_id id;
	struct uv_stream_s *stream;		/* to compare only: it is libraft's */
	bool ended;
	unsigned spelling;			/* 0: as it is */
};

/* What libraft calls a stream, and frees with raft_free(). */
struct stream {
	uv_tcp_t tcp;				/* first */
	struct lks_raft *r;
};

#define SPELLING '#'				/* in no address */

struct lks_raft {
	struct lks_raft_ops ops;
	struct uv_loop_s *loop;
	struct raft raft;
	struct raft_io io;
	struct raft_fsm fsm;
	struct raft_tracer tracer;
	struct raft_uv_transport transport;
	raft_uv_accept_cb accept_cb;		/* NULL: not listening */
	raft_uv_transport_close_cb close_cb;
	struct lks_raft_dial *dials;		/* all under way */
	struct sending *sendings;
	uv_prepare_t prepare;			/* runs turn() */
	uv_timer_t transport_closer;		/* defers the end of dials and transport to a later turn */
	struct raft_change change;
	bool change_pending;
	struct raft_transfer transfer;
	bool transfer_pending;
	int (*start_io)(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv);
	raft_io_recv_cb recv_cb;
	int (*snapshot_get)(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb);
	int (*send)(struct raft_io *io, struct raft_io_send *req, const struct raft_message *message, raft_io_send_cb cb);
	raft_term loaded_term;			/* of the snapshot that libraft is told of right now, as read; 0: of none */
	bool held;				/* held_message waits for the end of the snapshot that is being taken */
	struct raft_message held_message;
	char *held_from;			/* its server_address */
	bool started;
	bool closing;
	unsigned seed;
	unsigned hurried;			/* how often this candidate's timeout has been shortened */
	raft_term drawn_term;			/* for which this follower has drawn how long it waits for its leader */
	int handles;				/* of our own, not closed yet */
	bool raft_closed;
	void (*done)(void *arg);
	void *done_arg;
};

struct lks_raft_dial {
	struct lks_raft *r;
	raft_id id;
	struct raft_uv_connect *req;
	raft_uv_connect_cb cb;
	struct lks_raft_dial *next;
};

struct proposal {
	struct raft_apply apply;
	struct lks_raft *r;
	void *token;
};

struct load {
	struct raft_io_snapshot_get get;
	struct lks_raft *r;
	struct raft_io_snapshot_get *theirs;
	raft_io_snapshot_get_cb cb;
};

struct barrier {
	struct raft_barrier barrier;
	struct lks_raft *r;
	void *token;
};

/* --- what the state machine is asked ------------------------------------------------------------------------------- */

/* An entry as we store it: its length, then its bytes, then zeros up to a multiple of 8 as libraft wants it. */
struct entry_header {
	uint64_t bytes;
};

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
	struct lks_raft *r = fsm->data;
	const struct entry_header *header = buf->base;

	*result = NULL;
	if (buf->len < sizeof *header || header->bytes > buf->len - sizeof *header)
		return RAFT_MALFORMED;
	/* libraft counts an entry as applied after this call, and applies them one by one. */
	r->ops.apply(r->ops.ctx, raft_last_applied(&r->raft) + 1, header + 1, header->bytes);
	return 0;
}

static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
	struct lks_raft *r = fsm->data;
	struct raft_buffer *buf = raft_malloc(sizeof *buf);

	if (!buf)
		return RAFT_NOMEM;
	if (!r->ops.snapshot(r->ops.ctx, &buf->base, &buf->len)) {
		raft_free(buf);
		return RAFT_NOMEM;
	}
	*bufs = buf;
	*n_bufs = 1;
	return 0;
}

static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
	struct lks_raft *r = fsm->data;

	if (!r->ops.restore(r->ops.ctx, buf->base, buf->len))
		return RAFT_CORRUPT;
	raft_free(buf->base);
	return 0;
}

static void trace(struct raft_tracer *t, int type, const void *info)
{
	struct lks_raft *r = t->impl;
	const struct raft_tracer_info *i = info;

	/* Of five levels, errors and warnings. */
	if (type == RAFT_TRACER_DIAGNOSTIC && i->diagnostic.level <= 2 && !r->closing)
		r->ops.diagnostic(r->ops.ctx, i->diagnostic.message);
}

/* --- transport ------------------------------------------------------------------------------------------------------ */

static struct uv_stream_s *stream_of(struct lks_raft *r, int fd)
{
	struct stream *stream = raft_calloc(1, sizeof *stream);
	uv_tcp_t *tcp = &stream->tcp;

	if (!stream || uv_tcp_init(r->loop, tcp) != 0) {
		raft_free(stream);
		close(fd);
		return NULL;
	}
	stream->r = r;
	if (uv_tcp_open(tcp, fd) != 0) {
		close(fd);
		uv_close((uv_handle_t *)tcp, (uv_close_cb)raft_free);
		return NULL;
	}
	return (struct uv_stream_s *)tcp;
}

static int transport_init(struct raft_uv_transport *t, raft_id id, const char *address)
{
	(void)t;
	(void)id;
	(void)address;
	return 0;
}

static int transport_listen(struct raft_uv_transport *t, raft_uv_accept_cb cb)
{
	struct lks_raft *r = t->impl;

	r->accept_cb = cb;
	return 0;
}

static int transport_connect(struct raft_uv_transport *t, struct raft_uv_connect *req, raft_id id, const char *address,
			     raft_uv_connect_cb cb)
{
	struct lks_raft *r = t->impl;
	struct lks_raft_dial *dial = calloc(1, sizeof *dial);
	char *plain = strdup(address);

	if (!dial || !plain) {
		free(dial);
		free(plain);
		return RAFT_NOMEM;
	}
	plain[strcspn(plain, (char[]){ SPELLING, 0 })] = 0;
	dial->r = r;
	dial->id = id;
	dial->req = req;
	dial->cb = cb;
	dial->next = r->dials;
	r->dials = dial;
	r->ops.dial(r->ops.ctx, id, plain, dial);
	free(plain);
	return 0;
}

static void end_dial(struct lks_raft_dial *dial, struct uv_stream_s *stream, int status)
{
	struct lks_raft_dial **at = &dial->r->dials;

	while (*at != dial)
		at = &(*at)->next;
	*at = dial->next;
	dial->cb(dial->req, stream, status);
	free(dial);
}

static struct sending *sending_to(struct lks_raft *r, raft_id id)
{
	struct sending *s = r->sendings;

	while (s && s->id != id)
		s = s->next;
	return s;
}

static void read_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *buf)
{
	static char nothing[64];		/* what comes is of no interest */

	(void)handle;
	(void)wanted;
	*buf = uv_buf_init(nothing, sizeof nothing);
}

/* stream->data is libraft's; so is the stream, which it closes when it likes. */
static void read_end(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct lks_raft *r = ((struct stream *)stream)->r;
	struct sending *s;

	(void)buf;
	if (n >= 0)
		return;
	uv_read_stop(stream);
	for (s = r->sendings; s; s = s->next)
		s->ended |= s->stream == stream;
}

static void watch(struct lks_raft *r, raft_id id, struct uv_stream_s *stream)
{
	struct sending *s, *known = sending_to(r, id);

	if (!known && (known = calloc(1, sizeof *known))) {
		known->id = id;
		known->next = r->sendings;
		r->sendings = known;
	}
	for (s = r->sendings; s; s = s->next)
		if (s->stream == stream)	/* memory of one that libraft has freed */
			s->stream = NULL;
	if (!known || uv_read_start((uv_stream_t *)stream, read_alloc, read_end))
		return;
	known->stream = stream;
	known->ended = false;
}

void lks_raft_dialed(struct lks_raft_dial *dial, int fd)
{
	struct uv_stream_s *stream = fd >= 0 ? stream_of(dial->r, fd) : NULL;

	if (stream)
		watch(dial->r, dial->id, stream);
	end_dial(dial, stream, stream ? 0 : RAFT_NOCONNECTION);
}

void lks_raft_accept(struct lks_raft *r, uint64_t id, const char *address, int fd)
{
	struct uv_stream_s *stream;

	if (!r->accept_cb || r->closing) {
		close(fd);
		return;
	}
	stream = stream_of(r, fd);
	if (stream)
		r->accept_cb(&r->transport, id, address, stream);
}

static void transport_closed(uv_timer_t *timer)
{
	struct lks_raft *r = timer->data;

	while (r->dials)
		end_dial(r->dials, NULL, RAFT_CANCELED);
	r->close_cb(&r->transport);
}

static void transport_close(struct raft_uv_transport *t, raft_uv_transport_close_cb cb)
{
	struct lks_raft *r = t->impl;

	r->accept_cb = NULL;
	r->close_cb = cb;
	r->ops.cancel_dials(r->ops.ctx);
	uv_timer_start(&r->transport_closer, transport_closed, 0, 0);
}

/* --- messages in ----------------------------------------------------------------------------------------------------- */

/*
 * libraft 0.22 crashes when it is sent a snapshot while it takes one itself and has done with that: takeSnapshotCb() clears
 * its pointer to the pending installation before it uses it. So such a message waits here until no snapshot is being taken,
 * as it might have in the network.
 */
static void drop_held(struct lks_raft *r)
{
	if (r->held) {
		raft_configuration_close(&r->held_message.install_snapshot.conf);
		raft_free(r->held_message.install_snapshot.data.base);
	}
	r->held = false;
}

/*
 * libraft 0.22 takes entries that its log had once and has not any more, because a snapshot of its own is in their place, for
 * new ones: it truncates the log on disk, appends them behind what it has in memory, and crashes or goes on with wrong
 * indexes. A leader sends such entries when it sends a message again, whose answer was slow or lost. So what the snapshot has is
 * taken out of the message. It is in the leader's log, too, at the same place, since it is committed (Raft, leader
 * completeness); that is all that the new "previous entry" says. leader_commit must not exceed what the message
 * then covers, or libraft's own commit index could go back.
 */
static void leave_out_known(struct lks_raft *r, struct raft_append_entries *m)
{
	const raft_index have = r->raft.trail.snapshot.index;
	raft_index known;

	if (m->n_entries == 0 || m->prev_log_index >= have || r->raft.snapshot.installing)
		return;
	known = have - m->prev_log_index;
	if (known >= m->n_entries) {
		known = m->n_entries;
		raft_free(m->entries[0].batch);
		raft_free(m->entries);
		m->entries = NULL;
	} else {
		memmove(m->entries, m->entries + known, (m->n_entries - known) * sizeof *m->entries);
	}
	m->n_entries -= (unsigned)known;
	m->prev_log_index = have;
	m->prev_log_term = r->raft.trail.snapshot.term;
	if (m->leader_commit > have + m->n_entries)
		m->leader_commit = have + m->n_entries;
}

/*
 * libraft 0.22 lets nobody vote who, by its own configuration, does not. But a leader counts by its newest configuration,
 * committed or not. If it fails to reach the host that this one makes a voter, and steps down, it needs this vote to lead again,
 * and must lead to tell that host so: without this, there would never be a leader again. Raft has servers answer without looking at
 * their own configuration; who asks counts only those that vote in its own. Nothing in a request to vote changes configurations.
 */
static void answer_candidate(struct lks_raft *r, struct raft_message *message)
{
	struct raft_configuration *c = &r->raft.configuration;
	struct raft_server *self = NULL;
	int role;
	unsigned i;

	for (i = 0; i < c->n; i++) {
		if (c->servers[i].id == r->raft.id)
			self = &c->servers[i];
	}
	if (!self) {
		r->recv_cb(&r->io, message);
		return;
	}
	role = self->role;
	self->role = RAFT_VOTER;
	r->recv_cb(&r->io, message);
	self->role = role;
}

/*
 * Raft has a server refuse its vote within the shortest election timeout of hearing from a leader (4.2.3). libraft 0.22 has it refuse
 * until its own, random timeout has passed, twice as long at most: so it is not the first of the voters to miss a leader that gets the
 * votes, but the last of those that a majority needs. A heartbeat more or less is no silence.
 */
static void forget_silent_leader(struct lks_raft *r)
{
	struct raft *raft = &r->raft;

	if (raft->state == RAFT_FOLLOWER &&
	    r->io.time(&r->io) + raft->heartbeat_timeout >= raft->election_timer_start + raft->election_timeout)
		raft->follower_state.current_leader.id = 0;
}

/*
 * An election that nobody has won, since two began it at once, is decided when its answers are there. libraft 0.22 begins the next one
 * after another whole election timeout, of which nobody needs to be heard any more: the leader has been missed already. So the next one
 * begins sooner, and still at random. Not for ever: where the answers take longer than that, on a slow network or from slow disks, each
 * election would be over before they come.
 */
static void hurry_candidate(struct lks_raft *r)
{
	struct raft *raft = &r->raft;

	if (raft->state != RAFT_CANDIDATE) {
		r->hurried = 0;
		return;
	}
	/* Its own is never shorter than the election timeout, ours always is. */
	if (r->hurried == HURRIES || raft->candidate_state.randomized_election_timeout < raft->election_timeout)
		return;
	r->hurried++;
	raft->candidate_state.randomized_election_timeout =
		raft->election_timeout / 4 + (unsigned)rand_r(&r->seed) % (raft->election_timeout / 2 + 1);
}

/*
 * libraft 0.22 keeps the time that a follower waits for as long as it follows, whoever leads. So the one with the shortest always wins, and
 * when leaders die, those are left that wait for long.
 */
static void draw_timeout(struct lks_raft *r)
{
	struct raft *raft = &r->raft;

	if (raft->state != RAFT_FOLLOWER || raft->current_term == r->drawn_term)
		return;
	r->drawn_term = raft->current_term;
	raft->follower_state.randomized_election_timeout = raft->election_timeout + (unsigned)rand_r(&r->seed) % (raft->election_timeout + 1);
}

static void receive(struct raft_io *io, struct raft_message *message)
{
	struct lks_raft *r = (struct lks_raft *)((char *)io - offsetof(struct lks_raft, io));
	char *from;

	if (message->type == RAFT_REQUEST_VOTE && !r->closing) {
		forget_silent_leader(r);
		answer_candidate(r, message);
		return;
	}
	if (message->type == RAFT_APPEND_ENTRIES && !r->closing)
		leave_out_known(r, &message->append_entries);
	if (message->type != RAFT_INSTALL_SNAPSHOT || !r->raft.legacy.snapshot_taking || r->closing) {
		r->recv_cb(io, message);
		return;
	}
	drop_held(r);			/* the newer one counts */
	from = strdup(message->server_address);
	r->held_message = *message;	/* what it points to is ours now */
	r->held = true;
	if (!from) {
		drop_held(r);		/* as if lost: the leader sends it again */
		return;
	}
	free(r->held_from);
	r->held_from = from;
	r->held_message.server_address = from;
}

static void receive_held(struct lks_raft *r)
{
	if (!r->held || r->raft.legacy.snapshot_taking)
		return;
	r->held = false;
	r->recv_cb(&r->io, &r->held_message);
}

/* --- snapshots out --------------------------------------------------------------------------------------------------- */

/*
 * A leader that sends its snapshot reads the newest on disk, and that may be newer than the one it meant: taken since, or just
 * now. libraft 0.22 then says the index of the newer one and the term of the older one. Who installs that does not know the next
 * entry's predecessor, and as what it has is committed, libraft gives up with RAFT_SHUTDOWN, and frees the message twice. So a
 * snapshot is sent with the term that it was read with.
 */
static void loaded(struct raft_io_snapshot_get *get, struct raft_snapshot *snapshot, int status)
{
	struct load *load = get->data;
	struct lks_raft *r = load->r;

	r->loaded_term = status == 0 ? snapshot->term : 0;
	load->cb(load->theirs, snapshot, status);
	r->loaded_term = 0;
	free(load);
}

static int snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
	struct lks_raft *r = (struct lks_raft *)((char *)io - offsetof(struct lks_raft, io));
	struct load *load = calloc(1, sizeof *load);
	int error;

	if (!load)
		return RAFT_NOMEM;
	load->get.data = load;
	load->r = r;
	load->theirs = req;
	load->cb = cb;
	error = r->snapshot_get(io, &load->get, loaded);
	if (error)
		free(load);
	return error;
}

static int send_message(struct raft_io *io, struct raft_io_send *req, const struct raft_message *message, raft_io_send_cb cb)
{
	struct lks_raft *r = (struct lks_raft *)((char *)io - offsetof(struct lks_raft, io));
	struct sending *s = sending_to(r, message->server_id);
	struct raft_message mended = *message;	/* encoded, and its address copied, before send() returns */
	char *spelled = NULL;
	int status;

	if (message->type == RAFT_INSTALL_SNAPSHOT && r->loaded_term)
		mended.install_snapshot.last_term = r->loaded_term;
	if (s && s->ended) {
		s->ended = false;
		s->spelling++;
	}
	if (s && s->spelling && asprintf(&spelled, "%s%c%u", message->server_address, SPELLING, s->spelling) < 0)
		return RAFT_NOMEM;
	if (spelled)
		mended.server_address = spelled;
	status = r->send(io, req, &mended, cb);
	free(spelled);
	return status;
}

/* --- life ------------------------------------------------------------------------------------------------------------ */

static int start_io(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
	struct lks_raft *r = (struct lks_raft *)((char *)io - offsetof(struct lks_raft, io));

	r->recv_cb = recv;
	return r->start_io(io, msecs, tick, receive);
}

static void maybe_free(struct lks_raft *r)
{
	struct sending *s;

	if (!r->raft_closed || r->handles > 0)
		return;
	if (r->done)
		r->done(r->done_arg);
	while ((s = r->sendings)) {
		r->sendings = s->next;
		free(s);
	}
	free(r->held_from);
	free(r);
}

static void own_handle_closed(uv_handle_t *handle)
{
	struct lks_raft *r = handle->data;

	r->handles--;
	maybe_free(r);
}

static void close_own_handles(struct lks_raft *r)
{
	uv_close((uv_handle_t *)&r->prepare, own_handle_closed);
	uv_close((uv_handle_t *)&r->transport_closer, own_handle_closed);
}

static void turn(uv_prepare_t *prepare)
{
	struct lks_raft *r = prepare->data;

	if (r->closing)
		return;
	receive_held(r);
	draw_timeout(r);
	hurry_candidate(r);
	r->ops.turn(r->ops.ctx);
}

static void init_own_handles(struct lks_raft *r)
{
	uv_prepare_init(r->loop, &r->prepare);
	r->prepare.data = r;
	uv_timer_init(r->loop, &r->transport_closer);
	r->transport_closer.data = r;
	r->handles = 2;
}

struct lks_raft *lks_raft_new(const struct lks_raft_config *config, const struct lks_raft_ops *ops, char *errmsg)
{
	struct lks_raft *r = calloc(1, sizeof *r);
	int error;

	if (!r) {
		strcpy(errmsg, "out of memory");
		return NULL;
	}
	r->ops = *ops;
	r->loop = config->loop;
	r->tracer = (struct raft_tracer){ .impl = r, .version = 2, .emit = trace };
	r->fsm = (struct raft_fsm){ .version = 1, .data = r, .apply = fsm_apply, .snapshot = fsm_snapshot, .restore = fsm_restore };
	r->transport = (struct raft_uv_transport){ .version = 1,
						   .impl = r,
						   .init = transport_init,
						   .listen = transport_listen,
						   .connect = transport_connect,
						   .close = transport_close };

	error = raft_uv_init(&r->io, r->loop, config->dir, &r->transport);
	if (error) {
		snprintf(errmsg, LKS_RAFT_ERRMSG_BYTES, "%s", r->io.errmsg[0] ? r->io.errmsg : raft_strerror(error));
		free(r);
		return NULL;
	}
	r->start_io = r->io.start;
	r->io.start = start_io;
	r->snapshot_get = r->io.snapshot_get;
	r->io.snapshot_get = snapshot_get;
	r->send = r->io.send;
	r->io.send = send_message;
	raft_uv_set_tracer(&r->io, &r->tracer);
	/* Without this, libraft sets damaged files aside and goes on, having forgotten entries that it acknowledged. */
	raft_uv_set_auto_recovery(&r->io, false);
	raft_uv_set_connect_retry_delay(&r->io, RETRY_MS);

	error = raft_init(&r->raft, &r->io, &r->fsm, config->id, config->address);
	if (error) {
		snprintf(errmsg, LKS_RAFT_ERRMSG_BYTES, "%s", r->raft.errmsg[0] ? r->raft.errmsg : raft_strerror(error));
		raft_uv_close(&r->io);
		free(r);
		return NULL;
	}
	r->raft.tracer = &r->tracer;
	raft_seed(&r->raft, config->seed);
	r->seed = config->seed;
	raft_set_election_timeout(&r->raft, config->election_ms);
	raft_set_heartbeat_timeout(&r->raft, config->heartbeat_ms);
	raft_set_snapshot_threshold(&r->raft, config->snapshot_threshold);
	raft_set_snapshot_trailing(&r->raft, config->snapshot_trailing);
	raft_set_pre_vote(&r->raft, true);
	init_own_handles(r);
	return r;
}

int lks_raft_bootstrap(struct lks_raft *r)
{
	struct raft_configuration conf;
	int error;

	raft_configuration_init(&conf);
	error = raft_configuration_add(&conf, r->raft.id, r->raft.address, RAFT_VOTER);
	if (!error)
		error = raft_bootstrap(&r->raft, &conf);
	raft_configuration_close(&conf);
	return error;
}

int lks_raft_recover(struct lks_raft *r)
{
	struct raft_configuration conf;
	int error;

	raft_configuration_init(&conf);
	error = raft_configuration_add(&conf, r->raft.id, r->raft.address, RAFT_VOTER);
	if (!error)
		error = raft_recover(&r->raft, &conf);
	raft_configuration_close(&conf);
	return error;
}

int lks_raft_position(struct lks_raft *r, uint64_t *term, uint64_t *index, uint64_t *current_term)
{
	struct raft_snapshot *snapshot = NULL;
	struct raft_entry *entries = NULL;
	raft_index start;
	raft_term current;
	raft_id voted_for;
	size_t n = 0, i;
	int error = r->io.load(&r->io, &current, &voted_for, &snapshot, &start, &entries, &n);

	if (error)
		return error;
	*current_term = current;
	*term = n > 0 ? entries[n - 1].term : snapshot ? snapshot->term : 0;
	*index = n > 0 ? start + n - 1 : snapshot ? snapshot->index : 0;
	for (i = 0; i < n; i++) {
		/* The entries of a batch share its memory. */
		if (!entries[i].batch)
			raft_free(entries[i].buf.base);
		else if (i + 1 == n || entries[i + 1].batch != entries[i].batch)
			raft_free(entries[i].batch);
	}
	raft_free(entries);
	if (snapshot) {
		raft_configuration_close(&snapshot->configuration);
		for (i = 0; i < snapshot->n_bufs; i++)
			raft_free(snapshot->bufs[i].base);
		raft_free(snapshot->bufs);
		raft_free(snapshot);
	}
	return 0;
}

int lks_raft_start(struct lks_raft *r)
{
	int error = raft_start(&r->raft);

	if (error)
		return error;
	r->started = true;
	uv_prepare_start(&r->prepare, turn);
	return 0;
}

static void raft_closed(struct raft *raft)
{
	struct lks_raft *r = raft->data;

	raft_uv_close(&r->io);
	r->raft_closed = true;
	close_own_handles(r);
}

void lks_raft_close(struct lks_raft *r, void (*done)(void *arg), void *arg)
{
	r->closing = true;
	drop_held(r);
	r->done = done;
	r->done_arg = arg;
	r->raft.data = r;
	raft_close(&r->raft, raft_closed);
}

/* --- requests -------------------------------------------------------------------------------------------------------- */

static bool ready(const struct lks_raft *r)
{
	return r->started && !r->closing;
}

static void proposal_done(struct raft_apply *req, int status, void *result)
{
	struct proposal *p = (struct proposal *)req;

	(void)result;
	p->r->ops.proposed(p->r->ops.ctx, p->token, status, req->index);
	free(p);
}

int lks_raft_propose(struct lks_raft *r, const void *data, size_t bytes, void *token, uint64_t *index)
{
	const size_t padded = (sizeof(struct entry_header) + bytes + 7) / 8 * 8;
	struct raft_buffer buf;
	struct proposal *p;
	int error;

	if (!ready(r) || raft_state(&r->raft) != RAFT_LEADER || raft_transferee(&r->raft) != 0)
		return RAFT_NOTLEADER;
	p = calloc(1, sizeof *p);
	buf.len = padded;
	buf.base = raft_calloc(1, padded);
	if (!p || !buf.base) {
		free(p);
		raft_free(buf.base);
		return RAFT_NOMEM;
	}
	((struct entry_header *)buf.base)->bytes = bytes;
	memcpy((struct entry_header *)buf.base + 1, data, bytes);
	p->r = r;
	p->token = token;
	error = raft_apply(&r->raft, &p->apply, &buf, 1, proposal_done);
	if (error) {
		/* Refused at the door, the buffer is still ours; after other failures nobody can tell, so it leaks. */
		if (error == RAFT_NOTLEADER)
			raft_free(buf.base);
		free(p);
		return error;
	}
	*index = p->apply.index;
	return 0;
}

static void barrier_done(struct raft_barrier *req, int status)
{
	struct barrier *b = (struct barrier *)req;

	b->r->ops.barrier_done(b->r->ops.ctx, b->token, status);
	free(b);
}

int lks_raft_barrier(struct lks_raft *r, void *token)
{
	struct barrier *b;
	int error;

	if (!ready(r) || raft_state(&r->raft) != RAFT_LEADER || raft_transferee(&r->raft) != 0)
		return RAFT_NOTLEADER;
	b = calloc(1, sizeof *b);
	if (!b)
		return RAFT_NOMEM;
	b->r = r;
	b->token = token;
	error = raft_barrier(&r->raft, &b->barrier, barrier_done);
	if (error)
		free(b);
	return error;
}

static void change_done(struct raft_change *req, int status)
{
	struct lks_raft *r = req->data;

	r->change_pending = false;
	r->ops.changed(r->ops.ctx, status);
}

/* raft_add() and raft_remove() check little of this themselves; they assert. */
static int begin_change(struct lks_raft *r)
{
	if (!ready(r) || raft_state(&r->raft) != RAFT_LEADER || raft_transferee(&r->raft) != 0)
		return RAFT_NOTLEADER;
	if (r->change_pending || r->raft.legacy.change || r->raft.configuration_uncommitted_index != 0 ||
	    r->raft.leader_state.promotee_id != 0)
		return RAFT_CANTCHANGE;
	memset(&r->change, 0, sizeof r->change);
	r->change.data = r;
	r->change_pending = true;
	return 0;
}

static int end_change(struct lks_raft *r, int error)
{
	if (error) {
		r->change_pending = false;
		/* raft_assign() leaves it behind when it fails late. */
		if (r->raft.legacy.change == &r->change)
			r->raft.legacy.change = NULL;
	}
	return error;
}

int lks_raft_add(struct lks_raft *r, uint64_t id, const char *address)
{
	int error = begin_change(r);

	return error ? error : end_change(r, raft_add(&r->raft, &r->change, id, address, change_done));
}

int lks_raft_assign(struct lks_raft *r, uint64_t id, enum lks_raft_role role)
{
	static const int roles[] = { [LKS_RAFT_STANDBY] = RAFT_STANDBY, [LKS_RAFT_VOTER] = RAFT_VOTER, [LKS_RAFT_SPARE] = RAFT_SPARE };
	int error = begin_change(r);

	return error ? error : end_change(r, raft_assign(&r->raft, &r->change, id, roles[role], change_done));
}

int lks_raft_remove(struct lks_raft *r, uint64_t id)
{
	int error = begin_change(r);

	return error ? error : end_change(r, raft_remove(&r->raft, &r->change, id, change_done));
}

static void transfer_done(struct raft_transfer *req)
{
	struct lks_raft *r = req->data;

	r->transfer_pending = false;
}

int lks_raft_transfer(struct lks_raft *r)
{
	int error;

	if (!ready(r) || raft_state(&r->raft) != RAFT_LEADER)
		return RAFT_NOTLEADER;
	/* libraft would let the old request of a transfer dangle. */
	if (r->transfer_pending || r->change_pending)
		return RAFT_BUSY;
	memset(&r->transfer, 0, sizeof r->transfer);
	r->transfer.data = r;
	error = raft_transfer(&r->raft, &r->transfer, 0, transfer_done);
	r->transfer_pending = error == 0;
	return error;
}

/* --- questions ------------------------------------------------------------------------------------------------------- */

bool lks_raft_change_pending(const struct lks_raft *r)
{
	return r->change_pending;
}

bool lks_raft_is_leader(struct lks_raft *r)
{
	return ready(r) && raft_state(&r->raft) == RAFT_LEADER;
}

uint64_t lks_raft_leader(struct lks_raft *r)
{
	raft_id id = 0;
	const char *address = NULL;

	if (ready(r))
		raft_leader(&r->raft, &id, &address);
	return id;
}

uint64_t lks_raft_term(struct lks_raft *r)
{
	return raft_current_term(&r->raft);
}

uint64_t lks_raft_last(struct lks_raft *r)
{
	return raft_last_index(&r->raft);
}

uint64_t lks_raft_applied(struct lks_raft *r)
{
	return raft_last_applied(&r->raft);
}

size_t lks_raft_members(const struct lks_raft *r)
{
	return r->raft.configuration.n;
}

void lks_raft_member(const struct lks_raft *r, size_t i, uint64_t *id, const char **address, enum lks_raft_role *role)
{
	const struct raft_server *s = &r->raft.configuration.servers[i];

	*id = s->id;
	*address = s->address;
	*role = s->role == RAFT_VOTER ? LKS_RAFT_VOTER : s->role == RAFT_STANDBY ? LKS_RAFT_STANDBY : LKS_RAFT_SPARE;
}

const char *lks_raft_errmsg(struct lks_raft *r)
{
	return raft_errmsg(&r->raft);
}

const char *lks_raft_strerror(int status)
{
	return raft_strerror(status);
}

bool lks_raft_is_damage(int status)
{
	return status == RAFT_CORRUPT || status == RAFT_MALFORMED;
}

bool lks_raft_is_not_leader(int status)
{
	return status == RAFT_NOTLEADER;
}

void *lks_raft_alloc(size_t bytes)
{
	return raft_malloc(bytes);
}
