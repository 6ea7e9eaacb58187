// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the tests of the reconciler share: a world with a volume on alpha (this host) and beta that serves.
#pragma once

#include <catch2/catch_test_macros.hpp>

#include <algorithm>

#include "fakes.h"

namespace lockstep::test {

using Json = nlohmann::json;

inline uint32_t create_volume(FakeWorld &w, std::vector<int> hosts = {1, 2})
{
	Json answer = w.propose({{"op", "volume.create"}, {"name", "db1"}, {"uuid", VOLUME_UUID}, {"size_bytes", GIB}, {"pool", "default"},
				 {"redundancy", hosts.size()}, {"hosts", hosts}, {"now_ms", 1}});
	w.daemon().look();
	return answer["vid"];
}

inline void tell(FakeWorld &w, Json entry)
{
	w.propose(std::move(entry));
	w.daemon().look();
}

inline void beta_created(FakeWorld &w, uint32_t vid) { tell(w, {{"op", "replica.created"}, {"vid", vid}, {"host", 2}}); }

inline bool serving(FakeWorld &w, uint32_t vid)
{
	const Volume *v = w.state.volume(vid);
	auto k = w.volumes.find(vid);
	if (!v || v->phase != Phase::ready || k == w.volumes.end())
		return false;
	const bool replica = !v->replica(1) || (k->second.replica && k->second.replica->admitted);
	return replica && k->second.has_device && v->devices.contains(1) && k->second.noted_version == v->version;
}

// A world with a volume on alpha and beta that serves.
struct Ready {
	FakeWorld w;
	uint32_t vid = 0;
	explicit Ready(std::vector<int> hosts = {1, 2})
	{
		w.start_daemon();
		vid = create_volume(w, hosts);
		for (int host : hosts)
			if (host != 1)
				tell(w, {{"op", "replica.created"}, {"vid", vid}, {"host", host}});
		REQUIRE(w.run_until([&] { return serving(w, vid); }));
	}
	const Volume &volume() const { return *w.state.volume(vid); }
	KernelVolume &kernel() { return w.volumes.at(vid); }
};

inline KernelEvent event(lks_cmd kind, uint32_t vid)
{
	KernelEvent e;
	e.kind = kind;
	e.vid = vid;
	return e;
}

// The volume is open on this host, which serves it.
struct Open : Ready {
	explicit Open(std::vector<int> hosts = {1, 2}) : Ready(std::move(hosts)) { open(); }
	void open()
	{
		kernel().open_waiters = 1;
		w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, vid));
		REQUIRE(w.run_until([&] { return kernel().writers == 1 && kernel().role == LKS_ACTIVE; }));
	}
};

inline bool quiet(FakeWorld &w)
{
	for (const Problem &p : w.daemon().problems())
		UNSCOPED_INFO("problem: " << p.vid << " " << p.message);
	for (const std::string &v : w.violations)
		UNSCOPED_INFO("violation: " << v);
	return w.daemon().problems().empty() && w.violations.empty();
}

// Each of them happened, for the first time in this order.
inline bool in_order(const FakeWorld &w, const std::vector<std::string> &calls)
{
	std::vector<size_t> at;
	for (const std::string &call : calls)
		at.push_back(size_t(std::find(w.calls.begin(), w.calls.end(), call) - w.calls.begin()));
	return std::is_sorted(at.begin(), at.end()) && at.back() < w.calls.size();
}

inline bool before(const FakeWorld &w, const std::string &first, const std::string &second) { return in_order(w, {first, second}); }

}    // namespace lockstep::test
