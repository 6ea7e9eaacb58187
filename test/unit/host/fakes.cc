// SPDX-License-Identifier: GPL-2.0-or-later
#include "fakes.h"

#include <stdexcept>

namespace lockstep::test {

FakeWorld::FakeWorld(HostId self, std::shared_ptr<FakeLog> shared) : self(self), log(std::move(shared))
{
	groups["vg"] = {"vg", 100 * GIB, 100 * GIB, 4 << 20, false};
}

void FakeWorld::found()
{
	propose({{"op", "cluster.init"}, {"uuid", UUID1}, {"name", "test"}, {"now_ms", 1},
		 {"host", {{"uuid", UUID1}, {"name", "alpha"}, {"addresses", {"10.0.0.1"}}, {"port", 7788}, {"level", 1}}}});
	propose({{"op", "host.add"}, {"uuid", UUID2}, {"name", "beta"}, {"addresses", {"10.0.0.2"}}, {"now_ms", 1}});
	propose({{"op", "host.add"}, {"uuid", UUID3}, {"name", "gamma"}, {"addresses", {"10.0.0.3"}}, {"now_ms", 1}});
	for (int host : {1, 2, 3})
		propose({{"op", "pool.add"}, {"name", "default"}, {"host", host}, {"kind", "thick"}, {"vg", "vg"},
			 {"size_bytes", 100 * GIB}, {"free_bytes", 100 * GIB}});
}

nlohmann::json FakeWorld::propose(Json entry)
{
	entry["level"] = 1;
	Json answer = apply(state, ++log->index, entry);
	if (!answer.value("ok", false))
		throw std::runtime_error(entry.dump() + ": " + answer.value("message", ""));
	return answer;
}

void FakeWorld::remember()
{
	last_known = LastKnown{state, {}};
	for (const auto &[vid, v] : state.volumes)
		if (may_assemble(state, state, self, vid))
			last_known->certain.insert(vid);
}

// ---- the daemon ----

void FakeWorld::make_thin()
{
	for (auto &[key, pool] : state.pools) {
		pool.kind = PoolKind::thin;
		pool.thin_lv = "thin";
	}
	LogicalVolume &thin = lvs["/dev/vg/thin"].lv;
	thin.vg = "vg";
	thin.name = "thin";
	thin.path = "/dev/vg/thin";
	thin.is_thin_pool = true;
	thin.size_bytes = 100 * GIB;
	thin.data_percent = 0;
}

void FakeWorld::start_daemon()
{
	life_ = std::make_shared<int>(0);
	reconciler_ = std::make_unique<Reconciler>(self, world());
	reconciler_->module_changed(module_loaded ? "" : "the kernel module lockstep is not loaded on host " + state.host_name(self));
	reconciler_->look();
}

void FakeWorld::kill_daemon()
{
	life_.reset();
	queue_.clear();
	reconciler_.reset();
}

void FakeWorld::reboot()
{
	kill_daemon();
	volumes.clear();
	peers.clear();
	kernel_host = 0;
	for (auto &[path, lv] : lvs)
		lv.lv.active = false;
	start_daemon();
}

void FakeWorld::unquiesce(uint32_t vid)
{
	KernelEvent e;
	e.kind = LKS_CMD_EV_UNQUIESCED;
	e.vid = vid;
	e.hold = volumes.at(vid).hold;
	volumes.at(vid).hold = 0;
	if (reconciler_)
		reconciler_->kernel_event(e);
}

void FakeWorld::move_on()
{
	for (auto &[vid, k] : volumes)
		if (k.hold && now_ms >= hold_until_ms[vid])
			unquiesce(vid);
	if (!drains)
		return;
	for (auto &[vid, k] : volumes) {
		KernelEvent e;
		e.vid = vid;
		e.hold = k.hold;
		if (k.hold && quiesced.insert({vid, k.hold}).second)
			e.kind = LKS_CMD_EV_QUIESCED;
		if (k.replica && k.replica->move_offset && !k.replica->move_current && k.replica->offset != k.replica->move_offset) {
			k.replica->move_current = true;
			lvs.at(k.replica->path).retire_at = k.replica->move_offset;
			e.kind = LKS_CMD_EV_META_MOVED;
		} else if (k.replica && k.replica->move_offset && k.replica->move_offset == k.replica->offset) {
			k.replica->move_offset = lvs.at(k.replica->path).retire_at = 0;
			k.replica->move_current = false;
			e.kind = LKS_CMD_EV_META_MOVED;
		}
		if (k.handover_to && k.role == LKS_DRAINING && reconciler_) {
			e.kind = LKS_CMD_EV_PROPOSE;
			e.record = to_record(*state.volume(vid));
			e.record->version++;
			e.record->term++;
			e.record->primary = k.handover_to;
			e.record->flags = LKS_RECORD_DRAINED;
		}
		if (e.kind != LKS_CMD_UNSPEC && reconciler_)
			reconciler_->kernel_event(e);
	}
}

bool FakeWorld::step()
{
	if (queue_.empty())
		return false;
	auto task = std::move(queue_.front());
	queue_.pop_front();
	try {
		task();
	} catch (const Killed &) {
		if (when_killed) {
			when_killed();
			return true;
		}
		kill_daemon();
		if (reboot_when_killed)
			reboot();
		else if (restart_when_killed)
			start_daemon();
	}
	return true;
}

void FakeWorld::run_for(uint64_t ms)
{
	run_until([] { return false; }, ms);
}

bool FakeWorld::run_until(const std::function<bool()> &done, uint64_t ms)
{
	const uint64_t end = now_ms + ms;
	for (;;) {
		unsigned turns = 0;
		while (!done() && step())
			if (++turns > 100'000)
				throw std::runtime_error("the reconciler does not come to rest");
		if (done())
			return true;
		if (now_ms >= end)
			return false;
		now_ms += 100;
		move_on();
		if (reconciler_)
			reconciler_->tick();
	}
}

namespace {

std::string path_of(const Snapshot &s) { return snapshot_lv_path({"vg", true, s.vid, s.sid, s.attempt, s.uuid, 0}); }

}    // namespace

ReconcilerWorld FakeWorld::world()
{
	ReconcilerWorld w;
	w.kernel = kernel();
	w.lvm = lvm();
	w.metadata = metadata();
	w.copy_snapshot = [this](const CopyTask &task, CopyProgress &) {
		return effect<Result<uint64_t>>("copy_snapshot " + std::to_string(task.lv.sid), [&]() -> Result<uint64_t> {
			const Snapshot *s = state.snapshot(task.lv.sid);
			if (s && s->copy(self))
				violations.push_back("a whole copy of a snapshot was overwritten");
			FakeLv &f = lvs[task.path];
			f.lv.vg = task.lv.vg;
			f.lv.name = snapshot_lv_name(task.lv);
			f.lv.path = task.path;
			f.lv.tags = {snapshot_lv_tag(task.lv.uuid)};
			f.content = task.base ? "over " + task.base->lv.name : "alone";
			f.data = source_data ? source_data(task) : "";
			return task.metadata.offset;
		});
	};
	std::weak_ptr<int> life = life_;
	w.run = [this, life](const std::string &, std::function<void()> work, std::function<void()> done) {
		queue_.push_back([this, life, work, done] {
			work();
			queue_.push_back([life, done] {
				if (!life.expired())
					done();
			});
		});
	};
	w.state = [this]() -> const State & { return state; };
	w.propose = [this](const Json &entry, std::function<void(Result<Json>)> done) {
		queue_.push_back([this, entry, done] {
			if (!quorum) {
				done(failed("no quorum: 1 of 3 voters reachable"));
				return;
			}
			const std::string op = entry["op"];
			const uint32_t vid = entry.value("vid", 0u);
			proposals.push_back(op);
			if (op == "snapshot.copied")
				for (const auto &[sid, s] : state.snapshots)
					if (sid == entry["sid"] && !lvs.contains(path_of(s)))
						violations.push_back("snapshot.copied without a copy");
			if (op == "replica.created") {
				auto lv = lvs.find(replica_lv_path("vg", vid));
				if (lv == lvs.end() || !lv->second.formatted)
					violations.push_back("replica.created without a formatted replica");
			}
			const auto left = lvs.find(replica_lv_path("vg", vid));
			if (op == "replica.purged" && left != lvs.end() && !left->second.lv.tags.empty())
				violations.push_back("replica.purged while there is something left of it");
			if (op == "replica.deleted" && ((left != lvs.end() && !left->second.lv.tags.empty()) || volumes.contains(vid)))
				violations.push_back("replica.deleted while there is something left of it");
			Result<Json> answer = effect<Result<Json>>(op + " " + std::to_string(vid), [&]() -> Result<Json> {
				Json full = entry;
				full["level"] = 1;
				return apply(state, ++log->index, full);
			});
			done(answer);
		});
	};
	w.barrier = [this](std::function<void(Done)> done) {
		barriers_begun++;
		queue_.push_back([this, done] { done(quorum ? Done(Nothing{}) : Done(failed("no quorum: 1 of 3 voters reachable"))); });
	};
	w.ask_in_use = [this](HostId host, uint32_t, std::function<void(Result<bool>)> done) {
		queue_.push_back([this, host, done] {
			if (in_use_there.contains(host))
				done(in_use_there[host]);
			else
				done(failed("no answer"));
		});
	};
	w.node_exists = [this](const std::string &name) {
		for (const auto &[vid, k] : volumes)
			if (k.name == name && k.has_device)
				return true;
		return false;
	};
	w.quorum = [this] { return quorum; };
	w.last_known = [this] { return last_known ? &*last_known : nullptr; };
	w.now_ms = [this] { return now_ms; };
	w.log = [this](const std::string &line) { log_lines.push_back(line); };
	w.log_about = [this](const std::string &, const std::string &line) { log_lines.push_back(line); };
	w.removed = [this] { removed = true; };
	return w;
}

// ---- effects ----

int FakeWorld::count(const std::string &prefix) const
{
	int n = 0;
	for (const std::string &call : calls)
		n += call.rfind(prefix, 0) == 0;
	return n;
}

KernelVolume *FakeWorld::find(uint32_t vid)
{
	auto found = volumes.find(vid);
	return found == volumes.end() ? nullptr : &found->second;
}

Done FakeWorld::config_set(const lks_record &record, bool admit)
{
	KernelVolume *k = find(record.vid);
	if (!k)
		return failed("no such volume");
	if (admit) {
		if (!k->replica)
			return failed("no replica");
		if (barriers_begun <= attached_at[record.vid])
			violations.push_back("S3: admitted without a barrier begun after the attachment");
		for (const lks_record_replica &r : record.replicas)
			if (r.host == self && r.state == LKS_REPLICA_INSYNC && k->replica->suspect)
				violations.push_back("S1: a suspect replica was admitted as in sync");
		if (record.primary == self && k->role == LKS_IDLE)
			violations.push_back("S3: admitted as primary of an older term");
		// Where others change it, too, it may be a newer one meanwhile than the barrier led to.
		const uint64_t least = log.use_count() == 1 ? state.volume(record.vid)->version : attached_version[record.vid];
		if (record.version < least)
			violations.push_back("S3: admitted with an old record");
		k->replica->admitted = true;
	}
	if (record.version > k->noted_version)    // M2
		k->handover_to = 0;
	if (k->hold && record.primary != self)
		k->hold = 0;
	k->noted_version = std::max<uint64_t>(k->noted_version, record.version);
	for (const lks_record_opener &o : record.openers)
		if (o.host == self && k->open_waiters && record.primary && !opens_late) {
			k->writers += k->open_waiters;
			k->openers += k->open_waiters;
			k->open_waiters = 0;
		}
	if (k->replica && k->replica->admitted)
		k->role = record.primary == self ? LKS_ACTIVE : LKS_IDLE;
	return Nothing{};
}

Kernel FakeWorld::kernel()
{
	Kernel k;
	auto act = [this](const std::string &call, std::function<Done()> f) {
		if (!module_loaded)
			return Done(failed("the kernel module lockstep is not loaded on host " + state.host_name(self)));
		return effect<Done>(call, f);
	};
	auto name = [](const char *verb, uint64_t n) { return std::string(verb) + " " + std::to_string(n); };
	k.host_set = [=, this](uint8_t host) {
		return act(name("host_set", host), [=, this]() -> Done {
			if (kernel_host && kernel_host != host)
				return failed("another host id is set");
			kernel_host = host;
			return Nothing{};
		});
	};
	k.peer_set = [=, this](uint8_t host) {
		return act(name("peer_set", host), [=, this]() -> Done {
			peers.insert(host);
			return Nothing{};
		});
	};
	k.peer_del = [=, this](uint8_t host) {
		return act(name("peer_del", host), [=, this]() -> Done {
			peers.erase(host);
			return Nothing{};
		});
	};
	k.volume_add = [=, this](const KernelVolumeSpec &v) {
		return act(name("volume_add", v.vid), [=, this]() -> Done {
			if (!kernel_host)
				return failed("no host id is set");
			if (find(v.vid))
				return Nothing{};
			KernelVolume k;
			k.vid = v.vid;
			k.uuid = v.uuid;
			k.name = v.name;
			k.minor = v.minor;
			k.size_bytes = v.size_bytes;
			k.block_size = v.block_size;
			volumes[v.vid] = k;
			return Nothing{};
		});
	};
	k.volume_del = [=, this](uint32_t vid) {
		return act(name("volume_del", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (k && (k->has_device || k->replica))
				return forbidden("EBUSY");
			volumes.erase(vid);
			return Nothing{};
		});
	};
	k.replica_attach = [=, this](uint32_t vid, const std::string &path, uint64_t offset, bool) -> Result<AttachAnswer> {
		if (!module_loaded)
			return failed("the kernel module lockstep is not loaded on host " + state.host_name(self));
		return effect<Result<AttachAnswer>>(name("replica_attach", vid), [=, this]() -> Result<AttachAnswer> {
			KernelVolume *k = find(vid);
			auto lv = lvs.find(path);
			if (!k || lv == lvs.end() || !lv->second.lv.active)
				return failed("no such device");
			if (!lv->second.formatted)
				return failed("EUCLEAN");
			if (!k->replica) {
				k->replica = KernelReplica{path, offset, lv->second.hot, false, false};
				k->replica->capacity = offset;
				if (lv->second.retire_at == offset)
					k->replica->move_offset = offset;
				attached_at[vid] = barriers_begun;
				attached_version[vid] = state.volume(vid) ? state.volume(vid)->version : 0;
			}
			return AttachAnswer{k->replica->suspect, 1, 1};
		});
	};
	k.replica_detach = [=, this](uint32_t vid) {
		return act(name("replica_detach", vid), [=, this]() -> Done {
			if (KernelVolume *k = find(vid)) {
				k->replica.reset();
				k->role = LKS_IDLE;
			}
			return Nothing{};
		});
	};
	k.config_set = [=, this](const lks_record &record, bool admit) {
		return act(name(admit ? "admit" : "config_set", record.vid), [=, this] { return config_set(record, admit); });
	};
	k.open_refuse = [=, this](uint32_t vid, int32_t error) {
		return act(name("open_refuse", vid), [=, this]() -> Done {
			refused[vid] = error;
			if (KernelVolume *k = find(vid))
				k->open_waiters = 0;
			return Nothing{};
		});
	};
	k.device_add = [=, this](uint32_t vid) {
		return act(name("device_add", vid), [=, this]() -> Done {
			if (!find(vid))
				return failed("no such volume");
			find(vid)->has_device = true;
			return Nothing{};
		});
	};
	k.device_del = [=, this](uint32_t vid) {
		return act(name("device_del", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (k && k->openers)
				return forbidden("the device is open");
			if (k)
				k->has_device = false;
			return Nothing{};
		});
	};
	k.hand_over = [=, this](uint32_t vid, uint8_t host) {
		return act(name("hand_over", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (!k || k->role != LKS_ACTIVE)
				return failed("ESTALE");
			k->handover_to = host;
			k->role = LKS_DRAINING;
			return Nothing{};
		});
	};
	k.quiesce = [=, this](uint32_t vid, uint64_t hold, uint32_t timeout_ms) {
		return act(name("quiesce", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (!k || k->role != LKS_ACTIVE)
				return failed("ESTALE");
			if (k->hold && k->hold != hold)
				return forbidden("EBUSY");
			if (!k->hold && quiesced.contains({vid, hold}))
				return failed("ESTALE");
			k->hold = hold;
			hold_until_ms[vid] = now_ms + timeout_ms;
			return Nothing{};
		});
	};
	k.resume = [=, this](uint32_t vid, uint64_t hold) {
		return act(name("resume", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (!k || k->hold != hold)
				return failed("ESTALE");
			k->hold = 0;
			return quiesced.contains({vid, hold}) ? Done(Nothing{}) : Done(failed("ESTALE"));
		});
	};
	k.meta_move = [=, this](uint32_t vid, uint64_t offset, uint64_t size) {
		return act(name("meta_move", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (!k || !k->replica)
				return failed("EINVAL");
			if (k->replica->move_offset && k->replica->move_offset != offset)
				return forbidden("EBUSY");
			if (lvs.at(k->replica->path).lv.size_bytes < offset + metadata_bytes(size, k->block_size))
				return failed("EFBIG");
			k->replica->move_offset = offset;
			moving_to[vid] = size;
			return Nothing{};
		});
	};
	k.meta_moved = [=, this](uint32_t vid, uint64_t offset) {
		return act(name("meta_moved", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (k && k->replica && k->replica->offset == offset)
				return Nothing{};
			if (!k || !k->replica || k->replica->move_offset != offset || !k->replica->move_current)
				return failed("EINVAL");
			if (state.volume(vid)->replica(self)->md_offset != offset)
				violations.push_back("metadata taken into use that the log does not name");
			k->replica->offset = offset;
			k->replica->capacity = moving_to[vid];
			return Nothing{};
		});
	};
	k.resize = [=, this](uint32_t vid, uint64_t size) {
		return act(name("resize", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (!k || size < k->size_bytes || (k->replica && k->replica->capacity < size))
				return failed("EINVAL");
			if (state.volume(vid)->size_bytes < size || k->noted_version < state.volume(vid)->version)
				violations.push_back("a size that is not agreed");
			k->size_bytes = size;
			return Nothing{};
		});
	};
	k.verify = [=, this](uint32_t vid, const VerifyOrder &order) {
		return act(name("verify", vid), [=, this]() -> Done {
			KernelVolume *k = find(vid);
			if (!k || k->role != LKS_ACTIVE)
				return failed("ESTALE");
			k->verify_total = order.start ? k->size_bytes / k->block_size : 0;
			k->verify_done = order.done;
			k->verify_differ = order.differ;
			k->verify_repair = order.repair;
			return Nothing{};
		});
	};
	k.tune = [=, this](uint32_t vid, const VolumeTune &tune) {
		return act(name("tune", vid), [=, this]() -> Done {
			tuned[vid] = tune;
			if (KernelVolume *k = find(vid))
				k->tune = tune;
			return Nothing{};
		});
	};
	k.abort = [=, this](uint32_t vid) { return act(name("abort", vid), []() -> Done { return Nothing{}; }); };
	k.dump = [this]() -> Result<KernelDump> {
		if (!module_loaded)
			return failed("the kernel module lockstep is not loaded on host " + state.host_name(self));
		KernelDump d;
		d.seq = seq;
		d.volumes = volumes;
		for (uint32_t vid : attaching) {
			KernelVolume &v = d.volumes.at(vid);
			v.whole = false;
			v.replica.reset();
			v.role = LKS_IDLE;
			v.version = v.term = v.noted_version = 0;
		}
		for (uint8_t host : peers)
			d.peers[host] = {host, 0, 0, false};
		return d;
	};
	return k;
}

Lvm FakeWorld::lvm()
{
	Lvm l;
	l.report = [this](const std::string &vg) -> Result<LvmReport> {
		if (auto f = failing.find("report"); f != failing.end())
			return failed(f->second);
		if (!groups.contains(vg))
			return not_found("there is no volume group " + vg);
		LvmReport r;
		r.groups.push_back(groups[vg]);
		for (const std::string &uuid : groups[vg].grows_after)
			if (std::ranges::none_of(disks, [&](const auto &d) { return d.second.vg == vg && d.second.uuid == uuid; }))
				r.groups.back().growing = true;
		for (const std::string &uuid : groups[vg].grows_into)
			if (std::ranges::any_of(disks, [&](const auto &d) { return d.second.vg == vg && d.second.uuid == uuid; }))
				r.groups.back().growing = true;
		for (const auto &[path, lv] : lvs)
			r.volumes.push_back(lv.lv);
		for (const auto &[path, disk] : disks)
			r.disks.push_back(disk);
		return r;
	};
	l.add_disk = [this](const std::string &vg, const std::string &disk, bool grow, const std::string &after) -> Done {
		// As with the real one, each of these is a command of LVM's, and a step of its own.
		const auto there = disks.find(disk);
		if (there != disks.end() && (!grow || there->second.used_bytes || there->second.leaving))
			return Nothing{};
		const bool into = there == disks.end() && grow && after.empty();
		if (into)
			if (Done marked = effect<Done>("tag_growing " + vg, [=, this]() -> Done {
				    groups[vg].grows_into = {"uuid" + disk};
				    return Nothing{};
			    }); !marked)
				return marked;
		if (there == disks.end())
			if (Done added = effect<Done>("add_disk " + disk, [=, this]() -> Done {
				    disks[disk] = {.vg = vg, .disk = disk, .size_bytes = 20 * GIB, .uuid = "uuid" + disk};
				    groups[vg].size_bytes += 20 * GIB;
				    groups[vg].free_bytes += 20 * GIB;
				    return Nothing{};
			    }); !added)
				return added;
		if (!grow || into)
			return Nothing{};
		return effect<Done>("tag_growing " + vg, [=, this]() -> Done {
			if (after.empty())
				groups[vg].growing = true;
			else if (std::ranges::count(groups[vg].grows_after, after) == 0)
				groups[vg].grows_after.push_back(after);
			return Nothing{};
		});
	};
	l.leave_disk = [this](const std::string &, const std::string &disk) {
		return effect<Done>("leave_disk " + disk, [=, this]() -> Done {
			disks.at(disk).leaving = true;
			return Nothing{};
		});
	};
	l.clear_label = [this](const std::string &vg, const std::string &uuid) -> Result<std::string> {
		const std::string path = labels.contains(uuid) ? labels[uuid] : "";
		if (!path.empty())
			if (Done removed = effect<Done>("remove_label " + path, [=, this]() -> Done {
				    labels.erase(uuid);
				    return Nothing{};
			    }); !removed)
				return removed.error();
		if (Done untagged = effect<Done>("untag_departed " + uuid, [=, this]() -> Done {
			    std::erase(groups[vg].departed, uuid);
			    return Nothing{};
		    }); !untagged)
			return untagged.error();
		return path;
	};
	l.drain_disk = [this, clear_label = l.clear_label](const std::string &vg, const std::string &disk, double last) -> Result<DiskMove> {
		if (disks.contains(disk) && !disks.at(disk).used_bytes) {
			const std::string uuid = disks.at(disk).uuid;
			if (Done tagged = effect<Done>("tag_departed " + uuid, [=, this]() -> Done {
				    if (std::ranges::count(groups[vg].departed, uuid) == 0)
					    groups[vg].departed.push_back(uuid);
				    return Nothing{};
			    }); !tagged)
				return tagged.error();
			if (Done reduced = effect<Done>("reduce " + disk, [=, this]() -> Done {
				    VolumeGroup &group = groups[vg];
				    group.size_bytes -= std::min(group.size_bytes, disks.at(disk).size_bytes);
				    group.free_bytes -= std::min(group.free_bytes, disks.at(disk).size_bytes);
				    disks.erase(disk);
				    labels[uuid] = disk;
				    return Nothing{};
			    }); !reduced)
				return reduced.error();
			if (auto cleared = clear_label(vg, uuid); !cleared)
				return cleared.error();
			return DiskMove{.gone = true};
		}
		return effect<Result<DiskMove>>("drain_disk " + disk, [=, this]() -> Result<DiskMove> {
			if (!disks.contains(disk))
				return DiskMove{.gone = true};
			if (last >= 50)
				disks.at(disk).used_bytes = 0;
			return DiskMove{.percent = last < 0 ? 0 : last < 50 ? 50.0 : 100.0};
		});
	};
	l.let_go = [this](const std::string &vg) {
		return effect<Done>("let_go " + vg, [=, this]() -> Done {
			if (groups.contains(vg))
				groups[vg].growing = false, groups[vg].grows_after.clear(), groups[vg].grows_into.clear();
			for (const std::string &uuid : groups.contains(vg) ? std::exchange(groups[vg].departed, {}) : std::vector<std::string>())
				labels.erase(uuid);
			for (auto &[path, disk] : disks)
				disk.leaving = disk.leaving && disk.vg != vg;
			return Nothing{};
		});
	};
	l.mend = [this](const std::string &vg, const std::string &thin_pool, const std::string &by, const std::set<std::string> &expendable) {
		return effect<Result<bool>>("mend " + vg, [=, this]() -> Result<bool> {
			LvmReport report;
			for (const auto &[path, lv] : lvs)
				report.volumes.push_back(lv.lv);
			for (const std::string &name : lost_volumes(report, vg, thin_pool)) {
				if (!expendable.contains(name))
					return forbidden(name + " was not given up");
				for (const auto &[vid, k] : volumes)
					if (k.replica && k.replica->path == "/dev/" + vg + "/" + name)
						return false;
			}
			for (const std::string &name : lost_volumes(report, vg, thin_pool))
				lvs.erase("/dev/" + vg + "/" + name);
			if (!groups.contains(vg)) {
				for (const auto &[vid, k] : volumes)
					if (k.replica && k.replica->path.starts_with("/dev/" + vg + "/"))
						return false;
				std::erase_if(lvs, [&](const auto &lv) { return lv.second.lv.vg == vg; });
				groups[vg] = {.name = vg, .size_bytes = 20 * GIB, .free_bytes = 20 * GIB, .extent_bytes = 4 << 20};
			}
			groups[vg].incomplete = false;
			std::erase_if(disks, [&](const auto &d) { return d.second.vg == vg && d.second.missing; });
			if (!by.empty())
				disks.try_emplace(by, PhysicalVolume{.vg = vg, .disk = by, .size_bytes = 20 * GIB, .uuid = "uuid" + by});
			return true;
		});
	};
	l.grow_data = [this](const std::string &vg, const std::string &thin_pool, uint64_t bytes) {
		return effect<Done>("grow_data " + std::to_string(bytes >> 20), [=, this]() -> Done {
			lvs["/dev/" + vg + "/" + thin_pool].lv.size_bytes += bytes;
			groups[vg].free_bytes -= bytes;
			return effect<Done>("untag_growing " + vg, [=, this]() -> Done {
				groups[vg].growing = false;
				groups[vg].grows_after.clear();
				std::erase_if(groups[vg].grows_into, [&](const std::string &uuid) {
					return std::ranges::any_of(disks, [&](const auto &d) { return d.second.uuid == uuid; });
				});
				return Nothing{};
			});
		});
	};
	l.create = [this](const ReplicaLv &lv) {
		return effect<Done>("lv_create " + std::to_string(lv.vid), [=, this]() -> Done {
			const std::string path = replica_lv_path(lv.vg, lv.vid);
			if (lvs.contains(path) && (lvs[path].lv.tags.empty() || lvs[path].lv.tags[0] != replica_lv_tag(lv.uuid)))
				return forbidden("it is not ours");
			if (lvs.contains(path) && (lvs[path].lv.tags.size() < 2 || lvs[path].lv.tags[1] != replica_added_tag(lv.added)))
				lvs.erase(path);
			FakeLv &f = lvs[path];
			f.lv.vg = lv.vg;
			f.lv.name = replica_lv_name(lv.vid);
			f.lv.path = path;
			f.lv.active = true;
			f.lv.size_bytes = lv.size_bytes;
			f.content = "empty";
			f.lv.tags = replica_tags(lv);
			return Nothing{};
		});
	};
	l.activate = [this](const ReplicaLv &lv) {
		return effect<Done>("lv_activate " + std::to_string(lv.vid), [=, this]() -> Done {
			auto found = lvs.find(replica_lv_path(lv.vg, lv.vid));
			if (found == lvs.end())
				return failed("no such logical volume");
			found->second.lv.active = true;
			return Nothing{};
		});
	};
	l.grow_metadata = [this](const std::string &vg, const std::string &thin_pool, uint64_t bytes) {
		return effect<Done>("grow_metadata", [=, this]() -> Done {
			LogicalVolume &pool = lvs["/dev/" + vg + "/" + thin_pool].lv;
			pool.metadata_percent *= double(pool.metadata_bytes) / double(pool.metadata_bytes + bytes);
			pool.metadata_bytes += bytes;
			return Nothing{};
		});
	};
	l.remove = [this](const ReplicaLv &lv) {
		return effect<Done>("lv_remove " + std::to_string(lv.vid), [=, this]() -> Done {
			if (KernelVolume *k = find(lv.vid); k && k->replica)
				violations.push_back("an attached LV was removed");
			const std::string path = replica_lv_path(lv.vg, lv.vid);
			if (lvs.contains(path) && !lvs[path].lv.tags.empty() && lvs[path].lv.tags[0] == replica_lv_tag(lv.uuid))
				lvs.erase(path);
			return Nothing{};
		});
	};
	l.extend = [this](const ReplicaLv &lv) {
		return effect<Done>("lv_extend " + std::to_string(lv.vid), [=, this]() -> Done {
			LogicalVolume &found = lvs.at(replica_lv_path(lv.vg, lv.vid)).lv;
			found.size_bytes = std::max(found.size_bytes, lv.size_bytes);
			return Nothing{};
		});
	};
	l.allocated = [this](const std::string &vg, const std::string &lv) -> uint64_t {
		const auto it = lvs.find("/dev/" + vg + "/" + lv);
		return it == lvs.end() || it->second.lv.data_percent < 0 ? 0 : uint64_t(double(it->second.lv.size_bytes) * it->second.lv.data_percent / 100);
	};
	const auto make_snapshot = [this](const SnapshotLv &lv, bool prepared) {
		return effect<Done>("snapshot " + std::to_string(lv.sid), [=, this]() -> Done {
			const std::string path = snapshot_lv_path(lv);
			const bool there = lvs.contains(path);
			const Snapshot *s = state.snapshot(lv.sid);
			if (there && lvs[path].formatted)
				return Nothing{};
			if (there != prepared)
				return failed(prepared ? "it was not prepared" : "it is there already");
			if (!s || s->phase != SnapshotPhase::taking)
				violations.push_back("a snapshot was taken before all held still");
			FakeLv &f = lvs[path];
			f.lv.vg = lv.vg;
			f.lv.name = snapshot_lv_name(lv);
			f.lv.path = path;
			f.lv.tags = {snapshot_lv_tag(lv.uuid)};
			f.formatted = true;
			f.data = lvs[replica_lv_path(lv.vg, lv.vid)].data;
			return Nothing{};
		});
	};
	l.snapshot = [make_snapshot](const SnapshotLv &lv) { return make_snapshot(lv, false); };
	l.take = [make_snapshot](const SnapshotLv &lv, uint64_t) { return make_snapshot(lv, true); };
	l.prepare = [this](const SnapshotLv &lv) {
		return effect<Result<uint64_t>>("prepare " + std::to_string(lv.sid), [=, this]() -> Result<uint64_t> {
			FakeLv &f = lvs[snapshot_lv_path(lv)];
			if (f.formatted)
				violations.push_back("a snapshot that was taken was prepared again");
			f.lv.vg = lv.vg;
			f.lv.name = snapshot_lv_name(lv);
			f.lv.path = snapshot_lv_path(lv);
			f.lv.tags = {snapshot_lv_tag(lv.uuid)};
			if (!lv.thin)
				return 0;
			return effect<Result<uint64_t>>("thin_delete " + std::to_string(lv.sid), [lv]() -> Result<uint64_t> { return lv.sid; });
		});
	};
	l.flush = [this](const std::string &, const std::string &lv) { return effect<Done>("flush " + lv, []() -> Done { return Nothing{}; }); };
	l.remove_snapshot = [this](const SnapshotLv &lv) {
		return effect<Done>("remove_snapshot " + std::to_string(lv.sid), [=, this]() -> Done {
			lvs.erase(snapshot_lv_path(lv));
			return Nothing{};
		});
	};
	l.clone = [this](const SnapshotLv &from, const ReplicaLv &to, const std::string &content) {
		return effect<Done>("clone " + std::to_string(to.vid), [=, this]() -> Done {
			if (!lvs.contains(snapshot_lv_path(from)))
				return not_found("no such snapshot");
			if (KernelVolume *k = find(to.vid); k && k->replica)
				violations.push_back("an attached LV was replaced");
			const std::string path = replica_lv_path(to.vg, to.vid);
			if (lvs.contains(path) && lvs[path].content == content)
				return Nothing{};
			if (lvs.contains(path) && !from.thin)
				return forbidden("in a thick pool its snapshots would go with it");
			if (lvs.contains(path))
				if (Done gone = effect<Done>("lv_remove " + std::to_string(to.vid), [=, this]() -> Done {
					    lvs.erase(path);
					    return Nothing{};
				    }); !gone)
					return gone;
			FakeLv &f = lvs[path];
			f.lv.vg = to.vg;
			f.lv.name = replica_lv_name(to.vid);
			f.lv.path = replica_lv_path(to.vg, to.vid);
			f.lv.active = true;
			f.lv.size_bytes = to.size_bytes;
			f.lv.tags = {replica_lv_tag(to.uuid)};
			f.content = content;
			f.data = from.thin ? lvs[snapshot_lv_path(from)].data : "what was there before";
			return Nothing{};
		});
	};
	l.report_all = [this]() -> Result<LvmReport> {
		LvmReport r;
		for (const auto &[name, group] : groups)
			r.groups.push_back(group);
		for (const auto &[path, lv] : lvs)
			r.volumes.push_back(lv.lv);
		for (const auto &[path, disk] : disks)
			r.disks.push_back(disk);
		return r;
	};
	l.show = [this](const OrphanLv &lv) {
		return effect<Done>("show " + lv.name, [=, this]() -> Done {
			lvs.at("/dev/" + lv.vg + "/" + lv.name).lv.active = true;
			return Nothing{};
		});
	};
	l.purge = [this](const OrphanLv &lv) {
		return effect<Done>("purge " + lv.name, [=, this]() -> Done {
			const auto found = lvs.find("/dev/" + lv.vg + "/" + lv.name);
			if (found != lvs.end() && log_wants(state, self, found->second.lv))
				violations.push_back("what the log wants was purged");
			if (found != lvs.end() && found->second.lv.tags[0] == lv.tag)
				lvs.erase(found);
			return Nothing{};
		});
	};
	l.take_over = [this](const OrphanLv &from, const ReplicaLv &to) {
		return effect<Done>("take_over " + from.name, [=, this]() -> Done {
			const std::string path = replica_lv_path(to.vg, to.vid), old = "/dev/" + from.vg + "/" + from.name;
			const std::vector<std::string> tags = {from.tag, replica_added_tag(to.added)};
			if (lvs.contains(path) && lvs[path].lv.tags == tags)
				return Nothing{};
			if (lvs.contains(path))
				return forbidden("another logical volume has that name");
			if (!lvs.contains(old))
				return not_found("it is not there any more");
			lvs[old].lv.tags = tags;
			return effect<Done>("rename " + from.name, [=, this]() -> Done {
				FakeLv f = lvs[old];
				lvs.erase(old);
				f.lv.name = replica_lv_name(to.vid);
				f.lv.path = path;
				f.lv.active = true;
				lvs[path] = f;
				return Nothing{};
			});
		});
	};
	if (other_tools)
		other_tools(l);
	return l;
}

MetadataTools FakeWorld::metadata()
{
	MetadataTools m;
	m.format = [this](const ReplicaMetadata &r) {
		return effect<Done>("format " + std::to_string(r.vid), [=, this]() -> Done {
			auto found = lvs.find(r.path);
			if (found == lvs.end() || !found->second.lv.active)
				return failed("no such device");
			if (KernelVolume *k = find(r.vid); k && k->replica)
				violations.push_back("an attached replica was formatted");
			found->second.formatted = true;
			return Nothing{};
		});
	};
	m.wipe = [this](const std::string &path, uint64_t) {
		return effect<Done>("wipe " + path, [=, this]() -> Done {
			auto found = lvs.find(path);
			if (found == lvs.end() || !found->second.lv.active)
				return failed("no such device");
			if (found->second.lv.tags.empty())
				violations.push_back("an LV of somebody else was wiped");
			found->second.formatted = false;
			return Nothing{};
		});
	};
	m.adopt = [this](const ReplicaMetadata &r) {
		return effect<Done>("adopt " + std::to_string(r.vid), [=, this]() -> Done {
			if (KernelVolume *k = find(r.vid); k && k->replica)
				violations.push_back("an attached replica was adopted");
			lvs.at(r.path).formatted = true;
			return Nothing{};
		});
	};
	m.revert = [this](const std::string &from, const ReplicaMetadata &to, ContentProgress &) -> Done {
		// Until it has all of the content it is no replica; the snapshot stays, as do all others.
		if (KernelVolume *k = find(to.vid); k && k->replica)
			violations.push_back("an attached replica was reverted");
		if (!lvs.contains(from))
			return not_found("no such snapshot");
		if (Done begun = effect<Done>("revert " + std::to_string(to.vid), [=, this]() -> Done {
			    lvs.at(to.path).formatted = false;
			    lvs.at(to.path).data = "half of it";
			    return Nothing{};
		    }); !begun)
			return begun;
		return effect<Done>("reverted " + std::to_string(to.vid), [=, this]() -> Done {
			FakeLv &lv = lvs.at(to.path);
			lv.formatted = true;
			lv.data = lvs.at(from).data;
			lv.content = lvs.at(from).lv.tags.at(0).substr(std::string("lockstep.snapshot=").size());
			return Nothing{};
		});
	};
	m.copy = [this](const std::string &from, const ReplicaMetadata &to, ContentProgress &) {
		return effect<Done>("copy " + std::to_string(to.vid), [=, this]() -> Done {
			lvs.at(to.path).data = lvs.at(from).data;
			return Nothing{};
		});
	};
	return m;
}

}    // namespace lockstep::test
