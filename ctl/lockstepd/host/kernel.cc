// SPDX-License-Identifier: GPL-2.0-or-later
//
// Generic netlink by libnl. A command is one request; its answer is a message (REPLICA_ATTACH, GET) and an acknowledgement that
// carries an errno and, as extended ack, a text. libnl 3.7 does not show that text, so the error callback reads it from
// the raw message.
//
// Sockets for commands are kept in a small pool: whoever needs one takes it out and puts it back, unless something went wrong
// with it (a lost answer would be taken for the next one's).
#include "lockstepd/host/kernel.h"

#include <linux/netlink.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/socket.h>
#include <uv.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>

#include <fmt/format.h>

#include "lib/uuid.h"

namespace lockstep {

namespace {

constexpr int EVENT_BUFFER_BYTES = 4 << 20;    // of the event socket
constexpr int COMMAND_TIMEOUT_S = 120;         // a command that takes longer is reported and tried again
constexpr uint64_t MODULE_POLL_MS = 1000;
constexpr size_t IDLE_SOCKETS = 8;

std::string not_loaded(const std::string &host)
{
	return fmt::format("the kernel module lockstep is not loaded on host {}: load it with 'modprobe lockstep'", host);
}

struct SocketFree {
	void operator()(nl_sock *s) const { nl_socket_free(s); }
};
struct MessageFree {
	void operator()(nl_msg *m) const { nlmsg_free(m); }
};
using Socket = std::unique_ptr<nl_sock, SocketFree>;
using Message = std::unique_ptr<nl_msg, MessageFree>;

// ---- attributes ----

std::array<uint8_t, 16> uuid_of(const void *bytes)
{
	std::array<uint8_t, 16> uuid;
	memcpy(uuid.data(), bytes, uuid.size());
	return uuid;
}

using Attributes = nlattr *[LKS_A_COUNT];

uint64_t number(const nlattr *a)
{
	if (!a)
		return 0;
	switch (nla_len(a)) {
	case 1: return nla_get_u8(a);
	case 2: return nla_get_u16(a);
	case 4: return nla_get_u32(a);
	case 8: return nla_get_u64(a);
	default: return 0;
	}
}

std::string text(const nlattr *a)
{
	if (!a)
		return "";
	const char *data = static_cast<const char *>(nla_data(a));
	return std::string(data, strnlen(data, nla_len(a)));
}

KernelVolume read_volume(Attributes a)
{
	KernelVolume v;
	v.vid = number(a[LKS_A_VID]);
	if (a[LKS_A_UUID] && nla_len(a[LKS_A_UUID]) == 16)
		v.uuid = uuid_text(uuid_of(nla_data(a[LKS_A_UUID])));
	v.name = text(a[LKS_A_NAME]);
	v.minor = number(a[LKS_A_MINOR]);
	v.size_bytes = number(a[LKS_A_SIZE]);
	v.block_size = number(a[LKS_A_BLOCK_SIZE]);
	v.cls = number(a[LKS_A_CLASS]);
	v.has_device = a[LKS_A_HAS_DEVICE];
	v.openers = number(a[LKS_A_OPENERS]);
	v.writers = number(a[LKS_A_WRITERS]);
	v.open_waiters = number(a[LKS_A_OPEN_WAITERS]);
	v.session_ended = number(a[LKS_A_SESSION_ENDED]);
	if (a[LKS_A_HAS_REPLICA])
		v.replica = KernelReplica{text(a[LKS_A_PATH]), number(a[LKS_A_OFFSET]), number(a[LKS_A_SUSPECT]) != 0,
					  a[LKS_A_ADMITTED] != nullptr, a[LKS_A_FAILED] != nullptr,
					  number(a[LKS_A_CAPACITY]), number(a[LKS_A_MOVE_OFFSET]), a[LKS_A_MOVE_CURRENT] != nullptr, a[LKS_A_FULL] != nullptr,
					  a[LKS_A_STUCK] != nullptr};
	v.hold = number(a[LKS_A_HOLD]);
	v.handover_to = uint8_t(number(a[LKS_A_HANDOVER_TO]));
	v.tune = {uint32_t(number(a[LKS_A_FREEZE_MS])), uint32_t(number(a[LKS_A_SYNC_RATE])), uint32_t(number(a[LKS_A_SYNC_FLOOR])),
		  uint32_t(number(a[LKS_A_SYNC_TARGET_MS]))};
	v.verify_total = number(a[LKS_A_VERIFY_TOTAL]);
	v.verify_done = number(a[LKS_A_VERIFY_DONE]);
	v.verify_differ = number(a[LKS_A_VERIFY_DIFFER]);
	v.verify_repair = a[LKS_A_REPAIR] != nullptr;
	v.whole = a[LKS_A_ROLE] != nullptr;
	v.role = number(a[LKS_A_ROLE]);
	v.version = number(a[LKS_A_VERSION]);
	v.term = number(a[LKS_A_TERM]);
	v.noted_version = number(a[LKS_A_NOTED_VERSION]);
	v.session_with = number(a[LKS_A_SESSION_WITH]);
	v.pending = number(a[LKS_A_PENDING]);
	v.oldest_ms = number(a[LKS_A_OLDEST_MS]);
	v.hot_extents = number(a[LKS_A_HOT_EXTENTS]);
	v.written_extents = number(a[LKS_A_WRITTEN_EXTENTS]);
	if (a[LKS_A_PEERS]) {
		nlattr *item;
		int rest;
		nla_for_each_nested(item, a[LKS_A_PEERS], rest) {
			Attributes p = {};
			if (nla_parse_nested(p, LKS_A_MAX, item, nullptr) < 0)
				continue;
			v.peers.push_back({uint8_t(number(p[LKS_A_HOST])), uint8_t(number(p[LKS_A_SYNC_STATE])),
					   number(p[LKS_A_DIRTY_BLOCKS])});
		}
	}
	return v;
}

KernelPeer read_peer(Attributes a)
{
	return {uint8_t(number(a[LKS_A_HOST])), number(a[LKS_A_LINK]), uint8_t(number(a[LKS_A_LANES])), a[LKS_A_UP] != nullptr};
}

KernelEvent read_event(uint8_t cmd, Attributes a)
{
	KernelEvent e;
	e.kind = static_cast<lks_cmd>(cmd);
	e.seq = number(a[LKS_A_SEQ]);
	e.vid = number(a[LKS_A_VID]);
	e.host = number(a[LKS_A_HOST]);
	e.link = number(a[LKS_A_LINK]);
	e.session = number(a[LKS_A_SESSION]);
	e.reason = text(a[LKS_A_REASON]);
	e.op = text(a[LKS_A_OP]);
	e.error = int32_t(number(a[LKS_A_ERROR]));
	e.hold = number(a[LKS_A_HOLD]);
	e.at = number(a[LKS_A_AT]);
	e.length = number(a[LKS_A_LENGTH]);
	e.repair = a[LKS_A_REPAIR] != nullptr;
	if (a[LKS_A_RECORD] && nla_len(a[LKS_A_RECORD]) == sizeof(lks_record)) {
		e.record.emplace();
		memcpy(&*e.record, nla_data(a[LKS_A_RECORD]), sizeof(lks_record));
	}
	return e;
}

bool parse(nl_msg *message, uint8_t &cmd, Attributes a)
{
	nlmsghdr *header = nlmsg_hdr(message);
	if (!genlmsg_valid_hdr(header, 0))
		return false;
	cmd = genlmsg_hdr(header)->cmd;
	return genlmsg_parse(header, 0, a, LKS_A_MAX, nullptr) >= 0;
}

// ---- commands ----

// What came back from one request.
struct Answer {
	int error = 0;         // negative errno from the kernel
	std::string message;   // its extended ack
	bool finished = false;
	std::function<void(uint8_t cmd, Attributes)> on_message;
};

std::string extended_ack(const nlmsgerr *e)
{
	const nlmsghdr *header = reinterpret_cast<const nlmsghdr *>(reinterpret_cast<const char *>(e) - NLMSG_HDRLEN);
	if (!(header->nlmsg_flags & NLM_F_ACK_TLVS))
		return "";
	size_t at = NLMSG_HDRLEN + sizeof(nlmsgerr);
	if (!(header->nlmsg_flags & NLM_F_CAPPED))
		at += NLMSG_ALIGN(e->msg.nlmsg_len - NLMSG_HDRLEN);
	if (at >= header->nlmsg_len)
		return "";
	auto *attributes = reinterpret_cast<nlattr *>(const_cast<char *>(reinterpret_cast<const char *>(header)) + at);
	return text(nla_find(attributes, header->nlmsg_len - at, NLMSGERR_ATTR_MSG));
}

int on_error(sockaddr_nl *, nlmsgerr *e, void *arg)
{
	auto *answer = static_cast<Answer *>(arg);
	answer->error = e->error;
	answer->message = extended_ack(e);
	answer->finished = true;
	return NL_STOP;
}

int on_ack(nl_msg *, void *arg)
{
	static_cast<Answer *>(arg)->finished = true;
	return NL_STOP;
}

// The end of a dump carries an errno of its own.
int on_finish(nl_msg *message, void *arg)
{
	auto *answer = static_cast<Answer *>(arg);
	const nlmsghdr *header = nlmsg_hdr(message);
	answer->finished = true;
	if (nlmsg_datalen(header) >= int(sizeof(int)))
		answer->error = *static_cast<const int *>(nlmsg_data(header));
	return NL_STOP;
}

int on_valid(nl_msg *message, void *arg)
{
	auto *answer = static_cast<Answer *>(arg);
	uint8_t cmd = 0;
	Attributes a = {};
	if (answer->on_message && parse(message, cmd, a))
		answer->on_message(cmd, a);
	return NL_OK;
}

class NetlinkClient {
public:
	explicit NetlinkClient(std::string host) : host_(std::move(host)) {}

	// Sends `cmd` with what `fill` puts into the message; gives the messages that come back to `on_message`.
	Done run(lks_cmd cmd, const std::string &what, int flags, const std::function<int(nl_msg *)> &fill,
		 std::function<void(uint8_t, Attributes)> on_message = nullptr)
	{
		auto socket = take();
		if (!socket)
			return socket.error();
		const int family = genl_ctrl_resolve(socket->get(), LKS_GENL_NAME);
		if (family < 0)
			return failed(not_loaded(host_));
		Message message(nlmsg_alloc());
		if (!message || !genlmsg_put(message.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, flags, cmd, LKS_GENL_VERSION) ||
		    fill(message.get()) < 0)
			return failed(what + ": the message does not fit");

		Answer answer;
		answer.on_message = std::move(on_message);
		nl_cb *callbacks = nl_cb_alloc(NL_CB_DEFAULT);
		nl_cb_err(callbacks, NL_CB_CUSTOM, on_error, &answer);
		nl_cb_set(callbacks, NL_CB_ACK, NL_CB_CUSTOM, on_ack, &answer);
		nl_cb_set(callbacks, NL_CB_FINISH, NL_CB_CUSTOM, on_finish, &answer);
		nl_cb_set(callbacks, NL_CB_VALID, NL_CB_CUSTOM, on_valid, &answer);
		int error = nl_send_auto(socket->get(), message.get());
		while (error >= 0 && !answer.finished) {
			error = nl_recvmsgs(socket->get(), callbacks);
			if (error == -NLE_INTR)
				error = 0;
		}
		nl_cb_put(callbacks);
		if (!answer.finished)
			return failed(fmt::format("{}: no answer from the kernel module: {}", what, nl_geterror(error)));
		put_back(std::move(*socket));
		if (answer.error)
			return Error{answer.error == -EBUSY || answer.error == -ENODATA ? Status::forbidden : Status::failed,
				     fmt::format("{}: {}{}", what, answer.message,
						 answer.message.empty() ? strerror(-answer.error)
									: fmt::format(" ({})", strerror(-answer.error)))};
		return Nothing{};
	}

private:
	Result<Socket> take()
	{
		{
			std::lock_guard hold(lock_);
			if (!idle_.empty()) {
				Socket socket = std::move(idle_.back());
				idle_.pop_back();
				return socket;
			}
		}
		Socket socket(nl_socket_alloc());
		if (!socket || genl_connect(socket.get()) < 0)
			return failed(fmt::format("cannot open a netlink socket: {}", strerror(errno)));
		int on = 1;
		timeval limit = {COMMAND_TIMEOUT_S, 0};
		setsockopt(nl_socket_get_fd(socket.get()), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
		setsockopt(nl_socket_get_fd(socket.get()), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
		return socket;
	}

	void put_back(Socket socket)
	{
		std::lock_guard hold(lock_);
		if (idle_.size() < IDLE_SOCKETS)
			idle_.push_back(std::move(socket));
	}

	std::string host_;
	std::mutex lock_;
	std::vector<Socket> idle_;
};

using Client = std::shared_ptr<NetlinkClient>;

Done with_vid(const Client &client, lks_cmd cmd, const char *verb, uint32_t vid)
{
	return client->run(cmd, fmt::format("cannot {} volume {}", verb, vid), 0,
			   [&](nl_msg *m) { return nla_put_u32(m, LKS_A_VID, vid); });
}

Done with_host(const Client &client, lks_cmd cmd, const char *verb, uint8_t host)
{
	return client->run(cmd, fmt::format("cannot {} host {}", verb, host), 0,
			   [&](nl_msg *m) { return nla_put_u8(m, LKS_A_HOST, host); });
}

Done add_lane(const Client &client, uint8_t host, uint8_t lane, uint8_t lanes, uint64_t link, int fd)
{
	return client->run(LKS_CMD_LANE_ADD, fmt::format("cannot add lane {} to host {}", lane, host), 0, [&](nl_msg *m) {
		NLA_PUT_U8(m, LKS_A_HOST, host);
		NLA_PUT_U8(m, LKS_A_LANE, lane);
		NLA_PUT_U8(m, LKS_A_LANES, lanes);
		NLA_PUT_U64(m, LKS_A_LINK, link);
		NLA_PUT_U32(m, LKS_A_FD, uint32_t(fd));
		return 0;
	nla_put_failure:
		return -1;
	});
}

Done add_volume(const Client &client, const KernelVolumeSpec &v)
{
	auto uuid = uuid_bytes(v.uuid);
	if (!uuid)
		return failed(fmt::format("cannot add volume {}: '{}' is no UUID", v.name, v.uuid));
	return client->run(LKS_CMD_VOLUME_ADD, fmt::format("cannot add volume {}", v.name), 0, [&](nl_msg *m) {
		NLA_PUT_U32(m, LKS_A_VID, v.vid);
		NLA_PUT(m, LKS_A_UUID, 16, uuid->data());
		NLA_PUT_STRING(m, LKS_A_NAME, v.name.c_str());
		NLA_PUT_U32(m, LKS_A_MINOR, v.minor);
		NLA_PUT_U64(m, LKS_A_SIZE, v.size_bytes);
		NLA_PUT_U32(m, LKS_A_BLOCK_SIZE, v.block_size);
		NLA_PUT_U8(m, LKS_A_CLASS, v.cls);
		return 0;
	nla_put_failure:
		return -1;
	});
}

Result<AttachAnswer> attach_replica(const Client &client, uint32_t vid, const std::string &path, uint64_t offset, bool thin)
{
	std::optional<AttachAnswer> found;
	Done done = client->run(
		LKS_CMD_REPLICA_ATTACH, fmt::format("cannot attach replica {} of volume {}", path, vid), 0,
		[&](nl_msg *m) {
			NLA_PUT_U32(m, LKS_A_VID, vid);
			NLA_PUT_STRING(m, LKS_A_PATH, path.c_str());
			NLA_PUT_U64(m, LKS_A_OFFSET, offset);
			if (thin)
				NLA_PUT_FLAG(m, LKS_A_THIN);
			return 0;
		nla_put_failure:
			return -1;
		},
		[&](uint8_t, Attributes a) {
			found = AttachAnswer{number(a[LKS_A_SUSPECT]) != 0, number(a[LKS_A_DISK_VERSION]),
					     number(a[LKS_A_DISK_TERM])};
		});
	if (!done)
		return done.error();
	if (!found)
		return failed(fmt::format("the kernel attached volume {} but did not say in which state", vid));
	return *found;
}

Done set_config(const Client &client, const lks_record &record, bool admit)
{
	return client->run(LKS_CMD_CONFIG_SET, fmt::format("cannot set version {} of volume {}", uint64_t(record.version), uint32_t(record.vid)),
			   0, [&](nl_msg *m) {
		NLA_PUT_U32(m, LKS_A_VID, record.vid);
		NLA_PUT(m, LKS_A_RECORD, sizeof(record), &record);
		if (admit)
			NLA_PUT_FLAG(m, LKS_A_ADMIT);
		return 0;
	nla_put_failure:
		return -1;
	});
}

Done refuse_open(const Client &client, uint32_t vid, int32_t error)
{
	return client->run(LKS_CMD_OPEN_REFUSE, fmt::format("cannot refuse the opening of volume {}", vid), 0, [&](nl_msg *m) {
		NLA_PUT_U32(m, LKS_A_VID, vid);
		NLA_PUT_S32(m, LKS_A_ERROR, error);
		return 0;
	nla_put_failure:
		return -1;
	});
}

// A command on a volume with what `fill` adds.
Done volume_command(const Client &client, lks_cmd cmd, const std::string &what, uint32_t vid, const std::function<int(nl_msg *)> &fill)
{
	return client->run(cmd, fmt::format("cannot {} volume {}", what, vid), 0, [&](nl_msg *m) {
		const int error = nla_put_u32(m, LKS_A_VID, vid);
		return error < 0 ? error : fill(m);
	});
}

Done hand_over(const Client &client, uint32_t vid, uint8_t host)
{
	return volume_command(client, LKS_CMD_HANDOVER, fmt::format("hand over to host {} the", host), vid,
			      [&](nl_msg *m) { return nla_put_u8(m, LKS_A_HOST, host); });
}

Done quiesce(const Client &client, uint32_t vid, uint64_t hold, uint32_t timeout_ms)
{
	return volume_command(client, LKS_CMD_QUIESCE, "quiesce", vid, [&](nl_msg *m) {
		NLA_PUT_U64(m, LKS_A_HOLD, hold);
		NLA_PUT_U32(m, LKS_A_TIMEOUT_MS, timeout_ms);
		return 0;
	nla_put_failure:
		return -1;
	});
}

Done put_u64(const Client &client, lks_cmd cmd, const char *what, uint32_t vid, lks_attr attribute, uint64_t value)
{
	return volume_command(client, cmd, what, vid, [&](nl_msg *m) { return nla_put_u64(m, attribute, value); });
}

Done move_metadata(const Client &client, uint32_t vid, uint64_t offset, uint64_t size_bytes)
{
	return volume_command(client, LKS_CMD_META_MOVE, "move the metadata of", vid, [&](nl_msg *m) {
		NLA_PUT_U64(m, LKS_A_OFFSET, offset);
		NLA_PUT_U64(m, LKS_A_SIZE, size_bytes);
		return 0;
	nla_put_failure:
		return -1;
	});
}

Done verify(const Client &client, uint32_t vid, const VerifyOrder &order)
{
	return volume_command(client, LKS_CMD_VERIFY, order.start ? "verify" : "stop verifying", vid, [&](nl_msg *m) {
		NLA_PUT_U8(m, LKS_A_MODE, order.start);
		if (order.repair)
			NLA_PUT_FLAG(m, LKS_A_REPAIR);
		NLA_PUT_U64(m, LKS_A_VERIFY_DONE, order.done);
		NLA_PUT_U64(m, LKS_A_VERIFY_DIFFER, order.differ);
		return 0;
	nla_put_failure:
		return -1;
	});
}

Result<uint64_t> begin_trail(const Client &client, uint32_t vid)
{
	uint64_t found = 0;
	Done done = client->run(
		LKS_CMD_TRAIL_BEGIN, fmt::format("cannot begin the trail of volume {}", vid), 0,
		[&](nl_msg *m) { return nla_put_u32(m, LKS_A_VID, vid); }, [&](uint8_t, Attributes a) { found = number(a[LKS_A_TRAIL]); });
	if (!done)
		return done.error();
	if (!found)
		return failed(fmt::format("the kernel began the trail of volume {} but did not say which", vid));
	return found;
}

Done end_trail(const Client &client, uint32_t vid, uint64_t trail)
{
	return client->run(LKS_CMD_TRAIL_END, fmt::format("cannot end the trail of volume {}", vid), 0, [&](nl_msg *m) {
		NLA_PUT_U32(m, LKS_A_VID, vid);
		NLA_PUT_U64(m, LKS_A_TRAIL, trail);
		return 0;
	nla_put_failure:
		return -1;
	});
}

Result<std::optional<TrailPart>> read_trail(const Client &client, uint32_t vid, uint64_t trail, uint64_t at)
{
	std::optional<TrailPart> found;
	bool answered = false;
	Done done = client->run(
		LKS_CMD_TRAIL, fmt::format("cannot read the trail of volume {}", vid), 0,
		[&](nl_msg *m) {
			NLA_PUT_U32(m, LKS_A_VID, vid);
			NLA_PUT_U64(m, LKS_A_TRAIL, trail);
			NLA_PUT_U64(m, LKS_A_AT, at);
			return 0;
		nla_put_failure:
			return -1;
		},
		[&](uint8_t, Attributes a) {
			answered = number(a[LKS_A_TRAIL]) == trail;
			if (a[LKS_A_BITMAP] && nla_len(a[LKS_A_BITMAP]) == LKS_TRAIL_BITMAP)
				found = TrailPart{number(a[LKS_A_AT]), {static_cast<const char *>(nla_data(a[LKS_A_BITMAP])), LKS_TRAIL_BITMAP}};
		});
	if (!done)
		return done.error();
	if (!answered)
		return failed(fmt::format("the kernel did not answer what the trail of volume {} holds", vid));
	return found;
}

Result<KernelDump> take_dump(const Client &client)
{
	KernelDump dump;
	bool first = true;
	Done done = client->run(
		LKS_CMD_GET, "cannot dump the kernel's state", NLM_F_DUMP, [](nl_msg *) { return 0; },
		[&](uint8_t cmd, Attributes a) {
			// The first message's number counts: what happens during the dump comes as an event with a larger one.
			if (first && a[LKS_A_SEQ])
				dump.seq = number(a[LKS_A_SEQ]);
			first = false;
			if (cmd == LKS_CMD_VOLUME)
				dump.volumes[number(a[LKS_A_VID])] = read_volume(a);
			else if (cmd == LKS_CMD_PEER)
				dump.peers[number(a[LKS_A_HOST])] = read_peer(a);
		});
	if (!done)
		return done.error();
	return dump;
}

}    // namespace

const KernelVolume *KernelDump::volume(uint32_t vid) const
{
	auto found = volumes.find(vid);
	return found == volumes.end() ? nullptr : &found->second;
}

const KernelPeer *KernelDump::peer(uint8_t host) const
{
	auto found = peers.find(host);
	return found == peers.end() ? nullptr : &found->second;
}

Kernel kernel_over_netlink(const std::string &host_name)
{
	auto c = std::make_shared<NetlinkClient>(host_name);
	Kernel k;
	k.host_set = [c](uint8_t host) { return with_host(c, LKS_CMD_HOST_SET, "serve as", host); };
	k.peer_set = [c](uint8_t host) { return with_host(c, LKS_CMD_PEER_SET, "add", host); };
	k.peer_del = [c](uint8_t host) { return with_host(c, LKS_CMD_PEER_DEL, "remove", host); };
	k.lane_add = [c](uint8_t host, uint8_t lane, uint8_t lanes, uint64_t link, int fd) {
		return add_lane(c, host, lane, lanes, link, fd);
	};
	k.volume_add = [c](const KernelVolumeSpec &v) { return add_volume(c, v); };
	k.volume_del = [c](uint32_t vid) { return with_vid(c, LKS_CMD_VOLUME_DEL, "remove", vid); };
	k.replica_attach = [c](uint32_t vid, const std::string &path, uint64_t offset, bool thin) {
		return attach_replica(c, vid, path, offset, thin);
	};
	k.replica_detach = [c](uint32_t vid) { return with_vid(c, LKS_CMD_REPLICA_DETACH, "detach the replica of", vid); };
	k.config_set = [c](const lks_record &record, bool admit) { return set_config(c, record, admit); };
	k.open_refuse = [c](uint32_t vid, int32_t error) { return refuse_open(c, vid, error); };
	k.hand_over = [c](uint32_t vid, uint8_t host) { return hand_over(c, vid, host); };
	k.quiesce = [c](uint32_t vid, uint64_t hold, uint32_t timeout_ms) { return quiesce(c, vid, hold, timeout_ms); };
	k.resume = [c](uint32_t vid, uint64_t hold) { return put_u64(c, LKS_CMD_RESUME, "resume", vid, LKS_A_HOLD, hold); };
	k.meta_move = [c](uint32_t vid, uint64_t offset, uint64_t size) { return move_metadata(c, vid, offset, size); };
	k.meta_moved = [c](uint32_t vid, uint64_t offset) {
		return put_u64(c, LKS_CMD_META_MOVED, "take into use the new metadata of", vid, LKS_A_OFFSET, offset);
	};
	k.resize = [c](uint32_t vid, uint64_t size) { return put_u64(c, LKS_CMD_RESIZE, "resize", vid, LKS_A_SIZE, size); };
	k.verify = [c](uint32_t vid, const VerifyOrder &order) { return verify(c, vid, order); };
	k.tune = [c](uint32_t vid, const VolumeTune &t) {
		return volume_command(c, LKS_CMD_VOLUME_TUNE, "tune", vid, [&](nl_msg *m) {
			for (auto [attribute, value] : {std::pair(LKS_A_FREEZE_MS, t.freeze_ms), std::pair(LKS_A_SYNC_RATE, t.sync_rate_kib),
							std::pair(LKS_A_SYNC_FLOOR, t.sync_floor_kib), std::pair(LKS_A_SYNC_TARGET_MS, t.sync_target_ms)})
				if (int err = nla_put_u32(m, attribute, value))
					return err;
			return 0;
		});
	};
	k.abort = [c](uint32_t vid) { return with_vid(c, LKS_CMD_ABORT, "abort the waiting requests of", vid); };
	k.device_add = [c](uint32_t vid) { return with_vid(c, LKS_CMD_DEVICE_ADD, "create the device of", vid); };
	k.device_del = [c](uint32_t vid) { return with_vid(c, LKS_CMD_DEVICE_DEL, "remove the device of", vid); };
	k.trail_begin = [c](uint32_t vid) { return begin_trail(c, vid); };
	k.trail = [c](uint32_t vid, uint64_t number, uint64_t at) { return read_trail(c, vid, number, at); };
	k.trail_end = [c](uint32_t vid, uint64_t number) { return end_trail(c, vid, number); };
	k.dump = [c] { return take_dump(c); };
	return k;
}

// ---- events ----

struct KernelEvents::Impl {
	Loop &loop;
	std::string host;
	Handlers handlers;
	Timer retry;
	Socket socket;
	uv_poll_t *poll = nullptr;    // freed when libuv has closed it
	EventSequence sequence;
	std::optional<std::string> told;

	Impl(Loop &l, std::string h, Handlers hs) : loop(l), host(std::move(h)), handlers(std::move(hs)), retry(l) {}
	void tell(const std::string &error);
	void listen();
	void close_socket();
	void receive();
	static int on_message(nl_msg *message, void *arg);
};

void KernelEvents::Impl::tell(const std::string &error)
{
	if (told == error)
		return;
	told = error;
	handlers.module(error);
}

// Also the periodic look whether the module is still there: unloading it leaves the socket silent, not closed.
void KernelEvents::Impl::listen()
{
	Socket probe(nl_socket_alloc());
	int group = -1;
	if (probe && genl_connect(probe.get()) >= 0)
		group = genl_ctrl_resolve_grp(probe.get(), LKS_GENL_NAME, LKS_GENL_EVENTS);
	if (group < 0) {
		close_socket();
		tell(not_loaded(host));
		return;
	}
	if (socket)
		return;
	nl_socket_disable_seq_check(probe.get());
	nl_socket_modify_cb(probe.get(), NL_CB_VALID, NL_CB_CUSTOM, on_message, this);
	nl_socket_set_buffer_size(probe.get(), EVENT_BUFFER_BYTES, 0);
	nl_socket_set_nonblocking(probe.get());
	if (nl_socket_add_membership(probe.get(), group) < 0)
		return;
	socket = std::move(probe);
	sequence.forget();
	poll = new uv_poll_t;
	poll->data = this;
	uv_poll_init(loop.uv(), poll, nl_socket_get_fd(socket.get()));
	uv_poll_start(poll, UV_READABLE, [](uv_poll_t *p, int, int) { static_cast<Impl *>(p->data)->receive(); });
	tell("");
	handlers.resync();
}

void KernelEvents::Impl::close_socket()
{
	if (!socket)
		return;
	uv_poll_stop(poll);
	uv_close(reinterpret_cast<uv_handle_t *>(poll), [](uv_handle_t *h) { delete reinterpret_cast<uv_poll_t *>(h); });
	poll = nullptr;
	socket.reset();
}

void KernelEvents::Impl::receive()
{
	const int error = nl_recvmsgs_default(socket.get());
	// ENOBUFS (an overrun) reaches us as NLE_NOMEM: the kernel dropped events.
	if (error == -NLE_NOMEM) {
		sequence.forget();
		handlers.resync();
	}
}

int KernelEvents::Impl::on_message(nl_msg *message, void *arg)
{
	auto *self = static_cast<Impl *>(arg);
	uint8_t cmd = 0;
	Attributes a = {};
	if (!parse(message, cmd, a))
		return NL_OK;
	const KernelEvent event = read_event(cmd, a);
	const bool follows = self->sequence.follows(event.seq);
	self->handlers.event(event);
	if (!follows)
		self->handlers.resync();
	return NL_OK;
}

KernelEvents::KernelEvents(Loop &loop, const std::string &host_name, Handlers handlers)
	: impl_(std::make_unique<Impl>(loop, host_name, std::move(handlers)))
{
	impl_->listen();
	impl_->retry.every(MODULE_POLL_MS, [impl = impl_.get()] { impl->listen(); });
}

KernelEvents::~KernelEvents() { impl_->close_socket(); }

}    // namespace lockstep
