// SPDX-License-Identifier: GPL-2.0-or-later
//
// See meter.h.
#include "lockstepd/api/meter.h"

#include "lockstepd/api/soft.h"

namespace lockstep {

using nlohmann::json;

void SyncMeter::measure(HostId reporter, json &report, uint64_t now_ms)
{
	std::map<Key, std::deque<Sample>> kept;
	for (const auto &[vid, volume] : soft_object(report, "volumes").items()) {
		for (const auto &[peer, p] : soft_object(volume, "peers").items()) {
			std::string state = soft_text(p, "sync_state");
			if (state != "running" && state != "joining")
				continue;
			Key key{reporter, vid, peer};
			std::deque<Sample> window = std::move(samples_[key]);
			Sample now{now_ms, soft_number(p, "dirty_blocks")};
			if (!window.empty() && window.back().dirty_blocks < now.dirty_blocks)
				window.clear();
			window.push_back(now);
			while (window.front().at_ms + WINDOW_MS < now_ms)
				window.pop_front();
			uint64_t span_ms = now_ms - window.front().at_ms;
			if (span_ms >= MIN_SPAN_MS)
				report["volumes"][vid]["peers"][peer]["rate_blocks_s"] =
					(window.front().dirty_blocks - now.dirty_blocks) * 1000 / span_ms;
			kept[key] = std::move(window);
		}
	}
	std::erase_if(samples_, [&](const auto &entry) { return std::get<0>(entry.first) == reporter; });
	samples_.merge(kept);
}

}    // namespace lockstep
