// SPDX-License-Identifier: GPL-2.0-or-later
//
// The desired state of a cluster as a file: what `lockstep dump` writes and `lockstep apply` reads. Whatever is left out of a file is
// left as it is.
//
//   options:                        of the cluster, as `lockstep option list` names them
//     resync-floor-mib: "32"
//   hosts:
//     alpha:
//       addresses: [10.77.2.1]      preferred first
//       evacuated: false
//       options: {auto-evict-minutes: "off"}
//   pools:
//     - {name: default, host: alpha, vg: lockstep_group, thin: thin_device}
//   groups:
//     sr: {pool: default, redundancy: 2, labels: {key: text}}
//   volumes:
//     vm1:
//       size: 20GiB
//       redundancy: 2
//       pool: default
//       class: exclusive
//       on-no-quorum: freeze
//       group: sr
//       labels: {key: text}
#pragma once

#include "lib/error.h"

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

namespace lockstep::cli {

// What the daemon says: {"status", "options"}, the answers of /v1/status and /v1/options.
using Actual = nlohmann::json;

// The file's text, checked: {options, hosts, pools, groups, volumes}, each as above (size in bytes), only what stands in it. An Error
// names line and column.
Result<nlohmann::json> read_desired(const std::string &text, const std::string &file);

std::string dump_desired(const Actual &actual);    // as YAML

struct Change {
	char sign = '~';                           // '+' comes, '-' goes, '~' changes, '=' stays although the file does not name it
	std::string what;                          // one line
	std::string verb, path;                    // of the API; verb empty: nothing is done
	nlohmann::json body;
};

// What makes the cluster as the file wants it, in that order. An Error if something of it cannot be done at all; then nothing is to be
// done. prune: what the file does not name goes, but for hosts, pools and volumes in use.
Result<std::vector<Change>> changes_to(const nlohmann::json &desired, const Actual &actual, bool prune);

}    // namespace lockstep::cli
