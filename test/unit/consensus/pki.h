// SPDX-License-Identifier: GPL-2.0-or-later
//
// Authorities and certificates of the tests' clusters, and a stranger that speaks TLS.
#pragma once

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "lockstepd/net/socket.h"
#include "lockstepd/net/tls.h"

namespace lockstep::test {

// One for each cluster, the same all the time; children of a fork have those that their parent has used.
inline const Authority &authority_of(const std::string &cluster)
{
	static std::map<std::string, Authority> made;
	auto &a = made[cluster];
	if (a.cert.empty())
		a = make_authority(cluster);
	return a;
}

inline TlsIdentity identity_of(const std::string &cluster, int host, uint64_t raft_id, int64_t valid_s = 3600)
{
	const Authority &authority = authority_of(cluster);
	const std::string key = make_private_key();
	const auto cert = issue_certificate(authority, *public_key_of(key), {cluster, host, raft_id}, time(nullptr) + valid_s);
	if (!cert)
		abort();
	return {authority.cert, *cert, key};
}

// A plain non-blocking socket, connected or about to be.
inline int connect_to(uint16_t port)
{
	const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	sockaddr_in to{};
	to.sin_family = AF_INET;
	to.sin_port = htons(port);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, reinterpret_cast<sockaddr *>(&to), sizeof to) != 0)
		abort();
	set_blocking(fd, false);
	return fd;
}

}    // namespace lockstep::test
