// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/consensus/membership.h"

#include <algorithm>
#include <charconv>

namespace lockstep {

namespace {

const Member *find(const std::vector<Member> &members, uint64_t raft_id)
{
	const auto it = std::ranges::find(members, raft_id, &Member::raft_id);
	return it == members.end() ? nullptr : &*it;
}

}    // namespace

size_t voters_wanted(size_t hosts)
{
	return std::min(hosts, hosts >= 5 ? VOTERS_LARGE : VOTERS_SMALL);
}

std::optional<MembershipChange> next_change(const MembershipView &v)
{
	using Change = MembershipChange;
	// A state machine that names nobody is one that is not there yet.
	if (v.wanted.empty())
		return std::nullopt;

	for (const Member &m : v.wanted) {
		if (!find(v.current, m.raft_id))
			return Change{Change::add, m};
	}
	for (const Member &m : v.current) {
		if (!find(v.wanted, m.raft_id) && m.raft_id != v.self)
			return Change{Change::remove, m};
	}
	for (const Member &m : v.current) {
		if (m.role == Role::none)
			return Change{Change::make_learner, m};
	}

	std::vector<const Member *> voters, learners;
	for (const Member &m : v.current)
		(m.role == Role::voter ? voters : learners).push_back(&m);
	const auto dead = [&](const Member *m) { return m->raft_id != v.self && v.silent_ms(m->host) >= v.voter_replace_ms; };
	const auto dead_voter = std::ranges::find_if(voters, dead);
	const auto candidate = std::ranges::find_if(learners, [&](const Member *m) { return v.present(*m); });

	// Promote first, demote after: the number of voters that can be lost never falls in between.
	const size_t target = voters_wanted(v.wanted.size());
	if (candidate != learners.end() && (voters.size() < target || (voters.size() == target && dead_voter != voters.end())))
		return Change{Change::make_voter, **candidate};
	if (voters.size() > target) {
		if (dead_voter != voters.end())
			return Change{Change::make_learner, **dead_voter};
		const auto last = std::ranges::find_if(voters.rbegin(), voters.rend(),
						       [&](const Member *m) { return m->raft_id != v.self; });
		if (last != voters.rend())
			return Change{Change::make_learner, **last};
	}
	// Nothing else to do, and this leader is to go: the next one removes it.
	if (!find(v.wanted, v.self) && find(v.current, v.self) && voters.size() > 1)
		return Change{Change::step_down, *find(v.current, v.self)};
	return std::nullopt;
}

std::string encode_member(const Member &m)
{
	std::string out = std::to_string(m.raft_id) + "/" + std::to_string(m.host) + "/";
	for (size_t i = 0; i < m.addresses.size(); i++)
		out += (i ? "," : "") + m.addresses[i];
	return out;
}

std::optional<Member> decode_member(const std::string &text)
{
	Member m;
	const char *const end = text.data() + text.size();
	const auto id = std::from_chars(text.data(), end, m.raft_id);
	if (id.ec != std::errc() || id.ptr == end || *id.ptr != '/')
		return std::nullopt;
	const auto host = std::from_chars(id.ptr + 1, end, m.host);
	if (host.ec != std::errc() || host.ptr == end || *host.ptr != '/' || m.raft_id == 0 || m.host < 1 || m.host > 64)
		return std::nullopt;
	std::string list(host.ptr + 1, end);
	for (size_t at = 0; at < list.size();) {
		const size_t comma = std::min(list.find(',', at), list.size());
		m.addresses.push_back(list.substr(at, comma - at));
		at = comma + 1;
	}
	return m;
}

}    // namespace lockstep
