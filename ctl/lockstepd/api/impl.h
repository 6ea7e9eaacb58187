// SPDX-License-Identifier: GPL-2.0-or-later
//
// Inside the API server: what its files share. server.cc is the plumbing; each of the others holds the handlers of one kind of
// object and names their routes. A handler is a member function from a request to Result<json>; it may throw BadRequest.
#pragma once

#include "lib/uuid.h"
#include "lockstepd/api/events.h"
#include "lockstepd/api/guard.h"
#include "lockstepd/api/meter.h"
#include "lockstepd/api/server.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

namespace lockstep {

constexpr unsigned MAX_POLL_MS = 30000;

struct BadRequest {
	std::string message;
};

// Whether a parameter of the request is there, which can have this one value only. Throws BadRequest.
bool given(const httplib::Request &req, const char *name, const char *value);

// The request's body; the fields of a body. They throw BadRequest.
nlohmann::json body_of(const httplib::Request &req);
std::string text_of(const nlohmann::json &body, const char *field, const char *otherwise = nullptr);
uint64_t number_of(const nlohmann::json &body, const char *field, uint64_t most);
bool flag_of(const nlohmann::json &body, const char *field);                    // false if it is missing
uint64_t parameter(const httplib::Request &req, const char *name, uint64_t otherwise);

uint64_t api_now_ms();                                                          // Unix time
std::string host_names(const State &s, const std::vector<HostId> &hosts);       // "alpha, beta"

struct ApiServer::Impl {
	using json = nlohmann::json;
	using Clock = std::chrono::steady_clock;

	ApiBackend backend;
	ApiOptions options;
	GuardedServer http;
	std::thread thread;
	bool bound = false;

	std::mutex mutex;
	std::condition_variable moved;
	uint64_t turn = 0;                     // +1 when the State or a report has changed
	bool stopping = false;
	Reports reports;
	const std::string NO_NAME;
	SyncMeter meter;
	EventList events{make_uuid().substr(0, 8)};

	Impl(ApiBackend b, ApiOptions o) : backend(std::move(b)), options(std::move(o)) { routes(); }

	// server.cc
	using Handler = Result<json> (Impl::*)(const httplib::Request &);
	httplib::Server::Handler route(Handler handler);
	// The same for what answers with JSON as text.
	using TextHandler = Result<std::string> (Impl::*)(const httplib::Request &);
	httplib::Server::Handler route(TextHandler handler);
	void routes();
	template <class Predicate>
	bool wait_for(Predicate holds, unsigned timeout_ms);
	template <class Predicate>
	bool wait_with_copies(Predicate holds, uint32_t vid);
	bool is_stopping()
	{
		std::lock_guard lock(mutex);
		return stopping;
	}
	Result<ApiRole> role_of(const Caller &caller) const;
	Result<HostId> host_of(const State &s, const std::string &name) const;
	Done ready_for_changes();
	// only: the volumes of this name, at a cost that hardly grows with the others; view: see status_json()
	json status(const std::string *only = nullptr, View view = View::full);
	Reports said();
	json status_without_volumes() { return status(&NO_NAME); }
	json report_of(HostId host, uint32_t vid);             // what the host says about the volume; an object
	Result<std::string> get_status(const httplib::Request &req);
	Result<std::string> get_wait(const httplib::Request &req);

	// cluster.cc
	void routes_cluster();
	Error in_cluster_already(const std::string &host_name);
	Result<json> cluster_init(const httplib::Request &req);
	Result<json> cluster_token(const httplib::Request &req);
	Result<json> cert_list(const httplib::Request &req);
	Result<json> cert_make(const httplib::Request &req);
	Result<json> cert_revoke(const httplib::Request &req);
	Result<json> cluster_recover(const httplib::Request &req);
	Result<json> host_net(const httplib::Request &req);
	Result<json> cluster_join(const httplib::Request &req);
	Result<json> pool_create(const httplib::Request &req);
	Result<json> pool_delete(const httplib::Request &req);

	// groups.cc
	void routes_groups();
	Result<json> logged(const json &entry, const json &answer);    // answers when the entry is applied here
	Result<json> group_create(const httplib::Request &req);
	Result<json> group_patch(const httplib::Request &req);
	Result<json> group_delete(const httplib::Request &req);
	Result<json> all_logged(const std::vector<json> &entries, const json &answer);
	static Done tried(State &trial, const json &entry);    // on a copy of the State: what the log would say to it
	Result<json> named_in_rule(const std::string &kind, const json &names);
	Result<json> rules_of_body(const json &body);
	Result<json> volume_patch(const httplib::Request &req);
	Result<json> host_patch(const httplib::Request &req);

	// volumes.cc
	void routes_volumes();
	Error create_failed(uint32_t vid, const std::string &name, const std::string &message);
	Error roll_back(uint32_t vid, const std::string &name);
	static bool copies(const State &s, uint32_t vid);
	Result<json> finish_create(const Result<json> &begun, const std::string &name, const std::string &uuid);
	Result<json> volume_create(const httplib::Request &req);
	Result<json> volume_delete(const httplib::Request &req);

	// serving.cc
	void routes_serving();
	Result<uint32_t> vid_of(const std::string &name);      // by a State that is not older than the call
	Result<HostId> host_or_self(const json &body);
	bool wait_closed(const std::string &volume);
	Result<json> propose_unused(const json &entry, const std::string &volume);
	Result<json> choose_primary(uint32_t vid, const std::string &name, HostId host);
	Result<json> ask_primary(const std::string &name, const std::string &verb, json body);
	Result<std::string> volume_list(const httplib::Request &req);
	Result<json> volume_get(const httplib::Request &req);
	Result<json> volume_openers(const httplib::Request &req);
	Result<json> volume_role(const httplib::Request &req);
	Result<json> volume_resize(const httplib::Request &req);
	Result<json> volume_verify(const httplib::Request &req);
	Result<json> volume_abort(const httplib::Request &req);
	Result<json> volume_suspend(const httplib::Request &req);

	// snapshots.cc
	void routes_snapshots();
	Result<json> take_snapshots(json entry, const std::vector<std::string> &volumes, const std::string &uuid);
	Result<json> delete_snapshot(const json &which);
	Result<json> snapshot_list(const httplib::Request &req);
	Result<json> snapshot_create_set(const httplib::Request &req);
	Result<json> snapshot_create(const httplib::Request &req);
	Result<json> snapshot_patch(const httplib::Request &req);
	Result<json> snapshot_delete(const httplib::Request &req);
	Result<json> snapshot_restore(const httplib::Request &req);
	Result<json> finish_revert(const Result<json> &begun, const std::string &volume);    // its answer: vid
	void add_ways_to_revert(json &entry, const State &s, const Volume *v);    // fields of snapshot.revert that all hosts understand
	Result<json> try_revert_in_place(json entry, const State &s, const Volume &v);
	Result<json> propose_revert(const std::string &volume, const std::string &name);
	Result<json> snapshot_revert(const httplib::Request &req);
	Result<json> snapshot_diff(const httplib::Request &req);
	Result<json> volume_clone(const httplib::Request &req);

	// trails.cc
	void routes_trails();
	Result<json> trail_begin(const httplib::Request &req);
	Result<json> trail_get(const httplib::Request &req);
	Result<json> trail_end(const httplib::Request &req);
	Result<json> ask_of_trail(const httplib::Request &req, const char *verb, json body);
	Result<json> volume_replace(const httplib::Request &req);

	// orphans.cc
	void routes_orphans();
	Result<json> ask_for_orphans(const State &s, const std::string &uuid, bool show, std::optional<HostId> only);
	Result<json> orphan_list(const httplib::Request &req);
	Result<json> orphan_purge(const httplib::Request &req);
	Result<json> orphan_adopt(const httplib::Request &req);

	// disks.cc
	void routes_disks();
	Result<json> disk_list(const httplib::Request &req);
	Result<json> disk_change(const httplib::Request &req);
	Result<json> disk_mend(json answer);

	// life.cc
	void routes_life();
	Done wait_created(uint32_t vid, HostId host);
	Result<json> replica_add(const httplib::Request &req);
	Result<json> replica_remove(const httplib::Request &req);
	Result<json> replica_move(const httplib::Request &req);
	Result<json> replica_pin(const httplib::Request &req);
	Result<json> volume_invalidate(const httplib::Request &req);
	Result<json> volume_redundancy(const httplib::Request &req);
	Result<json> host_verb(const httplib::Request &req);
	Result<json> option_list(const httplib::Request &req);
	Result<json> option_set(const httplib::Request &req);
	Result<json> capacity_of(const httplib::Request &req);

	// operations.cc
	void routes_operations();
	Result<json> operation_list(const httplib::Request &req);
	Result<json> operation_get(const httplib::Request &req);
	Result<json> operation_cancel(const httplib::Request &req);
	json operations_of(const char *field, const std::string &name);    // ids; field: "volume" or "host"
	Result<json> stay(const Volume &v, HostId host);

	// adjust.cc
	void routes_adjust();
	Result<json> adjust(const httplib::Request &req);

	// watch.cc
	void routes_watch();
	Result<json> get_events(const httplib::Request &req);
	Result<json> get_why(const httplib::Request &req);
};

// Waits until holds(State) is true, looking again whenever the State or a host's report changes; false after the time-out or
// when the server stops.
template <class Predicate>
bool ApiServer::Impl::wait_for(Predicate holds, unsigned timeout_ms)
{
	const Clock::time_point end = Clock::now() + std::chrono::milliseconds(timeout_ms);
	for (;;) {
		uint64_t seen;
		{
			std::lock_guard lock(mutex);
			seen = turn;
		}
		if (holds(*backend.state()))
			return true;
		if (Clock::now() >= end)    // and there was a look since: what came in time counts
			return false;
		std::unique_lock lock(mutex);
		moved.wait_until(lock, end, [&] { return stopping || turn != seen; });
		if (stopping)
			return false;
	}
}

// What the volume is made of is copied for as long as that takes; what is left when that has ended gets the time of any other command.
template <class Predicate>
bool ApiServer::Impl::wait_with_copies(Predicate holds, uint32_t vid)
{
	bool copying = copies(*backend.state(), vid);
	while (!wait_for(holds, options.effect_timeout_ms)) {
		const bool copied = std::exchange(copying, copies(*backend.state(), vid));
		if ((!copied && !copying) || is_stopping())
			return false;
	}
	return true;
}

}    // namespace lockstep
