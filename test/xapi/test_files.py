# SPDX-License-Identifier: GPL-2.0-or-later
#
# The files for dom0.
import os
import re
import shutil
import stat
import subprocess

import pytest

from conftest import SOURCE

INSTALL = os.path.join(SOURCE, 'install')
XCP_NG = '99-enable-sm-driver-linstor.conf'    # the file of that kind that sorts last in XCP-ng
SHIPPED = 'ext nfs iscsi lvmoiscsi dummy file hba rawhba udev iso lvm lvmohba lvmofcoe shm smb cephfs glusterfs xfs zfs largeblock linstor'


def run(*args):
    return subprocess.run(['bash', INSTALL] + list(args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)


def tree(root):
    return sorted(os.path.relpath(os.path.join(d, f), root) for d, _, files in os.walk(root) for f in files)


def test_install_and_uninstall(tmp_path):
    root = str(tmp_path)
    first = run('--root', root)
    assert first.returncode == 0 and 'xe-toolstack-restart' in first.stdout
    assert tree(root) == ['etc/systemd/system/lockstepd.service.d/xcp-ng.conf', 'etc/xapi.conf.d/99-zz-lockstep.conf',
                          'etc/xapi.d/plugins/lockstep-manager', 'opt/xensource/sm/LockstepSR', 'opt/xensource/sm/LockstepSR.py',
                          'opt/xensource/sm/lockstepapi.py', 'opt/xensource/sm/lockstepmirror.py']
    driver = os.path.join(root, 'opt/xensource/sm/LockstepSR')
    assert os.readlink(driver) == 'LockstepSR.py' and os.stat(driver).st_mode & stat.S_IXUSR
    assert run('--root', root).stdout == ''    # nothing to do
    with open(driver, 'a') as f:
        f.write('# damaged')
    assert 'wrote' in run('--root', root).stdout
    assert run('--root', root, '--uninstall').returncode == 0 and tree(root) == []
    assert run('--root', root, '--uninstall').returncode == 0
    assert run('--nonsense').returncode == 2


def test_the_list_of_drivers_is_whole_and_sorts_last():
    [name] = [n for n in os.listdir(SOURCE) if n.startswith('99-')]
    assert name > XCP_NG and name.endswith('.conf')
    with open(os.path.join(SOURCE, name)) as f:
        lines = [line for line in f.read().split('\n') if line and not line.startswith('#')]
    [line] = lines
    assert line.startswith('sm-plugins=')
    assert set(line.split('=')[1].split()) >= set(SHIPPED.split()) | {'lockstep'}


IPTABLES = """#!/bin/bash
# The part of iptables that the installer uses, on files: one a table and chain, a rule a line.
shift    # -w
table=$2 verb=$3 chain=$4; shift 4
file=$STATE_DIR/$table.$chain; touch "$file"
case $verb in
-C) grep -Fxq -e "$*" "$file" ;;
-I) { echo "$*"; cat "$file"; } >"$file.new"; mv "$file.new" "$file" ;;
-D) grep -Fxq -e "$*" "$file" && n=$(grep -Fxn -e "$*" "$file" | head -1 | cut -d: -f1) && sed -i "${n}d" "$file" ;;
*) exit 2 ;;
esac
"""
DOM0 = """set -e
mount --make-rprivate /
mount -t tmpfs dom0 /opt
mkdir -p /opt/xensource/sm; touch /opt/xensource/sm/SR.py
mount --bind "$TREE/etc" /etc
"""


@pytest.fixture
def dom0(tmp_path):
    """Runs the installer as root of a host: in a mount namespace of its own, where /opt and /etc are others'."""
    for folder in ('etc/sysconfig', 'bin', 'rules'):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in (('iptables', IPTABLES), ('iptables-save', '#!/bin/sh\ncd "$STATE_DIR" && grep . *\n')):
        (tmp_path / 'bin' / name).write_text(text)
        (tmp_path / 'bin' / name).chmod(0o755)
    (tmp_path / 'etc/sysconfig/iptables').write_text('')
    (tmp_path / 'rules/filter.INPUT').write_text('-j REJECT\n')    # XCP-ng's own, the last
    environment = dict(os.environ, TREE=str(tmp_path), STATE_DIR=str(tmp_path / 'rules'), PATH='%s:%s' % (tmp_path / 'bin', os.environ['PATH']))

    def install(*args, before=''):
        command = DOM0 + before + 'exec bash "%s" %s' % (INSTALL, ' '.join(args))
        return subprocess.run(['unshare', '-m', 'bash', '-c', command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              universal_newlines=True)
    install.saved = lambda: (tmp_path / 'etc/sysconfig/iptables').read_text().split('\n')[:-1]
    return install


def test_the_port_is_open_before_other_rules_and_without_connection_tracking(dom0):
    for _ in range(2):
        done = dom0()
        assert done.returncode == 0, done.stdout
        saved = dom0.saved()
        assert len(saved) == len(set(saved)) == 7
        chain = [line for line in saved if line.startswith('filter.INPUT')]
        assert chain[-1] == 'filter.INPUT:-j REJECT' and 'filter.INPUT:-p tcp -m tcp --dport 7788 -j ACCEPT' in chain
        for end in ('--dport', '--sport'):
            for where in ('raw.PREROUTING', 'raw.OUTPUT'):
                assert '%s:-p tcp -m tcp %s 7788 -j CT --notrack' % (where, end) in saved
    assert dom0('--uninstall').returncode == 0
    assert dom0.saved() == ['filter.INPUT:-j REJECT']


def test_what_is_no_host_of_xcp_ng_is_left_alone(dom0):
    done = dom0(before='rm -r /opt/xensource; ')
    assert done.returncode == 5 and 'this is no XCP-ng host' in done.stdout
    done = dom0(before='rm /opt/xensource/sm/SR.py; ')
    assert done.returncode == 5 and 'holds no storage manager' in done.stdout
    assert dom0.saved() == []


@pytest.mark.skipif(not shutil.which('systemd-analyze'), reason='no systemd-analyze')
def test_units_start_the_daemon_before_the_statefile_is_attached(tmp_path):
    """xapi's units as their sources have them, as far as their order goes. Neither a cycle nor a line that systemd does not know."""
    units = {
        'attach-static-vdis.service': '[Unit]\nBefore=xapi.service\nAfter=lvm2-monitor.service\n[Service]\nType=oneshot\nExecStart=/bin/true\n',
        'xapi.service': '[Unit]\nAfter=attach-static-vdis.service network-online.target\n[Service]\nExecStart=/bin/true\n',
        'xapi-domains.service': '[Unit]\nAfter=xapi.service\n[Service]\nExecStart=/bin/true\n',
        'network-online.target': '[Unit]\nDescription=network\n',
        'multi-user.target': '[Unit]\nDescription=all\nWants=lockstepd.service xapi.service attach-static-vdis.service xapi-domains.service\n',
    }
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    with open(os.path.join(SOURCE, '..', 'scripts', 'lockstepd.service')) as f:
        (tmp_path / 'lockstepd.service').write_text(re.sub('ExecStart=.*', 'ExecStart=/bin/true', f.read()))
    (tmp_path / 'lockstepd.service.d').mkdir()
    shutil.copy(os.path.join(SOURCE, 'lockstepd-xcp-ng.conf'), str(tmp_path / 'lockstepd.service.d' / 'xcp-ng.conf'))

    def verified():
        done = subprocess.run(['systemd-analyze', 'verify', '--man=no', str(tmp_path / 'multi-user.target')], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, universal_newlines=True, env=dict(os.environ, SYSTEMD_UNIT_PATH=str(tmp_path) + ':'))
        return [line for line in done.stdout.split('\n') if 'lockstepd' in line or 'cycle' in line]
    assert verified() == []
    (tmp_path / 'attach-static-vdis.service').write_text(units['attach-static-vdis.service'] .replace('Before=', 'Before=lockstepd.service '))
    assert any('cycle' in line for line in verified())    # the order is in it


def test_the_port_is_the_daemons():
    with open(INSTALL) as f:
        port = re.search(r'PORT=(\d+)', f.read()).group(1)
    with open(os.path.join(SOURCE, '..', 'ctl', 'lockstepd', 'cluster', 'state.h')) as f:
        assert 'DEFAULT_PORT = %s;' % port in f.read()
