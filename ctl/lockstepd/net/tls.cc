// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/net/tls.h"

#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "lockstepd/net/pem.h"
#include "lockstepd/net/socket.h"

#ifndef TCP_ULP
#define TCP_ULP 31
#endif
#ifndef SOL_TLS
#define SOL_TLS 282
#endif

namespace lockstep {

namespace {

constexpr size_t KEY_BYTES = 16, IV_BYTES = 12, SECRET_BYTES = 32;
constexpr int ROUNDS_PER_TURN = 16;    // of a relay: others have a turn, too
constexpr const char *CIPHER = "TLS_AES_128_GCM_SHA256";
constexpr const char *GROUPS = "X25519:P-256";
constexpr long PEER_CHAIN_MAX_BYTES = 16 << 10;

std::string library_error()
{
	const unsigned long e = ERR_get_error();
	ERR_clear_error();
	if (e == 0)
		return "unknown error";
	const int reason = ERR_GET_REASON(e);
	if (ERR_GET_LIB(e) == ERR_LIB_SSL && reason >= SSL_AD_REASON_OFFSET)
		return std::string("it refused our side: ") + SSL_alert_desc_string_long(reason - SSL_AD_REASON_OFFSET);
	const char *text = ERR_reason_error_string(e);
	return text ? text : "error " + std::to_string(e);
}

std::string unhex(const char *text)
{
	long n = 0;
	unsigned char *bytes = OPENSSL_hexstr2buf(text, &n);
	std::string out = bytes ? std::string(reinterpret_cast<char *>(bytes), size_t(n)) : "";
	OPENSSL_clear_free(bytes, size_t(n));
	return out;
}

int session_index()
{
	static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
	return index;
}

int fingerprint_index()
{
	static const int index = SSL_CTX_get_ex_new_index(
		0, nullptr, nullptr, nullptr,
		[](void *, void *value, CRYPTO_EX_DATA *, int, long, void *) { delete static_cast<std::string *>(value); });
	return index;
}

// A stranger trusts the one authority of which a token told it the fingerprint, among what the listening side shows.
int verify_by_fingerprint(X509_STORE_CTX *given, void *)
{
	auto *ssl = static_cast<SSL *>(X509_STORE_CTX_get_ex_data(given, SSL_get_ex_data_X509_STORE_CTX_idx()));
	const auto *wanted = static_cast<std::string *>(SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), fingerprint_index()));
	STACK_OF(X509) *shown = X509_STORE_CTX_get0_untrusted(given);
	X509 *authority = nullptr;
	for (int i = 0; i < sk_X509_num(shown); i++) {
		unsigned char digest[EVP_MAX_MD_SIZE];
		unsigned n = 0;
		X509 *cert = sk_X509_value(shown, i);
		std::string text;
		if (X509_digest(cert, EVP_sha256(), digest, &n))
			for (unsigned b = 0; b < n; b++) {
				char two[3];
				snprintf(two, sizeof two, "%02x", digest[b]);
				text += two;
			}
		if (!wanted->empty() && text.starts_with(*wanted))
			authority = cert;
	}
	X509_STORE_CTX_set_error(given, X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN);
	if (!authority)
		return 0;
	const std::unique_ptr<X509_STORE, decltype(&X509_STORE_free)> store(X509_STORE_new(), X509_STORE_free);
	const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> ctx(X509_STORE_CTX_new(), X509_STORE_CTX_free);
	if (!store || !ctx || !X509_STORE_add_cert(store.get(), authority) ||
	    !X509_STORE_CTX_init(ctx.get(), store.get(), X509_STORE_CTX_get0_cert(given), nullptr) ||
	    !X509_STORE_CTX_set_purpose(ctx.get(), X509_PURPOSE_SSL_SERVER))
		return 0;
	const int verified = X509_verify_cert(ctx.get());
	X509_STORE_CTX_set_error(given, X509_STORE_CTX_get_error(ctx.get()));
	return verified == 1;
}

}    // namespace

// What OpenSSL calls us with.
struct TlsCallbacks {
	static TlsSession *session(const SSL *ssl) { return static_cast<TlsSession *>(SSL_get_ex_data(ssl, session_index())); }

	static void key_log(const SSL *ssl, const char *line)
	{
		for (const auto &[label, side] : {std::pair("SERVER_TRAFFIC_SECRET_0 ", 0), std::pair("CLIENT_TRAFFIC_SECRET_0 ", 1)}) {
			const char *value = strrchr(line, ' ');
			if (strncmp(line, label, strlen(label)) == 0 && value)
				session(ssl)->secret_[side] = unhex(value + 1);
		}
	}

	// Hosts offer nothing, and get nothing.
	static int choose_protocol(SSL *ssl, const unsigned char **chosen, unsigned char *length, const unsigned char *offered, unsigned bytes, void *)
	{
		static const unsigned char HTTP[] = "\x08http/1.1";
		unsigned char *found = nullptr;
		if (SSL_select_next_proto(&found, length, HTTP, sizeof HTTP - 1, offered, bytes) != OPENSSL_NPN_NEGOTIATED)
			return SSL_TLSEXT_ERR_ALERT_FATAL;
		*chosen = found;
		session(ssl)->http_ = true;
		return SSL_TLSEXT_ERR_OK;
	}

	static void message(int sending, int, int type, const void *, size_t, SSL *ssl, void *)
	{
		TlsSession *s = session(ssl);
		if (type == SSL3_RT_HEADER && s->finished_)
			s->records_[sending]++;
	}
};

namespace {

std::shared_ptr<SSL_CTX> make_context(bool listening)
{
	std::shared_ptr<SSL_CTX> ctx(SSL_CTX_new(listening ? TLS_server_method() : TLS_client_method()), SSL_CTX_free);
	SSL_CTX *c = ctx.get();
	if (!c || !SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) || !SSL_CTX_set_max_proto_version(c, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(c, CIPHER) || !SSL_CTX_set1_groups_list(c, GROUPS) || !SSL_CTX_set_num_tickets(c, 0))
		return nullptr;
	SSL_CTX_set_options(c, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION |
				       SSL_OP_IGNORE_UNEXPECTED_EOF);    // all we carry knows its own end
	SSL_CTX_clear_options(c, SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
	SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_max_early_data(c, 0);
	SSL_CTX_set_max_cert_list(c, PEER_CHAIN_MAX_BYTES);
	SSL_CTX_set_verify_depth(c, 1);
	SSL_CTX_set_read_ahead(c, 0);
	SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_keylog_callback(c, TlsCallbacks::key_log);
	SSL_CTX_set_msg_callback(c, TlsCallbacks::message);
	if (listening)
		SSL_CTX_set_alpn_select_cb(c, TlsCallbacks::choose_protocol, nullptr);
	return ctx;
}

Result<std::shared_ptr<SSL_CTX>> member_context(const TlsIdentity &identity, bool listening)
{
	const Cert authority = read_cert(identity.authority), cert = read_cert(identity.cert);
	const Key key = read_private_key(identity.key);
	std::shared_ptr<SSL_CTX> ctx = make_context(listening);
	// The authority goes along in the chain, for strangers who know its fingerprint only.
	if (!authority || !cert || !key || !ctx || !X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx.get()), authority.get()) ||
	    !SSL_CTX_use_certificate(ctx.get(), cert.get()) || !SSL_CTX_use_PrivateKey(ctx.get(), key.get()) ||
	    !SSL_CTX_check_private_key(ctx.get()) || !SSL_CTX_add1_chain_cert(ctx.get(), authority.get()))
		return failed("this host's TLS key or certificate is damaged: " + library_error());
	SSL_CTX_set_mode(ctx.get(), SSL_MODE_NO_AUTO_CHAIN);
	// Whether a certificate is needed depends on what the hello says; one that is shown must verify.
	SSL_CTX_set_verify(ctx.get(), SSL_VERIFY_PEER, nullptr);
	return ctx;
}

}    // namespace

TrafficKeys derive_traffic_keys(const std::string &secret, uint64_t sequence)
{
	const auto expand = [&](const std::string &label, size_t bytes) {
		const std::string full = "tls13 " + label;
		std::string info = {char(bytes >> 8), char(bytes & 0xff), char(full.size())};
		info += full;
		info += '\0';    // an empty context
		std::string out(bytes, '\0');
		int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
		char digest[] = "SHA256";
		OSSL_PARAM params[] = {
			OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
			OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
			OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, const_cast<char *>(secret.data()), secret.size()),
			OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info.data(), info.size()),
			OSSL_PARAM_construct_end(),
		};
		EVP_KDF *kdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
		EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(kdf);
		if (!ctx || EVP_KDF_derive(ctx, reinterpret_cast<unsigned char *>(out.data()), bytes, params) <= 0)
			abort();
		EVP_KDF_CTX_free(ctx);
		EVP_KDF_free(kdf);
		return out;
	};
	return {expand("key", KEY_BYTES), expand("iv", IV_BYTES), sequence};
}

// ---- a session -----------------------------------------------------------------------------------------------------

TlsSession::TlsSession(SSL_CTX *context, int fd, bool listening) : ssl_(SSL_new(context)), fd_(fd), listening_(listening)
{
	if (!ssl_ || !SSL_set_ex_data(ssl_, session_index(), this) || !SSL_set_fd(ssl_, fd)) {
		error_ = "no TLS for it: " + library_error();
		return;
	}
	if (listening)
		SSL_set_accept_state(ssl_);
	else
		SSL_set_connect_state(ssl_);
}

TlsSession::~TlsSession()
{
	SSL_free(ssl_);
	for (std::string &s : secret_)
		OPENSSL_cleanse(s.data(), s.size());
	if (fd_ >= 0)
		close(fd_);
}

void TlsSession::note_error(int kind)
{
	const long verified = SSL_get_verify_result(ssl_);
	const int system_error = errno;
	if (verified != X509_V_OK && !finished_)
		error_ = std::string("its certificate was refused: ") + X509_verify_cert_error_string(verified);
	else if (kind == SSL_ERROR_SYSCALL && ERR_peek_error() == 0)
		error_ = system_error ? std::string("the connection to it broke: ") + strerror(system_error) : "it closed the connection";
	else
		error_ = library_error();
	ERR_clear_error();
}

// -1 with wants_ set, -1 with error_ set, or 0 for the other side's end.
ssize_t TlsSession::outcome(int result)
{
	switch (const int kind = SSL_get_error(ssl_, result)) {
	case SSL_ERROR_WANT_READ:
		wants_ = UV_READABLE;
		return -1;
	case SSL_ERROR_WANT_WRITE:
		wants_ = UV_WRITABLE;
		return -1;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	default:
		note_error(kind);
		return -1;
	}
}

TlsSession::Step TlsSession::handshake()
{
	if (bad())
		return Step::bad;
	ERR_clear_error();
	errno = 0;
	const int result = SSL_do_handshake(ssl_);
	if (result != 1) {
		if (outcome(result) == 0 && !bad())
			error_ = "it closed the connection";
		return bad() ? Step::bad : Step::more;
	}
	if (X509 *cert = SSL_get0_peer_certificate(ssl_)) {
		peer_ = read_peer_cert(cert);
		if (!peer_ && listening_)
			client_ = read_client_cert(cert);
		if (!peer_ && !client_) {
			error_ = "its certificate names no host";
			return Step::bad;
		}
	}
	finished_ = true;
	return Step::done;
}

ssize_t TlsSession::read(char *to, size_t bytes)
{
	if (bad())
		return -1;
	ERR_clear_error();
	errno = 0;
	const int n = SSL_read(ssl_, to, int(bytes));
	return n > 0 ? n : outcome(n);
}

ssize_t TlsSession::write(const char *from, size_t bytes)
{
	if (bad())
		return -1;
	ERR_clear_error();
	errno = 0;
	if (records_[1] >= rekey_at_) {
		rekey_at_ = records_[1] + rekey_every_;
		SSL_key_update(ssl_, SSL_KEY_UPDATE_NOT_REQUESTED);
	}
	const int n = SSL_write(ssl_, from, int(bytes));
	return n > 0 ? n : outcome(n);
}

void TlsSession::shut()
{
	ERR_clear_error();
	if (!bad() && finished_)
		SSL_shutdown(ssl_);
	ERR_clear_error();
}

void TlsSession::renew_key_after(uint64_t records)
{
	rekey_every_ = records;
	rekey_at_ = records_[1] + records;
}

Result<TrafficKeys> TlsSession::traffic_keys(bool sending) const
{
	const std::string &secret = secret_[listening_ == sending ? 0 : 1];
	if (!finished_ || secret.size() != SECRET_BYTES)
		return failed("the handshake left no traffic secret");
	if (SSL_has_pending(ssl_))
		return failed("it sent data too early");
	return derive_traffic_keys(secret, records_[sending]);
}

int TlsSession::release_fd()
{
	return std::exchange(fd_, -1);
}

// ---- lanes: the kernel takes over ------------------------------------------------------------------------------------

namespace {

Done give_keys_to_kernel(int fd, int direction, const TrafficKeys &keys)
{
	tls12_crypto_info_aes_gcm_128 info{};
	info.info.version = TLS_1_3_VERSION;
	info.info.cipher_type = TLS_CIPHER_AES_GCM_128;
	memcpy(info.key, keys.key.data(), sizeof info.key);
	memcpy(info.salt, keys.iv.data(), sizeof info.salt);
	memcpy(info.iv, keys.iv.data() + sizeof info.salt, sizeof info.iv);
	for (size_t i = 0; i < sizeof info.rec_seq; i++)
		info.rec_seq[i] = uint8_t(keys.sequence >> (8 * (sizeof info.rec_seq - 1 - i)));
	const int result = setsockopt(fd, SOL_TLS, direction, &info, sizeof info);
	const int error = errno;
	OPENSSL_cleanse(&info, sizeof info);
	if (result != 0)
		return failed("this host's kernel does not encrypt lanes with TLS 1.3 and AES-GCM (error " + std::to_string(error) +
			      "): that takes Linux 5.1 or newer; without: `lockstep option set lane-encryption off`");
	return Nothing{};
}

}    // namespace

Result<int> Tls::lane_end(std::unique_ptr<TlsSession> session, bool plain)
{
	if (plain) {
		set_blocking(session->fd(), true);
		return session->release_fd();
	}
	if (lane_end_ == LaneEnd::relay) {
		auto fd = stream_end(std::move(session));
		if (fd)
			set_blocking(*fd, true);
		return fd;
	}
	const auto sending = session->traffic_keys(true), receiving = session->traffic_keys(false);
	if (!sending)
		return sending.error();
	if (!receiving)
		return receiving.error();
	const int fd = session->fd();
	if (setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") != 0) {
		const int error = errno;
		return failed(error == ENOENT ? "this host's kernel has no TLS for lanes: load its module with `modprobe tls`"
					      : std::string("this host's kernel does not take a lane's TLS: ") + strerror(error));
	}
	if (Done done = give_keys_to_kernel(fd, TLS_TX, *sending); !done)
		return done.error();
	if (Done done = give_keys_to_kernel(fd, TLS_RX, *receiving); !done)
		return done.error();
	set_blocking(fd, true);
	return session->release_fd();
}

// ---- relays --------------------------------------------------------------------------------------------------------------

struct Tls::Relay {
	Relay(Loop &loop, std::unique_ptr<TlsSession> session, int local)
		: session(std::move(session)), local(local), net_poll(loop, this->session->fd()), local_poll(loop, local)
	{
	}
	~Relay() { close(local); }

	bool done() const { return cut || (net_ended && to_local.empty()) || (local_ended && to_net.empty()); }
	bool may_read_net() const { return !net_ended && !owner_gone && to_local.empty(); }

	std::unique_ptr<TlsSession> session;
	int local;
	Poll net_poll, local_poll;
	int net_watched = 0, local_watched = 0;
	std::string to_net, to_local;    // at most a record each
	bool net_ended = false, local_ended = false, cut = false;
	bool owner_gone = false;         // nobody reads any more; what it wrote before still goes out
	bool read_wants_write = false;
	bool follows_link = false;
	std::vector<char> chunk = std::vector<char>(TLS_RECORD_BYTES);

	bool move_from_net();
	bool move_to_net();
	bool move_from_local();
	bool move_to_local();
	bool round();
};

// Each of these moves at most one record; false: there was nothing to move, or no way.
bool Tls::Relay::move_from_net()
{
	if (!may_read_net())
		return false;
	const ssize_t n = session->read(chunk.data(), chunk.size());
	read_wants_write = n < 0 && !session->bad() && session->wants() == UV_WRITABLE;
	if (n > 0)
		to_local.assign(chunk.data(), size_t(n));
	else if (n == 0 || session->bad())
		net_ended = true;
	return n >= 0 || net_ended;
}

bool Tls::Relay::move_to_net()
{
	if (to_net.empty())
		return false;
	const ssize_t n = session->write(to_net.data(), to_net.size());
	if (n > 0)
		to_net.erase(0, size_t(n));
	else if (session->bad())
		cut = true;
	return n > 0;
}

bool Tls::Relay::move_from_local()
{
	if (local_ended || !to_net.empty())
		return false;
	const ssize_t n = recv(local, chunk.data(), chunk.size(), MSG_DONTWAIT);
	if (n > 0)
		to_net.assign(chunk.data(), size_t(n));
	else if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
		local_ended = true;
	return n >= 0 || local_ended;
}

bool Tls::Relay::move_to_local()
{
	if (to_local.empty())
		return false;
	const ssize_t n = send(local, to_local.data(), to_local.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n > 0)
		to_local.erase(0, size_t(n));
	else if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
		to_local.clear();
		owner_gone = true;
	}
	return n > 0;
}

bool Tls::Relay::round()
{
	const bool out = move_to_net(), in = move_to_local();
	return bool(unsigned(move_from_local()) | unsigned(move_from_net()) | unsigned(out) | unsigned(in));
}

void Tls::pump(uint64_t id)
{
	const auto it = relays_.find(id);
	if (it == relays_.end())
		return;
	Relay &r = *it->second;
	int rounds = 0;
	while (rounds < ROUNDS_PER_TURN && !r.done() && r.round())
		rounds++;
	if (r.done()) {
		r.session->shut();
		relays_.erase(it);
		return;
	}
	// Not left to the polls: libuv stops one that reports an error, though there may be more to read.
	if (rounds == ROUNDS_PER_TURN)
		pump_later(id);
	const auto watch = [this, id](Poll &poll, int &watched, int events) {
		if (events == watched)
			return;
		watched = events;
		if (events)
			poll.start(events, [this, id] { pump(id); });
		else
			poll.stop();
	};
	watch(r.net_poll, r.net_watched, (r.may_read_net() ? UV_READABLE : 0) | (!r.to_net.empty() || r.read_wants_write ? UV_WRITABLE : 0));
	watch(r.local_poll, r.local_watched, (r.to_net.empty() && !r.local_ended ? UV_READABLE : 0) | (!r.to_local.empty() ? UV_WRITABLE : 0));
}

void Tls::pump_later(uint64_t id)
{
	loop_.post([this, id, alive = std::weak_ptr<bool>(alive_)] {
		if (!alive.expired())
			pump(id);
	});
}

Result<int> Tls::stream_end(std::unique_ptr<TlsSession> session, bool follows_link)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
		return failed(std::string("cannot make a socket pair: ") + strerror(errno));
	session->renew_key_after(TLS_REKEY_RECORDS);
	auto relay = std::make_unique<Relay>(loop_, std::move(session), pair[0]);
	if (!relay->net_poll.ok() || !relay->local_poll.ok()) {
		close(pair[1]);
		return failed("cannot watch a connection");
	}
	relay->follows_link = follows_link;
	const uint64_t id = next_relay_++;
	relays_[id] = std::move(relay);
	pump_later(id);
	return pair[1];
}

// ---- the whole -----------------------------------------------------------------------------------------------------------

Tls::Tls(Loop &loop, LaneEnd lane_end) : loop_(loop), lane_end_(lane_end) {}

Tls::~Tls() = default;

Done Tls::set_identity(const TlsIdentity &identity)
{
	if (identity.authority.empty()) {
		listening_.reset();
		connecting_.reset();
		return Nothing{};
	}
	auto listening = member_context(identity, true), connecting = member_context(identity, false);
	if (!listening)
		return listening.error();
	if (!connecting)
		return connecting.error();
	listening_ = std::move(*listening);
	connecting_ = std::move(*connecting);
	return Nothing{};
}

void Tls::set_admission(Admission objection)
{
	objection_ = std::move(objection);
}

std::optional<std::string> Tls::objection(const PeerCert &peer) const
{
	return objection_ ? objection_(peer, false) : std::nullopt;
}

void Tls::set_client_admission(std::function<std::optional<std::string>(const ClientCert &)> objection)
{
	client_objection_ = std::move(objection);
}

std::optional<std::string> Tls::objection(const ClientCert &client) const
{
	return client_objection_ ? client_objection_(client) : "this host serves no clients now";
}

void Tls::recheck()
{
	for (auto &[id, relay] : relays_) {
		const auto &peer = relay->session->peer();
		const auto &client = relay->session->client();
		const auto why = client ? objection(*client) : peer && objection_ ? objection_(*peer, true) : std::nullopt;
		if (!why || relay->cut)
			continue;
		loop_.log("cut a connection with " + (client ? "API client " + client->name : "host " + std::to_string(peer->subject.host)) + ": " + *why);
		relay->cut = true;
		pump_later(id);
	}
}

void Tls::path_changed(int host)
{
	for (auto &[id, relay] : relays_) {
		const auto &peer = relay->session->peer();
		if (relay->follows_link && !relay->cut && peer && peer->subject.host == host) {
			relay->cut = true;
			pump_later(id);
		}
	}
}

std::unique_ptr<TlsSession> Tls::accept(int fd)
{
	if (listening_)
		return std::unique_ptr<TlsSession>(new TlsSession(listening_.get(), fd, true));
	close(fd);
	return nullptr;
}

std::unique_ptr<TlsSession> Tls::connect(int fd)
{
	if (connecting_)
		return std::unique_ptr<TlsSession>(new TlsSession(connecting_.get(), fd, false));
	close(fd);
	return nullptr;
}

std::unique_ptr<TlsSession> Tls::connect_as_stranger(int fd, const std::string &authority_fingerprint)
{
	const std::shared_ptr<SSL_CTX> ctx = make_context(false);
	if (!ctx || !SSL_CTX_set_ex_data(ctx.get(), fingerprint_index(), new std::string(authority_fingerprint))) {
		close(fd);
		return nullptr;
	}
	SSL_CTX_set_verify(ctx.get(), SSL_VERIFY_PEER, nullptr);
	SSL_CTX_set_cert_verify_callback(ctx.get(), verify_by_fingerprint, nullptr);
	return std::unique_ptr<TlsSession>(new TlsSession(ctx.get(), fd, false));
}

}    // namespace lockstep
