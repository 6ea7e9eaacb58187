// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/consensus/snapshot.h"

#include <array>
#include <bit>
#include <cstring>

namespace lockstep {

namespace {

constexpr std::string_view MAGIC = "LKSSNAP1";
static_assert(std::endian::native == std::endian::little);

constexpr std::array<uint32_t, 256> make_table()
{
	std::array<uint32_t, 256> table{};
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t r = i;
		for (int bit = 0; bit < 8; bit++)
			r = (r >> 1) ^ (r & 1 ? 0x82f63b78u : 0);
		table[i] = r;
	}
	return table;
}

constexpr auto TABLE = make_table();

}    // namespace

uint32_t crc32c(std::string_view bytes)
{
	uint32_t r = ~0u;
	for (const char c : bytes)
		r = (r >> 8) ^ TABLE[(r ^ uint8_t(c)) & 0xff];
	return ~r;
}

std::string wrap_snapshot(std::string_view payload)
{
	std::string out(SNAPSHOT_HEADER_BYTES, '\0');
	const uint32_t crc = crc32c(payload);
	const uint64_t bytes = payload.size();
	memcpy(out.data(), MAGIC.data(), MAGIC.size());
	memcpy(out.data() + 8, &crc, sizeof crc);
	memcpy(out.data() + 16, &bytes, sizeof bytes);
	out.append(payload);
	out.resize((out.size() + 7) / 8 * 8);
	return out;
}

bool is_other_snapshot(std::string_view wrapped)
{
	return wrapped.starts_with(MAGIC.substr(0, MAGIC.size() - 1)) && !wrapped.starts_with(MAGIC);
}

std::optional<std::string_view> unwrap_snapshot(std::string_view wrapped)
{
	if (wrapped.size() < SNAPSHOT_HEADER_BYTES || wrapped.substr(0, MAGIC.size()) != MAGIC)
		return std::nullopt;
	uint32_t crc;
	uint64_t bytes;
	memcpy(&crc, wrapped.data() + 8, sizeof crc);
	memcpy(&bytes, wrapped.data() + 16, sizeof bytes);
	wrapped.remove_prefix(SNAPSHOT_HEADER_BYTES);
	if (bytes > wrapped.size() || crc32c(wrapped.substr(0, bytes)) != crc)
		return std::nullopt;
	return wrapped.substr(0, bytes);
}

}    // namespace lockstep
