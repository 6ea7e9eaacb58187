// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler, where a volume is served: planned handover, what happens without a quorum, holds that nobody needs any more.
//
// A handover is wanted as long as the State says that another host had better serve (wanted_primary). The kernel is told, it
// drains and has the next term proposed by itself (M1); whatever version comes next ends the matter (M2). An opener is followed
// only after a while: a volume that is opened for a moment, to be probed or copied, is not worth a change of primary.
#include <fmt/format.h>

#include "lockstepd/cluster/option.h"
#include "lockstepd/host/reconciler.h"

namespace lockstep {

void Reconciler::look_serving(const Volume &v, const KernelVolume &k, VolumeWork &w)
{
	if (!may(w.serve))
		return;
	if (look_tuning(v, k, w) || look_holds(v, k, w))
		return;
	if (v.primary != self_ || k.role != LKS_ACTIVE || k.noted_version < v.version)
		w.follow = 0;
	else if (!look_verify(v, k))
		look_handover(v, k, w);
}

// How fast resync goes; and NoQuorum::error: while there is a quorum a request waits for a fail-over as long as that takes.
bool Reconciler::look_tuning(const Volume &v, const KernelVolume &k, VolumeWork &w)
{
	const bool quorum = !world_.quorum || world_.quorum();
	const ResyncPace pace = resync_pace(world_.state());
	const VolumeTune tune = {v.no_quorum == NoQuorum::error && !quorum ? ERROR_AFTER_MS : 0, pace.ceiling_kib, pace.floor_kib, pace.target_ms};
	// What another daemon told this kernel, before a restart, stands in the dump.
	if (w.tune.value_or(k.tune) == tune)
		return false;
	act(v.vid, &VolumeWork::serve, serve_key(v.vid), [kernel = world_.kernel, vid = v.vid, tune] { return kernel.tune(vid, tune); },
	    [this, vid = v.vid, tune](bool ok) {
		    if (ok)
			    works_[vid].tune = tune;
	    });
	return true;
}

// A hold whose snapshot has been broken, or is over, must not keep writes waiting until it ends by itself.
bool Reconciler::look_holds(const Volume &v, const KernelVolume &k, VolumeWork &)
{
	if (!k.hold || hold_is_wanted(v.vid, k.hold))
		return false;
	act(v.vid, &VolumeWork::serve, serve_key(v.vid), [kernel = world_.kernel, vid = v.vid, hold = k.hold]() -> Done {
		// That it had ended meanwhile is as good.
		(void)kernel.resume(vid, hold);
		return Nothing{};
	});
	return true;
}

void Reconciler::look_handover(const Volume &v, const KernelVolume &k, VolumeWork &w)
{
	const HostId heir = wanted_primary(world_.state(), v);
	if (heir == self_ || !heir || k.hold || k.handover_to == heir) {
		w.follow = heir == self_ ? 0 : w.follow;
		return;
	}
	if (w.follow != heir) {
		w.follow = heir;
		w.follow_since_ms = world_.now_ms();
	}
	if (v.chosen_primary != heir && world_.now_ms() - w.follow_since_ms < FOLLOW_AFTER_MS)
		return;
	act(v.vid, &VolumeWork::serve, serve_key(v.vid), [kernel = world_.kernel, vid = v.vid, heir] { return kernel.hand_over(vid, heir); });
}

// ---- asked by an administrator ----

void Reconciler::call_kernel(const std::string &key, std::function<Done()> command, std::function<void(Done)> done)
{
	auto result = std::make_shared<Done>(Nothing{});
	world_.run(
		key, [result, command = std::move(command)] { *result = command(); },
		[this, result, done = std::move(done)] {
			request_dump();
			done(*result);
		});
}

void Reconciler::abort_waiting(uint32_t vid, std::function<void(Done)> done)
{
	call_kernel(serve_key(vid), [kernel = world_.kernel, vid] { return kernel.abort(vid); }, std::move(done));
}

}    // namespace lockstep
