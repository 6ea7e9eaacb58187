// SPDX-License-Identifier: GPL-2.0-or-later
//
// dump and apply: the file and the cluster agree after it, nothing goes unasked, and what cannot be read is named by line and column.
#include "fake.h"

#include <fstream>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

struct File {
	std::string path = "/tmp/lockstep-unit-" + std::to_string(getpid()) + ".yaml";
	explicit File(const std::string &text) { std::ofstream(path) << text; }
	~File() { unlink(path.c_str()); }
};

Outcome apply_text(FakeDaemon &d, const std::string &text, std::vector<std::string> more = {})
{
	File file(text);
	more.insert(more.begin(), {"apply", "-f", file.path});
	return d.run(more);
}

// A cluster with something of everything.
void furnish(FakeDaemon &d)
{
	REQUIRE(d.run({"volume", "create", "a", "1GiB", "--on", "alpha,beta", "--shared", "--on-no-quorum", "error"}).status == 0);
	REQUIRE(d.run({"volume", "create", "b", "12288"}).status == 0);
	d.good({{"op", "group.create"}, {"name", "sr"}, {"pool", "default"}, {"redundancy", 3}, {"labels", {{"uuid", "12:34 \"x\""}, {"empty", ""}}}});
	d.good({{"op", "volume.create"}, {"name", "in-sr"}, {"uuid", uuid(40)}, {"size_bytes", 4096}, {"group", "sr"}, {"labels", {{"yes", "no"}}}, {"now_ms", 1}});
	REQUIRE(d.run({"option", "set", "resync-floor-mib", "32"}).status == 0);
	REQUIRE(d.run({"option", "set", "auto-evict-minutes", "off", "--host", "beta"}).status == 0);
	REQUIRE(d.run({"host", "net", "add", "gamma", "10.88.2.3"}).status == 0);
}

}    // namespace

TEST_CASE("what was dumped is what there is: applied, it changes nothing; applied to another cluster, it makes the same")
{
	FakeDaemon d;
	furnish(d);
	const std::string text = d.run({"dump"}).out;
	CHECK(apply_text(d, text, {"--dry-run"}).out == "nothing differs\n");
	const uint64_t applied = d.state()->applied;
	CHECK(apply_text(d, text, {"--prune"}).out == "nothing differs\n");
	CHECK(d.state()->applied == applied);
	CHECK(d.json_of({"dump", "--json"})["volumes"]["in-sr"]["labels"] == json{{"yes", "no"}});
}

TEST_CASE("a dump makes the same of an empty cluster")
{
	std::string text;
	{
		FakeDaemon d;
		furnish(d);
		text = d.run({"dump"}).out;
	}
	FakeDaemon d;
	Outcome dry = apply_text(d, text, {"--dry-run"});
	CHECK(dry.status == 0);
	CHECK(has(dry.out, "+ volume a: 1 GiB\n"));
	CHECK(d.state()->volumes.empty());
	CHECK(apply_text(d, text).out == dry.out);
	CHECK(d.run({"dump"}).out == text);
	CHECK(apply_text(d, text).out == "nothing differs\n");
}

TEST_CASE("each change is one line, and is made")
{
	FakeDaemon d;
	furnish(d);
	for (HostId h : {1, 2, 3})
		d.server().soft(h, {{"volumes", {{"1", {{"size_bytes", 2 * GIB}}}}}});
	const std::string text = R"(
options: {resync-target-ms: 70}
hosts:
  alpha: {addresses: [10.9.0.1, 10.77.2.1], options: {auto-evict-minutes: "30"}}
  gamma: {evacuated: yes}
pools:
  - {name: fast, host: beta, vg: vg1}
groups:
  sr: {redundancy: 1, labels: {uuid: other}}
  new: {pool: default}
volumes:
  a: {size: 2GiB, redundancy: 1, on-no-quorum: freeze, labels: {k: v}}
  c: {size: 1MiB, redundancy: 1, group: new}
)";
	const std::string changes = R"(~ option resync-target-ms: 50 -> 70
+ host alpha: address 10.9.0.1 comes
~ host alpha: address 10.77.2.1 first
~ host alpha: address 10.9.0.1 first
~ option auto-evict-minutes for host alpha: not set -> 30
~ host gamma: its replicas go to other hosts
+ pool fast of host beta: vg1
+ group new
~ group sr: redundancy 3 -> 1, of its volumes too
~ group sr: label uuid: 12:34 "x" -> other
~ volume a: size 1 GiB -> 2 GiB
~ volume a: redundancy 2 -> 1
~ volume a: on-no-quorum error -> freeze
+ volume a: label k: v
+ volume c: 1 MiB
)";
	CHECK(apply_text(d, text, {"--dry-run"}).out == changes);
	CHECK(apply_text(d, text).out == changes);
	auto s = d.state();
	CHECK(s->host(1)->addresses == std::vector<std::string>{"10.9.0.1", "10.77.2.1"});
	CHECK(s->host(3)->evacuating);
	CHECK(s->pool("fast", 2));
	CHECK(s->volume_named("a")->size_bytes == 2 * GIB);
	CHECK(s->volume_named("c")->group == "new");
	CHECK(s->volume_named("b"));    // not named, and there
	CHECK(apply_text(d, text).out == "nothing differs\n");
}

TEST_CASE("only --prune lets go what the file does not name, and never a volume in use, nor of what the file does not have")
{
	FakeDaemon d;
	furnish(d);
	d.good({{"op", "record.open"}, {"vid", 1}, {"host", 1}});
	const std::string all = d.run({"dump"}).out;
	CHECK(apply_text(d, "volumes: {}\n").out == "nothing differs\n");
	CHECK(apply_text(d, "options: {}\n", {"--prune"}).out == "- option resync-floor-mib: back to its default\n");
	CHECK(d.state()->volumes.size() == 3);
	const Outcome o = apply_text(d, "volumes: {}\ngroups: {}\nhosts: {gamma: {addresses: [10.88.2.3]}}\npools: []\n", {"--prune"});
	CHECK(o.status == 0);
	CHECK(o.out == "- host gamma: address 10.77.2.3 goes\n= volume a stays: it is open on alpha\n- volume b, with all its data\n"
		       "- volume in-sr, with all its data\n- group sr\n");
	CHECK(d.state()->volume_named("a"));
	CHECK_FALSE(d.state()->volume_named("b"));
	CHECK(d.state()->groups.empty());
	CHECK(d.state()->hosts.size() == 3);
	CHECK(d.state()->pools.size() == 3);
}

TEST_CASE("what is wrong in a file is named by line and column, and changes nothing")
{
	FakeDaemon d;
	furnish(d);
	const uint64_t applied = d.state()->applied;
	const std::pair<const char *, const char *> cases[] = {
		{"volumes:\n  v: {size: 1GiB, replicas: 2}\n", ":2:19: volume v has no \"replicas\""},
		{"volume: {}\n", ":1:1: the file has no \"volume\""},
		{"volumes:\n  v: {size: 5}\n", ":2:13: volume v: size must be a multiple of 4096"},
		{"volumes:\n  v: {size: lots}\n", "is no size"},
		{"volumes:\n  v: {size: 1GiB}\n  v: {size: 1GiB}\n", ":3:3: volume v stands there twice"},
		{"volumes: [v]\n", ":1:10: "},
		{"volumes:\n  v: {size: 1GiB\n", ":3:1: "},
		{"volumes:\n  v: {redundancy: 0}\n", "redundancy must be a whole number from 1"},
		{"hosts: {alpha: {evacuated: perhaps}}\n", "must be true or false"},
		{"pools: [{name: p, host: alpha}]\n", ":1:9: a pool lacks its \"vg\""},
		{"groups: {g: {labels: {a: [b]}}}\n", "labels: a must be a text"},
		{"volumes: {v: {class: common}}\n", "class must be exclusive or shared"},
		{"", "it is empty"},
	};
	for (const auto &[text, message] : cases) {
		Outcome o = apply_text(d, text);
		INFO(text << o.err);
		CHECK(o.status == 2);
		CHECK(has(o.err, message));
	}
	// Readable, and impossible: found before anything is done, also what stands before it.
	const std::string good = "options: {resync-floor-mib: \"77\"}\n";
	CHECK(apply_text(d, good + "volumes: {a: {size: 512MiB}}\n").status == 5);
	CHECK(apply_text(d, good + "volumes: {a: {class: exclusive}}\n").status == 5);
	CHECK(apply_text(d, good + "volumes: {n: {redundancy: 2}}\n").status == 2);
	CHECK(apply_text(d, good + "hosts: {omega: {}}\n").status == 3);
	CHECK(apply_text(d, good + "groups: {sr: {pool: other}}\n").status == 5);
	CHECK(apply_text(d, good + "pools: [{name: default, host: alpha, vg: other}]\n").status == 5);
	CHECK(apply_text(d, "options: {nosuch: \"1\"}\n").status == 3);
	CHECK(d.run({"apply", "-f", "/nonexistent/file"}).status == 3);
	CHECK(d.state()->applied == applied);
	// What the daemon refuses ends it; the rest is left.
	Outcome o = apply_text(d, "volumes: {p: {size: 1GiB, redundancy: 9}, q: {size: 1MiB}}\n");
	CHECK(o.status != 0);
	CHECK_FALSE(d.state()->volume_named("q"));
}
