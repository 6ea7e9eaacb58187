# SPDX-License-Identifier: GPL-2.0-or-later
"""The stock Debian kernel, made quick to boot; the initramfs; and the choice of accelerator.

Decompressing its own image takes a kernel several seconds under TCG, so the payload is taken out of /boot/vmlinuz here
and booted as a plain ELF vmlinux (PVH entry). The initramfs holds busybox and only the modules needed to reach the
root disk; everything else is in the root image (image.py).

There are machines whose /dev/kvm starts a guest and then never gets anywhere. A flag in /proc does not tell; a probe
boot does: the same kernel with an initramfs that prints one line and powers off, within PROBE_SECONDS. The verdict
holds for one boot of the machine.
"""
import functools, gzip, lzma, os, shutil, struct, subprocess, tempfile
from pathlib import Path

from .paths import BUILD, DEBUG_KERNEL, GUEST, TOP, LabError

# LAB_KERNEL: a suite whose kernel scripts/kernels --image has fetched; otherwise the machine's own
OTHER = TOP / 'build/kernels' / os.environ['LAB_KERNEL'] if os.environ.get('LAB_KERNEL') else None
ROOT = OTHER / 'image' if OTHER else Path('/')
PROBE_SECONDS = 10
PROBE_WORD = b'LAB-PROBE-OK'
BOOT_MODULES = ('virtio_pci', 'virtio_blk', 'virtio_console', 'virtio_net', 'virtio_rng', 'ext4', 'crc32c_generic',
                'overlay')


@functools.cache
def release():
    """Version of the newest installed kernel that has modules, as in `uname -r`."""
    found = [p.name for p in (ROOT / 'lib/modules').glob('*') if (p / 'modules.dep').exists()
             and (ROOT / f'boot/vmlinuz-{p.name}').exists()]
    if not found:
        raise LabError(f'no kernel found in {ROOT}: run scripts/setup, or scripts/kernels --image')
    return max(found, key=lambda r: [int(n) for n in ''.join(c if c.isdigit() else ' ' for c in r).split()])


def newer(made, *sources):
    return made.exists() and all(made.stat().st_mtime >= Path(s).stat().st_mtime for s in sources)


def publish(temporary, final):
    """Renames a finished file into place, so that nobody ever sees half of it."""
    os.replace(temporary, final)


def decompress(data):
    if data[:6] == b'\xfd7zXZ\0':
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)
    if data[:2] == b'\x1f\x8b':
        return gzip.decompress(data)
    if data[:4] == b'\x28\xb5\x2f\xfd':
        # the payload is followed by its length, which zstd takes for a damaged frame after having written everything
        return subprocess.run(['zstd', '-dcq'], input=data[:-4], stdout=subprocess.PIPE, check=True).stdout
    raise LabError(f'the kernel is compressed in a way not known here (starts with {data[:6].hex()})')


def vmlinux():
    """Path of the decompressed kernel; made on first use. One with KASAN stays as it is: the PVH entry runs C code before
    KASAN's shadow is there."""
    source = ROOT / f'boot/vmlinuz-{release()}'
    if DEBUG_KERNEL:
        return source
    made = BUILD / f'vmlinux-{release()}'
    if newer(made, source):
        return made
    BUILD.mkdir(parents=True, exist_ok=True)
    image = source.read_bytes()
    if image[0x202:0x206] != b'HdrS':
        raise LabError(f'{source} is not a bzImage')
    setup_sectors = image[0x1f1] or 4
    offset, length = struct.unpack_from('<II', image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    elf = decompress(image[start:start + length])
    if elf[:4] != b'\x7fELF':
        raise LabError(f'{source}: its payload is not an ELF file')
    temporary = made.with_suffix(f'.{os.getpid()}')
    temporary.write_bytes(elf)
    publish(temporary, made)
    return made


@functools.cache
def dependencies():
    """modules.dep: module name -> (path below /lib/modules/RELEASE, names it needs)."""
    deps = {}
    name = lambda path: Path(path).name.split('.ko')[0].replace('-', '_')
    for line in (ROOT / f'lib/modules/{release()}/modules.dep').read_text().splitlines():
        path, _, needs = line.partition(':')
        deps[name(path)] = (path, [name(n) for n in needs.split()])
    return deps


def with_dependencies(names):
    """Paths of the modules in an order in which insmod succeeds. Names that are not modules are built in: left out."""
    deps, order = dependencies(), []

    def visit(n):
        n = n.replace('-', '_')
        if n in deps and deps[n][0] not in order:
            for need in reversed(deps[n][1]):
                visit(need)
            order.append(deps[n][0])
    for n in names:
        visit(n)
    return [ROOT / f'lib/modules/{release()}' / p for p in order]


def cpio(folder, made):
    files = subprocess.run(['find', '.', '-mindepth', '1', '-print0'], cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    temporary = made.with_suffix(f'.{os.getpid()}')
    with open(temporary, 'wb') as out:
        subprocess.run(['cpio', '--null', '-o', '-H', 'newc', '--quiet'], cwd=folder, input=files, stdout=out, check=True)
    publish(temporary, made)


def stage_initramfs(folder, init, modules):
    for d in ('bin', 'dev', 'proc', 'sys', 'root', 'ro', 'rw', 'modules'):
        (folder / d).mkdir()
    shutil.copy2('/bin/busybox', folder / 'bin' / 'busybox')
    (folder / 'bin' / 'sh').symlink_to('busybox')
    for m in modules:
        shutil.copyfile(m, folder / 'modules' / m.name)
    (folder / 'modules' / 'order').write_text(''.join(f'{m.name}\n' for m in modules))
    (folder / 'init').write_text(init)
    (folder / 'init').chmod(0o755)


def initramfs():
    source, made = GUEST / 'init', BUILD / f'initramfs-{release()}.cpio'
    if newer(made, source, __file__, '/bin/busybox'):
        return made
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as t:
        stage_initramfs(Path(t), source.read_text(), with_dependencies(BOOT_MODULES))
        cpio(t, made)
    return made


def probe(accel):
    """Boots the kernel to a line of output with this accelerator; False if it does not get there in time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as t:
        root = Path(t) / 'root'
        root.mkdir()
        stage_initramfs(root, f'#!/bin/sh\necho {PROBE_WORD.decode()} >/dev/console\n/bin/busybox poweroff -f\n', [])
        cpio(root, Path(t) / 'probe.cpio')
        try:
            out = subprocess.run(
                ['qemu-system-x86_64', '-machine', 'pc', '-accel', accel, '-cpu', 'max', '-m', '256', '-nodefaults',
                 '-no-user-config', '-display', 'none', '-no-reboot', '-serial', 'stdio', '-kernel', vmlinux(),
                 '-initrd', Path(t) / 'probe.cpio', '-append', 'console=ttyS0 quiet panic=-1'],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=PROBE_SECONDS).stdout
        except subprocess.TimeoutExpired:
            return False
    return PROBE_WORD in out


@functools.cache
def accelerator():
    """('kvm' or 'tcg', options for QEMU). LAB_ACCEL=kvm|tcg overrides the probe."""
    kind = os.environ.get('LAB_ACCEL')
    if kind not in ('kvm', 'tcg'):
        verdict = BUILD / 'accelerator'
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        known = verdict.read_text().split() if verdict.exists() else []
        if len(known) == 2 and known[0] == boot:
            kind = known[1]
        else:
            kind = 'kvm' if os.access('/dev/kvm', os.R_OK | os.W_OK) and probe('kvm') else 'tcg'
            BUILD.mkdir(parents=True, exist_ok=True)
            verdict.write_text(f'{boot} {kind}\n')
    if kind == 'kvm':
        return kind, ['-accel', 'kvm', '-cpu', 'host']
    return kind, ['-accel', 'tcg,thread=multi,tb-size=256', '-cpu', 'max,la57=off']


TSC_PROGRAM = r"""
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC_RAW, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }
int main(void)
{
	double best_ms = 1e9, khz = 0;
	for (int i = 0; i < 5; i++) {
		struct timespec pause = { .tv_nsec = 50000000 };
		double a0 = now(); unsigned long long t0 = __rdtsc(); double a1 = now();
		nanosleep(&pause, NULL);
		double b0 = now(); unsigned long long t1 = __rdtsc(); double b1 = now();
		double doubt_ms = (a1 - a0) + (b1 - b0);
		if (doubt_ms < best_ms) { best_ms = doubt_ms; khz = (t1 - t0) / ((b0 + b1 - a0 - a1) / 2); }
	}
	printf("%.0f\n", khz);
}
"""


@functools.cache
def clock_options():
    """Kernel options that tell a host under TCG the rate of its TSC, which is this machine's.

    Left to itself the guest measures it against an emulated timer, and on a loaded machine gets it wrong by a factor: its
    clock then runs several times too fast or too slow, and the promises of the replication rules mean nothing."""
    if accelerator()[0] == 'kvm' or os.uname().machine != 'x86_64':
        return ''
    with tempfile.TemporaryDirectory() as t:
        subprocess.run(['gcc', '-O1', '-o', f'{t}/tsc', '-xc', '-'], input=TSC_PROGRAM.encode(), check=True)
        return 'tsc_early_khz=' + subprocess.run([f'{t}/tsc'], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
