// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/survey.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include <fmt/format.h>

#include "lib/uuid.h"
#include "lockstepd/host/metadata.h"
#include "lockstepd/host/metadata_check.h"

namespace lockstep {

namespace {

constexpr std::string_view VOLUME_TAG = "lockstep.volume=", LV_PREFIX = "lockstep.";

uint64_t number_in(std::string_view text)
{
	uint64_t n = 0;
	std::from_chars(text.data(), text.data() + text.size(), n);
	return n;
}

// "lockstep.7" is of volume 7, "lockstep.7.s3.1" of its snapshot 3.
void note_ids(const std::string &lv, FoundHost &found)
{
	if (!lv.starts_with(LV_PREFIX))
		return;
	const std::string_view rest = std::string_view(lv).substr(LV_PREFIX.size());
	found.top_vid = std::max(found.top_vid, uint32_t(number_in(rest)));
	if (const size_t at = rest.find(".s"); at != rest.npos)
		found.top_sid = std::max(found.top_sid, uint32_t(number_in(rest.substr(at + 2))));
}

void read_tags(const LogicalVolume &lv, FoundCopy &copy)
{
	for (const std::string &tag : lv.tags) {
		const size_t at = tag.find('=');
		const std::string key = tag.substr(0, at), value = at == tag.npos ? "" : tag.substr(at + 1);
		if (key == "lockstep.volume")
			copy.uuid = value;
		else if (key == "lockstep.cluster")
			copy.cluster = value;
		else if (key == "lockstep.name")
			copy.name = value;
		else if (key == "lockstep.pool")
			copy.pool = value;
		else if (key == "lockstep.group")
			copy.group = value;
		else if (key == "lockstep.added")
			copy.added = number_in(value);
		else if (key == "lockstep.shared")
			copy.shared = true;
	}
}

}    // namespace

Done survey(const Lvm &lvm, FoundHost &found, const std::function<void(const std::string &path, FoundCopy &copy)> &inspect)
{
	auto report = lvm.report_all();
	if (!report)
		return report.error();
	// One that is not well is known all the same, and takes nothing new until it says how much room it has.
	auto add_space = [&](const std::string &vg, const std::string &thin_pool, uint64_t size_bytes) {
		const auto space = pool_space(*report, vg, thin_pool);
		found.spaces.push_back({vg, thin_pool, space ? space->size_bytes : size_bytes, space ? space->free_bytes : 0});
	};
	for (const VolumeGroup &vg : report->groups) {
		if (vg.incomplete)
			found.incomplete.push_back(vg.name);
		add_space(vg.name, "", vg.size_bytes);
	}
	for (const LogicalVolume &lv : report->volumes) {
		if (lv.is_thin_pool)
			add_space(lv.vg, lv.name, lv.size_bytes);
		note_ids(lv.name, found);
		const auto tag = std::ranges::find_if(lv.tags, [](const std::string &t) { return t.starts_with(VOLUME_TAG); });
		if (tag == lv.tags.end())
			continue;
		FoundCopy copy;
		copy.host = found.id;
		copy.vg = lv.vg;
		copy.lv = lv.name;
		copy.thin_pool = lv.pool;
		read_tags(lv, copy);
		if (!valid_uuid(copy.uuid))
			continue;
		const Done shown = lv.active ? Done(Nothing{}) : lvm.show({lv.vg, lv.name, *tag});
		if (!shown)
			copy.problem = shown.error().message;
		else
			inspect(lv.path, copy);
		if (copy.problem.empty() && lv.name != replica_lv_name(copy.vid))
			copy.problem = fmt::format("logical volume {}/{} has not the name of a replica of volume number {}", lv.vg, lv.name, copy.vid);
		found.copies.push_back(std::move(copy));
	}
	return Nothing{};
}

void inspect_copy(const std::string &path, FoundCopy &copy)
{
	const auto offset = find_metadata(path);
	if (!offset) {
		copy.problem = offset.error().message;
		return;
	}
	const auto found = read_superblock(path, *offset);
	const auto dump = dump_replica(path, *offset);
	if (!found || !*found || !dump) {
		copy.problem = !found ? found.error().message : !*found ? path + " has no valid superblock" : dump.error().message;
		return;
	}
	const lks_superblock &sb = **found;
	copy.vid = sb.vid;
	copy.size_bytes = sb.size;
	copy.block_size = sb.block_size;
	copy.md_offset = *offset;
	copy.version = sb.version;
	copy.term = sb.term;
	copy.incarnation = sb.incarnation;
	// The table decides, as when the kernel attaches it: one that is idle when its host dies has nothing hot.
	copy.quiet = dump->at("hot_extents") == 0 && dump->at("damaged_records") == 0;
	copy.written = dump->at("written_extents");
	for (const lks_disk_slot &slot : sb.slots)
		if (slot.host)
			copy.absent.insert(slot.host);
	if (dump->at("uuid") != copy.uuid)
		copy.problem = fmt::format("{} carries the metadata of another volume ({})", path, dump->at("uuid").get<std::string>());
	else if (sb.host != copy.host)
		copy.problem = fmt::format("{} carries the metadata of host {}'s replica", path, sb.host);
	else if (sb.retire_end)
		copy.problem = "its volume was growing";
}

}    // namespace lockstep
