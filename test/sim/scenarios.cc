// SPDX-License-Identifier: GPL-2.0-or-later
//
// See scenarios.h. The quiet world: four hosts, one volume of 16 MiB with replicas on h1, h2 and h3, nothing goes wrong by
// itself and no client does anything by itself; then the script.
#include "scenarios.h"

#include "script.h"

namespace lockstep::sim {

namespace {

Profile quiet()
{
	Profile p{};
	p.hosts = 4;
	p.volumes = 1;
	p.lanes = 2;
	p.net_delay = 2 * MS;
	p.disk_delay = 1 * MS;
	p.lease_ms = LKS_LEASE_MS;
	p.answer_ms = LKS_ANSWER_MS;
	p.depth = 100;
	p.pace = 1;
	p.replicas = 3;
	p.block_size = LKS_BLOCK_DEFAULT;
	p.bytes = 16ull << 20;
	return p;
}

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

// h1 serves h4, which has written A and B.
void serve(Script &s)
{
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	s.write(4, B);
}

void play_failover(World &w)
{
	Script s(w);
	serve(s);
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

// Who writes and flushes in turn has his writes on all disks before the flush, which then asks nobody. What it promises holds
// when all power is lost, and no more is promised than that: after anything else a flush is one again.
void play_flush_foreseen(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	auto spared = [&] { return s.on(1).core->spared; };
	auto commit = [&] {
		s.write(4, A);
		s.flush(4);
	};
	for (int i = 0; i < 4; i++)
		commit();
	s.expect(!spared(), "the first flushes are sent");
	for (int i = 0; i < 4; i++)
		commit();
	s.expect(spared() == 4, "the next ones are not");
	const auto before = spared();
	s.write(4, B);
	s.write(4, A);
	s.flush(4);
	s.expect(spared() == before, "one that follows two writes is sent");
	commit();
	s.expect(spared() == before, "two writes without a flush were no habit");
	for (int i = 0; i < 6; i++)
		commit();
	s.expect(spared() > before, "it is one again");
	s.lose_power({1, 2, 3});
	s.expect(s.count(Stat::incarnations) == 1, "a new incarnation");
	s.read(4, A);
	s.read(4, B);
	const auto failed = s.count(Stat::failed_requests);
	s.flush(4);
	s.expect(s.count(Stat::failed_requests) == failed, "nothing was lost that a flush had covered");
}

// A new primary knows nothing of what flushes of earlier terms have covered: its first one asks, though it has written nothing.
void play_flush_of_another(World &w)
{
	Script s(w);
	serve(s);
	s.pass(2 * SECOND);    // until they are known to be stable, so that R1 finds nothing to do
	w.crash(w.host(1), 60 * SECOND);
	s.promote(2, {3});
	s.flush(4);
	s.expect(!s.on(2).core->spared, "it is sent");
	s.lose_power({2, 3});
	s.read(4, A);
	s.read(4, B);
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

// L5: a disk answers nothing any more, on a host whose kernel answers all pings and whose daemon does nothing about it. Nobody waits for it
// for long: a write, the first of a new term, a write where it is just being resynced. When it answers again, it is made good.
void play_mute_disk(World &w)
{
	Script s(w);
	auto dies = [&] { w.host(3).stalled_until = w.now + 1000 * SECOND; };
	auto returns = [&] { w.host(3).stalled_until = w.now; };
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	const uint64_t losses = s.count(Stat::link_losses);
	dies();
	s.write(4, B);
	s.expect(!s.member(3) && s.member(2), "h3 alone was given up");
	s.flush(4);
	returns();
	s.await("h3 is a member again", [&] { return s.member(3); });
	s.expect(s.count(Stat::link_losses) == losses, "no link was lost");

	dies();
	uint64_t pending = s.begin(4, LKS_OP_WRITE, A);
	s.pass(1 * SECOND);
	w.crash(w.host(1), 3 * SECOND);
	s.promote(2, {3});
	s.expect(!s.member(3), "h3 cannot end what it has begun (T2), and is given up");
	s.await_op(4, pending);
	returns();
	s.await("h1 and h3 are members again", [&] { return s.member(1) && s.member(3); });

	s.isolate(3, 10 * SECOND, true);
	s.write(4, D);
	s.catch_moment("h3 is being resynced", [&] { return !lks_list_empty(&s.on(2).core->copies); });
	dies();
	s.write(4, D);
	s.expect(!s.member(3), "h3 is not in sync");
	returns();
	s.await("h3 is a member again", [&] { return s.member(3); });
	s.read(3, D);
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
	s.write(1, A);
	s.delay_lane(1, 2, 1, 8 * SECOND);
	// In one extent, and as many as fit in the copies that can be in flight: some overtake what the other lane still holds.
	std::vector<uint64_t> writes;
	auto place = [](unsigned i) { return Span{200 + i * 80, 8}; };
	for (unsigned i = 0; i < 40; i++)
		writes.push_back(s.begin(1, LKS_OP_WRITE, place(i)));
	s.pass(100 * MS);
	s.on(2).hurry = true;
	w.reattach(s.on(2), false);
	s.await("h2 is out", [&] { return !s.member(2); });
	for (uint64_t op : writes)
		s.await_op(1, op);
	for (unsigned i = 0; i < 40; i++)
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

// M1: the primary moves to another host while a client elsewhere works; nothing fails, nobody waits for a promise.
void play_handover(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (uint8_t to : {2, 3, 1}) {
		s.write(4, A);
		uint64_t before = s.begin(4, LKS_OP_WRITE, B);
		Time begun = w.now;
		w.hand_over(s.v, to);
		uint64_t after = s.begin(4, LKS_OP_WRITE, A);
		s.await("the heir serves", [&] { return s.v.record().primary == to && s.serves(to); });
		s.expect(w.now - begun < 2 * SECOND, "no promise is waited for");
		s.await_op(4, before);
		s.await_op(4, after);
		s.read(4, A);
		s.read(4, B);
	}
	s.expect(s.count(Stat::handovers) == 3 && s.count(Stat::removals) == 0, "three handovers, no replica lost");
	s.expect(s.count(Stat::failed_requests) == 0, "no request fails");
	w.settle("at the end");
}

// M2: another change outruns the handover; the primary goes on by itself.
void play_handover_outrun(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	w.log_down_until = w.now + 2 * SECOND;
	w.hand_over(s.v, 2);
	uint64_t waiting = s.begin(4, LKS_OP_WRITE, A);
	s.pass(1 * SECOND);
	s.expect(s.on(1).core->role == LKS_DRAINING && s.under_way(4, waiting), "it does not serve until another version is there");
	w.log_down_until = 0;
	w.record_close(s.v, 4, s.on(4).core->session);
	s.await("h1 serves again or h2 does", [&] { return s.serves(1) || s.serves(2); });
	w.settle("at the end");
}

// A hold: what members hold meanwhile is the same, writes wait and go on.
void play_hold(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (unsigned round = 0; round < 5; round++) {
		std::vector<uint64_t> ops;
		for (unsigned k = 0; k < 10; k++)
			ops.push_back(s.begin(4, LKS_OP_WRITE, {100 + k * 40, 30}));
		w.begin_hold(s.v, 10 * SECOND);
		uint64_t number = s.v.hold.number;
		s.expect(number != 0, "the primary holds");
		uint64_t waits = s.begin(4, LKS_OP_WRITE, A);
		s.await("all members are copied", [&] { return s.v.hold.copies.size() == 3; });
		s.read(4, B);
		s.expect(s.under_way(4, waits), "a write waits");
		s.expect(w.end_hold(s.v, number), "the hold counts");
		for (uint64_t op : ops)
			s.await_op(4, op);
		s.await_op(4, waits);
	}
	// one that nobody ends
	w.begin_hold(s.v, 1 * SECOND);
	uint64_t number = s.v.hold.number;
	s.write(4, A);
	s.expect(!w.end_hold(s.v, number), "a hold that has ended by itself does not count");
	w.settle("at the end");
}

// Q1: a primary that was replaced without knowing ends its hold: it must not count, for others have written meanwhile.
void play_hold_of_the_replaced(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	s.isolate(1, 60 * SECOND, false);
	w.begin_hold(s.v, 60 * SECOND);
	uint64_t number = s.v.hold.number;
	s.await("h1 is copied", [&] { return s.v.hold.copies.count(1) == 1; });
	w.start_term(s.v, 2, {2, 3});
	s.await("h2 serves", [&] { return s.serves(2); });
	s.write(4, A);
	s.expect(s.on(1).core->hold == number, "h1 does not know yet");
	s.expect(!w.end_hold(s.v, number), "the hold does not count");
	w.settle("at the end");
}

// Two hosts write the same places of a shared volume at once; the order is one for all, and a host's death stops nobody.
void play_shared(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	for (uint8_t h : {1, 2, 4})
		s.open(h);
	s.expect(s.v.record().nopeners == 3, "three sessions");
	for (unsigned round = 0; round < 10; round++) {
		std::vector<std::pair<uint8_t, uint64_t>> ops;
		for (uint8_t h : {1, 2, 4})
			ops.push_back({h, s.begin(h, LKS_OP_WRITE, A)});
		for (auto [h, op] : ops)
			s.await_op(h, op);
		for (uint8_t h : {1, 2, 3, 4})
			s.read(h, A);
	}
	w.crash(w.host(1), 3 * SECOND);
	uint64_t two = s.begin(2, LKS_OP_WRITE, A), four = s.begin(4, LKS_OP_WRITE, A);
	s.promote(3, {2});
	s.await_op(2, two);
	s.await_op(4, four);
	s.read(4, A);
	s.expect(s.count(Stat::fenced) == 0, "nobody is fenced");
	w.settle("at the end");
}

// A sector goes bad on one member without anybody noticing: verify finds it, and on request repairs it.
void play_verify(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (Span span : {A, B, C, D})
		s.write(4, span);
	s.flush(4);
	s.v.windows.clear();    // the simulator would notice at once
	s.v.damaged = true;
	w.host(2).disks[0]->write(A.first + 1, 0xbad);
	w.host(2).disks[0]->write(D.first, 0xbad);
	auto verify = [&](bool repair) {
		uint64_t ended = s.count(Stat::verified), found = s.count(Stat::mismatches);
		w.verify(s.v, true, repair);
		s.write(4, B);
		s.await("the verify has ended", [&] { return s.count(Stat::verified) > ended; });
		return s.count(Stat::mismatches) - found;
	};
	s.expect(verify(false) == 2, "verify finds both places");
	struct lks_vol_status status{};
	lks_vol_status(s.on(1).core, 0, &status);
	s.expect(status.verify_done == status.verify_total && status.verify_total == 1024 && status.verify_differ, "the figures tell");
	s.expect(verify(true) == 2, "what was not repaired still differs");
	s.expect(verify(false) == 0, "what was repaired does not");
	s.read(2, A);
	w.settle("at the end");
}

// What is only in doubt since a crash is compared by hash: data that are there already are not sent again.
void play_doubt_compared(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (Span span : {A, B, C, D})
		s.write(4, span);
	s.flush(4);
	uint64_t copies = s.count(Stat::copies), spared = s.count(Stat::spared);
	w.survival = 1;
	w.crash(w.host(3), 3 * SECOND);
	s.write(4, A);
	s.await("h3 is a member again", [&] { return s.member(3); });
	s.expect(s.count(Stat::copies) - copies <= 2, "only the missing write is copied");
	s.expect(s.count(Stat::spared) - spared > 10, "the rest of the hot extents is compared");
	w.settle("at the end");
}

// h3 crashes with four extents hot, so that all of them is in doubt, and its link breaks again and again: of what it has compared
// or been sent it is not asked again, not even by another primary; what was written meanwhile it gets from that one.
void play_doubt_resumed(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (uint64_t at = 0; at < 32768; at += 1024)
		s.write(4, {at, 64});
	w.survival = 0.5;
	w.crash(w.host(3), 3 * SECOND);
	s.write(4, A);
	struct lks_vol_tune tune{0, 2048, 0, 0};    // 16 MiB in 8 s
	for (uint8_t h : {1, 2})
		w.enter(s.on(h), [&](lks_vol *v, uint64_t t) { lks_vol_tune(v, &tune, t); });
	auto doubt = [&] { return s.on(3).core ? s.on(3).core->doubt.set : 0; };
	s.await("h3 is asked what it holds", [&] { return s.on(1).core->syncing & LKS_BIT(3); });
	uint64_t all = 1024, left = all;
	s.expect(doubt() > all - 64, "nearly all of it is in doubt");
	for (unsigned round = 0; round < 3; round++) {
		uint64_t enough = left - all / 5;
		s.await("a part has been compared", [&] { return doubt() < enough; });
		w.cut(1, 3, 500 * MS, true);
		w.cut(3, 1, 500 * MS, true);
		s.await("the session has ended", [&] { return !(s.on(1).core->syncing & LKS_BIT(3)); });
		left = doubt();
		s.write(4, {32768 - 1024u * (round + 1), 64});
		s.await("h3 is asked again", [&] { return s.on(1).core->syncing & LKS_BIT(3); });
		s.expect(doubt() <= left, "what was compared is in doubt no more");
	}
	s.expect(left > 0, "there is something left");
	for (uint64_t at : {0, 1024, 16384})
		s.write(4, {at, 64});    // compared before, so that only the members know that h3 lacks it (D1)
	w.crash(w.host(1), 20 * SECOND);
	s.promote(2, {});
	s.await("h3 is asked by h2", [&] { return s.on(2).core->syncing & LKS_BIT(3); });
	s.expect(doubt() <= left, "not even by another primary");
	s.await("h3 is a member again", [&] { return s.member(3); });
	for (uint64_t at : {0, 1024, 16384})
		s.read(3, {at, 64});
	w.settle("at the end");
}

// Requests that wait too long for a primary fail if the volume is told so, and later ones go on.
void play_gives_up(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	struct lks_vol_tune tune{1500, 0, 0, 0};
	w.enter(s.on(4), [&](lks_vol *v, uint64_t t) { lks_vol_tune(v, &tune, t); });
	s.isolate(4, 6 * SECOND, false);
	uint64_t write = s.begin(4, LKS_OP_WRITE, A), read = s.begin(4, LKS_OP_READ, B), flush = s.begin(4, LKS_OP_FLUSH, {0, 0});
	Time begun = w.now;
	for (uint64_t op : {write, read, flush})
		s.await_op(4, op);
	s.expect(w.now - begun > 1400 * MS && w.now - begun < 2200 * MS, "they fail in time");
	s.expect(s.count(Stat::failed_requests) == 3, "all three fail");
	s.pass(6 * SECOND);
	s.write(4, A);
	s.read(1, A);
	s.expect(s.count(Stat::failed_requests) == 3, "later ones do not");
	w.settle("at the end");
}

// Resync keeps below its ceiling, and does not fall far below it either.
void play_sync_rate(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	w.crash(w.host(3), 2 * SECOND);
	s.write(4, A);
	for (uint64_t at = 0; at < 8192; at += 512)    // 4 MiB
		s.write(4, {at, 512});
	struct lks_vol_tune tune{0, 1024, 0, 0};
	w.enter(s.on(1), [&](lks_vol *v, uint64_t t) { lks_vol_tune(v, &tune, t); });
	s.await("the resync of h3 begins", [&] { return s.on(1).core->syncing != 0; });
	Time begun = w.now;
	s.await("h3 is a member again", [&] { return s.member(3); });
	s.expect(w.now - begun > 3500 * MS, "4 MiB at 1 MiB a second take their time");
	s.expect(w.now - begun < 6 * SECOND, "and not much more");
	w.settle("at the end");
}

// Resync leaves the applications what they need: while their requests take longer than the target it keeps to its floor, and
// when there are none it does not.
void play_sync_pace(World &w)
{
	for (bool busy : {false, true}) {
		Script s(w);
		if (!busy) {
			s.ready();
			s.promote(1, {2, 3});
			s.open(4);
		}
		w.crash(w.host(3), 2 * SECOND);
		s.write(4, A);
		for (uint64_t at = 0; at < 8192; at += 512)    // 4 MiB
			s.write(4, {at, 512});
		struct lks_vol_tune tune{0, 0, 1024, busy ? 1u : 60000u};
		w.enter(s.on(1), [&](lks_vol *v, uint64_t t) { lks_vol_tune(v, &tune, t); });
		s.await("the resync of h3 begins", [&] { return s.on(1).core->syncing != 0; });
		s.expect(s.on(1).core->pace_kib == 1024, "it begins at its floor");
		Time begun = w.now;
		uint64_t fastest = 0;
		while (!s.member(3) && w.now - begun < 20 * SECOND) {
			s.write(4, A);
			fastest = std::max(fastest, s.on(1).core->pace_kib);
		}
		s.expect(s.member(3), "h3 is a member again");
		if (busy)
			s.expect(w.now - begun > 3000 * MS && fastest <= 1536, "it keeps to its floor while requests are slow");
		else
			s.expect(w.now - begun < 3000 * MS && fastest > 1536, "it is faster while they are not");
	}
	w.settle("at the end");
}

// A replica's metadata move while clients work; a crash at any time leaves what counts; the new space reads zeros.
void play_grow(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	uint64_t old_end = s.v.sectors(), end = s.v.grow_to / SECTOR;
	s.write(4, {old_end - 40, 40});
	s.write(4, A);
	w.crash(w.host(3), 20 * SECOND);    // so that a dirty map moves too
	s.write(4, B);
	s.v.growing = true;
	s.await("h1 and h2 have moved", [&] { return s.v.retired.size() == 2; });
	s.expect(s.v.growing, "the volume does not grow without h3");
	w.reattach(s.on(2), false);
	s.write(4, C);
	s.await("the volume has grown", [&] { return s.v.sectors() == end; });
	s.await("the device has, too", [&] { return s.on(4).core->p.size == s.v.bytes; });
	s.read(4, {old_end - 8, 16});
	s.read(4, {old_end, std::min<uint64_t>(70, end - old_end)});
	s.write(4, {old_end - 8, 16});
	s.write(4, {end - 8, 8});
	s.await("all are in sync", [&] { return s.member(1) && s.member(2) && s.member(3); });
	s.read(4, {end - 8, 8});
	s.read(4, B);
	w.settle("at the end");
}

// A host whose replica was detached and taken out of the record uses the volume on, and what it grows by.
void play_grow_without_replica(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(3);
	s.write(3, A);
	w.reattach(s.on(3), false);
	s.on(3).attach_after = w.now + 1000 * SECOND;
	s.await("h3 is out of sync", [&] { return !s.member(3); });
	s.await("it is detached", [&] { return !s.on(3).detaching; });
	lks_record next = w.next_version(s.v);
	unsigned n = 0;
	for (unsigned i = 0; i < next.nreplicas; i++)
		if (next.replicas[i].host != 3)
			next.replicas[n++] = next.replicas[i];
	memset(&next.replicas[n], 0, sizeof(next.replicas[n]));
	next.nreplicas = static_cast<uint8_t>(n);
	s.expect(w.commit(s.v, next), "its replica is taken out of the record");
	std::erase(s.v.replicas, 3);
	w.host(3).disks[s.v.vid - 1].reset();
	uint64_t end = s.v.grow_to / SECTOR;
	s.v.growing = true;
	s.await("the volume has grown", [&] { return s.v.sectors() == end; });
	s.await("the device of h3 has, too", [&] { return s.on(3).core->p.size == s.v.bytes; });
	s.write(3, {end - 8, 8});
	s.read(3, {end - 8, 8});
	w.settle("at the end");
}

// A host's pool is full, so that the daemon has its replica left out although its disk does not fail: whoever served there stops, with no
// other volume's link harmed, and is a member again later.
void play_full_primary(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	uint64_t losses = s.count(Stat::link_losses), term = s.v.record().term;
	uint64_t write = s.begin(4, LKS_OP_WRITE, A);
	w.record_failed(s.v, 1);
	s.expect(!s.v.record().primary && s.v.record().term == term, "the record names no primary, in the same term");
	s.await("h1 has heard", [&] { return s.on(1).core->note.version == s.v.record().version; });
	s.expect(s.on(1).core->role == LKS_IDLE, "it serves no more");
	s.promote(2, {3});
	s.await_op(4, write);
	w.reattach(s.on(1), false);
	s.await("h1 is a member again", [&] { return s.member(1); });
	s.read(1, A);
	s.expect(s.count(Stat::link_losses) == losses, "no link was lost");
	w.settle("at the end");
}

// All hosts have lost power, and one of them is slow to attach its replica: the new primary goes on without it, and leaves it the link,
// which other volumes have to it, too. Then one has begun the term's session, and its answer takes too long: it knows from the log
// that it has been given up, and offers itself.
void play_slow_to_attach(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	s.flush(4);
	s.pass(15 * SECOND);    // all cools
	for (uint8_t h : {1, 2, 3})
		w.crash(w.host(h), 1 * SECOND);
	s.catch_moment("h3 is back, its replica is not", [&] {
		Instance *i = w.find(3, s.v.vid);
		return w.host(3).up && i && i->core && !i->attached;
	});
	s.on(3).attach_after = w.now + 1000 * SECOND;
	s.await("the others are back", [&] {
		return std::ranges::all_of(std::initializer_list<uint8_t>{1, 2}, [&](uint8_t h) {
			Instance *i = w.find(h, s.v.vid);
			return i && i->core && i->core->admitted && i->core->links == (h == 1 ? 0xeu : 0xdu);
		});
	});
	s.expect(s.member(1) && s.member(2) && s.member(3), "all are in sync");
	uint64_t losses = s.count(Stat::link_losses), removals = s.count(Stat::removals);
	s.promote(1, {2, 3});
	s.expect(!s.member(3) && s.member(2) && s.count(Stat::link_losses) == losses, "h1 goes on without h3, and leaves it its link");
	s.on(3).attach_after = 0;
	s.await("h3 is a member again", [&] { return s.member(3); });

	s.delay_lane(3, 2, 0, 8 * SECOND);
	s.promote(2, {1, 3});
	s.expect(!s.member(3) && s.member(1), "h2 goes on without h3");
	s.expect(s.on(3).core->session_host == 2, "which is in the session");
	s.await("h3 is a member again", [&] { return s.member(3); });
	s.expect(s.count(Stat::link_losses) == losses && s.count(Stat::removals) == removals + 2, "no link was lost");
	w.settle("at the end");
}

}    // namespace

const std::vector<Scenario> &scenarios()
{
	static const std::vector<Scenario> own = {
		{"path", "a client without a replica writes, reads, flushes, discards and zeroes", play_path},
		{"failover", "what had completed survives the primary's crash, what had not goes on, the crashed host joins again", play_failover},
		{"member-lost", "a write waits for a lost member until a version without it is committed (W3)", play_member_lost},
		{"take-over", "a session that was taken over never writes again (O1, O2)", play_take_over},
		{"power-loss", "what was flushed survives the loss of power of all hosts (F1, S2)", play_power_loss},
		{"flush-foreseen", "who flushes each write has it on all disks before, and the flush asks nobody (F2)", play_flush_foreseen},
		{"flush-of-another", "a new primary's first flush covers what earlier terms have written (F2)", play_flush_of_another},
		{"silent-member", "a member that does not answer is given up (L4)", play_silent_member},
		{"mute-disk", "who answers pings and nothing else is given up (L5)", play_mute_disk},
		{"rewritten-halfway", "what is being rewritten is not stable yet (R2)", play_rewritten_halfway},
		{"drained-open", "an open waits for what the session before it has begun (O2)", play_drained_open},
		{"created-anew", "a reply to a former life's request is not taken for an answer (X1)", play_created_anew},
		{"same-link", "a new session takes no data of the one before it over the same link (T1)", play_same_link},
		{"link-between-maps", "another host's link does not disturb the hand-over of dirty maps (D2)", play_link_between_maps},
		{"map-zeroed", "a saved dirty map survives a crash while it is saved anew (H2d)", play_map_zeroed},
		{"restart-clean", "a replica that was detached in good order is not suspect", play_restart_clean},
		{"handover", "the primary moves while a client works, without a wait and without a failure (M1)", play_handover},
		{"handover-outrun", "a primary whose handover was outrun serves again (M2)", play_handover_outrun},
		{"hold", "members' copies made during a hold are equal", play_hold},
		{"hold-of-the-replaced", "the hold of a primary that was replaced does not count (Q1)", play_hold_of_the_replaced},
		{"shared", "several hosts write a shared volume at once", play_shared, 2},
		{"verify", "verify finds what differs, and repairs it", play_verify},
		{"doubt-compared", "what a crash has made doubtful is compared before it is copied", play_doubt_compared},
		{"doubt-resumed", "a comparison that is interrupted goes on where it was (H4)", play_doubt_resumed},
		{"gives-up", "requests that wait too long for a primary fail if that is wanted", play_gives_up},
		{"sync-rate", "resync keeps to its ceiling", play_sync_rate},
		{"sync-pace", "resync leaves the applications what they need", play_sync_pace},
		{"full-primary", "a primary that the log deposes in its own term stops, and closes no link", play_full_primary},
		{"slow-to-attach", "a member that has not begun a term's session is given up without its link (L4)", play_slow_to_attach},
		{"grow", "a volume grows while clients work and hosts crash", play_grow, 1, 2},
		{"grow-without-replica", "a volume grows on a host whose replica has gone", play_grow_without_replica, 1, 2},
	};
	static const std::vector<Scenario> all = [] {
		std::vector<Scenario> both = own;
		both.insert(both.end(), catalogue().begin(), catalogue().end());
		return both;
	}();
	return all;
}

std::string run_scenario(const Scenario &s, const Options &options)
{
	Profile profile = quiet();
	profile.shared = s.shared;
	profile.grows = s.grows;
	profile.hosts = s.hosts;
	if (s.grows == 2)
		profile.bytes -= 10 * LKS_META_UNIT;    // in the middle of an extent
	World world(1, options, profile);
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
