// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep md dump|check: the metadata of a replica, decoded from its logical volume. Needs neither daemon nor cluster, and only reads.
#include "lockstep/cli.h"

#include "lib/table.h"
#include "lib/units.h"
#include "lockstepd/host/metadata_check.h"

#include <fmt/format.h>

#include <memory>
#include <optional>

namespace lockstep::cli {

namespace {

void print(Context &context, const json &j)
{
	context.out << fmt::format("replica of volume {} (id {}) on host id {}, metadata at byte {}\n\n", shown(j["uuid"]), j["vid"].dump(), j["host"].dump(),
				   j["offset"].dump());
	Table facts({"size", format_bytes(j["size_bytes"])});
	facts.row({"blocks of", format_bytes(j["block_size"])});
	facts.row({"last adopted", fmt::format("version {}, term {}, incarnation {}", j["version"].dump(), j["term"].dump(), j["incarnation"].dump())});
	std::string copies;
	for (const json &c : j["copies"])
		copies += fmt::format("{}{} {}", copies.empty() ? "" : ", ", shown(c["copy"]), c["valid"] == true ? "number " + c["sequence"].dump() : "not valid");
	facts.row({"superblock", copies});
	facts.row({"extents", fmt::format("{} of {} written, {} hot", j["written_extents"].dump(), j["extents"].dump(), j["hot_extents"].dump())});
	facts.row({"detached clean", j["clean"] == true ? "yes" : "no"});
	for (const json &slot : j["slots"])
		facts.row({"dirty map", fmt::format("for host id {} since version {}", slot["host"].dump(), slot["since"].dump())});
	context.out << facts.text();
}

Done md(Context &context, const std::string &path, std::optional<uint64_t> offset, bool check, bool as_json)
{
	Result<uint64_t> at = offset ? Result<uint64_t>(*offset) : find_metadata(path);
	if (!at)
		return at.error();
	Result<json> found = check_metadata(path, *at);
	if (!found)
		return found.error();
	if (as_json)
		print_json(context, *found);
	else if (!check)
		print(context, *found);
	else
		for (const char *kind : {"problems", "notes"})
			for (const json &line : (*found)[kind])
				context.out << (*kind == 'p' ? "  ! " : "  - ") << shown(line) << "\n";
	const json &problems = (*found)["problems"];
	if (check && !problems.empty())
		return failed(fmt::format("the metadata of {} are damaged ({} {}): have this replica made anew, `lockstep volume replica move` from this host",
					  path, problems.size(), problems.size() == 1 ? "problem" : "problems"));
	if (check && !as_json)
		context.out << fmt::format("the metadata of {} at byte {} are in order\n", path, *at);
	return Nothing{};
}

}    // namespace

void add_md(CLI::App &app, Context &context, Action &action)
{
	struct Options {
		std::string path;
		std::optional<uint64_t> offset;
		bool as_json = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *group = app.add_subcommand("md", "The metadata of a replica, read from its logical volume")->require_subcommand(1);
	for (auto [verb, help] : {std::pair("dump", "Show what they say"), std::pair("check", "Look whether they are in order; exit status 10 if not")}) {
		CLI::App *command = group->add_subcommand(verb, help);
		command->add_option("LV", o->path, "Path of the logical volume, or of a copy of it")->required();
		command->add_option("--offset", o->offset, "Byte at which they begin (default: looked for from the end)");
		command->add_flag("--json", o->as_json, "Print JSON");
		command->callback([=, &context, &action, check = std::string(verb) == "check"] {
			action = [=, &context] { return md(context, o->path, o->offset, check, o->as_json); };
		});
	}
}

}    // namespace lockstep::cli
