"""--netns on real network namespaces: by name and process, as root and as others, summed, each
once; what is refused says what it takes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.pgsock.lab import accounts, processes
from check_pgsock.pgsock.lab.accounts import Account
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import LOCAL, Host, NamespaceHost
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.sockets.namespaces import Namespace, find_namespaces
from check_pgsock.sockets.reader import SocketReader
from tests import support
from tests.conftest import Installations
from tests.watching import counts

TwoHosts = tuple[NamespaceHost, NamespaceHost]
# Another unprivileged user than the one whose processes are in the namespaces.
STRANGER = "daemon"

# What runs its arguments where network namespaces have names, of which nobody else hears.
NAME = """
import ctypes, os, sys
names = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(b"none", b"/run", b"tmpfs", 0, None) == 0
os.makedirs("/run/docker/netns")
os.mkdir("/run/netns", 0o755)
for one in sys.argv[2 : 2 + names]:
    name, _, process = one.partition("=")
    open(name, "w").close()
    if process:
        source = f"/proc/{process}/ns/net".encode()
        assert libc.mount(source, name.encode(), None, 0x1000, None) == 0  # MS_BIND
os.chmod("/run/docker", 0o700)
os.execvp(sys.argv[2 + names], sys.argv[2 + names :])
"""


class NamingHost(Host):
    """This machine, where files such as `/run/netns/blue` name the namespaces of processes.

    A file of no process (0) is an ordinary one.
    """

    switches_user = True

    def __init__(self, **names: int) -> None:
        directories = {"docker": "/run/docker/netns"}
        self._names = [
            f"{directories.get(name, '/run/netns')}/{name}={process or ''}"
            for name, process in names.items()
        ]

    def command(self, command: list[str], account: Account | None = None) -> list[str]:
        """The command line that runs `command` there as `account`."""
        prefix = [sys.executable, "-c", NAME, str(len(self._names)), *self._names]
        if account is not None:
            prefix += ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}"]
            prefix += ["--clear-groups", "--"]
        return [*prefix, *command]


@contextlib.contextmanager
def connected(host: Host, count: int, port: int = 0) -> Iterator[int]:
    """`count` connections on loopback of a host; the port that they are accepted on."""
    with contextlib.ExitStack() as stack:
        with host.entered():
            listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            port = listener.getsockname()[1]
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                stack.enter_context(listener.accept()[0])
        yield port


@contextlib.contextmanager
def process_in(host: NamespaceHost, user: str) -> Iterator[int]:
    """The id of a process of `user` in the namespace of a host."""
    with fresh_directory("pgsock-n-") as directory:
        command = host.command(["sleep", "infinity"], accounts.account_of(user))
        process = processes.spawn(command, None, directory / "log")
        try:
            own = os.stat(host.namespace).st_ino

            def is_there() -> bool:
                comm = Path(f"/proc/{process.pid}/comm").read_text()
                return comm == "sleep\n" and os.stat(f"/proc/{process.pid}/ns/net").st_ino == own

            support.wait_until(is_there, "a process in the namespace")
            yield process.pid
        finally:
            process.kill()
            process.wait()


def line(established: int, port: int, limit: int = 50, slots: bool = False) -> str:
    """The whole output of saturation that is OK; with `slots` of a server that is proven."""
    share = 100 * established / limit
    bounds = f"{limit * 8 // 10};{limit * 9 // 10};0;{limit} "
    used = f"slots_used={established};{bounds}" if slots else ""
    return (
        f"PGSOCK_SATURATION OK - {established} of {limit} connections ({share:.0f} %) on port "
        f"{port} | established={established};{bounds}{used}"
        f"limit={limit};;;0 utilization={share:.1f}%;;;0 free={limit - established};;;0;{limit} "
        "close_wait=0;;;0 syn_recv=0;;;0 not_accepted=0;;;0\n"
    )


def unknown(sentence: str, check: str = "saturation") -> tuple[int, str, str]:
    """The whole of a run that measured nothing."""
    return 3, f"PGSOCK_{check.upper()} UNKNOWN - {sentence}\n", ""


def refused(name: object, why: str = "Operation not permitted") -> tuple[int, str, str]:
    """The whole of a run that may not enter a namespace."""
    return unknown(
        f"network namespace {name} may not be entered ({why}): that takes root, or CAP_SYS_ADMIN"
    )


def test_by_process_and_by_name(two_hosts: TwoHosts) -> None:
    one, other = two_hosts
    pid = one.process.pid
    with connected(one, 3) as port, connected(other, 2, port):
        by_process = ("-p", str(port), "--limit", "50", "--netns", str(pid))
        by_name = ("-p", str(port), "--limit", "50", "--netns", "blue")
        names = NamingHost(blue=pid, red=other.process.pid)
        for source in ("auto", "netlink", "procfs"):
            expected = (0, line(3, port), "")
            assert support.run("saturation", *by_process, "--source", source) == expected
            assert support.run("saturation", *by_name, "--source", source, on=names) == expected
        # By both: the same is counted once, whatever it is called.
        done = support.run("saturation", *by_name, "--netns", str(pid), on=names)
        assert done == (0, line(3, port), "")
        done = support.run("saturation", *by_name, "--netns", "blue", on=names)
        assert done == (0, line(3, port), "")
        # Two are summed.
        both = ("--netns", str(other.process.pid))
        assert support.run("saturation", *by_process, *both) == (0, line(5, port), "")
        assert support.run("saturation", *by_name, "--netns", "red", on=names) == (
            0, line(5, port), "",
        )  # fmt: skip
        # And `self` is the check's own, where nothing listens: its listener is one of the pool's.
        done = support.run("saturation", *by_process, "--netns", "self")
        assert done == (0, line(3, port), "")
        done = support.run("saturation", "-p", str(port), "--limit", "50", "--netns", "self")
        assert done == unknown(
            f"nothing listens on port {port}; is the server down or the port another (--port)? "
            "--no-listener decides what this means"
        )


def test_how_it_was_read_is_said(two_hosts: TwoHosts) -> None:
    one, other = two_hosts
    with connected(one, 1) as port, connected(other, 1, port):
        pids = [str(host.process.pid) for host in two_hosts]
        arguments = ("-p", str(port), "--limit", "50", "-vv", "--netns", pids[0])
        done = support.run("saturation", *arguments, "--netns", pids[1])
        assert [each for each in done.out.splitlines() if "source" in each] == [
            f"source: netlink, network namespace {pids[0]}",
            f"source: netlink, network namespace {pids[1]}",
        ]
        done = support.run("saturation", *arguments, "--source", "procfs")
        assert f"source: procfs (/proc/{pids[0]}/net), network namespace {pids[0]}\n" in done.out


def test_unprivileged_by_name_is_refused(two_hosts: TwoHosts) -> None:
    names = NamingHost(blue=two_hosts[0].process.pid, red=two_hosts[1].process.pid)
    for extra in ((), ("--netns", "red")):
        for source in ("auto", "netlink", "procfs"):
            arguments = ("--limit", "50", "--netns", "blue", *extra, "--source", source)
            done = support.run("saturation", *arguments, user=STRANGER, on=names)
            assert done == refused("blue")


@pytest.mark.parametrize("user", ["nobody", STRANGER])
def test_unprivileged_by_process_reads_its_procfs(two_hosts: TwoHosts, user: str) -> None:
    """Neither a process of the check's user nor one of another lets it in; both may be read."""
    one, other = two_hosts
    with (
        connected(one, 3) as port,
        connected(other, 2, port),
        process_in(one, "nobody") as pid,
        process_in(one, "nobody") as again,
        process_in(other, "nobody") as elsewhere,
    ):
        arguments = ("-p", str(port), "--limit", "50", "--netns", str(pid))
        for source in ("auto", "procfs"):
            done = support.run("saturation", *arguments, "--source", source, user=user)
            assert done == (0, line(3, port), "")
        done = support.run("saturation", *arguments, "--source", "netlink", user=user)
        why = "Operation not permitted" if user == "nobody" else "Permission denied"
        assert done == refused(pid, why)
        done = support.run("saturation", *arguments, "-vv", user=user)
        assert done.out.splitlines()[4:6] == [
            f"source: procfs (/proc/{pid}/net), network namespace {pid}",
            f"netlink did not answer: network namespace {pid} may not be entered ({why}): that "
            "takes root, or CAP_SYS_ADMIN",
        ]
        done = support.run(
            "thrashing", *arguments[:2], *arguments[4:], "--window", "0.3", user=user
        )
        assert done.out.splitlines()[1:] == [
            "a lower bound, from snapshots: connections opened and closed between two of them are "
            "not seen (procfs has no events)"
        ]
        # Each once, though a stranger does not see which namespaces they are.
        done = support.run("saturation", *arguments, "--netns", str(again), user=user)
        assert done == (0, line(3, port), "")
        more = ("--netns", str(again), "--netns", "self", "--netns", str(elsewhere))
        done = support.run("saturation", *arguments, *more, user=user)
        assert done == (0, line(5, port), "")


def test_ones_own_namespace_needs_no_rights(two_hosts: TwoHosts) -> None:
    """By the id of a process of root in it: read by netlink, and once beside `self`."""
    with connected(LOCAL, 2) as port:
        arguments = ("-p", str(port), "--limit", "50", "--netns", str(os.getpid()))
        done = support.run("saturation", *arguments, "--source", "netlink", user=STRANGER)
        assert done == (0, line(2, port), "")
        done = support.run("saturation", *arguments, "--netns", "self", user=STRANGER)
        assert done == (0, line(2, port), "")


def test_a_name_beside_a_process_that_cannot_be_told_from_it(two_hosts: TwoHosts) -> None:
    one, other = two_hosts
    pid = other.process.pid
    arguments = ("--limit", "50", "--netns", "blue", "--netns", str(pid))
    names = NamingHost(blue=one.process.pid)
    done = support.run("saturation", *arguments, user=STRANGER, on=names)
    assert done == unknown(
        f"whether network namespace {pid} is another than the rest cannot be seen (Permission "
        "denied): that takes root, or CAP_SYS_PTRACE"
    )


def test_what_is_no_namespace(two_hosts: TwoHosts) -> None:
    names = NamingHost(blue=two_hosts[0].process.pid, file=0, docker=0)
    nothing = "in /run/netns or /run/docker/netns"
    hint = "see ip netns, or name a process in it by its id"
    hidden = "(/run/docker/netns may not be looked into)"
    for user, name, sentence in (
        (None, "red", f"there is no network namespace red {nothing}; {hint}"),
        (STRANGER, "red", f"there is no network namespace red {nothing} {hidden}; {hint}"),
        (None, "docker", "/run/docker/netns/docker is no network namespace; see ip netns"),
        (STRANGER, "docker", f"there is no network namespace docker {nothing} {hidden}; {hint}"),
        (STRANGER, "file", "/run/netns/file is no network namespace; see ip netns"),
        (None, "4194305", "--netns 4194305: there is no process 4194305 that may be seen"),
        (STRANGER, "²", f"there is no network namespace ² {nothing} {hidden}; {hint}"),
    ):
        done = support.run("saturation", "--netns", name, user=user, on=names)
        assert done == unknown(sentence)
    ended = subprocess.Popen(["true"])
    support.wait_until(
        lambda: b"Z (zombie)" in Path(f"/proc/{ended.pid}/status").read_bytes(), "a zombie"
    )
    done = support.run("saturation", "--netns", str(ended.pid))
    ended.wait()
    sentence = f"--netns {ended.pid}: there is no process {ended.pid} that may be seen"
    assert done == unknown(sentence)


@pytest.mark.parametrize("text", ["", "a/b", "../1", ".", ".."])
def test_what_is_no_name(text: str) -> None:
    done = support.run("saturation", f"--netns={text}")
    assert done == unknown(
        f"argument --netns: '{text}' is neither a name (ip netns) nor a process id; see "
        "check_pgsock_saturation --help"
    )


def test_what_contradicts_it() -> None:
    done = support.run("close_wait", "--netns", "self", "--proc-root", "/proc")
    sentence = "--proc-root and --netns name different places to read; drop one"
    assert done == unknown(sentence, "close_wait")
    several = ("--netns", "self", "--netns", "blue")
    assert support.run("saturation", *several) == unknown(
        "several --netns are one pool and need its size: name it with --limit N"
    )
    done = support.run("thrashing", "--leg", "client", *several, "--time-wait-critical", "80%")
    assert done == unknown(
        "time_wait in % is of ip_local_port_range, which each --netns has its own of; give "
        "absolute bounds",
        "thrashing",
    )


def test_a_namespace_stays_the_one_that_was_named(two_hosts: TwoHosts) -> None:
    """Also when its process ends, and the name is a process id that another may get."""
    one, _ = two_hosts
    with connected(one, 1) as port:
        with process_in(one, "nobody") as pid:
            found = Namespace(str(pid))
        assert not os.path.exists(f"/proc/{pid}")
        reader = SocketReader("netlink", None, Deadline(5), found)
        assert [each.port for each in reader.listeners()] == [port]
    with pytest.raises(SourceError, match="there is no process"):
        Namespace(str(pid))


def test_each_namespace_once_in_the_order_given(two_hosts: TwoHosts) -> None:
    one, other = (str(host.process.pid) for host in two_hosts)
    own = str(os.getpid())
    for names, expected in (
        ((one, other, "self"), [one, other, "self"]),
        (("self", one, own, one, other), ["self", one, other]),
        ((own, "self"), [own]),
    ):
        assert [each.name for each in find_namespaces(names)] == expected


READ = """
import sys
from check_pgsock.deadline import Deadline
from check_pgsock.sockets.model import ESTABLISHED, Query
from check_pgsock.sockets.pooled_reader import open_namespaces
process, source, port = sys.argv[1:]
reader = open_namespaces([process], source, Deadline(5))
(one,) = reader.each
query = Query((int(port),), True, 1 << ESTABLISHED)
print(reader.count(query).count(ESTABLISHED), one.setting("net/core/somaxconn"))
"""


@pytest.mark.parametrize("version", support.PYTHONS)
@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_every_python_enters(two_hosts: TwoHosts, version: str, source: str) -> None:
    """os.setns is there since Python 3.12. Settings are those of the namespace, too."""
    support.require(f"python{version}")
    one, _ = two_hosts
    with one.entered():
        Path("/proc/sys/net/core/somaxconn").write_text("77")
    python = support.interpreter(version)
    assert python is not None
    with connected(one, 3) as port:
        done = subprocess.run(
            [python, "-c", READ, str(one.process.pid), source, str(port)],
            env=support.environment(support.ROOT),
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 77\n", "")


def test_thrashing_counts_the_events_of_the_namespaces(two_hosts: TwoHosts) -> None:
    pids = [str(host.process.pid) for host in two_hosts]
    with contextlib.ExitStack() as stack:
        listeners: list[tuple[Host, socket.socket]] = []
        port = 0
        for host in (*two_hosts, LOCAL):
            with host.entered():
                listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            port = listener.getsockname()[1]
            listeners.append((host, listener))
        for names, expected in (((pids[0],), 7), (pids, 12), ((*pids, "self"), 15)):
            watched = [word for name in names for word in ("--netns", name)]
            arguments = ("-p", str(port), "--window", "1.5", "-v", "-w", "100", "-c", "200")
            with subprocess.Popen(
                support.command("thrashing", *arguments, *watched),
                stdout=subprocess.PIPE,
                text=True,
                env=support.environment(support.ROOT),
                start_new_session=True,
            ) as check:
                pid = check.pid
                for place in two_hosts[: len(names)]:
                    watches = functools.partial(is_watched, pid, place.process.pid)
                    support.wait_until(watches, "the check watches")
                time.sleep(0.25)
                for (host, listener), number in zip(listeners, (7, 5, 3)):
                    cycle(host, listener, number)
                out, _ = check.communicate(timeout=20)
            assert check.returncode == 0, out
            found = counts(support.Completed(0, out, ""))
            assert found == {"closed": expected, "opened": expected, "probes": expected, "lost": 0}


def is_watched(check: int, place: int) -> bool:
    """Whether the check (a process id) listens to destroy events, of IPv4 and IPv6, in the
    namespace of the process `place`.
    """
    if not os.path.exists(f"/proc/{check}/fd"):
        pytest.fail("the check has ended")
    sockets = set()
    for name in os.listdir(f"/proc/{check}/fd"):
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(f"/proc/{check}/fd/{name}"))
    rows = Path(f"/proc/{place}/net/netlink").read_text(encoding="ascii").splitlines()[1:]
    # Protocol 4, NETLINK_SOCK_DIAG; groups 1 and 3; the last field is the inode.
    watching = {row.split()[9] for row in rows if row.split()[1:4:2] == ["4", "00000005"]}
    return any(f"socket:[{inode}]" in sockets for inode in watching)


def cycle(host: Host, listener: socket.socket, count: int) -> None:
    """Connect and close, one after the other."""
    for _ in range(count):
        with host.entered():
            client = socket.create_connection(listener.getsockname())
        accepted = listener.accept()[0]
        client.close()
        accepted.close()


def test_a_server_in_a_namespace(two_hosts: TwoHosts, installations: Installations) -> None:
    one, _ = two_hosts
    binaries = installations.get(support.newest_major())
    settings = {"max_connections": 30, "superuser_reserved_connections": 4}
    with contextlib.ExitStack() as stack:
        hba = [f"host all all {one.address}/32 trust"]
        server = PostgresServer(binaries, host=one, settings=settings, hba=hba)
        stack.enter_context(server)
        with one.entered():
            for _ in range(5):
                stack.enter_context(Session.connect(server.host, server.port))
        arguments = ("-p", str(server.port), "--netns", str(one.process.pid), "-v")
        done = support.run("saturation", *arguments)
        first, *rest = done.out.splitlines()
        assert (done.code, f"{first}\n", done.err) == (0, line(5, server.port, 26, slots=True), "")
        assert rest[0] == f"peer {server.host}: 5 established"
        assert rest[-1] == (
            "limit: 26 usable of max_connections 30, read from pg_control; whose server it is: it "
            f"holds the listener (process {server.pid})"
        )


def test_close_wait_in_two_namespaces(two_hosts: TwoHosts) -> None:
    with contextlib.ExitStack() as stack:
        port = 0
        for host in two_hosts:
            with host.entered():
                listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
                port = listener.getsockname()[1]
                for _ in range(2):
                    client = socket.create_connection(("127.0.0.1", port))
                    stack.enter_context(listener.accept()[0])
                    client.close()
        pids = [word for host in two_hosts for word in ("--netns", str(host.process.pid))]
        arguments = ("-p", str(port), *pids, "-w", "3", "--settle", "0.1")
        done = support.run("close_wait", *arguments)
        first, *rest = done.out.splitlines()
        assert (done.code, first) == (
            1,
            f"PGSOCK_CLOSE_WAIT WARNING - 4 connections in CLOSE_WAIT, unchanged for 0.1 s on port "
            f"{port} (close_wait outside range 0:3) | close_wait=4;3;20;0 established=0;;;0 "
            f"orphans=4;;;0 not_accepted=0;;;0 {first.rpartition(' ')[2]}",
        )
        assert re.fullmatch(r"oldest=\d+s;;;0", first.rpartition(" ")[2])
        assert rest[0] == "peer 127.0.0.1: 4 in CLOSE_WAIT"
        # As anybody, by procfs.
        by_stranger = support.run("close_wait", *arguments, user=STRANGER)
        undated = first.rpartition(" ")[0]
        assert (by_stranger.code, by_stranger.out.splitlines()[0]) == (1, undated)


def test_threads_read_namespaces_side_by_side(two_hosts: TwoHosts) -> None:
    """Entering is a thread's own: no reading changes where another one reads."""
    one, other = two_hosts
    with connected(one, 1) as first, connected(other, 1) as second, connected(LOCAL, 1) as third:
        readers = [
            (SocketReader("netlink", None, Deadline(5), place), port)
            for place, port in (
                (Namespace(str(one.process.pid)), first),
                (Namespace(str(other.process.pid)), second),
                (None, third),
            )
        ]
        wrong = []

        def read(reader: SocketReader, port: int) -> None:
            for _ in range(30):
                found = {each.port for each in reader.listeners(first, second, third)}
                if found != {port}:
                    wrong.append((port, found))

        threads = [threading.Thread(target=read, args=each) for each in readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
