# SPDX-License-Identifier: GPL-2.0-or-later
#
# Disks copied, exported and imported (raw) by xapi's own programs in dom0, with real bytes: to the end; killed in the middle, with xapi
# there to tidy up and with xapi dead; and done again.
import random

import pytest

MIB = 1 << 20
SIZE = 3 * MIB


class Interrupted(Exception):
    pass


@pytest.fixture
def disk(world, sr):
    """A disk with content."""
    vdi, data = world.xapi.vdi_create(sr, SIZE, 'disk'), random.Random(4).randbytes(SIZE)
    with world.xapi.plugged(vdi, world.hosts[0]) as name:
        world.cluster.write_at(name, 0, data)
    return vdi, data


def content(world, vdi):
    return read(world, world.xapi.db['VDI'][vdi]['uuid'])


def read(world, name):
    """A device; of a snapshot: its view's."""
    view = name + '.view'
    with open(world.cluster.file(view if view in world.cluster.volumes else name), 'rb') as f:
        return f.read()


def writes(world, data, until=SIZE, kill_xapi=False):
    def io(*names):
        for at in range(0, min(until, SIZE), 64 << 10):
            world.cluster.write_at(names[-1], at, data[at:at + (64 << 10)])
        if until < SIZE:
            world.xapi.dead = kill_xapi
            raise Interrupted()
    return io


def toolstack_comes_back(world, sr, host):
    """What was open for dom0 is closed, the SR scanned; who asked for the copy has got an error."""
    x = world.xapi
    x.dead = False
    for vdi in x.vdis(sr):
        if any(k.startswith('host_') for k in x.db['VDI'][vdi]['sm_config']):
            x.unplug(vdi, host)
    x.sr_scan(sr)


def nothing_is_open(world, sr):
    assert not [v for v in world.cluster.volumes.values() if v['writers'] or v['readers']]
    assert not [n for n in world.cluster.volumes if n.endswith('.view')]
    world.consistent(sr)


def test_copy(world, sr, disk):
    x, (vdi, data) = world.xapi, disk
    copy = x.vdi_copy(vdi, sr, world.hosts[1], writes(world, data))
    assert content(world, copy) == content(world, vdi) == data
    nothing_is_open(world, sr)
    assert set(x.vdis(sr)) == {vdi, copy}


def test_copy_is_killed_and_done_again(world, sr, disk):
    x, (vdi, data) = world.xapi, disk
    with pytest.raises(Interrupted):
        x.vdi_copy(vdi, sr, world.hosts[1], writes(world, data, MIB))
    nothing_is_open(world, sr)
    assert x.vdis(sr) == [vdi] and content(world, vdi) == data
    with pytest.raises(Interrupted):
        x.vdi_copy(vdi, sr, world.hosts[1], writes(world, data, MIB, kill_xapi=True))
    toolstack_comes_back(world, sr, world.hosts[1])
    nothing_is_open(world, sr)
    [half] = set(x.vdis(sr)) - {vdi}    # a half copy that its owner sees and deletes
    copy = x.vdi_copy(vdi, sr, world.hosts[2], writes(world, data))
    x.vdi_destroy(half)
    assert content(world, copy) == content(world, vdi) == data != content(world, copy)[:MIB]
    nothing_is_open(world, sr)


def test_export_of_a_disk_in_use(world, sr, disk):
    """By a snapshot, which stands while the guest writes on."""
    x, (vdi, data) = world.xapi, disk
    x.plug(vdi, world.hosts[0])
    snapshot = x.vdi_snapshot(vdi)
    name = x.db['VDI'][vdi]['uuid']

    def export(view):
        world.cluster.write_at(name, 0, bytes(MIB))
        return read(world, view)

    assert x.vdi_export(snapshot, world.hosts[2], export) == data
    for kill_xapi in (False, True):
        with pytest.raises(Interrupted):
            x.vdi_export(snapshot, world.hosts[2], lambda view: writes(world, data, 0, kill_xapi)(view))
        x.dead = False
        if kill_xapi:
            x.unplug(snapshot, world.hosts[2])
        assert x.vdi_export(snapshot, world.hosts[1], lambda view: read(world, view)) == data
    x.unplug(vdi, world.hosts[0])
    nothing_is_open(world, sr)
    assert content(world, vdi) == bytes(MIB) + data[MIB:]
    x.vdi_destroy(snapshot)


def test_import(world, sr):
    x, data = world.xapi, random.Random(5).randbytes(SIZE)
    for kill_xapi in (False, True):
        with pytest.raises(Interrupted):
            x.into_new(sr, SIZE, 'imported', world.hosts[1], writes(world, data, MIB, kill_xapi))
        toolstack_comes_back(world, sr, world.hosts[1])
        nothing_is_open(world, sr)
        assert len(x.vdis(sr)) == kill_xapi
    for vdi in x.vdis(sr):
        x.vdi_destroy(vdi)
    assert content(world, x.into_new(sr, SIZE, 'imported', world.hosts[1], writes(world, data))) == data
    nothing_is_open(world, sr)
