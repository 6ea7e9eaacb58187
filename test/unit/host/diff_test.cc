// SPDX-License-Identifier: GPL-2.0-or-later
//
// What has changed between two thin volumes: thin_delta's output, recorded and from the tool itself on metadata in a file.
#include <catch2/catch_test_macros.hpp>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "lockstepd/host/command.h"
#include "lockstepd/host/device_mapper.h"
#include "lockstepd/host/diff.h"

using namespace lockstep;

namespace {

constexpr uint64_t KIB = 1024;

std::vector<uint64_t> blocks_of(const ChangedBlocks &c)
{
	std::vector<uint64_t> list;
	for (uint64_t b = 0; b < c.bitmap.size() * 8; b++)
		if (c.bitmap[b / 8] & (0x80 >> (b % 8)))
			list.push_back(b);
	return list;
}

// data_block_size in sectors.
std::string delta(unsigned data_block_size, const std::string &ranges)
{
	return "<superblock uuid=\"\" time=\"2\" transaction=\"3\" data_block_size=\"" + std::to_string(data_block_size) +
	       "\" nr_data_blocks=\"100\">\n  <diff left=\"1\" right=\"2\">\n" + ranges + "  </diff>\n</superblock>\n";
}

Result<ChangedBlocks> read(const std::string &text, uint64_t size_bytes, size_t piece = 7)
{
	DeltaReader reader(size_bytes);
	for (size_t at = 0; at < text.size(); at += piece)
		reader.feed(std::string_view(text).substr(at, piece));
	return reader.finish();
}

}    // namespace

TEST_CASE("thin_delta's ranges become bits, the first block the highest of its byte; metadata behind the volume do not count")
{
	const std::string text = delta(128, "    <same begin=\"0\" length=\"2\"/>\n    <different begin=\"2\" length=\"2\"/>\n"
					    "    <left_only begin=\"9\" length=\"1\"/>\n    <right_only begin=\"12\" length=\"9\"/>\n");
	for (size_t piece : {size_t(1), size_t(7), text.size()}) {
		auto c = read(text, 14 * 64 * KIB - 5, piece);
		REQUIRE(c);
		CHECK(c->blocks == 14);
		CHECK(blocks_of(*c) == std::vector<uint64_t>{2, 3, 9, 12, 13});
		CHECK(c->changed == 5);
		CHECK(c->bitmap == std::vector<uint8_t>{0x30, 0x4c});
		CHECK(base64(c->bitmap) == "MEw=");
	}
}

TEST_CASE("chunks of another size are told in blocks of 64 KiB, and what overlaps counts once")
{
	auto large = read(delta(1024, "<different begin=\"1\" length=\"1\"/>\n"), 1024 * KIB);
	REQUIRE(large);
	CHECK(blocks_of(*large) == std::vector<uint64_t>{8, 9, 10, 11, 12, 13, 14, 15});
	auto odd = read(delta(384, "<different begin=\"0\" length=\"1\"/>\n<left_only begin=\"0\" length=\"1\"/>\n"), 1024 * KIB);
	REQUIRE(odd);
	CHECK(odd->changed == 3);
	auto none = read(delta(128, ""), 64 * KIB);
	REQUIRE(none);
	CHECK(none->changed == 0);
	CHECK(base64({}) == "");
}

TEST_CASE("an answer that is cut short or strange is an error, never \"nothing has changed\"")
{
	const std::string text = delta(128, "    <different begin=\"2\" length=\"2\"/>\n");
	CHECK(!read(text.substr(0, text.size() - 15), 1024 * KIB));
	CHECK(!read("", 1024 * KIB));
	CHECK(!read("</superblock>\n", 1024 * KIB));
	CHECK(!read(delta(0, ""), 1024 * KIB));
	CHECK(!read(delta(128, "<different begin=\"2\"/>\n"), 1024 * KIB));
	CHECK(!read(delta(128, "<different begin=\"-2\" length=\"1\"/>\n"), 1024 * KIB));
	CHECK(!read(delta(128, "<right_only begin=\"2\" length=\"99999999999\"/>\n"), 1024 * KIB));
}

TEST_CASE("thin_delta itself, on metadata in a file")
{
	const auto folder = std::filesystem::temp_directory_path() / ("lockstep-diff-" + std::to_string(getpid()));
	std::filesystem::create_directories(folder);
	const std::string xml = folder / "xml", metadata = folder / "metadata";
	std::ofstream(xml) << R"(<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="100">
  <device dev_id="1" mapped_blocks="5" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="4" time="0"/>
    <single_mapping origin_block="9" data_block="20" time="0"/>
  </device>
  <device dev_id="2" mapped_blocks="5" transaction="1" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="2" time="0"/>
    <range_mapping origin_begin="2" data_begin="30" length="2" time="1"/>
    <single_mapping origin_block="12" data_block="40" time="1"/>
  </device>
</superblock>
)";
	std::ofstream(metadata) << "";
	std::filesystem::resize_file(metadata, 4 << 20);
	auto made = run_command({"thin_restore", "-i", xml, "-o", metadata}, 20'000);
	REQUIRE((made && made->exit_status == 0));
	auto changed = thin_changes({metadata, "", 1, 2}, 16 * 64 * KIB);
	REQUIRE(changed);
	CHECK(blocks_of(*changed) == std::vector<uint64_t>{2, 3, 9, 12});
	auto same = thin_changes({metadata, "", 2, 2}, 16 * 64 * KIB);
	CHECK((same && same->changed == 0));
	CHECK(!thin_changes({metadata, "", 1, 7}, 16 * 64 * KIB));
	CHECK(!thin_changes({folder / "absent", "", 1, 2}, 16 * 64 * KIB));
	std::filesystem::remove_all(folder);
}

TEST_CASE("device-mapper doubles the dashes in names")
{
	CHECK(dm_name("lockstep_group", "thin_device") == "lockstep_group-thin_device");
	CHECK(dm_name("a-b", "c--d_tmeta") == "a--b-c----d_tmeta");
}

TEST_CASE("what the kernel says that a thin volume takes")
{
	CHECK(thin_bytes("2048 4095") == 1 << 20);
	CHECK(thin_bytes("0 -") == 0);
	for (const char *said : {"Fail", "Error", "", "2048", "-", "99999999999999999999 1", "18446744073709551615 1"})
		CHECK(thin_bytes(said) == 0);
}
