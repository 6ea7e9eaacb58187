// SPDX-License-Identifier: GPL-2.0-or-later
//
// The parts that the reconciler and the daemon are made of: configuration, programs run, LVM's reports, metadata on a
// file, worker threads, the journal.
#include <catch2/catch_test_macros.hpp>

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "lockstepd/host/command.h"
#include "lockstepd/host/config.h"
#include "lockstepd/host/journal.h"
#include "lockstepd/host/lvm.h"
#include "lockstepd/host/metadata.h"
#include "lockstepd/host/workers.h"

using namespace lockstep;

namespace {

// A directory that goes with the test.
struct TempDir {
	std::string path;
	TempDir()
	{
		char name[] = "/tmp/lockstep-unit-XXXXXX";
		REQUIRE(mkdtemp(name));
		path = name;
	}
	~TempDir() { std::filesystem::remove_all(path); }
};

std::string config_error(const std::string &text)
{
	auto config = parse_config(text, "lockstep.yaml", "box");
	REQUIRE(!config);
	CHECK(config.error().status == Status::usage);
	return config.error().message;
}

uint64_t now_ms()
{
	using namespace std::chrono;
	return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

}    // namespace

// ---- configuration ----

TEST_CASE("a configuration with everything, and one with the least")
{
	auto full = parse_config("name: alpha\n"
				 "addresses: [10.77.2.1, 'fe80::1']\n"
				 "port: 7000\n"
				 "state-dir: /s\n"
				 "socket: /r/sock\n"
				 "consensus: {heartbeat-ms: 50, election-ms: 500}\n"
				 "host-timeout-ms: 5000\n"
				 "lanes: 4\n"
				 "witness: true\n",
				 "f", "box");
	REQUIRE(full);
	CHECK(full->name == "alpha");
	CHECK(full->addresses == std::vector<std::string>{"10.77.2.1", "fe80::1"});
	CHECK(full->port == 7000);
	CHECK(full->state_dir == "/s");
	CHECK(full->socket == "/r/sock");
	CHECK(full->heartbeat_ms == 50);
	CHECK(full->election_ms == 500);
	CHECK(full->host_timeout_ms == 5000);
	CHECK(full->lanes == 4);
	CHECK(full->witness);

	auto least = parse_config("addresses: [10.77.2.1]\n", "f", "box");
	REQUIRE(least);
	CHECK(least->name == "box");
	CHECK(least->port == 7788);
	CHECK(least->state_dir == "/var/lib/lockstep");
	CHECK(least->host_timeout_ms == 4000);
	CHECK(least->lanes == default_lanes());
	CHECK(default_lanes() >= 2);    // or the leases' pings wait behind data
	CHECK(default_lanes() <= 5);
}

TEST_CASE("a bad configuration is refused with file, line and key")
{
	CHECK(config_error("") == "lockstep.yaml:1: 'addresses' is missing: list this host's storage addresses");
	CHECK(config_error("name: a\n") == "lockstep.yaml:1: 'addresses' is missing: list this host's storage addresses");
	CHECK(config_error("name: a\nadresses: [1.2.3.4]\n") == "lockstep.yaml:2: unknown key 'adresses'");
	CHECK(config_error("addresses: 1.2.3.4\n").find("'addresses' must be a list") != std::string::npos);
	CHECK(config_error("addresses: [alpha]\n").find("'alpha' is not an IP address") != std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4:77]\n").find("without a port") != std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4]\nport: 99999\n") == "lockstep.yaml:2: 'port' must be a whole number from 1 to 65535");
	CHECK(config_error("addresses: [1.2.3.4]\nport: -1\n").find("'port'") != std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4]\nport: 0x10\n").find("'port'") != std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4]\nlanes: 9\n").find("from 1 to 8") != std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4]\nsocket: run/x\n").find("absolute path") != std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4]\nconsensus: {beat: 1}\n") == "lockstep.yaml:2: unknown key 'consensus.beat'");
	CHECK(config_error("addresses: [1.2.3.4]\nconsensus: {heartbeat-ms: 100, election-ms: 200}\n").find("three times") !=
	      std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4]\nname: 'a b'\n").find("'name'") != std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4\n").find("not valid YAML") != std::string::npos);
	CHECK(config_error("addresses: [1.2.3.4]\nwitness: perhaps\n").find("'witness' must be true or false") != std::string::npos);
	CHECK(config_error("- a\n").find("key: value") != std::string::npos);
	auto missing = load_config("/nonexistent/lockstep.yaml");
	REQUIRE(!missing);
	CHECK(missing.error().message.find("/nonexistent/lockstep.yaml") != std::string::npos);
}

// ---- programs ----

TEST_CASE("a program's output and status come back, arguments go as they are")
{
	auto output = run_command({"sh", "-c", "printf '%s' \"$1\"; echo no >&2; exit 7", "x", "a b'$HOME"}, 10'000);
	REQUIRE(output);
	CHECK(output->exit_status == 7);
	CHECK(output->out == "a b'$HOME");
	CHECK(output->err == "no\n");
	auto big = run_command({"head", "-c", "3000000", "/dev/zero"}, 10'000);
	REQUIRE(big);
	CHECK(big->out.size() == 3'000'000);
	auto absent = run_command({"lockstep-no-such-program"}, 10'000);
	REQUIRE(!absent);
	CHECK(absent.error().message.find("lockstep-no-such-program") != std::string::npos);
}

TEST_CASE("a program that hangs is ended and does not hold its caller")
{
	const uint64_t begun = now_ms();
	auto hung = run_command({"sleep", "60"}, 200);
	REQUIRE(!hung);
	CHECK(hung.error().message.find("did not end") != std::string::npos);
	CHECK(now_ms() - begun < 2000);
	// One that ignores SIGTERM is killed.
	auto stubborn = run_command({"sh", "-c", "trap '' TERM; while :; do read x < /dev/zero; done"}, 200);
	REQUIRE(!stubborn);
	CHECK(now_ms() - begun < 10'000);
}

TEST_CASE("a program's end counts, not that of a grandchild that keeps its pipes")
{
	const uint64_t begun = now_ms();
	auto output = run_command({"sh", "-c", "sleep 5 & echo $!"}, 20'000);
	REQUIRE(output);
	CHECK(now_ms() - begun < 3000);
	kill(std::stoi(output->out), SIGKILL);
}

// ---- LVM ----

// Recorded from LVM 2.03.16 (fullreport with our fields); the thin pool and its volume follow lvs(8) of the same version.
static const char *REPORT = R"(  {
      "report": [
          {
              "vg": [
                  {"vg_name":"lockstep_group", "vg_size":"310378496", "vg_free":"301989888", "vg_extent_size":"4194304", "vg_missing_pv_count":"0", "vg_tags":"lockstep,lockstep.growing"}
              ]
              ,
              "pv": [
                  {"pv_name":"/dev/loop0", "pv_size":"310378496", "pv_used":"8388608", "pv_missing":"", "pv_tags":"other,lockstep.leaving"}
              ]
              ,
              "lv": [
                  {"lv_name":"lockstep.7", "lv_path":"/dev/lockstep_group/lockstep.7", "pool_lv":"", "lv_layout":"linear", "lv_size":"8388608", "data_percent":"", "metadata_percent":"", "lv_tags":"lockstep.volume=6c1c4f0e-1111-4222-8333-944445555666,other", "lv_active":"unknown", "lv_health_status":""},
                  {"lv_name":"thin_device", "lv_path":"", "pool_lv":"", "lv_layout":"thin,pool", "lv_size":"104857600", "data_percent":"25.00", "metadata_percent":"10.94", "lv_metadata_size":"4194304", "lv_tags":"", "lv_active":"active", "lv_health_status":""},
                  {"lv_name":"lockstep.8", "lv_path":"/dev/lockstep_group/lockstep.8", "pool_lv":"thin_device", "lv_layout":"thin,sparse", "lv_size":"20971520", "data_percent":"3.12", "metadata_percent":"", "lv_tags":"", "lv_active":"active", "lv_health_status":""}
              ]
              ,
              "pvseg": [
                  {"pv_uuid":"xbHvxq-VVuU-ctYm-ODnY-N4Ur-8P1Z-NayfMD"},
                  {"pv_uuid":"xbHvxq-VVuU-ctYm-ODnY-N4Ur-8P1Z-NayfMD"}
              ]
              ,
              "seg": [
                  {"lv_name":"lockstep.7", "chunk_size":"0"},
                  {"lv_name":"thin_device", "chunk_size":"65536"}
              ]
          }
      ]
  }
)";

TEST_CASE("LVM's report is read")
{
	auto report = parse_lvm_report(REPORT);
	REQUIRE(report);
	const VolumeGroup *vg = report->group("lockstep_group");
	REQUIRE(vg);
	CHECK(*vg == VolumeGroup{"lockstep_group", 310378496, 301989888, 4194304, false, true});
	REQUIRE(report->disk("lockstep_group", "/dev/loop0"));
	CHECK(*report->disk("lockstep_group", "/dev/loop0") == PhysicalVolume{"lockstep_group", "/dev/loop0", 310378496, 8388608, false, true});
	const LogicalVolume *replica = report->volume("lockstep_group", "lockstep.7");
	REQUIRE(replica);
	CHECK(replica->path == "/dev/lockstep_group/lockstep.7");
	CHECK(replica->size_bytes == 8388608);
	CHECK(replica->tags == std::vector<std::string>{"lockstep.volume=6c1c4f0e-1111-4222-8333-944445555666", "other"});
	CHECK(!replica->active);
	CHECK(replica->data_percent == -1);
	const LogicalVolume *pool = report->volume("lockstep_group", "thin_device");
	REQUIRE(pool);
	CHECK(pool->is_thin_pool);
	CHECK(pool->data_percent == 25.0);
	CHECK(pool->metadata_percent == 10.94);
	CHECK(pool->metadata_bytes == 4194304);
	CHECK(pool->chunk_bytes == 65536);
	CHECK(report->volume("lockstep_group", "lockstep.8")->pool == "thin_device");
	CHECK(!report->volume("lockstep_group", "lockstep.8")->is_thin_pool);
	CHECK(!report->volume("other", "lockstep.8"));
	// Ours is what has the name and the tag.
	ReplicaLv lv = {"lockstep_group", "", 7, "6c1c4f0e-1111-4222-8333-944445555666", 0};
	CHECK(report->replica(lv) == replica);
	lv.uuid = "6c1c4f0e-1111-4222-8333-944445555667";
	CHECK(!report->replica(lv));
}

TEST_CASE("a pool's space, and what is no pool")
{
	auto report = parse_lvm_report(REPORT);
	REQUIRE(report);
	auto thick = pool_space(*report, "lockstep_group", "");
	REQUIRE(thick);
	CHECK(thick->free_bytes == 0);    // all of it is on a disk that is leaving
	report->disks[0].leaving = false;
	CHECK(pool_space(*report, "lockstep_group", "")->free_bytes == 301989888);
	auto thin = pool_space(*report, "lockstep_group", "thin_device");
	REQUIRE(thin);
	CHECK(thin->size_bytes == 104857600);
	CHECK(thin->free_bytes == 78643200);
	CHECK(pool_space(*report, "nosuch", "").error().status == Status::not_found);
	CHECK(pool_space(*report, "lockstep_group", "nosuch").error().status == Status::not_found);
	CHECK(pool_space(*report, "lockstep_group", "lockstep.7").error().status == Status::forbidden);
	report->groups[0].incomplete = true;
	CHECK(!pool_space(*report, "lockstep_group", "thin_device"));
}

TEST_CASE("a thin pool's metadata grow from 70 % on, by a quarter, within half of what is free")
{
	auto report = parse_lvm_report(REPORT);
	REQUIRE(report);
	LogicalVolume &pool = *std::find_if(report->volumes.begin(), report->volumes.end(), [](auto &lv) { return lv.is_thin_pool; });
	constexpr uint64_t EXTENT = 4194304;
	auto growth = [&](const char *name = "thin_device") { return metadata_growth(*report, "lockstep_group", name); };
	pool.metadata_bytes = 40 * EXTENT;
	pool.metadata_percent = 69.99;
	CHECK(growth() == 0);
	pool.metadata_percent = 70;
	CHECK(growth() == 10 * EXTENT);
	CHECK(growth("") == 0);
	CHECK(growth("nosuch") == 0);
	CHECK(growth("lockstep.8") == 0);
	pool.metadata_bytes = 41 * EXTENT;
	CHECK(growth() == 11 * EXTENT);
	report->groups[0].free_bytes = 7 * EXTENT;    // the spare for repairs takes the other half
	CHECK(growth() == 3 * EXTENT);
	report->groups[0].free_bytes = 0;             // it is tried, and LVM says what is missing
	CHECK(growth() == EXTENT);
}

TEST_CASE("what LVM says when there is nothing, or not what we expect")
{
	auto none = parse_lvm_report(R"({"report": [ ] })");
	REQUIRE(none);
	CHECK(none->groups.empty());
	CHECK(!parse_lvm_report("  Volume group \"x\" not found"));
	CHECK(!parse_lvm_report(R"({"report": [{"vg": [{"vg_name":"a", "vg_size":"1.5g"}]}]})"));
}

TEST_CASE("an unknown volume group is not found, by the real tools")
{
	auto report = lvm_tools().report("lockstep-unit-test-no-such-group");
	REQUIRE(!report);
	CHECK(report.error().status == Status::not_found);
	CHECK(report.error().message == "there is no volume group lockstep-unit-test-no-such-group");
}

// ---- metadata ----

namespace {

ReplicaMetadata replica_on(const std::string &path)
{
	return {path, 64 << 20, 7, "6c1c4f0e-1111-4222-8333-944445555666", 64 << 20, 16384, 2, 3, 1};
}

std::string device_for(const TempDir &dir, const ReplicaMetadata &r, char fill)
{
	std::ofstream file(dir.path + "/lv", std::ios::binary);
	std::string chunk(1 << 20, fill);
	for (uint64_t at = 0; at < replica_lv_bytes(r.offset, r.size_bytes, r.block_size); at += chunk.size())
		file << chunk;
	REQUIRE(file);
	return dir.path + "/lv";
}

}    // namespace

TEST_CASE("a replica is formatted on a disk full of garbage, once")
{
	TempDir dir;
	ReplicaMetadata r = replica_on("");
	r.path = device_for(dir, r, '\xff');
	CHECK(!*read_superblock(r.path, r.offset));
	CHECK(!dump_replica(r.path, r.offset));
	REQUIRE(format_replica(r));
	auto dump = dump_replica(r.path, r.offset);
	REQUIRE(dump);
	CHECK((*dump)["vid"] == 7);
	CHECK((*dump)["uuid"] == r.uuid);
	CHECK((*dump)["host"] == 2);
	CHECK((*dump)["version"] == 3);
	CHECK((*dump)["size_bytes"] == r.size_bytes);
	CHECK((*dump)["hot_extents"] == 0);
	CHECK((*dump)["written_extents"] == 0);
	CHECK((*dump)["damaged_records"] == 0);

	// Idempotent: a formatted replica of this volume and host stays as it is, of another one it does not.
	r.version = 9;
	REQUIRE(format_replica(r));
	CHECK((*dump_replica(r.path, r.offset))["version"] == 3);
	r.host = 3;
	REQUIRE(format_replica(r));
	CHECK((*dump_replica(r.path, r.offset))["host"] == 3);
	CHECK((*dump_replica(r.path, r.offset))["version"] == 9);

	REQUIRE(wipe_replica(r.path, r.offset));
	CHECK(!*read_superblock(r.path, r.offset));
	REQUIRE(wipe_replica(r.path, r.offset));
}

TEST_CASE("a replica half formatted is none, and is formatted anew")
{
	TempDir dir;
	ReplicaMetadata r = replica_on("");
	r.path = device_for(dir, r, 0);
	REQUIRE(format_replica(r));
	// What a crash before the last write leaves: everything but superblock A.
	std::fstream file(r.path, std::ios::in | std::ios::out | std::ios::binary);
	file.seekp(r.offset);
	file << std::string(4096, '\0');
	file.close();
	CHECK(!*read_superblock(r.path, r.offset));
	REQUIRE(format_replica(r));
	CHECK(*read_superblock(r.path, r.offset));
}

TEST_CASE("metadata that does not fit, is misplaced or has no device is an error that names it")
{
	TempDir dir;
	ReplicaMetadata r = replica_on("");
	CHECK(!format_replica(r));
	r.path = device_for(dir, r, 0);
	ReplicaMetadata odd = r;
	odd.offset += 512;
	CHECK(format_replica(odd).error().message.find("no multiple") != std::string::npos);
	std::filesystem::resize_file(r.path, r.offset);
	Done small = format_replica(r);
	REQUIRE(!small);
	CHECK(small.error().message.find(r.path) != std::string::npos);
	ReplicaMetadata anonymous = r;
	anonymous.uuid = "no-uuid";
	CHECK(!format_replica(anonymous));
}

// ---- workers ----

namespace {

// Stands for the loop thread.
struct Mailbox {
	std::mutex lock;
	std::condition_variable wake;
	std::deque<std::function<void()>> tasks;
	void post(std::function<void()> task)
	{
		std::lock_guard hold(lock);
		tasks.push_back(std::move(task));
		wake.notify_all();
	}
	bool run_until(const std::function<bool()> &done)
	{
		const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
		while (!done()) {
			std::unique_lock hold(lock);
			if (!wake.wait_until(hold, end, [&] { return !tasks.empty(); }))
				return false;
			auto task = std::move(tasks.front());
			tasks.pop_front();
			hold.unlock();
			task();
		}
		return true;
	}
};

}    // namespace

TEST_CASE("work of one key runs in order, of different keys side by side")
{
	Mailbox box;
	Workers workers([&](std::function<void()> task) { box.post(std::move(task)); });
	std::atomic<bool> go = false;
	std::vector<int> order;
	int done = 0;
	// The first of "a" hangs until work of "b" was done: that needs both to run at the same time.
	workers.submit("a", [&] { while (!go) std::this_thread::yield(); order.push_back(1); }, [&] { done++; });
	workers.submit("a", [&] { order.push_back(2); }, [&] { done++; });
	workers.submit("b", [&] { go = true; }, [&] { done++; });
	REQUIRE(box.run_until([&] { return done == 3; }));
	CHECK(order == std::vector<int>{1, 2});
}

TEST_CASE("many keys are served by a bounded number of threads")
{
	Mailbox box;
	Workers workers([&](std::function<void()> task) { box.post(std::move(task)); });
	std::atomic<int> now = 0, most = 0;
	int done = 0;
	for (int i = 0; i < 500; i++)
		workers.submit(std::to_string(i),
			       [&] {
				       int n = ++now, m = most;
				       while (n > m && !most.compare_exchange_weak(m, n)) {
				       }
				       now--;
			       },
			       [&] { done++; });
	REQUIRE(box.run_until([&] { return done == 500; }));
	CHECK(most <= int(WORKERS_MAX));
}

TEST_CASE("after the end of the workers nothing is called back")
{
	Mailbox box;
	int done = 0;
	std::atomic<bool> begun = false;
	{
		Workers workers([&](std::function<void()> task) { box.post(std::move(task)); });
		workers.submit("a", [&] { begun = true; }, [&] { done++; });
		while (!begun || workers.busy())
			std::this_thread::yield();
	}
	for (auto &task : box.tasks)
		task();
	CHECK(done == 0);
}

// ---- journal ----

TEST_CASE("the journal tells what changed, in words")
{
	State before, after;
	after.uuid = "11111111-1111-4111-8111-111111111111";
	after.name = "test";
	Host alpha;
	alpha.id = 1;
	alpha.name = "alpha";
	alpha.addresses = {"10.0.0.1"};
	after.hosts[1] = alpha;
	Volume v;
	v.vid = 4;
	v.name = "db1";
	v.replicas.push_back({.host = 1, .pool = "default"});
	after.volumes[4] = v;
	auto lines = differences(before, after);
	REQUIRE(lines.size() == 3);
	CHECK(lines[1] == "host alpha (10.0.0.1) is a member of the cluster, host id 1");
	CHECK(lines[2] == "volume db1: is being created with id 4");
	before = after;
	CHECK(differences(before, after).empty());
	after.hosts[1].online = false;
	after.volumes[4].phase = Phase::ready;
	after.volumes[4].version = 2;
	lines = differences(before, after);
	REQUIRE(lines.size() == 2);
	CHECK(lines[0] == "host alpha is offline");
	CHECK(lines[1] == "volume db1: is ready: version 2, term 1, primary none, in sync: alpha");
	before = after;
	after.volumes.clear();
	CHECK(differences(before, after) == std::vector<std::string>{"volume db1: is gone"});
	// Who may use the API is logged, too.
	before = after;
	after.clients["boss"] = {"admin", "k", 5};
	CHECK(differences(before, after) == std::vector<std::string>{"boss has a certificate for the API (admin)"});
	before = after;
	after.clients["boss"].key = "l";
	CHECK(differences(before, after) == std::vector<std::string>{"boss has a certificate for the API (admin)"});
	before = after;
	after.clients.clear();
	CHECK(differences(before, after) == std::vector<std::string>{"boss has no certificate for the API any more"});
}
