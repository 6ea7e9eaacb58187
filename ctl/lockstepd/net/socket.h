// SPDX-License-Identifier: GPL-2.0-or-later
//
// Socket options that both ends of every connection set, and reading a hello byte-exact.
#pragma once

#include <string>

#include "lockstepd/net/hello.h"
#include "lockstepd/net/tls.h"

namespace lockstep {

// Without these, a host that lost its power leaves connections that look alive for a quarter of an hour, and data queued on
// them is sent again at ever longer intervals after it is back.
constexpr int PEER_DEAD_MS = 5000;    // data unacknowledged, or probes unanswered, for so long ends the connection

void set_nodelay(int fd);
void set_dead_peer_detection(int fd);    // not for lanes: there the kernel module watches its peers itself
void set_blocking(int fd, bool blocking);

// Collects one hello (or answer): exactly its bytes, none beyond.
class HelloReader {
public:
	explicit HelloReader(bool answer) : answer_(answer) {}

	enum class Step { more, done, bad };

	// Reads what is there, after the handshake. `bad`: error() says why, as a clause about the peer ("it ...").
	Step read(TlsSession &session);
	bool begun() const { return !header_.empty(); }
	const std::string &body() const { return body_; }
	const std::string &error() const { return error_; }

private:
	bool answer_;
	std::string header_;
	std::string body_;
	size_t body_bytes_ = 0;    // 0: header not complete
	std::string error_;
};

// Sends all of a small message on a fresh connection, whose buffer always has room for it.
bool send_hello(TlsSession &session, const std::string &bytes);

}    // namespace lockstep
