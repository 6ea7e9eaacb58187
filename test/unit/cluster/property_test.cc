// SPDX-License-Identifier: GPL-2.0-or-later
//
// Random histories: two replicas of the State that apply the same log, one of which is restored from a snapshot now and then,
// stay identical; every invariant holds after every entry; versions, terms and incarnations never go back; the log's bytes
// decode to what was encoded. A third of the entries is nonsense on purpose. The seed is printed with a failure; set
// LOCKSTEP_SEED to run one history alone.
#include "fixture.h"

#include "lockstepd/cluster/controller.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

constexpr unsigned HISTORIES = 100, ENTRIES = 400;

struct History {
	std::mt19937_64 random;
	Cluster c;
	State twin;
	std::map<std::string, unsigned> carried_out;

	explicit History(uint64_t seed) : random(seed) {}

	unsigned pick(unsigned below) { return unsigned(random() % below); }
	bool chance(unsigned percent) { return pick(100) < percent; }

	HostId host() { return HostId(1 + pick(unsigned(c.state.hosts.size()) + (chance(5) ? 3 : 0))); }

	uint32_t vid()
	{
		if (c.state.volumes.empty() || chance(3))
			return 1 + pick(100);
		auto it = c.state.volumes.begin();
		std::advance(it, pick(unsigned(c.state.volumes.size())));
		return it->first;
	}

	std::vector<HostId> some_hosts(unsigned percent)
	{
		std::vector<HostId> hosts;
		for (const auto &[id, h] : c.state.hosts)
			if (chance(percent))
				hosts.push_back(id);
		return hosts;
	}

	json create()
	{
		json entry = c.create_entry("v" + std::to_string(pick(12)), (1 + pick(2000)) * 4 * MIB + (chance(5) ? 1 : 0));
		if (chance(30))
			entry["hosts"] = some_hosts(50);
		else
			entry["redundancy"] = chance(90) ? 1 + pick(3) : pick(12);
		if (chance(30))
			entry["class"] = chance(90) ? "shared" : "none";
		if (chance(30)) {
			entry["group"] = group();
			entry.erase("pool");
			entry["labels"] = labels();
		}
		return entry;
	}

	std::string group() { return "g" + std::to_string(pick(4)); }

	json labels()
	{
		json changes = json::object();
		for (unsigned n = pick(4); n > 0; n--)
			changes["k" + std::to_string(pick(40))] = chance(30) ? json(nullptr) : json(std::string(pick(1100), 'x'));
		return changes;
	}

	json group_or_label()
	{
		switch (pick(4)) {
		case 0: return {{"op", "group.create"}, {"name", group()}, {"pool", chance(95) ? "default" : "none"}, {"redundancy", 1 + pick(4)}};
		case 1: return {{"op", "group.delete"}, {"name", group()}};
		case 2: return {{"op", "group.label"}, {"name", group()}, {"labels", labels()}};
		default: return {{"op", "volume.label"}, {"name", "v" + std::to_string(pick(12))}, {"labels", labels()}};
		}
	}

	json propose(uint32_t id)
	{
		const Volume *v = c.state.volume(id);
		if (!v)
			return {{"op", "record.propose"}, {"vid", id}, {"host", 1}, {"version", 1}, {"term", 1}, {"members", {1}}};
		std::vector<HostId> members;
		for (const Replica &r : v->replicas)
			if (r.host == v->primary || chance(60))
				members.push_back(r.host);
		json entry = {{"op", "record.propose"},
			      {"vid", id},
			      {"host", chance(90) ? v->primary : host()},
			      {"version", v->version - (chance(10) ? 1 : 0)},
			      {"term", v->term + (chance(5) ? 1 : 0)},
			      {"members", members}};
		if (chance(20)) {    // a planned handover
			entry["primary"] = host();
			entry["term"] = v->term + 1;
		}
		return entry;
	}

	json growth(uint32_t id)
	{
		const Volume *v = c.state.volume(id);
		HostId h = busy_host(id);
		const Replica *r = v ? v->replica(h) : nullptr;
		uint64_t offset = r && r->next_offset ? r->next_offset : 4096 * pick(1 << 20);
		switch (pick(8)) {
		case 0: return {{"op", "volume.resize"}, {"vid", id}, {"size_bytes", (v ? v->size_bytes : MIB) + (pick(40) - 2) * 4 * MIB}};
		case 1:
		case 2:
		case 3: return {{"op", "replica.moved"}, {"vid", id}, {"host", h}, {"offset", offset}};
		case 4: return {{"op", "volume.grown"}, {"vid", id}};
		default: return {{"op", "replica.grown"}, {"vid", id}, {"host", h}};
		}
	}

	json snapshots(uint32_t id)
	{
		uint32_t sid = c.state.next_sid;
		if (!c.state.snapshots.empty() && chance(95)) {
			auto it = c.state.snapshots.begin();
			std::advance(it, pick(unsigned(c.state.snapshots.size())));
			sid = it->first;
		}
		const Snapshot *s = c.state.snapshot(sid);
		const Volume *v = s ? c.state.volume(s->vid) : nullptr;
		HostId h = v && v->primary && chance(60) ? v->primary : host();
		json entry = {{"sid", sid}, {"host", h}, {"attempt", s ? s->attempt : 1}};
		const char *op = "removed";
		if (s && s->phase == SnapshotPhase::quiescing)
			op = "held";
		else if (s && s->phase == SnapshotPhase::taking)
			op = "taken";
		else if (s && s->phase == SnapshotPhase::resuming)
			op = "resumed";
		if (s && s->phase != SnapshotPhase::quiescing)
			for (const SnapshotCopy &copy : s->copies)
				if (s->phase != SnapshotPhase::resuming && !(s->in_progress() && copy.taken) && chance(70))
					entry["host"] = copy.host;
		switch (pick(18)) {
		case 0:
		case 1: {
			std::set<uint32_t> vids = {id};
			if (chance(40))
				vids.insert(vid());
			json uuids = json::array();
			for (size_t i = 0; i < vids.size(); i++)
				uuids.push_back(uuid(5000 + ++c.serial));
			return {{"op", "snapshot.create"}, {"name", "s" + std::to_string(pick(4))}, {"vids", vids}, {"uuids", uuids}, {"now_ms", 1}};
		}
		case 2: return {{"op", "snapshot.broken"}, {"set", s ? s->set : 1}, {"attempt", 1 + pick(2)}, {"message", "test"}, {"final", chance(20)}};
		case 3: return {{"op", "snapshot.delete"}, {"sid", sid}};
		case 4:
		case 8:
			return {{"op", "snapshot.restore"}, {"sid", sid}, {"new", "v" + std::to_string(pick(12))}, {"uuid", uuid(7000 + ++c.serial)}};
		case 5:
		case 6:
		case 7: return {{"op", "snapshot.revert"}, {"sid", sid}};
		default: break;
		}
		entry["op"] = std::string("snapshot.") + (chance(95) ? op : "taken");
		entry["hold"] = 1 + pick(100);
		return entry;
	}

	json failover(uint32_t id)
	{
		const Volume *v = c.state.volume(id);
		HostId primary = host();
		std::vector<HostId> keep = {primary};
		for (const Replica &r : v ? v->replicas : std::vector<Replica>{})
			if (r.host != primary && r.clean() && chance(70))
				keep.push_back(r.host);
		json entry = {{"op", "record.failover"}, {"vid", id}, {"version", v ? v->version : 1}, {"primary", primary}, {"keep", keep}};
		if (chance(30))
			entry["last_resort"] = true;
		return entry;
	}

	// A host that has something to do for the volume, mostly.
	HostId busy_host(uint32_t id)
	{
		const Volume *v = c.state.volume(id);
		for (const Replica &r : v ? v->replicas : std::vector<Replica>{})
			if ((!r.created || v->phase == Phase::deleting || r.next_offset || r.wipe) && chance(80))
				return r.host;
		return host();
	}

	json life_of_a_volume(uint32_t id)
	{
		switch (pick(14)) {
		case 7: return {{"op", "volume.primary"}, {"vid", id}, {"host", chance(20) ? HostId(0) : host()}};
		case 8: return {{"op", "volume.set"}, {"vid", id}, {"no_quorum", chance(50) ? "error" : "freeze"}};
		case 0: return {{"op", "replica.failed"}, {"vid", id}, {"host", host()}, {"message", "test"}};
		case 1: return {{"op", "volume.delete"}, {"name", "v" + std::to_string(pick(12))}};
		case 2: return {{"op", "volume.abort"}, {"vid", id}, {"message", "test"}};
		case 3: return {{"op", "device.ready"}, {"vid", id}, {"host", host()}};
		case 4: return {{"op", "replica.deleted"}, {"vid", id}, {"host", busy_host(id)}};
		default: return {{"op", "replica.created"}, {"vid", id}, {"host", busy_host(id)}};
		}
	}

	json record_change(uint32_t id)
	{
		switch (pick(10)) {
		case 0: return {{"op", "record.suspect"}, {"vid", id}, {"host", host()}};
		case 1: return {{"op", "record.resign"}, {"vid", id}, {"host", host()}};
		case 2: return {{"op", "record.failed"}, {"vid", id}, {"host", host()}};
		case 3: return {{"op", "record.repaired"}, {"vid", id}, {"host", host()}};
		case 4: return failover(id);
		case 5:
			if (const Volume *v = c.state.volume(id); v && !v->openers.empty() && chance(80))
				return {{"op", "record.close"}, {"vid", id}, {"host", v->openers[0].host}, {"session", v->openers[0].session}};
			return {{"op", "record.close"}, {"vid", id}, {"host", host()}, {"session", 1 + pick(4)}};
		case 6: return {{"op", "record.open"}, {"vid", id}, {"host", host()}, {"ended", pick(3)}};
		case 7: return {{"op", "record.open"}, {"vid", id}, {"host", host()}};
		default: return propose(id);
		}
	}

	json random_entry()
	{
		unsigned n = pick(100);
		if (n < 8)
			return create();
		if (n < 12)
			return {{"op", "host.status"}, {"host", host()}, {"online", chance(60)}, {"now_ms", c.index}};
		if (n < 14)
			return {{"op", "pool.report"}, {"name", "default"}, {"host", host()}, {"size_bytes", 20 * GIB}, {"free_bytes", pick(21) * GIB}};
		if (n < 15)
			return Cluster::host_entry(1 + pick(7), "h" + std::to_string(pick(7)));
		if (n < 16)
			return {{"op", "nonsense"}, {"vid", vid()}};
		if (n < 24)
			return group_or_label();
		if (n < 40)
			return life_of_a_volume(vid());
		if (n < 50)
			return growth(vid());
		if (n < 72)
			return snapshots(vid());
		return record_change(vid());
	}

	json step(const json &entry)
	{
		State before = c.state;
		std::vector<uint8_t> bytes = encode(entry);
		json answer = c.apply(json::from_cbor(bytes));    // checks the invariants
		if (answer["ok"] == true)
			carried_out[entry["op"]]++;
		REQUIRE(apply_bytes(twin, c.index, bytes) == answer);
		if (chance(4)) {
			Result<State> restored = restore(snapshot(twin));
			REQUIRE(restored);
			twin = *restored;
		}
		REQUIRE(twin == c.state);
		for (const auto &[vid, v] : before.volumes)
			if (const Volume *now = c.state.volume(vid)) {
				REQUIRE(now->version - v.version <= 1);
				REQUIRE(now->term - v.term <= 1);
				REQUIRE(now->incarnation - v.incarnation <= 1);
				REQUIRE(now->session_serial - v.session_serial <= 1);
				lks_record a = to_record(v), b = to_record(*now);
				if (now->version == v.version && v.phase != Phase::deleting)    // tombstones shrink
					REQUIRE(std::memcmp(&a, &b, sizeof a) == 0);
			}
		return answer;
	}

	void run()
	{
		c.form(3 + pick(3));
		twin = c.state;
		for (unsigned i = 0; i < ENTRIES; i++)
			step(random_entry());
		heal();
	}

	// All hosts come back: the controller settles, and no volume that somebody needs is left without a primary.
	void heal()
	{
		std::map<HostId, Liveness> all;
		for (const auto &[id, h] : c.state.hosts)
			all[id] = {true, 0};
		for (int round = 0; round < 5; round++)
			for (const json &d : decide(c.state, all, c.index))
				REQUIRE(step(d)["ok"] == true);
		REQUIRE(decide(c.state, all, c.index).empty());
		for (const auto &[vid, v] : c.state.volumes)
			if (v.phase == Phase::ready && !v.openers.empty())
				REQUIRE(v.primary != 0);
	}
};

}    // namespace

TEST_CASE("random histories give identical states that keep every invariant")
{
	std::map<std::string, unsigned> carried_out;
	const char *only = std::getenv("LOCKSTEP_SEED");
	uint64_t first = only ? std::strtoull(only, nullptr, 10) : 1, last = only ? first : HISTORIES;
	for (uint64_t seed = first; seed <= last; seed++) {
		INFO("LOCKSTEP_SEED=" << seed);
		History history(seed);
		history.run();
		for (const auto &[op, n] : history.carried_out)
			carried_out[op] += n;
	}
	if (only)
		return;
	for (const char *op : {"volume.create", "replica.created", "replica.failed", "replica.deleted", "volume.delete", "volume.abort",
			       "device.ready", "host.status", "host.add", "pool.report", "record.propose", "record.suspect", "record.resign",
			       "volume.primary", "volume.set", "volume.resize", "replica.moved", "replica.grown", "volume.grown", "snapshot.create",
			       "snapshot.held", "snapshot.taken", "snapshot.resumed", "snapshot.broken", "snapshot.removed", "snapshot.delete",
			       "snapshot.restore", "snapshot.revert", "record.failed", "record.repaired", "record.failover", "record.open", "record.close", "group.create",
			       "group.delete", "group.label", "volume.label"}) {
		INFO(op);
		CHECK(carried_out[op] > 20);    // else the histories do not exercise it
	}
}
