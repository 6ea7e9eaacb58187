// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep why|events|metrics: what has happened, and what that means.
#include "lockstep/cli.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <memory>

namespace lockstep::cli {

namespace {

constexpr unsigned EVENTS_WAIT_MS = 20'000;

std::string time_text(const json &time_ms)
{
	const uint64_t ms = time_ms;
	return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(time_t(ms / 1000)), ms % 1000);
}

Done why(Context &context, const std::string &name, bool as_json)
{
	Result<json> answer = context.client().get("/v1/why/" + url_encode(name));
	if (!answer)
		return answer.error();
	const json &a = *answer;
	if (as_json) {
		print_json(context, a);
		return Nothing{};
	}
	if (a["health"] == "none")
		context.out << fmt::format("volume {} does not exist\n", name);
	else
		context.out << fmt::format("{} {} is {}{}\n", shown(a["kind"]), name, shown(a["health"]), a["causes"].empty() ? ": nothing is the matter" : "");
	for (const json &c : a["causes"]) {
		context.out << "  ! " << shown(c["what"]) << "\n";
		if (c["do"] != "")
			context.out << "    -> " << shown(c["do"]) << "\n";
	}
	if (!a["events"].empty())
		context.out << "\nwhat happened, as this host has seen it:\n";
	for (const json &e : a["events"])
		context.out << "  " << time_text(e["time_ms"]) << " " << shown(e["message"]) << "\n";
	return Nothing{};
}

// One line an event; JSON a line, too, so that a program can read them as they come.
Done events(Context &context, std::string cursor, bool follow, bool as_json)
{
	for (unsigned round = 0;; round++) {
		std::string path = "/v1/events?after=" + url_encode(cursor);
		if (round)
			path += "&ms=" + std::to_string(EVENTS_WAIT_MS);
		Result<json> answer = context.client().get(path);
		if (!answer)
			return answer.error();
		if ((*answer)["gap"] == true && as_json)
			context.out << json{{"gap", true}, {"message", "events are missing here: look at the status"}}.dump() << "\n";
		else if ((*answer)["gap"] == true)
			context.out << "... events are missing here: look at `lockstep status`\n";
		for (const json &e : (*answer)["events"]) {
			if (as_json)
				context.out << e.dump() << "\n";
			else
				context.out << time_text(e["time_ms"]) << " " << shown(e["message"]) << "\n";
		}
		context.out.flush();
		cursor = (*answer)["cursor"];
		if (!follow || (context.rounds && round + 1 >= context.rounds))
			return Nothing{};
	}
}

Done metrics(Context &context)
{
	Result<std::string> text = context.client().get_text("/metrics");
	if (!text)
		return text.error();
	return told(context, {{"format", "prometheus 0.0.4"}, {"text", *text}}, *text);
}

}    // namespace

void add_why(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string name, cursor;
		bool as_json = false, follow = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *why_command = app.add_subcommand("why", "Why a volume or host is as it is, and what to do about it");
	why_command->add_option("NAME", o->name, "Name of a volume or a host")->required();
	why_command->add_flag("--json", o->as_json, "Print JSON");
	why_command->callback([=, &context, &action] { action = [=, &context] { return why(context, o->name, o->as_json); }; });
	CLI::App *events_command = app.add_subcommand("events", "What has happened since this host's daemon started");
	events_command->add_flag("--follow,-f", o->follow, "Go on with what happens from now on");
	events_command->add_option("--after", o->cursor, "Only what came after this cursor, as --json shows it");
	events_command->add_flag("--json", o->as_json, "Print JSON, one object a line; {\"gap\": true} where events are missing");
	events_command->callback([=, &context, &action] {
		action = [=, &context] { return events(context, o->cursor, o->follow, o->as_json); };
	});
	CLI::App *metrics_command = app.add_subcommand("metrics", "The status as Prometheus reads it");
	metrics_command->callback([=, &context, &action] { action = [=, &context] { return metrics(context); }; });
}

}    // namespace lockstep::cli
