// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep: the command line of a Lockstep cluster. Any host answers any command.
#include "lockstep/cli.h"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iostream>

int main(int argc, char **argv)
{
	std::signal(SIGPIPE, SIG_DFL);    // `lockstep status | head` ends quietly
	lockstep::cli::Context context{std::cout, std::cerr};
	context.is_root = geteuid() == 0;
	context.terminal = isatty(STDOUT_FILENO);
	context.now_ms = [] {
		using namespace std::chrono;
		return uint64_t(duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count());
	};
	context.start_daemon = lockstep::cli::start_daemon_by_systemd;
	if (const char *socket = std::getenv("LOCKSTEP_SOCKET"))
		context.socket = socket;
	return lockstep::cli::run(std::vector<std::string>(argv + 1, argv + argc), context);
}
