// SPDX-License-Identifier: GPL-2.0-or-later
//
// See disks.h.
#include "lockstepd/host/disks.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include <fmt/format.h>

#include "lib/units.h"

namespace lockstep {

using Json = nlohmann::json;

namespace {

// Bytes of a disk that nobody uses.
Result<uint64_t> free_disk_bytes(const std::string &disk)
{
	const int fd = open(disk.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? not_found(fmt::format("there is no disk {}", disk))
		     : errno == EBUSY  ? forbidden(fmt::format("{} is in use: mounted, or part of something else", disk))
				       : failed(fmt::format("cannot open {}: {}", disk, strerror(errno)));
	struct stat st;
	uint64_t bytes = 0;
	const bool block = fstat(fd, &st) == 0 && S_ISBLK(st.st_mode);
	const int error = block && ioctl(fd, BLKGETSIZE64, &bytes) != 0 ? errno : 0;
	close(fd);
	if (!block)
		return usage_error(fmt::format("{} is no disk", disk));
	if (error)
		return failed(fmt::format("cannot read the size of {}: {}", disk, strerror(error)));
	return bytes;
}

const Pool *pool_of(const std::vector<Pool> &pools, const LvmReport &report, const std::string &name, const std::string &remove)
{
	for (const Pool &p : pools)
		if (name.empty() ? report.disk(p.vg, remove) != nullptr : p.name == name)
			return &p;
	return nullptr;
}

// ---- a disk that is dead ----

struct MissingDisk {
	const Pool *pool = nullptr;
	std::string uuid, name;        // name: as it is listed and asked for
	uint64_t size_bytes = 0, used_bytes = 0;
};

// The path where it was last seen, unless another device has that now; else LVM's UUID.
std::string missing_name(const Pool &pool, const std::string &uuid)
{
	auto known = pool.disks.find(uuid);
	struct stat st;
	return known == pool.disks.end() || stat(known->second.c_str(), &st) == 0 ? uuid : known->second;
}

// Those that LVM misses, and those of groups that are gone as a whole or forget the disk just now.
std::vector<MissingDisk> missing_disks(const LvmReport &report, const std::vector<Pool> &pools)
{
	std::vector<MissingDisk> list;
	for (const PhysicalVolume &d : report.disks) {
		const auto pool = std::find_if(pools.begin(), pools.end(), [&](const Pool &p) { return p.vg == d.vg; });
		if (pool != pools.end() && d.missing)
			list.push_back({&*pool, d.uuid, d.disk.starts_with("/") ? d.disk : missing_name(*pool, d.uuid), d.size_bytes, d.used_bytes});
	}
	for (const Pool &p : pools)
		for (const auto &[uuid, path] : p.disks) {
			const bool listed = std::ranges::any_of(list, [&](const MissingDisk &m) { return m.uuid == uuid; });
			if (!listed && (!report.group(p.vg) || p.mending == uuid))
				list.push_back({&p, uuid, missing_name(p, uuid), 0, 0});
		}
	return list;
}

std::vector<Pool> pools_of(const State &state, HostId self)
{
	std::vector<Pool> pools;
	for (const auto &[key, pool] : state.pools)
		if (pool.host == self)
			pools.push_back(pool);
	return pools;
}

// Is the logical volume of that name lost? One that is not there at all is, too.
struct Lost {
	const LvmReport &report;
	std::string vg;
	std::set<std::string> names;
	bool group_gone = false;

	Lost(const LvmReport &r, const std::vector<Pool> &pools, const std::string &group) : report(r), vg(group), group_gone(!r.group(group))
	{
		for (const Pool &p : pools)
			if (p.vg == vg) {
				const auto of_pool = lost_volumes(report, vg, p.thin_lv);
				if (names.empty())
					names.insert(of_pool.begin(), of_pool.end());
				names.erase(p.thin_lv);
			}
	}
	bool is(const std::string &name) const { return group_gone || names.contains(name) || !report.volume(vg, name); }
};

// The entry that gives up what is on the disk. Refused if anything is that is none of ours: it would go with it.
Result<Json> mend_entry(const State &state, HostId self, const LvmReport &report, const MissingDisk &disk, const std::string &by)
{
	const Lost lost(report, pools_of(state, self), disk.pool->vg);
	const LvmNames ours = lvm_names(state, self, disk.pool->vg);
	for (const std::string &name : lost.names)
		if (!ours.wanted.contains(name) && !ours.expendable.contains(name))
			return forbidden(fmt::format("logical volume {}/{} has something on {} and does not belong to the cluster: it would be lost with it; "
						     "remove it first", disk.pool->vg, name, disk.name));
	Json entry = {{"op", "pool.mend"}, {"name", disk.pool->name}, {"host", self}, {"disk", disk.uuid}};
	if (!by.empty())
		entry["by"] = by;
	for (const auto &[name, object] : ours.wanted)
		if (lost.is(name))
			entry[object.snapshot ? "copies" : "replicas"].push_back(object.id);
	return entry;
}

// Is there room for what is on the disk that leaves, on the others?
Done has_room(const LvmReport &report, const VolumeGroup &group, const PhysicalVolume &leaving, uint64_t added_bytes)
{
	uint64_t room = added_bytes / group.extent_bytes * group.extent_bytes;
	size_t others = added_bytes > 0;
	for (const PhysicalVolume &d : report.disks) {
		if (d.vg != group.name || d.disk == leaving.disk || d.leaving || d.missing)
			continue;
		room += d.size_bytes - d.used_bytes;
		others++;
	}
	if (!others)
		return forbidden(fmt::format("{} is the only disk of volume group {}: add another first, or use `lockstep disk replace`", leaving.disk, group.name));
	if (room < leaving.used_bytes)
		return forbidden(fmt::format("{} holds {}, the other disks of volume group {} have room for {}", leaving.disk,
					     format_bytes(leaving.used_bytes), group.name, format_bytes(room)));
	return Nothing{};
}

}    // namespace

LvmNames lvm_names(const State &state, HostId self, const std::string &vg)
{
	LvmNames names;
	auto in_group = [&](const std::string &pool_name) {
		const Pool *pool = state.pool(pool_name, self);
		return pool && pool->vg == vg;
	};
	for (const auto &[vid, v] : state.volumes) {
		const std::string name = replica_lv_name(vid);
		if (const Replica *r = v.replica(self); r && in_group(r->pool) && v.phase != Phase::deleting)
			names.wanted[name] = {false, vid};
		else if (const Remnant *left = v.remnant(self); (r && in_group(r->pool)) || (left && in_group(left->pool)))
			names.expendable.insert(name);
	}
	for (const auto &[sid, s] : state.snapshots) {
		const SnapshotCopy *c = s.trace(self);
		const Pool *pool = c ? state.pool(c->pool, self) : nullptr;
		if (!pool || pool->vg != vg)
			continue;
		const std::string name = snapshot_lv_name({vg, pool->kind == PoolKind::thin, s.vid, sid, s.attempt, s.uuid, s.reserve_bytes});
		const bool going = std::ranges::any_of(s.going, [&](const SnapshotCopy &x) { return x.host == self; });
		if (going || s.phase == SnapshotPhase::deleting || s.phase == SnapshotPhase::discarding)
			names.expendable.insert(name);
		else
			names.wanted[name] = {true, sid};
	}
	return names;
}

Result<Json> list_disks(const Lvm &lvm, const std::vector<Pool> &pools, const std::map<std::string, double> &percent)
{
	auto report = lvm.report_all();
	if (!report)
		return report.error();
	Json list = Json::array();
	auto add = [&](const Pool &pool, const PhysicalVolume &d) {
		const auto moved = percent.find(d.disk);
		list.push_back({{"pool", pool.name}, {"vg", pool.vg}, {"disk", d.disk}, {"uuid", d.uuid}, {"size_bytes", d.size_bytes},
				{"used_bytes", d.used_bytes}, {"missing", d.missing}, {"leaving", d.leaving},
				{"percent", d.leaving && moved != percent.end() ? moved->second : 0.0}});
	};
	for (const PhysicalVolume &d : report->disks) {
		const auto pool = std::find_if(pools.begin(), pools.end(), [&](const Pool &p) { return p.vg == d.vg; });
		if (pool != pools.end() && !d.missing)
			add(*pool, d);
	}
	for (const MissingDisk &m : missing_disks(*report, pools))
		add(*m.pool, {.vg = m.pool->vg, .disk = m.name, .size_bytes = m.size_bytes, .used_bytes = m.used_bytes, .missing = true,
			      .leaving = m.pool->mending == m.uuid, .uuid = m.uuid});
	std::sort(list.begin(), list.end(), [](const Json &a, const Json &b) { return a["disk"] < b["disk"]; });
	return list;
}

namespace {

// A disk that is dead is not emptied: what was on it is given up. The answer has the entry that says so, for whoever asked to propose.
Result<Json> replace_missing(const LvmReport &report, const State &state, HostId self, const MissingDisk &disk, const std::string &add)
{
	const std::string &vg = disk.pool->vg;
	const VolumeGroup *group = report.group(vg);
	if (add.empty() && std::ranges::none_of(report.disks, [&](const PhysicalVolume &d) { return d.vg == vg && !d.missing; }))
		return forbidden(fmt::format("{} is the only disk of volume group {}: put another in its place with `lockstep disk replace`", disk.name, vg));
	if (!add.empty() && !report.disk(vg, add)) {
		auto free = free_disk_bytes(add);
		if (!free)
			return free.error();
		const uint64_t extent = group && group->extent_bytes ? group->extent_bytes : 4 << 20;
		if (*free < 2 * extent)
			return usage_error(fmt::format("{} has only {}", add, format_bytes(*free)));
	}
	auto entry = mend_entry(state, self, report, disk, add);
	if (!entry)
		return entry.error();
	return Json{{"pool", disk.pool->name}, {"vg", vg}, {"add", add}, {"remove", disk.name}, {"changed", true}, {"mend", *entry}};
}

}    // namespace

Result<Json> change_disks(const Lvm &lvm, const State &state, HostId self, const std::string &name, std::string add, std::string remove)
{
	const std::string host = state.host_name(self);
	const std::vector<Pool> pools = pools_of(state, self);
	auto here = [&](const Error &e) { return Error{e.status, fmt::format("host {}: {}", host, e.message), e.code}; };
	auto report = lvm.report_all();
	if (!report)
		return here(report.error());
	for (const MissingDisk &m : missing_disks(*report, pools)) {
		if (remove.empty() || (m.name != remove && m.uuid != remove) || (!name.empty() && m.pool->name != name))
			continue;
		auto answer = replace_missing(*report, state, self, m, add.empty() ? add : known_disk_name(*report, add));
		return answer ? answer : here(answer.error());
	}
	add = known_disk_name(*report, add);
	remove = known_disk_name(*report, remove);
	const Pool *pool = pool_of(pools, *report, name, remove);
	const VolumeGroup *group = pool ? report->group(pool->vg) : nullptr;
	if (!pool)
		return name.empty() ? not_found(fmt::format("{} belongs to no pool of host {}: see `lockstep disk list`", remove, host))
				    : not_found(fmt::format("host {} has no pool {}", host, name));
	if (!group || !group->extent_bytes)
		return here(not_found(fmt::format("there is no volume group {}", pool->vg)));
	if (pool->deleting)
		return here(forbidden(fmt::format("pool {} is being deleted", pool->name)));
	const PhysicalVolume *leaving = remove.empty() ? nullptr : report->disk(pool->vg, remove);
	const PhysicalVolume *added = add.empty() ? nullptr : report->disk(pool->vg, add);
	// A daemon that died may have left the thin pool without it.
	const bool unused = added && !pool->thin_lv.empty() && !added->used_bytes && !added->leaving && !group->growing &&
			    group->grows_after.empty();
	bool changed = false;
	uint64_t bytes = 0;
	if (!remove.empty() && !leaving)
		return here(not_found(fmt::format("{} is no disk of pool {}: see `lockstep disk list`", remove, pool->name)));
	if (!add.empty() && !added) {
		auto free = free_disk_bytes(add);
		if (!free)
			return here(free.error());
		bytes = *free;
		if (bytes < 2 * group->extent_bytes)
			return here(usage_error(fmt::format("{} has only {}", add, format_bytes(bytes))));
		bytes -= group->extent_bytes;    // what LVM keeps for itself
	}
	if (leaving && !leaving->leaving)
		if (Done room = has_room(*report, *group, *leaving, bytes); !room)
			return here(room.error());
	if (!add.empty() && (!added || unused)) {
		if (Done done = lvm.add_disk(pool->vg, add, !pool->thin_lv.empty(), leaving ? leaving->uuid : ""); !done)
			return here(done.error());
		changed = true;
	}
	if (leaving && !leaving->leaving) {
		if (Done done = lvm.leave_disk(pool->vg, remove); !done)
			return here(done.error());
		changed = true;
	}
	return Json{{"pool", pool->name}, {"vg", pool->vg}, {"add", add}, {"remove", remove}, {"changed", changed}};
}

Done pool_at_rest(const Lvm &lvm, const State &state, HostId self, const std::string &name)
{
	const Pool *pool = state.pool(name, self);
	const std::string its = fmt::format("pool {} on host {}", name, state.host_name(self));
	if (!pool)
		return coded("no-such-pool", not_found(fmt::format("host {} has no pool named {}", state.host_name(self), name)));
	auto report = lvm.report(pool->vg);
	if (!report && report.error().status == Status::not_found)
		return Nothing{};    // it went with its disks
	if (!report)
		return Error{report.error().status, fmt::format("{}: {}", its, report.error().message), report.error().code};
	for (const PhysicalVolume &d : report->disks)
		if (d.vg == pool->vg && d.leaving)
			return coded("pool-in-use", forbidden(fmt::format("{}: {} is just being emptied: wait until it is out, see `lockstep disk list`", its, d.disk)));
	const VolumeGroup *group = report->group(pool->vg);
	if (group && group->growing && !pool->thin_lv.empty())
		return coded("pool-in-use", forbidden(its + " is just growing into a new disk: try again in a moment"));
	return Nothing{};
}

}    // namespace lockstep
