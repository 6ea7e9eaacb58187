// SPDX-License-Identifier: GPL-2.0-or-later
//
// What goes wrong, and how it heals.
#include "world.h"

#include "core/internal.h"

#include <algorithm>

namespace lockstep::sim {

void World::faults_step()
{
	if (random.chance(profile.faults))
		at(random.below(STEP), [this] {
			if (hostile)
				fault();
		});
	for (auto &v : volumes) {
		const lks_record &r = v->record();
		Instance *p = r.primary ? find(r.primary, v->vid) : nullptr;
		if ((!p || !p->core || p->core->role == LKS_IDLE) && random.chance(.03))
			failover(*v);
		bool opener = false;
		for (auto &h : hosts)
			if (Instance *i = find(h->id, v->vid))
				opener |= i->door == Door::open || i->door == Door::opening;
		if (random.chance(opener ? v->shared ? .01 : 0 : .05))
			take_over(*v, random_host().id);
	}
}

void World::fault()
{
	enum { CRASH, BLACKOUT, CUT, ONE_WAY, ISOLATE, FAILOVER, TAKE_OVER, BREAK, PAUSE, DISK, DAEMON, LOG, REATTACH, HANDOVER, HOLD, VERIFY, FULL, GROW, HALFWAY };
	Host &a = random_host(), &b = *hosts[(a.id + random.below(hosts.size() - 1)) % hosts.size()];
	Volume &v = random_volume();
	Time how_long = random.between(5, 150) * STEP;
	switch (random.weighted({40, 4, 60, 25, 15, 15, 15, 30, 20, 15, 10, 8, 12, 25, 15, 8, 6, 10, 25})) {
	case CRASH:
		crash(a, random.between(5, random.chance(.3) ? 20 : 120) * STEP);
		break;
	case BLACKOUT:
		blackout();
		break;
	case CUT: {
		bool hard = random.chance(.6);
		cut(a.id, b.id, how_long, hard);
		cut(b.id, a.id, how_long, hard);
		break;
	}
	case ONE_WAY:
		cut(a.id, b.id, how_long, random.chance(.2));
		break;
	case ISOLATE: {
		Host &h = v.record().primary && random.chance(.8) ? host(v.record().primary) : a;
		isolate(h, v);
		at(random.between(1, 12) * STEP, [this, &v] { failover(v); });
		break;
	}
	case FAILOVER:
		failover(v);
		break;
	case TAKE_OVER:
		take_over(v, v.record().primary && random.chance(.4) ? v.record().primary : a.id);
		break;
	case BREAK:
		break_link(a.id, b.id, random.chance(.5) ? a.id : b.id);
		break;
	case PAUSE:
		pause(v.record().primary && random.chance(.5) ? host(v.record().primary) : a, random.between(2, 160) * STEP);
		break;
	case DISK:
		stats[Stat::disk_stalls]++;
		trace("h%u disks stall for %llu ms", a.id, (unsigned long long)(how_long / MS));
		a.stalled_until = now + how_long;
		break;
	case FULL:
		stats[Stat::full_pools]++;
		trace("h%u has no space left for %llu ms", a.id, (unsigned long long)(how_long / MS));
		a.full_until = now + how_long;
		for (auto &disk : a.disks)
			if (disk && random.chance(.5))
				disk->share();
		break;
	case DAEMON:
		stats[Stat::daemon_deaths]++;
		trace("h%u daemon dies for %llu ms", a.id, (unsigned long long)(how_long / MS));
		a.daemon = false;
		at_host(a, how_long, [&a] { a.daemon = true; });
		break;
	case LOG:
		stats[Stat::log_outages]++;
		trace("the log stops for %llu ms", (unsigned long long)(how_long / MS));
		log_down_until = now + how_long;
		break;
	case REATTACH:
		if (Instance *i = find(a.id, v.vid); i && i->core) {
			if (random.chance(.3))
				restart_under_lease(*i);
			else
				reattach(*i, random.chance(.5));
		}
		break;
	case HANDOVER:
		hand_over(v, random.pick(v.replicas));
		break;
	case VERIFY:
		verify(v, random.chance(.9), random.chance(.5));
		break;
	case GROW:
		if (v.grow_to && !v.growing) {
			trace("volume %u is to grow to %llu bytes", v.vid, (unsigned long long)v.grow_to);
			v.growing = true;
		}
		break;
	case HOLD:
		if (random.chance(.7))
			begin_hold(v, random.between(1, 30) * 100 * MS);
		else
			hold_of_the_replaced(v);
		break;
	case HALFWAY:
		rewrite_halfway(v);
		break;
	}
}

// M1, as an administrator or a volume's new opener wants it.
void World::hand_over(Volume &v, uint8_t to)
{
	Instance *p = v.record().primary ? find(v.record().primary, v.vid) : nullptr;
	if (!p || !p->core)
		return;
	int err = enter(*p, [&](lks_vol *c, uint64_t t) { return lks_vol_hand_over(c, to, t); });
	trace("h%u is to hand volume %u over to h%u: %d", p->host.id, v.vid, to, err);
	if (err && err != -ESTALE && err != -EINVAL && err != -EBUSY)
		fail("h%u answers a handover with %d", p->host.id, err);
}

void World::verify(Volume &v, bool start, bool repair)
{
	Instance *p = v.record().primary ? find(v.record().primary, v.vid) : nullptr;
	if (!p || !p->core)
		return;
	int err = enter(*p, [&](lks_vol *c, uint64_t t) {
		const lks_verify how = {.start = start, .repair = repair, .done = 0, .differ = 0};
		return lks_vol_verify(c, &how, t);
	});
	trace("h%u is to %s verifying volume %u: %d", p->host.id, start ? "begin" : "stop", v.vid, err);
	if (err && err != -ESTALE)
		fail("h%u answers a verify with %d", p->host.id, err);
	if (!err)
		stats[Stat::verifies] += start;
}

// ---- holds: members' contents are copied at their own moments, and must be the same if the hold counts (Q1)

void World::begin_hold(Volume &v, Time timeout)
{
	Instance *p = v.record().primary ? find(v.record().primary, v.vid) : nullptr;
	if (!p || !p->core)
		return;
	uint64_t number = fresh();
	int err = enter(*p, [&](lks_vol *c, uint64_t t) { return lks_vol_quiesce(c, number, static_cast<uint32_t>(timeout / MS), t); });
	trace("h%u is to hold volume %u still as %llu for %llu ms: %d", p->host.id, v.vid, (unsigned long long)number,
	      (unsigned long long)(timeout / MS), err);
	if (err && err != -ESTALE && err != -EBUSY)
		fail("h%u answers a hold with %d", p->host.id, err);
	if (err)
		return;
	v.hold = {number, p->host.id, v.windows, {}};
	stats[Stat::holds]++;
	// The daemon may be late, or never come back.
	if (hostile && random.chance(.9))
		at(random.below(timeout * 14 / 10), [this, &v, number] { end_hold(v, number); });
}

void World::held(Instance &i, uint64_t number)
{
	trace("h%u holds volume %u still", i.host.id, i.volume.vid);
	for (uint8_t h : i.volume.replicas)
		at(random.below(random.chance(.5) ? 100 * MS : 1500 * MS), [this, &v = i.volume, h, number] { copy_held(v, h, number); });
}

void World::copy_held(Volume &v, uint8_t from, uint64_t number)
{
	Instance *i = find(from, v.vid);
	uint8_t primary = v.hold.host;
	// The daemon there takes part only while its replica is in the session of the primary that holds still, or is it.
	if (v.hold.number != number || !i || !i->core || !i->attached || i->detaching || !in_sync(replica_in(v.record(), from)->state))
		return;
	if (from == primary ? i->core->hold != number : i->core->session_host != primary)
		return;
	std::vector<uint64_t> copy;
	uint64_t extent = LKS_EXTENT_BYTES / SECTOR;
	for (const Span &w : v.hold.windows)
		for (uint64_t s = w.first; s < w.first + w.count; s++)
			copy.push_back(extent_bits(i->host, v, s / extent) & LKS_EXTENT_WRITTEN ? i->host.disks[v.vid - 1]->read(s) : 0);
	v.hold.copies[from] = std::move(copy);
}

// true: the hold counted, and the copies were compared
bool World::end_hold(Volume &v, uint64_t number)
{
	Instance *p = v.hold.number == number ? find(v.hold.host, v.vid) : nullptr;
	if (!p || !p->core)
		return false;
	int err = enter(*p, [&](lks_vol *c, uint64_t t) { return lks_vol_resume(c, number, t); });
	auto copies = std::move(v.hold.copies);
	auto windows = std::move(v.hold.windows);
	v.hold = {};
	trace("h%u may go on with volume %u: hold %llu ends with %d, %zu copies", p->host.id, v.vid, (unsigned long long)number, err,
	      copies.size());
	if (err && err != -ESTALE)
		fail("h%u answers the end of a hold with %d", p->host.id, err);
	if (err || copies.empty())
		return false;
	for (auto &[h, copy] : copies) {
		stats[Stat::snapshots]++;
		size_t k = 0;
		for (const Span &w : windows)
			for (uint64_t s = w.first; s < w.first + w.count; s++, k++) {
				if (copy[k] != copies.begin()->second[k])
					fail("Q1 volume %u: the copies of h%u and h%u made in one hold differ in sector %llu", v.vid, h,
					     copies.begin()->first, (unsigned long long)s);
				if (!v.history->may_hold(s, copy[k]))
					fail("Q1 volume %u: the copy of h%u holds %llx in sector %llu, allowed: %s", v.vid, h,
					     (unsigned long long)copy[k], (unsigned long long)s, v.history->allowed(s).c_str());
			}
	}
	return true;
}

void World::blackout()
{
	stats[Stat::blackouts]++;
	for (auto &h : hosts)
		crash(*h, random.between(5, 120) * STEP);
}

// Cuts one host off, perhaps a primary with its opener, while the others carry on quickly.
void World::isolate(Host &h, Volume &v)
{
	Time how_long = random.between(5, 150) * STEP;
	bool hard = random.chance(.5);
	for (auto &other : hosts)
		if (other->id != h.id && random.chance(.9)) {
			cut(h.id, other->id, how_long, hard);
			cut(other->id, h.id, how_long, hard);
		}
	if (random.chance(.3)) {
		Host &other = *hosts[(h.id + random.below(hosts.size() - 1)) % hosts.size()];
		crash(other, random.between(5, 120) * STEP);
	}
	at(random.between(1, 12) * STEP, [this, &v] {
		if (hostile)
			take_over(v, random_host().id);
	});
}

// The whole host stands still; its clock does not.
void World::pause(Host &h, Time how_long)
{
	if (!h.up)
		return;
	stats[Stat::pauses]++;
	trace("h%u stands still for %llu ms", h.id, (unsigned long long)(how_long / MS));
	h.paused_until = std::max(h.paused_until, now + how_long);
}

// The replica is detached in good order, and perhaps the whole volume removed from the host; the daemon brings it back.
void World::reattach(Instance &i, bool anew)
{
	if (i.detaching || (anew && (i.door != Door::closed || !i.ops.empty())) || (!anew && !i.attached))
		return;
	stats[Stat::reattaches]++;
	trace("h%u detaches volume %u%s", i.host.id, i.volume.vid, anew ? " and removes it" : "");
	i.destroy = anew;
	if (!i.attached) {
		at_instance(i, 0, [this](Instance &x) { destroy(x); });
		i.detaching = true;
		return;
	}
	i.detaching = true;
	enter(i, [](lks_vol *v, uint64_t t) { lks_vol_detach(v, t); });
}

// A new primary and perhaps the next one have bad luck while blocks are being rewritten (R1, R2).
void World::spoil_activation(uint8_t id, uint32_t vid)
{
	Host &h = host(id);
	if (!hostile || !h.up)
		return;
	if (random.chance(.5))
		crash(h, random.between(5, 60) * STEP);
	else
		isolate(h, volume(vid));
	at(random.between(1, 12) * STEP, [this, vid] { failover(volume(vid)); });
}

void World::stall_lane(uint8_t from, uint8_t to, unsigned lane, Time how_long)
{
	Link *l = link_of(from, to);
	if (!l)
		return;
	trace("h%u>h%u lane %u stalls for %llu ms", from, to, lane, (unsigned long long)(how_long / MS));
	Time &due = l->lanes[l->hosts[1] == from][lane].last_due;
	due = std::max(due, now + how_long);
}

// Q1: the primary that holds still is cut off, and does not know that another has begun to serve when its hold ends; so the
// hold must outlast a promise.
void World::hold_of_the_replaced(Volume &v)
{
	uint8_t primary = v.record().primary;
	if (!primary)
		return;
	begin_hold(v, random.between(4, 12) * SECOND);
	at(random.between(1, 10) * STEP, [this, &v, primary] {
		if (!hostile || v.record().primary != primary)
			return;
		isolate(host(primary), v);
		at(random.between(1, 12) * STEP, [this, &v] { failover(v); });
	});
}

// What R2 is for takes three misfortunes in a row, which chance alone hardly ever deals: the last writes of a primary have
// reached one member and not another; the next primary has rewritten some of them everywhere, not all, when it dies, after its
// tick has told what is stable; both members go on under a third, and nobody who made the writes is left to repeat them.
void World::rewrite_halfway(Volume &v)
{
	const lks_record &r = v.record();
	Instance *p = r.primary ? find(r.primary, v.vid) : nullptr;
	std::vector<uint8_t> others;
	for (uint8_t h : v.replicas)
		if (h != r.primary && replica_in(r, h)->state == LKS_REPLICA_INSYNC && host(h).up)
			others.push_back(h);
	Instance *writer = nullptr;
	for (auto &h : hosts)
		if (Instance *i = find(h->id, v.vid); i && i->core && i->door == Door::open && h->id != r.primary)
			writer = i;
	if (!p || !p->core || p->core->role != LKS_ACTIVE || !writer || others.size() < 2)
		return;
	uint8_t client = writer->host.id, heir = random.pick(others);
	if (std::count(others.begin(), others.end(), client))
		heir = client;
	std::erase(others, heir);
	stall_lane(r.primary, random.pick(others), static_cast<unsigned>(random.below(profile.lanes)), random.between(1, 4) * SECOND);
	for (const Span &w : v.windows)
		for (unsigned n = 0; n < 2; n++) {
			uint64_t skip = random.below(w.count);
			Span span = {w.first + skip, random.between(1, w.count - skip)};
			uint64_t extent = LKS_EXTENT_BYTES / SECTOR;
			span.count = std::min(span.count, extent - span.first % extent);
			if ((span.first + span.count) * SECTOR <= writer->core->p.size)
				submit_op(*writer, LKS_OP_WRITE, span, 0);
		}
	at(random.between(1, 8) * STEP, [this, &v, heir, client, term = r.term] {
		if (!hostile || v.record().term != term || !quorum(host(heir)) ||
		    replica_in(v.record(), heir)->state != LKS_REPLICA_INSYNC)
			return;
		if (client != heir)
			crash(host(client), random.between(5, 60) * STEP);
		std::set<uint8_t> keep;
		for (uint8_t h : v.replicas)
			keep.insert(h);
		start_term(v, heir, keep);
		at(STEP, [this, &v, heir, term] { stall_rewriting(v, heir, term + 1, now + 5 * SECOND); });
	});
}

// Waits until the primary of this term is rewriting; some of it then takes long to arrive somewhere, and the primary dies.
void World::stall_rewriting(Volume &v, uint8_t primary, uint64_t term, Time limit)
{
	Instance *p = find(primary, v.vid);
	if (!hostile || now > limit || v.record().term != term)
		return;
	if (!p || !p->core || p->core->role != LKS_ACTIVATING || p->core->cfg.term != term || !p->core->recon_begun) {
		at(1 * MS, [this, &v, primary, term, limit] { stall_rewriting(v, primary, term, limit); });
		return;
	}
	for (uint8_t h : v.replicas)
		if (h != primary)
			stall_lane(primary, h, profile.lanes - 1, 2 * SECOND);
	at(random.between(100, 500) * MS, [this, &v, primary, term] {
		if (!hostile || v.record().term != term)
			return;
		crash(host(primary), random.between(100, 200) * STEP);
		at(random.between(1, 6) * STEP, [this, &v] { failover(v); });
	});
}

// A member restarts in good order while its promise to the primary is fresh, and is made the primary at once; the old one is
// cut off and does not know (L2).
void World::restart_under_lease(Instance &i)
{
	Volume &v = i.volume;
	uint8_t me = i.host.id, primary = v.record().primary;
	if (!primary || primary == me || !i.admitted)
		return;
	reattach(i, false);
	i.hurry = true;
	at(random.between(1, 6) * STEP, [this, me, &v] {
		uint8_t old = v.record().primary;
		const lks_record_replica *r = replica_in(v.record(), me);
		if (!hostile || !old || old == me || !r)
			return;
		isolate(host(old), v);
		at(random.between(2, 12) * STEP, [this, me, &v] {
			const lks_record_replica *now = replica_in(v.record(), me);
			if (now->state == LKS_REPLICA_INSYNC && quorum(host(me)))
				start_term(v, me, {me});
		});
	});
}

void World::heal()
{
	hostile = busy = false;
	heal_network();
	log_down_until = 0;
	for (auto &h : hosts) {
		h->paused_until = std::min(h->paused_until, now);
		h->stalled_until = std::min(h->stalled_until, now);
		h->full_until = std::min(h->full_until, now);
		h->daemon = h->up;
	}
}

}    // namespace lockstep::sim
