// SPDX-License-Identifier: GPL-2.0-or-later
/* What core.h promises and the core does not do yet: refused. Goes with the last of it. */
#include "core/core.h"

__weak int lks_vol_hand_over(struct lks_vol *v, u8 to, u64 now_ms) { return -EOPNOTSUPP; }
__weak int lks_vol_quiesce(struct lks_vol *v, u64 hold, u32 timeout_ms, u64 now_ms) { return -EOPNOTSUPP; }
__weak int lks_vol_resume(struct lks_vol *v, u64 hold, u64 now_ms) { return -EOPNOTSUPP; }
__weak int lks_vol_meta_move(struct lks_vol *v, u64 offset, u64 size, u64 now_ms) { return -EOPNOTSUPP; }
__weak int lks_vol_meta_moved(struct lks_vol *v, u64 offset, u64 now_ms) { return -EOPNOTSUPP; }
__weak int lks_vol_resize(struct lks_vol *v, u64 size, u64 now_ms) { return -EOPNOTSUPP; }
__weak int lks_vol_verify(struct lks_vol *v, bool start, bool repair, u64 now_ms) { return -EOPNOTSUPP; }
__weak void lks_vol_tune(struct lks_vol *v, const struct lks_vol_tune *t, u64 now_ms) { }
