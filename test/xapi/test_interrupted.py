# SPDX-License-Identifier: GPL-2.0-or-later
#
# The driver is killed in the middle of a call: at each of its requests to the daemon and to xapi, before that is carried out and
# after it. Then follows what xapi does: it repeats the calls it repeats, or tells its user of the failure; and scans. What must come out:
# records and volumes that agree, nothing half made, nothing lost, the call done or not done.
import os
import shutil

import pytest

from conftest import CONFIG, Killer
from fakexapi import Killed, XenError

GIB = 1 << 30


class Case(object):
    """One call to be interrupted. repeats: xapi itself sends it again until it is done."""
    repeats = True

    def __init__(self, world, sr):
        self.world, self.sr, self.x = world, sr, world.xapi
        self.alpha, self.beta, self.gamma = world.hosts
        self.before()

    def before(self):
        self.vdi = self.x.vdi_create(self.sr, GIB, 'disk')
        self.uuid = self.x.db['VDI'][self.vdi]['uuid']

    def disks(self):
        return len(self.x.vdis(self.sr))


class Create(Case):
    repeats = False

    def before(self):
        self.had = 0

    def call(self):
        self.x.vdi_create(self.sr, GIB, 'new')

    def after(self, done):
        # Killed when all was done but the reply: a disk that the user did not get the name of, but sees.
        assert self.disks() in ((1,) if done else (0, 1))


class CreateStatefile(Create):
    def call(self):
        self.x.vdi_create(self.sr, 266240, 'statefile', ty='ha_statefile')


class Delete(Case):
    def call(self):
        if self.vdi in self.x.db['VDI']:
            self.x.vdi_destroy(self.vdi)

    def after(self, done):
        assert self.disks() == 0


class Snapshot(Case):
    repeats = False

    def call(self):
        self.x.vdi_snapshot(self.vdi)

    def after(self, done):
        assert self.disks() in ((2,) if done else (1, 2)) and self.vdi in self.x.db['VDI']


class SnapshotWithMirror(Snapshot):
    def before(self):
        Case.before(self)
        self.x.plug(self.vdi, self.beta)

    def call(self):
        self.x.vdi_snapshot(self.vdi, mirror='nbd:dp')

    def after(self, done):
        assert self.disks() in (1, 2)


class Clone(Snapshot):
    def call(self):
        self.x.vdi_clone(self.vdi)


class CloneOfSnapshot(Case):
    repeats = False

    def before(self):
        Case.before(self)
        self.snapshot = self.x.vdi_snapshot(self.vdi)

    def call(self):
        self.x.vdi_clone(self.snapshot)

    def after(self, done):
        assert self.disks() in ((3,) if done else (2, 3))


class Resize(Case):
    def call(self):
        self.x.vdi_resize(self.vdi, 2 * GIB)

    def after(self, done):
        assert self.x.db['VDI'][self.vdi]['virtual_size'] == str(2 * GIB)


class Scan(Case):
    def before(self):
        Case.before(self)
        for _ in range(2):
            self.gone = self.x.vdi_create(self.sr, GIB)
        self.found = self.x.vdi_create(self.sr, GIB)
        del self.world.cluster.volumes[self.x.db['VDI'][self.gone]['uuid']]
        del self.x.db['VDI'][self.found]
        self.world.cluster.volumes[self.uuid]['size_bytes'] = 2 * GIB

    def call(self):
        self.x.sr_scan(self.sr)

    def after(self, done):
        assert self.disks() == 3


class Plug(Case):
    def call(self):
        # What xapi repeats after a crash is deactivate and detach, then it starts anew.
        self.x.unplug(self.vdi, self.beta)
        self.x.db['VDI'][self.vdi]['sm_config'].pop('activating', None)
        self.x.plug(self.vdi, self.beta)

    def after(self, done):
        assert set(self.world.cluster.volumes[self.uuid]['writers']) == {'beta'}
        self.x.unplug(self.vdi, self.beta)
        assert not self.world.cluster.volumes[self.uuid]['writers']


class ReadSnapshot(Case):
    def before(self):
        Case.before(self)
        self.snapshot = self.x.vdi_snapshot(self.vdi)

    def call(self):
        self.x.unplug(self.snapshot, self.beta)
        self.x.db['VDI'][self.snapshot]['sm_config'].pop('activating', None)
        self.x.plug(self.snapshot, self.beta, writable=False)
        self.x.unplug(self.snapshot, self.beta)

    def after(self, done):
        assert self.disks() == 2 and not [n for n in self.world.cluster.volumes if n.endswith('.view')]


class Update(Case):
    def call(self):
        self.x.db['VDI'][self.vdi]['name_label'] = 'another'
        self.x.vdi_call('vdi_update', self.vdi)

    def after(self, done):
        assert self.world.cluster.volumes[self.uuid]['labels']['xapi.name'] == 'another'


class Unplug(Case):
    """Of the SR, on the pool master, and its plug with the scan that follows."""

    def call(self):
        pbd = next(k for k, r in self.x.db['PBD'].items() if r['host'] == self.alpha)
        self.x.pbd_unplug(pbd)
        self.x.pbd_plug(pbd)

    def after(self, done):
        assert self.disks() == 1


QUICK = [Create, Delete, Snapshot]
SLOW = [CreateStatefile, Resize, SnapshotWithMirror, Clone, CloneOfSnapshot, Scan, Plug, ReadSnapshot, Update, Unplug]


def settle(case):
    """What happens on the pool after a call has failed."""
    for r in case.x.db['VDI'].values():    # xapi: after a failed pause, at the next plug of the SR
        r['sm_config'].pop('paused', None)
    if case.repeats:
        case.call()
    case.x.sr_scan(case.sr)


@pytest.mark.parametrize('case', QUICK + [pytest.param(c, marks=pytest.mark.slow) for c in SLOW], ids=lambda c: c.__name__)
def test_killed_at_each_step(make_world, case):
    world = make_world()
    killer = Killer(world)
    sr = world.with_sr()
    undisturbed = case(world, sr)
    killer.arm(None, None)
    undisturbed.call()
    steps = killer.count
    killer.disarm()
    assert steps > 1
    for n in range(1, steps + 1):
        for phase in ('before', 'after'):
            clear(world, sr)
            run = case(world, sr)
            killer.arm(n, phase)
            done = False
            try:
                run.call()
                done = True
            except (Killed, XenError):
                pass    # of the driver itself, or of another process of the call, such as a plugin
            finally:
                killer.disarm()
            settle(run)
            world.consistent(sr)
            run.after(done)


class Daemon(object):
    """Dies at the nth change that it is asked for, before it is made or before it is answered; and is there again at once."""

    def __init__(self, world):
        self.count, self.at, self.phase = 0, None, None
        world.cluster.before = lambda host, method, path: self.step(method, 'before')
        world.cluster.after = lambda host, method, path: self.step(method, 'after')

    def step(self, method, phase):
        if method == 'GET':
            return None
        self.count += phase == 'before'
        return 'dies' if (self.at, self.phase) == (self.count, phase) else None

    def arm(self, at, phase):
        self.count, self.at, self.phase = 0, at, phase


@pytest.mark.parametrize('case', [Create, Delete, Snapshot, Clone, Resize], ids=lambda c: c.__name__)
def test_the_daemon_dies_at_each_change(world, sr, case):
    daemon = Daemon(world)
    run = case(world, sr)
    daemon.arm(None, None)
    run.call()
    changes = daemon.count
    assert changes >= 1
    for n in range(1, changes + 1):
        for phase in ('before', 'after'):
            clear(world, sr)
            run = case(world, sr)
            daemon.arm(n, phase)
            try:
                run.call()
                done = True
            except XenError as e:
                done = False
                assert 'cannot be asked' in str(e)
            daemon.arm(None, None)
            settle(run)
            world.consistent(sr)
            run.after(done)


def clear(world, sr):
    """No disks, in the cluster or in xapi."""
    for table in (world.cluster.volumes, world.cluster.snapshots):
        table.clear()
    for vdi in world.xapi.vdis(sr):
        del world.xapi.db['VDI'][vdi]
    for name in world.names:
        for path in (os.path.join(world.folder, name, 'dev'), world.cluster.devices(name)):
            shutil.rmtree(path)
            os.makedirs(path)


@pytest.mark.slow
def test_killed_creating_an_sr(make_world):
    """xapi forgets the SR then; the next create on the same disks must work, whatever was left."""
    world = make_world(formed=False)
    killer = Killer(world)
    world.create()
    steps = killer.count
    for n in range(1, steps + 1, 2):
        for phase in ('before', 'after'):
            fresh = make_world(formed=False)
            trap = Killer(fresh)
            trap.arm(n, phase)
            try:
                fresh.create()
            except (Killed, XenError):
                trap.disarm()
                for sr in list(fresh.xapi.db['SR']):
                    fresh.xapi.sr_forget(sr)
                sr = fresh.xapi.sr_create('again', CONFIG)
                assert list(fresh.cluster.groups) == [fresh.xapi.db['SR'][sr]['uuid']]
            trap.disarm()
