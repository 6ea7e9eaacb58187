// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler, suspend-io: an administrator holds a volume's writes back, for as long as he likes, to have a point at which all
// replicas are the same.
//
// In the kernel a hold is a lease of HOLD_MS. It is renewed here, by the daemon of the host that serves the volume, and nowhere
// else: a suspension stands neither in the log nor on a disk. If this daemon ends, or stands still for so long, the kernel lets
// the writes go on; a guest must not hang for ever because a daemon has died. Nor is a suspension taken up again after that, by
// this daemon or by another primary's: there were writes meanwhile, so it would be another point than the one that was
// asked for. Whoever resumes is told that it was broken, as is the log when it breaks. The kernel sees to it that a renewal that
// comes too late is refused and not a new hold.
#include <fmt/format.h>

#include "lib/units.h"
#include "lockstepd/host/reconciler.h"

namespace lockstep {

// The clock of this boot: larger than all numbers of earlier daemons, which this kernel remembers.
uint64_t Reconciler::next_hold()
{
	last_hold_ = std::max(last_hold_ + 1, world_.now_ms() << 16);
	return last_hold_;
}

bool Reconciler::suspended(uint32_t vid) const
{
	auto s = suspensions_.find(vid);
	return s != suspensions_.end() && s->second.over.empty();
}

void Reconciler::suspend_writes(uint32_t vid, uint64_t begun_ms, std::function<void(Result<Json>)> done)
{
	const Volume *v = world_.state().volume(vid);
	const KernelVolume *k = dump_ ? dump_->volume(vid) : nullptr;
	if (!v || v->primary != self_)    // whether it serves yet, the kernel knows better than a dump
		return done(failed(fmt::format("{} is not served by host {} now: try again", object_name(vid), world_.state().host_name(self_))));
	if (world_.state().snapshot_in_progress(vid))
		return done(forbidden(fmt::format("a snapshot of {} is being taken: try again when it is there", object_name(vid))));
	if (suspended(vid)) {
		const Suspension &s = suspensions_.at(vid);
		if (!s.still || s.resuming)
			return done(forbidden(fmt::format("{} is just being suspended or resumed by somebody else", object_name(vid))));
		return done(Json{{"since_ms", s.begun_ms}});
	}
	Suspension &s = suspensions_[vid] = {};
	s.hold = next_hold();
	s.begun_ms = begun_ms;
	s.asked_ms = s.renewed_ms = world_.now_ms();
	s.waiting = std::move(done);
	begin_suspension(vid, k ? k->hold : 0);
}

// stale: a hold of a daemon before this one.
void Reconciler::begin_suspension(uint32_t vid, uint64_t stale)
{
	call_kernel(serve_key(vid),
		    [kernel = world_.kernel, vid, stale, hold = suspensions_.at(vid).hold]() -> Done {
			    if (stale)
				    (void)kernel.resume(vid, stale);
			    return kernel.quiesce(vid, hold, HOLD_MS);
		    },
		    [this, vid, hold = suspensions_.at(vid).hold](Done begun) {
			    auto s = suspensions_.find(vid);
			    if (s == suspensions_.end() || s->second.hold != hold)
				    return;
			    hold_changed(vid);
			    s->second.needs_dump = dumps_begun_ + 1;
			    if (!begun)
				    end_suspension(vid, begun.error().message);
		    });
}

void Reconciler::look_at_suspensions()
{
	for (auto &[vid, s] : suspensions_)
		if (s.over.empty() && !s.resuming)
			look_at_suspension(vid, s);
	std::erase_if(suspensions_, [&](const auto &entry) { return !world_.state().volume(entry.first); });
}

void Reconciler::look_at_suspension(uint32_t vid, Suspension &s)
{
	const Volume *v = world_.state().volume(vid);
	const KernelVolume *k = dump_ ? dump_->volume(vid) : nullptr;
	const bool dump_shows = s.needs_dump && dumps_done_ >= s.needs_dump;
	if (!v || v->primary != self_)
		return end_suspension(vid, v && v->primary ? "host " + world_.state().host_name(v->primary) + " serves it now" : "it is served no more");
	if (dump_shows && (!k || k->hold != s.hold))
		return end_suspension(vid, "the kernel holds them no more");
	const uint64_t now_ms = world_.now_ms();
	if (!s.still && now_ms - s.asked_ms >= HOLD_MS) {
		end_suspension(vid, fmt::format("what it had begun to write did not end within {} s", HOLD_MS / 1000));
		call_kernel(serve_key(vid), [kernel = world_.kernel, vid, hold = s.hold] { return kernel.resume(vid, hold); }, [](Done) {});
		return;
	}
	if (!dump_shows || now_ms - s.renewed_ms < HOLD_RENEW_MS)
		return;
	s.renewed_ms = now_ms;
	// That it has ended is learnt from the kernel's event or the next dump, not from a refusal, which may have another cause.
	call_kernel(serve_key(vid), [kernel = world_.kernel, vid, hold = s.hold] { return kernel.quiesce(vid, hold, HOLD_MS); }, [](Done) {});
}

void Reconciler::end_suspension(uint32_t vid, const std::string &why)
{
	Suspension &s = suspensions_.at(vid);
	if (!s.over.empty())
		return;
	s.over = why;
	world_.log(fmt::format("{}: its writes are suspended no more, without `lockstep resume-io`: {}", object_name(vid), why));
	if (s.waiting)
		std::exchange(s.waiting, nullptr)(failed(fmt::format("the writes of {} could not be suspended: {}", object_name(vid), why)));
}

void Reconciler::suspension_event(const KernelEvent &event)
{
	auto at = suspensions_.find(event.vid);
	if (at == suspensions_.end() || at->second.hold != event.hold || !at->second.over.empty())
		return;
	Suspension &s = at->second;
	if (event.kind == LKS_CMD_EV_UNQUIESCED) {
		end_suspension(event.vid, "they could not be held for longer");
		return;
	}
	if (!s.still)
		world_.log(fmt::format("{}: its writes are suspended until `lockstep resume-io`", object_name(event.vid)));
	s.still = true;
	if (s.waiting)
		std::exchange(s.waiting, nullptr)(Json{{"since_ms", s.begun_ms}});
}

void Reconciler::resume_writes(uint32_t vid, std::function<void(Result<Json>)> done)
{
	auto at = suspensions_.find(vid);
	if (at == suspensions_.end())
		return done(forbidden(fmt::format("the writes of {} are not suspended; a suspension ends when its primary changes or lockstepd on that host "
						  "does", object_name(vid))));
	Suspension &s = at->second;
	if (!s.over.empty()) {
		const std::string why = s.over;
		suspensions_.erase(at);
		return done(failed(fmt::format("the writes of {} went on before this, what was read meanwhile is not of one point: {}", object_name(vid), why)));
	}
	if (!s.still || s.resuming)
		return done(forbidden(fmt::format("{} is just being suspended or resumed by somebody else", object_name(vid))));
	s.resuming = true;
	call_kernel(serve_key(vid), [kernel = world_.kernel, vid, hold = s.hold] { return kernel.resume(vid, hold); },
		    [this, vid, since_ms = s.begun_ms, done = std::move(done)](Done resumed) {
			    suspensions_.erase(vid);
			    hold_changed(vid);
			    world_.log(fmt::format("{}: its writes go on", object_name(vid)));
			    if (resumed)
				    done(Json{{"since_ms", since_ms}});
			    else
				    done(failed(fmt::format("the writes of {} go on, but the suspension was broken before, what was read meanwhile is not of one "
							    "point: {}", object_name(vid), resumed.error().message)));
		    });
}

}    // namespace lockstep
