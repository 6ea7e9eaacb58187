# SPDX-License-Identifier: GPL-2.0-or-later
#
# coverage.md says which test covers which row of the contract: each test that it names exists, and each row is answered.
import ast
import functools
import os
import re

from conftest import HERE

ROWS = {
    'Acceptance tests of XOSTOR': '''create_sr_without_package create_and_destroy_sr quicktest vdi_is_not_open start_and_shutdown_vm snapshot
        resynchronization resize_vdi reboot package_missing diskless_kept intrapool_live_shared intrapool_to_other_sr_and_back crosspool
        forget_and_introduce pool_update unhealthy_disk vdi_revert tiebreaker coalesce full_vdi_write invalid_vdi_size xva_export_import
        vdi_export_import vdi_image_format blktap_activate_failure failing_resize'''.split(),
    'quicktest, storage': '''sr_scan sr_update sr_probe vdi_create_destroy generate_config vdi_update resize db_forget_denied bad_introduce
        snapshot_clone_fields snapshot_in_pool create_destroy_plug_checksize copy readers_in_dom0 cbt delta_copy export_integrity
        export_delta_vhd_qcow2 vm_import_export vdi_leak_count'''.split(),
    'Check list of the contract': [str(n) for n in range(1, 14)],
}
NAMED = re.compile(r'`((?:lab/)?test_\w+\.py)::(\w+)(?:\[(\w+)\])?`')
LEAST_REASON = 20    # characters


def tables():
    """Heading -> [(row, what is said of it)]."""
    found, heading = {}, None
    with open(os.path.join(HERE, 'coverage.md')) as f:
        for line in f:
            if line.startswith('## '):
                heading = line[3:].strip()
                found[heading] = []
            elif line.startswith('| ') and not line.startswith('| test |'):
                row, said = line.strip().strip('|').split('|')
                found[heading].append((row.strip(), said.strip()))
    return found


@functools.lru_cache(maxsize=None)
def names_in(path):
    with open(os.path.join(HERE, '..', path if path.startswith('lab/') else os.path.join('xapi', path))) as f:
        return {n.name for n in ast.parse(f.read()).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def test_each_row_is_there_once():
    got = {heading: [re.split('[ ,]', row)[0] for row, _ in rows] for heading, rows in tables().items()}
    assert got == ROWS


def test_each_named_test_exists():
    named = {match for rows in tables().values() for _, said in rows for match in NAMED.findall(said)}
    assert len(named) > 40
    missing = [(path, name, case) for path, name, case in named if name not in names_in(path) or case and case not in names_in(path)]
    assert missing == []


def test_each_row_names_a_test_or_the_reason_for_none():
    for heading, rows in tables().items():
        for row, said in rows:
            without = said.startswith('not covered: ')
            if without:
                assert len(said) - len('not covered: ') >= LEAST_REASON, row
            elif (heading, row) != ('Acceptance tests of XOSTOR', 'quicktest'):
                assert NAMED.search(said), row
            assert said.count('::') == len(NAMED.findall(said)), 'a name in row %s is not `file::test`' % row
