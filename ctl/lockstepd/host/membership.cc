// SPDX-License-Identifier: GPL-2.0-or-later
//
// How a host becomes a member: by founding a cluster, or by asking a member of one.
//
// The order of durable things: the host's UUID; (joining: the cluster's entry host.add, which is idempotent for that UUID); the
// raft directory; host.json. Whoever is killed in between repeats the command and ends up with the same ids. Once host.json
// is there the UUID file goes: a host that loses its host.json is a new host, since its old raft id has voted.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>

#include "lib/uuid.h"
#include "lockstepd/host/daemon.h"

namespace lockstep {

namespace {

constexpr uint64_t FOUND_PERIOD_MS = 2000;
constexpr unsigned ID_RANGE_END = LKS_MAX_HOSTS + 1;

std::string uuid_file(const HostConfig &config) { return config.state_dir + "/host-uuid"; }

Result<Nothing> make_state_dir(const HostConfig &config)
{
	std::error_code error;
	std::filesystem::create_directories(config.state_dir, error);
	if (error)
		return failed(fmt::format("cannot make {}: {}", config.state_dir, error.message()));
	return Nothing{};
}

}    // namespace

ConsensusOptions Daemon::consensus_options(const HostFile &file) const
{
	ConsensusOptions options;
	options.dir = raft_dir_of(config_.state_dir);
	options.self.raft_id = file.raft_id;
	options.self.host = file.host_id;
	for (const std::string &address : config_.addresses)
		options.self.addresses.push_back(with_port(address, config_.port));
	options.heartbeat_ms = config_.heartbeat_ms;
	options.election_ms = config_.election_ms;
	return options;
}

Result<std::string> Daemon::host_uuid() const
{
	if (Done made = make_state_dir(config_); !made)
		return made.error();
	std::string uuid;
	std::ifstream(uuid_file(config_)) >> uuid;
	if (valid_uuid(uuid))
		return uuid;
	uuid = make_uuid();
	if (Done stored = write_file_durably(uuid_file(config_), uuid + "\n"); !stored)
		return stored.error();
	return uuid;
}

nlohmann::json Daemon::self_json() const
{
	return {{"uuid", member_ ? member_->host_uuid : ""}, {"name", config_.name}, {"addresses", config_.addresses}, {"port", config_.port},
		{"level", LEVEL}};
}

void Daemon::init(const std::string &cluster_name, JsonReply done)
{
	if (member_)
		return done(forbidden(fmt::format("host {} is in cluster {} already", config_.name, member_->cluster_name)));
	auto uuid = host_uuid();
	if (!uuid)
		return done(uuid.error());
	HostFile file;
	file.cluster_uuid = make_uuid();
	file.cluster_name = cluster_name;
	file.host_uuid = *uuid;
	file.host_id = 1;
	file.raft_id = 1;
	file.name = config_.name;
	if (Done made = ConsensusLog::bootstrap(consensus_options(file)); !made)
		return done(made.error());
	if (Done stored = store_host_file(config_.state_dir, file); !stored)
		return done(stored.error());
	unlink(uuid_file(config_).c_str());
	if (Done served = serve(file); !served)
		return done(served.error());
	done(Json{{"host", file.host_id}, {"uuid", file.cluster_uuid}});
}

// The first entry of the log. Also when the daemon was killed between host.json and this entry.
void Daemon::found_cluster()
{
	if (member_->host_id != 1 || (founding_ms_ && Loop::now_ms() - founding_ms_ < FOUND_PERIOD_MS))
		return;
	founding_ms_ = Loop::now_ms();
	Json entry = {{"op", "cluster.init"}, {"uuid", member_->cluster_uuid}, {"name", member_->cluster_name}, {"host", self_json()},
		      {"now_ms", unix_ms()}};
	propose(std::move(entry), [this](Result<Json> answer) {
		if (!answer)
			loop_.log(fmt::format("cannot found the cluster: {}", answer.error().message));
	});
}

void Daemon::join(const std::string &address, unsigned port, JsonReply done)
{
	if (member_)
		return done(forbidden(fmt::format("host {} is in cluster {} already", config_.name, member_->cluster_name)));
	auto uuid = host_uuid();
	if (!uuid)
		return done(uuid.error());
	Json request = self_json();
	request["uuid"] = *uuid;
	dialer_.request({address}, port, Purpose::join, request, JOIN_TIMEOUT_MS,
			[this, uuid = *uuid, done = std::move(done)](Result<Json> answer) { joined(uuid, std::move(answer), done); });
}

void Daemon::joined(const std::string &uuid, Result<Json> answer, JsonReply done)
{
	if (!answer)
		return done(answer.error());
	if (member_)
		return done(forbidden(fmt::format("host {} is in cluster {} already", config_.name, member_->cluster_name)));
	HostFile file;
	std::vector<LinkPeer> peers;
	try {
		file.cluster_uuid = answer->at("uuid").get<std::string>();
		file.cluster_name = answer->at("name").get<std::string>();
		file.host_id = answer->at("host").get<int>();
		file.raft_id = answer->at("raft_id").get<uint64_t>();
		for (const Json &peer : answer->at("hosts")) {
			LinkPeer p = {peer.at("id").get<int>(), peer.at("name").get<std::string>(), {}};
			for (const Json &a : peer.at("addresses"))
				p.addresses.push_back(with_port(a.get<std::string>(), peer.at("port").get<unsigned>()));
			peers.push_back(std::move(p));
		}
	} catch (const Json::exception &e) {
		return done(failed(fmt::format("the answer to the join request is not understood: {}", e.what())));
	}
	if (!valid_uuid(file.cluster_uuid) || file.host_id < 1 || unsigned(file.host_id) >= ID_RANGE_END || !file.raft_id)
		return done(failed("the answer to the join request makes no sense"));
	file.host_uuid = uuid;
	file.name = config_.name;
	if (Done made = ConsensusLog::prepare_join(consensus_options(file)); !made)
		return done(made.error());
	if (Done stored = store_host_file(config_.state_dir, file); !stored)
		return done(stored.error());
	unlink(uuid_file(config_).c_str());
	first_peers_ = std::move(peers);
	if (Done served = serve(file); !served)
		return done(served.error());
	done(Json{{"host", file.host_id}, {"uuid", file.cluster_uuid}});
}

void Daemon::serve_join(Json request, JsonReply done)
{
	if (!member_ || !state_.initialized())
		return done(forbidden(fmt::format("host {} is in no cluster yet: run `lockstep cluster init` there first", config_.name)));
	if (!request.is_object())
		return done(usage_error("malformed join request"));
	Json entry = {{"op", "host.add"}, {"now_ms", unix_ms()}};
	for (const char *field : {"uuid", "name", "addresses", "port", "level"})
		if (request.contains(field))
			entry[field] = request[field];
	propose(std::move(entry), [this, done = std::move(done)](Result<Json> answer) {
		if (!answer)
			return done(answer.error());
		Json hosts = Json::array();
		for (const auto &[id, host] : state_.hosts)
			hosts.push_back({{"id", id}, {"name", host.name}, {"addresses", host.addresses}, {"port", host.port}});
		done(Json{{"uuid", state_.uuid}, {"name", state_.name}, {"host", answer->at("host")}, {"raft_id", answer->at("raft_id")},
			  {"hosts", hosts}});
	});
}

// The configuration may name other addresses than the cluster knows.
void Daemon::keep_address()
{
	const Host *me = state_.host(member_->host_id);
	if (!me || keeping_address_ || !reconciler_->synced() || (me->addresses == config_.addresses && me->port == config_.port))
		return;
	keeping_address_ = true;
	Json entry = {{"op", "host.set"}, {"host", member_->host_id}, {"addresses", config_.addresses}, {"port", config_.port}};
	propose(std::move(entry), [this](Result<Json> answer) {
		if (answer) {
			keeping_address_ = false;
			return;
		}
		// Refused: said once, since only a new configuration can help. Not answered: tried again.
		if (answer.error().status == Status::failed)
			keeping_address_ = false;
		else
			loop_.log(fmt::format("the cluster does not take this host's addresses: {}", answer.error().message));
	});
}

}    // namespace lockstep
