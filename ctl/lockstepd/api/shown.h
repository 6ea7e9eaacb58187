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

// The class as users say it.
const char *class_word(const Volume &v);

// The hosts that have the volume open for writing.
nlohmann::json opener_names(const State &s, const Volume &v);

// With names in place of ids; null for a rule that there is not.
nlohmann::json rules_json(const State &s, const Rules &rules);

nlohmann::json snapshots_json(const State &s, const Reports &soft);

}    // namespace lockstep
