# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for the daemons of one cluster: an HTTP server on a unix socket a host, one state behind them all. It answers as
# lockstepd does (contract.py holds it to docs/openapi.yaml) and keeps the rules that matter to a storage driver: space, names,
# one writer, quorum, tombstones. Volumes hold real bytes, a block a list entry, so that snapshots, clones and differences can be
# checked. Routes can be switched off (without=) to be a daemon of an earlier version.
#
# The device of a volume is a block device node without a driver: enough for who only looks whether it is there. Opens are
# counted by the routes /test/open and /test/close, which the stand-in of tapdisk calls. A volume that a test writes to sector by
# sector (write_at()) has a file with its bytes, which its status names as the device.
import base64
import json
import os
import re
import socketserver
import stat
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler

from contract import Contract

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
BLOCK = 64 * 1024
BRIEF = ('name', 'uuid', 'vid', 'size_bytes', 'allocated_bytes', 'redundancy', 'class', 'group', 'labels', 'phase')
MAX_VOLUME_BYTES = 64 * TIB
NO_DRIVER = os.makedev(240, 0)


class Refused(Exception):
    HTTP = {2: 400, 3: 404, 5: 409, 10: 503}
    CODES = {2: 'bad-request', 3: 'not-found', 5: 'not-allowed-now', 10: 'failed'}

    def __init__(self, status, message, code=None):
        Exception.__init__(self, message)
        self.status, self.code = status, code or self.CODES[status]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


class Host(object):
    def __init__(self, name, number):
        self.name, self.id = name, number
        self.uuid = str(uuid.uuid4())
        self.online = self.joined = True
        self.vgs = {}                       # (vg, thin or None) -> size: what LVM has, known to the cluster or not
        self.module_error = ''


class Cluster(object):
    """names: hosts; all are members unless formed=False. Every host has the thin pool vg0/thin of 100 GiB."""

    def __init__(self, folder, names, formed=True, pools=True, without=()):
        self.folder = folder
        self.contract = Contract()
        self.drift = []
        self.without = set(without)
        self.lock = threading.RLock()
        self.moved = threading.Condition(self.lock)
        self.hosts = {n: Host(n, i + 1) for i, n in enumerate(names)}
        self.uuid = str(uuid.uuid4()) if formed else ''
        self.pools, self.groups, self.volumes, self.snapshots = {}, {}, {}, {}
        self.tokens = set()
        self.orphans = []                   # volumes of a cluster that is no more
        self.applied, self.next_vid, self.next_sid = 1, 1, 0
        self.quorum = True
        self.new_are_unmeasured = False
        self.close_delay_s = 0
        self.before = self.after = None     # hooks: (host, method, path) around each request
        self.spoil = None                   # hook: the bytes sent for (status, answer), for an answer that no daemon should give
        self.requests = []
        self.awaited = []                   # deletions whose caller waits until the hosts have removed what they have
        self.servers = {}
        for host in self.hosts.values():
            host.joined = formed
            if pools:
                host.vgs[('vg0', 'thin')] = 100 * GIB
                if formed:
                    self.pools[('vg0-thin', host.name)] = ('vg0', 'thin')
            os.makedirs(self.devices(host.name))
            self.start(host.name)

    def devices(self, host):
        return os.path.join(self.folder, host, 'devices')

    def socket(self, host):
        return os.path.join(self.folder, host, 'sock')

    def start(self, name):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            cluster, host = self, self.hosts[name]

            def log_message(self, *_):
                pass

            def address_string(self):
                return ''

            def handle_any(self):
                self.cluster.handle(self)
            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any

        server = Server(self.socket(name), Handler)
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        self.servers[name] = server

    def stop(self, name):
        server = self.servers.pop(name, None)
        if server:
            server.shutdown()
            server.server_close()
            os.unlink(self.socket(name))

    def close(self):
        for name in list(self.servers):
            self.stop(name)

    # ---- one request ----

    def handle(self, handler):
        url = urllib.parse.urlsplit(handler.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        length = int(handler.headers.get('Content-Length') or 0)
        body = json.loads(handler.rfile.read(length).decode()) if length else {}
        method, host = handler.command, handler.host
        if url.path.startswith('/test/'):
            return self.reply(handler, 200, self.opens(host, url.path[6:], body))
        path = re.sub('^/v1', '', url.path)
        self.requests.append((host.name, method, path))
        if method == 'DELETE' and 'wait' not in query:
            self.awaited.append(path)
        if self.before and self.before(host.name, method, path) == 'dies':
            handler.close_connection = True
            return
        try:
            self.contract.check_request(method, path, query, body)
            status, answer = self.carry_out(host, method, path, query, body)
            self.contract.check_answer(method, path, status, answer)
        except AssertionError as e:
            self.drift.append(str(e))
            status, answer = 503, {'status': 10, 'code': 'failed', 'message': 'drift: %s' % e}
        if self.after and self.after(host.name, method, path) == 'dies':
            handler.close_connection = True
            return
        if self.spoil:
            handler.close_connection = True
            handler.wfile.write(self.spoil(status, answer))
            return
        self.reply(handler, status, answer)

    @staticmethod
    def reply(handler, status, answer):
        data = json.dumps(answer).encode()
        try:
            handler.send_response(status)
            handler.send_header('Content-Type', 'application/json')
            handler.send_header('Content-Length', str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass    # who asked has been killed

    def carry_out(self, host, method, path, query, body):
        table = [
            ('GET', '/status', self.get_status), ('GET', '/wait', self.get_wait),
            ('POST', '/cluster/init', self.init), ('POST', '/cluster/join', self.join), ('POST', '/cluster/token', self.token),
            ('POST', '/pools', self.pool_create),
            ('POST', '/hosts/([^/]+)/net', self.host_net), ('POST', '/hosts/([^/]+)/evacuate', self.evacuate),
            ('POST', '/hosts/([^/]+)/restore', self.host_restore),
            ('POST', '/hosts/([^/]+)/remove', self.host_remove),
            ('POST', '/groups', self.group_create), ('PATCH', '/groups/([^/]+)', self.group_patch),
            ('DELETE', '/groups/([^/]+)', self.group_delete),
            ('POST', '/volumes', self.volume_create), ('PATCH', '/volumes/([^/]+)', self.volume_patch),
            ('DELETE', '/volumes/([^/]+)', self.volume_delete), ('POST', '/volumes/([^/]+)/resize', self.resize),
            ('GET', '/orphans', self.orphan_list), ('POST', '/orphans/([^/]+)/adopt', self.adopt),
            ('GET', '/volumes/([^/]+)', self.volume_get),
            ('POST', '/volumes/([^/]+)/trail', self.trail_begin), ('GET', '/volumes/([^/]+)/trail', self.trail),
            ('DELETE', '/volumes/([^/]+)/trail', self.trail_end),
            ('POST', '/volumes/([^/]+)/replace', self.replace),
            ('GET', '/snapshots', self.snapshot_list),
            ('POST', '/volumes/([^/]+)/snapshots', self.snapshot_create), ('POST', '/volumes/([^/]+)/clone', self.clone),
            ('PATCH', '/volumes/([^/]+)/snapshots/([^/]+)', self.snapshot_patch),
            ('DELETE', '/volumes/([^/]+)/snapshots/([^/]+)', self.snapshot_delete),
            ('POST', '/volumes/([^/]+)/snapshots/([^/]+)/restore', self.restore),
            ('POST', '/volumes/([^/]+)/snapshots/([^/]+)/revert', self.revert),
            ('GET', '/volumes/([^/]+)/snapshots/([^/]+)/diff', self.diff),
        ]
        for verb, pattern, function in table:
            match = re.fullmatch(pattern, path)
            if verb == method and match and '%s %s' % (verb, pattern) not in self.without:
                break
        else:
            return 404, {'status': 3, 'code': 'no-such-route', 'message': 'the API has no %s /v1%s' % (method, path)}
        try:
            with self.lock:
                names = [urllib.parse.unquote(g) for g in match.groups()]
                if method != 'GET':
                    self.must_change(host, path)
                answer = function(host, *names, **({'query': query} if method == 'GET' else {'body': body}))
                if method != 'GET':
                    self.applied += 1
                    self.moved.notify_all()
                return 200, answer
        except Refused as e:
            code = Refused.CODES[e.status] if 'code' in self.without else e.code
            return Refused.HTTP[e.status], {'status': e.status, 'code': code, 'message': str(e)}

    def must_change(self, host, path):
        if path in ('/cluster/init', '/cluster/join'):
            return
        if not host.joined:
            raise Refused(5, 'host %s is in no cluster yet: run `lockstep cluster init`' % host.name)
        if not self.quorum:
            raise Refused(10, 'no quorum: nothing can be changed until more hosts are back', 'no-quorum')

    # ---- status ----

    def get_status(self, host, query):
        if query.get('consistent'):
            self.must_change(host, '')
        answer = self.status(host)
        if query.get('consistent'):
            answer['consistent'] = True
        if query.get('brief') and 'brief' not in self.without:
            answer['volumes'] = [{k: v[k] for k in BRIEF} for v in answer['volumes']]
        if 'volume' in query:
            answer['volumes'] = [v for v in answer['volumes'] if v['name'] == query['volume']]
            if not answer['volumes']:
                raise Refused(3, 'there is no volume named %s' % query['volume'])
        return answer

    def get_wait(self, host, query):
        end = time.monotonic() + int(query.get('ms', 1000)) / 1000
        while self.applied <= int(query.get('index', 0)) and time.monotonic() < end:
            self.moved.wait(end - time.monotonic())
        answer = self.status(host)
        if 'volume' in query:
            answer['volumes'] = [v for v in answer['volumes'] if v['name'] == query['volume']]
        return answer

    def status(self, host):
        base = {'applied': self.applied, 'this_host': host.name, 'module_error': host.module_error, 'cluster': None, 'hosts': [],
                'pools': [], 'groups': [], 'volumes': []}
        if not host.joined:
            base['message'] = 'no cluster yet: run `lockstep cluster init` or `lockstep cluster join ADDRESS`'
            return base
        members = [h for h in self.hosts.values() if h.joined]
        base['cluster'] = {'name': 'lockstep', 'uuid': self.uuid, 'leader': members[0].name if self.quorum else None, 'quorum': self.quorum}
        base['hosts'] = [{'id': h.id, 'name': h.name, 'uuid': h.uuid, 'addresses': self.addresses_of(h), 'port': 7788,
                          'status': 'online' if h.online else 'offline', 'since_ms': 1, 'level': 1} for h in members]
        base['pools'] = [self.pool_status(name, on) for name, on in sorted(self.pools)]
        base['groups'] = [dict(g, labels=dict(g['labels'])) for _, g in sorted(self.groups.items())]
        base['volumes'] = [self.volume_status(v) for _, v in sorted(self.volumes.items())]
        if 'snapshots' not in self.without:
            base['snapshots'] = [self.snapshot_status(s) for _, s in sorted(self.snapshots.items())]
        return base

    def snapshot_list(self, host, query):
        if not host.joined:
            raise Refused(5, 'host %s is in no cluster yet: run `lockstep cluster init`' % host.name)
        return [self.snapshot_status(s) for _, s in sorted(self.snapshots.items())]

    def snapshot_status(self, s):
        return {'name': s['name'], 'uuid': s['uuid'], 'sid': s['sid'], 'set': s['sid'], 'volume': s['volume'], 'volume_uuid': s['volume_uuid'],
                'group': s['group'], 'labels': dict(s['labels']), 'size_bytes': s['size_bytes'], 'allocated_bytes': s['allocated'], 'created_ms': 1, 'phase': s.get('phase', 'ready'),
                'temporary': False, 'hosts': s['hosts']}

    def pool_status(self, name, on):
        vg, thin = self.pools[(name, on)]
        size = self.hosts[on].vgs[(vg, thin)]
        promised = sum(v['size_bytes'] for v in self.volumes.values() if on in v['hosts'])
        used = sum(self.allocated(v) for v in self.volumes.values() if on in v['hosts'])
        limit = size * 2 if thin else size
        return {'name': name, 'host': on, 'kind': 'thin' if thin else 'thick', 'vg': vg, 'thin_lv': thin or '', 'size_bytes': size,
                'free_bytes': max(0, size - (used if thin else promised)), 'reserved_bytes': promised,
                'available_bytes': max(0, limit - promised)}

    def is_thin(self, volume):
        return bool(self.pools[(volume['pool'], volume['hosts'][0])][1])

    def allocated(self, volume):
        return len(volume['blocks']) * BLOCK if self.is_thin(volume) else volume['size_bytes']

    def volume_status(self, v):
        answer = {
            'name': v['name'], 'uuid': v['uuid'], 'vid': v['vid'], 'minor': v['vid'], 'device': self.device_of(v),
            'size_bytes': v['size_bytes'], 'allocated_bytes': None if v.get('unmeasured') else self.allocated(v), 'block_size': 16384,
            'redundancy': len(v['hosts']), 'class': v['class'],
            'group': v['group'] or None, 'labels': dict(v['labels']), 'phase': v.get('phase', 'ready'), 'health': 'ok', 'reason': '',
            'primary': v['hosts'][0], 'opener': sorted(v['writers'])[0] if v['writers'] else None,
            'record': {'version': 1, 'term': 1, 'incarnation': 0, 'session_serial': 0},
            'devices': [h.name for h in self.hosts.values() if h.joined and h.online],
            'replicas': [{'host': h, 'pool': v['pool'], 'lv_path': '', 'md_offset': v['size_bytes'], 'state': 'insync',
                          'online': self.hosts[h].online, 'allocated_bytes': self.allocated(v), 'attached': self.hosts[h].online, 'since_version': 1, 'dirty_bytes': 0, 'sync_percent': 100.0, 'rate_bytes_s': None,
                          'eta_s': None} for h in v['hosts']]}
        extra = {'openers': sorted(v['writers'])}
        answer.update({k: x for k, x in extra.items() if k not in self.without})
        if v.get('obstacle'):
            answer['changes'] = {'obstacle': v['obstacle']}
        return answer

    # ---- cluster, hosts, pools ----

    def init(self, host, body):
        if host.joined:
            raise Refused(5, 'host %s is in a cluster already' % host.name)
        self.uuid, host.joined = str(uuid.uuid4()), True
        return {}

    def token(self, host, body):
        token = 'lks1' + os.urandom(38).hex()
        self.tokens.add(token)
        return {'token': token, 'end_ms': 1}

    def join(self, host, body):
        if host.joined:
            raise Refused(5, 'host %s is in a cluster already' % host.name)
        if body['token'] not in self.tokens:
            raise Refused(5, 'the token is not known, has been used or has expired: make another one')
        self.tokens.remove(body['token'])
        host.joined = True
        self.make_devices()
        return {'cluster': 'lockstep'}

    def pool_create(self, host, body):
        on = self.hosts[body.get('host', host.name)]
        place = (body['vg'], body.get('thin'))
        if place not in on.vgs:
            raise Refused(3, 'host %s has no %s' % (on.name, '/'.join(filter(None, place))))
        self.pools[(body['name'], on.name)] = place
        return {'host': on.name}

    def addresses_of(self, host):
        return getattr(host, 'addresses', ['10.0.0.%d' % host.id])

    def host_net(self, host, name, body):
        on, address, verb = self.hosts[name], body['address'], body['verb']
        others = [a for a in self.addresses_of(on) if a != address]
        there = len(others) < len(self.addresses_of(on))
        if verb == 'prefer' and not there:
            raise Refused(3, 'host %s has no address %s' % (name, address))
        if verb == 'remove' and there and not others:
            raise Refused(5, '%s is the only address of host %s' % (address, name))
        if verb == 'prefer':
            on.addresses = [address] + others
        elif verb == 'remove':
            on.addresses = others
        elif not there:
            on.addresses = others + [address]
        return {}

    def evacuate(self, host, name, body):
        self.hosts[name].evacuating = True
        threading.Timer(0.2, self.move_replicas, (name,)).start()
        return {'name': name}

    def move_replicas(self, name):
        """What the leader does meanwhile."""
        with self.lock:
            for v in self.volumes.values():
                if name in v['hosts']:
                    others = [on for (pool, on) in sorted(self.pools) if pool == v['pool'] and on not in v['hosts'] and self.hosts[on].online]
                    if others:
                        v['hosts'][v['hosts'].index(name)] = others[0]
                    else:
                        v['obstacle'] = 'no other host has room'
            self.applied += 1
            self.moved.notify_all()

    def host_restore(self, host, name, body):
        self.hosts[name].evacuating = False
        return {'name': name}

    def host_remove(self, host, name, body):
        if any(name in v['hosts'] for v in self.volumes.values()):
            raise Refused(5, 'host %s holds replicas: evacuate it first' % name)
        self.hosts[name].joined = False
        for key in [k for k in self.pools if k[1] == name]:
            del self.pools[key]
        return {}

    # ---- groups ----

    def merge(self, labels, changes):
        for key, value in changes.items():
            if value is None:
                labels.pop(key, None)
            else:
                labels[key] = value
                if len(value.encode()) > 1024:
                    raise Refused(2, 'the label %s is too long' % key)

    def group_create(self, host, body):
        known = self.groups.get(body['name'])
        if known and (known['pool'], known['redundancy']) != (body['pool'], body['redundancy']):
            raise Refused(5, 'there is a group named %s already' % body['name'], 'name-taken')
        if not known:
            self.groups[body['name']] = {'name': body['name'], 'pool': body['pool'], 'redundancy': body['redundancy'], 'labels': body['labels']}
        return {'name': body['name'], 'pool': body['pool']}

    def group_of(self, name):
        if name not in self.groups:
            raise Refused(3, 'there is no group named ' + name)
        return self.groups[name]

    def group_patch(self, host, name, body):
        self.merge(self.group_of(name)['labels'], body['labels'])
        return {'name': name}

    def group_delete(self, host, name, body):
        self.group_of(name)
        for v in list(self.volumes.values()) + list(self.snapshots.values()):
            if v['group'] == name:
                raise Refused(5, 'group %s cannot be deleted: volume %s is in it' % (name, v['name']))
        del self.groups[name]
        return {'name': name}

    # ---- volumes ----

    def volume_of(self, name):
        if name not in self.volumes:
            raise Refused(3, 'there is no volume named ' + name)
        return self.volumes[name]

    def make_devices(self):
        for host in self.hosts.values():
            for name in self.volumes:
                path = os.path.join(self.devices(host.name), name)
                if host.joined and host.online and not os.path.exists(path):
                    os.mknod(path, stat.S_IFBLK | 0o600, NO_DRIVER)

    def volume_create(self, host, body):
        group = self.group_of(body['group'])
        size, redundancy, name = body['size_bytes'], body.get('redundancy', group['redundancy']), body['name']
        for wanted in body.get('hosts', ()):
            if not self.hosts[wanted].online:
                raise Refused(5, 'volume %s cannot be placed on host %s: it is offline' % (name, wanted), 'too-few-hosts')
        if name in self.volumes:
            raise Refused(5, 'there is a volume named %s already' % name, 'name-taken')
        if not size or size % 4096 or size > MAX_VOLUME_BYTES:
            raise Refused(2, 'volume %s: its size is above the limit of 64 TiB, or no multiple of 4096' % name)
        pools = [p for p in (self.pool_status(*k) for k in sorted(self.pools) if k[0] == group['pool']) if self.hosts[p['host']].online]
        room = sorted((p for p in pools if p['available_bytes'] >= size and p['host'] in body.get('hosts', self.hosts)), key=lambda p: (-p['available_bytes'], p['host']))
        if len(room) < redundancy:
            raise Refused(5, 'volume %s cannot be placed on %d hosts: %d have room for it' % (name, redundancy, len(room)),
                          'no-room' if len(pools) >= redundancy else 'too-few-hosts')
        shared = 'shared' not in self.without and body.get('class') == 'shared'
        volume = {'name': name, 'uuid': body.get('uuid', str(uuid.uuid4())), 'vid': self.next_vid, 'size_bytes': size, 'pool': group['pool'],
                  'group': body['group'], 'labels': {}, 'class': 'shared' if shared else 'exclusive', 'hosts': [p['host'] for p in room[:redundancy]],
                  'writers': {}, 'readers': {}, 'blocks': {}, 'unmeasured': self.new_are_unmeasured}
        return self.add(volume, body)

    def add(self, volume, body):
        self.merge(volume['labels'], body.get('labels', {}))
        self.next_vid += 1
        self.volumes[volume['name']] = volume
        self.make_devices()
        return {'name': volume['name'], 'uuid': volume['uuid'], 'vid': volume['vid'], 'device': '/dev/lockstep/' + volume['name'],
                'hosts': volume['hosts']}

    def volume_patch(self, host, name, body):
        self.merge(self.volume_of(name)['labels'], body['labels'])
        return {'name': name}

    def volume_delete(self, host, name, body):
        v = self.volume_of(name)
        if v['writers'] or v['readers']:
            raise Refused(5, 'volume %s is open on host %s: close it there before deleting it' % (name, sorted({**v['writers'], **v['readers']})[0]),
                          'volume-open')
        if not self.is_thin(v) and any(s['volume_uuid'] == v['uuid'] for s in self.snapshots.values()):
            raise Refused(5, 'volume %s has snapshots in a thick pool, which cannot outlive it: delete them first' % name)
        del self.volumes[name]
        for path in [os.path.join(self.devices(h), name) for h in self.hosts] + [os.path.join(self.folder, 'bytes-' + name)]:
            if os.path.exists(path):
                os.unlink(path)
        return {'name': name, 'vid': v['vid'], 'pending_hosts': []}

    def resize(self, host, name, body):
        v = self.volume_of(name)
        if body['size_bytes'] < v['size_bytes']:
            raise Refused(5, 'volume %s cannot shrink' % name)
        if body['size_bytes'] > MAX_VOLUME_BYTES:
            raise Refused(2, 'volume %s: its size is above the limit of 64 TiB' % name)
        more = body['size_bytes'] - v['size_bytes']
        if any(self.pool_status(v['pool'], h)['available_bytes'] < more for h in v['hosts']):
            raise Refused(5, 'volume %s cannot grow: no room on its hosts' % name, 'no-room')
        v['size_bytes'] = body['size_bytes']
        return {'name': name, 'size_bytes': v['size_bytes']}

    # ---- snapshots ----

    def snapshot_of(self, volume, name):
        s = self.snapshots.get(name)
        if not s or s['volume'] != volume or s.get('phase') == 'deleting':
            raise Refused(3, 'volume %s has no snapshot named %s' % (volume, name))
        return s

    def snapshot_create(self, host, name, body):
        v = self.volume_of(name)
        if body['name'] in self.snapshots:
            raise Refused(5, 'volume %s has a snapshot named %s already' % (name, body['name']), 'name-taken')
        self.next_sid += 1
        s = {'name': body['name'], 'uuid': body['uuid'], 'sid': self.next_sid, 'volume': name, 'volume_uuid': v['uuid'], 'group': v['group'], 'labels': {}, 'size_bytes': v['size_bytes'],
             'blocks': dict(v['blocks']), 'hosts': list(v['hosts']), 'pool': v['pool'], 'class': v['class'], 'bytes': self.read_all(v),
             'allocated': None if self.new_are_unmeasured else self.allocated(v) if self.is_thin(v) else v['size_bytes'] // 5}
        self.merge(s['labels'], body.get('labels', {}))
        self.snapshots[s['name']] = s
        return self.snapshot_status(s)

    def snapshot_patch(self, host, volume, name, body):
        self.merge(self.snapshot_of(volume, name)['labels'], body['labels'])
        return {'volume': volume, 'name': name}

    def snapshot_delete(self, host, volume, name, body):
        """The copy of a host that is offline stays until that is back."""
        s = self.snapshot_of(volume, name)
        s['phase'], s['hosts'] = 'deleting', [h for h in s['hosts'] if not self.hosts[h].online]
        if not s['hosts']:
            del self.snapshots[name]
        return {'sid': s['sid'], 'pending_hosts': list(s['hosts'])}

    def back(self, host):
        """It was offline, and removes what was deleted meanwhile."""
        with self.lock:
            self.hosts[host].online = True
            for s in list(self.snapshots.values()):
                if s.get('phase') == 'deleting' and host in s['hosts']:
                    s['hosts'].remove(host)
                    if not s['hosts']:
                        del self.snapshots[s['name']]

    def derive(self, source, body):
        if body['name'] in self.volumes:
            raise Refused(5, 'there is a volume named %s already' % body['name'], 'name-taken')
        self.group_of(body['group'])
        return self.add({
            'name': body['name'], 'uuid': body.get('uuid', str(uuid.uuid4())), 'vid': self.next_vid, 'size_bytes': source['size_bytes'],
            'pool': source['pool'], 'group': body['group'], 'labels': {}, 'class': source['class'], 'hosts': list(source['hosts']), 'writers': {},
            'readers': {}, 'blocks': dict(source['blocks']), 'bytes': source.get('bytes')}, body)

    def restore(self, host, volume, name, body):
        s = self.snapshot_of(volume, name)
        return self.derive(s, body)

    def revert(self, host, volume, name, body):
        s, v = self.snapshot_of(volume, name), self.volume_of(volume)
        if v['writers'] or v['readers']:
            raise Refused(5, 'volume %s is open on host %s: close it there before reverting it' % (volume, sorted(v['writers'])), 'volume-open')
        if v['size_bytes'] != s['size_bytes']:
            raise Refused(5, 'volume %s has another size than snapshot %s: restore that as a new volume' % (volume, name))
        full = [x for x in self.snapshots.values() if x['volume_uuid'] == v['uuid'] and x['sid'] > s['sid'] and x.get('full')]
        if full and not self.is_thin(v):
            raise Refused(5, 'snapshot %s of volume %s: its copy on host alpha has 1 MiB left of its reserve, 2 MiB needed' % (full[0]['name'], volume))
        v['blocks'] = dict(s['blocks'])
        return {'name': volume, 'vid': v['vid'], 'snapshot': name}

    def clone(self, host, name, body):
        v = self.volume_of(name)
        return self.derive(dict(v, bytes=self.read_all(v)), body)

    def diff(self, host, volume, name, query):
        if self.snapshot_of(volume, name).get('lost'):
            raise Refused(10, 'snapshot %s of volume %s cannot be compared: it is lost: its reserve was too small for what was written since' % (name, volume))
        old = self.snapshot_of(volume, name)['blocks']
        to = self.snapshot_of(volume, query['to']) if 'to' in query else self.volume_of(volume)
        new, blocks = to['blocks'], -(-to['size_bytes'] // BLOCK)
        changed = [block for block in set(new) | set(old) if new.get(block) != old.get(block)]
        bitmap = bytearray(-(-blocks // 8))
        for block in changed:
            bitmap[block // 8] |= 0x80 >> block % 8
        return {'volume': volume, 'from': name, 'to': query.get('to'), 'block_bytes': BLOCK, 'blocks': blocks, 'changed_blocks': len(changed),
                'bitmap': base64.b64encode(bytes(bitmap)).decode()}

    def write(self, name, block, value):
        """What a guest would do."""
        with self.lock:
            assert self.volumes[name]['writers']
            self.volumes[name]['blocks'][block] = value

    # ---- orphans ----

    def lose_the_cluster(self):
        """Its log is gone from all hosts; what it had on the disks is there."""
        self.orphans = list(self.volumes.values())
        self.uuid, self.pools, self.groups, self.volumes, self.snapshots = '', {}, {}, {}, {}
        for host in self.hosts.values():
            host.joined = False

    def orphan_list(self, host, query):
        """Of a host that is in no cluster: what its own disks hold."""
        content = {'vid': 1, 'host': 1, 'size_bytes': GIB, 'block_size': 16384, 'md_offset': GIB, 'version': 1, 'term': 1, 'clean': True, 'absent': []}
        vg, thin = 'vg0', 'thin'
        asked = list(self.hosts.values()) if host.joined else [host]
        return {'unreachable': [{'host': h.name, 'message': 'host %s cannot be reached' % h.name} for h in asked if not h.online],
                'orphans': [{'host': h.name, 'vg': vg, 'lv': 'lockstep.%d' % v['vid'], 'kind': 'replica', 'uuid': v['uuid'], 'name': v['name'],
                             'group': v['group'], 'lv_bytes': v['size_bytes'], 'thin_pool': thin, 'active': True, 'open': False, 'content': content}
                            for v in self.orphans for h in asked if h.online and h.name in v['hosts']]}

    def adopt(self, host, uuid, body):
        [v] = [o for o in self.orphans if o['uuid'] == uuid] or [None]
        if not v:
            raise Refused(3, 'no orphaned replica of volume %s: see `lockstep pool orphans`' % uuid)
        if not all(self.hosts[h].online for h in v['hosts']):
            raise Refused(5, 'host %s cannot be reached, and may have a newer copy: name the host whose copy is to be taken' % v['hosts'][0])
        group = self.group_of(body['group'])
        self.orphans.remove(v)
        return self.add(dict(v, name=body['name'], group=group['name'], pool=group['pool'], labels={}), body)

    # ---- bytes and trails ----

    def file(self, name):
        """Of the volume's bytes; made when it is first asked for."""
        path = os.path.join(self.folder, 'bytes-' + name)
        if not os.path.exists(path):
            v = self.volumes[name]
            with open(path, 'wb') as f:
                f.write(v.get('bytes') or b'')
                f.truncate(v['size_bytes'])
        return path

    def device_of(self, v):
        path = os.path.join(self.folder, 'bytes-' + v['name'])
        return self.file(v['name']) if v.get('bytes') or os.path.exists(path) else '/dev/lockstep/' + v['name']

    def read_all(self, v):
        device = self.device_of(v)
        if device.startswith('/dev/'):
            return None
        with open(device, 'rb') as f:
            return f.read()

    def write_at(self, name, at, data):
        """What a guest would do; the hosts that may write keep their trails."""
        with self.lock:
            v = self.volumes[name]
            assert v['writers'] and at % 512 == len(data) % 512 == 0
            with open(self.file(name), 'r+b') as f:
                f.seek(at)
                f.write(data)
            for host in v['writers']:
                if host in v.get('trails', {}):
                    v['trails'][host]['sectors'].update(range(at // 512, (at + len(data)) // 512))

    def volume_get(self, host, name, query):
        """For who opens the device."""
        self.file(self.volume_of(name)['name'])
        return self.volume_status(self.volume_of(name))

    def trail_begin(self, host, name, body):
        v = self.volume_of(name)
        trail = v.setdefault('trails', {}).get(host.name)
        if host.name in v['writers'] or trail and trail['sectors'] and not trail['lost']:
            raise Refused(5, 'cannot begin the trail of volume %s: the volume is open for writing' % name)
        if not trail or trail['lost']:
            v['trails'][host.name] = trail = {'number': os.urandom(8).hex(), 'sectors': set(), 'lost': False}
        return {'name': name, 'host': host.name, 'trail': trail['number']}

    def trail(self, host, name, query):
        v, on = self.volume_of(name), query.get('host', host.name)
        trail = v.get('trails', {}).get(on)
        if not self.hosts[on].online:
            raise Refused(10, 'host %s cannot be reached' % on)
        if not trail or trail['number'] != query['trail']:
            raise Refused(5, 'cannot read the trail of volume %s: no trail of this number' % name)
        if on in v['writers'] or trail['lost']:
            raise Refused(5, 'cannot read the trail of volume %s: %s' % (name, 'not known any more' if trail['lost'] else 'open for writing'))
        extents = sorted({s // 8192 for s in trail['sectors'] if s // 8192 >= int(query['at']) // (4 * MIB)})
        parts = []
        for extent in extents[:2]:
            bitmap = bytearray(1024)
            for s in trail['sectors']:
                if s // 8192 == extent:
                    bitmap[s % 8192 // 8] |= 1 << s % 8
            parts.append({'at': extent * 4 * MIB, 'bitmap': bitmap.hex()})
        return {'name': name, 'host': on, 'extents': parts, 'next': extents[2] * 4 * MIB if extents[2:] else None}

    def trail_end(self, host, name, body):
        """The names of query parameters are checked by the contract; a trail is known by its number alone here."""
        v = self.volume_of(name)
        v['trails'] = {}
        return {'name': name, 'host': host.name}

    def replace(self, host, name, body):
        v, source = self.volume_of(name), self.volume_of(body['source'])
        if v['writers'] or v['readers']:
            raise Refused(5, 'volume %s is open on host %s: close it there before reverting it' % (name, sorted(v['writers'])), 'volume-open')
        if not self.pools[(v['pool'], v['hosts'][0])][1]:
            raise Refused(5, 'volume %s is in a thick pool: it cannot get another one\'s content without copying' % name)
        if v['size_bytes'] != source['size_bytes'] or not set(v['hosts']) & set(source['hosts']):
            raise Refused(5, 'volume %s has another size, or no replica on a host that has a copy' % name)
        v['blocks'], v['bytes'], v['trails'] = dict(source['blocks']), self.read_all(source), {}
        path = os.path.join(self.folder, 'bytes-' + name)
        if os.path.exists(path):
            os.unlink(path)
        return {'name': name, 'vid': v['vid'], 'source': body['source']}

    # ---- opens ----

    def opens(self, host, verb, body):
        with self.lock:
            v = self.volumes.get(body['volume'])
            if not v:
                return {'error': 'No such device'}
            if verb == 'open':
                if body['write'] and v['class'] != 'shared' and set(v['writers']) - {host.name}:
                    return {'error': 'Device or resource busy'}
                v['writers' if body['write'] else 'readers'][host.name] = True
            elif self.close_delay_s:
                threading.Timer(self.close_delay_s, self.closed, (v, host.name)).start()
                return {'error': ''}
            else:
                self.closed(v, host.name)
            self.applied += 1
            self.moved.notify_all()
            return {'error': ''}

    def closed(self, v, name):
        with self.lock:
            v['writers'].pop(name, None)
            v['readers'].pop(name, None)
            self.applied += 1
            self.moved.notify_all()
