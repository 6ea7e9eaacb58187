# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools on real LVM: what an earlier cluster has left on the disks is found, becomes a volume again, or is removed."""
from lablib import Cluster, assert_same, together, wait


def ours(host):
    """Names of logical volumes of replicas and snapshots on a host."""
    lines = host.out('lvs --noheadings -o lv_name,lv_tags').splitlines()
    return sorted(line.split()[0] for line in lines if 'lockstep.volume' in line or 'lockstep.snapshot' in line)


def forget(host):
    """The host is in no cluster any more; its disks are as they were."""
    host.run('/lab/service stop; lockstep down; rm -rf /var/lib/lockstep/*; modprobe -r lockstep && modprobe lockstep; /lab/service start', timeout=90)
    wait(lambda: 'no cluster' in host.lockstep('status', check=False).out + host.lockstep('status', check=False).err, 60,
         f'{host} to be in no cluster')


def orphans(cluster, uuid):
    return [o for o in cluster.any().lockstep('pool orphans --json')['orphans'] if o['uuid'] == uuid]


def test_pools_orphans(lab):
    """A cluster is forgotten and another one set up on the same disks: a volume is adopted with its content, from the copy that is
    newest, the old copy and what else is left are purged, and what the cluster has itself is never listed."""
    a, b = lab.boot(2)
    cluster = Cluster(lab).form()
    device = cluster.create_volume('kept', '64MiB')
    cluster.create_volume('junk', '16MiB')
    uuid, junk = (cluster.volume(name)['uuid'] for name in ('kept', 'junk'))
    a.run(f'dd if=/dev/urandom of={device} bs=1M count=9 seek=7 oflag=direct conv=notrunc,fsync')
    a.lockstep('snapshot create kept s1', timeout=60)
    a.run(f'dd if=/dev/urandom of={device} bs=1M count=2 seek=30 oflag=direct conv=notrunc,fsync')
    digest = a.out(f'sha256sum <{device}', timeout=60)
    assert a.lockstep('pool orphans').out == 'no orphans\n'
    left = ours(a)
    assert left == ours(b) and len(left) == 3, left
    together(forget, [a, b])
    a.lockstep('cluster init')
    b.lockstep(f'cluster join {cluster.token()} {a.address}')
    assert ours(a) == left, 'nothing of it is touched'
    refused = a.lockstep(f'pool adopt {uuid} again', check=False)
    assert refused.status == 5 and 'lockstep pool create' in refused.err, refused
    for h in (a, b):
        a.lockstep(f'pool create default --vg lockstep_group --thin thin_device --host {h.name}')
    # A new volume has the number of an old one, whose logical volume is not touched for it.
    refused = a.lockstep('volume create new 16MiB', check=False, timeout=60)
    assert refused.status != 0 and 'lockstep pool orphans' in refused.err, refused
    found = orphans(cluster, uuid)
    assert sorted(o['host'] for o in found) == ['alpha', 'beta'] and all(o['kind'] == 'replica' for o in found), found

    a.lockstep(f'pool adopt {uuid} again', timeout=90)
    assert cluster.volume('again')['uuid'] == uuid
    assert a.out('sha256sum </dev/lockstep/again', timeout=60) == digest
    a.lockstep('wait-sync again --timeout 90', timeout=100)
    assert b.out('sha256sum </dev/lockstep/again', timeout=60) == digest
    assert_same(cluster, 'again')
    old, = orphans(cluster, uuid)
    assert old['lv'] in left, old
    refused = a.lockstep(f'pool adopt {uuid} twice', check=False)
    assert refused.status == 5 and 'only be purged' in refused.err, refused

    a.lockstep(f'pool purge {uuid}', timeout=60)
    assert orphans(cluster, uuid) == []
    assert a.out('sha256sum </dev/lockstep/again', timeout=60) == digest, 'the volume itself is still there'
    a.lockstep(f'pool purge {junk}', timeout=60)
    rest = a.lockstep('pool orphans --json')['orphans']
    assert [o['kind'] for o in rest] == ['snapshot', 'snapshot'], rest
    a.lockstep(f'pool purge {rest[0]["uuid"]}', timeout=60)
    assert a.lockstep('pool orphans').out == 'no orphans\n'
    gone = a.lockstep(f'pool purge {junk}', check=False)
    assert gone.status == 3, gone
    for h in (a, b):
        assert len(ours(h)) == 1, ours(h)
