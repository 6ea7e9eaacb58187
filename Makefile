# SPDX-License-Identifier: GPL-2.0-or-later
#
#	make demo             shows the main job on three virtual hosts; installs what it needs first
#	make test             everything that is quick: unit tests, simulation, lab; installs what it needs first
#
#	make                  module, daemon, command line (scripts/setup has been run)
#	make module [KDIR=..] the module against the running kernel's headers, else the newest ones installed
#	make unit             unit tests
#	make sim [SEEDS=n] [FIRST=s] [SEED=s] [TRACE=1] [BREAK=rule]
#	make check, kernels: see kmod/check.mk
#	make sim-asan, sim-breaks, fuzz, coverage: see test/check.mk
#	make lab [TEST=name] [KERNEL=trixie|debug] [CPUS=2]  scenarios on virtual hosts
#	make bench [RESULTS=folder]  speed beside DRBD's and the bare disk's, on virtual hosts; installs what it needs first
#	make test-long        the same with many more seeds and all scenarios
#	make apart            compiles each C++ file for itself
#	make clean

B := build
KDIR ?= $(firstword $(wildcard /lib/modules/$(shell uname -r)/build) \
	$(lastword $(shell ls -d /lib/modules/*/build 2>/dev/null | sort -V)))
PYTHON := /usr/bin/python3
JOBS := $(shell nproc)

CXX := g++
CC := gcc
WARN := -Wall -Wextra -Werror
INCLUDE := -I. -Ictl -Ikmod -I/usr/include/libnl3
OPT := -O2 -g
CFLAGS := -std=gnu11 $(OPT) $(WARN) $(INCLUDE) -MMD -MP
CXXFLAGS := -std=c++20 $(OPT) $(WARN) $(INCLUDE) -MMD -MP -pthread
LIBS := -lraft -luv -lnl-genl-3 -lnl-3 -lyaml-cpp -lfmt -lcpp-httplib -lssl -lcrypto -pthread

core_c := $(wildcard kmod/core/*.c)
mains := ctl/lockstepd/main.cc ctl/lockstep/main.cc
ctl_cc := $(filter-out $(mains),$(wildcard ctl/lockstepd/*/*.cc ctl/lib/*.cc))
ctl_c := $(wildcard ctl/lockstepd/*/*.c)
cli_cc := $(filter-out $(mains),$(wildcard ctl/lockstep/*.cc))
sim_cc := $(wildcard test/sim/*.cc)
units := $(notdir $(wildcard test/unit/*))

# Most of the time to compile a C++ file goes into the headers and templates that it shares with its neighbours, so each
# folder is compiled at once: four times faster. `make apart` compiles each file for itself: what includes too little fails.
folders = $(sort $(patsubst %/,%,$(dir $(1))))

ctl_o := $(patsubst %,$B/o/%.o,$(call folders,$(ctl_cc))) $(ctl_c:%.c=$B/o/%.o) $B/o/kmod/core/format.o
cli_o := $B/o/ctl/lockstep.o
core_o := $(core_c:%.c=$B/o/%.o)
sim_o := $(sim_cc:%.cc=$B/sim-o/%.o) $(core_c:%.c=$B/sim-o/%.o)

.PHONY: all module setup demo test test-long unit sim sim-long lab bench clean units apart FORCE
all: module $B/lockstepd $B/lockstep

# ---- the module ----

module:
	@test -n "$(KDIR)" || { echo "make: no kernel headers found: run scripts/setup, or name them with KDIR=" >&2; exit 1; }
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules

# ---- daemon and command line ----

$B/libctl.a: $(ctl_o)
	@rm -f $@
	ar rcs $@ $^

$B/libcli.a: $(cli_o)
	@rm -f $@
	ar rcs $@ $^

$B/lockstepd: $B/o/ctl/lockstepd/main.o $B/libctl.a
	$(CXX) -o $@ $^ $(LIBS)

$B/lockstep: $B/o/ctl/lockstep/main.o $B/libcli.a $B/libctl.a
	$(CXX) -o $@ $^ $(LIBS)

# subobject-linkage warns of unnamed namespaces in what is included, which in a folder compiled at once is every file.
# -O1 -g1: daemon and command line wait for others most of the time, and who builds them waits for the compiler
CTL_FLAGS = $(CXXFLAGS) -O1 -g1

$B/o/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CTL_FLAGS) -c -o $@ $<

# a folder's files in one; the list is made anew when it has changed
define folder_rule
$B/whole/$(1).cc: FORCE
	@mkdir -p $$(@D)
	@printf '#include "%s"\n' $(filter-out $(mains),$(wildcard $(1)/*.cc)) >$$@.new
	@cmp -s $$@.new $$@ || mv $$@.new $$@

endef
$(foreach f,$(call folders,$(ctl_cc) $(cli_cc)) $(units:%=test/unit/%),$(eval $(call folder_rule,$(f))))

apart: $(patsubst %.cc,$B/apart/%.ok,$(ctl_cc) $(cli_cc) $(wildcard $(units:%=test/unit/%/*.cc)))
	@echo "$(words $^) passed, 0 failed"

$B/o/%.o: $B/whole/%.cc
	@mkdir -p $(@D)
	$(CXX) $(CTL_FLAGS) -Wno-subobject-linkage -c -o $@ $<

# tests are compiled without optimisation: building them takes longer than running them
$B/test-o/%.o: $B/whole/%.cc
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -O0 -g1 -Wno-subobject-linkage -c -o $@ $<

$B/apart/%.ok: %.cc
	@mkdir -p $(@D)
	@$(CXX) $(CTL_FLAGS) -fsyntax-only -MF $@.d -MT $@ $<
	@touch $@

$B/o/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<

# ---- tests ----

define unit_rule
$B/unit-$(1): $B/test-o/test/unit/$(1).o $B/libcli.a $B/libctl.a $B/libcore.a
	$(CXX) -o $$@ $$^ -lCatch2Main -lCatch2 $(LIBS)
endef
$(foreach u,$(units),$(eval $(call unit_rule,$(u))))

# The units' figures ("[bench]"), as fast as the daemon: the unit tests themselves are compiled without optimisation
$B/bench-%: $B/o/test/unit/%.o $B/libcli.a $B/libctl.a $B/libcore.a
	$(CXX) -o $@ $^ -lCatch2Main -lCatch2 $(LIBS)

# The daemon's API server with hosts that are played, as fast as the daemon's own: for test/xapi/bench.py
$B/xapi-bench-server: $B/o/test/unit/cli.o $B/libcli.a $B/libctl.a $B/libcore.a
	$(CXX) -o $@ $^ -lCatch2Main -lCatch2 $(LIBS)

$B/libcore.a: $(core_o)
	@rm -f $@
	ar rcs $@ $^

$B/sim: $(sim_o)
	$(CXX) -o $@ $^ -pthread

$B/sim-o/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -DLKS_SIM -c -o $@ $<

$B/sim-o/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DLKS_SIM -c -o $@ $<

units: $(units:%=$B/unit-%)

unit: units
	test/run unit $(units)

sim: $B/sim
	$B/sim $(if $(SEED),--seed $(SEED),--first $(or $(FIRST),1) --seeds $(or $(SEEDS),200)) $(BREAK:%=--break %) $(if $(TRACE),--trace)

sim-long: $B/sim
	test/run sim-long

lab: all
	$(if $(KERNEL),$(if $(filter debug,$(KERNEL)),scripts/debug-kernel,scripts/kernels --image $(KERNEL)))
	LAB_KERNEL=$(KERNEL) LAB_CPUS=$(CPUS) $(PYTHON) -m pytest test/lab $(if $(TEST),-k $(TEST)) -q -rA

setup:
	scripts/setup

demo:
	scripts/setup --demo
	$(MAKE) -j$(JOBS) all
	$(PYTHON) test/lab/demo.py

# on two idle cores about half an hour; RESULTS=folder. More choices: see test/bench/disk.py
bench:
	scripts/setup --bench
	$(MAKE) -j$(JOBS) all
	$(PYTHON) test/bench/disk.py $(if $(RESULTS),--results $(RESULTS))

test: setup
	$(MAKE) -j$(JOBS) all units $(check_programs)
	test/run all $(units)

test-long: setup
	$(MAKE) -j$(JOBS) all units $(check_programs)
	test/run long $(units)

clean:
	rm -rf $B
	@test -z "$(KDIR)" || $(MAKE) -s -C $(KDIR) M=$(CURDIR) clean

include test/check.mk
include kmod/check.mk

-include $(shell find $B/o $B/apart $B/test-o $B/sim-o -name '*.d' 2>/dev/null)
