// SPDX-License-Identifier: GPL-2.0-or-later
//
// A change of this host's membership that has been decided and is to be carried out by the next start of the daemon, or now: a new
// raft id after its log was lost, or the recovery of the cluster from its log or from the disks. The file is the decision; what follows from it (certificate,
// raft directory, host.json, in this order) is idempotent, so that whoever is killed in between goes on from the file.
//
// peers.json beside it: the other hosts, for a host that has lost the log that would name them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lib/error.h"
#include "lockstepd/consensus/host_file.h"
#include "lockstepd/consensus/log.h"
#include "lockstepd/net/link.h"

namespace lockstep {

struct Pending {
	HostFile host;              // as it is to be
	std::string authority, certificate;
	nlohmann::json entry;       // of a recovery: cluster.recover or cluster.rebuild, the first entry of the new epoch; else null
	bool recovers() const { return !entry.is_null(); }
	bool rebuilds() const { return recovers() && entry.value("op", "") == "cluster.rebuild"; }
};

Result<std::optional<Pending>> load_pending(const std::string &state_dir);
Done store_pending(const std::string &state_dir, const Pending &pending);
Done drop_pending(const std::string &state_dir);    // durably; idempotent

// Everything but the entry. options: of pending.host. Blocks.
Done carry_out(const std::string &state_dir, const Pending &pending, const ConsensusOptions &options);

std::vector<LinkPeer> load_peers(const std::string &state_dir);    // empty if there is no such file, or none that can be read
Done store_peers(const std::string &state_dir, const std::vector<LinkPeer> &peers);

}    // namespace lockstep
