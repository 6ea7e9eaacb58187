// SPDX-License-Identifier: GPL-2.0-or-later
//
// docs/openapi.yaml is true: it has every route of the server and no other, and replies are what it says. A reply may hold nothing
// that is not described.
#include "fake.h"

#include "lib/http.h"

#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <fstream>
#include <regex>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const fs::path ROOT = fs::path(__FILE__).is_absolute() ? fs::path(__FILE__).parent_path() / "../../.." : fs::path(".");

const YAML::Node &document()
{
	static const YAML::Node root = YAML::LoadFile(ROOT / "docs/openapi.yaml");
	return root;
}

YAML::Node resolved(const YAML::Node &schema)
{
	if (!schema["$ref"])
		return schema;
	YAML::Node at = YAML::Clone(document());
	std::string path = schema["$ref"].as<std::string>().substr(2);    // "#/a/b"
	for (size_t from = 0, to; from <= path.size(); from = to + 1) {
		to = std::min(path.find('/', from), path.size());
		at.reset(at[path.substr(from, to - from)]);
	}
	return at;
}

bool has_type(const json &value, const std::string &type)
{
	return type == "object" ? value.is_object() : type == "array" ? value.is_array() : type == "string" ? value.is_string()
	     : type == "boolean" ? value.is_boolean() : type == "integer" ? value.is_number_integer() : value.is_number();
}

// What is wrong with the value, first only; empty if nothing.
std::string mismatch(const json &value, const YAML::Node &unresolved, const std::string &where)
{
	const YAML::Node schema = resolved(unresolved);
	if (value.is_null())
		return schema["nullable"] && schema["nullable"].as<bool>() ? "" : where + " is null";
	if (schema["type"] && !has_type(value, schema["type"].as<std::string>()))
		return where + " is no " + schema["type"].as<std::string>() + ": " + value.dump().substr(0, 80);
	if (schema["enum"] && value.is_string()) {
		bool known = false;
		for (const auto &e : schema["enum"])
			known = known || e.as<std::string>() == value.get<std::string>();
		if (!known)
			return where + " has an unknown value: " + value.dump();
	}
	if (value.is_array() && schema["items"])
		for (const json &item : value)
			if (std::string m = mismatch(item, schema["items"], where + "[]"); !m.empty())
				return m;
	if (!value.is_object())
		return {};
	for (const auto &[key, member] : value.items()) {
		const YAML::Node properties = schema["properties"];
		if (properties && properties[key]) {
			if (std::string m = mismatch(member, properties[key], where + "." + key); !m.empty())
				return m;
		} else if (!schema["additionalProperties"]) {
			return where + "." + key + " is not described";
		}
	}
	for (const auto &name : schema["required"] ? schema["required"] : YAML::Node(YAML::NodeType::Sequence))
		if (!value.contains(name.as<std::string>()))
			return where + "." + name.as<std::string>() + " is missing";
	return {};
}

// "POST /volumes/{}/resize" of every route in the server's files.
std::set<std::string> served()
{
	std::set<std::string> routes;
	const std::regex call(R"re(http\.(Get|Post|Patch|Put|Delete)\("/v1([^"]*)")re"), part(R"re(\(\[\^/\]\+\)|\(\.\+\))re"),
		choice(R"re(\(([a-z]+(\|[a-z]+)+)\))re");
	for (const auto &file : fs::directory_iterator(ROOT / "ctl/lockstepd/api")) {
		std::ifstream in(file.path());
		for (std::string line; std::getline(in, line);)
			for (std::sregex_iterator m(line.begin(), line.end(), call), end; m != end; ++m) {
				std::string verb = (*m)[1], path = std::regex_replace((*m)[2].str(), part, "{}");
				std::transform(verb.begin(), verb.end(), verb.begin(), ::toupper);
				std::smatch words;
				if (!std::regex_search(path, words, choice)) {
					routes.insert(verb + " " + path);
					continue;
				}
				std::stringstream list(words[1].str());
				for (std::string word; std::getline(list, word, '|');)
					routes.insert(verb + " " + words.prefix().str() + word + words.suffix().str());
			}
	}
	return routes;
}

std::set<std::string> described()
{
	std::set<std::string> routes;
	for (const auto &path : document()["paths"])
		for (const auto &verb : path.second) {
			std::string name = verb.first.as<std::string>();
			std::transform(name.begin(), name.end(), name.begin(), ::toupper);
			if (name != "PARAMETERS")
				routes.insert(name + " " + std::regex_replace(path.first.as<std::string>(), std::regex(R"(\{[a-z]+\})"), "{}"));
		}
	return routes;
}

struct Http {
	httplib::Client client{FakeDaemon::socket_path()};
	Http() { client.set_address_family(AF_UNIX); }

	// The reply to the request, checked against the description of the path.
	json ask(const std::string &verb, const std::string &path, const std::string &url, const json &body = json::object(), int status = 200)
	{
		httplib::Result r = verb == "get"    ? client.Get("/v1" + url)
				  : verb == "delete" ? client.Delete("/v1" + url)
				  : verb == "patch"  ? client.Patch("/v1" + url, body.dump(), "application/json")
						     : client.Post("/v1" + url, body.dump(), "application/json");
		INFO(verb << " " << url);
		REQUIRE(r);
		INFO(r->body);
		REQUIRE(r->status == status);
		json reply = json::parse(r->body);
		YAML::Node responses = document()["paths"][path][verb]["responses"];
		REQUIRE(responses);
		YAML::Node response = resolved(status == 200 ? responses["200"] : responses["default"]);
		if (YAML::Node schema = response["content"]["application/json"]["schema"])
			CHECK(mismatch(reply, schema, path) == "");
		return reply;
	}
};

}    // namespace

TEST_CASE("docs/openapi.yaml has all routes of the server, and no other")
{
	std::set<std::string> in_server = served(), in_document = described();
	CHECK(in_server.size() > 20);
	for (const std::string &route : in_server) {
		INFO(route << " is not in docs/openapi.yaml");
		CHECK(in_document.contains(route));
	}
	for (const std::string &route : in_document) {
		INFO(route << " is in docs/openapi.yaml and not in the server");
		CHECK(in_server.contains(route));
	}
}

TEST_CASE("docs/openapi.yaml lists every error code, and no other")
{
	std::set<std::string> listed, used;
	for (Status s : {Status::usage, Status::not_found, Status::forbidden, Status::failed})
		used.insert(code_of(Error{s, ""}));
	const YAML::Node schema = document()["components"]["responses"]["Error"]["content"]["application/json"]["schema"];
	for (const auto &code : schema["properties"]["code"]["enum"])
		listed.insert(code.as<std::string>());
	const std::regex call(R"re(coded\("([^"]+)")re");
	for (const auto &file : fs::recursive_directory_iterator(ROOT / "ctl/lockstepd")) {
		if (file.path().extension() != ".cc")
			continue;
		std::ifstream in(file.path());
		for (std::string line; std::getline(in, line);)
			for (std::sregex_iterator m(line.begin(), line.end(), call), end; m != end; ++m)
				used.insert((*m)[1]);
	}
	CHECK(used.size() > 15);
	CHECK(used == listed);
}

TEST_CASE("replies are as docs/openapi.yaml describes them")
{
	FakeDaemon d;
	Http http;
	http.ask("post", "/pools", "/pools", {{"name", "fast"}, {"vg", "vg1"}, {"thin", "t"}});
	http.ask("post", "/groups", "/groups", {{"name", "sr"}, {"pool", "default"}, {"labels", {{"k", "v"}}}});
	http.ask("patch", "/groups/{name}", "/groups/sr", {{"labels", {{"k", nullptr}}}});
	http.ask("post", "/volumes", "/volumes",
		 {{"name", "a"}, {"size_bytes", GIB}, {"hosts", {"alpha", "beta"}}, {"group", "sr"}, {"class", "shared"}, {"no_quorum", "error"}});
	http.ask("post", "/volumes", "/volumes", {{"name", "b"}, {"size_bytes", GIB}});
	http.ask("post", "/volumes", "/volumes", {{"name", "b"}, {"size_bytes", GIB}}, 409);
	http.ask("post", "/volumes", "/volumes", {{"name", "c"}}, 400);
	http.ask("patch", "/volumes/{name}", "/volumes/a", {{"labels", {{"k", "v"}}}, {"no_quorum", "freeze"}});
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	d.server().soft(1, {{"volumes",
			     {{"1",
			       {{"openers", 1}, {"writers", 1}, {"size_bytes", 2 * GIB}, {"allocated_bytes", GIB}, {"problem", "x"}, {"refused_for", 2}, {"handover_to", 2},
				{"verify", {{"total_blocks", 3}, {"done_blocks", 1}, {"differ_blocks", 0}}},
				{"peers", {{"2", {{"sync_state", "running"}, {"dirty_blocks", 9}}}}}}}}}});
	http.ask("get", "/volumes/{name}/openers", "/volumes/a/openers");
	http.ask("post", "/volumes/{name}/primary", "/volumes/a/primary", {{"host", "beta"}});
	http.ask("post", "/volumes/{name}/secondary", "/volumes/a/secondary", {{"host", "beta"}});
	http.ask("post", "/volumes/{name}/primary", "/volumes/a/primary", {{"host", "gamma"}}, 409);
	http.ask("post", "/volumes/{name}/verify", "/volumes/a/verify", {{"repair", true}});
	http.ask("post", "/volumes/{name}/suspend", "/volumes/a/suspend");
	http.ask("get", "/volumes/{name}", "/volumes/a");
	http.ask("post", "/volumes/{name}/resume", "/volumes/a/resume");
	http.ask("post", "/volumes/{name}/abort", "/volumes/a/abort");
	http.ask("post", "/snapshots", "/snapshots", {{"volumes", {"a", "b"}}, {"name", "s"}});
	http.ask("post", "/volumes/{name}/snapshots", "/volumes/a/snapshots", {{"name", "t"}, {"labels", {{"k", "v"}}}});
	http.ask("patch", "/volumes/{name}/snapshots/{snapshot}", "/volumes/a/snapshots/t", {{"labels", {{"k", "w"}}}});
	http.ask("post", "/volumes/{name}/snapshots/{snapshot}/restore", "/volumes/a/snapshots/t/restore", {{"name", "r"}});
	http.ask("post", "/volumes/{name}/clone", "/volumes/b/clone", {{"name", "k"}});
	http.ask("post", "/volumes/{name}/snapshots/{snapshot}/revert", "/volumes/b/snapshots/s/revert");
	http.ask("get", "/volumes/{name}/snapshots/{snapshot}/diff", "/volumes/a/snapshots/s/diff");
	http.ask("get", "/volumes/{name}/snapshots/{snapshot}/diff", "/volumes/a/snapshots/s/diff?to=t");
	http.ask("post", "/volumes/{name}/replace", "/volumes/k/replace", {{"source", "b"}});
	http.ask("post", "/volumes/{name}/replace", "/volumes/k/replace", {{"source", "k"}}, 400);
	http.ask("post", "/volumes/{name}/trail", "/volumes/b/trail", {{"host", "beta"}});
	d.trail = {{"extents", {{{"at", 4 << 20}, {"bitmap", std::string(2048, '8')}}}}, {"next", 8 << 20}};
	http.ask("get", "/volumes/{name}/trail", "/volumes/b/trail?host=beta&trail=a7&at=4096");
	CHECK(d.trail_asked.back() == std::pair<HostId, json>(2, {{"vid", 2}, {"trail", 0xa7}, {"at", 4096}}));
	http.ask("delete", "/volumes/{name}/trail", "/volumes/b/trail?host=beta&trail=a7");
	CHECK(d.trail_asked.back() == std::pair<HostId, json>(2, {{"vid", 2}, {"trail", 0xa7}}));
	http.ask("delete", "/volumes/{name}/trail", "/volumes/b/trail?trail=0", {}, 400);
	for (const char *wrong : {"", "0", "a7x", "-1", "12345678901234567"})
		http.ask("get", "/volumes/{name}/trail", std::string("/volumes/b/trail?trail=") + wrong, {}, 400);
	http.ask("get", "/snapshots", "/snapshots?volume=a");
	d.idle = {2};
	d.good({{"op", "volume.resize"}, {"name", "b"}, {"size_bytes", 2 * GIB}});    // half done, for the status
	d.online(3, false);
	http.ask("get", "/status", "/status");
	http.ask("get", "/status", "/status?volume=nothing", {}, 404);
	http.ask("get", "/status", "/status?brief=true");
	http.ask("get", "/status", "/status?brief=yes", {}, 400);
	http.ask("get", "/status", "/status?desired=true");
	http.ask("get", "/status", "/status?desired=1", {}, 400);
	http.ask("get", "/status", "/status?desired=true&brief=true", {}, 400);
	http.ask("get", "/wait", "/wait?index=0&ms=0");
	http.ask("get", "/wait", "/wait?index=0&ms=0&volume=a");
	http.ask("get", "/volumes", "/volumes?view=all", {}, 400);
	d.server().happened("volume", "a", "volume a: is ready");
	http.ask("get", "/events", "/events");
	http.ask("get", "/why/{name}", "/why/a");
	http.ask("get", "/why/{name}", "/why/gamma");
	http.ask("get", "/why/{name}", "/why/nosuch", {}, 404);
	http.ask("get", "/volumes", "/volumes");
	http.ask("get", "/volumes/{name}", "/volumes/b");
	d.idle = {};
	d.online(3, true);
	for (HostId h : {1, 2, 3})
		d.server().soft(h, {{"volumes", {{"2", {{"size_bytes", 2 * GIB}}}}}});
	http.ask("post", "/volumes/{name}/resize", "/volumes/b/resize", {{"size_bytes", 2 * GIB}});
	http.ask("delete", "/volumes/{name}/snapshots/{snapshot}", "/volumes/a/snapshots/t");
	http.ask("delete", "/volumes/{name}", "/volumes/b");
	http.ask("delete", "/groups/{name}", "/groups/sr", {}, 409);
	const json content = {{"vid", 7}, {"host", 1}, {"size_bytes", GIB}, {"block_size", 16384}, {"md_offset", GIB}, {"version", 5}, {"term", 3},
			      {"clean", true}, {"absent", {2}}};
	d.disks[1] = json{{{"pool", "default"}, {"vg", "lockstep_group"}, {"disk", "/dev/sdb"}, {"size_bytes", GIB}, {"used_bytes", 0}, {"missing", false},
			   {"leaving", true}, {"percent", 7.5}}};
	http.ask("get", "/disks", "/disks");
	http.ask("post", "/disks", "/disks", {{"host", "alpha"}, {"pool", "default"}, {"add", "/dev/sdc"}});
	http.ask("post", "/disks", "/disks", {{"host", "alpha"}, {"add", "/dev/sdc"}}, 400);
	http.ask("post", "/disks", "/disks", {{"host", "alpha"}, {"remove", "sdc"}}, 400);
	d.server().soft(1, {{"volumes", json::object()}, {"disks", {{"/dev/sdb", 7.5}}}});
	http.ask("get", "/operations", "/operations");
	http.ask("get", "/operations/{id}", "/operations/disk:alpha:%2Fdev%2Fsdb?ms=0");
	http.ask("get", "/operations/{id}", "/operations/evacuate:omega", {}, 404);
	http.ask("post", "/hosts/{name}/evacuate", "/hosts/beta/evacuate");
	http.ask("delete", "/operations/{id}", "/operations/evacuate:beta");
	http.ask("get", "/options", "/options");
	http.ask("post", "/cluster/certs/{name}", "/cluster/certs/monitor", {{"role", "read-only"}});
	http.ask("post", "/cluster/certs/{name}", "/cluster/certs/monitor", {{"role", "root"}}, 400);
	http.ask("get", "/cluster/certs", "/cluster/certs");
	http.ask("delete", "/cluster/certs/{name}", "/cluster/certs/monitor");
	http.ask("delete", "/cluster/certs/{name}", "/cluster/certs/monitor", {}, 404);
	d.differs = {{{"volume", "a"}, {"what", "it has no device"}, {"error", ""}}};
	http.ask("post", "/adjust", "/adjust");
	d.orphans[1] = json{{{"vg", "lockstep_group"}, {"lv", "lockstep.7"}, {"kind", "replica"}, {"uuid", uuid(77)}, {"name", "v"}, {"group", "g"},
			     {"lv_bytes", 2 * GIB}, {"thin_pool", "thin_device"}, {"active", true}, {"open", false}, {"content", content}}};
	http.ask("get", "/orphans", "/orphans");
	http.ask("post", "/orphans/{uuid}/adopt", "/orphans/" + uuid(77) + "/adopt", {{"name", "old"}});
	d.orphans[1] = json::array();
	d.orphans_kept = json{{{"vg", "v"}, {"lv", "l"}, {"message", "in use"}}};
	d.unreachable = {2};
	http.ask("get", "/orphans", "/orphans");
	http.ask("post", "/orphans/{uuid}/purge", "/orphans/" + uuid(77) + "/purge");
}

TEST_CASE("that a volume in a thick pool cannot be replaced is said, also of one without snapshots")
{
	FakeDaemon d(3, 500);
	const auto hosts = d.state();
	for (const auto &[id, host] : hosts->hosts)
		d.good({{"op", "host.set"}, {"host", id}, {"addresses", host.addresses}, {"host_level", LEVEL}});
	for (unsigned host : {1, 2})
		d.good({{"op", "pool.add"}, {"name", "slow"}, {"host", host}, {"kind", "thick"}, {"vg", "vg2"}, {"size_bytes", 9 * GIB}, {"free_bytes", 9 * GIB}});
	Http http;
	for (const char *name : {"leaf", "parent"})
		http.ask("post", "/volumes", "/volumes", {{"name", name}, {"size_bytes", GIB}, {"pool", "slow"}, {"redundancy", 2}});
	const json refused = http.ask("post", "/volumes/{name}/replace", "/volumes/leaf/replace", {{"source", "parent"}}, 409);
	CHECK(refused["message"].get<std::string>().find("can only get the content of its own snapshots") != std::string::npos);
}

TEST_CASE("what a VM may stand still for waits for no host to remove anything")
{
	FakeDaemon d(3, 500);
	Http http;
	http.ask("post", "/volumes", "/volumes", {{"name", "leaf"}, {"size_bytes", GIB}, {"pool", "default"}, {"redundancy", 2}});
	http.ask("post", "/volumes", "/volumes", {{"name", "parent"}, {"size_bytes", GIB}, {"pool", "default"}, {"redundancy", 2}});
	d.keep_snapshots = {1, 2, 3};
	const json replaced = http.ask("post", "/volumes/{name}/replace", "/volumes/leaf/replace", {{"source", "parent"}});
	CHECK_FALSE(replaced.contains("warning"));
	REQUIRE(d.state()->snapshots.size() == 1);
	CHECK(d.state()->snapshots.begin()->second.phase == SnapshotPhase::deleting);

	d.idle = {1, 2, 3};
	http.ask("delete", "/volumes/{name}", "/volumes/parent?wait=true", {}, 400);
	CHECK(d.volume("parent").phase == Phase::ready);
	const json deleted = http.ask("delete", "/volumes/{name}", "/volumes/parent?wait=false");
	CHECK(deleted["pending_hosts"] == json{"alpha", "beta", "gamma"});    // those without a copy have the device
	const auto s = d.state();
	CHECK(s->volume(deleted["vid"].get<uint32_t>())->phase == Phase::deleting);
	http.ask("delete", "/volumes/{name}", "/volumes/parent?wait=false", {}, 404);
	http.ask("delete", "/volumes/{name}", "/volumes/leaf", {}, 503);    // who waits is told that it is not done

	d.keep_snapshots = {};
	d.wake();
	CHECK(d.state()->volumes.empty());
	CHECK(d.state()->snapshots.empty());
}
