// SPDX-License-Identifier: GPL-2.0-or-later
//
// Groups and labels: what a user of volumes wants to remember about them, kept with the volumes and replicated like them.
//
// A group is a set of volumes with one pool and one redundancy, such as a storage repository of XAPI; new volumes of it take
// both from it. A label is a small text under a key, on a group or on a volume; nothing here reads labels. So a storage
// driver keeps no files of its own: after the loss of its database everything is found again in the cluster.
#include "lockstepd/cluster/internal.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

LabelChanges Fields::labels(const char *name) const
{
	const json &object = at(name);
	if (!object.is_object() || object.size() > MAX_LABELS)
		refuse(usage_error(std::string("the field \"") + name + "\" is not an object of at most " + std::to_string(MAX_LABELS) + " labels"));
	LabelChanges changes;
	for (const auto &[key, value] : object.items()) {
		auto plain = [](char c) { return c > 0x20 && c < 0x7f; };
		if (key.empty() || key.size() > MAX_LABEL_KEY || !std::all_of(key.begin(), key.end(), plain))
			refuse(usage_error("a label's key must be 1 to " + std::to_string(MAX_LABEL_KEY) + " printable ASCII characters without spaces"));
		if (value.is_null())
			changes[key] = std::nullopt;
		else if (value.is_string() && value.get_ref<const std::string &>().size() <= MAX_LABEL_BYTES)
			changes[key] = value.get<std::string>();
		else
			refuse(usage_error("the label " + key + " is not a text of at most " + std::to_string(MAX_LABEL_BYTES) + " bytes"));
	}
	return changes;
}

bool change_labels(Labels &labels, const LabelChanges &changes, const std::string &of)
{
	Labels next = labels;
	for (const auto &[key, value] : changes) {
		if (value)
			next[key] = *value;
		else
			next.erase(key);
	}
	if (next.size() > MAX_LABELS)
		refuse(forbidden(of + " would have more than " + std::to_string(MAX_LABELS) + " labels: remove some"));
	bool changed = next != labels;
	labels = std::move(next);
	return changed;
}

const Group &group_of(const State &state, const std::string &name)
{
	auto it = state.groups.find(name);
	if (it == state.groups.end())
		refuse(coded("no-such-group", not_found("there is no group named " + name)));
	return it->second;
}

void refuse_redundancy_out_of_range(const Group &g)
{
	if (g.redundancy < 1 || g.redundancy > LKS_MAX_REPLICAS)
		refuse(usage_error("group " + g.name + ": its redundancy must be 1 to " + std::to_string(LKS_MAX_REPLICAS)));
}

void refuse_too_few_pools(const State &state, const Group &g, const Pool *going)
{
	const auto counts = [&](const auto &p) { return p.second.name == g.pool && !p.second.deleting && &p.second != going; };
	const auto hosts = size_t(std::ranges::count_if(state.pools, counts));
	if (!hosts)
		refuse(coded("no-such-pool", not_found("group " + g.name + ": no host has a pool named " + g.pool)));
	if (hosts < g.redundancy)
		refuse(forbidden("group " + g.name + ": redundancy " + std::to_string(g.redundancy) + " needs as many hosts with pool " + g.pool +
				 ", there are " + std::to_string(hosts)));
}

json group_create(State &state, const Fields &f)
{
	Group g;
	g.name = f.name("name");
	g.pool = f.name("pool");
	g.redundancy = unsigned(f.number_or("redundancy", DEFAULT_REDUNDANCY, UINT32_MAX));
	refuse_redundancy_out_of_range(g);
	if (f.has("labels"))
		change_labels(g.labels, f.labels("labels"), "group " + g.name);
	if (f.has("rules"))
		g.rules = rules_fields(state, f, {}, false);
	if (auto it = state.groups.find(g.name); it != state.groups.end()) {
		if (it->second.pool == g.pool && it->second.redundancy == g.redundancy)
			return done(false);
		refuse(coded("name-taken", forbidden("there is a group named " + g.name + " already, in pool " + it->second.pool + " with redundancy " +
				 std::to_string(it->second.redundancy))));
	}
	refuse_too_few_pools(state, g);
	state.groups[g.name] = std::move(g);
	return done();
}

json group_delete(State &state, const Fields &f)
{
	std::string name = f.name("name");
	group_of(state, name);
	for (const auto &[vid, v] : state.volumes)
		if (v.group == name && v.phase != Phase::deleting)
			refuse(forbidden("group " + name + " cannot be deleted: volume " + v.name + " is in it"));
	for (const auto &[sid, s] : state.snapshots)
		if (s.group == name && s.phase != SnapshotPhase::deleting)
			refuse(forbidden("group " + name + " cannot be deleted: snapshot " + s.name + " of volume " + s.volume + " is in it"));
	for (auto &[vid, v] : state.volumes)    // tombstones
		if (v.group == name)
			v.group.clear();
	state.groups.erase(name);
	return done();
}

json group_label(State &state, const Fields &f)
{
	std::string name = f.name("name");
	LabelChanges changes = f.labels("labels");
	Group next = group_of(state, name);
	bool changed = change_labels(next.labels, changes, "group " + name);
	state.groups[name] = std::move(next);
	return done(changed);
}

json volume_label(State &state, const Fields &f)
{
	std::string name = f.text("name");
	LabelChanges changes = f.labels("labels");
	const Volume *known = state.volume_named(name);
	if (!known)
		refuse(coded("no-such-volume", not_found("there is no volume named " + name)));
	Volume next = *known;
	bool changed = change_labels(next.labels, changes, "volume " + name);
	replace(state, std::move(next));
	return done(changed);
}

}    // namespace lockstep::cluster
