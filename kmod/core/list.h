/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Circular doubly linked lists, usable from C in both worlds and from C++. An unlinked item points to itself. */
#ifndef LKS_CORE_LIST_H
#define LKS_CORE_LIST_H

#include "port.h"

struct lks_list {
	struct lks_list *next, *prev;
};

static inline void lks_list_init(struct lks_list *l)
{
	l->next = l->prev = l;
}

static inline bool lks_list_empty(const struct lks_list *l)
{
	return l->next == l;
}

static inline void lks_list_del(struct lks_list *item)
{
	item->prev->next = item->next;
	item->next->prev = item->prev;
	lks_list_init(item);
}

static inline void lks_list_insert(struct lks_list *item, struct lks_list *before)
{
	item->next = before;
	item->prev = before->prev;
	before->prev->next = item;
	before->prev = item;
}

/* item is in no list */
static inline void lks_list_add_tail(struct lks_list *item, struct lks_list *head)
{
	lks_list_insert(item, head);
}

static inline void lks_list_move_tail(struct lks_list *item, struct lks_list *head)
{
	lks_list_del(item);
	lks_list_add_tail(item, head);
}

/* All of from goes to the end of to, in order; from is empty then. */
static inline void lks_list_splice_tail(struct lks_list *from, struct lks_list *to)
{
	if (lks_list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	lks_list_init(from);
}

#define lks_list_entry(item, type, member) lks_container(item, type, member)
#define lks_list_first(head, type, member) lks_list_entry((head)->next, type, member)
#define lks_list_for_each(pos, head) for ((pos) = (head)->next; (pos) != (head); (pos) = (pos)->next)
/* pos may be deleted in the body */
#define lks_list_for_each_safe(pos, tmp, head) \
	for ((pos) = (head)->next, (tmp) = (pos)->next; (pos) != (head); (pos) = (tmp), (tmp) = (pos)->next)

#endif
