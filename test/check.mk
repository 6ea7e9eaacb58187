# SPDX-License-Identifier: GPL-2.0-or-later
#
# Checks of the replication core beyond its unit tests (included by the Makefile).
#
#	make sim-asan [SEEDS=n] [FIRST=s]  the simulation with ASan and UBSan, on JOBS processes
#	make sim-breaks [SEEDS=n]          each rule switched off once, for n (3000) seeds at most; a table of the seeds needed
#	make fuzz [FUZZ_SECONDS=n]         hostile bytes from peers and disks, n (30) seconds for each target; needs clang

ASAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

.PHONY: sim-asan sim-breaks fuzz

# ---- simulation with sanitizers ----

sim_asan_o := $(sim_cc:%.cc=$B/sim-asan-o/%.o) $(core_c:%.c=$B/sim-asan-o/%.o)

$B/sim-asan: $(sim_asan_o)
	$(CXX) $(ASAN) -o $@ $^ -pthread

$B/sim-asan-o/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -O1 $(ASAN) -DLKS_SIM -c -o $@ $<

$B/sim-asan-o/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -O1 $(ASAN) -DLKS_SIM -c -o $@ $<

sim-asan: $B/sim-asan
	$B/sim-asan --scenario all
	test/sim/run-many $B/sim-asan $(JOBS) $(or $(FIRST),1) $(or $(SEEDS),200)

sim-breaks: $B/sim
	test/sim/breaks $B/sim $(or $(SEEDS),3000)

# ---- fuzzing ----

CLANG := clang
FUZZ_SECONDS := 30
fuzz_targets := frames attach headers
FUZZ := $(ASAN) -fsanitize=fuzzer-no-link -fsanitize-coverage-ignorelist=test/fuzz/uncovered
fuzz_core_o := $(core_c:%.c=$B/fuzz-o/%.o)

fuzz: $(fuzz_targets:%=$B/fuzz-%) $B/fuzz-seeds
	test/fuzz/run $B $(FUZZ_SECONDS) $(JOBS) $(fuzz_targets)

$B/fuzz-seeds: $B/fuzz-o/test/fuzz/seeds.o $(fuzz_core_o)
	$(CLANG)++ $(ASAN) -o $@ $^

$B/fuzz-%: $B/fuzz-o/test/fuzz/%.o $(fuzz_core_o)
	$(CLANG)++ $(ASAN) -fsanitize=fuzzer -o $@ $^

$B/fuzz-o/%.o: %.cc
	@mkdir -p $(@D)
	$(CLANG)++ $(CXXFLAGS) -O1 $(FUZZ) -c -o $@ $<

$B/fuzz-o/%.o: %.c
	@mkdir -p $(@D)
	$(CLANG) $(CFLAGS) -O1 $(FUZZ) -c -o $@ $<

-include $(shell find $B/sim-asan-o $B/fuzz-o -name '*.d' 2>/dev/null)
