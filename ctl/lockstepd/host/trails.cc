// SPDX-License-Identifier: GPL-2.0-or-later
//
// Trails: which sectors of a volume have been written through its device on this host. They live in the kernel, and end with it: a
// trail that is asked for by its number and still there is whole.
#include <fmt/format.h>

#include "lockstepd/host/daemon.h"

namespace lockstep {

namespace {

constexpr size_t TRAIL_PARTS_MAX = 512;    // of one answer: 1 MiB

std::string trail_hex(const std::string &bytes)
{
	std::string text;
	for (unsigned char byte : bytes)
		fmt::format_to(std::back_inserter(text), "{:02x}", byte);
	return text;
}

// As much of a trail as one answer holds.
Result<nlohmann::json> trail_from(const Kernel &kernel, uint32_t vid, uint64_t number, uint64_t at)
{
	nlohmann::json extents = nlohmann::json::array(), next;
	while (extents.size() < TRAIL_PARTS_MAX) {
		Result<std::optional<TrailPart>> part = kernel.trail(vid, number, at);
		if (!part)
			return part.error();
		if (!*part)
			return nlohmann::json{{"extents", extents}, {"next", nullptr}};
		extents.push_back({{"at", (*part)->at}, {"bitmap", trail_hex((*part)->bitmap)}});
		at = (*part)->at + LKS_EXTENT_BYTES;
	}
	return nlohmann::json{{"extents", extents}, {"next", at}};
}

}    // namespace

void Daemon::serve_trails()
{
	auto work = [this](uint32_t vid, Links::Reply reply, std::function<Result<Json>()> ask) {
		auto answer = std::make_shared<Result<Json>>(Json());
		workers_->submit(fmt::format("trail:{}", vid), [answer, ask = std::move(ask)] { *answer = ask(); },
				 [answer, reply = std::move(reply)] { reply(std::move(*answer)); });
	};
	links_.on_call("volume.trail-begin", [this, work](int, Json body, Links::Reply reply) {
		const uint32_t vid = body.at("vid").get<uint32_t>();
		work(vid, std::move(reply), [kernel = kernel_, vid]() -> Result<Json> {
			Result<uint64_t> number = kernel.trail_begin(vid);
			return number ? Result<Json>(Json{{"trail", fmt::format("{:016x}", *number)}}) : Result<Json>(number.error());
		});
	});
	links_.on_call("volume.trail", [this, work](int, Json body, Links::Reply reply) {
		const uint32_t vid = body.at("vid").get<uint32_t>();
		work(vid, std::move(reply), [kernel = kernel_, vid, number = body.at("trail").get<uint64_t>(), at = body.at("at").get<uint64_t>()] {
			return trail_from(kernel, vid, number, at);
		});
	});
	links_.on_call("volume.trail-end", [this, work](int, Json body, Links::Reply reply) {
		const uint32_t vid = body.at("vid").get<uint32_t>();
		work(vid, std::move(reply), [kernel = kernel_, vid, number = body.at("trail").get<uint64_t>()]() -> Result<Json> {
			if (Done ended = kernel.trail_end(vid, number); !ended)
				return ended.error();
			return Json::object();
		});
	});
}

}    // namespace lockstep
