// SPDX-License-Identifier: GPL-2.0-or-later
//
// OpenSSL's objects as owners, and read from PEM. For the files that call OpenSSL: others see text only (certs.h, tls.h).
#pragma once

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

namespace lockstep {

template <auto Free>
struct Freer {
	template <class T>
	void operator()(T *p) const
	{
		Free(p);
	}
};
using Bio = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using Key = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;
using Cert = std::unique_ptr<X509, Freer<X509_free>>;

// Only for what fails when memory is out or OpenSSL is broken.
template <class T>
T must(T value)
{
	if (!value) {
		ERR_print_errors_fp(stderr);
		abort();
	}
	return value;
}

// Reads from `text`, which must outlive it.
inline Bio pem_reader(const std::string &text)
{
	return Bio(must(BIO_new_mem_buf(text.data(), int(text.size()))));
}

// Null if `pem` is not one; OpenSSL's error queue says why.
inline Key read_private_key(const std::string &pem)
{
	return Key(PEM_read_bio_PrivateKey(pem_reader(pem).get(), nullptr, nullptr, nullptr));
}

inline Key read_public_key(const std::string &pem)
{
	return Key(PEM_read_bio_PUBKEY(pem_reader(pem).get(), nullptr, nullptr, nullptr));
}

inline Cert read_cert(const std::string &pem)
{
	return Cert(PEM_read_bio_X509(pem_reader(pem).get(), nullptr, nullptr, nullptr));
}

}    // namespace lockstep
