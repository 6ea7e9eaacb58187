// SPDX-License-Identifier: GPL-2.0-or-later
//
// See server.h. A handler is a function from a request to Result<json>; route() turns what it returns, throws or refuses into
// an HTTP answer. Waiting for an effect means: look at the applied State, and look again whenever changed() says that it
// moved.
#include "lockstepd/api/server.h"

#include "lib/http.h"
#include "lib/uuid.h"
#include "lockstepd/api/meter.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <thread>

namespace lockstep {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr size_t MAX_THREADS = 32;
constexpr size_t MAX_BODY_BYTES = 64 * 1024;
constexpr unsigned MAX_POLL_MS = 30000;
constexpr unsigned ROLLBACK_TIMEOUT_MS = 20000;

int http_status(Status status)
{
	switch (status) {
	case Status::ok: return 200;
	case Status::usage: return 400;
	case Status::not_found: return 404;
	case Status::forbidden: return 409;
	case Status::failed: return 503;
	}
	return 500;
}

// Texts may come from tools and files: bytes that are no UTF-8 must not make an answer impossible.
std::string dump(const json &j) { return j.dump(-1, ' ', false, json::error_handler_t::replace); }

void answer(httplib::Response &res, const Result<json> &result)
{
	if (result) {
		res.status = 200;
		res.set_content(dump(*result), "application/json");
		return;
	}
	res.status = http_status(result.error().status);
	res.set_content(dump({{"status", int(result.error().status)}, {"message", result.error().message}}), "application/json");
}

struct BadRequest {
	std::string message;
};

json body_of(const httplib::Request &req)
{
	json body = req.body.empty() ? json::object() : json::parse(req.body, nullptr, false);
	if (!body.is_object())
		throw BadRequest{"the body of the request is not a JSON object"};
	return body;
}

std::string text_of(const json &body, const char *field, const char *otherwise = nullptr)
{
	auto it = body.find(field);
	if (it == body.end() && otherwise)
		return otherwise;
	if (it == body.end() || !it->is_string())
		throw BadRequest{std::string("the field \"") + field + "\" is missing or not a text"};
	return *it;
}

uint64_t number_of(const json &body, const char *field, uint64_t most)
{
	auto it = body.find(field);
	if (it == body.end() || !it->is_number_unsigned() || it->get<uint64_t>() > most)
		throw BadRequest{std::string("the field \"") + field + "\" is missing or not a number from 0 to " + std::to_string(most)};
	return *it;
}

uint64_t parameter(const httplib::Request &req, const char *name, uint64_t otherwise)
{
	if (!req.has_param(name))
		return otherwise;
	std::string text = req.get_param_value(name);
	if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != text.npos)
		throw BadRequest{std::string("the parameter \"") + name + "\" is not a number"};
	return std::stoull(text);
}

uint64_t unix_ms()
{
	using namespace std::chrono;
	return uint64_t(duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count());
}

// A socket left by a daemon that was killed is removed; one that is answered belongs to somebody.
Done make_way(const std::string &path)
{
	sockaddr_un address{};
	address.sun_family = AF_UNIX;
	if (path.empty() || path.size() >= sizeof address.sun_path)
		return usage_error("the socket path " + path + " is empty or longer than " + std::to_string(sizeof address.sun_path - 1) + " bytes");
	std::memcpy(address.sun_path, path.data(), path.size());
	std::error_code error;
	if (auto parent = std::filesystem::path(path).parent_path(); !parent.empty())
		std::filesystem::create_directories(parent, error);
	if (error)
		return failed("cannot create the directory of " + path + ": " + error.message());
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return failed(std::string("cannot create a socket: ") + std::strerror(errno));
	bool answered = connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0;
	::close(fd);
	if (answered)
		return forbidden("another lockstepd serves " + path + " already: stop it first");
	if (unlink(path.c_str()) && errno != ENOENT)
		return failed("cannot remove " + path + ": " + std::strerror(errno));
	return Nothing{};
}

// Hosts that still have something of a tombstone; online ones only.
std::vector<HostId> still_deleting(const State &s, const Volume &v)
{
	std::set<HostId> hosts = v.devices;
	for (const Replica &r : v.replicas)
		hosts.insert(r.host);
	std::erase_if(hosts, [&](HostId h) { return !s.online(h); });
	return {hosts.begin(), hosts.end()};
}

std::vector<HostId> without_device(const State &s, const Volume &v)
{
	std::vector<HostId> hosts;
	for (const auto &[id, h] : s.hosts)
		if (h.online && !v.devices.contains(id))
			hosts.push_back(id);
	return hosts;
}

std::string names(const State &s, const std::vector<HostId> &hosts)
{
	std::string text;
	for (HostId h : hosts)
		text += (text.empty() ? "" : ", ") + s.host_name(h);
	return text;
}

}    // namespace

struct ApiServer::Impl {
	ApiBackend backend;
	ApiOptions options;
	httplib::Server http;
	std::thread thread;
	bool bound = false;

	std::mutex mutex;
	std::condition_variable moved;
	uint64_t applied = 0;
	bool stopping = false;
	json reports = json::object();
	SyncMeter meter;

	Impl(ApiBackend b, ApiOptions o) : backend(std::move(b)), options(std::move(o)) { routes(); }

	using Handler = Result<json> (Impl::*)(const httplib::Request &);
	httplib::Server::Handler route(Handler handler);
	void routes();

	template <class Predicate>
	bool wait_for(Predicate holds, unsigned timeout_ms);
	Result<HostId> host_of(const State &s, const std::string &name) const;
	Done ready_for_changes();
	Error in_cluster_already(const std::string &host_name);
	json status();
	Error create_failed(uint32_t vid, const std::string &name, const std::string &message);
	Error roll_back(uint32_t vid, const std::string &name);

	Result<json> get_status(const httplib::Request &req);
	Result<json> get_wait(const httplib::Request &req);
	Result<json> cluster_init(const httplib::Request &req);
	Result<json> cluster_join(const httplib::Request &req);
	Result<json> pool_create(const httplib::Request &req);
	Result<json> volume_create(const httplib::Request &req);
	Result<json> volume_delete(const httplib::Request &req);
};

// ---- plumbing ------------------------------------------------------------------------------------------------------

httplib::Server::Handler ApiServer::Impl::route(Handler handler)
{
	return [this, handler](const httplib::Request &req, httplib::Response &res) {
		try {
			answer(res, (this->*handler)(req));
		} catch (const BadRequest &bad) {
			answer(res, usage_error(bad.message));
		} catch (const std::exception &e) {
			answer(res, failed(std::string("lockstepd could not carry this out: ") + e.what()));
		}
	};
}

void ApiServer::Impl::routes()
{
	http.set_address_family(AF_UNIX);
	// Linux gives the name in the file system the mode of the socket, so nobody can connect before it is 0600.
	http.set_socket_options([](int fd) {
		fchmod(fd, 0600);
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	});
	http.set_payload_max_length(MAX_BODY_BYTES);
	http.set_keep_alive_timeout(1);
	http.new_task_queue = [] { return new httplib::ThreadPool(MAX_THREADS); };
	http.set_error_handler([](const httplib::Request &req, httplib::Response &res) {
		if (!res.body.empty())
			return;
		int status = res.status;
		if (status == 404)
			answer(res, not_found("the API has no " + req.method + " " + req.path));
		else
			answer(res, usage_error("the request was refused: HTTP status " + std::to_string(status)));
		res.status = status;
	});
	http.Get("/v1/status", route(&Impl::get_status));
	http.Get("/v1/wait", route(&Impl::get_wait));
	http.Post("/v1/cluster/init", route(&Impl::cluster_init));
	http.Post("/v1/cluster/join", route(&Impl::cluster_join));
	http.Post("/v1/pools", route(&Impl::pool_create));
	http.Post("/v1/volumes", route(&Impl::volume_create));
	http.Delete("/v1/volumes/(.+)", route(&Impl::volume_delete));
}

// Waits until holds(State) is true; false after the time-out or when the server stops.
template <class Predicate>
bool ApiServer::Impl::wait_for(Predicate holds, unsigned timeout_ms)
{
	const Clock::time_point end = Clock::now() + std::chrono::milliseconds(timeout_ms);
	for (;;) {
		uint64_t seen;
		{
			std::lock_guard lock(mutex);
			seen = applied;
		}
		if (holds(*backend.state()))
			return true;
		std::unique_lock lock(mutex);
		moved.wait_until(lock, end, [&] { return stopping || applied != seen; });
		if (stopping || Clock::now() >= end)
			return false;
	}
}

Result<HostId> ApiServer::Impl::host_of(const State &s, const std::string &name) const
{
	const Host *h = s.host_named(name);
	if (!h)
		return not_found("the cluster has no host named " + name);
	return h->id;
}

// What must hold before a command changes the cluster.
Done ApiServer::Impl::ready_for_changes()
{
	LocalFacts local = backend.local();
	if (local.host && !wait_for([](const State &s) { return s.initialized(); }, options.starting_timeout_ms))
		return forbidden(starting_message(local.host_name));
	if (!local.host)
		return forbidden("host " + local.host_name +
				 " is in no cluster yet: run `lockstep cluster init` or `lockstep cluster join ADDRESS`");
	return Nothing{};
}

json ApiServer::Impl::status()
{
	json soft;
	{
		std::lock_guard lock(mutex);
		soft = reports;
	}
	return status_json(*backend.state(), backend.local(), soft);
}

// ---- reading -------------------------------------------------------------------------------------------------------

Result<json> ApiServer::Impl::get_status(const httplib::Request &req)
{
	json j = status();
	if (!req.has_param("volume"))
		return j;
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	std::string name = req.get_param_value("volume");
	json only = json::array();
	for (const json &v : j["volumes"])
		if (v["name"] == name)
			only.push_back(v);
	if (only.empty())
		return not_found("there is no volume named " + name);
	j["volumes"] = only;
	return j;
}

Result<json> ApiServer::Impl::get_wait(const httplib::Request &req)
{
	uint64_t index = parameter(req, "index", 0);
	unsigned ms = unsigned(std::min<uint64_t>(parameter(req, "ms", 1000), MAX_POLL_MS));
	wait_for([&](const State &s) { return s.applied > index; }, ms);
	return status();
}

// ---- cluster and pools ---------------------------------------------------------------------------------------------

Error ApiServer::Impl::in_cluster_already(const std::string &host_name)
{
	std::string name = backend.state()->name;
	return forbidden("host " + host_name + " is in " + (name.empty() ? "a cluster" : "cluster " + name) + " already");
}

Result<json> ApiServer::Impl::cluster_init(const httplib::Request &req)
{
	std::string name = text_of(body_of(req), "name", "lockstep");
	LocalFacts local = backend.local();
	if (!valid_name(name))
		return usage_error("\"" + name + "\" is no valid cluster name: use up to 63 letters, digits, \".\", \"_\" and \"-\"");
	if (local.host)
		return in_cluster_already(local.host_name);
	if (!local.module_error.empty())
		return forbidden(local.module_error);
	Result<json> result = backend.init(name);
	if (!result)
		return result;
	if (!wait_for([](const State &s) { return s.initialized(); }, CALL_TIMEOUT_MS))
		return failed("cluster " + name + " does not come up: see the log of lockstepd on " + local.host_name);
	return result;
}

Result<json> ApiServer::Impl::cluster_join(const httplib::Request &req)
{
	json body = body_of(req);
	std::string address = text_of(body, "address");
	unsigned port = body.contains("port") ? unsigned(number_of(body, "port", MAX_PORT)) : DEFAULT_PORT;
	LocalFacts local = backend.local();
	if (address.empty() || !port)
		return usage_error("name the address of a host of the cluster");
	if (local.host)
		return in_cluster_already(local.host_name);
	if (!local.module_error.empty())
		return forbidden(local.module_error);
	Result<json> result = backend.join(address, port);
	if (!result)
		return result;
	auto joined = [&](const State &s) { return s.host(backend.local().host) != nullptr; };
	if (!wait_for(joined, options.effect_timeout_ms))
		return failed("host " + local.host_name + " joined, but does not receive the cluster's log from " + address +
			      ": see the log of lockstepd");
	json answer = *result;
	answer["cluster"] = backend.state()->name;
	return answer;
}

Result<json> ApiServer::Impl::pool_create(const httplib::Request &req)
{
	json body = body_of(req);
	std::string name = text_of(body, "name"), vg = text_of(body, "vg"), thin = text_of(body, "thin", "");
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	std::shared_ptr<const State> s = backend.state();
	HostId host = backend.local().host;
	if (body.contains("host")) {
		Result<HostId> named = host_of(*s, text_of(body, "host"));
		if (!named)
			return named.error();
		host = *named;
	}
	if (!valid_name(name))
		return usage_error("\"" + name + "\" is no valid pool name: use up to 63 letters, digits, \".\", \"_\" and \"-\"");
	if (!s->online(host))
		return forbidden("pool " + name + " cannot be created: host " + s->host_name(host) + " is offline");
	Result<json> result = backend.pool_create(name, host, vg, thin);
	if (!result)
		return result;
	if (!wait_for([&](const State &now) { return now.pool(name, host) != nullptr; }, CALL_TIMEOUT_MS))
		return failed("pool " + name + " was created, but host " + backend.local().host_name + " does not hear of it");
	json answer = *result;
	answer["host"] = s->host_name(host);
	return answer;
}

// ---- volumes -------------------------------------------------------------------------------------------------------

// Waits until the tombstone is gone from every host that is online, then says why.
Error ApiServer::Impl::create_failed(uint32_t vid, const std::string &name, const std::string &message)
{
	auto gone = [&](const State &s) {
		const Volume *v = s.volume(vid);
		return !v || (v->phase == Phase::deleting && still_deleting(s, *v).empty());
	};
	bool clean = wait_for(gone, ROLLBACK_TIMEOUT_MS);
	std::string reason = message;
	std::shared_ptr<const State> s = backend.state();
	if (auto it = s->failures.find(vid); it != s->failures.end())
		reason = it->second.message;
	if (!clean)
		reason += " (and what was made of it is not all removed yet: see `lockstep status " + name + "`)";
	return failed(reason);
}

// A create that took too long.
Error ApiServer::Impl::roll_back(uint32_t vid, const std::string &name)
{
	std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume(vid);
	std::string after = " after " + std::to_string(options.effect_timeout_ms / 1000) + " s";
	std::string message = "volume " + name + " could not be created: ";
	json undo = {{"op", "volume.delete"}, {"vid", vid}};
	if (!v) {
		message += "host " + backend.local().host_name + " does not hear of it" + after;
	} else if (v->phase == Phase::ready) {
		message += "no device on host " + names(*s, without_device(*s, *v)) + after;
	} else {
		std::vector<HostId> slow;
		for (const Replica &r : v->replicas)
			if (!r.created)
				slow.push_back(r.host);
		message += "no replica on host " + names(*s, slow) + after;
		undo = {{"op", "volume.abort"}, {"vid", vid}, {"message", message}};
	}
	Result<json> undone = backend.propose(undo);
	if (!undone && undone.error().status != Status::not_found)
		return failed(message + "; removing it failed too: " + undone.error().message);
	return create_failed(vid, name, message);
}

Result<json> ApiServer::Impl::volume_create(const httplib::Request &req)
{
	json body = body_of(req);
	std::string name = text_of(body, "name");
	json entry = {{"op", "volume.create"}, {"name", name}, {"uuid", make_uuid()}, {"pool", text_of(body, "pool", "default")},
		      {"size_bytes", number_of(body, "size_bytes", UINT64_MAX >> 1)}, {"now_ms", unix_ms()}};
	if (body.contains("redundancy"))
		entry["redundancy"] = number_of(body, "redundancy", UINT32_MAX);
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	if (std::string e = backend.local().module_error; !e.empty())
		return forbidden(e);
	if (body.contains("hosts")) {
		if (!body["hosts"].is_array() || body["hosts"].empty())
			return usage_error("the field \"hosts\" is not a list of host names");
		entry["hosts"] = json::array();
		for (const json &h : body["hosts"]) {
			Result<HostId> id = host_of(*backend.state(), h.is_string() ? h.get<std::string>() : h.dump());
			if (!id)
				return id.error();
			entry["hosts"].push_back(*id);
		}
	}
	Result<json> result = backend.propose(entry);
	if (!result)
		return result;
	uint32_t vid = result->at("vid");
	bool there = false;
	auto settled = [&](const State &s) {
		const Volume *v = s.volume(vid);
		there = v && v->phase == Phase::ready && without_device(s, *v).empty();
		bool given_up = v ? v->phase == Phase::deleting : s.next_vid > vid;
		return there || given_up;
	};
	if (!wait_for(settled, options.effect_timeout_ms))
		return roll_back(vid, name);
	if (!there)
		return create_failed(vid, name, "volume " + name + " was deleted while it was being created");
	json hosts = json::array();
	for (const json &h : result->at("hosts"))
		hosts.push_back(backend.state()->host_name(h));
	return json{{"name", name}, {"vid", vid}, {"device", "/dev/lockstep/" + name}, {"hosts", hosts}};
}

Result<json> ApiServer::Impl::volume_delete(const httplib::Request &req)
{
	std::string name = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	Result<json> result = backend.propose({{"op", "volume.delete"}, {"name", name}});
	if (!result)
		return result;
	uint32_t vid = result->at("vid");
	auto gone = [&](const State &s) {
		const Volume *v = s.volume(vid);
		return !v || (v->phase == Phase::deleting && still_deleting(s, *v).empty());
	};
	bool done = wait_for(gone, options.effect_timeout_ms);
	std::shared_ptr<const State> s = backend.state();
	const Volume *rest = s->volume(vid);
	if (!done && rest)
		return failed("volume " + name + " is being deleted, but host " + names(*s, still_deleting(*s, *rest)) +
			      " has not finished yet: see the log of lockstepd there");
	json pending = json::array();
	if (rest) {
		std::set<HostId> hosts = rest->devices;
		for (const Replica &r : rest->replicas)
			hosts.insert(r.host);
		for (HostId h : hosts)
			pending.push_back(s->host_name(h));
	}
	return json{{"name", name}, {"vid", vid}, {"pending_hosts", pending}};
}

// ---- the server ----------------------------------------------------------------------------------------------------

ApiServer::ApiServer(ApiBackend backend, ApiOptions options) : impl_(std::make_unique<Impl>(std::move(backend), std::move(options))) {}

ApiServer::~ApiServer() { stop(); }

Done ApiServer::start()
{
	if (Done free = make_way(impl_->options.socket); !free)
		return free;
	// The port only stands in the Host header of requests.
	if (!impl_->http.bind_to_port(impl_->options.socket, 80))
		return failed("cannot listen on " + impl_->options.socket + ": " + std::strerror(errno));
	impl_->bound = true;
	impl_->thread = std::thread([this] { impl_->http.listen_after_bind(); });
	while (!impl_->http.is_running())    // stop() has no effect before
		std::this_thread::yield();
	return Nothing{};
}

void ApiServer::stop()
{
	if (!impl_->bound)
		return;
	{
		std::lock_guard lock(impl_->mutex);
		impl_->stopping = true;
	}
	impl_->moved.notify_all();
	impl_->http.stop();
	impl_->thread.join();
	unlink(impl_->options.socket.c_str());
	impl_->bound = false;
}

void ApiServer::changed(uint64_t applied)
{
	{
		std::lock_guard lock(impl_->mutex);
		impl_->applied = applied;
	}
	impl_->moved.notify_all();
}

void ApiServer::soft(HostId host, const json &report)
{
	std::lock_guard lock(impl_->mutex);
	std::string key = std::to_string(host);
	if (!report.is_object()) {
		impl_->reports.erase(key);
		return;
	}
	json measured = report;
	using namespace std::chrono;
	uint64_t now_ms = uint64_t(duration_cast<milliseconds>(Clock::now().time_since_epoch()).count());
	impl_->meter.measure(host, measured, now_ms);
	impl_->reports[key] = std::move(measured);
}

}    // namespace lockstep
