// SPDX-License-Identifier: GPL-2.0-or-later
//
// What apply.cc and its parts (placement.cc, record.cc, life.cc, hosts.cc) share: reading an entry's fields and refusing.
//
// A command reads all its fields and decides before it changes anything, so that a refusal, which is thrown, leaves the
// State as it was. A change of a volume is made on a copy which replace() checks and puts in place.
#pragma once

#include "lockstepd/cluster/state.h"

#include <initializer_list>
#include <limits>
#include <optional>

namespace lockstep::cluster {

struct Refusal {
	Error error;
};

[[noreturn]] inline void refuse(Error error) { throw Refusal{std::move(error)}; }

using LabelChanges = std::map<std::string, std::optional<std::string>>;    // nothing: remove it

// The fields of one entry. Every getter refuses (status 2) if the field is missing, of another type or out of range.
class Fields {
public:
	explicit Fields(const nlohmann::json &object);
	bool has(const char *name) const { return object_.contains(name); }
	uint64_t number(const char *name, uint64_t most = std::numeric_limits<int64_t>::max()) const;
	uint64_t number_or(const char *name, uint64_t otherwise, uint64_t most) const;
	bool flag(const char *name) const;
	std::string text(const char *name, size_t most = 255) const;     // printable ASCII
	std::string message(const char *name) const;                    // made printable and at most 1000 bytes long
	std::string name(const char *name) const;                       // valid_name()
	std::string uuid(const char *name) const;
	HostId host(const char *name = "host") const;                   // 1..64
	std::vector<HostId> hosts(const char *name) const;              // distinct, ascending
	std::string hex(const char *name, size_t digits) const;         // lower case
	std::string pem(const char *name) const;                        // at most PEM_MAX_BYTES
	std::vector<std::string> texts(const char *name, size_t most) const;
	std::vector<uint64_t> numbers(const char *name, size_t most) const;
	Fields object(const char *name) const;
	LabelChanges labels(const char *name) const;                    // group.cc
	const nlohmann::json &raw(const char *name) const { return at(name); }

private:
	const nlohmann::json &at(const char *name) const;
	const nlohmann::json &object_;
};

nlohmann::json done(bool changed = true);

const Host &host_of(const State &state, const Fields &f);                 // refuses (3) an unknown host
const Volume &volume_of(const State &state, const Fields &f);             // by "vid"; refuses (3)

// Puts the changed copy of a volume in place. Refuses (10) if it violates an invariant.
void replace(State &state, Volume next);

// Begins the roll-back of a create; remembers why.
void roll_back(State &state, const Volume &volume, const std::string &message);

// placement.cc: the hosts for a new volume in ascending order; refuses with the reason for each host.
struct Wanted {
	std::string name, pool;
	uint64_t size_bytes = 0;
	uint32_t block_size = LKS_BLOCK_DEFAULT;
	unsigned redundancy = DEFAULT_REDUNDANCY;
	std::vector<HostId> hosts;      // empty: choose
	std::map<HostId, std::string> except;    // these cannot take it, and why: "has a replica already"
	uint32_t vid = 0;               // 0: of a volume that is yet to be created
	Rules rules;
	HostSet beside;                 // the volume's replicas that are to stay: rules hold for all of them together
};
std::vector<HostId> place(const State &state, const Wanted &wanted);
Wanted one_more(const State &state, const Volume &volume);    // a further replica of a volume: everything but its hosts
// Hosts with a replica of a volume from which that one is to be apart, and which volume.
std::map<HostId, std::string> crowded(const State &state, const Wanted &wanted);
// Which rule keeps a replica away from that host, whatever room there is; empty if none does.
std::string rule_obstacle(const State &state, const std::map<HostId, std::string> &crowded, const Host &host, const Wanted &wanted);

// rules.cc
Rules rules_fields(const State &state, const Fields &f, const Rules &before, bool of_volume);    // field "rules"
Rules merged(const Rules &own, const Rules &groups);
std::pair<std::string, std::string> same_parts(const Rules &rules);      // label and value; value empty: any
std::string check_rules(const State &state, const Rules &rules);
void forget_in_rules(State &state, HostId host);
void forget_in_rules(State &state, uint32_t vid);
nlohmann::json host_label(State &state, const Fields &f);
nlohmann::json volume_rules(State &state, const Fields &f);
nlohmann::json group_rules(State &state, const Fields &f);
nlohmann::json replica_pin(State &state, const Fields &f);

// A tombstone vanishes when no host has anything of it any more; true if it does.
bool bury(State &state, uint32_t vid);

// What keeps a replica where it is, though it is not needed (life.cc); empty if nothing does.
std::string bound(const State &state, const Volume &volume, HostId host);

// Out of the record, into what its host has to remove (life.cc).
void move_to_remnants(Volume &next, HostId host);

// A replica that could not be made in a volume that is ready goes again (life.cc).
void take_back(State &state, const Volume &volume, HostId host, const std::string &message);
void remember_failure(State &state, const Volume &volume, const std::string &message);
bool ready_if_made(Volume &next);           // it is, when all its replicas are made (apply.cc)
bool can_revert_without(const Volume &v, HostId host);    // another replica has, or gets, the content by itself (snapshots.cc)

// group.cc
bool change_labels(Labels &labels, const LabelChanges &changes, const std::string &of);    // refuses too many
const Group &group_of(const State &state, const std::string &name);       // refuses (3)
void refuse_redundancy_out_of_range(const Group &group);
void refuse_too_few_pools(const State &state, const Group &group, const Pool *going = nullptr);    // going: does not count
nlohmann::json group_create(State &state, const Fields &f);
nlohmann::json group_delete(State &state, const Fields &f);
nlohmann::json group_label(State &state, const Fields &f);
nlohmann::json volume_label(State &state, const Fields &f);

// spread.cc
nlohmann::json group_redundancy(State &state, const Fields &f);
nlohmann::json group_spread(State &state, const Fields &f);
// Entries that bring volumes to the redundancy of their group. Each one counts in the state then.
std::vector<nlohmann::json> decide_groups(State &expected, size_t most);

// volumes.cc
const Volume &volume_named_or_vid(const State &state, const Fields &f);   // by "vid" or "name"; refuses (3); not tombstones
NoQuorum no_quorum_of(const Fields &f);                                   // field "no_quorum"
nlohmann::json volume_set(State &state, const Fields &f);
nlohmann::json volume_primary(State &state, const Fields &f);

// resize.cc
nlohmann::json volume_resize(State &state, const Fields &f);
nlohmann::json replica_moved(State &state, const Fields &f);
nlohmann::json replica_grown(State &state, const Fields &f);
nlohmann::json volume_grown(State &state, const Fields &f);

// snapshots.cc: entries snapshot.*
nlohmann::json apply_snapshot(State &state, const std::string &op, const Fields &f);
void refuse_snapshots_in_the_way(const State &state, const Volume &v);    // of deleting the volume
std::string check_snapshots(const State &state);
void give_up_copies_beside(State &state, const Volume &v, HostId host);  // in a thick pool they go with that replica; refuses if one is the last
void forget_copies(State &state, HostId host);                            // that host is lost, and its copies of snapshots with it

// pools.cc
Pool &pool_of(State &state, HostId host, const std::string &name);        // refuses (3)
nlohmann::json pool_delete(State &state, const Fields &f);
nlohmann::json pool_deleted(State &state, const Fields &f);

// mend.cc
nlohmann::json pool_mend(State &state, const Fields &f);
nlohmann::json pool_mended(State &state, const Fields &f);
std::map<std::string, std::string> pool_disks(const Fields &f);           // field "disks" of pool.report

// snapshot_copies.cc
void take_from(std::vector<SnapshotCopy> &from, HostId host, std::vector<SnapshotCopy> &to);
bool in_use(const State &s, const Snapshot &x, HostId host);              // what is just being made from it on that host needs it there
nlohmann::json snapshot_copy(State &state, const Fields &f);
nlohmann::json snapshot_copied(State &state, const Fields &f);
nlohmann::json snapshot_drop(State &state, const Fields &f);
void all_copies_go(Snapshot &s);                                          // it is to be removed, wherever anything of it may be
std::string check_copies(const State &state, const Snapshot &s);
// Entries that bring copies of snapshots to where they are missing, and take superfluous ones away.
std::vector<nlohmann::json> decide_copies(const State &state, size_t most);

// snapshots.cc, for snapshot_copies.cc
std::string title(const Snapshot &s);
Snapshot &snapshot_of(State &state, const Fields &f);                     // by "sid"; refuses (3)

// hosts.cc: all of it, replicas included; at once. reverts: a volume that is being reverted is ready when the others have made theirs
void forget_host(State &state, HostId host, bool reverts = false);

// recover.cc
nlohmann::json cluster_recover(State &state, const Fields &f);
nlohmann::json host_rejoin(State &state, const Fields &f);

// clients.cc
nlohmann::json client_add(State &state, const Fields &f);
nlohmann::json client_remove(State &state, const Fields &f);

// rebuild.cc
nlohmann::json cluster_rebuild(State &state, const Fields &f);

// record.cc
void start_term(Volume &v, HostId primary, const std::vector<HostId> &keep);
void expect_version(const Volume &v, uint64_t version);                   // refuses another one
std::vector<HostId> clean_and_online(const State &state, const Volume &v);

// Of a set of snapshots that is being discarded, are only hosts that are offline left to do it?
bool waits_for_offline(const State &state, uint32_t set);

// apply.cc
Host host_fields(const Fields &f, uint64_t now_ms);                       // what a host says of itself
nlohmann::json pool_add(State &state, const Fields &f);
uint32_t free_minor(const State &state);                                  // refuses if there is none
std::string lvm_name(const Fields &f, const char *field);

// adopt.cc
nlohmann::json volume_adopt(State &state, const Fields &f);

// record.cc: entries record.*
nlohmann::json apply_record(State &state, const std::string &op, const Fields &f);

// life.cc (replicas) and hosts.cc (hosts, options): the command of that name, nullptr if it is none of theirs.
using Command = nlohmann::json (*)(State &, const Fields &);
Command replica_command(const std::string &op);
Command host_command(const std::string &op);

}    // namespace lockstep::cluster
