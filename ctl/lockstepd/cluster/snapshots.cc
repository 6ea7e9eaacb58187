// SPDX-License-Identifier: GPL-2.0-or-later
//
// Snapshots: what is agreed on them.
//
// A snapshot is a set of LVs, one on each host whose replica was in sync, all of one point in the order of writes. Several
// volumes taken together form a set with one such point. Taking a set is one transaction of four phases and an end:
//
//   preparing   every host whose replica is in sync does what takes time and      snapshot.prepared, for each copy
//               needs no hold: LVM's part. What its LV has by then is of no use.
//               Skipped without "prepare"
//   quiescing   the hosts that serve the volumes hold writes back and drain           snapshot.held, for each volume
//   taking      all volumes hold still: every member's host snapshots its LV          snapshot.taken, for each copy
//   resuming    all copies are there: the hosts let writes go on. The kernel says     snapshot.resumed, for each volume
//               whether the hold was unbroken until now; only then the copies count
//   ready
//
// Writes wait from quiescing to resuming. Within, a host that has prepared asks device-mapper alone, not LVM, which takes a hundred times as long.
// Hosts whose replica is in sync only when all have prepared get no copy; one whose replica is not any more breaks the attempt.
// A hold is a lease: the kernel ends it by itself. So a set that takes too long, whose primary changes, or that waits for a host that is
// offline, is broken (snapshot.broken): its LVs are removed (discarding) and it is tried once more, then given up with a reason.
// No hold is ever begun anew under a number that the log has: the number stands for one unbroken time of one kernel.
//
//  op                 fields (o: optional)                     answer beside ok; meaning
//  -----------------  ---------------------------------------  ------------------------------------------------------------
//  snapshot.create    name vids[] uuids[] now_ms reserve(o)    set sids[]. labels of each. reserve: percent of the size that a copy in a thick pool
//                     labels(o) temporary(o) keep(o)           may come to differ by, 1..100, default 20. keep: as many copies as the volume is to
//                     prepare(o)                               have, for ever; without it two
//  snapshot.label     sid | volume name; labels                changed
//  snapshot.deadline  set at_ms                                the leader's: until when it may take. Idempotent
//  snapshot.prepared  sid host attempt
//  snapshot.held      sid host attempt hold                    the primary's host
//  snapshot.taken     sid host attempt allocated(o)            allocated: bytes that it takes of a thin pool
//  snapshot.resumed   sid host attempt
//  snapshot.broken    set attempt message final(o)             from anybody; final: no second try. Idempotent
//  snapshot.abandon   set                                      the leader's: a set that is being discarded where only hosts are left that are offline
//                                                              ends; they remove what they have when they are back. Idempotent
//  snapshot.removed   sid host                                 this host has no LV of it any more. Idempotent
//  snapshot.delete    sid | volume name                        sid. Any order. Idempotent
//  snapshot.restore   sid | volume name(o: of the snapshot);   vid minor hosts. A new volume with the snapshot's content, created
//                     new uuid group(o) labels(o)              like an empty one (phase creating with a source)
//  snapshot.copy|copied|drop                                   see snapshot_copies.cc
//  snapshot.revert    sid onto(o: vid) without_failed(o)       vid. The volume, not open, gets the snapshot's content: it is back in
//                     in_place(o) past(o: sids) version(o)     phase creating with a source until all replicas have it. onto:
//                                                              another volume than the one it was taken of. without_failed: replicas
//                                                              whose disk has failed go, others are made in their place afterwards. in_place: also
//                                                              in thick pools, where each host copies from its snapshot what differs, and none
//                                                              goes: the copies of its snapshots would go with it. So where any replica is in a
//                                                              thick pool without_failed is not asked for without in_place. past: other
//                                                              snapshots of the volume, which each host with a thick pool has found room in for
//                                                              what is overwritten (host/revert.h). version: the record's before they
//                                                              were asked. Each open and close makes another, which is refused: what was
//                                                              written since, nobody has reckoned with
#include "lockstepd/cluster/internal.h"

#include "lib/units.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

constexpr unsigned TRIES = 2, MAX_SET = 64, RESERVE_PERCENT = 20, MAX_PAST = 10'000;
constexpr uint64_t LVM_EXTENT = 4ull << 20;

}    // namespace

std::string title(const Snapshot &s) { return "snapshot " + s.name + " of volume " + s.volume; }

Snapshot &snapshot_of(State &state, const Fields &f)
{
	uint32_t sid = uint32_t(f.number("sid", UINT32_MAX));
	auto it = state.snapshots.find(sid);
	if (it == state.snapshots.end())
		refuse(coded("no-such-snapshot", not_found("there is no snapshot with id " + std::to_string(sid))));
	return it->second;
}

namespace {

Snapshot &named(State &state, const Fields &f)
{
	if (f.has("sid"))
		return snapshot_of(state, f);
	std::string volume = f.text("volume"), name = f.text("name");
	const Snapshot *s = state.snapshot_named(volume, name);
	if (!s)
		refuse(coded("no-such-snapshot", not_found("volume " + volume + " has no snapshot named " + name)));
	return state.snapshots.at(s->sid);
}

std::vector<Snapshot *> set_of(State &state, uint32_t set)
{
	std::vector<Snapshot *> list;
	for (auto &[sid, s] : state.snapshots)
		if (s.set == set && s.phase != SnapshotPhase::deleting)
			list.push_back(&s);
	return list;
}

template <class Predicate>
bool all_of_set(State &state, uint32_t set, Predicate holds)
{
	std::vector<Snapshot *> list = set_of(state, set);
	return std::all_of(list.begin(), list.end(), [&](const Snapshot *s) { return holds(*s); });
}

// ---- taking --------------------------------------------------------------------------------------------------------

// Whole extents of LVM, at least two: one is for its own records.
uint64_t reserve_of(const Volume &v, unsigned percent)
{
	uint64_t bytes = v.size_bytes / 100 * percent;
	return std::max((bytes + LVM_EXTENT - 1) / LVM_EXTENT, uint64_t(2)) * LVM_EXTENT;
}

void refuse_unfit(const State &state, const Volume &v, const std::string &name, unsigned reserve_percent)
{
	if (v.phase != Phase::ready)
		refuse(forbidden("volume " + v.name + " is " + to_string(v.phase)));
	if (v.grow_bytes)
		refuse(forbidden("volume " + v.name + " is growing: take the snapshot when it has grown"));
	for (const auto &[sid, s] : state.snapshots) {
		if (s.volume == v.name && s.name == name)
			refuse(coded("name-taken", forbidden("volume " + v.name + " has a snapshot named " + name + " already" +
					 (s.phase == SnapshotPhase::ready ? "" : std::string(", which is ") + to_string(s.phase)) + ": choose another name")));
		if (s.vid == v.vid && (s.in_progress() || s.phase == SnapshotPhase::discarding))
			refuse(forbidden("volume " + v.name + ": another snapshot of it is being taken, " + s.name + ": wait for that"));
	}
	if (clean_and_online(state, v).empty())
		refuse(forbidden("volume " + v.name + " has no replica in sync that is online: nothing can be snapshotted"));
	uint64_t reserve = reserve_of(v, reserve_percent);
	for (const Replica &r : v.replicas)
		if (const Pool *pool = state.pool(r.pool, r.host); r.clean() && pool && pool->kind == PoolKind::thick)
			if (uint64_t room = pool_available(state, *pool); room < reserve)
				refuse(forbidden("volume " + v.name + ": pool " + r.pool + " on host " + state.host_name(r.host) + " has room for " +
						 format_bytes(room) + ", a snapshot needs " + format_bytes(reserve)));
}

// What is to be prepared. Without any there is nothing to wait for.
void begin_attempt(const State &state, Snapshot &s)
{
	s.phase = s.prepare ? SnapshotPhase::preparing : SnapshotPhase::quiescing;
	if (!s.prepare)
		return;
	const Volume &v = *state.volume(s.vid);
	for (const Replica &r : v.replicas)
		if (r.clean() && state.online(r.host))
			s.copies.push_back({r.host, r.pool, r.md_offset});
}

Snapshot make(const Volume &v, const std::string &name, unsigned reserve_percent, uint64_t now_ms)
{
	Snapshot s;
	s.name = name;
	s.vid = v.vid;
	s.volume_uuid = v.uuid;
	s.volume = v.name;
	s.group = v.group;
	s.size_bytes = v.size_bytes;
	s.block_size = v.block_size;
	s.created_ms = now_ms;
	s.reserve_bytes = reserve_of(v, reserve_percent);
	return s;
}

json create(State &state, const Fields &f)
{
	std::string name = f.name("name");
	std::vector<uint64_t> vids = f.numbers("vids", MAX_SET);
	std::vector<std::string> uuids = f.texts("uuids", MAX_SET);
	unsigned reserve = unsigned(f.number_or("reserve", RESERVE_PERCENT, 100));
	uint64_t now_ms = f.number("now_ms");
	if (uuids.size() != vids.size() || std::set<std::string>(uuids.begin(), uuids.end()).size() != uuids.size() ||
	    std::set<uint64_t>(vids.begin(), vids.end()).size() != vids.size())
		refuse(usage_error("snapshot " + name + ": name each volume once"));
	Labels labels;
	if (f.has("labels"))
		change_labels(labels, f.labels("labels"), "snapshot " + name);
	if (!reserve)
		refuse(usage_error("snapshot " + name + ": the reserve is 1 to 100 percent"));
	std::vector<Snapshot> made;
	for (size_t i = 0; i < vids.size(); i++) {
		const Volume *v = vids[i] <= UINT32_MAX ? state.volume(uint32_t(vids[i])) : nullptr;
		if (!v)
			refuse(coded("no-such-volume", not_found("there is no volume with vid " + std::to_string(vids[i]))));
		if (uuids[i].size() != 36)
			refuse(usage_error("\"" + uuids[i] + "\" is no UUID"));
		refuse_unfit(state, *v, name, reserve);
		made.push_back(make(*v, name, reserve, now_ms));
		made.back().uuid = uuids[i];
		made.back().labels = labels;
		made.back().temporary = f.has("temporary") && f.flag("temporary");
		if (f.has("keep") && f.flag("keep"))
			made.back().redundancy = v->redundancy;
		made.back().prepare = f.has("prepare") && f.flag("prepare");
		begin_attempt(state, made.back());
		for (const auto &[sid, s] : state.snapshots)
			if (s.uuid == uuids[i])
				refuse(forbidden("snapshot " + name + ": its UUID belongs to " + title(s)));
	}
	if (UINT32_MAX - state.next_sid < made.size())
		refuse(forbidden("snapshot " + name + ": all snapshot ids have been used"));
	json answer = done(), sids = json::array();
	answer["set"] = state.next_sid;
	for (Snapshot &s : made) {
		s.set = answer["set"];
		s.sid = state.next_sid++;
		sids.push_back(s.sid);
		state.snapshots[s.sid] = std::move(s);
	}
	answer["sids"] = sids;
	return answer;
}

// An entry of a phase or an attempt that is over changes nothing: what is behind it has been settled otherwise.
bool outrun(const Snapshot &s, const Fields &f, SnapshotPhase phase)
{
	return s.phase != phase || s.attempt != f.number("attempt", UINT32_MAX);
}

json prepared(State &state, const Fields &f)
{
	Snapshot &s = snapshot_of(state, f);
	HostId host = host_of(state, f).id;
	if (outrun(s, f, SnapshotPhase::preparing))
		return done(false);
	auto copy = std::ranges::find(s.copies, host, &SnapshotCopy::host);
	if (copy == s.copies.end())
		refuse(not_found(title(s) + " has no copy on host " + state.host_name(host)));
	if (copy->prepared)
		return done(false);
	copy->prepared = true;
	if (all_of_set(state, s.set, [](const Snapshot &x) { return std::ranges::all_of(x.copies, &SnapshotCopy::prepared); }))
		for (Snapshot *x : set_of(state, s.set))
			x->phase = SnapshotPhase::quiescing;
	return done();
}

void retry_or_give_up(State &state, uint32_t set);

void break_attempt(Snapshot &s, const std::string &message, bool final)
{
	s.phase = SnapshotPhase::discarding;
	s.failure = message;
	s.last_try = final;
}

// That a copy was prepared beside this replica, and this one is whole.
bool still_good(const Volume &v, const SnapshotCopy &c)
{
	const Replica *r = v.replica(c.host);
	return r && r->clean() && r->pool == c.pool && r->md_offset == c.md_offset;
}

json held(State &state, const Fields &f)
{
	Snapshot &s = snapshot_of(state, f);
	HostId host = host_of(state, f).id;
	uint64_t hold = f.number("hold");
	if (outrun(s, f, SnapshotPhase::quiescing) || s.hold)
		return done(false);
	const Volume *v = state.volume(s.vid);
	if (!v || v->primary != host || !hold)
		refuse(forbidden(title(s) + ": host " + state.host_name(host) + " is not the primary"));
	// Of a volume whose last good copy is in doubt since it was held there is nothing to take. Older programs did not refuse this, so it is
	// refused when the log says that all are of level 8: they must make the same of an entry.
	const bool last = all_of_set(state, s.set, [&](const Snapshot &x) { return x.sid == s.sid || x.hold != 0; });
	if (last && state.level >= LEVEL_MEND)
		for (const Snapshot *x : set_of(state, s.set))
			if (std::ranges::none_of(state.volume(x->vid)->replicas, [](const Replica &r) { return r.clean(); }))
				refuse(forbidden(title(*x) + ": no replica of volume " + state.volume(x->vid)->name + " is in sync and certain"));
	s.holder = host;
	s.hold = hold;
	if (!last)
		return done();
	for (Snapshot *x : set_of(state, s.set))
		for (const SnapshotCopy &c : x->copies)
			if (!still_good(*state.volume(x->vid), c)) {
				const std::string why = title(*x) + " was given up: the replica on host " + state.host_name(c.host) +
							" went out of sync, or to another place, while it was prepared: try again";
				for (Snapshot *each : set_of(state, s.set))
					break_attempt(*each, why, false);
				retry_or_give_up(state, s.set);
				return done();
			}
	for (Snapshot *x : set_of(state, s.set)) {
		x->phase = SnapshotPhase::taking;
		if (x->prepare)
			continue;
		for (const Replica &r : state.volume(x->vid)->replicas)
			if (r.clean())
				x->copies.push_back({r.host, r.pool, r.md_offset, false});
	}
	return done();
}

json taken(State &state, const Fields &f)
{
	Snapshot &s = snapshot_of(state, f);
	HostId host = host_of(state, f).id;
	if (outrun(s, f, SnapshotPhase::taking))
		return done(false);
	auto copy = std::find_if(s.copies.begin(), s.copies.end(), [&](const SnapshotCopy &c) { return c.host == host; });
	if (copy == s.copies.end())
		refuse(not_found(title(s) + " has no copy on host " + state.host_name(host)));
	if (copy->taken)
		return done(false);
	copy->allocated_bytes = f.number_or("allocated", 0, 2 * MAX_VOLUME_BYTES);
	copy->taken = true;
	auto complete = [](const Snapshot &x) {
		return std::all_of(x.copies.begin(), x.copies.end(), [](const SnapshotCopy &c) { return c.taken; });
	};
	if (all_of_set(state, s.set, complete))
		for (Snapshot *x : set_of(state, s.set))
			x->phase = SnapshotPhase::resuming;
	return done();
}

json resumed(State &state, const Fields &f)
{
	Snapshot &s = snapshot_of(state, f);
	HostId host = host_of(state, f).id;
	if (outrun(s, f, SnapshotPhase::resuming) || s.resumed)
		return done(false);
	if (host != s.holder)
		refuse(forbidden(title(s) + ": host " + state.host_name(host) + " does not hold it"));
	s.resumed = true;
	if (all_of_set(state, s.set, [](const Snapshot &x) { return x.resumed; }))
		for (Snapshot *x : set_of(state, s.set))
			x->phase = SnapshotPhase::ready;
	return done();
}

void remember_failure(State &state, const Snapshot &s)
{
	state.snapshot_failures[s.set] = {s.name, s.failure, int(Status::failed)};
	while (state.snapshot_failures.size() > MAX_FAILURES)
		state.snapshot_failures.erase(state.snapshot_failures.begin());
}

// No LV of the set is left: it is tried again, or it was the last time.
void retry_or_give_up(State &state, uint32_t set)
{
	if (!all_of_set(state, set, [](const Snapshot &s) { return s.phase == SnapshotPhase::discarding && s.copies.empty(); }))
		return;
	for (Snapshot *s : set_of(state, set)) {
		const Volume *v = state.volume(s->vid);
		if (s->last_try || s->attempt >= TRIES || !v || v->phase != Phase::ready || v->grow_bytes || (s->prepare && clean_and_online(state, *v).empty())) {
			remember_failure(state, *s);
			for (Snapshot *x : set_of(state, set))
				state.snapshots.erase(x->sid);
			return;
		}
	}
	for (Snapshot *s : set_of(state, set)) {
		begin_attempt(state, *s);
		s->attempt++;
		s->holder = 0;
		s->hold = 0;
		s->resumed = false;
	}
}

}    // namespace

bool waits_for_offline(const State &state, uint32_t set)
{
	bool waits = false;
	for (const auto &[sid, s] : state.snapshots) {
		if (s.set != set || s.phase == SnapshotPhase::deleting)
			continue;
		if (s.phase != SnapshotPhase::discarding || std::ranges::any_of(s.copies, [&](const SnapshotCopy &c) { return state.online(c.host); }))
			return false;
		waits = true;
	}
	return waits;
}

void forget_copies(State &state, HostId host)
{
	std::set<uint32_t> sets, gone;
	for (auto &[sid, s] : state.snapshots) {
		if (!s.trace(host) && !(s.in_progress() && s.holder == host))
			continue;
		sets.insert(s.set);
		if (s.in_progress())
			for (Snapshot *x : set_of(state, s.set)) {
				x->phase = SnapshotPhase::discarding;
				x->last_try = true;
				x->failure = title(*x) + " was given up: host " + state.host_name(host) + " is lost";
			}
		for (auto *list : {&s.copies, &s.arriving, &s.going})
			std::erase_if(*list, [&](const SnapshotCopy &c) { return c.host == host; });
		if (s.copies.empty() && s.phase == SnapshotPhase::ready)
			all_copies_go(s);    // what is half copied is worth nothing now
		if (s.copies.empty() && s.phase != SnapshotPhase::discarding)
			gone.insert(sid);
	}
	for (uint32_t sid : gone)
		state.snapshots.erase(sid);
	for (uint32_t set : sets)
		retry_or_give_up(state, set);
}

namespace {

json deadline(State &state, const Fields &f)
{
	bool changed = false;
	uint64_t at_ms = f.number("at_ms");
	for (Snapshot *s : set_of(state, uint32_t(f.number("set", UINT32_MAX)))) {
		changed = changed || !s->deadline_ms;
		s->deadline_ms = s->deadline_ms ? s->deadline_ms : at_ms;
	}
	return done(changed);
}

json broken(State &state, const Fields &f)
{
	uint32_t set = uint32_t(f.number("set", UINT32_MAX));
	uint64_t attempt = f.number("attempt", UINT32_MAX);
	std::string message = f.message("message");
	bool final = f.has("final") && f.flag("final"), changed = false;
	for (Snapshot *s : set_of(state, set)) {
		if (!s->in_progress() || s->attempt != attempt)
			continue;
		break_attempt(*s, message, final);
		changed = true;
	}
	if (changed)
		retry_or_give_up(state, set);
	return done(changed);
}

// Whoever waits for the snapshot, and the next one of that volume, do not wait for a host that may never come back.
json abandon(State &state, const Fields &f)
{
	const uint32_t set = uint32_t(f.number("set", UINT32_MAX));
	if (!waits_for_offline(state, set))
		return done(false);
	const std::vector<Snapshot *> list = set_of(state, set);
	remember_failure(state, *list[0]);
	for (Snapshot *s : list) {
		s->phase = SnapshotPhase::deleting;
		if (s->copies.empty())
			state.snapshots.erase(s->sid);
	}
	return done();
}

// ---- going ---------------------------------------------------------------------------------------------------------

json removed(State &state, const Fields &f)
{
	HostId host = host_of(state, f).id;
	auto it = state.snapshots.find(uint32_t(f.number("sid", UINT32_MAX)));
	if (it == state.snapshots.end())
		return done(false);
	Snapshot &s = it->second;
	const auto there = [&](const SnapshotCopy &c) { return c.host == host; };
	if (s.phase == SnapshotPhase::ready && (std::ranges::any_of(s.going, there) || !s.trace(host)))
		return done(std::erase_if(s.going, there) > 0);
	if (s.phase != SnapshotPhase::discarding && s.phase != SnapshotPhase::deleting)
		refuse(forbidden(title(s) + " is not being removed"));
	bool changed = std::erase_if(s.copies, there) > 0;
	if (!s.copies.empty())
		return done(changed);
	if (s.phase == SnapshotPhase::deleting)
		state.snapshots.erase(it);
	else
		retry_or_give_up(state, s.set);
	return done(changed);
}

json label(State &state, const Fields &f)
{
	Snapshot next = named(state, f);
	bool changed = change_labels(next.labels, f.labels("labels"), title(next));
	state.snapshots.at(next.sid) = std::move(next);
	return done(changed);
}

json remove(State &state, const Fields &f)
{
	Snapshot &s = named(state, f);
	json answer = done(s.phase != SnapshotPhase::deleting);
	answer["sid"] = s.sid;
	if (s.in_progress() || s.phase == SnapshotPhase::discarding)
		refuse(forbidden(title(s) + " is still being taken: wait for that"));
	for (const auto &[vid, v] : state.volumes)
		if (v.source == s.sid && v.phase == Phase::creating)
			refuse(forbidden(title(s) + ": volume " + v.name + " is just being made from it: wait for that"));
	all_copies_go(s);
	return answer;
}

// ---- using ---------------------------------------------------------------------------------------------------------

void refuse_unready(const State &state, const Snapshot &s)
{
	if (s.phase != SnapshotPhase::ready)
		refuse(forbidden(title(s) + " is " + to_string(s.phase)));
	for (const SnapshotCopy &c : s.copies)
		if (state.online(c.host))
			return;
	refuse(forbidden(title(s) + ": no host that has a copy is online"));
}

void refuse_without_room(const State &state, const Snapshot &s, const SnapshotCopy &c)
{
	const Pool *pool = state.pool(c.pool, c.host);
	uint64_t needed = replica_bytes(s.size_bytes, s.block_size), room = pool ? pool_available(state, *pool) : 0;
	if (room < needed)
		refuse(forbidden(title(s) + " cannot be restored: pool " + c.pool + " on host " + state.host_name(c.host) + " has room for " +
				 format_bytes(room) + ", " + format_bytes(needed) + " needed"));
}

json restore(State &state, const Fields &f)
{
	const Snapshot s = named(state, f);
	std::string name = f.text("new"), uuid = f.uuid("uuid");
	if (!valid_volume_name(name))
		refuse(usage_error("\"" + name + "\" is no valid volume name: use up to 127 letters, digits, \".\", \"_\" and \"-\", beginning "
				   "with a letter or digit"));
	refuse_unready(state, s);
	if (state.volume_named(name))
		refuse(coded("name-taken", forbidden("there is a volume named " + name + " already: choose another name")));
	Volume v;
	v.minor = free_minor(state);
	if (state.next_vid == UINT32_MAX)
		refuse(forbidden("volume " + name + ": all volume ids have been used"));
	for (const auto &[vid, other] : state.volumes)
		if (other.uuid == uuid)
			refuse(forbidden("volume " + name + ": its UUID belongs to volume " + other.name));
	v.vid = state.next_vid;
	v.uuid = uuid;
	v.name = name;
	v.size_bytes = s.size_bytes;
	v.block_size = s.block_size;
	v.source = s.sid;
	v.group = f.has("group") ? group_of(state, f.name("group")).name : s.group;
	if (f.has("labels"))
		change_labels(v.labels, f.labels("labels"), "volume " + name);
	for (const SnapshotCopy &c : s.copies)
		if (state.online(c.host)) {
			refuse_without_room(state, s, c);
			v.replicas.push_back({.host = c.host, .since = v.version, .pool = c.pool, .md_offset = c.md_offset});
		}
	v.redundancy = unsigned(v.replicas.size());
	if (std::string wrong = check_volume(v); !wrong.empty())
		refuse(failed("volume " + name + ": " + wrong));
	json answer = done(), hosts = json::array();
	for (const Replica &r : v.replicas)
		hosts.push_back(r.host);
	answer["vid"] = v.vid;
	answer["minor"] = v.minor;
	answer["hosts"] = hosts;
	state.next_vid++;
	state.volumes[v.vid] = std::move(v);
	return answer;
}

}    // namespace

bool can_revert_without(const Volume &v, HostId host)
{
	return std::ranges::any_of(v.replicas, [&](const Replica &r) { return r.host != host && r.clean() && r.created; });
}

namespace {

// In a thick pool the LV of a replica stays, for its snapshots go with it, and what differs is copied back into it. What is overwritten there
// the snapshots keep in their reserves. That costs this one and all older ones nothing: whatever differs from this one was overwritten
// since, and is in their reserves already. Newer ones it fills. So it does one that was copied here, which has only what differed then. So
// such ones are refused but for those that their hosts have been asked about.
void refuse_in_place(const State &state, const Volume &v, const Replica &r, const Snapshot &s, const std::vector<uint64_t> &past)
{
	const std::string its = "volume " + v.name + " cannot be reverted: ", host = state.host_name(r.host);
	if (v.vid != s.vid)
		refuse(forbidden(its + "it is in a thick pool, where it can only get the content of its own snapshots: restore " + title(s) + " as a new volume"));
	if (!r.in_sync())
		refuse(forbidden(its + "its replica on host " + host + " is " + to_string(r.state) + ", and in a thick pool none is made anew for that: " +
				 (r.state == ReplicaState::failed ? "put another disk in its place with `lockstep disk replace`" : "wait until it is in sync")));
	const SnapshotCopy *copy = s.copy(r.host);
	if (!copy || copy->pool != r.pool || copy->md_offset != r.md_offset)
		refuse(forbidden(its + "host " + host + " has no copy of " + title(s) + " beside its replica: see `lockstep snapshot list`, or restore it as a new volume"));
	for (const auto &[sid, x] : state.snapshots) {
		const SnapshotCopy *c = x.vid == v.vid && sid != s.sid ? x.trace(r.host) : nullptr;
		if (c && (sid > s.sid || c->added) && !std::ranges::count(past, sid))
			refuse(forbidden(its + "it is in a thick pool and " + title(x) + " is newer, or was copied to host " + host +
					 ", and its reserve would be filled: delete it first, or restore " + title(s) + " as a new volume"));
	}
}

// A replica is made beside the copy that it gets its content from. In a thick pool that is done in place, so it has to be there already.
void refuse_other_pool(const State &state, const Volume &v, const Replica &r, const Snapshot &s)
{
	const SnapshotCopy *copy = s.copy(r.host);
	const Pool *pool = copy ? state.pool(copy->pool, r.host) : nullptr;
	if (pool && pool->kind == PoolKind::thick)
		refuse(forbidden("volume " + v.name + " cannot be reverted: on host " + state.host_name(r.host) + " the copy of " + title(s) + " is in thick pool " +
				 copy->pool + ", its replica in pool " + r.pool + ": restore the snapshot as a new volume"));
}

json revert(State &state, const Fields &f)
{
	const Snapshot s = named(state, f);
	refuse_unready(state, s);
	const Volume *v = state.volume(uint32_t(f.number_or("onto", s.vid, UINT32_MAX)));
	if (!v || v->phase == Phase::deleting)
		refuse(not_found(title(s) + ": that volume is gone; restore the snapshot as a new one"));
	if (v->vid != s.vid && (v->block_size != s.block_size || v->cls != LKS_EXCLUSIVE))
		refuse(forbidden("volume " + v->name + " cannot get the content of " + title(s) + ": it is shared, or its blocks have another size"));
	json answer = done(false);
	answer["vid"] = v->vid;
	if (v->phase == Phase::creating && v->source == s.sid)
		return answer;
	if (v->phase != Phase::ready || v->grow_bytes || state.snapshot_in_progress(v->vid))
		refuse(forbidden("volume " + v->name + " cannot be reverted now: it is " +
				 (v->phase != Phase::ready ? to_string(v->phase) : v->grow_bytes ? "growing" : "being snapshotted") + ", wait for that"));
	if (!v->openers.empty())
		refuse(coded("volume-open", forbidden("volume " + v->name + " is open on host " + state.host_name(v->openers[0].host) + ": close it there before reverting it")));
	if (f.has("version"))
		expect_version(*v, f.number("version"));
	if (v->size_bytes != s.size_bytes)
		refuse(forbidden("volume " + v->name + " has another size than " + title(s) + ": restore that as a new volume"));
	bool served = false;
	std::vector<HostId> going;
	const bool in_place = f.has("in_place") && f.flag("in_place");
	const std::vector<uint64_t> past = f.has("past") ? f.numbers("past", MAX_PAST) : std::vector<uint64_t>();
	for (const Replica &r : v->replicas) {
		const Pool *pool = state.pool(r.pool, r.host);
		const bool thick = pool && pool->kind == PoolKind::thick;
		if (r.state == ReplicaState::failed && f.has("without_failed") && f.flag("without_failed") && !(thick && in_place)) {
			going.push_back(r.host);
			continue;
		}
		if (thick && !in_place)
			refuse(forbidden("volume " + v->name + " is in a thick pool and cannot be reverted: restore " + title(s) + " as a new volume"));
		if (thick)
			refuse_in_place(state, *v, r, s, past);
		if (in_place && !thick)
			refuse_other_pool(state, *v, r, s);
		if (!state.online(r.host))
			refuse(coded("host-offline", forbidden("volume " + v->name + " cannot be reverted: host " + state.host_name(r.host) + " is offline: bring it back, or "
					 "remove its replica")));
		served = served || s.copy(r.host);
	}
	if (!served)
		refuse(forbidden("volume " + v->name + " has no replica on a host that has a copy of " + title(s) + ": restore that as a new volume"));
	Volume next = *v;
	next.version++;
	next.primary = 0;
	next.drained = false;
	next.phase = Phase::creating;
	next.source = s.sid;
	next.reverting = true;
	next.devices.clear();
	for (HostId host : going)
		move_to_remnants(next, host);
	for (Replica &r : next.replicas) {
		const SnapshotCopy *c = s.copy(r.host);
		r.created = false;
		r.state = c ? ReplicaState::insync : ReplicaState::stale;
		r.since = next.version;
		r.pool = c ? c->pool : r.pool;
		r.md_offset = c ? c->md_offset : next.size_bytes;
	}
	replace(state, std::move(next));
	answer["changed"] = true;
	return answer;
}

}    // namespace

void refuse_snapshots_in_the_way(const State &state, const Volume &v)
{
	for (const auto &[sid, s] : state.snapshots) {
		if (s.vid != v.vid)
			continue;
		if (s.in_progress() || s.phase == SnapshotPhase::discarding)
			refuse(forbidden("volume " + v.name + ": a snapshot of it is being taken, " + s.name + ": wait for that"));
		for (const auto *list : {&s.copies, &s.arriving, &s.going})
			for (const SnapshotCopy &c : *list)
				if (const Pool *pool = state.pool(c.pool, c.host); pool && pool->kind == PoolKind::thick)
					refuse(forbidden("volume " + v.name + " has snapshots in a thick pool, which cannot outlive it: delete them first, "
							 "such as " + s.name));
	}
}

void give_up_copies_beside(State &state, const Volume &v, HostId host)
{
	std::vector<uint32_t> going, dropped;
	for (const auto &[sid, s] : state.snapshots) {
		const SnapshotCopy *c = s.vid == v.vid ? s.trace(host) : nullptr;
		const Pool *pool = c ? state.pool(c->pool, host) : nullptr;
		if (!pool || pool->kind != PoolKind::thick || s.phase != SnapshotPhase::ready)
			continue;
		if (!s.copy(host)) {
			if (std::ranges::any_of(s.arriving, [&](const SnapshotCopy &x) { return x.host == host; }))
				dropped.push_back(sid);
			continue;
		}
		const std::string its = "volume " + v.name + ": its replica on host " + state.host_name(host) + " is kept: ";
		if (s.copies.size() == 1)
			refuse(forbidden(its + title(s) + " has its only copy beside it: delete it, and the replica is made elsewhere"));
		for (const auto &[vid, other] : state.volumes)
			if (vid != v.vid && other.source == sid && other.phase == Phase::creating && other.replica(host))
				refuse(forbidden(its + "volume " + other.name + " is being made from " + title(s) + " there: wait for that"));
		going.push_back(sid);
	}
	for (uint32_t sid : going)
		take_from(state.snapshots.at(sid).copies, host, state.snapshots.at(sid).going);
	for (uint32_t sid : dropped)
		take_from(state.snapshots.at(sid).arriving, host, state.snapshots.at(sid).going);
}

std::string check_snapshots(const State &state)
{
	std::set<std::pair<std::string, std::string>> names;
	std::set<std::string> uuids;
	for (const auto &[sid, s] : state.snapshots) {
		if (sid != s.sid || sid >= state.next_sid || s.set > sid || !s.set)
			return "snapshot id out of range";
		if (!uuids.insert(s.uuid).second || (s.phase != SnapshotPhase::deleting && !names.insert({s.volume, s.name}).second))
			return title(s) + ": twice";
		if (std::string wrong = check_copies(state, s); !wrong.empty())
			return title(s) + ": " + wrong;
		if (s.phase == SnapshotPhase::ready && (!s.resumed || std::any_of(s.copies.begin(), s.copies.end(), [](auto &c) { return !c.taken; })))
			return title(s) + ": ready without all copies, or after a hold that was broken";
		if (s.phase != SnapshotPhase::quiescing && s.phase != SnapshotPhase::discarding && s.copies.empty())
			return title(s) + ": of nothing";
		const Volume *v = state.volume(s.vid);
		if (s.in_progress() && (!v || v->phase != Phase::ready))
			return title(s) + ": in progress for a volume that is not ready";
	}
	for (const auto &[vid, v] : state.volumes)
		if (v.source && v.phase == Phase::creating && !state.snapshot(v.source))
			return "volume " + v.name + ": made from a snapshot that is gone";
	return {};
}

json apply_snapshot(State &state, const std::string &op, const Fields &f)
{
	static const std::map<std::string, json (*)(State &, const Fields &)> commands = {
		{"snapshot.create", create},   {"snapshot.prepared", prepared}, {"snapshot.held", held},       {"snapshot.taken", taken},   {"snapshot.resumed", resumed},
		{"snapshot.broken", broken},   {"snapshot.abandon", abandon}, {"snapshot.removed", removed}, {"snapshot.delete", remove}, {"snapshot.restore", restore},
		{"snapshot.revert", revert},   {"snapshot.label", label},     {"snapshot.deadline", deadline},
		{"snapshot.copy", snapshot_copy}, {"snapshot.copied", snapshot_copied}, {"snapshot.drop", snapshot_drop},
	};
	auto it = commands.find(op);
	if (it == commands.end())
		refuse(usage_error("unknown operation \"" + op + "\""));
	return it->second(state, f);
}

}    // namespace lockstep::cluster
