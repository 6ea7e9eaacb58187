// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep.yaml: the little that a host must know before it knows its cluster.
//
// Everything else is in the cluster's log. A file with an unknown key or a bad value is refused as a whole, with one line
// that names the file, the line and the key: a misspelt key must not silently mean its default.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/error.h"

namespace lockstep {

struct HostConfig {
	std::string name;                      // of this host; default: the hostname
	std::vector<std::string> addresses;    // storage addresses without port, preferred first; at least one
	uint16_t port = 7788;
	std::string state_dir = "/var/lib/lockstep";
	std::string socket = "/run/lockstep/lockstepd.sock";
	unsigned heartbeat_ms = 100;           // consensus
	unsigned election_ms = 1000;           // consensus
	unsigned host_timeout_ms = 4000;       // a host silent for so long is offline
	bool witness = false;                  // a full voter without pools, devices and kernel module; also --witness
	unsigned lanes = 2;                    // of a link this host dials: 1 .. LKS_MAX_LANES; default: see default_lanes()
};

constexpr const char *CONFIG_PATH = "/etc/lockstep/lockstep.yaml";

// One for what must not wait behind data (the kernel's lane 0), and one for data for each CPU, up to four.
unsigned default_lanes();

Result<HostConfig> load_config(const std::string &path);

// `path` is for messages only.
Result<HostConfig> parse_config(const std::string &text, const std::string &path, const std::string &hostname);

}    // namespace lockstep
