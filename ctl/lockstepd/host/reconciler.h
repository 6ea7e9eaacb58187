// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler of a host: makes the kernel, LVM and the log agree.
//
// It compares what the log wants of this host (State) with what is (the kernel's dump, LVM), and takes one step for each
// object and aspect that differs. It keeps no plan: after each step it looks again. So it does not matter after which
// step the daemon was killed, in which order things come about, or how often a step is repeated. One object that fails
// is tried again with back-off and holds up no other.
//
// Facts come before effects: a replica is formatted before the log calls it created; it takes part only after a barrier
// of the log that was begun after it had been attached (rule S3), and never before the log calls it suspect if it is (S1);
// an LV is gone before the log forgets the replica.
//
// Nothing is made, removed or let take part before one barrier has succeeded: an old state could have this host make or remove what the
// cluster has long changed its mind about. The kernel serves on meanwhile; what it lost in a reboot is assembled (assemble.cc).
//
// Thousands of volumes that are as they should be cost next to nothing. All are looked at when the State has changed, and every SWEEP_MS
// whatever has happened or not: that keeps it level-triggered. Meanwhile a volume is looked at when something has touched it (a step of
// it is over, an event, another dump of it), and at every tick while it is not at rest: something of it is under way, has failed, or
// waits for a time or a dump (at_rest()).
//
// Runs on the loop thread. Blocking steps go to worker threads by ReconcilerWorld::run.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lib/error.h"
#include "lockstepd/cluster/state.h"
#include "lockstepd/host/kernel.h"
#include "lockstepd/host/last_known.h"
#include "lockstepd/host/lvm.h"
#include "lockstepd/host/metadata.h"
#include "lockstepd/host/snapshot_copy.h"

namespace lockstep {

constexpr uint64_t STEP_RETRY_MIN_MS = 200;       // back-off of a failing step: doubles from min to max
constexpr uint64_t STEP_RETRY_MAX_MS = 30'000;
constexpr uint64_t LOG_RETRY_MAX_MS = 1000;       // of a proposal or barrier: when the quorum is back it is soon noticed
constexpr unsigned CREATE_TRIES = 3;              // then the creation of a volume is given up and rolled back
constexpr unsigned ATTACH_TRIES = 5;              // then the log is told that the disk has failed; attaching goes on
constexpr uint64_t DISK_RETRY_MS = 30'000;        // a failed disk is tried again so often
constexpr uint64_t DUMP_PERIOD_MS = 10'000;       // look at the kernel without cause,
constexpr uint64_t DUMP_BUSY_PERIOD_MS = 1000;    // while a resync runs or requests wait,
constexpr uint64_t DUMP_LEAST_MS = 50;            // and for events at most so often
constexpr uint64_t FOLLOW_AFTER_MS = 2000;        // the primary follows an opener that stays so long
constexpr uint32_t ERROR_AFTER_MS = 5000;         // without a quorum, what waits longer fails (NoQuorum::error)
constexpr uint64_t REFUSED_LOG_MS = 60'000;       // an open refused again by the same holder is told so often
constexpr uint32_t HOLD_MS = 10'000;              // of a quiesce, if it is not renewed
constexpr uint64_t HOLD_MOST_MS = 30'000;         // of one for a snapshot, renewed: guests wait no longer for LVM
constexpr uint64_t HOLD_RENEW_MS = 2000;          // it is renewed so often, each time for HOLD_MS
constexpr uint64_t SWEEP_MS = 2000;               // look at all volumes without cause
constexpr uint64_t POOL_PERIOD_MS = 60'000;       // look at the pools' space without cause
constexpr uint64_t POOL_SOON_MS = 5000;           // after a volume came or went

// Everything the reconciler acts on. Tests put fakes in place.
struct ReconcilerWorld {
	Kernel kernel;                // called on worker threads
	Lvm lvm;                      // called on worker threads
	MetadataTools metadata;       // called on worker threads
	std::function<Result<uint64_t>(const CopyTask &task, CopyProgress &progress)> copy_snapshot;    // called on worker threads
	// Work of one key runs in order, work of different keys side by side; done is called on the loop thread (Workers::submit).
	std::function<void(const std::string &key, std::function<void()> work, std::function<void()> done)> run;
	std::function<const State &()> state;
	std::function<void(const nlohmann::json &entry, std::function<void(Result<nlohmann::json>)> done)> propose;
	std::function<void(std::function<void(Done)> done)> barrier;
	// Asks another host's daemon whether the volume is in use there; an Error if it does not answer.
	std::function<void(HostId host, uint32_t vid, std::function<void(Result<bool>)> done)> ask_in_use;
	std::function<bool(const std::string &volume)> node_exists;    // /dev/lockstep/<volume>
	std::function<uint64_t()> now_ms;
	std::function<void(const std::string &line)> log;
	std::function<void(const std::string &subject, const std::string &line)> log_about;    // Loop::log_about()
	std::function<void()> dumped;                                  // a new dump is there
	std::function<void()> host_refused;                            // host_refused() has changed
	std::function<bool()> quorum;                                  // there is a leader; unset: always
	std::function<const LastKnown *()> last_known;                 // while nobody has been heard; nullptr or unset: not read (yet)
	std::function<void()> removed;                                 // this host is in the cluster no more
};

struct Problem {
	uint32_t vid = 0;       // 0: not of a volume
	std::string message;
};

class Reconciler {
public:
	Reconciler(HostId self, ReconcilerWorld world);
	~Reconciler();
	Reconciler(const Reconciler &) = delete;
	Reconciler &operator=(const Reconciler &) = delete;

	// The State has changed, or anything else it looks at.
	void look();
	// To be called every 100 ms or so.
	void tick();

	void kernel_event(const KernelEvent &event);
	void kernel_changed();                         // by somebody else's command: dump soon
	void kernel_resync();                          // events were lost, or the module has been loaded
	void module_changed(const std::string &error); // empty: it is loaded

	// Says whether the volume is open for writing on this host, or about to be, by a dump begun after the call: whoever closed
	// it before the question is not counted. An Error if the kernel does not answer.
	void in_use(uint32_t vid, std::function<void(Result<bool>)> done);
	const KernelDump *dump() const { return dump_ ? &*dump_ : nullptr; }    // nullptr: not known
	bool synced() const { return synced_; }
	uint64_t looks() const { return looks_; }      // at volumes, so far
	const std::string &host_refused() const { return host_refused_; }    // why the kernel does not take this host's id; empty: it does
	std::vector<Problem> problems() const;
	nlohmann::json soft_report() const;            // as in api/server.h, and "problem" of a volume
	// Another number whenever the report may be another one, but for what changes with time alone: refusals that are long ago, the
	// progress of copies.
	uint64_t soft_revision() const { return soft_revision_; }

	// Compares the members' blocks with the primary's, which is on this host. begun_ms names this verify: reports tell how far it is
	// under this name, never what an earlier one found.
	void verify(uint32_t vid, bool start, bool repair, uint64_t begun_ms, std::function<void(Done)> done);
	// What another host says of itself (soft_report()). A verify that is under way there goes on here if this host becomes the primary.
	void heard(HostId host, const nlohmann::json &report);
	// A disk is to leave a pool here, or has come into one.
	void look_at_disks();
	const std::map<std::string, double> &disk_percent() const { return disk_percent_; }
	// Holds the writes of a volume that is served here back until resume_writes(), a change of its primary or the end of this daemon
	// (suspend.cc). begun_ms: Unix time. Answers {"since_ms"} when all members hold the same.
	void suspend_writes(uint32_t vid, uint64_t begun_ms, std::function<void(Result<nlohmann::json>)> done);
	// An Error if nothing was held, or not without a break.
	void resume_writes(uint32_t vid, std::function<void(Result<nlohmann::json>)> done);
	// What is not as the log wants it on this host, by a dump begun after the call: [{volume (or null), what, error (or "")}]. retry:
	// what has failed is tried again at once. vid 0: all.
	void adjust(uint32_t vid, bool retry, std::function<void(Result<nlohmann::json>)> done);
	// Fails what waits on this host.
	void abort_waiting(uint32_t vid, std::function<void(Done)> done);
	// Copies of snapshots that are being made are broken off: the daemon ends.
	void stop_copies();

private:
	using Json = nlohmann::json;

	// One aspect of one object: at most one step of it is under way.
	struct Task {
		bool busy = false;
		unsigned failures = 0;
		uint64_t not_before_ms = 0;
		uint64_t needs_dump = 0;               // dumps_done_ that shows the effect of the last step
		std::string error;
		Status status = Status::ok;            // of the error
	};
	struct VolumeWork {
		Task config;                           // in the kernel: volume, record, device
		Task replica;                          // LV, metadata, attachment, admission
		Task ready, open, close, change, gone, lost; // proposals
		Task serve;                            // handover, holds, tuning
		Task full;                             // nothing is done, but said: its pool has no room, or its disk answers nothing
		Task alone;                            // likewise: its disk failed, and no other host can go on
		template <class W> static auto tasks_of(W &w)
		{
			return std::array{&w.config, &w.replica, &w.ready, &w.open, &w.close, &w.change, &w.gone, &w.lost, &w.serve, &w.full, &w.alone};
		}
		auto tasks() { return tasks_of(*this); }
		auto tasks() const { return tasks_of(*this); }
		uint64_t verify_begun_ms = 0, verify_needs_dump = 0;    // the last verify, and the first dump that tells of it
		HostId follow = 0;                     // where the primary had better be,
		uint64_t follow_since_ms = 0;          // ... since then
		std::optional<VolumeTune> tune;        // as this kernel was told
		HostId refused_for = 0;                // holder because of whom an open here was refused,
		uint64_t refused_ms = 0, refused_logged_ms = 0;
		mutable bool node_seen = false;        // the device's node in /dev
		std::optional<Phase> phase;
		uint64_t added = 0;                    // of the replica here, 0: none
		bool read_log = false;                 // a barrier succeeded since the attachment (S3)
		bool lv_gone = false;
		uint64_t ended = 0;                    // sessions up to here are over on this host
		uint64_t disk_retry_ms = 0;
		std::shared_ptr<ContentProgress> making;    // of a replica that gets the content of a snapshot by copying
	};
	using Aspect = Task VolumeWork::*;
	struct SnapshotWork {
		Task task;
		unsigned attempt = 0;
		uint64_t hold = 0;                     // begun by this daemon for this attempt
		bool quiesced = false;                 // ... and nothing is in flight
		bool over = false;                     // ... and it has ended
		uint64_t begun_ms = 0, renewed_ms = 0; // of the hold
		uint64_t prepared = 0;                 // Lvm::prepare has said so; 0: it has not, or to a daemon before this one
		std::shared_ptr<CopyProgress> copy;    // of the one that is made here
		uint64_t added = 0, md_offset = 0;     // the one of this entry is there, with metadata there; 0: it is not
	};

	struct Suspension {                            // of a volume's writes, by an administrator
		uint64_t hold = 0, begun_ms = 0;
		uint64_t asked_ms = 0, renewed_ms = 0;
		uint64_t needs_dump = 0;               // the first dump that shows it
		bool still = false;                    // nothing is in flight
		bool resuming = false;
		std::string over;                      // why it has ended by itself; kept for whoever resumes
		std::function<void(Result<Json>)> waiting;
	};

	bool may(const Task &task) const;
	void finish(Task &task, const std::string &object, const Done &result, uint64_t retry_max_ms = STEP_RETRY_MAX_MS);
	void act(uint32_t vid, Aspect aspect, const std::string &key, std::function<Done()> step,
		 std::function<void(bool ok)> after = nullptr);
	void ask(uint32_t vid, Aspect aspect, Json entry, std::function<void(bool ok)> after = nullptr);
	std::string object_name(uint32_t vid) const;

	void request_dump();
	void take_dump();
	void answer_in_use(const Done &dumped);
	void sync();
	void read_log_for(uint32_t vid);
	void start_barrier();

	void look_at_peers();
	void look_at_peer(HostId host, const std::string &name, bool wanted);
	void look_at_pools();
	void look_at_pools_soon();
	void mend(const Pool &pool);
	void let_go(const Pool &pool);
	void forget_pools();
	bool mending(const std::string &pool) const;
	std::optional<uint64_t> allocated_bytes(const std::string &lv_path) const;    // nothing: LVM has not told
	void report_pool(const Pool &pool, const Result<PoolSpace> &space);
	void touch(uint32_t vid);                      // it is looked at in the next look()
	void touch_what_is_new(const KernelDump &before, const KernelDump &now);
	bool sweep_is_due();
	bool at_rest(uint32_t vid) const;              // nothing becomes of it without a change of the State, an event or another dump
	void look_at_volumes(bool all);
	void look_at_volume(uint32_t vid);
	void look_creating(const Volume &v, VolumeWork &w);
	void look_config(const Volume &v, const KernelVolume *k, VolumeWork &w);
	void look_sessions(const Volume &v, const KernelVolume &k, VolumeWork &w);
	void look_replica(const Volume &v, const KernelVolume &k, VolumeWork &w);
	void look_remnant(const Volume &v, const Remnant &left, VolumeWork &w);
	void make_replica(const Volume &v, const Replica &r, VolumeWork &w);
	void purge(const Volume &v, const std::string &pool, uint64_t md_offset, VolumeWork &w);
	void look_leaving();
	void attach(const Volume &v, const Replica &r, VolumeWork &w);
	void admit(const Volume &v, const KernelVolume &k, const Replica &r, VolumeWork &w);
	void take_down(uint32_t vid, const KernelVolume &k, VolumeWork &w);
	void drop(uint32_t vid, const KernelVolume &k, VolumeWork &w);
	void look_deleting(const Volume &v, const KernelVolume *k, VolumeWork &w);
	void ask_open(uint32_t vid);
	HostId other_holder(uint32_t vid) const;       // online; 0: none
	void ask_holder(uint32_t vid, HostId holder);
	void propose_change(const KernelEvent &event);
	void refused(const Volume &v, HostId holder, VolumeWork &w);

	// assemble.cc
	const LastKnown *last_known() const;
	void assemble();
	void assemble(const State &state, const Volume &v);

	// serving.cc
	void look_serving(const Volume &v, const KernelVolume &k, VolumeWork &w);
	bool look_holds(const Volume &v, const KernelVolume &k, VolumeWork &w);
	bool look_verify(const Volume &v, const KernelVolume &k);    // true: it has something to do
	void verify_begun(uint32_t vid, uint64_t begun_ms);
	bool look_tuning(const Volume &v, const KernelVolume &k, VolumeWork &w);
	void look_handover(const Volume &v, const KernelVolume &k, VolumeWork &w);
	void call_kernel(const std::string &key, std::function<Done()> command, std::function<void(Done)> done);

	// adjust.cc
	void try_again(uint32_t vid);
	Json differences(uint32_t vid) const;
	std::string difference(const Volume &v) const;

	// suspend.cc
	uint64_t next_hold();
	bool suspended(uint32_t vid) const;
	void look_at_suspensions();
	void look_at_suspension(uint32_t vid, Suspension &s);
	void begin_suspension(uint32_t vid, uint64_t stale);
	void end_suspension(uint32_t vid, const std::string &why);
	void suspension_event(const KernelEvent &event);

	// growth.cc
	bool others_can_serve(const Volume &v) const;    // an online one has a good copy, and its host's disk may be given up
	bool look_full(const Volume &v, const KernelVolume &k, const Replica &r, VolumeWork &w);      // likewise
	void look_stuck(const Volume &v, const Replica &r, VolumeWork &w);
	bool look_growth(const Volume &v, const KernelVolume &k, const Replica &r, VolumeWork &w);    // true: it has something to do
	bool look_size(const Volume &v, const KernelVolume &k, VolumeWork &w);

	// snapshots.cc
	void look_at_snapshots(bool all);
	void look_at_snapshot(const Snapshot &s);
	void hold_still(const Snapshot &s, SnapshotWork &w);
	void renew_hold(const Snapshot &s, SnapshotWork &w);
	void prepare_snapshot(const Snapshot &s, const SnapshotCopy &copy);
	void take_snapshot(const Snapshot &s, const SnapshotCopy &copy, SnapshotWork &w);
	void let_go(const Snapshot &s, SnapshotWork &w);
	void look_at_copy(const Snapshot &s);
	void copy_here(const Snapshot &s, const SnapshotCopy &copy, SnapshotWork &w);
	void remove_snapshot(const Snapshot &s, const SnapshotCopy &copy, SnapshotWork &w);
	void make_from_snapshot(const Volume &v, const Replica &r, const ReplicaLv &lv, VolumeWork &w);
	void snapshot_event(const KernelEvent &event);
	void break_snapshot(const Snapshot &s, const std::string &why, bool final = false);
	void act_on(uint32_t sid, const std::string &key, std::function<Done()> step, std::function<void(const Done &)> after);
	void ask_on(uint32_t sid, Json entry, std::function<void(bool ok)> after = nullptr);
	Result<SnapshotLv> snapshot_lv(const Snapshot &s, const SnapshotCopy &copy) const;
	void hold_changed(uint32_t vid);
	bool hold_is_wanted(uint32_t vid, uint64_t hold) const;
	Result<ReplicaLv> lv_of(const Volume &v, const Replica &r) const;
	Result<ReplicaLv> lv_in(const State &state, const Volume &v, const std::string &pool, uint64_t md_offset) const;
	ReplicaMetadata metadata_of(const Volume &v, const Replica &r, const ReplicaLv &lv) const;
	bool leaving() const;                          // this host is being removed from the cluster

	HostId self_;
	ReconcilerWorld world_;
	std::optional<KernelDump> dump_;
	std::string module_error_, host_refused_;
	bool host_set_ = false;
	bool dumping_ = false, dump_again_ = false, dump_wanted_ = true;
	uint64_t dumps_begun_ = 0, dumps_done_ = 0, dumped_ms_ = 0;
	struct InUseQuestion {
		uint32_t vid;
		uint64_t needs_dump;
		std::function<void(Result<bool>)> done;
	};
	std::vector<InUseQuestion> in_use_questions_;
	uint64_t soft_revision_ = 0;
	bool synced_ = false;
	bool barrier_busy_ = false;
	std::set<uint32_t> barrier_for_;                  // volumes whose replica waits for the next barrier
	bool looking_ = false, look_again_ = false;
	std::set<uint32_t> touched_, restless_;           // volumes: since the last look; not at rest then
	bool sweep_ = true, quorum_ = false, dump_busy_ = false;
	uint64_t swept_ms_ = 0, swept_applied_ = 0, looks_ = 0;
	Task kernel_task_, sync_task_, leave_task_;
	std::map<HostId, Task> peer_tasks_;
	std::map<std::string, Task> pool_tasks_;
	std::map<std::string, Task> disk_tasks_;        // of disks that come and go, by pool
	std::map<std::string, double> disk_percent_;    // of disks that are being emptied, as LVM said last
	std::map<std::string, Task> metadata_tasks_;    // of the growth of thin pools' metadata, by pool
	std::map<std::string, uint64_t> pool_seen_ms_;
	std::map<std::string, std::map<std::string, uint64_t>> allocation_;    // by pool, as LVM said last (lvm.h)
	std::map<uint32_t, VolumeWork> works_;
	std::map<uint32_t, SnapshotWork> snapshot_works_;    // by sid
	std::map<uint32_t, Suspension> suspensions_;
	struct VerifyElsewhere {               // one that was under way when a primary was heard last
		HostId host;
		VerifyOrder order;
		uint64_t begun_ms;
	};
	std::map<uint32_t, VerifyElsewhere> verifies_elsewhere_;
	uint64_t last_hold_ = 0;
	Task no_task_;                                    // of what is asked once and answered
};

// Keys of ReconcilerWorld::run, and an answer of the state machine as a Done: for the reconciler's files.
std::string vg_key(const std::string &vg);
std::string config_key(uint32_t vid);
std::string replica_key(uint32_t vid);
std::string serve_key(uint32_t vid);
KernelVolumeSpec kernel_spec(const Volume &v);
Done outcome(const Result<nlohmann::json> &answer);

}    // namespace lockstep
