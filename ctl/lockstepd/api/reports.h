// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the hosts last said about themselves. Every host has a device of every volume, so there are hosts times volumes of them;
// but of one volume all hosts without a replica say the same. What is equal is kept once, and no report is ever changed: a copy
// of all costs 64 pointers, so whoever shows the cluster takes one and holds no lock meanwhile.
#pragma once

#include "lockstepd/cluster/state.h"

#include <nlohmann/json.hpp>

#include <array>
#include <memory>
#include <vector>

namespace lockstep {

class Reports {
public:
	Reports() = default;
	Reports(const nlohmann::json &all);                     // "<host id>" -> report
	// report: {"volumes": {"<vid>": {..}}}; what is something else counts as not said.
	void set(HostId host, const nlohmann::json &report);
	void erase(HostId host);
	bool said(HostId host) const { return host <= LKS_MAX_HOSTS && said_[host]; }    // anything at all
	// Disks that are being emptied on that host, path -> percent; an object.
	const nlohmann::json &disks(HostId host) const;
	bool said_of_volumes(HostId host) const { return said(host) && !said_[host]->empty(); }
	// What the host says about the volume, an object; nullptr: nothing. Valid as long as a copy with this report lives.
	const nlohmann::json *find(HostId host, uint32_t vid) const;
	const nlohmann::json &of(HostId host, uint32_t vid) const;    // the same, nothing being an empty object

private:
	struct Entry {
		uint32_t vid;
		std::shared_ptr<const nlohmann::json> report;
	};
	using Table = std::vector<Entry>;                       // ascending vid
	static const Entry *entry_of(const Table &table, uint32_t vid);
	std::shared_ptr<const nlohmann::json> shared(HostId host, uint32_t vid, const nlohmann::json &report) const;

	std::array<std::shared_ptr<const Table>, LKS_MAX_HOSTS + 1> said_;
	std::array<std::shared_ptr<const nlohmann::json>, LKS_MAX_HOSTS + 1> disks_;    // nullptr: none
};

}    // namespace lockstep
