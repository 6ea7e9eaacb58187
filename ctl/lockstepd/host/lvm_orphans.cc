// SPDX-License-Identifier: GPL-2.0-or-later
//
// Logical volumes that nothing in the log belongs to: removing one, or making it a replica's again. LVM's own look at the tag, in the
// same breath as the change, decides whether it is still the one that was meant.
#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "lockstepd/host/lvm.h"

namespace lockstep {

namespace {

bool carries(const LogicalVolume &lv, const std::string &tag) { return std::find(lv.tags.begin(), lv.tags.end(), tag) != lv.tags.end(); }

std::string title(const OrphanLv &lv) { return fmt::format("logical volume {}/{}", lv.vg, lv.name); }

std::string selection(const std::string &tag) { return fmt::format("lv_tags={{\"{}\"}}", tag); }

// The LV as it is now; nullopt: it is not there, or something else has its name.
Result<std::optional<LogicalVolume>> find_orphan_lv(const Lvm &lvm, const OrphanLv &lv)
{
	auto report = lvm.report(lv.vg);
	if (!report && report.error().status == Status::not_found)
		return std::optional<LogicalVolume>();
	if (!report)
		return report.error();
	const LogicalVolume *found = report->volume(lv.vg, lv.name);
	if (!found || !carries(*found, lv.tag))
		return std::optional<LogicalVolume>();
	return std::optional<LogicalVolume>(*found);
}

Done purge(const Lvm &lvm, const OrphanLv &lv)
{
	auto report = lvm.report(lv.vg);
	if (!report && report.error().status == Status::not_found)
		return Nothing{};
	if (!report)
		return report.error();
	const LogicalVolume *found = report->volume(lv.vg, lv.name);
	if (!found || !carries(*found, lv.tag))
		return Nothing{};
	if (found->open)
		return forbidden(fmt::format("{} is in use: end what uses it (`lockstep down`, if the kernel still serves it)", title(lv)));
	for (const LogicalVolume &other : report->volumes)
		if (found->pool.empty() && other.vg == lv.vg && other.origin == lv.name)
			return forbidden(fmt::format("{} has the snapshot {}, which would go with it: purge that first", title(lv), other.name));
	auto removed = run_lvm({"lvremove", "--yes", "--select", selection(lv.tag), lv.vg + "/" + lv.name}, "cannot remove " + title(lv));
	auto left = find_orphan_lv(lvm, lv);
	if (!left)
		return left.error();
	if (!*left)
		return Nothing{};
	return removed ? failed(title(lv) + " is still there after its removal") : removed.error();
}

Done show(const Lvm &lvm, const OrphanLv &lv)
{
	auto found = find_orphan_lv(lvm, lv);
	if (!found)
		return found.error();
	if (!*found)
		return not_found(title(lv) + " is not there any more");
	if ((*found)->active)
		return Nothing{};
	auto out = run_lvm({"lvchange", "--yes", "--ignoreactivationskip", "--activate", "y", lv.vg + "/" + lv.name}, "cannot activate " + title(lv));
	if (!out)
		return out.error();
	return Nothing{};
}

// Tags first: whoever is interrupted finds it under either name, with the tags that tell that it is the replica's.
Done take_over(const Lvm &lvm, const OrphanLv &from, const ReplicaLv &to)
{
	const std::string name = replica_lv_name(to.vid), what = fmt::format("cannot make {} the replica {}", title(from), full_name(to));
	auto report = lvm.report(to.vg);
	if (!report)
		return report.error();
	const LogicalVolume *there = report->volume(to.vg, name), *old = report->volume(from.vg, from.name);
	if (there && from.name != name && carries(*there, from.tag) && carries(*there, replica_added_tag(to.added)))
		return lvm.activate(to);
	if (there && from.name != name)
		return forbidden(fmt::format("{}: another logical volume has that name: purge it, rename it or remove it", what));
	if (!old || !carries(*old, from.tag))
		return not_found(title(from) + " is not there any more");
	if (old->open)
		return forbidden(fmt::format("{} is in use: end what uses it (`lockstep down`, if the kernel still serves it)", title(from)));
	if (old->size_bytes < to.size_bytes)
		return failed(fmt::format("{}: it has {} bytes, {} are needed", what, old->size_bytes, to.size_bytes));
	std::vector<std::string> args = {"lvchange", "--yes", "--select", selection(from.tag)};
	const std::vector<std::string> wanted = replica_tags(to);
	for (const std::string &tag : old->tags)
		if (tag.starts_with("lockstep.") && tag != from.tag && std::find(wanted.begin(), wanted.end(), tag) == wanted.end())
			args.insert(args.end(), {"--deltag", tag});
	for (const std::string &tag : wanted)
		if (!carries(*old, tag))
			args.insert(args.end(), {"--addtag", tag});
	args.push_back(from.vg + "/" + from.name);
	if (args.size() > 5)
		if (auto tagged = run_lvm(args, what); !tagged)
			return tagged.error();
	if (from.name != name)
		if (auto renamed = run_lvm({"lvrename", "--yes", from.vg, from.name, name}, what); !renamed)
			return renamed.error();
	return lvm.activate(to);
}

}    // namespace

void add_orphan_tools(Lvm &lvm)
{
	const Lvm basic = lvm;
	lvm.purge = [basic](const OrphanLv &lv) { return purge(basic, lv); };
	lvm.show = [basic](const OrphanLv &lv) { return show(basic, lv); };
	lvm.take_over = [basic](const OrphanLv &from, const ReplicaLv &to) { return take_over(basic, from, to); };
}

}    // namespace lockstep
