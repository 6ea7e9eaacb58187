// SPDX-License-Identifier: GPL-2.0-or-later
//
// See client.h. httplib does not say why a connection failed, so the socket is tried once before: whether the daemon runs is
// the first thing a user must know.
#include "lib/client.h"

#include "lib/http.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace lockstep {

using nlohmann::json;

namespace {

httplib::Client connection(const std::string &socket, unsigned timeout_s)
{
	httplib::Client http(socket);
	http.set_address_family(AF_UNIX);
	http.set_connection_timeout(5);
	http.set_read_timeout(time_t(timeout_s));
	http.set_write_timeout(10);
	return http;
}

Error error_of(const json &body, int http_status)
{
	auto status = body.is_object() ? body.find("status") : body.end();
	auto message = body.is_object() ? body.find("message") : body.end();
	if (!body.is_object() || status == body.end() || !status->is_number_integer() || message == body.end() || !message->is_string())
		return failed("lockstepd answered with HTTP status " + std::to_string(http_status));
	int s = *status;
	bool known = s == int(Status::usage) || s == int(Status::not_found) || s == int(Status::forbidden);
	auto code = body.find("code");
	return {known ? Status(s) : Status::failed, *message, code != body.end() && code->is_string() ? code->get<std::string>() : ""};
}

Result<json> result_of(int http_status, const std::string &text)
{
	json body = json::parse(text, nullptr, false);
	if (http_status != 200)
		return error_of(body, http_status);
	if (body.is_discarded())
		return failed("lockstepd sent an answer that is no JSON");
	return body;
}

Result<json> result_of(const httplib::Result &response, unsigned timeout_s)
{
	if (!response && response.error() == httplib::Error::Read)
		return coded("no-daemon", failed("lockstepd does not answer (waited up to " + std::to_string(timeout_s) +
						 " s): see its log with `journalctl -u lockstepd`"));
	if (!response)
		return failed("talking to lockstepd failed: " + httplib::to_string(response.error()));
	return result_of(response->status, response->body);
}

}    // namespace

Done Client::reachable() const
{
	sockaddr_un address{};
	address.sun_family = AF_UNIX;
	if (socket_.empty() || socket_.size() >= sizeof address.sun_path)
		return usage_error("the socket path " + socket_ + " is empty or too long");
	std::memcpy(address.sun_path, socket_.data(), socket_.size());
	int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return failed(std::string("cannot create a socket: ") + std::strerror(errno));
	int error = connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) ? errno : 0;
	close(fd);
	switch (error) {
	case 0: return Nothing{};
	case ENOENT:
	case ECONNREFUSED:
	case ENOTDIR: return coded("no-daemon", failed("lockstepd is not running on this host: start it with `systemctl start lockstepd`"));
	case EACCES:
	case EPERM: return coded("not-root", failed("may not connect to " + socket_ + ": run this as root"));
	default: return failed("cannot connect to " + socket_ + ": " + std::strerror(error));
	}
}

// Arguments may hold any bytes; the daemon then refuses the name, not this program.
static std::string text_of(const json &body) { return body.dump(-1, ' ', false, json::error_handler_t::replace); }

Result<json> Client::ask(const char *method, const std::string &path, const std::optional<std::string> &body, unsigned timeout_s) const
{
	if (remote_) {
		const auto answer = ask_remote(*remote_, method, path, body, timeout_s);
		if (!answer)
			return answer.error();
		return result_of(answer->http_status, answer->body);
	}
	if (Done can = reachable(); !can)
		return can.error();
	httplib::Client http = connection(socket_, timeout_s);
	httplib::Request request;
	request.method = method;
	request.path = path;
	if (body) {
		request.body = *body;
		request.set_header("Content-Type", "application/json");
	}
	return result_of(http.send(request), timeout_s);
}

Result<json> Client::get(const std::string &path, unsigned timeout_s) const { return ask("GET", path, std::nullopt, timeout_s); }

Result<json> Client::post(const std::string &path, const json &body, unsigned timeout_s) const { return ask("POST", path, text_of(body), timeout_s); }

Result<json> Client::patch(const std::string &path, const json &body, unsigned timeout_s) const { return ask("PATCH", path, text_of(body), timeout_s); }

Result<json> Client::del(const std::string &path, unsigned timeout_s) const { return ask("DELETE", path, std::nullopt, timeout_s); }

Result<std::string> Client::get_text(const std::string &path) const
{
	constexpr unsigned TIMEOUT_S = 30;
	if (remote_) {
		const auto answer = ask_remote(*remote_, "GET", path, std::nullopt, TIMEOUT_S);
		if (!answer)
			return answer.error();
		if (answer->http_status == 200)
			return answer->body;
		return result_of(answer->http_status, answer->body).error();
	}
	if (Done can = reachable(); !can)
		return can.error();
	const httplib::Result response = connection(socket_, TIMEOUT_S).Get(path);
	if (response && response->status == 200)
		return response->body;
	const Result<json> no = result_of(response, TIMEOUT_S);
	return no ? failed("lockstepd gave no answer to " + path) : no.error();
}

std::string url_encode(std::string_view text)
{
	static const char hex[] = "0123456789ABCDEF";
	std::string out;
	for (char ch : text) {
		auto c = static_cast<unsigned char>(ch);
		bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '.' || c == '_' || c == '-';
		if (plain) {
			out += ch;
		} else {
			out += '%';
			out += hex[c >> 4];
			out += hex[c & 15];
		}
	}
	return out;
}

}    // namespace lockstep
