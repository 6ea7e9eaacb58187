// SPDX-License-Identifier: GPL-2.0-or-later
//
// A disk of a pool is dead and comes back no more: what was on it is lost, and its volume group has to get rid of it.
//
// That a disk is missing is no reason to give up what is on it: it may be a cable. An administrator says that it is gone for good, its
// host says which replicas and copies of snapshots have something on it (host/disks.h), and one entry gives all of them up: the
// replicas go out of the record into the remnants, so that others are made from good copies wherever there is room, and the copies of
// snapshots are made again beside them (snapshot_copies.cc). It is refused as a whole where one of them is the last of its kind.
//
//   pool.mend     From here on the host detaches what was given up, and then takes the disk out of the volume group, with all that had
//                 a part on it; a thin pool that had is made anew. All pools of the volume group take nothing new, and what is to be
//                 removed there waits: LVM changes nothing else in a group that lacks a disk.
//   pool.mended   It has, and has put the new disk in. What was to be removed is found to be gone, which frees the host for new replicas.
//
// The host does it as long as the log says so (host/pools.cc): neither a daemon nor a host that dies meanwhile leaves anything half done.
#include "lockstepd/cluster/internal.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

bool in_group(const State &state, const std::string &pool, HostId host, const std::string &vg)
{
	const Pool *p = state.pool(pool, host);
	return p && p->vg == vg;
}

// false: there is nothing of it to lose.
bool lose_replica(State &state, uint32_t vid, HostId host, const std::string &vg)
{
	const Volume *v = state.volume(vid);
	const Replica *r = v ? v->replica(host) : nullptr;
	if (!r || v->phase == Phase::deleting || !in_group(state, r->pool, host, vg))
		return false;
	const std::string its = "volume " + v->name + ": its replica on host " + state.host_name(host);
	if (v->phase == Phase::creating)
		refuse(forbidden("volume " + v->name + " is being created on that disk: try again in a moment"));
	if (state.snapshot_in_progress(vid))
		refuse(forbidden("a snapshot of volume " + v->name + " is being taken: try again in a moment"));
	if (std::none_of(v->replicas.begin(), v->replicas.end(), [&](const Replica &x) { return x.host != host && x.clean(); }))
		refuse(forbidden(its + " is on that disk and no other one is in sync: bring the disk back, wait until another is in sync, or delete "
				 "the volume"));
	if (v->primary == host)
		refuse(forbidden(its + " serves it still: run `lockstep primary " + v->name + " HOST` with another host first"));
	Volume next = *v;
	next.version++;
	move_to_remnants(next, host);
	replace(state, std::move(next));
	return true;
}

bool lose_copy(State &state, uint32_t sid, HostId host, const std::string &vg)
{
	auto it = state.snapshots.find(sid);
	if (it == state.snapshots.end() || it->second.phase != SnapshotPhase::ready)
		return false;
	Snapshot &s = it->second;
	const SnapshotCopy *c = s.trace(host);
	if (!c || !in_group(state, c->pool, host, vg))
		return false;
	if (std::any_of(s.arriving.begin(), s.arriving.end(), [&](const SnapshotCopy &x) { return x.host == host; })) {
		take_from(s.arriving, host, s.going);
		return true;
	}
	if (!s.copy(host))
		return false;
	if (s.copies.size() == 1)
		refuse(forbidden(title(s) + " has its only copy on that disk of host " + state.host_name(host) + ": delete it, or bring the disk back"));
	if (in_use(state, s, host))
		refuse(forbidden(title(s) + ": a volume is being made from it on host " + state.host_name(host) + ": try again in a moment"));
	take_from(s.copies, host, s.going);
	return true;
}

std::string disk_path(const Fields &f)
{
	const std::string path = f.has("by") ? f.text("by", MAX_DISK_PATH) : "";
	if (!path.empty() && !path.starts_with("/dev/"))
		refuse(usage_error("\"" + path + "\" is no disk"));
	return path;
}

}    // namespace

std::map<std::string, std::string> pool_disks(const Fields &f)
{
	std::map<std::string, std::string> disks;
	const json &given = f.raw("disks");
	if (!given.is_object() || given.size() > MAX_POOL_DISKS)
		refuse(usage_error("the field \"disks\" is not an object of at most " + std::to_string(MAX_POOL_DISKS) + " disks"));
	const Fields each = f.object("disks");
	for (const auto &[uuid, path] : given.items()) {
		if (uuid.empty() || uuid.size() > 64)
			refuse(usage_error("\"" + uuid.substr(0, 64) + "\" is no UUID of a disk"));
		disks[uuid] = each.text(uuid.c_str(), MAX_DISK_PATH);
	}
	return disks;
}

json pool_mend(State &state, const Fields &f)
{
	const HostId host = host_of(state, f).id;
	const std::string name = f.name("name"), disk = f.text("disk", 64), by = disk_path(f);
	const std::vector<uint64_t> vids = f.has("replicas") ? f.numbers("replicas", 1'000'000) : std::vector<uint64_t>();
	const std::vector<uint64_t> sids = f.has("copies") ? f.numbers("copies", 1'000'000) : std::vector<uint64_t>();
	const Pool known = pool_of(state, host, name);
	if (disk.empty())
		refuse(usage_error("the field \"disk\" is empty"));
	if (known.deleting)
		refuse(forbidden("pool " + name + " on host " + state.host_name(host) + " is being deleted"));
	if (!known.mending.empty() && known.mending != disk)
		refuse(forbidden("pool " + name + " on host " + state.host_name(host) + " is just getting rid of another disk, " + known.mending +
				 ": wait until it has, see `lockstep disk list`"));
	State next = state;
	uint64_t replicas = 0, copies = 0;
	for (uint64_t vid : vids)
		replicas += vid <= UINT32_MAX && lose_replica(next, uint32_t(vid), host, known.vg);
	for (uint64_t sid : sids)
		copies += sid <= UINT32_MAX && lose_copy(next, uint32_t(sid), host, known.vg);
	bool changed = replicas + copies > 0;
	for (auto &[key, pool] : next.pools)
		if (pool.host == host && pool.vg == known.vg && !pool.deleting) {
			changed = changed || pool.mending != disk || pool.mending_by != by;
			pool.mending = disk;
			pool.mending_by = by;
		}
	state = std::move(next);
	json answer = done(changed);
	answer["replicas"] = replicas;
	answer["copies"] = copies;
	return answer;
}

json pool_mended(State &state, const Fields &f)
{
	Pool &pool = pool_of(state, host_of(state, f).id, f.name("name"));
	const std::string disk = f.text("disk", 64);
	if (pool.mending.empty() || pool.mending != disk)
		return done(false);
	pool.mending.clear();
	pool.mending_by.clear();
	pool.disks.erase(disk);
	return done();
}

}    // namespace lockstep::cluster
