# SPDX-License-Identifier: GPL-2.0-or-later
"""The statefile of a pool's high availability: a shared volume; every host writes its own 4 KiB every 3 s and reads those of all
(statefile.c). A host is killed: the others must not miss a beat for 10 s, and logs must not fill up.
"""
import time

import pytest

from lablib import assert_same, wait

PERIOD_MS = 3000
MOST_GAP_MS = 10000
MOST_LINES = 24		# in one host's logs, for a host that goes and comes: it is offline, records change, it is online, resync begins and ends


class Statefile:
    def __init__(self, cluster, host, device):
        self.host = host
        self.process = host.start(f'exec /lab/statefile {device} {host.number} {len(cluster.hosts)} {PERIOD_MS}')

    def last(self):
        """Of this host's last round: number of beats, and the longest gap of each host in ms."""
        lines = [l for l in bytes(self.process.out).decode().split('\n')[:-1] if l.startswith('beat ')]
        numbers = [int(w) for w in lines[-1].split()[1:]] if lines else [0]
        return numbers[0], numbers[1:]


def wait_for_beats(files, count, timeout):
    """Each of the hosts has beaten so many times more, at the same time."""
    targets = {f: f.last()[0] + count for f in files}
    for f, target in targets.items():
        wait(lambda: not f.process.running or f.last()[0] >= target, timeout, f'{count} beats of {f.host}')
        assert f.process.running, f.process.wait(1)


class Ear:
    """What a host says from now on."""

    def __init__(self, host):
        self.logs = (host.vm.daemon_log, host.vm.console)
        self.passed = [len(log().splitlines()) for log in self.logs]

    def heard(self):
        return [line for log, n in zip(self.logs, self.passed) for line in log().splitlines()[n:]]


def beat_through_a_kill(cluster, before, between, after):
    """Beats before a host is killed, while it is away, and after it is back."""
    device = cluster.create_volume('ha', '16MiB', '--shared --redundancy 3')
    files = {h: Statefile(cluster, h, device) for h in cluster.hosts}
    wait_for_beats(files.values(), 2, 60)
    ears = {h: Ear(h) for h in cluster.hosts}
    wait_for_beats(files.values(), before, before * 6 + 30)
    for h, ear in ears.items():
        said = ear.heard()
        assert len(said) <= 2, f'{h} says of a statefile that is well:\n' + '\n'.join(said)
    killed = cluster[cluster.volume('ha')['primary']]		# the worst one
    survivors = [h for h in cluster.hosts if h is not killed]
    ears = {h: Ear(h) for h in survivors}
    killed.kill()
    wait_for_beats([files[h] for h in survivors], between, between * 6 + 60)
    for h in survivors:
        count, gaps = files[h].last()
        print(f'{h}: {count} beats, longest gaps {gaps} ms; {killed} was killed')
        assert all(g < MOST_GAP_MS for n, g in enumerate(gaps, 1) if n != killed.number), (h, gaps)
    killed.power_on()
    survivors[0].lockstep('wait-sync ha --timeout 90', timeout=105)
    wait(lambda: killed.run(f'test -b {device}', check=False).status == 0, 60, f'{device} on {killed}')
    files[killed] = Statefile(cluster, killed, device)
    wait_for_beats(files.values(), after, after * 6 + 60)
    for h in survivors:
        count, gaps = files[h].last()
        said = ears[h].heard()
        print(f'{h}: {count} beats, longest gaps {gaps} ms; since the kill it has said:', *said, sep='\n')
        assert all(g < MOST_GAP_MS for n, g in enumerate(gaps, 1) if n != killed.number), (h, gaps)
        assert len(said) <= MOST_LINES, f'{h} has said {len(said)} lines'
    for f in files.values():
        f.process.stop()
    wait(lambda: not cluster.volume('ha')['openers'], 30, 'the volume to be closed')
    cluster.any().lockstep('wait-sync ha --timeout 60', timeout=75)
    assert_same(cluster, 'ha')


def test_statefile_through_a_kill(cluster):
    beat_through_a_kill(cluster, 3, 6, 3)


@pytest.mark.slow
def test_statefile_ten_minutes(cluster):
    begun = time.monotonic()
    beat_through_a_kill(cluster, 60, 80, 60)
    assert time.monotonic() - begun > 580
