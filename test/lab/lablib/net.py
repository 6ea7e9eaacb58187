# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's networks: one network namespace a run, in it a bridge a network and a tap for each NIC of each host.

    namespace lks-PID-STARTTIME-N
      bridge mgmt     10.77.1.0/24   tap mgmt-1, mgmt-2, ...      eth0 of the hosts
      bridge storage  10.77.2.0/24   tap storage-1, storage-2 ... eth1 of the hosts

Names inside a namespace clash with nobody. The namespace's name tells which process made it, so that the next run
removes what a killed one left (a namespace takes its bridges and taps along).
"""
import itertools, subprocess
from pathlib import Path

from .paths import LabError, process_tag, tag_is_alive

NETWORKS = {'mgmt': '10.77.1', 'storage': '10.77.2'}
serial = itertools.count(1)


def ip(*args, check=True):
    done = subprocess.run(['ip', *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if check and done.returncode:
        raise LabError(f'ip {" ".join(args)}: {done.stderr.strip()}')
    return done.stdout


def remove_stale():
    for path in Path('/run/netns').glob('lks-*'):
        tag = path.name[len('lks-'):].rsplit('-', 1)[0]
        if not tag_is_alive(tag):
            ip('netns', 'del', path.name, check=False)


class Networks:
    def __init__(self):
        remove_stale()
        self.namespace = f'lks-{process_tag()}-{next(serial)}'
        ip('netns', 'add', self.namespace)
        for bridge, prefix in NETWORKS.items():
            self.inside('link', 'add', bridge, 'type', 'bridge', 'stp_state', '0', 'forward_delay', '0', 'mcast_snooping', '0')
            self.inside('addr', 'add', f'{prefix}.254/24', 'dev', bridge)
            self.inside('link', 'set', bridge, 'up')
        self.inside('link', 'set', 'lo', 'up')

    def inside(self, *args, check=True):
        return ip('-n', self.namespace, *args, check=check)

    def tap(self, network, number):
        """Makes the tap of one NIC; repeating it is harmless. Returns its name."""
        name = f'{network}-{number}'
        if name not in self.inside('-o', 'link', 'show'):
            ip('netns', 'exec', self.namespace, 'ip', 'tuntap', 'add', 'dev', name, 'mode', 'tap')
            self.inside('link', 'set', name, 'master', network, 'up')
        return name

    def plug(self, network, number, plugged):
        """Takes a NIC's cable out of the switch without its host noticing a loss of carrier, or puts it back."""
        name = f'{network}-{number}'
        if plugged:
            self.inside('link', 'set', name, 'master', network)
        else:
            self.inside('link', 'set', name, 'nomaster')

    def close(self):
        if self.namespace:
            ip('netns', 'del', self.namespace, check=False)
            self.namespace = None


def address(network, number):
    return f'{NETWORKS[network]}.{number}'


def mac(network, number):
    return f'52:54:00:77:{list(NETWORKS).index(network) + 1:02x}:{number:02x}'
