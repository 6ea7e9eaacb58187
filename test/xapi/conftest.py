# SPDX-License-Identifier: GPL-2.0-or-later
#
# A pool of hosts in one process: the stand-in of xapi (fakexapi.py), stand-ins of the daemons (fakedaemon.py), and the driver run as
# xapi runs it. LOCKSTEP_SM_LIBRARY names the folder of a real sm library to run it on instead of the stand-in in smlib/.
import os
import shutil
import signal
import sys
import tempfile
import threading

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import fakedaemon    # noqa: E402
import fakexapi      # noqa: E402

SOURCE = os.path.join(HERE, '..', '..', 'sm')
STANDINS = os.path.join(HERE, 'smlib')
LIBRARY = os.environ.get('LOCKSTEP_SM_LIBRARY', STANDINS)
CONFIG = {'group-name': 'vg0/thin', 'redundancy': '2', 'provisioning': 'thin'}
HOSTS = ['alpha', 'beta', 'gamma']


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes minutes (left out of make unit)')


@pytest.fixture(scope='session')
def installed():
    folder = tempfile.mkdtemp(prefix='lockstep-sm-')
    yield fakexapi.make_driver_folder(folder, SOURCE, LIBRARY, STANDINS)
    shutil.rmtree(folder)


class World(object):
    """A pool. close() checks that nobody used the API in a way that its description does not allow."""

    driver = None     # its registration, the same for all worlds

    def __init__(self, installed, names=HOSTS, **cluster):
        self.folder = tempfile.mkdtemp(prefix='ls-xapi-')
        self.names = names
        self.cluster = fakedaemon.Cluster(self.folder, names, **cluster)
        self.xapi = fakexapi.Xapi(self.folder, installed[0], installed[1], self.cluster, names)
        if World.driver:
            self.xapi.db['SM'] = {fakexapi.ref(): dict(World.driver)}
        else:
            World.driver = self.xapi.register_driver(self.xapi.master)
        self.hosts = [self.xapi.host_named(n) for n in names]

    def create(self, **changes):
        return self.xapi.sr_create('storage', dict(CONFIG, **changes))

    def with_sr(self, thick=False):
        """An SR as create() leaves it, for tests of what comes after; saves a dozen processes."""
        config, pool = (dict(CONFIG, **{'group-name': 'vg1', 'provisioning': 'thick'}), 'vg1') if thick else (CONFIG, 'vg0-thin')
        sr = self.xapi.sr_record('storage', config)
        uuid = self.xapi.db['SR'][sr]['uuid']
        for name in self.names if thick else ():
            self.cluster.hosts[name].vgs[('vg1', None)] = 100 << 30
            self.cluster.pools[('vg1', name)] = ('vg1', None)
        self.cluster.groups[uuid] = {'name': uuid, 'pool': pool, 'redundancy': 2, 'labels': {
            'xapi.name': 'storage', 'xapi.description': 'made by a test', 'xapi.group-name': config['group-name']}}
        for pbd in self.xapi.pbds(sr):
            self.xapi.db['PBD'][pbd]['currently_attached'] = True
        return sr

    def close(self):
        self.xapi.close()
        self.cluster.close()
        shutil.rmtree(self.folder)
        assert self.cluster.drift == []
        assert not self.xapi.sessions, 'sessions were left open'

    def log(self):
        if not os.path.exists(self.xapi.smlog):
            return ''
        with open(self.xapi.smlog) as f:
            return f.read()

    def consistent(self, sr):
        """xapi's records and the cluster's volumes are the same disks, none half made."""
        x, uuid = self.xapi, self.xapi.db['SR'][sr]['uuid']
        records = {r['uuid']: r for r in x.db['VDI'].values() if r['SR'] == sr}
        disks = {n: v for n, v in self.cluster.volumes.items()
                 if v['group'] == uuid and not n.endswith('.view') and 'xapi.deleted' not in v['labels']}
        disks.update((n, s) for n, s in self.cluster.snapshots.items() if s['group'] == uuid and s.get('phase') != 'deleting')
        assert set(records) == set(disks)
        for name, v in disks.items():
            assert int(records[name]['virtual_size']) == v['size_bytes']
            assert records[name]['location'] == name and v['uuid'] == name
            assert records[name]['read_only'] == records[name]['is_a_snapshot'] == ('volume' in v)
            assert 'xapi.creating' not in v['labels']


@pytest.fixture
def make_world(installed):
    worlds = []

    def make(*args, **kw):
        worlds.append(World(installed, *args, **kw))
        return worlds[-1]
    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def world(make_world):
    return make_world()


@pytest.fixture
def sr(world):
    return world.with_sr()


class Killer(object):
    """Ends the driver's process at its nth request to the daemon or to xapi: before that is carried out, or after it and before
    the answer arrives."""

    def __init__(self, world):
        self.world, self.lock = world, threading.Lock()
        self.count, self.at, self.phase, self.hit = 0, None, None, False
        world.cluster.before = lambda host, method, path: self.tick('before')
        world.cluster.after = lambda host, method, path: self.tock('after')
        world.xapi.before = lambda method: self.tick('before')
        world.xapi.after = lambda method: self.tock('after')

    def arm(self, at, phase):
        self.count, self.at, self.phase, self.hit = 0, at, phase, False

    def disarm(self):
        self.at = None

    def tick(self, phase):
        with self.lock:
            self.count += 1
            if self.at == self.count and self.phase == phase:
                self.kill()

    def tock(self, phase):
        with self.lock:
            if self.at == self.count and self.phase == phase and not self.hit:
                self.kill()

    def kill(self):
        self.hit = True
        for pid in list(self.world.xapi.processes):
            os.kill(pid, signal.SIGKILL)
