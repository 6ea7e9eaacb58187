# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of fio in a host, and what it cost on each host.

Processor time and context switches are what carries over from emulated hosts to real ones. Processor time is taken twice: from
/proc/stat of the guest, and of the QEMU process on the machine (which counts what the emulation of the devices costs, too, but not the
time that others took from it on a busy machine).
"""
import json, os
from pathlib import Path

TICKS = os.sysconf('SC_CLK_TCK')


def counters(host):
    """Of this host since boot: seconds that its kernel has counted as busy, context switches, seconds of the QEMU process."""
    lines = dict(line.split(maxsplit=1) for line in host.out('grep -e "^cpu " -e ^ctxt /proc/stat').splitlines())
    user, nice, system, _idle, _iowait, irq, softirq = map(int, lines['cpu'].split()[:7])
    emulator = Path(f'/proc/{host.vm.process.pid}/stat').read_text().rsplit(')', 1)[1].split()
    return {'guest_us': (user + nice + system + irq + softirq) * 1e6 / TICKS, 'switches': int(lines['ctxt']),
            'emulator_us': (int(emulator[11]) + int(emulator[12])) * 1e6 / TICKS}


def fio(host, device, options, seconds, watched=(), timeout=300):
    """Runs fio with `options` and returns {iops, mbps, p50_us, p99_us, max_us, ios, and {host: per I/O} of guest_us, emulator_us, switches}."""
    before = {h.name: counters(h) for h in watched}
    command = (f'fio --name=job --filename={device} --direct=1 --ioengine=libaio --group_reporting --output-format=json '
               f'--randrepeat=0 --norandommap {options}')
    if seconds:
        command += f' --time_based --runtime={seconds}'
    text = host.run(command, timeout=timeout).out
    job = json.loads(text[text.index('{'):])['jobs'][0]
    after = {h.name: counters(h) for h in watched}
    sides = [job[d] for d in ('read', 'write') if job[d]['total_ios']]
    main = max(sides, key=lambda s: s['total_ios'])
    ios = sum(s['total_ios'] for s in sides)
    percentile = main['clat_ns'].get('percentile', {})
    return {'iops': sum(s['iops'] for s in sides), 'mbps': sum(s['bw_bytes'] for s in sides) / 1e6, 'ios': ios,
            'p50_us': percentile.get('50.000000', 0) / 1e3, 'p99_us': percentile.get('99.000000', 0) / 1e3,
            'max_us': main['clat_ns']['max'] / 1e3,
            **{k: {n: (after[n][k] - before[n][k]) / ios for n in before} for k in ('guest_us', 'emulator_us', 'switches')}}
