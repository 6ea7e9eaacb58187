// SPDX-License-Identifier: GPL-2.0-or-later
//
// Rules of placement: where replicas of a volume may be, and which replicas stay where they are.
//
// Hosts carry labels, such as rack=r1 or site=paris. A volume or a group has at most one rule of each kind:
//
//   different  a label: no two replicas on hosts where it has the same value. A host without that label takes none
//   same       a label: all replicas on hosts where it has the same value, or, "label=value", where it has this one
//   avoid      hosts that take none
//   apart      other volumes: no host has a replica of both. Said of one, it holds for the other as well
//
// A volume's own "different" and "same" take the place of its group's, what it avoids is added to what the group avoids.
//
// Rules are kept by whatever makes a replica: creation, repair, moves, and hosts that are named by hand. A rule or label that is changed
// moves nothing by itself: replicas that are where they may not be any more are told of (rule_broken()), and are the first to go when there
// are too many. Where the rules leave no host a replica is missing until they do; rather that than two copies in the rack that burns.
//
// A pinned replica stays: it is never chosen to go when there are too many, and is neither moved, removed nor evacuated before it is
// unpinned. If its host is given up or its disk fails it counts as lost like any other and another is made elsewhere; when the host is
// back with it, that other one goes.
#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/repair.h"

#include <algorithm>
#include <functional>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

constexpr size_t MAX_HOST_LABEL_BYTES = 64;

// What a rule can name: a label's key. "=" parts it from a value.
std::string label_key(const std::string &text)
{
	const bool plain = std::ranges::all_of(text, [](char c) { return c > 0x20 && c < 0x7f && c != '='; });
	if (text.empty() || text.size() > MAX_LABEL_KEY || !plain)
		refuse(usage_error("\"" + text + "\" is no label of hosts: use 1 to " + std::to_string(MAX_LABEL_KEY) +
				   " printable ASCII characters without spaces and \"=\""));
	return text;
}

std::vector<uint32_t> apart_from(const State &state, const Fields &f)
{
	std::set<uint32_t> vids;
	if (f.raw("apart").is_array() && f.raw("apart").empty())
		return {};
	for (uint64_t vid : f.numbers("apart", MAX_APART)) {
		const Volume *v = vid <= UINT32_MAX ? state.volume(uint32_t(vid)) : nullptr;
		if (!v || v->phase == Phase::deleting)
			refuse(coded("no-such-volume", not_found("there is no volume with vid " + std::to_string(vid))));
		vids.insert(uint32_t(vid));
	}
	return {vids.begin(), vids.end()};
}

}    // namespace

std::pair<std::string, std::string> same_parts(const Rules &rules)
{
	const size_t at = rules.same.find('=');
	return {rules.same.substr(0, at), at == rules.same.npos ? "" : rules.same.substr(at + 1)};
}

Rules rules_fields(const State &state, const Fields &f, const Rules &before, bool of_volume)
{
	const Fields given = f.object("rules");
	Rules rules = before;
	if (given.has("different"))
		rules.different = given.text("different");
	if (given.has("same"))
		rules.same = given.text("same");
	if (!rules.different.empty())
		label_key(rules.different);
	if (!rules.same.empty())
		label_key(same_parts(rules).first);
	if (rules.same.ends_with('='))
		refuse(usage_error("\"" + rules.same + "\" names a label without its value"));
	if (given.has("avoid")) {
		rules.avoid.clear();
		for (HostId host : given.hosts("avoid")) {
			if (!state.host(host))
				refuse(coded("no-such-host", not_found("the cluster has no host " + std::to_string(host))));
			rules.avoid.insert(host);
		}
	}
	if (given.has("apart"))
		rules.apart = apart_from(state, given);
	if (!of_volume && !rules.apart.empty())
		refuse(usage_error("a group cannot be apart from volumes, only a volume can"));
	return rules;
}

Rules merged(const Rules &own, const Rules &groups)
{
	Rules rules = own;
	if (rules.different.empty())
		rules.different = groups.different;
	if (rules.same.empty())
		rules.same = groups.same;
	for (HostId host : groups.avoid)
		rules.avoid.insert(host);
	return rules;
}

std::string check_rules(const State &state, const Rules &rules)
{
	if (rules.apart.size() > MAX_APART || std::ranges::adjacent_find(rules.apart, std::greater_equal<>()) != rules.apart.end())
		return "its rules name too many volumes, or not in ascending order";
	if (std::ranges::any_of(rules.avoid, [&](HostId host) { return !state.host(host); }))
		return "its rules name a host that is not there";
	const bool known = std::ranges::all_of(rules.apart, [&](uint32_t vid) {
		const Volume *v = state.volume(vid);
		return v && v->phase != Phase::deleting;
	});
	return known ? "" : "its rules name a volume that is not there";
}

void forget_in_rules(State &state, HostId host)
{
	for (auto &[name, g] : state.groups)
		g.rules.avoid.erase(host);
	for (auto &[vid, v] : state.volumes)
		v.rules.avoid.erase(host);
}

void forget_in_rules(State &state, uint32_t vid)
{
	for (auto &[other, v] : state.volumes)
		std::erase(v.rules.apart, vid);
}

json host_label(State &state, const Fields &f)
{
	Host next = host_of(state, f);
	const LabelChanges changes = f.labels("labels");
	for (const auto &[key, value] : changes) {
		label_key(key);
		const auto plain = [](char c) { return c >= 0x20 && c < 0x7f; };
		if (value && (value->empty() || value->size() > MAX_HOST_LABEL_BYTES || !std::ranges::all_of(*value, plain)))
			refuse(usage_error("host " + next.name + ": the label " + key + " is not a text of 1 to " + std::to_string(MAX_HOST_LABEL_BYTES) +
					   " ASCII characters"));
	}
	const bool changed = change_labels(next.labels, changes, "host " + next.name);
	state.hosts[next.id] = std::move(next);
	return done(changed);
}

json volume_rules(State &state, const Fields &f)
{
	Volume next = volume_named_or_vid(state, f);
	if (next.phase == Phase::deleting)
		refuse(forbidden("volume " + next.name + " is being deleted"));
	const Rules before = next.rules;
	next.rules = rules_fields(state, f, before, true);
	if (std::ranges::count(next.rules.apart, next.vid))
		refuse(usage_error("volume " + next.name + " cannot be apart from itself"));
	const bool changed = next.rules != before;
	replace(state, std::move(next));
	return done(changed);
}

json group_rules(State &state, const Fields &f)
{
	Group next = group_of(state, f.name("name"));
	const Rules before = next.rules;
	next.rules = rules_fields(state, f, before, false);
	const bool changed = next.rules != before;
	state.groups[next.name] = std::move(next);
	return done(changed);
}

json replica_pin(State &state, const Fields &f)
{
	Volume next = volume_of(state, f);
	const Host &h = host_of(state, f);
	const bool pinned = f.flag("pinned");
	if (next.phase != Phase::ready)
		refuse(forbidden("volume " + next.name + " is " + to_string(next.phase)));
	Replica *r = next.replica(h.id);
	if (!r)
		refuse(coded("no-such-replica", not_found("volume " + next.name + " has no replica on host " + h.name)));
	if (pinned && (r->leaving || h.evacuating || h.removing))
		refuse(forbidden("volume " + next.name + ": its replica on host " + h.name + " is about to go: call that off before you pin it"));
	const bool changed = r->pinned != pinned;
	r->pinned = pinned;
	replace(state, std::move(next));
	return done(changed);
}

}    // namespace lockstep::cluster

namespace lockstep {

Rules rules_of(const State &s, const Volume &v)
{
	const auto group = s.groups.find(v.group);
	return group == s.groups.end() ? v.rules : cluster::merged(v.rules, group->second.rules);
}

std::string rule_broken(const State &s, const Volume &v, HostId host)
{
	const Host *h = s.host(host);
	if (!h || !v.replica(host) || rules_of(s, v).empty())
		return {};
	cluster::Wanted w = cluster::one_more(s, v);
	w.beside.erase(host);
	return cluster::rule_obstacle(s, cluster::crowded(s, w), *h, w);
}

}    // namespace lockstep
