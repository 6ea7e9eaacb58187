// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API of the daemon: HTTP + JSON below /v1 on a unix socket, and over TLS on the one port for clients with a certificate.
//
// cpp-httplib accepts and answers on threads of its own. A handler checks the request, asks the daemon by the functions of
// ApiBackend (which post to the main loop and wait for it) and, where the command is to return only when its effect is
// real, waits until the applied State shows it. The main loop tells the server when the State has moved on (changed()) and
// what hosts report about themselves (soft()); neither call blocks.
//
//   GET    /v1/status            cluster, hosts, pools, groups, volumes; ?volume=NAME only that volume (3 if unknown); ?brief=true volumes without replicas, health and use,
//                              ?desired=true what was asked for of them;
//                                ?consistent=true not older than anything done before the request, or 10 without quorum
//   POST   /v1/cluster/init      {name}
//   POST   /v1/cluster/token     {valid_s(o)}
//   GET    /v1/cluster/certs     who may use the API over TLS
//   POST   /v1/cluster/certs/NAME    {role, valid_s(o)}: a certificate with its key; replaces one of that name
//   DELETE /v1/cluster/certs/NAME    revokes it
//   POST   /v1/cluster/join      {token, address, port(o)}
//   POST   /v1/cluster/recover   {yes(o), dead(o): names, from_disks(o), copies(o): {volume: host or "none"}}
//   POST   /v1/hosts/NAME/net    {verb: "add"|"remove"|"prefer", address}
//   POST   /v1/pools             {name, vg, thin(o), host(o: name)}
//   GET    /v1/disks             the disks of all pools
//   POST   /v1/disks             {host, pool(o), add(o), remove(o)}
//   GET    /v1/orphans           logical volumes on any host that belong to nothing in the log; in no cluster: on this host
//   POST   /v1/orphans/UUID/purge   {host(o)}
//   POST   /v1/orphans/UUID/adopt   {name, host(o), redundancy(o), group(o), labels(o)}
//   POST   /v1/groups            {name, pool, redundancy(o), labels(o)}
//   PATCH  /v1/groups/NAME       {labels: {key: text or null}}
//   DELETE /v1/groups/NAME
//   POST   /v1/volumes           {name, size_bytes, redundancy(o), pool(o), hosts(o: names), uuid(o), group(o), labels(o)}
//   PATCH  /v1/volumes/NAME      {labels: {key: text or null}}
//   DELETE /v1/volumes/NAME         wait=false: answers when it is decided, hosts remove what they have afterwards
//   POST   /v1/volumes/NAME/suspend, /resume    its writes
//   GET    /v1/events?after=C&ms=M  what has happened after the cursor C; waits up to M ms for something (events.h)
//   GET    /v1/why/NAME          what is the matter with a volume or host, and what to do
//   GET    /metrics              the same status for Prometheus
//   GET    /v1/wait?index=N&ms=M long poll: the status once State::applied is above N, or after M ms (at most 30,000)
//
// Errors: {"status":2|3|5|10,"code":"volume-open","message":"one line"} with HTTP 400, 404, 409 or 503. What is refused before it is looked at:
// HTTP 403, 413 or 429, see guard.h; limits.h has the limits.
//
// Soft state. soft(host, report) brings what one host says about itself, this host included; the newest replaces the one
// before. All fields are optional (what is missing is shown as unknown):
//   {"volumes": {"<vid>": {
//        "role": "idle"|"activating"|"active"|"draining",            enum lks_role
//        "has_replica": bool, "admitted": bool, "failed": bool, "lv_path": "/dev/vg/lv", "allocated_bytes": n,
//        "has_device": bool, "openers": n, "writers": n, "pending": n, "oldest_ms": n,
//        "version": n, "term": n, "hot_extents": n, "written_extents": n,
//        "peers": {"<host id>": {"sync_state": "member"|"away"|"running"|"joining"|"lost", "dirty_blocks": n}}
//   }}}
// "peers" counts from the primary only. Send a report when something in it changed, while a resync runs once a second, and
// drop it by soft(host, nullptr) when the host's link is lost.
//
// Context: start() and stop() from one thread; changed(), soft() and happened() from any, they do not block.
#pragma once

#include "lib/error.h"
#include "lockstepd/api/limits.h"
#include "lockstepd/api/reports.h"
#include "lockstepd/cluster/state.h"
#include "lockstepd/net/certs.h"

#include <nlohmann/json.hpp>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace lockstep {

// What this host knows beside the State.
struct LocalFacts {
	std::string host_name;             // from the configuration
	HostId host = 0;                   // 0: in no cluster
	HostId leader = 0;                 // 0: none known, that is, no quorum
	std::string module_error;          // empty: lockstep.ko is loaded and answers; else one line with what to do
};

// All of these are called on the API's threads and may block; none longer than CALL_TIMEOUT (state, local: at once), or than
// LVM_CALL_TIMEOUT if another host's LVM is asked (ask_host).
constexpr unsigned CALL_TIMEOUT_MS = 15000;
constexpr unsigned LVM_CALL_TIMEOUT_MS = 110'000;    // one command may take LVM_TIMEOUT_MS (host/lvm.h), and waits for others first
constexpr unsigned RECOVER_TIMEOUT_MS = 150'000;
// From this host's log (cluster/recover.h), or, if no host has one, from what the disks say (cluster/rebuild.h).
struct RecoverRequest {
	std::vector<std::string> dead;     // names of hosts that are vouched for
	bool yes = false, from_disks = false;
	std::map<std::string, std::string> copies;    // from_disks: RebuildInput::choices
};

struct ApiBackend {
	std::function<LocalFacts()> local;
	std::function<std::shared_ptr<const State>()> state;            // a copy of the applied State; may be cached by index
	// Through the leader, whichever host it is. The value is apply()'s answer with ok; its refusals come as errors, as do
	// "no quorum" and a time-out (then the entry may still be applied later).
	std::function<Result<nlohmann::json>(const nlohmann::json &entry)> propose;
	// Returns when the local State is at least as new as anything committed before the call. Fails without quorum.
	std::function<Done()> barrier;
	std::function<Result<nlohmann::json>(const std::string &cluster_name)> init;
	std::function<Result<nlohmann::json>(uint64_t valid_s)> token;
	// {"bundle": PEM of key, certificate and authority}, made known to the cluster. end_ms: Unix time.
	std::function<Result<nlohmann::json>(const std::string &name, const std::string &role, uint64_t end_ms)> client_cert;
	std::function<Result<nlohmann::json>(const std::string &token, const std::string &address, unsigned port)> join;
	// What a recovery would do; with yes, does it: the daemon then starts anew. May take RECOVER_TIMEOUT_MS.
	std::function<Result<nlohmann::json>(const RecoverRequest &)> recover;
	// Checks VG and thin LV on that host (forwards if it is another one), then proposes pool.add. thin_lv empty: thick.
	std::function<Result<nlohmann::json>(const std::string &name, HostId host, const std::string &vg, const std::string &thin_lv)>
		pool_create;
	// On a host that is in no cluster: orphan.list of its own disks.
	std::function<Result<nlohmann::json>()> bare_orphans;
	// A question to the daemon of a host, this one included: verbs of links (daemon.cc).
	std::function<Result<nlohmann::json>(HostId host, const std::string &verb, const nlohmann::json &body)> ask_host;
};

struct ApiOptions {
	std::string socket;                // path; a stale file is removed, a live daemon is an error. Mode 0600
	unsigned effect_timeout_ms = 60000;    // how long a command waits for its effect before it fails and is rolled back
	unsigned starting_timeout_ms = 5000;   // how long a command waits for a daemon that has just started
	ApiLimits limits = {};
};

// Of each volume in the status:
enum class View {
	full,
	brief,	     // name, uuid, vid, size_bytes, allocated_bytes, redundancy, class, group, labels and phase
	desired,     // name, size_bytes, redundancy, class, pool, group, labels, rules, no_quorum, openers and phase
};

class ApiServer {
public:
	ApiServer(ApiBackend backend, ApiOptions options);
	~ApiServer();                              // stop()
	ApiServer(const ApiServer &) = delete;
	ApiServer &operator=(const ApiServer &) = delete;

	Done start();                              // binds, then serves on threads of its own
	// Waits for handlers, hence for backend calls in progress: not to be called on the thread that completes those, unless
	// they fail at once by then. Waits for effects end at once. Removes the socket.
	void stop();
	// Takes over the connection of a client of the API, which carries HTTP in plain (net/listener.h). On any thread; does not block.
	void serve(int fd, const ClientCert &client);
	void changed();                            // the State has moved on
	void soft(HostId host, const nlohmann::json &report);
	// A line of the log, for GET /v1/events; kind, name: what it is about (events.h). Before changed().
	void happened(const std::string &kind, const std::string &name, const std::string &line);

private:
	struct Impl;
	std::unique_ptr<Impl> impl_;
};

// Why a host that is in a cluster cannot tell anything about it yet.
std::string starting_message(const std::string &host_name);

// The answer of /v1/status; pure. soft: "<host id>" -> report as above, with "peers" entries that may have "rate_blocks_s"
// (measured by the server, see meter.h). Shape:
//   {"applied": n, "message": "no cluster yet: ..." or starting_message() (only then), "this_host": name,
//    "cluster": {name, uuid, leader (host name or null), quorum: bool} or null (no cluster); while starting the names are null,
//    "hosts":   [{id, name, addresses, port, status: "online"|"offline", since_ms, level}],
//    "pools":   [{name, host, kind, vg, thin_lv, size_bytes, free_bytes, reserved_bytes, available_bytes}],
//    "groups":  [{name, pool, redundancy, labels: {key: text}}], "consistent": true (only if asked for),
//    "volumes": [{name, uuid, vid, minor, device, size_bytes, allocated_bytes (or null), redundancy, class, group (name or null), labels, phase, failure(o),
//                 health: "ok"|"degraded"|"syncing"|"frozen"|"offline"|"creating"|"deleting", reason: why not ok,
//                 primary (host name or null), opener (host name or null),
//                 record: {version, term, incarnation, session_serial}, pending_hosts: [names] (only deleting),
//                 devices: [host names],
//                 replicas: [{host, pool, lv_path, md_offset, state: "insync"|"suspect"|"stale"|"failed"|"syncing",
//                             online, dirty_bytes, sync_percent, eta_s, rate_bytes_s (the last four null if unknown)}]}]}
// only: of the volumes those of this name; reports of others are not looked at then.
nlohmann::json status_json(const State &state, const LocalFacts &local, const Reports &soft, const std::string *only = nullptr,
			   View view = View::full);
// The same of all volumes, as text: of thousands of volumes the objects would take ten times the room.
std::string status_text(const State &state, const LocalFacts &local, const Reports &soft, View view = View::full, bool consistent = false);
// The volumes alone; for_list: what a list shows, {name, vid, phase, health, size_bytes, redundancy, in_sync: n, primary, openers}.
std::string volume_list_text(const State &state, const LocalFacts &local, const Reports &soft, bool for_list);

}    // namespace lockstep
