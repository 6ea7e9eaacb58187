// SPDX-License-Identifier: GPL-2.0-or-later
//
// Who asked for a change: it stands in the log's entry as "asker", so that every host can say so in its log line. What daemons do by
// themselves has none. Nothing is decided by it, and programs of before pass over it.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "lockstepd/cluster/state.h"

namespace lockstep {

struct Asker {
	std::string client;    // name of the certificate; "root": over the unix socket
	std::string role;      // "admin", or "root"
	std::string host;      // where it asked
	bool operator==(const Asker &) const = default;
};

nlohmann::json to_json(const Asker &asker);
nlohmann::json with_asker(nlohmann::json entry, const Asker &asker);    // no operation has a field of that name
std::optional<Asker> asker_of(const nlohmann::json &entry);    // nullopt: none, or nothing that makes sense
// " (by root on alpha)", " (by backup, admin, on alpha)"
std::string describe(const Asker &asker);

// Kind and name, as in Change, of what the entry is about, as far as this State knows it.
using LogSubject = std::pair<std::string, std::string>;
std::set<LogSubject> subjects_of(const State &state, const nlohmann::json &entry);

// Whose doing it is what becomes of the entries applied since clear().
class Asked {
public:
	// Before and after it is applied; answer: null before.
	void note(const State &state, std::string_view entry, const nlohmann::json &answer = nullptr);
	const Asker *who(const std::string &kind, const std::string &name) const;    // nullptr: nobody's
	void clear() { askers_.clear(); }

private:
	std::map<LogSubject, Asker> askers_;
};

}    // namespace lockstep
