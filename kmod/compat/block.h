/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bios and open block devices, for kernels older than the newest; see compat.h. */
#ifndef LKS_COMPAT_BLOCK_H
#define LKS_COMPAT_BLOCK_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/slab.h>

/* ---- bios ---- */

static inline struct gendisk *lks_bio_disk(const struct bio *bio)
{
#ifdef LKS_HAVE_bio_bdev
	return bio->bi_bdev->bd_disk;
#else
	return bio->bi_disk;
#endif
}

#ifndef LKS_HAVE_bio_alloc_opf
static inline struct bio *lks_bio_alloc_bioset(struct block_device *bdev, unsigned short nvecs, blk_opf_t opf, gfp_t gfp,
					       struct bio_set *bios)
{
	struct bio *bio = bio_alloc_bioset(gfp, nvecs, bios);

	if (bio) {
		bio_set_dev(bio, bdev);
		bio->bi_opf = opf;
	}
	return bio;
}
#define bio_alloc_bioset lks_bio_alloc_bioset
#endif

/* Does the device say when it would have to wait? From 5.10 on, a stacked one does if all below it do. */
#ifndef LKS_HAVE_bdev_nowait
static inline bool bdev_nowait(struct block_device *bdev)
{
#ifdef blk_queue_nowait
	return blk_queue_nowait(bdev_get_queue(bdev));
#else
	return false;
#endif
}
#endif

#ifndef LKS_HAVE_submit_noacct
#define submit_bio_noacct generic_make_request
#endif

#ifndef LKS_HAVE_bio_acct
static inline unsigned long bio_start_io_acct(struct bio *bio)
{
	struct gendisk *disk = lks_bio_disk(bio);

	generic_start_io_acct(disk->queue, bio_op(bio), bio_sectors(bio), &disk->part0);
	return jiffies;
}

static inline void bio_end_io_acct(struct bio *bio, unsigned long start)
{
	struct gendisk *disk = lks_bio_disk(bio);

	generic_end_io_acct(disk->queue, bio_op(bio), &disk->part0, start);
}
#endif

/* The control group that a bio's I/O is accounted to, with a reference; NULL if this kernel does not say. */
#if defined(CONFIG_BLK_CGROUP) && (defined(LKS_HAVE_blkcg_css) || defined(LKS_HAVE_bio_blkcg))
#include <linux/cgroup.h>
#include <linux/blk-cgroup.h>

static inline struct cgroup_subsys_state *lks_bio_css(struct bio *bio)
{
#ifdef LKS_HAVE_blkcg_css
	struct cgroup_subsys_state *css = bio_blkcg_css(bio);
#else
	struct blkcg *blkcg = bio_blkcg(bio);
	struct cgroup_subsys_state *css = blkcg ? &blkcg->css : NULL;
#endif

	if (css)
		css_get(css);
	return css;
}

static inline void lks_bio_set_css(struct bio *bio, struct cgroup_subsys_state *css)
{
	if (css)
		bio_associate_blkg_from_css(bio, css);
}

static inline void lks_css_put(struct cgroup_subsys_state *css)
{
	if (css)
		css_put(css);
}
#else
static inline struct cgroup_subsys_state *lks_bio_css(struct bio *bio) { return NULL; }
static inline void lks_bio_set_css(struct bio *bio, struct cgroup_subsys_state *css) { }
static inline void lks_css_put(struct cgroup_subsys_state *css) { }
#endif

/* ---- disks ---- */

static inline void lks_sync_disk(struct gendisk *disk)
{
#ifdef LKS_HAVE_part0_bdev
	sync_blockdev(disk->part0);
#else
	struct block_device *bdev = bdget_disk(disk, 0);

	if (bdev) {
		sync_blockdev(bdev);
		bdput(bdev);
	}
#endif
}

#ifndef LKS_HAVE_capacity_notify
static inline bool set_capacity_and_notify(struct gendisk *disk, sector_t sectors)
{
#ifdef LKS_HAVE_capacity_revalidate
	return set_capacity_revalidate_and_notify(disk, sectors, true);
#else
	char event[] = "RESIZE=1", *env[] = { event, NULL };

	set_capacity(disk, sectors);
	revalidate_disk(disk);
	kobject_uevent_env(&disk_to_dev(disk)->kobj, KOBJ_CHANGE, env);
	return true;
#endif
}
#endif

/* ---- open block devices: what bdev_file_open_by_path() gives is not looked into ---- */

#ifndef LKS_HAVE_blk_mode_t
typedef fmode_t blk_mode_t;
#define BLK_OPEN_READ FMODE_READ
#define BLK_OPEN_WRITE FMODE_WRITE
#endif

#ifndef LKS_HAVE_bdev_file
#ifdef LKS_HAVE_bdev_handle
#define bdev_file_open_by_path(path, mode, holder, ops) ((struct file *)bdev_open_by_path(path, mode, holder, ops))
#define file_bdev(file) (((struct bdev_handle *)(file))->bdev)
#define bdev_fput(file) bdev_release((struct bdev_handle *)(file))
#else
struct lks_open_bdev {
	struct block_device *bdev;
	blk_mode_t mode;
	void *holder;
};

/* With a holder, as everywhere here: nobody else may open it so. */
static inline struct file *bdev_file_open_by_path(const char *path, blk_mode_t mode, void *holder, const void *ops)
{
	struct lks_open_bdev *o = kmalloc(sizeof(*o), GFP_KERNEL);
	long err;

	if (!o)
		return ERR_PTR(-ENOMEM);
	o->mode = mode;
	o->holder = holder;
#ifdef LKS_HAVE_blk_mode_t
	o->bdev = blkdev_get_by_path(path, mode, holder, NULL);
#else
	o->mode |= FMODE_EXCL;
	o->bdev = blkdev_get_by_path(path, o->mode, holder);
#endif
	if (!IS_ERR(o->bdev))
		return (struct file *)o;
	err = PTR_ERR(o->bdev);
	kfree(o);
	return ERR_PTR(err);
}

#define file_bdev(file) (((struct lks_open_bdev *)(file))->bdev)

static inline void bdev_fput(struct file *file)
{
	struct lks_open_bdev *o = (struct lks_open_bdev *)file;

#ifdef LKS_HAVE_blkdev_put_holder
	blkdev_put(o->bdev, o->holder);
#else
	blkdev_put(o->bdev, o->mode);
#endif
	kfree(o);
}
#endif
#endif

#ifndef LKS_HAVE_bdev_nr_bytes
static inline loff_t bdev_nr_bytes(struct block_device *bdev)
{
	return i_size_read(bdev->bd_inode);
}
#endif

#ifndef LKS_HAVE_bdev_discard
static inline unsigned int bdev_max_discard_sectors(struct block_device *bdev)
{
	struct request_queue *q = bdev_get_queue(bdev);

	return blk_queue_discard(q) ? q->limits.max_discard_sectors : 0;
}

static inline unsigned int bdev_discard_granularity(struct block_device *bdev)
{
	return bdev_get_queue(bdev)->limits.discard_granularity;
}

#define blkdev_issue_discard(bdev, sector, sectors, gfp) blkdev_issue_discard(bdev, sector, sectors, gfp, 0)
#endif

#endif
