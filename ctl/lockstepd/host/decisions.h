// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the leader decides, on its way into the log.
//
// The State's rules may refuse a decision, and entries that a host with an older lockstepd does not understand are not proposed at all
// (level_obstacle() in cluster/state.h). Such a decision is made again with every look at the State; it is proposed again
// after a pause that doubles up to RETRY_MAX_MS. Others are not held up by it.
//
// All on the loop thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lib/error.h"

namespace lockstep {

class Decisions {
public:
	static constexpr uint64_t RETRY_MIN_MS = 250, RETRY_MAX_MS = 10000;

	// Calls its second argument once, also before it returns.
	using Propose = std::function<void(nlohmann::json entry, std::function<void(Result<nlohmann::json>)> done)>;

	Decisions(Propose propose, std::function<void(const std::string &line)> log) : propose_(std::move(propose)), log_(std::move(log)) {}

	// Decisions are on their way: it is decided again when the last of them is answered.
	bool busy() const { return under_way_ > 0; }
	// Proposes what was decided, without what was refused just now. Not while busy(). done: all have been answered, after this has
	// returned, and some were carried out.
	void propose(std::vector<nlohmann::json> decided, uint64_t now_ms, std::function<void()> done);
	// Another leader, another State: nothing counts as refused.
	void forget() { refused_.clear(); }

private:
	struct Refused {
		uint64_t until_ms = 0, pause_ms = 0;
		std::string why;
	};
	void answered(const std::string &key, uint64_t now_ms, const Result<nlohmann::json> &answer);

	const Propose propose_;
	const std::function<void(const std::string &)> log_;
	unsigned under_way_ = 0;
	bool some_done_ = false;
	std::map<std::string, Refused> refused_;    // by the decision, without what is different each time
};

}    // namespace lockstep
