#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots hosts of the lab and runs commands in them, for trying things out.

    python3 test/lab/shell.py [--hosts N] [--form] [COMMAND]

COMMAND (for sh) runs in all hosts, one after the other; output is shown, and the exit status is the first bad one's.
Without a command, lines `[HOST:] command` are read from standard input and run one by one (default: the first host; `all:`
for every host; `&` at the end of a line: do not wait); also `HOST: !kill`, `!on`, `!pause`, `!resume`, `!console`. --form makes them a
cluster first. Consoles are checked for kernel trouble at the end and shown if there is any.
"""
import argparse, sys, time
from lablib import Cluster, Lab, LabError, exit_on_signals


def show(host, result):
    for line in (result.out + result.err).splitlines():
        print(f'{host}: {line}', flush=True)
    if result.status:
        print(f'{host}: exit status {result.status}', flush=True)
    return result.status


def special(host, verb):
    {'!kill': host.kill, '!on': host.power_on, '!pause': host.pause, '!resume': host.resume,
     '!console': lambda: print(host.vm.console())}[verb]()
    return 0


def line(lab, text, timeout):
    where, _, command = text.partition(':')
    hosts = lab.hosts if where == 'all' else [h for h in lab.hosts if h.name == where]
    if not hosts:
        hosts, command = lab.hosts[:1], text
    status = 0
    for h in hosts:
        try:
            if command.strip().startswith('!'):
                special(h, command.strip())
            elif command.rstrip().endswith('&'):
                h.start(command.rstrip()[:-1], lambda data, h=h: print(f'{h}: {data.decode(errors="replace")}', end='', flush=True))
            else:
                status = show(h, h.run(command, check=False, timeout=timeout)) or status
        except (LabError, KeyError) as e:
            print(f'{h}: {e}', flush=True)
            status = 1
    return status


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('--hosts', type=int, default=1)
    args.add_argument('--memory', type=int, default=640, help='MiB a host')
    args.add_argument('--cpus', type=int, default=1)
    args.add_argument('--timeout', type=float, default=120, help='seconds a command')
    args.add_argument('--form', action='store_true', help='install and form a cluster')
    args.add_argument('command', nargs='?')
    args = args.parse_args()
    exit_on_signals()
    status, began = 0, time.monotonic()
    with Lab('shell') as lab:
        lab.boot(args.hosts, memory_mb=args.memory, cpus=args.cpus)
        print(f'-- {args.hosts} hosts after {time.monotonic() - began:.1f} s: {", ".join(h.name for h in lab.hosts)}', flush=True)
        if args.form:
            Cluster(lab).form()
            print(f'-- cluster after {time.monotonic() - began:.1f} s', flush=True)
        if args.command:
            for h in lab.hosts:
                status = show(h, h.run(args.command, check=False, timeout=args.timeout)) or status
        else:
            for text in sys.stdin:
                if text.strip():
                    status = line(lab, text.strip(), args.timeout) or status
        bad = lab.trouble()
        if bad:
            print('-- kernel trouble:', *bad, sep='\n')
            for h in lab.hosts:
                print(f'-- console of {h}\n{h.vm.console()[-20000:]}')
            status = status or 1
    sys.exit(status)


main()
