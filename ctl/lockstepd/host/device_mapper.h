// SPDX-License-Identifier: GPL-2.0-or-later
//
// The kernel's device-mapper, asked directly: for what has to be quick. LVM's tools take some hundred milliseconds each, a call here less
// than one.
//
// What LVM has set up is never changed behind its back: a thin LV that LVM knows gets its content here, its name and number it has from LVM.
//
// A snapshot of a thin volume that is in use needs it suspended (Linux, Documentation/admin-guide/device-mapper/thin-provisioning.rst): a write
// that was mapped before and lands afterwards would land in what both share by then. Our own writes can be held back (Q1), but a replica's
// metadata are written at any time. While it is suspended nothing on it is read or written, so it must not stay so: its name is written
// down before, in a folder that a boot empties as it does the kernel, and a daemon that starts lets go on what is written there.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/error.h"

namespace lockstep {

// One ioctl on /dev/mapper/control. 0 or an errno.
using DmCall = std::function<int(unsigned long request, void *buffer)>;
DmCall dm_kernel();

// device-mapper's name of an LV: "-" within a name is doubled.
std::string dm_name(const std::string &vg, const std::string &lv);

struct DmTarget {
	std::string type, text;    // the table's parameters, or the status
	bool suspended = false;
	std::string uuid = {};     // of the device, made of LVM's UUIDs
	bool operator==(const DmTarget &) const = default;
};

// Of a device that is one target, as thin volumes and their pools are. An Error if it is not there, or is another thing.
Result<DmTarget> dm_table(const DmCall &call, const std::string &device);
Result<DmTarget> dm_status(const DmCall &call, const std::string &device);    // does not have it write anything

struct ThinVolume {
	std::string pool;          // "major:minor"
	uint64_t id = 0;
	bool operator==(const ThinVolume &) const = default;
};
Result<ThinVolume> parse_thin_table(std::string_view text);
uint64_t thin_bytes(std::string_view status);    // that the kernel's status of a thin target says are mapped; 0: it does not
// Why a thin pool that says this of itself takes no change of its metadata now, or no data; empty: it does.
std::string thin_pool_trouble(std::string_view status);

// In a thin pool, which is that of the volume `origin`. Both are on the disk when they return. No volume of that id: done.
Done thin_delete(const DmCall &call, const std::string &origin, uint64_t id);
// The volume `id` becomes a snapshot of `origin`, a device's name; one that there is already is taken as it is. folder: see above.
Done thin_snapshot(const DmCall &call, const std::string &folder, const std::string &origin, uint64_t id);

// Lets go on what a daemon before this one left suspended. What it could not, one line each.
std::vector<std::string> resume_suspended(const DmCall &call, const std::string &folder);

inline constexpr const char *SUSPENDED_FOLDER = "/run/lockstep/suspended";

}    // namespace lockstep
