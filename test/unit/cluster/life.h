// SPDX-License-Identifier: GPL-2.0-or-later
//
// A cluster whose hosts do their part: they make and purge replicas, the primary resyncs and proposes members, a leader hears
// who is there and counts the time. Hours pass in no time.
#pragma once

#include "fixture.h"

#include <functional>

#include "lockstepd/cluster/controller.h"
#include "lockstepd/cluster/option.h"
#include "lockstepd/cluster/repair.h"

namespace lockstep::test {

// What the hosts that are up would propose for a volume: they make, purge and delete, the primary resyncs.
inline void hosts_of_a_volume(const Volume &v, const std::function<bool(HostId)> &up, const std::set<HostId> &cannot_create, bool resync,
			      std::vector<nlohmann::json> &entries)
{
	auto say = [&](const char *op, HostId host) { entries.push_back({{"op", op}, {"vid", v.vid}, {"host", host}}); };
	if (v.phase == Phase::deleting) {
		for (HostId h : v.hosts_with_something())
			if (up(h))
				say("replica.deleted", h);
		return;
	}
	for (const Remnant &r : v.remnants)
		if (up(r.host))
			say("replica.purged", r.host);
	std::vector<HostId> members;
	bool joins = false;
	for (const Replica &r : v.replicas) {
		if (!r.created && up(r.host)) {
			if (!cannot_create.contains(r.host))
				say("replica.created", r.host);
			else
				entries.push_back({{"op", "replica.failed"}, {"vid", v.vid}, {"host", r.host}, {"message", "no"}});
		}
		bool joiner = r.state == ReplicaState::stale && r.created && up(r.host);
		joins = joins || joiner || r.state == ReplicaState::suspect;    // a suspect one is lost to its primary first
		if (r.clean() || joiner)
			members.push_back(r.host);
	}
	if (resync && joins && v.primary && up(v.primary))
		entries.push_back({{"op", "record.propose"}, {"vid", v.vid}, {"host", v.primary}, {"version", v.version}, {"term", v.term}, {"members", members}});
}

struct Living : Cluster {
	std::map<HostId, Liveness> hearing;
	LifeClock clock;
	uint64_t now_ms = 5'000'000;
	std::set<HostId> cannot_create;        // lvcreate fails there
	bool resync = true;                    // primaries get replicas in sync
	std::vector<std::string> ops;          // what leader and hosts have proposed

	explicit Living(unsigned hosts = 3)
	{
		form(hosts);
		for (const auto &[id, h] : state.hosts)
			hearing[id] = {true, 0};
	}

	bool up(HostId id) { return hearing.contains(id) && hearing[id].online; }

	void tell(const nlohmann::json &entry)
	{
		good(entry);
		ops.push_back(entry["op"]);
	}

	// One round of every host and the leader; false: nobody had anything to do.
	bool round()
	{
		size_t before = ops.size();
		for (const nlohmann::json &d : decide(state, hearing, now_ms))
			tell(d);
		if (nlohmann::json e = clock.look(state, now_ms); !e.is_null())
			tell(e);
		std::vector<nlohmann::json> entries;
		for (const auto &[vid, v] : state.volumes)
			hosts_of_a_volume(v, [this](HostId h) { return up(h); }, cannot_create, resync, entries);
		for (const auto &[id, h] : state.hosts)
			if (h.removing && up(id) && state.hosts.size() > 1)
				entries.push_back({{"op", "host.gone"}, {"host", id}});
		for (const nlohmann::json &e : entries)
			if (apply(e)["ok"] == true)
				ops.push_back(e["op"]);
		return ops.size() != before;
	}

	void settle()
	{
		for (int i = 0; i < 60; i++)
			if (!round())
				return;
		FAIL("it does not settle");
	}

	// Time passes in steps of 250 ms, as for the leader's timer; faster while nothing is due soon.
	void pass(uint64_t ms, uint64_t step_ms = 1000)
	{
		for (uint64_t end = now_ms + ms; now_ms < end;) {
			now_ms = std::min(end, now_ms + step_ms);
			settle();
		}
	}

	void goes(HostId h)
	{
		hearing[h].online = false;
		settle();
	}
	void comes(HostId h)
	{
		hearing[h].online = true;
		settle();
	}

	std::vector<HostId> on(uint32_t vid)
	{
		std::vector<HostId> hosts;
		for (const Replica &r : vol(vid).replicas)
			hosts.push_back(r.host);
		return hosts;
	}
	bool all_clean(uint32_t vid)
	{
		for (const Replica &r : vol(vid).replicas)
			if (!r.clean())
				return false;
		return true;
	}
};

constexpr uint64_t SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE;
using Hosts = std::vector<HostId>;

}    // namespace lockstep::test
