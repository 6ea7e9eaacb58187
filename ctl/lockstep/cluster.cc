// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep cluster init|token|join, host list, host net, pool create|delete|list.
#include "lockstep/cli.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fmt/format.h>

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace lockstep::cli {

namespace {

constexpr unsigned RECOVER_TIMEOUT_S = 160;    // the log is read on each host that is there

// ADDRESS, ADDRESS:PORT, [V6] or [V6]:PORT. A bare IPv6 address has more than one colon and no port.
Result<json> parse_address(const std::string &text)
{
	std::string address = text, port;
	if (text.starts_with("[")) {
		size_t end = text.find(']');
		if (end == text.npos || (end + 1 < text.size() && text[end + 1] != ':'))
			return usage_error("\"" + text + "\" is no address: write ADDRESS or ADDRESS:PORT");
		address = text.substr(1, end - 1);
		port = end + 1 < text.size() ? text.substr(end + 2) : "";
		if (end + 1 < text.size() && port.empty())
			port = "?";
	} else if (size_t colon = text.find(':'); colon != text.npos && text.find(':', colon + 1) == text.npos) {
		address = text.substr(0, colon);
		port = text.substr(colon + 1);
		if (port.empty())
			port = "?";
	}
	json body = {{"address", address}};
	bool digits = port.size() <= 5 && port.find_first_not_of("0123456789") == port.npos;
	if (address.empty() || (!port.empty() && (!digits || std::stoul(port) < 1 || std::stoul(port) > 65535)))
		return usage_error("\"" + text + "\" is no address: write ADDRESS or ADDRESS:PORT");
	if (!port.empty())
		body["port"] = unsigned(std::stoul(port));
	return body;
}

Done init(Context &context, const std::string &name)
{
	Result<json> answer = context.client().post("/v1/cluster/init", {{"name", name}});
	if (!answer)
		return answer.error();
	return told(context, *answer,
		    fmt::format("cluster {} is there; add a host: `lockstep cluster token` here, then `lockstep cluster join TOKEN ADDRESS` there\n", name));
}

// Nothing but the token on standard output, so that scripts can use it.
Done token(Context &context, const std::string &valid, bool as_json)
{
	Result<uint64_t> valid_s = parse_seconds(valid);
	if (!valid_s)
		return valid_s.error();
	Result<json> answer = context.client().post("/v1/cluster/token", {{"valid_s", *valid_s}});
	if (!answer)
		return answer.error();
	if (as_json)
		print_json(context, *answer);
	else
		context.out << answer->value("token", "") << "\n";
	return Nothing{};
}

// The file is there before the certificate is: nothing is made that could not be kept, and nobody else can read it at any moment.
Done cert(Context &context, const std::string &name, const std::string &role, const std::string &valid, const std::string &path)
{
	Result<uint64_t> valid_s = parse_seconds(valid);
	if (!valid_s)
		return valid_s.error();
	const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return usage_error(fmt::format("cannot create {}: {}", path, strerror(errno)));
	Result<json> answer = context.client().post("/v1/cluster/certs/" + url_encode(name), {{"role", role}, {"valid_s", *valid_s}});
	const std::string bundle = answer ? answer->value("bundle", "") : "";
	const bool written = write(fd, bundle.data(), bundle.size()) == ssize_t(bundle.size()) && fsync(fd) == 0;
	const int error = errno;
	close(fd);
	if (answer && written)
		return told(context, {{"name", name}, {"role", role}, {"file", path}, {"end_ms", (*answer)["end_ms"]}},
			    fmt::format("{} may use the API over TLS ({}) with {}, which holds the key: `lockstep --host HOST --cert {} status`\n", name, role,
					path, path));
	unlink(path.c_str());
	if (!answer)
		return answer.error();
	return failed(fmt::format("cannot write {}: {}; the certificate was made: revoke it with `lockstep cluster cert-revoke {}`", path, strerror(error), name));
}

Done certs(Context &context, bool as_json)
{
	Result<json> answer = context.client().get("/v1/cluster/certs");
	if (!answer)
		return answer.error();
	if (as_json) {
		print_json(context, *answer);
		return Nothing{};
	}
	Table table({"NAME", "ROLE", "ENDS"});
	for (const json &c : *answer) {
		const uint64_t end_ms = c["end_ms"], now_ms = context.now_ms();
		table.row({shown(c["name"]), shown(c["role"]), end_ms <= now_ms ? "has ended" : "in " + format_seconds((end_ms - now_ms) / 1000)});
	}
	context.out << (table.empty() ? "nobody may use the API over TLS: `lockstep cluster cert NAME FILE --role ROLE` lets somebody\n" : table.text());
	return Nothing{};
}

Done join(Context &context, const std::string &token, const std::string &address)
{
	Result<json> body = parse_address(address);
	if (!body)
		return body.error();
	(*body)["token"] = token;
	Result<json> answer = context.client().post("/v1/cluster/join", *body);
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("this host is now part of cluster {}\n", answer->value("cluster", "")));
}

// VOLUME=HOST each.
Result<json> parse_copies(const std::vector<std::string> &texts)
{
	json copies = json::object();
	for (const std::string &text : texts) {
		const size_t at = text.rfind('=');
		if (at == text.npos || at == 0 || at + 1 == text.size())
			return usage_error("\"" + text + "\" names no copy: write VOLUME=HOST, or VOLUME=none to leave it out");
		copies[text.substr(0, at)] = text.substr(at + 1);
	}
	return copies;
}

void show_log_plan(Context &context, const json &plan)
{
	context.out << fmt::format("{} goes on alone from its log (term {}, entry {}); the cluster enters epoch {}\n", shown(plan["host"]), plan["term"].dump(),
				   plan["index"].dump(), plan["epoch"].dump())
		    << fmt::format("dead for good: {}; start their logs anew: {}\n\n", shown(joined(plan["dead"])), shown(joined(plan["kept"])));
	Table table({"VOLUME", "COPY", "WHY", "LOST"});
	for (const json &v : plan["volumes"])
		table.row({shown(v["volume"]), shown(v["copy"]), shown(v["why"]), shown(v["loss"])});
	context.out << table.text() << "\n";
}

void show_disks_plan(Context &context, const json &plan)
{
	context.out << fmt::format("no host has a log: {} makes a new one of what the disks say; the cluster enters epoch {}\n", shown(plan["host"]), plan["epoch"].dump())
		    << fmt::format("dead for good: {}; join the new log by themselves: {}\n", shown(joined(plan["dead"])), shown(joined(plan["kept"])));
	for (const json &note : plan["notes"])
		context.out << "note: " << shown(note) << "\n";
	Table table({"VOLUME", "COPY", "COPIED ANEW", "WHY", "LOST"});
	for (const json &v : plan["volumes"])
		table.row({shown(v["volume"]), v["left"] == true ? "none" : v["copy"].is_null() ? "IN DOUBT" : shown(v["copy"]), shown(joined(v["others"])), shown(v["why"]), shown(v["loss"])});
	context.out << "\n" << table.text() << "\n";
}

Done recover(Context &context, json request, bool as_json)
{
	Result<json> answer = context.client().post("/v1/cluster/recover", request, RECOVER_TIMEOUT_S);
	if (!answer)
		return answer.error();
	if (as_json) {
		print_json(context, *answer);
		return Nothing{};
	}
	const json &plan = *answer;
	const std::string host = shown(plan["host"]);
	const bool from_disks = plan.value("from_disks", false);
	if (from_disks)
		show_disks_plan(context, plan);
	else
		show_log_plan(context, plan);
	if (plan["done"] == true) {
		context.out << fmt::format("done: lockstepd on {} starts anew; see `lockstep status`\n", host);
		return Nothing{};
	}
	std::string command = from_disks ? "lockstep cluster recover --from-disks" : "lockstep cluster recover";
	for (const json &name : plan["dead"])
		command += " --dead " + shown(name);
	for (const auto &[volume, copy] : request["copies"].items())
		command += " --copy " + volume + "=" + copy.get<std::string>();
	if (from_disks && !plan["in_doubt"].empty())
		context.out << fmt::format("nothing has been changed. First name the copy to take of {}: --copy VOLUME=HOST (VOLUME \"all\": of each), or leave it out with "
					   "--copy VOLUME=none\n", shown(joined(plan["in_doubt"])));
	else
		context.out << fmt::format("nothing has been changed. To do this: `{} --yes`\nwith it {}\n", command, shown(plan["vouch"]));
	return Nothing{};
}

Done host_list(Context &context, bool as_json)
{
	Result<json> status = cluster_outline(context);
	if (!status)
		return status.error();
	const json &hosts = (*status)["hosts"];
	if (as_json) {
		print_json(context, hosts);
		return Nothing{};
	}
	Table table({"HOST", "ID", "STATUS", "SINCE", "REPLICAS", "ADDRESSES"});
	table.right(1);
	table.right(4);
	for (const json &h : hosts)
		table.row({shown(h["name"]), h["id"].dump(), host_status(h), since(h, context.now_ms()), h["replicas"].dump(), host_address(h)});
	context.out << table.text();
	return Nothing{};
}

Done host_net(Context &context, const std::string &verb, const std::string &host, const std::string &address)
{
	Result<json> answer = context.client().post("/v1/hosts/" + url_encode(host) + "/net", {{"verb", verb}, {"address", address}});
	if (!answer)
		return answer.error();
	const char *what = verb == "add" ? "can be reached at" : verb == "remove" ? "is not reached any more at" : "is first tried at";
	return told(context, *answer, fmt::format("host {} {} {}\n", host, what, address));
}

Done pool_create(Context &context, const json &body)
{
	Result<json> answer = context.client().post("/v1/pools", body);
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("pool {} is there on host {}\n", body["name"].get<std::string>(), answer->value("host", "")));
}

Done pool_delete(Context &context, const std::string &host, const std::string &name)
{
	Result<json> answer = context.client().del(fmt::format("/v1/hosts/{}/pools/{}", url_encode(host), url_encode(name)));
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("pool {} of host {} is gone; its volume group and disks are as they were\n", name, host));
}

Done pool_list(Context &context, bool as_json)
{
	Result<json> status = cluster_outline(context);
	if (!status)
		return status.error();
	const json &pools = (*status)["pools"];
	if (as_json) {
		print_json(context, pools);
		return Nothing{};
	}
	Table table({"POOL", "HOST", "LVM", "SIZE", "FREE", "PROMISED", "ROOM FOR", ""});
	for (size_t column : {3, 4, 5, 6})
		table.right(column);
	for (const json &p : pools) {
		std::string lvm = p["vg"];
		if (p["thin_lv"] != "")
			lvm += "/" + p["thin_lv"].get<std::string>();
		table.row({shown(p["name"]), shown(p["host"]), lvm, format_bytes(p["size_bytes"]),
			   format_bytes(p["free_bytes"]), format_bytes(p["reserved_bytes"]), format_bytes(p["available_bytes"]),
			   p.value("deleting", false) ? "is being deleted" : p["alarm"] == "" ? "" : fmt::format("{} % FULL", p["used_percent"].get<unsigned>())});
	}
	context.out << (table.empty() ? "no pools yet: create one with `lockstep pool create NAME --vg VG`\n" : table.text());
	return Nothing{};
}

void add_pool(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string name, vg, thin, host;
		bool as_json = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *pool = app.add_subcommand("pool", "LVM volume groups and thin pools that hold replicas")->require_subcommand(1);
	CLI::App *create = pool->add_subcommand("create", "Make a volume group or thin pool of a host known to the cluster");
	create->add_option("NAME", o->name, "Name of the pool; hosts that share volumes use the same name")->required();
	create->add_option("--vg", o->vg, "LVM volume group")->required();
	create->add_option("--thin", o->thin, "Thin pool LV in the volume group (default: thick LVs)");
	create->add_option("--host", o->host, "Host that has it (default: this one)");
	create->callback([=, &context, &action] {
		json body = {{"name", o->name}, {"vg", o->vg}};
		if (!o->thin.empty())
			body["thin"] = o->thin;
		if (!o->host.empty())
			body["host"] = o->host;
		action = [=, &context] { return pool_create(context, body); };
	});
	CLI::App *remove = pool->add_subcommand("delete", "Take an empty pool from a host; the volume group and its disks stay as they are");
	remove->add_option("HOST", o->host, "Host that has it")->required();
	remove->add_option("POOL", o->name, "Name of the pool")->required();
	remove->callback([=, &context, &action] { action = [=, &context] { return pool_delete(context, o->host, o->name); }; });
	CLI::App *list = pool->add_subcommand("list", "List the pools of all hosts");
	list->add_flag("--json", o->as_json, "Print JSON");
	list->callback([=, &context, &action] { action = [=, &context] { return pool_list(context, o->as_json); }; });
	add_pool_life(*pool, context, action);
	add_pool_disks(*pool, context, action);
	add_pool_orphans(*pool, context, action);
}

}    // namespace

void add_cluster(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string name = "lockstep", address, token, valid = "1h", role, cert_valid = "365d", file;
		std::vector<std::string> dead, copies;
		bool as_json = false, yes = false, from_disks = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *cluster = app.add_subcommand("cluster", "Form a cluster")->require_subcommand(1);
	CLI::App *init_command = cluster->add_subcommand("init", "Make this host the first one of a new cluster");
	init_command->add_option("--name", o->name, "Name of the cluster")->capture_default_str();
	init_command->callback([=, &context, &action] { action = [=, &context] { return init(context, o->name); }; });
	CLI::App *token_command = cluster->add_subcommand("token", "Print a token with which one host can join");
	token_command->add_option("--valid", o->valid, "For how long: a number and s, m, h or d")->capture_default_str();
	token_command->add_flag("--json", o->as_json, "Print JSON");
	token_command->callback([=, &context, &action] { action = [=, &context] { return token(context, o->valid, o->as_json); }; });
	CLI::App *cert_command = cluster->add_subcommand("cert", "Make a certificate with its key, for `lockstep --host HOST --cert FILE` and other programs");
	cert_command->add_option("NAME", o->name, "Who it is for; an earlier one of the same name counts no more")->required();
	cert_command->add_option("FILE", o->file, "Where to; must not be there yet")->required();
	cert_command->add_option("--role", o->role, "admin, or read-only")->required()->check(CLI::IsMember({"admin", "read-only"}));
	cert_command->add_option("--valid", o->cert_valid, "For how long: a number and s, m, h or d")->capture_default_str();
	cert_command->callback([=, &context, &action] { action = [=, &context] { return cert(context, o->name, o->role, o->cert_valid, o->file); }; });
	CLI::App *certs_command = cluster->add_subcommand("certs", "List who may use the API over TLS");
	certs_command->add_flag("--json", o->as_json, "Print JSON");
	certs_command->callback([=, &context, &action] { action = [=, &context] { return certs(context, o->as_json); }; });
	CLI::App *revoke_command = cluster->add_subcommand("cert-revoke", "Revoke a certificate");
	revoke_command->add_option("NAME", o->name, "Who it was for")->required();
	revoke_command->callback([=, &context, &action] {
		action = [=, &context]() -> Done {
			Result<json> answer = context.client().del("/v1/cluster/certs/" + url_encode(o->name));
			if (!answer)
				return answer.error();
			return told(context, {{"name", o->name}}, fmt::format("the certificate of {} counts no more\n", o->name));
		};
	});
	CLI::App *join_command = cluster->add_subcommand("join", "Make this host part of an existing cluster");
	join_command->add_option("TOKEN", o->token, "What `lockstep cluster token` printed on a host of the cluster")->required();
	join_command->add_option("ADDRESS", o->address, "ADDRESS[:PORT] of any host of the cluster")->required();
	join_command->callback([=, &context, &action] { action = [=, &context] { return join(context, o->token, o->address); }; });

	CLI::App *recover_command = cluster->add_subcommand("recover", "The majority is lost for good: go on from this host's log; without --yes only show how");
	recover_command->add_option("--dead", o->dead, "A host that is dead for good; each one that cannot be reached must be named");
	recover_command->add_flag("--yes", o->yes, "Do it: you vouch that they are dead, and stay so");
	recover_command->add_flag("--json", o->as_json, "Print JSON");
	recover_command->add_flag("--from-disks", o->from_disks, "No host has a log: make a new one of what the replicas' metadata say");
	recover_command->add_option("--copy", o->copies, "VOLUME=HOST: with --from-disks, take this host's copy where it is in doubt; VOLUME=none: leave the volume out; "
							"VOLUME may be all");
	recover_command->callback([=, &context, &action] {
		action = [=, &context]() -> Done {
			const Result<json> copies = parse_copies(o->copies);
			if (!copies)
				return copies.error();
			json request = {{"dead", o->dead}, {"yes", o->yes}};
			if (o->from_disks)
				request["from_disks"] = true;
			if (!copies->empty())
				request["copies"] = *copies;
			return recover(context, request, o->as_json);
		};
	});

	CLI::App *host = app.add_subcommand("host", "The hosts of the cluster")->require_subcommand(1);
	CLI::App *list = host->add_subcommand("list", "List the hosts");
	list->add_flag("--json", o->as_json, "Print JSON");
	list->callback([=, &context, &action] { action = [=, &context] { return host_list(context, o->as_json); }; });
	add_host_life(*host, context, action);

	struct NetOptions {
		std::string host, address;
	};
	auto n = std::make_shared<NetOptions>();
	CLI::App *net = host->add_subcommand("net", "The addresses of a host; changing them interrupts nothing")->require_subcommand(1);
	for (auto [verb, help] : {std::pair("add", "One more address, tried after the others"), std::pair("remove", "An address goes"),
				  std::pair("prefer", "The address to be tried first")}) {
		CLI::App *command = net->add_subcommand(verb, help);
		command->add_option("HOST", n->host, "Name of the host")->required();
		command->add_option("ADDRESS", n->address, "IP address, without port")->required();
		command->callback([=, &context, &action, verb = std::string(verb)] {
			action = [=, &context] { return host_net(context, verb, n->host, n->address); };
		});
	}

	add_pool(app, context, action);
}

}    // namespace lockstep::cli
