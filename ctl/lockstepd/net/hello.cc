// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/net/hello.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <charconv>
#include <cstring>

#include <nlohmann/json.hpp>

#include "lockstepd/net/frame.h"

namespace lockstep {

using nlohmann::json;

namespace {

constexpr std::string_view MAGIC_HELLO = "LKSH";
constexpr std::string_view MAGIC_ANSWER = "LKSA";
constexpr size_t STRING_MAX_BYTES = 1024;

std::string framed(std::string_view magic, const json &body)
{
	std::string out(magic);
	out.push_back(char(HELLO_VERSION));
	out.append(3, '\0');
	json::to_cbor(body, out);
	const auto length = uint16_t(out.size() - HELLO_HEADER_BYTES);
	out[6] = char(length & 0xff);
	out[7] = char(length >> 8);
	return out;
}

// A field that may be missing (then it keeps its default) but not of another type or out of range.
bool take(const json &body, const char *key, std::string &out)
{
	const auto it = body.find(key);
	if (it == body.end())
		return true;
	if (!it->is_string())
		return false;
	out = it->get<std::string>();
	return out.size() <= STRING_MAX_BYTES;
}

template <class Number>
bool take(const json &body, const char *key, Number &out, uint64_t max)
{
	const auto it = body.find(key);
	if (it == body.end())
		return true;
	if (!it->is_number_unsigned())
		return false;
	const auto value = it->get<uint64_t>();
	if (value > max)
		return false;
	out = Number(value);
	return true;
}

}    // namespace

std::string encode_hello(const Hello &h)
{
	json body = {{"purpose", uint64_t(h.purpose)}, {"from_host", uint64_t(h.from_host)}};
	const auto put_text = [&](const char *key, const std::string &value) {
		if (!value.empty())
			body[key] = value;
	};
	const auto put_number = [&](const char *key, uint64_t value) {
		if (value != 0)
			body[key] = value;
	};
	put_text("cluster", h.cluster_uuid);
	put_text("from_name", h.from_name);
	put_text("from_address", h.from_address);
	put_number("from_raft", h.from_raft);
	put_number("to_host", uint64_t(h.to_host));
	put_number("to_raft", h.to_raft);
	put_number("lane", h.lane);
	put_number("lanes", h.lanes);
	put_number("link_generation", h.link_generation);
	put_number("plain", h.plain);
	return framed(MAGIC_HELLO, body);
}

std::string encode_hello_answer(const HelloAnswer &a)
{
	json body = {{"ok", a.ok},
		     {"message", a.message.substr(0, STRING_MAX_BYTES)},
		     {"host", uint64_t(a.host)},
		     {"name", a.name.substr(0, STRING_MAX_BYTES)}};
	if (a.removed)
		body["removed"] = true;
	if (a.plain)
		body["plain"] = uint64_t(1);
	return framed(MAGIC_ANSWER, body);
}

Result<size_t> decode_hello_header(std::string_view header, bool answer)
{
	if (header.substr(0, 4) != (answer ? MAGIC_ANSWER : MAGIC_HELLO))
		return failed("it does not speak our protocol");
	if (uint8_t(header[4]) != HELLO_VERSION)
		return failed("it speaks version " + std::to_string(uint8_t(header[4])) + " of our protocol, this host version " +
			      std::to_string(HELLO_VERSION));
	const size_t length = uint8_t(header[6]) | size_t(uint8_t(header[7])) << 8;
	if (header[5] != 0 || length == 0 || length > HELLO_BODY_MAX_BYTES)
		return failed("its hello is malformed");
	return length;
}

Result<Hello> decode_hello(std::string_view bytes)
{
	const auto body = parse_cbor(bytes);
	Hello h;
	unsigned purpose = 0;
	if (!body || !body->is_object() || !take(*body, "purpose", purpose, unsigned(Purpose::api)) || purpose == 0 ||
	    !take(*body, "cluster", h.cluster_uuid) || !take(*body, "from_host", h.from_host, 64) ||
	    !take(*body, "from_name", h.from_name) || !take(*body, "from_raft", h.from_raft, UINT64_MAX) ||
	    !take(*body, "to_host", h.to_host, 64) || !take(*body, "to_raft", h.to_raft, UINT64_MAX) ||
	    !take(*body, "from_address", h.from_address) || !take(*body, "lane", h.lane, 255) ||
	    !take(*body, "lanes", h.lanes, 255) || !take(*body, "link_generation", h.link_generation, UINT64_MAX) || !take(*body, "plain", h.plain, 1))
		return failed("its hello is malformed");
	h.purpose = Purpose(purpose);
	if (h.purpose == Purpose::lane && h.lane >= h.lanes)
		return failed("its hello is malformed");
	if (h.purpose == Purpose::raft && (h.from_raft == 0 || h.to_raft == 0 || h.from_address.empty()))
		return failed("its hello is malformed");
	return h;
}

Result<HelloAnswer> decode_hello_answer(std::string_view bytes)
{
	const auto body = parse_cbor(bytes);
	HelloAnswer a;
	if (!body || !body->is_object() || !body->contains("ok") || !body->at("ok").is_boolean() ||
	    !take(*body, "message", a.message) || !take(*body, "host", a.host, 64) || !take(*body, "name", a.name) || !take(*body, "plain", a.plain, 1))
		return failed("its answer is malformed");
	a.ok = body->at("ok").get<bool>();
	a.removed = !a.ok && body->contains("removed") && body->at("removed").is_boolean() && body->at("removed").get<bool>();
	return a;
}

Result<sockaddr_storage> parse_address(std::string_view text, uint16_t default_port)
{
	const auto bad = [&] {
		return usage_error("\"" + std::string(text) + "\" is not a numeric address like 10.77.2.1, 10.77.2.1:7788 or [fd00::1]:7788");
	};
	std::string_view host = text, port;
	const size_t first_colon = text.find(':'), last_colon = text.rfind(':');
	if (!text.empty() && text[0] == '[') {
		const size_t end = text.find(']');
		if (end == text.npos)
			return bad();
		host = text.substr(1, end - 1);
		if (end + 1 < text.size()) {
			if (text[end + 1] != ':')
				return bad();
			port = text.substr(end + 2);
			if (port.empty())
				return bad();
		}
	} else if (first_colon != text.npos && first_colon == last_colon) {
		host = text.substr(0, first_colon);
		port = text.substr(first_colon + 1);
		if (port.empty())
			return bad();
	}
	uint16_t number = default_port;
	if (!port.empty()) {
		const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
		if (error != std::errc() || end != port.data() + port.size() || number == 0)
			return bad();
	}
	sockaddr_storage out{};
	const std::string host_text(host);
	auto *v4 = reinterpret_cast<sockaddr_in *>(&out);
	auto *v6 = reinterpret_cast<sockaddr_in6 *>(&out);
	if (inet_pton(AF_INET, host_text.c_str(), &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(number);
	} else if (inet_pton(AF_INET6, host_text.c_str(), &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(number);
	} else {
		return bad();
	}
	return out;
}

std::string format_address(const sockaddr_storage &address)
{
	char text[INET6_ADDRSTRLEN] = "?";
	if (address.ss_family == AF_INET) {
		const auto *v4 = reinterpret_cast<const sockaddr_in *>(&address);
		inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
		return std::string(text) + ":" + std::to_string(ntohs(v4->sin_port));
	}
	const auto *v6 = reinterpret_cast<const sockaddr_in6 *>(&address);
	inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
	return "[" + std::string(text) + "]:" + std::to_string(ntohs(v6->sin6_port));
}

}    // namespace lockstep
