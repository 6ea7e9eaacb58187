/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The trail of a volume: which of its sectors have been written through its device on this host since the trail began.
 *
 * It is exact or *lost*, nothing between: memory that is not to be had, a write that failed, another host that took the volume
 * over, a primary that may have lost what it reported done. Lost it stays until the next one begins.
 */
#ifndef LKS_TRAIL_H
#define LKS_TRAIL_H

#include <linux/types.h>
#include "uapi/lockstep.h"

struct lks_volume;
struct netlink_ext_ack;

/* All under the volume's lock. */

/* Begins a trail, or finds one that is still empty: its number. -EBUSY: open for writing, or written to since one began */
int lks_trail_begin(struct lks_volume *v, u64 *number, struct netlink_ext_ack *ack);
/* A write, discard or zeroing of these bytes, all of one extent, is about to begin. nowait: no waiting for memory */
void lks_trail_note(struct lks_volume *v, u64 offset, u32 length, bool nowait);
/* Whatever happened to this volume, its trail does not tell all any more. why: a constant text */
void lks_trail_lose(struct lks_volume *v, const char *why);
/*
 * The first extent at or behind byte *at with a written sector: its bitmap, bit 0 of byte 0 is the first sector's, and its first
 * byte in *at; or NULL. -EBUSY: open for writing; -ENODATA: no trail of this number, or lost
 */
int lks_trail_next(struct lks_volume *v, u64 number, u64 *at, const u8 **bitmap, struct netlink_ext_ack *ack);
void lks_trail_end(struct lks_volume *v);
void lks_trail_forget(struct lks_volume *v, u64 number);	/* ends it if it has this number */

void lks_trail_init(void);

#endif
