// SPDX-License-Identifier: GPL-2.0-or-later
//
// Every command there is takes --json and prints JSON with it, and nothing else; what fails prints a JSON object on standard error. A
// command that is not listed here fails this test. Tables fit 80 columns.
#include "fake.h"

#include <fstream>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

void leaves_of(const CLI::App &app, const std::string &path, std::set<std::string> &leaves)
{
	auto commands = app.get_subcommands([](const CLI::App *) { return true; });
	for (const CLI::App *c : commands)
		leaves_of(*c, path.empty() ? c->get_name() : path + " " + c->get_name(), leaves);
	if (!commands.empty())
		return;
	leaves.insert(path);
	INFO(path);
	CHECK(app.get_option_no_throw("--json"));
}

std::set<std::string> all_leaves()
{
	std::ostringstream out, err;
	cli::Context context{out, err};
	cli::Action action;
	CLI::App app;
	cli::add_commands(app, context, action);
	std::set<std::string> leaves;
	leaves_of(app, "", leaves);
	return leaves;
}

struct Case {
	std::string leaf;
	std::vector<std::string> args;
	int status = 0;
};

// In the order in which they can be run on three hosts.
const std::vector<Case> CASES = {
	{"cluster token", {}},
	{"cluster recover", {}},
	{"cluster init", {}, 5},
	{"cluster join", {"lks1x", "10.0.0.1"}, 5},
	{"pool create", {"fast", "--vg", "vg1"}},
	{"pool list", {}},
	{"pool capacity", {}},
	{"pool add-disk", {"default", "alpha", "/dev/sdc"}},
	{"pool remove-disk", {"default", "alpha", "/dev/sdc", "--no-wait"}},
	{"pool orphans", {}},
	{"pool adopt", {uuid(77), "old"}, 3},
	{"pool purge", {uuid(77)}, 3},
	{"pool delete", {"alpha", "fast"}, 5},    // an older host
	{"group list", {}},
	{"group adopt", {"old"}, 3},
	{"group destroy", {"--orphans"}},
	{"group redundancy", {"none", "3"}, 3},
	{"group rules", {"none", "--different", "rack"}, 3},
	{"disk list", {}},
	{"disk replace", {"alpha", "/dev/sdb", "/dev/sdc", "--no-wait"}},
	{"volume create", {"v", "1GiB", "--on", "alpha,beta"}},
	{"volume list", {}},
	{"status", {}},
	{"why", {"v"}},
	{"primary", {"v", "alpha"}},
	{"secondary", {"v", "beta"}},
	{"openers", {"v"}},
	{"suspend-io", {"v"}},
	{"resume-io", {"v"}},
	{"verify", {"v", "--no-wait"}},
	{"resize", {"v", "1GiB"}},
	{"volume resize", {"v", "1GiB"}},
	{"volume set", {"v", "--on-no-quorum", "error"}},
	{"volume abort", {"v"}},
	{"snapshot create", {"v", "s"}},
	{"snapshot list", {}},
	{"volume diff", {"v", "s"}},
	{"snapshot restore", {"v", "s", "r"}},
	{"snapshot clone", {"v", "c"}},
	{"snapshot revert", {"c", "s"}, 3},
	{"snapshot delete", {"v", "s"}},
	{"volume replica add", {"v", "gamma"}},
	{"wait-sync", {"r", "--timeout", "20"}},
	{"invalidate", {"v@gamma"}},
	{"invalidate-remote", {"v@gamma"}},
	{"volume replica remove", {"v", "gamma"}},
	{"volume replica move", {"v", "beta", "gamma"}, 5},
	{"volume replica pin", {"v", "alpha"}},
	{"volume replica unpin", {"v", "alpha"}},
	{"volume rules", {"v"}},
	{"volume redundancy", {"v", "2"}},
	{"operation list", {}},
	{"operation show", {"create:r"}},
	{"operation wait", {"create:r"}},
	{"operation cancel", {"create:r"}, 3},
	{"option list", {}},
	{"option set", {"resync-floor-mib", "20"}},
	{"events", {}},
	{"metrics", {}},
	{"up", {}},
	{"adjust", {}},
	{"down", {}, 5},
	{"dump", {}},
	{"apply", {"-f", "/dev/null"}, 2},
	{"md dump", {"/nonexistent"}, 10},
	{"md check", {"/nonexistent"}, 10},
	{"volume overlay", {"v", "v", "--host", "alpha", "--trail", "1"}, 2},
	{"cluster cert", {"m", "/nonexistent/m.pem", "--role", "admin"}, 2},
	{"cluster certs", {}},
	{"cluster cert-revoke", {"m"}, 3},
	{"completion", {"bash"}},
	{"man", {}},
	{"host list", {}},
	{"host label", {"alpha", "rack=r1"}},
	{"host net add", {"alpha", "10.9.0.1"}},
	{"host net prefer", {"alpha", "10.9.0.1"}},
	{"host net remove", {"alpha", "10.9.0.1"}},
	{"host evacuate", {"gamma", "--no-wait"}},
	{"host restore", {"gamma"}},
	{"host remove", {"gamma"}, 5},
	{"host lost", {"gamma"}, 5},
	{"volume delete", {"c"}},
};

std::vector<std::string> words_of(const Case &c)
{
	std::vector<std::string> args;
	std::istringstream leaf(c.leaf);
	for (std::string word; leaf >> word;)
		args.push_back(word);
	args.insert(args.end(), c.args.begin(), c.args.end());
	return args;
}

}    // namespace

TEST_CASE("every command takes --json, and prints JSON and nothing else")
{
	std::set<std::string> listed;
	FakeDaemon d;
	d.differs = {{{"volume", nullptr}, {"what", "this host"}, {"error", ""}}};
	for (const Case &c : CASES) {
		listed.insert(c.leaf);
		std::vector<std::string> args = words_of(c);
		args.push_back("--json");
		if (c.leaf == "wait-sync")
			d.attach_all();
		for (HostId h = 1; c.leaf == "resize" && h <= 3; h++)
			d.server().soft(h, {{"volumes", {{"1", {{"size_bytes", GIB}}}}}});
		Outcome o = d.run(args);
		INFO(c.leaf << "\n" << o.out << o.err);
		CHECK(o.status == c.status);
		if (o.status) {
			const json error = json::parse(o.err, nullptr, false);
			CHECK((error.is_object() && error["status"] == o.status && error["code"].is_string() && error["message"].is_string()));
		}
		// Events are one object a line, and may be none.
		if (!o.status && c.leaf != "events")
			CHECK(json::accept(o.out));
	}
	const std::set<std::string> leaves = all_leaves();
	CHECK(leaves == listed);
	CHECK(d.run({"host", "list", "--json", "--nosuch"}).status == 2);
}

TEST_CASE("tables fit 80 columns")
{
	FakeDaemon d;
	REQUIRE(d.run({"volume", "create", "database-one", "1GiB", "--on", "alpha,beta"}).status == 0);
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	REQUIRE(d.run({"snapshot", "create", "database-one", "before"}).status == 0);
	d.disks[1] = json{{{"pool", "default"}, {"vg", "lockstep_group"}, {"disk", "/dev/nvme0n1"}, {"size_bytes", 20 * GIB}, {"used_bytes", 3 * GIB},
			   {"missing", false}, {"leaving", true}, {"percent", 7.5}}};
	for (const std::vector<std::string> &command : std::vector<std::vector<std::string>>{
		     {"status"}, {"host", "list"}, {"pool", "list"}, {"volume", "list"}, {"snapshot", "list"}, {"disk", "list"}, {"option", "list"},
		     {"openers", "database-one"}, {"pool", "capacity"}, {"operation", "list"}}) {
		std::istringstream out(d.run(command).out);
		for (std::string line; std::getline(out, line);) {
			INFO(command[0] << ": " << line);
			CHECK(line.size() <= 80);
		}
	}
}
