// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep volume create|list|delete.
#include "lockstep/rules.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fmt/format.h>

#include <memory>

namespace lockstep::cli {

namespace {

struct CreateOptions : RuleOptions {
	std::string name, size, pool = "default";
	int redundancy = 0;             // 0: not given
	bool redundancy_given = false;
	std::vector<std::string> on;
	bool shared = false;
	std::string no_quorum;
};

// What can be said without asking anybody is said at once; the rest is the state machine's to refuse.
Result<json> create_body(const CreateOptions &o)
{
	Result<uint64_t> size = parse_size(o.size);
	if (!size)
		return size.error();
	if (!*size)
		return usage_error("volume " + o.name + ": its size is 0");
	if (*size % 4096)
		return usage_error(fmt::format("volume {}: its size must be a multiple of 4096 bytes, {} is not", o.name, *size));
	if (*size > UINT64_MAX >> 1)
		return usage_error("volume " + o.name + ": size " + o.size + " is too large");
	if (o.redundancy_given && o.redundancy < 1)
		return usage_error("volume " + o.name + ": its redundancy must be at least 1");
	json body = {{"name", o.name}, {"size_bytes", *size}, {"pool", o.pool}};
	if (o.redundancy_given)
		body["redundancy"] = o.redundancy;
	if (!o.on.empty())
		body["hosts"] = o.on;
	if (o.shared)
		body["class"] = "shared";
	if (!o.no_quorum.empty())
		body["no_quorum"] = o.no_quorum;
	if (const json rules = rules_body(o); !rules.empty())
		body["rules"] = rules;
	return body;
}

Done create(Context &context, const CreateOptions &o)
{
	Result<json> body = create_body(o);
	if (!body)
		return body.error();
	Result<json> answer = context.client().post("/v1/volumes", *body);
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("volume {} is there: {} on {}, device {}\n", o.name, format_bytes((*body)["size_bytes"]),
						  joined((*answer)["hosts"]), (*answer)["device"].get<std::string>()));
}

Done list(Context &context, bool as_json)
{
	const Result<json> answer = context.client().get(as_json ? "/v1/volumes" : "/v1/volumes?view=list");
	if (!answer)
		return answer.error();
	const json &volumes = *answer;
	if (as_json) {
		print_json(context, volumes);
		return Nothing{};
	}
	Table table({"VOLUME", "HEALTH", "SIZE", "COPIES", "PRIMARY", "OPEN ON"});
	table.right(2);
	table.right(3);
	for (const json &v : volumes)
		table.row({shown(v["name"]), shown(v["health"]), format_bytes(v["size_bytes"]),
			   fmt::format("{}/{}", v["in_sync"].get<unsigned>(), v["redundancy"].get<unsigned>()), shown(v["primary"]),
			   v["openers"].empty() ? "-" : joined(v["openers"])});
	context.out << (table.empty() ? "no volumes yet: create one with `lockstep volume create NAME SIZE`\n" : table.text());
	return Nothing{};
}

Done remove(Context &context, const std::string &name, bool force)
{
	Result<json> answer = context.client().del("/v1/volumes/" + url_encode(name) + (force ? "?force=true" : ""));
	if (!answer)
		return answer.error();
	const json &pending = (*answer)["pending_hosts"];
	if (pending.empty())
		return told(context, *answer, fmt::format("volume {} is deleted\n", name));
	return told(context, *answer, fmt::format("volume {} is deleted; {} will remove its part when it is back\n", name, joined(pending)));
}

}    // namespace

void add_volume(CLI::App &app, Context &context, Action &action)
{
	struct Options : CreateOptions {
		bool as_json = false, force = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *volume = app.add_subcommand("volume", "Replicated volumes")->require_subcommand(1);
	CLI::App *create_command = volume->add_subcommand("create", "Create a volume; returns when its device is there on every host");
	create_command->add_option("NAME", o->name, "Name of the volume; its device is /dev/lockstep/NAME")->required();
	create_command->add_option("SIZE", o->size, "Size: 10GiB, 512MiB, or bytes; a multiple of 4096")->required();
	CLI::Option *redundancy = create_command->add_option("--redundancy", o->redundancy, "Number of replicas (default: 2)");
	create_command->add_option("--pool", o->pool, "Pool that takes the replicas")->capture_default_str();
	create_command->add_option("--on", o->on, "Hosts for the replicas: HOST[,HOST..] (default: most free space)")->delimiter(',');
	create_command->add_flag("--shared", o->shared, "Any number of hosts may write to it at once");
	create_command->add_option("--on-no-quorum", o->no_quorum, "What waits for a primary while there is no quorum: freeze or error")
		->check(CLI::IsMember({"freeze", "error"}));
	add_rule_options(*create_command, *o, true);
	create_command->callback([=, &context, &action] {
		o->redundancy_given = redundancy->count() > 0;
		action = [=, &context] { return create(context, *o); };
	});
	CLI::App *list_command = volume->add_subcommand("list", "List the volumes");
	list_command->add_flag("--json", o->as_json, "Print JSON");
	list_command->callback([=, &context, &action] { action = [=, &context] { return list(context, o->as_json); }; });
	CLI::App *delete_command = volume->add_subcommand("delete", "Delete a volume and all its data");
	delete_command->add_option("VOLUME", o->name, "Name of the volume")->required();
	delete_command->add_flag("--force", o->force, "Also if it is open: whoever has it open gets I/O errors");
	add_serving(app, *volume, context, action);
	delete_command->callback([=, &context, &action] { action = [=, &context] { return remove(context, o->name, o->force); }; });
	add_volume_life(*volume, context, action);
	add_rules(*volume, "volume", context, action);
	add_volume_diff(*volume, context, action);
	add_volume_overlay(*volume, context, action);
}

}    // namespace lockstep::cli
