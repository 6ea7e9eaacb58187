// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The disk of a volume: /dev/lockstep/<volume>, lockstep<minor> in sysfs. How a disk is made depends on the kernel more than
 * anything else here: that part is in compat/disk.h.
 */
#include <linux/blkdev.h>
#include <linux/major.h>
#include <linux/module.h>
#include <linux/netlink.h>
#include "compat/disk.h"
#include "device.h"

static unsigned int major;
module_param(major, uint, 0444);
MODULE_PARM_DESC(major, "major number of the devices (0: any)");

static ssize_t name_show(struct device *dev, struct device_attribute *attr, char *to)
{
	struct lks_volume *v = dev_to_disk(dev)->private_data;

	return sysfs_emit(to, "%s\n", v->name);
}
static DEVICE_ATTR_RO(name);

static ssize_t vid_show(struct device *dev, struct device_attribute *attr, char *to)
{
	struct lks_volume *v = dev_to_disk(dev)->private_data;

	return sysfs_emit(to, "%u\n", v->vid);
}
static DEVICE_ATTR_RO(vid);

static struct attribute *attributes[] = { &dev_attr_name.attr, &dev_attr_vid.attr, NULL };
static const struct attribute_group attribute_group = { .name = "lockstep", .attrs = attributes };
static const struct attribute_group *attribute_groups[] = { &attribute_group, NULL };

int lks_disk_add(struct lks_volume *v, struct netlink_ext_ack *ack)
{
	struct gendisk *disk;
	int err;

	if (v->disk)
		return 0;
	disk = lks_disk_alloc();
	if (IS_ERR(disk))
		return PTR_ERR(disk);
	disk->major = major;
	disk->first_minor = v->minor;
	disk->minors = 1;
	disk->private_data = v;
	snprintf(disk->disk_name, sizeof(disk->disk_name), "lockstep%u", v->minor);
	set_capacity(disk, v->size >> SECTOR_SHIFT);
	lks_volume_hold(v);
	v->device_going = false;
	lks_volume_release(v);
	err = lks_disk_register(disk, attribute_groups);
	if (err) {
		NL_SET_ERR_MSG(ack, "the block layer refused the device");
		lks_disk_free(disk);
		return err;
	}
	lks_volume_hold(v);
	v->disk = disk;
	lks_volume_release(v);
	return 0;
}

int lks_disk_del(struct lks_volume *v, struct netlink_ext_ack *ack)
{
	struct gendisk *disk;
	bool busy;

	lks_volume_hold(v);
	disk = v->disk;
	busy = v->openers || v->open_waiters;
	if (!busy) {
		v->device_going = true;
		v->open_news++;
		v->disk = NULL;
	}
	lks_volume_release(v);
	if (busy) {
		NL_SET_ERR_MSG(ack, "the device is open on this host");
		return -EBUSY;
	}
	wake_up_all(&v->wait);
	if (!disk)
		return 0;
	del_gendisk(disk);
	lks_disk_free(disk);
	return 0;
}

void lks_disk_resized(struct lks_volume *v)
{
	if (v->disk)
		set_capacity_and_notify(v->disk, v->size >> SECTOR_SHIFT);
}

int lks_disk_init(void)
{
	int err = register_blkdev(major, "lockstep");

	if (err < 0) {
		pr_err("lockstep: major number %u is taken\n", major);
		return err;
	}
	if (!major)
		major = err;
	return 0;
}

void lks_disk_exit(void)
{
	unregister_blkdev(major, "lockstep");
}
