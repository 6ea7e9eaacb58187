# SPDX-License-Identifier: GPL-2.0-or-later
"""XAPI's storage driver against real daemons and kernels. xapi is the stand-in of test/xapi and runs on this machine with the
driver; the API's socket of each VM is relayed to a socket here, its devices are mirrored by nodes without a driver, and where the
stand-in of tapdisk opens a device, a shell in the VM does."""
import json, os, re, shutil, socketserver, stat, sys, tempfile, threading, time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lablib import LabError, together, wait
from lablib.paths import TOP

sys.path.insert(0, str(TOP / 'test' / 'xapi'))
import fakexapi
from fakexapi import XenError

SOCKET = '/run/lockstep/lockstepd.sock'
CONFIG = {'group-name': 'lockstep_group/thin_device', 'redundancy': '2', 'provisioning': 'thin'}
THICK = {'group-name': 'lockstep_group', 'redundancy': '2', 'provisioning': 'thick'}
NO_DRIVER = os.makedev(240, 0)
MIB = 1 << 20

pytestmark = pytest.mark.slow


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Relay:
    """The daemons of the VMs, as test/xapi wants them: socket(host) and devices(host)."""

    def __init__(self, hosts, folder):
        self.folder, self.hosts = folder, {}
        self.held, self.servers = {}, []
        self.took = []              # (method, path, seconds), of a volume's name '*'
        self.mirroring = threading.Lock()
        self.trap = None            # (host, method, path, moment): called when a request has been sent ('asked') and when it is answered
        for host in hosts:
            self.serve(host)

    def devices(self, name):
        return os.path.join(self.folder, name, 'devices')

    def socket(self, name):
        return os.path.join(self.folder, name, 'sock')

    def serve(self, host):
        relay = self
        os.makedirs(self.devices(host.name))
        self.hosts[host.name] = host

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.0'

            def log_message(self, *_):
                pass

            def address_string(self):
                return ''

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
                began = time.monotonic()
                try:
                    if self.path.startswith('/test/'):
                        status, data = 200, json.dumps(relay.hold(host, self.path[6:], json.loads(body))).encode()
                    else:
                        status, data = relay.ask(host, self.command, self.path, body)
                except LabError:
                    return          # the host is off: its driver hears no more either
                relay.took.append((self.command, re.sub('[0-9a-f-]{36}', '*', self.path), time.monotonic() - began))
                self.send_response(status)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        server = Server(self.socket(host.name), Handler)
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(self, host, method, path, body):
        request = f'{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n' \
                  f'Content-Length: {len(body)}\r\n\r\n'
        process = host.start(f'/lab/relay {SOCKET}')
        process.write(request.encode() + body)
        process.close_input()
        self.spring(host, method, path, 'asked')
        answer = process.wait(180).out_bytes
        self.spring(host, method, path, 'answered')
        head, _, data = answer.partition(b'\r\n\r\n')
        self.mirror(host)
        return int(head.split()[1]), data

    def spring(self, host, method, path, moment):
        if self.trap:
            self.trap(host, method, path, moment)

    def mirror(self, host):
        with self.mirroring:
            there = set(host.run('ls /dev/lockstep', check=False).out.split())
            here = set(os.listdir(self.devices(host.name)))
            for name in there - here:
                os.mknod(os.path.join(self.devices(host.name), name), stat.S_IFBLK | 0o600, NO_DRIVER)
            for name in here - there:
                os.unlink(os.path.join(self.devices(host.name), name))

    def hold(self, host, verb, body):
        if verb == 'lockstep':      # the command line, in the VM
            done = host.run('lockstep ' + ' '.join(body['args']), check=False, timeout=300)
            return {'status': done.status, 'out': done.out, 'err': done.err}
        key = host.name, body['volume']
        if verb == 'open':
            how = '3<>' if body['write'] else '3<'
            p = host.start(f'exec {how}/dev/lockstep/{body["volume"]} && echo open && exec sleep 100000')
            wait(lambda: p.out or not p.running, 30, 'an open to end')
            if not p.out:
                return {'error': p.err.decode().strip().rsplit(': ', 1)[-1]}
            self.held[key] = p
            self.spring(host, 'POST', '/test/open', 'answered')
        elif key in self.held:
            self.held.pop(key).stop()
        return {'error': ''}

    def lost(self, name):
        """A host is off: what it held open it holds no more."""
        for key in [k for k in self.held if k[0] == name]:
            del self.held[key]

    def close(self):
        for p in self.held.values():
            p.stop()
        for server in self.servers:
            server.shutdown()
            server.server_close()


# What stands for /usr/bin/lockstep on the hosts.
COMMAND = f"""#!{sys.executable}
import json, os, sys
sys.path.insert(0, os.environ['SM_FOLDER'])
import lockstepapi
connection = lockstepapi._Connection(os.environ['LOCKSTEP_SOCKET'], 300)
connection.request('POST', '/test/lockstep', json.dumps({{'args': sys.argv[1:]}}))
answer = json.loads(connection.getresponse().read().decode())
sys.stdout.write(answer['out'])
sys.stderr.write(answer['err'])
sys.exit(answer['status'])
"""


def start_pool(lab, install):
    hosts = lab.boot(3)
    together(lambda h: h.install(install), hosts)
    together(lambda h: h.configure(), hosts)
    folder = tempfile.mkdtemp(prefix='ls-')
    relay = Relay(hosts, folder)
    standins = TOP / 'test' / 'xapi' / 'smlib'
    sm, plugins = fakexapi.make_driver_folder(folder, str(TOP / 'sm'), str(standins), str(standins))
    command = os.path.join(folder, 'lockstep')
    with open(command, 'w') as f:
        f.write(COMMAND)
    os.chmod(command, 0o755)
    xapi = fakexapi.Xapi(folder, sm, plugins, relay, [h.name for h in hosts], {'LOCKSTEP_COMMAND': command, 'SM_FOLDER': sm})
    xapi.register_driver(xapi.master)
    xapi.vms = hosts
    yield xapi
    xapi.close()
    relay.close()
    shutil.rmtree(folder)


@pytest.fixture
def pool(lab):
    """Three hosts that are installed and in no cluster yet, and xapi."""
    yield from start_pool(lab, '--disks /dev/vdb --thin')


@pytest.fixture
def thick_pool(lab):
    yield from start_pool(lab, '--disks /dev/vdb')


def uuid_of(xapi, vdi):
    return xapi.db['VDI'][vdi]['uuid']


def test_xapi_life_of_an_sr(pool):
    x, vms = pool, pool.vms
    a, b, c = vms
    alpha, beta, gamma = (x.host_named(h.name) for h in vms)
    # The driver makes the cluster, joins the hosts by tokens, registers their pools.
    sr = x.sr_create('storage', CONFIG)
    status = a.lockstep('status --json')
    assert len(status['hosts']) == 3 and {p['host'] for p in status['pools']} == {'alpha', 'beta', 'gamma'}
    assert int(x.db['SR'][sr]['physical_size']) > 3 << 30

    vdi = x.vdi_create(sr, 64 * MIB + 1, 'disk ä', 'of a VM')
    name, size = uuid_of(x, vdi), int(x.db['VDI'][vdi]['virtual_size'])
    for h in vms:
        assert h.out(f'blockdev --getsize64 /dev/lockstep/{name}') == str(size)    # exact, on every host
    x.plug(vdi, beta)
    b.run(f'dd if=/etc/services of=/dev/lockstep/{name} bs=4k count=1 oflag=direct conv=sync,fsync')
    x.vdi_attach(vdi, gamma)
    del x.db['VDI'][vdi]['sm_config']['host_' + beta]    # without sm's own mark the cluster refuses
    with pytest.raises(XenError, match='open for writing on host beta'):
        x.vdi_activate(vdi, gamma)
    with pytest.raises(XenError, match='is open on host beta'):
        x.vdi_destroy(vdi)
    # Live migration: on the other host as soon as the first one has let go.
    for source, target in ((beta, gamma), (gamma, beta), (beta, gamma)):
        x.vdi_deactivate(vdi, source)
        x.vdi_activate(vdi, target)
    assert c.out(f'head -c 4096 /dev/lockstep/{name} | md5sum') == c.out('head -c 4096 /etc/services | md5sum')
    x.unplug(vdi, gamma)

    # A scan without a majority fails and forgets nothing.
    x.sr_scan(sr)
    b.kill()
    c.kill()
    wait(lambda: not a.lockstep('status --json')['cluster']['quorum'], 60, 'the majority to be missed')
    with pytest.raises(XenError, match='SR_BACKEND_FAILURE_40'):
        x.sr_scan(sr)
    assert vdi in x.db['VDI']
    for h in (b, c):
        h.power_on()
    wait(lambda: a.lockstep('status --json')['cluster']['quorum'], 120, 'the majority to be back')
    wait(lambda: all(h['status'] == 'online' for h in a.lockstep('status --json')['hosts']), 120, 'all hosts to be back')
    x.sr_scan(sr)
    assert list(x.vdis(sr)) == [vdi]

    # Forgotten and found again, with its names.
    for pbd in x.pbds(sr):
        x.pbd_unplug(pbd)
    x.sr_forget(sr)
    [uuid] = x.sr_probe(CONFIG)
    sr = x.sr_record('storage', CONFIG, uuid_=uuid)
    for pbd in x.pbds(sr):
        x.pbd_plug(pbd)
    [vdi] = x.vdis(sr)
    assert x.db['VDI'][vdi]['name_label'] == 'disk ä'
    health = json.loads(x.call_plugin(alpha, 'lockstep-manager', 'healthCheck', {'groupName': CONFIG['group-name']}))
    assert health['nodes'] == {'alpha': 'ONLINE', 'beta': 'ONLINE', 'gamma': 'ONLINE'} and name in health['resources']

    with pytest.raises(XenError, match='SR_BACKEND_FAILURE_44'):
        x.vdi_create(sr, 100 << 30)
    x.vdi_destroy(vdi)
    x.sr_destroy(sr)
    status = a.lockstep('status --json')
    assert status['groups'] == [] and [v for v in status['volumes'] if v['phase'] != 'deleting'] == []
    for h in vms:
        wait(lambda: 'lockstep.' not in h.out('lvs --noheadings -o lv_name'), 30, f'replicas to leave {h}')


def test_xapi_snapshots_growth_and_statefile(pool):
    x, (a, b, c) = pool, pool.vms
    alpha, beta, gamma = (x.host_named(h.name) for h in pool.vms)
    sr = x.sr_create('storage', CONFIG)
    if 'snapshots' not in a.lockstep('status --json'):
        pytest.skip('this daemon has no snapshots')
    vdi = x.vdi_create(sr, 64 * MIB, 'disk')
    x.plug(vdi, beta)
    b.run(f'printf then | dd of=/dev/lockstep/{uuid_of(x, vdi)} bs=4k conv=sync,fsync oflag=direct')
    snapshot = x.vdi_snapshot(vdi)
    b.run(f'printf after | dd of=/dev/lockstep/{uuid_of(x, vdi)} bs=4k conv=sync,fsync oflag=direct')
    x.plug(snapshot, gamma, writable=False)
    assert c.out(f'head -c 5 /dev/lockstep/{uuid_of(x, snapshot)}.view | tr -d "\\0"') == 'then'
    x.unplug(snapshot, gamma)
    clone = x.vdi_clone(snapshot)
    x.plug(clone, alpha)
    assert a.out(f'head -c 5 /dev/lockstep/{uuid_of(x, clone)} | tr -d "\\0"') == 'then'
    x.unplug(clone, alpha)
    x.vdi_resize(vdi, 128 * MIB)    # while it is open
    assert b.out(f'blockdev --getsize64 /dev/lockstep/{uuid_of(x, vdi)}') == str(128 * MIB)
    assert b.out(f'head -c 5 /dev/lockstep/{uuid_of(x, vdi)}') == 'after'
    x.unplug(vdi, beta)
    x.sr_scan(sr)
    assert len(x.vdis(sr)) == 3 and not [v for v in a.lockstep('status --json')['volumes'] if v['name'].endswith('.view')]

    state = x.vdi_create(sr, 266240, 'statefile', ty='ha_statefile', sm_config={'type': 'raw'})
    config = x.vdi_call('vdi_generate_config', state)
    for host, vm in ((alpha, a), (beta, b), (gamma, c)):
        x.cluster.mirror(vm)
        assert x.static_attach(host, config)['params'].endswith(uuid_of(x, state))
    # Each host writes its own sector, at the same time, and sees those of the others.
    together(lambda vm: vm.run(f'printf {vm.name} | dd of=/dev/lockstep/{uuid_of(x, state)} bs=4k seek={vm.number} conv=sync,notrunc oflag=direct'),
             pool.vms)
    for vm in pool.vms:
        for other in pool.vms:
            assert vm.out(f'dd if=/dev/lockstep/{uuid_of(x, state)} bs=4k skip={other.number} count=1 iflag=direct 2>/dev/null | tr -d "\\0"') == other.name
    for disk in (state, clone, vdi, snapshot):
        x.vdi_destroy(disk)
    x.sr_destroy(sr)
