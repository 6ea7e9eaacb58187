// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep disk list|replace, pool add-disk|remove-disk. What leaves is emptied by the host's daemon and LVM, also if this command is
// broken off: it only watches.
#include "lockstep/cli.h"

#include "lib/table.h"
#include "lib/units.h"
#include "lockstep/progress.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <thread>

namespace lockstep::cli {

namespace {

constexpr auto PERIOD = std::chrono::seconds(1);

std::string state_of(const json &disk)
{
	if (disk["missing"] == true)
		return disk["leaving"] == true ? "missing, being taken out" : "MISSING";
	return disk["leaving"] == true ? fmt::format("moving away, {:.0f} %", disk["percent"].get<double>()) : "";
}

Done list_disks(Context &context, bool as_json)
{
	Result<json> answer = context.client().get("/v1/disks", Client::LVM_S);
	if (!answer)
		return answer.error();
	if (as_json) {
		print_json(context, *answer);
		return Nothing{};
	}
	Table table({"HOST", "POOL", "DISK", "SIZE", "USED", ""});
	table.right(3);
	table.right(4);
	for (const json &d : (*answer)["disks"])
		table.row({shown(d["host"]), shown(d["pool"]), shown(d["disk"]), format_bytes(d["size_bytes"]), format_bytes(d["used_bytes"]), state_of(d)});
	context.out << (table.empty() ? "no disks: no host has a pool\n" : table.text());
	for (const json &h : (*answer)["unreachable"])
		context.out << fmt::format("  ! not asked: {}\n", shown(h["message"]));
	return Nothing{};
}

// Until the disk is in no pool any more.
Done watch_disk(Context &context, const std::string &host, const std::string &disk, bool dead)
{
	Progress progress(context, fmt::format("{} {} of host {}", dead ? "taking out" : "emptying", disk, host));
	for (;; std::this_thread::sleep_for(PERIOD)) {
		Result<json> answer = context.client().get("/v1/disks", Client::LVM_S);
		if (!answer)
			return answer.error();
		const json *found = nullptr;
		for (const json &d : (*answer)["disks"])
			if (d["host"] == host && d["disk"] == disk)
				found = &d;
		for (const json &h : (*answer)["unreachable"])
			if (h["host"] == host)
				return failed(fmt::format("{}; it goes on with {} when it is back: see `lockstep disk list`", shown(h["message"]), disk));
		if (!found)
			return Nothing{};
		progress.show((*found)["percent"].get<double>() / 100, fmt::format("{} used", format_bytes((*found)["used_bytes"])));
	}
}

std::string counted(const json &n, const char *one, const char *many) { return fmt::format("{} {}", n.get<uint64_t>(), n == 1 ? one : many); }

// What became of the disks, in words.
void tell_of_disks(Context &context, const json &answer, bool waited)
{
	const std::string host = shown(answer["host"]), pool = shown(answer["pool"]), add = answer["add"], remove = answer["remove"];
	const bool dead = answer.contains("lost");
	if (dead)
		context.out << fmt::format("{} is lost, and with it {} and {}: they are made anew from other hosts' wherever there is room, see `lockstep status`\n",
					   remove, counted(answer["lost"]["replicas"], "replica", "replicas"),
					   counted(answer["lost"]["copies"], "copy of a snapshot", "copies of snapshots"));
	if (!add.empty() && (waited || !dead))
		context.out << fmt::format("{} is a disk of pool {} on host {}\n", add, pool, host);
	if (!remove.empty() && waited)
		context.out << fmt::format("{} is {}no disk of pool {} on host {} any more\n", remove, dead ? "" : "empty, and ", pool, host);
	else if (!remove.empty())
		context.out << fmt::format("{} is being {}: see `lockstep disk list`\n", remove, dead ? "taken out" : "emptied");
}

Done change_disks(Context &context, const json &body, bool wait, bool as_json)
{
	Result<json> answer = context.client().post("/v1/disks", body);
	if (!answer)
		return answer.error();
	if (const std::string remove = (*answer)["remove"]; !remove.empty() && wait)
		if (Done gone = watch_disk(context, shown((*answer)["host"]), remove, answer->contains("lost")); !gone)
			return gone;
	if (as_json)
		print_json(context, *answer);
	else
		tell_of_disks(context, *answer, wait);
	return Nothing{};
}

struct DiskOptions {
	std::string pool, host, disk, by;
	bool as_json = false, no_wait = false;
};

void add_flags(CLI::App &command, DiskOptions &o, bool waits)
{
	if (waits)
		command.add_flag("--no-wait", o.no_wait, "Return as soon as it has begun");
	command.add_flag("--json", o.as_json, "Print JSON");
}

}    // namespace

void add_pool_disks(CLI::App &pool, Context &context, Action &action)
{
	auto o = std::make_shared<DiskOptions>();
	CLI::App *add = pool.add_subcommand("add-disk", "Give a pool one more disk; a thin pool grows into it");
	CLI::App *remove = pool.add_subcommand("remove-disk", "Move what is on a disk to the other disks of its pool, and take it out");
	for (CLI::App *command : {add, remove}) {
		command->add_option("POOL", o->pool, "Name of the pool")->required();
		command->add_option("HOST", o->host, "Host whose disk it is")->required();
		command->add_option("DISK", o->disk, command == add ? "An unused disk, such as /dev/sdc" : "See `lockstep disk list`")->required();
	}
	add_flags(*add, *o, false);
	add_flags(*remove, *o, true);
	add->callback([=, &context, &action] {
		action = [=, &context] { return change_disks(context, {{"host", o->host}, {"pool", o->pool}, {"add", o->disk}}, false, o->as_json); };
	});
	remove->callback([=, &context, &action] {
		action = [=, &context] { return change_disks(context, {{"host", o->host}, {"pool", o->pool}, {"remove", o->disk}}, !o->no_wait, o->as_json); };
	});
}

void add_disk(CLI::App &app, Context &context, Action &action)
{
	auto o = std::make_shared<DiskOptions>();
	CLI::App *disk = app.add_subcommand("disk", "Disks under the pools")->require_subcommand(1);
	CLI::App *all = disk->add_subcommand("list", "List the disks of all pools, and how far those are that are being emptied");
	all->add_flag("--json", o->as_json, "Print JSON");
	all->callback([=, &context, &action] { action = [=, &context] { return list_disks(context, o->as_json); }; });
	CLI::App *replace = disk->add_subcommand("replace", "Put a disk in another one's place while volumes are in use");
	replace->add_option("HOST", o->host, "Host whose disk it is")->required();
	replace->add_option("OLD", o->disk, "The disk that goes, see `lockstep disk list`; it may be dead and missing")->required();
	replace->add_option("NEW", o->by, "An unused disk, such as /dev/sdc")->required();
	add_flags(*replace, *o, true);
	replace->callback([=, &context, &action] {
		action = [=, &context] {
			return change_disks(context, {{"host", o->host}, {"remove", o->disk}, {"add", o->by}}, !o->no_wait, o->as_json);
		};
	});
}

}    // namespace lockstep::cli
