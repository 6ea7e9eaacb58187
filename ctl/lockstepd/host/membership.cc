// SPDX-License-Identifier: GPL-2.0-or-later
//
// How a host becomes a member: by founding a cluster, or by asking a member of one.
//
// The order of durable things: the host's UUID and private key; (joining: the cluster's entry host.add, which is idempotent for
// these); the certificate; the raft directory; host.json. Whoever is killed in between repeats the command and ends up with the same ids. Once host.json
// is there the UUID file goes: a host that loses its host.json is a new host, since its old raft id has voted.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>

#include "lib/uuid.h"
#include "lockstepd/host/daemon.h"
#include "lockstepd/host/keys.h"

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
	// The log in it holds the key of the cluster's authority.
	if (chmod(config.state_dir.c_str(), 0700) != 0)
		return failed(fmt::format("cannot restrict access to {}: {}", config.state_dir, strerror(errno)));
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
	Json self = {{"uuid", member_ ? member_->host_uuid : ""}, {"name", config_.name}, {"addresses", config_.addresses}, {"port", config_.port},
		     {"level", 1}, {"host_level", LEVEL}};    // level: the entry's, made of this by whoever takes us in
	if (config_.witness)
		self["witness"] = true;
	return self;
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
	const Authority authority = make_authority(file.cluster_uuid);
	auto key = own_key(config_.state_dir);
	if (!key)
		return done(key.error());
	auto cert = issue_certificate(authority, *public_key_of(*key), {file.cluster_uuid, file.host_id, file.raft_id},
				      int64_t(unix_ms() / 1000) + HOST_CERT_SECONDS);
	if (!cert)
		return done(cert.error());
	if (Done stored = store_authority(config_.state_dir, authority); !stored)
		return done(stored.error());
	if (Done stored = store_certificate(config_.state_dir, authority.cert, *cert); !stored)
		return done(stored.error());
	if (Done known = take_identity(); !known)
		return done(known.error());
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
	const auto authority = load_authority(config_.state_dir);
	const auto key = own_key(config_.state_dir);
	if (!authority || !key) {
		loop_.log(fmt::format("cannot found the cluster: {}", (authority ? key.error() : authority.error()).message));
		return;
	}
	Json host = self_json();
	host["key"] = *key_digest(*public_key_of(*key));
	Json entry = {{"op", "cluster.init"}, {"uuid", member_->cluster_uuid}, {"name", member_->cluster_name}, {"host", host},
		      {"authority", {{"cert", authority->cert}, {"key", authority->key}}}, {"now_ms", unix_ms()}};
	propose(std::move(entry), [this](Result<Json> answer) {
		if (!answer)
			loop_.log(fmt::format("cannot found the cluster: {}", answer.error().message));
	});
}

Done Daemon::take_identity()
{
	auto identity = load_identity(config_.state_dir);
	if (!identity)
		return identity.error();
	return tls_.set_identity(*identity);
}

// Who is let in: the hosts in the log, each with the one key that it joined with and the raft id of its present membership.
// So a host that was removed is out as soon as this is known here, whatever certificates it has. A host with a raft id that
// has not been given out as far as we know joined while we were away; it may be one of those we need for a quorum, so
// its certificate is believed, but only while there is no leader to learn from.
std::optional<std::string> Daemon::not_a_member(const PeerCert &peer, bool established) const
{
	if (!state_.initialized())
		return std::nullopt;
	const Host *host = state_.host(HostId(peer.subject.host));
	// Of a later epoch, which this host must hear about, though it may have a majority of its own around it.
	if (epoch_of(peer.subject.raft_id) > state_.epoch && (!host || host->key == peer.key_digest))
		return std::nullopt;
	if (peer.subject.raft_id >= state_.next_raft_id) {
		if (established || !log_ || !log_->leader())
			return std::nullopt;
		return "it is not known here yet";
	}
	if (!host && epoch_of(peer.subject.raft_id) < state_.epoch)
		return Tls::RECOVERED;
	// An id of before its log was lost is still good to ask for another one with, but not to vote (ConsensusLog).
	if (!host || (host->raft_id != peer.subject.raft_id && host->former_raft_id != peer.subject.raft_id))
		return Tls::REMOVED;
	if (host->key != peer.key_digest)
		return "its key is not the one it joined with";
	return std::nullopt;
}

// A daemon that died between its host.gone (or a `host lost` that it never saw) and setting host.json aside comes back as a host that
// nobody knows: nobody sends it the log any more, so it cannot learn that from there. Nor can one that was declared dead when the cluster was
// recovered, and it may come back with a whole majority that still believes in itself. So each host asks those that it has no
// connection with; one that let it in would say so. Their word is final: a raft id is never given out twice, and a recovery ends those before it.
// (Purpose api, since nothing is made of such a connection.)
void Daemon::ask_whether_member()
{
	if (stopping_ || Loop::now_ms() - asked_member_ms_ < ASK_MEMBER_PERIOD_MS)
		return;
	asked_member_ms_ = Loop::now_ms();
	std::vector<LinkPeer> hosts = first_peers_;
	if (state_.initialized()) {
		hosts.clear();
		for (const auto &[id, host] : state_.hosts)
			hosts.push_back({id, host.name, addresses_of(host)});
	}
	for (const LinkPeer &host : hosts) {
		if (links_.up(host.host) || (member_ && host.host == member_->host_id))
			continue;
		Hello hello;
		hello.purpose = Purpose::api;
		hello.to_host = host.host;
		dialer_.dial(host.addresses, config_.port, hello, [this, name = host.name](Result<int> fd, const HelloAnswer &answer) {
			if (fd)
				close(*fd);
			if (!answer.removed || stopping_)
				return;
			loop_.log(fmt::format("host {} says that this host was removed from the cluster", name));
			removed();
		});
	}
}

// Each host has the authority's key and signs its own new certificate; connections go on with the old one.
void Daemon::keep_certificate()
{
	if (!member_ || state_.authority.key.empty())
		return;
	if (authority_kept_ != state_.authority.key) {
		authority_kept_ = state_.authority.key;
		if (Done kept = store_authority(config_.state_dir, state_.authority); !kept)
			loop_.log(kept.error().message);
	}
	auto identity = load_identity(config_.state_dir);
	auto end = identity ? end_of(identity->cert) : Result<int64_t>(identity.error());
	const int64_t now_s = int64_t(unix_ms() / 1000);
	if (end && *end - now_s > HOST_CERT_SECONDS / 2)
		return;
	auto key = own_key(config_.state_dir);
	auto cert = key ? issue_certificate(state_.authority, *public_key_of(*key),
					    {member_->cluster_uuid, member_->host_id, member_->raft_id}, now_s + HOST_CERT_SECONDS)
			: key;
	Done renewed = cert ? store_certificate(config_.state_dir, state_.authority.cert, *cert) : Done(cert.error());
	if (renewed)
		renewed = take_identity();
	loop_.log(renewed ? "renewed this host's certificate" : "cannot renew this host's certificate: " + renewed.error().message);
}

void Daemon::token(uint64_t valid_s, JsonReply done)
{
	auto authority = fingerprint(state_.authority.cert);
	if (!member_ || !authority)
		return done(coded("no-cluster", forbidden("no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`")));
	JoinToken token;
	token.authority = *authority;
	token.secret = random_hex(TOKEN_PART_BYTES);
	token.end_s = unix_ms() / 1000 + valid_s;
	Json entry = {{"op", "token.add"}, {"hash", sha256_hex(token.secret)}, {"end_ms", token.end_s * 1000}, {"now_ms", unix_ms()}};
	propose(std::move(entry), [token, done = std::move(done)](Result<Json> answer) {
		if (!answer)
			return done(answer.error());
		done(Json{{"token", format_token(token)}, {"end_ms", token.end_s * 1000}});
	});
}

// A certificate for a client of the API, with a key of its own, which is told once.
void Daemon::client_cert(const std::string &name, const std::string &role, uint64_t end_ms, Json entry, JsonReply done)
{
	const std::string key = make_private_key();
	const std::string public_key = *public_key_of(key);
	const auto cert = issue_client_certificate(state_.authority, public_key, {state_.uuid, role, name, ""}, int64_t(end_ms / 1000));
	if (!cert)
		return done(cert.error());
	entry.update({{"op", "client.add"}, {"name", name}, {"role", role}, {"key", *key_digest(public_key)}, {"end_ms", end_ms}, {"now_ms", unix_ms()}});
	propose(std::move(entry), [bundle = key + *cert + state_.authority.cert, end_ms, done = std::move(done)](Result<Json> answer) {
		if (!answer)
			return done(answer.error());
		done(Json{{"bundle", bundle}, {"end_ms", end_ms}});
	});
}

std::optional<std::string> Daemon::not_a_client(const ClientCert &client) const
{
	if (std::string why = client_objection(state_, client.name, client.key_digest, unix_ms()); !why.empty())
		return "its certificate " + why;
	// A key is made with its certificate, so the role is the log's unless the authority has signed something else with it.
	return state_.clients.at(client.name).role == client.role ? std::nullopt : std::optional<std::string>("its certificate is for another role");
}

void Daemon::join(const std::string &token_text, const std::string &address, unsigned port, JsonReply done)
{
	if (member_)
		return done(forbidden(fmt::format("host {} is in cluster {} already", config_.name, member_->cluster_name)));
	auto token = parse_token(token_text);
	if (!token)
		return done(token.error());
	auto uuid = host_uuid();
	if (!uuid)
		return done(uuid.error());
	auto key = own_key(config_.state_dir);
	if (!key)
		return done(key.error());
	Json request = self_json();
	request["uuid"] = *uuid;
	request["secret"] = token->secret;
	request["public_key"] = *public_key_of(*key);
	dialer_.request(
		{address}, port, Purpose::join, request, JOIN_TIMEOUT_MS,
		[this, uuid = *uuid, done = std::move(done)](Result<Json> answer) { joined(uuid, std::move(answer), done); },
		token->authority);
}

void Daemon::joined(const std::string &uuid, Result<Json> answer, JsonReply done)
{
	if (!answer)
		return done(answer.error());
	if (member_)
		return done(forbidden(fmt::format("host {} is in cluster {} already", config_.name, member_->cluster_name)));
	HostFile file;
	std::vector<LinkPeer> peers;
	std::string authority, cert;
	try {
		authority = answer->at("authority").get<std::string>();
		cert = answer->at("certificate").get<std::string>();
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
	if (Done stored = store_certificate(config_.state_dir, authority, cert); !stored)
		return done(stored.error());
	if (Done known = take_identity(); !known)
		return done(known.error());
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
		return done(coded("no-cluster", forbidden(fmt::format("host {} is in no cluster yet: run `lockstep cluster init` there first", config_.name))));
	if (!request.is_object())
		return done(usage_error("malformed join request"));
	const auto text = [&](const char *field) { return request.contains(field) && request[field].is_string() ? request[field] : Json(""); };
	const auto digest = key_digest(text("public_key").get<std::string>());
	if (!digest)
		return done(digest.error());
	Json entry = {{"op", "host.add"}, {"key", *digest}, {"token", sha256_hex(text("secret").get<std::string>())}, {"now_ms", unix_ms()}};
	for (const char *field : {"uuid", "name", "addresses", "port", "host_level", "witness"})
		if (request.contains(field))
			entry[field] = request[field];
	// Nothing goes into the log for somebody without a token. This host may not have heard of a token just made elsewhere.
	auto go_on = [this, entry, public_key = text("public_key").get<std::string>(), done](Done caught_up) {
		const Host *known = entry.contains("uuid") && entry["uuid"].is_string() ? state_.host_with_uuid(entry["uuid"].get<std::string>())
											 : nullptr;
		if (!caught_up)
			return done(caught_up.error());
		if (!state_.tokens.contains(entry["token"].get<std::string>()) && !(known && known->key == entry["key"]))
			return done(forbidden("the token is not of this cluster, was used, or has ended; make another with `lockstep cluster "
					      "token`"));
		admit(entry, public_key, done);
	};
	if (state_.tokens.contains(entry["token"].get<std::string>()))
		go_on(Nothing{});
	else
		log_->barrier(std::move(go_on));
}

void Daemon::admit(Json entry, const std::string &public_key, JsonReply done)
{
	propose(std::move(entry), [this, public_key, done = std::move(done)](Result<Json> answer) {
		if (!answer)
			return done(answer.error());
		const auto cert = issue_certificate(state_.authority, public_key,
						    {state_.uuid, answer->at("host").get<int>(), answer->at("raft_id").get<uint64_t>()},
						    int64_t(unix_ms() / 1000) + HOST_CERT_SECONDS);
		if (!cert)
			return done(cert.error());
		Json hosts = Json::array();
		for (const auto &[id, host] : state_.hosts)
			hosts.push_back({{"id", id}, {"name", host.name}, {"addresses", host.addresses}, {"port", host.port}});
		done(Json{{"uuid", state_.uuid}, {"name", state_.name}, {"host", answer->at("host")}, {"raft_id", answer->at("raft_id")},
			  {"authority", state_.authority.cert}, {"certificate", *cert}, {"hosts", hosts}});
	});
}

// The addresses of lockstep.yaml are those to join with; from then on the cluster's list counts (`lockstep host net`), and
// this host listens on both. Its port is its own.
void Daemon::keep_address()
{
	const Host *me = state_.host(member_->host_id);
	if (!me)
		return;
	if (listening_for_ != me->addresses) {
		listening_for_ = me->addresses;
		std::vector<std::string> both = config_.addresses;
		for (const std::string &address : me->addresses)
			if (std::ranges::find(both, address) == both.end())
				both.push_back(address);
		if (Done listening = listener_.change_addresses(both); !listening)
			loop_.log(listening.error().message);
		for (const std::string &address : config_.addresses)
			if (std::ranges::find(me->addresses, address) == me->addresses.end())
				loop_.log(fmt::format("lockstep.yaml has the address {}, the cluster's list for this host does not: to use it, run "
						      "`lockstep host net add {} {}`", address, me->name, address));
	}
	if (keeping_address_ || !reconciler_->synced() || (me->port == config_.port && me->level >= LEVEL))
		return;
	keeping_address_ = true;
	Json entry = {{"op", "host.set"}, {"host", member_->host_id}, {"addresses", me->addresses}, {"port", config_.port},
		      {"host_level", LEVEL}};
	propose(std::move(entry), [this](Result<Json> answer) {
		if (answer) {
			keeping_address_ = false;
			return;
		}
		// Refused: said once, since only a new configuration can help. Not answered: tried again.
		if (answer.error().status == Status::failed)
			keeping_address_ = false;
		else
			loop_.log(fmt::format("the cluster does not take this host's port: {}", answer.error().message));
	});
}

}    // namespace lockstep
