// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/pending.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "lockstepd/host/keys.h"

namespace lockstep {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr int PENDING_FORMAT = 1;

std::string pending_path(const std::string &state_dir) { return state_dir + "/pending.json"; }
std::string peers_path(const std::string &state_dir) { return state_dir + "/peers.json"; }

std::string content_of(const std::string &path)
{
	std::ifstream in(path);
	std::stringstream text;
	text << in.rdbuf();
	return text.str();
}

}    // namespace

Result<std::optional<Pending>> load_pending(const std::string &state_dir)
{
	const std::string path = pending_path(state_dir);
	std::error_code error;
	if (!fs::exists(path, error))
		return std::optional<Pending>();
	try {
		const json j = json::parse(content_of(path));
		if (j.at("format") != PENDING_FORMAT)
			return failed(path + " was written by another version of lockstepd");
		Pending p;
		const json &h = j.at("host");
		p.host = {h.at("cluster_uuid"), h.at("cluster_name"), h.at("host_uuid"), h.at("host_id"), h.at("raft_id"), h.at("name")};
		p.authority = j.at("authority");
		p.certificate = j.at("certificate");
		p.entry = j.at("entry");
		return std::optional<Pending>(p);
	} catch (const json::exception &e) {
		return failed(path + " is damaged (" + e.what() + "): what it asked for has to be repeated; delete it");
	}
}

Done store_pending(const std::string &state_dir, const Pending &p)
{
	const json j = {{"format", PENDING_FORMAT},
			{"host",
			 {{"cluster_uuid", p.host.cluster_uuid},
			  {"cluster_name", p.host.cluster_name},
			  {"host_uuid", p.host.host_uuid},
			  {"host_id", p.host.host_id},
			  {"raft_id", p.host.raft_id},
			  {"name", p.host.name}}},
			{"authority", p.authority},
			{"certificate", p.certificate},
			{"entry", p.entry}};
	return write_file_durably(pending_path(state_dir), j.dump(2) + "\n");
}

Done drop_pending(const std::string &state_dir)
{
	const std::string path = pending_path(state_dir);
	if (unlink(path.c_str()) != 0 && errno != ENOENT)
		return failed("cannot remove " + path + ": " + strerror(errno));
	const int dir = open(state_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	const bool flushed = dir >= 0 && fsync(dir) == 0;
	if (dir >= 0)
		close(dir);
	if (!flushed)
		return failed("cannot flush " + state_dir + ": " + strerror(errno));
	return Nothing{};
}

// host.json comes last: once it names the new raft id, that id may vote, and its directory is not touched again.
Done carry_out(const std::string &state_dir, const Pending &p, const ConsensusOptions &options)
{
	auto now = load_host_file(state_dir);
	if (!now)
		return now.error();
	if (*now && (*now)->raft_id == p.host.raft_id)
		return Nothing{};
	if (Done stored = store_certificate(state_dir, p.authority, p.certificate); !stored)
		return stored;
	if (Done made = p.rebuilds()   ? ConsensusLog::rebuild(options)
			 : p.recovers() ? ConsensusLog::recover(options)
					: ConsensusLog::prepare_rejoin(options); !made)
		return made;
	return store_host_file(state_dir, p.host);
}

std::vector<LinkPeer> load_peers(const std::string &state_dir)
{
	std::vector<LinkPeer> peers;
	const json j = json::parse(content_of(peers_path(state_dir)), nullptr, false);
	try {
		if (!j.is_discarded())
			for (const json &p : j)
				peers.push_back({p.at("host"), p.at("name"), p.at("addresses")});
	} catch (const json::exception &) {
		peers.clear();
	}
	return peers;
}

Done store_peers(const std::string &state_dir, const std::vector<LinkPeer> &peers)
{
	json j = json::array();
	for (const LinkPeer &p : peers)
		j.push_back({{"host", p.host}, {"name", p.name}, {"addresses", p.addresses}});
	return write_file_durably(peers_path(state_dir), j.dump(2) + "\n");
}

}    // namespace lockstep
