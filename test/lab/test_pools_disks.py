# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks come into pools and leave them while volumes are written to."""
import pytest

from lablib import Cluster, SyncLog, assert_same, wait
from test_failover import healthy

MIB = 1 << 20


def disks(host):
    """{path: its line of the list} of that host's disks, as it says itself."""
    listed = host.lockstep('disk list --json')
    return {d['disk']: d for d in listed['disks'] if d['host'] == host.name}


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
