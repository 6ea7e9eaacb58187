# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the lab finds and puts things. Everything it makes is under build/lab/ and may be deleted at any time."""
import os
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
LAB = TOP / 'test' / 'lab'
GUEST = LAB / 'guest'
BUILD = TOP / 'build' / 'lab'
RUNS = BUILD / 'run'
FAILED = BUILD / 'failed'
# A kernel that checks itself is several times slower: whatever a scenario waits for may take so much longer.
DEBUG_KERNEL = os.environ.get('LAB_KERNEL') == 'debug'
PATIENCE = 5 if DEBUG_KERNEL else 1


class LabError(Exception):
    """The lab itself, or what it runs, did not do what was asked."""


def start_time(pid):
    """Start time of a process in clock ticks since boot, or None: with the pid it names a process for good."""
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rsplit(')', 1)[1].split()[19]


def process_tag():
    """Names this very process; run folders and network namespaces carry it, so leftovers can be told."""
    return f'{os.getpid()}-{start_time(os.getpid())}'


def tag_is_alive(tag):
    pid, _, started = tag.partition('-')
    return pid.isdigit() and start_time(pid) == started
