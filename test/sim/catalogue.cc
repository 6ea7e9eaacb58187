// SPDX-License-Identifier: GPL-2.0-or-later
//
// Scripted runs of failures that other replicated storage has really had: docs/failure-catalogue.md lists all of them, B01
// to B61, and says for each which of these scenarios, which other test or which argument covers it.
#include "scenarios.h"

#include "script.h"

#include <cstring>

namespace lockstep::sim {

namespace {

constexpr Span place(unsigned i) { return {200 + i * 500, 8}; }

void write_all(Script &s, uint8_t from, unsigned first, unsigned n)
{
	std::vector<uint64_t> ops;
	for (unsigned i = first; i < first + n; i++)
		ops.push_back(s.begin(from, LKS_OP_WRITE, place(i)));
	for (uint64_t op : ops)
		s.await_op(from, op);
}

void read_all(Script &s, uint8_t from, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		s.read(from, place(i));
}

void cut_pair(Script &s, uint8_t a, uint8_t b, Time how_long)
{
	s.w.cut(a, b, how_long, true);
	s.w.cut(b, a, how_long, true);
}

void removed(Script &s, uint8_t host)
{
	s.await("it is no member any more", [&] { return !s.member(host); });
}

void joined(Script &s, uint8_t host)
{
	s.await("it is a member again", [&] { return s.member(host); });
}

// What h2 holds of the primary's writes and nobody has called stable: h3 gets nothing of lane 0 and 1 from now on.
void write_to_h2_only(Script &s, unsigned n)
{
	for (unsigned lane : {0u, 1u})
		s.delay_lane(1, 3, lane, 120 * SECOND);
	for (unsigned i = 0; i < n; i++)
		s.begin(4, LKS_OP_WRITE, place(i));
	auto unstable = [&] {
		unsigned found = 0;
		const lks_list *head = &s.on(2).core->unstable;
		for (const lks_list *pos = head->next; pos != head; pos = pos->next)
			found++;
		return found;
	};
	s.catch_moment("h2 has them", [&] { return unstable() == n && s.on(2).transfers.empty(); });
}

// A secondary leaves in good order, its network first; the others write; it returns.
void play_clean_leave(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 20);
	s.pass(2 * SECOND);
	s.isolate(3, 20 * SECOND, true);
	w.reattach(s.on(3), false);
	write_all(s, 4, 5, 3);
	s.expect(!s.member(3), "it is recorded as stale before a write completes without it");
	uint64_t copies = s.count(Stat::copies);
	w.heal_network();
	joined(s, 3);
	s.expect(s.count(Stat::copies) > copies, "what it missed is copied");
	s.expect(s.count(Stat::copies) - copies < 10, "and not everything");
	w.settle("at the end");
}

// One replica reaches the primary now and then, never for long enough, and the other member always; a client without a
// replica writes.
void play_partial_mesh(World &w)
{
	Script s(w);
	s.ready();
	s.promote(2, {1, 3});
	s.open(4);
	write_all(s, 4, 0, 30);
	for (unsigned round = 0; round < 5; round++) {
		for (uint8_t peer : {2, 4})
			cut_pair(s, 1, peer, 200 * SECOND);
		write_all(s, 4, round * 3, 5);
		removed(s, 1);
		w.heal_network();
		s.catch_moment("its resync has begun, or is done", [&] { return s.on(2).core->syncing & LKS_BIT(1) || s.member(1); });
	}
	for (uint8_t peer : {2, 4})
		cut_pair(s, 1, peer, 200 * SECOND);
	write_all(s, 4, 15, 5);
	removed(s, 1);
	s.promote(3, {2});
	write_all(s, 4, 20, 5);
	w.heal_network();
	joined(s, 1);
	read_all(s, 1, 30);
	w.settle("at the end");
}

// The client without a replica restarts while a replica is away: it remembers nothing, and nothing depends on that.
void play_client_restarts(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 6);
	s.isolate(3, 30 * SECOND, true);
	write_all(s, 4, 0, 3);
	w.crash(w.host(4), 1 * SECOND);
	s.await("it is back", [&] {
		Instance *i = w.find(4, s.v.vid);
		return i && i->core && i->core->note.primary == 1;
	});
	s.open(4);
	write_all(s, 4, 3, 3);
	w.heal_network();
	joined(s, 3);
	w.settle("at the end");
}

// A member is lost while no change can be recorded: what was begun must not complete before that is possible again.
void play_evict_before_complete(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 4);
	w.log_down_until = w.now + 15 * SECOND;
	s.isolate(3, 100 * SECOND, true);
	uint64_t write = s.begin(4, LKS_OP_WRITE, place(0)), flush = s.begin(4, LKS_OP_FLUSH, {0, 0});
	s.pass(12 * SECOND);
	s.expect(s.under_way(4, write) && s.under_way(4, flush), "nothing completes without the lost member's record");
	s.await_op(4, write);
	s.await_op(4, flush);
	s.expect(!s.member(3), "it does once the record says so");
	w.settle("at the end");
}

// The last member goes; those that were removed before come back first. They must not serve.
void play_stale_returns_first(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 4);
	w.crash(w.host(3), 20 * SECOND);
	removed(s, 3);
	s.on(2).hurry = false;
	w.reattach(s.on(2), false);
	removed(s, 2);
	w.crash(w.host(2), 20 * SECOND);
	write_all(s, 4, 0, 4);
	s.flush(4);
	w.crash(w.host(1), 60 * SECOND);
	s.pass(30 * SECOND);
	w.failover(s.v);
	uint64_t read = s.begin(4, LKS_OP_READ, place(0));
	s.pass(10 * SECOND);
	s.expect(!s.serves(2) && !s.serves(3) && s.under_way(4, read), "nobody serves what is old");
	s.pass(25 * SECOND);
	w.settle("at the end");
	s.expect(!s.under_way(4, read), "the last member's return ends the wait");
}

// The primary dies when one survivor has its last writes and the other has not; the one without becomes primary.
void play_reconcile_first(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 10);
	s.pass(2 * SECOND);
	write_to_h2_only(s, 10);
	w.crash(w.host(1), 60 * SECOND);
	w.crash(w.host(4), 500 * MS);
	s.promote(3, {2});
	read_all(s, 3, 10);
	s.pass(1 * SECOND);
	s.promote(2, {3});
	read_all(s, 3, 10);
	w.settle("at the end");
}

// The only survivor serves, though it cannot ask anybody.
void play_sole_survivor(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 4);
	w.crash(w.host(1), 60 * SECOND);
	w.crash(w.host(3), 2 * SECOND);
	s.pass(3 * SECOND);    // two of four hosts are no majority
	Time begun = w.now;
	s.promote(2, {});
	s.expect(w.now - begun < 6 * SECOND, "it waits for no more than its promise");
	read_all(s, 4, 4);
	write_all(s, 4, 0, 4);
	w.settle("at the end");
}

// A switch takes the primary and the link between the survivors together. One of them goes on; what it alone has reaches the
// other later.
void play_switch_failure(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 10);
	s.pass(2 * SECOND);
	write_to_h2_only(s, 10);
	cut_pair(s, 2, 3, 30 * SECOND);
	w.crash(w.host(1), 60 * SECOND);
	w.crash(w.host(4), 500 * MS);
	s.promote(2, {});
	read_all(s, 2, 10);
	w.heal_network();
	joined(s, 3);
	w.settle("at the end");
}

// A second member is lost while the first one's removal is still on its way.
void play_two_losses(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 6);
	cut_pair(s, 1, 3, 100 * SECOND);
	uint64_t first = s.begin(4, LKS_OP_WRITE, place(0));
	s.catch_moment("the first is lost", [&] { return s.on(1).core->lost & LKS_BIT(3); });
	w.reattach(s.on(2), false);
	uint64_t second = s.begin(4, LKS_OP_WRITE, place(1));
	s.await_op(4, first);
	s.await_op(4, second);
	s.expect(!s.member(2) && !s.member(3), "both are removed before");
	write_all(s, 4, 2, 4);
	w.heal_network();
	joined(s, 2);
	joined(s, 3);
	w.settle("at the end");
}

// Between a joiner being ready and its join being recorded it gets nothing any more: one side believes that it is over, the
// other not. Then the joiner, now a member by the record, becomes primary: what had completed must be there.
void join_half_seen(World &w, bool lost)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 6);
	cut_pair(s, 1, 3, 20 * SECOND);
	write_all(s, 4, 0, 6);
	removed(s, 3);
	w.heal_network();
	s.catch_moment("its join is proposed", [&] { return s.on(1).core->join_stage == LKS_JOIN_PROPOSE; });
	if (lost) {
		cut_pair(s, 1, 3, 5 * SECOND);
		w.break_link(1, 3, 1);
	} else {
		for (unsigned lane : {0u, 1u})
			s.delay_lane(1, 3, lane, 20 * SECOND);
	}
	std::vector<uint64_t> ops;
	for (unsigned i = 0; i < 6; i++)
		ops.push_back(s.begin(4, LKS_OP_WRITE, place(i)));
	s.catch_moment("the join is recorded", [&] { return s.member(3); });
	w.crash(w.host(1), 30 * SECOND);
	s.promote(3, {2});
	for (uint64_t op : ops)
		s.await_op(4, op);
	read_all(s, 3, 6);
	w.settle("at the end");
}

void play_join_half_seen(World &w) { join_half_seen(w, true); }
void play_join_unheard(World &w) { join_half_seen(w, false); }

// The proposal of h3's join is under way in the log, and what h1 proposes after it is lost. Returns the entry.
lks_record join_under_way(Script &s)
{
	World &w = s.w;
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 6);
	cut_pair(s, 1, 3, 20 * SECOND);
	write_all(s, 4, 0, 6);
	removed(s, 3);
	w.heal_network();
	s.catch_moment("its join is proposed", [&] { return s.on(1).core->join_stage == LKS_JOIN_PROPOSE; });
	w.host(1).daemon = false;
	lks_record late = w.next_version(s.v);
	for (int i = 0; i < late.nreplicas; i++)
		if (late.replicas[i].host == 3) {
			late.replicas[i].state = LKS_REPLICA_INSYNC;
			late.replicas[i].since = late.version;
		}
	return late;
}

// The joiner crashes and reads the log before its join is committed: the record then calls a replica clean that has lost
// completed writes.
void play_join_late_joiner(World &w)
{
	Script s(w);
	lks_record late = join_under_way(s);
	write_all(s, 4, 0, 6);    // h3 has acknowledged these, and nothing has flushed them
	w.survival = 0;
	w.crash(w.host(3), 1 * SECOND);
	w.survival = -1;
	s.await("h3 has read the log", [&] {
		Instance *i = w.find(3, s.v.vid);
		return i && i->core && i->core->admitted;
	});
	s.expect(!s.member(3) && s.on(3).core->suspect, "h3 is suspect and knows no join");
	s.expect(w.commit(s.v, late), "the join is committed now");
	w.crash(w.host(1), 30 * SECOND);
	w.start_term(s.v, 3, {2, 3});
	s.pass(6 * SECOND);
	s.expect(!s.serves(3), "h3 does not serve");
	s.promote(2, {});
	read_all(s, 4, 6);
	w.settle("at the end");
}

// The primary is gone when the join is committed, and the joiner has to serve at once.
void play_join_late_primary(World &w)
{
	Script s(w);
	lks_record late = join_under_way(s);
	for (unsigned lane : {0u, 1u})
		s.delay_lane(1, 3, lane, 20 * SECOND);
	std::vector<uint64_t> ops;
	for (unsigned i = 0; i < 6; i++)
		ops.push_back(s.begin(4, LKS_OP_WRITE, place(i)));
	s.pass(300 * MS);    // these wait for the joiner, which they never reach
	w.crash(w.host(1), 30 * SECOND);
	s.pass(2 * SECOND);
	s.expect(!s.member(3), "h3 knows no join");
	s.expect(w.commit(s.v, late), "the join is committed now");
	w.crash(w.host(2), 30 * SECOND);
	s.promote(3, {});
	for (uint64_t op : ops)
		s.await_op(4, op);
	read_all(s, 3, 6);
	w.settle("at the end");
}

// What was flushed before a replica joined was flushed on the others only; then all power is lost, and it is the joined one
// that must serve.
void play_joined_then_dark(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 6);
	s.isolate(3, 60 * SECOND, true);
	write_all(s, 4, 0, 6);
	removed(s, 3);
	s.flush(4);
	w.heal_network();
	joined(s, 3);
	w.survival = 0;
	for (uint8_t h : {1, 2, 3})
		w.crash(w.host(h), 1 * SECOND);
	w.survival = -1;
	s.await("all are recorded as suspect", [&] {
		return std::all_of(s.v.replicas.begin(), s.v.replicas.end(),
				   [&](uint8_t h) { return replica_in(s.v.record(), h)->state == LKS_REPLICA_SUSPECT; });
	});
	w.last_resort(s.v, 3);
	s.await("h3 serves", [&] { return s.serves(3); });
	read_all(s, 4, 6);
	w.settle("at the end");
}

// A member learns by a new version that another one is lost. Later it is the only one that knows what that one lacks.
void play_survivor_knows(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 10);
	s.pass(2 * SECOND);
	write_to_h2_only(s, 10);
	s.isolate(3, 200 * SECOND, true);
	removed(s, 3);
	s.await("the writes have completed", [&] { return s.on(4).ops.empty(); });
	s.pass(2 * SECOND);    // and are known to be stable
	w.crash(w.host(1), 100 * SECOND);
	s.pass(200 * MS);
	w.heal_network();
	s.promote(2, {});
	joined(s, 3);
	w.settle("at the end");
}

// Writes go on, to the very blocks that are copied, until the join is recorded and after; the joiner's lanes are uneven.
void play_writes_through_resync(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 30);
	w.crash(w.host(3), 2 * SECOND);
	write_all(s, 4, 0, 30);
	removed(s, 3);
	std::deque<uint64_t> ops;
	unsigned n = 0;
	s.await("it is a member again", [&] {
		std::erase_if(ops, [&](uint64_t op) { return !s.under_way(4, op); });
		for (; ops.size() < 12; n++)
			ops.push_back(s.begin(4, n % 7 == 3 ? LKS_OP_DISCARD : LKS_OP_WRITE, place(n * 7 % 30)));
		if (w.link_of(1, 3) && n % 5 == 0)
			s.delay_lane(1, 3, n / 5 % 2, 60 * MS);
		return s.member(3);
	});
	for (uint64_t op : ops)
		s.await_op(4, op);
	read_all(s, 4, 30);
	w.settle("at the end");
}

// Of two absent replicas one comes back and then becomes primary: it must know what the other one misses.
void play_third_replica(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 10);
	s.pass(2 * SECOND);
	s.isolate(3, 200 * SECOND, true);
	write_all(s, 4, 0, 5);
	removed(s, 3);
	w.reattach(s.on(2), false);
	removed(s, 2);
	s.await_op(4, s.begin(4, LKS_OP_DISCARD, place(5)));
	write_all(s, 4, 6, 2);
	joined(s, 2);
	write_all(s, 4, 8, 2);
	s.pass(1 * SECOND);
	w.crash(w.host(1), 100 * SECOND);
	s.pass(200 * MS);
	w.heal_network();
	s.promote(2, {});
	joined(s, 3);
	w.settle("at the end");
}

// Everything is taken away from hosts in the middle of work: each lets go by itself.
void play_teardown_alone(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(1);
	write_all(s, 1, 0, 10);
	w.crash(w.host(3), 100 * SECOND);
	write_all(s, 1, 0, 10);
	for (uint8_t h : {1, 2, 4})
		s.isolate(h, 100 * SECOND, false);
	for (unsigned i = 0; i < 20; i++)
		s.begin(1, LKS_OP_WRITE, place(i));
	s.pass(20 * MS);
	for (uint8_t h : {2, 1}) {
		Time begun = w.now;
		w.reattach(s.on(h), false);
		s.await("it is detached", [&] { return !s.on(h).detaching; });
		s.expect(w.now - begun < 2 * SECOND, "without waiting for a peer");
	}
	w.enter(s.on(1), [](lks_vol *v, uint64_t t) { lks_vol_abort(v, -EIO, t); });
	s.await("its requests have ended", [&] { return s.on(1).ops.empty(); });
	w.settle("at the end");
}

// Many writes of one place at once, answered out of order.
void play_same_place(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (unsigned round = 0; round < 5; round++) {
		s.delay_lane(2, 1, round % 2, 300 * MS);
		std::vector<uint64_t> ops;
		for (unsigned i = 0; i < 10; i++)
			ops.push_back(s.begin(4, LKS_OP_WRITE, place(i % 2)));
		for (uint64_t op : ops)
			s.await_op(4, op);
		s.read(4, place(0));
		s.read(2, place(1));
	}
	w.settle("at the end");
}

// The source of a resync changes in the middle of it; what the old one had sent arrives late.
void play_source_changes(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 60);
	s.flush(4);
	w.crash(w.host(3), 1 * SECOND);
	write_all(s, 4, 0, 60);
	removed(s, 3);
	s.catch_moment("the resync has begun", [&] { return w.find(3, s.v.vid) && w.find(3, s.v.vid)->core && s.on(3).core->session_host == 1; });
	s.delay_lane(1, 3, 1, 6 * SECOND);
	s.pass(10 * MS);
	w.start_term(s.v, 2, {1, 2});
	s.await("h2 serves", [&] { return s.serves(2); });
	write_all(s, 4, 0, 60);
	joined(s, 3);
	write_all(s, 4, 0, 60);
	s.pass(8 * SECOND);
	w.settle("at the end");
}

std::unique_ptr<Disk> formatted_disk(Volume &v, uint8_t host)
{
	lks_superblock sb{};
	sb.vid = v.vid;
	memcpy(sb.uuid, v.uuid.data(), sizeof(sb.uuid));
	sb.size = v.bytes;
	sb.block_size = v.block_size;
	sb.host = host;
	sb.version = v.record().version;
	sb.term = v.record().term;
	uint64_t meta_offset = v.meta_of.begin()->second;
	v.meta_of[host] = meta_offset;
	auto disk = std::make_unique<Disk>((meta_offset + v.layout.total_bytes) / SECTOR, v.thick);
	disk->add_place(meta_offset / SECTOR, v.layout.total_bytes / SECTOR);
	alignas(LKS_META_UNIT) uint8_t unit[LKS_META_UNIT];
	for (uint64_t at = 0; at < v.layout.slot_offset; at += LKS_META_UNIT) {
		lks_format_unit(&sb, at, unit);
		for (uint64_t s = 0; s < LKS_META_UNIT / SECTOR; s++) {
			MetaSector sector;
			memcpy(sector.data(), unit + s * SECTOR, SECTOR);
			disk->write_meta((meta_offset + at) / SECTOR + s, sector);
		}
	}
	disk->flush(disk->mark());
	return disk;
}

// Gives host an empty replica, as the daemon does when a disk or a host was replaced: other metadata, another number in the
// record. heard: the primary learns of each step, not only of both together.
void new_replica(Script &s, uint8_t host, bool heard)
{
	World &w = s.w;
	Volume &v = s.v;
	lks_record next = w.next_version(v);
	unsigned n = 0;
	for (unsigned i = 0; i < next.nreplicas; i++)
		if (next.replicas[i].host != host)
			next.replicas[n++] = next.replicas[i];
	memset(&next.replicas[n], 0, sizeof(next.replicas[n]));
	next.nreplicas = static_cast<uint8_t>(n);
	if (n < v.record().nreplicas) {
		s.expect(w.commit(v, next), "the old replica is removed");
		if (heard)
			s.await("the primary has heard", [&] { return s.on(v.record().primary).core->cfg.version == v.record().version; });
	}
	next = w.next_version(v);
	lks_record_replica &r = next.replicas[next.nreplicas++];
	r.host = host;
	r.state = LKS_REPLICA_STALE;
	r.since = r.added = next.version;
	s.expect(w.commit(v, next), "the new one is recorded");
	w.host(host).disks[v.vid - 1] = formatted_disk(v, host);
	if (!std::count(v.replicas.begin(), v.replicas.end(), host))
		v.replicas.push_back(host);
}

// A host gets a new, empty replica in the place of the one it had, for which others keep a dirty map.
void play_replica_replaced(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 20);
	for (bool heard : {true, false}) {
		w.crash(w.host(3), 5 * SECOND);
		write_all(s, 4, 3, 2);
		removed(s, 3);
		s.pass(2 * SECOND);    // its dirty map is saved
		new_replica(s, 3, heard);
		joined(s, 3);
		read_all(s, 4, 20);
	}
	w.settle("at the end");
}

// A replica on a host that never had one; it gets all that was ever written, also what was cold long ago.
void play_replica_added(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 20);
	s.await("everything is cold", [&] { return s.on(1).core->hot == 0; });
	w.reattach(s.on(1), false);    // so that the primary knows it from its disk only
	s.await("it is back", [&] { return s.on(1).attached && s.on(1).core->admitted; });
	s.promote(2, {3});
	joined(s, 1);
	new_replica(s, 4, true);
	joined(s, 4);
	w.crash(w.host(1), 60 * SECOND);
	w.crash(w.host(2), 60 * SECOND);
	w.crash(w.host(3), 3 * SECOND);
	s.pass(5 * SECOND);
	w.settle("at the end");
}

// Every replica's metadata are closed and opened again; writes of the new life must be remembered as well as those before.
void play_second_life(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 4);
	w.reattach(s.on(2), false);
	removed(s, 2);
	joined(s, 2);
	s.promote(2, {1, 3});
	s.delay_lane(2, 1, 0, 60 * SECOND);
	s.delay_lane(2, 1, 1, 60 * SECOND);
	for (unsigned i = 0; i < 4; i++)
		s.begin(4, LKS_OP_WRITE, place(i));
	s.pass(50 * MS);    // some replicas have them, others have not
	for (auto &h : w.hosts)
		w.crash(*h, 1 * SECOND);
	w.settle("at the end");
}

// Every host loses every other one.
void play_all_apart(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(1);
	write_all(s, 1, 0, 4);
	for (uint8_t h : {1, 2, 3, 4})
		s.isolate(h, 100 * SECOND, true);
	uint64_t write = s.begin(1, LKS_OP_WRITE, place(0)), read = s.begin(1, LKS_OP_READ, place(0));
	s.pass(10 * SECOND);
	s.expect(s.under_way(1, write) && s.under_way(1, read), "nobody works alone");
	for (uint8_t h : {2, 3, 4}) {    // the others find each other, without the primary
		for (uint8_t o : {2, 3, 4})
			if (o != h)
				w.cut(h, o, 0, false);
	}
	for (auto &cut : w.cuts)
		cut.until = cut.until > w.now + 60 * SECOND ? cut.until : 0;
	w.heal_network();
	s.isolate(1, 30 * SECOND, true);
	s.promote(2, {3});
	s.await("its session is taken over", [&] {
		if (s.on(4).door == Door::closed)
			w.open_door(s.on(4));
		return s.on(4).door == Door::open;
	});
	write_all(s, 4, 0, 4);
	s.expect(s.under_way(1, write), "the old primary still waits");
	w.settle("at the end");
}

// A volume changes hands every few milliseconds.
void play_quick_hands(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	for (unsigned round = 0; round < 30; round++) {
		uint8_t h = static_cast<uint8_t>(1 + round % 4);
		w.open_door(s.on(h));
		if (round % 3)
			s.await("it is open or taken over", [&] { return s.on(h).door != Door::opening; });
		if (s.on(h).door == Door::open)
			s.begin(h, LKS_OP_WRITE, place(round % 2));
		s.pass((1 + round % 5) * MS);
		if (s.on(h).door == Door::open || s.on(h).door == Door::opening)
			w.close_door(s.on(h));
		if (round % 7 == 6)
			w.hand_over(s.v, static_cast<uint8_t>(1 + round % 3));
		s.await("it is closed", [&] { return s.on(h).door == Door::closed; });
	}
	w.settle("at the end");
}

// Replicas are detached and attached in turn while the volume is in use: each time another one has the newest data.
void play_detached_in_turn(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (uint8_t h : {1, 2, 3, 1, 2}) {
		uint8_t next = static_cast<uint8_t>(h % 3 + 1);
		write_all(s, 4, 0, 4);
		w.reattach(s.on(h), false);
		s.await("it is detached", [&] { return !s.on(h).attached; });
		s.promote(next, {static_cast<uint8_t>(next % 3 + 1)});
		write_all(s, 4, 1, 4);
		read_all(s, 4, 5);
		joined(s, h);
	}
	w.settle("at the end");
}

// A write completes while a flush is under way; then all power is lost. The next flush must say so.
void play_flush_overtaken(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	write_all(s, 4, 0, 4);
	uint64_t flush = s.begin(4, LKS_OP_FLUSH, {0, 0});
	s.delay_lane(1, 4, 0, 400 * MS);    // its answer comes later than the write's
	s.delay_lane(1, 4, 1, 0);
	write_all(s, 4, 0, 2);
	s.await_op(4, flush);
	s.lose_power({1, 2, 3});
	s.expect(s.count(Stat::incarnations) == 1, "a new incarnation");
	uint64_t failed = s.count(Stat::failed_requests);
	s.flush(4);
	s.expect(s.count(Stat::failed_requests) == failed + 1, "the flush fails");
	s.flush(4);
	s.expect(s.count(Stat::failed_requests) == failed + 1, "once");
}

// h1 serves alone, for as long as the others are away.
void left_alone(Script &s)
{
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.isolate(2, 8 * SECOND, true);
	s.isolate(3, 8 * SECOND, true);
	s.promote(1, {});
}

// A replica that is being resynced answers pings and nothing else (L5). It never joins, since a block cannot be read, so what it owes
// are the writes to what it has; each is answered without it, and the next one in the same block waits for it.
void play_mute_while_resynced(World &w)
{
	Script s(w);
	left_alone(s);
	s.write(4, A);
	s.write(4, B);
	s.write(4, D);
	s.on(1).unreadable = Span{A.first, 1};
	s.await("the others have all but one block", [&] {
		return lks_peer_of(s.on(1).core, 2)->dirty.set == 1 && lks_peer_of(s.on(1).core, 3)->dirty.set == 1 &&
		       lks_list_empty(&s.on(1).core->copies);
	});
	w.host(2).stalled_until = w.now + 1000 * SECOND;
	Time begun = w.now;
	s.write(4, D);
	s.write(4, D);
	s.expect(w.now - begun < (w.profile.answer_ms + 10000) * MS, "the second write waits no longer than that");
	s.write(4, A);
	s.await("h3 is in sync", [&] { return s.member(3); });
	w.host(2).stalled_until = w.now;
	s.await("h2 is in sync", [&] { return s.member(2); });
	s.read(2, D);
	w.settle("at the end");
}

// A member answers nothing for longer than L5 allows, and then goes on, while the log cannot decide: nothing stops.
void play_mute_and_back(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	s.write(4, A);
	w.log_down_until = w.now + 100 * SECOND;
	w.host(3).stalled_until = w.now + (w.profile.answer_ms + 5000) * MS;
	const Time down = w.log_down_until;
	s.write(4, B);
	s.expect(s.on(1).core->lost == LKS_BIT(3), "h3 was given up");
	s.pass(20 * SECOND);
	s.read(4, B);
	s.write(4, A);
	s.read(2, A);
	s.expect(w.now < down, "none of it waits for the log");
	s.await("h3 is a member after all", [&] { return w.now > down && s.member(3) && !s.on(1).core->lost; });
	w.settle("at the end");
}

// The only good copy has a sector that cannot be read: that is an error for who reads it, and nothing else.
void play_unreadable(World &w)
{
	Script s(w);
	left_alone(s);
	s.write(4, A);
	s.write(4, B);
	s.on(1).unreadable = Span{A.first, 1};
	s.read(4, A);
	s.expect(s.count(Stat::failed_requests) == 1, "the read fails");
	s.read(4, B);
	s.pass(30 * SECOND);
	s.expect(s.serves(1) && s.count(Stat::disk_errors) == 0, "the replica serves on");
	s.expect(s.count(Stat::failed_requests) == 1, "no other request fails");
	for (uint8_t h : {2, 3})
		s.expect(!s.member(h) && lks_peer_of(s.on(1).core, h)->dirty.set == 1, "the others miss one block");
	s.expect(s.count(Stat::unreadable) < 20, "which is not tried again all the time");
	s.write(4, A);
	s.await("all are in sync", [&] { return s.member(2) && s.member(3); });
	s.read(4, A);
	s.expect(s.count(Stat::failed_requests) == 1, "what was written anew is read");
	w.settle("at the end");
}

// A read that fails once, early in a resync, does not make all of it slow: only what could not be read goes block by block.
void play_unreadable_once(World &w)
{
	Script s(w);
	left_alone(s);
	for (uint64_t at = 0; at < 32768; at += 512)
		s.write(4, {at, 512});
	s.on(1).unreadable = Span{600, 1};
	s.await("a read of the resync fails", [&] { return s.count(Stat::unreadable) > 0; });
	s.on(1).unreadable = Span{};
	uint64_t copies = s.count(Stat::copies);
	s.await("all are in sync", [&] { return s.member(2) && s.member(3); });
	s.expect(s.count(Stat::copies) - copies < 2 * (64 + 3 * 16 + 8), "runs of 256 KiB, and a few of them block by block");
	w.settle("at the end");
}

// Many volumes resync at once: each has less in flight, for they share what one alone may have.
void play_crowded(World &w)
{
	Script s(w);
	s.ready();
	s.promote(1, {2, 3});
	s.open(4);
	for (uint32_t crowd : {1u, 2000u}) {
		w.crowd = crowd;
		s.isolate(2, 8 * SECOND, true);
		s.promote(1, {3});
		for (uint64_t at = 0; at < 2048; at += 128)
			s.write(4, {at, 128});
		u32 copies = 0, most = 0;
		s.catch_moment("the other one is in sync again", [&] {
			lks_vol *core = s.on(1).core;
			if (const lks_peer *p = lks_peer_of(core, 2))
				copies = std::max(copies, p->copies);
			lks_list *pos;
			lks_list_for_each(pos, &core->copies)
				most = std::max(most, lks_list_entry(pos, struct lks_work, link)->length);
			return s.member(2);
		});
		s.expect(crowd == 1 ? copies > 1 && most > 64 << 10 : copies == 1 && most == 64 << 10, "its share is what it should be");
	}
	w.settle("at the end");
}

}    // namespace

const std::vector<Scenario> &catalogue()
{
	static const std::vector<Scenario> all = {
		{"clean-leave", "B01: what a replica misses that left in good order is copied, and no more", play_clean_leave},
		{"partial-mesh", "B02, B05, B09, B17: replicas that see only a part of the others stay out until the primary has resynced them", play_partial_mesh},
		{"client-restarts", "B03, B04, B08, B24: a client without a replica has no say in who holds what", play_client_restarts},
		{"evict-before-complete", "B06, B07, B09: nothing completes before the loss of a member is recorded", play_evict_before_complete},
		{"stale-returns-first", "B08, B46, B48: replicas that were removed do not serve, whoever comes back first", play_stale_returns_first},
		{"reconcile-first", "B10: a new primary serves only what all survivors hold", play_reconcile_first},
		{"sole-survivor", "B11, B49: the only survivor serves", play_sole_survivor},
		{"switch-failure", "B12, B13: what one survivor alone holds reaches the other one", play_switch_failure},
		{"two-losses", "B17: a second loss during the first one's removal", play_two_losses},
		{"join-half-seen", "B18: a joiner is lost between its join being proposed and recorded (C5)", play_join_half_seen},
		{"join-unheard", "B18, B34: a joiner counts before its join is recorded (J1)", play_join_unheard},
		{"join-late-joiner", "B18: a join is recorded after the joiner has crashed and read the log (S4)", play_join_late_joiner},
		{"join-late-primary", "B18: a join is recorded after the primary has gone (J1)", play_join_late_primary},
		{"joined-then-dark", "B44: a joiner has what others had flushed before (J2)", play_joined_then_dark},
		{"survivor-knows", "B12, B27: a member learns from a version what a lost one lacks (C3)", play_survivor_knows},
		{"writes-through-resync", "B26, B29, B30, B34: writes and discards to what is being copied, without end", play_writes_through_resync},
		{"third-replica", "B28, B33: who joins knows what the absent ones miss", play_third_replica},
		{"teardown-alone", "B31, B50, B51: nothing that is torn down waits for a peer", play_teardown_alone},
		{"same-place", "B32: many requests for one place, answered out of order", play_same_place},
		{"source-changes", "B35: the source of a resync changes, and its last data come late", play_source_changes},
		{"replica-replaced", "B15, B25: a dirty map of a host's former replica is not used for its new one", play_replica_replaced},
		{"replica-added", "B37: a new replica gets all that was ever written", play_replica_added},
		{"second-life", "B38: after detaching and attaching hot extents are recorded as before", play_second_life},
		{"all-apart", "B47, B52: without a majority nobody completes anything", play_all_apart},
		{"quick-hands", "B53: a volume changes hands within milliseconds", play_quick_hands},
		{"detached-in-turn", "B52: replicas detached in turn, each time another one has the newest data", play_detached_in_turn},
		{"flush-overtaken", "B44: a flush covers what had completed before it and nothing else", play_flush_overtaken},
		{"unreadable", "what cannot be read of the only good copy is an error for its reader, and nothing else", play_unreadable},
		{"mute-while-resynced", "who is being resynced and owes a write alone is given up, too (L5)", play_mute_while_resynced},
		{"mute-and-back", "a member given up by L5 that goes on without the log having decided stops nothing (L3, L5)", play_mute_and_back},
		{"unreadable-once", "a read that fails once does not slow down all of a resync", play_unreadable_once, 1, 1, 5},
		{"crowded", "volumes that resync at the same time share what one alone may have in flight", play_crowded},
	};
	return all;
}

}    // namespace lockstep::sim
