# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools on real LVM: what an earlier cluster has left on the disks is found, becomes a volume again, or is removed; what has changed since
a snapshot is told."""
import base64, itertools

import pytest

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


@pytest.mark.slow
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


def listed(host):
    """{group: number of its volumes} and {UUID: kind} of `group list --orphans`."""
    answer = host.lockstep('group list --orphans --json', timeout=60)
    assert answer['unreachable'] == [], answer
    return {g['name']: len(g['volumes']) for g in answer['groups']}, {o['uuid']: o['kind'] for o in answer['orphans']}


@pytest.mark.slow
def test_pools_forgotten_group(lab):
    """A storage repository was forgotten, its cluster too: what is on the disks is found, taken up again as one group with its content, and
    the rest removed; then the group is destroyed with all it has, but not while a volume of it is in use."""
    a, b = lab.boot(2)
    cluster = Cluster(lab).form()
    a.run('lockstep apply -f -', input='groups: {sr: {pool: default}}\n'
          'volumes: {v1: {size: 64MiB, group: sr}, v2: {size: 32MiB, group: sr}}\n', timeout=120)
    digest = {}
    for name in ('v1', 'v2'):
        a.run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=1M count=20 seek=3 oflag=direct conv=notrunc,fsync')
        digest[cluster.volume(name)['uuid']] = a.out(f'sha256sum </dev/lockstep/{name}', timeout=60)
    a.lockstep('snapshot create v1 s1', timeout=60)
    assert listed(b) == ({'sr': 2}, {})
    writer = a.start('exec 3<>/dev/lockstep/v1; echo open; sleep 300')
    wait(lambda: cluster.volume('v1')['openers'] == ['alpha'], 30, 'v1 to be open')
    assert listed(b) == ({}, {}), 'of what is in use nothing is offered'
    refused = b.lockstep('group destroy sr --yes', check=False)
    assert refused.status == 5 and 'volume v1 is open on alpha' in refused.err, refused
    writer.stop()
    left = ours(a)
    assert left == ours(b) and len(left) == 3, left

    together(forget, [a, b])
    a.lockstep('cluster init')
    b.lockstep(f'cluster join {cluster.token()} {a.address}')
    for h in (a, b):
        a.lockstep(f'pool create default --vg lockstep_group --thin thin_device --host {h.name}')
    groups, orphans = listed(b)
    assert groups == {} and sorted(orphans.values()) == ['replica', 'replica', 'snapshot'], orphans
    a.lockstep('group adopt back', timeout=180)
    for uuid, value in digest.items():
        assert b.out(f'sha256sum </dev/lockstep/{uuid}', timeout=60) == value
        a.lockstep(f'wait-sync {uuid} --timeout 90', timeout=100)
        assert_same(cluster, uuid)
    groups, orphans = listed(a)
    assert groups == {'back': 2}, groups
    # The old second copies and the snapshot belong to nobody.
    assert set(digest) <= set(orphans) and len(orphans) == 3, orphans
    assert 'removes them for good' in a.lockstep('group destroy --orphans').out and len(listed(a)[1]) == 3, 'only told'
    b.lockstep('group destroy --orphans --yes', timeout=120)
    assert listed(a) == ({'back': 2}, {})
    assert b.out(f'sha256sum </dev/lockstep/{next(iter(digest))}', timeout=60) == digest[next(iter(digest))]
    b.lockstep('group destroy back --yes', timeout=120)
    assert listed(a) == ({}, {}) and a.lockstep('group list').out == 'no groups\n'
    assert ours(a) == ours(b) == []


def changed(cluster, *points):
    """Numbers of the 64 KiB blocks that `volume diff` names."""
    answer = cluster.any().lockstep(f'volume diff {" ".join(points)} --json', timeout=60)
    bits = ''.join(f'{byte:08b}' for byte in base64.b64decode(answer['bitmap']))
    blocks = [n for n, bit in enumerate(bits) if bit == '1']
    assert len(blocks) == answer['changed_blocks'] and answer['blocks'] == 1024, answer
    return blocks


def test_pools_diff(cluster):
    """What was written between snapshots is told exactly, chunk by chunk, by every host that has copies, and the pool is left as it was."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('d', '64MiB', '--on alpha,beta')
    chunk = int(a.out('lvs --noheadings --nosuffix --units b -o chunk_size lockstep_group/thin_device')) // 65536

    def write(host, *blocks):
        """One sector in each of these chunks."""
        for n in blocks:
            host.run(f'dd if=/dev/urandom of={device} bs=4096 count=1 seek={n * chunk * 16 + 3} oflag=direct conv=notrunc,fsync', timeout=30)
        return [n * chunk + i for n in blocks for i in range(chunk)]
    write(a, 0, 1, 2, 100)
    a.lockstep('snapshot create d s1', timeout=60)
    assert changed(cluster, 'd', 's1') == []
    first = write(a, 1, 50, 1024 // chunk - 1)
    assert changed(cluster, 'd', 's1') == changed(cluster, 'd', 's1', 'live') == first
    b.lockstep('snapshot create d s2', timeout=60)
    second = write(b, 2, 50, 51)
    assert changed(cluster, 'd', 's1', 's2') == first
    assert changed(cluster, 'd', 's2') == second
    assert changed(cluster, 'd', 's1') == sorted(set(first + second))
    # Without the host that was asked first, by another one's copy; and with a question that was cut off before.
    asked = cluster[cluster.volume('d')['primary']]
    other = b if asked is a else a
    other.run('dmsetup message lockstep_group-thin_device-tpool 0 reserve_metadata_snap')
    c.lockstep(f'primary d {other.name}', timeout=60)
    assert changed(cluster, 'd', 's1', 's2') == first
    for h in (a, b):
        held = h.out('dmsetup status lockstep_group-thin_device-tpool').split()[6]
        assert held == '-', f'{h} holds a snapshot of its metadata: {held}'
    refused = a.lockstep('volume diff d nosuch', check=False)
    assert refused.status == 3, refused
    for name in ('s1', 's2'):
        a.lockstep(f'snapshot delete d {name}', timeout=60)


@pytest.mark.slow
def test_pools_metadata_grow(lab):
    """A thin pool's metadata fill up: they grow into what the volume group has free; that there is nothing is said, and made good later."""
    a, = lab.boot(1)
    Cluster(lab).form(install='--disks /dev/vdb')
    a.run('lvcreate -y --type thin-pool -L 512m --poolmetadatasize 4m -Zn -n tp lockstep_group')
    a.lockstep('pool create small --vg lockstep_group --thin tp --host alpha')
    a.lockstep('volume create v 64MiB --pool small --redundancy 1', timeout=60)
    pool = lambda field: float(a.out(f'lvs --noheadings --units m --nosuffix -o {field} lockstep_group/tp'))
    numbers = itertools.count(1000, 64)

    def fill():
        """Thin devices that nobody uses, and LVM knows nothing of, take a block of the metadata each."""
        while pool('metadata_percent') < 72:
            first = next(numbers)
            a.run(f'for n in $(seq {first} {first + 63}); do dmsetup message lockstep_group-tp-tpool 0 "create_thin $n" || exit 1; done', timeout=120)

    before = pool('lv_metadata_size')
    fill()
    wait(lambda: pool('lv_metadata_size') > before, 100, 'the metadata to have grown')
    assert pool('metadata_percent') < 70
    wait(lambda: 'pool small: the metadata of thin pool lockstep_group/tp were filling up and have grown by 4 MiB' in a.vm.daemon_log(), 20, 'a line about it')
    a.run('dd if=/dev/urandom of=/dev/lockstep/v bs=1M count=8 oflag=direct', timeout=60)

    before = pool('lv_metadata_size')
    a.run('lvcreate -y -Wn -Zn -l 100%FREE -n filler lockstep_group')
    fill()
    wait(lambda: 'cannot grow: give volume group lockstep_group more room' in a.vm.daemon_log(), 100, 'a line about the lack of room')
    a.run('lvremove -y lockstep_group/filler')
    wait(lambda: pool('lv_metadata_size') > before, 150, 'the metadata to have grown')
    a.lockstep('volume delete v', timeout=60)
