// SPDX-License-Identifier: GPL-2.0-or-later
//
// What this host's disks say of the replicas on them, for a log that is to be made anew (cluster/rebuild.h). Only reads; LVs that are not
// active are activated, so that they can be read. Everything blocks; for worker threads.
#pragma once

#include "lib/error.h"
#include "lockstepd/cluster/rebuild.h"
#include "lockstepd/host/lvm.h"

namespace lockstep {

// Fills in incomplete, top_vid, top_sid, spaces and copies, of found.id. `inspect` fills in what the metadata of the LV at `path` say, or
// FoundCopy::problem; inspect_copy but for tests.
Done survey(const Lvm &lvm, FoundHost &found, const std::function<void(const std::string &path, FoundCopy &copy)> &inspect);

void inspect_copy(const std::string &path, FoundCopy &copy);

}    // namespace lockstep
