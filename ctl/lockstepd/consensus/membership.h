// SPDX-License-Identifier: GPL-2.0-or-later
//
// Which change of raft's configuration comes next. A pure function: the leader asks it once a second with what it sees, makes
// the one change it names, and asks again.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lockstepd/consensus/log.h"

namespace lockstep {

constexpr size_t VOTERS_SMALL = 3;        // up to four hosts
constexpr size_t VOTERS_LARGE = 5;        // from five hosts on

// How many of so many hosts vote.
size_t voters_wanted(size_t hosts);

struct MembershipView {
	std::vector<Member> current;     // raft's configuration
	std::vector<Member> wanted;      // the cluster's hosts
	uint64_t self = 0;               // raft id of the leader that asks
	uint64_t voter_replace_ms = 0;
	std::function<uint64_t(int host)> silent_ms;       // how long nothing has been heard from it
	std::function<bool(const Member &)> present;       // it can be reached now, and no promotion of it has just failed
};

struct MembershipChange {
	enum What { add, remove, make_learner, make_voter, step_down } what;
	Member member;
};

std::optional<MembershipChange> next_change(const MembershipView &view);

// A member as raft's configuration keeps it, in its address field: "RAFT_ID/HOST/ADDRESS,ADDRESS". The raft id in it makes it
// unique when a host joins again under a new one.
std::string encode_member(const Member &member);
std::optional<Member> decode_member(const std::string &text);

}    // namespace lockstep
