// SPDX-License-Identifier: GPL-2.0-or-later
//
// Values are decimal numbers of at most two places, kept exactly as hundredths: no floating point in what all hosts compute.
#include "lockstepd/cluster/option.h"

#include <algorithm>
#include <cctype>

namespace lockstep {

namespace {

enum class Kind { minutes, percent, ratio, on_off, mib_s, ms };

struct Known : Option {
	Kind kind;
	uint64_t least, most;    // hundredths
	bool may_be_off;
};

const std::vector<Known> &known()
{
	static const std::vector<Known> list = {
		{{"auto-evict-minutes", "60", "a host that was away for so long is evicted: its replicas are made anew elsewhere", true},
		 Kind::minutes, 5, 4'320'000, true},
		{{"auto-evict-percent", "34", "... if no more of the hosts than this are away", false}, Kind::percent, 0, 10'000, false},
		{{"disk-grace-minutes", "10", "a replica whose disk failed so long ago is made anew on another host", false},
		 Kind::minutes, 5, 4'320'000, true},
		{{"oversubscription", "2", "a thin pool may promise so many times its size", false}, Kind::ratio, 100, 10'000, false},
		{{"lane-encryption", "on", "data between hosts are encrypted; off: for a storage network that nobody else reaches", false},
		 Kind::on_off, 0, 0, true},
		{{"resync-floor-mib", "16", "resync may read so many MiB a second, whatever the applications do; volumes of a host that resync at the same time share it", false},
		 Kind::mib_s, 100, 6'553'600, false},
		{{"resync-ceiling-mib", "off", "... and so many at most", false}, Kind::mib_s, 100, 6'553'600, true},
		{{"resync-target-ms", "50", "... between the two, as many as leave reads and writes faster than this on average", false},
		 Kind::ms, 100, 1'000'000, false},
	};
	return list;
}

const Known *find(const std::string &name)
{
	auto it = std::find_if(known().begin(), known().end(), [&](const Known &k) { return k.name == name; });
	return it == known().end() ? nullptr : &*it;
}

// "1.5" as 150; nullopt if it is no such number.
std::optional<uint64_t> hundredths(const std::string &text)
{
	size_t dot = text.find('.');
	std::string whole = text.substr(0, dot), part = dot == text.npos ? "" : text.substr(dot + 1);
	auto digits = [](const std::string &s) { return std::all_of(s.begin(), s.end(), [](unsigned char c) { return std::isdigit(c); }); };
	if (whole.empty() || whole.size() > 9 || part.size() > 2 || (dot != text.npos && part.empty()) || !digits(whole) || !digits(part))
		return std::nullopt;
	part.resize(2, '0');
	return std::stoull(whole) * 100 + std::stoull(part);
}

std::string shown(uint64_t hundredths)
{
	std::string text = std::to_string(hundredths / 100);
	if (uint64_t rest = hundredths % 100)
		text += (rest < 10 ? ".0" : ".") + std::to_string(rest);
	return text;
}

// nullopt: off.
std::optional<uint64_t> number(const State &state, const char *name, HostId host = 0)
{
	return hundredths(option_value(state, name, host));
}

// 0, which is the module's own default, if it was not set, or off.
uint32_t set_number(const State &state, const char *name, uint32_t unit)
{
	const auto it = state.options.find(name);
	const std::optional<uint64_t> n = it == state.options.end() ? std::nullopt : hundredths(it->second);
	return n ? uint32_t(*n * unit / 100) : 0;
}

std::optional<uint64_t> minutes_as_ms(const State &state, const char *name, HostId host)
{
	std::optional<uint64_t> minutes = number(state, name, host);
	if (!minutes)
		return std::nullopt;
	return *minutes * 600;
}

}    // namespace

const std::vector<Option> &options()
{
	static const std::vector<Option> list(known().begin(), known().end());
	return list;
}

Done check_option(const std::string &name, const std::string &value, bool for_host)
{
	const Known *k = find(name);
	if (!k)
		return coded("no-such-option", not_found("there is no option " + name + ": see `lockstep option list`"));
	if (for_host && !k->per_host)
		return usage_error("option " + name + " is one of the whole cluster: set it without --host");
	if (value == "default" || (k->may_be_off && value == "off"))
		return Nothing{};
	if (k->kind == Kind::on_off)
		return value == "on" ? Done(Nothing{}) : usage_error("option " + name + ": \"" + value + "\" is neither on nor off");
	std::optional<uint64_t> n = hundredths(value);
	if (!n || *n < k->least || *n > k->most)
		return usage_error("option " + name + ": \"" + value + "\" is not a number from " + shown(k->least) + " to " + shown(k->most) +
				   (k->may_be_off ? ", or off" : ""));
	return Nothing{};
}

std::string option_value(const State &state, const std::string &name, HostId host)
{
	if (const Host *h = state.host(host))
		if (auto it = h->options.find(name); it != h->options.end())
			return it->second;
	if (auto it = state.options.find(name); it != state.options.end())
		return it->second;
	const Known *k = find(name);
	return k ? k->otherwise : "";
}

std::optional<uint64_t> auto_evict_ms(const State &state, HostId host) { return minutes_as_ms(state, "auto-evict-minutes", host); }
std::optional<uint64_t> disk_grace_ms(const State &state) { return minutes_as_ms(state, "disk-grace-minutes", 0); }
unsigned auto_evict_percent(const State &state) { return unsigned(*number(state, "auto-evict-percent") / 100); }
uint64_t oversubscription_percent(const State &state) { return *number(state, "oversubscription"); }

ResyncPace resync_pace(const State &state)
{
	return {set_number(state, "resync-floor-mib", 1024), set_number(state, "resync-ceiling-mib", 1024), set_number(state, "resync-target-ms", 1)};
}

bool lanes_encrypted(const State &state) { return option_value(state, "lane-encryption") == "on"; }

}    // namespace lockstep
