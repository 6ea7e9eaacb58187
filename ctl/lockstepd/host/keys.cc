// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/keys.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include <fmt/format.h>

#include "lockstepd/consensus/host_file.h"

namespace lockstep {

namespace {

constexpr const char *TOKEN_MARK = "lks1";
constexpr size_t TOKEN_CHARS = 4 + 2 * TOKEN_PART_BYTES + 2 * TOKEN_PART_BYTES + 8 + 4;

std::string path_of(const std::string &state_dir, const char *file) { return state_dir + "/tls/" + file; }

Done store(const std::string &state_dir, const char *file, const std::string &content)
{
	const std::string dir = state_dir + "/tls";
	if (mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST)
		return failed(fmt::format("cannot make {}: {}", dir, strerror(errno)));
	return write_file_durably(path_of(state_dir, file), content);
}

Result<std::string> load(const std::string &state_dir, const char *file)
{
	std::ifstream in(path_of(state_dir, file));
	std::stringstream text;
	text << in.rdbuf();
	if (!in || text.str().empty())
		return failed(fmt::format("cannot read {}: {}", path_of(state_dir, file), strerror(errno)));
	return text.str();
}

std::string check_of(const std::string &text) { return sha256_hex(text).substr(0, 4); }

}    // namespace

std::string format_token(const JoinToken &token)
{
	const std::string text = fmt::format("{}{}{}{:08x}", TOKEN_MARK, token.authority.substr(0, 2 * TOKEN_PART_BYTES), token.secret, token.end_s);
	return text + check_of(text);
}

Result<JoinToken> parse_token(const std::string &text)
{
	if (!text.starts_with(TOKEN_MARK) || text.size() != TOKEN_CHARS ||
	    text.find_first_not_of("0123456789abcdef", 4) != std::string::npos || !text.ends_with(check_of(text.substr(0, TOKEN_CHARS - 4))))
		return usage_error("this is no join token: copy all of what `lockstep cluster token` printed");
	JoinToken token;
	token.authority = text.substr(4, 2 * TOKEN_PART_BYTES);
	token.secret = text.substr(4 + 2 * TOKEN_PART_BYTES, 2 * TOKEN_PART_BYTES);
	token.end_s = std::stoull(text.substr(TOKEN_CHARS - 12, 8), nullptr, 16);
	return token;
}

Result<std::string> own_key(const std::string &state_dir)
{
	if (auto known = load(state_dir, "key.pem"); known && public_key_of(*known))
		return known;
	const std::string key = make_private_key();
	if (Done stored = store(state_dir, "key.pem", key); !stored)
		return stored.error();
	return key;
}

Done store_certificate(const std::string &state_dir, const std::string &authority, const std::string &cert)
{
	if (Done stored = store(state_dir, "authority.pem", authority); !stored)
		return stored;
	return store(state_dir, "cert.pem", cert);
}

Result<TlsIdentity> load_identity(const std::string &state_dir)
{
	TlsIdentity identity;
	for (const auto &[file, text] : {std::pair("authority.pem", &identity.authority), std::pair("cert.pem", &identity.cert),
					 std::pair("key.pem", &identity.key)}) {
		auto content = load(state_dir, file);
		if (!content)
			return failed(content.error().message + "; without it no other host talks to this one: remove this host from the "
								"cluster and let it join again");
		*text = *content;
	}
	return identity;
}

Done store_authority(const std::string &state_dir, const Authority &authority)
{
	if (Done stored = store(state_dir, "authority-key.pem", authority.key); !stored)
		return stored;
	return store(state_dir, "authority.pem", authority.cert);
}

Result<Authority> load_authority(const std::string &state_dir)
{
	auto cert = load(state_dir, "authority.pem"), key = load(state_dir, "authority-key.pem");
	if (!cert)
		return cert.error();
	if (!key)
		return key.error();
	return Authority{*cert, *key};
}

}    // namespace lockstep
