# SPDX-License-Identifier: GPL-2.0-or-later
"""A majority, or every log, is lost for good, with volumes: what was synced is there when the cluster has been recovered.

    alpha ── beta ── gamma      replicas of v1 on alpha and beta, of v2 on beta and gamma
"""
import pytest

from lablib import Cluster, SyncLog, assert_same, wait
from lablib.cluster import together

RAFT = '/var/lib/lockstep/raft'


def healthy(host, name, timeout=120):
    host.lockstep(f'wait-sync {name} --timeout {timeout}', timeout=timeout + 15)


def fill(host, device, seed):
    """8 MiB that only this seed gives; returns their digest."""
    host.run(f'yes "{seed} in what was written" | dd of={device} bs=64k count=128 iflag=fullblock oflag=direct conv=fsync', timeout=120)
    found = digest(host, device)
    assert found == host.out(f'yes "{seed} in what was written" | head -c 8388608 | sha256sum').split()[0], 'it was not written'
    return found


def digest(host, device):
    return host.out(f'dd if={device} bs=1M count=8 iflag=direct 2>/dev/null | sha256sum').split()[0]


def lose_log(host):
    """Its daemon stops, its kernel is emptied, its log is gone."""
    host.daemon('stop')
    host.run('lockstep down', timeout=60)
    host.run(f'rm -rf {RAFT}; sync')
    host.daemon('start')
    wait(host.daemon_answers, 30, f'lockstepd of {host} to answer')


def recover(host, options, done):
    """Plans until the plan is as `done` says, then does it; returns the plan."""
    def plan():
        found = host.lockstep(f'cluster recover {options} --json')
        return found if done(found) else None
    found = wait(plan, 60, 'a plan to recover')
    host.lockstep(f'cluster recover {options} --yes', timeout=90)
    return found


def all_see(cluster, hosts):
    for h in hosts:
        wait(lambda: (cluster.status(h).get('cluster') or {}).get('leader') and len(cluster.status(h)['hosts']) == len(hosts), 90, f'{h} to be a member')


@pytest.mark.slow
def test_recover_from_disks(lab):
    """All logs are wiped: a new one is made of the superblocks. Then once more after a loss of power under load, where two copies may be the
    newest: that is not guessed."""
    a, b, c = lab.boot(3)
    cluster = Cluster(lab, [a, b, c]).form()
    sums = {'v1': fill(a, cluster.create_volume('v1', '64MiB', '--on alpha,beta'), 'one'),
            'v2': fill(a, cluster.create_volume('v2', '64MiB', '--on beta,gamma'), 'two')}
    uuids = {v: cluster.volume(v)['uuid'] for v in sums}
    for name in sums:
        healthy(a, name)
    # v1 is written to while alpha is away: its copy there is out of date.
    a.kill()
    wait(lambda: cluster.volume('v1', b)['health'] == 'degraded', 30, 'alpha to be missed')
    sums['v1'] = fill(b, '/dev/lockstep/v1', 'three')
    b.daemon('stop'), c.daemon('stop')
    a.power_on()
    a.daemon('stop')
    for h in (a, b, c):
        lose_log(h)
    assert 'if none has: `lockstep cluster recover --from-disks`' in a.lockstep('cluster recover', check=False).err
    plan = recover(a, '--from-disks', lambda p: p['kept'] == ['beta', 'gamma'])
    assert {v['volume']: v['copy'] for v in plan['volumes']} == {'v1': 'beta', 'v2': 'beta'}, plan
    all_see(cluster, cluster.hosts)
    for name, wanted in sums.items():
        wait(lambda: cluster.volume(name)['devices'], 60, f'the device of {name}')
        assert digest(c, f'/dev/lockstep/{name}') == wanted
        assert cluster.volume(name)['uuid'] == uuids[name]
        healthy(c, name)
        assert_same(cluster, name)
    # Life goes on: a new volume has a number of its own, one can be deleted.
    cluster.create_volume('v3', '16MiB', '--redundancy 3')
    b.lockstep('volume delete v2', timeout=120)

    # All lose power while v1 is written to. Where nothing was written, the log's check wants zeros.
    a.run('blkdiscard -f -z /dev/lockstep/v1', timeout=60)
    log = SyncLog(a, '/dev/lockstep/v1')
    log.wait_for_more(100)
    for h in cluster.hosts:
        h.kill()
    together(lambda h: h.power_on(), cluster.hosts)
    for h in cluster.hosts:
        lose_log(h)
    plan = wait(lambda: (lambda p: p if p['kept'] == ['beta', 'gamma'] else None)(a.lockstep('cluster recover --from-disks --json')), 60, 'a plan')
    assert plan['in_doubt'] == ['v1'], plan
    refused = a.lockstep('cluster recover --from-disks --yes', check=False)
    assert refused.status == 5 and '--copy' in refused.err
    recover(a, '--from-disks --copy v1=beta', lambda p: not p['in_doubt'])
    all_see(cluster, cluster.hosts)
    healthy(a, 'v1')
    good, line = log.check(c, '/dev/lockstep/v1')
    assert good, line
    assert_same(cluster, 'v1')


@pytest.mark.slow
def test_recover_from_one_log(lab):
    """Two of three hosts are gone for good: the third goes on with its log, its copies serve."""
    a, b, c = lab.boot(3)
    cluster = Cluster(lab, [a, b, c]).form()
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    wanted = fill(a, device, 'one')
    healthy(a, 'v1')
    b.kill(), c.kill()
    plan = recover(a, '--dead beta --dead gamma', lambda p: p['dead'] == ['beta', 'gamma'])
    assert plan['volumes'][0]['copy'] == 'alpha'
    wait(lambda: (cluster.status(a).get('cluster') or {}).get('leader') == 'alpha' and len(cluster.status(a)['hosts']) == 1, 90, 'alpha to lead')
    wait(lambda: a.run(f'dd if={device} bs=4096 count=1 iflag=direct', check=False, timeout=20).status == 0, 60, 'the volume to be served')
    assert digest(a, device) == wanted
    fill(a, device, 'two')


@pytest.mark.slow
def test_recover_wiped_log_rejoins(cluster):
    """One host loses its log while it serves and another writes: it comes back as a learner with a new id, its replica in sync again."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(c, device)
    log.wait_for_more(100)
    before = b.out('grep raft_id /var/lib/lockstep/host.json')
    b.daemon('stop')
    b.run(f'rm -rf {RAFT}; sync')
    log.wait_for_more(50)
    b.daemon('start')
    wait(lambda: b.out('grep raft_id /var/lib/lockstep/host.json') != before, 60, 'beta to have a new id')
    all_see(cluster, cluster.hosts)
    healthy(a, 'v1')
    log.wait_for_more(50)
    log.stop()
    good, line = log.check(b)
    assert good, line
    assert_same(cluster, 'v1')


@pytest.mark.slow
def test_recover_witness(lab):
    """Two hosts and a witness: one host is killed, the volume goes on at the other."""
    a, b, w = lab.boot(3)
    cluster = Cluster(lab, [a, b, w])
    for h in (a, b):
        h.install()
        h.configure()
    w.install()
    w.configure(witness='true')
    a.lockstep('cluster init')
    for h in (b, w):
        h.lockstep(f'cluster join {cluster.token()} {a.address}')
    for h in (a, b):
        a.lockstep(f'pool create default --vg lockstep_group --thin thin_device --host {h.name}')
    refused = a.lockstep('pool create default --vg lockstep_group --thin thin_device --host gamma', check=False)
    assert refused.status == 5 and 'witness' in refused.err, refused
    device = cluster.create_volume('v1', '64MiB', '--redundancy 2')
    log = SyncLog(a, device)
    log.wait_for_more(100)
    a.kill()
    b.run(f'exec 3<>{device}', timeout=60)
    good, line = log.check(b, device)
    assert good, line
    more = SyncLog(b, device)
    more.wait_for_more(100)
    a.power_on()
    healthy(b, 'v1')
    more.stop()
    good, line = more.check(a)
    assert good, line
    assert_same(cluster, 'v1')


@pytest.mark.slow
def test_recover_boot_alone(cluster):
    """A host that was lost boots while its network is dead: it assembles its replica from its own copy of the log, by then out of date, and
    waits. It has no device and serves nothing until it has heard the others, who have gone on; then it catches up."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    healthy(a, 'v1')
    log = SyncLog(c, device)
    log.wait_for_more(100)
    a.kill()
    log.wait_for_more(100, 60)
    a.link('storage', up=False, silent=True)
    a.power_on()
    wait(a.daemon_answers, 60, 'lockstepd of alpha to answer')
    mine = wait(lambda: next((r for r in (cluster.volume('v1', a) or {'replicas': []})['replicas'] if r['host'] == 'alpha' and r['lv_path']), None),
                90, 'alpha to assemble its replica')
    # As the copy has it; the others know better.
    assert mine['state'] == 'insync' and not mine['attached'], mine
    assert cluster.volume('v1', a)['health'] != 'ok'
    assert not cluster.status(a)['cluster']['quorum']
    assert next(r for r in cluster.volume('v1', b)['replicas'] if r['host'] == 'alpha')['state'] == 'stale'
    log.wait_for_more(50)
    assert a.run(f'test -e {device}', check=False).status != 0, 'a device was made without the log'
    a.link('storage', up=True, silent=True)
    healthy(c, 'v1', 180)
    wait(lambda: a.run(f'test -b {device}', check=False).status == 0, 30, 'the device on alpha')
    log.wait_for_more(50)
    log.stop()
    good, line = log.check(a)
    assert good, line
    assert_same(cluster, 'v1')
