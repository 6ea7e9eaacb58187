# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator sees and does: what has happened and why something is as it is, metrics; snapshots in thick pools."""
import base64, json, re, time

import pytest

from lablib import Cluster, Lab, SyncLog, assert_same, differing_chunks, wait
from test_faults import members, replica_path
from test_failover import healthy
from test_snapshots import copies


def test_operate_invalidate(cluster):
    """A replica is damaged behind everybody's back and thrown away under load: it is made anew from the good one, and is the same again."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device, blocks=1024)
    log.wait_for_more(200)
    refused = c.lockstep('invalidate-remote v1@alpha', check=False)
    assert refused.status == 5 and 'serves it' in refused.err, refused
    b.run(f'dd if=/dev/urandom of={replica_path(cluster, "v1", b)} bs=1M seek=40 count=8 oflag=direct conv=notrunc')
    assert len(differing_chunks(cluster, 'v1')) >= 100, 'the damage is there'
    log.wait_for_more(50)
    b.lockstep('invalidate v1', timeout=90)
    healthy(c, 'v1')
    log.wait_for_more(50)
    log.stop()
    good, line = log.check(b)
    assert good, line
    assert_same(cluster, 'v1')


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


def test_operate_metadata(cluster):
    """What `md` says of a replica, in use and after `down`, is what is: version, extents, a torn superblock, of which the other copy is
    enough; `up` goes on with it. Completion knows the volumes."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    a.run(f'dd if=/dev/urandom of={device} bs=1M seek=6 count=4 oflag=direct conv=fsync')
    volume, paths = cluster.volume('v1'), {h: replica_path(cluster, 'v1', h) for h in (a, b)}
    for h, path in paths.items():
        said = h.lockstep(f'md dump {path} --json')
        assert said['uuid'] == volume['uuid'] and said['version'] > 0 and said['written_extents'] == 2, (h, said, volume)
        assert 'in order' in h.lockstep(f'md check {path}').out
    complete = 'source <(lockstep completion bash); COMP_WORDS=(lockstep why v) COMP_CWORD=2; _lockstep; echo ${COMPREPLY[@]}'
    assert b.out(f"bash -c '{complete}'").split() == ['v1']
    b.daemon('stop')
    b.lockstep('down')
    said = b.lockstep(f'md dump {paths[b]} --json')
    b.run(f'dd if=/dev/urandom of={paths[b]} bs=512 count=1 seek={said["offset"] // 512} oflag=direct conv=notrunc')
    assert 'copy A of the superblock is damaged' in b.lockstep(f'md check {paths[b]}').out
    b.daemon('start')
    wait(b.daemon_answers, 60, 'the daemon of beta to be back')
    b.lockstep('up', timeout=90)
    healthy(c, 'v1')
    assert b.lockstep(f'md dump {paths[b]} --json')['notes'] == []
    assert_same(cluster, 'v1')


def test_operate_suspend(cluster):
    """Writes are suspended for longer than a lease of the kernel: none is done meanwhile, the replicas are equal under load, reads
    go on; resumed, the writer goes on. Suspended again, the daemon dies: the kernel lets the writes go on, and the one who resumes is told."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device, blocks=1024)
    log.wait_for_more(100)
    wait(lambda: cluster.volume('v1')['primary'] == 'alpha', 20, 'alpha to serve')
    c.lockstep('suspend-io v1')
    assert 'are suspended' in b.lockstep('status').out and 'resume-io' in a.lockstep('why v1').out
    assert_same(cluster, 'v1')
    c.run(f'dd if={device} of=/dev/null bs=1M count=4 iflag=direct')
    done, since = log.acked, time.monotonic()
    while time.monotonic() - since < 15:        # a lease is 10 s: it is there because the daemon renews it
        assert log.acked == done, (done, log.acked)
        time.sleep(0.5)
    assert cluster.volume('v1')['suspended_since_ms']
    b.lockstep('resume-io v1')
    log.wait_for_more(100)
    b.lockstep('suspend-io v1')
    a.daemon('kill')
    log.wait_for_more(20, timeout=40)
    wait(a.daemon_answers, 60, 'the daemon of alpha to be back')
    wait(lambda: cluster.volume('v1')['suspended_since_ms'] is None, 30, 'nobody to think that it is suspended')
    refused = c.lockstep('resume-io v1', check=False)
    assert refused.status == 5 and 'not suspended' in refused.err, refused
    log.wait_for_more(50)
    log.stop()
    good, line = log.check(b)
    assert good, line
    assert_same(cluster, 'v1')


@pytest.fixture(scope='module')
def thick():
    """Three hosts with thick pools."""
    with Lab('thick') as lab:
        lab.boot(3)
        yield Cluster(lab).form('--disks /dev/vdb')


@pytest.mark.slow
def test_operate_thick_snapshots(thick):
    """Snapshots in thick pools, under load: of one point, restored with everything that was synced before, also when one host had prepared its copy
    and the other not; deleted again."""
    a, b, c = thick.hosts
    device = thick.create_volume('s', '64MiB', '--on alpha,beta')
    assert b.out(f'head -c 8388608 {device} | tr -d "\\0" | wc -c') == '0', 'a new thick volume reads as zeros'
    log = SyncLog(a, device)
    log.wait_for_more(50)
    lock = b.start('flock /run/lock/lvm/V_lockstep_group cat')
    taking = c.start('lockstep snapshot create s one --reserve 40')
    wait(lambda: 'lockstep.snapshot' in a.out('lvs --noheadings -o lv_tags'), 60, 'alpha to have prepared its copy, and beta not')
    log.wait_for_more(50)
    acked = log.acked
    lock.close_input()
    assert taking.wait(150).status == 0
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
    # Back to it, and every byte as in what was restored: not past a newer one whose reserve has no room for that, but past one that has, which is
    # still what it was. Its metadata say what was written by then, the volume's do so no more.
    b.run(f'dd if=/dev/urandom of={device} bs=1M count=6 seek=48 oflag=direct conv=fsync,notrunc', timeout=120)
    now = b.out(f'sha256sum <{device}', timeout=120)
    c.lockstep('snapshot create s small --reserve 1', timeout=150)
    b.run(f'dd if={device} of=/dev/null bs=4096 count=1 iflag=direct')    # of its close the log hears a moment later
    refused = c.lockstep('snapshot revert s one', check=False)
    assert refused.status == 5 and 'snapshot small of volume s: its copy on host' in refused.err and 'lvextend' in refused.err, refused
    c.lockstep('snapshot delete s small', timeout=90)
    c.lockstep('snapshot create s two', timeout=150)
    c.lockstep('snapshot revert s one', timeout=240)
    c.lockstep('snapshot restore s two then', timeout=240)
    assert b.out('sha256sum </dev/lockstep/then', timeout=120) == now
    c.lockstep('volume delete then', timeout=90)
    answer = c.lockstep('volume diff s two --json', timeout=90)
    bits = ''.join(f'{byte:08b}' for byte in base64.b64decode(answer['bitmap']))
    assert bits[48 * 16:56 * 16] == '1' * 8 * 16, bits
    c.lockstep('snapshot delete s two', timeout=90)
    assert_same(thick, 's')
    done = b.run(f'cmp {device} /dev/lockstep/back && /lab/fsynclog check {device} {log.blocks} {log.seed} {acked}', check=False, timeout=240)
    assert done.status == 0, done
    wait(lambda: not any(v['openers'] for v in thick.status()['volumes']), 30, 'the volumes to be closed')
    # Again after other writes, with the daemons killed meanwhile; and the snapshot is still what it was.
    b.run(f'dd if=/dev/urandom of={device} bs=1M count=4 seek=20 oflag=direct conv=fsync,notrunc', timeout=120)
    wait(lambda: not any(v['openers'] for v in thick.status()['volumes']), 30, 'the volume to be closed')
    running = c.start('exec lockstep snapshot revert s one')
    for h in (a, b):
        h.run('kill -9 $(pidof lockstepd)')
    for h in (a, b):
        wait(h.daemon_answers, 60, f'the daemon of {h} to be back')
    running.wait(240)
    healthy(c, 's')
    c.lockstep('snapshot revert s one', timeout=240)
    assert_same(thick, 's')
    b.out(f'cmp {device} /dev/lockstep/back', timeout=240)
    c.lockstep('snapshot delete s one', timeout=90)
    # Gamma's pool, which has nothing of it, goes and comes back; its volume group is as it was.
    refused = c.lockstep('pool delete alpha default', check=False)
    assert refused.status == 5 and 'holds replicas of' in refused.err, refused
    group = c.out('vgs --noheadings --units b -o vg_uuid,vg_size,vg_free,vg_tags,lv_count lockstep_group')
    c.lockstep('pool delete gamma default')
    assert {p['host'] for p in thick.status()['pools']} == {'alpha', 'beta'}
    assert c.out('vgs --noheadings --units b -o vg_uuid,vg_size,vg_free,vg_tags,lv_count lockstep_group') == group
    c.lockstep('pool create default --vg lockstep_group --host gamma')
    wait(lambda: not any(v['openers'] for v in thick.status()['volumes']), 30, 'the volumes to be closed')
    thick.delete_volumes()
    for h in (a, b):
        wait(lambda: 'lockstep.' not in h.out('lvs --noheadings -o lv_name lockstep_group'), 30, f'no logical volume to be left on {h}')


@pytest.mark.slow
def test_operate_thick_diff(thick):
    """What was written between snapshots in thick pools is told to the block of 64 KiB. Never too little is told by a host that was dead
    meanwhile, after a fail-over, after a revert, by one that the snapshots were copied to; and nothing by those whose copies are lost."""
    a, b, c = thick.hosts
    device = thick.create_volume('d', '64MiB', '--on alpha,beta')
    extent = lambda n: set(range(n * 64, n * 64 + 64))

    def write(host, *blocks):
        """4 KiB in each of these blocks of 64 KiB."""
        for n in blocks:
            host.run(f'dd if=/dev/urandom of={device} bs=4096 count=1 seek={n * 16 + n % 16} oflag=direct conv=notrunc,fsync', timeout=30)
        return set(blocks)

    def closed():
        wait(lambda: not any(v['openers'] for v in thick.status()['volumes']), 30, 'the volume to be closed')

    def changed(at, *points):
        """As this host tells it, which is asked first as the primary."""
        if thick.volume('d', at)['primary'] != at.name:
            closed()
            at.lockstep(f'primary d {at.name}', timeout=60)
        assert thick.volume('d', at)['primary'] == at.name
        answer = c.lockstep(f'volume diff d {" ".join(points)} --json', timeout=90)
        bits = ''.join(f'{byte:08b}' for byte in base64.b64decode(answer['bitmap']))
        blocks = {n for n, bit in enumerate(bits) if bit == '1'}
        assert len(blocks) == answer['changed_blocks'] and answer['blocks'] == 1024, answer
        return blocks
    write(a, 0, 100, 300, 1023)
    closed()
    c.lockstep('snapshot create d s1', timeout=150)
    assert changed(a, 's1') == changed(b, 's1') == set()
    first = write(a, 1, 101, 1022) | write(b, 64, 1023)
    assert changed(a, 's1') == changed(b, 's1', 'live') == first
    # What was never written is zeroed extent by extent.
    first |= write(a, 200) | extent(3)
    assert changed(a, 's1') == changed(b, 's1') == first
    closed()
    c.lockstep('snapshot create d s2', timeout=150)
    second = write(a, 2, 101)
    assert changed(a, 's2') == changed(b, 's2') == second
    # What was overwritten after the second snapshot may have been between the two as well.
    assert changed(a, 's1', 's2') == changed(b, 's1', 's2') == first | second

    # A host dies and what it was in the middle of is copied to it again, and what it has missed.
    b.kill()
    second |= write(a, 3, 300)
    a.kill()
    b.power_on()
    a.power_on()
    healthy(c, 'd')
    second |= write(b, 4)
    for host in (a, b):
        assert changed(host, 's2') >= second and changed(host, 's1', 's2') >= first
        assert changed(host, 's2') <= extent(0) | extent(1) | extent(3) | extent(4) | extent(15)
    a.kill()
    second |= write(b, 5)
    assert changed(b, 's2') >= second
    a.power_on()
    healthy(c, 'd')
    assert changed(a, 's2') >= second
    closed()
    c.lockstep('snapshot revert d s2', timeout=240)
    third = write(a, 6)
    for host in (a, b):
        assert changed(host, 's2') >= third and changed(host, 's1') >= first | third

    closed()
    c.lockstep('volume replica move d alpha gamma', timeout=120)
    wait(lambda: copies(c, 'd') == {'s1': ['beta', 'gamma'], 's2': ['beta', 'gamma']}, 240, 'the snapshots to be on gamma')
    # Only what differs was written into its copies.
    first &= {1, 64, 101, 200, 1022, 1023}
    assert changed(c, 's2') >= third and changed(c, 's1') >= first | third and changed(c, 's1', 's2') >= first
    # Their reserve is 16 MiB.
    for host in (b, c):
        host.allow('Buffer I/O error on dev dm-')		# udev looks at what is lost, too
    b.run(f'dd if=/dev/urandom of={device} bs=1M seek=40 count=20 oflag=direct conv=notrunc,fsync', timeout=120)
    for name in ('s1', 's2'):
        refused = c.lockstep(f'volume diff d {name}', check=False, timeout=90)
        assert refused.status == 10 and 'it is lost: its reserve was too small' in refused.err, refused
        c.lockstep(f'snapshot delete d {name}', timeout=90)
    thick.lab.nothing_more_allowed()
    closed()
    thick.delete_volumes()


@pytest.mark.slow
def test_operate_verify(cluster):
    """Bytes of one replica rot where no read would notice: found while the volume is written to, named, and repaired."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    a.run(f'dd if=/dev/urandom of={device} bs=1M seek=4 count=28 oflag=direct conv=notrunc,fsync')
    said = c.lockstep('verify v1', timeout=180).out
    assert ' 0 differed' in said, said
    path = replica_path(cluster, 'v1', b)
    for at in (5 << 20, 20 << 20):
        b.run(f'printf rotten | dd of={path} bs=512 seek={at // 512} conv=sync,notrunc oflag=direct')
    log = SyncLog(a, device, blocks=1024)		# the first 4 MiB
    log.wait_for_more(20)
    found = c.lockstep('verify v1', check=False, timeout=180)
    assert found.status == 10 and '2 blocks differ' in found.err and '--repair' in found.err, found
    assert 'replicas-differ' in str(c.lockstep('why v1 --json')['causes'])
    said = c.lockstep('verify v1 --repair', timeout=180).out
    assert '2 differed and were repaired' in said, said
    said = c.lockstep('verify v1', timeout=180).out
    assert ' 0 differed' in said, said
    log.wait_for_more(20)
    log.stop()
    good, line = log.check()
    assert good, line
    verify_follows(cluster)


def verify_follows(cluster):
    """The primary changes, by order and by its death, in the middle of a verify: it goes on where it was."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v2', '64MiB', '--on alpha,beta,gamma')
    a.run(f'dd if=/dev/urandom of={device} bs=1M count=48 oflag=direct conv=notrunc,fsync')
    for h in (a, b):		# one range of 256 KiB after the other: 192 of them
        h.run('modprobe sch_netem; tc qdisc replace dev eth1 root netem delay 150ms')
    compared = lambda: (cluster.volume('v2', c)['verify'] or {'done_blocks': 0})['done_blocks']
    said = lambda: re.findall(r'its verify goes on here behind (\d+) blocks', ''.join(h.vm.daemon_log() for h in cluster.hosts))
    c.lockstep('primary v2 alpha')
    running = c.start('lockstep verify v2')
    for times, enough, change in ((1, 300, lambda: c.lockstep('primary v2 beta')), (2, 1500, b.kill)):		# of 4096
        wait(lambda: compared() > enough, 90, f'{enough} blocks to be compared')
        change()
        wait(lambda: len(said()) == times, 60, 'the verify to go on elsewhere')
        assert int(said()[-1]) > enough / 2
    running.wait(180)
    assert ' 0 differed' in running.out.decode(), running


@pytest.mark.slow
def test_operate_error_without_quorum(thick):
    """A majority is away: a volume that is to fail then does, one that is to wait waits, and goes on when they are back."""
    a, b, c = thick.hosts
    for name, what in (('fails', 'error'), ('waits', 'freeze')):
        thick.create_volume(name, '16MiB', f'--on alpha,beta --on-no-quorum {what}')
    a.run('for v in fails waits; do dd if=/dev/urandom of=/dev/lockstep/$v bs=1M count=1 oflag=direct conv=notrunc,fsync; done')
    write = 'exec dd if=/dev/zero of=/dev/lockstep/{} bs=4096 count=1 oflag=direct conv=notrunc,fsync'
    hold = [a.start(f'/lab/blockio hold /dev/lockstep/{v} w') for v in ('fails', 'waits')]
    wait(lambda: all(b'open' in bytes(p.out) for p in hold), 30, 'both volumes to be open')
    for h in (b, c):
        h.kill()
    failing, waiting = a.start(write.format('fails')), a.start(write.format('waits'))
    assert failing.wait(60).status, 'a write without quorum succeeded'
    assert waiting.running
    assert 'no-quorum' in str(a.lockstep('why waits --json')['causes'])
    for h in (b, c):
        h.power_on()
    assert waiting.wait(90).status == 0
    for name in ('fails', 'waits'):
        healthy(a, name)
    wait(lambda: a.run(write.format('fails'), check=False, timeout=90).status == 0, 60, 'the other one to work again')
    a.lockstep('volume set fails --on-no-quorum freeze')
    for p in hold:
        p.close_input()
        p.wait(20)
    for name in ('fails', 'waits'):
        assert_same(thick, name, 1 << 20)
    wait(lambda: not any(v['openers'] for v in thick.status()['volumes']), 30, 'the volumes to be closed')
    thick.delete_volumes()


@pytest.mark.slow
def test_operate_host_lost(thick):
    """A host is lost for good: its replica is made anew elsewhere, under load. When it comes back after all it is told, and serves nothing."""
    a, b, c = thick.hosts
    device = thick.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(c, device)
    log.wait_for_more(50)
    refused = a.lockstep('host lost beta', check=False)
    assert refused.status == 5 and 'beta' in refused.err, refused
    b.kill()
    wait(lambda: thick.volume('v1', a)['health'] == 'degraded', 30, 'beta to be offline')
    a.lockstep('host lost beta', timeout=90)
    wait(lambda: members(thick) == {'alpha': 'insync', 'gamma': 'insync'}, 120, 'a new replica on gamma')
    wait(lambda: {h['name'] for h in thick.status(a)['hosts']} == {'alpha', 'gamma'}, 30, 'beta to be forgotten')
    log.wait_for_more(50)
    b.power_on()
    wait(lambda: 'was removed from the cluster' in b.vm.daemon_log(), 60, 'beta to be told')
    wait(lambda: b.lockstep('status', check=False).status == 5, 30, 'beta to be in no cluster')
    assert b.run('dd if=/dev/lockstep/v1 of=/dev/null bs=4096 count=1', check=False).status, 'beta serves a volume'
    log.wait_for_more(50)
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(thick, 'v1', log.blocks * 4096)
    assert ' 0 differed' in c.lockstep('verify v1', timeout=180).out


@pytest.mark.slow
def test_operate_desired_state(cluster):
    """The cluster's desired state as a file: dumped on one host, applied on another, under load. What takes long is listed, and waited
    for. A host's kernel is emptied by `down`, and `up` brings all back."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device, blocks=1024)
    log.wait_for_more(50)
    file = b.lockstep('dump').out
    c.put(file.encode(), '/tmp/desired.yaml')
    assert c.lockstep('apply -f /tmp/desired.yaml --dry-run').out == 'nothing differs\n'
    more = file.replace('size: 64MiB', 'size: 96MiB').replace('redundancy: 2', 'redundancy: 3')
    c.put((more + 'options:\n  resync-floor-mib: "8"\n').encode(), '/tmp/desired.yaml')
    said = c.lockstep('apply -f /tmp/desired.yaml', timeout=150).out.splitlines()
    assert said == ['~ option resync-floor-mib: 16 -> 8', '~ volume v1: size 64 MiB -> 96 MiB', '~ volume v1: redundancy 2 -> 3'], said
    wait(lambda: any(r['host'] == 'gamma' for r in cluster.volume('v1')['replicas']), 30, 'gamma to get a replica')
    b.lockstep('operation wait sync:v1@gamma --timeout 120', timeout=150)
    wait(lambda: 'nothing is under way' in b.lockstep('operation list').out, 30, 'nothing to be under way')
    assert c.lockstep('apply -f /tmp/desired.yaml --dry-run').out == 'nothing differs\n'
    wrong = c.run("printf 'volumes:\n  v1: {sise: 1GiB}\n' | lockstep apply -f -", check=False)
    assert wrong.status == 2 and '-:2:8: volume v1 has no "sise"' in wrong.err, wrong
    log.wait_for_more(50)
    assert 'nothing differs on host beta' in b.lockstep('adjust').out
    b.daemon('stop')
    b.lockstep('down')
    b.daemon('start')
    wait(b.daemon_answers, 60, 'the daemon of beta to be back')
    b.lockstep('up', timeout=90)
    healthy(c, 'v1')
    log.wait_for_more(50)
    log.stop()
    good, line = log.check(b)
    assert good, line
    assert_same(cluster, 'v1')
