# SPDX-License-Identifier: GPL-2.0-or-later
#
# Checks of the replication core beyond its unit tests (included by the Makefile).
#
#	make sim-asan [SEEDS=n] [FIRST=s]  the simulation with ASan and UBSan, on JOBS processes
#	make sim-breaks [SEEDS=n]          each rule switched off once, for n (3000) seeds at most; a table of the seeds needed
#	make fuzz [FUZZ_SECONDS=n]         hostile bytes from peers and disks, n (30) seconds for each target; needs clang
#	make coverage [SEEDS=n]            lines of kmod/core that simulation (n seeds, 1000) and unit tests reach, and those they do not

ASAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

.PHONY: sim-asan sim-breaks fuzz coverage

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

check_programs := $B/sim $B/sim-asan $(fuzz_targets:%=$B/fuzz-%) $B/fuzz-seeds

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

# ---- coverage ----

# The core as the product has it: without the switches of the rules, which only a broken one would reach.
cov_core_o := $(core_c:%.c=$B/cov-o/%.o)
cov_unit_o := $B/test-o/test/unit/core.o
COV_SEEDS := $(or $(SEEDS),1000)

coverage: $B/cov-sim $B/cov-unit
	find $B/cov-o -name '*.gcda' -delete
	$B/cov-unit | tail -2
	$B/cov-sim --scenario all | tail -1
	$B/cov-sim --first 1 --seeds $(COV_SEEDS) | tail -1
	$B/cov-sim --first 1 --seeds $(COV_SEEDS) --alloc-failures 5 | tail -1
	$B/cov-sim --first 1 --seeds $(COV_SEEDS) --io-errors 2 | tail -1
	test/coverage $B/cov-o $(core_c)

$B/cov-sim: $(sim_cc:%.cc=$B/sim-o/%.o) $(cov_core_o)
	$(CXX) --coverage -o $@ $^ -pthread

$B/cov-unit: $(cov_unit_o) $(cov_core_o)
	$(CXX) --coverage -o $@ $^ -lCatch2Main -lCatch2 -pthread

$B/cov-o/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -O0 --coverage -c -o $@ $<

-include $(shell find $B/sim-asan-o $B/fuzz-o $B/cov-o -name '*.d' 2>/dev/null)
