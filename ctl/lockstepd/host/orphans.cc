// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/orphans.h"

#include <algorithm>

#include <fmt/format.h>

#include "lockstepd/host/metadata.h"
#include "lockstepd/host/metadata_check.h"
#include "lockstepd/host/reconciler.h"

namespace lockstep {

namespace {

using Json = nlohmann::json;

constexpr std::string_view REPLICA_TAG = "lockstep.volume=", SNAPSHOT_TAG = "lockstep.snapshot=";

std::string our_tag(const LogicalVolume &lv)
{
	for (const std::string &tag : lv.tags)
		if (tag.starts_with(REPLICA_TAG) || tag.starts_with(SNAPSHOT_TAG))
			return tag;
	return {};
}

std::string uuid_of_tag(const std::string &tag) { return tag.substr(tag.find('=') + 1); }

// A pool that the State does not know any more is anywhere: then it counts as the one.
bool in_pool(const State &state, HostId self, const std::string &pool, const std::string &vg)
{
	const Pool *p = state.pool(pool, self);
	return !p || p->vg == vg;
}

}    // namespace

bool log_wants(const State &state, HostId self, const LogicalVolume &lv)
{
	const std::string tag = our_tag(lv);
	for (const auto &[vid, v] : state.volumes) {
		if (tag != replica_lv_tag(v.uuid))
			continue;
		const Replica *r = v.replica(self);
		const Remnant *left = v.remnant(self);
		const bool named = lv.name == replica_lv_name(vid) || (v.phase == Phase::creating && lv.name == v.adopts);
		if (named && ((r && in_pool(state, self, r->pool, lv.vg)) || (left && in_pool(state, self, left->pool, lv.vg))))
			return true;
	}
	for (const auto &[sid, s] : state.snapshots) {
		const SnapshotCopy *copy = s.trace(self);
		// Of whichever attempt.
		if (copy && tag == snapshot_lv_tag(s.uuid) && lv.name.starts_with(fmt::format("{}.s{}.", replica_lv_name(s.vid), sid)) &&
		    in_pool(state, self, copy->pool, lv.vg))
			return true;
	}
	return false;
}

std::vector<OrphanLv> orphans_in(const State &state, HostId self, const LvmReport &report)
{
	std::vector<OrphanLv> list;
	for (const LogicalVolume &lv : report.volumes)
		if (const std::string tag = our_tag(lv); !tag.empty() && !log_wants(state, self, lv))
			list.push_back({lv.vg, lv.name, tag});
	return list;
}

namespace {

using Orphans = std::vector<OrphanLv>;

// The orphans with this UUID (empty: all), by a State that is not older than the call, and the report they are from.
void find_orphans(const OrphanWorld &world, const std::string &uuid, std::function<void(Result<LvmReport>, Orphans)> done)
{
	world.barrier([world, uuid, done = std::move(done)](Done reached) {
		if (!reached)
			return done(reached.error(), {});
		auto report = std::make_shared<Result<LvmReport>>(LvmReport{});
		world.run(
			"orphans", [world, report] { *report = world.lvm.report_all(); },
			[world, uuid, report, done] {
				Orphans found;
				if (*report)
					found = orphans_in(world.state(), world.self, **report);
				std::erase_if(found, [&](const OrphanLv &o) { return !uuid.empty() && uuid_of_tag(o.tag) != uuid; });
				done(std::move(*report), std::move(found));
			});
	});
}

std::string tag_value(const LogicalVolume &lv, std::string_view key)
{
	for (const std::string &tag : lv.tags)
		if (tag.starts_with(key))
			return tag.substr(key.size());
	return {};
}

Json described(const OrphanWorld &world, const OrphanLv &orphan, const LogicalVolume &lv)
{
	const bool replica = orphan.tag.starts_with(REPLICA_TAG);
	return {{"vg", orphan.vg}, {"lv", orphan.name}, {"kind", replica ? "replica" : "snapshot"}, {"uuid", uuid_of_tag(orphan.tag)},
		{"name", tag_value(lv, "lockstep.name=")}, {"group", tag_value(lv, "lockstep.group=")}, {"lv_bytes", lv.size_bytes}, {"thin_pool", lv.pool}, {"active", lv.active}, {"open", lv.open},
		{"content", replica && lv.active ? world.inspect(lv.path) : Json()}};
}

}    // namespace

void list_orphans(const OrphanWorld &world, const std::string &uuid, bool show, OrphanReply done)
{
	find_orphans(world, uuid, [world, show, done = std::move(done)](Result<LvmReport> report, Orphans found) {
		if (!report)
			return done(report.error());
		auto answer = std::make_shared<Result<Json>>(Json::array());
		world.run(
			"orphans",
			[world, show, found = std::move(found), report = std::move(*report), answer] {
				for (const OrphanLv &o : found) {
					LogicalVolume lv = *report.volume(o.vg, o.name);
					if (show && !lv.active && o.tag.starts_with(REPLICA_TAG)) {
						if (Done shown = world.lvm.show(o); !shown && shown.error().status == Status::not_found)
							continue;
						else if (!shown) {
							*answer = shown.error();
							return;
						}
						lv.active = true;
					}
					(*answer)->push_back(described(world, o, lv));
				}
			},
			[done, answer] { done(std::move(*answer)); });
	});
}

void purge_orphans(const OrphanWorld &world, const std::string &uuid, OrphanReply done)
{
	find_orphans(world, uuid, [world, done = std::move(done)](Result<LvmReport> report, Orphans found) {
		if (!report)
			return done(report.error());
		// Snapshots first: a classic one is in the way of what it was taken of.
		std::stable_partition(found.begin(), found.end(), [](const OrphanLv &o) { return o.tag.starts_with(SNAPSHOT_TAG); });
		auto answer = std::make_shared<Json>(Json{{"removed", Json::array()}, {"kept", Json::array()}});
		if (found.empty())
			return done(*answer);
		auto left = std::make_shared<size_t>(found.size());
		for (const OrphanLv &o : found) {
			const LogicalVolume lv = *report->volume(o.vg, o.name);
			auto result = std::make_shared<Done>(Nothing{});
			world.run(
				vg_key(o.vg),
				[world, o, lv, result] {
					*result = log_wants(*world.published(), world.self, lv)
							  ? forbidden(fmt::format("logical volume {}/{} is wanted again", o.vg, o.name))
							  : world.lvm.purge(o);
				},
				[o, result, answer, left, done] {
					Json line = {{"vg", o.vg}, {"lv", o.name}};
					if (!*result)
						line["message"] = result->error().message;
					(*answer)[*result ? "removed" : "kept"].push_back(line);
					if (!--*left)
						done(*answer);
				});
		}
	});
}

Json inspect_orphan(const std::string &path)
{
	auto problem = [](const std::string &text) { return Json{{"problem", text}}; };
	auto offset = find_metadata(path);
	if (!offset)
		return problem(offset.error().message);
	auto found = read_superblock(path, *offset);
	if (!found || !*found)
		return problem(found ? fmt::format("{} has no valid superblock", path) : found.error().message);
	const lks_superblock &sb = **found;
	if (sb.retire_end)
		return problem("its volume was growing when it was left; only the cluster it is from can finish that");
	Json absent = Json::array();
	for (const lks_disk_slot &slot : sb.slots)
		if (slot.host)
			absent.push_back(slot.host);
	return {{"vid", uint32_t(sb.vid)}, {"host", sb.host}, {"size_bytes", uint64_t(sb.size)}, {"block_size", uint32_t(sb.block_size)},
		{"md_offset", *offset}, {"version", uint64_t(sb.version)}, {"term", uint64_t(sb.term)}, {"clean", sb.clean != 0}, {"absent", absent}};
}

}    // namespace lockstep
