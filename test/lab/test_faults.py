# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks that are slow or deaf in one direction, peers that freeze, disks that fail, memory that runs out: what was synced
stays, I/O goes on where it can, replicas end up equal. (Hosts and networks that are plainly lost: test_failover.py.)

Networks are made bad by the hosts themselves (tc netem, on what they send), for the machine that runs the lab may lack netem.
"""
import time

import pytest

from lablib import Cluster, SyncLog, assert_same, wait
from test_failover import STALL_SECONDS, healthy


def finish(cluster, log, host=None):
    """The load has seen no error; the volume gets well, holds what was synced, and its replicas are equal."""
    healthy(host or log.host, 'v1')
    log.wait_for_more(20)
    log.stop()
    good, line = log.check()
    assert good, line
    assert_same(cluster, 'v1')


def netem(host, what):
    """What the host sends on the storage network is delayed or lost; None: as ever."""
    host.run('modprobe sch_netem')
    host.run(f'tc qdisc replace dev eth1 root netem {what}' if what else 'tc qdisc del dev eth1 root')


def version(cluster, host=None):
    return cluster.volume('v1', host)['record']['version']


def all_online(cluster, host=None):
    return all(h['status'] == 'online' for h in cluster.status(host)['hosts'])


@pytest.mark.slow
def test_faults_slow_network(cluster):
    """200 ms more for whatever beta sends: slow writes, and nobody is taken for lost."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    before = version(cluster, c)
    netem(b, 'delay 200ms')
    begun = time.monotonic()
    log.wait_for_more(40)
    assert time.monotonic() - begun > 1, 'beta is not slow'
    end = begun + 12			# longer than it takes to call a host lost
    wait(lambda: not all_online(cluster, c) or time.monotonic() > end, 20, 'some seconds of a slow network')
    assert all_online(cluster, c) and version(cluster, c) == before
    netem(b, None)
    log.wait_for_more(50)
    assert version(cluster, c) == before
    finish(cluster, log)


def test_faults_deaf_in_one_direction(cluster):
    """beta hears everything and is heard by nobody; then its opposite, of which nobody is heard by beta. The writer goes on each
    time without it, and it catches up."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '128MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    netem(b, 'loss 100%')
    log.wait_for_more(100, STALL_SECONDS)
    wait(lambda: cluster.volume('v1', a)['health'] == 'degraded', 30, 'the status to say degraded')
    netem(b, None)
    healthy(a, 'v1')
    for h in (a, c):
        # only what goes to beta
        h.run(f'modprobe sch_netem; modprobe sch_prio; modprobe cls_u32; tc qdisc add dev eth1 root handle 1: prio && '
              f'tc qdisc add dev eth1 parent 1:3 netem loss 100% && '
              f'tc filter add dev eth1 parent 1: protocol ip u32 match ip dst {b.address}/32 flowid 1:3')
    log.wait_for_more(100, STALL_SECONDS)
    for h in (a, c):
        netem(h, None)
    finish(cluster, log)


@pytest.mark.slow
def test_faults_lossy_network(cluster):
    """Every tenth packet of all hosts is lost: slow, at worst a replica is left out for a while; nothing is damaged."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    for h in cluster.hosts:
        netem(h, 'loss 10%')
    log.wait_for_more(100)
    for h in cluster.hosts:
        netem(h, None)
    finish(cluster, log)


@pytest.mark.slow
def test_faults_frozen_peer(cluster):
    """A secondary's host stops in the middle of everything and goes on later; then the primary's, while another host writes."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '128MiB', '--on alpha,beta')
    log = SyncLog(c, device)
    log.wait_for_more(100)
    for _ in range(2):
        primary = cluster[cluster.volume('v1', c)['primary']]
        frozen = {a: b, b: a}[primary]
        frozen.pause()
        log.wait_for_more(50, STALL_SECONDS)
        frozen.resume()
        healthy(c, 'v1')
        term = cluster.volume('v1', c)['record']['term']
        primary.pause()
        log.wait_for_more(50, STALL_SECONDS)
        assert cluster.volume('v1', c)['record']['term'] > term
        primary.resume()
        healthy(c, 'v1')
    finish(cluster, log)


def connections(host):
    """Peers' addresses of the established connections between hosts."""
    return {line.split()[-1].rsplit(':', 1)[0] for line in host.out("ss -Htn state established '( sport = 7788 or dport = 7788 )'").splitlines()}


@pytest.mark.slow
def test_faults_other_network_takes_over(cluster):
    """The storage NIC of beta goes down: lanes move to the management network within seconds and come back. No host is taken for lost and
    no other primary is named; beta's replica may be left out while its connection is replaced, and is in sync again by itself."""
    a, b, c = cluster.hosts
    for h in cluster.hosts:
        a.lockstep(f'host net add {h.name} {h.networks_address("mgmt")}')
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    term = cluster.volume('v1', c)['record']['term']
    said = {h: len(h.vm.daemon_log()) for h in cluster.hosts}
    mgmt, storage = ({h.networks_address(n) for h in (a, c)} for n in ('mgmt', 'storage'))
    wait(lambda: connections(b) == storage, 30, 'beta to talk on the storage network only')
    for silent in (False, True):
        begun = time.monotonic()
        b.link('storage', up=False, silent=silent)
        log.wait_for_more(20, STALL_SECONDS)
        print(f'storage network lost (silent: {silent}): 20 writes took {time.monotonic() - begun:.1f} s')
        wait(lambda: connections(b) == mgmt, 20, 'beta to talk on the other network only')
        healthy(a, 'v1')
        log.wait_for_more(50)
        b.link('storage', up=True, silent=silent)
        wait(lambda: connections(b) == storage, 60, 'beta to come back to the storage network')
        healthy(a, 'v1')
        log.wait_for_more(50)
    assert cluster.volume('v1', c)['record']['term'] == term
    for h in cluster.hosts:
        assert 'is offline' not in h.vm.daemon_log()[said[h]:], 'a host was taken for lost'
    finish(cluster, log)
    for h in cluster.hosts:
        a.lockstep(f'host net remove {h.name} {h.networks_address("mgmt")}')


def break_disk(host, path):
    """From now on every request to this logical volume fails. Returns what mend_disk() needs."""
    host.allow('Buffer I/O error on dev dm-')		# udev looks at it, too
    table = host.out(f'dmsetup table {path}')
    replace_table(host, path, f'0 {host.out(f"blockdev --getsz {path}")} error')
    return table


def mend_disk(host, path, table):
    replace_table(host, path, table)


def replace_table(host, path, table):
    host.run(f'n=$(dmsetup info -c --noheadings -o name {path}); dmsetup suspend --noflush --nolockfs $n && '
             f'dmsetup load $n --table "{table}" && dmsetup resume $n')


def replica_path(cluster, name, host):
    return next(r['lv_path'] for r in cluster.volume(name)['replicas'] if r['host'] == host.name)


def members(cluster, host=None):
    return {r['host']: r['state'] for r in cluster.volume('v1', host)['replicas'] if r['wanted']}


def test_faults_disk_errors(cluster):
    """The disk under a secondary fails, then the one under the primary that the writer's own host has: the writer sees no error,
    and each time the replica is made anew on the host that has none."""
    a, b, c = cluster.hosts
    a.lockstep('option set disk-grace-minutes 0.1')
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    wait(lambda: cluster.volume('v1')['primary'] == 'alpha', 20, 'alpha to be the primary')
    break_disk(b, replica_path(cluster, 'v1', b))
    log.wait_for_more(50, STALL_SECONDS)
    wait(lambda: members(cluster) == {'alpha': 'insync', 'gamma': 'insync'}, 120, 'a new replica on gamma')
    wait(lambda: {r['host'] for r in cluster.volume('v1')['replicas']} == {'alpha', 'gamma'}, 60, 'the broken replica to go')
    log.wait_for_more(50)
    break_disk(a, replica_path(cluster, 'v1', a))
    log.wait_for_more(50, STALL_SECONDS)
    assert cluster.volume('v1')['primary'] == 'gamma'
    wait(lambda: members(cluster) == {'beta': 'insync', 'gamma': 'insync'}, 120, 'a new replica on beta')
    wait(lambda: {r['host'] for r in cluster.volume('v1')['replicas']} == {'beta', 'gamma'}, 60, 'the broken replica to go')
    finish(cluster, log)
    a.lockstep('option set disk-grace-minutes default')
    for h in (a, b):
        wait(lambda: 'lockstep.' not in h.out("dmsetup table --target error | tr - ."), 30, f'the broken logical volume of {h} to be gone')
    cluster.lab.nothing_more_allowed()


@pytest.mark.slow
def test_faults_flaky_disks(lab):
    """A disk fails for 4 of each 7 seconds, under the secondary, then under the writer's own primary: the writer sees no error, and
    all is in sync when the disk is well."""
    cluster = Cluster(lab, lab.boot(3))
    cluster.form(install='--disks /dev/vdb')
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(a, device)
    log.wait_for_more(50)
    for host in (b, a):
        host.allow('Buffer I/O error on dev dm-')
        host.run('modprobe dm-flakey')
        path = replica_path(cluster, 'v1', host)
        table = host.out(f'dmsetup table {path}')
        assert ' linear ' in table
        replace_table(host, path, table.replace(' linear ', ' flakey ') + ' 3 4')
        wait(lambda: members(cluster, c)[host.name] == 'failed', 60, f'the disk of {host} to fail')
        log.wait_for_more(100, STALL_SECONDS)
        wait(lambda: members(cluster, c)[host.name] != 'failed', 120, f'the disk of {host} to be tried again')
        mend_disk(host, path, table)
        healthy(c, 'v1', 120)
        log.wait_for_more(50, STALL_SECONDS)
    finish(cluster, log)
    lab.nothing_more_allowed()


@pytest.mark.slow
def test_faults_disk_that_answers_nothing(cluster):
    """A disk neither answers nor fails, first the secondary's, then the primary's: others go on without it after a while, without an error
    for the writer; when it answers again its replica is made good."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    for h in (a, b):
        h.run('echo 4000 >/sys/module/lockstep/parameters/stuck_ms')
    log = SyncLog(c, device)
    log.wait_for_more(50)
    first = cluster.volume('v1')['primary']
    for host in sorted((a, b), key=lambda h: h.name == first):
        was = cluster.volume('v1', c)['primary']
        path = replica_path(cluster, 'v1', host)
        host.run(f'dmsetup suspend --noflush --nolockfs {path}')
        wait(lambda: members(cluster, c)[host.name] == 'failed', 60, f'the replica of {host} to be left out')
        log.wait_for_more(100, STALL_SECONDS)
        assert (cluster.volume('v1', c)['primary'] == was) == (host.name != was)
        assert 'answers nothing' in host.lockstep('status').out
        host.run(f'dmsetup resume {path}')
        healthy(c, 'v1', 120)
        log.wait_for_more(50, STALL_SECONDS)
    finish(cluster, log)
    assert 'answers nothing' not in a.lockstep('status').out + b.lockstep('status').out


@pytest.mark.slow
def test_faults_disk_and_daemon_that_answer_nothing(cluster):
    """As with one controller for all disks of a host: the replica's disk neither answers nor fails, and neither does the daemon. The kernel
    answers pings. Others go on without it (L5), without an error for the writer; the same with the primary's."""
    a, b, c = cluster.hosts
    for h in cluster.hosts:
        h.run('echo 6000 >/sys/module/lockstep/parameters/answer_ms')
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(c, device)
    log.wait_for_more(50)
    first = cluster.volume('v1', c)['primary']
    for host in sorted((a, b), key=lambda h: h.name == first):
        was = cluster.volume('v1', c)['primary']
        path = replica_path(cluster, 'v1', host)
        pid = host.out('pidof lockstepd')
        host.run(f'kill -STOP {pid} && dmsetup suspend --noflush --nolockfs {path}')
        wait(lambda: members(cluster, c)[host.name] != 'insync', 60, f'the replica of {host} to be left out')
        log.wait_for_more(100, STALL_SECONDS)
        assert (cluster.volume('v1', c)['primary'] == was) == (host.name != was)
        host.run(f'dmsetup resume {path} && kill -CONT {pid}')
        healthy(c, 'v1', 120)
        log.wait_for_more(50, STALL_SECONDS)
    finish(cluster, log)


@pytest.mark.slow
def test_faults_last_disk(cluster):
    """The disk of the last good copy fails while the other replica's host is off: what is read and written waits. The disk comes back,
    and all goes on: without an error, or with one that the writer is told once if a cache of the disk's may have been lost."""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(c, device)
    log.wait_for_more(50)
    b.kill()
    log.wait_for_more(50, STALL_SECONDS)
    path = replica_path(cluster, 'v1', a)
    table = break_disk(a, path)
    wait(lambda: 'no other host that is online has a good copy' in a.lockstep('status').out, 60, 'the status to say so')
    assert members(cluster, a)['alpha'] in ('insync', 'suspect')
    acked = log.acked
    mend_disk(a, path, table)
    wait(lambda: not log.process.running or log.acked > acked + 20, 120, 'the writer to go on, or to be told')
    if not log.process.running:
        assert 'Input/output error' in str(log.process.wait(1))
    good, line = log.check()
    assert good, line
    if log.process.running:
        log.stop()
    again = SyncLog(c, device)
    again.wait_for_more(50)
    b.power_on()
    finish(cluster, again)
    cluster.lab.nothing_more_allowed()


@pytest.mark.slow
def test_faults_out_of_memory(cluster):
    """Programs on the primary's and the secondary's host take all memory there is until the kernel kills them. I/O goes on; the
    daemons are not the ones killed. (A host that gets no page for some seconds may be taken for lost meanwhile.)"""
    a, b, c = cluster.hosts
    device = cluster.create_volume('v1', '64MiB', '--on alpha,beta')
    log = SyncLog(c, device)
    log.wait_for_more(50)
    daemons = [h.out('pidof lockstepd') for h in (a, b)]
    for h in (a, b):
        h.allow(r'Out of memory: Killed process \d+ \(memhog\)')
    hogs = [h.start('while :; do /lab/memhog fill 100000 1; done') for h in (a, b)]
    log.wait_for_more(100)
    for h in (a, b):
        wait(lambda: h.vm.console().count('Out of memory: Killed process') >= 2, 60, f'memory to run out twice on {h}')
    log.wait_for_more(50)
    for hog in hogs:
        hog.stop()
    assert daemons == [h.out('pidof lockstepd') for h in (a, b)]
    finish(cluster, log)
    cluster.lab.nothing_more_allowed()


@pytest.mark.slow
def test_faults_full_pool(lab):
    """The thin pool under one replica has no room left: the writer goes on; when it has been extended the replica is in sync again."""
    a, b, c = lab.boot(3)
    cluster = Cluster(lab)
    for h in cluster.hosts:
        h.install('--disks /dev/vdb')
        h.run('lvcreate -q -L 96m --poolmetadatasize 4m --thinpool thin_device lockstep_group')
        h.configure()
    a.lockstep('cluster init')
    for h in (b, c):
        h.lockstep(f'cluster join {cluster.token()} {a.address}')
    for h in cluster.hosts:
        a.lockstep(f'pool create default --vg lockstep_group --thin thin_device --host {h.name}', timeout=60)
    device = cluster.create_volume('v1', '48MiB', '--on alpha,beta')
    log = SyncLog(c, device, blocks=8192)
    log.wait_for_more(100)
    # Somebody else's volume takes what is left.
    b.run('lvcreate -q -V 128m --thinpool thin_device -n filler lockstep_group && '
          'dd if=/dev/urandom of=/dev/lockstep_group/filler bs=1M oflag=direct count=128 & sleep 20; true', timeout=60)
    log.wait_for_more(2000, 240)
    assert members(cluster) != {'alpha': 'insync', 'beta': 'insync'}, 'the pool was not full'
    b.run('lvextend -q -L +256m lockstep_group/thin_device', timeout=60)
    healthy(c, 'v1', 180)
    finish(cluster, log)


@pytest.mark.slow
def test_faults_all_pools_full(lab):
    """The thin pools under all replicas have no room left: the writer waits, without an error, and goes on when one has been extended."""
    a, b, c = lab.boot(3)
    cluster = Cluster(lab)
    for h in cluster.hosts:
        h.install('--disks /dev/vdb')
        h.run('lvcreate -q -L 96m --poolmetadatasize 4m --thinpool thin_device lockstep_group')
        h.configure()
    a.lockstep('cluster init')
    for h in (b, c):
        h.lockstep(f'cluster join {cluster.token()} {a.address}')
    for h in (a, b):
        a.lockstep(f'pool create default --vg lockstep_group --thin thin_device --host {h.name}', timeout=60)
    device = cluster.create_volume('v1', '48MiB', '--on alpha,beta')
    log = SyncLog(c, device, blocks=8192)
    log.wait_for_more(100)
    fillers = []
    for h in (a, b):
        h.run('lvcreate -q -V 128m --thinpool thin_device -n filler lockstep_group')
        fillers.append(h.start('dd if=/dev/urandom of=/dev/lockstep_group/filler bs=1M oflag=direct count=128'))
    # The thin pools queue for a minute before they refuse anything.
    wait(lambda: any('and no other host has a good copy' in h.vm.daemon_log() for h in (a, b)), 200, 'a line that says why nothing goes on')
    wait(lambda: cluster.volume('v1')['health'] == 'frozen', 30, 'the volume to wait for room')
    assert list(members(cluster).values()).count('insync') == 1, members(cluster)
    before = log.acked
    assert log.process.running
    for h in (a, b):
        h.run('lvextend -q -L +256m lockstep_group/thin_device', timeout=60)
    log.wait_for_more(100, 120)
    assert log.acked > before
    healthy(c, 'v1', 180)
    finish(cluster, log)
