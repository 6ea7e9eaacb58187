// SPDX-License-Identifier: GPL-2.0-or-later
//
// See revert.h.
#include "lockstepd/host/revert.h"

#include <algorithm>

#include <fmt/format.h>

#include "lib/units.h"
#include "lockstepd/host/daemon.h"

namespace lockstep {

namespace {

constexpr uint64_t MARGIN_BYTES = 1 << 20;

// LVM says it in hundredths of a percent.
uint64_t room_left(const LogicalVolume &lv)
{
	const double used = std::clamp(lv.data_percent, 0.0, 100.0);
	return used >= 100 ? 0 : uint64_t(double(lv.size_bytes) * (100 - used) / 100);
}

uint64_t used(const LogicalVolume &lv) { return lv.size_bytes - room_left(lv); }

// What the reserve of the copy x has to take of the data when the volume gets the content of `target`. Whatever differs from that its copy
// has of its own, if it was not lost. Of copies that were taken here, those of a later one are among those of an earlier one.
uint64_t overwritten(const LogicalVolume &target, const SnapshotCopy &its, bool newer, const LogicalVolume &x, const SnapshotCopy &c)
{
	const bool ordered = !its.added && !c.added;
	if (ordered && !newer)
		return 0;
	const uint64_t most = used(target) + (target.size_bytes + x.size_bytes) / 10'000;    // LVM rounds
	return ordered ? most - std::min(most, used(x)) : most;
}

}    // namespace

Done can_revert_in_place(const Lvm &lvm, const std::function<Done(const std::string &from, const ReplicaMetadata &to)> &is_content, const State &state,
			 HostId self, uint32_t sid)
{
	const Snapshot *target = state.snapshot(sid);
	const SnapshotCopy *copy = target ? target->copy(self) : nullptr;
	const Pool *pool = copy ? state.pool(copy->pool, self) : nullptr;
	const std::string host = state.host_name(self);
	if (!pool)
		return not_found(fmt::format("host {} has no copy of that snapshot", host));
	auto report = lvm.report(pool->vg);
	if (!report)
		return report.error();
	const uint64_t metadata = metadata_bytes(target->size_bytes, target->block_size);
	const SnapshotLv lv{pool->vg, false, target->vid, sid, target->attempt, target->uuid, target->reserve_bytes};
	const LogicalVolume *from = report->volume(pool->vg, snapshot_lv_name(lv));
	if (!from || !room_left(*from))
		return forbidden(fmt::format("snapshot {} of volume {}: its copy on host {} is lost: its reserve was too small for what was written since", target->name,
					     target->volume, host));
	for (const auto &[id, s] : state.snapshots) {
		const SnapshotCopy *c = s.vid == target->vid ? s.copy(self) : nullptr;
		if (!c || c->pool != pool->name)
			continue;
		const LogicalVolume *found = report->volume(pool->vg, snapshot_lv_name({pool->vg, false, s.vid, id, s.attempt, s.uuid, s.reserve_bytes}));
		const uint64_t left = found ? room_left(*found) : 0;
		if (!left)
			continue;    // it is lost as it is
		const uint64_t bytes = metadata + (id == sid ? 0 : overwritten(*from, *copy, id > sid, *found, *c)), needed = bytes + bytes / 64 + MARGIN_BYTES;
		if (left < needed)
			return forbidden(fmt::format("snapshot {} of volume {}: its copy on host {} has {} left of its reserve, {} needed: delete it, or run "
						     "`lvextend --size +{} {}/{}` there", s.name, s.volume, host, format_bytes(left), format_bytes(needed),
						     format_bytes(needed - left), pool->vg, found->name));
	}
	return is_content(snapshot_lv_path(lv), {replica_lv_path(pool->vg, target->vid), copy->md_offset, target->vid, target->volume_uuid, target->size_bytes,
						 target->block_size, self, 0, 0});
}

void Daemon::serve_revert()
{
	links_.on_call("snapshot.can_revert", [this](int, Json body, Links::Reply reply) {
		if (!log_)
			return reply(failed("not ready"));
		log_->barrier([this, sid = body.at("sid").get<uint32_t>(), reply = std::move(reply)](Done reached) {
			if (!reached)
				return reply(reached.error());
			auto can = std::make_shared<Done>(Nothing{});
			workers_->submit(
				"revert",
				[can, lvm = lvm_, state = std::make_shared<const State>(state_), self = member_->host_id, sid] {
					*can = can_revert_in_place(lvm, is_content_of, *state, self, sid);
				},
				[can, reply] { reply(*can ? Result<Json>(Json::object()) : can->error()); });
		});
	});
}

}    // namespace lockstep
