// SPDX-License-Identifier: GPL-2.0-or-later
//
// httplib does not show a handler its connection, but lets a derived server carry out a whole connection. Its own stream
// class is not in its headers, hence ours. Who asks is known on the thread that carries out the connection (current_).
#include "lockstepd/api/guard.h"

#include <nlohmann/json.hpp>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace lockstep {

namespace {

constexpr size_t CLIENTS_REMEMBERED = 512;    // those without a connection are forgotten first
constexpr int HTTP_FORBIDDEN = 403, HTTP_TOO_MANY = 429;

uint64_t clock_ms()
{
	using namespace std::chrono;
	return uint64_t(duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count());
}

class Connection : public httplib::Stream {
public:
	Connection(int fd, int read_timeout_ms, int write_timeout_ms) : fd_(fd), read_timeout_ms_(read_timeout_ms), write_timeout_ms_(write_timeout_ms) {}

	bool wait(short events, int timeout_ms) const
	{
		pollfd p{fd_, events, 0};
		int n;
		while ((n = poll(&p, 1, timeout_ms)) < 0 && errno == EINTR)
			;
		return n > 0;
	}

	// From here on so many bytes may be read in so much time, and an answer be written in so much from its first byte on.
	void begin_request(const ApiLimits &limits)
	{
		bytes_left_ = limits.request_bytes;
		read_end_ms_ = clock_ms() + limits.request_ms;
		answer_ms_ = limits.answer_ms;
		write_end_ms_ = 0;
	}

	bool is_readable() const override { return wait_until(POLLIN, read_timeout_ms_, read_end_ms_); }
	bool is_writable() const override { return wait_until(POLLOUT, write_timeout_ms_, write_end_ms_ ? write_end_ms_ : UINT64_MAX); }
	bool over_limit() const { return over_limit_; }

	ssize_t read(char *to, size_t bytes) override
	{
		bytes = std::min(bytes, bytes_left_);
		ssize_t n = -1;
		while (bytes && is_readable() && (n = recv(fd_, to, bytes, MSG_DONTWAIT)) < 0 && (errno == EINTR || errno == EAGAIN))
			;
		over_limit_ = over_limit_ || n < 0;
		bytes_left_ -= size_t(std::max<ssize_t>(n, 0));
		return n;
	}

	ssize_t write(const char *from, size_t bytes) override
	{
		if (!write_end_ms_)
			write_end_ms_ = clock_ms() + answer_ms_;
		ssize_t n = -1;
		while (is_writable() && (n = send(fd_, from, bytes, MSG_NOSIGNAL | MSG_DONTWAIT)) < 0 && (errno == EINTR || errno == EAGAIN))
			;
		over_limit_ = over_limit_ || n < 0;
		return n;
	}

	void get_remote_ip_and_port(std::string &, int &) const override {}
	void get_local_ip_and_port(std::string &, int &) const override {}
	socket_t socket() const override { return fd_; }

private:
	bool wait_until(short events, int timeout_ms, uint64_t end_ms) const
	{
		const uint64_t now = clock_ms();
		return now < end_ms && wait(events, int(std::min<uint64_t>(uint64_t(timeout_ms), end_ms - now)));
	}

	int fd_, read_timeout_ms_, write_timeout_ms_;
	size_t bytes_left_ = 0;
	uint64_t read_end_ms_ = 0, write_end_ms_ = 0;
	unsigned answer_ms_ = 1000;    // of a refusal without a request
	bool over_limit_ = false;      // or broken: what comes next on it makes no sense
};

bool from_root(int fd)
{
	ucred peer{};
	socklen_t length = sizeof peer;
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == 0;
}

std::string error_body(const Error &e) { return nlohmann::json{{"status", int(e.status)}, {"code", code_of(e)}, {"message", e.message}}.dump(); }

// timeout_ms 0: into the socket's buffer, or not at all.
void refuse_and_close(int fd, int http_status, const Error &error, int timeout_ms)
{
	const std::string body = error_body(error);
	const std::string text = "HTTP/1.1 " + std::to_string(http_status) + " Refused\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " +
				 std::to_string(body.size()) + "\r\n\r\n" + body;
	Connection(fd, 0, timeout_ms).write(text.data(), text.size());
	shutdown(fd, SHUT_RDWR);
	close(fd);
}

Error too_many(const char *what) { return coded("too-many-requests", failed(std::string("too many ") + what + " of this certificate: ask more slowly")); }

// What is not for clients, whatever their certificate says.
bool for_root_only(const httplib::Request &req) { return req.path.starts_with("/v1/cluster/") && req.method != "GET" && req.method != "HEAD"; }

// The list of orphans activates logical volumes.
bool only_reads(const httplib::Request &req) { return (req.method == "GET" || req.method == "HEAD") && req.path != "/v1/orphans"; }

}    // namespace

bool Throttle::take(uint64_t now_ms)
{
	if (then_ms_ && now_ms > then_ms_)
		left_ = std::min(burst_, left_ + double(now_ms - then_ms_) / 1000 * per_second_);
	then_ms_ = std::max(then_ms_, now_ms);
	if (left_ < 1)
		return false;
	left_ -= 1;
	return true;
}

struct GuardedServer::Client {
	explicit Client(const ApiLimits &l) : throttle(l.per_second, l.burst) {}
	Throttle throttle;
	unsigned connections = 0;
};

struct GuardedServer::Current {
	const Caller &caller;
	Client *client;          // nullptr: root
	bool refused = false;    // the request: its body has not been read, and the connection is to end
};

thread_local GuardedServer::Current *GuardedServer::current_ = nullptr;

const Caller *current_caller() { return GuardedServer::current_ ? &GuardedServer::current_->caller : nullptr; }

GuardedServer::GuardedServer()
{
	set_pre_routing_handler([this](const httplib::Request &req, httplib::Response &res) {
		const auto no = refusal(req);
		if (!no)
			return HandlerResponse::Unhandled;
		current_->refused = true;
		res.status = no->first;
		res.set_header("Connection", "close");
		res.set_content(error_body(no->second), "application/json");
		return HandlerResponse::Handled;
	});
}

GuardedServer::~GuardedServer() { stop_clients(); }

std::optional<std::pair<int, Error>> GuardedServer::refusal(const httplib::Request &req)
{
	if (!current_->client)
		return std::nullopt;
	{
		std::lock_guard hold(lock_);
		if (!current_->client->throttle.take(clock_ms()))
			return std::pair(HTTP_TOO_MANY, too_many("requests"));
	}
	const Caller &caller = current_->caller;
	const auto role = role_of_ ? role_of_(caller) : Result<ApiRole>(forbidden("this host serves no clients"));
	if (!role)
		return std::pair(HTTP_FORBIDDEN, coded("not-admitted", role.error()));
	if (for_root_only(req))
		return std::pair(HTTP_FORBIDDEN, coded("root-only", forbidden("who is in the cluster and who has a certificate is decided on its hosts: run this as root on one of them")));
	if (*role == ApiRole::read_only && !only_reads(req))
		return std::pair(HTTP_FORBIDDEN, coded("read-only", forbidden("the certificate of " + caller.name + " is for reading only")));
	return std::nullopt;
}

bool GuardedServer::serve_connection(int fd, const Caller &caller, Client *client)
{
	Connection stream(fd, int(read_timeout_sec_) * 1000, int(write_timeout_sec_) * 1000);
	Current current{caller, client};
	current_ = &current;
	bool served = true, ended = false;
	for (size_t left = keep_alive_max_count_; left > 0 && !ended && !stopping_ && svr_sock_ != INVALID_SOCKET; left--) {
		if (!stream.wait(POLLIN, int(keep_alive_timeout_sec_) * 1000))
			break;
		stream.begin_request(limits_);
		served = process_request(stream, left == 1, ended, nullptr);
		ended = ended || !served || current.refused || stream.over_limit();
	}
	current_ = nullptr;
	return served;
}

bool GuardedServer::process_and_close_socket(socket_t fd)
{
	if (!from_root(fd)) {
		refuse_and_close(fd, HTTP_FORBIDDEN, coded("not-root", forbidden("lockstepd answers root only: run this as root")), int(write_timeout_sec_) * 1000);
		return false;
	}
	const bool served = serve_connection(fd, Caller(), nullptr);
	shutdown(fd, SHUT_RDWR);
	close(fd);
	return served;
}

// nullptr: it has too many connections. lock_ held.
GuardedServer::Client *GuardedServer::admit(const Caller &caller, int fd)
{
	if (stopping_ || open_.size() >= CLIENT_CONNECTIONS_MAX)
		return nullptr;
	if (clients_.size() >= CLIENTS_REMEMBERED)
		std::erase_if(clients_, [](const auto &c) { return c.second->connections == 0; });
	auto &client = clients_[caller.name];
	if (!client)
		client = std::make_unique<Client>(limits_);
	if (client->connections >= limits_.connections)
		return nullptr;
	client->connections++;
	open_.insert(fd);
	return client.get();
}

void GuardedServer::serve(int fd, Caller caller)
{
	std::unique_lock hold(lock_);
	Client *client = admit(caller, fd);
	if (!client) {
		hold.unlock();
		refuse_and_close(fd, HTTP_TOO_MANY, too_many("connections"), 0);
		return;
	}
	if (!threads_)
		threads_ = std::make_unique<httplib::ThreadPool>(CLIENT_CONNECTIONS_MAX);
	threads_->enqueue([this, fd, client, caller = std::move(caller)] { serve_client(fd, caller, client); });
}

void GuardedServer::serve_client(int fd, const Caller &caller, Client *client)
{
	serve_connection(fd, caller, client);
	std::lock_guard hold(lock_);    // until it is closed: its number must not be another's while it is in open_
	client->connections--;
	open_.erase(fd);
	shutdown(fd, SHUT_RDWR);
	close(fd);
}

void GuardedServer::stop_clients()
{
	std::unique_lock hold(lock_);
	stopping_ = true;
	for (int fd : open_)
		shutdown(fd, SHUT_RD);    // no more requests; answers go out
	auto threads = std::move(threads_);
	hold.unlock();
	if (threads)
		threads->shutdown();
}

}    // namespace lockstep
