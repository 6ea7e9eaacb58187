// SPDX-License-Identifier: GPL-2.0-or-later
//
// TLS below everything that goes over the one port.
//
// TLS 1.3 only, one cipher suite (TLS_AES_128_GCM_SHA256: in the hardware of every host, and in every kernel that has TLS),
// certificates on both sides, no tickets, no resumption, no early data, no renegotiation. A connection begins with the
// handshake, goes on with the hello (hello.h) inside of TLS, and ends up in one of two ways:
//
//   stream_end()  The owner (libuv streams, libraft) gets one end of a local socket pair; a *relay* on the loop moves bytes
//                 between the other end and TLS. Owners thus need to know nothing of TLS. Each direction holds at most one
//                 record; whoever does not read holds the other side back, as TCP does. When either side ends, the
//                 relay hands on what it still has, then closes.
//   lane_end()    The kernel takes over the encryption (kTLS, both directions): the owner gets the TCP socket itself, and what
//                 it writes in plain goes out encrypted. OpenSSL of Debian 12 can not do this for receiving, so we give the
//                 kernel the keys ourselves: from the traffic secrets of the handshake, which OpenSSL tells through its key
//                 log callback, by RFC 8446 section 7.3; the record numbers are those after the hello. For this to hold not one
//                 byte may be in OpenSSL's buffers: it reads record by record (no read ahead), the side that connects sends
//                 nothing until it has the answer, and the listening side nothing before. No ticket and no key update can
//                 come later since neither side makes any.
//
// A program that wants the API says so in its handshake (ALPN "http/1.1") and goes on with HTTP in place of the hello; see listener.h.
//
// Who is let in: a certificate that the cluster's authority has signed and for which admission() has no objection. The latter
// is asked at each handshake, and by recheck() for all relays: that cuts a removed host's connections.
//
// Everything here runs on the loop thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "lib/error.h"
#include "lockstepd/net/certs.h"
#include "lockstepd/net/loop.h"
#include "lockstepd/net/poll.h"

struct ssl_st;
struct ssl_ctx_st;

namespace lockstep {

constexpr size_t TLS_RECORD_BYTES = 16384;
constexpr uint64_t TLS_REKEY_RECORDS = 1u << 22;    // of a relay, then its key is renewed; RFC 8446 5.5 allows 2^24.5

// PEM. All three empty: this host is in no cluster and takes no connections.
struct TlsIdentity {
	std::string authority;    // certificate
	std::string cert, key;    // this host's
};

// What the kernel needs for one direction.
struct TrafficKeys {
	std::string key;           // 16 bytes
	std::string iv;            // 12 bytes
	uint64_t sequence = 0;     // of the next record
};

// From a TLS 1.3 traffic secret of 32 bytes (RFC 8446, 7.3).
TrafficKeys derive_traffic_keys(const std::string &secret, uint64_t sequence);

// One connection from its handshake on. Non-blocking. Owns the socket.
class TlsSession {
public:
	~TlsSession();    // closes
	TlsSession(const TlsSession &) = delete;
	TlsSession &operator=(const TlsSession &) = delete;

	enum class Step { more, done, bad };
	Step handshake();

	// More than 0: bytes. 0: the other side has ended it. -1: not now, or bad().
	ssize_t read(char *to, size_t bytes);
	ssize_t write(const char *from, size_t bytes);
	bool bad() const { return !error_.empty(); }
	const std::string &error() const { return error_; }    // a clause about the peer ("it ...")

	int wants() const { return wants_; }    // UV_READABLE or UV_WRITABLE: what the last -1 or `more` waits for
	int fd() const { return fd_; }
	void shut();                             // tells the other side that this is the end

	// Who the other side is, after the handshake. nullopt: it showed no certificate, as a host that wants to join.
	const std::optional<PeerCert> &peer() const { return peer_; }
	// ... or which client of the API; peer() is nullopt then.
	const std::optional<ClientCert> &client() const { return client_; }
	bool http() const { return http_; }      // it said that it wants HTTP

	// Fails when bytes are left in OpenSSL's buffers.
	Result<TrafficKeys> traffic_keys(bool sending) const;
	void renew_key_after(uint64_t records);
	int release_fd();

private:
	friend class Tls;
	friend struct TlsCallbacks;
	TlsSession(ssl_ctx_st *context, int fd, bool listening);
	ssize_t outcome(int result);
	void note_error(int kind);

	ssl_st *ssl_;
	int fd_;
	bool listening_;
	int wants_ = UV_READABLE;
	bool finished_ = false;    // the handshake
	std::string error_;
	std::optional<PeerCert> peer_;
	std::optional<ClientCert> client_;
	bool http_ = false;
	std::string secret_[2];    // of the listening, of the connecting side
	uint64_t records_[2] = {};    // received, sent since the handshake
	uint64_t rekey_at_ = UINT64_MAX;
	uint64_t rekey_every_ = 0;
};

enum class LaneEnd {
	kernel,
	relay,    // for tests on machines whose kernel has no TLS
};

class Tls {
public:
	explicit Tls(Loop &loop, LaneEnd lane_end = LaneEnd::kernel);
	~Tls();    // closes all relays
	Tls(const Tls &) = delete;
	Tls &operator=(const Tls &) = delete;

	// May change at run time; connections go on with what they were made with.
	Done set_identity(const TlsIdentity &identity);
	bool ready() const { return listening_ != nullptr; }

	// Why a host with such a certificate is not let in (one clause about it), if so; established: why its connections are cut.
	// Empty: all that verify are let in.
	using Admission = std::function<std::optional<std::string>(const PeerCert &, bool established)>;
	void set_admission(Admission objection);
	std::optional<std::string> objection(const PeerCert &peer) const;
	// The same for clients of the API. Unset: none is let in.
	void set_client_admission(std::function<std::optional<std::string>(const ClientCert &)> objection);
	std::optional<std::string> objection(const ClientCert &client) const;

	// The objection to a host whose membership has ended for good: it is told so (HelloAnswer::removed).
	static constexpr const char *REMOVED = "it was removed from the cluster";
	static constexpr const char *RECOVERED = "the cluster was recovered without it, and its copies count no more";

	// Asks again about the peers of all relays, and cuts those that are not let in any more.
	void recheck();

	// These take over the descriptor, which is connected and non-blocking. nullptr: not ready().
	std::unique_ptr<TlsSession> accept(int fd);
	std::unique_ptr<TlsSession> connect(int fd);
	// To a host of the cluster whose authority has this fingerprint; without a certificate of our own.
	std::unique_ptr<TlsSession> connect_as_stranger(int fd, const std::string &authority_fingerprint);

	// See above. The descriptor is the caller's: non-blocking (stream), blocking (lane).
	Result<int> stream_end(std::unique_ptr<TlsSession> session, bool follows_link = false);
	// plain: what follows the hello is not encrypted; both hosts have shown their certificates all the same.
	Result<int> lane_end(std::unique_ptr<TlsSession> session, bool plain = false);

	// Ends those streams with a host that follow its link, since the link goes another way now: their owner dials again.
	void path_changed(int host);

	size_t relays() const { return relays_.size(); }

private:
	struct Relay;
	void pump(uint64_t id);
	void pump_later(uint64_t id);

	Loop &loop_;
	LaneEnd lane_end_;
	std::shared_ptr<ssl_ctx_st> listening_, connecting_;
	Admission objection_;
	std::function<std::optional<std::string>(const ClientCert &)> client_objection_;
	std::map<uint64_t, std::unique_ptr<Relay>> relays_;
	uint64_t next_relay_ = 1;
	std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);    // for what was posted to the loop
};

}    // namespace lockstep
