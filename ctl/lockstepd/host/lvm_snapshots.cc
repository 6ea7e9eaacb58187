// SPDX-License-Identifier: GPL-2.0-or-later
//
// Snapshots and growth of LVs. A snapshot's LV is named "lockstep.<vid>.s<snapshot id>.<attempt>" and carries the tag
// "lockstep.snapshot=<uuid of the snapshot>". In a thin pool it shares its blocks with the replica and lives on without it; in
// a thick one it is a classic snapshot that keeps what the replica overwrites, in space reserved for it, and goes with it.
//
// A command is tried first and LVM is asked only when it has failed: it is slow to start, and while a snapshot is taken a guest
// waits.
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include <fmt/format.h>

#include "lockstepd/host/diff.h"
#include "lockstepd/host/lvm.h"

namespace lockstep {

std::string snapshot_lv_name(const SnapshotLv &lv) { return fmt::format("{}.s{}.{}", replica_lv_name(lv.vid), lv.sid, lv.attempt); }
std::string snapshot_lv_tag(const std::string &uuid) { return "lockstep.snapshot=" + uuid; }
std::string snapshot_lv_path(const SnapshotLv &lv) { return fmt::format("/dev/{}/{}", lv.vg, snapshot_lv_name(lv)); }

// "mapped highest", in sectors; "Fail" or "Error" of one that is broken.
uint64_t thin_bytes(std::string_view status)
{
	uint64_t sectors = 0;
	const auto [end, error] = std::from_chars(status.data(), status.data() + status.size(), sectors);
	return error == std::errc() && end != status.data() + status.size() && *end == ' ' && sectors < UINT64_MAX / 512 ? sectors * 512 : 0;
}

namespace {

bool has_tag(const LogicalVolume &lv, const std::string &tag) { return std::find(lv.tags.begin(), lv.tags.end(), tag) != lv.tags.end(); }

std::string full_name(const SnapshotLv &lv) { return lv.vg + "/" + snapshot_lv_name(lv); }

Done extend(const Lvm &lvm, const ReplicaLv &lv)
{
	const std::string what = fmt::format("cannot extend logical volume {}", full_name(lv));
	auto report = lvm.report(lv.vg);
	if (!report)
		return report.error();
	const LogicalVolume *found = report->replica(lv);
	if (!found)
		return not_found(fmt::format("{}: it is not there", what));
	if (found->size_bytes >= lv.size_bytes)
		return Nothing{};
	auto extended = run_lvm({"lvextend", "--yes", "--size", fmt::format("{}b", lv.size_bytes), full_name(lv)}, what);
	if (!extended)
		return extended.error();
	return Nothing{};
}

Done snapshot(const Lvm &lvm, const SnapshotLv &lv)
{
	std::vector<std::string> args = {"lvcreate", "--yes", "--snapshot", "--name", snapshot_lv_name(lv), "--addtag", snapshot_lv_tag(lv.uuid)};
	if (!lv.thin)
		args.insert(args.end(), {"--size", fmt::format("{}b", lv.reserve_bytes)});
	args.push_back(fmt::format("{}/{}", lv.vg, replica_lv_name(lv.vid)));
	auto made = run_lvm(args, fmt::format("cannot create logical volume {}", full_name(lv)));
	if (made)
		return Nothing{};
	auto report = lvm.report(lv.vg);
	const LogicalVolume *found = report ? report->volume(lv.vg, snapshot_lv_name(lv)) : nullptr;
	if (found && has_tag(*found, snapshot_lv_tag(lv.uuid)))
		return Nothing{};
	return made.error();
}

uint64_t allocated(const std::string &vg, const std::string &lv)
{
	alignas(dm_ioctl) std::array<char, 4096> buffer = {};
	dm_ioctl *const io = reinterpret_cast<dm_ioctl *>(buffer.data());
	const std::string name = dm_name(vg, lv);
	if (name.size() >= sizeof io->name)
		return 0;
	io->version[0] = DM_VERSION_MAJOR;
	io->data_size = buffer.size();
	io->data_start = sizeof *io;
	io->flags = DM_NOFLUSH_FLAG;
	memcpy(io->name, name.data(), name.size());
	const int fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return 0;
	const int done = ioctl(fd, DM_TABLE_STATUS, io);
	close(fd);
	if (done != 0 || io->flags & DM_BUFFER_FULL_FLAG || io->target_count != 1 || io->data_start + sizeof(dm_target_spec) >= buffer.size())
		return 0;
	const auto *target = reinterpret_cast<const dm_target_spec *>(buffer.data() + io->data_start);
	const char *text = buffer.data() + io->data_start + sizeof *target;
	return strncmp(target->target_type, "thin", sizeof target->target_type) == 0 ? thin_bytes({text, strnlen(text, size_t(&buffer.back() - text))}) : 0;
}

Done remove_snapshot(const Lvm &lvm, const SnapshotLv &lv)
{
	auto removed = run_lvm({"lvremove", "--yes", "--select", fmt::format("lv_tags={{\"{}\"}}", snapshot_lv_tag(lv.uuid)), full_name(lv)},
			       fmt::format("cannot remove logical volume {}", full_name(lv)));
	auto report = lvm.report(lv.vg);
	if (!report)
		return report.error();
	const LogicalVolume *found = report->volume(lv.vg, snapshot_lv_name(lv));
	if (!found || !has_tag(*found, snapshot_lv_tag(lv.uuid)))
		return Nothing{};
	return removed ? failed(fmt::format("logical volume {} is still there after its removal", full_name(lv))) : removed.error();
}

constexpr std::string_view WHOLE_TAG = "lockstep.whole=";    // and where its metadata are

// 0: it is not there, or not whole.
Result<uint64_t> whole_at(const Lvm &lvm, const SnapshotLv &lv)
{
	auto report = lvm.report(lv.vg);
	if (!report)
		return report.error();
	const LogicalVolume *found = report->volume(lv.vg, snapshot_lv_name(lv));
	uint64_t offset = 0;
	for (const std::string &tag : found && has_tag(*found, snapshot_lv_tag(lv.uuid)) ? found->tags : std::vector<std::string>())
		if (tag.starts_with(WHOLE_TAG))
			std::from_chars(tag.data() + WHOLE_TAG.size(), tag.data() + tag.size(), offset);
	return offset;
}

Result<uint64_t> begin_copy(const Lvm &lvm, const SnapshotLv &lv, const OrphanLv &base, const std::string &thin_pool, uint64_t bytes)
{
	auto whole = whole_at(lvm, lv);
	if (!whole || *whole)
		return whole;
	if (Done gone = remove_snapshot(lvm, lv); !gone)
		return gone.error();
	const std::string what = fmt::format("cannot create logical volume {}", full_name(lv));
	std::vector<std::string> args = {"lvcreate", "--yes", "--name", snapshot_lv_name(lv), "--addtag", snapshot_lv_tag(lv.uuid)};
	if (base.name.empty()) {
		args.insert(args.end(), {"--thin", "--virtualsize", fmt::format("{}b", bytes), lv.vg + "/" + thin_pool});
	} else {
		auto report = lvm.report(lv.vg);
		if (!report)
			return report.error();
		const LogicalVolume *found = report->volume(base.vg, base.name);
		if (!found || !has_tag(*found, base.tag))
			return not_found(fmt::format("{}: logical volume {}/{} is not there", what, base.vg, base.name));
		args.push_back("--snapshot");
		if (lv.thin)
			args.insert(args.end(), {"--setactivationskip", "n"});
		else
			args.insert(args.end(), {"--size", fmt::format("{}b", lv.reserve_bytes)});
		args.push_back(base.vg + "/" + base.name);
	}
	auto made = run_lvm(args, what);
	if (!made)
		return made.error();
	return 0;
}

// LVM's tag is what makes it whole: it is there, on the disks, or it is not.
Done end_copy(const SnapshotLv &lv, uint64_t md_offset)
{
	std::vector<std::string> changes;
	if (lv.thin)
		changes.insert(changes.end(), {"--setactivationskip", "y"});
	if (md_offset)
		changes.insert(changes.end(), {"--addtag", fmt::format("{}{}", WHOLE_TAG, md_offset)});
	const std::string what = fmt::format("cannot finish logical volume {}", full_name(lv));
	std::vector<std::string> args = {"lvchange", "--yes"};
	args.insert(args.end(), changes.begin(), changes.end());
	args.push_back(full_name(lv));
	if (!changes.empty())
		if (auto out = run_lvm(args, what); !out)
			return out.error();
	if (lv.thin)
		if (auto out = run_lvm({"lvchange", "--yes", "--activate", "n", full_name(lv)}, what); !out)
			return out.error();
	return Nothing{};
}

std::string content_tag(const std::string &content) { return "lockstep.content=" + content; }

Done clone(const Lvm &lvm, const SnapshotLv &from, const ReplicaLv &to, const std::string &content)
{
	const std::string what = fmt::format("cannot create logical volume {} from {}", full_name(to), full_name(from));
	auto report = lvm.report(to.vg);
	if (!report)
		return report.error();
	const LogicalVolume *known = report->volume(to.vg, replica_lv_name(to.vid));
	const bool same = known && has_tag(*known, replica_lv_tag(to.uuid)) && has_tag(*known, content_tag(content));
	if (known && !same && !has_tag(*known, replica_lv_tag(to.uuid)))
		return forbidden(fmt::format("logical volume {} does not carry the tag {}: it is not ours and is left alone; rename or remove it",
					     full_name(to), replica_lv_tag(to.uuid)));
	if (known && !same && !from.thin)
		return forbidden(fmt::format("{}: it exists, and in a thick pool its snapshots would go with it", what));
	if (known && !same)
		if (Done removed = lvm.remove(to); !removed)
			return removed;
	if (!same) {
		std::vector<std::string> args = {"lvcreate", "--yes", "--name", replica_lv_name(to.vid), "--addtag", content_tag(content)};
		for (const std::string &tag : replica_tags(to))
			args.insert(args.end(), {"--addtag", tag});
		if (from.thin)
			args.insert(args.end(), {"--snapshot", "--setactivationskip", "n", full_name(from)});
		else
			args.insert(args.end(), {"--wipesignatures", "n", "--zero", "n", "--size", fmt::format("{}b", to.size_bytes), to.vg});
		if (auto made = run_lvm(args, what); !made)
			return made.error();
	}
	return lvm.activate(to);
}

}    // namespace

void add_snapshot_tools(Lvm &lvm)
{
	const Lvm basic = lvm;
	lvm.extend = [basic](const ReplicaLv &lv) { return extend(basic, lv); };
	lvm.snapshot = [basic](const SnapshotLv &lv) { return snapshot(basic, lv); };
	lvm.allocated = allocated;
	lvm.remove_snapshot = [basic](const SnapshotLv &lv) { return remove_snapshot(basic, lv); };
	lvm.begin_copy = [basic](const SnapshotLv &lv, const OrphanLv &base, const std::string &thin_pool, uint64_t bytes) {
		return begin_copy(basic, lv, base, thin_pool, bytes);
	};
	lvm.end_copy = end_copy;
	lvm.clone = [basic](const SnapshotLv &from, const ReplicaLv &to, const std::string &content) { return clone(basic, from, to, content); };
}

}    // namespace lockstep
