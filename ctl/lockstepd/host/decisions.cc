// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/decisions.h"

#include <algorithm>

namespace lockstep {

using nlohmann::json;

namespace {

// Times are those of the moment.
std::string key_of(json entry)
{
	for (auto i = entry.begin(); i != entry.end();)
		i = i.key().ends_with("_ms") ? entry.erase(i) : std::next(i);
	return entry.dump();
}

}    // namespace

void Decisions::answered(const std::string &key, uint64_t now_ms, const Result<json> &answer)
{
	under_way_--;
	if (answer) {
		refused_.erase(key);
		some_done_ = true;
		return;
	}
	Refused &r = refused_[key];
	r.pause_ms = r.pause_ms ? std::min(2 * r.pause_ms, RETRY_MAX_MS) : RETRY_MIN_MS;
	r.until_ms = now_ms + r.pause_ms;
	if (r.why != answer.error().message)
		log_("a decision was not carried out: " + answer.error().message);
	r.why = answer.error().message;
}

void Decisions::propose(std::vector<json> decided, uint64_t now_ms, std::function<void()> done)
{
	std::map<std::string, Refused> refused;    // of what is still decided
	std::vector<std::pair<std::string, json>> wanted;
	for (json &entry : decided) {
		std::string key = key_of(entry);
		const auto known = refused_.find(key);
		if (known != refused_.end())
			refused[key] = known->second;
		if (known == refused_.end() || known->second.until_ms <= now_ms)
			wanted.emplace_back(std::move(key), std::move(entry));
	}
	refused_ = std::move(refused);
	some_done_ = false;
	under_way_++;    // nothing that is answered at once is the last
	for (auto &[key, entry] : wanted) {
		under_way_++;
		propose_(std::move(entry), [this, key = key, now_ms, done](Result<json> answer) {
			answered(key, now_ms, answer);
			if (!under_way_ && some_done_)
				done();
		});
	}
	under_way_--;
}

}    // namespace lockstep
