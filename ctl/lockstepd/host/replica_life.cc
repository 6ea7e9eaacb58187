// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler's part in the life of this host's replicas: making one, in a new volume or one that serves, removing what is
// left of one, and taking everything down when the host leaves the cluster. How steps are taken: reconciler.cc.
//
// Each replica has an LV of its own life: the LV carries the version that added it (lvm.h). What an earlier life left, perhaps on
// a disk that was away for long, is never taken for a new replica.
#include "lockstepd/host/reconciler.h"

#include <algorithm>

#include <fmt/format.h>

namespace lockstep {

Result<ReplicaLv> Reconciler::lv_in(const State &state, const Volume &v, const std::string &pool_name, uint64_t md_offset) const
{
	const Pool *pool = state.pool(pool_name, self_);
	if (!pool)
		return not_found(fmt::format("host {} has no pool {}", state.host_name(self_), pool_name));
	ReplicaLv lv;
	lv.vg = pool->vg;
	lv.thin_pool = pool->kind == PoolKind::thin ? pool->thin_lv : "";
	lv.vid = v.vid;
	lv.uuid = v.uuid;
	lv.size_bytes = replica_lv_bytes(md_offset, v.size_bytes, v.block_size);
	lv.cluster = state.uuid;
	lv.name = v.name;
	lv.pool = pool_name;
	lv.group = v.group;
	lv.shared = v.cls == LKS_SHARED;
	return lv;
}

Result<ReplicaLv> Reconciler::lv_of(const Volume &v, const Replica &r) const
{
	auto lv = lv_in(world_.state(), v, r.pool, r.md_offset);
	if (lv)
		lv->added = r.added;
	return lv;
}

ReplicaMetadata Reconciler::metadata_of(const Volume &v, const Replica &r, const ReplicaLv &lv) const
{
	return {replica_lv_path(lv.vg, v.vid), r.md_offset, v.vid, v.uuid, v.size_bytes, v.block_size, self_, v.version, v.term};
}

// ---- a replica comes into being ----

namespace {

bool another_is_made(const Volume &v, HostId self)
{
	return std::ranges::any_of(v.replicas, [&](const Replica &r) { return r.host != self && r.clean() && r.created; });
}

}    // namespace

void Reconciler::look_creating(const Volume &v, VolumeWork &w)
{
	const Replica *r = v.replica(self_);
	if (!r || r->created || !may(w.replica))
		return;
	const KernelVolume *k = dump_ ? dump_->volume(v.vid) : nullptr;
	if (!(k && k->replica))    // an earlier life of it is detached first (look_replica)
		make_replica(v, *r, w);
}

void Reconciler::make_replica(const Volume &v, const Replica &r, VolumeWork &w)
{
	auto give_up = [&](const std::string &why) {
		if (!v.may_be_rolled_back())
			return finish(w.replica, object_name(v.vid), failed(why));
		const char *what = v.phase == Phase::creating ? "volume {} could not be created on host {}: {}"
							      : "volume {} gets no replica on host {}: {}";
		ask(v.vid, &VolumeWork::replica,
		    {{"op", "replica.failed"}, {"message", fmt::format(fmt::runtime(what), v.name, world_.state().host_name(self_), why)}});
	};
	// Another one has the content: the volume need not wait for a disk that takes none.
	if (v.reverting && w.replica.failures >= CREATE_TRIES && another_is_made(v, self_) && all_understand(world_.state(), LEVEL_REVERT)) {
		ask(v.vid, &VolumeWork::replica,
		    {{"op", "replica.failed"}, {"reverting", true},
		     {"message", fmt::format("volume {} was reverted without its replica on host {}: {}", v.name, world_.state().host_name(self_), w.replica.error)}});
		return;
	}
	w.lv_gone = false;
	auto lv = lv_of(v, r);
	if (!lv)
		give_up(lv.error().message);
	else if (!module_error_.empty())
		give_up(module_error_);
	else if (v.may_be_rolled_back() && (w.replica.failures >= CREATE_TRIES || (w.replica.failures && w.replica.status != Status::failed)))
		give_up(w.replica.error);
	else if (v.source && v.phase == Phase::creating)
		make_from_snapshot(v, r, *lv, w);
	else if (!v.adopts.empty() && v.phase == Phase::creating)
		act(v.vid, &VolumeWork::replica, vg_key(lv->vg),
		    [lvm = world_.lvm, adopt = world_.metadata.adopt, from = OrphanLv{lv->vg, v.adopts, replica_lv_tag(v.uuid)}, lv = *lv,
		     metadata = metadata_of(v, r, *lv)]() -> Done {
			    if (Done done = lvm.take_over(from, lv); !done)
				    return done;
			    return adopt(metadata);
		    },
		    [this, vid = v.vid](bool ok) {
			    if (ok)
				    ask(vid, &VolumeWork::replica, {{"op", "replica.created"}});
		    });
	else
		act(v.vid, &VolumeWork::replica, vg_key(lv->vg),
		    [lvm = world_.lvm, format = world_.metadata.format, lv = *lv, metadata = metadata_of(v, r, *lv)]() -> Done {
			    if (Done done = lvm.create(lv); !done)
				    return done;
			    return format(metadata);
		    },
		    [this, vid = v.vid](bool ok) {
			    look_at_pools_soon();
			    if (ok)
				    ask(vid, &VolumeWork::replica, {{"op", "replica.created"}});
		    });
}

// ---- a replica goes ----

void Reconciler::purge(const Volume &v, const std::string &pool, uint64_t md_offset, VolumeWork &w)
{
	if (mending(pool))
		return;
	auto lv = lv_in(world_.state(), v, pool, md_offset);
	if (!lv) {
		finish(w.replica, object_name(v.vid), lv.error());
		return;
	}
	act(v.vid, &VolumeWork::replica, vg_key(lv->vg),
	    [lvm = world_.lvm, wipe = world_.metadata.wipe, lv = *lv, md_offset]() -> Done {
		    auto report = lvm.report(lv.vg);
		    if (!report && report.error().status == Status::not_found)
			    return Nothing{};    // it went with its volume group
		    if (!report)
			    return report.error();
		    if (!report->replica(lv))
			    return Nothing{};
		    // A thick LV's content outlives it; its superblock must not vouch for a later replica of this volume.
		    if (lv.thin_pool.empty()) {
			    if (Done done = lvm.activate(lv); !done)
				    return done;
			    if (Done done = wipe(replica_lv_path(lv.vg, lv.vid), md_offset); !done)
				    return done;
		    }
		    return lvm.remove(lv);
	    },
	    [this, vid = v.vid](bool ok) {
		    works_[vid].lv_gone = ok;
		    look_at_pools_soon();
	    });
}

void Reconciler::look_remnant(const Volume &v, const Remnant &left, VolumeWork &w)
{
	if (!may(w.replica))
		return;
	if (!w.lv_gone) {
		purge(v, left.pool, left.md_offset, w);
		return;
	}
	if (may(w.gone))
		ask(v.vid, &VolumeWork::gone, {{"op", "replica.purged"}}, [this, vid = v.vid](bool ok) {
			if (ok)
				works_[vid].lv_gone = false;
		});
}

// ---- the host leaves the cluster ----

bool Reconciler::leaving() const
{
	const Host *h = world_.state().host(self_);
	return h && h->removing;
}

// Last of all, when nothing of any volume is left here.
void Reconciler::look_leaving()
{
	if (!leaving() || !dump_ || !dump_->volumes.empty() || !may(leave_task_))
		return;
	for (const auto &[vid, v] : world_.state().volumes)
		if (v.replica(self_) || v.remnant(self_))
			return;
	leave_task_.busy = true;
	world_.propose({{"op", "host.gone"}, {"host", self_}}, [this](Result<Json> answer) {
		const Done gone = outcome(answer);
		finish(leave_task_, "cluster", gone, LOG_RETRY_MAX_MS);
		if (gone && world_.removed)
			world_.removed();
	});
}

}    // namespace lockstep
