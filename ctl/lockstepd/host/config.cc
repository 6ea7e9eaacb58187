// SPDX-License-Identifier: GPL-2.0-or-later
//
// Reads lockstep.yaml. Each key has one reader that says what it expects; the first bad value ends the reading. yaml-cpp
// throws, and so do the readers here: one catch turns either into the one line for the user.
#include "lockstepd/host/config.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <thread>

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include "lockstepd/net/hello.h"
#include "uapi/lockstep.h"

namespace lockstep {

namespace {

struct BadValue {
	int line;    // from 1
	std::string what;
};

using Readers = std::map<std::string, std::function<void(const std::string &key, const YAML::Node &)>>;

[[noreturn]] void bad(const YAML::Node &node, std::string what)
{
	throw BadValue{node.Mark().line + 1, std::move(what)};
}

std::string text_of(const std::string &key, const YAML::Node &node)
{
	if (!node.IsScalar() || node.Scalar().empty())
		bad(node, fmt::format("'{}' must be a text", key));
	return node.Scalar();
}

unsigned number_of(const std::string &key, const YAML::Node &node, unsigned least, unsigned most)
{
	unsigned value = 0;
	const std::string text = node.IsScalar() ? node.Scalar() : "";
	bool valid = !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos;
	if (valid)
		value = std::stoul(text);
	if (!valid || value < least || value > most)
		bad(node, fmt::format("'{}' must be a whole number from {} to {}", key, least, most));
	return value;
}

bool flag_of(const std::string &key, const YAML::Node &node)
{
	bool value;
	if (!node.IsScalar() || !YAML::convert<bool>::decode(node, value))
		bad(node, fmt::format("'{}' must be true or false", key));
	return value;
}

std::string path_of(const std::string &key, const YAML::Node &node)
{
	std::string path = text_of(key, node);
	if (path[0] != '/')
		bad(node, fmt::format("'{}' must be an absolute path, not '{}'", key, path));
	return path;
}

std::string name_of(const std::string &key, const YAML::Node &node)
{
	std::string name = text_of(key, node);
	const char *allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
	if (name.size() > 63 || name.find_first_not_of(allowed) != std::string::npos || !isalnum(name[0]))
		bad(node, fmt::format("'{}' must be 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
				      key));
	return name;
}

std::vector<std::string> addresses_of(const std::string &key, const YAML::Node &node)
{
	std::vector<std::string> addresses;
	if (!node.IsSequence() || node.size() == 0)
		bad(node, fmt::format("'{}' must be a list of IP addresses, such as [192.0.2.1]", key));
	for (const YAML::Node &item : node) {
		std::string address = text_of(key, item);
		bool with_port = address[0] == '[' || std::count(address.begin(), address.end(), ':') == 1;
		if (with_port)
			bad(item, fmt::format("'{}' takes addresses without a port, not '{}': the port has its own key", key,
					      address));
		if (!parse_address(address, 1))
			bad(item, fmt::format("'{}': '{}' is not an IP address", key, address));
		addresses.push_back(address);
	}
	return addresses;
}

void read_map(const YAML::Node &node, const std::string &prefix, const Readers &readers)
{
	if (!node.IsMap())
		bad(node, prefix.empty() ? "must hold 'key: value' lines" : fmt::format("'{}' must be a map", prefix));
	for (const auto &entry : node) {
		const std::string name = entry.first.IsScalar() ? entry.first.Scalar() : "";
		const std::string key = prefix.empty() ? name : prefix + "." + name;
		auto reader = readers.find(name);
		if (reader == readers.end())
			bad(entry.first, fmt::format("unknown key '{}'", key));
		reader->second(key, entry.second);
	}
}

HostConfig read_config(const YAML::Node &root, const std::string &hostname)
{
	HostConfig c;
	c.lanes = default_lanes();
	const Readers consensus = {
		{"heartbeat-ms", [&](auto &k, auto &n) { c.heartbeat_ms = number_of(k, n, 10, 10'000); }},
		{"election-ms", [&](auto &k, auto &n) { c.election_ms = number_of(k, n, 50, 60'000); }},
	};
	const Readers top = {
		{"name", [&](auto &k, auto &n) { c.name = name_of(k, n); }},
		{"addresses", [&](auto &k, auto &n) { c.addresses = addresses_of(k, n); }},
		{"port", [&](auto &k, auto &n) { c.port = number_of(k, n, 1, 65535); }},
		{"state-dir", [&](auto &k, auto &n) { c.state_dir = path_of(k, n); }},
		{"socket", [&](auto &k, auto &n) { c.socket = path_of(k, n); }},
		{"consensus", [&](auto &k, auto &n) { read_map(n, k, consensus); }},
		{"host-timeout-ms", [&](auto &k, auto &n) { c.host_timeout_ms = number_of(k, n, 1000, 600'000); }},
		{"witness", [&](auto &k, auto &n) { c.witness = flag_of(k, n); }},
		{"lanes", [&](auto &k, auto &n) { c.lanes = number_of(k, n, 1, LKS_MAX_LANES); }},
	};
	if (root.IsNull())
		throw BadValue{1, "'addresses' is missing: list this host's storage addresses"};
	read_map(root, "", top);
	if (c.addresses.empty())
		throw BadValue{1, "'addresses' is missing: list this host's storage addresses"};
	if (c.election_ms < 3 * c.heartbeat_ms)
		throw BadValue{root["consensus"].Mark().line + 1,
			       fmt::format("'consensus.election-ms' ({}) must be at least three times 'consensus.heartbeat-ms' ({})",
					   c.election_ms, c.heartbeat_ms)};
	if (c.name.empty())
		c.name = hostname;
	return c;
}

}    // namespace

unsigned default_lanes()
{
	return 1 + std::clamp(std::thread::hardware_concurrency(), 1u, 4u);
}

Result<HostConfig> parse_config(const std::string &text, const std::string &path, const std::string &hostname)
{
	try {
		return read_config(YAML::Load(text), hostname);
	} catch (const BadValue &e) {
		return usage_error(fmt::format("{}:{}: {}", path, e.line, e.what));
	} catch (const YAML::Exception &e) {
		return usage_error(fmt::format("{}:{}: not valid YAML: {}", path, e.mark.line + 1, e.msg));
	}
}

Result<HostConfig> load_config(const std::string &path)
{
	char hostname[256] = {};
	gethostname(hostname, sizeof(hostname) - 1);
	std::ifstream file(path);
	if (!file)
		return usage_error(fmt::format("cannot read the configuration {}: {}", path, strerror(errno)));
	std::ostringstream text;
	text << file.rdbuf();
	return parse_config(text.str(), path, hostname);
}

}    // namespace lockstep
