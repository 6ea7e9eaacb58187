// SPDX-License-Identifier: GPL-2.0-or-later
//
// A libuv handle may only be freed in its close callback, a turn after uv_close(). So every handle lives in a heap object
// (Impl) that the owner gives up and the close callback frees; a closure that destroys its own owner thus never pulls the
// ground from under itself.
#include "lockstepd/net/loop.h"

#include <unistd.h>
#include <uv.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace lockstep {

namespace {

constexpr uint64_t LAST_TURNS_MS = 2000;
constexpr uint64_t LOG_PERIOD_MS = 60'000;

[[noreturn]] void die(const char *what)
{
	fprintf(stderr, "lockstepd: bug: %s\n", what);
	abort();
}

// The lines about one subject in one period.
struct Chatter {
	explicit Chatter(Loop &loop) : end(loop) {}
	unsigned logged = 0;
	unsigned held = 0;
	std::string last;    // of those held back
	Timer end;
};

}    // namespace

struct Loop::Impl {
	uv_loop_t loop;
	uv_async_t wake;
	std::mutex lock;    // guards tasks and sink
	std::vector<std::function<void()>> tasks;
	std::function<void(const std::string &)> sink;
	std::atomic<std::thread::id> thread{};
	std::atomic<bool> stop{false};
	std::map<std::string, Chatter> chatter;    // by subject
	uint64_t log_period_ms = LOG_PERIOD_MS;

	void drain()
	{
		std::vector<std::function<void()>> batch;
		{
			std::lock_guard hold(lock);
			batch.swap(tasks);
		}
		for (auto &task : batch)
			task();
	}
};

Loop::Loop() : impl_(std::make_unique<Impl>())
{
	// A peer that resets its connection must not kill the daemon; libuv's writes then fail with EPIPE.
	signal(SIGPIPE, SIG_IGN);
	if (uv_loop_init(&impl_->loop) != 0)
		die("cannot make an event loop");
	impl_->wake.data = impl_.get();
	if (uv_async_init(&impl_->loop, &impl_->wake, [](uv_async_t *h) { static_cast<Impl *>(h->data)->drain(); }) != 0)
		die("cannot make an event loop's wake-up");
}

Loop::~Loop()
{
	impl_->chatter.clear();
	{
		std::lock_guard hold(impl_->lock);
		impl_->tasks.clear();
	}
	uv_close(reinterpret_cast<uv_handle_t *>(&impl_->wake), nullptr);
	// What is being closed may need some turns to be through with it, and may close more on the way.
	for (const uint64_t end = now_ms() + LAST_TURNS_MS; uv_run(&impl_->loop, UV_RUN_NOWAIT) != 0 && now_ms() < end;)
		usleep(1000);
	uv_walk(
		&impl_->loop,
		[](uv_handle_t *h, void *) {
			if (!uv_is_closing(h)) {
				fprintf(stderr, "lockstepd: bug: a %s is left on the loop\n", uv_handle_type_name(h->type));
				abort();
			}
		},
		nullptr);
	if (uv_loop_close(&impl_->loop) != 0)
		die("the event loop is still in use");
}

void Loop::post(std::function<void()> task)
{
	std::lock_guard hold(impl_->lock);
	impl_->tasks.push_back(std::move(task));
	uv_async_send(&impl_->wake);
}

void Loop::run()
{
	impl_->thread = std::this_thread::get_id();
	while (!impl_->stop)
		uv_run(&impl_->loop, UV_RUN_ONCE);
	impl_->stop = false;
	impl_->thread = std::thread::id();
}

void Loop::stop()
{
	impl_->stop = true;
	uv_async_send(&impl_->wake);
}

bool Loop::run_until(const std::function<bool()> &done, uint64_t timeout_ms)
{
	impl_->thread = std::this_thread::get_id();
	const uint64_t end = now_ms() + timeout_ms;
	Timer poll(*this);
	poll.every(5, [] {});
	while (!done() && now_ms() < end)
		uv_run(&impl_->loop, UV_RUN_ONCE);
	impl_->thread = std::thread::id();
	return done();
}

void Loop::assert_on_loop() const
{
	const std::thread::id owner = impl_->thread;
	if (owner != std::thread::id() && owner != std::this_thread::get_id())
		die("called from a thread other than the event loop's");
}

uint64_t Loop::now_ms()
{
	timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return uint64_t(now.tv_sec) * 1000 + uint64_t(now.tv_nsec) / 1'000'000;
}

uv_loop_s *Loop::uv() const
{
	return &impl_->loop;
}

void Loop::log(const std::string &line) const
{
	std::lock_guard hold(impl_->lock);
	if (impl_->sink)
		impl_->sink(line);
	else
		fprintf(stderr, "%s\n", line.c_str());
}

void Loop::set_log(std::function<void(const std::string &)> sink)
{
	std::lock_guard hold(impl_->lock);
	impl_->sink = std::move(sink);
}

void Loop::set_log_period(uint64_t ms)
{
	impl_->log_period_ms = ms;
}

void Loop::log_about(const std::string &subject, const std::string &line)
{
	assert_on_loop();
	Chatter &c = impl_->chatter.try_emplace(subject, *this).first->second;
	if (c.logged == LOG_LINES) {
		c.held++;
		c.last = line;
		return;
	}
	log(line);
	c.logged++;
	if (c.end.running())
		return;
	c.end.every(impl_->log_period_ms, [this, subject] {
		Chatter &c = impl_->chatter.at(subject);
		if (c.held == 0) {
			impl_->chatter.erase(subject);
			return;
		}
		log(c.last + " (" + std::to_string(c.held) + " lines about this were held back)");
		c.logged = 1;
		c.held = 0;
	});
}

struct Timer::Impl {
	uv_timer_t timer;
	std::function<void()> fire;

	void start(uint64_t after_ms, uint64_t period_ms, std::function<void()> f)
	{
		fire = std::move(f);
		// libuv counts from the time it cached at the start of the turn; a long turn would shorten the timer.
		uv_update_time(timer.loop);
		uv_timer_start(
			&timer,
			[](uv_timer_t *h) {
				// A copy: the closure may assign a new one.
				auto now = static_cast<Impl *>(h->data)->fire;
				now();
			},
			after_ms, period_ms);
	}
};

Timer::Timer(Loop &loop) : impl_(new Impl)
{
	impl_->timer.data = impl_;
	uv_timer_init(loop.uv(), &impl_->timer);
}

Timer::~Timer()
{
	if (impl_)
		uv_close(reinterpret_cast<uv_handle_t *>(&impl_->timer), [](uv_handle_t *h) { delete static_cast<Impl *>(h->data); });
}

Timer::Timer(Timer &&other) noexcept : impl_(std::exchange(other.impl_, nullptr)) {}

Timer &Timer::operator=(Timer &&other) noexcept
{
	std::swap(impl_, other.impl_);
	return *this;
}

void Timer::once(uint64_t after_ms, std::function<void()> fire)
{
	impl_->start(after_ms, 0, std::move(fire));
}

void Timer::every(uint64_t period_ms, std::function<void()> fire)
{
	impl_->start(period_ms, period_ms, std::move(fire));
}

void Timer::stop()
{
	uv_timer_stop(&impl_->timer);
}

bool Timer::running() const
{
	return uv_is_active(reinterpret_cast<const uv_handle_t *>(&impl_->timer)) != 0;
}

}    // namespace lockstep
