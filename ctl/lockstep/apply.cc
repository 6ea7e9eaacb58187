// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep dump, lockstep apply: the desired state as a file (desired.h). What is to be done is found as a whole before anything is
// done; each change is one request to the API, made in an order in which each finds what it needs. The first that is refused ends it:
// the same command again goes on from there, since it looks at what there is.
#include "lockstep/desired.h"
#include "lockstep/rules.h"

#include "lib/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>

namespace lockstep::cli {

namespace {

const json &named_in(const json &list, const std::string &name)
{
	static const json none = nullptr;
	for (const json &item : list)
		if (item["name"] == name && item.value("phase", "") != "deleting")
			return item;
	return none;
}

class Plan {
public:
	Plan(const json &desired, const Actual &actual, bool prune)
		: desired_(desired), status_(actual["status"]), options_(actual["options"]), prune_(prune) {}

	Result<std::vector<Change>> make()
	{
		for (Done (Plan::*part)() : {&Plan::options, &Plan::hosts, &Plan::pools, &Plan::groups, &Plan::volumes, &Plan::gone})
			if (Done done = (this->*part)(); !done)
				return done.error();
		return std::move(changes_);
	}

private:
	void add(char sign, std::string what, std::string verb, std::string path, json body = json::object())
	{
		changes_.push_back({sign, std::move(what), std::move(verb), std::move(path), std::move(body)});
	}
	const json &part(const char *name) const
	{
		static const json none = json::object();
		auto at = desired_.find(name);
		return at == desired_.end() ? none : *at;
	}

	Done options();
	Done set_options(const json &wanted, const std::string &host, bool whole);
	Done hosts();
	void addresses(const std::string &name, const json &is, const json &wanted);
	Done pools();
	void labels(const std::string &what, const std::string &path, const json &is, const json &wanted);
	Done groups();
	Done volumes();
	json next_rules(const json &is, const json &wanted, bool apart) const;
	void rules(const std::string &what, const std::string &path, const json &is, const json &next);
	void create(const std::string &name, const json &wanted);
	Done change(const std::string &name, const json &is, const json &wanted);
	Done gone();

	const json &desired_, &status_, &options_;
	bool prune_;
	std::vector<Change> changes_;
};

Done Plan::options() { return set_options(part("options"), "", desired_.contains("options")); }

// whole: the file has this part, so that with prune what it does not name is taken back.
Done Plan::set_options(const json &wanted, const std::string &host, bool whole)
{
	const std::string of = host.empty() ? "" : " for host " + host;
	for (const auto &[name, value] : wanted.items()) {
		const json &o = named_in(options_, name);
		if (o.is_null())
			return coded("no-such-option", not_found("there is no option " + name + ": see `lockstep option list`"));
		if (!host.empty() && o["per_host"] != true)
			return usage_error("option " + name + " is of the whole cluster, not of a host");
		const json is = host.empty() ? o["value"] : o["hosts"].value(host, json());
		if (is == value)
			continue;
		json body = {{"value", value}};
		if (!host.empty())
			body["host"] = host;
		add('~', fmt::format("option {}{}: {} -> {}", name, of, is.is_null() ? "not set" : shown(is), shown(value)), "POST",
		    "/v1/options/" + url_encode(name), body);
	}
	for (const json &o : options_) {
		const std::string name = o["name"];
		const bool set = host.empty() ? o["set"] == true : o["hosts"].contains(host);
		if (!prune_ || !whole || !set || wanted.contains(name))
			continue;
		json body = {{"value", "default"}};
		if (!host.empty())
			body["host"] = host;
		add('-', fmt::format("option {}{}: back to its default", name, of), "POST", "/v1/options/" + url_encode(name), body);
	}
	return Nothing{};
}

void Plan::addresses(const std::string &name, const json &is, const json &wanted)
{
	auto change = [&](char sign, const char *verb, const json &address) {
		add(sign, fmt::format("host {}: address {} {}", name, shown(address), *verb == 'p' ? "first" : *verb == 'a' ? "comes" : "goes"), "POST",
		    "/v1/hosts/" + url_encode(name) + "/net", {{"verb", verb}, {"address", address}});
	};
	json now = is;
	for (const json &a : wanted)
		if (std::find(now.begin(), now.end(), a) == now.end()) {
			change('+', "add", a);
			now.push_back(a);
		}
	for (const json &a : is)
		if (prune_ && std::find(wanted.begin(), wanted.end(), a) == wanted.end()) {
			change('-', "remove", a);
			now.erase(std::find(now.begin(), now.end(), a));
		}
	// In the order of the file: from its end, each comes to the front where that is not so already.
	const bool ordered = now.size() >= wanted.size() && std::equal(wanted.begin(), wanted.end(), now.begin());
	for (size_t i = ordered ? 0 : wanted.size(); i-- > 0;)
		change('~', "prefer", wanted[i]);
}

Done Plan::hosts()
{
	for (const auto &[name, wanted] : part("hosts").items()) {
		const json &is = named_in(status_["hosts"], name);
		if (is.is_null())
			return coded("no-such-host", not_found("the cluster has no host named " + name + ": it joins with `lockstep cluster join`"));
		if (wanted.contains("addresses"))
			addresses(name, is["addresses"], wanted["addresses"]);
		if (Done done = set_options(wanted.value("options", json::object()), name, wanted.contains("options")); !done)
			return done;
		if (wanted.contains("labels"))
			labels("host " + name, "/v1/hosts/" + url_encode(name), is["labels"], wanted["labels"]);
		if (const json evacuated = wanted.value("evacuated", json()); !evacuated.is_null() && evacuated != is["evacuating"])
			add('~', fmt::format("host {}: {}", name, evacuated == true ? "its replicas go to other hosts" : "it takes replicas as any other"), "POST",
			    "/v1/hosts/" + url_encode(name) + (evacuated == true ? "/evacuate" : "/restore"));
	}
	return Nothing{};
}

Done Plan::pools()
{
	for (const json &wanted : desired_.value("pools", json::array())) {
		const std::string name = wanted["name"], host = wanted["host"], thin = wanted.value("thin", "");
		if (named_in(status_["hosts"], host).is_null())
			return coded("no-such-host", not_found("pool " + name + ": the cluster has no host named " + host));
		const json *is = nullptr;
		for (const json &p : status_["pools"])
			if (p["name"] == name && p["host"] == host)
				is = &p;
		if (is && ((*is)["vg"] != wanted["vg"] || (*is)["thin_lv"] != thin))
			return forbidden(fmt::format("pool {} of host {} lies in {}{}{} and cannot be changed", name, host, shown((*is)["vg"]),
						     (*is)["thin_lv"] == "" ? "" : "/", (*is)["thin_lv"].get<std::string>()));
		if (is)
			continue;
		json body = {{"name", name}, {"host", host}, {"vg", wanted["vg"]}};
		if (!thin.empty())
			body["thin"] = thin;
		add('+', fmt::format("pool {} of host {}: {}{}{}", name, host, shown(wanted["vg"]), thin.empty() ? "" : "/", thin), "POST", "/v1/pools", body);
	}
	return Nothing{};
}

void Plan::labels(const std::string &what, const std::string &path, const json &is, const json &wanted)
{
	auto set = [&](char sign, const std::string &key, const std::string &said, const json &value) {
		add(sign, fmt::format("{}: label {}: {}", what, key, said), "PATCH", path, {{"labels", {{key, value}}}});
	};
	for (const auto &[key, value] : wanted.items())
		if (!is.contains(key))
			set('+', key, value, value);
		else if (is[key] != value)
			set('~', key, is[key].get<std::string>() + " -> " + value.get<std::string>(), value);
	for (const auto &[key, value] : is.items())
		if (prune_ && !wanted.contains(key))
			set('-', key, "goes", nullptr);
}

// By name: they are sets.
json in_order(json rules)
{
	for (const char *key : {"avoid", "apart_from"})
		std::sort(rules[key].begin(), rules[key].end());
	return rules;
}

// What the file says in place of what is; with prune what it does not say is no rule any more. apart: also from which volumes, all of which
// must be there then.
json Plan::next_rules(const json &is, const json &wanted, bool apart) const
{
	json next = prune_ ? no_rules() : is;
	for (const auto &[key, value] : wanted.items())
		next[key == "apart-from" ? "apart_from" : key] = value;
	if (!apart)
		next["apart_from"] = is["apart_from"];
	return in_order(next);
}

void Plan::rules(const std::string &what, const std::string &path, const json &is, const json &next)
{
	if (in_order(is) != next)
		add('~', fmt::format("{}: {} -> {}", what, rules_text(is), rules_text(next)), "PATCH", path, {{"rules", next}});
}

Done Plan::groups()
{
	for (const auto &[name, wanted] : part("groups").items()) {
		const json &is = named_in(status_["groups"], name);
		if (is.is_null()) {
			json body = wanted;
			body["name"] = name;
			add('+', "group " + name, "POST", "/v1/groups", body);
			continue;
		}
		if (wanted.contains("pool") && wanted["pool"] != is["pool"])
			return forbidden(fmt::format("group {}: its pool is {} and cannot be changed", name, shown(is["pool"])));
		if (const json n = wanted.value("redundancy", json()); !n.is_null() && n != is["redundancy"])
			add('~', fmt::format("group {}: redundancy {} -> {}, of its volumes too", name, is["redundancy"].dump(), n.dump()), "PATCH",
			    "/v1/groups/" + url_encode(name), {{"redundancy", n}});
		if (wanted.contains("labels"))
			labels("group " + name, "/v1/groups/" + url_encode(name), is["labels"], wanted["labels"]);
		if (wanted.contains("rules"))
			rules("group " + name, "/v1/groups/" + url_encode(name), is["rules"], next_rules(is["rules"], wanted["rules"], false));
	}
	return Nothing{};
}

void Plan::create(const std::string &name, const json &wanted)
{
	json body = {{"name", name}, {"size_bytes", wanted["size"]}};
	for (const auto &[key, field] : {std::pair("redundancy", "redundancy"), std::pair("pool", "pool"), std::pair("class", "class"),
					 std::pair("on-no-quorum", "no_quorum"), std::pair("group", "group"), std::pair("labels", "labels")})
		if (wanted.contains(key))
			body[field] = wanted[key];
	if (wanted.contains("rules"))
		body["rules"] = next_rules(no_rules(), wanted["rules"], false);
	add('+', fmt::format("volume {}: {}", name, format_bytes(wanted["size"])), "POST", "/v1/volumes", body);
}

Done Plan::change(const std::string &name, const json &is, const json &wanted)
{
	const std::string what = "volume " + name, path = "/v1/volumes/" + url_encode(name);
	for (const auto &[key, now] : {std::pair("class", is["class"]), std::pair("group", is["group"]), std::pair("pool", is["pool"])})
		if (wanted.contains(key) && wanted[key] != now)
			return forbidden(fmt::format("{}: its {} is {} and cannot be changed to {}", what, key, now.is_null() ? "none" : shown(now), shown(wanted[key])));
	if (const json size = wanted.value("size", json()); !size.is_null() && size != is["size_bytes"]) {
		if (size < is["size_bytes"])
			return forbidden(fmt::format("{}: it has {} and cannot shrink", what, format_bytes(is["size_bytes"])));
		add('~', fmt::format("{}: size {} -> {}", what, format_bytes(is["size_bytes"]), format_bytes(size)), "POST", path + "/resize",
		    {{"size_bytes", size}});
	}
	if (const json n = wanted.value("redundancy", json()); !n.is_null() && n != is["redundancy"])
		add('~', fmt::format("{}: redundancy {} -> {}", what, is["redundancy"].dump(), n.dump()), "POST", path + "/redundancy", {{"redundancy", n}});
	if (const json q = wanted.value("on-no-quorum", json()); !q.is_null() && q != is["no_quorum"])
		add('~', fmt::format("{}: on-no-quorum {} -> {}", what, shown(is["no_quorum"]), shown(q)), "PATCH", path, {{"no_quorum", q}});
	if (wanted.contains("labels"))
		labels(what, path, is["labels"], wanted["labels"]);
	return Nothing{};
}

Done Plan::volumes()
{
	for (const auto &[name, wanted] : part("volumes").items()) {
		const json &is = named_in(status_["volumes"], name);
		if (is.is_null() && !wanted.contains("size"))
			return usage_error("volume " + name + " does not exist, and the file does not say its size");
		if (is.is_null())
			create(name, wanted);
		else if (Done done = change(name, is, wanted); !done)
			return done;
	}
	// Now that all are there that they may name.
	for (const auto &[name, wanted] : part("volumes").items()) {
		if (!wanted.contains("rules"))
			continue;
		const json &is = named_in(status_["volumes"], name);
		const json before = is.is_null() ? next_rules(no_rules(), wanted["rules"], false) : is["rules"];
		rules("volume " + name, "/v1/volumes/" + url_encode(name), before, next_rules(before, wanted["rules"], true));
	}
	return Nothing{};
}

// What the file does not name, of the parts that it has.
Done Plan::gone()
{
	if (!prune_)
		return Nothing{};
	for (const json &v : status_["volumes"]) {
		const std::string name = v["name"];
		if (!desired_.contains("volumes") || part("volumes").contains(name) || v["phase"] == "deleting")
			continue;
		if (v["openers"].empty())
			add('-', "volume " + name + ", with all its data", "DELETE", "/v1/volumes/" + url_encode(name));
		else
			add('=', fmt::format("volume {} stays: it is open on {}", name, joined(v["openers"])), "", "");
	}
	for (const json &g : status_["groups"])
		if (desired_.contains("groups") && !part("groups").contains(g["name"].get<std::string>()))
			add('-', "group " + shown(g["name"]), "DELETE", "/v1/groups/" + url_encode(g["name"].get<std::string>()));
	return Nothing{};
}

Result<Actual> look(Context &context)
{
	Result<json> status = cluster_outline(context);
	if (!status)
		return status.error();
	Result<json> options = context.client().get("/v1/options");
	if (!options)
		return options.error();
	return Actual{{"status", *status}, {"options", *options}};
}

Done dump(Context &context)
{
	Result<Actual> actual = look(context);
	if (!actual)
		return actual.error();
	const std::string text = dump_desired(*actual);
	if (!context.as_json)
		return told(context, nullptr, text);
	Result<json> desired = read_desired(text, "the dump");
	return desired ? told(context, *desired, "") : desired.error();
}

Result<std::string> content_of(const std::string &path)
{
	std::ostringstream text;
	if (path == "-") {
		text << std::cin.rdbuf();
		return text.str();
	}
	std::ifstream file(path);
	if (!file)
		return coded("not-found", not_found("cannot read " + path));
	text << file.rdbuf();
	return text.str();
}

Done carry_out(const Client &client, const Change &c)
{
	if (c.verb.empty())
		return Nothing{};
	Result<json> answer = c.verb == "POST" ? client.post(c.path, c.body) : c.verb == "PATCH" ? client.patch(c.path, c.body) : client.del(c.path);
	return answer ? Done(Nothing{}) : Done(answer.error());
}

Done apply(Context &context, const std::string &path, bool dry_run, bool prune)
{
	Result<std::string> content = content_of(path);
	if (!content)
		return content.error();
	Result<json> desired = read_desired(*content, path);
	if (!desired)
		return desired.error();
	Result<Actual> actual = look(context);
	if (!actual)
		return actual.error();
	Result<std::vector<Change>> changes = changes_to(*desired, *actual, prune);
	if (!changes)
		return changes.error();
	json list = json::array();
	Done result = Nothing{};
	for (const Change &c : *changes) {
		if (!context.as_json)
			context.out << c.sign << " " << c.what << "\n" << std::flush;
		result = dry_run ? Done(Nothing{}) : carry_out(context.client(), c);
		list.push_back({{"sign", std::string(1, c.sign)}, {"what", c.what}, {"done", !dry_run && result && !c.verb.empty()}});
		if (!result)
			break;
	}
	if (context.as_json)
		print_json(context, {{"dry_run", dry_run}, {"changes", list}});
	else if (changes->empty())
		context.out << "nothing differs\n";
	return result;
}

}    // namespace

Result<std::vector<Change>> changes_to(const json &desired, const Actual &actual, bool prune) { return Plan(desired, actual, prune).make(); }

void add_apply(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string path;
		bool dry_run = false, prune = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *dump_command = app.add_subcommand("dump", "Print the desired state of the cluster as YAML, as `lockstep apply` reads it");
	dump_command->callback([=, &context, &action] { action = [=, &context] { return dump(context); }; });
	CLI::App *command = app.add_subcommand("apply", "Make options, hosts, pools, groups and volumes as a file says; what it does not name stays");
	command->add_option("-f,--file", o->path, "The file, as `lockstep dump` prints it; \"-\": standard input")->required();
	command->add_flag("--dry-run", o->dry_run, "Only show what would change, one line each");
	command->add_flag("--prune", o->prune, "Of each kind the file has, what it does not name goes; never hosts, pools and volumes in use");
	command->callback([=, &context, &action] { action = [=, &context] { return apply(context, o->path, o->dry_run, o->prune); }; });
}

}    // namespace lockstep::cli
