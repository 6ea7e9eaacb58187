// SPDX-License-Identifier: GPL-2.0-or-later
//
// The kernel module, seen from the daemon: the commands, dump and events of uapi/lockstep.h as typed functions.
//
// Kernel is a struct of functions so that tests put a fake in its place. Commands may block (REPLICA_DETACH drains) and are
// safe to call from several worker threads at once; each uses a socket of its own. An Error carries the kernel's own words
// where there are some. When the module is not loaded every command says so, and works as soon as it is.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/error.h"
#include "lockstepd/net/loop.h"
#include "uapi/lockstep.h"

namespace lockstep {

struct KernelPeerReplica {
	uint8_t host = 0;
	uint8_t sync_state = 0;    // enum lks_sync_state
	uint64_t dirty_blocks = 0;
	bool operator==(const KernelPeerReplica &) const = default;
};

struct KernelReplica {
	std::string path;
	uint64_t offset = 0;
	bool suspect = false;      // extents were hot at attach (S1)
	bool admitted = false;
	bool failed = false;
	uint64_t capacity = 0;     // bytes of volume that its metadata can describe
	uint64_t move_offset = 0;  // of a META_MOVE that stands; 0: none
	bool move_current = false; // ... and both places are current
	bool full = false;         // its pool has no room: writes wait
	bool stuck = false;        // its disk has answered nothing for long
	bool operator==(const KernelReplica &) const = default;
};

// VOLUME_TUNE; 0 everywhere: the module's defaults.
struct VolumeTune {
	uint32_t freeze_ms = 0;        // requests that wait longer fail; 0: they wait
	uint32_t sync_rate_kib = 0, sync_floor_kib = 0, sync_target_ms = 0;
	bool operator==(const VolumeTune &) const = default;
};

struct VerifyOrder {
	bool start = false, repair = false;    // or stop; rewrite what differs
	uint64_t done = 0, differ = 0;         // blocks: what an earlier primary has compared, and how many of them differed
};

struct KernelVolume {
	uint32_t vid = 0;
	std::string uuid;          // as text
	std::string name;
	uint32_t minor = 0;
	uint64_t size_bytes = 0;
	uint32_t block_size = 0;
	uint8_t cls = 0;
	bool has_device = false;
	uint32_t openers = 0, writers = 0, open_waiters = 0;
	uint64_t session_ended = 0;    // sessions up to this one were closed here
	std::optional<KernelReplica> replica;
	bool whole = true;         // false: a replica is being attached, and of what follows the kernel says nothing until that is over
	uint8_t role = LKS_IDLE;   // enum lks_role
	uint64_t version = 0, term = 0, noted_version = 0;
	uint8_t session_with = 0;
	uint32_t pending = 0, oldest_ms = 0;
	std::vector<KernelPeerReplica> peers;
	uint32_t hot_extents = 0, written_extents = 0;
	uint64_t hold = 0;         // number of the quiesce that stands; 0: none
	VolumeTune tune;
	uint8_t handover_to = 0;   // host id of a planned handover under way; 0: none
	uint64_t verify_total = 0, verify_done = 0, verify_differ = 0;    // blocks
	bool verify_repair = false;
	bool operator==(const KernelVolume &) const = default;
};

struct KernelPeer {
	uint8_t host = 0;
	uint64_t link = 0;         // 0: never had one
	uint8_t lanes = 0;
	bool up = false;
	bool operator==(const KernelPeer &) const = default;
};

struct KernelDump {
	uint64_t seq = 0;          // of the last event before it
	std::map<uint32_t, KernelVolume> volumes;    // by vid
	std::map<uint8_t, KernelPeer> peers;         // by host

	const KernelVolume *volume(uint32_t vid) const;
	const KernelPeer *peer(uint8_t host) const;
};

struct KernelEvent {
	enum lks_cmd kind = LKS_CMD_UNSPEC;    // LKS_CMD_EV_*
	uint64_t seq = 0;
	uint32_t vid = 0;
	uint8_t host = 0;
	uint64_t link = 0, session = 0;
	std::optional<lks_record> record;
	std::string reason, op;
	int32_t error = 0;
	uint64_t hold = 0, at = 0, length = 0;
	bool repair = false;
};

struct KernelVolumeSpec {
	uint32_t vid = 0;
	std::string uuid, name;
	uint32_t minor = 0;
	uint64_t size_bytes = 0;
	uint32_t block_size = 0;
	uint8_t cls = 0;
};

struct AttachAnswer {
	bool suspect = false;
	uint64_t disk_version = 0, disk_term = 0;
};

// A part of a volume's trail: which sectors of one extent have been written through the device here.
struct TrailPart {
	uint64_t at = 0;        // byte of the volume
	std::string bitmap;     // LKS_TRAIL_BITMAP bytes, as in uapi/lockstep.h
};

struct Kernel {
	std::function<Done(uint8_t host)> host_set;
	std::function<Done(uint8_t host)> peer_set;
	std::function<Done(uint8_t host)> peer_del;
	std::function<Done(uint8_t host, uint8_t lane, uint8_t lanes, uint64_t link, int fd)> lane_add;    // fd stays the caller's
	std::function<Done(const KernelVolumeSpec &)> volume_add;
	std::function<Done(uint32_t vid)> volume_del;
	std::function<Result<AttachAnswer>(uint32_t vid, const std::string &path, uint64_t offset, bool thin)> replica_attach;
	std::function<Done(uint32_t vid)> replica_detach;
	std::function<Done(const lks_record &record, bool admit)> config_set;
	std::function<Done(uint32_t vid, int32_t error)> open_refuse;    // error: a negative errno
	// See uapi/lockstep.h for what each does. hand_over, quiesce, resume, verify: where the volume is served.
	std::function<Done(uint32_t vid, uint8_t host)> hand_over;
	std::function<Done(uint32_t vid, uint64_t hold, uint32_t timeout_ms)> quiesce;
	std::function<Done(uint32_t vid, uint64_t hold)> resume;
	std::function<Done(uint32_t vid, uint64_t offset, uint64_t size_bytes)> meta_move;
	std::function<Done(uint32_t vid, uint64_t offset)> meta_moved;
	std::function<Done(uint32_t vid, uint64_t size_bytes)> resize;
	std::function<Done(uint32_t vid, const VerifyOrder &)> verify;
	std::function<Done(uint32_t vid, const VolumeTune &)> tune;
	std::function<Done(uint32_t vid)> abort;
	std::function<Done(uint32_t vid)> device_add;
	std::function<Done(uint32_t vid)> device_del;
	// A trail's number; its first part at or behind this byte, if there is one.
	std::function<Result<uint64_t>(uint32_t vid)> trail_begin;
	std::function<Result<std::optional<TrailPart>>(uint32_t vid, uint64_t number, uint64_t at)> trail;
	std::function<Done(uint32_t vid, uint64_t number)> trail_end;    // done if it is not there
	std::function<Result<KernelDump>()> dump;
};

// The real one. host_name is for messages.
Kernel kernel_over_netlink(const std::string &host_name);

// The multicast group, on the loop thread. While the module is not loaded it looks for it once a second, so that
// loading the module later is enough.
class KernelEvents {
public:
	struct Handlers {
		std::function<void(const KernelEvent &)> event;
		// Events were lost (a hole in the sequence, an overrun) or are listened to from now on: dump again.
		std::function<void()> resync;
		// The module came (empty) or went (what to do). Called on change, and once after start.
		std::function<void(const std::string &error)> module;
	};

	KernelEvents(Loop &loop, const std::string &host_name, Handlers handlers);
	~KernelEvents();
	KernelEvents(const KernelEvents &) = delete;
	KernelEvents &operator=(const KernelEvents &) = delete;

	struct Impl;    // internal

private:
	std::unique_ptr<Impl> impl_;
};

// Tells a hole in the numbers of events. Separate, so that it can be tested.
class EventSequence {
public:
	// True if this event follows the one before it, or is the first.
	bool follows(uint64_t seq)
	{
		const bool good = !known_ || seq == last_ + 1;
		known_ = true;
		last_ = seq;
		return good;
	}
	void forget() { known_ = false; }

private:
	bool known_ = false;
	uint64_t last_ = 0;
};

}    // namespace lockstep
