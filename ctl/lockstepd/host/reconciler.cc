// SPDX-License-Identifier: GPL-2.0-or-later
//
// How a step is taken. A look at an object finds the first thing that differs and starts one step for it: an action on
// a worker thread (act), or a proposal to the log (ask). The task is busy until the step is over; an action's task stays
// closed until a dump taken after it shows the kernel's new state, since an old dump would have the step repeated. Then the
// object is looked at again.
//
// A volume has several tasks, because its aspects must not wait for each other: a device goes on learning new versions of
// the record while the replica's disk hangs, or while a proposal waits for a quorum.
#include "lockstepd/host/reconciler.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

namespace lockstep {

namespace {

uint64_t back_off_ms(unsigned failures)
{
	return std::min(STEP_RETRY_MIN_MS << std::min(failures - 1, 10u), STEP_RETRY_MAX_MS);
}

}    // namespace

// An answer of the state machine that is a refusal is an error like any other here.
Done outcome(const Result<nlohmann::json> &answer)
{
	if (!answer)
		return answer.error();
	if (answer->value("ok", false))
		return Nothing{};
	return Error{static_cast<Status>(answer->value("status", int(Status::failed))), answer->value("message", "refused without a reason")};
}

namespace {

const char *role_text(uint8_t role)
{
	static const char *const names[] = {"idle", "activating", "active", "draining"};
	return role < std::size(names) ? names[role] : "idle";
}

const char *sync_text(uint8_t state)
{
	static const char *const names[] = {"member", "away", "running", "joining", "lost"};
	return state < std::size(names) ? names[state] : "away";
}

}    // namespace

std::string vg_key(const std::string &vg) { return "vg:" + vg; }
std::string config_key(uint32_t vid) { return fmt::format("config:{}", vid); }
std::string replica_key(uint32_t vid) { return fmt::format("replica:{}", vid); }
KernelVolumeSpec kernel_spec(const Volume &v) { return {v.vid, v.uuid, v.name, v.minor, v.size_bytes, v.block_size, v.cls}; }
std::string serve_key(uint32_t vid) { return fmt::format("serve:{}", vid); }

Reconciler::Reconciler(HostId self, ReconcilerWorld world) : self_(self), world_(std::move(world)) {}
Reconciler::~Reconciler() { stop_copies(); }

// ---- steps ----

bool Reconciler::may(const Task &task) const
{
	const bool seen = dumps_done_ >= task.needs_dump || !module_error_.empty();
	return !task.busy && world_.now_ms() >= task.not_before_ms && seen;
}

void Reconciler::finish(Task &task, const std::string &object, const Done &result, uint64_t retry_max_ms)
{
	task.busy = false;
	soft_revision_++;    // a dump ends here, too
	if (result) {
		if (!task.error.empty())
			world_.log(object + ": works again");
		task.failures = 0;
		task.error.clear();
		return;
	}
	task.failures++;
	task.status = result.error().status;
	task.not_before_ms = world_.now_ms() + std::min(back_off_ms(task.failures), retry_max_ms);
	if (task.error != result.error().message && result.error().message != module_error_)
		world_.log(result.error().message.rfind(object, 0) == 0 ? result.error().message
									 : object + ": " + result.error().message);
	task.error = result.error().message;
}

std::string Reconciler::object_name(uint32_t vid) const
{
	const Volume *v = world_.state().volume(vid);
	if (const LastKnown *known = last_known(); !v && known)
		v = known->state.volume(vid);
	return v ? "volume " + v->name : fmt::format("volume {}", vid);
}

// Tasks are found again by vid afterwards: works_ may have changed, but keeps an entry while one of its tasks is busy.
void Reconciler::act(uint32_t vid, Aspect aspect, const std::string &key, std::function<Done()> step, std::function<void(bool)> after)
{
	(works_[vid].*aspect).busy = true;
	auto result = std::make_shared<Done>(Nothing{});
	world_.run(
		key, [result, step = std::move(step)] { *result = step(); },
		[this, vid, aspect, result, after = std::move(after)] {
			finish(works_[vid].*aspect, object_name(vid), *result);
			(works_[vid].*aspect).needs_dump = dumps_begun_ + 1;
			request_dump();
			if (after)
				after(bool(*result));
			touch(vid);
			look();
		});
}

void Reconciler::ask(uint32_t vid, Aspect aspect, Json entry, std::function<void(bool)> after)
{
	(works_[vid].*aspect).busy = true;
	entry["vid"] = vid;
	if (!entry.contains("host"))
		entry["host"] = self_;
	world_.propose(entry, [this, vid, aspect, after = std::move(after)](Result<Json> answer) {
		const Done result = outcome(answer);
		finish(works_[vid].*aspect, object_name(vid), result, LOG_RETRY_MAX_MS);
		if (after)
			after(bool(result));
		touch(vid);
		look();
	});
}

// ---- what is ----

void Reconciler::request_dump()
{
	if (dumping_)
		dump_again_ = true;
	else
		take_dump();
}

void Reconciler::take_dump()
{
	dumping_ = true;
	dump_again_ = dump_wanted_ = false;
	dumped_ms_ = world_.now_ms();
	const uint64_t number = ++dumps_begun_;
	auto result = std::make_shared<Result<KernelDump>>(KernelDump{});
	auto refused = std::make_shared<bool>(false);
	world_.run(
		"kernel",
		[result, refused, kernel = world_.kernel, self = self_, host_set = host_set_] {
			if (!host_set)
				if (Done done = kernel.host_set(self); !done) {
					*result = done.error();
					*refused = true;
					return;
				}
			*result = kernel.dump();
		},
		[this, result, refused, number] {
			dumping_ = false;
			if (std::string told = *refused ? result->error().message : ""; told != host_refused_) {
				host_refused_ = told;
				if (world_.host_refused)
					world_.host_refused();
			}
			if (*result) {
				host_set_ = true;
				touch_what_is_new(dump_ ? *dump_ : KernelDump{}, **result);
				sweep_ = sweep_ || !dump_;
				dump_ = std::move(**result);
				dumps_done_ = number;
				finish(kernel_task_, "kernel", Nothing{});
			} else {
				host_set_ = false;
				finish(kernel_task_, "kernel", result->error());
			}
			answer_in_use(*result ? Done(Nothing{}) : result->error());
			if (dump_again_)
				take_dump();
			if (*result && world_.dumped)
				world_.dumped();
			look();
		});
}

// Also what waits for this dump, whatever it shows.
void Reconciler::touch_what_is_new(const KernelDump &before, const KernelDump &now)
{
	touched_.insert(restless_.begin(), restless_.end());
	dump_busy_ = false;
	for (const auto &[vid, k] : now.volumes) {
		const KernelVolume *known = before.volume(vid);
		if (!known || *known != k)
			touch(vid);
		dump_busy_ = dump_busy_ || k.pending > 0 || k.open_waiters > 0 || std::ranges::any_of(k.peers, [](const KernelPeerReplica &p) {
			return p.sync_state == LKS_SYNC_RUNNING || p.sync_state == LKS_SYNC_JOINING;
		});
	}
	for (const auto &[vid, k] : before.volumes)
		if (!now.volume(vid))
			touch(vid);
}

void Reconciler::kernel_resync()
{
	host_set_ = false;
	request_dump();
}

void Reconciler::module_changed(const std::string &error)
{
	if (module_error_ != error)
		world_.log(error.empty() ? "the kernel module is there" : error);
	module_error_ = error;
	sweep_ = true;
	if (!error.empty())
		dump_.reset();
	kernel_resync();
}

// The first barrier: from then on the State is at least as new as this daemon.
void Reconciler::sync()
{
	if (synced_ || !may(sync_task_))
		return;
	sync_task_.busy = true;
	world_.barrier([this](Done done) {
		synced_ = bool(done);
		sweep_ = true;
		finish(sync_task_, "cluster", done, LOG_RETRY_MAX_MS);
		look();
	});
}

void Reconciler::read_log_for(uint32_t vid)
{
	works_[vid].replica.busy = true;
	barrier_for_.insert(vid);
	start_barrier();
}

// One barrier serves all replicas that were attached before it began.
void Reconciler::start_barrier()
{
	if (barrier_busy_ || barrier_for_.empty())
		return;
	barrier_busy_ = true;
	std::set<uint32_t> served;
	served.swap(barrier_for_);
	world_.barrier([this, served](Done done) {
		barrier_busy_ = false;
		for (uint32_t vid : served) {
			VolumeWork &w = works_[vid];
			w.read_log = bool(done);
			finish(w.replica, object_name(vid), done, LOG_RETRY_MAX_MS);
			touch(vid);
		}
		start_barrier();
		look();
	});
}

// ---- events ----

void Reconciler::kernel_event(const KernelEvent &event)
{
	switch (event.kind) {
	case LKS_CMD_EV_PROPOSE:
		propose_change(event);
		return;
	case LKS_CMD_EV_CLOSE: {
		VolumeWork &w = works_[event.vid];
		w.ended = std::max(w.ended, event.session);
		w.open.needs_dump = dumps_begun_ + 1;    // an older one may show the wait of the open that has come to its end
		break;
	}
	case LKS_CMD_EV_DISK_ERROR:
		world_.log(fmt::format("{}: its disk on this host failed: {} ({})", object_name(event.vid), event.op, strerror(std::abs(event.error))));
		break;
	case LKS_CMD_EV_SILENT:
		world_.log(fmt::format("host {} does not answer on the storage network", world_.state().host_name(event.host)));
		break;
	case LKS_CMD_EV_QUIESCED:
	case LKS_CMD_EV_UNQUIESCED:
		snapshot_event(event);
		suspension_event(event);
		break;
	case LKS_CMD_EV_MISMATCH:
		world_.log(fmt::format("{}: verify found {} bytes at byte {} that differ on host {}{}", object_name(event.vid), event.length, event.at,
				       world_.state().host_name(event.host), event.repair ? "; they are being repaired" : ""));
		break;
	case LKS_CMD_EV_LINK_DOWN:
		world_.log_about("lanes " + world_.state().host_name(event.host),
				 fmt::format("link {} to host {} is down: {}", event.link, world_.state().host_name(event.host), event.reason));
		break;
	default:
		break;
	}
	touch(event.vid);
	kernel_changed();
}

void Reconciler::kernel_changed()
{
	dump_wanted_ = true;
	look();
}

// The kernel repeats its wish until it is met or outrun, so a refusal is no error and one proposal at a time is enough.
void Reconciler::propose_change(const KernelEvent &event)
{
	Task &task = works_[event.vid].change;
	if (!event.record || task.busy)
		return;
	task.busy = true;
	world_.propose(propose_entry(*event.record, self_), [this, vid = event.vid](Result<Json> answer) {
		Done done = outcome(answer);
		if (!done && done.error().status == Status::forbidden)
			done = Nothing{};
		finish(works_[vid].change, object_name(vid), done, LOG_RETRY_MAX_MS);
		touch(vid);
		look();
	});
}

void Reconciler::tick()
{
	const uint64_t age_ms = world_.now_ms() - dumped_ms_;
	const bool due = age_ms >= (dump_ && !dump_busy_ ? DUMP_PERIOD_MS : DUMP_BUSY_PERIOD_MS);
	if (!dumping_ && (due || (dump_wanted_ && age_ms >= DUMP_LEAST_MS)))
		take_dump();
	touched_.insert(restless_.begin(), restless_.end());
	look();
}

// ---- looking ----

void Reconciler::touch(uint32_t vid)
{
	if (vid)
		touched_.insert(vid);
}

bool Reconciler::sweep_is_due()
{
	const bool quorum = !world_.quorum || world_.quorum();    // see look_tuning()
	const uint64_t now_ms = world_.now_ms(), applied = world_.state().applied;
	if (!sweep_ && quorum == quorum_ && applied == swept_applied_ && now_ms - swept_ms_ < SWEEP_MS)
		return false;
	sweep_ = false;
	quorum_ = quorum;
	swept_applied_ = applied;
	swept_ms_ = now_ms;
	return true;
}

bool Reconciler::at_rest(uint32_t vid) const
{
	const auto found = works_.find(vid);
	if (found == works_.end())
		return true;
	const VolumeWork &w = found->second;
	const uint64_t now_ms = world_.now_ms();
	for (const Task *t : w.tasks())
		if (t->busy || t->failures || !t->error.empty() || t->not_before_ms > now_ms || t->needs_dump > dumps_done_)
			return false;
	const KernelVolume *k = dump_ ? dump_->volume(vid) : nullptr;
	return !w.follow && w.disk_retry_ms <= now_ms && !(k && (k->hold || k->open_waiters));
}

void Reconciler::look()
{
	// A fake world may call back at once; a look that is under way then goes round again.
	if (looking_) {
		look_again_ = true;
		return;
	}
	looking_ = true;
	do {
		look_again_ = false;
		sync();
		if (!synced_)
			assemble();
		if (!synced_ || !world_.state().host(self_))    // a host that was removed makes nothing anew
			continue;
		if (dump_wanted_ && !dumping_ && world_.now_ms() - dumped_ms_ >= DUMP_LEAST_MS)
			take_dump();
		look_at_pools();
		if (dump_)
			look_at_peers();
		const bool all = sweep_is_due();
		look_at_volumes(all);
		look_at_snapshots(all);
		look_at_suspensions();
		look_leaving();
	} while (look_again_);
	looking_ = false;
}

void Reconciler::look_at_volumes(bool all)
{
	std::set<uint32_t> vids;
	vids.swap(touched_);
	if (all) {
		for (const auto &[vid, v] : world_.state().volumes)
			vids.insert(vid);
		if (dump_)
			for (const auto &[vid, k] : dump_->volumes)
				vids.insert(vid);
		for (const auto &[vid, w] : works_)
			vids.insert(vid);
	}
	for (uint32_t vid : vids) {
		looks_++;
		look_at_volume(vid);
		if (at_rest(vid))
			restless_.erase(vid);
		else
			restless_.insert(vid);
	}
}

void Reconciler::look_at_peers()
{
	const State &state = world_.state();
	for (const auto &[id, host] : state.hosts)
		if (id != self_ && !dump_->peer(id))
			look_at_peer(id, host.name, true);
	for (const auto &[id, peer] : dump_->peers)
		if (!state.host(id))
			look_at_peer(id, state.host_name(id), false);
}

void Reconciler::look_at_peer(HostId host, const std::string &name, bool wanted)
{
	Task &task = peer_tasks_[host];
	if (!may(task))
		return;
	task.busy = true;
	auto result = std::make_shared<Done>(Nothing{});
	world_.run(
		fmt::format("peer:{}", host),
		[result, kernel = world_.kernel, host, wanted] { *result = wanted ? kernel.peer_set(host) : kernel.peer_del(host); },
		[this, result, host, name] {
			Task &task = peer_tasks_[host];
			finish(task, "host " + name, *result);
			task.needs_dump = dumps_begun_ + 1;
			request_dump();
		});
}

void Reconciler::look_at_volume(uint32_t vid)
{
	const Volume *v = world_.state().volume(vid);
	const KernelVolume *k = dump_ ? dump_->volume(vid) : nullptr;
	VolumeWork &w = works_[vid];
	const std::optional<Phase> phase = v ? std::optional(v->phase) : std::nullopt;
	if (w.phase != phase) {
		// What failed for one purpose need not fail for the next.
		for (Task *task : w.tasks()) {
			task->failures = 0;
			task->not_before_ms = 0;
			task->error.clear();
		}
		w.phase = phase;
	}
	const Replica *mine = v ? v->replica(self_) : nullptr;
	if (const uint64_t added = mine ? mine->added : 0; w.added != added) {
		w.replica.failures = 0;
		w.replica.not_before_ms = 0;
		w.replica.error.clear();
		w.disk_retry_ms = 0;
		w.added = added;
	}
	if (!v) {
		const auto tasks = w.tasks();
		const bool idle = std::none_of(tasks.begin(), tasks.end(), [](const Task *t) { return t->busy; });
		if (k)
			drop(vid, *k, w);
		else if (dump_ && idle)
			works_.erase(vid);
		return;
	}
	switch (v->phase) {
	case Phase::creating:
		if (k)    // it is being reverted: nothing of before may go on
			take_down(vid, *k, w);
		else if (dump_ || !v->reverting)
			look_creating(*v, w);
		break;
	case Phase::ready:
		if (const Replica *r = v->replica(self_); r && !r->created)
			look_creating(*v, w);
		if (!dump_)
			break;
		if (leaving()) {
			if (k)
				take_down(vid, *k, w);
			else if (const Remnant *left = v->remnant(self_))
				look_remnant(*v, *left, w);
			break;
		}
		if (const Remnant *left = v->remnant(self_); left && !(k && k->replica))
			look_remnant(*v, *left, w);
		look_config(*v, k, w);
		if (k) {
			look_sessions(*v, *k, w);
			look_replica(*v, *k, w);
			look_serving(*v, *k, w);
		}
		break;
	case Phase::deleting:
		if (dump_)
			look_deleting(*v, k, w);
		break;
	}
}

// ---- a volume in use ----

void Reconciler::look_config(const Volume &v, const KernelVolume *k, VolumeWork &w)
{
	// While a replica is being attached its kernel does not say what it knows. That is not to know nothing.
	if (!may(w.config) || (k && !k->whole))
		return;
	// This kernel knows nothing of any session: whatever the log lists for this host is over.
	if (const Opener *mine = v.opener(self_); mine && (!k || !k->noted_version))
		w.ended = std::max(w.ended, mine->session);
	if (!k) {
		const KernelVolumeSpec spec = kernel_spec(v);
		w.tune.reset();
		w.node_seen = false;
		act(v.vid, &VolumeWork::config, config_key(v.vid), [kernel = world_.kernel, spec] { return kernel.volume_add(spec); });
		return;
	}
	if (k->uuid != v.uuid) {
		finish(w.config, object_name(v.vid),
		       failed(fmt::format("the kernel of host {} holds another volume under its id {}: restart that host",
					  world_.state().host_name(self_), v.vid)));
		return;
	}
	if (k->noted_version < v.version) {
		act(v.vid, &VolumeWork::config, config_key(v.vid),
		    [kernel = world_.kernel, record = to_record(v)] { return kernel.config_set(record, false); });
		return;
	}
	if (look_size(v, *k, w))
		return;
	if (!k->has_device) {
		act(v.vid, &VolumeWork::config, config_key(v.vid), [kernel = world_.kernel, vid = v.vid] { return kernel.device_add(vid); });
		return;
	}
	if (!v.devices.contains(self_) && may(w.ready)) {
		if (world_.node_exists(v.name))
			ask(v.vid, &VolumeWork::ready, {{"op", "device.ready"}});
		else
			finish(w.ready, object_name(v.vid),
			       failed(fmt::format("/dev/lockstep/{} has not appeared on host {}: see that udev runs with Lockstep's rules there",
						  v.name, world_.state().host_name(self_))));
	}
}

void Reconciler::look_sessions(const Volume &v, const KernelVolume &k, VolumeWork &w)
{
	w.ended = std::max(w.ended, k.session_ended);
	const Opener *mine = v.opener(self_);
	const bool granted = mine && mine->session > w.ended;
	if (mine && !granted && may(w.close))
		ask(v.vid, &VolumeWork::close, {{"op", "record.close"}, {"session", mine->session}});
	if (k.open_waiters && !(granted && v.primary) && may(w.open) && dumps_done_ >= w.config.needs_dump)
		ask_open(v.vid);
}

void Reconciler::ask_open(uint32_t vid)
{
	works_[vid].open.busy = true;
	const Json entry = {{"op", "record.open"}, {"vid", vid}, {"host", self_}, {"ended", works_[vid].ended}};
	world_.propose(entry, [this, vid](Result<Json> answer) {
		const Done result = outcome(answer);
		VolumeWork &w = works_[vid];
		const HostId holder = result || result.error().status != Status::forbidden ? 0 : other_holder(vid);
		if (holder)
			ask_holder(vid, holder);
		else
			finish(w.open, object_name(vid), result, LOG_RETRY_MAX_MS);
		touch(vid);
		look();
	});
}

HostId Reconciler::other_holder(uint32_t vid) const
{
	const State &state = world_.state();
	if (const Volume *v = state.volume(vid))
		for (const Opener &o : v->openers)
			if (o.host != self_ && state.online(o.host))
				return o.host;
	return 0;
}

// If another host holds the volume and says so itself, whoever waits here is told now. If it does not answer it may be dead:
// then it is soon called offline, and the next try succeeds. Other reasons may pass, too: those who wait go on waiting.
void Reconciler::ask_holder(uint32_t vid, HostId holder)
{
	world_.ask_in_use(holder, vid, [this, vid, holder](Result<bool> in_use) {
		VolumeWork &w = works_[vid];
		finish(w.open, object_name(vid), Nothing{});
		w.open.not_before_ms = world_.now_ms() + STEP_RETRY_MIN_MS;
		if (const Volume *v = world_.state().volume(vid); v && in_use && *in_use)
			refused(*v, holder, w);
		if (in_use && *in_use)
			act(vid, &VolumeWork::open, config_key(vid), [kernel = world_.kernel, vid] { return kernel.open_refuse(vid, -EBUSY); });
		touch(vid);
		look();
	});
}

// Told once a while: who tries again and again must not fill the log.
void Reconciler::refused(const Volume &v, HostId holder, VolumeWork &w)
{
	const uint64_t now = world_.now_ms();
	if (w.refused_for != holder || !w.refused_logged_ms || now - w.refused_logged_ms >= REFUSED_LOG_MS) {
		world_.log(fmt::format("volume {}: an open on host {} was refused: it is open on host {}", v.name, world_.state().host_name(self_),
				       world_.state().host_name(holder)));
		w.refused_logged_ms = now;
	}
	w.refused_for = holder;
	w.refused_ms = now;
}

void Reconciler::in_use(uint32_t vid, std::function<void(Result<bool>)> done)
{
	in_use_questions_.push_back({vid, dumps_begun_ + 1, std::move(done)});
	request_dump();
}

void Reconciler::answer_in_use(const Done &dumped)
{
	auto due = std::stable_partition(in_use_questions_.begin(), in_use_questions_.end(),
					 [this](const InUseQuestion &q) { return q.needs_dump > dumps_begun_; });
	std::vector<InUseQuestion> answered(std::make_move_iterator(due), std::make_move_iterator(in_use_questions_.end()));
	in_use_questions_.erase(due, in_use_questions_.end());
	for (const InUseQuestion &q : answered) {
		const KernelVolume *k = dumped ? dump_->volume(q.vid) : nullptr;
		q.done(dumped ? Result<bool>(k && (k->writers || k->open_waiters)) : Result<bool>(dumped.error()));
	}
}

void Reconciler::look_replica(const Volume &v, const KernelVolume &k, VolumeWork &w)
{
	const Replica *r = v.replica(self_);
	if (!may(w.replica))
		return;
	auto detach = [&] {
		act(v.vid, &VolumeWork::replica, replica_key(v.vid), [kernel = world_.kernel, vid = v.vid] { return kernel.replica_detach(vid); });
	};
	if (!r || !r->created) {
		if (k.replica && !k.replica->stuck)    // its kernel would wait for that disk
			detach();
		return;
	}
	if (!k.replica) {
		attach(v, *r, w);
		return;
	}
	if (k.replica->stuck && !k.replica->failed)
		return look_stuck(v, *r, w);
	// Left out while it was full or stuck, it was admitted before: it is attached anew, and then made good.
	const bool left_out = r->state == ReplicaState::failed && (k.replica->full || k.replica->admitted);
	if (k.replica->failed || left_out) {
		w.disk_retry_ms = world_.now_ms() + DISK_RETRY_MS;
		if (r->state == ReplicaState::failed) {
			detach();
		} else if (others_can_serve(v) || !r->in_sync()) {
			ask(v.vid, &VolumeWork::replica, {{"op", "record.failed"}});
		} else {
			// Nothing is won by giving it up, and a disk may come back: a cable, a controller that was reset. It is attached
			// again like one whose host was restarted.
			finish(w.alone, object_name(v.vid),
			       failed(fmt::format("its disk on this host failed, and no other host that is online has a good copy: what is read and "
						  "written waits; tried again every {} s: see to that disk, or bring the other hosts back",
						  DISK_RETRY_MS / 1000)));
			detach();
		}
		return;
	}
	if (look_full(v, k, *r, w))
		return;
	if (k.replica->admitted && w.alone.failures)
		finish(w.alone, object_name(v.vid), Nothing{});
	if (!k.replica->admitted)
		admit(v, k, *r, w);
	else if (look_growth(v, k, *r, w))
		return;
	else if (k.replica->suspect && v.primary == self_ && k.role == LKS_IDLE && k.noted_version >= v.version)
		// S4: it was told and did not begin to serve: the record calls it clean by a join of before its crash. Only as
		// primary: a member that has just joined was suspect when this dump was made.
		ask(v.vid, &VolumeWork::replica, {{"op", "record.suspect"}});
}

bool Reconciler::others_can_serve(const Volume &v) const
{
	return std::any_of(v.replicas.begin(), v.replicas.end(),
			   [&](const Replica &x) { return x.host != self_ && x.clean() && world_.state().online(x.host); });
}

// A full pool: the kernel keeps what it did not take and tries it again. Others go on without this replica; where there are none, the
// volume waits for room, for nothing is wrong with what the replica has.
bool Reconciler::look_full(const Volume &v, const KernelVolume &k, const Replica &r, VolumeWork &w)
{
	if (!k.replica->full) {
		if (w.full.failures)
			finish(w.full, object_name(v.vid), Nothing{});
		return false;
	}
	if (r.state == ReplicaState::insync && others_can_serve(v)) {
		ask(v.vid, &VolumeWork::replica, {{"op", "record.failed"}});
		return true;
	}
	if (!w.full.failures)
		finish(w.full, object_name(v.vid),
		       failed(fmt::format("pool {} on this host is full{}: extend it, then all goes on by itself", r.pool,
					  r.clean() ? ", and no other host has a good copy: what is written waits" : "")));
	return false;
}

// A disk that answers nothing: others go on without it. It stays attached: what it has been given it may yet read or write.
void Reconciler::look_stuck(const Volume &v, const Replica &r, VolumeWork &w)
{
	const bool spared = others_can_serve(v) || !r.in_sync();
	const std::string text = fmt::format("its disk on this host answers nothing{}: see to that disk; when it answers again all goes on by itself",
					     spared ? ", others go on without it" : ", and no other host has a good copy: what is read and written waits");
	if (w.full.error != text)
		finish(w.full, object_name(v.vid), failed(text));
	if (r.state != ReplicaState::failed && spared)
		ask(v.vid, &VolumeWork::replica, {{"op", "record.failed"}});
}

void Reconciler::attach(const Volume &v, const Replica &r, VolumeWork &w)
{
	if ((r.state == ReplicaState::failed || w.alone.failures) && world_.now_ms() < w.disk_retry_ms)
		return;
	auto lv = lv_of(v, r);
	if (!lv) {
		finish(w.replica, object_name(v.vid), lv.error());
		return;
	}
	// In the log this replica counts as one that could serve: it must not for long when its disk is not there.
	if (r.state != ReplicaState::failed && w.replica.failures >= ATTACH_TRIES && may(w.lost))
		ask(v.vid, &VolumeWork::lost, {{"op", "record.failed"}});
	act(v.vid, &VolumeWork::replica, vg_key(lv->vg),
	    [kernel = world_.kernel, lvm = world_.lvm, lv = *lv, metadata = metadata_of(v, r, *lv)]() -> Done {
		    if (Done done = lvm.activate(lv); !done)
			    return done;
		    auto answer = kernel.replica_attach(metadata.vid, metadata.path, metadata.offset, !lv.thin_pool.empty());
		    if (!answer)
			    return answer.error();
		    return Nothing{};
	    },
	    [this, vid = v.vid](bool ok) {
		    works_[vid].read_log = false;
		    if (!ok)
			    works_[vid].disk_retry_ms = world_.now_ms() + DISK_RETRY_MS;
	    });
}

// S1, S3: first read the log, then have it say what this replica is, then let it take part.
void Reconciler::admit(const Volume &v, const KernelVolume &k, const Replica &r, VolumeWork &w)
{
	if (!w.read_log)
		read_log_for(v.vid);
	else if (r.state == ReplicaState::failed)
		ask(v.vid, &VolumeWork::replica, {{"op", "record.repaired"}});
	else if (k.replica->suspect && r.state == ReplicaState::insync)
		ask(v.vid, &VolumeWork::replica, {{"op", "record.suspect"}});
	else if (v.primary == self_ && k.role == LKS_IDLE)
		ask(v.vid, &VolumeWork::replica, {{"op", "record.resign"}});
	else
		act(v.vid, &VolumeWork::replica, replica_key(v.vid),
		    [kernel = world_.kernel, record = to_record(v)] { return kernel.config_set(record, true); });
}

// ---- a volume goes ----

void Reconciler::take_down(uint32_t vid, const KernelVolume &k, VolumeWork &w)
{
	auto kernel = world_.kernel;
	if (k.has_device) {
		if (may(w.config))
			act(vid, &VolumeWork::config, config_key(vid), [kernel, vid] { return kernel.device_del(vid); });
	} else if (k.replica) {
		if (may(w.replica))
			act(vid, &VolumeWork::replica, replica_key(vid), [kernel, vid] { return kernel.replica_detach(vid); });
	} else if (may(w.config) && may(w.replica)) {
		act(vid, &VolumeWork::config, config_key(vid), [kernel, vid] { return kernel.volume_del(vid); });
	}
}

// The cluster has deleted it. Somebody may have its device open all the same: a reader, who is in no record, or one who was there
// when it was deleted by force. He gets errors and neither keeps the replica here nor waits for anybody; the device goes when
// he has closed it.
void Reconciler::drop(uint32_t vid, const KernelVolume &k, VolumeWork &w)
{
	auto kernel = world_.kernel;
	if (k.has_device && (k.openers || k.open_waiters)) {
		if (k.replica && may(w.replica))
			act(vid, &VolumeWork::replica, replica_key(vid), [kernel, vid] { return kernel.replica_detach(vid); });
		if (!k.replica && (k.pending || k.open_waiters) && may(w.serve))
			act(vid, &VolumeWork::serve, serve_key(vid), [kernel, vid] { return kernel.abort(vid); });
	}
	take_down(vid, k, w);
}

void Reconciler::look_deleting(const Volume &v, const KernelVolume *k, VolumeWork &w)
{
	if (k) {
		drop(v.vid, *k, w);
		return;
	}
	if (w.making)
		w.making->stop = true;
	const Replica *r = v.replica(self_);
	const Remnant *left = v.remnant(self_);
	if (!v.hosts_with_something().contains(self_) || !may(w.config) || !may(w.replica))
		return;
	if ((r || left) && !w.lv_gone) {
		purge(v, r ? r->pool : left->pool, r ? r->md_offset : left->md_offset, w);
		return;
	}
	if (may(w.gone))
		ask(v.vid, &VolumeWork::gone, {{"op", "replica.deleted"}});
}

// ---- telling ----

std::vector<Problem> Reconciler::problems() const
{
	std::vector<Problem> list;
	auto add = [&](uint32_t vid, const Task &task) {
		if (!task.error.empty())
			list.push_back({vid, task.error});
	};
	if (!module_error_.empty())
		list.push_back({0, module_error_});
	else
		add(0, kernel_task_);
	add(0, sync_task_);
	add(0, leave_task_);
	for (const auto &[host, task] : peer_tasks_)
		add(0, task);
	for (const auto *tasks : {&pool_tasks_, &metadata_tasks_, &disk_tasks_})
		for (const auto &[pool, task] : *tasks)
			add(0, task);
	for (const auto &[vid, w] : works_)
		for (const Task *task : w.tasks())
			add(vid, *task);
	for (const auto &[sid, w] : snapshot_works_)
		if (const Snapshot *s = world_.state().snapshot(sid))
			add(s->vid, w.task);
	return list;
}

nlohmann::json Reconciler::soft_report() const
{
	if (!dump_)
		return Json::object();
	Json volumes = Json::object();
	for (const auto &[vid, k] : dump_->volumes) {
		auto work = works_.find(vid);
		const bool node = k.has_device && work != works_.end() &&
				  (work->second.node_seen || (work->second.node_seen = world_.node_exists(k.name)));
		Json v = {{"role", role_text(k.role)}, {"has_replica", k.replica.has_value()}, {"has_device", node},
			  {"size_bytes", k.size_bytes},
			  {"openers", k.openers}, {"writers", k.writers}, {"pending", k.pending}, {"oldest_ms", k.oldest_ms},
			  {"version", k.version}, {"term", k.term}, {"hot_extents", k.hot_extents},
			  {"written_extents", k.written_extents}};
		if (k.replica) {
			v["admitted"] = k.replica->admitted;
			v["failed"] = k.replica->failed;
			v["lv_path"] = k.replica->path;
			if (auto bytes = allocated_bytes(k.replica->path))
				v["allocated_bytes"] = *bytes;
		}
		if (k.hold)
			v["quiesced"] = true;
		if (auto s = suspensions_.find(vid); s != suspensions_.end() && suspended(vid))
			v["suspended_since_ms"] = s->second.begun_ms;
		if (k.handover_to)
			v["handover_to"] = k.handover_to;
		if (k.verify_total && (work == works_.end() || dumps_done_ >= work->second.verify_needs_dump))
			v["verify"] = {{"total_blocks", k.verify_total}, {"done_blocks", k.verify_done}, {"differ_blocks", k.verify_differ},
				       {"repair", k.verify_repair},
				       {"begun_ms", work == works_.end() ? 0 : work->second.verify_begun_ms}};
		if (work != works_.end() && work->second.refused_for && world_.now_ms() - work->second.refused_ms < REFUSED_LOG_MS)
			v["refused_for"] = work->second.refused_for;
		Json peers = Json::object();
		for (const KernelPeerReplica &p : k.peers)
			peers[std::to_string(p.host)] = {{"sync_state", sync_text(p.sync_state)}, {"dirty_blocks", p.dirty_blocks}};
		v["peers"] = peers;
		volumes[std::to_string(vid)] = std::move(v);
	}
	for (const auto &[sid, w] : snapshot_works_)
		if (const Snapshot *s = world_.state().snapshot(sid); s && w.copy && w.task.busy) {
			const uint64_t total = w.copy->total_blocks;
			volumes[std::to_string(s->vid)]["copies"][std::to_string(sid)] = total ? w.copy->done_blocks * 100 / total : 0;
		}
	for (const auto &[vid, w] : works_)
		if (w.making)
			volumes[std::to_string(vid)]["making"] = {{"done_bytes", w.making->done_bytes.load()}, {"total_bytes", w.making->total_bytes.load()},
								  {"changed_bytes", w.making->changed_bytes.load()}};
	for (const Problem &p : problems())
		if (p.vid)
			volumes[std::to_string(p.vid)]["problem"] = p.message;
	Json disks = Json::object();
	for (const auto &[disk, percent] : disk_percent_)
		disks[disk] = percent;
	return {{"volumes", std::move(volumes)}, {"disks", std::move(disks)}};
}

}    // namespace lockstep
