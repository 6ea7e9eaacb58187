# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for sm's VDI: the base class of virtual disks, and their records.
import xmlrpc.client

import SR
import util
import xs_errors

PASSED_ON = ('base_mirror', 'key_hash')
OWNED_BY_OTHERS = ('paused', 'vhd-blocks', 'relinking', 'activating')


def _unimplemented(*_, **__):
    raise xs_errors.XenError('Unimplemented')


class VDI(object):
    def __init__(self, sr, uuid):
        self.sr = sr
        self.session = sr.session
        self.uuid = self.location = uuid
        self.path = None
        self.label = self.description = self.vdi_type = ''
        self.size = self.utilisation = 0
        self.parent = None
        self.shareable = self.read_only = self.deleted = self.cbt_enabled = False
        self.managed = True
        self.xenstore_data = {}
        self.sm_config_override = {}
        self.sm_config_keep = ['key_hash']
        self.ty = 'user'
        self.load(uuid)

    @staticmethod
    def from_uuid(session, vdi_uuid):
        ref = session.xenapi.VDI.get_by_uuid(vdi_uuid)
        sr = SR.SR.from_uuid(session, session.xenapi.SR.get_uuid(session.xenapi.VDI.get_SR(ref)))
        sr.srcmd.params['vdi_ref'] = ref
        return sr.vdi(vdi_uuid)

    create = delete = introduce = detach = snapshot = clone = resize = compose = _unimplemented
    generate_config = attach_from_config = configure_blocktracking = data_destroy = list_changed_blocks = _unimplemented

    def load(self, vdi_uuid):
        pass

    def update(self, sr_uuid, vdi_uuid):
        pass

    def attach(self, sr_uuid, vdi_uuid):
        return xmlrpc.client.dumps(({'params': self.path, 'xenstore_data': self.xenstore_data},), '', True)

    def activate(self, sr_uuid, vdi_uuid):
        return None

    def deactivate(self, sr_uuid, vdi_uuid):
        pass

    def get_params(self):
        return xmlrpc.client.dumps(({'location': self.location, 'uuid': self.uuid},), '', True)

    def _get_blocktracking_status(self, uuid=None):
        return False

    def _db_introduce(self):
        sm_config = util.default(self, 'sm_config', dict)
        asked = self.sr.srcmd.params.get('vdi_sm_config', {})
        sm_config.update({k: asked[k] for k in PASSED_ON if asked.get(k)})
        return self.session.xenapi.VDI.db_introduce(
            self.uuid, self.label, self.description, self.sr.sr_ref, self.ty, self.shareable, self.read_only, {}, self.location, {},
            sm_config, self.managed, str(self.size), str(self.utilisation),
            util.default(self, 'metadata_of_pool', lambda: 'OpaqueRef:NULL'), util.default(self, 'is_a_snapshot', lambda: False),
            xmlrpc.client.DateTime(util.default(self, 'snapshot_time', lambda: '19700101T00:00:00Z')),
            util.default(self, 'snapshot_of', lambda: 'OpaqueRef:NULL'), self.cbt_enabled)

    def _db_forget(self):
        self.sr.forget_vdi(self.uuid)

    def _override_sm_config(self, sm_config):
        for key, value in self.sm_config_override.items():
            if value:
                sm_config[key] = value
            else:
                sm_config.pop(key, None)

    def _db_update_sm_config(self, ref, sm_config):
        api = self.session.xenapi.VDI
        current = api.get_sm_config(ref)
        for key in set(current) | set(sm_config):
            if key.startswith('host_') or key in OWNED_BY_OTHERS or current.get(key) == sm_config.get(key):
                continue
            if key not in sm_config and key in self.sm_config_keep:
                continue
            api.remove_from_sm_config(ref, key)
            if sm_config.get(key):
                api.add_to_sm_config(ref, key, sm_config[key])

    def _db_update(self):
        api = self.session.xenapi.VDI
        ref = api.get_by_uuid(self.uuid)
        api.set_virtual_size(ref, str(self.size))
        api.set_physical_utilisation(ref, str(self.utilisation))
        api.set_read_only(ref, self.read_only)
        sm_config = util.default(self, 'sm_config', dict)
        self._override_sm_config(sm_config)
        self._db_update_sm_config(ref, sm_config)
        api.set_cbt_enabled(ref, self._get_blocktracking_status())

    def in_sync_with_xenapi_record(self, record):
        return (self.location == record['location'] and self.read_only == record['read_only'] and
                str(self.size) == record['virtual_size'] and str(self.utilisation) == record['physical_utilisation'] and
                util.default(self, 'sm_config', dict) == record['sm_config'] and self.cbt_enabled == record['cbt_enabled'])
