// SPDX-License-Identifier: GPL-2.0-or-later
//
// See repair.h. Everything here but LifeClock is a pure function of the State.
#include "lockstepd/cluster/repair.h"

#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/option.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

bool given_up(const State &s, const Replica &r)
{
	std::optional<uint64_t> grace_ms = disk_grace_ms(s);
	return r.state == ReplicaState::failed && grace_ms && r.failed_ms >= *grace_ms;
}

// An evicted host that is away still has its replica; it may come back with it.
bool remembered(const State &s, const Replica &r)
{
	const Host *h = s.host(r.host);
	return h && h->evicted && !r.leaving;
}

cluster::Wanted next_place(const State &s, const Volume &v)
{
	cluster::Wanted w = cluster::one_more(s, v);
	for (HostId h : v.shunned)
		w.except.try_emplace(h, "a replica could not be made there");
	return w;
}

// Where one more replica would go; 0 and why if nowhere.
HostId place_one(const State &s, const Volume &v, std::string *why = nullptr)
{
	if (v.replicas.size() >= LKS_MAX_REPLICAS) {
		if (why)
			*why = "it has " + std::to_string(LKS_MAX_REPLICAS) + " replicas, there cannot be more";
		return 0;
	}
	try {
		return cluster::place(s, next_place(s, v)).at(0);
	} catch (const cluster::Refusal &r) {
		if (why)
			*why = r.error.message;
		return 0;
	}
}

json removal(const Volume &v, HostId host)
{
	return {{"op", "replica.remove"}, {"vid", v.vid}, {"host", host}, {"version", v.version}};
}

// How many come back by themselves where they were (replica.invalidate).
size_t renewing(const State &s, const Volume &v)
{
	return size_t(std::count_if(v.remnants.begin(), v.remnants.end(), [&](const Remnant &r) {
		const Host *h = s.host(r.host);
		return r.renew && h && h->online && h->keeps_replicas() && !v.shunned.contains(r.host);
	}));
}

// Another clean one takes over from a primary that is to go; nobody is thrown out by that.
json relieve_primary(const State &s, const Volume &v)
{
	HostId best = 0;
	std::vector<HostId> keep;
	for (const Replica &r : v.replicas) {
		if (!r.clean() || !s.online(r.host))
			continue;
		keep.push_back(r.host);
		if (r.host != v.primary && wanted(s, r) && (!best || (v.opener(r.host) && !v.opener(best))))
			best = r.host;
	}
	if (!best)
		return nullptr;
	return {{"op", "record.failover"}, {"vid", v.vid}, {"version", v.version}, {"primary", best}, {"keep", keep}};
}

// Which of the wanted ones goes when there are too many: one that is where it may not be, else one on the fullest pool.
HostId superfluous(const State &s, const Volume &v)
{
	auto rank = [&](const Replica &r) {
		const Pool *pool = s.pool(r.pool, r.host);
		return std::tuple(r.host == v.primary, v.opener(r.host) != nullptr, rule_broken(s, v, r.host).empty(), pool ? pool_available(s, *pool) : 0, 64 - r.host);
	};
	const Replica *worst = nullptr;
	for (const Replica &r : v.replicas)
		if (wanted(s, r) && !r.pinned && cluster::bound(s, v, r.host).empty() && (!worst || rank(r) < rank(*worst)))
			worst = &r;
	return worst ? worst->host : 0;
}

}    // namespace

bool wanted(const State &s, const Replica &r)
{
	const Host *h = s.host(r.host);
	return h && h->keeps_replicas() && !r.leaving && !given_up(s, r);
}

std::string repair_obstacle(const State &s, const Volume &v)
{
	auto have = size_t(std::count_if(v.replicas.begin(), v.replicas.end(), [&](const Replica &r) { return wanted(s, r); }));
	std::string why;
	if (v.phase == Phase::ready && have + renewing(s, v) < v.redundancy)
		place_one(s, v, &why);
	return why;
}

json decide_repair(const State &s, const Volume &v)
{
	if (v.phase != Phase::ready || v.grow_bytes || s.snapshot_in_progress(v.vid))
		return nullptr;
	size_t have = 0, good = 0, good_anywhere = 0;
	bool all_in_sync = true, source = false;
	for (const Replica &r : v.replicas) {
		good_anywhere += r.clean();
		source = source || (r.clean() && s.online(r.host));
		if (!r.created && !s.online(r.host))
			return {{"op", "replica.failed"}, {"vid", v.vid}, {"host", r.host},
				{"message", "volume " + v.name + " gets no replica on host " + s.host_name(r.host) + ": it went offline"}};
		if (!wanted(s, r))
			continue;
		have++;
		good += r.clean();
		all_in_sync = all_in_sync && r.clean() && s.online(r.host);
	}
	// What is no copy and is not to become one can go at once, if something is left without it.
	for (const Replica &r : v.replicas)
		if (!wanted(s, r) && !remembered(s, r) && !r.in_sync() && good_anywhere && r.host != v.primary && (r.leaving || have >= v.redundancy) &&
		    cluster::bound(s, v, r.host).empty())
			return removal(v, r.host);
	if (have < v.redundancy) {
		if (!source || have + renewing(s, v) >= v.redundancy)
			return nullptr;
		if (HostId host = place_one(s, v))
			return {{"op", "replica.add"}, {"vid", v.vid}, {"host", host}, {"version", v.version}};
		for (const Replica &r : v.replicas)
			if (v.replicas.size() == LKS_MAX_REPLICAS && remembered(s, r) && !r.pinned && !r.in_sync() && good_anywhere)
				return cluster::bound(s, v, r.host).empty() ? removal(v, r.host) : json();    // there is no room in the record to remember it
		return nullptr;
	}
	if (!all_in_sync || good < v.redundancy)
		return nullptr;
	for (const Replica &r : v.replicas) {
		if (wanted(s, r) || remembered(s, r) || !cluster::bound(s, v, r.host).empty())
			continue;
		return r.host == v.primary ? relieve_primary(s, v) : removal(v, r.host);
	}
	if (have > v.redundancy) {
		HostId host = superfluous(s, v);
		if (!host)
			return nullptr;
		return host == v.primary ? relieve_primary(s, v) : removal(v, host);
	}
	return nullptr;
}

// ---- hosts ---------------------------------------------------------------------------------------------------------

namespace {

bool too_many_away(const State &s)
{
	auto away = size_t(std::count_if(s.hosts.begin(), s.hosts.end(), [](const auto &h) { return !h.second.online; }));
	return away * 100 > auto_evict_percent(s) * s.hosts.size();
}

}    // namespace

std::optional<uint64_t> evicted_in_ms(const State &s, HostId id, std::string *why)
{
	const Host *h = s.host(id);
	if (!h || h->online || h->evicted)
		return std::nullopt;
	std::optional<uint64_t> deadline_ms = auto_evict_ms(s, id);
	if (!deadline_ms || too_many_away(s)) {
		if (why)
			*why = !deadline_ms ? "auto-evict is off" : "more than " + std::to_string(auto_evict_percent(s)) + " % of the hosts are away";
		return std::nullopt;
	}
	return *deadline_ms > h->away_ms ? *deadline_ms - h->away_ms : 0;
}

std::vector<json> decide_evictions(const State &s)
{
	std::vector<json> entries;
	for (const auto &[id, h] : s.hosts)
		if (std::optional<uint64_t> left_ms = evicted_in_ms(s, id); left_ms && !*left_ms)
			entries.push_back({{"op", "host.evict"}, {"host", id}});
	return entries;
}

json LifeClock::look(const State &s, uint64_t now_ms)
{
	struct Due {
		uint64_t elapsed_ms, tick_ms;
		std::optional<uint64_t> deadline_ms;
	};
	std::map<Key, Due> counted;
	std::map<Key, Mark> marks;
	auto count = [&](Key key, uint64_t written_ms, std::optional<uint64_t> deadline_ms) {
		auto old = marks_.find(key);
		Mark mark = old != marks_.end() && old->second.written_ms == written_ms ? old->second : Mark{written_ms, now_ms};
		// What was counted beyond the number just written still counts.
		if (old != marks_.end() && written_ms > old->second.written_ms)
			mark.at_ms = std::min(now_ms, old->second.at_ms + (written_ms - old->second.written_ms));
		marks[key] = mark;
		uint64_t tick_ms = std::clamp(deadline_ms.value_or(LIFE_TICK_MOST_MS * 20) / 20, LIFE_TICK_LEAST_MS, LIFE_TICK_MOST_MS);
		counted[key] = {written_ms + (now_ms - mark.at_ms), tick_ms, deadline_ms};
	};
	for (const auto &[id, h] : s.hosts)
		if (!h.online && !h.evicted)
			count({0, h.since_ms, id}, h.away_ms, auto_evict_ms(s, id));
	std::optional<uint64_t> grace_ms = disk_grace_ms(s);
	for (const auto &[vid, v] : s.volumes)
		for (const Replica &r : v.replicas)
			if (v.phase == Phase::ready && r.state == ReplicaState::failed && grace_ms && r.failed_ms < *grace_ms)
				count({vid, r.added, r.host}, r.failed_ms, grace_ms);
	marks_ = std::move(marks);

	bool due = false;
	for (const auto &[key, c] : counted) {
		uint64_t written_ms = marks_[key].written_ms;
		bool reached = c.deadline_ms && written_ms < *c.deadline_ms && c.elapsed_ms >= *c.deadline_ms;
		due = due || reached || c.elapsed_ms - written_ms >= c.tick_ms;
	}
	if (!due)
		return nullptr;
	json hosts = json::object(), replicas = json::array();
	for (const auto &[key, c] : counted) {
		auto [vid, added, host] = key;
		if (c.elapsed_ms == marks_[key].written_ms)
			continue;
		if (!vid)
			hosts[std::to_string(host)] = c.elapsed_ms;
		else
			replicas.push_back({vid, host, c.elapsed_ms});
	}
	return {{"op", "life.elapsed"}, {"hosts", hosts}, {"replicas", replicas}};
}

}    // namespace lockstep
