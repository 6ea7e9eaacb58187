// SPDX-License-Identifier: GPL-2.0-or-later
//
// A simulated disk with a volatile write cache.
//
// A sector (512 bytes) is the unit of everything. Data sectors are modelled as one 64-bit value each; the sectors of the
// metadata behind them as real bytes, because the core computes checksums of them. A write reaches the cache when it
// completes, in whatever order the world completes writes; reads see the cache. A flush makes durable what had completed
// before the flush was submitted; FUA makes durable the write itself. At a crash each write of a sector that was not yet
// durable, those in flight included, survives or not on its own: torn writes of any kind.
#pragma once

#include "random.h"

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

namespace lockstep::sim {

using MetaSector = std::array<uint8_t, 512>;

class Disk {
public:
	// garbage: sectors never written read as values that no client wrote (a thick volume), otherwise as zeros.
	Disk(uint64_t sectors, bool garbage);
	// Metadata may stand in these sectors from now on. Read as data they are garbage, until they are written as data.
	void add_place(uint64_t first, uint64_t sectors);
	bool is_meta(uint64_t sector) const { return place_of(sector) != nullptr; }
	// Do all these sectors lie in one place?
	bool is_meta(uint64_t first, uint64_t sectors) const;

	uint64_t sectors() const { return data.now.size(); }
	uint64_t read(uint64_t sector) const { return data.now[sector]; }
	const MetaSector &read_meta(uint64_t sector) const { return meta.now[index(sector)]; }

	void write(uint64_t sector, uint64_t value)
	{
		data.write(sector, value, ++sequence);
		chunks[sector / CHUNK] = true;
	}
	void write_meta(uint64_t sector, const MetaSector &bytes)
	{
		meta.write(index(sector), bytes, ++sequence);
		write(sector, garbage_of(sector));
	}
	void zero_meta(uint64_t sector)
	{
		meta.write(index(sector), MetaSector{}, ++sequence);
		write(sector, 0);
	}

	// Everything of the sector that was written so far is durable (FUA).
	void persist(uint64_t sector) { data.persist(sector, ++sequence); }
	void persist_meta(uint64_t sector)
	{
		meta.persist(index(sector), ++sequence);
		persist(sector);
	}

	// Of a thin pool: does each chunk that the sectors lie in have space of its own already? Discarding gives none back.
	bool provisioned(uint64_t first, uint64_t count) const;
	// A snapshot was taken: the next write of any chunk needs space.
	void share() { chunks.assign(chunks.size(), false); }

	uint64_t mark() const { return sequence; }
	// Makes durable what was written up to mark.
	void flush(uint64_t mark);
	// Writes that were in flight are to be passed to write() before, if they are to count.
	void crash(Random &random, double survival);
	// The cache never holds more than this many writes: it destages the oldest.
	void bound(size_t writes);

	static uint64_t garbage_of(uint64_t sector) { return 0xdeadull << 48 | sector; }

private:
	static constexpr uint64_t CHUNK = 128;    // sectors

	struct Place {
		uint64_t first, sectors, base;    // base: index of the first in meta
	};
	const Place *place_of(uint64_t sector) const;
	uint64_t index(uint64_t sector) const
	{
		const Place *p = place_of(sector);
		return p->base + sector - p->first;
	}
	template <typename T> struct Area {
		struct Write {
			uint64_t sequence, sector;
			T value;
		};
		std::vector<T> now, platter;
		std::vector<uint64_t> durable;    // number of the write that the platter holds; older ones in the cache are void
		std::deque<Write> cache;

		void write(uint64_t sector, const T &value, uint64_t seq)
		{
			now[sector] = value;
			cache.push_back({seq, sector, value});
		}
		void persist(uint64_t sector, uint64_t seq)
		{
			platter[sector] = now[sector];
			durable[sector] = seq;
		}
		void settle(const Write &w)
		{
			if (w.sequence <= durable[w.sector])
				return;
			platter[w.sector] = w.value;
			durable[w.sector] = w.sequence;
		}
		void flush(uint64_t mark)
		{
			for (; !cache.empty() && cache.front().sequence <= mark; cache.pop_front())
				settle(cache.front());
		}
		void crash(Random &random, double survival)
		{
			for (const Write &w : cache)
				if (random.chance(survival))
					settle(w);
			cache.clear();
			now = platter;
		}
	};
	Area<uint64_t> data;
	Area<MetaSector> meta;
	std::vector<bool> chunks;                 // by sector / CHUNK: provisioned
	std::vector<Place> places;
	bool garbage;
	uint64_t sequence = 0;
};

}    // namespace lockstep::sim
