// SPDX-License-Identifier: GPL-2.0-or-later
//
// A slow network: TCP connections to a port of this machine, through which every byte takes a while, in both directions.
#pragma once

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <list>
#include <string>
#include <thread>
#include <vector>

namespace lockstep::test {

// Listens on a port of its own for as long as it lives; a thread of its own hands on what comes. Ends of connections are
// handed on too, as late as everything else.
class SlowWire {
public:
	SlowWire(uint16_t target, std::chrono::milliseconds delay) : target(target), delay(delay)
	{
		socklen_t length = sizeof own;
		own = loopback(0);
		listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		ender = eventfd(0, EFD_CLOEXEC);
		if (listener < 0 || ender < 0 || bind(listener, reinterpret_cast<sockaddr *>(&own), sizeof own) != 0 || ::listen(listener, 16) != 0 ||
		    getsockname(listener, reinterpret_cast<sockaddr *>(&own), &length) != 0)
			abort();
		thread = std::thread([this] { run(); });
	}

	~SlowWire()
	{
		const uint64_t one = 1;
		if (write(ender, &one, sizeof one) != sizeof one)
			abort();
		thread.join();
		for (Wire &w : wires) {
			close(w.a.fd);
			close(w.b.fd);
		}
		close(listener);
		close(ender);
	}

	SlowWire(const SlowWire &) = delete;
	SlowWire &operator=(const SlowWire &) = delete;

	uint16_t port() const { return ntohs(own.sin_port); }

private:
	using Clock = std::chrono::steady_clock;
	struct Late {
		Clock::time_point due;
		std::string bytes;    // none: the end
	};
	struct End {
		int fd;
		bool read_all = false;
		std::deque<Late> to_write;
		bool ended = false;    // all was written, and its end told
	};
	struct Wire {
		End a, b;
	};

	static sockaddr_in loopback(uint16_t port)
	{
		sockaddr_in to{};
		to.sin_family = AF_INET;
		to.sin_port = htons(port);
		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return to;
	}

	void take()
	{
		const int a = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
		if (a < 0)
			return;
		const int b = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		const sockaddr_in to = loopback(target);
		if (b < 0 || connect(b, reinterpret_cast<const sockaddr *>(&to), sizeof to) != 0) {
			close(a);
			close(b);
			return;
		}
		wires.push_back({{a, false, {}, false}, {b, false, {}, false}});
	}

	void read_from(End &from, End &to)
	{
		char bytes[16384];
		const ssize_t n = recv(from.fd, bytes, sizeof bytes, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		from.read_all = n <= 0;
		to.to_write.push_back({Clock::now() + delay, std::string(bytes, n > 0 ? size_t(n) : 0)});
	}

	static void write_due(End &e)
	{
		while (!e.to_write.empty() && e.to_write.front().due <= Clock::now()) {
			const std::string bytes = std::move(e.to_write.front().bytes);
			e.to_write.pop_front();
			if (bytes.empty() || send(e.fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) != ssize_t(bytes.size())) {
				shutdown(e.fd, SHUT_WR);
				e.to_write.clear();
				e.ended = true;
			}
		}
	}

	void run()
	{
		for (;;) {
			std::vector<pollfd> fds = {{ender, POLLIN, 0}, {listener, POLLIN, 0}};
			Clock::time_point next = Clock::time_point::max();
			for (Wire &w : wires)
				for (End *e : {&w.a, &w.b}) {
					fds.push_back({e->read_all ? -1 : e->fd, POLLIN, 0});
					if (!e->to_write.empty())
						next = std::min(next, e->to_write.front().due);
				}
			int wait = -1;
			if (next != Clock::time_point::max())
				wait = int(std::max<long>(0, std::chrono::ceil<std::chrono::milliseconds>(next - Clock::now()).count()));
			if (poll(fds.data(), fds.size(), wait) < 0 && errno != EINTR)
				abort();
			if (fds[0].revents)
				return;
			size_t i = 2;
			for (Wire &w : wires) {
				if (fds[i++].revents)
					read_from(w.a, w.b);
				if (fds[i++].revents)
					read_from(w.b, w.a);
				write_due(w.a);
				write_due(w.b);
			}
			wires.remove_if([](Wire &w) {
				if (!w.a.ended || !w.b.ended)
					return false;
				close(w.a.fd);
				close(w.b.fd);
				return true;
			});
			if (fds[1].revents)
				take();
		}
	}

	const uint16_t target;
	const std::chrono::milliseconds delay;
	sockaddr_in own{};
	int listener = -1, ender = -1;
	std::list<Wire> wires;
	std::thread thread;
};

}    // namespace lockstep::test
