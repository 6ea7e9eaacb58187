# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a host's serial console for what a kernel only says when something is wrong."""
import re

TROUBLE = re.compile(r"""
    \bBUG:\ | \bkernel\ BUG\ at | \bWARNING:\ | ^\[[^]]*\]\s+Oops | \bOops:\  | Kernel\ panic | general\ protection\ fault
  | unable\ to\ handle | blocked\ for\ more\ than | hung\ task | hung_task: | soft\ lockup | hard\ LOCKUP
  | rcu.*\bstall | detected\ stalls | self-detected\ stall | RCU\ used\ illegally | possible\ (circular|recursive|irq)
  | suspicious\ RCU | inconsistent\ lock\ state | INFO:\ trying\ to\ register\ non-static | sleeping\ function\ called
  | scheduling\ while\ atomic | refcount_t: | list_(add|del)\ corruption | slab.*corrupt | KASAN: | UBSAN: | KFENCE:
  | Bad\ page\ state | page\ allocation\ failure | Out\ of\ memory: | lab:\ boot\ failed | segfault\ at | traps:\ .*trap
  | suspected\ memory\ leaks
  | EXT4-fs\ (error|warning) | Buffer\ I/O\ error | lab:\ the\ agent\ ended
""", re.VERBOSE | re.MULTILINE)

# Lines that match above and are no fault of what is tested; each with its reason.
HARMLESS = [
    # TCG gives a guest no way to tell which speculation faults the CPU has.
    re.compile(r'Spectre|MDS CPU bug|TAA CPU bug|MMIO Stale Data|SRBDS|Retbleed|RETBleed'),
]


def trouble(text, allowed=()):
    """Lines of a console log that fail a scenario. `allowed`: regular expressions the scenario itself expects."""
    return [line for line, bad in judged(text, allowed) if bad]


def excerpt(text, allowed=(), lines=70):
    """What the console says from the first such line on, where the kernel tells what every processor was at: [] if there is none."""
    every = judged(text, allowed)
    first = next((i for i, (_, bad) in enumerate(every) if bad), len(every))
    return [line for line, _ in every[first:first + lines]]


def judged(text, allowed):
    expected = HARMLESS + [re.compile(a) for a in allowed]
    return [(line.strip(), bool(TROUBLE.search(line)) and not any(e.search(line) for e in expected)) for line in text.splitlines()]
