// SPDX-License-Identifier: GPL-2.0-or-later
//
// Keys and certificates: what makes a host of the cluster known to the others.
//
// A cluster has one certificate authority, made when it is founded. It signs one certificate for each host, whose subject
// alternative name says which host of which cluster it is, and under which raft id:
//
//     URI:urn:lockstep:<cluster uuid>:<host id>:<raft id>
//
// and one for each program or person that may use the API over TLS:
//
//     URI:urn:lockstep-client:<cluster uuid>:<role>:<name>
//
// All keys are ECDSA on P-256. Certificates begin at the epoch: a host whose clock was set back must still get to its
// storage. The authority's has no end, a host's lives for HOST_CERT_SECONDS and is renewed long before (host/keys.h).
//
// Pure functions; all texts are PEM. From any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "lib/error.h"

struct x509_st;

namespace lockstep {

constexpr int64_t HOST_CERT_SECONDS = 730 * 86400ll;
constexpr int64_t CLIENT_CERT_SECONDS = 365 * 86400ll;     // unless something else is asked for
constexpr uint64_t CLIENT_CERT_MOST_S = 10 * 365 * 86400ull;
constexpr size_t PEM_MAX_BYTES = 4096;    // of any one key or certificate of ours

struct Authority {
	std::string cert, key;
	bool operator==(const Authority &) const = default;
};

// Whom a host's certificate names.
struct Subject {
	std::string cluster_uuid;
	int host = 0;            // 1..64
	uint64_t raft_id = 0;
	bool operator==(const Subject &) const = default;
};

// A certificate that was shown and verified.
struct PeerCert {
	Subject subject;
	std::string key_digest;    // see below
};

// The same of a client of the API.
struct ClientCert {
	std::string cluster_uuid, role, name;
	std::string key_digest;
};

Authority make_authority(const std::string &cluster_uuid);
std::string make_private_key();

Result<std::string> public_key_of(const std::string &private_key);

// SHA-256 of a public key (as in a certificate), in hex: what the cluster's log keeps of each host.
Result<std::string> key_digest(const std::string &public_key);

// SHA-256 of a certificate, in hex.
Result<std::string> fingerprint(const std::string &cert);

// A certificate over a host's public key. end: Unix seconds.
Result<std::string> issue_certificate(const Authority &authority, const std::string &public_key, const Subject &subject, int64_t end);

// The same for a client of the API; it is good for connecting only.
Result<std::string> issue_client_certificate(const Authority &authority, const std::string &public_key, const ClientCert &client, int64_t end);

// Unix seconds at which it ends.
Result<int64_t> end_of(const std::string &cert);

// What the certificate of a host says; nullopt if it is none of ours.
std::optional<PeerCert> read_peer_cert(x509_st *cert);

std::optional<ClientCert> read_client_cert(x509_st *cert);    // likewise of a client's

// SHA-256 of any bytes, in hex; and random bytes from the kernel, in hex.
std::string sha256_hex(const std::string &bytes);
std::string random_hex(size_t bytes);

}    // namespace lockstep
