// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/net/frame.h"

#include <unistd.h>
#include <uv.h>

#include <cstring>
#include <memory>

#include "lockstepd/net/listener.h"

namespace lockstep {

namespace {

constexpr size_t READ_CHUNK_BYTES = 64 << 10;

struct CborHead {
	int major;
	uint64_t argument;
	bool indefinite;
};

// Reads the head of one item and moves past it.
std::optional<CborHead> take_head(std::string_view &in)
{
	if (in.empty())
		return std::nullopt;
	const auto first = static_cast<uint8_t>(in[0]);
	in.remove_prefix(1);
	CborHead head{first >> 5, uint64_t(first & 31), false};
	if (head.argument < 24)
		return head;
	if (head.argument == 31) {
		head.indefinite = true;
		return head;
	}
	if (head.argument > 27)
		return std::nullopt;
	const size_t bytes = size_t(1) << (head.argument - 24);
	if (in.size() < bytes)
		return std::nullopt;
	head.argument = 0;
	for (size_t i = 0; i < bytes; i++)
		head.argument = head.argument << 8 | static_cast<uint8_t>(in[i]);
	in.remove_prefix(bytes);
	return head;
}

// Exactly one well-formed item of definite length, not too deep. We send nothing else, so nothing else is accepted.
bool cbor_is_sane(std::string_view in)
{
	uint64_t left[CBOR_DEPTH_MAX];    // items still to come on each level
	int depth = 0;
	left[0] = 1;
	for (;;) {
		while (left[depth] == 0) {
			if (depth == 0)
				return in.empty();
			depth--;
		}
		left[depth]--;
		const auto head = take_head(in);
		if (!head || head->indefinite)
			return false;
		switch (head->major) {
		case 2:    // bytes
		case 3:    // text
			if (head->argument > in.size())
				return false;
			in.remove_prefix(head->argument);
			break;
		case 4:    // array
		case 5:    // map
			if (head->argument > in.size() || depth + 1 == CBOR_DEPTH_MAX)
				return false;
			left[++depth] = head->argument * (head->major == 5 ? 2 : 1);
			break;
		case 6:    // tag
			return false;
		default:
			break;
		}
	}
}

}    // namespace

std::optional<nlohmann::json> parse_cbor(std::string_view bytes)
{
	if (!cbor_is_sane(bytes))
		return std::nullopt;
	auto value = nlohmann::json::from_cbor(bytes.begin(), bytes.end(), true, false);
	if (value.is_discarded())
		return std::nullopt;
	return value;
}

struct FrameStream::Impl {
	uv_tcp_t tcp;
	Loop *loop;
	std::function<void(nlohmann::json)> on_frame;
	std::function<void(const std::string &)> on_close;
	size_t queue_max_bytes, receive_max_bytes;
	uint64_t last_heard_ms = Loop::now_ms();
	std::string in;
	bool closed = false;    // uv_close() was called
	bool gone = false;      // libuv has let go of it
	bool owned = true;      // the FrameStream still exists
	std::unique_ptr<char[]> chunk = std::make_unique<char[]>(READ_CHUNK_BYTES);

	void close()
	{
		if (closed)
			return;
		closed = true;
		uv_close(reinterpret_cast<uv_handle_t *>(&tcp), [](uv_handle_t *h) {
			auto *self = static_cast<Impl *>(h->data);
			self->gone = true;
			if (!self->owned)
				delete self;
		});
	}

	void fail(const std::string &reason)
	{
		if (closed)
			return;
		uv_read_stop(reinterpret_cast<uv_stream_t *>(&tcp));
		auto tell = on_close;
		close();
		tell(reason);
	}

	// Not from within send(): the caller may not expect to be destroyed.
	void fail_later(const std::string &reason)
	{
		if (closed || pending_failure)
			return;
		pending_failure = std::make_unique<Timer>(*loop);
		pending_failure->once(0, [this, reason] { fail(reason); });
	}

	void received(ssize_t n)
	{
		if (n == 0)
			return;
		if (n < 0) {
			fail(n == UV_EOF ? "the other side closed it" : uv_strerror(int(n)));
			return;
		}
		last_heard_ms = Loop::now_ms();
		in.append(chunk.get(), size_t(n));
		size_t at = 0;
		while (owned && !closed && in.size() - at >= 4) {
			uint32_t length;
			memcpy(&length, in.data() + at, 4);
			if (length == 0 || length > receive_max_bytes) {
				fail("a message of " + std::to_string(length) + " bytes was announced");
				return;
			}
			if (in.size() - at - 4 < length)
				break;
			auto value = parse_cbor(std::string_view(in).substr(at + 4, length));
			if (!value) {
				fail("a malformed message came in");
				return;
			}
			at += 4 + length;
			on_frame(std::move(*value));
		}
		in.erase(0, at);
	}

	std::unique_ptr<Timer> pending_failure;
};

FrameStream::FrameStream(Loop &loop, int fd, std::function<void(nlohmann::json)> on_frame,
			 std::function<void(const std::string &)> on_close, size_t queue_max_bytes, size_t receive_max_bytes)
	: impl_(new Impl)
{
	impl_->loop = &loop;
	impl_->on_frame = std::move(on_frame);
	impl_->on_close = std::move(on_close);
	impl_->queue_max_bytes = queue_max_bytes;
	impl_->receive_max_bytes = receive_max_bytes;
	impl_->tcp.data = impl_;
	uv_tcp_init(loop.uv(), &impl_->tcp);
	int error = uv_tcp_open(&impl_->tcp, fd);
	if (error != 0)
		::close(fd);
	else
		error = uv_read_start(
			reinterpret_cast<uv_stream_t *>(&impl_->tcp),
			[](uv_handle_t *h, size_t, uv_buf_t *buf) {
				auto *self = static_cast<Impl *>(h->data);
				*buf = uv_buf_init(self->chunk.get(), READ_CHUNK_BYTES);
			},
			[](uv_stream_t *s, ssize_t n, const uv_buf_t *) { static_cast<Impl *>(s->data)->received(n); });
	if (error != 0)
		impl_->fail_later(uv_strerror(error));
}

FrameStream::~FrameStream()
{
	impl_->pending_failure.reset();
	impl_->owned = false;
	if (impl_->gone)
		delete impl_;
	else
		impl_->close();
}

bool FrameStream::send(const nlohmann::json &message)
{
	struct Write {
		uv_write_t request;
		std::string bytes;
		Impl *impl;
	};
	auto write = std::make_unique<Write>();
	write->bytes.assign(4, '\0');
	nlohmann::json::to_cbor(message, write->bytes);
	const size_t length = write->bytes.size() - 4;
	if (length > FRAME_MAX_BYTES)
		return false;
	if (impl_->closed)
		return true;
	const auto length32 = uint32_t(length);
	memcpy(write->bytes.data(), &length32, 4);
	write->impl = impl_;
	write->request.data = write.get();

	auto *stream = reinterpret_cast<uv_stream_t *>(&impl_->tcp);
	if (uv_stream_get_write_queue_size(stream) > impl_->queue_max_bytes) {
		impl_->fail_later("it takes our messages too slowly");
		return true;
	}
	uv_buf_t buf = uv_buf_init(write->bytes.data(), unsigned(write->bytes.size()));
	const int error = uv_write(&write->request, stream, &buf, 1, [](uv_write_t *request, int status) {
		std::unique_ptr<Write> done(static_cast<Write *>(request->data));
		// On ECANCELED we are closing; and libuv runs this before the close callback that frees impl.
		if (status != 0 && status != UV_ECANCELED)
			done->impl->fail(uv_strerror(status));
	});
	if (error != 0)
		impl_->fail_later(uv_strerror(error));
	else
		write.release();
	return true;
}

uint64_t FrameStream::last_heard_ms() const
{
	return impl_->last_heard_ms;
}

}    // namespace lockstep
