// SPDX-License-Identifier: GPL-2.0-or-later
//
// The envelope of a snapshot: libraft neither checks nor versions the content of snapshot files.
//
//     offset 0  char magic[8]  "LKSSNAP1" (the last character is the format)
//            8  u32  crc32c    of the payload
//           12  u32  zero
//           16  u64  bytes     of the payload
//           24  payload, then zeros up to a multiple of 8
// Numbers are little-endian.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

constexpr size_t SNAPSHOT_HEADER_BYTES = 24;

uint32_t crc32c(std::string_view bytes);
std::string wrap_snapshot(std::string_view payload);
// It looks like one, but of another version of this format.
bool is_other_snapshot(std::string_view wrapped);

std::optional<std::string_view> unwrap_snapshot(std::string_view wrapped);    // nullopt: damaged or of another format

}    // namespace lockstep
