// SPDX-License-Identifier: GPL-2.0-or-later
//
// See operations.h; and the API's handlers for it.
#include "lockstepd/api/operations.h"

#include "lib/units.h"
#include "lockstepd/api/impl.h"
#include "lockstepd/api/soft.h"
#include "lockstepd/cluster/repair.h"

#include <fmt/format.h>

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

struct Operation {
	std::string id, kind, what;
	json volume = nullptr, host = nullptr, percent = nullptr, eta_s = nullptr;
	std::string waits_for = {};
	bool can_cancel = false;
};

json to_json(const Operation &o)
{
	return {{"id", o.id},           {"kind", o.kind},   {"volume", o.volume},       {"host", o.host},
		{"what", o.what},       {"percent", o.percent}, {"eta_s", o.eta_s}, {"waits_for", o.waits_for}, {"can_cancel", o.can_cancel}};
}

Operation of_volume(const char *kind, const Volume &v, std::string what)
{
	return {std::string(kind) + ":" + v.name, kind, std::move(what), v.name};
}

Operation of_replica(const State &s, const char *kind, const Volume &v, HostId host, std::string what)
{
	return {std::string(kind) + ":" + v.name + "@" + s.host_name(host), kind, std::move(what), v.name, s.host_name(host)};
}

// Rounded down to a tenth: never 100 while something is missing.
json percent_of(uint64_t done, uint64_t all) { return all ? json(double(done * 1000 / all) / 10) : json(nullptr); }

std::string offline(const State &s, HostId host) { return s.online(host) ? "" : "host " + s.host_name(host) + " is offline"; }

const json &verify_of(const Reports &soft, const Volume &v) { return soft_object(soft.of(v.primary, v.vid), "verify"); }

// ---- what a volume has on its way ----

// A replica that is made by copying is made in part: what its host says of that.
void add_content(const Volume &v, const Reports &soft, Operation &o)
{
	uint64_t done = 0, all = 0, changed = 0;
	double made = 0;    // replicas
	for (const Replica &r : v.replicas) {
		const json &making = soft_object(soft.of(r.host, v.vid), "making");
		const uint64_t done_here = soft_number(making, "done_bytes"), all_here = soft_number(making, "total_bytes");
		made += r.created ? 1 : all_here ? double(std::min(done_here, all_here)) / double(all_here) : 0;
		if (r.created)
			continue;
		done += done_here;
		all += all_here;
		changed += soft_number(making, "changed_bytes");
	}
	if (!all)
		return;
	o.what += fmt::format("; {} of {} are compared and copied, {} differed", format_bytes(done), format_bytes(all), format_bytes(changed));
	o.percent = percent_of(uint64_t(made * 1000), v.replicas.size() * 1000);
}

void add_phase(const State &s, const Volume &v, const Reports &soft, std::vector<Operation> &list)
{
	if (v.phase == Phase::creating) {
		const auto made = size_t(std::count_if(v.replicas.begin(), v.replicas.end(), [](const Replica &r) { return r.created; }));
		Operation o = of_volume("create", v, fmt::format("{} of {} replicas are made", made, v.replicas.size()));
		o.percent = percent_of(made, v.replicas.size());
		add_content(v, soft, o);
		list.push_back(std::move(o));
	}
	if (v.phase == Phase::deleting) {
		std::string hosts;
		for (HostId h : v.hosts_with_something())
			hosts += (hosts.empty() ? "" : ", ") + s.host_name(h);
		Operation o = of_volume("delete", v, "still to be removed on " + hosts);
		for (HostId h : v.hosts_with_something())
			if (o.waits_for.empty())
				o.waits_for = offline(s, h);
		list.push_back(std::move(o));
	}
}

void add_resize(const State &s, const Volume &v, std::vector<Operation> &list)
{
	if (!v.grow_bytes)
		return;
	size_t ready = 0;
	std::string waits;
	for (const Replica &r : v.replicas) {
		const bool moved = !r.next_offset && !r.wipe;
		ready += moved;
		if (!moved && waits.empty())
			waits = offline(s, r.host);
	}
	Operation o = of_volume("resize", v, fmt::format("to {}: {} of {} replicas are ready", format_bytes(v.grow_bytes), ready, v.replicas.size()));
	o.percent = percent_of(ready, v.replicas.size());
	o.waits_for = waits;
	list.push_back(std::move(o));
}

void add_verify(const Volume &v, const Reports &soft, std::vector<Operation> &list)
{
	const json &verify = verify_of(soft, v);
	const uint64_t all = soft_number(verify, "total_blocks"), done = soft_number(verify, "done_blocks");
	if (verify.empty() || done >= all)
		return;
	Operation o = of_volume("verify", v, fmt::format("{} of {} blocks compared, {} differ", done, all, soft_number(verify, "differ_blocks")));
	o.percent = percent_of(done, all);
	o.can_cancel = true;
	list.push_back(std::move(o));
}

void add_sync(const State &s, const Volume &v, const Replica &r, const Reports &soft, std::vector<Operation> &list)
{
	if (r.in_sync() || !wanted(s, r))
		return;
	Operation o = of_replica(s, "sync", v, r.host, r.created ? "it waits to be resynced" : "it is being made");
	const json &peer = soft_object(soft_object(soft.of(v.primary, v.vid), "peers"), std::to_string(r.host));
	const uint64_t all = (v.size_bytes + v.block_size - 1) / v.block_size;
	if (soft_has_number(peer, "dirty_blocks")) {
		const uint64_t dirty = std::min(soft_number(peer, "dirty_blocks"), all), rate = soft_number(peer, "rate_blocks_s");
		o.what = format_bytes(dirty * v.block_size) + " to copy";
		o.percent = percent_of(all - dirty, all);
		if (rate)
			o.eta_s = (dirty + rate - 1) / rate;
	}
	o.waits_for = r.state == ReplicaState::failed ? "its disk has failed" : offline(s, r.host);
	if (o.waits_for.empty() && !v.primary)
		o.waits_for = "the volume is not served by any host now";
	list.push_back(std::move(o));
}

// The replica that takes the place of one that leaves; nullptr: none does.
const Replica *heir_of(const Volume &v, HostId host)
{
	auto at = std::find_if(v.replicas.begin(), v.replicas.end(), [&](const Replica &r) { return r.instead_of == host; });
	return at == v.replicas.end() ? nullptr : &*at;
}

void add_replicas(const State &s, const Volume &v, const Reports &soft, std::vector<Operation> &list)
{
	for (const Replica &r : v.replicas) {
		add_sync(s, v, r, soft, list);
		if (!r.leaving)
			continue;
		const Replica *heir = heir_of(v, r.host);
		Operation o = of_replica(s, heir ? "move" : "leave", v, r.host,
					 heir ? "to host " + s.host_name(heir->host) : std::string("it goes when enough others are in sync"));
		o.waits_for = repair_obstacle(s, v);
		o.can_cancel = true;
		list.push_back(std::move(o));
	}
	for (const Remnant &r : v.remnants) {
		Operation o = of_replica(s, "purge", v, r.host, r.renew ? "the old replica goes, a new one comes" : "a former replica is removed");
		o.waits_for = offline(s, r.host);
		list.push_back(std::move(o));
	}
}

// ---- hosts, snapshots, disks ----

struct Held {
	size_t replicas = 0, remnants = 0;
};

Held held_by(const State &s, HostId host)
{
	Held held;
	for (const auto &[vid, v] : s.volumes) {
		held.replicas += v.replica(host) != nullptr;
		held.remnants += v.remnant(host) != nullptr;
	}
	return held;
}

void add_host(const State &s, const Host &h, std::vector<Operation> &list)
{
	const Held held = h.evacuating ? held_by(s, h.id) : Held{};
	if (h.evacuating && !h.removing && (held.replicas || held.remnants)) {
		Operation o = {"evacuate:" + h.name, "evacuate", fmt::format("{} replicas left, {} to delete", held.replicas, held.remnants)};
		o.host = h.name;
		o.can_cancel = true;
		for (const auto &[vid, v] : s.volumes)
			if (o.waits_for.empty() && v.replica(h.id))
				o.waits_for = repair_obstacle(s, v);
		if (o.waits_for.empty() && !held.replicas)
			o.waits_for = offline(s, h.id);
		list.push_back(std::move(o));
	}
	if (h.removing) {
		Operation o = {"remove:" + h.name, "remove", "it takes its devices down"};
		o.host = h.name;
		o.can_cancel = true;
		o.waits_for = offline(s, h.id);
		list.push_back(std::move(o));
	}
}

void add_groups(const State &s, std::vector<Operation> &list)
{
	for (const auto &[name, g] : s.groups) {
		if (!g.spreading)
			continue;
		const GroupChange c = group_change(s, g);
		Operation o = {"redundancy:" + name, "redundancy", fmt::format("{} of {} volumes have {} good {}", c.done, c.all, g.redundancy,
									       g.redundancy == 1 ? "copy" : "copies")};
		o.percent = percent_of(c.done, c.all);
		o.waits_for = c.obstacle;
		list.push_back(std::move(o));
	}
}

void add_snapshots(const State &s, std::vector<Operation> &list)
{
	for (const auto &[sid, x] : s.snapshots) {
		if (x.phase == SnapshotPhase::ready)
			continue;
		const bool prepares = x.phase == SnapshotPhase::preparing;
		const auto done = std::ranges::count_if(x.copies, prepares ? &SnapshotCopy::prepared : &SnapshotCopy::taken);
		Operation o = {"snapshot:" + x.volume + "/" + x.name, "snapshot", to_string(x.phase)};
		if (prepares || x.phase == SnapshotPhase::taking)
			o.what += fmt::format(", {} of {} copies", done, x.copies.size());
		o.volume = x.volume;
		for (const SnapshotCopy &c : x.copies)
			if (o.waits_for.empty())
				o.waits_for = offline(s, c.host);
		list.push_back(std::move(o));
	}
}

void add_disks(const State &s, const Reports &soft, std::vector<Operation> &list)
{
	for (const auto &[id, h] : s.hosts)
		for (const auto &[disk, percent] : soft.disks(id).items()) {
			Operation o = {"disk:" + h.name + ":" + disk, "disk", "what is on it is moved to other disks"};
			o.host = h.name;
			if (percent.is_number())
				o.percent = double(uint64_t(percent.get<double>() * 10)) / 10;
			o.waits_for = offline(s, id);
			list.push_back(std::move(o));
		}
}

// "a:b" of an id; the second may hold more of either.
std::pair<std::string, std::string> parts(const std::string &text, char by)
{
	const size_t at = text.find(by);
	return {text.substr(0, at), at == text.npos ? "" : text.substr(at + 1)};
}

}    // namespace

json operations_json(const State &s, const Reports &soft)
{
	std::vector<Operation> list;
	for (const auto &[vid, v] : s.volumes) {
		add_phase(s, v, soft, list);
		if (v.phase != Phase::ready)
			continue;
		add_resize(s, v, list);
		add_verify(v, soft, list);
		add_replicas(s, v, soft, list);
	}
	for (const auto &[id, h] : s.hosts)
		add_host(s, h, list);
	add_groups(s, list);
	add_snapshots(s, list);
	add_disks(s, soft, list);
	std::sort(list.begin(), list.end(), [](const Operation &a, const Operation &b) { return a.id < b.id; });
	json all = json::array();
	for (const Operation &o : list)
		all.push_back(to_json(o));
	return all;
}

bool operation_is_done(const State &s, const Reports &soft, const std::string &id)
{
	const auto [kind, object] = parts(id, ':');
	if (kind == "evacuate") {
		const Host *h = s.host_named(object);
		return h && h->evacuating;
	}
	if (kind == "redundancy")
		return s.groups.contains(object) && !s.groups.at(object).spreading;
	const auto [name, where] = parts(object, '@');
	const Volume *v = s.volume_named(name);
	if (!v || v->phase != Phase::ready)
		return false;
	if (kind == "create" || kind == "resize")
		return true;
	if (kind == "verify")
		return !verify_of(soft, *v).empty();
	const Host *h = s.host_named(where);
	const Replica *r = h ? v->replica(h->id) : nullptr;
	if (kind == "sync")
		return r && r->clean();
	return (kind == "move" || kind == "leave" || kind == "purge") && h && !r;
}

// ---- handlers ------------------------------------------------------------------------------------------------------

void ApiServer::Impl::routes_operations()
{
	http.Get("/v1/operations", route(&Impl::operation_list));
	http.Get("/v1/operations/(.+)", route(&Impl::operation_get));
	http.Delete("/v1/operations/(.+)", route(&Impl::operation_cancel));
}

Result<json> ApiServer::Impl::operation_list(const httplib::Request &)
{
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	return operations_json(*backend.state(), said());
}

// With "ms" it waits so long for the operation to move on from "percent" or to end.
Result<json> ApiServer::Impl::operation_get(const httplib::Request &req)
{
	const std::string id = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	json found;
	auto look = [&](const State &s) {
		found = nullptr;
		for (json &o : operations_json(s, said()))
			if (o["id"] == id)
				found = std::move(o);
		return found.is_null();
	};
	wait_for(look, unsigned(std::min<uint64_t>(parameter(req, "ms", 0), MAX_POLL_MS)));
	if (!found.is_null()) {
		found["done"] = false;
		return found;
	}
	if (operation_is_done(*backend.state(), said(), id))
		return json{{"id", id}, {"done", true}};
	return coded("no-such-operation", not_found("no operation " + id + " is under way: it was called off or overtaken, or never was"));
}

Result<json> ApiServer::Impl::operation_cancel(const httplib::Request &req)
{
	const std::string id = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	const std::shared_ptr<const State> s = backend.state();
	json found;
	for (json &o : operations_json(*s, said()))
		if (o["id"] == id)
			found = std::move(o);
	if (found.is_null())
		return coded("no-such-operation", not_found("no operation " + id + " is under way"));
	if (found["can_cancel"] != true)
		return forbidden("operation " + id + " cannot be called off: it goes on by itself, see `lockstep operation show " + id + "`");
	const std::string kind = found["kind"];
	Result<json> result = json();
	if (kind == "verify")
		result = ask_primary(found["volume"], "volume.verify", {{"start", false}, {"repair", false}});
	else if (kind == "evacuate" || kind == "remove")
		result = logged({{"op", "host.restore"}, {"host", *host_of(*s, found["host"])}}, json());
	else
		result = stay(*s->volume_named(found["volume"].get<std::string>()), *host_of(*s, found["host"]));
	return result ? Result<json>(json{{"id", id}}) : result;
}

json ApiServer::Impl::operations_of(const char *field, const std::string &name)
{
	json ids = json::array();
	for (const json &o : operations_json(*backend.state(), said()))
		if (o[field] == name)
			ids.push_back(o["id"]);
	return ids;
}

// A replica that leaves stays. What was to take its place goes instead, else there is one more again.
Result<json> ApiServer::Impl::stay(const Volume &v, HostId host)
{
	Result<json> stays = logged({{"op", "replica.stay"}, {"vid", v.vid}, {"host", host}}, json());
	if (!stays)
		return stays;
	if (const Replica *heir = heir_of(v, host))
		return logged({{"op", "replica.leave"}, {"vid", v.vid}, {"host", heir->host}}, json());
	const std::shared_ptr<const State> s = backend.state();
	const Volume *now = s->volume(v.vid);
	if (!now)
		return stays;
	const auto kept = unsigned(std::count_if(now->replicas.begin(), now->replicas.end(), [&](const Replica &r) { return wanted(*s, r); }));
	return kept <= now->redundancy ? stays : logged({{"op", "volume.redundancy"}, {"vid", v.vid}, {"redundancy", kept}}, json());
}

}    // namespace lockstep
