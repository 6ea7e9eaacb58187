// SPDX-License-Identifier: GPL-2.0-or-later
//
// The hello: the first thing said on every connection, and its answer.
//
// All hosts listen on one port; what a connection is for is in its hello. The side that connects says who it is, which
// cluster it means, whom it expects to find and for what; the side that accepts answers yes, or no with a reason in one line,
// and only then either side sends anything else. Both messages are read byte-exact, so that the socket can be handed to
// somebody else (the kernel, libraft) with nothing of the later stream consumed.
//
//     offset 0  char magic[4]   "LKSH" for a hello, "LKSA" for an answer
//            4  u8   version    HELLO_VERSION
//            5  u8   zero
//            6  u16  length     of the body that follows, little-endian, 1 .. HELLO_BODY_MAX_BYTES
//            8  body            CBOR object, fields named as in struct Hello
//
// All of it goes over TLS (tls.h), whose certificate must name the same host as the hello.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/error.h"

namespace lockstep {

constexpr uint8_t HELLO_VERSION = 1;
constexpr size_t HELLO_HEADER_BYTES = 8;
constexpr size_t HELLO_BODY_MAX_BYTES = 4096;
constexpr uint64_t HELLO_TIMEOUT_MS = 5000;    // from accept (or connect) to the end of the exchange
constexpr int HALF_OPEN_MAX = 64;              // connections that have not finished their hello; a further one is closed

enum class Purpose : uint8_t {
	raft = 1,    // libraft's messages, one direction: from the side that connected
	link = 2,    // daemon to daemon: calls, notices, heartbeats (link.h)
	lane = 3,    // handed to the kernel
	join = 4,    // a host that has no id yet asks to become a member
	api = 5,     // one or more framed requests
};

// Who this host is. Before `cluster init` or `cluster join`, cluster_uuid is empty and ids are 0.
struct Identity {
	std::string cluster_uuid;
	int host_id = 0;         // 1..64
	uint64_t raft_id = 0;    // never reused, not even by the same host
	std::string name;        // for messages only
};

struct Hello {
	Purpose purpose = Purpose::link;
	std::string cluster_uuid;     // empty only for join
	int from_host = 0;            // 0 only for join
	std::string from_name;        // for messages only
	uint64_t from_raft = 0;
	int to_host = 0;              // whom the dialing side expects; 0: anybody
	uint64_t to_raft = 0;         // purpose raft only
	std::string from_address;     // purpose raft only: how raft knows the sender
	uint32_t lane = 0;            // purpose lane only: 0 .. lanes - 1
	uint32_t lanes = 0;           // purpose lane only
	uint64_t link_generation = 0; // purpose lane only
	bool plain = false;           // purpose lane only: nothing is encrypted after the answer
};

// What follows the header of an answer.
struct HelloAnswer {
	bool ok = false;
	std::string message;    // when refused: one line
	bool removed = false;   // refused since the sender is in the cluster no more; never said of one that may still become known
	int host = 0;           // who answered; 0 when it has no id
	std::string name;
	std::string address;    // filled in by the Dialer: the one that answered, as it was given
	bool plain = false;     // the lane is plain from here on, as was asked for
};

std::string encode_hello(const Hello &hello);
std::string encode_hello_answer(const HelloAnswer &answer);

// Checks a header of HELLO_HEADER_BYTES; gives the length of the body.
Result<size_t> decode_hello_header(std::string_view header, bool answer);
Result<Hello> decode_hello(std::string_view body);
Result<HelloAnswer> decode_hello_answer(std::string_view body);

// Network addresses: "10.77.2.1", "10.77.2.1:7788", "[fe80::1]:7788", "fe80::1". Numeric only: name resolution can block.
Result<sockaddr_storage> parse_address(std::string_view text, uint16_t default_port);
std::string format_address(const sockaddr_storage &address);    // with port; IPv6 in brackets

}    // namespace lockstep
