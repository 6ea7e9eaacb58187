# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for where replicas may be, and what a disk that has failed means for clones and reverts, with a thick and a thin pool in one volume
group."""
import pytest

from lablib import Cluster, assert_same, wait
from test_failover import healthy
from test_pools_disks import disks_of, spare

MIB = 1 << 20


def where(cluster, name, host=None):
    return {r['host'] for r in cluster.volume(name, host)['replicas']}


def closed(cluster, host):
    wait(lambda: not any(v['openers'] for v in cluster.status(host)['volumes']), 30, 'the volumes to be closed')


@pytest.mark.slow
def test_pools_rules(cluster):
    """Replicas are apart, together, elsewhere or pinned, as volumes say: when they are made, moved and when a host is emptied in use."""
    a, b, c = cluster.hosts
    cluster.delete_volumes()
    for host, rack in ((a, 'r1'), (b, 'r1'), (c, 'r2')):
        a.lockstep(f'host label {host.name} rack={rack}')
    for name, rules, at in (('apart', '--different rack --on beta,gamma', 'beta gamma'), ('together', '--same rack', 'alpha beta'),
                            ('elsewhere', '--avoid alpha', 'beta gamma')):
        cluster.create_volume(name, '16MiB', rules)
        assert where(cluster, name) == set(at.split()), name
    refused = a.lockstep('volume create none 16MiB --redundancy 3 --different rack', check=False)
    assert refused.status == 5 and 'its rack is r1, as that of' in refused.err, refused
    refused = a.lockstep('volume replica move together beta gamma', check=False)
    assert refused.status == 5 and 'gamma' in refused.err and 'rack' in refused.err, refused
    a.lockstep('volume replica pin elsewhere beta')
    refused = a.lockstep('host evacuate beta', check=False)
    assert refused.status == 5 and 'replica of volume elsewhere is pinned there' in refused.err, refused
    a.lockstep('volume replica unpin elsewhere beta')

    # Beta is emptied while it is written to: what has to be in another rack goes to alpha, what may go nowhere stays and says why.
    writers = [c.start(f'fio --name={n} --filename=/dev/lockstep/{n} --rw=randwrite --bs=4k --direct=1 --rate_iops=20 --time_based --runtime=600')
               for n in ('apart', 'elsewhere')]
    wait(lambda: all(cluster.volume(n)['openers'] == ['gamma'] for n in ('apart', 'elsewhere')), 60, 'the writers')
    a.lockstep('host evacuate beta --no-wait')
    wait(lambda: where(cluster, 'apart') == {'alpha', 'gamma'}, 240, 'the replica of apart to have moved')
    assert where(cluster, 'together') == {'alpha', 'beta'} and 'beta' in where(cluster, 'elsewhere')
    said = a.lockstep('why elsewhere').out
    assert 'alpha' in said and 'avoided' in said, said
    # With the rule gone it goes on by itself.
    a.lockstep('volume rules elsewhere --avoid none')
    wait(lambda: where(cluster, 'elsewhere') == {'alpha', 'gamma'}, 240, 'the replica of elsewhere to have moved')
    a.lockstep('host restore beta')
    for writer in writers:
        writer.stop()
    closed(cluster, a)
    for name in ('apart', 'elsewhere'):
        healthy(a, name)
        assert_same(cluster, name)
    cluster.delete_volumes()
    for host in cluster.hosts:
        a.lockstep(f'host label {host.name} rack=')


@pytest.mark.slow
def test_pools_revert_without_a_disk(lab):
    """A clone in a thick pool is written at once and is what its volume was. Then a disk dies under a replica of a thick and of a thin volume:
    the thin one is reverted without it and mended elsewhere, the thick one when its disk is replaced, and no copy of a snapshot is lost."""
    a, b, c = lab.boot(3)
    cluster = Cluster(lab).form('--disks /dev/vdb')
    for h in (a, b, c):
        h.run('lvcreate -q --yes --type thin-pool --size 1G --name t lockstep_group', timeout=60)
        a.lockstep(f'pool create thin --vg lockstep_group --thin t --host {h.name}', timeout=60)
    thick = cluster.create_volume('thick', '32MiB', '--on alpha,beta')
    thin = cluster.create_volume('thin', '32MiB', '--on alpha,beta --pool thin')
    for device in (thick, thin):
        b.run(f'dd if=/dev/urandom of={device} bs=1M count=24 oflag=direct conv=notrunc,fsync', timeout=120)
    digest = {name: b.out(f'sha256sum </dev/lockstep/{name}', timeout=60) for name in ('thick', 'thin')}
    b.lockstep('snapshot clone thick clone', timeout=240)
    assert b.out('sha256sum </dev/lockstep/clone', timeout=60) == digest['thick']
    b.run('dd if=/dev/urandom of=/dev/lockstep/clone bs=1M count=4 seek=4 oflag=direct conv=notrunc,fsync', timeout=120)
    healthy(b, 'clone')
    closed(cluster, b)
    assert_same(cluster, 'clone', 24 * MIB)
    assert b.out('sha256sum </dev/lockstep/thick', timeout=60) == digest['thick'], 'the volume has nothing of what its clone gets'
    closed(cluster, b)
    b.lockstep('volume delete clone', timeout=90)

    b.lockstep('snapshot create thick,thin s', timeout=150)
    a.allow('I/O error')
    a.run('echo 1 > $(readlink -f /sys/block/vdb/device/..)/remove')
    for device in (thick, thin):
        b.run(f'dd if=/dev/urandom of={device} bs=1M count=6 seek=2 oflag=direct conv=notrunc,fsync', timeout=180)
    closed(cluster, b)
    for name in ('thick', 'thin'):
        wait(lambda: [r['state'] for r in cluster.volume(name, b)['replicas'] if r['host'] == 'alpha'] == ['failed'], 60, 'the disk to have failed')
    refused = b.lockstep('snapshot revert thick s', check=False)
    assert refused.status == 5 and 'put another disk in its place' in refused.err, refused
    copies = lambda name: next(s for s in b.lockstep('snapshot list --json') if s['volume'] == name)['hosts']
    assert copies('thick') == ['alpha', 'beta']
    b.lockstep('snapshot revert thin s', timeout=240)
    assert b.out(f'sha256sum <{thin}', timeout=60) == digest['thin']
    wait(lambda: where(cluster, 'thin', b) == {'beta', 'gamma'}, 120, 'the replica to be made on gamma')
    healthy(b, 'thin')

    new = spare(a, 'new', 3072)
    wait(lambda: disks_of(b, 'alpha')['/dev/vdb']['missing'], 30, 'the disk to be missed')
    b.lockstep(f'disk replace alpha /dev/vdb {new} --no-wait')
    wait(lambda: {new} <= (now := set(disks_of(b, 'alpha'))) and '/dev/vdb' not in now, 180, 'the new disk to have taken the place')
    healthy(b, 'thick')
    for name in ('thick', 'thin'):
        wait(lambda: set(copies(name)) == where(cluster, name, b), 180, f'the copies of the snapshot of {name}')
    closed(cluster, b)
    # The copy that came with the new replica has only what differs from it: the revert says so, or does it.
    tried = b.lockstep('snapshot revert thick s', check=False, timeout=240)
    if tried.status:
        assert tried.status == 5 and 'of its reserve' in tried.err, tried
        b.lockstep('snapshot restore thick s back', timeout=240)
    name = 'back' if tried.status else 'thick'
    assert b.out(f'sha256sum </dev/lockstep/{name}', timeout=60) == digest['thick']
    closed(cluster, b)
    assert_same(cluster, name, 24 * MIB)
    assert_same(cluster, 'thin')
