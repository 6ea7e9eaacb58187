// SPDX-License-Identifier: GPL-2.0-or-later
//
// Random histories: two replicas of the State that apply the same log, one of which is restored from a snapshot now and then,
// stay identical; every invariant holds after every entry; versions, terms and incarnations never go back; the log's bytes
// decode to what was encoded. A third of the entries is nonsense on purpose. The seed is printed with a failure; set
// LOCKSTEP_SEED to run one history alone.
#include "life.h"

#include "lockstepd/cluster/controller.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

constexpr unsigned HISTORIES = 100, ENTRIES = 600;

struct History {
	std::mt19937_64 random;
	Cluster c;
	State twin;
	unsigned thick_percent = 0;
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
		if (chance(15))
			entry["rules"] = some_rules(true);
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

	json some_rules(bool of_volume)
	{
		json rules = json::object();
		if (chance(40))
			rules["different"] = chance(50) ? "rack" : "";
		if (chance(40))
			rules["same"] = chance(40) ? "site=s1" : chance(50) ? "site" : "";
		if (chance(30))
			rules["avoid"] = chance(50) ? std::vector<HostId>{host()} : std::vector<HostId>{};
		if (chance(of_volume ? 30 : 3))
			rules["apart"] = chance(70) ? std::vector<uint32_t>{vid()} : std::vector<uint32_t>{};
		return rules;
	}

	json rule_or_pin(uint32_t id)
	{
		switch (pick(5)) {
		case 0: return {{"op", "volume.rules"}, {"vid", id}, {"rules", some_rules(true)}};
		case 1: return {{"op", "group.rules"}, {"name", group()}, {"rules", some_rules(false)}};
		case 2: {
			const bool rack = chance(60);
			json text = chance(10) ? json(nullptr) : json((rack ? "r" : "s") + std::to_string(pick(rack ? 4 : 2)));
			return {{"op", "host.label"}, {"host", host()}, {"labels", {{rack ? "rack" : "site", text}}}};
		}
		default: return {{"op", "replica.pin"}, {"vid", id}, {"host", host_with_replica(id)}, {"pinned", chance(40)}};
		}
	}

	// A pool whose disk is gone: what is on it and can be spared, or anything.
	json mending()
	{
		const HostId h = host();
		const Pool *p = c.state.pool("default", h);
		if (p && !p->mending.empty() && chance(70))
			return {{"op", "pool.mended"}, {"name", "default"}, {"host", h}, {"disk", chance(90) ? p->mending : "d0"}};
		json entry = {{"op", "pool.mend"}, {"name", "default"}, {"host", h}, {"disk", "d" + std::to_string(pick(3))}};
		if (chance(30))
			entry["by"] = "/dev/sdn";
		std::vector<uint32_t> vids, sids;
		for (const auto &[vid, v] : c.state.volumes)
			if (v.replica(h) && v.primary != h && chance(20))
				vids.push_back(vid);
		for (const auto &[sid, s] : c.state.snapshots)
			if (s.copy(h) && chance(20))
				sids.push_back(sid);
		// With a thick LV go the snapshots of it, wherever they are, and the host says so (lost_volumes()).
		for (const auto &[sid, s] : c.state.snapshots)
			if (s.trace(h) && is_thick(s.trace(h)->pool, h) && std::ranges::count(vids, s.vid) && !std::ranges::count(sids, sid))
				sids.push_back(sid);
		if (!vids.empty())
			entry["replicas"] = vids;
		if (!sids.empty())
			entry["copies"] = sids;
		return entry;
	}

	bool is_thick(const std::string &pool, HostId host) const
	{
		const Pool *p = c.state.pool(pool, host);
		return p && p->kind == PoolKind::thick;
	}
	// Of a new pool: pools of one name need not be of one kind.
	const char *kind() { return chance(thick_percent) ? "thick" : "thin"; }

	// Pools come and go: empty ones of a second name more often than those in use.
	json pool_life()
	{
		const HostId h = host();
		const std::string name = chance(60) ? "spare" : "default";
		const Pool *p = c.state.pool(name, h);
		if (!p || chance(5)) {
			json entry = Cluster::pool_entry(h, 20 * GIB, kind());
			entry["name"] = name;
			if (entry["kind"] == "thin")
				entry["thin_lv"] = name;
			return entry;
		}
		return {{"op", p->deleting ? chance(80) ? "pool.deleted" : "pool.add" : "pool.delete"}, {"name", name}, {"host", h}, {"kind", "thin"},
			{"vg", p->vg}, {"thin_lv", p->thin_lv}, {"size_bytes", GIB}, {"free_bytes", GIB}};
	}

	json group_or_label()
	{
		switch (pick(7)) {
		case 4:
		case 5: return {{"op", "group.redundancy"}, {"name", group()}, {"redundancy", chance(95) ? 1 + pick(4) : pick(12)}};
		case 6: return {{"op", "group.spread"}, {"name", group()}};
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

	// What leader and hosts do of a snapshot's copies, and what they would not.
	json copies(const Snapshot &s)
	{
		const SnapshotCopy *arriving = s.arriving.empty() ? nullptr : &s.arriving[pick(unsigned(s.arriving.size()))];
		switch (pick(4)) {
		case 0: return {{"op", "snapshot.copy"}, {"sid", s.sid}, {"host", host()}, {"pool", "default"}};
		case 1: return {{"op", "snapshot.drop"}, {"sid", s.sid}, {"host", host()}};
		case 2: return {{"op", "snapshot.removed"}, {"sid", s.sid}, {"host", s.going.empty() ? host() : s.going[0].host}};
		default:
			return {{"op", "snapshot.copied"}, {"sid", s.sid}, {"host", arriving && chance(90) ? arriving->host : host()},
				{"added", arriving ? arriving->added : 1}, {"md_offset", s.size_bytes + 4096 * pick(3)}};
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
		if (s && s->phase == SnapshotPhase::preparing)
			op = "prepared";
		else if (s && s->phase == SnapshotPhase::quiescing)
			op = "held";
		else if (s && s->phase == SnapshotPhase::taking)
			op = "taken";
		else if (s && s->phase == SnapshotPhase::resuming)
			op = "resumed";
		if (s && s->phase != SnapshotPhase::quiescing)
			for (const SnapshotCopy &copy : s->copies)
				if (s->phase != SnapshotPhase::resuming && !(s->in_progress() && (copy.taken || (copy.prepared && s->phase == SnapshotPhase::preparing))) &&
				    chance(70))
					entry["host"] = copy.host;
		if (s && s->phase == SnapshotPhase::ready && chance(40))
			return copies(*s);
		switch (pick(18)) {
		case 0:
		case 1: {
			std::set<uint32_t> vids = {id};
			if (chance(40))
				vids.insert(vid());
			json uuids = json::array();
			for (size_t i = 0; i < vids.size(); i++)
				uuids.push_back(uuid(5000 + ++c.serial));
			json create = {{"op", "snapshot.create"}, {"name", "s" + std::to_string(pick(4))}, {"vids", vids}, {"uuids", uuids}, {"now_ms", 1}};
			if (chance(50))
				create["prepare"] = true;
			return create;
		}
		case 2:
			if (chance(30))
				return {{"op", "snapshot.abandon"}, {"set", s ? s->set : 1}};
			return {{"op", "snapshot.broken"}, {"set", s ? s->set : 1}, {"attempt", 1 + pick(2)}, {"message", "test"}, {"final", chance(20)}};
		case 3: return {{"op", "snapshot.delete"}, {"sid", sid}};
		case 4:
		case 8:
			return {{"op", "snapshot.restore"}, {"sid", sid}, {"new", "v" + std::to_string(pick(12))}, {"uuid", uuid(7000 + ++c.serial)}};
		case 5:
		case 6:
		case 7:
		case 9:
		case 10: {
			const uint32_t onto = chance(30) ? vid() : 0;
			json revert = {{"op", "snapshot.revert"}, {"sid", sid}};
			if (onto)
				revert["onto"] = onto;
			return with(revert, ways_to_revert(onto ? onto : s ? s->vid : 0));
		}
		default: break;
		}
		entry["op"] = std::string("snapshot.") + (chance(95) ? op : "taken");
		entry["hold"] = 1 + pick(100);
		return entry;
	}

	// With all replicas in sync, as far as they go; one or two of them.
	void take_snapshots(uint32_t vid)
	{
		for (unsigned n = 1 + pick(2); n > 0; n--) {
			const Volume *v = c.state.volume(vid);
			if (!v || !v->primary || v->phase != Phase::ready)
				return;
			std::vector<HostId> members;
			for (const Replica &r : std::vector<Replica>(v->replicas)) {
				if (r.state == ReplicaState::failed)
					step({{"op", "record.repaired"}, {"vid", vid}, {"host", r.host}});
				step({{"op", "replica.created"}, {"vid", vid}, {"host", r.host}});
				members.push_back(r.host);
			}
			v = c.state.volume(vid);
			const HostId primary = v->primary;
			step({{"op", "record.propose"}, {"vid", vid}, {"host", primary}, {"version", v->version}, {"term", v->term}, {"members", members}});
			const json answer = step({{"op", "snapshot.create"}, {"name", "p" + std::to_string(++c.serial)}, {"vids", {vid}},
						  {"uuids", {uuid(5000 + c.serial)}}, {"now_ms", 1}});
			if (answer["ok"] != true)
				return;
			const uint32_t sid = answer["sids"][0];
			const auto of = [&](const char *op, HostId host) { return json{{"op", op}, {"sid", sid}, {"host", host}, {"attempt", 1}, {"hold", 7}}; };
			step(of("snapshot.held", primary));
			for (const SnapshotCopy &copy : std::vector<SnapshotCopy>(c.state.snapshot(sid)->copies))
				step(of("snapshot.taken", copy.host));
			step(of("snapshot.resumed", primary));
		}
	}

	// Most reverts are refused, for good reasons. These mostly are not: of a snapshot, mostly the latest, of a volume that nobody has open, whose
	// hosts are there. One of its disks may have failed.
	void prepare_revert()
	{
		if (chance(60))
			take_snapshots(ready_vid());
		std::vector<const Snapshot *> latest;
		const bool any = chance(30);
		for (const auto &[sid, s] : c.state.snapshots) {
			const Volume *v = c.state.volume(s.vid);
			if (v && v->phase == Phase::ready && s.phase == SnapshotPhase::ready && !c.state.snapshot_in_progress(s.vid)) {
				std::erase_if(latest, [&](const Snapshot *x) { return !any && x->vid == s.vid; });
				latest.push_back(&s);
			}
		}
		if (latest.empty())
			return;
		const Snapshot s = *latest[pick(unsigned(latest.size()))];
		const Volume v = *c.state.volume(s.vid);
		for (const Opener &o : v.openers)
			step({{"op", "record.close"}, {"vid", v.vid}, {"host", o.host}, {"session", o.session}});
		if (chance(30))
			step({{"op", "record.failed"}, {"vid", v.vid}, {"host", host_with_replica(v.vid)}});
		for (const Replica &r : v.replicas)
			step({{"op", "host.status"}, {"host", r.host}, {"online", true}, {"now_ms", c.index}});
		step(with({{"op", "snapshot.revert"}, {"sid", s.sid}}, ways_to_revert(v.vid)));
		if (chance(50))
			lose_one_meanwhile(v.vid);
	}

	// One replica has its content, another one cannot get it.
	void lose_one_meanwhile(uint32_t vid)
	{
		const Volume v = *c.state.volume(vid);
		if (!v.reverting || v.replicas.size() < 2)
			return;
		step({{"op", "replica.created"}, {"vid", vid}, {"host", v.replicas[0].host}});
		const HostId host = v.replicas[1].host;
		if (chance(70)) {
			step({{"op", "replica.failed"}, {"vid", vid}, {"host", host}, {"message", "test"}, {"reverting", true}});
			return;
		}
		step({{"op", "host.status"}, {"host", host}, {"online", false}, {"now_ms", c.index}});
		step({{"op", "host.lost"}, {"host", host}, {"force", true}, {"reverts", true}});
	}

	// As the API has it: where a replica is in a thick pool, without_failed is not asked for without in_place.
	json ways_to_revert(uint32_t vid)
	{
		const Volume *v = c.state.volume(vid);
		const bool thick = v && std::ranges::any_of(v->replicas, [&](const Replica &r) { return is_thick(r.pool, r.host); });
		json ways = json::object();
		if (chance(80))
			ways["in_place"] = true;
		if (thick && ways.contains("in_place") && chance(50))
			for (const auto &[sid, s] : c.state.snapshots)
				if (s.vid == vid && s.phase == SnapshotPhase::ready)
					ways["past"].push_back(sid);
		if (thick && chance(50))
			ways["version"] = v->version - chance(20);
		if (chance(80) && (!thick || ways.contains("in_place")))
			ways["without_failed"] = true;
		return ways;
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
		case 0: {
			json failed = {{"op", "replica.failed"}, {"vid", id}, {"host", host_with_replica(id)}, {"message", "test"}};
			if (chance(50))
				failed["reverting"] = true;
			return failed;
		}
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
		if (n < 19)
			return rule_or_pin(ready_vid());
		if (n < 20)
			return chance(50) ? mending() : pool_life();
		if (n < 25)
			return group_or_label();
		if (n < 36)
			return life_of_a_volume(vid());
		if (n < 44)
			return growth(vid());
		if (n < 62)
			return snapshots(vid());
		if (n < 78)
			return life_of_replicas_and_hosts(ready_vid());
		return record_change(vid());
	}

	// Mostly what can be carried out: a volume that is ready, a host that has a replica of it or is away.
	uint32_t ready_vid()
	{
		for (int i = 0; i < 5; i++) {
			uint32_t id = vid();
			if (const Volume *v = c.state.volume(id); v && v->phase == Phase::ready)
				return id;
		}
		return vid();
	}
	HostId host_with_replica(uint32_t id)
	{
		const Volume *v = c.state.volume(id);
		return v && !v->replicas.empty() && chance(90) ? v->replicas[pick(unsigned(v->replicas.size()))].host : host();
	}
	HostId host_away()
	{
		for (const auto &[id, h] : c.state.hosts)
			if (!h.online && chance(60))
				return id;
		return host();
	}

	json life_of_replicas_and_hosts(uint32_t id)
	{
		auto on_host = [&](const char *op) { return json{{"op", op}, {"vid", id}, {"host", host()}}; };
		switch (pick(20)) {
		case 0: return {{"op", "volume.redundancy"}, {"vid", id}, {"redundancy", 1 + pick(4)}};
		case 1: return {{"op", "replica.add"}, {"vid", id}, {"asked", chance(50)}};
		case 2: return on_host("replica.add");
		case 3: return {{"op", "replica.move"}, {"vid", id}, {"from", host_with_replica(id)}};
		case 4: return {{"op", "replica.leave"}, {"vid", id}, {"host", host_with_replica(id)}, {"lower", chance(50)}};
		case 5: return {{"op", "replica.stay"}, {"vid", id}, {"host", host_with_replica(id)}};
		case 6:
		case 7:
		case 8: return {{"op", chance(40) ? "replica.invalidate" : "replica.remove"}, {"vid", id}, {"host", host_with_replica(id)}};
		case 9:
		case 10: return on_host("replica.purged");
		case 11: return {{"op", "life.elapsed"}, {"hosts", {{std::to_string(host_away()), (5 + pick(90)) * 60'000}}}, {"replicas", {{id, host(), pick(20) * 60'000}}}};
		case 12:
		case 18:
		case 19: return {{"op", "host.evict"}, {"host", host_away()}};
		case 13: return {{"op", "host.evacuate"}, {"host", host()}};
		case 14: return {{"op", "host.restore"}, {"host", host()}};
		case 15: return {{"op", "option.set"}, {"name", chance(50) ? "auto-evict-minutes" : "disk-grace-minutes"}, {"value", chance(70) ? "5" : "off"}};
		case 16:
			if (chance(20))
				return {{"op", chance(50) ? "host.remove" : "host.gone"}, {"host", host()}};
			return on_host("replica.created");
		default:
			if (chance(20) && c.state.hosts.size() > 3)
				return {{"op", "host.lost"}, {"host", host_away()}, {"force", chance(30)}, {"reverts", true}};
			return on_host("replica.created");
		}
	}

	// However it came about: good copies are not thrown away.
	void check_good_copies(const json &entry, const State &before)
	{
		for (const auto &[vid, v] : before.volumes) {
			const Volume *now = c.state.volume(vid);
			if (!now || now->phase != Phase::ready || v.phase != Phase::ready)
				continue;
			size_t left = 0, in_sync = 0;
			for (const Replica &r : now->replicas) {
				left += r.clean();
				in_sync += r.in_sync();
			}
			bool lost = entry["op"] == "host.lost", thrown_away = entry["op"] == "replica.invalidate" || entry["op"] == "pool.mend";
			INFO(entry.dump() << " on " << to_json(v).dump());
			for (const Replica &r : v.replicas) {
				if (now->replica(r.host) || !r.created)
					continue;
				REQUIRE((r.host != v.primary || lost));
				if (r.clean())
					REQUIRE(left >= (lost || thrown_away ? 1 : v.redundancy));
				REQUIRE((left >= 1 || (lost && in_sync)));
			}
		}
	}

	// Whoever asks for a replica, it is made where the rules want it; a pinned one stays where it is.
	void check_placement(const json &entry, const State &before)
	{
		const std::string op = entry["op"];
		for (const auto &[vid, v] : c.state.volumes) {
			const Volume *was = before.volume(vid);
			INFO(entry.dump() << " makes " << to_json(v).dump());
			for (const Replica &r : v.replicas)
				if ((op == "volume.create" || op == "replica.add" || op == "replica.move") && !(was && was->replica(r.host)))
					REQUIRE(rule_broken(c.state, v, r.host) == "");
			for (const Replica &r : was && v.phase != Phase::deleting ? was->replicas : std::vector<Replica>{})
				// One that could not be made, or whose disk has failed, has nothing that could stay.
				if (r.pinned && wanted(before, r) && (r.created || op != "replica.failed") && (r.state != ReplicaState::failed || op != "snapshot.revert") && op != "host.lost" && op != "pool.mend" && op != "replica.invalidate")
					REQUIRE((v.replica(r.host) && (v.replica(r.host)->pinned || op == "replica.pin") && !v.replica(r.host)->leaving));
		}
	}

	// No command takes a pool from under what lies in it: only a host that is gone takes its pools along.
	void check_pools(const json &entry, const State &before)
	{
		const std::string op = entry["op"];
		for (const auto &[key, p] : before.pools)
			if (const Pool *now = c.state.pool(p.name, p.host); !now || (now->deleting && !p.deleting)) {
				INFO(entry.dump());
				REQUIRE((now || p.deleting || op == "host.lost" || op == "host.gone"));
				REQUIRE((now || op == "pool.deleted" || op == "host.lost" || op == "host.gone"));
				if (!now)
					continue;
				for (const auto &[vid, v] : c.state.volumes) {
					REQUIRE_FALSE((v.replica(p.host) && v.replica(p.host)->pool == p.name));
					REQUIRE_FALSE((v.remnant(p.host) && v.remnant(p.host)->pool == p.name));
				}
				for (const auto &[sid, s] : c.state.snapshots)
					REQUIRE_FALSE((s.trace(p.host) && s.trace(p.host)->pool == p.name));
			}
	}

	// A snapshot in a thick pool is nothing without the LV that it is of, and its reserve takes what an older one gives back to that: hosts were asked.
	void check_thick(const json &entry, const State &before)
	{
		for (const auto &[sid, s] : c.state.snapshots)
			for (const SnapshotCopy &copy : s.phase == SnapshotPhase::discarding || s.phase == SnapshotPhase::deleting ? std::vector<SnapshotCopy>{} : s.copies) {
				if (!is_thick(copy.pool, copy.host))
					continue;
				const Volume *v = c.state.volume(s.vid);
				const Replica *r = v && v->phase != Phase::deleting ? v->replica(copy.host) : nullptr;
				INFO(entry.dump() << " leaves " << s.name << " of " << (v ? to_json(*v).dump() : "nothing"));
				REQUIRE(r);
				REQUIRE(r->pool == copy.pool);
				REQUIRE((r->created || (v->phase == Phase::creating && v->reverting)));
			}
		for (const auto &[vid, v] : c.state.volumes) {
			const Volume *was = before.volume(vid);
			if (!v.reverting || !was || was->reverting)
				continue;
			const Snapshot &s = *c.state.snapshot(v.source);
			for (const Replica &r : v.replicas) {
				const bool thick = is_thick(r.pool, r.host);
				INFO(entry.dump() << " makes " << to_json(v).dump());
				carried_out["revert thick"] += thick;
				REQUIRE((!thick || (s.vid == vid && s.copy(r.host) && was->replica(r.host)->pool == r.pool)));
				for (const auto &[sid, x] : c.state.snapshots)
					if (thick && x.vid == vid && x.trace(r.host) && sid > s.sid) {
						carried_out["revert past"]++;
						REQUIRE((entry.contains("past") && std::ranges::count(entry["past"], json(sid))));
					}
			}
		}
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
		check_good_copies(entry, before);
		check_placement(entry, before);
		check_pools(entry, before);
		check_thick(entry, before);
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
		thick_percent = pick(3) * 50;
		for (auto &[key, pool] : c.state.pools)
			if (kind() == std::string("thick")) {
				pool.kind = PoolKind::thick;
				pool.thin_lv.clear();
			}
		twin = c.state;
		for (unsigned i = 0; i < ENTRIES; i++) {
			if (chance(3))
				prepare_revert();
			step(random_entry());
		}
		heal();
	}

	bool has_thick_snapshot(const Volume &v, const Replica &r) const
	{
		return std::ranges::any_of(c.state.snapshots, [&](const auto &entry) {
			const SnapshotCopy *copy = entry.second.vid == v.vid ? entry.second.trace(r.host) : nullptr;
			return copy && is_thick(copy->pool, r.host);
		});
	}

	// All hosts come back and do their part: it settles. Every volume then has the copies it should have if there is room, all in
	// sync; none that somebody needs is without a primary, and nobody has anything left to remove.
	void heal()
	{
		std::map<HostId, Liveness> all;
		for (const auto &[id, h] : c.state.hosts)
			all[id] = {true, 0};
		bool busy = true;
		for (int round = 0; busy; round++) {
			REQUIRE(round < 100);
			busy = false;
			for (const json &d : decide(c.state, all, c.index)) {
				REQUIRE(step(d)["ok"] == true);
				busy = true;
			}
			std::vector<json> entries;
			for (const auto &[vid, v] : c.state.volumes) {
				hosts_of_a_volume(v, [&](HostId) { return true; }, {}, true, entries);
				for (const Replica &r : v.replicas) {
					if (r.state == ReplicaState::failed)
						entries.push_back({{"op", "record.repaired"}, {"vid", vid}, {"host", r.host}});
					if (r.next_offset)
						entries.push_back({{"op", "replica.moved"}, {"vid", vid}, {"host", r.host}, {"offset", r.next_offset}});
					if (r.wipe)
						entries.push_back({{"op", "replica.grown"}, {"vid", vid}, {"host", r.host}});
				}
			}
			for (const auto &[sid, x] : c.state.snapshots) {
				if (x.in_progress())
					entries.push_back({{"op", "snapshot.broken"}, {"set", x.set}, {"attempt", x.attempt}, {"message", "test"}, {"final", true}});
				if (x.phase == SnapshotPhase::discarding || x.phase == SnapshotPhase::deleting)
					for (const SnapshotCopy &copy : x.copies)
						entries.push_back({{"op", "snapshot.removed"}, {"sid", sid}, {"host", copy.host}});
				for (const SnapshotCopy &copy : x.going)
					entries.push_back({{"op", "snapshot.removed"}, {"sid", sid}, {"host", copy.host}});
				for (const SnapshotCopy &copy : x.arriving)
					entries.push_back({{"op", "snapshot.copied"}, {"sid", sid}, {"host", copy.host}, {"added", copy.added}, {"md_offset", x.size_bytes}});
			}
			for (const auto &[key, p] : c.state.pools)
				if (!p.mending.empty())
					entries.push_back({{"op", "pool.mended"}, {"name", p.name}, {"host", p.host}, {"disk", p.mending}});
				else if (p.deleting)
					entries.push_back({{"op", "pool.deleted"}, {"name", p.name}, {"host", p.host}});
			for (const json &e : entries) {
				json answer = step(e);
				busy = (answer["ok"] == true && answer.value("changed", true)) || busy;
			}
		}
		for (const auto &[vid, v] : c.state.volumes) {
			REQUIRE(v.phase == Phase::ready);
			REQUIRE(v.remnants.empty());
			if (!v.openers.empty())
				REQUIRE(v.primary != 0);
			size_t good = 0, pinned = 0;
			for (const Replica &r : v.replicas) {
				good += r.clean() && wanted(c.state, r);
				pinned += r.pinned;
			}
			INFO(to_json(v).dump() << repair_obstacle(c.state, v));
			// One that has a snapshot in a thick pool beside it stays.
			const size_t least = std::max<size_t>(v.redundancy, pinned);
			const bool held = std::ranges::all_of(v.replicas, [&](const Replica &r) { return r.pinned || !wanted(c.state, r) || has_thick_snapshot(v, r); });
			REQUIRE((good == least || (good > least && held) || !repair_obstacle(c.state, v).empty()));
		}
		for (const auto &[name, g] : c.state.groups)
			REQUIRE((!g.spreading || !group_change(c.state, g).obstacle.empty()));
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
			       "snapshot.prepared", "snapshot.held", "snapshot.taken", "snapshot.resumed", "snapshot.broken", "snapshot.removed", "snapshot.delete",
			       "snapshot.restore", "snapshot.revert", "revert thick", "snapshot.copy", "snapshot.copied", "snapshot.drop", "record.failed", "record.repaired", "record.failover", "record.open", "record.close",
			       "replica.add", "replica.invalidate", "replica.move", "replica.leave", "replica.remove", "replica.purged", "replica.stay", "volume.redundancy",
			       "host.evacuate", "host.restore", "host.evict", "host.lost", "life.elapsed", "option.set", "group.create",
			       "group.delete", "group.label", "group.rules", "volume.rules", "host.label", "replica.pin", "pool.mend", "pool.mended", "pool.add", "pool.delete", "pool.deleted", "group.redundancy", "group.spread", "volume.label"}) {
		INFO(op);
		CHECK(carried_out[op] > 20);    // else the histories do not exercise it
	}
}
