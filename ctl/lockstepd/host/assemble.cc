// SPDX-License-Identifier: GPL-2.0-or-later
//
// A host that boots and hears nobody: it assembles its own replicas from its own copy of the log, and waits.
//
// What is done on the strength of that copy can be undone and tells nobody anything: an LV is activated, the kernel gets the volume and
// attaches the replica, which reads its metadata and takes part in nothing (S3, S4). No record is told to the kernel, so it has no
// primary, no session, no peers and no lanes; there is no device, as nobody could keep what an open promises, and its name may be
// another volume's by now. Nothing is proposed. No LV or snapshot is made, removed or resized, nobody is evicted, nothing is copied.
//
// So the copy may be as old as it likes. docs/replication.md goes through what may have been decided since. When the log has been heard the
// reconciler goes on from what it finds, as after any restart of the daemon: what is right stays attached, and is admitted
// after a barrier begun now (S3); the rest is detached.
#include <fmt/format.h>

#include "lockstepd/host/daemon.h"

namespace lockstep {

const LastKnown *Reconciler::last_known() const { return world_.last_known ? world_.last_known() : nullptr; }

void Reconciler::assemble()
{
	const LastKnown *known = last_known();
	if (!known || !dump_)
		return;
	for (uint32_t vid : known->certain)
		assemble(known->state, *known->state.volume(vid));
}

void Reconciler::assemble(const State &state, const Volume &v)
{
	const KernelVolume *k = dump_->volume(v.vid);
	VolumeWork &w = works_[v.vid];
	if (!k) {
		if (may(w.config))
			act(v.vid, &VolumeWork::config, config_key(v.vid), [kernel = world_.kernel, spec = kernel_spec(v)] { return kernel.volume_add(spec); });
		return;
	}
	// What knows a record was there before this daemon: if it has no replica, there was a reason.
	const Replica &r = *v.replica(self_);
	if (k->replica || !k->whole || k->noted_version || k->uuid != v.uuid || !may(w.replica) || !may(w.config))
		return;
	auto lv = lv_in(state, v, r.pool, r.md_offset);
	if (!lv)
		return finish(w.replica, object_name(v.vid), lv.error());
	act(v.vid, &VolumeWork::replica, vg_key(lv->vg), [kernel = world_.kernel, lvm = world_.lvm, lv = *lv, offset = r.md_offset]() -> Done {
		if (Done done = lvm.activate(lv); !done)
			return done;
		auto answer = kernel.replica_attach(lv.vid, replica_lv_path(lv.vg, lv.vid), offset, !lv.thin_pool.empty());
		return answer ? Done(Nothing{}) : Done(answer.error());
	});
}

// Asks this host's own log when nobody has been heard for a while, and forgets what it said when somebody has.
void Daemon::recall()
{
	if (reconciler_->synced()) {
		if (last_known_) {
			last_known_.reset();
			publish();
		}
		return;
	}
	const uint64_t now = Loop::now_ms();
	if (last_known_ || recalling_ || config_.witness || log_->leader() || now - leader_since_ms_ < UNHEARD_MS || now < recall_not_before_ms_)
		return;
	recalling_ = true;
	auto read = std::make_shared<Result<LastKnown>>(LastKnown{});
	workers_->submit(
		"log", [read, options = consensus_options(*member_), file = *member_] { *read = read_last_known(options, file); },
		[this, read] {
			recalling_ = false;
			if (!*read) {
				recall_not_before_ms_ = Loop::now_ms() + RECALL_RETRY_MS;
				loop_.log("this host's volumes are not assembled before the cluster has been heard: " + read->error().message);
				return;
			}
			if (reconciler_->synced() || stopping_)
				return;
			last_known_ = std::make_unique<const LastKnown>(std::move(**read));
			loop_.log(fmt::format("no leader has been heard: {} replicas are assembled from this host's own log, as of entry {}, and wait",
					      last_known_->certain.size(), last_known_->state.applied));
			publish();
			reconciler_->look();
		});
}

}    // namespace lockstep
