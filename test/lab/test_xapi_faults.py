# SPDX-License-Identifier: GPL-2.0-or-later
"""XAPI's storage driver where more than one thing happens at once, against real daemons and kernels (see test_xapi.py): many calls
together, two hosts that want one disk, changed blocks told by real thin pools, and the pool master lost in the middle of each call,
followed by what xapi does on the new one.
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
    return {v['name']: v['labels'] for v in status['volumes'] + status['snapshots'] if v['phase'] != 'deleting' and 'xapi.deleted' not in v['labels']}


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


class Trap:
    """Turns a host off while its daemon works on the first change that the driver asks for, or once that is done."""

    def __init__(self, relay, vm, moment):
        self.relay, self.vm, self.moment, self.sprung = relay, vm, moment, False
        relay.trap = self

    def __call__(self, host, method, path, moment):
        if host is not self.vm or method == 'GET' or moment != self.moment or self.sprung:
            return
        self.sprung = True
        self.vm.kill()


def move_master(x, host):
    x.master = host
    x.db['pool'][list(x.db['pool'])[0]]['master'] = host


def test_xapi_master_lost_in_each_call(pool):		# noqa: F811
    x, (a, b, c) = pool, pool.vms
    alpha, beta = x.host_named('alpha'), x.host_named('beta')
    sr = x.sr_create('storage', CONFIG)
    disk = x.vdi_create(sr, 16 * MIB, 'disk')
    source = x.vdi_snapshot(disk)
    victim = x.vdi_create(sr, 16 * MIB, 'victim')
    calls = {
        'create': lambda: x.vdi_create(sr, 16 * MIB, 'new'),
        'snapshot': lambda: x.vdi_snapshot(disk),
        'clone': lambda: x.vdi_clone(source),
        'resize': lambda: x.vdi_resize(disk, 32 * MIB),
        'delete': lambda: x.vdi_destroy(victim),
    }
    for n, (verb, call) in enumerate(calls.items()):
        before = set(x.vdis(sr))
        trap = Trap(x.cluster, a, 'asked' if n % 2 else 'answered')
        with pytest.raises(XenError):
            call()
        assert trap.sprung, verb
        x.cluster.trap = None
        # Its host is dead, another becomes master: xapi plugs the SR there again, scans, and repeats what it had not been told the end of.
        move_master(x, beta)
        wait(lambda: b.lockstep('status --json')['cluster']['quorum'], 60, 'the others to agree without alpha')
        x.sr_call('sr_attach', sr, beta)
        x.sr_scan(sr)
        print(verb, trap.moment, 'records before and after:', len(before), len(x.vdis(sr)))
        assert_agreed(x, sr, b)
        assert before - {victim} <= set(x.vdis(sr)), 'a disk was lost'
        a.power_on()
        wait(lambda: all(h['status'] == 'online' for h in b.lockstep('status --json')['hosts']), 120, 'alpha to be back')
        wait(lambda: a.lockstep('status --json')['cluster']['quorum'], 60, 'alpha to know')
        b.lockstep(f'wait-sync {uuid_of(x, disk)} --timeout 90', timeout=105)
        if verb != 'delete' or victim in x.db['VDI']:
            call()		# on the new master
        assert len(x.vdis(sr)) >= len(before) + (verb in ('create', 'snapshot', 'clone')) - (verb == 'delete'), verb
        x.sr_scan(sr)
        assert_agreed(x, sr, a)
        move_master(x, alpha)
        x.sr_call('sr_attach', sr, alpha)
    assert int(x.db['VDI'][disk]['virtual_size']) == 32 * MIB and victim not in x.db['VDI']
    for vdi in sorted(x.vdis(sr), key=lambda v: not x.db['VDI'][v]['is_a_snapshot']):
        x.vdi_destroy(vdi)
    x.sr_destroy(sr)
    for h in pool.vms:
        wait(lambda: 'lockstep.' not in h.out('lvs --noheadings -o lv_name'), 60, f'replicas to leave {h}')
