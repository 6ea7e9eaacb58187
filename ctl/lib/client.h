// SPDX-License-Identifier: GPL-2.0-or-later
//
// A client of the daemon's API on its unix socket, or of any host's over TLS. Every call is one request; errors carry the daemon's message and status,
// or say why the daemon cannot be asked.
#pragma once

#include "lib/error.h"
#include "lib/remote.h"

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

namespace lockstep {

inline constexpr const char *DEFAULT_SOCKET = "/run/lockstep/lockstepd.sock";

class Client {
public:
	explicit Client(std::string socket) : socket_(std::move(socket)) {}
	explicit Client(Remote remote) : remote_(std::move(remote)) {}

	// timeout_s: how long the daemon may take to answer. What it asks other hosts' LVM takes up to LVM_CALL_TIMEOUT_MS (api/server.h).
	static constexpr unsigned LVM_S = 120;
	Result<nlohmann::json> get(const std::string &path, unsigned timeout_s = 30) const;
	Result<std::string> get_text(const std::string &path) const;    // what is no JSON
	Result<nlohmann::json> post(const std::string &path, const nlohmann::json &body, unsigned timeout_s = 150) const;
	Result<nlohmann::json> patch(const std::string &path, const nlohmann::json &body, unsigned timeout_s = 150) const;
	Result<nlohmann::json> del(const std::string &path, unsigned timeout_s = 150) const;

private:
	Done reachable() const;
	Result<nlohmann::json> ask(const char *method, const std::string &path, const std::optional<std::string> &body, unsigned timeout_s) const;
	std::string socket_;
	std::optional<Remote> remote_;
};

std::string url_encode(std::string_view text);

}    // namespace lockstep
