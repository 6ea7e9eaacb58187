// SPDX-License-Identifier: GPL-2.0-or-later
//
// The command line as a function, so that tests run it in their own process. Each command group is a file: cluster.cc
// (cluster, host, pool), volume.cc, group.cc, status.cc (status, wait-sync), why.cc (why, events, metrics), md.cc, down.cc, help.cc (completion, man), life.cc (replicas, hosts' comings and goings, options), rules.cc (placement).
//
// A command asks the daemon on this host and prints: tables for people, or with --json what the API answered. What went wrong
// is one line on stderr, with --json an object {status, code, message}; the exit status says of what kind it is (lib/error.h).
#pragma once

#include "lib/client.h"
#include "lib/error.h"

#include <CLI/CLI.hpp>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

namespace lockstep::cli {

struct Context {
	std::ostream &out;
	std::ostream &err;
	std::string socket = DEFAULT_SOCKET;
	bool is_root = true;
	std::function<uint64_t()> now_ms = {};  // Unix time
	std::function<Done()> start_daemon = {};    // on this host; for `lockstep up`
	bool terminal = false;                  // out is one
	bool as_json = false;                   // --json, of commands without a flag of their own
	std::string host = {}, cert = {};       // --host, --cert
	std::optional<Remote> remote = {};      // made of these
	unsigned rounds = 0;                    // of what goes on for ever (status --watch, events --follow); 0: no limit. For tests
	Client client() const { return remote ? Client(*remote) : Client(socket); }
};

// What the chosen subcommand does; set while parsing, run afterwards.
using Action = std::function<Done()>;

void add_cluster(CLI::App &app, Context &context, Action &action);
void add_volume(CLI::App &app, Context &context, Action &action);
void add_status(CLI::App &app, Context &context, Action &action);
void add_serving(CLI::App &app, CLI::App &volume, Context &context, Action &action);    // volumes in use
void add_snapshot(CLI::App &app, Context &context, Action &action);
void add_operation(CLI::App &app, Context &context, Action &action);
void add_apply(CLI::App &app, Context &context, Action &action);        // apply, dump
void add_up(CLI::App &app, Context &context, Action &action);           // up, adjust
void add_group(CLI::App &app, Context &context, Action &action);
void add_option(CLI::App &app, Context &context, Action &action);
void add_why(CLI::App &app, Context &context, Action &action);
void add_md(CLI::App &app, Context &context, Action &action);
void add_down(CLI::App &app, Context &context, Action &action);
void add_invalidate(CLI::App &app, Context &context, Action &action);   // life.cc
void add_help(CLI::App &app, Context &context, Action &action);         // completion, man; last
// Further verbs of these command groups (life.cc).
void add_volume_life(CLI::App &volume, Context &context, Action &action);
void add_volume_diff(CLI::App &volume, Context &context, Action &action);    // diff.cc
void add_volume_overlay(CLI::App &volume, Context &context, Action &action);    // overlay.cc
void add_host_life(CLI::App &host, Context &context, Action &action);
void add_pool_life(CLI::App &pool, Context &context, Action &action);
void add_disk(CLI::App &app, Context &context, Action &action);                        // disks.cc
void add_pool_disks(CLI::App &pool, Context &context, Action &action);                 // likewise
void add_pool_orphans(CLI::App &pool, Context &context, Action &action);    // orphans.cc

Done start_daemon_by_systemd();    // up.cc

// All commands there are, into app; what is parsed sets action.
void add_commands(CLI::App &app, Context &context, Action &action);
// args: without the program's name. Returns the exit status.
int run(const std::vector<std::string> &args, Context &context);

// ---- shared by the command groups ----

using nlohmann::json;

constexpr unsigned POLL_MS = 1000;    // of one wait for a change

// "-" for null or an empty text.
std::string shown(const json &value);
std::string joined(const json &list, const char *separator = ", ");
std::string host_address(const json &host);                     // "10.77.2.1", with the port if it is not the default one
std::string host_status(const json &host);                      // "online", "OFFLINE", "evicted", "online, evacuating"
std::string since(const json &host, uint64_t now_ms);           // "2 h 5 min"
void print_json(Context &context, const json &value);
Done told(Context &context, const json &answer, const std::string &text);    // the one with --json, the other without
// The cluster's status; an error if there is no cluster yet.
Result<json> cluster_status(const Context &context, const std::string &volume = "");
// The same, of volumes only what was asked for (View::desired): a fraction of the time where there are thousands.
Result<json> cluster_outline(const Context &context);

}    // namespace lockstep::cli
