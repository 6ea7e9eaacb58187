// SPDX-License-Identifier: GPL-2.0-or-later
//
// A world for the reconciler: a kernel, an LVM, disks, a log and a clock, all in memory and deterministic.
//
// The fakes hold what the real parts would enforce, and write down (in `violations`) what the real parts could not notice
// but the rules forbid: admitting a replica without a fresh barrier, calling a replica created that is not formatted, and so
// on. Every effect on kernel, LVM or disk is a numbered step; a test can have the daemon killed before or after any of them.
//
// It is host alpha (1) with nobody beside it; or one of several with a log in common (cluster.h).
#pragma once

#include <cerrno>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "lockstepd/host/orphans.h"
#include "lockstepd/host/reconciler.h"

namespace lockstep::test {

constexpr const char *UUID1 = "11111111-1111-4111-8111-111111111111";
constexpr const char *UUID2 = "22222222-2222-4222-8222-222222222222";
constexpr const char *UUID3 = "33333333-3333-4333-8333-333333333333";
constexpr const char *VOLUME_UUID = "6c1c4f0e-1111-4222-8333-944445555666";
constexpr uint64_t GIB = 1ull << 30;

struct FakeLv {
	LogicalVolume lv;
	bool formatted = false;
	std::string content;           // "empty", or what it was made from
	std::string data;              // what a guest would read; empty: zeros
	uint64_t retire_at = 0;        // the superblock there says that older metadata are to become zeros
	bool hot = false;              // the next attachment finds hot extents
	uint64_t attached_at = 0;      // barriers begun when it was attached
};

enum class Fault { none, fails, killed_before, killed_after };

// What hosts of one cluster have in common: the log, the clock, and the number of the step that is struck.
struct FakeLog {
	State state;
	uint64_t index = 0;
	uint64_t now_ms = 1'000'000;
	uint64_t steps = 0;            // effects so far
	uint64_t fault_at = 0;         // this one is struck (0: none)
	Fault fault = Fault::none;
};

class FakeWorld {
public:
	using Json = nlohmann::json;

	FakeWorld() : FakeWorld(1, std::make_shared<FakeLog>()) { found(); }
	FakeWorld(HostId self, std::shared_ptr<FakeLog> log);
	void found();                  // a cluster of alpha, beta and gamma, each with a thick pool
	const HostId self;

	// ---- the daemon ----
	void start_daemon();
	void make_thin();               // all pools of the state: the thin pool vg/thin, of 100 GiB, which is here
	void kill_daemon();            // whatever was under way never reports back
	void reboot();                 // the kernel forgets all, LVs are inactive, open devices are gone
	Reconciler &daemon() { return *reconciler_; }
	bool killed() const { return !reconciler_; }

	bool step();                   // one queued task; false: none
	template <class R> R effect(const std::string &call, const std::function<R()> &f);
	struct Killed {};
	// Instead of what the two below say: the daemon is to be killed, and started again some time.
	std::function<void()> when_killed;

	// Runs until nothing is left to do now (work queued, timers due within `ms`).
	void run_for(uint64_t ms);
	// Runs until `done` holds; false: it did not within `ms` of the fake clock. Restarts a killed daemon if told so.
	bool run_until(const std::function<bool()> &done, uint64_t ms = 120'000);
	bool restart_when_killed = true;
	bool reboot_when_killed = false;       // ... with the whole host

	// ---- the log ----
	Json propose(Json entry);      // by anybody; throws if refused
	const std::shared_ptr<FakeLog> log;
	State &state = log->state;
	bool quorum = true;
	std::optional<LastKnown> last_known;   // of this host's own log; the daemon asks for it as long as it has heard nobody
	void remember();                       // ... as the log is now
	bool removed = false;                  // the daemon was told that its host is in the cluster no more
	uint64_t barriers_begun = 0;
	std::vector<std::string> proposals;    // ops of this host, in order

	bool opens_late = false;              // a record that grants a session does not end the wait of an open at once
	std::map<HostId, bool> in_use_there;   // what other hosts answer; absent: they do not

	// ---- faults ----
	uint64_t &steps = log->steps, &fault_at = log->fault_at;
	Fault &fault = log->fault;
	std::map<std::string, std::string> failing;    // verb -> message: fails as long as it is here
	std::vector<std::string> calls;        // "volume_add 1", in order
	std::vector<std::string> violations;
	std::vector<std::string> log_lines;

	// ---- kernel, LVM, disks ----
	bool module_loaded = true;
	uint8_t kernel_host = 0;
	std::map<uint32_t, KernelVolume> volumes;
	std::set<uint8_t> peers;
	std::set<uint32_t> attaching;                   // a REPLICA_ATTACH of this volume takes its time: dumps leave out the core's part
	std::map<uint32_t, uint64_t> attached_at;       // barriers begun then
	std::map<uint32_t, uint64_t> attached_version;  // of the record then
	std::map<uint32_t, int> refused;                // vid -> error of OPEN_REFUSE
	uint64_t seq = 0;
	std::map<std::string, VolumeGroup> groups;
	std::map<std::string, FakeLv> lvs;              // by path
	std::map<std::string, PhysicalVolume> disks;    // by path; a move takes all at once, but 50 % of a step of its own
	std::map<std::string, std::string> labels;      // UUID -> path of disks that are in no group and carry LVM's label
	std::function<void(Lvm &)> other_tools;         // puts some in place of the fake ones
	std::set<std::pair<uint32_t, uint64_t>> quiesced;    // vid and hold of which EV_QUIESCED was given
	std::map<uint32_t, uint64_t> hold_until_ms;     // by vid
	std::map<uint32_t, VolumeTune> tuned;
	bool drains = true;                             // what is in flight ends: EV_QUIESCED, handover, moves
	void unquiesce(uint32_t vid);                   // the hold ends by itself
	void move_on();                                 // what the kernel does in its own time: moves, handovers
	std::function<void(const std::string &call)> on_call;    // before the effect
	std::function<std::string(const CopyTask &)> source_data;    // what the host has that a snapshot's copy is made from

	uint64_t &now_ms = log->now_ms;
	int count(const std::string &prefix) const;     // calls that begin so

	Kernel kernel();
	Lvm lvm();
	MetadataTools metadata();

private:
	KernelVolume *find(uint32_t vid);
	Done config_set(const lks_record &record, bool admit);
	ReconcilerWorld world();

	std::unique_ptr<Reconciler> reconciler_;
	std::shared_ptr<int> life_;                     // of the daemon: callbacks of a former one are dropped
	std::deque<std::function<void()>> queue_;
	std::map<uint32_t, uint64_t> moving_to;
};

template <class R> R FakeWorld::effect(const std::string &call, const std::function<R()> &f)
{
	calls.push_back(call);
	if (on_call)
		on_call(call);
	steps++;
	const bool struck = fault_at == steps;
	if (struck && fault == Fault::killed_before)
		throw Killed{};
	if (struck && fault == Fault::fails)
		return failed(call + ": injected");
	if (auto f = failing.find(call.substr(0, call.find(' '))); f != failing.end())
		return failed(f->second);
	R result = f();
	if (struck && fault == Fault::killed_after)
		throw Killed{};
	return result;
}

}    // namespace lockstep::test
