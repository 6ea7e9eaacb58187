// SPDX-License-Identifier: GPL-2.0-or-later
//
// Transfers between the core and the simulated disks: checked when they are submitted, done later and in any order.
#include "world.h"

#include "core/internal.h"

#include <algorithm>
#include <cstring>

namespace lockstep::sim {

namespace {

constexpr size_t CACHE_WRITES = 100000;    // of a disk, in sectors

bool changes(uint8_t op)
{
	return op == LKS_IO_WRITE || op == LKS_IO_ZEROES || op == LKS_IO_DISCARD || op == LKS_IO_META;
}

bool overlap(const lks_io &a, const lks_io &b)
{
	return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

const char *io_name(uint8_t op)
{
	static const char *const names[] = {"?", "read", "write", "flush", "zeroes", "discard", "meta"};
	return names[op <= LKS_IO_META ? op : 0];
}

Disk &disk_of(Instance &i) { return *i.host.disks[i.volume.vid - 1]; }

}    // namespace

void World::submit(Instance &i, lks_io *io)
{
	const char *name = io_name(io->op);
	if (!i.host.disks[i.volume.vid - 1])
		fail("h%u submits a %s without a disk", i.host.id, name);
	auto t = std::make_unique<Transfer>(Transfer{fresh(), io, *io, 0, {}, {}, {}});
	Disk &disk = disk_of(i);
	if (io->op == LKS_IO_META)
		t->what.length = LKS_META_UNIT;
	const lks_io &what = t->what;
	if (io->op == LKS_IO_META) {
		if (io->offset % LKS_META_UNIT || !disk.is_meta(io->offset / SECTOR, LKS_META_UNIT / SECTOR))
			fail("h%u writes metadata at %llu", i.host.id, (unsigned long long)io->offset);
		t->meta.resize(LKS_META_UNIT / SECTOR);
		memcpy(t->meta.data(), io->meta, LKS_META_UNIT);
		stats[Stat::table_writes]++;
	} else if (io->op == LKS_IO_FLUSH) {
		t->what.length = 0;
		t->mark = disk.mark();
	} else {
		bool data = io->offset + io->length <= i.volume.bytes;
		bool slots = io->op == LKS_IO_ZEROES && disk.is_meta(io->offset / SECTOR, io->length / SECTOR);
		// What held metadata becomes data, after the log has named the new place and before the volume may grow over it.
		bool retired = io->op == LKS_IO_ZEROES && io->offset >= i.volume.bytes && i.volume.grow_to &&
			       i.volume.moved.count(i.host.id) && io->offset + io->length <= i.volume.grow_to;
		if (!io->length || io->length % SECTOR || io->offset % SECTOR || (!data && !slots && !retired))
			fail("h%u: %s of %u bytes at %llu", i.host.id, name, io->length, (unsigned long long)io->offset);
		if ((io->op == LKS_IO_READ || io->op == LKS_IO_WRITE) && (!io->buf || io->buf->bytes < io->length))
			fail("h%u: %s of %u bytes with too small a buffer", i.host.id, name, io->length);
		if (io->op == LKS_IO_WRITE)
			t->data.assign(io->buf->sectors.begin(), io->buf->sectors.begin() + io->length / SECTOR);
	}
	if (changes(io->op))
		for (auto &other : i.transfers)
			if (changes(other->what.op) && overlap(other->what, what))
				fail("W2 h%u: %s of %u bytes at %llu while a %s of %u bytes at %llu is under way", i.host.id, name,
				     what.length, (unsigned long long)what.offset, io_name(other->what.op), other->what.length,
				     (unsigned long long)other->what.offset);
	trace("h%u disk %s #%llu %llu+%u%s", i.host.id, name, (unsigned long long)t->id, (unsigned long long)(what.offset / SECTOR),
	      (unsigned)(what.length / SECTOR), what.flags & LKS_IO_FUA ? " fua" : "");
	Time delay = random.between(20, profile.disk_delay);
	if (random.chance(profile.disk_slow))
		delay = random.between(100 * MS, 3 * SECOND);
	at_instance(i, delay, [this, id = t->id](Instance &x) { transferred(x, id); });
	i.transfers.push_back(std::move(t));
}

// The sectors of t that took no effect yet take effect; unless whole, each with an even chance.
void World::apply(Instance &i, Transfer &t, bool whole)
{
	Disk &disk = disk_of(i);
	uint64_t n = t.what.length / SECTOR, first = t.what.offset / SECTOR;
	if (!whole && t.early.empty())
		t.early.resize(n);
	for (uint64_t k = 0; k < n; k++) {
		if (!t.early.empty() && t.early[k])
			continue;
		if (!whole) {
			if (random.chance(.5))
				continue;
			t.early[k] = true;
		}
		if (t.what.op == LKS_IO_META)
			disk.write_meta(first + k, t.meta[k]);
		else if (t.what.op == LKS_IO_ZEROES && disk.is_meta(first + k))
			disk.zero_meta(first + k);
		else
			disk.write(first + k, t.what.op == LKS_IO_WRITE ? t.data[k] : 0);
	}
	if (!whole || !(t.what.flags & LKS_IO_FUA))
		return;
	for (uint64_t k = 0; k < n; k++) {
		if (t.what.op == LKS_IO_META)
			disk.persist_meta(first + k);
		else
			disk.persist(first + k);
	}
}

// A read that overlaps a write under way sees part of it.
void World::disturb(Instance &i, const Transfer &read)
{
	for (auto &t : i.transfers)
		if (t->what.op != LKS_IO_META && changes(t->what.op) && overlap(t->what, read.what) && random.chance(.5))
			apply(i, *t, false);
}

static bool data_overlap(const lks_io &io, const Span &span)
{
	return io.offset < (span.first + span.count) * SECTOR && span.first * SECTOR < io.offset + io.length;
}

void World::transferred(Instance &i, uint64_t id)
{
	if (i.host.stalled_until > now) {
		// it may end before its time
		at_instance(i, std::min(i.host.stalled_until - now, 1 * SECOND) + random.below(10 * MS), [this, id](Instance &x) { transferred(x, id); });
		return;
	}
	auto it = std::find_if(i.transfers.begin(), i.transfers.end(), [&](auto &t) { return t->id == id; });
	if (it == i.transfers.end())
		fail("transfer %llu has gone", (unsigned long long)id);
	std::unique_ptr<Transfer> t = std::move(*it);
	i.transfers.erase(it);
	int err = 0;
	const lks_io &what = t->what;
	bool data = (what.op == LKS_IO_WRITE || what.op == LKS_IO_ZEROES) && what.offset < i.volume.bytes;
	if (i.host.full_until > now && data && !i.volume.thick &&
	    !disk_of(i).provisioned(what.offset / SECTOR, what.length / SECTOR)) {
		i.no_space = true;
		stats[Stat::no_space]++;
		err = -ENOSPC;
	} else if (i.unreadable && what.op == LKS_IO_READ && data_overlap(what, *i.unreadable)) {
		err = -ENODATA;
	} else if (spoils(profile.io_errors)) {
		stats[Stat::io_failures]++;
		err = what.op == LKS_IO_READ && random.chance(.5) ? -ENODATA : -EIO;
		if (changes(t->what.op))
			apply(i, *t, false);
	} else if (changes(t->what.op)) {
		if (t->what.op == LKS_IO_META && memcmp(t->meta.data(), t->io->meta, LKS_META_UNIT))
			fail("h%u changed metadata while they were being written", i.host.id);
		if (t->what.op == LKS_IO_WRITE && !std::equal(t->data.begin(), t->data.end(), t->io->buf->sectors.begin()))
			fail("h%u changed data while they were being written", i.host.id);
		apply(i, *t, true);
		if (i.unreadable && what.op == LKS_IO_WRITE && data_overlap(what, *i.unreadable))
			i.unreadable.reset();
		disk_of(i).bound(CACHE_WRITES);
	} else if (t->what.op == LKS_IO_FLUSH) {
		disk_of(i).flush(t->mark);
	} else {
		disturb(i, *t);
		if (t->io->buf->returned)
			fail("h%u: the disk writes to the buffer of a read that has ended", i.host.id);
		for (uint64_t k = 0; k < t->what.length / SECTOR; k++)
			t->io->buf->sectors[k] = disk_of(i).read(t->what.offset / SECTOR + k);
	}
	trace("h%u disk %s #%llu done%s", i.host.id, io_name(t->what.op), (unsigned long long)t->id, err ? " with an error" : "");
	lks_io *io = t->io;
	enter(i, [&](lks_vol *v, uint64_t ms) { lks_vol_io_done(v, io, err, ms); });
}

void World::power_off_disk(Host &h, Instance &i)
{
	double share = survival >= 0 ? survival : random.pick<double>({.5, .5, .5, 0, 1});
	for (auto &t : i.transfers)
		if (changes(t->what.op) && survival < 0)
			apply(i, *t, false);
	h.disks[i.volume.vid - 1]->crash(random, share);
}

int World::read_meta(Instance &i, uint64_t offset, void *to, uint32_t bytes)
{
	Disk &disk = disk_of(i);
	if (offset % LKS_META_UNIT || !bytes || bytes % LKS_META_UNIT || !disk.is_meta(offset / SECTOR, bytes / SECTOR))
		fail("h%u reads %u bytes of metadata at %llu", i.host.id, bytes, (unsigned long long)offset);
	if (spoils(profile.io_errors)) {
		stats[Stat::io_failures]++;
		return -EIO;
	}
	for (uint64_t k = 0; k < bytes / SECTOR; k++)
		memcpy(static_cast<uint8_t *>(to) + k * SECTOR, disk.read_meta(offset / SECTOR + k).data(), SECTOR);
	return 0;
}

unsigned World::extent_bits(const Host &h, const Volume &v, uint64_t extent) const
{
	const Disk &disk = *h.disks[v.vid - 1];
	uint64_t i = extent % LKS_EXTENTS_PER_RECORD;
	const MetaSector &sector = disk.read_meta((v.meta_of.at(h.id) + v.layout.table_offset) / SECTOR + extent / LKS_EXTENTS_PER_RECORD);
	return sector[offsetof(lks_extent_record, bits) + i / 4] >> (i % 4 * 2) & (LKS_EXTENT_HOT | LKS_EXTENT_WRITTEN);
}

}    // namespace lockstep::sim
