// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the daemon asks of a serving primary: to hand over to another host, and to hold still.
 *
 * Handover: the primary stops serving, waits until nothing is in flight to anyone, and then itself asks for the term of its
 * heir (M1); so nobody has to wait for a promise. Only the next version says what has become of that; until then it does
 * not serve (M2), for the heir may.
 *
 * Hold: writes wait in the queue, those begun end; then every member holds the same. Members' snapshots taken from then
 * until the end of the hold are of one point in the order of writes. A primary that has been replaced does not know; so the
 * hold counts only if at its end every member's promise stands (Q1): a member that had turned to another primary meanwhile
 * would have ended its session here, and given no promise since.
 */
#include "internal.h"

/* Nothing is in flight to anyone that could still change a block. */
static bool drained(const struct lks_vol *v)
{
	return lks_list_empty(&v->heating) && lks_list_empty(&v->writes);
}

/* ---- planned handover ---- */

int lks_vol_hand_over(struct lks_vol *v, u8 to, u64 now_ms)
{
	const struct lks_record_replica *r;

	if (v->role == LKS_DRAINING && v->heir == to)
		return 0;
	if (v->role != LKS_ACTIVE)
		return -ESTALE;
	r = lks_replica_of(&v->cfg, to);
	if (!r || r->state != LKS_REPLICA_INSYNC || !(v->ackset & ~v->lost & LKS_BIT(to)))
		return -EINVAL;		/* one recorded as suspect would not take it (S4) */
	if (v->hold)
		return -EBUSY;
	lks_enter(v, now_ms);
	v->heir = to;
	if (LKS_ON(M1))
		v->role = LKS_DRAINING;
	lks_event(v, LKS_EV_STATE, 0);
	lks_todo(v, LKS_DO_PUMP);
	lks_run(v);
	return 0;
}

void lks_handover_tick(struct lks_vol *v)
{
	if (v->lost || (LKS_ON(M1) && (v->role != LKS_DRAINING || !drained(v) || !lks_list_empty(&v->flushes))))
		return;
	lks_tell_stable(v);	/* so that the heir finds nothing to rewrite (R1) */
	lks_propose(v, lks_insync(&v->cfg), v->heir);
	if (!LKS_ON(M2))
		v->role = LKS_ACTIVE;
}

/* ---- hold ---- */

static void hold_event(struct lks_vol *v, enum lks_event event)
{
	struct lks_event_info info = { .event = event, .hold = v->hold };

	v->ops->event(v->ctx, &info);
}

int lks_vol_quiesce(struct lks_vol *v, u64 hold, u32 timeout_ms, u64 now_ms)
{
	if (v->role != LKS_ACTIVE)
		return -ESTALE;
	if (!hold || (v->hold && v->hold != hold))
		return hold ? -EBUSY : -EINVAL;
	if (hold <= v->hold_ended)	/* renewed too late: there were writes since */
		return -ESTALE;
	lks_enter(v, now_ms);
	if (!v->hold)
		lks_event(v, LKS_EV_STATE, 0);
	v->hold = hold;
	v->hold_until_ms = v->now + timeout_ms;
	v->hold_told = false;
	lks_todo(v, LKS_DO_PUMP);
	lks_run(v);
	return 0;
}

int lks_vol_resume(struct lks_vol *v, u64 hold, u64 now_ms)
{
	bool unbroken = v->hold_told;

	if (!hold || v->hold != hold)
		return -ESTALE;
	lks_enter(v, now_ms);
	if (LKS_ON(Q1))
		unbroken = unbroken && lks_may_read(v);
	v->hold_ended = hold;
	v->hold = 0;
	lks_event(v, LKS_EV_STATE, 0);
	lks_todo(v, LKS_DO_PUMP | LKS_DO_SYNC);
	lks_run(v);
	return unbroken ? 0 : -ESTALE;
}

/* It ends by itself: too late, or this host serves no more. */
void lks_hold_end(struct lks_vol *v)
{
	if (!v->hold)
		return;
	hold_event(v, LKS_EV_UNQUIESCED);
	v->hold_ended = v->hold;
	v->hold = 0;
	lks_todo(v, LKS_DO_PUMP | LKS_DO_SYNC);
}

/* ---- both ---- */

void lks_admin_step(struct lks_vol *v)
{
	if (v->heir)
		lks_handover_tick(v);
	if (v->hold && !v->hold_told && drained(v)) {
		v->hold_told = true;
		hold_event(v, LKS_EV_QUIESCED);
	}
}

void lks_admin_tick(struct lks_vol *v)
{
	if (v->hold && v->now >= v->hold_until_ms)
		lks_hold_end(v);
}
