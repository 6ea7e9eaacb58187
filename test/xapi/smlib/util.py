# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for sm's util: what a driver and the other stand-ins use of it. The log goes to the file named by FAKE_SMLOG.
import os
import re
import traceback
import uuid
import xml.dom.minidom
import xmlrpc.client


class SMException(Exception):
    pass


class CommandException(SMException):
    def __init__(self, code, cmd='', reason='exec failed'):
        SMException.__init__(self, os.strerror(abs(code)))
        self.code, self.cmd, self.reason = code, cmd, reason


class SRBusyException(SMException):
    pass


def SMlog(text, *_, **__):
    path = os.environ.get('FAKE_SMLOG')
    if path:
        with open(path, 'a') as log:
            log.write('[%d] %s\n' % (os.getpid(), text))


def logException(tag):
    SMlog('%s: %s' % (tag, traceback.format_exc()))


def gen_uuid():
    return str(uuid.uuid4())


def roundup(divisor, value):
    return max(-(-int(value) // divisor), 1) * divisor


def default(obj, field, thunk):
    return getattr(obj, field) if hasattr(obj, field) else thunk()


def to_plain_string(obj):
    return None if obj is None else str(obj)


def isLegalXMLString(text):
    return re.search('[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]', text) is None


def isInvalidVDI(failure):
    return failure.details[0] in ('HANDLE_INVALID', 'UUID_INVALID')


def get_this_host():
    with open(os.environ['LOCKSTEP_XENSOURCE_INVENTORY']) as inventory:
        return re.search("INSTALLATION_UUID='?([^'\n]*)", inventory.read()).group(1)


def get_localhost_ref(session):
    return session.xenapi.host.get_by_uuid(get_this_host())


def set_dirty(session, sr_ref):
    pass


def read_caching_is_restricted(session):
    return False


def list_VDI_records_in_sr(sr):
    ref = sr.session.xenapi.SR.get_by_uuid(sr.uuid)
    return sr.session.xenapi.VDI.get_all_records_where('field "SR" = "%s"' % ref)


def sr_get_capability(sr_uuid, session=None):
    sr = session.xenapi.SR.get_record(session.xenapi.SR.get_by_uuid(sr_uuid))
    drivers = session.xenapi.SM.get_all_records_where('field "type" = "%s"' % sr['type'])
    return list(drivers.values())[0]['capabilities'] if drivers else []


def SRtoXML(srs):
    document = xml.dom.minidom.Document()
    root = document.appendChild(document.createElement('SRlist'))
    for sr_uuid, properties in srs.items():
        entry = root.appendChild(document.createElement('SR'))
        for tag, value in (('UUID', sr_uuid), ('Size', properties.get('size'))):
            if value is not None:
                entry.appendChild(document.createElement(tag)).appendChild(document.createTextNode(str(value)))
    return document.toprettyxml()


def sr_get_driver_info(info):
    reply = {k: info[k] for k in ('name', 'description', 'vendor', 'copyright', 'driver_version', 'required_api_version')}
    reply['capabilities'] = info['capabilities']
    reply['configuration'] = [{'key': key, 'description': text} for key, text in info['configuration']]
    return xmlrpc.client.dumps((reply,), '', True)


def return_nil():
    return xmlrpc.client.dumps((None,), '', True, allow_none=True)
