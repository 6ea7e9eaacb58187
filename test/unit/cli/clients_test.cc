// SPDX-License-Identifier: GPL-2.0-or-later
//
// Clients of the API: what each role may do, how much of it, and that they hold up neither root nor each other. Their connections are
// local ones here; TLS in front of them is tested in test/unit/consensus/clients.cc, and both together in daemons_test.cc.
#include "fake.h"

#include "lockstepd/api/guard.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>
#include <tuple>

using namespace lockstep;
using namespace lockstep::test;
using nlohmann::json;

namespace {

const std::string KEY(64, 'c'), OTHER_KEY(64, 'd');

void let_in(FakeDaemon &d, const std::string &name, const std::string &role, uint64_t end_ms = UINT64_MAX / 2)
{
	d.good({{"op", "client.add"}, {"name", name}, {"role", role}, {"key", KEY}, {"end_ms", end_ms}, {"now_ms", 1}});
}

// A client's connection.
struct Line {
	Line(FakeDaemon &d, const std::string &name, const std::string &key = KEY)
	{
		int pair[2];
		REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
		fd = pair[0];
		ClientCert cert;
		cert.name = name;
		cert.key_digest = key;
		d.server().serve(pair[1], cert);
	}
	~Line() { close(fd); }
	Line(const Line &) = delete;

	void say(const std::string &text) { send(fd, text.data(), text.size(), MSG_NOSIGNAL); }

	// Up to the end of one answer; what there is if the other side ends it, or says nothing for so long.
	std::string hear(int timeout_ms = 5000)
	{
		std::string all;
		char chunk[4096];
		for (;;) {
			const size_t head = all.find("\r\n\r\n");
			const size_t length = all.find("Content-Length: ");
			if (head != all.npos && length < head && all.size() >= head + 4 + std::stoul(all.substr(length + 16)))
				return all;
			pollfd p{fd, POLLIN, 0};
			const ssize_t n = poll(&p, 1, timeout_ms) > 0 ? recv(fd, chunk, sizeof chunk, 0) : 0;
			if (n <= 0)
				return all;
			all.append(chunk, size_t(n));
		}
	}

	std::string ask(const std::string &verb, const std::string &path, const std::string &body = "")
	{
		say(verb + " " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
		return hear();
	}

	bool ended()
	{
		char c;
		pollfd p{fd, POLLIN, 0};
		return poll(&p, 1, 5000) > 0 && recv(fd, &c, 1, 0) <= 0;
	}
	int fd;
};

int http_status(const std::string &answer) { return answer.starts_with("HTTP/1.1 ") ? std::stoi(answer.substr(9)) : 0; }

std::string code(const std::string &answer)
{
	const json body = json::parse(answer.substr(answer.find("\r\n\r\n") + 4), nullptr, false);
	return body.is_object() ? body.value("code", "") : "";
}

const std::string VOLUME = R"({"name":"v","size_bytes":1073741824})";

}    // namespace

TEST_CASE("a bucket of tokens: a burst, then so many a second, and no more saved up than the burst")
{
	Throttle t(10, 3);
	for (int i = 0; i < 3; i++)
		CHECK(t.take(1000));
	CHECK_FALSE(t.take(1000));
	CHECK_FALSE(t.take(1099));
	CHECK(t.take(1100));
	CHECK_FALSE(t.take(1100));
	CHECK_FALSE(t.take(900));    // a clock that goes back gives nothing
	for (int i = 0; i < 3; i++)
		CHECK(t.take(60'000));
	CHECK_FALSE(t.take(60'000));
}

TEST_CASE("clients: what a role may do")
{
	FakeDaemon d;
	let_in(d, "reader", "read-only");
	let_in(d, "boss", "admin");
	for (const char *path : {"/v1/status", "/v1/volumes", "/v1/events", "/metrics", "/v1/cluster/certs"}) {
		CHECK(http_status(Line(d, "reader").ask("GET", path)) == 200);
		CHECK(http_status(Line(d, "boss").ask("GET", path)) == 200);
	}
	for (auto [verb, path, body] : {std::tuple("POST", "/v1/volumes", VOLUME.c_str()), std::tuple("DELETE", "/v1/volumes/v", ""), std::tuple("POST", "/v1/options/auto-evict-minutes", R"({"value":"5"})"),
					std::tuple("PATCH", "/v1/volumes/v", "{}"), std::tuple("POST", "/v1/hosts/beta/lost", "{}"), std::tuple("GET", "/v1/orphans", "")}) {
		INFO(verb << " " << path);
		const std::string answer = Line(d, "reader").ask(verb, path, body);
		CHECK(http_status(answer) == 403);
		CHECK(code(answer) == "read-only");
	}
	CHECK(d.state()->volumes.empty());
	CHECK(d.state()->options.empty());
	CHECK(http_status(Line(d, "boss").ask("POST", "/v1/volumes", VOLUME)) == 200);
	CHECK(d.state()->volumes.size() == 1);
	// Who is in the cluster and who has a certificate is root's to decide, on a host.
	for (const char *who : {"reader", "boss"})
		for (auto [verb, path] : {std::pair("POST", "/v1/cluster/token"), std::pair("POST", "/v1/cluster/certs/another"), std::pair("DELETE", "/v1/cluster/certs/reader"),
					  std::pair("POST", "/v1/cluster/recover"), std::pair("POST", "/v1/cluster/init"), std::pair("POST", "/v1/cluster/join")}) {
			INFO(verb << " " << path);
			const std::string answer = Line(d, who).ask(verb, path, R"({"role":"admin"})");
			CHECK(http_status(answer) == 403);
			CHECK(code(answer) == "root-only");
		}
	CHECK(d.state()->clients.size() == 2);
}

TEST_CASE("clients: who counts is asked at each request")
{
	FakeDaemon d;
	let_in(d, "boss", "admin");
	Line line(d, "boss");
	CHECK(http_status(line.ask("GET", "/v1/status")) == 200);
	let_in(d, "boss", "read-only");
	CHECK(code(line.ask("POST", "/v1/volumes", VOLUME)) == "read-only");
	CHECK(line.ended());    // what follows a request whose body was not read would make no sense
	CHECK(http_status(Line(d, "boss").ask("GET", "/v1/status")) == 200);
	Line before(d, "boss");
	CHECK(http_status(before.ask("GET", "/v1/status")) == 200);
	CHECK(d.run({"cluster", "cert-revoke", "boss"}).status == 0);
	CHECK(code(before.ask("GET", "/v1/status")) == "not-admitted");
	CHECK(code(Line(d, "boss").ask("GET", "/v1/status")) == "not-admitted");
	// Nor does another key of the same name, a name that is not known, or a certificate that has ended.
	let_in(d, "boss", "admin");
	CHECK(code(Line(d, "boss", OTHER_KEY).ask("GET", "/v1/status")) == "not-admitted");
	CHECK(code(Line(d, "nobody").ask("GET", "/v1/status")) == "not-admitted");
	let_in(d, "old", "admin", NOW_MS);
	CHECK(code(Line(d, "old").ask("GET", "/v1/status")) == "not-admitted");
	CHECK(http_status(Line(d, "boss").ask("GET", "/v1/status")) == 200);
}

TEST_CASE("clients: so many requests, so many connections; root and others are not held up")
{
	ApiLimits limits;
	limits.connections = 2;
	limits.per_second = 0.001;
	limits.burst = 3;
	FakeDaemon d(3, 5000, limits);
	let_in(d, "eager", "admin");
	let_in(d, "other", "admin");
	{
		Line one(d, "eager"), two(d, "eager");
		CHECK(http_status(one.ask("GET", "/v1/status")) == 200);
		CHECK(http_status(two.ask("GET", "/v1/status")) == 200);
		Line three(d, "eager");
		const std::string answer = three.hear();    // without having asked
		CHECK(http_status(answer) == 429);
		CHECK(code(answer) == "too-many-requests");
		CHECK(three.ended());
		CHECK(http_status(one.ask("GET", "/v1/status")) == 200);
		const std::string late = two.ask("POST", "/v1/volumes", VOLUME);
		CHECK(http_status(late) == 429);
		CHECK(code(late) == "too-many-requests");
		CHECK(two.ended());
		CHECK(http_status(Line(d, "other").ask("GET", "/v1/status")) == 200);
		for (int i = 0; i < 20; i++)
			CHECK(d.run({"status"}).status == 0);
	}
	CHECK(d.state()->volumes.empty());
}

TEST_CASE("clients: all of them together have so many connections")
{
	ApiLimits limits;
	limits.request_ms = 60'000;
	FakeDaemon d(3, 5000, limits);
	std::vector<std::unique_ptr<Line>> lines;
	for (size_t i = 0; i < CLIENT_CONNECTIONS_MAX; i++) {
		const std::string name = "c" + std::to_string(i);
		let_in(d, name, "read-only");
		lines.push_back(std::make_unique<Line>(d, name));
		lines.back()->say(i % 2 ? "GET /v1/wait?index=999999&ms=30000 HTTP/1.1\r\n\r\n" : "GET /v1/st");
	}
	let_in(d, "late", "admin");
	CHECK(http_status(Line(d, "late").hear()) == 429);
	CHECK(d.run({"status"}).status == 0);
	// Stopping does not wait for them, not even for a request that still trickles in.
	std::atomic<bool> done = false;
	std::thread trickle([&] {
		while (!done) {
			lines[0]->say("x");
			std::this_thread::sleep_for(std::chrono::milliseconds(50));
		}
	});
	const auto begin = std::chrono::steady_clock::now();
	d.server().stop();
	CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
	done = true;
	trickle.join();
	CHECK(http_status(Line(d, "late").hear()) == 429);
}

TEST_CASE("clients: requests that are too large, too slow, cut short or nonsense end their connection and nothing else")
{
	ApiLimits limits;
	limits.request_ms = 300;
	limits.answer_ms = 300;
	FakeDaemon d(3, 5000, limits);
	let_in(d, "boss", "admin");
	{
		Line large(d, "boss");
		CHECK(http_status(large.ask("POST", "/v1/volumes", std::string(70 * 1024, ' '))) == 413);
	}
	{
		Line huge(d, "boss");    // is not read to its end before it is refused
		huge.say("POST /v1/volumes HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n");
		const std::string chunk(50'000, ' ');
		size_t sent = 0;
		for (ssize_t n = 1; n > 0 && sent < 8'000'000; sent += size_t(std::max<ssize_t>(n, 0)))
			n = send(huge.fd, chunk.data(), chunk.size(), MSG_NOSIGNAL);
		CHECK(sent < 2'000'000);
		CHECK(http_status(huge.hear()) == 413);
	}
	{
		Line endless(d, "boss");    // its head alone is larger than a request may be
		endless.say("GET /v1/status HTTP/1.1\r\n");
		std::thread sender([&] {
			for (int i = 0; i < 100; i++)
				endless.say("X-" + std::to_string(i) + ": " + std::string(4000, 'x') + "\r\n");
			endless.say("\r\n");
		});
		CHECK(http_status(endless.hear()) != 200);
		sender.join();
	}
	{
		Line slow(d, "boss");
		slow.say("GET /v1/st");
		CHECK(http_status(slow.hear()) != 200);
		CHECK(slow.ended());
	}
	{
		Line trickles(d, "boss");    // a byte is always there in time for the next
		std::atomic<bool> stop = false;
		std::thread sender([&] {
			while (!stop) {
				trickles.say("x");
				std::this_thread::sleep_for(std::chrono::milliseconds(20));
			}
		});
		CHECK(http_status(trickles.hear(3000)) != 200);
		CHECK(trickles.ended());
		stop = true;
		sender.join();
	}
	{
		Line half(d, "boss");    // the body never comes
		half.say("POST /v1/volumes HTTP/1.1\r\nContent-Length: 60\r\n\r\n{\"name\":");
		CHECK(http_status(half.hear()) != 200);
		CHECK(half.ended());
	}
	{
		Line sips(d, "boss");    // takes the answer, but slowly
		for (int i = 0; i < 2000; i++)
			d.server().happened("cluster", "lab", std::string(1000, 'x'));
		sips.say("GET /v1/events HTTP/1.1\r\n\r\n");
		char chunk[4096];
		size_t taken = 0;
		while (const ssize_t n = recv(sips.fd, chunk, sizeof chunk, 0)) {
			REQUIRE(n > 0);
			taken += size_t(n);
			std::this_thread::sleep_for(std::chrono::milliseconds(5));
		}
		CHECK(taken < 2'000'000);
	}
	{
		Line garbage(d, "boss");
		garbage.say(std::string(5000, '\0') + "\r\n\r\n");
		CHECK(http_status(garbage.hear()) == 400);
	}
	{
		Line gone(d, "boss");
		gone.say("POST /v1/volumes HTTP/1.1\r\nContent-Length: 37\r\n\r\n{");
	}
	CHECK(d.state()->volumes.empty());
	CHECK(http_status(Line(d, "boss").ask("GET", "/v1/status")) == 200);
	CHECK(d.run({"status"}).status == 0);
}

TEST_CASE("certificates for clients are made, listed and revoked")
{
	FakeDaemon d;
	const std::string file = FakeDaemon::socket_path() + ".pem";
	unlink(file.c_str());
	CHECK(has(d.run({"cluster", "certs"}).out, "nobody may use the API"));
	Outcome o = d.run({"cluster", "cert", "monitor", file, "--role", "read-only"});
	CHECK(o.status == 0);
	CHECK(has(o.out, file));
	std::stringstream text;
	text << std::ifstream(file).rdbuf();
	CHECK(text.str() == "key and certificates of monitor\n");
	struct stat facts;
	REQUIRE(stat(file.c_str(), &facts) == 0);
	CHECK((facts.st_mode & 07777) == 0600);
	CHECK(d.state()->clients.at("monitor").role == "read-only");
	// A file that is there is not overwritten, and nothing is made then.
	o = d.run({"cluster", "cert", "another", file, "--role", "admin"});
	CHECK(o.status == 2);
	CHECK(has(o.err, "File exists"));
	CHECK_FALSE(d.state()->clients.contains("another"));
	unlink(file.c_str());
	// What cannot be made leaves no file.
	d.quorum = false;
	CHECK(d.run({"cluster", "cert", "another", file, "--role", "admin"}).status == 10);
	d.quorum = true;
	for (const std::vector<std::string> &bad : std::vector<std::vector<std::string>>{{"a:b", file, "--role", "admin"}, {"a", file, "--role", "root"}, {"a", file},
										     {"a", file, "--role", "admin", "--valid", "0s"}, {"a", file, "--role", "admin", "--valid", "3651d"}}) {
		std::vector<std::string> args = {"cluster", "cert"};
		args.insert(args.end(), bad.begin(), bad.end());
		CHECK(d.run(args).status == 2);
		CHECK_FALSE(std::filesystem::exists(file));
	}
	let_in(d, "old", "admin", NOW_MS);
	o = d.run({"cluster", "certs"});
	CHECK(has(o.out, "monitor"));
	CHECK(has(o.out, "read-only"));
	CHECK(has(o.out, "has ended"));
	CHECK(d.json_of({"cluster", "certs", "--json"}).size() == 2);
	CHECK(d.run({"cluster", "cert-revoke", "monitor"}).status == 0);
	CHECK(d.run({"cluster", "cert-revoke", "monitor"}).status == 3);
}

TEST_CASE("--host wants a certificate that nobody else can read, and goes to no command of this host's own")
{
	FakeDaemon d;
	const std::string file = FakeDaemon::socket_path() + ".pem";
	const auto write = [&](const std::string &text, unsigned mode) {
		unlink(file.c_str());
		std::ofstream(file) << text;
		REQUIRE(chmod(file.c_str(), mode) == 0);
	};
	CHECK(has(d.run({"--host", "127.0.0.1", "status"}).err, "--cert"));
	CHECK(d.run({"--cert", file, "status"}).status == 2);
	CHECK(has(d.run({"--host", "127.0.0.1", "--cert", file + ".none", "status"}).err, "cannot read"));
	write("x", 0640);
	CHECK(has(d.run({"--host", "127.0.0.1", "--cert", file, "status"}).err, "others can read the key"));
	write("x", 0600);
	CHECK(has(d.run({"--host", "127.0.0.1", "--cert", file, "status"}).err, "is not what `lockstep cluster cert` has made"));
	CHECK(has(d.run({"--host", "127.0.0.1:x", "--cert", file, "status"}).err, "is no address"));
	for (const std::vector<std::string> &local : std::vector<std::vector<std::string>>{{"up"}, {"down"}, {"md", "dump", "/dev/null"}}) {
		std::vector<std::string> args = {"--host", "127.0.0.1", "--cert", file};
		args.insert(args.end(), local.begin(), local.end());
		const Outcome o = d.run(args);
		CHECK(o.status == 2);
		CHECK(has(o.err, "is about the host it runs on"));
	}
	unlink(file.c_str());
}
