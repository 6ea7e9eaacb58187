# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator sees and does: what has happened and why something is as it is, metrics; snapshots in thick pools."""
import json, re

import pytest

from lablib import Cluster, Lab, SyncLog, assert_same, wait
from test_failover import healthy


@pytest.mark.slow
def test_operate_seeing_what_happens(cluster):
    """A host is killed and comes back: status --watch shows it as it happens, events list it without a gap, why names the cause and
    what to do, metrics have it in numbers."""
    a, b, c = cluster.hosts
    cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    a.run('dd if=/dev/urandom of=/dev/lockstep/v1 bs=1M count=8 oflag=direct conv=fsync')
    assert 'is ok: nothing is the matter' in a.lockstep('why v1').out
    watching = c.start('exec lockstep status --watch')
    following = c.start('exec lockstep events --follow --json')
    shown = lambda p: bytes(p.out).decode(errors='replace')
    wait(lambda: 'v1' in shown(watching) and shown(following), 20, 'status --watch and events --follow to begin')
    metric = lambda h, line: re.search(rf'^lockstep_{line}$', h.lockstep('metrics').out, re.M)
    assert metric(c, r'replica_in_sync\{volume="v1",host="beta"\} 1') and metric(c, r'quorum 1')
    b.kill()
    wait(lambda: 'degraded' in shown(watching) and 'OFFLINE' in shown(watching), 30, 'status --watch to show the loss')
    wait(lambda: metric(c, r'volume_health\{volume="v1",health="degraded"\} 1'), 20, 'metrics to show the loss')
    assert metric(c, r'replica_in_sync\{volume="v1",host="beta"\} 0')
    causes = c.lockstep('why v1 --json')['causes']
    assert causes[0]['code'] == 'host-offline' and 'beta' in causes[0]['what'] and causes[0]['do'], causes
    assert c.lockstep('why beta --json')['causes'][0]['code'] == 'host-offline'
    b.power_on()
    healthy(c, 'v1')
    wait(lambda: 'nothing is the matter' in c.lockstep('why v1').out and 'nothing is the matter' in c.lockstep('why beta').out, 30,
         'nothing to be the matter')
    events = [json.loads(line) for line in shown(following).split('\n')[:-1]]
    assert not any('gap' in e for e in events), events
    said = [e['message'] for e in events]
    for what in ('beta is offline', 'beta is online'):
        assert any(what in m for m in said), said
    for p in (watching, following):
        p.stop()


@pytest.fixture(scope='module')
def thick():
    """Three hosts with thick pools."""
    with Lab('thick') as lab:
        lab.boot(3)
        yield Cluster(lab).form('--disks /dev/vdb')


@pytest.mark.slow
def test_operate_thick_snapshots(thick):
    """Snapshots in thick pools, under load: of one point, restored with everything that was synced before; deleted again."""
    a, b, c = thick.hosts
    device = thick.create_volume('s', '64MiB', '--on alpha,beta')
    assert b.out(f'head -c 8388608 {device} | tr -d "\\0" | wc -c') == '0', 'a new thick volume reads as zeros'
    log = SyncLog(a, device)
    log.wait_for_more(50)
    acked = log.acked
    c.lockstep('snapshot create s one', timeout=150)
    log.wait_for_more(50)
    log.stop()
    c.lockstep('snapshot restore s one back', timeout=240)
    done = b.run(f'/lab/fsynclog check /dev/lockstep/back {log.blocks} {log.seed} {acked}', check=False, timeout=120)
    assert done.status == 0, done
    c.lockstep('wait-sync back --timeout 60', timeout=75)
    assert_same(thick, 'back')
    good, line = log.check()
    assert good, line
    assert_same(thick, 's')
    c.lockstep('snapshot delete s one', timeout=90)
    wait(lambda: not any(v['openers'] for v in thick.status()['volumes']), 30, 'the volumes to be closed')
    thick.delete_volumes()
    for h in (a, b):
        wait(lambda: 'lockstep.' not in h.out('lvs --noheadings -o lv_name lockstep_group'), 30, f'no logical volume to be left on {h}')
