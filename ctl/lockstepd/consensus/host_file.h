// SPDX-License-Identifier: GPL-2.0-or-later
//
// host.json: who this host is, on its own disk.
//
// Written exactly once per membership, when the host founds or joins a cluster. Raft's safety rests on it: the id under which
// a host voted must never be used by a disk that has forgotten these votes. So the order is: first the raft directory comes
// into being (with a file MEMBER_FILE in it that names the raft id, as libraft itself writes nothing before its first vote), then
// host.json, atomically and durably. From then on a host.json without such a raft directory means that the directory was
// lost, and the host must not start raft (check_raft_dir); it has to be removed from the cluster and join again, which
// gives it a new raft id. A raft directory without host.json is a join that did not finish and may be wiped.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lib/error.h"
#include "lockstepd/net/hello.h"

namespace lockstep {

struct HostFile {
	std::string cluster_uuid;
	std::string cluster_name;
	std::string host_uuid;
	int host_id = 0;
	uint64_t raft_id = 0;
	std::string name;
};

// nullopt: there is none, the host is in no cluster. An unreadable or malformed file is an Error.
Result<std::optional<HostFile>> load_host_file(const std::string &state_dir);

// Atomic and durable: tmp, fsync, rename, fsync of the directory. Blocks.
Done store_host_file(const std::string &state_dir, const HostFile &file);

// The end of the membership: host.json is set aside, durably. Idempotent. Blocks.
Done drop_host_file(const std::string &state_dir);

// Any small file, the same way.
Done write_file_durably(const std::string &path, const std::string &content);

constexpr const char *MEMBER_FILE = "member";
std::string raft_dir_of(const std::string &state_dir);    // state_dir + "/raft"

// Says no when host.json exists but raft's memory does not, or is that of another raft id.
Done check_raft_dir(const std::string &state_dir, const HostFile &file);

std::string random_uuid();    // version 4, from the kernel's random source

}    // namespace lockstep
