/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What travels on a lane: frames. A frame is a 64-byte header, then `length` bytes of payload. Little-endian, used in
 * place. A frame whose magic, checksum, type, length, volume or ranges are wrong closes the lane.
 *
 * Which fields a type uses beside volume, version and term (which every type carries):
 *
 *  type        lane  seq       stable    offset     length / payload      tag          model
 *  ----------  ----  --------  --------  ---------  --------------------  -----------  -----------------------------
 *  ACTIVATE    all   -         -         -          struct lks_record     -            new primary to members
 *  ACTIVATED   0     -         -         -          0                     -            member's answer; its MAPs went ahead
 *  REFUSE      0     -         -         -          0                     -            S4: not a member
 *  CONFIG      all   -         -         -          struct lks_record     -            C2: a version of the same term
 *  SYNCSTART   all   -         -         -          struct lks_record     -            primary accepts an ATTACH
 *  ATTACH      0     -         -         -          0                     -            H4; its MAPs went ahead
 *  MAP         0     -         since     first bit  4096: bits, bit n of  LKS_MAP_*,   part of a set of blocks that belongs
 *                                                   byte n/8              host         to the next ACTIVATED, ATTACH, PREPARE
 *  REPL        any   number    stable    bytes      data                  -            W1; flags FUA, DISCARD, ZEROES
 *  ACK         any   number    -         -          0                     -            the write is in the member's cache
 *  STABLE      0     -         stable    -          0                     -
 *  FLUSH       0     number    -         -          0                     -            F1
 *  FLUSHED     any   number    -         -          0                     -
 *  SYNC        any   number    -         bytes      data, or 0: zeros     bytes        resync copy; tag: its length
 *  SYNCED      any   number    -         -          0                     -
 *  PREPARE     0     -         -         -          0                     -            D2, J2; its MAPs went ahead
 *  PREPARED    0     -         -         -          0                     -
 *  PING        0     sent ms   -         -          0                     -            L1; clock of the sender
 *  PONG        0     as PING   -         -          0                     -
 *  FAILED      0     -         -         -          0                     -            a member's disk failed: it is none
 *  REQ         any   id        session   bytes      data (writes)         bytes        X1, X2; flags OP
 *  REPLY       any   id        errno     -          data (reads)          -            stable: 0 or a positive errno
 *  REFUSED     any   id        fenced    -          0                     -            stable: 1 if the session is fenced
 *
 *  COMPARE     any   id        hash      bytes      0                     bytes        is the hash of your blocks this? Flag
 *                                                                                     ZEROES: have you never written there?
 *  COMPARED    any   id        LKS_CMP_* -          0                     -
 *  READY       all   -         -         -          0                     -            the primary has begun to serve: behind
 *                                                                                     every REFUSED that it sent before
 *
 * Lanes. What must come in order goes down one: 0 (MAPs ahead of what they belong to; the rest there is short and must not
 * wait behind data), or all of them (C2). "any" is not ordered with anything, nor with itself: a write whose number is above a
 * STABLE may come before or after it, a FLUSH covers only writes that all have acknowledged (F1), an ACK names its write,
 * and a promise (L1..L3) only runs out when its PING or PONG is late. So whoever sends is free to choose the lane of "any":
 * the module uses lane 0 only if there is no other, the simulator each at random.
 *
 * DISCARD and ZEROES carry no data: tag is the number of bytes. Hashes are XXH64 with seed 0.
 */
#ifndef LKS_CORE_WIRE_H
#define LKS_CORE_WIRE_H

#include "port.h"
#include "../uapi/lockstep.h"

#define LKS_WIRE_MAGIC 0x314b534cu	/* "LSK1" read as bytes */
#define LKS_WIRE_DATA_MAX (1u << 20)	/* bytes of data in a frame */
#define LKS_WIRE_BYTES_MAX 4096u	/* bytes of any other payload */

enum lks_frame_type {
	LKS_ACTIVATE = 1,
	LKS_ACTIVATED,
	LKS_REFUSE,
	LKS_CONFIG,
	LKS_SYNCSTART,
	LKS_ATTACH,
	LKS_MAP,
	LKS_REPL,
	LKS_ACK,
	LKS_STABLE,
	LKS_FLUSH,
	LKS_FLUSHED,
	LKS_SYNC,
	LKS_SYNCED,
	LKS_PREPARE,
	LKS_PREPARED,
	LKS_PING,
	LKS_PONG,
	LKS_DISK_FAILED,
	LKS_REQ,
	LKS_REPLY,
	LKS_REFUSED,
	LKS_COMPARE,
	LKS_COMPARED,
	LKS_READY,
	LKS_FRAME_TYPES,
};

enum lks_compared { LKS_CMP_EQUAL, LKS_CMP_DIFFERS, LKS_CMP_UNKNOWN };	/* unknown: no memory to tell */

/* flags of REPL, REQ and COMPARE */
#define LKS_F_FUA 0x01
#define LKS_F_ZEROES 0x02	/* no data: zeros */
#define LKS_F_DISCARD 0x04	/* no data: zeros, and the space may be freed */
#define LKS_F_OP_SHIFT 4	/* REQ: enum lks_op in the upper four bits */

/* MAP: tag = kind | host << 8 */
#define LKS_MAP_EVIDENCE 1	/* blocks the sender cannot vouch for: ACTIVATED, ATTACH */
#define LKS_MAP_DIRTY 2		/* D2: dirty map of `host`, away since version `stable`; a 0-length MAP names an empty one */

struct lks_frame {
	u32 magic;
	u8 type;		/* enum lks_frame_type */
	u8 flags;
	u16 session;		/* of the receiving replica: what it chose in its ATTACH, 0 if ACTIVATE began it (T1) */
	u32 volume;		/* vid */
	u32 length;		/* bytes of payload behind the header */
	u64 version;		/* of the record the sender acts on */
	u64 term;
	u64 seq;
	u64 stable;
	u64 offset;		/* bytes */
	u32 tag;
	u32 crc;		/* crc32c of the 60 bytes before it */
} __attribute__((packed));
static_assert_c(sizeof(struct lks_frame) == 64);

#define LKS_MAP_CHUNK_BYTES 4096u
static_assert_c(LKS_MAP_CHUNK_BYTES <= LKS_WIRE_BYTES_MAX);
static_assert_c(sizeof(struct lks_record) <= LKS_WIRE_BYTES_MAX);

#ifdef __cplusplus
extern "C" {
#endif

/* Fills magic and crc. */
void lks_frame_seal(struct lks_frame *f);

/*
 * Is this a header that this version can read on? Checks magic, crc, type, flags, reserved and that length fits the type,
 * so that the payload can be received. 0 or -EPROTO. What it means to a volume is checked by lks_vol_receive().
 */
int lks_frame_check(const struct lks_frame *f);

/* Does the payload of this type go into a data buffer (struct lks_buf), or into plain memory? */
bool lks_frame_has_data(const struct lks_frame *f);

/* The invariants of struct lks_record as uapi/lockstep.h states them. 0 or -EINVAL. */
int lks_record_check(const struct lks_record *r);

#ifdef __cplusplus
}
#endif

#endif
