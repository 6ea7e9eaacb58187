// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the API's threads may ask of the daemon. Each question is posted to the loop, its asker waits for the answer with
// a limit. An answer that comes too late finds its promise abandoned and is dropped.
#include <future>

#include <fmt/format.h>

#include "lockstepd/api/guard.h"
#include "lockstepd/host/asked.h"
#include "lockstepd/host/daemon.h"

namespace lockstep {

namespace {

bool needs_lvm(const std::string &verb)
{
	return verb.starts_with("disk.") || verb.starts_with("orphan.") || verb == "volume.diff" || verb == "snapshot.can_revert";
}

}    // namespace

Result<nlohmann::json> Daemon::on_loop(std::function<void(JsonReply)> task, unsigned timeout_ms)
{
	auto promise = std::make_shared<std::promise<Result<Json>>>();
	auto answered = std::make_shared<std::atomic<bool>>(false);
	auto future = promise->get_future();
	loop_.post([this, task = std::move(task), promise, answered] {
		task([this, promise, answered](Result<Json> answer) {
			if (answered->exchange(true))
				return;
			publish();    // who has the answer sees the State it speaks of
			promise->set_value(std::move(answer));
		});
	});
	if (future.wait_for(std::chrono::milliseconds(timeout_ms)) != std::future_status::ready)
		return failed(fmt::format("the daemon on host {} did not answer within {} s; the command may still take effect: look before "
					  "repeating it", config_.name, timeout_ms / 1000));
	return future.get();
}

// A host that has left a cluster: its kernel keeps what it had of it, and the host's id, for whoever has a volume open. As another host
// it could serve nothing.
Done Daemon::kernel_is_free() const
{
	if (config_.witness)
		return Nothing{};
	Result<KernelDump> dump = kernel_.dump();
	if (!dump)
		return dump.error();
	if (dump->volumes.empty() && dump->peers.empty())
		return Nothing{};
	return forbidden(fmt::format(
		"the kernel of host {} still holds {} volumes of a cluster that it has left: stop lockstepd, run `lockstep down`, reload the "
		"module with `modprobe -r lockstep` and `modprobe lockstep`, and start lockstepd; then try again", config_.name, dump->volumes.size()));
}

// Of an entry that is made for whoever asks on this thread of the API. Only admins may ask for changes.
nlohmann::json Daemon::asked_here(Json entry) const
{
	if (const Caller *caller = current_caller())
		return with_asker(std::move(entry), caller->name.empty() ? Asker{"root", "root", config_.name} : Asker{caller->name, "admin", config_.name});
	return entry;
}

ApiBackend Daemon::backend()
{
	ApiBackend b;
	b.local = [this] {
		std::lock_guard hold(shared_lock_);
		return facts_;
	};
	b.state = [this] {
		std::lock_guard hold(shared_lock_);
		return published_;
	};
	b.propose = [this](const Json &entry) {
		return on_loop([this, entry = asked_here(entry)](JsonReply done) { propose(entry, std::move(done)); });
	};
	b.barrier = [this]() -> Done {
		auto answer = on_loop([this](JsonReply done) {
			if (!log_)
				return done(coded("no-cluster", forbidden("no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`")));
			log_->barrier([done = std::move(done)](Done reached) {
				if (reached)
					done(Json::object());
				else
					done(reached.error());
			});
		});
		if (!answer)
			return answer.error();
		return Nothing{};
	};
	b.init = [this](const std::string &name) -> Result<Json> {
		if (Done left = kernel_is_free(); !left)
			return left.error();
		return on_loop([this, name](JsonReply done) { init(name, std::move(done)); });
	};
	b.token = [this](uint64_t valid_s) { return on_loop([this, valid_s](JsonReply done) { token(valid_s, std::move(done)); }); };
	b.client_cert = [this](const std::string &name, const std::string &role, uint64_t end_ms) {
		return on_loop([=, this, entry = asked_here({})](JsonReply done) { client_cert(name, role, end_ms, entry, std::move(done)); });
	};
	b.join = [this](const std::string &token, const std::string &address, unsigned port) -> Result<Json> {
		if (Done left = kernel_is_free(); !left)
			return left.error();
		return on_loop([=, this](JsonReply done) { join(token, address, port, std::move(done)); });
	};
	b.recover = [this](const RecoverRequest &request) {
		return on_loop([=, this](JsonReply done) { recover(request, std::move(done)); }, RECOVER_TIMEOUT_MS);
	};
	b.pool_create = [this](const std::string &name, HostId host, const std::string &vg, const std::string &thin_lv) {
		return on_loop([=, this, entry = asked_here({})](JsonReply done) { pool_create(name, host, vg, thin_lv, entry, std::move(done)); });
	};
	b.bare_orphans = [this] { return on_loop([this](JsonReply done) { bare_orphans(std::move(done)); }); };
	b.ask_host = [this](HostId host, const std::string &verb, const Json &body) {
		const unsigned timeout_ms = needs_lvm(verb) ? LVM_CALL_TIMEOUT_MS : CALL_TIMEOUT_MS;
		return on_loop([=, this](JsonReply done) { links_.call(host, verb, body, timeout_ms - 3000, std::move(done)); }, timeout_ms);
	};
	return b;
}

void Daemon::pool_create(const std::string &name, HostId host, const std::string &vg, const std::string &thin_lv, Json entry, JsonReply done)
{
	if (!member_)
		return done(coded("no-cluster", forbidden("no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`")));
	entry.update({{"op", "pool.add"}, {"name", name}, {"host", host}, {"kind", thin_lv.empty() ? "thick" : "thin"}, {"vg", vg}});
	if (!thin_lv.empty())
		entry["thin_lv"] = thin_lv;
	auto add = [this, entry, done](Result<Json> space) mutable {
		if (!space)
			return done(space.error());
		for (const char *field : {"size_bytes", "free_bytes"})
			entry[field] = space->value(field, uint64_t(0));
		propose(std::move(entry), done);
	};
	if (host == member_->host_id)
		inspect_pool(vg, thin_lv, add);
	else
		links_.call(host, "pool.inspect", {{"vg", vg}, {"thin_lv", thin_lv}}, CALL_TIMEOUT_MS - 3000, add);
}

}    // namespace lockstep
