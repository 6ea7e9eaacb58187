// SPDX-License-Identifier: GPL-2.0-or-later
//
// The ideal consensus log: linearizable, slow, and only for who reaches a majority of the hosts. The changes of a volume's
// record are those of ctl/lockstepd/cluster/record.cc, but the controller here may fail over at any time: safety may not
// depend on its judgement of who is alive.
#include "world.h"

#include <algorithm>
#include <cstring>

namespace lockstep::sim {

bool in_sync(uint8_t state)
{
	return state == LKS_REPLICA_INSYNC || state == LKS_REPLICA_SUSPECT;
}

const lks_record_replica *replica_in(const lks_record &r, uint8_t host)
{
	for (int i = 0; i < r.nreplicas; i++)
		if (r.replicas[i].host == host)
			return &r.replicas[i];
	return nullptr;
}

static lks_record_replica *replica_in(lks_record &r, uint8_t host)
{
	return const_cast<lks_record_replica *>(replica_in(static_cast<const lks_record &>(r), host));
}

const lks_record_opener *opener_in(const lks_record &r, uint8_t host)
{
	for (int i = 0; i < r.nopeners; i++)
		if (r.openers[i].host == host)
			return &r.openers[i];
	return nullptr;
}

std::string describe(const lks_record &r)
{
	std::string text = "volume " + std::to_string(r.vid) + " v" + std::to_string(r.version) + "/t" + std::to_string(r.term) +
			   " primary " + (r.primary ? "h" + std::to_string(r.primary) : "none");
	static const char *const names[] = {"none", "insync", "suspect", "stale", "failed"};
	for (int i = 0; i < r.nreplicas; i++)
		text += " h" + std::to_string(r.replicas[i].host) + "=" + names[r.replicas[i].state] + "@" + std::to_string(r.replicas[i].since);
	for (int i = 0; i < r.nopeners; i++)
		text += " open h" + std::to_string(r.openers[i].host) + "#" + std::to_string(r.openers[i].session);
	return text + " inc " + std::to_string(r.incarnation);
}

bool World::quorum(const Host &h) const
{
	if (!h.up || log_down_until > now)
		return false;
	size_t n = 0;
	for (auto &other : hosts)
		n += reach(h, *other);
	return n * 2 > hosts.size();
}

lks_record World::next_version(const Volume &v) const
{
	lks_record r = v.record();
	r.version++;
	return r;
}

bool World::commit(Volume &v, const lks_record &next)
{
	const lks_record old = v.record();
	if (next.version != old.version + 1)
		return false;
	if (lks_record_check(&next))
		fail("a record that breaks its invariants was to be committed: %s", describe(next).c_str());
	unsigned joined = 0, removed = 0, left = 0;
	for (int i = 0; i < next.nreplicas; i++) {
		bool is = in_sync(next.replicas[i].state), was = in_sync(old.replicas[i].state);
		joined += is && !was;
		removed += was && !is;
		left += is;
	}
	if (!left)
		return false;    // this would give up the last replica in sync
	stats[Stat::joins] += joined;
	stats[Stat::removals] += removed;
	stats[Stat::versions]++;
	v.log.push_back(next);
	trace("LOG %s", describe(next).c_str());
	for (auto &h : hosts)
		at_host(*h, random.between(10 * MS, 750 * MS), [this, id = h->id, vid = v.vid] { tell(host(id), volume(vid)); });
	if (!hostile)
		return true;
	if (random.chance(.1 * profile.faults / .016))    // faults like company
		at(random.below(600 * MS), [this] {
			if (hostile)
				fault();
		});
	if (old.primary && old.primary != next.primary && random.chance(.15))
		isolate(host(old.primary), v);
	return true;
}

// record.propose: W3, C6, J3
void World::propose(uint8_t from, uint32_t vid, const lks_record &wanted)
{
	Volume &v = volume(vid);
	const lks_record &r = v.record();
	if (!host(from).up || !host(from).daemon || !quorum(host(from)) || r.version != wanted.version - 1)
		return;
	if (r.primary != from)
		return;
	bool handover = wanted.primary != from;
	if (handover && (wanted.term != r.term + 1 || !(wanted.flags & LKS_RECORD_DRAINED) || !wanted.primary ||
			 !replica_in(r, wanted.primary) || replica_in(r, wanted.primary)->state != LKS_REPLICA_INSYNC))
		fail("h%u proposes a handover that is none: %s", from, describe(wanted).c_str());
	if (!handover && wanted.term != r.term)
		return;
	if (lks_record_check(&wanted))
		fail("h%u proposes an invalid record: %s", from, describe(wanted).c_str());
	lks_record next = next_version(v);
	for (int i = 0; i < next.nreplicas; i++) {
		lks_record_replica &mine = next.replicas[i];
		const lks_record_replica *theirs = replica_in(wanted, mine.host);
		bool member = theirs && in_sync(theirs->state);
		if (mine.host == from && !member)
			fail("h%u proposes a record without itself: %s", from, describe(wanted).c_str());
		if (mine.state == LKS_REPLICA_FAILED && member)
			return;
		if (in_sync(mine.state) && !member) {
			mine.state = LKS_REPLICA_STALE;
			mine.since = next.version;
		} else if (mine.state == LKS_REPLICA_STALE && member) {
			mine.state = LKS_REPLICA_INSYNC;
			mine.since = next.version;
		}
	}
	if (handover) {    // M1
		next.term++;
		next.primary = wanted.primary;
		next.flags |= LKS_RECORD_DRAINED;
		stats[Stat::handovers]++;
	}
	commit(v, next);
}

void World::start_term(Volume &v, uint8_t primary, const std::set<uint8_t> &keep)
{
	lks_record next = next_version(v);
	next.term++;
	next.primary = primary;
	next.flags &= static_cast<uint8_t>(~LKS_RECORD_DRAINED);
	for (int i = 0; i < next.nreplicas; i++) {
		lks_record_replica &r = next.replicas[i];
		if (!in_sync(r.state) || keep.count(r.host))
			continue;
		r.state = LKS_REPLICA_STALE;
		r.since = next.version;
	}
	stats[Stat::failovers]++;
	commit(v, next);
}

void World::failover(Volume &v)
{
	const lks_record &r = v.record();
	if (std::none_of(hosts.begin(), hosts.end(), [&](auto &h) { return quorum(*h); }))
		return;
	std::vector<uint8_t> clean, alive, last;
	bool clean_up = false;
	for (int i = 0; i < r.nreplicas; i++) {
		uint8_t h = r.replicas[i].host;
		if (r.replicas[i].state == LKS_REPLICA_INSYNC) {
			clean.push_back(h);
			clean_up |= host(h).up;
			if (quorum(host(h)))
				alive.push_back(h);
		} else if (r.replicas[i].state == LKS_REPLICA_SUSPECT && quorum(host(h))) {
			last.push_back(h);
		}
	}
	if (!alive.empty() || (!clean.empty() && random.chance(.1))) {
		const std::vector<uint8_t> &from = alive.empty() ? clean : alive;
		uint8_t winner = random.pick(from);
		std::set<uint8_t> keep = {winner};
		for (uint8_t h : clean)
			if (random.chance(std::count(from.begin(), from.end(), h) ? .9 : .3))
				keep.insert(h);
		start_term(v, winner, keep);
	} else if (!last.empty() && (clean.empty() || (!clean_up && random.chance(.2)))) {
		last_resort(v, random.pick(last));
	}
}

// S2
void World::last_resort(Volume &v, uint8_t chosen)
{
	lks_record next = next_version(v);
	next.term++;
	next.primary = chosen;
	next.incarnation++;
	next.flags &= static_cast<uint8_t>(~LKS_RECORD_DRAINED);
	for (int i = 0; i < next.nreplicas; i++) {
		lks_record_replica &r = next.replicas[i];
		if (r.host == chosen) {
			r.state = LKS_REPLICA_INSYNC;
		} else if (in_sync(r.state)) {
			r.state = LKS_REPLICA_STALE;
			r.since = next.version;
		}
	}
	stats[Stat::last_resorts]++;
	commit(v, next);
}

// S1, S3: a replica that restarted with hot extents is recorded so, and deposed
void World::record_suspect(Volume &v, uint8_t host_id)
{
	lks_record next = next_version(v);
	lks_record_replica *r = replica_in(next, host_id);
	if (r->state != LKS_REPLICA_INSYNC)
		return;
	r->state = LKS_REPLICA_SUSPECT;
	if (next.primary == host_id)
		next.primary = 0;
	stats[Stat::suspects]++;
	commit(v, next);
}

// S3: it restarted without, but cannot serve the term that the record gives it
void World::record_resign(Volume &v, uint8_t host_id)
{
	lks_record next = next_version(v);
	if (next.primary != host_id)
		return;
	next.primary = 0;
	commit(v, next);
}

void World::record_failed(Volume &v, uint8_t host_id)
{
	lks_record next = next_version(v);
	lks_record_replica *r = replica_in(next, host_id);
	if (r->state == LKS_REPLICA_FAILED)
		return;
	if (in_sync(r->state))
		r->since = next.version;
	r->state = LKS_REPLICA_FAILED;
	if (next.primary == host_id)
		next.primary = 0;
	commit(v, next);
}

void World::record_repaired(Volume &v, uint8_t host_id)
{
	lks_record next = next_version(v);
	lks_record_replica *r = replica_in(next, host_id);
	if (r->state != LKS_REPLICA_FAILED)
		return;
	r->state = LKS_REPLICA_STALE;
	commit(v, next);
}

static void drop_openers(lks_record &r)
{
	memset(r.openers, 0, sizeof(r.openers));
	r.nopeners = 0;
}

static void drop_opener(lks_record &r, uint8_t host_id)
{
	lks_record_opener *end = r.openers + r.nopeners;
	lks_record_opener *rest = std::remove_if(r.openers, end, [&](const lks_record_opener &o) { return o.host == host_id; });
	std::fill(rest, end, lks_record_opener{});
	r.nopeners = static_cast<uint8_t>(rest - r.openers);
}

// O1: one session at a time, or one a host if the volume is shared. The one replaced may still be alive and not know.
void World::record_open(Volume &v, uint8_t host_id, uint64_t ended)
{
	const lks_record_opener *mine = opener_in(v.record(), host_id);
	if (mine && mine->session > ended)
		return;
	lks_record next = next_version(v);
	if (v.shared)
		drop_opener(next, host_id);
	else
		drop_openers(next);
	lks_record_opener &o = next.openers[next.nopeners++];
	o.host = host_id;
	o.session = ++next.session_serial;
	commit(v, next);
}

void World::record_close(Volume &v, uint8_t host_id, uint64_t session)
{
	const lks_record_opener *mine = opener_in(v.record(), host_id);
	if (!mine || mine->session != session)
		return;
	lks_record next = next_version(v);
	drop_opener(next, host_id);
	commit(v, next);
}

// All replicas have their metadata where a larger volume has them, and zeros where they were.
void World::record_grown(Volume &v)
{
	lks_record next = next_version(v);
	next.size = v.grow_to;
	if (!commit(v, next))
		return;
	stats[Stat::grown]++;
	v.windows.push_back({v.sectors() - 8, 16});    // across the old end
	if (v.grow_to / SECTOR > v.sectors() + 40)
		v.windows.push_back({v.grow_to / SECTOR - 30, 30});
	v.bytes = v.grow_to;
	v.growing = false;
	v.grow_to = 0;
	v.history->grow(v.sectors());
}

}    // namespace lockstep::sim
