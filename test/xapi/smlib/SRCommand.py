# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for sm's SRCommand: from the one argument of a driver's process to the method that carries it out, and back.
import os
import sys
import xmlrpc.client

import XenAPI
import blktap2
import util
import xs_errors

NEEDS_VDI_OBJECT = ['vdi_update', 'vdi_create', 'vdi_delete', 'vdi_snapshot', 'vdi_clone', 'vdi_resize', 'vdi_attach', 'vdi_detach',
            'vdi_activate', 'vdi_deactivate', 'vdi_attach_from_config', 'vdi_detach_from_config', 'vdi_generate_config',
            'vdi_compose', 'vdi_epoch_begin', 'vdi_epoch_end', 'vdi_enable_cbt', 'vdi_disable_cbt', 'vdi_data_destroy',
            'vdi_list_changed_blocks', 'vdi_revert']
if 'FAKE_SM_OF_BEFORE' in os.environ:    # xapi knew the command earlier than sm
    NEEDS_VDI_OBJECT.remove('vdi_revert')
ERROR_OF = {'sr_scan': 'SRScan', 'vdi_create': 'VDICreate', 'vdi_delete': 'VDIDelete', 'vdi_attach': 'VDIUnavailable',
            'vdi_detach': 'VDIUnavailable', 'vdi_activate': 'VDIUnavailable', 'vdi_deactivate': 'VDIUnavailable',
            'vdi_resize': 'VDIResize', 'vdi_snapshot': 'VDISnapshot', 'vdi_clone': 'VDIClone'}


class SRCommand(object):
    def __init__(self, driver_info):
        self.driver_info = driver_info
        self.dconf = ''
        self.params = {}

    def parse(self):
        if len(sys.argv) != 2:
            raise xs_errors.XenError('BadRequest')
        arguments, self.cmd = xmlrpc.client.loads(os.fsencode(sys.argv[1]))
        self.params = arguments[0]
        self.dconf = self.params['device_config']
        self.sr_uuid = self.params.get('sr_uuid', '')
        self.vdi_uuid = self.params.get('vdi_uuid') or (util.gen_uuid() if self.cmd == 'vdi_create' else None)

    def run(self, sr):
        try:
            target = sr.vdi(self.vdi_uuid) if self.cmd in NEEDS_VDI_OBJECT else None
            return self.carry_out(sr, target)
        except (util.SMException, XenAPI.Failure) as e:
            util.logException(self.cmd)
            raise xs_errors.XenError(ERROR_OF.get(self.cmd, 'SMGeneral'), opterr=str(e))
        except blktap2.TapdiskFailed as e:
            raise xs_errors.XenError('TapdiskFailed', opterr=str(e))

    def carry_out(self, sr, vdi):
        args, sr_uuid, uuid = self.params['args'] if 'args' in self.params else [], self.sr_uuid, self.vdi_uuid
        util.SMlog('%s %s' % (self.cmd, uuid or sr_uuid))
        if self.cmd in ('vdi_attach', 'vdi_detach', 'vdi_activate', 'vdi_deactivate'):
            tap = blktap2.VDI(uuid, vdi, self.driver_info)
            return {'vdi_attach': lambda: tap.attach(sr_uuid, uuid, args[0] == 'true'),
                    'vdi_detach': lambda: tap.detach(sr_uuid, uuid),
                    'vdi_activate': lambda: tap.activate(sr_uuid, uuid, args[0] == 'true', {}),
                    'vdi_deactivate': lambda: tap.deactivate(sr_uuid, uuid, {})}[self.cmd]()
        if self.cmd == 'vdi_create':
            vdi.label, vdi.description = args[1], args[2]
            if not util.isLegalXMLString(vdi.label) or not util.isLegalXMLString(vdi.description):
                raise xs_errors.XenError('IllegalXMLChar')
            vdi.ty, vdi.metadata_of_pool = self.params['vdi_type'], args[3]
            vdi.is_a_snapshot, vdi.snapshot_time, vdi.snapshot_of = args[4] == 'true', args[5], args[6]
            vdi.read_only = args[7] == 'true'
            return vdi.create(sr_uuid, uuid, int(args[0]))
        if self.cmd == 'vdi_delete':
            if 'VDI_CONFIG_CBT' in util.sr_get_capability(sr_uuid, session=sr.session):
                return vdi.delete(sr_uuid, uuid, data_only=False)
            return vdi.delete(sr_uuid, uuid)
        if self.cmd == 'vdi_revert' and vdi:
            to = args[0]    # xapi has sent a reference first, and a uuid later
            return vdi.revert(sr_uuid, uuid, sr.session.xenapi.VDI.get_uuid(to) if to.startswith('OpaqueRef:') else to)
        if self.cmd == 'vdi_introduce':
            new = self.params['new_uuid']
            return sr.vdi(new).introduce(sr_uuid, new)
        if self.cmd == 'sr_attach':
            master = sr.dconf.get('SRmaster') == 'true'
            self.reset(sr, master)
            try:
                return sr.attach(sr_uuid)
            finally:
                if master:
                    sr.after_master_attach(sr_uuid)
        if self.cmd == 'sr_probe':
            return xmlrpc.client.dumps((sr.probe(),), '', True)
        if self.cmd == 'vdi_epoch_begin':
            if self.params.get('vdi_on_boot') == 'reset':
                raise xs_errors.XenError('Unimplemented')
            return None
        simple = {
            'vdi_update': lambda: vdi.update(sr_uuid, uuid),
            'vdi_snapshot': lambda: vdi.snapshot(sr_uuid, uuid),
            'vdi_clone': lambda: vdi.clone(sr_uuid, uuid),
            'vdi_resize': lambda: vdi.resize(sr_uuid, uuid, int(args[0])),
            'vdi_epoch_end': lambda: None,
            'vdi_generate_config': lambda: vdi.generate_config(sr_uuid, uuid),
            'vdi_compose': lambda: vdi.compose(sr_uuid, sr.session.xenapi.VDI.get_uuid(args[0]), uuid),
            'vdi_attach_from_config': lambda: vdi.attach_from_config(sr_uuid, uuid),
            'vdi_detach_from_config': lambda: vdi.detach(sr_uuid, uuid),
            'vdi_enable_cbt': lambda: vdi.configure_blocktracking(sr_uuid, uuid, True),
            'vdi_disable_cbt': lambda: vdi.configure_blocktracking(sr_uuid, uuid, False),
            'vdi_data_destroy': lambda: vdi.data_destroy(sr_uuid, uuid),
            'vdi_list_changed_blocks': lambda: vdi.list_changed_blocks(),
            'sr_create': lambda: sr.create(sr_uuid, int(args[0])),
            'sr_delete': lambda: sr.delete(sr_uuid),
            'sr_update': lambda: sr.update(sr_uuid),
            'sr_detach': lambda: sr.detach(sr_uuid),
            'sr_content_type': lambda: sr.content_type(sr_uuid),
            'sr_scan': lambda: sr.scan(sr_uuid),
        }
        if self.cmd not in simple:
            raise xs_errors.XenError('BadRequest')
        return simple[self.cmd]()

    @staticmethod
    def reset(sr, master):
        """After a restart of the host nothing of it is attached any more."""
        mine = 'host_%s' % util.get_localhost_ref(sr.session)
        for ref, record in util.list_VDI_records_in_sr(sr).items():
            for key in [mine] + (['paused'] if master else []):
                if key in record['sm_config']:
                    sr.session.xenapi.VDI.remove_from_sm_config(ref, key)


def run(driver, driver_info):
    command = SRCommand(driver_info)
    try:
        command.parse()
        if command.params['command'] == 'sr_get_driver_info':
            print(util.sr_get_driver_info(driver_info))
            sys.exit(0)
        reply = command.run(driver(command, command.sr_uuid))
        print(util.return_nil() if reply is None else reply)
    except xs_errors.SRException as e:
        util.logException(driver_info['name'])
        print(e.toxml())
    except Exception as e:
        util.logException(driver_info['name'])
        print(xmlrpc.client.dumps(xmlrpc.client.Fault(1200, str(e)), '', True))
    sys.exit(0)
