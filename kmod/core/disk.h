/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The format of a replica on its logical volume. Little-endian, used in place.
 *
 *	byte 0                      offset (in the log)
 *	[ data: volume's size ][ superblock A | superblock B | extent table | dirty map slot 0 .. 6 ]
 *
 * offset is a multiple of 4096, at least the volume's size. Everything behind it is written in units of 4096 bytes,
 * aligned; each 512-byte sector is taken to be written whole or not at all.
 *
 * Superblock: two copies written in turn; the valid one with the larger sequence number counts. At least one is valid
 * at any time, because the other copy is written only after this one is durable.
 *
 * Extent table: a record a sector. A record whose checksum is wrong counts as "every extent hot and written": more is
 * resynced than needed, never less.
 *
 * A replica that grows has its metadata in two places for a while, and keeps both current; the offset in the log says which
 * place counts. Once that is the new one, what lies between the data and the new place's volume size becomes zeros.
 *
 * Dirty map slot i: one bit a block, bit n of byte n/8. Meaningful only while the superblock's slot table names the slot's
 * host and the version since which that host is away; otherwise whatever stands there is garbage.
 */
#ifndef LKS_CORE_DISK_H
#define LKS_CORE_DISK_H

#include "port.h"
#include "../uapi/lockstep.h"

#define LKS_DISK_MAGIC 0x31307065747353ffull	/* "\xffStep01" with an s, read as bytes */
#define LKS_DISK_FORMAT 1
#define LKS_SIZE_MAX (1ull << 46)		/* bytes of a volume */
#define LKS_META_UNIT 4096			/* bytes; unit of metadata writes */
#define LKS_SLOTS 7				/* dirty maps: one for each other replica */
static_assert_c(LKS_SLOTS == LKS_MAX_REPLICAS - 1);

struct lks_disk_slot {
	u8 host;		/* 0: free */
	u8 pad[7];
	u64 since;		/* version that took host out of the in-sync set */
};

struct lks_superblock {
	u64 magic;
	u32 format;
	u32 vid;
	u64 sequence;		/* of this copy; +1 with each write */
	u8 uuid[16];		/* of the volume */
	u64 size;		/* bytes of volume that these metadata are laid out for: what the volume has, or may grow to */
	u32 block_size;		/* bytes */
	u8 host;		/* whose replica this is */
	u8 clean;		/* 1: detached with no extent hot (a hint; the table decides) */
	u8 pad[2];
	u64 version;		/* last adopted */
	u64 term;
	u64 incarnation;
	struct lks_disk_slot slots[LKS_SLOTS];
	u64 retire, retire_end;	/* bytes [retire, retire_end) held older metadata and are to become zeros; 0, 0: none */
	u8 unused[4096 - 80 - 112 - 16 - 4];
	u32 crc;		/* crc32c of the 4092 bytes before it */
} __attribute__((packed));
static_assert_c(sizeof(struct lks_superblock) == LKS_META_UNIT);

#define LKS_EXTENTS_PER_RECORD 1984		/* 496 bytes of 2 bits each */
#define LKS_RECORDS_PER_UNIT (LKS_META_UNIT / 512)
#define LKS_EXTENTS_PER_UNIT (LKS_EXTENTS_PER_RECORD * LKS_RECORDS_PER_UNIT)	/* 62 GiB of volume */

#define LKS_EXTENT_HOT 1	/* H1: its blocks may differ from other replicas */
#define LKS_EXTENT_WRITTEN 2	/* was written once; otherwise it reads as zeros */

struct lks_extent_record {
	u32 crc;		/* crc32c of the 508 bytes behind it */
	u32 index;		/* number of this record: catches a misplaced one */
	u64 tag;		/* first 8 bytes of the volume's UUID: catches another volume's */
	u8 bits[LKS_EXTENTS_PER_RECORD / 4];	/* extent i of the record: LKS_EXTENT_* << (i % 4 * 2) in byte i / 4 */
} __attribute__((packed));
static_assert_c(sizeof(struct lks_extent_record) == 512);

/* Where things are, from the volume's size and block size. All offsets in bytes from the start of the metadata. */
struct lks_layout {
	u64 extents;		/* number of extents, the last perhaps partial */
	u64 blocks;		/* number of blocks, the last perhaps partial */
	u64 table_offset;
	u64 table_bytes;	/* a multiple of LKS_META_UNIT */
	u64 slot_offset;	/* of slot 0 */
	u64 slot_bytes;		/* of each; a multiple of LKS_META_UNIT */
	u64 total_bytes;
};

static inline void lks_layout_of(u64 size, u32 block_size, struct lks_layout *l)
{
	l->extents = LKS_DIV_UP(size, LKS_EXTENT_BYTES);
	l->blocks = LKS_DIV_UP(size, block_size);
	l->table_offset = 2 * LKS_META_UNIT;
	l->table_bytes = LKS_DIV_UP(l->extents, LKS_EXTENTS_PER_UNIT) * LKS_META_UNIT;
	l->slot_offset = l->table_offset + l->table_bytes;
	l->slot_bytes = LKS_ROUND_UP(LKS_DIV_UP(l->blocks, 8), LKS_META_UNIT);
	l->total_bytes = l->slot_offset + LKS_SLOTS * l->slot_bytes;
}

#ifdef __cplusplus
extern "C" {
#endif

/* Seals a superblock or an extent record before it is written. */
void lks_superblock_seal(struct lks_superblock *sb);
void lks_extent_record_seal(struct lks_extent_record *r);

/* 0, or -EUCLEAN for a copy that is damaged or none. */
int lks_superblock_verify(const struct lks_superblock *sb);
bool lks_extent_record_valid(const struct lks_extent_record *r, u32 index, u64 tag);

/*
 * Formats the metadata of a new replica: unit is a buffer of LKS_META_UNIT bytes; fills it with what belongs at byte
 * `at` (a multiple of LKS_META_UNIT, from 0) of the metadata. Superblock A, superblock B (not valid yet), the extent table
 * with no extent hot or written. Dirty maps need no initialisation: call it for at < lks_layout.slot_offset. Superblock A is
 * to be written last and after a flush, so that a replica half formatted is no replica. sb gives vid, uuid, size,
 * block_size, host, version, term.
 */
void lks_format_unit(const struct lks_superblock *sb, u64 at, void *unit);

#ifdef __cplusplus
}
#endif

#endif
