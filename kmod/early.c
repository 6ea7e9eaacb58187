// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Frames that come for a volume while it is being attached. The attach has the core to itself and may wait for a disk that
 * never answers; the lane they came by is every volume's, the leases' too. So they are kept, each lane's in their order (C2), and
 * given to the core before anything else when the attach has ended, whether well or not.
 *
 * They are few: replies to what was asked before the attach, and what is told to all hosts. More than EARLY_BYTES of them
 * hold the lane up after all.
 */
#include <linux/slab.h>
#include "buf.h"
#include "host.h"
#include "volume.h"

#define EARLY_BYTES (16u << 20)

struct early {
	struct list_head link;
	u64 number;		/* of the link it came by */
	u8 host;
	struct lks_frame h;
	struct lks_buf *buf;	/* a reference, or NULL: then h.length bytes follow */
	u8 bytes[];
};

bool lks_early_keep(struct lks_volume *v, u8 host, u64 number, const struct lks_frame *h, struct lks_buf *buf, const void *bytes)
{
	size_t inlined = buf ? 0 : h->length;
	struct early *e;

	if (v->early_bytes + sizeof(*e) + h->length > EARLY_BYTES)
		return false;
	e = kmalloc(struct_size(e, bytes, inlined), lks_gfp());
	if (!e)
		return false;
	e->number = number;
	e->host = host;
	e->h = *h;
	e->buf = buf;
	if (buf)
		lks_buf_get(buf);
	else if (inlined)
		memcpy(e->bytes, bytes, inlined);
	list_add_tail(&e->link, &v->early);
	v->early_bytes += sizeof(*e) + h->length;
	return true;
}

void lks_early_deliver(struct lks_volume *v)
{
	struct early *e, *next;

	list_for_each_entry_safe(e, next, &v->early, link) {
		int err = lks_volume_deliver(v, e->host, e->number, &e->h, e->buf, e->bytes);

		if (err)
			lks_host_break(e->host, e->number, "the peer sent a wrong frame", false);
		if (e->buf)
			lks_buf_put(e->buf);
		kfree(e);
	}
	INIT_LIST_HEAD(&v->early);
	v->early_bytes = 0;
}
