// SPDX-License-Identifier: GPL-2.0-or-later
//
// Growing a volume, online.
//
// The metadata stand right behind the data, so the data can only grow when they have moved (DESIGN section 5). What is agreed
// is this, and each step may be repeated or left by whoever dies:
//
//   volume.resize     every replica has a place further behind (next_offset), the pools can take it
//   replica.moved     one replica's host has extended its LV, and its metadata stand in both places: the new one counts (md_offset)
//   replica.grown     ... and where they stood there are zeros, for that becomes data
//   volume.grown      the leader, when all have: the volume has the new size
//
// After a crash a replica is attached where the log says that its metadata count; both places hold the same until then.
// A replica on a host that is away holds the growth up until that host is back or the replica is removed.
#include "lockstepd/cluster/internal.h"

#include "lib/units.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

void refuse_unfit(const State &state, const Volume &v)
{
	for (const Replica &r : v.replicas) {
		std::string where = "volume " + v.name + " cannot grow: ";
		if (!state.online(r.host))
			refuse(forbidden(where + "host " + state.host_name(r.host) + ", which has a replica of it, is offline: bring it back, or remove "
					 "that replica"));
		if (r.state == ReplicaState::failed)
			refuse(forbidden(where + "the disk of its replica on host " + state.host_name(r.host) + " has failed: replace it first"));
		if (!r.created)
			refuse(forbidden(where + "its replica on host " + state.host_name(r.host) + " is still being made"));
		const Pool *pool = state.pool(r.pool, r.host);
		if (!pool || pool->kind == PoolKind::thin)
			continue;
		// LVM resizes the origin of a classic snapshot only while it is not in use.
		for (const auto &[sid, s] : state.snapshots)
			if (s.vid == v.vid)
				refuse(forbidden(where + "it has snapshots in a thick pool: delete them first, such as " + s.name));
	}
	if (state.snapshot_in_progress(v.vid))
		refuse(forbidden("volume " + v.name + " cannot grow: a snapshot of it is being taken, wait for that"));
}

void refuse_full(const State &state, const Volume &now, const Volume &next)
{
	for (const Replica &r : next.replicas) {
		const Pool *pool = state.pool(r.pool, r.host);
		uint64_t more = replica_bytes(next, r) - replica_bytes(now, *now.replica(r.host));
		uint64_t room = pool ? pool_available(state, *pool) : 0;
		if (room < more)
			refuse(forbidden("volume " + next.name + " cannot grow to " + format_bytes(next.grow_bytes) + ": pool " + r.pool + " on host " +
					 state.host_name(r.host) + " has room for " + format_bytes(room) + ", " + format_bytes(more) + " more needed"));
	}
}

}    // namespace

json volume_resize(State &state, const Fields &f)
{
	const Volume &v = volume_named_or_vid(state, f);
	uint64_t size = f.number("size_bytes");
	json answer = done(false);
	answer["vid"] = v.vid;
	if (v.phase != Phase::ready)
		refuse(forbidden("volume " + v.name + " is " + to_string(v.phase)));
	if (size % 4096)
		refuse(usage_error("volume " + v.name + ": its size must be a multiple of 4096 bytes, " + std::to_string(size) + " is not"));
	if (size > MAX_VOLUME_BYTES)
		refuse(usage_error("volume " + v.name + ": its size is above the limit of " + format_bytes(MAX_VOLUME_BYTES)));
	if (v.grow_bytes == size || (!v.grow_bytes && v.size_bytes == size))
		return answer;
	if (v.grow_bytes)
		refuse(forbidden("volume " + v.name + " is growing to " + format_bytes(v.grow_bytes) + " already: wait until it has"));
	if (size < v.size_bytes)
		refuse(forbidden("volume " + v.name + " has " + format_bytes(v.size_bytes) + " and cannot shrink to " + format_bytes(size) +
				 ": create a smaller one and copy"));
	refuse_unfit(state, v);
	Volume next = v;
	next.grow_bytes = size;
	for (Replica &r : next.replicas)
		r.next_offset = std::max(size, r.md_offset + metadata_bytes(v.size_bytes, v.block_size));
	refuse_full(state, v, next);
	replace(state, std::move(next));
	answer["changed"] = true;
	return answer;
}

namespace {

// The replica that an entry of its host speaks of, in the copy.
Replica &replica_in(const State &state, const Fields &f, Volume &copy)
{
	const Host &h = host_of(state, f);
	Replica *r = copy.replica(h.id);
	if (!r)
		refuse(coded("no-such-replica", not_found("volume " + copy.name + " has no replica on host " + h.name)));
	return *r;
}

}    // namespace

json replica_moved(State &state, const Fields &f)
{
	Volume next = volume_of(state, f);
	Replica &r = replica_in(state, f, next);
	uint64_t offset = f.number("offset");
	if (r.md_offset == offset)
		return done(false);
	if (!r.next_offset || r.next_offset != offset)
		refuse(forbidden("volume " + next.name + ": its replica on host " + state.host_name(r.host) + " is not to move its metadata there"));
	r.md_offset = offset;
	r.next_offset = 0;
	r.wipe = true;
	replace(state, std::move(next));
	return done();
}

json replica_grown(State &state, const Fields &f)
{
	Volume next = volume_of(state, f);
	Replica &r = replica_in(state, f, next);
	if (!r.wipe)
		return done(false);
	r.wipe = false;
	replace(state, std::move(next));
	return done();
}

json volume_grown(State &state, const Fields &f)
{
	Volume next = volume_of(state, f);
	if (!next.grow_bytes)
		return done(false);
	if (!all_moved(next))
		refuse(forbidden("volume " + next.name + " cannot have its new size yet: a replica has not moved its metadata"));
	next.version++;    // the record names the size: a primary serves no further than its version says
	next.size_bytes = next.grow_bytes;
	next.grow_bytes = 0;
	replace(state, std::move(next));
	return done();
}

}    // namespace lockstep::cluster
