# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel module without the daemon: kdrive.c gives the commands and commits what the kernel asks for.

    alpha: kdrive auto --> lockstep.ko  ===== link of 4 lanes =====  lockstep.ko <-- kdrive   :beta
              fio --> /dev/lockstep/v1     (kdrive connect | listen)     /dev/vdb
                      /dev/vdb
"""
import re

import pytest

from lablib import CommandFailed, wait

SIZE = 64 << 20
FIO = f'fio --name=v --filename=/dev/lockstep/v1 --size={SIZE} --direct=1 --ioengine=libaio --iodepth=16 --fsync=8'
VERIFY = '--rw=randwrite --bs=4k-256k --io_size=32M --verify=crc32c --do_verify=1'


def kdrive(host, arguments, timeout=60):
    return host.run(f'/lab/kdrive {arguments}', timeout=timeout).out


def refused(host, arguments, error):
    """The command fails with this error, and the kernel says why."""
    with pytest.raises(CommandFailed) as failed:
        kdrive(host, arguments)
    said = str(failed.value)
    assert error in said and 'kernel: ' in said, said


def volume(host, vid=1):
    """The dump's fields of a volume: numbers, True for flags; {} if it is not there."""
    for line in kdrive(host, 'get').splitlines():
        if line.startswith('volume ') and f' vid={vid} ' in line:
            own, *peers = line.split(' { ')
            fields = {k: v.strip('"') for k, v in re.findall(r'([\w-]+)=("[^"]*"|\d+)', own)}
            fields.update({word: True for word in own.split() if '=' not in word})
            fields['peers'] = [dict(re.findall(r'([\w-]+)=(\d+)', p)) for p in peers]
            return fields
    return {}


def digest(host, disk='/dev/vdb'):
    return host.out(f'dd if={disk} bs=1M count={SIZE >> 20} iflag=direct 2>/dev/null | sha256sum')


def start(host, number, thin='', size=SIZE, shared='', disk='/dev/vdb', lease_ms=3000):
    host.run('modprobe lockstep')
    kdrive(host, f'tune {lease_ms}')
    kdrive(host, f'host-set {number}')
    kdrive(host, f'format {disk} 1 {size} {size} {number}')
    kdrive(host, f'volume-add 1 v1 0 {size} {shared}')
    assert 'suspect=0' in kdrive(host, f'attach 1 {disk} {size} {thin}')


def stop(host):
    """Takes everything down; the module warns on the console about whatever it has not freed."""
    for verb in ('device-del', 'detach', 'volume-del'):
        kdrive(host, f'{verb} 1')
    host.run('rmmod lockstep')


def auto(host, replicas):
    p = host.start(f'/lab/kdrive auto 1 {replicas}')
    wait(lambda: int(volume(host).get('noted', 0)) >= 1, 10, 'the first record')
    return p


def connect(a, b, link, tls=''):
    listening = b.start(f'/lab/kdrive listen 1 {link} 7788 4 {tls}')
    kdrive(a, f'connect 2 {link} {b.networks_address("storage")} 7788 4 {tls}')
    listening.wait(20)
    for host in (a, b):
        wait(lambda: f'link={link} lanes=4 up' in kdrive(host, 'get'), 10, 'the link to be up')


def test_module_alone(lab):
    """One replica: what is repeated changes nothing, what is wrong is refused with a reason, data are there."""
    a, = lab.boot(1)
    a.run('modprobe lockstep')
    refused(a, f'volume-add 1 v1 0 {SIZE}', 'Invalid argument')
    start(a, 1)
    for again in ('host-set 1', f'volume-add 1 v1 0 {SIZE}', f'attach 1 /dev/vdb {SIZE}'):
        kdrive(a, again)
    refused(a, 'host-set 2', 'Device or resource busy')
    refused(a, f'volume-add 1 v1 0 {2 * SIZE}', 'File exists')
    refused(a, f'volume-add 2 v1 1 {SIZE}', 'File exists')
    refused(a, f'volume-add 2 v2 0 {SIZE}', 'File exists')
    refused(a, f'volume-add 2 v/2 1 {SIZE}', 'Invalid argument')
    refused(a, 'attach 9 /dev/vdb 0', 'No such file')
    refused(a, 'volume-del 1', 'Device or resource busy')
    kdrive(a, f'volume-add 2 v2 1 {SIZE}')
    refused(a, f'attach 2 /dev/vdb {SIZE}', 'Device or resource busy')
    refused(a, f'attach 2 /dev/nothing {SIZE}', 'No such device')
    refused(a, f'attach 2 /dev/vdb {SIZE - 4096}', 'Invalid argument')
    kdrive(a, 'detach 1')
    refused(a, f'attach 2 /dev/vdb {1 << 40}', 'File too large')
    refused(a, f'attach 2 /dev/vdb {SIZE}', 'Structure needs cleaning')
    kdrive(a, 'volume-del 2')
    kdrive(a, f'attach 1 /dev/vdb {SIZE}')
    assert a.run('rmmod lockstep', check=False).status

    kdrive(a, 'device-add 1')
    assert a.out('cat /sys/block/lockstep0/lockstep/name; test -b /dev/lockstep/v1 && echo there') == 'v1\nthere'
    timeout = '/sys/module/lockstep/parameters/open_timeout_ms'
    a.run(f'echo 1500 >{timeout}')
    assert 'timed out' in a.run('dd if=/dev/zero of=/dev/lockstep/v1 count=1', check=False).err, 'nobody makes a primary'
    a.run(f'echo 20000 >{timeout}')
    reader = a.start('dd if=/dev/lockstep/v1 of=/dev/null count=1')		# opens at once, and waits for a primary
    decider = auto(a, '1:insync')
    assert reader.wait(60).status == 0
    a.run(f'{FIO} {VERIFY}', timeout=300)
    with_open = a.start('exec 9<>/dev/lockstep/v1; read x')
    wait(lambda: volume(a)['writers'] == '1', 20, 'the device to be open')
    refused(a, 'device-del 1', 'Device or resource busy')
    refused(a, 'volume-del 1', 'Device or resource busy')
    with_open.close_input()
    wait(lambda: volume(a)['writers'] == '0' and volume(a)['session-ended'] != '0', 20, 'the session to end')

    a.run('mke2fs -q /dev/lockstep/v1 && mount /dev/lockstep/v1 /mnt && cp -r /lab /mnt/ && umount /mnt && e2fsck -fn /dev/lockstep/v1')
    a.run('blkdiscard -f -o 4198400 -l 12582912 /dev/lockstep/v1 && cmp -n 12582912 /dev/zero /dev/lockstep/v1 0 4198400')
    a.run('blkdiscard -f -z -o 512 -l 5120000 /dev/lockstep/v1 && cmp -n 5120000 /dev/zero /dev/lockstep/v1 0 512')
    written = a.out('sha256sum </dev/lockstep/v1')
    assert written == digest(a), 'data begin at byte 0 of the backing device'

    # An open that nobody grants is told so, or ends by itself.
    decider.stop()
    waiting = a.start('dd if=/dev/null of=/dev/lockstep/v1')
    wait(lambda: volume(a)['waiters'] == '1', 20, 'the open to wait')
    kdrive(a, 'refuse 1 16')
    assert 'busy' in waiting.wait(10).err
    a.run(f'echo 1500 >{timeout}')
    assert 'timed out' in a.run('dd if=/dev/null of=/dev/lockstep/v1', check=False).err

    # Another host holds it: EBUSY, and the log names the host, once.
    state = volume(a)
    session = int(state['session-ended']) + 1
    kdrive(a, f'config 1 {int(state["noted"]) + 1} {state["term"]} 1 {session} 1:insync 2:{session}')
    a.run(f'echo 20000 >{timeout}')
    for _ in range(2):
        waiting = a.start('dd if=/dev/null of=/dev/lockstep/v1')
        wait(lambda: volume(a)['waiters'] == '1', 20, 'the open to wait')
        kdrive(a, 'refuse 1 16')
        assert 'busy' in waiting.wait(10).err
    assert a.out('dmesg | grep -c "v1: cannot be opened for writing: host 2 has it open"') == '1'

    # A clean end leaves nothing hot.
    for verb in ('device-del', 'device-del', 'detach', 'detach', 'volume-del', 'volume-del'):
        kdrive(a, f'{verb} 1')
    kdrive(a, f'volume-add 1 v1 0 {SIZE}')
    assert 'suspect=0' in kdrive(a, f'attach 1 /dev/vdb {SIZE}')
    stop(a)


def test_module_pair(lab):
    """Two replicas: equal after writes, a lost one freezes writes until the record is without it, and it catches up."""
    a, b = lab.boot(2, cpus=2)
    for host, number in ((a, 1), (b, 2)):
        start(host, number, 'thin')
        kdrive(host, f'peer-set {3 - number}')
        kdrive(host, 'device-add 1')
    kdrive(b, 'config 1 1 0 0 0 1:insync,2:insync - admit')
    decider = auto(a, '1:insync,2:insync')
    connect(a, b, 100)
    a.run(f'{FIO} {VERIFY}', timeout=300)
    before = spared(a)		# not 0: a flush that overtakes all eight writes before it has nothing to do (S2)
    a.run(f'{FIO} --rw=randwrite --bs=4k --iodepth=1 --io_size=1M', timeout=120)
    assert spared(a) == before, 'a flush after eight writes that have ended is sent'
    a.run(f'{FIO} --rw=randwrite --bs=4k --iodepth=1 --fsync=1 --io_size=1M --refill_buffers', timeout=120)
    assert spared(a) > before + 200, 'one after each write is not, and the writes go to the disk at once (F2)'
    assert digest(a) == digest(b)
    tracing = '/sys/kernel/tracing'
    trace = lambda on: a.run(f'for e in replicate ack; do echo {on} >{tracing}/events/lockstep/lockstep_$e/enable; done')
    trace(1)
    a.run('dd if=/dev/zero of=/dev/lockstep/v1 bs=4096 count=4 oflag=direct conv=notrunc')
    trace(0)
    for what in ('replicate', 'ack'):
        assert int(a.out(f'grep -c "lockstep_{what}: vid=1 host=2 " {tracing}/trace')) >= 4, a.out(f'cat {tracing}/trace')
    kdrive(b, 'config 1 2 1 1 1 1:insync,2:insync -')
    assert b.out('sha256sum </dev/lockstep/v1') == digest(a), 'a client without the session reads through the primary'

    load = a.start(f'{FIO} --rw=randwrite --bs=4k-64k --refill_buffers --time_based --runtime=30')
    wait(lambda: volume(a)['session'] != '0' and volume(a)['writers'] != '0', 30, 'the load to begin')
    kdrive(b, 'peer-del 1')
    refused_link = a.run('/lab/kdrive connect 2 100 10.77.2.2 7788 4', check=False)
    assert refused_link.status, 'an old link does not come back'
    record = wait(lambda: re.search(rb'committed record\{version=(\d+).* 2:stale:(\d+)', bytes(decider.out)), 20, 'beta to be left out')
    wait(lambda: int(volume(a)['peers'][0]['dirty']) > 0, 20, 'writes that beta misses')
    assert load.running
    kdrive(b, 'peer-set 1')
    version, since = (int(x) for x in record.groups())
    kdrive(b, f'config 1 {version} 1 1 1 1:insync,2:stale:{since} -')
    connect(a, b, 101)
    wait(lambda: re.search(rb'committed record.* 2:insync', bytes(decider.out).split(b'2:stale')[-1]), 90, 'beta to have caught up')
    assert load.wait(60).status == 0
    wait(lambda: volume(a)['writers'] == '0', 10, 'the load to close the device')
    assert digest(a) == digest(b)

    # Links that come and go under load; whatever is in flight is neither lost nor doubled.
    load = a.start(f'{FIO} --rw=randwrite --bs=4k-256k --refill_buffers --time_based --runtime=20')
    for link in range(102, 108):
        kdrive(b, 'peer-del 1')
        kdrive(b, 'peer-set 1')
        connect(a, b, link)
    assert load.wait(90).status == 0

    # Teardown waits for nobody: the peer's host is gone, and nobody records that. What waits for it is failed on demand
    # and the device can be closed; a write that is still frozen does not keep the replica from being detached.
    wait(lambda: volume(a)['writers'] == '0', 30, 'the load to close the device')
    holding = a.start('/lab/blockio hold /dev/lockstep/v1 w')
    wait(lambda: b'open' in bytes(holding.out), 20, 'the device to be open')
    a.run('dd if=/dev/zero of=/dev/lockstep/v1 bs=4096 count=4 oflag=direct conv=notrunc')	# after the last loss of the link
    committed = lambda: re.findall(rb'committed record\{version=(\d+)(.*)', bytes(decider.out))[-1]
    wait(lambda: committed()[0].decode() == volume(a)['noted'] and b' 2:insync' in committed()[1], 90, 'beta to have caught up')
    decider.stop()
    b.kill()
    writing = a.start('dd if=/dev/zero of=/dev/lockstep/v1 bs=4096 count=4 oflag=direct conv=notrunc')
    wait(lambda: int(volume(a).get('pending', 0)) > 0, 20, 'a write to wait for beta')
    refused(a, 'device-del 1', 'Device or resource busy')
    inflight = lambda: a.out('cat /sys/block/lockstep0/inflight').split()
    assert inflight() == ['0', '1']
    kdrive(a, 'abort 1')
    assert 'Input/output error' in writing.wait(20).err
    assert inflight() == ['0', '0']
    reading = a.start('dd if=/dev/lockstep/v1 of=/dev/null bs=4096 count=1 skip=64 iflag=direct')
    assert reading.wait(20).status, 'from now on whatever would wait fails, until somebody opens the device again'
    holding.close_input()
    holding.wait(20)
    wait(lambda: volume(a)['openers'] == '0', 20, 'the device to be closed')
    kdrive(a, 'detach 1', timeout=20)
    kdrive(a, 'peer-del 2', timeout=20)
    stop(a)


def mount_debugging(host):
    for kind, where in (('debugfs', 'debug'), ('tracefs', 'tracing')):
        host.run(f'grep -q " /sys/kernel/{where} " /proc/mounts || mount -t {kind} {kind} /sys/kernel/{where}')


def spared(host):
    mount_debugging(host)
    return int(host.out('sed -n "s/^flushes that asked nobody: //p" /sys/kernel/debug/lockstep/volumes/v1/replica'))


def pair(lab, size=SIZE, shared='', tls='', lease_ms=3000, before='', **options):
    """Two hosts with a replica and the device each, linked. before: a command for each, while there are no sockets yet."""
    a, b = lab.boot(2, **options)
    for host, number in ((a, 1), (b, 2)):
        if before:
            host.run(before)
        start(host, number, 'thin', size, shared, lease_ms=lease_ms)
        kdrive(host, f'peer-set {3 - number}')
        kdrive(host, 'device-add 1')
        if tls:
            host.run('modprobe aesni_intel', check=False)		# or it crawls
    connect(a, b, 100, tls)
    return a, b


def charged(host, program, disk):
    """Runs program in a control group of its own; the bytes that disk has written for this group."""
    group = '/sys/fs/cgroup/writer'
    host.run('grep -q " /sys/fs/cgroup " /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup')
    host.run(f'echo +io >/sys/fs/cgroup/cgroup.subtree_control; mkdir -p {group}')
    host.run(f'echo $$ >{group}/cgroup.procs; exec {program}')
    number = host.out(f'cat /sys/block/{disk}/dev')
    return sum(int(n) for n in re.findall(rf'^{number} .*wbytes=(\d+)', host.out(f'cat {group}/io.stat'), re.M))


def test_module_io(lab):
    """Requests of all kinds, sizes and alignments, on disks with small and with large sectors; and what the host says of them."""
    a, = lab.boot(1)
    for disk, seed in (('/dev/vdb', 1), ('/dev/loop0', 2)):
        if disk == '/dev/loop0':
            a.run('modprobe loop && losetup --sector-size 4096 --direct-io=on /dev/loop0 /dev/vdb')
            assert a.out('cat /sys/block/loop0/queue/logical_block_size') == '4096'
        start(a, 1, disk=disk)
        kdrive(a, 'device-add 1')
        decider = auto(a, '1:insync')
        queue = dict(line.split() for line in a.out(
            'cd /sys/block/lockstep0/queue; for f in logical_block_size physical_block_size max_hw_sectors_kb fua '
            'discard_granularity discard_zeroes_data rotational; do echo $f $(cat $f); done').splitlines())
        assert queue['logical_block_size'] == '512' and queue['physical_block_size'] == '4096', queue
        assert queue['max_hw_sectors_kb'] == '1024' and queue['fua'] == '1' and queue['rotational'] == '0', queue
        assert a.out('blockdev --getss --getpbsz --getsize64 --getro --getalignoff /dev/lockstep/v1') == f'512\n4096\n{SIZE}\n0\n0'
        a.run('blockdev --flushbufs --setra 512 /dev/lockstep/v1')
        assert set(re.findall(r': (.*)', a.out('/lab/blockio disk /dev/lockstep/v1'))) == {'Inappropriate ioctl for device'}
        if disk == '/dev/vdb':      # a loop device's own thread writes for itself
            dd = 'dd if=/dev/urandom of=/dev/lockstep/v1 bs=64k count=256 oflag=direct conv=notrunc'
            assert charged(a, dd, 'vdb') == 256 << 16, 'who wrote is who is charged for it, also where a worker writes'
        said = a.run(f'/lab/blockio random /dev/lockstep/v1 20 {seed}', timeout=200).out
        counts = {k: int(n) for k, n in re.findall(r'([\w-]+)=(\d+)', said)}
        assert len(counts) == 8 and all(counts.values()), said
        assert a.out('sha256sum </dev/lockstep/v1') == digest(a, disk)
        stat = [int(n) for n in a.out('cat /sys/block/lockstep0/stat').split()]
        assert stat[0] and stat[4] and stat[8] == 0 and stat[11], f'reads, writes, none in flight, discards: {stat}'

        mount_debugging(a)
        a.run('echo 1 >/sys/kernel/tracing/events/lockstep/enable')
        holding = a.start('/lab/blockio hold /dev/lockstep/v1 w')
        wait(lambda: b'open' in bytes(holding.out), 20, 'the device to be open')
        openers = a.out('cat /sys/kernel/debug/lockstep/volumes/v1/openers')
        assert re.search(r'writer pid=\d+ command=blockio ', openers) and '1 openers, 1 writers' in openers, openers
        assert 'role: serving' in a.out('cat /sys/kernel/debug/lockstep/volumes/v1/replica')
        assert a.out('cat /sys/kernel/debug/lockstep/volumes/v1/requests').startswith('0 more; 0 bytes')
        a.run('dd if=/dev/zero of=/dev/lockstep/v1 bs=4096 count=4 oflag=direct')
        holding.close_input()
        holding.wait(20)
        trace = a.out('grep -o "lockstep_[a-z]*" /sys/kernel/tracing/trace | sort | uniq -c')
        assert all(f'lockstep_{what}' in trace for what in ('request', 'complete', 'config')), trace
        a.run('echo 0 >/sys/kernel/tracing/events/lockstep/enable')
        wait(lambda: volume(a)['writers'] == '0', 20, 'the device to be closed')
        decider.stop()
        stop(a)


def scsi_debug(host, options):
    """A SCSI disk in the host's memory."""
    host.run(f'modprobe scsi_debug {options}')
    where = '/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block'
    wait(lambda: host.run(f'ls {where}', check=False).status == 0, 20, 'the disk')
    return '/dev/' + host.out(f'ls {where}')


def test_module_sectors(lab):
    """Replicas on disks with small and with large sectors, and a host without a replica: each may send what the others' disks
    cannot take as it comes, and the device looks the same on all. The one with small sectors does not zero what it discards."""
    a, b, c = lab.boot(3)
    b.run('modprobe loop && losetup --sector-size 4096 --direct-io=on /dev/loop0 /dev/vdb')
    disk = scsi_debug(a, 'dev_size_mb=80 lbpu=1 lbprz=0')
    a.run(f'dd if=/dev/urandom of={disk} bs=1M count=1 oflag=direct && blkdiscard -f -l 1048576 {disk}')
    assert a.run(f'cmp -n 1048576 /dev/zero {disk}', check=False).status, 'it promises nothing'
    a.run(f'dd if=/dev/zero of={disk} bs=1M count=64 oflag=direct')
    start(a, 1, disk=disk)
    start(b, 2, disk='/dev/loop0')
    c.run('modprobe lockstep')
    kdrive(c, 'host-set 3')
    kdrive(c, f'volume-add 1 v1 0 {SIZE}')
    hosts = {1: a, 2: b, 3: c}
    for number, host in hosts.items():
        for other in hosts:
            if other != number:
                kdrive(host, f'peer-set {other}')
        kdrive(host, 'device-add 1')
    for number, host in hosts.items():
        for other, peer in hosts.items():
            if other < number:
                listening = host.start(f'/lab/kdrive listen {other} 100 7788 4')
                kdrive(peer, f'connect {number} 100 {host.networks_address("storage")} 7788 4')
                listening.wait(20)
    for host in (a, b):
        kdrive(host, 'config 1 1 0 0 0 1:insync,2:insync - admit')
    looks = 'cd /sys/block/lockstep0/queue; grep . logical_block_size physical_block_size minimum_io_size optimal_io_size ' \
            'max_hw_sectors_kb discard_granularity discard_max_hw_bytes write_zeroes_max_bytes'
    assert len({host.out(looks) for host in hosts.values()}) == 1
    # the primary is on small sectors, then on large ones; its own host writes, then the one without a replica
    version = 1
    for term, (primary, opener) in enumerate(((1, 3), (1, 1), (2, 3), (2, 2)), 1):
        version += 1
        # the session comes to an open that waits: without one it is given back after two seconds
        writing = hosts[opener].start(f'/lab/blockio random /dev/lockstep/v1 10 {term}')
        wait(lambda: volume(hosts[opener])['waiters'] == '1', 20, 'the open to wait')
        for host in hosts.values():
            kdrive(host, f'config 1 {version} {term} {primary} {term} 1:insync,2:insync {opener}:{term}')
        written = writing.wait(200)
        assert written.status == 0, written
        wait(lambda: volume(hosts[opener])['writers'] == '0', 20, 'the device to be closed')
        assert digest(a, disk) == digest(b, '/dev/loop0'), f'term {term}'


def sectors(text):
    """Of lines FIRST+COUNT."""
    return {s for first, count in re.findall(r'(\d+)\+(\d+)', text) for s in range(int(first), int(first) + int(count))}


def test_module_trail(lab):
    """Which sectors were written: exactly those that a thousand overlapping requests named, or that it is not known."""
    a, = lab.boot(1)
    start(a, 1)
    kdrive(a, 'device-add 1')
    decider = auto(a, '1:insync')
    closed = lambda: wait(lambda: volume(a)['writers'] == '0', 20, 'the device to be closed')
    number = kdrive(a, 'trail-begin 1').strip()
    assert number == kdrive(a, 'trail-begin 1').strip() != '0'
    assert kdrive(a, f'trail 1 {number}') == ''
    dd = 'dd if=/dev/urandom of=/dev/lockstep/v1 bs=512 conv=notrunc,fsync'
    a.run(f"""set -e; {dd} seek=3 count=1 oflag=direct; {dd} seek=8 count=8 oflag=direct; {dd} seek=10 count=10 oflag=direct
        {dd} seek=8191 count=2 oflag=direct; {dd} seek=50000 count=1   # a page: that is what the device gets
        blkdiscard -o $((20000 * 512)) -l 4096 /dev/lockstep/v1; blkdiscard -z -o $((30000 * 512)) -l 1536 /dev/lockstep/v1
        dd if=/dev/lockstep/v1 bs=1M count=8 iflag=direct of=/dev/null""")
    closed()
    written = sectors('3+1 8+12 8191+2 50000+8 20000+8 30000+3')
    assert sectors(kdrive(a, f'trail 1 {number}')) == written

    a.run('fio --name=t --filename=/dev/lockstep/v1 --size=64M --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --norandommap '
          '--bsrange=512-64k --blockalign=512 --io_size=16M --randseed=7 --write_iolog=/tmp/iolog', timeout=200)
    closed()
    log = re.findall(r' write (\d+) (\d+)$', a.out('cat /tmp/iolog'), re.M)
    assert len(log) > 100 and any(int(n) % 4096 for line in log for n in line), log[:5]
    written |= {s for at, length in log for s in range(int(at) // 512, (int(at) + int(length)) // 512)}
    assert len(written) < SIZE // 512 * 3 // 4
    assert sectors(kdrive(a, f'trail 1 {number}')) == written

    refused(a, 'trail-begin 1', 'busy')
    refused(a, f'trail 1 {int(number) ^ 2}', 'No data')
    holding = a.start('/lab/blockio hold /dev/lockstep/v1 w')
    wait(lambda: b'open' in bytes(holding.out), 20, 'the device to be open')
    refused(a, f'trail 1 {number}', 'busy')
    # another host takes it over: what that one writes is in no trail here
    decider.stop()
    now = volume(a)
    version, term, session = (int(now[k]) for k in ('noted', 'term', 'session'))
    kdrive(a, f'config 1 {version + 1} {term} 1 {session + 1} 1:insync 2:{session + 1}')
    holding.close_input()
    holding.wait(20)
    closed()
    refused(a, f'trail 1 {number}', 'No data')
    stop(a)

    # no memory for it: the writes go on, and it is known not to be whole
    start(a, 1)
    kdrive(a, 'device-add 1')
    decider = auto(a, '1:insync')
    refused(a, f'trail 1 {number}', 'No data')
    number = kdrive(a, 'trail-begin 1').strip()
    a.run(f'{dd} seek=3 count=1 oflag=direct && echo 0 >/sys/module/lockstep/parameters/max_trail_mib && {dd} seek=4 count=1 oflag=direct')
    closed()
    assert sectors(kdrive(a, f'trail 1 {number}')) == {3, 4}
    a.run(f'{dd} seek=8192 count=1 oflag=direct')
    closed()
    refused(a, f'trail 1 {number}', 'No data')
    a.run('echo 16 >/sys/module/lockstep/parameters/max_trail_mib')
    again = kdrive(a, 'trail-begin 1').strip()
    assert again != number and kdrive(a, f'trail 1 {again}') == ''
    decider.stop()
    stop(a)


def test_module_thin(lab):
    """A replica on a thin volume: what is discarded goes back to the pool, and trimming what is free takes nothing from it."""
    a, = lab.boot(1)
    chunk, extent = 256 << 10, 4 << 20
    a.run(f'vgcreate -q g /dev/vdb && lvcreate -q -L 512m -V 128m -c {chunk >> 10}k --thinpool pool -n t g', timeout=120)
    chunks = lambda: int(a.out('dmsetup status g-t').split()[3]) * 512 // chunk
    start(a, 1, 'thin', disk='/dev/g/t')
    kdrive(a, 'device-add 1')
    decider = auto(a, '1:insync')
    a.run('/lab/blockio random /dev/lockstep/v1 20 3', timeout=200)
    assert a.out('sha256sum </dev/lockstep/v1') == digest(a, '/dev/g/t')
    a.run('blkdiscard -f /dev/lockstep/v1')
    empty = chunks()
    assert empty < 8, 'only the metadata take space'
    each = lambda what: a.run(f'for i in $(seq 0 {SIZE // extent - 1}); do {what} || exit 1; done', timeout=200)
    each(f'dd if=/dev/urandom of=/dev/lockstep/v1 bs=4096 count=1 seek=$((i * {extent // 4096})) oflag=direct conv=notrunc 2>&1')
    used = chunks()
    assert used == empty + SIZE // extent
    each(f'blkdiscard -f -o $((i * {extent} + 1048576 + 65536)) -l {chunk // 2} /dev/lockstep/v1')
    assert chunks() == used, 'less than a chunk was discarded where nothing is: that takes no space'
    before = digest(a, '/dev/g/t')
    each(f'blkdiscard -f -z -o $((i * {extent} + 512)) -l 1024 /dev/lockstep/v1')
    assert digest(a, '/dev/g/t') != before
    a.run(f'blkdiscard -f -o 512 -l {SIZE - 1024} /dev/lockstep/v1')
    assert chunks() == empty + 1, 'all but what is left of the first chunk is free'
    a.run(f'cmp -n {SIZE - 512} /dev/zero /dev/lockstep/v1 0 512')
    assert a.out('od -An -tx8 -N 512 /dev/lockstep/v1 | sort -u | wc -l') != '1', 'the first sector is as it was'
    assert a.out('sha256sum </dev/lockstep/v1') == digest(a, '/dev/g/t')
    a.run('mke2fs -q -F /dev/lockstep/v1 && mount /dev/lockstep/v1 /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=16 && sync /mnt/f')
    full = chunks()
    a.run('rm /mnt/f && sync && fstrim /mnt && umount /mnt')
    assert chunks() <= full - (16 << 20) // chunk + 8, 'a file system gives back what it does not use'
    a.run('e2fsck -fn /dev/lockstep/v1')
    decider.stop()
    stop(a)


def test_module_room(lab):
    """A discard of everything comes as one request for each extent, all at once: only so many of them are let in."""
    size, most = 1 << 30, 64		# 4 MiB of room for the volume, 64 KiB each
    a, = lab.boot(1)
    a.run("dmsetup create disk --table \"0 $(blockdev --getsz /dev/vdb) linear /dev/vdb 0\"")
    start(a, 1, 'thin', size, disk='/dev/mapper/disk')
    a.run('echo 4 >/sys/module/lockstep/parameters/max_request_mib')
    kdrive(a, 'device-add 1')
    decider = auto(a, '1:insync')
    holding = a.start('/lab/blockio hold /dev/lockstep/v1 w')
    wait(lambda: b'open' in bytes(holding.out), 20, 'the device to be open')
    # Where nothing was ever written there is nothing to discard: something in each extent, then.
    a.run('dmsetup suspend --nolockfs disk')
    a.run('blkdiscard -f -o $((4 << 20)) /dev/lockstep/v1')
    a.run('dmsetup resume disk')
    a.run(f'fio --name=v --filename=/dev/lockstep/v1 --direct=1 --rw=write:4092k --bs=4k --size={size} --number_ios={size >> 22}', timeout=120)
    wait(lambda: volume(a)['written'] == str(size >> 22), 20, 'all extents to have been written')
    a.run('dmsetup suspend --nolockfs disk')
    discarding = a.start('blkdiscard -f /dev/lockstep/v1')
    wait(lambda: int(volume(a)['pending']) >= most, 20, 'the room to be full')
    ticks = lambda: int(a.out(f"awk '{{ print $15 }}' /proc/$(pidof blkdiscard)/stat"))
    before = ticks()
    a.run('sleep 2')
    assert int(volume(a)['pending']) == most and discarding.running
    assert ticks() - before < 20, 'who waits for room sleeps'
    a.run('dmsetup resume disk')
    assert discarding.wait(120).status == 0
    wait(lambda: volume(a)['pending'] == '0', 20, 'all to have ended')
    holding.close_input()
    holding.wait(20)
    wait(lambda: volume(a)['openers'] == '0', 20, 'the device to be closed')
    decider.stop()
    stop(a)


def test_module_frozen(lab):
    """Who waits for a primary that does not come is failed on demand or after a time, and nothing stands in a teardown's way."""
    a, = lab.boot(1)
    start(a, 1)
    kdrive(a, 'device-add 1')

    # There is no primary: what is read ahead is not worth waiting for one, nor finding one.
    mount_debugging(a)
    requests = lambda: a.out('cat /sys/kernel/debug/lockstep/volumes/v1/requests')
    a.run('/lab/blockio ahead /dev/lockstep/v1 262144')
    assert requests().startswith('0 more') and volume(a)['waiters'] == '0', requests()

    # Nobody grants an open: a second one does not wait behind it, a reader comes in, and ABORT ends them.
    first = a.start('/lab/blockio hold /dev/lockstep/v1 w')
    second = a.start('/lab/blockio hold /dev/lockstep/v1 w')
    wait(lambda: volume(a)['waiters'] == '2', 20, 'two opens to wait at the same time')
    reader = a.start('/lab/blockio hold /dev/lockstep/v1 r')
    wait(lambda: b'open' in bytes(reader.out), 10, 'the reader to come in')
    refused(a, 'device-del 1', 'Device or resource busy')
    kdrive(a, 'abort 1')
    assert 'Input/output error' in first.wait(10).err and 'Input/output error' in second.wait(10).err
    reader.close_input()
    reader.wait(10)
    kdrive(a, 'volume-tune 1 1000')
    before = a.out('cut -d" " -f1 /proc/uptime')
    assert 'Input/output error' in a.run('/lab/blockio hold /dev/lockstep/v1 w', check=False).err
    assert float(a.out('cut -d" " -f1 /proc/uptime')) - float(before) < 8, 'FREEZE_MS bounds an open, too'
    kdrive(a, 'volume-tune 1 0')

    # The primary moves to a host that never comes.
    a.run('echo 1 >/sys/kernel/tracing/events/lockstep/lockstep_freeze/enable')
    traced = lambda: re.findall(r'lockstep_freeze: vid=1 (\w+) ', a.out('cat /sys/kernel/tracing/trace'))
    decider = auto(a, '1:insync')
    a.run('dd if=/dev/zero of=/dev/lockstep/v1 bs=1M count=4 oflag=direct')

    # ABORT is for those who have the device open: whoever comes after them reads, though nobody writes.
    part = 'dd if=/dev/lockstep/v1 of=/dev/null bs=4096 count=1 iflag=direct'
    wait(lambda: volume(a)['openers'] == '0', 20, 'the device to be closed')
    kdrive(a, 'abort 1')
    a.run(part)
    reader = a.start('/lab/blockio hold /dev/lockstep/v1 r')
    wait(lambda: b'open' in bytes(reader.out), 10, 'the reader to come in')
    kdrive(a, 'abort 1')
    assert a.run(part, check=False).status, 'somebody has it open still'
    reader.close_input()
    reader.wait(10)
    wait(lambda: volume(a)['openers'] == '0', 20, 'the device to be closed')
    a.run(part)

    holding = a.start('/lab/blockio hold /dev/lockstep/v1 w')
    wait(lambda: b'open' in bytes(holding.out), 20, 'the device to be open')
    state = volume(a)
    decider.stop()
    version, term, session = int(state['noted']), int(state['term']), state['session']
    assert session != '0'
    kdrive(a, f'config 1 {version + 1} {term + 1} 2 {session} 1:insync,2:insync 1:{session}')
    writing = a.start('dd if=/dev/zero of=/dev/lockstep/v1 bs=4096 count=1 oflag=direct conv=notrunc')
    wait(lambda: 'write offset=0 length=4096' in requests() or volume(a)['waiters'] != '0', 20, 'the write or its open to wait')
    wait(lambda: traced() == ['frozen'], 20, 'the trace to say so')
    kdrive(a, 'abort 1')
    assert 'Input/output error' in writing.wait(20).err
    wait(lambda: traced() == ['frozen', 'thawed'], 20, 'the trace to say that it is over')
    a.run('echo 0 >/sys/kernel/tracing/events/lockstep/lockstep_freeze/enable')

    # What is written through the page cache: closing would wait for ever.
    a.allow('Buffer I/O error on dev lockstep0')
    dirty = a.start('exec 9<>/dev/lockstep/v1 && dd if=/dev/zero bs=64k count=8 >&9; read x')
    kdrive(a, 'volume-tune 1 500')
    dirty.close_input()
    holding.close_input()
    holding.wait(60)
    dirty.wait(60)
    wait(lambda: volume(a)['openers'] == '0', 60, 'the device to be closed')
    stop(a)


@pytest.mark.slow
def test_module_many(lab):
    """Somebody reads each of three hundred volumes that have no primary. So many waits for the cluster keep no link from ending."""
    a, b = lab.boot(2)
    all_of = lambda text: a.run(f'for n in $(seq 300); do {text}; done', timeout=300)
    for host, number in ((a, 1), (b, 2)):
        host.run('modprobe lockstep')
        kdrive(host, f'host-set {number}')
        kdrive(host, f'peer-set {3 - number}')
    all_of(f'/lab/kdrive volume-add $n v$n $n {SIZE} && /lab/kdrive device-add $n')
    connect(a, b, 1)
    readers = a.start('for n in $(seq 300); do dd if=/dev/lockstep/v$n of=/dev/null count=1 iflag=direct 2>/dev/null & done; wait')
    wait(lambda: len(re.findall(r' pending=[1-9]', kdrive(a, 'get'))) == 300, 120, 'all to be read')
    kdrive(b, 'peer-del 1')
    wait(lambda: 'link=1 ' not in kdrive(a, 'get'), 5, 'the link to end')
    # Neither does it keep anything from being taken down.
    all_of('/lab/kdrive abort $n')
    readers.wait(60)
    wait(lambda: not re.findall(r' openers=[1-9]', kdrive(a, 'get')), 120, 'all to be closed')
    all_of('/lab/kdrive device-del $n && /lab/kdrive volume-del $n')
    for host in (a, b):
        host.run('rmmod lockstep', timeout=30)


@pytest.mark.slow
def test_module_teardown_waits(lab):
    """A host takes everything down under load, in three orders; its peer vanishes before each step in turn. No step waits for it."""
    a, b = lab.boot(2)
    load = f'{FIO} --rw=randwrite --bs=64k --time_based --runtime=600'
    orders = (('peer-del 2', 'abort 1', 'close', 'device-del 1', 'detach 1', 'volume-del 1'),
              ('detach 1', 'abort 1', 'close', 'device-del 1', 'volume-del 1', 'peer-del 2'),
              ('abort 1', 'close', 'device-del 1', 'detach 1', 'peer-del 2', 'volume-del 1'))
    for link, (order, cut) in enumerate(((o, n) for o in orders for n in range(len(o))), 1):
        for host, number in ((a, 1), (b, 2)):
            start(host, number, 'thin')
            kdrive(host, f'peer-set {3 - number}')
            kdrive(host, 'device-add 1')
        kdrive(b, 'config 1 1 0 0 0 1:insync,2:insync - admit')
        decider = auto(a, '1:insync,2:insync')
        connect(a, b, link)
        writing = a.start(load)
        sent = lambda: int(volume(a)['session']) and int(volume(a).get('pending', 0)) > 4
        wait(sent, 30, 'the load to be under way')
        for n, step in enumerate(order):
            if n == cut:
                b.link('storage', up=False, silent=True)
                wait(lambda: n > 0 or volume(a)['writers'] == '0' or int(volume(a).get('oldest-ms', 0)) > 300, 30, 'writes to wait for beta')
            if step == 'close':
                # A write that began to wait after the last ABORT needs another.
                writing.signal(9)
                wait(lambda: (kdrive(a, 'abort 1'), volume(a)['openers'] == '0')[1], 20, f'{order}, cut before {cut}: the device to be closed')
            else:
                kdrive(a, step, timeout=15)
        decider.stop()
        a.run('rmmod lockstep', timeout=15)
        b.link('storage', up=True, silent=True)
        for step in ('abort 1', 'device-del 1', 'peer-del 1', 'detach 1', 'volume-del 1'):
            kdrive(b, step, timeout=15)
        b.run('rmmod lockstep', timeout=15)


def test_module_unreadable(lab):
    """The disk of the only good copy has lost some sectors: who reads them is told so, all else goes on; writing them mends them."""
    a, = lab.boot(1)
    bad, count = 20000, 8      # sectors
    disk = scsi_debug(a, f'dev_size_mb=256 medium_error_start={bad} medium_error_count={count}')
    start(a, 1, disk=disk)
    kdrive(a, 'device-add 1')
    decider = auto(a, '1:insync')
    part = f'bs=4k skip={bad // 8} count=1 iflag=direct 2>&1'
    a.run(f'dd if=/dev/urandom of=/dev/lockstep/v1 bs=1M count={SIZE >> 20} oflag=direct')
    before = a.out(f'dd if=/dev/lockstep/v1 of=/dev/null {part}; dd if=/dev/lockstep/v1 bs=4k skip=1 count=1 2>/dev/null | sha256sum')
    a.run('echo 2 >/sys/bus/pseudo/drivers/scsi_debug/opts')
    for again in range(2):
        failed = a.run(f'dd if=/dev/lockstep/v1 of=/dev/null {part}', check=False)
        assert failed.status != 0 and ('No data available' in failed.out or 'Input/output error' in failed.out), failed.out
    assert before.endswith(a.out('dd if=/dev/lockstep/v1 bs=4k skip=1 count=1 iflag=direct 2>/dev/null | sha256sum'))
    a.run(f'dd if=/dev/zero of=/dev/lockstep/v1 bs=4k seek={bad // 8 + 1} count=4 oflag=direct')
    assert 'of the only good copy cannot be read' in a.vm.console()
    assert 'failed' not in volume(a)
    a.run('echo 0 >/sys/bus/pseudo/drivers/scsi_debug/opts')
    a.run(f'dd if=/dev/lockstep/v1 of=/dev/null {part}')
    wait(lambda: volume(a)['openers'] == '0', 20, 'the device to be closed')
    decider.stop()
    stop(a)


def test_module_attach_hung(lab):
    """A replica is attached whose disk answers nothing: what comes for its volume waits, what comes for others does not."""
    a, b = lab.boot(2)
    for host, number in ((a, 1), (b, 2)):
        for disk in (1, 2):
            host.run(f'dmsetup create d{disk} --table "0 {4 * SIZE >> 9} linear /dev/vdb {4 * SIZE * (disk - 1) >> 9}"')
        host.run('modprobe lockstep')
        kdrive(host, f'host-set {number}')
        kdrive(host, f'peer-set {3 - number}')
        for vid in (1, 2):
            kdrive(host, f'volume-add {vid} v{vid} {vid - 1} {SIZE}')
            kdrive(host, f'device-add {vid}')
    for vid in (1, 2):
        kdrive(a, f'format /dev/mapper/d{vid} {vid} {SIZE} {SIZE} 1')
        kdrive(a, f'attach {vid} /dev/mapper/d{vid} {SIZE} thin')
    kdrive(b, f'format /dev/mapper/d1 1 {SIZE} {SIZE} 2')
    connect(a, b, 100)
    decider = auto(a, '1:insync')
    a.run('dd if=/dev/urandom of=/dev/lockstep/v1 bs=1M count=1 oflag=direct')
    wait(lambda: volume(a)['writers'] == '0', 20, 'the device to be closed')
    decider.stop()
    state = volume(a)
    kdrive(b, f'config 1 {state["noted"]} {state["term"]} 1 {state["session-ended"]} 1:insync -')
    kdrive(a, 'config 2 1 0 0 0 1:insync - admit')
    for host in (a, b):
        kdrive(host, 'config 2 2 1 1 0 1:insync -')
    part = lambda n: f'dd if=/dev/lockstep/v1 bs=64k skip={n} count=1 iflag=direct 2>/dev/null | sha256sum'

    # Reads of the first volume are under way to alpha, more than there are lanes; then beta's own replica of it is attached.
    wanted = [a.out(f'dd if=/dev/mapper/d1 bs=64k skip={n} count=1 iflag=direct 2>/dev/null | sha256sum') for n in range(12)]
    a.run('dmsetup suspend --nolockfs --noflush d1')
    reading = [b.start(part(n)) for n in range(12)]
    wait(lambda: volume(b)['pending'] == '12', 30, 'all reads to be under way')
    b.run('dmsetup suspend --nolockfs --noflush d1')
    attaching = b.start(f'/lab/kdrive attach 1 /dev/mapper/d1 {SIZE} thin')
    wait(lambda: 'pending' not in volume(b), 30, 'the attach to have the core')
    a.run('dmsetup resume d1')
    b.run('dd if=/dev/lockstep/v2 of=/dev/null bs=4k count=256 iflag=direct', timeout=60)
    assert attaching.running and all(p.running for p in reading)
    assert 'link=100 lanes=4 up' in kdrive(b, 'get')

    b.run('dmsetup resume d1')
    assert 'suspect=0' in attaching.wait(30).out
    assert [p.wait(30).out.strip() for p in reading] == wanted
    assert int(volume(b)['pending']) == 0
    kdrive(b, 'peer-del 1')
    for host in (a, b):
        for vid in (1, 2):
            wait(lambda: volume(host, vid)['openers'] == '0', 20, 'the device to be closed')
            for verb in ('device-del', 'detach', 'volume-del'):
                kdrive(host, f'{verb} {vid}')
        host.run('rmmod lockstep')


def test_module_tls(lab):
    """Lanes with kTLS carry the same; one that the peer closes, or that brings what is no data, ends the link."""
    # Emulated hosts take long to encrypt: promises of 3 s hold all the same, since nothing long goes where the pings go.
    a, b = pair(lab, tls='tls')
    kdrive(b, 'config 1 1 0 0 0 1:insync,2:insync - admit')
    decider = auto(a, '1:insync,2:insync')
    a.run(f'{FIO} {VERIFY} --io_size=6M', timeout=300)
    kdrive(b, 'config 1 2 1 1 1 1:insync,2:insync -')
    part = 'dd if=/dev/lockstep/v1 bs=1M count=4 iflag=direct 2>/dev/null | sha256sum'
    assert b.out(part, timeout=120) == a.out(part)
    wait(lambda: volume(a)['writers'] == '0', 20, 'the device to be closed')
    assert digest(a) == digest(b)
    assert int(volume(a)['peers'][0]['dirty']) == 0, 'the other replica was never lost'
    mount_debugging(a)
    sent = [int(n) for n in re.findall(r'sent=(\d+) bytes', a.out('cat /sys/kernel/debug/lockstep/lanes'))]
    assert len(sent) == 4 and all(n > 100 * sent[0] for n in sent[1:]), f'data went down lane 0: {sent}'
    decider.stop()
    kdrive(b, 'peer-del 1')
    wait(lambda: 'link=100' not in kdrive(a, 'get'), 20, 'the link to end')
    kdrive(a, 'peer-del 2')
    for host in (a, b):
        stop(host)


def test_module_narrow(lab):
    """Sockets with room for less than a frame on a slow network: who sends his own frames stops in the middle of them, and the lanes'
    threads go on from there. Links that end meanwhile take nobody along."""
    a, b = pair(lab, cpus=2, before='echo 4096 8192 16384 >/proc/sys/net/ipv4/tcp_wmem; '
                'tc qdisc replace dev eth1 root tbf rate 80mbit burst 16k latency 50ms')
    kdrive(b, 'config 1 1 0 0 0 1:insync,2:insync - admit')
    decider = auto(a, '1:insync,2:insync')
    mount_debugging(a)
    a.run(f'{FIO} {VERIFY} --io_size=12M --bs=128k-256k --iodepth=1', timeout=300)
    left = [int(n) for n in re.findall(r'left=(\d+)', a.out('cat /sys/kernel/debug/lockstep/lanes'))]
    assert len(left) == 4 and sum(left[1:]) >= 24, f'nobody ever left a frame to the thread: {left}'
    kdrive(b, 'config 1 2 1 1 1 1:insync,2:insync -')
    wait(lambda: volume(a)['writers'] == '0', 20, 'the device to be closed')
    assert int(volume(a)['peers'][0]['dirty']) == 0, 'the other replica was never lost'
    assert digest(a) == digest(b)
    load = a.start(f'{FIO} --rw=randwrite --bs=4k-256k --refill_buffers --time_based --runtime=60 --numjobs=3')
    wait(lambda: volume(a)['writers'] != '0', 30, 'the load to begin')
    for link in range(101, 107):
        kdrive(b, 'peer-del 1')
        kdrive(b, 'peer-set 1')
        connect(a, b, link)
        wait(lambda: int(volume(a)['peers'][0]['dirty']) or int(volume(a)['pending']), 20, 'the load to go on')
    load.signal(2)
    load.wait(90)
    wait(lambda: volume(a)['writers'] == '0', 30, 'the device to be closed')
    decider.stop()
    kdrive(b, 'peer-del 1')
    wait(lambda: 'link=106' not in kdrive(a, 'get'), 20, 'the link to end')
    kdrive(a, 'peer-del 2')
    for host in (a, b):
        stop(host)


@pytest.mark.slow
def test_module_pressure(lab):
    """Swap on the replicated device of a host that runs out of memory: it goes on, and everything it swapped out is right."""
    size = 128 << 20
    a, b = pair(lab, size, lease_ms=8000, memory_mb=320)
    kdrive(b, 'config 1 1 0 0 0 1:insync,2:insync - admit')
    decider = auto(a, '1:insync,2:insync')
    a.run('/lab/memhog swap /dev/lockstep/v1')
    free = int(a.out("awk '$1 == \"MemAvailable:\" { print $2 }' /proc/meminfo")) >> 10
    a.run(f'/lab/memhog fill {free + 50} 2', timeout=400)
    swapped = int(a.out("awk '$1 == \"pswpout\" { print $2 }' /proc/vmstat"))
    assert swapped > 3000, f'only {swapped} pages were swapped out'
    a.run('/lab/memhog unswap /dev/lockstep/v1', timeout=120)
    wait(lambda: volume(a)['writers'] == '0', 20, 'the device to be closed')
    assert int(volume(a)['peers'][0]['dirty']) == 0, 'the other replica was never lost'
    decider.stop()
    same = [h.out(f'dd if=/dev/vdb bs=1M count={size >> 20} iflag=direct 2>/dev/null | sha256sum') for h in (a, b)]
    assert same[0] == same[1]


@pytest.mark.slow
def test_module_pressure_alone(lab):
    """The other replica's host dies meanwhile: the volume stands still until whoever decides lets it go on alone, and he needs memory, too,
    which there is none of but by swapping to that volume."""
    size = 128 << 20
    a, b = pair(lab, size, lease_ms=8000, memory_mb=320)
    kdrive(b, 'config 1 1 0 0 0 1:insync,2:insync - admit')
    decider = auto(a, '1:insync,2:insync')
    a.run('/lab/memhog swap /dev/lockstep/v1')
    a.run('echo 60 >/proc/sys/kernel/hung_task_timeout_secs')
    swapped = lambda: int(a.out("awk '$1 == \"pswpout\" { print $2 }' /proc/vmstat", timeout=120))
    free = int(a.out("awk '$1 == \"MemAvailable:\" { print $2 }' /proc/meminfo")) >> 10
    hog = a.start(f'exec /lab/memhog fill {free + 50} 4')
    wait(lambda: swapped() > 1000, 60, 'pages to be swapped out')
    b.kill()
    wait(lambda: int(volume(a)['peers'][0]['dirty']) > 0, 90, 'the volume to go on without the other replica')
    hog.wait(400)
    a.run('/lab/memhog unswap /dev/lockstep/v1', timeout=120)
    wait(lambda: volume(a)['writers'] == '0', 20, 'the device to be closed')
    decider.stop()


def test_module_shared(lab):
    """A volume of class shared: two hosts write it at once, in many short opens, as XAPI does with its statefile."""
    a, b = pair(lab, shared='shared')
    lines = lambda: [int(h.out('dmesg | grep -c lockstep:')) for h in (a, b)]
    for host in (a, b):
        kdrive(host, 'config 1 1 0 0 0 1:insync,2:insync - admit')
    for host in (a, b):
        kdrive(host, 'config 1 2 1 1 2 1:insync,2:insync 1:1,2:2')
    holding = [host.start('/lab/blockio hold /dev/lockstep/v1 w') for host in (a, b)]
    for h in holding:
        wait(lambda: b'open' in bytes(h.out), 20, 'the device to be open')
    before = lines()
    both = [a.start('/lab/blockio shared /dev/lockstep/v1 1 300'), b.start('/lab/blockio shared /dev/lockstep/v1 2 300')]
    assert [p.wait(200).status for p in both] == [0, 0]
    assert lines() == before, 'an open is not worth a line in the log'
    for host in (a, b):
        assert host.out('dd if=/dev/lockstep/v1 iflag=direct bs=4096 skip=1 count=2 2>/dev/null | od -An -tx8 -w4096 -v | cut -c2-17') \
            == '000000010000012c\n000000020000012c', 'each sees what the other wrote last'
    for h in holding:
        h.close_input()
        h.wait(20)
    assert digest(a) == digest(b)


def test_module_grow(lab):
    """A volume grows while it is open: its metadata move behind the new end, then the device is larger; nothing is lost."""
    grown = 96 << 20
    a, = lab.boot(1)
    a.run("dmsetup create disk --table \"0 $(blockdev --getsz /dev/vdb) linear /dev/vdb 0\"")
    start(a, 1, disk='/dev/mapper/disk')
    kdrive(a, 'device-add 1')
    decider = auto(a, '1:insync')
    a.run(f'dd if=/dev/urandom of=/dev/lockstep/v1 bs=1M count={SIZE >> 20} oflag=direct')
    before = digest(a)
    holding = a.start('/lab/blockio hold /dev/lockstep/v1 w')
    wait(lambda: b'open' in bytes(holding.out), 20, 'the device to be open')
    decider.stop()
    state = volume(a)
    refused(a, f'resize 1 {grown}', 'Invalid argument')
    refused(a, f'meta-move 1 {1 << 40} {grown}', 'File too large')
    refused(a, f'meta-move 1 {grown - 4096} {grown}', 'Invalid argument')
    kdrive(a, f'meta-move 1 {grown} {grown}')
    wait(lambda: 'move-current' in volume(a), 30, 'the metadata to stand in both places')
    refused(a, f'meta-move 1 {2 * grown} {grown}', 'Device or resource busy')

    # A disk that answers nothing keeps the kernel from changing over: until it has, it names the old place.
    config = lambda n, size='': kdrive(a, f'config 1 {int(state["noted"]) + n} {state["term"]} 1 {state["session"]} 1:insync '
                                          f'1:{state["session"]} {size}')
    a.run('dmsetup suspend --nolockfs disk')
    config(1)
    for _ in range(2):
        kdrive(a, f'meta-moved 1 {grown}')
        assert volume(a)['offset'] == str(SIZE) and volume(a)['move'] == str(grown) and 'move-current' in volume(a)
    a.run('dmsetup resume disk')
    wait(lambda: volume(a)['offset'] == str(grown), 20, 'the kernel to change over')
    wait(lambda: 'move' not in volume(a), 60, 'what stood behind the data to be zeros')
    assert volume(a)['offset'] == str(grown) and int(volume(a)['capacity']) >= grown
    config(2, grown)
    kdrive(a, f'resize 1 {grown}')
    kdrive(a, f'resize 1 {grown}')
    refused(a, f'resize 1 {SIZE}', 'Invalid argument')
    assert a.out('blockdev --getsize64 /dev/lockstep/v1') == volume(a)['size'] == str(grown)
    a.run(f'cmp -n {grown - SIZE} /dev/zero /dev/lockstep/v1 0 {SIZE}')
    a.run('dd if=/dev/urandom of=/dev/lockstep/v1 bs=1M seek=80 count=16 oflag=direct conv=notrunc')
    after = a.out('sha256sum </dev/lockstep/v1')
    assert digest(a) == before
    holding.close_input()
    holding.wait(20)
    wait(lambda: volume(a)['openers'] == '0', 20, 'the device to be closed')
    for verb in ('device-del', 'detach', 'volume-del'):
        kdrive(a, f'{verb} 1')
    kdrive(a, f'volume-add 1 v1 0 {grown}')
    assert 'suspect=0' in kdrive(a, f'attach 1 /dev/mapper/disk {grown}')
    assert a.out(f'dd if=/dev/vdb bs=1M count={grown >> 20} iflag=direct 2>/dev/null | sha256sum') == after
    stop(a)
