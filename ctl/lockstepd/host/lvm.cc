// SPDX-License-Identifier: GPL-2.0-or-later
//
// One process a question, one JSON report for a volume group with all that is in it. LVM's exit status says whether it worked; its
// last line on standard error says why not. Whether something exists is asked of a report, never inferred from an error
// text.
#include "lockstepd/host/lvm.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "lockstepd/host/command.h"

namespace lockstep {

namespace {

using Json = nlohmann::json;

// What of our own devices LVM may meet below /dev, by link and by kernel name.
constexpr const char *OURS_REJECTED = R"("r|^/dev/lockstep/|","r|^/dev/lockstep[0-9]|")";

// The administrator's own filter stays in force: ours goes in front of it.
std::string device_filter()
{
	std::string theirs;
	auto shown = run_command({"lvm", "lvmconfig", "--type", "full", "devices/filter"}, LVM_TIMEOUT_MS);
	if (shown && shown->exit_status == 0) {
		size_t from = shown->out.find("filter=["), to = shown->out.rfind(']');
		if (from != std::string::npos && to != std::string::npos && to > from)
			theirs = shown->out.substr(from + 8, to - from - 8);
	}
	return fmt::format("devices {{ filter=[{}{}{}] }}", OURS_REJECTED, theirs.empty() ? "" : ",", theirs);
}

// The line that tells: the last one that is no mere warning.
std::string complaint(const std::string &err)
{
	std::istringstream lines(err);
	std::string line, last;
	while (std::getline(lines, line)) {
		size_t from = line.find_first_not_of(" \t");
		if (from != std::string::npos && line.compare(from, 8, "WARNING:") != 0 && line.compare(from, 5, "File ") != 0)
			last = line.substr(from);
	}
	return last.empty() ? "no reason given" : last;
}

}    // namespace

Result<std::string> run_lvm(std::vector<std::string> args, const std::string &what)
{
	static const std::string filter = device_filter();
	std::vector<std::string> argv = {"lvm", args[0], "--config", filter};
	argv.insert(argv.end(), args.begin() + 1, args.end());
	auto output = run_command(argv, LVM_TIMEOUT_MS);
	if (!output)
		return failed(fmt::format("{}: {}", what, output.error().message));
	if (output->exit_status != 0)
		return failed(fmt::format("{}: {}", what, complaint(output->err)));
	return std::move(output->out);
}

namespace {

Result<std::string> lvm(std::vector<std::string> args, const std::string &what) { return run_lvm(std::move(args), what); }

// LVM writes all values as texts, unknown ones as "".
std::string text_field(const Json &row, const char *name)
{
	auto field = row.find(name);
	return field != row.end() && field->is_string() ? field->get<std::string>() : "";
}

uint64_t bytes_field(const Json &row, const char *name)
{
	const std::string text = text_field(row, name);
	if (text.empty())
		return 0;
	size_t used = 0;
	uint64_t bytes = std::stoull(text, &used);
	if (used != text.size())
		throw std::invalid_argument(fmt::format("'{}' in {}", text, name));
	return bytes;
}

double percent_field(const Json &row, const char *name)
{
	const std::string text = text_field(row, name);
	return text.empty() ? -1 : std::stod(text);
}

std::vector<std::string> split(const std::string &list)
{
	std::vector<std::string> items;
	std::istringstream in(list);
	for (std::string item; std::getline(in, item, ',');)
		if (!item.empty())
			items.push_back(item);
	return items;
}

bool contains(const std::vector<std::string> &list, std::string_view item)
{
	return std::find(list.begin(), list.end(), item) != list.end();
}

void read_group(const Json &part, LvmReport &report)
{
	if (!part.contains("vg") || part["vg"].empty())
		return;
	const Json &row = part["vg"][0];
	VolumeGroup vg;
	vg.name = text_field(row, "vg_name");
	vg.size_bytes = bytes_field(row, "vg_size");
	vg.free_bytes = bytes_field(row, "vg_free");
	vg.extent_bytes = bytes_field(row, "vg_extent_size");
	vg.incomplete = bytes_field(row, "vg_missing_pv_count") > 0;
	const std::vector<std::string> tags = split(text_field(row, "vg_tags"));
	vg.growing = contains(tags, GROWING_TAG);
	for (const std::string &tag : tags)
		for (const auto &[mark, uuids] : {std::pair(DEPARTED_TAG, &vg.departed), std::pair(GROWING_AFTER_TAG, &vg.grows_after),
						  std::pair(GROWING_INTO_TAG, &vg.grows_into)})
			if (tag.starts_with(mark))
				uuids->push_back(tag.substr(strlen(mark)));
	for (const Json &pv_row : part.value("pv", Json::array())) {
		PhysicalVolume pv;
		pv.vg = vg.name;
		pv.disk = text_field(pv_row, "pv_name");
		pv.uuid = text_field(pv_row, "pv_uuid");
		pv.size_bytes = bytes_field(pv_row, "pv_size");
		pv.used_bytes = bytes_field(pv_row, "pv_used");
		pv.missing = !text_field(pv_row, "pv_missing").empty();
		pv.leaving = contains(split(text_field(pv_row, "pv_tags")), LEAVING_TAG);
		report.disks.push_back(std::move(pv));
	}
	const auto is_in = [&](const std::string &uuid) {
		return std::ranges::any_of(report.disks, [&](const PhysicalVolume &d) { return d.vg == vg.name && d.uuid == uuid; });
	};
	vg.growing = vg.growing || std::ranges::any_of(vg.grows_into, is_in) || !std::ranges::all_of(vg.grows_after, is_in);
	for (const Json &lv_row : part.value("lv", Json::array())) {
		LogicalVolume lv;
		lv.vg = vg.name;
		lv.name = text_field(lv_row, "lv_name");
		lv.path = text_field(lv_row, "lv_path");
		lv.pool = text_field(lv_row, "pool_lv");
		const auto layout = split(text_field(lv_row, "lv_layout"));
		lv.is_thin_pool = contains(layout, "thin") && contains(layout, "pool");
		lv.origin = text_field(lv_row, "origin");
		lv.active = text_field(lv_row, "lv_active") == "active";
		lv.open = text_field(lv_row, "lv_device_open") == "open";
		lv.size_bytes = bytes_field(lv_row, "lv_size");
		lv.data_percent = percent_field(lv_row, "data_percent");
		lv.metadata_percent = percent_field(lv_row, "metadata_percent");
		lv.metadata_bytes = bytes_field(lv_row, "lv_metadata_size");
		lv.health = text_field(lv_row, "lv_health_status");
		lv.tags = split(text_field(lv_row, "lv_tags"));
		report.volumes.push_back(std::move(lv));
	}
	for (const Json &segment : part.value("seg", Json::array()))
		for (LogicalVolume &lv : report.volumes)
			if (lv.vg == vg.name && lv.is_thin_pool && lv.name == text_field(segment, "lv_name"))
				lv.chunk_bytes = bytes_field(segment, "chunk_size");
	report.groups.push_back(std::move(vg));
}

// vg empty: all of them.
std::vector<std::string> report_command(const std::string &vg)
{
	std::vector<std::string> args = {"fullreport", "--reportformat", "json", "--units", "b", "--nosuffix",
		"--configreport", "vg", "-o", "vg_name,vg_size,vg_free,vg_extent_size,vg_missing_pv_count,vg_tags",
		"--configreport", "lv", "-o",
		"lv_name,lv_path,pool_lv,origin,lv_layout,lv_size,data_percent,metadata_percent,lv_metadata_size,lv_tags,lv_active,lv_device_open,lv_health_status",
		"--configreport", "pv", "-o", "pv_name,pv_uuid,pv_size,pv_used,pv_missing,pv_tags", "--configreport", "pvseg", "-o", "pv_uuid", "--configreport", "seg", "-o", "lv_name,chunk_size"};
	if (!vg.empty())
		args.push_back(vg);
	return args;
}

Result<LvmReport> lvm_report_all()
{
	auto out = lvm(report_command(""), "cannot inspect the volume groups");
	if (!out)
		return out.error();
	return parse_lvm_report(*out);
}

Result<LvmReport> lvm_report(const std::string &vg)
{
	const std::string what = fmt::format("cannot inspect volume group {}", vg);
	auto out = lvm(report_command(vg), what);
	if (!out) {
		// LVM ends with "Cannot process volume group X", whose cause may also be a broken disk.
		auto groups = lvm({"vgs", "--reportformat", "json", "-o", "vg_name"}, what);
		if (groups && groups->find('"' + vg + '"') == std::string::npos)
			return not_found(fmt::format("there is no volume group {}", vg));
		return out.error();
	}
	return parse_lvm_report(*out);
}

bool has_node(const ReplicaLv &lv)
{
	struct stat node;
	return stat(replica_lv_path(lv.vg, lv.vid).c_str(), &node) == 0 && S_ISBLK(node.st_mode);
}

Done lvm_activate(const ReplicaLv &lv)
{
	if (has_node(lv))
		return Nothing{};
	auto out = lvm({"lvchange", "--yes", "--activate", "y", full_name(lv)},
		       fmt::format("cannot activate logical volume {}", full_name(lv)));
	if (!out)
		return out.error();
	return Nothing{};
}

// The selection has LVM itself look at the tag, in the same breath. What it leaves alone may be something else of that name.
Done lvm_remove(const ReplicaLv &lv)
{
	auto removed = lvm({"lvremove", "--yes", "--select", fmt::format("lv_tags={{\"{}\"}}", replica_lv_tag(lv.uuid)), full_name(lv)},
			   fmt::format("cannot remove logical volume {}", full_name(lv)));
	if (removed && !has_node(lv))
		return Nothing{};
	auto report = lvm_report(lv.vg);
	if (!report)
		return report.error();
	if (!report->replica(lv))
		return Nothing{};
	return removed ? failed(fmt::format("logical volume {} is still there after its removal", full_name(lv))) : removed.error();
}

Done lvm_grow_metadata(const std::string &vg, const std::string &thin_pool, uint64_t bytes)
{
	auto out = lvm({"lvextend", "--yes", "--poolmetadatasize", fmt::format("+{}b", bytes), vg + "/" + thin_pool},
		       fmt::format("the metadata of thin pool {}/{} are filling up and cannot grow: give volume group {} more room", vg, thin_pool, vg));
	if (!out)
		return out.error();
	return Nothing{};
}

// LVM is slow to start, so it is asked only when lvcreate has failed whether the LV was there already.
Done lvm_create(const ReplicaLv &lv)
{
	const std::string size = fmt::format("{}b", lv.size_bytes);    // LVM rounds up to its extents
	std::vector<std::string> args = {"lvcreate", "--yes", "--name", replica_lv_name(lv.vid)};
	for (const std::string &tag : replica_tags(lv))
		args.insert(args.end(), {"--addtag", tag});
	// What a thick LV holds from former times is never read: the extent table says what was written (DESIGN section 5).
	if (lv.thin_pool.empty())
		args.insert(args.end(), {"--wipesignatures", "n", "--zero", "n", "--size", size, lv.vg});
	else
		args.insert(args.end(), {"--thin", "--virtualsize", size, lv.vg + "/" + lv.thin_pool});
	auto created = lvm(args, fmt::format("cannot create logical volume {}", full_name(lv)));
	if (created)
		return Nothing{};
	auto report = lvm_report(lv.vg);
	if (!report)
		return report.error();
	const LogicalVolume *named = report->volume(lv.vg, replica_lv_name(lv.vid));
	if (!named)
		return created.error();
	if (!report->replica(lv))
		return forbidden(fmt::format("logical volume {} does not carry the tag {}: it is not ours and is left alone; "
					     "rename or remove it, or if `lockstep pool orphans` shows it adopt or purge it",
					     full_name(lv), replica_lv_tag(lv.uuid)));
	if (!contains(named->tags, replica_added_tag(lv.added))) {
		// What an earlier replica left, say on a disk that was away when it was to be removed.
		if (Done gone = lvm_remove(lv); !gone)
			return gone;
		auto again = lvm(args, fmt::format("cannot create logical volume {}", full_name(lv)));
		if (!again)
			return again.error();
		return Nothing{};
	}
	if (named->size_bytes < lv.size_bytes)
		return failed(fmt::format("logical volume {} has {} bytes but needs {}", full_name(lv), named->size_bytes, lv.size_bytes));
	return lvm_activate(lv);
}

}    // namespace

const VolumeGroup *LvmReport::group(std::string_view vg) const
{
	auto found = std::find_if(groups.begin(), groups.end(), [&](auto &g) { return g.name == vg; });
	return found == groups.end() ? nullptr : &*found;
}

const PhysicalVolume *LvmReport::disk(std::string_view vg, std::string_view name) const
{
	auto found = std::find_if(disks.begin(), disks.end(), [&](auto &d) { return d.vg == vg && d.disk == name; });
	return found == disks.end() ? nullptr : &*found;
}

const LogicalVolume *LvmReport::volume(std::string_view vg, std::string_view name) const
{
	auto found = std::find_if(volumes.begin(), volumes.end(), [&](auto &v) { return v.vg == vg && v.name == name; });
	return found == volumes.end() ? nullptr : &*found;
}

const LogicalVolume *LvmReport::replica(const ReplicaLv &lv) const
{
	const LogicalVolume *named = volume(lv.vg, replica_lv_name(lv.vid));
	return named && contains(named->tags, replica_lv_tag(lv.uuid)) ? named : nullptr;
}

std::string replica_lv_name(uint32_t vid) { return fmt::format("lockstep.{}", vid); }
std::string full_name(const ReplicaLv &lv)
{
	return lv.vg + "/" + replica_lv_name(lv.vid);
}

std::string replica_lv_tag(const std::string &uuid) { return "lockstep.volume=" + uuid; }
std::string replica_added_tag(uint64_t added) { return fmt::format("lockstep.added={}", added); }

std::vector<std::string> replica_tags(const ReplicaLv &lv)
{
	std::vector<std::string> tags = {replica_lv_tag(lv.uuid), replica_added_tag(lv.added)};
	for (const auto &[key, value] : {std::pair("cluster", &lv.cluster), std::pair("name", &lv.name), std::pair("pool", &lv.pool), std::pair("group", &lv.group)})
		if (!value->empty())
			tags.push_back(fmt::format("lockstep.{}={}", key, *value));
	if (lv.shared)
		tags.push_back("lockstep.shared");
	return tags;
}

std::string replica_lv_path(const std::string &vg, uint32_t vid) { return fmt::format("/dev/{}/{}", vg, replica_lv_name(vid)); }

std::map<std::string, uint64_t> allocation(const LvmReport &report, const std::string &vg, const std::string &thin_pool)
{
	std::map<std::string, uint64_t> bytes;
	for (const LogicalVolume &lv : report.volumes) {
		if (lv.vg != vg || lv.pool != thin_pool || lv.is_thin_pool)
			continue;
		if (thin_pool.empty())
			bytes[lv.path] = lv.size_bytes;
		else if (lv.data_percent >= 0)
			bytes[lv.path] = uint64_t(double(lv.size_bytes) * std::min(lv.data_percent, 100.0) / 100);
	}
	return bytes;
}

Result<PoolSpace> pool_space(const LvmReport &report, const std::string &vg, const std::string &thin_pool)
{
	const VolumeGroup *group = report.group(vg);
	if (!group)
		return not_found(fmt::format("there is no volume group {}", vg));
	if (group->incomplete)
		return failed(fmt::format("volume group {} lacks a disk: bring it back, or `lockstep disk replace` puts another in its place (see "
					  "`lockstep disk list`)", vg));
	std::map<std::string, std::string> disks;
	for (const PhysicalVolume &d : report.disks)
		if (d.vg == vg && !d.uuid.empty())
			disks[d.uuid] = d.disk;
	if (thin_pool.empty()) {
		uint64_t free = group->free_bytes;
		for (const PhysicalVolume &d : report.disks)
			if (d.vg == vg && d.leaving)
				free -= std::min(free, d.size_bytes - d.used_bytes);
		return PoolSpace{group->size_bytes, free, -1, std::move(disks)};
	}
	const LogicalVolume *pool = report.volume(vg, thin_pool);
	if (!pool)
		return not_found(fmt::format("there is no thin pool {}/{}", vg, thin_pool));
	if (!pool->is_thin_pool)
		return forbidden(fmt::format("logical volume {}/{} is no thin pool", vg, thin_pool));
	if (!pool->health.empty())
		return failed(fmt::format("thin pool {}/{} is not healthy: {}", vg, thin_pool, pool->health));
	const double used = std::clamp(pool->data_percent, 0.0, 100.0);
	return PoolSpace{pool->size_bytes, uint64_t(double(pool->size_bytes) * (100 - used) / 100), pool->metadata_percent, std::move(disks)};
}

Result<LvmReport> parse_lvm_report(std::string_view json)
{
	try {
		LvmReport report;
		const Json parsed = Json::parse(json);
		for (const Json &part : parsed.at("report"))
			read_group(part, report);
		return report;
	} catch (const std::exception &e) {
		return failed(fmt::format("LVM's report is not understood: {}", e.what()));
	}
}

Lvm lvm_tools()
{
	Lvm lvm;
	lvm.report = lvm_report;
	lvm.report_all = lvm_report_all;
	lvm.create = lvm_create;
	lvm.activate = lvm_activate;
	lvm.remove = lvm_remove;
	lvm.grow_metadata = lvm_grow_metadata;
	add_snapshot_tools(lvm);
	add_orphan_tools(lvm);
	add_disk_tools(lvm);
	add_mend_tools(lvm);
	return lvm;
}

}    // namespace lockstep
