// SPDX-License-Identifier: GPL-2.0-or-later
//
// Running a program and waiting for it, with an end to the waiting.
//
// No shell is involved: argv goes to the program as it is. Blocks; for worker threads only.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/error.h"

namespace lockstep {

struct CommandOutput {
	int exit_status = 0;    // 128 + signal if a signal ended it
	std::string out;
	std::string err;
};

// Runs argv[0] (found by PATH) with empty standard input. An Error if it could not be started or did not end within
// `timeout_ms`: it is then asked to end (SIGTERM), 2 s later killed, and if even that has no effect (a process that the kernel
// holds in a broken disk) left alone: the caller is never held longer than timeout_ms + 3 s. Output beyond 16 MiB
// counts as a failure. take: gets what it writes to its standard output as it comes, however much; then `out` stays empty.
Result<CommandOutput> run_command(const std::vector<std::string> &argv, uint64_t timeout_ms,
				  const std::function<void(std::string_view)> &take = nullptr);

}    // namespace lockstep
