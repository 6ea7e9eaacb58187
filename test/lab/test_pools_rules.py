# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for where replicas may be, on hosts that are written from."""
import pytest

from lablib import assert_same, wait
from test_failover import healthy


def where(cluster, name, host=None):
    return {r['host'] for r in cluster.volume(name, host)['replicas']}


def closed(cluster, host):
    wait(lambda: not any(v['openers'] for v in cluster.status(host)['volumes']), 30, 'the volumes to be closed')


@pytest.mark.slow
def test_pools_rules(cluster):
    """Replicas are apart, together, elsewhere or pinned, as volumes say: when they are made, moved and when a host is emptied in use."""
    a, b, c = cluster.hosts
    cluster.delete_volumes()
    for host, rack in ((a, 'r1'), (b, 'r1'), (c, 'r2')):
        a.lockstep(f'host label {host.name} rack={rack}')
    for name, rules, at in (('apart', '--different rack --on beta,gamma', 'beta gamma'), ('together', '--same rack', 'alpha beta'),
                            ('elsewhere', '--avoid alpha', 'beta gamma')):
        cluster.create_volume(name, '16MiB', rules)
        assert where(cluster, name) == set(at.split()), name
    refused = a.lockstep('volume create none 16MiB --redundancy 3 --different rack', check=False)
    assert refused.status == 5 and 'its rack is r1, as that of' in refused.err, refused
    refused = a.lockstep('volume replica move together beta gamma', check=False)
    assert refused.status == 5 and 'gamma' in refused.err and 'rack' in refused.err, refused
    a.lockstep('volume replica pin elsewhere beta')
    refused = a.lockstep('host evacuate beta', check=False)
    assert refused.status == 5 and 'replica of volume elsewhere is pinned there' in refused.err, refused
    a.lockstep('volume replica unpin elsewhere beta')

    # Beta is emptied while it is written to: what has to be in another rack goes to alpha, what may go nowhere stays and says why.
    writers = [c.start(f'fio --name={n} --filename=/dev/lockstep/{n} --rw=randwrite --bs=4k --direct=1 --rate_iops=20 --time_based --runtime=600')
               for n in ('apart', 'elsewhere')]
    wait(lambda: all(cluster.volume(n)['openers'] == ['gamma'] for n in ('apart', 'elsewhere')), 60, 'the writers')
    a.lockstep('host evacuate beta --no-wait')
    wait(lambda: where(cluster, 'apart') == {'alpha', 'gamma'}, 240, 'the replica of apart to have moved')
    assert where(cluster, 'together') == {'alpha', 'beta'} and 'beta' in where(cluster, 'elsewhere')
    said = a.lockstep('why elsewhere').out
    assert 'alpha' in said and 'avoided' in said, said
    # With the rule gone it goes on by itself.
    a.lockstep('volume rules elsewhere --avoid none')
    wait(lambda: where(cluster, 'elsewhere') == {'alpha', 'gamma'}, 240, 'the replica of elsewhere to have moved')
    a.lockstep('host restore beta')
    for writer in writers:
        writer.stop()
    closed(cluster, a)
    for name in ('apart', 'elsewhere'):
        healthy(a, name)
        assert_same(cluster, name)
    cluster.delete_volumes()
    for host in cluster.hosts:
        a.lockstep(f'host label {host.name} rack=')
