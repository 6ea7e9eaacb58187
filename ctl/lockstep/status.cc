// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep status and wait-sync. The status tells first whether all is well, then what is not and what is being done about
// it, replica by replica, with how much is missing and how long it will take.
#include "lockstep/progress.h"
#include "lockstep/rules.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <sstream>

namespace lockstep::cli {

namespace {

std::string counted(size_t n, const char *what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); }

// "2 ok, 1 syncing", worst first.
std::string health_counts(const json &volumes)
{
	std::map<std::string, size_t> counts;
	for (const json &v : volumes)
		counts[v["health"]]++;
	std::string text;
	for (const char *h : {"offline", "frozen", "degraded", "syncing", "creating", "deleting", "ok"})
		if (counts[h])
			text += fmt::format("{}{} {}", text.empty() ? "" : ", ", counts[h], h);
	return text;
}

std::string headline(const json &status)
{
	const json &hosts = status["hosts"], &volumes = status["volumes"];
	auto away = size_t(std::count_if(hosts.begin(), hosts.end(), [](const json &h) { return h["status"] != "online"; }));
	std::string text = fmt::format("cluster {}: {}", shown(status["cluster"]["name"]), counted(hosts.size(), "host"));
	text += away ? fmt::format(" ({} OFFLINE)", away) : std::string(hosts.size() == 1 ? " (online)" : " (all online)");
	text += ", " + counted(volumes.size(), "volume");
	if (!volumes.empty())
		text += " (" + health_counts(volumes) + ")";
	return text;
}

std::string replica_text(const json &r)
{
	std::string state = r["state"];
	bool online = r["online"];
	std::string text = shown(r["host"]) + " " + state;
	if (state != "insync" && r["sync_percent"].is_number())
		text += fmt::format(" {:.1f} %", r["sync_percent"].get<double>());
	if (state != "insync" && r["dirty_bytes"].is_number() && r["dirty_bytes"] != 0)
		text += ", " + format_bytes(r["dirty_bytes"]) + " to copy";
	if (r["rate_bytes_s"].is_number())
		text += ", " + format_bytes(r["rate_bytes_s"]) + "/s";
	if (r["eta_s"].is_number())
		text += ", " + format_seconds(r["eta_s"]) + " left";
	if (state == "insync" && online && r["attached"] != true)
		text += ", not attached yet";
	if (r["created"] != true)
		text = shown(r["host"]) + " is being made";
	else if (r["wanted"] != true)
		text += ", leaves";
	else if (r["pinned"] == true)
		text += ", pinned";
	return online ? text : text + " (host offline)";
}

// A volume's rows: what is the same for all replicas stands in the first.
void volume_rows(Table &table, const json &v)
{
	std::vector<std::string> row = {shown(v["name"]),    shown(v["health"]), format_bytes(v["size_bytes"]),
					shown(v["primary"]), v["openers"].empty() ? "-" : joined(v["openers"])};
	for (const json &r : v["replicas"]) {
		row.push_back(replica_text(r));
		table.row(row);
		row = std::vector<std::string>(5);
	}
	if (v["replicas"].empty())
		table.row(row);
}

std::string host_trouble(const json &h)
{
	std::string name = shown(h["name"]);
	if (h["status"] == "evicted")
		return fmt::format("host {} is evicted: its replicas are made anew elsewhere, it may still come back", name);
	if (h["status"] == "offline" && h["evicted_in_ms"].is_number())
		return fmt::format("host {} is offline; evicted in {}", name, format_seconds((h["evicted_in_ms"].get<uint64_t>() + 999) / 1000));
	if (h["status"] == "offline")
		return fmt::format("host {} is offline; it is not going to be evicted: {}", name, shown(h["not_evicted_why"]));
	if (h["evacuating"] == true && h["replicas"] != 0)
		return fmt::format("host {} is being evacuated, {} replicas left", name, h["replicas"].get<unsigned>());
	return h["removing"] == true ? fmt::format("host {} is leaving the cluster", name) : "";
}

std::string problems(const json &status)
{
	std::string text;
	auto add = [&](const std::string &line) { text += "  ! " + line + "\n"; };
	if (!status["cluster"]["quorum"].get<bool>())
		add("no quorum: this host hears of no leader, changes wait; volumes that serve go on serving");
	if (std::string e = status.value("module_error", ""); !e.empty())
		add(e);
	for (const json &h : status["hosts"])
		if (std::string line = host_trouble(h); !line.empty())
			add(line);
	for (const json &p : status["pools"])
		if (p["alarm"] != "")
			add(fmt::format("pool {} on host {} is {} % full{}", shown(p["name"]), shown(p["host"]), p["used_percent"].get<unsigned>(),
					p["alarm"] == "full" ? ": it takes nothing new; add a disk or remove volumes" : ""));
	for (const json &v : status["volumes"])
		if (v["health"] != "ok")
			add(fmt::format("volume {} is {}{}", shown(v["name"]), shown(v["health"]),
					shown(v["reason"]) == "-" ? "" : ": " + shown(v["reason"])));
	for (const json &v : status["volumes"]) {
		if (v["suspended_since_ms"].is_number())
			add(fmt::format("volume {}: its writes are suspended; `lockstep resume-io {}` lets them go on", shown(v["name"]), shown(v["name"])));
		for (const json &p : v["problems"])
			add(fmt::format("volume {} on host {}: {}", shown(v["name"]), shown(p["host"]), shown(p["message"])));
		for (const json &r : v["opens_refused"])
			add(fmt::format("volume {}: an open on host {} was refused, it is open on host {}", shown(v["name"]), shown(r["host"]),
					shown(r["holder"])));
	}
	for (const json &v : status["volumes"])
		for (const json &r : v["replicas"])
			if (r["wanted"] == true && shown(r["misplaced"]) != "-")
				add(fmt::format("volume {}: its replica on host {} is misplaced: {}", shown(v["name"]), shown(r["host"]),
						shown(r["misplaced"])));
	for (const json &v : status["volumes"])
		if (shown(v["changes"]["obstacle"]) != "-")
			add("no room for what is missing: " + shown(v["changes"]["obstacle"]));
	return text;
}

void print_status(Context &context, const json &status)
{
	std::string trouble = problems(status);
	context.out << headline(status) << "\n" << trouble << "\n";
	std::string leader = status["cluster"]["leader"].is_string() ? status["cluster"]["leader"].get<std::string>() : "";
	Table hosts({"HOST", "STATUS", "SINCE", "ADDRESSES", ""});
	for (const json &h : status["hosts"])
		hosts.row({shown(h["name"]), host_status(h), since(h, context.now_ms()), host_address(h),
			   h["name"] == leader ? "leader" : ""});
	context.out << hosts.text();
	if (status["volumes"].empty())
		return;
	Table volumes({"VOLUME", "HEALTH", "SIZE", "PRIMARY", "OPEN ON", "REPLICAS"});
	volumes.right(2);
	for (const json &v : status["volumes"])
		volume_rows(volumes, v);
	context.out << "\n" << volumes.text();
}

void print_volume(Context &context, const json &v)
{
	context.out << fmt::format("volume {}: {}{}\n\n", shown(v["name"]), shown(v["health"]),
				   shown(v["reason"]) == "-" ? "" : ", " + shown(v["reason"]));
	Table facts({"device", shown(v["device"])});
	facts.row({"size", format_bytes(v["size_bytes"])});
	facts.row({"redundancy", shown(v["redundancy"])});
	facts.row({"class", shown(v["class"])});
	facts.row({"placement", rules_text(v["rules"])});
	facts.row({"primary", shown(v["primary"]) + (v["chosen_primary"].is_null() ? "" : ", chosen: " + shown(v["chosen_primary"])) +
				      (v["handover_to"].is_null() ? "" : ", hands over to " + shown(v["handover_to"]))});
	facts.row({"open on", v["openers"].empty() ? "-" : joined(v["openers"])});
	facts.row({"without quorum", v["no_quorum"] == "error" ? "gives errors" : "freezes"});
	if (const json &since_ms = v["suspended_since_ms"]; since_ms.is_number())
		facts.row({"writes", "suspended since " + format_seconds((context.now_ms() - std::min(context.now_ms(), since_ms.get<uint64_t>())) / 1000)});
	if (!v["devices_missing"].empty())
		facts.row({"no device on", joined(v["devices_missing"])});
	if (const json &g = v["growth"]; !g.is_null())
		facts.row({"grows to", fmt::format("{}, {} of {} replicas are ready, waiting for {}", format_bytes(g["to_bytes"]),
						   g["steps_done"].get<size_t>(), g["steps"].get<size_t>(), joined(g["waiting_for"]))});
	if (const json &c = v["verify"]; !c.is_null())
		facts.row({"verify", fmt::format("{} of {} blocks compared, {} differ", c["done_blocks"].get<uint64_t>(),
						 c["total_blocks"].get<uint64_t>(), c["differ_blocks"].get<uint64_t>())});
	if (v["reverting"] == true)
		facts.row({"reverting", "its replicas get the content of a snapshot"});
	const json &record = v["record"];
	facts.row({"record", fmt::format("version {}, term {}, incarnation {}", record["version"].get<uint64_t>(), record["term"].get<uint64_t>(),
					 record["incarnation"].get<uint64_t>())});
	facts.row({"uuid", shown(v["uuid"])});
	if (v.contains("pending_hosts"))
		facts.row({"to be removed on", joined(v["pending_hosts"])});
	Table replicas({"REPLICA", "POOL", "LV"});
	for (const json &r : v["replicas"])
		replicas.row({replica_text(r), shown(r["pool"]), shown(r["lv_path"])});
	context.out << facts.text() << "\n" << replicas.text();
}

Done status(Context &context, const std::string &volume, bool as_json)
{
	Result<json> answer = as_json && volume.empty() ? context.client().get("/v1/status") : cluster_status(context, volume);
	if (!answer)
		return answer.error();
	if (as_json)
		print_json(context, *answer);
	else if (volume.empty())
		print_status(context, *answer);
	else
		for (const json &v : (*answer)["volumes"])
			print_volume(context, v);
	return Nothing{};
}

// Draws the status again whenever something in it has changed; off a terminal one after the other, JSON one object a line.
Done watch(Context &context, const std::string &volume, bool as_json)
{
	std::string last;
	for (unsigned round = 0;; round++) {
		std::ostringstream text;
		Context page{text, context.err, context.socket, context.is_root, context.now_ms};
		Result<json> answer = cluster_status(context, volume);
		if (!answer)
			return answer.error();
		if (as_json)
			text << answer->dump() << "\n";
		else if (volume.empty())
			print_status(page, *answer);
		else
			for (const json &v : (*answer)["volumes"])
				print_volume(page, v);
		if (text.str() != last && context.terminal && !as_json)
			context.out << "\033[H\033[J" << text.str();
		else if (text.str() != last)
			context.out << (last.empty() || as_json ? "" : "\n") << text.str();
		context.out.flush();
		last = text.str();
		if (context.rounds && round + 1 >= context.rounds)
			return Nothing{};
		Result<json> moved = context.client().get(
			fmt::format("/v1/wait?index={}&ms={}&volume={}", (*answer)["applied"].get<uint64_t>(), POLL_MS, url_encode(volume)));
		if (!moved)
			return moved.error();
	}
}

// ---- wait-sync -----------------------------------------------------------------------------------------------------

// What is not in sync yet, one text a replica.
std::vector<std::string> missing(const json &volumes)
{
	std::vector<std::string> list;
	for (const json &v : volumes) {
		if (v["phase"] != "ready") {
			list.push_back(fmt::format("volume {} is {}", shown(v["name"]), shown(v["phase"])));
			continue;
		}
		size_t kept = 0;
		for (const json &r : v["replicas"]) {
			kept += r["wanted"] == true;
			// One that is kept in mind of a host that is away may never come back.
			const bool whole = r["state"] == "insync" && r["online"] == true && r["attached"] == true;
			if (r["wanted"] == true ? !whole : r["online"] == true)
				list.push_back(fmt::format("volume {}: {}", shown(v["name"]), replica_text(r)));
		}
		if (kept != v["redundancy"])
			list.push_back(fmt::format("volume {}: {} of {} replicas", shown(v["name"]), kept, v["redundancy"].get<unsigned>()));
		if (!v["devices_missing"].empty())
			list.push_back(fmt::format("volume {}: no device yet on {}", shown(v["name"]), joined(v["devices_missing"])));
	}
	return list;
}

// The named volumes, or all that are not being deleted.
Result<json> chosen(const json &status, const std::vector<std::string> &names)
{
	json volumes = json::array();
	for (const json &v : status["volumes"])
		if (names.empty() && v["phase"] != "deleting")
			volumes.push_back(v);
	for (const std::string &name : names) {
		json found;
		for (const json &v : status["volumes"])
			if (v["name"] == name && (found.is_null() || v["phase"] != "deleting"))
				found = v;
		if (found.is_null() || found["phase"] == "deleting")
			return not_found("there is no volume named " + name);
		volumes.push_back(found);
	}
	return volumes;
}

// How much of all wanted copies is there, how much is to be copied, how fast and for how long.
void show_sync(Progress &progress, const json &volumes, const std::string &lacking)
{
	uint64_t all = 0, dirty = 0, rate = 0, left_s = 0;
	for (const json &v : volumes)
		for (const json &r : v["replicas"]) {
			if (r["wanted"] != true)
				continue;
			all += v["size_bytes"].get<uint64_t>();
			dirty += r["dirty_bytes"].is_number() ? r["dirty_bytes"].get<uint64_t>() : 0;
			rate += r["rate_bytes_s"].is_number() ? r["rate_bytes_s"].get<uint64_t>() : 0;
			left_s = std::max(left_s, r["eta_s"].is_number() ? r["eta_s"].get<uint64_t>() : 0);
		}
	std::string rest = dirty ? format_bytes(dirty) + " to copy" : lacking;
	if (rate)
		rest += ", " + format_bytes(rate) + "/s";
	if (left_s)
		rest += ", " + format_seconds(left_s) + " left";
	progress.show(all ? std::min(double(all - std::min(dirty, all)) / double(all), .999) : 0, rest);    // never 100 % while something is missing
}

Done wait_sync(Context &context, const std::vector<std::string> &names, double timeout_s)
{
	Progress progress(context, "in sync:");
	const uint64_t begin_ms = context.now_ms(), limit_ms = uint64_t(timeout_s * 1000);
	// Whoever waits for one volume is told of that one.
	const std::string one = names.size() == 1 ? names[0] : "";
	Result<json> status = cluster_status(context, one);
	for (;;) {
		if (!status)
			return status.error();
		Result<json> volumes = chosen(*status, names);
		if (!volumes)
			return volumes.error();
		std::vector<std::string> lacking = missing(*volumes);
		if (lacking.empty()) {
			progress.end();
			json names = json::array();
			for (const json &v : *volumes)
				names.push_back(v["name"]);
			return told(context, {{"in_sync", names}}, fmt::format("{} in sync\n", counted(volumes->size(), "volume")));
		}
		uint64_t waited_ms = context.now_ms() - begin_ms;
		if (limit_ms && waited_ms >= limit_ms) {
			std::string text = lacking[0];
			for (size_t i = 1; i < lacking.size(); i++)
				text += "; " + lacking[i];
			return failed(fmt::format("not in sync after {}: {}", format_seconds(waited_ms / 1000), text));
		}
		show_sync(progress, *volumes, lacking[0]);
		uint64_t poll_ms = limit_ms ? std::min<uint64_t>(POLL_MS, limit_ms - waited_ms) : POLL_MS;
		status = context.client().get(fmt::format("/v1/wait?index={}&ms={}{}", (*status)["applied"].get<uint64_t>(), poll_ms,
							  one.empty() ? "" : "&volume=" + url_encode(one)));
	}
}

}    // namespace

void add_status(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string volume;
		std::vector<std::string> volumes;
		bool as_json = false, watch = false;
		double timeout_s = 0;
	};
	auto o = std::make_shared<Options>();
	CLI::App *status_command = app.add_subcommand("status", "Health of the cluster, its hosts and volumes");
	status_command->add_option("VOLUME", o->volume, "Only this volume, in detail");
	status_command->add_flag("--json", o->as_json, "Print JSON");
	status_command->add_flag("--watch", o->watch, "Go on showing it as it changes, until interrupted");
	status_command->callback([=, &context, &action] {
		action = [=, &context] { return o->watch ? watch(context, o->volume, o->as_json) : status(context, o->volume, o->as_json); };
	});
	CLI::App *wait_command = app.add_subcommand("wait-sync", "Wait until all replicas are in sync");
	wait_command->add_option("VOLUME", o->volumes, "Only these volumes");
	wait_command->add_option("--timeout", o->timeout_s, "Give up after so many seconds, with exit status 10 (default: never)")
		->check(CLI::Range(0.001, 1e7));
	wait_command->callback([=, &context, &action] { action = [=, &context] { return wait_sync(context, o->volumes, o->timeout_s); }; });
}

}    // namespace lockstep::cli
