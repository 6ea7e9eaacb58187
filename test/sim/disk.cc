// SPDX-License-Identifier: GPL-2.0-or-later
//
// See disk.h.
#include "disk.h"

namespace lockstep::sim {

Disk::Disk(uint64_t data_sectors, uint64_t meta_sectors, bool garbage)
{
	data.now.resize(data_sectors);
	meta.now.resize(meta_sectors);
	if (garbage)
		for (uint64_t i = 0; i < data_sectors; i++)
			data.now[i] = 0xdeadull << 48 | i;
	for (MetaSector &s : meta.now)
		s.fill(garbage ? 0xa5 : 0);
	data.platter = data.now;
	meta.platter = meta.now;
	data.durable.resize(data_sectors);
	meta.durable.resize(meta_sectors);
	chunks.resize(data_sectors / CHUNK + 1);
}

bool Disk::provisioned(uint64_t first, uint64_t count) const
{
	for (uint64_t c = first / CHUNK; c <= (first + count - 1) / CHUNK; c++)
		if (!chunks[c])
			return false;
	return true;
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
