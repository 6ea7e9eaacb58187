// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler, and the pools of this host: what they have is looked at from time to time, and said to the log when it has changed.
//
// A thin pool whose metadata are full takes no more writes and may need a repair, however much room its data have. So they grow, in
// steps of a quarter, from METADATA_GROW_PERCENT on, into what the volume group has free: `scripts/install` leaves as much as they
// have. What LVM keeps as a spare for repairs grows with them. Level-triggered: it is decided by what LVM has just said.
//
// So are disks that are to leave a pool, and thin pools that are to take the room of a new one (lvm_disks.cc): each look is a step.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "lib/units.h"
#include "lockstepd/host/disks.h"
#include "lockstepd/host/reconciler.h"

namespace lockstep {

namespace {

constexpr double METADATA_GROW_PERCENT = 70;
constexpr uint64_t DISK_PERIOD_MS = 3000;    // while one is being emptied

struct DiskLook {
	std::string disk;
	Result<DiskMove> move = DiskMove{};
};

// What a worker found and did.
struct PoolLook {
	Result<PoolSpace> space = PoolSpace{};
	std::map<std::string, uint64_t> allocation;
	uint64_t grow_bytes = 0;    // the metadata were to grow by this
	Done grown = Nothing{};
	std::vector<DiskLook> disks;    // that are leaving
	std::vector<Result<std::string>> labels;    // of those that have left, taken off
	uint64_t data_bytes = 0;        // the data have taken so much of a new disk
	Done data = Nothing{};
};

void look_at_disks(const Lvm &lvm, const LvmReport &report, const std::string &vg, const std::string &thin_pool,
		   const std::map<std::string, double> &last, PoolLook &look)
{
	for (const PhysicalVolume &d : report.disks)
		if (d.vg == vg && d.leaving) {
			const auto before = last.find(d.disk);
			look.disks.push_back({d.disk, lvm.drain_disk(vg, d.disk, before == last.end() ? -1 : before->second)});
		}
	const VolumeGroup *group = report.group(vg);
	for (const std::string &uuid : group ? group->departed : std::vector<std::string>())
		if (std::ranges::none_of(report.disks, [&](const PhysicalVolume &d) { return d.vg == vg && d.uuid == uuid && d.leaving; }))
			look.labels.push_back(lvm.clear_label(vg, uuid));
	if (!look.disks.empty() || thin_pool.empty() || !group || !group->growing)
		return;
	look.data_bytes = data_growth(report, vg, thin_pool);
	look.data = lvm.grow_data(vg, thin_pool, look.data_bytes);
}

PoolLook inspect(const Lvm &lvm, const std::string &vg, const std::string &thin_pool, const std::map<std::string, double> &last)
{
	PoolLook look;
	auto report = lvm.report(vg);
	if (!report) {
		look.space = report.error();
		return look;
	}
	look_at_disks(lvm, *report, vg, thin_pool, last, look);
	if (look.data_bytes)
		if (auto after = lvm.report(vg); after)
			report = std::move(after);
	look.space = pool_space(*report, vg, thin_pool);
	look.allocation = allocation(*report, vg, thin_pool);
	if (!look.space || !(look.grow_bytes = metadata_growth(*report, vg, thin_pool)))
		return look;
	look.grown = lvm.grow_metadata(vg, thin_pool, look.grow_bytes);
	// What it is now; what it was is still true if LVM does not answer any more.
	if (auto after = lvm.report(vg); after)
		look.space = pool_space(*after, vg, thin_pool);
	return look;
}

}    // namespace

uint64_t metadata_growth(const LvmReport &report, const std::string &vg, const std::string &thin_pool)
{
	const VolumeGroup *group = report.group(vg);
	const LogicalVolume *pool = thin_pool.empty() ? nullptr : report.volume(vg, thin_pool);
	if (!group || !pool || !group->extent_bytes || pool->metadata_percent < METADATA_GROW_PERCENT)
		return 0;
	const uint64_t extent = group->extent_bytes;
	const uint64_t quarter = (pool->metadata_bytes / 4 + extent - 1) / extent * extent;
	const uint64_t room = group->free_bytes / 2 / extent * extent;    // the spare grows, too
	return std::max(std::min(quarter, room), extent);
}

void Reconciler::look_at_pools()
{
	forget_pools();
	for (const auto &[key, pool] : world_.state().pools) {
		if (pool.host != self_)
			continue;
		Task &task = pool_tasks_[pool.name];
		if (pool.deleting) {
			if (may(task))
				let_go(pool);
			continue;
		}
		auto seen = pool_seen_ms_.find(pool.name);
		const uint64_t period_ms = pool.mending.empty() ? POOL_PERIOD_MS : DISK_PERIOD_MS;
		if (!may(task) || (seen != pool_seen_ms_.end() && world_.now_ms() - seen->second < period_ms && !task.failures))
			continue;
		task.busy = true;
		pool_seen_ms_[pool.name] = world_.now_ms();
		if (!pool.mending.empty()) {
			mend(pool);
			continue;
		}
		auto look = std::make_shared<PoolLook>();
		world_.run(
			vg_key(pool.vg),
			[look, lvm = world_.lvm, vg = pool.vg, thin = pool.thin_lv, last = disk_percent_] { *look = inspect(lvm, vg, thin, last); },
			[this, look, name = pool.name] {
				const Pool *pool = world_.state().pool(name, self_);
				if (!pool || pool->deleting)
					return finish(pool_tasks_[name], "pool " + name, Nothing{});
				const std::string object = "pool " + name;
				if (look->grow_bytes && look->grown)
					world_.log(fmt::format("{}: the metadata of thin pool {}/{} were filling up and have grown by {}", object,
							       pool->vg, pool->thin_lv, format_bytes(look->grow_bytes)));
				if (look->space) {
					allocation_[name] = std::move(look->allocation);
					finish(metadata_tasks_[name], object, look->grown);
				}
				Done disks = look->data;
				if (look->data_bytes && disks)
					world_.log(fmt::format("{}: thin pool {}/{} has grown by {} into its new disk", object, pool->vg, pool->thin_lv,
							       format_bytes(look->data_bytes)));
				const auto is_out = [&](const std::string &disk) {
					disk_percent_.erase(disk);
					world_.log(fmt::format("{}: disk {} is empty, and out of volume group {}", object, disk, pool->vg));
				};
				for (const DiskLook &d : look->disks) {
					if (!d.move)
						disks = d.move.error();
					else if (d.move->gone)
						is_out(d.disk);
					else
						disk_percent_[d.disk] = d.move->percent;
				}
				for (const Result<std::string> &disk : look->labels) {
					if (!disk)
						disks = disk.error();
					else if (!disk->empty())
						is_out(*disk);
				}
				if (!look->disks.empty())
					pool_seen_ms_[name] = world_.now_ms() - POOL_PERIOD_MS + DISK_PERIOD_MS;
				if (look->space || !look->disks.empty() || !look->labels.empty())
					finish(disk_tasks_[name], object, disks);
				report_pool(*pool, look->space);
			});
	}
}

// A disk is dead, and what was on it is given up. What the kernel still has open of that is closed by itself, since it is in no record.
void Reconciler::mend(const Pool &pool)
{
	auto mended = std::make_shared<Result<bool>>(false);
	world_.run(
		vg_key(pool.vg),
		[mended, lvm = world_.lvm, pool, expendable = lvm_names(world_.state(), self_, pool.vg).expendable] {
			*mended = lvm.mend(pool.vg, pool.thin_lv, pool.mending_by, expendable);
		},
		[this, mended, name = pool.name, disk = pool.mending] {
			Task &task = pool_tasks_[name];
			const std::string object = "pool " + name;
			if (!*mended || !**mended)
				return finish(task, object, *mended ? Done(Nothing{}) : mended->error());
			world_.log(fmt::format("{}: its dead disk {} is out of the volume group", object, disk));
			world_.propose({{"op", "pool.mended"}, {"name", name}, {"host", self_}, {"disk", disk}}, [this, name, object](Result<Json> answer) {
				finish(pool_tasks_[name], object, outcome(answer));
				look_at_pools_soon();
				look();
			});
		});
}

// It is empty. Behind what the host was asked to do with disks (Daemon::serve_disks()): what was begun before the log said that the pool
// goes has set its marks, and what comes later is refused.
void Reconciler::let_go(const Pool &pool)
{
	const auto stays = [&](const auto &other) { return other.second.host == self_ && other.second.vg == pool.vg && !other.second.deleting; };
	const bool shared = std::ranges::any_of(world_.state().pools, stays);
	auto done = std::make_shared<Done>(Nothing{});
	pool_tasks_[pool.name].busy = true;
	world_.run(
		DISK_WORK,
		[done, lvm = world_.lvm, vg = pool.vg, shared] {
			if (!shared)
				*done = lvm.let_go(vg);
		},
		[this, done, name = pool.name] {
			if (!*done)
				return finish(pool_tasks_[name], "pool " + name, *done);
			world_.propose({{"op", "pool.deleted"}, {"name", name}, {"host", self_}}, [this, name](Result<Json> answer) {
				if (const Done gone = outcome(answer); gone && answer->value("changed", false))
					world_.log(fmt::format("pool {} is deleted; its volume group stays as it is", name));
				finish(pool_tasks_[name], "pool " + name, outcome(answer), LOG_RETRY_MAX_MS);
				look();
			});
		});
}

// Of pools that are no more.
void Reconciler::forget_pools()
{
	const auto gone = [&](const auto &entry) { return !world_.state().pool(entry.first, self_); };
	std::erase_if(pool_seen_ms_, gone);
	std::erase_if(allocation_, gone);
	for (auto *tasks : {&pool_tasks_, &metadata_tasks_, &disk_tasks_})
		std::erase_if(*tasks, [&](const auto &entry) { return gone(entry) && !entry.second.busy; });
}

// LVM changes nothing in a group that lacks a disk, but to forget that disk: what is to be removed there waits for it.
bool Reconciler::mending(const std::string &pool_name) const
{
	const Pool *pool = world_.state().pool(pool_name, self_);
	return pool && !pool->mending.empty();
}

std::optional<uint64_t> Reconciler::allocated_bytes(const std::string &lv_path) const
{
	for (const auto &[pool, bytes] : allocation_)
		if (auto found = bytes.find(lv_path); found != bytes.end())
			return found->second;
	return std::nullopt;
}

void Reconciler::look_at_disks()
{
	for (auto &[pool, seen_ms] : pool_seen_ms_)
		seen_ms = world_.now_ms() - POOL_PERIOD_MS;
	look();
}

// A volume came or went. Not at once: LVM has just been busy, and others may come.
void Reconciler::look_at_pools_soon()
{
	for (auto &[pool, seen_ms] : pool_seen_ms_)
		seen_ms = world_.now_ms() - POOL_PERIOD_MS + POOL_SOON_MS;
}

// Small changes are not worth an entry: half a percent of the pool, or an extent of LVM.
void Reconciler::report_pool(const Pool &pool, const Result<PoolSpace> &space)
{
	Task &task = pool_tasks_[pool.name];
	const std::string object = "pool " + pool.name;
	if (!space) {
		finish(task, object, space.error());
		return;
	}
	const uint64_t change = std::max(space->free_bytes, pool.free_bytes) - std::min(space->free_bytes, pool.free_bytes);
	const bool disks_told = space->disks == pool.disks || !all_understand(world_.state(), level_of({{"op", "pool.report"}, {"disks", nullptr}}));
	const auto metadata_percent = unsigned(std::ceil(std::clamp(space->metadata_percent, 0.0, 100.0)));
	if (disks_told && space->size_bytes == pool.size_bytes && metadata_percent == pool.metadata_percent &&
	    change < std::max<uint64_t>(pool.size_bytes / 200, 4 << 20)) {
		finish(task, object, Nothing{});
		return;
	}
	Json entry = {{"op", "pool.report"}, {"name", pool.name}, {"host", self_}, {"size_bytes", space->size_bytes},
		      {"free_bytes", space->free_bytes}, {"metadata_percent", metadata_percent}};
	if (!disks_told)
		entry["disks"] = space->disks;
	world_.propose(entry, [this, name = pool.name, object](Result<Json> answer) {
		finish(pool_tasks_[name], object, outcome(answer));
		look();
	});
}

}    // namespace lockstep
