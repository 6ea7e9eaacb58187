# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster that lives: volumes, replicas and snapshots come and go at random, hosts and daemons are killed, frozen and cut off at random, one at
a time, while two volumes are written to all the time.

    make lab TEST=soak DURATION=30m SEED=7        default: 10 minutes, a seed of the clock's, which is printed

Looked at after each step: the writers go on. After each fault: all volumes get well, those that should be there are there and no others, with
what was written to them. At the end: everything that was synced is there, replicas are equal, no logical volume is left behind.
A command may be refused only while a host is away, and then does nothing or all; what it did is taken from the status once all are back.
"""
import os, random, time

import pytest

from lablib import LabError, SyncLog, assert_same, wait

MIB = 1 << 20
STALL_SECONDS = 60
FILLED = 4 * MIB		# of each volume, once
MOST = 6			# volumes at a time


def seconds(text):
    return float(text.rstrip('smh')) * {'s': 1, 'm': 60, 'h': 3600}.get(text[-1], 1)


class Soak:
    def __init__(self, cluster, seed):
        self.cluster, self.random = cluster, random.Random(seed)
        self.sums, self.snapshots = {}, {}		# volume -> md5 of its beginning; snapshot -> volume, md5
        self.away = self.killed = None			# the host that a fault is upon
        self.doubtful = set()				# volumes of which a command failed meanwhile
        self.number, self.done = 0, {}
        self.logs = []

    # ---- writers ----

    def load(self, host, name, on):
        self.cluster.create_volume(name, '64MiB', f'--on {on}')
        self.logs.append(SyncLog(host, f'/dev/lockstep/{name}', pause_ms=20))
        self.logs[-1].wait_for_more(20)

    def writers_go_on(self):
        for log in self.logs:
            if log.host is not self.away:
                log.wait_for_more(2, STALL_SECONDS)

    def writers_are_back(self):
        """Those on a host that was killed: what they had synced is there, and they begin anew."""
        for i, log in enumerate(self.logs):
            if log.host is self.killed:
                good, line = log.check()
                assert good, line
                self.logs[i] = SyncLog(log.host, log.path, pause_ms=20)
                self.logs[i].wait_for_more(5, STALL_SECONDS)

    # ---- commands ----

    def host(self):
        return self.random.choice([h for h in self.cluster.hosts if h is not self.away])

    def say(self, text):
        print(f'{time.strftime("%H:%M:%S")} {text}', flush=True)

    def command(self, text, *volumes, answers=(0,)):
        host = self.host()
        r = host.run(f'lockstep {text}', check=False, timeout=240)
        self.say(f'{host}: lockstep {text}: {r.status} {r.err.strip()}')
        if self.away and r.status in (3, 5, 10):
            self.doubtful.update(volumes)
            return False
        assert r.status in answers, f'{host}: lockstep {text}: {r}'
        return r.status == 0

    def volumes(self):
        return {v['name']: v for v in self.cluster.status(self.host())['volumes'] if v['phase'] != 'deleting'}

    def certain(self):
        return sorted(set(self.sums) - self.doubtful)

    def any_volume(self):
        return self.random.choice(self.certain()) if self.certain() else None

    def new_name(self, what):
        self.number += 1
        return f'{what}{self.number}'

    def sum_of(self, name, host=None):
        return (host or self.host()).out(f'dd if=/dev/lockstep/{name} bs=1M count={FILLED // MIB} iflag=direct 2>/dev/null | md5sum', timeout=120).split()[0]

    # ---- what happens ----

    def create(self):
        if len(self.sums) >= MOST:
            return self.delete()
        name = self.new_name('v')
        if self.command(f'volume create {name} {self.random.choice((8, 16, 33))}MiB --redundancy {self.random.choice((1, 2, 3))}', name):
            if self.away:
                self.doubtful.add(name)		# its only replica may be there; filled when all is well
            else:
                self.fill(name)

    def delete(self):
        name = self.any_volume()
        if not name:
            return
        for snapshot in [s for s, (v, _) in self.snapshots.items() if v == name]:
            self.snapshot_delete(snapshot)
        if self.command(f'volume delete {name}', name):
            del self.sums[name]

    def grow(self):
        name = self.any_volume()
        if name:
            size = self.volumes()[name]['size_bytes'] + 5 * MIB
            if self.command(f'resize {name} {size}', name):
                assert self.volumes()[name]['size_bytes'] == size

    def redundancy(self):
        name = self.any_volume()
        if name:
            self.command(f'volume redundancy {name} {self.random.choice((1, 2, 3))}', name, answers=(0, 5))

    def move(self):
        name = self.any_volume()
        if not name:
            return
        have = {r['host'] for r in self.volumes()[name]['replicas'] if r['wanted']}
        free = [h.name for h in self.cluster.hosts if h.name not in have]
        if free:
            self.command(f'volume replica move {name} {self.random.choice(sorted(have))} {self.random.choice(free)}', name, answers=(0, 5))

    def primary(self):
        name = self.random.choice(self.certain() + ['load1', 'load2'])
        self.command(f'primary {name} {self.host()}', answers=(0, 5))

    def snapshot(self):
        name = self.any_volume()
        if name and len(self.snapshots) < MOST:
            snapshot = self.new_name('s')
            if self.command(f'snapshot create {name} {snapshot}', name):
                self.snapshots[snapshot] = name, self.sums[name]

    def restore(self):
        if self.snapshots and len(self.sums) < MOST + 2:
            snapshot = self.random.choice(sorted(self.snapshots))
            volume, md5 = self.snapshots[snapshot]
            name = self.new_name('r')
            if volume not in self.doubtful and self.command(f'snapshot restore {volume} {snapshot} {name}', name):
                self.sums[name] = md5
                assert self.sum_of(name) == md5, f'{name} is not what {snapshot} was'

    def snapshot_delete(self, snapshot=None):
        if self.snapshots:
            snapshot = snapshot or self.random.choice(sorted(self.snapshots))
            if self.command(f'snapshot delete {self.snapshots[snapshot][0]} {snapshot}', self.snapshots[snapshot][0]):
                del self.snapshots[snapshot]

    def fill(self, name):
        self.closed(name)
        self.host().run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=1M count={FILLED // MIB} oflag=direct conv=notrunc,fsync', timeout=120)
        self.sums[name] = self.sum_of(name)

    def closed(self, name):
        wait(lambda: not self.volumes()[name]['openers'], 30, f'{name} to be closed')

    def rewrite(self):
        name = self.any_volume()
        if name:
            self.closed(name)
            self.host().run(f'dd if=/dev/urandom of=/dev/lockstep/{name} bs=64k count=8 seek={self.random.randrange(56)} oflag=direct conv=notrunc,fsync',
                            timeout=120)
            self.sums[name] = self.sum_of(name)

    def verify(self):
        self.command(f'verify {self.random.choice(("load1", "load2"))}')

    OPERATIONS = (create, create, create, delete, grow, redundancy, move, primary, snapshot, restore, snapshot_delete, rewrite, rewrite, verify)

    def fault(self):
        host, kind = self.random.choice(self.cluster.hosts), self.random.choice(('kill', 'kill', 'freeze', 'cut', 'daemon', 'daemons'))
        self.say(f'{kind} {host}')
        self.done[kind] = self.done.get(kind, 0) + 1
        if kind in ('daemon', 'daemons'):
            for h in self.cluster.hosts if kind == 'daemons' else [host]:
                h.run('kill -9 $(pidof lockstepd)', check=False)
            self.away = host		# commands may fail for it
        else:
            self.away = host
            self.killed = host if kind == 'kill' else None
            {'kill': host.kill, 'freeze': host.pause, 'cut': lambda: host.link('storage', up=False)}[kind]()
        for _ in range(self.random.randrange(3)):
            self.operation(faulty=True)
        self.writers_go_on()
        if kind == 'kill':
            host.power_on()
        elif kind == 'freeze':
            host.resume()
        elif kind == 'cut':
            host.link('storage', up=True)
        self.heal()

    def operation(self, faulty=False):
        which = self.random.choice([o for o in self.OPERATIONS if not faulty or o not in (Soak.rewrite, Soak.restore)])
        self.done[which.__name__] = self.done.get(which.__name__, 0) + 1
        which(self)

    def heal(self):
        hosts = self.cluster.hosts
        for h in hosts:
            wait(h.daemon_answers, 90, f'lockstepd of {h} to answer')

        def well():
            status = self.cluster.status(hosts[0])
            return (status['cluster']['quorum'] and all(h['status'] == 'online' for h in status['hosts'])
                    and all(v['health'] == 'ok' and not v['devices_missing'] and not v['growth'] for v in status['volumes']))
        wait(well, 240, 'everything to be well', every=1)
        self.writers_are_back()
        self.away = self.killed = None
        there = self.volumes()
        for name in sorted(self.doubtful):
            if name not in there:
                self.sums.pop(name, None)
            elif name not in self.sums:
                self.fill(name)
        self.doubtful.clear()
        assert set(there) - {'load1', 'load2'} == set(self.sums), (sorted(there), sorted(self.sums))
        listed = {s['name']: s['volume'] for s in hosts[0].lockstep('snapshot list --json')}
        self.snapshots = {s: (v, md5) for s, (v, md5) in self.snapshots.items() if s in listed}
        for s in sorted(set(listed) - set(self.snapshots)):		# made by a command that was said to have failed
            self.command(f'snapshot delete {listed[s]} {s}')
        for name, md5 in sorted(self.sums.items()):
            assert self.sum_of(name) == md5, f'{name} has changed'
        self.writers_go_on()

    def run(self, duration_s):
        a, b, c = self.cluster.hosts
        self.load(a, 'load1', 'alpha,beta')
        self.load(c, 'load2', 'alpha,beta,gamma')
        end = time.monotonic() + duration_s
        while time.monotonic() < end:
            for _ in range(self.random.randrange(1, 5)):
                self.operation()
                self.writers_go_on()
            self.fault()
        self.say(f'done: {self.done}')

    def finish(self):
        for log in self.logs:
            log.stop()
            good, line = log.check()
            self.say(line)
            assert good, line
        for name in sorted(self.sums) + ['load1', 'load2']:
            self.closed(name)
            assert_same(self.cluster, name)
        for snapshot in sorted(self.snapshots):
            self.snapshot_delete(snapshot)
        self.cluster.delete_volumes()
        for h in self.cluster.hosts:
            wait(lambda: 'lockstep.' not in h.out('lvs --noheadings -o lv_name lockstep_group'), 60, f'no logical volume to be left on {h}')


@pytest.mark.slow
def test_soak(cluster):
    duration_s, seed = seconds(os.environ.get('DURATION') or '10m'), int(os.environ.get('SEED') or time.time())
    print(f'DURATION={duration_s:g}s SEED={seed}', flush=True)
    soak = Soak(cluster, seed)
    try:
        soak.run(duration_s)
    except LabError as e:
        raise LabError(f'seed {seed}: {e}') from e
    soak.finish()


test_soak.seconds = seconds(os.environ.get('DURATION') or '10m') + 900
