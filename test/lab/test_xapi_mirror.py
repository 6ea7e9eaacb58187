# SPDX-License-Identifier: GPL-2.0-or-later
"""A running VM's disk is migrated into an SR, against real daemons, kernels and thin pools (see test_xapi.py):

    guest ─► tapdisk at the source ─► source disk (a file here) ── copied as it was at the start ──► parent ─┐
                      └──────── each write from then on ────────► leaf, with a trail ── compose ────────────►┴─► leaf
"""
import re, time

import pytest

from lablib import wait
from test_xapi import CONFIG, MIB, THICK, XenError, pool, thick_pool, uuid_of		# noqa: F401 (pool is a fixture)
from test_xapi_hosts import digest, status_of
from fakexapi import Migration

pytestmark = pytest.mark.slow
SIZE = 24 * MIB


def guest_writes(vm, leaf, seed):
    """Requests of 512 bytes to 64 KiB, overlapping, and discards: on the source disk and, as its tapdisk does, on the leaf."""
    vm.run(f'rm -f /tmp/iolog; fio --name=t --filename=/tmp/source --size={SIZE} --ioengine=psync --rw=randwrite --norandommap '
           f'--bsrange=512-64k --blockalign=512 --io_size=1M --randseed={seed} --write_iolog=/tmp/iolog', timeout=100)
    regions = [(int(at) // 512, int(n) // 512) for at, n in re.findall(r' write (\d+) (\d+)$', vm.out('cat /tmp/iolog'), re.M)]
    assert len(regions) > 10 and any(n % 8 for _, n in regions)
    zeroed = seed * 1000 + 3
    vm.run(f'dd if=/dev/zero of=/tmp/source bs=512 seek={zeroed} count=21 conv=notrunc 2>/dev/null')
    vm.run(''.join(f'dd if=/tmp/source of=/dev/lockstep/{leaf} bs=512 skip={at} seek={at} count={n} conv=notrunc oflag=direct 2>/dev/null || exit 1\n'
                   for at, n in regions) + f'blkdiscard -z -o $(({zeroed} * 512)) -l $((21 * 512)) /dev/lockstep/{leaf}', timeout=120)


def copy(vm, parent, first_mib, mib):
    vm.run(f'dd if=/tmp/then of=/dev/lockstep/{parent} bs=1M skip={first_mib} seek={first_mib} count={mib} conv=notrunc oflag=direct', timeout=100)


def begin(x, vm, config=CONFIG):
    """The SR, the source disk and its content at the start."""
    vm.run(f'head -c {SIZE} /dev/urandom >/tmp/source; cp /tmp/source /tmp/then')
    return x.sr_create('storage', config), x.host_named(vm.name)


def finish(m):
    """And how long the guest stands still for it, as the driver's call goes."""
    began = time.monotonic()
    m.x.cluster.took.clear()
    m.finish()
    took = dict(m.x.durations[-4:])
    print(f'compose: {took.get("vdi_compose", 0):.1f} s of {time.monotonic() - began:.1f} s, {SIZE >> 20} MiB disk')
    for method, path, seconds in m.x.cluster.took:
        print(f'  {seconds:5.1f} s  {method} {path}')


def migrate(x, sr, beta, vms):
    """With what the guest writes before, during and behind the copy; compared on every host and on every copy. Answers the disk."""
    a, b, c = vms
    m = Migration(x, sr, SIZE, beta)
    leaf, parent = m.uuid(m.leaf), m.uuid(m.parent)
    x.plug(m.parent, beta)
    copy(b, parent, 0, 10)
    guest_writes(b, leaf, 1)
    copy(b, parent, 10, 14)
    x.unplug(m.parent, beta)
    guest_writes(b, leaf, 2)
    source = b.out('md5sum </tmp/source')
    assert source != b.out('md5sum </tmp/then')
    finish(m)
    for vm in vms:
        assert digest(vm, leaf) == source, vm
    # every copy of it, not only the one that serves
    wait(lambda: all(r['state'] == 'insync' for r in status_of(a, leaf)['replicas']), 60, 'all copies to be in sync')
    x.sr_scan(sr)
    assert x.vdis(sr) == [m.leaf]
    assert [v['name'] for v in a.lockstep('status --json')['volumes'] if v['phase'] != 'deleting'] == [leaf]
    for vm in (v for v in vms if v.name in {r['host'] for r in status_of(a, leaf)['replicas']}):
        path = next(r['lv_path'] for r in status_of(a, leaf)['replicas'] if r['host'] == vm.name)
        assert vm.out(f'dd if={path} bs=1M count={SIZE >> 20} iflag=direct 2>/dev/null | md5sum') == source, vm
    return m.leaf


def test_xapi_a_running_vm_migrates_in(pool):		# noqa: F811
    x, (a, b, c) = pool, pool.vms
    sr, beta = begin(x, b)
    disk = migrate(x, sr, beta, pool.vms)

    # Once more, beginning with a clone of what is there already, as for a VM with snapshots.
    nearest = x.vdi_snapshot(disk)
    again = Migration(x, sr, SIZE, beta, nearest=nearest)
    guest_writes(b, again.uuid(again.leaf), 3)
    source = b.out('md5sum </tmp/source')
    finish(again)
    assert digest(c, again.uuid(again.leaf)) == source != digest(c, uuid_of(x, disk))


def test_xapi_a_lost_trail_ends_a_migration(pool):		# noqa: F811
    """The writes are there, which they were is not known. The copy is as it was, and nothing stays."""
    x, (a, b, c) = pool, pool.vms
    sr, beta = begin(x, b)
    lost = Migration(x, sr, SIZE, beta)
    x.plug(lost.parent, beta)
    copy(b, lost.uuid(lost.parent), 0, 24)
    x.unplug(lost.parent, beta)
    b.run('echo 0 >/sys/module/lockstep/parameters/max_trail_mib')
    guest_writes(b, lost.uuid(lost.leaf), 4)
    with pytest.raises(XenError, match='SR_BACKEND_FAILURE_46.*is not known any more.*the VM goes on at its source'):
        lost.finish()
    assert digest(a, lost.uuid(lost.parent)) == b.out('md5sum </tmp/then')
    lost.cancel()
    x.sr_scan(sr)
    assert x.vdis(sr) == []


def test_xapi_a_running_vm_migrates_into_a_thick_sr(thick_pool):		# noqa: F811
    x, b = thick_pool, thick_pool.vms[1]
    sr, beta = begin(x, b, THICK)
    disk = migrate(x, sr, beta, x.vms)
    # A disk like others: no trail takes memory, which it would ask for with the first write to what is new.
    x.vdi_resize(disk, SIZE + 8 * MIB)
    b.run('echo 0 >/sys/module/lockstep/parameters/max_trail_mib')
    x.plug(disk, beta)
    b.run(f'dd if=/dev/urandom of=/dev/lockstep/{uuid_of(x, disk)} bs=1M seek={SIZE >> 20} count=8 oflag=direct conv=notrunc,fsync', timeout=120)
    x.unplug(disk, beta)
    assert 'is not known any more' not in b.out('dmesg')
    x.vdi_destroy(disk)
    x.sr_destroy(sr)
