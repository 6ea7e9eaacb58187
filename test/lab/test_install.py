# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/install: makes group and pool, can be repeated and interrupted, and never takes a disk that is in use."""
import signal, time

import pytest
from lablib import Lab, wait


@pytest.fixture(scope='module')
def host():
    with Lab('install') as lab:
        a, = lab.boot(1)
        a.run('modprobe loop')
        yield a


@pytest.fixture
def disks(host):
    """Four fresh disks of 512 MiB, and an LVM without our filter. All is removed afterwards."""
    names = []
    for i in range(4):
        host.run(f'truncate -s 512M /tmp/disk{i}')
        names.append(host.out(f'losetup -P --show -f /tmp/disk{i}'))
    yield names
    host.run('umount /mnt 2>/dev/null; swapoff -a 2>/dev/null; '
             'for g in $(vgs --noheadings -o vg_name); do vgchange -qan $g; vgremove -qff -y $g; done; '
             f'for d in {" ".join(names)} ; do wipefs -aq $d; losetup -d $d; done; rm -f /tmp/disk*; '
             'rm -f /etc/lvm/lvmlocal.conf /etc/modules-load.d/lockstep.conf', check=False)
    assert host.run('vgs --noheadings', check=False).out.strip() == ''


def install(host, arguments, status=0):
    result = host.run(f'lockstep-install {arguments}', check=False, timeout=120)
    assert result.status == status, f'{arguments}: {result}'
    if status:
        assert result.err.count('\n') == 1 and result.err.startswith('install: '), result.err
    return result


def state(host):
    return host.out('vgs --noheadings -o vg_name,vg_uuid,vg_tags,pv_count; lvs -a --noheadings -o lv_name,lv_uuid,lv_size; '
                    'pvs --noheadings -o pv_name,pv_uuid; cat /etc/lvm/lvmlocal.conf; ls /etc/modules-load.d; for d in /dev/loop?; do wipefs -n $d; done')


def refused(host, *cases):
    """Each case: (arguments, status, a part of the message)."""
    before = state(host)
    for arguments, status, text in cases:
        assert text in install(host, arguments, status).err, arguments
    assert state(host) == before, 'a refusal changes nothing'


def test_install_thick_and_thin(host, disks):
    one, two, three, four = disks
    dry = install(host, f'--disks {one} --thin --dry-run').out
    assert 'vgcreate' in dry and 'thin-pool' in dry
    assert host.run('vgs --noheadings').out == '', 'a dry run changes nothing'

    install(host, f'--disks {one}')
    assert host.out('vgs --noheadings -o vg_name,vg_tags') == 'lockstep_group lockstep'
    assert host.out('lvs --noheadings') == ''
    record = 'pvs --noheadings --units m --nosuffix -o pv_mda_size,pv_name'
    assert float(host.out(record).split()[0]) > 7, "room for LVM's record of thousands of volumes"
    assert host.out('cat /etc/modules-load.d/lockstep.conf') == 'lockstep'
    before = state(host)
    install(host, f'--disks {one}')
    assert state(host) == before, 'a second run changes nothing'

    install(host, f'--disks {one} {two} --thin')
    assert [float(line.split()[0]) > 7 for line in host.out(record).splitlines()] == [True, True]
    pool = host.out('lvs --noheadings --separator , --units k --nosuffix -o lv_name,chunk_size,zero,lv_metadata_size lockstep_group/thin_device').split(',')
    assert pool[0] == 'thin_device' and float(pool[1]) == 64 and pool[2] == 'zero'
    free = float(host.out('vgs --noheadings --units k --nosuffix -o vg_free'))
    assert float(pool[3]) <= free <= 4 * float(pool[3]), 'room for the metadata to grow, and not much more'
    before = state(host)
    install(host, f'--disks {one} {two} --thin')
    assert state(host) == before
    refused(host, (f'--disks {one} {two}', 5, 'use --thin'), (f'--disks {three}', 5, 'name all its disks'))
    install(host, f'--update-only')
    assert state(host) == before


def test_install_completes_an_interrupted_run(host, disks):
    """Cut short after any step that changes something, a second run gets to the same end."""
    one, two, *_ = disks
    host.run(f'wipefs -aq {one}')
    host.run(f'vgcreate -q --addtag lockstep lockstep_group {one}')		# as if killed before the pool was made
    install(host, f'--disks {one} {two} --thin')
    assert host.out('vgs --noheadings -o pv_count') == '2'
    assert 'thin_device' in host.out('lvs --noheadings -o lv_name')
    host.run('rm /etc/lvm/lvmlocal.conf')
    install(host, f'--disks {one} {two} --thin')
    assert '/dev/lockstep/' in host.out('lvmconfig devices/global_filter')


@pytest.mark.slow
def test_install_survives_being_killed(host, disks):
    """SIGKILL of the script and of the LVM command it runs, at several moments; the same command again gets to the end."""
    one, two, *_ = disks
    command = f'--disks {one} {two} --thin --force'
    began = time.monotonic()
    install(host, command)
    whole = time.monotonic() - began
    killed = 0
    for part in (0.35, 0.5, 0.6, 0.75):
        host.run('vgchange -qan lockstep_group; vgremove -qff -y lockstep_group; rm -f /etc/lvm/lvmlocal.conf', check=False)
        run = host.start(f'lockstep-install {command}')
        time.sleep(part * whole)			# the moment is the point here, not a condition
        run.signal(signal.SIGKILL)
        killed += run.wait(30).status == -signal.SIGKILL
        before = host.run('vgs; lvs -a', check=False).out
        install(host, command)
        assert host.out('vgs --noheadings -o pv_count lockstep_group') == '2', before
        assert host.out('lvs --noheadings -o segtype lockstep_group/thin_device') == 'thin-pool', before
        host.run('lvcreate -qq -V 16M -T lockstep_group/thin_device -n probe && dd if=/dev/zero of=/dev/lockstep_group/probe bs=1M count=4 conv=fsync')
    assert killed > 1, 'most of the runs must have been cut short'


def test_install_refuses_bad_input(host, disks):
    one, two, three, four = disks
    host.run('truncate -s 1M /tmp/disk-small; losetup /dev/loop40 /tmp/disk-small')
    refused(host,
            ('', 2, 'no disks given'),
            ('--disks', 2, 'no disks given'),
            (f'--disks {one} --frobnicate', 2, 'unknown argument'),
            (f'--disks {one} {one}', 2, 'given twice'),
            (f'--update-only --thin', 2, '--update-only'),
            ('--disks /dev/nosuch', 3, 'no such disk: /dev/nosuch'),
            ('--disks /etc/passwd', 3, 'not a block device'),
            (f'--disks {one} /dev/nosuch', 3, 'no such disk'),
            ('--disks /dev/vda', 5, 'read-only'),
            ('--disks /dev/loop40', 5, 'too small'))
    host.run('losetup -d /dev/loop40')
    result = host.run(f'setpriv --reuid 65534 lockstep-install --disks {one}', check=False)
    assert result.status == 5 and 'must be run as root' in result.err


def test_install_never_takes_what_is_in_use(host, disks):
    """With or without --force."""
    one, two, three, four = disks
    host.run(f'mke2fs -q {one} && mount {one} /mnt')
    host.run(f'mkswap {two} && swapon {two}')
    host.run(f'vgcreate -q guest {three} {four} && lvcreate -qy -L 64M -n v guest')
    refused(host,
            (f'--disks {one}', 5, 'mounted on /mnt'), (f'--disks {one} --force', 5, 'mounted on /mnt'),
            (f'--disks {two} --force', 5, 'used as swap'),
            ('--disks /dev/vdc --force', 5, 'in use'),
            (f'--disks {three}', 5, f'also uses {four}'), (f'--disks {three} --force', 5, f'also uses {four}'),
            (f'--disks {three} {four}', 5, 'belongs to the volume group guest'))
    holder = host.start('exec 9</dev/guest/v; echo held; exec sleep 1000')
    wait(lambda: holder.out, 10, 'the volume to be open')
    refused(host, (f'--disks {three} {four} --force', 5, 'guest/v on it is open'))
    holder.stop()
    install(host, f'--disks {three} {four} --force')
    assert host.out('vgs --noheadings -o vg_name') == 'lockstep_group'


def test_install_force(host, disks):
    """Signatures, partitions and orphaned physical volumes need --force, and go with it."""
    one, two, three, four = disks
    host.run(f'mke2fs -q {one}; pvcreate -q {two}; printf "o\\nn\\np\\n1\\n\\n\\nw\\n" | busybox fdisk {three} >/dev/null 2>&1; '
             f'blockdev --rereadpt {three}; udevadm settle')
    refused(host, (f'--disks {one}', 5, 'carries a signature'), (f'--disks {two}', 5, 'physical volume'),
            (f'--disks {three}', 5, 'has partitions'), (f'--disks {four} {one}', 5, 'carries a signature'))
    install(host, f'--disks {one} {two} {three} {four} --thin --force')
    assert host.out('vgs --noheadings -o pv_count') == '4'


def test_install_keeps_a_group_of_others(host, disks):
    one, *_ = disks
    host.run(f'vgcreate -q lockstep_group {one}')
    refused(host, (f'--disks {one}', 5, 'not made by this script'))
    install(host, f'--disks {one} --force')
    assert host.out('vgs --noheadings -o vg_tags') == 'lockstep'


def test_install_keeps_lvm_out_of_guests(host, disks):
    """What the admin filters stays filtered; ours comes on top; LVM then does not see a group inside a device that looks
    like a volume."""
    one, two, *_ = disks
    host.run(f'vgcreate -q guest {two} && vgchange -qan guest && mkdir -p /dev/lockstep && mv {two} /dev/lockstep/v1 && vgscan -q')
    assert 'guest' in host.out('vgs --noheadings -o vg_name --config "devices { scan=[\\"/dev\\"] }" --devices /dev/lockstep/v1', timeout=30)
    install(host, f'--disks {one}')
    assert 'guest' not in host.out('vgs --noheadings -o vg_name')
    host.run(f'mv /dev/lockstep/v1 {two}')
    host.run("mkdir -p /tmp/lvm; sed -i 's,^devices {,devices {\\n\\tglobal_filter = [ \"r|/dev/sdz|\" ],' /etc/lvm/lvm.conf")
    install(host, f'--disks {one}')
    filters = host.out('lvmconfig devices/global_filter')
    assert '/dev/sdz' in filters and filters.index('/dev/lockstep/') < filters.index('/dev/sdz')
    host.run("sed -i '/sdz/d' /etc/lvm/lvm.conf")


def test_install_uninstall(host, disks):
    """Last, for it takes the programs away."""
    one, = disks[:1]
    settings = host.run('cat /etc/lvm/lvmlocal.conf', check=False).out		# Debian's own, if no other scenario removed it
    install(host, f'--disks {one}')
    helps = '/usr/share/bash-completion/completions/lockstep /usr/share/man/man8/lockstep.8'
    assert '_lockstep lockstep' in host.out(f'cat {helps}') and '.TH LOCKSTEP 8' in host.out(f'cat {helps}')
    before = state(host)
    assert 'would run: rm' in install(host, '--uninstall --dry-run').out
    assert state(host) == before, 'a dry run changes nothing'
    host.run('mkdir -p /var/lib/lockstep && echo {} >/var/lib/lockstep/host.json')
    refused(host, ('--uninstall', 5, 'is in a cluster'), ('--uninstall --force', 2, 'takes nothing'), ('--join x', 2, 'needs a token'))
    host.run('rm /var/lib/lockstep/host.json')
    for _ in range(2):
        install(host, '--uninstall')
        gone = f'{helps} /etc/modules-load.d/lockstep.conf /etc/systemd/system/lockstepd.service /usr/sbin/lockstepd'
        assert host.run(f'ls {gone}', check=False).out == ''
        assert host.run('cat /etc/lvm/lvmlocal.conf', check=False).out == settings
        assert host.out('vgs --noheadings -o vg_name') == 'lockstep_group', 'disks are left alone'
        assert host.run('grep -w lockstep /proc/modules', check=False).status == 1
