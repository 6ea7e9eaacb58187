// SPDX-License-Identifier: GPL-2.0-or-later
//
// The port, the hello, frames and links: what strangers may try, and what friends may rely on.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <thread>

#include "lockstepd/net/frame.h"
#include "lockstepd/net/link.h"
#include "lockstepd/net/listener.h"
#include "test/unit/consensus/fds.h"
#include "test/unit/consensus/pki.h"

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

const std::string CLUSTER_UUID = "5b4c9d3e-0000-4000-8000-000000000002";

// A plain blocking socket, as a stranger has it.
struct Raw {
	explicit Raw(uint16_t port) : fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))
	{
		sockaddr_in to{};
		to.sin_family = AF_INET;
		to.sin_port = htons(port);
		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		if (connect(fd, reinterpret_cast<sockaddr *>(&to), sizeof to) != 0)
			abort();
	}
	~Raw() { close(fd); }
	Raw(const Raw &) = delete;

	void send(std::string_view bytes) const { (void)!::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

	// What has come in; nullopt once the other side has closed.
	std::optional<std::string> take() const
	{
		char buf[65536];
		const ssize_t n = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return "";
		if (n <= 0)
			return std::nullopt;
		return std::string(buf, size_t(n));
	}

	int fd;
};

// The same with TLS, as a host has it, or (without an identity) somebody who knows nothing.
struct Friend {
	Friend(Loop &loop, uint16_t port, const TlsIdentity &identity) : loop(loop), tls(loop)
	{
		REQUIRE(tls.set_identity(identity));
		session = tls.connect(connect_to(port));
		shake();
	}
	Friend(Loop &loop, uint16_t port) : loop(loop), tls(loop)
	{
		session = tls.connect_as_stranger(connect_to(port), *fingerprint(authority_of(CLUSTER_UUID).cert));
		shake();
	}

	void shake()
	{
		REQUIRE(loop.run_until([&] { return session->handshake() != TlsSession::Step::more; }, 2000));
	}

	void send(std::string_view bytes) const { (void)session->write(bytes.data(), bytes.size()); }

	// What comes until the other side has ended it, or until there is so much.
	std::string take(size_t bytes = SIZE_MAX) const
	{
		std::string all;
		REQUIRE(loop.run_until(
			[&] {
				char buf[65536];
				const ssize_t n = session->read(buf, sizeof buf);
				if (n > 0)
					all.append(buf, size_t(n));
				return n == 0 || session->bad() || all.size() >= bytes;
			},
			8000));
		return all;
	}

	// The message of the refusal, or what went wrong before.
	std::string refusal() const
	{
		const std::string answer = take();
		if (answer.size() <= HELLO_HEADER_BYTES)
			return session->bad() ? session->error() : "(no answer)";
		const auto a = decode_hello_answer(std::string_view(answer).substr(HELLO_HEADER_BYTES));
		REQUIRE(a);
		return a->ok ? "ok" : a->message;
	}

	Loop &loop;
	Tls tls;
	std::unique_ptr<TlsSession> session;
};

const TlsIdentity &identity(int host)
{
	static std::map<int, TlsIdentity> made;
	if (!made.contains(host))
		made[host] = identity_of(CLUSTER_UUID, host, uint64_t(host) + 100);
	return made[host];
}

struct Port {
	explicit Port(Loop &loop, int host = 1) : tls(loop, LaneEnd::relay), listener(loop, tls)
	{
		REQUIRE(tls.set_identity(identity(host)));
		listener.set_identity({CLUSTER_UUID, host, uint64_t(host) + 100, "h" + std::to_string(host)});
		REQUIRE(listener.listen({"127.0.0.1"}, 0));
	}
	std::vector<std::string> addresses() const { return {"127.0.0.1:" + std::to_string(listener.port())}; }
	Tls tls;
	Listener listener;
};

// A Dialer of a host.
struct Caller {
	explicit Caller(Loop &loop, int host = 2) : tls(loop, LaneEnd::relay), dialer(loop, tls)
	{
		REQUIRE(tls.set_identity(identity(host)));
		dialer.set_identity({CLUSTER_UUID, host, uint64_t(host) + 100, "h" + std::to_string(host)});
	}
	Tls tls;
	Dialer dialer;
};

Hello good_hello(Purpose purpose)
{
	Hello h;
	h.purpose = purpose;
	h.cluster_uuid = CLUSTER_UUID;
	h.from_host = 2;
	h.from_name = "h2";
	h.from_raft = 102;
	h.to_host = 1;
	h.to_raft = 101;
	h.from_address = "102/2/127.0.0.1:1";
	h.lane = 1;
	h.lanes = 4;
	h.link_generation = 0x1122334455667788;
	return h;
}

// A host of the links tests.
struct Host {
	Host(Loop &loop, int id) : port(loop, id), dialer(loop, port.tls)
	{
		dialer.set_identity({CLUSTER_UUID, id, uint64_t(id) + 100, "h" + std::to_string(id)});
		links.emplace(loop, port.listener, dialer, LinkOptions{.heartbeat_ms = 100, .silence_ms = 500});
	}
	LinkPeer peer(int id) const { return {id, "h" + std::to_string(id), port.addresses()}; }
	Port port;
	Dialer dialer;
	std::optional<Links> links;
};

void introduce(Host &one, Host &two)
{
	one.links->set_peers({one.peer(1), two.peer(2)});
	two.links->set_peers({one.peer(1), two.peer(2)});
}

}    // namespace

TEST_CASE("addresses")
{
	const auto text = [](const char *in) {
		const auto a = parse_address(in, 7788);
		return a ? format_address(*a) : std::string("bad");
	};
	CHECK(text("10.77.2.1") == "10.77.2.1:7788");
	CHECK(text("10.77.2.1:9") == "10.77.2.1:9");
	CHECK(text("[fd00::1]:9") == "[fd00::1]:9");
	CHECK(text("[fd00::1]") == "[fd00::1]:7788");
	CHECK(text("fd00::1") == "[fd00::1]:7788");
	for (const char *bad : {"", "host", "10.77.2", "10.77.2.1:", "10.77.2.1:0", "10.77.2.1:65536", "10.77.2.1:9x", "[fd00::1", "[fd00::1]:",
				"[fd00::1]9", "10.77.2.1 ", ":7788"}) {
		INFO(bad);
		CHECK(text(bad) == "bad");
	}
}

TEST_CASE("hello: what is written is read, and nothing else")
{
	const Hello in = good_hello(Purpose::lane);
	const std::string bytes = encode_hello(in);
	const auto length = decode_hello_header(std::string_view(bytes).substr(0, HELLO_HEADER_BYTES), false);
	REQUIRE(length);
	REQUIRE(*length == bytes.size() - HELLO_HEADER_BYTES);
	const auto out = decode_hello(std::string_view(bytes).substr(HELLO_HEADER_BYTES));
	REQUIRE(out);
	CHECK(out->purpose == in.purpose);
	CHECK(out->cluster_uuid == in.cluster_uuid);
	CHECK(out->from_host == in.from_host);
	CHECK(out->from_raft == in.from_raft);
	CHECK(out->to_host == in.to_host);
	CHECK(out->lane == in.lane);
	CHECK(out->lanes == in.lanes);
	CHECK(out->link_generation == in.link_generation);

	CHECK_FALSE(decode_hello_header("LKSX\1\0\5\0", false));
	CHECK_FALSE(decode_hello_header(std::string_view("LKSH\2\0\5\0", 8), false));
	CHECK_FALSE(decode_hello_header(std::string_view("LKSH\1\0\0\0", 8), false));
	CHECK_FALSE(decode_hello_header(std::string_view("LKSH\1\0\1\x10", 8), false));    // 4097
	CHECK(decode_hello_header(std::string_view("LKSH\1\0\0\x10", 8), false));
	CHECK_FALSE(decode_hello_header(std::string_view("LKSH\1\0\5\0", 8), true));

	const auto decode = [](const json &j) {
		const auto b = json::to_cbor(j);
		return bool(decode_hello({reinterpret_cast<const char *>(b.data()), b.size()}));
	};
	CHECK(decode({{"purpose", 2}, {"from_host", 1}}));
	CHECK_FALSE(decode({{"purpose", 6}}));
	CHECK_FALSE(decode({{"purpose", 0}}));
	CHECK_FALSE(decode({{"purpose", -1}}));
	CHECK_FALSE(decode({{"purpose", "link"}}));
	CHECK_FALSE(decode({{"purpose", 2}, {"from_host", 65}}));
	CHECK_FALSE(decode({{"purpose", 2}, {"cluster", 5}}));
	CHECK_FALSE(decode({{"purpose", 3}, {"lane", 4}, {"lanes", 4}}));
	CHECK_FALSE(decode({{"purpose", 1}}));
	CHECK_FALSE(decode(json::array({1, 2})));
	CHECK_FALSE(decode_hello(""));

	const auto answer = decode_hello_answer(std::string_view(encode_hello_answer({false, "no", true, 3, "h3", ""})).substr(HELLO_HEADER_BYTES));
	REQUIRE(answer);
	CHECK(answer->removed);
	REQUIRE(answer);
	CHECK_FALSE(answer->ok);
	CHECK(answer->message == "no");
	CHECK(answer->host == 3);
}

TEST_CASE("CBOR from strangers: depth, lengths and leftovers are checked before the parser sees it")
{
	const auto ok = [](std::string bytes) { return parse_cbor(bytes).has_value(); };
	CHECK(ok("\x01"));
	CHECK(ok(std::string("\x82\x00\xa1\x61" "a\x01", 6)));
	CHECK_FALSE(ok(""));
	CHECK_FALSE(ok("\x01\x01"));                          // leftover
	CHECK_FALSE(ok("\x82\x01"));                          // too short
	CHECK_FALSE(ok(std::string("\x9b\xff\xff\xff\xff\xff\xff\xff\xff", 9)));    // a vast array
	CHECK_FALSE(ok(std::string("\x5b\xff\xff\xff\xff\xff\xff\xff\xff", 9)));    // a vast string
	CHECK_FALSE(ok("\x9f\x01\xff"));                      // indefinite
	CHECK_FALSE(ok("\xc1\x01"));                          // tag
	CHECK(ok(std::string(CBOR_DEPTH_MAX - 2, '\x81') + "\x01"));
	CHECK_FALSE(ok(std::string(CBOR_DEPTH_MAX, '\x81') + "\x01"));
	CHECK_FALSE(ok(std::string(8 << 20, '\x81')));        // would overflow the stack
}

TEST_CASE("a timer: once, every, stopped, restarted and destroyed from within")
{
	Loop loop;
	int once = 0, every = 0;
	auto a = std::make_unique<Timer>(loop);
	auto b = std::make_unique<Timer>(loop);
	a->once(1, [&] {
		if (++once < 3)
			a->once(1, [&] {
				once += 10;
				a.reset();
			});
	});
	b->every(1, [&] {
		if (++every == 5)
			b.reset();
	});
	REQUIRE(loop.run_until([&] { return once == 11 && every == 5; }, 2000));
	loop.run_until([] { return false; }, 30);
	CHECK(once == 11);
	CHECK(every == 5);
}

TEST_CASE("a subject that comes again and again does not fill the log, and its last state is told")
{
	Loop loop;
	std::vector<std::string> lines;
	loop.set_log([&](const std::string &line) { lines.push_back(line); });
	loop.set_log_period(50);
	for (unsigned i = 0; i < Loop::LOG_LINES + 3; i++)
		loop.log_about("link a", "a " + std::to_string(i));
	loop.log_about("link b", "b");
	REQUIRE(lines.size() == Loop::LOG_LINES + 1);
	CHECK(lines[Loop::LOG_LINES - 1] == "a " + std::to_string(Loop::LOG_LINES - 1));
	CHECK(lines.back() == "b");
	REQUIRE(loop.run_until([&] { return lines.size() == Loop::LOG_LINES + 2; }, 2000));
	CHECK(lines.back() == "a " + std::to_string(Loop::LOG_LINES + 2) + " (3 lines about this were held back)");
	// Two quiet periods later all is as at first.
	loop.run_until([] { return false; }, 150);
	lines.clear();
	for (unsigned i = 0; i < Loop::LOG_LINES + 1; i++)
		loop.log_about("link a", "again");
	CHECK(lines.size() == Loop::LOG_LINES);
	loop.log_about("link c", "held back or not, a Loop may go");
}

TEST_CASE("posting from other threads keeps each thread's order and runs on the loop's thread")
{
	Loop loop;
	constexpr int EACH = 2000;
	std::vector<int> got[2];
	std::thread::id ran_on;
	std::thread runner([&] { loop.run(); });
	std::thread posters[2];
	for (int t = 0; t < 2; t++) {
		posters[t] = std::thread([&, t] {
			for (int i = 0; i < EACH; i++) {
				loop.post([&, t, i] {
					got[t].push_back(i);
					ran_on = std::this_thread::get_id();
					loop.assert_on_loop();
					if (got[0].size() + got[1].size() == 2 * EACH)
						loop.stop();
				});
			}
		});
	}
	for (auto &p : posters)
		p.join();
	const auto runner_id = runner.get_id();
	runner.join();
	CHECK(ran_on == runner_id);
	for (auto &g : got) {
		REQUIRE(g.size() == EACH);
		CHECK(std::is_sorted(g.begin(), g.end()));
	}
}

TEST_CASE("strangers are refused, with one log line a second, and leave nothing behind")
{
	Loop loop;
	std::vector<std::string> lines;
	loop.set_log([&](const std::string &l) { lines.push_back(l); });
	Port port(loop);
	int links = 0;
	port.listener.handlers().on_link = [&](const Hello &, int fd) {
		links++;
		close(fd);
	};
	const int before = open_fds();

	const auto garbage = [&](const std::string &bytes) {
		Raw raw(port.listener.port());
		raw.send(bytes);
		const uint64_t count = port.listener.refused();
		REQUIRE(loop.run_until([&] { return !raw.take(); }, 2000));
		CHECK(port.listener.refused() == count + 1);
	};
	garbage("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
	garbage(std::string(100'000, 'A'));
	garbage(std::string(100'000, '\0'));
	garbage(encode_hello(good_hello(Purpose::link)));                   // without TLS
	garbage(std::string("\x16\x03\x01\xff\xff", 5) + std::string(70'000, '\1'));    // a record larger than any may be
	garbage(std::string("\x16\x03\x01\0\4\1\xff\xff\xff", 9));          // a client hello of 16 MiB

	const auto refused_with = [&](const std::string &bytes) {
		const uint64_t count = port.listener.refused();
		const Friend f(loop, port.listener.port(), identity(2));
		f.send(bytes);
		const std::string why = f.refusal();
		CHECK(port.listener.refused() == count + 1);
		return why;
	};
	CHECK(refused_with("GET / HTTP/1.1\r\nHost: x\r\n\r\n") == "(no answer)");
	CHECK(refused_with(std::string("LKSH\1\0\xff\xff", 8)) == "(no answer)");
	CHECK(refused_with(std::string("LKSH\1\0\4\0\xff\xff\xff\xff", 12)) == "(no answer)");
	CHECK(refused_with(std::string("LKSH\x09\0\4\0", 8)) == "(no answer)");

	Hello h = good_hello(Purpose::link);
	h.cluster_uuid = "another";
	CHECK(refused_with(encode_hello(h)).find("is in another cluster") != std::string::npos);
	h = good_hello(Purpose::link);
	h.to_host = 7;
	CHECK(refused_with(encode_hello(h)) == "h1 is host 1, not host 7");
	h = good_hello(Purpose::raft);
	h.to_raft = 55;
	CHECK(refused_with(encode_hello(h)) == "h1 is raft member 101, not 55");
	CHECK(refused_with(encode_hello(good_hello(Purpose::lane))) == "h1 is not ready for this yet");
	CHECK(refused_with(encode_hello(good_hello(Purpose::join))) == "h1 takes no join requests now");
	port.listener.handlers().veto = [](const Hello &) { return std::optional<std::string>("not today"); };
	CHECK(refused_with(encode_hello(good_hello(Purpose::link))) == "not today");
	port.listener.handlers().veto = nullptr;

	// The certificate counts, not what the hello says.
	for (const auto &[host, raft] : {std::pair(3, 102), std::pair(2, 103), std::pair(3, 103)}) {
		h = good_hello(Purpose::link);
		h.from_host = host;
		h.from_raft = uint64_t(raft);
		CHECK(refused_with(encode_hello(h)) == "its certificate is that of host 2, raft member 102");
	}

	CHECK(links == 0);
	CHECK(lines.size() <= 4);
	CHECK_FALSE(lines.empty());
	REQUIRE(loop.run_until([&] { return open_fds() == before; }, 2000));
	CHECK(port.listener.half_open() == 0);
}

TEST_CASE("half-open connections are bounded in number and time and do not keep friends out")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	Port port(loop);
	int links = 0;
	port.listener.handlers().on_link = [&](const Hello &, int fd) {
		links++;
		close(fd);
	};
	const int before = open_fds();
	{
		std::vector<std::unique_ptr<Raw>> strangers;
		for (int i = 0; i < 3 * HALF_OPEN_MAX; i++) {
			strangers.push_back(std::make_unique<Raw>(port.listener.port()));
			if (i % 2)
				strangers.back()->send("LKS");
			loop.run_until([] { return false; }, 1);
			CHECK(port.listener.half_open() <= HALF_OPEN_MAX);
		}
		REQUIRE(loop.run_until([&] { return port.listener.half_open() == HALF_OPEN_MAX; }, 2000));

		Caller caller(loop);
		Dialer &dialer = caller.dialer;
		Hello h;
		h.purpose = Purpose::link;
		std::optional<bool> connected;
		dialer.dial(port.addresses(), 0, h, [&](Result<int> fd, const HelloAnswer &a) {
			connected = bool(fd);
			CHECK(a.host == 1);
			if (fd)
				close(*fd);
		});
		const uint64_t start = Loop::now_ms();
		REQUIRE(loop.run_until([&] { return connected.has_value(); }, 2000));
		CHECK(*connected);
		CHECK(Loop::now_ms() - start < 1000);
		CHECK(links == 1);

		// They hold on; the listener does not.
		REQUIRE(loop.run_until([&] { return port.listener.half_open() == 0; }, HELLO_TIMEOUT_MS + 2000));
	}
	REQUIRE(loop.run_until([&] { return open_fds() == before; }, 2000));
}

TEST_CASE("a hello in single bytes is a hello")
{
	Loop loop;
	Port port(loop);
	int links = 0;
	port.listener.handlers().on_link = [&](const Hello &hello, int fd) {
		CHECK(hello.from_name == "h2");
		links++;
		close(fd);
	};
	Friend raw(loop, port.listener.port(), identity(2));
	for (const char c : encode_hello(good_hello(Purpose::link))) {
		raw.send({&c, 1});
		loop.run_until([] { return false; }, 1);
	}
	REQUIRE(loop.run_until([&] { return links == 1; }, 2000));
}

TEST_CASE("a lane's descriptor carries exactly the bytes after the hello, both ways")
{
	Loop loop;
	Port port(loop);
	struct Lane {
		int peer = 0;
		uint32_t lane = 0, lanes = 0;
		uint64_t generation = 0;
		int fd = -1;
	} got;
	port.listener.handlers().on_lane = [&](int peer, uint32_t lane, uint32_t lanes, uint64_t generation, int fd) {
		got = {peer, lane, lanes, generation, fd};
	};

	std::string payload(300'000, '\0');
	for (size_t i = 0; i < payload.size(); i++)
		payload[i] = char(i * 7 + i / 256);

	const auto exchange = [&](int near, int far) {
		// Blocking on both ends, as handed over.
		CHECK((fcntl(far, F_GETFL) & O_NONBLOCK) == 0);
		std::atomic<bool> through{false};
		std::string back(payload.size(), 0);
		std::thread writer([&] {
			size_t sent = 0;
			while (sent < payload.size())
				sent += size_t(::send(near, payload.data() + sent, payload.size() - sent, MSG_NOSIGNAL));
		});
		std::thread taker([&] {
			CHECK(recv(far, back.data(), back.size(), MSG_WAITALL) == ssize_t(payload.size()));
			through = true;
		});
		CHECK(loop.run_until([&] { return through.load(); }, 5000));
		writer.join();
		taker.join();
		CHECK(back == payload);
	};

	SECTION("through the Dialer")
	{
		Caller caller(loop);
		Dialer &dialer = caller.dialer;
		Hello h;
		h.purpose = Purpose::lane;
		h.lane = 0;
		h.lanes = 1;
		h.link_generation = 5;
		h.plain = GENERATE(false, true);
		bool allowed = true;
		port.listener.handlers().plain_lanes = [&] { return allowed; };
		int near = -1;
		dialer.dial(port.addresses(), 0, h, [&](Result<int> fd, const HelloAnswer &) {
			REQUIRE(fd);
			near = *fd;
		});
		REQUIRE(loop.run_until([&] { return near >= 0 && got.fd >= 0; }, 2000));
		CHECK(got.generation == 5);
		exchange(near, got.fd);
		exchange(got.fd, near);
		close(near);
		close(got.fd);

		// Where lanes are to be encrypted a plain one is refused, and no other given in its place.
		if (h.plain) {
			allowed = false;
			got.fd = -1;
			std::string error;
			dialer.dial(port.addresses(), 0, h, [&](Result<int> fd, const HelloAnswer &) { error = fd ? "?" : fd.error().message; });
			REQUIRE(loop.run_until([&] { return !error.empty(); }, 2000));
			CHECK(error.find("takes encrypted lanes only") != error.npos);
			CHECK(got.fd == -1);
		}
	}
}

TEST_CASE("the dialer goes through the addresses and says what was wrong with the last")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	uint16_t dead_port;
	{
		Port gone(loop);
		dead_port = gone.listener.port();
	}
	const std::string dead = "127.0.0.1:" + std::to_string(dead_port);
	Port port(loop);
	port.listener.handlers().on_link = [](const Hello &, int fd) { close(fd); };
	Caller caller(loop);
	Dialer &dialer = caller.dialer;
	Hello h;
	h.purpose = Purpose::link;

	const auto dial = [&](std::vector<std::string> addresses) {
		std::string outcome;
		dialer.dial(std::move(addresses), 0, h, [&](Result<int> fd, const HelloAnswer &) {
			outcome = fd ? "ok" : fd.error().message;
			if (fd)
				close(*fd);
		});
		REQUIRE(loop.run_until([&] { return !outcome.empty(); }, 5000));
		return outcome;
	};
	CHECK(dial({dead, port.addresses()[0]}) == "ok");
	CHECK(dial({dead}) == dead + ": Connection refused");
	CHECK(dial({}) == "no address is known");
	CHECK(dial({"nonsense"}).find("nonsense") != std::string::npos);
	dialer.set_identity({"other", 2, 102, "h2"});
	CHECK(dial(port.addresses()).find("it is in another cluster") != std::string::npos);
	dialer.set_identity({CLUSTER_UUID, 2, 102, "h2"});
	h.to_host = 3;
	CHECK(dial(port.addresses()).find("it is host 1, not host 3") != std::string::npos);
	h.to_host = 1;

	// One that accepts and says nothing.
	Raw listening_only(port.listener.port());
	const int mute = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	REQUIRE(listen(mute, 4) == 0);
	sockaddr_in at{};
	socklen_t length = sizeof at;
	getsockname(mute, reinterpret_cast<sockaddr *>(&at), &length);
	const std::string mute_address = "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
	CHECK(dial({mute_address}) == mute_address + ": no answer in time");
	close(mute);

	bool called = false;
	const auto token = dialer.dial({dead}, 0, h, [&](Result<int>, const HelloAnswer &) { called = true; });
	dialer.cancel(token);
	loop.run_until([] { return false; }, 50);
	CHECK_FALSE(called);

	CHECK(retry_delay_ms(1) == RETRY_MIN_MS);
	CHECK(retry_delay_ms(2) == 2 * RETRY_MIN_MS);
	CHECK(retry_delay_ms(100) == RETRY_MAX_MS);
}

TEST_CASE("join and api requests")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	Port port(loop);
	ListenerHandlers::Reply kept;
	port.listener.handlers().on_join = [&](const Hello &hello, const std::string &from, json request, ListenerHandlers::Reply reply) {
		CHECK(hello.from_host == 0);
		CHECK(from.starts_with("127.0.0.1:"));
		if (request.at("what") == "refuse me")
			reply(forbidden("the cluster is full"));
		else if (request.at("what") == "later")
			kept = reply;
		else
			reply(json{{"host", 2}, {"echo", request.at("what")}});
	};
	Tls stranger(loop);    // without an identity
	Dialer dialer(loop, stranger);
	const std::string authority = *fingerprint(authority_of(CLUSTER_UUID).cert);
	const auto ask = [&](Purpose purpose, json request, uint64_t timeout_ms = 3000) {
		std::optional<Result<json>> got;
		dialer.request(port.addresses(), 0, purpose, std::move(request), timeout_ms, [&](Result<json> r) { got = std::move(r); },
			       authority.substr(0, 32));
		REQUIRE(loop.run_until([&] { return got.has_value(); }, 5000));
		return *got;
	};
	const auto ok = ask(Purpose::join, {{"what", std::string(20'000, 'x')}});
	REQUIRE(ok);
	CHECK((*ok).at("host") == 2);
	CHECK((*ok).at("echo").get<std::string>().size() == 20'000);
	CHECK_FALSE(ask(Purpose::join, {{"what", std::string(JOIN_FRAME_MAX_BYTES, 'x')}}));    // too much for a stranger
	const auto no = ask(Purpose::join, {{"what", "refuse me"}});
	REQUIRE_FALSE(no);
	CHECK(no.error().status == Status::forbidden);
	CHECK(no.error().message == "the cluster is full");
	const auto late = ask(Purpose::join, {{"what", "later"}}, 300);
	REQUIRE_FALSE(late);
	CHECK(late.error().message.find("no answer in time") != std::string::npos);
	kept(json("too late"));    // to nobody
	const auto api = ask(Purpose::api, {{"what", "x"}});    // without a certificate
	REQUIRE_FALSE(api);
	CHECK(api.error().message.find("it shows no certificate of this cluster") != std::string::npos);

	// A malformed request ends the connection.
	Friend raw(loop, port.listener.port());
	Hello h;
	h.purpose = Purpose::join;
	raw.send(encode_hello(h) + std::string("\x02\0\0\0\x81\x09", 6));
	raw.take();
	Friend huge(loop, port.listener.port());
	huge.send(encode_hello(h) + std::string("\xff\xff\xff\x7f", 4));
	huge.take();
	REQUIRE(loop.run_until([&] { return port.tls.relays() == 0; }, 2000));
}

TEST_CASE("links: calls, notices, errors, to others and to oneself")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	Host one(loop, 1), two(loop, 2);
	std::vector<int> ups;
	one.links->on_peer_up([&](int h) { ups.push_back(h); });
	two.links->on_call("double", [](int from, json body, Links::Reply reply) {
		reply(json{{"from", from}, {"value", body.at("value").get<int>() * 2}});
		reply(json("a second answer is not sent"));
	});
	two.links->on_call("fail", [](int, json, Links::Reply reply) { reply(not_found("no volume x")); });
	two.links->on_call("never", [](int, json, Links::Reply) {});
	two.links->on_call("blob", [](int, json body, Links::Reply reply) { reply(std::move(body)); });
	std::vector<json> notices;
	two.links->on_notice("progress", [&](int from, json body) {
		CHECK(from == 1);
		notices.push_back(std::move(body));
	});

	const auto call = [&](Host &from, int to, const std::string &verb, json body, uint64_t timeout_ms = 2000) {
		std::optional<Result<json>> got;
		bool inside = true;
		from.links->call(to, verb, std::move(body), timeout_ms, [&](Result<json> r) {
			CHECK_FALSE(inside);
			got = std::move(r);
		});
		inside = false;
		REQUIRE(loop.run_until([&] { return got.has_value(); }, 4000));
		return *got;
	};

	const auto nobody = call(one, 2, "double", {{"value", 1}});
	REQUIRE_FALSE(nobody);
	CHECK(nobody.error().message == "there is no connection to host 2");
	CHECK(one.links->last_heard(2) == 0);

	introduce(one, two);
	REQUIRE(loop.run_until([&] { return one.links->up(2) && two.links->up(1) && ups == std::vector<int>{2}; }, 3000));
	for (const int to : {2, 1}) {
		Host &from = to == 2 ? one : two;
		if (to == 1)
			one.links->on_call("double", [](int, json body, Links::Reply reply) { reply(json(body.at("value").get<int>() * 2)); });
		const auto r = call(from, to, "double", {{"value", 21}});
		REQUIRE(r);
		CHECK((to == 2 ? (*r).at("value") : *r) == 42);
	}
	const auto self = call(two, 2, "double", {{"value", 4}});
	REQUIRE(self);
	CHECK((*self).at("value") == 8);
	CHECK((*self).at("from") == 2);
	const auto fail = call(one, 2, "fail", {});
	REQUIRE_FALSE(fail);
	CHECK(fail.error().status == Status::not_found);
	CHECK(fail.error().message == "no volume x");
	CHECK_FALSE(call(two, 2, "fail", {}));
	const auto malformed = call(one, 2, "double", {{"valeu", 1}});
	REQUIRE_FALSE(malformed);
	CHECK(malformed.error().message.find("malformed") != std::string::npos);
	const auto unknown = call(one, 2, "nonsense", {});
	REQUIRE_FALSE(unknown);
	CHECK(unknown.error().message == "h2 does not know the call nonsense");
	for (Host *from : {&one, &two}) {
		const auto never = call(*from, 2, "never", {}, 200);
		REQUIRE_FALSE(never);
		CHECK(never.error().message.find("in time") != std::string::npos);
	}
	const auto blob = call(one, 2, "blob", std::string(3'000'000, 'b'));
	REQUIRE(blob);
	CHECK((*blob).get<std::string>().size() == 3'000'000);
	const auto too_large = call(one, 2, "blob", std::string(FRAME_MAX_BYTES, 'b'));
	REQUIRE_FALSE(too_large);
	CHECK(one.links->up(2));

	one.links->notify(2, "progress", 1);
	one.links->notify_all("progress", 2);
	one.links->notify(2, "unheard of", 3);
	REQUIRE(loop.run_until([&] { return notices.size() == 2; }, 2000));
	CHECK(notices == std::vector<json>{1, 2});
	CHECK(Loop::now_ms() - one.links->last_heard(2) < 1000);
	CHECK(one.links->name(2) == "h2");
	CHECK(one.links->name(9) == "host 9");
}

TEST_CASE("links: a lost peer fails what it owes at once, and comes back by itself")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	Host one(loop, 1);
	auto two = std::make_unique<Host>(loop, 2);
	std::vector<int> downs;
	one.links->on_peer_down([&](int h) { downs.push_back(h); });
	two->links->on_call("never", [](int, json, Links::Reply) {});
	introduce(one, *two);
	REQUIRE(loop.run_until([&] { return one.links->up(2) && two->links->up(1); }, 3000));

	int failed_calls = 0;
	for (int i = 0; i < 10; i++) {
		one.links->call(2, "never", {}, 60'000, [&](Result<json> r) {
			REQUIRE_FALSE(r);
			CHECK(r.error().message == "the connection to h2 was lost before it answered");
			failed_calls++;
		});
	}
	loop.run_until([] { return false; }, 50);
	two->links.reset();
	const uint64_t start = Loop::now_ms();
	REQUIRE(loop.run_until([&] { return failed_calls == 10; }, 3000));
	CHECK(Loop::now_ms() - start < 1000);
	REQUIRE(loop.run_until([&] { return downs == std::vector<int>{2}; }, 1000));
	CHECK_FALSE(one.links->up(2));
	CHECK(one.links->last_heard(2) != 0);

	two->links.emplace(loop, two->port.listener, two->dialer, LinkOptions{.heartbeat_ms = 100, .silence_ms = 500});
	two->links->set_peers({one.peer(1)});
	REQUIRE(loop.run_until([&] { return one.links->up(2) && two->links->up(1); }, 5000));

	// No longer a member: closed, and not let in again.
	one.links->set_peers({one.peer(1)});
	REQUIRE(loop.run_until([&] { return !two->links->up(1); }, 2000));
	loop.run_until([] { return false; }, 500);
	CHECK_FALSE(two->links->up(1));
}

TEST_CASE("links: a peer that is silent, though connected, is down")
{
	Loop loop, other;
	loop.set_log([](const std::string &) {});
	other.set_log([](const std::string &) {});
	Host one(loop, 1), two(other, 2);
	introduce(one, two);
	REQUIRE(loop.run_until([&] { return other.run_until([&] { return two.links->up(1); }, 5) && one.links->up(2); }, 5000));
	// From here on host 2's loop does not turn: its kernel still takes all we send.
	const uint64_t start = Loop::now_ms();
	REQUIRE(loop.run_until([&] { return !one.links->up(2); }, 5000));
	CHECK(Loop::now_ms() - start >= 300);
	CHECK(Loop::now_ms() - start < 2500);
}
