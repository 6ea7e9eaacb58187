// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/asked.h"

#include <fmt/format.h>

namespace lockstep {

namespace {

using Json = nlohmann::json;

constexpr size_t MAX_BYTES = 128;             // of each of its texts
constexpr const char *FIELD = "asker";
constexpr std::string_view KEY = "\x65" "asker"; // in CBOR: few entries have it, and only those are decoded once more

std::string text_in(const Json &object, const char *field)
{
	auto it = object.find(field);
	return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

std::optional<uint64_t> number_in(const Json &object, const char *field)
{
	auto it = object.find(field);
	return it != object.end() && it->is_number_unsigned() ? std::optional(it->get<uint64_t>()) : std::nullopt;
}

}    // namespace

Json to_json(const Asker &asker) { return {{"client", asker.client}, {"role", asker.role}, {"host", asker.host}}; }

Json with_asker(Json entry, const Asker &asker)
{
	entry[FIELD] = to_json(asker);
	return entry;
}

std::optional<Asker> asker_of(const Json &entry)
{
	auto by = entry.is_object() ? entry.find(FIELD) : entry.end();
	if (by == entry.end() || !by->is_object())
		return std::nullopt;
	Asker asker = {text_in(*by, "client"), text_in(*by, "role"), text_in(*by, "host")};
	for (const std::string *text : {&asker.client, &asker.role, &asker.host})
		if (text->empty() || text->size() > MAX_BYTES)
			return std::nullopt;
	return asker;
}

std::string describe(const Asker &asker)
{
	return asker.role == "root" ? fmt::format(" (by root on {})", asker.host) : fmt::format(" (by {}, {}, on {})", asker.client, asker.role, asker.host);
}

std::set<LogSubject> subjects_of(const State &state, const Json &entry)
{
	std::set<LogSubject> subjects;
	const std::string op = text_in(entry, "op"), kind = op.substr(0, op.find('.')), name = text_in(entry, "name");
	const Volume *v = state.volume(uint32_t(std::min<uint64_t>(number_in(entry, "vid").value_or(0), UINT32_MAX)));
	if (v)
		subjects.insert({"volume", v->name});
	if (const std::string made = text_in(entry, "new"); !made.empty())
		subjects.insert({"volume", made});
	if (const Snapshot *s = state.snapshot(uint32_t(std::min<uint64_t>(number_in(entry, "sid").value_or(0), UINT32_MAX))))
		subjects.insert({"snapshot", s->name});
	if ((kind == "volume" || kind == "snapshot" || kind == "pool") && !name.empty())
		subjects.insert({kind, name});
	if (const Host *h = kind == "host" ? state.host(HostId(std::min<uint64_t>(number_in(entry, "host").value_or(0), UINT8_MAX))) : nullptr)
		subjects.insert({"host", h->name});
	if (kind == "client")
		subjects.insert({"cluster", state.name});
	return subjects;
}

void Asked::note(const State &state, std::string_view bytes, const Json &answer)
{
	if (bytes.find(KEY) == bytes.npos)
		return;
	Json entry = Json::from_cbor(bytes, true, false);
	const std::optional<Asker> asker = asker_of(entry);
	if (!asker)
		return;
	if (answer.is_object() && answer.contains("vid"))
		entry["vid"] = answer["vid"];
	for (const LogSubject &s : subjects_of(state, entry))
		askers_[s] = *asker;
}

const Asker *Asked::who(const std::string &kind, const std::string &name) const
{
	auto it = askers_.find({kind, name});
	return it == askers_.end() ? nullptr : &it->second;
}

}    // namespace lockstep
