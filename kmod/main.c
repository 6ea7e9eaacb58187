// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Lockstep's kernel module: replicated block devices.
 *
 * What is where: netlink.c takes the daemon's commands and event.c tells it what happens; volume.c surrounds the core
 * (core/, which decides everything) with a lock and carries out its actions, memory.c has its memory; disk.c, open.c and device.c
 * are its block device, backing.c does its I/O, buf.c holds its data; host.c, lane.c, send.c, receive.c and early.c
 * carry its frames; notify.c takes what it tells; debugfs.c and trace.h show what is going on. compat/ is for older kernels.
 */
#include <linux/module.h>
#include <linux/workqueue.h>
#include "backing.h"
#include "buf.h"
#include "debugfs.h"
#include "device.h"
#include "netlink.h"
#include "host.h"
#include "volume.h"

struct workqueue_struct *lks_wq, *lks_disk_wq, *lks_slow_wq, *lks_link_wq, *lks_open_wq;
u8 lks_self;
u32 lks_lease_ms = LKS_LEASE_MS;

unsigned int lks_answer_ms = LKS_ANSWER_MS;
module_param_named(answer_ms, lks_answer_ms, uint, 0644);
MODULE_PARM_DESC(answer_ms,
		 "a replica that owes answers and gives none for so long is left out (ms, 0: never; volumes added afterwards)");

/*
 * A workqueue runs some hundred works at once. With as many volumes, those that wait for one disk or for the cluster must not keep the
 * others from their ticks, or links from ending; so each kind of wait has its own.
 */
static const struct {
	struct workqueue_struct **wq;
	const char *name;
	unsigned int flags;
} queues[] = {
	{ &lks_wq, "lockstep", WQ_HIGHPRI },
	{ &lks_disk_wq, "lockstep_disk", WQ_HIGHPRI },
	{ &lks_slow_wq, "lockstep_slow", WQ_UNBOUND },
	{ &lks_link_wq, "lockstep_link", WQ_UNBOUND },
	{ &lks_open_wq, "lockstep_open", WQ_UNBOUND },
};

static void destroy_queues(void)
{
	unsigned int i = ARRAY_SIZE(queues);

	while (i--)
		if (*queues[i].wq)
			destroy_workqueue(*queues[i].wq);
}

static int create_queues(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(queues); i++) {
		*queues[i].wq = alloc_workqueue("%s", queues[i].flags | WQ_MEM_RECLAIM, 0, queues[i].name);
		if (*queues[i].wq)
			continue;
		destroy_queues();
		return -ENOMEM;
	}
	return 0;
}

static int __init lks_init(void)
{
	int err;

	lks_host_init();
	err = create_queues();
	if (err)
		return err;
	err = lks_buf_init();
	if (err)
		goto err_queues;
	err = lks_backing_init();
	if (err)
		goto err_buf;
	err = lks_device_init();
	if (err)
		goto err_backing;
	err = lks_disk_init();
	if (err)
		goto err_device;
	lks_debugfs_init();
	err = lks_netlink_init();
	if (err)
		goto err_disk;
	return 0;

err_disk:
	lks_debugfs_exit();
	lks_disk_exit();
err_device:
	lks_device_exit();
err_backing:
	lks_backing_exit();
err_buf:
	lks_buf_exit();
err_queues:
	destroy_queues();
	return err;
}

/* There are no volumes: each holds a reference to the module. */
static void __exit lks_exit(void)
{
	lks_netlink_exit();
	lks_host_exit();
	destroy_queues();
	lks_volume_exit();
	lks_debugfs_exit();
	lks_disk_exit();
	lks_device_exit();
	lks_backing_exit();
	lks_buf_exit();
}

module_init(lks_init);
module_exit(lks_exit);
MODULE_DESCRIPTION("Lockstep: replicated block devices");
MODULE_LICENSE("GPL");
/*
 * Encrypted lanes: the kernel's TLS takes what cipher is there when a lane begins, and a processor's AES instructions are in
 * modules that it does not ask for by itself. A host that has no such processor or module goes on without.
 */
MODULE_SOFTDEP("pre: aesni_intel");
