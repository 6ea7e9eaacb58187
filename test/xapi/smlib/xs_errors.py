# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for sm's xs_errors: the errors that a driver raises, by name, and their numbers on the wire.
import xmlrpc.client

ERRORS = {
    'SRInUse': (16, 'SR device in use'),
    'VDIInUse': (24, 'VDI in use'),
    'Unimplemented': (38, 'not implemented by this driver'),
    'SRNotEmpty': (39, 'SR not empty'),
    'SRScan': (40, 'SR scan failed'),
    'SRExists': (42, 'SR exists'),
    'VDIExists': (43, 'VDI exists'),
    'SRNoSpace': (44, 'There is insufficient space'),
    'VDIUnavailable': (46, 'VDI not available'),
    'SRUnavailable': (47, 'SR not available'),
    'SRUnknownType': (48, 'unknown type of SR'),
    'VDILoad': (65, 'VDI cannot be loaded'),
    'VDIType': (66, 'wrong type of VDI'),
    'VDICreate': (78, 'VDI not created'),
    'VDISize': (79, 'wrong size of VDI'),
    'VDIDelete': (80, 'VDI not deleted'),
    'VDIClone': (81, 'VDI not cloned'),
    'VDISnapshot': (82, 'no snapshot of VDI'),
    'VDIResize': (110, 'VDI not resized'),
    'ConfigParamsMissing': (115, 'parameters missing'),
    'BadRequest': (143, 'request not understood'),
    'VDIMissing': (144, 'VDI not found'),
    'APIProtocolError': (154, 'protocol error of the XenAPI'),
    'SMGeneral': (202, 'error of the backend'),
    'IllegalXMLChar': (447, 'character that XML does not allow'),
    'TapdiskFailed': (453, 'tapdisk failed'),
    'CBTActivateFailed': (457, 'changed block tracking not activated'),
    'CBTDeactivateFailed': (458, 'changed block tracking not deactivated'),
    'CBTChangedBlocksError': (460, 'changed blocks not known'),
}


class SRException(Exception):
    errno = 22

    def toxml(self):
        return xmlrpc.client.dumps(xmlrpc.client.Fault(int(self.errno), str(self)), '', True)


class SROSError(SRException):
    def __init__(self, number, reason):
        SRException.__init__(self, reason)
        self.errno = number


def XenError(key, opterr=None):
    number, text = ERRORS[key]
    return SROSError(number, text if opterr is None else '%s [opterr=%s]' % (text, opterr))
