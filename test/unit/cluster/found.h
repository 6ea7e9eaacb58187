// SPDX-License-Identifier: GPL-2.0-or-later
//
// What hosts found on their disks, for tests of cluster/rebuild.h.
#pragma once

#include "lockstepd/cluster/rebuild.h"
#include "lockstepd/net/certs.h"

namespace lockstep::test {

constexpr const char *FOUND_NAMES[] = {"", "alpha", "beta", "gamma", "delta"};
constexpr const char *FOUND_CLUSTER = "c0000000-0000-4000-8000-000000000001";

inline std::string found_uuid(uint32_t vid) { return "d0000000-0000-4000-8000-00000000000" + std::to_string(vid); }

inline FoundHost found_host_named(HostId id)
{
	FoundHost h;
	h.id = id;
	h.name = FOUND_NAMES[id];
	h.raft_id = id;
	h.host = {{"id", id}, {"uuid", "a0000000-0000-4000-8000-00000000000" + std::to_string(id)}, {"name", h.name},
		  {"addresses", {"10.0.0." + std::to_string(id)}}, {"port", 7788}, {"host_level", LEVEL}, {"raft_id", id}, {"key", std::string(64, char('0' + id))}};
	h.spaces = {{"vg", "", 1ull << 40, 1ull << 39}, {"vg", "thin", 1ull << 40, 1ull << 39}};
	return h;
}

// In sync, quiet, at version 9 of term 3.
inline FoundCopy found_copy_of(uint32_t vid, HostId host)
{
	FoundCopy c;
	c.host = host;
	c.vg = "vg";
	c.lv = "lockstep." + std::to_string(vid);
	c.thin_pool = "thin";
	c.uuid = found_uuid(vid);
	c.cluster = FOUND_CLUSTER;
	c.name = "v" + std::to_string(vid);
	c.pool = "default";
	c.vid = vid;
	c.size_bytes = 1ull << 30;
	c.block_size = LKS_BLOCK_DEFAULT;
	c.md_offset = 1ull << 30;
	c.version = 9;
	c.term = 3;
	c.quiet = true;
	c.written = 5;
	return c;
}

inline RebuildInput found_input(unsigned hosts)
{
	static const Authority authority = make_authority(FOUND_CLUSTER);
	RebuildInput in = {FOUND_CLUSTER, "lab", authority, 1, {}, {}, {}, 77};
	for (unsigned id = 1; id <= hosts; id++)
		in.hosts.push_back(found_host_named(HostId(id)));
	return in;
}

}    // namespace lockstep::test
