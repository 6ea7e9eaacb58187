// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * How fast resync reads: what the applications leave.
 *
 * The primary looks at its clients' reads and writes, tick by tick. While they take no longer than a target, resync becomes
 * faster, quickly if there are none; when they take longer and resync has read something, it drops to half of what it did.
 * It begins at the floor, which it always gets, so that it ends; it never exceeds the ceiling, if there is one. Volumes that resync
 * at the same time share one floor: a hundred of them would leave nothing to the applications.
 */
#include "internal.h"

#define TARGET_MS 50u			/* defaults */
#define FLOOR_KIB (16u << 10)
#define LEAST_KIB 64u			/* of a floor */
#define FASTEST_KIB (4u << 20)		/* beyond that there is no pace, 0 */

static u64 floor_kib(const struct lks_vol *v)
{
	u64 kib = v->tune.sync_floor_kib ? v->tune.sync_floor_kib : FLOOR_KIB;

	if (v->crowd > 1)
		kib /= v->crowd;
	return kib > LEAST_KIB ? kib : LEAST_KIB;
}

/* KiB a second that resync may read now; 0: as much as it can. The ceiling is below the floor if it is told so. */
static u64 rate_kib(const struct lks_vol *v)
{
	u64 most = v->tune.sync_rate_kib;

	if (!most || (v->pace_kib && v->pace_kib < most))
		return v->pace_kib;
	return most;
}

/* What resync did not use of one tick it may use in the next, no more; so it goes on evenly whatever the size of a copy. */
bool lks_pace_allows(const struct lks_vol *v)
{
	return !rate_kib(v) || v->sync_us <= v->now * 1000;
}

void lks_pace_copied(struct lks_vol *v, u32 bytes)
{
	u64 earliest = (v->now > LKS_TICK_MS ? v->now - LKS_TICK_MS : 0) * 1000;

	v->pace_bytes += bytes;
	if (!rate_kib(v))
		return;
	if (v->sync_us < earliest)
		v->sync_us = earliest;
	v->sync_us += (u64)bytes * 1000000 / 1024 / rate_kib(v);
}

static bool of_application(const struct lks_work *w)
{
	return w->kind == LKS_WORK_READ || w->kind == LKS_WORK_WRITE;
}

void lks_pace_answered(struct lks_vol *v, const struct lks_work *w)
{
	if (!of_application(w))
		return;
	v->pace_requests++;
	v->pace_ms += v->now - w->began_ms;
}

void lks_pace_begin(struct lks_vol *v)
{
	v->pace_kib = floor_kib(v);
	v->pace_since_ms = v->now;
	v->pace_bytes = v->pace_requests = v->pace_ms = 0;
}

/* Since when the request waits that has waited longest, about; now if none does. The lists are in order of begin, nearly. */
static u64 waiting_since(const struct lks_vol *v)
{
	const struct lks_list *lists[] = { &v->queue, &v->heating, &v->writes, &v->reads };
	u64 since = v->now;

	for (u32 i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
		const struct lks_work *w;

		if (lks_list_empty(lists[i]))
			continue;
		w = lks_list_first(lists[i], struct lks_work, link);
		if (of_application(w) && !w->done && w->began_ms < since)
			since = w->began_ms;
	}
	return since;
}

void lks_pace_tick(struct lks_vol *v)
{
	u64 target = v->tune.sync_target_ms ? v->tune.sync_target_ms : TARGET_MS;
	u64 waited = v->now - waiting_since(v), elapsed = v->now - v->pace_since_ms, did;
	bool idle = !v->pace_requests && !waited;

	if (!v->syncing || !elapsed)
		return;
	did = v->pace_bytes * 1000 / 1024 / elapsed;
	if (waited > target || v->pace_ms > target * v->pace_requests) {
		if (v->pace_bytes && (!v->pace_kib || did < v->pace_kib))
			v->pace_kib = did;
		if (v->pace_bytes)
			v->pace_kib /= 2;
		if (v->pace_kib < floor_kib(v) && v->pace_bytes)
			v->pace_kib = floor_kib(v);
	} else if (v->pace_kib) {
		v->pace_kib += idle ? v->pace_kib : v->pace_kib / 4 + 1;
		if (v->pace_kib > FASTEST_KIB)
			v->pace_kib = 0;
	}
	v->pace_since_ms = v->now;
	v->pace_bytes = v->pace_requests = v->pace_ms = 0;
}
