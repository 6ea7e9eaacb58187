// SPDX-License-Identifier: GPL-2.0-or-later
//
// Blocking work off the loop thread.
//
// Work is submitted under a key. Work of one key runs one after the other, in order; work of different keys does not wait
// for each other, so an LVM command that hangs on a broken disk holds up its volume group ("vg:fast") and nothing else.
// A thread is started when there is work and none is idle, up to WORKERS_MAX; an idle thread ends after a while.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace lockstep {

constexpr unsigned WORKERS_MAX = 64;

class Workers {
public:
	// `post` brings a closure to the loop thread (Loop::post). It must stay callable until the destructor returns.
	explicit Workers(std::function<void(std::function<void()>)> post);

	// Work not yet begun is dropped; work under way is waited for at most `patience_ms`, then left to the end of the process.
	~Workers();
	Workers(const Workers &) = delete;
	Workers &operator=(const Workers &) = delete;

	// Runs `work` on a worker thread, then `done` on the loop thread. Not `done` if the Workers are destroyed first.
	void submit(const std::string &key, std::function<void()> work, std::function<void()> done);

	unsigned busy() const;    // work begun and not ended

	static constexpr unsigned patience_ms = 5000;

	struct Impl;    // internal

private:
	std::shared_ptr<Impl> impl_;
};

}    // namespace lockstep
