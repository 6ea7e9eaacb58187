# SPDX-License-Identifier: GPL-2.0-or-later
#
# The API of lockstepd for the storage driver and the plugin: HTTP and JSON over the daemon's unix socket on this host, one
# request a connection. All routes that sm/ uses are in this file (docs/openapi.yaml describes them).
#
# Errors are exceptions with the daemon's own sentence, ready to be shown to a user:
#   Unreachable  the daemon of this host does not run or does not answer: what was asked may or may not have been done
#   Missing      the request names something that is not there
#   Unsupported  this version of the daemon has no such route
#   NoSpace, InUse, Forbidden, ApiError  the rest, by the daemon's status and code
#
# Python 3.6, the standard library only: it runs in dom0, before xapi is up too.
import errno
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from urllib.parse import quote

SOCKET = '/run/lockstep/lockstepd.sock'
DEVICES = '/dev/lockstep'
COMMAND = '/usr/bin/lockstep'
PR_SET_PDEATHSIG = 1
READ_TIMEOUT_S = 30
CHANGE_TIMEOUT_S = 180      # the daemon gives up by itself after 60 s, and undoes what it did
COPY_TIMEOUT_S = 24 * 3600  # in thick pools, while the hosts that copy are there

# enum Status of ctl/lib/error.h
USAGE, NOT_FOUND, FORBIDDEN, FAILED = 2, 3, 5, 10

CHANGED_BLOCK_BYTES = 64 * 1024
IS_UUID = re.compile('[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')    # others in the group are an administrator's


class ApiError(Exception):
    def __init__(self, message, status=FAILED, code=None):
        Exception.__init__(self, message)
        self.status = status
        self.code = code


class Unreachable(ApiError):
    pass


class Missing(ApiError):
    pass


class Unsupported(ApiError):
    pass


class Forbidden(ApiError):
    pass


class NoSpace(Forbidden):
    pass


class InUse(Forbidden):
    pass


class Answer(dict):
    """An object that the daemon answered. What is needed and not in it is told as that, not as a fault of who looked for it."""

    def __missing__(self, key):
        raise ApiError('lockstepd of this host answered without "%s", which is needed: it is of another version than this driver, or damaged; '
                       'install the same version on all hosts' % key)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout_s):
        http.client.HTTPConnection.__init__(self, 'localhost', timeout=timeout_s)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def _error(method, path, body):
    try:
        answer = json.loads(body.decode('utf-8'))
        message, status = answer['message'], int(answer['status'])
    except (ValueError, KeyError, TypeError):
        return ApiError('lockstepd answered %s %s with what is no error of its API' % (method, path))
    code = answer.get('code')
    if code == 'no-such-route':
        return Unsupported('the lockstepd of this host cannot do this yet (%s): update it' % message, status, code)
    kinds = {'no-room': NoSpace, 'volume-open': InUse}
    by_status = {NOT_FOUND: Missing, FORBIDDEN: Forbidden}
    return kinds.get(code, by_status.get(status, ApiError))(message, status, code)


class Api(object):
    """A client of the daemon on this host. It holds no state and no connection. copies: what is made of a snapshot is copied."""

    def __init__(self, path=None, copies=False):
        self.copy_timeout_s = COPY_TIMEOUT_S if copies else CHANGE_TIMEOUT_S
        # The variable is for tests: xapi gives its drivers an environment of its own.
        self.path = path or os.environ.get('LOCKSTEP_SOCKET') or SOCKET

    def call(self, method, path, body=None, timeout_s=None, kind=Answer):
        """kind: what the answer must be. Fields that this driver does not know are left alone: a later daemon may have more."""
        if timeout_s is None:
            timeout_s = READ_TIMEOUT_S if method == 'GET' else CHANGE_TIMEOUT_S
        connection = _Connection(self.path, timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode('utf-8')
            connection.request(method, '/v1' + path, data, {'Content-Type': 'application/json'} if data else {})
            response = connection.getresponse()
            answer = response.read()
        except socket.timeout:
            raise Unreachable('lockstepd of this host did not answer %s %s within %g s' % (method, path, timeout_s))
        except (OSError, http.client.HTTPException) as e:
            if getattr(e, 'errno', None) in (errno.ENOENT, errno.ECONNREFUSED):
                raise Unreachable('lockstepd does not run on this host: start it with `systemctl start lockstepd`')
            raise Unreachable('lockstepd of this host cannot be asked (%s %s): %s' % (method, path, e or type(e).__name__))
        finally:
            connection.close()
        if response.status != 200:
            raise _error(method, path, answer)
        try:
            result = json.loads(answer.decode('utf-8'), object_hook=Answer)
        except ValueError:
            raise ApiError('lockstepd answered %s %s with what is no JSON' % (method, path))
        if not isinstance(result, kind):
            raise ApiError('lockstepd answered %s %s with what is not awaited there' % (method, path))
        return result

    # ---- reading ----

    def status(self, volume=None, consistent=False, brief=False):
        """brief: volumes without replicas, health and openers; the daemon may tell more."""
        query = []
        if volume is not None:
            query.append('volume=' + quote(volume, safe=''))
        if consistent:
            query.append('consistent=true')
        if brief:
            query.append('brief=true')
        answer = self.call('GET', '/status' + ('?' + '&'.join(query) if query else ''))
        if consistent and answer.get('consistent') is not True:
            raise Unsupported('the lockstepd of this host cannot answer authoritatively: update it')
        return answer

    def cluster_status(self, consistent=False, brief=False):
        """The status of a cluster; an error if this host is in none, or cannot say anything about it yet."""
        answer = self.status(consistent=consistent, brief=brief)
        self._must_know(answer)
        return answer

    def outline(self):
        """The status without the volumes, which are most of it where there are many (none is named so); an earlier daemon tells them too.
        'cluster' is None on a host that is in none."""
        answer = self.call('GET', '/wait?index=0&ms=0&volume=-')
        if answer['cluster']:
            self._must_know(answer)
        return answer

    def cluster_outline(self):
        answer = self.outline()
        self._must_know(answer)
        return answer

    def volume(self, name):
        """One volume, as in the status; Missing if there is none that is not being deleted."""
        for volume in self.status(volume=name)['volumes']:
            if volume['name'] == name and volume['phase'] != 'deleting':
                return volume
        raise Missing('there is no volume named ' + name, NOT_FOUND)

    def wait_for(self, name, holds, timeout_s):
        """The volume once holds(volume) is true; None after the time-out. Does not poll: the daemon says when something changed."""
        end = time.monotonic() + timeout_s
        index = 0
        while True:
            left_ms = int((end - time.monotonic()) * 1000)
            answer = self.call('GET', '/wait?index=%d&ms=%d' % (index, max(0, min(left_ms, 10000)) if index else 0))
            self._must_know(answer)
            for volume in answer['volumes']:
                if volume['name'] == name and volume['phase'] != 'deleting':
                    if holds(volume):
                        return volume
                    break
            else:
                raise Missing('there is no volume named ' + name, NOT_FOUND)
            if left_ms <= 0:
                return None
            index = answer['applied']

    @staticmethod
    def _must_know(answer):
        cluster = answer['cluster']
        if not cluster or not cluster.get('uuid'):
            raise Forbidden(answer.get('message') or 'this host is in no cluster', FORBIDDEN)

    # ---- cluster, hosts, pools ----

    def init(self, name):
        return self.call('POST', '/cluster/init', {'name': name})

    def token(self):
        return self.call('POST', '/cluster/token', {})['token']

    def join(self, token, address):
        return self.call('POST', '/cluster/join', {'token': token, 'address': address})

    def pool_create(self, name, vg, thin=None, host=None):
        body = {'name': name, 'vg': vg}
        if thin:
            body['thin'] = thin
        if host:
            body['host'] = host
        return self.call('POST', '/pools', body)

    def host_evacuate(self, host):
        """Begins it; the status tells when the host is empty."""
        return self.call('POST', '/hosts/%s/evacuate' % quote(host, safe=''), {})

    def host_restore(self, host):
        return self.call('POST', '/hosts/%s/restore' % quote(host, safe=''), {})

    def host_remove(self, host):
        return self.call('POST', '/hosts/%s/remove' % quote(host, safe=''), {})

    def host_net(self, host, verb, address):
        """verb: add (as the last one), prefer (as the first) or remove."""
        return self.call('POST', '/hosts/%s/net' % quote(host, safe=''), {'verb': verb, 'address': address})

    # ---- groups ----

    def group_create(self, name, pool, redundancy, labels):
        return self.call('POST', '/groups', {'name': name, 'pool': pool, 'redundancy': redundancy, 'labels': labels})

    def group_label(self, name, labels):
        return self.call('PATCH', '/groups/' + quote(name, safe=''), {'labels': labels})

    def group_delete(self, name):
        return self.call('DELETE', '/groups/' + quote(name, safe=''))

    # ---- volumes ----

    @staticmethod
    def _volume_path(name, verb=''):
        return '/volumes/' + quote(name, safe='') + verb

    def volume_create(self, name, size_bytes, group, labels, **options):
        body = {'name': name, 'uuid': name, 'size_bytes': size_bytes, 'group': group, 'labels': labels}
        body.update(options)
        return self.call('POST', '/volumes', body)

    def volume_label(self, name, labels):
        return self.call('PATCH', self._volume_path(name), {'labels': labels})

    def volume_delete(self, name, wait=True):
        """wait: until the hosts have removed what they have of it. It is gone for good without that."""
        return self.call('DELETE', self._volume_path(name, '' if wait else '?wait=false'))

    def resize(self, name, size_bytes):
        return self.call('POST', self._volume_path(name, '/resize'), {'size_bytes': size_bytes})

    def clone(self, name, clone, group, labels):
        body = {'name': clone, 'uuid': clone, 'group': group, 'labels': labels}
        return self.call('POST', self._volume_path(name, '/clone'), body, self.copy_timeout_s)

    # ---- what an earlier cluster left on the disks; of this host alone if it is in no cluster ----

    def orphans(self):
        return self.call('GET', '/orphans', None, CHANGE_TIMEOUT_S)

    # ---- what a storage migration needs: lockstepmirror.py ----

    def trail_begin(self, name):
        """Of this host."""
        return self.call('POST', self._volume_path(name, '/trail'), {})

    def trail(self, name, host, number, at):
        query = '/trail?host=%s&trail=%s&at=%d' % (quote(host, safe=''), quote(number, safe=''), at)
        return self.call('GET', self._volume_path(name, query))

    def trail_end(self, name, host, number):
        query = '/trail?host=%s&trail=%s' % (quote(host, safe=''), quote(number, safe=''))
        return self.call('DELETE', self._volume_path(name, query))

    def replace(self, name, source):
        return self.call('POST', self._volume_path(name, '/replace'), {'source': source})

    # ---- snapshots: each belongs to a volume, which may be gone; "since" and "to" are names of snapshots, None: the volume now ----

    def find(self, name):
        """The volume or snapshot of this name: (volume, None) or (None, snapshot). Missing if there is neither."""
        try:
            return self.volume(name), None
        except Missing:
            for snapshot in self.snapshots():
                if snapshot['name'] == name and is_there(snapshot):
                    return None, snapshot
            raise

    def snapshots(self):
        """All of the cluster, without what a status costs that has all volumes in it."""
        try:
            return self.call('GET', '/snapshots', kind=list)
        except Unsupported:
            return []

    @staticmethod
    def _snapshot_path(snapshot, verb=''):
        return '/volumes/%s/snapshots/%s%s' % (quote(snapshot['volume'], safe=''), quote(snapshot['name'], safe=''), verb)

    def snapshot_create(self, volume, name, labels):
        return self.call('POST', self._volume_path(volume, '/snapshots'), {'name': name, 'uuid': name, 'labels': labels})

    def snapshot_label(self, snapshot, labels):
        return self.call('PATCH', self._snapshot_path(snapshot), {'labels': labels})

    def snapshot_delete(self, snapshot):
        return self.call('DELETE', self._snapshot_path(snapshot))

    def snapshot_restore(self, snapshot, name, group, labels, **options):
        body = {'name': name, 'group': group, 'labels': labels}
        body.update(options)
        return self.call('POST', self._snapshot_path(snapshot, '/restore'), body, self.copy_timeout_s)

    def snapshot_revert(self, snapshot):
        """The volume that it was taken of gets its content back; again while that is under way it is the same."""
        return self.call('POST', self._snapshot_path(snapshot, '/revert'), {}, self.copy_timeout_s)

    def diff(self, since, to=None):
        """What has changed since a snapshot; to: name of a newer one of the same volume, None: the volume as it is."""
        query = '/diff' + ('?to=' + quote(to, safe='') if to else '')
        return self.call('GET', self._snapshot_path(since, query), None, CHANGE_TIMEOUT_S)


def run_command(*args):
    """The command line of this host: its exit status, what it printed, what it said of an error."""
    import ctypes     # costs 10 ms, which most calls need not pay
    # It must not outlive who asked, and write to a disk that a repeated call has finished and a VM uses by then.
    libc, parent = ctypes.CDLL(None), os.getpid()

    def end_with_parent():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    # The variable is for tests: xapi gives its drivers an environment of its own.
    process = subprocess.Popen([os.environ.get('LOCKSTEP_COMMAND') or COMMAND] + list(args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True, preexec_fn=end_with_parent)
    printed, error = process.communicate()
    return process.returncode, printed, error.strip()


def prepare_hosts(api, call_plugin, here, hosts):
    """Makes every host of XAPI's pool part of one cluster, with its pool of volumes if it has the volume group. Each step leaves a host as
    it is if it is done already; a host that stays joined after a failure holds nothing and harms nothing. call_plugin(host, function, args):
    our plugin on a host. Answers the pool's name in the cluster, and why hosts are without one."""
    dead = [r['name_label'] for r in hosts.values() if not r['enabled']]
    if dead:
        raise ApiError('host %s is disabled: all hosts of the pool must be up' % dead[0])
    first = call_plugin(here, 'prepareSr', {})
    without = list(first['without'])
    for host in sorted(hosts):
        if host == here:
            continue
        args = {'address': first['address'], 'cluster': first['cluster'], 'pool': first['pool']}
        answer = call_plugin(host, 'prepareSr', {'knows': first['cluster']})
        if not answer['cluster']:
            args['token'] = api.token()
        elif answer['cluster'] != first['cluster']:
            raise ApiError('host %s is in the cluster %s, this host in %s' % (hosts[host]['name_label'], answer['cluster'], first['cluster']))
        without += call_plugin(host, 'prepareSr', args)['without']
    return first['pool'], without


def found_here(api, place):
    """The SRs that this host knows of in a place (volume group, thin pool or None; no place: anywhere): those of its cluster; if that has none
    there, those that replicas on the disks say they were of. A host in no cluster sees its own disks only. The answer: whether it is in a
    cluster, and for each SR its parts, name -> bytes, of which several hosts may have the same."""
    status = api.outline()
    pools = {p['name'] for p in status['pools'] if place in (None, (p['vg'], p.get('thin_lv') or None))}
    found = {g['name']: {'': capacity([p for p in status['pools'] if p['name'] == g['pool']], g['redundancy'])[0]}
             for g in status['groups'] if g['pool'] in pools}
    if not found:
        for orphan in api.orphans()['orphans']:
            group = orphan.get('group', '')
            if orphan['kind'] == 'replica' and IS_UUID.match(group) and place in (None, (orphan['vg'], orphan['thin_pool'] or None)):
                found.setdefault(group, {})[orphan['uuid']] = orphan['lv_bytes']
    return bool(status['cluster']), found


def is_there(volume_or_snapshot):
    """A phase that this driver has not heard of does not make it one that is not there: its record would be forgotten."""
    return volume_or_snapshot['phase'] not in ('creating', 'preparing', 'quiescing', 'taking', 'resuming', 'discarding', 'deleting')


def openers(volume):
    """Names of the hosts that have the volume open for writing."""
    if 'openers' in volume:
        return [o['host'] if isinstance(o, dict) else o for o in volume['openers']]
    return [volume['opener']] if volume.get('opener') else []


def capacity(pools, redundancy):
    """Bytes a group of this redundancy can hold and holds, as XOSTOR counts: smallest pool x pools / redundancy, and what
    the fullest pools hold already, not multiplied by the redundancy."""
    if not pools:
        return 0, 0
    size = min(p['size_bytes'] for p in pools) * len(pools) // redundancy
    used = sum(p['size_bytes'] - p['free_bytes'] for p in pools) // redundancy
    return size, min(used, size)
