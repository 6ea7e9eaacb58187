// SPDX-License-Identifier: GPL-2.0-or-later
//
// Not a test: the API server and the State of a played cluster for others to test against (test/xapi/test_api.py). Chosen by
// name only:  build/unit-cli "[.serve]"
//
// Prints the socket's path, then carries out one command a line until its input ends: an entry of the log as JSON, answered by
// apply()'s answer; "quorum yes|no".
#include "fake.h"

#include <iostream>

using namespace lockstep;
using namespace lockstep::test;

TEST_CASE("serves the API until its input ends", "[.serve]")
{
	FakeDaemon d;
	std::cout << FakeDaemon::socket_path() << std::endl;
	for (std::string line; std::getline(std::cin, line);) {
		if (line.starts_with("quorum ")) {
			d.quorum = line == "quorum yes";
			d.facts.leader = d.quorum ? 1 : 0;
			std::cout << "{}" << std::endl;
		} else {
			std::cout << d.apply(nlohmann::json::parse(line)).dump() << std::endl;
		}
	}
	CHECK(check(*d.state()) == "");
}
