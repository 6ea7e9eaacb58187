// SPDX-License-Identifier: GPL-2.0-or-later
//
// The life of a volume's replicas: added, made, leaving, removed, purged; see the table in state.h and repair.h.
//
// A new replica enters the record stale and empty before anything of it exists: from then on its primary knows that it misses
// everything. It counts for nothing until the primary has resynced it and proposes it as a member. A replica goes the other
// way round: out of the record first, and what its host has left of it (a remnant) is removed afterwards, however long that
// host is away. While there is a remnant the host gets no new replica of the volume, so two lives never meet on one disk.
//
// A replica is renewed (replica.invalidate: all it holds is thrown away) by going both ways: out of the record, removed by its host, and
// in the same entry that says so back as a new one. So a primary never takes what the old one held for the new one's.
//
// What is enforced here whoever asks: the primary is never removed, nor the last good copy, nor a good copy while there are
// fewer others than the redundancy.
#include "lockstepd/cluster/internal.h"
#include "lockstepd/cluster/repair.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

const Volume &ready_volume(const State &state, const Fields &f)
{
	const Volume &v = volume_of(state, f);
	if (v.phase != Phase::ready)
		refuse(forbidden("volume " + v.name + " is " + (v.phase == Phase::creating ? "still being created" : "being deleted")));
	if (f.has("version") && f.number("version") != v.version)
		refuse(forbidden("volume " + v.name + ": its record is at version " + std::to_string(v.version) + ", the change was made for " +
				 std::to_string(f.number("version"))));
	return v;
}

const Replica &replica_at(const State &state, const Volume &v, HostId host)
{
	const Replica *r = v.replica(host);
	if (!r)
		refuse(coded("no-such-replica", not_found("volume " + v.name + " has no replica on host " + state.host_name(host))));
	return *r;
}

void refuse_pinned(const State &state, const Volume &v, HostId host)
{
	if (v.replica(host)->pinned)
		refuse(forbidden("volume " + v.name + ": its replica on host " + state.host_name(host) + " is pinned: unpin it first, with `lockstep volume "
				 "replica unpin " + v.name + " " + state.host_name(host) + "`"));
}

// Adds the replica to the copy; the version is one further already.
HostId add_to(const State &state, Volume &next, const Fields &f, bool asked, bool pinned = false)
{
	Wanted w = one_more(state, next);
	if (f.has("host"))
		w.hosts = {host_of(state, f).id};
	if (next.grow_bytes)
		refuse(forbidden("volume " + next.name + " is growing: wait until it has"));
	if (next.replicas.size() >= LKS_MAX_REPLICAS)
		refuse(forbidden("volume " + next.name + " has " + std::to_string(next.replicas.size()) + " replicas, there cannot be more"));
	HostId host = place(state, w).at(0);
	Replica r;
	r.host = host;
	r.state = ReplicaState::stale;
	r.since = r.added = next.version;
	r.pool = w.pool;
	r.md_offset = next.size_bytes;
	r.asked = asked;
	r.pinned = pinned;
	next.replicas.insert(std::find_if(next.replicas.begin(), next.replicas.end(), [&](const Replica &x) { return x.host > host; }), r);
	return host;
}

json replica_add(State &state, const Fields &f)
{
	Volume next = ready_volume(state, f);
	bool asked = f.has("asked") && f.flag("asked");
	if (asked && next.redundancy >= LKS_MAX_REPLICAS)
		refuse(forbidden("volume " + next.name + ": its redundancy is " + std::to_string(next.redundancy) + " already, the highest there is"));
	next.version++;
	next.redundancy += asked;
	json answer = done();
	answer["host"] = add_to(state, next, f, asked);
	replace(state, std::move(next));
	return answer;
}

json replica_move(State &state, const Fields &f)
{
	Volume next = ready_volume(state, f);
	HostId from = f.host("from");
	if (replica_at(state, next, from).leaving)
		refuse(forbidden("volume " + next.name + ": its replica on host " + state.host_name(from) + " is leaving already"));
	refuse_pinned(state, next, from);
	next.version++;
	json answer = done();
	next.replica(from)->leaving = true;    // rules do not count it any more
	HostId to = add_to(state, next, f, false);
	next.replica(to)->instead_of = from;
	answer["host"] = to;
	replace(state, std::move(next));
	return answer;
}

json replica_leave(State &state, const Fields &f)
{
	Volume next = ready_volume(state, f);
	HostId host = f.host();
	const Replica &r = replica_at(state, next, host);
	bool lower = f.has("lower") && f.flag("lower");
	if (r.leaving)
		return done(false);
	refuse_pinned(state, next, host);
	if (lower && next.redundancy == 1)
		refuse(forbidden("volume " + next.name + ": its redundancy is 1: move its replica, or delete the volume"));
	bool another = std::any_of(next.replicas.begin(), next.replicas.end(), [&](const Replica &x) { return x.host != host && x.clean(); });
	if (!another)
		refuse(forbidden("volume " + next.name + ": no other replica than that on host " + state.host_name(host) +
				 " is in sync: wait until one is, see `lockstep status " + next.name + "`"));
	next.replica(host)->leaving = true;
	next.redundancy -= lower;
	replace(state, std::move(next));
	return done();
}

json replica_stay(State &state, const Fields &f)
{
	Volume next = ready_volume(state, f);
	bool changed = replica_at(state, next, f.host()).leaving;
	next.replica(f.host())->leaving = false;
	replace(state, std::move(next));
	return done(changed);
}

}    // namespace

std::string bound(const State &state, const Volume &v, HostId host)
{
	if (v.grow_bytes)
		return "the volume is growing";
	for (const auto &[sid, s] : state.snapshots) {
		if (s.vid != v.vid)
			continue;
		if (s.in_progress())
			return "snapshot " + s.name + " is being taken";
		const SnapshotCopy *c = s.trace(host);
		const Pool *pool = c ? state.pool(c->pool, c->host) : nullptr;
		if (pool && pool->kind == PoolKind::thick)
			return "snapshot " + s.name + " in a thick pool cannot outlive it: delete that first";
	}
	return {};
}

void move_to_remnants(Volume &next, HostId host)
{
	const Replica r = *next.replica(host);
	std::erase_if(next.replicas, [&](const Replica &x) { return x.host == host; });
	auto at = std::find_if(next.remnants.begin(), next.remnants.end(), [&](const Remnant &x) { return x.host > host; });
	next.remnants.insert(at, {host, r.pool, r.md_offset, replica_bytes(next, r), false, false});
}

namespace {

json replica_remove(State &state, const Fields &f)
{
	Volume next = ready_volume(state, f);
	HostId host = f.host();
	const Replica r = replica_at(state, next, host);
	const std::string its = "volume " + next.name + ": its replica on host " + state.host_name(host);
	if (next.primary == host)
		refuse(forbidden(its + " is the primary"));
	if (r.pinned && wanted(state, r))
		refuse(forbidden(its + " is pinned"));
	if (std::string why = bound(state, next, host); !why.empty())
		refuse(forbidden(its + " cannot go: " + why));
	size_t good = 0, wanted_good = 0;
	for (const Replica &x : next.replicas)
		if (x.host != host && x.clean()) {
			good++;
			wanted_good += wanted(state, x);
		}
	if (!good)
		refuse(forbidden(its + " cannot go: no other one is in sync"));
	if (r.clean() && wanted_good < next.redundancy)
		refuse(forbidden(its + " cannot go: of the others " + std::to_string(wanted_good) + " of " + std::to_string(next.redundancy) +
				 " are in sync"));
	next.version++;
	move_to_remnants(next, host);
	replace(state, std::move(next));
	return done();
}

json replica_invalidate(State &state, const Fields &f)
{
	const Volume before = ready_volume(state, f);
	const HostId host = host_of(state, f).id;
	if (const Remnant *left = before.remnant(host); left && left->renew)
		return done(false);
	const Replica &r = replica_at(state, before, host);
	if (!r.created)
		return done(false);    // it is new and empty as it is
	const std::string its = "volume " + before.name + ": its replica on host " + state.host_name(host);
	if (before.primary == host)
		refuse(forbidden(its + " serves it and cannot be thrown away: run `lockstep primary " + before.name + " HOST` with another host first"));
	if (!wanted(state, r))
		refuse(forbidden(its + " is about to go anyway: see `lockstep status " + before.name + "`"));
	if (!state.online(host))
		refuse(coded("host-offline", forbidden(its + " cannot be made anew: that host is offline: bring it back first")));
	if (std::string why = bound(state, before, host); !why.empty())
		refuse(forbidden(its + " cannot go: " + why));
	const bool another = std::any_of(before.replicas.begin(), before.replicas.end(),
					 [&](const Replica &x) { return x.host != host && x.clean() && state.online(x.host) && wanted(state, x); });
	if (!another)
		refuse(forbidden(its + " cannot be thrown away: no other one is in sync and online: see `lockstep status " + before.name + "`"));
	// As if it were gone already: if a new one could not be made there, the old one stays.
	Volume next = before;
	std::erase_if(next.replicas, [&](const Replica &x) { return x.host == host; });
	Wanted w = one_more(state, next);
	w.hosts = {host};
	replace(state, next);
	try {
		place(state, w);
	} catch (const Refusal &) {
		replace(state, before);
		throw;
	}
	next = before;
	next.version++;
	next.shunned.erase(host);
	move_to_remnants(next, host);
	for (Remnant &x : next.remnants)
		if (x.host == host) {
			x.renew = true;
			x.pinned = r.pinned;
		}
	replace(state, std::move(next));
	return done();
}

// The host has removed a replica that was to be made anew. If there is no place for it after all, repair finds another one.
void make_anew(State &state, const Fields &f, const Volume &v, bool pinned)
{
	const auto have = size_t(std::count_if(v.replicas.begin(), v.replicas.end(), [&](const Replica &r) { return wanted(state, r); }));
	if (v.phase != Phase::ready || have >= v.redundancy)
		return;
	try {
		Volume next = v;
		next.version++;
		add_to(state, next, f, false, pinned);
		replace(state, std::move(next));
	} catch (const Refusal &) {
	}
}

json replica_purged(State &state, const Fields &f)
{
	HostId host = host_of(state, f).id;
	uint32_t vid = uint32_t(f.number("vid", UINT32_MAX));
	if (!state.volume(vid))
		return done(false);
	Volume next = *state.volume(vid);
	if (next.phase == Phase::deleting)
		refuse(forbidden("volume " + next.name + " is being deleted: replica.deleted tells that all of it is gone"));
	const Remnant *left = next.remnant(host);
	const bool changed = left, renew = left && left->renew, pinned = left && left->pinned;
	std::erase_if(next.remnants, [&](const Remnant &r) { return r.host == host; });
	replace(state, next);
	if (renew)
		make_anew(state, f, next, pinned);
	return done(changed);
}

json volume_redundancy(State &state, const Fields &f)
{
	Volume next = ready_volume(state, f);
	auto redundancy = unsigned(f.number("redundancy", UINT32_MAX));
	if (redundancy < 1 || redundancy > LKS_MAX_REPLICAS)
		refuse(usage_error("volume " + next.name + ": its redundancy must be 1 to " + std::to_string(LKS_MAX_REPLICAS)));
	bool changed = next.redundancy != redundancy;
	if (redundancy > next.redundancy) {
		auto have = size_t(std::count_if(next.replicas.begin(), next.replicas.end(), [&](const Replica &r) { return wanted(state, r); }));
		if (have < redundancy) {
			Wanted w = one_more(state, next);
			w.redundancy = redundancy - unsigned(have);
			place(state, w);    // refuses if there is no room: better now than half done
		}
	}
	next.redundancy = redundancy;
	next.shunned.clear();
	changed = changed || next != *state.volume(next.vid);
	replace(state, std::move(next));
	return done(changed);
}

}    // namespace

void take_back(State &state, const Volume &v, HostId host, const std::string &message)
{
	Volume next = v;
	const Replica r = *v.replica(host);
	next.version++;
	if (r.asked && next.redundancy > 1)
		next.redundancy--;
	if (Replica *old = next.replica(r.instead_of))
		old->leaving = false;
	move_to_remnants(next, host);
	next.shunned.insert(host);
	remember_failure(state, v, message);
	replace(state, std::move(next));
}

Command replica_command(const std::string &op)
{
	static const std::map<std::string, Command> commands = {
		{"volume.redundancy", volume_redundancy}, {"replica.add", replica_add},       {"replica.move", replica_move},
		{"replica.leave", replica_leave},         {"replica.stay", replica_stay},     {"replica.remove", replica_remove},
		{"replica.purged", replica_purged},       {"replica.invalidate", replica_invalidate},
		{"replica.pin", replica_pin},             {"volume.rules", volume_rules},
	};
	auto it = commands.find(op);
	return it == commands.end() ? nullptr : it->second;
}

}    // namespace lockstep::cluster
