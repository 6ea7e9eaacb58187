/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sockets and generic netlink, for kernels older than the newest; see compat.h. */
#ifndef LKS_COMPAT_NET_H
#define LKS_COMPAT_NET_H

#include <linux/bvec.h>
#include <linux/net.h>
#include <linux/socket.h>
#include <linux/tcp.h>
#include <linux/uio.h>
#include <net/genetlink.h>
#include <net/sock.h>

/* ---- sockets ---- */

#ifndef LKS_HAVE_iter_dest
#define ITER_SOURCE WRITE
#define ITER_DEST READ
#endif

#ifndef LKS_HAVE_iter_discard	/* the direction says the kind of iterator, too: without it, a BUG() */
#define iov_iter_kvec(iter, direction, ...) iov_iter_kvec(iter, ITER_KVEC | (direction), __VA_ARGS__)
#define iov_iter_bvec(iter, direction, ...) iov_iter_bvec(iter, ITER_BVEC | (direction), __VA_ARGS__)
#endif

#ifndef LKS_HAVE_tcp_sock_set
static inline void lks_set_option(struct sock *sk, int level, int option, int value)
{
	kernel_setsockopt(sk->sk_socket, level, option, (char *)&value, sizeof(value));
}
#define tcp_sock_set_nodelay(sk) lks_set_option(sk, IPPROTO_TCP, TCP_NODELAY, 1)
#define tcp_sock_set_user_timeout(sk, ms) lks_set_option(sk, IPPROTO_TCP, TCP_USER_TIMEOUT, ms)
#define sock_set_keepalive(sk) lks_set_option(sk, SOL_SOCKET, SO_KEEPALIVE, 1)
#define tcp_sock_set_keepidle(sk, s) lks_set_option(sk, IPPROTO_TCP, TCP_KEEPIDLE, s)
#define tcp_sock_set_keepintvl(sk, s) lks_set_option(sk, IPPROTO_TCP, TCP_KEEPINTVL, s)
#define tcp_sock_set_keepcnt(sk, n) lks_set_option(sk, IPPROTO_TCP, TCP_KEEPCNT, n)
#endif

/* false: a sender uses the fragment of its task. Our senders are threads of our own, who have no other use for it. */
static inline void lks_no_task_frag(struct sock *sk)
{
#ifdef LKS_HAVE_use_task_frag
	sk->sk_use_task_frag = false;
#endif
}

/*
 * Sends `bytes` of these pages, from byte `skip` on, without copying them: the socket takes references, and drops them
 * when it needs the bytes no more, which can be long after this call. Bytes sent, which may be less, or an error. May
 * sleep.
 */
static inline int lks_send_pages(struct socket *sock, struct bio_vec *vecs, unsigned int nvecs, size_t skip, size_t bytes,
				 unsigned int flags)
{
#ifdef LKS_HAVE_sendpage
	size_t sent = 0;

	for (; nvecs && sent < bytes; vecs++, nvecs--) {
		size_t left, at = skip;
		int n;

		if (skip >= vecs->bv_len) {
			skip -= vecs->bv_len;
			continue;
		}
		skip = 0;
		for (left = min_t(size_t, vecs->bv_len - at, bytes - sent); left; left -= n, at += n, sent += n) {
			unsigned int more = sent + left < bytes ? MSG_MORE | MSG_SENDPAGE_NOTLAST : 0;

			n = kernel_sendpage(sock, vecs->bv_page, vecs->bv_offset + at, left, flags | more);
			if (n <= 0)
				return sent ? (int)sent : n;
		}
	}
	return sent;
#else
	struct msghdr msg = { .msg_flags = flags | MSG_SPLICE_PAGES };

	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, vecs, nvecs, skip + bytes);
	iov_iter_advance(&msg.msg_iter, skip);
	return sock_sendmsg(sock, &msg);
#endif
}

/*
 *  May a task that submits a bio send on our sockets? Before 5.4 a socket that may wait for memory uses the task's page
 * fragment, which the task may be in the middle of using for another socket: it frees memory for that, by writing a page
 * through us.
 */
#ifdef LKS_HAVE_tcp_sock_set
#define LKS_SEND_INLINE true
#else
#define LKS_SEND_INLINE false
#endif

/* The kind of TLS record that bytes came in; a socket without kTLS has only data. */
#define LKS_TLS_ALERT 21
#define LKS_TLS_DATA 23

#ifdef LKS_HAVE_msg_control
#include <uapi/linux/tls.h>

struct lks_tls_control {
	struct cmsghdr header;
	u8 type;
} __aligned(8);

/* Before each sock_recvmsg() */
static inline void lks_tls_ask(struct msghdr *msg, struct lks_tls_control *control)
{
	memset(control, 0, sizeof(*control));
	msg->msg_control = control;
	msg->msg_controllen = sizeof(*control);
	msg->msg_control_is_user = false;
}

/* ... and after it */
static inline u8 lks_tls_type(const struct msghdr *msg, const struct lks_tls_control *control)
{
	if (msg->msg_controllen == sizeof(*control) || control->header.cmsg_level != SOL_TLS ||
	    control->header.cmsg_type != TLS_GET_RECORD_TYPE)
		return LKS_TLS_DATA;
	return *(const u8 *)CMSG_DATA(&control->header);
}
#else
struct lks_tls_control { };
static inline void lks_tls_ask(struct msghdr *msg, struct lks_tls_control *control) { }
static inline u8 lks_tls_type(const struct msghdr *msg, const struct lks_tls_control *control) { return LKS_TLS_DATA; }
#endif

/* ---- generic netlink ---- */

#ifndef LKS_HAVE_genl_small_ops
#define genl_small_ops genl_ops
#define small_ops ops
#define n_small_ops n_ops
#endif

/* The policy of a command, or of the family. */
#ifdef LKS_HAVE_genl_family_policy
#define LKS_COMMAND_POLICY(p)
#define LKS_FAMILY_POLICY(p) .policy = (p),
#else
#define LKS_COMMAND_POLICY(p) .policy = (p),
#define LKS_FAMILY_POLICY(p)
#endif

#ifndef LKS_HAVE_genl_info_dump
#ifdef LKS_HAVE_genl_dumpit_info
#define genl_info_dump genl_dumpit_info
#endif
#endif

/* One attribute of a dump request, a u32; NULL if it is not there. */
static inline struct nlattr *lks_dump_u32(struct netlink_callback *cb, int attr)
{
#if defined(LKS_HAVE_genl_info_dump) || defined(LKS_HAVE_genl_dumpit_info)
	struct nlattr **attrs = genl_info_dump(cb)->attrs;

	return attrs ? attrs[attr] : NULL;
#else
	struct nlattr *found = nlmsg_find_attr(cb->nlh, GENL_HDRLEN, attr);

	return found && nla_len(found) >= (int)sizeof(u32) ? found : NULL;	/* nobody has held it to the policy */
#endif
}

#ifndef LKS_HAVE_genl_req_attr
#define GENL_REQ_ATTR_CHECK(info, attr) (!(info)->attrs[attr])
#endif

#ifdef LKS_HAVE_genl_mcast_cap
#define LKS_MCAST_FLAGS .flags = GENL_MCAST_CAP_NET_ADMIN
#else
#define LKS_MCAST_FLAGS			/* whoever has reached the initial network namespace may listen */
#endif

/* Room for the state of a dump: at least six longs, zero at its start. */
static inline void *lks_dump_state(struct netlink_callback *cb)
{
#ifdef LKS_HAVE_netlink_ctx
	return cb->ctx;
#else
	return cb->args;
#endif
}
#define LKS_DUMP_STATE_BYTES (6 * sizeof(long))

#endif
