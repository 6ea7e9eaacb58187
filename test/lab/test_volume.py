# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes in use: who serves them, growing them, snapshots, shared ones; all under load."""
import re

from lablib import SyncLog, assert_same, together, wait

MIB = 1 << 20


def primary(cluster, name, host=None):
    return cluster.volume(name, host)['primary']


def test_volume_primary_follows_its_opener(cluster):
    """The primary moves to where the volume is opened, under load, without an error; a choice of the administrator holds."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '128MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(20)
    assert primary(cluster, 'v1') == 'alpha'
    refused = b.run(f'exec 3<>{device}', check=False)
    assert refused.status, 'an exclusive volume was opened twice'
    wait(lambda: 'open on host beta was refused, it is open on host alpha' in c.lockstep('status').out, 20,
         'the status to name who holds the volume')
    assert 'v1: an open on host beta was refused: it is open on host alpha' in b.vm.daemon_path.read_text(errors='replace')
    openers = a.lockstep('openers v1 --json')['openers']
    assert [o['host'] for o in openers] == ['alpha'] and 'fsynclog' in str(openers[0]['processes']), openers
    term = cluster.volume('v1')['record']['term']
    c.lockstep('primary v1 beta', timeout=60)
    assert primary(cluster, 'v1') == 'beta'
    assert cluster.volume('v1')['record']['term'] == term + 1
    log.wait_for_more(50)
    log.stop()
    good, line = log.check(c)
    assert good, line
    again = SyncLog(a, device)
    wait(lambda: primary(cluster, 'v1') == 'alpha', 30, 'the primary to follow the opener back')
    again.wait_for_more(50)
    again.stop()
    good, line = again.check(b)
    assert good, line
    b.lockstep('wait-sync v1 --timeout 60', timeout=75)
    assert_same(cluster, 'v1')


def test_volume_shared(cluster):
    """Every host writes its own sector of a shared volume, all read all, nobody is refused and no role changes."""
    device = cluster.create_volume('ha', '16MiB', '--shared --redundancy 3')
    writers = together(lambda h: SyncLog(h, device, blocks=1), [])
    assert writers == []

    def beat(h):
        at = h.number
        for n in range(10):
            h.run(f'printf %-4096s {h.name}-{n} | dd of={device} bs=4096 seek={at} count=1 oflag=direct conv=notrunc,fsync', timeout=60)
    together(beat, cluster.hosts)
    for h in cluster.hosts:
        seen = h.out(f'dd if={device} bs=4096 skip=1 count=3 iflag=direct', timeout=60)
        assert re.findall(r'(\w+)-9', seen) == [x.name for x in cluster.hosts], seen
    held = [h.start(f'exec 3<>{device}; sleep 1000') for h in cluster.hosts]
    wait(lambda: sorted(cluster.volume('ha')['openers']) == ['alpha', 'beta', 'gamma'], 30, 'all hosts to have it open at once')
    for p in held:
        p.stop()


def test_volume_grows_online(cluster):
    """A volume grows under load, exactly as asked; daemons are killed meanwhile; what was there stays, what is new reads zeros."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('g', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    grow = c.start('lockstep resize g 200003584')
    for h in (a, b):
        h.daemon('kill')
    grow.wait(150)
    wait(lambda: cluster.volume('g', c)['size_bytes'] == 200003584, 90, 'the volume to have grown')
    for h in cluster.hosts:
        wait(lambda: h.out(f'blockdev --getsize64 {device}') == '200003584', 30, f'the device on {h} to have the new size')
    log.wait_for_more(50)
    log.stop()
    good, line = log.check(c)
    assert good, line
    assert b.out(f'dd if={device} bs=1M skip=64 iflag=direct 2>/dev/null | tr -d "\\0" | wc -c', timeout=120) == '0'
    a.run(f'printf end | dd of={device} bs=1 seek=200003581 conv=notrunc,fsync')
    assert b.out(f'tail -c 3 {device}', timeout=120) == 'end'
    c.lockstep('wait-sync g --timeout 60', timeout=75)
    assert_same(cluster, 'g')


def test_volume_snapshots(cluster):
    """Snapshots under load are of one point on all members; a restored volume holds everything that was synced before, and the
    same on every host; reverting, cloning and deleting work in any order."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('s', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    acked = log.acked
    c.lockstep('snapshot create s one', timeout=150)
    log.wait_for_more(50)
    c.lockstep('snapshot create s two', timeout=150)
    log.wait_for_more(20)
    log.stop()
    takes = {s['name']: s['allocated_bytes'] for s in c.lockstep('snapshot list --json')}
    assert 0 < takes['one'] <= takes['two'] < 64 << 20, takes
    c.lockstep('snapshot restore s one back', timeout=120)
    done = b.run(f'/lab/fsynclog check /dev/lockstep/back {log.blocks} {log.seed} {acked}', check=False, timeout=120)
    assert done.status == 0, done
    c.lockstep('wait-sync back --timeout 60', timeout=75)
    assert_same(cluster, 'back')
    c.lockstep('snapshot delete s one', timeout=90)
    c.lockstep('snapshot clone s copy', timeout=150)
    good, line = log.check(c, '/dev/lockstep/copy')
    assert good, line
    a.run(f'dd if=/dev/zero of={device} bs=1M count=8 oflag=direct conv=notrunc,fsync', timeout=60)
    wait(lambda: not cluster.volume('s')['openers'], 30, 'the volume to be closed')
    c.lockstep('snapshot revert s two', timeout=150)
    done = b.run(f'/lab/fsynclog check {device} {log.blocks} {log.seed} {acked}', check=False, timeout=120)
    assert done.status == 0, done
    c.lockstep('wait-sync s --timeout 60', timeout=75)
    assert_same(cluster, 's')
    c.lockstep('snapshot delete s two', timeout=90)
    for h in (a, b):
        assert '.s' not in h.out('lvs --noheadings -o lv_name lockstep_group').replace('lockstep.', '')
