// SPDX-License-Identifier: GPL-2.0-or-later
//
// The event loop of the daemon.
//
// One thread, the one that calls run(), owns a libuv loop and everything that hangs on it: consensus, connections, the
// cluster state, the reconciler's decisions. Nothing there is locked, because nothing there is touched from elsewhere. Other
// threads (workers that call LVM, API threads) get in by post() only: their closure runs on the loop thread, in the order of
// posting.
//
// A Loop must outlive everything that was built on it. Its destructor runs the loop until all handles are closed, so
// destroy the users first.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

struct uv_loop_s;

namespace lockstep {

class Loop {
public:
	Loop();
	~Loop();
	Loop(const Loop &) = delete;
	Loop &operator=(const Loop &) = delete;

	// Runs `task` on the loop thread, soon. From any thread, the loop thread included (it is then run in a later turn, not
	// at once). Tasks posted after the loop stopped for good are dropped by the destructor without running.
	void post(std::function<void()> task);

	// Runs until stop(). The calling thread becomes the loop thread. May be called again after it returned.
	void run();

	// Makes run() return after the present turn. From any thread.
	void stop();

	// Runs turns of the loop until `done` returns true or the time is up; returns done(). For tests and orderly ends.
	bool run_until(const std::function<bool()> &done, uint64_t timeout_ms);

	// Aborts the process if called from another thread than the loop's while the loop runs.
	void assert_on_loop() const;

	// Monotonic milliseconds, taken now. Comparable with nothing outside this host. From any thread.
	static uint64_t now_ms();

	uv_loop_s *uv() const;

	// One line for the log, without newline. From any thread. The default writes it to stderr with the prefix set here.
	void log(const std::string &line) const;
	void set_log(std::function<void(const std::string &)> sink);

	// A line about something that may come again and again, such as a link that flaps. Of each subject LOG_LINES are logged a
	// minute; what is more is held back, and the last of it is logged when the minute is over, with how many there were.
	// On the loop thread. What is held back when the Loop is destroyed is lost.
	void log_about(const std::string &subject, const std::string &line);
	static constexpr unsigned LOG_LINES = 6;
	void set_log_period(uint64_t ms);    // for tests: how long the minute is

private:
	struct Impl;
	std::unique_ptr<Impl> impl_;
};

// A timer on the loop thread. Destroying or stopping it guarantees that the closure does not run any more. Starting a
// running timer restarts it. The closure may stop, restart or destroy its own timer.
class Timer {
public:
	explicit Timer(Loop &loop);
	~Timer();
	Timer(Timer &&) noexcept;
	Timer &operator=(Timer &&) noexcept;

	void once(uint64_t after_ms, std::function<void()> fire);
	void every(uint64_t period_ms, std::function<void()> fire);    // the first time after one period
	void stop();
	bool running() const;

private:
	struct Impl;
	Impl *impl_;    // freed when libuv has closed the handle
};

}    // namespace lockstep
