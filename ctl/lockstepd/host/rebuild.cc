// SPDX-License-Identifier: GPL-2.0-or-later
//
// No log is left on any host: a new one is made of what the disks say (cluster/rebuild.h).
//
// It begins on a host that has lost its log and still knows who it is: host.json, its certificate, the authority's key and peers.json are
// not in the raft directory. Such hosts have links with each other. Each that is there says what is on its disks; those that are not must
// be vouched for as dead, as in rejoin.cc. No kernel may have a volume up meanwhile: it might be written to. With a yes the decision
// goes to disk (pending.h) and this daemon starts anew as the first member of the next epoch; the others ask it for new ids by themselves.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "lockstepd/cluster/rebuild.h"
#include "lockstepd/host/daemon.h"
#include "lockstepd/host/keys.h"
#include "lockstepd/host/survey.h"

namespace lockstep {

namespace {

constexpr uint64_t SURVEY_TIMEOUT_MS = 120'000;

}    // namespace

// This host's answer to "disk.survey".
void Daemon::survey_disks(JsonReply done)
{
	auto found = std::make_shared<FoundHost>();
	const std::optional<HostFile> &file = member_ ? member_ : rejoining_;
	if (!file)
		return done(forbidden(fmt::format("host {} is in no cluster", config_.name)));
	found->id = HostId(file->host_id);
	found->name = file->name;
	found->raft_id = file->raft_id;
	found->has_log = bool(member_);
	auto key = own_key(config_.state_dir);
	if (!key)
		return done(key.error());
	found->host = self_json();
	found->host["id"] = file->host_id;
	found->host["uuid"] = file->host_uuid;
	found->host["name"] = file->name;
	found->host["raft_id"] = file->raft_id;
	found->host["key"] = *key_digest(*public_key_of(*key));
	found->host.erase("level");
	auto result = std::make_shared<Done>(Nothing{});
	workers_->submit(
		"survey",
		[found, result, kernel = kernel_, lvm = lvm_, witness = config_.witness] {
			if (witness || found->has_log)
				return;
			// Without the module nothing is up.
			if (auto dump = kernel.dump())
				found->volumes_up = dump->volumes.size();
			*result = survey(lvm, *found, inspect_copy);
		},
		[found, result, done = std::move(done)] {
			if (*result)
				done(to_json(*found));
			else
				done(result->error());
		});
}

struct Daemon::Rebuilding {
	RecoverRequest request;
	JsonReply done;
	RebuildInput input;
	std::vector<std::string> down;    // names
	std::vector<std::string> objections;
	size_t unanswered = 0;
};

void Daemon::rebuild(const RecoverRequest &request, JsonReply done)
{
	if (member_)
		return done(forbidden(fmt::format("host {} has a log: run this without --from-disks", config_.name)));
	if (!rejoining_)
		return done(coded("no-cluster", forbidden("this host does not know what cluster it was in: found a new one with `lockstep cluster init`, let the "
							  "others join, make the pools known, and adopt what `lockstep pool orphans` shows")));
	if (recovering_)
		return done(forbidden("a recovery is under way on this host already"));
	if (first_peers_.empty())
		return done(forbidden(fmt::format("{}/peers.json, which names the other hosts, is lost, too: run this on another host", config_.state_dir)));
	auto authority = load_authority(config_.state_dir);
	if (!authority)
		return done(forbidden(fmt::format("{}: run this on another host, or found a new cluster", authority.error().message)));
	recovering_ = true;
	auto r = std::make_shared<Rebuilding>();
	r->request = request;
	r->done = [this, done = std::move(done)](Result<Json> answer) {
		recovering_ = false;
		done(std::move(answer));
	};
	r->input = {rejoining_->cluster_uuid, rejoining_->cluster_name, *authority, HostId(rejoining_->host_id), {}, {}, request.copies, unix_ms()};
	auto answered = [this, r](const std::string &name, const Result<Json> &answer) {
		rebuild_answer(*r, name, answer);
		if (--r->unanswered == 0)
			rebuild_decide(r);
	};
	std::vector<LinkPeer> ask;
	for (const LinkPeer &peer : first_peers_) {
		if (peer.host == rejoining_->host_id)
			continue;
		if (links_.up(peer.host)) {
			ask.push_back(peer);
		} else {
			r->down.push_back(peer.name);
			r->input.former.insert(HostId(peer.host));
		}
	}
	r->unanswered = ask.size() + 1;
	for (const LinkPeer &peer : ask)
		links_.call(peer.host, "disk.survey", Json::object(), SURVEY_TIMEOUT_MS, [answered, name = peer.name](Result<Json> answer) { answered(name, answer); });
	survey_disks([answered, name = config_.name](Result<Json> answer) { answered(name, answer); });
}

void Daemon::rebuild_answer(Rebuilding &r, const std::string &name, const Result<Json> &answer)
{
	auto found = answer ? found_host(*answer) : Result<FoundHost>(answer.error());
	if (!found)
		r.objections.push_back(fmt::format("host {} is there, but does not say what is on its disks: {}", name, found.error().message));
	else if (found->has_log)
		r.objections.push_back(fmt::format("host {} has a log: nothing is to be made of the disks. If it has lost its majority, run `lockstep cluster "
						   "recover` there", name));
	else if (found->volumes_up)
		r.objections.push_back(fmt::format("the kernel of host {} has {} volumes up, which may be written to: stop lockstepd there, run `lockstep down`, and "
						   "start it again", name, found->volumes_up));
	else
		r.input.hosts.push_back(std::move(*found));
}

void Daemon::rebuild_decide(std::shared_ptr<Rebuilding> r)
{
	if (!r->objections.empty())
		return r->done(forbidden(fmt::format("{}", fmt::join(r->objections, "; "))));
	std::ranges::sort(r->input.hosts, {}, &FoundHost::id);
	auto plan = plan_rebuild(r->input);
	if (!plan)
		return r->done(plan.error());
	Json kept = Json::array(), notes = Json::array();
	for (const FoundHost &h : r->input.hosts) {
		if (h.id != r->input.self)
			kept.push_back(h.name);
		for (const std::string &vg : h.incomplete)
			notes.push_back(fmt::format("volume group {} of host {} lacks a disk: what was on it is not seen", vg, h.name));
	}
	std::ranges::sort(r->down);
	const Json shown = {{"epoch", plan->entry["epoch"]}, {"host", config_.name}, {"dead", r->down}, {"kept", kept}, {"volumes", plan->volumes},
			    {"in_doubt", plan->in_doubt}, {"notes", notes}, {"from_disks", true}, {"done", r->request.yes},
			    {"vouch", r->down.empty() ? std::string("all hosts are there")
						      : fmt::format("you vouch that {} {} dead for good, and that no newer copy is there", fmt::join(r->down, ", "),
								    r->down.size() == 1 ? "is" : "are")}};
	if (!r->request.yes)
		return r->done(shown);
	if (!plan->in_doubt.empty())
		return r->done(coded("in-doubt", forbidden(fmt::format("it is not known which copy to take of {}: name it with --copy VOLUME=HOST, or leave the volume "
								       "out with --copy VOLUME=none", fmt::join(plan->in_doubt, ", ")))));
	std::vector<std::string> named = r->request.dead;
	std::ranges::sort(named);
	if (named != r->down)
		return r->done(forbidden(fmt::format("name exactly the hosts that are dead for good with --dead: not reachable {} {}",
						     r->down.size() == 1 ? "is" : "are", r->down.empty() ? "none" : fmt::format("{}", fmt::join(r->down, ", ")))));
	Pending p;
	p.host = *rejoining_;
	p.host.raft_id = (plan->entry["epoch"].get<uint64_t>() << EPOCH_SHIFT) + 1;
	p.authority = r->input.authority.cert;
	p.entry = plan->entry;
	auto key = own_key(config_.state_dir);
	if (!key)
		return r->done(key.error());
	auto cert = issue_certificate(r->input.authority, *public_key_of(*key), {r->input.uuid, p.host.host_id, p.host.raft_id},
				      int64_t(unix_ms() / 1000) + HOST_CERT_SECONDS);
	if (!cert)
		return r->done(cert.error());
	p.certificate = *cert;
	// From here on it happens, whoever is killed.
	if (Done stored = store_pending(config_.state_dir, p); !stored)
		return r->done(stored.error());
	r->done(shown);
	stop(fmt::format("the cluster gets a new log, made of what the disks say; it starts anew in epoch {}", plan->entry["epoch"].get<uint64_t>()));
}

}    // namespace lockstep
