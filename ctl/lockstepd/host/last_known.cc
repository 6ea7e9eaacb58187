// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/last_known.h"

namespace lockstep {

namespace {

const Replica *settled(const State &s, HostId self, uint32_t vid)
{
	const Volume *v = s.volume(vid);
	const Replica *r = v && v->phase == Phase::ready && !v->grow_bytes ? v->replica(self) : nullptr;
	return r && r->created && !r->next_offset && !r->wipe && r->state != ReplicaState::failed ? r : nullptr;
}

bool takes_part(const State &s, HostId self)
{
	const Host *h = s.host(self);
	return h && h->has_devices() && !h->removing;
}

std::span<const uint8_t> bytes_of(std::string_view text) { return {reinterpret_cast<const uint8_t *>(text.data()), text.size()}; }

}    // namespace

bool may_assemble(const State &committed, const State &whole, HostId self, uint32_t vid)
{
	const Replica *r = settled(committed, self, vid), *later = settled(whole, self, vid);
	if (!r || !later || !takes_part(committed, self) || !takes_part(whole, self))
		return false;
	const Volume &v = *committed.volume(vid), &then = *whole.volume(vid);
	const Pool *pool = committed.pool(r->pool, self), *pool_then = whole.pool(later->pool, self);
	return v.uuid == then.uuid && v.size_bytes == then.size_bytes && v.block_size == then.block_size && r->pool == later->pool &&
	       r->md_offset == later->md_offset && r->added == later->added && pool && pool_then && pool->vg == pool_then->vg &&
	       pool->thin_lv == pool_then->thin_lv;
}

StateMachine into(State &known, State &whole, uint64_t committed)
{
	return {[&known, &whole, committed](uint64_t index, std::string_view entry) {
			if (index <= committed)
				apply_bytes(known, index, bytes_of(entry));
			return apply_bytes(whole, index, bytes_of(entry));
		},
		[] { return std::string(); },
		[&known, &whole](std::string_view snapshot) {    // a snapshot holds only what had been applied
			auto restored = restore(bytes_of(snapshot));
			if (restored)
				known = whole = *restored;
			return bool(restored);
		}};
}

Result<LastKnown> read_last_known(const ConsensusOptions &options, const HostFile &file)
{
	LastKnown last;
	State whole;
	// Read before the copy is made: what is noted later may be behind the end of the copy.
	const uint64_t committed = ConsensusLog::known_committed(options);
	if (auto read = ConsensusLog::replay(options, into(last.state, whole, committed)); !read)
		return read.error();
	const Host *self = last.state.host(HostId(file.host_id));
	const bool ours = last.state.uuid == file.cluster_uuid && self && self->uuid == file.host_uuid &&
			  last.state.epoch == epoch_of(file.raft_id) && whole.epoch == last.state.epoch;
	if (!ours)
		return last;
	for (const auto &[vid, v] : last.state.volumes)
		if (may_assemble(last.state, whole, HostId(file.host_id), vid))
			last.certain.insert(vid);
	return last;
}

}    // namespace lockstep
