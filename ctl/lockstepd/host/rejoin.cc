// SPDX-License-Identifier: GPL-2.0-or-later
//
// How a host goes on whose log does not: it was lost or damaged, or its epoch has ended, or the majority is lost and a human has
// said so.
//
// Rejoining. A raft id whose votes and acknowledgements are forgotten must never act again. The host sets what is left of its log
// aside and asks the others, known from peers.json, for a new id; it shows the certificate it has, so nobody need invite it. As a learner it
// gets everything anew. Its replicas, its place and its kernel are not touched by any of this.
//
// Recovering. See cluster/recover.h. The plan is made from a copy of the log, all its entries followed. With a yes the decision goes to disk
// (pending.h) and the daemon starts anew: what a start has to finish is then finished in one way, however often it is killed.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "lockstepd/cluster/recover.h"
#include "lockstepd/host/daemon.h"
#include "lockstepd/host/keys.h"

namespace lockstep {

namespace {

constexpr uint64_t ASK_PERIOD_MS = 2000;
constexpr uint64_t ASK_TIMEOUT_MS = 15'000;
constexpr uint64_t LEADERLESS_LEAST_MS = 5000;     // before a majority counts as lost: an election may be under way
constexpr uint64_t POSITION_TIMEOUT_MS = 60'000;

StateMachine into(State &state)
{
	return {[&state](uint64_t index, std::string_view entry) {
			return apply_bytes(state, index, {reinterpret_cast<const uint8_t *>(entry.data()), entry.size()});
		},
		[] { return std::string(); },
		[&state](std::string_view bytes) {
			auto restored = restore({reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size()});
			if (restored)
				state = std::move(*restored);
			return bool(restored);
		}};
}

struct Replayed {
	State state;
	Result<ConsensusLog::Position> at = ConsensusLog::Position{};
};

}    // namespace

// ---- rejoining -----------------------------------------------------------------------------------------------------

// Carries out what is pending. `file` is then as it has become.
Done Daemon::finish_pending(std::optional<HostFile> &file)
{
	auto pending = load_pending(config_.state_dir);
	if (!pending)
		return pending.error();
	if (!*pending)
		return Nothing{};
	if (Done carried = carry_out(config_.state_dir, **pending, consensus_options((*pending)->host)); !carried)
		return carried;
	file = (*pending)->host;
	if ((*pending)->recovers()) {
		recovery_ = (*pending)->entry;
		return Nothing{};
	}
	return drop_pending(config_.state_dir);
}

// Without a log of its own. The certificate may be of an id before the one in host.json; the hello must say the same as it.
void Daemon::rejoin(const HostFile &file, const std::string &why)
{
	loop_.log(fmt::format("{}; this host does not vote any more under its id {}: it asks the others for a new one", why, file.raft_id));
	rejoining_ = file;
	first_peers_ = load_peers(config_.state_dir);
	if (first_peers_.empty())
		loop_.log(fmt::format("{}/peers.json, which names the other hosts, is lost, too: remove this host from the cluster, delete {}/host.json, and "
				      "join again", config_.state_dir, config_.state_dir));
	const Identity identity = {file.cluster_uuid, file.host_id, file.raft_id, config_.name};
	dialer_.set_identity(identity);
	listener_.set_identity(identity);
	links_.set_peers(first_peers_);
	update_facts();
	rejoin_timer_.every(ASK_PERIOD_MS, [this] { ask_for_id(); });
}

void Daemon::ask_for_id()
{
	ask_whether_member();
	if (asking_for_id_ || stopping_)
		return;
	const auto peer = std::ranges::find_if(first_peers_, [&](const LinkPeer &p) { return p.host != rejoining_->host_id && links_.up(p.host); });
	if (peer == first_peers_.end())
		return;
	// Whom we ask may have no majority either; then another one next time.
	std::rotate(first_peers_.begin(), peer + 1, first_peers_.end());
	ask_for_id_of(first_peers_.back().host, *rejoining_, [this](Result<Pending> pending) {
		if (stopping_)
			return;
		if (!pending) {
			if (rejoin_error_ != pending.error().message)
				loop_.log("no new id yet: " + pending.error().message);
			rejoin_error_ = pending.error().message;
			return;
		}
		rejoin_timer_.stop();
		std::optional<HostFile> file;
		Done done = store_pending(config_.state_dir, *pending);
		if (done)
			done = finish_pending(file);
		if (done)
			done = take_identity();
		if (done) {
			rejoining_.reset();
			done = serve(*file);
		}
		if (done)
			loop_.log(fmt::format("this host rejoins the cluster under the id {}", file->raft_id));
		else
			stop("it cannot rejoin: " + done.error().message);
	});
}

void Daemon::ask_for_id_of(HostId peer, const HostFile &file, std::function<void(Result<Pending>)> done)
{
	auto key = own_key(config_.state_dir);
	if (!key)
		return done(key.error());
	asking_for_id_ = true;
	links_.call(peer, "host.rejoin", {{"raft_id", file.raft_id}, {"public_key", *public_key_of(*key)}}, ASK_TIMEOUT_MS,
		    [this, file, done = std::move(done)](Result<Json> answer) {
			    asking_for_id_ = false;
			    if (!answer)
				    return done(answer.error());
			    Pending p;
			    p.host = file;
			    try {
				    p.host.raft_id = answer->at("raft_id").get<uint64_t>();
				    p.authority = answer->at("authority").get<std::string>();
				    p.certificate = answer->at("certificate").get<std::string>();
			    } catch (const Json::exception &e) {
				    return done(failed(fmt::format("the answer is not understood: {}", e.what())));
			    }
			    done(std::move(p));
		    });
}

void Daemon::serve_rejoin(HostId host, const Json &request, JsonReply done)
{
	if (!log_ || !state_.initialized())
		return done(coded("no-quorum", failed(fmt::format("host {} has no log either", config_.name))));
	const std::string public_key = request.at("public_key").get<std::string>();
	const auto digest = key_digest(public_key);
	const Host *known = state_.host(host);
	if (!digest || !known || known->key != *digest)
		return done(forbidden(fmt::format("host {} does not know that key", config_.name)));
	propose({{"op", "host.rejoin"}, {"host", host}, {"raft_id", request.at("raft_id")}}, [this, host, public_key, done](Result<Json> answer) {
		if (!answer)
			return done(answer.error());
		const uint64_t raft_id = answer->at("raft_id");
		const auto cert = issue_certificate(state_.authority, public_key, {state_.uuid, host, raft_id}, int64_t(unix_ms() / 1000) + HOST_CERT_SECONDS);
		if (!cert)
			return done(cert.error());
		done(Json{{"raft_id", raft_id}, {"authority", state_.authority.cert}, {"certificate", *cert}});
	});
}

// This host's log is of an epoch that has ended, and it has survived: another host was recovered, says so, and gives it a new id.
void Daemon::ask_for_epoch()
{
	if (Loop::now_ms() - asked_epoch_ms_ < ASK_PERIOD_MS || asking_for_id_ || recovering_)
		return;
	asked_epoch_ms_ = Loop::now_ms();
	for (const auto &[id, host] : state_.hosts) {
		if (id == member_->host_id || !links_.up(id))
			continue;
		links_.call(id, "cluster.epoch", Json::object(), ASK_TIMEOUT_MS, [this, id = id, name = host.name](Result<Json> answer) {
			if (!answer || !answer->is_number_unsigned() || answer->get<uint64_t>() <= epoch_of(member_->raft_id) || stopping_ || asking_for_id_)
				return;
			loop_.log(fmt::format("the cluster was recovered on host {} and is in epoch {}: this host's log has ended", name, answer->get<uint64_t>()));
			ask_for_id_of(id, *member_, [this](Result<Pending> pending) {
				Done stored = pending ? store_pending(config_.state_dir, *pending) : Done(pending.error());
				if (stored)
					stop("it starts anew as a member of the new epoch");
				else
					loop_.log("no new id yet: " + stored.error().message);
			});
		});
	}
}

// ---- recovering ----------------------------------------------------------------------------------------------------

// For recover() of another host: how much this one's log holds, and the versions that its kernel has adopted.
void Daemon::log_position(JsonReply done)
{
	if (!member_)
		return done(Json(nullptr));    // it has no log that could hold more
	if (log_->leader())
		return done(forbidden(fmt::format("host {} knows a leader: there is a majority", config_.name)));
	Json versions = Json::array();
	if (const KernelDump *dump = reconciler_->dump())
		for (const auto &[vid, v] : dump->volumes)
			if (v.replica)
				versions.push_back({vid, v.version});
	auto replayed = std::make_shared<Replayed>();
	workers_->submit(
		"log", [replayed, options = consensus_options(*member_)] { replayed->at = ConsensusLog::replay(options, into(replayed->state)); },
		[replayed, versions, done = std::move(done)] {
			if (!replayed->at)
				return done(replayed->at.error());
			done(Json{{"term", replayed->at->term}, {"index", replayed->at->index}, {"versions", versions}});
		});
}

struct Daemon::Recovery {
	std::vector<std::string> dead;    // as named by whoever says yes
	bool yes = false;
	JsonReply done;
	Replayed replayed;
	std::set<HostId> down;
	std::map<uint32_t, std::map<HostId, uint64_t>> versions;
	size_t unanswered = 0;
	std::string objection;
};

void Daemon::recover(const RecoverRequest &request, JsonReply done)
{
	if (request.from_disks)
		return rebuild(request, std::move(done));
	if (rejoining_)
		return done(forbidden(fmt::format("host {} has lost its log and cannot be the one to go on with: run this on a host that has one; if none has: "
						  "`lockstep cluster recover --from-disks`", config_.name)));
	if (!request.copies.empty())
		return done(usage_error("--copy goes with --from-disks only: a log says which copies are good"));
	if (!member_)
		return done(coded("no-cluster", forbidden("no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`")));
	if (log_->leader())
		return done(forbidden(fmt::format("the cluster has a leader, {}: nothing is to be recovered. For a host that never comes back: `lockstep host lost`",
						  state_.host_name(HostId(log_->leader())))));
	if (Loop::now_ms() - leader_since_ms_ < LEADERLESS_LEAST_MS)
		return done(forbidden("the leader has just been lost, or this daemon has just started: wait some seconds"));
	if (recovering_)
		return done(forbidden("a recovery is under way on this host already"));
	recovering_ = true;
	auto r = std::make_shared<Recovery>();
	r->dead = request.dead;
	r->yes = request.yes;
	r->done = [this, done = std::move(done)](Result<Json> answer) {
		recovering_ = false;
		done(std::move(answer));
	};
	workers_->submit(
		"log", [r, options = consensus_options(*member_)] { r->replayed.at = ConsensusLog::replay(options, into(r->replayed.state)); },
		[this, r] { recover_ask(r); });
}

// What the hosts that survive know.
void Daemon::recover_ask(std::shared_ptr<Recovery> r)
{
	if (!r->replayed.at)
		return r->done(r->replayed.at.error());
	const State &state = r->replayed.state;
	if (!state.host(member_->host_id))
		return r->done(forbidden(fmt::format("the log of host {} does not know this host: it has not received it yet", config_.name)));
	std::vector<HostId> ask;
	for (const auto &[id, host] : state.hosts)
		if (id == member_->host_id)
			continue;
		else if (links_.up(id))
			ask.push_back(id);
		else
			r->down.insert(id);
	if (const KernelDump *dump = reconciler_->dump())
		for (const auto &[vid, v] : dump->volumes)
			if (v.replica)
				r->versions[vid][member_->host_id] = v.version;
	r->unanswered = ask.size();
	if (ask.empty())
		return recover_decide(r);
	for (HostId id : ask)
		links_.call(id, "log.position", Json::object(), POSITION_TIMEOUT_MS, [this, r, id](Result<Json> answer) {
			recover_answer(*r, id, answer);
			if (--r->unanswered == 0)
				recover_decide(r);
		});
}

void Daemon::recover_answer(Recovery &r, HostId host, const Result<Json> &answer)
{
	const std::string name = r.replayed.state.host_name(host);
	if (!answer) {
		r.objection = fmt::format("host {} is there, but does not say how much its log holds: {}", name, answer.error().message);
		return;
	}
	if (answer->is_null())
		return;
	try {
		const ConsensusLog::Position theirs = {answer->at("term").get<uint64_t>(), answer->at("index").get<uint64_t>()};
		if (theirs > *r.replayed.at)
			r.objection = fmt::format("the log of host {} holds more (term {}, entry {}) than that of {} (term {}, entry {}): run this there", name,
						  theirs.term, theirs.index, config_.name, r.replayed.at->term, r.replayed.at->index);
		for (const Json &pair : answer->at("versions"))
			r.versions[pair.at(0).get<uint32_t>()][host] = pair.at(1).get<uint64_t>();
	} catch (const Json::exception &e) {
		r.objection = fmt::format("the answer of host {} is not understood: {}", name, e.what());
	}
}

void Daemon::recover_decide(std::shared_ptr<Recovery> r)
{
	const State &state = r->replayed.state;
	if (!r->objection.empty())
		return r->done(forbidden(r->objection));
	std::vector<std::string> down;
	for (HostId id : r->down)
		down.push_back(state.host_name(id));
	const Json entry = recover_entry(state, member_->host_id, r->down, r->versions, unix_ms());
	if (std::string why = level_obstacle(state, entry); !why.empty())
		return r->done(coded("host-too-old", forbidden(why)));
	auto plan = recovery_plan(state, entry);
	if (!plan)
		return r->done(plan.error());
	(*plan)["term"] = r->replayed.at->term;
	(*plan)["index"] = r->replayed.at->index;
	(*plan)["done"] = r->yes;
	(*plan)["vouch"] = down.empty() ? std::string("no host counts as dead: all others are there and only start their logs anew")
					: fmt::format("you vouch that {} {} dead for good: if one still runs, or comes back with guests on it, there are two "
						      "different copies of the data", fmt::join(down, ", "), down.size() == 1 ? "is" : "are");
	if (!r->yes)
		return r->done(*plan);
	std::vector<std::string> named = r->dead;
	std::ranges::sort(named);
	std::ranges::sort(down);
	if (named != down)
		return r->done(forbidden(fmt::format("name exactly the hosts that are dead for good with --dead: not reachable {} {}",
						     down.size() == 1 ? "is" : "are", down.empty() ? "none" : fmt::format("{}", fmt::join(down, ", ")))));
	Pending p;
	p.host = *member_;
	p.host.raft_id = ((state.epoch + 1) << EPOCH_SHIFT) + 1;
	p.authority = state.authority.cert;
	p.entry = entry;
	auto key = own_key(config_.state_dir);
	if (!key)
		return r->done(key.error());
	auto cert = issue_certificate(state.authority, *public_key_of(*key), {state.uuid, p.host.host_id, p.host.raft_id},
				      int64_t(unix_ms() / 1000) + HOST_CERT_SECONDS);
	if (!cert)
		return r->done(cert.error());
	p.certificate = *cert;
	// From here on it happens, whoever is killed.
	if (Done stored = store_pending(config_.state_dir, p); !stored)
		return r->done(stored.error());
	r->done(*plan);
	stop(fmt::format("the cluster is recovered from this host's log; it starts anew in epoch {}", state.epoch + 1));
}

// The first entry of the new epoch; until then this leader decides nothing.
void Daemon::begin_epoch()
{
	if (state_.epoch >= epoch_of(member_->raft_id)) {
		recovery_ = nullptr;
		if (Done dropped = drop_pending(config_.state_dir); !dropped)
			loop_.log(dropped.error().message);
		return;
	}
	if (beginning_epoch_)
		return;
	beginning_epoch_ = true;
	propose(recovery_, [this](Result<Json> answer) {
		beginning_epoch_ = false;
		if (!answer)
			loop_.log("the new epoch could not begin: " + answer.error().message);
		lead();
	});
}

}    // namespace lockstep
