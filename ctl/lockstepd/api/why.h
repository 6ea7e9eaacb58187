// SPDX-License-Identifier: GPL-2.0-or-later
//
// `lockstep why`: what is the matter with a volume or a host, and what to do about it; pure. Each cause has a code that does not change,
// a sentence, and what to do, empty where it mends itself.
#pragma once

#include "lockstepd/cluster/state.h"

#include <nlohmann/json.hpp>

namespace lockstep {

// status: of the whole cluster, as status_json() gives it; volume: one of its volumes. [{code, what, do}], the gravest first.
nlohmann::json why_volume(const nlohmann::json &status, const nlohmann::json &volume);
nlohmann::json why_host(const nlohmann::json &status, const nlohmann::json &host);

}    // namespace lockstep
