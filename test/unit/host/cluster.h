// SPDX-License-Identifier: GPL-2.0-or-later
//
// Several hosts with one log: each has a real reconciler on a fake kernel, LVM and disks (fakes.h), one of them decides as the leader
// does, volumes that are open are written to all the time, and what a primary's kernel does for the others (resync, joins) is played.
//
// Steps are numbered over all hosts: what a reconciler does to kernel, LVM or disk, every entry that it, the leader or a command proposes.
// Daemons can be killed at any of them. What a kernel, a disk and the log hold stays; all that a daemon knew is gone.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "fakes.h"
#include "lockstepd/cluster/controller.h"
#include "lockstepd/cluster/repair.h"
#include "lockstepd/host/decisions.h"

namespace lockstep::test {

enum class Strike {
	none,
	before,     // whoever takes the step dies before it is done, and is there again at once
	after,      // ... when it is done, but before it hears so; it is away for a second
	all,        // ... and all others with it; they are there again at once
	other,      // another one dies meanwhile; it is away for a second
};

class Cluster {
public:
	using Json = nlohmann::json;

	Cluster(PoolKind kind, HostId hosts = 3);

	const std::shared_ptr<FakeLog> log = std::make_shared<FakeLog>();
	State &state = log->state;
	FakeWorld &at(HostId host) { return *worlds_.at(host); }
	const Volume &volume(const std::string &name) const { return *state.volume_named(name); }
	uint32_t vid(const std::string &name) const { return volume(name).vid; }

	// Step `at` from now on (1: the next).
	void strike(Strike how, uint64_t at = 0, HostId other = 0);

	// A command that is given on host `asked`: one entry, or something else that its daemon does. An Error, too, if that dies.
	static constexpr HostId asked = 2;
	Result<Json> ask(Json entry);
	std::vector<std::string> refusals;     // what it was answered
	template <class R> Result<R> does(HostId host, const std::function<R(FakeWorld &)> &what);
	// False: the daemon that was asked has died meanwhile, or it takes too long.
	bool waits(const std::function<bool()> &done, uint64_t ms = 60'000);

	bool run_until(const std::function<bool()> &done, uint64_t ms = 60'000);
	bool settles();                        // nobody does anything any more
	void open(HostId host, const std::string &name);
	void close(HostId host, const std::string &name);
	void power_off(HostId host);

	// All that counts, by names and without numbers that depend on how it came about.
	Json picture();
	// What is not as it must be when all have settled: left over, missing, or against the rules.
	std::vector<std::string> wrong();

private:
	void start(HostId host);
	void kill(HostId host, uint64_t away_ms);
	void killed(HostId host);
	bool turn();
	void notice();
	void lead();
	void play_kernels();
	void play_resync(const Volume &v);
	void play_writer(const Volume &v);
	bool takes_part(HostId host, uint32_t vid);
	bool up(HostId host) { return worlds_.contains(host) && !worlds_.at(host)->killed(); }
	bool idle();
	std::string label(const std::string &data, uint32_t vid);
	FakeLv *replica_lv(const Volume &v, HostId host);
	void wrong_on(HostId host, FakeWorld &w, std::vector<std::string> &list);

	std::map<HostId, std::unique_ptr<FakeWorld>> worlds_;
	std::map<HostId, uint64_t> restart_ms_;
	std::map<HostId, unsigned> lives_;
	std::set<HostId> off_;                 // without power
	Strike how_ = Strike::none;
	uint64_t other_at_ = 0;
	HostId other_ = 0;
	uint64_t noticed_ = 0;                 // index up to which all have looked
	std::vector<std::string> broken_;      // invariants
	HostId leader_ = 0;
	std::unique_ptr<Decisions> decisions_;
	LifeClock life_clock_;
	std::map<uint32_t, std::string> written_;
	unsigned writes_ = 0;
};

template <class R> Result<R> Cluster::does(HostId host, const std::function<R(FakeWorld &)> &what)
{
	if (!up(host))
		return failed("its daemon is dead");
	try {
		return what(at(host));
	} catch (const FakeWorld::Killed &) {
		killed(host);
		return failed("its daemon has died");
	}
}

}    // namespace lockstep::test
