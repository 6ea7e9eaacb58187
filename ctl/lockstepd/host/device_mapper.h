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
// down before, in a folder that a boot empties as it does the kernel, and a daemon that starts lets go on what is written there. That
// folder is no unit's: until version 235 systemd removes a unit's folder in /run when its daemon ends, however that ends.
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
	uint64_t sectors = 0;
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

// A classic snapshot that LVM made some time before is emptied, so that it is one of its origin as that is now. What was overwritten meanwhile is
// in its store, and the kernel hands that from one table of a snapshot to the next; so the old one goes before the store's head and first list
// are zeroed, which the kernel takes for a new store. Once: a second time, perhaps when writes go on, is no change, which a file in `taken`, a
// folder that a boot empties, is the witness of. A new cluster gives the same names again, and not every way in which a snapshot goes takes
// its file along; so the file holds the device's UUID, which LVM gives once. cow: path of the store.
struct ThickSnapshot {
	std::string origin, snapshot, cow;
};
Done thick_snapshot(const DmCall &call, const std::string &folder, const std::string &taken, const ThickSnapshot &s);
void forget_taken(const std::string &taken, const std::string &snapshot);    // it is being removed

// What the device has acknowledged is on its disks when this returns: they keep it in memory until they are asked. Whoever uses it goes on.
Done flush_device(const std::string &path);

// Lets go on what a daemon before this one left suspended. What it could not, one line each.
std::vector<std::string> resume_suspended(const DmCall &call, const std::string &folder);

// What daemons of before wrote down in a folder of their unit is read too, and is then written down where it is looked for now.
std::vector<std::string> take_over_witnesses(const DmCall &call, const std::string &before, const std::string &now);

inline constexpr const char *WITNESS_FOLDER = "/run/lockstep-dm", *WITNESS_FOLDER_BEFORE = "/run/lockstep";
inline constexpr const char *SUSPENDED_FOLDER = "/run/lockstep-dm/suspended", *TAKEN_FOLDER = "/run/lockstep-dm/taken";

}    // namespace lockstep
