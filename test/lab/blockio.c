// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Uses a block device in every way there is and compares with a copy in memory. Not quick: thorough.
 *
 *   blockio random PATH SECONDS SEED   reads, writes (some with FUA, some that must not wait), discards, zeroing, flushes, of
 *                                      512 bytes to 2 MiB at any multiple of 512, also from buffers that begin anywhere in a
 *                                      page; at the end all of the device is read and compared. Prints what it did
 *   blockio hold PATH r|w              opens, prints "open", closes when standard input ends
 *   blockio shared PATH SECTOR N       writes N times a numbered 4 KiB sector at SECTOR and reads it back, printing nothing
 *   blockio ahead PATH BYTES           asks for readahead of the first BYTES and for nothing else
 *   blockio disk PATH                  asks what tools ask of an ATA or SCSI disk: prints the error of each
 *
 * Exit status: 0, 1 failed or different, 2 usage.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/hdreg.h>
#include <scsi/sg.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SECTOR 512u
#define MOST (2u << 20)
#define SHARED 4096u

static void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static uint64_t state;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("no memory: %s", strerror(errno));
	return p;
}

/* ---- random ---- */

enum { READ, WRITE, WRITE_FUA, READ_NOWAIT, WRITE_NOWAIT, DISCARD, ZERO, FLUSH, KINDS };
static const char *const names[KINDS] = { "reads", "writes", "FUA", "nowait-reads", "nowait-writes", "discards", "zeroings", "flushes" };

static void compare(const uint8_t *is, const uint8_t *should, uint64_t at, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		if (is[i] != should[i])
			die("differs at byte %llu: is %02x, should be %02x", (unsigned long long)(at + i), is[i], should[i]);
}

static void random_range(uint64_t size, uint64_t *at, uint64_t *bytes)
{
	static const uint32_t limits[] = { SECTOR, 4096, 16384, 65536, 262144, MOST };
	uint32_t limit = limits[next() % 6];

	*bytes = (next() % (limit / SECTOR) + 1) * SECTOR;
	*at = next() % ((size - *bytes) / SECTOR + 1) * SECTOR;
	if (next() % 3 == 0)
		*at &= ~4095ull;
}

/* Returns whether it was done; what must not wait may say that it would have to. */
static int transfer(int fd, int kind, uint8_t *buf, uint64_t bytes, uint64_t at)
{
	int nowait = kind == READ_NOWAIT || kind == WRITE_NOWAIT, reads = kind == READ || kind == READ_NOWAIT;
	int flags = nowait ? RWF_NOWAIT : kind == WRITE_FUA ? RWF_DSYNC : 0;
	struct iovec v = { buf, bytes };
	ssize_t n = reads ? preadv2(fd, &v, 1, (off_t)at, flags) : pwritev2(fd, &v, 1, (off_t)at, flags);

	if (n < 0 && errno == EAGAIN && nowait)
		return 0;
	if (nowait && n >= 0 && (uint64_t)n < bytes)
		return (int)n;
	if (n != (ssize_t)bytes)
		die("%s of %llu bytes at %llu: %s", names[kind], (unsigned long long)bytes, (unsigned long long)at,
		    n < 0 ? strerror(errno) : "short");
	return 1;
}

static void step(int fd, uint8_t *copy, uint64_t size, uint8_t *room, uint64_t *counts)
{
	int kind = (int)(next() % KINDS), done = 1;
	uint8_t *buf = room + next() % 8 * SECTOR;
	uint64_t at, bytes, range[2];

	random_range(size, &at, &bytes);
	range[0] = at;
	range[1] = bytes;
	switch (kind) {
	case WRITE: case WRITE_FUA: case WRITE_NOWAIT:
		for (uint64_t i = 0; i < bytes; i += 8)
			*(uint64_t *)(buf + i) = next();
		done = transfer(fd, kind, buf, bytes, at);
		if (kind == WRITE_NOWAIT && done != 1)
			transfer(fd, WRITE, buf, bytes, at);	/* part of it may have been written */
		memcpy(copy + at, buf, bytes);
		break;
	case READ: case READ_NOWAIT:
		done = transfer(fd, kind, buf, bytes, at);
		if (done == 1)
			compare(buf, copy + at, at, bytes);
		break;
	case DISCARD: case ZERO:
		if (ioctl(fd, kind == ZERO ? BLKZEROOUT : BLKDISCARD, range))
			die("%s of %llu bytes at %llu: %s", names[kind], (unsigned long long)bytes, (unsigned long long)at, strerror(errno));
		memset(copy + at, 0, bytes);
		break;
	case FLUSH:
		if (fsync(fd))
			die("flush: %s", strerror(errno));
	}
	counts[kind] += done == 1;
}

static int run_random(const char *path, int seconds, uint64_t seed)
{
	uint64_t size, counts[KINDS] = { };
	time_t end = time(NULL) + seconds;
	int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	uint8_t *copy, *room = map(MOST + 8 * SECTOR);

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size))
		die("%s: %s", path, strerror(errno));
	copy = map(size);
	state = seed * 2654435761u + 1;
	for (uint64_t at = 0; at < size; at += MOST)
		transfer(fd, READ, copy + at, size - at < MOST ? size - at : MOST, at);
	while (time(NULL) < end)
		step(fd, copy, size, room, counts);
	if (fsync(fd))
		die("flush: %s", strerror(errno));
	for (uint64_t at = 0; at < size; at += MOST) {
		uint64_t bytes = size - at < MOST ? size - at : MOST;

		transfer(fd, READ, room, bytes, at);
		compare(room, copy + at, at, bytes);
	}
	for (int i = 0; i < KINDS; i++)
		printf("%s=%llu%c", names[i], (unsigned long long)counts[i], i + 1 < KINDS ? ' ' : '\n');
	return 0;
}

/* ---- the others ---- */

static int hold(const char *path, bool writes)
{
	int fd = open(path, (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	char c;

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	puts("open");
	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
	return close(fd);
}

static int share(const char *path, uint64_t sector, int times)
{
	uint64_t *room = map(SHARED), *back = map(SHARED);

	for (int i = 1; i <= times; i++) {
		int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);

		if (fd < 0)
			die("%s: %s", path, strerror(errno));
		for (size_t k = 0; k < SHARED / 8; k++)
			room[k] = sector << 32 | (uint64_t)i;
		if (pwrite(fd, room, SHARED, (off_t)(sector * SHARED)) != SHARED || pread(fd, back, SHARED, (off_t)(sector * SHARED)) != SHARED)
			die("sector %llu: %s", (unsigned long long)sector, strerror(errno));
		if (memcmp(room, back, SHARED))
			die("sector %llu: reads %llx after %llx was written", (unsigned long long)sector, (unsigned long long)back[0],
			    (unsigned long long)room[0]);
		close(fd);
	}
	return 0;
}

static int ahead(const char *path, off_t bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int err = fd < 0 ? errno : posix_fadvise(fd, 0, bytes, POSIX_FADV_WILLNEED);

	if (err)
		die("%s: %s", path, strerror(err));
	return close(fd);
}

static int ask(const char *path)
{
	static uint8_t room[512];
	uint8_t inquiry[6] = { 0x12, 0, 0, 0, 96, 0 };
	struct sg_io_hdr scsi = { .interface_id = 'S', .dxfer_direction = SG_DXFER_FROM_DEV, .cmd_len = sizeof(inquiry),
				  .cmdp = inquiry, .dxferp = room, .dxfer_len = 96, .timeout = 5000 };
	const struct { const char *name; unsigned long code; void *to; } questions[] = {
		{ "identify", HDIO_GET_IDENTITY, room }, { "command", HDIO_DRIVE_CMD, room }, { "inquiry", SG_IO, &scsi },
		{ "geometry", HDIO_GETGEO, room },
	};
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	for (size_t i = 0; i < sizeof(questions) / sizeof(questions[0]); i++)
		printf("%s: %s\n", questions[i].name, ioctl(fd, questions[i].code, questions[i].to) ? strerror(errno) : "done");
	return close(fd);
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "random"))
		return run_random(argv[2], atoi(argv[3]), strtoull(argv[4], NULL, 0));
	if (argc == 4 && !strcmp(argv[1], "hold"))
		return hold(argv[2], *argv[3] == 'w');
	if (argc == 5 && !strcmp(argv[1], "shared"))
		return share(argv[2], strtoull(argv[3], NULL, 0), atoi(argv[4]));
	if (argc == 4 && !strcmp(argv[1], "ahead"))
		return ahead(argv[2], atoll(argv[3]));
	if (argc == 3 && !strcmp(argv[1], "disk"))
		return ask(argv[2]);
	fprintf(stderr, "blockio: wrong arguments; see the top of test/lab/blockio.c\n");
	return 2;
}
