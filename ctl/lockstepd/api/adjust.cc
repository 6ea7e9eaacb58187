// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handler for `lockstep adjust` and `up`: this host compares what it has with what the log wants, tries at once whatever had
// failed, and tells what differed and what still does.
#include "lockstepd/api/impl.h"

namespace lockstep {

using nlohmann::json;

namespace {

constexpr unsigned ADJUST_TIMEOUT_MS = 30'000, ADJUST_PERIOD_MS = 200;

}    // namespace

void ApiServer::Impl::routes_adjust()
{
	http.Post("/v1/adjust", route(&Impl::adjust));
}

Result<json> ApiServer::Impl::adjust(const httplib::Request &req)
{
	const std::string name = text_of(body_of(req), "volume", "");
	Result<uint32_t> vid = name.empty() ? Result<uint32_t>(0u) : vid_of(name);
	if (!vid)
		return vid.error();
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	const HostId self = backend.local().host;
	const Result<json> differed = backend.ask_host(self, "host.adjust", {{"vid", *vid}, {"retry", false}});
	if (!differed)
		return differed;
	Result<json> found = backend.ask_host(self, "host.adjust", {{"vid", *vid}, {"retry", true}});
	if (!found)
		return found;
	const Clock::time_point end = Clock::now() + std::chrono::milliseconds(std::min(ADJUST_TIMEOUT_MS, options.effect_timeout_ms));
	while (!found->empty() && Clock::now() < end) {
		// Not every step moves the State or a report: it is asked again after a while in any case.
		const uint64_t applied = backend.state()->applied;
		wait_for([&](const State &s) { return s.applied > applied; }, ADJUST_PERIOD_MS);
		found = backend.ask_host(self, "host.adjust", {{"vid", *vid}, {"retry", false}});
		if (!found)
			return found;
	}
	return json{{"host", backend.local().host_name}, {"differed", *differed}, {"left", *found}};
}

}    // namespace lockstep
