// SPDX-License-Identifier: GPL-2.0-or-later
//
// Figures for a large cluster, hidden from the tests: make build/bench-cluster && build/bench-cluster "[bench]". 64 hosts whose host
// actions are faked: the entries that they would send are applied at once. What is measured is the state machine with all that goes
// with an entry: CBOR, checks, the leader's decisions. Through real logs: log_bench_test.cc.
#include "fixture.h"

#include "lockstepd/api/server.h"
#include "lockstepd/cluster/controller.h"
#include "lockstepd/cluster/recover.h"

#include <chrono>
#include <cstdio>
#include <fstream>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

double seconds(const std::function<void()> &work)
{
	const auto start = std::chrono::steady_clock::now();
	work();
	return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double resident_mib()
{
	std::ifstream in("/proc/self/statm");
	uint64_t total = 0, resident = 0;
	in >> total >> resident;
	return double(resident) * 4096 / (1 << 20);
}

// As from the log: bytes in, no check of all invariants after each.
struct Large {
	State state;
	uint64_t index = 0;

	json good(const json &entry)
	{
		json answer = apply_bytes(state, ++index, encode(entry));
		if (!answer["ok"].get<bool>())
			FAIL(entry.dump() << " -> " << answer.dump());
		return answer;
	}

	uint32_t create(unsigned n)
	{
		const json made = good({{"op", "volume.create"}, {"name", "v" + std::to_string(n)}, {"uuid", uuid(200000 + n)}, {"size_bytes", 10 * GIB},
					{"pool", "default"}, {"redundancy", 3}});
		const uint32_t vid = made["vid"];
		std::vector<HostId> hosts;
		for (const Replica &r : state.volume(vid)->replicas)
			hosts.push_back(r.host);
		for (HostId h : hosts)
			good({{"op", "replica.created"}, {"vid", vid}, {"host", h}});
		for (const auto &[id, h] : state.hosts)
			good({{"op", "device.ready"}, {"vid", vid}, {"host", id}});
		return vid;
	}
};

}    // namespace

TEST_CASE("64 hosts: creating, listing, memory, and the removal of a host", "[.bench]")
{
	Large c;
	for (const json &entry : forming(64))
		c.good(entry);
	CHECK(seconds([&] {
		      const double t = seconds([&] {
			      for (unsigned n = 0; n < 1000; n++)
				      c.create(n);
		      });
		      printf("bench: 1,000 volumes x 3 replicas on 64 hosts, devices on all: %.2f s\n", t);
	      }) < 20);
	for (unsigned n = 1000; n < 5000; n++)
		c.create(n);
	LocalFacts local;
	local.host_name = "host1";
	local.host = local.leader = 1;
	size_t bytes = 0;
	// As in a cluster in use: every host has said of every volume what it has of it (Reconciler::soft_report).
	Reports reports;
	const double before_mib = resident_mib();
	for (const auto &[id, h] : c.state.hosts) {
		json volumes = json::object();
		for (const auto &[vid, v] : c.state.volumes) {
			json &says = volumes[std::to_string(vid)];
			says = {{"role", "idle"}, {"has_replica", v.replica(id) != nullptr}, {"has_device", true}, {"size_bytes", v.size_bytes},
				{"openers", 0}, {"writers", 0}, {"pending", 0}, {"oldest_ms", 0}, {"version", v.version}, {"term", v.term},
				{"hot_extents", 0}, {"written_extents", 0}, {"peers", json::object()}};
			if (v.replica(id))
				says.update({{"admitted", true}, {"failed", false}, {"lv_path", "/dev/lockstep_group/lockstep." + std::to_string(vid)}});
		}
		reports.set(id, {{"volumes", volumes}});
	}
	printf("bench: the reports of 64 hosts on 5,000 volumes: resident %.0f MiB, before %.0f MiB\n", resident_mib(), before_mib);
	const auto report = [&](const char *what, const std::function<std::string()> &text) {
		const double listed = seconds([&] { bytes = text().size(); });
		printf("bench: %s of 5,000 volumes as JSON, %zu KiB: %.0f ms; resident %.0f MiB\n", what, bytes >> 10, listed * 1e3, resident_mib());
	};
	report("the brief list", [&] { return volume_list_text(c.state, local, reports, true); });
	report("the status", [&] { return status_text(c.state, local, reports); });
	report("the status as objects", [&] { return status_json(c.state, local, reports).dump(); });
	size_t snapshot_bytes = 0;
	const double snap = seconds([&] { snapshot_bytes = snapshot(c.state).size(); });
	printf("bench: a snapshot of it, %zu KiB: %.0f ms\n", snapshot_bytes >> 10, snap * 1e3);

	// All volumes have a replica on host 64 or not; it is lost with what it has.
	c.good({{"op", "host.status"}, {"host", 64}, {"online", false}, {"now_ms", 5}});
	size_t on_it = 0;
	for (const auto &[vid, v] : c.state.volumes)
		on_it += v.replica(64) != nullptr;
	const double lost = seconds([&] { c.good({{"op", "host.lost"}, {"host", 64}}); });
	printf("bench: host 64 with replicas of %zu and devices of 5,000 volumes forgotten in one entry: %.0f ms\n", on_it, lost * 1e3);
	CHECK(lost < 1);
}
