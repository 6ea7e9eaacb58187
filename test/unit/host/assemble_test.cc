// SPDX-License-Identifier: GPL-2.0-or-later
//
// A host that boots and hears nobody: what it does on the strength of its own copy of the log, what it does not, and what becomes of it
// when the log has been heard and says something else.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "ready.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

// A volume on alpha and beta; alpha has lost power, knows its own log, and hears nobody.
struct Alone : Ready {
	explicit Alone(std::vector<int> hosts = {1, 2}) : Ready(std::move(hosts)) { w.remember(); }
	void boot()
	{
		w.quorum = false;
		w.calls.clear();
		w.proposals.clear();
		w.reboot();
		w.run_for(60'000);
	}
	void heard()
	{
		w.quorum = true;
		w.run_for(60'000);
	}
	bool assembled() { return w.volumes.contains(vid) && kernel().replica; }
	bool well() const
	{
		for (const std::string &v : w.violations)
			UNSCOPED_INFO("violation: " << v);
		return w.violations.empty();
	}
};

}    // namespace

TEST_CASE("a host that boots alone assembles its replicas and does nothing else; when it has heard the log it goes on from there")
{
	Alone r;
	r.boot();
	REQUIRE(r.assembled());
	CHECK(r.w.calls == std::vector<std::string>{"host_set 1", "volume_add 1", "lv_activate 1", "replica_attach 1"});
	CHECK(r.w.proposals.empty());
	CHECK_FALSE(r.kernel().replica->admitted);
	CHECK_FALSE(r.kernel().has_device);
	CHECK(r.kernel().noted_version == 0);
	CHECK(r.w.peers.empty());
	r.heard();
	CHECK(serving(r.w, r.vid));
	CHECK(r.w.count("replica_attach") == 1);
	CHECK(r.w.count("replica_detach") == 0);
	CHECK(r.w.count("volume_add") == 1);
	CHECK(r.well());
	CHECK(r.w.daemon().problems().empty());
}

TEST_CASE("without a copy of the log nothing is assembled; with one that is not certain of a volume that one is not")
{
	Alone r;
	if (GENERATE(false, true))
		r.w.last_known.reset();
	else
		r.w.last_known->certain.clear();
	r.boot();
	CHECK(r.w.volumes.empty());
	CHECK(r.w.count("lv_activate") == 0);
	r.heard();
	CHECK(serving(r.w, r.vid));
}

TEST_CASE("assembled alone: a suspect replica is recorded so before it takes part")
{
	Alone r;
	r.w.lvs.at("/dev/vg/lockstep.1").hot = true;
	r.boot();
	REQUIRE(r.assembled());
	CHECK(r.w.proposals.empty());
	r.heard();
	CHECK(serving(r.w, r.vid));
	CHECK(before(r.w, "record.suspect 1", "admit 1"));
	CHECK(r.volume().replica(1)->state == ReplicaState::suspect);
	CHECK(r.well());
}

TEST_CASE("assembled alone, and the primary of its copy: it resigns, serves nothing before, and its session of before is over")
{
	Alone r;
	r.kernel().open_waiters = 1;
	r.w.daemon().kernel_event(event(LKS_CMD_EV_OPEN, r.vid));
	REQUIRE(r.w.run_until([&] { return r.kernel().writers == 1; }));
	REQUIRE(r.volume().primary == 1);
	REQUIRE(r.volume().opener(1));
	r.w.remember();
	r.boot();
	REQUIRE(r.assembled());
	CHECK(r.kernel().role == LKS_IDLE);
	r.heard();
	CHECK(serving(r.w, r.vid));
	CHECK(before(r.w, "record.resign 1", "admit 1"));
	CHECK(std::count(r.w.proposals.begin(), r.w.proposals.end(), "record.close") == 1);
	CHECK(r.volume().openers.empty());
	CHECK(r.well());
}

TEST_CASE("assembled alone, and meanwhile its replica was removed, or the volume deleted: removed when that is heard, not before")
{
	const bool deleted = GENERATE(false, true);
	Alone r({1, 2, 3});
	r.w.kill_daemon();
	if (deleted) {
		r.w.propose({{"op", "volume.delete"}, {"vid", r.vid}});
		for (int host : {2, 3})
			r.w.propose({{"op", "replica.deleted"}, {"vid", r.vid}, {"host", host}});
	} else {
		r.w.propose({{"op", "host.status"}, {"host", 1}, {"online", false}, {"now_ms", 5}});
		r.w.propose({{"op", "volume.redundancy"}, {"vid", r.vid}, {"redundancy", 2}});
		const uint64_t version = r.volume().version;
		r.w.propose({{"op", "record.failover"}, {"vid", r.vid}, {"version", version}, {"primary", 2}, {"keep", {2, 3}}});
		r.w.propose({{"op", "replica.remove"}, {"vid", r.vid}, {"host", 1}});
		REQUIRE(r.volume().remnant(1));
	}
	r.boot();
	REQUIRE(r.assembled());
	CHECK(r.w.count("lv_remove") == 0);
	CHECK(r.w.lvs.size() == 1);
	r.heard();
	CHECK(r.w.lvs.empty());
	if (deleted)
		CHECK(r.w.volumes.empty());
	else
		CHECK((!r.kernel().replica && !r.volume().remnant(1)));
	CHECK(r.well());
}

TEST_CASE("assembled alone, and meanwhile the cluster has forgotten the volume altogether")
{
	Alone r;
	r.w.kill_daemon();
	r.w.state.volumes.clear();
	r.boot();
	REQUIRE(r.assembled());
	r.heard();
	CHECK(r.w.volumes.empty());
	CHECK(r.w.lvs.size() == 1);    // an orphan: for an administrator to adopt or purge
	CHECK(r.w.daemon().problems().empty());
}

TEST_CASE("assembled alone, and meanwhile the host was removed: it makes nothing more")
{
	Alone r;
	r.w.kill_daemon();
	r.w.state.hosts.erase(1);
	r.boot();
	const auto calls = r.w.calls;
	r.heard();
	CHECK(r.w.calls == calls);
}

TEST_CASE("what could not be attached alone says nothing against the disk once the log has been heard")
{
	Alone r;
	r.w.failing["replica_attach"] = "the metadata are damaged";
	r.boot();
	CHECK(r.w.count("replica_attach") > int(ATTACH_TRIES));
	REQUIRE_FALSE(r.w.daemon().problems().empty());
	CHECK(r.w.proposals.empty());
	r.w.failing.clear();
	r.heard();
	CHECK(serving(r.w, r.vid));
	CHECK(std::count(r.w.proposals.begin(), r.w.proposals.end(), "record.failed") == 0);
	CHECK(r.well());
}

TEST_CASE("a daemon that restarts without a quorum leaves alone what an earlier one was told to have so")
{
	Alone r;
	r.kernel().replica.reset();    // its disk has failed, say
	r.w.quorum = false;
	r.w.kill_daemon();
	r.w.calls.clear();
	r.w.start_daemon();
	r.w.run_for(60'000);
	CHECK(r.w.calls == std::vector<std::string>{"host_set 1"});
}

TEST_CASE("killed or failing at any step of assembling alone, or of going on from there, it converges")
{
	const Fault fault = GENERATE(Fault::fails, Fault::killed_before, Fault::killed_after);
	uint64_t last = 1;
	for (uint64_t k = 0; k <= last; k++) {
		INFO("fault " << int(fault) << " at step " << k);
		Alone r;
		r.w.fault = fault;
		r.w.fault_at = k ? r.w.steps + k : 0;
		const uint64_t begin = r.w.steps;
		r.boot();
		REQUIRE(r.assembled());
		CHECK(r.w.proposals.empty());
		r.heard();
		CHECK(serving(r.w, r.vid));
		CHECK(r.well());
		if (!k)
			last = r.w.steps - begin;
	}
	CHECK(last > 6);
}

TEST_CASE("a volume is assembled only where the log's end, committed or not, says the same of this host's disk")
{
	Alone r;
	const State &was = r.w.state;
	State then = was;
	Volume &v = then.volumes.at(r.vid);
	REQUIRE(may_assemble(was, then, 1, r.vid));
	CHECK_FALSE(may_assemble(was, then, 3, r.vid));
	CHECK_FALSE(may_assemble(was, then, 1, r.vid + 1));
	bool differs = true;
	SECTION("a new version of its record, another primary, another replica")
	{
		v.version++;
		v.primary = 2;
		v.replicas.pop_back();
		differs = false;
	}
	SECTION("it has moved") v.replica(1)->md_offset += 1 << 20;
	SECTION("it is to move") v.replica(1)->next_offset = 2 * GIB;
	SECTION("where it was is not zeros yet") v.replica(1)->wipe = true;
	SECTION("the volume grows") v.grow_bytes = 2 * GIB;
	SECTION("it has grown") v.size_bytes += 1 << 20;
	SECTION("another life of it") v.replica(1)->added++;
	SECTION("it is made anew") v.replica(1)->created = false;
	SECTION("its disk has failed") v.replica(1)->state = ReplicaState::failed;
	SECTION("it was removed") v.replicas.erase(v.replicas.begin());
	SECTION("the volume goes") v.phase = Phase::deleting;
	SECTION("it is reverted") v.phase = Phase::creating;
	SECTION("another volume of that id") v.uuid = UUID3;
	SECTION("other blocks") v.block_size *= 2;
	SECTION("the host leaves") then.hosts.at(1).removing = true;
	SECTION("the host has left") then.hosts.erase(1);
	Pool &pool = std::ranges::find_if(then.pools, [](const auto &p) { return p.second.host == 1; })->second;
	SECTION("it is in another pool")
	{
		then.pools[{"other", 1}] = pool;
		v.replica(1)->pool = "other";
	}
	SECTION("its pool is not known") then.pools.clear();
	SECTION("the pool is of another volume group") pool.vg = "other";
	SECTION("the pool is another of that group") pool.thin_lv = "thin";
	CHECK(may_assemble(was, then, 1, r.vid) != differs);
	CHECK(may_assemble(then, was, 1, r.vid) != differs);
}

TEST_CASE("of a log's entries those beyond what is known to be committed stay out of the state that is shown")
{
	State known, whole;
	StateMachine machine = into(known, whole, 7);
	auto apply = [&](uint64_t index, Json entry) {
		entry["level"] = 1;
		const auto bytes = encode(entry);
		return machine.apply(index, {reinterpret_cast<const char *>(bytes.data()), bytes.size()});
	};
	apply(3, {{"op", "cluster.init"}, {"uuid", UUID1}, {"name", "test"}, {"now_ms", 1},
		  {"host", {{"uuid", UUID1}, {"name", "alpha"}, {"addresses", {"10.0.0.1"}}, {"port", 7788}, {"level", 1}}}});
	apply(7, {{"op", "host.add"}, {"uuid", UUID2}, {"name", "beta"}, {"addresses", {"10.0.0.2"}}, {"now_ms", 1}});
	CHECK(apply(8, {{"op", "host.add"}, {"uuid", UUID3}, {"name", "gamma"}, {"addresses", {"10.0.0.3"}}, {"now_ms", 1}}).at("host") == 3);
	CHECK(known.hosts.size() == 2);
	CHECK(known.applied == 7);
	CHECK(whole.hosts.size() == 3);
	const auto bytes = snapshot(whole);
	REQUIRE(machine.restore({reinterpret_cast<const char *>(bytes.data()), bytes.size()}));
	CHECK((known == whole && known.hosts.size() == 3));
	CHECK_FALSE(machine.restore("nonsense"));
}
