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
#	make lab [TEST=name] [KERNEL=trixie|debug]  scenarios on virtual hosts
#	make test-long        the same with many more seeds and all scenarios
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
ctl_cc := $(filter-out ctl/lockstepd/main.cc,$(wildcard ctl/lockstepd/*/*.cc ctl/lib/*.cc))
ctl_c := $(wildcard ctl/lockstepd/*/*.c)
cli_cc := $(wildcard ctl/lockstep/*.cc)
cli_main := ctl/lockstep/main.cc
sim_cc := $(wildcard test/sim/*.cc)
units := $(notdir $(wildcard test/unit/*))

ctl_o := $(ctl_cc:%.cc=$B/o/%.o) $(ctl_c:%.c=$B/o/%.o) $B/o/kmod/core/format.o
cli_o := $(cli_cc:%.cc=$B/o/%.o)
core_o := $(core_c:%.c=$B/o/%.o)
sim_o := $(sim_cc:%.cc=$B/sim-o/%.o) $(core_c:%.c=$B/sim-o/%.o)

.PHONY: all module setup demo test test-long unit sim sim-long lab clean units
all: module $B/lockstepd $B/lockstep

# ---- the module ----

module:
	@test -n "$(KDIR)" || { echo "make: no kernel headers found: run scripts/setup, or name them with KDIR=" >&2; exit 1; }
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules

# ---- daemon and command line ----

$B/libctl.a: $(ctl_o)
	@rm -f $@
	ar rcs $@ $^

$B/libcli.a: $(filter-out $B/o/$(cli_main:.cc=.o),$(cli_o))
	@rm -f $@
	ar rcs $@ $^

$B/lockstepd: $B/o/ctl/lockstepd/main.o $B/libctl.a
	$(CXX) -o $@ $^ $(LIBS)

$B/lockstep: $B/o/$(cli_main:.cc=.o) $B/libcli.a $B/libctl.a
	$(CXX) -o $@ $^ $(LIBS)

# -O1 -g1: daemon and command line wait for others most of the time, and who builds them waits for the compiler
$B/o/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -O1 -g1 -c -o $@ $<

$B/o/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<

# ---- tests ----

define unit_rule
$B/unit-$(1): $$(patsubst %.cc,$B/test-o/%.o,$$(wildcard test/unit/$(1)/*.cc)) $B/libcli.a $B/libctl.a $B/libcore.a
	$(CXX) -o $$@ $$^ -lCatch2Main -lCatch2 $(LIBS)
endef
$(foreach u,$(units),$(eval $(call unit_rule,$(u))))

# tests are compiled without optimisation: building them takes longer than running them
$B/test-o/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -O0 -g1 -c -o $@ $<

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
	LAB_KERNEL=$(KERNEL) $(PYTHON) -m pytest test/lab $(if $(TEST),-k $(TEST)) -q -rA

setup:
	scripts/setup

demo:
	scripts/setup --demo
	$(MAKE) -j$(JOBS) all
	$(PYTHON) test/lab/demo.py

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

-include $(shell find $B/o $B/test-o $B/sim-o -name '*.d' 2>/dev/null)
