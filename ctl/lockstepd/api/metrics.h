// SPDX-License-Identifier: GPL-2.0-or-later
//
// GET /metrics: the status as Prometheus reads it (text format 0.0.4); pure.
//
// Every host tells of the whole cluster, so one host to ask is enough, and two are told apart by the label that Prometheus adds.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

namespace lockstep {

std::string metrics_text(const nlohmann::json &status);

}    // namespace lockstep
