// SPDX-License-Identifier: GPL-2.0-or-later
//
// A volume group gets rid of a disk that is dead (cluster/mend.cc): LVM forgets the disk and every logical volume that had something on
// it. That cannot be taken back, so it only happens to what the log has given up, and while nobody has it open.
//
// If it was the group's only disk, LVM knows no group any more, but the kernel still has its devices. They go first, or new ones could
// not have their names; then the group is made again on the new disk.
#include "lockstepd/host/lvm.h"

#include <sys/stat.h>

#include <algorithm>
#include <sstream>

#include <fmt/format.h>

#include "lib/units.h"
#include "lockstepd/host/command.h"

namespace lockstep {

namespace {

constexpr uint64_t POOL_EXTENT_BYTES = 4 << 20;                           // as scripts/install has them
constexpr uint64_t POOL_CHUNK_BYTES = 64 << 10, CHUNK_GROWS_AT = 4ull << 40;
constexpr uint64_t CHUNK_METADATA_BYTES = 128;
constexpr const char *INSTALL_TAG = "lockstep";

Done mend_run(std::vector<std::string> args, const std::string &what)
{
	auto out = run_lvm(std::move(args), what);
	if (!out)
		return out.error();
	return Nothing{};
}

// What the kernel has left of a group that LVM does not know any more. Layers go from top to bottom, so there are several rounds.
Result<bool> remove_devices(const std::string &vg)
{
	const std::string what = fmt::format("cannot remove what the kernel still has of volume group {}", vg);
	for (;;) {
		auto listed = run_command({"dmsetup", "info", "-c", "--noheadings", "--separator", " ", "-o", "name,open,uuid"}, LVM_TIMEOUT_MS);
		if (!listed || listed->exit_status)
			return failed(fmt::format("{}: {}", what, listed ? listed->err : listed.error().message));
		const std::vector<std::string> names = group_devices(vg, listed->out);
		bool removed = false;
		if (names.empty())
			return true;
		for (const std::string &name : names) {
			auto done = run_command({"dmsetup", "remove", name}, LVM_TIMEOUT_MS);
			removed = removed || (done && !done->exit_status);
		}
		if (!removed)
			return false;
	}
}

Done make_thin_pool(const LvmReport &report, const std::string &vg, const std::string &thin_pool)
{
	const VolumeGroup *group = report.group(vg);
	const uint64_t extent = group ? group->extent_bytes : 0;
	const ThinPoolPlan plan = plan_thin_pool(group ? group->free_bytes : 0, extent);
	if (!plan.data_bytes)
		return failed(fmt::format("volume group {} has no room for its thin pool {}: {} are free", vg, thin_pool, format_bytes(group ? group->free_bytes : 0)));
	return mend_run({"lvcreate", "--yes", "--type", "thin-pool", "--size", fmt::format("{}b", plan.data_bytes), "--chunksize",
			 fmt::format("{}b", plan.chunk_bytes), "--zero", "y", "--poolmetadatasize", fmt::format("{}b", plan.metadata_bytes), "--addtag",
			 INSTALL_TAG, "--name", thin_pool, vg},
			fmt::format("cannot make thin pool {}/{} anew", vg, thin_pool));
}

// true: the group lacks no disk any more.
Result<bool> drop_missing(const LvmReport &report, const std::string &vg, const std::string &thin_pool, const std::set<std::string> &expendable)
{
	for (const std::string &name : lost_volumes(report, vg, thin_pool)) {
		if (!expendable.contains(name))
			return forbidden(fmt::format("logical volume {}/{} has something on the missing disk and was not given up: say once more that "
						     "the disk is to be replaced", vg, name));
		if (report.volume(vg, name)->open)
			return false;
	}
	if (Done done = mend_run({"vgreduce", "--yes", "--removemissing", "--force", vg}, fmt::format("volume group {} cannot forget its missing disk", vg)); !done)
		return done.error();
	return true;
}

Result<bool> mend(const std::string &vg, const std::string &thin_pool, const std::string &by, const std::set<std::string> &expendable)
{
	const Lvm tools = lvm_tools();
	auto report = tools.report(vg);
	if (!report && report.error().status == Status::not_found) {
		if (by.empty())
			return failed(fmt::format("volume group {} is gone with its only disk: name a new one with `lockstep disk replace`", vg));
		if (auto gone = remove_devices(vg); !gone || !*gone)
			return gone;
		if (Done made = mend_run({"vgcreate", "--physicalextentsize", fmt::format("{}b", POOL_EXTENT_BYTES), "--metadatasize",
					  fmt::format("{}b", RECORD_BYTES), "--addtag", INSTALL_TAG, vg, by},
					 fmt::format("cannot make volume group {} anew on {}", vg, by)); !made)
			return made.error();
		report = tools.report(vg);
	}
	if (!report)
		return report.error();
	if (const VolumeGroup *group = report->group(vg); group && group->incomplete) {
		if (auto dropped = drop_missing(*report, vg, thin_pool, expendable); !dropped || !*dropped)
			return dropped;
		if (report = tools.report(vg); !report)
			return report.error();
	}
	const LogicalVolume *pool = thin_pool.empty() ? nullptr : report->volume(vg, thin_pool);
	// What an lvcreate that was killed leaves: the metadata volume to be, under the pool's name.
	if (pool && !pool->is_thin_pool) {
		if (Done removed = mend_run({"lvremove", "--force", "--force", "--yes", vg + "/" + thin_pool}, fmt::format("cannot remove the rest of {}/{}", vg, thin_pool));
		    !removed)
			return removed.error();
		pool = nullptr;
	}
	const bool anew = !thin_pool.empty() && !pool;
	if (!by.empty()) {
		if (Done added = tools.add_disk(vg, known_disk_name(*report, by), !thin_pool.empty() && !anew, ""); !added)
			return added.error();
		if (report = tools.report(vg); !report)
			return report.error();
	}
	if (anew)
		if (Done made = make_thin_pool(*report, vg, thin_pool); !made)
			return made.error();
	return true;
}

}    // namespace

std::vector<std::string> lost_volumes(const LvmReport &report, const std::string &vg, const std::string &thin_pool)
{
	std::set<std::string> lost;
	for (size_t before = size_t(-1); before != lost.size();) {
		before = lost.size();
		for (const LogicalVolume &lv : report.volumes)
			if (lv.vg == vg && (lv.health == "partial" || lost.contains(lv.pool) || lost.contains(lv.origin)))
				lost.insert(lv.name);
	}
	lost.erase(thin_pool);
	return {lost.begin(), lost.end()};
}

std::string known_disk_name(const LvmReport &report, const std::string &disk)
{
	struct stat asked, known;
	if (stat(disk.c_str(), &asked) == 0 && S_ISBLK(asked.st_mode))
		for (const PhysicalVolume &d : report.disks)
			if (stat(d.disk.c_str(), &known) == 0 && S_ISBLK(known.st_mode) && known.st_rdev == asked.st_rdev)
				return d.disk;
	return disk;
}

// Device mapper's names are "<group>-<volume>", with each "-" inside either written twice.
std::vector<std::string> group_devices(const std::string &vg, const std::string &listed)
{
	std::string prefix;
	for (char c : vg)
		prefix += c == '-' ? "--" : std::string(1, c);
	prefix += '-';
	std::vector<std::string> names;
	std::istringstream lines(listed);
	for (std::string name, open, uuid; lines >> name >> open >> uuid;)
		if (name.starts_with(prefix) && name.size() > prefix.size() && name[prefix.size()] != '-' && uuid.starts_with("LVM-"))
			names.push_back(name);
	return names;
}

ThinPoolPlan plan_thin_pool(uint64_t free_bytes, uint64_t extent_bytes)
{
	ThinPoolPlan plan{.chunk_bytes = POOL_CHUNK_BYTES};
	if (!extent_bytes)
		return plan;
	for (uint64_t limit = CHUNK_GROWS_AT; free_bytes > limit; limit *= 2)
		plan.chunk_bytes *= 2;
	plan.metadata_bytes = (free_bytes / plan.chunk_bytes * CHUNK_METADATA_BYTES / extent_bytes + 1) * extent_bytes;
	if (free_bytes > 3 * plan.metadata_bytes)
		plan.data_bytes = (free_bytes - 3 * plan.metadata_bytes) / extent_bytes * extent_bytes;
	return plan;
}

void add_mend_tools(Lvm &lvm) { lvm.mend = mend; }

}    // namespace lockstep
