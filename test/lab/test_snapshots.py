# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots follow the replicas: no host that saw one being taken is needed for good."""
from lablib import SyncLog, wait

MIB = 1 << 20


def copies(host, volume):
    """{name: hosts} of the volume's snapshots, or nothing while copies come or go."""
    listed = [s for s in host.lockstep('snapshot list --json') if s['volume'] == volume]
    return {} if any(s['arriving'] or s['going'] for s in listed) else {s['name']: s['hosts'] for s in listed}


def ours(host):
    lines = host.out('lvs --noheadings -o lv_name,lv_tags').splitlines()
    return [line.split()[0] for line in lines if 'lockstep.snapshot' in line]


def changed(host, *names):
    return host.lockstep(f'volume diff s {" ".join(names)} --json')['changed_blocks']


def test_snapshots_follow_their_volume(cluster):
    """Two snapshots are taken under load; then both replicas move away, one after the other, to hosts that never saw them taken, whose daemons
    die meanwhile. The snapshots are on the new hosts alone in the end, and hold what they held, block for block; only what differs was written
    there."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('s', '32MiB', '--on alpha,beta')
    log = SyncLog(a, device, pause_ms=50)
    log.wait_for_more(50)
    acked = log.acked
    c.lockstep('snapshot create s one', timeout=150)
    log.wait_for_more(20)
    c.lockstep('snapshot create s two', timeout=150)
    c.lockstep('snapshot restore s one then', timeout=150)
    digest = c.out(f'/lab/digest /dev/lockstep/then {32 * MIB}', timeout=120)
    c.lockstep('volume delete then', timeout=90)
    log.stop()
    differ = changed(a, 'one', 'two')

    c.lockstep('volume replica move s beta gamma', timeout=120)
    wait(lambda: any(s['arriving'] for s in a.lockstep('snapshot list --json')), 120, 'a copy to be on its way', every=0.1)
    c.daemon('kill')
    wait(lambda: copies(a, 's') == {'one': ['alpha', 'gamma'], 'two': ['alpha', 'gamma']}, 240, 'the snapshots to be on alpha and gamma')
    assert ours(b) == []
    a.lockstep('volume replica move s alpha beta', timeout=120)
    wait(lambda: any(s['arriving'] for s in a.lockstep('snapshot list --json')), 120, 'a copy to be on its way', every=0.1)
    c.daemon('kill')
    wait(lambda: copies(a, 's') == {'one': ['beta', 'gamma'], 'two': ['beta', 'gamma']}, 240, 'the snapshots to be on beta and gamma')
    assert ours(a) == []

    # As thin as where they were taken: a copy as a whole would name all that was ever written.
    assert changed(a, 'one', 'two') == differ
    a.lockstep('snapshot restore s one back', timeout=150)
    assert a.out(f'/lab/digest /dev/lockstep/back {32 * MIB}', timeout=120) == digest
    done = b.run(f'/lab/fsynclog check /dev/lockstep/back {log.blocks} {log.seed} {acked}', check=False, timeout=120)
    assert done.status == 0, done
    for name in ('one', 'two'):
        a.lockstep(f'snapshot delete s {name}', timeout=90)
    assert ours(b) == ours(c) == []
