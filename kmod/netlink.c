// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The generic netlink family: commands of the daemon, and the dump. uapi/lockstep.h is the contract.
 *
 * Commands run in parallel: one that waits for a disk must hold up neither others nor other families. Each serialises
 * itself with what it touches: lks_volume.admin, lks_host.admin, or host_lock here.
 *
 * Attributes are checked in one place: by type in the policy, by range and presence in a table of our own, since older
 * kernels know no ranges.
 */
#include <linux/ctype.h>
#include <linux/module.h>
#include "backing.h"
#include "compat/net.h"
#include "device.h"
#include "event.h"
#include "netlink.h"
#include "host.h"
#include "trail.h"
#include "volume.h"

#define PATH_BYTES_MAX 1024	/* so that a VOLUME message fits into one page with the rest */
#define SIZE_BYTES_MAX (64ull << 40)
#define LEASE_MS_MIN 1000
#define LEASE_MS_MAX 60000
#define TIMEOUT_MS_MAX 60000
#define ERRNO_MAX 133
#define REQUIRED_MAX 7

static DEFINE_MUTEX(host_lock);		/* lks_self, lks_lease_ms */

static const struct nla_policy policy[LKS_A_MAX + 1] = {
	[LKS_A_HOST] = { .type = NLA_U8 },
	[LKS_A_LANE] = { .type = NLA_U8 },
	[LKS_A_LANES] = { .type = NLA_U8 },
	[LKS_A_LINK] = { .type = NLA_U64 },
	[LKS_A_FD] = { .type = NLA_U32 },
	[LKS_A_VID] = { .type = NLA_U32 },
	[LKS_A_UUID] = { .type = NLA_BINARY, .len = 16 },
	[LKS_A_NAME] = { .type = NLA_NUL_STRING, .len = LKS_NAME_MAX },
	[LKS_A_MINOR] = { .type = NLA_U32 },
	[LKS_A_SIZE] = { .type = NLA_U64 },
	[LKS_A_BLOCK_SIZE] = { .type = NLA_U32 },
	[LKS_A_CLASS] = { .type = NLA_U8 },
	[LKS_A_PATH] = { .type = NLA_NUL_STRING, .len = PATH_BYTES_MAX },
	[LKS_A_OFFSET] = { .type = NLA_U64 },
	[LKS_A_RECORD] = { .type = NLA_BINARY, .len = sizeof(struct lks_record) },
	[LKS_A_ADMIT] = { .type = NLA_FLAG },
	[LKS_A_MODE] = { .type = NLA_U8 },
	[LKS_A_ERROR] = { .type = NLA_S32 },
	[LKS_A_LEASE_MS] = { .type = NLA_U32 },
	[LKS_A_THIN] = { .type = NLA_FLAG },
	[LKS_A_HOLD] = { .type = NLA_U64 },
	[LKS_A_TIMEOUT_MS] = { .type = NLA_U32 },
	[LKS_A_REPAIR] = { .type = NLA_FLAG },
	[LKS_A_FREEZE_MS] = { .type = NLA_U32 },
	[LKS_A_SYNC_RATE] = { .type = NLA_U32 },
	[LKS_A_SYNC_FLOOR] = { .type = NLA_U32 },
	[LKS_A_SYNC_TARGET_MS] = { .type = NLA_U32 },
	[LKS_A_AT] = { .type = NLA_U64 },
	[LKS_A_VERIFY_DONE] = { .type = NLA_U64 },
	[LKS_A_VERIFY_DIFFER] = { .type = NLA_U64 },
	[LKS_A_TRAIL] = { .type = NLA_U64 },
};

/* Of a number; of binary data: its length. max 0: any. */
static const struct { u64 min, max; } ranges[LKS_A_MAX + 1] = {
	[LKS_A_HOST] = { 1, LKS_MAX_HOSTS },
	[LKS_A_LANE] = { 0, LKS_MAX_LANES - 1 },
	[LKS_A_LANES] = { 1, LKS_MAX_LANES },
	[LKS_A_LINK] = { 1, U64_MAX },
	[LKS_A_VID] = { 1, U32_MAX },
	[LKS_A_UUID] = { 16, 16 },
	[LKS_A_MINOR] = { 0, LKS_MAX_MINORS - 1 },
	[LKS_A_SIZE] = { 4096, SIZE_BYTES_MAX },
	[LKS_A_BLOCK_SIZE] = { LKS_BLOCK_MIN, LKS_BLOCK_MAX },
	[LKS_A_CLASS] = { LKS_EXCLUSIVE, LKS_SHARED },
	[LKS_A_RECORD] = { sizeof(struct lks_record), sizeof(struct lks_record) },
	[LKS_A_MODE] = { 0, 1 },
	[LKS_A_LEASE_MS] = { LEASE_MS_MIN, LEASE_MS_MAX },
	[LKS_A_HOLD] = { 1, U64_MAX },
	[LKS_A_TIMEOUT_MS] = { 1, TIMEOUT_MS_MAX },
	[LKS_A_AT] = { 0, SIZE_BYTES_MAX },
	[LKS_A_TRAIL] = { 1, U64_MAX },
};

static bool within_range(const struct nlattr *a, int type)
{
	u64 value;

	if (!ranges[type].max)
		return true;
	switch (policy[type].type) {
	case NLA_U8:
		value = nla_get_u8(a);
		break;
	case NLA_U32:
		value = nla_get_u32(a);
		break;
	case NLA_U64:
		value = nla_get_u64(a);
		break;
	default:
		value = nla_len(a);
	}
	return value >= ranges[type].min && value <= ranges[type].max;
}

/* ---- this host and its peers ---- */

static int do_host_set(struct genl_info *info)
{
	u8 host = nla_get_u8(info->attrs[LKS_A_HOST]);
	int err = 0;

	mutex_lock(&host_lock);
	if (lks_self && lks_self != host) {
		GENL_SET_ERR_MSG(info, "this host has another id already; reload the module to change it");
		err = -EBUSY;
	} else {
		lks_self = host;
	}
	mutex_unlock(&host_lock);
	return err;
}

static int do_tune(struct genl_info *info)
{
	u32 lease_ms;
	int err = 0;

	if (!info->attrs[LKS_A_LEASE_MS])
		return 0;
	lease_ms = nla_get_u32(info->attrs[LKS_A_LEASE_MS]);
	mutex_lock(&host_lock);
	if (lks_self && lks_lease_ms != lease_ms) {
		GENL_SET_ERR_MSG(info, "LEASE_MS can be changed only before HOST_SET");
		err = -EBUSY;
	} else {
		lks_lease_ms = lease_ms;
	}
	mutex_unlock(&host_lock);
	return err;
}

static bool no_host(struct genl_info *info)
{
	if (READ_ONCE(lks_self))
		return false;
	GENL_SET_ERR_MSG(info, "this host has no id yet: HOST_SET comes first");
	return true;
}

static int do_peer_set(struct genl_info *info)
{
	if (no_host(info))
		return -EINVAL;
	return lks_host_set(nla_get_u8(info->attrs[LKS_A_HOST]), info->extack);
}

static int do_peer_del(struct genl_info *info)
{
	return lks_host_del(nla_get_u8(info->attrs[LKS_A_HOST]), info->extack);
}

static int do_lane_add(struct genl_info *info)
{
	struct nlattr **a = info->attrs;
	u8 lane = nla_get_u8(a[LKS_A_LANE]);
	u8 nlanes = nla_get_u8(a[LKS_A_LANES]);

	if (no_host(info))
		return -EINVAL;
	if (lane >= nlanes) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[LKS_A_LANE], "LANE must be less than LANES");
		return -EINVAL;
	}
	return lks_host_add_lane(nla_get_u8(a[LKS_A_HOST]), lane, nlanes, nla_get_u64(a[LKS_A_LINK]),
				 nla_get_u32(a[LKS_A_FD]), info->extack);
}

/* ---- volumes ---- */

static bool name_ok(const char *name)
{
	const char *c;

	for (c = name; *c; c++)
		if (!isascii(*c) || !(isalnum(*c) || (c != name && strchr("._-", *c))))
			return false;
	return c != name;
}

static bool bad_size(struct genl_info *info)
{
	if (nla_get_u64(info->attrs[LKS_A_SIZE]) % 4096 == 0)
		return false;
	NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[LKS_A_SIZE], "the size must be a multiple of 4096, at most 64 TiB");
	return true;
}

static int do_volume_add(struct genl_info *info)
{
	struct nlattr **a = info->attrs;
	struct lks_volume_params p = { };

	if (no_host(info) || bad_size(info))
		return -EINVAL;
	p.name = nla_data(a[LKS_A_NAME]);
	p.minor = nla_get_u32(a[LKS_A_MINOR]);
	p.core.vid = nla_get_u32(a[LKS_A_VID]);
	memcpy(p.core.uuid, nla_data(a[LKS_A_UUID]), sizeof(p.core.uuid));
	p.core.size = nla_get_u64(a[LKS_A_SIZE]);
	p.core.block_size = nla_get_u32(a[LKS_A_BLOCK_SIZE]);
	p.core.shared = nla_get_u8(a[LKS_A_CLASS]);
	p.core.self = lks_self;
	p.core.lease_ms = lks_lease_ms;
	p.core.answer_ms = READ_ONCE(lks_answer_ms);
	if (!name_ok(p.name)) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[LKS_A_NAME],
				    "a name has letters, digits, '.', '_' and '-', and begins with a letter or digit");
		return -EINVAL;
	}
	if (!is_power_of_2(p.core.block_size)) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[LKS_A_BLOCK_SIZE], "the block size must be a power of two");
		return -EINVAL;
	}
	return lks_volume_add(&p, info->extack);
}

static int do_volume_del(struct genl_info *info)
{
	return lks_volume_del(nla_get_u32(info->attrs[LKS_A_VID]), info->extack);
}

static int answer_attach(struct lks_volume *v, struct genl_info *info)
{
	struct sk_buff *skb = genlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	void *head;

	if (!skb)
		return -ENOMEM;
	head = genlmsg_put_reply(skb, info, &lks_netlink_family, 0, LKS_CMD_REPLICA_ATTACH);
	if (!head || nla_put_u32(skb, LKS_A_VID, v->vid) || nla_put_u8(skb, LKS_A_SUSPECT, v->suspect) ||
	    nla_put_u64_64bit(skb, LKS_A_DISK_VERSION, v->disk_version, LKS_A_PAD) ||
	    nla_put_u64_64bit(skb, LKS_A_DISK_TERM, v->disk_term, LKS_A_PAD)) {
		nlmsg_free(skb);
		return -EMSGSIZE;
	}
	genlmsg_end(skb, head);
	return genlmsg_reply(skb, info);
}

static int do_replica_attach(struct lks_volume *v, struct genl_info *info)
{
	struct nlattr **a = info->attrs;
	int err = lks_volume_attach(v, nla_data(a[LKS_A_PATH]), nla_get_u64(a[LKS_A_OFFSET]), a[LKS_A_THIN], info->extack);

	return err ? err : answer_attach(v, info);
}

static int do_replica_detach(struct lks_volume *v, struct genl_info *info)
{
	return lks_volume_detach(v, info->extack);
}

static int do_config_set(struct lks_volume *v, struct genl_info *info)
{
	struct nlattr *a = info->attrs[LKS_A_RECORD];
	const struct lks_record *r;
	int err = -EINVAL;

	/* an attribute's payload has an alignment of 4 only */
	r = kmemdup(nla_data(a), sizeof(*r), GFP_KERNEL);
	if (!r)
		return -ENOMEM;
	if (r->vid != v->vid || lks_record_check(r))
		NL_SET_ERR_MSG_ATTR(info->extack, a, "the record is inconsistent, or of another volume");
	else
		err = lks_volume_config(v, r, info->attrs[LKS_A_ADMIT], info->extack);
	kfree(r);
	return err;
}

static int do_open_refuse(struct lks_volume *v, struct genl_info *info)
{
	s32 error = nla_get_s32(info->attrs[LKS_A_ERROR]);

	if (error >= 0 || error < -ERRNO_MAX) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[LKS_A_ERROR], "ERROR must be a negative errno");
		return -EINVAL;
	}
	lks_open_refuse(v, error);
	return 0;
}

static int do_device_add(struct lks_volume *v, struct genl_info *info)
{
	return lks_disk_add(v, info->extack);
}

static int do_device_del(struct lks_volume *v, struct genl_info *info)
{
	return lks_disk_del(v, info->extack);
}

/* What the core said to a command that only the serving primary carries out. */
static int explain_primary(int err, struct genl_info *info)
{
	if (err == -ESTALE)
		GENL_SET_ERR_MSG(info, "the primary is not here, or not serving, or what this ends had ended before");
	else if (err == -EINVAL)
		GENL_SET_ERR_MSG(info, "that host is not in sync");
	else if (err == -EBUSY)
		GENL_SET_ERR_MSG(info, "the volume is held by another quiesce");
	return err;
}

static int do_handover(struct lks_volume *v, struct genl_info *info)
{
	return explain_primary(lks_vol_hand_over(v->core, nla_get_u8(info->attrs[LKS_A_HOST]), v->now_ms), info);
}

static int do_quiesce(struct lks_volume *v, struct genl_info *info)
{
	u64 hold = nla_get_u64(info->attrs[LKS_A_HOLD]);

	return explain_primary(lks_vol_quiesce(v->core, hold, nla_get_u32(info->attrs[LKS_A_TIMEOUT_MS]), v->now_ms), info);
}

static int do_resume(struct lks_volume *v, struct genl_info *info)
{
	return explain_primary(lks_vol_resume(v->core, nla_get_u64(info->attrs[LKS_A_HOLD]), v->now_ms), info);
}

static int do_verify(struct lks_volume *v, struct genl_info *info)
{
	struct nlattr **a = info->attrs;
	struct lks_verify how = { .start = nla_get_u8(a[LKS_A_MODE]), .repair = a[LKS_A_REPAIR] };

	if (a[LKS_A_VERIFY_DONE])
		how.done = nla_get_u64(a[LKS_A_VERIFY_DONE]);
	if (a[LKS_A_VERIFY_DIFFER])
		how.differ = nla_get_u64(a[LKS_A_VERIFY_DIFFER]);
	return explain_primary(lks_vol_verify(v->core, &how, v->now_ms), info);
}

static int do_volume_tune(struct lks_volume *v, struct genl_info *info)
{
	struct nlattr **a = info->attrs;

	if (a[LKS_A_FREEZE_MS])
		v->tune.freeze_ms = nla_get_u32(a[LKS_A_FREEZE_MS]);
	if (a[LKS_A_SYNC_RATE])
		v->tune.sync_rate_kib = nla_get_u32(a[LKS_A_SYNC_RATE]);
	if (a[LKS_A_SYNC_FLOOR])
		v->tune.sync_floor_kib = nla_get_u32(a[LKS_A_SYNC_FLOOR]);
	if (a[LKS_A_SYNC_TARGET_MS])
		v->tune.sync_target_ms = nla_get_u32(a[LKS_A_SYNC_TARGET_MS]);
	lks_vol_tune(v->core, &v->tune, v->now_ms);
	v->open_news++;		/* whoever waits in open() has another deadline */
	wake_up_all(&v->wait);
	return 0;
}

static int do_meta_move(struct lks_volume *v, struct genl_info *info)
{
	if (bad_size(info))
		return -EINVAL;
	return lks_volume_meta_move(v, nla_get_u64(info->attrs[LKS_A_OFFSET]), nla_get_u64(info->attrs[LKS_A_SIZE]),
				    info->extack);
}

static int do_meta_moved(struct lks_volume *v, struct genl_info *info)
{
	return lks_volume_meta_moved(v, nla_get_u64(info->attrs[LKS_A_OFFSET]), info->extack);
}

static int do_resize(struct lks_volume *v, struct genl_info *info)
{
	if (bad_size(info))
		return -EINVAL;
	return lks_volume_resize(v, nla_get_u64(info->attrs[LKS_A_SIZE]), info->extack);
}

static int do_abort(struct lks_volume *v, struct genl_info *info)
{
	lks_volume_abort(v);
	return 0;
}

static int do_trail_end(struct lks_volume *v, struct genl_info *info)
{
	lks_trail_forget(v, nla_get_u64(info->attrs[LKS_A_TRAIL]));
	return 0;
}

static int put_trail(struct sk_buff *skb, struct genl_info *info, u64 number, u64 at, const u8 *bitmap)
{
	void *head = genlmsg_put_reply(skb, info, &lks_netlink_family, 0, info->genlhdr->cmd);

	if (!head || nla_put_u64_64bit(skb, LKS_A_TRAIL, number, LKS_A_PAD) ||
	    (bitmap && (nla_put_u64_64bit(skb, LKS_A_AT, at, LKS_A_PAD) || nla_put(skb, LKS_A_BITMAP, LKS_TRAIL_BITMAP, bitmap))))
		return -EMSGSIZE;
	genlmsg_end(skb, head);
	return 0;
}

/* TRAIL_BEGIN and TRAIL. What a message is made and sent with is allocated without the lock, which I/O may need. */
static int do_trail(struct lks_volume *v, struct genl_info *info)
{
	struct nlattr **a = info->attrs;
	struct sk_buff *skb = genlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	u64 number = 0, at = 0;
	const u8 *bitmap = NULL;
	int err;

	if (!skb)
		return -ENOMEM;
	lks_volume_lock(v);
	if (info->genlhdr->cmd == LKS_CMD_TRAIL_BEGIN) {
		err = lks_trail_begin(v, &number, info->extack);
	} else {
		number = nla_get_u64(a[LKS_A_TRAIL]);
		at = nla_get_u64(a[LKS_A_AT]);
		err = lks_trail_next(v, number, &at, &bitmap, info->extack);
	}
	err = err ?: put_trail(skb, info, number, at, bitmap);
	lks_volume_unlock(v, true);
	if (!err)
		return genlmsg_reply(skb, info);
	nlmsg_free(skb);
	return err;
}

/* ---- the table of commands ---- */

static const struct command {
	u8 required[REQUIRED_MAX];
	int (*run)(struct genl_info *info);				/* either this, */
	int (*volume)(struct lks_volume *v, struct genl_info *info);	/* or with a volume, */
	enum { ALONE = 1, LOCKED, FREE } how;				/* under its admin, under its lock, or neither */
} commands[LKS_CMD_COUNT] = {
	[LKS_CMD_HOST_SET] = { { LKS_A_HOST }, do_host_set },
	[LKS_CMD_TUNE] = { { }, do_tune },
	[LKS_CMD_PEER_SET] = { { LKS_A_HOST }, do_peer_set },
	[LKS_CMD_PEER_DEL] = { { LKS_A_HOST }, do_peer_del },
	[LKS_CMD_LANE_ADD] = { { LKS_A_HOST, LKS_A_LANE, LKS_A_LANES, LKS_A_LINK, LKS_A_FD }, do_lane_add },
	[LKS_CMD_VOLUME_ADD] = { { LKS_A_VID, LKS_A_UUID, LKS_A_NAME, LKS_A_MINOR, LKS_A_SIZE, LKS_A_BLOCK_SIZE, LKS_A_CLASS },
				 do_volume_add },
	[LKS_CMD_VOLUME_DEL] = { { LKS_A_VID }, do_volume_del },
	[LKS_CMD_REPLICA_ATTACH] = { { LKS_A_VID, LKS_A_PATH, LKS_A_OFFSET }, NULL, do_replica_attach, ALONE },
	[LKS_CMD_REPLICA_DETACH] = { { LKS_A_VID }, NULL, do_replica_detach, ALONE },
	[LKS_CMD_CONFIG_SET] = { { LKS_A_VID, LKS_A_RECORD }, NULL, do_config_set, FREE },
	[LKS_CMD_OPEN_REFUSE] = { { LKS_A_VID, LKS_A_ERROR }, NULL, do_open_refuse, FREE },
	[LKS_CMD_DEVICE_ADD] = { { LKS_A_VID }, NULL, do_device_add, ALONE },
	[LKS_CMD_DEVICE_DEL] = { { LKS_A_VID }, NULL, do_device_del, ALONE },
	[LKS_CMD_HANDOVER] = { { LKS_A_VID, LKS_A_HOST }, NULL, do_handover, LOCKED },
	[LKS_CMD_QUIESCE] = { { LKS_A_VID, LKS_A_HOLD, LKS_A_TIMEOUT_MS }, NULL, do_quiesce, LOCKED },
	[LKS_CMD_RESUME] = { { LKS_A_VID, LKS_A_HOLD }, NULL, do_resume, LOCKED },
	[LKS_CMD_META_MOVE] = { { LKS_A_VID, LKS_A_OFFSET, LKS_A_SIZE }, NULL, do_meta_move, ALONE },
	[LKS_CMD_META_MOVED] = { { LKS_A_VID, LKS_A_OFFSET }, NULL, do_meta_moved, ALONE },
	[LKS_CMD_RESIZE] = { { LKS_A_VID, LKS_A_SIZE }, NULL, do_resize, ALONE },
	[LKS_CMD_VERIFY] = { { LKS_A_VID, LKS_A_MODE }, NULL, do_verify, LOCKED },
	[LKS_CMD_VOLUME_TUNE] = { { LKS_A_VID }, NULL, do_volume_tune, LOCKED },
	[LKS_CMD_ABORT] = { { LKS_A_VID }, NULL, do_abort, FREE },
	[LKS_CMD_TRAIL_BEGIN] = { { LKS_A_VID }, NULL, do_trail, FREE },
	[LKS_CMD_TRAIL] = { { LKS_A_VID, LKS_A_TRAIL, LKS_A_AT }, NULL, do_trail, FREE },
	[LKS_CMD_TRAIL_END] = { { LKS_A_VID, LKS_A_TRAIL }, NULL, do_trail_end, LOCKED },
};

static int check_attributes(const struct command *c, struct genl_info *info)
{
	unsigned int i;

	for (i = 0; i < REQUIRED_MAX && c->required[i]; i++)
		if (GENL_REQ_ATTR_CHECK(info, c->required[i])) {
			GENL_SET_ERR_MSG(info, "an attribute that this command needs is missing");
			return -EINVAL;
		}
	for (i = 1; i <= LKS_A_MAX; i++)
		if (info->attrs[i] && !within_range(info->attrs[i], i)) {
			NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[i], "an attribute is out of its range");
			return -EINVAL;
		}
	return 0;
}

static int run_alone(const struct command *c, struct lks_volume *v, struct genl_info *info)
{
	int err = mutex_lock_killable(&v->admin);

	if (err)
		return err;
	if (v->dead) {
		GENL_SET_ERR_MSG(info, "the volume has just been deleted");
		err = -ENOENT;
	} else {
		err = c->volume(v, info);
	}
	mutex_unlock(&v->admin);
	return err;
}

static int run_locked(const struct command *c, struct lks_volume *v, struct genl_info *info)
{
	int err = -ENOENT;

	lks_volume_lock(v);
	if (v->dead)
		GENL_SET_ERR_MSG(info, "the volume has just been deleted");
	else
		err = c->volume(v, info);
	lks_volume_unlock(v, true);
	return err;
}

static int doit(struct sk_buff *skb, struct genl_info *info)
{
	const struct command *c = &commands[info->genlhdr->cmd];
	struct lks_volume *v;
	int err = check_attributes(c, info);

	if (err)
		return err;
	if (c->run)
		return c->run(info);
	v = lks_volume_get(nla_get_u32(info->attrs[LKS_A_VID]));
	if (!v) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[LKS_A_VID], "no such volume on this host");
		return -ENOENT;
	}
	if (c->how == ALONE)
		err = run_alone(c, v, info);
	else if (c->how == LOCKED)
		err = run_locked(c, v, info);
	else
		err = c->volume(v, info);
	lks_volume_put(v);
	return err;
}

/* ---- the dump ---- */

static int put_flag(struct sk_buff *skb, int attr, bool set)
{
	return set ? nla_put_flag(skb, attr) : 0;
}

static int put_u64(struct sk_buff *skb, int attr, u64 value)
{
	return nla_put_u64_64bit(skb, attr, value, LKS_A_PAD);
}

static int put_peers(struct sk_buff *skb, const struct lks_vol_status *s)
{
	struct nlattr *peers = nla_nest_start(skb, LKS_A_PEERS);
	unsigned int i;

	if (!peers)
		return -EMSGSIZE;
	for (i = 0; i < s->npeers; i++) {
		struct nlattr *peer = nla_nest_start(skb, LKS_A_PEER);

		if (!peer || nla_put_u8(skb, LKS_A_HOST, s->peers[i].host) ||
		    nla_put_u8(skb, LKS_A_SYNC_STATE, s->peers[i].sync_state) ||
		    put_u64(skb, LKS_A_DIRTY_BLOCKS, s->peers[i].dirty_blocks))
			return -EMSGSIZE;
		nla_nest_end(skb, peer);
	}
	nla_nest_end(skb, peers);
	return 0;
}

static int put_status(struct sk_buff *skb, const struct lks_vol_status *s)
{
	if (put_flag(skb, LKS_A_ADMITTED, s->admitted) || put_flag(skb, LKS_A_FAILED, s->failed) ||
	    nla_put_u8(skb, LKS_A_ROLE, s->role) || put_u64(skb, LKS_A_VERSION, s->version) ||
	    put_u64(skb, LKS_A_TERM, s->term) || put_u64(skb, LKS_A_NOTED_VERSION, s->noted_version) ||
	    nla_put_u8(skb, LKS_A_SESSION_WITH, s->session_with) || put_u64(skb, LKS_A_SESSION, s->session) ||
	    nla_put_u32(skb, LKS_A_PENDING, s->pending) || nla_put_u32(skb, LKS_A_OLDEST_MS, s->oldest_ms) ||
	    nla_put_u32(skb, LKS_A_HOT_EXTENTS, s->hot_extents) ||
	    nla_put_u32(skb, LKS_A_WRITTEN_EXTENTS, s->written_extents))
		return -EMSGSIZE;
	if (s->hold && put_u64(skb, LKS_A_HOLD, s->hold))
		return -EMSGSIZE;
	if (s->heir && nla_put_u8(skb, LKS_A_HANDOVER_TO, s->heir))
		return -EMSGSIZE;
	if (s->verify_total && (put_u64(skb, LKS_A_VERIFY_TOTAL, s->verify_total) ||
				put_u64(skb, LKS_A_VERIFY_DONE, s->verify_done) ||
				put_u64(skb, LKS_A_VERIFY_DIFFER, s->verify_differ) ||
				put_flag(skb, LKS_A_REPAIR, s->verify_repair)))
		return -EMSGSIZE;
	return s->npeers ? put_peers(skb, s) : 0;
}

/* v->lock is held. s: NULL during an attach. suspect: whether it is now; a resync has made good what was found at attach */
static int put_replica(struct sk_buff *skb, struct lks_volume *v, const struct lks_vol_status *s)
{
	bool suspect = s ? s->suspect : v->suspect;
	struct lks_backing *b = v->backing;

	if (!b)
		return 0;
	if (nla_put_flag(skb, LKS_A_HAS_REPLICA) || nla_put_string(skb, LKS_A_PATH, b->path) ||
	    put_u64(skb, LKS_A_OFFSET, s ? lks_volume_meta_offset(v, s) : b->offset) || put_flag(skb, LKS_A_THIN, b->thin) ||
	    nla_put_u8(skb, LKS_A_SUSPECT, suspect) || put_u64(skb, LKS_A_DISK_VERSION, v->disk_version) ||
	    put_u64(skb, LKS_A_DISK_TERM, v->disk_term) || put_flag(skb, LKS_A_FULL, v->full) || put_flag(skb, LKS_A_STUCK, v->stuck))
		return -EMSGSIZE;
	if (!s)
		return 0;
	if (s->capacity && put_u64(skb, LKS_A_CAPACITY, s->capacity))
		return -EMSGSIZE;
	if (s->move_offset && (put_u64(skb, LKS_A_MOVE_OFFSET, s->move_offset) ||
			       put_flag(skb, LKS_A_MOVE_CURRENT, s->move_current)))
		return -EMSGSIZE;
	return 0;
}

static int put_volume(struct sk_buff *skb, struct lks_volume *v)
{
	struct lks_vol_status s;
	bool has_core;
	int err;

	if (nla_put_u32(skb, LKS_A_VID, v->vid) || nla_put(skb, LKS_A_UUID, sizeof(v->uuid), v->uuid) ||
	    nla_put_string(skb, LKS_A_NAME, v->name) || nla_put_u32(skb, LKS_A_MINOR, v->minor) ||
	    put_u64(skb, LKS_A_SIZE, READ_ONCE(v->size)) || nla_put_u32(skb, LKS_A_BLOCK_SIZE, v->block_size) ||
	    nla_put_u8(skb, LKS_A_CLASS, v->class))
		return -EMSGSIZE;

	/* not lks_volume_lock(): a dump does not wait for an attach, the core's part is left out then */
	lks_volume_hold(v);
	err = put_flag(skb, LKS_A_HAS_DEVICE, v->disk);
	err = err ?: nla_put_u32(skb, LKS_A_OPENERS, v->openers);
	err = err ?: nla_put_u32(skb, LKS_A_WRITERS, v->writers);
	err = err ?: nla_put_u32(skb, LKS_A_OPEN_WAITERS, v->open_waiters + v->waking);
	err = err ?: put_u64(skb, LKS_A_SESSION_ENDED, v->session_ended);
	err = err ?: nla_put_u32(skb, LKS_A_FREEZE_MS, v->tune.freeze_ms);
	err = err ?: nla_put_u32(skb, LKS_A_SYNC_RATE, v->tune.sync_rate_kib);
	err = err ?: nla_put_u32(skb, LKS_A_SYNC_FLOOR, v->tune.sync_floor_kib);
	err = err ?: nla_put_u32(skb, LKS_A_SYNC_TARGET_MS, v->tune.sync_target_ms);
	has_core = !v->attaching && !v->dead;
	if (has_core)
		lks_vol_status(v->core, v->now_ms, &s);
	err = err ?: put_replica(skb, v, has_core ? &s : NULL);
	if (!err && has_core)
		err = put_status(skb, &s);
	lks_volume_release(v);
	return err;
}

static int put_peer(struct sk_buff *skb, u8 host)
{
	struct lks_host_info info;

	lks_host_info(host, &info);
	if (nla_put_u8(skb, LKS_A_HOST, host) || put_u64(skb, LKS_A_LINK, info.number) ||
	    nla_put_u8(skb, LKS_A_LANES, info.nlanes) || put_flag(skb, LKS_A_UP, info.up))
		return -EMSGSIZE;
	return 0;
}

struct dump {
	u64 seq;
	bool started;
	bool one;		/* this volume only */
	bool volumes_done;
	u32 next_vid;
	u8 next_host;
};

static void *begin(struct sk_buff *skb, struct netlink_callback *cb, u8 cmd)
{
	struct dump *d = lks_dump_state(cb);
	void *head = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, &lks_netlink_family, NLM_F_MULTI, cmd);

	if (head && put_u64(skb, LKS_A_SEQ, d->seq)) {
		genlmsg_cancel(skb, head);
		return NULL;
	}
	return head;
}

static int dump_volumes(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct dump *d = lks_dump_state(cb);
	struct lks_volume *v;

	while (!d->volumes_done && (v = d->one ? lks_volume_get(d->next_vid) : lks_volume_next(d->next_vid))) {
		void *head = begin(skb, cb, LKS_CMD_VOLUME);
		u32 vid = v->vid;
		int err = head ? put_volume(skb, v) : -EMSGSIZE;

		lks_volume_put(v);
		if (err) {
			if (head)
				genlmsg_cancel(skb, head);
			return err;
		}
		genlmsg_end(skb, head);
		d->next_vid = vid + 1;
		if (d->one || !d->next_vid)
			break;
	}
	d->volumes_done = true;
	return 0;
}

static int dump_peers(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct dump *d = lks_dump_state(cb);

	for (; d->next_host <= LKS_MAX_HOSTS; d->next_host++) {
		struct lks_host_info info;
		void *head;

		lks_host_info(d->next_host, &info);
		if (!info.set)
			continue;
		head = begin(skb, cb, LKS_CMD_PEER);
		if (!head)
			return -EMSGSIZE;
		if (put_peer(skb, d->next_host)) {
			genlmsg_cancel(skb, head);
			return -EMSGSIZE;
		}
		genlmsg_end(skb, head);
	}
	return 0;
}

static int get(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct nlattr *vid = lks_dump_u32(cb, LKS_A_VID);
	struct dump *d = lks_dump_state(cb);
	int err;

	BUILD_BUG_ON(sizeof(*d) > LKS_DUMP_STATE_BYTES);
	if (!d->started) {
		d->started = true;
		d->seq = lks_event_last();
		d->next_host = 1;
		d->one = vid;
		if (d->one)
			d->next_vid = nla_get_u32(vid);
	}
	err = dump_volumes(skb, cb);
	if (!err)
		err = dump_peers(skb, cb);
	if (err && !skb->len)
		return err;
	return skb->len;
}

#define COMMAND(command) { .cmd = LKS_CMD_##command, .flags = GENL_ADMIN_PERM, LKS_COMMAND_POLICY(policy) .doit = doit }

static const struct genl_small_ops ops[] = {
	COMMAND(HOST_SET), COMMAND(TUNE), COMMAND(PEER_SET), COMMAND(PEER_DEL), COMMAND(LANE_ADD),
	COMMAND(VOLUME_ADD), COMMAND(VOLUME_DEL), COMMAND(REPLICA_ATTACH), COMMAND(REPLICA_DETACH), COMMAND(CONFIG_SET),
	COMMAND(OPEN_REFUSE), COMMAND(DEVICE_ADD), COMMAND(DEVICE_DEL), COMMAND(HANDOVER), COMMAND(QUIESCE), COMMAND(RESUME),
	COMMAND(META_MOVE), COMMAND(META_MOVED), COMMAND(RESIZE), COMMAND(VERIFY), COMMAND(VOLUME_TUNE), COMMAND(ABORT),
	COMMAND(TRAIL_BEGIN), COMMAND(TRAIL), COMMAND(TRAIL_END),
	{ .cmd = LKS_CMD_GET, .flags = GENL_ADMIN_PERM, LKS_COMMAND_POLICY(policy) .dumpit = get },
};

static const struct genl_multicast_group groups[] = {
	{ .name = LKS_GENL_EVENTS, LKS_MCAST_FLAGS },
};

struct genl_family lks_netlink_family = {
	.name = LKS_GENL_NAME,
	.version = LKS_GENL_VERSION,
	.maxattr = LKS_A_MAX,
	LKS_FAMILY_POLICY(policy)
	.small_ops = ops,
	.n_small_ops = ARRAY_SIZE(ops),
	.mcgrps = groups,
	.n_mcgrps = ARRAY_SIZE(groups),
	.parallel_ops = true,
	.module = THIS_MODULE,
};

int lks_netlink_init(void)
{
	return genl_register_family(&lks_netlink_family);
}

void lks_netlink_exit(void)
{
	genl_unregister_family(&lks_netlink_family);
}
