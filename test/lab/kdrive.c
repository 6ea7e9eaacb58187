// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Drives lockstep.ko by hand: every command of kmod/uapi/lockstep.h from the command line, without a daemon. For trying the
 * module out and for scenarios that want nothing but the module. Prints the kernel's own message when a command fails.
 *
 *   kdrive host-set HOST               peer-set HOST           peer-del HOST            tune LEASE_MS
 *   kdrive listen HOST LINK PORT [LANES [tls]]  accepts LANES (1) connections on PORT and hands them over; tls: with keys
 *   kdrive connect HOST LINK ADDRESS PORT [LANES [tls]]                                           that everybody knows
 *   kdrive format PATH VID SIZE OFFSET HOST     metadata of a new replica of a volume whose UUID is derived from VID
 *   kdrive volume-add VID NAME MINOR SIZE [shared]                                       volume-del VID
 *   kdrive attach VID PATH OFFSET [thin]        detach VID
 *   kdrive config VID VERSION TERM PRIMARY SERIAL REPLICAS OPENERS [admit | SIZE]       SIZE: if the volume has grown
 *        REPLICAS: HOST:STATE[:SINCE],...  with STATE insync, suspect, stale or failed;  OPENERS: HOST:SESSION,... or -
 *   kdrive device-add VID              device-del VID          refuse VID ERRNO          abort VID
 *   kdrive handover VID HOST           quiesce VID HOLD TIMEOUT_MS                        resume VID HOLD
 *   kdrive meta-move VID OFFSET SIZE   meta-moved VID OFFSET   resize VID SIZE
 *   kdrive verify VID MODE             volume-tune VID FREEZE_MS [SYNC_RATE [SYNC_FLOOR [SYNC_TARGET_MS]]]
 *   kdrive trail-begin VID             trail VID NUMBER        prints the written sectors as FIRST+COUNT
 *   kdrive get [VID]                   the dump                events [SECONDS]         what the kernel tells
 *   kdrive auto VID REPLICAS           decides alone, until killed: grants opens to the first replica's host, where it must
 *                                      run and which it makes the primary, and commits what the primary proposes
 *
 * Exit status: 0, 1 failed, 2 usage.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "../../kmod/core/format.c"

#define ROOM 65536
#define ATTRS 128

static int fd;
static uint16_t family;
static uint32_t events_group;
static uint32_t sequence;
static _Alignas(8) char out[ROOM], in[ROOM];

static void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* ---- messages ---- */

static struct nlmsghdr *start(uint16_t type, uint8_t cmd, uint16_t flags)
{
	struct nlmsghdr *h = (struct nlmsghdr *)out;
	struct genlmsghdr *g = NLMSG_DATA(h);

	memset(out, 0, sizeof(out));
	h->nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
	h->nlmsg_type = type;
	h->nlmsg_flags = NLM_F_REQUEST | flags;
	h->nlmsg_seq = ++sequence;
	g->cmd = cmd;
	g->version = LKS_GENL_VERSION;
	return h;
}

static void put(struct nlmsghdr *h, uint16_t type, const void *data, size_t bytes)
{
	struct nlattr *a = (struct nlattr *)((char *)h + h->nlmsg_len);

	a->nla_type = type;
	a->nla_len = (uint16_t)(NLA_HDRLEN + bytes);
	if (bytes)
		memcpy((char *)a + NLA_HDRLEN, data, bytes);
	h->nlmsg_len += (uint32_t)NLA_ALIGN(a->nla_len);
}

static void put_u8(struct nlmsghdr *h, uint16_t type, unsigned long v) { uint8_t x = (uint8_t)v; put(h, type, &x, sizeof(x)); }
static void put_u32(struct nlmsghdr *h, uint16_t type, unsigned long v) { uint32_t x = (uint32_t)v; put(h, type, &x, sizeof(x)); }
static void put_u64(struct nlmsghdr *h, uint16_t type, uint64_t v) { put(h, type, &v, sizeof(v)); }
static void put_string(struct nlmsghdr *h, uint16_t type, const char *s) { put(h, type, s, strlen(s) + 1); }

struct attrs {
	const struct nlattr *a[ATTRS];
};
_Static_assert(LKS_A_COUNT <= ATTRS, "attributes");

static void parse(const void *data, int bytes, struct attrs *to)
{
	const struct nlattr *a = data;

	memset(to, 0, sizeof(*to));
	while (bytes >= NLA_HDRLEN && a->nla_len >= NLA_HDRLEN && a->nla_len <= bytes) {
		unsigned int type = a->nla_type & NLA_TYPE_MASK, step = NLA_ALIGN(a->nla_len);

		if (type < ATTRS)
			to->a[type] = a;
		bytes -= (int)step;
		a = (const struct nlattr *)((const char *)a + step);
	}
}

static const void *data_of(const struct nlattr *a) { return (const char *)a + NLA_HDRLEN; }
static int length_of(const struct nlattr *a) { return a->nla_len - NLA_HDRLEN; }

static uint64_t number(const struct nlattr *a)
{
	uint64_t v = 0;

	if (a)
		memcpy(&v, data_of(a), length_of(a) < 8 ? (size_t)length_of(a) : 8);
	return v;
}

static void send_out(void)
{
	struct nlmsghdr *h = (struct nlmsghdr *)out;

	if (send(fd, out, h->nlmsg_len, 0) != (ssize_t)h->nlmsg_len)
		die("send: %s", strerror(errno));
}

/* Handles answers until the acknowledgement. Returns a negative errno. */
static int answer(void (*handle)(const struct nlmsghdr *))
{
	for (;;) {
		ssize_t n = recv(fd, in, sizeof(in), 0);
		struct nlmsghdr *h = (struct nlmsghdr *)in;

		if (n < 0)
			die("recv: %s", strerror(errno));
		for (; NLMSG_OK(h, (size_t)n); h = NLMSG_NEXT(h, n)) {
			if (h->nlmsg_seq != sequence)
				continue;
			if (h->nlmsg_type == NLMSG_ERROR || h->nlmsg_type == NLMSG_DONE) {
				int error = *(int *)NLMSG_DATA(h);
				size_t skip = sizeof(int) + (h->nlmsg_type == NLMSG_ERROR ? sizeof(struct nlmsghdr) : 0);
				struct attrs a;

				if (h->nlmsg_type == NLMSG_ERROR && !(h->nlmsg_flags & NLM_F_CAPPED))
					skip = sizeof(int) + ((struct nlmsgerr *)NLMSG_DATA(h))->msg.nlmsg_len;
				if (error && h->nlmsg_flags & NLM_F_ACK_TLVS) {
					parse((char *)NLMSG_DATA(h) + skip, (int)(h->nlmsg_len - NLMSG_HDRLEN - skip), &a);
					if (a.a[NLMSGERR_ATTR_MSG])
						fprintf(stderr, "kernel: %s\n", (const char *)data_of(a.a[NLMSGERR_ATTR_MSG]));
				}
				return error;
			}
			if (handle)
				handle(h);
		}
	}
}

static void call(void (*handle)(const struct nlmsghdr *))
{
	int err;

	send_out();
	err = answer(handle);
	if (err)
		die("failed: %s", strerror(-err));
}

static void found_family(const struct nlmsghdr *h)
{
	struct attrs a, groups, group;

	parse((const char *)NLMSG_DATA(h) + GENL_HDRLEN, (int)(h->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN)), &a);
	family = (uint16_t)number(a.a[CTRL_ATTR_FAMILY_ID]);
	if (!a.a[CTRL_ATTR_MCAST_GROUPS])
		return;
	parse(data_of(a.a[CTRL_ATTR_MCAST_GROUPS]), length_of(a.a[CTRL_ATTR_MCAST_GROUPS]), &groups);
	for (int i = 0; i < ATTRS; i++)
		if (groups.a[i]) {
			parse(data_of(groups.a[i]), length_of(groups.a[i]), &group);
			events_group = (uint32_t)number(group.a[CTRL_ATTR_MCAST_GRP_ID]);
		}
}

static void open_netlink(void)
{
	struct sockaddr_nl self = { .nl_family = AF_NETLINK };
	struct nlmsghdr *h;
	int one = 1;

	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	if (fd < 0 || bind(fd, (struct sockaddr *)&self, sizeof(self)))
		die("netlink: %s", strerror(errno));
	setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one));
	setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one));
	h = start(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, NLM_F_ACK);
	put_string(h, CTRL_ATTR_FAMILY_NAME, LKS_GENL_NAME);
	send_out();
	if (answer(found_family) || !family)
		die("the module lockstep is not loaded");
}

static struct nlmsghdr *command(uint8_t cmd) { return start(family, cmd, NLM_F_ACK); }

/* ---- showing ---- */

static const char *const names[LKS_CMD_COUNT] = {
	[LKS_CMD_REPLICA_ATTACH] = "attached", [LKS_CMD_VOLUME] = "volume", [LKS_CMD_PEER] = "peer",
	[LKS_CMD_EV_PROPOSE] = "propose", [LKS_CMD_EV_OPEN] = "open", [LKS_CMD_EV_CLOSE] = "close",
	[LKS_CMD_EV_LINK_DOWN] = "link-down", [LKS_CMD_EV_SILENT] = "silent", [LKS_CMD_EV_DISK_ERROR] = "disk-error",
	[LKS_CMD_EV_STATE] = "state", [LKS_CMD_EV_QUIESCED] = "quiesced", [LKS_CMD_EV_UNQUIESCED] = "unquiesced",
	[LKS_CMD_EV_META_MOVED] = "meta-moved", [LKS_CMD_EV_MISMATCH] = "mismatch", [LKS_CMD_EV_VERIFIED] = "verified",
};

static const struct { uint8_t attr; char kind; const char *name; } fields[] = {
	{ LKS_A_SEQ, 'n', "seq" }, { LKS_A_VID, 'n', "vid" }, { LKS_A_NAME, 's', "name" }, { LKS_A_MINOR, 'n', "minor" },
	{ LKS_A_SIZE, 'n', "size" }, { LKS_A_BLOCK_SIZE, 'n', "block" }, { LKS_A_CLASS, 'n', "class" }, { LKS_A_HOST, 'n', "host" },
	{ LKS_A_LINK, 'n', "link" }, { LKS_A_LANES, 'n', "lanes" }, { LKS_A_UP, 'f', "up" }, { LKS_A_REASON, 's', "reason" },
	{ LKS_A_MODE, 'n', "mode" }, { LKS_A_OP, 's', "op" }, { LKS_A_ERROR, 'n', "error" }, { LKS_A_HAS_DEVICE, 'f', "device" },
	{ LKS_A_OPENERS, 'n', "openers" }, { LKS_A_WRITERS, 'n', "writers" }, { LKS_A_OPEN_WAITERS, 'n', "waiters" },
	{ LKS_A_HAS_REPLICA, 'f', "replica" }, { LKS_A_PATH, 's', "path" }, { LKS_A_OFFSET, 'n', "offset" },
	{ LKS_A_THIN, 'f', "thin" }, { LKS_A_SUSPECT, 'n', "suspect" }, { LKS_A_DISK_VERSION, 'n', "disk-version" },
	{ LKS_A_DISK_TERM, 'n', "disk-term" }, { LKS_A_ADMITTED, 'f', "admitted" }, { LKS_A_FAILED, 'f', "failed" },
	{ LKS_A_ROLE, 'n', "role" }, { LKS_A_VERSION, 'n', "version" }, { LKS_A_TERM, 'n', "term" },
	{ LKS_A_NOTED_VERSION, 'n', "noted" }, { LKS_A_SESSION_WITH, 'n', "session-with" }, { LKS_A_SESSION, 'n', "session" },
	{ LKS_A_SESSION_ENDED, 'n', "session-ended" }, { LKS_A_PENDING, 'n', "pending" }, { LKS_A_OLDEST_MS, 'n', "oldest-ms" },
	{ LKS_A_HOT_EXTENTS, 'n', "hot" }, { LKS_A_WRITTEN_EXTENTS, 'n', "written" }, { LKS_A_SYNC_STATE, 'n', "sync" },
	{ LKS_A_DIRTY_BLOCKS, 'n', "dirty" }, { LKS_A_HOLD, 'n', "hold" }, { LKS_A_DONE, 'f', "done" },
	{ LKS_A_REPAIR, 'f', "repair" }, { LKS_A_AT, 'n', "at" }, { LKS_A_LENGTH, 'n', "length" },
	{ LKS_A_FREEZE_MS, 'n', "freeze-ms" }, { LKS_A_SYNC_RATE, 'n', "sync-rate" }, { LKS_A_CAPACITY, 'n', "capacity" },
	{ LKS_A_MOVE_OFFSET, 'n', "move" }, { LKS_A_MOVE_CURRENT, 'f', "move-current" },
	{ LKS_A_VERIFY_TOTAL, 'n', "verify-total" }, { LKS_A_VERIFY_DONE, 'n', "verify-done" },
	{ LKS_A_VERIFY_DIFFER, 'n', "verify-differ" }, { LKS_A_HANDOVER_TO, 'n', "heir" },
	{ LKS_A_FULL, 'f', "full" }, { LKS_A_STUCK, 'f', "stuck" },
	{ LKS_A_SYNC_FLOOR, 'n', "sync-floor" }, { LKS_A_SYNC_TARGET_MS, 'n', "sync-target-ms" },
};

static void show_attrs(const struct attrs *a)
{
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		const struct nlattr *at = a->a[fields[i].attr];

		if (!at)
			continue;
		if (fields[i].kind == 'f')
			printf(" %s", fields[i].name);
		else if (fields[i].kind == 's')
			printf(" %s=\"%s\"", fields[i].name, (const char *)data_of(at));
		else if (fields[i].attr == LKS_A_ERROR)
			printf(" %s=%d", fields[i].name, (int)number(at));
		else
			printf(" %s=%llu", fields[i].name, (unsigned long long)number(at));
	}
}

static void show_record(const struct lks_record *r)
{
	static const char *const states[] = { "none", "insync", "suspect", "stale", "failed" };

	printf(" record{version=%llu term=%llu primary=%u", (unsigned long long)r->version, (unsigned long long)r->term, r->primary);
	for (int i = 0; i < r->nreplicas; i++)
		printf(" %u:%s:%llu", r->replicas[i].host, states[r->replicas[i].state % 5], (unsigned long long)r->replicas[i].since);
	for (int i = 0; i < r->nopeners; i++)
		printf(" opener=%u:%llu", r->openers[i].host, (unsigned long long)r->openers[i].session);
	printf("}");
}

static void parse_message(const struct nlmsghdr *h, struct attrs *a)
{
	parse((const char *)NLMSG_DATA(h) + GENL_HDRLEN, (int)(h->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN)), a);
}

static void show(const struct nlmsghdr *h)
{
	const struct genlmsghdr *g = NLMSG_DATA(h);
	struct attrs a;

	parse_message(h, &a);
	printf("%s", g->cmd < LKS_CMD_COUNT && names[g->cmd] ? names[g->cmd] : "?");
	show_attrs(&a);
	if (a.a[LKS_A_RECORD])
		show_record(data_of(a.a[LKS_A_RECORD]));
	if (a.a[LKS_A_PEERS]) {
		const struct nlattr *p = data_of(a.a[LKS_A_PEERS]);
		int left = length_of(a.a[LKS_A_PEERS]);

		while (left >= NLA_HDRLEN && p->nla_len >= NLA_HDRLEN && p->nla_len <= left) {
			struct attrs peer;

			parse(data_of(p), length_of(p), &peer);
			printf(" {");
			show_attrs(&peer);
			printf(" }");
			left -= (int)NLA_ALIGN(p->nla_len);
			p = (const struct nlattr *)((const char *)p + NLA_ALIGN(p->nla_len));
		}
	}
	printf("\n");
	fflush(stdout);
}

/* ---- commands ---- */

static void uuid_of(uint32_t vid, uint8_t uuid[16])
{
	memset(uuid, 0x5a, 16);
	memcpy(uuid, &vid, sizeof(vid));
}

static void format(const char *path, uint32_t vid, uint64_t size, uint64_t offset, uint8_t host)
{
	struct lks_superblock sb = { .vid = vid, .size = size, .block_size = LKS_BLOCK_DEFAULT, .host = host };
	_Alignas(4096) static char unit[LKS_META_UNIT];
	struct lks_layout layout;
	int disk = open(path, O_RDWR | O_CLOEXEC);

	if (disk < 0)
		die("%s: %s", path, strerror(errno));
	uuid_of(vid, sb.uuid);
	lks_layout_of(size, LKS_BLOCK_DEFAULT, &layout);
	for (uint64_t at = layout.slot_offset; at > 0;) {
		at -= LKS_META_UNIT;
		lks_format_unit(&sb, at, unit);
		if (!at && fsync(disk))
			die("%s: %s", path, strerror(errno));
		if (pwrite(disk, unit, sizeof(unit), (off_t)(offset + at)) != sizeof(unit))
			die("%s: %s", path, strerror(errno));
	}
	if (fsync(disk))
		die("%s: %s", path, strerror(errno));
	close(disk);
}

static void set_config(const struct lks_record *r, bool admit)
{
	struct nlmsghdr *h = command(LKS_CMD_CONFIG_SET);

	put_u32(h, LKS_A_VID, r->vid);
	put(h, LKS_A_RECORD, r, sizeof(*r));
	if (admit)
		put(h, LKS_A_ADMIT, NULL, 0);
	call(NULL);
}

static uint8_t state_of(const char *name)
{
	static const char *const states[] = { "none", "insync", "suspect", "stale", "failed" };

	for (uint8_t i = 1; i < 5; i++)
		if (!strcmp(name, states[i]))
			return i;
	die("no such state: %s", name);
	return 0;
}

static void parse_replicas(struct lks_record *r, char *list)
{
	char *save;

	for (char *word = strtok_r(list, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
		struct lks_record_replica *p = &r->replicas[r->nreplicas++ % LKS_MAX_REPLICAS];
		char *state = strchr(word, ':'), *since = state ? strchr(state + 1, ':') : NULL;

		if (!state)
			die("a replica is HOST:STATE[:SINCE]");
		*state++ = 0;
		if (since)
			*since++ = 0;
		p->host = (uint8_t)atoi(word);
		p->state = state_of(state);
		p->since = since ? strtoull(since, NULL, 0) : 0;
	}
}

static uint64_t size_in_dump;

static void note_size(const struct nlmsghdr *h)
{
	struct attrs a;

	parse((const char *)NLMSG_DATA(h) + GENL_HDRLEN, (int)(h->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN)), &a);
	if (a.a[LKS_A_SIZE])
		size_in_dump = number(a.a[LKS_A_SIZE]);
}

/* What the volume was added with: a record names its size. */
static uint64_t size_of(uint32_t vid)
{
	struct nlmsghdr *h = start(family, LKS_CMD_GET, NLM_F_DUMP);

	put_u32(h, LKS_A_VID, vid);
	call(note_size);
	return size_in_dump;
}

static void config(char **a, const char *last)
{
	bool admit = last && !strcmp(last, "admit");
	struct lks_record r = { .vid = (uint32_t)strtoul(a[0], NULL, 0), .version = strtoull(a[1], NULL, 0),
				.term = strtoull(a[2], NULL, 0), .primary = (uint8_t)atoi(a[3]),
				.session_serial = strtoull(a[4], NULL, 0) };
	char *save, *word;

	parse_replicas(&r, a[5]);
	r.size = last && !admit ? strtoull(last, NULL, 0) : size_of(r.vid);
	for (word = strcmp(a[6], "-") ? strtok_r(a[6], ",", &save) : NULL; word; word = strtok_r(NULL, ",", &save)) {
		struct lks_record_opener *o = &r.openers[r.nopeners++ % LKS_MAX_HOSTS];
		char *session = strchr(word, ':');

		if (!session)
			die("an opener is HOST:SESSION");
		o->host = (uint8_t)atoi(word);
		o->session = strtoull(session + 1, NULL, 0);
	}
	set_config(&r, admit);
}

/* Keys for both directions, as a handshake would have agreed on them. */
static void set_keys(int sock, bool dialled)
{
	struct tls12_crypto_info_aes_gcm_128 keys = { .info = { TLS_1_3_VERSION, TLS_CIPHER_AES_GCM_128 }, .salt = "salt" };

	if (setsockopt(sock, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")))
		die("kTLS: %s", strerror(errno));
	memset(keys.key, dialled ? 'd' : 'a', sizeof(keys.key));
	if (setsockopt(sock, SOL_TLS, TLS_TX, &keys, sizeof(keys)))
		die("kTLS, sending: %s", strerror(errno));
	memset(keys.key, dialled ? 'a' : 'd', sizeof(keys.key));
	if (setsockopt(sock, SOL_TLS, TLS_RX, &keys, sizeof(keys)))
		die("kTLS, receiving: %s", strerror(errno));
}

static void add_lane(uint8_t host, uint64_t link, int lane, int lanes, int sock)
{
	struct nlmsghdr *h = command(LKS_CMD_LANE_ADD);

	put_u8(h, LKS_A_HOST, host);
	put_u64(h, LKS_A_LINK, link);
	put_u8(h, LKS_A_LANE, (unsigned long)lane);
	put_u8(h, LKS_A_LANES, (unsigned long)lanes);
	put_u32(h, LKS_A_FD, (unsigned long)sock);
	call(NULL);
	close(sock);
}

static void do_listen(uint8_t host, uint64_t link, int port, int lanes, bool tls)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int one = 1, sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(sock, (struct sockaddr *)&at, sizeof(at)) || listen(sock, lanes))
		die("port %d: %s", port, strerror(errno));
	for (int i = 0; i < lanes; i++) {
		int lane = accept(sock, NULL, NULL);
		uint8_t index;

		if (lane < 0 || read(lane, &index, 1) != 1)
			die("accept: %s", strerror(errno));
		if (tls)
			set_keys(lane, false);
		add_lane(host, link, index, lanes, lane);
	}
}

static void do_connect(uint8_t host, uint64_t link, const char *address, int port, int lanes, bool tls)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };

	if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
		die("%s is no address", address);
	for (int i = 0; i < lanes; i++) {
		uint8_t index = (uint8_t)i;
		int sock;

		for (int tries = 0;; tries++) {
			sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
			if (!connect(sock, (struct sockaddr *)&to, sizeof(to)))
				break;
			close(sock);
			if (tries == 100)
				die("connect: %s", strerror(errno));
			nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
		}
		if (write(sock, &index, 1) != 1)
			die("write: %s", strerror(errno));
		if (tls)
			set_keys(sock, true);
		add_lane(host, link, i, lanes, sock);
	}
}

static int subscribe(void)
{
	struct sockaddr_nl self = { .nl_family = AF_NETLINK };
	int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);

	if (sock < 0 || bind(sock, (struct sockaddr *)&self, sizeof(self)) ||
	    setsockopt(sock, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &events_group, sizeof(events_group)))
		die("cannot listen to events: %s", strerror(errno));
	return sock;
}

static void events(int seconds, void (*handle)(const struct nlmsghdr *, void *), void *arg)
{
	static _Alignas(8) char room[ROOM];
	time_t end = time(NULL) + seconds;
	int sock = subscribe();

	for (;;) {
		struct pollfd p = { .fd = sock, .events = POLLIN };
		struct nlmsghdr *h = (struct nlmsghdr *)room;
		ssize_t n;

		if (seconds && time(NULL) >= end)
			return;
		if (poll(&p, 1, seconds ? 200 : -1) <= 0)
			continue;
		n = recv(sock, room, sizeof(room), 0);
		if (n < 0 && errno != ENOBUFS)
			die("recv: %s", strerror(errno));
		for (; n > 0 && NLMSG_OK(h, (size_t)n); h = NLMSG_NEXT(h, n))
			if (h->nlmsg_type == family)
				handle(h, arg);
	}
}

static void show_event(const struct nlmsghdr *h, void *arg)
{
	(void)arg;
	show(h);
}

static void decide(const struct nlmsghdr *h, void *arg)
{
	const struct genlmsghdr *g = NLMSG_DATA(h);
	struct lks_record *r = arg;
	struct attrs a;

	show(h);
	parse_message(h, &a);
	if (number(a.a[LKS_A_VID]) != r->vid)
		return;
	if (g->cmd == LKS_CMD_EV_OPEN && !r->nopeners) {
		r->nopeners = 1;
		r->openers[0].host = r->replicas[0].host;
		r->openers[0].session = ++r->session_serial;
		if (!r->primary) {
			r->primary = r->replicas[0].host;
			r->term++;
		}
	} else if (g->cmd == LKS_CMD_EV_CLOSE && r->nopeners && number(a.a[LKS_A_SESSION]) >= r->openers[0].session) {
		r->nopeners = 0;
		memset(r->openers, 0, sizeof(r->openers));
	} else if (g->cmd == LKS_CMD_EV_PROPOSE) {
		const struct lks_record *wish = data_of(a.a[LKS_A_RECORD]);

		if (wish->version != r->version + 1)
			return;
		memcpy(r->replicas, wish->replicas, sizeof(r->replicas));
	} else {
		return;
	}
	r->version++;
	set_config(r, false);
	printf("committed");
	show_record(r);
	printf("\n");
	fflush(stdout);
}

static void decide_alone(uint32_t vid, char *replicas)
{
	struct lks_record r = { .version = 1, .vid = vid };

	/* as lockstepd: it waits neither for its own memory nor for that of others to be swapped out to the volume */
	if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0 || prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
		die("cannot keep its memory: %s", strerror(errno));
	parse_replicas(&r, replicas);
	r.size = size_of(vid);
	set_config(&r, true);
	events(0, decide, &r);
}

/* ---- trails ---- */

static struct { bool more; uint64_t number, at, first, end; } trail;	/* first, end: a run of sectors not printed yet */

static void print_run(void)
{
	if (trail.end > trail.first)
		printf("%llu+%llu\n", (unsigned long long)trail.first, (unsigned long long)(trail.end - trail.first));
}

static void follow(const struct nlmsghdr *h)
{
	struct attrs a;
	const uint8_t *bitmap;

	parse_message(h, &a);
	trail.number = number(a.a[LKS_A_TRAIL]);
	trail.more = a.a[LKS_A_BITMAP];
	if (!trail.more)
		return;
	bitmap = data_of(a.a[LKS_A_BITMAP]);
	for (unsigned int i = 0; i < LKS_TRAIL_BITMAP * 8; i++) {
		uint64_t sector = number(a.a[LKS_A_AT]) / LKS_SECTOR + i;

		if (!(bitmap[i / 8] >> i % 8 & 1))
			continue;
		if (sector != trail.end) {
			print_run();
			trail.first = sector;
		}
		trail.end = sector + 1;
	}
	trail.at = number(a.a[LKS_A_AT]) + LKS_EXTENT_BYTES;
}

static void show_trail(uint32_t vid, uint64_t number)
{
	do {
		struct nlmsghdr *h = command(LKS_CMD_TRAIL);

		put_u32(h, LKS_A_VID, vid);
		put_u64(h, LKS_A_TRAIL, number);
		put_u64(h, LKS_A_AT, trail.at);
		call(follow);
	} while (trail.more);
	print_run();
}

static void begin_trail(uint32_t vid)
{
	struct nlmsghdr *h = command(LKS_CMD_TRAIL_BEGIN);

	put_u32(h, LKS_A_VID, vid);
	call(follow);
	printf("%llu\n", (unsigned long long)trail.number);
}

static int usage(void)
{
	fprintf(stderr, "kdrive: wrong arguments; see the top of test/lab/kdrive.c\n");
	return 2;
}

/* Commands whose arguments are numbers. */
static int numbers(const char *c, char **a, int n)
{
	static const struct { const char *name; uint8_t cmd, least, attrs[5]; } commands[] = {
		{ "host-set", LKS_CMD_HOST_SET, 1, { LKS_A_HOST } }, { "peer-set", LKS_CMD_PEER_SET, 1, { LKS_A_HOST } },
		{ "peer-del", LKS_CMD_PEER_DEL, 1, { LKS_A_HOST } }, { "tune", LKS_CMD_TUNE, 1, { LKS_A_LEASE_MS } },
		{ "volume-del", LKS_CMD_VOLUME_DEL, 1, { LKS_A_VID } }, { "detach", LKS_CMD_REPLICA_DETACH, 1, { LKS_A_VID } },
		{ "device-add", LKS_CMD_DEVICE_ADD, 1, { LKS_A_VID } }, { "device-del", LKS_CMD_DEVICE_DEL, 1, { LKS_A_VID } },
		{ "abort", LKS_CMD_ABORT, 1, { LKS_A_VID } }, { "handover", LKS_CMD_HANDOVER, 2, { LKS_A_VID, LKS_A_HOST } },
		{ "quiesce", LKS_CMD_QUIESCE, 3, { LKS_A_VID, LKS_A_HOLD, LKS_A_TIMEOUT_MS } },
		{ "resume", LKS_CMD_RESUME, 2, { LKS_A_VID, LKS_A_HOLD } },
		{ "meta-move", LKS_CMD_META_MOVE, 3, { LKS_A_VID, LKS_A_OFFSET, LKS_A_SIZE } },
		{ "meta-moved", LKS_CMD_META_MOVED, 2, { LKS_A_VID, LKS_A_OFFSET } },
		{ "resize", LKS_CMD_RESIZE, 2, { LKS_A_VID, LKS_A_SIZE } },
		{ "verify", LKS_CMD_VERIFY, 2, { LKS_A_VID, LKS_A_MODE } },
		{ "volume-tune", LKS_CMD_VOLUME_TUNE, 2,
		  { LKS_A_VID, LKS_A_FREEZE_MS, LKS_A_SYNC_RATE, LKS_A_SYNC_FLOOR, LKS_A_SYNC_TARGET_MS } },
	};

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		struct nlmsghdr *h;

		if (strcmp(c, commands[i].name) || n < commands[i].least || n > 5)
			continue;
		h = command(commands[i].cmd);
		for (int k = 0; k < n && commands[i].attrs[k]; k++) {
			uint64_t value = strtoull(a[k], NULL, 0);
			uint8_t attr = commands[i].attrs[k];
			bool small = attr == LKS_A_HOST || attr == LKS_A_MODE;
			bool big = attr == LKS_A_OFFSET || attr == LKS_A_SIZE || attr == LKS_A_HOLD;

			put(h, attr, &value, small ? 1 : big ? 8 : 4);
		}
		call(NULL);
		return 0;
	}
	return usage();
}

int main(int argc, char **argv)
{
	const char *c = argc > 1 ? argv[1] : "";
	char **a = argv + 2;
	int n = argc - 2;
	struct nlmsghdr *h;

	if (!strcmp(c, "format") && n == 5) {
		format(a[0], (uint32_t)strtoul(a[1], NULL, 0), strtoull(a[2], NULL, 0), strtoull(a[3], NULL, 0), (uint8_t)atoi(a[4]));
		return 0;
	}
	open_netlink();
	if (!strcmp(c, "get") && n <= 1) {
		h = start(family, LKS_CMD_GET, NLM_F_DUMP);
		if (n)
			put_u32(h, LKS_A_VID, strtoul(a[0], NULL, 0));
		call(show);
	} else if (!strcmp(c, "events") && n <= 1) {
		events(n ? atoi(a[0]) : 0, show_event, NULL);
	} else if (!strcmp(c, "trail-begin") && n == 1) {
		begin_trail((uint32_t)strtoul(a[0], NULL, 0));
	} else if (!strcmp(c, "trail") && n == 2) {
		show_trail((uint32_t)strtoul(a[0], NULL, 0), strtoull(a[1], NULL, 0));
	} else if (!strcmp(c, "auto") && n == 2) {
		decide_alone((uint32_t)strtoul(a[0], NULL, 0), a[1]);
	} else if (!strcmp(c, "listen") && n >= 3 && n <= 5) {
		do_listen((uint8_t)atoi(a[0]), strtoull(a[1], NULL, 0), atoi(a[2]), n > 3 ? atoi(a[3]) : 1, n == 5);
	} else if (!strcmp(c, "connect") && n >= 4 && n <= 6) {
		do_connect((uint8_t)atoi(a[0]), strtoull(a[1], NULL, 0), a[2], atoi(a[3]), n > 4 ? atoi(a[4]) : 1, n == 6);
	} else if (!strcmp(c, "volume-add") && (n == 4 || n == 5)) {
		uint8_t uuid[16];

		uuid_of((uint32_t)strtoul(a[0], NULL, 0), uuid);
		h = command(LKS_CMD_VOLUME_ADD);
		put_u32(h, LKS_A_VID, strtoul(a[0], NULL, 0));
		put(h, LKS_A_UUID, uuid, sizeof(uuid));
		put_string(h, LKS_A_NAME, a[1]);
		put_u32(h, LKS_A_MINOR, strtoul(a[2], NULL, 0));
		put_u64(h, LKS_A_SIZE, strtoull(a[3], NULL, 0));
		put_u32(h, LKS_A_BLOCK_SIZE, LKS_BLOCK_DEFAULT);
		put_u8(h, LKS_A_CLASS, n == 5 ? LKS_SHARED : LKS_EXCLUSIVE);
		call(NULL);
	} else if (!strcmp(c, "attach") && (n == 3 || n == 4)) {
		h = command(LKS_CMD_REPLICA_ATTACH);
		put_u32(h, LKS_A_VID, strtoul(a[0], NULL, 0));
		put_string(h, LKS_A_PATH, a[1]);
		put_u64(h, LKS_A_OFFSET, strtoull(a[2], NULL, 0));
		if (n == 4)
			put(h, LKS_A_THIN, NULL, 0);
		call(show);
	} else if (!strcmp(c, "refuse") && n == 2) {
		int32_t error = -abs(atoi(a[1]));

		h = command(LKS_CMD_OPEN_REFUSE);
		put_u32(h, LKS_A_VID, strtoul(a[0], NULL, 0));
		put(h, LKS_A_ERROR, &error, sizeof(error));
		call(NULL);
	} else if (!strcmp(c, "config") && (n == 7 || n == 8)) {
		config(a, n == 8 ? a[7] : NULL);
	} else {
		return numbers(c, a, n);
	}
	return 0;
}
