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
