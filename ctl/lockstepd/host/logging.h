// SPDX-License-Identifier: GPL-2.0-or-later
//
// Where the daemon's log lines go: to journald with fields, when journald is what reads our standard error anyway; else to standard
// error as plain lines with the time.
//
// The fields are in docs/logs.md. journald's own protocol is a datagram of them (systemd's "Native Journal Protocol"), so no library is
// needed. What journald does not take, since it is gone or the line is too long, goes to standard error: nothing is lost.
#pragma once

#include <string>
#include <string_view>
#include <utility>

namespace lockstep {

struct Asker;

constexpr const char *JOURNAL_SOCKET = "/run/systemd/journal/socket";

class LogSink {
public:
	// host: name of this host. stream: what JOURNAL_STREAM says (nullptr: nothing), "<device>:<inode>" of the stream that journald
	// reads; fd: standard error.
	LogSink(std::string host, const char *stream, int fd = 2, std::string journal = JOURNAL_SOCKET);
	~LogSink();
	LogSink(const LogSink &) = delete;
	LogSink &operator=(const LogSink &) = delete;

	// kind: "cluster", "host", "pool", "volume" or "snapshot", what it is about, and its name; or "daemon". asker: whose doing it is.
	// Never blocks on journald. From any thread.
	void write(const std::string &line, std::string_view kind = "daemon", std::string_view name = "", const Asker *asker = nullptr) const;
	bool to_journal() const { return socket_ >= 0; }

private:
	std::string host_, journal_;
	int fd_, socket_ = -1;
};

// What a line is about that says so at its beginning ("volume v1: works again"); else the daemon itself. Kind and name, as above.
std::pair<std::string_view, std::string_view> subject_of(std::string_view line);

// The datagram.
std::string journal_entry(std::string_view host, std::string_view line, std::string_view kind, std::string_view name, const Asker *asker = nullptr);

}    // namespace lockstep
