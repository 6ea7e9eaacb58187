# SPDX-License-Identifier: GPL-2.0-or-later
"""Writers that leave evidence, and the comparison of replicas."""
import itertools

from .cluster import together, wait
from .paths import LabError

seeds = itertools.count(1)


def last_number(process, word):
    """The number in the last complete line `WORD number` of a command's output so far, or 0."""
    lines = bytes(process.out).decode().split('\n')[:-1]
    return next((int(line.split()[1]) for line in reversed(lines) if line.startswith(word + ' ')), 0)


class SyncLog:
    """../fsynclog.c in a host: writes with fsync, and tells this process what is durable while it runs."""
    def __init__(self, host, path, blocks=2048, pause_ms=0):
        self.host, self.path, self.blocks, self.seed = host, path, blocks, next(seeds)
        self.process = host.start(f'exec /lab/fsynclog write {path} {blocks} {self.seed} {pause_ms}')

    @property
    def acked(self):
        """Number of the last write that fsync() has reported durable."""
        return last_number(self.process, 'fsync')

    def wait_for_more(self, writes=50, timeout=60):
        """Waits until so many more writes have been synced; the writer must not have ended."""
        begun = self.acked

        def more():
            return not self.process.running or self.acked >= begun + writes
        wait(more, timeout, f'{writes} more synced writes to {self.path} on {self.host}')
        if not self.process.running:
            raise LabError(f'{self.host}: the writer to {self.path} ended: {self.process.wait(1)}')

    def stop(self):
        """Ends the writer, which must still be running well."""
        if not self.process.running:
            raise LabError(f'{self.host}: the writer to {self.path} ended: {self.process.wait(1)}')
        self.process.stop()
        return self.acked

    def check(self, host=None, path=None):
        """(good, one line): is every write that was reported durable there, as seen by this host?"""
        done = (host or self.host).run(f'/lab/fsynclog check {path or self.path} {self.blocks} {self.seed} {self.acked}',
                                       check=False, timeout=120)
        return done.status == 0, (done.out or done.err).strip().splitlines()[-1]


def digests(cluster, name, size_bytes=None):
    """{host name: (SHA-256, chunks with data)} of the data area of each replica of a volume, or of its beginning. The volume must be idle."""
    volume = cluster.volume(name)
    replicas = volume['replicas']
    unknown = [r['host'] for r in replicas if not r['lv_path']]
    if unknown:
        raise LabError(f'{name}: the status does not tell the replica\'s path on {", ".join(unknown)}')

    def digest(r):
        value, chunks = cluster[r['host']].out(f'/lab/digest {r["lv_path"]} {size_bytes or volume["size_bytes"]}', timeout=240).split()
        return r['host'], (value, int(chunks))
    return dict(together(digest, replicas))


def differing_chunks(cluster, name):
    """Offsets of the chunks of 64 KiB that are not the same on all replicas."""
    volume = cluster.volume(name)
    lists = together(lambda r: set(cluster[r['host']].out(f'/lab/digest --chunks {r["lv_path"]} {volume["size_bytes"]}',
                                                        timeout=240).splitlines()), volume['replicas'])
    return sorted({int(line.split()[0]) for line in set.union(*lists) - set.intersection(*lists)})


def assert_same(cluster, name, size_bytes=None):
    """All replicas of an idle volume are in sync and equal bit for bit, and not empty. In a thick pool only the beginning that has been
    written is to be compared: what lies under the rest is left from others, and read as zeros."""
    states = {r['host']: r['state'] for r in cluster.volume(name)['replicas']}
    assert set(states.values()) == {'insync'}, states
    found = digests(cluster, name, size_bytes)
    assert len(set(found.values())) == 1, f'{name} differs: {found}; chunks {differing_chunks(cluster, name)[:20]}'
    assert all(chunks > 0 for _, chunks in found.values()), f'{name} is empty'
