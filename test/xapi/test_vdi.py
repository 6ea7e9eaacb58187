# SPDX-License-Identifier: GPL-2.0-or-later
#
# Disks: the storage part of xapi's quicktest, and the cases of XOSTOR's acceptance tests that need no guest.
import base64
import json
import os
import time

import pytest

from fakexapi import NULL, XenError

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def failed(code, says=''):
    return pytest.raises(XenError, match='(?s)%s.*%s' % (code, says))


def record(world, vdi):
    return world.xapi.db['VDI'][vdi]


def volume(world, vdi):
    uuid = record(world, vdi)['uuid']
    return world.cluster.volumes.get(uuid) or world.cluster.snapshots[uuid]


def tapdisk(world, host, vdi):
    r = record(world, vdi)
    name = world.xapi.db['host'][host]['name_label']
    path = os.path.join(world.folder, name, 'dev', 'tapdisk', world.xapi.db['SR'][r['SR']]['uuid'], r['uuid'])
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return json.load(f)


@pytest.mark.parametrize('size', [1, 4095, 4097, 5 * MIB + 512, 90 * GIB])
def test_create_and_destroy(world, sr, size):
    vdi = world.xapi.vdi_create(sr, size, 'disk "ä" <0>', 'first & only', ty='user')
    r = record(world, vdi)
    assert size <= int(r['virtual_size']) < size + 4096
    assert (r['name_label'], r['name_description'], r['type']) == ('disk "ä" <0>', 'first & only', 'user')
    assert r['sm_config']['vdi_type'] == 'aio' and r['managed'] and not r['read_only'] and not r['is_a_snapshot']
    labels = volume(world, vdi)['labels']
    assert labels['xapi.name'] == 'disk "ä" <0>' and 'xapi.creating' not in labels
    world.xapi.vdi_destroy(vdi)
    world.xapi.sr_scan(sr)
    assert not world.xapi.vdis(sr) and not world.cluster.volumes


def test_no_size_limit_but_the_pools(make_world):
    world = make_world()
    for host in world.cluster.hosts.values():
        host.vgs[('vg0', 'thin')] = 40 * TIB
    sr = world.create()
    vdi = world.xapi.vdi_create(sr, 20 * TIB)
    assert int(record(world, vdi)['virtual_size']) == 20 * TIB
    world.xapi.vdi_resize(vdi, 21 * TIB)
    with failed('SR_BACKEND_FAILURE_79', 'above the limit of 64 TiB'):
        world.xapi.vdi_create(sr, 65 * TIB)
    world.consistent(sr)


@pytest.mark.parametrize('coded', [True, False])
def test_no_space(make_world, coded):
    world = make_world(without=() if coded else ['code'])
    sr = world.with_sr()
    with failed('SR_BACKEND_FAILURE_44', 'There is insufficient space.*cannot be placed'):
        world.xapi.vdi_create(sr, 300 * GIB)
    vdi = world.xapi.vdi_create(sr, GIB)
    with failed('SR_BACKEND_FAILURE_44', 'cannot grow'):
        world.xapi.vdi_resize(vdi, 300 * GIB)
    world.consistent(sr)
    assert len(world.xapi.vdis(sr)) == 1


def test_too_few_hosts_online_is_not_lack_of_space(world, sr):
    for name in ('beta', 'gamma'):
        world.cluster.hosts[name].online = False
    with failed('SR_BACKEND_FAILURE_78|SR_BACKEND_FAILURE_44', 'cannot be placed on 2 hosts: 1 have room'):
        world.xapi.vdi_create(sr, GIB)
    world.consistent(sr)


@pytest.mark.parametrize('config, fits', [({'type': 'raw'}, True), ({'image-format': 'raw'}, True), ({'type': 'vhd'}, False),
                                          ({'image-format': 'qcow2'}, False)])
def test_formats(world, sr, config, fits):
    if fits:
        world.xapi.vdi_create(sr, GIB, sm_config=config)
    else:
        with failed('SR_BACKEND_FAILURE_66', 'raw volumes only'):
            world.xapi.vdi_create(sr, GIB, sm_config=config)
    world.consistent(sr)


def test_characters_that_xml_does_not_take(world, sr):
    with failed('SR_BACKEND_FAILURE_'):
        world.xapi.sr_call('vdi_create', sr, args=['4096', 'a\x01b', '', '', 'false', '19700101T00:00:00Z', '', 'false'], vdi_type='user',
                           vdi_sm_config={})
    assert not world.cluster.volumes


def test_only_the_drivers_session_may_forget(world, sr):
    vdi = world.xapi.vdi_create(sr, GIB)
    session = world.xapi.call('session.login_with_password', 'root', '', '', 'SM')
    with failed('PERMISSION_DENIED'):
        world.xapi.call('VDI.db_forget', session, vdi)
    world.xapi.call('session.logout', session)
    assert vdi in world.xapi.db['VDI']


def test_introduce(world, sr):
    x = world.xapi
    vdi = x.vdi_create(sr, GIB, 'disk')
    uuid = record(world, vdi)['uuid']
    with failed('SR_BACKEND_FAILURE_43', 'is there already'):
        x.vdi_introduce(sr, uuid, uuid)
    other = '0b1d3fa8-0000-4000-8000-000000000001'
    with failed('SR_BACKEND_FAILURE_65', 'has the uuid of its volume'):
        x.vdi_introduce(sr, other, uuid)
    with failed('VDI_MISSING', 'there is no volume named'):
        x.vdi_introduce(sr, other, other)
    del x.db['VDI'][vdi]
    assert x.vdi_introduce(sr, uuid, uuid) == {'uuid': uuid, 'location': uuid}
    assert record(world, x.vdi_by(uuid))['name_label'] == 'disk'
    world.consistent(sr)


def test_update(world, sr):
    vdi = world.xapi.vdi_create(sr, GIB, 'disk')
    record(world, vdi).update(name_label='neuer Näme', name_description='')
    world.xapi.vdi_call('vdi_update', vdi)
    labels = volume(world, vdi)['labels']
    assert labels['xapi.name'] == 'neuer Näme' and labels['xapi.description'] == '' and 'xapi.snapshot-of' not in labels


# ---- data path ----


def test_attach_result(world, sr):
    x, beta = world.xapi, world.hosts[1]
    vdi = x.vdi_create(sr, GIB)
    r, sr_uuid = record(world, vdi), x.db['SR'][sr]['uuid']
    result = x.vdi_attach(vdi, beta)
    assert result['params'] == '/dev/sm/backend/%s/%s' % (sr_uuid, r['uuid'])
    assert result['params_nbd'] == 'nbd:unix:/run/blktap-control/nbd/%s/%s:exportname=%s' % (sr_uuid, r['uuid'], r['uuid'])
    assert not volume(world, vdi)['writers']    # only activate opens
    x.vdi_activate(vdi, beta)
    assert tapdisk(world, beta, vdi)['path'] == os.path.join(world.cluster.devices('beta'), r['uuid'])
    assert set(volume(world, vdi)['writers']) == {'beta'} and r['sm_config']['host_' + beta] == 'RW'
    with failed('VDI_IN_USE', 'is open on host beta'):
        x.vdi_destroy(vdi)
    x.unplug(vdi, beta)
    assert tapdisk(world, beta, vdi) is None and not volume(world, vdi)['writers'] and 'host_' + beta not in r['sm_config']
    x.unplug(vdi, beta)    # xapi repeats what it is not sure of
    x.vdi_destroy(vdi)


@pytest.mark.slow
def test_twenty_readers(world, sr):
    vdi = world.xapi.vdi_create(sr, GIB)
    for _ in range(20):
        world.xapi.plug(vdi, world.hosts[0], writable=False)
        world.xapi.unplug(vdi, world.hosts[0])
    for host in world.hosts:
        world.xapi.plug(vdi, host, writable=False)
    assert set(volume(world, vdi)['readers']) == set(world.names)
    for host in world.hosts:
        world.xapi.unplug(vdi, host)


def test_two_hosts_one_writer(world, sr):
    x, (alpha, beta, _) = world.xapi, world.hosts
    vdi = x.vdi_create(sr, GIB)
    x.plug(vdi, alpha)
    x.vdi_attach(vdi, beta)    # a migration does this early
    with failed('SR_BACKEND_FAILURE_'):
        x.vdi_activate(vdi, beta)
    # Without sm's own mark too: the record may have been reset by hand.
    del record(world, vdi)['sm_config']['host_' + alpha]
    with failed('SR_BACKEND_FAILURE_46', 'open for writing on host alpha: close it there first'):
        x.vdi_activate(vdi, beta)
    assert tapdisk(world, beta, vdi) is None and not [k for k in record(world, vdi)['sm_config'] if k.startswith('host_') or k == 'activating']
    assert set(volume(world, vdi)['writers']) == {'alpha'}


def test_migration_order(world, sr):
    """On another host as soon as the first one's deactivate has returned, however late the cluster hears of the close."""
    x, (alpha, beta, _) = world.xapi, world.hosts
    vdi = x.vdi_create(sr, GIB)
    x.plug(vdi, alpha)
    world.cluster.close_delay_s = 1.0
    for source, target in ((alpha, beta), (beta, alpha)):
        x.vdi_attach(vdi, target)
        x.vdi_deactivate(vdi, source)
        x.vdi_activate(vdi, target)
        x.vdi_detach(vdi, source)
    assert set(volume(world, vdi)['writers']) == {'alpha'}


def test_a_device_that_something_else_holds_open(make_world):
    world = make_world()
    sr = world.create()
    x, alpha = world.xapi, world.hosts[0]
    vdi = x.vdi_create(sr, GIB)
    x.plug(vdi, alpha)
    world.cluster.closed = lambda *_: None
    with failed('SR_BACKEND_FAILURE_46', 'still open for writing on host alpha: something else than tapdisk'):
        x.vdi_deactivate(vdi, alpha)


def test_a_tapdisk_that_cannot_open_leaves_nothing_behind(world, sr):
    """The holder's host is offline, so only the kernel can refuse; once it is gone the same call succeeds."""
    x, beta = world.xapi, world.hosts[1]
    vdi = x.vdi_create(sr, GIB)
    world.cluster.hosts['gamma'].online = False
    volume(world, vdi)['writers']['gamma'] = True
    x.vdi_attach(vdi, beta)
    with failed('SR_BACKEND_FAILURE_', 'busy'):
        x.vdi_activate(vdi, beta)
    assert not [k for k in record(world, vdi)['sm_config'] if k.startswith('host_') or k == 'activating']
    volume(world, vdi)['writers'].clear()
    x.vdi_activate(vdi, beta)
    assert set(volume(world, vdi)['writers']) == {'beta'}
    x.unplug(vdi, beta)
    world.consistent(sr)


def test_plugged_anew_it_has_its_size_and_nothing_leaks(world, sr):
    x, beta = world.xapi, world.hosts[1]
    before = len(world.cluster.volumes) + len(world.cluster.snapshots)
    vdi = x.vdi_create(sr, 4 * MIB + 1)
    size = record(world, vdi)['virtual_size']
    for pbd in x.pbds(sr):
        x.pbd_unplug(pbd)
    for pbd in x.pbds(sr):
        x.pbd_plug(pbd)
    assert record(world, vdi)['virtual_size'] == size == str(volume(world, vdi)['size_bytes'])
    x.vdi_resize(vdi, int(size) + MIB)
    assert record(world, vdi)['virtual_size'] == str(int(size) + MIB)
    x.plug(vdi, beta)
    snapshot = x.vdi_snapshot(vdi)    # while it is attached
    x.plug(snapshot, beta, writable=False)
    for disk in (snapshot, vdi):
        x.unplug(disk, beta)
    for disk in (vdi, snapshot):    # the origin first
        x.vdi_destroy(disk)
    x.sr_scan(sr)
    assert x.vdis(sr) == [] and len(world.cluster.volumes) + len(world.cluster.snapshots) == before
    world.consistent(sr)


def test_attach_waits_for_the_device(world, sr):
    vdi = world.xapi.vdi_create(sr, GIB)
    path = os.path.join(world.cluster.devices('beta'), record(world, vdi)['uuid'])
    os.unlink(path)
    import threading
    timer = threading.Timer(0.7, world.cluster.make_devices)
    timer.start()
    began = time.monotonic()
    world.xapi.plug(vdi, world.hosts[1])
    assert time.monotonic() - began > 0.5
    world.xapi.unplug(vdi, world.hosts[1])


def test_attach_of_what_is_gone(world, sr):
    vdi = world.xapi.vdi_create(sr, GIB)
    del world.cluster.volumes[record(world, vdi)['uuid']]
    with failed('VDI_MISSING', 'there is no volume named'):
        world.xapi.plug(vdi, world.hosts[1])
    assert 'activating' not in record(world, vdi)['sm_config']
    world.xapi.vdi_destroy(vdi)    # nothing left to delete: done


# ---- resize ----


def test_resize(world, sr):
    vdi = world.xapi.vdi_create(sr, 10 * MIB)
    for size in (11 * MIB, 11 * MIB, 11 * MIB + 1):
        world.xapi.vdi_resize(vdi, size)
        assert size <= int(record(world, vdi)['virtual_size']) < size + 4096
    with failed('SR_BACKEND_FAILURE_79', 'can grow, not shrink'):
        world.xapi.vdi_resize(vdi, 10 * MIB)
    world.consistent(sr)


def test_resize_online(world, sr):
    x, beta = world.xapi, world.hosts[1]
    vdi = x.vdi_create(sr, GIB)
    x.plug(vdi, beta)
    x.vdi_resize(vdi, 2 * GIB)
    assert tapdisk(world, beta, vdi)['generation'] == 1    # has looked at the size again
    assert int(record(world, vdi)['virtual_size']) == 2 * GIB
    assert 'paused' not in record(world, vdi)['sm_config']


def utilisation(world, vdi):
    return int(record(world, vdi)['physical_utilisation'])


def test_physical_utilisation(world, sr):
    """What a thin disk takes of its pool follows it in steps of a hundredth of its size; what nobody has measured is not taken for 0."""
    x, beta = world.xapi, world.hosts[1]
    world.cluster.new_are_unmeasured = True
    vdi = x.vdi_create(sr, 100 * MIB)
    assert utilisation(world, vdi) == 0    # it is new, and thin
    volume(world, vdi)['unmeasured'] = False
    x.plug(vdi, beta)

    def write(blocks):
        for n in blocks:
            world.cluster.write(record(world, vdi)['uuid'], n, 'data')
        x.sr_scan(sr)
        return utilisation(world, vdi)
    assert write(range(100)) == 100 * 65536
    assert write(range(100, 115)) == 100 * 65536    # 0.94 % more
    assert write(range(115, 117)) == 117 * 65536
    volume(world, vdi)['unmeasured'] = True
    assert write(range(200, 400)) == 117 * 65536
    x.vdi_resize(vdi, 200 * MIB)
    assert utilisation(world, vdi) == 117 * 65536
    volume(world, vdi)['unmeasured'] = False
    assert write([]) == 317 * 65536
    for unmeasured, takes in ((True, 200 * MIB), (False, 317 * 65536)):    # of an earlier daemon's nobody tells
        world.cluster.new_are_unmeasured = unmeasured
        snapshot = x.vdi_snapshot(vdi)
        x.sr_scan(sr)
        assert utilisation(world, snapshot) == takes
    assert int(x.db['SR'][sr]['physical_utilisation']) == 317 * 65536


def test_physical_utilisation_in_a_thick_sr(make_world):
    world = make_world()
    for host in world.cluster.hosts.values():
        host.vgs[('vg1', None)] = 50 * GIB
    vdi = world.xapi.vdi_create(world.with_sr(thick=True), GIB)
    assert utilisation(world, vdi) == GIB
    assert utilisation(world, world.xapi.vdi_snapshot(vdi)) == GIB // 5    # what is reserved for it


# ---- snapshots ----


def test_snapshot_and_clone_fields(world, sr):
    x = world.xapi
    vdi = x.vdi_create(sr, GIB, 'disk', 'of a VM')
    x.plug(vdi, world.hosts[1])
    world.cluster.write(record(world, vdi)['uuid'], 3, 'old')
    snapshot = x.vdi_snapshot(vdi)    # while it is in use
    world.cluster.write(record(world, vdi)['uuid'], 3, 'new')
    r = record(world, snapshot)
    assert (r['is_a_snapshot'], r['snapshot_of'], r['read_only'], r['type']) == (True, vdi, True, 'user')
    assert r['virtual_size'] == str(GIB) and r['uuid'] == r['location'] and r['sm_config']['vdi_type'] == 'aio'
    clone = x.vdi_clone(snapshot)
    c = record(world, clone)
    assert (c['is_a_snapshot'], c['snapshot_of'], c['read_only']) == (False, NULL, False)
    assert volume(world, clone)['blocks'] == {3: 'old'} and volume(world, vdi)['blocks'] == {3: 'new'}
    x.plug(clone, world.hosts[0])
    x.plug(snapshot, world.hosts[0], writable=False)
    x.unplug(clone, world.hosts[0])
    x.unplug(snapshot, world.hosts[0])
    world.consistent(sr)
    x.sr_scan(sr)
    assert len(x.vdis(sr)) == 3 and record(world, snapshot)['snapshot_of'] == vdi
    x.unplug(vdi, world.hosts[1])
    x.vdi_destroy(vdi)    # in any order
    x.sr_scan(sr)
    x.vdi_call('vdi_update', snapshot)
    for v in (clone, snapshot):
        x.vdi_destroy(v)
    assert not world.cluster.volumes and not world.cluster.snapshots    # nothing is left to be coalesced


def test_a_snapshot_cannot_be_written(world, sr):
    x = world.xapi
    snapshot = x.vdi_snapshot(x.vdi_create(sr, GIB))
    with failed('SR_BACKEND_FAILURE_46', 'is a snapshot: it can be attached read-only'):
        x.plug(snapshot, world.hosts[0])
    assert not [n for n in world.cluster.volumes if n.endswith('.view')]
    with failed('SR_BACKEND_FAILURE_66', 'it keeps its size'):
        x.vdi_resize(snapshot, 2 * GIB)
    with failed('SR_BACKEND_FAILURE_82', 'is a snapshot itself'):
        x.vdi_snapshot(snapshot)


def views(world):
    return sorted(n for n in world.cluster.volumes if n.endswith('.view'))


def test_a_snapshot_is_read_through_a_view(world, sr):
    x, (alpha, beta, gamma) = world.xapi, world.hosts
    vdi = x.vdi_create(sr, GIB)
    x.plug(vdi, alpha)
    world.cluster.write(record(world, vdi)['uuid'], 7, 'then')
    snapshot = x.vdi_snapshot(vdi)
    world.cluster.write(record(world, vdi)['uuid'], 7, 'now')
    name = record(world, snapshot)['uuid'] + '.view'
    for host in (beta, gamma, beta):
        x.plug(snapshot, host, writable=False)
    assert views(world) == [name] and world.cluster.volumes[name]['blocks'] == {7: 'then'}
    assert tapdisk(world, beta, snapshot)['path'] == os.path.join(world.cluster.devices('beta'), name)
    x.sr_scan(sr)
    world.consistent(sr)    # the view is no VDI
    assert views(world) == [name]    # and in use
    with failed('VDI_IN_USE', 'is open on host beta, gamma'):
        x.vdi_destroy(snapshot)
    x.unplug(snapshot, beta)
    assert views(world) == [name]
    x.unplug(snapshot, gamma)
    assert views(world) == []
    x.unplug(snapshot, gamma)
    world.cluster.snapshots[name[:-5]]    # the snapshot itself stays
    x.unplug(vdi, alpha)


def test_views_that_nobody_uses_any_more(world, sr):
    x, (alpha, beta, gamma) = world.xapi, world.hosts
    snapshot = x.vdi_snapshot(x.vdi_create(sr, GIB))
    x.plug(snapshot, beta, writable=False)
    x.plug(snapshot, gamma, writable=False)
    [name] = views(world)
    labels = world.cluster.volumes[name]['labels']
    labels['xapi.view-user.beta'] = 'an earlier boot'
    world.cluster.volumes[name]['readers'].clear()
    x.pbd_plug(next(k for k, r in x.db['PBD'].items() if r['host'] == beta))    # beta has rebooted
    assert 'xapi.view-user.beta' not in labels and views(world) == [name]
    x.plug(snapshot, alpha, writable=False)
    labels['xapi.view-user.alpha'] = 'an earlier boot'
    x.pbd_plug(next(k for k, r in x.db['PBD'].items() if r['host'] == alpha))    # the master too
    assert 'xapi.view-user.alpha' not in labels and views(world) == [name]
    world.cluster.volumes[name]['readers'].pop('alpha', None)
    world.cluster.hosts['gamma'].joined = False    # gamma has left the cluster for good
    x.sr_scan(sr)
    assert views(world) == []
    world.cluster.hosts['gamma'].joined = True
    world.cluster.restore(None, world.cluster.snapshots[name[:-5]]['volume'], name[:-5], {
        'name': name, 'group': x.db['SR'][sr]['uuid'], 'labels': {'xapi.view-of': name[:-5]}})    # a driver was killed after this
    x.vdi_destroy(snapshot)
    assert views(world) == []


def disk_with_snapshots(world, sr):
    """A disk and its snapshots, whose blocks are 1, 2; it is 3."""
    x = world.xapi
    vdi = x.vdi_create(sr, GIB)
    x.plug(vdi, world.hosts[0])
    snapshots = []
    for content in (1, 2, 3):
        world.cluster.write(record(world, vdi)['uuid'], 0, content)
        if content < 3:
            snapshots.append(x.vdi_snapshot(vdi))
    x.unplug(vdi, world.hosts[0])
    return vdi, snapshots


@pytest.mark.parametrize('thick', [False, True])
def test_revert(world, thick):
    """In place: the disk stays the one that it is."""
    x, sr = world.xapi, world.with_sr(thick=thick)
    vdi, (first, latest) = disk_with_snapshots(world, sr)
    x.plug(vdi, world.hosts[2])
    with failed('VDI_IN_USE', 'is open on host'):
        x.vdi_revert(latest)
    assert x.durations[-1][0] == 'vdi_revert'    # nobody has tried to destroy it
    x.unplug(vdi, world.hosts[2])
    before = record(world, vdi)
    for _ in range(2):    # repeated, as after an answer that was lost
        assert x.vdi_revert(latest) == vdi and volume(world, vdi)['blocks'] == {0: 2}
    assert record(world, vdi) == before
    assert x.vdi_revert(first) == vdi and volume(world, vdi)['blocks'] == {0: 1}
    assert x.vdi_revert(latest) == vdi and volume(world, vdi)['blocks'] == {0: 2}
    volume(world, latest)['full'] = True    # of which a thick pool's host says so: then by a clone
    assert (x.vdi_revert(first) == vdi) != thick
    world.consistent(sr)


@pytest.mark.parametrize('thick', [False, True])
@pytest.mark.parametrize('why', ['sm of before', 'daemon of before', 'grown'])
def test_revert_by_a_clone(world, thick, why):
    """Where it cannot be done in place xapi destroys the disk and clones the snapshot. Whether or not the disk could go before its snapshots,
    in the end nothing of it is left."""
    x, sr = world.xapi, world.with_sr(thick=thick)
    if why == 'sm of before':
        x.environment['FAKE_SM_OF_BEFORE'] = '1'
        x.register_driver(x.master)
        assert not x.has('VDI_REVERT')
    elif why == 'daemon of before':
        world.cluster.without.add('POST /volumes/([^/]+)/snapshots/([^/]+)/revert')
    vdi, snapshots = disk_with_snapshots(world, sr)
    old = record(world, vdi)['uuid']
    if why == 'grown':
        volume(world, vdi)['size_bytes'] *= 2
        x.sr_scan(sr)
    reverted = x.vdi_revert(snapshots[0])
    assert reverted != vdi and volume(world, reverted)['blocks'] == {0: 1} and vdi not in x.db['VDI']
    assert [record(world, s)['snapshot_of'] for s in snapshots] == [reverted] * 2
    assert (old in world.cluster.volumes) == thick
    x.sr_scan(sr)
    assert len(x.vdis(sr)) == 3
    x.sr_call('sr_update', sr)
    assert x.db['SR'][sr]['virtual_allocation'] == str(3 * GIB)
    if thick:
        with failed('VDI_MISSING', 'is not in SR'):
            x.vdi_introduce(sr, old, old)
    x.vdi_destroy(snapshots[0])
    assert (old in world.cluster.volumes) == thick
    x.vdi_destroy(snapshots[1])
    assert old not in world.cluster.volumes
    world.consistent(sr)


def test_what_was_deleted_before_its_snapshots_goes_with_the_sr(world):
    x, sr = world.xapi, world.with_sr(thick=True)
    vdi, snapshots = disk_with_snapshots(world, sr)
    x.vdi_destroy(vdi)
    assert x.vdis(sr) == snapshots
    for snapshot in list(world.cluster.snapshots):    # an administrator has removed them
        del world.cluster.snapshots[snapshot]
    x.sr_scan(sr)
    assert not world.cluster.volumes and not x.vdis(sr)
    vdi, snapshots = disk_with_snapshots(world, sr)
    x.vdi_destroy(vdi)
    world.cluster.snapshots.clear()
    x.sr_call('sr_delete', sr)
    assert not world.cluster.volumes and not world.cluster.groups


def test_what_was_deleted_before_its_snapshots_waits_for_a_host_that_has_one(world):
    """The snapshot is deleted, its copy on a host that is away is not; so long the daemon refuses to delete the volume, and nothing fails of that."""
    x, sr = world.xapi, world.with_sr(thick=True)
    vdi, snapshots = disk_with_snapshots(world, sr)
    old = record(world, vdi)['uuid']
    other = x.vdi_create(sr, GIB)
    away = volume(world, vdi)['hosts'][1]
    x.vdi_destroy(vdi)
    world.cluster.hosts[away].online = False
    for snapshot in snapshots:
        x.vdi_destroy(snapshot)
    assert x.vdis(sr) == [other] and old in world.cluster.volumes
    for _ in range(2):
        x.sr_scan(sr)
        assert x.vdis(sr) == [other] and 'xapi.deleted' in world.cluster.volumes[old]['labels']
    world.cluster.back(away)
    # What else may be in the way of one disk is of no concern to the others.
    world.cluster.volumes[old]['readers']['alpha'] = True
    x.sr_scan(sr)
    assert x.vdis(sr) == [other] and 'stays until the next scan' in world.log()
    world.cluster.volumes[old]['readers'].clear()
    x.sr_scan(sr)
    assert x.vdis(sr) == [other] and old not in world.cluster.volumes and not world.cluster.snapshots


def test_outgoing_storage_migration(world, sr):
    x, beta = world.xapi, world.hosts[1]
    vdi = x.vdi_create(sr, GIB)
    x.plug(vdi, beta)
    x.vdi_snapshot(vdi, mirror='nbd:dp1', base_mirror='a/b')
    state = tapdisk(world, beta, vdi)
    assert state['secondary'] == 'nbd:dp1' and not state['paused'] and 'paused' not in record(world, vdi)['sm_config']
    world.cluster.without.add('POST /volumes/([^/]+)/snapshots')
    with failed('SR_BACKEND_FAILURE_82', 'update it'):
        x.vdi_snapshot(vdi, mirror='nbd:dp2')
    state = tapdisk(world, beta, vdi)
    assert not state['paused'] and state['secondary'] == 'nbd:dp1' and 'paused' not in record(world, vdi)['sm_config']


@pytest.mark.parametrize('verb, command, code', [('snapshots', 'vdi_snapshot', 82), ('clone', 'vdi_clone', 81), ('resize', 'vdi_resize', 110)])
def test_what_the_daemon_cannot_do_yet(make_world, verb, command, code):
    world = make_world(without=['POST /volumes/([^/]+)/' + verb])
    sr = world.with_sr()
    vdi = world.xapi.vdi_create(sr, GIB)
    with failed('SR_BACKEND_FAILURE_%d' % code, 'cannot do this yet.*update it'):
        world.xapi.vdi_resize(vdi, 2 * GIB) if verb == 'resize' else getattr(world.xapi, command)(vdi)
    world.consistent(sr)
    assert len(world.xapi.vdis(sr)) == 1


# ---- changed blocks ----


def bits(text):
    data = base64.b64decode(text)
    return [i for i in range(len(data) * 8) if data[i // 8] & 0x80 >> i % 8]


@pytest.mark.parametrize('thick', [False, True])
def test_changed_blocks(world, thick):
    x, sr = world.xapi, world.with_sr(thick=thick)
    vdi = x.vdi_create(sr, 16 * MIB)
    x.plug(vdi, world.hosts[0])
    uuid = record(world, vdi)['uuid']
    before = x.vdi_snapshot(vdi)
    with failed('SR_BACKEND_FAILURE_460', 'not enabled'):
        x.vdi_call('vdi_list_changed_blocks', before, args=[vdi])
    x.vdi_call('vdi_enable_cbt', vdi)
    x.vdi_call('vdi_enable_cbt', vdi)
    record(world, vdi)['cbt_enabled'] = True    # xapi does
    first = x.vdi_snapshot(vdi)
    assert record(world, first)['cbt_enabled']
    world.cluster.write(uuid, 0, 'x')
    world.cluster.write(uuid, 200, 'x')
    second = x.vdi_snapshot(vdi)
    world.cluster.write(uuid, 9, 'x')
    assert bits(x.vdi_call('vdi_list_changed_blocks', first, args=[second])) == [0, 200]
    assert bits(x.vdi_call('vdi_list_changed_blocks', first, args=[vdi])) == [0, 9, 200]
    assert len(base64.b64decode(x.vdi_call('vdi_list_changed_blocks', first, args=[second]))) == 16 * MIB // 65536 // 8
    with failed('SR_BACKEND_FAILURE_460', 'no snapshot of volume'):
        x.vdi_call('vdi_list_changed_blocks', vdi, args=[first])
    with failed('SR_BACKEND_FAILURE_460', 'same VDI'):
        x.vdi_call('vdi_list_changed_blocks', first, args=[first])
    with failed('SR_BACKEND_FAILURE_66', 'only a snapshot'):
        x.vdi_call('vdi_data_destroy', vdi)
    with failed('SR_BACKEND_FAILURE_66', 'was not enabled'):
        x.vdi_call('vdi_data_destroy', before)
    with failed('SR_BACKEND_FAILURE_66', 'is a snapshot'):
        x.vdi_call('vdi_enable_cbt', first)
    x.vdi_call('vdi_data_destroy', first)
    assert volume(world, first)['labels']['xapi.type'] == 'cbt_metadata'
    with failed('SR_BACKEND_FAILURE_66', 'data of snapshot .* destroyed'):
        x.plug(first, world.hosts[0], writable=False)
    assert bits(x.vdi_call('vdi_list_changed_blocks', first, args=[second])) == [0, 200]
    x.sr_scan(sr)
    world.consistent(sr)
    x.vdi_call('vdi_disable_cbt', vdi)
    assert 'xapi.cbt' not in volume(world, vdi)['labels']


def test_changed_blocks_of_a_snapshot_whose_reserve_was_too_small(world):
    """Only that one cannot be compared any more: whoever makes backups makes a full one, and goes on from that."""
    x, sr = world.xapi, world.with_sr(thick=True)
    vdi = x.vdi_create(sr, 16 * MIB)
    x.plug(vdi, world.hosts[0])
    x.vdi_call('vdi_enable_cbt', vdi)
    record(world, vdi)['cbt_enabled'] = True
    lost = x.vdi_snapshot(vdi)
    volume(world, lost)['lost'] = True
    with failed('SR_BACKEND_FAILURE_460', 'its reserve was too small'):
        x.vdi_call('vdi_list_changed_blocks', lost, args=[vdi])
    next_one = x.vdi_snapshot(vdi)
    world.cluster.write(record(world, vdi)['uuid'], 9, 'x')
    assert bits(x.vdi_call('vdi_list_changed_blocks', next_one, args=[vdi])) == [9]


# ---- HA ----


def test_statefile_on_all_hosts(world, sr):
    x = world.xapi
    vdi = x.vdi_create(sr, 266240, 'Statefile for HA', ty='ha_statefile', sm_config={'type': 'raw'})
    v = volume(world, vdi)
    assert v['class'] == 'shared' and len(v['hosts']) == 3    # one more copy than other disks
    assert record(world, vdi)['sharable'] and record(world, vdi)['type'] == 'ha_statefile'
    config = x.vdi_call('vdi_generate_config', vdi)
    for host, name in zip(world.hosts, world.names):
        # No xapi, no session, no quorum, and not even a daemon: the kernel has the device.
        world.cluster.quorum = False
        world.cluster.stop(name)
        result = x.static_attach(host, config)
        assert result == {'params': os.path.join(world.cluster.devices(name), record(world, vdi)['uuid']), 'xenstore_data': {}}
        assert x.static_attach(host, config) == result
        assert x.static_attach(host, config, 'vdi_detach_from_config') is None
    for name in world.names:
        world.cluster.start(name)
    world.cluster.quorum = True
    redo = x.vdi_create(sr, 256 * MIB, ty='redo_log', sm_config={'type': 'raw'})
    assert volume(world, redo)['class'] == 'shared'
    x.sr_scan(sr)
    assert record(world, vdi)['type'] == 'ha_statefile'


def test_no_statefile_without_shared_volumes(make_world):
    world = make_world(without=['shared'])
    sr = world.with_sr()
    with failed('SR_BACKEND_FAILURE_78', 'has no shared volumes, which ha_statefile needs'):
        world.xapi.vdi_create(sr, 266240, ty='ha_statefile')
    assert not world.cluster.volumes and not world.xapi.vdis(sr)


def test_attach_from_config_waits_for_a_host_that_boots(world, sr):
    import threading
    vdi = world.xapi.vdi_create(sr, 266240, ty='ha_statefile')
    config = world.xapi.vdi_call('vdi_generate_config', vdi)
    os.unlink(os.path.join(world.cluster.devices('gamma'), record(world, vdi)['uuid']))
    threading.Timer(0.7, world.cluster.make_devices).start()
    world.xapi.static_attach(world.hosts[2], config)
