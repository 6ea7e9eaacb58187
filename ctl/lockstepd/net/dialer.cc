// SPDX-License-Identifier: GPL-2.0-or-later
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "lockstepd/net/frame.h"
#include "lockstepd/net/listener.h"
#include "lockstepd/net/poll.h"
#include "lockstepd/net/socket.h"

namespace lockstep {

using nlohmann::json;

uint64_t retry_delay_ms(unsigned failures)
{
	const unsigned doublings = std::min(failures > 0 ? failures - 1 : 0, 10u);
	return std::min(RETRY_MIN_MS << doublings, RETRY_MAX_MS);
}

namespace {

struct Attempt {
	explicit Attempt(Loop &loop) : deadline(loop) {}

	std::vector<std::string> addresses;
	uint16_t default_port;
	Hello hello;
	Dialer::Callback done;
	std::string authority_fingerprint;
	size_t at = 0;    // the address being tried
	std::unique_ptr<TlsSession> tls;
	std::unique_ptr<Poll> poll;    // lets go of the descriptor before tls closes it
	Timer deadline;
	bool secured = false;          // the handshake is through
	HelloReader reader{true};
	std::string last_error;
};

struct Request {
	explicit Request(Loop &loop) : deadline(loop) {}
	json body;
	std::string what;    // address list, for messages
	std::function<void(Result<json>)> done;
	Dialer::Token dialing = 0;
	std::unique_ptr<FrameStream> stream;
	Timer deadline;
};

std::string joined(const std::vector<std::string> &addresses)
{
	std::string out;
	for (const auto &a : addresses)
		out += (out.empty() ? "" : ", ") + a;
	return out;
}

Result<json> decode_answer(const json &frame)
{
	if (frame.is_array() && frame.size() == 2 && frame[0] == 1)
		return frame[1];
	if (frame.is_array() && frame.size() == 3 && frame[0] == 2 && frame[1].is_number_integer() && frame[2].is_string())
		return Error{Status(frame[1].get<int>()), frame[2].get<std::string>()};
	return failed("the answer is malformed");
}

}    // namespace

struct Dialer::Impl : std::enable_shared_from_this<Dialer::Impl> {
	Impl(Loop &loop, Tls &tls) : loop(loop), tls(tls) {}

	Loop &loop;
	Tls &tls;
	Identity identity;
	std::map<Token, std::unique_ptr<Attempt>> attempts;
	std::map<uint64_t, std::unique_ptr<Request>> requests;
	Token next = 1;

	void try_address(Token token);
	void connected(Token token);
	void ready(Token token);
	void secure(Token token);
	std::optional<std::string> objection(const Attempt &a) const;
	void next_address(Token token, const std::string &error);
	void finish_request(uint64_t id, Result<json> result);
};

void Dialer::Impl::try_address(Token token)
{
	Attempt &a = *attempts.at(token);
	if (a.at == a.addresses.size()) {
		const auto done = std::move(a.done);
		const std::string error = a.last_error.empty() ? "no address is known" : a.last_error;
		attempts.erase(token);
		done(failed(error), HelloAnswer{});
		return;
	}
	const auto address = parse_address(a.addresses[a.at], a.default_port);
	if (!address) {
		next_address(token, address.error().message);
		return;
	}
	const std::string where = format_address(*address);
	const int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		next_address(token, where + ": " + strerror(errno));
		return;
	}
	set_nodelay(fd);
	if (connect(fd, reinterpret_cast<const sockaddr *>(&*address), sizeof *address) != 0 && errno != EINPROGRESS) {
		next_address(token, where + ": " + strerror(errno));
		close(fd);
		return;
	}
	a.tls = a.authority_fingerprint.empty() ? tls.connect(fd) : tls.connect_as_stranger(fd, a.authority_fingerprint);
	if (!a.tls) {
		next_address(token, where + ": this host has no certificate of a cluster");
		return;
	}
	a.reader = HelloReader(true);
	a.secured = false;
	a.poll = std::make_unique<Poll>(loop, fd);
	if (!a.poll->ok()) {
		next_address(token, where + ": cannot watch the connection");
		return;
	}
	a.poll->start(UV_WRITABLE, [this, token] { connected(token); });
	a.deadline.once(CONNECT_TIMEOUT_MS, [this, token, where] { next_address(token, where + ": no answer in time"); });
}

void Dialer::Impl::next_address(Token token, const std::string &error)
{
	Attempt &a = *attempts.at(token);
	a.last_error = error;
	a.deadline.stop();
	a.poll.reset();
	a.tls.reset();
	a.at++;
	loop.post([weak = weak_from_this(), token] {
		const auto self = weak.lock();
		if (self && self->attempts.contains(token))
			self->try_address(token);
	});
}

void Dialer::Impl::connected(Token token)
{
	Attempt &a = *attempts.at(token);
	int error = 0;
	socklen_t length = sizeof error;
	getsockopt(a.tls->fd(), SOL_SOCKET, SO_ERROR, &error, &length);
	if (error != 0)
		next_address(token, a.addresses[a.at] + ": " + strerror(error));
	else
		secure(token);
}

// Whether the one that answered is the one we mean.
std::optional<std::string> Dialer::Impl::objection(const Attempt &a) const
{
	const auto &peer = a.tls->peer();
	if (!a.authority_fingerprint.empty())
		return std::nullopt;    // anybody of that cluster
	if (!peer || peer->subject.cluster_uuid != identity.cluster_uuid)
		return "it is in another cluster";
	if (a.hello.to_host != 0 && peer->subject.host != a.hello.to_host)
		return "it is host " + std::to_string(peer->subject.host) + ", not host " + std::to_string(a.hello.to_host);
	if (a.hello.to_raft != 0 && peer->subject.raft_id != a.hello.to_raft)
		return "it is raft member " + std::to_string(peer->subject.raft_id) + ", not " + std::to_string(a.hello.to_raft);
	return tls.objection(*peer);
}

void Dialer::Impl::secure(Token token)
{
	Attempt &a = *attempts.at(token);
	switch (a.tls->handshake()) {
	case TlsSession::Step::more:
		a.poll->start(a.tls->wants(), [this, token] { secure(token); });
		return;
	case TlsSession::Step::bad:
		next_address(token, a.addresses[a.at] + ": " + a.tls->error());
		return;
	case TlsSession::Step::done:
		break;
	}
	if (const auto no = objection(a)) {
		next_address(token, a.addresses[a.at] + ": " + *no);
		return;
	}
	if (!send_hello(*a.tls, encode_hello(a.hello))) {
		next_address(token, a.addresses[a.at] + ": " + (a.tls->bad() ? a.tls->error() : "it takes no hello"));
		return;
	}
	a.poll->start(UV_READABLE, [this, token] { ready(token); });
}

void Dialer::Impl::ready(Token token)
{
	Attempt &a = *attempts.at(token);
	switch (a.reader.read(*a.tls)) {
	case HelloReader::Step::more:
		a.poll->start(a.tls->wants(), [this, token] { ready(token); });
		return;
	case HelloReader::Step::bad:
		next_address(token, a.addresses[a.at] + ": " + a.reader.error());
		return;
	case HelloReader::Step::done:
		break;
	}
	const auto answer = decode_hello_answer(a.reader.body());
	if (!answer || !answer->ok) {
		next_address(token, a.addresses[a.at] + ": " + (answer ? "refused: " + answer->message : answer.error().message));
		return;
	}
	a.poll.reset();
	const bool lane = a.hello.purpose == Purpose::lane;
	if (!lane)
		set_dead_peer_detection(a.tls->fd());
	auto fd = lane ? tls.lane_end(std::move(a.tls)) : tls.stream_end(std::move(a.tls));
	const auto done = std::move(a.done);
	attempts.erase(token);
	done(std::move(fd), *answer);
}

void Dialer::Impl::finish_request(uint64_t id, Result<json> result)
{
	const auto it = requests.find(id);
	if (it == requests.end())
		return;
	const auto done = std::move(it->second->done);
	attempts.erase(it->second->dialing);
	requests.erase(it);
	done(std::move(result));
}

Dialer::Dialer(Loop &loop, Tls &tls) : impl_(std::make_shared<Impl>(loop, tls)) {}

Dialer::~Dialer()
{
	impl_->attempts.clear();
	impl_->requests.clear();
}

void Dialer::set_identity(Identity identity)
{
	impl_->identity = std::move(identity);
}

const Identity &Dialer::identity() const
{
	return impl_->identity;
}

Dialer::Token Dialer::dial(std::vector<std::string> addresses, uint16_t default_port, Hello hello, Callback done)
{
	impl_->loop.assert_on_loop();
	hello.from_name = impl_->identity.name;
	if (hello.purpose != Purpose::join) {
		hello.cluster_uuid = impl_->identity.cluster_uuid;
		hello.from_host = impl_->identity.host_id;
		hello.from_raft = impl_->identity.raft_id;
	}
	const Token token = impl_->next++;
	auto &a = impl_->attempts[token] = std::make_unique<Attempt>(impl_->loop);
	a->addresses = std::move(addresses);
	a->default_port = default_port;
	a->hello = std::move(hello);
	a->done = std::move(done);
	impl_->loop.post([weak = impl_->weak_from_this(), token] {
		const auto self = weak.lock();
		if (self && self->attempts.contains(token))
			self->try_address(token);
	});
	return token;
}

void Dialer::cancel(Token token)
{
	impl_->attempts.erase(token);
}

void Dialer::request(std::vector<std::string> addresses, uint16_t default_port, Purpose purpose, json request, uint64_t timeout_ms,
		     std::function<void(Result<json>)> done, std::string authority_fingerprint)
{
	const uint64_t id = impl_->next++;
	Impl *self = impl_.get();
	auto &r = impl_->requests[id] = std::make_unique<Request>(impl_->loop);
	r->body = std::move(request);
	r->what = joined(addresses);
	r->done = std::move(done);
	r->deadline.once(timeout_ms, [self, id] {
		self->finish_request(id, failed(self->requests.at(id)->what + ": no answer in time"));
	});
	Hello hello;
	hello.purpose = purpose;
	r->dialing = dial(std::move(addresses), default_port, hello, [self, id](Result<int> fd, const HelloAnswer &) {
		if (!fd) {
			self->finish_request(id, fd.error());
			return;
		}
		Request &r = *self->requests.at(id);
		r.stream = std::make_unique<FrameStream>(
			self->loop, *fd, [self, id](json frame) { self->finish_request(id, decode_answer(frame)); },
			[self, id](const std::string &reason) {
				self->finish_request(id, failed(self->requests.at(id)->what + ": the connection was lost: " + reason));
			});
		if (!r.stream->send({0, std::move(r.body)}))
			self->finish_request(id, failed("the request is too large"));
	});
	impl_->attempts.at(r->dialing)->authority_fingerprint = std::move(authority_fingerprint);
}

}    // namespace lockstep
