// SPDX-License-Identifier: GPL-2.0-or-later
//
// One attempt at a pair at a time: lane.prepare, dial all lanes, hand them over, wait for the kernel to call the link up. An
// attempt that fails anywhere is dropped as a whole; the next one has a new link number, which makes the kernels
// forget the lanes of this one.
#include "lockstepd/host/lanes.h"

#include <unistd.h>

#include <algorithm>

#include <fmt/format.h>

#include "lockstepd/cluster/option.h"
#include "lockstepd/net/listener.h"

namespace lockstep {

constexpr unsigned FAILURES_SAID = 3;    // in a row before there is a line about it: a host that starts is not ready at first

Lanes::Lanes(HostId self, unsigned lanes, LanesWorld world) : self_(self), lanes_(lanes), world_(std::move(world)) {}

void Lanes::look()
{
	const KernelDump *dump = world_.dump();
	if (!dump)
		return;
	std::erase_if(pairs_, [&](const auto &entry) { return !world_.state().host(entry.first) && !entry.second.dialing; });
	for (const auto &[id, host] : world_.state().hosts) {
		const KernelPeer *peer = dump->peer(id);
		if (id != self_ && peer && !host.witness)
			look_at(host, peer, pairs_[id]);
	}
}

void Lanes::look_at(const Host &host, const KernelPeer *peer, Pair &p)
{
	const uint64_t now = world_.now_ms();
	if (peer->up != p.was_up) {
		p.was_up = peer->up;
		if (peer->up) {
			say(host.id, fmt::format("link {} to host {} is up", peer->link, host.name));
			p.failures = 0;
			p.error.clear();
			p.said.clear();
			p.up_since_ms = now;
			p.up_by_ms = 0;
		}
	}
	if (host.id < self_) {
		if (!peer->up && now - p.want_said_ms >= LANE_WANT_PERIOD_MS) {
			p.want_said_ms = now;
			world_.notify(host.id, "lane.want", {{"link", peer->link}});
		}
		return;
	}
	if (p.dialing)
		return;
	const bool plain = !lanes_encrypted(world_.state());
	if (peer->up && link_is_plain(peer->link) != plain && !p.want_new) {
		p.want_new = true;
		if (p.failures == 0)
			say(host.id, fmt::format("lanes to host {} are made anew: they are to be {}", host.name, plain ? "plain" : "encrypted"));
	}
	if (peer->up && !p.want_new)
		return;
	// What has just been handed over need not be in this dump yet.
	if (p.up_by_ms && !p.want_new) {
		if (now < p.up_by_ms)
			return;
		p.up_by_ms = 0;
		fail(host.id, p, fmt::format("link {} to host {} did not come up", p.link, host.name));
		return;
	}
	if (now >= p.not_before_ms && world_.link_up(host.id))
		begin(host, p);
}

void Lanes::say(HostId host, const std::string &line)
{
	world_.log_about("lanes " + world_.state().host_name(host), line);
}

void Lanes::fail(HostId host, Pair &p, const std::string &why)
{
	p.dialing = false;
	p.up_by_ms = 0;
	p.failures++;
	p.not_before_ms = world_.now_ms() + retry_delay_ms(p.failures);
	p.error = why;
	if (p.failures < FAILURES_SAID || p.said == why)
		return;
	say(host, fmt::format("no lanes to host {}: {}", world_.state().host_name(host), why));
	p.said = why;
}

void Lanes::begin(const Host &host, Pair &p)
{
	p.dialing = true;
	p.want_new = false;
	world_.call(host.id, "lane.prepare", nlohmann::json::object(), [this, id = host.id](Result<nlohmann::json> answer) {
		Pair &p = pairs_[id];
		const Host *host = world_.state().host(id);
		const KernelDump *dump = world_.dump();
		const KernelPeer *peer = dump ? dump->peer(id) : nullptr;
		if (!answer)
			return fail(id, p, answer.error().message);
		if (!host || !peer || !answer->is_object() || !answer->value("ready", false))
			return fail(id, p, answer->is_object() ? answer->value("message", "not ready") : "not ready");
		uint64_t link = std::max({peer->link, p.link, answer->value("link", uint64_t(0))}) + 1;
		if (link_is_plain(link) == lanes_encrypted(world_.state()))
			link++;
		dial(*host, p, link);
	});
}

void Lanes::dial(const Host &host, Pair &p, uint64_t link)
{
	p.link = link;
	p.pending = lanes_;
	p.broken = false;
	p.path = world_.path(host.id);
	for (uint32_t lane = 0; lane < lanes_; lane++)
		world_.dial(host, lane, lanes_, link, [this, id = host.id, lane, link](Result<int> fd) {
			if (!fd)
				lane_done(id, link, fd.error());
			else
				world_.lane_add(id, lane, lanes_, link, *fd, [this, id, link](Done done) { lane_done(id, link, done); });
		});
}

void Lanes::lane_done(HostId host, uint64_t link, const Done &done)
{
	Pair &p = pairs_[host];
	if (link != p.link)
		return;
	p.pending--;
	if (!done) {
		p.broken = true;
		fail(host, p, done.error().message);
		p.dialing = p.pending > 0;
		return;
	}
	if (p.pending)
		return;
	p.dialing = false;
	if (!p.broken)
		p.up_by_ms = world_.now_ms() + LANE_UP_TIMEOUT_MS;
}

nlohmann::json Lanes::prepare(HostId from) const
{
	const KernelDump *dump = world_.dump();
	const KernelPeer *peer = dump ? dump->peer(from) : nullptr;
	if (!peer)
		return {{"ready", false}, {"message", "its kernel is not ready for us yet"}};
	auto pair = pairs_.find(from);
	const uint64_t accepted = pair == pairs_.end() ? 0 : pair->second.link;
	return {{"ready", true}, {"link", std::max(peer->link, accepted)}};
}

void Lanes::accepted(HostId from, uint32_t lane, uint32_t lanes, uint64_t link, int fd)
{
	const bool sound = from < self_ && world_.state().host(from) && lanes >= 1 && lanes <= LKS_MAX_LANES && lane < lanes;
	if (!sound) {
		say(from, fmt::format("refused a lane from host {}: lane {} of {}", world_.state().host_name(from), lane, lanes));
		close(fd);
		return;
	}
	Pair &p = pairs_[from];
	p.link = std::max(p.link, link);
	world_.lane_add(from, lane, lanes, link, fd, [this, from](Done done) {
		Pair &p = pairs_[from];
		if (done) {
			p.error.clear();
			return;
		}
		if (p.error != done.error().message)
			say(from, fmt::format("no lane from host {}: {}", world_.state().host_name(from), done.error().message));
		p.error = done.error().message;
	});
}

void Lanes::wanted(HostId from, uint64_t last_link)
{
	auto pair = pairs_.find(from);
	const KernelDump *dump = world_.dump();
	const KernelPeer *peer = dump ? dump->peer(from) : nullptr;
	if (from < self_ || pair == pairs_.end() || !peer || !peer->up)
		return;
	Pair &p = pair->second;
	// Ours is up, theirs is not: either theirs is about to be, or ours is the remains of a connection.
	const bool fresh = peer->link > last_link && world_.now_ms() - p.up_since_ms < LANE_WANT_GRACE_MS;
	if (!p.dialing && !fresh)
		p.want_new = true;
}

void Lanes::path_changed(HostId host, const std::string &address)
{
	auto pair = pairs_.find(host);
	if (pair == pairs_.end() || host < self_ || address.empty() || pair->second.path.empty() || pair->second.path == address)
		return;
	say(host, fmt::format("lanes to host {} go over {} now", world_.state().host_name(host), address));
	pair->second.want_new = true;
	pair->second.not_before_ms = 0;
}

void Lanes::link_down(HostId host, uint64_t link)
{
	auto pair = pairs_.find(host);
	if (pair == pairs_.end() || pair->second.dialing || pair->second.link != link || host < self_)
		return;
	if (pair->second.up_by_ms)
		fail(host, pair->second, fmt::format("link {} to host {} broke at once", link, world_.state().host_name(host)));
}

std::vector<std::string> Lanes::problems() const
{
	std::vector<std::string> list;
	for (const auto &[host, p] : pairs_)
		if (!p.error.empty())
			list.push_back(p.error);
	return list;
}

}    // namespace lockstep
