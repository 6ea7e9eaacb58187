# SPDX-License-Identifier: GPL-2.0-or-later
"""Teardown waits for nobody: what is frozen fails on demand, and what is in use can be deleted, with hosts dead or without quorum."""
import pytest

from lablib import wait

WRITE = 'dd if=/dev/zero of={} bs=4096 count=1 oflag=direct conv=notrunc'


def holding(host, device, how='w'):
    """Somebody who has the device open, until his input is closed."""
    p = host.start(f'/lab/blockio hold {device} {how}')
    wait(lambda: b'open' in bytes(p.out), 30, f'the device to be open on {host}')
    return p


def let_go(p):
    p.close_input()
    p.wait(30)


def kernel_volume(host, vid):
    """The kernel's line about the volume, '' if it has none."""
    return ''.join(line for line in host.out('/lab/kdrive get').splitlines() if line.startswith('volume ') and f' vid={vid} ' in line)


def without_replica(host, vid):
    return kernel_volume(host, vid) and ' replica ' not in kernel_volume(host, vid)


def gone(host, name, vid):
    """Nothing of the volume is left on the host: no device, no logical volume, nothing in the kernel."""
    return not host.run(f'test -e /dev/lockstep/{name}', check=False).status == 0 and not kernel_volume(host, vid) \
        and f'lockstep.{vid}' not in host.out('lvs --noheadings -o lv_name lockstep_group').split()


@pytest.mark.slow
def test_teardown_delete_in_use(cluster):
    """A volume that is open is deleted by force: with a reader and a writer at work, and when its writer's host is dead."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('used', '64MiB', '--on alpha,beta')
    vid = cluster.volume('used')['vid']
    writer, reader = holding(a, device), holding(b, device, 'r')
    refused = c.lockstep('volume delete used', check=False)
    assert refused.status == 5 and 'open on host alpha' in refused.err, refused
    deleting = c.start('lockstep volume delete used --force')
    wait(lambda: without_replica(a, vid) and without_replica(b, vid), 60, 'the replicas to be given up while the device is open')
    for host in (a, b):
        failed = host.run(f'dd if={device} of=/dev/null bs=4096 count=1 iflag=direct', check=False, timeout=30)
        assert failed.status and 'Input/output error' in failed.err, failed
    assert deleting.running, 'it is not deleted before nobody has it open'
    let_go(writer)
    let_go(reader)
    assert deleting.wait(60).status == 0
    for host in cluster.hosts:
        wait(lambda: gone(host, 'used', vid), 30, f'nothing of it to be left on {host}')

    device = cluster.create_volume('lost', '64MiB', '--on alpha,beta')
    vid = cluster.volume('lost')['vid']
    holding(c, device)
    c.kill()
    refused = a.lockstep('volume delete lost', check=False)
    assert refused.status == 5 and 'open on host gamma' in refused.err, refused
    wait(lambda: 'OFFLINE' in a.lockstep('status').out, 60, 'gamma to be missed')
    said = b.lockstep('volume delete lost --force', timeout=90).out
    assert 'gamma will remove its part when it is back' in said, said
    c.power_on()
    wait(lambda: gone(c, 'lost', vid), 120, 'gamma to remove its part')


def test_teardown_without_quorum(cluster):
    """Two of three hosts die at once: what is frozen on the third fails on demand, and its device can be closed."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('frozen', '64MiB', '--on alpha,beta')
    vid = cluster.volume('frozen')['vid']
    writer = holding(a, device)
    a.run(WRITE.format(device))
    b.kill()
    c.kill()
    writing = a.start(WRITE.format(device))
    wait(lambda: ' pending=0 ' not in kernel_volume(a, vid), 30, 'the write to wait for beta')
    said = a.lockstep('volume abort frozen', timeout=60).out
    assert 'what waited on alpha has failed' in said and 'cannot be reached' in said, said
    assert 'Input/output error' in writing.wait(30).err
    let_go(writer)
    b.power_on()
    c.power_on()
    wait(lambda: cluster.volume('frozen', a)['health'] == 'ok', 120, 'the volume to be well again')
    a.run(WRITE.format(device), timeout=60)


@pytest.mark.slow
def test_teardown_host_alone(cluster):
    """The peers are dead and the daemon is stopped: the host takes its volumes down, the one in use by force, and unloads the module."""
    a, b, c = cluster.hosts
    used = cluster.create_volume('used', '64MiB', '--on alpha,beta')
    cluster.create_volume('idle', '64MiB', '--on alpha,gamma')
    refused = a.lockstep('down', check=False)
    assert refused.status == 5 and 'systemctl stop lockstepd' in refused.err, refused
    writer = holding(a, used)
    a.run(WRITE.format(used))
    b.kill()
    c.kill()
    writing = a.start(WRITE.format(used))
    wait(lambda: ' pending=0 ' not in a.out('/lab/kdrive get | grep used'), 30, 'the write to wait for beta')
    a.daemon('stop')
    refused = a.lockstep('down', check=False)
    assert refused.status == 5 and 'volume used is open' in refused.err and 'volume idle is down' in refused.out, refused
    forcing = a.start('lockstep down --force')
    assert 'Input/output error' in writing.wait(30).err
    stuck = forcing.wait(30)
    assert stuck.status == 10 and 'volumes/used/openers' in stuck.err, stuck
    let_go(writer)
    assert 'modprobe -r lockstep' in a.lockstep('down --force').out
    a.run('modprobe -r lockstep')
    a.run('modprobe lockstep')
    a.daemon('start')
    b.power_on()
    c.power_on()
    for name in ('used', 'idle'):
        wait(lambda: cluster.volume(name, a)['health'] == 'ok', 120, f'volume {name} to be well again')
    a.run(WRITE.format(used), timeout=60)
