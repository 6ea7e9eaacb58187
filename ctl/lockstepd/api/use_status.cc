// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/api/shown.h"

#include "lockstepd/api/soft.h"
#include "lockstepd/cluster/repair.h"


namespace lockstep {

using nlohmann::json;

namespace {

// What a host says that is of interest here. Most hosts share one report of a volume, which is read but once.
struct Says {
	const json *report = nullptr;
	bool device = false;
	std::string problem;
	uint64_t refused_for = 0;

	void read(const json *from)
	{
		if (from == report)
			return;
		report = from;
		device = from && (!from->contains("has_device") || soft_is_true(*from, "has_device"));
		problem = from ? soft_text(*from, "problem") : "";
		refused_for = from ? soft_number(*from, "refused_for") : 0;
	}
};

// The State remembers who once had the device; whether a host that has just booted has it again is known from its reports.
bool device_is_missing(const Volume &v, const Host &host, bool has_started, const Says &says)
{
	if (!host.online || !host.has_devices() || v.phase != Phase::ready)
		return false;
	return !v.devices.contains(host.id) || (has_started && !says.device);
}

json growth_json(const State &s, const Volume &v)
{
	if (!v.grow_bytes)
		return nullptr;
	json waiting = json::array();
	for (const Replica &r : v.replicas)
		if (r.next_offset || r.wipe)
			waiting.push_back(s.host_name(r.host));
	return {{"to_bytes", v.grow_bytes}, {"steps_done", v.replicas.size() - waiting.size()}, {"steps", v.replicas.size()}, {"waiting_for", waiting}};
}

}    // namespace

void show_use(const State &s, const Volume &v, HostId self, const Reports &soft, json &j)
{
	json missing = json::array(), problems = json::array(), refused = json::array();
	const bool has_started = soft.said(self);    // this daemon: it has heard from others, then
	Says says;
	for (const auto &[id, h] : s.hosts) {
		says.read(soft.find(id, v.vid));
		if (device_is_missing(v, h, has_started, says))
			missing.push_back(h.name);
		if (!says.problem.empty())
			problems.push_back({{"host", h.name}, {"message", says.problem}});
		if (says.refused_for)
			refused.push_back({{"host", h.name}, {"holder", s.host_name(HostId(says.refused_for))}});
	}
	const json &primary = soft.of(v.primary, v.vid);
	j["class"] = class_word(v);
	j["openers"] = opener_names(s, v);
	j["devices_missing"] = missing;
	j["problems"] = problems;
	j["opens_refused"] = refused;
	j["no_quorum"] = to_string(v.no_quorum);
	j["chosen_primary"] = v.chosen_primary ? json(s.host_name(v.chosen_primary)) : json(nullptr);
	j["handover_to"] = soft_number(primary, "handover_to") ? json(s.host_name(HostId(soft_number(primary, "handover_to")))) : json(nullptr);
	j["quiesced"] = primary.value("quiesced", false);
	j["suspended_since_ms"] = soft_number(primary, "suspended_since_ms") ? json(soft_number(primary, "suspended_since_ms")) : json(nullptr);
	j["growth"] = growth_json(s, v);
	j["reverting"] = v.reverting;
	j["verify"] = nullptr;
	if (const json &verify = soft_object(primary, "verify"); !verify.empty())
		j["verify"] = {{"total_blocks", soft_number(verify, "total_blocks")},
			       {"done_blocks", soft_number(verify, "done_blocks")},
			       {"differ_blocks", soft_number(verify, "differ_blocks")},
			       {"repair", soft_is_true(verify, "repair")},
			       {"begun_ms", soft_number(verify, "begun_ms")}};
}

namespace {

// Copies that are on their way, and how far they are as their hosts have said.
json arriving_json(const State &s, const Snapshot &x, const Reports &soft)
{
	json list = json::array();
	for (const SnapshotCopy &c : x.arriving) {
		const json &copies = soft_object(soft.of(c.host, x.vid), "copies");
		const std::string sid = std::to_string(x.sid);
		list.push_back({{"host", s.host_name(c.host)}, {"percent", soft_has_number(copies, sid.c_str()) ? json(soft_number(copies, sid.c_str())) : json(nullptr)}});
	}
	return list;
}

}    // namespace

namespace {

// What it takes of a pool where it takes most; null if nobody knows it. Thin: blocks that it shares count.
json snapshot_bytes(const State &s, const Snapshot &x)
{
	uint64_t most = 0;
	for (const SnapshotCopy &c : x.copies) {
		const Pool *pool = s.pool(c.pool, c.host);
		most = std::max(most, pool && pool->kind == PoolKind::thick ? x.reserve_bytes : c.allocated_bytes);
	}
	return most ? json(most) : json(nullptr);
}

}    // namespace

json snapshots_json(const State &s, const Reports &soft)
{
	json list = json::array();
	for (const auto &[sid, x] : s.snapshots) {
		json hosts = json::array();
		for (const SnapshotCopy &c : x.copies)
			hosts.push_back(s.host_name(c.host));
		json going = json::array();
		for (const SnapshotCopy &c : x.going)
			going.push_back(s.host_name(c.host));
		json without_room = json::array();
		for (const auto &[host, why] : copies_without_room(s, x))
			without_room.push_back({{"host", s.host_name(host)}, {"message", why}});
		list.push_back({{"name", x.name},
				{"uuid", x.uuid},
				{"sid", x.sid},
				{"set", x.set},
				{"volume", x.volume},
				{"volume_uuid", x.volume_uuid},
				{"group", x.group.empty() ? json(nullptr) : json(x.group)},
				{"labels", x.labels},
				{"size_bytes", x.size_bytes},
				{"allocated_bytes", snapshot_bytes(s, x)},
				{"created_ms", x.created_ms},
				{"phase", to_string(x.phase)},
				{"temporary", x.temporary},
				{"hosts", hosts},
				{"arriving", arriving_json(s, x, soft)},
				{"going", going},
				{"without_room", without_room}});
	}
	return list;
}

}    // namespace lockstep
