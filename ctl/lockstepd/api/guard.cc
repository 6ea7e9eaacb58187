// SPDX-License-Identifier: GPL-2.0-or-later
//
// httplib does not show a handler its connection, but lets a derived server carry out a whole connection. Its own stream
// class is not in its headers, hence ours.
#include "lockstepd/api/guard.h"

#include "lib/error.h"

#include <nlohmann/json.hpp>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace lockstep {

namespace {

class UnixStream : public httplib::Stream {
public:
	UnixStream(int fd, int read_timeout_ms, int write_timeout_ms) : fd_(fd), read_timeout_ms_(read_timeout_ms), write_timeout_ms_(write_timeout_ms) {}

	bool wait(short events, int timeout_ms) const
	{
		pollfd p = {fd_, events, 0};
		int n;
		while ((n = poll(&p, 1, timeout_ms)) < 0 && errno == EINTR)
			;
		return n > 0;
	}

	bool is_readable() const override { return wait(POLLIN, read_timeout_ms_); }
	bool is_writable() const override { return wait(POLLOUT, write_timeout_ms_); }

	ssize_t read(char *to, size_t bytes) override
	{
		ssize_t n = -1;
		while (is_readable() && (n = recv(fd_, to, bytes, 0)) < 0 && errno == EINTR)
			;
		return n;
	}

	ssize_t write(const char *from, size_t bytes) override
	{
		ssize_t n = -1;
		while (is_writable() && (n = send(fd_, from, bytes, MSG_NOSIGNAL)) < 0 && errno == EINTR)
			;
		return n;
	}

	void get_remote_ip_and_port(std::string &, int &) const override {}
	void get_local_ip_and_port(std::string &, int &) const override {}
	socket_t socket() const override { return fd_; }

private:
	int fd_, read_timeout_ms_, write_timeout_ms_;
};

bool from_root(int fd)
{
	ucred peer{};
	socklen_t length = sizeof peer;
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == 0;
}

std::string refusal()
{
	const nlohmann::json error = {{"status", int(Status::forbidden)}, {"code", "not-root"}, {"message", "lockstepd answers root only: run this as root"}};
	const std::string body = error.dump();
	return "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " + std::to_string(body.size()) +
	       "\r\n\r\n" + body;
}

}    // namespace

bool GuardedServer::process_and_close_socket(socket_t fd)
{
	UnixStream stream(fd, int(read_timeout_sec_) * 1000, int(write_timeout_sec_) * 1000);
	bool served = from_root(fd);
	if (!served) {
		const std::string text = refusal();
		stream.write(text.data(), text.size());
	}
	bool ended = !served;
	for (size_t left = keep_alive_max_count_; left > 0 && !ended && svr_sock_ != INVALID_SOCKET; left--) {
		if (!stream.wait(POLLIN, int(keep_alive_timeout_sec_) * 1000))
			break;
		served = process_request(stream, left == 1, ended, nullptr);
		ended = ended || !served;
	}
	shutdown(fd, SHUT_RDWR);
	close(fd);
	return served;
}

}    // namespace lockstep
