# SPDX-License-Identifier: GPL-2.0-or-later
#
# Many calls at once, and many volumes.
import statistics
import threading
import time

from fakexapi import XenError

MIB, GIB = 1 << 20, 1 << 30


def at_once(functions):
    """Runs them in threads; what each raised, None if nothing."""
    outcome = [None] * len(functions)

    def run(i):
        try:
            functions[i]()
        except BaseException as e:
            outcome[i] = e
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return outcome


def test_twenty_creates_then_deletes_with_scans_between(world, sr):
    x = world.xapi
    assert at_once([lambda i=i: x.vdi_create(sr, GIB, 'disk %d' % i) for i in range(20)] + [lambda: x.sr_scan(sr)] * 3) == [None] * 23
    world.consistent(sr)
    assert len(x.vdis(sr)) == 20 and {r['name_label'] for r in x.db['VDI'].values()} == {'disk %d' % i for i in range(20)}
    doomed = x.vdis(sr)[:15]
    assert at_once([lambda v=v: x.vdi_destroy(v) for v in doomed] + [lambda i=i: x.vdi_create(sr, GIB, 'more %d' % i) for i in range(5)] +
                   [lambda: x.sr_scan(sr)] * 3) == [None] * 23
    world.consistent(sr)
    assert len(x.vdis(sr)) == 10
    assert 'interrupted' not in world.log()    # no scan took work in progress for wreckage


def test_snapshots_clones_and_growth_at_once(world, sr):
    x = world.xapi
    vdis = [x.vdi_create(sr, GIB, 'disk %d' % i) for i in range(4)]
    calls = []
    for v in vdis:
        calls += [lambda v=v: x.vdi_snapshot(v), lambda v=v: x.vdi_clone(v), lambda v=v: x.vdi_resize(v, 2 * GIB)]
    assert at_once(calls + [lambda: x.sr_scan(sr)] * 2) == [None] * 14
    world.consistent(sr)
    assert len(x.vdis(sr)) == 12


def test_space_is_not_given_twice(make_world):
    world = make_world()
    sr = world.create(redundancy='3')
    outcome = at_once([lambda: world.xapi.vdi_create(sr, 30 * GIB)] * 10)    # 2 x 100 GiB may be promised
    assert [e.code for e in outcome if isinstance(e, XenError)] == ['SR_BACKEND_FAILURE_44'] * 4
    assert [e for e in outcome if e and not isinstance(e, XenError)] == []
    world.consistent(sr)
    assert len(world.xapi.vdis(sr)) == 6


def test_readers_of_a_snapshot_come_and_go_at_once(world, sr):
    x = world.xapi
    snapshot = x.vdi_snapshot(x.vdi_create(sr, GIB))

    def read(host):
        for _ in range(2):
            x.plug(snapshot, host, writable=False)
            x.unplug(snapshot, host)
    assert at_once([lambda h=h: read(h) for h in world.hosts] + [lambda: x.sr_scan(sr)]) == [None] * 4
    assert not [n for n in world.cluster.volumes if n.endswith('.view')]
    world.consistent(sr)


def test_a_thousand_volumes(world, sr):
    """Only a scan reads them all; its second pass changes nothing. The times are printed for the record (pytest -s)."""
    x, uuid = world.xapi, world.xapi.db['SR'][sr]['uuid']
    for host in world.cluster.hosts.values():
        host.vgs[('vg0', 'thin')] = 10000 * GIB
    for i in range(1000):
        name = '00000000-0000-4000-8000-%012d' % i
        world.cluster.volume_create(None, {'name': name, 'uuid': name, 'size_bytes': GIB, 'group': uuid, 'labels': {'xapi.name': 'disk %d' % i}})
    x.sr_scan(sr)
    world.consistent(sr)
    calls = len(x.calls)
    x.sr_call('sr_scan', sr)
    assert len(x.calls) - calls < 10
    vdi = x.vdi_by('00000000-0000-4000-8000-000000000500')
    steps = [('vdi_create', lambda: x.vdi_create(sr, GIB)), ('vdi_update', lambda: x.vdi_call('vdi_update', vdi)),
             ('vdi_activate', lambda: x.plug(vdi, world.hosts[1])), ('vdi_deactivate', lambda: x.unplug(vdi, world.hosts[1])),
             ('vdi_resize', lambda: x.vdi_resize(vdi, 2 * GIB)), ('vdi_snapshot', lambda: x.vdi_snapshot(vdi)),
             ('vdi_delete', lambda: x.vdi_destroy(vdi))]
    for command, step in steps:
        world.cluster.requests = []
        began = time.monotonic()
        step()
        listings = [r for r in world.cluster.requests if r[2] == '/wait']
        assert len(world.cluster.requests) <= 12 and not listings, command
        print('%-16s %4.0f ms' % (command, (time.monotonic() - began) * 1000))
    for command in ('sr_scan', 'sr_update'):
        took = []
        for _ in range(3):
            began = time.monotonic()
            x.sr_call(command, sr)
            took.append(time.monotonic() - began)
        print('%-16s %4.0f ms' % (command, statistics.median(took) * 1000))
