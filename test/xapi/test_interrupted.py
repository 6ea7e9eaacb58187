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
    """One call to be interrupted. repeats: xapi itself, or its user, sends it again until it is done. scans: the SR is there afterwards."""
    repeats = True
    scans = True
    least_steps = 2

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


class Introduce(Case):
    repeats = False

    def before(self):
        Case.before(self)
        del self.x.db['VDI'][self.vdi]

    def call(self):
        self.x.vdi_introduce(self.sr, self.uuid, self.uuid)

    def after(self, done):
        assert self.disks() == 1


class DeleteSnapshot(Case):
    def before(self):
        Case.before(self)
        self.snapshot = self.x.vdi_snapshot(self.vdi)

    def call(self):
        if self.snapshot in self.x.db['VDI']:
            self.x.vdi_destroy(self.snapshot)

    def after(self, done):
        assert self.x.vdis(self.sr) == [self.vdi]
        assert all(s.get('phase') == 'deleting' for s in self.world.cluster.snapshots.values())    # on a host that is lost it stays


class Revert(Case):
    """In place; again it is the same."""

    def before(self):
        Case.before(self)
        self.x.plug(self.vdi, self.beta)
        self.world.cluster.write(self.uuid, 1, 'then')
        self.snapshot = self.x.vdi_snapshot(self.vdi)
        self.world.cluster.write(self.uuid, 1, 'now')
        self.x.unplug(self.vdi, self.beta)

    def call(self):
        self.x.vdi_revert(self.snapshot)

    def after(self, done):
        assert self.disks() == 2 and self.snapshot in self.x.db['VDI']
        assert self.world.cluster.volumes[self.uuid]['blocks'] == {1: 'then'} or not done


class RevertByClone(Revert):
    """The disk goes, then a clone of the snapshot takes its place. Between the two there is the snapshot alone; its user begins anew."""
    repeats = False

    def before(self):
        Revert.before(self)
        self.world.cluster.without.add('POST /volumes/([^/]+)/snapshots/([^/]+)/revert')

    def after(self, done):
        assert self.disks() in ((2,) if done else (1, 2)) and self.snapshot in self.x.db['VDI']
        if done:
            assert [v['blocks'] for v in self.world.cluster.volumes.values()] == [{1: 'then'}]


class DeleteBeforeSnapshots(Case):
    """In a thick SR: the volume goes with the last of its snapshots."""

    def before(self):
        Case.before(self)
        self.snapshots = [self.x.vdi_snapshot(self.vdi) for _ in range(2)]

    def call(self):
        for vdi in [self.vdi] + self.snapshots:
            if vdi in self.x.db['VDI']:
                self.x.vdi_destroy(vdi)

    def after(self, done):
        assert not self.disks() and not self.world.cluster.volumes and not self.world.cluster.snapshots


class Cbt(Case):
    """Enabled, asked for with two snapshots, their data destroyed, disabled."""

    def before(self):
        Case.before(self)
        self.x.vdi_call('vdi_enable_cbt', self.vdi)
        self.first, self.second = self.x.vdi_snapshot(self.vdi), self.x.vdi_snapshot(self.vdi)

    def call(self):
        self.x.vdi_call('vdi_enable_cbt', self.vdi)
        self.x.vdi_call('vdi_list_changed_blocks', self.first, args=[self.second])
        self.x.vdi_call('vdi_data_destroy', self.first)
        self.x.vdi_call('vdi_disable_cbt', self.vdi)

    def after(self, done):
        assert 'xapi.cbt' not in self.world.cluster.volumes[self.uuid]['labels'] and self.disks() == 3
        self.x.vdi_call('vdi_list_changed_blocks', self.first, args=[self.second])    # the snapshots know their own


class UpdateSr(Case):
    def call(self):
        self.x.db['SR'][self.sr]['name_label'] = 'another'
        self.x.sr_call('sr_update', self.sr)

    def after(self, done):
        assert self.world.cluster.groups[self.x.db['SR'][self.sr]['uuid']]['labels']['xapi.name'] == 'another'


class DestroySr(Case):
    """Its record is there until it is done."""

    def before(self):
        self.uuid = self.x.db['SR'][self.sr]['uuid']
        self.world.cluster.groups.setdefault(self.uuid, {'name': self.uuid, 'pool': 'vg0-thin', 'redundancy': 2, 'labels': {}})
        self.world.cluster.volume_create(None, {'name': '0b1d3fa8-0000-4000-8000-000000000001', 'size_bytes': GIB, 'group': self.uuid,
                                                'labels': {'xapi.creating': '1'}})

    def call(self):
        self.x.sr_call('sr_attach', self.sr) if self.uuid in self.world.cluster.groups else None
        self.x.sr_call('sr_delete', self.sr)

    def after(self, done):
        assert not self.world.cluster.groups and not self.world.cluster.volumes

    scans = False


class Statefile(Case):
    """What xapi stores for HA, and what runs before xapi, which asks nobody."""
    least_steps = 1

    def before(self):
        self.vdi = self.x.vdi_create(self.sr, 266240, 'statefile', ty='ha_statefile')

    def call(self):
        config = self.x.vdi_call('vdi_generate_config', self.vdi)
        self.x.static_attach(self.gamma, config)

    def after(self, done):
        assert self.disks() == 1


class AddHost(Case):
    """The plugin; the whole of it again, as its user would."""

    def before(self):
        self.pbd = next(k for k, r in self.x.db['PBD'].items() if r['host'] == self.gamma)
        if self.x.db['PBD'][self.pbd]['currently_attached']:
            self.x.pbd_unplug(self.pbd)
        del self.x.db['PBD'][self.pbd]
        host = self.world.cluster.hosts['gamma']
        host.joined = False
        self.world.cluster.pools.pop(('vg0-thin', 'gamma'), None)

    def call(self):
        self.x.call_plugin(self.gamma, 'lockstep-manager', 'addHost', {'groupName': 'vg0/thin'})

    def after(self, done):
        assert self.world.cluster.hosts['gamma'].joined and ('vg0-thin', 'gamma') in self.world.cluster.pools
        [pbd] = [r for r in self.x.db['PBD'].values() if r['host'] == self.gamma]
        assert pbd['currently_attached']


class RemoveHost(Case):
    """With a copy that must go elsewhere first."""

    def before(self):
        host = self.world.cluster.hosts['gamma']
        host.joined, host.evacuating = True, False
        self.world.cluster.pools[('vg0-thin', 'gamma')] = ('vg0', 'thin')
        if not [r for r in self.x.db['PBD'].values() if r['host'] == self.gamma]:
            self.x.pbd_plug(self.x.pbd_create({'SR': self.sr, 'host': self.gamma, 'device_config': dict(CONFIG), 'other_config': {}}))
        Case.before(self)
        self.world.cluster.volumes[self.uuid]['hosts'] = ['alpha', 'gamma']

    def call(self):
        self.x.call_plugin(self.gamma, 'lockstep-manager', 'removeHost', {'groupName': 'vg0/thin'})

    def after(self, done):
        assert not self.world.cluster.hosts['gamma'].joined
        assert self.world.cluster.volumes[self.uuid]['hosts'] == ['alpha', 'beta']
        assert not [r for r in self.x.db['PBD'].values() if r['host'] == self.gamma]


QUICK = [Create, Delete, Snapshot]
SLOW = [CreateStatefile, Resize, SnapshotWithMirror, Clone, CloneOfSnapshot, Scan, Plug, ReadSnapshot, Update, Unplug, Introduce, DeleteSnapshot, Revert,
        RevertByClone, Cbt, UpdateSr, DestroySr, Statefile, AddHost, RemoveHost]


def settle(case):
    """What happens on the pool after a call has failed."""
    for r in case.x.db['VDI'].values():    # xapi: after a failed pause, at the next plug of the SR
        r['sm_config'].pop('paused', None)
    if case.repeats:
        case.call()
    if case.scans:
        case.x.sr_scan(case.sr)


def interrupt(case, world, sr, trouble):
    """The call, disturbed at each of its steps, before it and after it; what comes out is as it must be each time."""
    undisturbed = case(world, sr)
    trouble.arm(None, None)
    undisturbed.call()
    steps = trouble.count
    trouble.disarm()
    assert steps >= (trouble.least_steps or case.least_steps)
    for n in range(1, steps + 1):
        for phase in ('before', 'after'):
            clear(world, sr)
            run = case(world, sr)
            trouble.arm(n, phase)
            done = False
            try:
                run.call()
                done = True
            except (Killed, XenError) as e:
                trouble.is_the_cause_of(e)
            finally:
                trouble.ends(run)
            settle(run)
            if run.scans:
                world.consistent(sr)
            run.after(done)
            trouble.is_over(run)


class Kill(Killer):
    """Of the driver itself, or of another process of the call, such as a plugin."""
    least_steps = None    # the case's own

    def is_the_cause_of(self, error):
        """Any error may come of it."""

    def ends(self, run):
        self.disarm()

    def is_over(self, run):
        pass


@pytest.mark.parametrize('case', QUICK + [pytest.param(c, marks=pytest.mark.slow) for c in SLOW], ids=lambda c: c.__name__)
def test_killed_at_each_step(make_world, case):
    world = make_world()
    killer = Kill(world)
    interrupt(case, world, world.with_sr(), killer)


@pytest.mark.slow
def test_killed_deleting_a_disk_before_its_snapshots(make_world):
    world = make_world()
    interrupt(DeleteBeforeSnapshots, world, world.with_sr(thick=True), Kill(world))


class Daemon(object):
    """Dies at the nth change that it is asked for, before it is made or before it is answered; and is there again at once."""
    least_steps = 1

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

    def disarm(self):
        self.arm(None, None)

    def is_the_cause_of(self, error):
        assert 'cannot be asked' in str(error)

    def ends(self, run):
        self.disarm()

    def is_over(self, run):
        pass


DAEMON_SLOW = [CreateStatefile, CloneOfSnapshot, DeleteSnapshot, ReadSnapshot, Update, Cbt, UpdateSr, DestroySr, AddHost, RemoveHost]


@pytest.mark.parametrize('case', [Create, Delete, Snapshot, Clone, Resize] + [pytest.param(c, marks=pytest.mark.slow) for c in DAEMON_SLOW],
                         ids=lambda c: c.__name__)
def test_the_daemon_dies_at_each_change(world, sr, case):
    interrupt(case, world, sr, Daemon(world))


class HostLoss(Kill):
    """The pool master is lost with all that runs on it: the driver, and the daemon, at the driver's nth request."""

    def __init__(self, world):
        Kill.__init__(self, world)
        world.cluster.before = lambda host, method, path: self.tick('before') or self.is_dead(host)
        world.cluster.after = lambda host, method, path: self.tock('after') or self.is_dead(host)

    def is_dead(self, host):
        return 'dies' if self.hit and host == 'alpha' else None

    def kill(self):
        self.world.cluster.hosts['alpha'].online = False
        Kill.kill(self)

    def ends(self, run):
        """Another host becomes master, and plugs the SR."""
        x, cluster = self.world.xapi, self.world.cluster
        self.disarm()
        self.hit = False
        cluster.stop('alpha')
        self.move(x.host_named('beta'))
        for r in x.db['VDI'].values():    # xapi's host-is-dead handling (resetvdis)
            r['sm_config'] = {k: v for k, v in r['sm_config'].items() if k not in ('activating', 'host_' + x.host_named('alpha'))}
        next(r for r in x.db['PBD'].values() if r['host'] == x.host_named('alpha'))['currently_attached'] = False
        if run.scans:
            x.sr_call('sr_attach', run.sr)

    def move(self, host):
        x = self.world.xapi
        x.master = host
        next(iter(x.db['pool'].values()))['master'] = host

    def is_over(self, run):
        """The lost one is back, and master again."""
        x, cluster, sr = self.world.xapi, self.world.cluster, run.sr
        cluster.back('alpha')
        assert not [s for s in cluster.snapshots.values() if s.get('phase') == 'deleting']
        cluster.make_devices()
        cluster.start('alpha')
        if sr in x.db['SR'] and cluster.groups:
            x.pbd_plug(next(k for k, r in x.db['PBD'].items() if r['host'] == x.host_named('alpha')))
        self.move(x.host_named('alpha'))
        if run.scans:
            x.sr_scan(sr)
            self.world.consistent(sr)


@pytest.mark.slow
@pytest.mark.parametrize('case', [Create, CreateStatefile, Delete, DeleteSnapshot, Snapshot, Clone, CloneOfSnapshot, Resize, Revert, RevertByClone, Scan, Update,
                                  Cbt, UpdateSr, Introduce, DestroySr], ids=lambda c: c.__name__)
def test_the_master_is_lost_at_each_step(make_world, case):
    """Another host becomes master, plugs, scans and repeats what xapi would; then the lost one is back, and all agree."""
    world = make_world()
    loss = HostLoss(world)
    sr = world.with_sr()
    for vg in world.cluster.hosts.values():
        vg.vgs[('vg0', 'thin')] = 1000 * GIB
    interrupt(case, world, sr, loss)


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
