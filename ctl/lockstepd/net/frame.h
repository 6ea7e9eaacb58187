// SPDX-License-Identifier: GPL-2.0-or-later
//
// Framed messages over a connected socket: u32 length (little-endian, 1 .. FRAME_MAX_BYTES), then one CBOR value.
//
// Bytes come from other machines, so nothing is believed: the length is checked before memory is taken for it (and memory is
// taken as bytes arrive, not as they are announced), and CBOR is scanned for its depth first, because the parser recurses.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "lockstepd/net/loop.h"

namespace lockstep {

constexpr size_t FRAME_MAX_BYTES = 8u << 20;    // of a message, both directions
constexpr int CBOR_DEPTH_MAX = 64;

// One whole CBOR value, no deeper than CBOR_DEPTH_MAX, nothing behind it; nullopt otherwise.
std::optional<nlohmann::json> parse_cbor(std::string_view bytes);

// Takes over a connected socket. Loop thread only.
class FrameStream {
public:
	// receive_max_bytes: of one message; a larger one ends in on_close.
	// Neither callback runs inside the constructor or send(). on_close runs at most once, for any end that the owner did not
	// cause; the FrameStream is then dead and should be destroyed. Both may destroy it.
	FrameStream(Loop &loop, int fd, std::function<void(nlohmann::json)> on_frame,
		    std::function<void(const std::string &reason)> on_close, size_t queue_max_bytes = 32u << 20,
		    size_t receive_max_bytes = FRAME_MAX_BYTES);
	~FrameStream();    // closes without callback; what is queued may be lost
	FrameStream(const FrameStream &) = delete;
	FrameStream &operator=(const FrameStream &) = delete;

	// Queues a message. False: it was larger than FRAME_MAX_BYTES and was not sent. A queue longer than queue_max_bytes, or a
	// dead connection, ends in on_close.
	bool send(const nlohmann::json &message);

	uint64_t last_heard_ms() const;    // Loop::now_ms() of the last bytes received; of the construction at first

	struct Impl;    // internal

private:
	Impl *impl_;    // freed when libuv has closed the handle
};

}    // namespace lockstep
