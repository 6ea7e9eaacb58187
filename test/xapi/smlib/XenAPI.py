# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stand-in for XAPI's Python module: XML-RPC over xapi's unix socket (FAKE_XAPI), with Status and Value in every reply.
import http.client
import os
import socket
import xmlrpc.client


class Failure(Exception):
    def __init__(self, details):
        Exception.__init__(self, str(details))
        self.details = details


class Transport(xmlrpc.client.Transport):
    def __init__(self):
        xmlrpc.client.Transport.__init__(self)
        self.extra = []

    def add_extra_header(self, key, value):
        self.extra.append((key, value))

    def make_connection(self, host):
        connection = http.client.HTTPConnection('localhost', timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(os.environ.get('FAKE_XAPI', '/var/lib/xcp/xapi'))
        return connection

    def send_headers(self, connection, headers):
        xmlrpc.client.Transport.send_headers(self, connection, headers + self.extra)


class _Method(object):
    def __init__(self, session, name):
        self._session, self._name = session, name

    def __getattr__(self, part):
        return _Method(self._session, self._name + '.' + part if self._name else part)

    def __call__(self, *args):
        return self._session.call(self._name, args)


class Session(object):
    def __init__(self):
        self.transport = Transport()
        self._session = None
        self.xenapi = _Method(self, '')

    def call(self, name, args):
        if name == 'login_with_password':
            self._session = self.request('session.login_with_password', args)
            return None
        return self.request(name, (self._session,) + args)

    def request(self, name, args):
        server = xmlrpc.client.ServerProxy('http://localhost/', transport=self.transport, allow_none=True)
        reply = getattr(server, name)(*args)
        self.transport.close()
        if reply['Status'] != 'Success':
            raise Failure(reply['ErrorDescription'])
        return reply['Value']


def xapi_local():
    return Session()
