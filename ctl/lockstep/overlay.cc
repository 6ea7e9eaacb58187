// SPDX-License-Identifier: GPL-2.0-or-later
//
// lockstep volume overlay: what has been written to one volume since its trail began is written to another one, sector by sector, as
// the last step of a storage migration that comes in: the source of the migration mirrors its writes into the one while the other
// gets a copy of all that was there before.
//
// Sectors that were discarded count as written: they are copied as the zeros that they read as. Nothing is written before the whole
// trail is known to be there, and all of it may be done again: the one volume is only read.
//
// --all: the whole volume instead, for thick pools, in which a volume cannot get another one's content without copying. Where both read as
// zeros nothing is written, so what was never written to either costs next to nothing.
//
// The data go through the devices of this host. A file in the place of a device is for tests.
#include "lockstep/cli.h"

#include "lib/units.h"
#include "uapi/lockstep.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include <fmt/format.h>

namespace lockstep::cli {

namespace {

constexpr unsigned THREADS = 16;
constexpr size_t WINDOW_BYTES = 1 << 20;    // that is read at once
constexpr size_t GAP_SECTORS = 128;         // a longer gap ends what is read at once
constexpr size_t ALIGNMENT = 4096;

struct Extent {
	uint64_t at = 0;
	std::string bitmap;
	bool has(size_t sector) const { return static_cast<unsigned char>(bitmap[sector / 8]) >> sector % 8 & 1; }
	size_t sectors() const { return bitmap.size() * 8; }
};

struct Device {
	int fd = -1;
	uint64_t size_bytes = 0;
	std::string path;
	Device() = default;
	Device(const Device &) = delete;
	Device &operator=(const Device &) = delete;
	~Device() { if (fd >= 0) close(fd); }

	Done open_it(const json &volume, bool write)
	{
		path = volume["device"];
		struct stat st;
		const bool device = stat(path.c_str(), &st) == 0 && S_ISBLK(st.st_mode);
		// Past the page cache, which may hold what was there before another host wrote; and for the only writer.
		fd = ::open(path.c_str(), (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | (device ? O_DIRECT | (write ? O_EXCL : 0) : 0));
		const off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
		if (end < 0)
			return failed(fmt::format("{} cannot be opened: {}", path, strerror(errno)));
		size_bytes = uint64_t(end);
		if (size_bytes != volume["size_bytes"].get<uint64_t>())
			return failed(fmt::format("{} has {} bytes, its volume has {}", path, size_bytes, volume["size_bytes"].get<uint64_t>()));
		return Nothing{};
	}
};

Done whole(const std::string &path, bool write, ssize_t n, size_t bytes)
{
	if (n == ssize_t(bytes))
		return Nothing{};
	return failed(fmt::format("{} cannot be {}: {}", path, write ? "written" : "read", n < 0 ? strerror(errno) : "it ends too early"));
}

bool all_zero(const char *data, size_t bytes) { return data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0; }

struct Copier {
	const Device &from, &to;
	const bool all;
	std::atomic<uint64_t> copied{0};

	// Sectors first .. end of the extent: both are written ones, and between them there may be some that are not.
	Done window(const Extent &e, size_t first, size_t end, char *buffer)
	{
		const size_t bytes = (end - first) * LKS_SECTOR;
		const uint64_t at = e.at + first * LKS_SECTOR;
		if (Done read = whole(from.path, false, pread(from.fd, buffer, bytes, off_t(at)), bytes); !read)
			return read;
		if (all && all_zero(buffer, bytes)) {
			if (Done read = whole(to.path, false, pread(to.fd, buffer, bytes, off_t(at)), bytes); !read)
				return read;
			if (all_zero(buffer, bytes))
				return Nothing{};
			memset(buffer, 0, bytes);
		}
		for (size_t i = first; i < end;) {
			size_t run = i;
			while (run < end && e.has(run) == e.has(i))
				run++;
			const size_t length = (run - i) * LKS_SECTOR;
			if (e.has(i)) {
				const ssize_t n = pwrite(to.fd, buffer + (i - first) * LKS_SECTOR, length, off_t(e.at + i * LKS_SECTOR));
				if (Done written = whole(to.path, true, n, length); !written)
					return written;
				copied += length;
			}
			i = run;
		}
		return Nothing{};
	}

	Done extent(const Extent &e, char *buffer)
	{
		const size_t most = WINDOW_BYTES / LKS_SECTOR;
		for (size_t first = 0; first < e.sectors(); first++) {
			if (!e.has(first))
				continue;
			size_t end = first + 1;
			for (size_t i = end; i < e.sectors() && i - end < GAP_SECTORS && i - first < most; i++)
				if (e.has(i))
					end = i + 1;
			if (Done done = window(e, first, end, buffer); !done)
				return done;
			first = end - 1;
		}
		return Nothing{};
	}
};

using ExtentOf = std::function<Extent(size_t)>;

Done copy(const Device &from, const Device &to, bool all, size_t extents, const ExtentOf &extent_of, uint64_t &copied)
{
	Copier copier{from, to, all};
	std::atomic<size_t> next{0};
	std::mutex lock;
	Done result = Nothing{};
	auto work = [&] {
		std::unique_ptr<char, decltype(&free)> buffer(static_cast<char *>(aligned_alloc(ALIGNMENT, WINDOW_BYTES)), free);
		for (size_t i; (i = next++) < extents;) {
			Done done = buffer ? copier.extent(extent_of(i), buffer.get()) : failed("out of memory");
			if (done)
				continue;
			std::lock_guard hold(lock);
			result = done;
			next = extents;
		}
	};
	std::vector<std::thread> threads;
	for (unsigned i = 0; i < std::min<size_t>(THREADS, extents); i++)
		threads.emplace_back(work);
	for (std::thread &t : threads)
		t.join();
	if (result && fdatasync(to.fd))
		return failed(fmt::format("{} cannot be flushed: {}", to.path, strerror(errno)));
	copied = copier.copied;
	return result;
}

Result<std::string> bytes_of(const std::string &hex)
{
	std::string bytes;
	auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
	for (size_t i = 0; i + 1 < hex.size() && digit(hex[i]) >= 0 && digit(hex[i + 1]) >= 0; i += 2)
		bytes += char(digit(hex[i]) << 4 | digit(hex[i + 1]));
	if (bytes.size() != LKS_TRAIL_BITMAP || hex.size() != 2 * bytes.size())
		return failed("the daemon answered with a trail that is none");
	return bytes;
}

Result<std::vector<Extent>> trail_of(Context &context, const std::string &volume, const std::string &host, const std::string &trail, uint64_t size_bytes)
{
	std::vector<Extent> extents;
	for (json at = 0; !at.is_null();) {
		Result<json> answer = context.client().get(fmt::format("/v1/volumes/{}/trail?host={}&trail={}&at={}", url_encode(volume),
									       url_encode(host), url_encode(trail), at.get<uint64_t>()));
		if (!answer)
			return answer.error();
		for (const json &e : (*answer)["extents"]) {
			Result<std::string> bitmap = bytes_of(e["bitmap"]);
			if (!bitmap)
				return bitmap.error();
			extents.push_back({e["at"], *bitmap});
			const Extent &x = extents.back();
			for (size_t i = x.sectors(); i-- > 0 && x.at + (i + 1) * LKS_SECTOR > size_bytes;)
				if (x.has(i))
					return failed("the trail of volume " + volume + " names sectors behind its end");
		}
		at = (*answer)["next"];
	}
	return extents;
}

Result<json> volume_of(Context &context, const std::string &name)
{
	return context.client().get("/v1/volumes/" + url_encode(name));
}

Done laid(Context &context, const std::string &from, const std::string &to, const std::string &host, const std::string &trail, uint64_t copied)
{
	return told(context, {{"from", from}, {"to", to}, {"copied_bytes", copied}},
		    fmt::format("{} written to volume {} since trail {} of host {} began are on volume {}\n", format_bytes(copied), from, trail, host, to));
}

// All that lies within the volume.
Extent whole_extent(size_t number, uint64_t size_bytes)
{
	constexpr uint64_t EXTENT = uint64_t(LKS_TRAIL_BITMAP) * 8 * LKS_SECTOR;
	Extent e{number * EXTENT, std::string(LKS_TRAIL_BITMAP, char(0xff))};
	for (size_t i = std::min(EXTENT, size_bytes - e.at) / LKS_SECTOR; i < e.sectors(); i++)
		e.bitmap[i / 8] = char(e.bitmap[i / 8] & ~(1 << i % 8));
	return e;
}

Done opened_both(Device &source, Device &target, const json &from, const json &to)
{
	if (Done opened = source.open_it(from, false); !opened)
		return opened;
	return target.open_it(to, true);
}

Result<std::pair<json, json>> volumes_of(Context &context, const std::string &from, const std::string &to)
{
	Result<json> f = volume_of(context, from), t = volume_of(context, to);
	if (!f || !t)
		return f ? t.error() : f.error();
	if ((*f)["size_bytes"] != (*t)["size_bytes"])
		return usage_error(fmt::format("volume {} and volume {} are not of one size", from, to));
	if (from == to)
		return usage_error("a volume cannot be laid over itself");
	return std::pair(*f, *t);
}

Done overlay(Context &context, const std::string &from, const std::string &to, const std::string &host, const std::string &trail)
{
	Result<std::pair<json, json>> both = volumes_of(context, from, to);
	if (!both)
		return both.error();
	Result<std::vector<Extent>> extents = trail_of(context, from, host, trail, both->first["size_bytes"]);
	if (!extents)
		return extents.error();
	uint64_t copied = 0;
	if (extents->empty())
		return laid(context, from, to, host, trail, copied);
	Device source, target;
	if (Done opened = opened_both(source, target, both->first, both->second); !opened)
		return opened;
	if (Done done = copy(source, target, false, extents->size(), [&](size_t i) { return (*extents)[i]; }, copied); !done)
		return done;
	return laid(context, from, to, host, trail, copied);
}

Done overlay_all(Context &context, const std::string &from, const std::string &to)
{
	Result<std::pair<json, json>> both = volumes_of(context, from, to);
	if (!both)
		return both.error();
	Device source, target;
	if (Done opened = opened_both(source, target, both->first, both->second); !opened)
		return opened;
	const uint64_t size_bytes = source.size_bytes, extent_bytes = uint64_t(LKS_TRAIL_BITMAP) * 8 * LKS_SECTOR;
	uint64_t copied = 0;
	auto extent_of = [=](size_t i) { return whole_extent(i, size_bytes); };
	if (Done done = copy(source, target, true, (size_bytes + extent_bytes - 1) / extent_bytes, extent_of, copied); !done)
		return done;
	return told(context, {{"from", from}, {"to", to}, {"copied_bytes", copied}},
		    fmt::format("volume {} has the content of volume {}, of which {} were written\n", to, from, format_bytes(copied)));
}

}    // namespace

void add_volume_overlay(CLI::App &volume, Context &context, Action &action)
{
	struct Options {
		std::string from, to, host, trail;
		bool all = false;
	};
	auto o = std::make_shared<Options>();
	CLI::App *overlay_app = volume.add_subcommand("overlay", "Writes to ONTO what was written to VOLUME since its trail began (for storage migration)");
	overlay_app->add_option("VOLUME", o->from, "Name of the volume that was written to")->required();
	overlay_app->add_option("ONTO", o->to, "Name of the volume that gets it")->required();
	auto *all = overlay_app->add_flag("--all", o->all, "All of VOLUME, whatever was written when");
	overlay_app->add_option("--host", o->host, "Host where the trail began")->excludes(all);
	overlay_app->add_option("--trail", o->trail, "Its number")->excludes(all);
	overlay_app->callback([=, &context, &action] {
		action = [=, &context]() -> Done {
			if (o->all)
				return overlay_all(context, o->from, o->to);
			if (o->host.empty() || o->trail.empty())
				return usage_error("name the trail with --host and --trail, or say --all");
			return overlay(context, o->from, o->to, o->host, o->trail);
		};
	});
}

}    // namespace lockstep::cli
