#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo: a disk that survives its host, on three virtual hosts with the stock kernel.

      alpha            beta            gamma
    replica 1        replica 2       (the third vote)
        |                |                |
    ----+----------------+----------------+----   storage network

alpha puts a file system on a volume and is killed in the middle of writing to it; beta goes on with it. What alpha's
programs had been told to be durable, by fsync(), must all be there. The evidence of that leaves alpha before the kill: two
writers report each completed fsync over the agent's stream to this process.

  fio       in rounds: 128 writes of 4 KiB with verify headers at random places of a new file, an fsync after every 4, one at the
            end. A round that fio ended with status 0 is a round whose every write it saw completed and synced
  fsynclog  1 to 8 overwriting writes, fsync, a line with the number of the last write; again and again (fsynclog.c)

Ends with a table of what was proved; exit status 0 only if all of it was. Leaves nothing behind, on Ctrl-C neither.
"""
import contextlib, hashlib, json, shutil, sys, tempfile, time
from pathlib import Path

from lablib import Cluster, Lab, LabError, SyncLog, differing_chunks, digests, exit_on_signals, last_number, together, wait
from lablib import image, kernel
from lablib.paths import BUILD

TREE = Path('/usr/share/doc')
TREE_BYTES = 32 << 20			# a deterministic part of the tree: every n-th file, so that n is the least that fits
VOLUME_BYTES = 1 << 30
ROUNDS, LOG_WRITES = 6, 500		# the least of evidence before the kill
ROUND_BYTES = 512 << 10
LOG_PAUSE_MS = 40
FIO = ('--size={size} --rw=randwrite --bs=4k --ioengine=psync --fallocate=none --thread --verify=crc32c --verify_fatal=1 '
       '--verify_state_save=0').format(size=ROUND_BYTES)
LOAD = f"""mkdir -p /mnt/load; n=0
while :; do
	n=$((n + 1)); echo "start $n"
	fio --name=round$n --filename=/mnt/load/fio.$n --randseed=$n {FIO} --do_verify=0 --fsync=4 --end_fsync=1 --minimal >/dev/null || exit 1
	echo "done $n"
done"""

began = time.monotonic()
proofs = []				# (what, detail, good)


def now():
    return time.monotonic() - began


def say(text):
    print(f'{now():6.1f} s  {text}', flush=True)


def prove(what, good, detail):
    proofs.append((what, detail, bool(good)))
    say(f'{"proved" if good else "FAILED"}: {what}: {detail}')
    return good


def tree_image():
    """A read-only file system image with the part of the tree and its checksums; (path, number of files, bytes)."""
    files = sorted(p for p in TREE.rglob('*') if p.is_file() and not p.is_symlink() and '\n' not in str(p) and '\\' not in str(p))
    sizes = {p: p.stat().st_size for p in files}
    step = next(n for n in range(1, len(files) + 1) if sum(sizes[p] for p in files[::n]) <= TREE_BYTES)
    chosen = files[::step]
    mark = hashlib.sha256(''.join(f'{p} {sizes[p]} {p.stat().st_mtime_ns}\n' for p in chosen).encode()).hexdigest()[:16]
    made, facts = BUILD / f'tree-{mark}.ext4', (len(chosen), sum(sizes[p] for p in chosen))
    with image.locked('tree'):
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=BUILD) as t:
                sums = []
                for p in chosen:
                    name = p.relative_to(TREE)
                    target = Path(t) / 'doc' / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(p, target)
                    sums.append(f'{hashlib.sha256(target.read_bytes()).hexdigest()}  doc/{name}\n')
                (Path(t) / 'SHA256SUMS').write_text(''.join(sums))
                image.pack(t, made, facts[1] + 4096 * facts[0] + (32 << 20), ['-O', '^has_journal', '-m', '0'])
            for old in set(BUILD.glob('tree-*.ext4')) - {made}:
                old.unlink()
    return (made, *facts)


def boot(lab, tree):
    kind, _ = kernel.accelerator()
    say(f'booting alpha, beta, gamma with the kernel {kernel.release()}'
        f' ({"with" if kind == "kvm" else "without"} hardware virtualisation)')
    hosts = lab.boot(3, data_bytes=3 << 30, extra_disks=[tree])
    say('all three are up')
    return hosts


def prepare(hosts):
    together(lambda h: h.install('--disks /dev/vdb --thin'), hosts)
    loaded = [h.out('uname -r') for h in hosts if h.run('test -e /sys/module/lockstep', check=False).status == 0]
    if len(loaded) != len(hosts):
        raise LabError('the module lockstep is not loaded on every host')
    say(f'scripts/install --disks /dev/vdb --thin: lockstep.ko loaded into {loaded[0]}, thin pool lockstep_group/thin_device made, on each host')


def form(hosts):
    cluster = Cluster(hosts[0].lab, hosts)
    together(lambda h: h.configure(), hosts)
    a, *rest = hosts
    a.lockstep('cluster init --name demo')
    for h in rest:
        h.lockstep(f'cluster join {a.out("lockstep cluster token")} {a.address}')
    say('three lockstepd form a cluster: lockstep cluster init on alpha, lockstep cluster join with a token on the others; all they say goes over TLS')
    for h in hosts:
        a.lockstep(f'pool create default --vg lockstep_group --thin thin_device --host {h.name}')
    a.lockstep('volume create disk 1GiB --redundancy 2 --on alpha,beta', timeout=120)
    say('volume disk made: 1 GiB, replicas on alpha and beta')
    return cluster


def fill(a, files, size):
    a.run('mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 /dev/lockstep/disk && mount /dev/lockstep/disk /mnt && '
          'mkdir -p /tree && mount -o ro /dev/vdd /tree', timeout=90)
    a.run('cp -a /tree/. /mnt/ && sync -f /mnt && umount /tree', timeout=150)
    say(f'alpha made an ext4 file system on /dev/lockstep/disk, with {files} files of {TREE} ({size >> 20} MiB)')


def load_and_kill(a):
    """Returns (rounds that fio completed, the SyncLog, time of the kill)."""
    fio = a.start(LOAD)
    wait(lambda: last_number(fio, 'start') or not fio.running, 20, 'fio to start')
    log = SyncLog(a, '/mnt/load/log', pause_ms=LOG_PAUSE_MS)
    say('alpha writes: fio with verify headers, and fsynclog')

    def enough():
        ended = not (fio.running and log.process.running)
        # in the middle of a round: it began a while ago and has not ended
        return ended or (last_number(fio, 'done') >= ROUNDS and log.acked >= LOG_WRITES
                         and last_number(fio, 'start') > last_number(fio, 'done'))
    wait(enough, 120, 'enough evidence of the load')
    for p in (fio, log.process):
        if not p.running:
            raise LabError(f'the load on alpha ended by itself: {p.wait(1)}')
    written = f'stat -c %b /mnt/load/fio.{last_number(fio, "start")}'
    wait(lambda: a.run(written, check=False).out.strip() not in ('', '0'), 20, 'the round to have written something')
    a.kill()
    killed = time.monotonic()
    rounds = last_number(fio, 'done')
    say(f'alpha killed (SIGKILL) while it writes; fio had completed {rounds} rounds, fsynclog write {log.acked}')
    return rounds, log, killed


def take_over(b, killed):
    b.run('exec 3<>/dev/lockstep/disk', timeout=60)
    seconds = time.monotonic() - killed
    prove('another host goes on with the volume', True, f'opened on beta {seconds:.1f} s after the kill')
    replay = b.run('e2fsck -fp /dev/lockstep/disk', check=False, timeout=120)
    clean = b.run('e2fsck -fn /dev/lockstep/disk', check=False, timeout=120)
    prove('the file system is whole', replay.status in (0, 1) and clean.status == 0,
          f'e2fsck replayed the journal (status {replay.status}) and then found nothing (status {clean.status})')
    b.run('mount /dev/lockstep/disk /mnt', timeout=60)


def verify(b, files, rounds, log):
    sums = b.run('cd /mnt && sha256sum --quiet -c SHA256SUMS && find doc -type f | wc -l && wc -l <SHA256SUMS', check=False, timeout=150)
    prove('every file is intact', sums.status == 0 and sums.out.split() == [str(files)] * 2,
          f'{files} files, SHA-256 as before' if sums.status == 0 else (sums.err or sums.out).strip()[-200:])
    jobs = ' '.join(f'--name=round{n} --filename=/mnt/load/fio.{n} --randseed={n}' for n in range(1, rounds + 1))
    fio = b.run(f'fio {FIO} --verify_only --output-format=json {jobs}', check=False, timeout=150)
    read = 0
    with contextlib.suppress(ValueError, KeyError):
        read = sum(j['read']['total_ios'] for j in json.loads(fio.out[fio.out.index('{'):])['jobs'] if not j['error'])
    expected = rounds * ROUND_BYTES // 4096
    prove('every write that fio saw synced is there', fio.status == 0 and read == expected,
          f'{read} of {expected} verified in {rounds} rounds' + (f'; {fio.err.strip()[:160]}' if fio.status else ''))
    good, line = log.check(b)
    prove('every write that fsynclog saw synced is there', good, line)


def resync(a, b):
    b.run('dd if=/dev/urandom of=/mnt/while-away bs=64k count=64 conv=fsync', timeout=60)
    say('beta writes 4 MiB more while alpha is away; starting alpha again')
    began_at = time.monotonic()
    a.power_on()
    say('alpha is up')
    waited = b.run('lockstep wait-sync disk --timeout 120', check=False, timeout=130)
    volume = b.lockstep('status disk --json')['volumes'][0]
    states = {r['host']: r['state'] for r in volume['replicas']}
    prove('the lost host comes back into sync by itself', waited.status == 0 and set(states.values()) == {'insync'},
          f'{time.monotonic() - began_at:.1f} s after power on; ' + ', '.join(f'{h} {s}' for h, s in sorted(states.items())))
    print(b.run('lockstep status', check=False).out.rstrip(), flush=True)


def compare(cluster, b):
    b.run('umount /mnt && sync', timeout=60)
    found = digests(cluster, 'disk')
    (one, chunks), other = found['alpha'], found['beta']
    good = (one, chunks) == other and chunks > 0
    prove('both replicas are the same, bit for bit', good, f'the {VOLUME_BYTES >> 20} MiB of data in the LVs on alpha and beta: '
          f'SHA-256 {one[:16]}..., {chunks} chunks of 64 KiB that are not zeros' if good else str(found))
    if not good:
        offsets = differing_chunks(cluster, 'disk')
        say(f'{len(offsets)} chunks of 64 KiB differ, the first at {offsets[:8]}')


def leftovers(lab, processes, namespace):
    """What of the demo is still there, as a list of words."""
    found = [f'process {p.pid}' for p in processes if p.poll() is None]
    found += [f'network namespace {namespace}'] if namespace and Path('/run/netns', namespace).exists() else []
    found += [str(lab.folder)] if lab.folder.exists() else []
    return found


def story(lab):
    tree, files, size = tree_image()
    hosts = a, b, _ = boot(lab, tree)
    prepare(hosts)
    cluster = form(hosts)
    fill(a, files, size)
    rounds, log, killed = load_and_kill(a)
    take_over(b, killed)
    verify(b, files, rounds, log)
    resync(a, b)
    compare(cluster, b)


def table():
    width = max(len(what) for what, _, _ in proofs)
    print('\nWhat was proved')
    for what, detail, good in proofs:
        print(f'  {"yes" if good else "NO ":3}  {what:{width}}  {detail}')
    print(f'Total time {now():.0f} s', flush=True)


def main():
    exit_on_signals()
    lab = Lab('demo')
    processes, namespace = [], lab.networks.namespace
    try:
        with lab:
            try:
                story(lab)
            except LabError as e:
                prove('the story runs to its end', False, str(e).splitlines()[0][:300])
            bad = lab.trouble()
            prove('no kernel complained', not bad, f'{len(lab.hosts)} consoles' if not bad else bad[0])
            processes = [h.vm.process for h in lab.hosts if h.vm.process]
            if not all(good for _, _, good in proofs):
                lab.keep('demo')
    finally:
        lab.close()
    left = leftovers(lab, processes, namespace)
    prove('nothing is left behind', not left, 'no process, network namespace, tap or file' if not left else ', '.join(left))
    table()
    return 0 if all(good for _, _, good in proofs) else 1


if __name__ == '__main__':
    sys.exit(main())
