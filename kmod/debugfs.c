// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What is going on, for people, below lockstep/ in debugfs:
 *
 *	lanes			links and lanes: socket memory, what is queued, when something last came and went
 *	volumes/NAME/requests	requests of this host's openers that have not ended, the oldest first
 *	volumes/NAME/openers	who has the device open, and who opened it when
 *	volumes/NAME/replica	role, extents, dirty blocks of the peers, memory
 *
 * Nothing here is an interface for programs: it changes with the code.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>
#include "backing.h"
#include "compat/net.h"
#include "debugfs.h"
#include "device.h"
#include "host.h"

#define REQUESTS_SHOWN 64

static struct dentry *top, *volumes;

static const char *const op_names[] = { "?", "read", "write", "flush", "zeroes", "discard", "open" };
static const char *const role_names[] = { "idle", "activating", "serving", "draining" };
static const char *const sync_names[] = { "member", "away", "syncing", "joining", "lost" };
static const char *const link_names[] = { "building", "up", "closing" };

#define NAME_OF(names, i) ((i) < ARRAY_SIZE(names) ? names[i] : "?")

static int requests_show(struct seq_file *m, void *unused)
{
	struct lks_volume *v = m->private;
	unsigned int shown = 0, rest = 0;
	struct lks_bio *r;

	lks_volume_lock(v);
	list_for_each_entry(r, &v->requests, link) {
		if (shown == REQUESTS_SHOWN) {
			rest++;
			continue;
		}
		shown++;
		seq_printf(m, "%llu ms %s offset=%llu length=%u flags=%#x session=%llu term=%llu",
			   v->now_ms - r->req.submitted_ms, NAME_OF(op_names, r->req.op), r->req.offset, r->req.length,
			   r->req.flags, r->req.session, r->req.sent_term);
		if (r->req.sent_to)
			seq_printf(m, " sent to host %u\n", r->req.sent_to);
		else
			seq_puts(m, " waiting for a primary\n");
	}
	seq_printf(m, "%u more; %ld bytes of data\n", rest, atomic_long_read(&v->request_bytes));
	lks_volume_release(v);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(requests);

static int openers_show(struct seq_file *m, void *unused)
{
	struct lks_volume *v = m->private;
	struct lks_opener *o;

	lks_volume_lock(v);
	list_for_each_entry(o, &v->opens, link)
		seq_printf(m, "%s pid=%d command=%s for %llu s\n", o->writes ? "writer" : "reader", o->pid, o->command,
			   (v->now_ms - o->since_ms) / 1000);
	seq_printf(m, "%u openers, %u writers, %u waiting%s\n", v->openers, v->writers, v->open_waiters,
		   v->fenced ? ", taken over by another host" : "");
	lks_volume_release(v);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(openers);

static int replica_show(struct seq_file *m, void *unused)
{
	struct lks_volume *v = m->private;
	struct lks_vol_status s;
	unsigned int i;

	lks_volume_lock(v);
	lks_vol_status(v->core, v->now_ms, &s);
	seq_printf(m, "role: %s\nversion: %llu term: %llu noted: %llu session: %llu\n", NAME_OF(role_names, s.role), s.version,
		   s.term, s.noted_version, s.session);
	seq_printf(m, "memory: %zu bytes\n", v->allocated);
	if (v->backing)
		seq_printf(m, "disk: %s metadata=%llu sector=%u%s\n", v->backing->path, lks_volume_meta_offset(v, &s),
			   v->backing->sector, v->backing->thin ? " thin" : "");
	seq_printf(m, "attached: %u admitted: %u suspect: %u failed: %u\n", s.attached, s.admitted, s.suspect, s.failed);
	seq_printf(m, "extents: %u hot, %u written, of %llu\n", s.hot_extents, s.written_extents,
		   DIV_ROUND_UP_ULL(v->size, LKS_EXTENT_BYTES));
	seq_printf(m, "flushes that asked nobody: %u\n", s.spared_flushes);
	for (i = 0; i < s.npeers; i++)
		seq_printf(m, "host %u: %s, %s, %llu dirty blocks of %u bytes\n", s.peers[i].host,
			   NAME_OF(sync_names, s.peers[i].sync_state), s.peers[i].linked ? "linked" : "no link",
			   s.peers[i].dirty_blocks, v->block_size);
	lks_volume_release(v);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(replica);

static int lanes_show(struct seq_file *m, void *unused)
{
	unsigned int host, i;

	for (host = 1; host <= LKS_MAX_HOSTS; host++) {
		struct lks_host *peer = lks_host_of(host);
		struct lks_link *link;

		spin_lock_bh(&peer->lock);
		link = peer->link;
		if (link)
			seq_printf(m, "host %u: link %llu %s, %u of %u lanes\n", host, link->number,
				   NAME_OF(link_names, link->state), link->nready, link->nlanes);
		for (i = 0; link && i < link->nlanes; i++) {
			struct lks_lane *lane = &link->lanes[i];

			seq_printf(m, "  lane %u: queued=%llu bytes, sent=%llu received=%llu frames, sent=%llu bytes, left=%llu", i,
				   lane->queued_bytes, lane->sent, lane->received, lane->sent_bytes, lane->left);
			if (lane->sock)
				seq_printf(m, " socket send=%d receive=%d", READ_ONCE(lane->sock->sk->sk_wmem_queued),
					   atomic_read(&lane->sock->sk->sk_rmem_alloc));
			seq_putc(m, '\n');
		}
		spin_unlock_bh(&peer->lock);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(lanes);

void lks_debugfs_add(struct lks_volume *v)
{
	v->debugfs = debugfs_create_dir(v->name, volumes);
	debugfs_create_file("requests", 0400, v->debugfs, v, &requests_fops);
	debugfs_create_file("openers", 0400, v->debugfs, v, &openers_fops);
	debugfs_create_file("replica", 0400, v->debugfs, v, &replica_fops);
}

void lks_debugfs_del(struct lks_volume *v)
{
	debugfs_remove_recursive(v->debugfs);
}

void lks_debugfs_init(void)
{
	top = debugfs_create_dir("lockstep", NULL);
	volumes = debugfs_create_dir("volumes", top);
	debugfs_create_file("lanes", 0400, top, NULL, &lanes_fops);
}

void lks_debugfs_exit(void)
{
	debugfs_remove_recursive(top);
}
