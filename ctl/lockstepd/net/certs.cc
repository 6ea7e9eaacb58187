// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/net/certs.h"

#include <openssl/asn1.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/random.h>

#include <charconv>
#include <cstdlib>
#include <ctime>
#include <memory>

#include "lockstepd/net/pem.h"

namespace lockstep {

namespace {

constexpr const char *EPOCH = "19700101000000Z";
constexpr const char *NO_END = "99991231235959Z";    // RFC 5280, 4.1.2.5: no well-defined end
constexpr const char *URN = "urn:lockstep:", *CLIENT_URN = "urn:lockstep-client:";
constexpr int SERIAL_BYTES = 16;

std::string hex(const unsigned char *bytes, size_t n)
{
	static const char digits[] = "0123456789abcdef";
	std::string out;
	for (size_t i = 0; i < n; i++) {
		out += digits[bytes[i] >> 4];
		out += digits[bytes[i] & 15];
	}
	return out;
}

std::string written(const Bio &bio)
{
	char *data = nullptr;
	const long n = BIO_get_mem_data(bio.get(), &data);
	return {data, size_t(n)};
}

std::string pem_of(X509 *cert)
{
	Bio out(must(BIO_new(BIO_s_mem())));
	must(PEM_write_bio_X509(out.get(), cert));
	return written(out);
}

std::string digest_of(EVP_PKEY *key)
{
	unsigned char *der = nullptr;
	const int n = i2d_PUBKEY(key, &der);
	must(n > 0);
	const std::string digest = sha256_hex({reinterpret_cast<char *>(der), size_t(n)});
	OPENSSL_free(der);
	return digest;
}

bool is_p256(EVP_PKEY *key)
{
	char group[32] = {};
	return EVP_PKEY_is_a(key, "EC") && EVP_PKEY_get_utf8_string_param(key, "group", group, sizeof group, nullptr) &&
	       OBJ_sn2nid(group) == NID_X9_62_prime256v1;
}

void extend(X509 *cert, X509 *issuer, int nid, const std::string &value)
{
	X509V3_CTX ctx;
	X509V3_set_ctx_nodb(&ctx);
	X509V3_set_ctx(&ctx, issuer, cert, nullptr, nullptr, 0);
	X509_EXTENSION *extension = must(X509V3_EXT_conf_nid(nullptr, &ctx, nid, value.c_str()));
	must(X509_add_ext(cert, extension, -1));
	X509_EXTENSION_free(extension);
}

// Everything but extensions and signature.
Cert blank(const std::string &common_name, EVP_PKEY *key)
{
	Cert cert(must(X509_new()));
	must(X509_set_version(cert.get(), X509_VERSION_3));
	unsigned char serial[SERIAL_BYTES];
	must(getrandom(serial, sizeof serial, 0) == ssize_t(sizeof serial));
	serial[0] = (serial[0] & 0x7f) | 0x40;    // positive, and always as long
	BIGNUM *number = must(BN_bin2bn(serial, sizeof serial, nullptr));
	must(BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert.get())));
	BN_free(number);
	must(X509_NAME_add_entry_by_txt(X509_get_subject_name(cert.get()), "CN", MBSTRING_ASC,
					reinterpret_cast<const unsigned char *>(common_name.c_str()), -1, -1, 0));
	must(X509_set_pubkey(cert.get(), key));
	must(ASN1_TIME_set_string_X509(X509_getm_notBefore(cert.get()), EPOCH));
	return cert;
}

// One number of a URN: digits only, no sign, nothing behind.
template <class T>
bool number(std::string_view text, T &value)
{
	const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
	return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::optional<Subject> parse_urn(std::string_view text)
{
	if (!text.starts_with(URN))
		return std::nullopt;
	text.remove_prefix(std::string_view(URN).size());
	const size_t second = text.rfind(':');
	const size_t first = second == text.npos || second == 0 ? text.npos : text.rfind(':', second - 1);
	if (first == text.npos)
		return std::nullopt;
	Subject s;
	s.cluster_uuid = text.substr(0, first);
	if (!number(text.substr(first + 1, second - first - 1), s.host) || !number(text.substr(second + 1), s.raft_id) || s.host < 1 ||
	    s.host > 64 || s.raft_id == 0 || s.cluster_uuid.empty())
		return std::nullopt;
	return s;
}

}    // namespace

std::string sha256_hex(const std::string &bytes)
{
	unsigned char digest[SHA256_DIGEST_LENGTH];
	SHA256(reinterpret_cast<const unsigned char *>(bytes.data()), bytes.size(), digest);
	return hex(digest, sizeof digest);
}

std::string random_hex(size_t bytes)
{
	std::string raw(bytes, '\0');
	must(getrandom(raw.data(), raw.size(), 0) == ssize_t(raw.size()));
	return hex(reinterpret_cast<const unsigned char *>(raw.data()), raw.size());
}

std::string make_private_key()
{
	const Key key(must(EVP_EC_gen("P-256")));
	Bio out(must(BIO_new(BIO_s_mem())));
	must(PEM_write_bio_PKCS8PrivateKey(out.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr));
	return written(out);
}

Result<std::string> public_key_of(const std::string &private_key)
{
	const Key key = read_private_key(private_key);
	if (!key || !is_p256(key.get()))
		return failed("a private key is damaged or not of our kind");
	Bio out(must(BIO_new(BIO_s_mem())));
	must(PEM_write_bio_PUBKEY(out.get(), key.get()));
	return written(out);
}

Result<std::string> key_digest(const std::string &public_key)
{
	const Key key = read_public_key(public_key);
	if (!key || !is_p256(key.get()))
		return usage_error("a public key is damaged or not of our kind (ECDSA on P-256)");
	return digest_of(key.get());
}

Result<std::string> fingerprint(const std::string &pem)
{
	const Cert cert = read_cert(pem);
	unsigned char digest[SHA256_DIGEST_LENGTH];
	unsigned n = 0;
	if (!cert || !X509_digest(cert.get(), EVP_sha256(), digest, &n))
		return failed("a certificate is damaged");
	return hex(digest, n);
}

Authority make_authority(const std::string &cluster_uuid)
{
	Authority made;
	made.key = make_private_key();
	const Key key = read_private_key(made.key);
	const Cert cert = blank("Lockstep cluster " + cluster_uuid, key.get());
	must(ASN1_TIME_set_string_X509(X509_getm_notAfter(cert.get()), NO_END));
	must(X509_set_issuer_name(cert.get(), X509_get_subject_name(cert.get())));
	extend(cert.get(), cert.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
	extend(cert.get(), cert.get(), NID_key_usage, "critical,keyCertSign");
	extend(cert.get(), cert.get(), NID_subject_key_identifier, "hash");
	must(X509_sign(cert.get(), key.get(), EVP_sha256()));
	made.cert = pem_of(cert.get());
	return made;
}

namespace {

Result<std::string> issue(const Authority &authority, const std::string &public_key, const std::string &common_name, const char *usage,
			  const std::string &uri, int64_t end)
{
	const Key signer = read_private_key(authority.key);
	const Cert issuer = read_cert(authority.cert);
	if (!signer || !issuer)
		return failed("the cluster's certificate authority is damaged");
	const Key key = read_public_key(public_key);
	if (!key || !is_p256(key.get()))
		return usage_error("a public key is damaged or not of our kind (ECDSA on P-256)");
	const Cert cert = blank(common_name, key.get());
	const time_t end_time = time_t(end);
	tm utc{};
	char text[32];
	if (!gmtime_r(&end_time, &utc) || !strftime(text, sizeof text, "%Y%m%d%H%M%SZ", &utc) ||
	    !ASN1_TIME_set_string_X509(X509_getm_notAfter(cert.get()), text))
		return failed("cannot make a certificate that ends at " + std::to_string(end));
	must(X509_set_issuer_name(cert.get(), X509_get_subject_name(issuer.get())));
	extend(cert.get(), issuer.get(), NID_basic_constraints, "critical,CA:FALSE");
	extend(cert.get(), issuer.get(), NID_key_usage, "critical,digitalSignature");
	extend(cert.get(), issuer.get(), NID_ext_key_usage, usage);
	extend(cert.get(), issuer.get(), NID_subject_alt_name, "URI:" + uri);
	must(X509_sign(cert.get(), signer.get(), EVP_sha256()));
	return pem_of(cert.get());
}

}    // namespace

Result<std::string> issue_certificate(const Authority &authority, const std::string &public_key, const Subject &subject, int64_t end)
{
	return issue(authority, public_key, "host " + std::to_string(subject.host), "serverAuth,clientAuth",
		     URN + subject.cluster_uuid + ":" + std::to_string(subject.host) + ":" + std::to_string(subject.raft_id), end);
}

Result<std::string> issue_client_certificate(const Authority &authority, const std::string &public_key, const ClientCert &client, int64_t end)
{
	return issue(authority, public_key, client.name, "clientAuth", CLIENT_URN + client.cluster_uuid + ":" + client.role + ":" + client.name, end);
}

Result<int64_t> end_of(const std::string &pem)
{
	const Cert cert = read_cert(pem);
	tm utc{};
	if (!cert || !ASN1_TIME_to_tm(X509_get0_notAfter(cert.get()), &utc))
		return failed("a certificate is damaged");
	return int64_t(timegm(&utc));
}

namespace {

// The one name in it, if it is a URI: exactly one, so that there is nothing to choose from.
std::optional<std::string> only_uri(X509 *cert)
{
	auto *names = static_cast<GENERAL_NAMES *>(X509_get_ext_d2i(cert, NID_subject_alt_name, nullptr, nullptr));
	std::optional<std::string> found;
	if (names && sk_GENERAL_NAME_num(names) == 1) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, 0);
		if (name->type == GEN_URI)
			found = std::string(reinterpret_cast<const char *>(ASN1_STRING_get0_data(name->d.uniformResourceIdentifier)),
					    size_t(ASN1_STRING_length(name->d.uniformResourceIdentifier)));
	}
	GENERAL_NAMES_free(names);
	return found;
}

}    // namespace

std::optional<PeerCert> read_peer_cert(X509 *cert)
{
	EVP_PKEY *key = X509_get0_pubkey(cert);
	const auto uri = only_uri(cert);
	const auto subject = uri ? parse_urn(*uri) : std::nullopt;
	if (!key || !subject)
		return std::nullopt;
	return PeerCert{*subject, digest_of(key)};
}

std::optional<ClientCert> read_client_cert(X509 *cert)
{
	EVP_PKEY *key = X509_get0_pubkey(cert);
	const auto uri = only_uri(cert);
	if (!key || !uri || !uri->starts_with(CLIENT_URN))
		return std::nullopt;
	const std::string rest = uri->substr(std::string_view(CLIENT_URN).size());
	const size_t first = rest.find(':'), second = first == rest.npos ? rest.npos : rest.find(':', first + 1);
	if (second == rest.npos || first == 0 || second == first + 1 || second + 1 == rest.size() || rest.find(':', second + 1) != rest.npos)
		return std::nullopt;
	return ClientCert{rest.substr(0, first), rest.substr(first + 1, second - first - 1), rest.substr(second + 1), digest_of(key)};
}

}    // namespace lockstep
