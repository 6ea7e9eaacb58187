// SPDX-License-Identifier: GPL-2.0-or-later
//
// md dump|check on files that hold what a replica's LV holds; completion and man, which are made from the parser.
#include "fake.h"

#include "lockstepd/host/metadata.h"
#include "lockstepd/host/metadata_check.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

// An LV of `bytes`, all zeros.
struct LvFile {
	std::string path = "/tmp/lockstep-unit-md-" + std::to_string(getpid());
	explicit LvFile(uint64_t bytes)
	{
		std::ofstream(path).close();
		std::filesystem::resize_file(path, bytes);
	}
	~LvFile() { std::filesystem::remove(path); }

	void write(uint64_t at, const void *from, size_t bytes)
	{
		int fd = open(path.c_str(), O_WRONLY);
		REQUIRE(fd >= 0);
		REQUIRE(pwrite(fd, from, bytes, off_t(at)) == ssize_t(bytes));
		close(fd);
	}
	lks_superblock superblock(uint64_t at)
	{
		lks_superblock sb;
		int fd = open(path.c_str(), O_RDONLY);
		REQUIRE(pread(fd, &sb, sizeof(sb), off_t(at)) == sizeof(sb));
		close(fd);
		return sb;
	}
	void put(uint64_t at, lks_superblock sb)
	{
		lks_superblock_seal(&sb);
		write(at, &sb, sizeof(sb));
	}
};

ReplicaMetadata replica_at(const LvFile &lv, uint64_t offset, uint64_t size)
{
	return {lv.path, offset, 7, uuid(77), size, LKS_BLOCK_DEFAULT, 3, 5, 2};
}

}    // namespace

TEST_CASE("md: metadata are found without the log, wherever the LV ends")
{
	for (uint64_t size : {uint64_t(4096), 3 * MIB, 100 * MIB}) {
		for (uint64_t offset : {size, size + 8 * MIB}) {
			INFO(size << " at " << offset);
			uint64_t end = replica_lv_bytes(offset, size, LKS_BLOCK_DEFAULT);
			for (uint64_t rest : {uint64_t(0), 4096 + uint64_t(512), 4 * MIB}) {
				LvFile lv(end + rest);
				REQUIRE(format_replica(replica_at(lv, offset, size)));
				Result<uint64_t> found = find_metadata(lv.path);
				REQUIRE(found);
				CHECK(*found == offset);
				// Either copy alone is enough.
				lks_superblock a = lv.superblock(offset), b = a;
				b.sequence++;
				lv.put(offset + LKS_META_UNIT, b);
				CHECK(*find_metadata(lv.path) == offset);
				lv.write(offset, "broken", 6);
				CHECK(*find_metadata(lv.path) == offset);
			}
		}
	}
}

TEST_CASE("md: what an earlier replica left in a dirty map is not taken for metadata")
{
	const uint64_t size = 512 * MIB, end = replica_lv_bytes(size, size, LKS_BLOCK_DEFAULT);
	LvFile lv(end);
	REQUIRE(format_replica(replica_at(lv, size, size)));
	lks_superblock old = lv.superblock(size);
	old.vid = 6;
	old.size = 100 * MIB;
	lv.put(end - 8192, old);
	CHECK(*find_metadata(lv.path) == size);
}

TEST_CASE("md dump and check")
{
	FakeDaemon d;
	const uint64_t size = 64 * MIB;
	LvFile lv(replica_lv_bytes(size, size, LKS_BLOCK_DEFAULT));
	Outcome o = d.run({"md", "dump", lv.path});
	CHECK((o.status == 10 && has(o.err, "no metadata of a replica in the last ")));
	CHECK(d.run({"md", "dump", lv.path + "x"}).status == 10);
	CHECK(d.run({"md", "dump"}).status == 2);
	REQUIRE(format_replica(replica_at(lv, size, size)));
	o = d.run({"md", "dump", lv.path});
	CHECK((o.status == 0 && has(o.out, "replica of volume " + uuid(77) + " (id 7) on host id 3, metadata at byte 67108864")));
	CHECK(has(o.out, "version 5, term 2, incarnation 0"));
	CHECK(has(o.out, "0 of 16 written, 0 hot"));
	CHECK(d.run({"md", "dump", lv.path, "--offset", "4096"}).status == 10);
	CHECK(d.run({"md", "dump", lv.path, "--offset", "5"}).status == 10);
	json j = d.json_of({"md", "dump", lv.path, "--offset", std::to_string(size), "--json"});
	CHECK((j["version"] == 5 && j["offset"] == size && j["problems"].empty() && j["notes"].empty()));
	o = d.run({"md", "check", lv.path});
	CHECK((o.status == 0 && o.out == "the metadata of " + lv.path + " at byte 67108864 are in order\n"));

	// A damaged record of the table is a note, since the next resync mends it.
	lv.write(size + 2 * LKS_META_UNIT + 100, "x", 1);
	o = d.run({"md", "check", lv.path});
	CHECK((o.status == 0 && has(o.out, "  - 1 records of the extent table are damaged")));
	// So is one copy that a loss of power has torn.
	lks_superblock good = lv.superblock(size), sb = good;
	sb.sequence = 2;
	lv.put(size + LKS_META_UNIT, sb);
	lv.write(size, "torn", 4);
	CHECK(has(d.run({"md", "check", lv.path}).out, "copy A of the superblock is damaged"));
	auto problem = [&](const char *says) {
		lv.put(size, sb);
		Outcome bad = d.run({"md", "check", lv.path, "--offset", std::to_string(size)});
		INFO(bad.out << bad.err);
		CHECK((bad.status == 10 && has(bad.out, says) && has(bad.err, "are damaged")));
		CHECK(d.run({"md", "dump", lv.path, "--offset", std::to_string(size)}).status == 0);
		sb = good;
		sb.sequence = 3;
	};
	problem("have the same number");
	sb.uuid[0] ^= 1;
	problem("of different volumes or hosts");
	sb.host = 200;
	problem("200 is no host id");
	sb.slots[0] = {.host = 3, .pad = {}, .since = 1};
	problem("a dirty map for host 3 makes no sense");
	sb.slots[0] = {.host = 4, .pad = {}, .since = 1};
	sb.slots[4] = {.host = 4, .pad = {}, .since = 1};
	problem("a dirty map for host 4 makes no sense");
	sb.slots[1] = {.host = 4, .pad = {}, .since = 6};
	problem("is since version 6, the replica knows 5");
	sb.size += 4096;
	problem("cannot have its metadata at byte 67108864");
	std::filesystem::resize_file(lv.path, size + 5 * 4096);
	problem("the metadata end at byte");
}

TEST_CASE("completion: a real shell offers commands, options and names")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "vm1", "1GiB"}).status == 0);
	CHECK(d.run({"completion", "volumes"}).out == "vm1\n");
	CHECK(d.run({"completion", "hosts"}).out == "alpha\nbeta\ngamma\n");
	CHECK(d.run({"completion", "fish"}).status == 2);
	const std::string file = "/tmp/lockstep-unit-completion-" + std::to_string(getpid());
	std::ofstream(file) << "lockstep() { echo \"names-of-$2\"; }\n" << d.run({"completion", "bash"}).out;
	auto offered = [&](const std::string &words) {
		const std::string command = "bash -c 'source " + file + "; COMP_WORDS=(" + words + "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _lockstep; echo ${COMPREPLY[*]}'";
		FILE *pipe = popen(command.c_str(), "r");
		REQUIRE(pipe);
		char text[4096] = "";
		size_t n = fread(text, 1, sizeof(text) - 1, pipe);
		CHECK(pclose(pipe) == 0);
		return std::string(text, n);
	};
	CHECK(offered("lockstep vol") == "volume\n");
	CHECK(offered("lockstep --socket /x vol") == "volume\n");
	CHECK(offered("lockstep volume rep") == "replica\n");
	CHECK(offered("lockstep volume replica a") == "add\n");
	CHECK(offered("lockstep volume create --red") == "--redundancy\n");
	CHECK(offered("lockstep volume delete names") == "names-of-volumes\n");
	CHECK(offered("lockstep host evacuate names") == "names-of-hosts\n");
	CHECK(offered("lockstep why names") == "names-of-volumes names-of-hosts\n");
	CHECK(offered("lockstep nosuch \"\"").find("volume") != std::string::npos);
	std::filesystem::remove(file);
}

TEST_CASE("the manual page has every command, and no line that roff takes for a request")
{
	FakeDaemon d;
	const std::string text = d.run({"man"}).out;
	for (const char *part : {".TH LOCKSTEP 8", ".SS lockstep volume replica add VOLUME", ".SS lockstep why NAME\n", ".SS lockstep md check LV\n",
				 ".B \\-\\-redundancy ...\n", ".B \\-\\-json\n", ".SS lockstep wait\\-sync [VOLUME ...]\n", ".SH EXIT STATUS"}) {
		INFO(part);
		CHECK(has(text, part));
	}
	std::istringstream lines(text);
	for (std::string line; std::getline(lines, line);) {
		INFO(line);
		CHECK((!line.starts_with("'") && !line.empty()));
		if (line.starts_with("."))
			CHECK((line.starts_with(".\\\"") || line.starts_with(".TH ") || line.starts_with(".SH ") || line.starts_with(".SS ") || line == ".TP" ||
			       line.starts_with(".B ")));
	}
}
