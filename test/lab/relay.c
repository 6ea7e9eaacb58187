// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * relay SOCKET: sends standard input to a unix socket and prints what comes back until the other end closes. For requests to the
 * daemon's API that are made outside the VM (test_xapi.py).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int copy(int from, int to)
{
	char buffer[16384];
	ssize_t n;

	while ((n = read(from, buffer, sizeof buffer)) > 0)
		for (ssize_t done = 0, part; done < n; done += part)
			if ((part = write(to, buffer + done, (size_t)(n - done))) < 0)
				return -1;
	return n < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path)
		return 2;
	strcpy(address.sun_path, argv[1]);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
		fprintf(stderr, "relay: %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	if (copy(0, fd) || copy(fd, 1)) {
		fprintf(stderr, "relay: %s\n", strerror(errno));
		return 1;
	}
	return 0;
}
