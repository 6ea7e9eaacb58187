// SPDX-License-Identifier: GPL-2.0-or-later
//
// A daemon in this process: the real API server over a real State, with hosts that are played. And the command line run
// against it, its output caught.
//
// A played host makes replicas and devices as soon as the State wants them, unless a test tells it not to.
#pragma once

#include "lockstep/cli.h"
#include "lockstepd/api/server.h"
#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/recover.h"
#include "test/unit/cluster/found.h"
#include "lockstepd/cluster/repair.h"

#include <catch2/catch_test_macros.hpp>

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>

namespace lockstep::test {

constexpr uint64_t MIB = 1ull << 20, GIB = 1ull << 30;
constexpr unsigned STARTING_TIMEOUT_MS = 100;
constexpr uint64_t NOW_MS = 1'700'000'000'000;

inline std::string uuid(unsigned n)
{
	std::string digits = std::to_string(n);
	return "00000000-0000-4000-8000-" + std::string(12 - digits.size(), '0') + digits;
}

inline bool has(const std::string &text, const std::string &part) { return text.find(part) != std::string::npos; }

struct Outcome {
	int status;
	std::string out, err;
};

class FakeDaemon {
public:
	// what tests may change before or while it runs
	LocalFacts facts{"alpha", 1, 1, ""};
	std::set<HostId> idle;                  // hosts that do nothing
	std::string create_error;               // hosts answer a new replica with this failure
	bool quorum = true;
	std::set<HostId> unreachable;           // by ask_host
	std::vector<HostId> diff_asked;         // in order
	std::vector<std::pair<HostId, nlohmann::json>> trail_asked;    // in order
	nlohmann::json trail = {{"extents", nlohmann::json::array()}, {"next", nullptr}};
	std::map<HostId, nlohmann::json> orphans;    // answers to orphan.list; 0: what is on the disks of a host in no cluster
	std::set<HostId> keep_snapshots;             // hosts that do not remove what is deleted yet
	std::set<HostId> no_revert;                  // its snapshots do not bear it
	std::function<void(HostId)> before_can_revert = [](HostId) {};    // happens when that host is asked
	std::set<HostId> disks_move;                 // a disk comes or goes there
	std::map<HostId, nlohmann::json> disks;      // answers to disk.list; each answer brings a disk that is leaving 60 % further
	std::map<HostId, nlohmann::json> mend;       // in answers to disk.change: the disk is dead
	nlohmann::json orphans_kept = nlohmann::json::array();
	unsigned rounds = 0;                    // Context::rounds
	bool terminal = false;                  // Context::terminal
	std::function<void()> first_shown;      // happens once, when the next command has shown something and goes on
	unsigned broken_holds = 0;              // so many attempts at a snapshot fail
	bool repairs = false;                   // the leader adds and removes replicas
	bool resyncs = false;                   // primaries get replicas in sync
	std::function<nlohmann::json(uint64_t begun_ms)> verify_report;    // what the primary's host says a moment after it has begun one
	nlohmann::json differs = nlohmann::json::array();    // answer to host.adjust, until it is asked to try again
	bool differs_for_ever = false;
	unsigned unheard = 0;                   // so many times this host has not heard from the cluster when it is to adjust
	std::set<HostId> closing;               // hosts that have closed everything; the log hears of it after they were asked

	explicit FakeDaemon(unsigned hosts = 3, unsigned effect_timeout_ms = 5000, const ApiLimits &limits = {})
		: server_(backend(), {socket_path(), effect_timeout_ms, STARTING_TIMEOUT_MS, limits})
	{
		if (!hosts)
			facts.host = facts.leader = 0;
		for (unsigned n = 1; n <= hosts; n++)
			add_host(n);
		Done started = server_.start();
		REQUIRE(started);
	}

	~FakeDaemon() { server_.stop(); }

	Outcome run(const std::vector<std::string> &args)
	{
		// What a command shows before it goes on it flushes: the moment to let something happen that it is to see next.
		struct Shown : std::stringbuf {
			std::function<void()> once;
			int sync() override
			{
				if (auto happens = std::exchange(once, {}))
					happens();
				return 0;
			}
		} shown;
		shown.once = std::exchange(first_shown, {});
		std::ostream out(&shown);
		std::ostringstream err;
		cli::Context context{out, err, socket_path(), true, [] {
			static std::atomic<uint64_t> now_ms = NOW_MS;
			return now_ms += 50;
		}};
		context.rounds = rounds;
		context.terminal = terminal;
		int status = cli::run(args, context);
		INFO(err.str());
		std::string line = err.str();
		if (status)
			REQUIRE((!line.empty() && line.find('\n') == line.size() - 1));    // one line
		else
			REQUIRE(line.empty());
		return {status, shown.str(), err.str()};
	}

	nlohmann::json json_of(const std::vector<std::string> &args)
	{
		Outcome o = run(args);
		REQUIRE(o.status == 0);
		return nlohmann::json::parse(o.out);
	}

	// Applies an entry as the leader would, and lets the hosts do their part.
	nlohmann::json apply(const nlohmann::json &entry)
	{
		nlohmann::json answer;
		{
			std::lock_guard lock(mutex_);
			answer = lockstep::apply(state_, state_.applied + 1, entry);
			play();
		}
		server_.changed();
		return answer;
	}

	void good(const nlohmann::json &entry)
	{
		nlohmann::json answer = apply(entry);
		INFO(answer.dump());
		REQUIRE(answer["ok"] == true);
	}

	// They go on with what they were idle about.
	void wake()
	{
		{
			std::lock_guard lock(mutex_);
			idle.clear();
		}
		good({{"op", "group.create"}, {"name", "woken"}, {"pool", "default"}});
	}

	void online(HostId host, bool is) { good({{"op", "host.status"}, {"host", host}, {"online", is}, {"now_ms", NOW_MS}}); }

	std::shared_ptr<const State> state()
	{
		std::lock_guard lock(mutex_);
		return std::make_shared<const State>(state_);
	}

	const Volume volume(const std::string &name)
	{
		auto s = state();
		REQUIRE(s->volume_named(name));
		return *s->volume_named(name);
	}

	// The kernels of all hosts have all devices, and all replicas attached but for those of one host.
	void attach_all(HostId but = 0)
	{
		auto s = state();
		for (const auto &[id, host] : s->hosts) {
			nlohmann::json volumes = nlohmann::json::object();
			for (const auto &[vid, v] : s->volumes)
				volumes[std::to_string(vid)] = {{"has_device", true}, {"has_replica", v.replica(id) != nullptr},
								{"admitted", v.replica(id) && id != but}, {"version", v.version}};
			server_.soft(id, {{"volumes", volumes}});
		}
	}

	ApiServer &server() { return server_; }
	static std::string socket_path() { return "/tmp/lockstep-unit-" + std::to_string(getpid()) + ".sock"; }

private:
	void add_host(unsigned n)
	{
		static const char *names[] = {"alpha", "beta", "gamma", "delta"};
		std::string address = "10.77.2." + std::to_string(n);
		nlohmann::json host = {{"uuid", uuid(n)}, {"name", names[n - 1]}, {"addresses", {address}}, {"now_ms", NOW_MS - 60000}};
		if (n == 1) {
			good({{"op", "cluster.init"}, {"uuid", uuid(1000)}, {"name", "lab"}, {"host", host}, {"now_ms", NOW_MS - 60000}});
		} else {
			host["op"] = "host.add";
			good(host);
		}
		good({{"op", "pool.add"}, {"name", "default"}, {"host", n}, {"kind", "thin"}, {"vg", "lockstep_group"}, {"thin_lv", "thin_device"},
		      {"size_bytes", 20 * GIB}, {"free_bytes", 15 * GIB}});
	}

	// What the reconcilers of all hosts would do now. mutex_ held.
	void play()
	{
		for (bool busy = true; busy;) {
			busy = false;
			for (const nlohmann::json &entry : duties()) {
				nlohmann::json answer = lockstep::apply(state_, state_.applied + 1, entry);
				busy = busy || answer["ok"] == true;
			}
			for (const nlohmann::json &entry : snapshot_duties()) {
				nlohmann::json answer = lockstep::apply(state_, state_.applied + 1, entry);
				busy = busy || answer.value("changed", false);
			}
			for (const nlohmann::json &entry : life()) {
				nlohmann::json answer = lockstep::apply(state_, state_.applied + 1, entry);
				busy = busy || (answer["ok"] == true && answer.value("changed", true));
			}
		}
	}

	std::vector<nlohmann::json> duties() const
	{
		std::vector<nlohmann::json> list;
		for (const auto &[vid, v] : state_.volumes)
			for (const auto &[id, h] : state_.hosts) {
				if (!h.online || idle.contains(id))
					continue;
				const Replica *r = v.replica(id);
				std::string message = "volume " + v.name + " could not be created on host " + h.name + ": " + create_error;
				nlohmann::json entry = {{"vid", vid}, {"host", id}, {"message", message}};
				if (v.phase == Phase::creating && r && !r->created)
					entry["op"] = create_error.empty() ? "replica.created" : "replica.failed";
				else if (v.phase == Phase::ready && !v.devices.contains(id))
					entry["op"] = "device.ready";
				else if (v.phase == Phase::deleting && (r || v.devices.contains(id)))
					entry["op"] = "replica.deleted";
				else if (r && r->next_offset)
					entry = {{"op", "replica.moved"}, {"vid", vid}, {"host", id}, {"offset", r->next_offset}};
				else if (r && r->wipe)
					entry["op"] = "replica.grown";
				else if (all_moved(v))
					entry["op"] = "volume.grown";
				else if (v.primary == id && wanted_primary(state_, v) != id)
					entry = {{"op", "record.propose"}, {"vid", vid}, {"host", id}, {"version", v.version}, {"term", v.term + 1},
						 {"primary", wanted_primary(state_, v)}, {"members", clean_hosts(v)}};
				else
					continue;
				list.push_back(entry);
			}
		return list;
	}

	static std::vector<HostId> clean_hosts(const Volume &v)
	{
		std::vector<HostId> hosts;
		for (const Replica &r : v.replicas)
			if (r.clean())
				hosts.push_back(r.host);
		return hosts;
	}

	// Snapshots, likewise. broken_holds: so many attempts fail.
	std::vector<nlohmann::json> snapshot_duties()
	{
		std::vector<nlohmann::json> list;
		for (const auto &[sid, s] : state_.snapshots) {
			const Volume *v = state_.volume(s.vid);
			nlohmann::json entry = {{"sid", sid}, {"attempt", s.attempt}, {"hold", 10 + s.attempt}, {"host", v ? v->primary : HostId(0)}};
			if (s.in_progress() && v && !v->primary)
				entry = {{"op", "volume.primary"}, {"vid", s.vid}, {"host", v->replicas[0].host}};
			else if (s.phase == SnapshotPhase::quiescing && !s.hold)
				entry["op"] = "snapshot.held";
			else if (s.phase == SnapshotPhase::taking && broken_holds) {
				broken_holds--;
				entry = {{"op", "snapshot.broken"}, {"set", s.set}, {"attempt", s.attempt}, {"message", "the hold was broken"}};
			} else if (s.phase == SnapshotPhase::resuming && !s.resumed)
				entry["op"] = "snapshot.resumed";
			else
				entry = nullptr;
			if (!entry.is_null())
				list.push_back(entry);
			for (const SnapshotCopy &c : s.copies) {
				if (s.phase == SnapshotPhase::preparing && !c.prepared && state_.online(c.host))
					list.push_back({{"op", "snapshot.prepared"}, {"sid", sid}, {"host", c.host}, {"attempt", s.attempt}});
				if (s.phase == SnapshotPhase::preparing || s.phase == SnapshotPhase::quiescing)
					continue;
				if (!state_.online(c.host) || s.phase == SnapshotPhase::ready || s.phase == SnapshotPhase::resuming || c.taken == s.in_progress())
					if (!(s.phase == SnapshotPhase::discarding && state_.online(c.host)))
						continue;
				if (!s.in_progress() && keep_snapshots.contains(c.host))
					continue;
				list.push_back({{"op", s.in_progress() ? "snapshot.taken" : "snapshot.removed"}, {"sid", sid}, {"host", c.host},
						{"attempt", s.attempt}});
			}
		}
		return list;
	}

	// New replicas are made and resynced, old ones purged, empty hosts leave; the leader repairs.
	std::vector<nlohmann::json> life() const
	{
		std::vector<nlohmann::json> list;
		for (const auto &[id, h] : state_.hosts)
			if (h.removing && h.online && !idle.contains(id))
				list.push_back({{"op", "host.gone"}, {"host", id}});
		for (const auto &[key, p] : state_.pools)
			if (p.deleting && state_.online(p.host) && !idle.contains(p.host))
				list.push_back({{"op", "pool.deleted"}, {"name", p.name}, {"host", p.host}});
		for (const auto &[vid, v] : state_.volumes) {
			if (v.phase != Phase::ready)
				continue;
			nlohmann::json members = nlohmann::json::array();
			bool joins = false;
			for (const Replica &r : v.replicas) {
				bool works = state_.online(r.host) && !idle.contains(r.host);
				nlohmann::json entry = {{"vid", vid}, {"host", r.host}, {"op", "replica.created"}};
				if (!create_error.empty()) {
					entry["op"] = "replica.failed";
					entry["message"] = "volume " + v.name + " gets no replica on host " + state_.host_name(r.host) + ": " + create_error;
				}
				if (!r.created && works)
					list.push_back(entry);
				bool joiner = r.state == ReplicaState::stale && r.created && works;
				joins = joins || joiner;
				if (r.clean() || joiner)
					members.push_back(r.host);
			}
			for (const Remnant &r : v.remnants)
				if (state_.online(r.host) && !idle.contains(r.host))
					list.push_back({{"op", "replica.purged"}, {"vid", vid}, {"host", r.host}});
			if (joins && resyncs && repairs && v.primary)
				list.push_back({{"op", "record.propose"}, {"vid", vid}, {"host", v.primary}, {"version", v.version}, {"term", v.term},
						{"members", members}});
		}
		if (repairs)
			for (const auto &[vid, v] : state_.volumes)
				if (nlohmann::json entry = decide_repair(state_, v); !entry.is_null())
					list.push_back(entry);
		if (State expected = state_; repairs)
			for (nlohmann::json &entry : cluster::decide_groups(expected, 100))
				list.push_back(std::move(entry));
		return list;
	}

	// Two hosts' disks with a volume that is in doubt.
	Result<nlohmann::json> from_disks(bool yes, const std::map<std::string, std::string> &copies)
	{
		RebuildInput in = found_input(2);
		for (HostId host : {1, 2}) {
			in.hosts[host - 1].copies = {found_copy_of(3, host), found_copy_of(4, host)};
			in.hosts[host - 1].copies[0].quiet = false;
		}
		in.choices = copies;
		auto plan = plan_rebuild(in);
		if (!plan)
			return plan.error();
		if (yes && !plan->in_doubt.empty())
			return coded("in-doubt", forbidden("name it with --copy VOLUME=HOST"));
		return nlohmann::json{{"epoch", 1}, {"host", "alpha"}, {"dead", nlohmann::json::array()}, {"kept", {"beta"}}, {"volumes", plan->volumes},
				      {"in_doubt", plan->in_doubt}, {"notes", {"volume group vg of host beta lacks a disk"}}, {"from_disks", true},
				      {"done", yes}, {"vouch", "all hosts are there"}};
	}

	ApiBackend backend()
	{
		ApiBackend b;
		b.local = [this] { return facts; };
		b.state = [this] { return state(); };
		b.propose = [this](const nlohmann::json &entry) -> Result<nlohmann::json> {
			if (!quorum)
				return failed("no quorum: a majority of the hosts must be online");
			nlohmann::json answer = apply(entry);
			if (answer["ok"] == true)
				return answer;
			return Error{Status(answer["status"].get<int>()), answer["message"], answer["code"]};
		};
		b.barrier = [this] { return quorum ? Done(Nothing{}) : Done(failed("no quorum: a majority of the hosts must be online")); };
		b.init = [this](const std::string &name) -> Result<nlohmann::json> {
			facts.host = facts.leader = 1;
			nlohmann::json host = {{"uuid", uuid(1)}, {"name", "alpha"}, {"addresses", {"10.77.2.1"}}};
			return apply({{"op", "cluster.init"}, {"uuid", uuid(1000)}, {"name", name}, {"host", host}, {"now_ms", NOW_MS}});
		};
		b.token = [](uint64_t valid_s) -> Result<nlohmann::json> {
			return nlohmann::json{{"token", "lks1token" + std::to_string(valid_s)}, {"end_ms", 5}};
		};
		b.client_cert = [this](const std::string &name, const std::string &role, uint64_t end_ms) -> Result<nlohmann::json> {
			if (!quorum)
				return failed("no quorum: a majority of the hosts must be online");
			good({{"op", "client.add"}, {"name", name}, {"role", role}, {"key", std::string(64, '7')}, {"end_ms", end_ms}, {"now_ms", NOW_MS}});
			return nlohmann::json{{"bundle", "key and certificates of " + name + "\n"}, {"end_ms", end_ms}};
		};
		b.recover = [this](const RecoverRequest &request) -> Result<nlohmann::json> {
			const auto &[dead, yes, disks, copies] = request;
			if (disks)
				return from_disks(yes, copies);
			std::set<HostId> down;
			for (const auto &[id, h] : state_.hosts)
				if (!h.online)
					down.insert(id);
			auto plan = recovery_plan(state_, recover_entry(state_, 1, down, {}, NOW_MS));
			if (!plan)
				return plan.error();
			if (yes && dead.size() != down.size())
				return forbidden("name exactly the hosts that are dead for good with --dead");
			plan->update({{"term", 3}, {"index", 17}, {"done", yes}, {"vouch", "you vouch that beta is dead for good"}});
			return *plan;
		};
		b.join = [this](const std::string &token, const std::string &address, unsigned port) -> Result<nlohmann::json> {
			joined_ = token + " " + address + " " + std::to_string(port);
			if (address == "10.0.0.9")
				return failed("cannot reach a cluster at 10.0.0.9 port 7788: check the address");
			for (unsigned n = 1; n <= 2; n++)
				add_host(n);
			facts.host = 2;
			return nlohmann::json{{"host", 2}};
		};
		b.pool_create = [this](const std::string &name, HostId host, const std::string &vg,
				       const std::string &thin) -> Result<nlohmann::json> {
			if (vg == "nowhere")
				return not_found("host " + state()->host_name(host) + " has no volume group " + vg);
			nlohmann::json entry = {{"op", "pool.add"}, {"name", name}, {"host", host}, {"kind", thin.empty() ? "thick" : "thin"},
						{"vg", vg}, {"size_bytes", GIB}, {"free_bytes", GIB}};
			if (!thin.empty())
				entry["thin_lv"] = thin;
			nlohmann::json answer = apply(entry);
			if (answer["ok"] == true)
				return answer;
			return Error{Status(answer["status"].get<int>()), answer["message"], answer["code"]};
		};
		b.bare_orphans = [this]() -> Result<nlohmann::json> { return orphans[0].is_null() ? nlohmann::json::array() : orphans[0]; };
		b.ask_host = [this](HostId host, const std::string &verb, const nlohmann::json &body) -> Result<nlohmann::json> {
			if (verb == "snapshot.can_revert")
				before_can_revert(host);
			std::lock_guard lock(mutex_);
			if (verb == "volume.in_use") {
				if (closing.contains(host))
					later_ = std::jthread([this, host, vid = body["vid"].get<uint32_t>()] {
						apply({{"op", "record.close"}, {"vid", vid}, {"host", host},
						       {"session", state()->volume(vid)->opener(host)->session}});
					});
				return nlohmann::json(!closing.contains(host));
			}
			if (unreachable.contains(host))
				return failed("it cannot be reached");
			asked_ = "host " + std::to_string(host) + " " + verb + " " + body.dump();
			if (verb == "disk.list") {
				const nlohmann::json list = disks.contains(host) ? disks[host] : nlohmann::json::array();
				nlohmann::json next = nlohmann::json::array();
				for (nlohmann::json d : list)
					if (d["leaving"] == false || (d["percent"] = d["percent"].get<double>() + 60) < 100)
						next.push_back(d);
				disks[host] = next;
				return list;
			}
			if (verb == "snapshot.can_revert" && no_revert.contains(host))
				return forbidden("snapshot s: its copy on that host is lost");
			if (verb == "disk.at_rest" && disks_move.contains(host))
				return coded("pool-in-use", forbidden("pool default: /dev/sdb is just being emptied"));
			if (verb == "disk.change") {
				for (nlohmann::json &d : disks[host])
					if (d["disk"] == body["remove"])
						d["leaving"] = true;
				nlohmann::json answer = {{"pool", "default"}, {"vg", "lockstep_group"}, {"add", body["add"]}, {"remove", body["remove"]}, {"changed", true}};
				if (mend.contains(host))
					answer["mend"] = mend[host];
				return answer;
			}
			if (verb == "orphan.list" || verb == "orphan.purge") {
				nlohmann::json list = nlohmann::json::array();
				for (const nlohmann::json &o : orphans[host])
					if (body["uuid"] == "" || o["uuid"] == body["uuid"])
						list.push_back(o);
				if (verb == "orphan.list")
					return list;
				orphans[host] = nlohmann::json::array();
				return nlohmann::json{{"removed", list}, {"kept", orphans_kept}};
			}
			if (verb == "volume.diff") {
				diff_asked.push_back(host);
				return nlohmann::json{{"block_bytes", 65536}, {"blocks", 16384}, {"changed_blocks", 34}, {"bitmap", "MEw="}};
			}
			if (verb == "volume.trail-begin")
				return nlohmann::json{{"trail", "00000000000000a7"}};
			if (verb == "volume.trail-end") {
				trail_asked.push_back({host, body});
				return nlohmann::json::object();
			}
			if (verb == "volume.trail") {
				trail_asked.push_back({host, body});
				return trail;
			}
			if (verb == "volume.openers")
				return nlohmann::json{{{"pid", 77}, {"command", "tapdisk"}}};
			if (verb == "volume.verify") {
				const uint64_t begun_ms = ++verifies_;
				if (verify_report)
					later_ = std::jthread([this, host, report = verify_report(begun_ms)] { server().soft(host, report); });
				return nlohmann::json{{"begun_ms", begun_ms}};
			}
			if (verb == "host.adjust") {
				if (unheard && unheard--)
					return coded("starting", failed("this host has not heard from the cluster"));
				if (body["retry"] == true && !differs_for_ever)
					differs = nlohmann::json::array();
				return differs;
			}
			if (verb == "volume.suspend") {
				const bool suspended = body["suspended"];
				nlohmann::json v = {{"role", "active"}};
				if (suspended)
					v["suspended_since_ms"] = NOW_MS;
				server().soft(host, {{"volumes", {{std::to_string(body["vid"].get<uint32_t>()), v}}}});
				return nlohmann::json{{"since_ms", NOW_MS}};
			}
			return nlohmann::json::object();
		};
		return b;
	}

	std::mutex mutex_;
	State state_;
	std::string joined_, asked_;
	uint64_t verifies_ = 0;
	std::jthread later_;
	ApiServer server_;

public:
	const std::string &joined() const { return joined_; }
	const std::string &asked() const { return asked_; }
};

}    // namespace lockstep::test
