// SPDX-License-Identifier: GPL-2.0-or-later
//
// See rebuild.h. The plan decides; the entry names what it decided, so that what was shown is what is done.
#include "lockstepd/cluster/rebuild.h"

#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/recover.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace lockstep {

using nlohmann::json;

// ---- what hosts say ----

namespace {

json to_json(const FoundCopy &c)
{
	return {{"host", c.host}, {"vg", c.vg}, {"lv", c.lv}, {"thin_pool", c.thin_pool}, {"uuid", c.uuid}, {"cluster", c.cluster}, {"name", c.name},
		{"pool", c.pool}, {"group", c.group}, {"added", c.added}, {"shared", c.shared}, {"problem", c.problem}, {"vid", c.vid}, {"size_bytes", c.size_bytes},
		{"block_size", c.block_size}, {"md_offset", c.md_offset}, {"version", c.version}, {"term", c.term}, {"incarnation", c.incarnation},
		{"quiet", c.quiet}, {"written", c.written}, {"absent", c.absent}};
}

FoundCopy found_copy(const json &j, HostId host)
{
	FoundCopy c;
	c.host = host;
	c.vg = j.at("vg");
	c.lv = j.at("lv");
	c.thin_pool = j.at("thin_pool");
	c.uuid = j.at("uuid");
	c.cluster = j.at("cluster");
	c.name = j.at("name");
	c.pool = j.at("pool");
	c.group = j.value("group", "");    // older programs do not tell it
	c.added = j.at("added");
	c.shared = j.at("shared");
	c.problem = j.at("problem");
	c.vid = j.at("vid");
	c.size_bytes = j.at("size_bytes");
	c.block_size = j.at("block_size");
	c.md_offset = j.at("md_offset");
	c.version = j.at("version");
	c.term = j.at("term");
	c.incarnation = j.at("incarnation");
	c.quiet = j.at("quiet");
	c.written = j.at("written");
	for (const json &id : j.at("absent"))
		c.absent.insert(id.get<HostId>());
	return c;
}

}    // namespace

json to_json(const FoundHost &h)
{
	json j = {{"host", h.host}, {"id", h.id}, {"name", h.name}, {"raft_id", h.raft_id}, {"log", h.has_log}, {"volumes_up", h.volumes_up},
		  {"incomplete", h.incomplete}, {"top_vid", h.top_vid}, {"top_sid", h.top_sid}, {"spaces", json::array()}, {"copies", json::array()}};
	for (const FoundSpace &s : h.spaces)
		j["spaces"].push_back({{"vg", s.vg}, {"thin_lv", s.thin_lv}, {"size_bytes", s.size_bytes}, {"free_bytes", s.free_bytes}});
	for (const FoundCopy &c : h.copies)
		j["copies"].push_back(to_json(c));
	return j;
}

Result<FoundHost> found_host(const json &j)
{
	try {
		FoundHost h;
		h.host = j.at("host");
		h.id = j.at("id");
		h.name = j.at("name");
		h.raft_id = j.at("raft_id");
		h.has_log = j.at("log");
		h.volumes_up = j.at("volumes_up");
		h.incomplete = j.at("incomplete");
		h.top_vid = j.at("top_vid");
		h.top_sid = j.at("top_sid");
		for (const json &s : j.at("spaces"))
			h.spaces.push_back({s.at("vg"), s.at("thin_lv"), s.at("size_bytes"), s.at("free_bytes")});
		for (const json &c : j.at("copies"))
			h.copies.push_back(found_copy(c, h.id));
		return h;
	} catch (const json::exception &e) {
		return failed(fmt::format("the answer is not understood: {}", e.what()));
	}
}

// ---- which copy ----

namespace {

struct Candidates {
	std::string uuid, name;
	std::vector<FoundCopy> copies;
	const FoundCopy *copy = nullptr;    // to be taken
	std::string doubt;                  // why none is taken unasked
	bool asked = false, left = false;
};

class Planner {
public:
	explicit Planner(const RebuildInput &input) : in_(input) {}
	Result<Rebuild> plan();

private:
	std::string host_name(HostId id) const;
	void collect();
	void name_all();
	void decide(Candidates &c) const;
	std::string doubt_about(const FoundCopy &best, const Candidates &c) const;
	Done choose();
	Done choose(Candidates &c, const std::string &host);
	Done add_pools(json &pools, const Candidates &c);
	void add_group(json &groups, const Candidates &c, unsigned redundancy) const;
	json volume_entry(const Candidates &c) const;
	json row(const Candidates &c) const;
	std::string pool_of(const FoundCopy &copy) const;
	std::vector<const FoundCopy *> others(const Candidates &c) const;

	const RebuildInput &in_;
	std::vector<Candidates> volumes_;    // by vid, then UUID
	using Place = std::tuple<HostId, std::string, std::string>;    // host, VG, thin pool
	std::map<Place, std::string> pool_names_;                      // as any LV there says
	std::map<std::pair<std::string, HostId>, Place> pools_;        // by name and host
};

bool usable(const FoundCopy &c) { return c.problem.empty(); }

// What was asked for is not known: at least the usual.
unsigned rebuilt_redundancy(size_t replicas) { return std::clamp<unsigned>(unsigned(replicas), DEFAULT_REDUNDANCY, LKS_MAX_REPLICAS); }

bool alike(const FoundCopy &a, const FoundCopy &b)
{
	return a.vid == b.vid && a.size_bytes == b.size_bytes && a.block_size == b.block_size;
}

std::string Planner::host_name(HostId id) const
{
	for (const FoundHost &h : in_.hosts)
		if (h.id == id)
			return h.name;
	return fmt::format("host {}", id);
}

void Planner::collect()
{
	std::map<std::string, Candidates> by_uuid;
	for (const FoundHost &h : in_.hosts)
		for (const FoundCopy &copy : h.copies) {
			if (!copy.cluster.empty() && copy.cluster != in_.uuid)
				continue;    // what another cluster left here
			if (valid_name(copy.pool))
				pool_names_[{copy.host, copy.vg, copy.thin_pool}] = copy.pool;
			Candidates &c = by_uuid[copy.uuid];
			c.uuid = copy.uuid;
			for (FoundCopy &there : c.copies)
				if (there.host == copy.host && usable(there))
					there.problem = fmt::format("there are two of it, {}/{} and {}/{}", there.vg, there.lv, copy.vg, copy.lv);
			c.copies.push_back(copy);
			if (std::ranges::count_if(c.copies, [&](const FoundCopy &x) { return x.host == copy.host; }) > 1 && usable(copy))
				c.copies.back().problem = "there are two of it";
		}
	for (auto &[uuid, c] : by_uuid)
		volumes_.push_back(std::move(c));
	auto vid_of = [](const Candidates &c) {
		uint32_t vid = 0;
		for (const FoundCopy &copy : c.copies)
			vid = std::max(vid, copy.vid);
		return vid;
	};
	std::ranges::stable_sort(volumes_, {}, vid_of);
}

// What was made later keeps its name: an earlier one of that name had been deleted, on all hosts but one that was away.
void Planner::name_all()
{
	std::set<std::string> taken;
	for (auto c = volumes_.rbegin(); c != volumes_.rend(); ++c) {
		for (const FoundCopy &copy : c->copies)
			if (valid_volume_name(copy.name))
				c->name = copy.name;
		if (c->name.empty())
			c->name = "recovered-" + c->uuid;
		else if (taken.contains(c->name))
			c->name = c->name.substr(0, 80) + "-" + c->uuid;
		taken.insert(c->name);
	}
}

// Empty: nothing speaks against it.
std::string Planner::doubt_about(const FoundCopy &best, const Candidates &c) const
{
	const std::string mine = host_name(best.host);
	for (const FoundCopy &o : c.copies) {
		if (&o == &best)
			continue;
		const std::string theirs = host_name(o.host);
		if (!usable(o))
			return fmt::format("the copy on {} may be newer than that on {}, and cannot be used: {}", theirs, mine, o.problem);
		if (!alike(o, best))
			return fmt::format("the copies on {} and {} differ in size", mine, theirs);
		if (o.absent.contains(best.host))
			return fmt::format("the copy on {} lacks something, says the one on {}", mine, theirs);
		if (o.version > best.version || o.term > best.term || o.incarnation > best.incarnation)
			return fmt::format("the copy on {} knows version {} (term {}), the one on {} version {} (term {})", theirs, o.version, o.term, mine,
					   best.version, best.term);
		if (o.written > best.written)
			return fmt::format("the copy on {} has {} extents written, the one on {} only {}", theirs, o.written, mine, best.written);
		if (best.absent.contains(o.host))
			continue;    // it is known to be out of date
		if (o.version != best.version || o.term != best.term || o.incarnation != best.incarnation || o.written != best.written)
			return fmt::format("the copies on {} and {} differ in what they know (versions {} and {}), and neither says that the other is out of date",
					   mine, theirs, best.version, o.version);
		if (!o.quiet || !best.quiet)
			return fmt::format("the copies on {} and {} were both in sync as of version {} and not shut down cleanly: either may hold the last writes",
					   mine, theirs, best.version);
	}
	return {};
}

void Planner::decide(Candidates &c) const
{
	auto named_absent = [&](const FoundCopy &copy) {
		return std::ranges::any_of(c.copies, [&](const FoundCopy &o) { return usable(o) && &o != &copy && o.absent.contains(copy.host); });
	};
	auto rank = [&](const FoundCopy &copy) { return std::tuple(!named_absent(copy), copy.version, copy.term, copy.quiet, copy.written); };
	const FoundCopy *best = nullptr;
	for (const FoundCopy &copy : c.copies)
		if (usable(copy) && (!best || rank(copy) > rank(*best)))
			best = &copy;
	if (!best) {
		c.doubt = fmt::format("no copy can be used: on {}: {}", host_name(c.copies[0].host), c.copies[0].problem);
		return;
	}
	c.doubt = doubt_about(*best, c);
	if (c.doubt.empty())
		c.copy = best;
}

Done Planner::choose(Candidates &c, const std::string &host)
{
	c.asked = true;
	c.copy = nullptr;
	c.left = host == "none";
	if (c.left)
		return Nothing{};
	for (const FoundCopy &copy : c.copies)
		if (host_name(copy.host) == host && usable(copy))
			c.copy = &copy;
		else if (host_name(copy.host) == host)
			return forbidden(fmt::format("volume {}: the copy on host {} cannot be used: {}", c.name, host, copy.problem));
	if (!c.copy)
		return not_found(fmt::format("volume {}: host {} has no copy of it", c.name, host));
	return Nothing{};
}

Done Planner::choose()
{
	std::set<std::string> used;
	for (Candidates &c : volumes_) {
		auto choice = in_.choices.find(c.name);
		if (choice == in_.choices.end())
			choice = in_.choices.find(c.uuid);
		if (choice == in_.choices.end())
			continue;
		used.insert(choice->first);
		if (Done chosen = choose(c, choice->second); !chosen)
			return chosen;
	}
	for (const auto &[volume, host] : in_.choices) {
		if (volume != "all" && !used.contains(volume))
			return not_found(fmt::format("no copy of a volume {} was found", volume));
		if (host != "none" && std::ranges::none_of(in_.hosts, [&](const FoundHost &h) { return h.name == host; }))
			return not_found(fmt::format("there is no host {} to take the copy of {} from", host, volume));
		for (Candidates &c : volumes_)    // "all": of those in doubt, where that host has one
			if (volume == "all" && !c.asked && !c.doubt.empty())
				if (Done chosen = choose(c, host); !chosen)
					c.asked = false;
	}
	// A logical volume is named by its vid.
	for (Candidates &c : volumes_)
		for (const Candidates &o : volumes_)
			if (&o != &c && c.copy && o.copy && o.copy->vid == c.copy->vid) {
				c.doubt = fmt::format("volumes {} and {} have the same number {}: leave one of them out", c.name, o.name, c.copy->vid);
				c.copy = nullptr;
				c.asked = false;
			}
	return Nothing{};
}

// Those that become stale: the rest stays on the disks, in no record.
std::vector<const FoundCopy *> Planner::others(const Candidates &c) const
{
	std::vector<const FoundCopy *> list;
	for (const FoundCopy &o : c.copies)
		if (c.copy && &o != c.copy && o.host != c.copy->host && usable(o) && alike(o, *c.copy) && list.size() + 1 < LKS_MAX_REPLICAS)
			list.push_back(&o);
	return list;
}

std::string Planner::pool_of(const FoundCopy &copy) const
{
	const auto named = pool_names_.find({copy.host, copy.vg, copy.thin_pool});
	if (named != pool_names_.end())
		return named->second;
	return copy.thin_pool.empty() ? copy.vg : copy.vg + "-" + copy.thin_pool;
}

Done Planner::add_pools(json &pools, const Candidates &c)
{
	std::vector<const FoundCopy *> all = others(c);
	all.push_back(c.copy);
	for (const FoundCopy *copy : all) {
		const Place place(copy->host, copy->vg, copy->thin_pool);
		auto [known, fresh] = pools_.try_emplace({pool_of(*copy), copy->host}, place);
		if (known->second != place)
			return forbidden(fmt::format("host {}: pool {} is said to be {} and {}", host_name(copy->host), pool_of(*copy), std::get<1>(known->second), copy->vg));
		if (!fresh)
			continue;
		const FoundHost &host = *std::ranges::find_if(in_.hosts, [&](const FoundHost &h) { return h.id == copy->host; });
		const auto space = std::ranges::find_if(host.spaces, [&](const FoundSpace &s) { return s.vg == copy->vg && s.thin_lv == copy->thin_pool; });
		if (space == host.spaces.end())
			return failed(fmt::format("host {} does not say how large {} is", host.name, copy->vg));
		json pool = {{"name", pool_of(*copy)}, {"host", copy->host}, {"kind", copy->thin_pool.empty() ? "thick" : "thin"}, {"vg", copy->vg},
			     {"size_bytes", space->size_bytes}, {"free_bytes", space->free_bytes}};
		if (!copy->thin_pool.empty())
			pool["thin_lv"] = copy->thin_pool;
		pools.push_back(std::move(pool));
	}
	return Nothing{};
}

// One of XAPI's holds HA's shared volumes, too, which have more copies than it asks for.
void Planner::add_group(json &groups, const Candidates &c, unsigned redundancy) const
{
	const std::string &name = c.copy->group;
	auto known = std::ranges::find_if(groups, [&](const json &g) { return g["name"] == name; });
	if (known == groups.end()) {
		groups.push_back({{"name", name}, {"pool", pool_of(*c.copy)}, {"redundancy", DEFAULT_REDUNDANCY}});
		known = std::prev(groups.end());
	}
	if (!c.copy->shared)
		(*known)["redundancy"] = std::max((*known)["redundancy"].get<unsigned>(), redundancy);
}

json Planner::volume_entry(const Candidates &c) const
{
	const FoundCopy &best = *c.copy;
	uint64_t version = best.version, term = best.term, incarnation = best.incarnation;
	for (const FoundCopy &o : c.copies) {
		version = std::max({version, o.version, o.added});
		term = std::max(term, o.term);
		incarnation = std::max(incarnation, o.incarnation);
	}
	json replicas = json::array();
	auto add = [&](const FoundCopy &copy) {
		replicas.push_back({{"host", copy.host}, {"pool", pool_of(copy)}, {"md_offset", copy.md_offset}, {"added", std::max<uint64_t>(copy.added, 1)}});
	};
	add(best);
	for (const FoundCopy *o : others(c))
		add(*o);
	json entry = {{"vid", best.vid}, {"uuid", c.uuid}, {"name", c.name}, {"shared", best.shared}, {"size_bytes", best.size_bytes},
		{"block_size", best.block_size}, {"version", version}, {"term", term}, {"incarnation", incarnation}, {"copy", best.host},
		// One that was in doubt may have lost writes, however quiet it is: a new incarnation says so.
		{"suspect", !best.quiet || !c.doubt.empty()}, {"replicas", replicas}};
	if (valid_name(best.group))
		entry["group"] = best.group;
	return entry;
}

json Planner::row(const Candidates &c) const
{
	json r = {{"volume", c.name}, {"uuid", c.uuid}, {"copy", nullptr}, {"others", json::array()}, {"why", nullptr}, {"loss", nullptr},
		  {"doubt", c.doubt.empty() ? json() : json(c.doubt)}, {"left", c.left}};
	if (c.left) {
		r["why"] = "left out: its logical volumes stay as they are, see `lockstep pool orphans`";
		return r;
	}
	if (!c.copy) {
		r["why"] = c.doubt;
		return r;
	}
	r["copy"] = host_name(c.copy->host);
	for (const FoundCopy *o : others(c))
		r["others"].push_back(host_name(o->host));
	const std::string known = fmt::format("version {}, term {}, {}", c.copy->version, c.copy->term, c.copy->quiet ? "clean" : "not shut down cleanly");
	r["why"] = c.asked && !c.doubt.empty() ? "named by you; " + known : c.copies.size() == 1 ? "the only copy; " + known : known;
	std::string loss = c.copy->quiet ? "nothing that it shows" : "writes that were not flushed";
	if (!c.doubt.empty())
		loss = "what another copy has beyond it";
	else if (!in_.former.empty())
		loss += ", unless a host that is lost had a later copy";
	r["loss"] = loss;
	return r;
}

Result<Rebuild> Planner::plan()
{
	collect();
	name_all();
	for (Candidates &c : volumes_)
		decide(c);
	if (Done chosen = choose(); !chosen)
		return chosen.error();
	Rebuild r;
	uint64_t epoch = 0;
	uint32_t top_vid = 0, top_sid = 0;
	unsigned top_host = in_.former.empty() ? 0 : *in_.former.rbegin();
	json hosts = json::array(), pools = json::array(), groups = json::array(), volumes = json::array();
	for (const FoundHost &h : in_.hosts) {
		epoch = std::max(epoch, epoch_of(h.raft_id));
		top_host = std::max<unsigned>(top_host, h.id);
		top_vid = std::max(top_vid, h.top_vid);
		top_sid = std::max(top_sid, h.top_sid);
		hosts.push_back(h.host);
		for (const FoundCopy &copy : h.copies)
			if (!copy.absent.empty())
				top_host = std::max<unsigned>(top_host, *copy.absent.rbegin());
	}
	for (const Candidates &c : volumes_) {
		r.volumes.push_back(row(c));
		if (!c.copy && !c.left)
			r.in_doubt.push_back(c.name);
		if (!c.copy)
			continue;
		if (Done added = add_pools(pools, c); !added)
			return added.error();
		volumes.push_back(volume_entry(c));
		if (volumes.back().contains("group"))
			add_group(groups, c, rebuilt_redundancy(volumes.back()["replicas"].size()));
	}
	r.entry = {{"op", "cluster.rebuild"}, {"uuid", in_.uuid}, {"name", in_.name}, {"epoch", epoch + 1}, {"host", in_.self},
		   {"authority", {{"cert", in_.authority.cert}, {"key", in_.authority.key}}}, {"hosts", hosts}, {"pools", pools}, {"volumes", volumes},
		   {"next_host", std::min<unsigned>(top_host, LKS_MAX_HOSTS) + 1}, {"next_vid", top_vid + 1}, {"next_sid", top_sid + 1},
		   {"now_ms", in_.now_ms}};
	if (!groups.empty())
		r.entry["groups"] = groups;
	// What would be refused is not offered.
	State tried;
	const json answer = apply(tried, 1, r.entry);
	if (!answer["ok"].get<bool>())
		return Error{static_cast<Status>(answer["status"].get<int>()), answer["message"], answer["code"]};
	return r;
}

}    // namespace

Result<Rebuild> plan_rebuild(const RebuildInput &input)
{
	return Planner(input).plan();
}

// ---- the entry ----

namespace cluster {

namespace {

void rebuild_hosts(State &next, const Fields &f, HostId self, uint64_t now_ms)
{
	for (const json &one : f.raw("hosts")) {
		const Fields host(one);
		Host h = host_fields(host, now_ms);
		h.id = host.host("id");
		h.raft_id = h.id == self ? next.next_raft_id++ : host.number("raft_id");
		if (!next.hosts.emplace(h.id, h).second)
			refuse(usage_error("the field \"hosts\" names a host twice"));
	}
	if (!next.host(self))
		refuse(usage_error("the field \"hosts\" does not name the host whose log it is"));
}

void rebuild_groups(State &next, const Fields &f)
{
	for (const json &one : f.raw("groups")) {
		const Fields group(one);
		Group g;
		g.name = group.name("name");
		g.pool = group.name("pool");
		g.redundancy = unsigned(group.number("redundancy", LKS_MAX_REPLICAS));
		next.groups[g.name] = g;
	}
}

void rebuild_volumes(State &next, const Fields &f)
{
	for (const json &one : f.raw("volumes")) {
		const Fields volume(one);
		Volume v;
		v.vid = uint32_t(volume.number("vid", UINT32_MAX - 1));
		v.uuid = volume.uuid("uuid");
		v.name = volume.text("name");
		v.cls = volume.flag("shared") ? LKS_SHARED : LKS_EXCLUSIVE;
		v.size_bytes = volume.number("size_bytes", MAX_VOLUME_BYTES);
		v.block_size = uint32_t(volume.number("block_size", LKS_BLOCK_MAX));
		v.version = volume.number("version") + RECOVERY_JUMP;
		v.term = volume.number("term") + RECOVERY_JUMP;
		v.incarnation = volume.number("incarnation");
		v.session_serial = RECOVERY_JUMP;
		v.phase = Phase::ready;
		v.minor = free_minor(next);
		const HostId copy = volume.host("copy");
		for (const json &each : volume.raw("replicas")) {
			const Fields replica(each);
			Replica r;
			r.host = replica.host();
			r.pool = replica.name("pool");
			r.md_offset = replica.number("md_offset", 2 * MAX_VOLUME_BYTES);
			r.added = replica.number("added", v.version);
			r.since = v.version;
			r.created = true;
			r.state = r.host != copy ? ReplicaState::stale : volume.flag("suspect") ? ReplicaState::suspect : ReplicaState::insync;
			v.replicas.push_back(r);
		}
		std::ranges::sort(v.replicas, {}, &Replica::host);
		v.redundancy = rebuilt_redundancy(v.replicas.size());
		v.group = volume.has("group") ? group_of(next, volume.name("group")).name : "";
		next.next_vid = std::max(next.next_vid, v.vid + 1);
		if (!next.volumes.emplace(v.vid, v).second)
			refuse(usage_error("the field \"volumes\" names a volume twice"));
	}
}

}    // namespace

json cluster_rebuild(State &state, const Fields &f)
{
	const uint64_t epoch = f.number("epoch", UINT32_MAX), now_ms = f.number("now_ms");
	const HostId self = f.host();
	if (state.initialized() && state.uuid == f.uuid("uuid") && state.epoch == epoch)
		return done(false);
	if (state.initialized())
		refuse(forbidden("this is cluster " + state.name + " already"));
	State next;
	next.applied = state.applied;
	next.level = state.level;
	next.uuid = f.uuid("uuid");
	next.name = f.name("name");
	next.authority = {f.object("authority").pem("cert"), f.object("authority").pem("key")};
	next.epoch = epoch;
	next.next_raft_id = (epoch << EPOCH_SHIFT) + 1;
	next.next_host = unsigned(f.number("next_host", LKS_MAX_HOSTS + 1));
	rebuild_hosts(next, f, self, now_ms);
	for (const json &pool : f.raw("pools"))
		pool_add(next, Fields(pool));
	if (f.has("groups"))
		rebuild_groups(next, f);
	rebuild_volumes(next, f);
	next.next_vid = std::max(next.next_vid, uint32_t(f.number("next_vid", UINT32_MAX / 2))) + RECOVERY_ID_JUMP;
	next.next_sid = uint32_t(f.number("next_sid", UINT32_MAX / 2)) + RECOVERY_ID_JUMP;
	if (std::string broken = check(next); !broken.empty())
		refuse(failed("the cluster cannot be rebuilt: " + broken));
	state = std::move(next);
	json answer = done();
	answer["raft_id"] = state.hosts.at(self).raft_id;
	return answer;
}

}    // namespace cluster

}    // namespace lockstep
