// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The lab's hand inside a host: runs commands that arrive on a virtio-serial port and streams back what they print.
 *
 * Usage: agent PORT. Frames in both directions, little-endian: { u32 length; u32 id; u32 type; } then `length` bytes.
 * The lab chooses the id of a command; any number of commands run at once.
 *
 *   to the agent   RUN     the command, for `sh -c`, in a process group of its own
 *                  STDIN   data for its standard input; empty: end of input. At most WINDOW bytes not yet TAKEN
 *                  SIGNAL  u32, to the whole process group
 *   to the lab     HELLO   id 0: the agent is there (the random id of this boot)
 *                  STDOUT, STDERR   data
 *                  TAKEN   u32: so many bytes of input have been handed to the command
 *                  EXIT    u32: wait status, after all that the command itself printed. What its background children
 *                          print later goes nowhere
 *
 * One thread, one poll loop. Writing to the port blocks; the lab always reads.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RUN = 1, STDIN = 2, SIGNAL = 3, HELLO = 16, STDOUT = 17, STDERR = 18, TAKEN = 19, EXIT = 20 };
enum { MAX_COMMANDS = 64, WINDOW = 256 << 10, MAX_PAYLOAD = 1 << 20, CHUNK = 32 << 10 };

struct header {
	uint32_t length, id, type;
};

struct command {
	uint32_t id; /* 0: slot is free */
	pid_t pid;
	int in, out, err; /* -1: closed */
	int eof;	  /* close `in` once the queue is empty */
	char *queue;
	size_t queued;
};

static struct command commands[MAX_COMMANDS];
static int port, children;

static void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static void write_all(const void *data, size_t length)
{
	const char *p = data;

	while (length) {
		ssize_t n = write(port, p, length);

		if (n < 0 && errno != EINTR && errno != EAGAIN)
			die("agent: writing to the port: %s", strerror(errno));
		if (n > 0) {
			p += n;
			length -= n;
		} else {
			struct pollfd wait = { .fd = port, .events = POLLOUT };

			poll(&wait, 1, 100);
		}
	}
}

static void send_frame(uint32_t id, uint32_t type, const void *data, uint32_t length)
{
	static char frame[sizeof(struct header) + CHUNK];
	struct header h = { htole32(length), htole32(id), htole32(type) };

	if (length > CHUNK)
		die("agent: a frame of %u bytes", length);
	memcpy(frame, &h, sizeof(h));
	memcpy(frame + sizeof(h), data, length);
	write_all(frame, sizeof(h) + length);
}

static void send_u32(uint32_t id, uint32_t type, uint32_t value)
{
	value = htole32(value);
	send_frame(id, type, &value, sizeof(value));
}

static void hello(void)
{
	char id[64];
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, id, sizeof(id));

	send_frame(0, HELLO, id, n > 0 ? n : 0);
	close(fd);
}

static struct command *find(uint32_t id)
{
	for (int i = 0; i < MAX_COMMANDS; i++)
		if (commands[i].id == id)
			return &commands[i];
	return NULL;
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void refuse(uint32_t id, const char *why)
{
	send_frame(id, STDERR, why, strlen(why));
	send_u32(id, EXIT, 126 << 8);
}

static void start(uint32_t id, const char *text)
{
	struct command *c = find(0);
	int in[2], out[2], err[2];

	if (!id || find(id))
		return refuse(id, "agent: this id is taken\n");
	if (!c)
		return refuse(id, "agent: too many commands at once\n");
	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		die("agent: pipe: %s", strerror(errno));
	c->pid = fork();
	if (c->pid < 0)
		die("agent: fork: %s", strerror(errno));
	if (!c->pid) {
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		signal(SIGPIPE, SIG_DFL);
		setsid();
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		execl("/bin/sh", "sh", "-c", text, NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	close(err[1]);
	fcntl(in[1], F_SETFL, O_NONBLOCK);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	c->id = id;
	c->in = in[1];
	c->out = out[0];
	c->err = err[0];
	c->eof = 0;
	c->queue = NULL;
	c->queued = 0;
}

/* Hands queued input to the command, as much as its pipe takes now. */
static void feed(struct command *c)
{
	while (c->queued && c->in >= 0) {
		ssize_t n = write(c->in, c->queue, c->queued);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) { /* the command does not want more: drop it, as a shell pipeline would */
			n = c->queued;
			shut(&c->in);
		}
		memmove(c->queue, c->queue + n, c->queued - n);
		c->queued -= n;
		send_u32(c->id, TAKEN, n);
	}
	if (c->eof && !c->queued)
		shut(&c->in);
}

static void input(struct command *c, const char *data, size_t length)
{
	if (!length)
		c->eof = 1;
	if (c->queued + length > WINDOW)
		die("agent: more input than the window allows");
	if (c->in < 0) {
		send_u32(c->id, TAKEN, length);
		return;
	}
	c->queue = realloc(c->queue, c->queued + length + 1);
	if (!c->queue)
		die("agent: out of memory");
	memcpy(c->queue + c->queued, data, length);
	c->queued += length;
	feed(c);
}

/* Passes on what the command printed; returns once the pipe is empty or at its end. */
static void drain(struct command *c, int *fd, uint32_t type)
{
	char data[CHUNK];

	while (*fd >= 0) {
		ssize_t n = read(*fd, data, sizeof(data));

		if (n > 0)
			send_frame(c->id, type, data, n);
		else if (n < 0 && errno == EAGAIN)
			return;
		else if (n == 0 || errno != EINTR)
			shut(fd);
	}
}

static void reap(void)
{
	struct signalfd_siginfo info;
	int status;
	pid_t pid;

	while (read(children, &info, sizeof(info)) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (int i = 0; i < MAX_COMMANDS; i++) {
			struct command *c = &commands[i];

			if (!c->id || c->pid != pid)
				continue;
			drain(c, &c->out, STDOUT);
			drain(c, &c->err, STDERR);
			shut(&c->in);
			shut(&c->out);
			shut(&c->err);
			free(c->queue);
			send_u32(c->id, EXIT, status);
			c->id = 0;
		}
}

static void received(const struct header *h, const char *data)
{
	struct command *c = h->type == RUN ? NULL : find(h->id);
	uint32_t number;

	switch (h->type) {
	case RUN:
		start(h->id, data);
		break;
	case STDIN:
		if (c && h->id)
			input(c, data, h->length);
		break;
	case SIGNAL:
		memcpy(&number, data, sizeof(number));
		if (c && h->id && h->length == sizeof(number))
			kill(-c->pid, le32toh(number));
		break;
	default:
		die("agent: unknown frame type %u", h->type);
	}
}

/* Collects bytes of the port into frames. */
static void receive(void)
{
	static char buffer[sizeof(struct header) + MAX_PAYLOAD + 1];
	static size_t filled;
	size_t want = sizeof(struct header);
	struct header h = { 0 };
	ssize_t n;

	for (;;) {
		if (filled >= sizeof(h)) {
			memcpy(&h, buffer, sizeof(h));
			h = (struct header){ le32toh(h.length), le32toh(h.id), le32toh(h.type) };
			if (h.length > MAX_PAYLOAD)
				die("agent: frame of %u bytes", h.length);
			want = sizeof(h) + h.length;
			if (filled == want) {
				buffer[filled] = 0;
				filled = 0;
				received(&h, buffer + sizeof(h));
				return;
			}
		}
		n = read(port, buffer + filled, want - filled);
		if (n == 0) { /* nobody holds the other end */
			usleep(100000);
			return;
		}
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0)
			die("agent: reading from the port: %s", strerror(errno));
		filled += n;
	}
}

int main(int argc, char **argv)
{
	sigset_t mask;

	if (argc != 2)
		die("usage: agent PORT");
	port = open(argv[1], O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (port < 0)
		die("agent: %s: %s", argv[1], strerror(errno));
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	children = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	hello();

	for (;;) {
		struct pollfd fds[2 + 3 * MAX_COMMANDS] = { { port, POLLIN, 0 }, { children, POLLIN, 0 } };

		for (int i = 0; i < MAX_COMMANDS; i++) {
			struct command *c = &commands[i];

			fds[2 + 3 * i] = (struct pollfd){ c->id && c->queued ? c->in : -1, POLLOUT, 0 };
			fds[3 + 3 * i] = (struct pollfd){ c->id ? c->out : -1, POLLIN, 0 };
			fds[4 + 3 * i] = (struct pollfd){ c->id ? c->err : -1, POLLIN, 0 };
		}
		if (poll(fds, 2 + 3 * MAX_COMMANDS, -1) < 0 && errno != EINTR)
			die("agent: poll: %s", strerror(errno));
		if (fds[0].revents)
			receive();
		for (int i = 0; i < MAX_COMMANDS; i++) {
			struct command *c = &commands[i];

			if (fds[2 + 3 * i].revents && c->id)
				feed(c);
			if (fds[3 + 3 * i].revents && c->id)
				drain(c, &c->out, STDOUT);
			if (fds[4 + 3 * i].revents && c->id)
				drain(c, &c->err, STDERR);
		}
		if (fds[1].revents)
			reap();
	}
}
