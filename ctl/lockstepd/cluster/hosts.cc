// SPDX-License-Identifier: GPL-2.0-or-later
//
// The life of hosts (evicted, evacuated, restored, lost, removed), the time that leaders count, and options; see the tables in
// state.h and option.h, and repair.h for what follows from them.
//
// An evicted or evacuating host only carries a mark: repair.h replaces what it holds, step by step. A lost host is forgotten at once
// and in one entry, with all it held; that is refused as long as a volume's only good copy is among it.
#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/option.h"
#include "lockstepd/cluster/repair.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

json host_evict(State &state, const Fields &f)
{
	Host &h = state.hosts.at(host_of(state, f).id);
	if (h.evicted)
		return done(false);
	if (h.online)
		refuse(forbidden("host " + h.name + " is online: to empty it use `lockstep host evacuate " + h.name + "`"));
	std::string why;
	std::optional<uint64_t> left_ms = evicted_in_ms(state, h.id, &why);
	if (!left_ms)
		refuse(forbidden("host " + h.name + " is not evicted: " + why));
	if (*left_ms)
		refuse(forbidden("host " + h.name + " is not evicted yet: it was away for " + std::to_string(h.away_ms / 1000) + " s"));
	h.evicted = true;
	return done();
}

json host_evacuate(State &state, const Fields &f)
{
	Host &h = state.hosts.at(host_of(state, f).id);
	if (h.evacuating)
		return done(false);
	if (h.removing)
		refuse(forbidden("host " + h.name + " is being removed"));
	for (const auto &[vid, v] : state.volumes)
		if (const Replica *r = v.replica(h.id); r && r->pinned)
			refuse(forbidden("host " + h.name + " cannot be evacuated: the replica of volume " + v.name + " is pinned there: unpin it first, with `lockstep "
					 "volume replica unpin " + v.name + " " + h.name + "`"));
	h.evacuating = true;
	return done();
}

json host_restore(State &state, const Fields &f)
{
	Host &h = state.hosts.at(host_of(state, f).id);
	bool changed = h.evicted || h.evacuating || h.removing;
	h.evicted = h.evacuating = h.removing = false;
	if (changed && !h.online)
		h.away_ms = 0;
	return done(changed);
}

// ---- forgetting a host ---------------------------------------------------------------------------------------------

std::string listed(const std::vector<std::string> &names)
{
	std::string text;
	for (size_t i = 0; i < names.size() && i < 5; i++)
		text += (i ? ", " : "") + names[i];
	return names.size() > 5 ? text + " and " + std::to_string(names.size() - 5) + " more" : text;
}

// Whether the volume's data end with this host.
bool only_good_copy(const Volume &v, HostId host)
{
	const Replica *r = v.replica(host);
	return v.phase == Phase::ready && r && r->in_sync() &&
	       std::none_of(v.replicas.begin(), v.replicas.end(), [&](const Replica &x) { return x.host != host && x.clean(); });
}

// It is just made of something that other hosts have as well; nothing is lost but this host's part in it.
bool goes_on_without(const Volume &v, HostId host)
{
	return v.phase == Phase::creating && v.reverting &&
	       std::ranges::any_of(v.replicas, [&](const Replica &r) { return r.host != host && r.clean(); });
}

// Takes all that the host has of the volume out of it. false: nothing is left of the volume then.
bool forget_in(Volume &v, HostId host, bool reverts)
{
	size_t from_record = std::erase_if(v.replicas, [&](const Replica &r) { return r.host == host; });
	from_record += std::erase_if(v.openers, [&](const Opener &o) { return o.host == host; });
	std::erase_if(v.remnants, [&](const Remnant &r) { return r.host == host; });
	v.devices.erase(host);
	v.shunned.erase(host);
	if (v.primary == host)
		v.primary = 0;
	const bool goes_on = reverts && v.phase == Phase::creating && v.reverting;
	v.version += from_record > 0 && (v.phase == Phase::ready || goes_on);
	if (goes_on)
		ready_if_made(v);
	return v.phase != Phase::deleting || !v.hosts_with_something().empty();
}

}    // namespace

void forget_host(State &state, HostId host, bool reverts)
{
	for (auto it = state.volumes.begin(); it != state.volumes.end();)
		it = forget_in(it->second, host, reverts) ? std::next(it) : state.volumes.erase(it);
	forget_copies(state, host);
	forget_in_rules(state, host);
	std::erase_if(state.pools, [&](const auto &p) { return p.second.host == host; });
	state.hosts.erase(host);
}

namespace {

json host_lost(State &state, const Fields &f)
{
	const Host h = host_of(state, f);
	bool force = f.has("force") && f.flag("force");
	if (h.online)
		refuse(forbidden("host " + h.name + " is online: empty it with `lockstep host evacuate " + h.name + "`, then `lockstep host remove " +
				 h.name + "`"));
	const bool reverts = f.has("reverts") && f.flag("reverts");
	std::vector<std::string> ended, stale;
	for (const auto &[vid, v] : state.volumes)
		if (only_good_copy(v, h.id))
			(v.replicas.size() > 1 ? stale : ended).push_back(v.name);
		else if (reverts && v.phase == Phase::creating && v.replica(h.id) && !v.may_be_rolled_back() && !goes_on_without(v, h.id))
			ended.push_back(v.name);    // it has been there before, and ends with this host
	if (!stale.empty())
		refuse(forbidden("host " + h.name + " has the only good copy of volume " + listed(stale) + ", others are older: bring the host back, "
				 "or delete the volume"));
	std::vector<std::string> snapshots;
	for (const auto &[sid, s] : f.has("snapshots") && f.flag("snapshots") ? state.snapshots : std::map<uint32_t, Snapshot>())
		if (s.phase == SnapshotPhase::ready && s.copies.size() == 1 && s.copy(h.id) && !s.temporary)
			snapshots.push_back(s.name + " of volume " + s.volume);
	if (ended.empty() && !snapshots.empty() && !force)
		refuse(forbidden("host " + h.name + " has the only copy of snapshot " + listed(snapshots) + ": bring the host back, or give it up with "
				 "--force"));
	if (!ended.empty() && !force)
		refuse(forbidden("host " + h.name + " has the only copy of volume " + listed(ended) + ": bring the host back, or give up the data "
				 "with --force"));
	State next = state;
	for (auto &[vid, v] : next.volumes) {
		bool creating_there = v.phase == Phase::creating && v.replica(h.id) && !(reverts && goes_on_without(v, h.id));
		if (!creating_there && !only_good_copy(v, h.id))
			continue;
		Volume tomb = v;
		tomb.openers.clear();
		std::string message = "volume " + v.name + (creating_there ? " could not be created" : " was given up") + ": host " + h.name + " is lost";
		roll_back(next, tomb, message);
	}
	forget_host(next, h.id, reverts);
	if (std::string broken = check(next); !broken.empty())
		refuse(failed("host " + h.name + " cannot be forgotten: " + broken));
	state = std::move(next);
	json answer = done();
	answer["volumes_lost"] = ended;
	return answer;
}

// ---- removing an empty host ----------------------------------------------------------------------------------------

// What keeps the host from being removed; empty if nothing does.
std::string held_by(const State &state, HostId host)
{
	std::vector<std::string> replicas, open;
	for (const auto &[vid, v] : state.volumes) {
		if (v.replica(host))
			replicas.push_back(v.name);
		if (v.opener(host))
			open.push_back(v.name);
	}
	const std::string name = state.host_name(host);
	for (const auto &[sid, s] : state.snapshots)
		if (s.trace(host))
			return "it has a copy of snapshot " + s.name + " of volume " + s.volume + ": move it away with `lockstep host evacuate " + name +
			       "`, or delete the snapshot";
	if (!open.empty())
		return "volume " + listed(open) + " is open there: close it first";
	if (!replicas.empty())
		return "it has a replica of volume " + listed(replicas) + ": empty it with `lockstep host evacuate " + name + "` first";
	return {};
}

json host_remove(State &state, const Fields &f)
{
	Host &h = state.hosts.at(host_of(state, f).id);
	if (h.removing)
		return done(false);
	if (!h.online)
		refuse(coded("host-offline", forbidden("host " + h.name + " is offline: if it never comes back, use `lockstep host lost " + h.name + "`")));
	if (state.hosts.size() == 1)
		refuse(forbidden("host " + h.name + " is the only one of the cluster"));
	if (std::string held = held_by(state, h.id); !held.empty())
		refuse(forbidden("host " + h.name + " cannot be removed: " + held));
	if (h.witness) {
		forget_host(state, h.id);    // it has nothing to take down
		return done();
	}
	h.removing = true;
	return done();
}

json host_gone(State &state, const Fields &f)
{
	HostId id = f.host();
	if (!state.host(id))
		return done(false);
	const Host h = *state.host(id);
	if (!h.removing)
		refuse(forbidden("host " + h.name + " is not being removed"));
	std::string held = held_by(state, id);
	for (const auto &[vid, v] : state.volumes)
		if (v.remnant(id))
			held = "it has not removed its former replica of volume " + v.name + " yet";
	if (!held.empty())
		refuse(forbidden("host " + h.name + " cannot be removed: " + held));
	State next = state;
	forget_host(next, id);
	if (std::string broken = check(next); !broken.empty())
		refuse(failed("host " + h.name + " cannot be forgotten: " + broken));
	state = std::move(next);
	return done();
}

// ---- time and options ----------------------------------------------------------------------------------------------

constexpr uint64_t MOST_MS = 1000ull * 86400 * 365 * 10;

// The whole entry is read before anything is changed. What no longer waits is passed over: it ended meanwhile.
json life_elapsed(State &state, const Fields &f)
{
	std::map<HostId, uint64_t> hosts;
	for (const auto &[key, value] : f.raw("hosts").items()) {
		bool digits = !key.empty() && key.size() <= 2 && key.find_first_not_of("0123456789") == key.npos;
		if (!digits || !value.is_number_unsigned() || value.get<uint64_t>() > MOST_MS)
			refuse(usage_error("the field \"hosts\" is not a list of times"));
		hosts[HostId(std::stoul(key))] = value;
	}
	std::vector<std::tuple<uint32_t, HostId, uint64_t>> replicas;
	for (const json &r : f.raw("replicas")) {
		bool fits = r.is_array() && r.size() == 3 && std::all_of(r.begin(), r.end(), [](const json &n) { return n.is_number_unsigned(); });
		if (!fits || r[0].get<uint64_t>() > UINT32_MAX || r[1].get<uint64_t>() > LKS_MAX_HOSTS || r[2].get<uint64_t>() > MOST_MS)
			refuse(usage_error("the field \"replicas\" is not a list of times"));
		replicas.emplace_back(r[0], r[1], r[2]);
	}
	bool changed = false;
	auto advance = [&](uint64_t &counter, uint64_t ms) {
		changed = changed || ms > counter;
		counter = std::max(counter, ms);
	};
	for (const auto &[id, ms] : hosts)
		if (auto it = state.hosts.find(id); it != state.hosts.end() && !it->second.online && !it->second.evicted)
			advance(it->second.away_ms, ms);
	for (const auto &[vid, host, ms] : replicas) {
		auto it = state.volumes.find(vid);
		Replica *r = it == state.volumes.end() ? nullptr : it->second.replica(host);
		if (r && r->state == ReplicaState::failed)
			advance(r->failed_ms, ms);
	}
	return done(changed);
}

json option_set(State &state, const Fields &f)
{
	std::string name = f.text("name"), value = f.text("value");
	if (Done fits = check_option(name, value, f.has("host")); !fits)
		refuse(fits.error());
	std::map<std::string, std::string> &at = f.has("host") ? state.hosts.at(host_of(state, f).id).options : state.options;
	auto before = at;
	if (value == "default")
		at.erase(name);
	else
		at[name] = value;
	return done(at != before);
}

}    // namespace

Command host_command(const std::string &op)
{
	static const std::map<std::string, Command> commands = {
		{"host.evict", host_evict},   {"host.evacuate", host_evacuate}, {"host.restore", host_restore}, {"host.lost", host_lost},
		{"host.remove", host_remove}, {"host.gone", host_gone},         {"life.elapsed", life_elapsed}, {"option.set", option_set},
		{"host.label", host_label},
	};
	auto it = commands.find(op);
	return it == commands.end() ? nullptr : it->second;
}

}    // namespace lockstep::cluster
