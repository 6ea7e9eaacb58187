# SPDX-License-Identifier: GPL-2.0-or-later
"""All daemons are killed in the middle of each change of the configuration, at several moments, while a volume is written to: the
change is completed or has never been, the writer notices nothing, and the same command given again finds it done or does it.
"""
import time

import pytest

from lablib import SyncLog, assert_same, wait
from test_life import ours, settled

MOMENTS_MS = (20, 150, 500)


def answering(cluster):
    for h in cluster.hosts:
        wait(h.daemon_answers, 60, f'lockstepd of {h} to answer')
    wait(lambda: cluster.status()['cluster']['quorum'], 60, 'quorum')


def interrupted(cluster, host, command, moment_ms):
    """Gives a command, and kills every daemon a moment later. Whatever the command says then, it ends."""
    p = host.start(f'lockstep {command}')
    time.sleep(moment_ms / 1000)		# not a condition: the moment is what is tried
    for h in cluster.hosts:
        h.run('kill -9 $(pidof lockstepd)', check=False)
    said = p.wait(150)
    answering(cluster)
    return said


def until_done(cluster, host, command, done, moment_ms):
    """The command is repeated, as an administrator would, until what it is for has come true by itself or by it."""
    said = [interrupted(cluster, host, command, moment_ms)]

    def there():
        try:
            if done():
                return True
        except StopIteration:
            pass
        r = host.run(f'lockstep {command}', check=False, timeout=150)
        assert r.status in (0, 3, 5, 10), r
        said.append(r)
        return bool(done())
    wait(there, 120, f'`lockstep {command}` to be done: {said}', every=1)


@pytest.mark.slow
def test_changes_with_daemons_killed(cluster):
    a, b, c = cluster.hosts
    device = cluster.create_volume('load', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device, pause_ms=20)
    log.wait_for_more(20)
    volumes = lambda: {v['name']: v for v in cluster.status()['volumes'] if v['phase'] != 'deleting'}
    hosts_of = lambda name: {r['host'] for r in volumes()[name]['replicas'] if r['wanted']}
    on = lambda name, hosts: name in volumes() and hosts_of(name) == set(hosts)
    for n, moment_ms in enumerate(MOMENTS_MS):
        name, size, grown = f'v{n}', 16 << 20, 24 << 20
        host = cluster.hosts[n % 3]
        steps = [
            (f'volume create {name} {size} --on alpha,beta', lambda: name in volumes() and volumes()[name]['health'] == 'ok'),
            (f'resize {name} {grown}', lambda: volumes()[name]['size_bytes'] == grown and not volumes()[name]['growth']),
            (f'volume replica add {name} gamma', lambda: on(name, ['alpha', 'beta', 'gamma'])),
            (f'volume replica remove {name} beta', lambda: on(name, ['alpha', 'gamma'])),
            (f'volume replica move {name} alpha beta', lambda: on(name, ['beta', 'gamma'])),
            (f'primary {name} gamma', lambda: volumes()[name]['primary'] == 'gamma'),
            (f'snapshot create {name} s{n}', lambda: f's{n}' in host.lockstep('snapshot list').out),
            (f'snapshot delete {name} s{n}', lambda: f's{n}' not in host.lockstep('snapshot list').out),
            (f'volume delete {name}', lambda: name not in [v['name'] for v in cluster.status()['volumes']]),
        ]
        for command, done in steps:
            until_done(cluster, host, command, done, moment_ms)
            if 'replica' in command:
                settled(cluster, name, hosts_of(name))
            log.wait_for_more(5, 60)
    log.stop()
    good, line = log.check()
    assert good, line
    wait(lambda: [len(ours(h)) for h in cluster.hosts] == [1, 1, 0], 60, 'no replica of a deleted volume to be left')
    assert_same(cluster, 'load')
