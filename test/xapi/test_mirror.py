# SPDX-License-Identifier: GPL-2.0-or-later
#
# A running VM's disk is migrated into an SR: the source's tapdisk mirrors its guest's writes into one volume while another gets the copy,
# and compose makes one disk of both. Real bytes in files; `lockstep volume overlay` is the real program.
import os
import random
import signal
import threading
import time

import pytest

from conftest import HERE, Killer
from fakexapi import Killed, Migration, XenError

COMMAND = os.path.join(HERE, '..', '..', 'build', 'lockstep')
MIB = 1 << 20
SIZE = 9 * MIB     # the last extent is a part of one

pytestmark = pytest.mark.skipif(not os.path.exists(COMMAND), reason='build/lockstep is not built')


def failed(code, says=''):
    return pytest.raises(XenError, match='(?s)%s.*%s' % (code, says))


@pytest.fixture(autouse=True)
def command(world):
    world.xapi.environment['LOCKSTEP_COMMAND'] = COMMAND


class Source(object):
    """The disk at the source, and its guest, which writes while it is copied."""

    def __init__(self, world, migration, seed=1, before=None):
        self.cluster, self.m, self.dice = world.cluster, migration, random.Random(seed)
        self.bytes = bytearray(before or self.dice.randbytes(SIZE))
        self.snapshot = bytes(self.bytes)

    def guest_writes(self, requests):
        leaf = self.m.uuid(self.m.leaf)
        for _ in range(requests):
            sectors = self.dice.choice((1, 1, 2, 3, 8, 8, 16, 40, 300))
            at = self.dice.randrange(SIZE // 512 - sectors + 1) * 512
            data = bytes(sectors * 512) if self.dice.random() < 0.2 else self.dice.randbytes(sectors * 512)    # a discard reads as zeros
            self.bytes[at:at + len(data)] = data
            self.cluster.write_at(leaf, at, data)

    def copy(self, only=None):
        x, parent = self.m.x, self.m.parent
        x.plug(parent, self.m.host)
        for n, at in enumerate(range(0, SIZE, MIB)):
            if not only or self.snapshot[at:at + MIB] != only[at:at + MIB]:
                self.cluster.write_at(self.m.uuid(parent), at, self.snapshot[at:at + MIB])
            self.guest_writes(7 + n)
        x.unplug(parent, self.m.host)


def content(world, vdi):
    with open(world.cluster.file(world.xapi.db['VDI'][vdi]['uuid']), 'rb') as f:
        return f.read()


def migrated(world, sr, host=1, seed=1):
    m = Migration(world.xapi, sr, SIZE, world.hosts[host])
    source = Source(world, m, seed)
    source.guest_writes(10)
    source.copy()
    source.guest_writes(200)
    return m, source


@pytest.fixture(params=['thin', 'thick'])
def any_sr(world, request):
    return world.with_sr(thick=request.param == 'thick')


@pytest.mark.parametrize('seed', range(2))
def test_every_sector_is_the_newest(world, any_sr, seed):
    sr = any_sr
    m, source = migrated(world, sr, seed, seed)
    leaf = m.finish()
    assert content(world, leaf) == bytes(source.bytes) != source.snapshot
    world.consistent(sr)
    assert world.xapi.vdis(sr) == [leaf] and len(world.cluster.volumes) == 1 and not world.cluster.snapshots
    assert not [k for k in world.cluster.volumes[m.uuid(leaf)]['labels'] if k in ('xapi.mirror', 'xapi.mirror-trail')]
    world.xapi.plug(leaf, world.hosts[2])    # a disk like others, on any host
    assert not world.cluster.volumes[m.uuid(leaf)]['trails']


def test_only_what_was_written_is_copied_over_the_copy(world, any_sr):
    """Not blocks: the sectors beside a written one are the copy's. And nothing if the guest was quiet."""
    sr = any_sr
    m = Migration(world.xapi, sr, SIZE, world.hosts[0])
    source = Source(world, m)
    world.xapi.plug(m.parent, m.host)
    world.cluster.write_at(m.uuid(m.parent), 0, source.snapshot)
    world.xapi.unplug(m.parent, m.host)
    leaf = m.finish()
    assert content(world, leaf) == source.snapshot
    world.consistent(sr)


def test_the_copy_begins_with_what_is_there(world, sr):
    """A VM with snapshots: those come first, and the disk's copy is a clone of the nearest, grown."""
    x = world.xapi
    first = x.vdi_create(sr, 8 * MIB)
    old = random.Random(9).randbytes(8 * MIB)
    x.plug(first, world.hosts[0])
    world.cluster.write_at(x.db['VDI'][first]['uuid'], 0, old)
    x.unplug(first, world.hosts[0])
    nearest = x.vdi_snapshot(first)
    x.vdi_destroy(first)
    m = Migration(x, sr, SIZE, world.hosts[1], nearest=nearest)
    os.truncate(world.cluster.file(m.uuid(m.parent)), SIZE)
    base = old + bytes(MIB)
    source = Source(world, m, before=base[:5 * MIB] + os.urandom(MIB) + base[6 * MIB:])
    source.copy(only=base)
    leaf = m.finish()
    assert content(world, leaf) == bytes(source.bytes)
    world.consistent(sr)


@pytest.mark.slow
def test_copies_are_where_they_can_become_one(make_world):
    world = make_world(['alpha', 'beta', 'gamma', 'delta'])
    x, sr = world.xapi, world.with_sr()
    filler = x.vdi_create(sr, 4 * MIB)
    apart = next(set(world.names) - set(v['hosts']) for v in world.cluster.volumes.values())
    world.cluster.volumes[x.db['VDI'][filler]['uuid']]['hosts'] = sorted(apart)
    for _ in range(2):
        m = Migration(x, sr, SIZE, world.hosts[0])
        leaf, parent = (world.cluster.volumes[m.uuid(v)]['hosts'] for v in (m.leaf, m.parent))
        assert leaf == parent
        snapshot = x.vdi_snapshot(filler)
        world.cluster.snapshots[x.db['VDI'][snapshot]['uuid']]['hosts'] = sorted(set(world.names) - set(leaf))
        m.cancel()
        with failed('SR_BACKEND_FAILURE_81', 'has its copies on'):
            Migration(x, sr, SIZE, world.hosts[0], nearest=snapshot)
        x.vdi_destroy(snapshot)
    world.consistent(sr)
    assert x.vdis(sr) == [filler]


def test_a_trail_that_is_lost_ends_the_migration(world, sr):
    x, cluster = world.xapi, world.cluster
    m, source = migrated(world, sr)
    cluster.volumes[m.uuid(m.leaf)]['trails']['beta']['lost'] = True
    with failed('SR_BACKEND_FAILURE_46', 'not known any more; the migration ends here, the VM goes on at its source'):
        m.finish()
    assert content(world, m.parent) == source.snapshot
    m.cancel()
    # the module was loaded anew, then the leaf is opened again: known before more is copied
    m, source = migrated(world, sr)
    x.unplug(m.leaf, m.host)
    cluster.volumes[m.uuid(m.leaf)]['trails'].clear()
    with failed('SR_BACKEND_FAILURE_46', 'no trail of this number'):
        x.plug(m.leaf, m.host)
    m.cancel()
    # not opened as a migration does
    m = Migration(x, sr, SIZE, world.hosts[1])
    cluster.volumes[m.uuid(m.leaf)]['labels'].pop('xapi.mirror-trail')
    with failed('SR_BACKEND_FAILURE_46', 'was not opened for writing as a migration does'):
        m.finish()
    m.cancel()
    assert x.vdis(sr) == [] and not cluster.volumes and not cluster.snapshots


def test_only_one_host_writes_to_the_leaf(world, sr):
    x = world.xapi
    m, source = migrated(world, sr)
    x.unplug(m.leaf, m.host)
    with failed('SR_BACKEND_FAILURE_46|VDI_IN_USE', 'written to by a storage migration, on host beta'):
        x.plug(m.leaf, world.hosts[2])
    x.plug(m.leaf, m.host)    # again on its own: the trail goes on
    source.guest_writes(50)
    assert content(world, m.finish()) == bytes(source.bytes)


def test_a_guest_does_not_wait_for_the_parent_to_go(world, any_sr):
    """Nor for its being refused: the disk is whole. The next scan removes what stays."""
    x, cluster, sr = world.xapi, world.cluster, any_sr
    m, source = migrated(world, sr)
    parent = m.uuid(m.parent)
    m.finish()
    assert '/volumes/' + parent not in cluster.awaited and ('alpha', 'DELETE', '/volumes/' + parent) in cluster.requests
    assert parent not in cluster.volumes
    m, source = migrated(world, sr)
    parent = m.uuid(m.parent)
    x.unplug(m.leaf, m.host)
    cluster.before = lambda host, method, path: 'dies' if (method, path) == ('DELETE', '/volumes/' + parent) else None
    m.compose()
    cluster.before = None
    assert content(world, m.leaf) == bytes(source.bytes)
    assert m.parent not in x.db['VDI'] and parent in cluster.volumes
    x.sr_scan(sr)
    assert parent not in cluster.volumes
    x.vdi_destroy(m.dummy)
    world.consistent(sr)


def test_what_is_no_mirror_is_not_composed(world, sr):
    x = world.xapi
    leaf, parent = x.vdi_create(sr, SIZE), x.vdi_create(sr, SIZE)
    with failed('SR_BACKEND_FAILURE_46', 'is not what a storage migration writes to'):
        x.vdi_call('vdi_compose', leaf, args=[parent])
    world.consistent(sr)
    assert len(x.vdis(sr)) == 2


def test_a_thick_sr_has_room_for_both_and_no_snapshot(world):
    """What xapi calls a snapshot of the empty leaf is an empty volume. A later snapshot is one."""
    x, sr = world.xapi, world.with_sr(thick=True)
    m = Migration(x, sr, SIZE, world.hosts[0])
    assert not world.cluster.snapshots
    assert sorted(v['size_bytes'] for v in world.cluster.volumes.values()) == [4096, SIZE, SIZE]
    assert x.db['VDI'][m.dummy]['is_a_snapshot'] and x.db['VDI'][m.dummy]['snapshot_of'] == m.leaf
    x.vdi_snapshot(m.leaf)
    assert [s['size_bytes'] for s in world.cluster.snapshots.values()] == [SIZE]


def test_in_a_thick_sr_zeros_become_zeros_and_cost_nothing_where_there_are_some(world):
    """The copy is whole: also where the leaf had something that the source's disk has zeros for, which a trail names."""
    x, sr = world.xapi, world.with_sr(thick=True)
    m = Migration(x, sr, SIZE, world.hosts[0])
    leaf, data = m.uuid(m.leaf), random.Random(3).randbytes(MIB)
    for at, what in ((0, data), (0, bytes(MIB)), (4 * MIB, data)):
        world.cluster.write_at(leaf, at, what)
    x.plug(m.parent, m.host)
    world.cluster.write_at(m.uuid(m.parent), 0, data)     # the copy as it was before the guest's zeros
    world.cluster.write_at(m.uuid(m.parent), 6 * MIB, data)
    x.unplug(m.parent, m.host)
    assert content(world, m.finish()) == bytes(4 * MIB) + data + bytes(MIB) + data + bytes(2 * MIB)
    blocks = os.stat(world.cluster.file(leaf)).st_blocks * 512
    assert blocks < 4 * MIB    # sparse where nobody ever wrote
    world.consistent(sr)


def test_the_command_line_ends_with_the_driver(world, sr, tmp_path):
    """Else it could write to a disk when a repeated call has finished it and a VM uses it."""
    x = world.xapi
    m, _ = migrated(world, sr)
    x.unplug(m.leaf, m.host)
    stalls = tmp_path / 'stalls'
    stalls.write_text('#!/bin/sh\necho $$ >%s/pid.new; mv %s/pid.new %s/pid; exec sleep 1000\n' % ((tmp_path,) * 3))
    stalls.chmod(0o755)
    x.environment['LOCKSTEP_COMMAND'] = str(stalls)
    result = []

    def compose():
        try:
            m.compose()
        except Killed as e:
            result.append(e)
    thread = threading.Thread(target=compose)
    thread.start()
    until(lambda: (tmp_path / 'pid').exists())
    pid = int((tmp_path / 'pid').read_text())
    for driver in list(x.processes):
        os.kill(driver, signal.SIGKILL)
    thread.join(30)
    assert len(result) == 1
    until(lambda: not runs(pid))


def runs(pid):
    try:
        with open('/proc/%d/stat' % pid) as f:
            return f.read().rsplit(')', 1)[1].split()[0] not in 'ZX'
    except FileNotFoundError:
        return False


def until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_compose_is_killed_at_each_step(world, any_sr):
    """The driver dies before or after each of its requests; composed again, or scanned, nothing is lost and nothing stays."""
    sr = any_sr
    killer, x = Killer(world), world.xapi
    killer.disarm()
    steps, n = 99, 0
    while n <= steps:
        for phase in ('before', 'after'):
            m, source = migrated(world, sr, seed=n)
            x.unplug(m.leaf, m.host)
            killer.arm(n or None, phase)
            try:
                m.compose()
            except (Killed, XenError):
                pass
            steps = killer.count if not n else steps
            killer.disarm()
            done = 'xapi.mirror-done' in world.cluster.volumes[m.uuid(m.leaf)]['labels']
            assert done or m.parent in x.db['VDI']
            if done:    # the VM runs perhaps: what it writes must stay, whatever is repeated
                x.plug(m.leaf, world.hosts[2])
                source.guest_writes(5)
                x.unplug(m.leaf, world.hosts[2])
            if m.parent in x.db['VDI'] and (n % 2 or not done):
                m.compose()
            x.sr_scan(sr)
            x.vdi_destroy(m.dummy)
            assert content(world, m.leaf) == bytes(source.bytes), (n, phase)
            world.consistent(sr)
            assert x.vdis(sr) == [m.leaf] and len(world.cluster.volumes) == 1
            x.vdi_destroy(m.leaf)
        n += 1
    assert steps >= 8


@pytest.mark.slow
def test_a_cancelled_one_leaves_nothing_and_can_be_begun_again(world, sr):
    m, _ = migrated(world, sr)
    m.cancel()
    assert world.xapi.vdis(sr) == [] and not world.cluster.volumes and not world.cluster.snapshots
    # cancelled by a host that died: a leaf is left, the next one is another
    left = Migration(world.xapi, sr, SIZE, world.hosts[1])
    world.xapi.unplug(left.leaf, left.host)
    m, source = migrated(world, sr, host=2)
    assert content(world, m.finish()) == bytes(source.bytes)
    left.cancel()
    world.consistent(sr)
