/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tracepoints, below events/lockstep in tracefs. Volumes by vid, offsets and lengths in bytes if not said otherwise.
 * enum lks_op, enum lks_frame_type and LKS_F_* (core/core.h, core/wire.h) stand for op, type and flags.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM lockstep

#if !defined(LKS_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define LKS_TRACE_H

#include <linux/tracepoint.h>

/* A local opener's request has come; a flush has no length. */
TRACE_EVENT(lockstep_request,
	TP_PROTO(u32 vid, u8 op, u8 flags, u64 offset, u32 length),
	TP_ARGS(vid, op, flags, offset, length),
	TP_STRUCT__entry(__field(u32, vid) __field(u8, op) __field(u8, flags) __field(u64, offset) __field(u32, length)),
	TP_fast_assign(
		__entry->vid = vid;
		__entry->op = op;
		__entry->flags = flags;
		__entry->offset = offset;
		__entry->length = length;
	),
	TP_printk("vid=%u op=%u flags=%#x offset=%llu length=%u", __entry->vid, __entry->op, __entry->flags, __entry->offset,
		  __entry->length)
);

/* ... and has ended, after this time. err: 0 or a negative errno. */
TRACE_EVENT(lockstep_complete,
	TP_PROTO(u32 vid, bool write, u64 sector, u32 sectors, int err, u64 ns),
	TP_ARGS(vid, write, sector, sectors, err, ns),
	TP_STRUCT__entry(__field(u32, vid) __field(bool, write) __field(u64, sector) __field(u32, sectors) __field(int, err)
			 __field(u64, ns)),
	TP_fast_assign(
		__entry->vid = vid;
		__entry->write = write;
		__entry->sector = sector;
		__entry->sectors = sectors;
		__entry->err = err;
		__entry->ns = ns;
	),
	TP_printk("vid=%u %s sector=%llu sectors=%u err=%d us=%llu", __entry->vid, __entry->write ? "write" : "read",
		  __entry->sector, __entry->sectors, __entry->err, __entry->ns / 1000)
);

/* A frame with a write or a flush is queued for a host (replicate), or its acknowledgement has come from there (ack). */
DECLARE_EVENT_CLASS(lockstep_frame,
	TP_PROTO(u32 vid, u8 host, u8 type, u64 term, u64 seq, u64 offset, u32 length),
	TP_ARGS(vid, host, type, term, seq, offset, length),
	TP_STRUCT__entry(__field(u32, vid) __field(u8, host) __field(u8, type) __field(u64, term) __field(u64, seq)
			 __field(u64, offset) __field(u32, length)),
	TP_fast_assign(
		__entry->vid = vid;
		__entry->host = host;
		__entry->type = type;
		__entry->term = term;
		__entry->seq = seq;
		__entry->offset = offset;
		__entry->length = length;
	),
	TP_printk("vid=%u host=%u type=%u term=%llu seq=%llu offset=%llu length=%u", __entry->vid, __entry->host, __entry->type,
		  __entry->term, __entry->seq, __entry->offset, __entry->length)
);
DEFINE_EVENT(lockstep_frame, lockstep_replicate,
	TP_PROTO(u32 vid, u8 host, u8 type, u64 term, u64 seq, u64 offset, u32 length),
	TP_ARGS(vid, host, type, term, seq, offset, length));
DEFINE_EVENT(lockstep_frame, lockstep_ack,
	TP_PROTO(u32 vid, u8 host, u8 type, u64 term, u64 seq, u64 offset, u32 length),
	TP_ARGS(vid, host, type, term, seq, offset, length));

/* The oldest request of this host's openers has been waiting for longer than a second, or does so no more. */
TRACE_EVENT(lockstep_freeze,
	TP_PROTO(u32 vid, bool frozen, u64 oldest_ms),
	TP_ARGS(vid, frozen, oldest_ms),
	TP_STRUCT__entry(__field(u32, vid) __field(bool, frozen) __field(u64, oldest_ms)),
	TP_fast_assign(
		__entry->vid = vid;
		__entry->frozen = frozen;
		__entry->oldest_ms = oldest_ms;
	),
	TP_printk("vid=%u %s oldest_ms=%llu", __entry->vid, __entry->frozen ? "frozen" : "thawed", __entry->oldest_ms)
);

/* CONFIG_SET brought a newer record. */
TRACE_EVENT(lockstep_config,
	TP_PROTO(u32 vid, const struct lks_record *r),
	TP_ARGS(vid, r),
	TP_STRUCT__entry(__field(u32, vid) __field(u64, version) __field(u64, term) __field(u8, primary) __field(u8, replicas)
			 __field(u8, openers)),
	TP_fast_assign(
		__entry->vid = vid;
		__entry->version = r->version;
		__entry->term = r->term;
		__entry->primary = r->primary;
		__entry->replicas = r->nreplicas;
		__entry->openers = r->nopeners;
	),
	TP_printk("vid=%u version=%llu term=%llu primary=%u replicas=%u openers=%u", __entry->vid, __entry->version,
		  __entry->term, __entry->primary, __entry->replicas, __entry->openers)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
