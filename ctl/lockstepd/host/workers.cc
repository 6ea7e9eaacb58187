// SPDX-License-Identifier: GPL-2.0-or-later
//
// One lock, one queue of runnable keys, one queue of tasks a key. A key is in exactly one of these conditions: without tasks
// (absent from the map), runnable (in `ready`), or running (some thread is in its first task). The threads are detached and
// share ownership of the state, so that one stuck in the kernel does not keep the daemon from ending.
#include "lockstepd/host/workers.h"

#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

namespace lockstep {

namespace {

constexpr auto IDLE_LIFETIME = std::chrono::seconds(10);

struct Task {
	std::function<void()> work, done;
};

}    // namespace

struct Workers::Impl {
	std::mutex lock;
	std::condition_variable wake;     // a key became runnable, or the end
	std::condition_variable quiet;    // running went to 0
	std::function<void(std::function<void()>)> post;
	std::map<std::string, std::deque<Task>> tasks;
	std::deque<std::string> ready;
	unsigned threads = 0, idle = 0, running = 0;
	bool ending = false;

	static void serve(std::shared_ptr<Impl> impl);
	void run_first(const std::shared_ptr<Impl> &self, std::unique_lock<std::mutex> &hold);
};

// Runs the first task of the first ready key. Called and returns with the lock held.
void Workers::Impl::run_first(const std::shared_ptr<Impl> &self, std::unique_lock<std::mutex> &hold)
{
	std::string key = std::move(ready.front());
	ready.pop_front();
	Task task = std::move(tasks[key].front());
	running++;
	hold.unlock();
	task.work();
	task.work = nullptr;
	hold.lock();
	running--;
	if (!ending) {
		// `ending` is looked at again on the loop thread, where the destructor runs: after it nothing is called.
		post([self, done = std::move(task.done)] {
			bool ended;
			{
				std::lock_guard look(self->lock);
				ended = self->ending;
			}
			if (!ended)
				done();
		});
		auto &queue = tasks[key];
		queue.pop_front();
		if (queue.empty()) {
			tasks.erase(key);
		} else {
			ready.push_back(std::move(key));
			wake.notify_one();
		}
	}
	if (!running)
		quiet.notify_all();
}

void Workers::Impl::serve(std::shared_ptr<Impl> impl)
{
	std::unique_lock hold(impl->lock);
	while (!impl->ending) {
		if (!impl->ready.empty()) {
			impl->run_first(impl, hold);
			continue;
		}
		impl->idle++;
		bool work = impl->wake.wait_for(hold, IDLE_LIFETIME, [&] { return impl->ending || !impl->ready.empty(); });
		impl->idle--;
		if (!work)
			break;
	}
	impl->threads--;
}

Workers::Workers(std::function<void(std::function<void()>)> post) : impl_(std::make_shared<Impl>())
{
	impl_->post = std::move(post);
}

Workers::~Workers()
{
	std::unique_lock hold(impl_->lock);
	impl_->ending = true;
	impl_->ready.clear();
	impl_->wake.notify_all();
	impl_->quiet.wait_for(hold, std::chrono::milliseconds(patience_ms), [&] { return impl_->running == 0; });
}

void Workers::submit(const std::string &key, std::function<void()> work, std::function<void()> done)
{
	std::lock_guard hold(impl_->lock);
	auto &queue = impl_->tasks[key];
	queue.push_back({std::move(work), std::move(done)});
	if (queue.size() > 1)
		return;    // runnable or running already
	impl_->ready.push_back(key);
	if (impl_->idle >= impl_->ready.size() || impl_->threads >= WORKERS_MAX) {
		impl_->wake.notify_one();
		return;
	}
	impl_->threads++;
	// Signals are the loop thread's: a worker must not take SIGTERM away from it.
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	std::thread(Impl::serve, impl_).detach();
	pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

unsigned Workers::busy() const
{
	std::lock_guard hold(impl_->lock);
	return impl_->running;
}

}    // namespace lockstep
