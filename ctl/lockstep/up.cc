// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep up|adjust. What a host is to have stands in the cluster's log, and its daemon sees to it without being asked. `adjust` has
// it compare at once, retry what has failed, and tell what differed; `up` undoes `down`: it starts the daemon if need be, and
// does the same.
#include "lockstep/cli.h"

#include <fmt/format.h>

#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <spawn.h>
#include <thread>

extern char **environ;

namespace lockstep::cli {

namespace {

constexpr uint64_t START_TIMEOUT_MS = 30'000;
constexpr auto START_PERIOD = std::chrono::milliseconds(200);

std::string line_of(const json &d, const char *otherwise)
{
	const std::string about = d["volume"].is_null() ? shown(d["what"]) : "volume " + shown(d["volume"]) + ": " + shown(d["what"]);
	return about + (shown(d["error"]) == "-" ? otherwise : ": " + shown(d["error"]));
}

Done adjust(Context &context, const std::string &volume)
{
	json body = json::object();
	if (!volume.empty() && volume != "all")
		body["volume"] = volume;
	Result<json> answer = context.client().post("/v1/adjust", body);
	if (!answer)
		return answer.error();
	const json &left = (*answer)["left"];
	std::string text;
	for (const json &d : (*answer)["differed"]) {
		const bool stays = std::any_of(left.begin(), left.end(), [&](const json &l) { return l["volume"] == d["volume"]; });
		text += "  " + line_of(d, "") + (stays ? "" : ": done") + "\n";
	}
	for (const json &l : left)
		text += "  ! still: " + line_of(l, "") + "\n";
	if (text.empty())
		text = fmt::format("nothing differs on host {}\n", shown((*answer)["host"]));
	(void)told(context, *answer, text);
	if (left.empty())
		return Nothing{};
	return failed(fmt::format("host {}: {}; it goes on by itself, see the log of lockstepd", shown((*answer)["host"]), line_of(left[0], "")));
}

bool daemon_is_away(const Result<json> &status) { return !status && status.error().code == "no-daemon"; }

Done up(Context &context, const std::string &volume)
{
	const uint64_t end_ms = context.now_ms() + START_TIMEOUT_MS;
	Result<json> status = context.client().get("/v1/status?brief=true");
	if (daemon_is_away(status)) {
		if (!context.start_daemon)
			return status.error();
		if (Done started = context.start_daemon(); !started)
			return started;
		while (daemon_is_away(status) && context.now_ms() < end_ms) {
			std::this_thread::sleep_for(START_PERIOD);
			status = context.client().get("/v1/status?brief=true");
		}
	}
	if (!status)
		return status.error();
	// A daemon that was started a moment ago, by us or by others, has yet to hear from the cluster.
	Done done = adjust(context, volume);
	while (!done && done.error().code == "starting" && context.now_ms() < end_ms) {
		std::this_thread::sleep_for(START_PERIOD);
		done = adjust(context, volume);
	}
	return done;
}

}    // namespace

Done start_daemon_by_systemd()
{
	const char *args[] = {"systemctl", "start", "lockstepd", nullptr};
	pid_t pid = 0;
	int status = 0;
	if (int error = posix_spawnp(&pid, args[0], nullptr, nullptr, const_cast<char **>(args), environ))
		return failed(std::string("lockstepd does not run on this host, and systemctl cannot be started: ") + std::strerror(error));
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return failed("lockstepd could not be started: see `journalctl -u lockstepd`");
	return Nothing{};
}

void add_up(CLI::App &app, Context &context, Action &action)
{
	auto volume = std::make_shared<std::string>();
	auto command = [&](const char *name, const char *what, Done (*run)(Context &, const std::string &)) {
		CLI::App *c = app.add_subcommand(name, what);
		c->add_option("VOLUME", *volume, "Name of the volume (default: all)");
		c->callback([=, &context, &action] { action = [=, &context] { return run(context, *volume); }; });
	};
	command("up", "Undo `lockstep down`: start lockstepd if it does not run, and have all there that this host is to have", up);
	command("adjust", "Compare what this host has with what it is to have, try again what failed, and tell", adjust);
}

}    // namespace lockstep::cli
