// SPDX-License-Identifier: GPL-2.0-or-later
//
// The daemon: all parts of a host, and how they hang together.
//
//                       ┌────────── API threads (api/server.h) ──────────┐
//                       │ ApiBackend: posts to the loop and waits        │
//     links, lanes ───► │                                                │
//     kernel events ──► │ loop thread: ConsensusLog ─► State ─► look() ──┼──► worker threads: LVM, metadata, netlink
//     timers ─────────► │              (leader: decide())                │
//                       └────────────────────────────────────────────────┘
//
// Everything that is decided is decided on the loop thread, from the State as the log has made it. A change of the State is
// published once a turn of the loop: to the log file, to the API (as an immutable copy), to the reconciler and the lanes.
//
// Without a cluster only the API and the port are served. `cluster init` and `cluster join` (membership.cc) make the host a
// member; a start with a host.json does the same from there.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lockstepd/api/server.h"
#include "lockstepd/cluster/controller.h"
#include "lockstepd/cluster/repair.h"
#include "lockstepd/cluster/state.h"
#include "lockstepd/consensus/host_file.h"
#include "lockstepd/consensus/log.h"
#include "lockstepd/host/asked.h"
#include "lockstepd/host/config.h"
#include "lockstepd/host/decisions.h"
#include "lockstepd/host/kernel.h"
#include "lockstepd/host/lanes.h"
#include "lockstepd/host/logging.h"
#include "lockstepd/host/lvm.h"
#include "lockstepd/host/pending.h"
#include "lockstepd/host/reconciler.h"
#include "lockstepd/host/workers.h"
#include "lockstepd/net/link.h"
#include "lockstepd/net/listener.h"
#include "lockstepd/net/loop.h"
#include "lockstepd/net/tls.h"

namespace lockstep {

constexpr uint64_t LOOK_PERIOD_MS = 100;         // reconciler and lanes
constexpr uint64_t LEAD_PERIOD_MS = 250;         // the leader's decisions
constexpr uint64_t LEAD_AGAIN_MS = 2000;         // where there was nothing to decide, without cause: deadlines pass
constexpr uint64_t ELECTED_GRACE_MS = 1500;      // a new leader calls nobody offline: links may just be coming back
constexpr uint64_t UNHEARD_MS = 5000;            // without a leader: then this host's own copy of the log is asked
constexpr uint64_t RECALL_RETRY_MS = 30'000;
constexpr uint64_t SOFT_LEAST_MS = 500;          // between two reports about oneself
constexpr uint64_t SOFT_LOOK_MS = 1000;          // without a cause; of thousands of volumes the report takes a while to make
constexpr uint64_t IN_USE_TIMEOUT_MS = 1000;     // for another host to say that it uses a volume
constexpr uint64_t JOIN_TIMEOUT_MS = 12'000;
constexpr uint64_t ASK_MEMBER_PERIOD_MS = 5000;
constexpr uint64_t CERT_PERIOD_MS = 3'600'000;   // looks whether the certificate is to be renewed

class Daemon {
public:
	explicit Daemon(HostConfig config);
	~Daemon();
	Daemon(const Daemon &) = delete;
	Daemon &operator=(const Daemon &) = delete;

	// Listens, serves the API, and takes up the membership if there is one. An Error says why not; then destroy it.
	Done start();
	// Until SIGTERM or SIGINT. The kernel serves on afterwards. Gives the process's exit status.
	int run();

private:
	using Json = nlohmann::json;
	using JsonReply = std::function<void(Result<Json>)>;

	// daemon.cc
	void watch_signals();
	void stop(const std::string &why);
	Done serve(const HostFile &file);                       // as a member
	void listen_to_links();
	void wire_reconciler();
	void wire_lanes();
	void state_changed();                                   // soon: publish(), look
	void publish();
	void look();
	void update_peers();
	Done kernel_is_free() const;    // on any thread; may sleep
	void update_facts();
	void lead();
	void count_time();
	void removed();                                         // from the cluster
	std::map<HostId, Liveness> liveness() const;
	void report_soft();
	void inspect_pool(const std::string &vg, const std::string &thin_lv, JsonReply done);
	void serve_orphans();                                   // verbs of links
	void bare_orphans(JsonReply done);                      // of a host that is in no cluster
	void serve_disks();                                     // likewise
	void serve_diff();                                      // ... diff.cc
	void serve_revert();                                    // ... revert.cc
	void serve_trails();                                    // ... trails.cc
	void serve_copies();                                    // ... diff.cc, too
	Result<Json> ask_of_worker(HostId host, const std::string &verb, Json body, uint64_t timeout_ms, const std::atomic<bool> &stop);
	void propose(Json entry, JsonReply done);               // a refusal of the state machine comes as an Error

	// membership.cc
	ConsensusOptions consensus_options(const HostFile &file) const;
	Json self_json() const;                                 // {uuid name addresses port level}
	Done take_identity();                                   // from the disk
	std::optional<std::string> not_a_member(const PeerCert &peer, bool established) const;
	void ask_whether_member();                              // while there is no leader
	void keep_certificate();                                // renews it in time
	void token(uint64_t valid_s, JsonReply done);
	void client_cert(const std::string &name, const std::string &role, uint64_t end_ms, Json entry, JsonReply done);
	std::optional<std::string> not_a_client(const ClientCert &client) const;
	Result<std::string> host_uuid() const;                  // kept on disk until the membership is
	void init(const std::string &cluster_name, JsonReply done);
	void join(const std::string &token, const std::string &address, unsigned port, JsonReply done);
	void joined(const std::string &uuid, Result<Json> answer, JsonReply done);
	void serve_join(Json request, JsonReply done);
	void admit(Json entry, const std::string &public_key, JsonReply done);
	void keep_address();
	void found_cluster();

	// rejoin.cc
	struct Recovery;
	Done finish_pending(std::optional<HostFile> &file);
	void rejoin(const HostFile &file, const std::string &why);
	void ask_for_id();
	void ask_for_id_of(HostId peer, const HostFile &file, std::function<void(Result<Pending>)> done);
	void serve_rejoin(HostId host, const Json &request, JsonReply done);
	void ask_for_epoch();
	void log_position(JsonReply done);
	void recover(const RecoverRequest &request, JsonReply done);
	void recover_ask(std::shared_ptr<Recovery> r);
	void recover_answer(Recovery &r, HostId host, const Result<Json> &answer);
	void recover_decide(std::shared_ptr<Recovery> r);
	void begin_epoch();

	// rebuild.cc
	struct Rebuilding;
	void survey_disks(JsonReply done);
	void rebuild(const RecoverRequest &request, JsonReply done);
	void rebuild_answer(Rebuilding &r, const std::string &name, const Result<Json> &answer);
	void rebuild_decide(std::shared_ptr<Rebuilding> r);

	// assemble.cc
	void recall();

	// backend.cc
	ApiBackend backend();
	Result<Json> on_loop(std::function<void(JsonReply)> task, unsigned timeout_ms = CALL_TIMEOUT_MS);
	// entry: what asked_here() gave
	void pool_create(const std::string &name, HostId host, const std::string &vg, const std::string &thin_lv, Json entry, JsonReply done);
	Json asked_here(Json entry) const;

	HostConfig config_;
	const LogSink log_sink_;
	Loop loop_;
	Tls tls_;
	Listener listener_;
	Dialer dialer_;
	Links links_;
	Kernel kernel_;
	Lvm lvm_;
	std::optional<HostFile> member_;
	State state_;
	Decisions decisions_;                                   // before log_, which answers what it still has when it goes
	std::unique_ptr<ConsensusLog> log_;
	std::unique_ptr<Reconciler> reconciler_;
	std::unique_ptr<Lanes> lanes_;
	std::unique_ptr<KernelEvents> events_;
	std::unique_ptr<ApiServer> api_;
	std::unique_ptr<Workers> workers_;
	Timer look_timer_, lead_timer_, cert_timer_, rejoin_timer_;
	std::vector<std::shared_ptr<void>> signals_;
	std::thread api_stopper_;

	std::vector<LinkPeer> first_peers_;                     // from the answer to a join, until the State tells
	Asked asked_;                                           // for what is published next
	bool change_posted_ = false;
	bool stopping_ = false;
	uint64_t leader_since_ms_ = 0;
	struct {
		uint64_t applied = 0, at_ms = 0;
		std::map<HostId, bool> online;
	} undecided_;                                           // what was found to need no decision
	LifeClock life_clock_;
	bool counting_ = false;                                 // a life.elapsed is under way
	std::unique_ptr<const LastKnown> last_known_;           // until the log has been heard
	uint64_t recall_not_before_ms_ = 0;
	bool recalling_ = false;
	bool was_listed_ = false;                               // this host is among the State's
	std::map<HostId, uint64_t> known_since_ms_;             // when this daemon began to look for a host
	uint64_t founding_ms_ = 0;
	uint64_t asked_member_ms_ = 0;
	std::optional<HostFile> rejoining_;                     // no log, and no new raft id yet
	std::string rejoin_error_;
	bool asking_for_id_ = false;
	uint64_t asked_epoch_ms_ = 0;
	bool recovering_ = false;                               // a plan is being made
	Json recovery_;                                         // cluster.recover or cluster.rebuild, while it is to be proposed
	bool beginning_epoch_ = false;
	std::vector<LinkPeer> peers_stored_;
	std::string authority_kept_;                            // the key of it that is known to be on this host's disk
	bool keeping_address_ = false;
	std::vector<std::string> listening_for_;                // the State's addresses of this host that the port follows
	Json soft_said_;
	uint64_t soft_said_ms_ = 0;
	uint64_t soft_revision_ = 0, soft_seen_ms_ = 0;         // of the reconciler's last report, and when it was asked for
	std::string module_error_;

	mutable std::mutex shared_lock_;                        // for what API threads read:
	std::shared_ptr<const State> published_;
	HostId own_id_ = 0;                      // as this host's file says, also before the log has been opened
	LocalFacts facts_;
};

// "10.77.2.1" and 7788 as "10.77.2.1:7788"; IPv6 in brackets.
std::string with_port(const std::string &address, unsigned port);
std::vector<std::string> addresses_of(const Host &host);    // with ports

// Unix time in ms.
uint64_t unix_ms();

}    // namespace lockstep
