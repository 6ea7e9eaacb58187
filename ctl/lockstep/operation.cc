// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep operation list|show|cancel|wait: what takes long, wherever it was begun.
#include "lockstep/progress.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fmt/format.h>

#include <memory>

namespace lockstep::cli {

namespace {

std::string operation_path(const std::string &id) { return "/v1/operations/" + url_encode(id); }

std::string part_done(const json &o) { return o["percent"].is_number() ? fmt::format("{:.1f} %", o["percent"].get<double>()) : "-"; }

std::string time_left(const json &o) { return o["eta_s"].is_number() ? format_seconds(o["eta_s"]) : "-"; }

// What it waits for is worth more than what it does.
std::string doing(const json &o) { return shown(o["waits_for"]) == "-" ? shown(o["what"]) : "WAITS: " + shown(o["waits_for"]); }

Done operation_list(Context &context)
{
	Result<json> answer = context.client().get("/v1/operations");
	if (!answer)
		return answer.error();
	Table table({"OPERATION", "DONE", "LEFT", "STATE"});
	table.right(1);
	table.right(2);
	for (const json &o : *answer)
		table.row({shown(o["id"]), part_done(o), time_left(o), doing(o)});
	return told(context, *answer, table.empty() ? "nothing is under way\n" : table.text());
}

Done operation_show(Context &context, const std::string &id)
{
	Result<json> answer = context.client().get(operation_path(id));
	if (!answer)
		return answer.error();
	const json &o = *answer;
	if (o["done"] == true)
		return told(context, o, fmt::format("operation {} is done\n", id));
	Table facts({"operation", id});
	facts.row({"state", doing(o)});
	facts.row({"done", part_done(o)});
	facts.row({"left", time_left(o)});
	facts.row({"can be called off", o["can_cancel"] == true ? "yes: `lockstep operation cancel " + id + "`" : "no"});
	return told(context, o, facts.text());
}

Done operation_cancel(Context &context, const std::string &id)
{
	Result<json> answer = context.client().del(operation_path(id));
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("operation {} is called off\n", id));
}

Done operation_wait(Context &context, const std::string &id, double timeout_s)
{
	Progress progress(context, id);
	const uint64_t begin_ms = context.now_ms(), limit_ms = uint64_t(timeout_s * 1000);
	for (;;) {
		const uint64_t waited_ms = context.now_ms() - begin_ms;
		const uint64_t poll_ms = limit_ms && waited_ms + POLL_MS > limit_ms ? limit_ms - std::min(limit_ms, waited_ms) : POLL_MS;
		Result<json> o = context.client().get(fmt::format("{}?ms={}", operation_path(id), poll_ms));
		if (!o)
			return o.error();
		if ((*o)["done"] == true) {
			progress.end();
			return told(context, *o, fmt::format("operation {} is done\n", id));
		}
		if (limit_ms && context.now_ms() - begin_ms >= limit_ms)
			return failed(fmt::format("operation {} is not done after {}: {}", id, format_seconds(limit_ms / 1000), doing(*o)));
		progress.show((*o)["percent"].is_number() ? (*o)["percent"].get<double>() / 100 : 0, doing(*o));
	}
}

}    // namespace

void add_operation(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string id;
		double timeout_s = 0;
	};
	auto o = std::make_shared<Options>();
	CLI::App *operation = app.add_subcommand("operation", "What takes long: resync, evacuation, growth, verify, disks")->require_subcommand(1);
	CLI::App *all = operation->add_subcommand("list", "List what is under way in the cluster");
	all->callback([=, &context, &action] { action = [=, &context] { return operation_list(context); }; });
	auto command = [&](const char *name, const char *what) {
		CLI::App *c = operation->add_subcommand(name, what);
		c->add_option("OPERATION", o->id, "As `lockstep operation list` names it")->required();
		return c;
	};
	command("show", "How far an operation is, and what it waits for")->callback([=, &context, &action] {
		action = [=, &context] { return operation_show(context, o->id); };
	});
	command("cancel", "Call an operation off; what it has done so far is undone by itself where needed")->callback([=, &context, &action] {
		action = [=, &context] { return operation_cancel(context, o->id); };
	});
	CLI::App *wait_command = command("wait", "Wait until an operation is done; fails if it is called off");
	wait_command->add_option("--timeout", o->timeout_s, "Give up after so many seconds, with exit status 10 (default: never)")
		->check(CLI::Range(0.001, 1e7));
	wait_command->callback([=, &context, &action] { action = [=, &context] { return operation_wait(context, o->id, o->timeout_s); }; });
}

}    // namespace lockstep::cli
