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

#include <fmt/format.h>

#include "lib/units.h"

namespace lockstep {

using Json = nlohmann::json;

namespace {

// The name that LVM has for a disk, which may be another one (/dev/mapper/..., a link) for the same device. What LVM does not know keeps its.
std::string lvm_name(const LvmReport &report, const std::string &disk)
{
	struct stat asked, known;
	if (stat(disk.c_str(), &asked) == 0 && S_ISBLK(asked.st_mode))
		for (const PhysicalVolume &d : report.disks)
			if (stat(d.disk.c_str(), &known) == 0 && S_ISBLK(known.st_mode) && known.st_rdev == asked.st_rdev)
				return d.disk;
	return disk;
}

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

Result<Json> list_disks(const Lvm &lvm, const std::vector<Pool> &pools, const std::map<std::string, double> &percent)
{
	auto report = lvm.report_all();
	if (!report)
		return report.error();
	Json list = Json::array();
	std::sort(report->disks.begin(), report->disks.end(), [](const auto &a, const auto &b) { return a.disk < b.disk; });
	for (const PhysicalVolume &d : report->disks) {
		const auto pool = std::find_if(pools.begin(), pools.end(), [&](const Pool &p) { return p.vg == d.vg; });
		const auto moved = percent.find(d.disk);
		if (pool != pools.end())
			list.push_back({{"pool", pool->name}, {"vg", d.vg}, {"disk", d.disk}, {"size_bytes", d.size_bytes},
					{"used_bytes", d.used_bytes}, {"missing", d.missing}, {"leaving", d.leaving},
					{"percent", d.leaving && moved != percent.end() ? moved->second : 0.0}});
	}
	return list;
}

Result<Json> change_disks(const Lvm &lvm, const std::vector<Pool> &pools, const std::string &host, const std::string &name, std::string add,
			  std::string remove)
{
	auto here = [&](const Error &e) { return Error{e.status, fmt::format("host {}: {}", host, e.message), e.code}; };
	auto report = lvm.report_all();
	if (!report)
		return here(report.error());
	add = lvm_name(*report, add);
	remove = lvm_name(*report, remove);
	const Pool *pool = pool_of(pools, *report, name, remove);
	const VolumeGroup *group = pool ? report->group(pool->vg) : nullptr;
	if (!pool)
		return name.empty() ? not_found(fmt::format("{} belongs to no pool of host {}: see `lockstep disk list`", remove, host))
				    : not_found(fmt::format("host {} has no pool {}", host, name));
	if (!group || !group->extent_bytes)
		return here(not_found(fmt::format("there is no volume group {}", pool->vg)));
	const PhysicalVolume *leaving = remove.empty() ? nullptr : report->disk(pool->vg, remove);
	const bool added = !add.empty() && report->disk(pool->vg, add);
	bool changed = false;
	uint64_t bytes = 0;
	if (!remove.empty() && !leaving)
		return here(not_found(fmt::format("{} is no disk of pool {}: see `lockstep disk list`", remove, pool->name)));
	if (leaving && leaving->missing)
		return here(forbidden(fmt::format("{} is missing: what is on it cannot be moved away", remove)));
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
	if (!add.empty() && !added) {
		if (Done done = lvm.add_disk(pool->vg, add, !pool->thin_lv.empty()); !done)
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

}    // namespace lockstep
