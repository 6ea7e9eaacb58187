// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/consensus/once.h"

#include <cstring>

namespace lockstep {

using nlohmann::json;

std::string wrap_entry(std::string_view id, uint64_t first_try_at, std::string_view payload)
{
	std::string out(id);
	out.append(reinterpret_cast<const char *>(&first_try_at), sizeof first_try_at);
	out.append(payload);
	return out;
}

std::optional<WrappedEntry> unwrap_entry(std::string_view entry)
{
	WrappedEntry e;
	if (entry.size() < PROPOSAL_ID_BYTES + sizeof e.first_try_at)
		return std::nullopt;
	e.id = entry.substr(0, PROPOSAL_ID_BYTES);
	memcpy(&e.first_try_at, entry.data() + PROPOSAL_ID_BYTES, sizeof e.first_try_at);
	e.payload = entry.substr(PROPOSAL_ID_BYTES + sizeof e.first_try_at);
	return e;
}

const json *Once::result_of(std::string_view id) const
{
	const auto it = results_.find(id);
	return it == results_.end() ? nullptr : &it->second;
}

void Once::remember(std::string_view id, const json &result)
{
	const auto [it, fresh] = results_.emplace(id, result);
	if (!fresh)
		return;
	order_.push_back(it->first);
	if (order_.size() > REMEMBERED) {
		results_.erase(order_.front());
		order_.pop_front();
	}
}

bool Once::too_late(uint64_t index, uint64_t first_try_at)
{
	return first_try_at != 0 && index > first_try_at + REMEMBERED;
}

json Once::save() const
{
	json out = json::array();
	for (const std::string &id : order_)
		out.push_back({json::binary(std::vector<uint8_t>(id.begin(), id.end())), results_.at(id)});
	return out;
}

bool Once::load(const json &saved)
{
	Once fresh;
	if (!saved.is_array() || saved.size() > REMEMBERED)
		return false;
	for (const json &each : saved) {
		if (!each.is_array() || each.size() != 2 || !each[0].is_binary())
			return false;
		const auto &id = each[0].get_binary();
		fresh.remember({reinterpret_cast<const char *>(id.data()), id.size()}, each[1]);
	}
	*this = std::move(fresh);
	return true;
}

}    // namespace lockstep
