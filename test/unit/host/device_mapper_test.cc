// SPDX-License-Identifier: GPL-2.0-or-later
//
// Snapshots of thin volumes by device-mapper alone, with a kernel that is played: what is asked of it, in which order, and that a volume does
// not stay suspended.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <linux/dm-ioctl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "lockstepd/host/device_mapper.h"

using namespace lockstep;

namespace {

const std::string ORIGIN = "vg-lockstep.1";

struct FakeDm {
	std::string top = std::filesystem::temp_directory_path() / ("lockstep-dm-test." + std::to_string(getpid()));
	std::string folder = top + "/suspended";    // neither is there
	std::string table = "252:300 7", pool = "1 40/1024 7/100 - rw discard_passdown queue_if_no_space - 1024 ";
	bool suspended = false;
	std::vector<std::string> calls;
	std::map<std::string, int> fails;                  // call -> errno
	std::function<void(const std::string &)> before;

	~FakeDm() { std::filesystem::remove_all(top); }

	bool noted() const { return std::filesystem::exists(folder + "/" + ORIGIN); }

	void answer(dm_ioctl *head, const char *type, const std::string &text)
	{
		char *at = reinterpret_cast<char *>(head) + head->data_start;
		dm_target_spec spec = {};
		strcpy(spec.target_type, type);
		memcpy(at, &spec, sizeof spec);
		strcpy(at + sizeof spec, text.c_str());
		head->target_count = 1;
		strcpy(head->uuid, "LVM-thin");
		head->flags = suspended && !strcmp(type, "thin") ? uint32_t(DM_SUSPEND_FLAG) : 0;
	}

	int take(unsigned long request, dm_ioctl *head)
	{
		const bool of_pool = head->dev == (0x2c | (252 << 8) | (0x100 << 12));    // 252:300
		if (!of_pool && std::string(head->name) != ORIGIN)
			return ENXIO;
		if (request == DM_TABLE_STATUS) {
			answer(head, of_pool ? "thin-pool" : "thin", of_pool ? pool : head->flags & DM_STATUS_TABLE_FLAG ? table : "2048 4095");
			return 0;
		}
		std::string call = head->flags & DM_SUSPEND_FLAG ? "suspend" : "resume";
		if (request == DM_TARGET_MSG)
			call = reinterpret_cast<dm_target_msg *>(reinterpret_cast<char *>(head) + head->data_start)->message;
		if (of_pool != (request == DM_TARGET_MSG))
			return EINVAL;
		if (before)
			before(call);
		calls.push_back(call);
		if (auto f = fails.find(call); f != fails.end())
			return f->second;
		if (request == DM_DEV_SUSPEND)
			suspended = call == "suspend";
		return 0;
	}

	DmCall call()
	{
		return [this](unsigned long request, void *buffer) { return take(request, static_cast<dm_ioctl *>(buffer)); };
	}
	Done snapshot() { return thin_snapshot(call(), folder, ORIGIN, 9); }
};

using Calls = std::vector<std::string>;

}    // namespace

TEST_CASE("a snapshot of a thin volume is made while that is suspended, which is written down before")
{
	FakeDm dm;
	bool noted = false;
	dm.before = [&](const std::string &call) { noted = noted || (call == "suspend" && dm.noted()); };
	REQUIRE(dm.snapshot());
	CHECK(dm.calls == Calls{"suspend", "create_snap 9 7", "resume"});
	CHECK(noted);
	CHECK_FALSE(dm.noted());
	CHECK_FALSE(dm.suspended);
	dm.fails["create_snap 9 7"] = EEXIST;    // by a daemon that did not come to tell
	CHECK(dm.snapshot());
	CHECK_FALSE(dm.suspended);
}

TEST_CASE("whatever fails of it, the volume is not left suspended, and one line says why")
{
	FakeDm dm;
	SECTION("the kernel refuses")
	{
		dm.fails["create_snap 9 7"] = EOPNOTSUPP;
		CHECK(dm.snapshot().error().message == "device-mapper cannot \"create_snap 9 7\" in thin pool 252:300: Operation not supported");
		CHECK(dm.calls == Calls{"suspend", "create_snap 9 7", "resume"});
	}
	SECTION("it is not suspended")
	{
		dm.fails["suspend"] = EINTR;
		CHECK(dm.snapshot().error().message == "device-mapper cannot suspend vg-lockstep.1: Interrupted system call");
		CHECK(dm.calls == Calls{"suspend"});
	}
	SECTION("the pool could not write it down")
	{
		dm.before = [&](const std::string &call) { dm.pool = call == "resume" ? "1 40/1024 7/100 - ro discard_passdown queue_if_no_space needs_check 1024 " : dm.pool; };
		CHECK(dm.snapshot().error().message == "the thin pool of vg-lockstep.1 needs a check");
	}
	for (const auto &[status, why] : std::map<std::string, std::string>{{"Fail", "is broken"}, {"1 2/3 4/5 - out_of_data_space x y - 1", "is full"},
									    {"1 2/3 4/5 - ro x y - 1", "is read-only"}})
		DYNAMIC_SECTION("the pool " << why)
		{
			dm.pool = status;
			CHECK(dm.snapshot().error().message == "the thin pool of vg-lockstep.1 " + why);
			CHECK(thin_delete(dm.call(), ORIGIN, 9).error().message == "the thin pool of vg-lockstep.1 " + why);
			CHECK(dm.calls.empty());
		}
	SECTION("somebody else has suspended it")
	{
		dm.suspended = true;
		CHECK(dm.snapshot().error().message == "device vg-lockstep.1 is suspended by somebody else: `dmsetup resume vg-lockstep.1` if that is over");
		CHECK(dm.calls.empty());
		dm.suspended = false;
	}
	CHECK_FALSE(dm.suspended);
	CHECK_FALSE(dm.noted());
}

TEST_CASE("what a daemon left suspended the next one resumes, and nothing else")
{
	FakeDm dm;
	CHECK(resume_suspended(dm.call(), dm.folder).empty());    // none ever was
	struct Killed {};
	dm.before = [](const std::string &call) {
		if (call.starts_with("create_snap"))
			throw Killed{};
	};
	CHECK_THROWS_AS(dm.snapshot(), Killed);
	REQUIRE((dm.suspended && dm.noted()));
	SECTION("at once")
	{
		CHECK(resume_suspended(dm.call(), dm.folder).empty());
		CHECK_FALSE(dm.suspended);
		CHECK_FALSE(dm.noted());
	}
	SECTION("it says what it cannot, and another time it can")
	{
		dm.fails["resume"] = ENOMEM;
		const auto failures = resume_suspended(dm.call(), dm.folder);
		REQUIRE(failures.size() == 1);
		CHECK(failures[0] == "vg-lockstep.1 is suspended, its reads and writes wait: `dmsetup resume vg-lockstep.1` (resuming it failed: Cannot allocate memory)");
		CHECK(dm.noted());
		dm.fails.clear();
		CHECK(resume_suspended(dm.call(), dm.folder).empty());
		CHECK_FALSE(dm.suspended);
	}
	SECTION("one that was resumed already, and one that is gone")
	{
		dm.suspended = false;
		std::ofstream(dm.folder + "/vg-lockstep.2");
		dm.calls.clear();
		CHECK(resume_suspended(dm.call(), dm.folder).empty());
		CHECK(dm.calls.empty());
		CHECK(std::filesystem::is_empty(dm.folder));
	}
}

TEST_CASE("what says that a volume is suspended is in a folder that no unit owns; what daemons of before left in theirs counts")
{
	for (const std::string folder : {SUSPENDED_FOLDER, TAKEN_FOLDER}) {
		CHECK(folder.starts_with(std::string(WITNESS_FOLDER) + "/"));
		CHECK_FALSE(folder.starts_with(std::string(WITNESS_FOLDER_BEFORE) + "/"));    // which is that of the socket
	}
	FakeDm dm;
	const std::string before = dm.top + "/before", now = dm.top + "/dm";
	CHECK(take_over_witnesses(dm.call(), before, now).empty());
	CHECK_FALSE(std::filesystem::exists(now));
	for (const char *folder : {"/suspended", "/taken"}) {
		std::filesystem::create_directories(before + folder);
		std::ofstream(before + folder + "/" + ORIGIN);
	}
	std::ofstream(before + "/taken/vg-lockstep.2");    // is gone
	dm.suspended = true;
	CHECK(take_over_witnesses(dm.call(), before, now).empty());
	CHECK(std::filesystem::is_empty(before + "/suspended"));
	CHECK(std::filesystem::is_empty(before + "/taken"));
	CHECK(std::filesystem::exists(now + "/taken/" + ORIGIN));
	CHECK_FALSE(std::filesystem::exists(now + "/taken/vg-lockstep.2"));
	std::ifstream file(now + "/taken/" + ORIGIN);
	CHECK(std::string(std::istreambuf_iterator<char>(file), {}) == "LVM-thin");
	CHECK(std::filesystem::status(now).permissions() == std::filesystem::perms::owner_all);
	CHECK(dm.calls.empty());
	CHECK(resume_suspended(dm.call(), now + "/suspended").empty());
	CHECK_FALSE(dm.suspended);
}

TEST_CASE("the number of a prepared snapshot is given up, but never that of the replica")
{
	FakeDm dm;
	CHECK(thin_delete(dm.call(), ORIGIN, 9));
	CHECK(dm.calls == Calls{"delete 9"});
	dm.fails["delete 9"] = ENODATA;    // given up already
	CHECK(thin_delete(dm.call(), ORIGIN, 9));
	dm.fails["delete 9"] = EBUSY;
	CHECK(thin_delete(dm.call(), ORIGIN, 9).error().message == "device-mapper cannot \"delete 9\" in thin pool 252:300: Device or resource busy");
	dm.calls.clear();
	CHECK(thin_delete(dm.call(), ORIGIN, 7).error().message == "device vg-lockstep.1 itself has the number 7");
	CHECK(dm.calls.empty());
	const Done absent = thin_delete(dm.call(), "vg-lockstep.2", 9);
	CHECK(absent.error().status == Status::not_found);
}

namespace {

// A classic snapshot; its store is a file.
struct FakeThick {
	std::string top = std::filesystem::temp_directory_path() / ("lockstep-thick-test." + std::to_string(getpid()));
	std::string suspended_folder = top + "/suspended", taken = top + "/taken";
	ThickSnapshot s = {"vg-lockstep.1", "vg-lockstep.1.s3.1", top + "/cow"};
	const DmTarget ORIGINAL = {.type = "snapshot", .text = "252:5 252:9 P 8", .sectors = 2048};
	DmTarget live = ORIGINAL, waiting;
	std::string uuid = "LVM-one";
	bool suspended = false;
	Calls calls;
	std::string fails;
	std::string store() const
	{
		std::ifstream in(s.cow, std::ios::binary);
		return {std::istreambuf_iterator<char>(in), {}};
	}

	FakeThick()
	{
		std::filesystem::create_directories(top);
		std::ofstream(s.cow, std::ios::binary) << std::string(16384, 'x');
	}
	~FakeThick() { std::filesystem::remove_all(top); }

	int take(unsigned long request, dm_ioctl *head)
	{
		char *at = reinterpret_cast<char *>(head) + head->data_start;
		dm_target_spec spec = {};
		const bool of_origin = head->name == s.origin;
		std::string call;
		if (request == DM_TABLE_STATUS) {
			const DmTarget t = of_origin ? DmTarget{.type = "snapshot-origin", .text = "252:5"} : live;
			t.type.copy(spec.target_type, sizeof spec.target_type - 1);
			spec.length = t.sectors;
			memcpy(at, &spec, sizeof spec);
			strcpy(at + sizeof spec, t.text.c_str());
			head->target_count = 1;
			strcpy(head->uuid, of_origin ? "LVM-origin" : uuid.c_str());
			head->flags = of_origin && suspended ? uint32_t(DM_SUSPEND_FLAG) : 0;
			return 0;
		}
		if (request == DM_TABLE_LOAD) {
			memcpy(&spec, at, sizeof spec);
			waiting = {.type = spec.target_type, .text = at + sizeof spec, .sectors = spec.length};
			call = "load " + waiting.type;
			// The kernel reads the store's head when the table of a snapshot is loaded.
			if (waiting.type == "snapshot" && (!suspended || live.type != "error" || store().substr(0, 8192) != std::string(8192, '\0')))
				call += " with what it had";
		} else {
			call = of_origin ? (head->flags & DM_SUSPEND_FLAG ? "suspend" : "resume") : "switch";
		}
		calls.push_back(call);
		if (call == fails)
			return EIO;
		if (call == "switch")
			live = waiting;
		else if (of_origin)
			suspended = call == "suspend";
		return 0;
	}
	Done snapshot()
	{
		return thick_snapshot([this](unsigned long request, void *buffer) { return take(request, static_cast<dm_ioctl *>(buffer)); }, suspended_folder,
				      taken, s);
	}
};

}    // namespace

TEST_CASE("a classic snapshot is emptied while its origin is suspended, and only once")
{
	FakeThick dm;
	REQUIRE(dm.snapshot());
	CHECK(dm.calls == Calls{"suspend", "load error", "switch", "load snapshot", "switch", "resume"});
	CHECK(dm.live == dm.ORIGINAL);
	CHECK_FALSE(dm.suspended);
	CHECK(dm.store() == std::string(8192, '\0') + std::string(8192, 'x'));
	CHECK(std::filesystem::is_empty(dm.suspended_folder));
	dm.calls.clear();
	CHECK(dm.snapshot());    // whoever asked does not know: writes may go on by now
	CHECK(dm.calls.empty());
	forget_taken(dm.taken, dm.s.snapshot);
	CHECK(std::filesystem::is_empty(dm.taken));
}

TEST_CASE("that another classic snapshot of the same name was taken says nothing of this one")
{
	FakeThick dm;
	REQUIRE(dm.snapshot());
	const Calls calls = dm.calls;
	for (const char *uuid : {"LVM-two", "LVM-on", "LVM-one2"}) {
		dm.uuid = uuid;    // of a cluster that gives out the same ids
		dm.calls.clear();
		REQUIRE(dm.snapshot());
		CHECK(dm.calls == calls);
		dm.calls.clear();
		CHECK(dm.snapshot());
		CHECK(dm.calls.empty());
	}
	std::ofstream(dm.taken + "/" + dm.s.snapshot);    // cut short, or of before it held anything
	CHECK(dm.snapshot());
	CHECK(dm.calls == calls);
}

TEST_CASE("a classic snapshot that cannot be emptied is not taken, and its origin goes on")
{
	FakeThick dm;
	SECTION("the kernel fails")
	{
		dm.fails = GENERATE("load error", "switch", "load snapshot");
		CHECK_FALSE(dm.snapshot());
		CHECK(dm.calls.back() == "resume");
		dm.fails.clear();
	}
	SECTION("its store cannot be written")
	{
		std::filesystem::remove(dm.s.cow);
		CHECK(dm.snapshot().error().message == "cannot write to " + dm.s.cow + ": No such file or directory");
		CHECK(dm.calls.back() == "resume");
		// What a daemon before this one left half done is no snapshot of anything.
		CHECK(dm.snapshot().error().message == "device vg-lockstep.1.s3.1 is of type error, not snapshot");
	}
	SECTION("it is another thing")
	{
		dm.live.text = GENERATE("252:5 252:9 N 8", "252:5 252:9", "252:5 252:9 P x", "252:5 252:9 P 99999999");
		CHECK(dm.snapshot().error().message == "device vg-lockstep.1.s3.1 is no lasting snapshot: " + dm.live.text);
		CHECK(dm.calls.empty());
	}
	CHECK_FALSE(dm.suspended);
	CHECK_FALSE(std::filesystem::exists(dm.taken));
}

TEST_CASE("a device is flushed without being open for writing; one that is not there, or cannot be, is told")
{
	FakeThick dm;
	std::filesystem::permissions(dm.s.cow, std::filesystem::perms::owner_read);
	CHECK(flush_device(dm.s.cow));
	CHECK(flush_device(dm.top + "/none").error().message == "what was written to " + dm.top + "/none cannot be made to last: No such file or directory");
	CHECK(flush_device("/dev/null").error().message == "what was written to /dev/null cannot be made to last: Invalid argument");
}

TEST_CASE("tables of thin volumes")
{
	CHECK(*parse_thin_table("252:3 17") == ThinVolume{"252:3", 17});
	for (const char *text : {"", "252:3", "252 17", "252:3 x", "252:3 17 252:9", "a:3 17", ":3 17", "252: 17", "252:3 -1", "252:3 99999999999999999999"})
		CHECK_FALSE(parse_thin_table(text));
	CHECK(thin_pool_trouble("7 116/1024 21/160 - rw discard_passdown queue_if_no_space - 1024 ").empty());
	CHECK(thin_pool_trouble("7 116/1024 21/160 - rw discard_passdown queue_if_no_space needs_check 1024 ") == "needs a check");
	CHECK(thin_pool_trouble("Error") == "is broken");
}
