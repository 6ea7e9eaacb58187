// SPDX-License-Identifier: GPL-2.0-or-later
//
// The state itself: look-ups, the kernel's view of a record, space accounting, invariants. Its changes are in apply.cc, its
// encoding in snapshot.cc.
#include "lockstepd/cluster/internal.h"

#include "lockstepd/cluster/option.h"
#include "lockstepd/cluster/repair.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace lockstep {

using nlohmann::json;

// ---- names ---------------------------------------------------------------------------------------------------------

namespace {

bool alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

bool name_of_at_most(size_t most, std::string_view name)
{
	return !name.empty() && name.size() <= most && alphanumeric(name[0]) &&
	       std::all_of(name.begin(), name.end(), [](char c) { return alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
}

}    // namespace

bool valid_volume_name(std::string_view name) { return name_of_at_most(LKS_NAME_MAX, name); }
bool valid_name(std::string_view name) { return name_of_at_most(63, name); }

const char *to_string(ReplicaState state)
{
	switch (state) {
	case ReplicaState::insync: return "insync";
	case ReplicaState::suspect: return "suspect";
	case ReplicaState::stale: return "stale";
	case ReplicaState::failed: return "failed";
	}
	return "?";
}

const char *to_string(Phase phase)
{
	switch (phase) {
	case Phase::creating: return "creating";
	case Phase::ready: return "ready";
	case Phase::deleting: return "deleting";
	}
	return "?";
}

const char *to_string(NoQuorum policy) { return policy == NoQuorum::error ? "error" : "freeze"; }

const char *to_string(SnapshotPhase phase)
{
	switch (phase) {
	case SnapshotPhase::preparing: return "preparing";
	case SnapshotPhase::quiescing: return "quiescing";
	case SnapshotPhase::taking: return "taking";
	case SnapshotPhase::resuming: return "resuming";
	case SnapshotPhase::ready: return "ready";
	case SnapshotPhase::discarding: return "discarding";
	case SnapshotPhase::deleting: return "deleting";
	}
	return "?";
}

const char *to_string(PoolKind kind) { return kind == PoolKind::thick ? "thick" : "thin"; }

// ---- look-ups ------------------------------------------------------------------------------------------------------

namespace {

template <class Map, class Key>
auto *find_in(Map &map, const Key &key)
{
	auto it = map.find(key);
	return it == map.end() ? nullptr : &it->second;
}

template <class Sequence>
auto *with_host(Sequence &sequence, HostId host)
{
	auto it = std::find_if(sequence.begin(), sequence.end(), [&](const auto &x) { return x.host == host; });
	return it == sequence.end() ? nullptr : &*it;
}

}    // namespace

const Replica *Volume::replica(HostId host) const { return with_host(replicas, host); }
Replica *Volume::replica(HostId host) { return with_host(replicas, host); }
const Opener *Volume::opener(HostId host) const { return with_host(openers, host); }
const Remnant *Volume::remnant(HostId host) const { return with_host(remnants, host); }

HostSet Volume::hosts_with_something() const
{
	HostSet hosts = devices;
	for (const Replica &r : replicas)
		hosts.insert(r.host);
	for (const Remnant &r : remnants)
		hosts.insert(r.host);
	return hosts;
}

const SnapshotCopy *Snapshot::copy(HostId host) const { return with_host(copies, host); }

const SnapshotCopy *Snapshot::trace(HostId host) const
{
	for (const auto *list : {&copies, &arriving, &going})
		if (const SnapshotCopy *c = with_host(*list, host))
			return c;
	return nullptr;
}

const Host *State::host(HostId id) const { return find_in(hosts, id); }
const Volume *State::volume(uint32_t vid) const { return find_in(volumes, vid); }
const Pool *State::pool(const std::string &name, HostId host) const { return find_in(pools, std::pair(name, host)); }

const Host *State::host_named(std::string_view name) const
{
	for (const auto &[id, host] : hosts)
		if (host.name == name)
			return &host;
	return nullptr;
}

const Host *State::host_with_uuid(std::string_view uuid) const
{
	for (const auto &[id, host] : hosts)
		if (host.uuid == uuid)
			return &host;
	return nullptr;
}

const Volume *State::volume_named(std::string_view name) const
{
	for (const auto &[vid, volume] : volumes)
		if (volume.name == name && volume.phase != Phase::deleting)
			return &volume;
	return nullptr;
}

const Snapshot *State::snapshot(uint32_t sid) const { return find_in(snapshots, sid); }

const Snapshot *State::snapshot_named(std::string_view volume, std::string_view name) const
{
	for (const auto &[sid, s] : snapshots)
		if (s.volume == volume && s.name == name && s.phase != SnapshotPhase::deleting)
			return &s;
	return nullptr;
}

const Snapshot *State::snapshot_in_progress(uint32_t vid) const
{
	for (const auto &[sid, s] : snapshots)
		if (s.vid == vid && s.in_progress())
			return &s;
	return nullptr;
}

bool State::online(HostId id) const
{
	const Host *h = host(id);
	return h && h->online;
}

std::string State::host_name(HostId id) const
{
	const Host *h = host(id);
	return h ? h->name : id ? "host " + std::to_string(id) : "none";
}

// ---- space ---------------------------------------------------------------------------------------------------------

namespace {

uint64_t units(uint64_t n, uint64_t per_unit) { return (n + per_unit - 1) / per_unit; }

constexpr uint64_t LVM_EXTENT = 4ull << 20;

}    // namespace

uint64_t metadata_bytes(uint64_t size_bytes, uint32_t block_size)
{
	// The layout of DESIGN section 5: two superblocks, 2 bits an extent in 512-byte records, 7 dirty maps of 1 bit a block.
	constexpr uint64_t unit = 4096, extents_per_unit = 1984 * 8;
	uint64_t extents = units(size_bytes, LKS_EXTENT_BYTES);
	uint64_t blocks = units(size_bytes, block_size);
	return unit * (2 + units(extents, extents_per_unit) + (LKS_MAX_REPLICAS - 1) * units(blocks, unit * 8));
}

uint64_t replica_bytes(uint64_t size_bytes, uint32_t block_size)
{
	return units(size_bytes + metadata_bytes(size_bytes, block_size), LVM_EXTENT) * LVM_EXTENT;
}

uint64_t replica_bytes(const Volume &v, const Replica &r)
{
	uint64_t metadata = metadata_bytes(std::max(v.size_bytes, v.grow_bytes), v.block_size);
	return units(std::max(r.md_offset, r.next_offset) + metadata, LVM_EXTENT) * LVM_EXTENT;
}

Reservations::Reservations(const State &state) : state_(state)
{
	for (const auto &[vid, volume] : state.volumes) {
		for (const Replica &r : volume.replicas)
			add(r.pool, r.host, replica_bytes(volume, r), r.created);
		for (const Remnant &r : volume.remnants)    // never of a host that has a replica
			add(r.pool, r.host, r.lv_bytes, true);
	}
	// Copies in a thin pool share their blocks with the replica; what they come to hold shows in the pool's own figures.
	for (const auto &[sid, s] : state.snapshots)
		for (const auto *list : {&s.copies, &s.arriving, &s.going})
			for (const SnapshotCopy &c : *list)
				if (const Pool *pool = state.pool(c.pool, c.host); pool && pool->kind == PoolKind::thick)
					add(c.pool, c.host, s.reserve_bytes, c.taken);
}

void Reservations::add(const std::string &pool, HostId host, uint64_t bytes, bool created)
{
	Sum &sum = sums_[{pool, host}];
	sum.all += bytes;
	sum.not_created += created ? 0 : bytes;
}

Reservations::Sum Reservations::of(const Pool &pool) const
{
	const auto it = sums_.find({pool.name, pool.host});
	return it == sums_.end() ? Sum() : it->second;
}

uint64_t Reservations::reserved(const Pool &pool) const { return of(pool).all; }

uint64_t Reservations::available(const Pool &pool) const
{
	const auto minus = [](uint64_t a, uint64_t b) { return a > b ? a - b : 0; };
	if (pool.deleting || pool_used_percent(pool) > POOL_FULL_PERCENT)
		return 0;
	const Sum sum = of(pool);
	if (pool.kind == PoolKind::thin)
		return minus(uint64_t((unsigned __int128)pool.size_bytes * oversubscription_percent(state_) / 100), sum.all);
	// A thick pool may hold LVs that are not ours: neither what it reports nor what we reserved suffices alone.
	return std::min(minus(pool.size_bytes, sum.all), minus(pool.free_bytes, sum.not_created));
}

uint64_t pool_reserved(const State &state, const Pool &pool) { return Reservations(state).reserved(pool); }

uint64_t pool_available(const State &state, const Pool &pool) { return Reservations(state).available(pool); }

unsigned pool_used_percent(const Pool &pool)
{
	if (pool.kind == PoolKind::thick || !pool.size_bytes)    // a thick pool is full when it has no room, not before
		return 0;
	auto used = unsigned((pool.size_bytes - pool.free_bytes) / (pool.size_bytes / 100 + 1));
	return std::max(used, pool.metadata_percent);
}

HostId choose_primary(const State &state, const Volume &volume)
{
	std::map<HostId, unsigned> load;
	for (const auto &[vid, v] : state.volumes)
		if (vid != volume.vid && v.primary)
			load[v.primary]++;
	HostId best = 0;
	auto rank = [&](HostId h) {
		return std::tuple(!wanted(state, *volume.replica(h)), h != volume.chosen_primary, !volume.opener(h), load[h], h);
	};
	for (const Replica &r : volume.replicas)
		if (r.clean() && state.online(r.host) && (!best || rank(r.host) < rank(best)))
			best = r.host;
	return best;
}

HostId wanted_primary(const State &state, const Volume &volume)
{
	auto can_serve = [&](HostId h) {
		const Replica *r = volume.replica(h);
		return r && r->clean() && state.online(h) && wanted(state, *r);
	};
	// A replica that is to go does not serve on while another can.
	if (volume.primary && !wanted(state, *volume.replica(volume.primary)))
		if (HostId heir = choose_primary(state, volume); heir && can_serve(heir))
			return heir;
	if (volume.chosen_primary && can_serve(volume.chosen_primary))
		return volume.chosen_primary;
	if (!volume.chosen_primary && volume.cls == LKS_EXCLUSIVE && volume.openers.size() == 1 && can_serve(volume.openers[0].host))
		return volume.openers[0].host;
	return volume.primary;
}

bool all_moved(const Volume &v)
{
	return v.grow_bytes && std::all_of(v.replicas.begin(), v.replicas.end(), [&](const Replica &r) {
		return r.created && !r.next_offset && !r.wipe && r.md_offset >= v.grow_bytes;
	});
}

// ---- the kernel's view ---------------------------------------------------------------------------------------------

constexpr uint64_t FIRST_PRIMARYS_TERM = 2;    // a volume begins in term 1, under nobody; start_term()

lks_record to_record(const Volume &volume)
{
	lks_record record;
	std::memset(&record, 0, sizeof record);
	record.version = volume.version;
	record.term = volume.term;
	record.incarnation = volume.incarnation;
	record.session_serial = volume.session_serial;
	record.size = volume.size_bytes;
	record.vid = volume.vid;
	record.primary = volume.primary;
	// L1: before the first primary there was none that could have been promised anything, so it has nothing to wait for.
	record.flags = volume.drained || volume.term == FIRST_PRIMARYS_TERM ? LKS_RECORD_DRAINED : 0;
	for (const Replica &r : volume.replicas) {
		lks_record_replica &to = record.replicas[record.nreplicas++];
		to.host = r.host;
		to.state = uint8_t(r.state);
		to.since = r.since;
		to.added = r.added;
	}
	for (const Opener &o : volume.openers) {
		lks_record_opener &to = record.openers[record.nopeners++];
		to.host = o.host;
		to.session = o.session;
	}
	return record;
}

json propose_entry(const lks_record &record, HostId host)
{
	json members = json::array();
	for (unsigned i = 0; i < record.nreplicas && i < LKS_MAX_REPLICAS; i++)
		if (record.replicas[i].state == LKS_REPLICA_INSYNC || record.replicas[i].state == LKS_REPLICA_SUSPECT)
			members.push_back(record.replicas[i].host);
	json entry = {{"op", "record.propose"}, {"vid", record.vid}, {"host", host}, {"version", record.version - 1},
		      {"term", record.term}, {"members", members}};
	entry["primary"] = record.primary;    // a handover (M1) names another one and the next term
	return entry;
}

// ---- invariants ----------------------------------------------------------------------------------------------------

namespace {

std::string check_replicas(const Volume &v)
{
	if (v.replicas.size() > LKS_MAX_REPLICAS || v.redundancy < 1 || v.redundancy > LKS_MAX_REPLICAS)
		return "too many replicas, or a redundancy out of range";
	HostId last = 0;
	bool in_sync = false;
	for (const Replica &r : v.replicas) {
		if (r.host <= last || r.host > LKS_MAX_HOSTS)
			return "replicas are not in ascending order of distinct hosts";
		last = r.host;
		if (r.since < 1 || r.since > v.version)
			return "a replica's since is above the version";
		if (r.md_offset < v.size_bytes)
			return "metadata inside the data";
		if ((r.next_offset || r.wipe) && !v.grow_bytes)
			return "a replica moves its metadata though the volume does not grow";
		if (r.next_offset && (r.wipe || r.next_offset < v.grow_bytes || r.next_offset <= r.md_offset))
			return "a replica moves its metadata to a wrong place";
		if (r.added < 1 || r.added > r.since)
			return "a replica's since is below the version that added it";
		if (!r.created && v.phase == Phase::ready && (r.state != ReplicaState::stale || r.since != r.added || r.added == 1))
			return "a replica that is not made yet and not a new, stale one";
		if (v.remnant(r.host))
			return "a replica where a former one is not removed yet";
		in_sync = in_sync || r.in_sync();
	}
	if (v.phase != Phase::deleting && !in_sync)
		return "no replica is in sync";
	if (v.phase == Phase::creating && v.may_be_rolled_back() && v.replicas.size() != v.redundancy)
		return "not as many replicas as the redundancy";
	last = 0;
	for (const Remnant &r : v.remnants) {
		if (r.host <= last || r.host > LKS_MAX_HOSTS)
			return "remnants are not in ascending order of distinct hosts";
		last = r.host;
	}
	return {};
}

std::string check_openers(const Volume &v)
{
	if (v.cls == LKS_EXCLUSIVE && v.openers.size() > 1)
		return "an exclusive volume with two openers";
	if (!v.openers.empty() && v.phase != Phase::ready)
		return "an opener of a volume that is not ready";
	HostId last = 0;
	std::set<uint64_t> sessions;
	for (const Opener &o : v.openers) {
		if (o.host <= last || o.host > LKS_MAX_HOSTS)
			return "openers are not in ascending order of distinct hosts";
		last = o.host;
		if (o.session < 1 || o.session > v.session_serial || !sessions.insert(o.session).second)
			return "a session above the serial, or twice";
	}
	return {};
}

}    // namespace

std::string check_volume(const Volume &v)
{
	if (!v.vid || !v.version || !v.term || v.term > v.version)
		return "vid, version or term out of range";
	if (!v.size_bytes || v.size_bytes % 4096 || v.size_bytes > MAX_VOLUME_BYTES || v.minor >= LKS_MAX_MINORS)
		return "size or minor out of range";
	if (!valid_volume_name(v.name))
		return "bad name";
	if (std::string s = check_replicas(v); !s.empty())
		return s;
	if (std::string s = check_openers(v); !s.empty())
		return s;
	const Replica *p = v.replica(v.primary);
	if (v.primary && (!p || !p->clean()))
		return "the primary is not in sync, or suspect";
	if (v.primary && v.phase != Phase::ready)
		return "a primary of a volume that is not ready";
	if (v.grow_bytes && (v.grow_bytes <= v.size_bytes || v.grow_bytes % 4096 || v.grow_bytes > MAX_VOLUME_BYTES))
		return "it grows to a wrong size";
	if ((v.source || !v.adopts.empty()) && v.phase == Phase::ready)
		return "ready though it still gets its content";
	if (!v.adopts.empty() && v.phase == Phase::creating && (v.replicas.size() != 1 || v.source))
		return "it is adopted, and has not just the one replica";
	return {};
}

namespace {

std::string check_hosts(const State &s)
{
	std::set<std::string> names, uuids;
	std::set<uint64_t> raft_ids;
	for (const auto &[id, h] : s.hosts) {
		if (id != h.id || id < 1 || id > LKS_MAX_HOSTS || id >= s.next_host)
			return "host id out of range";
		if (epoch_of(h.raft_id) > s.epoch)
			return "a Raft id of an epoch to come";
		if (h.raft_id < 1 || h.raft_id >= s.next_raft_id || !raft_ids.insert(h.raft_id).second)
			return "Raft id out of range or twice";
		if (!names.insert(h.name).second || !uuids.insert(h.uuid).second)
			return "two hosts with one name or UUID";
		if (h.online && (h.evicted || h.away_ms))
			return "a host that is online counts as away";
	}
	return {};
}

}    // namespace

std::string check(const State &s)
{
	if (!s.initialized()) {
		State empty;
		empty.applied = s.applied;
		return s == empty ? "" : "objects without a cluster";
	}
	if (std::string error = check_hosts(s); !error.empty())
		return error;
	for (const auto &[key, p] : s.pools)
		if (key != std::pair(p.name, p.host) || !s.host(p.host) || !p.size_bytes || p.free_bytes > p.size_bytes ||
		    p.disks.size() > MAX_POOL_DISKS || (p.mending.empty() && !p.mending_by.empty()) || (p.deleting && !p.mending.empty()))
			return "pool " + p.name + " is on no host, or its numbers do not fit";
	for (const auto &[name, g] : s.groups)
		if (name != g.name || !valid_name(name) || g.redundancy < 1 || g.redundancy > LKS_MAX_REPLICAS || g.labels.size() > MAX_LABELS)
			return "group " + g.name + ": its name, redundancy or labels do not fit";
	for (const auto &[name, g] : s.groups)
		if (std::string error = cluster::check_rules(s, g.rules); !error.empty() || !g.rules.apart.empty())
			return "group " + g.name + ": " + error;
	std::set<std::string> names, uuids;
	std::set<uint32_t> minors;
	for (const auto &[vid, v] : s.volumes) {
		if (vid != v.vid || vid >= s.next_vid)
			return "vid out of range";
		if (!minors.insert(v.minor).second || !uuids.insert(v.uuid).second)
			return "two volumes with one minor or UUID";
		if (v.phase != Phase::deleting && !names.insert(v.name).second)
			return "two volumes with one name";
		for (const Replica &r : v.replicas)
			if (!s.pool(r.pool, r.host) || s.pool(r.pool, r.host)->deleting)
				return "volume " + v.name + ": a replica in no pool, or in one that is being deleted";
		if ((!v.group.empty() && !s.groups.contains(v.group)) || v.labels.size() > MAX_LABELS)
			return "volume " + v.name + ": in a group that is not there, or with too many labels";
		for (HostId h : v.devices)
			if (!s.host(h))
				return "volume " + v.name + ": a device on no host";
		for (const Remnant &r : v.remnants)
			if (!s.pool(r.pool, r.host) || s.pool(r.pool, r.host)->deleting)
				return "volume " + v.name + ": a remnant in no pool, or in one that is being deleted";
		for (const Opener &o : v.openers)
			if (!s.host(o.host))
				return "volume " + v.name + ": an opener on no host";
		if (v.phase == Phase::deleting && v.hosts_with_something().empty())
			return "volume " + v.name + ": a tombstone of nothing";
		if (std::string error = check_volume(v); !error.empty())
			return "volume " + v.name + ": " + error;
		if (std::string error = cluster::check_rules(s, v.rules); !error.empty())
			return "volume " + v.name + ": " + error;
	}
	if (s.failures.size() > MAX_FAILURES || s.snapshot_failures.size() > MAX_FAILURES)
		return "too many failures are remembered";
	return cluster::check_snapshots(s);
}

}    // namespace lockstep
