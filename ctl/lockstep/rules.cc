// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep host label, volume rules, group rules, volume replica pin|unpin: where replicas may be, and which stay where they are.
#include "lockstep/rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

namespace lockstep::cli {

namespace {

constexpr const char *NONE = "none";    // takes a rule back

json list_of(const std::vector<std::string> &names) { return names == std::vector<std::string>{NONE} ? json::array() : json(names); }

// KEY=VALUE sets a label, KEY= removes it.
Result<json> label_changes(const std::vector<std::string> &words)
{
	json changes = json::object();
	for (const std::string &word : words) {
		const size_t at = word.find('=');
		if (at == word.npos || !at)
			return usage_error("\"" + word + "\" is neither LABEL=VALUE nor, to remove it, LABEL=");
		const std::string value = word.substr(at + 1);
		changes[word.substr(0, at)] = value.empty() ? json(nullptr) : json(value);
	}
	return changes;
}

Result<json> named_in(const json &list, const std::string &kind, const std::string &name)
{
	for (const json &item : list)
		if (item["name"] == name)
			return item;
	return not_found("there is no " + kind + " named " + name);
}

Done host_label(Context &context, const std::string &host, const std::vector<std::string> &words)
{
	const Result<json> changes = label_changes(words);
	if (!changes)
		return changes.error();
	if (!changes->empty())
		if (Result<json> answer = context.client().patch("/v1/hosts/" + url_encode(host), {{"labels", *changes}}); !answer)
			return answer.error();
	const Result<json> status = cluster_outline(context);
	const Result<json> h = status ? named_in((*status)["hosts"], "host", host) : status;
	if (!h)
		return h.error();
	std::string text;
	for (const auto &[key, value] : (*h)["labels"].items())
		text += fmt::format("{}={}\n", key, shown(value));
	return told(context, (*h)["labels"], text.empty() ? fmt::format("host {} has no labels\n", host) : text);
}

// kind: "volume" or "group".
Done show_or_set(Context &context, const std::string &kind, const std::string &name, const RuleOptions &o)
{
	const json rules = rules_body(o);
	if (!rules.empty())
		if (Result<json> answer = context.client().patch("/v1/" + kind + "s/" + url_encode(name), {{"rules", rules}}); !answer)
			return answer.error();
	const Result<json> status = kind == "volume" ? cluster_status(context, name) : cluster_outline(context);
	const Result<json> is = status ? named_in((*status)[kind + "s"], kind, name) : status;
	if (!is)
		return is.error();
	std::string text = fmt::format("{} {}: {}\n", kind, name, rules_text((*is)["rules"]));
	for (const json &r : kind == "volume" ? (*is)["replicas"] : json::array())
		if (shown(r["misplaced"]) != "-")
			text += fmt::format("  ! the replica on host {} is misplaced, and stays there for now: {}\n", shown(r["host"]), shown(r["misplaced"]));
	return told(context, (*is)["rules"], text);
}

Done pin(Context &context, const std::string &volume, const std::string &host, bool pinned)
{
	Result<json> answer = context.client().post("/v1/volumes/" + url_encode(volume) + "/replicas/" + url_encode(host) + "/pin", {{"pinned", pinned}});
	if (!answer)
		return answer.error();
	return told(context, *answer, fmt::format("the replica of volume {} on {} {}\n", volume, host, pinned ? "stays there" : "may go"));
}

}    // namespace

void add_rule_options(CLI::App &command, RuleOptions &o, bool of_volume)
{
	command.add_option("--different", o.different, "Label of hosts: no two replicas where it has the same value; none: no such rule");
	command.add_option("--same", o.same, "Label of hosts: all replicas where it has the same value; LABEL=VALUE: where it has this one; none");
	command.add_option("--avoid", o.avoid, "Hosts that take no replica: HOST[,HOST..]; none")->delimiter(',');
	if (of_volume)
		command.add_option("--apart-from", o.apart_from, "Volumes: no host has a replica of both: VOLUME[,VOLUME..]; none")->delimiter(',');
}

json rules_body(const RuleOptions &o)
{
	json rules = json::object();
	for (const auto &[kind, label] : {std::pair("different", &o.different), std::pair("same", &o.same)})
		if (!label->empty())
			rules[kind] = *label == NONE ? json(nullptr) : json(*label);
	for (const auto &[kind, names] : {std::pair("avoid", &o.avoid), std::pair("apart_from", &o.apart_from)})
		if (!names->empty())
			rules[kind] = list_of(*names);
	return rules;
}

json no_rules() { return {{"different", nullptr}, {"same", nullptr}, {"avoid", json::array()}, {"apart_from", json::array()}}; }

std::string rules_text(const json &rules)
{
	std::vector<std::string> parts;
	for (const auto &[kind, said] : {std::pair("different", "different"), std::pair("same", "same")})
		if (rules[kind].is_string())
			parts.push_back(fmt::format("{} {}", said, shown(rules[kind])));
	for (const auto &[kind, said] : {std::pair("avoid", "avoid"), std::pair("apart_from", "apart from")})
		if (!rules[kind].empty())
			parts.push_back(fmt::format("{} {}", said, joined(rules[kind])));
	return parts.empty() ? "no rules" : fmt::format("{}", fmt::join(parts, "; "));
}

void add_host_label(CLI::App &host, Context &context, Action &action)
{
	struct Options {
		std::string host;
		std::vector<std::string> labels;
	};
	auto o = std::make_shared<Options>();
	CLI::App *command = host.add_subcommand("label", "Show or set labels of a host, such as rack or site, by which volumes can be kept apart or together");
	command->add_option("HOST", o->host, "Name of the host")->required();
	command->add_option("LABEL", o->labels, "LABEL=VALUE sets one, LABEL= removes it");
	command->callback([=, &context, &action] { action = [=, &context] { return host_label(context, o->host, o->labels); }; });
}

void add_rules(CLI::App &of, const std::string &kind, Context &context, Action &action)
{
	struct Options : RuleOptions {
		std::string name;
	};
	auto o = std::make_shared<Options>();
	CLI::App *command = of.add_subcommand("rules", kind == "volume" ? "Show or set where replicas of a volume may be; what is elsewhere already stays"
									: "Show or set where replicas of a group's volumes may be; what is elsewhere already stays");
	command->add_option(kind == "volume" ? "VOLUME" : "GROUP", o->name, "Name of the " + kind)->required();
	add_rule_options(*command, *o, kind == "volume");
	command->callback([=, &context, &action] { action = [=, &context] { return show_or_set(context, kind, o->name, *o); }; });
}

void add_pin(CLI::App &replica, Context &context, Action &action)
{
	struct Options {
		std::string volume, host;
	};
	auto o = std::make_shared<Options>();
	for (const auto &[verb, help] : {std::pair("pin", "A replica stays where it is: nothing moves or removes it while its host and disk are there"),
					 std::pair("unpin", "A pinned replica may go again")}) {
		CLI::App *command = replica.add_subcommand(verb, help);
		command->add_option("VOLUME", o->volume, "Name of the volume")->required();
		command->add_option("HOST", o->host, "Host that has it")->required();
		command->callback([=, &context, &action, pinned = std::string(verb) == "pin"] {
			action = [=, &context] { return pin(context, o->volume, o->host, pinned); };
		});
	}
}

}    // namespace lockstep::cli
