// SPDX-License-Identifier: GPL-2.0-or-later
//
// Which processes have a volume's device open. Blocks; for worker threads.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace lockstep {

// [{pid, command}] of this host. What the kernel itself has open (a mounted file system, device-mapper, loop) is no process and is
// told as {pid: 0, command: "kernel: ..."}.
nlohmann::json open_processes(const std::string &device);

}    // namespace lockstep
