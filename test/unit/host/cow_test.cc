// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the store of a classic snapshot says that it has of its own, from stores written as dm-snapshot writes them. On a real one: lab/test_operate.py.
#include <catch2/catch_test_macros.hpp>
#include <endian.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <map>

#include "lockstepd/host/cow.h"
#include "lockstepd/host/diff.h"

using namespace lockstep;

namespace {

constexpr uint64_t COW_KIB = 1024, COW_MIB = 1024 * COW_KIB;

struct Store {
	uint64_t chunk, size, per_area = chunk / 16;
	std::map<uint64_t, std::array<uint64_t, 2>> written;    // at these bytes, little-endian; all else is zeros

	Store(uint64_t chunk_bytes, uint64_t size_bytes) : chunk(chunk_bytes), size(size_bytes) { header(0x70416e53, 1, 1, uint32_t(chunk_bytes / 512)); }
	void header(uint32_t magic, uint32_t valid, uint32_t version, uint32_t sectors)
	{
		written[0] = {htole64(magic | uint64_t(valid) << 32), htole64(version | uint64_t(sectors) << 32)};
	}
	uint64_t place(uint64_t entry) const { return (1 + entry / per_area * (per_area + 1)) * chunk + entry % per_area * 16; }
	// As the kernel gives chunks out: one after the other, but for those of the list.
	uint64_t own(uint64_t entry) const { return 2 + entry + entry / per_area; }
	void entry(uint64_t index, uint64_t of_origin, uint64_t own_chunk) { written[place(index)] = {htole64(of_origin), htole64(own_chunk)}; }
	void entry(uint64_t index, uint64_t of_origin) { entry(index, of_origin, own(index)); }
};

struct StoreFile {
	std::string path = std::filesystem::temp_directory_path() / ("lockstep-cow-" + std::to_string(getpid()));
	explicit StoreFile(const Store &s)
	{
		std::ofstream out(path);
		for (const auto &[at, numbers] : s.written)
			out.seekp(std::streamoff(at)).write(reinterpret_cast<const char *>(numbers.data()), sizeof numbers);
		out.close();
		std::filesystem::resize_file(path, s.size);
	}
	~StoreFile() { std::filesystem::remove(path); }
};

Result<std::vector<uint64_t>> own_blocks(const Store &store, uint64_t size_bytes, uint64_t origin_bytes)
{
	const StoreFile file(store);
	ChangedBlocks c(size_bytes);
	if (Done done = mark_own_chunks({file.path, "", origin_bytes}, c); !done)
		return done.error();
	std::vector<uint64_t> list;
	for (uint64_t b = 0; b < c.bitmap.size() * 8; b++)
		if (c.bitmap[b / 8] & (0x80 >> (b % 8)))
			list.push_back(b);
	CHECK(list.size() == c.changed);
	return list;
}

using BlockList = std::vector<uint64_t>;

bool store_refused(const Store &store, const std::string &why)
{
	auto blocks = own_blocks(store, 16 * COW_MIB, 16 * COW_MIB + 4 * COW_MIB);
	INFO((blocks ? "told" : blocks.error().message));
	return !blocks && blocks.error().message.find(why) != std::string::npos;
}

}    // namespace

TEST_CASE("a snapshot's own chunks become blocks of 64 KiB; what lies behind the volume does not count")
{
	Store s(4 * COW_KIB, 4 * COW_MIB);
	CHECK(*own_blocks(s, 16 * COW_MIB, 20 * COW_MIB) == BlockList{});
	const uint64_t chunks[] = {0, 3, 16, 15, 4095, 4096, 5119, 800};    // from 4096 on: the metadata
	for (uint64_t i = 0; uint64_t c : chunks)
		s.entry(i++, c);
	CHECK(*own_blocks(s, 16 * COW_MIB, 20 * COW_MIB) == BlockList{0, 1, 50, 255});
	CHECK(*own_blocks(s, 16 * COW_MIB - 5, 20 * COW_MIB) == BlockList{0, 1, 50, 255});
	CHECK(*own_blocks(s, 1 * COW_MIB, 20 * COW_MIB) == BlockList{0, 1});
}

TEST_CASE("a list of several areas is read to its end, with chunks of any size, and no further")
{
	for (uint64_t chunk : {4 * COW_KIB, 16 * COW_KIB, 64 * COW_KIB, 256 * COW_KIB}) {
		Store s(chunk, 3 * (chunk / 16 + 1) * chunk);
		const uint64_t per_block = std::max<uint64_t>(64 * COW_KIB / chunk, 1), blocks_each = std::max<uint64_t>(chunk / (64 * COW_KIB), 1);
		const uint64_t origin_bytes = 3 * s.per_area * std::max(chunk, 64 * COW_KIB);
		BlockList expected;
		// Of each block one chunk, so none is told by a neighbour.
		for (uint64_t n : {s.per_area - 1, s.per_area, 2 * s.per_area + 1}) {
			for (uint64_t i = expected.size() / blocks_each; i < n; i++) {
				s.entry(i, i * per_block);
				for (uint64_t b = 0; b < blocks_each; b++)
					expected.push_back(i * blocks_each + b);
			}
			INFO("chunks of " << chunk << " bytes, " << n << " entries");
			CHECK(*own_blocks(s, origin_bytes, origin_bytes) == expected);
			// What an earlier snapshot left behind the end of the list is none of it, in this area and the next.
			Store old = s;
			old.entry(n + 1, (n + 1) * per_block);
			if (n < 2 * s.per_area)
				old.entry((n / s.per_area + 1) * s.per_area, (n + 2) * per_block);
			CHECK(*own_blocks(old, origin_bytes, origin_bytes) == expected);
		}
	}
}

TEST_CASE("a store that is not whole, or not one, is an error, never \"nothing has changed\"")
{
	Store s(4 * COW_KIB, 4 * COW_MIB);
	s.entry(0, 7);
	CHECK(*own_blocks(s, 16 * COW_MIB, 20 * COW_MIB) == BlockList{0});
	Store bad = s;
	bad.header(0, 0, 0, 0);
	CHECK(store_refused(bad, "it is no store of a snapshot"));
	bad.header(0x70416e54, 1, 1, 8);
	CHECK(store_refused(bad, "it is no store of a snapshot"));
	bad.header(0x70416e53, 1, 2, 8);
	CHECK(store_refused(bad, "it is no store of a snapshot"));
	bad.header(0x70416e53, 0, 1, 8);
	CHECK(store_refused(bad, "its reserve was too small"));
	for (uint32_t sectors : {0u, 7u, 65536u, 1u << 31}) {
		bad.header(0x70416e53, 1, 1, sectors);
		CHECK(store_refused(bad, "chunks of"));
	}
	// Entries that the kernel cannot have made: of a chunk that the origin has not, with content outside the store or in its list.
	for (auto [of_origin, own] : {std::pair<uint64_t, uint64_t>{5120, 3}, {1ull << 60, 3}, {7, 1024}, {7, UINT64_MAX}, {7, 1}, {7, 258}}) {
		bad = s;
		bad.entry(1, of_origin, own);
		INFO(of_origin << " " << own);
		CHECK(store_refused(bad, "it is damaged"));
	}
	// An area is full, and there is no room for the next.
	Store full(4 * COW_KIB, 257 * 4 * COW_KIB);
	for (uint64_t i = 0; i < 256; i++)
		full.entry(i, i, 2 + i % 200);
	CHECK(store_refused(full, "it ends before"));
	Store cut = s;
	cut.size = 5000;
	CHECK(store_refused(cut, "it ends before"));
	ChangedBlocks c(COW_MIB);
	CHECK(!mark_own_chunks({"/nonexistent/store", "", COW_MIB}, c));
	CHECK(!mark_own_chunks({"/nonexistent/store", "no-such-snapshot", COW_MIB}, c));
}

TEST_CASE("of a snapshot's status the areas that are full are taken, and that it is lost")
{
	CHECK(full_areas("16/163840 16", 4 * COW_KIB) == 0);
	CHECK(full_areas("5000/163840 24", 4 * COW_KIB) == 1);
	CHECK(full_areas("5000/163840 256", 64 * COW_KIB) == 0);
	for (const char *said : {"Invalid", "Merge failed", "Overflow", "Unknown", "", "16/163840", "16/163840 ", "16/163840 16 ", "16 163840 16", "16/163840 8", "-1/4 16"})
		CHECK(!full_areas(said, 4 * COW_KIB));
}
