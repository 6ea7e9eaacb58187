# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for xapi: its database behind XML-RPC on a unix socket, and its half of the contract with storage drivers. It runs the
# driver as xapi does, one process a call with one argument, and follows xapi's order of calls for each operation of its API.
#
# Kept of xapi's rules: sessions (only the one made for a call on an SR may change what the database says of that SR's disks),
# plugins run on the host that is named, MAP_DUPLICATE_KEY, uniqueness of location and uuid, per-SR and per-VDI locks with none
# for create, results checked for shape and type, faults turned into errors of the XenAPI. "Hosts" are folders and environments
# of this machine.
import compileall
import contextlib
import os
import re
import shutil
import signal
import socketserver
import subprocess
import threading
import time
import uuid
import xmlrpc.client
from http.server import BaseHTTPRequestHandler
from xml.sax.saxutils import escape

NULL = 'OpaqueRef:NULL'
SM_SESSION_ONLY = {
    'VDI.db_introduce', 'VDI.db_forget', 'SR.set_virtual_allocation', 'SR.set_physical_size', 'SR.set_physical_utilisation',
    'VDI.set_managed', 'VDI.set_read_only', 'VDI.set_missing', 'VDI.set_virtual_size', 'VDI.set_physical_utilisation',
    'VDI.set_is_a_snapshot', 'VDI.set_snapshot_of', 'VDI.set_snapshot_time', 'VDI.set_sharable', 'VDI.set_metadata_of_pool',
    'VDI.set_cbt_enabled', 'PBD.set_device_config'}
TIMEOUT_S = 300    # xapi has none; a test that hangs must end


class XenError(Exception):
    """An error of the XenAPI as its client sees it."""

    def __init__(self, *details):
        Exception.__init__(self, ': '.join(str(d) for d in details))
        self.details = [str(d) for d in details]
        self.code = self.details[0]


class Killed(Exception):
    """The driver's process was killed by the test."""


def ref():
    return 'OpaqueRef:' + str(uuid.uuid4())


def xml_value(value):
    """As xapi writes: texts without a tag, the empty one as an empty element."""
    if isinstance(value, dict):
        return '<value><struct>%s</struct></value>' % ''.join(
            '<member><name>%s</name>%s</member>' % (escape(k), xml_value(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return '<value><array><data>%s</data></array></value>' % ''.join(xml_value(v) for v in value) if value else \
            '<value><array><data/></array></value>'
    return '<value>%s</value>' % escape(value, {'"': '&quot;'}) if value else '<value/>'


def method_call(name, params):
    return '<methodCall><methodName>%s</methodName><params>%s</params></methodCall>' % (
        name, ''.join('<param>%s</param>' % xml_value(p) for p in params))


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


class Xapi(object):
    """folder: for sockets and the hosts' files. driver: the folder that stands for /opt/xensource/sm. cluster: stand-in or real
    daemons, of which only socket(host) and devices(host) are used."""

    def __init__(self, folder, driver, plugins, cluster, names, environment=None):
        self.folder, self.driver, self.plugins, self.cluster = folder, driver, plugins, cluster
        self.environment = environment or {}
        self.lock = threading.RLock()
        self.db = {c: {} for c in ('pool', 'host', 'SR', 'PBD', 'VDI', 'SM', 'PIF', 'message')}
        self.sessions = {}
        self.vdi_locks, self.sr_locks, self.sr_attach_lock = {}, {}, threading.Lock()
        self.before = self.after = None     # hooks: (method) around each call of the database
        self.calls = []
        self.processes = {}                 # of drivers and plugins that run now
        self.smlog = os.path.join(folder, 'SMlog')
        self.durations = []
        self.dead = False                   # killed: what it was in the middle of, it does not end
        for name in names:
            self.add_host(name)
        self.master = sorted(self.db['host'], key=lambda h: names.index(self.db['host'][h]['name_label']))[0]
        self.db['pool'][ref()] = {'uuid': str(uuid.uuid4()), 'master': self.master, 'name_label': 'pool'}
        self.serve()

    # ---- hosts and the driver's registration ----

    def add_host(self, name):
        record = {'uuid': str(uuid.uuid4()), 'name_label': name, 'hostname': name, 'enabled': True, 'address': '10.0.0.1', 'other_config': {}}
        host = ref()
        self.db['host'][host] = record
        home = os.path.join(self.folder, name)
        for sub in ('dev', 'locks'):
            os.makedirs(os.path.join(home, sub), exist_ok=True)
        with open(os.path.join(home, 'inventory'), 'w') as f:
            f.write("PRODUCT_BRAND='XCP-ng'\nINSTALLATION_UUID='%s'\n" % record['uuid'])
        return host

    def host_named(self, name):
        return next(h for h, r in self.db['host'].items() if r['name_label'] == name)

    def env(self, host):
        name = self.db['host'][host]['name_label']
        home = os.path.join(self.folder, name)
        env = {'PATH': '/sbin:/usr/sbin:/bin:/usr/bin', 'ORIGINATOR': 'SM', 'PYTHONDONTWRITEBYTECODE': '1', 'FAKE_XAPI': self.socket,
               'FAKE_DEV': os.path.join(home, 'dev'), 'FAKE_SMLOG': self.smlog, 'LOCKSTEP_XENSOURCE_INVENTORY': os.path.join(home, 'inventory'),
               'LOCKSTEP_SOCKET': self.cluster.socket(name), 'LOCKSTEP_DEVICES': self.cluster.devices(name),
               'LOCKSTEP_LOCK_DIR': os.path.join(home, 'locks')}
        env.update(self.environment)
        return env

    def register_driver(self, host):
        """What xapi does at its start: an executable whose name ends in SR, asked for what it can do."""
        name = next(n for n in os.listdir(self.driver) if n.endswith('SR') and os.access(os.path.join(self.driver, n), os.X_OK))
        info = self.exec_driver(host, 'sr_get_driver_info', {}, session=False)
        for key in ('name', 'description', 'vendor', 'copyright', 'driver_version', 'required_api_version'):
            assert isinstance(info[key], str), key
        assert float(info['required_api_version']) < 2.0
        assert all(isinstance(c, str) for c in info['capabilities']) and 'VDI_ATTACH_OFFLINE' not in info['capabilities']
        assert all(set(c) == {'key', 'description'} for c in info['configuration'])
        record = {'type': name[:-2].lower(), 'capabilities': info['capabilities'], 'driver_filename': os.path.join(self.driver, name),
                  'required_api_version': info['required_api_version'], 'uuid': str(uuid.uuid4())}
        self.db['SM'] = {ref(): record}
        return record

    def has(self, capability):
        return any(capability in r['capabilities'] for r in self.db['SM'].values())

    # ---- the database's server ----

    def serve(self):
        xapi = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.0'

            def log_message(self, *_):
                pass

            def address_string(self):
                return ''

            def do_POST(self):
                text = self.rfile.read(int(self.headers['Content-Length'])).decode()
                data = xapi.answer(text).encode()
                try:
                    self.send_response(200)
                    self.send_header('Content-Type', 'text/xml')
                    self.send_header('Content-Length', str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass    # who asked has been killed

        self.socket = os.path.join(self.folder, 'xapi')
        self.server = Server(self.socket, Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        for pid in self.processes:
            os.kill(pid, signal.SIGKILL)

    def answer(self, text):
        params, method = xmlrpc.client.loads(text)
        self.calls.append(method)
        if self.before:
            self.before(method)
        try:
            reply = {'Status': 'Success', 'Value': self.call(method, *params)}
        except XenError as e:
            reply = {'Status': 'Failure', 'ErrorDescription': e.details}
        if self.after:
            self.after(method)
        return xmlrpc.client.dumps((reply,), '', True, allow_none=True)

    def call(self, method, *params):
        if method == 'session.login_with_password':
            session = ref()
            self.sessions[session] = None
            return session
        session, params = params[0], params[1:]
        if session not in self.sessions:
            raise XenError('SESSION_INVALID', session)
        if method == 'session.logout':
            del self.sessions[session]
            return ''
        if method == 'host.call_plugin':
            return self.call_plugin(*params)
        if method in ('PBD.plug', 'PBD.unplug'):
            return getattr(self, 'pbd_' + method[4:])(*params) or ''
        with self.lock:
            if method in SM_SESSION_ONLY:
                self.check_sm_session(session, method, params)
            return self.database(method, params)

    def check_sm_session(self, session, method, params):
        sr = self.sessions[session]
        target = params[0] if method.startswith('SR.') else params[3] if method == 'VDI.db_introduce' else \
            self.record(method.split('.')[0], params[0])['SR']
        if sr is None or sr != target:
            raise XenError('PERMISSION_DENIED', method)

    def record(self, cls, key):
        if key not in self.db[cls]:
            raise XenError('HANDLE_INVALID', cls, key)
        return self.db[cls][key]

    def database(self, method, params):
        cls, verb = method.split('.')
        special = {'VDI.db_introduce': self.db_introduce, 'VDI.db_forget': self.db_forget, 'message.create': self.message_create,
                   'SR.get_VDIs': self.vdis, 'PBD.create': self.pbd_create, 'PBD.destroy': lambda key: self.db['PBD'].pop(key) and ''}
        if method in special:
            return special[method](*params)
        table = self.db[cls]
        if verb == 'get_all':
            return list(table)
        if verb == 'get_all_records':
            return {k: dict(r) for k, r in table.items()}
        if verb == 'get_all_records_where':
            wanted = re.findall(r'field "(\w+)" = "([^"]*)"', params[0])
            return {k: dict(r) for k, r in table.items() if all(str(r[f]) == v for f, v in wanted)}
        if verb == 'get_by_uuid':
            found = [k for k, r in table.items() if r['uuid'] == params[0]]
            if not found:
                raise XenError('UUID_INVALID', cls, params[0])
            return found[0]
        record = self.record(cls, params[0])
        if verb == 'get_record':
            return dict(record)
        if verb.startswith('get_'):
            return record[verb[4:]]
        if verb.startswith('set_'):
            if verb[4:] not in record:
                raise XenError('MESSAGE_METHOD_UNKNOWN', method)
            record[verb[4:]] = params[1]
            return ''
        if verb.startswith('add_to_'):
            if params[1] in record[verb[7:]]:
                raise XenError('MAP_DUPLICATE_KEY', cls, verb[7:], params[0], params[1])
            record[verb[7:]] = dict(record[verb[7:]], **{params[1]: params[2]})
            return ''
        if verb.startswith('remove_from_'):
            record[verb[12:]] = {k: v for k, v in record[verb[12:]].items() if k != params[1]}
            return ''
        raise XenError('MESSAGE_METHOD_UNKNOWN', method)

    def db_introduce(self, uuid_, label, description, sr, ty, sharable, read_only, other_config, location, xenstore_data, sm_config, managed,
                     virtual_size, utilisation, metadata_of_pool, is_a_snapshot, snapshot_time, snapshot_of, cbt_enabled=False):
        for value in (uuid_, label, description, sr, ty, location, virtual_size, utilisation, metadata_of_pool, snapshot_of):
            assert isinstance(value, str), value
        for value in (sharable, read_only, managed, is_a_snapshot, cbt_enabled):
            assert isinstance(value, bool), value
        for r in self.db['VDI'].values():
            if r['uuid'] == uuid_:
                raise XenError('UUID_INVALID', 'VDI', 'duplicate ' + uuid_)
            if r['SR'] == sr and r['location'] == location:
                raise XenError('LOCATION_NOT_UNIQUE', sr, location)
        key = ref()
        self.db['VDI'][key] = {
            'uuid': uuid_, 'name_label': label, 'name_description': description, 'SR': sr, 'type': ty, 'sharable': sharable,
            'read_only': read_only, 'other_config': other_config, 'location': location, 'xenstore_data': xenstore_data,
            'sm_config': sm_config, 'managed': managed, 'virtual_size': virtual_size, 'physical_utilisation': utilisation,
            'metadata_of_pool': metadata_of_pool, 'is_a_snapshot': is_a_snapshot, 'snapshot_time': str(snapshot_time),
            'snapshot_of': snapshot_of, 'cbt_enabled': cbt_enabled, 'missing': False}
        return key

    def db_forget(self, key):
        self.record('VDI', key)
        del self.db['VDI'][key]
        return ''

    def message_create(self, name, priority, cls, obj, body):
        self.db['message'][ref()] = {'name': name, 'body': body}
        return ''

    def pbd_create(self, record):
        key = ref()
        self.db['PBD'][key] = dict(record, uuid=str(uuid.uuid4()), currently_attached=False)
        return key

    def call_plugin(self, host, plugin, function, args):
        path = os.path.join(self.plugins, plugin)
        if not os.path.exists(path):
            raise XenError('XENAPI_MISSING_PLUGIN', plugin)
        for value in args.values():
            assert isinstance(value, str), args
        session = ref()
        self.sessions[session] = None
        try:
            process = subprocess.Popen([path, method_call(function, [session, args])], env=self.env(host), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.processes[process.pid] = function
            try:
                out, err = process.communicate(timeout=TIMEOUT_S)
            finally:
                del self.processes[process.pid]
        finally:
            del self.sessions[session]
        if process.returncode:
            raise XenError('XENAPI_PLUGIN_FAILURE', 'non-zero exit', out.decode(), err.decode())
        reply = xmlrpc.client.loads(out.decode())[0][0]
        if reply['Status'] != 'Success':
            raise XenError(*reply['ErrorDescription'])
        assert isinstance(reply['Value'], str)
        return reply['Value']

    # ---- one call of the driver ----

    def exec_driver(self, host, command, members, session=True, sr=None, probe=False, killable=True):
        """Runs the driver; its result, or an XenError. Killed if the test ended the process."""
        name = next(n for n in os.listdir(self.driver) if n.endswith('SR'))
        call = {'host_ref': host, 'command': command, 'args': members.pop('args', []), 'device_config': members.pop('device_config', {})}
        own = ref()
        if session:
            self.sessions[own] = sr
            call['session_ref'] = own
        if sr and not probe:
            call['sr_ref'] = sr
        ty = members.pop('vdi_type', None)
        if ty:
            call['vdi_type'] = ty
        if sr and not probe:
            call['sr_uuid'] = self.db['SR'][sr]['uuid']
        call.update(members)
        began = time.monotonic()
        process = subprocess.Popen([os.path.join(self.driver, name), method_call(command, [call])], env=self.env(host),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.processes[process.pid] = command if killable else ''
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            del self.processes[process.pid]
            self.sessions.pop(own, None)
        self.durations.append((command, time.monotonic() - began))
        if process.returncode == -signal.SIGKILL:
            raise Killed(command)
        if process.returncode:
            raise XenError('SR_BACKEND_FAILURE', 'non-zero exit', out.decode(), err.decode())
        try:
            result = xmlrpc.client.loads(out.decode())[0][0]
        except xmlrpc.client.Fault as e:
            raise self.error_of(e, sr, call, err.decode())
        self.check_result(command, result)
        return result

    @staticmethod
    def error_of(fault, sr, call, err):
        special = {16: 'SR_DEVICE_IN_USE', 24: 'VDI_IN_USE', 38: 'SR_OPERATION_NOT_SUPPORTED', 39: 'SR_NOT_EMPTY', 144: 'VDI_MISSING'}
        if fault.faultCode in special:
            return XenError(special[fault.faultCode], fault.faultString)
        return XenError('SR_BACKEND_FAILURE_%d' % fault.faultCode, '', fault.faultString, err)

    @staticmethod
    def check_result(command, result):
        if command in ('vdi_create', 'vdi_introduce', 'vdi_snapshot', 'vdi_clone', 'vdi_resize'):
            assert set(result) >= {'uuid', 'location'} and all(isinstance(v, str) for v in result.values()), result
        elif command == 'vdi_attach':
            assert isinstance(result['params_nbd'], str) and isinstance(result.get('o_direct', True), bool), result
            assert all(isinstance(v, str) for v in result['xenstore_data'].values()), result
        elif command in ('sr_probe', 'vdi_generate_config', 'vdi_list_changed_blocks', 'sr_content_type'):
            assert isinstance(result, str), result
        elif command == 'vdi_attach_from_config':
            assert 'params_nbd' not in result and isinstance(result['params'], str), result
        elif command != 'sr_get_driver_info':
            assert result is None, result

    def sr_call(self, command, sr, host=None, args=(), **members):
        host = host or self.master
        config = dict(self.pbd_of(sr, host)['device_config'], SRmaster='true' if host == self.master else 'false')
        return self.exec_driver(host, command, dict(members, args=list(args), device_config=config), sr=sr)

    def vdi_call(self, command, vdi, host=None, args=(), **members):
        r = self.record('VDI', vdi)
        return self.sr_call(command, r['SR'], host, args, vdi_ref=vdi, vdi_location=r['location'], vdi_uuid=r['uuid'], **members)

    def pbd_of(self, sr, host):
        return next(r for r in self.db['PBD'].values() if r['SR'] == sr and r['host'] == host)

    @contextlib.contextmanager
    def locked(self, table, key):
        with self.lock:
            lock = table.setdefault(key, threading.RLock())
        with lock:
            yield

    # ---- SR ----

    def sr_record(self, label, config, shared=True, uuid_=None):
        sr = ref()
        self.db['SR'][sr] = {'uuid': uuid_ or str(uuid.uuid4()), 'name_label': label, 'name_description': 'made by a test', 'type': 'lockstep',
                             'shared': shared, 'sm_config': {}, 'other_config': {}, 'physical_size': '0', 'physical_utilisation': '0',
                             'virtual_allocation': '0'}
        for host in self.db['host']:
            self.pbd_create({'SR': sr, 'host': host, 'device_config': dict(config), 'other_config': {}})
        return sr

    def sr_create(self, label, config, shared=True):
        sr = self.sr_record(label, config, shared)
        try:
            self.sr_call('sr_create', sr, args=['0'])
        except BaseException:
            self.sr_forget(sr)
            raise
        for pbd in self.pbds(sr):
            self.pbd_plug(pbd)
        return sr

    def pbds(self, sr):
        return [k for k, r in self.db['PBD'].items() if r['SR'] == sr]

    def pbd_plug(self, pbd):
        r = self.record('PBD', pbd)
        with self.sr_attach_lock:
            self.sr_call('sr_attach', r['SR'], r['host'])
        r['currently_attached'] = True
        if r['host'] == self.master:
            self.sr_scan(r['SR'])

    def pbd_unplug(self, pbd):
        r = self.record('PBD', pbd)
        with self.sr_attach_lock:
            self.sr_call('sr_detach', r['SR'], r['host'])
        r['currently_attached'] = False

    def sr_scan(self, sr):
        with self.locked(self.sr_locks, sr):
            for _ in range(10):
                before = set(self.vdis(sr))
                self.sr_call('sr_scan', sr)
                self.sr_call('sr_update', sr)
                if set(self.vdis(sr)) == before:
                    break
            self.db['SR'][sr]['virtual_allocation'] = str(sum(int(self.db['VDI'][v]['virtual_size']) for v in self.vdis(sr)))

    def sr_destroy(self, sr):
        for pbd in self.pbds(sr):
            if self.db['PBD'][pbd]['currently_attached']:
                self.pbd_unplug(pbd)
        if any(self.db['VDI'][v]['managed'] for v in self.vdis(sr)):
            raise XenError('SR_NOT_EMPTY', sr)
        self.sr_call('sr_attach', sr)
        try:
            self.sr_call('sr_delete', sr)
        except XenError:
            self.sr_call('sr_detach', sr)
            raise
        self.sr_forget(sr)

    def sr_forget(self, sr):
        for table in ('PBD', 'VDI'):
            for key in [k for k, r in self.db[table].items() if r['SR'] == sr]:
                del self.db[table][key]
        del self.db['SR'][sr]

    def sr_probe(self, config):
        config = dict(config, SRmaster='true')
        text = self.exec_driver(self.master, 'sr_probe', {'device_config': config, 'sr_sm_config': {}}, sr=None, probe=True)
        self.probed = text
        return re.findall(r'<UUID>\s*([^<\s]+)\s*</UUID>', text)

    # ---- VDI ----

    def vdis(self, sr):
        return [k for k, r in self.db['VDI'].items() if r['SR'] == sr]

    def vdi_by(self, uuid_):
        return next(k for k, r in self.db['VDI'].items() if r['uuid'] == uuid_)

    def vdi_create(self, sr, size, label='disk', description='', ty='user', sm_config=None):
        result = self.sr_call('vdi_create', sr, args=[str(size), label, description, '', 'false', '19700101T00:00:00Z', '', 'false'],
                              vdi_type=ty, vdi_sm_config=sm_config or {})
        vdi = self.vdi_by(result['uuid'])
        assert int(self.db['VDI'][vdi]['virtual_size']) >= size
        return vdi

    def vdi_destroy(self, vdi):
        with self.locked(self.vdi_locks, vdi):
            self.vdi_call('vdi_delete', vdi)
            self.db['VDI'].pop(vdi, None)

    def vdi_introduce(self, sr, new_uuid, location):
        return self.sr_call('vdi_introduce', sr, vdi_location=location, new_uuid=new_uuid, vdi_sm_config={})

    def vdi_snapshot(self, vdi, **driver_params):
        with self.locked(self.vdi_locks, vdi):
            result = self.vdi_call('vdi_snapshot', vdi, driver_params=driver_params)
            new = self.vdi_by(result['uuid'])
            r, old = self.db['VDI'][new], self.db['VDI'][vdi]
            assert r['is_a_snapshot'] and r['snapshot_of'] == vdi and r['snapshot_time'] != '19700101T00:00:00Z'
            r.update(name_label=old['name_label'], name_description=old['name_description'], snapshot_of=vdi, is_a_snapshot=True)
            self.vdi_call('vdi_update', new)
        return new

    def vdi_clone(self, vdi, **driver_params):
        with self.locked(self.vdi_locks, vdi):
            result = self.vdi_call('vdi_clone', vdi, driver_params=driver_params)
            new = self.vdi_by(result['uuid'])
            self.db['VDI'][new].update(is_a_snapshot=False, snapshot_of=NULL)
            self.vdi_call('vdi_update', new)
        return new

    def vdi_revert(self, snapshot):
        """In place where the driver can; else, as VM.revert has it, the disk is destroyed, to have room, and then a clone of the snapshot
        takes its place, also for the disk's other snapshots."""
        old = self.db['VDI'][snapshot]['snapshot_of']
        if self.has('VDI_REVERT'):
            try:
                with self.locked(self.vdi_locks, snapshot):
                    self.vdi_call('vdi_revert', snapshot, args=[old])
                return old
            except XenError as e:
                if e.code != 'SR_OPERATION_NOT_SUPPORTED':
                    raise
        self.vdi_destroy(old)
        new = self.vdi_clone(snapshot)
        for r in self.db['VDI'].values():
            if r['snapshot_of'] == old:
                r['snapshot_of'] = new
        return new

    def vdi_resize(self, vdi, size):
        with self.locked(self.vdi_locks, vdi):
            self.vdi_call('vdi_resize', vdi, args=[str(size)])

    def vdi_attach(self, vdi, host, writable=True):
        with self.locked(self.vdi_locks, (vdi, host)):
            return self.vdi_call('vdi_attach', vdi, host, args=['true' if writable else 'false'], vdi_on_boot='persist', vdi_allow_caching='false')

    def vdi_activate(self, vdi, host, writable=True):
        with self.locked(self.vdi_locks, (vdi, host)):
            self.vdi_call('vdi_activate', vdi, host, args=['true' if writable else 'false'], vdi_on_boot='persist', vdi_allow_caching='false')

    def vdi_deactivate(self, vdi, host):
        with self.locked(self.vdi_locks, (vdi, host)):
            self.vdi_call('vdi_deactivate', vdi, host)

    def vdi_detach(self, vdi, host):
        with self.locked(self.vdi_locks, (vdi, host)):
            self.vdi_call('vdi_detach', vdi, host)

    def plug(self, vdi, host, writable=True):
        result = self.vdi_attach(vdi, host, writable)
        self.vdi_activate(vdi, host, writable)
        return result

    def unplug(self, vdi, host):
        self.vdi_deactivate(vdi, host)
        self.vdi_detach(vdi, host)

    # What is done with disks in dom0. io: what xapi's own programs do meanwhile; "dies" of xapi itself: nobody tidies up

    @contextlib.contextmanager
    def plugged(self, vdi, host, writable=True):
        self.plug(vdi, host, writable)
        try:
            yield self.db['VDI'][vdi]['uuid']
        finally:
            if not self.dead:
                self.unplug(vdi, host)

    def into_new(self, sr, size, label, host, io):
        """A VDI that io(uuid) fills; destroyed if that fails."""
        target = self.vdi_create(sr, size, label)
        try:
            with self.plugged(target, host) as name:
                io(name)
        except BaseException:
            if not self.dead:
                self.vdi_destroy(target)
            raise
        return target

    def vdi_copy(self, vdi, sr, host, io):
        """VDI.copy: io(source, target), by uuid, is sparse_dd."""
        r = self.db['VDI'][vdi]
        with self.plugged(vdi, host, writable=False) as source:
            return self.into_new(sr, int(r['virtual_size']), r['name_label'], host, lambda target: io(source, target))

    def vdi_export(self, vdi, host, io):
        """GET /export_raw_vdi. A disk in use is exported by a snapshot of it."""
        with self.plugged(vdi, host, writable=False) as name:
            return io(name)

    def static_attach(self, host, config, command='vdi_attach_from_config'):
        """static-vdis: before xapi runs, the driver with the text it once generated."""
        (call,), method = xmlrpc.client.loads(config)
        assert method == 'vdi_attach_from_config' and 'session_ref' not in call and 'SRmaster' not in call['device_config']
        call['command'] = command
        env = dict(self.env(host), FAKE_XAPI='/nonexistent')
        name = next(n for n in os.listdir(self.driver) if n.endswith('SR'))
        out = subprocess.run([os.path.join(self.driver, name), xmlrpc.client.dumps((call,), command)], env=env, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, timeout=TIMEOUT_S)
        assert out.returncode == 0, out.stderr
        result = xmlrpc.client.loads(out.stdout.decode())[0][0]
        self.check_result(command, result)
        return result


class Migration(object):
    """The half of a live storage migration that the destination sees, in xapi's order (receive_start, receive_finalize, receive_cancel):
    the leaf, which the source's tapdisk writes to, is there and open before the parent, which gets the copy. nearest: a VDI whose
    content the copy may begin with."""

    def __init__(self, xapi, sr, size, host, mirror='source-sr/source-vdi', nearest=None):
        self.x, self.sr, self.host, self.made = xapi, sr, host, []
        x = xapi
        x.sr_scan(sr)
        try:
            self.leaf = self.note(x.vdi_create(sr, size, sm_config={'base_mirror': mirror}))
            self.dummy = self.note(x.vdi_snapshot(self.leaf))
            x.plug(self.leaf, host)
            if nearest:
                self.parent = self.note(x.vdi_clone(nearest, base_mirror=mirror))
                if int(x.db['VDI'][self.parent]['virtual_size']) != size:
                    x.vdi_resize(self.parent, size)
            else:
                self.parent = self.note(x.vdi_create(sr, size, sm_config={'base_mirror': mirror}))
        except XenError:
            self.cancel()
            raise

    def note(self, vdi):
        self.made.insert(0, vdi)
        return vdi

    def uuid(self, vdi):
        return self.x.db['VDI'][vdi]['uuid']

    def compose(self):
        self.x.vdi_call('vdi_compose', self.leaf, args=[self.parent])

    def finish(self):
        self.x.unplug(self.leaf, self.host)
        self.compose()
        self.x.vdi_destroy(self.dummy)
        self.x.database('VDI.remove_from_sm_config', [self.leaf, 'base_mirror'])
        return self.leaf

    def cancel(self):
        with contextlib.suppress(XenError, AttributeError):
            self.x.unplug(self.leaf, self.host)
        for vdi in self.made:
            with contextlib.suppress(XenError):
                self.x.vdi_destroy(vdi)


def make_driver_folder(folder, source, library, standins):
    """What /opt/xensource/sm is on a host: the sm library, the driver and its link; and the plugins' folder beside it."""
    sm, plugins = os.path.join(folder, 'sm'), os.path.join(folder, 'plugins')
    os.makedirs(sm)
    os.makedirs(plugins)
    for name in os.listdir(library):
        if name.endswith(('.py', '.xml')):
            shutil.copy(os.path.join(library, name), sm)
    shutil.copy(os.path.join(standins, 'XenAPI.py'), sm)    # not part of the sm library
    for name in ('LockstepSR.py', 'lockstepapi.py', 'lockstepmirror.py'):
        shutil.copy(os.path.join(source, name), sm)
    compileall.compile_dir(sm, quiet=1)    # on a host the first call writes these
    os.symlink('LockstepSR.py', os.path.join(sm, 'LockstepSR'))
    shutil.copy(os.path.join(source, 'lockstep-manager'), plugins)
    shutil.copy(os.path.join(standins, 'tapdisk-pause'), plugins)
    # Plugins find the library where it is on a host; here that is another place.
    for name in os.listdir(plugins):
        path = os.path.join(plugins, name)
        with open(path) as f:
            text = f.read()
        first, rest = text.split('\n', 1)
        with open(path, 'w') as f:
            f.write('%s\nimport sys; sys.path.insert(0, %r)\n%s' % (first, sm, rest))
    return sm, plugins
