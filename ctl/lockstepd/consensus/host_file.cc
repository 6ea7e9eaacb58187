// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/consensus/host_file.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <nlohmann/json.hpp>

namespace lockstep {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr int HOST_FILE_FORMAT = 1;

std::string host_file_path(const std::string &state_dir)
{
	return state_dir + "/host.json";
}

Error io_error(const char *what, const std::string &path)
{
	return failed("cannot " + std::string(what) + " " + path + ": " + strerror(errno));
}

Done flush_dir(const std::string &dir)
{
	const int dir_fd = open(dir.empty() ? "." : dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return io_error("open", dir);
	const int flushed = fsync(dir_fd);
	close(dir_fd);
	if (flushed != 0)
		return io_error("flush", dir);
	return Nothing{};
}

}    // namespace

std::string raft_dir_of(const std::string &state_dir)
{
	return state_dir + "/raft";
}

Done write_file_durably(const std::string &path, const std::string &content)
{
	const std::string tmp = path + ".tmp";
	const int fd = open(tmp.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return io_error("create", tmp);
	size_t done = 0;
	while (done < content.size()) {
		const ssize_t n = write(fd, content.data() + done, content.size() - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			const Error error = io_error("write", tmp);
			close(fd);
			return error;
		}
		done += size_t(n);
	}
	if (fsync(fd) != 0) {
		const Error error = io_error("flush", tmp);
		close(fd);
		return error;
	}
	close(fd);
	if (rename(tmp.c_str(), path.c_str()) != 0)
		return io_error("put in place", path);
	return flush_dir(fs::path(path).parent_path().string());
}

Done store_host_file(const std::string &state_dir, const HostFile &f)
{
	const json content = {{"format", HOST_FILE_FORMAT},
			      {"cluster_uuid", f.cluster_uuid},
			      {"cluster_name", f.cluster_name},
			      {"host_uuid", f.host_uuid},
			      {"host_id", f.host_id},
			      {"raft_id", f.raft_id},
			      {"name", f.name}};
	return write_file_durably(host_file_path(state_dir), content.dump(2) + "\n");
}

Done drop_host_file(const std::string &state_dir)
{
	const std::string path = host_file_path(state_dir);
	if (rename(path.c_str(), (path + ".left").c_str()) != 0 && errno != ENOENT)
		return io_error("set aside", path);
	return flush_dir(state_dir);
}

Result<std::optional<HostFile>> load_host_file(const std::string &state_dir)
{
	const std::string path = host_file_path(state_dir);
	std::error_code error;
	if (!fs::exists(path, error)) {
		if (error)
			return failed("cannot look for " + path + ": " + error.message());
		return std::optional<HostFile>();
	}
	std::ifstream in(path);
	std::stringstream text;
	text << in.rdbuf();
	if (!in)
		return io_error("read", path);
	HostFile f;
	try {
		const json content = json::parse(text.str());
		if (content.at("format") != HOST_FILE_FORMAT)
			return failed(path + " was written by another version of lockstepd (format " + content.at("format").dump() + ")");
		content.at("cluster_uuid").get_to(f.cluster_uuid);
		content.at("cluster_name").get_to(f.cluster_name);
		content.at("host_uuid").get_to(f.host_uuid);
		content.at("host_id").get_to(f.host_id);
		content.at("raft_id").get_to(f.raft_id);
		content.at("name").get_to(f.name);
	} catch (const json::exception &e) {
		return failed(path + " is damaged (" + e.what() + "); remove this host from the cluster and let it join again");
	}
	if (f.cluster_uuid.empty() || f.host_id < 1 || f.host_id > 64 || f.raft_id == 0)
		return failed(path + " is damaged (an id is missing); remove this host from the cluster and let it join again");
	return std::optional<HostFile>(f);
}

Done check_raft_dir(const std::string &state_dir, const HostFile &file)
{
	const std::string dir = raft_dir_of(state_dir);
	std::ifstream in(dir + "/" + MEMBER_FILE);
	uint64_t raft_id = 0;
	if (in >> raft_id && raft_id == file.raft_id)
		return Nothing{};
	return forbidden("this is host " + std::to_string(file.host_id) + " of cluster " + file.cluster_name + ", but " + dir +
			 " is lost: to vote again under the same id could undo what was committed. Remove host " +
			 std::to_string(file.host_id) + " from the cluster, delete " + host_file_path(state_dir) + ", and join again");
}

std::string random_uuid()
{
	unsigned char b[16];
	if (getrandom(b, sizeof b, 0) != ssize_t(sizeof b))
		abort();
	b[6] = (b[6] & 0x0f) | 0x40;
	b[8] = (b[8] & 0x3f) | 0x80;
	char text[37];
	snprintf(text, sizeof text, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3], b[4],
		 b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
	return text;
}

}    // namespace lockstep
