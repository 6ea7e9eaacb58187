#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# LockstepSR: the storage driver of XAPI for Lockstep (type "lockstep", SMAPIv1).
#
# A shim: it translates what xapi asks into one call to lockstepd on this host and what lockstepd answers into xapi's records
# and errors. It keeps no state of its own. An SR is a group of the cluster whose name is the SR's uuid; a VDI is a volume whose
# name and uuid are the VDI's uuid, never renamed. What xapi would lose with its database (names, types, times) are labels of
# groups and volumes.
#
# Between a change in the cluster and the matching change in xapi's database this process may be killed. So a new volume
# carries the label CREATING until its VDI record is there and the reply is due; a delete removes the volume first. sr_scan
# repairs: it removes what carries the label, forgets records without a volume and introduces volumes without a record. All
# these calls run on the pool master; a lock that dies with its holder keeps a scan and the others apart, so that a scan never
# takes work in progress for wreckage.
#
# In a thick pool snapshots go with their volume, but xapi may delete a disk before them: its VM.revert does, and clones a snapshot then. Such
# a volume carries the label DELETED, is no disk any more, and goes with the last of its snapshots.
#
# Volumes are raw: tapdisk opens /dev/lockstep/<uuid> (vdi_type "aio"). A VDI that is a snapshot is a snapshot of the cluster, which
# has no device; while a host has it attached there is a volume <uuid>.view with its content, restored from it. A view carries a
# label for each host that uses it and goes with the last one. Who attaches sets its label and then looks for DROPPING, who drops a view
# sets DROPPING and then looks for users: labels are in the cluster's log, so at least one of two that meet sees the other.
#
# Python 3.6. Of the sm library: SR, VDI, SRCommand (and blktap2 through it), util, xs_errors. Runs without daemon, module and
# lockstepapi as far as sr_get_driver_info goes.
import base64
import contextlib
import datetime
import fcntl
import json
import os
import stat
import time
import xmlrpc.client

import SR
import SRCommand
import VDI
import util
import xs_errors

try:
    import lockstepapi as lockstep
    import lockstepmirror as mirrors
    MISSING_LIBRARY = None
except ImportError as e:
    MISSING_LIBRARY = str(e)

CAPABILITIES = [
    'ATOMIC_PAUSE', 'SR_PROBE', 'SR_UPDATE', 'THIN_PROVISIONING', 'LARGE_VDI',
    'VDI_CREATE', 'VDI_DELETE', 'VDI_INTRODUCE', 'VDI_UPDATE', 'VDI_ATTACH', 'VDI_DETACH', 'VDI_ACTIVATE', 'VDI_DEACTIVATE',
    'VDI_CLONE', 'VDI_SNAPSHOT', 'VDI_MIRROR', 'VDI_RESIZE', 'VDI_RESIZE_ONLINE', 'VDI_GENERATE_CONFIG', 'VDI_CONFIG_CBT',
]
# An sm that has not heard of this command answers with an error that xapi does not fall back from: it must be offered by both.
if 'vdi_revert' in getattr(SRCommand, 'NEEDS_VDI_OBJECT', ()):
    CAPABILITIES.append('VDI_REVERT')

CONFIGURATION = [
    ['group-name', 'volume group of the hosts, or volume_group/thin_pool'],
    ['redundancy', 'how many hosts hold a copy of each volume (default 2)'],
    ['provisioning', 'thin or thick (default: thin if group-name names a thin pool)'],
]

DRIVER_INFO = {
    'name': 'Lockstep: replicated local disks',
    'description': 'SR of volumes that are replicated between the local disks of the hosts of a pool',
    'vendor': 'Lockstep',
    'copyright': '(C) 2026 the Lockstep authors',
    'driver_version': '1.0',
    'required_api_version': '1.0',
    'capabilities': CAPABILITIES,
    'configuration': CONFIGURATION,
}

DRIVER_TYPE = 'lockstep'
PLUGIN = 'lockstep-manager'
DEFAULT_REDUNDANCY = 2
HA_REPLICAS = 3             # of HA statefile and redo log, if there are as many hosts with a pool
ALIGNMENT_BYTES = 4096
SHARED_TYPES = ('ha_statefile', 'redo_log')
DEVICE_TIMEOUT_S = 30       # until the device of a ready volume is there, on a host that has just started
UTILISATION_STEPS = 100     # what a disk takes of its pool is told to xapi when it has changed by the size's 100th part
BOOT_TIMEOUT_S = 90         # the same before xapi runs, for the HA statefile
CLOSE_TIMEOUT_S = 10        # until the cluster knows that this host has closed a volume
LOCK_DIR = '/run/lock'

# Labels. Those of groups: NAME, DESCRIPTION, GROUP_NAME.
CBT_METADATA = 'cbt_metadata'    # type of a snapshot of which only what has changed is asked any more
NAME, DESCRIPTION, GROUP_NAME = 'xapi.name', 'xapi.description', 'xapi.group-name'
TYPE, SNAPSHOT_OF, SNAPSHOT_TIME = 'xapi.type', 'xapi.snapshot-of', 'xapi.snapshot-time'
CBT, METADATA_OF, CREATING, DELETED = 'xapi.cbt', 'xapi.metadata-of-pool', 'xapi.creating', 'xapi.deleted'
VIEW_OF, VIEW_USER, DROPPING = 'xapi.view-of', 'xapi.view-user.', 'xapi.dropping'
VIEW = '.view'
VIEW_TRIES = 20
LABEL_BYTES = 1024


def text_label(text):
    """A text of xapi as a label: cut at the limit, not inside a character."""
    return text.encode('utf-8')[:LABEL_BYTES].decode('utf-8', 'ignore')


def xapi_error(e, otherwise, subject=None):
    """The error of XAPI for an error of the API; "otherwise" is its key if the API's error has no counterpart of its own."""
    key = otherwise
    if isinstance(e, lockstep.Unreachable):
        key = 'SRUnavailable'
    elif isinstance(e, lockstep.NoSpace):
        key = 'SRNoSpace'
    elif isinstance(e, lockstep.InUse):
        key = 'VDIInUse'
    elif isinstance(e, lockstep.Missing) and subject == 'vdi':
        key = 'VDIMissing'
    return xs_errors.XenError(key, opterr=str(e))


@contextlib.contextmanager
def api_errors(otherwise, subject=None):
    try:
        yield
    except lockstep.ApiError as e:
        util.SMlog('lockstep: %s' % e)
        raise xapi_error(e, otherwise, subject)


def boot_id():
    with open('/proc/sys/kernel/random/boot_id') as f:
        return f.read().strip()


def device_there(path):
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


class LockstepSR(SR.SR):
    """A group of volumes."""

    @staticmethod
    def handles(type):
        return type == DRIVER_TYPE

    def load(self, sr_uuid):
        if MISSING_LIBRARY:
            raise xs_errors.XenError('SRUnavailable', opterr='Lockstep is not installed on this host: ' + MISSING_LIBRARY)
        self.sr_vditype = 'aio'
        self.ops_exclusive = []
        self.api = lockstep.Api(copies='/' not in self.dconf.get('group-name', '/'))    # in thick pools
        self.fresh = []                     # VDIs that a scan has introduced

    def vdi(self, uuid):
        return LockstepVDI(self, uuid)

    # ---- configuration ----

    def _place(self):
        """Volume group and thin pool (None: thick) that device-config names."""
        name = self.dconf.get('group-name')
        if not name:
            raise xs_errors.XenError('ConfigParamsMissing', opterr='device-config:group-name=volume_group[/thin_pool] is missing')
        vg, slash, thin = name.partition('/')
        if not vg or (slash and not thin) or '/' in thin:
            raise xs_errors.XenError('ConfigParamsMissing', opterr='device-config:group-name=%s is not volume_group[/thin_pool]' % name)
        wanted = self.dconf.get('provisioning') or ('thin' if thin else 'thick')
        if wanted not in ('thin', 'thick') or (wanted == 'thin') != bool(thin):
            raise xs_errors.XenError('ConfigParamsMissing', opterr='device-config:provisioning=%s does not fit group-name=%s: thin needs '
                                     'volume_group/thin_pool, thick a volume group alone' % (wanted, name))
        return vg, thin or None

    def is_thin(self):
        return bool(self._place()[1])

    def _redundancy(self):
        text = self.dconf.get('redundancy') or str(DEFAULT_REDUNDANCY)
        if not text.isdigit() or not 1 <= int(text) <= 8:
            raise xs_errors.XenError('ConfigParamsMissing', opterr='device-config:redundancy=%s is not a number from 1 to 8' % text)
        return int(text)

    def _pool_names(self, status):
        """Names under which the cluster knows what group-name names; normally one."""
        vg, thin = self._place()
        return {p['name'] for p in status['pools'] if p['vg'] == vg and (p.get('thin_lv') or None) == thin}

    def _group(self, status, uuid=None):
        """The group of this SR; refuses if the cluster has none, or in another place than device-config says."""
        uuid = uuid or self.uuid
        places = self._pool_names(status)
        for group in status['groups']:
            if group['name'] == uuid:
                if group['pool'] not in places:
                    raise xs_errors.XenError('SRUnavailable', opterr='SR %s lies in pool %s, which is not group-name=%s'
                                             % (uuid, group['pool'], self.dconf.get('group-name')))
                return group
        others = [g['name'] for g in status['groups'] if g['pool'] in places]
        raise xs_errors.XenError('SRUnavailable', opterr='there is no SR %s in cluster %s; %s' % (
            uuid, status['cluster']['name'],
            'group-name=%s holds %s: introduce that one' % (self.dconf.get('group-name'), ', '.join(others)) if others
            else 'nothing has been created in group-name=%s' % self.dconf.get('group-name')))

    def _volumes(self, status, uuid=None):
        """Volumes and snapshots of this SR, views included."""
        uuid = uuid or self.uuid
        return ([v for v in status['volumes'] if v.get('group') == uuid and v['phase'] != 'deleting'] +
                [s for s in status.get('snapshots', ()) if s.get('group') == uuid and lockstep.is_there(s) and not s.get('temporary')])

    @contextlib.contextmanager
    def _lock(self, mode):
        """LOCK_SH: VDIs come, go or change; LOCK_EX: a scan, which must see none of that half done."""
        path = os.path.join(os.environ.get('LOCKSTEP_LOCK_DIR', LOCK_DIR), 'lockstep-sr-%s.lock' % self.uuid)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, mode)
            yield
        finally:
            os.close(fd)

    def changing(self):
        return self._lock(fcntl.LOCK_SH)

    # ---- life of an SR ----

    def create(self, sr_uuid, size):
        vg, thin = self._place()
        redundancy = self._redundancy()
        if not self.session.xenapi.SR.get_shared(self.sr_ref):
            raise xs_errors.XenError('SRUnavailable', opterr='an SR of type lockstep must be created with shared=true')
        hosts = self.session.xenapi.host.get_all_records()
        if redundancy > len(hosts):
            raise xs_errors.XenError('ConfigParamsMissing', opterr='redundancy=%d needs as many hosts, the pool has %d'
                                     % (redundancy, len(hosts)))
        with api_errors('SRUnavailable'):
            pool, without = lockstep.prepare_hosts(self.api, self._plugin, self.host_ref, hosts)
            status = self.api.cluster_status(consistent=True, brief=True)
            self._clear_the_place(status)
            have = [p['host'] for p in status['pools'] if p['name'] == pool]
            if len(have) < redundancy:
                raise xs_errors.XenError('SRUnavailable', opterr='redundancy=%d, but only %s of the hosts have %s: run the install script with '
                                         '--disks on the others (%s)' % (redundancy, ', '.join(have) or 'none', self.dconf['group-name'],
                                                                         '; '.join(without)))
            sr = self.session.xenapi.SR.get_record(self.sr_ref)
            self.api.group_create(sr_uuid, pool, redundancy, {
                NAME: text_label(sr['name_label']), DESCRIPTION: text_label(sr['name_description']), GROUP_NAME: self.dconf['group-name']})
        util.SMlog('lockstep: created SR %s in %s%s' % (sr_uuid, vg, '/' + thin if thin else ''))

    def _plugin(self, host_ref, function, args):
        full = {'groupName': self.dconf['group-name']}
        full.update({k: v for k, v in args.items() if v is not None})
        return json.loads(self.session.xenapi.host.call_plugin(host_ref, PLUGIN, function, full))

    def _clear_the_place(self, status):
        """One SR a place: another one there must not vanish from sight. An empty one that xapi does not know is what a create that
        was interrupted has left."""
        places = self._pool_names(status)
        for group in status['groups']:
            if group['name'] == self.uuid or group['pool'] not in places:
                continue
            if self._volumes(status, group['name']) or self._xapi_knows(self.session.xenapi.SR, group['name']):
                raise xs_errors.XenError('SRExists', opterr='group-name=%s holds the SR %s already: introduce it with `xe sr-introduce uuid=%s '
                                         'type=lockstep shared=true name-label=..`, or destroy it' % (self.dconf['group-name'], group['name'],
                                                                                                     group['name']))
            self.api.group_delete(group['name'])

    @staticmethod
    def _xapi_knows(objects, uuid):
        try:
            objects.get_by_uuid(uuid)
            return True
        except Exception as e:
            if 'UUID_INVALID' in str(e):
                return False
            raise

    def delete(self, sr_uuid):
        with self._lock(fcntl.LOCK_EX), api_errors('SRUnavailable'):
            status = self.api.cluster_status(consistent=True, brief=True)
            if sr_uuid not in [g['name'] for g in status['groups']]:
                return
            self._group(status)
            snapshots = status.get('snapshots', ())
            left = [v for v in self._volumes(status)
                    if not (self._is_wreckage(v) and self._remove_wreckage(v)) and not self._drop_view(v) and not self.remove_deleted(v, snapshots)]
            if left:
                raise xs_errors.XenError('SRNotEmpty', opterr='SR %s holds %d volumes, such as %s: scan it and delete them first'
                                         % (sr_uuid, len(left), left[0]['name']))
            self.api.group_delete(sr_uuid)

    def attach(self, sr_uuid):
        with api_errors('SRUnavailable'):
            # On the master a scan follows, which looks through the volumes anyway.
            master = self.dconf.get('SRmaster') == 'true'
            status = self.api.cluster_outline() if master else self.api.cluster_status(brief=True)
            if status.get('module_error'):
                raise lockstep.ApiError(status['module_error'])
            self._group(status)
            if not master:
                self._leave_views_of_old(status)

    def after_master_attach(self, sr_uuid):
        """sm scans here, and xapi scans right after the plug: the same again, for which all records are listed. Needed is only the one
        of an SR of which xapi knows no disk, such as one that was just introduced: who has plugged it finds its disks."""
        if not self.session.xenapi.SR.get_VDIs(self.sr_ref):
            super(LockstepSR, self).after_master_attach(sr_uuid)

    def _leave_views_of_old(self, status):
        """Of views that this host has used before it rebooted it is no user any more."""
        user, boot = VIEW_USER + status['this_host'], boot_id()
        for volume in self._volumes(status):
            if volume['labels'].get(user, boot) != boot:
                self.leave_view(volume['name'])

    def detach(self, sr_uuid):
        """Nothing to undo: devices belong to volumes, not to the SR, and the daemon goes on serving the other hosts."""

    def probe(self):
        """The SRs of the cluster in this place; if it has none there, those that replicas on the disks say they were of: the plugin's
        adoptVolumes makes SRs of these again."""
        place = self._place() if self.dconf.get('group-name') else None
        with api_errors('SRUnavailable'):
            try:
                joined, found = lockstep.found_here(self.api, place)
            except lockstep.Unreachable as e:
                util.SMlog('lockstep: %s' % e)
                joined, found = False, {}
            if not joined:
                found = self._found_anywhere()
            return util.SRtoXML({sr: {'size': sum(parts.values())} for sr, parts in found.items()})

    def _found_anywhere(self):
        """Of a host that was installed anew no daemon runs, and of one in no cluster none sees others' disks: so each is asked, and its
        daemon started."""
        found, failures = {}, []
        hosts = self.session.xenapi.host.get_all_records()
        for host, record in sorted(hosts.items()):
            try:
                answer = json.loads(self.session.xenapi.host.call_plugin(host, PLUGIN, 'findSrs', {'groupName': self.dconf.get('group-name', '')}))
            except Exception as e:
                failures.append('%s: %s' % (record['name_label'], e))
                continue
            for sr, parts in answer['srs'].items():
                found.setdefault(sr, {}).update(parts)
        for failure in failures:
            util.SMlog('lockstep: not asked for what is on its disks: %s' % failure)
        if len(failures) == len(hosts):
            raise lockstep.ApiError('no host can say what is on its disks; %s' % '; '.join(failures))
        return found

    # ---- what xapi knows ----

    @staticmethod
    def _capacity(status, group):
        return lockstep.capacity([p for p in status['pools'] if p['name'] == group['pool']], group['redundancy'])

    def _measure(self, status):
        group = self._group(status)
        volumes = self._volumes(status)
        disks = [v for v in volumes if VIEW_OF not in v['labels'] and DELETED not in v['labels']]
        self.physical_size, self.physical_utilisation = self._capacity(status, group)
        self.virtual_allocation = sum(v['size_bytes'] for v in disks)
        return volumes

    def scan(self, sr_uuid):
        with self._lock(fcntl.LOCK_EX):
            with api_errors('SRScan'):
                # Records are forgotten by this answer: it must be what the cluster agreed on, not what this host remembers.
                status = self.api.cluster_status(consistent=True, brief=True)
                self._leave_views_of_old(status)
                for volume in self._measure(status):
                    if VIEW_OF in volume['labels']:
                        self._drop_view(volume)
                    elif DELETED in volume['labels']:
                        self.leave_if_refused(self.remove_deleted, volume, status.get('snapshots', ()))
                    elif not lockstep.IS_UUID.match(volume['name']) or not self._is_a_disk(volume):
                        continue
                    elif self._is_wreckage(volume):
                        self.leave_if_refused(self._remove_wreckage, volume)
                    else:
                        vdi = self.vdi(volume['name'])
                        vdi.take(volume)
                        self.vdis[vdi.location] = vdi
            super(LockstepSR, self).scan(sr_uuid)
            self._link_snapshots()

    def _is_a_disk(self, volume):
        """While a volume is being made it is none, and a record would be too early. But one whose content is being replaced (a revert by
        an administrator, compose) is in the same phase: its record must not be forgotten."""
        return lockstep.is_there(volume) or CREATING not in volume['labels'] and self._xapi_knows(self.session.xenapi.VDI, volume['name'])

    def _is_wreckage(self, volume):
        """Has a driver that was killed left it? Only under LOCK_EX."""
        return CREATING in volume['labels'] or mirrors.is_composed_parent(self.api, volume)

    def _remove_wreckage(self, volume):
        util.SMlog('lockstep: removing %s, whose creation or use was interrupted' % volume['name'])
        self.remove(volume)
        return True

    @staticmethod
    def leave_if_refused(remove, volume, *args):
        """What cannot be removed now must not keep the other disks from being scanned, nor a snapshot that is gone from being forgotten."""
        try:
            remove(volume, *args)
        except lockstep.Forbidden as e:
            util.SMlog('lockstep: %s stays until the next scan: %s' % (volume['name'], e))

    def remove(self, volume):
        """Deletes a volume or snapshot; done if it is gone."""
        try:
            if 'volume' in volume:
                self.api.snapshot_delete(volume)
            else:
                self.api.volume_delete(volume['name'])
        except lockstep.Missing:
            pass

    def remove_deleted(self, volume, snapshots):
        """Of a disk that xapi has deleted before its snapshots: removes its volume once there are none, and says whether it is gone. One that
        is being deleted is still there while a host that has a copy is away."""
        if DELETED not in volume['labels'] or [s for s in snapshots if s['volume_uuid'] == volume['uuid']]:
            return False
        self.remove(volume)
        return True

    def _drop_view(self, volume):
        """Removes a view that no host uses; True if it is one and gone. Hosts that have left the cluster use nothing."""
        if VIEW_OF not in volume['labels']:
            return False
        name = volume['name']
        try:
            self.api.volume_label(name, {DROPPING: '1'})
            status = self.api.status(volume=name)
            hosts = {h['name'] for h in status['hosts']}
            users = [k for v in status['volumes'] for k in v['labels'] if k.startswith(VIEW_USER) and k[len(VIEW_USER):] in hosts]
            if not users:
                try:
                    self.api.volume_delete(name)
                    return True
                except lockstep.Forbidden as e:
                    util.SMlog('lockstep: view %s stays: %s' % (name, e))
            self.api.volume_label(name, {DROPPING: None})
            return False
        except lockstep.Missing:
            return True

    def take_view(self, snapshot):
        """Makes this host a user of the snapshot's view, which is made if it is not there."""
        name = snapshot['name'] + VIEW
        for attempt in range(VIEW_TRIES):
            try:
                user = VIEW_USER + self.api.status(volume=name)['this_host']
                self.api.volume_label(name, {user: boot_id()})
                view = self.api.volume(name)
            except lockstep.Missing:
                try:
                    self.api.snapshot_restore(snapshot, name, self.uuid, {VIEW_OF: snapshot['name']})
                except lockstep.Forbidden as e:
                    if e.code != 'name-taken' and not self._exists(name):
                        raise
                continue
            if view['phase'] == 'ready' and DROPPING not in view['labels']:
                return
            if DROPPING in view['labels']:
                self.api.volume_label(name, {user: None})
            time.sleep(0.1 + 0.2 * attempt)     # another host drops the view, or makes it right now
        raise lockstep.ApiError('the view %s of snapshot %s comes and goes: try again' % (name, snapshot['name']))

    def _exists(self, name):
        try:
            return bool(self.api.status(volume=name)['volumes'])
        except lockstep.Missing:
            return False

    def leave_view(self, name):
        """This host no longer uses the view; the last user drops it."""
        try:
            status = self.api.status(volume=name)
            self.api.volume_label(name, {VIEW_USER + status['this_host']: None})
            for volume in status['volumes']:
                self._drop_view(volume)
        except lockstep.Missing:
            pass

    def _link_snapshots(self):
        """Snapshots that were just introduced name their origin only now: it may have been introduced after them."""
        for vdi in self.fresh:
            if vdi.origin and vdi.origin in self.vdis:
                _VDI = self.session.xenapi.VDI
                _VDI.set_snapshot_of(_VDI.get_by_uuid(vdi.uuid), _VDI.get_by_uuid(vdi.origin))

    def update(self, sr_uuid):
        with api_errors('SRUnavailable'):
            self._measure(self.api.cluster_status(brief=True))
            self._db_update()
            sr = self.session.xenapi.SR.get_record(self.sr_ref)
            self.api.group_label(sr_uuid, {NAME: text_label(sr['name_label']), DESCRIPTION: text_label(sr['name_description'])})


class LockstepVDI(VDI.VDI):
    """A volume."""

    def load(self, vdi_uuid):
        self.path = os.path.join(os.environ.get('LOCKSTEP_DEVICES', lockstep.DEVICES), vdi_uuid)
        self.vdi_type = 'aio'
        self.sm_config_override = {'vdi_type': 'aio'}
        self.origin = None
        self.api = self.sr.api

    # sm's own change tracking, a log beside the disk: not used here. Base classes ask by this before they touch such a log.
    def _get_blocktracking_status(self, uuid=None):
        return False

    # ---- between volume and record ----

    def take(self, volume):
        """The properties of an existing volume."""
        labels = volume['labels']
        self.size = volume['size_bytes']
        self.read_only = 'volume' in volume     # a snapshot
        # What it takes of its pool. Of a new volume LVM has not told yet; of a snapshot of before nobody does, so all of it, at most.
        allocated = volume.get('allocated_bytes', self.size)
        if allocated is None and self.read_only:
            allocated = self.size
        self.measured = allocated is not None
        self.utilisation = allocated if self.measured else 0 if self.sr.is_thin() else self.size
        self.label = labels.get(NAME) or volume['name']
        self.description = labels.get(DESCRIPTION, '')
        self.ty = labels.get(TYPE, 'user')
        self.shareable = volume.get('class') == 'shared'
        self.cbt_enabled = CBT in labels
        self.origin = labels.get(SNAPSHOT_OF)
        self.is_a_snapshot = SNAPSHOT_OF in labels
        self.snapshot_time = labels.get(SNAPSHOT_TIME, '19700101T00:00:00Z')

    def _db_introduce(self):
        if self.sr.cmd == 'sr_scan' or self.sr.cmd == 'sr_attach':
            self.sr.fresh.append(self)
        if not hasattr(self, 'sm_config'):
            self.sm_config = {}
        self._override_sm_config(self.sm_config)
        return super(LockstepVDI, self)._db_introduce()

    def in_sync_with_xenapi_record(self, record):
        """A scan writes those that are not. That costs several calls a disk, too much for each step of what VMs write: see UTILISATION_STEPS."""
        known = int(record['physical_utilisation'])
        if not self.measured or abs(self.utilisation - known) * UTILISATION_STEPS < self.size:
            self.utilisation = known
        return super(LockstepVDI, self).in_sync_with_xenapi_record(record)

    def _db_update(self):
        _VDI = self.session.xenapi.VDI
        ref = _VDI.get_by_uuid(self.uuid)
        _VDI.set_virtual_size(ref, str(self.size))
        if self.measured:
            _VDI.set_physical_utilisation(ref, str(self.utilisation))
        _VDI.set_read_only(ref, self.read_only)
        _VDI.set_cbt_enabled(ref, self.cbt_enabled)
        sm_config = util.default(self, 'sm_config', lambda: _VDI.get_sm_config(ref))
        self._override_sm_config(sm_config)
        self._db_update_sm_config(ref, sm_config)

    def _introduce_new(self, make, otherwise):
        """Makes a volume by make(labels) and its record; all of it or nothing."""
        labels = {NAME: text_label(self.label), DESCRIPTION: text_label(self.description), TYPE: self.ty, CREATING: '1'}
        with self.sr.changing():
            with api_errors(otherwise):
                make(labels)
            try:
                with api_errors(otherwise):
                    volume, snapshot = self.api.find(self.uuid)
                    self.take(volume or snapshot)
                    ref = self._db_introduce()
                    self._label(volume, snapshot, {CREATING: None})
            except BaseException:
                self._undo(locals().get('ref'))
                raise
        return self.get_params()

    def _label(self, volume, snapshot, labels):
        if snapshot:
            self.api.snapshot_label(snapshot, labels)
        else:
            self.api.volume_label(volume['name'], labels)

    def _undo(self, ref):
        """After a failure: what cannot be removed now carries the label still, and the next scan removes it."""
        try:
            volume, snapshot = self.api.find(self.uuid)
            self.sr.remove(volume or snapshot)
            if ref:
                self.session.xenapi.VDI.db_forget(ref)
        except Exception as e:
            util.SMlog('lockstep: %s stays until the next scan: %s' % (self.uuid, e))

    # ---- life of a VDI ----

    def create(self, sr_uuid, vdi_uuid, size):
        wanted = self.sr.srcmd.params.get('vdi_sm_config', {})
        for key in ('type', 'image-format', 'image_format', 'vdi_type'):
            if wanted.get(key, 'raw') not in ('raw', 'aio'):
                raise xs_errors.XenError('VDIType', opterr='%s=%s: an SR of type lockstep holds raw volumes only' % (key, wanted[key]))
        mirror = wanted.get('base_mirror')
        if size < 0:
            raise xs_errors.XenError('VDISize', opterr='%d bytes' % size)
        size = util.roundup(ALIGNMENT_BYTES, size)
        if getattr(self, 'is_a_snapshot', False):
            self.origin = self._uuid_of(self.snapshot_of)

        def make(labels):
            if self.origin:
                labels.update({SNAPSHOT_OF: self.origin, SNAPSHOT_TIME: str(self.snapshot_time)})
            if self.metadata_of_pool:
                labels[METADATA_OF] = self.metadata_of_pool
            options = {}
            if self.ty in SHARED_TYPES:
                options = self._shared_options()
            if mirror:
                labels[mirrors.ID] = text_label(mirror)
                hosts = self.sr.is_thin() and mirrors.leaf_hosts(self.api, self.sr.uuid, labels[mirrors.ID])
                options = {'hosts': hosts} if hosts else {}
            self._make_sized(lambda: self._create_volume(size, labels, options), size, 'VDICreate')
            if 'class' in options and self.api.volume(vdi_uuid)['class'] != 'shared':
                self._undo(None)
                raise lockstep.Unsupported('the lockstepd of this host has no shared volumes, which %s needs: update it' % self.ty)
        self.label, self.description = self.label or '', self.description or ''
        if mirror:
            self.sm_config = {'base_mirror': mirror}
        return self._introduce_new(make, 'VDICreate')

    def _create_volume(self, size, labels, options):
        try:
            self.api.volume_create(self.uuid, size, self.sr.uuid, labels, **options)
        except lockstep.Forbidden as e:
            if 'hosts' not in options or e.code == 'name-taken':
                raise
            self.api.volume_create(self.uuid, size, self.sr.uuid, labels)    # one of them is offline or full: the rest must do

    def _shared_options(self):
        """HA volumes: all hosts write at once; more copies than other volumes, for they guard the others."""
        status = self.api.cluster_outline()
        group = self.sr._group(status)
        hosts = {p['host'] for p in status['pools'] if p['name'] == group['pool']}
        return {'class': 'shared', 'redundancy': max(group['redundancy'], min(HA_REPLICAS, len(hosts)))}

    def _make_sized(self, make, size, otherwise):
        """Calls make(); tells a refusal for lack of space, or for a size no pool could hold, from others."""
        try:
            return make()
        except lockstep.ApiError as e:
            if e.status == lockstep.USAGE:
                raise xs_errors.XenError('VDISize', opterr=str(e))
            if type(e) is lockstep.Forbidden and not self._would_fit(size):
                raise lockstep.NoSpace(str(e), e.status, e.code)
            raise

    def _would_fit(self, size):
        status = self.api.cluster_outline()
        group = self.sr._group(status)
        online = {h['name'] for h in status['hosts'] if h['status'] == 'online'}
        room = [p for p in status['pools'] if p['name'] == group['pool'] and p['host'] in online and p['available_bytes'] >= size]
        return len(room) >= group['redundancy']

    def _uuid_of(self, ref):
        if not ref or ref == 'OpaqueRef:NULL':
            return None
        return self.session.xenapi.VDI.get_uuid(ref)

    def delete(self, sr_uuid, vdi_uuid, data_only=False):
        if data_only:
            return self.data_destroy(sr_uuid, vdi_uuid)
        with self.sr.changing():
            with api_errors('VDIDelete'):
                try:
                    volume, snapshot = self.api.find(vdi_uuid)
                    self._not_in_use(volume, snapshot)
                    self._remove(volume, snapshot)
                except lockstep.Missing:
                    pass
            try:
                self._db_forget()
            except Exception as e:
                if not any(code in str(e) for code in ('UUID_INVALID', 'HANDLE_INVALID')):
                    raise
        return None

    def _remove(self, volume, snapshot):
        if self.sr.is_thin():
            self.sr.remove(volume or snapshot)
        elif volume:
            volume['labels'][DELETED] = '1'
            if not self.sr.remove_deleted(volume, self.api.snapshots()):
                self.api.volume_label(volume['name'], {DELETED: '1'})
                self.sr.remove_deleted(volume, self.api.snapshots())    # the last one has gone meanwhile, perhaps
        else:
            self.sr.remove(snapshot)
            volume = self.api.volume(snapshot['volume'])
            if volume['uuid'] == snapshot['volume_uuid']:
                self.sr.leave_if_refused(self.sr.remove_deleted, volume, self.api.snapshots())

    def _not_in_use(self, volume, snapshot):
        holders = lockstep.openers(volume) if volume else []
        if snapshot and self.sr._exists(self.uuid + VIEW):
            view = self.api.volume(self.uuid + VIEW)
            if not self.sr._drop_view(view):
                holders = sorted(k[len(VIEW_USER):] for k in view['labels'] if k.startswith(VIEW_USER))
        if holders:
            raise lockstep.InUse('VDI %s is open on host %s: close it there first' % (self.uuid, ', '.join(holders)), lockstep.FORBIDDEN)

    def introduce(self, sr_uuid, vdi_uuid):
        location = self.sr.srcmd.params['vdi_location']
        with self.sr.changing():
            with api_errors('VDILoad', 'vdi'):
                volume, snapshot = self.api.find(location)
                volume = volume or snapshot
            if volume.get('group') != sr_uuid or DELETED in volume['labels']:
                raise xs_errors.XenError('VDIMissing', opterr='volume %s is not in SR %s' % (location, sr_uuid))
            if vdi_uuid != location:
                raise xs_errors.XenError('VDILoad', opterr='a VDI of this SR has the uuid of its volume, %s, not %s' % (location, vdi_uuid))
            for record in util.list_VDI_records_in_sr(self.sr).values():
                if location in (record['location'], record['uuid']):
                    raise xs_errors.XenError('VDIExists', opterr='VDI %s is there already' % location)
            self.take(volume)
            self._db_introduce()
        return self.get_params()

    def update(self, sr_uuid, vdi_uuid):
        _VDI = self.session.xenapi.VDI
        record = _VDI.get_record(_VDI.get_by_uuid(vdi_uuid))
        labels = {NAME: text_label(record['name_label']), DESCRIPTION: text_label(record['name_description']), TYPE: record['type'],
                  METADATA_OF: self._none_if_null(record.get('metadata_of_pool')), SNAPSHOT_OF: None, SNAPSHOT_TIME: None}
        if record['is_a_snapshot']:
            origin = record.get('snapshot_of')
            try:
                labels[SNAPSHOT_OF] = self._uuid_of(origin) or ''
            except Exception as e:
                if 'HANDLE_INVALID' not in str(e):
                    raise
                labels[SNAPSHOT_OF] = ''    # the origin has been deleted
            labels[SNAPSHOT_TIME] = str(record['snapshot_time'])
        with api_errors('VDIUnavailable', 'vdi'):
            volume, snapshot = self.api.find(vdi_uuid)
            self._label(volume, snapshot, labels)

    @staticmethod
    def _none_if_null(ref):
        return None if not ref or ref == 'OpaqueRef:NULL' else ref

    def resize(self, sr_uuid, vdi_uuid, size):
        size = util.roundup(ALIGNMENT_BYTES, size)
        with self.sr.changing():
            with api_errors('VDIResize', 'vdi'):
                volume, snapshot = self.api.find(vdi_uuid)
                if snapshot:
                    raise xs_errors.XenError('VDIType', opterr='VDI %s is a snapshot: it keeps its size' % vdi_uuid)
                if size < volume['size_bytes']:
                    raise xs_errors.XenError('VDISize', opterr='VDI %s has %d bytes: a volume can grow, not shrink to %d'
                                             % (vdi_uuid, volume['size_bytes'], size))
                if size > volume['size_bytes']:
                    self._make_sized(lambda: self.api.resize(vdi_uuid, size), size - volume['size_bytes'], 'VDIResize')
                self.take(self.api.volume(vdi_uuid))
            self._db_update()
        # tapdisk reads the size when it opens, and again after a pause.
        if not SRCommand.blktap2.VDI.tap_refresh(self.session, sr_uuid, vdi_uuid):
            raise xs_errors.XenError('VDIResize', opterr='volume %s has grown, but a tapdisk that has it open could not be told: its VM sees '
                                     'the new size after a restart' % vdi_uuid)
        return self.get_params()

    # ---- data path ----

    def attach(self, sr_uuid, vdi_uuid):
        with api_errors('VDIUnavailable', 'vdi'):
            volume, snapshot = self.api.find(vdi_uuid)
            if snapshot:
                if snapshot['labels'].get(TYPE) == CBT_METADATA:
                    raise xs_errors.XenError('VDIType', opterr='the data of snapshot %s have been destroyed: it only tells what has changed' % vdi_uuid)
                self.sr.take_view(snapshot)
                self.path += VIEW
            elif volume['phase'] != 'ready':
                raise lockstep.ApiError('volume %s is %s' % (vdi_uuid, volume['phase']))
            self._wait_for_device(DEVICE_TIMEOUT_S)
        self.xenstore_data['storage-type'] = DRIVER_TYPE
        return super(LockstepVDI, self).attach(sr_uuid, vdi_uuid)

    def _wait_for_device(self, timeout_s):
        end = time.monotonic() + timeout_s
        while not device_there(self.path):
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise lockstep.ApiError('volume %s has no device %s on this host after %d s: see `lockstep status` and the log of lockstepd'
                                        % (self.uuid, self.path, timeout_s))
            # The daemon tells when it has made the device, udev names it soon after: a look now and then is all there is to do.
            time.sleep(min(0.1, left_s))

    def activate(self, sr_uuid, vdi_uuid):
        """Before tapdisk opens the device. The kernel refuses a second writer by itself; here the user learns who the first is."""
        args = self.sr.srcmd.params.get('args') or ['false']
        if args[0] != 'true':
            return None
        with api_errors('VDIUnavailable', 'vdi'):
            try:
                status = self.api.status(volume=vdi_uuid)
            except lockstep.Missing:
                self.api.find(vdi_uuid)
                self.sr.leave_view(vdi_uuid + VIEW)
                raise xs_errors.XenError('VDIUnavailable', opterr='VDI %s is a snapshot: it can be attached read-only' % vdi_uuid)
            online = {h['name'] for h in status['hosts'] if h['status'] == 'online'}
            for volume in status['volumes']:
                others = [h for h in lockstep.openers(volume) if h != status['this_host'] and h in online]
                if others and volume['class'] != 'shared':
                    raise xs_errors.XenError('VDIUnavailable', opterr='volume %s is open for writing on host %s: close it there first'
                                             % (vdi_uuid, others[0]))
                mirrors.opened(self.api, volume, status['this_host'])
        return None

    def deactivate(self, sr_uuid, vdi_uuid):
        """After tapdisk has closed the device: another host may open it as soon as this returns, so the cluster must know."""
        with api_errors('VDIUnavailable'):
            try:
                status = self.api.status(volume=vdi_uuid)
                this_host = status['this_host']
                if not any(this_host in lockstep.openers(v) for v in status['volumes'] if v['phase'] != 'deleting'):
                    return
                if not self.api.wait_for(vdi_uuid, lambda v: this_host not in lockstep.openers(v), CLOSE_TIMEOUT_S):
                    raise lockstep.ApiError('volume %s is still open for writing on host %s: something else than tapdisk has %s open'
                                            % (vdi_uuid, this_host, self.path))
            except lockstep.Missing:
                self.sr.leave_view(vdi_uuid + VIEW)

    def detach(self, sr_uuid, vdi_uuid):
        """The device stays: it is there on every host for the life of the volume."""

    # ---- HA: before xapi, without session, leader or other hosts ----

    def generate_config(self, sr_uuid, vdi_uuid):
        with api_errors('VDIUnavailable', 'vdi'):
            self.api.volume(vdi_uuid)
        call = {'device_config': {k: v for k, v in self.sr.dconf.items() if k != 'SRmaster'}, 'sr_uuid': sr_uuid, 'vdi_uuid': vdi_uuid,
                'sr_sm_config': {}, 'command': 'vdi_attach_from_config'}
        return xmlrpc.client.dumps((xmlrpc.client.dumps((call,), 'vdi_attach_from_config'),), '', True)

    def attach_from_config(self, sr_uuid, vdi_uuid):
        try:
            self._wait_for_device(BOOT_TIMEOUT_S)
        except lockstep.ApiError as e:
            raise xapi_error(e, 'VDIUnavailable')
        # No params_nbd: static-vdis takes its presence for an NBD export.
        return xmlrpc.client.dumps(({'params': self.path, 'xenstore_data': {}},), '', True)

    # ---- snapshots ----

    def _new_vdi(self):
        new = LockstepVDI(self.sr, util.gen_uuid())
        _VDI = self.session.xenapi.VDI
        record = _VDI.get_record(_VDI.get_by_uuid(self.uuid))
        new.label, new.description, new.ty = record['name_label'], record['name_description'], record['type']
        return new

    def snapshot(self, sr_uuid, vdi_uuid):
        # Storage migration asks for the snapshot and the start of the mirror at one point: tapdisk holds writes meanwhile.
        mirror = self.sr.srcmd.params.get('driver_params', {}).get('mirror')
        blktap2 = SRCommand.blktap2.VDI
        if not mirror:
            return self._snapshot()
        if not blktap2.tap_pause(self.session, sr_uuid, vdi_uuid):
            raise xs_errors.XenError('VDISnapshot', opterr='tapdisk of VDI %s could not be paused' % vdi_uuid)
        try:
            reply = self._snapshot()
        except BaseException:
            blktap2.tap_unpause(self.session, sr_uuid, vdi_uuid, None)
            raise
        if not blktap2.tap_unpause(self.session, sr_uuid, vdi_uuid, mirror):
            raise xs_errors.XenError('VDISnapshot', opterr='tapdisk of VDI %s could not be told to mirror' % vdi_uuid)
        return reply

    def _snapshot(self):
        new = self._new_vdi()

        def make(labels):
            labels.update({SNAPSHOT_OF: self.uuid, SNAPSHOT_TIME: datetime.datetime.utcnow().strftime('%Y%m%dT%H:%M:%SZ')})
            volume, snapshot = self.api.find(self.uuid)
            if snapshot:
                raise xs_errors.XenError('VDISnapshot', opterr='VDI %s is a snapshot itself: clone it' % self.uuid)
            if CBT in volume['labels']:
                labels[CBT] = '1'
            if mirrors.snapshotted(self.api, volume) and not self.sr.is_thin():
                return self.api.volume_create(new.uuid, ALIGNMENT_BYTES, self.sr.uuid, labels)
            return self._make_sized(lambda: self.api.snapshot_create(self.uuid, new.uuid, labels), 0, 'VDISnapshot')
        new.snapshot_of = self.session.xenapi.VDI.get_by_uuid(self.uuid)
        return new._introduce_new(make, 'VDISnapshot')

    def clone(self, sr_uuid, vdi_uuid):
        new = self._new_vdi()

        def make(labels):
            volume, snapshot = self.api.find(vdi_uuid)
            size = (volume or snapshot)['size_bytes']
            mirror = (self.sr.srcmd.params.get('driver_params') or {}).get('base_mirror')
            if mirror and self.sr.is_thin():
                hosts = snapshot['hosts'] if snapshot else [r['host'] for r in volume['replicas']]
                mirrors.refuse_apart(self.api, sr_uuid, text_label(mirror), hosts)
            if snapshot:
                self._make_sized(lambda: self.api.snapshot_restore(snapshot, new.uuid, sr_uuid, labels, uuid=new.uuid), size, 'VDIClone')
            else:
                self._make_sized(lambda: self.api.clone(vdi_uuid, new.uuid, sr_uuid, labels), size, 'VDIClone')
        return new._introduce_new(make, 'VDIClone')

    def revert(self, sr_uuid, vdi_uuid, target_uuid):
        """The disk gets the content of its snapshot, this VDI, and stays the disk that it is. Where that cannot be done xapi is told so, and
        makes a clone take its place: of a snapshot whose disk is gone or has grown, or, in a thick pool, where others have no room for what that overwrites."""
        with api_errors('VDIUnavailable', 'vdi'):
            _, snapshot = self.api.find(vdi_uuid)
            try:
                target = self.api.volume(target_uuid)
                if not snapshot or snapshot['volume_uuid'] != target['uuid']:
                    raise lockstep.Forbidden('VDI %s is no snapshot of %s' % (vdi_uuid, target_uuid), lockstep.FORBIDDEN)
                self.api.snapshot_revert(snapshot)
            except lockstep.InUse:
                raise
            except (lockstep.Forbidden, lockstep.Missing, lockstep.Unsupported) as e:
                util.SMlog('lockstep: VDI %s is not reverted in place: %s' % (target_uuid, e))
                raise xs_errors.XenError('Unimplemented', opterr=str(e))

    def compose(self, sr_uuid, vdi1, vdi2):
        """The last step of an incoming mirror: vdi2 becomes vdi1 with what was written to vdi2 on it; vdi1 is gone then."""
        with api_errors('VDIUnavailable', 'vdi'):
            there = mirrors.compose(self.api, vdi2, vdi1, self.sr.is_thin())
            with self.sr.changing():
                if there:
                    self._remove_parent(vdi1)
                try:
                    self.session.xenapi.VDI.db_forget(self.session.xenapi.VDI.get_by_uuid(vdi1))
                except Exception as e:
                    if 'UUID_INVALID' not in str(e):
                        raise

    def _remove_parent(self, name):
        """The leaf is whole, as the cluster's log says: nobody needs the parent, and a guest stands still. So the hosts are not waited for, and
        a refusal is no failure of compose. The next scan removes a parent that is still there (mirrors.is_composed_parent)."""
        try:
            self.api.volume_delete(name, wait=False)
        except lockstep.ApiError as e:
            util.SMlog('lockstep: %s stays until the next scan: %s' % (name, e))

    # ---- changed blocks: the pools can always tell them between two snapshots; the label only says that xapi may ask ----

    def configure_blocktracking(self, sr_uuid, vdi_uuid, enable):
        if self.session.xenapi.VDI.get_is_a_snapshot(self.sr.srcmd.params['vdi_ref']):
            raise xs_errors.XenError('VDIType', opterr='VDI %s is a snapshot' % vdi_uuid)
        with api_errors('CBTActivateFailed' if enable else 'CBTDeactivateFailed', 'vdi'):
            self.api.volume_label(vdi_uuid, {CBT: '1' if enable else None})

    def data_destroy(self, sr_uuid, vdi_uuid):
        if not self.session.xenapi.VDI.get_is_a_snapshot(self.sr.srcmd.params['vdi_ref']):
            raise xs_errors.XenError('VDIType', opterr='only a snapshot can keep its changed blocks without its data')
        with api_errors('VDIDelete', 'vdi'):
            _, snapshot = self.api.find(vdi_uuid)
            if not snapshot or CBT not in snapshot['labels']:
                raise xs_errors.XenError('VDIType', opterr='changed block tracking was not enabled when snapshot %s was made' % vdi_uuid)
            # What has changed is told by comparing the snapshot's blocks with others': they stay, though nobody reads them any more.
            self.api.snapshot_label(snapshot, {TYPE: CBT_METADATA})

    def list_changed_blocks(self):
        target = self.session.xenapi.VDI.get_uuid(self.sr.srcmd.params['args'][0])
        if target == self.uuid:
            raise xs_errors.XenError('CBTChangedBlocksError', opterr='source and target are the same VDI')
        with api_errors('CBTChangedBlocksError', 'vdi'):
            found = [self.api.find(name) for name in (self.uuid, target)]
            for volume, snapshot in found:
                if CBT not in (volume or snapshot)['labels']:
                    raise xs_errors.XenError('CBTChangedBlocksError', opterr='changed block tracking is not enabled for VDI %s'
                                             % (volume or snapshot)['name'])
            (_, since), (now, to) = found
            of = now['name'] if now else to['volume']
            if not since or since['volume'] != of:
                raise xs_errors.XenError('CBTChangedBlocksError', opterr='VDI %s is no snapshot of volume %s' % (self.uuid, of))
            answer = self.api.diff(since, to['name'] if to else None)
            blocks = -(-(now or to)['size_bytes'] // lockstep.CHANGED_BLOCK_BYTES)
            if answer['block_bytes'] != lockstep.CHANGED_BLOCK_BYTES or len(base64.b64decode(answer['bitmap'])) * 8 < blocks:
                raise lockstep.ApiError('lockstepd answered with a bitmap that is not one of 64 KiB blocks')
        return xmlrpc.client.dumps((answer['bitmap'],), '', True)


if __name__ == '__main__':
    SRCommand.run(LockstepSR, DRIVER_INFO)
else:
    SR.registerSR(LockstepSR)
