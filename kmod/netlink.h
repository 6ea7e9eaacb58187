/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The generic netlink family. */
#ifndef LKS_NETLINK_H
#define LKS_NETLINK_H

struct genl_family;

extern struct genl_family lks_netlink_family;

int lks_netlink_init(void);
void lks_netlink_exit(void);

#endif
