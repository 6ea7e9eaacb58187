// SPDX-License-Identifier: GPL-2.0-or-later
//
// /proc tells: a descriptor is a link to what was opened. Only links that begin as our devices do are looked at closer, since a
// look at a file of another system (NFS) can hang.
#include "lockstepd/host/openers.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <filesystem>
#include <fstream>

#include <fmt/format.h>

namespace lockstep {

namespace {

namespace fs = std::filesystem;

bool opens(const fs::path &process, dev_t device)
{
	std::error_code error;
	for (const auto &fd : fs::directory_iterator(process / "fd", error)) {
		const std::string target = fs::read_symlink(fd.path(), error).string();
		struct stat st;
		if (!error && target.starts_with("/dev/lockstep") && stat(fd.path().c_str(), &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == device)
			return true;
	}
	return false;
}

std::string first_line(const fs::path &file)
{
	std::ifstream in(file);
	std::string line;
	std::getline(in, line);
	for (char &c : line)
		if (c < 0x20 || c >= 0x7f)
			c = '?';
	return line;
}

void add_kernel(dev_t device, nlohmann::json &list)
{
	auto add = [&](const std::string &what) { list.push_back({{"pid", 0}, {"command", "kernel: " + what}}); };
	std::error_code error;
	const std::string number = fmt::format("{}:{}", major(device), minor(device));
	for (const auto &holder : fs::directory_iterator("/sys/dev/block/" + number + "/holders", error))
		add(holder.path().filename().string());
	std::ifstream mounts("/proc/self/mountinfo");
	for (std::string line; std::getline(mounts, line);) {
		size_t at = line.find(' ' + number + ' ');
		size_t from = at == line.npos ? at : line.find(' ', at + number.size() + 2);
		if (from != line.npos)
			add("mounted on " + line.substr(from + 1, line.find(' ', from + 1) - from - 1));
	}
}

}    // namespace

nlohmann::json open_processes(const std::string &device)
{
	nlohmann::json list = nlohmann::json::array();
	struct stat st;
	if (stat(device.c_str(), &st) < 0 || !S_ISBLK(st.st_mode))
		return list;
	std::error_code error;
	for (const auto &entry : fs::directory_iterator("/proc", error)) {
		const std::string pid = entry.path().filename().string();
		if (pid.find_first_not_of("0123456789") == pid.npos && opens(entry.path(), st.st_rdev))
			list.push_back({{"pid", std::stoull(pid)}, {"command", first_line(entry.path() / "comm")}});
	}
	add_kernel(st.st_rdev, list);
	return list;
}

}    // namespace lockstep
