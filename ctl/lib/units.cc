// SPDX-License-Identifier: GPL-2.0-or-later
//
// See units.h.
#include "lib/units.h"

#include <cctype>
#include <limits>

namespace lockstep {

namespace {

constexpr std::string_view UNITS = "KMGTP";

// Shift of a unit such as "", "B", "k", "GiB", "G"; -1 if it is none.
int unit_shift(std::string_view unit)
{
	if (unit.empty() || unit == "B")
		return 0;
	size_t at = UNITS.find(char(std::toupper(static_cast<unsigned char>(unit[0]))));
	std::string_view rest = unit.substr(1);
	if (at == UNITS.npos || (!rest.empty() && rest != "iB"))
		return -1;
	return int(at + 1) * 10;
}

}    // namespace

Result<uint64_t> parse_size(std::string_view text)
{
	const std::string shown(text);
	uint64_t number = 0;
	size_t i = 0;
	for (; i < text.size() && text[i] >= '0' && text[i] <= '9'; i++) {
		uint64_t digit = uint64_t(text[i] - '0');
		if (number > (std::numeric_limits<uint64_t>::max() - digit) / 10)
			return usage_error("size " + shown + " is too large");
		number = number * 10 + digit;
	}
	int shift = i ? unit_shift(text.substr(i)) : -1;
	if (shift < 0)
		return usage_error("\"" + shown + "\" is no size: write a whole number with KiB, MiB, GiB or TiB, such as 10GiB");
	if (number > (std::numeric_limits<uint64_t>::max() >> shift))
		return usage_error("size " + shown + " is too large");
	return number << shift;
}

Result<uint64_t> parse_seconds(std::string_view text)
{
	const std::string shown(text);
	uint64_t seconds = 0, factor = 1;
	size_t i = 0;
	for (; i < text.size() && i < 9 && text[i] >= '0' && text[i] <= '9'; i++)
		seconds = seconds * 10 + uint64_t(text[i] - '0');
	std::string_view unit = text.substr(i);
	if (unit == "m")
		factor = 60;
	else if (unit == "h")
		factor = 3600;
	else if (unit == "d")
		factor = 86400;
	else if (!unit.empty() && unit != "s")
		i = 0;
	if (!i)
		return usage_error("\"" + shown + "\" is no time: write a whole number with s, m, h or d, such as 30m");
	return seconds * factor;
}

std::string format_bytes(uint64_t bytes)
{
	if (bytes < 1024)
		return std::to_string(bytes) + " B";
	int shift = 10;
	size_t unit = 0;
	while (unit + 1 < UNITS.size() && bytes >> shift >= 1024) {
		shift += 10;
		unit++;
	}
	uint64_t whole = bytes >> shift;
	uint64_t tenths = ((bytes >> (shift - 10)) % 1024) * 10 / 1024;
	std::string text = std::to_string(whole);
	if (tenths && whole < 100)
		text += "." + std::to_string(tenths);
	return text + " " + UNITS[unit] + "iB";
}

std::string format_seconds(uint64_t seconds)
{
	auto two = [](uint64_t a, const char *unit_a, uint64_t b, const char *unit_b) {
		std::string text = std::to_string(a) + " " + unit_a;
		return b ? text + " " + std::to_string(b) + " " + unit_b : text;
	};
	if (seconds < 60)
		return std::to_string(seconds) + " s";
	if (seconds < 3600)
		return two(seconds / 60, "min", seconds % 60, "s");
	if (seconds < 86400)
		return two(seconds / 3600, "h", seconds % 3600 / 60, "min");
	return two(seconds / 86400, "d", seconds % 86400 / 3600, "h");
}

}    // namespace lockstep
