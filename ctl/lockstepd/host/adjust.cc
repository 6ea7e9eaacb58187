// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler, asked by an administrator to compare now: what on this host is not as the log wants it. Everything listed here is
// brought about without being asked, too; asking makes that what has failed is tried again at once, and that it is told.
#include <fmt/format.h>

#include "lockstepd/host/reconciler.h"

namespace lockstep {

void Reconciler::try_again(uint32_t vid)
{
	sweep_ = true;
	auto forget = [](Task &task) { task.not_before_ms = 0; };
	for (auto &[id, w] : works_)
		if (!vid || id == vid) {
			for (Task *task : w.tasks())
				forget(*task);
			w.disk_retry_ms = 0;
		}
	if (vid)
		return;
	for (Task *task : {&kernel_task_, &sync_task_, &leave_task_})
		forget(*task);
	for (auto &[host, task] : peer_tasks_)
		forget(task);
	for (auto *tasks : {&pool_tasks_, &metadata_tasks_, &disk_tasks_})
		for (auto &[pool, task] : *tasks)
			forget(task);
	for (auto &[sid, w] : snapshot_works_)
		forget(w.task);
	for (auto &[pool, seen_ms] : pool_seen_ms_)
		seen_ms = world_.now_ms() - POOL_PERIOD_MS;
}

void Reconciler::adjust(uint32_t vid, bool retry, std::function<void(Result<Json>)> done)
{
	if (!module_error_.empty())
		return done(failed(module_error_));
	if (!synced_)
		return done(coded("starting", failed("this host has not heard from the rest of the cluster since its daemon started: no quorum")));
	if (retry)
		try_again(vid);
	// The dump that answers is begun after this call; what it shows to be missing is told before it is brought about.
	in_use(vid, [this, vid, done = std::move(done)](Result<bool> dumped) {
		if (dumped)
			done(differences(vid));
		else
			done(dumped.error());
	});
}

// Of what stands in the log and in the kernel; empty: they agree.
std::string Reconciler::difference(const Volume &v) const
{
	const KernelVolume *k = dump_->volume(v.vid);
	const Replica *r = v.replica(self_);
	const bool wanted = v.phase == Phase::ready && world_.state().host(self_)->has_devices();
	if (!wanted)
		return k && v.phase != Phase::creating ? "it is still in the kernel" : "";
	if (r && !r->created)
		return "its replica is not made";
	if (!k)
		return "it is not in the kernel";
	if (r && !k->replica)
		return "its replica is not attached";
	if (!r && k->replica)
		return "its former replica is still attached";
	if (k->whole && k->noted_version < v.version)
		return fmt::format("the kernel has version {} of its record, the log version {}", k->noted_version, v.version);
	if (r && !k->replica->admitted)
		return "its replica is not admitted";
	if (k->size_bytes != v.size_bytes)
		return fmt::format("it has {} bytes, not {}", k->size_bytes, v.size_bytes);
	if (!k->has_device)
		return "it has no device";
	if (!v.devices.contains(self_))
		return "the log does not know of its device";
	return v.remnant(self_) ? "a former replica is not removed" : "";
}

Reconciler::Json Reconciler::differences(uint32_t vid) const
{
	Json list = Json::array();
	std::map<uint32_t, std::string> errors;
	for (const Problem &p : problems()) {
		if (!p.vid && !vid)
			list.push_back({{"volume", nullptr}, {"what", "this host"}, {"error", p.message}});
		if (p.vid)
			errors.try_emplace(p.vid, p.message);
	}
	for (const auto &[id, v] : world_.state().volumes) {
		if (vid && id != vid)
			continue;
		const std::string what = difference(v), error = errors.contains(id) ? errors.at(id) : "";
		if (!what.empty() || !error.empty())
			list.push_back({{"volume", v.name}, {"what", what.empty() ? "something has failed" : what}, {"error", error}});
	}
	for (const auto &[id, k] : dump_->volumes)
		if (!world_.state().volume(id) && (!vid || id == vid))
			list.push_back({{"volume", k.name}, {"what", "it is in the kernel, and in the cluster no more"}, {"error", ""}});
	return list;
}

}    // namespace lockstep
