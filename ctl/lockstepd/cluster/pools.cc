// SPDX-License-Identifier: GPL-2.0-or-later
//
// A pool goes, while its host stays in the cluster. Only an empty one does: no replica, no copy of a snapshot, nothing that its host still
// has to remove there, and not so few others that a group could not place its volumes any more.
//
//   pool.delete    From here on nothing is placed in it. What is gone in this State is gone on the disk as well: a host says so afterwards.
//   pool.deleted   Its host has taken its own marks off the volume group (host/pools.cc). The volume group, the thin pool, what others have
//                  in them and their disks stay as they are.
//
// Its host does it as long as the log says so: no daemon that dies meanwhile leaves anything half done.
#include "lockstepd/cluster/internal.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

constexpr size_t NAMES_SHOWN = 3;

// What lies in a pool, by name.
struct Content {
	std::vector<std::string> replicas, copies, leftovers;
};

Content content_of(const State &state, const Pool &pool)
{
	Content c;
	for (const auto &[vid, v] : state.volumes) {
		const Replica *r = v.replica(pool.host);
		const Remnant *left = v.remnant(pool.host);
		if (r && r->pool == pool.name)
			(v.phase == Phase::deleting ? c.leftovers : c.replicas).push_back(v.name);
		else if (left && left->pool == pool.name)
			c.leftovers.push_back(v.name);
	}
	for (const auto &[sid, s] : state.snapshots) {
		const SnapshotCopy *copy = s.trace(pool.host);
		if (!copy || copy->pool != pool.name)
			continue;
		const bool going = std::ranges::any_of(s.going, [&](const SnapshotCopy &x) { return x.host == pool.host; });
		const bool ends = going || s.phase == SnapshotPhase::deleting || s.phase == SnapshotPhase::discarding;
		(ends ? c.leftovers : c.copies).push_back(title(s));
	}
	return c;
}

std::string some_of(const std::vector<std::string> &names)
{
	std::string text;
	for (size_t i = 0; i < std::min(names.size(), NAMES_SHOWN); i++)
		text += (i ? ", " : "") + names[i];
	return names.size() > NAMES_SHOWN ? text + " and " + std::to_string(names.size() - NAMES_SHOWN) + " more" : text;
}

void refuse_content(const State &state, const Pool &pool)
{
	const Content c = content_of(state, pool);
	const std::string host = state.host_name(pool.host), its = "pool " + pool.name + " on host " + host;
	if (!c.replicas.empty())
		refuse(coded("pool-in-use", forbidden(its + " holds replicas of " + some_of(c.replicas) + ": move them with `lockstep volume replica move VOLUME " + host +
			     "`, or all that the host has with `lockstep host evacuate " + host + "`")));
	if (!c.copies.empty())
		refuse(coded("pool-in-use", forbidden(its + " holds copies of " + some_of(c.copies) + ": delete them, or have all that the host has moved with "
						      "`lockstep host evacuate " + host + "`")));
	if (!c.leftovers.empty())
		refuse(coded("pool-in-use", forbidden(its + ": what is left there of " + some_of(c.leftovers) + " is still being removed: try again in a moment")));
}

void refuse_too_few_left(const State &state, const Pool &pool)
{
	for (const auto &[name, g] : state.groups) {
		if (g.pool != pool.name)
			continue;
		try {
			refuse_too_few_pools(state, g, &pool);
		} catch (const Refusal &why) {
			refuse(coded("pool-in-use", forbidden("pool " + pool.name + " on host " + state.host_name(pool.host) + " cannot go; " + why.error.message +
							      ": lower it with `lockstep group redundancy`, or delete the group")));
		}
	}
}

}    // namespace

Pool &pool_of(State &state, HostId host, const std::string &name)
{
	auto it = state.pools.find({name, host});
	if (it == state.pools.end())
		refuse(coded("no-such-pool", not_found("host " + state.host_name(host) + " has no pool named " + name)));
	return it->second;
}

json pool_delete(State &state, const Fields &f)
{
	Pool &pool = pool_of(state, host_of(state, f).id, f.name("name"));
	if (pool.deleting)
		return done(false);
	if (!pool.mending.empty())
		refuse(coded("pool-in-use", forbidden("pool " + pool.name + " on host " + state.host_name(pool.host) + " is just getting rid of a dead disk, " +
						      pool.mending + ": wait until it has, see `lockstep disk list`")));
	refuse_content(state, pool);
	refuse_too_few_left(state, pool);
	pool.deleting = true;
	return done();
}

json pool_deleted(State &state, const Fields &f)
{
	const HostId host = host_of(state, f).id;
	const std::string name = f.name("name");
	const Pool *pool = state.pool(name, host);
	// One of the same name may have been made since, and this be a second one's answer.
	if (!pool || !pool->deleting)
		return done(false);
	state.pools.erase({name, host});
	return done();
}

}    // namespace lockstep::cluster
