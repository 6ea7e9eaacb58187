// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep completion bash, lockstep man: made from the parser itself, so that they know every command there is.
#include "lockstep/cli.h"

#include <fmt/format.h>

#include <functional>
#include <memory>
#include <sstream>

namespace lockstep::cli {

namespace {

using Visit = std::function<void(const CLI::App &, const std::string &path)>;

void walk(const CLI::App &app, const std::string &path, const Visit &visit)
{
	visit(app, path);
	for (const CLI::App *command : app.get_subcommands([](const CLI::App *) { return true; }))
		walk(*command, path.empty() ? command->get_name() : path + " " + command->get_name(), visit);
}

std::vector<const CLI::Option *> options_of(const CLI::App &app)
{
	return app.get_options([](const CLI::Option *o) { return o->get_name() != "--help-all"; });
}

std::string words_of(const CLI::App &app)
{
	std::string words;
	for (const CLI::App *command : app.get_subcommands([](const CLI::App *) { return true; }))
		words += command->get_name() + " ";
	for (const CLI::Option *o : options_of(app))
		for (const std::string &name : o->get_lnames())
			words += "--" + name + " ";
	return words;
}

// What stands for a name that the cluster knows.
std::string names_of(const CLI::App &app)
{
	std::string kinds;
	for (const CLI::Option *o : options_of(app)) {
		const std::string name = o->get_positional() ? o->get_name(true) : "";
		for (auto [known, kind] : {std::pair("VOLUME", "volumes"), std::pair("HOST", "hosts"), std::pair("FROM", "hosts"), std::pair("TO", "hosts")})
			if (name == known)
				kinds += std::string(kind) + " ";
		if (app.get_name() == "why" && name == "NAME")
			kinds += "volumes hosts ";
	}
	return kinds;
}

// The words before the cursor that name a command are followed from the top; then its words are offered, and the names of objects
// that it takes, which are asked of the daemon.
void bash(const CLI::App &app, std::ostream &out)
{
	out << "# bash completion of lockstep; made by `lockstep completion bash`\n"
	       "_lockstep()\n{\n\tlocal path=\"\" word words names next i\n"
	       "\tCOMPREPLY=()\n"
	       "\tfor ((i = 1; i <= COMP_CWORD; i++)); do\n"
	       "\t\tcase \"$path\" in\n";
	walk(app, "", [&](const CLI::App &at, const std::string &path) {
		out << fmt::format("\t\t\"{}\") words=\"{}\" names=\"{}\" ;;\n", path, words_of(at), names_of(at));
	});
	out << "\t\tesac\n"
	       "\t\t((i == COMP_CWORD)) && break\n"
	       "\t\tword=\"${COMP_WORDS[i]}\"\n"
	       "\t\tnext=\"${path:+$path }$word\"\n"
	       "\t\t[[ \"$word\" != -* && \" $words \" == *\" $word \"* ]] && path=\"$next\"\n"
	       "\tdone\n"
	       "\tword=\"${COMP_WORDS[COMP_CWORD]}\"\n"
	       "\tfor i in $names; do\n"
	       "\t\t[[ \"$word\" == -* ]] || words+=\" $(lockstep completion \"$i\" 2>/dev/null)\"\n"
	       "\tdone\n"
	       "\tCOMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
	       "}\n"
	       "complete -o default -F _lockstep lockstep\n";
}

// A line that begins with a dot or a quote would be a request to roff.
std::string roff(const std::string &text)
{
	std::string out;
	for (char c : text)
		out += c == '\\' ? "\\e" : c == '-' ? "\\-" : std::string(1, c);
	return out.starts_with(".") || out.starts_with("'") ? "\\&" + out : out;
}

std::string synopsis(const CLI::App &app, const std::string &path)
{
	std::string text = "lockstep " + path;
	for (const CLI::Option *o : options_of(app)) {
		if (!o->get_positional())
			continue;
		const std::string name = o->get_name(true) + (o->get_expected_max() > 1 ? " ..." : "");
		text += o->get_required() ? " " + name : " [" + name + "]";
	}
	return text;
}

void man(const CLI::App &app, std::ostream &out)
{
	out << ".\\\" made by `lockstep man`\n.TH LOCKSTEP 8 \"\" Lockstep \"System Administration\"\n"
	       ".SH NAME\nlockstep \\- " << roff(app.get_description()) << "\n"
	       ".SH SYNOPSIS\n.B lockstep\n[\\-\\-socket PATH | \\-\\-host ADDRESS[:PORT] \\-\\-cert FILE] COMMAND ...\n"
	       ".SH DESCRIPTION\nAsks the daemon lockstepd on this host; any host of the cluster answers any command. Must be run as root.\n"
	       "With \\-\\-host it asks that host over TLS instead, from anywhere and as any user, with a file that `lockstep cluster cert` has made.\n"
	       ".SH COMMANDS\n";
	walk(app, "", [&](const CLI::App &at, const std::string &path) {
		if (!at.get_subcommands([](const CLI::App *) { return true; }).empty())
			return;
		out << ".SS " << roff(synopsis(at, path)) << "\n" << roff(at.get_description()) << ".\n";
		for (const CLI::Option *o : options_of(at)) {
			if (o->get_name() == "--help" || o->get_name() == "-h,--help" || o->get_description().empty())
				continue;
			const bool flag = o->get_items_expected_max() == 0;
			out << ".TP\n.B " << roff(o->get_positional() ? o->get_name(true) : o->get_name()) << (flag || o->get_positional() ? "" : " ...") << "\n"
			    << roff(o->get_description()) << "\n";
		}
	});
	out << ".SH EXIT STATUS\n.TP\n0\ndone\n.TP\n2\nthe command makes no sense\n.TP\n3\nit names something that does not exist\n"
	       ".TP\n5\nthe present state does not allow it; the message says what would\n.TP\n10\nit failed, or cannot be tried now\n"
	       ".SH FILES\n.TP\n/run/lockstep/lockstepd.sock\nthe daemon's socket; another one by \\-\\-socket or $LOCKSTEP_SOCKET\n"
	       ".TP\n/etc/lockstep/lockstep.yaml\nthe host's configuration\n";
}

Done names(Context &context, const std::string &kind)
{
	Result<json> status = cluster_outline(context);
	if (!status)
		return status.error();
	json list = json::array();
	std::string lines;
	for (const json &item : (*status)[kind]) {
		list.push_back(item["name"]);
		lines += shown(item["name"]) + "\n";
	}
	return told(context, list, lines);
}

}    // namespace

void add_help(CLI::App &app, Context &context, Action &action)
{
	auto what = std::make_shared<std::string>();
	CLI::App *completion = app.add_subcommand("completion", "Print a script that completes these commands in a shell");
	completion->add_option("SHELL", *what, "bash; or volumes, hosts, pools: print their names")
		->required()
		->check(CLI::IsMember({"bash", "volumes", "hosts", "pools"}));
	completion->callback([=, &app, &context, &action] {
		action = [=, &app, &context]() -> Done {
			if (*what != "bash")
				return names(context, *what);
			std::ostringstream script;
			bash(app, script);
			return told(context, {{"shell", *what}, {"script", script.str()}}, script.str());
		};
	});
	app.add_subcommand("man", "Print the manual page")->callback([&app, &context, &action] {
		action = [&app, &context]() -> Done {
			std::ostringstream page;
			man(app, page);
			return told(context, {{"format", "roff"}, {"page", page.str()}}, page.str());
		};
	});
}

}    // namespace lockstep::cli
