/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the core needs of its world, in the kernel and in user space: fixed-width types, memcpy and friends, error
 * numbers, crc32c. Nothing else: no allocator, no clock, no lock, no I/O.
 */
#ifndef LKS_CORE_PORT_H
#define LKS_CORE_PORT_H

#ifdef __KERNEL__

#include <linux/types.h>
#include <linux/string.h>
#include <linux/errno.h>
#include <linux/crc32c.h>
#include <linux/bug.h>
#include <linux/stddef.h>
#include <linux/build_bug.h>
#include <linux/bitops.h>

#define lks_popcount(x) hweight64(x)

#define lks_assert(cond) WARN_ON_ONCE(!(cond))

static inline u32 lks_crc32c(u32 seed, const void *data, size_t bytes)
{
	return ~crc32c(~seed, data, bytes);
}

#else

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define lks_popcount(x) __builtin_popcountll(x)

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

#ifdef __cplusplus
#define static_assert_c(cond) static_assert(cond, #cond)
#else
#define static_assert_c(cond) _Static_assert(cond, #cond)
#endif

/* As in the kernel, true if the condition is broken; in user space it does not get that far. */
#define lks_assert(cond) (assert(cond), 0)

#ifdef __cplusplus
extern "C" {
#endif
/* CRC-32C (Castagnoli) as iSCSI computes it; seed 0 to begin, or an earlier result to go on. */
u32 lks_crc32c(u32 seed, const void *data, size_t bytes);
#ifdef __cplusplus
}
#endif

#endif

#ifdef __KERNEL__
#define static_assert_c(cond) static_assert(cond)
#endif

#define lks_container(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define LKS_DIV_UP(n, d) (((n) + (d) - 1) / (d))
#define LKS_ROUND_UP(n, d) (LKS_DIV_UP(n, d) * (d))

#endif
