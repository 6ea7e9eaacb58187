# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make bench` measured, as a table for people and as plots."""
import statistics

CPU_LEAST = 0.7			# processor time per write, to DRBD's: at most


def of(samples, job, target, host='alpha'):
    return sorted((s for s in samples if (s['job'], s['target'], s['host']) == (job, target, host)), key=lambda s: s['round'])


def ratios(samples, job, value, target='lockstep', base='drbd', host='alpha'):
    """Of each round: what target has to what base has, both on that round's machine."""
    pairs = zip(of(samples, job, target, host), of(samples, job, base))
    return [value(a) / value(b) for a, b in pairs if value(b)]


def middle(values):
    return statistics.median(values) if values else float('nan')


def spread(values):
    return f'{middle(values):.2f} ({min(values):.2f} to {max(values):.2f})' if values else '-'


def row(*cells):
    return '| ' + ' | '.join(str(c) for c in cells) + ' |'


def verdict(good):
    return 'yes' if good else '**no**'


def table(result, targets):
    samples = result['samples']
    lines = [row('job', 'disk', 'DRBD', 'Lockstep', 'to DRBD', 'wanted', 'met', 'p50', 'p99', 'CPU primary', 'CPU secondary'),
             row(*['---'] + ['---:'] * 10)]
    for job in dict.fromkeys(s['job'] for s in samples):
        iops = lambda t: f'{middle([s["iops"] for s in of(samples, job, t)]):,.0f}'
        r = ratios(samples, job, lambda s: s['iops'])
        part = lambda f: f'{middle(ratios(samples, job, f)):.2f}'
        lines.append(row(job, iops('raw'), iops('drbd'), iops('lockstep'), spread(r), f'{targets[job]:.1f}', verdict(middle(r) >= targets[job]),
                         part(lambda s: s['p50_us']), part(lambda s: s['p99_us']), part(lambda s: s['emulator_us']['alpha']),
                         part(lambda s: s['emulator_us']['beta'])))
    return lines


def cpu(result):
    lines = [row('job', 'host', 'DRBD, guest', 'Lockstep, guest', 'ratio', 'DRBD, QEMU', 'Lockstep, QEMU', 'ratio'), row(*['---'] * 2 + ['---:'] * 6)]
    samples = result['samples']
    for job in dict.fromkeys(s['job'] for s in samples if 'write' in s['job']):
        for host in ('alpha', 'beta'):
            cells = [job, host]
            for kind in ('guest_us', 'emulator_us'):
                for target in ('drbd', 'lockstep'):
                    cells.append(f'{middle([s[kind][host] for s in of(samples, job, target)]):,.0f}')
                cells.append(spread(ratios(samples, job, lambda s: s[kind][host])))
            lines.append(row(*cells))
    return lines


def title(result, part, text):
    """A heading; if this part was measured in another run than the table was, which one."""
    run = result['of'][part]
    return ['', '## ' + text, ''] + ([f'{origin(run)}.', ''] if run != result['of']['jobs'] else [])


def origin(run):
    return f'{run["date"]}, {run["machine"]}, accelerator {run["accelerator"]}, kernel {run["kernel"]}, `{run["command"]}`'


def rest(result):
    lines = []
    remote = [s for s in result['samples'] if s['host'] == 'gamma']
    if remote:
        lines += ['', f'From a host without a replica, {remote[0]["job"]}: {middle([s["iops"] for s in remote]):,.0f} IOPS, to the same on the '
                  f'primary {spread(ratios(result["samples"], remote[0]["job"], lambda s: s["iops"], base="lockstep", host="gamma"))}.']
    lines += ['', '## First touch of a new volume, sequential', '', *[
        f'- {n}: {s["mbps"]:,.0f} MB/s' for n, s in result['first'].items()]]
    if 'encryption' in result:
        lines += [*title(result, 'encryption', 'IOPS with lanes encrypted by the kernel (the default), to plain ones'),
                  'DRBD encrypts nothing, so all else here is measured with `lane-encryption off`. An emulated processor has no AES worth the name.', '',
                  *[f'- {job}: {spread(r)}' for job, r in result['encryption'].items()]]
    if 'resync' in result:
        lines += [*title(result, 'resync', 'Resync of 256 MiB while 4 KiB writes go on at depth 1'),
                  row('', 'resync', 'p99 idle', 'p99 meanwhile', 'ratio', 'IOPS kept'),
                  row(*['---'] + ['---:'] * 5)]
        lines += [row(r['target'], f'{r["seconds"]:.1f} s', f'{r["idle_p99_us"] / 1e3:.1f} ms', f'{r["busy_p99_us"] / 1e3:.1f} ms',
                      f'{r["busy_p99_us"] / r["idle_p99_us"]:.2f}', f'{100 * r["busy_iops"] / r["idle_iops"]:.0f} %') for r in result['resync']]
    if 'many' in result:
        lines += [*title(result, 'many', 'Many volumes of two replicas, on their primary: 4 KiB writes to all at once, depth 32 together'), *many(result)]
    ms = lambda us: f'{middle(us) / 1e3:.0f} ms ({min(us) / 1e3:.0f} to {max(us) / 1e3:.0f})'
    if 'handover' in result:
        found = result['handover']
        lines += [*title(result, 'handover', 'Planned handover (wanted: under 100 ms): the longest that a write of a third host took in 4 s, at depth 1'),
                  f'- with one, {len(found["moved"])} times: {ms(found["moved"])}', f'- without: {ms(found["still"])}']
    if 'snapshots' in result:
        lines += [*title(result, 'snapshots', 'A snapshot of two replicas (wanted: under 200 ms): the longest that a write of the primary\'s host took in 4 s, at depth 1'),
                  *[f'- {kind} pools, {len(found["taken"])} times: {ms(found["taken"])}, without {ms(found["still"])}' for kind, found in result['snapshots'].items()]]
    if 'failover' in result:
        lines += [*title(result, 'failover', "Death of the primary's host, silent: the longest that a write of another host took"),
                  *[f'- it {"led" if k == "leader" else "did not lead"} the consensus group: {v:.2f} s' for k, v in result['failover'].items()]]
    if 'life' in result:
        lines += [*title(result, 'life', 'A volume of 64 MiB, two replicas, medians of 5'), *[f'- {k}: {v:.2f} s' for k, v in result['life'].items()]]
    return lines


def many(result):
    rows = {t: [m for m in result['many'] if m['target'] == t] for t in ('drbd', 'lockstep')}
    beside = {d['volumes']: d for d in rows['drbd']}
    lines = [row('volumes', 'DRBD, IOPS', 'Lockstep, IOPS', 'to DRBD', 'p99 to DRBD', "DRBD's threads", "module's threads", "daemon's threads",
                 "daemon's memory"), row(*['---:'] * 9)]
    for m in rows['lockstep']:
        d = beside.get(m['volumes'])
        ratio = lambda key: f'{m[key] / d[key]:.2f}' if d else '-'
        lines.append(row(f'{m["volumes"]:,}', f'{d["iops"]:,.0f}' if d else '-', f'{m["iops"]:,.0f}', ratio('iops'), ratio('p99_us'), d['threads'] if d else '-',
                         m['threads'], m['daemon_threads'], f'{m["daemon_kib"] / 1024:.1f} MiB'))
    # not from the first row: in that there may be what the jobs before it left
    each = {t: grown(*r[-2:]) for t, r in rows.items() if len(r) > 1}
    if 'lockstep' not in each:
        return lines
    plain = result['plain_lv_kib']
    return lines + ['', f'Memory of the kernel for each more volume: {each["lockstep"]:.0f} KiB, {plain:.0f} of them for its logical '
                    f'volume alone: {each["lockstep"] - plain:.0f} KiB are ours (wanted: 100).' + (f' DRBD: {each["drbd"]:.0f} KiB.' if 'drbd' in each else '')]


def grown(first, last):
    return (last['kernel_kib'] - first['kernel_kib']) / (last['volumes'] - first['volumes'])


def plot(result, folder):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    samples = result['samples']
    jobs = list(dict.fromkeys(s['job'] for s in samples))[::-1]
    for name, title, value in (('iops', 'IOPS, Lockstep to DRBD (more is better)', lambda s: s['iops']),
                               ('cpu', 'processor time per I/O on the primary, Lockstep to DRBD (less is better)', lambda s: s['emulator_us']['alpha']),
                               ('latency', 'median latency, Lockstep to DRBD (less is better)', lambda s: s['p50_us'])):
        figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(jobs) + 1.2))
        rounds = [ratios(samples, j, value) or [0] for j in jobs]
        middles = [middle(r) for r in rounds]
        axes.barh(jobs, middles, color='#4878a8', xerr=[[m - min(r) for m, r in zip(middles, rounds)], [max(r) - m for m, r in zip(middles, rounds)]],
                  error_kw={'ecolor': '#444444', 'capsize': 3})
        axes.axvline(1, color='black', linewidth=0.8)
        axes.set_title(title, fontsize=10)
        figure.tight_layout()
        figure.savefig(folder / f'{name}.png', dpi=100)
        pyplot.close(figure)


def write(result, targets, folder):
    lines = ['# Lockstep, DRBD and the disk', '',
             f'{origin(result["of"]["jobs"])}: '
             f'{result["rounds"]} rounds of {result["seconds"]} s a job. Virtual hosts of one processor each, two of them with replicas; '
             'DRBD is the kernel\'s own (8.4), protocol C, tuned. Where processors are emulated, absolute figures mean nothing elsewhere; '
             'ratios are medians of the rounds (least to greatest), CPU is processor time per I/O of the host\'s QEMU process.', '',
             'IOPS; p50, p99 and CPU are Lockstep\'s to DRBD\'s.', '', *table(result, targets), '', '![IOPS](iops.png)', '',
             '![latency](latency.png)', '', f'## Processor time per I/O, in us (wanted: at most {CPU_LEAST} of DRBD\'s)', '', *cpu(result), '',
             '![CPU](cpu.png)', *rest(result), '']
    (folder / 'RESULTS.md').write_text('\n'.join(lines))
    plot(result, folder)
