# SPDX-License-Identifier: GPL-2.0-or-later
"""Replicas and hosts come and go while a volume is written to: nothing that was synced is lost, the number of good copies is
restored, and no logical volume is left behind."""
import pytest

from lablib import Cluster, SyncLog, assert_same, wait


def replicas(cluster, name, host=None):
    return {r['host']: r['state'] for r in cluster.volume(name, host)['replicas']}


def settled(cluster, name, on, timeout=240):
    """Waits until the volume's replicas are on exactly these hosts, all in sync and wanted."""
    on = set(on)

    def there():
        v = cluster.volume(name)
        return ({r['host'] for r in v['replicas']} == on and all(r['state'] == 'insync' and r['wanted'] for r in v['replicas'])
                and not v['changes']['left_behind'])
    wait(there, timeout, f'{name} to be in sync on {sorted(on)}', every=1)


def ours(host):
    """Names of replicas' logical volumes on a host."""
    lines = host.out('lvs --noheadings -o lv_name,lv_tags').splitlines()
    return sorted(line.split()[0] for line in lines if 'lockstep.volume' in line)


def finish(log, cluster, name):
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(cluster, name)


def test_life_replicas_under_load(cluster):
    """A replica is added, another removed, the primary's own moved, all while the volume is written to."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(200)
    c.lockstep('volume replica add v1 gamma', timeout=120)
    settled(cluster, 'v1', ['alpha', 'beta', 'gamma'])
    log.wait_for_more(50)
    b.lockstep('volume replica remove v1 beta', timeout=120)
    settled(cluster, 'v1', ['alpha', 'gamma'])
    assert ours(b) == []
    log.wait_for_more(50)
    assert cluster.volume('v1')['primary'] == 'alpha'
    b.lockstep('volume replica move v1 alpha beta', timeout=120)
    settled(cluster, 'v1', ['beta', 'gamma'])
    assert ours(a) == []
    log.wait_for_more(50)
    refused = b.lockstep('volume replica add v1 beta', check=False)
    assert refused.status == 5 and 'has a replica already' in refused.err
    b.lockstep('volume redundancy v1 3')
    settled(cluster, 'v1', ['alpha', 'beta', 'gamma'])
    finish(log, cluster, 'v1')


@pytest.mark.slow
def test_life_evicted_host_comes_back(lab):
    """A host stays away beyond its deadline: its replica is made anew elsewhere. It comes back after all and catches up; the surplus
    goes when all are in sync."""
    lab.boot(4)
    cluster = Cluster(lab).form()
    a, b, c, d = cluster.hosts
    a.lockstep('option set auto-evict-minutes 0.5')
    device = cluster.create_volume('v1', '128MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(200)
    b.kill()

    def evicted():
        return next(h for h in cluster.status(a)['hosts'] if h['name'] == 'beta')['status'] == 'evicted'
    wait(evicted, 120, 'beta to be evicted', every=1)
    wait(lambda: sum(s == 'insync' for s in replicas(cluster, 'v1', a).values()) == 2, 180, 'a second good copy', every=1)
    assert 'beta' in replicas(cluster, 'v1', a), 'what beta has is kept in mind'
    log.wait_for_more(50)
    b.power_on()
    wait(lambda: len(replicas(cluster, 'v1', a)) == 2, 240, 'the surplus to go', every=1)
    v = cluster.volume('v1', a)
    settled(cluster, 'v1', [r['host'] for r in v['replicas']])
    log.wait_for_more(50)
    finish(log, cluster, 'v1')
    assert sum(len(ours(h)) for h in cluster.hosts) == 2


@pytest.mark.slow
def test_life_evacuate_and_remove(lab):
    """A host is emptied while its volumes are in use, and taken out of the cluster; a lost one is forgotten."""
    lab.boot(4)
    cluster = Cluster(lab).form()
    a, b, c, d = cluster.hosts
    for name, on in (('v1', 'alpha,beta'), ('v2', 'beta,gamma'), ('v3', 'beta')):
        cluster.create_volume(name, '64MiB', f'--on {on} --redundancy {1 + on.count(",")}')
    log = SyncLog(c, '/dev/lockstep/v1')
    log.wait_for_more(100)
    said = a.lockstep('host evacuate beta', timeout=300).out
    assert 'host beta is empty' in said, said
    assert ours(b) == []
    log.wait_for_more(50)
    a.lockstep('host remove beta', timeout=120)
    assert {h['name'] for h in cluster.status(a)['hosts']} == {'alpha', 'gamma', 'delta'}
    assert b.run('ls /dev/lockstep/v1', check=False).status != 0
    log.wait_for_more(50)
    finish(log, cluster, 'v1')


def operations(host):
    return {o['id']: o for o in host.lockstep('operation list --json')}


@pytest.mark.slow
def test_life_five_hosts(lab):
    """Five hosts in three racks, five volumes under load, most of them on one host. It is evacuated, which is called off in the middle and
    begun again; then it is taken out. The group's rule holds all the time: no two replicas in one rack. At last all of the group's volumes
    get a third replica."""
    lab.boot(5, memory_mb=448)
    cluster = Cluster(lab).form()
    a, b, c, d, e = cluster.hosts
    for host, rack in (('alpha', 'r1'), ('beta', 'r1'), ('gamma', 'r2'), ('delta', 'r2'), ('epsilon', 'r3')):
        a.lockstep(f'host label {host} rack={rack}')
    names = ['v1', 'v2', 'v3', 'v4']
    a.run('lockstep apply -f -', input='groups: {sr: {pool: default, rules: {different: rack}}}\n')
    racks = {h['name']: h['labels']['rack'] for h in cluster.status(a)['hosts']}
    for name, on in zip(names, (['beta', 'gamma'], ['beta', 'epsilon'], ['beta', 'delta'], ['alpha', 'epsilon'])):
        elsewhere = ', '.join(sorted(set(racks) - set(on)))
        a.run('lockstep apply -f -', input=f'volumes: {{{name}: {{size: 64MiB, group: sr, rules: {{avoid: [{elsewhere}]}}}}}}\n', timeout=120)
        assert sorted(replicas(cluster, name)) == on
        a.lockstep(f'volume rules {name} --avoid none')
    cluster.create_volume('single', '32MiB', '--on beta')
    c.run('dd if=/dev/urandom of=/dev/lockstep/single bs=1M count=20 oflag=direct conv=notrunc,fsync')
    single = c.out('sha256sum </dev/lockstep/single', timeout=60)
    # Slow enough to be called off in the middle.
    a.lockstep('option set resync-ceiling-mib 1')
    a.lockstep('option set resync-floor-mib 1')
    c.run('dd if=/dev/urandom of=/dev/lockstep/v2 bs=1M count=40 seek=20 oflag=direct conv=notrunc,fsync', timeout=120)
    logs = [SyncLog(d, '/dev/lockstep/v1'), SyncLog(e, '/dev/lockstep/v3')]

    def keep_apart():
        for v in cluster.status(a)['volumes']:
            here = [r['host'] for r in v['replicas'] if r['wanted']]
            assert v['name'] == 'single' or len({racks[h] for h in here}) == len(here), (v['name'], here)

    for log in logs:
        log.wait_for_more(50)
    evacuation = a.start('lockstep host evacuate beta')

    def in_the_middle():
        at = operations(c)
        syncs = [o for o in at.values() if o['kind'] == 'sync' and o['percent'] and 0 < o['percent'] < 90]
        return syncs and 'evacuate:beta' in at and at['evacuate:beta']['what']
    assert 'replicas left' in wait(in_the_middle, 120, 'a replica to be copied away from beta', every=0.5)
    keep_apart()
    refused = c.lockstep('host remove beta', check=False)
    assert refused.status == 5 and 'has a replica of volume' in refused.err, refused
    c.lockstep('operation cancel evacuate:beta')
    ended = evacuation.wait(60)
    assert ended.status == 5 and 'was called off' in ended.err, ended
    assert any(r['host'] == 'beta' and r['wanted'] for v in cluster.status(a)['volumes'] for r in v['replicas'])
    for option in ('resync-ceiling-mib', 'resync-floor-mib'):
        a.lockstep(f'option set {option} default')

    def as_many_as_wanted():
        return all(len(v['replicas']) == v['redundancy'] and all(r['state'] == 'insync' for r in v['replicas'])
                   and not v['changes']['left_behind'] for v in cluster.status(a)['volumes'])
    wait(as_many_as_wanted, 240, 'what was begun to be taken back', every=1)
    keep_apart()
    for log in logs:
        log.wait_for_more(50)

    said = c.lockstep('host evacuate beta', timeout=400).out
    assert 'host beta is empty' in said, said
    assert ours(b) == []
    wait(as_many_as_wanted, 120, 'all volumes to be whole', every=1)
    keep_apart()
    a.lockstep('host remove beta', timeout=120)
    assert sorted(h['name'] for h in cluster.status(a)['hosts']) == ['alpha', 'delta', 'epsilon', 'gamma']
    for log in logs:
        log.wait_for_more(50)
    assert d.out('sha256sum </dev/lockstep/single', timeout=60) == single

    a.lockstep('group redundancy sr 3', timeout=400)
    wait(as_many_as_wanted, 60, 'three replicas', every=1)
    assert all(cluster.volume(name, a)['redundancy'] == 3 for name in names)
    keep_apart()
    refused = a.lockstep('group redundancy sr 4', check=False, timeout=60)
    assert refused.status == 5 and 'as that of' in refused.err, 'three racks'
    a.lockstep('group redundancy sr 3 --no-wait')
    for log, name in zip(logs, ('v1', 'v3')):
        finish(log, cluster, name)
    assert_same(cluster, 'v2')
