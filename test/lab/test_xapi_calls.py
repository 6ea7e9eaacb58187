# SPDX-License-Identifier: GPL-2.0-or-later
"""XAPI's storage driver and plugin, against real daemons and kernels (see test_xapi.py): the plugin's interface functions, what disks
take of real thin pools; and a host lost in the middle of the calls that test_xapi_faults.py and test_xapi_hosts.py leave out.
"""
import json

import pytest

from lablib import wait
from test_xapi import CONFIG, MIB, XenError, pool, uuid_of		# noqa: F811, F401 (pool is a fixture)
from test_xapi_faults import assert_agreed, changed, move_master
from test_xapi_hosts import GROUP, PLUGIN, Fall, copies, digest, fill, join_pool, pbds_on, status_of
from test_xapi_mirror import SIZE, begin, copy, guest_writes
from fakexapi import Killed, Migration, ref

pytestmark = pytest.mark.slow


def test_xapi_interfaces_and_utilisation(pool):		# noqa: F811
    x, (a, b, c) = pool, pool.vms
    beta = x.host_named('beta')
    sr = x.sr_create('storage', CONFIG)
    disk = x.vdi_create(sr, 128 * MIB, 'disk')
    x.plug(disk, beta)
    b.run(f'dd if=/dev/urandom of=/dev/lockstep/{uuid_of(x, disk)} bs=1M count=32 oflag=direct conv=notrunc,fsync', timeout=120)

    # The management network becomes the second one, the preferred one, and the only one; a disk is in use all the while.
    management, storage = '10.77.1.2', '10.77.2.2'
    x.db['PIF'][ref()] = {'uuid': 'eth0', 'IP': management}
    x.db['PIF'][ref()] = {'uuid': 'eth1', 'IP': storage}

    def ask(function, **args):
        return x.call_plugin(x.host_named('gamma'), PLUGIN, function, dict(GROUP, hostname='beta', **args))

    def used():
        return next(h for h in c.lockstep('status --json')['hosts'] if h['name'] == 'beta')['addresses']
    assert json.loads(ask('listNodeInterfaces')) == {'default': {'address': storage, 'active': True}}
    assert ask('createNodeInterface', name='management', pifUuid='eth0') == 'True'
    assert json.loads(ask('listNodeInterfaces'))['management'] == {'address': management, 'active': False} and used() == [storage, management]
    assert ask('setNodePreferredInterface', name='management') == 'True'
    assert ask('getNodePreferredInterface') == 'management' and used() == [management, storage]
    assert ask('destroyNodeInterface', name=storage) == 'True'
    with pytest.raises(XenError, match='management is the only interface of host beta'):
        ask('destroyNodeInterface', name='management')
    b.run('ip link set eth1 down')		# nothing goes there any more
    b.run(f'dd if=/dev/urandom of=/dev/lockstep/{uuid_of(x, disk)} bs=1M count=8 oflag=direct conv=notrunc,fsync', timeout=120)
    b.run('ip link set eth1 up')
    assert ask('modifyNodeInterface', name='management', pifUuid='eth1') == 'True'
    assert used() == [storage]
    a.lockstep(f'wait-sync {uuid_of(x, disk)} --timeout 90', timeout=105)

    def utilisation():
        x.sr_scan(sr)
        return int(x.db['VDI'][disk]['physical_utilisation'])
    wait(lambda: utilisation() >= 32 * MIB, 90, 'what the disk takes to be told')
    assert utilisation() < 64 * MIB
    x.unplug(disk, beta)
    x.vdi_destroy(disk)
    x.sr_destroy(sr)


def test_xapi_host_lost_in_other_calls(pool):		# noqa: F811
    """sr_delete, the unplug of a disk, changed blocks: alpha, where they are asked for, dies; beta takes its place and they are repeated. Then
    a host dies while it is being removed, comes back, and is removed."""
    x, (a, b, c) = pool, pool.vms
    alpha, beta, gamma = (x.host_named(h.name) for h in pool.vms)
    sr = x.sr_create('storage', CONFIG)

    def lost(call, *when):
        fall = Fall(x, a, *when)
        with pytest.raises((Killed, XenError)):
            call()
        fall.lost()
        move_master(x, beta)
        wait(lambda: b.lockstep('status --json')['cluster']['quorum'], 60, 'the others to agree without alpha')
        wait(lambda: next(h for h in b.lockstep('status --json')['hosts'] if h['name'] == 'alpha')['status'] != 'online', 60, 'alpha to be missed')
        return fall

    def back(fall):
        fall.back(b, sr)
        move_master(x, alpha)

    fall = lost(lambda: x.sr_destroy(sr), 'DELETE', '/v1/groups', 'asked')
    x.sr_destroy(sr)
    assert not b.lockstep('status --json')['groups']
    back(fall)
    sr = x.sr_create('storage', CONFIG)
    disk = x.vdi_create(sr, 16 * MIB, 'disk')
    name = uuid_of(x, disk)

    # Where a VM stops: what it has written is there, and another host may have the disk.
    x.plug(disk, alpha)
    written = fill(a, name, 16)
    fall = lost(lambda: x.unplug(disk, alpha), 'GET', '/v1/status', 'asked')
    x.plug(disk, gamma)
    assert digest(c, name) == written
    x.unplug(disk, gamma)
    back(fall)
    b.lockstep(f'wait-sync {name} --timeout 120', timeout=135)
    assert_agreed(x, sr, a)

    # Changed blocks, asked for while there is a new one to be told.
    for when, verb in ((('PATCH', '/v1/volumes', 'answered'), 'enable'), (('GET', '/v1/volumes', 'asked'), 'list'), (('PATCH', '/v1/volumes', 'asked'), 'destroy')):
        if verb != 'enable':
            x.vdi_call('vdi_enable_cbt', disk)
            x.db['VDI'][disk]['cbt_enabled'] = True
            first = x.vdi_snapshot(disk)
            x.plug(disk, gamma)
            c.run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=64k seek=7 count=2 oflag=direct conv=notrunc,fsync')
        call = {
            'enable': lambda: x.vdi_call('vdi_enable_cbt', disk),
            'list': lambda: changed(x, first, disk),
            'destroy': lambda: x.vdi_call('vdi_data_destroy', first),
        }[verb]
        fall = lost(call, *when)
        if verb == 'list':
            assert call() == [7, 8]
        else:
            call()
        back(fall)
        b.lockstep(f'wait-sync {name} --timeout 120', timeout=135)
        if verb != 'enable':
            x.unplug(disk, gamma)
            assert changed(x, first, disk) == [7, 8]
            x.vdi_destroy(first)
        x.sr_scan(sr)
        assert_agreed(x, sr, a)

    # A host with a copy dies when its evacuation has begun, and is back.
    leaving, vm, user, other = (beta, b, gamma, c) if 'beta' in copies(a, name) else (gamma, c, beta, b)
    fall = Fall(x, vm, 'POST', f'/v1/hosts/{vm.name}/evacuate', 'answered')
    with pytest.raises((Killed, XenError)):
        x.call_plugin(leaving, PLUGIN, 'removeHost', GROUP)
    fall.lost()
    fall.back(a)
    assert x.call_plugin(leaving, PLUGIN, 'removeHost', GROUP) == 'True'
    assert vm.name not in {h['name'] for h in a.lockstep('status --json')['hosts']} and pbds_on(x, leaving) == []
    assert copies(a, name) == {'alpha', other.name}
    x.plug(disk, user, writable=False)
    other.run(f'dd if=/dev/lockstep/{name} of=/dev/null bs=1M iflag=direct', timeout=60)
    x.unplug(disk, user)
    x.vdi_destroy(disk)


class FallInRevert(Fall):
    """The host is turned off once the leaf is getting its content, which it cannot end without that host."""

    def __init__(self, x, vm, by, leaf):
        self.by, self.leaf = by, leaf
        Fall.__init__(self, x, vm, 'POST', f'/v1/volumes/{leaf}/replace', 'asked')

    def __call__(self, host, method, path, moment):
        if host is self.vm and (method, path, moment) == self.want and not self.sprung:
            wait(lambda: status_of(self.by, self.leaf)['phase'] == 'creating', 60, 'the leaf to be reverted')
        Fall.__call__(self, host, method, path, moment)


def test_xapi_master_lost_in_compose(pool):		# noqa: F811
    """When the leaf is getting its content, and when what was written has just been laid on the copy. It is composed again by the next master, when
    the lost host is back, which has a copy. Until then nothing is changed, no record is forgotten, and no sector is lost."""
    x, (a, b, c) = pool, pool.vms
    alpha = x.host_named('alpha')
    sr, beta = begin(x, b)
    place = b.lockstep('status --json')['groups'][0]['pool']
    body = {'name': 'filler', 'size_bytes': 256 * MIB, 'pool': place, 'hosts': ['beta', 'gamma']}		# alpha has the most room then
    assert x.cluster.ask(b, 'POST', '/v1/volumes', json.dumps(body).encode())[0] == 200
    for seed in (1, 2):
        b.run('cp /tmp/source /tmp/then')
        m = Migration(x, sr, SIZE, beta)
        leaf = m.uuid(m.leaf)
        assert 'alpha' in copies(b, leaf)
        x.plug(m.parent, beta)
        copy(b, m.uuid(m.parent), 0, SIZE // MIB)
        x.unplug(m.parent, beta)
        guest_writes(b, leaf, seed)
        source = b.out('md5sum </tmp/source')
        x.unplug(m.leaf, beta)
        fall = FallInRevert(x, a, b, leaf) if seed == 1 else Fall(x, a, 'PATCH', '/v1/volumes', 'asked')
        with pytest.raises((Killed, XenError)):
            m.compose()
        fall.lost()
        move_master(x, beta)
        wait(lambda: b.lockstep('status --json')['cluster']['quorum'], 60, 'the others to agree without alpha')
        wait(lambda: next(h for h in b.lockstep('status --json')['hosts'] if h['name'] == 'alpha')['status'] != 'online', 60, 'alpha to be missed')
        # Until then a snapshot would wait for alpha's copy.
        wait(lambda: 'alpha' not in {r['host'] for r in status_of(b, m.uuid(m.parent))['replicas'] if r['state'] == 'insync'}, 60, 'its copy to be left out')
        with pytest.raises(XenError, match='it is creating, wait for that' if seed == 1 else 'host alpha is offline'):
            m.compose()
        x.sr_scan(sr)
        assert {m.leaf, m.parent} <= set(x.vdis(sr)), 'a record was forgotten'
        fall.back(b, sr)
        wait(lambda: status_of(b, leaf)['phase'] == 'ready', 90, 'the leaf to have its content')
        m.compose()
        x.vdi_destroy(m.dummy)
        x.sr_scan(sr)
        assert x.vdis(sr) == [m.leaf]
        b.lockstep(f'wait-sync {leaf} --timeout 120', timeout=135)
        for vm in x.vms:
            assert digest(vm, leaf) == source, vm
        move_master(x, alpha)
        x.vdi_destroy(m.leaf)
    x.sr_destroy(sr)


def test_xapi_host_lost_while_it_is_added(pool):		# noqa: F811
    """addHost, to a live SR: the new host dies when it is to join, when it has joined, and when its pool is known. Each time it boots again; the
    last addHost does what is left. A disk is written to all the while."""
    x, (a, b, c) = pool, pool.vms
    gamma = x.host_named('gamma')
    sr = x.sr_create('storage', CONFIG)
    disk = x.vdi_create(sr, 16 * MIB, 'disk')
    name = uuid_of(x, disk)
    x.plug(disk, gamma)
    [d] = a.lab.boot(1)
    delta = join_pool(x, d)
    for when in (('POST', '/v1/cluster/join', 'asked'), ('POST', '/v1/cluster/join', 'answered'), ('POST', '/v1/pools', 'answered')):
        if when[2] == 'answered' and when[1].endswith('join') and d.lockstep('status --json')['cluster']:
            continue		# it had joined before it died
        fall = Fall(x, d, *when)
        with pytest.raises((Killed, XenError)):
            x.call_plugin(delta, PLUGIN, 'addHost', GROUP)
        fall.lost()
        written = fill(c, name, 16)
        d.power_on()
        wait(d.daemon_answers, 120, f'the daemon of {d} to answer')
    assert x.call_plugin(delta, PLUGIN, 'addHost', GROUP) == 'True'
    status = a.lockstep('status --json')
    assert sorted(h['name'] for h in status['hosts']) == sorted(p['host'] for p in status['pools']) == ['alpha', 'beta', 'delta', 'gamma']
    [pbd] = pbds_on(x, delta)
    assert pbd['currently_attached']
    x.unplug(disk, gamma)
    x.plug(disk, delta)
    assert digest(d, name) == written
    x.unplug(disk, delta)
    x.sr_scan(sr)
    assert_agreed(x, sr, d)
    x.vdi_destroy(disk)
    x.sr_destroy(sr)
