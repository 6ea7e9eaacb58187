# SPDX-License-Identifier: GPL-2.0-or-later
"""What scenarios ask for (fixtures), and what is checked for each without being asked: the consoles.

lab       an empty Lab of the scenario's own
cluster   3 hosts, installed and joined, without volumes; perhaps used by an earlier scenario that left them all well
"""
import signal, sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lablib import Cluster, Lab, LabError, close_all, exit_on_signals
from lablib.cluster import open_labs
from lablib.paths import PATIENCE

standing = None			# the cluster that the last scenario left, if it may be used again
SCENARIO_SECONDS = 900 * PATIENCE


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes long; runs in `make test-long`, not in `make test`')
    exit_on_signals(KeyboardInterrupt())


def pytest_sessionfinish(session):
    close_all()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """A scenario ends within its time, and fails if a kernel complained, however well it went otherwise."""
    seconds = getattr(item.function, 'seconds', SCENARIO_SECONDS)

    def too_long(number, frame):
        raise LabError(f'the scenario took more than {seconds} s')
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(int(seconds))
    outcome = yield
    signal.alarm(0)
    if not outcome.excinfo:
        for lab in open_labs:
            lab.look_for_leaks()
    for lab in open_labs:
        bad = lab.trouble()
        if outcome.excinfo or bad:
            folder = lab.keep(item.name)
            (folder / 'failure.txt').write_text(f'{outcome.excinfo}\n' + '\n'.join(bad) + '\n')
            lab.suspect = True
            for host in lab.hosts:		# CI keeps what is printed, not the folder
                for line in host.traced:
                    print(f'lab: {host.name}: {line}', file=sys.stderr)
        if bad and not outcome.excinfo:
            raise LabError('kernel trouble on the console (logs: ' + str(folder) + '):\n  ' + '\n  '.join(bad[:20]))


@pytest.fixture
def lab(request):
    with Lab(request.node.name) as made:
        yield made


def take_down():
    global standing
    if standing:
        standing.lab.close()
        standing = None


@pytest.fixture
def cluster(request):
    global standing
    if not standing:
        made = Lab('cluster')
        try:
            made.boot(3)
            standing = Cluster(made).form()
        except BaseException:
            made.keep(request.node.name)
            made.close()
            raise
    used = standing
    yield used
    well = not getattr(used.lab, 'suspect', False) and all(h.up for h in used.hosts) and not any(h.allowed for h in used.hosts)
    try:
        if well:
            used.delete_volumes()
    except LabError:
        well = False
    if not well:
        take_down()
