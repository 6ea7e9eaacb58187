// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for the cluster and its pools.
#include "lockstepd/api/impl.h"

#include "lockstepd/host/keys.h"
#include "lockstepd/net/hello.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

void ApiServer::Impl::routes_cluster()
{
	http.Post("/v1/cluster/init", route(&Impl::cluster_init));
	http.Post("/v1/cluster/token", route(&Impl::cluster_token));
	http.Get("/v1/cluster/certs", route(&Impl::cert_list));
	http.Post("/v1/cluster/certs/([^/]+)", route(&Impl::cert_make));
	http.Delete("/v1/cluster/certs/([^/]+)", route(&Impl::cert_revoke));
	http.Post("/v1/cluster/join", route(&Impl::cluster_join));
	http.Post("/v1/cluster/recover", route(&Impl::cluster_recover));
	http.Post("/v1/hosts/([^/]+)/net", route(&Impl::host_net));
	http.Post("/v1/pools", route(&Impl::pool_create));
	http.Delete("/v1/hosts/([^/]+)/pools/([^/]+)", route(&Impl::pool_delete));
}

Error ApiServer::Impl::in_cluster_already(const std::string &host_name)
{
	std::string name = backend.state()->name;
	return coded("in-cluster", forbidden("host " + host_name + " is in " + (name.empty() ? "a cluster" : "cluster " + name) + " already"));
}

Result<json> ApiServer::Impl::cluster_init(const httplib::Request &req)
{
	std::string name = text_of(body_of(req), "name", "lockstep");
	LocalFacts local = backend.local();
	if (!valid_name(name))
		return usage_error("\"" + name + "\" is no valid cluster name: use up to 63 letters, digits, \".\", \"_\" and \"-\"");
	if (local.host)
		return in_cluster_already(local.host_name);
	if (!local.module_error.empty())
		return coded("module-missing", forbidden(local.module_error));
	Result<json> result = backend.init(name);
	if (!result)
		return result;
	if (!wait_for([](const State &s) { return s.initialized(); }, CALL_TIMEOUT_MS))
		return failed("cluster " + name + " does not come up: see the log of lockstepd on " + local.host_name);
	return result;
}

Result<json> ApiServer::Impl::cluster_token(const httplib::Request &req)
{
	json body = body_of(req);
	uint64_t valid_s = body.contains("valid_s") ? number_of(body, "valid_s", TOKEN_MOST_S) : TOKEN_DEFAULT_S;
	if (valid_s < TOKEN_LEAST_S)
		return usage_error("a token must be valid for at least " + std::to_string(TOKEN_LEAST_S) + " s");
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	return backend.token(valid_s);
}

Result<json> ApiServer::Impl::cert_list(const httplib::Request &)
{
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	json list = json::array();
	const auto s = backend.state();
	for (const auto &[name, c] : s->clients)
		list.push_back({{"name", name}, {"role", c.role}, {"end_ms", c.end_ms}, {"ended", c.end_ms <= api_now_ms()}});
	return list;
}

Result<json> ApiServer::Impl::cert_make(const httplib::Request &req)
{
	const json body = body_of(req);
	const std::string name = req.matches[1], role = text_of(body, "role");
	const uint64_t valid_s = body.contains("valid_s") ? number_of(body, "valid_s", CLIENT_CERT_MOST_S) : uint64_t(CLIENT_CERT_SECONDS);
	if (!valid_name(name))
		return usage_error("\"" + name + "\" is no valid name of a client: use up to 63 letters, digits, \".\", \"_\" and \"-\"");
	if (role != "admin" && role != "read-only")
		return usage_error("\"" + role + "\" is neither admin nor read-only");
	if (!valid_s)
		return usage_error("a certificate must be valid for at least a second");
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	return backend.client_cert(name, role, api_now_ms() + valid_s * 1000);
}

Result<json> ApiServer::Impl::cert_revoke(const httplib::Request &req)
{
	const std::string name = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	if (!backend.state()->clients.contains(name))
		return coded("no-such-cert", not_found("nobody named " + name + " has a certificate for the API"));
	const json entry = {{"op", "client.remove"}, {"name", name}};
	return logged(entry, json::object());
}

Result<json> ApiServer::Impl::cluster_join(const httplib::Request &req)
{
	json body = body_of(req);
	std::string token = text_of(body, "token"), address = text_of(body, "address");
	unsigned port = body.contains("port") ? unsigned(number_of(body, "port", MAX_PORT)) : DEFAULT_PORT;
	LocalFacts local = backend.local();
	if (address.empty() || !port)
		return usage_error("name the address of a host of the cluster");
	if (local.host)
		return in_cluster_already(local.host_name);
	if (!local.module_error.empty())
		return coded("module-missing", forbidden(local.module_error));
	Result<json> result = backend.join(token, address, port);
	if (!result)
		return result;
	auto joined = [&](const State &s) { return s.host(backend.local().host) != nullptr; };
	if (!wait_for(joined, options.effect_timeout_ms))
		return failed("host " + local.host_name + " joined, but does not receive the cluster's log from " + address +
			      ": see the log of lockstepd");
	json answer = *result;
	answer["cluster"] = backend.state()->name;
	return answer;
}

Result<json> ApiServer::Impl::cluster_recover(const httplib::Request &req)
{
	const json body = body_of(req);
	RecoverRequest request;
	if (body.contains("dead")) {
		const json &list = body["dead"];
		const bool fits = list.is_array() && std::all_of(list.begin(), list.end(), [](const json &name) { return name.is_string(); });
		if (!fits)
			return usage_error("the field \"dead\" is not a list of names");
		request.dead = list.get<std::vector<std::string>>();
	}
	if (body.contains("copies")) {
		const json &copies = body["copies"];
		const bool fits = copies.is_object() && std::all_of(copies.begin(), copies.end(), [](const json &host) { return host.is_string(); });
		if (!fits)
			return usage_error("the field \"copies\" does not name a host for each volume");
		request.copies = copies.get<std::map<std::string, std::string>>();
	}
	request.yes = flag_of(body, "yes");
	request.from_disks = flag_of(body, "from_disks");
	return backend.recover(request);
}

Result<json> ApiServer::Impl::host_net(const httplib::Request &req)
{
	json body = body_of(req);
	std::string verb = text_of(body, "verb"), address = text_of(body, "address");
	if (verb != "add" && verb != "remove" && verb != "prefer")
		return usage_error("\"" + verb + "\" is neither add nor remove nor prefer");
	// The port is the host's own setting.
	bool with_port = address.starts_with("[") || std::count(address.begin(), address.end(), ':') == 1;
	if (with_port || !parse_address(address, DEFAULT_PORT))
		return usage_error("\"" + address + "\" is no IP address");
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	Result<HostId> host = host_of(*backend.state(), req.matches[1]);
	if (!host)
		return host.error();
	return backend.propose({{"op", "host.net"}, {"host", *host}, {"verb", verb}, {"address", address}});
}

Result<json> ApiServer::Impl::pool_create(const httplib::Request &req)
{
	json body = body_of(req);
	std::string name = text_of(body, "name"), vg = text_of(body, "vg"), thin = text_of(body, "thin", "");
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	std::shared_ptr<const State> s = backend.state();
	HostId host = backend.local().host;
	if (body.contains("host")) {
		Result<HostId> named = host_of(*s, text_of(body, "host"));
		if (!named)
			return named.error();
		host = *named;
	}
	if (!valid_name(name))
		return usage_error("\"" + name + "\" is no valid pool name: use up to 63 letters, digits, \".\", \"_\" and \"-\"");
	if (!s->online(host))
		return coded("host-offline", forbidden("pool " + name + " cannot be created: host " + s->host_name(host) + " is offline"));
	Result<json> result = backend.pool_create(name, host, vg, thin);
	if (!result)
		return result;
	if (!wait_for([&](const State &now) { return now.pool(name, host) != nullptr; }, CALL_TIMEOUT_MS))
		return failed("pool " + name + " was created, but host " + backend.local().host_name + " does not hear of it");
	json answer = *result;
	answer["host"] = s->host_name(host);
	return answer;
}

// What the log would say is asked first, on a copy; then its host, what only that one knows.
Result<json> ApiServer::Impl::pool_delete(const httplib::Request &req)
{
	const std::string name = req.matches[2];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	if (Done reached = backend.barrier(); !reached)
		return reached.error();
	State trial = *backend.state();
	Result<HostId> host = host_of(trial, req.matches[1]);
	if (!host)
		return host.error();
	const json entry = {{"op", "pool.delete"}, {"name", name}, {"host", *host}};
	if (const std::string why = level_obstacle(trial, entry); !why.empty())
		return coded("host-too-old", forbidden(why));
	const std::string host_name = trial.host_name(*host), its = "pool " + name + " on host " + host_name;
	const bool online = trial.online(*host), begun = trial.pool(name, *host) && trial.pool(name, *host)->deleting;
	if (Done good = tried(trial, entry); !good)
		return good.error();
	if (!begun && !online)
		return coded("host-offline", forbidden(its + " cannot be deleted: its host is offline"));
	if (!begun)
		if (Result<json> rest = backend.ask_host(*host, "disk.at_rest", {{"pool", name}}); !rest)
			return rest;
	Result<json> agreed = backend.propose(entry);
	if (!agreed)
		return agreed;
	const auto gone = [&](const State &s) { return !s.pool(name, *host) || !s.pool(name, *host)->deleting; };
	if (!wait_for(gone, options.effect_timeout_ms))
		return failed(its + " is being deleted, but its host has not finished yet; it goes on by itself: see the log of lockstepd there");
	return json{{"name", name}, {"host", host_name}};
}

}    // namespace lockstep
