// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep group list|redundancy|adopt|destroy: sets of volumes, such as a storage repository of XAPI, as a whole.
//
// A group outlives the storage repository it was made for: xapi forgets one without a word to us. So groups of which nothing is in use can be
// listed, together with what lies on the disks and is not even in the log, and either be taken up again or destroyed.
#include "lockstep/cli.h"

#include "lib/table.h"
#include "lib/units.h"
#include "lockstep/progress.h"
#include "lockstep/rules.h"

#include <fmt/format.h>

#include <map>
#include <memory>
#include <set>

namespace lockstep::cli {

namespace {

// What there is of a group.
struct Content {
	std::vector<std::string> volumes, open;
	std::vector<std::pair<std::string, std::string>> snapshots;    // volume, name
	uint64_t bytes = 0;
	std::set<std::string> open_on;
};

std::map<std::string, Content> contents(const json &status)
{
	std::map<std::string, Content> groups;
	for (const json &v : status["volumes"]) {
		if (!v["group"].is_string() || v["phase"] == "deleting")
			continue;
		Content &c = groups[v["group"]];
		c.volumes.push_back(v["name"]);
		c.bytes += v["size_bytes"].get<uint64_t>();
		for (const json &host : v["openers"])
			c.open_on.insert(host.get<std::string>());
		if (!v["openers"].empty())
			c.open.push_back(v["name"]);
	}
	for (const json &s : status["snapshots"])
		if (s["group"].is_string() && s["phase"] != "deleting")
			groups[s["group"]].snapshots.emplace_back(s["volume"], s["name"]);
	return groups;
}

// What lies on disks under one UUID. Only one of a host counts.
struct Orphan {
	std::string kind, group;
	std::set<std::string> hosts;
};

std::map<std::string, Orphan> by_uuid(const json &orphans)
{
	std::map<std::string, Orphan> found;
	for (const json &o : orphans) {
		Orphan &x = found[o["uuid"]];
		x.kind = o["kind"];
		x.hosts.insert(o["host"].get<std::string>());
		if (const std::string group = o.value("group", ""); !group.empty())    // an LV from before there was the tag does not tell it
			x.group = group;
	}
	return found;
}

// Whether an orphan lies in that pool.
bool lies_in(const json &status, const std::string &pool, const json &orphan)
{
	for (const json &p : status["pools"])
		if (p["name"] == pool && p["host"] == orphan["host"] && p["vg"] == orphan["vg"] && p["thin_lv"] == orphan["thin_pool"])
			return true;
	return false;
}

std::string joined_set(const std::set<std::string> &names) { return fmt::format("{}", fmt::join(names, ", ")); }

Done list(Context &context, bool orphans, bool as_json)
{
	Result<json> status = cluster_outline(context);
	Result<json> left = orphans ? context.client().get("/v1/orphans", Client::LVM_S) : json{{"orphans", json::array()}, {"unreachable", json::array()}};
	for (const Result<json> *answer : {&status, &left})
		if (!*answer)
			return answer->error();
	std::map<std::string, Content> all = contents(*status);
	json result = {{"groups", json::array()}, {"orphans", (*left)["orphans"]}, {"unreachable", (*left)["unreachable"]}};
	Table table({"GROUP", "POOL", "COPIES", "VOLUMES", "SNAPSHOTS", "SIZE", "OPEN ON"});
	for (size_t column : {2, 3, 4, 5})
		table.right(column);
	for (const json &g : (*status)["groups"]) {
		const Content &c = all[g["name"]];
		if (orphans && !c.open.empty())
			continue;
		table.row({shown(g["name"]), shown(g["pool"]), g["redundancy"].dump(), std::to_string(c.volumes.size()), std::to_string(c.snapshots.size()),
			   format_bytes(c.bytes), c.open_on.empty() ? "-" : joined_set(c.open_on)});
		json line = g;
		line.update({{"volumes", c.volumes}, {"snapshots", c.snapshots.size()}, {"size_bytes", c.bytes}, {"open_on", c.open_on}});
		result["groups"].push_back(line);
	}
	if (as_json) {
		print_json(context, result);
		return Nothing{};
	}
	context.out << (table.empty() ? (orphans ? "no group without an open volume\n" : "no groups\n") : table.text());
	for (const json &g : (*status)["groups"])
		if (const json &c = g["changing"]; !c.is_null())
			context.out << fmt::format("  ! {} of {} volumes of group {} have {} good copies{}\n", c["done"].get<uint64_t>(), c["all"].get<uint64_t>(),
						   shown(g["name"]), g["redundancy"].get<uint64_t>(), c["obstacle"] == "" ? "" : ": " + shown(c["obstacle"]));
	if (!orphans)
		return Nothing{};
	Table lost({"NOT IN THE LOG", "UUID", "ON", "OF GROUP"});
	for (const auto &[uuid, what] : by_uuid((*left)["orphans"]))
		lost.row({what.kind, uuid, joined_set(what.hosts), what.group.empty() ? "-" : shown(what.group)});
	if (!lost.empty())
		context.out << "\n" << lost.text();
	for (const json &h : (*left)["unreachable"])
		context.out << fmt::format("  ! not asked: {}\n", shown(h["message"]));
	return Nothing{};
}

// All orphaned volumes in the group's pool, each under its UUID, as XAPI's driver names them. from: only those that were in that group.
Done adopt(Context &context, const std::string &name, std::string pool, unsigned copies, const std::string &from)
{
	Result<json> status = cluster_outline(context);
	Result<json> left = context.client().get("/v1/orphans", Client::LVM_S);
	for (const Result<json> *answer : {&status, &left})
		if (!*answer)
			return answer->error();
	bool known = false;
	for (const json &g : (*status)["groups"])
		if (g["name"] == name) {
			known = true;
			pool = g["pool"];
		}
	json here = json::array();
	for (const json &o : (*left)["orphans"])
		if (lies_in(*status, pool, o))
			here.push_back(o);
	std::vector<std::string> uuids;
	for (const auto &[uuid, what] : by_uuid(here))
		if (what.kind == "replica" && (from.empty() || what.group == from))
			uuids.push_back(uuid);
	json result = {{"group", name}, {"adopted", json::array()}, {"not_adopted", json::array()}, {"unreachable", (*left)["unreachable"]}};
	if (uuids.empty() && context.as_json)
		print_json(context, result);
	if (uuids.empty())
		return not_found(fmt::format("no host that could be asked has an orphaned replica{} in pool {}: see `lockstep pool orphans`",
					     from.empty() ? "" : " of group " + from, pool));
	if (!known) {
		json body = {{"name", name}, {"pool", pool}};
		if (copies)
			body["redundancy"] = copies;
		if (Result<json> made = context.client().post("/v1/groups", body); !made)
			return made.error();
	}
	std::string last, text;
	for (const std::string &uuid : uuids) {
		Result<json> answer = context.client().post("/v1/orphans/" + url_encode(uuid) + "/adopt", {{"name", uuid}, {"group", name}});
		if (answer) {
			result["adopted"].push_back(*answer);
			text += fmt::format("volume {} is there, with the content that was left on {}\n", uuid, joined((*answer)["hosts"]));
		} else {
			last = answer.error().message;
			result["not_adopted"].push_back({{"uuid", uuid}, {"message", last}});
			text += fmt::format("  ! volume {}: {}\n", uuid, last);
		}
	}
	if (Done done = told(context, result, text); !done)
		return done;
	if (const size_t failures = result["not_adopted"].size(); failures)
		return forbidden(fmt::format("{} of {} volumes could not be adopted, the last one because: {}", failures, uuids.size(), last));
	return Nothing{};
}

// Snapshots before what they were taken of, which in a thick pool they are in the way of; the group at last. Once more, it goes on.
Done destroy_group(Context &context, const std::string &name, bool yes)
{
	Result<json> status = cluster_outline(context);
	if (!status)
		return status.error();
	bool known = false;
	for (const json &g : (*status)["groups"])
		known = known || g["name"] == name;
	if (!known)
		return not_found("there is no group named " + name + ": see `lockstep group list`");
	const Content c = contents(*status)[name];
	if (!c.open.empty())
		return forbidden(fmt::format("group {} is in use: volume {} is open on {}: close it first", name, c.open[0], joined_set(c.open_on)));
	const json result = {{"group", name}, {"destroyed", yes}, {"volumes", c.volumes}, {"snapshots", c.snapshots.size()}, {"size_bytes", c.bytes}};
	if (!yes)
		return told(context, result, fmt::format("group {} has {} volumes ({}) and {} snapshots; --yes destroys them for good\n", name,
							 c.volumes.size(), format_bytes(c.bytes), c.snapshots.size()));
	for (const auto &[volume, snapshot] : c.snapshots)
		if (Result<json> gone = context.client().del("/v1/volumes/" + url_encode(volume) + "/snapshots/" + url_encode(snapshot)); !gone)
			return gone.error();
	for (const std::string &volume : c.volumes)
		if (Result<json> gone = context.client().del("/v1/volumes/" + url_encode(volume)); !gone)
			return gone.error();
	if (Result<json> gone = context.client().del("/v1/groups/" + url_encode(name)); !gone)
		return gone.error();
	return told(context, result, fmt::format("group {} is gone, with {} volumes and {} snapshots\n", name, c.volumes.size(), c.snapshots.size()));
}

Done destroy_orphans(Context &context, bool yes)
{
	Result<json> left = context.client().get("/v1/orphans", Client::LVM_S);
	if (!left)
		return left.error();
	const auto all = by_uuid((*left)["orphans"]);
	json result = {{"destroyed", yes}, {"orphans", json::array()}, {"unreachable", (*left)["unreachable"]}};
	std::string text;
	for (const json &h : (*left)["unreachable"])
		text += fmt::format("  ! not asked: {}\n", shown(h["message"]));
	for (const auto &[uuid, what] : all)
		result["orphans"].push_back({{"uuid", uuid}, {"kind", what.kind}, {"hosts", what.hosts}});
	if (all.empty() || !yes)
		return told(context, result, text + (all.empty() ? std::string("no orphans\n")
							 : fmt::format("{} volumes and snapshots that are not in the log; --yes removes them for good\n", all.size())));
	// A classic snapshot is in the way of what it was taken of.
	for (const char *kind : {"snapshot", "replica"})
		for (const auto &[uuid, what] : all) {
			if (what.kind != kind)
				continue;
			Result<json> answer = context.client().post("/v1/orphans/" + url_encode(uuid) + "/purge", json::object());
			if (!answer)
				return answer.error();
			if (const json &kept = (*answer)["kept"]; !kept.empty())
				return forbidden(fmt::format("host {}: {}", shown(kept[0]["host"]), shown(kept[0]["message"])));
			text += fmt::format("removed: {} {} on {}\n", what.kind, uuid, joined_set(what.hosts));
		}
	return told(context, result, text);
}

// Until all volumes of the group have it, or those that are left cannot get it now.
Done watch_group(Context &context, const std::string &name)
{
	Progress progress(context, fmt::format("redundancy of group {}", name));
	Result<json> status = cluster_outline(context);
	// No volume is named so: of thousands none is told.
	for (;; status = context.client().get(fmt::format("/v1/wait?index={}&ms={}&volume=-", (*status)["applied"].get<uint64_t>(), POLL_MS))) {
		if (!status)
			return status.error();
		const json *group = nullptr;
		for (const json &g : (*status)["groups"])
			if (g["name"] == name)
				group = &g;
		if (!group)
			return not_found("there is no group named " + name + " any more");
		const json &changing = (*group)["changing"];
		if (changing.is_null())
			return Nothing{};
		const uint64_t done = changing["done"], all = changing["all"];
		if (const std::string obstacle = changing["obstacle"]; !obstacle.empty())
			return forbidden(fmt::format("{} of {} volumes of group {} have it, the others get it as soon as they can: {}", done, all, name, obstacle));
		progress.show(all ? double(done) / double(all) : 1, fmt::format("{} of {} volumes", done, all));
	}
}

Done redundancy(Context &context, const std::string &name, unsigned copies, bool wait)
{
	Result<json> answer = context.client().patch("/v1/groups/" + url_encode(name), {{"redundancy", copies}});
	if (!answer)
		return answer.error();
	if (wait)
		if (Done watched = watch_group(context, name); !watched)
			return watched;
	const char *what = copies == 1 ? "replica" : "replicas";
	return told(context, *answer, wait ? fmt::format("all volumes of group {} have {} {}\n", name, copies, what)
					   : fmt::format("the volumes of group {} get {} {}: see `lockstep group list`\n", name, copies, what));
}

}    // namespace

void add_group(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string name, pool = "default", from;
		unsigned copies = 0;
		bool orphans = false, as_json = false, yes = false, no_wait = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *group = app.add_subcommand("group", "Sets of volumes, such as a storage repository of XAPI")->require_subcommand(1);
	CLI::App *list_command = group->add_subcommand("list", "List groups and what they hold");
	list_command->add_flag("--orphans", o->orphans, "Only those of which nothing is open, and what is on disks but not in the log");
	list_command->add_flag("--json", o->as_json, "Print JSON");
	list_command->callback([=, &context, &action] { action = [=, &context] { return list(context, o->orphans, o->as_json); }; });
	CLI::App *redundancy_command = group->add_subcommand("redundancy", "Change the number of replicas of all volumes of a group, and of new ones");
	redundancy_command->add_option("NAME", o->name, "Name of the group")->required();
	redundancy_command->add_option("REDUNDANCY", o->copies, "Number of replicas")->required();
	redundancy_command->add_flag("--no-wait", o->no_wait, "Return as soon as it has begun");
	redundancy_command->callback([=, &context, &action] { action = [=, &context] { return redundancy(context, o->name, o->copies, !o->no_wait); }; });
	add_rules(*group, "group", context, action);
	CLI::App *adopt_command = group->add_subcommand("adopt", "Make volumes of all orphaned replicas in its pool, each named by its UUID, in that group");
	adopt_command->add_option("NAME", o->name, "Name of the group; made if there is none")->required();
	adopt_command->add_option("--pool", o->pool, "Pool of a group that is made")->capture_default_str();
	adopt_command->add_option("--redundancy", o->copies, "Number of replicas in a group that is made (default: 2)");
	adopt_command->add_option("--from", o->from, "Only of those that were in this group");
	adopt_command->callback([=, &context, &action] { action = [=, &context] { return adopt(context, o->name, o->pool, o->copies, o->from); }; });
	CLI::App *destroy_command = group->add_subcommand("destroy", "Remove a group with all its volumes and snapshots, or all orphans, for good");
	auto *name = destroy_command->add_option("NAME", o->name, "Name of the group");
	destroy_command->add_flag("--orphans", o->orphans, "Not a group, but all that is on disks and not in the log")->excludes(name);
	destroy_command->add_flag("--yes", o->yes, "Without it, only what would go is told");
	destroy_command->callback([=, &context, &action] {
		action = [=, &context]() -> Done {
			if (o->orphans)
				return destroy_orphans(context, o->yes);
			if (o->name.empty())
				return usage_error("name a group, or say --orphans");
			return destroy_group(context, o->name, o->yes);
		};
	});
}

}    // namespace lockstep::cli
