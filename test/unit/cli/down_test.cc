// SPDX-License-Identifier: GPL-2.0-or-later
//
// down: what it does with a kernel, in which order, and when it gives up.
#include "fake.h"

#include "lockstep/down.h"

#include <sstream>

using namespace lockstep;
using namespace lockstep::test;

namespace {

// A kernel with volumes; it refuses what the real one refuses.
struct FakeKernel {
	KernelDump state;
	std::vector<std::string> done;
	bool closes = true;                     // openers close when their requests fail
	uint64_t now_ms = 0;

	KernelVolume &add(uint32_t vid, const std::string &name, uint32_t openers = 0)
	{
		KernelVolume &v = state.volumes[vid];
		v.vid = vid;
		v.name = name;
		v.has_device = true;
		v.replica.emplace();
		v.openers = openers;
		return v;
	}

	Kernel kernel()
	{
		Kernel k;
		k.dump = [this]() -> Result<KernelDump> { return state; };
		k.abort = [this](uint32_t vid) -> Done {
			done.push_back("abort " + std::to_string(vid));
			if (closes)
				state.volumes.at(vid).openers = 0;
			return Nothing{};
		};
		k.device_del = [this](uint32_t vid) -> Done {
			if (state.volumes.at(vid).openers)
				return failed("the device is open on this host");
			done.push_back("device_del " + std::to_string(vid));
			state.volumes.at(vid).has_device = false;
			return Nothing{};
		};
		k.replica_detach = [this](uint32_t vid) -> Done {
			if (!state.volumes.at(vid).replica)
				return Nothing{};
			done.push_back("detach " + std::to_string(vid));
			state.volumes.at(vid).replica.reset();
			return Nothing{};
		};
		k.volume_del = [this](uint32_t vid) -> Done {
			if (state.volumes.at(vid).has_device || state.volumes.at(vid).replica)
				return failed("a replica is attached");
			done.push_back("volume_del " + std::to_string(vid));
			state.volumes.erase(vid);
			return Nothing{};
		};
		k.peer_del = [this](uint8_t host) -> Done {
			done.push_back("peer_del " + std::to_string(host));
			return Nothing{};
		};
		return k;
	}

	std::ostringstream out, err;
	Done down(const std::string &volume, bool force)
	{
		cli::Context context{out, err};
		const cli::DownClock clock = {[this] { return now_ms; }, [this](uint64_t ms) { now_ms += ms; }};
		done.clear();
		return cli::take_down(context, kernel(), clock, volume, force);
	}
};

using Steps = std::vector<std::string>;

}    // namespace

TEST_CASE("down takes a volume out of the kernel in order, and all of them with the links")
{
	FakeKernel k;
	k.add(1, "a");
	k.add(2, "b");
	k.state.peers[2] = {};
	REQUIRE(k.down("b", false));
	CHECK(k.done == Steps{"device_del 2", "detach 2", "volume_del 2"});
	CHECK(k.down("b", false).error().status == Status::not_found);
	REQUIRE(k.down("", false));
	CHECK(k.done == Steps{"device_del 1", "detach 1", "volume_del 1", "peer_del 2"});
	CHECK(has(k.out.str(), "modprobe -r lockstep"));
	REQUIRE(k.down("", true));
}

TEST_CASE("down leaves alone what is open, and by force fails its requests first")
{
	FakeKernel k;
	k.add(1, "a", 1);
	k.add(2, "b");
	Done refused = k.down("", false);
	REQUIRE(!refused);
	CHECK(refused.error().status == Status::forbidden);
	CHECK(has(refused.error().message, "volume a is open on this host"));
	CHECK(k.done == Steps{"device_del 2", "detach 2", "volume_del 2"});    // the others go all the same
	REQUIRE(k.down("a", true));
	CHECK(k.done == Steps{"detach 1", "abort 1", "device_del 1", "volume_del 1"});
}

TEST_CASE("down by force says what is in its way when nobody closes the device")
{
	FakeKernel k;
	k.add(1, "a", 1);
	k.closes = false;
	Done stuck = k.down("a", true);
	REQUIRE(!stuck);
	CHECK(stuck.error().status == Status::failed);
	CHECK(has(stuck.error().message, "volumes/a/openers"));
	CHECK(k.now_ms >= 10000);
	CHECK(k.state.volumes.contains(1));
	k.closes = true;
	REQUIRE(k.down("a", true));
	CHECK(k.state.volumes.empty());
}

TEST_CASE("down is refused while the daemon runs")
{
	FakeDaemon d;
	Outcome o = d.run({"down", "v", "--force"});
	CHECK(o.status == 5);
	CHECK(has(o.err, "systemctl stop lockstepd"));
}
