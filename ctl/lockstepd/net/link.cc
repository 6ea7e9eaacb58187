// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/net/link.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>

#include "lockstepd/net/frame.h"

namespace lockstep {

using nlohmann::json;

namespace {

enum FrameType { HEARTBEAT = 0, CALL = 1, ANSWER = 2, ANSWER_ERROR = 3, NOTICE = 4 };

// A link that lived shorter than this counts as a failed attempt: the peer accepts and then changes its mind.
constexpr uint64_t SHORT_LIFE_MS = 1000;

struct Call {
	Call(Loop &loop) : deadline(loop) {}
	std::string verb;
	Links::Reply done;
	Timer deadline;
};

struct Peer {
	Peer(Loop &loop) : retry(loop) {}
	LinkPeer peer;
	std::unique_ptr<FrameStream> stream;    // set: the link is up
	uint64_t generation = 0;                // of the stream, so that late replies find out
	uint64_t up_since_ms = 0;
	uint64_t heard_ms = 0;                  // of former links; the present stream knows better
	std::map<uint64_t, std::unique_ptr<Call>> calls;
	std::optional<Dialer::Token> dialing;
	Timer retry;
	unsigned failures = 0;
	std::string last_error;                 // logged already
	std::string address;                    // over which the link goes, if we dialed it
	uint64_t return_at_ms = 0;              // when to try to come back to the preferred address
	uint64_t return_delay_ms = 0;           // doubles while that does not last
};

constexpr uint64_t RETURN_DELAY_MAX_MS = 300'000;

}    // namespace

struct Links::Impl : std::enable_shared_from_this<Links::Impl> {
	Impl(Loop &loop, Listener &listener, Dialer &dialer, LinkOptions options)
		: loop(loop), listener(listener), dialer(dialer), options(options), beat(loop)
	{
	}

	Loop &loop;
	Listener &listener;
	Dialer &dialer;
	LinkOptions options;
	Timer beat;
	uint64_t last_beat_ms = 0;
	std::map<int, std::unique_ptr<Peer>> peers;
	std::map<int, std::string> names;
	std::map<uint64_t, std::unique_ptr<Call>> self_calls;
	uint64_t next_call = 1;
	uint64_t next_generation = 1;
	std::map<std::string, std::function<void(int, json, Reply)>> callees;
	std::map<std::string, std::function<void(int, json)>> listeners;
	std::vector<std::function<void(int)>> up_watchers, down_watchers;
	std::vector<std::function<void(int, const std::string &)>> path_watchers;
	bool closed = false;

	int self() const { return dialer.identity().host_id; }
	std::string name(int host) const;
	void later(std::function<void()> f);
	void set_peers(std::vector<LinkPeer> wanted);
	void dial(int host);
	void dial_addresses(int host, std::vector<std::string> addresses);
	void keep_path(int host);
	void dial_later(int host, const std::string &error);
	void opened(int host, int fd, const std::string &address);
	void lost(int host, const std::string &reason);
	void received(int host, json frame);
	void serve(int host, json frame);
	void answered(int host, json frame);
	void heartbeat();
	void execute(int from, const std::string &verb, json body, const Reply &reply);
	void hear(int from, const std::string &verb, json body);
	void call(int host, const std::string &verb, json body, uint64_t timeout_ms, Reply done);
	void call_self(const std::string &verb, json body, uint64_t timeout_ms, Reply done);
};

std::string Links::Impl::name(int host) const
{
	const auto it = names.find(host);
	return it != names.end() && !it->second.empty() ? it->second : "host " + std::to_string(host);
}

void Links::Impl::later(std::function<void()> f)
{
	loop.post([weak = weak_from_this(), f = std::move(f)] {
		if (const auto alive = weak.lock(); alive && !alive->closed)
			f();
	});
}

void Links::Impl::set_peers(std::vector<LinkPeer> wanted)
{
	std::map<int, LinkPeer> next;
	for (auto &p : wanted) {
		names[p.host] = p.name;
		if (p.host != self())
			next[p.host] = std::move(p);
	}
	std::vector<int> gone;
	for (const auto &[host, peer] : peers) {
		if (!next.contains(host))
			gone.push_back(host);
	}
	for (const int host : gone) {
		lost(host, "it is no member of the cluster any more");
		if (peers.at(host)->dialing)
			dialer.cancel(*peers.at(host)->dialing);
		peers.erase(host);
	}
	for (auto &[host, peer] : next) {
		auto &slot = peers[host];
		const bool fresh = !slot;
		if (fresh)
			slot = std::make_unique<Peer>(loop);
		if (!fresh && slot->peer.addresses != peer.addresses)
			slot->return_at_ms = Loop::now_ms();    // the path may not be the preferred one any more
		slot->peer = std::move(peer);
		if (fresh && self() != 0 && self() < host)
			dial(host);
	}
}

void Links::Impl::dial(int host)
{
	Peer &p = *peers.at(host);
	if (!p.stream && !p.dialing)
		dial_addresses(host, p.peer.addresses);
}

void Links::Impl::dial_addresses(int host, std::vector<std::string> addresses)
{
	Peer &p = *peers.at(host);
	Hello hello;
	hello.purpose = Purpose::link;
	hello.to_host = host;
	p.dialing = dialer.dial(std::move(addresses), options.default_port, hello, [this, host](Result<int> fd, const HelloAnswer &answer) {
		Peer &p = *peers.at(host);
		p.dialing.reset();
		if (fd)
			opened(host, *fd, answer.address);
		else if (!p.stream)
			dial_later(host, fd.error().message);
	});
}

// Looks whether the link of a peer that we dial should go another way. Called with every heartbeat.
void Links::Impl::keep_path(int host)
{
	Peer &p = *peers.at(host);
	const auto &all = p.peer.addresses;
	const uint64_t now = Loop::now_ms();
	if (!p.stream || p.dialing || p.address.empty() || (all.size() == 1 && all[0] == p.address))
		return;
	const auto here = std::ranges::find(all, p.address);
	if (now - p.stream->last_heard_ms() > options.fallback_ms) {
		// The one that is silent comes last.
		std::vector<std::string> order(all.begin(), here);
		order.insert(order.end(), here == all.end() ? here : here + 1, all.end());
		if (order.empty())
			return;
		loop.log_about("link " + name(host), "link to " + name(host) + " over " + p.address + " is silent: trying its other addresses");
		dial_addresses(host, order);
	} else if (here != all.begin() && now >= p.return_at_ms) {
		p.return_delay_ms = std::min(std::max(2 * p.return_delay_ms, options.return_ms), RETURN_DELAY_MAX_MS);
		p.return_at_ms = now + p.return_delay_ms;
		dial_addresses(host, {all.begin(), here});
	}
}

void Links::Impl::dial_later(int host, const std::string &error)
{
	Peer &p = *peers.at(host);
	if (!error.empty() && error != p.last_error)
		loop.log_about("link " + name(host), "no link to " + name(host) + ": " + error);
	p.last_error = error;
	p.failures++;
	p.retry.once(retry_delay_ms(p.failures), [this, host] { dial(host); });
}

void Links::Impl::opened(int host, int fd, const std::string &address)
{
	const std::string &before = peers.at(host)->address;
	const bool moved = address.empty() ? peers.at(host)->stream != nullptr : !before.empty() && before != address;
	if (peers.at(host)->stream)
		lost(host, "it opened a new one");
	Peer &p = *peers.at(host);
	const uint64_t generation = next_generation++;
	p.generation = generation;
	// A path that lasted is trusted anew.
	if (p.up_since_ms != 0 && Loop::now_ms() - p.up_since_ms > 2 * p.return_delay_ms)
		p.return_delay_ms = 0;
	p.up_since_ms = Loop::now_ms();
	p.address = address;
	p.return_at_ms = Loop::now_ms() + std::max(p.return_delay_ms, options.return_ms);
	p.last_error.clear();
	p.stream = std::make_unique<FrameStream>(
		loop, fd,
		[this, host, generation](json frame) {
			if (peers.contains(host) && peers.at(host)->generation == generation)
				received(host, std::move(frame));
		},
		[this, host, generation](const std::string &reason) {
			if (peers.contains(host) && peers.at(host)->generation == generation)
				lost(host, reason);
		},
		options.queue_max_bytes);
	loop.log_about("link " + name(host), "link to " + name(host) + " is up" + (address.empty() || p.peer.addresses.size() < 2 ? "" : " over " + address));
	later([this, host, generation, moved] {
		if (!peers.contains(host) || peers.at(host)->generation != generation || !peers.at(host)->stream)
			return;
		const auto watchers = up_watchers;
		for (const auto &tell : watchers)
			tell(host);
		const auto path = path_watchers;
		for (const auto &tell : path)
			if (moved && peers.contains(host))
				tell(host, peers.at(host)->address);
	});
}

void Links::Impl::lost(int host, const std::string &reason)
{
	Peer &p = *peers.at(host);
	if (!p.stream)
		return;
	p.heard_ms = std::max(p.heard_ms, p.stream->last_heard_ms());
	p.stream.reset();
	loop.log_about("link " + name(host), "link to " + name(host) + " is down: " + reason);
	auto calls = std::make_shared<std::map<uint64_t, std::unique_ptr<Call>>>(std::move(p.calls));
	p.calls.clear();
	for (auto &[id, call] : *calls)
		call->deadline.stop();
	later([this, host, calls] {
		for (auto &[id, call] : *calls)
			call->done(failed("the connection to " + name(host) + " was lost before it answered"));
		const auto watchers = down_watchers;
		for (const auto &tell : watchers)
			tell(host);
	});
	if (self() < host) {
		p.failures = Loop::now_ms() - p.up_since_ms < SHORT_LIFE_MS ? p.failures : 0;
		dial_later(host, "");
	}
}

void Links::Impl::received(int host, json frame)
{
	const int type = frame.is_array() && !frame.empty() && frame[0].is_number_unsigned() ? frame[0].get<int>() : -1;
	const auto id_at = [&](size_t i) { return frame.size() > i && frame[i].is_number_unsigned(); };
	const auto text_at = [&](size_t i) { return frame.size() > i && frame[i].is_string(); };
	if (type == HEARTBEAT)
		return;
	if (type == CALL && frame.size() == 4 && id_at(1) && text_at(2)) {
		serve(host, std::move(frame));
	} else if ((type == ANSWER && frame.size() == 3 && id_at(1)) ||
		   (type == ANSWER_ERROR && frame.size() == 4 && id_at(1) && frame[2].is_number_integer() && text_at(3))) {
		answered(host, std::move(frame));
	} else if (type == NOTICE && frame.size() == 3 && text_at(1)) {
		hear(host, frame[1].get<std::string>(), std::move(frame[2]));
	} else {
		lost(host, "it sent a malformed message");
	}
}

void Links::Impl::serve(int host, json frame)
{
	const auto id = frame[1].get<uint64_t>();
	const auto verb = frame[2].get<std::string>();
	auto answered = std::make_shared<bool>(false);
	const Reply reply = [weak = weak_from_this(), host, id, verb, answered,
			     generation = peers.at(host)->generation](Result<json> result) {
		const auto alive = weak.lock();
		if (!alive || *answered)
			return;
		*answered = true;
		const auto it = alive->peers.find(host);
		if (it == alive->peers.end() || !it->second->stream || it->second->generation != generation)
			return;
		FrameStream &stream = *it->second->stream;
		if (!result)
			stream.send({ANSWER_ERROR, id, int(result.error().status), result.error().message});
		else if (!stream.send({ANSWER, id, std::move(*result)}))
			stream.send({ANSWER_ERROR, id, int(Status::failed), "the answer to " + verb + " is too large"});
	};
	execute(host, verb, std::move(frame[3]), reply);
}

// Bodies come from other machines, perhaps of another version: a handler that finds one not as it expects it throws.
void Links::Impl::execute(int from, const std::string &verb, json body, const Reply &reply)
{
	const auto it = callees.find(verb);
	if (it == callees.end()) {
		reply(failed(name(self()) + " does not know the call " + verb));
		return;
	}
	const auto handler = it->second;
	try {
		handler(from, std::move(body), reply);
	} catch (const json::exception &e) {
		reply(failed(name(self()) + " found the call " + verb + " malformed: " + e.what()));
	}
}

void Links::Impl::hear(int from, const std::string &verb, json body)
{
	const auto it = listeners.find(verb);
	if (it == listeners.end())
		return;
	const auto handler = it->second;
	try {
		handler(from, std::move(body));
	} catch (const json::exception &e) {
		loop.log("dropped the malformed notice " + verb + " from " + name(from) + ": " + e.what());
	}
}

void Links::Impl::answered(int host, json frame)
{
	Peer &p = *peers.at(host);
	const auto it = p.calls.find(frame[1].get<uint64_t>());
	if (it == p.calls.end())
		return;
	const auto done = std::move(it->second->done);
	p.calls.erase(it);
	if (frame[0] == ANSWER)
		done(std::move(frame[2]));
	else
		done(Error{Status(frame[2].get<int>()), frame[3].get<std::string>()});
}

void Links::Impl::heartbeat()
{
	const uint64_t now = Loop::now_ms();
	// After a pause of our own (a blocked loop, a stopped VM) bytes that came in meanwhile are not read yet.
	const bool we_were_away = last_beat_ms != 0 && now - last_beat_ms > 2 * options.heartbeat_ms;
	last_beat_ms = now;
	std::vector<int> silent;
	for (auto &[host, p] : peers) {
		if (!p->stream)
			continue;
		if (!we_were_away && now - p->stream->last_heard_ms() > options.silence_ms)
			silent.push_back(host);
		else
			p->stream->send(json::array({HEARTBEAT}));
	}
	for (auto &[host, p] : peers)
		if (!we_were_away && self() < host)
			keep_path(host);
	for (const int host : silent)
		lost(host, "nothing was heard from it for " + std::to_string(options.silence_ms) + " ms");
}

// Same rules as over the wire: at most one answer, none after the time is up.
void Links::Impl::call_self(const std::string &verb, json body, uint64_t timeout_ms, Reply done)
{
	const uint64_t id = next_call++;
	const auto finish = [weak = weak_from_this(), id](Result<json> result) {
		const auto alive = weak.lock();
		if (!alive || !alive->self_calls.contains(id))
			return;
		const auto done = std::move(alive->self_calls.at(id)->done);
		alive->self_calls.erase(id);
		alive->later([done, result = std::move(result)]() mutable { done(std::move(result)); });
	};
	auto &c = self_calls[id] = std::make_unique<Call>(loop);
	c->done = std::move(done);
	c->deadline.once(timeout_ms, [finish, why = name(self()) + " did not answer " + verb + " in time"] { finish(failed(why)); });
	later([this, verb, body = std::move(body), finish]() mutable { execute(self(), verb, std::move(body), finish); });
}

void Links::Impl::call(int host, const std::string &verb, json body, uint64_t timeout_ms, Reply done)
{
	if (host == self()) {
		call_self(verb, std::move(body), timeout_ms, std::move(done));
		return;
	}
	const auto it = peers.find(host);
	if (it == peers.end() || !it->second->stream) {
		later([this, host, done = std::move(done)] { done(failed("there is no connection to " + name(host))); });
		return;
	}
	Peer &p = *it->second;
	const uint64_t id = next_call++;
	if (!p.stream->send({CALL, id, verb, std::move(body)})) {
		later([verb, done = std::move(done)] { done(failed("the call " + verb + " is too large")); });
		return;
	}
	auto &c = p.calls[id] = std::make_unique<Call>(loop);
	c->verb = verb;
	c->done = std::move(done);
	c->deadline.once(timeout_ms, [this, host, id] {
		Peer &p = *peers.at(host);
		const auto it = p.calls.find(id);
		const auto done = std::move(it->second->done);
		const std::string verb = it->second->verb;
		p.calls.erase(it);
		done(failed(name(host) + " did not answer " + verb + " in time"));
	});
}

Links::Links(Loop &loop, Listener &listener, Dialer &dialer, LinkOptions options)
	: impl_(std::make_shared<Impl>(loop, listener, dialer, options))
{
	Impl *self = impl_.get();
	listener.handlers().on_link = [self](const Hello &hello, int fd) {
		// The lower id dials; anything else is a misconfigured host, or one we have not heard of yet.
		if (!self->peers.contains(hello.from_host) || hello.from_host >= self->self()) {
			close(fd);
			return;
		}
		self->opened(hello.from_host, fd, "");
	};
	self->beat.every(options.heartbeat_ms, [self] { self->heartbeat(); });
}

Links::~Links()
{
	impl_->closed = true;
	impl_->listener.handlers().on_link = nullptr;
	impl_->beat.stop();
	for (auto &[host, p] : impl_->peers) {
		if (p->dialing)
			impl_->dialer.cancel(*p->dialing);
	}
	impl_->peers.clear();
	impl_->self_calls.clear();
}

void Links::set_peers(std::vector<LinkPeer> peers)
{
	impl_->loop.assert_on_loop();
	impl_->set_peers(std::move(peers));
}

void Links::call(int host, const std::string &verb, Json body, uint64_t timeout_ms, Reply done)
{
	impl_->loop.assert_on_loop();
	impl_->call(host, verb, std::move(body), timeout_ms, std::move(done));
}

void Links::notify(int host, const std::string &verb, Json body)
{
	Impl *self = impl_.get();
	if (host == self->self()) {
		self->later([self, host, verb, body = std::move(body)]() mutable { self->hear(host, verb, std::move(body)); });
		return;
	}
	const auto it = self->peers.find(host);
	if (it != self->peers.end() && it->second->stream)
		it->second->stream->send({NOTICE, verb, std::move(body)});
}

void Links::notify_all(const std::string &verb, const Json &body)
{
	for (auto &[host, p] : impl_->peers) {
		if (p->stream)
			p->stream->send({NOTICE, verb, body});
	}
}

void Links::on_call(const std::string &verb, std::function<void(int, Json, Reply)> handler)
{
	impl_->callees[verb] = std::move(handler);
}

void Links::on_notice(const std::string &verb, std::function<void(int, Json)> handler)
{
	impl_->listeners[verb] = std::move(handler);
}

void Links::on_peer_up(std::function<void(int)> f)
{
	impl_->up_watchers.push_back(std::move(f));
}

void Links::on_peer_down(std::function<void(int)> f)
{
	impl_->down_watchers.push_back(std::move(f));
}

void Links::on_path(std::function<void(int, const std::string &)> f)
{
	impl_->path_watchers.push_back(std::move(f));
}

std::string Links::address(int host) const
{
	const auto it = impl_->peers.find(host);
	return it != impl_->peers.end() && it->second->stream ? it->second->address : "";
}

bool Links::up(int host) const
{
	if (host == impl_->self())
		return true;
	const auto it = impl_->peers.find(host);
	return it != impl_->peers.end() && it->second->stream;
}

uint64_t Links::last_heard(int host) const
{
	if (host == impl_->self())
		return Loop::now_ms();
	const auto it = impl_->peers.find(host);
	if (it == impl_->peers.end())
		return 0;
	return it->second->stream ? it->second->stream->last_heard_ms() : it->second->heard_ms;
}

std::string Links::name(int host) const
{
	return impl_->name(host);
}

}    // namespace lockstep
