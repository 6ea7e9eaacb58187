// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The generic netlink family: commands of the daemon, and the dump. uapi/lockstep.h is the contract.
 *
 * Commands run in parallel: one that waits for a disk must hold up neither others nor other families. Each serialises
 * itself with what it touches: lks_volume.admin, lks_host.admin, or host_lock here.
 */
#include <linux/ctype.h>
#include <linux/module.h>
#include <net/genetlink.h>
#include "backing.h"
#include "device.h"
#include "event.h"
#include "netlink.h"
#include "host.h"
#include "volume.h"

#define PATH_BYTES_MAX 1024	/* so that a VOLUME message fits into one page with the rest */
#define SIZE_BYTES_MAX (64ull << 40)
#define LEASE_MS_MIN 1000
#define LEASE_MS_MAX 60000

static DEFINE_MUTEX(host_lock);		/* lks_self, lks_lease_ms */

static struct netlink_range_validation block_sizes = { .min = LKS_BLOCK_MIN, .max = LKS_BLOCK_MAX };
static struct netlink_range_validation leases = { .min = LEASE_MS_MIN, .max = LEASE_MS_MAX };
static struct netlink_range_validation minors = { .max = LKS_MAX_MINORS - 1 };

static const struct nla_policy policy[LKS_A_MAX + 1] = {
	[LKS_A_HOST] = NLA_POLICY_RANGE(NLA_U8, 1, LKS_MAX_HOSTS),
	[LKS_A_LANE] = NLA_POLICY_MAX(NLA_U8, LKS_MAX_LANES - 1),
	[LKS_A_LANES] = NLA_POLICY_RANGE(NLA_U8, 1, LKS_MAX_LANES),
	[LKS_A_LINK] = NLA_POLICY_MIN(NLA_U64, 1),
	[LKS_A_FD] = { .type = NLA_U32 },
	[LKS_A_VID] = NLA_POLICY_MIN(NLA_U32, 1),
	[LKS_A_UUID] = NLA_POLICY_EXACT_LEN(16),
	[LKS_A_NAME] = { .type = NLA_NUL_STRING, .len = LKS_NAME_MAX },
	[LKS_A_MINOR] = NLA_POLICY_FULL_RANGE(NLA_U32, &minors),
	[LKS_A_SIZE] = NLA_POLICY_MIN(NLA_U64, 1),
	[LKS_A_BLOCK_SIZE] = NLA_POLICY_FULL_RANGE(NLA_U32, &block_sizes),
	[LKS_A_CLASS] = NLA_POLICY_MAX(NLA_U8, LKS_SHARED),
	[LKS_A_PATH] = { .type = NLA_NUL_STRING, .len = PATH_BYTES_MAX },
	[LKS_A_OFFSET] = { .type = NLA_U64 },
	[LKS_A_RECORD] = NLA_POLICY_EXACT_LEN(sizeof(struct lks_record)),
	[LKS_A_ADMIT] = { .type = NLA_FLAG },
	[LKS_A_ERROR] = { .type = NLA_S32 },
	[LKS_A_LEASE_MS] = NLA_POLICY_FULL_RANGE(NLA_U32, &leases),
	[LKS_A_THIN] = { .type = NLA_FLAG },
};

static bool missing(struct genl_info *info, int attr)
{
	return GENL_REQ_ATTR_CHECK(info, attr);
}

/* ---- this host and its peers ---- */

static int do_host_set(struct sk_buff *skb, struct genl_info *info)
{
	int err = 0;
	u8 host;

	if (missing(info, LKS_A_HOST))
		return -EINVAL;
	host = nla_get_u8(info->attrs[LKS_A_HOST]);
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

static int do_tune(struct sk_buff *skb, struct genl_info *info)
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

static int do_peer_set(struct sk_buff *skb, struct genl_info *info)
{
	if (no_host(info) || missing(info, LKS_A_HOST))
		return -EINVAL;
	return lks_host_set(nla_get_u8(info->attrs[LKS_A_HOST]), info->extack);
}

static int do_peer_del(struct sk_buff *skb, struct genl_info *info)
{
	if (missing(info, LKS_A_HOST))
		return -EINVAL;
	return lks_host_del(nla_get_u8(info->attrs[LKS_A_HOST]), info->extack);
}

static int do_lane_add(struct sk_buff *skb, struct genl_info *info)
{
	u8 lane, nlanes;

	if (no_host(info) || missing(info, LKS_A_HOST) || missing(info, LKS_A_LANE) || missing(info, LKS_A_LANES) ||
	    missing(info, LKS_A_LINK) || missing(info, LKS_A_FD))
		return -EINVAL;
	lane = nla_get_u8(info->attrs[LKS_A_LANE]);
	nlanes = nla_get_u8(info->attrs[LKS_A_LANES]);
	if (lane >= nlanes) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[LKS_A_LANE], "LANE must be less than LANES");
		return -EINVAL;
	}
	return lks_host_add_lane(nla_get_u8(info->attrs[LKS_A_HOST]), lane, nlanes,
				 nla_get_u64(info->attrs[LKS_A_LINK]), nla_get_u32(info->attrs[LKS_A_FD]), info->extack);
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

static int do_volume_add(struct sk_buff *skb, struct genl_info *info)
{
	struct nlattr **a = info->attrs;
	struct lks_volume_params p = { };

	if (no_host(info) || missing(info, LKS_A_VID) || missing(info, LKS_A_UUID) || missing(info, LKS_A_NAME) ||
	    missing(info, LKS_A_MINOR) || missing(info, LKS_A_SIZE) || missing(info, LKS_A_BLOCK_SIZE) ||
	    missing(info, LKS_A_CLASS))
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
	if (!name_ok(p.name)) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[LKS_A_NAME],
				    "a name has letters, digits, '.', '_' and '-', and begins with a letter or digit");
		return -EINVAL;
	}
	if (p.core.size % 4096 || p.core.size > SIZE_BYTES_MAX) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[LKS_A_SIZE], "the size must be a multiple of 4096, at most 64 TiB");
		return -EINVAL;
	}
	if (!is_power_of_2(p.core.block_size)) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[LKS_A_BLOCK_SIZE], "the block size must be a power of two");
		return -EINVAL;
	}
	return lks_volume_add(&p, info->extack);
}

static int do_volume_del(struct sk_buff *skb, struct genl_info *info)
{
	if (missing(info, LKS_A_VID))
		return -EINVAL;
	return lks_volume_del(nla_get_u32(info->attrs[LKS_A_VID]), info->extack);
}

/* The volume of a command. ERR_PTR if there is none. */
static struct lks_volume *volume_of(struct genl_info *info)
{
	struct lks_volume *v;

	if (missing(info, LKS_A_VID))
		return ERR_PTR(-EINVAL);
	v = lks_volume_get(nla_get_u32(info->attrs[LKS_A_VID]));
	if (v)
		return v;
	NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[LKS_A_VID], "no such volume on this host");
	return ERR_PTR(-ENOENT);
}

/* Likewise, with its admin lock held. Ends in volume_leave(). */
static struct lks_volume *volume_enter(struct genl_info *info)
{
	struct lks_volume *v = volume_of(info);
	int err;

	if (IS_ERR(v))
		return v;
	err = mutex_lock_killable(&v->admin);
	if (!err && v->dead) {
		mutex_unlock(&v->admin);
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[LKS_A_VID], "the volume has just been deleted");
		err = -ENOENT;
	}
	if (!err)
		return v;
	lks_volume_put(v);
	return ERR_PTR(err);
}

static void volume_leave(struct lks_volume *v)
{
	mutex_unlock(&v->admin);
	lks_volume_put(v);
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

static int do_replica_attach(struct sk_buff *skb, struct genl_info *info)
{
	struct nlattr **a = info->attrs;
	struct lks_volume *v;
	int err;

	if (missing(info, LKS_A_PATH) || missing(info, LKS_A_OFFSET))
		return -EINVAL;
	v = volume_enter(info);
	if (IS_ERR(v))
		return PTR_ERR(v);
	err = lks_volume_attach(v, nla_data(a[LKS_A_PATH]), nla_get_u64(a[LKS_A_OFFSET]), a[LKS_A_THIN], info->extack);
	if (!err)
		err = answer_attach(v, info);
	volume_leave(v);
	return err;
}

static int do_replica_detach(struct sk_buff *skb, struct genl_info *info)
{
	struct lks_volume *v = volume_enter(info);
	int err;

	if (IS_ERR(v))
		return PTR_ERR(v);
	err = lks_volume_detach(v, info->extack);
	volume_leave(v);
	return err;
}

static int do_config_set(struct sk_buff *skb, struct genl_info *info)
{
	const struct lks_record *r;
	struct lks_volume *v;
	int err = -EINVAL;

	if (missing(info, LKS_A_RECORD))
		return err;
	v = volume_of(info);
	if (IS_ERR(v))
		return PTR_ERR(v);
	/* an attribute's payload has an alignment of 4 only */
	r = kmemdup(nla_data(info->attrs[LKS_A_RECORD]), sizeof(*r), GFP_KERNEL);
	if (!r)
		err = -ENOMEM;
	else if (r->vid != v->vid || lks_record_check(r))
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[LKS_A_RECORD], "the record is inconsistent, or of another volume");
	else
		err = lks_volume_config(v, r, info->attrs[LKS_A_ADMIT], info->extack);
	kfree(r);
	lks_volume_put(v);
	return err;
}

static int do_open_refuse(struct sk_buff *skb, struct genl_info *info)
{
	struct lks_volume *v;
	s32 error;

	if (missing(info, LKS_A_ERROR))
		return -EINVAL;
	error = nla_get_s32(info->attrs[LKS_A_ERROR]);
	if (error >= 0 || error < -133) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[LKS_A_ERROR], "ERROR must be a negative errno");
		return -EINVAL;
	}
	v = volume_of(info);
	if (IS_ERR(v))
		return PTR_ERR(v);
	lks_device_refuse_open(v, error);
	lks_volume_put(v);
	return 0;
}

static int do_device_add(struct sk_buff *skb, struct genl_info *info)
{
	struct lks_volume *v = volume_enter(info);
	int err;

	if (IS_ERR(v))
		return PTR_ERR(v);
	err = lks_device_add(v, info->extack);
	volume_leave(v);
	return err;
}

static int do_device_del(struct sk_buff *skb, struct genl_info *info)
{
	struct lks_volume *v = volume_enter(info);
	int err;

	if (IS_ERR(v))
		return PTR_ERR(v);
	err = lks_device_del(v, info->extack);
	volume_leave(v);
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
	return s->npeers ? put_peers(skb, s) : 0;
}

/* v->lock is held. suspect: whether it is now; a resync has made good what was found at attach */
static int put_replica(struct sk_buff *skb, struct lks_volume *v, bool suspect)
{
	struct lks_backing *b = v->backing;

	if (!b)
		return 0;
	if (nla_put_flag(skb, LKS_A_HAS_REPLICA) || nla_put_string(skb, LKS_A_PATH, b->path) ||
	    put_u64(skb, LKS_A_OFFSET, b->offset) || put_flag(skb, LKS_A_THIN, b->thin) ||
	    nla_put_u8(skb, LKS_A_SUSPECT, suspect) || put_u64(skb, LKS_A_DISK_VERSION, v->disk_version) ||
	    put_u64(skb, LKS_A_DISK_TERM, v->disk_term))
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
	    put_u64(skb, LKS_A_SIZE, v->size) || nla_put_u32(skb, LKS_A_BLOCK_SIZE, v->block_size) ||
	    nla_put_u8(skb, LKS_A_CLASS, v->class))
		return -EMSGSIZE;

	/* not lks_volume_lock(): a dump does not wait for an attach, the core's part is left out then */
	mutex_lock(&v->lock);
	err = put_flag(skb, LKS_A_HAS_DEVICE, v->disk);
	err = err ?: nla_put_u32(skb, LKS_A_OPENERS, v->openers);
	err = err ?: nla_put_u32(skb, LKS_A_WRITERS, v->writers);
	err = err ?: nla_put_u32(skb, LKS_A_OPEN_WAITERS, v->open_waiters);
	err = err ?: put_u64(skb, LKS_A_SESSION_ENDED, v->session_ended);
	has_core = !v->attaching && !v->dead;
	if (has_core)
		lks_vol_status(v->core, v->now_ms, &s);
	err = err ?: put_replica(skb, v, has_core ? s.suspect : v->suspect);
	if (!err && has_core)
		err = put_status(skb, &s);
	mutex_unlock(&v->lock);
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
	struct dump *d = (struct dump *)cb->ctx;
	void *head = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, &lks_netlink_family, NLM_F_MULTI, cmd);

	if (head && put_u64(skb, LKS_A_SEQ, d->seq)) {
		genlmsg_cancel(skb, head);
		return NULL;
	}
	return head;
}

static int dump_volumes(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct dump *d = (struct dump *)cb->ctx;
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
	struct dump *d = (struct dump *)cb->ctx;

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
	struct nlattr **attrs = genl_dumpit_info(cb)->attrs;
	struct dump *d = (struct dump *)cb->ctx;
	int err;

	BUILD_BUG_ON(sizeof(*d) > sizeof(cb->ctx));
	if (!d->started) {
		d->started = true;
		d->seq = lks_event_last();
		d->next_host = 1;
		d->one = attrs && attrs[LKS_A_VID];
		if (d->one)
			d->next_vid = nla_get_u32(attrs[LKS_A_VID]);
	}
	err = dump_volumes(skb, cb);
	if (!err)
		err = dump_peers(skb, cb);
	if (err && !skb->len)
		return err;
	return skb->len;
}

#define COMMAND(command, function) { .cmd = LKS_CMD_##command, .flags = GENL_ADMIN_PERM, .doit = function }

static const struct genl_small_ops ops[] = {
	COMMAND(HOST_SET, do_host_set),
	COMMAND(PEER_SET, do_peer_set),
	COMMAND(PEER_DEL, do_peer_del),
	COMMAND(LANE_ADD, do_lane_add),
	COMMAND(VOLUME_ADD, do_volume_add),
	COMMAND(VOLUME_DEL, do_volume_del),
	COMMAND(REPLICA_ATTACH, do_replica_attach),
	COMMAND(REPLICA_DETACH, do_replica_detach),
	COMMAND(CONFIG_SET, do_config_set),
	COMMAND(OPEN_REFUSE, do_open_refuse),
	COMMAND(DEVICE_ADD, do_device_add),
	COMMAND(DEVICE_DEL, do_device_del),
	COMMAND(TUNE, do_tune),
	{ .cmd = LKS_CMD_GET, .flags = GENL_ADMIN_PERM, .dumpit = get },
};

static const struct genl_multicast_group groups[] = {
	{ .name = LKS_GENL_EVENTS, .flags = GENL_MCAST_CAP_NET_ADMIN },
};

struct genl_family lks_netlink_family = {
	.name = LKS_GENL_NAME,
	.version = LKS_GENL_VERSION,
	.maxattr = LKS_A_MAX,
	.policy = policy,
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
