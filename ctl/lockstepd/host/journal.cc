// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/journal.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace lockstep {

namespace {

std::string hosts_in(const State &state, const Volume &v, ReplicaState wanted)
{
	std::string text;
	for (const Replica &r : v.replicas)
		if (r.state == wanted)
			text += " " + state.host_name(r.host);
	return text;
}

void compare_hosts(const State &before, const State &after, std::vector<Change> &changes)
{
	for (const auto &[id, host] : after.hosts) {
		const Host *known = before.host(id);
		if (!known)
			changes.push_back({"host", host.name, fmt::format("host {} ({}) is a member of the cluster, host id {}", host.name,
						    fmt::join(host.addresses, " "), id)});
		else if (known->online != host.online)
			changes.push_back({"host", host.name, fmt::format("host {} is {}", host.name, host.online ? "online" : "offline")});
		else if (known->addresses != host.addresses || known->port != host.port)
			changes.push_back({"host", host.name, fmt::format("host {} is now at {} port {}", host.name, fmt::join(host.addresses, " "), host.port)});
		if (!known)
			continue;
		auto changed = [&](bool was, bool is, const char *begins, const char *ends) {
			if (was != is)
				changes.push_back({"host", host.name, fmt::format("host {} {}", host.name, is ? begins : ends)});
		};
		changed(known->evicted, host.evicted, "is evicted: its replicas are made anew elsewhere", "is not evicted any more");
		changed(known->evacuating, host.evacuating, "is being evacuated", "takes replicas again");
		changed(known->removing, host.removing, "leaves the cluster", "stays in the cluster");
	}
	for (const auto &[id, host] : before.hosts)
		if (!after.host(id))
			changes.push_back({"host", host.name, fmt::format("host {} is in the cluster no more", host.name)});
}

// Hosts open and close a shared volume all the time: that is no event.
bool only_openers_of_shared(const Volume &before, const Volume &after)
{
	Volume same = before;
	same.version = after.version;
	same.session_serial = after.session_serial;
	same.openers = after.openers;
	return after.cls == LKS_SHARED && same == after;
}

void compare_snapshots(const State &before, const State &after, std::vector<Change> &changes)
{
	for (const auto &[sid, s] : after.snapshots) {
		const Snapshot *known = before.snapshot(sid);
		const std::string title = fmt::format("snapshot {} of volume {}", s.name, s.volume);
		if (!known && s.in_progress())
			changes.push_back({"snapshot", s.name, title + ": is being taken"});
		else if (known && known->phase == s.phase)
			continue;
		else if (s.phase == SnapshotPhase::ready)
			changes.push_back({"snapshot", s.name, title + ": is there"});
		else if (s.phase == SnapshotPhase::discarding)
			changes.push_back({"snapshot", s.name, title + ": is discarded: " + s.failure});
		else if (s.phase == SnapshotPhase::deleting)
			changes.push_back({"snapshot", s.name, title + ": is being deleted"});
	}
	for (const auto &[sid, s] : before.snapshots)
		if (!after.snapshot(sid))
			changes.push_back({"snapshot", s.name, fmt::format("snapshot {} of volume {}: is gone", s.name, s.volume)});
}

void compare_volume(const State &before, const State &after, const Volume &v, std::vector<Change> &changes)
{
	const Volume *known = before.volume(v.vid);
	if (!known || known->phase != v.phase)
		switch (v.phase) {
		case Phase::creating:
			changes.push_back({"volume", v.name, fmt::format("volume {}: is being created with id {}", v.name, v.vid)});
			break;
		case Phase::ready:
			changes.push_back({"volume", v.name, fmt::format("volume {}: is ready: {}", v.name, describe_record(after, v))});
			return;
		case Phase::deleting:
			changes.push_back({"volume", v.name, fmt::format("volume {}: is being deleted{}{}", v.name, v.failure.empty() ? "" : ": ", v.failure)});
			break;
		}
	for (const Replica &r : v.replicas)
		if (known && known->phase == v.phase && !known->replica(r.host))
			changes.push_back({"volume", v.name, fmt::format("volume {}: gets a replica on host {}", v.name, after.host_name(r.host))});
	for (const Replica &r : known && known->phase == v.phase && v.phase == Phase::ready ? known->replicas : std::vector<Replica>{})
		if (!v.replica(r.host))
			changes.push_back({"volume", v.name, fmt::format("volume {}: has no replica on host {} any more", v.name, before.host_name(r.host))});
	if (known && known->size_bytes != v.size_bytes)
		changes.push_back({"volume", v.name, fmt::format("volume {}: has {} bytes, {} before", v.name, v.size_bytes, known->size_bytes)});
	else if (known && known->grow_bytes != v.grow_bytes && v.grow_bytes)
		changes.push_back({"volume", v.name, fmt::format("volume {}: grows to {} bytes", v.name, v.grow_bytes)});
	if (known && known->version != v.version && !only_openers_of_shared(*known, v))
		changes.push_back({"volume", v.name, fmt::format("volume {}: {}", v.name, describe_record(after, v))});
}

void compare_clients(const State &before, const State &after, std::vector<Change> &changes)
{
	for (const auto &[name, c] : after.clients)
		if (const auto known = before.clients.find(name); known == before.clients.end() || known->second != c)
			changes.push_back({"cluster", after.name, fmt::format("{} has a certificate for the API ({})", name, c.role)});
	for (const auto &[name, c] : before.clients)
		if (!after.clients.contains(name))
			changes.push_back({"cluster", after.name, fmt::format("{} has no certificate for the API any more", name)});
}

}    // namespace

std::string describe_record(const State &state, const Volume &v)
{
	std::string text = fmt::format("version {}, term {}, primary {}", v.version, v.term, state.host_name(v.primary));
	for (const Opener &o : v.openers)
		text += fmt::format(", open on {}", state.host_name(o.host));
	const std::pair<const char *, ReplicaState> kinds[] = {{"in sync", ReplicaState::insync},
							       {"suspect", ReplicaState::suspect},
							       {"stale", ReplicaState::stale},
							       {"failed", ReplicaState::failed}};
	for (auto [word, kind] : kinds)
		if (const std::string hosts = hosts_in(state, v, kind); !hosts.empty())
			text += fmt::format(", {}:{}", word, hosts);
	return text;
}

std::vector<Change> changes_between(const State &before, const State &after)
{
	std::vector<Change> changes;
	if (!before.initialized() && after.initialized())
		changes.push_back({"cluster", after.name, fmt::format("cluster {} ({})", after.name, after.uuid)});
	compare_hosts(before, after, changes);
	compare_clients(before, after, changes);
	for (const auto &[key, pool] : after.pools)
		if (!before.pool(pool.name, pool.host))
			changes.push_back({"pool", pool.name, fmt::format("pool {} on host {}: {}{}{}", pool.name, after.host_name(pool.host), pool.vg,
									  pool.thin_lv.empty() ? "" : "/", pool.thin_lv)});
	for (const auto &[vid, v] : after.volumes)
		compare_volume(before, after, v, changes);
	compare_snapshots(before, after, changes);
	for (const auto &[vid, v] : before.volumes)
		if (!after.volume(vid))
			changes.push_back({"volume", v.name, fmt::format("volume {}: is gone", v.name)});
	return changes;
}

std::vector<std::string> differences(const State &before, const State &after)
{
	std::vector<std::string> lines;
	for (const Change &change : changes_between(before, after))
		lines.push_back(change.line);
	return lines;
}

}    // namespace lockstep
