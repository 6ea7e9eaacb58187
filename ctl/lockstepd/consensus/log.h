// SPDX-License-Identifier: GPL-2.0-or-later
//
// ConsensusLog: the agreed sequence of entries, and the members that agree on it.
//
// An entry that a majority of voters has on disk is committed; every host applies the same committed entries in the same
// order to its own state machine. Any host may propose: the leader appends and, once committed, applies the entry, and the
// state machine's answer goes back to the proposer. This interface hides the library underneath (libraft 0.22.1, behind a C
// shim, because its header is not C++) and adds what it lacks: our transport with cluster and host identity, forwarding to the
// leader, a linearizable point for reads, checksummed snapshots, and keeping the right number of voters.
//
// What a proposer must know:
//  - A Result with a value is the state machine's answer, also when that answer is a refusal ({"ok": false, ...}).
//  - A Result with an Error means that no answer came in time. `Error::message` says whether the entry was certainly not
//    committed ("no quorum: ...") or whether this is unknown ("...; the change may still take effect"). An unknown one may be
//    committed later, even after a restart of everything. So entries should be idempotent or compare-and-set.
//  - Within its time a proposal survives the death of leaders: it is tried again, and still applied only once (once.h).
//  - When a proposal succeeds, the proposing host has applied it as well (read your writes).
//
// Order of starting: create Loop, Listener, Dialer, Links; set identities; create ConsensusLog; start(). Starting restores
// the last snapshot (StateMachine::restore) from within start(); entries after it are applied when a leader has told how far
// they are committed.
//
// Policy of voters: up to 4 hosts 3 vote, from 5 hosts on 5 vote, the others are learners ("standby" in libraft): they have the
// log, too, and are promoted when a voter is removed, or silent for voter_replace_ms. The leader sees to it, once a second,
// by comparing wanted() with raft's own configuration; one change at a time; a new member is added as learner first.
//
// Everything here is called and calls back on the loop thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "lib/error.h"
#include "lockstepd/net/link.h"
#include "lockstepd/net/listener.h"
#include "lockstepd/net/loop.h"

namespace lockstep {

constexpr size_t ENTRY_MAX_BYTES = 4u << 20;

constexpr const char *LOG_DAMAGED = "log-damaged";

enum class Role { voter, learner, none };    // none: known to the leader, receives nothing yet
const char *role_name(Role role);

struct Member {
	uint64_t raft_id = 0;
	int host = 0;
	std::vector<std::string> addresses;    // with ports, preferred first
	Role role = Role::none;                // ignored in what wanted() gives
};

// What the log drives. All must be deterministic where they touch replicated state. Exceptions abort the daemon: a
// state machine that cannot apply a committed entry must not go on.
struct StateMachine {
	std::function<nlohmann::json(uint64_t index, std::string_view entry)> apply;
	std::function<std::string()> snapshot;
	std::function<bool(std::string_view snapshot)> restore;    // replaces all state; false: not understood
};

struct ConsensusOptions {
	std::string dir;                       // raft's directory; see raft_dir_of()
	Member self;                           // role ignored
	unsigned heartbeat_ms = 100;
	unsigned election_ms = 1000;
	unsigned snapshot_threshold = 1024;    // entries between snapshots
	unsigned snapshot_trailing = 256;      // entries kept behind a snapshot, for hosts a little behind
	uint64_t rebalance_ms = 1000;
	uint64_t voter_replace_ms = 30'000;    // a voter silent for so long gives its vote to a learner that is there
};

class ConsensusLog {
public:
	using Json = nlohmann::json;
	using Answer = std::function<void(Result<Json>)>;

	// Founding a cluster: makes `options.dir` with a log whose first entry says that this host alone votes. Before start().
	static Done bootstrap(const ConsensusOptions &options);

	// Joining one: makes `options.dir` empty but present. Then write host.json, then start(): the leader, who finds this
	// host in wanted(), will make contact.
	static Done prepare_join(const ConsensusOptions &options);

	// A host whose log is lost or ended comes back under a new raft id: sets what is in `options.dir` aside and makes it empty, as
	// prepare_join() does, though host.json is there. Then write host.json, then start().
	static Done prepare_rejoin(const ConsensusOptions &options);

	// After the loss of all logs: the same, but as the only voter of a log that begins here, as bootstrap() does.
	static Done rebuild(const ConsensusOptions &options);

	// After the loss of a majority: the log in `options.dir` goes on with this host, under the new raft id of `options`, as the only
	// voter. What was there is kept beside it. Idempotent; killed anywhere, it can be repeated. Before start(). Blocks.
	static Done recover(const ConsensusOptions &options);

	// Where the log in `options.dir` ends, and what state all its entries lead to, those included of which it is not known whether
	// they were committed. Works on a copy, also while the log is in use. Blocks.
	struct Position {
		uint64_t term = 0, index = 0;    // of the last entry; of two logs the one with the greater pair holds more
		auto operator<=>(const Position &) const = default;
	};
	static Result<Position> replay(const ConsensusOptions &options, StateMachine machine);

	// Up to which entry the log in `options.dir` is known to be committed, without asking anybody: what this host had applied a second ago
	// at most when it was last up. What is behind it may be committed, or not. 0: nothing is known.
	static uint64_t known_committed(const ConsensusOptions &options);

	// Takes over listener.handlers().on_raft and the verbs "consensus.*" of links.
	ConsensusLog(Loop &loop, Listener &listener, Dialer &dialer, Links &links, ConsensusOptions options, StateMachine machine);
	~ConsensusLog();    // requires closed() or never started
	ConsensusLog(const ConsensusLog &) = delete;
	ConsensusLog &operator=(const ConsensusLog &) = delete;

	// Blocks for the time of loading snapshot and log. An Error says what is damaged and what to do; there is nothing to close
	// then. Its code is LOG_DAMAGED if what is on the disk is not what was written there: it must never be used again.
	Done start();

	// Hands leadership over if this is the leader (at most one election timeout), then closes. `done` is called when
	// nothing of it is left on the loop. Outstanding answers get an Error first.
	void close(std::function<void()> done);
	bool closed() const;

	// Commits `entry` (at most ENTRY_MAX_BYTES). See the top of this file.
	void propose(std::string entry, Answer done, uint64_t timeout_ms = 10'000);

	// A linearizable point: when `done` succeeds, the local state contains everything that was committed (by anybody) before
	// the call. On any host.
	void barrier(std::function<void(Done)> done, uint64_t timeout_ms = 10'000);

	bool is_leader() const;      // is, and has applied everything that was committed under earlier leaders
	int leader() const;          // host id; 0: none known
	uint64_t term() const;       // raft's term
	uint64_t applied_index() const;
	std::vector<Member> members() const;    // raft's own configuration, also right after start()

	// Called in a later turn whenever the answer of is_leader() or leader() has changed. Added to, never replaced.
	void on_role_change(std::function<void(bool is_leader, int leader_host)> f);

	// Who ought to be a member, asked of the leader's applied state. Empty list: change nothing. Removing a host from it
	// removes its member; a host that joins anew has a new raft id.
	void set_wanted(std::function<std::vector<Member>()> wanted);
	void rebalance_voters();    // look now instead of at the next second; does nothing on others than the leader

	// Gives leadership to another voter, if there is one.
	void step_down();

	// "no quorum: 1 of 3 voters reachable (beta and gamma are not)"
	std::string quorum_message() const;

	struct Impl;    // internal

private:
	std::shared_ptr<Impl> impl_;
};

}    // namespace lockstep
