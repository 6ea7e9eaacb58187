// SPDX-License-Identifier: GPL-2.0-or-later
//
// The HTTP server of the unix socket: answers root only.
//
// The socket's mode keeps others from connecting already; the peer's credentials, which the kernel tells as they were at
// connect(), do so too when somebody has changed the mode, or has handed a connected socket on. A refused one gets 403 with the API's
// usual error.
#pragma once

#include "lib/http.h"

namespace lockstep {

class GuardedServer : public httplib::Server {
private:
	bool process_and_close_socket(socket_t fd) override;    // on a thread of the pool
};

}    // namespace lockstep
