# SPDX-License-Identifier: GPL-2.0-or-later
#
# A daemon that answers what no daemon of this version would: damaged, cut off, of another version, or not at all. Each call is an error of
# XAPI that names the daemon, or is done; xapi's records stay as they are, and when the daemon is itself again so do the disks.
import copy
import json
import os
import socket
import sys
import threading

import pytest

from conftest import CONFIG, SOURCE
from fakexapi import XenError

sys.path.insert(0, SOURCE)

import lockstepapi    # noqa: E402

GIB = 1 << 30


def reply(body, status='200 OK', length=None):
    return ('HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n' % (status, len(body) if length is None else length)).encode() + body


@pytest.fixture
def answering(tmp_path):
    """Listens on a socket and answers every request with the bytes it is given; None: never."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / 'sock'))
    listener.listen(8)
    open_ones = []

    def serve(data):
        while True:
            try:
                one = listener.accept()[0]
            except OSError:
                return
            one.recv(65536)
            if data is None:
                open_ones.append(one)
            else:
                one.sendall(data)
                one.close()

    def begin(data):
        threading.Thread(target=serve, args=(data,), daemon=True).start()
        return lockstepapi.Api(str(tmp_path / 'sock'))
    yield begin
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for one in open_ones:
        one.close()


ANSWERS = {
    'closed at once': (b'', lockstepapi.Unreachable, 'cannot be asked'),
    'cut in its head': (b'HTTP/1.1 200 OK\r\nContent-Le', lockstepapi.ApiError, 'no JSON'),
    'cut in its body': (reply(b'{"cluster": {"uui', length=400), lockstepapi.Unreachable, 'cannot be asked .*IncompleteRead'),
    'cut, without a length': (b'HTTP/1.1 200 OK\r\n\r\n{"cluster": {"uui', lockstepapi.ApiError, 'no JSON'),
    'empty': (reply(b''), lockstepapi.ApiError, 'no JSON'),
    'no HTTP': (b'\x00\xff\x13 what?\r\n\r\n', lockstepapi.Unreachable, 'cannot be asked'),
    'no UTF-8': (reply(b'{"cluster": "\xff\xfe"}'), lockstepapi.ApiError, 'no JSON'),
    'a list': (reply(b'[]'), lockstepapi.ApiError, 'not awaited'),
    'null': (reply(b'null'), lockstepapi.ApiError, 'not awaited'),
    'without what is needed': (reply(b'{"applied": 1}'), lockstepapi.ApiError, 'without "cluster", which is needed'),
    '503 of the API': (reply(b'{"status": 10, "code": "no-quorum", "message": "no quorum"}', '503 No'), lockstepapi.ApiError, '^no quorum$'),
    '503 of another': (reply(b'<html>busy</html>', '503 Service Unavailable'), lockstepapi.ApiError, 'what is no error of its API'),
    '500 without a word': (reply(b'', '500 No'), lockstepapi.ApiError, 'what is no error of its API'),
    'another meaning': (reply(b'{"status": "high", "message": 5}', '409 No'), lockstepapi.ApiError, 'what is no error of its API'),
}


@pytest.mark.parametrize('answer', ANSWERS)
def test_each_is_told_as_what_it_is(answering, answer):
    data, kind, says = ANSWERS[answer]
    with pytest.raises(lockstepapi.ApiError, match=says) as e:
        answering(data).cluster_status()
    assert type(e.value) is kind


def test_no_answer_is_told_after_the_time_for_it(answering):
    with pytest.raises(lockstepapi.Unreachable, match=r'did not answer GET /status within 0\.1 s'):
        answering(None).call('GET', '/status', timeout_s=0.1)


def test_a_socket_that_nobody_listens_on_any_more(tmp_path):
    """The daemon is being restarted: its socket is there, and refuses."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / 'sock'))
    listener.close()
    assert os.path.exists(str(tmp_path / 'sock'))
    with pytest.raises(lockstepapi.Unreachable, match='lockstepd does not run on this host: start it'):
        lockstepapi.Api(str(tmp_path / 'sock')).cluster_status()


SPOILED = {
    'lacks all': lambda status, answer: reply(b'{}'),
    'cut': lambda status, answer: reply(json.dumps(answer).encode()[:-2], length=len(json.dumps(answer))),
    '503': lambda status, answer: reply(b'{"status": 10, "code": "failed", "message": "lockstepd is ending"}', '503 Service Unavailable'),
}


def calls_on(world, sr, disk, snapshot, second):
    """All that ask the daemon. sr_detach, vdi_detach and attach_from_config do not."""
    x = world.xapi
    other = x.sr_record('other', dict(CONFIG, redundancy='1'))
    uuid = x.db['VDI'][disk]['uuid']
    return {
        'sr_attach': lambda: x.sr_call('sr_attach', sr), 'sr_scan': lambda: x.sr_call('sr_scan', sr), 'sr_update': lambda: x.sr_call('sr_update', sr),
        'sr_create': lambda: x.sr_call('sr_create', other, args=['0']), 'sr_delete': lambda: x.sr_call('sr_delete', sr),
        'sr_probe': lambda: x.sr_probe(CONFIG), 'vdi_create': lambda: x.vdi_create(sr, GIB), 'vdi_delete': lambda: x.vdi_call('vdi_delete', disk),
        'vdi_snapshot': lambda: x.vdi_snapshot(disk), 'vdi_clone': lambda: x.vdi_clone(disk), 'vdi_resize': lambda: x.vdi_resize(disk, 2 * GIB),
        'vdi_introduce': lambda: x.vdi_introduce(sr, uuid, uuid), 'vdi_update': lambda: x.vdi_call('vdi_update', disk),
        'vdi_generate_config': lambda: x.vdi_call('vdi_generate_config', disk), 'vdi_compose': lambda: x.vdi_call('vdi_compose', disk, args=[second]),
        'vdi_data_destroy': lambda: x.vdi_call('vdi_data_destroy', snapshot),
        'vdi_list_changed_blocks': lambda: x.vdi_call('vdi_list_changed_blocks', snapshot, args=[disk]),
        # What these need of the answer is that there is one.
        'vdi_enable_cbt': lambda: x.vdi_call('vdi_enable_cbt', disk), 'vdi_disable_cbt': lambda: x.vdi_call('vdi_disable_cbt', disk),
        # attach only tells where the device will be: sm has the driver attach it when it is activated.
        'vdi_activate': lambda: x.vdi_activate(disk, x.master),
        'vdi_deactivate': lambda: x.vdi_deactivate(disk, x.master),
    }


@pytest.mark.parametrize('spoil', ['lacks all'] + [pytest.param(s, marks=pytest.mark.slow) for s in SPOILED if s != 'lacks all'])
def test_every_call_is_an_error_of_xapi(world, sr, spoil):
    x = world.xapi
    disk, second = x.vdi_create(sr, GIB, 'disk'), x.vdi_create(sr, GIB, 'second')
    snapshot = x.vdi_snapshot(disk)
    x.vdi_attach(disk, x.master)     # for activate and deactivate, which come last
    for name, call in calls_on(world, sr, disk, snapshot, second).items():
        if name == 'vdi_deactivate':
            x.vdi_activate(disk, x.master)
        before = copy.deepcopy(x.db['VDI'])
        world.cluster.spoil = SPOILED[spoil]
        try:
            call()
            assert spoil == 'lacks all' and name in ('vdi_enable_cbt', 'vdi_disable_cbt'), name + ' is said to be done'
        except XenError as e:
            assert e.code.startswith('SR_BACKEND_FAILURE_') and e.code != 'SR_BACKEND_FAILURE_1200' and 'lockstepd' in str(e), (name, str(e))
        finally:
            world.cluster.spoil = None
        after = copy.deepcopy(x.db['VDI'])
        for r in list(before.values()) + list(after.values()):
            r['sm_config'] = None    # sm marks there what it has begun
        assert before == after, name
    x.vdi_deactivate(disk, x.master)
    x.vdi_detach(disk, x.master)
    x.sr_scan(sr)
    assert set(x.vdis(sr)) == {disk, second, snapshot}
    world.consistent(sr)


def of_a_later_version(status, answer):
    """With fields that nobody knows yet in each object; labels are no fields."""
    def more(value, key=None):
        if isinstance(value, dict) and key != 'labels':
            return dict({k: more(v, k) for k, v in value.items()}, brand_new={'level': [1, None]}, x=None)
        return [more(v) for v in value] if isinstance(value, list) else value
    return reply(json.dumps(more(answer)).encode(), '%d As before' % status)


def test_a_later_daemon_may_tell_more(world):
    world.cluster.spoil = of_a_later_version
    x, beta = world.xapi, world.hosts[1]
    sr = world.create()
    disk = x.vdi_create(sr, GIB, 'disk')
    x.vdi_call('vdi_enable_cbt', disk)
    x.plug(disk, beta)
    snapshot = x.vdi_snapshot(disk)
    world.cluster.write(x.db['VDI'][disk]['uuid'], 3, 'data')
    assert x.vdi_call('vdi_list_changed_blocks', snapshot, args=[disk]).startswith('E')
    clone = x.vdi_clone(snapshot)
    x.plug(snapshot, beta, writable=False)
    x.unplug(snapshot, beta)
    x.unplug(disk, beta)
    x.vdi_resize(disk, 2 * GIB)
    with pytest.raises(XenError, match='SR_BACKEND_FAILURE_44'):
        x.vdi_create(sr, 300 * GIB)
    assert x.sr_probe(CONFIG) == [x.db['SR'][sr]['uuid']]
    world.consistent(sr)
    for vdi in (snapshot, clone, disk):
        x.vdi_destroy(vdi)
    x.sr_destroy(sr)


def test_a_phase_that_nobody_has_heard_of_makes_no_disk_forgotten(world, sr):
    """A later daemon may be in the middle of something with a disk. It is there all the same."""
    x = world.xapi
    disk = x.vdi_create(sr, GIB)
    both = {disk, x.vdi_snapshot(disk)}
    world.cluster.spoil = lambda status, answer: reply(json.dumps(answer).replace('"phase": "ready"', '"phase": "reshaping"').encode())
    x.sr_scan(sr)
    assert set(x.vdis(sr)) == both
