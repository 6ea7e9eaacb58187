// SPDX-License-Identifier: GPL-2.0-or-later
//
// The redundancy of a whole group is changed, up or down, while its volumes are in use.
//
// The group has the new number at once, which holds for new volumes; those it has get it from the leader, a few at a time, so that what
// is copied between the hosts stays bounded and the first volumes are safe soon. Which ones is decided from the state alone
// (decide_groups()), so any leader goes on where the last one stopped. A volume that cannot get it now, for want of hosts or of room or
// since a host with one of its replicas is away, is passed over and tried again as long as it takes; it does not hold up the others.
// Lowering it takes copies away only where enough good ones stay (repair.h).
#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/repair.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

constexpr size_t MOST_SPREADING = 8;    // volumes of one group whose replicas are being made or removed

bool of_group(const Volume &v, const Group &g) { return v.group == g.name && v.phase != Phase::deleting; }

struct Copies {
	size_t have = 0, good = 0;
	HostId away = 0;                // is offline
	bool coming = false;            // one is just being made or resynced
	std::string bound;              // why none of them can go
};

Copies copies_of(const State &s, const Volume &v)
{
	Copies c;
	bool one_can_go = false;
	for (const Replica &r : v.replicas) {
		if (!wanted(s, r))
			continue;
		c.have++;
		c.good += r.clean();
		if (!s.online(r.host))
			c.away = r.host;
		c.coming = c.coming || (!r.clean() && s.online(r.host));
		const std::string why = r.pinned ? "all are pinned" : bound(s, v, r.host);
		one_can_go = one_can_go || why.empty();
		c.bound = one_can_go ? "" : why;
	}
	return c;
}

// It has as many good copies as it should, no more and no less, and all of them can be reached.
bool spread_to(const State &s, const Volume &v, unsigned redundancy)
{
	const Copies c = copies_of(s, v);
	return v.phase == Phase::ready && v.redundancy == redundancy && c.have == redundancy && c.good == c.have && !c.away;
}

// Why it gets no further although its redundancy is the group's; empty: it does.
std::string stuck(const State &s, const Volume &v)
{
	const Copies c = copies_of(s, v);
	if (v.phase != Phase::ready || c.coming)
		return {};
	if (std::string why = repair_obstacle(s, v); !why.empty())
		return why;
	if (c.away)
		return "volume " + v.name + ": host " + s.host_name(c.away) + ", which has a replica of it, is offline";
	return c.have <= v.redundancy || c.bound.empty() ? "" : "volume " + v.name + ": none of its replicas can go: " + c.bound;
}

json change_of(const Volume &v, const Group &g) { return {{"op", "volume.redundancy"}, {"vid", v.vid}, {"redundancy", g.redundancy}}; }

}    // namespace

json group_redundancy(State &state, const Fields &f)
{
	Group next = group_of(state, f.name("name"));
	next.redundancy = unsigned(f.number("redundancy", UINT32_MAX));
	refuse_redundancy_out_of_range(next);
	refuse_too_few_pools(state, next);
	next.spreading = next.spreading || std::ranges::any_of(state.volumes, [&](const auto &entry) {
		return of_group(entry.second, next) && entry.second.redundancy != next.redundancy;
	});
	const bool changed = next != group_of(state, next.name);
	state.groups[next.name] = std::move(next);
	return done(changed);
}

json group_spread(State &state, const Fields &f)
{
	Group next = group_of(state, f.name("name"));
	for (const auto &[vid, v] : state.volumes)
		if (of_group(v, next) && v.redundancy != next.redundancy)
			refuse(forbidden("group " + next.name + ": volume " + v.name + " does not have its redundancy yet"));
	const bool changed = next.spreading;
	next.spreading = false;
	state.groups[next.name] = std::move(next);
	return done(changed);
}

std::vector<json> decide_groups(State &expected, size_t most)
{
	std::vector<json> entries;
	const std::map<std::string, Group> groups = expected.groups;
	for (const auto &[name, g] : groups) {
		if (!g.spreading)
			continue;
		size_t busy = 0;
		bool missing = false;
		std::vector<uint32_t> left;
		for (const auto &[vid, v] : expected.volumes) {
			if (!of_group(v, g) || spread_to(expected, v, g.redundancy))
				continue;
			missing = true;
			if (v.redundancy != g.redundancy)
				left.push_back(vid);
			else
				busy += stuck(expected, v).empty();
		}
		if (!missing && entries.size() < most)
			entries.push_back({{"op", "group.spread"}, {"name", name}});
		for (uint32_t vid : left) {
			if (busy >= MOST_SPREADING || entries.size() >= most)
				break;
			json entry = change_of(*expected.volume(vid), g);
			if (apply(expected, expected.applied + 1, entry)["ok"] != true)
				continue;
			busy++;
			entries.push_back(std::move(entry));
		}
	}
	return entries;
}

}    // namespace lockstep::cluster

namespace lockstep {

GroupChange group_change(const State &s, const Group &g)
{
	GroupChange change;
	State trial;
	for (const auto &[vid, v] : s.volumes) {
		if (!cluster::of_group(v, g))
			continue;
		change.all++;
		if (cluster::spread_to(s, v, g.redundancy)) {
			change.done++;
		} else if (change.obstacle.empty() && v.phase == Phase::ready && v.redundancy == g.redundancy) {
			change.obstacle = cluster::stuck(s, v);
		} else if (change.obstacle.empty() && v.phase == Phase::ready) {
			if (!trial.initialized())
				trial = s;
			if (const nlohmann::json tried = apply(trial, trial.applied + 1, cluster::change_of(v, g)); tried["ok"] != true)
				change.obstacle = tried["message"];
		}
	}
	return change;
}

}    // namespace lockstep
