// SPDX-License-Identifier: GPL-2.0-or-later
//
// volume.adopt: a volume is made of what an earlier cluster or an earlier life of a host has left on a disk.
//
// The one copy that was chosen becomes its first replica, in phase creating like any other; what is missing to the redundancy is made by
// repair, as for a volume that has lost a replica. It is never rolled back, since that would delete the copy: while its host cannot make
// the replica the volume waits.
//
// Other copies of it may lie about, on hosts that are away, too. So the new volume's ids and versions are above all that these could
// carry: what was left is never taken for a replica of the new life, nor is it in the way of one.
#include "lockstepd/cluster/internal.h"

#include "core/disk.h"

#include <algorithm>

namespace lockstep::cluster {

using nlohmann::json;

json volume_adopt(State &state, const Fields &f)
{
	const Host &h = host_of(state, f);
	const Group *group = f.has("group") ? &group_of(state, f.name("group")) : nullptr;
	Volume v;
	v.name = f.text("name");
	v.uuid = f.uuid("uuid");
	v.size_bytes = f.number("size_bytes", MAX_VOLUME_BYTES);
	v.block_size = uint32_t(f.number("block_size", LKS_BLOCK_MAX));
	v.adopts = lvm_name(f, "lv");
	v.redundancy = unsigned(f.number_or("redundancy", group ? group->redundancy : DEFAULT_REDUNDANCY, LKS_MAX_REPLICAS));
	v.group = group ? group->name : "";
	const std::string pool = f.name("pool");
	const uint64_t md_offset = f.number("md_offset", 2 * MAX_VOLUME_BYTES);
	if (!valid_volume_name(v.name))
		refuse(usage_error("\"" + v.name + "\" is no valid volume name: use up to 127 letters, digits, \".\", \"_\" and \"-\", "
				   "beginning with a letter or digit"));
	if (f.has("labels"))
		change_labels(v.labels, f.labels("labels"), "volume " + v.name);
	if (!v.size_bytes || v.size_bytes % 4096 || v.block_size < LKS_BLOCK_MIN || (v.block_size & (v.block_size - 1)) || md_offset % LKS_META_UNIT ||
	    md_offset < v.size_bytes)
		refuse(usage_error("volume " + v.name + ": size, block size and place of the metadata do not fit together"));
	if (!v.redundancy)
		refuse(usage_error("volume " + v.name + ": its redundancy must be 1 to " + std::to_string(LKS_MAX_REPLICAS)));
	if (state.volume_named(v.name))
		refuse(coded("name-taken", forbidden("there is a volume named " + v.name + " already: choose another name")));
	for (const auto &[vid, other] : state.volumes)
		if (other.uuid == v.uuid)
			refuse(forbidden("volume " + other.name + " has this UUID: what is left elsewhere is an old copy of it, which can only be purged"));
	if (const Pool *there = state.pool(pool, h.id); !there || there->deleting)
		refuse(coded("no-such-pool", not_found("host " + h.name + " has no pool named " + pool)));
	if (!h.keeps_replicas())
		refuse(forbidden("host " + h.name + " takes no replicas now: `lockstep host restore " + h.name + "` lets it"));
	v.minor = free_minor(state);
	if (state.next_vid == UINT32_MAX)
		refuse(forbidden("volume " + v.name + ": all volume ids have been used"));
	v.vid = uint32_t(std::max<uint64_t>(state.next_vid, f.number("vid", UINT32_MAX - 1) + 1));
	v.version = f.number("version", UINT32_MAX) + 1;
	v.term = f.number("term", UINT32_MAX) + 1;
	v.replicas.push_back({.host = h.id, .since = v.version, .added = v.version, .pool = pool, .md_offset = md_offset});
	if (std::string broken = check_volume(v); !broken.empty())
		refuse(failed("volume " + v.name + ": " + broken));
	state.next_vid = v.vid + 1;
	json answer = done();
	answer["vid"] = v.vid;
	answer["minor"] = v.minor;
	answer["hosts"] = {h.id};
	state.volumes[v.vid] = std::move(v);
	return answer;
}

}    // namespace lockstep::cluster
