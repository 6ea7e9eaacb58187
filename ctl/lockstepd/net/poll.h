// SPDX-License-Identifier: GPL-2.0-or-later
//
// Watching a file descriptor that libuv does not own.
//
// Used for listening sockets and for connections in the middle of their hello. Destroying the Poll ends the watch at
// once: after that the descriptor may be closed, given to a libuv stream, or handed to the kernel.
#pragma once

#include <uv.h>

#include <functional>
#include <utility>

#include "lockstepd/net/loop.h"

namespace lockstep {

class Poll {
public:
	Poll(Loop &loop, int fd) : impl_(new Impl)
	{
		impl_->poll.data = impl_;
		ok_ = uv_poll_init(loop.uv(), &impl_->poll, fd) == 0;
		if (!ok_)
			delete std::exchange(impl_, nullptr);
	}

	~Poll()
	{
		if (impl_)
			uv_close(reinterpret_cast<uv_handle_t *>(&impl_->poll),
				 [](uv_handle_t *h) { delete static_cast<Impl *>(h->data); });
	}

	Poll(const Poll &) = delete;
	Poll &operator=(const Poll &) = delete;

	bool ok() const { return ok_; }

	// `ready` runs when the descriptor is readable (UV_READABLE) or writable (UV_WRITABLE), or in error: the next recv()
	// or send() tells which. It may destroy this Poll.
	void start(int events, std::function<void()> ready)
	{
		impl_->ready = std::move(ready);
		uv_poll_start(&impl_->poll, events, [](uv_poll_t *h, int, int) {
			auto now = static_cast<Impl *>(h->data)->ready;
			now();
		});
	}

	void stop() { uv_poll_stop(&impl_->poll); }

private:
	struct Impl {
		uv_poll_t poll;
		std::function<void()> ready;
	};
	Impl *impl_;
	bool ok_ = false;
};

}    // namespace lockstep
