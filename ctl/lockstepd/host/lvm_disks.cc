// SPDX-License-Identifier: GPL-2.0-or-later
//
// Disks that come into a volume group and leave it, while it is in use.
//
// What is wanted stands where it matters: as tags in LVM's own metadata on the disks themselves. A disk with LEAVING_TAG is emptied by
// whatever daemon finds it, after a restart of the daemon or of the host as before: LVM moves in the background, keeps its
// place, and a disk that is empty leaves the group. So there is no list of steps that could be half done. What is left to do on a disk
// that is out, and so has no tag any more, stands in the group; that a pool is to grow stands there before the new disk is in, with the UUID
// that this one will have, and counts for nothing until then.
//
// LVM is never told --yes where that would mean to wipe: it refuses disks that are in use, partitioned or carry a signature.
#include "lockstepd/host/lvm.h"

#include <sys/random.h>

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace lockstep {

namespace {

constexpr uint64_t METADATA_BYTES_PER_CHUNK = 128;    // as scripts/install has it

Done lvm_run(std::vector<std::string> args, const std::string &what)
{
	auto out = run_lvm(std::move(args), what);
	if (!out)
		return out.error();
	return Nothing{};
}

Result<LvmReport> report_of(const std::string &vg) { return lvm_tools().report(vg); }

// As LVM writes them: 32 letters and digits in seven parts.
Result<std::string> new_disk_uuid()
{
	constexpr std::string_view DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
	std::array<uint8_t, 32> random;
	if (getrandom(random.data(), random.size(), 0) != ssize_t(random.size()))
		return failed("the kernel gives no random bytes");
	std::string uuid;
	for (size_t i = 0; i < random.size(); i++) {
		if (i >= 6 && i <= 26 && (i - 6) % 4 == 0)
			uuid += '-';
		uuid += DIGITS[random[i] % DIGITS.size()];
	}
	return uuid;
}

// The group's thin pool is told first what it will grow into, so that a daemon that dies in between leaves no disk that nothing uses.
Done bring_disk(const std::string &vg, const std::string &disk, const VolumeGroup *group, const std::string &what)
{
	auto uuid = new_disk_uuid();
	if (!uuid)
		return uuid.error();
	const std::string mark = GROWING_INTO_TAG + *uuid;
	std::vector<std::string> marking = {"vgchange", "--addtag", mark};
	for (const std::string &never_came : group ? group->grows_into : std::vector<std::string>())
		marking.insert(marking.end(), {"--deltag", GROWING_INTO_TAG + never_came});
	marking.push_back(vg);
	if (Done marked = lvm_run(marking, what); !marked)
		return marked;
	for (const std::vector<std::string> &step : {std::vector<std::string>{"pvcreate", "--metadatasize", fmt::format("{}b", RECORD_BYTES), "--uuid", *uuid,
									      "--norestorefile", disk}, {"vgextend", vg, disk}})
		if (Done done = lvm_run(step, what); !done) {
			(void)lvm_run({"vgchange", "--deltag", mark, vg}, what);    // if that fails, too, nothing comes of it
			return done;
		}
	return Nothing{};
}

Done add_disk(const std::string &vg, const std::string &disk, bool grow, const std::string &after)
{
	auto report = report_of(vg);
	if (!report)
		return report.error();
	const PhysicalVolume *there = report->disk(vg, disk);
	if (there && (!grow || there->used_bytes || there->leaving))
		return Nothing{};
	const std::string what = fmt::format("cannot add {} to volume group {}", disk, vg);
	if (!there && grow && after.empty())
		return bring_disk(vg, disk, report->group(vg), what);
	if (!there)
		if (Done added = lvm_run({"vgextend", "--metadatasize", fmt::format("{}b", RECORD_BYTES), vg, disk}, what); !added)
			return added;
	return grow ? lvm_run({"vgchange", "--addtag", after.empty() ? GROWING_TAG : GROWING_AFTER_TAG + after, vg}, what) : Done(Nothing{});
}

// That the group's thin pool is to grow, at once or later. into: the disks that it has grown into; others come just now, perhaps.
Done forget_growing(const std::string &vg, const VolumeGroup &group, const std::vector<std::string> &into, const std::string &what)
{
	std::vector<std::string> args = {"vgchange"};
	if (group.growing)
		args.insert(args.end(), {"--deltag", GROWING_TAG});
	for (const auto &[mark, uuids] : {std::pair(GROWING_AFTER_TAG, &group.grows_after), std::pair(GROWING_INTO_TAG, &into)})
		for (const std::string &uuid : *uuids)
			args.insert(args.end(), {"--deltag", mark + uuid});
	if (args.size() == 1)
		return Nothing{};
	args.push_back(vg);
	return lvm_run(args, what);
}

Done leave_disk(const std::string &vg, const std::string &disk)
{
	const std::string what = fmt::format("cannot take {} out of volume group {}", disk, vg);
	if (Done tagged = lvm_run({"pvchange", "--addtag", LEAVING_TAG, disk}, what); !tagged)
		return tagged;
	return lvm_run({"pvchange", "--allocatable", "n", disk}, what);
}

// Percent of what LVM is moving in the group; -1: nothing.
Result<double> moving(const std::string &vg)
{
	auto out = run_lvm({"lvs", "--all", "--reportformat", "json", "-o", "lv_name,copy_percent", vg}, fmt::format("cannot inspect volume group {}", vg));
	if (!out)
		return out.error();
	try {
		const nlohmann::json parsed = nlohmann::json::parse(*out);
		for (const auto &part : parsed.at("report"))
			for (const auto &row : part.at("lv"))
				if (const std::string name = row.at("lv_name"); name.find("pvmove") != std::string::npos) {
					const std::string percent = row.at("copy_percent");
					return percent.empty() ? 0 : std::stod(percent);
				}
	} catch (const std::exception &e) {
		return failed(fmt::format("LVM's report of volume group {} is not understood: {}", vg, e.what()));
	}
	return -1.0;
}

// Its label is taken off by UUID: another disk may have its path by then. Whoever has made something else of it keeps it.
Result<std::string> clear_label(const std::string &vg, const std::string &uuid)
{
	const std::string what = fmt::format("cannot take LVM's label off disk {}, which is out of volume group {}", uuid, vg);
	auto out = run_lvm({"pvs", "--reportformat", "json", "-o", "pv_name,pv_uuid,vg_name"}, what);
	if (!out)
		return out.error();
	std::string labelled;
	try {
		const nlohmann::json parsed = nlohmann::json::parse(*out);
		for (const auto &part : parsed.at("report"))
			for (const auto &row : part.at("pv"))
				if (row.at("pv_uuid") == uuid && row.at("vg_name") == "")
					labelled = row.at("pv_name");
	} catch (const std::exception &e) {
		return failed(fmt::format("LVM's report of its disks is not understood: {}", e.what()));
	}
	if (!labelled.empty())
		if (Done removed = lvm_run({"pvremove", labelled}, fmt::format("{} is out of volume group {}, but LVM's label on it stays", labelled, vg)); !removed)
			return removed.error();
	if (Done untagged = lvm_run({"vgchange", "--deltag", DEPARTED_TAG + uuid, vg}, what); !untagged)
		return untagged.error();
	return labelled;
}

Result<DiskMove> drain_disk(const std::string &vg, const std::string &disk, double last)
{
	auto report = report_of(vg);
	if (!report)
		return report.error();
	const PhysicalVolume *pv = report->disk(vg, disk);
	if (!pv)
		return DiskMove{.gone = true};
	if (pv->missing)
		return failed(fmt::format("disk {} of volume group {} is missing: what is on it cannot be moved", disk, vg));
	const std::string what = fmt::format("cannot take {} out of volume group {}", disk, vg);
	if (!pv->used_bytes) {
		for (const std::vector<std::string> &step : {std::vector<std::string>{"vgchange", "--addtag", DEPARTED_TAG + pv->uuid, vg}, {"vgreduce", vg, disk}})
			if (Done done = lvm_run(step, what); !done)
				return done.error();
		if (auto cleared = clear_label(vg, pv->uuid); !cleared)
			return cleared.error();
		return DiskMove{.gone = true};
	}
	auto percent = moving(vg);
	if (!percent)
		return percent.error();
	const std::string move = fmt::format("cannot move what is on {} to other disks of volume group {}", disk, vg);
	// A move whose process was killed, or that a reboot broke off, goes on from where it was.
	Done going = *percent < 0 ? lvm_run({"pvmove", "--background", disk}, move)
		   : *percent == last ? lvm_run({"pvmove", "--background"}, move) : Done(Nothing{});
	if (!going)
		return going.error();
	return DiskMove{.percent = std::max(*percent, 0.0)};
}

Done grow_data(const std::string &vg, const std::string &thin_pool, uint64_t bytes)
{
	const std::string what = fmt::format("thin pool {}/{} cannot grow into its new disk", vg, thin_pool);
	if (bytes)
		if (Done grown = lvm_run({"lvextend", "--yes", "--size", fmt::format("+{}b", bytes), vg + "/" + thin_pool}, what); !grown)
			return grown;
	auto report = report_of(vg);
	if (!report)
		return report.error();
	const VolumeGroup *group = report->group(vg);
	if (!group)
		return failed(fmt::format("{}: the volume group is gone", what));
	std::vector<std::string> into;
	for (const std::string &uuid : group->grows_into)
		if (std::ranges::any_of(report->disks, [&](const PhysicalVolume &d) { return d.vg == vg && d.uuid == uuid; }))
			into.push_back(uuid);
	return forget_growing(vg, *group, into, what);
}

Done let_go(const std::string &vg)
{
	auto report = report_of(vg);
	if (!report)
		return report.error().status == Status::not_found ? Done(Nothing{}) : report.error();
	const VolumeGroup *group = report->group(vg);
	if (!group || group->incomplete)
		return Nothing{};
	const std::string what = fmt::format("cannot let go of volume group {}", vg);
	for (const PhysicalVolume &d : report->disks) {
		if (d.vg != vg || !d.leaving)
			continue;
		if (Done allowed = lvm_run({"pvchange", "--allocatable", "y", d.disk}, what); !allowed)
			return allowed;
		if (Done untagged = lvm_run({"pvchange", "--deltag", LEAVING_TAG, d.disk}, what); !untagged)
			return untagged;
	}
	for (const std::string &uuid : group->departed)
		if (auto cleared = clear_label(vg, uuid); !cleared)
			return cleared.error();
	return forget_growing(vg, *group, group->grows_into, what);
}

}    // namespace

// What is left free is what scripts/install leaves: metadata for a pool of this size, its spare, and as much again.
uint64_t data_growth(const LvmReport &report, const std::string &vg, const std::string &thin_pool)
{
	const VolumeGroup *group = report.group(vg);
	const LogicalVolume *pool = thin_pool.empty() ? nullptr : report.volume(vg, thin_pool);
	if (!group || !pool || !group->extent_bytes || !pool->chunk_bytes)
		return 0;
	const uint64_t wanted = group->size_bytes / pool->chunk_bytes * METADATA_BYTES_PER_CHUNK;
	const uint64_t there = pool->metadata_bytes;
	const uint64_t reserve = wanted > there ? 3 * wanted - 2 * there : there;
	return group->free_bytes > reserve ? (group->free_bytes - reserve) / group->extent_bytes * group->extent_bytes : 0;
}

void add_disk_tools(Lvm &lvm)
{
	lvm.add_disk = add_disk;
	lvm.leave_disk = leave_disk;
	lvm.drain_disk = drain_disk;
	lvm.clear_label = clear_label;
	lvm.grow_data = grow_data;
	lvm.let_go = let_go;
}

}    // namespace lockstep
