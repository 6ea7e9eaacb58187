// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/net/listener.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <list>
#include <map>

#include "lockstepd/net/frame.h"
#include "lockstepd/net/poll.h"
#include "lockstepd/net/socket.h"

namespace lockstep {

using nlohmann::json;

namespace {

constexpr int BACKLOG = 128;
constexpr int ACCEPTS_PER_TURN = 16;
constexpr uint64_t OUT_OF_FDS_PAUSE_MS = 200;
constexpr uint64_t REFUSAL_LOG_PERIOD_MS = 1000;
constexpr size_t REFUSALS_REMEMBERED = 256;
constexpr int REQUEST_CONNECTIONS_MAX = 64;

struct HalfOpen {
	HalfOpen(Loop &loop, std::unique_ptr<TlsSession> session, const sockaddr_storage &from)
		: tls(std::move(session)), peer(format_address(from)), poll(loop, tls->fd()), deadline(loop), reader(false)
	{
	}

	std::unique_ptr<TlsSession> tls;    // the descriptor is closed after the poll has let go of it
	std::string peer;
	Poll poll;
	Timer deadline;
	bool secured = false;    // the handshake is through
	HelloReader reader;
};

struct Port {
	Port(Loop &loop, int fd) : fd(fd), poll(loop, fd) {}
	~Port() { close(fd); }
	std::string address;    // as it was given
	int fd;
	Poll poll;
};

// A join or api connection. Frames: [0, request] -> [1, answer] | [2, status, message].
struct RequestConnection {
	RequestConnection(Loop &loop) : idle(loop) {}
	Hello hello;
	std::string peer;
	std::unique_ptr<FrameStream> stream;
	Timer idle;
	bool busy = false;    // a request is being worked on
};

const char *purpose_name(Purpose p)
{
	switch (p) {
	case Purpose::raft: return "raft";
	case Purpose::link: return "link";
	case Purpose::lane: return "lane";
	case Purpose::join: return "join";
	case Purpose::api: return "api";
	}
	return "?";
}

}    // namespace

struct Listener::Impl : std::enable_shared_from_this<Listener::Impl> {
	Impl(Loop &loop, Tls &tls) : loop(loop), tls(tls), pause(loop) {}

	Loop &loop;
	Tls &tls;
	Timer pause;    // after running out of descriptors
	Identity identity;
	ListenerHandlers handlers;
	uint16_t port = 0;
	std::list<std::unique_ptr<Port>> ports;
	std::list<std::unique_ptr<HalfOpen>> half_open;    // oldest first
	std::map<uint64_t, std::unique_ptr<RequestConnection>> requests;
	uint64_t next_request = 1;
	uint64_t refused = 0;
	uint64_t refusals_unlogged = 0;
	uint64_t refusal_logged_ms = 0;
	std::map<std::string, uint64_t> refusals;    // what was logged: when

	Done bind(const std::string &text, uint16_t wanted_port);
	void watch(Port &port);
	void accept_some(Port &port);
	void add(int fd, const sockaddr_storage &from);
	void drop(HalfOpen *h);
	void ready(HalfOpen *h);
	std::optional<std::string> objection(const Hello &hello, const std::optional<PeerCert> &peer) const;
	void refuse(const std::string &peer, const std::string &why);
	void dispatch(HalfOpen *h, const Hello &hello);
	void serve(const Hello &hello, const std::string &peer, int fd);
	void serve_http(HalfOpen *h);
	void request(uint64_t id, json frame);
};

Done Listener::Impl::bind(const std::string &text, uint16_t wanted_port)
{
	const auto address = parse_address(text, wanted_port);
	if (!address)
		return address.error();
	const auto fail = [&](const char *what, int error) {
		return failed("cannot " + std::string(what) + " " + format_address(*address) + ": " + strerror(error));
	};
	const int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail("open a socket for", errno);
	const int on = 1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (address->ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
	const auto take = [&] { return ::bind(fd, reinterpret_cast<const sockaddr *>(&*address), sizeof *address) == 0; };
	bool bound_now = take();
	if (!bound_now && errno == EADDRNOTAVAIL) {
		loop.log(format_address(*address) + " is not on this host now: it will be listened on once it is");
		setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof on);
		bound_now = take();
	}
	if (!bound_now || ::listen(fd, BACKLOG) != 0) {
		const int error = errno;
		close(fd);
		return fail("listen on", error);
	}
	sockaddr_storage bound{};
	socklen_t length = sizeof bound;
	getsockname(fd, reinterpret_cast<sockaddr *>(&bound), &length);
	port = ntohs(bound.ss_family == AF_INET ? reinterpret_cast<sockaddr_in *>(&bound)->sin_port
						: reinterpret_cast<sockaddr_in6 *>(&bound)->sin6_port);
	ports.push_back(std::make_unique<Port>(loop, fd));
	ports.back()->address = text;
	return Nothing{};
}

void Listener::Impl::watch(Port &p)
{
	p.poll.start(UV_READABLE, [this, &p] { accept_some(p); });
}

void Listener::Impl::accept_some(Port &p)
{
	for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
		sockaddr_storage from{};
		socklen_t length = sizeof from;
		const int fd = accept4(p.fd, reinterpret_cast<sockaddr *>(&from), &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			add(fd, from);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			// The connection stays in the backlog and the socket readable: look away for a moment instead of spinning.
			loop.log(std::string("cannot accept connections for now: ") + strerror(errno));
			for (auto &each : ports)
				each->poll.stop();
			pause.once(OUT_OF_FDS_PAUSE_MS, [this] {
				for (auto &each : ports)
					watch(*each);
			});
			return;
		}
		if (errno == EAGAIN || errno == EWOULDBLOCK)
			return;
		// Anything else concerns that one connection only (accept(2): treat like EAGAIN).
	}
}

void Listener::Impl::add(int fd, const sockaddr_storage &from)
{
	if (half_open.size() >= size_t(HALF_OPEN_MAX)) {
		refuse(half_open.front()->peer, "too many connections have not said hello yet");
		half_open.pop_front();
	}
	set_nodelay(fd);
	auto session = tls.accept(fd);
	if (!session) {
		refuse(format_address(from), "this host is in no cluster");
		return;
	}
	half_open.push_back(std::make_unique<HalfOpen>(loop, std::move(session), from));
	HalfOpen *h = half_open.back().get();
	if (!h->poll.ok()) {
		drop(h);
		return;
	}
	h->poll.start(UV_READABLE, [this, h] { ready(h); });
	h->deadline.once(HELLO_TIMEOUT_MS, [this, h] {
		refuse(h->peer, "it said no hello in time");
		drop(h);
	});
}

void Listener::Impl::drop(HalfOpen *h)
{
	half_open.remove_if([h](const auto &each) { return each.get() == h; });
}

void Listener::Impl::ready(HalfOpen *h)
{
	if (!h->secured) {
		const auto step = h->tls->handshake();
		if (step == TlsSession::Step::bad) {
			refuse(h->peer, h->tls->error());
			drop(h);
			return;
		}
		if (step == TlsSession::Step::more) {
			h->poll.start(h->tls->wants(), [this, h] { ready(h); });
			return;
		}
		h->secured = true;
	}
	if (h->tls->http()) {
		serve_http(h);
		return;
	}
	switch (h->reader.read(*h->tls)) {
	case HelloReader::Step::more:
		h->poll.start(h->tls->wants(), [this, h] { ready(h); });
		return;
	case HelloReader::Step::bad:
		// A host that has reached us over a better path meanwhile leaves without a hello.
		if (!h->tls->peer() || h->tls->bad() || h->reader.begun())
			refuse(h->peer, h->reader.error());
		drop(h);
		return;
	case HelloReader::Step::done:
		break;
	}
	const auto hello = decode_hello(h->reader.body());
	if (!hello) {
		refuse(h->peer, hello.error().message);
		drop(h);
		return;
	}
	const auto no = objection(*hello, h->tls->peer());
	const bool gone = no == Tls::REMOVED || no == Tls::RECOVERED;
	const HelloAnswer answer{!no, no.value_or(""), gone, identity.host_id, identity.name, "", !no && hello->plain};
	if (no)
		refuse(h->peer + " (" + (hello->from_name.empty() ? "unnamed" : hello->from_name) + ", " +
			       purpose_name(hello->purpose) + ")",
		       *no);
	if (!send_hello(*h->tls, encode_hello_answer(answer)) || no) {
		h->tls->shut();
		drop(h);
		return;
	}
	dispatch(h, *hello);
}

std::optional<std::string> Listener::Impl::objection(const Hello &hello, const std::optional<PeerCert> &peer) const
{
	const std::string me = identity.name.empty() ? "this host" : identity.name;
	if (hello.purpose == Purpose::join) {
		if (!handlers.on_join)
			return me + " takes no join requests now";
	} else {
		// A stranger is told nothing else.
		if (!peer)
			return "it shows no certificate of this cluster";
		if (auto no = tls.objection(*peer))
			return no;
		if (identity.cluster_uuid.empty())
			return me + " is in no cluster";
		if (peer->subject.cluster_uuid != identity.cluster_uuid)
			return "its certificate is of another cluster";
		if (hello.cluster_uuid != identity.cluster_uuid)
			return me + " is in another cluster (" + identity.cluster_uuid + ", not " + hello.cluster_uuid + ")";
		if (hello.from_host == 0)
			return "the sender has no host id";
		if (hello.from_host != peer->subject.host || hello.from_raft != peer->subject.raft_id)
			return "its certificate is that of host " + std::to_string(peer->subject.host) + ", raft member " +
			       std::to_string(peer->subject.raft_id);
		if (hello.to_host != 0 && hello.to_host != identity.host_id)
			return me + " is host " + std::to_string(identity.host_id) + ", not host " + std::to_string(hello.to_host);
		if (hello.purpose == Purpose::raft && hello.to_raft != identity.raft_id)
			return me + " is raft member " + std::to_string(identity.raft_id) + ", not " + std::to_string(hello.to_raft);
		if ((hello.purpose == Purpose::raft && !handlers.on_raft) || (hello.purpose == Purpose::link && !handlers.on_link) ||
		    (hello.purpose == Purpose::lane && !handlers.on_lane) || (hello.purpose == Purpose::api && !handlers.on_api))
			return me + " is not ready for this yet";
		if (hello.plain && (hello.purpose != Purpose::lane || !handlers.plain_lanes || !handlers.plain_lanes()))
			return me + " takes encrypted lanes only (option lane-encryption)";
	}
	return handlers.veto ? handlers.veto(hello) : std::nullopt;
}

void Listener::Impl::refuse(const std::string &peer, const std::string &why)
{
	refused++;
	const uint64_t now = Loop::now_ms();
	// The port of the other side differs each time; "127.0.0.1:5 (beta, link)" without it tells who.
	const size_t colon = peer.find(' ') == peer.npos ? peer.rfind(':') : peer.rfind(':', peer.find(' '));
	const size_t end = peer.find(' ') == peer.npos ? peer.size() : peer.find(' ');
	const std::string key = peer.substr(0, colon) + peer.substr(end) + " " + why;
	const auto known = refusals.find(key);
	const bool quiet = known != refusals.end() && now - known->second < REFUSAL_QUIET_MS;
	if (quiet || (refusal_logged_ms != 0 && now - refusal_logged_ms < REFUSAL_LOG_PERIOD_MS)) {
		refusals_unlogged++;
		return;
	}
	std::string line = "refused a connection from " + peer + ": " + why;
	if (refusals_unlogged != 0)
		line += " (and " + std::to_string(refusals_unlogged) + " other connections before)";
	loop.log(line);
	if (refusals.size() >= REFUSALS_REMEMBERED)
		refusals.erase(std::ranges::min_element(refusals, {}, [](const auto &entry) { return entry.second; }));
	refusals[key] = now;
	refusal_logged_ms = now;
	refusals_unlogged = 0;
}

void Listener::Impl::dispatch(HalfOpen *h, const Hello &hello)
{
	auto session = std::move(h->tls);
	const std::string peer = h->peer;
	drop(h);
	if (hello.purpose == Purpose::lane) {
		const auto fd = tls.lane_end(std::move(session), hello.plain);
		if (fd)
			handlers.on_lane(hello.from_host, hello.lane, hello.lanes, hello.link_generation, *fd);
		else
			refuse(peer, fd.error().message);
		return;
	}
	set_dead_peer_detection(session->fd());
	const auto fd = tls.stream_end(std::move(session), hello.purpose == Purpose::raft);
	if (!fd)
		refuse(peer, fd.error().message);
	else if (hello.purpose == Purpose::raft)
		handlers.on_raft(hello, *fd);
	else if (hello.purpose == Purpose::link)
		handlers.on_link(hello, *fd);
	else
		serve(hello, peer, *fd);
}

void Listener::Impl::serve_http(HalfOpen *h)
{
	auto session = std::move(h->tls);
	const std::string peer = h->peer;
	drop(h);
	const auto client = session->client();
	std::string no;
	if (!client)
		no = "it shows no certificate of a client of the API";
	else if (client->cluster_uuid != identity.cluster_uuid)
		no = "its certificate is of another cluster";
	else if (!handlers.on_http)
		no = "this host serves no clients now";
	else
		no = tls.objection(*client).value_or("");
	if (no.empty()) {
		set_dead_peer_detection(session->fd());
		const auto fd = tls.stream_end(std::move(session));
		if (fd)
			return handlers.on_http(*client, peer, *fd);
		refuse(peer, fd.error().message);
		return;
	}
	refuse(peer + (client ? " (" + client->name + ", api)" : " (unnamed, api)"), no);
	const std::string body = json{{"status", int(Status::forbidden)}, {"code", "not-admitted"}, {"message", "this cluster's API is not for you: " + no}}.dump();
	const std::string text = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " +
				 std::to_string(body.size()) + "\r\n\r\n" + body;
	session->write(text.data(), text.size());    // into the socket's buffer, or not at all
	session->shut();
}

void Listener::Impl::serve(const Hello &hello, const std::string &peer, int fd)
{
	if (requests.size() >= size_t(REQUEST_CONNECTIONS_MAX)) {
		refuse(peer, "too many request connections");
		close(fd);
		return;
	}
	const uint64_t id = next_request++;
	auto &c = requests[id] = std::make_unique<RequestConnection>(loop);
	c->hello = hello;
	c->peer = peer;
	c->stream = std::make_unique<FrameStream>(
		loop, fd, [this, id](json frame) { request(id, std::move(frame)); },
		[this, id](const std::string &) { requests.erase(id); }, 32u << 20,
		hello.purpose == Purpose::join ? JOIN_FRAME_MAX_BYTES : FRAME_MAX_BYTES);
	c->idle.once(REQUEST_IDLE_MS, [this, id] { requests.erase(id); });
}

void Listener::Impl::request(uint64_t id, json frame)
{
	RequestConnection &c = *requests.at(id);
	if (!frame.is_array() || frame.size() != 2 || frame[0] != 0 || c.busy) {
		refuse(c.peer, c.busy ? "it sent a request before the answer to the one before" : "it sent a malformed request");
		requests.erase(id);
		return;
	}
	c.busy = true;
	c.idle.stop();
	const auto reply = [weak = weak_from_this(), id](Result<json> result) {
		const auto self = weak.lock();
		if (!self)
			return;
		const auto it = self->requests.find(id);
		if (it == self->requests.end() || !it->second->busy)
			return;
		RequestConnection &to = *it->second;
		to.busy = false;
		to.idle.once(REQUEST_IDLE_MS, [self = self.get(), id] { self->requests.erase(id); });
		if (!result)
			to.stream->send({2, int(result.error().status), result.error().message});
		else if (!to.stream->send({1, std::move(*result)}))
			to.stream->send({2, int(Status::failed), "the answer is too large"});
	};
	const auto &handler = c.hello.purpose == Purpose::join ? handlers.on_join : handlers.on_api;
	const Hello hello = c.hello;
	const std::string peer = c.peer;
	if (handler)
		handler(hello, peer, std::move(frame[1]), reply);
	else
		reply(failed("this host takes no such requests now"));
}

Listener::Listener(Loop &loop, Tls &tls) : impl_(std::make_shared<Impl>(loop, tls)) {}

Listener::~Listener()
{
	// Replies that somebody still holds keep nothing alive but find nothing to answer to.
	impl_->ports.clear();
	impl_->half_open.clear();
	impl_->requests.clear();
}

Done Listener::listen(const std::vector<std::string> &addresses, uint16_t port)
{
	if (addresses.empty())
		return usage_error("no address to listen on");
	for (const auto &address : addresses) {
		const Done done = impl_->bind(address, port);
		if (!done) {
			impl_->ports.clear();
			return done;
		}
		if (port == 0)
			port = impl_->port;
	}
	for (auto &each : impl_->ports)
		impl_->watch(*each);
	return Nothing{};
}

Done Listener::change_addresses(const std::vector<std::string> &addresses)
{
	Impl &i = *impl_;
	std::erase_if(i.ports, [&](const auto &p) { return std::ranges::find(addresses, p->address) == addresses.end(); });
	Done all = Nothing{};
	for (const auto &address : addresses) {
		if (std::ranges::any_of(i.ports, [&](const auto &p) { return p->address == address; }))
			continue;
		const Done done = i.bind(address, i.port);
		if (done)
			i.watch(*i.ports.back());
		else
			all = done;
	}
	return all;
}

uint16_t Listener::port() const
{
	return impl_->port;
}

void Listener::set_identity(Identity identity)
{
	impl_->identity = std::move(identity);
}

ListenerHandlers &Listener::handlers()
{
	return impl_->handlers;
}

int Listener::half_open() const
{
	return int(impl_->half_open.size());
}

uint64_t Listener::refused() const
{
	return impl_->refused;
}

}    // namespace lockstep
