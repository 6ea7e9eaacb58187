// SPDX-License-Identifier: GPL-2.0-or-later
//
// What an administrator can set for the whole cluster, or for one host where that makes sense.
//
//  name                  default  values              host   meaning
//  --------------------  -------  ------------------  -----  ------------------------------------------------------------
//  auto-evict-minutes    60       0.05..43200, off    yes    a host that was away for so long is evicted
//  auto-evict-percent    34       0..100              no     ... if no more of the hosts than this are away
//  disk-grace-minutes    10       0.05..43200, off    no     a replica whose disk failed so long ago is made anew elsewhere
//  oversubscription      2        1..100              no     a thin pool may promise so many times its size
//  lane-encryption       on       on, off             no     what replicas send each other is encrypted by the kernel (kTLS)
//  resync-floor-mib      16       1..65536            no     resync reads so many MiB a second in any case; the volumes of a host share it
//  resync-ceiling-mib    off      1..65536, off       no     ... so many at most
//  resync-target-ms      50       1..10000            no     ... between the two as long as reads and writes take less on average
//
// Pure functions of the State. The values are kept as the texts that were set.
#pragma once

#include "lib/error.h"
#include "lockstepd/cluster/state.h"

#include <optional>
#include <string>
#include <vector>

namespace lockstep {

struct Option {
	const char *name, *otherwise, *meaning;
	bool per_host;
};
const std::vector<Option> &options();

// Whether the value may be set: an Error (usage, not_found) says why not.
Done check_option(const std::string &name, const std::string &value, bool for_host);
// What is in force: the host's own value, else the cluster's, else the default. host 0: the cluster's.
std::string option_value(const State &state, const std::string &name, HostId host = 0);

std::optional<uint64_t> auto_evict_ms(const State &state, HostId host);    // nullopt: never
std::optional<uint64_t> disk_grace_ms(const State &state);
unsigned auto_evict_percent(const State &state);
uint64_t oversubscription_percent(const State &state);
struct ResyncPace {
	uint32_t floor_kib = 0, ceiling_kib = 0, target_ms = 0;    // a second, of each volume; 0: not set
};
ResyncPace resync_pace(const State &state);
bool lanes_encrypted(const State &state);

}    // namespace lockstep
