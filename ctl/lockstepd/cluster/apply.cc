// SPDX-License-Identifier: GPL-2.0-or-later
//
// The commands for the cluster, hosts, pools and the life of volumes; see the table in state.h.
#include "lockstepd/cluster/internal.h"

#include "lib/units.h"
#include "lib/uuid.h"

#include <algorithm>
#include <stdexcept>

namespace lockstep {

using nlohmann::json;

namespace cluster {

// ---- fields --------------------------------------------------------------------------------------------------------

Fields::Fields(const json &object) : object_(object)
{
	if (!object.is_object())
		refuse(usage_error("the entry is not an object"));
}

const json &Fields::at(const char *name) const
{
	auto it = object_.find(name);
	if (it == object_.end())
		refuse(usage_error(std::string("the field \"") + name + "\" is missing"));
	return *it;
}

uint64_t Fields::number(const char *name, uint64_t most) const
{
	const json &v = at(name);
	bool fits = v.is_number_unsigned() || (v.is_number_integer() && v.get<int64_t>() >= 0);
	if (!fits || v.get<uint64_t>() > most)
		refuse(usage_error(std::string("the field \"") + name + "\" is not a number from 0 to " + std::to_string(most)));
	return v.get<uint64_t>();
}

uint64_t Fields::number_or(const char *name, uint64_t otherwise, uint64_t most) const
{
	return has(name) ? number(name, most) : otherwise;
}

bool Fields::flag(const char *name) const
{
	const json &v = at(name);
	if (!v.is_boolean())
		refuse(usage_error(std::string("the field \"") + name + "\" is not true or false"));
	return v.get<bool>();
}

namespace {

std::string printable(const json &v, const char *name, size_t most)
{
	const std::string *s = v.is_string() ? v.get_ptr<const std::string *>() : nullptr;
	auto plain = [](char c) { return c >= 0x20 && c < 0x7f; };
	if (!s || s->size() > most || !std::all_of(s->begin(), s->end(), plain))
		refuse(usage_error(std::string("the field \"") + name + "\" is not a text of at most " + std::to_string(most) +
				   " ASCII characters"));
	return *s;
}

}    // namespace

std::string Fields::text(const char *name, size_t most) const { return printable(at(name), name, most); }

std::string Fields::message(const char *name) const
{
	const json &v = at(name);
	if (!v.is_string())
		refuse(usage_error(std::string("the field \"") + name + "\" is not a text"));
	std::string s = v.get<std::string>().substr(0, 1000);
	for (char &c : s)
		if (c < 0x20 || c >= 0x7f)
			c = c == '\n' || c == '\t' ? ' ' : '?';
	return s;
}

std::string Fields::name(const char *name) const
{
	std::string s = text(name);
	if (!valid_name(s))
		refuse(usage_error("\"" + s + "\" is no valid name: use up to 63 letters, digits, \".\", \"_\" and \"-\", beginning with a letter or digit"));
	return s;
}

std::string Fields::uuid(const char *name) const
{
	std::string s = text(name);
	if (!valid_uuid(s))
		refuse(usage_error("\"" + s + "\" is no UUID"));
	return s;
}

HostId Fields::host(const char *name) const
{
	uint64_t n = number(name, LKS_MAX_HOSTS);
	if (!n)
		refuse(usage_error(std::string("the field \"") + name + "\" is 0, hosts are 1 to 64"));
	return HostId(n);
}

std::vector<HostId> Fields::hosts(const char *name) const
{
	const json &list = at(name);
	if (!list.is_array() || list.size() > LKS_MAX_HOSTS)
		refuse(usage_error(std::string("the field \"") + name + "\" is not a list of hosts"));
	std::set<HostId> ids;
	for (const json &v : list) {
		bool fits = v.is_number_integer() && v.get<int64_t>() >= 1 && v.get<int64_t>() <= LKS_MAX_HOSTS;
		if (!fits || !ids.insert(v.get<HostId>()).second)
			refuse(usage_error(std::string("the field \"") + name + "\" is not a list of distinct hosts"));
	}
	return {ids.begin(), ids.end()};
}

std::string Fields::hex(const char *name, size_t digits) const
{
	std::string s = text(name);
	if (s.size() != digits || s.find_first_not_of("0123456789abcdef") != std::string::npos)
		refuse(usage_error(std::string("the field \"") + name + "\" is not " + std::to_string(digits) + " hexadecimal digits"));
	return s;
}

std::string Fields::pem(const char *name) const
{
	const json &v = at(name);
	const std::string *s = v.is_string() ? v.get_ptr<const std::string *>() : nullptr;
	auto plain = [](char c) { return (c >= 0x20 && c < 0x7f) || c == '\n'; };
	if (!s || s->size() > PEM_MAX_BYTES || !s->starts_with("-----BEGIN ") || !std::all_of(s->begin(), s->end(), plain))
		refuse(usage_error(std::string("the field \"") + name + "\" is no PEM text"));
	return *s;
}

std::vector<std::string> Fields::texts(const char *name, size_t most) const
{
	const json &list = at(name);
	if (!list.is_array() || list.empty() || list.size() > most)
		refuse(usage_error(std::string("the field \"") + name + "\" is not a list of 1 to " + std::to_string(most) + " texts"));
	std::vector<std::string> texts;
	for (const json &v : list) {
		texts.push_back(printable(v, name, 64));
		if (texts.back().empty())
			refuse(usage_error(std::string("the field \"") + name + "\" holds an empty text"));
	}
	return texts;
}

std::vector<uint64_t> Fields::numbers(const char *name, size_t most) const
{
	const json &list = at(name);
	auto fits = [](const json &v) { return v.is_number_integer() && v.get<int64_t>() >= 0; };
	if (!list.is_array() || list.empty() || list.size() > most || !std::all_of(list.begin(), list.end(), fits))
		refuse(usage_error(std::string("the field \"") + name + "\" is not a list of 1 to " + std::to_string(most) + " numbers"));
	return list.get<std::vector<uint64_t>>();
}

Fields Fields::object(const char *name) const { return Fields(at(name)); }

// ---- what all commands use -----------------------------------------------------------------------------------------

json done(bool changed) { return {{"ok", true}, {"changed", changed}}; }

const Host &host_of(const State &state, const Fields &f)
{
	HostId id = f.host();
	const Host *host = state.host(id);
	if (!host)
		refuse(coded("no-such-host", not_found("the cluster has no host " + std::to_string(id))));
	return *host;
}

const Volume &volume_of(const State &state, const Fields &f)
{
	uint64_t vid = f.number("vid", UINT32_MAX);
	const Volume *volume = state.volume(uint32_t(vid));
	if (!volume)
		refuse(coded("no-such-volume", not_found("there is no volume with vid " + std::to_string(vid))));
	return *volume;
}

void replace(State &state, Volume next)
{
	if (std::string broken = check_volume(next); !broken.empty())
		refuse(failed("volume " + next.name + ": the change would break an invariant: " + broken));
	uint32_t vid = next.vid;
	state.volumes.at(vid) = std::move(next);
}

void remember_failure(State &state, const Volume &v, const std::string &message)
{
	state.failures[v.vid] = {v.name, message, int(Status::failed)};
	while (state.failures.size() > MAX_FAILURES)
		state.failures.erase(state.failures.begin());
}

bool bury(State &state, uint32_t vid)
{
	if (!state.volumes.at(vid).hosts_with_something().empty())
		return false;
	state.volumes.erase(vid);
	return true;
}

namespace {

void make_tombstone(State &state, const Volume &v, const std::string &failure)
{
	Volume next = v;
	next.phase = Phase::deleting;
	next.failure = failure;
	next.primary = 0;
	next.openers.clear();
	next.rules = {};
	next.version++;
	replace(state, std::move(next));
	forget_in_rules(state, v.vid);
}

}    // namespace

void roll_back(State &state, const Volume &v, const std::string &message)
{
	Volume copy = v;
	make_tombstone(state, copy, message);
	remember_failure(state, copy, message);
}

namespace {

// ---- cluster and hosts ---------------------------------------------------------------------------------------------

}    // namespace

Host host_fields(const Fields &f, uint64_t now_ms)
{
	Host h;
	h.uuid = f.uuid("uuid");
	h.name = f.name("name");
	h.addresses = f.texts("addresses", MAX_ADDRESSES);
	h.port = unsigned(f.number_or("port", DEFAULT_PORT, MAX_PORT));
	h.level = uint32_t(f.number_or("host_level", 1, UINT32_MAX));
	if (f.has("key"))
		h.key = f.hex("key", 64);
	h.witness = f.has("witness") && f.flag("witness");
	h.since_ms = now_ms;
	return h;
}

namespace {

json host_answer(const Host &h, bool changed)
{
	json answer = done(changed);
	answer["host"] = h.id;
	answer["raft_id"] = h.raft_id;
	return answer;
}

// Two hosts that claim one address would be dialled as each other.
void refuse_shared_address(const State &state, const Host &h)
{
	for (const auto &[id, other] : state.hosts)
		for (const std::string &a : other.addresses)
			if (id != h.id && other.port == h.port && std::count(h.addresses.begin(), h.addresses.end(), a))
				refuse(forbidden("address " + a + " port " + std::to_string(h.port) + " belongs to host " + other.name +
						 " already: give " + h.name + " an address of its own"));
}

json add_host(State &state, Host h)
{
	if (const Host *known = state.host_with_uuid(h.uuid)) {
		if (known->key != h.key)
			refuse(forbidden("host " + known->name + " is a member already, with another key: remove it first"));
		return host_answer(*known, false);
	}
	if (const Host *known = state.host_named(h.name))
		refuse(forbidden("the cluster has a host named " + h.name + " already (host " + std::to_string(known->id) +
				 "): set another name in lockstep.yaml"));
	if (state.next_host > LKS_MAX_HOSTS)
		refuse(forbidden("host " + h.name + " cannot join: all " + std::to_string(LKS_MAX_HOSTS) + " host ids have been used"));
	if (h.level < state.level)
		refuse(forbidden("host " + h.name + " cannot join: its lockstepd is too old for this cluster (feature level " + std::to_string(h.level) +
				 ", needed is " + std::to_string(state.level) + "): update it"));
	refuse_shared_address(state, h);
	h.id = HostId(state.next_host++);
	h.raft_id = state.next_raft_id++;
	state.hosts[h.id] = h;
	return host_answer(h, true);
}

json cluster_init(State &state, const Fields &f)
{
	std::string uuid = f.uuid("uuid"), name = f.name("name");
	Host h = host_fields(f.object("host"), f.number("now_ms"));
	if (state.initialized() && state.uuid != uuid)
		refuse(forbidden("this is cluster " + state.name + " already"));
	if (state.initialized())
		return host_answer(state.hosts.begin()->second, false);
	Authority authority;
	if (f.has("authority"))
		authority = {f.object("authority").pem("cert"), f.object("authority").pem("key")};
	state.uuid = uuid;
	state.name = name;
	state.authority = authority;
	return add_host(state, std::move(h));
}

void drop_ended_tokens(State &state, uint64_t now_ms)
{
	std::erase_if(state.tokens, [&](const auto &entry) { return entry.second.end_ms <= now_ms; });
}

json token_add(State &state, const Fields &f)
{
	const std::string hash = f.hex("hash", 64);
	const uint64_t now_ms = f.number("now_ms"), end_ms = f.number("end_ms");
	if (end_ms <= now_ms)
		refuse(usage_error("the token would have ended already"));
	if (state.tokens.contains(hash))
		return done(false);
	const auto lives = [&](const auto &entry) { return entry.second.end_ms > now_ms; };
	if (size_t(std::ranges::count_if(state.tokens, lives)) >= MAX_TOKENS)
		refuse(forbidden("there are " + std::to_string(MAX_TOKENS) + " join tokens already: wait until some have ended"));
	drop_ended_tokens(state, now_ms);
	state.tokens[hash] = {end_ms, ""};
	return done();
}

json host_add(State &state, const Fields &f)
{
	const uint64_t now_ms = f.number("now_ms");
	Host h = host_fields(f, now_ms);
	const std::string hash = f.has("token") ? f.hex("token", 64) : "";
	const std::string uuid = h.uuid;
	const auto token = state.tokens.find(hash);
	const bool known = state.host_with_uuid(uuid) != nullptr;
	const bool invited = token != state.tokens.end() && token->second.end_ms > now_ms &&
			     (token->second.used_by.empty() || token->second.used_by == uuid);
	if (!known && !invited && !state.authority.cert.empty())
		refuse(forbidden("host " + h.name + " cannot join: the token is not of this cluster, was used, or has ended; make another with "
				 "`lockstep cluster token`"));
	json answer = add_host(state, std::move(h));
	if (known)
		return answer;
	if (invited)
		token->second.used_by = uuid;
	drop_ended_tokens(state, now_ms);
	return answer;
}

json host_set(State &state, const Fields &f)
{
	Host next = host_of(state, f);
	next.addresses = f.texts("addresses", MAX_ADDRESSES);
	next.port = unsigned(f.number_or("port", next.port, MAX_PORT));
	next.level = uint32_t(f.number_or("host_level", next.level, UINT32_MAX));
	refuse_shared_address(state, next);
	bool changed = next != *state.host(next.id);
	state.hosts[next.id] = next;
	return done(changed);
}

json host_net(State &state, const Fields &f)
{
	Host next = host_of(state, f);
	const std::string verb = f.text("verb"), address = f.text("address", 64);
	const auto at = std::ranges::find(next.addresses, address);
	const bool there = at != next.addresses.end();
	if (verb == "add") {
		if (there)
			return done(false);
		if (next.addresses.size() >= MAX_ADDRESSES)
			refuse(forbidden("host " + next.name + " has " + std::to_string(MAX_ADDRESSES) + " addresses already: remove one first"));
		next.addresses.push_back(address);
	} else if (verb == "remove") {
		if (!there)
			return done(false);
		if (next.addresses.size() == 1)
			refuse(forbidden(address + " is the only address of host " + next.name + ": add another first"));
		next.addresses.erase(at);
	} else if (verb == "prefer") {
		if (!there)
			refuse(not_found("host " + next.name + " has no address " + address + ": add it first"));
		std::rotate(next.addresses.begin(), at, at + 1);
	} else {
		refuse(usage_error("unknown verb \"" + verb + "\""));
	}
	refuse_shared_address(state, next);
	const bool changed = next != *state.host(next.id);
	state.hosts[next.id] = next;
	return done(changed);
}

json host_status(State &state, const Fields &f)
{
	HostId id = host_of(state, f).id;
	bool online = f.flag("online");
	uint64_t now_ms = f.number("now_ms");
	Host &h = state.hosts[id];
	if (h.online == online)
		return done(false);
	h.online = online;
	h.since_ms = now_ms;
	h.evicted = false;
	h.away_ms = 0;
	for (auto &[vid, v] : state.volumes)
		v.shunned.erase(id);    // whatever was wrong there may be over
	return done();
}

// ---- pools ---------------------------------------------------------------------------------------------------------

constexpr uint64_t MAX_POOL_BYTES = 1ull << 60;

}    // namespace

std::string lvm_name(const Fields &f, const char *field)
{
	std::string s = f.text(field, 127);
	auto fits = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '+' || c == '_' || c == '.' || c == '-'; };
	if (s.empty() || s[0] == '-' || !std::all_of(s.begin(), s.end(), fits))
		refuse(usage_error("\"" + s + "\" is no valid LVM name"));
	return s;
}

namespace {

void pool_numbers(const Fields &f, Pool &p)
{
	p.size_bytes = f.number("size_bytes", MAX_POOL_BYTES);
	p.free_bytes = f.number("free_bytes", MAX_POOL_BYTES);
	p.metadata_percent = unsigned(f.number_or("metadata_percent", p.metadata_percent, 100));
	if (!p.size_bytes || p.free_bytes > p.size_bytes)
		refuse(usage_error("pool " + p.name + ": its size is 0, or less than what is free"));
}

}    // namespace

json pool_add(State &state, const Fields &f)
{
	const Host &h = host_of(state, f);
	Pool p;
	p.name = f.name("name");
	p.host = h.id;
	if (h.witness)
		refuse(forbidden("host " + h.name + " is a witness: it has no pools"));
	std::string kind = f.text("kind");
	if (kind != "thick" && kind != "thin")
		refuse(usage_error("pool " + p.name + ": its kind must be thick or thin"));
	p.kind = kind == "thick" ? PoolKind::thick : PoolKind::thin;
	p.vg = lvm_name(f, "vg");
	if (p.kind == PoolKind::thin)
		p.thin_lv = lvm_name(f, "thin_lv");
	pool_numbers(f, p);
	for (const auto &[key, known] : state.pools) {
		if (known.host != p.host)
			continue;
		bool same_place = known.vg == p.vg && known.thin_lv == p.thin_lv;
		if (known.deleting && (known.name == p.name || same_place))
			refuse(forbidden("pool " + known.name + " on host " + h.name + " is just being deleted: try again in a moment"));
		if (known.name == p.name && same_place)
			return done(false);
		if (known.name == p.name)
			refuse(forbidden("host " + h.name + " has a pool named " + p.name + " already, on " + known.vg +
					 (known.thin_lv.empty() ? "" : "/" + known.thin_lv)));
		// A thin pool inside a volume group that is a thick pool is fine: LVM keeps them apart.
		if (same_place)
			refuse(forbidden(p.vg + (p.thin_lv.empty() ? "" : "/" + p.thin_lv) + " on host " + h.name + " is pool " +
					 known.name + " already"));
	}
	state.pools[{p.name, p.host}] = p;
	return done();
}

namespace {

json pool_report(State &state, const Fields &f)
{
	const Host &h = host_of(state, f);
	std::string name = f.name("name");
	const Pool *known = state.pool(name, h.id);
	if (!known)
		refuse(coded("no-such-pool", not_found("host " + h.name + " has no pool named " + name)));
	Pool next = *known;
	pool_numbers(f, next);
	if (f.has("disks"))
		next.disks = pool_disks(f);
	bool changed = next != *known;
	state.pools[{next.name, next.host}] = next;
	return done(changed);
}

// ---- volumes -------------------------------------------------------------------------------------------------------

}    // namespace

uint32_t free_minor(const State &state)
{
	std::set<uint32_t> used;
	for (const auto &[vid, v] : state.volumes)
		used.insert(v.minor);
	uint32_t minor = 0;
	for (uint32_t m : used) {
		if (m != minor)
			break;
		minor++;
	}
	if (minor >= LKS_MAX_MINORS)
		refuse(forbidden("all " + std::to_string(LKS_MAX_MINORS) + " device numbers are in use: delete volumes"));
	return minor;
}

namespace {

Wanted wanted_fields(const Fields &f, const Group *group)
{
	Wanted w;
	w.name = f.text("name");
	if (!valid_volume_name(w.name))
		refuse(usage_error("\"" + w.name + "\" is no valid volume name: use up to 127 letters, digits, \".\", \"_\" and \"-\", "
				   "beginning with a letter or digit"));
	w.size_bytes = f.number("size_bytes");
	if (!w.size_bytes)
		refuse(usage_error("volume " + w.name + ": its size is 0"));
	if (w.size_bytes % 4096)
		refuse(usage_error("volume " + w.name + ": its size must be a multiple of 4096 bytes, " + std::to_string(w.size_bytes) +
				   " is not"));
	if (w.size_bytes > MAX_VOLUME_BYTES)
		refuse(usage_error("volume " + w.name + ": its size is above the limit of " + format_bytes(MAX_VOLUME_BYTES)));
	w.block_size = uint32_t(f.number_or("block_size", LKS_BLOCK_DEFAULT, LKS_BLOCK_MAX));
	if (w.block_size < LKS_BLOCK_MIN || (w.block_size & (w.block_size - 1)))
		refuse(usage_error("volume " + w.name + ": its block size must be a power of two from 4 KiB to 1 MiB"));
	w.pool = group && !f.has("pool") ? group->pool : f.name("pool");
	if (f.has("hosts"))
		w.hosts = f.hosts("hosts");
	w.redundancy = unsigned(f.number_or("redundancy", !w.hosts.empty() ? w.hosts.size() : group ? group->redundancy : DEFAULT_REDUNDANCY, UINT32_MAX));
	if (w.redundancy < 1 || w.redundancy > LKS_MAX_REPLICAS)
		refuse(usage_error("volume " + w.name + ": its redundancy must be 1 to " + std::to_string(LKS_MAX_REPLICAS)));
	if (!w.hosts.empty() && w.hosts.size() != w.redundancy)
		refuse(usage_error("volume " + w.name + ": redundancy " + std::to_string(w.redundancy) + " needs as many hosts, " +
				   std::to_string(w.hosts.size()) + " named"));
	return w;
}

uint8_t class_of(const Fields &f)
{
	std::string text = f.has("class") ? f.text("class") : "exclusive";
	if (text != "exclusive" && text != "shared")
		refuse(usage_error("the class of a volume is exclusive or shared, not \"" + text + "\""));
	return text == "shared" ? LKS_SHARED : LKS_EXCLUSIVE;
}

json volume_create(State &state, const Fields &f)
{
	const Group *group = f.has("group") ? &group_of(state, f.name("group")) : nullptr;
	Wanted w = wanted_fields(f, group);
	std::string uuid = f.uuid("uuid");
	Labels labels;
	if (f.has("labels"))
		change_labels(labels, f.labels("labels"), "volume " + w.name);
	if (const Volume *known = state.volume_named(w.name))
		refuse(coded("name-taken", forbidden("there is a volume named " + w.name + " already" +
				 (known->phase == Phase::creating ? ", just being created" : "") + ": choose another name")));
	for (const auto &[vid, v] : state.volumes)
		if (v.uuid == uuid)
			refuse(forbidden("volume " + w.name + ": its UUID belongs to volume " + v.name));
	const Rules own = f.has("rules") ? rules_fields(state, f, {}, true) : Rules();
	w.rules = merged(own, group ? group->rules : Rules());
	std::vector<HostId> hosts = place(state, w);
	Volume v;
	v.rules = own;
	v.minor = free_minor(state);
	if (state.next_vid == UINT32_MAX)
		refuse(forbidden("volume " + w.name + ": all volume ids have been used"));
	v.vid = state.next_vid;
	v.uuid = uuid;
	v.name = w.name;
	v.size_bytes = w.size_bytes;
	v.block_size = w.block_size;
	v.redundancy = w.redundancy;
	v.group = group ? group->name : "";
	v.labels = std::move(labels);
	v.cls = class_of(f);
	if (f.has("no_quorum"))
		v.no_quorum = no_quorum_of(f);
	for (HostId h : hosts)
		v.replicas.push_back({.host = h, .since = v.version, .pool = w.pool, .md_offset = w.size_bytes});
	if (std::string broken = check_volume(v); !broken.empty())
		refuse(failed("volume " + v.name + ": " + broken));
	state.next_vid++;
	json answer = done();
	answer["vid"] = v.vid;
	answer["minor"] = v.minor;
	answer["hosts"] = hosts;
	state.volumes[v.vid] = std::move(v);
	return answer;
}

}    // namespace

bool ready_if_made(Volume &next)
{
	if (!std::ranges::all_of(next.replicas, [](const Replica &x) { return x.created; }))
		return false;
	next.phase = Phase::ready;
	next.source = 0;
	next.reverting = false;
	next.adopts.clear();
	return true;
}

namespace {

json replica_created(State &state, const Fields &f)
{
	const Host &h = host_of(state, f);
	Volume next = volume_of(state, f);
	if (next.phase == Phase::deleting)
		refuse(forbidden("volume " + next.name + " is being deleted"));
	Replica *r = next.replica(h.id);
	if (!r)
		refuse(coded("no-such-replica", not_found("volume " + next.name + " has no replica on host " + h.name)));
	bool changed = !r->created;
	r->created = true;
	ready_if_made(next);
	json answer = done(changed);
	answer["phase"] = to_string(next.phase);
	replace(state, std::move(next));
	return answer;
}

json replica_failed(State &state, const Fields &f)
{
	const Host &h = host_of(state, f);
	const Volume &v = volume_of(state, f);
	std::string message = f.message("message");
	if (v.phase == Phase::deleting)
		return done(false);
	if (!v.replica(h.id))
		refuse(coded("no-such-replica", not_found("volume " + v.name + " has no replica on host " + h.name)));
	if (v.reverting && f.has("reverting") && f.flag("reverting") && !v.replica(h.id)->created && can_revert_without(v, h.id)) {
		Volume next = v;
		next.version++;
		give_up_copies_beside(state, v, h.id);
		move_to_remnants(next, h.id);
		next.shunned.insert(h.id);
		ready_if_made(next);
		remember_failure(state, v, message);
		replace(state, std::move(next));
		return done();
	}
	if (!v.may_be_rolled_back())
		refuse(forbidden("volume " + v.name + " is being " + (v.reverting ? "reverted" : "adopted") + " and is not given up: " + message));
	if (v.phase == Phase::creating)
		roll_back(state, v, message);
	else if (!v.replica(h.id)->created)
		take_back(state, v, h.id, message);
	else
		refuse(forbidden("volume " + v.name + " is no longer being created"));
	return done();
}

json volume_abort(State &state, const Fields &f)
{
	const Volume &v = volume_of(state, f);
	std::string message = f.message("message");
	if (v.phase == Phase::deleting)
		return done(false);
	if (v.phase != Phase::creating)
		refuse(forbidden("volume " + v.name + " has been created meanwhile"));
	if (!v.may_be_rolled_back())
		refuse(forbidden("volume " + v.name + " is being " + (v.reverting ? "reverted" : "adopted") + " and is not given up"));
	roll_back(state, v, message);
	return done();
}

json volume_delete(State &state, const Fields &f)
{
	std::string name = f.has("vid") ? "" : f.text("name");
	const Volume *v = f.has("vid") ? &volume_of(state, f) : state.volume_named(name);
	if (!v)
		refuse(coded("no-such-volume", not_found("there is no volume named " + name)));
	json answer = done(v->phase != Phase::deleting);
	answer["vid"] = v->vid;
	if (v->phase == Phase::deleting)
		return answer;
	if (!v->openers.empty() && !(f.has("force") && f.flag("force")))
		refuse(coded("volume-open", forbidden("volume " + v->name + " is open on host " + state.host_name(v->openers[0].host) +
				 ": close it there before deleting it, or delete it with --force")));
	refuse_snapshots_in_the_way(state, *v);
	if (v->phase == Phase::creating)
		roll_back(state, *v, "volume " + v->name + " was deleted while it was being created");
	else
		make_tombstone(state, Volume(*v), "");
	return answer;
}

json replica_deleted(State &state, const Fields &f)
{
	HostId host = host_of(state, f).id;
	uint32_t vid = uint32_t(f.number("vid", UINT32_MAX));
	const Volume *v = state.volume(vid);
	json answer = done(false);
	answer["gone"] = !v;
	if (!v)
		return answer;
	if (v->phase != Phase::deleting)
		refuse(forbidden("volume " + v->name + " is not being deleted"));
	Volume next = *v;
	size_t replicas = std::erase_if(next.replicas, [&](const Replica &r) { return r.host == host; });
	size_t remnants = std::erase_if(next.remnants, [&](const Remnant &r) { return r.host == host; });
	answer["changed"] = replicas + remnants + next.devices.erase(host) > 0;
	replace(state, std::move(next));
	answer["gone"] = bury(state, vid);
	return answer;
}

json device_ready(State &state, const Fields &f)
{
	HostId host = host_of(state, f).id;
	Volume next = volume_of(state, f);
	if (next.phase != Phase::ready)
		refuse(forbidden("volume " + next.name + " is " + to_string(next.phase)));
	if (!state.host(host)->has_devices())
		refuse(forbidden("host " + state.host_name(host) + (state.host(host)->witness ? " is a witness" : " is being removed")));
	bool changed = next.devices.insert(host).second;
	replace(state, std::move(next));
	return done(changed);
}

json dispatch(State &state, const json &entry)
{
	Fields f(entry);
	std::string op = f.text("op");
	if (op == "cluster.init")
		return cluster_init(state, f);
	if (op == "cluster.rebuild")
		return cluster_rebuild(state, f);
	if (!state.initialized())
		refuse(coded("no-cluster", forbidden("there is no cluster yet")));
	if (op.starts_with("record."))
		return apply_record(state, op, f);
	if (op.starts_with("snapshot."))
		return apply_snapshot(state, op, f);
	static const std::map<std::string, json (*)(State &, const Fields &)> commands = {
		{"token.add", token_add},
		{"host.add", host_add},
		{"host.rejoin", host_rejoin},
		{"cluster.recover", cluster_recover},
		{"client.add", client_add},
		{"client.remove", client_remove},
		{"host.set", host_set},
		{"host.net", host_net},
		{"host.status", host_status},
		{"pool.add", pool_add},
		{"pool.report", pool_report},
		{"pool.mend", pool_mend},
		{"pool.mended", pool_mended},
		{"pool.delete", pool_delete},
		{"pool.deleted", pool_deleted},
		{"volume.create", volume_create},
		{"volume.adopt", volume_adopt},
		{"replica.created", replica_created},
		{"replica.failed", replica_failed},
		{"volume.abort", volume_abort},
		{"volume.set", volume_set},
		{"volume.primary", volume_primary},
		{"volume.resize", volume_resize},
		{"volume.grown", volume_grown},
		{"replica.moved", replica_moved},
		{"replica.grown", replica_grown},
		{"volume.delete", volume_delete},
		{"replica.deleted", replica_deleted},
		{"device.ready", device_ready},
		{"group.create", group_create},
		{"group.delete", group_delete},
		{"group.label", group_label},
		{"group.rules", group_rules},
		{"group.redundancy", group_redundancy},
		{"group.spread", group_spread},
		{"volume.label", volume_label},
	};
	auto it = commands.find(op);
	Command command = it != commands.end() ? it->second : replica_command(op);
	if (!command)
		command = host_command(op);
	if (!command)
		refuse(usage_error("unknown operation \"" + op + "\""));
	return command(state, f);
}

json refusal(const Error &error)
{
	return {{"ok", false}, {"status", int(error.status)}, {"code", code_of(error)}, {"message", error.message}};
}

}    // namespace

}    // namespace cluster

json apply(State &state, uint64_t index, const json &entry)
{
	using namespace cluster;
	if (index <= state.applied)
		return refusal(failed("entry " + std::to_string(index) + " has been applied already"));
	try {
		Fields f(entry);
		const uint64_t level = std::max<uint64_t>(f.number_or("level", 1, UINT32_MAX), level_of(entry));
		if (level > LEVEL)
			throw std::runtime_error("the log holds an entry of feature level " + std::to_string(level) + ", this lockstepd understands " +
						 std::to_string(LEVEL) + ": update it");
		state.applied = index;
		json answer = dispatch(state, entry);
		state.level = std::max(state.level, uint32_t(level));
		return answer;
	} catch (const Refusal &r) {
		state.applied = index;
		return refusal(r.error);
	}
}

}    // namespace lockstep
