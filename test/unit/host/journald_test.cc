// SPDX-License-Identifier: GPL-2.0-or-later
//
// A real systemd-journald, in a mount namespace with a /run of its own, and a real daemon whose standard error it reads, as under
// systemd.
#include <catch2/catch_test_macros.hpp>

#include <arpa/inet.h>
#include <csignal>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include <fmt/format.h>

#include "lib/client.h"
#include "lockstepd/host/daemon.h"

namespace lockstep::test::journald {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char *JOURNALD = "/lib/systemd/systemd-journald", *STREAM = "/run/systemd/journal/stdout";

static bool wait(const std::function<bool()> &holds, int seconds = 20)
{
	const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
	while (!holds()) {
		if (std::chrono::steady_clock::now() > end)
			return false;
		std::this_thread::sleep_for(std::chrono::milliseconds(20));
	}
	return true;
}

static void end(pid_t &pid)
{
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, nullptr, 0);
	}
	pid = 0;
}

static std::string output_of(const std::string &command)
{
	std::string text;
	FILE *pipe = popen(command.c_str(), "r");
	REQUIRE(pipe);
	for (int c; (c = fgetc(pipe)) != EOF;)
		text += char(c);
	pclose(pipe);
	return text;
}

struct Journald {
	Journald()
	{
		char name[] = "/tmp/lockstep-unit-XXXXXX";
		REQUIRE(mkdtemp(name));
		dir = name;
		place = fork();
		REQUIRE(place >= 0);
		if (place == 0) {    // holds the namespace
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (unshare(CLONE_NEWNS) || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) || mount("run", "/run", "tmpfs", 0, nullptr))
				_exit(1);
			fs::create_directories("/run/systemd/journal");
			fs::create_directories("/run/systemd/journald.conf.d");
			std::ofstream("/run/systemd/journald.conf.d/test.conf") << "[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nForwardToConsole=no\n";
			std::ofstream("/run/ready").close();
			for (;;)
				pause();
		}
		const bool ready = wait([&] { return fs::exists(root() + "/run/ready"); });
		REQUIRE(ready);
		start();
	}

	~Journald()
	{
		end(daemon);
		end(journald);
		end(place);
		std::error_code ignored;
		fs::remove_all(dir, ignored);
	}

	std::string root() const { return fmt::format("/proc/{}/root", place); }

	// On a child's side.
	void enter() const
	{
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close_range(3, ~0u, 0);
		const int ns = open(fmt::format("/proc/{}/ns/mnt", place).c_str(), O_RDONLY | O_CLOEXEC);
		if (ns < 0 || setns(ns, CLONE_NEWNS))
			_exit(1);
		close(ns);
	}

	void start()
	{
		journald = fork();
		REQUIRE(journald >= 0);
		if (journald == 0) {
			enter();
			execl(JOURNALD, JOURNALD, nullptr);
			_exit(1);
		}
		// As who connects sees it: a file of a journald before is no socket that answers.
		const bool there = wait([&] {
			const int fd = connected();
			close(fd);
			return fd >= 0;
		});
		REQUIRE(there);
	}

	int connected(const std::string &from = "") const
	{
		const std::string path = (from.empty() ? root() : "") + STREAM;
		sockaddr_un a{};
		a.sun_family = AF_UNIX;
		path.copy(a.sun_path, sizeof a.sun_path - 1);
		const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (connect(fd, reinterpret_cast<sockaddr *>(&a), sizeof a) == 0)
			return fd;
		close(fd);
		return -1;
	}

	// What systemd does for a service.
	void start_daemon()
	{
		daemon = fork();
		REQUIRE(daemon >= 0);
		if (daemon == 0) {
			enter();
			const int fd = connected("inside");
			const std::string header = "lockstepd\nlockstepd.service\n6\n1\n0\n0\n0\n";
			if (fd < 0 || write(fd, header.data(), header.size()) < 0 || dup2(fd, 2) != 2)
				_exit(1);
			struct stat s;
			fstat(2, &s);
			setenv("JOURNAL_STREAM", fmt::format("{}:{}", s.st_dev, s.st_ino).c_str(), 1);
			HostConfig config;
			config.name = "alpha";
			config.addresses = {"127.0.0.1"};
			config.port = port();
			config.state_dir = dir + "/state";
			config.socket = dir + "/sock";
			config.witness = true;
			Daemon d(config);
			_exit(d.start() ? d.run() : 99);
		}
		const bool answers = wait([&] { return bool(Client(dir + "/sock").get("/v1/status")); });
		REQUIRE(answers);
	}

	static uint16_t port()
	{
		const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		sockaddr_in a{};
		a.sin_family = AF_INET;
		a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		socklen_t size = sizeof a;
		bind(fd, reinterpret_cast<sockaddr *>(&a), sizeof a);
		getsockname(fd, reinterpret_cast<sockaddr *>(&a), &size);
		close(fd);
		return ntohs(a.sin_port);
	}

	// The last entry that journalctl finds by these; null: none.
	json entry(const std::string &matches) const
	{
		std::istringstream lines(output_of(fmt::format("journalctl -D {}/run/log/journal --no-pager -q -o json {} 2>/dev/null", root(), matches)));
		json last;
		for (std::string line; std::getline(lines, line);)
			last = json::parse(line);
		return last;
	}

	json waits_for(const std::string &matches) const
	{
		json found;
		wait([&] { return !(found = entry(matches)).is_null(); });
		return found;
	}

	void change_address(const char *verb)
	{
		auto done = Client(dir + "/sock").post("/v1/hosts/alpha/net", {{"verb", verb}, {"address", "127.0.0.2"}});
		INFO((done ? "" : done.error().message));
		REQUIRE(done);
	}

	std::string dir;
	pid_t place = 0, journald = 0, daemon = 0;
};

}    // namespace lockstep::test::journald

TEST_CASE("a real journald keeps what the daemon says with its fields, and its end is not the daemon's")
{
	using namespace lockstep::test::journald;
	using lockstep::Client;
	REQUIRE(fs::exists(JOURNALD));    // of the package systemd
	Journald j;
	j.start_daemon();
	const json starts = j.waits_for("LOCKSTEP_EVENT=daemon LOCKSTEP_HOST=alpha");
	REQUIRE(starts.is_object());
	CHECK(starts["SYSLOG_IDENTIFIER"] == "lockstepd");
	CHECK(starts["_PID"] == std::to_string(j.daemon));
	CHECK(starts["_TRANSPORT"] == "journal");
	CHECK(starts["PRIORITY"] == "6");

	REQUIRE(Client(j.dir + "/sock").post("/v1/cluster/init", {{"name", "lab"}}));
	CHECK(j.waits_for("LOCKSTEP_CLUSTER=lab").is_object());
	j.change_address("add");
	const json moved = j.waits_for("LOCKSTEP_PEER=alpha LOCKSTEP_CLIENT=root");
	REQUIRE(moved.is_object());
	CHECK(moved["MESSAGE"].get<std::string>().starts_with("host alpha is now at 127.0.0.1 127.0.0.2 port "));
	CHECK(moved["MESSAGE"].get<std::string>().ends_with(" (by root on alpha)"));
	CHECK((moved["LOCKSTEP_EVENT"] == "host" && moved["LOCKSTEP_ROLE"] == "root" && moved["LOCKSTEP_ASKED_ON"] == "alpha"));
	CHECK(moved["MESSAGE_ID"] == "fc012ad3ae9844bab53b7f68cf4e383a");

	// Nobody reads standard error any more, nor the journal's socket.
	end(j.journald);
	j.change_address("remove");
	CHECK(Client(j.dir + "/sock").get("/v1/status"));
	j.start();
	j.change_address("add");
	const std::string again = "_PID=" + std::to_string(j.daemon) + " LOCKSTEP_PEER=alpha";
	CHECK(wait([&] {
		const json last = j.entry(again);
		return last.is_object() && last["__REALTIME_TIMESTAMP"].get<std::string>() > moved["__REALTIME_TIMESTAMP"].get<std::string>();
	}));
}
