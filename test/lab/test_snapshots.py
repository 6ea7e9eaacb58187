# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots follow the replicas: no host that saw one being taken is needed for good."""
import pytest

from lablib import SyncLog, wait

MIB = 1 << 20
LVM_LOCK = 'flock /run/lock/lvm/V_lockstep_group cat'    # LVM's own: as long as this runs, LVM changes nothing


def copies(host, volume):
    """{name: hosts} of the volume's snapshots, or nothing while copies come or go."""
    listed = [s for s in host.lockstep('snapshot list --json') if s['volume'] == volume]
    return {} if any(s['arriving'] or s['going'] for s in listed) else {s['name']: s['hosts'] for s in listed}


def ours(host):
    lines = host.out('lvs --noheadings -o lv_name,lv_tags').splitlines()
    return [line.split()[0] for line in lines if 'lockstep.snapshot' in line]


def changed(host, *names):
    return host.lockstep(f'volume diff s {" ".join(names)} --json')['changed_blocks']


def phase(host, name):
    return [s['phase'] for s in host.lockstep('snapshot list --json') if s['name'] == name]


def test_snapshots_follow_their_volume(cluster):
    """Two snapshots are taken under load. The first has what was written after alpha had prepared its copy and before beta had, on both hosts.
    Then both replicas move away, one after the other, to hosts that never saw them taken, whose daemons die meanwhile. The snapshots are on
    the new hosts alone in the end, and hold what they held, block for block; only what differs was written there."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('s', '32MiB', '--on alpha,beta')
    log = SyncLog(a, device, pause_ms=50)
    log.wait_for_more(50)
    lock = b.start(LVM_LOCK)
    taking = c.start('lockstep snapshot create s one')
    wait(lambda: phase(c, 'one') == ['preparing'] and ours(a), 60, 'alpha to have prepared its copy, and beta not')
    log.wait_for_more(50)    # nobody waits meanwhile
    acked = log.acked
    lock.close_input()
    lock.wait()
    assert taking.wait(150).status == 0
    # As if alpha's daemon had died when it had suspended the replica: the next one lets it go on.
    replica = f"lockstep_group-lockstep.{cluster.volume('s')['vid']}"
    a.run(f'mkdir -p /run/lockstep-dm/suspended && touch /run/lockstep-dm/suspended/{replica} && dmsetup suspend --noflush --nolockfs {replica}')
    a.daemon('kill')
    log.wait_for_more(20)
    assert a.out('ls /run/lockstep-dm/suspended') == ''
    c.lockstep('snapshot create s two', timeout=150)
    c.lockstep('snapshot restore s one then', timeout=150)
    c.lockstep('primary then alpha')
    wait(lambda: cluster.volume('then')['primary'] == 'alpha', 60, 'alpha to serve it')
    assert ' 0 differed' in c.lockstep('verify then', timeout=180).out    # each host has it from its own copy
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


@pytest.mark.slow
def test_snapshots_wait_for_no_dead_host(cluster):
    """A host is lost while it takes its copy: the snapshot is given up, and whoever asked hears so, though that host cannot remove what
    it may have. The next one is taken without it. Back again, it has the next one, and nothing of the one given up."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('g', '32MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    log.stop()
    b.start(LVM_LOCK)    # until the host dies
    taking = c.start('lockstep snapshot create g lost')
    wait(lambda: phase(c, 'lost') == ['preparing'] and ours(a), 30, 'alpha to have prepared its copy, and beta not')
    b.kill()
    refused = taking.wait(90)
    assert refused.status and 'snapshot lost of volume g' in refused.err, refused
    wait(lambda: ours(a) == [], 30, 'alpha to have removed its copy')
    c.lockstep('snapshot create g next', timeout=90)
    b.power_on()
    wait(lambda: copies(c, 'g') == {'next': ['alpha', 'beta']}, 240, 'beta to have the next one, and nothing else')
    assert len(ours(a)) == len(ours(b)) == 1
    c.lockstep('snapshot delete g next', timeout=90)
