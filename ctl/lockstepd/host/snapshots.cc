// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler, taking and removing snapshots: what this host does of it. See cluster/snapshots.cc for what is agreed.
//
// The host that serves a volume has its kernel hold still and, once nothing is in flight, says so to the log with the number of the
// hold. A number is chosen anew for every hold and never used for a second one, so what the log has cannot be mistaken for
// a later hold. In the kernel a hold is a lease, which ends soon after its daemon; it is renewed while hosts take their copies, for
// HOLD_MOST_MS at most. A hold that ends before its time breaks the snapshot at once.
//
// What a guest was told is written may be in the memory of disks, on every host. A host that lost it after `ready` would get it again, but a
// classic snapshot there first keeps the block that was overwritten: the old one. So the replica is flushed before its copy is taken, while
// nothing is written. That takes as long as disks have much in memory, and guests wait for it; a flush when the copy is prepared leaves little.
#include <algorithm>

#include <fmt/format.h>

#include "lockstepd/host/reconciler.h"

namespace lockstep {

namespace {

std::string title(const Snapshot &s) { return fmt::format("snapshot {} of volume {}", s.name, s.volume); }

}    // namespace

void Reconciler::act_on(uint32_t sid, const std::string &key, std::function<Done()> step, std::function<void(const Done &)> after)
{
	snapshot_works_[sid].task.busy = true;
	auto result = std::make_shared<Done>(Nothing{});
	world_.run(
		key, [result, step = std::move(step)] { *result = step(); },
		[this, sid, result, after = std::move(after)] {
			const Snapshot *s = world_.state().snapshot(sid);
			finish(snapshot_works_[sid].task, s ? title(*s) : fmt::format("snapshot {}", sid), *result);
			after(*result);
			look();
		});
}

void Reconciler::ask_on(uint32_t sid, Json entry, std::function<void(bool)> after)
{
	snapshot_works_[sid].task.busy = true;
	entry["sid"] = sid;
	entry["host"] = self_;
	world_.propose(entry, [this, sid, after = std::move(after)](Result<Json> answer) {
		const Snapshot *s = world_.state().snapshot(sid);
		const Done result = outcome(answer);
		finish(snapshot_works_[sid].task, s ? title(*s) : fmt::format("snapshot {}", sid), result, LOG_RETRY_MAX_MS);
		if (after)
			after(bool(result));
		look();
	});
}

Result<SnapshotLv> Reconciler::snapshot_lv(const Snapshot &s, const SnapshotCopy &copy) const
{
	const Pool *pool = world_.state().pool(copy.pool, self_);
	if (!pool)
		return not_found(fmt::format("{}: host {} has no pool {}", title(s), world_.state().host_name(self_), copy.pool));
	return SnapshotLv{pool->vg, pool->kind == PoolKind::thin, s.vid, s.sid, s.attempt, s.uuid, s.reserve_bytes};
}

// Those that are at rest have no work.
void Reconciler::look_at_snapshots(bool all)
{
	const State &state = world_.state();
	std::set<uint32_t> sids;
	for (const auto &[sid, w] : snapshot_works_)
		sids.insert(sid);
	if (all)
		for (const auto &[sid, s] : state.snapshots)
			sids.insert(sid);
	for (uint32_t sid : sids)
		if (const Snapshot *s = state.snapshot(sid))
			look_at_snapshot(*s);
	std::erase_if(snapshot_works_, [&](const auto &entry) { return !state.snapshot(entry.first) && !entry.second.task.busy; });
}

void Reconciler::look_at_snapshot(const Snapshot &s)
{
	if (s.phase == SnapshotPhase::ready) {
		look_at_copy(s);
		return;
	}
	SnapshotWork &w = snapshot_works_[s.sid];
	if (w.copy)
		w.copy->stop = true;    // it is being deleted
	renew_hold(s, w);
	if (!may(w.task))
		return;
	if (w.attempt != s.attempt) {
		w = {};
		w.attempt = s.attempt;
	}
	const SnapshotCopy *copy = s.copy(self_);
	switch (s.phase) {
	case SnapshotPhase::preparing:
		if (copy && !copy->prepared)
			prepare_snapshot(s, *copy);
		break;
	case SnapshotPhase::quiescing:
		if (!s.hold)
			hold_still(s, w);
		break;
	case SnapshotPhase::taking:
		if (s.holder == self_ && w.hold == s.hold && w.over)
			break_snapshot(s, fmt::format("{} was given up: its volume could not be held still for long enough", title(s)));
		else if (copy && !copy->taken)
			take_snapshot(s, *copy, w);
		break;
	case SnapshotPhase::resuming:
		if (s.holder == self_ && !s.resumed)
			let_go(s, w);
		break;
	case SnapshotPhase::discarding:
	case SnapshotPhase::deleting:
		if (copy)
			remove_snapshot(s, *copy, w);
		break;
	case SnapshotPhase::ready:
		break;
	}
}

void Reconciler::hold_still(const Snapshot &s, SnapshotWork &w)
{
	const Volume *v = world_.state().volume(s.vid);
	const KernelVolume *k = dump_ ? dump_->volume(s.vid) : nullptr;
	if (!v || !k || v->primary != self_ || k->role != LKS_ACTIVE || k->noted_version < v->version)
		return;
	if (suspended(s.vid)) {
		break_snapshot(s, fmt::format("{} cannot be taken: the writes of volume {} are suspended; `lockstep resume-io {}` lets them go on", title(s),
					      s.volume, s.volume), true);
		return;
	}
	if (w.hold && w.over) {
		break_snapshot(s, fmt::format("{} was given up: what its volume had begun to write did not end within {} s, see `lockstep status {}`",
					      title(s), HOLD_MS / 1000, s.volume));
		return;
	}
	if (w.hold && w.quiesced) {
		ask_on(s.sid, {{"op", "snapshot.held"}, {"attempt", s.attempt}, {"hold", w.hold}});
		return;
	}
	if (w.hold)
		return;    // EV_QUIESCED or EV_UNQUIESCED comes
	w.hold = next_hold();
	w.begun_ms = w.renewed_ms = world_.now_ms();
	act_on(s.sid, serve_key(s.vid),
	       [kernel = world_.kernel, vid = s.vid, hold = w.hold, stale = k->hold]() -> Done {
		       if (stale)
			       (void)kernel.resume(vid, stale);    // of a daemon before this one
		       return kernel.quiesce(vid, hold, HOLD_MS);
	       },
	       [this, sid = s.sid, vid = s.vid](const Done &done) {
		       if (!done)
			       snapshot_works_[sid].hold = 0;
		       hold_changed(vid);
	       });
}

// Also while this host takes its own copy. One that comes too late is refused by the kernel, and is no new hold.
void Reconciler::renew_hold(const Snapshot &s, SnapshotWork &w)
{
	const uint64_t now_ms = world_.now_ms();
	const bool stands = w.hold && w.quiesced && !w.over && w.attempt == s.attempt && s.in_progress() && (!s.hold || s.hold == w.hold);
	if (!stands || now_ms - w.renewed_ms < HOLD_RENEW_MS || now_ms - w.begun_ms + HOLD_MS > HOLD_MOST_MS)
		return;
	w.renewed_ms = now_ms;
	call_kernel(serve_key(s.vid), [kernel = world_.kernel, vid = s.vid, hold = w.hold] { return kernel.quiesce(vid, hold, HOLD_MS); }, [](Done) {});
}

// What a dump of before says of holds is not to be acted on.
void Reconciler::hold_changed(uint32_t vid)
{
	works_[vid].serve.needs_dump = dumps_begun_ + 1;
	touch(vid);
	request_dump();
}

void Reconciler::snapshot_event(const KernelEvent &event)
{
	for (auto &[sid, w] : snapshot_works_)
		if (w.hold && w.hold == event.hold) {
			w.quiesced = w.quiesced || event.kind == LKS_CMD_EV_QUIESCED;
			w.over = w.over || event.kind == LKS_CMD_EV_UNQUIESCED;
		}
}

void Reconciler::prepare_snapshot(const Snapshot &s, const SnapshotCopy &copy)
{
	auto lv = snapshot_lv(s, copy);
	if (!lv) {
		break_snapshot(s, lv.error().message, true);
		return;
	}
	auto number = std::make_shared<uint64_t>(0);
	act_on(s.sid, vg_key(lv->vg),
	       [lvm = world_.lvm, lv = *lv, number]() -> Done {
		       auto prepared = lvm.prepare(lv);
		       if (!prepared)
			       return prepared.error();
		       *number = *prepared;
		       return lvm.flush(lv.vg, replica_lv_name(lv.vid));
	       },
	       [this, sid = s.sid, attempt = s.attempt, number](const Done &done) {
		       const Snapshot *s = world_.state().snapshot(sid);
		       if (!s || s->attempt != attempt)
			       return;
		       snapshot_works_[sid].prepared = *number;
		       if (done)
			       ask_on(sid, {{"op", "snapshot.prepared"}, {"attempt", attempt}});
		       else
			       break_snapshot(*s, fmt::format("{} could not be prepared on host {}: {}", title(*s), world_.state().host_name(self_),
							      done.error().message));
	       });
}

void Reconciler::take_snapshot(const Snapshot &s, const SnapshotCopy &copy, SnapshotWork &w)
{
	auto lv = snapshot_lv(s, copy);
	if (!lv) {
		break_snapshot(s, lv.error().message, true);
		return;
	}
	// It takes what its volume takes now, while that stands still, for ever; LVM tells it only of what is in use.
	auto allocated = std::make_shared<uint64_t>(0);
	const bool tell = lv->thin && all_understand(world_.state(), LEVEL_ALLOCATED);
	// What has been prepared does not wait for what LVM does meanwhile for others.
	const bool prepared = s.prepare;
	act_on(s.sid, prepared ? fmt::format("take:{}", s.sid) : vg_key(lv->vg),
	       [lvm = world_.lvm, lv = *lv, allocated, tell, prepared, number = w.prepared]() -> Done {
		       if (Done done = lvm.flush(lv.vg, replica_lv_name(lv.vid)); !done)
			       return done;
		       *allocated = tell ? lvm.allocated(lv.vg, replica_lv_name(lv.vid)) : 0;
		       return prepared ? lvm.take(lv, number) : lvm.snapshot(lv);
	       },
	       [this, sid = s.sid, attempt = s.attempt, allocated](const Done &done) {
		       const Snapshot *s = world_.state().snapshot(sid);
		       if (!s || s->attempt != attempt)
			       return;
		       Json entry = {{"op", "snapshot.taken"}, {"attempt", attempt}};
		       if (*allocated)
			       entry["allocated"] = *allocated;
		       if (done)
			       ask_on(sid, std::move(entry));
		       else
			       break_snapshot(*s, fmt::format("{} could not be taken on host {}: {}", title(*s), world_.state().host_name(self_),
							      done.error().message));
	       });
}

// The kernel alone knows whether nothing was written since the hold began. Asked twice it says no, which costs a second try.
void Reconciler::let_go(const Snapshot &s, SnapshotWork &)
{
	act_on(s.sid, serve_key(s.vid), [kernel = world_.kernel, vid = s.vid, hold = s.hold] { return kernel.resume(vid, hold); },
	       [this, sid = s.sid, vid = s.vid, attempt = s.attempt](const Done &done) {
		       hold_changed(vid);
		       const Snapshot *s = world_.state().snapshot(sid);
		       if (!s || s->attempt != attempt)
			       return;
		       if (done)
			       ask_on(sid, {{"op", "snapshot.resumed"}, {"attempt", attempt}});
		       else
			       break_snapshot(*s, fmt::format("{} was given up: its volume was written to before all copies were taken", title(*s)));
	       });
}

void Reconciler::break_snapshot(const Snapshot &s, const std::string &why, bool final)
{
	Json entry = {{"op", "snapshot.broken"}, {"set", s.set}, {"attempt", s.attempt}, {"message", why}};
	if (final)
		entry["final"] = true;
	ask_on(s.sid, std::move(entry));
}

void Reconciler::remove_snapshot(const Snapshot &s, const SnapshotCopy &copy, SnapshotWork &w)
{
	if (mending(copy.pool))
		return;
	auto lv = snapshot_lv(s, copy);
	if (!lv) {
		finish(w.task, title(s), lv.error());
		return;
	}
	act_on(s.sid, vg_key(lv->vg), [lvm = world_.lvm, lv = *lv] { return lvm.remove_snapshot(lv); },
	       [this, sid = s.sid](const Done &done) {
		       look_at_pools_soon();
		       if (done)
			       ask_on(sid, {{"op", "snapshot.removed"}});
	       });
}

// ---- a copy that comes here although it was taken elsewhere, or goes (cluster/snapshot_copies.cc) ----

void Reconciler::look_at_copy(const Snapshot &s)
{
	const auto mine = [&](const std::vector<SnapshotCopy> &list) {
		auto it = std::find_if(list.begin(), list.end(), [&](const SnapshotCopy &c) { return c.host == self_; });
		return it == list.end() ? nullptr : &*it;
	};
	const SnapshotCopy *arriving = mine(s.arriving), *going = mine(s.going);
	if (!arriving && !going && !snapshot_works_.contains(s.sid))
		return;
	SnapshotWork &w = snapshot_works_[s.sid];
	if (w.copy && !arriving)
		w.copy->stop = true;
	if (!may(w.task))
		return;
	if (!arriving && !going) {
		snapshot_works_.erase(s.sid);
		return;
	}
	if (going)
		remove_snapshot(s, *going, w);
	else if (w.md_offset && w.added == arriving->added)
		ask_on(s.sid, {{"op", "snapshot.copied"}, {"added", w.added}, {"md_offset", w.md_offset}});
	else
		copy_here(s, *arriving, w);
}

// One at a time of a volume group: they would only slow each other down.
void Reconciler::copy_here(const Snapshot &s, const SnapshotCopy &copy, SnapshotWork &w)
{
	auto task = copy_task(world_.state(), self_, s, copy, w.task.failures);
	if (!task) {
		finish(w.task, title(s), task.error());
		return;
	}
	w.copy = std::make_shared<CopyProgress>();
	auto offset = std::make_shared<uint64_t>(0);
	act_on(s.sid, "copy:" + task->lv.vg,
	       [make = world_.copy_snapshot, task = *task, progress = w.copy, offset]() -> Done {
		       auto made = make(task, *progress);
		       if (!made)
			       return made.error();
		       *offset = *made;
		       return Nothing{};
	       },
	       [this, sid = s.sid, added = copy.added, offset](const Done &done) {
		       SnapshotWork &w = snapshot_works_[sid];
		       look_at_pools_soon();
		       if (done && !w.copy->stop)
			       w.md_offset = *offset;
		       w.added = added;
		       w.copy.reset();
	       });
}

void Reconciler::stop_copies()
{
	for (auto &[sid, w] : snapshot_works_)
		if (w.copy)
			w.copy->stop = true;
	for (auto &[vid, w] : works_)
		if (w.making)
			w.making->stop = true;
}

bool Reconciler::hold_is_wanted(uint32_t vid, uint64_t hold) const
{
	for (const auto &[sid, s] : world_.state().snapshots) {
		if (s.vid != vid || !s.in_progress())
			continue;
		auto w = snapshot_works_.find(sid);
		if (s.hold == hold || (!s.hold && w != snapshot_works_.end() && w->second.attempt == s.attempt && w->second.hold == hold))
			return true;
	}
	auto own = suspensions_.find(vid);
	return own != suspensions_.end() && own->second.hold == hold && own->second.over.empty();
}

// ---- a replica with the content of a snapshot ----

void Reconciler::make_from_snapshot(const Volume &v, const Replica &r, const ReplicaLv &lv, VolumeWork &)
{
	const Snapshot *s = world_.state().snapshot(v.source);
	const SnapshotCopy *copy = s ? s->copy(self_) : nullptr;
	auto from = copy ? snapshot_lv(*s, *copy) : Result<SnapshotLv>(SnapshotLv{});
	if (!from) {
		finish(works_[v.vid].replica, object_name(v.vid), from.error());
		return;
	}
	const bool in_place = v.reverting && lv.thin_pool.empty();
	if (in_place && !copy) {    // it would go with all that it has of other snapshots
		finish(works_[v.vid].replica, object_name(v.vid), failed(fmt::format("host {} has no copy of the snapshot", world_.state().host_name(self_))));
		return;
	}
	const ReplicaMetadata metadata = metadata_of(v, r, lv);
	const std::string content = fmt::format("{}.{}", s ? s->uuid : "", v.version);
	auto progress = std::make_shared<ContentProgress>();
	auto step = [lvm = world_.lvm, tools = world_.metadata, from = *from, lv, metadata, content, copied = copy != nullptr, in_place, progress]() -> Done {
		if (in_place) {
			if (Done done = lvm.activate(lv); !done)    // and its snapshots with it
				return done;
			return tools.revert(snapshot_lv_path(from), metadata, *progress);
		}
		if (!copied) {
			// A revert, and no copy here: the replica is made anew and gets its content from the others.
			if (Done done = lvm.remove(lv); !done)
				return done;
			if (Done done = lvm.create(lv); !done)
				return done;
			return tools.format(metadata);
		}
		if (Done done = lvm.clone(from, lv, content); !done)
			return done;
		if (!from.thin)
			if (Done done = tools.copy(snapshot_lv_path(from), metadata, *progress); !done)
				return done;
		return tools.adopt(metadata);
	};
	// What is copied may take hours: snapshots of other volumes, which hold writes back, do not wait for that.
	const bool copies = lv.thin_pool.empty();
	if (copies)
		works_[v.vid].making = progress;
	act(v.vid, &VolumeWork::replica, copies ? "copy:" + lv.vg : vg_key(lv.vg), std::move(step), [this, vid = v.vid](bool ok) {
		works_[vid].making.reset();
		look_at_pools_soon();
		if (ok)
			ask(vid, &VolumeWork::replica, {{"op", "replica.created"}});
	});
}

}    // namespace lockstep
