/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The block device of a volume. */
#ifndef LKS_DEVICE_H
#define LKS_DEVICE_H

#include "volume.h"

/* A bio on its way through the core. */
struct lks_bio {
	struct lks_req req;
	struct list_head link;		/* in v->done */
	struct lks_volume *v;
	struct bio *bio;
	unsigned long start;		/* of the accounting */
	bool accounted;
	bool preflush;			/* a flush goes first, then the same again without */
	int err;
};

/* Under v->admin. */
int lks_device_add(struct lks_volume *v, struct netlink_ext_ack *ack);
int lks_device_del(struct lks_volume *v, struct netlink_ext_ack *ack);

/* r has ended with r->err; no lock is held. true: it is to be started again by lks_device_start(). */
bool lks_device_done(struct lks_bio *r);
/* Under the lock of r->v, with no unlock but lks_volume_unlock() to follow. */
void lks_device_start(struct lks_bio *r);

/* OPEN_REFUSE: err < 0 */
void lks_device_refuse_open(struct lks_volume *v, int err);

/* Of v->wake_work. */
void lks_device_wake_work(struct work_struct *work);

int lks_device_init(void);
void lks_device_exit(void);

#endif
