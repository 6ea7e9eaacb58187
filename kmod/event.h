/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Events to the daemon: uapi/lockstep.h says what each means. All may sleep. Each has the next number (SEQ); one that
 * cannot be sent for lack of memory leaves a hole, which makes the daemon dump.
 */
#ifndef LKS_EVENT_H
#define LKS_EVENT_H

#include "core/core.h"

void lks_event_propose(u32 vid, const struct lks_record *record);
void lks_event_open(u32 vid);
void lks_event_close(u32 vid, u64 session);
void lks_event_link_down(u8 host, u64 link, const char *reason);
void lks_event_silent(u8 host);
void lks_event_disk_error(u32 vid, u8 op, s32 error);	/* op: enum lks_io_op */
void lks_event_state(u32 vid);
void lks_event_hold(u8 cmd, u32 vid, u64 hold);		/* cmd: EV_QUIESCED, EV_UNQUIESCED */
void lks_event_meta_moved(u32 vid, u64 offset, bool done);
void lks_event_mismatch(u32 vid, u8 host, u64 at, u64 length, bool repaired);
void lks_event_verified(u32 vid);

/* There was something to tell that could not be kept: the next event's number leaves a hole. */
void lks_event_lost(void);

/* The number of the last event. */
u64 lks_event_last(void);

#endif
