// SPDX-License-Identifier: GPL-2.0-or-later
//
// Reading what hosts report about themselves. A report comes from another program, perhaps another version of it: a field
// that is missing or of another type counts as not said.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>

namespace lockstep {

inline const nlohmann::json &soft_object(const nlohmann::json &at, const std::string &field)
{
	static const nlohmann::json nothing = nlohmann::json::object();
	if (!at.is_object())
		return nothing;
	auto it = at.find(field);
	return it == at.end() || !it->is_object() ? nothing : *it;
}

inline std::string soft_text(const nlohmann::json &at, const char *field)
{
	auto it = at.find(field);
	return it == at.end() || !it->is_string() ? std::string() : it->get<std::string>();
}

inline bool soft_is_true(const nlohmann::json &at, const char *field)
{
	auto it = at.find(field);
	return it != at.end() && it->is_boolean() && it->get<bool>();
}

inline bool soft_has_number(const nlohmann::json &at, const char *field)
{
	auto it = at.find(field);
	return it != at.end() && it->is_number_integer() && (it->is_number_unsigned() || it->get<int64_t>() >= 0);
}

inline uint64_t soft_number(const nlohmann::json &at, const char *field)
{
	return soft_has_number(at, field) ? at.at(field).get<uint64_t>() : 0;
}

}    // namespace lockstep
