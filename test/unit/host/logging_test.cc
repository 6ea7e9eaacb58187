// SPDX-License-Identifier: GPL-2.0-or-later
//
// Log lines: with fields to journald when it reads our standard error, else plain.
#include <catch2/catch_test_macros.hpp>

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include <fmt/format.h>

#include "lockstepd/host/asked.h"
#include "lockstepd/host/logging.h"

using namespace lockstep;

namespace {

// A journald that keeps what it is sent, and a pipe in place of standard error.
struct Journal {
	Journal()
	{
		char name[] = "/tmp/lockstep-unit-XXXXXX";
		REQUIRE(mkdtemp(name));
		dir = name;
		path = dir + "/socket";
		sockaddr_un a{};
		a.sun_family = AF_UNIX;
		path.copy(a.sun_path, sizeof a.sun_path - 1);
		fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		REQUIRE(bind(fd, reinterpret_cast<sockaddr *>(&a), sizeof a) == 0);
		REQUIRE(pipe(error) == 0);
		struct stat s;
		REQUIRE(fstat(error[1], &s) == 0);
		stream = fmt::format("{}:{}", s.st_dev, s.st_ino);
	}
	~Journal()
	{
		end();
		rmdir(dir.c_str());
		close(error[0]);
		close(error[1]);
	}
	void end()
	{
		if (fd >= 0)
			close(fd);
		fd = -1;
		unlink(path.c_str());
	}

	// The fields of the next entry, parsed as journald does.
	std::map<std::string, std::string> next()
	{
		char buffer[65536];
		const ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
		REQUIRE(n > 0);
		const std::string entry(buffer, size_t(n));
		std::map<std::string, std::string> fields;
		for (size_t at = 0; at < entry.size();) {
			const size_t end = entry.find('\n', at), equals = entry.find('=', at);
			REQUIRE(end != entry.npos);
			if (equals < end) {
				fields[entry.substr(at, equals - at)] = entry.substr(equals + 1, end - equals - 1);
				at = end + 1;
				continue;
			}
			uint64_t length = 0;
			for (size_t i = 0; i < 8; i++)
				length |= uint64_t(uint8_t(entry[end + 1 + i])) << (8 * i);
			fields[entry.substr(at, end - at)] = entry.substr(end + 9, length);
			REQUIRE(entry[end + 9 + length] == '\n');
			at = end + 10 + length;
		}
		return fields;
	}

	std::string plain()
	{
		char buffer[131072];
		const ssize_t n = ::read(error[0], buffer, sizeof buffer);
		return std::string(buffer, size_t(n > 0 ? n : 0));
	}

	std::string dir, path, stream;
	int fd = -1, error[2];
};

}    // namespace

TEST_CASE("log lines go to journald with fields that say what they are about")
{
	Journal j;
	const LogSink log("alpha", j.stream.c_str(), j.error[1], j.path);
	REQUIRE(log.to_journal());
	log.write("volume v1: is degraded", "volume", "v1");
	auto f = j.next();
	CHECK((f["MESSAGE"] == "volume v1: is degraded" && f["LOCKSTEP_EVENT"] == "volume" && f["LOCKSTEP_VOLUME"] == "v1" && f["LOCKSTEP_HOST"] == "alpha"));
	CHECK((f["PRIORITY"] == "6" && f["SYSLOG_IDENTIFIER"] == "lockstepd" && f["MESSAGE_ID"].size() == 32));
	const std::string id = f["MESSAGE_ID"];
	log.write("host beta is offline", "host", "beta");
	f = j.next();
	CHECK((f["LOCKSTEP_PEER"] == "beta" && f["LOCKSTEP_HOST"] == "alpha" && !f.contains("LOCKSTEP_VOLUME") && f["MESSAGE_ID"] != id));
	CHECK_FALSE(f.contains("LOCKSTEP_CLIENT"));
	const Asker asker = {"backup", "admin", "beta"};
	log.write("volume v1: is gone", "volume", "v1", &asker);
	f = j.next();
	CHECK((f["LOCKSTEP_CLIENT"] == "backup" && f["LOCKSTEP_ROLE"] == "admin" && f["LOCKSTEP_ASKED_ON"] == "beta" && f["LOCKSTEP_HOST"] == "alpha"));
	log.write("it starts");
	f = j.next();
	CHECK((f["LOCKSTEP_EVENT"] == "daemon" && f["MESSAGE_ID"].size() == 32));
	// What a message holds makes no field.
	log.write("one\nPRIORITY=0\nLOCKSTEP_HOST=evil", "volume", "v\n1");
	f = j.next();
	CHECK((f["MESSAGE"] == "one\nPRIORITY=0\nLOCKSTEP_HOST=evil" && f["PRIORITY"] == "6" && f["LOCKSTEP_HOST"] == "alpha" && f["LOCKSTEP_VOLUME"] == "v\n1"));
}

TEST_CASE("log lines are plain where no journald reads them, and where it takes none")
{
	Journal j;
	const LogSink log("alpha", j.stream.c_str(), j.error[1], j.path);
	j.end();
	log.write("host beta is offline", "host", "beta");
	const std::string text = j.plain();
	CHECK((text.size() == 24 + 1 + 21 && text.ends_with("Z host beta is offline\n")));
	for (const char *other : {static_cast<const char *>(nullptr), "", "1:2"}) {
		const LogSink plain("alpha", other, j.error[1], j.path);
		CHECK_FALSE(plain.to_journal());
		plain.write("one");
		CHECK(j.plain().ends_with("Z one\n"));
	}
}

TEST_CASE("a journald that does not keep up holds nothing up: the line is plain")
{
	Journal j;
	const LogSink log("alpha", j.stream.c_str(), j.error[1], j.path);
	const auto plain = [&] {
		pollfd p = {j.error[0], POLLIN, 0};
		return poll(&p, 1, 0) > 0;
	};
	// It reads nothing: its queue is full sooner or later.
	const std::string line = "it says " + std::string(30000, 'x');
	for (int n = 0; n < 1000 && !plain(); n++)
		log.write(line);
	REQUIRE(plain());
	CHECK(j.plain().ends_with(line + "\n"));
}

TEST_CASE("what a log line is about stands at its beginning")
{
	using Subject = std::pair<std::string_view, std::string_view>;
	CHECK(subject_of("volume v1: works again") == Subject{"volume", "v1"});
	CHECK(subject_of("pool default: disk /dev/sdb is empty") == Subject{"pool", "default"});
	CHECK(subject_of("host beta: is offline") == Subject{"host", "beta"});
	for (const char *line : {"volume group vg of host beta lacks a disk", "volume", "volume ", "volume :", "volumes a: b", "link to beta is up", "", "host beta"}) {
		INFO(line);
		CHECK(subject_of(line) == Subject{"daemon", ""});
	}
}

TEST_CASE("docs/logs.md has the message id of each kind of event")
{
	const auto root = std::filesystem::path(__FILE__).is_absolute() ? std::filesystem::path(__FILE__).parent_path() / "../../.." : std::filesystem::path(".");
	std::stringstream text;
	text << std::ifstream(root / "docs/logs.md").rdbuf();
	for (const char *kind : {"cluster", "host", "pool", "volume", "snapshot", "daemon"}) {
		const std::string entry = journal_entry("alpha", "x", kind, "y");
		const size_t at = entry.find("MESSAGE_ID=");
		REQUIRE(at != entry.npos);
		CHECK(text.str().find(fmt::format("{:<8} {}", kind, entry.substr(at + 11, 32))) != std::string::npos);
	}
}
