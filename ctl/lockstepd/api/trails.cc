// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for trails (host/trails.cc), and for the content of one volume put in the place of another's: the two halves of
// what a storage migration that comes in needs of the daemon.
#include "lockstepd/api/impl.h"

#include <charconv>

namespace lockstep {

using nlohmann::json;

void ApiServer::Impl::routes_trails()
{
	http.Post("/v1/volumes/([^/]+)/trail", route(&Impl::trail_begin));
	http.Get("/v1/volumes/([^/]+)/trail", route(&Impl::trail_get));
	http.Delete("/v1/volumes/([^/]+)/trail", route(&Impl::trail_end));
	http.Post("/v1/volumes/([^/]+)/replace", route(&Impl::volume_replace));
}

Result<json> ApiServer::Impl::trail_begin(const httplib::Request &req)
{
	const std::string name = req.matches[1];
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	Result<HostId> host = host_or_self(body_of(req));
	if (!host)
		return host.error();
	Result<json> begun = backend.ask_host(*host, "volume.trail-begin", {{"vid", *vid}});
	if (!begun)
		return begun;
	return json{{"name", name}, {"host", backend.state()->host_name(*host)}, {"trail", begun->at("trail")}};
}

// The answer of the host that the request names to a question about the trail that it names; with "name" and "host".
Result<json> ApiServer::Impl::ask_of_trail(const httplib::Request &req, const char *verb, json body)
{
	const std::string name = req.matches[1], trail = req.get_param_value("trail"), on = req.get_param_value("host");
	uint64_t number = 0;
	const auto [end, wrong] = std::from_chars(trail.data(), trail.data() + trail.size(), number, 16);
	if (wrong != std::errc() || end != trail.data() + trail.size() || !number)
		return usage_error("the parameter \"trail\" is not the number of a trail");
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	Result<HostId> host = on.empty() ? Result<HostId>(HostId(backend.local().host)) : host_of(*backend.state(), on);
	if (!host)
		return host.error();
	body.update({{"vid", *vid}, {"trail", number}});
	Result<json> answer = backend.ask_host(*host, verb, body);
	if (!answer)
		return answer;
	answer->update({{"name", name}, {"host", backend.state()->host_name(*host)}});
	return answer;
}

Result<json> ApiServer::Impl::trail_get(const httplib::Request &req)
{
	Result<json> found = ask_of_trail(req, "volume.trail", {{"at", parameter(req, "at", 0)}});
	if (!found)
		return found;
	return json{{"name", found->at("name")}, {"host", found->at("host")}, {"extents", found->at("extents")}, {"next", found->at("next")}};
}

Result<json> ApiServer::Impl::trail_end(const httplib::Request &req)
{
	return ask_of_trail(req, "volume.trail-end", json::object());
}

// By a snapshot of the source that goes again; if this host dies in between the leader removes it. Once that is decided nothing waits for
// the hosts to do it: a VM may stand still for this call.
Result<json> ApiServer::Impl::volume_replace(const httplib::Request &req)
{
	const std::string name = req.matches[1], source = text_of(body_of(req), "source");
	Result<uint32_t> vid = vid_of(name);
	if (!vid)
		return vid.error();
	if (name == source)
		return usage_error("volume " + name + " cannot be replaced by itself");
	Result<json> made = take_snapshots({{"name", "replace-" + make_uuid()}, {"temporary", true}}, {source}, "");
	if (!made)
		return made;
	const json sid = made->at(0)["sid"];
	json entry = {{"op", "snapshot.revert"}, {"sid", sid}, {"onto", *vid}};
	const std::shared_ptr<const State> s = backend.state();
	add_ways_to_revert(entry, *s, s->volume(*vid));
	Result<json> result = finish_revert(propose_unused(entry, name), name);
	Result<json> removed = backend.propose({{"op", "snapshot.delete"}, {"sid", sid}});
	if (!result)
		return result;
	json answer = {{"name", name}, {"vid", *vid}, {"source", source}};
	if (!removed)
		answer["warning"] = removed.error().message;
	return answer;
}

}    // namespace lockstep
