// SPDX-License-Identifier: GPL-2.0-or-later
//
// What has happened, as GET /v1/events tells it: the lines of the log, kept in memory, so that a program can follow them without a gap.
//
// A cursor "<run>:<number>" names the last event somebody has seen; run is a number of this daemon's life. What is asked for from
// another life, or is older than what is kept, is answered with gap = true and all there is: then look at the status again.
//
// Context: no thread safety.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <deque>
#include <string>

namespace lockstep {

constexpr size_t EVENTS_KEPT = 4096;

struct Event {
	uint64_t number = 0;       // from 1, without a gap
	uint64_t time_ms = 0;      // Unix time at which this host applied it
	std::string kind, name;    // "volume", "host", "pool", "snapshot" or "cluster", and which
	std::string line;
};

class EventList {
public:
	explicit EventList(std::string run) : run_(std::move(run)) {}

	void add(const std::string &kind, const std::string &name, const std::string &line, uint64_t time_ms);

	// Those after the cursor (empty: all that are kept): {"cursor", "gap", "events": [...]}, "cursor" being that of the last one.
	nlohmann::json after(const std::string &cursor) const;
	bool has_after(const std::string &cursor) const;

	// The last ones about it, oldest first.
	nlohmann::json about(const std::string &kind, const std::string &name, size_t most) const;

private:
	uint64_t last() const { return next_ - 1; }
	bool known(const std::string &cursor, uint64_t &number) const;
	nlohmann::json event_json(const Event &e) const;

	std::string run_;
	uint64_t next_ = 1;
	std::deque<Event> events_;
};

}    // namespace lockstep
