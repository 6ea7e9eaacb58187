// SPDX-License-Identifier: GPL-2.0-or-later
//
// build/sim: runs the product's replication core in a simulated, hostile cluster and checks what comes out.
//
//	build/sim [--seeds N] [--first S] [--steps N] [--seed S] [--trace] [--break RULE]... [--alloc-failures PERMILLE]
//	          [--io-errors PERMILLE] [--scenario NAME|all] [--twice] [--keep-going] [--busy]
//	build/sim --rules           names of the rules that --break knows
//
// --busy: three hosts, one volume with three replicas, hundreds of requests a second and no faults: how fast is the simulator?
// A seed replays a run exactly. Ends in totals of what happened (a run that exercised nothing is worth nothing), in one line of
// those that matter most, and in 'N passed, N failed'. Exit status 0 if all passed, 1 if not, 2 for wrong usage. With --break, which stops at the first
// counter-example, 1 is what should come out: the checker has noticed that the rule is broken.
#include "scenarios.h"
#include "world.h"

#include "core/rules.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <unistd.h>

unsigned long long lks_broken;

// The core's assertions end a run, not the program: this stands in for the C library's function of that name.
[[noreturn]] void assertion_failed(const char *what, const char *file, unsigned line, const char *function) __asm__("__assert_fail");
void assertion_failed(const char *what, const char *file, unsigned line, const char *function)
{
	char text[500];
	snprintf(text, sizeof(text), "assertion %s in %s(), %s:%u", what, function, file, line);
	throw lockstep::sim::Violation(text);
}

namespace lockstep::sim {

namespace {

constexpr unsigned MAX_FAILURES = 10;      // reported by one call of the program

struct Arguments {
	uint64_t first = 1, seeds = 200;
	Options options;
	bool twice = false;
	bool keep_going = false;
	std::string scenario;
};

const char *const stat_names[] = {
#define SIM_STAT_NAME(name) #name,
	SIM_STATS(SIM_STAT_NAME)
#undef SIM_STAT_NAME
};

const char *const rule_names[] = {
#define SIM_RULE_NAME(name) #name,
	LKS_RULES(SIM_RULE_NAME)
#undef SIM_RULE_NAME
};

volatile uint64_t running_seed;

void died(int signal)
{
	char text[80];
	int n = snprintf(text, sizeof(text), "seed %llu: killed by signal %d\n", (unsigned long long)running_seed, signal);
	if (write(STDOUT_FILENO, text, static_cast<size_t>(n)) < 0)
		_exit(3);
	std::signal(signal, SIG_DFL);
	raise(signal);
}

[[noreturn]] void usage(const char *what, const char *argument)
{
	fprintf(stderr,
		"sim: %s%s%s\nusage: sim [--seeds N] [--first S] [--steps N] [--seed S] [--trace] [--break RULE]... "
		"[--alloc-failures PERMILLE] [--io-errors PERMILLE] [--scenario NAME|all] [--twice] [--keep-going] [--busy]\n",
		what, *argument ? " " : "", argument);
	exit(2);
}

uint64_t number(const char *text)
{
	char *end;
	errno = 0;
	uint64_t n = strtoull(text, &end, 10);
	if (!*text || *text == '-' || *end || errno)
		usage("not a number:", text);
	return n;
}

void break_rule(const char *name)
{
	for (unsigned i = 0; i < LKS_RULE_COUNT; i++)
		if (!strcmp(rule_names[i], name)) {
			lks_broken |= 1ull << i;
			return;
		}
	usage("no such rule:", name);
}

Arguments parse(int argc, char **argv)
{
	Arguments a;
	for (int i = 1; i < argc; i++) {
		std::string option = argv[i];
		if (option == "--trace") {
			a.options.trace = true;
			continue;
		}
		if (option == "--rules") {
			for (const char *name : rule_names)
				printf("%s\n", name);
			exit(0);
		}
		if (option == "--twice") {
			a.twice = true;
			continue;
		}
		if (option == "--keep-going") {
			a.keep_going = true;
			continue;
		}
		if (option == "--busy") {
			a.options.busy = true;
			continue;
		}
		if (i + 1 == argc)
			usage("unknown option, or its value is missing:", argv[i]);
		const char *value = argv[++i];
		if (option == "--seeds") {
			a.seeds = number(value);
		} else if (option == "--first") {
			a.first = number(value);
		} else if (option == "--seed") {
			a.first = number(value);
			a.seeds = 1;
		} else if (option == "--steps") {
			a.options.steps = static_cast<unsigned>(number(value));
		} else if (option == "--break") {
			break_rule(value);
		} else if (option == "--alloc-failures") {
			a.options.alloc_failures = static_cast<double>(number(value)) / 1000;
		} else if (option == "--io-errors") {
			a.options.io_errors = static_cast<double>(number(value)) / 1000;
		} else if (option == "--scenario") {
			a.scenario = value;
		} else {
			usage("unknown option:", argv[i - 1]);
		}
	}
	return a;
}

// Empty, or what went wrong.
std::string run(uint64_t seed, const Options &options, Stats &total, uint64_t *digest)
{
	running_seed = seed;
	World world(seed, options);
	std::string wrong;
	try {
		world.run();
	} catch (const Violation &v) {
		world.in_core = false;
		wrong = v.what();
		wrong += "\n" + world.state_dump();
		world.stats[Stat::seconds] = world.now / SECOND;
	}
	for (size_t i = 0; i < total.n.size(); i++)
		total.n[i] += world.stats.n[i];
	*digest = world.digest;
	return wrong;
}

int run_seeds(const Arguments &a)
{
	Stats total;
	uint64_t passed = 0, failed = 0;
	std::clock_t begin = std::clock();
	for (uint64_t seed = a.first; seed < a.first + a.seeds; seed++) {
		uint64_t digest, again;
		std::string wrong = run(seed, a.options, total, &digest);
		if (a.twice && wrong.empty()) {
			wrong = run(seed, a.options, total, &again);
			if (wrong.empty() && again != digest)
				wrong = "two runs of this seed differ: the simulation is not deterministic\n";
		}
		if (wrong.empty()) {
			passed++;
			continue;
		}
		failed++;
		printf("seed %llu: %s", (unsigned long long)seed, wrong.c_str());
		fflush(stdout);
		if (lks_broken || (failed >= MAX_FAILURES && !a.keep_going))
			break;
	}
	double took = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
	for (size_t i = 0; i < total.n.size(); i++)
		printf("%s%s %llu", i ? ", " : "", stat_names[i], (unsigned long long)total.n[i]);
	printf("\n%.1f s of one core, %.0f simulated seconds a second\n", took, static_cast<double>(total[Stat::seconds]) / std::max(took, .001));
	auto n = [&](Stat s) { return (unsigned long long)total[s]; };
	printf("%llu seeds: %llu simulated seconds, %llu requests, %llu crashes, %llu power losses, %llu partitions, %llu fail-overs, "
	       "%llu joins, %llu violations\n",
	       (unsigned long long)(passed + failed), n(Stat::seconds),
	       n(Stat::reads) + n(Stat::writes) + n(Stat::zeroes) + n(Stat::discards) + n(Stat::flushes), n(Stat::crashes),
	       n(Stat::blackouts), n(Stat::cuts), n(Stat::failovers), n(Stat::joins), (unsigned long long)failed);
	printf("%llu passed, %llu failed\n", (unsigned long long)passed, (unsigned long long)failed);
	return failed != 0;
}

int run_scenarios(const Arguments &a)
{
	unsigned passed = 0, failed = 0;
	for (const Scenario &s : scenarios()) {
		if (a.scenario != "all" && a.scenario != s.name)
			continue;
		std::string wrong = run_scenario(s, a.options);
		printf("%s %s: %s\n", wrong.empty() ? "ok  " : "FAIL", s.name, wrong.empty() ? s.what : wrong.c_str());
		(wrong.empty() ? passed : failed)++;
	}
	if (!passed && !failed)
		usage("no such scenario:", a.scenario.c_str());
	printf("%u passed, %u failed\n", passed, failed);
	return failed != 0;
}

}    // namespace

}    // namespace lockstep::sim

int main(int argc, char **argv)
{
	using namespace lockstep::sim;
	Arguments a = parse(argc, argv);
	for (int s : {SIGSEGV, SIGBUS, SIGFPE, SIGABRT})
		std::signal(s, died);
	return a.scenario.empty() ? run_seeds(a) : run_scenarios(a);
}
