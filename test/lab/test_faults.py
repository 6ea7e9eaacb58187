# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks that are deaf in one direction or lose packets, peers that freeze: what was synced stays, I/O goes on, replicas end
up equal. (Hosts and networks that are plainly lost: test_failover.py.)

Networks are made bad by the hosts themselves (tc netem, on what they send), for the machine that runs the lab may lack netem.
"""
from lablib import SyncLog, assert_same, wait
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
