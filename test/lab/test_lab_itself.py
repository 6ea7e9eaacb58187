# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab keeps its promises. If one of these fails, no other scenario's result means anything."""
import pytest
from lablib import CommandFailed, CommandTimeout, HostDied, LabError, wait


def reaches(host, other, network):
    return host.run(f'ping -c 1 -W 2 {other.networks_address(network)}', check=False).status == 0


def test_lab_commands(lab):
    """Commands run side by side, take input, give back both outputs and their status, and can be cut short."""
    a, = lab.boot(1)
    slow = a.start('sleep 2; echo slow')
    assert a.run('echo out; echo err >&2').out == 'out\n'
    assert slow.running, 'a command must not wait for an earlier one'
    assert a.run('echo err >&2; exit 3', check=False).status == 3
    with pytest.raises(CommandFailed, match='status 4'):
        a.run('exit 4')
    blob = bytes(range(256)) * 4096
    a.put(blob, '/tmp/blob')
    assert a.get('/tmp/blob') == blob
    with pytest.raises(CommandTimeout):
        a.run('sleep 100', timeout=1)
    wait(lambda: a.run('pidof sleep', check=False).out.count(' ') == 0, 10, 'the command that took too long to be killed')
    endless = a.start('while :; do echo x; sleep 0.1; done')
    wait(lambda: len(endless.out) > 4, 10, 'output of a command that still runs')
    endless.stop()
    assert slow.wait(10).out == 'slow\n'


def test_lab_hosts(lab):
    """Two networks that can be cut one at a time; a host that loses its power keeps its disks and nothing else."""
    a, b = lab.boot(2)
    for network in ('mgmt', 'storage'):
        assert reaches(a, b, network) and reaches(b, a, network)

    b.link('storage', up=False)
    assert not reaches(a, b, 'storage'), 'the storage cable is out'
    assert b.out('cat /sys/class/net/eth1/carrier') == '0'
    assert reaches(a, b, 'mgmt'), 'only one cable is out'
    b.link('storage', up=True)
    wait(lambda: reaches(a, b, 'storage'), 20, 'the storage network to come back')

    b.link('mgmt', up=False, silent=True)
    assert not reaches(a, b, 'mgmt')
    assert b.out('cat /sys/class/net/eth0/carrier') == '1'
    assert reaches(a, b, 'storage')
    b.link('mgmt', up=True, silent=True)
    wait(lambda: reaches(a, b, 'mgmt'), 20, 'the management network to come back')

    a.run('pvcreate -q /dev/vdb && vgcreate -q vg /dev/vdb && lvcreate -qL 64M -n v vg && mke2fs -q /dev/vg/v')
    a.run('mount /dev/vg/v /mnt && echo kept >/mnt/f && sync && echo kept >/etc/kept && echo kept >/var/lib/lockstep/f && sync')
    a.run('echo lost >/root/f; echo lost >/var/log/f; sync')
    busy = a.start('sleep 1000')
    a.kill()
    with pytest.raises(HostDied):
        busy.wait(10)
    with pytest.raises(HostDied):
        a.run('true')
    assert not reaches(b, a, 'mgmt')
    a.power_on()
    assert a.out('cat /etc/kept /var/lib/lockstep/f') == 'kept\nkept'
    assert a.run('ls /root/f /var/log/f', check=False).out == ''
    a.run('mount /dev/vg/v /mnt')		# the LV is there by the stock udev rules
    assert a.out('cat /mnt/f') == 'kept'

    a.pause()
    assert not reaches(b, a, 'mgmt')
    a.resume()
    wait(lambda: reaches(b, a, 'mgmt'), 20, 'the paused host to answer')


@pytest.mark.slow
def test_lab_disk_faults(lab):
    """Errors and slowness of the data disk come and go while the host runs."""
    a, = lab.boot(1)
    write = 'dd if=/dev/zero of=/dev/vdb bs=64k count=16 oflag=direct conv=fsync'
    read = 'dd if=/dev/vdb of=/dev/null bs=64k count=16 iflag=direct'
    a.allow(r'Buffer I/O error on dev vdb')
    a.run(write)
    a.vm.disk_errors(['write'])
    assert a.run(write, check=False).status != 0
    a.run(read)
    a.vm.disk_errors(['read'])
    assert a.run(read, check=False).status != 0
    a.run(write)
    a.vm.disk_errors(['flush'])
    assert a.run(write, check=False).status != 0
    a.run(write)
    a.vm.disk_errors(['flush'])
    a.vm.disk_errors([])
    a.run(write)
    a.run(read)
    a.vm.disk_speed(iops_total=4)
    with pytest.raises(CommandTimeout):
        a.run(read, timeout=2)
    a.vm.disk_speed()
    a.run(read, timeout=20)


@pytest.mark.parametrize('line', ['WARNING: CPU: 0 PID: 7 at kernel/x.c:1 lab+0x1/0x2', 'INFO: task dd:77 blocked for more than 120 seconds.',
                                  'rcu: INFO: rcu_preempt self-detected stall on CPU'])
def test_lab_trouble_patterns(line):
    from lablib import trouble
    assert trouble(f'[   12.345678] {line}\n') and not trouble('[   12.345678] lockstep: loaded\n')
    assert not trouble(f'[   12.345678] {line}\n', allowed=['dd:77|lab.0x1|self-detected'])


def test_lab_shows_the_trace_of_trouble():
    """Not the line alone: where the processor was comes after it, and the console's file does not outlive a CI run."""
    from lablib.console import excerpt
    before, line, after = '[    9.1] eth1: up', '[   36.6] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [usleep:251]', '[   36.6] RIP: 0010:x+0x1'
    assert excerpt('\n'.join((before, line, after))) == [line, after]
    assert excerpt('\n'.join((line, after)), lines=1) == [line] and not excerpt('\n'.join((before, after)))
    assert not excerpt('\n'.join((before, line, after)), allowed=['usleep:251'])


def test_lab_judges_consoles(lab):
    """A warning on one console is found, and told once; one that the scenario expects is not. A crash is both seen on the
    console and ends the host."""
    a, b = lab.boot(2)
    lab.check_consoles()
    b.run("echo '<4>WARNING: CPU: 0 PID: 1 at lab/deliberate.c:1 a_line_of_the_lab+0x0/0x1' >/dev/kmsg")
    with pytest.raises(LabError, match='beta: .*a_line_of_the_lab'):
        wait(lambda: lab.check_consoles(), 0, 'the console to be read')
    lab.check_consoles()
    a.allow('a_line_of_the_lab')
    a.run("echo '<4>WARNING: CPU: 0 PID: 1 at lab/deliberate.c:1 a_line_of_the_lab+0x0/0x1' >/dev/kmsg")
    lab.check_consoles()
    with pytest.raises(HostDied):
        a.run('echo c >/proc/sysrq-trigger; sleep 30')
    wait(lambda: not a.up, 20, 'a crashed host to be off')
    assert any('Kernel panic' in line or 'Oops' in line for line in lab.trouble())
