// SPDX-License-Identifier: GPL-2.0-or-later
//
// What users see of the cluster: the agreed State, completed by what hosts report about themselves. The State decides who is
// in sync; reports only add percentages, rates and paths, and are never needed to answer.
//
// Health of a volume, worst first:
//   offline   no host with a replica in sync is online: nothing can serve
//   frozen    requests wait: for a primary, or a replica that is away
//   syncing   it serves; every replica that is behind is being resynced
//   degraded  it serves with fewer replicas than it should have; one that its host has not attached yet does not count
//   ok
#include "lockstepd/api/server.h"

#include "lockstepd/api/shown.h"
#include "lockstepd/api/soft.h"
#include "lockstepd/cluster/repair.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

constexpr uint64_t FROZEN_AFTER_MS = 5000;    // a request this old means that it is frozen, not slow

// What the primary says about the replica on the host.
const json &peer_report(const Reports &soft, const Volume &v, HostId host)
{
	return soft_object(soft_object(soft.of(v.primary, v.vid), "peers"), std::to_string(host));
}

// Does the host's kernel have its replica attached since it started? Until it has, the record's word about it is from before
// the start. Not if its kernel was told a record that this host has not heard of yet.
bool attached(const Volume &v, const Replica &r, const Reports &soft)
{
	const json &own = soft.of(r.host, v.vid);
	return soft_is_true(own, "admitted") && soft_number(own, "version") <= v.version;
}

// Has the host said whether it has the volume's replica attached?
bool has_told(const Reports &soft, HostId host, uint32_t vid)
{
	const json *own = soft.find(host, vid);
	return soft.said_of_volumes(host) && (!own || own->contains("has_replica"));
}

bool is_syncing(const State &s, const Volume &v, const Replica &r, const Reports &soft)
{
	if (r.in_sync() || !s.online(r.host))
		return false;
	const std::string state = soft_text(peer_report(soft, v, r.host), "sync_state");
	return state == "running" || state == "joining";
}

json number_or_null(const json &at, const char *field) { return soft_has_number(at, field) ? json(soft_number(at, field)) : json(nullptr); }

// What the volume takes of a pool where it takes most; null if no host has said it.
json allocated_json(const Volume &v, const Reports &soft)
{
	json most = nullptr;
	for (const Replica &r : v.replicas) {
		const json own = number_or_null(soft.of(r.host, v.vid), "allocated_bytes");
		if (most.is_null() || (!own.is_null() && own > most))
			most = own;
	}
	return most;
}

json name_or_null(const State &s, HostId host) { return host ? json(s.host_name(host)) : json(nullptr); }

}    // namespace

const char *class_word(const Volume &v) { return v.cls == LKS_SHARED ? "shared" : "exclusive"; }

json opener_names(const State &s, const Volume &v)
{
	json names = json::array();
	for (const Opener &o : v.openers)
		names.push_back(s.host_name(o.host));
	return names;
}

json rules_json(const State &s, const Rules &rules)
{
	auto or_null = [](const std::string &text) { return text.empty() ? json(nullptr) : json(text); };
	json j = {{"different", or_null(rules.different)}, {"same", or_null(rules.same)}, {"avoid", json::array()}, {"apart_from", json::array()}};
	for (HostId host : rules.avoid)
		j["avoid"].push_back(s.host_name(host));
	for (uint32_t vid : rules.apart)
		if (const Volume *v = s.volume(vid))
			j["apart_from"].push_back(v->name);
	return j;
}

namespace {

json replica_json(const State &s, const Volume &v, const Replica &r, const Reports &soft)
{
	const json &own = soft.of(r.host, v.vid);
	const json &peer = peer_report(soft, v, r.host);
	const bool running = is_syncing(s, v, r, soft);
	json j;    // field by field: as one initializer each would be made twice, and there are thousands
	j["host"] = s.host_name(r.host);
	j["pool"] = r.pool;
	j["lv_path"] = soft_text(own, "lv_path");
	j["md_offset"] = r.md_offset;
	j["state"] = running ? "syncing" : to_string(r.state);
	j["online"] = s.online(r.host);
	j["attached"] = attached(v, r, soft);
	j["wanted"] = wanted(s, r);
	j["pinned"] = r.pinned;
	j["misplaced"] = rule_broken(s, v, r.host);
	j["created"] = r.created;
	j["allocated_bytes"] = number_or_null(own, "allocated_bytes");
	j["since_version"] = r.since;
	j["dirty_bytes"] = nullptr;
	j["sync_percent"] = nullptr;
	j["rate_bytes_s"] = nullptr;
	j["eta_s"] = nullptr;
	if (r.clean()) {
		j["dirty_bytes"] = 0;
		j["sync_percent"] = 100.0;
		return j;
	}
	if (r.state == ReplicaState::suspect || !soft_has_number(peer, "dirty_blocks"))
		return j;
	uint64_t dirty = std::min(soft_number(peer, "dirty_blocks"), (v.size_bytes + v.block_size - 1) / v.block_size);
	uint64_t dirty_bytes = std::min(dirty * v.block_size, v.size_bytes);
	j["dirty_bytes"] = dirty_bytes;
	// Rounded down to a tenth, so that it never says 100 while something is missing.
	uint64_t permille = uint64_t((long double)(v.size_bytes - dirty_bytes) * 1000 / v.size_bytes);
	j["sync_percent"] = double(dirty_bytes ? std::min<uint64_t>(permille, 999) : permille) / 10;
	if (uint64_t rate = soft_number(peer, "rate_blocks_s"); running && rate) {
		j["rate_bytes_s"] = rate * v.block_size;
		j["eta_s"] = (dirty + rate - 1) / rate;
	}
	return j;
}

struct Health {
	const char *word;
	std::string reason;
};

std::string hosts_text(const State &s, const std::vector<HostId> &hosts)
{
	std::string text;
	for (HostId h : hosts)
		text += (text.empty() ? "" : ", ") + s.host_name(h);
	return text;
}

// Why nothing serves although a replica in sync is there; empty if it serves or could.
std::string why_frozen(const State &s, const Volume &v, const Reports &soft)
{
	if (v.primary && !s.online(v.primary))
		return "its primary " + s.host_name(v.primary) + " is offline, another is being chosen";
	if (v.primary) {
		uint64_t oldest_ms = soft_number(soft.of(v.primary, v.vid), "oldest_ms");
		for (const Opener &o : v.openers)
			oldest_ms = std::max(oldest_ms, soft_number(soft.of(o.host, v.vid), "oldest_ms"));
		return oldest_ms < FROZEN_AFTER_MS ? "" : "a request has been waiting for " + std::to_string(oldest_ms / 1000) + " s";
	}
	std::vector<HostId> away;
	for (const Replica &r : v.replicas) {
		if (r.clean() && s.online(r.host))
			return v.openers.empty() ? "" : "a primary is being chosen";
		if (r.clean())
			away.push_back(r.host);
	}
	if (!away.empty())
		return "only " + hosts_text(s, away) + " can serve: bring that host back";
	return "all replicas in sync restarted unclean, one is being chosen";
}

Health health(const State &s, const Volume &v, const Reports &soft)
{
	if (v.phase == Phase::creating)
		return {"creating", "its replicas are being made"};
	if (v.phase == Phase::deleting)
		return {"deleting", v.failure};
	std::vector<HostId> in_sync, away, behind, failed, starting;
	bool online = false, all_behind_run = true;
	size_t kept = 0;
	for (const Replica &r : v.replicas) {
		online = online || (r.in_sync() && s.online(r.host));
		if (r.in_sync())
			in_sync.push_back(r.host);
		kept += wanted(s, r);
		if (!wanted(s, r))
			continue;    // what replaces it is among the others, or missing
		if (r.state == ReplicaState::failed)
			failed.push_back(r.host);
		else if (!s.online(r.host))
			away.push_back(r.host);
		else if (!r.clean())
			behind.push_back(r.host);
		else if (has_told(soft, r.host, v.vid) && !attached(v, r, soft))
			starting.push_back(r.host);
		if (!r.clean() && !is_syncing(s, v, r, soft))
			all_behind_run = false;
	}
	if (!online)
		return {"offline", "no host with a replica in sync is online: bring back " + hosts_text(s, in_sync)};
	if (std::string why = why_frozen(s, v, soft); !why.empty())
		return {"frozen", why};
	std::string reason;
	auto add = [&](const std::vector<HostId> &hosts, const char *what) {
		if (!hosts.empty())
			reason += (reason.empty() ? "" : "; ") + std::string(what) + " " + hosts_text(s, hosts);
	};
	add(failed, "failed disk on");
	add(away, "offline:");
	add(starting, "not attached yet on");
	add(behind, all_behind_run ? "resync of" : "out of sync:");
	if (kept < v.redundancy)
		reason += (reason.empty() ? "" : "; ") + std::to_string(v.redundancy - kept) + " of " + std::to_string(v.redundancy) +
			  " replicas missing";
	if (reason.empty())
		return {"ok", ""};
	return {away.empty() && failed.empty() && starting.empty() && all_behind_run && kept >= v.redundancy ? "syncing" : "degraded", reason};
}

std::string why_not_evicted(const State &s, HostId host)
{
	std::string why;
	evicted_in_ms(s, host, &why);
	return why;
}

const char *pool_alarm(const Pool &p)
{
	unsigned used = pool_used_percent(p);
	return used > POOL_FULL_PERCENT ? "full" : used > POOL_GRAVE_PERCENT ? "grave" : used > POOL_ALARM_PERCENT ? "high" : "";
}

// What is on its way besides a resync: replicas that leave, are missing, or are still to be removed somewhere.
json changes_json(const State &s, const Volume &v)
{
	json j;
	j["leaving"] = json::array();
	j["left_behind"] = json::array();
	j["obstacle"] = repair_obstacle(s, v);
	for (const Replica &r : v.replicas)
		if (!wanted(s, r))
			j["leaving"].push_back(s.host_name(r.host));
	for (const Remnant &r : v.remnants)
		j["left_behind"].push_back(s.host_name(r.host));
	return j;
}

json group_or_null(const Volume &v) { return v.group.empty() ? json(nullptr) : json(v.group); }

json pool_or_null(const Volume &v) { return v.replicas.empty() ? json(nullptr) : json(v.replicas[0].pool); }

// What was asked for, without what has come of it.
json desired_json(const State &s, const Volume &v)
{
	return {{"name", v.name},
		{"size_bytes", v.size_bytes},
		{"redundancy", v.redundancy},
		{"class", class_word(v)},
		{"pool", pool_or_null(v)},
		{"group", group_or_null(v)},
		{"labels", v.labels},
		{"rules", rules_json(s, v.rules)},
		{"no_quorum", to_string(v.no_quorum)},
		{"openers", opener_names(s, v)},
		{"phase", to_string(v.phase)}};
}

// A volume without its replicas: for those who list many and need no more.
json brief_json(const Volume &v, const Reports &soft)
{
	return {{"name", v.name},
		{"uuid", v.uuid},
		{"vid", v.vid},
		{"size_bytes", v.size_bytes},
		{"allocated_bytes", allocated_json(v, soft)},
		{"redundancy", v.redundancy},
		{"class", class_word(v)},
		{"group", group_or_null(v)},
		{"labels", v.labels},
		{"phase", to_string(v.phase)}};
}

json volume_json(const State &s, const Volume &v, HostId self, const Reports &soft)
{
	json replicas = json::array(), devices = json::array(), pending = json::array();
	for (const Replica &r : v.replicas)
		replicas.push_back(replica_json(s, v, r, soft));
	for (HostId h : v.devices)
		devices.push_back(s.host_name(h));
	Health h = health(s, v, soft);
	json j;
	j["name"] = v.name;
	j["uuid"] = v.uuid;
	j["vid"] = v.vid;
	j["minor"] = v.minor;
	j["device"] = "/dev/lockstep/" + v.name;
	j["size_bytes"] = v.size_bytes;
	j["allocated_bytes"] = allocated_json(v, soft);
	j["block_size"] = v.block_size;
	j["redundancy"] = v.redundancy;
	j["pool"] = pool_or_null(v);
	j["group"] = group_or_null(v);
	j["labels"] = v.labels;
	j["rules"] = rules_json(s, v.rules);
	j["phase"] = to_string(v.phase);
	j["health"] = h.word;
	j["reason"] = h.reason;
	j["primary"] = name_or_null(s, v.primary);
	j["opener"] = name_or_null(s, v.openers.empty() ? HostId(0) : v.openers[0].host);
	j["record"]["version"] = v.version;
	j["record"]["term"] = v.term;
	j["record"]["incarnation"] = v.incarnation;
	j["record"]["session_serial"] = v.session_serial;
	j["devices"] = std::move(devices);
	j["changes"] = changes_json(s, v);
	j["replicas"] = std::move(replicas);
	show_use(s, v, self, soft, j);
	if (!v.failure.empty())
		j["failure"] = v.failure;
	if (v.phase == Phase::deleting) {
		for (HostId host : v.hosts_with_something())
			pending.push_back(s.host_name(host));
		j["pending_hosts"] = pending;
	}
	return j;
}

// What a list of many volumes shows of each.
json listed_json(const State &s, const Volume &v, const Reports &soft)
{
	const auto in_sync = std::count_if(v.replicas.begin(), v.replicas.end(), [](const Replica &r) { return r.clean(); });
	return {{"name", v.name},
		{"vid", v.vid},
		{"phase", to_string(v.phase)},
		{"health", health(s, v, soft).word},
		{"size_bytes", v.size_bytes},
		{"redundancy", v.redundancy},
		{"in_sync", in_sync},
		{"primary", name_or_null(s, v.primary)},
		{"openers", opener_names(s, v)}};
}

}    // namespace

std::string starting_message(const std::string &host_name)
{
	return "host " + host_name + " is starting and has not heard from the rest of the cluster yet: wait, or see whether the other hosts "
	       "can be reached";
}

namespace {

// Those of a name, or all; by name.
std::vector<const Volume *> shown_volumes(const State &s, const std::string *only)
{
	std::vector<const Volume *> by_name;
	for (const auto &[vid, v] : s.volumes)
		if (!only || v.name == *only)
			by_name.push_back(&v);
	std::sort(by_name.begin(), by_name.end(),
		  [](const Volume *a, const Volume *b) { return std::tie(a->name, a->vid) < std::tie(b->name, b->vid); });
	return by_name;
}

std::string as_text(const json &j) { return j.dump(-1, ' ', false, json::error_handler_t::replace); }

// A list as text, one element after the other: the whole is never there as objects.
template <class Show>
std::string volumes_text(const State &s, Show show)
{
	std::string text = "[";
	for (const Volume *v : shown_volumes(s, nullptr)) {
		text += text.size() > 1 ? "," : "";
		text += as_text(show(*v));
	}
	return text + "]";
}

// All but the volumes.
json status_head(const State &s, const LocalFacts &local, const Reports &soft)
{
	json j = {{"applied", s.applied},          {"this_host", local.host_name},  {"module_error", local.module_error}, {"cluster", nullptr},
		  {"hosts", json::array()}, {"pools", json::array()}, {"groups", json::array()}, {"volumes", json::array()},
		  {"snapshots", json::array()}};
	if (local.host && !s.initialized()) {
		j["cluster"] = {{"name", nullptr}, {"uuid", nullptr}, {"leader", nullptr}, {"quorum", false}};
		j["message"] = starting_message(local.host_name);
		return j;
	}
	if (!local.host) {
		j["message"] = "no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`";
		return j;
	}
	j["cluster"] = {{"name", s.name}, {"uuid", s.uuid}, {"leader", name_or_null(s, local.leader)}, {"quorum", local.leader != 0}};
	std::map<HostId, unsigned> replicas;
	for (const auto &[vid, v] : s.volumes)
		for (const Replica &r : v.replicas)
			replicas[r.host]++;
	for (const auto &[id, h] : s.hosts)
		j["hosts"].push_back({{"id", h.id},
				      {"name", h.name},
				      {"uuid", h.uuid},
				      {"addresses", h.addresses},
				      {"port", h.port},
				      {"status", h.online ? "online" : h.evicted ? "evicted" : "offline"},
				      {"evacuating", h.evacuating},
				      {"removing", h.removing},
				      {"witness", h.witness},
				      {"labels", h.labels},
				      {"replicas", replicas[id]},
				      {"evicted_in_ms", evicted_in_ms(s, id) ? json(*evicted_in_ms(s, id)) : json(nullptr)},
				      {"not_evicted_why", why_not_evicted(s, id)},
				      {"since_ms", h.since_ms},
				      {"level", h.level}});
	const Reservations room(s);
	for (const auto &[key, p] : s.pools)
		j["pools"].push_back({{"name", p.name},
				      {"host", s.host_name(p.host)},
				      {"kind", to_string(p.kind)},
				      {"vg", p.vg},
				      {"thin_lv", p.thin_lv},
				      {"size_bytes", p.size_bytes},
				      {"free_bytes", p.free_bytes},
				      {"reserved_bytes", room.reserved(p)},
				      {"available_bytes", room.available(p)},
				      {"used_percent", pool_used_percent(p)},
				      {"metadata_percent", p.metadata_percent},
				      {"disks", p.disks},
				      {"deleting", p.deleting},
				      {"alarm", pool_alarm(p)}});
	for (const auto &[name, g] : s.groups) {
		json changing = nullptr;
		if (g.spreading) {
			const GroupChange c = group_change(s, g);
			changing = {{"done", c.done}, {"all", c.all}, {"obstacle", c.obstacle}};
		}
		j["groups"].push_back({{"name", g.name}, {"pool", g.pool}, {"redundancy", g.redundancy}, {"labels", g.labels},
				       {"rules", rules_json(s, g.rules)}, {"changing", changing}});
	}
	j["snapshots"] = snapshots_json(s, soft);
	return j;
}

json shown_as(const State &s, const Volume &v, HostId self, const Reports &soft, View view)
{
	return view == View::brief ? brief_json(v, soft) : view == View::desired ? desired_json(s, v) : volume_json(s, v, self, soft);
}

bool shows_volumes(const State &s, const LocalFacts &local) { return local.host && s.initialized(); }

}    // namespace

json status_json(const State &s, const LocalFacts &local, const Reports &soft, const std::string *only, View view)
{
	json j = status_head(s, local, soft);
	if (shows_volumes(s, local))
		for (const Volume *v : shown_volumes(s, only))
			j["volumes"].push_back(shown_as(s, *v, local.host, soft, view));
	return j;
}

std::string status_text(const State &s, const LocalFacts &local, const Reports &soft, View view, bool consistent)
{
	json head = status_head(s, local, soft);
	if (consistent)
		head["consistent"] = true;
	if (!shows_volumes(s, local))
		return as_text(head);
	head.erase("volumes");
	std::string text = as_text(head);
	text.back() = ',';
	return text + "\"volumes\":" + volumes_text(s, [&](const Volume &v) { return shown_as(s, v, local.host, soft, view); }) + "}";
}

std::string volume_list_text(const State &s, const LocalFacts &local, const Reports &soft, bool for_list)
{
	return volumes_text(s, [&](const Volume &v) { return for_list ? listed_json(s, v, soft) : volume_json(s, v, local.host, soft); });
}

}    // namespace lockstep
