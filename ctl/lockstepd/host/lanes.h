// SPDX-License-Identifier: GPL-2.0-or-later
//
// Lanes: the kernels' connections, made by the daemons.
//
// For each pair of hosts the one with the lower id dials. A link is a set of lanes with one number, larger than every number
// either kernel has seen of the other. So the dialing side first asks the accepting one (verb "lane.prepare") for its
// kernel's last number. Then it dials the lanes and both ends hand their sockets to their kernels; whether the link
// came up is read from the kernel's dump, never assumed.
//
// The accepting side cannot dial. While its kernel has no link it says so again and again (notice "lane.want"); the dialing
// side, whose kernel may still believe in a connection that died with the other host, then makes a new link.
//
// Runs on the loop thread, except for the commands to the kernel.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lib/error.h"
#include "lockstepd/cluster/state.h"
#include "lockstepd/host/kernel.h"

namespace lockstep {

// Whether a link's lanes are encrypted is the option lane-encryption when they are dialed, and its number says so as long as it
// lives: the kernel keeps the number when a daemon does not live as long. When the option has changed, the dialing
// side makes a new link.
constexpr bool link_is_plain(uint64_t link) { return link & 1; }

constexpr uint64_t LANE_CALL_TIMEOUT_MS = 3000;
constexpr uint64_t LANE_UP_TIMEOUT_MS = 5000;     // from dialing to the link being up in the kernel; then a new try
constexpr uint64_t LANE_WANT_PERIOD_MS = 500;
constexpr uint64_t LANE_WANT_GRACE_MS = 2000;     // a want is not heard so soon after a link came up: it may have crossed it

// What lanes act on. Tests put fakes in place.
struct LanesWorld {
	std::function<const State &()> state;
	std::function<const KernelDump *()> dump;    // nullptr: not known
	std::function<bool(HostId host)> link_up;    // the daemons talk
	std::function<std::string(HostId host)> path;    // over which of its addresses
	std::function<void(HostId host, const std::string &verb, nlohmann::json body, std::function<void(Result<nlohmann::json>)>)> call;
	std::function<void(HostId host, const std::string &verb, nlohmann::json body)> notify;
	// Connects one lane; gives a connected socket that is then the caller's.
	std::function<void(const Host &host, uint32_t lane, uint32_t lanes, uint64_t link, std::function<void(Result<int> fd)>)> dial;
	// Hands the socket to the kernel and closes it, on a worker thread; done on the loop thread.
	std::function<void(HostId host, uint8_t lane, uint8_t lanes, uint64_t link, int fd, std::function<void(Done)>)> lane_add;
	std::function<uint64_t()> now_ms;            // monotonic
	std::function<void(const std::string &subject, const std::string &line)> log_about;    // Loop::log_about()
};

class Lanes {
public:
	Lanes(HostId self, unsigned lanes, LanesWorld world);
	Lanes(const Lanes &) = delete;
	Lanes &operator=(const Lanes &) = delete;

	// Looks at every pair. To be called with every new dump, and every 100 ms or so.
	void look();

	// The accepting side's parts. fd becomes the Lanes'.
	nlohmann::json prepare(HostId from) const;
	void accepted(HostId from, uint32_t lane, uint32_t lanes, uint64_t link, int fd);
	void wanted(HostId from, uint64_t last_link);

	// The daemons' link with a host goes another way now: the lanes follow it. Heard on the dialing side only.
	void path_changed(HostId host, const std::string &address);

	// The kernel lost a link (EV_LINK_DOWN): one that was just dialed need not be waited for.
	void link_down(HostId host, uint64_t link);

	std::vector<std::string> problems() const;

private:
	struct Pair {
		bool dialing = false;           // from lane.prepare to the last lane's LANE_ADD
		uint64_t link = 0;              // last number dialed
		unsigned pending = 0;           // its lanes not handed over yet
		bool broken = false;            // one of them failed
		bool want_new = false;          // the other kernel has no link
		bool was_up = false;
		unsigned failures = 0;
		uint64_t not_before_ms = 0;
		uint64_t up_by_ms = 0;          // when the link just dialed is to be up
		uint64_t up_since_ms = 0;
		uint64_t want_said_ms = 0;
		std::string path;               // address of the daemons' link when it was dialed
		std::string error;
		std::string said;               // logged already
	};

	void look_at(const Host &host, const KernelPeer *peer, Pair &p);
	void begin(const Host &host, Pair &p);
	void dial(const Host &host, Pair &p, uint64_t link);
	void lane_done(HostId host, uint64_t link, const Done &done);
	void fail(HostId host, Pair &p, const std::string &why);
	void say(HostId host, const std::string &line);

	HostId self_;
	unsigned lanes_;
	LanesWorld world_;
	std::map<HostId, Pair> pairs_;
};

}    // namespace lockstep
