/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk of a volume as this kernel wants it: limits, operations, birth and end. For disk.c alone.
 *
 * What the limits say: any 512 bytes may be read or written, but 4 KiB are better; a request has at most LKS_DATA_SECTORS
 * and crosses no extent; discards and zeroing have at most an extent, and leave zeros; there is a volatile cache, and FUA.
 */
#ifndef LKS_COMPAT_DISK_H
#define LKS_COMPAT_DISK_H

#include <linux/module.h>
#include "block.h"
#include "device.h"

#define LKS_SECTOR_GOOD 4096

static char *lks_devnode(struct gendisk *disk, umode_t *mode)
{
	struct lks_volume *v = disk->private_data;

	return kasprintf(GFP_KERNEL, "lockstep/%s", v->name);
}

#ifdef LKS_HAVE_open_by_disk
static int lks_disk_open(struct gendisk *disk, blk_mode_t mode)
{
	return lks_open(disk->private_data, disk, mode & BLK_OPEN_WRITE);
}

static void lks_disk_release(struct gendisk *disk)
{
	lks_close(disk->private_data, disk, LKS_CLOSE_ANY);
}
#else
static int lks_disk_open(struct block_device *bdev, fmode_t mode)
{
	return lks_open(bdev->bd_disk->private_data, bdev->bd_disk, mode & FMODE_WRITE);
}

static void lks_disk_release(struct gendisk *disk, fmode_t mode)
{
	lks_close(disk->private_data, disk, mode & FMODE_WRITE ? LKS_CLOSE_WRITER : LKS_CLOSE_READER);
}
#endif

#ifdef LKS_HAVE_submit_bio_void
#define LKS_SUBMIT .submit_bio = lks_device_submit,
#elif defined(LKS_HAVE_submit_bio_cookie)
static blk_qc_t lks_disk_submit(struct bio *bio)
{
	lks_device_submit(bio);
	return BLK_QC_T_NONE;
}
#define LKS_SUBMIT .submit_bio = lks_disk_submit,
#else
static blk_qc_t lks_disk_make_request(struct request_queue *q, struct bio *bio)
{
	lks_device_submit(bio);
	return BLK_QC_T_NONE;
}
#define LKS_SUBMIT
#endif

static const struct block_device_operations lks_disk_operations = {
	.owner = THIS_MODULE,
	LKS_SUBMIT
	.open = lks_disk_open,
	.release = lks_disk_release,
#ifdef LKS_HAVE_fops_devnode
	.devnode = lks_devnode,
#endif
};

#ifdef LKS_HAVE_disk_alloc_limits
static struct gendisk *lks_disk_alloc(void)
{
	struct queue_limits limits = {
		.features = BLK_FEAT_WRITE_CACHE | BLK_FEAT_FUA | BLK_FEAT_NOWAIT | BLK_FEAT_IO_STAT,
		.logical_block_size = LKS_SECTOR,
		.physical_block_size = LKS_SECTOR_GOOD,
		.io_min = LKS_SECTOR_GOOD,
		.max_hw_sectors = LKS_DATA_SECTORS,
		.chunk_sectors = LKS_EXTENT_SECTORS,
		.max_hw_discard_sectors = LKS_EXTENT_SECTORS,
		.max_write_zeroes_sectors = LKS_EXTENT_SECTORS,
		.discard_granularity = LKS_SECTOR_GOOD,
	};

	return blk_alloc_disk(&limits, NUMA_NO_NODE);
}
#else
static void lks_disk_set_limits(struct request_queue *q)
{
	blk_queue_logical_block_size(q, LKS_SECTOR);
	blk_queue_physical_block_size(q, LKS_SECTOR_GOOD);
	blk_queue_io_min(q, LKS_SECTOR_GOOD);
	blk_queue_max_hw_sectors(q, LKS_DATA_SECTORS);
	blk_queue_chunk_sectors(q, LKS_EXTENT_SECTORS);
	blk_queue_max_discard_sectors(q, LKS_EXTENT_SECTORS);
	blk_queue_max_write_zeroes_sectors(q, LKS_EXTENT_SECTORS);
	q->limits.discard_granularity = LKS_SECTOR_GOOD;
	blk_queue_write_cache(q, true, true);
	blk_queue_flag_set(QUEUE_FLAG_NONROT, q);
	blk_queue_flag_clear(QUEUE_FLAG_ADD_RANDOM, q);
#ifdef QUEUE_FLAG_DISCARD
	blk_queue_flag_set(QUEUE_FLAG_DISCARD, q);
#endif
#ifdef QUEUE_FLAG_NOWAIT
	blk_queue_flag_set(QUEUE_FLAG_NOWAIT, q);
#endif
}

static struct gendisk *lks_disk_alloc(void)
{
#if defined(LKS_HAVE_disk_alloc_null)
	struct gendisk *disk = blk_alloc_disk(NULL, NUMA_NO_NODE);

	if (IS_ERR(disk))
		return disk;
#elif defined(LKS_HAVE_disk_alloc)
	struct gendisk *disk = blk_alloc_disk(NUMA_NO_NODE);

	if (!disk)
		return ERR_PTR(-ENOMEM);
#else
	struct gendisk *disk = alloc_disk(1);

	if (!disk)
		return ERR_PTR(-ENOMEM);
#ifdef LKS_HAVE_queue_make_request
	disk->queue = blk_alloc_queue(GFP_KERNEL);
	if (disk->queue)
		blk_queue_make_request(disk->queue, lks_disk_make_request);
#else
	disk->queue = blk_alloc_queue(NUMA_NO_NODE);
#endif
	if (!disk->queue) {
		put_disk(disk);
		return ERR_PTR(-ENOMEM);
	}
#endif
	lks_disk_set_limits(disk->queue);
	return disk;
}
#endif

/* The disk appears. On an error it is still to be freed. */
static int lks_disk_register(struct gendisk *disk, const struct attribute_group **groups)
{
	disk->fops = &lks_disk_operations;
#ifndef LKS_HAVE_fops_devnode
	disk->devnode = lks_devnode;
#endif
#ifdef GENHD_FL_NO_PART_SCAN
	disk->flags |= GENHD_FL_NO_PART_SCAN;
#else
	disk->flags |= GENHD_FL_NO_PART;
#endif
#if defined(LKS_HAVE_disk_add_int)
	return device_add_disk(NULL, disk, groups);
#elif defined(LKS_HAVE_disk_add_groups)
	device_add_disk(NULL, disk, groups);
	return 0;
#else
	disk_to_dev(disk)->groups = groups;	/* there with the disk: udev does not have to wait for them */
	device_add_disk(NULL, disk);
	return 0;
#endif
}

static void lks_disk_free(struct gendisk *disk)
{
#if defined(LKS_HAVE_cleanup_disk)
	blk_cleanup_disk(disk);
#elif defined(LKS_HAVE_disk_alloc)
	put_disk(disk);
#elif defined(LKS_HAVE_disk_alloc_limits) || defined(LKS_HAVE_disk_alloc_null)
	put_disk(disk);
#else
	blk_cleanup_queue(disk->queue);
	put_disk(disk);
#endif
}

#endif
