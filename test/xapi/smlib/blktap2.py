# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for sm's blktap2: wraps a driver's VDI for the data path. The rules that other hosts see are kept: the tag
# "host_<ref>" in sm_config, of which only one may be RW; "activating" as a lock; "paused". A "tapdisk" is a file below FAKE_DEV
# that names the device, and an open that the daemon's stand-in counts (or, with real devices, a process that holds it open).
import http.client
import json
import os
import signal
import socket
import subprocess
import time
import xmlrpc.client

import VDI as sm
import XenAPI
import util


class TapdiskFailed(Exception):
    pass


class TapdiskExists(Exception):
    pass


RETRIES_S = 5    # 120 in the original


def ask_daemon(verb, volume, **how):
    """The stand-in of the daemon counts opens; None if it is a real one."""
    connection = http.client.HTTPConnection('localhost', timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(os.environ['LOCKSTEP_SOCKET'])
    connection.request('POST', '/test/' + verb, json.dumps(dict(how, volume=volume)))
    response = connection.getresponse()
    body = json.loads(response.read().decode())
    connection.close()
    if response.status == 404:
        return None
    return body


class Tapdisk(object):
    def __init__(self, sr_uuid, vdi_uuid):
        self.file = os.path.join(os.environ['FAKE_DEV'], 'tapdisk', sr_uuid, vdi_uuid)

    def running(self):
        return os.path.exists(self.file)

    def state(self):
        with open(self.file) as f:
            return json.load(f)

    def write(self, state):
        os.makedirs(os.path.dirname(self.file), exist_ok=True)
        with open(self.file + '.new', 'w') as f:
            json.dump(state, f)
        os.rename(self.file + '.new', self.file)

    def launch(self, path, writable):
        if self.running():
            return
        answer = ask_daemon('open', os.path.basename(path), write=writable)
        state = {'path': path, 'writable': writable, 'paused': False}
        if answer is None:
            state['pid'] = self.hold(path, writable)
        elif answer['error']:
            raise TapdiskFailed(answer['error'])
        self.write(state)

    @staticmethod
    def hold(path, writable):
        try:
            fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as e:
            raise TapdiskFailed(e.strerror)
        os.set_inheritable(fd, True)
        try:
            return subprocess.Popen(['sleep', '1000000'], close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                    start_new_session=True).pid
        finally:
            os.close(fd)

    def shutdown(self):
        if not self.running():
            return
        if 'pid' in self.state():
            os.kill(self.state()['pid'], signal.SIGKILL)
        else:
            ask_daemon('close', os.path.basename(self.state()['path']))
        os.unlink(self.file)


class VDI(object):
    def __init__(self, uuid, target, driver_info):
        self.vdi, self.info, self.session = target, driver_info, target.session
        assert 'ATOMIC_PAUSE' in driver_info['capabilities'] and target.vdi_type == 'aio', 'else another path is taken'

    @staticmethod
    def link(kind, sr_uuid, vdi_uuid):
        return os.path.join(os.environ['FAKE_DEV'], 'sm', kind, sr_uuid, vdi_uuid)

    def attach(self, sr_uuid, vdi_uuid, writable):
        struct = {'params': '/dev/sm/backend/%s/%s' % (sr_uuid, vdi_uuid),
                  'params_nbd': 'nbd:unix:/run/blktap-control/nbd/%s/%s:exportname=%s' % (sr_uuid, vdi_uuid, vdi_uuid),
                  'o_direct': True, 'o_direct_reason': 'SR_NOT_SUPPORTED', 'xenstore_data': self.vdi.xenstore_data}
        return xmlrpc.client.dumps((struct,), '', True)

    def detach(self, sr_uuid, vdi_uuid):
        pass

    def _ref(self, vdi_uuid):
        return self.session.xenapi.VDI.get_by_uuid(vdi_uuid)

    def _tag(self, vdi_uuid, writable):
        api, ref = self.session.xenapi.VDI, self._ref(vdi_uuid)
        mine = 'host_%s' % util.get_localhost_ref(self.session)
        config = api.get_sm_config(ref)
        if 'paused' in config or 'relinking' in config:
            return False
        others = {k: v for k, v in config.items() if k.startswith('host_') and k != mine}
        if 'RW' in others.values() or (writable and others):
            raise util.SMException('VDI %s not detached cleanly' % vdi_uuid)
        try:
            api.add_to_sm_config(ref, 'activating', 'True')
        except XenAPI.Failure as e:
            if e.details[0] == 'MAP_DUPLICATE_KEY' and not writable:
                return False
            raise
        if mine not in config:
            api.add_to_sm_config(ref, mine, 'RW' if writable else 'RO')
        return True

    def activate(self, sr_uuid, vdi_uuid, writable, caching):
        for _ in range(RETRIES_S):
            if self._tag(vdi_uuid, writable):
                break
            time.sleep(1)
        else:
            raise util.SMException('VDI %s locked' % vdi_uuid)
        ref = self._ref(vdi_uuid)
        try:
            # As the original: the driver is loaded as a module, and everything about the VDI read again.
            params = self.vdi.sr.srcmd.params
            self.vdi = sm.VDI.from_uuid(self.session, vdi_uuid)
            self.vdi.sr.srcmd.params = params
            path = xmlrpc.client.loads(self.vdi.attach(sr_uuid, vdi_uuid))[0][0]['params']
            self._relink(self.link('phy', sr_uuid, vdi_uuid), path)
            self.vdi.activate(sr_uuid, vdi_uuid)
            Tapdisk(sr_uuid, vdi_uuid).launch(path, writable)
        except BaseException:
            self.session.xenapi.VDI.remove_from_sm_config(ref, 'host_%s' % util.get_localhost_ref(self.session))
            raise
        finally:
            self.session.xenapi.VDI.remove_from_sm_config(ref, 'activating')

    @staticmethod
    def _relink(link, path):
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if os.path.islink(link):
            assert os.readlink(link) == path, 'the path of a VDI changed while it was linked'
            return
        os.symlink(path, link)

    def deactivate(self, sr_uuid, vdi_uuid, caching):
        if 'paused' in self.session.xenapi.VDI.get_sm_config(self._ref(vdi_uuid)):
            raise util.SMException('VDI %s locked' % vdi_uuid)
        Tapdisk(sr_uuid, vdi_uuid).shutdown()
        self.vdi.deactivate(sr_uuid, vdi_uuid)
        self.vdi.detach(sr_uuid, vdi_uuid)
        try:
            os.unlink(self.link('phy', sr_uuid, vdi_uuid))
        except FileNotFoundError:
            pass
        self.session.xenapi.VDI.remove_from_sm_config(self._ref(vdi_uuid), 'host_%s' % util.get_localhost_ref(self.session))

    # ---- on all hosts that have it open ----

    @classmethod
    def _on_hosts(cls, session, sr_uuid, vdi_uuid, function, **args):
        config = session.xenapi.VDI.get_sm_config(session.xenapi.VDI.get_by_uuid(vdi_uuid))
        for key in sorted(config):
            if key.startswith('host_'):
                answer = session.xenapi.host.call_plugin(key[len('host_'):], 'tapdisk-pause', function,
                                                         dict(args, sr_uuid=sr_uuid, vdi_uuid=vdi_uuid))
                if answer != 'True':
                    return False
        return True

    @classmethod
    def tap_pause(cls, session, sr_uuid, vdi_uuid, failfast=False):
        ref = session.xenapi.VDI.get_by_uuid(vdi_uuid)
        session.xenapi.VDI.add_to_sm_config(ref, 'paused', 'true')
        if cls._on_hosts(session, sr_uuid, vdi_uuid, 'pause'):
            return True
        session.xenapi.VDI.remove_from_sm_config(ref, 'paused')
        return False

    @classmethod
    def tap_unpause(cls, session, sr_uuid, vdi_uuid, secondary=None, activate_parents=False):
        if not cls._on_hosts(session, sr_uuid, vdi_uuid, 'unpause', **({'secondary': secondary} if secondary else {})):
            return False
        session.xenapi.VDI.remove_from_sm_config(session.xenapi.VDI.get_by_uuid(vdi_uuid), 'paused')
        return True

    @classmethod
    def tap_refresh(cls, session, sr_uuid, vdi_uuid, activate_parents=False):
        return cls._on_hosts(session, sr_uuid, vdi_uuid, 'refresh')
