// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep down: takes volumes out of this host's kernel, for unloading the module or for a host that is to be shut down with its
// peers dead. It talks to the kernel alone and waits for nobody but this host's disks: neither for peers nor for quorum. The
// daemon would bring everything up again, which is also how it is undone: `lockstep up` (up.cc).
//
// A device that is open is left alone. With --force the replica goes first, so that whatever is under way or comes later fails,
// and the device when its openers have closed it.
#include "lockstep/down.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <thread>

namespace lockstep::cli {

namespace {

constexpr uint64_t CLOSE_WAIT_MS = 10000;    // for openers whose requests have failed
constexpr uint64_t CLOSE_POLL_MS = 200;

// The volume as it is now; nullopt: the kernel has it no more.
Result<std::optional<KernelVolume>> look(const Kernel &kernel, uint32_t vid)
{
	Result<KernelDump> dump = kernel.dump();
	if (!dump)
		return dump.error();
	const KernelVolume *v = dump->volume(vid);
	return v ? std::optional(*v) : std::nullopt;
}

// Fails what the openers wait for until they have closed the device.
Done make_close(const Kernel &kernel, const DownClock &clock, const KernelVolume &v)
{
	const uint64_t deadline = clock.now_ms() + CLOSE_WAIT_MS;
	for (;;) {
		const Result<std::optional<KernelVolume>> now = look(kernel, v.vid);
		if (!now)
			return now.error();
		if (!*now || !((*now)->openers || (*now)->open_waiters))
			return Nothing{};
		if (Done done = kernel.abort(v.vid); !done)
			return done;
		if (clock.now_ms() >= deadline)
			return failed(fmt::format("volume {} has lost its replica on this host and its requests fail, but its device is still open: end "
						  "the processes in /sys/kernel/debug/lockstep/volumes/{}/openers, then repeat this command",
						  v.name, v.name));
		clock.sleep_ms(CLOSE_POLL_MS);
	}
}

Done take_down_one(const Kernel &kernel, const DownClock &clock, const KernelVolume &v, bool force)
{
	const bool open = v.openers || v.open_waiters;
	if (open && !force)
		return forbidden(fmt::format("volume {} is open on this host: close {} first, or take it down with --force, which fails its "
					     "requests", v.name, "/dev/lockstep/" + v.name));
	if (open) {
		if (Done done = kernel.replica_detach(v.vid); !done)
			return done;
		if (Done done = make_close(kernel, clock, v); !done)
			return done;
	}
	for (const auto &step : {kernel.device_del, kernel.replica_detach, kernel.volume_del})
		if (Done done = step(v.vid); !done)
			return done;
	return Nothing{};
}

}    // namespace

Done take_down(Context &context, const Kernel &kernel, const DownClock &clock, const std::string &volume, bool force)
{
	Result<KernelDump> dump = kernel.dump();
	if (!dump)
		return dump.error();
	Done result = Nothing{};
	bool found = false;
	json down = json::array();
	for (const auto &[vid, v] : dump->volumes) {
		if (!volume.empty() && v.name != volume)
			continue;
		found = true;
		Done done = take_down_one(kernel, clock, v, force);
		if (done)
			down.push_back(v.name);
		if (done && !context.as_json)
			context.out << fmt::format("volume {} is down on this host\n", v.name);
		if (done)
			continue;
		if (result)
			result = done;
		else    // the first one is what the command ends with
			context.err << "lockstep: " << done.error().message << "\n";
	}
	if (!volume.empty() && !found)
		return not_found("this host's kernel has no volume named " + volume);
	if (context.as_json)
		print_json(context, {{"down", down}});
	if (!volume.empty() || !result)
		return result;
	for (const auto &[host, peer] : dump->peers)
		if (Done done = kernel.peer_del(host); !done)
			return done;
	if (!context.as_json)
		context.out << "nothing of Lockstep is up on this host: `modprobe -r lockstep` unloads the module, `lockstep up` brings all back\n";
	return Nothing{};
}

void add_down(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string volume;
		bool force = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *down = app.add_subcommand("down", "Take volumes out of this host's kernel while lockstepd is stopped; needs no other host");
	down->add_option("VOLUME", o->volume, "Name of the volume (default: all, and the links to other hosts)");
	down->add_flag("--force", o->force, "Also what is open: whoever has it open gets I/O errors");
	down->callback([=, &context, &action] {
		action = [=, &context]() -> Done {
			const Result<json> status = context.client().get("/v1/status");
			if (status || status.error().code != "no-daemon")    // it may be there and not answer
				return forbidden("lockstepd runs on this host and would bring it up again: stop it first, with `systemctl stop lockstepd`");
			using namespace std::chrono;
			const DownClock clock = {
				[] { return uint64_t(duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count()); },
				[](uint64_t ms) { std::this_thread::sleep_for(milliseconds(ms)); },
			};
			return take_down(context, kernel_over_netlink("this one"), clock, o->volume, o->force);
		};
	});
}

}    // namespace lockstep::cli
