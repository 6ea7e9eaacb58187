// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A lane: a connected stream socket from the daemon, with a thread for each direction. See host.h.
 *
 * The socket may carry what pages are written out through, so neither it nor its threads may wait for pages to be
 * written out: GFP_NOIO, no per-task page fragment, and the right to the emergency reserves for what it receives.
 */
#include <linux/file.h>
#include <linux/kthread.h>
#include "compat/net.h"
#include "host.h"
#include "volume.h"

#ifdef CONFIG_DEBUG_LOCK_ALLOC
/*
 * To lockdep the lock of one socket is that of any other, and programs' sockets wait for memory while they are locked. Whoever frees
 * memory by writing to a volume locks a lane's socket. That would be a deadlock if lanes' sockets waited for memory, so they are
 * told apart: then lockdep sees that they do not, or says where they do.
 */
static void tell_apart(struct sock *sk)
{
	static struct lock_class_key keys[2], spin_keys[2];
	bool v6 = sk->sk_family == AF_INET6;

	if (!sock_allow_reclassification(sk))
		return;
	if (v6)
		sock_lock_init_class_and_name(sk, "slock-AF_INET6-lockstep", &spin_keys[1], "sk_lock-AF_INET6-lockstep", &keys[1]);
	else
		sock_lock_init_class_and_name(sk, "slock-AF_INET-lockstep", &spin_keys[0], "sk_lock-AF_INET-lockstep", &keys[0]);
}
#else
static void tell_apart(struct sock *sk) { }
#endif

static void prepare(struct socket *sock)
{
	struct sock *sk = sock->sk;

	sk->sk_allocation = GFP_NOIO;
	lks_no_task_frag(sk);
	sk_set_memalloc(sk);
	if (sk->sk_protocol == IPPROTO_TCP && (sk->sk_family == AF_INET || sk->sk_family == AF_INET6)) {
		tell_apart(sk);
		tcp_sock_set_nodelay(sk);
		tcp_sock_set_user_timeout(sk, LKS_SILENT_TCP_MS);
		sock_set_keepalive(sk);
		tcp_sock_set_keepidle(sk, LKS_KEEPALIVE_IDLE_S);
		tcp_sock_set_keepintvl(sk, LKS_KEEPALIVE_INTERVAL_S);
		tcp_sock_set_keepcnt(sk, LKS_KEEPALIVE_PROBES);
	}
}

static struct task_struct *start(struct lks_lane *lane, int (*thread)(void *), const char *what)
{
	struct task_struct *task;

	task = kthread_create(thread, lane, "lockstep_%s%u.%u", what, lane->link->peer->host, lane->index);
	if (!IS_ERR(task))
		get_task_struct(task);
	return task;
}

static void stop(struct task_struct *task)
{
	kthread_stop(task);
	put_task_struct(task);
}

int lks_lane_add(struct lks_lane *lane, struct socket *sock)
{
	lane->sender = start(lane, lks_send_thread, "tx");
	if (IS_ERR(lane->sender))
		return PTR_ERR(lane->sender);
	lane->receiver = start(lane, lks_receive_thread, "rx");
	if (IS_ERR(lane->receiver)) {
		stop(lane->sender);
		return PTR_ERR(lane->receiver);
	}
	prepare(sock);
	lane->sock = sock;
	wake_up_process(lane->sender);
	wake_up_process(lane->receiver);
	return 0;
}

void lks_lane_shutdown(struct lks_lane *lane)
{
	if (lane->sock)
		kernel_sock_shutdown(lane->sock, SHUT_RDWR);
}

void lks_lane_remove(struct lks_lane *lane)
{
	struct socket *sock = lane->sock;

	if (!sock)
		return;
	stop(lane->sender);
	stop(lane->receiver);
	lks_send_end(lane);
	spin_lock_bh(&lane->link->peer->lock);
	lane->sock = NULL;
	spin_unlock_bh(&lane->link->peer->lock);
	sk_clear_memalloc(sock->sk);
	sockfd_put(sock);
}

void lks_lane_failed(struct lks_lane *lane, const char *reason)
{
	lks_host_break(lane->link->peer->host, lane->link->number, reason, false);
}

bool lks_lane_wait_up(struct lks_lane *lane)
{
	wait_event_idle(lane->wait, READ_ONCE(lane->link->state) != LKS_LINK_BUILDING || kthread_should_stop());
	return READ_ONCE(lane->link->state) == LKS_LINK_UP && !kthread_should_stop();
}
