// SPDX-License-Identifier: GPL-2.0-or-later
//
// Openers of volumes, on hosts with and without a replica, and what they do: several requests at a time, overlapping, of
// parts of blocks. Reads are also made without a session. Every answer goes to the volume's History.
#include "world.h"

#include "core/internal.h"

#include <algorithm>

namespace lockstep::sim {

// Somebody on this host wants to write; a session elsewhere is fenced.
void World::take_over(Volume &v, uint8_t id)
{
	Instance *i = find(id, v.vid);
	if (!i || !i->core || i->destroy)
		return;
	if (i->door == Door::closed)
		open_door(*i);
	else if (i->door == Door::open)
		close_door(*i);
}

void World::open_door(Instance &i)
{
	trace("h%u opens volume %u", i.host.id, i.volume.vid);
	i.door = Door::opening;
	i.asked = false;
	i.session = 0;
	i.pace = profile.pace;
	enter(i, [](lks_vol *v, uint64_t t) {
		lks_vol_abort(v, 0, t);    // whoever comes later is not meant
		lks_vol_open(v, t);
	});
}

void World::opened(Instance &i)
{
	struct lks_vol_status s{};
	lks_vol_status(i.core, clock_ms(i.host), &s);
	trace("h%u has opened volume %u: session %llu", i.host.id, i.volume.vid, (unsigned long long)s.session);
	if (!s.session || s.session > i.volume.record().session_serial)
		fail("h%u says that volume %u is open with session %llu", i.host.id, i.volume.vid, (unsigned long long)s.session);
	i.session = s.session;
	i.unflushed.clear();
	i.volume.history->opened(s.session, i.volume.key_of(i.host.id));
	if (i.door != Door::opening)
		return;    // whoever holds the device open has seen its session fenced and must close it
	stats[Stat::opened]++;
	i.door = Door::open;
}

void World::fenced(Instance &i)
{
	trace("h%u: session %llu of volume %u is fenced", i.host.id, (unsigned long long)i.session, i.volume.vid);
	stats[Stat::fenced]++;
	if (i.door == Door::closed)
		return;
	i.door = Door::fenced;
	at_instance(i, random.below(200 * MS), [this](Instance &x) { maybe_closed(x); });
}

void World::close_door(Instance &i)
{
	trace("h%u closes volume %u", i.host.id, i.volume.vid);
	i.door = Door::closing;
	at_instance(i, 0, [this](Instance &x) { maybe_closed(x); });
}

// The last request of a session that ends has ended: the last opener goes.
void World::maybe_closed(Instance &i)
{
	if ((i.door != Door::closing && i.door != Door::fenced) || !i.ops.empty())
		return;
	trace("h%u has closed volume %u", i.host.id, i.volume.vid);
	i.door = Door::closed;
	uint64_t &ended = i.host.ended_session[i.volume.vid - 1];
	ended = std::max(ended, i.session);
	i.session = 0;
	enter(i, [](lks_vol *v, uint64_t t) { lks_vol_close(v, t); });
}

void World::clients_step(Instance &i)
{
	if (!busy)
		return;
	if (random.chance(.02))
		i.pace = random.pick<double>({0, .1, .4, 1}) * profile.pace;
	if (random.chance(.005))
		i.commits = random.chance(.3);
	double expected = i.door == Door::open || i.door == Door::fenced ? i.pace : i.door == Door::closed ? .02 : 0;
	for (; expected > 0; expected -= 1)
		if (random.chance(expected))
			at_instance(i, random.below(STEP), [this](Instance &x) {
				if (x.core)
					issue(x);
			});
	if (i.door == Door::closed && !i.destroy && (!i.volume.record().nopeners || i.volume.shared) && random.chance(.01))
		open_door(i);
}

void World::issue(Instance &i)
{
	if (i.ops.size() >= profile.depth || i.destroy)
		return;
	bool session = i.door == Door::open || i.door == Door::fenced;
	uint8_t op = LKS_OP_READ;
	if (session && i.ops.size() < profile.depth / 2) {
		static const std::vector<uint8_t> ops = {LKS_OP_WRITE, LKS_OP_READ, LKS_OP_FLUSH, LKS_OP_ZEROES, LKS_OP_DISCARD};
		op = ops[random.weighted({50, 30, 10, 2, 2})];
		if (i.commits && random.chance(.98)) {    // a write, its flush, the next write (F2)
			if (!i.ops.empty())
				return;
			i.written = !i.written;
			op = i.written ? LKS_OP_WRITE : LKS_OP_FLUSH;
		}
	}
	if (op == LKS_OP_FLUSH) {
		submit_op(i, op, {0, 0}, 0);
		return;
	}
	Span span = random.pick(i.volume.windows);
	if ((span.first + span.count) * SECTOR > i.core->p.size)
		return;    // the device here has not grown yet
	if (random.chance(.7)) {    // a part of it
		uint64_t skip = random.below(span.count);
		span = {span.first + skip, random.between(1, span.count - skip)};
	} else if (random.chance(.02)) {
		span.count = random.between(span.count, 256);
	}
	uint64_t extent = LKS_EXTENT_BYTES / SECTOR;
	span.count = std::min({span.count, i.core->p.size / SECTOR - span.first, extent - span.first % extent});
	if ((op == LKS_OP_ZEROES || op == LKS_OP_DISCARD) && random.chance(.02)) {
		span.first = span.first / extent * extent;    // all of the extent
		span.count = std::min(i.core->p.size / SECTOR - span.first, extent);
	}
	submit_op(i, op, span, op != LKS_OP_READ && random.chance(.1) ? LKS_F_FUA : 0);
}

Op *World::submit_op(Instance &i, uint8_t kind, Span span, uint8_t flags)
{
	auto op = std::make_unique<Op>();
	History &history = *i.volume.history;
	op->id = fresh();
	op->vid = i.volume.vid;
	op->session = kind == LKS_OP_READ ? 0 : i.core->session;
	op->span = span;
	op->incarnation = history.incarnation();
	op->req.op = kind;
	op->req.flags = flags;
	op->req.offset = span.first * SECTOR;
	op->req.length = static_cast<uint32_t>(span.count * SECTOR);
	lks_list_init(&op->req.link);
	if (kind == LKS_OP_READ || kind == LKS_OP_WRITE)
		op->req.buf = new_buffer(i, op->req.length);
	if (kind == LKS_OP_WRITE)
		for (uint64_t k = 0; k < span.count; k++)
			op->req.buf->sectors[k] = History::value_of(op->id, span.first + k);
	op->issued = history.stamp();
	if (kind == LKS_OP_READ)
		history.read_begins(op->issued);
	else if (kind != LKS_OP_FLUSH)
		history.write_issued(op->id, op->session, i.volume.key_of(i.host.id), span, kind != LKS_OP_WRITE);
	static const char *const names[] = {"?", "reads", "writes", "flushes", "zeroes", "discards"};
	trace("h%u %s vol %u %llu+%llu%s: op %llu session %llu", i.host.id, names[kind], op->vid, (unsigned long long)span.first,
	      (unsigned long long)span.count, flags & LKS_F_FUA ? " fua" : "", (unsigned long long)op->id,
	      (unsigned long long)op->session);
	Op *raw = op.get();
	i.ops.push_back(std::move(op));
	enter(i, [&](lks_vol *v, uint64_t t) { lks_vol_submit(v, &raw->req, t); });
	return raw;
}

void World::check_read(Instance &i, const Op &op)
{
	for (uint64_t k = 0; k < op.span.count; k++) {
		std::string wrong = i.volume.history->read_done(op.span.first + k, op.req.buf->sectors[k], op.issued);
		if (!wrong.empty())
			fail("I1 h%u volume %u sector %llu: read %llu %s", i.host.id, op.vid, (unsigned long long)(op.span.first + k),
			     (unsigned long long)op.id, wrong.c_str());
	}
}

// S2: the first flush after a new incarnation must fail if a write had completed that no flush covers; whoever made it must
// learn that it may be gone.
void World::check_flush(Instance &i, const Op &op, bool failed)
{
	for (const Instance::Unflushed &u : i.unflushed)
		if (!failed && u.incarnation < op.incarnation)
			fail("S2 h%u volume %u: flush %llu hides that a write was lost with incarnation %llu", i.host.id, op.vid,
			     (unsigned long long)op.id, (unsigned long long)u.incarnation);
	std::erase_if(i.unflushed, [&](const Instance::Unflushed &u) {
		// A flush that failed has told about all that it would have covered; whether those writes are there shows in reads.
		return u.done < op.issued || (failed && u.incarnation < i.volume.history->incarnation());
	});
}

void World::op_ended(Instance &i, Op *op, int error)
{
	auto it = std::find_if(i.ops.begin(), i.ops.end(), [&](auto &o) { return o.get() == op; });
	if (it == i.ops.end())
		fail("h%u ends a request twice", i.host.id);
	History &history = *i.volume.history;
	uint8_t kind = op->req.op;
	trace("h%u op %llu ended: %d", i.host.id, (unsigned long long)op->id, error);
	if (error > 0)
		fail("h%u ends op %llu with %d", i.host.id, (unsigned long long)op->id, error);
	if (kind == LKS_OP_FLUSH && op->session == i.session)
		check_flush(i, *op, error);
	if (error) {
		stats[Stat::failed_requests]++;
		stats[Stat::gave_up] += profile.freeze_ms && i.core && i.core->now >= op->req.submitted_ms + profile.freeze_ms;
	} else if (kind == LKS_OP_READ) {
		check_read(i, *op);
		stats[Stat::reads]++;
	} else if (kind == LKS_OP_FLUSH) {
		history.flush_done(op->session, i.volume.key_of(i.host.id), op->issued, op->incarnation);
		stats[Stat::flushes]++;
	} else {
		if (!history.write_done(op->id, op->req.flags & LKS_F_FUA))
			fail("O1 h%u volume %u: write %llu of session %llu completed though session %llu had been opened before",
			     i.host.id, op->vid, (unsigned long long)op->id, (unsigned long long)op->session,
			     (unsigned long long)history.owner(i.volume.key_of(i.host.id)));
		stats[kind == LKS_OP_WRITE ? Stat::writes : kind == LKS_OP_ZEROES ? Stat::zeroes : Stat::discards]++;
		stats[Stat::fua] += op->req.flags & LKS_F_FUA ? 1 : 0;
		if (op->session == i.session && !(op->req.flags & LKS_F_FUA))
			i.unflushed.push_back({history.stamp(), history.incarnation()});
	}
	if (kind == LKS_OP_READ)
		history.read_ends(op->issued);
	std::unique_ptr<Op> gone = std::move(*it);
	i.ops.erase(it);
	if (gone->req.buf)
		put_buffer(gone->req.buf);
	if (i.ops.empty() && (i.door == Door::closing || i.door == Door::fenced))
		at_instance(i, 0, [this](Instance &x) { maybe_closed(x); });
}

}    // namespace lockstep::sim
