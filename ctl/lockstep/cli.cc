// SPDX-License-Identifier: GPL-2.0-or-later
//
// See cli.h: parsing, running the chosen command, reporting its error; and the small things all commands print alike.
#include "lockstep/cli.h"

#include "lib/table.h"
#include "lib/units.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace lockstep::cli {

namespace {

// CLI11 reports over several lines; we promise one.
std::string one_line(std::string text)
{
	while (!text.empty() && text.back() == '\n')
		text.pop_back();
	std::replace(text.begin(), text.end(), '\n', ' ');
	return text;
}

// The first word that should be a command and is none; CLI11 only says that a command is missing.
std::string unknown_command(const CLI::App &app, const std::vector<std::string> &args)
{
	const CLI::App *at = &app;
	for (const std::string &arg : args) {
		auto commands = at->get_subcommands({});
		if (arg.starts_with("-") || commands.empty())
			return {};
		auto next = std::find_if(commands.begin(), commands.end(), [&](const CLI::App *c) { return c->get_name() == arg; });
		if (next == commands.end())
			return arg;
		at = *next;
	}
	return {};
}

// Whatever prints, prints JSON if it is asked to.
void add_json(CLI::App &app, bool &as_json)
{
	auto commands = app.get_subcommands([](const CLI::App *) { return true; });
	for (CLI::App *command : commands)
		add_json(*command, as_json);
	if (commands.empty() && !app.get_option_no_throw("--json"))
		app.add_flag("--json", as_json, "Print JSON");
}

int parse_error(const CLI::App &app, const CLI::ParseError &e, const std::vector<std::string> &args, Context &context)
{
	if (e.get_exit_code() == int(CLI::ExitCodes::Success))
		return app.exit(e, context.out, context.err);    // --help
	std::string unknown = unknown_command(app, args);
	std::string message = unknown.empty() ? one_line(e.what()) : "there is no command \"" + unknown + "\"";
	context.err << "lockstep: " << message << ": see `lockstep --help`\n";
	return int(Status::usage);
}

// Whoever can read the key in it can do what its owner may.
Result<std::string> read_private(const std::string &path)
{
	constexpr size_t FILE_MAX_BYTES = 64 << 10;
	const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat facts{};
	std::string text(FILE_MAX_BYTES, '\0');
	const ssize_t n = fd < 0 || fstat(fd, &facts) != 0 ? -1 : read(fd, text.data(), text.size());
	const int error = errno;
	if (fd >= 0)
		close(fd);
	if (n < 0)
		return usage_error("cannot read " + path + ": " + strerror(error));
	if (facts.st_mode & 077)
		return usage_error("others can read the key in " + path + ": `chmod 600` it, and if somebody may have read it, `lockstep cluster cert-revoke` it");
	text.resize(size_t(n));
	return text;
}

Result<Remote> remote_of(const Context &context)
{
	Result<Remote> remote = parse_remote(context.host);
	if (!remote)
		return remote;
	Result<std::string> bundle = read_private(context.cert);
	if (!bundle)
		return bundle.error();
	remote->bundle = *bundle;
	return remote;
}

// Who may run it; with --host, where it goes.
Done prepare(const CLI::App &app, Context &context)
{
	if (context.host.empty())
		return context.is_root ? Done(Nothing{}) : Done(failed("must be run as root"));
	for (const char *local : {"up", "down", "md"})
		if (app.got_subcommand(local))
			return usage_error(std::string("`lockstep ") + local + "` is about the host it runs on: run it there, without --host");
	Result<Remote> remote = remote_of(context);
	if (!remote)
		return remote.error();
	context.remote = *remote;
	return Nothing{};
}

}    // namespace

void add_commands(CLI::App &app, Context &context, Action &action)
{
	app.set_help_all_flag("--help-all", "Show the options of all commands");
	app.require_subcommand(1);
	app.add_option("--socket", context.socket, "Path of the daemon's socket")->capture_default_str();
	CLI::Option *cert = app.add_option("--cert", context.cert, "With --host: file that `lockstep cluster cert` has made");
	CLI::Option *host = app.add_option("--host", context.host, "ADDRESS[:PORT] of a host of the cluster to ask over TLS, from anywhere and by anybody who has a certificate");
	host->needs(cert);
	cert->needs(host);
	add_cluster(app, context, action);
	add_volume(app, context, action);
	add_status(app, context, action);
	add_snapshot(app, context, action);
	add_group(app, context, action);
	add_disk(app, context, action);
	add_operation(app, context, action);
	add_option(app, context, action);
	add_why(app, context, action);
	add_md(app, context, action);
	add_up(app, context, action);
	add_down(app, context, action);
	add_apply(app, context, action);
	add_invalidate(app, context, action);
	add_help(app, context, action);
	add_json(app, context.as_json = false);
}

int run(const std::vector<std::string> &args, Context &context)
{
	CLI::App app("Shared, replicated storage made of the local disks of a pool of hosts", "lockstep");
	Action action;
	add_commands(app, context, action);
	try {
		std::vector<std::string> reversed(args.rbegin(), args.rend());    // CLI11 takes them from the back
		app.parse(reversed);
	} catch (const CLI::ParseError &e) {
		return parse_error(app, e, args, context);
	}
	Done done = prepare(app, context);
	if (done)
		done = action();
	context.out.flush();
	if (done)
		return int(Status::ok);
	const Error &error = done.error();
	if (std::find(args.begin(), args.end(), "--json") != args.end())
		context.err << json{{"status", int(error.status)}, {"code", code_of(error)}, {"message", one_line(error.message)}}.dump(-1, ' ', false, json::error_handler_t::replace)
			    << "\n";
	else
		context.err << "lockstep: " << one_line(error.message) << "\n";
	return int(error.status);
}

std::string shown(const json &value)
{
	if (value.is_null())
		return "-";
	std::string text = value.is_string() ? value.get<std::string>() : value.dump();
	return text.empty() ? "-" : text;
}

std::string joined(const json &list, const char *separator)
{
	std::string text;
	for (const json &item : list)
		text += (text.empty() ? "" : separator) + shown(item);
	return text;
}

std::string host_address(const json &host)
{
	std::string text = joined(host["addresses"]);
	return host["port"] == 7788 ? text : text + " port " + host["port"].dump();
}

std::string host_status(const json &host)
{
	std::string text = host["status"];
	if (text == "offline")
		text = "OFFLINE";
	if (host["witness"] == true)
		text += ", witness";
	if (host["removing"] == true)
		return text + ", leaving";
	return host["evacuating"] == true ? text + ", evacuating" : text;
}

std::string since(const json &host, uint64_t now_ms)
{
	uint64_t since_ms = host["since_ms"];
	return now_ms > since_ms ? format_seconds((now_ms - since_ms) / 1000) : "0 s";
}

Done told(Context &context, const json &answer, const std::string &text)
{
	if (context.as_json)
		print_json(context, answer);
	else
		context.out << text;
	return Nothing{};
}

void print_json(Context &context, const json &value) { context.out << value.dump(2) << "\n"; }

namespace {

Result<json> status_of_cluster(const Context &context, const std::string &query)
{
	Result<json> status = context.client().get("/v1/status" + query);
	if (status && !(*status)["cluster"].is_null() && (*status)["cluster"]["name"].is_null())
		return forbidden((*status)["message"]);
	if (status && (*status)["cluster"].is_null())
		return forbidden("this host is in no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`");
	return status;
}

}    // namespace

Result<json> cluster_status(const Context &context, const std::string &volume)
{
	return status_of_cluster(context, volume.empty() ? "" : "?volume=" + url_encode(volume));
}

Result<json> cluster_outline(const Context &context) { return status_of_cluster(context, "?desired=true"); }

}    // namespace lockstep::cli
