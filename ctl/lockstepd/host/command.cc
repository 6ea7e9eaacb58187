// SPDX-License-Identifier: GPL-2.0-or-later
//
// The child's output is read from two pipes by poll() until both are closed and the child has ended; a pidfd makes its end
// something poll() can wait for. A child that outlives everything is remembered and reaped by a later call.
#include "lockstepd/host/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>

#include <fmt/format.h>

namespace lockstep {

namespace {

constexpr size_t OUTPUT_MAX_BYTES = 16u << 20;
constexpr uint64_t TERM_GRACE_MS = 2000;
constexpr uint64_t KILL_GRACE_MS = 1000;

struct Fd {
	int fd = -1;
	~Fd() { reset(); }
	void reset()
	{
		if (fd >= 0)
			close(fd);
		fd = -1;
	}
};

struct Pipe {
	Fd read, write;
	bool open()
	{
		int fds[2];
		if (pipe2(fds, O_CLOEXEC) < 0)
			return false;
		read.fd = fds[0];
		write.fd = fds[1];
		return true;
	}
};

// Children that SIGKILL did not end in time. Reaped when they do end, so that no zombies pile up.
std::mutex left_lock;
std::vector<pid_t> left_alone;

void reap_left_alone()
{
	std::lock_guard hold(left_lock);
	std::erase_if(left_alone, [](pid_t pid) { return waitpid(pid, nullptr, WNOHANG) == pid; });
}

uint64_t now_ms()
{
	using namespace std::chrono;
	return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

Result<pid_t> spawn(const std::vector<std::string> &argv, int out, int err)
{
	std::vector<char *> args;
	for (const std::string &arg : argv)
		args.push_back(const_cast<char *>(arg.c_str()));
	args.push_back(nullptr);

	std::vector<std::string> settings = {"LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1",
					     "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"};
	for (char **e = environ; *e; e++)
		if (strncmp(*e, "LC_", 3) && strncmp(*e, "PATH=", 5) && strncmp(*e, "LVM_SUPPRESS", 12))
			settings.emplace_back(*e);
	std::vector<char *> env;
	for (std::string &s : settings)
		env.push_back(s.data());
	env.push_back(nullptr);

	posix_spawn_file_actions_t files;
	posix_spawnattr_t attributes;
	sigset_t none, all;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attributes);
	posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&files, out, 1);
	posix_spawn_file_actions_adddup2(&files, err, 2);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawnattr_setpgroup(&attributes, 0);
	// A group of its own: Ctrl-C at the daemon's terminal must not tear an LVM command in the middle.
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
	pid_t pid = 0;
	int error = posix_spawnp(&pid, args[0], &files, &attributes, args.data(), env.data());
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attributes);
	if (error)
		return failed(fmt::format("cannot run {}: {}", argv[0], strerror(error)));
	return pid;
}

// Takes what there is; closes the pipe at its end or when it is too much.
void drain(Fd &from, std::string &into)
{
	char buffer[65536];
	ssize_t n = read(from.fd, buffer, sizeof(buffer));
	if (n > 0)
		into.append(buffer, n);
	else if (n == 0 || (errno != EINTR && errno != EAGAIN))
		from.reset();
}

// Signals pid's end to the deadlines; false: it has not ended.
bool end_child(pid_t pid, int pidfd)
{
	const struct {
		int signal;
		uint64_t grace_ms;
	} steps[] = {{SIGTERM, TERM_GRACE_MS}, {SIGKILL, KILL_GRACE_MS}};
	for (auto step : steps) {
		kill(pid, step.signal);
		pollfd p = {pidfd, POLLIN, 0};
		if (poll(&p, 1, step.grace_ms) > 0) {
			waitpid(pid, nullptr, 0);
			return true;
		}
	}
	std::lock_guard hold(left_lock);
	left_alone.push_back(pid);
	return false;
}

}    // namespace

Result<CommandOutput> run_command(const std::vector<std::string> &argv, uint64_t timeout_ms, const std::function<void(std::string_view)> &take)
{
	reap_left_alone();
	Pipe out, err;
	if (!out.open() || !err.open())
		return failed(fmt::format("cannot run {}: {}", argv[0], strerror(errno)));
	Result<pid_t> pid = spawn(argv, out.write.fd, err.write.fd);
	if (!pid)
		return pid.error();
	out.write.reset();
	err.write.reset();
	setpriority(PRIO_PROCESS, *pid, 0);    // the daemon's own is higher, see main.cc

	Fd pidfd;
	pidfd.fd = syscall(SYS_pidfd_open, *pid, 0);
	if (pidfd.fd < 0) {
		Error error = failed(fmt::format("cannot watch {}: {}", argv[0], strerror(errno)));
		kill(*pid, SIGKILL);
		waitpid(*pid, nullptr, 0);
		return error;
	}

	CommandOutput output;
	const uint64_t deadline = now_ms() + timeout_ms;
	bool ended = false;
	// A program may leave a grandchild that holds the pipes (dmeventd): its end is the end, whoever else could still write.
	while (!ended) {
		const uint64_t now = now_ms();
		if (now >= deadline || output.out.size() + output.err.size() > OUTPUT_MAX_BYTES) {
			const bool late = now >= deadline;
			const bool gone = end_child(*pid, pidfd.fd);
			return failed(fmt::format("{} {}{}", argv[0],
						  late ? fmt::format("did not end within {} s", timeout_ms / 1000)
						       : "wrote more than can be read",
						  gone ? "" : fmt::format(" and cannot be killed (process {})", *pid)));
		}
		pollfd fds[] = {{pidfd.fd, POLLIN, 0}, {out.read.fd, POLLIN, 0}, {err.read.fd, POLLIN, 0}};
		if (poll(fds, 3, std::min<uint64_t>(deadline - now, 60'000)) <= 0)
			continue;
		if (out.read.fd >= 0 && fds[1].revents)
			drain(out.read, output.out);
		if (take) {
			take(output.out);
			output.out.clear();
		}
		if (err.read.fd >= 0 && fds[2].revents)
			drain(err.read, output.err);
		ended = fds[0].revents && !(fds[1].revents & POLLIN) && !(fds[2].revents & POLLIN);
	}
	int status = 0;
	waitpid(*pid, &status, 0);
	output.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return output;
}

}    // namespace lockstep
