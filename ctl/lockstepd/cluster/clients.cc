// SPDX-License-Identifier: GPL-2.0-or-later
//
// Who may use the API over TLS. As for hosts, what the authority has signed is not enough: the log holds the digest of the one key that
// each name may show, and its role. So a certificate that was revoked or replaced is out as soon as this is known.
#include "lockstepd/cluster/internal.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

json client_add(State &state, const Fields &f)
{
	const std::string name = f.name("name");
	const ApiClient next = {f.text("role"), f.hex("key", 64), f.number("end_ms")};
	const uint64_t now_ms = f.number("now_ms");
	if (next.role != "admin" && next.role != "read-only")
		refuse(usage_error("\"" + next.role + "\" is neither admin nor read-only"));
	if (next.end_ms <= now_ms)
		refuse(usage_error("the certificate would have ended already"));
	const auto known = state.clients.find(name);
	if (known != state.clients.end() && known->second == next)
		return done(false);
	if (std::ranges::any_of(state.hosts, [&](const auto &h) { return h.second.key == next.key; }))
		refuse(forbidden("this is the key of a host"));
	if (known == state.clients.end()) {
		std::erase_if(state.clients, [&](const auto &c) { return c.second.end_ms <= now_ms; });
		if (state.clients.size() >= MAX_CLIENTS)
			refuse(forbidden("there are " + std::to_string(MAX_CLIENTS) + " certificates already: revoke some with `lockstep cluster cert-revoke`"));
	}
	state.clients[name] = next;
	return done();
}

json client_remove(State &state, const Fields &f)
{
	return done(state.clients.erase(f.name("name")) > 0);
}

}    // namespace lockstep::cluster

namespace lockstep {

std::string client_objection(const State &state, const std::string &name, const std::string &key, uint64_t now_ms)
{
	const auto known = state.clients.find(name);
	if (known == state.clients.end() || known->second.key != key)
		return "was revoked, or made a moment ago";
	return known->second.end_ms <= now_ms ? "has ended" : "";
}

}    // namespace lockstep
