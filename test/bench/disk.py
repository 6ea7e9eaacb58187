#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""`make bench`: the bare disk, DRBD and Lockstep on the same virtual hosts and disks, in one run.

    test/bench/disk.py [--seconds N] [--rounds N] [--parts NAME[,NAME..]] [--jobs WORD[,WORD..]] [--volumes N[,N..]] [--results FOLDER]

Each round runs each job on all three, one right after the other in turning order, so that what the machine does besides hits all
alike; the ratios are taken within a round. Machines that emulate their hosts' processors say little in absolute figures:
processor time per I/O and ratios are what carries over. Writes results.json, and at the end RESULTS.md and the plots, into --results
(default: build/bench). Each part's figures are written as soon as they are there, and stay when others are measured again.
"""
import argparse, json, platform, re, signal, statistics, sys, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'lab'))
from lablib import Cluster, Lab, exit_on_signals, kernel
from lablib.cluster import wait

import report
from measure import fio
from targets import AL_EXTENTS_LARGE, DRBD_MOST, LARGE_MIB, VG, Drbd, Lockstep, Raw

REGION = '--size=512m'
# name, options, least ratio to DRBD's IOPS that is wanted
JOBS = [
    ('write 4k, depth 1', f'{REGION} --rw=randwrite --bs=4k --iodepth=1', 1.0),
    ('write 4k, depth 4', f'{REGION} --rw=randwrite --bs=4k --iodepth=4', 1.0),
    ('write 4k, depth 32', f'{REGION} --rw=randwrite --bs=4k --iodepth=32', 1.5),
    ('write 4k, 4 jobs x 32', f'{REGION} --rw=randwrite --bs=4k --iodepth=32 --numjobs=4', 1.0),
    ('write 4k + fsync', f'{REGION} --rw=randwrite --bs=4k --iodepth=1 --fsync=1', 1.0),
    ('write 128k, sequential', f'{REGION} --rw=write --bs=128k --iodepth=4', 1.3),
    ('write 1M, sequential', f'{REGION} --rw=write --bs=1m --iodepth=4', 1.3),
    ('read 4k, depth 1', f'{REGION} --rw=randread --bs=4k --iodepth=1', 1.0),
    ('read 4k, depth 32', f'{REGION} --rw=randread --bs=4k --iodepth=32', 1.0),
    ('70 % read 4k, depth 16', f'{REGION} --rw=randrw --rwmixread=70 --bs=4k --iodepth=16', 1.0),
    ('write 4k over 20 x the log', f'--size={LARGE_MIB - 64}m --rw=randwrite --bs=4k --iodepth=32', 1.5),
]
PARTS = ('jobs', 'encryption', 'resync', 'many', 'handover', 'snapshots', 'life', 'failover')
ENCRYPTED = ('write 4k, depth 32', 'write 1M, sequential')		# also with lanes encrypted
GAMMA = 'write 4k, depth 32'		# also from a host without a replica
TOUCH = f'--size=100% --rw=write:4092k --bs=4k --iodepth=8 --number_ios={LARGE_MIB // 4}'		# 4 KiB in each 4 MiB
MANY_MIB = 4		# one extent: of each of the many volumes
MANY = (1, 10, 100)
NOT_KERNEL = ('MemFree', 'Buffers', 'Cached', 'AnonPages', 'PageTables', 'KernelStack')		# in /proc/meminfo
HANDOVERS = SNAPSHOTS = 8
FILL = '--size=100% --rw=write --bs=1m --iodepth=2'


def say(text):
    print(f'{time.monotonic() - begun:7.1f} s  {text}', flush=True)


def figures(sample):
    text = f'{sample["iops"]:7.0f} IOPS, {sample["mbps"]:6.1f} MB/s, p99 {sample["p99_us"] / 1e3:6.1f} ms'
    switches = ' '.join(f'{n:.1f}' for n in sample['switches'].values())
    return f'{text}, switches an I/O {switches}' if switches else text


def run_jobs(cluster, devices, wanted, seconds, rounds):
    """[{job, round, target, host, ...figures}]"""
    alpha, beta, gamma = cluster.hosts
    samples = []
    for round_ in range(rounds):
        for name, options, _ in JOBS:
            if not any(w in name for w in wanted):
                continue
            size = 'large' if 'log' in name else 'small'
            turns = [(t, alpha) for t in devices]
            turns = turns[round_ % 3:] + turns[:round_ % 3]
            if name == GAMMA:
                turns.append(('lockstep', gamma))
            for target, host in turns:
                sample = fio(host, devices[target][size], options, seconds, (alpha, beta) if host is alpha else (alpha, beta, gamma))
                samples.append({'job': name, 'round': round_, 'target': target, 'host': host.name, **sample})
                say(f'{name:26s} {target:8s} on {host.name}: {figures(sample)}')
    return samples


def set_encryption(cluster, value):
    cluster['alpha'].lockstep(f'option set lane-encryption {value}')
    lanes = lambda h: sum(map(int, re.findall(r'TlsCurrTx\w+\s+(\d+)', h.out('cat /proc/net/tls_stat'))))
    wait(lambda: all((lanes(h) > 0) == (value == 'on') for h in cluster.hosts), 30, f'lane-encryption {value}')
    wait(lambda: all(r['state'] == 'insync' for v in cluster.status()['volumes'] for r in v['replicas']), 30, 'lanes to be there again')


def encryption(cluster, device, seconds, rounds):
    """{job: [IOPS with lanes encrypted to IOPS with plain ones, of each round]}"""
    ratios = {name: [] for name in ENCRYPTED}
    for _ in range(rounds):
        iops = {}
        for value in ('on', 'off'):
            set_encryption(cluster, value)
            for name, options, _ in JOBS:
                if name in ENCRYPTED:
                    iops[name, value] = fio(cluster['alpha'], device, options, seconds)['iops']
        for name in ENCRYPTED:
            ratios[name].append(iops[name, 'on'] / iops[name, 'off'])
    return ratios


def resync(cluster, target, device, name, seconds):
    """alpha writes while beta can not be reached, then beta catches up while alpha goes on: {mib, seconds, idle and busy p99_us}."""
    alpha, beta, _ = cluster.hosts
    load = '--size=512m --rw=randwrite --bs=4k --iodepth=1'
    idle = fio(alpha, device, load, seconds)
    beta.link('storage', up=False)
    try:
        wait(lambda: target.apart(name), 60, f'{target.name} to go on without beta')
        fio(alpha, device, '--size=256m --rw=write --bs=1m --iodepth=4', 0)
    finally:
        beta.link('storage', up=True)
    start = time.monotonic()
    running = alpha.start(f'exec fio --name=job --filename={device} --direct=1 --ioengine=libaio --randrepeat=0 --norandommap {load} '
                          '--time_based --runtime=300 --output-format=json')
    target.wait_sync(name)
    took = time.monotonic() - start
    running.signal(2)
    text = running.wait(60).out
    busy = json.loads(text[text.index('{'):text.rindex('}') + 1])['jobs'][0]['write']
    return {'target': target.name, 'mib': 256, 'seconds': took, 'idle_p99_us': idle['p99_us'], 'idle_iops': idle['iops'],
            'busy_p99_us': busy['clat_ns']['percentile']['99.000000'] / 1e3, 'busy_iops': busy['iops']}


def failover(cluster, device, leads):
    """The primary's host dies silently while gamma writes, and led the consensus group or did not: the longest that a write of
    gamma took, in seconds."""
    gamma = cluster['gamma']
    leader = lambda: cluster.status(gamma)['cluster']['leader']
    if leads and leader() == 'gamma':
        gamma.daemon('kill')
        wait(lambda: leader() in ('alpha', 'beta'), 30, 'another host than gamma to lead')
    victim = cluster[leader() if leads else 'beta' if leader() == 'alpha' else 'alpha']
    victim.lockstep('primary small')
    wait(lambda: cluster.volume('small', gamma)['primary'] == victim.name, 30, f'{victim} to be primary')
    running = gamma.start(f'exec fio --name=job --filename={device} --direct=1 --ioengine=libaio --size=512m --rw=randwrite --bs=4k '
                          '--iodepth=1 --time_based --runtime=25 --output-format=json --status-interval=1')
    wait(lambda: len(running.out) > 200, 30, 'fio to write')
    victim.kill()
    text = running.wait(90).out
    seconds = json.loads(text[text.rindex('\n{') + 1:])['jobs'][0]['write']['clat_ns']['max'] / 1e9
    victim.power_on()
    wait(lambda: Lockstep(cluster).in_sync('small'), 120, f'{victim} to be back in sync')
    return seconds


def longest_write(host, device, act=None):
    """The longest that a 4 KiB write of this host took in some seconds, in us; with act() from before that until a second after it."""
    running = host.start(f'exec fio --name=job --filename={device} --direct=1 --ioengine=libaio --size=100% --rw=randwrite --bs=4k '
                         f'--iodepth=1 --time_based --ramp_time=1 --runtime={60 if act else 4} --output-format=json --status-interval=1')
    wait(lambda: len(running.out) > 200, 30, 'fio to write')
    if act:
        act()
        reports = running.out.count(b'\n{')
        wait(lambda: running.out.count(b'\n{') > reports + 1, 30, 'fio to write for another second')
        running.signal(signal.SIGINT)
    text = running.wait(60).out
    return json.loads(text[text.rindex('\n{') + 1:])['jobs'][0]['write']['clat_ns']['max'] / 1e3


def handover(cluster, device, count=HANDOVERS):
    """While gamma writes, the primary is moved: {still, moved}: lists of the longest that a write took, in us, without and with it."""
    alpha, beta, gamma = cluster.hosts
    longest = {'still': [], 'moved': []}
    for i in range(count):
        heir = beta if cluster.volume('small', gamma)['primary'] == 'alpha' else alpha
        longest['still'].append(longest_write(gamma, device))
        longest['moved'].append(longest_write(gamma, device, lambda: alpha.lockstep(f'primary small {heir.name}')))
    return longest


def snapshots(cluster, count=SNAPSHOTS):
    """While alpha writes, its volume gets a snapshot: {thin, thick: {still, taken}}: as handover() does."""
    alpha, beta, gamma = cluster.hosts
    for h in (alpha, beta):
        h.run(f'lvcreate -qq --yes -L 2g --poolmetadatasize 8m --thinpool thin_device {VG}', timeout=60)
        alpha.lockstep(f'pool create thin --vg {VG} --thin thin_device --host {h.name}', timeout=60)
    found = {}
    for kind, pool in (('thin', 'thin'), ('thick', 'default')):
        device = cluster.create_volume(f'snapped-{kind}', '128MiB', f'--redundancy 2 --pool {pool}')
        fio(alpha, device, FILL, 0)
        longest = found[kind] = {'still': [], 'taken': []}
        for i in range(count):
            longest['still'].append(longest_write(alpha, device))
            longest['taken'].append(longest_write(alpha, device, lambda: gamma.lockstep(f'snapshot create snapped-{kind} s{i}', timeout=60)))
            alpha.lockstep(f'snapshot delete snapped-{kind} s{i}', timeout=60)
        alpha.lockstep(f'volume delete snapped-{kind}', timeout=60)
    return found


def life_cycle(cluster, rounds=5):
    """Seconds to create a volume, to open it for the first time, to delete it: medians."""
    alpha = cluster['alpha']
    took = {'lvcreate': [], 'create': [], 'open and write': [], 'delete': []}

    def timed(what, command):
        start = time.monotonic()
        alpha.run(command, timeout=120)
        took[what].append(time.monotonic() - start)
    for i in range(rounds):
        timed('lvcreate', f'lvcreate -qq --yes -Wn -L 64m -n plain{i} lockstep_group')
        timed('create', f'lockstep volume create life{i} 64MiB --redundancy 2')
        timed('open and write', f'dd if=/dev/zero of=/dev/lockstep/life{i} bs=4k count=1 oflag=direct')
        timed('delete', f'lockstep volume delete life{i}')
    return {k: statistics.median(v) for k, v in took.items()}


def usage(host, threads):
    """What this host's kernel and daemon take: {threads of this name, daemon_threads, daemon_kib, kernel_kib: all that is neither free, nor
    cached, nor there for processes, of which udev has more and fewer}."""
    host.run('sync; echo 3 >/proc/sys/vm/drop_caches')
    memory = {k: int(v.split()[0]) for k, v in (line.split(':') for line in host.out('cat /proc/meminfo').splitlines())}
    daemon = host.out('pidof lockstepd').strip()
    return {'threads': int(host.out(f'cat /proc/[0-9]*/comm 2>/dev/null | grep -c {threads} || true')),
            'daemon_threads': int(host.out(f'ls /proc/{daemon}/task | wc -l')),
            'daemon_kib': int(host.out(f"awk '/^VmRSS/{{print $2}}' /proc/{daemon}/status")),
            'kernel_kib': memory['MemTotal'] - sum(memory[k] for k in NOT_KERNEL)}


def many_volumes(cluster, target, counts, seconds):
    """[{target, volumes, iops and p99_us of 4 KiB writes to all of them at depth 32 together, and alpha's usage() afterwards}]"""
    alpha, paths, rows = cluster['alpha'], [], []
    name = 'many{}'.format
    for count in counts:
        paths += target.make_many([name(i) for i in range(len(paths), count)], MANY_MIB)
        sample = write_to_all(alpha, paths, seconds)
        rows.append({'target': target.name, 'volumes': count, 'iops': sample['iops'], 'p99_us': sample['p99_us'], **usage(alpha, target.threads)})
        say(f'{rows[-1]}')
    if paths:
        target.remove_many([name(i) for i in range(len(paths))])
    return rows


def write_to_all(host, paths, seconds):
    """4 KiB writes to these small volumes, depth 32 together."""
    size = int(host.out(f'blockdev --getsize64 {paths[0]}')) >> 10		# DRBD's metadata are inside
    for path in paths:		# the first write to an extent zeroes it
        host.run(f'dd if=/dev/zero of={path} bs=4k count=1 oflag=direct conv=notrunc 2>/dev/null', timeout=60)
    # fio opens a file when it first writes to it, and an open takes a commit of the cluster: that is not what is measured.
    # One command holds them all: a host takes 64 at once.
    held = host.start('exec 3<&0; for path in ' + ' '.join(paths) + '; do /lab/blockio hold $path w <&3 & done; wait')
    wait(lambda: bytes(held.out).count(b'open') == len(paths), 120, 'all volumes to be open')
    spread = f'--size={size * len(paths)}k --filesize={size}k --nrfiles={len(paths)} --openfiles={len(paths)} --file_service_type=random'
    sample = fio(host, ':'.join(paths), f'{spread} --rw=randwrite --bs=4k --iodepth=32', seconds)
    held.close_input()
    held.wait(60)
    return sample


def plain_lvs(host, count):
    """KiB of the kernel's memory that each of so many active LVs takes: what a volume's replica would take in any case."""
    names = [f'{VG}/plain{i}' for i in range(count)]
    held = lambda: usage(host, '^lockstep_')['kernel_kib']
    before = held()
    for name in names:
        host.run(f'lvcreate -qq --yes -Wn -Zn -L {MANY_MIB}m -n {name}', timeout=60)
    each = (held() - before) / count
    host.run('lvremove -qq --yes ' + ' '.join(names), timeout=300)
    return each


def machine():
    model = re.search(r'model name\s*:\s*(.*)', Path('/proc/cpuinfo').read_text())
    cores = len(re.findall(r'^processor', Path('/proc/cpuinfo').read_text(), re.M))
    return {'machine': f'{cores} cores {model[1] if model else platform.machine()}', 'accelerator': kernel.accelerator()[0],
            'kernel': kernel.release(), 'date': time.strftime('%Y-%m-%d %H:%M', time.gmtime()) + ' UTC'}


def prepare(cluster, large):
    """The three targets, each with a volume, and one over a region larger than DRBD's log: (targets, devices, {target: first touch})."""
    targets = {t.name: t for t in (Raw(cluster), Drbd(cluster), Lockstep(cluster))}
    devices = {n: {'small': t.make('small', 640)} for n, t in targets.items()}
    if large:
        devices['raw']['large'] = targets['raw'].make('large', LARGE_MIB)
        devices['drbd']['large'] = targets['drbd'].make('large', LARGE_MIB, AL_EXTENTS_LARGE)
        devices['lockstep']['large'] = targets['lockstep'].make('large', LARGE_MIB)
    say('hosts, DRBD and Lockstep are ready')
    first, alpha = {}, cluster['alpha']
    for name in devices:
        first[name] = fio(alpha, devices[name]['small'], FILL, 0)
        say(f'first touch, sequential       {name:8s}: {figures(first[name])}')
        if large:
            fio(alpha, devices[name]['large'], TOUCH, 0, timeout=900)
            say(f'first touch of all extents of the large region, {name}')
    return targets, devices, first


def measure(args, cluster, save):
    """Calls save(part, {key: figures}) for each part."""
    large = 'jobs' in args.parts and any('log' in name and w in name for name, *_ in JOBS for w in args.words)
    targets, devices, first = prepare(cluster, large)
    small = devices['lockstep']['small']
    if 'jobs' in args.parts:
        save('jobs', {'seconds': args.seconds, 'rounds': args.rounds, 'first': first,
                      'samples': run_jobs(cluster, devices, args.words, args.seconds, args.rounds)})
    if 'encryption' in args.parts:
        save('encryption', {'encryption': encryption(cluster, small, args.seconds, args.rounds)})
    if 'resync' in args.parts:
        save('resync', {'resync': [resync(cluster, targets[n], devices[n]['small'], 'small', args.seconds) for n in ('drbd', 'lockstep')]})
    if 'many' in args.parts:
        many = many_volumes(cluster, targets['drbd'], [n for n in args.volumes if n <= DRBD_MOST], args.seconds)
        many += many_volumes(cluster, targets['lockstep'], args.volumes, args.seconds)
        save('many', {'many': many, 'plain_lv_kib': plain_lvs(cluster['alpha'], many[-1]['volumes'])})
    if 'handover' in args.parts:
        save('handover', {'handover': handover(cluster, small)})
    if 'snapshots' in args.parts:
        save('snapshots', {'snapshots': snapshots(cluster)})
    if 'life' in args.parts:
        save('life', {'life': life_cycle(cluster)})
    if 'failover' in args.parts:
        save('failover', {'failover': {what: failover(cluster, small, what == 'leader') for what in ('not leader', 'leader')}})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seconds', type=int, default=5, help='of each job on each target, each round')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--parts', default=','.join(PARTS), help='what to measure')
    parser.add_argument('--jobs', default='', help='only jobs whose name contains one of these words, and no other part')
    parser.add_argument('--volumes', default=','.join(map(str, MANY)), help='how many at once, in turn')
    parser.add_argument('--results', type=Path, default=Path(__file__).resolve().parents[2] / 'build/bench')
    args = parser.parse_args()
    args.words = args.jobs.split(',')
    args.parts = ['jobs'] if args.jobs else args.parts.split(',')
    args.volumes = [int(n) for n in args.volumes.split(',')]
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f'no such part: {", ".join(sorted(unknown))} (there are {", ".join(PARTS)})')
    exit_on_signals(KeyboardInterrupt())
    args.results.mkdir(parents=True, exist_ok=True)
    path, run = args.results / 'results.json', {**machine(), 'command': ' '.join(sys.argv)}
    result = json.loads(path.read_text()) if path.exists() else {}

    def save(part, found):
        result.update(found)
        result.setdefault('of', {})[part] = run
        path.with_suffix('.new').write_text(json.dumps(result, indent=1))
        path.with_suffix('.new').rename(path)
        say(f'{part}: ' + ('measured' if part == 'jobs' else json.dumps(found)))
    with Lab('bench') as lab:
        hosts = lab.boot(3, data_bytes=32 << 30, memory_mb=1024)
        cluster = Cluster(lab, hosts)
        cluster.form(install='--disks /dev/vdb', pools=hosts[:2])
        set_encryption(cluster, 'off')			# as DRBD's are; what it costs is measured in a part of its own
        measure(args, cluster, save)
        lab.check_consoles()
    if 'samples' in result:
        report.write(result, {name: least for name, _, least in JOBS}, args.results)
        say(f'written: {args.results}/RESULTS.md')


begun = time.monotonic()
if __name__ == '__main__':
    main()
