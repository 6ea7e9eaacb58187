# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts, networks and daemons fail under load: what was synced stays, I/O goes on, replicas end up equal.

Load is a SyncLog straight on the device: it tells this process, before the fault, what fsync() has reported durable.
"""
from lablib import SyncLog, assert_same, wait

STALL_SECONDS = 30		# an idle TCG host fails over in about 8 s (4 s until it is offline, 3 s of promises)


def healthy(host, name, timeout=90):
    """Waits, asking this host, until all replicas are in sync."""
    host.lockstep(f'wait-sync {name} --timeout {timeout}', timeout=timeout + 15)


def test_primary_host_killed(cluster):
    """The host that writes is killed; another opens the volume, has everything, and the same again the other way round."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    for killed, survivor in ((a, b), (b, a)):
        log = SyncLog(killed, device)
        log.wait_for_more(300)
        killed.kill()
        survivor.run(f'exec 3<>{device}', timeout=60)
        good, line = log.check(survivor, device)
        assert good, line
        assert log.acked >= 300
        more = SyncLog(survivor, device)		# what the lost one must catch up with
        more.wait_for_more(100)
        killed.power_on()
        healthy(survivor, 'v1')
        more.wait_for_more(50)
        more.stop()
        good, line = more.check(killed)
        assert good, line
        assert_same(cluster, 'v1')


def test_secondary_host_killed(cluster):
    """A host with a replica is killed under load elsewhere: the writer waits a little and goes on; the replica is brought
    up to date while it writes."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(200)
    b.kill()
    log.wait_for_more(100, STALL_SECONDS)
    wait(lambda: cluster.volume('v1', a)['health'] == 'degraded', 20, 'the status to say degraded')
    b.power_on()
    healthy(a, 'v1')
    log.wait_for_more(50)
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(cluster, 'v1')


def test_client_goes_on_when_the_primary_dies(cluster):
    """The writer's host has no replica. The primary's host dies: the writer sees a pause, no error."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(c, device)
    log.wait_for_more(200)
    primary = cluster[cluster.volume('v1')['primary']]
    assert primary in (a, b)
    primary.kill()
    log.wait_for_more(100, STALL_SECONDS)
    assert cluster.volume('v1', c)['primary'] not in (None, primary.name)
    primary.power_on()
    healthy(c, 'v1')
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(cluster, 'v1')


def test_storage_network_lost_silently(cluster):
    """A switch port dies: no carrier loss, packets just vanish. The rest goes on; the lost host catches up afterwards."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(200)
    b.link('storage', up=False, silent=True)
    log.wait_for_more(100, STALL_SECONDS)
    b.link('storage', up=True, silent=True)
    healthy(a, 'v1')
    log.wait_for_more(50)
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(cluster, 'v1')


def test_cut_off_primary_is_replaced(cluster):
    """The writer's host loses the storage network. Another host takes over with everything that was synced; the cut-off one can
    write no more, also not when it is back."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(200)
    a.allow('Buffer I/O error on dev lockstep')		# what it wrote and did not sync is refused: the point of this scenario
    a.link('storage', up=False, silent=True)
    b.run(f'exec 3<>{device}', timeout=60)
    good, line = log.check(b, device)
    assert good, line
    more = SyncLog(b, device)
    more.wait_for_more(100)
    a.link('storage', up=True, silent=True)
    acked = log.acked
    wait(lambda: not log.process.running, 60, 'the writer that was taken over to get an error')
    assert log.process.wait(1).status != 0
    healthy(b, 'v1')
    more.stop()
    good, line = more.check()
    assert good, line
    assert_same(cluster, 'v1')
    assert log.acked == acked, 'nothing of the one taken over was completed afterwards'


def test_daemons_killed_under_load(cluster):
    """The kernel serves on while every lockstepd is dead; new ones take up the work."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(200)
    for h in cluster.hosts:
        h.daemon('stop')
    log.wait_for_more(200)
    for h in cluster.hosts:
        h.daemon('start')
    for h in cluster.hosts:
        wait(h.daemon_answers, 30, f'lockstepd of {h} to answer')
    wait(lambda: cluster.status(a)['cluster']['quorum'], 30, 'quorum')
    for h in cluster.hosts:
        h.daemon('kill')
        log.wait_for_more(50)
    wait(lambda: all(cluster.volume('v1', h)['health'] == 'ok' for h in cluster.hosts), 60, 'the volume to be well in the eyes of all')
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(cluster, 'v1')


def test_everything_loses_power(cluster):
    """All hosts are killed at once under load; after power on all of what was synced is there."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '256MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(300)
    for h in cluster.hosts:
        h.kill()
    for h in cluster.hosts:
        h.power_on(wait_booted=False)
    for h in cluster.hosts:
        h.vm.wait_booted()
    for h in cluster.hosts:
        wait(h.daemon_answers, 30, f'lockstepd of {h} to answer')
    wait(lambda: cluster.status(b)['cluster']['quorum'], 60, 'quorum')
    healthy(b, 'v1', 120)
    wait(lambda: b.run(f'test -b {device}', check=False).status == 0, 30, f'{device} on beta')
    b.run(f'exec 3<>{device}', timeout=60)
    good, line = log.check(b, device)
    assert good, line
    assert_same(cluster, 'v1')
