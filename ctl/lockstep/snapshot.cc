// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep snapshot create|list|delete|restore|revert|clone.
#include "lockstep/cli.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

namespace lockstep::cli {

namespace {

constexpr unsigned COPY_TIMEOUT_S = 24 * 3600;    // in a thick pool the content is copied; the daemon gives up when a host that copies is gone

struct Options {
	std::string volumes, volume, name, fresh;
	unsigned reserve_percent = 0;
	bool as_json = false;
};

std::string path(const Options &o, const std::string &verb = "")
{
	return "/v1/volumes/" + url_encode(o.volume) + "/snapshots/" + url_encode(o.name) + verb;
}

Done create(Context &context, const Options &o)
{
	json volumes = json::array();
	for (size_t from = 0, to; from <= o.volumes.size(); from = to + 1) {
		to = std::min(o.volumes.find(',', from), o.volumes.size());
		volumes.push_back(o.volumes.substr(from, to - from));
	}
	json body = {{"volumes", volumes}, {"name", o.name}};
	if (o.reserve_percent)
		body["reserve_percent"] = o.reserve_percent;
	Result<json> answer = context.client().post("/v1/snapshots", body);
	if (!answer)
		return answer.error();
	if (o.as_json)
		print_json(context, (*answer)["snapshots"]);
	for (const json &s : o.as_json ? json::array() : (*answer)["snapshots"])
		context.out << fmt::format("snapshot {} of volume {} is there: {} on {}\n", shown(s["name"]), shown(s["volume"]),
					   format_bytes(s["size_bytes"]), joined(s["hosts"]));
	return Nothing{};
}

// "alpha, beta; copying to gamma (43 %)"
std::string copies_of(const json &s)
{
	std::string text = joined(s["hosts"]);
	for (const json &a : s.value("arriving", json::array()))
		text += fmt::format("{}copying to {}{}", text.empty() ? "" : "; ", shown(a["host"]), a["percent"].is_number() ? fmt::format(" ({} %)", a["percent"].get<unsigned>()) : "");
	return text;
}

Done list(Context &context, const Options &o)
{
	Result<json> answer = context.client().get("/v1/snapshots" + (o.volume.empty() ? "" : "?volume=" + url_encode(o.volume)));
	if (!answer)
		return answer.error();
	if (o.as_json) {
		print_json(context, *answer);
		return Nothing{};
	}
	Table table({"VOLUME", "SNAPSHOT", "SIZE", "AGE", "STATE", "COPIES ON"});
	table.right(2);
	for (const json &s : *answer) {
		uint64_t now_ms = context.now_ms(), created_ms = s["created_ms"];
		table.row({shown(s["volume"]), shown(s["name"]), format_bytes(s["size_bytes"]),
			   format_seconds(now_ms > created_ms ? (now_ms - created_ms) / 1000 : 0), shown(s["phase"]), copies_of(s)});
	}
	context.out << (table.empty() ? "no snapshots: take one with `lockstep snapshot create VOLUME NAME`\n" : table.text());
	return Nothing{};
}

Done remove(Context &context, const Options &o)
{
	Result<json> answer = context.client().del(path(o));
	if (!answer)
		return answer.error();
	const json &pending = (*answer)["pending_hosts"];
	return told(context, *answer,
		    fmt::format("snapshot {} of volume {} is deleted{}\n", o.name, o.volume,
				pending.empty() ? "" : "; " + joined(pending) + " will remove its copy when it is back"));
}

Done created(Context &context, const Options &o, const Result<json> &answer)
{
	if (!answer)
		return answer.error();
	if (o.as_json) {
		print_json(context, *answer);
		return Nothing{};
	}
	return told(context, *answer, fmt::format("volume {} is there on {}, device {}\n", o.fresh, joined((*answer)["hosts"]), shown((*answer)["device"])));
}

Done revert(Context &context, const Options &o)
{
	Result<json> answer = context.client().post(path(o, "/revert"), json::object(), COPY_TIMEOUT_S);
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("volume {} is as it was when snapshot {} was taken\n", o.volume, o.name));
}

}    // namespace

void add_snapshot(CLI::App &app, Context &context, Action &action)
{
	auto o = std::make_shared<Options>();
	CLI::App *snapshot = app.add_subcommand("snapshot", "Snapshots of volumes")->require_subcommand(1);
	auto verb = [&](const char *name, const char *help, bool named) {
		CLI::App *command = snapshot->add_subcommand(name, help);
		if (named) {
			command->add_option("VOLUME", o->volume, "Name of the volume it was taken of")->required();
			command->add_option("NAME", o->name, "Name of the snapshot")->required();
		}
		return command;
	};
	CLI::App *create_command = verb("create", "Take a snapshot; several volumes are taken at one point of time", false);
	create_command->add_option("VOLUME", o->volumes, "VOLUME[,VOLUME..]")->required();
	create_command->add_option("NAME", o->name, "Name of the snapshot")->required();
	create_command->add_option("--reserve", o->reserve_percent, "In a thick pool: percent of the size that may change (default: 20)")
		->check(CLI::Range(1, 100));
	create_command->add_flag("--json", o->as_json, "Print JSON");
	create_command->callback([=, &context, &action] { action = [=, &context] { return create(context, *o); }; });
	CLI::App *list_command = verb("list", "List the snapshots", false);
	list_command->add_option("VOLUME", o->volume, "Only those of this volume");
	list_command->add_flag("--json", o->as_json, "Print JSON");
	list_command->callback([=, &context, &action] { action = [=, &context] { return list(context, *o); }; });
	verb("delete", "Delete a snapshot", true)->callback([=, &context, &action] { action = [=, &context] { return remove(context, *o); }; });
	CLI::App *restore_command = verb("restore", "Make a new volume with the content of a snapshot", true);
	restore_command->add_option("NEW", o->fresh, "Name of the new volume")->required();
	restore_command->add_flag("--json", o->as_json, "Print JSON");
	restore_command->callback([=, &context, &action] {
		action = [=, &context] { return created(context, *o, context.client().post(path(*o, "/restore"), {{"name", o->fresh}}, COPY_TIMEOUT_S)); };
	});
	verb("revert", "Give a volume that is not open the content of a snapshot; what was written since is lost", true)
		->callback([=, &context, &action] { action = [=, &context] { return revert(context, *o); }; });
	CLI::App *clone_command = verb("clone", "Make a writable copy of a volume as it is now", false);
	clone_command->add_option("VOLUME", o->volume, "Name of the volume")->required();
	clone_command->add_option("NEW", o->fresh, "Name of the copy")->required();
	clone_command->add_flag("--json", o->as_json, "Print JSON");
	clone_command->callback([=, &context, &action] {
		action = [=, &context] {
			return created(context, *o, context.client().post("/v1/volumes/" + url_encode(o->volume) + "/clone", {{"name", o->fresh}}, COPY_TIMEOUT_S));
		};
	});
}

}    // namespace lockstep::cli
