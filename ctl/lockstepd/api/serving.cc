// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for volumes in use: where they are served, how large they are, who has them open, whether their replicas
// are equal.
#include "lockstepd/api/impl.h"

#include "lockstepd/api/soft.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

constexpr unsigned HANDOVER_TIMEOUT_MS = 30'000;
constexpr unsigned SHOWN_TIMEOUT_MS = 2000;    // until this host's status shows what another host has done

json volume_in(const json &status, const std::string &name)
{
	for (const json &v : status["volumes"])
		if (v["name"] == name && v["phase"] != "deleting")
			return v;
	return nullptr;
}

}    // namespace

void ApiServer::Impl::routes_serving()
{
	http.Get("/v1/volumes", route(&Impl::volume_list));
	http.Get("/v1/volumes/([^/]+)", route(&Impl::volume_get));
	http.Get("/v1/volumes/([^/]+)/openers", route(&Impl::volume_openers));
	http.Post("/v1/volumes/([^/]+)/(primary|secondary)", route(&Impl::volume_role));
	http.Post("/v1/volumes/([^/]+)/resize", route(&Impl::volume_resize));
	http.Post("/v1/volumes/([^/]+)/verify", route(&Impl::volume_verify));
	http.Post("/v1/volumes/([^/]+)/(suspend|resume)", route(&Impl::volume_suspend));
	http.Post("/v1/volumes/([^/]+)/abort", route(&Impl::volume_abort));
}

Result<uint32_t> ApiServer::Impl::vid_of(const std::string &name)
{
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	const std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume_named(name);
	if (!v)
		return coded("no-such-volume", not_found("there is no volume named " + name));
	return v->vid;
}

// A close reaches the log a moment after it has returned; if nothing but such a close is in the way, it is waited for. False if the volume
// is still open then, or none of this is so.
bool ApiServer::Impl::wait_closed(const std::string &volume)
{
	if (!backend.barrier())
		return false;
	const std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume_named(volume);
	if (!v || v->openers.empty())
		return false;
	for (const Opener &o : v->openers) {
		const Result<json> in_use = s->online(o.host) ? backend.ask_host(o.host, "volume.in_use", {{"vid", v->vid}}) : json(true);
		if (!in_use || *in_use != false)
			return false;
	}
	auto closed = [&](const State &now) {
		const Volume *then = now.volume(v->vid);
		return !then || std::none_of(v->openers.begin(), v->openers.end(), [&](const Opener &o) {
			const Opener *still = then->opener(o.host);
			return still && still->session == o.session;
		});
	};
	return wait_for(closed, options.effect_timeout_ms);
}

// Proposes what is refused while the volume is in use.
Result<json> ApiServer::Impl::propose_unused(const json &entry, const std::string &volume)
{
	Result<json> result = backend.propose(entry);
	if (result || result.error().status != Status::forbidden)
		return result;
	return wait_closed(volume) ? backend.propose(entry) : result;
}

Result<std::string> ApiServer::Impl::volume_list(const httplib::Request &req)
{
	const std::string view = req.has_param("view") ? req.get_param_value("view") : "full";
	if (view != "full" && view != "list")
		throw BadRequest{"the parameter \"view\" can only be \"full\" or \"list\""};
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	return volume_list_text(*backend.state(), backend.local(), said(), view == "list");
}

Result<json> ApiServer::Impl::volume_get(const httplib::Request &req)
{
	std::string name = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	json v = volume_in(status(&name), name);
	if (v.is_null())
		return coded("no-such-volume", not_found("there is no volume named " + name));
	return v;
}

// The host named in the body, else this one.
Result<HostId> ApiServer::Impl::host_or_self(const json &body)
{
	if (!body.contains("host"))
		return backend.local().host;
	return host_of(*backend.state(), text_of(body, "host"));
}

// The present primary has this long to hand over; then the wish is taken back, so that it does not come true unexpectedly.
Result<json> ApiServer::Impl::choose_primary(uint32_t vid, const std::string &name, HostId host)
{
	const std::shared_ptr<const State> before = backend.state();
	const Volume *was = before->volume(vid);
	if (was && was->primary != host && soft_has_number(report_of(was->primary, vid), "suspended_since_ms"))
		return forbidden("the writes of volume " + name + " are suspended, so its primary cannot change: `lockstep resume-io " + name + "` first");
	Result<json> chosen = backend.propose({{"op", "volume.primary"}, {"vid", vid}, {"host", host}});
	if (!chosen)
		return chosen;
	auto there = [&](const State &s) {
		const Volume *v = s.volume(vid);
		return !v || v->primary == host;
	};
	if (!wait_for(there, HANDOVER_TIMEOUT_MS)) {
		std::string still = backend.state()->host_name(was ? was->primary : 0);
		(void)backend.propose({{"op", "volume.primary"}, {"vid", vid}, {"host", was ? was->chosen_primary : HostId(0)}});
		return failed("volume " + name + " is still served by host " + still + " after " + std::to_string(HANDOVER_TIMEOUT_MS / 1000) +
			      " s and stays there: see `lockstep status " + name + "` and the log of lockstepd on " + still);
	}
	return json{{"name", name}, {"primary", backend.state()->host_name(host)}};
}

Result<json> ApiServer::Impl::volume_role(const httplib::Request &req)
{
	std::string name = req.matches[1], role = req.matches[2];
	json body = body_of(req);
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	const std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume(*vid);
	if (flag_of(body, "follow"))
		return logged({{"op", "volume.primary"}, {"vid", *vid}, {"host", 0}}, {{"name", name}, {"primary", s->host_name(v->primary)}});
	Result<HostId> host = host_or_self(body);
	if (!host)
		return host.error();
	if (role == "primary")
		return choose_primary(*vid, name, *host);
	if (v->primary != *host)
		return json{{"name", name}, {"primary", v->primary ? json(s->host_name(v->primary)) : json(nullptr)}};
	Volume others = *v;
	std::erase_if(others.replicas, [&](const Replica &r) { return r.host == *host; });
	others.chosen_primary = 0;
	HostId heir = lockstep::choose_primary(*s, others);
	if (!heir)
		return forbidden("volume " + name + " has no other replica in sync that is online: host " + s->host_name(*host) + " must serve it");
	return choose_primary(*vid, name, heir);
}

// Answers when every host that is online has the new size.
Result<json> ApiServer::Impl::volume_resize(const httplib::Request &req)
{
	std::string name = req.matches[1];
	uint64_t size = number_of(body_of(req), "size_bytes", UINT64_MAX >> 1);
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	Result<json> begun = backend.propose({{"op", "volume.resize"}, {"vid", *vid}, {"size_bytes", size}});
	if (!begun)
		return begun;
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	std::vector<HostId> behind;
	auto grown = [&](const State &s) {
		const Volume *v = s.volume(*vid);
		behind.clear();
		for (const auto &[id, h] : s.hosts) {
			if (!v || !h.online || !v->devices.contains(id))
				continue;
			const Replica *r = v->replica(id);
			bool moved = !r || (!r->next_offset && !r->wipe);
			if (v->size_bytes >= size ? soft_number(report_of(id, *vid), "size_bytes") < size : !moved)
				behind.push_back(id);
		}
		return !v || (v->size_bytes >= size && behind.empty());
	};
	if (!wait_for(grown, options.effect_timeout_ms)) {
		const std::shared_ptr<const State> s = backend.state();
		return failed("volume " + name + " is still growing: waiting for host " + host_names(*s, behind) + "; it goes on by itself, see `lockstep "
			      "status " + name + "`");
	}
	return json{{"name", name}, {"vid", *vid}, {"size_bytes", size}};
}

// ---- asked of the host that serves ----

Result<json> ApiServer::Impl::ask_primary(const std::string &name, const std::string &verb, json body)
{
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	const std::shared_ptr<const State> s = backend.state();
	HostId primary = s->volume(*vid)->primary;
	if (!primary)
		return forbidden("volume " + name + " is not served by any host now: open it, or name one with `lockstep primary " + name + " HOST`");
	body["vid"] = *vid;
	return backend.ask_host(primary, verb, body);
}

Result<json> ApiServer::Impl::volume_verify(const httplib::Request &req)
{
	std::string name = req.matches[1];
	json body = body_of(req);
	bool stop = flag_of(body, "stop"), repair = flag_of(body, "repair");
	Result<json> begun = ask_primary(name, "volume.verify", {{"start", !stop}, {"repair", repair}});
	if (!begun)
		return begun;
	json answer = {{"name", name}, {"running", !stop}, {"operations", json::array()}};
	if (!stop) {    // the report by which it is listed comes a moment later
		answer["operations"].push_back("verify:" + name);
		answer["begun_ms"] = soft_number(*begun, "begun_ms");
	}
	return answer;
}

// Of what was asked for by `suspend-io`, only the daemon of the primary's host knows (host/suspend.cc).
Result<json> ApiServer::Impl::volume_suspend(const httplib::Request &req)
{
	const std::string name = req.matches[1];
	const bool suspend = req.matches[2] == "suspend";
	Result<json> answer = ask_primary(name, "volume.suspend", {{"suspended", suspend}});
	if (!answer)
		return answer;
	const std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume_named(name);
	const HostId primary = v ? v->primary : HostId(0);
	if (v)
		wait_for([&](const State &) { return bool(soft_number(report_of(primary, v->vid), "suspended_since_ms")) == suspend; }, SHOWN_TIMEOUT_MS);
	return json{{"name", name}, {"host", s->host_name(primary)}, {"suspended", suspend}, {"since_ms", soft_number(*answer, "since_ms")}};
}

// What waits for a primary fails now: on the host named, or on all that can be reached. It is asked for when quorum or hosts are
// lost, so it needs neither: this host goes by what it knows, and comes first.
Result<json> ApiServer::Impl::volume_abort(const httplib::Request &req)
{
	std::string name = req.matches[1];
	json body = body_of(req), hosts = json::array(), missed = json::array();
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume_named(name);
	if (!v)
		return coded("no-such-volume", not_found("there is no volume named " + name));
	Result<HostId> only = body.contains("host") ? host_of(*s, text_of(body, "host")) : Result<HostId>(HostId(0));
	if (!only)
		return only.error();
	const HostId self = HostId(backend.local().host);
	std::vector<HostId> ask = {self};
	for (const auto &[id, h] : s->hosts)
		if (id != self && h.online)
			ask.push_back(id);
	if (*only)
		ask = {*only};
	std::string why;
	for (HostId id : ask) {
		Result<json> done = backend.ask_host(id, "volume.abort", {{"vid", v->vid}});
		(done ? hosts : missed).push_back(s->host_name(id));
		if (!done)
			why += (why.empty() ? "host " : "; host ") + s->host_name(id) + ": " + done.error().message;
	}
	if (hosts.empty())
		return failed(why);
	return json{{"name", name}, {"hosts", hosts}, {"missed_hosts", missed}};
}

Result<json> ApiServer::Impl::volume_openers(const httplib::Request &req)
{
	std::string name = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const std::shared_ptr<const State> s = backend.state();
	const Volume *v = s->volume_named(name);
	if (!v)
		return coded("no-such-volume", not_found("there is no volume named " + name));
	json list = json::array();
	for (const auto &[id, h] : s->hosts) {
		const json report = report_of(id, v->vid);
		const Opener *session = v->opener(id);
		if (!session && !soft_number(report, "openers"))
			continue;
		Result<json> processes = h.online ? backend.ask_host(id, "volume.openers", {{"vid", v->vid}}) : Result<json>(failed("offline"));
		list.push_back({{"host", h.name},
				{"session", session ? json(session->session) : json(nullptr)},
				{"openers", soft_number(report, "openers")},
				{"writers", soft_number(report, "writers")},
				{"processes", processes ? *processes : json(nullptr)}});
	}
	return json{{"name", name}, {"openers", list}};
}

}    // namespace lockstep
