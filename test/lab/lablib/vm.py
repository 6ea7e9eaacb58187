# SPDX-License-Identifier: GPL-2.0-or-later
"""One virtual machine: its QEMU process, disks, QMP.

Disks, always in this order: /dev/vda the shared read-only root image, /dev/vdb the data disk under test, /dev/vdc the
state disk (image.py), /dev/vdd and on: what a scenario adds (read-only).

The data and state disks have a volatile write cache (cache.writeback=on without "unsafe"): a guest's flush becomes a
fdatasync of QEMU. Yet killing QEMU does not lose what it had not flushed, for that is in the page cache of the machine
that runs the lab. So a SIGKILL here is the loss of a host's memory and CPU, not of its disk's cache; what a lost disk
cache does is covered by the simulator.

The data disk is a chain of block nodes: data-top (raw) -> data-tg (throttle) -> data-file. Slowness is set on the
throttle group; errors are injected by putting a blkdebug node between the first two while the host runs.

    client of QMP, a process and files; no knowledge of Lockstep.
"""
import contextlib, json, os, re, signal, socket, subprocess, threading, time
from pathlib import Path

from . import image, kernel, net
from .agent import Agent, HostDied
from .paths import DEBUG_KERNEL, LabError

COMMAND_LINE = ('console=ttyS0 panic=-1 oops=panic mitigations=off nokaslr random.trust_cpu=on net.ifnames=0 '
                'printk.devkmsg=on rcupdate.rcu_cpu_stall_timeout=60 loglevel=7 tsc=reliable no_timer_check')
BOOT_SECONDS = 120
# The debug kernel: what its tables take; and the firmware's program for the interrupts of PCI, which it would interpret for minutes.
DEBUG_KERNEL_MB = 512
DEBUG_KERNEL_OPTION = ' acpi=off'


class Spawner:
    """Starts QEMU from one thread that lives as long as the lab: PR_SET_PDEATHSIG means the death of the *thread* that
    forked, and it must not fire before the lab's process is gone."""
    def __init__(self):
        self.wanted, self.made = [], {}
        self.changed = threading.Condition()
        threading.Thread(target=self.serve, daemon=True, name='spawner').start()

    def serve(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.wanted)
                key, args, options = self.wanted.pop(0)
            try:
                result = subprocess.Popen(args, **options)
            except OSError as e:
                result = e
            with self.changed:
                self.made[key] = result
                self.changed.notify_all()

    def popen(self, args, **options):
        key = object()
        with self.changed:
            self.wanted.append((key, args, options))
            self.changed.notify_all()
            self.changed.wait_for(lambda: key in self.made)
            result = self.made.pop(key)
        if isinstance(result, OSError):
            raise result
        return result


spawner = None


def spawn(args, **options):
    global spawner
    spawner = spawner or Spawner()
    return spawner.popen(args, **options)


class Qmp:
    """QEMU's control connection: one command at a time, events are dropped."""
    def __init__(self, path, where):
        self.where = where
        self.lock = threading.Lock()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.file = self.socket.makefile('rw')
        self.file.readline()
        self.command('qmp_capabilities')

    def command(self, name, /, **arguments):
        with self.lock:
            self.file.write(json.dumps({'execute': name, 'arguments': arguments}) + '\n')
            self.file.flush()
            while True:
                line = self.file.readline()
                if not line:
                    raise HostDied(f'{self.where}: QEMU closed its control connection')
                answer = json.loads(line)
                if 'error' in answer:
                    raise LabError(f'{self.where}: QMP {name}: {answer["error"]["desc"]}')
                if 'return' in answer:
                    return answer['return']

    def close(self):
        self.file.close()
        self.socket.close()


class Vm:
    def __init__(self, folder, name, number, networks, data_bytes, memory_mb=640, cpus=1, extra_disks=()):
        self.folder, self.name, self.number, self.networks = Path(folder), name, number, networks
        self.memory_mb = memory_mb + (DEBUG_KERNEL_MB if DEBUG_KERNEL else 0)
        self.cpus, self.extra_disks = cpus, list(extra_disks)
        self.folder.mkdir(parents=True)
        self.console_path = self.folder / 'console.log'
        self.daemon_path = self.folder / 'lockstepd.log'
        self.data, self.state, self.root = self.folder / 'data.img', self.folder / 'state.img', self.folder / 'root.img'
        # A link of its own: a later build may remove the image, this lab goes on with the one it has.
        os.link(image.root(), self.root)
        with open(self.data, 'wb') as f:
            f.truncate(data_bytes)
        image.state_disk(self.state)
        self.process = self.qmp = self.agent = None

    # ---- power ----------------------------------------------------------------------------------------------
    def command(self):
        _, accel = kernel.accelerator()
        # PCI slots are given explicitly: a scenario's extra disk must not move the others.
        args = ['qemu-system-x86_64', '-name', self.name, '-machine', 'pc,usb=off,vmport=off,hpet=off', *accel,
                '-m', str(self.memory_mb), '-smp', str(self.cpus), '-nodefaults', '-no-user-config', '-display', 'none',
                '-no-reboot', '-kernel', str(kernel.vmlinux()), '-initrd', str(kernel.initramfs()),
                '-append', f'{COMMAND_LINE}{DEBUG_KERNEL_OPTION if DEBUG_KERNEL else ""} {kernel.clock_options()} '
                f'lab.host={self.name} ' + ' '.join(
                    f'lab.{n}={net.address(n, self.number)}/24' for n in net.NETWORKS),
                '-qmp', f'unix:{self.folder}/qmp,server=on,wait=off',
                '-chardev', f'file,id=console,path={self.console_path},append=on', '-serial', 'chardev:console',
                '-device', 'virtio-rng-pci,addr=0x3', '-device', 'virtio-serial-pci,id=ports,addr=0x4',
                '-chardev', f'socket,id=agent,path={self.folder}/agent,server=on,wait=off',
                '-device', 'virtserialport,bus=ports.0,nr=1,chardev=agent,name=agent',
                '-chardev', f'file,id=daemon,path={self.daemon_path},append=on',
                '-device', 'virtserialport,bus=ports.0,nr=2,chardev=daemon,name=daemon',
                '-object', 'throttle-group,id=data-speed']
        for i, n in enumerate(net.NETWORKS):
            tap = self.networks.tap(n, self.number)
            args += ['-netdev', f'tap,id={n},ifname={tap},script=no,downscript=no',
                     '-device', f'virtio-net-pci,netdev={n},id=nic-{n},mac={net.mac(n, self.number)},addr={5 + i:#x},romfile=']
        blocks = [('root', self.root, True), ('data', self.data, False), ('state', self.state, False)]
        blocks += [(f'extra{i}', path, True) for i, path in enumerate(self.extra_disks)]
        for i, (node, path, read_only) in enumerate(blocks):
            flag = 'on' if read_only else 'off'
            args += ['-blockdev', f'driver=file,node-name={node}-file,filename={path},read-only={flag},cache.direct=off,'
                     f'locking={"off" if read_only else "auto"},discard=unmap']
            lower = f'{node}-file'
            if node == 'data':
                args += ['-blockdev', 'driver=throttle,node-name=data-tg,throttle-group=data-speed,file=data-file']
                lower = 'data-tg'
            args += ['-blockdev', f'driver=raw,node-name={node}-top,file={lower},read-only={flag},discard=unmap',
                     '-device', f'virtio-blk-pci,drive={node}-top,id=disk-{node},addr={8 + i:#x},serial=lab-{node},'
                     f'num-queues=1' + ('' if read_only else ',write-cache=on,werror=report,rerror=report')]
        return ['ip', 'netns', 'exec', self.networks.namespace, 'setpriv', '--pdeathsig', 'KILL', *args]

    def power_on(self):
        """Starts QEMU with the same disks as before. Returns at once; wait_booted() waits for the agent."""
        if self.running:
            raise LabError(f'{self.name}: is already on')
        for leftover in ('qmp', 'agent'):
            (self.folder / leftover).unlink(missing_ok=True)
        with open(self.folder / 'qemu.log', 'ab') as log:
            self.process = spawn(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.agent = Agent(str(self.folder / 'agent'), self.name)
        self.agent.connect(lambda: self.process.poll() is None)
        self.qmp = Qmp(str(self.folder / 'qmp'), self.name)

    def wait_booted(self, timeout=BOOT_SECONDS):
        try:
            self.agent.wait_ready(timeout)
        except HostDied:
            raise
        except LabError as e:
            raise LabError(f'{e}\n{self.where()}\nconsole: {self.console()[-400:]}') from None

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """SIGKILL: the host is gone in the middle of whatever it did. Returns once it is."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.disconnect()

    def disconnect(self):
        if self.agent:
            self.agent.close()
        if self.qmp:
            self.qmp.close()
        self.qmp = None

    # ---- faults ---------------------------------------------------------------------------------------------
    def pause(self):
        self.qmp.command('stop')

    def resume(self):
        self.qmp.command('cont')

    def link(self, network, up):
        """Cable out (the NIC loses its carrier) or in."""
        self.qmp.command('set_link', name=f'nic-{network}', up=up)

    def disk_speed(self, **limits):
        """Limits of the data disk, as {'iops-total': 10} or {'bps-write': 1 << 20}; none: full speed."""
        every = ('bps-total', 'bps-read', 'bps-write', 'iops-total', 'iops-read', 'iops-write')
        values = {k: int(limits.get(k, limits.get(k.replace('-', '_'), 0))) for k in every}
        self.qmp.command('qom-set', path='/objects/data-speed', property='limits', value=values)

    def disk_errors(self, kinds=('read', 'write', 'flush'), errno=5):
        """From now on these requests to the data disk fail with errno; no kinds: the disk works again. Of flushes only the
        next one fails (QEMU flushes too, when it puts the blkdebug node in or out, and gives up if that fails)."""
        nodes = {n['node-name'] for n in self.qmp.command('query-named-block-nodes')}
        self.reopen('data-tg')
        if 'data-bad' in nodes:
            self.qmp.command('blockdev-del', **{'node-name': 'data-bad'})
        if kinds:
            rules = [{'event': 'none', 'iotype': k, 'errno': errno, 'once': k == 'flush', 'immediately': True} for k in kinds]
            self.qmp.command('blockdev-add', **{'driver': 'blkdebug', 'node-name': 'data-bad', 'image': 'data-tg',
                                                'inject-error': rules, 'discard': 'unmap'})
            self.reopen('data-bad')

    def reopen(self, lower):
        options = {'driver': 'raw', 'node-name': 'data-top', 'file': lower, 'read-only': False, 'discard': 'unmap'}
        try:
            self.qmp.command('blockdev-reopen', options=[options])
        except LabError as e:
            if 'Error flushing' not in str(e):		# the one failing flush that was still to come
                raise
            self.qmp.command('blockdev-reopen', options=[options])

    def where(self):
        """For a host that answers nothing: where its processors are, twice, and what QEMU's own threads do."""
        lines = []
        try:
            for _ in range(2):
                said = self.qmp.command('human-monitor-command', **{'command-line': 'info registers -a'})
                lines += [f'{self.name}: {" ".join(words)}' for words in re.findall(r'(RIP=\w+) (RFL=\w+).*?(HLT=\d)', said)]
                time.sleep(0.1)
            lines.append(str(self.qmp.command('query-status')))
        except (OSError, LabError) as e:
            lines.append(f'{self.name}: QEMU does not answer either: {e}')
        for task in Path(f'/proc/{self.process.pid}/task').glob('*'):
            with contextlib.suppress(OSError):
                fields = (task / 'stat').read_text().rpartition(')')[2].split()
                lines.append(f'{(task / "comm").read_text().strip()} {fields[0]} {fields[11]}+{fields[12]} {(task / "wchan").read_text()}')
        return '\n'.join(lines)

    # ---- logs -----------------------------------------------------------------------------------------------
    def console(self):
        return self.console_path.read_text(errors='replace') if self.console_path.exists() else ''

    def daemon_log(self):
        return self.daemon_path.read_text(errors='replace') if self.daemon_path.exists() else ''

    def delete_disks(self):
        for p in (self.data, self.state, self.root, self.folder / 'qmp', self.folder / 'agent'):
            p.unlink(missing_ok=True)
