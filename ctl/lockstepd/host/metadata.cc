// SPDX-License-Identifier: GPL-2.0-or-later
//
// All I/O is in aligned units of 4096 bytes with O_DIRECT: the kernel module writes below the page cache, so a cached page
// here could be old. A file system that cannot do O_DIRECT (a test on tmpfs) gets buffered I/O. fsync() on a block device
// flushes the disk's cache as well.
#include "lockstepd/host/metadata.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include "lib/uuid.h"

namespace lockstep {

namespace {

class MetadataFile {
public:
	static Result<MetadataFile> open(const std::string &path, uint64_t offset, int mode);
	MetadataFile(MetadataFile &&other) noexcept
		: path_(std::move(other.path_)), offset_(other.offset_), fd_(other.fd_), unit_(std::move(other.unit_))
	{
		other.fd_ = -1;
	}
	~MetadataFile()
	{
		if (fd_ >= 0)
			close(fd_);
	}

	void *unit() { return unit_.get(); }
	int fd() const { return fd_; }
	Done read_unit(uint64_t at)     // at: bytes from the start of the metadata
	{
		return transfer(pread(fd_, unit_.get(), LKS_META_UNIT, offset_ + at), "read", at);
	}
	Done write_unit(uint64_t at)
	{
		return transfer(pwrite(fd_, unit_.get(), LKS_META_UNIT, offset_ + at), "write", at);
	}
	Done flush()
	{
		if (fsync(fd_) < 0)
			return failed(fmt::format("cannot flush {}: {}", path_, strerror(errno)));
		return Nothing{};
	}

private:
	MetadataFile(std::string path, uint64_t offset, int fd)
		: path_(std::move(path)), offset_(offset), fd_(fd), unit_(std::aligned_alloc(LKS_META_UNIT, LKS_META_UNIT))
	{
	}
	Done transfer(ssize_t n, const char *verb, uint64_t at)
	{
		if (n == LKS_META_UNIT)
			return Nothing{};
		return failed(fmt::format("cannot {} the metadata of {} at byte {}: {}", verb, path_, offset_ + at,
					  n < 0 ? strerror(errno) : "the device ends there"));
	}

	struct Free {
		void operator()(void *p) const { std::free(p); }
	};
	std::string path_;
	uint64_t offset_;
	int fd_;
	std::unique_ptr<void, Free> unit_;
};

Result<MetadataFile> MetadataFile::open(const std::string &path, uint64_t offset, int mode)
{
	if (offset % LKS_META_UNIT)
		return failed(fmt::format("the metadata of {} cannot be at byte {}: no multiple of {}", path, offset, LKS_META_UNIT));
	int fd = ::open(path.c_str(), mode | O_CLOEXEC | O_DIRECT);
	if (fd < 0 && errno == EINVAL)
		fd = ::open(path.c_str(), mode | O_CLOEXEC);
	if (fd < 0)
		return failed(fmt::format("cannot open {}: {}", path, strerror(errno)));
	return MetadataFile(path, offset, fd);
}

Result<std::optional<lks_superblock>> read_superblock(MetadataFile &file)
{
	std::optional<lks_superblock> newest;
	for (uint64_t at : {0, LKS_META_UNIT}) {
		Done done = file.read_unit(at);
		if (!done)
			return done.error();
		lks_superblock sb;
		memcpy(&sb, file.unit(), sizeof(sb));
		if (lks_superblock_verify(&sb) == 0 && (!newest || sb.sequence > newest->sequence))
			newest = sb;
	}
	return newest;
}

}    // namespace

uint64_t extent_tag(const lks_superblock &sb)
{
	uint64_t tag;
	memcpy(&tag, sb.uuid, sizeof(tag));
	return tag;
}

uint64_t replica_lv_bytes(uint64_t offset, uint64_t size_bytes, uint32_t block_size)
{
	lks_layout layout;
	lks_layout_of(size_bytes, block_size, &layout);
	return offset + layout.total_bytes;
}

Result<std::optional<lks_superblock>> read_superblock(const std::string &path, uint64_t offset)
{
	auto file = MetadataFile::open(path, offset, O_RDONLY);
	if (!file)
		return file.error();
	return read_superblock(*file);
}

namespace {

// As a replica has it that nothing was written to.
lks_superblock superblock_of(const ReplicaMetadata &replica, const std::array<uint8_t, 16> &uuid)
{
	lks_superblock sb = {};
	sb.vid = replica.vid;
	memcpy(sb.uuid, uuid.data(), uuid.size());
	sb.size = replica.size_bytes;
	sb.block_size = replica.block_size;
	sb.host = replica.host;
	sb.version = replica.version;
	sb.term = replica.term;
	return sb;
}

}    // namespace

Done format_replica(const ReplicaMetadata &replica)
{
	auto uuid = uuid_bytes(replica.uuid);
	if (!uuid)
		return failed(fmt::format("volume {}: '{}' is no UUID", replica.vid, replica.uuid));
	auto file = MetadataFile::open(replica.path, replica.offset, O_RDWR);
	if (!file)
		return file.error();
	auto found = read_superblock(*file);
	if (!found)
		return found.error();
	if (*found && (*found)->vid == replica.vid && !memcmp((*found)->uuid, uuid->data(), 16) && (*found)->host == replica.host &&
	    (*found)->size == replica.size_bytes && (*found)->block_size == replica.block_size)
		return Nothing{};

	const lks_superblock sb = superblock_of(replica, *uuid);
	lks_layout layout;
	lks_layout_of(replica.size_bytes, replica.block_size, &layout);

	// The old superblock A goes first: it must not vouch for a table that is half written.
	memset(file->unit(), 0, LKS_META_UNIT);
	if (Done done = file->write_unit(0); !done)
		return done.error();
	if (Done done = file->flush(); !done)
		return done.error();
	for (uint64_t at = LKS_META_UNIT; at < layout.slot_offset; at += LKS_META_UNIT) {
		lks_format_unit(&sb, at, file->unit());
		if (Done done = file->write_unit(at); !done)
			return done.error();
	}
	if (Done done = file->flush(); !done)
		return done.error();
	lks_format_unit(&sb, 0, file->unit());
	if (Done done = file->write_unit(0); !done)
		return done.error();
	return file->flush();
}

namespace {

// Both superblocks invalid.
Done clear_superblocks(MetadataFile &file)
{
	memset(file.unit(), 0, LKS_META_UNIT);
	for (uint64_t at : {0, LKS_META_UNIT})
		if (Done done = file.write_unit(at); !done)
			return done;
	return file.flush();
}

}    // namespace

Done wipe_replica(const std::string &path, uint64_t offset)
{
	auto file = MetadataFile::open(path, offset, O_RDWR);
	if (!file)
		return file.error();
	auto found = read_superblock(*file);
	if (!found)
		return found.error();
	if (!*found)
		return Nothing{};
	return clear_superblocks(*file);
}

Result<nlohmann::json> dump_replica(const std::string &path, uint64_t offset)
{
	auto file = MetadataFile::open(path, offset, O_RDONLY);
	if (!file)
		return file.error();
	auto found = read_superblock(*file);
	if (!found)
		return found.error();
	if (!*found)
		return failed(fmt::format("{} has no valid superblock at byte {}", path, offset));
	const lks_superblock sb = **found;
	nlohmann::json slots = nlohmann::json::array();
	for (const lks_disk_slot &slot : sb.slots)
		if (slot.host)
			slots.push_back({{"host", slot.host}, {"since", uint64_t(slot.since)}});

	lks_layout layout;
	lks_layout_of(sb.size, sb.block_size, &layout);
	std::array<uint8_t, 16> uuid;
	memcpy(uuid.data(), sb.uuid, uuid.size());
	uint64_t tag, hot = 0, written = 0, damaged = 0;
	memcpy(&tag, sb.uuid, sizeof(tag));
	for (uint64_t unit = 0; unit * LKS_META_UNIT < layout.table_bytes; unit++) {
		if (Done done = file->read_unit(layout.table_offset + unit * LKS_META_UNIT); !done)
			return done.error();
		const auto *records = static_cast<const lks_extent_record *>(file->unit());
		for (uint64_t r = 0; r < LKS_RECORDS_PER_UNIT; r++) {
			const uint64_t first = (unit * LKS_RECORDS_PER_UNIT + r) * LKS_EXTENTS_PER_RECORD;
			if (!lks_extent_record_valid(&records[r], unit * LKS_RECORDS_PER_UNIT + r, tag)) {
				damaged += first < layout.extents;
				continue;
			}
			for (uint64_t i = 0; i < LKS_EXTENTS_PER_RECORD && first + i < layout.extents; i++) {
				const unsigned bits = records[r].bits[i / 4] >> (i % 4 * 2);
				hot += !!(bits & LKS_EXTENT_HOT);
				written += !!(bits & LKS_EXTENT_WRITTEN);
			}
		}
	}
	return nlohmann::json{{"vid", uint32_t(sb.vid)}, {"uuid", uuid_text(uuid)}, {"host", sb.host}, {"size_bytes", uint64_t(sb.size)},
			      {"block_size", uint32_t(sb.block_size)}, {"sequence", uint64_t(sb.sequence)}, {"clean", sb.clean != 0},
			      {"version", uint64_t(sb.version)}, {"term", uint64_t(sb.term)}, {"slots", slots},
			      {"extents", uint64_t(layout.extents)}, {"hot_extents", hot}, {"written_extents", written},
			      {"damaged_records", damaged}};
}

// ---- content of another LV ----

namespace {

// The extent table, unit by unit: f is given each record (at its number) and may change it; then the unit is written if it
// says so.
Done each_record(MetadataFile &file, const lks_layout &layout, const std::function<bool(lks_extent_record &, uint32_t index)> &f)
{
	for (uint64_t at = 0; at < layout.table_bytes; at += LKS_META_UNIT) {
		if (Done done = file.read_unit(layout.table_offset + at); !done)
			return done;
		bool changed = false;
		auto *records = static_cast<lks_extent_record *>(file.unit());
		for (uint32_t i = 0; i < LKS_RECORDS_PER_UNIT; i++)
			changed |= f(records[i], uint32_t(at / LKS_META_UNIT * LKS_RECORDS_PER_UNIT + i));
		if (changed)
			if (Done done = file.write_unit(layout.table_offset + at); !done)
				return done;
	}
	return Nothing{};
}

constexpr uint8_t ALL_WRITTEN = LKS_EXTENT_WRITTEN * 0x55;    // of four extents

constexpr size_t COPY_BYTES = 1 << 20;

// Between the same places of two LVs; offsets from their start.
using Buffer = std::unique_ptr<char, decltype(&std::free)>;
Buffer new_buffer() { return {static_cast<char *>(std::aligned_alloc(LKS_META_UNIT, COPY_BYTES)), std::free}; }

// Copies from one LV to the same place of another. differing: only units that are not the same there.
class RangeCopier {
public:
	RangeCopier(MetadataFile &from, MetadataFile &to, bool differing, ContentProgress &progress)
		: from_(from), to_(to), differing_(differing), progress_(progress) {}

	Done copy(uint64_t offset, uint64_t bytes)
	{
		for (const uint64_t end = offset + bytes; offset < end;) {
			const size_t part = std::min<uint64_t>(COPY_BYTES, end - offset);
			if (progress_.stop)
				return failed("copying was broken off");
			if (pread(from_.fd(), data_.get(), part, off_t(offset)) != ssize_t(part) ||
			    (differing_ && pread(to_.fd(), there_.get(), part, off_t(offset)) != ssize_t(part)) || !put(offset, part))
				return failed(fmt::format("cannot copy {} bytes at byte {}: {}", part, offset, strerror(errno)));
			offset += part;
		}
		return Nothing{};
	}

private:
	bool put(uint64_t offset, size_t bytes)
	{
		for (size_t at = 0, end; at < bytes; at = end) {
			const bool wanted = !same(at, bytes);
			for (end = at + LKS_META_UNIT; end < bytes && !same(end, bytes) == wanted;)
				end += LKS_META_UNIT;
			end = std::min(end, bytes);
			if (!wanted)
				continue;
			if (pwrite(to_.fd(), data_.get() + at, end - at, off_t(offset + at)) != ssize_t(end - at))
				return false;
			progress_.changed_bytes += end - at;
		}
		return true;
	}

	bool same(size_t at, size_t bytes) const
	{
		return differing_ && !memcmp(data_.get() + at, there_.get() + at, std::min<size_t>(LKS_META_UNIT, bytes - at));
	}

	MetadataFile &from_, &to_;
	const bool differing_;
	ContentProgress &progress_;
	Buffer data_ = new_buffer(), there_ = new_buffer();
};

bool same_replica(const lks_superblock &sb, const ReplicaMetadata &r, const std::array<uint8_t, 16> &uuid)
{
	return sb.vid == r.vid && !memcmp(sb.uuid, uuid.data(), 16) && sb.host == r.host && sb.size == r.size_bytes &&
	       sb.block_size == r.block_size;
}

}    // namespace

Done adopt_replica(const ReplicaMetadata &replica)
{
	auto uuid = uuid_bytes(replica.uuid);
	if (!uuid)
		return failed(fmt::format("volume {}: '{}' is no UUID", replica.vid, replica.uuid));
	auto file = MetadataFile::open(replica.path, replica.offset, O_RDWR);
	if (!file)
		return file.error();
	auto found = read_superblock(*file);
	if (!found)
		return found.error();
	if (!*found)
		return failed(fmt::format("{} has no valid superblock at byte {}", replica.path, replica.offset));
	lks_superblock sb = **found;
	if (same_replica(sb, replica, *uuid) && sb.version == replica.version)
		return Nothing{};
	if (sb.size != replica.size_bytes || sb.block_size != replica.block_size)
		return failed(fmt::format("{} holds {} bytes in blocks of {}, not {} in blocks of {}", replica.path, uint64_t(sb.size),
					  uint32_t(sb.block_size), replica.size_bytes, replica.block_size));

	const uint64_t old_tag = extent_tag(sb), sequence = sb.sequence;
	memset(&sb, 0, sizeof(sb));
	sb.vid = replica.vid;
	memcpy(sb.uuid, uuid->data(), 16);
	sb.size = replica.size_bytes;
	sb.block_size = replica.block_size;
	sb.host = replica.host;
	sb.version = replica.version;
	sb.term = replica.term;
	const uint64_t new_tag = extent_tag(sb);
	lks_layout layout;
	lks_layout_of(replica.size_bytes, replica.block_size, &layout);
	// A record that an interrupted run has done is recognised by its tag. A damaged one is taken for written: that is read, at worst
	// without need.
	Done table = each_record(*file, layout, [&](lks_extent_record &r, uint32_t index) {
		const bool old_one = lks_extent_record_valid(&r, index, old_tag);
		if (!old_one && lks_extent_record_valid(&r, index, new_tag))
			return false;
		for (uint8_t &bits : r.bits)
			bits = old_one ? bits & ALL_WRITTEN : ALL_WRITTEN;
		r.index = index;
		r.tag = new_tag;
		lks_extent_record_seal(&r);
		return true;
	});
	if (!table)
		return table;
	if (Done done = file->flush(); !done)
		return done;
	// The copy that does not count now is replaced first, with a higher number; then the other: at no time is there none.
	if (Done done = file->read_unit(0); !done)
		return done;
	auto *copy = static_cast<lks_superblock *>(file->unit());
	const bool a_counts = lks_superblock_verify(copy) == 0 && copy->sequence == sequence;
	for (uint64_t n = 1; n <= 2; n++) {
		lks_format_unit(&sb, 0, file->unit());
		copy->sequence = sequence + n;
		lks_superblock_seal(copy);
		if (Done done = file->write_unit((n == 1) == a_counts ? LKS_META_UNIT : 0); !done)
			return done;
		if (Done done = file->flush(); !done)
			return done;
	}
	return Nothing{};
}

Result<std::vector<bool>> written_extents(const std::string &path, uint64_t offset, uint64_t first, uint64_t end)
{
	auto file = MetadataFile::open(path, offset, O_RDONLY);
	if (!file)
		return file.error();
	auto found = read_superblock(*file);
	if (!found)
		return found.error();
	if (!*found)
		return failed(fmt::format("{} has no valid superblock at byte {}", path, offset));
	lks_layout layout;
	lks_layout_of((*found)->size, (*found)->block_size, &layout);
	end = std::min<uint64_t>(end, std::max<uint64_t>(first, layout.extents));
	std::vector<bool> written(end - first);
	const uint64_t tag = extent_tag(**found);
	for (uint64_t unit = first / LKS_EXTENTS_PER_UNIT; unit * LKS_EXTENTS_PER_UNIT < end; unit++) {
		if (Done done = file->read_unit(layout.table_offset + unit * LKS_META_UNIT); !done)
			return done.error();
		const auto *records = static_cast<const lks_extent_record *>(file->unit());
		for (uint64_t r = 0; r < LKS_RECORDS_PER_UNIT; r++) {
			const uint64_t index = unit * LKS_RECORDS_PER_UNIT + r;
			const bool valid = lks_extent_record_valid(&records[r], uint32_t(index), tag);
			for (uint64_t i = 0; i < LKS_EXTENTS_PER_RECORD; i++)
				if (const uint64_t extent = index * LKS_EXTENTS_PER_RECORD + i; extent >= first && extent < end)
					written[extent - first] = !valid || (records[r].bits[i / 4] >> (i % 4 * 2) & LKS_EXTENT_WRITTEN);
		}
	}
	return written;
}

Done stamp_replica(const ReplicaMetadata &replica, const std::vector<bool> &written)
{
	auto uuid = uuid_bytes(replica.uuid);
	if (!uuid)
		return failed(fmt::format("volume {}: '{}' is no UUID", replica.vid, replica.uuid));
	auto file = MetadataFile::open(replica.path, replica.offset, O_RDWR);
	if (!file)
		return file.error();
	const lks_superblock sb = superblock_of(replica, *uuid);
	lks_layout layout;
	lks_layout_of(replica.size_bytes, replica.block_size, &layout);
	if (Done done = clear_superblocks(*file); !done)
		return done;
	for (uint64_t at = 0; at < layout.table_bytes; at += LKS_META_UNIT) {
		lks_format_unit(&sb, layout.table_offset + at, file->unit());
		auto *records = static_cast<lks_extent_record *>(file->unit());
		for (uint64_t r = 0; r < LKS_RECORDS_PER_UNIT; r++) {
			const uint64_t index = at / LKS_META_UNIT * LKS_RECORDS_PER_UNIT + r;
			for (uint64_t i = 0; i < LKS_EXTENTS_PER_RECORD; i++)
				if (const uint64_t extent = index * LKS_EXTENTS_PER_RECORD + i; extent < written.size() && written[extent])
					records[r].bits[i / 4] |= uint8_t(LKS_EXTENT_WRITTEN << (i % 4 * 2));
			lks_extent_record_seal(&records[r]);
		}
		if (Done done = file->write_unit(layout.table_offset + at); !done)
			return done;
	}
	if (Done done = file->flush(); !done)
		return done;
	lks_format_unit(&sb, 0, file->unit());
	if (Done done = file->write_unit(0); !done)
		return done;
	return file->flush();
}

namespace {

// The superblock of what has the content; failed if that is none.
Result<lks_superblock> source_of(MetadataFile &source, const std::string &from, const ReplicaMetadata &to)
{
	auto found = read_superblock(source);
	if (!found)
		return found.error();
	if (!*found || (*found)->size != to.size_bytes || (*found)->block_size != to.block_size)
		return failed(fmt::format("{} holds no replica of {} bytes", from, to.size_bytes));
	return **found;
}

// The same of a snapshot of the replica itself.
Result<lks_superblock> own_source_of(MetadataFile &source, const std::string &from, const ReplicaMetadata &to)
{
	auto sb = source_of(source, from, to);
	auto uuid = uuid_bytes(to.uuid);
	if (sb && (!uuid || !same_replica(*sb, to, *uuid)))
		return failed(fmt::format("{} is no snapshot of the replica of volume {} on this host", from, to.vid));
	return sb;
}

Done copy_content(MetadataFile &source, const lks_superblock &sb, MetadataFile &target, const ReplicaMetadata &to, bool differing, ContentProgress &progress)
{
	lks_layout layout;
	lks_layout_of(to.size_bytes, to.block_size, &layout);
	const uint64_t tag = extent_tag(sb);
	std::vector<bool> written(layout.extents);
	Done table = each_record(source, layout, [&](lks_extent_record &r, uint32_t index) {
		const bool valid = lks_extent_record_valid(&r, index, tag);
		for (uint64_t i = 0; i < LKS_EXTENTS_PER_RECORD; i++)
			if (const uint64_t extent = uint64_t(index) * LKS_EXTENTS_PER_RECORD + i; extent < layout.extents)
				written[extent] = !valid || (r.bits[i / 4] >> (i % 4 * 2) & LKS_EXTENT_WRITTEN);
		return false;
	});
	if (!table)
		return table;
	progress.total_bytes = uint64_t(std::ranges::count(written, true)) * LKS_EXTENT_BYTES;
	RangeCopier copier(source, target, differing, progress);
	for (uint64_t extent = 0; extent < layout.extents; extent++)
		if (written[extent]) {
			const uint64_t at = extent * LKS_EXTENT_BYTES;
			if (Done done = copier.copy(at, std::min<uint64_t>(LKS_EXTENT_BYTES, to.size_bytes - at)); !done)
				return done;
			progress.done_bytes += LKS_EXTENT_BYTES;
		}
	if (Done done = target.flush(); !done)
		return done;
	// The metadata last, their superblocks at the very end: until then this is no replica.
	if (Done done = copier.copy(to.offset + 2 * LKS_META_UNIT, layout.total_bytes - 2 * LKS_META_UNIT); !done)
		return done;
	if (Done done = target.flush(); !done)
		return done;
	if (Done done = copier.copy(to.offset, 2 * LKS_META_UNIT); !done)
		return done;
	return target.flush();
}

}    // namespace

Done copy_replica(const std::string &from, const ReplicaMetadata &to, ContentProgress &progress)
{
	auto source = MetadataFile::open(from, to.offset, O_RDONLY);
	if (!source)
		return source.error();
	auto sb = source_of(*source, from, to);
	if (!sb)
		return sb.error();
	// One that has been copied and adopted is left alone: it may be newer by now.
	auto uuid = uuid_bytes(to.uuid);
	auto target = MetadataFile::open(to.path, to.offset, O_RDWR);
	if (!uuid || !target)
		return uuid ? target.error() : failed(fmt::format("volume {}: '{}' is no UUID", to.vid, to.uuid));
	auto there = read_superblock(*target);
	if (!there)
		return there.error();
	if (*there && same_replica(**there, to, *uuid))
		return Nothing{};
	return copy_content(*source, *sb, *target, to, false, progress);
}

Done is_content_of(const std::string &from, const ReplicaMetadata &to)
{
	auto source = MetadataFile::open(from, to.offset, O_RDONLY);
	if (!source)
		return source.error();
	auto sb = own_source_of(*source, from, to);
	return sb ? Done(Nothing{}) : sb.error();
}

Done revert_replica(const std::string &from, const ReplicaMetadata &to, ContentProgress &progress)
{
	auto source = MetadataFile::open(from, to.offset, O_RDONLY);
	if (!source)
		return source.error();
	auto sb = own_source_of(*source, from, to);
	if (!sb)
		return sb.error();
	auto target = MetadataFile::open(to.path, to.offset, O_RDWR);
	if (!target)
		return target.error();
	auto there = read_superblock(*target);
	if (!there)
		return there.error();
	if (*there && same_replica(**there, to, *uuid_bytes(to.uuid)) && (*there)->version == to.version)
		return Nothing{};    // done before
	if (*there)
		if (Done done = clear_superblocks(*target); !done)
			return done;
	if (Done done = copy_content(*source, *sb, *target, to, true, progress); !done)
		return done;
	return adopt_replica(to);
}

MetadataTools metadata_tools()
{
	return {format_replica, wipe_replica, adopt_replica, copy_replica, revert_replica};
}

}    // namespace lockstep
