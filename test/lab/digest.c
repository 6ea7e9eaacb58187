// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Digest of the first BYTES of a device or file, to compare replicas bit by bit without moving them.
 *
 *   digest FILE BYTES           SHA-256 over all chunks of 64 KiB that are not all zeros, each preceded by its offset; and
 *                               how many those are. Two files have the same digest if and only if they are the same
 *   digest --chunks FILE BYTES  one line a chunk that is not all zeros: offset, SHA-256. To see where two files differ
 *
 * Zeros are skipped since a sparse gigabyte would take minutes to hash in an emulated CPU. Reads go around the page cache
 * (O_DIRECT): what counts is what the device holds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { READ = 1 << 20, CHUNK = 64 << 10 };

struct sha256 {
	uint32_t h[8];
	uint64_t bytes;
	uint8_t part[64];
};

/* Fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2). */
static const uint32_t K[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
	0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
	0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t ror(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

static void sha256_block(struct sha256 *s, const uint8_t *p)
{
	uint32_t w[64], v[8];

	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(v, s->h, sizeof(v));
	for (int i = 0; i < 64; i++) {
		uint32_t a = v[0], e = v[4];
		uint32_t t = v[7] + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + K[i] + w[i];
		uint32_t u = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));

		memmove(v + 1, v, 7 * sizeof(*v));
		v[4] += t;
		v[0] = t + u;
	}
	for (int i = 0; i < 8; i++)
		s->h[i] += v[i];
}

static void sha256_start(struct sha256 *s)
{
	*s = (struct sha256){ .h = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 } };
}

static void sha256_add(struct sha256 *s, const void *data, size_t length)
{
	const uint8_t *p = data;

	while (length) {
		size_t have = s->bytes % 64, take = length < 64 - have ? length : 64 - have;

		if (!have && length >= 64) {
			take = 64;
			sha256_block(s, p);
		} else {
			memcpy(s->part + have, p, take);
			if (have + take == 64)
				sha256_block(s, s->part);
		}
		s->bytes += take;
		p += take;
		length -= take;
	}
}

static void sha256_print(struct sha256 *s)
{
	uint64_t bits = s->bytes * 8;
	uint8_t end[8];

	for (int i = 0; i < 8; i++)
		end[i] = bits >> (56 - 8 * i);
	sha256_add(s, "\x80", 1);
	while (s->bytes % 64 != 56)
		sha256_add(s, "", 1);
	sha256_add(s, end, sizeof(end));
	for (int i = 0; i < 8; i++)
		printf("%08x", s->h[i]);
}

static int all_zero(const uint64_t *p)
{
	uint64_t any = 0;

	for (size_t i = 0; i < CHUNK / sizeof(*p) && !any; i += 8)
		any = p[i] | p[i + 1] | p[i + 2] | p[i + 3] | p[i + 4] | p[i + 5] | p[i + 6] | p[i + 7];
	return !any;
}

static void fail(const char *what)
{
	fprintf(stderr, "digest: %s: %s\n", what, strerror(errno));
	exit(2);
}

int main(int argc, char **argv)
{
	int each = argc == 4 && !strcmp(argv[1], "--chunks");
	uint64_t bytes, chunks = 0;
	struct sha256 whole, one;
	uint8_t *buffer;
	int fd;

	if (argc != 3 + each) {
		fprintf(stderr, "usage: digest [--chunks] FILE BYTES\n");
		return 2;
	}
	bytes = strtoull(argv[2 + each], NULL, 0);
	fd = open(argv[1 + each], O_RDONLY | O_DIRECT);
	if (fd < 0)
		fail(argv[1 + each]);
	if (posix_memalign((void **)&buffer, 4096, READ))
		fail("memory");
	sha256_start(&whole);
	for (uint64_t offset = 0; offset < bytes; offset += READ) {
		size_t want = bytes - offset < READ ? bytes - offset : READ;
		ssize_t n = pread(fd, buffer, (want + 4095) & ~4095ull, offset);

		if (n < (ssize_t)want) {
			errno = n < 0 ? errno : ENODATA;
			fail("read");
		}
		memset(buffer + want, 0, READ - want);
		for (size_t i = 0; i < want; i += CHUNK) {
			uint64_t at = offset + i;

			if (all_zero((uint64_t *)(buffer + i)))
				continue;
			chunks++;
			sha256_add(&whole, &at, sizeof(at));
			sha256_add(&whole, buffer + i, CHUNK);
			if (each) {
				printf("%" PRIu64 " ", at);
				sha256_start(&one);
				sha256_add(&one, buffer + i, CHUNK);
				sha256_print(&one);
				printf("\n");
			}
		}
	}
	if (!each) {
		sha256_print(&whole);
		printf(" %" PRIu64 "\n", chunks);
	}
	return 0;
}
