# SPDX-License-Identifier: GPL-2.0-or-later
"""XAPI's storage driver and plugin, against real daemons and kernels (see test_xapi.py): the plugin's interface functions, what disks
take of real thin pools.
"""
import json

import pytest

from lablib import wait
from test_xapi import CONFIG, MIB, XenError, pool, uuid_of		# noqa: F811, F401 (pool is a fixture)
from test_xapi_hosts import GROUP, PLUGIN
from fakexapi import ref

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
