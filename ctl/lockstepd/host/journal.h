// SPDX-License-Identifier: GPL-2.0-or-later
//
// What happened, for the log: the difference of two states of the cluster, one line a change.
//
// Every host writes the same lines when it applies the same entries, so one host's log tells the cluster's history.
#pragma once

#include <string>
#include <vector>

#include "lockstepd/cluster/state.h"

namespace lockstep {

struct Change {
	std::string kind;    // "volume", "host", "pool", "snapshot" or "cluster": what it is about,
	std::string name;    // and which
	std::string line;
};

std::vector<Change> changes_between(const State &before, const State &after);
std::vector<std::string> differences(const State &before, const State &after);

// "version 7, term 2, primary alpha, open on beta, in sync: alpha beta, stale: gamma"
std::string describe_record(const State &state, const Volume &volume);

}    // namespace lockstep
