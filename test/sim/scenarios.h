// SPDX-License-Identifier: GPL-2.0-or-later
//
// Scripted runs: each drives a quiet world step by step into one situation. Every bug that the simulator found in the core
// becomes one, so that it is met again whatever the seeds do.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace lockstep::sim {

struct World;
struct Options;

struct Scenario {
	const char *name;
	const char *what;                        // what it proves, one line
	void (*play)(World &);
	unsigned shared = 1;                     // as Profile::shared
	unsigned grows = 1;                      // as Profile::grows
	unsigned hosts = 4;                      // 5: there is a majority without two of them
};

const std::vector<Scenario> &scenarios();    // all, those of the catalogue included
const std::vector<Scenario> &catalogue();
// Empty, or what went wrong.
std::string run_scenario(const Scenario &s, const Options &options);

}    // namespace lockstep::sim
