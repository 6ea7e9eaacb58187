// SPDX-License-Identifier: GPL-2.0-or-later
//
// The simulated cluster: virtual time, hosts that run the product's core, disks, a network, daemons, an ideal consensus
// log, clients, faults, and the checks of what comes out. It follows model/protocol.py's World; what the model calls a step
// is STEP here, but everything happens at its own microsecond.
//
//	world.cc      events, the run, healing, final checks
//	host.cc       a host's life, and the core's surroundings (struct lks_ops) as the kernel module would be
//	storage.cc    transfers with the disks
//	network.cc    links, lanes, partitions
//	log.cc        the ideal consensus log, the changes of records that it takes, and the controller
//	daemon.cc     what lockstepd does on a host: attach, admit, tell records, forward proposals
//	client.cc     openers and their requests
//	faults.cc     what goes wrong
//	inspect.cc    invariants that need a look inside the core, and state dumps
//
// Everything is deterministic: one thread, one source of chance, no pointer is ever compared or hashed for order.
//
// Lifetimes: a Host lasts for the run; its boot number tells one life from the next. An Instance is a volume on a host from
// its creation to its destruction or the host's crash; events name it by host, volume and serial number and find nothing if
// it has gone.
#pragma once

#include "disk.h"
#include "history.h"
#include "random.h"

#include "core/core.h"

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace lockstep::sim {

using Time = uint64_t;    // microseconds since the run began
constexpr Time MS = 1000, SECOND = 1000 * MS;
constexpr Time STEP = 50 * MS;
constexpr uint64_t SECTOR = LKS_SECTOR;

struct Violation : std::runtime_error {
	using std::runtime_error::runtime_error;
};

#define SIM_STATS(X) \
	X(seconds) X(events) X(reads) X(writes) X(zeroes) X(discards) X(flushes) X(fua) X(failed_requests) X(fenced) X(opened) \
	X(frames) X(copies) X(compares) X(spared) X(verifies) X(verified) X(mismatches) X(gave_up) X(moves) X(grown) X(crashes) X(blackouts) X(cuts) X(link_losses) X(silent) X(pauses) X(disk_stalls) X(daemon_deaths) \
	X(log_outages) X(reattaches) X(versions) X(failovers) X(last_resorts) X(activations) X(incarnations) X(joins) X(removals) \
	X(handovers) X(holds) X(snapshots) X(suspects) X(clean_attaches) X(table_writes) X(disk_errors) X(damaged_frames) X(full_pools) X(no_space) X(alloc_failures) X(io_failures) X(unreadable)

enum class Stat : unsigned {
#define SIM_STAT_ENUM(name) name,
	SIM_STATS(SIM_STAT_ENUM)
#undef SIM_STAT_ENUM
	count,
};

struct Stats {
	std::array<uint64_t, static_cast<size_t>(Stat::count)> n{};
	uint64_t &operator[](Stat s) { return n[static_cast<size_t>(s)]; }
};

struct Options {
	unsigned steps = 3000;           // of the hostile part of a run
	bool trace = false;
	double alloc_failures = 0;       // probability per allocation
	double io_errors = 0;            // probability per transfer
	bool busy = false;               // three hosts, one volume, many requests, no faults
};

// What a seed's run is like, so that runs differ in kind and not only in detail.
struct Profile {
	unsigned hosts, volumes, lanes;
	Time net_delay;                  // of a frame, at most, when nothing stalls
	double net_stall;                // probability that a frame stalls
	double net_damage;               // probability that a bit of a frame's header flips
	Time disk_delay;                 // of a transfer, at most, when nothing stalls
	double disk_slow;                // probability that a transfer takes long
	double faults;                   // probability of a fault in a step
	double pace;                     // requests in a step and opener, at most
	unsigned depth;                  // requests at a time and host, at most
	uint32_t lease_ms, answer_ms;
	double alloc_failures, io_errors;
	// of the volumes; 0: by chance
	unsigned replicas;
	unsigned shared;                 // 1: no, 2: yes
	unsigned grows;                  // 1: no, 2: yes
	uint32_t sync_rate_kib;          // ceiling of resync; 0: none
	uint32_t sync_floor_kib, sync_target_ms;    // 0: as without
	uint32_t freeze_ms;              // requests give up after that; 0: never
	uint32_t block_size;
	uint64_t bytes;
};

struct World;
struct Host;
struct Instance;

// A volume as the cluster knows it.
struct Volume {
	uint32_t vid = 0;
	std::array<uint8_t, 16> uuid{};
	uint64_t bytes = 0;
	uint32_t block_size = 0;
	bool thick = false, shared = false;
	lks_layout layout{};
	std::vector<uint8_t> replicas;           // hosts
	std::vector<lks_record> log;             // all versions; the last is the record
	std::vector<Span> windows;               // where clients work
	std::unique_ptr<History> history;
	// a hold of the writes, during which members' contents are copied
	struct Hold {
		uint64_t number = 0;             // 0: none is wanted
		uint8_t host = 0;                // where the primary is
		std::vector<Span> windows;       // as they were when it began
		std::map<uint8_t, std::vector<uint64_t>> copies;    // by host: the windows' sectors
	} hold;
	// growing, as the daemons do it
	std::map<uint8_t, uint64_t> meta_of;     // by host: offset of the replica's metadata in the log, bytes
	std::map<uint8_t, uint64_t> grow_offset; // where it goes
	uint64_t grow_to = 0;                    // bytes; 0: does not grow
	bool growing = false;
	std::set<uint8_t> moved, retired;        // hosts: the log names the new place; the old one is known to be zeros
	bool damaged = false;                    // behind the core's back: verify may find differences

	uint8_t key_of(uint8_t client) const { return shared ? client : 0; }    // of a session, see History
	uint64_t sectors() const { return bytes / SECTOR; }
	const lks_record &record() const { return log.back(); }
};

// A request of a client on a host. req comes first: the core knows its address only.
struct Op {
	lks_req req;
	uint64_t id, issued, incarnation, session;
	uint32_t vid;
	Span span;
};

// A transfer between a replica and its disk.
struct Transfer {
	uint64_t id;
	lks_io *io;
	lks_io what;                             // as it was submitted
	uint64_t mark;                           // FLUSH: what had been written before
	std::vector<uint64_t> data;              // WRITE
	std::vector<MetaSector> meta;            // META
	std::vector<bool> early;                 // sectors that took effect before the transfer completed; empty: none
};

enum class Door { closed, opening, open, closing, fenced };

struct Instance {
	Instance(World &w, Host &h, Volume &v, uint64_t number) : world(w), host(h), volume(v), serial(number) {}

	World &world;
	Host &host;
	Volume &volume;
	const uint64_t serial;
	lks_vol *core = nullptr;
	// the replica
	bool attached = false, admitted = false, detaching = false, failed = false, suspect = false;
	bool no_space = false;                   // a transfer failed for want of space
	std::optional<Span> unreadable;          // sectors that the disk has lost, until they are written
	Time attach_after = 0;
	uint32_t crowd = 0;                      // volumes of this host that resync, when this one does
	bool destroy = false;                    // after detaching
	bool hurry = false;                      // attach again at once
	std::vector<std::unique_ptr<Transfer>> transfers;
	// the client
	Door door = Door::closed;
	uint64_t session = 0;
	bool asked = false;                      // opening: the daemon has committed a session for this host
	struct Unflushed {
		uint64_t done, incarnation;      // stamp of the completion, and what was the newest incarnation then
	};
	std::vector<Unflushed> unflushed;        // S2: writes of this session that no flush covers
	double pace = 0;
	bool commits = false, written = false;    // writes and flushes in turn, one at a time; the last one was a write
	std::vector<std::unique_ptr<Op>> ops;
	// what the core did during a call, worked off after it
	struct Event {
		lks_event_info info;
		lks_record record;
	};
	std::vector<Event> events;
	std::vector<std::pair<Op *, int>> ended;
	uint8_t role = LKS_IDLE;
	uint64_t role_term = 0;
	// memory
	std::unordered_map<void *, size_t> memory;
	std::set<std::pair<uint64_t, lks_buf *>> buffers;    // by number
};

struct Host {
	uint8_t id = 0;
	bool up = false;
	uint64_t boot = 0;
	double rate = 1;                         // of its clock
	uint64_t origin_ms = 0;                  // its clock at boot
	Time booted = 0, paused_until = 0, stalled_until = 0;
	Time full_until = 0;                     // its thin pool has no space: what was never written cannot be
	bool daemon = false;
	std::vector<std::unique_ptr<Instance>> instances;    // by vid - 1; null: none
	std::vector<std::unique_ptr<Disk>> disks;            // by vid - 1; null: no replica here
	std::vector<uint64_t> ended_session;                 // by vid - 1: sessions up to this one are not used again
	std::vector<size_t> applied;                         // by vid - 1: index into the volume's log that its daemon knows
};

struct Frame {
	lks_frame head;
	std::vector<uint64_t> data;
	std::vector<uint8_t> bytes;
	Time due;
};

struct Lane {
	std::deque<Frame> queue;
	Time last_due = 0;
	Time cutoff = NEVER;                     // of a broken link: what is due later is lost
	bool scheduled = false;
};

struct Link {
	uint64_t number = 0;
	std::array<uint8_t, 2> hosts{};
	bool broken = false;
	std::array<std::vector<Lane>, 2> lanes;  // [0]: from hosts[0] to hosts[1]
	struct End {
		bool up = false, lost = false, mute = false;
	};
	std::array<End, 2> ends;
};

struct Cut {
	Time until = 0;
	bool hard = false;                       // breaks a link that is used; otherwise frames wait
};

struct World {
	World(uint64_t seed, const Options &options);
	World(uint64_t seed, const Options &options, const Profile &profile);
	~World();
	World(const World &) = delete;
	World &operator=(const World &) = delete;

	// ---- world.cc
	void run();                              // a whole random run: hostile, healed, power loss, healed, shut down
	void at(Time delay, std::function<void()> action);
	// Like at(), but only if the host still lives the same life then, and not while it is paused.
	void at_host(const Host &h, Time delay, std::function<void()> action);
	void at_instance(const Instance &i, Time delay, std::function<void(Instance &)> action);
	void run_until(Time t);
	void step();                             // STEP of time, with everything that happens by chance
	// Everything heals; then all must become one (I4, I5), and stand where clients may see it.
	void settle(const char *when);
	bool settled(std::string *why);
	void check_contents(const char *when);
	void shut_down();
	void power_loss();
	[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 2, 3)));
	void trace(const char *format, ...) __attribute__((format(printf, 2, 3)));
	bool tracing() const { return options.trace; }
	uint64_t fresh() { return ++serial; }

	// ---- host.cc
	void add_volume();
	void start(Host &h);
	void crash(Host &h, Time away);
	uint64_t clock_ms(const Host &h) const;
	void create(Instance &i);
	void destroy(Instance &i);               // the core's part; the Instance stays
	void discard(Instance &i);               // all of its memory, as a crash does
	int attach(Instance &i);
	Instance *find(uint8_t host, uint32_t vid, uint64_t instance_serial = 0);
	template <typename Call> auto enter(Instance &i, Call call);
	void left_core(Instance &i);
	void handle(Instance &i, const Instance::Event &e);
	lks_buf *new_buffer(Instance &i, uint32_t bytes);
	void put_buffer(lks_buf *buf);
	bool spoils(double probability);         // by chance, and only while the world is hostile

	// ---- storage.cc
	void submit(Instance &i, lks_io *io);
	void transferred(Instance &i, uint64_t id);
	void apply(Instance &i, Transfer &t, bool whole);
	void disturb(Instance &i, const Transfer &read);
	void power_off_disk(Host &h, Instance &i);
	int read_meta(Instance &i, uint64_t offset, void *to, uint32_t bytes);
	unsigned extent_bits(const Host &h, const Volume &v, uint64_t extent) const;    // as its table says; sectors are not torn

	// ---- network.cc
	Link *link_of(uint8_t a, uint8_t b) { return links[index(a, b)].get(); }
	size_t index(uint8_t a, uint8_t b) const { return a < b ? (a - 1u) * hosts.size() + b - 1 : (b - 1u) * hosts.size() + a - 1; }
	bool reach(const Host &a, const Host &b) const;
	void send(Instance &from, uint8_t to, uint8_t lane, const lks_frame &head, lks_buf *buf, const void *bytes);
	void push(Link &l, int direction, unsigned lane, Frame frame);
	void pump(uint8_t a, uint8_t b, uint64_t number, int direction, unsigned lane);
	bool deliver(Link &l, int direction, unsigned lane);      // false: the head of the lane has to wait
	void break_link(uint8_t a, uint8_t b, uint8_t noticed_by);
	void notice(Link &l, int end);
	void redial(uint8_t a, uint8_t b);
	void link_ends_up(uint8_t a, uint8_t b, uint64_t number, int end);
	void cut(uint8_t from, uint8_t to, Time how_long, bool hard);
	void heal_network();

	// ---- log.cc
	bool quorum(const Host &h) const;
	bool commit(Volume &v, const lks_record &next);
	lks_record next_version(const Volume &v) const;
	void propose(uint8_t host, uint32_t vid, const lks_record &wanted);
	void failover(Volume &v);
	void last_resort(Volume &v, uint8_t host);
	void start_term(Volume &v, uint8_t primary, const std::set<uint8_t> &keep);
	void record_suspect(Volume &v, uint8_t host);
	void record_resign(Volume &v, uint8_t host);
	void record_failed(Volume &v, uint8_t host);
	void record_repaired(Volume &v, uint8_t host);
	void record_open(Volume &v, uint8_t host, uint64_t ended);
	void record_close(Volume &v, uint8_t host, uint64_t session);
	void record_grown(Volume &v);

	// ---- daemon.cc
	void daemon_wakes(Host &h);
	void reconcile(Instance &i);
	void grow(Instance &i);
	void admit(Instance &i);
	bool serves_as_told(const Instance &i) const;
	void tell(Host &h, Volume &v);

	// ---- client.cc
	void take_over(Volume &v, uint8_t host);
	void open_door(Instance &i);
	void close_door(Instance &i);
	void opened(Instance &i);
	void fenced(Instance &i);
	void clients_step(Instance &i);
	void issue(Instance &i);
	Op *submit_op(Instance &i, uint8_t op, Span span, uint8_t flags);
	void op_ended(Instance &i, Op *op, int error);
	void check_read(Instance &i, const Op &op);
	void check_flush(Instance &i, const Op &op, bool failed);
	void maybe_closed(Instance &i);

	// ---- faults.cc
	void faults_step();
	void fault();
	void blackout();
	void isolate(Host &h, Volume &v);
	void hand_over(Volume &v, uint8_t to);
	void verify(Volume &v, bool start, bool repair);
	void begin_hold(Volume &v, Time timeout);
	void held(Instance &i, uint64_t number);
	void copy_held(Volume &v, uint8_t from, uint64_t number);
	bool end_hold(Volume &v, uint64_t number);
	void pause(Host &h, Time how_long);
	void reattach(Instance &i, bool anew);
	void spoil_activation(uint8_t host_id, uint32_t vid);
	void restart_under_lease(Instance &i);
	void stall_lane(uint8_t from, uint8_t to, unsigned lane, Time how_long);
	void hold_of_the_replaced(Volume &v);
	void rewrite_halfway(Volume &v);
	void stall_rewriting(Volume &v, uint8_t primary, uint64_t term, Time limit);
	void heal();

	// ---- inspect.cc
	void check_invariants(Volume &v);
	void compare_replicas(Volume &v, const lks_vol &primary, uint8_t other);
	void role_changed(Instance &i);
	std::string state_dump();

	Host &host(uint8_t id) { return *hosts[id - 1]; }
	Volume &volume(uint32_t vid) { return *volumes[vid - 1]; }
	Host &random_host() { return *hosts[random.below(hosts.size())]; }
	Volume &random_volume() { return *volumes[random.below(volumes.size())]; }

	const uint64_t seed;
	const Options options;
	Random random;
	Profile profile;
	Stats stats;
	Time now = 0;
	bool hostile = true;                     // faults happen
	bool busy = true;                        // clients start requests
	bool in_core = false;
	Time log_down_until = 0;
	uint32_t crowd = 0;                      // volumes of a host that resync when one does; 0: random
	double survival = -1;                    // at a crash: of writes that completed unflushed (none in flight does); negative: by chance
	uint64_t digest = 0;                     // of all that happened; equal for equal runs

	std::vector<std::unique_ptr<Host>> hosts;        // by id - 1
	std::vector<std::unique_ptr<Volume>> volumes;    // by vid - 1
	std::vector<std::unique_ptr<Link>> links;        // by index(); null: none
	std::vector<bool> dialing;
	std::vector<Cut> cuts;                           // by (from - 1) * hosts + to - 1

private:
	struct Scheduled {
		Time when;
		uint64_t number;
		std::function<void()> action;
		bool operator>(const Scheduled &o) const { return when != o.when ? when > o.when : number > o.number; }
	};
	std::priority_queue<Scheduled, std::vector<Scheduled>, std::greater<>> queue;
	uint64_t serial = 0;
	uint64_t link_numbers = 0;
};

Profile random_profile(Random &random, const Options &options);
const lks_ops &core_ops();
const char *frame_name(uint8_t type);
std::string describe(const lks_record &r);
bool in_sync(uint8_t state);
const lks_record_replica *replica_in(const lks_record &r, uint8_t host);
const lks_record_opener *opener_in(const lks_record &r, uint8_t host);

// Calls into the core. What it did is worked off before this returns, except when an earlier call is being worked off.
template <typename Call> auto World::enter(Instance &i, Call call)
{
	if (in_core)
		fail("the simulator called the core from inside the core");
	struct Guard {
		bool &flag;
		explicit Guard(bool &f) : flag(f) { flag = true; }
		~Guard() { flag = false; }
	};
	if constexpr (std::is_void_v<decltype(call(i.core, uint64_t{}))>) {
		{
			Guard guard(in_core);
			call(i.core, clock_ms(i.host));
		}
		left_core(i);
	} else {
		auto result = [&] {
			Guard guard(in_core);
			return call(i.core, clock_ms(i.host));
		}();
		left_core(i);
		return result;
	}
}

}    // namespace lockstep::sim

struct lks_buf {
	int refs;
	uint32_t bytes;
	uint64_t number;
	lockstep::sim::Instance *owner;
	std::vector<uint64_t> sectors;    // one value each, see disk.h
	bool returned = false;            // of a read that has ended: whoever asked for it has its memory back
};
