// SPDX-License-Identifier: GPL-2.0-or-later
//
// Looks inside the core: invariants between replicas that clients see only later, if at all, and dumps for a human.
#include "world.h"

#include "core/internal.h"

#include <algorithm>

namespace lockstep::sim {

void World::role_changed(Instance &i)
{
	const lks_vol &c = *i.core;
	bool began = c.role == LKS_ACTIVE && (i.role != LKS_ACTIVE || i.role_term != c.cfg.term);
	i.role = c.role;
	i.role_term = c.cfg.term;
	static const char *const names[] = {"idle", "activating", "active", "draining"};
	trace("h%u is %s in volume %u term %llu", i.host.id, names[c.role], i.volume.vid, (unsigned long long)c.cfg.term);
	if (c.role == LKS_ACTIVATING && hostile && random.chance(.1))
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
