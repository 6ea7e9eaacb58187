// SPDX-License-Identifier: GPL-2.0-or-later
//
// See scenarios.h. The quiet world: four hosts, one volume of 16 MiB with replicas on h1, h2 and h3, nothing goes wrong by
// itself and no client does anything by itself; then the script.
#include "scenarios.h"
#include "world.h"

#include "core/internal.h"

#include <algorithm>

namespace lockstep::sim {

namespace {

constexpr Time PATIENCE = 60 * SECOND;

Profile quiet()
{
	Profile p{};
	p.hosts = 4;
	p.volumes = 1;
	p.lanes = 2;
	p.net_delay = 2 * MS;
	p.disk_delay = 1 * MS;
	p.lease_ms = LKS_LEASE_MS;
	p.depth = 100;
	p.pace = 1;
	p.replicas = 3;
	p.block_size = LKS_BLOCK_DEFAULT;
	p.bytes = 16ull << 20;
	return p;
}

struct Script {
	World &w;
	Volume &v;
	Time next_tell = 0;

	explicit Script(World &world) : w(world), v(*world.volumes[0]) {}

	Instance &on(uint8_t host)
	{
		Instance *i = w.find(host, v.vid);
		if (!i || !i->core)
			w.fail("the script expects the volume on h%u", host);
		return *i;
	}

	template <typename Condition> void await(const char *what, Condition condition)
	{
		for (Time limit = w.now + PATIENCE; !condition();) {
			if (w.now > limit)
				w.fail("waited in vain until %s", what);
			w.run_until(w.now + 5 * MS);
			w.check_invariants(v);
			tell_all();
		}
	}

	void tell_all()
	{
		if (w.now < next_tell)
			return;
		next_tell = w.now + 200 * MS;
		for (auto &h : w.hosts)
			w.tell(*h, v);
	}

	void pass(Time t)
	{
		Time until = w.now + t;
		await("time has passed", [&] { return w.now >= until; });
	}

	void ready()
	{
		await("all replicas are admitted", [&] {
			return std::all_of(v.replicas.begin(), v.replicas.end(), [&](uint8_t h) {
				Instance *i = w.find(h, v.vid);
				return i && i->core && i->core->admitted;
			});
		});
	}

	// Makes host the primary, with keep as the other members, and waits until it serves.
	void promote(uint8_t host, std::set<uint8_t> keep)
	{
		keep.insert(host);
		w.start_term(v, host, keep);
		await("the new primary serves", [&] { return serves(host); });
	}

	bool serves(uint8_t host)
	{
		Instance *i = w.find(host, v.vid);
		return i && i->core && i->core->role == LKS_ACTIVE && i->core->cfg.term == v.record().term;
	}

	void open(uint8_t host)
	{
		w.open_door(on(host));
		await("the volume is open", [&] { return on(host).door == Door::open; });
	}

	uint64_t begin(uint8_t host, uint8_t op, Span span, uint8_t flags = 0) { return w.submit_op(on(host), op, span, flags)->id; }

	bool under_way(uint8_t host, uint64_t op)
	{
		Instance *i = w.find(host, v.vid);
		return i && std::any_of(i->ops.begin(), i->ops.end(), [&](auto &o) { return o->id == op; });
	}

	void await_op(uint8_t host, uint64_t op)
	{
		await("a request ends", [&] { return !under_way(host, op); });
	}

	void write(uint8_t host, Span span) { await_op(host, begin(host, LKS_OP_WRITE, span)); }
	void read(uint8_t host, Span span) { await_op(host, begin(host, LKS_OP_READ, span)); }
	void flush(uint8_t host) { await_op(host, begin(host, LKS_OP_FLUSH, {0, 0})); }

	bool member(uint8_t host)
	{
		return replica_in(v.record(), host)->state == LKS_REPLICA_INSYNC;
	}

	// As await(), but looks at every event's time.
	template <typename Condition> void catch_moment(const char *what, Condition condition)
	{
		for (Time limit = w.now + PATIENCE; !condition(); w.run_until(w.now + 10)) {
			if (w.now > limit)
				w.fail("waited in vain for the moment when %s", what);
			tell_all();
		}
	}

	// Frames sent from now on arrive that late on this lane.
	void delay_lane(uint8_t from, uint8_t to, unsigned lane, Time by)
	{
		Link *l = w.link_of(from, to);
		if (!l)
			w.fail("the script expects a link from h%u to h%u", from, to);
		l->lanes[l->hosts[1] == from][lane].last_due = w.now + by;
	}

	void isolate(uint8_t host, Time how_long, bool hard)
	{
		for (auto &other : w.hosts)
			if (other->id != host) {
				w.cut(host, other->id, how_long, hard);
				w.cut(other->id, host, how_long, hard);
			}
	}

	uint64_t count(Stat s) { return w.stats[s]; }
	void expect(bool condition, const char *what)
	{
		if (!condition)
			w.fail("expected: %s", what);
	}
};

constexpr Span A = {10, 8}, B = {100, 40}, C = {8192 - 3, 3}, D = {20000, 64};

void play_path(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (Span span : {A, B, C, D}) {
		s.write(4, span);
		s.read(1, span);
		s.read(2, span);
		s.read(4, span);
	}
	s.flush(4);
	s.await_op(4, s.begin(4, LKS_OP_DISCARD, A, LKS_F_FUA));
	s.await_op(4, s.begin(4, LKS_OP_ZEROES, {110, 5}));
	s.read(4, A);
	s.read(4, B);
	s.expect(w.stats[Stat::failed_requests] == 0, "no request fails");
	w.settle("at the end");
}

void play_failover(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	s.write(4, B);
	w.crash(w.host(1), 3 * SECOND);
	uint64_t pending = s.begin(4, LKS_OP_WRITE, B);
	s.promote(2, {3});
	s.await_op(4, pending);
	s.read(4, A);
	s.read(4, B);
	s.await("h1 is a member again", [&] { return s.member(1); });
	w.settle("at the end");
	s.expect(w.stats[Stat::joins] == 1, "one join");
}

void play_member_lost(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(1);
	s.write(1, A);
	s.isolate(3, 5 * SECOND, true);
	s.write(1, B);
	s.expect(!s.member(3), "the write completes only after h3 was removed (W3)");
	s.await("h3 is a member again", [&] { return s.member(3); });
	s.read(1, B);
	w.settle("at the end");
}

void play_take_over(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(2);
	s.write(2, A);
	s.isolate(2, 8 * SECOND, false);
	uint64_t lost = s.begin(2, LKS_OP_WRITE, A);
	s.open(4);
	s.write(4, A);
	s.await("the old session is fenced", [&] { return s.on(2).door == Door::closed; });
	s.expect(!s.under_way(2, lost), "the fenced session's request has ended");
	s.read(2, A);
	w.settle("at the end");
}

void play_power_loss(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(1);
	s.write(1, A);
	s.write(1, B);
	s.flush(1);
	s.write(1, D);
	for (auto &h : w.hosts)
		w.crash(*h, 1 * SECOND);
	w.settle("after the power loss");
	s.expect(s.count(Stat::incarnations) == 1, "a new incarnation");
	s.read(1, A);
	s.read(1, B);
	s.read(1, D);
}

void play_restart_clean(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(1);
	s.write(1, A);
	s.flush(1);
	w.close_door(s.on(1));
	s.await("the door is closed", [&] { return s.on(1).door == Door::closed; });
	s.pass(2 * SECOND);    // until the writes are known to be stable
	uint64_t clean = s.count(Stat::clean_attaches);
	w.reattach(s.on(2), false);
	s.await("h2 is attached again", [&] { return s.count(Stat::clean_attaches) > clean; });
	w.settle("at the end");
	s.read(4, A);
}

// L4: a member from which nothing comes any more, though its link never breaks by itself.
void play_silent_member(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(1);
	s.write(1, A);
	s.isolate(3, 200 * SECOND, false);
	s.write(1, B);
	s.expect(!s.member(3), "the silent member was removed");
	w.heal_network();
	s.await("h3 is a member again", [&] { return s.member(3); });
	w.settle("at the end");
}

// R2: a new primary dies while it rewrites what its predecessor had in flight. Of some blocks only the predecessor holds the
// new content and knows that; it must not have been told that they are stable.
void play_rewritten_halfway(World &w)
{
	Script s(w);
	auto place = [](unsigned i) { return Span{200 + i * 1500, 8}; };
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (unsigned i = 0; i < 20; i++)
		s.write(4, place(i));
	s.pass(2 * SECOND);
	for (unsigned lane : {0u, 1u})
		s.delay_lane(1, 3, lane, 60 * SECOND);
	for (unsigned i = 0; i < 20; i++)
		s.begin(4, LKS_OP_WRITE, place(i));
	auto unstable = [&](uint8_t host) {
		unsigned n = 0;
		for (const lks_list *pos = s.on(host).core->unstable.next; pos != &s.on(host).core->unstable; pos = pos->next)
			n++;
		return n;
	};
	s.catch_moment("h2 has them all", [&] { return unstable(2) == 20 && s.on(2).transfers.empty(); });
	w.start_term(s.v, 2, {1, 2, 3});
	w.crash(w.host(4), 500 * MS);    // or it would repeat its writes
	s.catch_moment("h2 has sent a few again", [&] { return s.on(2).core->role == LKS_ACTIVATING && s.on(2).core->seq >= 4; });
	for (uint8_t to : {1, 3})
		s.delay_lane(2, to, 1, 60 * SECOND);
	s.pass(400 * MS);
	s.expect(s.on(2).core->role == LKS_ACTIVATING, "h2 is not done");
	w.crash(w.host(2), 20 * SECOND);
	s.promote(3, {1});
	s.pass(2 * SECOND);
	w.settle("at the end");
}

// O2: the old session's write waits at the primary for its extent to become hot; the new session must wait for it.
void play_drained_open(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.pass(1 * SECOND);
	w.host(1).stalled_until = w.now + 5 * SECOND;
	uint64_t old = s.begin(4, LKS_OP_WRITE, A);
	s.pass(500 * MS);
	w.open_door(s.on(2));
	s.pass(2 * SECOND);
	s.expect(s.on(2).door == Door::opening, "the open waits for the write of the session that it replaces");
	s.await("the volume is open", [&] { return s.on(2).door == Door::open; });
	s.read(2, A);
	s.pass(5 * SECOND);
	s.read(2, A);
	s.expect(!s.under_way(4, old), "the old session's write has ended");
	w.settle("at the end");
}

// X1: a volume is removed from a client and created anew; a reply to a request of its former life comes over the same link.
void play_created_anew(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(2);
	s.write(2, D);
	s.open(4);
	w.cut(1, 4, 20 * SECOND, false);
	std::vector<uint64_t> lost;
	for (int i = 0; i < 10; i++)
		lost.push_back(s.begin(4, LKS_OP_WRITE, {A.first + 1000u * static_cast<unsigned>(i), 8}));
	s.pass(1 * SECOND);
	s.await("the first session of h2 has ended", [&] { return s.on(2).door == Door::closed; });
	s.open(2);
	s.await("the session of h4 has ended", [&] { return s.on(4).door == Door::closed; });
	uint64_t serial = s.on(4).serial;
	w.reattach(s.on(4), true);
	s.await("the volume is back on h4", [&] {
		Instance *i = w.find(4, s.v.vid);
		return i && i->core && i->serial != serial && i->core->note.primary == 1;
	});
	for (int i = 0; i < 30; i++)
		s.begin(4, LKS_OP_READ, {D.first + static_cast<unsigned>(i), 8});
	s.await("the reads have ended", [&] { return s.on(4).ops.empty(); });
	w.settle("at the end");
}

// T1: a replica detaches and comes back over the same link in the same term. What was sent to its former session must not
// reach the new one.
void play_same_link(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(1);
	s.write(1, D);
	s.delay_lane(1, 2, 1, 8 * SECOND);
	std::vector<uint64_t> writes;
	auto place = [](unsigned i) { return Span{200 + i * 1500, 8}; };
	for (unsigned i = 0; i < 20; i++)
		writes.push_back(s.begin(1, LKS_OP_WRITE, place(i)));
	s.pass(100 * MS);
	s.on(2).hurry = true;
	w.reattach(s.on(2), false);
	s.await("h2 is out", [&] { return !s.member(2); });
	for (uint64_t op : writes)
		s.await_op(1, op);
	for (unsigned i = 0; i < 20; i++)
		s.write(1, place(i));
	s.await("h2 is a member again", [&] { return s.member(2); });
	s.pass(10 * SECOND);
	w.settle("at the end");
}

// D2: a link to somebody else comes up between the maps and the PREPARE that counts them.
void play_link_between_maps(World &w)
{
	Script s(w);
	s.ready();
	w.crash(w.host(3), 50 * SECOND);
	s.promote(1, {2});
	s.open(1);
	for (Span span : {A, B, C, D})
		s.write(1, span);
	for (int tries = 0; s.on(2).core->maps == 0; tries++) {    // both may arrive at the same moment
		s.expect(tries < 20, "the moment between a map and the PREPARE");
		w.start_term(s.v, 1, {1});
		s.catch_moment("h2 has received a map, or has joined", [&] { return s.on(2).core->maps > 0 || s.member(2); });
	}
	w.enter(s.on(2), [](lks_vol *v, uint64_t t) { lks_vol_link_up(v, 4, t); });
	s.await("h2 is a member again", [&] { return s.member(2); });
	w.settle("at the end");
}

// H2d: a dirty map that the superblock names must not be zeroed before it is saved anew. Its extents are cold: nothing else
// remembers what the absent replica misses.
void play_map_zeroed(World &w)
{
	Script s(w);
	s.ready();
	w.crash(w.host(3), 50 * SECOND);
	s.promote(1, {2});
	s.open(4);
	for (Span span : {A, B, C, D})
		s.write(4, span);
	s.await("everything is cold", [&] { return s.on(1).core->hot == 0 && s.on(2).core->hot == 0; });
	s.on(1).hurry = true;
	w.reattach(s.on(1), false);
	s.await("h1 is detached", [&] { return !s.on(1).attached; });
	s.catch_moment("h1 is admitted again", [&] { return s.on(1).attached && s.on(1).core->admitted; });
	Time limit = w.now + 300 * MS;
	s.catch_moment("h1 zeroes a map, or has saved it", [&] {
		return w.now > limit || std::any_of(s.on(1).transfers.begin(), s.on(1).transfers.end(),
						    [](auto &t) { return t->what.op == LKS_IO_ZEROES; });
	});
	uint64_t written = w.stats[Stat::table_writes];
	s.catch_moment("that is done", [&] {
		return w.now > limit || s.on(1).transfers.empty() || w.stats[Stat::table_writes] != written;
	});
	w.survival = 1;
	w.crash(w.host(1), 500 * MS);
	w.survival = -1;
	s.pass(1 * SECOND);
	s.ready();
	s.expect(s.member(1) && s.member(2), "both are in sync");
	s.promote(1, {2});
	s.await("h3 is a member again", [&] { return s.member(3); });
	w.settle("at the end");
}

}    // namespace

const std::vector<Scenario> &scenarios()
{
	static const std::vector<Scenario> all = {
		{"path", "a client without a replica writes, reads, flushes, discards and zeroes", play_path},
		{"failover", "what had completed survives the primary's crash, what had not goes on, the crashed host joins again", play_failover},
		{"member-lost", "a write waits for a lost member until a version without it is committed (W3)", play_member_lost},
		{"take-over", "a session that was taken over never writes again (O1, O2)", play_take_over},
		{"power-loss", "what was flushed survives the loss of power of all hosts (F1, S2)", play_power_loss},
		{"silent-member", "a member that does not answer is given up (L4)", play_silent_member},
		{"rewritten-halfway", "what is being rewritten is not stable yet (R2)", play_rewritten_halfway},
		{"drained-open", "an open waits for what the session before it has begun (O2)", play_drained_open},
		{"created-anew", "a reply to a former life's request is not taken for an answer (X1)", play_created_anew},
		{"same-link", "a new session takes no data of the one before it over the same link (T1)", play_same_link},
		{"link-between-maps", "another host's link does not disturb the hand-over of dirty maps (D2)", play_link_between_maps},
		{"map-zeroed", "a saved dirty map survives a crash while it is saved anew (H2d)", play_map_zeroed},
		{"restart-clean", "a replica that was detached in good order is not suspect", play_restart_clean},
	};
	return all;
}

std::string run_scenario(const Scenario &s, const Options &options)
{
	World world(1, options, quiet());
	world.hostile = world.busy = false;
	try {
		s.play(world);
		world.shut_down();
	} catch (const Violation &v) {
		world.in_core = false;
		return std::string(v.what()) + "\n" + world.state_dump();
	}
	return "";
}

}    // namespace lockstep::sim
