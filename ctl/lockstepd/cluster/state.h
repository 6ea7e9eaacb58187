// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the cluster has agreed on: the state that every daemon computes from the same log.
//
// apply() is a pure function of the state and one entry. It reads no clock, draws no random number and does no I/O: times
// and UUIDs come in as fields of the entry. So every host that applied the same entries holds the same State, bit for bit,
// also when it started from a snapshot. An entry is refused as a whole or carried out as a whole.
//
// An entry is a JSON object (CBOR in the log) with "op", "level" (feature level it needs: level_of()) and the fields
// below. apply() answers {"ok":true, ...} or {"ok":false,"status":2|3|5|10,"code":"for programs","message":"one line for the user"}.
// "Idempotent" below: repeating it once it is done answers ok with "changed":false and changes nothing.
//
//  op               fields (o: optional)                            answer beside ok; meaning
//  ---------------  ----------------------------------------------  -----------------------------------------------------
//  cluster.init     uuid name host{uuid name addresses port o       host raft_id (both 1). The first entry of every log.
//                   host_level o key o witness o} authority{cert key}(o) now_ms    Idempotent for the same uuid
//  token.add        hash end_ms now_ms                              An invitation, by the SHA-256 of its secret. Idempotent
//  client.add       name role("admin"|"read-only") key end_ms       A certificate for the API over TLS. Replaces one of the same name, which counts
//                   now_ms                                          no more. Idempotent for the same key
//  client.remove    name                                            Revokes it. Idempotent
//  host.add         uuid name addresses port(o) host_level(o)       host raft_id. Idempotent for the same uuid (and key, if it
//                   key(o) token(o: hash) witness(o) now_ms         has one). A token is used up by the first uuid that
//                                                                   comes with it; refused without token once there is a CA
//  host.rejoin      host raft_id                                    raft_id. A new one for a host whose log is lost or of an
//                                                                   epoch that has ended (recover.h). raft_id: its last one
//  cluster.recover  epoch host dead[] copies[[vid, host]..] now_ms  raft_id. The majority is lost, this host's log is all there
//                                                                   is: recover.h. Idempotent for the same epoch
//  cluster.rebuild  uuid name epoch host authority{cert key}        raft_id. All logs are lost, this one is made of what the disks say:
//                   hosts[{id raft_id ..}] pools[] groups[](o) volumes[]  rebuild.h. The first entry of its log. Idempotent for the same epoch
//                   next_host next_vid next_sid now_ms
//  host.set         host addresses port(o) host_level(o)            changed. host_level: of the program that it runs now. Programs
//                                                                   of level 1 pass over it, so nothing is refused for it
//  host.net         host verb("add"|"remove"|"prefer") address      changed. add: as the last; prefer: as the first. Idempotent
//  host.label       host labels{key: text|null}                     changed. What rules of placement go by, such as rack or site. Idempotent
//  host.status      host online now_ms                              changed
//  pool.add         name host kind("thick"|"thin") vg thin_lv(thin) Idempotent for the same host, vg and thin_lv
//                   size_bytes free_bytes
//  pool.report      name host size_bytes free_bytes disks(o)        changed. What LVM says; send on change, not by the clock
//                                                                   disks{LVM's UUID: path}: by which one that is dead can be named
//  pool.mend        name host disk(UUID) by(o: path) replicas[vid]  changed, replicas, copies: how many. A disk is gone for good, and with it
//                   copies[sid] (both o)                            these; see mend.cc. Idempotent
//  pool.mended      name host disk                                  it is out of the volume group. Idempotent
//  pool.delete      name host                                       changed. Refused unless it is empty; takes nothing new. See pools.cc. Idempotent
//  pool.deleted     name host                                       changed. The host has nothing of its own there any more. Forgotten
//  volume.create    name uuid size_bytes pool redundancy(o)         vid minor hosts. Phase creating; each host of the list
//                   hosts(o: ids) block_size(o) class(o) now_ms     makes its replica and says replica.created or .failed.
//                   no_quorum(o) group(o) labels(o) rules(o)        pool, redundancy: by default the group's
//  replica.created  vid host                                        phase ("ready" after the last one). Idempotent
//  replica.failed   vid host message reverting(o)                   Only while creating: rolls the whole create back. The
//                                                                   message, the whole line for the user, stays in
//                                                                   State::failures. reverting: of a revert, which goes on without that
//                                                                   replica, if another one has been made. Idempotent
//  volume.abort     vid message                                     the same for a proposer that waited long enough
//  volume.adopt     name uuid host pool lv size_bytes block_size    vid minor hosts. A volume made of an orphan (host/orphans.h): LV "lv" of
//                   md_offset vid version term redundancy(o)        that host and pool becomes its first replica. Never rolled back.
//                   group(o) labels(o)                              vid, version, term: the highest of any copy of it
//                                                                   (vid: and in any orphan's name there)
//  volume.set       name | vid  no_quorum(o: "freeze"|"error")      changed
//  volume.primary   name | vid  host                                changed. This host is to serve; 0: whoever the rules
//                                                                   choose. Holds until the volume is opened or fails over
//                                                                   elsewhere. See wanted_primary()
//  volume.resize    name | vid  size_bytes                          vid. Growing, see resize.cc. Idempotent
//  replica.moved    vid host offset                                 its metadata stand there, too, and are current
//  replica.grown    vid host                                        ... and where they stood before there are zeros
//  volume.grown     vid                                             the leader's: all replicas have moved, the size holds
//  snapshot.*                                                       see snapshots.cc
//  volume.delete    name | vid                                      vid. Refused while it has an opener. Phase deleting
//  replica.deleted  vid host                                        gone (true: it was the last). This host has neither
//                                                                   replica nor device of it any more. For every host
//                                                                   with a replica or a device. Idempotent
//  device.ready     vid host                                        the device node is there. Idempotent
//  group.create     name pool redundancy(o) labels(o) rules(o)      A set of volumes with one pool and redundancy (group.cc).
//                                                                   Idempotent for the same pool and redundancy
//  group.redundancy name redundancy                                 changed. Of new volumes, and of all it has, a few at a time (spread.cc).
//                                                                   Idempotent
//  group.spread     name                                            changed. The leader's: all of its volumes have it. Idempotent
//  group.delete     name                                            Refused while it has volumes
//  group.label      name labels{key: text|null}                     changed. null removes. Idempotent
//  volume.label     name labels{key: text|null}                     changed. The same for a volume
//  volume.rules     name rules{}                                    changed. Where its replicas may be, see rules.cc. Idempotent
//  group.rules      name rules{}                                    changed. The same for all volumes of a group
//  volume.redundancy vid redundancy                                 the number of replicas wanted; repair.h does the rest
//  replica.add      vid host(o) asked(o) version(o)                 host. One more replica, stale and empty, on that host or
//                                                                   where there is most room; made as in a create: a
//                                                                   replica.failed takes it back. asked: redundancy + 1
//  replica.leave    vid host lower(o)                               it goes as soon as enough others are in sync. lower:
//                                                                   redundancy - 1. Idempotent
//  replica.move     vid from host(o)                                host. replica.add, and the one on "from" leaves
//  replica.stay     vid host                                        it does not leave. Idempotent
//  replica.pin      vid host pinned(bool)                           changed. It stays where it is, see rules.cc. Idempotent
//  replica.remove   vid host version(o)                             repair.h's: out of the record, into the remnants; never
//                                                                   the primary, never a good copy that is needed
//  replica.invalidate vid host                                      it is thrown away as a whole: out of the record, into the
//                                                                   remnants, and anew and empty on the same host once
//                                                                   that has purged it. Refused for the primary, and unless
//                                                                   another one is in sync and online. Idempotent
//  replica.purged   vid host                                        nothing is left of it on that host. Idempotent
//  host.evict       host                                            what it holds is replaced. Refused before its deadline,
//                                                                   and while too many hosts are away. Idempotent
//  host.evacuate    host                                            the same for a host that may be online. Idempotent
//  host.restore     host                                            neither evicted, nor evacuated, nor removed. Idempotent
//  host.lost        host force(o) snapshots(o) reverts(o)           it never comes back: all of it is forgotten at once. snapshots: the last copy
//                                                                   of one needs force as well. reverts: a volume that is being reverted goes on
//                                                                   without it, as long as another host has what it is reverted to
//  host.remove      host                                            an empty host takes its devices down, then says
//  host.gone        host                                            this. Forgotten
//  option.set       name value host(o)                              see option.h. value "default": no longer set here
//  life.elapsed     hosts{id: ms} replicas[[vid, host, ms]..]       how long hosts have been away and replicas failed, as
//                                                                   leaders have counted. Never less than before
//  record.propose   vid host version term members primary           the primary's proposal (W3, C6, J3; M1 if it names another
//                                                                   primary and the next term). See propose_entry()
//  record.suspect   vid host                                        S1, S3: restarted with hot extents. Idempotent
//  record.resign    vid host                                        restarted without: deposes it if it is the primary.
//                                                                   Send in admission (S3) if the record names this host
//                                                                   as primary and the kernel does not serve. Idempotent
//  record.failed    vid host                                        its disk failed (EV_DISK_ERROR). Idempotent
//  record.repaired  vid host                                        failed -> stale: its disk could be attached again
//  record.failover  vid version primary keep[] last_resort(o)       the controller's (controller.h); version: the one it saw
//  record.open      vid host ended(o)                               session. EV_OPEN. Idempotent while this host has a
//                                                                   session newer than "ended" (the last one this host's
//                                                                   kernel said EV_CLOSE for, or, after a boot, the one the
//                                                                   log then listed); else a new session
//  record.close     vid host session                                EV_CLOSE. Idempotent
//
// Every record change makes version+1; its answer has version, term and primary as they are then. record.* take an optional "version": refused unless the
// record still has it. Only phase ready takes them, record.suspect/failed/resign/close also deleting (then without effect).
//
// Context: no thread safety; the daemon's main thread owns its State. Copy it to hand it out.
#pragma once

#include "lib/error.h"
#include "lockstepd/cluster/host_set.h"
#include "lockstepd/net/certs.h"
#include "uapi/lockstep.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lockstep {

using HostId = uint8_t;    // 1..64; 0: none

// Hosts of neighbouring versions work together while they are updated one by one: an entry says which feature level it needs, and one
// that needs more than the lowest of all hosts is not proposed (level_obstacle()). What is new in a level is a new operation or a new
// field, never another meaning of what there was.
constexpr uint32_t LEVEL_FIRST = 1;
constexpr uint32_t LEVEL_RECOVER = 2;                   // cluster.recover, host.rejoin, witnesses, volume.delete by force
constexpr uint32_t LEVEL_ADOPT = 3;                     // volume.adopt, options of resync
constexpr uint32_t LEVEL_INVALIDATE = 4;                // replica.invalidate
constexpr uint32_t LEVEL_COPIES = 5;                    // snapshot.revert onto another volume; snapshot.copy, .copied and .drop, what they need
constexpr uint32_t LEVEL_REBUILD = 6;                   // cluster.rebuild
constexpr uint32_t LEVEL_CLIENTS = 7;                   // client.add, client.remove
constexpr uint32_t LEVEL_MEND = 8;                      // pool.mend, pool.mended, disks in pool.report
constexpr uint32_t LEVEL_SPREAD = 9;                    // group.redundancy, group.spread
constexpr uint32_t LEVEL_GROUPS = 10;                   // groups in cluster.rebuild
constexpr uint32_t LEVEL_PLACEMENT = 11;                // host.label, volume.rules, group.rules, rules of what is created, replica.pin
constexpr uint32_t LEVEL_REVERT = 12;                   // a revert gets by without a replica: "without_failed", "reverting", "reverts"
constexpr uint32_t LEVEL_POOL_DELETE = 13;              // pool.delete, pool.deleted
constexpr uint32_t LEVEL_IN_PLACE = 14;                 // a revert in thick pools: "in_place"
constexpr uint32_t LEVEL_ABANDON = 15;                  // snapshot.abandon
constexpr uint32_t LEVEL_ALLOCATED = 16;                // "allocated" in snapshot.taken
constexpr uint32_t LEVEL_PREPARE = 17;                  // snapshot.prepared; "prepare" in snapshot.create
constexpr uint32_t LEVEL_PAST = 18;                     // "past" in snapshot.revert: in thick pools, past other snapshots
constexpr uint32_t LEVEL_REVERT_VERSION = 19;           // "version" in snapshot.revert
constexpr uint32_t LEVEL = LEVEL_REVERT_VERSION;        // highest feature level of entries that this program understands
constexpr unsigned MAX_PORT = 65535;
constexpr unsigned DEFAULT_PORT = 7788;
constexpr unsigned DEFAULT_REDUNDANCY = 2;
constexpr uint64_t MAX_VOLUME_BYTES = 64ull << 40;      // 64 TiB
constexpr size_t MAX_FAILURES = 64;                     // reasons of rolled back creates that are remembered
constexpr size_t MAX_ADDRESSES = 8;                     // of one host
constexpr size_t MAX_LABELS = 32;                       // of one group or volume
constexpr size_t MAX_APART = 64;                        // volumes that one volume names to be apart from
constexpr size_t MAX_POOL_DISKS = 256, MAX_DISK_PATH = 255;
constexpr size_t MAX_LABEL_KEY = 64, MAX_LABEL_BYTES = 1024;

using Labels = std::map<std::string, std::string>;      // keys: printable ASCII without spaces; texts: UTF-8
constexpr unsigned EPOCH_SHIFT = 32;
inline uint64_t epoch_of(uint64_t raft_id) { return raft_id >> EPOCH_SHIFT; }    // in which it was given out

constexpr size_t MAX_CLIENTS = 256;
constexpr size_t MAX_TOKENS = 64;                       // that have not ended yet, used ones included

// Where replicas of a volume, or of all volumes of a group, may be (rules.cc).
struct Rules {
	std::string different;                          // label of hosts: no two replicas where it has the same value; empty: no such rule
	std::string same;                               // label: all replicas where it has the same value; "label=value": where it has this one
	HostSet avoid;                                  // no replica on these hosts
	std::vector<uint32_t> apart;                    // ascending vids: on no host that has a replica of one of these, which holds for them, too
	bool operator==(const Rules &) const = default;
	bool empty() const { return *this == Rules(); }
};

struct Host {
	HostId id = 0;
	std::string uuid, name;
	std::vector<std::string> addresses;             // preferred first
	unsigned port = DEFAULT_PORT;
	uint64_t raft_id = 0;                           // a serial of its own, never used again; see epoch_of()
	uint64_t former_raft_id = 0;                    // the one before, with which it asked for this one; may not vote any more
	bool online = true;
	uint64_t since_ms = 0;                          // Unix time at which it became so
	uint32_t level = 1;                             // of the program that it runs
	std::string key;                                // digest of its public key, see net/certs.h; empty in tests only
	bool witness = false;                           // votes, and has neither pools nor devices
	bool evicted = false;                           // away too long: what it holds is replaced; ends when it is back
	bool evacuating = false;                        // what it holds is moved to other hosts
	bool removing = false;                          // takes its devices down, then it is gone
	uint64_t away_ms = 0;                           // counted by leaders while it is offline (life.h)
	std::map<std::string, std::string> options;     // that differ for this host (option.h)
	Labels labels;                                  // such as rack or site, for rules; short printable ASCII
	bool has_devices() const { return !removing && !witness; }
	bool keeps_replicas() const { return !witness && !evicted && !evacuating && !removing; }
	bool operator==(const Host &) const = default;
};

enum class PoolKind { thick, thin };

struct Pool {
	std::string name;
	HostId host = 0;
	PoolKind kind = PoolKind::thin;
	std::string vg, thin_lv;                        // thin_lv only for thin
	uint64_t size_bytes = 0;                        // of the volume group or thin pool
	uint64_t free_bytes = 0;                        // as last reported
	unsigned metadata_percent = 0;                  // of a thin pool, used, rounded up; as last reported
	std::map<std::string, std::string> disks;       // LVM's UUID -> path when it was last seen, those that are missing included
	std::string mending;                            // UUID of a disk that is gone for good and not out of the volume group yet; see mend.cc
	std::string mending_by;                         // path of the disk that takes its place; empty: none does
	bool deleting = false;                          // empty, takes nothing, and goes when its host has let go of it; see pools.cc
	bool operator==(const Pool &) const = default;
};

enum class ReplicaState : uint8_t {
	insync = LKS_REPLICA_INSYNC,
	suspect = LKS_REPLICA_SUSPECT,                  // in sync, but restarted unclean
	stale = LKS_REPLICA_STALE,
	failed = LKS_REPLICA_FAILED,
};

struct Replica {
	HostId host = 0;
	ReplicaState state = ReplicaState::insync;
	uint64_t since = 0;                             // version that last took it out of the in-sync set, or added it
	uint64_t added = 1;                             // version that added it
	std::string pool;
	uint64_t md_offset = 0;                         // bytes from the start of its LV to its metadata
	bool created = false;
	uint64_t next_offset = 0;                       // the volume grows: where its metadata move to; 0: they have, or need not
	bool wipe = false;                              // they have moved, and where they stood is not zeros yet
	bool leaving = false;                           // goes as soon as enough others are in sync
	bool asked = false;                             // replica.add asked for it: if it cannot be made, redundancy is again what it was
	HostId instead_of = 0;                          // replica.move: if it cannot be made, that one does not leave
	uint64_t failed_ms = 0;                         // counted by leaders while it is failed (life.h)
	bool pinned = false;                            // stays here (rules.cc)
	bool in_sync() const { return state == ReplicaState::insync || state == ReplicaState::suspect; }
	bool clean() const { return state == ReplicaState::insync; }
	bool operator==(const Replica &) const = default;
};

// What a host still has to remove of a replica that is in the record no more.
struct Remnant {
	HostId host = 0;
	std::string pool;
	uint64_t md_offset = 0;
	uint64_t lv_bytes = 0;
	bool renew = false;                             // when it is gone, its host gets a new, empty replica
	bool pinned = false;                            // ... which is pinned
	bool operator==(const Remnant &) const = default;
};

struct Opener {
	HostId host = 0;
	uint64_t session = 0;                           // 1 .. session_serial
	bool operator==(const Opener &) const = default;
};

struct Group {                                          // of volumes, such as a storage repository of XAPI
	std::string name, pool;
	unsigned redundancy = DEFAULT_REDUNDANCY;       // of new volumes
	bool spreading = false;                         // its volumes are to get this redundancy, too
	Labels labels;
	Rules rules;                                    // of its volumes, beside their own
	bool operator==(const Group &) const = default;
};

enum class Phase { creating, ready, deleting };

enum class NoQuorum : uint8_t { freeze, error };        // what waits for a primary when there is no quorum

struct Volume {
	uint32_t vid = 0;                               // a serial, never used again
	std::string uuid, name;
	uint32_t minor = 0;                             // unique among all volumes, tombstones included
	uint64_t size_bytes = 0;                        // a multiple of 4096
	uint32_t block_size = LKS_BLOCK_DEFAULT;        // bytes
	uint8_t cls = LKS_EXCLUSIVE;                    // enum lks_class
	unsigned redundancy = DEFAULT_REDUNDANCY;
	Phase phase = Phase::creating;
	std::string group;                              // empty: in none
	Labels labels;
	Rules rules;                                    // its own; see rules_of()
	std::string failure;                            // why a create is being rolled back
	NoQuorum no_quorum = NoQuorum::freeze;
	HostId chosen_primary = 0;                      // by an administrator (volume.primary)
	uint64_t grow_bytes = 0;                        // size it is growing to; 0: it is not
	uint32_t source = 0;                            // creating: snapshot whose content its replicas get; 0: empty
	bool reverting = false;                         // creating: it has been ready before, and is never rolled back
	std::string adopts;                             // creating: LV of the orphan that becomes its one replica; never rolled back, either
	HostSet devices;                                // hosts that said device.ready
	// the record of DESIGN section 3
	uint64_t version = 1, term = 1, incarnation = 0, session_serial = 0;
	HostId primary = 0;
	bool drained = false;
	std::vector<Replica> replicas;                  // ascending host
	std::vector<Opener> openers;                    // ascending host
	std::vector<Remnant> remnants;                  // ascending host; never of a host that has a replica
	HostSet shunned;                                // a replica could not be made there: others are tried first
	bool operator==(const Volume &) const = default;

	bool may_be_rolled_back() const { return !reverting && adopts.empty(); }
	const Replica *replica(HostId host) const;      // nullptr if it has none there
	Replica *replica(HostId host);
	const Opener *opener(HostId host) const;
	const Remnant *remnant(HostId host) const;
	HostSet hosts_with_something() const;           // a replica, a remnant or a device
};

// ---- snapshots (snapshots.cc) ----

enum class SnapshotPhase : uint8_t { preparing, quiescing, taking, resuming, ready, discarding, deleting };

struct SnapshotCopy {                                   // one host's LV
	HostId host = 0;
	std::string pool;
	uint64_t md_offset = 0;                         // of the replica when it was taken
	bool taken = false;
	uint64_t added = 0;                             // entry that had it copied here; 0: none, it was taken here
	uint64_t allocated_bytes = 0;                   // of a thin pool, which never changes; 0: not known
	bool prepared = false;                          // its host has done what can be done while writes go on
	bool operator==(const SnapshotCopy &) const = default;
};

struct Snapshot {
	uint32_t sid = 0;                               // a serial, never used again
	uint32_t set = 0;                               // sid of the first of those taken at one point
	std::string uuid, name;
	uint32_t vid = 0;                               // of the volume; it may be gone
	std::string volume_uuid, volume;                // name
	std::string group;                              // the volume's
	Labels labels;
	uint64_t size_bytes = 0;
	uint32_t block_size = LKS_BLOCK_DEFAULT;
	uint64_t created_ms = 0;                        // Unix time
	uint64_t reserve_bytes = 0;                     // of each copy in a thick pool
	SnapshotPhase phase = SnapshotPhase::quiescing;
	bool prepare = false;                           // it begins with preparing, each attempt anew
	unsigned attempt = 1;
	HostId holder = 0;                              // host whose primary holds still, 0: none yet
	uint64_t hold = 0;                              // number of its quiesce
	bool resumed = false;                           // the hold was unbroken
	std::string failure;                            // why it is being discarded
	bool last_try = false;
	bool temporary = false;                         // made for a clone: goes when nobody needs it after its deadline
	unsigned redundancy = DEFAULT_REDUNDANCY;       // the volume's then: so many copies there should be, also when the volume is gone
	uint64_t deadline_ms = 0;                       // Unix time of the leader; 0: not set yet
	std::vector<SnapshotCopy> copies;               // ascending host, as the other two. Ready: each one is whole
	std::vector<SnapshotCopy> arriving;             // being copied to that host: they count for nothing yet (snapshot_copies.cc)
	std::vector<SnapshotCopy> going;                // given up: that host has to remove it
	bool operator==(const Snapshot &) const = default;

	const SnapshotCopy *copy(HostId host) const;
	const SnapshotCopy *trace(HostId host) const;   // of any of the three: an LV may be there
	bool in_progress() const { return phase <= SnapshotPhase::resuming; }
};

struct Failure {                                        // of a create, or of a new replica, that was rolled back
	std::string name, message;
	int status = 0;
	bool operator==(const Failure &) const = default;
};

struct Token {                                          // an invitation to join
	uint64_t end_ms = 0;                            // Unix time
	std::string used_by;                            // UUID of the host that came with it
	bool operator==(const Token &) const = default;
};

struct ApiClient {                                      // who may use the API over TLS (net/certs.h)
	std::string role;                               // "admin" or "read-only"
	std::string key;                                // digest of its public key: another certificate of this name does not count
	uint64_t end_ms = 0;                            // Unix time at which its certificate ends
	bool operator==(const ApiClient &) const = default;
};

struct State {
	uint64_t applied = 0;                           // index of the last entry, refused ones included
	std::string uuid, name;                         // of the cluster; empty before cluster.init
	uint32_t level = 1;                             // highest of any entry so far: no program of a lower one can follow
	uint64_t epoch = 0;                             // +1 each time a lost majority was replaced by hand (recover.h)
	unsigned next_host = 1;
	uint64_t next_raft_id = 1;
	uint32_t next_vid = 1;
	std::map<HostId, Host> hosts;
	std::map<std::pair<std::string, HostId>, Pool> pools;
	std::map<std::string, Group> groups;
	std::map<uint32_t, Volume> volumes;             // by vid; tombstones included
	std::map<uint32_t, Failure> failures;           // by vid; the last MAX_FAILURES
	uint32_t next_sid = 1;
	std::map<uint32_t, Snapshot> snapshots;         // by sid
	std::map<uint32_t, Failure> snapshot_failures;  // by set; the last MAX_FAILURES
	Authority authority;                            // of the cluster; see host/keys.h for why its key is here
	std::map<std::string, Token> tokens;            // by the SHA-256 of the secret, in hex
	std::map<std::string, std::string> options;     // of the cluster, those that are set (option.h)
	std::map<std::string, ApiClient> clients;       // by name
	bool operator==(const State &) const = default;

	bool initialized() const { return !uuid.empty(); }
	// Takes part in the log: not one that must rejoin first.
	bool is_member(const Host &host) const { return epoch_of(host.raft_id) == epoch; }
	const Host *host(HostId id) const;
	const Host *host_named(std::string_view name) const;
	const Host *host_with_uuid(std::string_view uuid) const;
	bool online(HostId id) const;
	const Pool *pool(const std::string &name, HostId host) const;
	const Volume *volume(uint32_t vid) const;
	const Volume *volume_named(std::string_view name) const;    // not tombstones
	const Snapshot *snapshot(uint32_t sid) const;
	const Snapshot *snapshot_named(std::string_view volume, std::string_view name) const;    // not those being removed
	const Snapshot *snapshot_in_progress(uint32_t vid) const;
	std::string host_name(HostId id) const;         // "host 7" if unknown, "none" for 0
};

// Applies one entry. index: of the log; an index not above state.applied changes nothing and answers status 10 (a log that
// replays what a snapshot holds). Throws std::runtime_error if the entry needs a higher level than LEVEL: this program is
// too old for this log and must stop.
nlohmann::json apply(State &state, uint64_t index, const nlohmann::json &entry);
nlohmann::json apply_bytes(State &state, uint64_t index, std::span<const uint8_t> cbor);    // damaged bytes: status 10

uint32_t level_of(const nlohmann::json &entry);                        // that it needs
// Why the entry cannot be proposed yet: a host runs a program that would not understand it. Empty: it can.
std::string level_obstacle(const State &state, const nlohmann::json &entry);

// What has become of the certificate of that name and key (its digest), so that it does not count; empty: it counts. now_ms: Unix time.
std::string client_objection(const State &state, const std::string &name, const std::string &key, uint64_t now_ms);
bool all_understand(const State &state, uint32_t level);               // ... all hosts' programs
std::vector<uint8_t> encode(const nlohmann::json &entry);              // CBOR; adds "level" if there is none
std::vector<uint8_t> snapshot(const State &state);
Result<State> restore(std::span<const uint8_t> bytes);                 // failed if damaged or of a newer format

nlohmann::json to_json(const State &state);                            // what snapshot() encodes; also for diagnosis
nlohmann::json to_json(const Volume &volume);

// All invariants. Empty if they hold, else the first one that does not. For tests and for restore().
std::string check(const State &state);
std::string check_volume(const Volume &volume);

// ---- the record as the kernel knows it ----

lks_record to_record(const Volume &volume);

// The entry for an EV_PROPOSE from this host's kernel: {"op":"record.propose", version: record.version - 1, ...}.
nlohmann::json propose_entry(const lks_record &record, HostId host);

// ---- what others decide by ----

// Bytes of metadata for a volume of this size.
uint64_t metadata_bytes(uint64_t size_bytes, uint32_t block_size);
// Bytes a replica takes in its pool: data, metadata, rounded up to LVM extents of 4 MiB.
uint64_t replica_bytes(uint64_t size_bytes, uint32_t block_size);
uint64_t replica_bytes(const Volume &volume, const Replica &replica);  // as it is, or as large as it is to become
// What all pools hold, found in one pass over the volumes and snapshots: for whoever asks about many. As the State was when it was made.
class Reservations {
public:
	explicit Reservations(const State &state);    // which must outlive it
	uint64_t reserved(const Pool &pool) const;     // bytes
	uint64_t available(const Pool &pool) const;    // bytes that new replicas may still take

private:
	struct Sum {
		uint64_t all = 0, not_created = 0;
	};
	void add(const std::string &pool, HostId host, uint64_t bytes, bool created);
	Sum of(const Pool &pool) const;

	const State &state_;
	std::map<std::pair<std::string, HostId>, Sum> sums_;
};
// The same of one pool.
uint64_t pool_available(const State &state, const Pool &pool);
uint64_t pool_reserved(const State &state, const Pool &pool);
unsigned pool_used_percent(const Pool &pool);                          // of its space, or of a thin pool's metadata if that is more
constexpr unsigned POOL_ALARM_PERCENT = 70, POOL_GRAVE_PERCENT = 80;
constexpr unsigned POOL_FULL_PERCENT = 90;                             // from here on it takes no new replicas

bool valid_volume_name(std::string_view name);                         // [A-Za-z0-9][A-Za-z0-9._-]{0,126}
bool valid_name(std::string_view name);                                // of hosts, pools, clusters; the same, up to 63
const char *to_string(ReplicaState state);
const char *to_string(Phase phase);
const char *to_string(PoolKind kind);
const char *to_string(NoQuorum policy);
const char *to_string(SnapshotPhase phase);

// The replica to serve next, 0 if none can: in sync, not suspect and online. Prefers the one an administrator chose, then an
// opener's host, then the host with the fewest primaries, then the lowest id.
HostId choose_primary(const State &state, const Volume &volume);

// Where the volume had better be served: the host that an administrator chose, else that of the single opener of an exclusive
// volume, if its replica is in sync, not suspect and online; else where it is. The primary hands over to it.
HostId wanted_primary(const State &state, const Volume &volume);

// The volume is growing and all its replicas are ready for its new size.
bool all_moved(const Volume &volume);

}    // namespace lockstep
