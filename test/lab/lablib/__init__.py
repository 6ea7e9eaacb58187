# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab: virtual hosts with a stock kernel, to run scenarios on. README.md beside it says how to use it."""
from .agent import CommandFailed, CommandTimeout, HostDied
from .cluster import GIB, Cluster, Host, Lab, close_all, exit_on_signals, together, wait
from .console import trouble
from .load import SyncLog, assert_same, differing_chunks, digests, last_number
from .paths import BUILD, FAILED, LAB, TOP, LabError
