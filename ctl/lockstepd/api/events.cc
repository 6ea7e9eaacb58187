// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/api/events.h"

namespace lockstep {

using nlohmann::json;

void EventList::add(const std::string &kind, const std::string &name, const std::string &line, uint64_t time_ms)
{
	events_.push_back({next_++, time_ms, kind, name, line});
	if (events_.size() > EVENTS_KEPT)
		events_.pop_front();
}

// Whether nothing between the cursor and now is missing here.
bool EventList::known(const std::string &cursor, uint64_t &number) const
{
	const size_t colon = cursor.find(':');
	const std::string digits = colon == cursor.npos ? "" : cursor.substr(colon + 1);
	if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != digits.npos || cursor.substr(0, colon) != run_)
		return false;
	number = std::stoull(digits);
	return number <= last() && number + events_.size() >= last();
}

json EventList::event_json(const Event &e) const
{
	return {{"cursor", run_ + ":" + std::to_string(e.number)}, {"time_ms", e.time_ms}, {"kind", e.kind}, {"name", e.name}, {"message", e.line}};
}

bool EventList::has_after(const std::string &cursor) const
{
	uint64_t number = 0;
	return !known(cursor, number) || number < last();
}

json EventList::after(const std::string &cursor) const
{
	uint64_t number = 0;
	const bool gap = !known(cursor, number) && !cursor.empty();
	json list = json::array();
	for (const Event &e : events_)
		if (gap || e.number > number)
			list.push_back(event_json(e));
	return {{"cursor", run_ + ":" + std::to_string(last())}, {"gap", gap}, {"events", list}};
}

json EventList::about(const std::string &kind, const std::string &name, size_t most) const
{
	json list = json::array();
	for (auto e = events_.rbegin(); e != events_.rend() && list.size() < most; ++e)
		if (e->kind == kind && e->name == name)
			list.insert(list.begin(), event_json(*e));
	return list;
}

}    // namespace lockstep
