// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What this kernel's interfaces look like. Kbuild compiles this file once for each section below, with PROBE_<name>
 * defined; if that succeeds, compat/probed.h says so to compat.h as LKS_HAVE_<name>. So a distribution that brings a newer
 * interface to an older kernel is seen for what it is. The numbers are the releases that brought the interface.
 */

#if defined(PROBE_bdev_file)

/* 6.9: an open block device is a struct file */
#include <linux/blkdev.h>

struct file *probe(const char *path, void *holder);
struct file *probe(const char *path, void *holder)
{
	struct file *file = bdev_file_open_by_path(path, BLK_OPEN_READ, holder, NULL);

	bdev_fput(file);
	return file_bdev(file) ? file : NULL;
}

#elif defined(PROBE_bdev_handle)

/* 6.7, 6.8: an open block device is a struct bdev_handle */
#include <linux/blkdev.h>

struct block_device *probe(const char *path, void *holder);
struct block_device *probe(const char *path, void *holder)
{
	struct bdev_handle *handle = bdev_open_by_path(path, BLK_OPEN_READ, holder, NULL);

	bdev_release(handle);
	return handle->bdev;
}

#elif defined(PROBE_blk_mode_t)

/* 6.5: a type of its own for the mode of an open */
#include <linux/blkdev.h>

blk_mode_t probe;

#elif defined(PROBE_blkdev_put_holder)

/* 6.5, 6.6: blkdev_put() is told the holder, not the mode */
#include <linux/blkdev.h>

void probe(struct block_device *bdev, void *holder);
void probe(struct block_device *bdev, void *holder)
{
	blkdev_put(bdev, holder);
}

#elif defined(PROBE_open_by_disk)

/* 6.5: open() and release() of the disk; release() is not told the mode */
#include <linux/blkdev.h>

static int open(struct gendisk *disk, blk_mode_t mode)
{
	return 0;
}

static void release(struct gendisk *disk)
{
}

extern const struct block_device_operations probe;
const struct block_device_operations probe = { .open = open, .release = release };

#elif defined(PROBE_fops_devnode)

/* 5.13: devnode() stands among the block device operations; before, in struct gendisk */
#include <linux/blkdev.h>

static char *devnode(struct gendisk *disk, umode_t *mode)
{
	return NULL;
}

extern const struct block_device_operations probe;
const struct block_device_operations probe = { .devnode = devnode };

#elif defined(PROBE_submit_bio_void)

/* 5.16: submit_bio() of a driver returns nothing */
#include <linux/blkdev.h>

static void submit(struct bio *bio)
{
}

extern const struct block_device_operations probe;
const struct block_device_operations probe = { .submit_bio = submit };

#elif defined(PROBE_submit_bio_cookie)

/* 5.9: submit_bio() of a driver; before, a make_request_fn of the queue */
#include <linux/blkdev.h>

static blk_qc_t submit(struct bio *bio)
{
	return 0;
}

extern const struct block_device_operations probe;
const struct block_device_operations probe = { .submit_bio = submit };

#elif defined(PROBE_disk_alloc_limits)

/* 6.11: a disk is born with its limits, and its features are part of them */
#include <linux/blkdev.h>

struct gendisk *probe(void);
struct gendisk *probe(void)
{
	struct queue_limits limits = { .features = BLK_FEAT_WRITE_CACHE };

	return blk_alloc_disk(&limits, NUMA_NO_NODE);
}

#elif defined(PROBE_disk_alloc_null)

/* 6.9: blk_alloc_disk() takes limits */
#include <linux/blkdev.h>

struct gendisk *probe(void);
struct gendisk *probe(void)
{
	return blk_alloc_disk(NULL, NUMA_NO_NODE);
}

#elif defined(PROBE_disk_alloc)

/* 5.14 .. 6.8: disk and queue are allocated together */
#include <linux/blkdev.h>

struct gendisk *probe(void);
struct gendisk *probe(void)
{
	return blk_alloc_disk(NUMA_NO_NODE);
}

#elif defined(PROBE_queue_make_request)

/* until 5.6: a queue is told its make_request_fn, and allocated with flags: no compiler tells these from a node */
#include <linux/blkdev.h>

void probe(struct request_queue *q, make_request_fn *f);
void probe(struct request_queue *q, make_request_fn *f)
{
	blk_queue_make_request(q, f);
}

#elif defined(PROBE_disk_add_int)

/* 5.15: device_add_disk() may fail */
#include <linux/blkdev.h>

int probe(struct gendisk *disk);
int probe(struct gendisk *disk)
{
	return device_add_disk(NULL, disk, NULL);
}

#elif defined(PROBE_disk_add_groups)

/* 4.20: device_add_disk() takes attribute groups */
#include <linux/blkdev.h>

void probe(struct gendisk *disk);
void probe(struct gendisk *disk)
{
	device_add_disk(NULL, disk, NULL);
}

#elif defined(PROBE_cleanup_disk)

/* 5.14 .. 6.0: the queue of a disk is ended by hand */
#include <linux/blkdev.h>

void probe(struct gendisk *disk);
void probe(struct gendisk *disk)
{
	blk_cleanup_disk(disk);
}

#elif defined(PROBE_capacity_notify)

/* 5.11 */
#include <linux/blkdev.h>

void probe(struct gendisk *disk);
void probe(struct gendisk *disk)
{
	set_capacity_and_notify(disk, 0);
}

#elif defined(PROBE_capacity_revalidate)

/* 5.7 .. 5.10 */
#include <linux/blkdev.h>

void probe(struct gendisk *disk);
void probe(struct gendisk *disk)
{
	set_capacity_revalidate_and_notify(disk, 0, true);
}

#elif defined(PROBE_part0_bdev)

/* 5.12: part0 is a block device */
#include <linux/blkdev.h>

int probe(struct gendisk *disk);
int probe(struct gendisk *disk)
{
	return sync_blockdev(disk->part0);
}

#elif defined(PROBE_open_mutex)

/* 5.15: opens of a disk are serialised by a mutex of the disk */
#include <linux/blkdev.h>

void probe(struct gendisk *disk);
void probe(struct gendisk *disk)
{
	mutex_unlock(&disk->open_mutex);
}

#elif defined(PROBE_bio_bdev)

/* 5.12: a bio points to a block device; before, to a disk and a partition number */
#include <linux/bio.h>

struct block_device *probe(struct bio *bio);
struct block_device *probe(struct bio *bio)
{
	return bio->bi_bdev;
}

#elif defined(PROBE_bio_alloc_opf)

/* 5.18: bio_alloc_bioset() takes device and operation */
#include <linux/bio.h>

struct bio *probe(struct block_device *bdev, struct bio_set *bios);
struct bio *probe(struct block_device *bdev, struct bio_set *bios)
{
	return bio_alloc_bioset(bdev, 1, REQ_OP_READ, GFP_NOIO, bios);
}

#elif defined(PROBE_blk_opf_t)

/* 6.0 */
#include <linux/bio.h>

blk_opf_t probe;

#elif defined(PROBE_submit_noacct)

/* 5.9; before, generic_make_request() */
#include <linux/blkdev.h>

void probe(struct bio *bio);
void probe(struct bio *bio)
{
	submit_bio_noacct(bio);
}

#elif defined(PROBE_bio_acct)

/* 5.8 */
#include <linux/blkdev.h>

unsigned long probe(struct bio *bio);
unsigned long probe(struct bio *bio)
{
	bio_end_io_acct(bio, 0);
	return bio_start_io_acct(bio);
}

#elif defined(PROBE_bdev_discard)

/* 5.19: what a device can discard; blkdev_issue_discard() has no flags */
#include <linux/bio.h>
#include <linux/blkdev.h>

unsigned int probe(struct block_device *bdev);
unsigned int probe(struct block_device *bdev)
{
	return bdev_max_discard_sectors(bdev) + bdev_discard_granularity(bdev);
}

#elif defined(PROBE_bdev_nr_bytes)

/* 5.16 */
#include <linux/blkdev.h>

loff_t probe(struct block_device *bdev);
loff_t probe(struct block_device *bdev)
{
	return bdev_nr_bytes(bdev);
}

#elif defined(PROBE_blkcg_css)

/* 5.19: the control group of a bio */
#include <linux/blk-cgroup.h>
#include <linux/bio.h>

void probe(struct bio *from, struct bio *to);
void probe(struct bio *from, struct bio *to)
{
	bio_associate_blkg_from_css(to, bio_blkcg_css(from));
}

#elif defined(PROBE_bio_blkcg)

/* 5.1 .. 5.18: the same */
#include <linux/blk-cgroup.h>
#include <linux/bio.h>

void probe(struct bio *from, struct bio *to);
void probe(struct bio *from, struct bio *to)
{
	bio_associate_blkg_from_css(to, &bio_blkcg(from)->css);
}

#elif defined(PROBE_memcpy_page)

/* 5.13 */
#include <linux/highmem.h>

void probe(struct page *a, struct page *b);
void probe(struct page *a, struct page *b)
{
	memcpy_page(a, 0, b, 0, 1);
	memzero_page(a, 0, 1);
	kunmap_local(kmap_local_page(a));
}

#elif defined(PROBE_sysfs_emit)

/* 5.10 */
#include <linux/sysfs.h>

int probe(char *to);
int probe(char *to)
{
	return sysfs_emit(to, "x");
}

#elif defined(PROBE_tcp_sock_set)

/* 5.8; before, kernel_setsockopt() */
#include <linux/tcp.h>
#include <net/sock.h>

void probe(struct sock *sk);
void probe(struct sock *sk)
{
	sock_set_keepalive(sk);
	tcp_sock_set_nodelay(sk);
	tcp_sock_set_user_timeout(sk, 1);
	tcp_sock_set_keepidle(sk, 1);
	tcp_sock_set_keepintvl(sk, 1);
	tcp_sock_set_keepcnt(sk, 1);
}

#elif defined(PROBE_use_task_frag)

/* 6.2 */
#include <net/sock.h>

void probe(struct sock *sk);
void probe(struct sock *sk)
{
	sk->sk_use_task_frag = false;
}

#elif defined(PROBE_iter_dest)

/* 6.2 */
#include <linux/uio.h>

extern int probe;
int probe = ITER_SOURCE | ITER_DEST;

#elif defined(PROBE_iter_discard)

/* 4.20: the kind of an iov_iter is not part of its direction; the same release brought this kind */
#include <linux/uio.h>

void probe(struct iov_iter *iter);
void probe(struct iov_iter *iter)
{
	iov_iter_discard(iter, 0, 1);
}

#elif defined(PROBE_msg_control)

/* 5.8: ancillary data of a socket may go to a kernel buffer */
#include <linux/socket.h>

bool probe(struct msghdr *msg);
bool probe(struct msghdr *msg)
{
	return msg->msg_control_is_user;
}

#elif defined(PROBE_genl_small_ops)

/* 5.10 */
#include <net/genetlink.h>

extern const struct genl_small_ops probe;
const struct genl_small_ops probe = { .cmd = 1 };

#elif defined(PROBE_genl_family_policy)

/* 5.2: one policy a family; before, one a command */
#include <net/genetlink.h>

extern struct genl_family probe;
struct genl_family probe = { .policy = NULL };

#elif defined(PROBE_genl_info_dump)

/* 6.6 */
#include <net/genetlink.h>

struct nlattr **probe(struct netlink_callback *cb);
struct nlattr **probe(struct netlink_callback *cb)
{
	return genl_info_dump(cb)->attrs;
}

#elif defined(PROBE_genl_dumpit_info)

/* 5.4 .. 6.6: attributes of a dump request; before, the family parses them itself */
#include <net/genetlink.h>

struct nlattr **probe(struct netlink_callback *cb);
struct nlattr **probe(struct netlink_callback *cb)
{
	return genl_dumpit_info(cb)->attrs;
}

#elif defined(PROBE_sendpage)

/* until 6.4: pages by reference; then MSG_SPLICE_PAGES, which a 6.1 may name without heeding it */
#include <linux/net.h>

int probe(struct socket *sock, struct page *page);
int probe(struct socket *sock, struct page *page)
{
	return kernel_sendpage(sock, page, 0, 1, MSG_MORE | MSG_SENDPAGE_NOTLAST);
}

#elif defined(PROBE_genl_req_attr)

/* 6.1 */
#include <net/genetlink.h>

int probe(struct genl_info *info);
int probe(struct genl_info *info)
{
	return GENL_REQ_ATTR_CHECK(info, 1);
}

#elif defined(PROBE_genl_mcast_cap)

/* 6.7: who may listen */
#include <net/genetlink.h>

extern const struct genl_multicast_group probe;
const struct genl_multicast_group probe = { .flags = GENL_MCAST_CAP_NET_ADMIN };

#elif defined(PROBE_bdev_nowait)

/* 5.20 */
#include <linux/blkdev.h>

bool probe(struct block_device *bdev);
bool probe(struct block_device *bdev)
{
	return bdev_nowait(bdev);
}

#elif defined(PROBE_tasklet_setup)

/* 5.9: a tasklet's function is given the tasklet */
#include <linux/interrupt.h>

void probe(struct tasklet_struct *tasklet, void (*f)(struct tasklet_struct *));
void probe(struct tasklet_struct *tasklet, void (*f)(struct tasklet_struct *))
{
	tasklet_setup(tasklet, f);
}

#elif defined(PROBE_netlink_ctx)

/* 4.20 */
#include <linux/netlink.h>

void *probe(struct netlink_callback *cb);
void *probe(struct netlink_callback *cb)
{
	return cb->ctx;
}

#endif
