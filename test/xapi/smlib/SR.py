# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for sm's SR: the base class of storage repositories and the synchronisation of records after a scan, as a driver
# sees them.
import importlib.util
import os
import xmlrpc.client

import XenAPI
import util
import xs_errors

backends = []


def registerSR(cls):
    backends.append(cls)


def driver(sr_type):
    for cls in backends:
        if cls.handles(sr_type):
            return cls
    raise xs_errors.XenError('SRUnknownType')


def _unimplemented(*_):
    raise xs_errors.XenError('Unimplemented')


class SR(object):
    def __init__(self, srcmd, sr_uuid):
        self.srcmd = srcmd
        self.dconf = srcmd.dconf
        self.session = None
        if 'session_ref' in srcmd.params:
            self.session_ref = srcmd.params['session_ref']
            self.session = XenAPI.xapi_local()
            self.session._session = self.session_ref
            if 'subtask_of' in srcmd.params:
                self.session.transport.add_extra_header('Subtask-of', srcmd.params['subtask_of'])
        self.host_ref = srcmd.params.get('host_ref', '')
        self.sr_ref = srcmd.params.get('sr_ref')
        self.uuid = sr_uuid
        self.cmd = srcmd.params['command']
        self.vdis = {}
        self.physical_size = self.physical_utilisation = self.virtual_allocation = 0
        self.sr_vditype = ''
        self.ops_exclusive = []
        self.driver_config = {}
        self.load(sr_uuid)

    @staticmethod
    def handles(sr_type):
        return False

    @staticmethod
    def from_uuid(session, sr_uuid):
        """An SR without a command: for tapdisk and the plugins, which load the driver as a module."""
        ref = session.xenapi.SR.get_by_uuid(sr_uuid)
        sr_type = session.xenapi.SR.get_type(ref)
        sm = list(session.xenapi.SM.get_all_records_where('field "type" = "%s"' % sr_type).values())
        assert len(sm) == 1
        path = os.path.realpath(sm[0]['driver_filename'])
        spec = importlib.util.spec_from_file_location('driver_of_' + sr_type, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        host = util.get_localhost_ref(session)
        pbds = session.xenapi.PBD.get_all_records_where('field "SR" = "%s" and field "host" = "%s"' % (ref, host))
        import SRCommand
        command = SRCommand.SRCommand(module.DRIVER_INFO)
        command.dconf = list(pbds.values())[0]['device_config']
        command.params = {'session_ref': session._session, 'host_ref': host, 'device_config': command.dconf, 'sr_ref': ref,
                          'sr_uuid': sr_uuid, 'command': 'nop'}
        return driver(sr_type)(command, sr_uuid)

    create = delete = attach = detach = probe = vdi = _unimplemented

    def load(self, sr_uuid):
        pass

    def update(self, sr_uuid):
        pass

    def cleanup(self):
        pass

    def content_type(self, sr_uuid):
        return xmlrpc.client.dumps((str(self.sr_vditype),), '', True)

    def after_master_attach(self, sr_uuid):
        try:
            self.scan(sr_uuid)
        except Exception as e:
            self.session.xenapi.message.create('POST_ATTACH_SCAN_FAILED', 2, 'SR', sr_uuid, str(e))

    def scan(self, sr_uuid):
        self._db_update()
        ScanRecord(self).synchronise()

    def forget_vdi(self, uuid):
        self.session.xenapi.VDI.db_forget(self.session.xenapi.VDI.get_by_uuid(uuid))

    def _db_update(self):
        api = self.session.xenapi.SR
        ref = api.get_by_uuid(self.uuid)
        api.set_virtual_allocation(ref, str(self.virtual_allocation))
        api.set_physical_size(ref, str(self.physical_size))
        api.set_physical_utilisation(ref, str(self.physical_utilisation))


class ScanRecord(object):
    """What xapi knows and what the driver found, by location."""

    def __init__(self, sr):
        self.sr = sr
        self.records = {r['location']: r for r in util.list_VDI_records_in_sr(sr).values()}
        self.found = {vdi.location: vdi for vdi in sr.vdis.values()}
        for location, vdi in self.found.items():
            if not hasattr(vdi, 'sm_config'):
                known = self.records.get(location)
                vdi.sm_config = dict(known['sm_config']) if known else {}
            vdi._override_sm_config(vdi.sm_config)

    def synchronise(self):
        for location in set(self.found) - set(self.records):
            self.found[location]._db_introduce()
        for location in set(self.records) - set(self.found):
            try:
                self.sr.forget_vdi(self.records[location]['uuid'])
            except XenAPI.Failure as e:
                if not util.isInvalidVDI(e):
                    raise
        for location in set(self.found) & set(self.records):
            if not self.found[location].in_sync_with_xenapi_record(self.records[location]):
                self.found[location]._db_update()
