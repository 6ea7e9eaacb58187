// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the core tells: it goes to the log, to whoever waits, and to the daemon.
 *
 * The core tells under its volume's lock; a worker sends. What says "look again" (STATE) or is repeated anyway (PROPOSE) is
 * kept once, the last one wins; the rest goes into a list. The list is bounded: a verify may find a whole volume
 * different. What does not fit leaves a hole in the events' numbers, which makes the daemon dump.
 */
#include <linux/sched.h>
#include <linux/slab.h>
#include "event.h"
#include "host.h"
#include "trail.h"
#include "volume.h"

#define NEWS_MAX 256

struct news {
	struct list_head link;
	struct lks_event_info info;	/* without the record */
};

/* queue_lock is held. Ranges next to each other become one. */
static bool joins(struct lks_volume *v, const struct lks_event_info *info)
{
	struct lks_event_info *last;

	if (info->event != LKS_EV_MISMATCH || list_empty(&v->news))
		return false;
	last = &list_last_entry(&v->news, struct news, link)->info;
	if (last->event != info->event || last->host != info->host || last->done != info->done ||
	    last->offset + last->length != info->offset)
		return false;
	last->length += info->length;
	return true;
}

static void add_news(struct lks_volume *v, const struct lks_event_info *info)
{
	struct news *n = kmalloc(sizeof(*n), GFP_NOIO | __GFP_NOWARN);

	if (n)
		n->info = *info;
	spin_lock_irq(&v->queue_lock);
	if (joins(v, info)) {
		;
	} else if (n && v->nnews < NEWS_MAX) {
		list_add_tail(&n->link, &v->news);
		v->nnews++;
		n = NULL;
	} else {
		v->news_lost = true;
	}
	spin_unlock_irq(&v->queue_lock);
	kfree(n);
}

static void say(struct lks_volume *v, const struct lks_event_info *info)
{
	switch (info->event) {
	case LKS_EV_FENCED:
		pr_warn("lockstep: volume %s: another host has taken it over; writes fail until it is closed\n", v->name);
		break;
	case LKS_EV_DISK_ERROR:
		pr_err("lockstep: volume %s: backing device failed (error %d), the replica has stopped\n", v->name, info->error);
		break;
	case LKS_EV_UNREADABLE:
		pr_err_ratelimited("lockstep: volume %s: %llu bytes at %llu of the only good copy cannot be read (error %d)\n",
				   v->name, info->length, info->offset, info->error);
		break;
	case LKS_EV_UNQUIESCED:
		pr_warn("lockstep: volume %s: quiesce %llu ended by itself\n", v->name, info->hold);
		break;
	case LKS_EV_MISMATCH:
		pr_warn_ratelimited("lockstep: volume %s: verify: %llu bytes at %llu differ on host %u\n", v->name, info->length,
				    info->offset, info->host);
		break;
	default:
		break;
	}
}

void lks_notify(struct lks_volume *v, const struct lks_event_info *info)
{
	say(v, info);
	switch (info->event) {
	case LKS_EV_OPENED:
		v->open_news++;
		wake_up_all(&v->wait);
		return;
	case LKS_EV_DETACHED:
		v->detached = true;
		wake_up_all(&v->wait);
		return;
	case LKS_EV_UNREADABLE:
		return;
	case LKS_EV_SILENT:
		lks_host_break(info->host, v->link[info->host], "the host does not answer", true);
		return;
	case LKS_EV_FENCED:
		v->fenced = v->writers > 0;
		if (v->fenced)
			lks_trail_lose(v, "another host has taken the volume over");
		v->open_news++;
		wake_up_all(&v->wait);
		fallthrough;
	case LKS_EV_STATE:
		spin_lock_irq(&v->queue_lock);
		v->state_news = true;
		spin_unlock_irq(&v->queue_lock);
		break;
	case LKS_EV_PROPOSE:
		spin_lock_irq(&v->queue_lock);
		v->proposal = *info->record;
		v->proposal_news = true;
		spin_unlock_irq(&v->queue_lock);
		break;
	case LKS_EV_DISK_ERROR:
	case LKS_EV_QUIESCED:
	case LKS_EV_UNQUIESCED:
	case LKS_EV_META_MOVED:
	case LKS_EV_MISMATCH:
	case LKS_EV_VERIFIED:
		add_news(v, info);
		break;
	}
	queue_work(lks_link_wq, &v->news_work);
}

static void send(struct lks_volume *v, const struct lks_event_info *info)
{
	switch (info->event) {
	case LKS_EV_DISK_ERROR:
		lks_event_disk_error(v->vid, info->op, info->error);
		break;
	case LKS_EV_QUIESCED:
		lks_event_hold(LKS_CMD_EV_QUIESCED, v->vid, info->hold);
		break;
	case LKS_EV_UNQUIESCED:
		lks_event_hold(LKS_CMD_EV_UNQUIESCED, v->vid, info->hold);
		break;
	case LKS_EV_META_MOVED:
		lks_event_meta_moved(v->vid, info->offset, info->done);
		break;
	case LKS_EV_MISMATCH:
		lks_event_mismatch(v->vid, info->host, info->offset, info->length, info->done);
		break;
	case LKS_EV_VERIFIED:
		lks_event_verified(v->vid);
		break;
	default:
		break;
	}
}

void lks_notify_work(struct work_struct *work)
{
	struct lks_volume *v = container_of(work, struct lks_volume, news_work);
	bool lost, state, propose;
	struct news *n, *next;
	LIST_HEAD(news);

	spin_lock_irq(&v->queue_lock);
	list_splice_init(&v->news, &news);
	v->nnews = 0;
	lost = v->news_lost;
	v->news_lost = false;
	state = v->state_news;
	v->state_news = false;
	propose = v->proposal_news;
	v->proposal_news = false;
	if (propose)
		v->proposing = v->proposal;
	spin_unlock_irq(&v->queue_lock);

	if (propose)
		lks_event_propose(v->vid, &v->proposing);
	list_for_each_entry_safe(n, next, &news, link) {
		list_del(&n->link);
		send(v, &n->info);
		kfree(n);
	}
	if (lost)
		lks_event_lost();
	if (state)
		lks_event_state(v->vid);
}

void lks_notify_purge(struct lks_volume *v)
{
	struct news *n, *next;

	list_for_each_entry_safe(n, next, &v->news, link)
		kfree(n);
}
