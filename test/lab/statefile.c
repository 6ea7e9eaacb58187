// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the HA daemon of a pool does with its statefile: every host writes a sector of its own and reads those of all.
 *
 *   statefile FILE ME HOSTS PERIOD_MS
 *
 * Host ME (1..) of HOSTS; 4 KiB at ME * 4096, with O_DIRECT and O_DSYNC, begun every PERIOD_MS. After each round one line: `beat SEQ
 * GAP.. `, where GAP is the longest time in ms, for host 1, 2, .., HOSTS, from one new beat to the next as this host has seen them:
 * its own when the write is done, the others' when they are read; the time that goes on counts, too. For ever; exit status 1 if a
 * write or read fails or is something else than a beat.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 4096, MOST_HOSTS = 64 };
static const uint64_t MAGIC = 0x7374617465666c65ull;

struct beat {
	uint64_t magic, host, seq, end_seq;
};

static void fail(const char *what)
{
	fprintf(stderr, "statefile: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static uint64_t seen[MOST_HOSTS + 1], since[MOST_HOSTS + 1], gap[MOST_HOSTS + 1];

/* A host that was never heard of has no gap: it has not begun. */
static void note(unsigned int host, uint64_t seq)
{
	uint64_t now = now_ms();

	if (seq < seen[host]) {
		fprintf(stderr, "statefile: host %u: beat %" PRIu64 " after %" PRIu64 "\n", host, seq, seen[host]);
		exit(1);
	}
	if (seen[host] && now - since[host] > gap[host])
		gap[host] = now - since[host];
	if (seq > seen[host]) {
		seen[host] = seq;
		since[host] = now;
	}
}

int main(int argc, char **argv)
{
	unsigned int me, hosts, period_ms;
	uint64_t seq = 0, next;
	struct beat *b;
	int fd;

	if (argc != 5) {
		fprintf(stderr, "usage: statefile FILE ME HOSTS PERIOD_MS\n");
		return 2;
	}
	me = strtoul(argv[2], NULL, 0);
	hosts = strtoul(argv[3], NULL, 0);
	period_ms = strtoul(argv[4], NULL, 0);
	if (!me || me > hosts || hosts > MOST_HOSTS || posix_memalign((void **)&b, SECTOR, SECTOR))
		return 2;
	fd = open(argv[1], O_RDWR | O_DIRECT | O_DSYNC);
	if (fd < 0)
		fail(argv[1]);
	/* Beats go on where an earlier run of this host stopped. */
	if (pread(fd, b, SECTOR, (off_t)me * SECTOR) != SECTOR)
		fail("read");
	if (b->magic == MAGIC)
		seq = b->seq;
	for (next = now_ms();; next += period_ms) {
		memset(b, 0, SECTOR);
		*b = (struct beat){ MAGIC, me, seq + 1, seq + 1 };
		if (pwrite(fd, b, SECTOR, (off_t)me * SECTOR) != SECTOR)
			fail("write");
		note(me, ++seq);
		for (unsigned int h = 1; h <= hosts; h++) {
			if (pread(fd, b, SECTOR, (off_t)h * SECTOR) != SECTOR)
				fail("read");
			if (!b->magic && !seen[h])
				continue;
			errno = EBADMSG;
			if (b->magic != MAGIC || b->host != h || b->seq != b->end_seq || (h == me && b->seq != seq))
				fail("a sector");
			note(h, b->seq);
		}
		printf("beat %" PRIu64, seq);
		for (unsigned int h = 1; h <= hosts; h++)
			printf(" %" PRIu64, gap[h]);
		printf("\n");
		if (fflush(stdout))
			fail("standard output");
		if (next + period_ms < now_ms())
			next = now_ms() - period_ms;	/* late: the next one at once */
		else
			usleep((next + period_ms - now_ms()) * 1000);
	}
}
