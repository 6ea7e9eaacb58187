// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/daemon.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include <fmt/format.h>

#include "lockstepd/cluster/option.h"
#include "lockstepd/host/device_mapper.h"
#include "lockstepd/host/disks.h"
#include "lockstepd/host/journal.h"
#include "lockstepd/host/openers.h"
#include "lockstepd/host/orphans.h"
#include "lockstepd/net/socket.h"

namespace lockstep {

namespace {

LinkOptions link_options(const HostConfig &config)
{
	LinkOptions options;
	options.default_port = config.port;
	options.silence_ms = std::min<uint64_t>(options.silence_ms, config.host_timeout_ms * 5 / 8);
	options.heartbeat_ms = std::min<uint64_t>(options.heartbeat_ms, options.silence_ms / 4);
	options.fallback_ms = std::min<uint64_t>(options.fallback_ms, options.silence_ms / 2);
	return options;
}

std::function<void(Done)> when_done(Links::Reply reply)
{
	return [reply = std::move(reply)](Done done) {
		if (done)
			reply(nlohmann::json::object());
		else
			reply(done.error());
	};
}

}    // namespace

std::string with_port(const std::string &address, unsigned port)
{
	return address.find(':') == std::string::npos ? fmt::format("{}:{}", address, port) : fmt::format("[{}]:{}", address, port);
}

std::vector<std::string> addresses_of(const Host &host)
{
	std::vector<std::string> addresses;
	for (const std::string &address : host.addresses)
		addresses.push_back(with_port(address, host.port));
	return addresses;
}

uint64_t unix_ms()
{
	using namespace std::chrono;
	return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

// ---- life ----

Daemon::Daemon(HostConfig config)
	: config_(std::move(config)), log_sink_(config_.name, getenv("JOURNAL_STREAM")), tls_(loop_), listener_(loop_, tls_), dialer_(loop_, tls_),
	  links_(loop_, listener_, dialer_, link_options(config_)), kernel_(kernel_over_netlink(config_.name)), lvm_(lvm_tools()),
	  decisions_([this](Json entry, JsonReply done) { propose(std::move(entry), std::move(done)); }, [this](const std::string &line) { loop_.log(line); }),
	  look_timer_(loop_), lead_timer_(loop_), cert_timer_(loop_), rejoin_timer_(loop_),
	  published_(std::make_shared<State>())
{
	loop_.set_log([this](const std::string &line) {
		const auto [kind, name] = subject_of(line);
		log_sink_.write(line, kind, name);
	});
	workers_ = std::make_unique<Workers>([this](std::function<void()> task) { loop_.post(std::move(task)); });
}

Daemon::~Daemon()
{
	if (api_stopper_.joinable())
		api_stopper_.join();
	signals_.clear();
	if (reconciler_)
		reconciler_->stop_copies();
	workers_.reset();
	events_.reset();
}

Done Daemon::start()
{
	loop_.log(fmt::format("lockstepd on host {} starts", config_.name));
	for (const std::string &line : take_over_witnesses(dm_kernel(), WITNESS_FOLDER_BEFORE, WITNESS_FOLDER))
		loop_.log(line);
	for (const std::string &line : resume_suspended(dm_kernel(), SUSPENDED_FOLDER))    // before anything: a guest may be waiting
		loop_.log(line);
	facts_.host_name = config_.name;
	auto file = load_host_file(config_.state_dir);
	if (!file)
		return file.error();
	if (*file) {
		if (Done finished = finish_pending(*file); !finished)
			return finished;
		if (Done known = take_identity(); !known)
			return known;
	}
	tls_.set_admission([this](const PeerCert &peer, bool established) { return not_a_member(peer, established); });
	tls_.set_client_admission([this](const ClientCert &client) { return not_a_client(client); });
	if (*file)
		own_id_ = (*file)->host_id;
	update_facts();
	Identity identity;
	identity.name = config_.name;
	dialer_.set_identity(identity);
	listener_.set_identity(identity);
	listener_.handlers().on_join = [this](const Hello &, const std::string &, Json request, ListenerHandlers::Reply reply) {
		serve_join(std::move(request), std::move(reply));
	};
	listen_to_links();
	if (Done listening = listener_.listen(config_.addresses, config_.port); !listening)
		return listening;

	api_ = std::make_unique<ApiServer>(backend(), ApiOptions{.socket = config_.socket});
	if (Done serving = api_->start(); !serving)
		return serving;
	if (!config_.witness)
		events_ = std::make_unique<KernelEvents>(
		loop_, config_.name,
		KernelEvents::Handlers{
			.event = [this](const KernelEvent &event) {
				if (!reconciler_)
					return;
				reconciler_->kernel_event(event);
				if (event.kind == LKS_CMD_EV_LINK_DOWN)
					lanes_->link_down(event.host, event.link);
			},
			.resync = [this] {
				if (reconciler_)
					reconciler_->kernel_resync();
			},
			.module = [this](const std::string &error) {
				module_error_ = error;
				if (reconciler_)
					reconciler_->module_changed(error);
				else if (!error.empty())
					loop_.log(error);
				update_facts();
			}});
	listener_.handlers().on_http = [this](const ClientCert &client, const std::string &, int fd) { api_->serve(fd, client); };
	look_timer_.every(LOOK_PERIOD_MS, [this] {
		if (reconciler_)
			reconciler_->tick();
		look();
	});
	lead_timer_.every(LEAD_PERIOD_MS, [this] { lead(); });
	watch_signals();
	if (*file) {
		Done served = check_raft_dir(config_.state_dir, **file);
		const bool lost = !served;
		if (!lost)
			served = serve(**file);
		if (!lost && (served || served.error().code != LOG_DAMAGED))
			return served;
		rejoin(**file, served.error().message);
		return Nothing{};
	}
	loop_.log("no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`");
	return Nothing{};
}

int Daemon::run()
{
	loop_.run();
	return stopping_ ? 0 : int(Status::failed);
}

void Daemon::watch_signals()
{
	for (int number : {SIGTERM, SIGINT}) {
		auto *handle = new uv_signal_t;
		uv_signal_init(loop_.uv(), handle);
		handle->data = this;
		uv_signal_start(handle, [](uv_signal_t *h, int n) { static_cast<Daemon *>(h->data)->stop(strsignal(n)); }, number);
		signals_.push_back(std::shared_ptr<void>(handle, [](void *h) {
			uv_close(static_cast<uv_handle_t *>(h), [](uv_handle_t *closed) { delete reinterpret_cast<uv_signal_t *>(closed); });
		}));
	}
}

// API threads may wait for the loop, so the API is stopped beside it; then the log, then the loop.
void Daemon::stop(const std::string &why)
{
	if (stopping_)
		return;
	stopping_ = true;
	listener_.handlers().on_http = nullptr;
	loop_.log(fmt::format("stopping: {}; the kernel serves on", why));
	api_stopper_ = std::thread([this] {
		api_->stop();
		loop_.post([this] {
			lead_timer_.stop();
			look_timer_.stop();
			cert_timer_.stop();
			rejoin_timer_.stop();
			if (log_)
				log_->close([this] { loop_.stop(); });
			else
				loop_.stop();
		});
	});
}

// ---- as a member ----

Done Daemon::serve(const HostFile &file)
{
	const Identity identity = {file.cluster_uuid, file.host_id, file.raft_id, config_.name};
	dialer_.set_identity(identity);
	listener_.set_identity(identity);
	StateMachine machine;
	machine.apply = [this](uint64_t index, std::string_view entry) {
		asked_.note(state_, entry);
		Json answer = apply_bytes(state_, index, {reinterpret_cast<const uint8_t *>(entry.data()), entry.size()});
		asked_.note(state_, entry, answer);
		state_changed();
		return answer;
	};
	machine.snapshot = [this] {
		const std::vector<uint8_t> bytes = snapshot(state_);
		return std::string(bytes.begin(), bytes.end());
	};
	machine.restore = [this](std::string_view bytes) {
		auto state = restore({reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size()});
		if (!state) {
			loop_.log(state.error().message);
			return false;
		}
		state_ = std::move(*state);
		state_changed();
		return true;
	};
	// The log does not say what of it was committed, hence names nobody, until there is a leader; to find that none is left takes links, too.
	if (first_peers_.empty())
		first_peers_ = load_peers(config_.state_dir);
	links_.set_peers(first_peers_);
	leader_since_ms_ = Loop::now_ms();
	log_ = std::make_unique<ConsensusLog>(loop_, listener_, dialer_, links_, consensus_options(file), std::move(machine));
	log_->set_wanted([this] {
		std::vector<Member> wanted;
		// Between a recovery and its first entry the list is that of the epoch that has ended.
		if (epoch_of(member_->raft_id) != state_.epoch)
			return wanted;
		for (const auto &[id, host] : state_.hosts)
			if (state_.is_member(host))
				wanted.push_back({host.raft_id, id, addresses_of(host), Role::none});
		return wanted;
	});
	log_->on_role_change([this](bool is_leader, int leader) {
		leader_since_ms_ = Loop::now_ms();
		life_clock_.forget();
		decisions_.forget();
		undecided_ = {};
		loop_.log(is_leader ? "this host leads the cluster"
				    : leader ? fmt::format("{} leads the cluster", state_.host(leader) ? "host " + state_.host_name(leader)
													: fmt::format("host {}", leader))
					     : "the cluster has no leader");
		update_facts();
		lead();
	});
	member_ = file;
	if (Done started = log_->start(); !started) {
		member_.reset();
		log_.reset();
		state_ = State();    // what a snapshot before the damage has made of it
		return started;
	}
	cert_timer_.every(CERT_PERIOD_MS, [this] { keep_certificate(); });
	wire_reconciler();
	wire_lanes();
	update_facts();
	state_changed();
	return Nothing{};
}

void Daemon::wire_reconciler()
{
	ReconcilerWorld world;
	world.kernel = kernel_;
	world.lvm = lvm_;
	world.metadata = metadata_tools();
	world.copy_snapshot = [this, lvm = lvm_](const CopyTask &task, CopyProgress &progress) {
		auto ask = [this](HostId host, const std::string &verb, Json body, uint64_t timeout_ms, const std::atomic<bool> &stop) {
			return ask_of_worker(host, verb, std::move(body), timeout_ms, stop);
		};
		return copy_snapshot(lvm, ask, task, progress);
	};
	world.run = [this](const std::string &key, std::function<void()> work, std::function<void()> done) {
		workers_->submit(key, std::move(work), std::move(done));
	};
	world.state = [this]() -> const State & { return state_; };
	world.propose = [this](const Json &entry, JsonReply done) {
		const std::vector<uint8_t> bytes = encode(entry);
		log_->propose(std::string(bytes.begin(), bytes.end()), std::move(done));
	};
	world.barrier = [this](std::function<void(Done)> done) { log_->barrier(std::move(done)); };
	world.ask_in_use = [this](HostId host, uint32_t vid, std::function<void(Result<bool>)> done) {
		links_.call(host, "volume.in_use", {{"vid", vid}}, IN_USE_TIMEOUT_MS, [done = std::move(done)](Result<Json> answer) {
			if (!answer)
				done(answer.error());
			else
				done(answer->is_boolean() && answer->get<bool>());
		});
	};
	world.node_exists = [](const std::string &volume) {
		struct stat node;
		return stat(("/dev/lockstep/" + volume).c_str(), &node) == 0 && S_ISBLK(node.st_mode);
	};
	world.now_ms = Loop::now_ms;
	world.log = [this](const std::string &line) { loop_.log(line); };
	world.log_about = [this](const std::string &subject, const std::string &line) { loop_.log_about(subject, line); };
	world.dumped = [this] { look(); };
	world.host_refused = [this] { update_facts(); };
	world.quorum = [this] { return log_->leader() != 0; };
	world.last_known = [this] { return last_known_.get(); };
	world.removed = [this] { removed(); };
	reconciler_ = std::make_unique<Reconciler>(member_->host_id, std::move(world));
	reconciler_->module_changed(config_.witness ? "this host is a witness: it has no replicas and no devices" : module_error_);
}

void Daemon::wire_lanes()
{
	LanesWorld world;
	world.state = [this]() -> const State & { return state_; };
	world.dump = [this] { return reconciler_->dump(); };
	world.link_up = [this](HostId host) { return links_.up(host); };
	world.path = [this](HostId host) { return links_.address(host); };
	world.call = [this](HostId host, const std::string &verb, Json body, JsonReply done) {
		links_.call(host, verb, std::move(body), LANE_CALL_TIMEOUT_MS, std::move(done));
	};
	world.notify = [this](HostId host, const std::string &verb, Json body) { links_.notify(host, verb, std::move(body)); };
	world.dial = [this](const Host &host, uint32_t lane, uint32_t lanes, uint64_t link, std::function<void(Result<int>)> done) {
		Hello hello;
		hello.purpose = Purpose::lane;
		hello.to_host = host.id;
		hello.lane = lane;
		hello.lanes = lanes;
		hello.link_generation = link;
		hello.plain = link_is_plain(link);
		// What the link has found to work comes first.
		auto addresses = addresses_of(host);
		std::ranges::stable_partition(addresses, [path = links_.address(host.id)](const std::string &a) { return a == path; });
		dialer_.dial(std::move(addresses), host.port, hello, [done = std::move(done)](Result<int> fd, const HelloAnswer &) {
			if (fd)
				set_blocking(*fd, true);
			done(std::move(fd));
		});
	};
	world.lane_add = [this](HostId host, uint8_t lane, uint8_t lanes, uint64_t link, int fd, std::function<void(Done)> done) {
		auto result = std::make_shared<Done>(Nothing{});
		workers_->submit(
			fmt::format("lanes:{}", host),
			[result, kernel = kernel_, host, lane, lanes, link, fd] {
				*result = kernel.lane_add(host, lane, lanes, link, fd);
				close(fd);
			},
			[this, result, done = std::move(done)] {
				reconciler_->kernel_changed();
				done(*result);
			});
	};
	world.now_ms = Loop::now_ms;
	world.log_about = [this](const std::string &subject, const std::string &line) { loop_.log_about(subject, line); };
	lanes_ = std::make_unique<Lanes>(member_->host_id, config_.lanes, std::move(world));
	listener_.handlers().plain_lanes = [this] { return !lanes_encrypted(state_); };
	listener_.handlers().on_lane = [this](int host, uint32_t lane, uint32_t lanes, uint64_t link, int fd) {
		lanes_->accepted(host, lane, lanes, link, fd);
	};
}

void Daemon::listen_to_links()
{
	links_.on_call("lane.prepare", [this](int host, Json, Links::Reply reply) {
		if (lanes_)
			reply(lanes_->prepare(host));
		else
			reply(failed("not ready"));
	});
	links_.on_notice("lane.want", [this](int host, Json body) {
		if (lanes_ && body.is_object() && body.contains("link") && body["link"].is_number_unsigned())
			lanes_->wanted(host, body["link"].get<uint64_t>());
	});
	links_.on_call("host.rejoin", [this](int host, Json body, Links::Reply reply) { serve_rejoin(HostId(host), body, std::move(reply)); });
	links_.on_call("cluster.epoch", [this](int, Json, Links::Reply reply) { reply(Json(state_.epoch)); });
	links_.on_call("disk.survey", [this](int, Json, Links::Reply reply) {
		if (recovering_)    // two that found one log each would be two clusters
			return reply(forbidden(fmt::format("a recovery is under way on host {}", config_.name)));
		survey_disks(std::move(reply));
	});
	links_.on_call("log.position", [this](int, Json, Links::Reply reply) { log_position(std::move(reply)); });
	links_.on_call("volume.in_use", [this](int, Json body, Links::Reply reply) {
		if (!reconciler_ || !body.is_object() || !body.contains("vid") || !body["vid"].is_number_unsigned())
			return reply(failed("not ready"));
		reconciler_->in_use(body["vid"].get<uint32_t>(), [reply](Result<bool> in_use) {
			reply(in_use ? Result<Json>(*in_use) : Result<Json>(in_use.error()));
		});
	});
	links_.on_call("volume.verify", [this](int, Json body, Links::Reply reply) {
		if (!reconciler_)
			return reply(failed("not ready"));
		const uint64_t begun_ms = unix_ms();
		reconciler_->verify(body.at("vid").get<uint32_t>(), body.at("start").get<bool>(), body.at("repair").get<bool>(), begun_ms,
				    [reply, begun_ms](Done done) { reply(done ? Result<Json>(Json{{"begun_ms", begun_ms}}) : Result<Json>(done.error())); });
	});
	links_.on_call("volume.suspend", [this](int, Json body, Links::Reply reply) {
		if (!reconciler_)
			return reply(failed("not ready"));
		const uint32_t vid = body.at("vid").get<uint32_t>();
		if (body.at("suspended").get<bool>())
			reconciler_->suspend_writes(vid, unix_ms(), std::move(reply));
		else
			reconciler_->resume_writes(vid, std::move(reply));
	});
	links_.on_call("host.adjust", [this](int, Json body, Links::Reply reply) {
		if (!reconciler_)
			return reply(failed("not ready"));
		reconciler_->adjust(body.at("vid").get<uint32_t>(), body.at("retry").get<bool>(), std::move(reply));
	});
	links_.on_call("volume.abort", [this](int, Json body, Links::Reply reply) {
		if (!reconciler_)
			return reply(failed("not ready"));
		reconciler_->abort_waiting(body.at("vid").get<uint32_t>(), when_done(reply));
	});
	links_.on_call("volume.openers", [this](int, Json body, Links::Reply reply) {
		const Volume *v = state_.volume(body.at("vid").get<uint32_t>());
		auto found = std::make_shared<Json>(Json::array());
		workers_->submit("openers", [found, device = "/dev/lockstep/" + (v ? v->name : "")] { *found = open_processes(device); },
				 [found, reply] { reply(std::move(*found)); });
	});
	links_.on_call("pool.inspect", [this](int, Json body, Links::Reply reply) {
		if (!body.is_object() || !body.contains("vg") || !body["vg"].is_string() || !body.contains("thin_lv") ||
		    !body["thin_lv"].is_string())
			return reply(usage_error("malformed request"));
		inspect_pool(body["vg"], body["thin_lv"], std::move(reply));
	});
	serve_orphans();
	serve_disks();
	serve_diff();
	serve_revert();
	serve_trails();
	serve_copies();
	links_.on_notice("soft", [this](int host, Json body) {
		if (reconciler_)
			reconciler_->heard(HostId(host), body);
		api_->soft(host, body);
	});
	links_.on_peer_up([this](int host) {
		if (!soft_said_.is_null())
			links_.notify(host, "soft", soft_said_);
		look();
	});
	links_.on_path([this](int host, const std::string &address) {
		tls_.path_changed(host);
		if (lanes_) {
			lanes_->path_changed(HostId(host), address);
			lanes_->look();
		}
	});
	links_.on_peer_down([this](int host) {
		api_->soft(host, nullptr);
	});
}

// ---- the State moves on ----

void Daemon::state_changed()
{
	if (change_posted_)
		return;
	change_posted_ = true;
	loop_.post([this] {
		change_posted_ = false;
		publish();
		if (!member_)
			return;
		// Also if the answer to this host's own host.gone got lost.
		const bool listed = state_.host(member_->host_id) != nullptr;
		if (was_listed_ && !listed) {
			removed();
			return;
		}
		was_listed_ = listed;
		tls_.recheck();
		update_peers();
		if (authority_kept_ != state_.authority.key)
			keep_certificate();
		if (log_->is_leader())
			log_->rebalance_voters();
		reconciler_->look();
		look();
		lead();
	});
}

void Daemon::publish()
{
	const bool recalled = last_known_ && last_known_->state.applied > state_.applied;    // to look at; nothing is decided from it
	const State &now = recalled ? last_known_->state : state_;
	std::shared_ptr<const State> before = published_, next;    // this thread alone writes it
	if (before->applied == now.applied && before->initialized() == now.initialized())
		return;    // of thousands of volumes a copy takes a while
	next = std::make_shared<const State>(now);
	{
		std::lock_guard hold(shared_lock_);
		published_ = next;
	}
	for (const Change &change : changes_between(*before, *next)) {
		// After a start all is new here, and nobody's doing.
		const Asker *asker = before->initialized() ? asked_.who(change.kind, change.name) : nullptr;
		const std::string line = change.line + (asker ? describe(*asker) : "");
		log_sink_.write(line, change.kind, change.name, asker);
		api_->happened(change.kind, change.name, line);
	}
	asked_.clear();
	api_->changed();
}

void Daemon::look()
{
	if (!member_ || stopping_)
		return;
	recall();
	lanes_->look();
	report_soft();
	keep_address();
	ask_whether_member();
	ask_for_epoch();
}

void Daemon::update_peers()
{
	if (!state_.initialized())
		return;
	std::vector<LinkPeer> peers;
	for (const auto &[id, host] : state_.hosts) {
		peers.push_back({id, host.name, addresses_of(host)});
		known_since_ms_.try_emplace(id, Loop::now_ms());
	}
	if (peers != peers_stored_) {
		peers_stored_ = peers;
		if (Done stored = store_peers(config_.state_dir, peers); !stored)
			loop_.log(stored.error().message);
	}
	links_.set_peers(std::move(peers));
}

void Daemon::update_facts()
{
	std::lock_guard hold(shared_lock_);
	facts_.host = member_ ? member_->host_id : own_id_;
	facts_.leader = log_ ? log_->leader() : 0;
	facts_.module_error = module_error_.empty() && reconciler_ ? reconciler_->host_refused() : module_error_;
}

void Daemon::report_soft()
{
	const uint64_t now = Loop::now_ms(), revision = reconciler_->soft_revision();
	if (now - soft_said_ms_ < SOFT_LEAST_MS || (revision == soft_revision_ && now - soft_seen_ms_ < SOFT_LOOK_MS))
		return;
	soft_revision_ = revision;
	soft_seen_ms_ = now;
	Json report = reconciler_->soft_report();
	if (report == soft_said_)
		return;
	soft_said_ms_ = Loop::now_ms();
	soft_said_ = std::move(report);
	links_.notify_all("soft", soft_said_);
	api_->soft(member_->host_id, soft_said_);
}

// ---- leading ----

std::map<HostId, Liveness> Daemon::liveness() const
{
	std::map<HostId, Liveness> alive;
	const uint64_t now = Loop::now_ms();
	for (const auto &[id, host] : state_.hosts) {
		if (id == member_->host_id || links_.up(id))
			alive[id] = {true, unix_ms()};
		else if (auto known = known_since_ms_.find(id);
			 known != known_since_ms_.end() && now - leader_since_ms_ >= ELECTED_GRACE_MS &&
			 now - std::max(links_.last_heard(id), known->second) >= config_.host_timeout_ms)
			alive[id] = {false, unix_ms()};
	}
	return alive;
}

// How long hosts have been away; see repair.h.
void Daemon::count_time()
{
	Json entry = counting_ ? Json() : life_clock_.look(state_, Loop::now_ms());
	if (entry.is_null())
		return;
	counting_ = true;
	propose(std::move(entry), [this](Result<Json> answer) {
		counting_ = false;
		if (!answer)
			loop_.log("the time that hosts have been away could not be written: " + answer.error().message);
	});
}

// The host is in the cluster no more: it forgets that it was. Its raft log is worth nothing without host.json.
void Daemon::removed()
{
	if (Done dropped = drop_host_file(config_.state_dir); !dropped)
		loop_.log(dropped.error().message);
	stop("this host was removed from the cluster; to join one again reload the kernel module first");
}

void Daemon::lead()
{
	if (!member_ || stopping_ || !log_->is_leader())
		return;
	if (!recovery_.is_null()) {
		begin_epoch();
		return;
	}
	if (state_.initialized())
		count_time();
	if (decisions_.busy())
		return;
	if (!state_.initialized()) {
		found_cluster();
		return;
	}
	// What is decided depends on the State, on who is there, and, where there are deadlines, on the time.
	const std::map<HostId, Liveness> alive = liveness();
	const uint64_t now = Loop::now_ms();
	std::map<HostId, bool> online;
	for (const auto &[host, l] : alive)
		online[host] = l.online;
	if (undecided_.applied == state_.applied && undecided_.online == online && now - undecided_.at_ms < LEAD_AGAIN_MS)
		return;
	std::vector<Json> decided = decide(state_, alive, unix_ms());
	if (decided.empty())
		undecided_ = {state_.applied, now, std::move(online)};
	decisions_.propose(std::move(decided), now, [this] { lead(); });
}

void Daemon::propose(Json entry, JsonReply done)
{
	if (!log_)
		return done(coded("no-cluster", forbidden("no cluster yet: run `lockstep cluster init` or `lockstep cluster join TOKEN ADDRESS`")));
	if (std::string why = level_obstacle(state_, entry); !why.empty())
		return done(coded("host-too-old", forbidden(why)));
	const std::vector<uint8_t> bytes = encode(entry);
	log_->propose(std::string(bytes.begin(), bytes.end()), [done = std::move(done)](Result<Json> answer) {
		if (answer && !answer->value("ok", false))
			done(Error{static_cast<Status>(answer->value("status", int(Status::failed))),
				   answer->value("message", "refused without a reason"), answer->value("code", "")});
		else
			done(std::move(answer));
	});
}

// This host is in no cluster: all that carries a tag of ours belongs to nothing.
void Daemon::bare_orphans(JsonReply done)
{
	if (member_ || rejoining_)
		return done(failed("not ready"));
	OrphanWorld w;
	w.lvm = lvm_;
	w.run = [this](const std::string &key, std::function<void()> work, std::function<void()> then) {
		workers_->submit(key, std::move(work), std::move(then));
	};
	w.barrier = [](std::function<void(Done)> reached) { reached(Nothing{}); };
	w.state = []() -> const State & {
		static const State none;
		return none;
	};
	w.inspect = inspect_orphan;
	list_orphans(w, "", false, std::move(done));
}

void Daemon::serve_orphans()
{
	auto world = [this] {
		OrphanWorld w;
		w.self = member_->host_id;
		w.lvm = lvm_;
		w.run = [this](const std::string &key, std::function<void()> work, std::function<void()> done) {
			workers_->submit(key, std::move(work), std::move(done));
		};
		w.barrier = [this](std::function<void(Done)> done) {
			log_->barrier([this, done = std::move(done)](Done reached) {
				publish();
				done(std::move(reached));
			});
		};
		w.state = [this]() -> const State & { return state_; };
		w.published = [this] {
			std::lock_guard hold(shared_lock_);
			return published_;
		};
		w.inspect = inspect_orphan;
		return w;
	};
	links_.on_call("orphan.list", [this, world](int, Json body, Links::Reply reply) {
		if (!log_)
			return reply(failed("not ready"));
		list_orphans(world(), body.at("uuid").get<std::string>(), body.at("show").get<bool>(), std::move(reply));
	});
	links_.on_call("orphan.purge", [this, world](int, Json body, Links::Reply reply) {
		if (!log_)
			return reply(failed("not ready"));
		purge_orphans(world(), body.at("uuid").get<std::string>(), std::move(reply));
	});
}

void Daemon::serve_disks()
{
	auto own_pools = [this] {
		std::vector<Pool> pools;
		for (const auto &[key, pool] : state_.pools)
			if (member_ && pool.host == member_->host_id)
				pools.push_back(pool);
		return pools;
	};
	auto work = [this](Links::Reply reply, bool change, std::function<Result<Json>()> step) {
		auto answer = std::make_shared<Result<Json>>(Json());
		workers_->submit(DISK_WORK, [answer, step = std::move(step)] { *answer = step(); },
				 [this, answer, change, reply] {
					 if (change && reconciler_)
						 reconciler_->look_at_disks();
					 reply(std::move(*answer));
				 });
	};
	links_.on_call("disk.list", [this, own_pools, work](int, Json, Links::Reply reply) {
		work(reply, false, [lvm = lvm_, pools = own_pools(), percent = reconciler_ ? reconciler_->disk_percent() : std::map<std::string, double>()] {
			return list_disks(lvm, pools, percent);
		});
	});
	links_.on_call("disk.at_rest", [this, work](int, Json body, Links::Reply reply) {
		if (!member_)
			return reply(failed("not ready"));
		work(reply, false, [lvm = lvm_, state = std::make_shared<const State>(state_), self = member_->host_id, pool = body.at("pool").get<std::string>()] {
			const Done rest = pool_at_rest(lvm, *state, self, pool);
			return rest ? Result<Json>(Json::object()) : rest.error();
		});
	});
	links_.on_call("disk.change", [this, work](int, Json body, Links::Reply reply) {
		if (!member_)
			return reply(failed("not ready"));
		work(reply, true, [lvm = lvm_, state = std::make_shared<const State>(state_), self = member_->host_id, pool = body.at("pool").get<std::string>(),
			     add = body.at("add").get<std::string>(), remove = body.at("remove").get<std::string>()] {
			return change_disks(lvm, *state, self, pool, add, remove);
		});
	});
}

void Daemon::inspect_pool(const std::string &vg, const std::string &thin_lv, JsonReply done)
{
	const char *allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+_.-";
	for (const std::string &name : {vg, thin_lv.empty() ? vg : thin_lv})
		if (name.empty() || name[0] == '-' || name.find_first_not_of(allowed) != std::string::npos)
			return done(usage_error(fmt::format("\"{}\" is no valid LVM name", name)));
	auto space = std::make_shared<Result<PoolSpace>>(PoolSpace{});
	workers_->submit(
		"vg:" + vg,
		[space, lvm = lvm_, vg, thin_lv] {
			auto report = lvm.report(vg);
			if (report)
				*space = pool_space(*report, vg, thin_lv);
			else
				*space = report.error();
		},
		[this, space, done = std::move(done)] {
			if (*space)
				done(Json{{"size_bytes", (*space)->size_bytes}, {"free_bytes", (*space)->free_bytes}});
			else
				done(Error{space->error().status, fmt::format("host {}: {}", config_.name, space->error().message)});
		});
}

}    // namespace lockstep
