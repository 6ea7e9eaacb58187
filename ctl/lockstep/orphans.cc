// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep pool orphans|adopt|purge: logical volumes that an earlier cluster, or an earlier life of a host, has left.
#include "lockstep/cli.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fmt/format.h>

#include <memory>

namespace lockstep::cli {

namespace {

std::string orphan_path(const std::string &uuid, const char *verb) { return "/v1/orphans/" + url_encode(uuid) + "/" + verb; }

void tell_unreachable(Context &context, const json &answer)
{
	for (const json &h : answer["unreachable"])
		context.out << fmt::format("  ! not asked: {}\n", shown(h["message"]));
}

Done orphans(Context &context, bool as_json)
{
	Result<json> answer = context.client().get("/v1/orphans", Client::LVM_S);
	if (!answer)
		return answer.error();
	if (as_json) {
		print_json(context, *answer);
		return Nothing{};
	}
	Table table({"UUID", "HOST", "WHAT", "LVM", "SIZE", "VERSION", "LACKS", ""});
	table.right(4);
	for (const json &o : (*answer)["orphans"]) {
		const json &content = o["content"];
		const bool known = content.is_object() && content.contains("version");
		std::string lacks;
		if (known)
			for (const json &host : content["absent"])
				lacks += (lacks.empty() ? "host id " : ", ") + host.dump();
		table.row({shown(o["uuid"]), shown(o["host"]), shown(o["kind"]), shown(o["vg"]) + "/" + shown(o["lv"]),
			   format_bytes(known ? content["size_bytes"] : o["lv_bytes"]), known ? content["version"].dump() : "-", lacks.empty() ? "-" : lacks,
			   o["open"] == true ? "IN USE" : content.is_object() && content.contains("problem") ? shown(content["problem"]) : ""});
	}
	context.out << (table.empty() ? "no orphans\n" : table.text());
	tell_unreachable(context, *answer);
	return Nothing{};
}

Done adopt(Context &context, const std::string &uuid, const json &body)
{
	Result<json> answer = context.client().post(orphan_path(uuid, "adopt"), body);
	if (!answer)
		return answer.error();
	const std::string name = shown((*answer)["name"]);
	return told(context, *answer,
		    fmt::format("volume {} is there, with the content that was left on {}; `lockstep wait-sync {}` waits for its further replicas\n", name,
				joined((*answer)["hosts"]), name));
}

Done purge(Context &context, const std::string &uuid, const std::string &host)
{
	json body = json::object();
	if (!host.empty())
		body["host"] = host;
	Result<json> answer = context.client().post(orphan_path(uuid, "purge"), body);
	if (!answer)
		return answer.error();
	if (context.as_json)
		print_json(context, *answer);
	for (const json &lv : context.as_json ? json::array() : (*answer)["removed"])
		context.out << fmt::format("removed: {}/{} on host {}\n", shown(lv["vg"]), shown(lv["lv"]), shown(lv["host"]));
	if (!context.as_json)
		tell_unreachable(context, *answer);
	if (const json &kept = (*answer)["kept"]; !kept.empty())
		return forbidden(fmt::format("host {}: {}", shown(kept[0]["host"]), shown(kept[0]["message"])));
	return Nothing{};
}

}    // namespace

void add_pool_orphans(CLI::App &pool, Context &context, Action &action)
{
	struct Options {
		std::string uuid, name, host, group;
		unsigned redundancy = 0;
		bool as_json = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *list = pool.add_subcommand("orphans", "List logical volumes of replicas and snapshots that the cluster knows nothing of");
	list->add_flag("--json", o->as_json, "Print JSON");
	list->callback([=, &context, &action] { action = [=, &context] { return orphans(context, o->as_json); }; });
	CLI::App *adopt_command = pool.add_subcommand("adopt", "Make a volume of an orphaned replica");
	adopt_command->add_option("UUID", o->uuid, "UUID of the orphan, see `lockstep pool orphans`")->required();
	adopt_command->add_option("NAME", o->name, "Name that the volume gets")->required();
	adopt_command->add_option("--host", o->host, "Host whose copy is taken (default: the newest; refused if that is not sure)");
	adopt_command->add_option("--redundancy", o->redundancy, "Number of replicas (default: the group's, else 2)");
	adopt_command->add_option("--group", o->group, "Group that the volume belongs to");
	adopt_command->callback([=, &context, &action] {
		json body = {{"name", o->name}};
		if (!o->host.empty())
			body["host"] = o->host;
		if (o->redundancy)
			body["redundancy"] = o->redundancy;
		if (!o->group.empty())
			body["group"] = o->group;
		action = [=, &context] { return adopt(context, o->uuid, body); };
	});
	CLI::App *purge_command = pool.add_subcommand("purge", "Remove the orphans with that UUID, and what they hold, for good");
	purge_command->add_option("UUID", o->uuid, "UUID of the orphan, see `lockstep pool orphans`")->required();
	purge_command->add_option("--host", o->host, "Only on this host (default: on all)");
	purge_command->callback([=, &context, &action] { action = [=, &context] { return purge(context, o->uuid, o->host); }; });
}

}    // namespace lockstep::cli
