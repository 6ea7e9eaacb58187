// SPDX-License-Identifier: GPL-2.0-or-later
//
// The reconciler, verify: a primary's kernel compares the members' blocks with its own, and knows alone how far it is. Hosts tell each
// other in their reports, twice a second; so whoever is primary next, because the opener has moved or the host has died, goes on
// where the last report was. A verify stands neither in the log nor on a disk: what ends with all hosts at once is asked for again.
#include <charconv>

#include <fmt/format.h>

#include "lockstepd/api/soft.h"
#include "lockstepd/host/reconciler.h"

namespace lockstep {

void Reconciler::verify_begun(uint32_t vid, uint64_t begun_ms)
{
	works_[vid].verify_begun_ms = begun_ms;
	works_[vid].verify_needs_dump = dumps_begun_ + (dump_again_ ? 1 : 0);
	verifies_elsewhere_.erase(vid);
}

void Reconciler::verify(uint32_t vid, bool start, bool repair, uint64_t begun_ms, std::function<void(Done)> done)
{
	const VerifyOrder order = {.start = start, .repair = repair};
	call_kernel(serve_key(vid), [kernel = world_.kernel, vid, order] { return kernel.verify(vid, order); },
		    [this, vid, start, begun_ms, done = std::move(done)](Done begun) {
			    if (begun && start)
				    verify_begun(vid, begun_ms);
			    done(begun);
		    });
}

// Only the primary's word counts, as long as it serves: when it has handed over it knows of no verify any more.
void Reconciler::heard(HostId host, const Json &report)
{
	std::erase_if(verifies_elsewhere_, [&](const auto &entry) { return !world_.state().volume(entry.first); });
	for (const auto &[key, said] : soft_object(report, "volumes").items()) {
		uint32_t vid = 0;
		std::from_chars(key.data(), key.data() + key.size(), vid);
		const Volume *v = world_.state().volume(vid);
		if (!v || v->primary != host || host == self_ || !said.is_object() || soft_text(said, "role") != "active")
			continue;
		const Json &verify = soft_object(said, "verify");
		const uint64_t total = soft_number(verify, "total_blocks"), done = soft_number(verify, "done_blocks");
		if (done < total)
			verifies_elsewhere_[vid] = {host,
						    {.start = true, .repair = soft_is_true(verify, "repair"), .done = done,
						     .differ = soft_number(verify, "differ_blocks")},
						    soft_number(verify, "begun_ms")};
		else
			verifies_elsewhere_.erase(vid);
	}
}

bool Reconciler::look_verify(const Volume &v, const KernelVolume &k)
{
	auto seen = verifies_elsewhere_.find(v.vid);
	if (seen == verifies_elsewhere_.end())
		return false;
	if (k.verify_total) {    // another has been begun here
		verifies_elsewhere_.erase(seen);
		return false;
	}
	const auto [host, order, begun_ms] = seen->second;
	act(v.vid, &VolumeWork::serve, serve_key(v.vid), [kernel = world_.kernel, vid = v.vid, order] { return kernel.verify(vid, order); },
	    [this, vid = v.vid, host, order, begun_ms](bool ok) {
		    if (!ok)
			    return;
		    verify_begun(vid, begun_ms);
		    world_.log(fmt::format("{}: its verify goes on here behind {} blocks, which host {} has compared", object_name(vid), order.done,
					   world_.state().host_name(host)));
	    });
	return true;
}

}    // namespace lockstep
