// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep volume replica add|remove|move, volume redundancy, host evacuate|restore|lost|remove, option list|set, pool capacity.
#include "lockstep/rules.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

namespace lockstep::cli {

namespace {

constexpr unsigned INVALIDATE_TIMEOUT_S = 150;

std::string volume_path(const std::string &volume) { return "/v1/volumes/" + url_encode(volume); }
std::string replica_path(const std::string &volume, const std::string &host) { return volume_path(volume) + "/replicas/" + url_encode(host); }

// ---- replicas ------------------------------------------------------------------------------------------------------

Done replica_add(Context &context, const std::string &volume, const std::vector<std::string> &hosts)
{
	json body = json::object();
	if (!hosts.empty())
		body["hosts"] = hosts;
	Result<json> answer = context.client().post(volume_path(volume) + "/replicas", body);
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("volume {} has a new replica on {}; `lockstep wait-sync {}` waits until it is in sync\n", volume,
						  joined((*answer)["hosts"]), volume));
}

Done replica_remove(Context &context, const std::string &volume, const std::string &host)
{
	Result<json> answer = context.client().del(replica_path(volume, host));
	if (!answer)
		return answer.error();
	if ((*answer)["in_record"] == true)
		return told(context, *answer, fmt::format("the replica of volume {} on {} goes as soon as enough others are in sync\n", volume, host));
	if ((*answer)["left_behind"] == true)
		return told(context, *answer,
			    fmt::format("volume {} has no replica on {} any more; {} will remove its part when it is back\n", volume, host, host));
	return told(context, *answer, fmt::format("volume {} has no replica on {} any more\n", volume, host));
}

Done replica_move(Context &context, const std::string &volume, const std::string &from, const std::string &to)
{
	json body = json::object();
	if (!to.empty())
		body["to"] = to;
	Result<json> answer = context.client().post(replica_path(volume, from) + "/move", body);
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("volume {} gets a replica on {}; that on {} goes when it is in sync\n", volume, shown((*answer)["to"]), from));
}

// VOLUME@HOST as drbdadm would name a volume's replica somewhere.
Done invalidate(Context &context, const std::string &where, bool remote, const std::string &reset_bitmap)
{
	const size_t at = where.find('@');
	const std::string volume = where.substr(0, at), host = at == where.npos ? "" : where.substr(at + 1);
	if (volume.empty() || (at != where.npos && host.empty()))
		return usage_error("\"" + where + "\" is not VOLUME@HOST");
	if (remote && host.empty())
		return usage_error("which replica of volume " + volume + "? Name its host: `lockstep invalidate-remote " + volume + "@HOST`");
	if (reset_bitmap == "no")
		return forbidden("volume " + volume + ": nothing but what differs is copied by `lockstep verify " + volume + " --repair`; a replica is thrown "
				 "away as a whole without --reset-bitmap=no");
	json body = json::object();
	if (!host.empty())
		body["host"] = host;
	Result<json> answer = context.client().post(volume_path(volume) + "/invalidate", body, INVALIDATE_TIMEOUT_S);
	if (!answer)
		return answer.error();
	return told(context, *answer,
		    fmt::format("the replica of volume {0} on {1} is new and gets all its content from another one; `lockstep wait-sync {0}` waits for it\n",
				volume, shown((*answer)["host"])));
}

Done redundancy(Context &context, const std::string &volume, unsigned n)
{
	Result<json> answer = context.client().post(volume_path(volume) + "/redundancy", {{"redundancy", n}});
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("volume {} will have {} {}; `lockstep wait-sync {}` waits for it\n", volume, n,
						  n == 1 ? "replica" : "replicas", volume));
}

// ---- hosts ---------------------------------------------------------------------------------------------------------

Result<json> host_verb(Context &context, const std::string &host, const std::string &verb, const json &body = json::object())
{
	return context.client().post("/v1/hosts/" + url_encode(host) + "/" + verb, body);
}

Result<json> host_in(const json &status, const std::string &name)
{
	for (const json &h : status["hosts"])
		if (h["name"] == name)
			return h;
	return not_found("the cluster has no host named " + name);
}

// Of how many volumes the host has something to delete that is a replica no more.
unsigned volumes_left_behind(const json &status, const std::string &host)
{
	unsigned volumes = 0;
	for (const json &v : status["volumes"]) {
		const json &behind = v["changes"]["left_behind"];
		volumes += std::find(behind.begin(), behind.end(), host) != behind.end();
	}
	return volumes;
}

// Snapshots that need the host's copy yet, or of which it only has something to delete.
unsigned snapshots_on(const json &status, const std::string &host, bool needed)
{
	unsigned snapshots = 0;
	for (const json &s : status["snapshots"]) {
		const json &copies = needed ? s["hosts"] : s["going"];
		snapshots += std::find(copies.begin(), copies.end(), host) != copies.end();
	}
	return snapshots;
}

// What still has to be copied before the host's replicas can go, and what stands in the way.
std::string left_to_do(const json &status, const std::string &host)
{
	unsigned replicas = 0, behind = volumes_left_behind(status, host) + snapshots_on(status, host, false);
	const unsigned snapshots = snapshots_on(status, host, true);
	uint64_t to_copy = 0;
	std::string obstacle;
	for (const json &v : status["volumes"]) {
		bool here = false;
		for (const json &r : v["replicas"])
			here = here || r["host"] == host;
		if (!here)
			continue;
		replicas++;
		for (const json &r : v["replicas"])
			if (r["host"] != host && r["wanted"] == true && r["dirty_bytes"].is_number())
				to_copy += r["dirty_bytes"].get<uint64_t>();
		if (obstacle.empty() && shown(v["changes"]["obstacle"]) != "-")
			obstacle = shown(v["changes"]["obstacle"]);
	}
	std::string text = fmt::format("{} {} left", replicas, replicas == 1 ? "replica" : "replicas");
	if (snapshots)
		text += fmt::format(", {} {}", snapshots, snapshots == 1 ? "snapshot" : "snapshots");
	if (behind)
		text += fmt::format(", {} to delete", behind);
	if (to_copy)
		text += ", " + format_bytes(to_copy) + " to copy";
	return obstacle.empty() ? text : text + "; " + obstacle;
}

Done evacuate(Context &context, const std::string &host, bool wait)
{
	Result<json> answer = host_verb(context, host, "evacuate");
	if (!answer)
		return answer.error();
	Result<json> status = cluster_status(context);
	std::string said;
	for (;;) {
		if (!status)
			return status.error();
		Result<json> h = host_in(*status, host);
		if (!h)
			return h.error();
		if ((*h)["evacuating"] != true)
			return forbidden("the evacuation of host " + host + " was called off");
		const bool needless = (*h)["replicas"] == 0 && !snapshots_on(*status, host, true);
		const bool deleted = !volumes_left_behind(*status, host) && !snapshots_on(*status, host, false);
		if (needless && !deleted && (*h)["status"] != "online") {
			return told(context, *h, fmt::format("host {} holds nothing that is needed; it will delete what is left on its disks when it is "
							     "back\n", host));
		}
		if (needless && deleted) {
			return told(context, *h, fmt::format("host {} is empty; `lockstep host remove {}` takes it out of the cluster, `lockstep host "
							     "restore {}` lets it take replicas again\n", host, host, host));
		}
		if (std::string now = left_to_do(*status, host); now != said && !context.as_json) {
			context.out << fmt::format("host {}: {}\n", host, now) << std::flush;
			said = now;
		}
		if (!wait) {
			return told(context, *h, fmt::format("it goes on by itself; `lockstep host restore {}` calls it off\n", host));
		}
		status = context.client().get(fmt::format("/v1/wait?index={}&ms={}", (*status)["applied"].get<uint64_t>(), POLL_MS));
	}
}

Done restore(Context &context, const std::string &host)
{
	Result<json> answer = host_verb(context, host, "restore");
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("host {} takes replicas as any other\n", host));
}

Done lost(Context &context, const std::string &host, bool force)
{
	Result<json> answer = host_verb(context, host, "lost", {{"force", force}});
	if (!answer)
		return answer.error();
	std::string text = fmt::format("host {} is forgotten; what it held is made anew elsewhere\n", host);
	if (!(*answer)["volumes_lost"].empty())
		text += fmt::format("lost with it: volume {}\n", joined((*answer)["volumes_lost"]));
	return told(context, *answer, text);
}

Done remove_host(Context &context, const std::string &host)
{
	Result<json> answer = host_verb(context, host, "remove");
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("host {} is in the cluster no more\n", host));
}

// ---- options, capacity ---------------------------------------------------------------------------------------------

Done option_list(Context &context, bool as_json)
{
	Result<json> list = context.client().get("/v1/options");
	if (!list)
		return list.error();
	if (as_json) {
		print_json(context, *list);
		return Nothing{};
	}
	Table table({"OPTION", "VALUE", "DEFAULT", "OF HOSTS"});
	for (const json &o : *list) {
		std::string hosts;
		for (const auto &[name, value] : o["hosts"].items())
			hosts += (hosts.empty() ? "" : ", ") + name + "=" + value.get<std::string>();
		table.row({shown(o["name"]), shown(o["value"]), shown(o["default"]), hosts.empty() ? "-" : hosts});
	}
	context.out << table.text();
	return Nothing{};
}

Done option_set(Context &context, const std::string &name, const std::string &value, const std::string &host)
{
	json body = {{"value", value}};
	if (!host.empty())
		body["host"] = host;
	Result<json> answer = context.client().post("/v1/options/" + url_encode(name), body);
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("{} is {}{}\n", name, value, host.empty() ? "" : " for host " + host));
}

Done pool_capacity(Context &context, const std::string &pool, unsigned redundancy, bool as_json)
{
	Result<json> answer = context.client().get(fmt::format("/v1/pools/{}/capacity?redundancy={}", url_encode(pool), redundancy));
	if (!answer)
		return answer.error();
	if (as_json) {
		print_json(context, *answer);
		return Nothing{};
	}
	const json &total = (*answer)["total"], &available = (*answer)["available"];
	context.out << fmt::format("pool {} at redundancy {}: {} hosts{}\n\n", pool, redundancy, (*answer)["pools"].get<unsigned>(),
				   (*answer)["left_out"] == 0 ? "" : fmt::format(" ({} more take no replicas now)", (*answer)["left_out"].get<unsigned>()));
	Table table({"", "WHEN EMPTY", "STILL FREE"});
	table.right(1);
	table.right(2);
	const std::pair<const char *, const char *> rows[] = {{"smallest pool x pools / redundancy", "simple_bytes"},
							      {"many volumes, in all", "many_bytes"},
							      {"the largest single volume", "largest_bytes"}};
	for (auto [text, field] : rows)
		table.row({text, format_bytes(total[field]), format_bytes(available[field])});
	context.out << table.text();
	return Nothing{};
}

}    // namespace

void add_volume_life(CLI::App &volume, Context &context, Action &action)
{
	struct Options {
		std::string volume, host, to;
		std::vector<std::string> hosts;
		unsigned n = 0;
	};
	auto o = std::make_shared<Options>();
	CLI::App *replica = volume.add_subcommand("replica", "The replicas of a volume, while it is in use")->require_subcommand(1);
	CLI::App *add = replica->add_subcommand("add", "One more replica, and redundancy with it; it is resynced by itself");
	add->add_option("VOLUME", o->volume, "Name of the volume")->required();
	add->add_option("HOST", o->hosts, "Hosts that get one (default: one host, with most free space)");
	add->callback([=, &context, &action] { action = [=, &context] { return replica_add(context, o->volume, o->hosts); }; });
	CLI::App *remove = replica->add_subcommand("remove", "One replica less; never below the good copies there are");
	remove->add_option("VOLUME", o->volume, "Name of the volume")->required();
	remove->add_option("HOST", o->host, "Host whose replica goes")->required();
	remove->callback([=, &context, &action] { action = [=, &context] { return replica_remove(context, o->volume, o->host); }; });
	CLI::App *move = replica->add_subcommand("move", "A replica goes to another host; the old one goes when the new one is in sync");
	move->add_option("VOLUME", o->volume, "Name of the volume")->required();
	move->add_option("FROM", o->host, "Host that has it")->required();
	move->add_option("TO", o->to, "Host that gets it (default: most free space)");
	move->callback([=, &context, &action] { action = [=, &context] { return replica_move(context, o->volume, o->host, o->to); }; });
	add_pin(*replica, context, action);
	CLI::App *redundancy_command = volume.add_subcommand("redundancy", "Change the number of replicas, up or down");
	redundancy_command->add_option("VOLUME", o->volume, "Name of the volume")->required();
	redundancy_command->add_option("N", o->n, "Number of replicas")->required();
	redundancy_command->callback([=, &context, &action] { action = [=, &context] { return redundancy(context, o->volume, o->n); }; });
}

void add_invalidate(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string where, reset_bitmap;
	};
	auto o = std::make_shared<Options>();
	auto command = [&](const char *name, const char *what, const char *which, bool remote) {
		CLI::App *c = app.add_subcommand(name, what);
		c->add_option("VOLUME", o->where, which)->required();
		c->add_option("--reset-bitmap", o->reset_bitmap, "yes (default): all of it is copied again")->check(CLI::IsMember({"yes", "no"}));
		c->callback([=, &context, &action] { action = [=, &context] { return invalidate(context, o->where, remote, o->reset_bitmap); }; });
	};
	command("invalidate", "Throw a replica's content away and copy all of it again from one in sync", "VOLUME[@HOST] (default: this host)", false);
	command("invalidate-remote", "The same for a replica on another host", "VOLUME@HOST", true);
}

void add_host_life(CLI::App &host, Context &context, Action &action)
{
	struct Options {
		std::string host;
		bool force = false, no_wait = false;
	};
	auto o = std::make_shared<Options>();
	auto command = [&](const char *name, const char *what) {
		CLI::App *c = host.add_subcommand(name, what);
		c->add_option("HOST", o->host, "Name of the host")->required();
		return c;
	};
	CLI::App *evacuate_command = command("evacuate", "Move all replicas to other hosts; shows how far it is, Ctrl-C leaves it going");
	evacuate_command->add_flag("--no-wait", o->no_wait, "Return once it has begun");
	evacuate_command->callback([=, &context, &action] { action = [=, &context] { return evacuate(context, o->host, !o->no_wait); }; });
	CLI::App *restore_command = command("restore", "Let a host take replicas again: calls off evacuation, eviction and removal");
	restore_command->callback([=, &context, &action] { action = [=, &context] { return restore(context, o->host); }; });
	CLI::App *lost_command = command("lost", "Forget a host that never comes back, and all it held");
	lost_command->add_flag("--force", o->force, "Also if it has the only copy of a volume: that volume's data are given up");
	lost_command->callback([=, &context, &action] { action = [=, &context] { return lost(context, o->host, o->force); }; });
	add_host_label(host, context, action);
	CLI::App *remove_command = command("remove", "Take an empty host out of the cluster");
	remove_command->callback([=, &context, &action] { action = [=, &context] { return remove_host(context, o->host); }; });
}

void add_pool_life(CLI::App &pool, Context &context, Action &action)
{
	struct Options {
		std::string pool = "default";
		unsigned redundancy = 2;
		bool as_json = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *capacity = pool.add_subcommand("capacity", "How much fits into the pools of that name on all hosts");
	capacity->add_option("NAME", o->pool, "Name of the pool")->capture_default_str();
	capacity->add_option("--redundancy", o->redundancy, "Number of replicas")->capture_default_str();
	capacity->add_flag("--json", o->as_json, "Print JSON");
	capacity->callback([=, &context, &action] { action = [=, &context] { return pool_capacity(context, o->pool, o->redundancy, o->as_json); }; });
}

void add_option(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string name, value, host;
		bool as_json = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *option = app.add_subcommand("option", "Settings of the cluster")->require_subcommand(1);
	CLI::App *list = option->add_subcommand("list", "List the options and what they are set to");
	list->add_flag("--json", o->as_json, "Print JSON");
	list->callback([=, &context, &action] { action = [=, &context] { return option_list(context, o->as_json); }; });
	CLI::App *set = option->add_subcommand("set", "Set an option; the value \"default\" takes the setting back");
	set->add_option("NAME", o->name, "Name of the option")->required();
	set->add_option("VALUE", o->value, "Its value")->required();
	set->add_option("--host", o->host, "Only for this host");
	set->callback([=, &context, &action] { action = [=, &context] { return option_set(context, o->name, o->value, o->host); }; });
}

}    // namespace lockstep::cli
