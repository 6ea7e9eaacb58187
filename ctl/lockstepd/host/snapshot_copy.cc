// SPDX-License-Identifier: GPL-2.0-or-later
//
// See snapshot_copy.h.
#include "lockstepd/host/snapshot_copy.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <fmt/format.h>

#include "lockstepd/host/diff.h"

namespace lockstep {

using Json = nlohmann::json;

namespace {

constexpr uint64_t BLOCKS_PER_EXTENT = LKS_EXTENT_BYTES / COPY_BLOCK_BYTES;
static_assert(COPY_BLOCK_BYTES == DIFF_BLOCK_BYTES && LKS_EXTENT_BYTES % COPY_BLOCK_BYTES == 0);

constexpr size_t PIECE_BYTES = 4096;    // of a classic snapshot: LVM's unit, in which its reserve is spent
static_assert(COPY_BLOCK_BYTES % PIECE_BYTES == 0);

using Bits = std::vector<bool>;
using Sum = std::array<uint8_t, SHA256_DIGEST_LENGTH>;

Sum sum_of(const void *data, size_t bytes)
{
	Sum sum;
	SHA256(static_cast<const uint8_t *>(data), bytes, sum.data());
	return sum;
}

// The data of an LV, block by block, as the volume would read it: an extent that was never written is zeros.
class BlockFile {
public:
	static Result<BlockFile> open(const std::string &path, uint64_t size_bytes, int mode)
	{
		int fd = ::open(path.c_str(), mode | O_CLOEXEC | O_DIRECT);
		if (fd < 0 && errno == EINVAL)
			fd = ::open(path.c_str(), mode | O_CLOEXEC);    // a file system that has no O_DIRECT
		if (fd < 0)
			return failed(fmt::format("cannot open {}: {}", path, strerror(errno)));
		return BlockFile(path, size_bytes, fd);
	}
	BlockFile(BlockFile &&other) noexcept : path_(std::move(other.path_)), size_(other.size_), fd_(other.fd_), buffer_(std::move(other.buffer_)) { other.fd_ = -1; }
	~BlockFile()
	{
		if (fd_ >= 0)
			close(fd_);
	}

	uint64_t blocks() const { return (size_ + COPY_BLOCK_BYTES - 1) / COPY_BLOCK_BYTES; }
	size_t bytes_of(uint64_t block) const { return std::min<uint64_t>(COPY_BLOCK_BYTES, size_ - block * COPY_BLOCK_BYTES); }
	uint8_t *buffer() { return static_cast<uint8_t *>(buffer_.get()); }
	// Into buffer().
	Done read(uint64_t block, bool written)
	{
		if (!written) {
			memset(buffer(), 0, bytes_of(block));
			return Nothing{};
		}
		return whole(pread(fd_, buffer(), bytes_of(block), off_t(block * COPY_BLOCK_BYTES)), "read", block);
	}
	Done write(uint64_t block) { return whole(pwrite(fd_, buffer(), bytes_of(block), off_t(block * COPY_BLOCK_BYTES)), "write", block); }
	// Only the pieces that are not there yet.
	Done write_differing(uint64_t block, const uint8_t *data)
	{
		if (Done done = read(block, true); !done)
			return done;
		for (size_t at = 0, bytes = bytes_of(block); at < bytes; at += PIECE_BYTES) {
			const size_t piece = std::min(PIECE_BYTES, bytes - at);
			if (memcmp(buffer() + at, data + at, piece) == 0)
				continue;
			memcpy(buffer() + at, data + at, piece);
			const ssize_t n = pwrite(fd_, buffer() + at, piece, off_t(block * COPY_BLOCK_BYTES + at));
			if (n != ssize_t(piece))
				return failed(fmt::format("cannot write {} bytes of {} at byte {}: {}", piece, path_, block * COPY_BLOCK_BYTES + at,
							  n < 0 ? strerror(errno) : "the device ends there"));
		}
		return Nothing{};
	}
	Done flush()
	{
		if (fsync(fd_) < 0)
			return failed(fmt::format("cannot flush {}: {}", path_, strerror(errno)));
		return Nothing{};
	}

private:
	BlockFile(std::string path, uint64_t size, int fd)
		: path_(std::move(path)), size_(size), fd_(fd), buffer_(std::aligned_alloc(LKS_META_UNIT, COPY_BLOCK_BYTES), std::free)
	{
	}
	Done whole(ssize_t n, const char *verb, uint64_t block)
	{
		if (n == ssize_t(bytes_of(block)))
			return Nothing{};
		return failed(fmt::format("cannot {} {} bytes of {} at byte {}: {}", verb, bytes_of(block), path_, block * COPY_BLOCK_BYTES,
					  n < 0 ? strerror(errno) : "the device ends there"));
	}

	std::string path_;
	uint64_t size_;
	int fd_;
	std::unique_ptr<void, void (*)(void *)> buffer_;
};

std::vector<uint8_t> packed(const Bits &bits)
{
	std::vector<uint8_t> bytes((bits.size() + 7) / 8);
	for (size_t i = 0; i < bits.size(); i++)
		bytes[i / 8] |= uint8_t(bits[i] << (i % 8));
	return bytes;
}

Result<std::vector<uint8_t>> bytes_in(const Json &answer, const char *field, size_t bytes)
{
	if (!answer.is_object() || !answer.contains(field) || !answer[field].is_binary() || answer[field].get_binary().size() != bytes)
		return failed(fmt::format("the host that has the snapshot gave an answer that is not understood (\"{}\")", field));
	return std::vector<uint8_t>(answer[field].get_binary());
}

// ---- making a copy ----

// One copy while it is made.
struct Copying {
	const Lvm &lvm;
	const AskHost &ask;
	const CopyTask &task;
	CopyProgress &progress;
	Bits written;                   // of the copy, as it is now
	std::vector<uint64_t> blocks;   // that may differ

	uint64_t size() const { return task.metadata.size_bytes; }
	Result<uint64_t> begin();
	Done find_blocks();
	Done copy(BlockFile &file, size_t first, size_t count);
	Done store(BlockFile &file, const Json &answer, size_t first, size_t count);
	Done zero_extent(BlockFile &file, uint64_t extent);
};

// The LV, and what of it was written; it is nobody's replica now. Not 0: it is whole already.
Result<uint64_t> Copying::begin()
{
	const OrphanLv base = task.base ? task.base->lv : OrphanLv{};
	auto whole = lvm.begin_copy(task.lv, base, task.thin_pool, replica_lv_bytes(task.metadata.offset, size(), task.metadata.block_size));
	if (!whole || *whole)
		return whole;
	written.assign((size() + LKS_EXTENT_BYTES - 1) / LKS_EXTENT_BYTES, false);
	if (!task.base)
		return 0;
	auto there = written_extents(task.path, task.base->md_offset);
	if (!there)
		return there.error();
	for (size_t i = 0; i < written.size() && i < there->size(); i++)
		written[i] = (*there)[i];
	if (Done done = wipe_replica(task.path, task.base->md_offset); !done)
		return done.error();
	return 0;
}

Done Copying::find_blocks()
{
	Json body = {{"sid", task.lv.sid}, {"base", task.source_has_base && task.base ? task.base->sid : 0}};
	auto map = ask(task.source, "snapshot.map", std::move(body), COPY_MAP_TIMEOUT_MS, progress.stop);
	if (!map)
		return map.error();
	const uint64_t all = (size() + COPY_BLOCK_BYTES - 1) / COPY_BLOCK_BYTES;
	const bool named = map->is_object() && map->contains("changed");
	auto bits = bytes_in(*map, named ? "changed" : "written", ((named ? all : written.size()) + 7) / 8);
	if (!bits)
		return bits.error();
	for (uint64_t b = 0; b < all; b++) {
		const uint64_t extent = b / BLOCKS_PER_EXTENT;
		if (named ? (*bits)[b / 8] & 0x80 >> b % 8 : written[extent] || (*bits)[extent / 8] & 1 << extent % 8)
			blocks.push_back(b);
	}
	progress.total_blocks = blocks.size();
	return Nothing{};
}

// What a thick LV held before it was ours shows where an extent counts as written. A thin one has zeros there.
Done Copying::zero_extent(BlockFile &file, uint64_t extent)
{
	for (uint64_t b = extent * BLOCKS_PER_EXTENT; task.thin_pool.empty() && b < std::min((extent + 1) * BLOCKS_PER_EXTENT, file.blocks()); b++) {
		memset(file.buffer(), 0, COPY_BLOCK_BYTES);
		if (Done done = file.write(b); !done)
			return done;
	}
	written[extent] = true;
	return Nothing{};
}

Done Copying::store(BlockFile &file, const Json &answer, size_t first, size_t count)
{
	const Error malformed = failed("the host that has the snapshot gave an answer that is not understood (\"which\")");
	if (!answer.is_object() || !answer.contains("which") || !answer["which"].is_array())
		return malformed;
	uint64_t bytes = 0;
	std::vector<uint64_t> which;
	for (const Json &n : answer["which"]) {
		const auto end = blocks.begin() + ptrdiff_t(first + count);
		if (!n.is_number_unsigned() || std::find(blocks.begin() + ptrdiff_t(first), end, n.get<uint64_t>()) == end)
			return malformed;
		which.push_back(n.get<uint64_t>());
		bytes += file.bytes_of(which.back());
	}
	auto data = bytes_in(answer, "data", bytes);
	if (!data)
		return data.error();
	const uint8_t *from = data->data();
	for (uint64_t b : which) {
		if (!written[b / BLOCKS_PER_EXTENT])
			if (Done done = zero_extent(file, b / BLOCKS_PER_EXTENT); !done)
				return done;
		// In a thick pool each piece costs as much of its reserve, which is no larger than where it was taken.
		if (task.thin_pool.empty()) {
			if (Done done = file.write_differing(b, from); !done)
				return done;
		} else {
			memcpy(file.buffer(), from, file.bytes_of(b));
			if (Done done = file.write(b); !done)
				return done;
		}
		from += file.bytes_of(b);
	}
	progress.sent_blocks += which.size();
	return Nothing{};
}

Done Copying::copy(BlockFile &file, size_t first, size_t count)
{
	Json numbers = Json::array();
	std::vector<uint8_t> sums;
	for (size_t i = first; i < first + count; i++) {
		if (Done done = file.read(blocks[i], written[blocks[i] / BLOCKS_PER_EXTENT]); !done)
			return done;
		const Sum sum = sum_of(file.buffer(), file.bytes_of(blocks[i]));
		sums.insert(sums.end(), sum.begin(), sum.end());
		numbers.push_back(blocks[i]);
	}
	auto answer = ask(task.source, "snapshot.blocks", {{"sid", task.lv.sid}, {"blocks", numbers}, {"sums", Json::binary(sums)}}, COPY_ASK_TIMEOUT_MS,
			  progress.stop);
	if (!answer)
		return answer.error();
	return store(file, *answer, first, count);
}

}    // namespace

Result<uint64_t> copy_snapshot(const Lvm &lvm, const AskHost &ask, const CopyTask &task, CopyProgress &progress)
{
	Copying c{lvm, ask, task, progress, {}, {}};
	if (auto whole = c.begin(); !whole || *whole)
		return whole;
	if (Done done = c.find_blocks(); !done)
		return done.error();
	{
		auto file = BlockFile::open(task.path, c.size(), O_RDWR);
		if (!file)
			return file.error();
		for (size_t at = 0; at < c.blocks.size(); at += COPY_BATCH) {
			if (progress.stop)
				return failed("called off");
			const size_t count = std::min<size_t>(COPY_BATCH, c.blocks.size() - at);
			if (Done done = c.copy(*file, at, count); !done)
				return done.error();
			progress.done_blocks = at + count;
		}
		if (Done done = file->flush(); !done)
			return done.error();
	}
	if (Done done = stamp_replica(task.metadata, c.written); !done)
		return done.error();
	(void)ask(task.source, "snapshot.end", {{"sid", task.lv.sid}}, COPY_ASK_TIMEOUT_MS, progress.stop);    // else its LV stays active
	if (Done done = lvm.end_copy(task.lv, task.metadata.offset); !done)
		return done.error();
	return task.metadata.offset;
}

// ---- what a host is to do ----

namespace {

bool whole_beside(const State &state, HostId host, const Snapshot &x, const Snapshot &s)
{
	const SnapshotCopy *a = x.copy(host), *b = s.copy(host);
	const Pool *pool = a && b && a->pool == b->pool ? state.pool(a->pool, host) : nullptr;
	return pool && pool->kind == PoolKind::thin && x.phase == SnapshotPhase::ready;
}

CopyBase base_of(const Snapshot &x, const SnapshotCopy &copy, const Pool &pool)
{
	const SnapshotLv lv{pool.vg, true, x.vid, x.sid, x.attempt, x.uuid, 0};
	return {{pool.vg, snapshot_lv_name(lv), snapshot_lv_tag(x.uuid)}, copy.md_offset, x.size_bytes, x.sid};
}

// The snapshot nearest to it that is here as a whole: a newer one first. Only of its own size: what a larger one holds behind its end would
// show in a thin volume that is made from the copy and grows.
std::optional<CopyBase> nearest(const State &state, HostId self, const Snapshot &s, const Pool &pool)
{
	const Snapshot *best = nullptr;
	for (const auto &[sid, x] : state.snapshots) {
		const SnapshotCopy *copy = x.copy(self);
		if (sid == s.sid || x.vid != s.vid || x.phase != SnapshotPhase::ready || !copy || copy->pool != pool.name || x.size_bytes != s.size_bytes ||
		    x.block_size != s.block_size)
			continue;
		const bool newer = sid > s.sid, best_newer = best && best->sid > s.sid;
		if (!best || (newer && !best_newer) || (!newer && !best_newer && sid > best->sid))
			best = &x;
	}
	if (!best)
		return std::nullopt;
	return base_of(*best, *best->copy(self), pool);
}

std::optional<CopyBase> replica_base(const State &state, HostId self, const Snapshot &s, const Pool &pool)
{
	const Volume *v = state.volume(s.vid);
	const Replica *r = v && v->phase == Phase::ready && !v->grow_bytes ? v->replica(self) : nullptr;
	if (!r || !r->created || r->next_offset || r->wipe || r->pool != pool.name || v->size_bytes < s.size_bytes ||
	    (pool.kind == PoolKind::thin && v->size_bytes != s.size_bytes))
		return std::nullopt;
	return CopyBase{{pool.vg, replica_lv_name(v->vid), replica_lv_tag(v->uuid)}, r->md_offset, v->size_bytes, 0};
}

}    // namespace

Result<CopyTask> copy_task(const State &state, HostId self, const Snapshot &s, const SnapshotCopy &copy, unsigned tries)
{
	const std::string what = fmt::format("snapshot {} of volume {}", s.name, s.volume);
	const Pool *pool = state.pool(copy.pool, self);
	if (!pool)
		return not_found(fmt::format("{}: host {} has no pool {}", what, state.host_name(self), copy.pool));
	CopyTask t;
	const bool thin = pool->kind == PoolKind::thin;
	t.lv = {pool->vg, thin, s.vid, s.sid, s.attempt, s.uuid, s.reserve_bytes};
	t.path = snapshot_lv_path(t.lv);
	t.thin_pool = pool->thin_lv;
	t.metadata = {t.path, copy.md_offset, s.vid, s.volume_uuid, s.size_bytes, s.block_size, self, 1, 1};
	if (thin)
		t.base = nearest(state, self, s, *pool);
	if (!t.base)
		t.base = replica_base(state, self, s, *pool);
	if (!t.base && !thin)
		return failed(fmt::format("{}: host {} has no replica in its thick pool that a copy could be made from", what, state.host_name(self)));
	if (t.base && t.base->size_bytes == s.size_bytes)
		t.metadata.offset = t.base->md_offset;    // what lies behind the data is as it is in the base
	// Those that can say how it differs from the base come first.
	const Snapshot *base = t.base && t.base->sid ? state.snapshot(t.base->sid) : nullptr;
	std::vector<HostId> sources;
	size_t knowing = 0;
	for (const SnapshotCopy &c : s.copies) {
		if (c.host == self || !state.online(c.host))
			continue;
		const bool knows = base && whole_beside(state, c.host, *base, s);
		sources.insert(knows ? sources.begin() : sources.end(), c.host);
		knowing += knows;
	}
	if (sources.empty())
		return failed(fmt::format("{}: no host that has a whole copy is online", what));
	t.source = sources[tries % sources.size()];
	t.source_has_base = tries % sources.size() < knowing;
	return t;
}

// ---- the other side ----

Result<Json> source_map(const CopySource &source)
{
	auto written = written_extents(source.path, source.md_offset);
	if (!written)
		return written.error();
	written->resize((source.size_bytes + LKS_EXTENT_BYTES - 1) / LKS_EXTENT_BYTES);
	return Json{{"written", Json::binary(packed(*written))}};
}

Result<Json> source_blocks(const CopySource &source, const Json &body)
{
	const auto blocks = body.at("blocks").get<std::vector<uint64_t>>();
	const auto &sums = body.at("sums").get_binary();
	auto file = BlockFile::open(source.path, source.size_bytes, O_RDONLY);
	if (!file)
		return file.error();
	if (blocks.empty() || blocks.size() > COPY_BATCH || sums.size() != blocks.size() * sizeof(Sum) || !std::is_sorted(blocks.begin(), blocks.end()) ||
	    blocks.back() >= file->blocks())
		return usage_error("malformed request");
	const uint64_t first = blocks.front() / BLOCKS_PER_EXTENT, end = blocks.back() / BLOCKS_PER_EXTENT + 1;
	auto written = written_extents(source.path, source.md_offset, first, end);
	if (!written)
		return written.error();
	Json which = Json::array();
	std::vector<uint8_t> data;
	for (size_t i = 0; i < blocks.size(); i++) {
		if (Done done = file->read(blocks[i], (*written)[blocks[i] / BLOCKS_PER_EXTENT - first]); !done)
			return done.error();
		const size_t bytes = file->bytes_of(blocks[i]);
		const Sum sum = sum_of(file->buffer(), bytes);
		if (!memcmp(sum.data(), sums.data() + i * sizeof(Sum), sizeof(Sum)))
			continue;
		which.push_back(blocks[i]);
		data.insert(data.end(), file->buffer(), file->buffer() + bytes);
	}
	return Json{{"which", which}, {"data", Json::binary(std::move(data))}};
}

}    // namespace lockstep
