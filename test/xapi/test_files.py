# SPDX-License-Identifier: GPL-2.0-or-later
#
# The files for dom0.
import os
import re
import stat
import subprocess

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


def test_the_port_is_the_daemons():
    with open(INSTALL) as f:
        port = re.search(r'PORT=(\d+)', f.read()).group(1)
    with open(os.path.join(SOURCE, '..', 'ctl', 'lockstepd', 'cluster', 'state.h')) as f:
        assert 'DEFAULT_PORT = %s;' % port in f.read()
