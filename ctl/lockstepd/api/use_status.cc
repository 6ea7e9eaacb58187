// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/api/shown.h"

#include "lockstepd/api/soft.h"

namespace lockstep {

using nlohmann::json;

namespace {

const json &volume_report(const json &soft, HostId host, uint32_t vid)
{
	return soft_object(soft_object(soft_object(soft, std::to_string(host)), "volumes"), std::to_string(vid));
}

// The State remembers who once had the device; whether a host that has just booted has it again is known from its reports.
bool device_is_missing(const State &s, const Volume &v, HostId host, HostId self, const json &soft)
{
	if (!s.online(host) || v.phase != Phase::ready)
		return false;
	if (!v.devices.contains(host))
		return true;
	if (!soft.is_object() || !soft.contains(std::to_string(self)))
		return false;    // this daemon has just started
	const json &volumes = soft_object(soft_object(soft, std::to_string(host)), "volumes");
	auto report = volumes.find(std::to_string(v.vid));
	return report == volumes.end() || report->value("has_device", true) == false;
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

void show_use(const State &s, const Volume &v, HostId self, const json &soft, json &j)
{
	json openers = json::array(), missing = json::array(), problems = json::array(), refused = json::array();
	for (const Opener &o : v.openers)
		openers.push_back(s.host_name(o.host));
	for (const auto &[id, h] : s.hosts) {
		const json &report = volume_report(soft, id, v.vid);
		if (device_is_missing(s, v, id, self, soft))
			missing.push_back(h.name);
		if (std::string problem = soft_text(report, "problem"); !problem.empty())
			problems.push_back({{"host", h.name}, {"message", problem}});
		if (uint64_t holder = soft_number(report, "refused_for"))
			refused.push_back({{"host", h.name}, {"holder", s.host_name(HostId(holder))}});
	}
	const json &primary = volume_report(soft, v.primary, v.vid);
	j["class"] = v.cls == LKS_SHARED ? "shared" : "exclusive";
	j["openers"] = openers;
	j["devices_missing"] = missing;
	j["problems"] = problems;
	j["opens_refused"] = refused;
	j["no_quorum"] = to_string(v.no_quorum);
	j["chosen_primary"] = v.chosen_primary ? json(s.host_name(v.chosen_primary)) : json(nullptr);
	j["handover_to"] = soft_number(primary, "handover_to") ? json(s.host_name(HostId(soft_number(primary, "handover_to")))) : json(nullptr);
	j["quiesced"] = primary.value("quiesced", false);
	j["growth"] = growth_json(s, v);
	j["reverting"] = v.reverting;
	j["verify"] = nullptr;
	if (const json &verify = soft_object(primary, "verify"); !verify.empty())
		j["verify"] = {{"total_blocks", soft_number(verify, "total_blocks")},
			       {"done_blocks", soft_number(verify, "done_blocks")},
			       {"differ_blocks", soft_number(verify, "differ_blocks")},
			       {"begun_ms", soft_number(verify, "begun_ms")}};
}

json snapshots_json(const State &s)
{
	json list = json::array();
	for (const auto &[sid, x] : s.snapshots) {
		json hosts = json::array();
		for (const SnapshotCopy &c : x.copies)
			hosts.push_back(s.host_name(c.host));
		list.push_back({{"name", x.name},
				{"uuid", x.uuid},
				{"sid", x.sid},
				{"set", x.set},
				{"volume", x.volume},
				{"volume_uuid", x.volume_uuid},
				{"group", x.group.empty() ? json(nullptr) : json(x.group)},
				{"labels", x.labels},
				{"size_bytes", x.size_bytes},
				{"created_ms", x.created_ms},
				{"phase", to_string(x.phase)},
				{"temporary", x.temporary},
				{"hosts", hosts}});
	}
	return list;
}

}    // namespace lockstep
