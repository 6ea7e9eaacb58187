/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The block device of a volume: its requests (device.c), its opening (open.c), its disk (disk.c). */
#ifndef LKS_DEVICE_H
#define LKS_DEVICE_H

#include <linux/sched.h>
#include "volume.h"

#define LKS_EXTENT_SECTORS (LKS_EXTENT_BYTES >> 9)
#define LKS_DATA_SECTORS (LKS_REQ_MAX_BYTES >> 9)

/* A bio on its way through the core. */
struct lks_bio {
	struct lks_req req;
	struct list_head link;		/* in v->requests, then in v->done */
	struct lks_volume *v;
	struct bio *bio;
	unsigned long start;		/* of the accounting */
	u64 start_ns;
	long room;			/* bytes of the bounded memory that it has taken */
	bool accounted;
	bool preflush;			/* a flush goes first, then the same again without */
	int err;
};

struct lks_opener {
	struct list_head link;		/* in v->opens */
	u64 since_ms;
	pid_t pid;			/* of the process that opened it; it may have handed it on */
	bool writes;
	char command[TASK_COMM_LEN];
};

/* ---- requests ---- */

void lks_device_submit(struct bio *bio);
/* Under the volume's lock: the core is done with r. */
void lks_device_ended(struct lks_bio *r, int err);
/* r has ended with r->err; no lock is held. Not for one that goes on. */
void lks_device_done(struct lks_bio *r);
/* Under the lock of r->v, with no unlock but lks_volume_unlock() to follow. */
void lks_device_start(struct lks_bio *r);
/* It was the flush before a write, which follows. Any context. */
bool lks_device_goes_on(const struct lks_bio *r);
/* Starts the write; as lks_device_start(). r is on a list, and on another one afterwards. */
void lks_device_go_on(struct lks_bio *r);

/* ---- opening ---- */

/* disk: whose open_mutex is held, and let go while the open waits; NULL: none is */
int lks_open(struct lks_volume *v, struct gendisk *disk, bool writes);
enum lks_close { LKS_CLOSE_READER, LKS_CLOSE_WRITER, LKS_CLOSE_ANY };
void lks_close(struct lks_volume *v, struct gendisk *disk, enum lks_close who);
/* OPEN_REFUSE and ABORT: whoever waits in open() gets err < 0. Takes the lock. */
void lks_open_refuse(struct lks_volume *v, int err);
/* Of v->wake_work. */
void lks_open_wake_work(struct work_struct *work);

/* ---- the disk: under v->admin ---- */

int lks_disk_add(struct lks_volume *v, struct netlink_ext_ack *ack);
int lks_disk_del(struct lks_volume *v, struct netlink_ext_ack *ack);
/* v->size has changed. */
void lks_disk_resized(struct lks_volume *v);

int lks_device_init(void);
void lks_device_exit(void);
int lks_disk_init(void);
void lks_disk_exit(void);

#endif
