// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/metadata_check.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <ranges>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "core/disk.h"
#include "lockstepd/host/metadata.h"

namespace lockstep {

namespace {

constexpr uint64_t CHUNK_BYTES = 1 << 20;
constexpr uint64_t SLACK_BYTES = 16 << 20;    // LVM extents that the metadata do not fill

class Reader {
public:
	explicit Reader(const std::string &path) : path_(path), buffer_(std::aligned_alloc(LKS_META_UNIT, CHUNK_BYTES))
	{
		fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);    // see metadata.cc
		if (fd_ < 0 && errno == EINVAL)
			fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
		if (fd_ < 0)
			error_ = fmt::format("cannot open {}: {}", path, strerror(errno));
		else
			end_ = uint64_t(std::max<off_t>(lseek(fd_, 0, SEEK_END), 0)) / LKS_META_UNIT * LKS_META_UNIT;
	}
	~Reader()
	{
		if (fd_ >= 0)
			close(fd_);
		std::free(buffer_);
	}
	Reader(const Reader &) = delete;
	Reader &operator=(const Reader &) = delete;

	const std::string &error() const { return error_; }
	uint64_t end() const { return end_; }    // bytes, a multiple of LKS_META_UNIT

	// bytes: at most CHUNK_BYTES; nullptr with error().
	const char *read(uint64_t at, uint64_t bytes)
	{
		const ssize_t n = pread(fd_, buffer_, bytes, off_t(at));
		if (n == ssize_t(bytes))
			return static_cast<const char *>(buffer_);
		error_ = fmt::format("cannot read {} at byte {}: {}", path_, at, n < 0 ? strerror(errno) : "it ends there");
		return nullptr;
	}

	std::optional<lks_superblock> superblock(uint64_t at)
	{
		lks_superblock sb;
		if (at + LKS_META_UNIT > end_)
			return std::nullopt;
		const char *unit = read(at, LKS_META_UNIT);
		if (!unit)
			return std::nullopt;
		memcpy(&sb, unit, sizeof(sb));
		return lks_superblock_verify(&sb) == 0 ? std::optional(sb) : std::nullopt;
	}

private:
	std::string path_, error_;
	int fd_ = -1;
	uint64_t end_ = 0;
	void *buffer_;
};

bool plausible(const lks_superblock &sb)
{
	return sb.size && sb.size <= LKS_SIZE_MAX && sb.block_size >= LKS_BLOCK_MIN && sb.block_size <= LKS_BLOCK_MAX &&
	       !(sb.block_size & (sb.block_size - 1));
}

// The valid superblock at `at` may be copy A or copy B: the table follows on B.
uint64_t start_of(Reader &reader, const lks_superblock &sb, uint64_t at)
{
	if (at < LKS_META_UNIT)
		return at;
	if (auto before = reader.superblock(at - LKS_META_UNIT); before && !memcmp(before->uuid, sb.uuid, 16) && before->host == sb.host)
		return at - LKS_META_UNIT;
	if (at + 2 * LKS_META_UNIT > reader.end())
		return at;
	const char *next = reader.read(at + LKS_META_UNIT, LKS_META_UNIT);
	const auto *records = reinterpret_cast<const lks_extent_record *>(next);
	for (uint32_t i = 0; next && i < LKS_RECORDS_PER_UNIT; i++)
		if (lks_extent_record_valid(&records[i], i, extent_tag(sb)))
			return at - LKS_META_UNIT;
	return at;
}

}    // namespace

Result<uint64_t> find_metadata(const std::string &path)
{
	Reader reader(path);
	if (!reader.error().empty())
		return failed(reader.error());
	lks_layout largest;    // for the smallest blocks
	lks_layout_of(reader.end(), LKS_BLOCK_MIN, &largest);
	const uint64_t depth = std::min(reader.end(), largest.total_bytes + SLACK_BYTES), first = reader.end() - depth;
	std::vector<std::pair<uint64_t, lks_superblock>> hits;    // from the end
	for (uint64_t to = reader.end(); to > first;) {
		const uint64_t from = std::max(first, to > CHUNK_BYTES ? to - CHUNK_BYTES : 0);
		const char *chunk = reader.read(from, to - from);
		if (!chunk)
			return failed(reader.error());
		for (uint64_t at = to; at > from;) {
			at -= LKS_META_UNIT;
			lks_superblock sb;
			memcpy(&sb, chunk + (at - from), sizeof(sb));
			if (lks_superblock_verify(&sb) == 0 && plausible(sb) && at >= sb.size)
				hits.push_back({at, sb});
		}
		to = from;
	}
	// The dirty maps of a replica may hold what an earlier one left there: whatever lies inside another's metadata is none.
	std::optional<uint64_t> best;
	uint64_t covered = 0;
	for (const auto &[at, sb] : std::ranges::reverse_view(hits)) {
		const uint64_t start = start_of(reader, sb, at);
		if (!reader.error().empty())
			return failed(reader.error());
		if (best && start < covered)
			continue;
		best = start;
		covered = replica_lv_bytes(start, sb.size, sb.block_size);
	}
	if (best)
		return *best;
	return failed(fmt::format("no metadata of a replica in the last {} bytes of {}: name their place with --offset (\"md_offset\" in `lockstep status "
				  "--json`)", depth, path));
}

Result<nlohmann::json> check_metadata(const std::string &path, uint64_t offset)
{
	auto dump = dump_replica(path, offset);
	if (!dump)
		return dump.error();
	Reader reader(path);
	if (!reader.error().empty())
		return failed(reader.error());
	nlohmann::json j = *dump, problems = nlohmann::json::array(), notes = nlohmann::json::array(), copies = nlohmann::json::array();
	j["path"] = path;
	j["offset"] = offset;
	std::optional<lks_superblock> copy[2], counts;
	for (int i = 0; i < 2; i++) {
		copy[i] = reader.superblock(offset + uint64_t(i) * LKS_META_UNIT);
		if (copy[i] && (!counts || copy[i]->sequence > counts->sequence))
			counts = copy[i];
		copies.push_back({{"copy", i ? "B" : "A"}, {"valid", copy[i].has_value()}, {"sequence", copy[i] ? nlohmann::json(uint64_t(copy[i]->sequence)) : nullptr}});
	}
	if (!counts)
		return failed(reader.error().empty() ? fmt::format("the superblock of {} has just been changed: try again", path) : reader.error());
	const lks_superblock &sb = *counts;
	j["copies"] = copies;
	j["incarnation"] = uint64_t(sb.incarnation);
	// A replica never written has only copy A.
	for (int i = 0; i < 2; i++)
		if (!copy[i] && sb.sequence > 1)
			notes.push_back(fmt::format("copy {} of the superblock is damaged, as after a loss of power; the other one counts", i ? "B" : "A"));
	if (copy[0] && copy[1] && (memcmp(copy[0]->uuid, copy[1]->uuid, 16) || copy[0]->host != copy[1]->host))
		problems.push_back("the two copies of the superblock are of different volumes or hosts");
	if (copy[0] && copy[1] && copy[0]->sequence == copy[1]->sequence)
		problems.push_back("the two copies of the superblock have the same number");
	if (!plausible(sb) || sb.size % 4096 || sb.size > offset)
		problems.push_back(fmt::format("a volume of {} bytes in blocks of {} cannot have its metadata at byte {}", uint64_t(sb.size), uint32_t(sb.block_size), offset));
	if (const uint64_t end = replica_lv_bytes(offset, sb.size, sb.block_size); end > reader.end())
		problems.push_back(fmt::format("the metadata end at byte {}, {} at byte {}", end, path, reader.end()));
	if (!sb.host || sb.host > LKS_MAX_HOSTS)
		problems.push_back(fmt::format("{} is no host id", sb.host));
	std::set<unsigned> hosts;
	for (const lks_disk_slot &slot : sb.slots) {
		if (slot.host && (slot.host == sb.host || slot.host > LKS_MAX_HOSTS || !hosts.insert(slot.host).second))
			problems.push_back(fmt::format("a dirty map for host {} makes no sense", slot.host));
		if (slot.host && slot.since > sb.version)
			problems.push_back(fmt::format("the dirty map for host {} is since version {}, the replica knows {}", slot.host, uint64_t(slot.since),
						       uint64_t(sb.version)));
	}
	if (const uint64_t damaged = j["damaged_records"]; damaged)
		notes.push_back(fmt::format("{} records of the extent table are damaged: their extents count as hot and written", damaged));
	if (sb.clean && j["hot_extents"] != 0)
		notes.push_back("it says that it was detached clean, but has hot extents: these count");
	if (const uint64_t hot = j["hot_extents"]; hot)
		notes.push_back(fmt::format("{} extents are hot: in use now, or not detached clean; then they are resynced", hot));
	j["problems"] = problems;
	j["notes"] = notes;
	return j;
}

}    // namespace lockstep
