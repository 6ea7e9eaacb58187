# SPDX-License-Identifier: GPL-2.0-or-later
#
# Acceptance tests of XOSTOR that no other file here has a case for; coverage.md tells where each of them is.
import os
import shutil

import pytest

from fakexapi import XenError

GIB = 1 << 30


def failed(code, says=''):
    return pytest.raises(XenError, match='(?s)%s.*%s' % (code, says))


def uuid_of(world, vdi):
    return world.xapi.db['VDI'][vdi]['uuid']


def test_the_package_is_taken_away_and_comes_back(world, sr):
    """The driver stays registered, for the toolstack is not restarted; its library is gone. No VDI is forgotten meanwhile."""
    x = world.xapi
    disks = {x.vdi_create(sr, GIB), x.vdi_create(sr, GIB)}
    whole, x.driver = x.driver, os.path.join(world.folder, 'damaged')
    shutil.copytree(whole, x.driver, symlinks=True)
    os.unlink(os.path.join(x.driver, 'lockstepapi.py'))
    shutil.rmtree(os.path.join(x.driver, '__pycache__'), ignore_errors=True)
    with failed('SR_BACKEND_FAILURE_47', 'Lockstep is not installed on this host'):
        x.sr_scan(sr)
    for pbd in x.pbds(sr):
        x.db['PBD'][pbd]['currently_attached'] = False    # the hosts reboot
        with failed('SR_BACKEND_FAILURE_47', 'Lockstep is not installed on this host'):
            x.pbd_plug(pbd)
    assert not any(x.db['PBD'][p]['currently_attached'] for p in x.pbds(sr)) and set(x.vdis(sr)) == disks
    x.driver = whole
    for pbd in x.pbds(sr):
        x.pbd_plug(pbd)
    x.sr_scan(sr)
    assert set(x.vdis(sr)) == disks
    world.consistent(sr)


def test_an_update_host_by_host(world, sr):
    """The master first. The SR is unplugged on the host that is updated, whose daemon is away for a while; the others work on."""
    x = world.xapi
    disk = x.vdi_create(sr, GIB, 'in use')
    for host, name, other in zip(world.hosts, world.names, world.hosts[1:] + world.hosts[:1]):
        x.plug(disk, other)
        pbd = next(p for p in x.pbds(sr) if x.db['PBD'][p]['host'] == host)
        x.pbd_unplug(pbd)
        world.cluster.stop(name)
        world.cluster.hosts[name].online = False
        new = x.vdi_create(sr, GIB, 'made meanwhile') if host != x.master else None
        with failed('SR_BACKEND_FAILURE_47', 'lockstepd does not run on this host'):
            x.pbd_plug(pbd)
        world.cluster.hosts[name].online = True
        world.cluster.make_devices()
        world.cluster.start(name)
        x.pbd_plug(pbd)
        if new:
            x.plug(new, host)
            x.unplug(new, host)
        x.unplug(disk, other)
        x.sr_scan(sr)
        world.consistent(sr)
    assert len(x.vdis(sr)) == 3 and all(r['currently_attached'] for r in x.db['PBD'].values())


def test_no_copy_is_made_where_a_disk_is_used(world, sr):
    """More hosts than copies: a VM on the host without one uses the disk over the network. Neither use nor snapshot changes where copies lie."""
    x = world.xapi
    disk = x.vdi_create(sr, GIB)
    snapshot = x.vdi_snapshot(disk)
    lies_on = list(world.cluster.volumes[uuid_of(world, disk)]['hosts'])
    [without] = set(world.names) - set(lies_on)
    host = x.host_named(without)
    world.cluster.requests.clear()
    x.plug(disk, host)
    assert world.cluster.volumes[uuid_of(world, disk)]['hosts'] == lies_on
    x.unplug(disk, host)
    assert world.cluster.volumes[uuid_of(world, disk)]['hosts'] == lies_on
    assert {m for _, m, _ in world.cluster.requests} == {'GET'}    # nothing was asked for
    x.plug(snapshot, host, writable=False)
    assert world.cluster.volumes[uuid_of(world, snapshot) + '.view']['hosts'] == lies_on
    x.unplug(snapshot, host)


def test_cold_copy(world, sr):
    """VDI.copy: source and target in dom0 of one host; the target may be created anywhere, the source is only read."""
    x, beta = world.xapi, world.hosts[1]
    source = x.vdi_create(sr, GIB)
    x.plug(source, beta)
    world.cluster.write(uuid_of(world, source), 5, 'data')
    x.unplug(source, beta)
    target = x.vdi_create(sr, int(x.db['VDI'][source]['virtual_size']), 'copy')
    x.plug(source, beta, writable=False)
    x.plug(target, beta)
    for block, value in world.cluster.volumes[uuid_of(world, source)]['blocks'].items():
        world.cluster.write(uuid_of(world, target), block, value)
    assert set(world.cluster.volumes[uuid_of(world, source)]['readers']) == {'beta'}
    x.unplug(target, beta)
    x.unplug(source, beta)
    x.sr_scan(sr)
    assert world.cluster.volumes[uuid_of(world, target)]['blocks'] == {5: 'data'}
    assert not [v for v in world.cluster.volumes.values() if v['writers'] or v['readers']]
    world.consistent(sr)


def test_snapshots_leave_one_volume_when_they_go(world, sr):
    """What other drivers need a garbage collector for: after snapshots and clones have been deleted there is the disk, and nothing else."""
    x, beta = world.xapi, world.hosts[1]
    disk = x.vdi_create(sr, GIB)
    x.plug(disk, beta)
    snapshots = []
    for n in range(3):
        world.cluster.write(uuid_of(world, disk), n, 'round %d' % n)
        snapshots.append(x.vdi_snapshot(disk))
    clone = x.vdi_clone(snapshots[1])
    for gone in (snapshots[1], clone, snapshots[0], snapshots[2]):
        x.vdi_destroy(gone)
    x.sr_scan(sr)
    assert list(world.cluster.volumes) == [uuid_of(world, disk)] and not world.cluster.snapshots
    assert world.cluster.volumes[uuid_of(world, disk)]['blocks'] == {n: 'round %d' % n for n in range(3)}
    x.unplug(disk, beta)
    x.vdi_resize(disk, 2 * GIB)
    world.consistent(sr)


def test_a_refused_create_asks_for_nothing_more(world, sr):
    """No room is told before anything was changed: one request that was refused, none that takes something back."""
    world.cluster.requests.clear()
    with failed('SR_BACKEND_FAILURE_44'):
        world.xapi.vdi_create(sr, 300 * GIB)
    assert [r[1:] for r in world.cluster.requests if r[1] != 'GET'] == [('POST', '/volumes')]
    assert not world.cluster.volumes and not world.xapi.vdis(sr)


def test_what_xapi_repeats_changes_nothing_the_second_time(world, sr):
    x, beta = world.xapi, world.hosts[1]
    disk = x.vdi_create(sr, GIB)
    for _ in range(2):
        first = x.vdi_attach(disk, beta)
        assert x.vdi_attach(disk, beta) == first
    x.vdi_activate(disk, beta)
    for _ in range(2):
        x.vdi_resize(disk, 2 * GIB)
        x.vdi_call('vdi_update', disk)
        x.sr_scan(sr)
        world.consistent(sr)
    for _ in range(2):
        x.vdi_deactivate(disk, beta)
    for _ in range(2):
        x.vdi_detach(disk, beta)
    record = dict(x.db['VDI'][disk])
    x.vdi_destroy(disk)
    x.db['VDI'][disk] = record    # xapi died before it wrote down that the disk is gone
    x.vdi_destroy(disk)
    assert not world.cluster.volumes and not x.vdis(sr)
    for pbd in x.pbds(sr):
        for _ in range(2):
            x.pbd_unplug(pbd)
    for _ in range(2):
        x.sr_call('sr_delete', sr)
    assert not world.cluster.groups
