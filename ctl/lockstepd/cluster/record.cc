// SPDX-License-Identifier: GPL-2.0-or-later
//
// Changes of a volume's record, in the words of DESIGN section 4 and the model. Each is a compare-and-set: a proposer that
// decided from an older version is refused, decides again and comes back. What they keep up together:
//
//   - the version grows by one with every change, the term with every primary that is to start serving;
//   - only the primary of the term says who is in sync (it alone knows), and only it can make anybody a member again;
//   - whoever leaves the in-sync set is stale as of that version, which is what dirty maps are tied to;
//   - the last replica in sync is never given up, and a suspect one serves only where no clean one is left (S2).
#include "lockstepd/cluster/internal.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

namespace {

bool contains(const std::vector<HostId> &hosts, HostId host) { return std::find(hosts.begin(), hosts.end(), host) != hosts.end(); }

json record_answer(const Volume &v, bool changed)
{
	json answer = done(changed);
	answer["version"] = v.version;
	answer["term"] = v.term;
	answer["primary"] = v.primary;
	return answer;
}

void enter(Replica &r, ReplicaState state, uint64_t version)
{
	r.state = state;
	r.since = version;
}

// A change as a whole: one version further, never without a replica in sync.
json commit(State &state, const Volume &before, Volume next)
{
	if (std::none_of(next.replicas.begin(), next.replicas.end(), [](const Replica &r) { return r.in_sync(); }))
		refuse(forbidden("volume " + next.name + ": this would give up its last replica in sync"));
	if (next.version != before.version + 1 || next.term < before.term || next.term > before.term + 1)
		refuse(failed("volume " + next.name + ": a change of its record skips a version or term"));
	json answer = record_answer(next, true);
	replace(state, std::move(next));
	return answer;
}

}    // namespace

void expect_version(const Volume &v, uint64_t version)
{
	if (v.version != version)
		refuse(forbidden("volume " + v.name + ": its record is at version " + std::to_string(v.version) + ", the change was made for " +
				 std::to_string(version)));
}

// A new term under primary; of the replicas in sync only those in keep stay so.
void start_term(Volume &v, HostId primary, const std::vector<HostId> &keep)
{
	v.term++;
	v.primary = primary;
	v.drained = false;
	if (v.chosen_primary != primary)
		v.chosen_primary = 0;
	for (Replica &r : v.replicas)
		if (r.in_sync() && !contains(keep, r.host))
			enter(r, ReplicaState::stale, v.version);
}

std::vector<HostId> clean_and_online(const State &state, const Volume &v)
{
	std::vector<HostId> hosts;
	for (const Replica &r : v.replicas)
		if (r.clean() && state.online(r.host))
			hosts.push_back(r.host);
	return hosts;
}

namespace {

Replica &replica_of(const State &state, Volume &v, HostId host)
{
	Replica *r = v.replica(host);
	if (!r)
		refuse(coded("no-such-replica", not_found("volume " + v.name + " has no replica on host " + state.host_name(host))));
	return *r;
}

// ---- the commands: v is the volume as it is, next the copy with the version one further ----

json propose(State &state, const Fields &f, const Volume &v, Volume next)
{
	HostId host = f.host();
	std::vector<HostId> members = f.hosts("members");
	expect_version(v, f.number("version"));
	if (v.primary != host)
		refuse(forbidden("volume " + v.name + ": host " + state.host_name(host) + " is not its primary"));
	uint64_t term = f.number("term");
	HostId heir = f.has("primary") ? HostId(f.number("primary", LKS_MAX_HOSTS)) : host;
	bool handover = heir != host && term == v.term + 1;
	if (term != v.term && !handover)
		refuse(forbidden("volume " + v.name + ": the proposal is of term " + std::to_string(term) + ", the volume in term " +
				 std::to_string(v.term)));
	if (heir != host && !handover)
		refuse(forbidden("volume " + v.name + ": another primary needs another term"));
	if (!contains(members, host))
		refuse(forbidden("volume " + v.name + ": its primary must stay in sync"));
	for (HostId m : members)
		if (replica_of(state, next, m).state == ReplicaState::failed)
			refuse(forbidden("volume " + v.name + ": the disk of its replica on host " + state.host_name(m) + " has failed"));
		else if (!replica_of(state, next, m).created)
			refuse(forbidden("volume " + v.name + ": its replica on host " + state.host_name(m) + " is not made yet"));
	for (Replica &r : next.replicas) {
		bool member = contains(members, r.host);
		if (r.in_sync() && !member)
			enter(r, ReplicaState::stale, next.version);
		else if (r.state == ReplicaState::stale && member)
			enter(r, ReplicaState::insync, next.version);
	}
	if (handover) {    // M1: it has stopped serving and drained, so the heir need not wait for anybody's promise
		if (!replica_of(state, next, heir).clean() || !contains(members, heir))
			refuse(forbidden("volume " + v.name + ": host " + state.host_name(heir) + " is not in sync and cannot take over"));
		next.term++;
		next.primary = heir;
		next.drained = true;
		if (next.chosen_primary != heir)
			next.chosen_primary = 0;
	}
	// C6: also a proposal that changes nobody's state makes a version; it settles that a joiner has not joined.
	return commit(state, v, std::move(next));
}

json suspect(State &state, const Fields &f, const Volume &v, Volume next)
{
	HostId host = f.host();
	Replica &r = replica_of(state, next, host);
	if (r.state != ReplicaState::insync)
		return record_answer(v, false);
	r.state = ReplicaState::suspect;
	if (next.primary == host)
		next.primary = 0;
	return commit(state, v, std::move(next));
}

json resign(State &state, const Fields &f, const Volume &v, Volume next)
{
	if (v.primary != f.host())
		return record_answer(v, false);
	next.primary = 0;
	return commit(state, v, std::move(next));
}

json disk_failed(State &state, const Fields &f, const Volume &v, Volume next)
{
	HostId host = f.host();
	Replica &r = replica_of(state, next, host);
	if (r.state == ReplicaState::failed)
		return record_answer(v, false);
	if (!r.created)
		refuse(forbidden("volume " + v.name + ": its replica on host " + state.host_name(host) + " is not made yet"));
	if (r.in_sync())
		enter(r, ReplicaState::failed, next.version);
	else
		r.state = ReplicaState::failed;    // stale since then: dirty maps stay tied to that version
	if (next.primary == host)
		next.primary = 0;
	return commit(state, v, std::move(next));
}

json repaired(State &state, const Fields &f, const Volume &v, Volume next)
{
	Replica &r = replica_of(state, next, f.host());
	if (r.state != ReplicaState::failed)
		return record_answer(v, false);
	r.state = ReplicaState::stale;
	r.failed_ms = 0;
	return commit(state, v, std::move(next));
}

json last_resort(State &state, const Volume &v, Volume next, Replica &chosen)
{
	for (const Replica &r : v.replicas)
		if (r.clean())
			refuse(forbidden("volume " + v.name + ": its replica on host " + state.host_name(r.host) +
					 " is in sync and not suspect: wait for that host"));
	if (chosen.state != ReplicaState::suspect)
		refuse(forbidden("volume " + v.name + ": its replica on host " + state.host_name(chosen.host) + " is " + to_string(chosen.state)));
	chosen.state = ReplicaState::insync;
	next.incarnation++;
	HostId host = chosen.host;
	start_term(next, host, {host});
	return commit(state, v, std::move(next));
}

json failover(State &state, const Fields &f, const Volume &v, Volume next)
{
	expect_version(v, f.number("version"));
	HostId primary = f.host("primary");
	std::vector<HostId> keep = f.hosts("keep");
	Replica &chosen = replica_of(state, next, primary);
	if (!contains(keep, primary))
		refuse(usage_error("volume " + v.name + ": the new primary is not among those to keep"));
	if (f.has("last_resort") && f.flag("last_resort"))
		return last_resort(state, v, std::move(next), chosen);
	for (HostId k : keep)
		if (const Replica &r = replica_of(state, next, k); !r.clean())
			refuse(forbidden("volume " + v.name + ": its replica on host " + state.host_name(k) + " is " + to_string(r.state)));
	start_term(next, primary, keep);
	return commit(state, v, std::move(next));
}

std::string who_is_missing(const State &state, const Volume &v)
{
	std::string text;
	for (const Replica &r : v.replicas) {
		if (!r.in_sync())
			continue;
		text += (text.empty() ? "" : ", ") + state.host_name(r.host) + (r.clean() ? " is offline" : " restarted unclean");
	}
	return text;
}

json open(State &state, const Fields &f, const Volume &v, Volume next)
{
	HostId host = host_of(state, f).id;
	uint64_t ended = f.number_or("ended", 0, UINT64_MAX);
	const Opener *mine = v.opener(host);
	bool granted = mine && mine->session > ended;
	if (granted && v.primary) {
		json answer = record_answer(v, false);
		answer["session"] = mine->session;
		return answer;
	}
	bool shared = v.cls == LKS_SHARED;
	for (const Opener &o : v.openers)
		if (!shared && o.host != host && state.online(o.host))
			refuse(coded("volume-open", forbidden("volume " + v.name + " is open on host " + state.host_name(o.host) + ": close it there first")));
	if (!granted) {
		next.session_serial++;
		// O1: a session that is not listed is fenced. Of a shared volume only an older one of this host is.
		std::erase_if(next.openers, [&](const Opener &o) { return !shared || o.host == host; });
		next.openers.push_back({host, next.session_serial});
		std::sort(next.openers.begin(), next.openers.end(), [](const Opener &a, const Opener &b) { return a.host < b.host; });
		const Replica *own = v.replica(host);
		if (!shared && own && own->clean() && v.chosen_primary != host)
			next.chosen_primary = 0;    // the primary follows its opener
	}
	if (!next.primary) {
		HostId primary = choose_primary(state, next);
		if (!primary)
			refuse(forbidden("volume " + v.name + " cannot be opened: no replica in sync can serve (" + who_is_missing(state, v) + ")"));
		start_term(next, primary, clean_and_online(state, next));
	}
	uint64_t session = next.opener(host)->session;
	json answer = commit(state, v, std::move(next));
	answer["session"] = session;
	return answer;
}

json close(State &state, const Fields &f, const Volume &v, Volume next)
{
	Opener gone{f.host(), f.number("session")};
	if (!std::erase(next.openers, gone))
		return record_answer(v, false);
	return commit(state, v, std::move(next));
}

}    // namespace

json apply_record(State &state, const std::string &op, const Fields &f)
{
	using Command = json (*)(State &, const Fields &, const Volume &, Volume);
	static const std::map<std::string, Command> commands = {
		{"record.propose", propose},   {"record.suspect", suspect},   {"record.resign", resign}, {"record.failed", disk_failed},
		{"record.repaired", repaired}, {"record.failover", failover}, {"record.open", open},     {"record.close", close},
	};
	auto it = commands.find(op);
	if (it == commands.end())
		refuse(usage_error("unknown operation \"" + op + "\""));
	const Volume v = volume_of(state, f);
	if (f.has("host") && !state.host(f.host()))
		refuse(coded("no-such-host", not_found("the cluster has no host " + std::to_string(f.host()))));
	if (v.phase != Phase::ready) {
		bool harmless = op == "record.suspect" || op == "record.failed" || op == "record.resign" || op == "record.close";
		if (harmless && v.phase == Phase::deleting)
			return record_answer(v, false);
		refuse(forbidden("volume " + v.name + " is " + (v.phase == Phase::creating ? "still being created" : "being deleted")));
	}
	if (f.has("version"))
		expect_version(v, f.number("version"));
	Volume next = v;
	next.version++;
	return it->second(state, f, v, std::move(next));
}

}    // namespace lockstep::cluster
