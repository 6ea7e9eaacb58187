// SPDX-License-Identifier: GPL-2.0-or-later
//
// See disk.h.
#include "disk.h"

#include <algorithm>

namespace lockstep::sim {

Disk::Disk(uint64_t sectors, bool garbage_) : garbage(garbage_)
{
	data.now.resize(sectors);
	if (garbage)
		for (uint64_t i = 0; i < sectors; i++)
			data.now[i] = garbage_of(i);
	data.platter = data.now;
	data.durable.resize(sectors);
	chunks.resize(sectors / CHUNK + 1);
}

bool Disk::provisioned(uint64_t first, uint64_t count) const
{
	for (uint64_t c = first / CHUNK; c <= (first + count - 1) / CHUNK; c++)
		if (!chunks[c])
			return false;
	return true;
}

void Disk::add_place(uint64_t first, uint64_t sectors)
{
	places.push_back({first, sectors, meta.now.size()});
	MetaSector blank;
	blank.fill(garbage ? 0xa5 : 0);
	meta.now.resize(meta.now.size() + sectors, blank);
	meta.platter.resize(meta.now.size(), blank);
	meta.durable.resize(meta.now.size());
}

// The newest counts: an older one may have been given up for the same sectors.
const Disk::Place *Disk::place_of(uint64_t sector) const
{
	auto it = std::find_if(places.rbegin(), places.rend(), [&](const Place &p) { return sector >= p.first && sector - p.first < p.sectors; });
	return it == places.rend() ? nullptr : &*it;
}

bool Disk::is_meta(uint64_t first, uint64_t sectors) const
{
	const Place *p = place_of(first);
	return p && sectors <= p->sectors - (first - p->first);
}

void Disk::flush(uint64_t mark)
{
	data.flush(mark);
	meta.flush(mark);
}

void Disk::crash(Random &random, double survival)
{
	data.crash(random, survival);
	meta.crash(random, survival);
}

void Disk::bound(size_t writes)
{
	if (data.cache.size() > writes)
		flush(data.cache[data.cache.size() / 2].sequence);
}

}    // namespace lockstep::sim
