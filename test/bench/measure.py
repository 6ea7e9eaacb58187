# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of fio in a host, and what it cost on each host.

Processor time is taken twice: from /proc/stat of the guest, and of the QEMU process on the machine (which counts what the
emulation of the devices costs, too, but not the time that others took from it on a busy machine).
"""
import json, os
from pathlib import Path

TICKS = os.sysconf('SC_CLK_TCK')


def guest_seconds(host):
    """Processor time that this host's kernel has counted as busy since boot."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, host.out('head -n 1 /proc/stat').split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def emulator_seconds(host):
    fields = Path(f'/proc/{host.vm.process.pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def fio(host, device, options, seconds, watched=(), timeout=300):
    """Runs fio with `options` and returns {iops, mbps, p50_us, p99_us, max_us, ios, guest_us: {host: per I/O}, emulator_us}."""
    before = {h.name: (guest_seconds(h), emulator_seconds(h)) for h in watched}
    command = (f'fio --name=job --filename={device} --direct=1 --ioengine=libaio --group_reporting --output-format=json '
               f'--randrepeat=0 --norandommap {options}')
    if seconds:
        command += f' --time_based --runtime={seconds}'
    text = host.run(command, timeout=timeout).out
    job = json.loads(text[text.index('{'):])['jobs'][0]
    after = {h.name: (guest_seconds(h), emulator_seconds(h)) for h in watched}
    sides = [job[d] for d in ('read', 'write') if job[d]['total_ios']]
    main = max(sides, key=lambda s: s['total_ios'])
    ios = sum(s['total_ios'] for s in sides)
    percentile = main['clat_ns'].get('percentile', {})
    return {'iops': sum(s['iops'] for s in sides), 'mbps': sum(s['bw_bytes'] for s in sides) / 1e6, 'ios': ios,
            'p50_us': percentile.get('50.000000', 0) / 1e3, 'p99_us': percentile.get('99.000000', 0) / 1e3,
            'max_us': main['clat_ns']['max'] / 1e3,
            'guest_us': {n: (after[n][0] - before[n][0]) * 1e6 / ios for n in before},
            'emulator_us': {n: (after[n][1] - before[n][1]) * 1e6 / ios for n in before}}
