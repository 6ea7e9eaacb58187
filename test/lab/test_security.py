# SPDX-License-Identifier: GPL-2.0-or-later
"""What strangers on the storage network can do: nothing; and clients of the API, what their certificates say. Joining takes a
token, each token serves once, all that goes between hosts is encrypted (lanes unless they are told not to be), and garbage,
half-open and oversized connections cost a log line.

    alpha ── beta ── gamma      10.77.2.1, .2, .3: the cluster (gamma joins late)
              │
           10.77.2.254          this program, in the lab's namespace: listens in, and attacks
"""
import re, subprocess, sys, time
from pathlib import Path

import pytest

from lablib import Cluster, SyncLog, assert_same, wait

ROOT = Path(__file__).resolve().parents[2]
MARK = 'lockstep-plain-text-that-nobody-may-read'

# At alpha's port of the switch.
LISTEN_IN = f'''
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("storage-1", 0))
s.settimeout(0.5)
print("listening", flush=True)
seen = marked = 0
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    try:
        packet = s.recv(65536)
    except TimeoutError:
        continue
    seen += len(packet)
    marked += {MARK.encode()!r} in packet
print(seen, marked)
'''

# Each target gets: garbage, a TLS record that is too long, a client hello that ends in the middle, a web browser, a
# stranger's whole handshake with nothing or garbage behind it; then 200 connections that stay open and say nothing.
ATTACK = '''
import socket, ssl, sys, time
garbage = [b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n", b"A" * 100000, b"LKSH\\1\\0\\xff\\xff", b"\\x16\\3\\1\\xff\\xff" + b"\\1" * 70000,
           b"\\x16\\3\\1\\2\\0\\1\\0\\1\\xfc\\3\\3"]
def stranger(address, text):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((address, 7788), 5) as s, context.wrap_socket(s) as t:
        assert t.version() == "TLSv1.3", t.version()
        t.sendall(text)
        t.settimeout(10)
        return t.recv(4096)
for address in sys.argv[1:]:
    for text in garbage:
        s = socket.create_connection((address, 7788), 5)
        try:
            s.sendall(text)
            s.settimeout(10)
            while s.recv(65536):
                pass
        except ConnectionError:
            pass
        s.close()
    # A link's hello of a host that has no certificate: told that it needs one.
    body = bytes.fromhex("a1") + b"\\x67purpose\\x02"
    for text in (b"LKSH\\1\\0" + len(body).to_bytes(2, "little") + body, b"A" * 5000, b"LKSH\\1\\0\\xff\\xff"):
        try:
            answer = stranger(address, text)
        except (ConnectionError, ssl.SSLError, TimeoutError) as e:
            answer = b""
        print(address, answer[8:].decode(errors="replace"), flush=True)
half = [socket.create_connection((a, 7788), 5) for a in sys.argv[1:] for _ in range(200)]
print("half open", flush=True)
sys.stdin.readline()
'''


def inside(lab, program, *arguments):
    return subprocess.Popen(['ip', 'netns', 'exec', lab.networks.namespace, sys.executable, '-c', program, *arguments],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def refused(host, arguments, status, text=''):
    result = host.lockstep(arguments, check=False)
    assert result.status == status and text in result.err and result.err.strip().count('\n') == 0, f'lockstep {arguments}: {result}'


def daemon_log(host):
    return host.vm.daemon_path.read_text(errors='replace')


def fds(host):
    return int(host.out('ls /proc/$(pidof lockstepd)/fd | wc -l'))


@pytest.mark.slow
def test_security_strangers(lab):
    a, b, c = lab.boot(3)
    cluster = Cluster(lab, [a, b]).form()
    c.install()
    c.configure()

    used = cluster.token()
    spoiled = used[:40] + ('0' if used[40] != '0' else '1') + used[41:]
    refused(c, f'cluster join {spoiled} {a.address}', 2, 'no join token')
    refused(a, f'cluster join {used} {b.address}', 5, 'already')
    c.lockstep(f'cluster join {used} {a.address}')
    cluster.hosts.append(c)
    assert {h['name'] for h in cluster.status(c)['hosts']} == {'alpha', 'beta', 'gamma'}
    for h in cluster.hosts:
        assert h.out('stat -c %a /var/lib/lockstep /var/lib/lockstep/tls').split() == ['700', '700']
        assert h.out('find /var/lib/lockstep -type f -perm /077') == '', 'secrets are 0600'
        a.lockstep(f'pool create default --vg lockstep_group --thin thin_device --host {h.name}', check=h is c)

    # Written on a host without a replica, so that it crosses the network twice; read on a third one.
    cluster.create_volume('v1', '64MiB', '--redundancy 2 --on alpha,beta')
    listener = inside(lab, LISTEN_IN, '20')
    assert listener.stdout.readline() == 'listening\n'
    c.run(f'yes {MARK} | dd of=/dev/lockstep/v1 bs=64k count=64 iflag=fullblock oflag=direct conv=fsync')
    # Past the page cache, in which a udev that looks at the new device may still hold its first page.
    assert MARK in b.out('dd if=/dev/lockstep/v1 bs=4096 count=1 iflag=direct')
    seen, marked = map(int, listener.communicate(timeout=60)[0].split())
    assert seen > 8 << 20 and marked == 0, f'{seen} bytes were seen, {marked} packets in plain text'
    for h in cluster.hosts:
        tls = dict(re.findall(r'(\w+)\s+(\d+)', h.out('cat /proc/net/tls_stat')))
        assert int(tls['TlsCurrTxSw']) + int(tls['TlsCurrTxDevice']) >= 2, f'lanes of {h} are not encrypted by the kernel: {tls}'
        assert int(tls['TlsCurrRxSw']) + int(tls['TlsCurrRxDevice']) >= 2, f'lanes of {h} are not decrypted by the kernel: {tls}'
        assert tls['TlsDecryptError'] == '0'

    before, logs = [fds(h) for h in cluster.hosts], [len(daemon_log(h)) for h in cluster.hosts]
    leader = cluster.status()['cluster']['leader']
    attack = inside(lab, ATTACK, *[h.address for h in cluster.hosts])
    said = []
    while not said or said[-1] != 'half open\n':
        line = attack.stdout.readline()
        assert line, f'the attack ended early: {said}'
        said.append(line)
    assert sum('it shows no certificate of this cluster' in s for s in said) == 3, said
    # In the middle of it the cluster works as ever.
    c.run('dd if=/dev/zero of=/dev/lockstep/v1 bs=64k count=16 oflag=direct conv=fsync', timeout=30)
    cluster.create_volume('v2', '16MiB')
    status = cluster.status()
    assert all(h['status'] == 'online' for h in status['hosts']) and status['cluster']['leader'] == leader
    attack.communicate('\n', timeout=30)
    for h, fd_count, log_length in zip(cluster.hosts, before, logs):
        wait(lambda: fds(h) <= fd_count + 4, 20, f'the descriptors of {h} to be closed')
        lines = [l for l in daemon_log(h)[log_length:].splitlines() if 'refused a connection' in l]
        assert 1 <= len(lines) <= 12, lines
        assert not any(w in daemon_log(h)[log_length:] for w in ('is offline', 'lost the connection')), 'hosts lost each other'


def encrypted_lanes(host):
    """Connections that this host's kernel encrypts."""
    tls = dict(re.findall(r'(\w+)\s+(\d+)', host.out('cat /proc/net/tls_stat')))
    return int(tls['TlsCurrTxSw']) + int(tls['TlsCurrTxDevice'])


def test_security_lanes_plain_and_back(cluster):
    """Lanes are made anew, plain and encrypted again, while a volume is written to."""
    a, b, c = cluster.hosts
    assert all(encrypted_lanes(h) >= 2 for h in cluster.hosts)
    load = SyncLog(a, cluster.create_volume('v1', '64MiB', '--on alpha,beta'))
    load.wait_for_more()
    for value, as_wanted in (('off', lambda lanes: lanes == 0), ('on', lambda lanes: lanes >= 2)):
        c.lockstep(f'option set lane-encryption {value}')
        wait(lambda: all(as_wanted(encrypted_lanes(h)) for h in cluster.hosts), 30, f'lane-encryption {value} to be in force')
        load.wait_for_more()
        wait(lambda: all(r['state'] == 'insync' for r in cluster.volume('v1')['replicas']), 30, 'the replicas to be in sync')
    load.stop()
    for h in (b, c):
        good, said = load.check(h)
        assert good, said
    assert_same(cluster, 'v1')


# With a client's certificate: a body and a head that are too large, a request that never ends, one that trickles, connections that say
# nothing; then a long poll, whose end is told.
CLIENT_ATTACK = '''
import socket, ssl, sys, time
address, cert = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.load_cert_chain(cert)
context.set_alpn_protocols(["http/1.1"])
def connect():
    s = context.wrap_socket(socket.create_connection((address, 7788), 5))
    s.settimeout(30)
    return s
def answer(s):
    text = b""
    try:
        while chunk := s.recv(65536):
            text += chunk
    except (ConnectionError, ssl.SSLError):
        pass
    return text.split(b"\\r\\n")[0].decode(errors="replace")
def send(s, *texts):
    try:
        for text in texts:
            s.sendall(text)
    except (ConnectionError, ssl.SSLError):
        pass
    return answer(s)
post = b"POST /v1/volumes HTTP/1.1\\r\\nContent-Length: "
print("body", send(connect(), post + b"10000000\\r\\n\\r\\n", b" " * 10000000), flush=True)
print("head", send(connect(), b"GET /v1/status HTTP/1.1\\r\\n", *[b"X-%d: " % i + b"x" * 4000 + b"\\r\\n" for i in range(500)]), flush=True)
print("nonsense", send(connect(), b"\\0" * 100000), flush=True)
slow = [connect() for _ in range(4)]
for s in slow:
    s.sendall(post + b"60\\r\\n\\r\\n{")
half = [socket.create_connection((address, 7788), 5) for _ in range(100)]
print("slow", flush=True)
begin = time.monotonic()
print("ended", [answer(s) for s in slow], round(time.monotonic() - begin), flush=True)
poll = connect()
poll.sendall(b"GET /v1/wait?index=999999999&ms=30000 HTTP/1.1\\r\\n\\r\\n")
print("waits", flush=True)
print("cut", answer(poll), flush=True)
'''


def test_security_clients(cluster, tmp_path):
    """From outside the cluster, over TLS: a reader reads, an admin creates a volume, who is revoked is cut off within seconds; what a
    client sends in bad faith holds up nobody."""
    a, b, c = cluster.hosts
    for name, role in (('reader', 'read-only'), ('boss', 'admin')):
        a.lockstep(f'cluster cert {name} /run/{name}.pem --role {role}')
        assert a.out(f'stat -c %a /run/{name}.pem') == '600'
        path = tmp_path / f'{name}.pem'
        path.touch(0o600)
        path.write_text(a.out(f'cat /run/{name}.pem') + '\n')
        a.run(f'rm /run/{name}.pem')

    def outside(who, host, arguments):
        return subprocess.run(['ip', 'netns', 'exec', cluster.lab.networks.namespace, str(ROOT / 'build/lockstep'), '--host', host.address,
                               '--cert', str(tmp_path / f'{who}.pem'), *arguments.split()],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

    for host in cluster.hosts:
        wait(lambda: outside('boss', host, 'status').returncode == 0, 10, f'{host} to know the certificate')
        assert 'alpha' in outside('reader', host, 'status').stdout
    no = outside('reader', b, 'volume create v1 64MiB')
    assert no.returncode == 5 and 'for reading only' in no.stderr, no
    no = outside('boss', b, 'cluster token')
    assert no.returncode == 5 and 'as root on one of them' in no.stderr, no
    made = outside('boss', b, 'volume create v1 64MiB --on alpha,beta')
    assert made.returncode == 0, made
    load = SyncLog(a, '/dev/lockstep/v1')
    load.wait_for_more()

    leader, before, logs = cluster.status()['cluster']['leader'], fds(c), len(daemon_log(c))
    attack = inside(cluster.lab, CLIENT_ATTACK, c.address, str(tmp_path / 'boss.pem'))

    def said(what):
        line = attack.stdout.readline()
        assert line.startswith(what), f'{line!r}, not {what}'
        return line

    assert '413' in said('body')
    assert '200' not in said('head') and '200' not in said('nonsense')
    said('slow')
    load.wait_for_more()
    assert c.lockstep('status --json')['cluster']['leader'] == leader
    assert outside('reader', c, 'status').returncode == 0
    assert '200' not in said('ended')
    said('waits')
    wait(lambda: outside('reader', c, 'status').returncode == 0, 10, 'the poll to be under way')
    begin = time.monotonic()
    b.lockstep('cluster cert-revoke boss')
    assert said('cut') == 'cut \n' and time.monotonic() - begin < 5
    assert attack.wait(10) == 0
    no = outside('boss', c, 'volume list')
    assert no.returncode == 5 and 'revoked' in no.stderr, no
    assert outside('reader', c, 'status').returncode == 0
    load.stop()
    good, text = load.check(b)
    assert good, text
    assert_same(cluster, 'v1')
    status = cluster.status()
    assert all(h['status'] == 'online' for h in status['hosts']) and status['cluster']['leader'] == leader
    wait(lambda: fds(c) <= before + 4, 20, 'the descriptors to be closed')
    lines = [l for l in daemon_log(c)[logs:].splitlines() if 'refused a connection' in l or 'cut a connection' in l]
    assert 1 <= len(lines) <= 12 and any('API client boss' in l for l in lines), lines
    a.lockstep('cluster cert-revoke reader')


SHOWN = '''
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with socket.create_connection((sys.argv[1], 7788), 5) as s, context.wrap_socket(s) as t:
    print(ssl.DER_cert_to_PEM_cert(t.getpeercert(True)))
'''


def ends_soon(pem):
    """Within 30 days."""
    return subprocess.run(['openssl', 'x509', '-checkend', str(30 * 86400), '-noout'], input=pem, stdout=subprocess.DEVNULL, text=True).returncode != 0


def shown_by(lab, host):
    """The certificate that a host shows to whoever connects."""
    return inside(lab, SHOWN, host.address).communicate(timeout=30)[0]


@pytest.mark.slow
def test_security_certificates_renewed(cluster, tmp_path):
    """Certificates that end soon are renewed by their hosts, while a volume is written to: no I/O is held up, no lane made anew for
    it; connections made later show the new ones and are let in."""
    a, b, c = cluster.hosts
    load = SyncLog(c, cluster.create_volume('v1', '64MiB', '--on alpha,beta'))
    load.wait_for_more()
    tls = '/var/lib/lockstep/tls'
    for h in (a, b):
        for name in ('key', 'cert', 'authority', 'authority-key'):
            (tmp_path / f'{name}.pem').write_bytes(h.get(f'{tls}/{name}.pem'))
        old = (tmp_path / 'cert.pem').read_text()
        assert not ends_soon(old)
        uri = re.search(r'URI:(\S+)', subprocess.run(['openssl', 'x509', '-noout', '-ext', 'subjectAltName'], input=old, stdout=subprocess.PIPE,
                                                    text=True, check=True).stdout).group(1)
        (tmp_path / 'ext').write_text(f'subjectAltName=URI:{uri}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n')
        brief = subprocess.run('openssl req -new -key key.pem -subj /CN=brief | openssl x509 -req -CA authority.pem -CAkey authority-key.pem '
                               '-set_serial 99 -days 10 -extfile ext', cwd=tmp_path, shell=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, check=True).stdout
        assert ends_soon(brief)
        h.put(brief, f'{tls}/cert.pem')
    lanes = {h.name: encrypted_lanes(h) for h in cluster.hosts}
    for h in (a, b):
        log = len(daemon_log(h))
        h.daemon('kill')
        wait(lambda: "renewed this host's certificate" in daemon_log(h)[log:], 60, f'{h} to renew its certificate')
        load.wait_for_more()
        wait(lambda: not ends_soon(shown_by(cluster.lab, h)), 10, f'{h} to show it')
        assert not ends_soon(h.out(f'cat {tls}/cert.pem') + '\n')
        assert h.out(f'stat -c %a {tls}/cert.pem') == '600'
    assert {h.name: encrypted_lanes(h) for h in cluster.hosts} == lanes
    # All connections between the two are made anew.
    def beta():
        return next(r['state'] for r in cluster.volume('v1', a)['replicas'] if r['host'] == 'beta')
    b.link('storage', up=False)
    wait(lambda: beta() == 'stale', 60, 'beta to be left out')
    b.link('storage', up=True)
    wait(lambda: beta() == 'insync', 60, 'beta to be in sync again')
    load.wait_for_more()
    load.stop()
    good, said = load.check(a)
    assert good, said
    assert_same(cluster, 'v1')


def connections_with(host, other):
    """To or from the other one's storage address, established: links, raft, and the kernel's lanes."""
    address = ''.join(f'{int(n):02X}' for n in reversed(other.address.split('.')))
    return int(host.out(f"awk '$3 ~ /^{address}:/ && $4 == \"01\"' /proc/net/tcp | wc -l"))


@pytest.mark.slow
def test_security_lost_host_is_cut_off(lab):
    """A host whose daemon has stopped serves on in its kernel. Once it is given up, its lanes are cut within seconds, and it does not come
    in again with the certificate that it still has."""
    a, b, c = lab.boot(3)
    cluster = Cluster(lab).form()
    load = SyncLog(a, cluster.create_volume('v1', '64MiB', '--on alpha,gamma'))
    load.wait_for_more()
    assert connections_with(a, c) > 0
    c.daemon('stop')
    wait(lambda: [h['status'] for h in cluster.status(a)['hosts'] if h['name'] == 'gamma'] == ['offline'], 60, 'gamma to be offline')
    load.wait_for_more()
    assert connections_with(a, c) > 0, 'lanes need no daemon'
    log = len(daemon_log(a))
    a.lockstep('host lost gamma', timeout=90)
    begin = time.monotonic()
    wait(lambda: connections_with(a, c) == 0 and connections_with(b, c) == 0, 10, "gamma's lanes to be cut")
    print(f'cut after {time.monotonic() - begin:.1f} s')
    load.wait_for_more()
    c.daemon('start')
    wait(lambda: 'was removed from the cluster' in c.vm.daemon_log(), 60, 'gamma to be told')
    load.wait_for_more(200)
    assert connections_with(a, c) == 0 and connections_with(b, c) == 0
    refusals = [l for l in daemon_log(a)[log:].splitlines() if 'refused a connection' in l]
    assert len(refusals) <= 4, refusals
    load.stop()
    good, said = load.check(b)
    assert good, said
    assert_same(cluster, 'v1')
