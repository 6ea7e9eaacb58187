// SPDX-License-Identifier: GPL-2.0-or-later
//
// One HTTP request to a host of a cluster over TLS, with the certificate of a client of the API.
//
// The host is known by the cluster's authority, which is in the same file as the client's certificate: any host of the cluster will do, so
// its certificate must be signed by that authority and name this cluster, whatever address it has.
#pragma once

#include <optional>
#include <string>

#include "lib/error.h"

namespace lockstep {

struct Remote {
	std::string host;      // address or name
	std::string port = "7788";
	std::string bundle;    // PEM: private key, certificate, certificate of the authority
};

struct RemoteAnswer {
	int http_status = 0;
	std::string body;
};

// "10.0.0.1", "10.0.0.1:7788", "[fd00::1]:7788", "fd00::1", "storage-1:7788".
Result<Remote> parse_remote(const std::string &text);

// timeout_s: how long the host may take to answer. Blocks.
Result<RemoteAnswer> ask_remote(const Remote &remote, const std::string &method, const std::string &path, const std::optional<std::string> &body,
				unsigned timeout_s);

}    // namespace lockstep
