// SPDX-License-Identifier: GPL-2.0-or-later
/* The two formats: sealing and checking of frames, superblocks, extent records; checking of records of truth. */
#include "core.h"

#ifndef __KERNEL__
u32 lks_crc32c(u32 seed, const void *data, size_t bytes)
{
	static u32 table[256];
	const u8 *p = data;
	u32 crc = ~seed;

	if (!table[1]) {
		/* index 1 last: whoever sees it set sees the others */
		for (u32 i = 256; i-- > 0;) {
			u32 c = i == 0 ? 1 : i == 1 ? 0 : i, k = c;

			for (int bit = 0; bit < 8; bit++)
				c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
			__atomic_store_n(&table[k], c, __ATOMIC_RELEASE);
		}
	}
	while (bytes--)
		crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
	return ~crc;
}
#endif

void lks_superblock_seal(struct lks_superblock *sb)
{
	sb->magic = LKS_DISK_MAGIC;
	sb->format = LKS_DISK_FORMAT;
	sb->crc = lks_crc32c(0, sb, offsetof(struct lks_superblock, crc));
}

int lks_superblock_verify(const struct lks_superblock *sb)
{
	if (sb->magic != LKS_DISK_MAGIC || sb->format != LKS_DISK_FORMAT)
		return -EUCLEAN;
	return sb->crc == lks_crc32c(0, sb, offsetof(struct lks_superblock, crc)) ? 0 : -EUCLEAN;
}

void lks_extent_record_seal(struct lks_extent_record *r)
{
	r->crc = lks_crc32c(0, (const u8 *)r + 4, sizeof(*r) - 4);
}

bool lks_extent_record_valid(const struct lks_extent_record *r, u32 index, u64 tag)
{
	return r->index == index && r->tag == tag && r->crc == lks_crc32c(0, (const u8 *)r + 4, sizeof(*r) - 4);
}

static u64 tag_of(const u8 *uuid)
{
	u64 tag;

	memcpy(&tag, uuid, sizeof(tag));
	return tag;
}

void lks_format_unit(const struct lks_superblock *sb, u64 at, void *unit)
{
	struct lks_extent_record *r = unit;
	struct lks_superblock *s = unit;
	u32 first = (u32)((at - 2 * LKS_META_UNIT) / sizeof(*r));

	memset(unit, 0, LKS_META_UNIT);
	if (at == 0) {
		*s = *sb;
		s->sequence = 1;
		s->clean = 1;
		memset(s->slots, 0, sizeof(s->slots));
		memset(s->unused, 0, sizeof(s->unused));
		lks_superblock_seal(s);
	} else if (at >= 2 * LKS_META_UNIT) {
		for (u32 i = 0; i < LKS_RECORDS_PER_UNIT; i++) {
			r[i].index = first + i;
			r[i].tag = tag_of(sb->uuid);
			lks_extent_record_seal(&r[i]);
		}
	}
}

/* ---- frames ---- */

void lks_frame_seal(struct lks_frame *f)
{
	f->magic = LKS_WIRE_MAGIC;
	f->crc = lks_crc32c(0, f, offsetof(struct lks_frame, crc));
}

static u8 req_op(const struct lks_frame *f)
{
	return f->flags >> LKS_F_OP_SHIFT;
}

bool lks_frame_has_data(const struct lks_frame *f)
{
	return f->type == LKS_REPL || f->type == LKS_SYNC || f->type == LKS_REQ || f->type == LKS_REPLY;
}

static bool data_length(u32 length)
{
	return length && length <= LKS_WIRE_DATA_MAX && length % LKS_SECTOR == 0;
}

static bool length_fits(const struct lks_frame *f)
{
	bool zeros = f->flags & (LKS_F_ZEROES | LKS_F_DISCARD);

	switch (f->type) {
	case LKS_ACTIVATE:
	case LKS_CONFIG:
	case LKS_SYNCSTART:
		return f->length == sizeof(struct lks_record);
	case LKS_MAP:
		return f->length == 0 || f->length == LKS_MAP_CHUNK_BYTES;
	case LKS_REPL:
		return zeros ? f->length == 0 : data_length(f->length);
	case LKS_SYNC:
	case LKS_REPLY:
		return f->length == 0 || data_length(f->length);
	case LKS_REQ:
		return req_op(f) == LKS_OP_WRITE ? data_length(f->length) : f->length == 0;
	default:
		return f->length == 0;
	}
}

static bool flags_fit(const struct lks_frame *f)
{
	switch (f->type) {
	case LKS_REPL:
		return !(f->flags & ~(LKS_F_FUA | LKS_F_ZEROES | LKS_F_DISCARD));
	case LKS_REQ:
		return !(f->flags & 0x0f & ~LKS_F_FUA) && req_op(f) >= LKS_OP_READ && req_op(f) <= LKS_OP_OPEN;
	case LKS_COMPARE:
		return !(f->flags & ~LKS_F_ZEROES);
	default:
		return f->flags == 0;
	}
}

int lks_frame_check(const struct lks_frame *f)
{
	if (f->magic != LKS_WIRE_MAGIC || f->crc != lks_crc32c(0, f, offsetof(struct lks_frame, crc)))
		return -EPROTO;
	if (!f->type || f->type >= LKS_FRAME_TYPES || !flags_fit(f) || !length_fits(f))
		return -EPROTO;
	return 0;
}

/* ---- the record of truth ---- */

static bool host_ok(u8 host)
{
	return host >= 1 && host <= LKS_MAX_HOSTS;
}

int lks_record_check(const struct lks_record *r)
{
	u64 seen = 0, insync = 0;

	if (!r->size || r->size % LKS_META_UNIT || r->size > LKS_SIZE_MAX)
		return -EINVAL;
	if (!r->version || r->nreplicas > LKS_MAX_REPLICAS || r->nopeners > LKS_MAX_HOSTS || r->flags & ~LKS_RECORD_DRAINED)
		return -EINVAL;
	for (u32 i = 0; i < r->nreplicas; i++) {
		const struct lks_record_replica *p = &r->replicas[i];

		if (!host_ok(p->host) || seen >> (p->host - 1) & 1 || p->state == LKS_REPLICA_NONE ||
		    p->state > LKS_REPLICA_FAILED || p->since > r->version || p->added > r->version)
			return -EINVAL;
		seen |= 1ull << (p->host - 1);
		if (p->state == LKS_REPLICA_INSYNC || p->state == LKS_REPLICA_SUSPECT)
			insync |= 1ull << (p->host - 1);
	}
	if (r->primary && (!host_ok(r->primary) || !(insync >> (r->primary - 1) & 1)))
		return -EINVAL;
	for (u32 i = 0; i < r->nopeners; i++) {
		if (!host_ok(r->openers[i].host) || !r->openers[i].session || r->openers[i].session > r->session_serial)
			return -EINVAL;
		for (u32 k = 0; k < i; k++)
			if (r->openers[k].session == r->openers[i].session)
				return -EINVAL;
	}
	return 0;
}
