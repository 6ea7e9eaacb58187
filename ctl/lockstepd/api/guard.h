// SPDX-License-Identifier: GPL-2.0-or-later
//
// The HTTP server of the unix socket and of clients that come over TLS: who may ask, what, how much and how often.
//
// The unix socket answers root only. Its mode keeps others from connecting already; the peer's credentials, which the kernel tells as
// they were at connect(), do so too when somebody has changed the mode, or has handed a connected socket on. A client over TLS
// (net/listener.h) is asked about at each request: whether its certificate still counts, and whether its role may do this. What
// would let others in, or decides who is the cluster, is left to root on a host: a stolen certificate cannot make itself another one.
//
// Limits of a request: its size, and the time in which it must have arrived and its answer must have been taken, however slowly it
// trickles. What is over them is closed. A client has so many connections and requests at once and a second, else it is told so (429); those of
// root are not counted, since all programs of a host are root, and one of them must not keep the others out.
#pragma once

#include "lib/error.h"
#include "lib/http.h"
#include "lockstepd/api/limits.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

namespace lockstep {

// Whose request it is: root's if name is empty.
struct Caller {
	std::string name, key;    // as in ClientCert
};

enum class ApiRole { admin, read_only };

// A bucket of tokens. Pure: time is given, and never goes back.
class Throttle {
public:
	Throttle(double per_second, double burst) : per_second_(per_second), burst_(burst), left_(burst) {}
	bool take(uint64_t now_ms);

private:
	double per_second_, burst_, left_;
	uint64_t then_ms_ = 0;
};

// Who asks, on a thread that carries out a request which changes something; nullptr on others.
const Caller *current_caller();

class GuardedServer : public httplib::Server {
public:
	GuardedServer();
	~GuardedServer() override;

	// What a client's certificate stands for now; an Error: nothing, any more. On any thread.
	void set_roles(std::function<Result<ApiRole>(const Caller &)> role_of) { role_of_ = std::move(role_of); }
	void set_limits(const ApiLimits &limits) { limits_ = limits; }    // before start

	// Takes over a client's connection, which carries HTTP in plain. Does not block.
	void serve(int fd, Caller caller);
	// Ends clients' connections, and waits for the requests under way. Later ones are refused.
	void stop_clients();

private:
	friend const Caller *current_caller();
	struct Client;
	struct Current;
	static thread_local Current *current_;

	bool process_and_close_socket(socket_t fd) override;    // on a thread of the pool
	bool serve_connection(int fd, const Caller &caller, Client *client);
	void serve_client(int fd, const Caller &caller, Client *client);
	Client *admit(const Caller &caller, int fd);
	std::optional<std::pair<int, Error>> refusal(const httplib::Request &req);

	ApiLimits limits_;
	std::function<Result<ApiRole>(const Caller &)> role_of_;
	std::mutex lock_;    // of what follows
	std::map<std::string, std::unique_ptr<Client>> clients_;    // by name
	std::set<int> open_;                                        // clients' connections
	std::unique_ptr<httplib::ThreadPool> threads_;
	std::atomic<bool> stopping_ = false;
};

}    // namespace lockstep
