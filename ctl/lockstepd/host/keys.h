// SPDX-License-Identifier: GPL-2.0-or-later
//
// This host's keys on its disk, and join tokens.
//
// In <state-dir>/tls/, each file mode 0600:
//     key.pem             this host's private key; made before it asks to join, so that a repeated join is the same
//     cert.pem            its certificate
//     authority.pem       the cluster's certificate
//     authority-key.pem   the authority's private key, as the log has it
//
// The authority's private key lives in the log, hence on every host, and beside it, for the day when all logs are lost (rebuild.cc). It
// must survive the loss of any host, any host must be able to take in a new one, and whoever is root on a host already has all its data and its place in the cluster; a key kept
// on voters only, or encrypted for them, would guard against nobody else. What it does not give is a way back in for a host
// that was removed: the log also holds the digest of each member's public key, and hosts let in only those
// (Daemon::not_a_member), whatever the authority has signed.
//
// A token is what an administrator carries from a host of the cluster to one that is to join:
//     "lks1", 32 digits: beginning of the authority's fingerprint, 32: secret, 8: Unix time of its end, 4: check; all in hex
// The new host knows by the fingerprint that it talks to this cluster, the cluster by the secret that it was invited. The
// log holds the secret's SHA-256; the first host that uses it up takes it.
#pragma once

#include <string>

#include "lib/error.h"
#include "lockstepd/net/tls.h"

namespace lockstep {

constexpr uint64_t TOKEN_LEAST_S = 60, TOKEN_DEFAULT_S = 3600, TOKEN_MOST_S = 7 * 86400;
constexpr size_t TOKEN_PART_BYTES = 16;

struct JoinToken {
	std::string authority;    // hex
	std::string secret;       // hex
	uint64_t end_s = 0;       // Unix
};

std::string format_token(const JoinToken &token);
Result<JoinToken> parse_token(const std::string &text);

// This host's private key; makes it, durably, if there is none.
Result<std::string> own_key(const std::string &state_dir);

Done store_certificate(const std::string &state_dir, const std::string &authority, const std::string &cert);
Result<TlsIdentity> load_identity(const std::string &state_dir);

Done store_authority(const std::string &state_dir, const Authority &authority);
Result<Authority> load_authority(const std::string &state_dir);

}    // namespace lockstep
