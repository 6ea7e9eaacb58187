// SPDX-License-Identifier: GPL-2.0-or-later
//
// See uuid.h. Only the one canonical spelling is accepted, so that equal UUIDs are equal strings.
#include "lib/uuid.h"

#include <sys/random.h>

#include <stdexcept>

namespace lockstep {

namespace {

constexpr size_t TEXT_LENGTH = 36;

bool dash_at(size_t i) { return i == 8 || i == 13 || i == 18 || i == 23; }

int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

}    // namespace

bool valid_uuid(std::string_view text)
{
	if (text.size() != TEXT_LENGTH)
		return false;
	for (size_t i = 0; i < TEXT_LENGTH; i++)
		if (dash_at(i) ? text[i] != '-' : digit(text[i]) < 0)
			return false;
	return true;
}

std::optional<std::array<uint8_t, 16>> uuid_bytes(std::string_view text)
{
	if (!valid_uuid(text))
		return std::nullopt;
	std::array<uint8_t, 16> bytes{};
	size_t nibble = 0;
	for (size_t i = 0; i < TEXT_LENGTH; i++) {
		if (dash_at(i))
			continue;
		bytes[nibble / 2] = uint8_t(bytes[nibble / 2] << 4 | digit(text[i]));
		nibble++;
	}
	return bytes;
}

std::string uuid_text(const std::array<uint8_t, 16> &bytes)
{
	static const char hex[] = "0123456789abcdef";
	std::string text;
	text.reserve(TEXT_LENGTH);
	for (uint8_t b : bytes) {
		if (dash_at(text.size()))
			text += '-';
		text += hex[b >> 4];
		text += hex[b & 15];
	}
	return text;
}

std::string make_uuid()
{
	std::array<uint8_t, 16> bytes;
	if (getrandom(bytes.data(), bytes.size(), 0) != ssize_t(bytes.size()))
		throw std::runtime_error("the kernel gives no random numbers");
	bytes[6] = uint8_t((bytes[6] & 0x0f) | 0x40);
	bytes[8] = uint8_t((bytes[8] & 0x3f) | 0x80);
	return uuid_text(bytes);
}

}    // namespace lockstep
