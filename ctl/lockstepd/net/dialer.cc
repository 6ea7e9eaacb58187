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

// One address of an attempt.
struct Try {
	Try(Loop &loop, std::string where, std::unique_ptr<TlsSession> session)
		: where(std::move(where)), tls(std::move(session)), poll(std::make_unique<Poll>(loop, tls->fd())), deadline(loop)
	{
	}
	std::string where;
	std::unique_ptr<TlsSession> tls;
	std::unique_ptr<Poll> poll;    // lets go of the descriptor before tls closes it
	Timer deadline;
	bool secured = false;          // the handshake is through
	HelloReader reader{true};
};

// The addresses in order, each begun a little after the one before it, or when all begun ones have failed. The first that
// is through with the handshake says hello; the others wait for how that ends, so that no hello is said in vain.
struct Attempt {
	explicit Attempt(Loop &loop) : next_start(loop) {}

	std::vector<std::string> addresses;
	uint16_t default_port;
	Hello hello;
	Dialer::Callback done;
	std::string authority_fingerprint;
	size_t at = 0;                 // the next address
	std::map<size_t, std::unique_ptr<Try>> tries;    // by index of the address
	std::optional<size_t> speaking;                  // which one says hello
	Timer next_start;
	std::string last_error;
	bool removed = false;          // one of them said so
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

	void start_next(Token token);
	std::unique_ptr<Try> open(Attempt &a, const std::string &address, std::string &error);
	void connected(Token token, size_t at);
	void secure(Token token, size_t at);
	void speak(Token token);
	void ready(Token token, size_t at);
	void failed_at(Token token, size_t at, const std::string &error);
	void go_on(Token token);
	std::optional<std::string> objection(const Attempt &a, const Try &t) const;
	void finish_request(uint64_t id, Result<json> result);
};

// Begins with the next address; ends the attempt when there is none and nothing under way.
void Dialer::Impl::start_next(Token token)
{
	Attempt &a = *attempts.at(token);
	while (a.at < a.addresses.size()) {
		const size_t at = a.at++;
		std::string error;
		auto t = open(a, a.addresses[at], error);
		if (!t) {
			a.last_error = error;
			continue;
		}
		t->poll->start(UV_WRITABLE, [this, token, at] { connected(token, at); });
		t->deadline.once(CONNECT_TIMEOUT_MS, [this, token, at, where = t->where] { failed_at(token, at, where + ": no answer in time"); });
		a.tries[at] = std::move(t);
		if (a.at < a.addresses.size())
			a.next_start.once(DIAL_STAGGER_MS, [this, token] { start_next(token); });
		return;
	}
	if (!a.tries.empty())
		return;
	const auto done = std::move(a.done);
	const std::string error = a.last_error.empty() ? "no address is known" : a.last_error;
	HelloAnswer refusal;
	refusal.removed = a.removed;
	attempts.erase(token);
	done(failed(error), refusal);
}

std::unique_ptr<Try> Dialer::Impl::open(Attempt &a, const std::string &text, std::string &error)
{
	const auto address = parse_address(text, a.default_port);
	if (!address) {
		error = address.error().message;
		return nullptr;
	}
	const std::string where = format_address(*address);
	const int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		error = where + ": " + strerror(errno);
		return nullptr;
	}
	set_nodelay(fd);
	if (connect(fd, reinterpret_cast<const sockaddr *>(&*address), sizeof *address) != 0 && errno != EINPROGRESS) {
		error = where + ": " + strerror(errno);
		close(fd);
		return nullptr;
	}
	auto session = a.authority_fingerprint.empty() ? tls.connect(fd) : tls.connect_as_stranger(fd, a.authority_fingerprint);
	if (!session) {
		error = where + ": this host has no certificate of a cluster";
		return nullptr;
	}
	auto t = std::make_unique<Try>(loop, where, std::move(session));
	if (!t->poll->ok()) {
		error = where + ": cannot watch the connection";
		return nullptr;
	}
	return t;
}

void Dialer::Impl::failed_at(Token token, size_t at, const std::string &error)
{
	Attempt &a = *attempts.at(token);
	a.last_error = error;
	a.tries.erase(at);
	if (a.speaking == at)
		a.speaking.reset();
	go_on(token);
}

// In a later turn: we may be inside of a callback of what goes away.
void Dialer::Impl::go_on(Token token)
{
	loop.post([weak = weak_from_this(), token] {
		const auto self = weak.lock();
		if (!self || !self->attempts.contains(token))
			return;
		self->speak(token);
		if (self->attempts.contains(token) && self->attempts.at(token)->tries.empty())
			self->start_next(token);
	});
}

void Dialer::Impl::connected(Token token, size_t at)
{
	Try &t = *attempts.at(token)->tries.at(at);
	int error = 0;
	socklen_t length = sizeof error;
	getsockopt(t.tls->fd(), SOL_SOCKET, SO_ERROR, &error, &length);
	if (error != 0)
		failed_at(token, at, t.where + ": " + strerror(error));
	else
		secure(token, at);
}

// Whether the one that answered is the one we mean.
std::optional<std::string> Dialer::Impl::objection(const Attempt &a, const Try &t) const
{
	const auto &peer = t.tls->peer();
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

void Dialer::Impl::secure(Token token, size_t at)
{
	Attempt &a = *attempts.at(token);
	Try &t = *a.tries.at(at);
	switch (t.tls->handshake()) {
	case TlsSession::Step::more:
		t.poll->start(t.tls->wants(), [this, token, at] { secure(token, at); });
		return;
	case TlsSession::Step::bad:
		failed_at(token, at, t.where + ": " + t.tls->error());
		return;
	case TlsSession::Step::done:
		break;
	}
	if (const auto no = objection(a, t)) {
		failed_at(token, at, t.where + ": " + *no);
		return;
	}
	t.secured = true;
	t.poll->stop();
	speak(token);
}

// Lets the most preferred one of those that are ready say hello, unless one is speaking.
void Dialer::Impl::speak(Token token)
{
	Attempt &a = *attempts.at(token);
	const auto first = std::ranges::find_if(a.tries, [](const auto &entry) { return entry.second->secured; });
	if (a.speaking || first == a.tries.end())
		return;
	const size_t at = first->first;
	Try &t = *first->second;
	a.speaking = at;
	if (!send_hello(*t.tls, encode_hello(a.hello)))
		failed_at(token, at, t.where + ": " + (t.tls->bad() ? t.tls->error() : "it takes no hello"));
	else
		t.poll->start(UV_READABLE, [this, token, at] { ready(token, at); });
}

void Dialer::Impl::ready(Token token, size_t at)
{
	Attempt &a = *attempts.at(token);
	Try &t = *a.tries.at(at);
	switch (t.reader.read(*t.tls)) {
	case HelloReader::Step::more:
		t.poll->start(t.tls->wants(), [this, token, at] { ready(token, at); });
		return;
	case HelloReader::Step::bad:
		failed_at(token, at, t.where + ": " + t.reader.error());
		return;
	case HelloReader::Step::done:
		break;
	}
	auto answer = decode_hello_answer(t.reader.body());
	if (!answer || !answer->ok) {
		a.removed = a.removed || (answer && answer->removed);
		failed_at(token, at, t.where + ": " + (answer ? "refused: " + answer->message : answer.error().message));
		return;
	}
	if (a.hello.plain && !answer->plain) {
		failed_at(token, at, t.where + ": its version knows encrypted lanes only");
		return;
	}
	answer->address = a.addresses[at];
	t.poll.reset();
	const bool lane = a.hello.purpose == Purpose::lane;
	if (!lane)
		set_dead_peer_detection(t.tls->fd());
	auto fd = lane ? tls.lane_end(std::move(t.tls), a.hello.plain) : tls.stream_end(std::move(t.tls), a.hello.purpose == Purpose::raft);
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
			self->start_next(token);
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
