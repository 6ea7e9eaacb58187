# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line on real hosts: any host answers any command; bad input gets one line, the right status, and changes
nothing."""
from lablib import Cluster, together, wait


def refused(host, arguments, status, text=''):
    result = host.lockstep(arguments, check=False)
    assert result.status == status, f'lockstep {arguments}: {result}'
    assert result.err.strip().count('\n') == 0 and result.err.strip(), result
    assert text in result.err, result


def test_cluster_life_of_a_volume(cluster):
    a, b, c = cluster.hosts
    status = cluster.status()
    assert status['cluster']['quorum'] and {h['name'] for h in status['hosts']} == {'alpha', 'beta', 'gamma'}
    assert all(h['status'] == 'online' for h in status['hosts'])
    c.lockstep('volume create v1 128MiB --redundancy 3', timeout=90)
    for h in cluster.hosts:
        assert h.out('blockdev --getsize64 /dev/lockstep/v1') == str(128 << 20)
        v = cluster.volume('v1', h)
        assert v['size_bytes'] == 128 << 20 and {r['host'] for r in v['replicas']} == {'alpha', 'beta', 'gamma'}
        assert all(r['state'] == 'insync' for r in v['replicas']), 'a new volume is in sync at once'
    assert b.out('head -c 1048576 /dev/lockstep/v1 | tr -d "\\0" | wc -c') == '0', 'a new volume reads as zeros'
    b.run('dd if=/etc/services of=/dev/lockstep/v1 bs=4k oflag=direct conv=sync,fsync')
    size = b.out('stat -c %s /etc/services')
    assert c.out(f'head -c {size} /dev/lockstep/v1 | sha256sum') == c.out('sha256sum </etc/services')
    b.lockstep('wait-sync v1')
    for h in cluster.hosts:
        assert 'v1' in h.lockstep('status').out and 'v1' in h.lockstep('volume list').out
    b.lockstep('volume delete v1', timeout=90)
    for h in cluster.hosts:
        wait(lambda: h.run('ls /dev/lockstep/v1', check=False).status != 0, 20, f'the device to leave {h}')
        assert 'lockstep.' not in h.out('lvs --noheadings -o lv_name'), 'no LV is left behind'
    assert cluster.status()['volumes'] == []


def test_cluster_refuses_bad_input(cluster):
    a, b, c = cluster.hosts

    def state():
        return [(v['name'], v['size_bytes']) for v in cluster.status()['volumes']], together(
            lambda h: h.out('lvs --noheadings -o lv_name,lv_size; ls /dev/lockstep 2>/dev/null; true'), cluster.hosts)
    a.lockstep('volume create v1 64MiB', timeout=90)
    before = state()
    refused(a, 'volume create v2 0', 2)
    refused(a, 'volume create v2 10X', 2)
    refused(a, 'volume create v2 1000', 2, '4096')
    refused(a, 'volume create', 2)
    refused(a, 'frobnicate', 2)
    refused(b, 'volume create ../x 1GiB', 2)
    refused(b, 'volume create v1 64MiB', 5, 'v1')
    refused(b, 'volume create v2 100TiB', 2, '64 TiB')
    refused(b, 'volume create v2 1TiB', 5, 'v2')
    refused(c, 'volume create v2 64MiB --redundancy 4', 5)
    refused(c, 'volume create v2 64MiB --redundancy 0', 2)
    refused(c, 'volume create v2 64MiB --pool nosuch', 3, 'nosuch')
    refused(c, 'volume create v2 64MiB --on alpha,nosuch', 3, 'nosuch')
    refused(a, 'volume delete nosuch', 3, 'nosuch')
    refused(a, 'status nosuch', 3, 'nosuch')
    refused(a, 'wait-sync nosuch', 3, 'nosuch')
    refused(a, 'cluster init', 5)
    refused(a, f'cluster join {cluster.token()} {b.address}', 5)
    refused(a, f'cluster join {b.address}', 2)
    refused(a, 'pool create p2 --vg nosuch', 3, 'nosuch')
    holder = b.start('exec 3<>/dev/lockstep/v1; echo open; exec sleep 1000')
    wait(lambda: holder.out, 30, 'the volume to be open on beta')
    refused(a, 'volume delete v1', 5, 'v1')
    second = c.run('exec 3<>/dev/lockstep/v1', check=False, timeout=60)
    assert second.status != 0, 'only one host at a time may open it for writing'
    holder.stop()
    assert state() == before


def test_cluster_before_there_is_one(lab):
    """No daemon, no cluster, no module, not root: said in one line each."""
    a, = lab.boot(1)
    refused(a, 'status', 10, 'lockstepd')
    assert a.run('setpriv --reuid 65534 --clear-groups lockstep status', check=False).status in (5, 10)
    a.install()
    a.configure()
    refused(a, 'volume create v1 1GiB', 5, 'cluster init')
    a.run('/lab/service stop && rmmod lockstep && rm /etc/modules-load.d/lockstep.conf && /lab/service start')
    wait(a.daemon_answers, 30, 'lockstepd to answer without a module')
    assert a.lockstep('cluster init', check=False).status in (5, 10)
    a.run('modprobe lockstep')
    wait(lambda: a.lockstep('cluster init', check=False).status == 0, 30, 'cluster init once the module is there')
    wait(lambda: a.lockstep('pool create default --vg lockstep_group --thin thin_device', check=False, timeout=90).status == 0, 60, 'the pool')
    refused(a, 'volume create v1 64MiB', 5)		# one host cannot hold two replicas
    a.lockstep('volume create v1 64MiB --redundancy 1', timeout=90)
