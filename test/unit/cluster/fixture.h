// SPDX-License-Identifier: GPL-2.0-or-later
//
// A cluster in memory for the tests: applies entries, checks after each that all invariants hold and that a refusal has
// changed nothing.
#pragma once

#include "lockstepd/cluster/state.h"

#include <catch2/catch_test_macros.hpp>

#include <string>
#include <vector>

namespace lockstep::test {

constexpr uint64_t MIB = 1ull << 20, GIB = 1ull << 30;

inline std::string uuid(unsigned n)
{
	std::string digits = std::to_string(n);
	return "00000000-0000-4000-8000-" + std::string(12 - digits.size(), '0') + digits;
}

// An entry with some fields changed or added.
inline nlohmann::json with(nlohmann::json entry, const nlohmann::json &changes)
{
	entry.update(changes);
	return entry;
}

struct Cluster {
	State state;
	uint64_t index = 0;
	unsigned serial = 0;

	nlohmann::json apply(const nlohmann::json &entry)
	{
		State before = state;
		nlohmann::json answer = lockstep::apply(state, ++index, entry);
		INFO(entry.dump() << " -> " << answer.dump());
		REQUIRE(state.applied == index);
		REQUIRE(check(state) == "");
		if (!answer["ok"].get<bool>()) {
			before.applied = index;
			REQUIRE(before == state);
			REQUIRE(answer["message"].get<std::string>().find('\n') == std::string::npos);
			REQUIRE_FALSE(answer["message"].get<std::string>().empty());
		} else if (answer.contains("changed") && !answer["changed"].get<bool>()) {
			before.applied = index;
			before.level = std::max(before.level, level_of(entry));    // of the log, which now holds it
			REQUIRE(before == state);
		}
		return answer;
	}

	nlohmann::json good(const nlohmann::json &entry)
	{
		nlohmann::json answer = apply(entry);
		INFO(entry.dump() << " -> " << answer.dump());
		REQUIRE(answer["ok"].get<bool>());
		return answer;
	}

	// Refused with this status; returns the message.
	std::string bad(int status, const nlohmann::json &entry)
	{
		nlohmann::json answer = apply(entry);
		INFO(entry.dump() << " -> " << answer.dump());
		REQUIRE_FALSE(answer["ok"].get<bool>());
		REQUIRE(answer["status"] == status);
		return answer["message"];
	}

	static nlohmann::json host_entry(unsigned n, const std::string &name)
	{
		return {{"op", "host.add"}, {"uuid", uuid(n)}, {"name", name}, {"addresses", {"10.0.0." + std::to_string(n)}}, {"now_ms", n}};
	}

	static nlohmann::json pool_entry(unsigned host, uint64_t size = 20 * GIB, const char *kind = "thin")
	{
		nlohmann::json entry = {{"op", "pool.add"}, {"name", "default"},  {"host", host},
					{"kind", kind},     {"vg", "vg"},         {"size_bytes", size},
					{"free_bytes", size}};
		if (std::string(kind) == "thin")
			entry["thin_lv"] = "thin";
		return entry;
	}

	// Hosts alpha, beta, gamma, delta ... with a pool "default" each.
	void form(unsigned hosts = 3)
	{
		static const char *names[] = {"alpha", "beta", "gamma", "delta", "epsilon"};
		nlohmann::json first = host_entry(1, names[0]);
		good({{"op", "cluster.init"}, {"uuid", uuid(1000)}, {"name", "lab"}, {"host", first}, {"now_ms", 1}});
		for (unsigned n = 2; n <= hosts; n++)
			good(host_entry(n, names[n - 1]));
		for (unsigned n = 1; n <= hosts; n++)
			good(pool_entry(n));
	}

	nlohmann::json create_entry(const std::string &name, uint64_t size = GIB)
	{
		return {{"op", "volume.create"}, {"name", name}, {"uuid", uuid(2000 + ++serial)}, {"size_bytes", size}, {"pool", "default"}};
	}

	// A ready volume on these hosts; its vid.
	uint32_t volume(const std::string &name, std::vector<HostId> hosts = {1, 2})
	{
		nlohmann::json entry = create_entry(name);
		entry["hosts"] = hosts;
		uint32_t vid = good(entry)["vid"];
		for (HostId h : hosts)
			good({{"op", "replica.created"}, {"vid", vid}, {"host", h}});
		REQUIRE(state.volume(vid)->phase == Phase::ready);
		return vid;
	}

	const Volume &vol(uint32_t vid) { return *state.volume(vid); }
	ReplicaState replica(uint32_t vid, HostId host) { return vol(vid).replica(host)->state; }

	void online(HostId host, bool is)
	{
		good({{"op", "host.status"}, {"host", host}, {"online", is}, {"now_ms", index}});
	}

	uint64_t open(uint32_t vid, HostId host)
	{
		return good({{"op", "record.open"}, {"vid", vid}, {"host", host}})["session"];
	}

	// A snapshot that is kept, of a volume that is served; its sid.
	uint32_t take_snapshot(uint32_t vid, const std::string &name)
	{
		const uint32_t sid = good({{"op", "snapshot.create"}, {"keep", true}, {"name", name}, {"vids", {vid}}, {"uuids", {uuid(3000 + ++serial)}}, {"now_ms", 1}})["sids"][0];
		auto of = [&](const char *op, HostId host) { return nlohmann::json{{"op", op}, {"sid", sid}, {"host", host}, {"attempt", 1}, {"hold", 100 + sid}}; };
		good(of("snapshot.held", vol(vid).primary));
		for (const SnapshotCopy &copy : std::vector<SnapshotCopy>(state.snapshot(sid)->copies))
			good(of("snapshot.taken", copy.host));
		good(of("snapshot.resumed", vol(vid).primary));
		REQUIRE(state.snapshot(sid)->phase == SnapshotPhase::ready);
		return sid;
	}

	nlohmann::json proposal(uint32_t vid, std::vector<HostId> members)
	{
		const Volume &v = vol(vid);
		return {{"op", "record.propose"}, {"vid", vid}, {"host", v.primary}, {"version", v.version}, {"term", v.term}, {"members", members}};
	}

	void suspect(uint32_t vid, HostId host) { good({{"op", "record.suspect"}, {"vid", vid}, {"host", host}}); }
};

inline bool has(const std::string &text, const std::string &part) { return text.find(part) != std::string::npos; }

// The entries that make a cluster of so many hosts, each with a large pool.
inline std::vector<nlohmann::json> forming(unsigned hosts)
{
	std::vector<nlohmann::json> entries;
	for (unsigned n = 1; n <= hosts; n++) {
		const nlohmann::json host = {{"uuid", uuid(n)}, {"name", "host" + std::to_string(n)}, {"addresses", {"10.0.0." + std::to_string(n)}}, {"now_ms", n}};
		if (n == 1)
			entries.push_back({{"op", "cluster.init"}, {"uuid", uuid(100000)}, {"name", "lab"}, {"host", host}, {"now_ms", 1}});
		else
			entries.push_back(with(host, {{"op", "host.add"}}));
		entries.push_back(with(Cluster::pool_entry(n, 100000 * GIB), {{"host", n}}));
	}
	return entries;
}

}    // namespace lockstep::test
