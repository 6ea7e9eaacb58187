// SPDX-License-Identifier: GPL-2.0-or-later
//
// A figure for a large cluster, as in bench_test.cc: what its 64 hosts would send is sent, their host actions are faked; the five
// daemons that vote are real as far as consensus goes: TLS, raft, logs on disk.
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <cstdio>

#include "lockstepd/cluster/state.h"
#include "fixture.h"
#include "test/unit/consensus/node.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

constexpr int DAEMONS = 5;
constexpr unsigned HOSTS = 64, VOLUMES = 1000, AT_ONCE = 32;

std::string bytes_of(const json &entry)
{
	const auto bytes = encode(entry);
	return {bytes.begin(), bytes.end()};
}

// One of the five, with the cluster's state; and whatever the hosts do whose daemon it stands for.
struct Voter {
	Voter(Loop &loop, int host, const std::string &dir) : host(host), node(loop, host, dir)
	{
		StateMachine machine;
		machine.apply = [this](uint64_t index, std::string_view e) {
			if (e.starts_with('{')) {    // of the voters' own
				json answer = node.history.apply(e);
				node.hosts_changed();
				return answer;
			}
			json answer = apply_bytes(state, index, {reinterpret_cast<const uint8_t *>(e.data()), e.size()});
			const json entry = json::from_cbor(e);
			if (entry["op"] == "volume.create")
				make_replicas(*state.volume(answer["vid"]));
			else if (entry["op"] == "replica.created" && state.volume(entry["vid"])->phase == Phase::ready)
				make_devices(*state.volume(entry["vid"]));
			else if (entry["op"] == "device.ready")
				complete += state.volume(entry["vid"])->devices.size() == HOSTS;
			return answer;
		};
		machine.snapshot = [] { return std::string(); };    // none is asked for (below), and nobody is away
		machine.restore = [](std::string_view) { return false; };
		node.own_machine = machine;
		node.options.snapshot_threshold = 1u << 30;
	}

	void propose(const json &entry)
	{
		node.log->propose(bytes_of(entry), [this](Result<json> r) { refused += !r || !(*r)["ok"].get<bool>(); }, 60'000);
	}

	void make_replicas(const Volume &v)
	{
		for (const Replica &r : v.replicas)
			if (stands_for(r.host))
				propose({{"op", "replica.created"}, {"vid", v.vid}, {"host", r.host}});
	}

	void make_devices(const Volume &v)
	{
		for (unsigned h = 1; h <= HOSTS; h++)
			if (stands_for(HostId(h)))
				propose({{"op", "device.ready"}, {"vid", v.vid}, {"host", h}});
	}

	bool stands_for(HostId h) const { return h % DAEMONS + 1 == host; }

	const int host;
	State state;
	unsigned refused = 0, complete = 0;    // volumes with all their devices
	Node node;
};

}    // namespace

TEST_CASE("64 hosts and five voters: creating a thousand volumes through the log", "[.bench]")
{
	Loop loop;
	TempDir tmp;
	std::map<int, std::unique_ptr<Voter>> voters;
	const auto good = [&](int via, const std::string &entry) {
		std::optional<Result<json>> got;
		voters[via]->node.log->propose(entry, [&](Result<json> r) { got = std::move(r); }, 30'000);
		REQUIRE(loop.run_until([&] { return got.has_value(); }, 32'000));
		INFO((*got ? (**got).dump() : got->error().message));
		REQUIRE((*got && (**got)["ok"].get<bool>()));
	};
	for (int host = 1; host <= DAEMONS; host++) {
		const std::string dir = tmp.path + "/" + std::to_string(host);
		std::filesystem::create_directories(dir);
		voters[host] = std::make_unique<Voter>(loop, host, dir);
		Node &node = voters[host]->node;
		REQUIRE((host == 1 ? ConsensusLog::bootstrap(node.options) : ConsensusLog::prepare_join(node.options)));
		REQUIRE(node.start());
		good(1, host_entry(node.me()));
	}
	REQUIRE(loop.run_until(
		[&] {
			int n = 0;
			for (const Member &m : voters[1]->node.log->members())
				n += m.role == Role::voter;
			return n == DAEMONS;
		},
		30'000));
	for (const json &entry : forming(HOSTS))
		good(1, bytes_of(entry));

	unsigned sent = 0;
	const auto finished = [&] {
		while (sent < VOLUMES && sent < voters[1]->complete + AT_ONCE) {
			sent++;
			voters[2]->propose({{"op", "volume.create"}, {"name", "v" + std::to_string(sent)}, {"uuid", uuid(200000 + sent)},
					    {"size_bytes", 10 * GIB}, {"pool", "default"}, {"redundancy", 3}});
		}
		return voters[1]->complete == VOLUMES;
	};
	const auto begun = std::chrono::steady_clock::now();
	REQUIRE(loop.run_until(finished, 200'000));
	const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
	printf("bench: 1,000 volumes x 3 replicas on 64 hosts, devices on all, through the logs of five daemons in one process: %.1f s, %llu entries\n", s,
	       static_cast<unsigned long long>(voters[1]->state.applied));
	for (auto &[host, v] : voters)
		CHECK(v->refused == 0);
	CHECK(s < 20);
	REQUIRE(loop.run_until([&] { return voters[5]->state.applied == voters[1]->state.applied; }, 10'000));
	CHECK(snapshot(voters[5]->state) == snapshot(voters[1]->state));
	voters.clear();
}
