// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Proves that what fsync() reported durable is durable. Runs in a host that will be killed; the evidence leaves the host
 * on standard output, before the kill.
 *
 *   fsynclog write FILE BLOCKS SEED [PAUSE_MS]
 *                                      writes for ever: 1 to 8 blocks of 4 KiB at pseudo-random positions, fsync(), then
 *                                      one line `fsync SEQ`: all writes up to SEQ are durable from now on; a pause
 *   fsynclog check FILE BLOCKS SEED ACKED
 *                                      elsewhere, afterwards: every position must hold a whole, undamaged block of this
 *                                      run, written to this very position, not older than the last write to it that is
 *                                      <= ACKED. A position that no such write went to may also hold zeros, or a whole
 *                                      block of a run with another seed
 *
 * FILE is a file or a block device. Write SEQ (1, 2, ...) goes to position mix(SEED, SEQ) mod BLOCKS, so both sides know
 * what was written where without keeping a log, and later writes overwrite earlier ones.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, MOST_WRITES = 8 };
static const uint64_t MAGIC = 0x6c6f6773796e6366ull;

struct block {
	uint64_t magic, seed, seq, position, sum;
	uint64_t payload[(BLOCK - 40) / 8];
};
_Static_assert(sizeof(struct block) == BLOCK, "a block is one page");

static void fail(const char *what)
{
	fprintf(stderr, "fsynclog: %s: %s\n", what, strerror(errno));
	exit(2);
}

static uint64_t mix(uint64_t a, uint64_t b)
{
	uint64_t x = a * 0x9e3779b97f4a7c15ull + b;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/* The one content that write `seq` has. */
static void make(struct block *b, uint64_t seed, uint64_t seq, uint64_t blocks)
{
	uint64_t sum = 0;

	b->magic = MAGIC;
	b->seed = seed;
	b->seq = seq;
	b->position = mix(seed, seq) % blocks;
	for (size_t i = 0; i < sizeof(b->payload) / 8; i++) {
		b->payload[i] = mix(seq + seed, i);
		sum = mix(sum, b->payload[i]);
	}
	b->sum = sum;
}

static _Noreturn void write_for_ever(int fd, uint64_t blocks, uint64_t seed, unsigned int pause_ms)
{
	struct block b;
	uint64_t seq = 0;

	for (;;) {
		for (uint64_t n = 1 + mix(seq, seed) % MOST_WRITES; n; n--) {
			make(&b, seed, ++seq, blocks);
			if (pwrite(fd, &b, BLOCK, b.position * BLOCK) != BLOCK)
				fail("write");
		}
		if (fsync(fd))
			fail("fsync");
		if (printf("fsync %" PRIu64 "\n", seq) < 0 || fflush(stdout))
			fail("standard output");
		usleep(pause_ms * 1000);
	}
}

static int check(int fd, uint64_t blocks, uint64_t seed, uint64_t acked)
{
	uint64_t *last = calloc(blocks, sizeof(*last)), bad = 0, newer = 0, written = 0;
	struct block found, expected;

	if (!last)
		fail("memory");
	for (uint64_t seq = 1; seq <= acked; seq++)
		last[mix(seed, seq) % blocks] = seq;
	for (uint64_t p = 0; p < blocks; p++) {
		ssize_t n = pread(fd, &found, BLOCK, p * BLOCK);
		int good;

		if (n < 0)
			fail("read");
		memset((char *)&found + n, 0, BLOCK - n); /* a file that did not get so long */
		written += last[p] != 0;
		if (found.seq) {
			make(&expected, found.seed, found.seq, blocks);
			good = !memcmp(&found, &expected, BLOCK) && found.position == p &&
			       (found.seed == seed ? found.seq >= last[p] : !last[p]);
			newer += good && found.seed == seed && found.seq > last[p];
		} else {
			memset(&expected, 0, BLOCK);
			good = !last[p] && !memcmp(&found, &expected, BLOCK);
		}
		if (!good && !bad++)
			printf("position %" PRIu64 ": expected write %" PRIu64 " or later, found %s write %" PRIu64 "\n", p,
			       last[p], found.magic == MAGIC ? "a block that says it is" : "no block of ours, at the place of", found.seq);
	}
	printf("%" PRIu64 " writes acknowledged by fsync, %" PRIu64 " positions, %" PRIu64 " hold a later write, %" PRIu64 " bad\n",
	       acked, written, newer, bad);
	return bad != 0;
}

int main(int argc, char **argv)
{
	int writing = (argc == 5 || argc == 6) && !strcmp(argv[1], "write");
	uint64_t blocks, seed;
	int fd;

	if (!writing && !(argc == 6 && !strcmp(argv[1], "check"))) {
		fprintf(stderr, "usage: fsynclog write FILE BLOCKS SEED [PAUSE_MS] | fsynclog check FILE BLOCKS SEED ACKED\n");
		return 2;
	}
	blocks = strtoull(argv[3], NULL, 0);
	seed = strtoull(argv[4], NULL, 0);
	fd = open(argv[2], writing ? O_RDWR | O_CREAT : O_RDONLY, 0644);
	if (fd < 0 || !blocks)
		fail(argv[2]);
	if (writing)
		write_for_ever(fd, blocks, seed, argc == 6 ? strtoul(argv[5], NULL, 0) : 0);
	return check(fd, blocks, seed, strtoull(argv[5], NULL, 0));
}
