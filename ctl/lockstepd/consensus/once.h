// SPDX-License-Identifier: GPL-2.0-or-later
//
// Applying each proposal once, however often it was tried.
//
// When a leader dies with a proposal in its hands, the proposer cannot know whether it was committed. It tries again with the
// next leader; so that a second copy does no harm, each proposal carries an id, and all hosts remember the ids and results of
// the last REMEMBERED applied ones, as part of the replicated state (hence of snapshots). A copy gets the remembered result.
// A repeated try also says how far its host had applied when it first tried: if more was applied since than is
// remembered, nobody can tell any more, and it is not applied.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace lockstep {

constexpr size_t PROPOSAL_ID_BYTES = 16;
constexpr size_t REMEMBERED = 1024;

// An entry as it is in the log: id, u64 `first_try_at` (little-endian; 0 in a first try), then the proposer's bytes.
std::string wrap_entry(std::string_view id, uint64_t first_try_at, std::string_view payload);

struct WrappedEntry {
	std::string_view id;
	uint64_t first_try_at;
	std::string_view payload;
};
std::optional<WrappedEntry> unwrap_entry(std::string_view entry);

class Once {
public:
	const nlohmann::json *result_of(std::string_view id) const;    // nullptr: not remembered
	void remember(std::string_view id, const nlohmann::json &result);
	static bool too_late(uint64_t index, uint64_t first_try_at);

	nlohmann::json save() const;
	bool load(const nlohmann::json &saved);

private:
	std::deque<std::string> order_;    // oldest first
	std::map<std::string, nlohmann::json, std::less<>> results_;
};

}    // namespace lockstep
