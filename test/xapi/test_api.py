# SPDX-License-Identifier: GPL-2.0-or-later
#
# The driver against lockstepd's own API server and state machine, with hosts that are played (test/unit/cli/serve.cc): what the
# stand-in of the daemon might have got wrong shows here. All hosts of the pool talk to the one daemon, "alpha".
import contextlib
import http.client
import json
import os
import socket
import socketserver
import stat
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler

import pytest

import fakexapi
from conftest import HERE
from fakexapi import XenError

SERVER = os.path.join(HERE, '..', '..', 'build', 'unit-cli')
CONFIG = {'group-name': 'lockstep_group/thin_device', 'redundancy': '2', 'provisioning': 'thin'}
NO_DRIVER = os.makedev(240, 0)
MIB, GIB = 1 << 20, 1 << 30


def failed(code, says=''):
    return pytest.raises(XenError, match='(?s)%s.*%s' % (code, says))


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


class Daemon(object):
    """The real API behind a relay that plays opens and makes device nodes."""

    def __init__(self, folder):
        assert os.path.exists(SERVER), 'build/unit-cli is missing: run `make units`'
        self.folder, self.lock = folder, threading.Lock()
        self.process = subprocess.Popen([SERVER, '[.serve]'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
        self.real = self.process.stdout.readline().strip()
        while not self.real.endswith('.sock'):    # the runner's own lines
            self.real = self.process.stdout.readline().strip()
        os.makedirs(self.devices(''))
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.0'

            def log_message(self, *_):
                pass

            def address_string(self):
                return ''

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
                if self.path.startswith('/test/'):
                    status, data = 200, json.dumps(daemon.play(self.path[6:], json.loads(body.decode()))).encode()
                else:
                    status, data = daemon.ask(self.command, self.path, body)
                    daemon.mirror()
                self.send_response(status)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        self.server = Server(self.socket(''), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()

    def devices(self, host):
        return os.path.join(self.folder, 'devices')

    def socket(self, host):
        return os.path.join(self.folder, 'sock')

    def ask(self, method, path, body=b''):
        connection = http.client.HTTPConnection('localhost', timeout=90)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.real)
        connection.request(method, path, body or None)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, data

    def status(self):
        return json.loads(self.ask('GET', '/v1/status')[1].decode())

    def command(self, line):
        with self.lock:
            self.process.stdin.write(line + '\n')
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def mirror(self):
        with self.lock:
            there = {v['name'] for v in self.status()['volumes'] if 'alpha' in v['devices']}
            here = set(os.listdir(self.devices('')))
            for name in there - here:
                os.mknod(os.path.join(self.devices(''), name), stat.S_IFBLK | 0o600, NO_DRIVER)
            for name in here - there:
                os.unlink(os.path.join(self.devices(''), name))

    def play(self, verb, body):
        """What the kernel of host alpha tells the daemon when a device is opened for writing, or closed."""
        found = [v for v in self.status()['volumes'] if v['name'] == body['volume'] and v['phase'] == 'ready']
        if not found:
            return {'error': 'No such device'}
        volume = found[0]
        if verb == 'open' and body['write']:
            answer = self.command(json.dumps({'op': 'record.open', 'vid': volume['vid'], 'host': 1}))
            return {'error': '' if answer['ok'] else 'Device or resource busy'}
        if verb == 'close' and volume['opener'] == 'alpha':
            self.command(json.dumps({'op': 'record.close', 'vid': volume['vid'], 'host': 1, 'session': volume['record']['session_serial']}))
        return {'error': ''}

    def close(self):
        self.process.stdin.close()
        out = self.process.stdout.read()
        assert self.process.wait(30) == 0, out
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def opened(installed):
    with contextlib.ExitStack() as stack:    # undone also where a step fails: the daemon may not have been built
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='ls-api-'))
        daemon = Daemon(folder)
        stack.callback(daemon.close)
        xapi = fakexapi.Xapi(folder, installed[0], installed[1], daemon, ['alpha'])
        stack.callback(xapi.close)
        xapi.register_driver(xapi.master)
        yield xapi


@pytest.fixture
def pool(installed):
    with opened(installed) as xapi:
        yield xapi


def test_nothing_is_left_where_the_daemon_has_not_been_built(installed, monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), 'SERVER', '/nonexistent')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with pytest.raises(AssertionError, match='run `make units`'):
        with opened(installed):
            pass
    assert os.listdir(str(tmp_path)) == []


@pytest.fixture
def sr(pool):
    sr = pool.sr_record('storage', dict(CONFIG, redundancy='1'))
    pool.sr_call('sr_create', sr, args=['0'])
    for pbd in pool.pbds(sr):
        pool.pbd_plug(pbd)
    return sr


def disks(pool, sr):
    """Volumes and snapshots of the SR in the cluster; they are what xapi knows."""
    status, uuid = pool.cluster.status(), pool.db['SR'][sr]['uuid']
    found = {v['name']: v for v in status['volumes'] + status.get('snapshots', []) if v['group'] == uuid and v['phase'] == 'ready'}
    assert set(found) == {pool.db['VDI'][v]['uuid'] for v in pool.vdis(sr)}
    assert not [v for v in found.values() if 'xapi.creating' in v['labels']]
    return found


def test_life(pool, sr):
    x = pool
    assert [g['name'] for g in x.cluster.status()['groups']] == [x.db['SR'][sr]['uuid']]
    assert int(x.db['SR'][sr]['physical_size']) == 60 * GIB
    vdi = x.vdi_create(sr, 64 * MIB + 1, 'disk ä', 'of a VM')
    uuid = x.db['VDI'][vdi]['uuid']
    volume = disks(x, sr)[uuid]
    assert volume['uuid'] == uuid and volume['size_bytes'] == 64 * MIB + 4096 and volume['labels']['xapi.name'] == 'disk ä'
    x.plug(vdi, x.master)
    assert disks(x, sr)[uuid]['opener'] == 'alpha'
    with failed('VDI_IN_USE', 'is open on host alpha'):
        x.vdi_destroy(vdi)
    x.unplug(vdi, x.master)
    assert disks(x, sr)[uuid]['opener'] is None
    x.db['VDI'][vdi]['name_label'] = 'another'
    x.vdi_call('vdi_update', vdi)
    assert disks(x, sr)[uuid]['labels']['xapi.name'] == 'another'
    for pbd in x.pbds(sr):
        x.pbd_unplug(pbd)
    x.sr_forget(sr)
    [found] = x.sr_probe(CONFIG)
    sr = x.sr_record('storage', CONFIG, uuid_=found)
    x.pbd_plug(x.pbds(sr)[0])
    [vdi] = x.vdis(sr)
    assert x.db['VDI'][vdi]['name_label'] == 'another'
    x.vdi_destroy(vdi)
    x.sr_destroy(sr)
    assert x.cluster.status()['groups'] == []


def test_refusals(pool, sr):
    x = pool
    with failed('SR_BACKEND_FAILURE_44', 'There is insufficient space'):
        x.vdi_create(sr, 100 * GIB)
    with failed('SR_BACKEND_FAILURE_79', '64 TiB'):
        x.vdi_create(sr, 65 << 40)
    vdi = x.vdi_create(sr, MIB)
    x.cluster.command('quorum no')
    with failed('SR_BACKEND_FAILURE_', ''):
        x.vdi_create(sr, MIB)
    assert list(x.vdis(sr)) == [vdi]
    x.cluster.command('quorum yes')
    disks(x, sr)
    x.cluster.command(json.dumps({'op': 'host.status', 'host': 2, 'online': False, 'now_ms': 1}))
    health = json.loads(x.call_plugin(x.master, 'lockstep-manager', 'healthCheck', {'groupName': CONFIG['group-name']}))
    assert health['nodes'] == {'alpha': 'ONLINE', 'beta': 'OFFLINE', 'gamma': 'ONLINE'}
    assert json.loads(x.call_plugin(x.master, 'lockstep-manager', 'listVolumes', {'groupName': CONFIG['group-name']})) == {
        CONFIG['group-name']: [list(disks(x, sr).values())[0]['minor']]}


def test_snapshots_growth_and_shared_volumes(pool, sr):
    x = pool
    vdi = x.vdi_create(sr, 64 * MIB, 'disk')
    if 'snapshots' not in x.cluster.status():
        with failed('SR_BACKEND_FAILURE_82', 'update it'):
            x.vdi_snapshot(vdi)
        with failed('SR_BACKEND_FAILURE_110', 'update it'):
            x.vdi_resize(vdi, 128 * MIB)
        with failed('SR_BACKEND_FAILURE_78', ''):
            x.vdi_create(sr, 266240, ty='ha_statefile')
        assert len(disks(x, sr)) == 1
        return
    x.plug(vdi, x.master)
    snapshot = x.vdi_snapshot(vdi)
    clone, other = x.vdi_clone(snapshot), x.vdi_clone(vdi)
    assert len(disks(x, sr)) == 4
    x.plug(snapshot, x.master, writable=False)
    name = x.db['VDI'][snapshot]['uuid'] + '.view'
    assert name in [v['name'] for v in x.cluster.status()['volumes']]
    x.unplug(snapshot, x.master)
    assert name not in [v['name'] for v in x.cluster.status()['volumes'] if v['phase'] != 'deleting']
    x.sr_scan(sr)
    assert len(disks(x, sr)) == 4 and x.db['VDI'][snapshot]['snapshot_of'] == vdi
    state = x.vdi_create(sr, 266240, ty='ha_statefile')
    found = disks(x, sr)[x.db['VDI'][state]['uuid']]
    assert found['class'] == 'shared' and len(found['replicas']) == 3
    x.unplug(vdi, x.master)
    for disk in (state, vdi, clone, other, snapshot):
        x.vdi_destroy(disk)
    x.sr_destroy(sr)


def test_names_that_change_and_changed_blocks(pool, sr):
    """sr_update, and change tracking from enabled to disabled: the labels are the real daemon's."""
    x = pool
    uuid = x.db['SR'][sr]['uuid']
    x.db['SR'][sr].update(name_label='Speicher für alle', name_description='of all')
    for _ in range(2):
        x.sr_call('sr_update', sr)
        [group] = x.cluster.status()['groups']
        assert group['labels'] == {'xapi.name': 'Speicher für alle', 'xapi.description': 'of all', 'xapi.group-name': CONFIG['group-name']}
    disk = x.vdi_create(sr, 64 * MIB)
    name = x.db['VDI'][disk]['uuid']
    for _ in range(2):
        x.vdi_call('vdi_enable_cbt', disk)
        assert disks(x, sr)[name]['labels']['xapi.cbt'] == '1'
    snapshot = x.vdi_snapshot(disk)
    for _ in range(2):
        x.vdi_call('vdi_disable_cbt', disk)
        assert 'xapi.cbt' not in disks(x, sr)[name]['labels']
    with failed('SR_BACKEND_FAILURE_460', 'changed block tracking is not enabled for VDI ' + name):
        x.vdi_call('vdi_list_changed_blocks', snapshot, args=[disk])
    for _ in range(2):
        x.vdi_call('vdi_data_destroy', snapshot)
        x.sr_call('sr_update', sr)
    assert disks(x, sr)[x.db['VDI'][snapshot]['uuid']]['labels']['xapi.type'] == 'cbt_metadata'
    for _ in range(2):
        for pbd in x.pbds(sr):
            x.pbd_unplug(pbd)
    assert [g['name'] for g in x.cluster.status()['groups']] == [uuid] and len(disks(x, sr)) == 2    # a detach takes nothing away
