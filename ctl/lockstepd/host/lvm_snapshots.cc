// SPDX-License-Identifier: GPL-2.0-or-later
//
// Snapshots and growth of LVs. A snapshot's LV is named "lockstep.<vid>.s<snapshot id>.<attempt>" and carries the tag
// "lockstep.snapshot=<uuid of the snapshot>". In a thin pool it shares its blocks with the replica and lives on without it; in
// a thick one it is a classic snapshot that keeps what the replica overwrites, in space reserved for it, and goes with it.
//
// A command is tried first and LVM is asked only when it has failed: it is slow to start, and while a snapshot is taken a guest
// waits. So in a thin pool LVM makes the LV before, an empty thin volume, whose number in the pool is then given up again and, when
// all writes stand still, given to a snapshot of the replica by the kernel alone. In between LVM has an LV that cannot be activated,
// only removed: that its volume is not in the pool LVM does not mind. In a thick one LVM makes the snapshot before, and the kernel empties it.
#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include "lockstepd/host/device_mapper.h"
#include "lockstepd/host/lvm.h"

namespace lockstep {

std::string snapshot_lv_name(const SnapshotLv &lv) { return fmt::format("{}.s{}.{}", replica_lv_name(lv.vid), lv.sid, lv.attempt); }
std::string snapshot_lv_tag(const std::string &uuid) { return "lockstep.snapshot=" + uuid; }
std::string snapshot_lv_path(const SnapshotLv &lv) { return fmt::format("/dev/{}/{}", lv.vg, snapshot_lv_name(lv)); }

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

// Of the snapshot's LV, in its thin pool; 0: there is no LV of that name and tag.
Result<uint64_t> thin_number(const SnapshotLv &lv)
{
	auto out = run_lvm({"lvs", "--noheadings", "-o", "thin_id", "--select", fmt::format("lv_tags={{\"{}\"}}", snapshot_lv_tag(lv.uuid)), full_name(lv)},
			   fmt::format("cannot inspect logical volume {}", full_name(lv)));
	if (!out)
		return out.error();
	uint64_t id = 0;
	const size_t first = out->find_first_of("0123456789");
	if (first != std::string::npos)
		std::from_chars(out->data() + first, out->data() + out->size(), id);
	return id;
}

std::string replica_device(const SnapshotLv &lv) { return dm_name(lv.vg, replica_lv_name(lv.vid)); }

Result<uint64_t> prepare(const Lvm &lvm, const SnapshotLv &lv)
{
	if (!lv.thin) {
		Done made = lvm.snapshot(lv);
		return made ? Result<uint64_t>(0) : made.error();
	}
	const std::string what = fmt::format("cannot create logical volume {}", full_name(lv));
	auto report = lvm.report(lv.vg);
	if (!report)
		return report.error();
	const LogicalVolume *replica = report->volume(lv.vg, replica_lv_name(lv.vid));
	if (!replica || replica->pool.empty())
		return not_found(fmt::format("{}: there is no thin logical volume {}/{}", what, lv.vg, replica_lv_name(lv.vid)));
	if (const LogicalVolume *found = report->volume(lv.vg, snapshot_lv_name(lv)); !found || !has_tag(*found, snapshot_lv_tag(lv.uuid))) {
		auto made = run_lvm({"lvcreate", "--yes", "--activate", "n", "--setactivationskip", "y", "--wipesignatures", "n", "--name", snapshot_lv_name(lv),
				     "--addtag", snapshot_lv_tag(lv.uuid), "--thin", "--virtualsize", fmt::format("{}b", replica->size_bytes),
				     lv.vg + "/" + replica->pool}, what);
		if (!made)
			return made.error();
	}
	auto id = thin_number(lv);
	if (!id || !*id)
		return id ? failed(fmt::format("{}: LVM does not tell its number in the thin pool", what)) : id;
	if (Done done = thin_delete(dm_kernel(), replica_device(lv), *id); !done)
		return done.error();
	return id;
}

Done take(const SnapshotLv &lv, uint64_t prepared)
{
	const std::string device = dm_name(lv.vg, snapshot_lv_name(lv));
	if (!lv.thin)
		return thick_snapshot(dm_kernel(), SUSPENDED_FOLDER, TAKEN_FOLDER, {replica_device(lv), device, "/dev/mapper/" + device + "-cow"});
	if (!prepared) {    // by a daemon before this one
		auto id = thin_number(lv);
		if (!id)
			return id.error();
		if (!*id)
			return not_found(fmt::format("logical volume {}, which had been prepared, is not there", full_name(lv)));
		prepared = *id;
	}
	return thin_snapshot(dm_kernel(), SUSPENDED_FOLDER, replica_device(lv), prepared);
}

Done flush(const std::string &vg, const std::string &lv) { return flush_device("/dev/mapper/" + dm_name(vg, lv)); }

uint64_t allocated(const std::string &vg, const std::string &lv)
{
	const auto status = dm_status(dm_kernel(), dm_name(vg, lv));
	return status && status->type == "thin" ? thin_bytes(status->text) : 0;
}

Done remove_snapshot(const Lvm &lvm, const SnapshotLv &lv)
{
	forget_taken(TAKEN_FOLDER, dm_name(lv.vg, snapshot_lv_name(lv)));
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
	lvm.prepare = [with = lvm](const SnapshotLv &lv) { return prepare(with, lv); };
	lvm.take = take;
	lvm.flush = flush;
	lvm.allocated = allocated;
	lvm.remove_snapshot = [basic](const SnapshotLv &lv) { return remove_snapshot(basic, lv); };
	lvm.begin_copy = [basic](const SnapshotLv &lv, const OrphanLv &base, const std::string &thin_pool, uint64_t bytes) {
		return begin_copy(basic, lv, base, thin_pool, bytes);
	};
	lvm.end_copy = end_copy;
	lvm.clone = [basic](const SnapshotLv &from, const ReplicaLv &to, const std::string &content) { return clone(basic, from, to, content); };
}

}    // namespace lockstep
