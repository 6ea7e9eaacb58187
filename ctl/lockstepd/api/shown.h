// SPDX-License-Identifier: GPL-2.0-or-later
//
// Parts of /v1/status (status.cc); pure.
#pragma once

#include "lockstepd/api/reports.h"
#include "lockstepd/cluster/state.h"

#include <nlohmann/json.hpp>

namespace lockstep {

// What is known of a volume in use: class, openers, devices, growth, quiesce, verify, what hosts complain of. self: this host.
void show_use(const State &s, const Volume &v, HostId self, const Reports &soft, nlohmann::json &j);

// With names in place of ids; null for a rule that there is not.
nlohmann::json rules_json(const State &s, const Rules &rules);

nlohmann::json snapshots_json(const State &s, const Reports &soft);

}    // namespace lockstep
