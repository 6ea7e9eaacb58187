// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep primary|secondary|openers|verify|resize|suspend-io|resume-io, volume resize|set: volumes in use.
#include "lockstep/progress.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>

namespace lockstep::cli {

namespace {

constexpr unsigned RESIZE_TIMEOUT_S = 150;

std::string path(const std::string &volume, const std::string &verb = "") { return "/v1/volumes/" + url_encode(volume) + verb; }

Done print_or(Context &context, const Result<json> &answer, bool as_json, const std::function<std::string(const json &)> &text)
{
	if (!answer)
		return answer.error();
	if (as_json)
		print_json(context, *answer);
	else
		context.out << text(*answer);
	return Nothing{};
}

Done role(Context &context, const std::string &volume, const char *verb, const std::string &host, bool follow, bool as_json)
{
	json body = json::object();
	if (!host.empty())
		body["host"] = host;
	if (follow)
		body["follow"] = true;
	return print_or(context, context.client().post(path(volume, verb), body), as_json, [&](const json &a) {
		return follow ? fmt::format("volume {}: its primary follows whoever opens it; now {}\n", volume, shown(a["primary"]))
			      : fmt::format("volume {} is served by {}\n", volume, a["primary"].is_null() ? "no host" : shown(a["primary"]));
	});
}

Done resize(Context &context, const std::string &volume, const std::string &size, bool as_json)
{
	Result<uint64_t> bytes = parse_size(size);
	if (!bytes)
		return bytes.error();
	return print_or(context, context.client().post(path(volume, "/resize"), {{"size_bytes", *bytes}}, RESIZE_TIMEOUT_S), as_json,
			[&](const json &) { return fmt::format("volume {} has {}\n", volume, format_bytes(*bytes)); });
}

Done set(Context &context, const std::string &volume, const std::string &no_quorum)
{
	return print_or(context, context.client().patch(path(volume), {{"no_quorum", no_quorum}}), context.as_json, [&](const json &) {
		return fmt::format("volume {}: without a quorum, what waits for a primary {}\n", volume,
				   no_quorum == "error" ? "fails with an error" : "waits until there is one");
	});
}

Done openers(Context &context, const std::string &volume, bool as_json)
{
	return print_or(context, context.client().get(path(volume, "/openers")), as_json, [&](const json &a) -> std::string {
		Table table({"HOST", "SESSION", "OPEN", "WRITING", "PROCESSES"});
		table.right(1);
		table.right(2);
		table.right(3);
		for (const json &o : a["openers"]) {
			std::string processes;
			for (const json &p : o["processes"].is_array() ? o["processes"] : json::array())
				processes += fmt::format("{}{} ({})", processes.empty() ? "" : ", ", p["pid"].get<uint64_t>(), shown(p["command"]));
			table.row({shown(o["host"]), shown(o["session"]), o["openers"].dump(), o["writers"].dump(), processes.empty() ? "-" : processes});
		}
		return table.empty() ? fmt::format("volume {} is not open anywhere\n", volume) : table.text();
	});
}

// ---- verify --------------------------------------------------------------------------------------------------------

// Until the host asked has heard from the primary's that it has begun; and, when its primary has changed, from the next one's that it
// goes on there.
constexpr std::chrono::seconds VERIFY_SHOWN{20}, VERIFY_GOES_ON{60};
const std::string SOON = "/v1/wait?index=" + std::to_string(UINT32_MAX) + "&ms=500&volume=";    // only the time is of interest

Done verify(Context &context, const std::string &volume, bool repair, bool stop, bool wait, bool as_json)
{
	json body = json::object();
	if (repair)
		body["repair"] = true;
	if (stop)
		body["stop"] = true;
	Result<json> begun = context.client().post(path(volume, "/verify"), body);
	if (!begun || stop || !wait)
		return print_or(context, begun, as_json, [&](const json &) {
			return stop ? fmt::format("volume {} is not being verified any more\n", volume)
				    : fmt::format("volume {} is being verified: see `lockstep status {}`\n", volume, volume);
		});
	Progress progress(context, "verifying " + volume);
	const json begun_ms = (*begun)["begun_ms"];
	auto give_up = std::chrono::steady_clock::now() + VERIFY_SHOWN;
	Result<json> v = context.client().get(path(volume));
	for (;;) {
		if (!v)
			return v.error();
		const json verify = (*v)["verify"];
		// The primary's host tells the others a moment after it has begun; until then they know nothing, or of an earlier one.
		if (verify.is_null() || verify.value("begun_ms", json(0)) != begun_ms) {
			if (std::chrono::steady_clock::now() > give_up)
				return failed("volume " + volume + ": nothing more is heard of its verify: it was stopped, or no host serves the volume, or "
					      "lockstepd on its primary was started again; `lockstep status " + volume + "` tells if it goes on");
			if (Result<json> status = context.client().get(SOON); !status)
				return status.error();
			v = context.client().get(path(volume));
			continue;
		}
		give_up = std::chrono::steady_clock::now() + VERIFY_GOES_ON;
		uint64_t done = verify["done_blocks"], total = verify["total_blocks"], differ = verify["differ_blocks"];
		progress.show(double(done) / double(total ? total : 1), "");
		if (done >= total) {
			progress.end();
			if (as_json)
				print_json(context, verify);
			else
				context.out << fmt::format("volume {}: {} blocks compared, {} differed{}\n", volume, total, differ,
							   differ && repair ? " and were repaired" : "");
			if (differ && !repair)
				return failed(fmt::format("volume {}: {} blocks differ between its replicas: see the log of lockstepd on its primary, "
							  "and repair with `lockstep verify {} --repair`", volume, differ, volume));
			return Nothing{};
		}
		if (Result<json> status = context.client().get(SOON); !status)
			return status.error();
		v = context.client().get(path(volume));
	}
}

Done abort_requests(Context &context, const std::string &volume, const std::string &host)
{
	json body = json::object();
	if (!host.empty())
		body["host"] = host;
	return print_or(context, context.client().post(path(volume, "/abort"), body), context.as_json, [&](const json &a) {
		std::string text = fmt::format("volume {}: what waited on {} has failed\n", volume, joined(a["hosts"]));
		if (!a["missed_hosts"].empty())
			text += fmt::format("volume {}: {} cannot be reached: run the same command there\n", volume, joined(a["missed_hosts"]));
		return text;
	});
}

Done suspend(Context &context, const std::string &volume, bool suspend, bool as_json)
{
	return print_or(context, context.client().post(path(volume, suspend ? "/suspend" : "/resume"), json::object()), as_json, [&](const json &a) {
		return suspend ? fmt::format("volume {}: writes wait, and nothing is under way, until `lockstep resume-io {}`, or until its primary on {} or "
					     "lockstepd there ends\n", volume, volume, shown(a["host"]))
			       : fmt::format("volume {}: writes go on; there was none in between\n", volume);
	});
}

}    // namespace

void add_serving(CLI::App &app, CLI::App &volume, Context &context, Action &action)
{
	struct Options {
		std::string volume, host, size, no_quorum;
		bool as_json = false, follow = false, repair = false, stop = false, no_wait = false;
	};
	auto o = std::make_shared<Options>();
	auto named = [&](CLI::App &parent, const char *verb, const char *help) {
		CLI::App *command = parent.add_subcommand(verb, help);
		command->add_option("VOLUME", o->volume, "Name of the volume")->required();
		return command;
	};
	auto json_flag = [&](CLI::App *command) { command->add_flag("--json", o->as_json, "Print JSON"); };

	CLI::App *primary = named(app, "primary", "Have a volume served by a host, without interrupting what uses it");
	primary->add_option("HOST", o->host, "Host with a replica in sync (default: this one)");
	primary->add_flag("--follow", o->follow, "Take a choice back: the primary follows whoever opens the volume");
	json_flag(primary);
	primary->callback([=, &context, &action] {
		action = [=, &context] { return role(context, o->volume, "/primary", o->host, o->follow, o->as_json); };
	});
	CLI::App *secondary = named(app, "secondary", "Have a volume served by any other host than this");
	secondary->add_option("HOST", o->host, "Host that is to serve it no more (default: this one)");
	json_flag(secondary);
	secondary->callback([=, &context, &action] {
		action = [=, &context] { return role(context, o->volume, "/secondary", o->host, false, o->as_json); };
	});
	for (auto [verb, help, what] : {std::tuple("suspend-io", "Hold the writes to a volume back, with all its replicas the same; reads go on", true),
				       std::tuple("resume-io", "Let them go on; fails if they had gone on before", false)}) {
		CLI::App *command = named(app, verb, help);
		json_flag(command);
		command->callback([=, &context, &action, what = what] { action = [=, &context] { return suspend(context, o->volume, what, o->as_json); }; });
	}
	CLI::App *openers_command = named(app, "openers", "Who has a volume open: hosts and processes");
	json_flag(openers_command);
	openers_command->callback([=, &context, &action] { action = [=, &context] { return openers(context, o->volume, o->as_json); }; });
	for (CLI::App *parent : {&app, &volume}) {
		CLI::App *command = named(*parent, "resize", "Grow a volume while it is in use");
		command->add_option("SIZE", o->size, "Its new size: 10GiB, 512MiB, or bytes; a multiple of 4096")->required();
		json_flag(command);
		command->callback([=, &context, &action] { action = [=, &context] { return resize(context, o->volume, o->size, o->as_json); }; });
	}
	CLI::App *set_command = named(volume, "set", "Change a volume while it is in use");
	set_command->add_option("--on-no-quorum", o->no_quorum, "What waits for a primary while there is no quorum: freeze or error")
		->required()
		->check(CLI::IsMember({"freeze", "error"}));
	set_command->callback([=, &context, &action] { action = [=, &context] { return set(context, o->volume, o->no_quorum); }; });
	CLI::App *verify_command = named(app, "verify", "Compare a volume's replicas block by block, while it is in use");
	verify_command->add_flag("--repair", o->repair, "Rewrite what differs with the primary's content");
	verify_command->add_flag("--stop", o->stop, "Stop one that runs");
	verify_command->add_flag("--no-wait", o->no_wait, "Return when it has begun");
	json_flag(verify_command);
	verify_command->callback([=, &context, &action] {
		action = [=, &context] { return verify(context, o->volume, o->repair, o->stop, !o->no_wait, o->as_json); };
	});
	CLI::App *abort_command = named(volume, "abort", "Fail the requests that wait for a primary now, with an I/O error");
	abort_command->add_option("--host", o->host, "Only those of this host (default: of all)");
	abort_command->callback([=, &context, &action] { action = [=, &context] { return abort_requests(context, o->volume, o->host); }; });
}

}    // namespace lockstep::cli
