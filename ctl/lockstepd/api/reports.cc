// SPDX-License-Identifier: GPL-2.0-or-later
//
// See reports.h.
#include "lockstepd/api/reports.h"

#include "lockstepd/api/soft.h"

#include <algorithm>
#include <charconv>
#include <optional>

namespace lockstep {

using nlohmann::json;

namespace {

// How many other hosts are looked at for one that says the same. Replicas are few, so one without is soon found.
constexpr unsigned ASKED = 2 * LKS_MAX_REPLICAS;

std::optional<uint32_t> number_in(const std::string &key)
{
	uint32_t n = 0;
	const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), n);
	return error == std::errc() && end == key.data() + key.size() ? std::optional(n) : std::nullopt;
}

// What is not said counts as 0, false or nothing (soft.h), and most of what most hosts say is just that. has_replica, has_device and
// allocated_bytes are asked for being said at all; some fields are for whoever reads a host's report as such.
json worth_keeping(const json &report)
{
	json rest = json::object();
	for (const auto &[key, value] : report.items()) {
		const bool said = key == "has_replica" || key == "has_device" || key == "allocated_bytes";
		const bool nothing = value == 0 || value == false || value == "" || (value.is_object() && value.empty());
		const bool unread = key == "role" || key == "term" || key == "hot_extents" || key == "written_extents";
		if (said || !(nothing || unread))
			rest[key] = value;
	}
	return rest;
}

}    // namespace

Reports::Reports(const json &all)
{
	if (all.is_object())
		for (const auto &[host, report] : all.items())
			if (std::optional<uint32_t> id = number_in(host))
				set(HostId(*id), report);
}

const Reports::Entry *Reports::entry_of(const Table &table, uint32_t vid)
{
	auto at = std::lower_bound(table.begin(), table.end(), vid, [](const Entry &e, uint32_t wanted) { return e.vid < wanted; });
	return at != table.end() && at->vid == vid ? &*at : nullptr;
}

std::shared_ptr<const json> Reports::shared(HostId host, uint32_t vid, const json &report) const
{
	unsigned asked = 0;
	const json *last = nullptr;
	// Its own former one first.
	for (unsigned h = 0; h <= LKS_MAX_HOSTS && asked < ASKED; h++) {
		const HostId from = h == 0 ? host : HostId(h);
		const Entry *e = said_[from] ? entry_of(*said_[from], vid) : nullptr;
		if (!e)
			continue;
		asked++;
		if (e->report.get() != last && *e->report == report)
			return e->report;
		last = e->report.get();
	}
	return std::make_shared<const json>(report);
}

void Reports::set(HostId host, const json &report)
{
	if (host < 1 || host > LKS_MAX_HOSTS)
		return;
	auto table = std::make_shared<Table>();
	const json &volumes = soft_object(report, "volumes");
	table->reserve(volumes.size());
	for (const auto &[key, volume] : volumes.items())
		if (std::optional<uint32_t> vid = number_in(key); vid && volume.is_object())
			table->push_back({*vid, shared(host, *vid, worth_keeping(volume))});
	std::sort(table->begin(), table->end(), [](const Entry &a, const Entry &b) { return a.vid < b.vid; });
	said_[host] = std::move(table);
	const json &disks = soft_object(report, "disks");
	disks_[host] = disks.empty() ? nullptr : std::make_shared<const json>(disks);
}

void Reports::erase(HostId host)
{
	if (host > LKS_MAX_HOSTS)
		return;
	said_[host] = nullptr;
	disks_[host] = nullptr;
}

const json *Reports::find(HostId host, uint32_t vid) const
{
	const Entry *e = said(host) ? entry_of(*said_[host], vid) : nullptr;
	return e ? e->report.get() : nullptr;
}

const json &Reports::disks(HostId host) const
{
	static const json none = json::object();
	return host <= LKS_MAX_HOSTS && disks_[host] ? *disks_[host] : none;
}

const json &Reports::of(HostId host, uint32_t vid) const
{
	static const json nothing = json::object();
	const json *found = find(host, vid);
	return found ? *found : nothing;
}

}    // namespace lockstep
