// SPDX-License-Identifier: GPL-2.0-or-later
//
// Clients of the API at the one port: who is let in, who is told why not, and that nobody gets further than his certificate says.
#include <catch2/catch_test_macros.hpp>

#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <atomic>
#include <thread>

#include "lib/remote.h"
#include "lockstepd/net/hello.h"
#include "lockstepd/net/listener.h"
#include "test/unit/consensus/fds.h"
#include "test/unit/consensus/pki.h"

using namespace lockstep;
using namespace lockstep::test;

namespace {

const std::string OURS = "5b4c9d3e-0000-4000-8000-0000000000c1", OTHER = "5b4c9d3e-0000-4000-8000-0000000000c2";

// signed_by: another authority than the one that it trusts.
std::string bundle_of(const ClientCert &client, int64_t valid_s = 3600, const std::string &signed_by = "")
{
	const std::string key = make_private_key();
	const auto cert = issue_client_certificate(authority_of(signed_by.empty() ? client.cluster_uuid : signed_by), *public_key_of(key), client, time(nullptr) + valid_s);
	REQUIRE(cert);
	return key + *cert + authority_of(client.cluster_uuid).cert;
}

// A host with the port. What it serves is answered with the name and role of who asked.
struct ApiHost {
	explicit ApiHost(Loop &loop) : loop(loop), tls(loop, LaneEnd::relay), listener(loop, tls)
	{
		loop.set_log([this](const std::string &line) { lines.push_back(line); });
		REQUIRE(tls.set_identity(identity_of(OURS, 1, 101)));
		listener.set_identity({OURS, 1, 101, "h1"});
		REQUIRE(listener.listen({"127.0.0.1"}, 0));
		tls.set_client_admission([this](const ClientCert &c) {
			return c.name == revoked ? std::optional<std::string>("its certificate was revoked") : std::nullopt;
		});
		listener.handlers().on_link = [this](const Hello &, int fd) {
			links++;
			close(fd);
		};
		listener.handlers().on_http = [this](const ClientCert &c, const std::string &, int fd) {
			served.push_back(c);
			if (keep) {
				kept.push_back(fd);
				return;
			}
			const std::string body = c.role + " " + c.name;
			const std::string text = "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
			CHECK(send(fd, text.data(), text.size(), MSG_NOSIGNAL) == ssize_t(text.size()));
			close(fd);
		};
	}

	// Asked from a thread, as clients are.
	Result<RemoteAnswer> ask(const std::string &bundle)
	{
		std::atomic<bool> done = false;
		Result<RemoteAnswer> answer = failed("not asked");
		std::thread client([&] {
			answer = ask_remote({"127.0.0.1", std::to_string(listener.port()), bundle}, "GET", "/v1/status", std::nullopt, 5);
			done = true;
		});
		const bool in_time = loop.run_until([&] { return done.load(); }, 8000);
		client.join();
		REQUIRE(in_time);
		return answer;
	}

	std::string refusal(const std::string &bundle)
	{
		const size_t before = served.size();
		const auto answer = ask(bundle);
		CHECK(served.size() == before);
		if (!answer)
			return answer.error().message;
		CHECK(answer->http_status == 403);
		return answer->body;
	}

	Loop &loop;
	Tls tls;
	Listener listener;
	std::string revoked;
	std::vector<std::string> lines;
	std::vector<ClientCert> served;
	std::vector<int> kept;
	bool keep = false;
	int links = 0;
};

bool says(const std::string &text, const std::string &part)
{
	INFO(text);
	return text.find(part) != std::string::npos;
}

}    // namespace

TEST_CASE("clients: who has a certificate of this cluster is let in, under the name and role that it says")
{
	Loop loop;
	ApiHost host(loop);
	const int before = open_fds();
	const auto answer = host.ask(bundle_of({OURS, "read-only", "monitor", ""}));
	INFO((answer ? "" : answer.error().message));
	REQUIRE(answer);
	CHECK(answer->http_status == 200);
	CHECK(answer->body == "read-only monitor");
	REQUIRE(host.served.size() == 1);
	CHECK(host.served[0].cluster_uuid == OURS);
	CHECK(host.served[0].key_digest.size() == 64);
	CHECK(loop.run_until([&] { return host.tls.relays() == 0 && open_fds() == before; }, 2000));
}

TEST_CASE("clients: not the expired, the foreign, the forged, the revoked, nor a host")
{
	Loop loop;
	ApiHost host(loop);
	const int before = open_fds();
	CHECK(says(host.refusal(bundle_of({OURS, "admin", "m", ""}, -10)), "certificate expired"));
	CHECK(says(host.refusal(bundle_of({OURS, "admin", "m", ""}, 3600, OTHER)), "refused ours"));
	// A foreigner does not believe us either.
	CHECK(says(host.refusal(bundle_of({OTHER, "admin", "m", ""})), "its certificate was refused"));
	host.revoked = "m";
	CHECK(says(host.refusal(bundle_of({OURS, "admin", "m", ""})), "not-admitted"));
	CHECK(host.ask(bundle_of({OURS, "admin", "n", ""})));
	// Signed by a host's key.
	const TlsIdentity member = identity_of(OURS, 2, 102);
	const std::string key = make_private_key();
	const auto forged = issue_client_certificate({member.cert, member.key}, *public_key_of(key), {OURS, "admin", "n", ""}, time(nullptr) + 3600);
	REQUIRE(forged);
	CHECK(says(host.refusal(key + *forged + member.authority), "refused ours"));
	// A host's certificate is for hosts.
	CHECK(says(host.refusal(member.key + member.cert + member.authority), "is not what"));
	// Each reason is logged once, not each try.
	host.lines.clear();
	for (int i = 0; i < 5; i++)
		host.refusal(bundle_of({OURS, "admin", "m", ""}));
	CHECK(host.lines.size() <= 1);
	CHECK(loop.run_until([&] { return host.tls.relays() == 0 && open_fds() == before; }, 2000));
}

// A TLS client that can do what ask_remote() does not: show nothing or a host's certificate, say a hello.
struct ApiStranger {
	ApiStranger(ApiHost &host, const std::string &bundle, bool http) : host(host), ctx(SSL_CTX_new(TLS_client_method())), fd(connect_to(host.listener.port()))
	{
		BIO *in = BIO_new_mem_buf(bundle.data(), int(bundle.size()));
		EVP_PKEY *key = PEM_read_bio_PrivateKey(in, nullptr, nullptr, nullptr);
		X509 *cert = PEM_read_bio_X509(in, nullptr, nullptr, nullptr);
		if (key && cert) {
			REQUIRE(SSL_CTX_use_certificate(ctx, cert));
			REQUIRE(SSL_CTX_use_PrivateKey(ctx, key));
		}
		EVP_PKEY_free(key);
		X509_free(cert);
		BIO_free(in);
		if (http)
			REQUIRE(SSL_CTX_set_alpn_protos(ctx, reinterpret_cast<const unsigned char *>("\x08http/1.1"), 9) == 0);
		ssl = SSL_new(ctx);
		SSL_set_fd(ssl, fd);
	}
	~ApiStranger()
	{
		SSL_free(ssl);
		SSL_CTX_free(ctx);
		close(fd);
	}

	// What comes back until the other side ends it.
	std::string say(const std::string &text)
	{
		REQUIRE(host.loop.run_until([&] { return SSL_connect(ssl) == 1; }, 3000));
		SSL_write(ssl, text.data(), int(text.size()));
		std::string all;
		bool ended = host.loop.run_until(
			[&] {
				char chunk[4096];
				const int n = SSL_read(ssl, chunk, sizeof chunk);
				if (n > 0)
					all.append(chunk, size_t(n));
				return n <= 0 && SSL_get_error(ssl, n) != SSL_ERROR_WANT_READ;
			},
			3000);
		CHECK(ended);
		return all;
	}

	ApiHost &host;
	SSL_CTX *ctx;
	SSL *ssl = nullptr;
	int fd;
};

TEST_CASE("clients: without a certificate, or with a host's, HTTP is answered with one refusal")
{
	Loop loop;
	ApiHost host(loop);
	const std::string request = "GET /v1/status HTTP/1.1\r\n\r\n";
	const TlsIdentity member = identity_of(OURS, 2, 102);
	for (const std::string &bundle : {std::string(), member.key + member.cert}) {
		const std::string answer = ApiStranger(host, bundle, true).say(request);
		CHECK(answer.starts_with("HTTP/1.1 403 "));
		CHECK(says(answer, "not-admitted"));
	}
	// Our authority has signed it, for another cluster (which was made of this one's state directory, say).
	const std::string key = make_private_key();
	const auto stray = issue_client_certificate(authority_of(OURS), *public_key_of(key), {OTHER, "admin", "m", ""}, time(nullptr) + 3600);
	REQUIRE(stray);
	CHECK(says(ApiStranger(host, key + *stray, true).say(request), "of another cluster"));
	CHECK(host.served.empty());
	// Who speaks HTTP without having said so gets nothing, whatever its certificate.
	CHECK(ApiStranger(host, bundle_of({OURS, "admin", "m", ""}), false).say(request) == "");
	CHECK(host.served.empty());
}

TEST_CASE("clients: an admin's certificate makes no link, no raft member and no lane")
{
	Loop loop;
	ApiHost host(loop);
	for (Purpose purpose : {Purpose::link, Purpose::raft, Purpose::lane, Purpose::api}) {
		Hello h;
		h.purpose = purpose;
		h.cluster_uuid = OURS;
		h.from_host = 2;
		h.from_name = "h2";
		h.from_raft = 102;
		h.to_host = 1;
		h.to_raft = 101;
		h.from_address = "102/2/127.0.0.1:1";
		h.lane = 1;
		h.lanes = 4;
		h.link_generation = 5;
		CHECK(says(ApiStranger(host, bundle_of({OURS, "admin", "m", ""}), false).say(encode_hello(h)), "it shows no certificate of this cluster"));
	}
	CHECK(host.links == 0);
	// Nor is it a host's for those who connect to it.
	const std::string bundle = bundle_of({OURS, "admin", "m", ""});
	const auto cert = bundle.find("-----BEGIN CERT"), authority = bundle.rfind("-----BEGIN CERT");
	REQUIRE(host.tls.set_identity({bundle.substr(authority), bundle.substr(cert, authority - cert), bundle.substr(0, cert)}));
	CHECK(says(host.refusal(bundle_of({OURS, "admin", "n", ""})), "its certificate was refused"));
}

TEST_CASE("clients: one that is revoked is cut off at once, others are not")
{
	Loop loop;
	ApiHost host(loop);
	host.keep = true;
	ApiStranger one(host, bundle_of({OURS, "admin", "one", ""}), true), two(host, bundle_of({OURS, "admin", "two", ""}), true);
	REQUIRE(loop.run_until([&] { return SSL_connect(one.ssl) == 1 && SSL_connect(two.ssl) == 1; }, 3000));
	REQUIRE(loop.run_until([&] { return host.kept.size() == 2; }, 3000));
	host.tls.recheck();
	host.revoked = "one";
	host.lines.clear();
	host.tls.recheck();
	host.tls.recheck();
	const auto ended = [](ApiStranger &s) {
		char c;
		const int n = SSL_read(s.ssl, &c, 1);
		return n <= 0 && SSL_get_error(s.ssl, n) != SSL_ERROR_WANT_READ;
	};
	CHECK(loop.run_until([&] { return ended(one); }, 1000));
	CHECK_FALSE(ended(two));
	CHECK(host.tls.relays() == 1);
	CHECK(host.lines == std::vector<std::string>{"cut a connection with API client one: its certificate was revoked"});
	for (int fd : host.kept)
		close(fd);
	CHECK(loop.run_until([&] { return host.tls.relays() == 0; }, 1000));
}

TEST_CASE("clients: addresses")
{
	const auto both = [](const char *text) {
		const auto r = parse_remote(text);
		return r ? r->host + " " + r->port : "-";
	};
	CHECK(both("10.0.0.1") == "10.0.0.1 7788");
	CHECK(both("storage-1:99") == "storage-1 99");
	CHECK(both("fd00::1") == "fd00::1 7788");
	CHECK(both("[fd00::1]:99") == "fd00::1 99");
	CHECK(both("[fd00::1]") == "fd00::1 7788");
	for (const char *bad : {"", ":1", "a:", "a:0", "a:65536", "a:x", "[fd00::1", "[fd00::1]x", "[]", "[]:5"})
		CHECK(both(bad) == "-");
}
