// SPDX-License-Identifier: GPL-2.0-or-later
//
// Links: one connection between each pair of daemons.
//
// A link carries calls (request and answer, matched by id), notices (one way; for soft state such as sync percentages) and
// heartbeats. Per pair the host with the lower id dials, again and again while the peer is wanted; the other one accepts. A
// newly accepted link replaces an older one of the same peer, as the peer would not have dialed had the old one been alive. A
// peer that sends nothing at all for `silence_ms` is down: its link is closed. When a link is lost, all calls
// outstanding on it fail at once with "connection lost": whether the peer executed them is then unknown to the caller.
//
// Paths. A peer may have several addresses, preferred first. The dialing side tries them nearly at once (listener.h). When a
// link has been silent for fallback_ms and the peer has other addresses, it dials anew at once; whatever answers first
// replaces the link. A link that does not go over the first address is tried to be brought back there from return_ms on, then
// less and less often if it does not stay there. Either side hears of a new way by on_path().
//
// Messages are frames: u32 length (little-endian, at most FRAME_MAX_BYTES), then a CBOR array
//     [0]                          heartbeat
//     [1, id, verb, body]          call
//     [2, id, body]                answer
//     [3, id, status, message]     answer: an Error
//     [4, verb, body]              notice
// A malformed frame closes the link.
//
// A host may call and notify itself: the handler runs in a later turn of the loop.
//
// Everything here is called and calls back on the loop thread. No callback runs inside the call that caused it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lib/error.h"
#include "lockstepd/net/listener.h"
#include "lockstepd/net/loop.h"

namespace lockstep {

struct LinkPeer {
	int host = 0;
	std::string name;                      // for messages
	std::vector<std::string> addresses;    // preferred first, see parse_address
	bool operator==(const LinkPeer &) const = default;
};

struct LinkOptions {
	uint64_t heartbeat_ms = 500;
	uint64_t silence_ms = 2500;           // a link silent for so long is closed
	uint64_t fallback_ms = 1100;          // a link silent for so long tries the peer's other addresses
	uint64_t return_ms = 10'000;          // until the first try to come back to the preferred address
	uint16_t default_port = 7788;         // for addresses that have none
	size_t queue_max_bytes = 32u << 20;   // unsent bytes of one link; more closes it
};

class Links {
public:
	using Json = nlohmann::json;
	using Reply = std::function<void(Result<Json>)>;    // at most once, on the loop thread, any time later

	// Takes over listener.handlers().on_link. All three must outlive this.
	Links(Loop &loop, Listener &listener, Dialer &dialer, LinkOptions options = {});
	~Links();    // closes everything; outstanding calls end without callback
	Links(const Links &) = delete;
	Links &operator=(const Links &) = delete;

	// Who there is, this host included or not (it is skipped). Level-triggered: call it with the whole list whenever that
	// may have changed. Links to hosts not in the list are closed and such hosts refused. dialer.set_identity() first.
	void set_peers(std::vector<LinkPeer> peers);

	// Calls `verb` on `host`; gives its answer, its Error, or failed("...") when there is no link, the link is lost, or the
	// time is up. An answer after that is dropped.
	void call(int host, const std::string &verb, Json body, uint64_t timeout_ms, Reply done);

	// One way; lost without a word when the host is down.
	void notify(int host, const std::string &verb, Json body);
	void notify_all(const std::string &verb, const Json &body);    // to every peer that is up, not to self

	// Registers what this host does on a verb; replaces an earlier one. A json exception out of a handler (a body that is not
	// as expected) is answered with an Error, of a notice logged.
	void on_call(const std::string &verb, std::function<void(int from_host, Json body, Reply reply)> handler);
	void on_notice(const std::string &verb, std::function<void(int from_host, Json body)> handler);

	// Added to, never replaced: several parts may want to know.
	void on_peer_up(std::function<void(int host)> f);
	void on_peer_down(std::function<void(int host)> f);

	// A link goes another way than the one before it (or, on the accepting side, may do so). address: the peer's, as in LinkPeer,
	// on the dialing side; else empty.
	void on_path(std::function<void(int host, const std::string &address)> f);

	std::string address(int host) const;     // over which its link goes; empty: not known here, or there is none
	bool up(int host) const;                 // has a link now; true for this host itself
	uint64_t last_heard(int host) const;     // Loop::now_ms() of the last byte from it; 0: never; now for this host itself
	std::string name(int host) const;        // "beta", or "host 2" when unknown

	struct Impl;    // internal

private:
	std::shared_ptr<Impl> impl_;
};

}    // namespace lockstep
