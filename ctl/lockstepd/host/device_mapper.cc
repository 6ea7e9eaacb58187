// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/device_mapper.h"

#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <fmt/format.h>

namespace lockstep {

DmCall dm_kernel()
{
	return [](unsigned long request, void *buffer) {
		const int fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
		if (fd < 0)
			return errno;
		int error = 0;
		do    // a device that others are just suspending is waited for, and a signal ends that
			error = ioctl(fd, request, buffer) == 0 ? 0 : errno;
		while (error == EINTR);
		close(fd);
		return error;
	};
}

std::string dm_name(const std::string &vg, const std::string &lv)
{
	std::string name;
	for (const std::string &part : {vg, lv}) {
		name += name.empty() ? "" : "-";
		for (char c : part)
			name += c == '-' ? "--" : std::string(1, c);
	}
	return name;
}

namespace {

// A call's buffer: the head, and behind it what it takes or gives.
struct Request {
	alignas(dm_ioctl) std::array<char, 4096> bytes = {};

	dm_ioctl &head() { return *reinterpret_cast<dm_ioctl *>(bytes.data()); }
	char *rest() { return bytes.data() + sizeof(dm_ioctl); }
};

// device: a name, or "major:minor".
int ask(const DmCall &call, unsigned long request, const std::string &device, uint32_t flags, Request &r)
{
	dm_ioctl &head = r.head();
	head.version[0] = DM_VERSION_MAJOR;
	head.data_size = uint32_t(r.bytes.size());
	head.data_start = sizeof(dm_ioctl);
	head.flags = flags;
	unsigned major = 0, minor = 0;
	const auto [end, error] = std::from_chars(device.data(), device.data() + device.size(), major);
	if (error == std::errc() && end != device.data() + device.size() && *end == ':') {
		std::from_chars(end + 1, device.data() + device.size(), minor);
		head.dev = (minor & 0xff) | (major << 8) | (uint64_t(minor & ~0xffu) << 12);    // the kernel's huge_encode_dev()
	} else if (device.size() < sizeof head.name) {
		memcpy(head.name, device.data(), device.size());
	} else {
		return ENAMETOOLONG;
	}
	return call(request, r.bytes.data());
}

Error refused(const std::string &what, const std::string &device, int error)
{
	const std::string text = fmt::format("device-mapper cannot {} {}: {}", what, device, strerror(error));
	return error == ENXIO ? not_found(text) : failed(text);
}

Result<DmTarget> target_of(const DmCall &call, const std::string &device, uint32_t flags)
{
	Request r;
	if (int error = ask(call, DM_TABLE_STATUS, device, flags | DM_NOFLUSH_FLAG, r))
		return refused("tell about", device, error);
	const size_t start = r.head().data_start;
	if (r.head().flags & DM_BUFFER_FULL_FLAG || r.head().target_count != 1 || start + sizeof(dm_target_spec) >= r.bytes.size())
		return failed(fmt::format("device {} is not one target of device-mapper", device));
	dm_target_spec spec;
	memcpy(&spec, r.bytes.data() + start, sizeof spec);
	const char *text = r.bytes.data() + start + sizeof spec;
	return DmTarget{std::string(spec.target_type, strnlen(spec.target_type, sizeof spec.target_type)),
			std::string(text, strnlen(text, size_t(r.bytes.data() + r.bytes.size() - text))), (r.head().flags & DM_SUSPEND_FLAG) != 0,
			std::string(r.head().uuid, strnlen(r.head().uuid, sizeof r.head().uuid)), spec.sector_start + spec.length};
}

Done message(const DmCall &call, const std::string &pool, const std::string &text, int fine)
{
	Request r;
	dm_target_msg *msg = reinterpret_cast<dm_target_msg *>(r.rest());
	msg->sector = 0;
	memcpy(msg->message, text.c_str(), text.size() + 1);
	if (int error = ask(call, DM_TARGET_MSG, pool, 0, r); error && error != fine)
		return refused(fmt::format("\"{}\" in thin pool", text), pool, error);
	return Nothing{};
}

std::vector<std::string> words(std::string_view text)
{
	std::istringstream in{std::string(text)};
	std::vector<std::string> list;
	for (std::string word; in >> word;)
		list.push_back(word);
	return list;
}

template <class N> bool number(std::string_view text, N &n)
{
	const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
	return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

}    // namespace

Result<DmTarget> dm_table(const DmCall &call, const std::string &device) { return target_of(call, device, DM_STATUS_TABLE_FLAG); }
Result<DmTarget> dm_status(const DmCall &call, const std::string &device) { return target_of(call, device, 0); }

// "252:3 17", and a third word if there is an external origin, which ours have not.
Result<ThinVolume> parse_thin_table(std::string_view text)
{
	const std::vector<std::string> parts = words(text);
	ThinVolume v;
	unsigned major = 0, minor = 0;
	const size_t colon = parts.empty() ? std::string::npos : parts[0].find(':');
	if (parts.size() != 2 || colon == std::string::npos || !number(std::string_view(parts[0]).substr(0, colon), major) ||
	    !number(std::string_view(parts[0]).substr(colon + 1), minor) || !number(parts[1], v.id))
		return failed(fmt::format("\"{}\" is no table of a thin volume", text));
	v.pool = parts[0];
	return v;
}

// "mapped highest", in sectors; "Fail" or "Error" of one that is broken.
uint64_t thin_bytes(std::string_view status)
{
	uint64_t sectors = 0;
	const auto [end, error] = std::from_chars(status.data(), status.data() + status.size(), sectors);
	return error == std::errc() && end != status.data() + status.size() && *end == ' ' && sectors < UINT64_MAX / 512 ? sectors * 512 : 0;
}

// "transaction used/all used/all held-root mode discards no-space check low-water"; "Fail" or "Error" of one that is broken.
std::string thin_pool_trouble(std::string_view status)
{
	const std::vector<std::string> parts = words(status);
	if (parts.size() < 5)
		return "is broken";
	if (std::ranges::find(parts, "needs_check") != parts.end())
		return "needs a check";
	if (parts[4] == "ro")
		return "is read-only";
	if (parts[4] == "out_of_data_space")
		return "is full";
	return parts[4] == "rw" ? "" : "is " + parts[4];
}

namespace {

Result<DmTarget> table_of(const DmCall &call, const std::string &device, const std::string &type)
{
	auto table = dm_table(call, device);
	if (table && table->type != type)
		return failed(fmt::format("device {} is of type {}, not {}", device, table->type, type));
	if (table && table->suspended)    // to suspend it again would be granted, and to resume it would be too early for somebody else
		return failed(fmt::format("device {} is suspended by somebody else: `dmsetup resume {}` if that is over", device, device));
	return table;
}

Result<ThinVolume> thin_volume(const DmCall &call, const std::string &device)
{
	auto table = table_of(call, device, "thin");
	if (!table)
		return table.error();
	return parse_thin_table(table->text);
}

// A message is answered before anybody knows whether the pool could write it down; if it could not, it is read-only from then on.
Done well(const DmCall &call, const std::string &device, const ThinVolume &v)
{
	auto status = dm_status(call, v.pool);
	if (!status)
		return status.error();
	if (std::string trouble = status->type == "thin-pool" ? thin_pool_trouble(status->text) : "is none"; !trouble.empty())
		return failed(fmt::format("the thin pool of {} {}", device, trouble));
	return Nothing{};
}

std::string file_of(const std::string &folder, const std::string &device) { return folder + "/" + device; }

Done forget(const std::string &folder, const std::string &device)
{
	if (unlink(file_of(folder, device).c_str()) < 0 && errno != ENOENT)
		return failed(fmt::format("cannot remove {}: {}", file_of(folder, device), strerror(errno)));
	return Nothing{};
}

Done resume(const DmCall &call, const std::string &folder, const std::string &device)
{
	Request r;
	if (int error = ask(call, DM_DEV_SUSPEND, device, 0, r); error && error != ENXIO)    // of one that is gone nothing waits
		return failed(fmt::format("{} is suspended, its reads and writes wait: `dmsetup resume {}` (resuming it failed: {})", device, device,
					  strerror(error)));
	return forget(folder, device);
}

Done touch(const std::string &folder, const std::string &device, const std::string &content = "")
{
	for (const std::string &path : {std::filesystem::path(folder).parent_path().string(), folder})
		if (mkdir(path.c_str(), 0700) < 0 && errno != EEXIST)
			return failed(fmt::format("cannot create {}: {}", path, strerror(errno)));
	const int fd = open(file_of(folder, device).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	const bool well = fd >= 0 && write(fd, content.data(), content.size()) == ssize_t(content.size());
	const int error = errno;
	if (fd >= 0)
		close(fd);
	return well ? Done(Nothing{}) : failed(fmt::format("cannot create {}: {}", file_of(folder, device), strerror(error)));
}

// What the pool cannot write for lack of room it gives back instead of keeping it (DM_NOFLUSH_FLAG): there is nothing to wait for without end.
Done suspend(const DmCall &call, const std::string &folder, const std::string &device)
{
	if (Done done = touch(folder, device); !done)
		return done;
	Request r;
	if (int error = ask(call, DM_DEV_SUSPEND, device, DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG, r)) {
		(void)forget(folder, device);
		return refused("suspend", device, error);
	}
	return Nothing{};
}

}    // namespace

Done thin_delete(const DmCall &call, const std::string &origin, uint64_t id)
{
	auto v = thin_volume(call, origin);
	if (!v)
		return v.error();
	if (v->id == id)
		return failed(fmt::format("device {} itself has the number {}", origin, id));
	if (Done done = well(call, origin, *v); !done)
		return done;
	if (Done done = message(call, v->pool, fmt::format("delete {}", id), ENODATA); !done)
		return done;
	return well(call, origin, *v);
}

Done thin_snapshot(const DmCall &call, const std::string &folder, const std::string &origin, uint64_t id)
{
	auto v = thin_volume(call, origin);
	if (!v)
		return v.error();
	if (Done done = well(call, origin, *v); !done)
		return done;
	if (Done done = suspend(call, folder, origin); !done)
		return done;
	const Done made = message(call, v->pool, fmt::format("create_snap {} {}", id, v->id), EEXIST);
	if (Done done = resume(call, folder, origin); !done)
		return done;
	return made ? well(call, origin, *v) : made;
}

namespace {

// The device goes on with this table.
Done put(const DmCall &call, const std::string &device, const DmTarget &t)
{
	Request r;
	dm_target_spec spec = {};
	spec.length = t.sectors;
	t.type.copy(spec.target_type, sizeof spec.target_type - 1);
	memcpy(r.rest(), &spec, sizeof spec);
	memcpy(r.rest() + sizeof spec, t.text.c_str(), t.text.size() + 1);
	r.head().target_count = 1;
	if (int error = ask(call, DM_TABLE_LOAD, device, 0, r))
		return refused("load a table of type " + t.type + " into", device, error);
	Request go;
	if (int error = ask(call, DM_DEV_SUSPEND, device, DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG, go))
		return refused("put a table of type " + t.type + " to work in", device, error);
	return Nothing{};
}

// It is on the disk when this returns.
Done zero(const std::string &path, uint64_t bytes)
{
	const std::string zeros(bytes, '\0');
	const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
	const bool well = fd >= 0 && pwrite(fd, zeros.data(), bytes, 0) == ssize_t(bytes) && fdatasync(fd) == 0;
	const int error = errno;
	if (fd >= 0)
		close(fd);
	return well ? Done(Nothing{}) : failed(fmt::format("cannot write to {}: {}", path, strerror(error)));
}

// "origin cow P chunk-sectors"; 0: not understood.
uint64_t chunk_bytes(const std::string &table)
{
	const std::vector<std::string> parts = words(table);
	uint64_t sectors = 0;
	return parts.size() >= 4 && parts[2].starts_with("P") && number(parts[3], sectors) && sectors <= 1 << 15 ? sectors * 512 : 0;
}

Done empty_store(const DmCall &call, const ThickSnapshot &s, const DmTarget &table)
{
	if (Done done = put(call, s.snapshot, {.type = "error", .text = "", .sectors = table.sectors}); !done)
		return done;
	if (Done done = zero(s.cow, 2 * chunk_bytes(table.text)); !done)
		return done;
	return put(call, s.snapshot, table);
}

}    // namespace

Done thick_snapshot(const DmCall &call, const std::string &folder, const std::string &taken, const ThickSnapshot &s)
{
	const auto now = dm_table(call, s.snapshot);
	if (!now)
		return now.error();
	std::ifstream witness(file_of(taken, s.snapshot));
	if (std::string uuid; std::getline(witness, uuid) && !uuid.empty() && uuid == now->uuid)
		return Nothing{};
	auto origin = table_of(call, s.origin, "snapshot-origin");
	if (!origin)
		return origin.error();
	auto table = table_of(call, s.snapshot, "snapshot");
	if (!table)
		return table.error();
	if (!chunk_bytes(table->text))
		return failed(fmt::format("device {} is no lasting snapshot: {}", s.snapshot, table->text));
	if (Done done = suspend(call, folder, s.origin); !done)
		return done;
	const Done emptied = empty_store(call, s, *table);
	if (Done done = resume(call, folder, s.origin); !done)
		return done;
	return emptied ? touch(taken, s.snapshot, table->uuid) : emptied;
}

// Opened for reading, which is enough: udev takes whoever closes what was open for writing for somebody who changed it.
Done flush_device(const std::string &path)
{
	const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
	const bool well = fd >= 0 && fdatasync(fd) == 0;
	const int error = errno;
	if (fd >= 0)
		close(fd);
	return well ? Done(Nothing{}) : failed(fmt::format("what was written to {} cannot be made to last: {}", path, strerror(error)));
}

void forget_taken(const std::string &taken, const std::string &snapshot) { (void)forget(taken, snapshot); }

namespace {

std::vector<std::string> written_down(const std::string &folder)
{
	std::error_code none;
	std::vector<std::string> devices;
	for (const auto &entry : std::filesystem::directory_iterator(folder, none))
		devices.push_back(entry.path().filename());
	return devices;
}

}    // namespace

std::vector<std::string> take_over_witnesses(const DmCall &call, const std::string &before, const std::string &now)
{
	std::vector<std::string> failures;
	const std::string suspended = before + "/suspended", taken = before + "/taken";
	for (const std::string &device : written_down(suspended))
		if (Done done = touch(now + "/suspended", device); !done || !(done = forget(suspended, device)))
			failures.push_back(done.error().message);
	for (const std::string &device : written_down(taken)) {
		const auto table = dm_table(call, device);
		Done done = table ? touch(now + "/taken", device, table->uuid) : Done(Nothing{});    // of one that is gone there is nothing to know
		if (!done || !(done = forget(taken, device)))
			failures.push_back(done.error().message);
	}
	return failures;
}

std::vector<std::string> resume_suspended(const DmCall &call, const std::string &folder)
{
	std::vector<std::string> failures;
	for (const std::string &device : written_down(folder)) {
		const auto now = dm_status(call, device);    // resuming one that is not suspended would be no harm but for a table that waits
		if (Done done = now && !now->suspended ? forget(folder, device) : resume(call, folder, device); !done)
			failures.push_back(done.error().message);
	}
	return failures;
}

}    // namespace lockstep
