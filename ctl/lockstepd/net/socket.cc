// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/net/socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace lockstep {

namespace {

void set_int(int fd, int level, int option, int value)
{
	// Fails on a connection that is already dead only; the next read tells.
	(void)setsockopt(fd, level, option, &value, sizeof value);
}

}    // namespace

void set_nodelay(int fd)
{
	set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

void set_dead_peer_detection(int fd)
{
	set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, 2);
	set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
	set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
	set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, PEER_DEAD_MS);
}

void set_blocking(int fd, bool blocking)
{
	const int flags = fcntl(fd, F_GETFL);
	fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

HelloReader::Step HelloReader::read(TlsSession &session)
{
	for (;;) {
		std::string &into = body_bytes_ == 0 ? header_ : body_;
		const size_t want = (body_bytes_ == 0 ? HELLO_HEADER_BYTES : body_bytes_) - into.size();
		char chunk[HELLO_BODY_MAX_BYTES];
		const ssize_t n = session.read(chunk, want);
		if (n < 0 && !session.bad())
			return Step::more;
		if (n <= 0) {
			error_ = n == 0 ? "it closed the connection" : session.error();
			return Step::bad;
		}
		into.append(chunk, size_t(n));
		if (size_t(n) < want)
			continue;
		if (body_bytes_ != 0)
			return Step::done;
		const auto length = decode_hello_header(header_, answer_);
		if (!length) {
			error_ = length.error().message;
			return Step::bad;
		}
		body_bytes_ = *length;
	}
}

bool send_hello(TlsSession &session, const std::string &bytes)
{
	return session.write(bytes.data(), bytes.size()) == ssize_t(bytes.size());
}

}    // namespace lockstep
