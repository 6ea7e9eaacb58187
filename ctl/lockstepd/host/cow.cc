// SPDX-License-Identifier: GPL-2.0-or-later
//
// See cow.h.
#include "lockstepd/host/cow.h"

#include <endian.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include <fmt/format.h>

#include "lockstepd/host/device_mapper.h"
#include "lockstepd/host/diff.h"

namespace lockstep {

namespace {

constexpr uint32_t MAGIC = 0x70416e53, VERSION = 1;    // "SnAp"
constexpr size_t HEADER_READ_BYTES = 4096;             // a sector of any disk
constexpr uint64_t MAX_CHUNK_BYTES = 16 << 20;

struct Header {
	uint32_t magic, valid, version, chunk_sectors;    // little-endian
};

struct Entry {
	uint64_t of_origin, own;    // chunks; little-endian
};

const char *const LOST = "it is lost: its reserve was too small for what was written since";

// The store, while it is read. It is not kept open all the time: LVM could not remove the snapshot.
class CowReader {
public:
	CowReader(const CowStore &store, ChangedBlocks &changed) : store_(store), changed_(changed), began_(Clock::now()) {}
	~CowReader() { close(); }
	CowReader(const CowReader &) = delete;
	CowReader &operator=(const CowReader &) = delete;

	Done header();
	Done areas(uint64_t least_full);
	uint64_t chunk_bytes() const { return chunk_bytes_; }

private:
	using Clock = std::chrono::steady_clock;
	static uint64_t since(Clock::time_point then) { return uint64_t(std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - then).count()); }
	uint64_t per_area() const { return chunk_bytes_ / sizeof(Entry); }
	Error wrong(const std::string &why) const { return failed(fmt::format("cannot tell from {} what has changed: {}", store_.path, why)); }
	Done open();
	void close();
	Done give_way();
	Done read(uint64_t at, size_t bytes);
	Result<bool> area(uint64_t index);
	Done mark(const Entry &entry);

	const CowStore &store_;
	ChangedBlocks &changed_;
	const Clock::time_point began_;
	Clock::time_point opened_;
	int fd_ = -1;
	uint64_t size_ = 0, chunk_bytes_ = 0;
	std::unique_ptr<void, void (*)(void *)> buffer_{nullptr, std::free};
};

Done CowReader::open()
{
	fd_ = ::open(store_.path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
	if (fd_ < 0 && errno == EINVAL)
		fd_ = ::open(store_.path.c_str(), O_RDONLY | O_CLOEXEC);    // a file system that has no O_DIRECT
	if (fd_ < 0)
		return wrong(strerror(errno));
	const off_t end = lseek(fd_, 0, SEEK_END);
	if (end < 0)
		return wrong(strerror(errno));
	size_ = uint64_t(end);
	opened_ = Clock::now();
	return Nothing{};
}

void CowReader::close()
{
	if (fd_ >= 0)
		::close(fd_);
	fd_ = -1;
}

Done CowReader::give_way()
{
	if (since(began_) > COW_TIMEOUT_MS)
		return wrong(fmt::format("so much has that its list was not read within {} s", COW_TIMEOUT_MS / 1000));
	if (since(opened_) < COW_OPEN_MS)
		return Nothing{};
	close();
	std::this_thread::sleep_for(std::chrono::milliseconds(COW_PAUSE_MS));
	return open();
}

// Into the buffer.
Done CowReader::read(uint64_t at, size_t bytes)
{
	const ssize_t n = pread(fd_, buffer_.get(), bytes, off_t(at));
	if (n == ssize_t(bytes))
		return Nothing{};
	return wrong(n < 0 ? strerror(errno) : fmt::format("it ends before byte {}", at + bytes));
}

Done CowReader::header()
{
	if (Done done = open(); !done)
		return done;
	buffer_.reset(std::aligned_alloc(HEADER_READ_BYTES, HEADER_READ_BYTES));
	if (Done done = read(0, HEADER_READ_BYTES); !done)
		return done;
	Header h;
	memcpy(&h, buffer_.get(), sizeof h);
	if (le32toh(h.magic) != MAGIC || le32toh(h.version) != VERSION)
		return wrong("it is no store of a snapshot");
	if (!h.valid)
		return wrong(LOST);
	chunk_bytes_ = uint64_t(le32toh(h.chunk_sectors)) * 512;
	if (!chunk_bytes_ || chunk_bytes_ & (chunk_bytes_ - 1) || chunk_bytes_ > MAX_CHUNK_BYTES)
		return wrong(fmt::format("chunks of {} bytes", chunk_bytes_));
	buffer_.reset(std::aligned_alloc(HEADER_READ_BYTES, std::max(chunk_bytes_, uint64_t(HEADER_READ_BYTES))));
	return Nothing{};
}

Done CowReader::mark(const Entry &entry)
{
	const uint64_t of_origin = le64toh(entry.of_origin), own = le64toh(entry.own);
	// The kernel would take such an entry, and read something else as content: it has not made it.
	if (own >= size_ / chunk_bytes_ || own % (per_area() + 1) == 1 || of_origin >= (store_.origin_bytes + chunk_bytes_ - 1) / chunk_bytes_)
		return wrong(fmt::format("it is damaged, with an entry of chunks {} and {}", of_origin, own));
	changed_.mark(of_origin * chunk_bytes_, (of_origin + 1) * chunk_bytes_);
	return Nothing{};
}

// Whether it is full.
Result<bool> CowReader::area(uint64_t index)
{
	if (Done done = read((1 + index * (per_area() + 1)) * chunk_bytes_, chunk_bytes_); !done)
		return done.error();
	for (uint64_t i = 0; i < per_area(); i++) {
		Entry entry;
		memcpy(&entry, static_cast<const char *>(buffer_.get()) + i * sizeof entry, sizeof entry);
		if (!entry.own)
			return false;
		if (Done done = mark(entry); !done)
			return done.error();
	}
	return true;
}

Done CowReader::areas(uint64_t least_full)
{
	for (uint64_t index = 0;; index++) {
		if (Done done = give_way(); !done)
			return done;
		auto full = area(index);
		if (!full)
			return full.error();
		if (*full)
			continue;
		if (index < least_full)
			return wrong(fmt::format("its list ends in area {}, the kernel has filled {}", index, least_full));
		return Nothing{};
	}
}

Result<DmTarget> status_of(const CowStore &store)
{
	auto status = dm_status(dm_kernel(), store.snapshot);
	if (status && status->type != "snapshot")
		return failed(fmt::format("{} is no snapshot", store.snapshot));
	return status;
}

}    // namespace

std::optional<uint64_t> full_areas(std::string_view status, uint64_t chunk_bytes)
{
	// "used/size metadata", in sectors; what is used for metadata are the header, the full areas and the one that is not.
	uint64_t numbers[3];
	const char *at = status.data(), *const end = at + status.size();
	for (size_t i = 0; i < 3; i++) {
		auto [behind, error] = std::from_chars(at, end, numbers[i]);
		if (error != std::errc() || (i < 2 ? behind == end || *behind != "/ "[i] : behind != end))
			return std::nullopt;
		at = behind + 1;
	}
	const uint64_t chunks = numbers[2] * 512 / chunk_bytes;
	return chunks < 2 ? std::optional<uint64_t>() : chunks - 2;
}

Done mark_own_chunks(const CowStore &store, ChangedBlocks &changed)
{
	CowReader reader(store, changed);
	if (store.snapshot.empty()) {
		Done done = reader.header();
		return done ? reader.areas(0) : done;
	}
	auto before = status_of(store);
	if (!before)
		return before.error();
	if (Done done = reader.header(); !done)
		return done;
	const auto full = full_areas(before->text, reader.chunk_bytes());
	if (!full)
		return failed(fmt::format("snapshot {}: {}", store.snapshot, before->text == "Invalid" ? LOST : "the kernel says " + before->text));
	if (Done done = reader.areas(*full); !done)
		return done;
	// What does not fit any more is in no list: the kernel says so here before it lets it through to the origin. And another one may have its name.
	auto after = status_of(store);
	if (!after)
		return after.error();
	if (after->uuid != before->uuid)
		return failed(fmt::format("snapshot {} was replaced meanwhile: repeat the command", store.snapshot));
	if (!full_areas(after->text, reader.chunk_bytes()))
		return failed(fmt::format("snapshot {}: {}", store.snapshot, LOST));
	return Nothing{};
}

}    // namespace lockstep
