// SPDX-License-Identifier: GPL-2.0-or-later
//
// The daemon on a host: a level-triggered loop that brings the kernel to what the log says. It may be slow, dead for a
// while, and its knowledge of the log out of date; it repeats itself.
#include "world.h"

#include "core/internal.h"

#include <algorithm>

namespace lockstep::sim {

void World::daemon_wakes(Host &h)
{
	if (h.daemon)
		for (auto &i : h.instances)
			reconcile(*i);
	at_host(h, random.between(50, 400) * MS, [this, &h] { daemon_wakes(h); });
}

void World::reconcile(Instance &i)
{
	Host &h = i.host;
	Volume &v = i.volume;
	if (!i.core && i.destroy) {
		// The volume was removed from this host; it comes back as a new one.
		if (!i.buffers.empty()) {
			if (now > i.attach_after)
				fail("h%u leaks %zu buffers of volume %u", h.id, i.buffers.size(), v.vid);
			return;
		}
		h.instances[v.vid - 1] = std::make_unique<Instance>(*this, h, v, fresh());
		return;
	}
	if (!i.core) {
		create(i);
		return;
	}
	bool replica = h.disks[v.vid - 1] != nullptr;
	if (i.door == Door::opening && quorum(h)) {
		if (!i.asked) {
			record_open(v, h.id, h.ended_session[v.vid - 1]);
			i.asked = true;
		} else if (!opener_in(v.record(), h.id)) {
			close_door(i);    // taken over before it was open: whoever waits in open() gets EBUSY
		}
	}
	if (const lks_record_opener *o = opener_in(v.record(), h.id);
	    o && i.door == Door::closed && o->session <= h.ended_session[v.vid - 1] && quorum(h))
		record_close(v, h.id, o->session);
	if (v.bytes > i.core->p.size && random.chance(.5))
		if (int err = enter(i, [&](lks_vol *c, uint64_t t) { return lks_vol_resize(c, v.bytes, t); }); err)
			fail("h%u cannot give the device of volume %u its size: error %d", h.id, v.vid, err);
	if (!replica)
		return;
	if (i.failed) {
		if (quorum(h))
			record_failed(v, h.id);
		if (!i.detaching && i.attached && random.chance(.1))
			reattach(i, false);
		return;
	}
	if (!i.attached && !i.detaching && now >= i.attach_after)
		attach(i);
	else if (i.attached && !i.admitted && !i.detaching && quorum(h))
		admit(i);
	else if (i.attached && i.admitted && !i.detaching && quorum(h) && !serves_as_told(i))
		record_suspect(v, h.id);
	grow(i);
}

// S4: it was told to serve and did not begin, since it is suspect: the record calls it clean by a join of before its crash.
bool World::serves_as_told(const Instance &i) const
{
	const lks_record &r = i.volume.record();
	return !i.core->suspect || !i.core->admitted || r.primary != i.host.id || i.core->role != LKS_IDLE || i.core->note.version < r.version;
}

// One step of growing the replica here, as the log and the kernel want it; the log's part at once, the kernel's by itself.
void World::grow(Instance &i)
{
	Volume &v = i.volume;
	uint8_t me = i.host.id;
	if (!v.growing || !i.attached || i.detaching || i.failed)
		return;
	struct lks_vol_status s{};
	lks_vol_status(i.core, clock_ms(i.host), &s);
	int err = 0;
	if (s.meta_offset == v.grow_offset[me] && v.moved.count(me)) {
		if (!s.move_offset && quorum(i.host))
			v.retired.insert(me);
		if (v.retired.size() == v.replicas.size() && quorum(i.host))
			record_grown(v);
	} else if (s.move_current && v.moved.count(me)) {
		err = enter(i, [&](lks_vol *c, uint64_t t) { return lks_vol_meta_moved(c, v.grow_offset[me], t); });
	} else if (s.move_current) {
		if (quorum(i.host) && random.chance(.3)) {
			trace("LOG volume %u: the metadata of h%u are at %llu", v.vid, me, (unsigned long long)v.grow_offset[me]);
			v.moved.insert(me);
			v.meta_of[me] = v.grow_offset[me];
			stats[Stat::moves]++;
		}
	} else if (!v.moved.count(me)) {
		uint64_t offset = random.chance(.05) ? 0 : v.grow_offset[me];    // given up, for now
		err = enter(i, [&](lks_vol *c, uint64_t t) { return lks_vol_meta_move(c, offset, v.grow_to, t); });
	}
	if (err)
		fail("h%u cannot move the metadata of volume %u: error %d", me, v.vid, err);
}

// S1, S3: what the daemon does first after a restart
void World::admit(Instance &i)
{
	Volume &v = i.volume;
	uint8_t me = i.host.id;
	const lks_record_replica *r = replica_in(v.record(), me);
	if (i.suspect && r->state == LKS_REPLICA_INSYNC)
		record_suspect(v, me);
	if (v.record().primary == me)
		record_resign(v, me);
	if (replica_in(v.record(), me)->state == LKS_REPLICA_FAILED)
		record_repaired(v, me);
	i.admitted = true;
	size_t known = i.host.applied[v.vid - 1] = v.log.size() - 1;
	// The answer to the barrier takes its time; the record may change meanwhile.
	at_instance(i, random.below(100 * MS), [this, known](Instance &x) {
		if (!x.core || !x.attached || x.detaching)
			return;
		trace("h%u is admitted with %s", x.host.id, describe(x.volume.log[known]).c_str());
		int err = enter(x, [&](lks_vol *c, uint64_t t) { return lks_vol_config(c, &x.volume.log[known], true, t); });
		if (err)
			fail("h%u refuses a record: error %d", x.host.id, err);
	});
}

void World::tell(Host &h, Volume &v)
{
	if (!h.up || !h.daemon)
		return;
	size_t &known = h.applied[v.vid - 1];
	if (quorum(h))
		known = v.log.size() - 1;
	Instance *i = find(h.id, v.vid);
	if (!i || !i->core)
		return;
	// Mostly what it knows, sometimes something older: versions below the known one are to be ignored.
	size_t version = random.chance(.9) ? known : random.below(known + 1);
	trace("h%u is told v%llu", h.id, (unsigned long long)v.log[version].version);
	int err = enter(*i, [&](lks_vol *c, uint64_t t) { return lks_vol_config(c, &v.log[version], false, t); });
	if (err)
		fail("h%u refuses a record: error %d", h.id, err);
}

}    // namespace lockstep::sim
