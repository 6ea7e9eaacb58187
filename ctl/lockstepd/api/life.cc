// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for the life of replicas and hosts, for options and capacity. What takes as long as a resync is answered when it
// has safely begun: the status tells how far it is.
#include "lockstepd/api/impl.h"

#include "lockstepd/cluster/capacity.h"
#include "lockstepd/cluster/option.h"
#include "lockstepd/cluster/repair.h"

namespace lockstep {

using nlohmann::json;

void ApiServer::Impl::routes_life()
{
	http.Post("/v1/volumes/([^/]+)/replicas", route(&Impl::replica_add));
	http.Delete("/v1/volumes/([^/]+)/replicas/([^/]+)", route(&Impl::replica_remove));
	http.Post("/v1/volumes/([^/]+)/replicas/([^/]+)/move", route(&Impl::replica_move));
	http.Post("/v1/volumes/([^/]+)/replicas/([^/]+)/pin", route(&Impl::replica_pin));
	http.Post("/v1/volumes/([^/]+)/invalidate", route(&Impl::volume_invalidate));
	http.Post("/v1/volumes/([^/]+)/redundancy", route(&Impl::volume_redundancy));
	http.Post("/v1/hosts/([^/]+)/(evacuate|restore|lost|remove)", route(&Impl::host_verb));
	http.Get("/v1/options", route(&Impl::option_list));
	http.Post("/v1/options/([^/]+)", route(&Impl::option_set));
	http.Get("/v1/pools/([^/]+)/capacity", route(&Impl::capacity_of));
}

// ---- replicas ------------------------------------------------------------------------------------------------------

// Waits until the new replica has been made, or taken back.
Done ApiServer::Impl::wait_created(uint32_t vid, HostId host)
{
	bool there = false, gone = false;
	auto settled = [&](const State &s) {
		const Volume *v = s.volume(vid);
		const Replica *r = v ? v->replica(host) : nullptr;
		there = r && r->created;
		gone = !r;
		return there || gone;
	};
	// The State here may still be the one before the replica was added.
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	wait_for(settled, options.effect_timeout_ms);
	if (there)
		return Nothing{};
	const std::shared_ptr<const State> s = backend.state();
	auto why = s->failures.find(vid);
	if (gone)
		return failed(why != s->failures.end() ? why->second.message : "the volume or its new replica has been removed meanwhile");
	return failed("host " + s->host_name(host) + " has not made the replica yet: see the log of lockstepd there");
}

Result<json> ApiServer::Impl::replica_add(const httplib::Request &req)
{
	std::string name = req.matches[1];
	json body = body_of(req), hosts = json::array();
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	if (!body.contains("hosts"))
		hosts.push_back(nullptr);    // one, where there is most room
	else if (!body["hosts"].is_array() || body["hosts"].empty())
		return usage_error("the field \"hosts\" is not a list of host names");
	for (const json &h : body.value("hosts", json::array())) {
		Result<HostId> id = host_of(*backend.state(), h.is_string() ? h.get<std::string>() : h.dump());
		if (!id)
			return id.error();
		hosts.push_back(*id);
	}
	json made = json::array();
	for (const json &h : hosts) {
		json entry = {{"op", "replica.add"}, {"vid", *vid}, {"asked", true}};
		if (!h.is_null())
			entry["host"] = h;
		Result<json> added = backend.propose(entry);
		if (!added)
			return added.error();
		HostId host = added->at("host");
		if (Done created = wait_created(*vid, host); !created)
			return created.error();
		made.push_back(backend.state()->host_name(host));
	}
	return json{{"name", name}, {"hosts", made}, {"operations", operations_of("volume", name)}};
}

Result<json> ApiServer::Impl::replica_remove(const httplib::Request &req)
{
	std::string name = req.matches[1];
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	Result<HostId> host = host_of(*backend.state(), req.matches[2]);
	if (!host)
		return host.error();
	Result<json> left = backend.propose({{"op", "replica.leave"}, {"vid", *vid}, {"host", *host}, {"lower", true}});
	if (!left)
		return left;
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	// As long as others are being resynced it stays; that is not waited for.
	auto in_record = [&](const State &s) {
		const Volume *v = s.volume(*vid);
		return v && v->replica(*host);
	};
	auto others_good = [&](const State &s) {
		const Volume *v = s.volume(*vid);
		if (!v)
			return true;
		size_t good = 0;
		for (const Replica &r : v->replicas)
			good += r.host != *host && r.clean() && s.online(r.host) && wanted(s, r);
		return good >= v->redundancy;
	};
	auto gone = [&](const State &s) {
		const Volume *v = s.volume(*vid);
		return !v || (!v->replica(*host) && !(v->remnant(*host) && s.online(*host)));
	};
	if (others_good(*backend.state()) || !in_record(*backend.state()))
		wait_for(gone, options.effect_timeout_ms);
	const std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume(*vid);
	json answer = {{"name", name}, {"host", s->host_name(*host)}, {"in_record", in_record(*s)}, {"pending", !gone(*s)}};
	answer["left_behind"] = v && v->remnant(*host);
	answer["operations"] = operations_of("volume", name);
	return answer;
}

Result<json> ApiServer::Impl::replica_move(const httplib::Request &req)
{
	std::string name = req.matches[1];
	json body = body_of(req);
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	Result<HostId> from = host_of(*backend.state(), req.matches[2]);
	if (!from)
		return from.error();
	json entry = {{"op", "replica.move"}, {"vid", *vid}, {"from", *from}};
	if (body.contains("to")) {
		Result<HostId> to = host_of(*backend.state(), text_of(body, "to"));
		if (!to)
			return to.error();
		entry["host"] = *to;
	}
	Result<json> moved = backend.propose(entry);
	if (!moved)
		return moved;
	HostId to = moved->at("host");
	if (Done created = wait_created(*vid, to); !created)
		return created.error();
	return json{{"name", name}, {"from", backend.state()->host_name(*from)}, {"to", backend.state()->host_name(to)},
		    {"operations", operations_of("volume", name)}};
}

Result<json> ApiServer::Impl::replica_pin(const httplib::Request &req)
{
	const std::string name = req.matches[1], where = req.matches[2];
	const json body = body_of(req);
	const Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	const Result<HostId> host = host_of(*backend.state(), where);
	if (!host)
		return host.error();
	const bool pinned = flag_of(body, "pinned");
	return logged({{"op", "replica.pin"}, {"vid", *vid}, {"host", *host}, {"pinned", pinned}}, {{"name", name}, {"host", where}, {"pinned", pinned}});
}

// Answers when the new, empty replica is there.
Result<json> ApiServer::Impl::volume_invalidate(const httplib::Request &req)
{
	std::string name = req.matches[1];
	const json body = body_of(req);
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	Result<HostId> host = host_or_self(body);
	if (!host)
		return host.error();
	Result<json> begun = backend.propose({{"op", "replica.invalidate"}, {"vid", *vid}, {"host", *host}});
	if (!begun)
		return begun;
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	auto settled = [&](const State &s) {
		const Volume *v = s.volume(*vid);
		const Replica *r = v ? v->replica(*host) : nullptr;
		return !v || (r ? r->created : !v->remnant(*host));
	};
	wait_for(settled, options.effect_timeout_ms);
	const std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume(*vid);
	const std::string where = s->host_name(*host);
	if (!v)
		return failed("volume " + name + " has been removed meanwhile");
	if (!settled(*s))
		return failed("volume " + name + ": host " + where + " has not made its replica anew yet; it goes on by itself, see `lockstep status " + name +
			      "` and the log of lockstepd there");
	if (!v->replica(*host)) {
		auto why = s->failures.find(*vid);
		return failed("volume " + name + " gets a replica elsewhere, none could be made on host " + where +
			      (why != s->failures.end() ? ": " + why->second.message : ""));
	}
	return json{{"name", name}, {"host", where}, {"operations", operations_of("volume", name)}};
}

Result<json> ApiServer::Impl::volume_redundancy(const httplib::Request &req)
{
	std::string name = req.matches[1];
	uint64_t redundancy = number_of(body_of(req), "redundancy", UINT32_MAX);
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	return logged({{"op", "volume.redundancy"}, {"vid", *vid}, {"redundancy", redundancy}}, {{"name", name}, {"redundancy", redundancy}});
}

// ---- hosts ---------------------------------------------------------------------------------------------------------

Result<json> ApiServer::Impl::host_verb(const httplib::Request &req)
{
	std::string name = req.matches[1], verb = req.matches[2];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	Result<HostId> host = host_of(*backend.state(), name);
	if (!host)
		return host.error();
	json entry = {{"op", "host." + verb}, {"host", *host}};
	if (verb == "lost")
		entry["force"] = flag_of(body_of(req), "force");
	if (verb == "lost" && all_understand(*backend.state(), LEVEL_COPIES))
		entry["snapshots"] = true;
	if (verb == "lost" && all_understand(*backend.state(), LEVEL_REVERT))
		entry["reverts"] = true;
	Result<json> result = backend.propose(entry);
	if (!result)
		return result;
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	json answer = {{"name", name}};
	if (verb == "lost")
		answer["volumes_lost"] = result->value("volumes_lost", json::array());
	if (verb == "remove" && !wait_for([&](const State &s) { return !s.host(*host); }, options.effect_timeout_ms))
		return failed("host " + name + " is being removed, but has not taken down its devices yet: see `lockstep status`, and the log of "
			      "lockstepd there; `lockstep host restore " + name + "` calls it off");
	answer["operations"] = operations_of("host", name);
	return answer;
}

// ---- options, capacity ---------------------------------------------------------------------------------------------

Result<json> ApiServer::Impl::option_list(const httplib::Request &)
{
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const std::shared_ptr<const State> s = backend.state();
	json list = json::array();
	for (const Option &o : lockstep::options()) {
		json hosts = json::object();
		for (const auto &[id, h] : s->hosts)
			if (auto it = h.options.find(o.name); it != h.options.end())
				hosts[h.name] = it->second;
		list.push_back({{"name", o.name}, {"value", option_value(*s, o.name)}, {"default", o.otherwise}, {"meaning", o.meaning},
				{"per_host", o.per_host}, {"set", s->options.contains(o.name)}, {"hosts", hosts}});
	}
	return list;
}

Result<json> ApiServer::Impl::option_set(const httplib::Request &req)
{
	std::string name = req.matches[1];
	json body = body_of(req), entry = {{"op", "option.set"}, {"name", name}, {"value", text_of(body, "value")}};
	if (body.contains("host")) {
		if (Done ready = ready_for_changes(); !ready)
			return ready.error();
		Result<HostId> host = host_of(*backend.state(), text_of(body, "host"));
		if (!host)
			return host.error();
		entry["host"] = *host;
	}
	return logged(entry, {{"name", name}, {"value", entry["value"]}});
}

Result<json> ApiServer::Impl::capacity_of(const httplib::Request &req)
{
	std::string name = req.matches[1];
	auto redundancy = unsigned(std::min<uint64_t>(parameter(req, "redundancy", DEFAULT_REDUNDANCY), UINT32_MAX));
	if (redundancy < 1 || redundancy > LKS_MAX_REPLICAS)
		return usage_error("the redundancy must be 1 to " + std::to_string(LKS_MAX_REPLICAS));
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	PoolCapacity c = pool_capacity(*backend.state(), name, redundancy);
	if (!c.pools && !c.left_out)
		return coded("no-such-pool", not_found("no host has a pool named " + name));
	auto shown = [](const Capacity &k) {
		return json{{"simple_bytes", k.simple_bytes}, {"many_bytes", k.many_bytes}, {"largest_bytes", k.largest_bytes}};
	};
	return json{{"name", name}, {"redundancy", redundancy}, {"pools", c.pools}, {"left_out", c.left_out}, {"total", shown(c.total)},
		    {"available", shown(c.available)}};
}

}    // namespace lockstep
