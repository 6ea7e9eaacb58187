// SPDX-License-Identifier: GPL-2.0-or-later
/* Events to the daemon, in one numbered sequence. See event.h. */
#include <linux/mutex.h>
#include "compat/net.h"
#include "event.h"
#include "netlink.h"

static DEFINE_MUTEX(lks_event_lock);
static u64 last_seq;

u64 lks_event_last(void)
{
	u64 seq;

	mutex_lock(&lks_event_lock);
	seq = last_seq;
	mutex_unlock(&lks_event_lock);
	return seq;
}

/* Takes a number and starts a message. NULL: no memory, the number is lost. Ends in finish(). */
static struct sk_buff *start(u8 cmd, size_t payload, void **head)
{
	struct sk_buff *skb;

	mutex_lock(&lks_event_lock);
	last_seq++;
	skb = genlmsg_new(payload + nla_total_size_64bit(sizeof(u64)), GFP_NOIO);
	if (!skb)
		return NULL;
	*head = genlmsg_put(skb, 0, 0, &lks_netlink_family, 0, cmd);
	if (*head && !nla_put_u64_64bit(skb, LKS_A_SEQ, last_seq, LKS_A_PAD))
		return skb;
	nlmsg_free(skb);
	return NULL;
}

void lks_event_lost(void)
{
	mutex_lock(&lks_event_lock);
	last_seq++;
	mutex_unlock(&lks_event_lock);
	pr_warn_ratelimited("lockstep: more events than could be kept; the daemon will ask for the state\n");
}

static void finish(struct sk_buff *skb, void *head, int err)
{
	if (!skb || err) {
		pr_warn_ratelimited("lockstep: event %llu could not be sent\n", last_seq);
		nlmsg_free(skb);
	} else {
		genlmsg_end(skb, head);
		/* -ESRCH: nobody listens; -ENOBUFS: a listener was too slow, and knows */
		genlmsg_multicast(&lks_netlink_family, skb, 0, 0, GFP_NOIO);
	}
	mutex_unlock(&lks_event_lock);
}

void lks_event_propose(u32 vid, const struct lks_record *record)
{
	void *head;
	struct sk_buff *skb = start(LKS_CMD_EV_PROPOSE, nla_total_size(sizeof(vid)) + nla_total_size(sizeof(*record)), &head);
	int err = -ENOMEM;

	if (skb) {
		err = nla_put_u32(skb, LKS_A_VID, vid);
		err = err ?: nla_put(skb, LKS_A_RECORD, sizeof(*record), record);
	}
	finish(skb, head, err);
}

void lks_event_open(u32 vid)
{
	void *head;
	struct sk_buff *skb = start(LKS_CMD_EV_OPEN, nla_total_size(sizeof(vid)) + nla_total_size(sizeof(u8)), &head);
	int err = -ENOMEM;

	if (skb) {
		err = nla_put_u32(skb, LKS_A_VID, vid);
		err = err ?: nla_put_u8(skb, LKS_A_MODE, LKS_OPEN_WRITE);
	}
	finish(skb, head, err);
}

void lks_event_close(u32 vid, u64 session)
{
	void *head;
	struct sk_buff *skb = start(LKS_CMD_EV_CLOSE, nla_total_size(sizeof(vid)) + nla_total_size_64bit(sizeof(u64)), &head);
	int err = -ENOMEM;

	if (skb) {
		err = nla_put_u32(skb, LKS_A_VID, vid);
		err = err ?: nla_put_u64_64bit(skb, LKS_A_SESSION, session, LKS_A_PAD);
	}
	finish(skb, head, err);
}

void lks_event_link_down(u8 host, u64 link, const char *reason)
{
	void *head;
	size_t bytes = nla_total_size(sizeof(host)) + nla_total_size_64bit(sizeof(link)) + nla_total_size(strlen(reason) + 1);
	struct sk_buff *skb = start(LKS_CMD_EV_LINK_DOWN, bytes, &head);
	int err = -ENOMEM;

	if (skb) {
		err = nla_put_u8(skb, LKS_A_HOST, host);
		err = err ?: nla_put_u64_64bit(skb, LKS_A_LINK, link, LKS_A_PAD);
		err = err ?: nla_put_string(skb, LKS_A_REASON, reason);
	}
	finish(skb, head, err);
}

void lks_event_silent(u8 host)
{
	void *head;
	struct sk_buff *skb = start(LKS_CMD_EV_SILENT, nla_total_size(sizeof(host)), &head);

	finish(skb, head, skb ? nla_put_u8(skb, LKS_A_HOST, host) : -ENOMEM);
}

static const char *op_name(u8 op)
{
	switch (op) {
	case LKS_IO_READ:
		return "read";
	case LKS_IO_FLUSH:
		return "flush";
	case LKS_IO_META:
		return "metadata";
	default:
		return "write";
	}
}

void lks_event_disk_error(u32 vid, u8 op, s32 error)
{
	void *head;
	size_t bytes = nla_total_size(sizeof(vid)) + nla_total_size(sizeof("metadata")) + nla_total_size(sizeof(error));
	struct sk_buff *skb = start(LKS_CMD_EV_DISK_ERROR, bytes, &head);
	int err = -ENOMEM;

	if (skb) {
		err = nla_put_u32(skb, LKS_A_VID, vid);
		err = err ?: nla_put_string(skb, LKS_A_OP, op_name(op));
		err = err ?: nla_put_s32(skb, LKS_A_ERROR, error);
	}
	finish(skb, head, err);
}

static int put_u64(struct sk_buff *skb, int attr, u64 value)
{
	return nla_put_u64_64bit(skb, attr, value, LKS_A_PAD);
}

void lks_event_hold(u8 cmd, u32 vid, u64 hold)
{
	void *head;
	struct sk_buff *skb = start(cmd, nla_total_size(sizeof(vid)) + nla_total_size_64bit(sizeof(hold)), &head);
	int err = -ENOMEM;

	if (skb) {
		err = nla_put_u32(skb, LKS_A_VID, vid);
		err = err ?: put_u64(skb, LKS_A_HOLD, hold);
	}
	finish(skb, head, err);
}

void lks_event_meta_moved(u32 vid, u64 offset, bool done)
{
	void *head;
	size_t bytes = nla_total_size(sizeof(vid)) + nla_total_size_64bit(sizeof(offset)) + nla_total_size(0);
	struct sk_buff *skb = start(LKS_CMD_EV_META_MOVED, bytes, &head);
	int err = -ENOMEM;

	if (skb) {
		err = nla_put_u32(skb, LKS_A_VID, vid);
		err = err ?: put_u64(skb, LKS_A_OFFSET, offset);
		if (!err && done)
			err = nla_put_flag(skb, LKS_A_DONE);
	}
	finish(skb, head, err);
}

void lks_event_mismatch(u32 vid, u8 host, u64 at, u64 length, bool repaired)
{
	void *head;
	size_t bytes = nla_total_size(sizeof(vid)) + nla_total_size(sizeof(host)) + 2 * nla_total_size_64bit(sizeof(at)) +
		       nla_total_size(0);
	struct sk_buff *skb = start(LKS_CMD_EV_MISMATCH, bytes, &head);
	int err = -ENOMEM;

	if (skb) {
		err = nla_put_u32(skb, LKS_A_VID, vid);
		err = err ?: nla_put_u8(skb, LKS_A_HOST, host);
		err = err ?: put_u64(skb, LKS_A_AT, at);
		err = err ?: put_u64(skb, LKS_A_LENGTH, length);
		if (!err && repaired)
			err = nla_put_flag(skb, LKS_A_REPAIR);
	}
	finish(skb, head, err);
}

void lks_event_verified(u32 vid)
{
	void *head;
	struct sk_buff *skb = start(LKS_CMD_EV_VERIFIED, nla_total_size(sizeof(vid)), &head);

	finish(skb, head, skb ? nla_put_u32(skb, LKS_A_VID, vid) : -ENOMEM);
}

void lks_event_state(u32 vid)
{
	void *head;
	struct sk_buff *skb = start(LKS_CMD_EV_STATE, nla_total_size(sizeof(vid)), &head);

	finish(skb, head, skb ? nla_put_u32(skb, LKS_A_VID, vid) : -ENOMEM);
}
