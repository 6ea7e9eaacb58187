/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is going on, for people: debugfs.c. */
#ifndef LKS_DEBUGFS_H
#define LKS_DEBUGFS_H

#include "volume.h"

void lks_debugfs_add(struct lks_volume *v);
/* Returns when nobody reads v's files any more. No lock is held that they take. */
void lks_debugfs_del(struct lks_volume *v);

void lks_debugfs_init(void);
void lks_debugfs_exit(void);

#endif
