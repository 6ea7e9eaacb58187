// SPDX-License-Identifier: GPL-2.0-or-later
//
// The one error type of the control plane: what a user is told, and the exit status that goes with it.
//
// A Result<T> holds either a value or an Error. Errors are values here since most of them are somebody's answer ("no such
// volume") that travels from the state machine through the API to the command line unchanged. Exceptions are left to what
// libraries throw and to broken invariants.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace lockstep {

// Exit statuses of the command line, and "status" in API answers. The numbers are part of the contract with users.
enum class Status : int {
	ok = 0,
	usage = 2,        // the request itself makes no sense: size 0, an unknown option
	not_found = 3,    // names something that does not exist
	forbidden = 5,    // the present state does not allow it; the message says what would
	failed = 10,      // was tried and failed, or cannot be tried now (no daemon, no quorum)
};

struct Error {
	Status status = Status::failed;
	std::string message;       // one line: what happened, to what, what to do next
	std::string code = {};     // for programs, "volume-open": never changes its meaning; empty: code_of() tells the general one
};

template <class T>
class [[nodiscard]] Result {
public:
	Result(T value) : v_(std::move(value)) {}
	Result(Error error) : v_(std::move(error)) {}

	explicit operator bool() const { return std::holds_alternative<T>(v_); }
	T &operator*() { return std::get<T>(v_); }
	const T &operator*() const { return std::get<T>(v_); }
	T *operator->() { return &std::get<T>(v_); }
	const T *operator->() const { return &std::get<T>(v_); }
	const Error &error() const { return std::get<Error>(v_); }

private:
	std::variant<T, Error> v_;
};

struct Nothing {};
using Done = Result<Nothing>;

inline Error coded(std::string code, Error error)
{
	error.code = std::move(code);
	return error;
}

// For programs that must not read messages; docs/openapi.yaml lists them.
inline std::string code_of(const Error &error)
{
	if (!error.code.empty())
		return error.code;
	switch (error.status) {
	case Status::ok: break;
	case Status::usage: return "bad-request";
	case Status::not_found: return "not-found";
	case Status::forbidden: return "not-allowed-now";
	case Status::failed: break;
	}
	return "failed";
}

inline Error usage_error(std::string m) { return {Status::usage, std::move(m)}; }
inline Error not_found(std::string m) { return {Status::not_found, std::move(m)}; }
inline Error forbidden(std::string m) { return {Status::forbidden, std::move(m)}; }
inline Error failed(std::string m) { return {Status::failed, std::move(m)}; }

}    // namespace lockstep
