// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler, growing a volume: what this host does of it. See cluster/resize.cc for what is agreed.
//
// The replica's LV is extended; the kernel writes its metadata a second time behind the new end and keeps both; the log names the
// new place; the kernel forgets the old one and zeroes it, for it becomes data. When all replicas have come so far the log
// names the new size, and the kernel of every host takes it.
//
// After a restart the replica is attached where the log says. If that is the new place, its superblock says that the old one is still
// to be zeroed, and the kernel does that; if it is the old one, the move begins anew.
#include <fmt/format.h>

#include "lockstepd/host/reconciler.h"

namespace lockstep {

bool Reconciler::look_growth(const Volume &v, const KernelVolume &k, const Replica &r, VolumeWork &w)
{
	const KernelReplica &now = *k.replica;
	if (r.wipe && now.offset == r.md_offset && !now.move_offset) {
		ask(v.vid, &VolumeWork::replica, {{"op", "replica.grown"}});
		return true;
	}
	if (r.wipe && now.offset != r.md_offset) {
		act(v.vid, &VolumeWork::replica, replica_key(v.vid),
		    [kernel = world_.kernel, vid = v.vid, offset = r.md_offset] { return kernel.meta_moved(vid, offset); });
		return true;
	}
	if (r.wipe)
		return true;    // EV_META_MOVED has the kernel looked at again
	if (!r.next_offset)
		return false;
	if (now.move_offset == r.next_offset) {
		if (now.move_current)
			ask(v.vid, &VolumeWork::replica, {{"op", "replica.moved"}, {"offset", r.next_offset}});
		return true;
	}
	auto lv = lv_of(v, r);
	if (!lv) {
		finish(w.replica, object_name(v.vid), lv.error());
		return true;
	}
	lv->size_bytes = replica_bytes(v, r);
	act(v.vid, &VolumeWork::replica, vg_key(lv->vg),
	    [kernel = world_.kernel, lvm = world_.lvm, lv = *lv, vid = v.vid, offset = r.next_offset, size = v.grow_bytes]() -> Done {
		    if (Done done = lvm.extend(lv); !done)
			    return done;
		    return kernel.meta_move(vid, offset, size);
	    },
	    [this](bool) { look_at_pools_soon(); });
	return true;
}

// On every host: with a replica, or only the device.
bool Reconciler::look_size(const Volume &v, const KernelVolume &k, VolumeWork &)
{
	if (k.size_bytes >= v.size_bytes)
		return false;
	// Until its replica is attached and describes the new size the old one is served.
	if (v.replica(self_) && (!k.replica || k.replica->failed || k.replica->capacity < v.size_bytes))
		return false;
	act(v.vid, &VolumeWork::config, config_key(v.vid),
	    [kernel = world_.kernel, vid = v.vid, size = v.size_bytes] { return kernel.resize(vid, size); });
	return true;
}

}    // namespace lockstep
