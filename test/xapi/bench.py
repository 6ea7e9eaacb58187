# SPDX-License-Identifier: GPL-2.0-or-later
"""What each call of the driver takes, from the start of its process to its end, on an SR of 1,000 volumes (or as many as the argument
says), against lockstepd's own API server and state machine (test_api.py); what the hosts' disks take is not in it.

    make build/xapi-bench-server && /usr/bin/python3 test/xapi/bench.py [volumes] [rounds]
"""
import contextlib
import json
import os
import re
import shutil
import stat
import statistics
import sys
import tempfile

import fakexapi
import test_api
from conftest import SOURCE, STANDINS
from test_api import CONFIG, MIB, NO_DRIVER, Daemon

TARGET_MS = 300
# Not the unit tests' own, which is compiled without optimisation and answers a status of 1,000 volumes in 180 ms instead of 36.
test_api.SERVER = os.path.join(SOURCE, '..', 'build', 'xapi-bench-server')


class Quick(Daemon):
    """Makes and removes device nodes by what is asked for, not by comparing all after each request."""

    def ask(self, method, path, body=b''):
        status, data = Daemon.ask(self, method, path, body)
        volume = re.fullmatch('/v1/volumes/([^/]+)', path)
        name = json.loads(body.decode()).get('name') if body and method == 'POST' else None
        if status == 200 and name and not path.endswith('/snapshots'):
            self.node(name, True)
        elif status == 200 and method == 'DELETE' and volume:
            self.node(volume.group(1), False)
        return status, data

    def node(self, name, there):
        path = os.path.join(self.devices(''), name)
        if there and not os.path.exists(path):
            os.mknod(path, stat.S_IFBLK | 0o600, NO_DRIVER)
        elif not there and os.path.exists(path):
            os.unlink(path)

    def mirror(self):
        pass

    def play(self, verb, body):
        self.played = body['volume']
        return Daemon.play(self, verb, body)

    def status(self):
        return json.loads(self.ask('GET', '/v1/status?volume=' + self.played)[1].decode())


@contextlib.contextmanager
def pool(folder):
    """xapi with the driver registered, and an SR of 64 GiB pools that may promise much more."""
    sm, plugins = fakexapi.make_driver_folder(folder, SOURCE, STANDINS, STANDINS)
    daemon = Quick(folder)
    try:
        x = fakexapi.Xapi(folder, sm, plugins, daemon, ['alpha'])
        try:
            x.register_driver(x.master)
            sr = x.sr_record('storage', dict(CONFIG, redundancy='1'))
            x.sr_call('sr_create', sr, args=['0'])
            for pbd in x.pbds(sr):
                x.pbd_plug(pbd)
            yield x, sr
        finally:
            x.close()
    finally:
        daemon.close()


def fill(x, sr, volumes):
    for i in range(volumes):
        name = '00000000-0000-4000-8000-%012d' % i
        body = {'name': name, 'uuid': name, 'size_bytes': MIB, 'group': x.db['SR'][sr]['uuid'], 'labels': {'xapi.name': 'disk %d' % i}}
        status, data = x.cluster.ask('POST', '/v1/volumes', json.dumps(body).encode())
        assert status == 200, data
    x.sr_scan(sr)
    assert len(x.vdis(sr)) == volumes


def one_round(x, sr):
    vdi = x.vdi_create(sr, 16 * MIB, 'measured')
    x.vdi_call('vdi_update', vdi)
    x.plug(vdi, x.master)
    snapshot = x.vdi_snapshot(vdi)
    clone = x.vdi_clone(snapshot)
    x.plug(snapshot, x.master, writable=False)
    x.unplug(snapshot, x.master)
    x.unplug(vdi, x.master)
    x.vdi_call('vdi_generate_config', vdi)
    for disk in (snapshot, clone, vdi):
        x.vdi_destroy(disk)
    x.sr_scan(sr)
    for pbd in x.pbds(sr):
        x.sr_call('sr_attach', sr)
        x.sr_call('sr_detach', sr)
    x.sr_probe(CONFIG)


def main(volumes=1000, rounds=5):
    folder = tempfile.mkdtemp(prefix='ls-bench-')
    try:
        with pool(folder) as (x, sr):
            fill(x, sr, volumes)
            x.durations.clear()
            for _ in range(rounds):
                one_round(x, sr)
            took = {}
            for command, seconds in x.durations:
                took.setdefault(command, []).append(seconds * 1000)
            print('%d volumes, %d rounds, load %.1f; median and worst in ms:' % (volumes, rounds, os.getloadavg()[0]))
            for command in sorted(took):
                middle = statistics.median(took[command])
                print('%-22s %6.0f %6.0f%s' % (command, middle, max(took[command]), '   over %d' % TARGET_MS if middle > TARGET_MS else ''))
    finally:
        shutil.rmtree(folder)


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
