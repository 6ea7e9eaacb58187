// SPDX-License-Identifier: GPL-2.0-or-later
//
// Rules of placement on the command line: the same options wherever a volume or a group is made or changed.
#pragma once

#include "lockstep/cli.h"

namespace lockstep::cli {

struct RuleOptions {
	std::string different, same;                    // empty: not given; "none": no such rule
	std::vector<std::string> avoid, apart_from;
};

void add_rule_options(CLI::App &command, RuleOptions &options, bool of_volume);
json rules_body(const RuleOptions &options);            // what was given, for the API
json no_rules();                                        // as the status has them
std::string rules_text(const json &rules);              // of these, in one line
void add_host_label(CLI::App &host, Context &context, Action &action);
void add_rules(CLI::App &of, const std::string &kind, Context &context, Action &action);    // kind: "volume" or "group"
void add_pin(CLI::App &replica, Context &context, Action &action);

}    // namespace lockstep::cli
