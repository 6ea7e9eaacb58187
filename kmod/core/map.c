// SPDX-License-Identifier: GPL-2.0-or-later
/* Sparse sets of blocks: an array of leaves, each NULL (empty), wholly set without memory, or a 4 KiB bitmap. */
#include "internal.h"

static u64 leaf_bits(const struct lks_map *m, u32 i)
{
	u64 first = (u64)i * LKS_LEAF_BITS;

	return m->bits - first < LKS_LEAF_BITS ? m->bits - first : LKS_LEAF_BITS;
}

void lks_map_init(struct lks_vol *v, struct lks_map *m, u64 bits)
{
	memset(m, 0, sizeof(*m));
	m->bits = bits;
	m->nleaves = (u32)LKS_DIV_UP(bits, LKS_LEAF_BITS);
	m->leaves = v->ops->alloc(v->ctx, m->nleaves * sizeof(*m->leaves));
}

/* The leaf array may have been missing since init; try again. */
static bool have_leaves(struct lks_vol *v, struct lks_map *m)
{
	if (m->leaves)
		return true;
	m->leaves = v->ops->alloc(v->ctx, m->nleaves * sizeof(*m->leaves));
	if (!m->leaves)
		return false;
	for (u32 i = 0; i < m->nleaves && m->all; i++) {
		m->leaves[i].all = m->leaves[i].unsaved = 1;
		m->leaves[i].set = (u32)leaf_bits(m, i);
	}
	m->all = 0;
	return true;
}

static void leaf_drop(struct lks_vol *v, struct lks_leaf *l)
{
	if (l->words)
		v->ops->free(v->ctx, l->words, LKS_META_UNIT);
	l->words = NULL;
	l->set = l->all = 0;
}

void lks_map_free(struct lks_vol *v, struct lks_map *m)
{
	if (m->leaves) {
		for (u32 i = 0; i < m->nleaves; i++)
			leaf_drop(v, &m->leaves[i]);
		v->ops->free(v->ctx, m->leaves, m->nleaves * sizeof(*m->leaves));
	}
	memset(m, 0, sizeof(*m));
}

static void set_all(struct lks_map *m)
{
	m->all = 1;
	m->set = m->bits;
}

static u32 words_fill(u64 *words, u32 from, u32 n, bool value)
{
	u32 changed = 0;

	while (n) {
		u32 shift = from % 64, k = 64 - shift < n ? 64 - shift : n;
		u64 mask = (k == 64 ? ~0ull : (1ull << k) - 1) << shift;
		u64 *w = &words[from / 64], old = *w;

		*w = value ? old | mask : old & ~mask;
		changed += (u32)lks_popcount(old ^ *w);
		from += k;
		n -= k;
	}
	return changed;
}

/* Gives a leaf its words, with what it counts as holding. */
static bool leaf_words(struct lks_vol *v, struct lks_map *m, u32 i)
{
	struct lks_leaf *l = &m->leaves[i];

	if (!l->words) {
		l->words = v->ops->alloc(v->ctx, LKS_META_UNIT);
		if (l->words && l->all)
			words_fill(l->words, 0, (u32)leaf_bits(m, i), true);
		if (l->words)
			l->all = 0;
	}
	return l->words;
}

static void leaf_set(struct lks_vol *v, struct lks_map *m, u32 i, u32 from, u32 n)
{
	struct lks_leaf *l = &m->leaves[i];
	u32 old = l->set;

	if (l->all)
		return;
	if (!leaf_words(v, m, i)) {
		l->all = 1;
		l->set = (u32)leaf_bits(m, i);
	} else {
		l->set += words_fill(l->words, from, n, true);
	}
	if (l->set != old)
		l->unsaved = 1;
	m->set += l->set - old;
}

static void leaf_clear(struct lks_vol *v, struct lks_map *m, u32 i, u32 from, u32 n)
{
	struct lks_leaf *l = &m->leaves[i];
	u32 old = l->set;

	if (!l->set)
		return;
	if (n == leaf_bits(m, i)) {
		leaf_drop(v, l);
	} else {
		if (!leaf_words(v, m, i))
			return;
		l->set -= words_fill(l->words, from, n, false);
		if (!l->set)
			leaf_drop(v, l);
	}
	if (l->set != old)
		l->unsaved = 1;
	m->set -= old - l->set;
}

static void map_range(struct lks_vol *v, struct lks_map *m, u64 first, u64 n,
		      void (*one)(struct lks_vol *, struct lks_map *, u32, u32, u32))
{
	while (n) {
		u32 i = (u32)(first / LKS_LEAF_BITS), from = first % LKS_LEAF_BITS;
		u64 k = leaf_bits(m, i) - from;

		k = k < n ? k : n;
		one(v, m, i, from, (u32)k);
		first += k;
		n -= k;
	}
}

void lks_map_add(struct lks_vol *v, struct lks_map *m, u64 first, u64 n)
{
	if (!n || m->all)
		return;
	if (have_leaves(v, m))
		map_range(v, m, first, n, leaf_set);
	else
		set_all(m);
}

void lks_map_remove(struct lks_vol *v, struct lks_map *m, u64 first, u64 n)
{
	if (m->set && have_leaves(v, m))
		map_range(v, m, first, n, leaf_clear);
}

void lks_map_clear(struct lks_vol *v, struct lks_map *m)
{
	if (!m->set)
		return;
	for (u32 i = 0; i < m->nleaves && m->leaves; i++) {
		if (m->leaves[i].set)
			m->leaves[i].unsaved = 1;
		leaf_drop(v, &m->leaves[i]);
	}
	m->set = m->all = 0;
}

void lks_map_add_chunk(struct lks_vol *v, struct lks_map *m, u64 first, const void *chunk)
{
	const u8 *bytes = chunk;
	u64 n = leaf_bits(m, (u32)(first / LKS_LEAF_BITS)), run = 0;

	for (u64 i = 0; i <= n; i++) {
		if (i < n && bytes[i / 8] >> i % 8 & 1) {
			run++;
		} else if (run) {
			lks_map_add(v, m, first + i - run, run);
			run = 0;
		}
	}
}

void lks_map_get_chunk(const struct lks_map *m, u32 i, void *chunk)
{
	memset(chunk, 0, LKS_META_UNIT);
	if (m->all || (m->leaves && m->leaves[i].all))
		words_fill(chunk, 0, (u32)leaf_bits(m, i), true);
	else if (m->leaves && m->leaves[i].words)
		memcpy(chunk, m->leaves[i].words, LKS_META_UNIT);
}

bool lks_map_leaf_empty(const struct lks_map *m, u32 i)
{
	return !m->all && (!m->leaves || !m->leaves[i].set);
}

void lks_map_or(struct lks_vol *v, struct lks_map *m, const struct lks_map *from)
{
	if (from->all) {
		lks_map_add(v, m, 0, m->bits);
		return;
	}
	for (u32 i = 0; i < from->nleaves && from->leaves; i++) {
		if (from->leaves[i].all)
			lks_map_add(v, m, (u64)i * LKS_LEAF_BITS, leaf_bits(from, i));
		else if (from->leaves[i].words)
			lks_map_add_chunk(v, m, (u64)i * LKS_LEAF_BITS, from->leaves[i].words);
	}
}

void lks_map_grow(struct lks_vol *v, struct lks_map *m, u64 bits, struct lks_leaf *leaves)
{
	u32 old = m->nleaves;

	if (m->leaves && leaves) {
		memcpy(leaves, m->leaves, old * sizeof(*leaves));
		v->ops->free(v->ctx, m->leaves, old * sizeof(*leaves));
		m->leaves = leaves;
	} else if (leaves) {
		v->ops->free(v->ctx, leaves, LKS_DIV_UP(bits, LKS_LEAF_BITS) * sizeof(*leaves));
	}
	m->bits = bits;
	m->nleaves = (u32)LKS_DIV_UP(bits, LKS_LEAF_BITS);
	if (m->all)
		m->set = bits;
	if (!m->leaves || !old || !m->leaves[old - 1].all)
		return;
	m->set += leaf_bits(m, old - 1) - m->leaves[old - 1].set;	/* wholly set: what it has grown by, too */
	m->leaves[old - 1].set = (u32)leaf_bits(m, old - 1);
}

u64 lks_map_next(const struct lks_map *m, u64 from)
{
	if (m->all)
		return from < m->bits ? from : m->bits;
	for (u32 i = (u32)(from / LKS_LEAF_BITS); m->leaves && i < m->nleaves; i++) {
		const struct lks_leaf *l = &m->leaves[i];
		u32 start = from > (u64)i * LKS_LEAF_BITS ? from % LKS_LEAF_BITS : 0;

		if (l->all)
			return (u64)i * LKS_LEAF_BITS + start;
		for (u32 w = start / 64; l->words && w < LKS_LEAF_BITS / 64; w++) {
			u64 bits = l->words[w] & (w == start / 64 ? ~0ull << start % 64 : ~0ull);

			if (bits)
				return (u64)i * LKS_LEAF_BITS + w * 64 + (u32)__builtin_ctzll(bits);
		}
	}
	return m->bits;
}

bool lks_map_test(const struct lks_map *m, u64 bit)
{
	const struct lks_leaf *l;

	if (m->all || !m->leaves)
		return m->all;
	l = &m->leaves[bit / LKS_LEAF_BITS];
	return l->all || (l->words && l->words[bit % LKS_LEAF_BITS / 64] >> bit % 64 & 1);
}

bool lks_map_any(const struct lks_map *m, u64 first, u64 n)
{
	return m->set && lks_map_next(m, first) < first + n;
}
