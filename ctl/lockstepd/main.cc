// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstepd: one daemon a host.
//
//     host/config.h       lockstep.yaml
//     host/daemon.h       the parts and how they hang together
//       net/              the loop, the one port, links to the other daemons
//       consensus/        the log that all hosts agree on
//       cluster/          what the log means: the State; what the leader decides
//       host/reconciler.h makes the kernel and LVM agree with the State
//       host/lanes.h      the kernels' connections
//       host/kernel.h, host/lvm.h, host/metadata.h    what it acts on
//       host/membership.cc    cluster init and join
//       api/              what the command line talks to
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "lockstepd/host/config.h"
#include "lockstepd/host/daemon.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

using namespace lockstep;

namespace {

constexpr int PRIORITY = -10;

constexpr const char *USAGE = "usage: lockstepd [--config FILE] [--witness]\n"
			      "Serves this host's part of a Lockstep cluster. In the foreground; logs to standard error.\n"
			      "  --config FILE    default: /etc/lockstep/lockstep.yaml\n"
			      "  --witness        a vote only: no pools, no devices, no kernel module; as `witness: true` in the file\n";

int complain(const Error &error)
{
	fprintf(stderr, "lockstepd: %s\n", error.message.c_str());
	return int(error.status);
}

}    // namespace

int main(int argc, char **argv)
{
	std::string path = CONFIG_PATH;
	bool witness = false;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help")) {
			fputs(USAGE, stdout);
			return 0;
		}
		if (!strcmp(argv[i], "--witness")) {
			witness = true;
			continue;
		}
		if (strcmp(argv[i], "--config") || i + 1 == argc) {
			fputs(USAGE, stderr);
			return int(Status::usage);
		}
		path = argv[++i];
	}
	auto config = load_config(path);
	if (!config)
		return complain(config.error());
	config->witness = config->witness || witness;
	if (geteuid() != 0)
		return complain(failed("must run as root: it controls LVM and the kernel module"));
	signal(SIGPIPE, SIG_IGN);
	// Heartbeats decide about fail-over: a host busy with its guests, or with our LVM commands, must not seem dead.
	if (setpriority(PRIO_PROCESS, 0, PRIORITY) < 0)
		fprintf(stderr, "lockstepd: cannot raise its priority: %s\n", strerror(errno));
	// Nor one whose memory has run out: the kernel would take even this program's code from it, and it would wait for the disk at
	// each step. First what there is, as a whole; then what will come, when it is used.
	if (mlockall(MCL_CURRENT) < 0 || mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
		fprintf(stderr, "lockstepd: cannot keep its memory from being paged out: %s\n", strerror(errno));
	// Nor one that waits for itself: to get memory a task may have to write some out, to a volume that stands still until this program has
	// had its say. From Linux 5.6 on; the commands that it runs inherit it.
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0 && errno != EINVAL)
		fprintf(stderr, "lockstepd: cannot have memory without waiting for volumes: %s\n", strerror(errno));

	Daemon daemon(std::move(*config));
	if (Done started = daemon.start(); !started)
		return complain(started.error());
	return daemon.run();
}
