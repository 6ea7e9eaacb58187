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
			if (w.now % (200 * MS) == 0)
				for (auto &h : w.hosts)
					w.tell(*h, v);
		}
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

}    // namespace

const std::vector<Scenario> &scenarios()
{
	static const std::vector<Scenario> all = {
		{"path", "a client without a replica writes, reads, flushes, discards and zeroes", play_path},
		{"failover", "what had completed survives the primary's crash, what had not goes on, the crashed host joins again", play_failover},
		{"member-lost", "a write waits for a lost member until a version without it is committed (W3)", play_member_lost},
		{"take-over", "a session that was taken over never writes again (O1, O2)", play_take_over},
		{"power-loss", "what was flushed survives the loss of power of all hosts (F1, S2)", play_power_loss},
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
