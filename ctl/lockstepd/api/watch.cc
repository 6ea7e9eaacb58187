// SPDX-License-Identifier: GPL-2.0-or-later
//
// The API's handlers for what has happened and why: events, why, metrics.
#include "lockstepd/api/impl.h"

#include "lockstepd/api/metrics.h"
#include "lockstepd/api/why.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

constexpr size_t WHY_EVENTS = 20;
constexpr size_t MAX_CURSOR = 64;

}    // namespace

void ApiServer::Impl::routes_watch()
{
	http.Get("/v1/events", route(&Impl::get_events));
	http.Get("/v1/why/([^/]+)", route(&Impl::get_why));
	http.Get("/metrics", [this](const httplib::Request &, httplib::Response &res) {
		res.set_content(metrics_text(status()), "text/plain; version=0.0.4; charset=utf-8");
	});
}

Result<json> ApiServer::Impl::get_events(const httplib::Request &req)
{
	const std::string cursor = req.get_param_value("after");
	const unsigned ms = unsigned(std::min<uint64_t>(parameter(req, "ms", 0), MAX_POLL_MS));
	if (cursor.size() > MAX_CURSOR)
		throw BadRequest{"the parameter \"after\" is no cursor of an event"};
	const auto end = Clock::now() + std::chrono::milliseconds(ms);
	std::unique_lock lock(mutex);
	while (!cursor.empty() && !events.has_after(cursor) && !stopping)
		if (moved.wait_until(lock, end) == std::cv_status::timeout)
			break;
	return events.after(cursor);
}

// Of a volume, else of a host, else of a volume that could not be made.
Result<json> ApiServer::Impl::get_why(const httplib::Request &req)
{
	const std::string name = req.matches[1];
	if (Done ready = ready_for_changes(); !ready)
		return ready.error();
	json all = status(&name);
	if (all["volumes"].empty())    // a host's causes are in any of the volumes
		all = status();
	json j = {{"name", name}};
	for (const char *kind : {"volume", "host"}) {
		for (const json &item : all[std::string(kind) + "s"]) {
			if (item["name"] != name || j.contains("kind"))
				continue;
			j["kind"] = kind;
			j["health"] = item[*kind == 'v' ? "health" : "status"];
			j["causes"] = *kind == 'v' ? why_volume(all, item) : why_host(all, item);
		}
	}
	const std::shared_ptr<const State> s = backend.state();
	for (const auto &[vid, f] : s->failures)
		if (f.name == name && !j.contains("kind")) {
			j["kind"] = "volume";
			j["health"] = "none";
			j["causes"] = {{{"code", "not-made"}, {"what", f.message}, {"do", "create it again once that is mended"}}};
		}
	if (!j.contains("kind"))
		return not_found("there is no volume and no host named " + name);
	std::lock_guard lock(mutex);
	j["events"] = events.about(j["kind"], name, WHY_EVENTS);
	return j;
}

}    // namespace lockstep
