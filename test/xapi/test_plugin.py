# SPDX-License-Identifier: GPL-2.0-or-later
#
# The plugin, called as xapi calls it.
import json
import os
import subprocess
import xmlrpc.client

import pytest

from conftest import CONFIG, HERE
from fakexapi import XenError, method_call, ref

GIB = 1 << 30
GROUP = {'groupName': 'vg0/thin'}
COMMAND = os.path.join(HERE, '..', '..', 'build', 'lockstep')
needs_command = pytest.mark.skipif(not os.path.exists(COMMAND), reason='build/lockstep is not built')


def failed(*says):
    return pytest.raises(XenError, match='(?s)' + '.*'.join(says))


def call(world, function, args=None, host=0):
    return world.xapi.call_plugin(world.hosts[host], 'lockstep-manager', function, dict(GROUP if args is None else args))


def test_every_function_of_the_contract_is_there(installed):
    with open(os.path.join(installed[1], 'lockstep-manager')) as f:
        text = f.read()
    for name in ('addHost', 'removeHost', 'hasControllerRunning', 'getOpeners', 'getDrbdOpeners', 'listVolumes', 'listDrbdVolumes', 'destroyVolume',
                 'destroyDrbdVolume', 'destroyVolumes', 'destroyDrbdVolumes', 'healthCheck', 'createNodeInterface', 'modifyNodeInterface',
                 'destroyNodeInterface', 'listNodeInterfaces', 'getNodePreferredInterface', 'setNodePreferredInterface', 'prepareSr'):
        assert "'%s':" % name in text


def test_protocol(world, installed):
    with failed('UNKNOWN_XENAPI_PLUGIN_FUNCTION', 'explode'):
        call(world, 'explode')
    with failed('XENAPI_PLUGIN_FAILURE', 'listVolumes', 'the argument groupName or volume_group is missing'):
        call(world, 'listVolumes', {})
    world.cluster.stop('alpha')
    with failed('XENAPI_PLUGIN_FAILURE', 'lockstepd does not run on this host'):
        call(world, 'hasControllerRunning')
    out = subprocess.run([os.path.join(installed[1], 'lockstep-manager'), method_call('hasControllerRunning', [ref(), {}])],
                         env=world.xapi.env(world.hosts[0]), stdout=subprocess.PIPE)
    assert out.returncode == 0 and set(xmlrpc.client.loads(out.stdout.decode())[0][0]) == {'Status', 'ErrorDescription'}


def test_looking(world, sr):
    assert [call(world, 'hasControllerRunning', host=h) for h in (0, 1, 2)] == ['True', 'False', 'False']
    vdi = world.xapi.vdi_create(sr, GIB)
    minor = list(world.cluster.volumes.values())[0]['vid']
    for function in ('listVolumes', 'listDrbdVolumes'):
        for key in ('groupName', 'volume_group'):
            assert json.loads(call(world, function, {key: 'vg0/thin'})) == {'vg0/thin': [minor]}
    assert json.loads(call(world, 'listVolumes', {'groupName': 'vg1'})) == {'vg1': []}
    uuid = world.xapi.db['VDI'][vdi]['uuid']
    assert json.loads(call(world, 'getOpeners', {'volumeName': uuid})) == {}
    with failed('there is no volume named x'):
        call(world, 'getDrbdOpeners', {'resourceName': 'x', 'volume': '0'})


def test_openers_are_found_in_proc(world, sr):
    vdi = world.xapi.vdi_create(sr, GIB)
    uuid = world.xapi.db['VDI'][vdi]['uuid']
    path = os.path.join(world.cluster.devices('alpha'), uuid)
    os.unlink(path)
    os.symlink('/dev/zero', path)    # a device that can be opened
    holder = subprocess.Popen(['/bin/sleep', '1000'], stdin=open('/dev/zero'))
    try:
        found = json.loads(call(world, 'getDrbdOpeners', {'resourceName': uuid, 'volume': '0'}))
        assert found[str(holder.pid)]['process-name'] == 'sleep' and 0 <= int(found[str(holder.pid)]['open-duration']) < 3600000
    finally:
        holder.kill()
        holder.wait()


def test_health(world, sr):
    vdi = world.xapi.vdi_create(sr, GIB)
    world.xapi.plug(vdi, world.hosts[2])
    uuid = world.xapi.db['VDI'][vdi]['uuid']
    world.cluster.write(uuid, 0, 'data')
    health = json.loads(call(world, 'healthCheck'))
    assert health['errors'] == [] and health['nodes'] == {n: 'ONLINE' for n in world.names}
    assert health['storage-pools']['alpha'][0]['capacity'] == 100 * GIB
    # A thin pool may promise twice its size; the second copy of a VDI goes where 1 GiB is taken.
    assert health['max-vdi-size'] == {world.xapi.db['SR'][sr]['uuid']: 199 * GIB}
    nodes = health['resources'][uuid]['nodes']
    assert [nodes[n]['diskful'] for n in world.names] == [True, True, False] and nodes['gamma']['in-use']
    of_alpha = nodes['alpha']['volumes'][0]
    assert of_alpha['disk-state'] == 'UpToDate' and of_alpha['allocated-size'] == 65536 and of_alpha['usable-size'] == GIB
    for name in ('beta', 'gamma'):
        world.cluster.hosts[name].online = False
    world.cluster.quorum = False
    health = json.loads(call(world, 'healthCheck'))
    errors = health['errors']
    assert set(health['max-vdi-size'].values()) == {0}    # one host cannot hold two copies
    assert {'code': 0x1000000 | 0x20000, 'name': 'beta', 'status': 'OFFLINE'} in errors
    assert any('no quorum' in e.get('message', '') for e in errors)
    assert {'code': 0x1000000 | 0x40000, 'node': 'beta', 'resource': uuid, 'number': 0, 'state': 'DUnknown'} in errors
    world.cluster.stop('alpha')
    assert 'lockstepd does not run' in json.loads(call(world, 'healthCheck'))['errors'][0]['message']    # never fails as a whole


def add_delta(world):
    """A fourth host joins the pool."""
    import fakedaemon
    host = fakedaemon.Host('delta', 4)
    host.joined = False
    host.vgs[('vg0', 'thin')] = 100 * GIB
    world.cluster.hosts['delta'] = host
    world.xapi.add_host('delta')
    os.makedirs(world.cluster.devices('delta'))
    world.cluster.start('delta')
    world.names = world.names + ['delta']
    world.hosts.append(world.xapi.host_named('delta'))


def pbds_of(world, host):
    return [r for r in world.xapi.db['PBD'].values() if r['host'] == world.hosts[host]]


def test_add_and_remove_a_host(world, sr):
    add_delta(world)
    assert call(world, 'addHost', host=3) == 'True'
    assert call(world, 'addHost', host=3) == 'True'    # again changes nothing
    [pbd] = pbds_of(world, 3)
    assert pbd['currently_attached'] and pbd['device_config'] == CONFIG
    assert ('vg0-thin', 'delta') in world.cluster.pools
    vdi = world.xapi.vdi_create(sr, GIB)
    world.cluster.volumes[world.xapi.db['VDI'][vdi]['uuid']]['hosts'] = ['alpha', 'delta']
    world.xapi.plug(vdi, world.hosts[3])
    with failed('is open on host delta: move its VM'):
        call(world, 'removeHost', host=3)
    world.xapi.unplug(vdi, world.hosts[3])
    assert pbds_of(world, 3)[0]['currently_attached']
    assert call(world, 'removeHost', host=3) == 'True'
    assert pbds_of(world, 3) == [] and not world.cluster.hosts['delta'].joined
    assert world.cluster.volumes[world.xapi.db['VDI'][vdi]['uuid']]['hosts'] == ['alpha', 'beta']    # drained first


def test_a_host_is_removed_with_all_its_places(world, sr):
    """It leaves the cluster: no SR can stay plugged. A place that no SR is in is a mistake, for which no host leaves."""
    other = world.with_sr(thick=True)
    with failed('no SR of type lockstep has group-name=vg0/thick'):
        call(world, 'removeHost', {'groupName': 'vg0/thick'}, host=2)
    assert world.cluster.hosts['gamma'].joined and len(pbds_of(world, 2)) == 2
    assert call(world, 'removeHost', host=2) == 'True'
    assert pbds_of(world, 2) == [] and not world.cluster.hosts['gamma'].joined
    assert call(world, 'removeHost', host=2) == 'True'    # again, when it has left already
    for key in (sr, other):
        world.xapi.sr_forget(key)
    assert call(world, 'removeHost', host=1) == 'True'    # of SRs that xapi has forgotten


def test_remove_the_master(world, sr):
    assert call(world, 'removeHost', host=0) == 'True'
    assert not world.cluster.hosts['alpha'].joined


@pytest.mark.parametrize('trouble', ['no disks', 'plug fails', 'other cluster', 'join fails'])
def test_add_host_is_undone(world, sr, trouble):
    add_delta(world)
    delta = world.cluster.hosts['delta']
    if trouble == 'no disks':
        delta.vgs.clear()
        says = 'prepare its disks with the argument disks='
    elif trouble == 'plug fails':
        delta.module_error = 'the kernel module lockstep is not loaded'
        says = 'module lockstep is not loaded'
    elif trouble == 'join fails':
        world.cluster.join = None
        says = ''
    else:
        delta.joined = True
        status = world.cluster.status
        world.cluster.status = lambda host: dict(status(host), cluster=dict(status(host)['cluster'], uuid='another')) if host is delta else status(host)
        says = 'remove it there first'
    with failed(says):
        call(world, 'addHost', host=3)
    assert pbds_of(world, 3) == [] and ('vg0-thin', 'delta') not in world.cluster.pools
    assert delta.joined == (trouble == 'other cluster')


def test_remove_needs_room_and_a_daemon_that_can(make_world, world, sr):
    world.xapi.vdi_create(sr, GIB)
    for name in ('beta', 'gamma'):
        world.cluster.hosts[name].online = False
    with failed('host alpha cannot be emptied: volume .*: no other host has room'):
        call(world, 'removeHost')
    assert not world.cluster.hosts['alpha'].evacuating
    assert pbds_of(world, 0)[0]['currently_attached'] and world.cluster.hosts['alpha'].joined
    old = make_world(without=['POST /hosts/([^/]+)/evacuate'])
    old.create()
    with failed('cannot do this yet'):
        call(old, 'removeHost')
    assert pbds_of(old, 0)[0]['currently_attached']


def test_destroying_what_xapi_has_forgotten(world, sr):
    x = world.xapi
    vdi = x.vdi_create(sr, GIB)
    uuid = x.db['VDI'][vdi]['uuid']
    minor = str(world.cluster.volumes[uuid]['vid'])
    with failed('is a VDI of SR', 'xe vdi-destroy'):
        call(world, 'destroyDrbdVolume', {'minor': minor})
    with failed('is known to xapi'):
        call(world, 'destroyVolumes')
    x.plug(vdi, world.hosts[0])
    with failed('is open on host alpha'):
        call(world, 'destroyVolume', {'minor': minor, 'force': 'true'})
    x.unplug(vdi, world.hosts[0])
    x.vdi_create(sr, GIB)
    x.sr_forget(sr)
    assert call(world, 'destroyDrbdVolume', {'minor': minor}) == 'True'
    with failed('no volume with the name or minor'):
        call(world, 'destroyVolume', {'minor': minor})
    assert call(world, 'destroyDrbdVolumes', {'volume_group': 'vg0/thin'}) == 'True'
    assert not world.cluster.volumes and not world.cluster.groups


@pytest.mark.parametrize('thick', [False, True])
def test_destroying_a_forgotten_sr_takes_its_snapshots(world, thick):
    """Of what was forgotten nothing is left, and none of it goes if a disk is in use."""
    x, sr, place = world.xapi, world.with_sr(thick=thick), {'groupName': 'vg1' if thick else 'vg0/thin'}
    disks = [x.vdi_create(sr, GIB) for _ in range(2)]
    snapshots = [x.vdi_snapshot(vdi) for vdi in disks + disks]
    names = {vdi: x.db['VDI'][vdi]['uuid'] for vdi in disks + snapshots}
    x.plug(snapshots[0], world.hosts[1], writable=False)    # has a view
    x.plug(disks[1], world.hosts[0])
    with failed('is a VDI of SR', 'xe vdi-destroy'):
        call(world, 'destroyVolume', {'vdiUuid': names[snapshots[3]]})
    if not thick:
        x.vdi_destroy(disks[0])    # its snapshots are there without it
    x.sr_forget(sr)
    before = set(world.cluster.volumes) | set(world.cluster.snapshots)
    with failed('is open on host alpha: close it there first'):
        call(world, 'destroyVolumes', place)
    assert set(world.cluster.volumes) | set(world.cluster.snapshots) == before
    assert call(world, 'destroyVolume', {'vdiUuid': names[snapshots[3]]}) == 'True'
    assert names[snapshots[3]] not in world.cluster.snapshots
    for v in world.cluster.volumes.values():
        v['writers'].clear(), v['readers'].clear()
    assert call(world, 'destroyVolumes', place) == 'True'
    assert not world.cluster.volumes and not world.cluster.snapshots and not world.cluster.groups
    assert call(world, 'destroyVolumes', place) == 'True'    # once more


@needs_command
def test_disks_of_a_cluster_that_is_no_more(world, sr):
    """All hosts were installed anew, their disks were kept: an SR is created on them, and what they hold becomes its disks."""
    x = world.xapi
    x.environment['LOCKSTEP_COMMAND'] = COMMAND
    disks = [x.vdi_create(sr, GIB, 'disk %d' % n) for n in range(3)]
    uuids = sorted(x.db['VDI'][v]['uuid'] for v in disks)
    x.plug(disks[0], world.hosts[0])
    world.cluster.write(x.db['VDI'][disks[0]]['uuid'], 7, 'data')
    written = x.db['VDI'][disks[0]]['uuid']
    x.unplug(disks[0], world.hosts[0])
    world.cluster.lose_the_cluster()
    with failed('SR_BACKEND_FAILURE_47', 'in no cluster yet|no cluster yet'):
        x.sr_scan(sr)
    assert len(x.vdis(sr)) == 3    # a scan forgets nothing
    x.sr_forget(sr)
    sr = world.create()
    world.cluster.hosts['gamma'].online = False
    first = json.loads(call(world, 'adoptVolumes'))
    assert first['unreachable'] == ['gamma'] and sorted(first['adopted'] + list(first['kept'])) == uuids
    assert all('may have a newer copy' in why for why in first['kept'].values())
    world.cluster.hosts['gamma'].online = True
    second = json.loads(call(world, 'adoptVolumes'))
    assert sorted(first['adopted'] + second['adopted']) == uuids and not second['kept']
    assert json.loads(call(world, 'adoptVolumes')) == {'sr': x.db['SR'][sr]['uuid'], 'adopted': [], 'kept': {}, 'unreachable': []}
    x.sr_scan(sr)
    assert sorted(x.db['VDI'][v]['uuid'] for v in x.vdis(sr)) == uuids
    assert world.cluster.volumes[written]['blocks'] == {7: 'data'}
    vdi = x.vdi_by(written)
    assert x.db['VDI'][vdi]['name_label'] == written
    x.plug(vdi, world.hosts[2])
    x.unplug(vdi, world.hosts[2])
    world.consistent(sr)
    x.sr_forget(sr)
    with failed('there is no SR in vg0/thin yet'):
        call(world, 'adoptVolumes')


@needs_command
@pytest.mark.parametrize('database', ['lost', 'kept'])
def test_an_sr_that_was_found_on_the_disks_is_brought_back(world, sr, database):
    """Under its own uuid; xapi's records of its disks keep their names if they were kept, or restored from a backup."""
    x = world.xapi
    x.environment['LOCKSTEP_COMMAND'] = COMMAND
    uuid = x.db['SR'][sr]['uuid']
    disks = {x.db['VDI'][x.vdi_create(sr, GIB, 'disk %d' % n)]['uuid'] for n in range(3)}
    alien = dict(list(world.cluster.volumes.values())[0], uuid='0b1d3fa8-0000-4000-8000-000000000001', group='0b1d3fa8-0000-4000-8000-00000000000a')
    world.cluster.lose_the_cluster()
    world.cluster.orphans.append(alien)
    if database == 'lost':
        x.sr_forget(sr)
    assert uuid in x.sr_probe(CONFIG)
    world.xapi.db['host'][world.hosts[2]]['enabled'] = False
    with failed('host gamma is disabled'):
        call(world, 'adoptVolumes', dict(GROUP, srUuid=uuid))
    world.xapi.db['host'][world.hosts[2]]['enabled'] = True
    with failed('redundancy=x is not a number'):
        call(world, 'adoptVolumes', dict(GROUP, srUuid=uuid, redundancy='x'))
    found = json.loads(call(world, 'adoptVolumes', dict(GROUP, srUuid=uuid, redundancy='3'), host=1))
    assert found['sr'] == uuid and set(found['adopted']) == disks and found['kept'] == {} and found['unreachable'] == []
    assert all(h.joined for h in world.cluster.hosts.values()) and world.cluster.groups[uuid]['redundancy'] == 3
    assert [o['uuid'] for o in world.cluster.orphans] == [alien['uuid']]    # of another SR
    again = json.loads(call(world, 'adoptVolumes', dict(GROUP, srUuid=uuid)))
    assert again['adopted'] == [] and again['kept'] == {}
    with failed('holds the SR %s already' % uuid):
        call(world, 'adoptVolumes', dict(GROUP, srUuid=alien['group']))
    if database == 'lost':
        assert x.sr_probe(CONFIG) == [uuid]
        sr = x.sr_record('storage', CONFIG, uuid_=uuid)
    for pbd in x.pbds(sr):
        x.pbd_plug(pbd)
    world.consistent(sr)
    assert {r['uuid'] for r in x.db['VDI'].values()} == disks
    assert {r['name_label'] for r in x.db['VDI'].values()} == (disks if database == 'lost' else {'disk 0', 'disk 1', 'disk 2'})
    for vdi in x.vdis(sr):
        x.vdi_destroy(vdi)
    x.sr_destroy(sr)


@needs_command
def test_what_the_command_line_says_is_the_cause(world, sr):
    world.xapi.environment['LOCKSTEP_COMMAND'] = '/bin/false'
    with failed('the command line said nothing'):
        call(world, 'adoptVolumes')
    world.xapi.environment['LOCKSTEP_COMMAND'] = COMMAND
    world.cluster.without.add('GET /orphans')
    with failed('XENAPI_PLUGIN_FAILURE', 'no GET /v1/orphans'):
        call(world, 'adoptVolumes')


def test_interfaces(world, sr):
    x = world.xapi
    x.db['PIF'][ref()] = {'uuid': 'pif-1', 'IP': '10.9.0.1'}
    x.db['PIF'][ref()] = {'uuid': 'pif-2', 'IP': ''}
    args = dict(GROUP, hostname='beta')
    assert json.loads(call(world, 'listNodeInterfaces', args)) == {'default': {'address': '10.0.0.2', 'active': True}}
    assert call(world, 'createNodeInterface', dict(args, name='storage', pifUuid='pif-1')) == 'True'
    assert call(world, 'createNodeInterface', dict(args, name='storage', pifUuid='pif-1')) == 'True'
    with failed('has no IP address'):
        call(world, 'createNodeInterface', dict(args, name='x', pifUuid='pif-2'))
    listed = json.loads(call(world, 'listNodeInterfaces', args))
    assert listed['storage'] == {'address': '10.9.0.1', 'active': False} and len(listed) == 2
    assert call(world, 'setNodePreferredInterface', dict(args, name='storage')) == 'True'
    assert call(world, 'getNodePreferredInterface', args) == 'storage'
    assert world.cluster.hosts['beta'].addresses == ['10.9.0.1', '10.0.0.2']
    x.db['PIF'][ref()] = {'uuid': 'pif-3', 'IP': '10.9.0.7'}
    for _ in range(2):
        assert call(world, 'modifyNodeInterface', dict(args, name='storage', pifUuid='pif-3')) == 'True'
        assert world.cluster.hosts['beta'].addresses == ['10.9.0.7', '10.0.0.2']
        assert json.loads(call(world, 'listNodeInterfaces', args))['storage'] == {'address': '10.9.0.7', 'active': True}
    assert call(world, 'destroyNodeInterface', dict(args, name='10.0.0.2')) == 'True'
    with failed('is the only interface of host beta'):
        call(world, 'destroyNodeInterface', dict(args, name='storage'))
    with failed('has no interface named nope'):
        call(world, 'modifyNodeInterface', dict(args, name='nope', pifUuid='pif-1'))
    with failed('no host named omega'):
        call(world, 'listNodeInterfaces', dict(GROUP, hostname='omega'))
