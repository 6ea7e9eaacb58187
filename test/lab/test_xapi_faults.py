# SPDX-License-Identifier: GPL-2.0-or-later
"""XAPI's storage driver where more than one thing happens at once, against real daemons and kernels (see test_xapi.py): many calls
together, two hosts that want one disk, changed blocks told by real thin pools.
"""
import base64

import pytest

from lablib import together, wait
from test_xapi import CONFIG, MIB, XenError, pool, uuid_of		# noqa: F401 (pool is a fixture)

pytestmark = pytest.mark.slow
MANY = 20


def disks(vm):
    """Volumes and snapshots of the cluster that are not on their way out, and their labels."""
    status = vm.lockstep('status --json')
    return {v['name']: v['labels'] for v in status['volumes'] + status['snapshots'] if v['phase'] != 'deleting'}


def assert_agreed(x, sr, vm):
    """xapi's records are the cluster's volumes, none of them half made."""
    found = disks(vm)
    assert set(found) == {uuid_of(x, v) for v in x.vdis(sr)}
    assert not [name for name, labels in found.items() if 'xapi.creating' in labels]


def changed(x, since, to):
    bits = base64.b64decode(x.vdi_call('vdi_list_changed_blocks', since, args=[to]))
    return [i for i in range(len(bits) * 8) if bits[i // 8] & 0x80 >> i % 8]


def test_xapi_many_at_once(pool):		# noqa: F811
    x, (a, b, c) = pool, pool.vms
    alpha, beta, gamma = (x.host_named(h.name) for h in pool.vms)
    sr = x.sr_create('storage', CONFIG)
    made = together(lambda n: x.vdi_create(sr, 8 * MIB, f'disk {n}'), range(MANY))
    x.sr_scan(sr)
    assert len(set(made)) == MANY and set(x.vdis(sr)) == set(made)
    assert_agreed(x, sr, a)

    # Half of them go while others come.
    def turn(n):
        return x.vdi_destroy(made[n]) if n % 2 else x.vdi_create(sr, 8 * MIB, f'disk {MANY + n}')
    new = [v for v in together(turn, range(MANY)) if v]
    x.sr_scan(sr)
    kept = set(made[::2]) | set(new)
    assert set(x.vdis(sr)) == kept and len(new) == MANY // 2
    assert_agreed(x, sr, b)
    last, *others = sorted(kept)
    together(x.vdi_destroy, others)
    x.sr_scan(sr)
    assert x.vdis(sr) == [last]
    assert_agreed(x, sr, c)

    # Two hosts want one disk: through xapi one gets it, and the kernel of the other refuses it to anybody.
    name = uuid_of(x, last)

    def attempt(host):
        try:
            x.plug(last, host)
            return True
        except XenError as e:
            return str(e)
    won = together(attempt, (beta, gamma))
    assert won.count(True) == 1, won
    holder, loser, vm, other = (beta, gamma, b, c) if won[0] is True else (gamma, beta, c, b)
    [volume] = [v for v in a.lockstep('status --json')['volumes'] if v['phase'] != 'deleting']
    assert volume['name'] == name and volume['openers'] == [vm.name]
    assert other.run(f'exec 3<>/dev/lockstep/{name}', check=False).status, f'{other} opened what {vm} has open'
    x.unplug(last, holder)
    x.db['VDI'][last]['sm_config'] = {'vdi_type': 'aio'}		# what the one who was refused has left of sm's own marks
    x.plug(last, loser)

    # Changed blocks, from the metadata of the thin pools.
    x.vdi_call('vdi_enable_cbt', last)
    x.db['VDI'][last]['cbt_enabled'] = True
    first = x.vdi_snapshot(last)
    for block in (0, 5, 77):
        other.run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=64k seek={block} count=1 oflag=direct conv=notrunc,fsync')
    second = x.vdi_snapshot(last)
    other.run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=64k seek=100 count=2 oflag=direct conv=notrunc,fsync')
    assert changed(x, first, second) == [0, 5, 77]
    assert changed(x, first, last) == [0, 5, 77, 100, 101]
    assert changed(x, second, last) == [100, 101]
    x.vdi_call('vdi_data_destroy', first)
    with pytest.raises(XenError, match='data of snapshot .* have been destroyed'):
        x.plug(first, alpha, writable=False)
    assert changed(x, first, second) == [0, 5, 77]
    x.unplug(last, loser)
    for disk in (first, second, last):
        x.vdi_destroy(disk)
    x.sr_destroy(sr)
