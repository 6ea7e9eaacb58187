// SPDX-License-Identifier: GPL-2.0-or-later
//
// What scripted runs are written with: one volume (the quiet world of scenarios.h) and steps that wait for conditions.
#pragma once

#include "world.h"

#include "core/internal.h"

#include <algorithm>

namespace lockstep::sim {

constexpr Time PATIENCE = 60 * SECOND;

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

	// Hosts lose power at once and are back after a second; waits until all is well again.
	void lose_power(std::set<uint8_t> hosts)
	{
		for (uint8_t h : hosts)
			w.crash(w.host(h), 1 * SECOND);
		pass(5 * SECOND);
		w.settle("after the power loss");
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

inline constexpr Span A = {10, 8}, B = {100, 40}, C = {8192 - 3, 3}, D = {20000, 64};

}    // namespace lockstep::sim
