// SPDX-License-Identifier: GPL-2.0-or-later
//
// The one TCP port of a host, and connecting to the one port of another.
//
// The Listener accepts, does the TLS handshake (tls.h), reads the hello, and hands the connection to whoever is in charge of
// its purpose. The Dialer is the other end: it connects, says hello and gives the connected socket or the reason why not. Both
// work on plain file descriptors watched by uv_poll, not on libuv streams, because libuv streams read ahead and cannot give
// a descriptor away; only the final owner decides what the descriptor becomes.
//
// Who is who: the certificate of either side must name the host (and raft id) that its hello, or the one that was dialed,
// claims to be, and Tls::objection() must let it in. Without a certificate only a join request is taken. While this host is in
// no cluster, it has no certificate, and each connection is closed at once.
//
// A client of the API says in its handshake that it speaks HTTP (tls.h). With a certificate that the authority has signed and
// Tls::objection() lets in it is handed to on_http; with none it is told so by HTTP 403 and closed.
//
// Nothing a stranger sends can hold more than HALF_OPEN_MAX descriptors, some 50 KiB each, for HELLO_TIMEOUT_MS; when there are
// that many, the oldest gives way to a new one, since a host of ours is through with its hello in milliseconds. Refusals of
// the same address for the same reason are logged once in REFUSAL_QUIET_MS.
//
// Everything here is called and calls back on the loop thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lib/error.h"
#include "lockstepd/net/hello.h"
#include "lockstepd/net/loop.h"
#include "lockstepd/net/tls.h"

namespace lockstep {

constexpr size_t JOIN_FRAME_MAX_BYTES = 32u << 10;   // of a request from a host that has shown no certificate yet
constexpr uint64_t REFUSAL_QUIET_MS = 600'000;
constexpr uint64_t REQUEST_IDLE_MS = 60'000;         // a join/api connection that asks nothing for so long is closed

struct ListenerHandlers {
	// Says no to a hello that is otherwise in order: gives the reason, one line. May be empty. Runs before the answer.
	std::function<std::optional<std::string>(const Hello &)> veto;

	// Whether a lane may be plain. Empty: none may.
	std::function<bool()> plain_lanes;

	// Each takes over the connected socket `fd` (to close it is the handler's duty), a local one with a relay behind it; of a
	// lane the TCP socket itself, blocking, TCP_NODELAY set, encrypting in the kernel (unless it is a plain one). The peer has been told "ok" and not a
	// byte after the hello was read.
	// An empty handler refuses the purpose.
	std::function<void(const Hello &, int fd)> on_raft;    // set by ConsensusLog
	std::function<void(const Hello &, int fd)> on_link;    // set by Links
	std::function<void(const ClientCert &, const std::string &peer_address, int fd)> on_http;
	std::function<void(int peer_host, uint32_t lane, uint32_t lanes, uint64_t link_generation, int fd)> on_lane;

	// Join and api connections: a request, and the function that answers it (any time later, at most once, on the loop
	// thread; harmless when the peer has gone). A Result's Error reaches the caller as that Error. Requests of one connection
	// are given one at a time.
	using Reply = std::function<void(Result<nlohmann::json>)>;
	std::function<void(const Hello &, const std::string &peer_address, nlohmann::json, Reply)> on_join;
	std::function<void(const Hello &, const std::string &peer_address, nlohmann::json, Reply)> on_api;
};

class Listener {
public:
	Listener(Loop &loop, Tls &tls);
	~Listener();    // closes the port and all half-open and request connections
	Listener(const Listener &) = delete;
	Listener &operator=(const Listener &) = delete;

	// Binds all of `addresses` (see parse_address) to `port`, where they name no other. Port 0 takes an ephemeral one, the same for all addresses.
	// Fails as a whole, with the address in the message. SO_REUSEADDR is set.
	Done listen(const std::vector<std::string> &addresses, uint16_t port);

	// Listens on these of now on, on the same port; those that stay are not interrupted. An address that this host does not
	// have yet is no error: it works once it is there.
	Done change_addresses(const std::vector<std::string> &addresses);
	uint16_t port() const;

	// The hello must name this cluster; before it is set only join and api hellos are looked at. May change at run time.
	void set_identity(Identity identity);
	ListenerHandlers &handlers();    // set fields directly, any time

	int half_open() const;           // connections in the middle of their hello
	uint64_t refused() const;        // hellos refused since the start

	struct Impl;    // internal

private:
	std::shared_ptr<Impl> impl_;
};

// Connects to other hosts' ports.
class Dialer {
public:
	Dialer(Loop &loop, Tls &tls);
	~Dialer();    // attempts under way end without callback
	Dialer(const Dialer &) = delete;
	Dialer &operator=(const Dialer &) = delete;

	void set_identity(Identity identity);
	const Identity &identity() const;

	// One attempt: begins with the addresses in order, DIAL_STAGGER_MS apart (CONNECT_TIMEOUT_MS each); the first that
	// completes the hello wins.
	// Identity's fields are filled into `hello` (for join: none but the name). On success the callback owns `fd`, with the
	// properties that ListenerHandlers tells of its purpose. The error names the last address and is one line; answer.removed then
	// tells that a host of the cluster, by its certificate, said that this one is in it no more.
	// Retrying is the caller's business (retry_delay_ms). cancel(token) prevents the callback.
	using Token = uint64_t;
	using Callback = std::function<void(Result<int> fd, const HelloAnswer &answer)>;
	Token dial(std::vector<std::string> addresses, uint16_t default_port, Hello hello, Callback done);
	void cancel(Token token);

	// One framed request and its answer over a fresh connection of purpose join or api, then closes it. An Error of the other
	// side arrives as it is; others say which address failed how. authority_fingerprint: of a cluster that this host is not a
	// member of (purpose join only), or the beginning of it.
	void request(std::vector<std::string> addresses, uint16_t default_port, Purpose purpose, nlohmann::json request,
		     uint64_t timeout_ms, std::function<void(Result<nlohmann::json>)> done, std::string authority_fingerprint = "");

	struct Impl;    // internal

private:
	std::shared_ptr<Impl> impl_;
};

constexpr uint64_t DIAL_STAGGER_MS = 250;        // what a preferred address is ahead of the next
constexpr uint64_t CONNECT_TIMEOUT_MS = 3000;    // to connect, shake hands and get the hello answered
constexpr uint64_t RETRY_MIN_MS = 200;      // back-off of those who dial again and again: doubles from min to max,
constexpr uint64_t RETRY_MAX_MS = 3000;     // restarts at min after a success

// The delay after the n-th failure in a row (n from 1).
uint64_t retry_delay_ms(unsigned failures);

}    // namespace lockstep
