// SPDX-License-Identifier: GPL-2.0-or-later
//
// A whole host as far as consensus goes: port, links and log, with a state machine that remembers all it was given. Several of
// them run on one Loop in one process (consensus.cc), or each in a process of its own (processes.cc).
#pragma once

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "lockstepd/consensus/host_file.h"
#include "lockstepd/consensus/log.h"
#include "test/unit/consensus/pki.h"

namespace lockstep::test {

using nlohmann::json;

struct TempDir {
	TempDir()
	{
		char name[] = "/tmp/lockstep-unit-XXXXXX";
		if (!mkdtemp(name))
			abort();
		path = name;
	}
	~TempDir()
	{
		std::error_code ignored;
		std::filesystem::remove_all(path, ignored);
	}
	std::string path;
};

// The replicated state: the entries in order, and the hosts.
struct LogHistory {
	std::vector<std::string> entries;
	std::vector<Member> hosts;

	json apply(std::string_view text)
	{
		entries.emplace_back(text);
		const json e = json::parse(text);
		const std::string op = e.at("op");
		if (op == "host") {
			for (const Member &m : hosts) {
				if (m.host == e.at("host").get<int>())
					return {{"ok", false}, {"message", "taken"}};
			}
			hosts.push_back({e.at("raft"), e.at("host"), e.at("addresses"), Role::none});
		} else if (op == "forget") {
			std::erase_if(hosts, [&](const Member &m) { return m.host == e.at("host").get<int>(); });
		}
		return {{"ok", true}, {"count", entries.size()}};
	}

	std::string snapshot() const
	{
		json out = {{"entries", entries}, {"hosts", json::array()}};
		for (const Member &m : hosts)
			out["hosts"].push_back({{"raft", m.raft_id}, {"host", m.host}, {"addresses", m.addresses}});
		return out.dump();
	}

	bool restore(std::string_view text)
	{
		const json in = json::parse(text, nullptr, false);
		if (in.is_discarded())
			return false;
		entries = in.at("entries").get<std::vector<std::string>>();
		hosts.clear();
		for (const json &h : in.at("hosts"))
			hosts.push_back({h.at("raft"), h.at("host"), h.at("addresses"), Role::none});
		return true;
	}
};

inline const std::string CLUSTER = "5b4c9d3e-0000-4000-8000-000000000001";

struct Node {
	// The port stays the node's own over restarts, as in real life; 0 takes one.
	Node(Loop &loop, int host, std::string dir, uint16_t wanted_port = 0, uint64_t raft_id = 0)
		: loop(loop), host(host), raft_id(raft_id ? raft_id : uint64_t(host) + 100), dir(std::move(dir)), tls(loop, LaneEnd::relay),
		  listener(loop, tls), dialer(loop, tls)
	{
		if (!tls.set_identity(identity_of(CLUSTER, host, this->raft_id)))
			abort();
		Identity id{CLUSTER, host, this->raft_id, "h" + std::to_string(host)};
		listener.set_identity(id);
		dialer.set_identity(id);
		const Done done = listener.listen({"127.0.0.1"}, wanted_port);
		if (!done) {
			fprintf(stderr, "%s\n", done.error().message.c_str());
			abort();
		}
		options.dir = raft_dir_of(this->dir);
		options.self = me();
		options.rebalance_ms = 100;
		options.election_ms = 500;
		options.heartbeat_ms = 50;
		links.emplace(loop, listener, dialer, LinkOptions{.heartbeat_ms = 200, .silence_ms = 1000});
	}

	Member me() const { return {raft_id, host, {"127.0.0.1:" + std::to_string(listener.port())}, Role::none}; }

	Done start()
	{
		StateMachine machine;
		machine.apply = [this](uint64_t, std::string_view e) {
			json result = history.apply(e);
			hosts_changed();
			return result;
		};
		machine.snapshot = [this] { return history.snapshot(); };
		machine.restore = [this](std::string_view s) {
			const bool ok = history.restore(s);
			hosts_changed();
			return ok;
		};
		log.emplace(loop, listener, dialer, *links, options, own_machine ? *own_machine : machine);
		log->set_wanted([this] { return history.hosts; });
		const Done done = log->start();
		hosts_changed();
		return done;
	}

	// Links to whom the state knows; before it knows anybody, to whom raft's configuration knows.
	void hosts_changed()
	{
		std::vector<LinkPeer> peers;
		const auto known = history.hosts.empty() && log ? log->members() : history.hosts;
		for (const Member &m : known)
			peers.push_back({m.host, "h" + std::to_string(m.host), m.addresses});
		links->set_peers(peers);
	}

	// The end of a daemon; the loop must turn for it.
	void stop()
	{
		if (log) {
			bool gone = false;
			log->close([&] { gone = true; });
			if (!loop.run_until([&] { return gone; }, 5000))
				abort();
			log.reset();
		}
		links.reset();
	}

	~Node() { stop(); }

	Loop &loop;
	const int host;
	const uint64_t raft_id;
	const std::string dir;
	Tls tls;
	Listener listener;
	Dialer dialer;
	std::optional<Links> links;
	ConsensusOptions options;
	LogHistory history;
	std::optional<StateMachine> own_machine;    // in place of the history alone; who the hosts are stays the history's
	std::optional<ConsensusLog> log;
};

inline std::string host_entry(const Member &m)
{
	return json{{"op", "host"}, {"raft", m.raft_id}, {"host", m.host}, {"addresses", m.addresses}}.dump();
}

inline std::string put_entry(const std::string &what)
{
	return json{{"op", "put"}, {"what", what}}.dump();
}

}    // namespace lockstep::test
