// SPDX-License-Identifier: GPL-2.0-or-later
//
// What an administrator may change of a volume while it is in use: what happens without a quorum, and where it is served.
#include "lockstepd/cluster/internal.h"

namespace lockstep::cluster {

using nlohmann::json;

const Volume &volume_named_or_vid(const State &state, const Fields &f)
{
	if (f.has("vid"))
		return volume_of(state, f);
	std::string name = f.text("name");
	const Volume *v = state.volume_named(name);
	if (!v)
		refuse(coded("no-such-volume", not_found("there is no volume named " + name)));
	return *v;
}

NoQuorum no_quorum_of(const Fields &f)
{
	std::string text = f.text("no_quorum");
	if (text != "freeze" && text != "error")
		refuse(usage_error("without a quorum a volume can freeze or give errors: say freeze or error, not \"" + text + "\""));
	return text == "error" ? NoQuorum::error : NoQuorum::freeze;
}

json volume_set(State &state, const Fields &f)
{
	Volume next = volume_named_or_vid(state, f);
	if (next.phase == Phase::deleting)
		refuse(forbidden("volume " + next.name + " is being deleted"));
	NoQuorum before = next.no_quorum;
	if (f.has("no_quorum"))
		next.no_quorum = no_quorum_of(f);
	bool changed = next.no_quorum != before;
	replace(state, std::move(next));
	return done(changed);
}

json volume_primary(State &state, const Fields &f)
{
	const Volume &v = volume_named_or_vid(state, f);
	HostId host = HostId(f.number("host", LKS_MAX_HOSTS));
	if (v.phase != Phase::ready)
		refuse(forbidden("volume " + v.name + " is " + to_string(v.phase)));
	Volume next = v;
	next.chosen_primary = host;
	if (host && !state.host(host))
		refuse(coded("no-such-host", not_found("the cluster has no host " + std::to_string(host))));
	if (host) {
		const Replica *r = v.replica(host);
		if (!r)
			refuse(coded("no-such-replica", forbidden("volume " + v.name + " has no replica on host " + state.host_name(host) + ", it cannot be served there")));
		if (!r->clean())
			refuse(forbidden("volume " + v.name + ": its replica on host " + state.host_name(host) + " is " + to_string(r->state) +
					 ": wait until it is in sync"));
		if (!state.online(host))
			refuse(coded("host-offline", forbidden("volume " + v.name + ": host " + state.host_name(host) + " is offline")));
		if (!v.primary) {    // nobody serves: nobody to hand over
			next.version++;
			start_term(next, host, clean_and_online(state, next));
		}
	}
	json answer = done(next != v);
	answer["vid"] = v.vid;
	replace(state, std::move(next));
	return answer;
}

}    // namespace lockstep::cluster
