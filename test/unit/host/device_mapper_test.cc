// SPDX-License-Identifier: GPL-2.0-or-later
//
// Snapshots of thin volumes by device-mapper alone, with a kernel that is played: what is asked of it, in which order, and that a volume does
// not stay suspended.
#include <catch2/catch_test_macros.hpp>
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
	std::string folder = std::filesystem::temp_directory_path() / ("lockstep-dm-test." + std::to_string(getpid()));
	std::string table = "252:300 7", pool = "1 40/1024 7/100 - rw discard_passdown queue_if_no_space - 1024 ";
	bool suspended = false;
	std::vector<std::string> calls;
	std::map<std::string, int> fails;                  // call -> errno
	std::function<void(const std::string &)> before;

	~FakeDm() { std::filesystem::remove_all(folder); }

	bool noted() const { return std::filesystem::exists(folder + "/" + ORIGIN); }

	void answer(dm_ioctl *head, const char *type, const std::string &text)
	{
		char *at = reinterpret_cast<char *>(head) + head->data_start;
		dm_target_spec spec = {};
		strcpy(spec.target_type, type);
		memcpy(at, &spec, sizeof spec);
		strcpy(at + sizeof spec, text.c_str());
		head->target_count = 1;
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

TEST_CASE("tables of thin volumes")
{
	CHECK(*parse_thin_table("252:3 17") == ThinVolume{"252:3", 17});
	for (const char *text : {"", "252:3", "252 17", "252:3 x", "252:3 17 252:9", "a:3 17", ":3 17", "252: 17", "252:3 -1", "252:3 99999999999999999999"})
		CHECK_FALSE(parse_thin_table(text));
	CHECK(thin_pool_trouble("7 116/1024 21/160 - rw discard_passdown queue_if_no_space - 1024 ").empty());
	CHECK(thin_pool_trouble("7 116/1024 21/160 - rw discard_passdown queue_if_no_space needs_check 1024 ") == "needs a check");
	CHECK(thin_pool_trouble("Error") == "is broken");
}
