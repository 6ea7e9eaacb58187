# SPDX-License-Identifier: GPL-2.0-or-later
#
# The life of an SR: create, plug, scan, forget, introduce, destroy; hosts that come, go or cannot say anything.
import re

import pytest

from conftest import CONFIG
from fakexapi import XenError


def failed(code, says=''):
    return pytest.raises(XenError, match='(?s)%s.*%s' % (code, says))


def test_create_and_destroy(world):
    x = world.xapi
    sr = world.create()
    r = x.db['SR'][sr]
    group = world.cluster.groups[r['uuid']]
    assert group['redundancy'] == 2 and group['labels']['xapi.name'] == 'storage'
    assert all(p['currently_attached'] for p in x.db['PBD'].values())
    # smallest pool x pools / redundancy, as XOSTOR counts
    assert int(r['physical_size']) == 3 * (100 << 30) // 2
    assert world.xapi.db['PBD'] and dict(group, labels=None) == {'name': r['uuid'], 'pool': 'vg0-thin', 'redundancy': 2, 'labels': None}
    vdi = x.vdi_create(sr, 10 << 30, 'disk "ä" <0>', 'first & only')
    world.consistent(sr)
    with failed('SR_NOT_EMPTY'):
        x.sr_destroy(sr)
    for pbd in x.pbds(sr):
        x.pbd_plug(pbd)
    x.vdi_destroy(vdi)
    x.sr_scan(sr)
    x.sr_destroy(sr)
    assert not world.cluster.groups and not world.cluster.volumes


def test_thick(make_world):
    world = make_world()
    for host in world.cluster.hosts.values():
        host.vgs[('vg1', None)] = 50 << 30
    sr = world.create(**{'group-name': 'vg1', 'provisioning': 'thick', 'redundancy': '3'})
    assert int(world.xapi.db['SR'][sr]['physical_size']) == 50 << 30
    assert len(world.cluster.pools) == 6
    world.xapi.vdi_create(sr, 1 << 30)
    world.xapi.sr_scan(sr)
    assert int(world.xapi.db['SR'][sr]['physical_utilisation']) == 1 << 30    # not times the redundancy


@pytest.mark.parametrize('changes, code, says', [
    ({'group-name': ''}, 115, 'group-name=volume_group'),
    ({'group-name': 'a/b/c'}, 115, 'a/b/c is not'),
    ({'group-name': '/x'}, 115, 'is not volume_group'),
    ({'group-name': 'vg0'}, 115, 'provisioning=thin does not fit'),
    ({'provisioning': 'thick'}, 115, 'provisioning=thick does not fit'),
    ({'provisioning': 'fat'}, 115, 'provisioning=fat'),
    ({'redundancy': '0'}, 115, 'not a number from 1 to 8'),
    ({'redundancy': 'two'}, 115, 'not a number from 1 to 8'),
    ({'redundancy': '4'}, 115, 'the pool has 3'),
    ({'group-name': 'vg9/thin'}, 47, 'run the install script'),
])
def test_wrong_configuration(world, changes, code, says):
    with failed('SR_BACKEND_FAILURE_%d' % code, says):
        world.create(**changes)
    assert not world.cluster.groups and not world.xapi.db['SR'] and not world.xapi.db['PBD']


def test_must_be_shared(world):
    with failed('SR_BACKEND_FAILURE_47', 'shared=true'):
        world.xapi.sr_create('storage', CONFIG, shared=False)


def test_create_makes_the_cluster_and_its_pools(make_world):
    world = make_world(formed=False)
    sr = world.create()
    assert all(h.joined for h in world.cluster.hosts.values()) and len(world.cluster.pools) == 3
    world.xapi.vdi_create(sr, 1 << 30)
    world.consistent(sr)


def test_a_host_without_disks_is_a_client(make_world):
    world = make_world(formed=False)
    del world.cluster.hosts['gamma'].vgs[('vg0', 'thin')]
    sr = world.create()
    assert sorted(on for _, on in world.cluster.pools) == ['alpha', 'beta']
    assert int(world.xapi.db['SR'][sr]['physical_size']) == 100 << 30
    vdi = world.xapi.vdi_create(sr, 1 << 30)
    world.xapi.plug(vdi, world.hosts[2])
    assert world.cluster.volumes[world.xapi.db['VDI'][vdi]['uuid']]['hosts'] == ['alpha', 'beta']    # no replica is made there
    world.xapi.unplug(vdi, world.hosts[2])


def test_too_few_hosts_with_disks(make_world):
    world = make_world(formed=False)
    for name in ('beta', 'gamma'):
        del world.cluster.hosts[name].vgs[('vg0', 'thin')]
    with failed('SR_BACKEND_FAILURE_47', 'only alpha of the hosts have vg0/thin.*host gamma has no vg0/thin'):
        world.create()
    assert not world.cluster.groups
    for name in ('beta', 'gamma'):
        world.cluster.hosts[name].vgs[('vg0', 'thin')] = 100 << 30
    world.create()    # what the first try left is no obstacle


def test_create_needs_every_host(make_world):
    world = make_world(formed=False)
    world.cluster.stop('beta')
    with failed('XENAPI_PLUGIN_FAILURE|SR_BACKEND_FAILURE', 'lockstepd does not run on this host'):
        world.create()
    assert not world.cluster.groups and not world.xapi.db['SR']
    world.cluster.start('beta')
    world.xapi.db['host'][world.hosts[2]]['enabled'] = False
    with failed('SR_BACKEND_FAILURE_47', 'host gamma is disabled'):
        world.create()


def test_a_host_of_another_cluster(make_world):
    world = make_world(formed=False)
    other = make_world(names=['beta'])
    world.cluster.stop('beta')
    world.cluster.socket = lambda name, own=world.cluster.socket: other.cluster.socket('beta') if name == 'beta' else own(name)
    with failed('SR_BACKEND_FAILURE_47', 'host beta is in the cluster .*, this host in'):
        world.create()
    assert not world.cluster.groups and not other.cluster.groups


def test_one_sr_a_place(world, sr):
    with failed('SR_BACKEND_FAILURE_42', 'holds the SR .* already'):
        world.create()
    assert list(world.cluster.groups) == [world.xapi.db['SR'][sr]['uuid']]


def test_what_an_interrupted_create_left_is_no_obstacle(world):
    world.cluster.groups['0b1d3fa8-0000-4000-8000-000000000001'] = {
        'name': '0b1d3fa8-0000-4000-8000-000000000001', 'pool': 'vg0-thin', 'redundancy': 2, 'labels': {}}
    sr = world.create()
    assert list(world.cluster.groups) == [world.xapi.db['SR'][sr]['uuid']]


def test_probe_finds_it_while_unplugged(world, sr):
    x = world.xapi
    uuid = x.db['SR'][sr]['uuid']
    for pbd in x.pbds(sr):
        x.pbd_unplug(pbd)
    assert x.sr_probe(CONFIG) == [uuid]
    assert x.sr_probe({}) == [uuid]
    assert x.sr_probe({'group-name': 'vg1/thin', 'provisioning': 'thin'}) == []


def test_probe_of_disks_that_no_cluster_knows(world, sr):
    """They tell of which SR they were: without a cluster, and in a new one that has no SR there yet."""
    x = world.xapi
    uuid = x.db['SR'][sr]['uuid']
    x.vdi_create(sr, 1 << 30)
    x.vdi_create(sr, 2 << 30)
    world.cluster.lose_the_cluster()
    x.sr_forget(sr)
    for formed in (False, True):
        for host in world.cluster.hosts.values():
            host.joined = formed
        world.cluster.uuid = '0b1d3fa8-0000-4000-8000-00000000000a' if formed else ''
        assert x.sr_probe(CONFIG) == x.sr_probe({}) == [uuid], formed
        assert x.sr_probe({'group-name': 'vg1/thin', 'provisioning': 'thin'}) == []
    assert not world.cluster.groups and not world.cluster.volumes    # it only looked
    for orphan in world.cluster.orphans:
        orphan['group'] = ''    # of an earlier daemon, or by hand
    assert x.sr_probe(CONFIG) == []


def test_probe_where_no_cluster_is_asks_every_host(world, sr):
    """The pool master has no disk, or was installed anew and no daemon runs on it."""
    x = world.xapi
    uuid = x.db['SR'][sr]['uuid']
    for size in (1, 2):
        x.vdi_create(sr, size << 30)
    world.cluster.lose_the_cluster()
    for n, orphan in enumerate(world.cluster.orphans):
        orphan['hosts'] = ['beta', 'gamma'] if n else ['gamma']
    x.sr_forget(sr)
    assert x.sr_probe(CONFIG) == x.sr_probe({}) == [uuid]
    assert re.search(r'<Size>\s*%d\s*</Size>' % (3 << 30), x.probed)    # each disk once
    assert x.sr_probe({'group-name': 'vg1/thin', 'provisioning': 'thin'}) == []
    for name in ('alpha', 'beta'):
        world.cluster.stop(name)
    assert x.sr_probe(CONFIG) == [uuid]
    world.cluster.stop('gamma')
    with failed('SR_BACKEND_FAILURE_47', 'no host can say what is on its disks.*beta.*lockstepd does not run on this host'):
        x.sr_probe(CONFIG)


def test_probe_of_a_host_that_cannot_say_anything_yet(world, sr):
    world.cluster.get_wait = lambda host, query: dict(world.cluster.status(host), cluster={'name': None, 'uuid': None, 'leader': None, 'quorum': False},
                                                      message='lockstepd of alpha is starting', groups=[], pools=[])
    world.cluster.contract.check_answer = lambda *_: None
    with failed('SR_BACKEND_FAILURE_47', 'is starting'):
        world.xapi.sr_probe(CONFIG)


def test_forget_and_introduce(world, sr):
    x = world.xapi
    disk = x.vdi_create(sr, 1 << 30, 'disk', 'of a VM')
    snapshot = x.vdi_snapshot(disk)
    x.db['VDI'][snapshot]['name_label'] = 'before the update'
    x.vdi_call('vdi_update', snapshot)
    before = {r['uuid']: r for r in x.db['VDI'].values()}
    disk_uuid, snapshot_uuid = x.db['VDI'][disk]['uuid'], x.db['VDI'][snapshot]['uuid']
    for pbd in x.pbds(sr):
        x.pbd_unplug(pbd)
    x.sr_forget(sr)
    [uuid] = x.sr_probe(CONFIG)
    again = x.sr_record('storage', CONFIG, uuid_=uuid)
    for pbd in x.pbds(again):
        x.pbd_plug(pbd)
    world.consistent(again)
    after = {r['uuid']: r for r in x.db['VDI'].values()}
    for key in ('name_label', 'name_description', 'type', 'virtual_size', 'is_a_snapshot', 'snapshot_time', 'read_only'):
        assert {u: r[key] for u, r in after.items()} == {u: r[key] for u, r in before.items()}, key
    assert after[snapshot_uuid]['snapshot_of'] == x.vdi_by(disk_uuid)
    for vdi in (snapshot_uuid, disk_uuid):
        x.vdi_destroy(x.vdi_by(vdi))
    x.sr_destroy(again)
    assert not world.cluster.groups


def test_introduce_under_another_uuid_or_place_is_refused(world, sr):
    x = world.xapi
    uuid = x.db['SR'][sr]['uuid']
    x.sr_forget(sr)
    other = x.sr_record('storage', CONFIG)
    with failed('SR_BACKEND_FAILURE_47', 'holds %s: introduce that one' % uuid):
        x.pbd_plug(x.pbds(other)[0])
    x.sr_forget(other)
    wrong = x.sr_record('storage', {'group-name': 'vg1', 'provisioning': 'thick'}, uuid_=uuid)
    with failed('SR_BACKEND_FAILURE_47', 'lies in pool vg0-thin, which is not group-name=vg1'):
        x.pbd_plug(x.pbds(wrong)[0])


# A scan must never take silence for emptiness: the VDIs stay.
@pytest.mark.parametrize('trouble', ['no quorum', 'no daemon', 'no cluster', 'too old'])
def test_scan_faults_rather_than_forget(world, sr, trouble):
    x = world.xapi
    vdi = x.vdi_create(sr, 1 << 30)
    master = world.names[0]
    if trouble == 'no quorum':
        world.cluster.quorum = False
    elif trouble == 'no daemon':
        world.cluster.stop(master)
    elif trouble == 'no cluster':
        world.cluster.hosts[master].joined = False
    else:
        world.cluster.get_status = lambda host, query: dict(world.cluster.status(host), volumes=[])
    with failed('SR_BACKEND_FAILURE_(40|47)'):
        x.sr_scan(sr)
    assert vdi in x.db['VDI']
    if trouble == 'no daemon':
        pbd = x.pbds(sr)[0]
        with failed('SR_BACKEND_FAILURE_47', 'lockstepd does not run on this host: start it'):
            x.pbd_plug(pbd)
        world.cluster.start(master)
        x.pbd_plug(pbd)
        x.sr_scan(sr)
        world.consistent(sr)


def test_a_module_that_is_not_loaded_is_told_at_plug(world, sr):
    world.cluster.hosts['beta'].module_error = 'the kernel module lockstep is not loaded: run `modprobe lockstep`'
    pbd = next(k for k, r in world.xapi.db['PBD'].items() if r['host'] == world.hosts[1])
    world.xapi.pbd_unplug(pbd)
    with failed('SR_BACKEND_FAILURE_47', 'run `modprobe lockstep`'):
        world.xapi.pbd_plug(pbd)


def test_scan_follows_what_others_did(world, sr):
    x = world.xapi
    gone, grown = x.vdi_create(sr, 1 << 30), x.vdi_create(sr, 1 << 30)
    del world.cluster.volumes[x.db['VDI'][gone]['uuid']]
    world.cluster.volumes[x.db['VDI'][grown]['uuid']]['size_bytes'] = 2 << 30
    x.db['VDI'][grown]['sm_config'].update(host_x='RW', base_mirror='m', paused='true', mirror='nbd:x')
    x.sr_scan(sr)
    assert gone not in x.db['VDI']
    world.consistent(sr)
    assert {k: v for k, v in x.db['VDI'][grown]['sm_config'].items() if k in ('host_x', 'base_mirror', 'paused', 'mirror')} == {
        'host_x': 'RW', 'base_mirror': 'm', 'paused': 'true', 'mirror': 'nbd:x'}    # not ours
    before = len(x.calls)
    x.sr_scan(sr)
    assert not [c for c in x.calls[before:] if c.startswith('VDI.set_') or 'introduce' in c or 'forget' in c]    # settled


def test_a_disk_whose_content_is_being_replaced_is_not_forgotten(world, sr):
    """Its volume is in the phase of one that is being made, until all its hosts have done it, which takes long if one dies meanwhile."""
    x = world.xapi
    disk = x.vdi_create(sr, 1 << 30)
    volumes = world.cluster.volumes
    volumes[x.db['VDI'][disk]['uuid']]['phase'] = 'creating'
    for n, labels in enumerate(({}, {'xapi.creating': '1'})):    # of an administrator, and of a call that is repeated or given up
        new = '0b1d3fa8-0000-4000-8000-00000000000%d' % n
        world.cluster.volume_create(None, {'name': new, 'uuid': new, 'size_bytes': 4096, 'group': x.db['SR'][sr]['uuid'], 'labels': labels})
        volumes[new]['phase'] = 'creating'
    x.sr_scan(sr)
    assert x.vdis(sr) == [disk] and len(volumes) == 3
    for v in volumes.values():
        v['phase'] = 'ready'
    x.sr_scan(sr)
    assert disk in x.vdis(sr) and len(volumes) == 2
    world.consistent(sr)


def test_volumes_of_others_are_left_alone(world, sr):
    other = {'name': 'other', 'pool': 'vg0-thin', 'redundancy': 1, 'labels': {}}
    world.cluster.groups['other'] = other
    world.cluster.volume_create(None, {'name': 'theirs', 'size_bytes': 4096, 'group': 'other', 'labels': {}})
    mine = world.xapi.db['SR'][sr]['uuid']
    world.cluster.volume_create(None, {'name': 'by-hand', 'size_bytes': 4096, 'group': mine, 'labels': {}})    # in the SR's group, by an administrator
    world.xapi.sr_scan(sr)
    assert not world.xapi.vdis(sr) and {'theirs', 'by-hand'} <= set(world.cluster.volumes)
    with failed('SR_NOT_EMPTY', 'such as by-hand'):
        world.xapi.sr_destroy(sr)


def test_restart_of_the_toolstack_and_another_master(world, sr):
    x = world.xapi
    vdi = x.vdi_create(sr, 1 << 30)
    x.plug(vdi, world.hosts[0])
    x.db['VDI'][vdi]['sm_config']['paused'] = 'true'
    for pbd in x.pbds(sr):
        x.pbd_plug(pbd)    # idempotent; the master's clears what a crash has left
    assert 'paused' not in x.db['VDI'][vdi]['sm_config']
    x.unplug(vdi, world.hosts[0])
    x.master = world.hosts[2]
    x.db['pool'][list(x.db['pool'])[0]]['master'] = x.master
    x.sr_scan(sr)
    x.vdi_destroy(x.vdi_create(sr, 1 << 30))
    world.consistent(sr)


def test_names_of_the_sr_follow(world, sr):
    x = world.xapi
    x.db['SR'][sr].update(name_label='Speicher für alle', name_description='x' * 3000)
    x.sr_call('sr_update', sr)
    labels = world.cluster.groups[x.db['SR'][sr]['uuid']]['labels']
    assert labels['xapi.name'] == 'Speicher für alle' and labels['xapi.description'] == 'x' * 1024


def test_scan_failure_after_plug_is_a_message(world, sr):
    x = world.xapi
    world.cluster.quorum = False
    with failed('SR_BACKEND_FAILURE_40'):
        x.pbd_plug(x.pbds(sr)[0])
    assert [m['name'] for m in x.db['message'].values()] == ['POST_ATTACH_SCAN_FAILED']


def test_plug_leaves_the_scan_to_xapi_which_makes_one_anyway(world, sr):
    """But not of an SR that xapi has just come to know: its disks are there when it is plugged."""
    x = world.xapi
    x.vdi_create(sr, 1 << 30)
    before = len(x.calls)
    x.sr_call('sr_attach', sr)
    assert x.calls[before:].count('VDI.get_all_records_where') == 1    # sm's own, of what this host had attached
    uuid = x.db['SR'][sr]['uuid']
    x.sr_forget(sr)
    again = x.sr_record('storage', CONFIG, uuid_=uuid)
    x.sr_call('sr_attach', again)
    assert len(x.vdis(again)) == 1
    world.consistent(again)
