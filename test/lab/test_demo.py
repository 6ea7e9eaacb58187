# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo leaves nothing behind, wherever it is cut short."""
import re, signal, subprocess
from pathlib import Path

import pytest

from lablib import LAB, Lab, wait
from lablib.paths import RUNS, start_time

# each one runs a part of the demo: in make test-long
pytestmark = pytest.mark.slow

STAGES = {
    'building': (None, signal.SIGINT),
    'booting': ('booting alpha', signal.SIGINT),
    'installing': ('all three are up', signal.SIGTERM),
    'joining': ('scripts/install --disks', signal.SIGINT),
    'copying': ('volume disk made', signal.SIGHUP),
    'writing': ('alpha writes', signal.SIGINT),
    'taking over': ('alpha killed', signal.SIGINT),
    'resyncing': ('starting alpha again', signal.SIGINT),
}


class Demo:
    def __init__(self):
        self.process = subprocess.Popen(['/usr/bin/python3', '-u', str(LAB / 'demo.py')], stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, start_new_session=True)
        self.tag = f'{self.process.pid}-{start_time(self.process.pid)}'

    def read_until(self, text):
        for line in self.process.stdout:
            print(line, end='')
            if text in line:
                return
        raise AssertionError(f'the demo ended before "{text}"')

    def processes(self):
        """Processes that name the demo's run folder or network namespace."""
        found = []
        for p in Path('/proc').iterdir():
            if p.name.isdigit():
                try:
                    if self.tag in (p / 'cmdline').read_text():
                        found.append(p.name)
                except OSError:
                    pass			# it has ended
        return found

    def left(self):
        return (self.processes() + [p.name for p in Path('/run/netns').glob(f'lks-{self.tag}-*')]
                + [p.name for p in RUNS.glob(f'{self.tag}-*')])


@pytest.mark.parametrize('stage', STAGES)
def test_demo_cut_short(stage):
    text, number = STAGES[stage]
    demo = Demo()
    if text:
        demo.read_until(text)
    else:
        wait(lambda: demo.left(), 30, 'the demo to have made something')
    demo.process.send_signal(number)
    rest = demo.process.communicate(timeout=60)[0]
    assert demo.process.returncode == 128 + number, rest
    assert 'Traceback' not in rest, rest
    assert not demo.left(), rest


def test_demo_killed():
    """By SIGKILL nobody can clean up after himself: the hosts die with the demo, and the next lab removes the rest."""
    demo = Demo()
    demo.read_until('all three are up')
    assert len(re.findall(r'\d+', ' '.join(demo.processes()))) >= 3
    demo.process.kill()
    demo.process.communicate(timeout=60)
    wait(lambda: not demo.processes(), 20, 'the hosts to die')
    assert demo.left()
    with Lab('after'):
        assert not demo.left()
