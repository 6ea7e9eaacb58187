# SPDX-License-Identifier: GPL-2.0-or-later
#
# What holds for the driver's process whatever it is asked, and for its source.
import ast
import os
import shutil
import subprocess
import xmlrpc.client

import pytest

from conftest import LIBRARY, SOURCE, STANDINS
from fakexapi import make_driver_folder, method_call

ENV = {'PATH': '/sbin:/usr/sbin:/bin:/usr/bin', 'ORIGINATOR': 'SM', 'LOCKSTEP_SOCKET': '/nonexistent/sock', 'FAKE_XAPI': '/nonexistent/xapi'}
GET_INFO = ('<methodCall><methodName>sr_get_driver_info</methodName><params><param><value><struct><member><name>host_ref</name><value>OpaqueRef:H'
            '</value></member><member><name>command</name><value>sr_get_driver_info</value></member><member><name>args</name><value><array><data/>'
            '</array></value></member><member><name>device_config</name><value><struct/></value></member></struct></value></param></params></methodCall>')


def run(sm, *args):
    return subprocess.run([os.path.join(sm, 'LockstepSR')] + list(args), env=ENV, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=60)


def test_sources_are_python_3_6():
    for name in ('LockstepSR.py', 'lockstepapi.py', 'lockstepmirror.py', 'lockstep-manager'):
        with open(os.path.join(SOURCE, name)) as f:
            tree = ast.parse(f.read(), name, feature_version=(3, 6))
        for node in ast.walk(tree):
            # Younger than 3.6, though the grammar takes them.
            if isinstance(node, ast.keyword):
                assert node.arg not in ('capture_output', 'text'), '%s:%d' % (name, node.value.lineno)
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not set(modules) & {'dataclasses', 'contextvars', '__future__', 'importlib.resources'}, name
            if isinstance(node, ast.Attribute):
                assert node.attr not in ('removeprefix', 'removesuffix', 'fromisoformat', 'cached_property'), name
            assert not isinstance(node, getattr(ast, 'NamedExpr', ())) and not isinstance(node, getattr(ast, 'Match', ()))


def not_in_2_7(tree):
    """What the grammar of Python 2.7 does not know; modules and functions that it lacks are another matter."""
    younger = (ast.JoinedStr, ast.AnnAssign, ast.Nonlocal, ast.YieldFrom, ast.Await, ast.AsyncFunctionDef, ast.AsyncWith, ast.AsyncFor, ast.MatMult)
    for node in ast.walk(tree):
        if isinstance(node, younger):
            yield node
        if isinstance(node, ast.arguments) and (node.kwonlyargs or getattr(node, 'posonlyargs', None)):
            yield (node.kwonlyargs or node.posonlyargs)[0]
        if isinstance(node, ast.arg) and node.annotation or isinstance(node, ast.FunctionDef) and node.returns:
            yield node
        if isinstance(node, ast.Raise) and node.cause or isinstance(node, ast.ClassDef) and node.keywords:
            yield node
        if isinstance(node, ast.Dict) and None in node.keys or isinstance(node, (ast.List, ast.Tuple, ast.Set)) and \
                any(isinstance(e, ast.Starred) for e in node.elts):
            yield node
        if isinstance(node, ast.Call):
            stars = [i for i, a in enumerate(node.args) if isinstance(a, ast.Starred)]
            if len(stars) > 1 or stars and stars[0] != len(node.args) - 1 or [k.arg for k in node.keywords].count(None) > 1:
                yield node
            if isinstance(node.func, ast.Name) and node.func.id == 'print' and (node.keywords or len(node.args) > 1):
                yield node


def test_sources_are_python_2_7_to_its_parser():
    for name in ('LockstepSR.py', 'lockstepapi.py', 'lockstepmirror.py', 'lockstep-manager'):
        with open(os.path.join(SOURCE, name), 'rb') as f:
            text = f.read()
        assert all(c < 128 for c in text), name + ' needs a line that names its encoding'
        assert ['%s:%d' % (name, n.lineno) for n in not_in_2_7(ast.parse(text))] == []


@pytest.mark.parametrize('text', ['f"{x}"', 'x: int = 1', 'def f(*, a): pass', 'def f(a: int): pass', 'def f() -> int: pass', 'raise x from y',
                                  'class A(metaclass=B): pass', '{**a}', '[*a]', 'f(*a, *b)', 'f(*a, b)', 'print(a, file=b)', 'async def f(): pass'])
def test_what_2_7_does_not_know_is_found(text):
    assert list(not_in_2_7(ast.parse(text)))


def test_the_driver_imports_of_sm_only_what_it_may():
    with open(os.path.join(SOURCE, 'LockstepSR.py')) as f:
        tree = ast.parse(f.read())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    standard = {'base64', 'contextlib', 'datetime', 'fcntl', 'json', 'os', 're', 'stat', 'time', 'xmlrpc.client'}
    assert names - standard == {'SR', 'SRCommand', 'VDI', 'util', 'xs_errors', 'lockstepapi', 'lockstepmirror'}
    assert not any(isinstance(n, ast.ImportFrom) for n in ast.walk(tree))


def test_driver_info_needs_nothing(installed, tmp_path):
    for missing in ((), ('lockstepapi.py',)):
        sm, _ = make_driver_folder(str(tmp_path / ('without' + '-'.join(missing))), SOURCE, LIBRARY, STANDINS)
        for name in missing:
            os.unlink(os.path.join(sm, name))
        out = run(sm, GET_INFO)
        assert out.returncode == 0 and out.stderr == b''
        info = xmlrpc.client.loads(out.stdout.decode())[0][0]
        assert [c['key'] for c in info['configuration']] == ['group-name', 'redundancy', 'provisioning']
        assert 'ATOMIC_PAUSE' in info['capabilities'] and 'VDI_ATTACH_OFFLINE' not in info['capabilities']


def fault_of(out):
    assert out.returncode == 0
    with pytest.raises(xmlrpc.client.Fault) as e:
        xmlrpc.client.loads(out.stdout.decode())
    return e.value


@pytest.mark.parametrize('args', [(), ('a', 'b'), ('no xml',), (method_call('sr_scan', []),)])
def test_nonsense_is_a_fault_and_exit_status_0(installed, args):
    fault_of(run(installed[0], *args))


def test_not_installed_is_a_clear_fault(installed, tmp_path):
    sm, _ = make_driver_folder(str(tmp_path / 'sm'), SOURCE, LIBRARY, STANDINS)
    os.unlink(os.path.join(sm, 'lockstepapi.py'))
    shutil.rmtree(os.path.join(sm, '__pycache__'), ignore_errors=True)
    call = {'host_ref': 'OpaqueRef:H', 'command': 'sr_attach', 'args': [], 'device_config': {'group-name': 'vg0/thin'}, 'sr_uuid': 'x',
            'sr_ref': 'OpaqueRef:S'}
    fault = fault_of(run(sm, method_call('sr_attach', [call])))
    assert fault.faultCode == 47 and 'Lockstep is not installed on this host' in fault.faultString
