// SPDX-License-Identifier: GPL-2.0-or-later
#include "cluster.h"

#include <algorithm>
#include <stdexcept>

#include "lockstepd/host/orphans.h"

namespace lockstep::test {

namespace {

constexpr uint64_t AWAY_MS = 1000, QUIET_MS = 6000;    // quiet: longer than POOL_SOON_MS
constexpr uint64_t TURN_MS = 100;

}    // namespace

Cluster::Cluster(PoolKind kind, HostId hosts)
{
	for (HostId h = 1; h <= hosts; h++) {
		worlds_[h] = std::make_unique<FakeWorld>(h, log);
		FakeWorld &w = at(h);
		w.when_killed = [this, h] { killed(h); };
		w.on_call = [this, h](const std::string &) {
			if (how_ == Strike::other && log->steps + 1 == other_at_ && other_ != h && up(other_))
				kill(other_, AWAY_MS);
		};
		w.source_data = [this](const CopyTask &task) { return at(task.source).lvs.at(snapshot_lv_path(task.lv)).data; };
		if (h == 1)
			w.found();
		if (kind == PoolKind::thin)
			w.make_thin();
	}
	for (auto &[id, h] : state.hosts)
		h.level = LEVEL;
	for (auto &[key, pool] : state.pools) {
		pool.kind = kind;
		pool.thin_lv = kind == PoolKind::thin ? "thin" : "";
	}
	for (HostId h = 1; h <= hosts; h++)
		start(h);
}

// ---- daemons come and go ----

void Cluster::strike(Strike how, uint64_t at, HostId other)
{
	how_ = how;
	log->fault = how == Strike::before ? Fault::killed_before : how == Strike::after || how == Strike::all ? Fault::killed_after : Fault::none;
	log->fault_at = log->fault == Fault::none ? 0 : log->steps + at;
	other_at_ = log->steps + at;
	other_ = other;
}

void Cluster::start(HostId host)
{
	restart_ms_.erase(host);
	at(host).start_daemon();
}

void Cluster::kill(HostId host, uint64_t away_ms)
{
	at(host).kill_daemon();
	lives_[host]++;
	restart_ms_[host] = log->now_ms + away_ms;
	if (host == leader_)
		leader_ = 0;
}

void Cluster::killed(HostId host)
{
	if (how_ != Strike::all) {
		kill(host, how_ == Strike::after ? AWAY_MS : 0);
		return;
	}
	for (const auto &[h, w] : worlds_)
		if (!w->killed())
			kill(h, 0);
}

void Cluster::power_off(HostId host)
{
	FakeWorld &w = at(host);
	w.kill_daemon();
	lives_[host]++;
	w.volumes.clear();
	w.peers.clear();
	off_.insert(host);
	if (host == leader_)
		leader_ = 0;
}

// ---- what is done ----

nlohmann::json applied(FakeLog &log, nlohmann::json entry)
{
	entry["level"] = level_of(entry);
	return apply(log.state, ++log.index, entry);
}

Result<nlohmann::json> Cluster::ask(Json entry)
{
	const std::function<Result<Json>(FakeWorld &)> step = [&](FakeWorld &w) {
		return w.effect<Result<Json>>("asked for " + entry["op"].get<std::string>(), [&]() -> Result<Json> { return applied(*log, entry); });
	};
	Result<Result<Json>> answer = does(asked, step);
	if (!answer)
		return answer.error();
	if (Done done = outcome(*answer); !done) {
		refusals.push_back(done.error().message);
		return done.error();
	}
	return *answer;
}

bool Cluster::waits(const std::function<bool()> &done, uint64_t ms)
{
	const unsigned life = lives_[asked];
	bool reached = false;
	run_until([&] { return lives_[asked] != life || (reached = done()); }, ms);
	return reached && lives_[asked] == life;
}

void Cluster::notice()
{
	while (noticed_ != state.applied) {
		noticed_ = state.applied;
		if (std::string broken = check(state); !broken.empty())
			broken_.push_back(broken);
		for (const auto &[h, w] : worlds_)
			if (!w->killed() && (w->removed || !state.host(h))) {
				w->kill_daemon();
				lives_[h]++;
			} else if (!w->killed()) {
				w->daemon().look();
			}
		lead();
	}
}

bool Cluster::turn()
{
	bool any = false;
	for (const auto &[h, w] : worlds_)
		any |= w->step();
	notice();
	return any;
}

bool Cluster::run_until(const std::function<bool()> &done, uint64_t ms)
{
	const uint64_t end = log->now_ms + ms;
	for (;;) {
		notice();
		for (unsigned turns = 0; !done() && turn(); turns++)
			if (turns > 100'000)
				throw std::runtime_error("the hosts do not come to rest");
		if (done())
			return true;
		if (log->now_ms >= end)
			return false;
		log->now_ms += TURN_MS;
		for (const auto &[h, due_ms] : std::map(restart_ms_))
			if (due_ms <= log->now_ms && state.host(h))
				start(h);
		for (const auto &[h, w] : worlds_) {
			if (!off_.contains(h))
				w->move_on();
			if (!w->killed())
				w->daemon().tick();
		}
		play_kernels();
		if (log->now_ms % 300 == 0)
			lead();
	}
}

bool Cluster::idle()
{
	for (const auto &[sid, s] : state.snapshots)
		if (s.temporary)
			return false;
	for (const auto &[h, w] : worlds_)
		if (w->killed() && state.host(h) && !off_.contains(h))
			return false;
	return true;
}

bool Cluster::settles()
{
	uint64_t steps = log->steps, since_ms = log->now_ms;
	return run_until(
		[&] {
			if (steps != log->steps || !idle()) {
				steps = log->steps;
				since_ms = log->now_ms;
			}
			return log->now_ms - since_ms >= QUIET_MS;
		},
		300'000);
}

// ---- the leader ----

void Cluster::lead()
{
	if (leader_ && !up(leader_))
		leader_ = 0;
	if (!leader_) {
		for (const auto &[h, w] : worlds_)
			if (!leader_ && !w->killed())
				leader_ = h;
		life_clock_.forget();
		decisions_ = std::make_unique<Decisions>(
			[this](Json entry, std::function<void(Result<Json>)> done) {
				const HostId who = leader_;
				if (!who)
					return done(failed("the leader has died"));
				const std::function<Result<Json>(FakeWorld &)> step = [&](FakeWorld &w) {
					return w.effect<Result<Json>>("decides " + entry["op"].get<std::string>(),
								      [&]() -> Result<Json> { return applied(*log, entry); });
				};
				Result<Result<Json>> answer = does(who, step);
				if (!answer)
					return done(answer.error());
				const Done carried_out = outcome(*answer);
				done(carried_out ? *answer : Result<Json>(carried_out.error()));
			},
			[](const std::string &) {});
	}
	if (!leader_)
		return;
	std::map<HostId, Liveness> alive;
	for (const auto &[h, w] : worlds_)
		alive[h] = {!off_.contains(h), log->now_ms};
	std::vector<Json> decided = decide(state, alive, log->now_ms);
	if (Json elapsed = life_clock_.look(state, log->now_ms); !elapsed.is_null())
		decided.push_back(std::move(elapsed));
	decisions_->propose(std::move(decided), log->now_ms, [] {});
}

// ---- what kernels and guests do ----

FakeLv *Cluster::replica_lv(const Volume &v, HostId host)
{
	auto lv = at(host).lvs.find(replica_lv_path("vg", v.vid));
	return lv == at(host).lvs.end() ? nullptr : &lv->second;
}

bool Cluster::takes_part(HostId host, uint32_t vid)
{
	const auto k = at(host).volumes.find(vid);
	return !off_.contains(host) && k != at(host).volumes.end() && k->second.replica && k->second.replica->admitted && replica_lv(*state.volume(vid), host);
}

void Cluster::play_kernels()
{
	for (const auto &[vid, v] : state.volumes) {
		if (v.phase != Phase::ready || !v.primary || !takes_part(v.primary, vid) || at(v.primary).volumes.at(vid).role != LKS_ACTIVE)
			continue;
		play_writer(v);
		if (up(v.primary))
			play_resync(v);
	}
}

// A write is done when all members have it; a replica that is being resynced gets it, too.
void Cluster::play_writer(const Volume &v)
{
	if (v.openers.empty() || at(v.primary).volumes.at(v.vid).hold)
		return;
	for (const Replica &r : v.replicas)
		if (r.in_sync() && !takes_part(r.host, v.vid))
			return;
	written_[v.vid] = "w" + std::to_string(++writes_);
	for (const Replica &r : v.replicas)
		if (takes_part(r.host, v.vid))
			replica_lv(v, r.host)->data = written_[v.vid];
}

void Cluster::play_resync(const Volume &v)
{
	KernelEvent e;
	e.kind = LKS_CMD_EV_PROPOSE;
	e.vid = v.vid;
	e.record = to_record(v);
	e.record->version++;
	bool joins = false;
	for (unsigned i = 0; i < e.record->nreplicas; i++) {
		lks_record_replica &r = e.record->replicas[i];
		const bool behind = r.state == LKS_REPLICA_STALE || r.state == LKS_REPLICA_SUSPECT;
		if (!behind || !v.replica(r.host)->created || !takes_part(r.host, v.vid))
			continue;
		replica_lv(v, r.host)->data = replica_lv(v, v.primary)->data;
		r.state = LKS_REPLICA_INSYNC;
		joins = true;
	}
	if (joins)
		at(v.primary).daemon().kernel_event(e);
}

void Cluster::open(HostId host, const std::string &name)
{
	KernelVolume &k = at(host).volumes.at(vid(name));
	k.open_waiters = 1;
	KernelEvent e;
	e.kind = LKS_CMD_EV_OPEN;
	e.vid = k.vid;
	if (up(host))
		at(host).daemon().kernel_event(e);
}

void Cluster::close(HostId host, const std::string &name)
{
	KernelVolume &k = at(host).volumes.at(vid(name));
	KernelEvent e;
	e.kind = LKS_CMD_EV_CLOSE;
	e.vid = k.vid;
	const Opener *mine = volume(name).opener(host);
	e.session = k.session_ended = std::max(k.session_ended, mine ? mine->session : 0);
	k.openers = k.writers = k.open_waiters = 0;
	if (up(host))
		at(host).daemon().kernel_event(e);
}

// ---- how it ended ----

// Contents have serial numbers, which are others in each run.
std::string Cluster::label(const std::string &data, uint32_t vid)
{
	for (const auto &[sid, s] : state.snapshots)
		for (const SnapshotCopy &c : s.copies)
			if (auto lv = at(c.host).lvs.find(snapshot_lv_path({"vg", true, s.vid, sid, s.attempt, s.uuid, 0}));
			    lv != at(c.host).lvs.end() && lv->second.data == data && !data.empty())
				return "as snapshot " + s.name;
	if (auto last = written_.find(vid); last != written_.end() && last->second == data)
		return "as written last";
	return data.starts_with("w") ? "as written some time" : data;
}

nlohmann::json Cluster::picture()
{
	Json p = Json::object();
	for (const auto &[id, h] : state.hosts)
		p["hosts"][h.name] = {h.online, h.evicted, h.evacuating, h.removing};
	for (const auto &[key, pool] : state.pools)
		p["pools"][pool.name + " on " + state.host_name(pool.host)] = {to_string(pool.kind), pool.vg, pool.thin_lv, pool.mending};
	for (const auto &[name, g] : state.groups)
		p["groups"][name] = {g.pool, g.redundancy, g.labels};
	for (const auto &[vid, v] : state.volumes) {
		Json x = {{"size", v.size_bytes}, {"phase", to_string(v.phase)}, {"redundancy", v.redundancy}, {"group", v.group}, {"labels", v.labels},
			  {"growing", v.grow_bytes}, {"source", v.source}, {"remnants", v.remnants.size()}, {"chosen", v.chosen_primary}};
		for (const Replica &r : v.replicas) {
			const FakeLv *lv = replica_lv(v, r.host);
			x["replicas"][state.host_name(r.host)] = {to_string(r.state), r.created, r.leaving, r.md_offset, r.next_offset, r.wipe,
								  lv ? lv->lv.size_bytes : 0, label(lv ? lv->data : "gone", vid)};
		}
		for (const Opener &o : v.openers) {
			x["openers"].push_back(state.host_name(o.host));
			x["primary"] = state.host_name(v.primary);
		}
		p["volumes"][v.name] = x;
	}
	for (const auto &[sid, s] : state.snapshots) {
		Json x = {{"phase", to_string(s.phase)}, {"size", s.size_bytes}, {"going", s.going.size()}, {"arriving", s.arriving.size()}};
		for (const SnapshotCopy &c : s.copies)
			x["copies"].push_back(state.host_name(c.host));
		p["snapshots"][s.volume + " " + s.name] = x;
	}
	for (const auto &[h, w] : worlds_)
		for (const auto &[path, disk] : w->disks)
			p["disks"][std::to_string(h)][path] = {disk.leaving, disk.used_bytes};
	for (const auto &[h, w] : worlds_)
		for (const auto &[path, lv] : w->lvs)
			if (lv.lv.is_thin_pool)
				p["thin pools"][std::to_string(h)][path] = lv.lv.size_bytes;
	return p;
}

void Cluster::wrong_on(HostId host, FakeWorld &w, std::vector<std::string> &list)
{
	const auto add = [&](const std::string &what) { list.push_back("host " + std::to_string(host) + ": " + what); };
	const bool member = state.host(host);
	for (const std::string &v : w.violations)
		add(v);
	if (off_.contains(host))
		return;
	if (member && w.killed())
		add("its daemon is dead");
	for (const Problem &p : member && !w.killed() ? w.daemon().problems() : std::vector<Problem>())
		add(p.message);
	std::map<std::string, std::string> left;    // LVs, by path
	for (const auto &[path, lv] : w.lvs)
		if (!lv.lv.is_thin_pool)
			left[path] = lv.lv.name;
	for (const auto &[vid, v] : member ? state.volumes : std::map<uint32_t, Volume>()) {
		const Replica *r = v.replica(host);
		const auto k = w.volumes.find(vid);
		const FakeLv *lv = replica_lv(v, host);
		if (k == w.volumes.end() || !k->second.has_device || !v.devices.contains(host)) {
			add("no device of " + v.name);
			continue;
		}
		if (k->second.hold || k->second.handover_to || k->second.open_waiters || k->second.noted_version != v.version || k->second.size_bytes != v.size_bytes)
			add("the kernel's " + v.name + " is not at rest, or not as the record");
		if (bool(r) != bool(k->second.replica))
			add("the kernel has a replica of " + v.name + " that the record has not, or the other way round");
		if (!r)
			continue;
		if (!lv || !lv->formatted || lv->lv.tags.empty() || lv->lv.tags[0] != replica_lv_tag(v.uuid))
			add("no logical volume for " + v.name);
		else if (k->second.replica && (!k->second.replica->admitted || k->second.replica->offset != r->md_offset || k->second.replica->move_offset))
			add("the replica of " + v.name + " takes no part");
		else if (r->clean() && v.replicas[0].clean() && replica_lv(v, v.replicas[0].host) && lv->data != replica_lv(v, v.replicas[0].host)->data)
			add("the replica of " + v.name + " is another than the first one");
		left.erase(replica_lv_path("vg", vid));
	}
	for (const auto &[sid, s] : member ? state.snapshots : std::map<uint32_t, Snapshot>()) {
		const std::string path = snapshot_lv_path({"vg", true, s.vid, sid, s.attempt, s.uuid, 0});
		if (!s.copy(host))
			continue;
		if (!w.lvs.contains(path))
			add("no copy of snapshot " + s.name);
		else if (FakeWorld &first = at(s.copies[0].host); first.lvs.contains(path) && w.lvs.at(path).data != first.lvs.at(path).data)
			add("the copy of snapshot " + s.name + " is of another point");
		left.erase(path);
	}
	for (const auto &[path, name] : left)
		add("left over: " + name);
	for (const auto &[uuid, path] : w.labels)
		add("LVM's label is left on " + path);
	for (const auto &[name, group] : w.groups)
		if (!group.departed.empty() || !group.grows_after.empty())
			add("a mark is left on volume group " + name);
	for (const auto &[vid, k] : w.volumes)
		if (!member || !state.volume(vid))
			add("left over in the kernel: volume " + std::to_string(vid));
	for (const auto &[id, h] : member ? state.hosts : std::map<HostId, Host>())
		if (id != host && !w.peers.contains(id))
			add("no peer " + h.name);
	for (uint8_t peer : member ? w.peers : std::set<uint8_t>())
		if (!state.host(peer))
			add("left over: peer " + std::to_string(peer));
}

std::vector<std::string> Cluster::wrong()
{
	std::vector<std::string> list = broken_;
	for (const auto &[h, w] : worlds_)
		wrong_on(h, *w, list);
	return list;
}

}    // namespace lockstep::test
