// SPDX-License-Identifier: GPL-2.0-or-later
//
// UUIDs: 16 bytes for the kernel, 36 lower-case characters everywhere else.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

std::string make_uuid();                                             // version 4, from the kernel's random numbers
bool valid_uuid(std::string_view text);                              // 8-4-4-4-12 lower-case hexadecimal digits
std::optional<std::array<uint8_t, 16>> uuid_bytes(std::string_view text);
std::string uuid_text(const std::array<uint8_t, 16> &bytes);

}    // namespace lockstep
