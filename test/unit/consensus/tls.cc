// SPDX-License-Identifier: GPL-2.0-or-later
//
// TLS below the port: who is let in, that a kernel could take over where OpenSSL stops, and that relays lose nothing, hold
// nothing back and leave nothing behind. Whether a kernel does take over is shown in the lab: it needs one with TLS.
#include <catch2/catch_test_macros.hpp>

#include <openssl/evp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "lockstepd/host/keys.h"
#include "lockstepd/net/listener.h"
#include "test/unit/consensus/fds.h"
#include "test/unit/consensus/node.h"
#include "test/unit/consensus/pki.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

std::string unhex(std::string_view digits)
{
	std::string out;
	for (size_t i = 0; i < digits.size(); i += 2)
		out += char(std::stoi(std::string(digits.substr(i, 2)), nullptr, 16));
	return out;
}

// Two ends of one TCP connection.
std::pair<int, int> tcp_pair()
{
	const int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	sockaddr_in at{};
	at.sin_family = AF_INET;
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	socklen_t length = sizeof at;
	REQUIRE(bind(door, reinterpret_cast<sockaddr *>(&at), sizeof at) == 0);
	REQUIRE(listen(door, 1) == 0);
	REQUIRE(getsockname(door, reinterpret_cast<sockaddr *>(&at), &length) == 0);
	const int near = connect_to(ntohs(at.sin_port));
	const int far = accept4(door, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
	REQUIRE(far >= 0);
	close(door);
	return {near, far};
}

struct Two {
	explicit Two(Loop &loop) : near_tls(loop, LaneEnd::relay), far_tls(loop, LaneEnd::relay)
	{
		REQUIRE(near_tls.set_identity(identity_of(CLUSTER, 1, 101)));
		REQUIRE(far_tls.set_identity(identity_of(CLUSTER, 2, 102)));
		const auto [n, f] = tcp_pair();
		near = near_tls.connect(n);
		far = far_tls.accept(f);
		REQUIRE(loop.run_until(
			[&] {
				const auto a = near->handshake(), b = far->handshake();
				return a == TlsSession::Step::done && b == TlsSession::Step::done;
			},
			2000));
	}
	Tls near_tls, far_tls;
	std::unique_ptr<TlsSession> near, far;
};

// A record as it is on the wire, opened with what a kernel would be given. Its data without the type at the end.
std::string open_record(const std::string &wire, const TrafficKeys &keys)
{
	REQUIRE(wire.size() > 5 + 16);
	std::string nonce = keys.iv;
	for (size_t i = 0; i < 8; i++)
		nonce[4 + i] = char(nonce[4 + i] ^ char(keys.sequence >> (8 * (7 - i))));
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	std::string plain(wire.size() - 5 - 16, '\0');
	std::string tag = wire.substr(wire.size() - 16);
	int n = 0;
	const auto bytes = [](const std::string &s) { return reinterpret_cast<const unsigned char *>(s.data()); };
	REQUIRE(EVP_DecryptInit_ex(ctx, EVP_aes_128_gcm(), nullptr, bytes(keys.key), bytes(nonce)) == 1);
	REQUIRE(EVP_DecryptUpdate(ctx, nullptr, &n, bytes(wire), 5) == 1);
	REQUIRE(EVP_DecryptUpdate(ctx, reinterpret_cast<unsigned char *>(plain.data()), &n, bytes(wire) + 5, int(plain.size())) == 1);
	REQUIRE(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, 16, tag.data()) == 1);
	const bool genuine = EVP_DecryptFinal_ex(ctx, reinterpret_cast<unsigned char *>(plain.data()) + n, &n) == 1;
	EVP_CIPHER_CTX_free(ctx);
	REQUIRE(genuine);
	REQUIRE(plain.back() == 23);    // application data
	plain.pop_back();
	return plain;
}

std::string read_wire(int fd)
{
	std::string wire(5, '\0');
	while (recv(fd, wire.data(), 5, MSG_PEEK | MSG_DONTWAIT) < 5)
		usleep(100);
	wire.resize(5 + (size_t(uint8_t(wire[3])) << 8 | uint8_t(wire[4])));
	REQUIRE(recv(fd, wire.data(), wire.size(), MSG_WAITALL) == ssize_t(wire.size()));
	return wire;
}

std::string read_session(Loop &loop, TlsSession &session, size_t bytes)
{
	std::string got;
	REQUIRE(loop.run_until(
		[&] {
			char buffer[4096];
			if (got.size() == bytes)
				return true;
			const ssize_t n = session.read(buffer, std::min(sizeof buffer, bytes - got.size()));
			if (n > 0)
				got.append(buffer, size_t(n));
			return got.size() == bytes;
		},
		2000));
	return got;
}

}    // namespace

TEST_CASE("traffic keys: the example of RFC 8448, section 3")
{
	const TrafficKeys server = derive_traffic_keys(unhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"), 0);
	CHECK(server.key == unhex("9f02283b6c9c07efc26bb9f2ac92e356"));
	CHECK(server.iv == unhex("cf782b88dd83549aadf1e984"));
}

TEST_CASE("where OpenSSL stops, the keys and numbers for the kernel go on, in both directions")
{
	Loop loop;
	Two t(loop);
	// Hellos in several records of several sizes, as after a handshake.
	REQUIRE(t.near->write("hello", 5) == 5);
	REQUIRE(t.near->write("again", 5) == 5);
	CHECK(read_session(loop, *t.far, 10) == "helloagain");
	REQUIRE(t.far->write("answer", 6) == 6);
	CHECK(read_session(loop, *t.near, 6) == "answer");

	const auto near_sends = t.near->traffic_keys(true), near_receives = t.near->traffic_keys(false);
	const auto far_sends = t.far->traffic_keys(true), far_receives = t.far->traffic_keys(false);
	REQUIRE((near_sends && near_receives && far_sends && far_receives));
	CHECK(near_sends->key == far_receives->key);
	CHECK(near_sends->iv == far_receives->iv);
	CHECK(near_sends->sequence == 2);
	CHECK(far_receives->sequence == 2);
	CHECK(far_sends->key == near_receives->key);
	CHECK(far_sends->sequence == 1);
	CHECK(near_receives->sequence == 1);
	CHECK(near_sends->key != far_sends->key);

	REQUIRE(t.near->write("to the kernel", 13) == 13);
	CHECK(open_record(read_wire(t.far->fd()), *far_receives) == "to the kernel");
	REQUIRE(t.far->write("and back", 8) == 8);
	CHECK(open_record(read_wire(t.near->fd()), *near_receives) == "and back");
}

TEST_CASE("bytes that came in one record with the hello are not lost silently: the lane is refused")
{
	Loop loop;
	Two t(loop);
	REQUIRE(t.near->write("hello and more", 14) == 14);
	CHECK(read_session(loop, *t.far, 5) == "hello");
	CHECK_FALSE(t.far->traffic_keys(false));
}

TEST_CASE("a kernel without TLS is told of in one line, and the connection is closed")
{
	Loop loop;
	const int before = open_fds();
	{
		Two t(loop);
		Tls kernel(loop, LaneEnd::kernel);
		const auto fd = kernel.lane_end(std::move(t.near));
		if (fd)
			close(*fd);    // this machine has it
		else
			CHECK(fd.error().message.find("this host's kernel") == 0);
	}
	CHECK(open_fds() == before);
}

TEST_CASE("relays: all bytes arrive, key renewals included, and an end is handed on after them")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	const int before = open_fds();
	{
		Two t(loop);
		auto near = t.near_tls.stream_end(std::move(t.near));
		auto far = t.far_tls.stream_end(std::move(t.far));
		REQUIRE((near && far));
		set_blocking(*near, true);
		set_blocking(*far, true);
		std::string payload(4 << 20, '\0');
		for (size_t i = 0; i < payload.size(); i++)
			payload[i] = char(i * 11 + i / 4096);
		const auto write_all = [&](int fd) {
			for (size_t sent = 0; sent < payload.size();) {
				const ssize_t n = send(fd, payload.data() + sent, payload.size() - sent, MSG_NOSIGNAL);
				if (n <= 0)
					return;
				sent += size_t(n);
			}
			close(fd);
		};
		std::string got(payload.size() + 1, '\0');
		std::atomic<bool> ended{false};
		ssize_t n = 0;
		std::thread writer(write_all, *near);
		std::thread taker([&] {
			n = recv(*far, got.data(), got.size(), MSG_WAITALL);    // one byte more than there is: ends with the other side
			ended = true;
		});
		CHECK(loop.run_until([&] { return ended.load(); }, 10'000));
		writer.join();
		taker.join();
		CHECK(n == ssize_t(payload.size()));
		got.pop_back();
		CHECK(got == payload);
		close(*far);
		CHECK(loop.run_until([&] { return t.near_tls.relays() == 0 && t.far_tls.relays() == 0; }, 2000));
	}
	CHECK(open_fds() == before);
}

TEST_CASE("a key that is renewed in the middle goes unnoticed")
{
	Loop loop;
	Two t(loop);
	t.near->renew_key_after(3);
	for (int i = 0; i < 20; i++) {
		REQUIRE(t.near->write("0123456789", 10) == 10);
		CHECK(read_session(loop, *t.far, 10) == "0123456789");
		REQUIRE(t.far->write("x", 1) == 1);
		CHECK(read_session(loop, *t.near, 1) == "x");
	}
}

TEST_CASE("who does not read holds the other side back and nothing else")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	Two t(loop);
	auto near = t.near_tls.stream_end(std::move(t.near));
	auto far = t.far_tls.stream_end(std::move(t.far));
	REQUIRE((near && far));
	const std::string block(65536, 'x');
	size_t sent = 0;
	uint64_t still_ms = Loop::now_ms();
	REQUIRE(loop.run_until(
		[&] {
			const ssize_t n = send(*near, block.data(), block.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
			if (n > 0) {
				sent += size_t(n);
				still_ms = Loop::now_ms();
			}
			return Loop::now_ms() - still_ms > 200;
		},
		10'000));
	CHECK(sent < 32u << 20);    // what buffers hold
	REQUIRE(send(*far, "hi", 2, MSG_NOSIGNAL) == 2);
	char two[2];
	bool heard = false;
	REQUIRE(loop.run_until([&] { return heard = heard || recv(*near, two, 2, MSG_DONTWAIT) == 2; }, 2000));
	std::vector<char> sink(1 << 20);
	size_t got = 0;
	REQUIRE(loop.run_until(
		[&] {
			const ssize_t n = recv(*far, sink.data(), sink.size(), MSG_DONTWAIT);
			got += n > 0 ? size_t(n) : 0;
			return got == sent;
		},
		10'000));
	close(*near);
	close(*far);
	CHECK(loop.run_until([&] { return t.near_tls.relays() == 0 && t.far_tls.relays() == 0; }, 2000));
}

TEST_CASE("who is let in: not the expired, the foreign, the forged, the nameless or the removed")
{
	Loop loop;
	std::vector<std::string> lines;
	loop.set_log([&](const std::string &line) { lines.push_back(line); });
	Tls tls(loop, LaneEnd::relay);
	Listener listener(loop, tls);
	listener.set_identity({CLUSTER, 1, 101, "h1"});
	REQUIRE(tls.set_identity(identity_of(CLUSTER, 1, 101)));
	REQUIRE(listener.listen({"127.0.0.1"}, 0));
	std::vector<int> fds;
	listener.handlers().on_link = [&](const Hello &, int fd) { fds.push_back(fd); };
	int removed = 0;
	tls.set_admission([&](const PeerCert &peer, bool) {
		return peer.subject.host == removed ? std::optional<std::string>(Tls::REMOVED) : std::nullopt;
	});
	const int before = open_fds();

	bool told_removed = false;
	const auto attempt = [&](const TlsIdentity &identity, int host = 2) {
		Tls own(loop, LaneEnd::relay);
		Dialer dialer(loop, own);
		if (Done taken = own.set_identity(identity); !taken)
			return taken.error().message;
		dialer.set_identity({CLUSTER, host, uint64_t(host) + 100, "h"});
		Hello hello;
		hello.purpose = Purpose::link;
		std::string outcome;
		dialer.dial({"127.0.0.1:" + std::to_string(listener.port())}, 0, hello, [&](Result<int> fd, const HelloAnswer &answer) {
			outcome = fd ? "ok" : fd.error().message;
			told_removed = answer.removed;
			if (fd)
				close(*fd);
		});
		REQUIRE(loop.run_until([&] { return !outcome.empty(); }, 3000));
		return outcome;
	};
	const auto has = [](const std::string &text, const char *part) {
		INFO(text);
		return text.find(part) != std::string::npos;
	};
	CHECK(attempt(identity_of(CLUSTER, 2, 102)) == "ok");
	CHECK(has(attempt(identity_of(CLUSTER, 2, 102, -10)), "certificate expired"));
	// Another cluster's host does not believe us either; one that does (it has our authority's certificate) is not believed.
	CHECK(has(attempt(identity_of("5b4c9d3e-0000-4000-8000-00000000ffff", 2, 102)), "certificate was refused"));
	TlsIdentity foreign = identity_of("5b4c9d3e-0000-4000-8000-00000000ffff", 2, 102);
	foreign.authority = authority_of(CLUSTER).cert;
	CHECK(has(attempt(foreign), "unknown CA"));
	// Signed by a host's key instead of the authority's.
	TlsIdentity member = identity_of(CLUSTER, 2, 102), forged = member;
	forged.key = make_private_key();
	forged.cert = *issue_certificate({member.cert, member.key}, *public_key_of(forged.key), {CLUSTER, 3, 103}, time(nullptr) + 3600);
	CHECK(attempt(forged, 3) != "ok");
	// Its key is not that of the certificate.
	TlsIdentity stolen = member;
	stolen.key = make_private_key();
	CHECK(has(attempt(stolen), "damaged"));
	CHECK(has(attempt(identity_of(CLUSTER, 3, 103)), "its certificate is that of host 3"));
	CHECK(has(attempt(identity_of(CLUSTER, 2, 177)), "its certificate is that of host 2, raft member 177"));
	removed = 4;
	CHECK_FALSE(told_removed);
	CHECK(has(attempt(identity_of(CLUSTER, 4, 104), 4), "it was removed from the cluster"));
	CHECK(told_removed);

	// One log line for each reason, not each try.
	lines.clear();
	for (int i = 0; i < 5; i++)
		CHECK(attempt(identity_of(CLUSTER, 4, 104), 4) != "ok");
	CHECK(lines.size() <= 1);

	for (const int fd : fds)
		close(fd);
	CHECK(loop.run_until([&] { return tls.relays() == 0 && open_fds() == before; }, 2000));
}

TEST_CASE("a host that is removed is cut at once, others are not")
{
	Loop loop;
	std::vector<std::string> lines;
	loop.set_log([&](const std::string &line) { lines.push_back(line); });
	int removed = 0;
	Two t(loop);
	t.far_tls.set_admission([&](const PeerCert &peer, bool established) {
		CHECK(established);
		return peer.subject.host == removed ? std::optional<std::string>(Tls::REMOVED) : std::nullopt;
	});
	auto near = t.near_tls.stream_end(std::move(t.near));
	auto far = t.far_tls.stream_end(std::move(t.far));
	REQUIRE((near && far));
	char c;
	t.far_tls.recheck();
	loop.run_until([] { return false; }, 20);
	CHECK(t.far_tls.relays() == 1);
	removed = 1;
	t.far_tls.recheck();
	t.far_tls.recheck();
	REQUIRE(loop.run_until([&] { return recv(*near, &c, 1, MSG_DONTWAIT) == 0 && recv(*far, &c, 1, MSG_DONTWAIT) == 0; }, 1000));
	CHECK(lines == std::vector<std::string>{"cut a connection with host 1: it was removed from the cluster"});
	CHECK(t.far_tls.relays() == 0);
	close(*near);
	close(*far);
	CHECK(loop.run_until([&] { return t.near_tls.relays() == 0; }, 1000));
}

TEST_CASE("in no cluster, each connection is closed at once")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	Tls tls(loop);
	Listener listener(loop, tls);
	REQUIRE(listener.listen({"127.0.0.1"}, 0));
	const int fd = connect_to(listener.port());
	char c;
	REQUIRE(loop.run_until([&] { return recv(fd, &c, 1, MSG_DONTWAIT) == 0; }, 1000));
	CHECK(listener.half_open() == 0);
	close(fd);
}

TEST_CASE("a stranger talks to the cluster of its token only")
{
	Loop loop;
	loop.set_log([](const std::string &) {});
	Tls tls(loop);
	Listener listener(loop, tls);
	listener.set_identity({CLUSTER, 1, 101, "h1"});
	REQUIRE(tls.set_identity(identity_of(CLUSTER, 1, 101)));
	REQUIRE(listener.listen({"127.0.0.1"}, 0));
	int asked = 0;
	listener.handlers().on_join = [&](const Hello &, const std::string &, nlohmann::json, ListenerHandlers::Reply reply) {
		asked++;
		reply(nlohmann::json("welcome"));
	};
	Tls own(loop);
	Dialer dialer(loop, own);
	const auto ask = [&](const std::string &authority) {
		std::optional<Result<nlohmann::json>> got;
		dialer.request({"127.0.0.1:" + std::to_string(listener.port())}, 0, Purpose::join, "secret", 3000,
			       [&](Result<nlohmann::json> r) { got = std::move(r); }, authority);
		REQUIRE(loop.run_until([&] { return got.has_value(); }, 4000));
		return *got;
	};
	CHECK(ask(*fingerprint(authority_of(CLUSTER).cert)));
	CHECK(ask(fingerprint(authority_of(CLUSTER).cert)->substr(0, 32)));
	CHECK(asked == 2);
	CHECK_FALSE(ask(*fingerprint(authority_of("5b4c9d3e-0000-4000-8000-00000000ffff").cert)));
	CHECK_FALSE(ask(*fingerprint(identity_of(CLUSTER, 1, 101).cert)));
	CHECK(asked == 2);
}

TEST_CASE("join tokens: a mistyped one is found out before it is used")
{
	const JoinToken token = {std::string(64, 'a'), random_hex(TOKEN_PART_BYTES), 0x65a0bc12};
	const std::string text = format_token(token);
	CHECK(text.size() == 80);
	const auto parsed = parse_token(text);
	REQUIRE(parsed);
	CHECK(parsed->authority == std::string(32, 'a'));
	CHECK(parsed->secret == token.secret);
	CHECK(parsed->end_s == token.end_s);
	for (size_t i = 0; i < text.size(); i++) {
		std::string wrong = text;
		wrong[i] = wrong[i] == '1' ? '2' : '1';
		CHECK_FALSE(parse_token(wrong));
	}
	CHECK_FALSE(parse_token(""));
	CHECK_FALSE(parse_token(text.substr(1)));
	CHECK_FALSE(parse_token(text + "0"));
}

TEST_CASE("keys on disk: made once, readable by root only")
{
	TempDir tmp;
	CHECK_FALSE(load_identity(tmp.path));
	const auto key = own_key(tmp.path);
	REQUIRE(key);
	CHECK(*own_key(tmp.path) == *key);
	CHECK(std::filesystem::status(tmp.path + "/tls/key.pem").permissions() ==
	      (std::filesystem::perms::owner_read | std::filesystem::perms::owner_write));
	CHECK(std::filesystem::status(tmp.path + "/tls").permissions() == std::filesystem::perms::owner_all);
	const Authority &authority = authority_of(CLUSTER);
	const int64_t end = time(nullptr) + 1000;
	const auto cert = issue_certificate(authority, *public_key_of(*key), {CLUSTER, 1, 101}, end);
	REQUIRE(cert);
	CHECK(*end_of(*cert) == end);
	REQUIRE(store_certificate(tmp.path, authority.cert, *cert));
	const auto identity = load_identity(tmp.path);
	REQUIRE(identity);
	Loop loop;
	Tls tls(loop);
	CHECK(tls.set_identity(*identity));
	CHECK_FALSE(load_authority(tmp.path));
	REQUIRE(store_authority(tmp.path, authority));
	CHECK(*load_authority(tmp.path) == authority);
	CHECK_FALSE(issue_certificate(authority, "-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----\n", {CLUSTER, 1, 1}, end));
	CHECK_FALSE(key_digest(""));
}
