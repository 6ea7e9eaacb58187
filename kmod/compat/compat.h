/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Older kernels. The source is written for the newest kernel's interfaces; what an older one lacks is defined here (block
 * devices: block.h; gendisk: disk.h, which disk.c alone includes; sockets and netlink: net.h), under the newest name. This
 * file goes before every other of the module. probes.c finds out what there is.
 */
#ifndef LKS_COMPAT_H
#define LKS_COMPAT_H

#include <linux/types.h>
#include <linux/build_bug.h>
#include <linux/compiler.h>
#include "probed.h"

#ifndef fallthrough
#define fallthrough do { } while (0)
#endif

#ifndef static_assert
#define static_assert(cond, ...) _Static_assert(cond, #cond)
#endif

#ifndef LKS_HAVE_blk_opf_t
typedef unsigned int blk_opf_t;
#endif

#ifndef LKS_HAVE_memcpy_page
#include <linux/highmem.h>

static inline void memcpy_page(struct page *to, size_t to_offset, struct page *from, size_t from_offset, size_t bytes)
{
	char *t = kmap_atomic(to), *f = kmap_atomic(from);

	memcpy(t + to_offset, f + from_offset, bytes);
	kunmap_atomic(f);
	kunmap_atomic(t);
}

static inline void memzero_page(struct page *page, size_t offset, size_t bytes)
{
	char *p = kmap_atomic(page);

	memset(p + offset, 0, bytes);
	kunmap_atomic(p);
}

#define kmap_local_page kmap_atomic
#define kunmap_local kunmap_atomic
#endif

#ifndef LKS_HAVE_tasklet_setup
#include <linux/interrupt.h>

/* A number as large as a pointer is passed as a pointer is. */
static inline void tasklet_setup(struct tasklet_struct *tasklet, void (*f)(struct tasklet_struct *))
{
	tasklet_init(tasklet, (void (*)(unsigned long))f, (unsigned long)tasklet);
}
#endif

#ifndef LKS_HAVE_sysfs_emit
#define sysfs_emit(to, ...) scnprintf(to, PAGE_SIZE, __VA_ARGS__)
#endif

#endif
