// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/api/metrics.h"

#include <fmt/format.h>

namespace lockstep {

using nlohmann::json;

namespace {

std::string escaped(const json &value)
{
	std::string out;
	for (char c : value.is_string() ? value.get<std::string>() : std::string()) {
		if (c == '\\' || c == '"')
			out += '\\';
		out += c == '\n' ? ' ' : c;
	}
	return out;
}

// One metric and its samples.
class Metric {
public:
	Metric(std::string &out, const char *name, const char *help) : out_(out), name_(name)
	{
		out_ += fmt::format("# HELP lockstep_{} {}\n# TYPE lockstep_{} gauge\n", name, help, name);
	}
	void sample(const std::string &labels, const json &value)
	{
		if (value.is_number())
			out_ += fmt::format("lockstep_{}{} {}\n", name_, labels.empty() ? "" : "{" + labels + "}", value.dump());
		else if (value.is_boolean())
			sample(labels, json(value.get<bool>() ? 1 : 0));
	}

private:
	std::string &out_;
	const char *name_;
};

std::string label(const char *name, const json &value) { return fmt::format("{}=\"{}\"", name, escaped(value)); }

void hosts(std::string &out, const json &status)
{
	Metric online(out, "host_online", "1 if the host is online");
	for (const json &h : status["hosts"])
		online.sample(label("host", h["name"]), h["status"] == "online");
	Metric evicted(out, "host_evicted", "1 if the host has been away too long and is given up");
	for (const json &h : status["hosts"])
		evicted.sample(label("host", h["name"]), h["status"] == "evicted");
	Metric replicas(out, "host_replicas", "Replicas on the host");
	for (const json &h : status["hosts"])
		replicas.sample(label("host", h["name"]), h["replicas"]);
}

void pools(std::string &out, const json &status)
{
	const std::tuple<const char *, const char *, const char *> fields[] = {
		{"pool_size_bytes", "size_bytes", "Size of the volume group or thin pool"},
		{"pool_free_bytes", "free_bytes", "Bytes not used"},
		{"pool_reserved_bytes", "reserved_bytes", "Bytes promised to replicas, written or not"},
		{"pool_used_percent", "used_percent", "Used part of the pool, or of its metadata if that is more"}};
	for (auto [name, field, help] : fields) {
		Metric metric(out, name, help);
		for (const json &p : status["pools"])
			metric.sample(label("pool", p["name"]) + "," + label("host", p["host"]), p[field]);
	}
}

void volumes(std::string &out, const json &status)
{
	Metric health(out, "volume_health", "1 for the health that the volume has");
	for (const json &v : status["volumes"])
		for (const char *h : {"ok", "syncing", "degraded", "frozen", "offline"})
			health.sample(label("volume", v["name"]) + "," + label("health", h), v["health"] == h);
	Metric size(out, "volume_size_bytes", "Size of the volume");
	for (const json &v : status["volumes"])
		size.sample(label("volume", v["name"]), v["size_bytes"]);
	Metric redundancy(out, "volume_redundancy", "Replicas wanted");
	for (const json &v : status["volumes"])
		redundancy.sample(label("volume", v["name"]), v["redundancy"]);
	Metric incarnation(out, "volume_incarnation", "Times that a last resort may have lost unflushed writes");
	for (const json &v : status["volumes"])
		incarnation.sample(label("volume", v["name"]), v["record"]["incarnation"]);
	Metric version(out, "volume_version", "Changes of the record of who holds a good copy");
	for (const json &v : status["volumes"])
		version.sample(label("volume", v["name"]), v["record"]["version"]);
	Metric in_sync(out, "replica_in_sync", "1 if the replica is a good copy on a host that is online");
	for (const json &v : status["volumes"])
		for (const json &r : v["replicas"])
			in_sync.sample(label("volume", v["name"]) + "," + label("host", r["host"]), r["state"] == "insync" && r["online"] == true);
	Metric dirty(out, "replica_dirty_bytes", "Bytes that the replica lacks, where known");
	for (const json &v : status["volumes"])
		for (const json &r : v["replicas"])
			dirty.sample(label("volume", v["name"]) + "," + label("host", r["host"]), r["dirty_bytes"]);
}

}    // namespace

std::string metrics_text(const json &status)
{
	std::string out;
	const bool member = !status["cluster"].is_null();
	Metric(out, "quorum", "1 if this host knows of a leader").sample("", member && status["cluster"]["quorum"] == true);
	Metric(out, "module_ok", "1 if the kernel module answers").sample("", status["module_error"] == "");
	Metric(out, "log_index", "Entries of the log that this host has applied").sample("", status["applied"]);
	hosts(out, status);
	pools(out, status);
	volumes(out, status);
	return out;
}

}    // namespace lockstep
