// SPDX-License-Identifier: GPL-2.0-or-later
//
// Raft's directory while no log runs in it: made for a new member, set aside when it may not vote any more, forced to a new
// configuration after the loss of a majority, and read without being used.
//
// Nothing here overwrites a log. A directory takes its place by rename when it is complete and on the disk; the one that stood there stays
// beside it, under a name that says what it was.
#include "lockstepd/consensus/directory.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>
#include <uv.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "lockstepd/consensus/host_file.h"
#include "lockstepd/consensus/membership.h"
#include "lockstepd/consensus/snapshot.h"
#include "lockstepd/net/frame.h"

namespace lockstep {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr uint64_t REPLAY_LIMIT_MS = 60'000;

unsigned random_seed()
{
	unsigned seed = 0;
	if (getrandom(&seed, sizeof seed, 0) != ssize_t(sizeof seed))
		abort();
	return seed;
}

Done flush(const std::string &path)
{
	const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) != 0) {
		const int error = errno;
		if (fd >= 0)
			close(fd);
		return failed("cannot flush " + path + ": " + strerror(error));
	}
	close(fd);
	return Nothing{};
}

Done flush_all(const std::string &dir)
{
	for (const auto &file : fs::directory_iterator(dir))
		if (Done done = flush(file.path().string()); !done)
			return done;
	return flush(dir);
}

Done fresh_copy(const std::string &from, const std::string &to)
{
	std::error_code error;
	fs::remove_all(to, error);
	fs::create_directories(to, error);
	// A file may go while we look: the log finishes one and begins another, or drops what a snapshot holds. Then once more.
	for (int tries = 0; tries < 5; tries++) {
		error.clear();
		fs::copy(from, to, fs::copy_options::recursive, error);
		if (!error)
			return Nothing{};
		fs::remove_all(to, error);
		fs::create_directories(to, error);
	}
	return failed("cannot copy " + from + " to " + to + (error ? ": " + error.message() : ""));
}

Done write_member_file(const ConsensusOptions &options, const std::string &dir)
{
	return write_file_durably(dir + "/" + MEMBER_FILE, std::to_string(options.self.raft_id) + "\n");
}

uint64_t member_of(const std::string &dir)
{
	uint64_t raft_id = 0;
	std::ifstream(dir + "/" + MEMBER_FILE) >> raft_id;
	return raft_id;
}

// Opens dir on a loop of its own, does something with it before any start, and closes it.
Done with_log(const ConsensusOptions &options, const std::string &dir, const std::function<int(lks_raft *)> &task, const char *what)
{
	uv_loop_t loop;
	if (uv_loop_init(&loop) != 0)
		return failed("cannot make an event loop");
	const std::string address = encode_member(options.self);
	ConsensusOptions there = options;
	there.dir = dir;
	const lks_raft_config config = shim_config(there, &loop, address);
	lks_raft_ops ops{};
	ops.cancel_dials = [](void *) {};
	ops.diagnostic = [](void *, const char *) {};
	char errmsg[LKS_RAFT_ERRMSG_BYTES];
	Done done = Nothing{};
	lks_raft *raft = lks_raft_new(&config, &ops, errmsg);
	if (!raft) {
		done = failed("cannot open the log in " + dir + ": " + errmsg);
	} else {
		const int status = task(raft);
		if (status != 0)
			done = failed("cannot " + std::string(what) + " the log in " + dir + ": " + lks_raft_strerror(status));
		lks_raft_close(raft, nullptr, nullptr);
	}
	uv_run(&loop, UV_RUN_DEFAULT);
	uv_loop_close(&loop);
	return done;
}

// Makes options.dir anew, with MEMBER_FILE and, if asked for, a first configuration in it.
Done make_dir(const ConsensusOptions &options, bool found)
{
	const fs::path dir = options.dir;
	std::error_code error;
	fs::remove_all(dir, error);
	fs::create_directories(dir, error);
	if (error)
		return failed("cannot make " + dir.string() + " anew: " + error.message());
	Done done = with_log(options, options.dir, [&](lks_raft *raft) { return found ? lks_raft_bootstrap(raft) : 0; }, "write");
	if (done)
		done = write_member_file(options, options.dir);
	if (done)
		done = flush(dir.parent_path().string());
	return done;
}

Done not_a_member_yet(const ConsensusOptions &options)
{
	std::error_code error;
	const fs::path file = fs::path(options.dir).parent_path() / "host.json";
	if (fs::exists(file, error))
		return forbidden("this host is a member of a cluster already (" + file.string() + " exists)");
	return Nothing{};
}

// ---- replaying ----

struct Replay {
	StateMachine machine;
	Once once;
	std::string error;
	bool finished = false;
};

lks_raft_ops replay_ops(Replay &replay)
{
	lks_raft_ops o{};
	o.ctx = &replay;
	o.apply = [](void *c, uint64_t index, const void *data, size_t bytes) noexcept {
		auto &r = *static_cast<Replay *>(c);
		const auto entry = unwrap_entry({static_cast<const char *>(data), bytes});
		if (!entry) {
			r.error = "entry " + std::to_string(index) + " is malformed";
			return;
		}
		if (r.once.result_of(entry->id) || Once::too_late(index, entry->first_try_at))
			return;
		try {
			r.once.remember(entry->id, r.machine.apply(index, entry->payload));
		} catch (const std::exception &e) {
			r.error = e.what();
		}
	};
	o.snapshot = [](void *, void **, size_t *) noexcept { return false; };
	o.restore = [](void *c, const void *data, size_t bytes) noexcept {
		auto &r = *static_cast<Replay *>(c);
		const Unpacked u = unpack_snapshot({static_cast<const char *>(data), bytes}, r.once);
		return u.whole && u.understood && r.machine.restore(u.state);
	};
	o.proposed = [](void *, void *, int, uint64_t) noexcept {};
	o.barrier_done = [](void *c, void *, int status) noexcept {
		auto &r = *static_cast<Replay *>(c);
		r.finished = true;
		if (status != 0)
			r.error = lks_raft_strerror(status);
	};
	o.changed = [](void *, int) noexcept {};
	o.dial = [](void *, uint64_t, const char *, lks_raft_dial *) noexcept {};
	o.cancel_dials = [](void *) noexcept {};
	o.turn = [](void *) noexcept {};
	o.diagnostic = [](void *, const char *) noexcept {};
	return o;
}

// Starts the copy in dir, whose only voter this host is, and waits until all its entries have been applied.
Done run_alone(const ConsensusOptions &options, const std::string &dir, Replay &replay)
{
	uv_loop_t loop;
	if (uv_loop_init(&loop) != 0)
		return failed("cannot make an event loop");
	const std::string address = encode_member(options.self);
	ConsensusOptions there = options;
	there.dir = dir;
	there.snapshot_threshold = UINT32_MAX;
	const lks_raft_config config = shim_config(there, &loop, address);
	const lks_raft_ops ops = replay_ops(replay);
	char errmsg[LKS_RAFT_ERRMSG_BYTES];
	lks_raft *raft = lks_raft_new(&config, &ops, errmsg);
	if (!raft) {
		uv_run(&loop, UV_RUN_DEFAULT);
		uv_loop_close(&loop);
		return failed("cannot open " + dir + ": " + errmsg);
	}
	Done done = Nothing{};
	if (lks_raft_start(raft) != 0) {
		done = failed("cannot load the log in " + options.dir + ": " + lks_raft_errmsg(raft));
	} else {
		// Whoever is the only voter leads at once, and commits what it has with its first own entry.
		const uint64_t end = Loop::now_ms() + REPLAY_LIMIT_MS;
		bool asked = false;
		while (!replay.finished && Loop::now_ms() < end) {
			if (!asked && lks_raft_is_leader(raft))
				asked = lks_raft_barrier(raft, nullptr) == 0;
			uv_run(&loop, UV_RUN_ONCE);
		}
		if (!replay.finished)
			done = failed("the log in " + options.dir + " could not be read within " + std::to_string(REPLAY_LIMIT_MS / 1000) + " s");
		else if (!replay.error.empty())
			done = failed("the log in " + options.dir + " cannot be followed: " + replay.error);
	}
	lks_raft_close(raft, nullptr, nullptr);
	uv_run(&loop, UV_RUN_DEFAULT);
	uv_loop_close(&loop);
	return done;
}

}    // namespace

lks_raft_config shim_config(const ConsensusOptions &o, uv_loop_s *loop, const std::string &address)
{
	lks_raft_config c{};
	c.loop = loop;
	c.dir = o.dir.c_str();
	c.id = o.self.raft_id;
	c.address = address.c_str();
	c.heartbeat_ms = o.heartbeat_ms;
	c.election_ms = o.election_ms;
	c.snapshot_threshold = o.snapshot_threshold;
	c.snapshot_trailing = o.snapshot_trailing;
	c.seed = random_seed();
	return c;
}

Done note_reached(const std::string &dir, Reached r)
{
	return write_file_durably(dir + "/reached", std::to_string(r.term) + " " + std::to_string(r.index) + "\n");
}

Reached read_reached(const std::string &dir)
{
	Reached noted;
	std::ifstream in(dir + "/reached");
	return in >> noted.term >> noted.index ? noted : Reached{};
}

Done check_reached(const ConsensusOptions &options)
{
	const Reached noted = read_reached(options.dir);
	ConsensusLog::Position at;
	uint64_t term = 0;
	int status = 0;
	const auto read = [&](lks_raft *raft) { return status = lks_raft_position(raft, &at.term, &at.index, &term); };
	if (Done opened = with_log(options, options.dir, read, "load"); !opened) {
		Error error = opened.error();
		if (lks_raft_is_damage(status))
			error.code = LOG_DAMAGED;
		return error;
	}
	if (term >= noted.term && at.index >= noted.index)
		return Nothing{};
	return coded(LOG_DAMAGED, failed("the log in " + options.dir + " ends in term " + std::to_string(term) + " with entry " + std::to_string(at.index) +
					 ", but was in term " + std::to_string(noted.term) + " at entry " + std::to_string(noted.index) + " before"));
}

Unpacked unpack_snapshot(std::string_view wrapped, Once &once)
{
	Unpacked u;
	const auto payload = unwrap_snapshot(wrapped);
	uint64_t once_bytes = 0;
	if (payload && payload->size() >= sizeof once_bytes)
		memcpy(&once_bytes, payload->data(), sizeof once_bytes);
	if (!payload || once_bytes == 0 || once_bytes > payload->size() - sizeof once_bytes) {
		u.whole = is_other_snapshot(wrapped);
		return u;
	}
	u.whole = true;
	const auto known = parse_cbor(payload->substr(sizeof once_bytes, once_bytes));
	u.understood = known && once.load(*known);
	u.state = payload->substr(sizeof once_bytes + once_bytes);
	return u;
}

Done ConsensusLog::bootstrap(const ConsensusOptions &options)
{
	if (Done fits = not_a_member_yet(options); !fits)
		return fits;
	return make_dir(options, true);
}

Done ConsensusLog::prepare_join(const ConsensusOptions &options)
{
	if (Done fits = not_a_member_yet(options); !fits)
		return fits;
	return make_dir(options, false);
}

static Done make_dir_beside(const ConsensusOptions &options, bool found)
{
	const uint64_t former = member_of(options.dir);
	std::error_code error;
	if (fs::exists(options.dir, error) && former != options.self.raft_id) {
		const std::string aside = options.dir + ".ended";    // for whoever wants to know what became of it; only the last one
		fs::remove_all(aside, error);
		fs::rename(options.dir, aside, error);
		if (error)
			return failed("cannot set " + options.dir + " aside: " + error.message());
	}
	return make_dir(options, found);
}

Done ConsensusLog::prepare_rejoin(const ConsensusOptions &options)
{
	return make_dir_beside(options, false);
}

Done ConsensusLog::rebuild(const ConsensusOptions &options)
{
	return make_dir_beside(options, true);
}

Done ConsensusLog::recover(const ConsensusOptions &options)
{
	const std::string dir = options.dir, next = dir + ".recovering", aside = dir + ".before-recovery";
	if (member_of(dir) == options.self.raft_id)
		return Nothing{};
	std::error_code error;
	const bool moved = !fs::exists(dir, error);    // killed between the two renames
	if (Done copied = fresh_copy(moved ? aside : dir, next); !copied)
		return copied;
	Done done = with_log(options, next, lks_raft_recover, "recover");
	if (done)
		done = write_member_file(options, next);
	if (done)
		done = flush_all(next);
	if (!done)
		return done;
	if (!moved) {
		fs::remove_all(aside, error);
		fs::rename(dir, aside, error);
	}
	if (!error)
		fs::rename(next, dir, error);
	if (error)
		return failed("cannot put the recovered log in place as " + dir + ": " + error.message());
	return flush(fs::path(dir).parent_path().string());
}

uint64_t ConsensusLog::known_committed(const ConsensusOptions &options) { return read_reached(options.dir).index; }

Result<ConsensusLog::Position> ConsensusLog::replay(const ConsensusOptions &options, StateMachine machine)
{
	const std::string copy = options.dir + ".look";
	Position at;
	uint64_t current_term;
	Replay replay{std::move(machine), {}, {}, false};
	Done done = fresh_copy(options.dir, copy);
	if (done)
		done = with_log(options, copy, [&](lks_raft *raft) { return lks_raft_position(raft, &at.term, &at.index, &current_term); }, "read");
	if (done)
		done = with_log(options, copy, lks_raft_recover, "read");
	if (done)
		done = run_alone(options, copy, replay);
	std::error_code ignored;
	fs::remove_all(copy, ignored);
	if (!done)
		return done.error();
	return at;
}

}    // namespace lockstep
