# SPDX-License-Identifier: GPL-2.0-or-later
"""The root image: one read-only ext4 file that all hosts of the lab share.

It holds the machine's own programs with the shared libraries that ldd names, the kernel modules a scenario may want,
and the product under test. Nothing is mounted to make it: mke2fs -d copies a staged folder. It is made again when any
of its sources changed.
"""
import fcntl, hashlib, os, shutil, subprocess, tempfile
from contextlib import contextmanager
from pathlib import Path

from . import kernel
from .paths import BUILD, GUEST, LAB, TOP, LabError

PROGRAMS = """
bash dash udevadm dmsetup lvm fio mke2fs e2fsck debugfs resize2fs tune2fs dumpe2fs tar kmod ip bridge ss tc
mount umount wipefs lsblk blkdiscard fstrim blockdev blkid findmnt losetup flock fallocate dmesg taskset hexdump setpriv
pdata_tools thin_check thin_dump thin_repair thin_delta thin_metadata_size thin_rmap thin_ls
sha256sum sha512sum md5sum cmp dd nice sync timeout truncate stat find xargs sort sed awk grep strace perf
drbdadm drbdmeta drbdsetup drbdadm-84 drbdsetup-84
""".split()
# used when the machine has them; for awk and hexdump there is busybox; DRBD is for `make bench`
OPTIONAL = {'strace', 'perf', 'awk', 'hexdump', 'drbdadm', 'drbdmeta', 'drbdsetup', 'drbdadm-84', 'drbdsetup-84'}
LINKS = {'kmod': ['modprobe', 'insmod', 'rmmod', 'lsmod', 'depmod', 'modinfo'],
         'lvm': ['pvs', 'vgs', 'lvs', 'pvcreate', 'vgcreate', 'lvcreate', 'pvremove', 'vgremove', 'lvremove', 'lvchange',
                 'vgchange', 'pvchange', 'lvextend', 'lvresize', 'lvrename', 'pvscan', 'vgscan', 'vgextend', 'lvconvert',
                 'pvresize', 'vgreduce', 'lvdisplay', 'vgdisplay', 'pvdisplay', 'lvreduce', 'vgcfgbackup', 'vgrename',
                 'lvmconfig', 'lvmdevices', 'pvmove', 'lvscan', 'vgck'],
         'mke2fs': ['mkfs.ext4', 'mkfs.ext3', 'mkfs.ext2'], 'e2fsck': ['fsck.ext4', 'fsck.ext3', 'fsck.ext2']}
PLAIN = ['/lib/udev/rules.d', '/lib/udev/hwdb.bin', '/etc/udev/udev.conf', '/etc/lvm', '/etc/mke2fs.conf', '/etc/passwd',
         '/etc/group', '/etc/nsswitch.conf', '/etc/ld.so.conf', '/etc/ld.so.conf.d', '/etc/protocols', '/etc/services',
         '/etc/systemd/network', '/lib/modprobe.d', '/sbin/blkdeactivate']
MODULE_FOLDERS = ['kernel/drivers/md', 'kernel/drivers/block', 'kernel/drivers/virtio', 'kernel/net/tls',
                  'kernel/net/sched', 'kernel/net/netfilter', 'kernel/net/ipv4', 'kernel/fs/ext4', 'kernel/fs/xfs',
                  'kernel/fs/overlayfs', 'kernel/lib', 'kernel/crypto', 'kernel/arch/x86/crypto']
MODULES = ['virtio_net', 'virtio_console', 'virtio_blk', 'virtio_rng', 'scsi_debug', 'sd_mod', 'dm_flakey', 'nf_tables', 'ip_tables', 'configfs']
# The product: source in the tree -> path in the image. What has not been built yet is left out; cluster.py complains
# when a scenario needs it.
PRODUCT = {'build/lockstepd': 'usr/sbin/lockstepd', 'build/lockstep': 'usr/bin/lockstep',
           'scripts/install': 'usr/sbin/lockstep-install'}
MODULE_PLACES = ['kmod/lockstep.ko', 'lockstep.ko', 'build/kmod/lockstep.ko', 'build/lockstep.ko']
SEARCH = ['/usr/sbin', '/usr/bin', '/sbin', '/bin', '/usr/local/sbin', '/usr/local/bin', '/lib/drbd']
STATE_BYTES = 192 << 20


def product():
    """Files of the product that exist now: [(source, path in the image)]."""
    found = [(TOP / s, d) for s, d in PRODUCT.items() if (TOP / s).exists()]
    places = [kernel.OTHER / 'lockstep.ko'] if kernel.OTHER else [TOP / p for p in MODULE_PLACES]
    modules = [p for p in places if p.exists()]
    if modules:
        newest = max(modules, key=lambda p: p.stat().st_mtime)
        found.append((newest, f'lib/modules/{kernel.release()}/extra/lockstep.ko'))
    for unit in sorted((TOP / 'scripts').glob('*.service')) + sorted((TOP / 'scripts').glob('*.rules')):
        found.append((unit, f'usr/lib/lockstep/{unit.name}'))
    return found


def tools():
    """Small C programs of the lab, static, built on demand: [(made, path in the image)]."""
    made = []
    for source in sorted(LAB.glob('*.c')):
        target = BUILD / source.stem
        if not kernel.newer(target, source):
            BUILD.mkdir(parents=True, exist_ok=True)
            temporary = target.with_suffix(f'.{os.getpid()}')
            subprocess.run(['gcc', '-std=gnu17', '-O2', '-Wall', '-Wextra', '-Werror', '-static', '-o', temporary, source],
                           check=True)
            kernel.publish(temporary, target)
        made.append((target, f'lab/{source.stem}'))
    return made


def locate(program):
    for folder in SEARCH:
        path = Path(folder) / program
        if path.exists():
            return path
    if program in OPTIONAL:
        return None
    raise LabError(f'the lab needs {program}: run scripts/setup')


def libraries(programs):
    """Shared libraries (and the loader) of all these programs, as paths that the loader will look for."""
    found = set()
    for p in programs:
        done = subprocess.run(['ldd', p], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in done.stdout.splitlines():
            words = line.split()
            if 'not found' in line:
                raise LabError(f'{p}: {line.strip()}')
            found.update(w for w in words if w.startswith('/'))
    return found


def place(source, root, target=None, strip=False):
    source = Path(source)
    target = root / str(target or source).lstrip('/')
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=False, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        return
    if target.exists():
        return
    shutil.copy2(source.resolve(), target)
    if strip:
        subprocess.run(['strip', '--strip-debug', target], stderr=subprocess.DEVNULL)


def modules():
    base = kernel.ROOT / f'lib/modules/{kernel.release()}'
    names = list(MODULES)
    for folder in MODULE_FOLDERS:
        names += [p.name.split('.ko')[0] for p in (base / folder).rglob('*.ko*')]
    return kernel.with_dependencies(names)


def stage(root):
    # The same merged-/usr layout as Debian's, so that paths from ldd and rules hold.
    for d in ('bin', 'sbin', 'lib', 'lib64'):
        (root / 'usr' / d).mkdir(parents=True)
        (root / d).symlink_to(f'usr/{d}')
    for d in ('dev', 'proc', 'sys', 'run', 'tmp', 'etc', 'state', 'mnt', 'root', 'lab', 'var/lib/lockstep', 'var/log',
              'etc/lockstep', 'etc/systemd/system'):
        (root / d).mkdir(parents=True, exist_ok=True)
    (root / 'var' / 'run').symlink_to('/run')
    (root / 'etc' / 'mtab').symlink_to('/proc/mounts')
    # Not busybox: Debian's one runs its own applets rather than the programs of that name in the PATH.
    (root / 'usr' / 'bin' / 'sh').symlink_to('dash')
    programs = [p for p in map(locate, PROGRAMS) if p]
    ours = product()
    executables = [s for s, d in ours if '/sbin/' in d or '/bin/' in d]
    for p in programs:
        place(p, root)
        for link in LINKS.get(p.name, []):
            (root / 'usr/sbin' / link).unlink(missing_ok=True)
            (root / 'usr/sbin' / link).symlink_to(Path('/') / str(p).lstrip('/'))
    (root / 'usr/lib/systemd').mkdir(parents=True, exist_ok=True)
    (root / 'usr/lib/systemd/systemd-udevd').symlink_to('/bin/udevadm')
    for link in sorted(Path('/usr/sbin').glob('thin_*')):
        if link.is_symlink() and not (root / 'usr/sbin' / link.name).is_symlink():
            (root / 'usr/sbin' / link.name).unlink(missing_ok=True)
            (root / 'usr/sbin' / link.name).symlink_to(os.readlink(link))
    for lib in sorted(libraries(programs + executables)):
        place(lib, root)
    for path in PLAIN:
        if Path(path).exists():
            place(path, root)
    for m in modules():
        place(m, root, m.relative_to(kernel.ROOT))
    base = Path(f'lib/modules/{kernel.release()}')
    for name in ('modules.builtin', 'modules.builtin.modinfo', 'modules.order'):
        place(kernel.ROOT / base / name, root, base / name)
    for source, target in ours + tools():
        place(source, root, target, strip=target.endswith(('.ko', 'lockstepd', 'lockstep')))
    for script in ('boot', 'service'):
        place(GUEST / script, root, f'lab/{script}')
    place('/bin/busybox', root)
    for applet in subprocess.run(['/bin/busybox', '--list'], stdout=subprocess.PIPE, text=True, check=True).stdout.split():
        if not any((root / d / applet).exists() or (root / d / applet).is_symlink() for d in ('usr/bin', 'usr/sbin')):
            (root / 'usr/bin' / applet).symlink_to('/bin/busybox')
    subprocess.run(['depmod', '-b', root, kernel.release()], check=True)
    subprocess.run(['ldconfig', '-r', root], check=True)


def fingerprint():
    h = hashlib.sha256(kernel.release().encode())
    sources = [locate(p) for p in PROGRAMS] + [s for s, _ in product() + tools()]
    sources += [Path(__file__), GUEST / 'boot', GUEST / 'service', Path('/var/lib/dpkg/status')]
    for s in sources:
        if s:
            st = s.stat()
            h.update(f'{s} {st.st_size} {st.st_mtime_ns}\n'.encode())
    return h.hexdigest()


@contextmanager
def locked(name):
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / f'{name}.lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def pack(folder, made, size_bytes, options=(), extended='root_owner=0:0'):
    """An ext4 image of a folder, published when complete."""
    temporary = made.with_suffix(f'.{os.getpid()}')
    temporary.unlink(missing_ok=True)
    with open(temporary, 'wb') as f:
        f.truncate(size_bytes)
    subprocess.run(['mke2fs', '-q', '-t', 'ext4', '-F', '-E', extended, *options, '-d', folder, temporary],
                   check=True)
    kernel.publish(temporary, made)


def root():
    """Path of the root image, up to date with the tree. Old ones that a running lab still uses are not touched: the
    name changes with the content."""
    with locked('image'):
        mark = fingerprint()
        made = BUILD / f'root-{mark[:16]}.ext4'
        if made.exists():
            return made
        with tempfile.TemporaryDirectory(dir=BUILD) as t:
            stage(Path(t))
            used = int(subprocess.run(['du', '-sm', t], stdout=subprocess.PIPE, check=True).stdout.split()[0]) << 20
            pack(t, made, used + used // 4 + (32 << 20), ['-O', '^has_journal', '-m', '0'])
        old = sorted(BUILD.glob('root-*.ext4'), key=lambda p: p.stat().st_mtime, reverse=True)[3:]
        for p in old:
            p.unlink()
        return made


def state_disk(path):
    """A new, empty state disk (/etc changes and /var/lib/lockstep of one host)."""
    with tempfile.TemporaryDirectory(dir=BUILD) as t:
        pack(t, Path(path), STATE_BYTES, ['-m', '0'], 'root_owner=0:0,lazy_itable_init=1')
