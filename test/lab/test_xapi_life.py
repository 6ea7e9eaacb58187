# SPDX-License-Identifier: GPL-2.0-or-later
"""XAPI's storage driver against real daemons, kernels and volume groups (see test_xapi.py): an SR on thick pools; disks copied, exported and
imported; an SR that nobody knows any more but the disks; hosts rebooted one by one.
"""
import json

import pytest

from lablib import together, wait
from test_xapi import CONFIG, MIB, THICK, XenError, pool, thick_pool, uuid_of		# noqa: F401 (pools are fixtures)
from test_xapi_faults import assert_agreed, changed
from test_xapi_hosts import digest, fill

pytestmark = pytest.mark.slow
PLUGIN = 'lockstep-manager'


def no_replicas_left(vms):
    for vm in vms:
        wait(lambda: 'lockstep.' not in vm.out('lvs --noheadings -o lv_name'), 60, f'replicas to leave {vm}')


def content(x, vdi, vm, host):
    """Its digest, read where it is plugged for that."""
    snapshot = x.db['VDI'][vdi]['is_a_snapshot']
    x.plug(vdi, host, writable=False)
    found = digest(vm, uuid_of(x, vdi) + ('.view' if snapshot else ''))
    x.unplug(vdi, host)
    return found


def test_xapi_thick_sr(thick_pool):		# noqa: F811
    x, (a, b, c) = thick_pool, thick_pool.vms
    alpha, beta, gamma = (x.host_named(vm.name) for vm in x.vms)
    sr = x.sr_create('storage', THICK)
    status = a.lockstep('status --json')
    assert {p['kind'] for p in status['pools']} == {'thick'} and len(status['pools']) == 3
    disk = x.vdi_create(sr, 32 * MIB, 'disk')
    name = uuid_of(x, disk)

    def used():
        x.sr_scan(sr)
        return int(x.db['SR'][sr]['physical_utilisation'])
    wait(lambda: used() >= 32 * MIB, 60, 'all of the disk to count as used')
    with pytest.raises(XenError, match='SR_BACKEND_FAILURE_44'):
        x.vdi_create(sr, 100 << 30)
    x.vdi_call('vdi_enable_cbt', disk)
    x.db['VDI'][disk]['cbt_enabled'] = True    # xapi does

    # A snapshot while it is written to, read elsewhere, cloned; the disk grows while it is in use.
    x.plug(disk, beta)
    then = fill(b, name, 32)
    snapshot = x.vdi_snapshot(disk)
    b.run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=1M count=4 oflag=direct conv=notrunc,fsync', timeout=60)
    now = digest(b, name)
    assert changed(x, snapshot, disk) == list(range(64))
    assert content(x, snapshot, c, gamma) == then != now
    clone = x.vdi_clone(snapshot)
    assert content(x, clone, a, alpha) == then
    x.vdi_destroy(snapshot)
    x.vdi_resize(disk, 40 * MIB)
    assert b.out(f'blockdev --getsize64 /dev/lockstep/{name}') == str(40 * MIB)
    assert b.out(f'dd if=/dev/lockstep/{name} bs=1M count=32 iflag=direct 2>/dev/null | md5sum') == now
    x.unplug(disk, beta)
    x.sr_scan(sr)
    assert_agreed(x, sr, a)

    # Reverted in place, also to an earlier snapshot. By an sm of before xapi destroys the disk and clones: in a thick pool its volume goes with the
    # last of its snapshots.
    first = x.vdi_snapshot(disk)
    before = content(x, disk, c, gamma)
    x.plug(disk, beta)
    b.run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=1M count=4 seek=9 oflag=direct conv=notrunc,fsync', timeout=60)
    x.unplug(disk, beta)
    assert x.vdi_revert(first) == disk and content(x, disk, a, alpha) == before
    x.plug(disk, beta)
    b.run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=1M count=2 seek=20 oflag=direct conv=notrunc,fsync', timeout=60)
    x.unplug(disk, beta)
    later = content(x, disk, b, beta)
    second = x.vdi_snapshot(disk)
    assert x.vdi_revert(first) == disk and content(x, disk, a, alpha) == before
    assert content(x, second, c, gamma) == later != before
    x.environment['FAKE_SM_OF_BEFORE'] = '1'
    x.register_driver(x.master)
    reverted = x.vdi_revert(first)
    assert reverted != disk and content(x, reverted, b, beta) == before
    x.sr_scan(sr)
    assert_agreed(x, sr, b)
    names = lambda: {v['name'] for v in a.lockstep('status --json')['volumes'] if v['phase'] != 'deleting'}
    x.vdi_destroy(second)
    assert name in names()
    x.vdi_destroy(first)
    assert name not in names()
    for vdi in (clone, reverted):
        x.vdi_destroy(vdi)
    x.sr_destroy(sr)
    no_replicas_left(x.vms)


def test_xapi_disks_of_a_lost_cluster(pool):		# noqa: F811
    """Copied, exported and imported in dom0; then all hosts are installed anew, with their disks. The SR is found on those."""
    x, (a, b, c) = pool, pool.vms
    alpha, beta, gamma = (x.host_named(vm.name) for vm in x.vms)
    sr = x.sr_create('storage', CONFIG)
    uuid = x.db['SR'][sr]['uuid']
    disk = x.vdi_create(sr, 24 * MIB, 'disk')
    x.plug(disk, beta)
    b.run(f'dd if=/dev/urandom of=/dev/lockstep/{uuid_of(x, disk)} bs=1M seek=3 count=9 oflag=direct conv=notrunc,fsync', timeout=60)
    written = digest(b, uuid_of(x, disk))

    # A disk in use: copied and exported by a snapshot. As sparse_dd does, what reads as zeros is not written to a new disk.
    snapshot = x.vdi_snapshot(disk)
    fill(b, uuid_of(x, disk), 24)
    copy = x.vdi_copy(snapshot, sr, gamma, lambda source, target: c.run(
        f'dd if=/dev/lockstep/{source}.view of=/dev/lockstep/{target} bs=1M iflag=direct oflag=direct conv=sparse,notrunc,fsync', timeout=100))
    x.vdi_export(snapshot, alpha, lambda source: a.run(f'dd if=/dev/lockstep/{source}.view of=/tmp/export bs=1M iflag=direct', timeout=100))
    x.unplug(disk, beta)
    assert a.out('md5sum </tmp/export') == written == content(x, copy, a, alpha)
    c.put(a.get('/tmp/export'), '/tmp/import')
    imported = x.into_new(sr, 24 * MIB, 'imported', gamma, lambda target: c.run(
        f'dd if=/tmp/import of=/dev/lockstep/{target} bs=1M oflag=direct conv=notrunc,fsync', timeout=100))
    assert content(x, imported, b, beta) == written
    x.vdi_destroy(snapshot)
    x.sr_scan(sr)
    assert_agreed(x, sr, a)
    contents = {uuid_of(x, vdi): content(x, vdi, c, gamma) for vdi in x.vdis(sr)}

    # All that the hosts knew is gone; the volume groups are there.
    for pbd in x.pbds(sr):
        x.pbd_unplug(pbd)
    x.sr_forget(sr)
    together(lambda vm: vm.daemon('stop'), x.vms)
    together(lambda vm: vm.run('lockstep down && modprobe -r lockstep && rm -rf /var/lib/lockstep/* && modprobe lockstep', timeout=60), x.vms)
    together(lambda vm: vm.daemon('start'), x.vms)
    for vm in x.vms:
        wait(vm.daemon_answers, 60, f'the daemon of {vm} to answer')
    assert a.lockstep('status --json')['cluster'] is None
    assert x.sr_probe(CONFIG) == [uuid]
    found = json.loads(x.call_plugin(alpha, PLUGIN, 'adoptVolumes', {'groupName': CONFIG['group-name'], 'srUuid': uuid}))
    assert set(found['adopted']) == set(contents) and found['kept'] == {} and found['sr'] == uuid
    assert x.sr_probe(CONFIG) == [uuid]
    sr = x.sr_record('storage', CONFIG, uuid_=uuid)
    for pbd in x.pbds(sr):
        x.pbd_plug(pbd)
    assert {uuid_of(x, vdi): content(x, vdi, a, alpha) for vdi in x.vdis(sr)} == contents
    for name in contents:
        a.lockstep(f'wait-sync {name} --timeout 120', timeout=135)		# their second copies are made anew
    assert {uuid_of(x, vdi): content(x, vdi, b, beta) for vdi in x.vdis(sr)} == contents
    assert_agreed(x, sr, c)

    # Forgotten by xapi, and destroyed without it.
    with pytest.raises(XenError, match='is known to xapi'):
        x.call_plugin(beta, PLUGIN, 'destroyVolumes', {'groupName': CONFIG['group-name']})
    for pbd in x.pbds(sr):
        x.pbd_unplug(pbd)
    x.sr_forget(sr)
    assert x.call_plugin(beta, PLUGIN, 'destroyVolumes', {'groupName': CONFIG['group-name']}) == 'True'
    assert a.lockstep('status --json')['groups'] == [] and x.sr_probe(CONFIG) == [uuid]		# the adopted copies' counterparts
    a.lockstep('group destroy --orphans --yes', timeout=120)
    assert x.sr_probe(CONFIG) == []
    no_replicas_left(x.vms)


def test_xapi_hosts_rebooted_one_by_one(pool):		# noqa: F811
    """A rolling pool update: the master first, then the others; each host's SR is unplugged, it reboots, and is plugged again. A VM's disk
    is in use on another host meanwhile; the next host is not touched before all copies are in sync."""
    x, vms = pool, pool.vms
    sr = x.sr_create('storage', CONFIG)
    disk = x.vdi_create(sr, 32 * MIB, 'disk of a VM')
    name = uuid_of(x, disk)
    for vm, other in zip(vms, vms[1:] + vms[:1]):
        host, user = x.host_named(vm.name), x.host_named(other.name)
        pbd = next(p for p in x.pbds(sr) if x.db['PBD'][p]['host'] == host)
        x.plug(disk, user)
        x.pbd_unplug(pbd)
        vm.daemon('stop')
        vm.kill()
        x.cluster.lost(vm.name)
        written = fill(other, name, 32)		# goes on, whichever host is away
        if host != x.master:
            made = x.vdi_create(sr, 8 * MIB, 'made meanwhile')
        vm.power_on()
        wait(lambda: all(h['status'] == 'online' for h in other.lockstep('status --json')['hosts']), 120, f'{vm} to be back')
        wait(lambda: vm.lockstep('status --json')['cluster']['quorum'], 60, f'{vm} to know')
        other.lockstep(f'wait-sync {name} --timeout 120', timeout=135)
        x.pbd_plug(pbd)
        x.pbd_plug(pbd)		# the toolstack restarts, too
        # Its VM moves back to the host that was updated.
        x.vdi_attach(disk, host)
        x.vdi_deactivate(disk, user)
        x.vdi_activate(disk, host)
        x.vdi_detach(disk, user)
        assert digest(vm, name) == written
        if host != x.master:
            assert vm.out(f'blockdev --getsize64 /dev/lockstep/{uuid_of(x, made)}') == str(8 * MIB)
        x.unplug(disk, host)
        x.sr_scan(sr)
        assert_agreed(x, sr, other)
    assert len(x.vdis(sr)) == 3 and all(r['currently_attached'] for r in x.db['PBD'].values())
    together(x.vdi_destroy, x.vdis(sr))
    x.sr_destroy(sr)
