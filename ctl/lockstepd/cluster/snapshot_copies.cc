// SPDX-License-Identifier: GPL-2.0-or-later
//
// Where copies of a snapshot are: how they come to hosts that have none, and go from hosts that need none.
//
// A snapshot is taken where the volume's replicas are in sync at that moment. Replicas move on, hosts are evicted and evacuated,
// disks are replaced: so its copies have to follow, or it would end with the last host that saw it being taken. What users count on is
// the snapshot, not the host.
//
//   wanted    a whole copy on every host that keeps a good replica of the volume. When the volume is gone: as many as it had replicas.
//   arriving  a host is to get a copy and makes it (host/snapshot_copy.cc). It counts for nothing: nobody restores, reverts, compares or
//             copies from it, it is not listed as a copy, and it may be thrown away and begun anew at any time.
//   copies    the host says that it has all of it, on the disk: from then on it is as good as one that was taken.
//   going     a copy that is needed no more, or one that was arriving, is out of the list first and removed by its host afterwards.
//
// The newest snapshot comes first, made from the volume's own replica on that host, with which it has most in common; each
// older one is made from the next newer one. One at a time of each volume and host, so that this order holds. No copy goes before
// all good replicas of the volume have theirs beside them, and never the last one.
//
// So a host or daemon that dies at any step leaves an entry that says what is to be done, and LVs that count for nothing. The leader
// decides from the state alone (decide_copies()); any leader goes on where the last one stopped.
//
//  op               fields           answer beside ok; meaning
//  ---------------  ---------------  ------------------------------------------------------------------------------------
//  snapshot.copy    sid host pool    changed. The leader's: that host gets a copy
//  snapshot.copied  sid host added   changed. It has it. added: as the copy has it, so that no word of an earlier one is taken for it;
//                   md_offset        md_offset: bytes from the start of its LV to its metadata
//  snapshot.drop    sid host         changed. The leader's: it goes there. The host removes it and says snapshot.removed.
//                                    Refused for the last one that counts on a host that is online. Idempotent
#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/repair.h"

#include "lib/units.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

constexpr unsigned MOST_ARRIVING = 8;    // at one host

bool at_work(const State &s, HostId host)
{
	const Host *h = s.host(host);
	return h && h->online && h->keeps_replicas();
}

void insert(std::vector<SnapshotCopy> &copies, const SnapshotCopy &copy)
{
	copies.insert(std::find_if(copies.begin(), copies.end(), [&](const SnapshotCopy &c) { return c.host > copy.host; }), copy);
}

bool listed(const std::vector<SnapshotCopy> &list, HostId host)
{
	return std::any_of(list.begin(), list.end(), [&](const SnapshotCopy &c) { return c.host == host; });
}

bool can_be_read(const State &s, const Snapshot &x)
{
	return std::any_of(x.copies.begin(), x.copies.end(), [&](const SnapshotCopy &c) { return s.online(c.host); });
}

// The volume it is of, if that is there.
const Volume *living(const State &s, const Snapshot &x)
{
	const Volume *v = s.volume(x.vid);
	return v && v->phase != Phase::deleting ? v : nullptr;
}

// Why a copy has no room there; empty: it has.
std::string no_room(const State &s, const Pool &pool, const Snapshot &x)
{
	if (!pool.mending.empty())
		return "pool " + pool.name + " has lost a disk, which is being taken out";
	if (unsigned used = pool_used_percent(pool); pool.kind == PoolKind::thin && used > POOL_FULL_PERCENT)
		return "pool " + pool.name + " is " + std::to_string(used) + " % full, above " + std::to_string(POOL_FULL_PERCENT) + " % it takes nothing new";
	if (uint64_t room = pool_available(s, pool); pool.kind == PoolKind::thick && room < x.reserve_bytes)
		return "pool " + pool.name + " has room for " + format_bytes(room) + ", " + format_bytes(x.reserve_bytes) + " needed";
	return {};
}

}    // namespace

void take_from(std::vector<SnapshotCopy> &from, HostId host, std::vector<SnapshotCopy> &to)
{
	auto it = std::find_if(from.begin(), from.end(), [&](const SnapshotCopy &c) { return c.host == host; });
	const SnapshotCopy copy = *it;
	from.erase(it);
	insert(to, copy);
}

bool in_use(const State &s, const Snapshot &x, HostId host)
{
	return std::any_of(s.volumes.begin(), s.volumes.end(), [&](const auto &entry) {
		const Volume &v = entry.second;
		return v.source == x.sid && v.phase == Phase::creating && v.replica(host);
	});
}

json snapshot_copy(State &state, const Fields &f)
{
	Snapshot &s = snapshot_of(state, f);
	const HostId host = host_of(state, f).id;
	const Pool *pool = state.pool(f.name("pool"), host);
	const std::string its = title(s) + ": host " + state.host_name(host);
	if (s.phase != SnapshotPhase::ready)
		refuse(forbidden(title(s) + " is " + to_string(s.phase)));
	if (s.copy(host) || listed(s.arriving, host))
		return done(false);
	if (listed(s.going, host))
		refuse(forbidden(its + " still has to remove its former copy"));
	if (!pool || pool->deleting)
		refuse(coded("no-such-pool", not_found(its + " has no pool " + f.name("pool"))));
	if (!at_work(state, host))
		refuse(forbidden(its + " takes no copies now"));
	const Volume *v = living(state, s);
	const Replica *r = v ? v->replica(host) : nullptr;
	if (pool->kind == PoolKind::thick && !(r && r->created && r->pool == pool->name))
		refuse(forbidden(its + " has no replica in its thick pool that a copy could be made from"));
	insert(s.arriving, {host, pool->name, s.size_bytes, false, state.applied});
	return done();
}

json snapshot_copied(State &state, const Fields &f)
{
	Snapshot &s = snapshot_of(state, f);
	const HostId host = host_of(state, f).id;
	const uint64_t md_offset = f.number("md_offset"), added = f.number("added");
	if (s.phase != SnapshotPhase::ready || !listed(s.arriving, host) || s.trace(host)->added != added)
		return done(false);
	if (md_offset % 4096 || md_offset < s.size_bytes || md_offset > 2 * MAX_VOLUME_BYTES)
		refuse(usage_error(title(s) + ": its metadata cannot be at byte " + std::to_string(md_offset)));
	uint64_t most = 0;
	for (const SnapshotCopy &c : s.copies)
		most = std::max(most, c.allocated_bytes);
	for (SnapshotCopy &c : s.arriving)
		if (c.host == host) {
			c.taken = true;
			c.md_offset = md_offset;
			c.allocated_bytes = most;    // of the same content
		}
	take_from(s.arriving, host, s.copies);
	return done();
}

json snapshot_drop(State &state, const Fields &f)
{
	Snapshot &s = snapshot_of(state, f);
	const HostId host = host_of(state, f).id;
	const std::string its = title(s) + ": its copy on host " + state.host_name(host);
	if (s.phase != SnapshotPhase::ready)
		refuse(forbidden(title(s) + " is " + to_string(s.phase)));
	if (listed(s.arriving, host)) {
		take_from(s.arriving, host, s.going);
		return done();
	}
	if (!s.copy(host))
		return done(false);
	if (std::none_of(s.copies.begin(), s.copies.end(), [&](const SnapshotCopy &c) { return c.host != host && state.online(c.host); }))
		refuse(forbidden(its + " cannot go: no other host that is online has one"));
	if (in_use(state, s, host))
		refuse(forbidden(its + " cannot go: a volume is just being made from it"));
	take_from(s.copies, host, s.going);
	return done();
}

void all_copies_go(Snapshot &s)
{
	for (auto *list : {&s.arriving, &s.going}) {
		for (const SnapshotCopy &c : *list)
			insert(s.copies, c);
		list->clear();
	}
	s.phase = SnapshotPhase::deleting;
}

std::string check_copies(const State &state, const Snapshot &s)
{
	std::set<HostId> hosts;
	for (const auto *list : {&s.copies, &s.arriving, &s.going}) {
		HostId last = 0;
		for (const SnapshotCopy &c : *list) {
			if (c.host <= last || !state.host(c.host))
				return "its copies are not in ascending order of known hosts";
			if (!hosts.insert(c.host).second)
				return "two copies on one host";
			last = c.host;
		}
	}
	if (s.phase != SnapshotPhase::ready && !(s.arriving.empty() && s.going.empty()))
		return "copies come or go although it is not ready";
	if (std::any_of(s.arriving.begin(), s.arriving.end(), [](const SnapshotCopy &c) { return c.taken; }))
		return "a copy that is still arriving counts as whole";
	return {};
}

// ---- the leader's decisions ----------------------------------------------------------------------------------------

namespace {

using Pair = std::pair<uint32_t, HostId>;    // a volume and a host

struct Arrivals {
	std::set<Pair> pairs;
	std::map<HostId, unsigned> at;
	explicit Arrivals(const State &s)
	{
		for (const auto &[sid, x] : s.snapshots)
			for (const SnapshotCopy &c : x.arriving)
				note(x, c.host);
	}
	void note(const Snapshot &x, HostId host)
	{
		pairs.insert({x.vid, host});
		at[host]++;
	}
	bool allow(const Snapshot &x, HostId host) const
	{
		auto it = at.find(host);
		return !pairs.contains({x.vid, host}) && (it == at.end() || it->second < MOST_ARRIVING);
	}
};

json copy_entry(const Snapshot &x, HostId host, const std::string &pool)
{
	return {{"op", "snapshot.copy"}, {"sid", x.sid}, {"host", host}, {"pool", pool}};
}

bool keeps_replica(const State &s, const Volume &v, HostId host)
{
	const Replica *r = v.replica(host);
	return r && wanted(s, *r);
}

bool lacks_copy(const State &s, const Snapshot &x, const Replica &r)
{
	return wanted(s, r) && r.clean() && r.created && at_work(s, r.host) && !x.trace(r.host) && s.pool(r.pool, r.host);
}

// Beside a good replica that has none.
json copy_to_replica(const State &s, const Snapshot &x, const Volume &v, const Arrivals &arrivals)
{
	for (const Replica &r : v.replicas)
		if (lacks_copy(s, x, r) && no_room(s, *s.pool(r.pool, r.host), x).empty() && arrivals.allow(x, r.host))
			return copy_entry(x, r.host, r.pool);
	return nullptr;
}

size_t kept(const State &s, const Snapshot &x, bool arriving)
{
	auto stays = [&](const SnapshotCopy &c) {
		const Host *h = s.host(c.host);
		return h && h->keeps_replicas() && (h->online || arriving);
	};
	return size_t(std::ranges::count_if(x.copies, stays)) + (arriving ? size_t(std::ranges::count_if(x.arriving, stays)) : 0);
}

// The volume is gone: it stands for itself.
json copy_elsewhere(const State &s, const Snapshot &x, const Arrivals &arrivals)
{
	if (kept(s, x, true) >= x.redundancy || x.copies.empty())
		return nullptr;
	Wanted w;
	w.name = x.volume;
	w.pool = x.copies[0].pool;
	w.size_bytes = x.size_bytes;
	w.block_size = x.block_size;
	w.redundancy = 1;
	for (const auto &[id, h] : s.hosts) {
		const Pool *pool = s.pool(w.pool, id);
		if (x.trace(id) || !arrivals.allow(x, id) || (pool && pool->kind == PoolKind::thick))
			w.except[id] = "it cannot take this copy now";
	}
	try {
		return copy_entry(x, place(s, w).at(0), w.pool);
	} catch (const Refusal &) {
		return nullptr;
	}
}

// A copy that nobody needs, when all that are needed are there.
json drop_superfluous(const State &s, const Snapshot &x)
{
	const Volume *v = living(s, x);
	auto entry = [&](HostId host) { return json{{"op", "snapshot.drop"}, {"sid", x.sid}, {"host", host}}; };
	for (const SnapshotCopy &c : x.arriving)
		if (const Host *h = s.host(c.host); !h->keeps_replicas() || (v && v->phase == Phase::ready && !keeps_replica(s, *v, c.host)))
			return entry(c.host);
	if (v && v->phase != Phase::ready)
		return nullptr;
	size_t good = 0;
	if (v) {
		for (const Replica &r : v->replicas) {
			if (!wanted(s, r))
				continue;
			if (!r.clean() || !at_work(s, r.host) || !x.copy(r.host))
				return nullptr;
			good++;
		}
		if (!good || good < v->redundancy)
			return nullptr;
	} else if (good = kept(s, x, false); !good || good < x.redundancy) {
		return nullptr;
	}
	for (const SnapshotCopy &c : x.copies) {
		const Host *h = s.host(c.host);
		if (h->evicted)    // it may come back, and its replica with it
			continue;
		if ((v ? !keeps_replica(s, *v, c.host) : !h->keeps_replicas()) && !in_use(s, x, c.host))
			return entry(c.host);
	}
	return nullptr;
}

}    // namespace

std::vector<json> decide_copies(const State &s, size_t most)
{
	std::vector<json> entries;
	if (!all_understand(s, level_of({{"op", "snapshot.copy"}})))
		return entries;
	Arrivals arrivals(s);
	for (auto it = s.snapshots.rbegin(); it != s.snapshots.rend() && entries.size() < most; ++it) {
		const Snapshot &x = it->second;
		if (x.phase != SnapshotPhase::ready || x.temporary)
			continue;
		json entry = drop_superfluous(s, x);
		const Volume *v = living(s, x);
		if (entry.is_null() && can_be_read(s, x) && v && v->phase == Phase::ready && !v->grow_bytes)
			entry = copy_to_replica(s, x, *v, arrivals);
		else if (entry.is_null() && can_be_read(s, x) && !v)
			entry = copy_elsewhere(s, x, arrivals);
		if (entry.is_null())
			continue;
		if (entry["op"] == "snapshot.copy")
			arrivals.note(x, entry["host"]);
		entries.push_back(std::move(entry));
	}
	return entries;
}

}    // namespace lockstep::cluster

namespace lockstep {

std::map<HostId, std::string> copies_without_room(const State &s, const Snapshot &x)
{
	std::map<HostId, std::string> hosts;
	const Volume *v = cluster::living(s, x);
	if (x.phase != SnapshotPhase::ready || x.temporary || !v || v->phase != Phase::ready)
		return hosts;
	for (const Replica &r : v->replicas)
		if (cluster::lacks_copy(s, x, r))
			if (std::string why = cluster::no_room(s, *s.pool(r.pool, r.host), x); !why.empty())
				hosts[r.host] = why;
	return hosts;
}

}    // namespace lockstep
