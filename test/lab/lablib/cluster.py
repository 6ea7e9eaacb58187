# SPDX-License-Identifier: GPL-2.0-or-later
"""What scenarios use: a Lab (folder, networks, hosts) and the Cluster that is made of its hosts.

    with Lab('name') as lab:
        hosts = lab.boot(3)                      # plain hosts: alpha, beta, gamma
        cluster = Cluster(lab, hosts).form()     # installed, daemons running, joined, pools made

A Lab removes all it made when it is left in whatever way: by exception, Ctrl-C or SIGTERM too. What even a SIGKILL of
the lab leaves is removed by the next one (QEMU dies with its parent; folders and namespaces carry the pid).
"""
import atexit, contextlib, itertools, json, os, re, shlex, shutil, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import console, image, kernel, net
from .agent import CommandFailed, CommandTimeout, HostDied
from .paths import BUILD, DEBUG_KERNEL, FAILED, PATIENCE, RUNS, LabError, process_tag, tag_is_alive
from .vm import Vm

NAMES = ['alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta', 'eta', 'theta']
GIB = 1 << 30
serial = itertools.count(1)
open_labs = []
stopping = threading.Event()		# the process is to end: threads that wait for something give up


def wait(condition, timeout=60, what=None, every=0.2):
    """Calls `condition` until it returns something true, and returns that. Its LabErrors count as "not yet"; the last
    one is told when the time is up."""
    timeout *= PATIENCE
    deadline, last = time.monotonic() + timeout, None
    while True:
        if stopping.is_set():
            raise HostDied('the lab is being left')
        try:
            value = condition()
            if value:
                return value
        except LabError as e:
            last = e
        if time.monotonic() > deadline:
            raise LabError(f'waited {timeout:g} s in vain for {what or condition.__name__}' + (f': {last}' if last else ''))
        time.sleep(every)


def together(function, items):
    """function(item) for all items at once; results in order. The first exception is raised after all have ended."""
    items = list(items)
    if not items:
        return []
    with ThreadPoolExecutor(len(items)) as pool:
        return [f.result() for f in [pool.submit(function, i) for i in items]]


class Host:
    """One host of the lab. `number` 1.. gives its addresses 10.77.1.N (management) and 10.77.2.N (storage)."""
    def __init__(self, lab, number, name, **options):
        self.lab, self.number, self.name = lab, number, name
        self.vm = Vm(lab.folder / name, name, number, lab.networks, **options)
        self.allowed = []		# regular expressions of console lines that this scenario expects
        self.judged = 0			# how much of the console has been looked at
        self.traced = []		# what the console said from the latest trouble on

    def __repr__(self):
        return self.name

    @property
    def address(self):
        return net.address('storage', self.number)

    def networks_address(self, network):
        return net.address(network, self.number)

    # ---- commands -------------------------------------------------------------------------------------------
    def start(self, command, on_output=None):
        """Starts a shell command and returns its Process (agent.py)."""
        return self.vm.agent.start(command, on_output)

    def run(self, command, check=True, timeout=60, input=None):
        """Runs a shell command to its end. Returns its Result; with `check`, a status other than 0 raises."""
        p = self.start(command)
        if input is not None:
            p.write(input if isinstance(input, bytes) else input.encode())
        p.close_input()
        try:
            result = p.wait(timeout)
        except CommandTimeout as e:
            stuck = self.stuck(command)
            p.signal(signal.SIGKILL)
            raise CommandTimeout(f'{e}\n{stuck}') from None
        if check and result.status:
            raise CommandFailed(self.name, command, result)
        return result

    def stuck(self, command):
        """Where the kernel has the processes of a command that does not end, and whatever else sleeps without being
        interruptible. That nothing answers is an answer too: then the host hangs and not the command."""
        word = re.sub(r'\W', '?', command.split()[0].rsplit('/', 1)[-1])[:15]		# as the kernel cuts names
        look = (
            f'cat /proc/uptime; for p in /proc/[0-9]*; do read -r s 2>/dev/null <$p/stat || continue; '
            f'case "$s" in *") D "*|*"("{word}") "*) echo "$s" | cut -c1-40; cat $p/stack ;; esac; done 2>/dev/null; '
            f'for d in /sys/block/*; do read -r r w <$d/inflight; [ $r$w = 00 ] || echo "${{d##*/}}: $r reads, $w writes in flight"; done; '
            f'timeout 5 dmsetup info -c --noheadings -o name,suspended | grep -i suspended')
        try:
            return self.start(look).wait(20).out
        except LabError as e:
            return f'{e}\n{self.vm.where()}\nconsole: {self.vm.console()[-400:]}'

    def out(self, command, timeout=60):
        return self.run(command, timeout=timeout).out.strip()

    def put(self, data, path):
        """Writes bytes, text or a file of the machine (a Path) to a file in the host."""
        if isinstance(data, Path):
            data = data.read_bytes()
        self.run(f'cat >{shlex.quote(path)}', input=data, timeout=120)

    def get(self, path, timeout=120):
        return self.run(f'cat {shlex.quote(path)}', timeout=timeout).out_bytes

    def lockstep(self, arguments, check=True, timeout=60):
        """Runs the CLI. With --json among the arguments and a good status, returns the parsed answer; else the Result."""
        result = self.run(f'lockstep {arguments}', check=check, timeout=timeout)
        return json.loads(result.out) if '--json' in arguments and result.status == 0 else result

    # ---- power and faults -----------------------------------------------------------------------------------
    def kill(self):
        self.vm.kill()

    def power_on(self, wait_booted=True):
        self.vm.power_on()
        if wait_booted:
            self.vm.wait_booted()

    @property
    def up(self):
        return self.vm.running

    def pause(self):
        self.vm.pause()

    def resume(self):
        self.vm.resume()

    def link(self, network, up, silent=False):
        """Network `mgmt` or `storage` off or on; silent: without loss of carrier, as behind a dead switch."""
        if silent:
            self.lab.networks.plug(network, self.number, up)
        else:
            self.vm.link(network, up)

    # ---- the product in this host -----------------------------------------------------------------------------
    def install(self, arguments='--disks /dev/vdb --thin', timeout=120):
        return self.run(f'lockstep-install {arguments}', timeout=timeout)

    def configure(self, **settings):
        """Writes /etc/lockstep/lockstep.yaml and lets the daemon run, now and after each boot."""
        values = {'name': self.name, 'addresses': f'[{self.address}]', **settings}
        self.put(''.join(f'{k.replace("_", "-")}: {v}\n' for k, v in values.items()), '/etc/lockstep/lockstep.yaml')
        self.run('mkdir -p /etc/systemd/system/multi-user.target.wants && '
                 'ln -sf ../lockstepd.service /etc/systemd/system/multi-user.target.wants/; '
                 'rm -f /run/lab-daemon-stopped; sync')		# a kill of the VM must not take the configuration back
        wait(self.daemon_answers, 60, f'lockstepd of {self.name} to answer')

    def daemon_answers(self):
        """With or without a cluster. A missing program or daemon is told by the error of the wait."""
        result = self.run('lockstep status', check=False)
        if result.status not in (0, 5):
            raise CommandFailed(self.name, 'lockstep status', result)
        return True

    def daemon(self, verb):
        """start, stop or kill (SIGKILL; it is started again by itself)."""
        self.run('kill -9 $(pidof lockstepd)' if verb == 'kill' else f'/lab/service {verb}')

    # ---- judgement ------------------------------------------------------------------------------------------
    def trouble(self):
        """Lines of kernel trouble on the console that no earlier call has returned."""
        text = self.vm.console()
        fresh, self.judged = text[self.judged:], len(text)
        self.traced = console.excerpt(fresh, self.allowed) or self.traced
        return console.trouble(fresh, self.allowed)

    def look_for_leaks(self):
        """With a kernel that has kmemleak: what nobody points to any more is written to the console, and judged there. It
        is reported when it is older than 5 s and two scans have found it."""
        scan = ('k=/sys/kernel/debug/kmemleak; [ -e $k ] || exit 0; echo scan >$k; sleep 6; echo scan >$k; '
                'while read -r l; do echo "kmemleak: $l"; done <$k >/dev/kmsg')
        if DEBUG_KERNEL and self.up and self.vm.agent and self.vm.agent.ready:
            self.run(scan, timeout=120)

    def allow(self, pattern):
        self.allowed.append(pattern)


class Lab:
    def __init__(self, name='lab', keep_logs=False):
        self.name, self.keep_logs = name, keep_logs
        self.folder = RUNS / f'{process_tag()}-{next(serial)}'
        self.hosts, self.networks, self.closed = [], None, False
        remove_stale_runs()
        self.folder.mkdir(parents=True)
        open_labs.append(self)
        try:
            self.networks = net.Networks()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None and not issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self.keep(self.name)
        self.close()

    def boot(self, count, data_bytes=4 * GIB, **options):
        """Boots `count` more hosts at once and returns them. Options: memory_mb, cpus, extra_disks."""
        first = len(self.hosts)
        options.setdefault('cpus', int(os.environ.get('LAB_CPUS') or 1))
        kernel.vmlinux(), kernel.initramfs(), kernel.accelerator(), image.root()
        new = [Host(self, i + 1, NAMES[i], data_bytes=data_bytes, **options) for i in range(first, first + count)]
        self.hosts += new
        together(lambda h: h.power_on(), new)
        return new

    def look_for_leaks(self):
        together(lambda h: h.look_for_leaks(), self.hosts)

    def trouble(self):
        """Kernel trouble on any console since last asked: ['alpha: line', ...]."""
        return [f'{h.name}: {line}' for h in self.hosts for line in h.trouble()]

    def check_consoles(self):
        bad = self.trouble()
        if bad:
            raise LabError('kernel trouble on the console:\n  ' + '\n  '.join(bad[:20]))

    def nothing_more_allowed(self):
        """What a scenario let its hosts say has been said: the hosts can serve other scenarios."""
        self.check_consoles()
        for h in self.hosts:
            h.allowed.clear()

    def keep(self, name):
        """Copies consoles, daemon logs and what the hosts still tell into one folder; returns it."""
        target = FAILED / f'{name}-{time.strftime("%H%M%S")}-{os.getpid()}'
        target.mkdir(parents=True, exist_ok=True)
        for h in self.hosts:
            for source in (h.vm.console_path, h.vm.daemon_path, h.vm.folder / 'qemu.log'):
                if source.exists():
                    shutil.copy2(source, target / f'{h.name}-{source.name}')
            if h.up and h.vm.agent and h.vm.agent.ready:
                with contextlib.suppress(LabError):
                    state = h.run('echo "== dmesg"; dmesg; echo "== blocked tasks"; echo w >/proc/sysrq-trigger; dmesg | tail -n 300;'
                                  'echo "== ps"; ps -o pid,stat,args; echo "== lsblk"; lsblk; echo "== lvs"; timeout 10 lvs -a;'
                                  'echo "== module"; cd /sys/kernel/debug/lockstep && timeout 10 grep -r . .;'
                                  'echo "== status"; timeout 10 lockstep status --json 2>&1', check=False, timeout=30)
                    (target / f'{h.name}-state.txt').write_text(state.out + state.err)
        print(f'\nlab: logs are kept in {target}', file=sys.stderr)
        return target

    def close(self):
        """Powers everything off and removes it. Safe to repeat; finishes although a step fails."""
        if self.closed:
            return
        self.closed = True
        for h in self.hosts:
            with contextlib.suppress(Exception):
                h.vm.kill()
        if self.networks:
            self.networks.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self in open_labs:
            open_labs.remove(self)


def remove_stale_runs():
    if RUNS.exists():
        for p in RUNS.iterdir():
            if not tag_is_alive(p.name.rsplit('-', 1)[0]):
                shutil.rmtree(p, ignore_errors=True)


def close_all():
    for lab in list(open_labs):
        lab.close()


def exit_on_signals(exception=None):
    """Lets SIGTERM, SIGHUP and Ctrl-C end the process by an exception, so that labs are left properly. Threads may be
    waiting for hosts, and whoever waits for them would not notice: so the hosts go first. No lock is taken here."""
    def leave(number, frame):
        for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(n, signal.SIG_IGN)			# a second one must not cut the cleaning short
        stopping.set()
        for lab in open_labs:
            for h in lab.hosts:
                if h.vm.process and h.vm.process.returncode is None:
                    os.kill(h.vm.process.pid, signal.SIGKILL)
        raise exception or SystemExit(128 + number)
    for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(n, leave)


atexit.register(close_all)


class Cluster:
    """Hosts that run Lockstep together. `form()` makes them one; volumes and pools are made through any of them."""
    def __init__(self, lab, hosts=None):
        self.lab, self.hosts = lab, list(hosts or lab.hosts)

    def __getitem__(self, which):
        return self.hosts[which] if isinstance(which, int) else next(h for h in self.hosts if h.name == which)

    def form(self, install='--disks /dev/vdb --thin', pools=None, **settings):
        """Installs, configures, initialises on the first host and joins the others, makes the pool on each (or on `pools`)."""
        together(lambda h: h.install(install), self.hosts)
        together(lambda h: h.configure(**settings), self.hosts)
        first, *rest = self.hosts
        first.lockstep('cluster init')
        for h in rest:
            h.lockstep(f'cluster join {self.token()} {first.address}')
        thin = ' --thin thin_device' if '--thin' in install else ''
        for h in pools or self.hosts:
            first.lockstep(f'pool create default --vg lockstep_group{thin} --host {h.name}', timeout=60)
        return self

    def token(self):
        """What lets one more host join."""
        return self.hosts[0].out('lockstep cluster token')

    def any(self):
        """A host that is up."""
        return next(h for h in self.hosts if h.up)

    def status(self, host=None):
        return (host or self.any()).lockstep('status --json')

    def volume(self, name, host=None):
        """The volume's part of the status, or LabError."""
        found = [v for v in self.status(host)['volumes'] if v['name'] == name]
        if not found:
            raise LabError(f'no volume {name} in the status')
        return found[0]

    def create_volume(self, name, size='1GiB', options='', host=None):
        (host or self.any()).lockstep(f'volume create {name} {size} {options}', timeout=120)
        return f'/dev/lockstep/{name}'

    def delete_volumes(self):
        """For a scenario that takes over a cluster another one has used."""
        for v in self.status()['volumes']:
            self.any().lockstep(f'volume delete {v["name"]}', timeout=120)
