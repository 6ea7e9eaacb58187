// SPDX-License-Identifier: GPL-2.0-or-later
//
// See why.h. Reads the status, not the State: what it says is never at odds with what `lockstep status` shows.
#include "lockstepd/api/why.h"

#include "lib/units.h"

#include <fmt/format.h>

#include <map>

namespace lockstep {

using nlohmann::json;

namespace {

struct Causes {
	json list = json::array();
	void add(const char *code, const std::string &what, const std::string &todo = "") { list.push_back({{"code", code}, {"what", what}, {"do", todo}}); }
};

std::string text(const json &value) { return value.is_string() ? value.get<std::string>() : std::string(); }

std::string joined(const json &list)
{
	std::string all;
	for (const json &item : list)
		all += (all.empty() ? "" : ", ") + text(item);
	return all;
}

const json &find(const json &list, const json &name)
{
	static const json none = nullptr;
	for (const json &item : list)
		if (item["name"] == name)
			return item;
	return none;
}

// What becomes of a host that is away if nobody does anything.
std::string left_alone(const json &host)
{
	const std::string name = text(host["name"]);
	if (host["status"] == "evicted")
		return fmt::format("its replicas are being made anew elsewhere; if it never comes back: `lockstep host lost {}`", name);
	if (host["evicted_in_ms"].is_number())
		return fmt::format("bring it back; otherwise its replicas are made anew elsewhere in {}, or at once after `lockstep host lost {}`",
				   format_seconds((host["evicted_in_ms"].get<uint64_t>() + 999) / 1000), name);
	return fmt::format("bring it back; nothing is made anew elsewhere by itself ({}); if it never comes back: `lockstep host lost {}`",
			   text(host["not_evicted_why"]), name);
}

void no_quorum(const json &status, Causes &causes)
{
	if (status["cluster"]["quorum"] == true)
		return;
	std::string away;
	for (const json &h : status["hosts"])
		if (h["status"] != "online" && h["name"] != status["this_host"])
			away += (away.empty() ? "" : ", ") + text(h["name"]);
	causes.add("no-quorum", fmt::format("host {} hears of no leader: a majority of the hosts that vote cannot be reached from it", text(status["this_host"])),
		   away.empty() ? "look at the network of this host, and at `systemctl status lockstepd` on the others"
				: fmt::format("bring back hosts or their network until a majority is there; last known as offline: {}", away));
}

void explain_replica(const json &status, const json &v, const json &r, Causes &causes)
{
	const std::string host = text(r["host"]), volume = text(v["name"]);
	const json &h = find(status["hosts"], r["host"]);
	const bool online = r["online"] == true;
	if (r["created"] != true) {
		causes.add("replica-not-made", fmt::format("its replica on host {} is not there yet", host),
			   online ? fmt::format("if that lasts: see the log of lockstepd on {}", host) : left_alone(h));
	} else if (r["wanted"] != true && h.is_object() && h["status"] == "evicted") {
		causes.add("host-evicted", fmt::format("host {} with a replica has been away too long and is given up", host), left_alone(h));
	} else if (r["state"] == "failed") {
		causes.add("disk-failed", fmt::format("the disk under the replica on host {} failed (pool {})", host, text(r["pool"])),
			   fmt::format("replace the disk there; `lockstep volume replica move {} {}` makes the replica anew on another host", volume, host));
	} else if (!online) {
		causes.add("host-offline", fmt::format("host {} with a replica is offline", host), left_alone(h));
	} else if (r["wanted"] != true) {
		causes.add("replica-leaves", fmt::format("the replica on host {} goes as soon as enough others are in sync", host));
	} else if (r["state"] == "suspect") {
		causes.add("restarted-unclean",
			   fmt::format("host {} lost power or crashed while the volume was written: its replica may lack the last writes", host),
			   "it is resynced from another replica by itself, or used last if there is no other");
	} else if (r["state"] == "syncing") {
		std::string left;
		if (r["dirty_bytes"].is_number())
			left = ", " + format_bytes(r["dirty_bytes"]) + " to copy";
		if (r["eta_s"].is_number())
			left += ", " + format_seconds(r["eta_s"]) + " left";
		causes.add("syncing", fmt::format("the replica on host {} is being resynced{}", host, left), "");
	} else if (r["state"] != "insync") {
		causes.add("not-in-sync", fmt::format("the replica on host {} is not in sync and not being resynced", host),
			   v["primary"].is_null() ? "it is resynced as soon as the volume is served: open it, or `lockstep primary " + volume + " HOST`"
						  : fmt::format("if that lasts: see the log of lockstepd on {} and on {}", text(v["primary"]), host));
	}
}

// A snapshot that is not beside every replica ends with fewer hosts than the volume.
void explain_snapshots(const json &status, const json &v, Causes &causes)
{
	std::map<std::pair<std::string, std::string>, std::vector<std::string>> without;
	for (const json &s : status["snapshots"])
		for (const json &w : s["volume"] == v["name"] ? s["without_room"] : json::array())
			without[{text(w["host"]), text(w["message"])}].push_back(text(s["name"]));
	for (const auto &[where, names] : without)
		causes.add("no-room-for-snapshot",
			   fmt::format("snapshot {}{} gets no copy on host {}: {}", names[0], names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : "",
				       where.first, where.second),
			   "add a disk to that pool, delete snapshots, or move replicas away: the copy is then made by itself");
}

void explain_use(const json &v, Causes &causes)
{
	const std::string name = text(v["name"]);
	for (const json &p : v["problems"])
		causes.add("host-problem", fmt::format("host {} says: {}", text(p["host"]), text(p["message"])));
	for (const json &r : v["opens_refused"])
		causes.add("open-refused", fmt::format("an open on host {} was refused, since it is open on host {}", text(r["host"]), text(r["holder"])),
			   fmt::format("close it there: `lockstep openers {}` shows the processes", name));
	if (!v["devices_missing"].empty())
		causes.add("device-missing", fmt::format("there is no device on {}", joined(v["devices_missing"])),
			   "see the log of lockstepd there; is the module loaded?");
	if (v["suspended_since_ms"].is_number())
		causes.add("suspended", fmt::format("its writes wait: an administrator has suspended them, on host {}", text(v["primary"])),
			   fmt::format("`lockstep resume-io {}` lets them go on", name));
	else if (v["quiesced"] == true)
		causes.add("quiesced", "its writes are held for a snapshot; that ends by itself");
	if (v["reverting"] == true)
		causes.add("reverting", "its replicas get the content of a snapshot");
	if (const json &g = v["growth"]; !g.is_null())
		causes.add("growing", fmt::format("it grows to {} and waits for {}", format_bytes(g["to_bytes"]), joined(g["waiting_for"])),
			   "it goes on by itself when these hosts are online");
	if (const json &c = v["verify"]; c.is_object() && c["differ_blocks"].get<uint64_t>())
		causes.add("replicas-differ", fmt::format("a verify found {} blocks that differ between its replicas", c["differ_blocks"].get<uint64_t>()),
			   fmt::format("`lockstep verify {} --repair` rewrites them with the primary's content", name));
}

}    // namespace

json why_volume(const json &status, const json &v)
{
	Causes causes;
	const std::string name = text(v["name"]), health = text(v["health"]);
	no_quorum(status, causes);
	if (std::string e = text(status["module_error"]); !e.empty())
		causes.add("module-missing", e);
	if (health == "deleting") {
		const json pending = v.value("pending_hosts", json::array());
		causes.add("deleting", text(v["reason"]).empty() ? "it is being deleted" : "it is being removed again: " + text(v["reason"]),
			   pending.empty() ? "" : fmt::format("{} still has to remove its part: bring it back, or see the log of lockstepd there", joined(pending)));
		return causes.list;
	}
	if (health == "frozen")
		causes.add("frozen", "requests wait: " + text(v["reason"]),
			   v["no_quorum"] == "freeze" ? fmt::format("they go on by themselves then; to have them fail now: `lockstep volume abort {}`", name) : "");
	if (health == "offline")
		causes.add("no-good-copy", text(v["reason"]), "a replica that is not in sync is never served in its place");
	for (const json &r : v["replicas"])
		explain_replica(status, v, r, causes);
	size_t kept = 0;
	for (const json &r : v["replicas"])
		kept += r["wanted"] == true;
	if (const uint64_t redundancy = v["redundancy"]; kept < redundancy) {
		const std::string obstacle = text(v["changes"]["obstacle"]);
		causes.add(obstacle.empty() ? "replica-missing" : "no-room", fmt::format("{} of {} replicas are missing{}", redundancy - kept, redundancy,
			   obstacle.empty() ? "" : ", and no host can take one: " + obstacle),
			   obstacle.empty() ? "one is being added by itself"
					    : fmt::format("add a host or room in a pool, or accept fewer with `lockstep volume redundancy {} {}`", name,
							  std::max<size_t>(kept, 1)));
	}
	if (const json &behind = v["changes"]["left_behind"]; !behind.empty())
		causes.add("left-behind", fmt::format("{} still has the logical volume of a former replica", joined(behind)),
			   "it removes that by itself when it is online");
	for (const json &r : v["replicas"])
		if (const std::string rule = text(r["misplaced"]); r["wanted"] == true && !rule.empty())
			causes.add("misplaced", fmt::format("its replica on host {} is where its rules do not want it: {}", text(r["host"]), rule),
				   fmt::format("`lockstep volume replica move {} {}` makes it anew where it may be, `lockstep volume rules {}` changes them", name,
					       text(r["host"]), name));
	explain_use(v, causes);
	explain_snapshots(status, v, causes);
	if (v["redundancy"] == 1)
		causes.add("single-copy", "it is kept on one host only: it stops with that host",
			   fmt::format("`lockstep volume redundancy {} 2` makes a second replica", name));
	return causes.list;
}

json why_host(const json &status, const json &h)
{
	Causes causes;
	const std::string name = text(h["name"]);
	no_quorum(status, causes);
	if (h["name"] == status["this_host"])
		if (std::string e = text(status["module_error"]); !e.empty())
			causes.add("module-missing", e);
	if (h["status"] == "evicted")
		causes.add("host-evicted", "it has been away too long and is given up", left_alone(h));
	else if (h["status"] != "online")
		causes.add("host-offline", "none of the others hears of it", left_alone(h));
	if (h["evacuating"] == true && h["replicas"] != 0)
		causes.add("evacuating", fmt::format("its {} replicas are being moved to other hosts", h["replicas"].get<unsigned>()),
			   fmt::format("`lockstep host restore {}` calls it off", name));
	if (h["evacuating"] == true && h["replicas"] == 0)
		causes.add("evacuated", "it is empty and takes no replicas",
			   fmt::format("`lockstep host restore {}` lets it take some again, `lockstep host remove {}` takes it out of the cluster", name, name));
	if (h["removing"] == true)
		causes.add("leaving", "it leaves the cluster and has not said its last word yet",
			   fmt::format("it must be online for that; `lockstep host restore {}` calls it off", name));
	for (const json &p : status["pools"])
		if (p["host"] == h["name"] && p["alarm"] != "")
			causes.add("pool-fills-up", fmt::format("its pool {} is {} % full", text(p["name"]), p["used_percent"].get<unsigned>()),
				   p["alarm"] == "full" ? "it takes nothing new: add a disk, or move replicas away"
							: "add a disk or move replicas away before it is full");
	for (const json &v : status["volumes"])
		for (const json &r : v["replicas"]) {
			if (r["host"] != h["name"])
				continue;
			if (h["evacuating"] == true && !text(v["changes"]["obstacle"]).empty())
				causes.add("no-room", fmt::format("the replica of volume {} cannot go elsewhere: {}", text(v["name"]), text(v["changes"]["obstacle"])),
					   "add a host, or room in a pool");
			if (r["state"] == "failed")
				causes.add("disk-failed", fmt::format("the disk under its replica of volume {} failed (pool {})", text(v["name"]), text(r["pool"])),
					   fmt::format("bring it back, or put another in its place: `lockstep disk replace {} OLD NEW`, see `lockstep disk list`", name));
			else if (h["status"] == "online" && r["wanted"] == true && r["state"] != "insync")
				causes.add("not-in-sync", fmt::format("its replica of volume {} is {}", text(v["name"]), text(r["state"])),
					   fmt::format("see `lockstep why {}`", text(v["name"])));
		}
	return causes.list;
}

}    // namespace lockstep
