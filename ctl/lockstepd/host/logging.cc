// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/logging.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <ctime>

#include <fmt/format.h>

#include "lockstepd/host/asked.h"

namespace lockstep {

namespace {

constexpr int PRIORITY_INFO = 6;    // of syslog

// Never changed: programs look for them.
struct Kind {
	std::string_view name, id, field;
};
constexpr Kind KINDS[] = {
	{"cluster", "0a6bd165e0df4dbeb7b11028786dcebc", "LOCKSTEP_CLUSTER"},   {"host", "fc012ad3ae9844bab53b7f68cf4e383a", "LOCKSTEP_PEER"},
	{"pool", "d257478a72034f1e89594754539a94d0", "LOCKSTEP_POOL"},         {"volume", "4c1db83535c44c66972b9729a6df2f4f", "LOCKSTEP_VOLUME"},
	{"snapshot", "4c4fe0af986c4933ac92ea51d5ec6938", "LOCKSTEP_SNAPSHOT"}, {"daemon", "9201b951e70a49b7937e698d55bd70cc", ""},
};

// A value with a line feed in it goes by its length.
void put(std::string &entry, std::string_view field, std::string_view value)
{
	entry += field;
	if (value.find('\n') == value.npos) {
		entry += '=';
	} else {
		entry += '\n';
		for (size_t i = 0; i < 8; i++)
			entry += char(uint64_t(value.size()) >> (8 * i) & 0xff);
	}
	entry += value;
	entry += '\n';
}

bool is_stream(int fd, const char *stream)
{
	struct stat s;
	return stream && fstat(fd, &s) == 0 && fmt::format("{}:{}", s.st_dev, s.st_ino) == stream;
}

std::string plain_line(const std::string &line)
{
	timespec now;
	tm utc;
	char time[32];
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &utc);
	strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%S", &utc);
	return fmt::format("{}.{:03}Z {}\n", time, now.tv_nsec / 1'000'000, line);
}

}    // namespace

std::pair<std::string_view, std::string_view> subject_of(std::string_view line)
{
	for (const std::string_view kind : {"volume", "pool", "host"}) {
		const size_t begin = kind.size() + 1, end = line.find_first_of(" :", begin);
		// "volume group vg ..." is about no volume.
		if (line.starts_with(kind) && line.substr(kind.size()).starts_with(' ') && end != line.npos && end > begin && line[end] == ':')
			return {kind, line.substr(begin, end - begin)};
	}
	return {"daemon", ""};
}

std::string journal_entry(std::string_view host, std::string_view line, std::string_view kind, std::string_view name, const Asker *asker)
{
	std::string entry;
	put(entry, "MESSAGE", line);
	put(entry, "PRIORITY", std::to_string(PRIORITY_INFO));
	put(entry, "SYSLOG_IDENTIFIER", "lockstepd");
	put(entry, "LOCKSTEP_HOST", host);
	put(entry, "LOCKSTEP_EVENT", kind);
	for (const Kind &k : KINDS)
		if (k.name == kind) {
			put(entry, "MESSAGE_ID", k.id);
			if (!k.field.empty() && !name.empty())
				put(entry, k.field, name);
		}
	if (asker) {
		put(entry, "LOCKSTEP_CLIENT", asker->client);
		put(entry, "LOCKSTEP_ROLE", asker->role);
		put(entry, "LOCKSTEP_ASKED_ON", asker->host);
	}
	return entry;
}

LogSink::LogSink(std::string host, const char *stream, int fd, std::string journal) : host_(std::move(host)), journal_(std::move(journal)), fd_(fd)
{
	if (is_stream(fd, stream))
		socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

LogSink::~LogSink()
{
	if (socket_ >= 0)
		close(socket_);
}

void LogSink::write(const std::string &line, std::string_view kind, std::string_view name, const Asker *asker) const
{
	if (socket_ >= 0) {
		const std::string entry = journal_entry(host_, line, kind, name, asker);
		sockaddr_un to{};
		to.sun_family = AF_UNIX;
		journal_.copy(to.sun_path, sizeof to.sun_path - 1);
		// A journal that does not keep up must not hold up who decides about fail-over.
		if (sendto(socket_, entry.data(), entry.size(), MSG_NOSIGNAL | MSG_DONTWAIT, reinterpret_cast<const sockaddr *>(&to), sizeof to) >= 0)
			return;
	}
	const std::string text = plain_line(line);
	for (size_t sent = 0; sent < text.size();) {
		const ssize_t n = ::write(fd_, text.data() + sent, text.size() - sent);
		if (n <= 0)
			return;
		sent += size_t(n);
	}
}

}    // namespace lockstep
