// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep volume diff: what has changed since a snapshot.
#include "lockstep/cli.h"

#include "lib/units.h"

#include <fmt/format.h>

#include <memory>

namespace lockstep::cli {

namespace {

Done volume_diff(Context &context, const std::string &volume, const std::string &from, const std::string &to, bool as_json)
{
	std::string url = "/v1/volumes/" + url_encode(volume) + "/snapshots/" + url_encode(from) + "/diff";
	if (to != "live")
		url += "?to=" + url_encode(to);
	Result<json> answer = context.client().get(url, Client::LVM_S);
	if (!answer)
		return answer.error();
	if (as_json) {
		print_json(context, *answer);
		return Nothing{};
	}
	const uint64_t changed = (*answer)["changed_blocks"], block_bytes = (*answer)["block_bytes"];
	context.out << fmt::format("volume {}: {} of {} blocks of {} have changed from snapshot {} to {}, at most {}\n", volume, changed,
				   (*answer)["blocks"].get<uint64_t>(), format_bytes(block_bytes), from, to == "live" ? "now" : "snapshot " + to,
				   format_bytes(changed * block_bytes));
	return Nothing{};
}

}    // namespace

void add_volume_diff(CLI::App &volume, Context &context, Action &action)
{
	struct Options {
		std::string volume, from, to = "live";
		bool as_json = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *diff = volume.add_subcommand("diff", "What has changed since a snapshot, told without reading the data");
	diff->add_option("VOLUME", o->volume, "Name of the volume")->required();
	diff->add_option("FROM", o->from, "Name of the older snapshot")->required();
	diff->add_option("TO", o->to, "Name of the newer snapshot, or \"live\" for the volume as it is")->capture_default_str();
	diff->add_flag("--json", o->as_json, "Print JSON, with the bitmap of changed blocks in base64");
	diff->callback([=, &context, &action] { action = [=, &context] { return volume_diff(context, o->volume, o->from, o->to, o->as_json); }; });
}

}    // namespace lockstep::cli
