# SPDX-License-Identifier: GPL-2.0-or-later
"""XAPI's storage driver and plugin while hosts come and go, against real daemons and kernels (see test_xapi.py): a host is added to a
live SR and another one removed from it; a host dies in the middle of a call, and what xapi would do then follows.
"""
import json, os, shutil, signal

import pytest

from lablib import together, wait
from test_xapi import CONFIG, MIB, XenError, pool, uuid_of		# noqa: F401 (pool is a fixture)
from test_xapi_faults import assert_agreed, disks, move_master
from fakexapi import Killed

pytestmark = pytest.mark.slow
PLUGIN = 'lockstep-manager'
GROUP = {'groupName': CONFIG['group-name']}


def join_pool(x, vm):
    """What happens before addHost: the host is installed and has joined the pool of xapi."""
    vm.install('--disks /dev/vdb --thin')
    vm.configure()
    x.cluster.serve(vm)
    return x.add_host(vm.name)


def pbds_on(x, host):
    return [r for r in x.db['PBD'].values() if r['host'] == host]


def status_of(vm, name):
    return next(v for v in vm.lockstep('status --json')['volumes'] if v['name'] == name and v['phase'] != 'deleting')


def copies(vm, name):
    return {r['host'] for r in status_of(vm, name)['replicas']}


def fill(vm, name, mib):
    """Writes the whole device with what cannot be compressed, and tells its digest."""
    vm.run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=1M count={mib} oflag=direct conv=notrunc,fsync', timeout=120)
    return digest(vm, name)


def digest(vm, name):
    return vm.out(f'dd if=/dev/lockstep/{name} bs=1M iflag=direct 2>/dev/null | md5sum', timeout=120)


def test_xapi_hosts_added_and_removed(pool):		# noqa: F811
    x, (a, b, c) = pool, pool.vms
    alpha, beta, gamma = (x.host_named(h.name) for h in pool.vms)
    sr = x.sr_create('storage', CONFIG)
    size_before = int(x.db['SR'][sr]['physical_size'])
    disk = x.vdi_create(sr, 32 * MIB, 'disk')
    name = uuid_of(x, disk)
    x.plug(disk, gamma)
    written = fill(c, name, 32)
    x.unplug(disk, gamma)

    # One more host: it joins, brings its pool, and has the SR plugged in.
    [d] = a.lab.boot(1)
    delta = join_pool(x, d)
    assert x.call_plugin(delta, PLUGIN, 'addHost', GROUP) == 'True'
    assert x.call_plugin(delta, PLUGIN, 'addHost', GROUP) == 'True'
    status = a.lockstep('status --json')
    assert {h['name']: h['status'] for h in status['hosts']} == {n: 'online' for n in ('alpha', 'beta', 'gamma', 'delta')}
    assert 'delta' in {p['host'] for p in status['pools']}
    [pbd] = pbds_on(x, delta)
    assert pbd['currently_attached'] and pbd['device_config'] == CONFIG
    x.sr_scan(sr)
    assert int(x.db['SR'][sr]['physical_size']) > size_before

    # It uses disks without a copy of them, and no copy is made; a whole disk is copied there, and is the same elsewhere.
    lies_on = copies(a, name)
    assert 'delta' not in lies_on
    x.plug(disk, delta, writable=False)
    copy = x.vdi_create(sr, 32 * MIB, 'copy')
    x.plug(copy, delta)
    d.run(f'dd if=/dev/lockstep/{name} of=/dev/lockstep/{uuid_of(x, copy)} bs=1M iflag=direct oflag=direct conv=notrunc,fsync', timeout=120)
    assert copies(a, name) == lies_on
    x.unplug(copy, delta)
    x.unplug(disk, delta)
    assert copies(a, name) == lies_on
    x.plug(copy, alpha, writable=False)
    assert digest(a, uuid_of(x, copy)) == written
    x.unplug(copy, alpha)

    # A host with a copy leaves, while the disk is in use elsewhere: refused while it uses a disk itself, then emptied first.
    leaving, vm = (beta, b) if 'beta' in lies_on else (gamma, c)
    user = gamma if leaving == beta else beta
    x.plug(disk, leaving)
    with pytest.raises(XenError, match=f'is open on host {vm.name}'):
        x.call_plugin(leaving, PLUGIN, 'removeHost', GROUP)
    assert copies(a, name) == lies_on and pbds_on(x, leaving)[0]['currently_attached']
    x.unplug(disk, leaving)
    x.plug(disk, user)
    assert x.call_plugin(leaving, PLUGIN, 'removeHost', GROUP) == 'True'
    status = a.lockstep('status --json')
    assert vm.name not in {h['name'] for h in status['hosts']} and vm.name not in {p['host'] for p in status['pools']}
    assert pbds_on(x, leaving) == [] and len(copies(a, name) - {vm.name}) == 2
    assert 'lockstep.' not in vm.out('lvs --noheadings -o lv_name'), 'the host that left holds replicas'
    x.unplug(disk, user)
    x.plug(disk, delta, writable=False)
    assert digest(d, name) == written
    x.unplug(disk, delta)
    x.sr_scan(sr)
    assert_agreed(x, sr, a)

    # The same host again, as a repaired one; not before its kernel has forgotten what it was (on dom0 removeHost sees to that).
    wait(vm.daemon_answers, 60, f'the daemon of {vm} to be back')
    with pytest.raises(XenError, match='run `lockstep down`, reload the module'):
        x.call_plugin(leaving, PLUGIN, 'addHost', GROUP)
    assert vm.name not in {h['name'] for h in a.lockstep('status --json')['hosts']} and pbds_on(x, leaving) == []
    vm.daemon('stop')
    vm.run('lockstep down && modprobe -r lockstep && modprobe lockstep')
    vm.daemon('start')
    wait(vm.daemon_answers, 60, f'the daemon of {vm} to be back')
    assert x.call_plugin(leaving, PLUGIN, 'addHost', GROUP) == 'True'
    assert vm.name in {h['name'] for h in a.lockstep('status --json')['hosts']}

    # The pool master goes, another one having taken its place.
    move_master(x, delta)
    x.sr_call('sr_attach', sr, delta)
    assert x.call_plugin(alpha, PLUGIN, 'removeHost', GROUP) == 'True'
    assert {h['name'] for h in d.lockstep('status --json')['hosts']} == {'beta', 'gamma', 'delta'}
    x.sr_scan(sr)
    assert_agreed(x, sr, d)
    x.plug(disk, beta, writable=False)
    assert digest(b, name) == written
    x.unplug(disk, beta)
    for vdi in (disk, copy):
        x.vdi_destroy(vdi)
    x.sr_destroy(sr)


class Fall:
    """Turns a host off when its daemon has been asked something, or has answered; and the driver, if that runs there."""

    def __init__(self, x, vm, method, path, moment, driver_too=True):
        self.x, self.vm, self.want, self.driver_too, self.sprung = x, vm, (method, path, moment), driver_too, False
        x.cluster.trap = self

    def __call__(self, host, method, path, moment):
        wanted, begins, when = self.want
        if host is not self.vm or self.sprung or moment != when or method != wanted or not path.startswith(begins):
            return
        self.sprung = True
        self.vm.kill()		# before the driver, whose end the scenario waits for
        for pid in list(self.x.processes) if self.driver_too else ():
            os.kill(pid, signal.SIGKILL)

    def lost(self):
        """What the rest of the pool does about the host: its disks are reset (resetvdis), its PBDs are unplugged."""
        x, host = self.x, self.x.host_named(self.vm.name)
        assert self.sprung, self.want
        x.cluster.trap = None
        x.cluster.lost(self.vm.name)
        dev = os.path.join(x.folder, self.vm.name, 'dev')
        shutil.rmtree(dev)
        os.makedirs(dev)
        for r in x.db['VDI'].values():
            r['sm_config'] = {k: v for k, v in r['sm_config'].items() if k not in ('activating', 'host_' + host)}
        for r in pbds_on(x, host):
            r['currently_attached'] = False

    def back(self, by, sr=None):
        self.vm.power_on()
        wait(lambda: all(h['status'] == 'online' for h in by.lockstep('status --json')['hosts']), 120, f'{self.vm} to be back')
        wait(lambda: self.vm.lockstep('status --json')['cluster']['quorum'], 60, f'{self.vm} to know')
        for pbd in [p for p, r in self.x.db['PBD'].items() if r['SR'] == sr and not r['currently_attached']]:
            self.x.pbd_plug(pbd)


def test_xapi_host_lost_while_it_plugs(pool):		# noqa: F811
    """The host where a VM starts dies in attach or activate; the VM is started elsewhere, then the first host is back and gets it."""
    x, (a, b, c) = pool, pool.vms
    alpha, beta, gamma = (x.host_named(h.name) for h in pool.vms)
    sr = x.sr_create('storage', CONFIG)
    disk = x.vdi_create(sr, 16 * MIB, 'disk')
    snapshot = x.vdi_snapshot(disk)
    name = uuid_of(x, disk)
    x.plug(disk, beta)
    written = fill(b, name, 16)
    x.unplug(disk, beta)
    # sm's vdi_attach only answers where the device will be; what it attaches it attaches at the start of vdi_activate.
    cases = [
        ('attach', disk, ('GET', '/v1/status', 'answered')),
        ('activate', disk, ('POST', '/test/open', 'answered')),
        ('attach of a snapshot', snapshot, ('POST', '/v1/volumes', 'asked')),
    ]
    for verb, vdi, when in cases:
        writable = vdi is disk
        fall = Fall(x, b, *when)
        with pytest.raises((Killed, XenError)):
            x.plug(vdi, beta, writable=writable)
        fall.lost()
        shown = name if writable else uuid_of(x, vdi) + '.view'

        # The host is known to be off; the volume goes on without it.
        wait(lambda: next(h for h in a.lockstep('status --json')['hosts'] if h['name'] == 'beta')['status'] != 'online', 60,
             'beta to be missed')
        x.plug(vdi, gamma, writable=writable)
        if writable:
            assert digest(c, name) == written, verb
            written = fill(c, name, 16)
        fall.back(a, sr)
        x.sr_scan(sr)
        if writable:
            with pytest.raises(XenError):
                x.plug(vdi, beta)		# gamma has it
            x.vdi_detach(vdi, beta)
        x.unplug(vdi, gamma)
        x.plug(vdi, beta, writable=writable)
        if writable:
            assert digest(b, name) == written, verb
        else:
            b.run(f'dd if=/dev/lockstep/{shown} of=/dev/null bs=1M iflag=direct', timeout=120)
        x.unplug(vdi, beta)
        x.sr_scan(sr)
        assert_agreed(x, sr, a)
        a.lockstep(f'wait-sync {name} --timeout 120', timeout=135)
    for vdi in (snapshot, disk):
        x.vdi_destroy(vdi)
    x.sr_destroy(sr)


def test_xapi_master_lost_in_a_scan(pool):		# noqa: F811
    """A scan that has records to make and to forget, and wreckage to remove, ends at any of its requests; the next master's does the rest."""
    x, (a, b, c) = pool, pool.vms
    alpha, beta = x.host_named('alpha'), x.host_named('beta')
    sr = x.sr_create('storage', CONFIG)
    group = x.db['SR'][sr]['uuid']
    kept = x.vdi_create(sr, 8 * MIB, 'kept')
    for when in (('GET', '/v1/status', 'answered'), ('DELETE', '/v1/volumes', 'asked'), ('DELETE', '/v1/volumes', 'answered')):
        before = set(x.vdis(sr))
        found = x.vdi_create(sr, 8 * MIB, 'found')
        found_uuid = uuid_of(x, found)
        del x.db['VDI'][found]		# restored from a backup of xapi's database
        wreck = '00000000-0000-4000-8000-00000000000' + str(len(before))
        body = {'name': wreck, 'uuid': wreck, 'size_bytes': 8 * MIB, 'group': group, 'labels': {'xapi.creating': '1'}}
        assert x.cluster.ask(b, 'POST', '/v1/volumes', json.dumps(body).encode())[0] == 200
        gone = x.vdi_create(sr, 8 * MIB, 'gone')
        b.lockstep(f'volume delete {uuid_of(x, gone)}', timeout=90)
        fall = Fall(x, a, *when)
        with pytest.raises((Killed, XenError)):
            x.sr_scan(sr)
        fall.lost()
        assert before <= set(x.vdis(sr)), 'a disk was forgotten'
        move_master(x, beta)
        wait(lambda: b.lockstep('status --json')['cluster']['quorum'], 60, 'the others to agree without alpha')
        x.sr_call('sr_attach', sr, beta)
        x.sr_scan(sr)
        assert set(x.vdis(sr)) == before | {x.vdi_by(found_uuid)} and wreck not in disks(b)
        assert_agreed(x, sr, b)
        fall.back(b, sr)
        move_master(x, alpha)
        x.sr_call('sr_attach', sr, alpha)
        x.sr_scan(sr)
        assert_agreed(x, sr, a)
    assert kept in x.vdis(sr)
    together(x.vdi_destroy, x.vdis(sr))
    x.sr_destroy(sr)


def test_xapi_host_lost_in_sr_create(pool):		# noqa: F811
    """xapi forgets the SR and its user tries again, when the host is back. What the first tries left is no obstacle."""
    x, (a, b, c) = pool, pool.vms
    first, second = sorted((b, c), key=lambda h: x.host_named(h.name))		# the driver's order
    tries = [
        (first, 'POST', '/v1/cluster/join', 'asked'), (second, 'POST', '/v1/cluster/join', 'answered'),
        (second, 'POST', '/v1/pools', 'asked'), (a, 'POST', '/v1/groups', 'asked'), (a, 'POST', '/v1/groups', 'answered'),
    ]
    for vm, method, path, moment in tries:
        fall = Fall(x, vm, method, path, moment, driver_too=vm is a)
        with pytest.raises((Killed, XenError)):
            x.sr_create('storage', CONFIG)
        fall.lost()
        assert not x.db['SR'] and not x.db['PBD']
        vm.power_on()
        wait(lambda: vm.daemon_answers(), 120, f'the daemon of {vm} to answer')
        wait(lambda: (a.lockstep('status --json')['cluster'] or {}).get('quorum'), 120, 'the cluster to agree')
    sr = x.sr_create('storage', CONFIG)
    status = a.lockstep('status --json')
    assert [g['name'] for g in status['groups']] == [x.db['SR'][sr]['uuid']]
    assert sorted(h['name'] for h in status['hosts']) == sorted(p['host'] for p in status['pools']) == ['alpha', 'beta', 'gamma']
    disk = x.vdi_create(sr, 8 * MIB)
    x.plug(disk, x.host_named('gamma'))
    x.unplug(disk, x.host_named('gamma'))
    x.vdi_destroy(disk)
    x.sr_destroy(sr)
