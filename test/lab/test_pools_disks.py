# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks come into pools and leave them while volumes are written to."""
import pytest

from lablib import Cluster, SyncLog, assert_same, wait
from test_failover import healthy

MIB = 1 << 20


def disks_of(host, name):
    """{path: its line of the list} of the disks of the host `name`, as `host` tells."""
    return {d['disk']: d for d in host.lockstep('disk list --json')['disks'] if d['host'] == name}


def disks(host):
    return disks_of(host, host.name)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['thin', 'thick'])
def test_pools_disks(lab, kind):
    """A disk is added, and one is replaced while its daemon is killed by and by: the writers see nothing of it, the pool is larger afterwards,
    and nothing is left on the disk that went."""
    a, b, c = lab.boot(3)
    first, spare, other = (f'/dev/mapper/disk{n}' for n in range(3))
    for host in (a, b, c):
        for n in range(3):
            host.run(f'dmsetup create disk{n} --table "0 {1 << 21} linear /dev/vdb {(n << 21) + 2048}"')
    cluster = Cluster(lab).form(f'--disks {first}' + (' --thin' if kind == 'thin' else ''))
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(c, device)
    log.wait_for_more(50)
    size = lambda: next(p for p in cluster.status(a)['pools'] if p['host'] == 'alpha')['size_bytes']
    before = size()

    # What is not to be taken is refused, and nothing changes.
    used = a.run(f'mkfs.ext4 -q {other} && lockstep pool add-disk default alpha {other}', check=False)
    assert used.status and 'cannot add' in used.err, used
    assert list(disks(a)) == [first]
    a.run(f'wipefs -q -a {other}')
    alone = a.run(f'lockstep pool remove-disk default alpha {first}', check=False)
    assert alone.status == 5 and 'only disk' in alone.err, alone

    # One more; then the first one goes. The daemon dies at some moments of that.
    b.lockstep(f'pool add-disk default alpha {spare}')
    wait(lambda: size() > before + 700 * MIB, 120, 'the pool to have grown')
    assert float(a.out(f'lvm pvs --noheadings --units m --nosuffix -o pv_mda_size {spare}')) > 7, "room for LVM's record of thousands of volumes"
    log.wait_for_more(50)
    grown = size()
    a.lockstep(f'disk replace alpha {first} {other} --no-wait')
    assert disks(a).get(first, {'leaving': True})['leaving']
    for kill in range(3):
        a.daemon('kill')
        log.wait_for_more(20)
        wait(lambda: disks(a), 60, 'the daemon to answer')
    wait(lambda: first not in disks(a), 240, 'the disk to be gone')
    assert set(disks(a)) == {spare, other}
    again = a.lockstep(f'disk replace alpha {first} {other}', check=False)
    assert again.status == 3
    assert a.run(f'lvm pvs {first}', check=False).status != 0
    log.wait_for_more(50)
    wait(lambda: size() > grown - 64 * MIB, 120, 'the pool to have its size')

    # The disk that went is no part of anything: what is written there harms nobody.
    a.run(f'dd if=/dev/urandom of={first} bs=1M count=1024 oflag=direct conv=notrunc 2>/dev/null', timeout=200)
    healthy(a, 'v1')
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(cluster, 'v1', 8 * MIB if kind == 'thick' else None)


def spare(host, name, mib=1024):
    """A disk in the host's memory, of which only what is written takes room."""
    host.run(f'modprobe loop; truncate -s {mib}M /run/{name}.img')
    return host.out(f'losetup --find --show /run/{name}.img')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['thin, one disk', 'thick, two disks'])
def test_pools_dead_disk(lab, kind):
    """A disk under the primary's replica vanishes for good while the volume is written to, and another is put in its place with one command,
    although the daemon is killed meanwhile: writer and snapshot lose nothing, and what was the last copy had to be given up first."""
    hosts = a, b, c = lab.boot(3)
    thin = kind.startswith('thin')
    disks = '/dev/vdb' if thin else '/dev/vdb ' + [spare(h, 'second', 512) for h in hosts][0]
    cluster = Cluster(lab).form(f'--disks {disks}' + (' --thin' if thin else ''))
    device = cluster.create_volume('v1', '96MiB', '--on alpha,beta')
    cluster.create_volume('only', '8MiB', '--on alpha')
    b.lockstep('snapshot create v1 before', timeout=150)
    log = SyncLog(c, device)
    log.wait_for_more(50)
    a.lockstep('primary v1 alpha')
    wait(lambda: cluster.volume('v1', c)['primary'] == 'alpha', 30, 'alpha to serve')
    known = lambda: next(p for p in cluster.status(c)['pools'] if p['host'] == 'alpha')['disks']
    wait(lambda: set(known().values()) == set(disks.split()), 90, 'the disks to be known')

    a.allow('Buffer I/O error')
    a.run('echo 1 > $(readlink -f /sys/block/vdb/device/..)/remove')
    log.wait_for_more(50)
    new = spare(a, 'new')
    wait(lambda: disks_of(c, 'alpha')['/dev/vdb']['missing'], 30, 'the disk to be missed')

    # The only copy of a volume is not given up, nor anything else then.
    last = c.lockstep(f'disk replace alpha /dev/vdb {new}', check=False)
    assert last.status == 5 and 'volume only: its replica on host alpha' in last.err, last
    assert 'alpha' in {r['host'] for r in cluster.volume('v1', c)['replicas']}
    c.lockstep('volume delete only', timeout=90, check=False)
    said = c.lockstep(f'disk replace alpha /dev/vdb {new} --no-wait')
    assert 'with it 1 replica and 1 copy of a snapshot' in said.out, said
    a.daemon('kill')
    log.wait_for_more(50)
    wait(lambda: {new} <= (now := set(disks_of(c, 'alpha'))) and '/dev/vdb' not in now, 120, 'the new disk to have taken the dead one\'s place')

    # Everything is there twice again, elsewhere; and alpha takes replicas, of which nothing of before is left.
    copies = lambda: next(s for s in c.lockstep('snapshot list --json') if s['name'] == 'before')['hosts']
    healthy(c, 'v1')
    wait(lambda: set(copies()) == {'beta', 'gamma'}, 120, 'the snapshot to be copied')
    wait(lambda: not a.run('lvm lvs --noheadings -o lv_name lockstep_group | grep lockstep', check=False).out, 30, 'alpha to hold nothing')
    wait(lambda: not any(v['name'] == 'only' for v in cluster.status(c)['volumes']), 30, 'the deleted volume to be gone')
    a.lockstep('volume replica move v1 gamma alpha', timeout=150)
    healthy(c, 'v1')
    wait(lambda: set(copies()) == {'alpha', 'beta'}, 120, 'the snapshot to follow')
    log.wait_for_more(50)
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(cluster, 'v1', None if thin else 4 << 20)
