# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's end of the agent's port (the protocol is described in ../agent.c)."""
import signal, socket, struct, threading, time

from .paths import PATIENCE, LabError

RUN, STDIN, SIGNAL, HELLO, STDOUT, STDERR, TAKEN, EXIT = 1, 2, 3, 16, 17, 18, 19, 20
WINDOW = 256 << 10
CHUNK = 64 << 10


class HostDied(LabError):
    """The VM went away while something was expected from it."""


class CommandFailed(LabError):
    def __init__(self, where, command, result):
        self.result = result
        text = (result.err.strip() or result.out.strip())[-2000:]
        super().__init__(f'{where}: `{command}` ended with status {result.status}: {text}')


class CommandTimeout(LabError):
    pass


class Result:
    """What a finished command left: `status` (negative: signal), `out`, `err` (text), `out_bytes`."""
    def __init__(self, status, out, err):
        self.status, self.out_bytes = status, out
        self.out, self.err = out.decode(errors='replace'), err.decode(errors='replace')

    def __repr__(self):
        return f'Result(status={self.status}, out={self.out[-300:]!r}, err={self.err[-300:]!r})'


class Process:
    """A command running in a host. Its output so far is in `out` and `err` (bytearrays that only grow)."""
    def __init__(self, agent, number, command, on_output=None):
        self.agent, self.number, self.command, self.on_output = agent, number, command, on_output
        self.out, self.err, self.status = bytearray(), bytearray(), None
        self.room = WINDOW
        self.died = None

    @property
    def running(self):
        return self.status is None and not self.died

    def write(self, data):
        """Hands data to the command's standard input; waits while it does not take it."""
        view = memoryview(data)
        while view:
            with self.agent.changed:
                self.agent.changed.wait_for(lambda: self.room > 0 or not self.running)
                if not self.running:
                    raise LabError(f'{self.agent.where}: `{self.command}` ended while it was given input')
                part = view[:min(self.room, CHUNK)]
                self.room -= len(part)
            self.agent.send(STDIN, self.number, part)
            view = view[len(part):]

    def close_input(self):
        self.agent.send(STDIN, self.number, b'')

    def signal(self, number=signal.SIGTERM):
        self.agent.send(SIGNAL, self.number, struct.pack('<I', number))

    def wait(self, timeout=60):
        """The Result once the command has ended; HostDied or CommandTimeout otherwise (the command runs on)."""
        with self.agent.changed:
            timeout *= PATIENCE
            if not self.agent.changed.wait_for(lambda: not self.running, timeout):
                raise CommandTimeout(f'{self.agent.where}: `{self.command}` did not end within {timeout:g} s; so far: '
                                     f'{bytes(self.out[-500:]).decode(errors="replace")}'
                                     f'{bytes(self.err[-500:]).decode(errors="replace")}')
            if self.died:
                raise HostDied(f'{self.agent.where}: {self.died} during `{self.command}`')
        return Result(self.status, bytes(self.out), bytes(self.err))

    def stop(self, timeout=10):
        """Ends the command by SIGTERM, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.running:
                self.signal(number)
                try:
                    return self.wait(timeout)
                except CommandTimeout:
                    continue
        return self.wait(timeout)


class Agent:
    """Connection to the agent of one boot of one host. A thread reads frames; commands are waited for on `changed`."""
    def __init__(self, path, where):
        self.where, self.path = where, path
        self.changed = threading.Condition()
        self.sending = threading.Lock()
        self.processes, self.number, self.ready, self.dead = {}, 0, False, None
        self.socket = None

    def connect(self, alive, timeout=20):
        """Connects to QEMU's end of the port; `alive()` says whether QEMU still runs."""
        deadline = time.monotonic() + timeout
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(self.path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                self.socket.close()
                if not alive():
                    raise HostDied(f'{self.where}: QEMU ended at once')
                if time.monotonic() > deadline:
                    raise LabError(f'{self.where}: no connection to the agent port')
                time.sleep(0.02)
        threading.Thread(target=self.read, daemon=True, name=f'agent {self.where}').start()

    def wait_ready(self, timeout):
        with self.changed:
            timeout *= PATIENCE
            if not self.changed.wait_for(lambda: self.ready or self.dead, timeout):
                raise LabError(f'{self.where}: the agent did not answer within {timeout:g} s of power on')
            if self.dead:
                raise HostDied(f'{self.where}: {self.dead} while booting')

    def exactly(self, length):
        data = bytearray()
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise ConnectionError
            data += part
        return bytes(data)

    def read(self):
        try:
            while True:
                length, number, kind = struct.unpack('<III', self.exactly(12))
                self.received(kind, number, self.exactly(length))
        except (ConnectionError, OSError):
            self.lost('the VM went away')

    def received(self, kind, number, data):
        with self.changed:
            if kind == HELLO:
                for p in self.processes.values():		# a new agent knows nothing of the old one's commands
                    p.died = p.died or 'the agent was restarted'
                self.processes.clear()
                self.ready = True
            p = self.processes.get(number)
            if p and kind == STDOUT:
                p.out += data
            elif p and kind == STDERR:
                p.err += data
            elif p and kind == TAKEN:
                p.room += struct.unpack('<I', data)[0]
            elif p and kind == EXIT:
                status = struct.unpack('<I', data)[0]
                p.status = status >> 8 & 0xff if status & 0x7f == 0 else -(status & 0x7f)
                del self.processes[number]
            self.changed.notify_all()
        if p and p.on_output and kind in (STDOUT, STDERR):
            p.on_output(data)

    def lost(self, why):
        with self.changed:
            self.dead = self.dead or why
            for p in self.processes.values():
                p.died = self.dead
            self.processes.clear()
            self.changed.notify_all()

    def send(self, kind, number, data):
        try:
            with self.sending:
                self.socket.sendall(struct.pack('<III', len(data), number, kind) + bytes(data))
        except OSError:
            self.lost('the VM went away')

    def start(self, command, on_output=None):
        with self.changed:
            if self.dead or not self.ready:
                raise HostDied(f'{self.where}: {self.dead or "not booted"}; cannot run `{command}`')
            self.number += 1
            p = self.processes[self.number] = Process(self, self.number, command, on_output)
        self.send(RUN, p.number, command.encode())
        return p

    def close(self):
        self.lost('the lab closed the connection')
        if self.socket:
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self.socket.close()
