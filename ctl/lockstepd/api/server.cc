// SPDX-License-Identifier: GPL-2.0-or-later
//
// See server.h. A handler is a function from a request to Result<json>; route() turns what it returns, throws or refuses into
// an HTTP answer. Waiting for an effect means: look at the applied State, and look again whenever changed() says that it
// moved.
#include "lockstepd/api/impl.h"

#include "lockstepd/api/soft.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

namespace lockstep {

using nlohmann::json;

namespace {

constexpr size_t MAX_THREADS = 32;
constexpr size_t MAX_BODY_BYTES = 64 * 1024;

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

void answer(httplib::Response &res, Result<std::string> result)
{
	if (result) {
		res.status = 200;
		res.set_content(std::move(*result), "application/json");
		return;
	}
	res.status = http_status(result.error().status);
	res.set_content(dump({{"status", int(result.error().status)}, {"code", code_of(result.error())}, {"message", result.error().message}}), "application/json");
}

void answer(httplib::Response &res, const Result<json> &result) { answer(res, result ? Result<std::string>(dump(*result)) : result.error()); }

// What a handler throws is an answer, too.
template <class Impl, class Handler>
void handle(Impl *impl, Handler handler, const httplib::Request &req, httplib::Response &res)
{
	try {
		answer(res, (impl->*handler)(req));
	} catch (const BadRequest &bad) {
		answer(res, Result<std::string>(usage_error(bad.message)));
	} catch (const std::exception &e) {
		answer(res, Result<std::string>(failed(std::string("lockstepd could not carry this out: ") + e.what())));
	}
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

}    // namespace

// ---- requests ------------------------------------------------------------------------------------------------------

bool given(const httplib::Request &req, const char *name, const char *value)
{
	if (req.has_param(name) && req.get_param_value(name) != value)
		throw BadRequest{std::string("the parameter \"") + name + "\" can only be \"" + value + "\""};
	return req.has_param(name);
}

json body_of(const httplib::Request &req)
{
	json body = req.body.empty() ? json::object() : json::parse(req.body, nullptr, false);
	if (!body.is_object())
		throw BadRequest{"the body of the request is not a JSON object"};
	return body;
}

std::string text_of(const json &body, const char *field, const char *otherwise)
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

bool flag_of(const json &body, const char *field)
{
	auto it = body.find(field);
	if (it != body.end() && !it->is_boolean())
		throw BadRequest{std::string("the field \"") + field + "\" is not true or false"};
	return it != body.end() && it->get<bool>();
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

uint64_t api_now_ms()
{
	using namespace std::chrono;
	return uint64_t(duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count());
}

std::string host_names(const State &s, const std::vector<HostId> &hosts)
{
	std::string text;
	for (HostId h : hosts)
		text += (text.empty() ? "" : ", ") + s.host_name(h);
	return text;
}

// ---- plumbing ------------------------------------------------------------------------------------------------------

httplib::Server::Handler ApiServer::Impl::route(Handler handler)
{
	return [this, handler](const httplib::Request &req, httplib::Response &res) { handle(this, handler, req, res); };
}

httplib::Server::Handler ApiServer::Impl::route(TextHandler handler)
{
	return [this, handler](const httplib::Request &req, httplib::Response &res) { handle(this, handler, req, res); };
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
	http.set_limits(options.limits);
	http.set_roles([this](const Caller &caller) { return role_of(caller); });
	http.new_task_queue = [] { return new httplib::ThreadPool(MAX_THREADS); };
	http.set_error_handler([](const httplib::Request &req, httplib::Response &res) {
		if (!res.body.empty())
			return;
		int status = res.status;
		if (status == 404)
			answer(res, Result<std::string>(coded("no-such-route", not_found("the API has no " + req.method + " " + req.path))));
		else
			answer(res, Result<std::string>(usage_error("the request was refused: HTTP status " + std::to_string(status))));
		res.status = status;
	});
	http.Get("/v1/status", route(&Impl::get_status));
	http.Get("/v1/wait", route(&Impl::get_wait));
	routes_cluster();
	routes_life();
	routes_watch();
	routes_serving();
	routes_snapshots();
	routes_trails();
	routes_volumes();
	routes_groups();
	routes_orphans();
	routes_disks();
	routes_operations();
	routes_adjust();
}

// By this host's State: a revoked certificate is out when this host has heard of it.
Result<ApiRole> ApiServer::Impl::role_of(const Caller &caller) const
{
	const auto s = backend.state();
	if (std::string why = client_objection(*s, caller.name, caller.key, api_now_ms()); !why.empty())
		return forbidden("the certificate of " + caller.name + " " + why);
	return s->clients.at(caller.name).role == "admin" ? ApiRole::admin : ApiRole::read_only;
}

Result<HostId> ApiServer::Impl::host_of(const State &s, const std::string &name) const
{
	const Host *h = s.host_named(name);
	if (!h)
		return coded("no-such-host", not_found("the cluster has no host named " + name));
	return h->id;
}

// What must hold before a command changes the cluster.
Done ApiServer::Impl::ready_for_changes()
{
	LocalFacts local = backend.local();
	if (local.host && !wait_for([](const State &s) { return s.initialized(); }, options.starting_timeout_ms))
		return coded("starting", forbidden(starting_message(local.host_name)));
	if (!local.host)
		return coded("no-cluster", forbidden("host " + local.host_name +
				 " is in no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`"));
	return Nothing{};
}

Reports ApiServer::Impl::said()
{
	std::lock_guard lock(mutex);
	return reports;
}

json ApiServer::Impl::status(const std::string *only, View view)
{
	return status_json(*backend.state(), backend.local(), said(), only, view);
}

json ApiServer::Impl::report_of(HostId host, uint32_t vid) { return said().of(host, vid); }

// ---- reading -------------------------------------------------------------------------------------------------------

Result<std::string> ApiServer::Impl::get_status(const httplib::Request &req)
{
	const bool consistent = given(req, "consistent", "true"), brief = given(req, "brief", "true"), desired = given(req, "desired", "true");
	if (brief && desired)
		throw BadRequest{"of the parameters \"brief\" and \"desired\" only one can be given"};
	const View view = brief ? View::brief : desired ? View::desired : View::full;
	if (consistent) {
		if (Done ready = ready_for_changes(); !ready)
			return ready.error();
		if (Done reached = backend.barrier(); !reached)
			return reached.error();
	}
	const bool one = req.has_param("volume");
	const std::string name = req.get_param_value("volume");
	if (one) {
		if (Done ready = ready_for_changes(); !ready)
			return ready.error();
	}
	if (!one)
		return status_text(*backend.state(), backend.local(), said(), view, consistent);
	json j = status(&name, view);
	if (consistent)
		j["consistent"] = true;
	if (j["volumes"].empty())
		return coded("no-such-volume", not_found("there is no volume named " + name));
	return dump(j);
}

// With "volume" the answer holds the volumes of that name, perhaps none: whoever waits for one does not pay for all.
Result<std::string> ApiServer::Impl::get_wait(const httplib::Request &req)
{
	uint64_t index = parameter(req, "index", 0);
	unsigned ms = unsigned(std::min<uint64_t>(parameter(req, "ms", 1000), MAX_POLL_MS));
	wait_for([&](const State &s) { return s.applied > index; }, ms);
	if (!req.has_param("volume"))
		return status_text(*backend.state(), backend.local(), said());
	const std::string name = req.get_param_value("volume");
	return dump(status(&name));
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
	impl_->http.stop_clients();
	impl_->thread.join();
	unlink(impl_->options.socket.c_str());
	impl_->bound = false;
}

void ApiServer::serve(int fd, const ClientCert &client)
{
	impl_->http.serve(fd, {client.name, client.key_digest});
}

void ApiServer::changed()
{
	{
		std::lock_guard lock(impl_->mutex);
		impl_->turn++;
	}
	impl_->moved.notify_all();
}

void ApiServer::happened(const std::string &kind, const std::string &name, const std::string &line)
{
	{
		std::lock_guard lock(impl_->mutex);
		impl_->events.add(kind, name, line, api_now_ms());
	}
	impl_->moved.notify_all();
}

void ApiServer::soft(HostId host, const json &report)
{
	{
		std::lock_guard lock(impl_->mutex);
		if (report.is_object()) {
			json measured = report;
			using namespace std::chrono;
			uint64_t now_ms = uint64_t(duration_cast<milliseconds>(Impl::Clock::now().time_since_epoch()).count());
			impl_->meter.measure(host, measured, now_ms);
			impl_->reports.set(host, measured);
		} else {
			impl_->reports.erase(host);
		}
		impl_->turn++;
	}
	impl_->moved.notify_all();
}

}    // namespace lockstep
