// SPDX-License-Identifier: GPL-2.0-or-later
/* Peers and the state machine of the links to them. See host.h. */
#include <linux/netlink.h>
#include <linux/slab.h>
#include <net/tcp_states.h>
#include "compat/net.h"
#include "event.h"
#include "host.h"
#include "volume.h"

static struct lks_host peers[LKS_MAX_HOSTS + 1];

struct lks_host *lks_host_of(u8 host)
{
	return &peers[host];
}

u64 lks_host_up(u8 host)
{
	struct lks_host *peer = &peers[host];
	u64 number = 0;

	spin_lock_bh(&peer->lock);
	if (peer->link && peer->link->state == LKS_LINK_UP)
		number = peer->link->number;
	spin_unlock_bh(&peer->lock);
	return number;
}

void lks_host_info(u8 host, struct lks_host_info *info)
{
	struct lks_host *peer = &peers[host];

	memset(info, 0, sizeof(*info));
	spin_lock_bh(&peer->lock);
	info->set = peer->set;
	if (peer->link) {
		info->number = peer->link->number;
		info->nlanes = peer->link->nlanes;
		info->up = peer->link->state == LKS_LINK_UP;
	}
	spin_unlock_bh(&peer->lock);
}

void lks_host_break(u8 host, u64 number, const char *reason, bool silent)
{
	struct lks_host *peer = &peers[host];
	struct lks_link *link;

	spin_lock_bh(&peer->lock);
	link = peer->link;
	if (link && link->number == number && link->state != LKS_LINK_CLOSING) {
		link->state = LKS_LINK_CLOSING;
		link->reason = reason;
		link->silent = silent;
		queue_work(lks_link_wq, &link->close_work);
	}
	spin_unlock_bh(&peer->lock);
}

/* The end of a link, in the order that host.h promises. Waits for nobody but our own threads. */
static void close_link(struct work_struct *work)
{
	struct lks_link *link = container_of(work, struct lks_link, close_work);
	struct lks_host *peer = link->peer;
	unsigned int i;

	/* a LANE_ADD that saw the link alive finishes first, so that no lane comes behind our back */
	mutex_lock(&peer->admin);
	for (i = 0; i < link->nlanes; i++)
		lks_lane_shutdown(&link->lanes[i]);
	mutex_unlock(&peer->admin);
	for (i = 0; i < link->nlanes; i++)
		lks_lane_remove(&link->lanes[i]);
	lks_volume_sync_all_links();

	pr_info("lockstep: host %u: link %llu closed: %s\n", peer->host, link->number, link->reason);
	if (link->silent)
		lks_event_silent(peer->host);
	lks_event_link_down(peer->host, link->number, link->reason);

	spin_lock_bh(&peer->lock);
	peer->link = NULL;
	wake_up_all(&peer->gone);
	spin_unlock_bh(&peer->lock);
	kfree(link);
}

static bool no_link(struct lks_host *peer)
{
	bool none;

	spin_lock_bh(&peer->lock);
	none = !peer->link;
	spin_unlock_bh(&peer->lock);
	return none;
}

/* Closes whatever link there is and waits for its end. peer->admin is held, and let go meanwhile. */
static int end_link(struct lks_host *peer, const char *reason)
{
	int err = 0;

	while (!err && !no_link(peer)) {
		struct lks_host_info info;

		lks_host_info(peer->host, &info);
		lks_host_break(peer->host, info.number, reason, false);
		mutex_unlock(&peer->admin);
		err = wait_event_killable(peer->gone, no_link(peer));
		mutex_lock(&peer->admin);
	}
	return err;
}

int lks_host_set(u8 host, struct netlink_ext_ack *ack)
{
	struct lks_host *peer = &peers[host];

	if (host == lks_self) {
		NL_SET_ERR_MSG(ack, "this is the host itself, not a peer");
		return -EINVAL;
	}
	mutex_lock(&peer->admin);
	spin_lock_bh(&peer->lock);
	peer->set = true;
	spin_unlock_bh(&peer->lock);
	mutex_unlock(&peer->admin);
	return 0;
}

int lks_host_del(u8 host, struct netlink_ext_ack *ack)
{
	struct lks_host *peer = &peers[host];
	int err;

	mutex_lock(&peer->admin);
	spin_lock_bh(&peer->lock);
	peer->set = false;
	spin_unlock_bh(&peer->lock);
	err = end_link(peer, "the peer was removed");
	mutex_unlock(&peer->admin);
	return err;
}

static struct lks_link *create_link(struct lks_host *peer, u64 number, u8 nlanes)
{
	struct lks_link *link = kzalloc(sizeof(*link), GFP_KERNEL);
	unsigned int i;

	if (!link)
		return NULL;
	link->peer = peer;
	link->number = number;
	link->nlanes = nlanes;
	link->state = LKS_LINK_BUILDING;
	INIT_WORK(&link->close_work, close_link);
	for (i = 0; i < nlanes; i++) {
		struct lks_lane *lane = &link->lanes[i];

		lane->link = link;
		lane->index = i;
		INIT_LIST_HEAD(&lane->queue);
		init_waitqueue_head(&lane->wait);
	}
	spin_lock_bh(&peer->lock);
	peer->link = link;
	spin_unlock_bh(&peer->lock);
	peer->newest = number;
	return link;
}

/* The link to add a lane to. peer->admin is held. NULL: the lane is there already. */
static struct lks_link *link_for_lane(struct lks_host *peer, u8 lane, u8 nlanes, u64 number, struct netlink_ext_ack *ack)
{
	struct lks_link *link;
	bool closing;
	int err;

	if (!peer->set) {
		NL_SET_ERR_MSG(ack, "no such peer: PEER_SET comes first");
		return ERR_PTR(-ENOENT);
	}
	spin_lock_bh(&peer->lock);
	link = peer->link;
	closing = link && link->state == LKS_LINK_CLOSING;
	spin_unlock_bh(&peer->lock);
	if (link && link->number == number && !closing) {
		/* stays: closing it takes peer->admin */
		if (link->nlanes != nlanes) {
			NL_SET_ERR_MSG(ack, "the link has another number of lanes");
			return ERR_PTR(-EINVAL);
		}
		return link->lanes[lane].sock ? NULL : link;
	}
	if (number <= peer->newest) {
		NL_SET_ERR_MSG(ack, "there is, or was, a newer link to this peer");
		return ERR_PTR(-ESTALE);
	}
	err = end_link(peer, "a newer link has come");
	if (err)
		return ERR_PTR(err);
	if (!peer->set || number <= peer->newest) {
		NL_SET_ERR_MSG(ack, "overtaken by another command for this peer");
		return ERR_PTR(-ESTALE);
	}
	link = create_link(peer, number, nlanes);
	return link ? link : ERR_PTR(-ENOMEM);
}

static void go_up(struct lks_link *link)
{
	struct lks_host *peer = link->peer;
	unsigned int i;
	bool up;

	spin_lock_bh(&peer->lock);
	up = link->state == LKS_LINK_BUILDING;
	if (up)
		link->state = LKS_LINK_UP;
	spin_unlock_bh(&peer->lock);
	if (!up)
		return;
	pr_info("lockstep: host %u: link %llu up, %u lane(s)\n", peer->host, link->number, link->nlanes);
	for (i = 0; i < link->nlanes; i++)
		wake_up_all(&link->lanes[i].wait);
}

int lks_host_add_lane(u8 host, u8 lane, u8 nlanes, u64 number, int fd, struct netlink_ext_ack *ack)
{
	struct lks_host *peer = &peers[host];
	struct lks_link *link;
	struct socket *sock;
	bool all = false;
	int err;

	sock = sockfd_lookup(fd, &err);
	if (!sock) {
		NL_SET_ERR_MSG(ack, "the file descriptor is no socket");
		return err;
	}
	mutex_lock(&peer->admin);
	link = link_for_lane(peer, lane, nlanes, number, ack);
	err = PTR_ERR_OR_ZERO(link);
	if (err || !link)
		goto out;
	err = -EINVAL;
	if (sock->type != SOCK_STREAM || sock->sk->sk_state != TCP_ESTABLISHED) {
		NL_SET_ERR_MSG(ack, "the socket is no connected stream socket");
		goto out;
	}
	err = lks_lane_add(&link->lanes[lane], sock);
	if (err)
		goto out;
	sock = NULL;
	all = ++link->nready == link->nlanes;
	if (all)
		go_up(link);
out:
	mutex_unlock(&peer->admin);
	if (all)
		lks_volume_sync_all_links();
	if (sock)
		sockfd_put(sock);
	return err;
}

void lks_host_init(void)
{
	unsigned int i;

	for (i = 0; i <= LKS_MAX_HOSTS; i++) {
		struct lks_host *peer = &peers[i];

		peer->host = i;
		mutex_init(&peer->admin);
		spin_lock_init(&peer->lock);
		init_waitqueue_head(&peer->gone);
	}
}

void lks_host_exit(void)
{
	unsigned int i;

	for (i = 1; i <= LKS_MAX_HOSTS; i++) {
		struct lks_host *peer = &peers[i];

		mutex_lock(&peer->admin);
		while (end_link(peer, "the module is unloaded"))
			;
		mutex_unlock(&peer->admin);
	}
}
