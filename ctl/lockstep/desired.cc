// SPDX-License-Identifier: GPL-2.0-or-later
//
// See desired.h: reading and writing the file. yaml-cpp throws, and so do the readers here; one catch makes it the line for the user.
#include "lockstep/desired.h"

#include "lib/units.h"
#include "lockstep/rules.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <functional>
#include <map>
#include <set>

namespace lockstep::cli {

using nlohmann::json;

namespace {

struct Bad {
	YAML::Mark at;
	std::string what;
};

[[noreturn]] void bad(const YAML::Node &node, std::string what) { throw Bad{node.Mark(), std::move(what)}; }

using Reader = std::function<json(const std::string &what, const YAML::Node &)>;
using Readers = std::map<std::string, Reader>;

json read_text(const std::string &what, const YAML::Node &node)
{
	if (!node.IsScalar() || node.Scalar().empty())
		bad(node, what + " must be a text");
	return node.Scalar();
}

Reader one_of(std::vector<std::string> words)
{
	return [words](const std::string &what, const YAML::Node &node) -> json {
		std::string list;
		for (const std::string &w : words) {
			if (node.IsScalar() && node.Scalar() == w)
				return w;
			list += (list.empty() ? "" : " or ") + w;
		}
		bad(node, what + " must be " + list);
	};
}

json read_flag(const std::string &what, const YAML::Node &node)
{
	bool value;
	if (!node.IsScalar() || !YAML::convert<bool>::decode(node, value))
		bad(node, what + " must be true or false");
	return value;
}

json read_redundancy(const std::string &what, const YAML::Node &node)
{
	const std::string t = node.IsScalar() ? node.Scalar() : "";
	if (t.empty() || t.size() > 3 || t.find_first_not_of("0123456789") != t.npos || !std::stoul(t))
		bad(node, what + " must be a whole number from 1");
	return std::stoul(t);
}

json read_size(const std::string &what, const YAML::Node &node)
{
	Result<uint64_t> bytes = node.IsScalar() ? parse_size(node.Scalar()) : Result<uint64_t>(usage_error("it is no size"));
	if (!bytes)
		bad(node, what + ": " + bytes.error().message);
	if (!*bytes || *bytes % 4096)
		bad(node, what + " must be a multiple of 4096 bytes, and not 0");
	return *bytes;
}

json read_texts(const std::string &what, const YAML::Node &node)
{
	if (!node.IsSequence() || node.size() == 0)
		bad(node, what + " must be a list of texts, and not empty");
	json list = json::array();
	for (const YAML::Node &item : node)
		list.push_back(read_text(what, item));
	return list;
}

// Any keys, each with a text, which may be empty.
json read_words(const std::string &what, const YAML::Node &node)
{
	if (!node.IsMap())
		bad(node, what + " must be keys and texts");
	json map = json::object();
	for (const auto &entry : node) {
		const std::string key = read_text("a key of " + what, entry.first);
		if (!entry.second.IsScalar())
			bad(entry.second, what + ": " + key + " must be a text");
		if (map.contains(key))
			bad(entry.first, what + ": " + key + " stands there twice");
		map[key] = entry.second.Scalar();
	}
	return map;
}

json read_fields(const std::string &what, const YAML::Node &node, const Readers &readers)
{
	if (!node.IsMap())
		bad(node, what + " must be a list of keys and values");
	json map = json::object();
	for (const auto &entry : node) {
		const std::string key = read_text("a key of " + what, entry.first);
		auto reader = readers.find(key);
		if (reader == readers.end())
			bad(entry.first, fmt::format("{} has no \"{}\"", what, key));
		if (map.contains(key))
			bad(entry.first, fmt::format("{}: \"{}\" stands there twice", what, key));
		map[key] = reader->second(what + ": " + key, entry.second);
	}
	return map;
}

// Objects by name.
Reader read_named(const std::string &kind, const Readers &readers)
{
	return [kind, readers](const std::string &what, const YAML::Node &node) {
		if (!node.IsMap())
			bad(node, what + " must be names, each with its own keys");
		json map = json::object();
		for (const auto &entry : node) {
			const std::string name = read_text("a name in " + what, entry.first);
			if (map.contains(name))
				bad(entry.first, fmt::format("{} {} stands there twice", kind, name));
			map[name] = read_fields(kind + " " + name, entry.second, readers);
		}
		return map;
	};
}

json read_pools(const std::string &what, const YAML::Node &node)
{
	static const Readers readers = {{"name", read_text}, {"host", read_text}, {"vg", read_text}, {"thin", read_text}};
	if (!node.IsSequence())
		bad(node, what + " must be a list");
	json list = json::array();
	std::set<std::pair<std::string, std::string>> seen;
	for (const YAML::Node &item : node) {
		json pool = read_fields("a pool", item, readers);
		for (const char *key : {"name", "host", "vg"})
			if (!pool.contains(key))
				bad(item, fmt::format("a pool lacks its \"{}\"", key));
		if (!seen.emplace(pool["name"].get<std::string>(), pool["host"].get<std::string>()).second)
			bad(item, fmt::format("pool {} of host {} stands there twice", pool["name"].get<std::string>(), pool["host"].get<std::string>()));
		list.push_back(std::move(pool));
	}
	return list;
}

Reader read_rules(bool of_volume)
{
	Readers readers = {{"different", read_text}, {"same", read_text}, {"avoid", read_texts}};
	if (of_volume)
		readers["apart-from"] = read_texts;
	return [readers](const std::string &what, const YAML::Node &node) { return read_fields(what, node, readers); };
}

const Readers &file_readers()
{
	static const Readers host = {{"addresses", read_texts}, {"evacuated", read_flag}, {"options", read_words}, {"labels", read_words}};
	static const Readers group = {{"pool", read_text}, {"redundancy", read_redundancy}, {"labels", read_words}, {"rules", read_rules(false)}};
	static const Readers volume = {{"size", read_size}, {"redundancy", read_redundancy}, {"pool", read_text}, {"class", one_of({"exclusive", "shared"})},
				       {"on-no-quorum", one_of({"freeze", "error"})}, {"group", read_text}, {"labels", read_words}, {"rules", read_rules(true)}};
	static const Readers all = {{"options", read_words}, {"hosts", read_named("host", host)}, {"pools", read_pools}, {"groups", read_named("group", group)},
				    {"volumes", read_named("volume", volume)}};
	return all;
}

std::string size_text(uint64_t bytes)
{
	for (const auto &[shift, unit] : {std::pair(40, "TiB"), std::pair(30, "GiB"), std::pair(20, "MiB"), std::pair(10, "KiB")})
		if (bytes % (1ull << shift) == 0)
			return fmt::format("{}{}", bytes >> shift, unit);
	return std::to_string(bytes);
}

void write_words(YAML::Emitter &out, const char *key, const json &map)
{
	if (map.empty())
		return;
	out << YAML::Key << key << YAML::Value << YAML::BeginMap;
	for (const auto &[name, value] : map.items())
		out << YAML::Key << name << YAML::Value << YAML::DoubleQuoted << value.get<std::string>();
	out << YAML::EndMap;
}

void write_rules(YAML::Emitter &out, const json &rules)
{
	if (rules_text(rules) == rules_text(no_rules()))
		return;
	out << YAML::Key << "rules" << YAML::Value << YAML::BeginMap;
	for (const char *key : {"different", "same"})
		if (rules[key].is_string())
			out << YAML::Key << key << YAML::Value << rules[key].get<std::string>();
	for (const auto &[key, field] : {std::pair("avoid", "avoid"), std::pair("apart-from", "apart_from")}) {
		if (rules[field].empty())
			continue;
		out << YAML::Key << key << YAML::Value << YAML::Flow << YAML::BeginSeq;
		for (const json &name : rules[field])
			out << name.get<std::string>();
		out << YAML::EndSeq;
	}
	out << YAML::EndMap;
}

// Those that are set, of the cluster or of a host.
json set_options(const json &options, const json &host)
{
	json set = json::object();
	for (const json &o : options) {
		if (host.is_null() && o["set"] == true)
			set[o["name"].get<std::string>()] = o["value"];
		if (host.is_string() && o["hosts"].contains(host.get<std::string>()))
			set[o["name"].get<std::string>()] = o["hosts"][host.get<std::string>()];
	}
	return set;
}

void write_volume(YAML::Emitter &out, const json &v)
{
	out << YAML::Key << v["name"].get<std::string>() << YAML::Value << YAML::BeginMap;
	out << YAML::Key << "size" << YAML::Value << size_text(v["size_bytes"]);
	out << YAML::Key << "redundancy" << YAML::Value << v["redundancy"].get<unsigned>();
	if (v["pool"].is_string())
		out << YAML::Key << "pool" << YAML::Value << v["pool"].get<std::string>();
	out << YAML::Key << "class" << YAML::Value << v["class"].get<std::string>();
	out << YAML::Key << "on-no-quorum" << YAML::Value << v["no_quorum"].get<std::string>();
	if (v["group"].is_string())
		out << YAML::Key << "group" << YAML::Value << v["group"].get<std::string>();
	write_words(out, "labels", v["labels"]);
	write_rules(out, v["rules"]);
	out << YAML::EndMap;
}

void write_hosts(YAML::Emitter &out, const Actual &actual)
{
	out << YAML::Key << "hosts" << YAML::Value << YAML::BeginMap;
	for (const json &h : actual["status"]["hosts"]) {
		out << YAML::Key << h["name"].get<std::string>() << YAML::Value << YAML::BeginMap;
		out << YAML::Key << "addresses" << YAML::Value << YAML::Flow << YAML::BeginSeq;
		for (const json &a : h["addresses"])
			out << a.get<std::string>();
		out << YAML::EndSeq;
		if (h["evacuating"] == true)
			out << YAML::Key << "evacuated" << YAML::Value << true;
		write_words(out, "options", set_options(actual["options"], h["name"]));
		write_words(out, "labels", h["labels"]);
		out << YAML::EndMap;
	}
	out << YAML::EndMap;
}

}    // namespace

Result<json> read_desired(const std::string &content, const std::string &file)
{
	try {
		std::vector<YAML::Node> documents = YAML::LoadAll(content);
		if (documents.size() > 1)
			return usage_error(file + ": it holds more than one document");
		if (documents.empty() || documents[0].IsNull())
			return usage_error(file + ": it is empty");
		return read_fields("the file", documents[0], file_readers());
	} catch (const Bad &e) {
		return usage_error(fmt::format("{}:{}:{}: {}", file, e.at.line + 1, e.at.column + 1, e.what));
	} catch (const YAML::Exception &e) {
		return usage_error(fmt::format("{}:{}:{}: {}", file, e.mark.line + 1, e.mark.column + 1, e.msg));
	}
}

std::string dump_desired(const Actual &actual)
{
	const json &status = actual["status"];
	YAML::Emitter out;
	out << YAML::Comment("cluster " + status["cluster"]["name"].get<std::string>() + ", by `lockstep dump`; see `lockstep apply --help`");
	out << YAML::BeginMap;
	write_words(out, "options", set_options(actual["options"], nullptr));
	write_hosts(out, actual);
	out << YAML::Key << "pools" << YAML::Value << YAML::BeginSeq;
	for (const json &p : status["pools"]) {
		out << YAML::Flow << YAML::BeginMap;
		for (const auto &[key, field] : {std::pair("name", "name"), std::pair("host", "host"), std::pair("vg", "vg"), std::pair("thin", "thin_lv")})
			if (p[field] != "")
				out << YAML::Key << key << YAML::Value << p[field].get<std::string>();
		out << YAML::EndMap;
	}
	out << YAML::EndSeq << YAML::Key << "groups" << YAML::Value << YAML::BeginMap;
	for (const json &g : status["groups"]) {
		out << YAML::Key << g["name"].get<std::string>() << YAML::Value << YAML::BeginMap;
		out << YAML::Key << "pool" << YAML::Value << g["pool"].get<std::string>();
		out << YAML::Key << "redundancy" << YAML::Value << g["redundancy"].get<unsigned>();
		write_words(out, "labels", g["labels"]);
		write_rules(out, g["rules"]);
		out << YAML::EndMap;
	}
	out << YAML::EndMap << YAML::Key << "volumes" << YAML::Value << YAML::BeginMap;
	for (const json &v : status["volumes"])
		if (v["phase"] != "deleting")
			write_volume(out, v);
	out << YAML::EndMap << YAML::EndMap;
	return std::string(out.c_str()) + "\n";
}

}    // namespace lockstep::cli
