// SPDX-License-Identifier: GPL-2.0-or-later
#include "lib/remote.h"

#include <fcntl.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace lockstep {

namespace {

constexpr int CONNECT_TIMEOUT_MS = 5000;
constexpr size_t ANSWER_MAX_BYTES = 256u << 20;
constexpr std::string_view HOST_URN = "urn:lockstep:", CLIENT_URN = "urn:lockstep-client:";

using Context = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;
using Session = std::unique_ptr<SSL, decltype(&SSL_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

uint64_t now_ms()
{
	using namespace std::chrono;
	return uint64_t(duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count());
}

std::string uri_of(X509 *cert)
{
	auto *names = static_cast<GENERAL_NAMES *>(X509_get_ext_d2i(cert, NID_subject_alt_name, nullptr, nullptr));
	std::string uri;
	if (names && sk_GENERAL_NAME_num(names) == 1 && sk_GENERAL_NAME_value(names, 0)->type == GEN_URI) {
		const ASN1_IA5STRING *text = sk_GENERAL_NAME_value(names, 0)->d.uniformResourceIdentifier;
		uri.assign(reinterpret_cast<const char *>(ASN1_STRING_get0_data(text)), size_t(ASN1_STRING_length(text)));
	}
	GENERAL_NAMES_free(names);
	return uri;
}

// Up to the next colon behind the prefix.
std::string cluster_in(const std::string &uri, std::string_view prefix)
{
	return uri.starts_with(prefix) ? uri.substr(prefix.size(), uri.find(':', prefix.size()) - prefix.size()) : "";
}

// The key is in plain: nobody is to be asked for a password.
int no_password(char *, int, int, void *) { return -1; }

// OpenSSL writes into a socket that the other side may have closed.
struct WithoutSigpipe {
	WithoutSigpipe()
	{
		struct sigaction ignore{};
		ignore.sa_handler = SIG_IGN;
		sigaction(SIGPIPE, &ignore, &before);
	}
	~WithoutSigpipe() { sigaction(SIGPIPE, &before, nullptr); }
	struct sigaction before{};
};

struct Socket {
	int fd = -1;
	~Socket()
	{
		if (fd >= 0)
			close(fd);
	}
};

bool wait_for(int fd, short events, uint64_t end)
{
	pollfd p = {fd, events, 0};
	int n = 0;
	do {
		const uint64_t now = now_ms();
		if (now >= end)
			return false;
		n = poll(&p, 1, int(end - now));
	} while (n < 0 && errno == EINTR);
	return n > 0;
}

Done connect_to(const Remote &r, Socket &s)
{
	addrinfo hints{}, *found = nullptr;
	hints.ai_socktype = SOCK_STREAM;
	if (const int error = getaddrinfo(r.host.c_str(), r.port.c_str(), &hints, &found))
		return usage_error("there is no host " + r.host + ": " + gai_strerror(error));
	const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> list(found, freeaddrinfo);
	int error = ETIMEDOUT;
	for (const addrinfo *a = found; a; a = a->ai_next) {
		Socket tried;
		tried.fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (tried.fd < 0 || (connect(tried.fd, a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS)) {
			error = errno;
			continue;
		}
		socklen_t size = sizeof error;
		error = ETIMEDOUT;
		if (!wait_for(tried.fd, POLLOUT, now_ms() + CONNECT_TIMEOUT_MS) || getsockopt(tried.fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error)
			continue;
		std::swap(s.fd, tried.fd);
		return Nothing{};
	}
	return coded("no-daemon", failed("cannot connect to " + r.host + " port " + r.port + ": " + strerror(error)));
}

// Key, certificate and authority are in one file.
Done load(const Remote &r, SSL_CTX *c, std::string &cluster)
{
	const std::unique_ptr<BIO, decltype(&BIO_free)> in(BIO_new_mem_buf(r.bundle.data(), int(r.bundle.size())), BIO_free);
	const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(PEM_read_bio_PrivateKey(in.get(), nullptr, no_password, nullptr), EVP_PKEY_free);
	const Certificate cert(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr), X509_free);
	const Certificate authority(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr), X509_free);
	if (cert)
		cluster = cluster_in(uri_of(cert.get()), CLIENT_URN);
	if (!key || !cert || !authority || cluster.empty() || !SSL_CTX_use_certificate(c, cert.get()) || !SSL_CTX_use_PrivateKey(c, key.get()) ||
	    !SSL_CTX_check_private_key(c) || !X509_STORE_add_cert(SSL_CTX_get_cert_store(c), authority.get())) {
		ERR_clear_error();
		return usage_error("the certificate's file is not what `lockstep cluster cert` has made");
	}
	return Nothing{};
}

class Exchange {
public:
	Exchange(SSL *ssl, int fd, uint64_t end) : ssl_(ssl), fd_(fd), end_(end) {}

	// 1: done; 0: the other side has ended it; -1: error() says why not.
	template <class Step>
	int run(Step step)
	{
		for (;;) {
			ERR_clear_error();
			errno = 0;
			const int n = step();
			if (n > 0)
				return n;
			const int why = SSL_get_error(ssl_, n);
			if (why == SSL_ERROR_ZERO_RETURN)
				return 0;
			if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
				note();
				return -1;
			}
			if (!wait_for(fd_, why == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, end_)) {
				error_ = "it does not answer";
				return -1;
			}
		}
	}
	const std::string &error() const { return error_; }

private:
	void note()
	{
		const long verified = SSL_get_verify_result(ssl_);
		const unsigned long e = ERR_get_error();
		const int reason = ERR_GET_REASON(e);
		if (verified != X509_V_OK)
			error_ = std::string("its certificate was refused: ") + X509_verify_cert_error_string(verified);
		else if (ERR_GET_LIB(e) == ERR_LIB_SSL && reason >= SSL_AD_REASON_OFFSET)
			error_ = std::string("it refused ours: ") + SSL_alert_desc_string_long(reason - SSL_AD_REASON_OFFSET);
		else
			error_ = e ? ERR_reason_error_string(e) : errno ? strerror(errno) : "it closed the connection";
		ERR_clear_error();
	}

	SSL *ssl_;
	int fd_;
	uint64_t end_;
	std::string error_;
};

// The whole of an answer whose connection has been closed behind it.
Result<RemoteAnswer> parse_answer(const std::string &text)
{
	const size_t head = text.find("\r\n\r\n");
	RemoteAnswer a;
	if (head == text.npos || sscanf(text.c_str(), "HTTP/1.%*d %d", &a.http_status) != 1)
		return failed("it sent an answer that is no HTTP");
	a.body = text.substr(head + 4);
	std::string lower = text.substr(0, head + 2);
	std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return char(std::tolower(c)); });
	if (const size_t at = lower.find("\r\ncontent-length:"); at != lower.npos && strtoull(lower.c_str() + at + 17, nullptr, 10) != a.body.size())
		return failed("its answer was cut short");
	return a;
}

}    // namespace

Result<Remote> parse_remote(const std::string &text)
{
	Remote r;
	const size_t colon = text.rfind(':');
	if (text.starts_with("[")) {
		const size_t end = text.find(']');
		if (end == text.npos || (end + 1 != text.size() && text[end + 1] != ':'))
			return usage_error("\"" + text + "\" is no address: write HOST, HOST:PORT or [V6]:PORT");
		r.host = text.substr(1, end - 1);
		if (end + 1 != text.size())
			r.port = text.substr(end + 2);
	} else if (colon != text.npos && text.find(':') == colon) {
		r.host = text.substr(0, colon);
		r.port = text.substr(colon + 1);
	} else {
		r.host = text;
	}
	const bool digits = !r.port.empty() && r.port.size() <= 5 && r.port.find_first_not_of("0123456789") == r.port.npos;
	if (r.host.empty() || !digits || std::stoul(r.port) < 1 || std::stoul(r.port) > 65535)
		return usage_error("\"" + text + "\" is no address: write HOST, HOST:PORT or [V6]:PORT");
	return r;
}

Result<RemoteAnswer> ask_remote(const Remote &r, const std::string &method, const std::string &path, const std::optional<std::string> &body,
				unsigned timeout_s)
{
	static constexpr unsigned char HTTP[] = "\x08http/1.1";
	const WithoutSigpipe quiet;
	const Context ctx(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
	std::string cluster;
	if (!ctx || !SSL_CTX_set_min_proto_version(ctx.get(), TLS1_3_VERSION) || SSL_CTX_set_alpn_protos(ctx.get(), HTTP, sizeof HTTP - 1) != 0)
		return failed("no TLS 1.3 on this host");
	SSL_CTX_set_verify(ctx.get(), SSL_VERIFY_PEER, nullptr);
	SSL_CTX_set_options(ctx.get(), SSL_OP_IGNORE_UNEXPECTED_EOF);    // the answer knows its length
	if (Done loaded = load(r, ctx.get(), cluster); !loaded)
		return loaded.error();
	Socket s;
	if (Done connected = connect_to(r, s); !connected)
		return connected.error();
	const Session ssl(SSL_new(ctx.get()), SSL_free);
	if (!ssl || !SSL_set_fd(ssl.get(), s.fd))
		return failed("no TLS on this host");
	Exchange x(ssl.get(), s.fd, now_ms() + uint64_t(timeout_s) * 1000);
	const auto fail = [&](const std::string &why) { return coded("no-daemon", failed("host " + r.host + ": " + why)); };
	if (x.run([&] { return SSL_connect(ssl.get()); }) <= 0)
		return fail(x.error().empty() ? "it closed the connection" : x.error());
	X509 *shown = SSL_get0_peer_certificate(ssl.get());
	if (!shown || cluster_in(uri_of(shown), HOST_URN) != cluster)
		return fail("it is no host of the certificate's cluster");
	std::string text = method + " " + path + " HTTP/1.1\r\nHost: lockstep\r\nConnection: close\r\n";
	if (body)
		text += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body->size()) + "\r\n";
	text += "\r\n" + body.value_or("");
	for (size_t sent = 0; sent < text.size();) {
		const int n = x.run([&] { return SSL_write(ssl.get(), text.data() + sent, int(text.size() - sent)); });
		if (n <= 0)
			break;    // it may have answered all the same
		sent += size_t(n);
	}
	std::string answer;
	char chunk[16384];
	int n;
	while ((n = x.run([&] { return SSL_read(ssl.get(), chunk, sizeof chunk); })) > 0 && answer.size() < ANSWER_MAX_BYTES)
		answer.append(chunk, size_t(n));
	if (n < 0 && answer.empty())
		return fail(x.error());
	auto parsed = parse_answer(answer);
	return parsed ? std::move(parsed) : fail(parsed.error().message);
}

}    // namespace lockstep
