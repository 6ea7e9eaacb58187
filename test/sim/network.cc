// SPDX-License-Identifier: GPL-2.0-or-later
//
// Links between hosts as the kernel module sees them: a link is a few lanes, each a FIFO, unordered among each other. A
// link breaks as a whole. What is under way then arrives for a short while yet, or not at all; each end notices in its own
// time, receives nothing more from then on and tells the core. A new link is made only after both ends have noticed.
//
// A cut stops one direction of a pair. A hard one breaks the link as soon as something is sent; otherwise frames wait for
// its end, as TCP does, or until somebody loses patience (rule L4).
#include "world.h"

#include <algorithm>
#include <cstring>

namespace lockstep::sim {

namespace {

constexpr Time TAIL = 300 * MS;            // how long a broken link may still deliver
constexpr Time NOTICE = 1500 * MS;         // within which an end notices

}    // namespace

const char *frame_name(uint8_t type)
{
	static const char *const names[] = {"?", "ACTIVATE", "ACTIVATED", "REFUSE", "CONFIG", "SYNCSTART", "ATTACH", "MAP", "REPL",
		"ACK", "STABLE", "FLUSH", "FLUSHED", "SYNC", "SYNCED", "PREPARE", "PREPARED", "PING", "PONG", "FAILED", "REQ",
		"REPLY", "REFUSED", "COMPARE", "COMPARED", "READY"};
	static_assert(sizeof(names) / sizeof(*names) == LKS_FRAME_TYPES);
	return names[type < LKS_FRAME_TYPES ? type : 0];
}

bool World::reach(const Host &a, const Host &b) const
{
	auto runs = [&](const Host &h) { return h.up && h.paused_until <= now; };
	auto open = [&](const Host &x, const Host &y) { return cuts[(x.id - 1u) * hosts.size() + y.id - 1].until <= now; };
	return runs(a) && runs(b) && (a.id == b.id || (open(a, b) && open(b, a)));
}

// ---- frames

void World::send(Instance &from, uint8_t to, uint8_t lane, const lks_frame &head, lks_buf *buf, const void *bytes)
{
	uint8_t me = from.host.id;
	if (to < 1 || to > hosts.size() || to == me)
		fail("h%u sends a %s to h%u", me, frame_name(head.type), to);
	if (head.volume != from.volume.vid)
		fail("h%u sends a frame of volume %u for volume %u", me, head.volume, from.volume.vid);
	Link *l = link_of(me, to);
	int direction = l && l->hosts[1] == me;
	if (!l || !l->ends[direction].up || l->ends[direction].lost || l->ends[direction].mute)
		return;
	if (spoils(profile.alloc_failures)) {
		stats[Stat::alloc_failures]++;
		l->ends[direction].mute = true;    // nothing may follow what was left out
		at_instance(from, 0, [this, to](Instance &x) { break_link(x.host.id, to, x.host.id); });
		return;
	}
	Frame frame{head, {}, {}, 0};
	lks_frame_seal(&frame.head);
	if (buf) {
		if (!lks_frame_has_data(&frame.head) || buf->bytes < head.length)
			fail("h%u sends a %s of %u bytes with a wrong buffer", me, frame_name(head.type), head.length);
		frame.data.assign(buf->sectors.begin(), buf->sectors.begin() + head.length / SECTOR);
		// The network card reads the pages later than this; by then they must not have changed.
		buf->refs++;
		at_instance(from, random.below(profile.net_delay), [this, buf, sent = frame.data](Instance &x) {
			if (!std::equal(sent.begin(), sent.end(), buf->sectors.begin()))
				fail("h%u changed data that it was sending", x.host.id);
			put_buffer(buf);
		});
	} else if (head.length) {
		if (!bytes || lks_frame_has_data(&frame.head))
			fail("h%u sends a %s of %u bytes without them", me, frame_name(head.type), head.length);
		auto *b = static_cast<const uint8_t *>(bytes);
		frame.bytes.assign(b, b + head.length);
	}
	unsigned n = static_cast<unsigned>(l->lanes[direction].size());
	if (lane == LKS_LANE_ALL) {
		for (unsigned i = 0; i < n; i++)
			push(*l, direction, i, frame);
		return;
	}
	if (lane != LKS_LANE_ANY && lane >= n)
		fail("h%u sends a %s down lane %u", me, frame_name(head.type), lane);
	push(*l, direction, lane == LKS_LANE_ANY ? static_cast<unsigned>(random.below(n)) : lane, std::move(frame));
}

void World::push(Link &l, int direction, unsigned number, Frame frame)
{
	Lane &lane = l.lanes[direction][number];
	Time delay = random.between(50, profile.net_delay);
	if (random.chance(profile.net_stall))
		delay = random.between(300 * MS, 4 * SECOND);
	frame.due = lane.last_due = std::max(lane.last_due, now + delay);
	lane.queue.push_back(std::move(frame));
	if (lane.scheduled)
		return;
	lane.scheduled = true;
	at(lane.queue.front().due - now, [this, a = l.hosts[0], b = l.hosts[1], n = l.number, direction, number] { pump(a, b, n, direction, number); });
}

void World::pump(uint8_t a, uint8_t b, uint64_t number, int direction, unsigned lane_number)
{
	Link *l = link_of(a, b);
	if (!l || l->number != number)
		return;
	Time retry = 0;
	l->lanes[direction][lane_number].scheduled = false;
	while ((l = link_of(a, b)) && l->number == number) {
		Lane &lane = l->lanes[direction][lane_number];
		if (lane.queue.empty() || lane.scheduled)
			return;
		if (lane.queue.front().due > now)
			retry = lane.queue.front().due - now;
		else if (!deliver(*l, direction, lane_number))
			retry = random.between(1 * MS, 20 * MS);
		else
			continue;
		lane.scheduled = true;
		at(retry, [this, a, b, number, direction, lane_number] { pump(a, b, number, direction, lane_number); });
		return;
	}
}

bool World::deliver(Link &l, int direction, unsigned number)
{
	Lane &lane = l.lanes[direction][number];
	uint8_t from = l.hosts[direction], to = l.hosts[1 - direction];
	Host &h = host(to);
	Link::End &end = l.ends[1 - direction];
	if (!h.up || end.lost || now > lane.cutoff) {
		lane.queue.clear();
		return true;
	}
	const Cut &cut = cuts[(from - 1u) * hosts.size() + to - 1];
	if (cut.until > now) {
		if (!cut.hard && !l.broken)
			return false;
		lane.queue.clear();
		break_link(from, to, 0);
		lane.cutoff = 0;    // nothing may follow what was lost
		return true;
	}
	if (!end.up || h.paused_until > now)
		return false;
	Frame frame = std::move(lane.queue.front());
	lane.queue.pop_front();
	stats[Stat::frames]++;
	const lks_frame &f = frame.head;
	stats[Stat::copies] += f.type == LKS_SYNC;
	stats[Stat::compares] += f.type == LKS_COMPARE;
	stats[Stat::spared] += f.type == LKS_COMPARED && f.stable == LKS_CMP_EQUAL;
	trace("h%u>h%u lane %u %s vol %u v%llu/t%llu seq %llu stable %llu at %llu length %u tag %u flags %x", from, to, number,
	      frame_name(f.type), f.volume, (unsigned long long)f.version, (unsigned long long)f.term, (unsigned long long)f.seq,
	      (unsigned long long)f.stable, (unsigned long long)(f.offset / SECTOR), f.length, f.tag, f.flags);
	if (spoils(profile.net_damage)) {
		size_t bit = random.below(sizeof(f) * 8);
		reinterpret_cast<uint8_t *>(&frame.head)[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
		stats[Stat::damaged_frames]++;
		if (!lks_frame_check(&f))
			fail("lks_frame_check() does not see that bit %zu of a %s has flipped", bit, frame_name(f.type));
		trace("link h%u>h%u: a damaged frame", from, to);
		break_link(from, to, to);    // the receiver closes the lane
		return true;
	}
	if (lks_frame_check(&f))
		fail("h%u sent a %s that lks_frame_check() refuses", from, frame_name(f.type));
	Instance *i = find(to, f.volume);
	if (!i || !i->core)
		return true;
	lks_buf *buf = nullptr;
	if (!frame.data.empty()) {
		if (spoils(profile.alloc_failures)) {
			stats[Stat::alloc_failures]++;
			break_link(from, to, to);
			return true;
		}
		buf = new_buffer(*i, f.length);
		buf->sectors = frame.data;
	}
	int err = enter(*i, [&](lks_vol *v, uint64_t t) {
		return lks_vol_receive(v, from, &f, buf, frame.bytes.empty() ? nullptr : frame.bytes.data(), t);
	});
	if (buf)
		put_buffer(buf);
	if (err == -ENOMEM && profile.alloc_failures > 0)
		break_link(from, to, to);
	else if (err)
		fail("h%u refuses a %s of h%u: error %d", to, frame_name(f.type), from, err);
	return true;
}

// ---- links

void World::break_link(uint8_t a, uint8_t b, uint8_t noticed_by)
{
	Link *l = link_of(a, b);
	if (!l)
		return;
	if (!l->broken) {
		l->broken = true;
		stats[Stat::link_losses]++;
		trace("link h%u-h%u breaks", l->hosts[0], l->hosts[1]);
		for (auto &direction : l->lanes)
			for (Lane &lane : direction)
				lane.cutoff = now + random.below(TAIL);
		for (int end = 0; end < 2; end++)
			at(random.between(1 * MS, NOTICE), [this, a, b, n = l->number, end] {
				Link *x = link_of(a, b);
				if (x && x->number == n)
					notice(*x, end);
			});
	}
	for (int end = 0; end < 2; end++)
		if (l->hosts[end] == noticed_by) {
			notice(*l, end);
			return;
		}
}

void World::notice(Link &l, int end)
{
	if (l.ends[end].lost)
		return;
	Host &h = host(l.hosts[end]);
	if (h.up && h.paused_until > now) {
		at(h.paused_until - now, [this, a = l.hosts[0], b = l.hosts[1], n = l.number, end] {
			Link *x = link_of(a, b);
			if (x && x->number == n)
				notice(*x, end);
		});
		return;
	}
	l.ends[end].lost = true;
	uint8_t a = l.hosts[0], b = l.hosts[1], peer = l.hosts[1 - end];
	bool was_up = l.ends[end].up;
	if (l.ends[1 - end].lost) {
		links[index(a, b)].reset();
		redial(a, b);
	}
	if (!h.up || !was_up)
		return;
	trace("h%u loses its link to h%u", h.id, peer);
	for (auto &i : h.instances)
		if (i && i->core)
			enter(*i, [&](lks_vol *v, uint64_t t) { lks_vol_link_lost(v, peer, t); });
}

void World::redial(uint8_t a, uint8_t b)
{
	if (link_of(a, b) || dialing[index(a, b)])
		return;
	dialing[index(a, b)] = true;
	at(random.between(5 * MS, 500 * MS), [this, a, b] {
		dialing[index(a, b)] = false;
		if (link_of(a, b) || !host(a).up || !host(b).up)
			return;
		if (!reach(host(a), host(b)) || !host(a).daemon || !host(b).daemon) {
			redial(a, b);
			return;
		}
		auto l = std::make_unique<Link>();
		l->number = ++link_numbers;
		l->hosts = {std::min(a, b), std::max(a, b)};
		for (auto &direction : l->lanes)
			direction.resize(profile.lanes);
		links[index(a, b)] = std::move(l);
		for (int end = 0; end < 2; end++)
			at(random.below(100 * MS), [this, a, b, n = link_numbers, end] { link_ends_up(a, b, n, end); });
	});
}

void World::link_ends_up(uint8_t a, uint8_t b, uint64_t number, int end)
{
	Link *l = link_of(a, b);
	if (!l || l->number != number || l->ends[end].lost)
		return;
	Host &h = host(l->hosts[end]);
	if (!h.up)
		return;
	if (h.paused_until > now) {
		at(h.paused_until - now, [this, a, b, number, end] { link_ends_up(a, b, number, end); });
		return;
	}
	uint8_t peer = l->hosts[1 - end];
	l->ends[end].up = true;
	trace("h%u has link %llu to h%u", h.id, (unsigned long long)number, peer);
	for (auto &i : h.instances)
		if (i && i->core)
			enter(*i, [&](lks_vol *v, uint64_t t) { lks_vol_link_up(v, peer, t); });
}

void World::cut(uint8_t from, uint8_t to, Time how_long, bool hard)
{
	stats[Stat::cuts]++;
	trace("%s cut h%u>h%u for %llu ms", hard ? "hard" : "soft", from, to, (unsigned long long)(how_long / MS));
	Cut &c = cuts[(from - 1u) * hosts.size() + to - 1];
	c.until = std::max(c.until, now + how_long);
	c.hard = hard;
}

void World::heal_network()
{
	for (Cut &c : cuts)
		c.until = 0;
}

}    // namespace lockstep::sim
