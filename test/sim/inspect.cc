// SPDX-License-Identifier: GPL-2.0-or-later
//
// Looks inside the core: invariants between replicas that clients see only later, if at all, and dumps for a human.
#include "world.h"

extern "C" {
#include "core/internal.h"
}

#include <algorithm>

namespace lockstep::sim {

namespace {

bool listed(const lks_list &head, uint64_t block)
{
	const lks_list *pos;
	lks_list_for_each(pos, &head) {
		const lks_work &w = *reinterpret_cast<const lks_work *>(reinterpret_cast<const char *>(pos) - offsetof(lks_work, link));
		if (w.first <= block && block <= w.last)
			return true;
	}
	return false;
}

// In flight from the primary: W1 has not ended.
bool flying(const lks_vol &c, uint64_t block)
{
	return listed(c.heating, block) || listed(c.writes, block);
}

// What a replica cannot vouch for, and would say so.
bool evident(const lks_vol &c, uint64_t block)
{
	return lks_map_test(&c.doubt, block) || lks_map_test(&c.inherited, block) || listed(c.unstable, block) || flying(c, block);
}

const lks_vol *taking_part(const Instance *i)
{
	return i && i->core && i->core->attached && i->core->admitted && !i->core->failed && !i->core->detaching ? i->core : nullptr;
}

}    // namespace

void World::role_changed(Instance &i)
{
	const lks_vol &c = *i.core;
	bool began = c.role == LKS_ACTIVE && (i.role != LKS_ACTIVE || i.role_term != c.cfg.term);
	i.role = c.role;
	i.role_term = c.cfg.term;
	static const char *const names[] = {"idle", "activating", "active", "draining"};
	trace("h%u is %s in volume %u term %llu", i.host.id, names[c.role], i.volume.vid, (unsigned long long)c.cfg.term);
	if (c.role == LKS_ACTIVATING && hostile && random.chance(.25))
		at(random.below(600 * MS), [this, id = i.host.id, vid = i.volume.vid] { spoil_activation(id, vid); });
	if (!began)
		return;
	stats[Stat::activations]++;
	if (c.cfg.primary != i.host.id)
		fail("h%u serves volume %u though the record names h%u", i.host.id, i.volume.vid, c.cfg.primary);
	if (c.cfg.incarnation > i.volume.history->incarnation()) {
		stats[Stat::incarnations]++;
		i.volume.history->new_incarnation(c.cfg.incarnation);
	}
}

void World::check_invariants(Volume &v)
{
	// I3: of all that could serve a read now, there is at most one.
	unsigned readers = 0;
	for (auto &h : hosts) {
		Instance *i = find(h->id, v.vid);
		if (!i || !i->core || i->core->role != LKS_ACTIVE)
			continue;
		const lks_vol &c = *i->core;
		bool promised = true;
		for (const lks_peer &p : c.peers)
			if (p.host && c.ackset & LKS_BIT(p.host))
				promised &= p.lease_ms > clock_ms(*h);
		readers += promised;
	}
	if (readers > 1)
		fail("I3 volume %u: %u hosts could serve reads", v.vid, readers);
	const lks_record &r = v.record();
	const lks_vol *p = r.primary ? taking_part(find(r.primary, v.vid)) : nullptr;
	if (!p || p->role != LKS_ACTIVE || p->cfg.version != r.version)
		return;
	for (uint8_t q : v.replicas)
		if (q != r.primary)
			compare_replicas(v, *p, q);
}

// While p serves in the newest version: an in-sync replica holds what p holds, and what another one misses is known to
// every member, so that whoever comes next will copy it.
void World::compare_replicas(Volume &v, const lks_vol &p, uint8_t q)
{
	const lks_record &r = v.record();
	const lks_vol *c = taking_part(find(q, v.vid));
	bool member = in_sync(replica_in(r, q)->state);
	bool in_session = c && c->session_host == r.primary && c->session_term == r.term;
	uint64_t extent = LKS_EXTENT_BYTES / SECTOR;
	auto content = [&](uint8_t h, uint64_t s) {
		return extent_bits(host(h), v, s / extent) & LKS_EXTENT_WRITTEN ? host(h).disks[v.vid - 1]->read(s) : 0;
	};
	for (const Span &w : v.windows) {
		for (uint64_t s = w.first; s < w.first + w.count; s++) {
			uint64_t block = s * SECTOR / v.block_size;
			if (content(r.primary, s) == content(q, s) || flying(p, block))
				continue;
			bool doubted = c ? (member ? !in_session && lks_map_test(&c->doubt, block) : evident(*c, block))
					 : (extent_bits(host(q), v, s / extent) & LKS_EXTENT_HOT) != 0;
			if (doubted)
				continue;
			if (member)
				fail("I1 volume %u: h%u is in sync and differs from the primary h%u in sector %llu", v.vid, q,
				     r.primary, (unsigned long long)s);
			for (uint8_t m : v.replicas) {
				const lks_vol *knows = taking_part(find(m, v.vid));
				if (m == q || !knows || !in_sync(replica_in(r, m)->state))
					continue;
				bool dirty = evident(*knows, block);
				for (const lks_peer &peer : knows->peers)
					dirty |= peer.host == q && lks_map_test(&peer.dirty, block);
				if (!dirty)
					fail("I2 volume %u: h%u does not know that h%u misses sector %llu", v.vid, m, q,
					     (unsigned long long)s);
			}
		}
	}
}

std::string World::state_dump()
{
	std::string text;
	char line[600];
	static const char *const roles[] = {"idle", "activating", "active", "draining"};
	static const char *const doors[] = {"closed", "opening", "open", "closing", "fenced"};
	for (auto &v : volumes) {
		text += "  " + describe(v->record()) + "\n";
		for (auto &h : hosts) {
			Instance *i = find(h->id, v->vid);
			if (!i || !i->core) {
				snprintf(line, sizeof(line), "    h%u %s\n", h->id, h->up ? "up, no volume" : "down");
				text += line;
				continue;
			}
			struct lks_vol_status s{};
			lks_vol_status(i->core, clock_ms(*h), &s);
			snprintf(line, sizeof(line),
				 "    h%u %s v%llu/t%llu noted v%llu session with h%u%s%s%s%s%s hot %u written %u | door %s session %llu "
				 "pending %u oldest %u ms ops %zu transfers %zu todo %x ack %llx lost %llx syncing %llx wait %llx joining h%u/%u\n",
				 h->id, roles[s.role & 3], (unsigned long long)s.version, (unsigned long long)s.term,
				 (unsigned long long)s.noted_version, s.session_with, s.attached ? " attached" : "",
				 s.admitted ? " admitted" : "", s.suspect ? " suspect" : "", s.failed ? " failed" : "",
				 h->daemon ? "" : " daemon dead", s.hot_extents, s.written_extents, doors[static_cast<int>(i->door)],
				 (unsigned long long)s.session, s.pending, s.oldest_ms, i->ops.size(), i->transfers.size(),
				 i->core->todo, (unsigned long long)i->core->ackset, (unsigned long long)i->core->lost,
				 (unsigned long long)i->core->syncing, (unsigned long long)i->core->wait, i->core->joining,
				 i->core->join_stage);
			text += line;
			for (u32 k = 0; k < s.npeers; k++) {
				static const char *const sync[] = {"member", "away", "running", "joining", "lost"};
				snprintf(line, sizeof(line), "      h%u %s%s dirty %llu\n", s.peers[k].host,
					 sync[s.peers[k].sync_state < 5 ? s.peers[k].sync_state : 0], s.peers[k].linked ? " linked" : "",
					 (unsigned long long)s.peers[k].dirty_blocks);
				text += line;
			}
		}
	}
	for (auto &l : links)
		if (l) {
			snprintf(line, sizeof(line), "  link %llu h%u-h%u%s up %d%d lost %d%d\n", (unsigned long long)l->number, l->hosts[0],
				 l->hosts[1], l->broken ? " broken" : "", l->ends[0].up, l->ends[1].up, l->ends[0].lost, l->ends[1].lost);
			text += line;
		}
	return text;
}

}    // namespace lockstep::sim
