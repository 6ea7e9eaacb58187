// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Needs more memory than there is.
 *
 *   memhog swap PATH         makes a swap area of PATH and uses it
 *   memhog unswap PATH       stops using it
 *   memhog fill MIB ROUNDS   writes MIB of memory again and again, and checks what it reads
 *
 * Exit status: 0, 1 failed or different, 2 usage.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <unistd.h>

#define PAGE 4096u

static int failed(const char *what)
{
	fprintf(stderr, "memhog: %s: %s\n", what, strerror(errno));
	return 1;
}

static int swap_on(const char *path)
{
	static _Alignas(PAGE) uint8_t header[PAGE];
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint32_t version = 1, last;
	uint64_t size;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size))
		return failed(path);
	last = (uint32_t)(size / PAGE - 1);
	memcpy(header + 1024, &version, sizeof(version));
	memcpy(header + 1028, &last, sizeof(last));
	memcpy(header + PAGE - 10, "SWAPSPACE2", 10);
	if (pwrite(fd, header, PAGE, 0) != PAGE || fsync(fd))
		return failed(path);
	close(fd);
	return swapon(path, 0) ? failed("swapon") : 0;
}

static int fill(size_t mib, int rounds)
{
	size_t pages = mib << 20 >> 12;
	uint64_t *m = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (m == MAP_FAILED)
		return failed("mmap");
	for (int round = 1; round <= rounds; round++)
		for (size_t page = 0; page < pages; page++) {
			uint64_t *p = m + page * (PAGE / 8);

			for (size_t k = 0; k < PAGE / 8; k += 64) {
				if (round > 1 && p[k] != ((uint64_t)(round - 1) << 40 | page << 9 | k)) {
					fprintf(stderr, "memhog: page %zu is not what it was\n", page);
					return 1;
				}
				p[k] = (uint64_t)round << 40 | page << 9 | k;
			}
		}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "swap"))
		return swap_on(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "unswap"))
		return swapoff(argv[2]) ? failed("swapoff") : 0;
	if (argc == 4 && !strcmp(argv[1], "fill"))
		return fill(strtoull(argv[2], NULL, 0), atoi(argv[3]));
	fprintf(stderr, "memhog: wrong arguments; see the top of test/lab/memhog.c\n");
	return 2;
}
