# SPDX-License-Identifier: GPL-2.0-or-later
"""What is compared: the bare LV, DRBD and Lockstep, on the same hosts and disks. All are thick LVs of one volume group.

DRBD is the stock kernel's module with Debian's drbd-utils, set up as its users tune it: protocol C, large buffers, no cap on
resync, disk flushes on (as Lockstep's). A second pair of devices is for writes over a region that is 20 times what DRBD's
activity log covers; it has the smallest log DRBD allows, so that the region fits on the disk.
"""
from lablib import LabError
from lablib.cluster import together, wait

VG = 'lockstep_group'
SIZE_MIB, LARGE_MIB = 640, 5440
AL_EXTENTS, AL_EXTENTS_LARGE = 6007, 67		# of 4 MiB each; 67 is DRBD's minimum
DRBD_PORT = 7799
DRBD_MOST = 100		# volumes at once: the module has 255 minors, and each takes seconds to set up

GLOBAL = '''global { usage-count no; }
common {
	net { protocol C; max-buffers 36864; max-epoch-size 16384; sndbuf-size 0; rcvbuf-size 0; }
	disk { c-plan-ahead 0; resync-rate 4G; }
}
'''
RESOURCE = '''resource %(name)s {
	disk { al-extents %(al)d; }
	device /dev/drbd%(minor)d; disk /dev/%(vg)s/%(name)s; meta-disk internal;
	on alpha { address %(alpha)s:%(port)d; }
	on beta { address %(beta)s:%(port)d; }
}
'''


class Raw:
    """An LV of alpha: no replication at all."""
    name = 'raw'

    def __init__(self, cluster):
        self.alpha = cluster['alpha']

    def make(self, name, size_mib):
        self.alpha.run(f'lvcreate -qq --yes -Wn -L {size_mib}m -n raw-{name} {VG}')
        return f'/dev/{VG}/raw-{name}'


class Drbd:
    """alpha is primary."""
    name = 'drbd'
    threads = '^drbd'

    def __init__(self, cluster):
        self.hosts = [cluster['alpha'], cluster['beta']]
        self.minors = {}
        for h in self.hosts:
            h.put(GLOBAL, '/etc/drbd.conf')
            h.run('mkdir -p /var/lib/drbd /run/drbd /var/lock; modprobe drbd minor_count=255 usermode_helper=disabled')

    def make(self, name, size_mib, al_extents=AL_EXTENTS):
        return self.make_many([name], size_mib, al_extents)[0]

    def make_many(self, names, size_mib, al_extents=AL_EXTENTS):
        minors = list(range(len(self.minors), len(self.minors) + len(names)))
        self.minors.update(zip(names, minors))
        conf = ''.join(RESOURCE % {'name': f'drbd-{name}', 'al': al_extents, 'minor': minor, 'vg': VG, 'alpha': self.hosts[0].address,
                                   'beta': self.hosts[1].address, 'port': DRBD_PORT + minor} for name, minor in zip(names, minors))
        each = f'set -e; for lv in {self.lvs(names)}; do '
        make = (f'cat >>/etc/drbd.conf; {each} lvcreate -qq --yes -Wn -L {size_mib}m -n $lv {VG}; drbdadm --force create-md $lv; '
                'drbdadm up $lv; done')
        together(lambda h: h.run(make, input=conf, timeout=60 + 15 * len(names)), self.hosts)
        connected = lambda minor: all(w in self.state(minor) for w in ('/Secondary', 'cs:Connected'))
        for name, minor in zip(names, minors):
            wait(lambda: connected(minor), 60, f'DRBD {name} to connect')
        self.hosts[0].run(f'{each} drbdadm -- --clear-bitmap new-current-uuid $lv; drbdadm primary $lv; done', timeout=60 + 15 * len(names))
        for name in names:
            self.wait_sync(name)
        return [f'/dev/drbd{minor}' for minor in minors]

    @staticmethod
    def lvs(names):
        return ' '.join(f'drbd-{name}' for name in names)

    def remove_many(self, names):
        # What was written to is looked at by udev, which has it open meanwhile.
        remove = f'set -e; udevadm settle --timeout=60; for lv in {self.lvs(names)}; do drbdadm down $lv; lvremove -qq --yes {VG}/$lv; done'
        together(lambda h: h.run(remove, timeout=60 + 15 * len(names)), self.hosts)

    def state(self, minor, host=0):
        """The device's line of /proc/drbd."""
        for line in self.hosts[host].out('cat /proc/drbd').splitlines():
            if line.strip().startswith(f'{minor}:'):
                return line
        raise LabError(f'no device {minor} in /proc/drbd')

    def in_sync(self, name):
        return 'ds:UpToDate/UpToDate' in self.state(self.minors[name])

    def apart(self, name):
        return 'cs:WFConnection' in self.state(self.minors[name])

    def wait_sync(self, name, timeout=300):
        wait(lambda: self.in_sync(name), timeout, f'DRBD {name} to be in sync', every=0.1)


class Lockstep:
    """Replicas on alpha and beta. gamma votes, and uses volumes of which it has no replica."""
    name = 'lockstep'
    threads = '^lockstep_'

    def __init__(self, cluster):
        self.cluster = cluster

    def make(self, name, size_mib):
        device = self.cluster.create_volume(name, f'{size_mib}MiB', '--redundancy 2')
        self.wait_sync(name)
        return device

    def make_many(self, names, size_mib):
        for name in names:
            self.cluster['alpha'].lockstep(f'volume create {name} {size_mib}MiB --redundancy 2', timeout=60)
        return [f'/dev/lockstep/{name}' for name in names]

    def remove_many(self, names):
        for name in names:
            self.cluster['alpha'].lockstep(f'volume delete {name}', timeout=60)

    def states(self, name):
        return {r['host']: r['state'] for r in self.cluster.volume(name, self.cluster['gamma'])['replicas']}

    def in_sync(self, name):
        return all(s == 'insync' for s in self.states(name).values())

    def apart(self, name):
        return not self.in_sync(name)

    def wait_sync(self, name, timeout=300):
        wait(lambda: self.in_sync(name), timeout, f'volume {name} to be in sync', every=0.1)
