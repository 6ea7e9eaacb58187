// SPDX-License-Identifier: GPL-2.0-or-later
//
// Orphans: logical volumes of this host that carry a tag of ours (lvm.h) and belong to nothing in the log. A cluster that was set up
// anew leaves them, a host that was forgotten (`host lost`) and joined again, a disk that was away. They hold what may be somebody's
// only copy, so none is ever removed without being asked for.
//
// Whether an LV is one is decided by the log: after a barrier begun with the question, on the loop thread. Before one is removed that
// is decided again on the volume group's worker, behind which everything queues that makes LVs there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lib/error.h"
#include "lockstepd/cluster/state.h"
#include "lockstepd/host/lvm.h"

namespace lockstep {

// The log wants this LV on this host: it is a replica's, one that is being removed, a snapshot's copy or what a volume is being adopted from.
bool log_wants(const State &state, HostId self, const LogicalVolume &lv);

// Those of the report that carry a tag of ours and are not wanted; their tag is filled in.
std::vector<OrphanLv> orphans_in(const State &state, HostId self, const LvmReport &report);

// What list_orphans() and purge_orphans() act on.
struct OrphanWorld {
	HostId self = 0;
	Lvm lvm;
	std::function<void(const std::string &key, std::function<void()> work, std::function<void()> done)> run;    // Workers::submit
	std::function<void(std::function<void(Done)> done)> barrier;    // afterwards state() is not older than the call
	std::function<const State &()> state;                            // on the loop thread
	std::function<std::shared_ptr<const State>()> published;         // on any
	std::function<nlohmann::json(const std::string &path)> inspect;  // what the metadata of an active LV say; an object, see inspect_orphan()
};

using OrphanReply = std::function<void(Result<nlohmann::json>)>;

// [{vg, lv, kind: "replica"|"snapshot", uuid, name, group, lv_bytes, thin_pool ("" if thick), active, open, content}]. name, group: of the
// volume, as the LV's tags say, "" if they do not. content: null unless it is an active replica's. uuid: only those; empty: all. show: activates replicas that are not, so that their content is known.
void list_orphans(const OrphanWorld &world, const std::string &uuid, bool show, OrphanReply done);

// Removes all with this UUID: {"removed": [{vg, lv}], "kept": [{vg, lv, message}]}.
void purge_orphans(const OrphanWorld &world, const std::string &uuid, OrphanReply done);

// {vid, host, size_bytes, block_size, md_offset, version, term, clean, absent: [host ids that lacked something]}, or {problem: text} if it
// cannot be adopted. Blocks.
nlohmann::json inspect_orphan(const std::string &path);

}    // namespace lockstep
