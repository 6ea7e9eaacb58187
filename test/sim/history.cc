// SPDX-License-Identifier: GPL-2.0-or-later
//
// See history.h.
#include "history.h"

#include <algorithm>

namespace lockstep::sim {

namespace {

constexpr size_t ENTRIES_BEFORE_CLEANING = 12;    // in one sector's list

std::string describe(uint64_t value)
{
	if (!value)
		return "zeros";
	if (value >> 48 == 0xdead)
		return "old garbage of sector " + std::to_string(value & 0xffffffffffffu);
	return "op " + std::to_string(value >> 24) + " for sector " + std::to_string(value & 0xffffff);
}

}    // namespace

std::vector<History::Entry> &History::list(uint64_t sector)
{
	std::vector<Entry> &entries = lists[sector];
	if (entries.empty()) {
		entries.push_back({0, 0, 0, 0, 0, NEVER, false});
		touched.push_back(sector);
	}
	return entries;
}

void History::opened(uint64_t session, uint8_t key)
{
	if (session <= owners[key])
		return;
	owners[key] = session;
	uint64_t t = stamp();
	for (auto it = pending.begin(); it != pending.end();) {
		Pending &p = it->second;
		if (p.key != key || p.session == session || !p.legal) {
			++it;
			continue;
		}
		for (uint64_t s = p.span.first; s < p.span.first + p.span.count; s++)
			for (Entry &e : list(s))
				if (e.op == it->first)
					e.done = t;
		it = pending.erase(it);
	}
}

void History::write_issued(uint64_t op, uint64_t session, uint8_t key, Span span, bool zeros)
{
	uint64_t t = stamp();
	bool legal = session == owners[key];
	pending[op] = {session, key, span, t, legal};
	if (!legal)
		return;
	for (uint64_t s = span.first; s < span.first + span.count; s++) {
		std::vector<Entry> &entries = list(s);
		if (entries.size() > ENTRIES_BEFORE_CLEANING)
			forget(entries);
		entries.push_back({op, zeros ? 0 : value_of(op, s), session, t, NEVER, NEVER, false});
	}
}

bool History::write_done(uint64_t op, bool fua)
{
	auto it = pending.find(op);
	if (it == pending.end())
		return true;    // settled when a newer session opened: it was drained before
	Pending p = it->second;
	pending.erase(it);
	if (!p.legal)
		return false;
	uint64_t t = stamp();
	for (uint64_t s = p.span.first; s < p.span.first + p.span.count; s++) {
		for (Entry &e : list(s)) {
			if (e.op == op) {
				e.done = t;
				continue;
			}
			if (e.died == NEVER && e.done < p.issued)
				e.died = t;
			if (fua && (e.done < p.issued || e.died < p.issued))
				e.gone = true;
		}
	}
	return true;
}

std::string History::read_done(uint64_t sector, uint64_t value, uint64_t issued)
{
	if (lists[sector].empty())
		return value ? "gave " + describe(value) + ", allowed: zeros, it was never written" : "";
	bool found = false, alive = false;
	for (const Entry &e : lists[sector])
		if (e.value == value && e.died > issued) {
			found = true;
			alive |= e.died == NEVER;
		}
	if (!found)
		return "gave " + describe(value) + ", allowed: " + allowed(sector);
	if (!alive)
		return "";
	uint64_t t = stamp();
	for (Entry &e : lists[sector])
		if (e.value != value && e.died == NEVER && e.done < issued)
			e.died = t;
	return "";
}

void History::flush_done(uint64_t session, uint8_t key, uint64_t issued, uint64_t incarnation_at_issue)
{
	if (session == owners[key] && incarnation_at_issue == incarnation_)
		flushed = std::max(flushed, issued);
}

void History::new_incarnation(uint64_t number)
{
	if (number <= incarnation_)
		return;
	incarnation_ = number;
	uint64_t t = stamp();
	for (uint64_t s : touched)
		for (Entry &e : lists[s]) {
			if (e.died == NEVER || e.gone || e.died <= flushed)
				continue;
			e.died = NEVER;
			if (e.done != NEVER)
				e.done = std::min(e.done, t);
		}
}

void History::read_ends(uint64_t issued)
{
	auto it = reads.find(issued);
	if (--it->second == 0)
		reads.erase(it);
}

void History::forget(std::vector<Entry> &entries)
{
	uint64_t oldest = reads.empty() ? now : reads.begin()->first;
	std::erase_if(entries, [&](const Entry &e) {
		return e.died != NEVER && e.died <= oldest && (e.gone || e.died <= flushed) && e.done != NEVER;
	});
}

bool History::may_hold(uint64_t sector, uint64_t value) const
{
	if (lists[sector].empty())
		return value == 0;
	return std::any_of(lists[sector].begin(), lists[sector].end(),
			   [&](const Entry &e) { return e.value == value && e.died == NEVER; });
}

std::string History::allowed(uint64_t sector) const
{
	std::string text;
	for (const Entry &e : lists[sector])
		if (e.died == NEVER)
			text += (text.empty() ? "" : ", ") + describe(e.value) + (e.done == NEVER ? " (pending)" : "");
	return text.empty() ? "nothing" : text;
}

}    // namespace lockstep::sim
