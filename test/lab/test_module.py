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


def digest(host):
    return host.out(f'dd if=/dev/vdb bs=1M count={SIZE >> 20} iflag=direct 2>/dev/null | sha256sum')


def start(host, number, thin=''):
    host.run('modprobe lockstep')
    kdrive(host, f'host-set {number}')
    kdrive(host, f'format /dev/vdb 1 {SIZE} {SIZE} {number}')
    kdrive(host, f'volume-add 1 v1 0 {SIZE}')
    assert 'suspect=0' in kdrive(host, f'attach 1 /dev/vdb {SIZE} {thin}')


def stop(host):
    """Takes everything down; the module warns on the console about whatever it has not freed."""
    for verb in ('device-del', 'detach', 'volume-del'):
        kdrive(host, f'{verb} 1')
    host.run('rmmod lockstep')


def auto(host, replicas):
    p = host.start(f'/lab/kdrive auto 1 {replicas}')
    wait(lambda: int(volume(host).get('noted', 0)) >= 1, 10, 'the first record')
    return p


def connect(a, b, link):
    listening = b.start(f'/lab/kdrive listen 1 {link} 7788 4')
    kdrive(a, f'connect 2 {link} {b.networks_address("storage")} 7788 4')
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

    # A clean end leaves nothing hot.
    for verb in ('device-del', 'device-del', 'detach', 'detach', 'volume-del', 'volume-del'):
        kdrive(a, f'{verb} 1')
    kdrive(a, f'volume-add 1 v1 0 {SIZE}')
    assert 'suspect=0' in kdrive(a, f'attach 1 /dev/vdb {SIZE}')
    stop(a)


def test_module_pair(lab):
    """Two replicas: equal after writes, a lost one freezes writes until the record is without it, and it catches up."""
    a, b = lab.boot(2)
    for host, number in ((a, 1), (b, 2)):
        start(host, number, 'thin')
        kdrive(host, f'peer-set {3 - number}')
        kdrive(host, 'device-add 1')
    kdrive(b, 'config 1 1 0 0 0 1:insync,2:insync - admit')
    decider = auto(a, '1:insync,2:insync')
    connect(a, b, 100)
    a.run(f'{FIO} {VERIFY}', timeout=300)
    assert digest(a) == digest(b)
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

    # Teardown waits for nobody: the peer's host is gone, a write is frozen, and the replica detaches all the same.
    decider.stop()
    b.kill()
    kdrive(a, 'detach 1', timeout=20)
    kdrive(a, 'peer-del 2', timeout=20)
    stop(a)
