// SPDX-License-Identifier: GPL-2.0-or-later
//
// The State as bytes: CBOR of one JSON object with a format number. The same State gives the same bytes on every host, since
// all containers are ordered. A snapshot that does not decode into a State that passes check() is refused as a whole.
#include "lockstepd/cluster/state.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

constexpr unsigned FORMAT = 1;

// A field that snapshots of earlier programs lack: it then has its default.
template <class T>
void newer(const json &j, const char *field, T &value)
{
	if (auto it = j.find(field); it != j.end())
		it->get_to(value);
}

// Most volumes have none, and there are thousands.
void add_rules(json &j, const Rules &r)
{
	if (!r.empty())
		j["rules"] = {{"different", r.different}, {"same", r.same}, {"avoid", r.avoid}, {"apart", r.apart}};
}

void rules_from(const json &j, Rules &r)
{
	const auto rules = j.find("rules");
	if (rules == j.end())
		return;
	rules->at("different").get_to(r.different);
	rules->at("same").get_to(r.same);
	rules->at("avoid").get_to(r.avoid);
	rules->at("apart").get_to(r.apart);
}

json host_json(const Host &h)
{
	return {{"id", h.id},         {"uuid", h.uuid},         {"name", h.name},   {"addresses", h.addresses}, {"port", h.port},
		{"raft_id", h.raft_id}, {"former_raft_id", h.former_raft_id}, {"online", h.online}, {"since_ms", h.since_ms}, {"level", h.level},
		{"key", h.key}, {"witness", h.witness},
		{"evicted", h.evicted}, {"evacuating", h.evacuating}, {"removing", h.removing}, {"away_ms", h.away_ms},
		{"options", h.options}, {"labels", h.labels}};
}

Host host_from(const json &j)
{
	Host h;
	j.at("id").get_to(h.id);
	j.at("uuid").get_to(h.uuid);
	j.at("name").get_to(h.name);
	j.at("addresses").get_to(h.addresses);
	j.at("port").get_to(h.port);
	j.at("raft_id").get_to(h.raft_id);
	j.at("online").get_to(h.online);
	j.at("since_ms").get_to(h.since_ms);
	j.at("level").get_to(h.level);
	h.key = j.value("key", "");
	newer(j, "witness", h.witness);
	newer(j, "former_raft_id", h.former_raft_id);
	newer(j, "evicted", h.evicted);
	newer(j, "evacuating", h.evacuating);
	newer(j, "removing", h.removing);
	newer(j, "away_ms", h.away_ms);
	newer(j, "options", h.options);
	newer(j, "labels", h.labels);
	return h;
}

json pool_json(const Pool &p)
{
	return {{"name", p.name},       {"host", p.host},             {"kind", to_string(p.kind)}, {"vg", p.vg},
		{"thin_lv", p.thin_lv}, {"size_bytes", p.size_bytes}, {"free_bytes", p.free_bytes},
		{"metadata_percent", p.metadata_percent}, {"disks", p.disks}, {"mending", p.mending}, {"mending_by", p.mending_by},
		{"deleting", p.deleting}};
}

Pool pool_from(const json &j)
{
	Pool p;
	j.at("name").get_to(p.name);
	j.at("host").get_to(p.host);
	p.kind = j.at("kind") == "thick" ? PoolKind::thick : PoolKind::thin;
	j.at("vg").get_to(p.vg);
	j.at("thin_lv").get_to(p.thin_lv);
	j.at("size_bytes").get_to(p.size_bytes);
	j.at("free_bytes").get_to(p.free_bytes);
	newer(j, "metadata_percent", p.metadata_percent);
	newer(j, "disks", p.disks);
	newer(j, "mending", p.mending);
	newer(j, "mending_by", p.mending_by);
	newer(j, "deleting", p.deleting);
	return p;
}

json group_json(const Group &g)
{
	json j = {{"name", g.name}, {"pool", g.pool}, {"redundancy", g.redundancy}, {"spreading", g.spreading}, {"labels", g.labels}};
	add_rules(j, g.rules);
	return j;
}

Group group_from(const json &j)
{
	Group g;
	j.at("name").get_to(g.name);
	j.at("pool").get_to(g.pool);
	j.at("redundancy").get_to(g.redundancy);
	newer(j, "spreading", g.spreading);
	rules_from(j, g.rules);
	j.at("labels").get_to(g.labels);
	return g;
}

json replica_json(const Replica &r)
{
	json j = {{"host", r.host}, {"state", to_string(r.state)}, {"since", r.since},
		{"pool", r.pool}, {"md_offset", r.md_offset},    {"created", r.created},
		{"next_offset", r.next_offset}, {"wipe", r.wipe},
		{"added", r.added}, {"leaving", r.leaving}, {"asked", r.asked}, {"instead_of", r.instead_of}, {"failed_ms", r.failed_ms}};
	if (r.pinned)
		j["pinned"] = true;
	return j;
}

ReplicaState replica_state_from(const std::string &text)
{
	for (ReplicaState s : {ReplicaState::insync, ReplicaState::suspect, ReplicaState::stale, ReplicaState::failed})
		if (text == to_string(s))
			return s;
	throw std::runtime_error("unknown state of a replica: " + text);
}

Replica replica_from(const json &j)
{
	Replica r;
	j.at("host").get_to(r.host);
	r.state = replica_state_from(j.at("state"));
	j.at("since").get_to(r.since);
	j.at("pool").get_to(r.pool);
	j.at("md_offset").get_to(r.md_offset);
	j.at("created").get_to(r.created);
	r.next_offset = j.value("next_offset", uint64_t(0));
	r.wipe = j.value("wipe", false);
	newer(j, "added", r.added);
	newer(j, "leaving", r.leaving);
	newer(j, "asked", r.asked);
	newer(j, "instead_of", r.instead_of);
	newer(j, "failed_ms", r.failed_ms);
	newer(j, "pinned", r.pinned);
	return r;
}

Phase phase_from(const std::string &text)
{
	for (Phase p : {Phase::creating, Phase::ready, Phase::deleting})
		if (text == to_string(p))
			return p;
	throw std::runtime_error("unknown phase of a volume: " + text);
}

Volume volume_from(const json &j)
{
	Volume v;
	j.at("vid").get_to(v.vid);
	j.at("uuid").get_to(v.uuid);
	j.at("name").get_to(v.name);
	j.at("minor").get_to(v.minor);
	j.at("size_bytes").get_to(v.size_bytes);
	j.at("block_size").get_to(v.block_size);
	j.at("class").get_to(v.cls);
	j.at("redundancy").get_to(v.redundancy);
	v.phase = phase_from(j.at("phase"));
	v.group = j.value("group", "");    // this and labels: not in snapshots of older programs
	v.labels = j.value("labels", Labels{});
	j.at("failure").get_to(v.failure);
	v.no_quorum = j.value("no_quorum", "freeze") == "error" ? NoQuorum::error : NoQuorum::freeze;
	v.chosen_primary = j.value("chosen_primary", HostId(0));
	v.grow_bytes = j.value("grow_bytes", uint64_t(0));
	v.source = j.value("source", uint32_t(0));
	v.reverting = j.value("reverting", false);
	v.adopts = j.value("adopts", "");
	j.at("devices").get_to(v.devices);
	j.at("version").get_to(v.version);
	j.at("term").get_to(v.term);
	j.at("incarnation").get_to(v.incarnation);
	j.at("session_serial").get_to(v.session_serial);
	j.at("primary").get_to(v.primary);
	j.at("drained").get_to(v.drained);
	for (const json &r : j.at("replicas"))
		v.replicas.push_back(replica_from(r));
	for (const json &o : j.at("openers"))
		v.openers.push_back({o.at("host").get<HostId>(), o.at("session").get<uint64_t>()});
	for (const json &r : j.value("remnants", json::array()))
		v.remnants.push_back({r.at("host").get<HostId>(), r.at("pool").get<std::string>(), r.at("md_offset").get<uint64_t>(),
				      r.at("lv_bytes").get<uint64_t>(), r.value("renew", false), r.value("pinned", false)});
	newer(j, "shunned", v.shunned);
	rules_from(j, v.rules);
	return v;
}

SnapshotPhase snapshot_phase_from(const std::string &text)
{
	for (unsigned p = 0; p <= unsigned(SnapshotPhase::deleting); p++)
		if (text == to_string(SnapshotPhase(p)))
			return SnapshotPhase(p);
	throw std::runtime_error("unknown phase of a snapshot: " + text);
}

json copies_json(const std::vector<SnapshotCopy> &copies)
{
	json list = json::array();
	for (const SnapshotCopy &c : copies)
		list.push_back({{"host", c.host}, {"pool", c.pool}, {"md_offset", c.md_offset}, {"taken", c.taken}, {"added", c.added},
				{"allocated", c.allocated_bytes}, {"prepared", c.prepared}});
	return list;
}

void copies_from(const json &list, std::vector<SnapshotCopy> &copies)
{
	for (const json &c : list)
		copies.push_back({c.at("host"), c.at("pool"), c.at("md_offset"), c.at("taken"), c.value("added", uint64_t(0)), c.value("allocated", uint64_t(0)),
				  c.value("prepared", false)});
}

json snapshot_json(const Snapshot &s)
{
	return {{"sid", s.sid},
		{"set", s.set},
		{"uuid", s.uuid},
		{"name", s.name},
		{"vid", s.vid},
		{"volume_uuid", s.volume_uuid},
		{"volume", s.volume},
		{"group", s.group},
		{"labels", s.labels},
		{"deadline_ms", s.deadline_ms},
		{"size_bytes", s.size_bytes},
		{"block_size", s.block_size},
		{"created_ms", s.created_ms},
		{"reserve_bytes", s.reserve_bytes},
		{"phase", to_string(s.phase)},
		{"prepare", s.prepare},
		{"attempt", s.attempt},
		{"holder", s.holder},
		{"hold", s.hold},
		{"resumed", s.resumed},
		{"failure", s.failure},
		{"last_try", s.last_try},
		{"temporary", s.temporary},
		{"redundancy", s.redundancy},
		{"copies", copies_json(s.copies)},
		{"arriving", copies_json(s.arriving)},
		{"going", copies_json(s.going)}};
}

Snapshot snapshot_from(const json &j)
{
	Snapshot s;
	j.at("sid").get_to(s.sid);
	j.at("set").get_to(s.set);
	j.at("uuid").get_to(s.uuid);
	j.at("name").get_to(s.name);
	j.at("vid").get_to(s.vid);
	j.at("volume_uuid").get_to(s.volume_uuid);
	j.at("volume").get_to(s.volume);
	j.at("size_bytes").get_to(s.size_bytes);
	j.at("block_size").get_to(s.block_size);
	j.at("group").get_to(s.group);
	j.at("labels").get_to(s.labels);
	j.at("deadline_ms").get_to(s.deadline_ms);
	j.at("created_ms").get_to(s.created_ms);
	j.at("reserve_bytes").get_to(s.reserve_bytes);
	s.phase = snapshot_phase_from(j.at("phase"));
	s.prepare = j.value("prepare", false);
	j.at("attempt").get_to(s.attempt);
	j.at("holder").get_to(s.holder);
	j.at("hold").get_to(s.hold);
	j.at("resumed").get_to(s.resumed);
	j.at("failure").get_to(s.failure);
	j.at("last_try").get_to(s.last_try);
	s.temporary = j.value("temporary", false);
	newer(j, "redundancy", s.redundancy);
	copies_from(j.at("copies"), s.copies);
	copies_from(j.value("arriving", json::array()), s.arriving);
	copies_from(j.value("going", json::array()), s.going);
	return s;
}

json failures_json(const std::map<uint32_t, Failure> &failures)
{
	json list = json::array();
	for (const auto &[id, f] : failures)
		list.push_back({{"vid", id}, {"name", f.name}, {"message", f.message}, {"status", f.status}});
	return list;
}

State state_from(const json &j)
{
	State s;
	j.at("applied").get_to(s.applied);
	j.at("uuid").get_to(s.uuid);
	j.at("name").get_to(s.name);
	newer(j, "level", s.level);
	newer(j, "epoch", s.epoch);
	j.at("next_host").get_to(s.next_host);
	j.at("next_raft_id").get_to(s.next_raft_id);
	j.at("next_vid").get_to(s.next_vid);
	for (const json &x : j.at("hosts")) {
		Host h = host_from(x);
		s.hosts[h.id] = h;
	}
	for (const json &x : j.at("pools")) {
		Pool p = pool_from(x);
		s.pools[{p.name, p.host}] = p;
	}
	for (const json &x : j.value("groups", json::array())) {
		Group g = group_from(x);
		s.groups[g.name] = g;
	}
	for (const json &x : j.at("volumes")) {
		Volume v = volume_from(x);
		s.volumes[v.vid] = v;
	}
	for (const json &x : j.at("failures"))
		s.failures[x.at("vid").get<uint32_t>()] = {x.at("name"), x.at("message"), x.at("status")};
	s.next_sid = j.value("next_sid", uint32_t(1));
	for (const json &x : j.value("snapshots", json::array())) {
		Snapshot snapshot = snapshot_from(x);
		s.snapshots[snapshot.sid] = snapshot;
	}
	for (const json &x : j.value("snapshot_failures", json::array()))
		s.snapshot_failures[x.at("vid").get<uint32_t>()] = {x.at("name"), x.at("message"), x.at("status")};
	if (auto authority = j.find("authority"); authority != j.end())
		s.authority = {authority->at("cert"), authority->at("key")};
	if (auto tokens = j.find("tokens"); tokens != j.end())
		for (const json &x : *tokens)
			s.tokens[x.at("hash").get<std::string>()] = {x.at("end_ms"), x.at("used_by")};
	newer(j, "options", s.options);
	for (const json &x : j.value("clients", json::array()))
		s.clients[x.at("name").get<std::string>()] = {x.at("role"), x.at("key"), x.at("end_ms")};
	return s;
}

}    // namespace

json to_json(const Volume &v)
{
	json replicas = json::array(), openers = json::array(), remnants = json::array();
	for (const Remnant &r : v.remnants)
		remnants.push_back({{"host", r.host}, {"pool", r.pool}, {"md_offset", r.md_offset}, {"lv_bytes", r.lv_bytes}, {"renew", r.renew}, {"pinned", r.pinned}});
	for (const Replica &r : v.replicas)
		replicas.push_back(replica_json(r));
	for (const Opener &o : v.openers)
		openers.push_back({{"host", o.host}, {"session", o.session}});
	json j = {{"vid", v.vid},
		{"uuid", v.uuid},
		{"name", v.name},
		{"minor", v.minor},
		{"size_bytes", v.size_bytes},
		{"block_size", v.block_size},
		{"class", v.cls},
		{"redundancy", v.redundancy},
		{"phase", to_string(v.phase)},
		{"group", v.group},
		{"labels", v.labels},
		{"failure", v.failure},
		{"no_quorum", to_string(v.no_quorum)},
		{"chosen_primary", v.chosen_primary},
		{"grow_bytes", v.grow_bytes},
		{"source", v.source},
		{"reverting", v.reverting},
		{"adopts", v.adopts},
		{"devices", v.devices},
		{"version", v.version},
		{"term", v.term},
		{"incarnation", v.incarnation},
		{"session_serial", v.session_serial},
		{"primary", v.primary},
		{"drained", v.drained},
		{"replicas", replicas},
		{"openers", openers},
		{"remnants", remnants},
		{"shunned", v.shunned}};
	add_rules(j, v.rules);
	return j;
}

json to_json(const State &s)
{
	json hosts = json::array(), pools = json::array(), groups = json::array(), volumes = json::array(), snapshots = json::array();
	json tokens = json::array(), clients = json::array();
	for (const auto &[name, c] : s.clients)
		clients.push_back({{"name", name}, {"role", c.role}, {"key", c.key}, {"end_ms", c.end_ms}});
	for (const auto &[hash, t] : s.tokens)
		tokens.push_back({{"hash", hash}, {"end_ms", t.end_ms}, {"used_by", t.used_by}});
	for (const auto &[id, h] : s.hosts)
		hosts.push_back(host_json(h));
	for (const auto &[key, p] : s.pools)
		pools.push_back(pool_json(p));
	for (const auto &[name, g] : s.groups)
		groups.push_back(group_json(g));
	for (const auto &[vid, v] : s.volumes)
		volumes.push_back(to_json(v));
	for (const auto &[sid, x] : s.snapshots)
		snapshots.push_back(snapshot_json(x));
	return {{"format", FORMAT},
		{"applied", s.applied},
		{"uuid", s.uuid},
		{"name", s.name},
		{"level", s.level},
		{"epoch", s.epoch},
		{"next_host", s.next_host},
		{"next_raft_id", s.next_raft_id},
		{"next_vid", s.next_vid},
		{"hosts", hosts},
		{"pools", pools},
		{"groups", groups},
		{"volumes", volumes},
		{"failures", failures_json(s.failures)},
		{"next_sid", s.next_sid},
		{"snapshots", snapshots},
		{"snapshot_failures", failures_json(s.snapshot_failures)},
		{"authority", {{"cert", s.authority.cert}, {"key", s.authority.key}}},
		{"tokens", tokens},
		{"options", s.options},
		{"clients", clients}};
}

std::vector<uint8_t> snapshot(const State &state) { return json::to_cbor(to_json(state)); }

Result<State> restore(std::span<const uint8_t> bytes)
{
	try {
		json j = json::from_cbor(bytes.begin(), bytes.end());
		if (j.at("format") != FORMAT)
			return failed("the snapshot has format " + j.at("format").dump() + ", this lockstepd reads " + std::to_string(FORMAT) +
				      ": update it");
		State s = state_from(j);
		if (std::string broken = check(s); !broken.empty())
			return failed("the snapshot is damaged: " + broken);
		return s;
	} catch (const std::exception &e) {
		return failed(std::string("the snapshot is damaged: ") + e.what());
	}
}

uint32_t level_of(const json &entry)
{
	const auto witness = [](const json &host) { return host.is_object() && host.contains("witness") && host["witness"] == true; };
	const auto op = entry.is_object() ? entry.find("op") : entry.end();
	if (!entry.is_object() || op == entry.end() || !op->is_string())
		return LEVEL_FIRST;
	if (*op == "snapshot.prepared" || (*op == "snapshot.create" && entry.contains("prepare")))
		return LEVEL_PREPARE;
	if (*op == "snapshot.taken" && entry.contains("allocated"))
		return LEVEL_ALLOCATED;
	if (*op == "snapshot.abandon")
		return LEVEL_ABANDON;
	if (*op == "snapshot.revert" && entry.contains("version"))
		return LEVEL_REVERT_VERSION;
	if (*op == "snapshot.revert" && entry.contains("past"))
		return LEVEL_PAST;
	if (*op == "snapshot.revert" && entry.contains("in_place"))
		return LEVEL_IN_PLACE;
	if ((*op == "snapshot.revert" && entry.contains("without_failed")) || (*op == "replica.failed" && entry.contains("reverting")) ||
	    (*op == "host.lost" && entry.contains("reverts")))
		return LEVEL_REVERT;
	if (*op == "pool.delete" || *op == "pool.deleted")
		return LEVEL_POOL_DELETE;
	if (*op == "host.label" || *op == "volume.rules" || *op == "group.rules" || *op == "replica.pin" ||
	    ((*op == "volume.create" || *op == "group.create") && entry.contains("rules")))
		return LEVEL_PLACEMENT;
	if (*op == "group.redundancy" || *op == "group.spread")
		return LEVEL_SPREAD;
	if (*op == "pool.mend" || *op == "pool.mended" || (*op == "pool.report" && entry.contains("disks")))
		return LEVEL_MEND;
	if (*op == "cluster.recover" || *op == "host.rejoin")
		return LEVEL_RECOVER;
	if (op->get_ref<const std::string &>().starts_with("client."))
		return LEVEL_CLIENTS;
	if (*op == "cluster.rebuild")
		return entry.contains("groups") ? LEVEL_GROUPS : LEVEL_REBUILD;
	if (*op == "snapshot.copy" || *op == "snapshot.copied" || *op == "snapshot.drop" || (*op == "snapshot.create" && entry.contains("keep")) ||
	    (*op == "host.lost" && entry.contains("snapshots")) || (*op == "snapshot.revert" && entry.contains("onto")))
		return LEVEL_COPIES;
	if (*op == "replica.invalidate")
		return LEVEL_INVALIDATE;
	if (*op == "volume.adopt" || (*op == "option.set" && entry.contains("name") && entry["name"].is_string() &&
				      entry["name"].get<std::string>().starts_with("resync-")))
		return LEVEL_ADOPT;
	if (*op == "volume.delete" && entry.contains("force"))
		return LEVEL_RECOVER;
	if ((*op == "host.add" && witness(entry)) || (*op == "cluster.init" && entry.contains("host") && witness(entry["host"])))
		return LEVEL_RECOVER;
	return LEVEL_FIRST;
}

bool all_understand(const State &state, uint32_t level)
{
	return std::ranges::all_of(state.hosts, [&](const auto &h) { return h.second.level >= level; });
}

std::string level_obstacle(const State &state, const json &entry)
{
	const uint32_t needed = level_of(entry);
	const auto dead = [&](HostId id) { return entry.contains("dead") && std::ranges::count(entry["dead"], json(id)) > 0; };
	for (const auto &[id, host] : state.hosts)
		if (host.level < needed && !dead(id))
			return "host " + host.name + " runs an older lockstepd (feature level " + std::to_string(host.level) + ", this needs " +
			       std::to_string(needed) + "): update it first";
	return {};
}

std::vector<uint8_t> encode(const json &entry)
{
	json copy = entry;
	if (copy.is_object() && !copy.contains("level"))
		copy["level"] = level_of(copy);
	return json::to_cbor(copy);
}

json apply_bytes(State &state, uint64_t index, std::span<const uint8_t> cbor)
{
	json entry = json::from_cbor(cbor.begin(), cbor.end(), true, false);
	if (!entry.is_discarded())
		return apply(state, index, entry);
	json answer = apply(state, index, json());    // not an object: refused, but counted as applied
	answer["status"] = int(Status::failed);
	answer["message"] = "entry " + std::to_string(index) + " of the log does not decode";
	return answer;
}

}    // namespace lockstep
