"""Real Unix sockets by both sources: of PostgreSQL and PgBouncer, by path, file and namespace."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import DeadlineError, SourceError
from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE, Lab
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.sockets.unix_sockets import UnixEndpoint
from tests import restricted, support
from tests.details import DETAILS, PATH, UNIX_LISTENERS
from tests.moment import MOMENT

UNTOLD = (
    "procfs does not tell apart a socket file and an earlier one of the same name: sessions that "
    "an earlier server accepted are counted too"
)
READ = """
import json, sys
from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.sockets.reader import SocketReader
source, path = sys.argv[1:]
reader = SocketReader(source, None, Deadline(5))
try:
    found = reader.unix_sockets(path)
except SourceError as error:
    print(json.dumps(str(error)))
else:
    backlogs = [one.backlog for one in found.listeners]
    uids = [[one.uid for one in found.sessions], [one.uid for one in found.listeners]]
    print(json.dumps([reader.describe(), backlogs, uids, found.not_accepted, found.notes]))
"""


def read(path: object, source: str = "netlink") -> UnixEndpoint:
    """The sockets of `path`, as this process sees them."""
    return SocketReader(source, None, Deadline(5)).unix_sockets(str(path))


class Sockets:
    """Unix sockets that close when the test ends."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def listen(self, path: str | Path, backlog: int = 8) -> socket.socket:
        """A new listener, bound to `path`."""
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(backlog)
        return listener

    def connect(self, listener: socket.socket, path: str | Path | None = None) -> socket.socket:
        """A new connection to `listener`: the client's end."""
        client = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(listener.getsockname() if path is None else str(path))
        self._stack.enter_context(listener.accept()[0])
        return client


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """A maker of sockets."""
    with contextlib.ExitStack() as stack:
        yield Sockets(stack)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that everybody may look into, and whose name leaves room for a socket's."""
    with fresh_directory("pgsock-u-") as made:
        made.chmod(0o755)
        yield made


def read_as_nobody(path: object, source: str) -> object:
    """What READ prints as user nobody."""
    support.require("system-python")
    account = accounts.account_of("nobody")
    done = subprocess.run(
        [support.SYSTEM_PYTHON, "-c", READ, source, str(path)],
        env=support.environment(support.readable_tree()),
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


class Clients(Protocol):
    """How sessions are opened over a Unix socket."""

    def __call__(self, via: str, count: int) -> list[Session]: ...


@pytest.fixture
def clients(lab: Lab) -> Iterator[Clients]:
    """Open sessions of the application over a server's Unix socket; all are gone afterwards."""
    opened: list[Session] = []

    def connect(via: str, count: int) -> list[Session]:
        if via == "pgbouncer":
            support.require("pgbouncer")
        server = lab.server(via)
        new = [
            Session.connect(str(server.socket_directory), server.port, APPLICATION, DATABASE)
            for _ in range(count)
        ]
        opened.extend(new)
        return new

    yield connect
    for session in opened:
        session.close()
    lab.postgres.terminate([session.backend_pid for session in opened])
    for via in ("postgresql", "pgbouncer") if lab.pooled else ("postgresql",):
        gone = functools.partial(_has_no_sessions, socket_of(lab, via))
        support.wait_until(gone, f"{via}: sessions closed")


def _has_no_sessions(path: Path) -> bool:
    return not read(path).sessions


def socket_of(lab: Lab, via: str) -> Path:
    """The path of a server's Unix socket."""
    server = lab.server(via)
    return server.socket_directory / f".s.PGSQL.{server.port}"


@pytest.mark.parametrize("via", ["postgresql", "pgbouncer"])
def test_sessions_of_a_server_for_root_and_nobody(lab: Lab, clients: Clients, via: str) -> None:
    clients(via, 5)
    path = socket_of(lab, via)
    owner = os.stat(path).st_uid
    (backlog,) = {one.backlog for one in read(path).listeners}
    if via == "postgresql" and lab.postgres.version >= 16:
        assert backlog == 2 * lab.max_connections
    assert backlog
    for source, notes in (("netlink", []), ("procfs", [UNTOLD])):
        found = read(path, source)
        assert len(found.sessions) == 5
        assert (found.not_accepted, found.strays, found.notes) == (0, [], notes)
        (listener,) = found.listeners
        assert listener.path == bytes(path)
        known = source == "netlink"
        assert listener.uid == (owner if known else None)
        assert (listener.accept_queue, listener.backlog) == (
            (0, backlog) if known else (None, None)
        )
        assert {one.uid for one in found.sessions} == {owner if known else None}
        assert {one.shutdown for one in found.sessions} == {0 if known else None}
        directory = " (/proc/net)" if source == "procfs" else ""
        assert read_as_nobody(path, source) == [
            [f"source: {source}{directory}"],
            [listener.backlog],
            [[listener.uid] * 5, [listener.uid]],
            0,
            notes,
        ]


def test_clients_of_sessions(lab: Lab, clients: Clients) -> None:
    own = {os.fstat(one.socket.fileno()).st_ino for one in clients("postgresql", 3)}
    reader = SocketReader("netlink", None, Deadline(5))
    sessions = reader.unix_sockets(str(socket_of(lab, "postgresql"))).sessions
    peers = reader.unix_peers(sessions)
    assert set(peers) == own
    assert {one.uid for one in peers.values()} == {os.geteuid()}
    assert {one.peer_inode for one in peers.values()} == {one.inode for one in sessions}
    procfs = SocketReader("procfs", None, Deadline(5))
    by_procfs = procfs.unix_sockets(str(socket_of(lab, "postgresql"))).sessions
    assert sorted(one.inode for one in by_procfs) == sorted(one.inode for one in sessions)
    assert procfs.unix_peers(by_procfs) == {}


def test_a_client_that_left_while_its_statement_runs(lab: Lab, clients: Clients) -> None:
    path = socket_of(lab, "postgresql")
    session, _ = clients("postgresql", 2)
    session.simple_query("select pg_sleep(60)")
    session.kill()
    found = read(path)
    # There is no CLOSE_WAIT: what says so is that the client has shut down both ways.
    assert sorted((one.state, one.shutdown) for one in found.sessions) == [(1, 0), (1, 3)]
    (orphan,) = (one for one in found.sessions if one.shutdown)
    assert orphan.peer_inode == 0
    assert len(read(path, "procfs").sessions) == 2


def test_a_full_accept_queue(sockets: Sockets, directory: Path) -> None:
    path = directory / "s"
    sockets.connect(sockets.listen(path, 3))
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(6)]
        for client in waiting:
            client.setblocking(False)
        refused = [client.connect_ex(str(path)) for client in waiting]
        assert refused == [0, 0, 0, 0, errno.EAGAIN, errno.EAGAIN]
        found = read(path)
        (listener,) = found.listeners
        assert (listener.accept_queue, listener.backlog) == (4, 3)  # one more than the backlog
        assert (found.not_accepted, len(found.sessions)) == (4, 1)
        found = read(path, "procfs")
        assert (found.not_accepted, len(found.sessions)) == (4, 1)


def test_sessions_of_an_earlier_server(sockets: Sockets, directory: Path) -> None:
    path = directory / "s"
    old = sockets.listen(path)
    sockets.connect(old)
    sockets.connect(old)
    (earlier,) = read(path).listeners
    old.close()
    path.unlink()
    assert read(path)[:3] == ([], [], 0)
    assert len(read(path).strays) == 2
    sockets.connect(sockets.listen(path))
    found = read(path)
    assert (len(found.listeners), len(found.sessions), len(found.strays)) == (1, 1, 2)
    assert {one.file for one in found.strays} == {earlier.file}
    assert found.listeners[0].file not in (None, earlier.file)
    assert found.notes == []
    found = read(path, "procfs")
    assert (len(found.sessions), found.strays, found.notes) == (3, [], [UNTOLD])


def test_a_restarted_postgresql(pg_alone: PostgresServer) -> None:
    path = pg_alone.socket_directory / f".s.PGSQL.{pg_alone.port}"

    def sessions() -> int:
        return len(read(path).sessions)

    with pg_alone.administrator(), pg_alone.administrator():
        assert sessions() == 2
        pg_alone.restart("immediate")
        support.wait_until(lambda: sessions() == 0, "the sessions ended with their server")
        with pg_alone.administrator():
            assert sessions() == 1


@pytest.fixture
def pg_alone(make_pg: Callable[[], PostgresServer]) -> PostgresServer:
    """A server of this test's own."""
    return make_pg()


def test_a_deleted_socket_file(sockets: Sockets, directory: Path) -> None:
    path = directory / "s"
    listener = sockets.listen(path)
    sockets.connect(listener)
    path.unlink()
    found = read(path)
    assert (len(found.listeners), len(found.sessions)) == (1, 1)
    assert found.notes == [f"{path} is gone: nobody can connect to its listener any more"]


def test_a_socket_file_that_another_listener_has_replaced(
    sockets: Sockets, directory: Path
) -> None:
    path = directory / "s"
    sockets.connect(sockets.listen(path))
    path.unlink()
    newer = sockets.listen(path)
    found = read(path)
    assert (len(found.listeners), len(found.sessions), len(found.strays)) == (1, 0, 1)
    newer.close()
    found = read(path)
    assert (found.listeners, found.sessions, len(found.strays)) == ([], [], 1)
    assert found.notes == [
        f"the listener named {path} is bound to another file: that was replaced, or the listener "
        "sees other file systems than this check"
    ]


def test_names_with_spaces_and_newlines(sockets: Sockets, directory: Path) -> None:
    for name in ("a b", "a\nb", "\n", " ", "a\rb", "é", "@a"):
        path = directory / name
        sockets.connect(sockets.listen(path))
        for source in ("netlink", "procfs"):
            found = read(path, source)
            assert [one.path for one in found.listeners] == [os.fsencode(path)]
            assert len(found.sessions) == 1
            listeners = SocketReader(source, None, Deadline(5)).unix_listeners()
            assert os.fsencode(path) in {one.path for one in listeners}


def test_abstract_names(sockets: Sockets) -> None:
    name = f"pgsock-{os.getpid()}/.s.PGSQL.5432"
    sockets.connect(sockets.listen(f"\0{name}"))
    sockets.connect(sockets.listen(f"\0{name}0"))
    for source in ("netlink", "procfs"):
        found = read(f"@{name}", source)
        assert [one.path for one in found.listeners] == [f"\0{name}".encode()]
        assert (len(found.sessions), found.notes) == (1, [])


def test_other_ways_to_the_same_directory(sockets: Sockets, directory: Path) -> None:
    (directory / "run").mkdir()
    (directory / "link").symlink_to("run")
    (directory / "file").symlink_to("run/s")
    sockets.connect(sockets.listen(directory / "link" / "s"))
    for source in ("netlink", "procfs"):
        for way in ("run/s", "link/s", "run/../run/s"):
            found = read(directory / way, source)
            assert (len(found.listeners), len(found.sessions)) == (1, 1)
    # Only the kernel's own numbers of a file tell that a link of another name leads to it.
    assert len(read(directory / "file").sessions) == 1
    assert len(read(directory / "file", "procfs").sessions) == 0


def test_a_relative_name_is_known_by_its_file(
    sockets: Sockets, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    listener = sockets.listen("s")
    monkeypatch.chdir("/")
    sockets.connect(listener, directory / "s")
    found = read(directory / "s")
    assert [one.path for one in found.listeners] == [b"s"]
    assert len(found.sessions) == 1
    assert read(directory / "s", "procfs").listeners == []


def test_a_directory_that_may_not_be_looked_into(sockets: Sockets, directory: Path) -> None:
    support.require("root")
    path = directory / "private" / "s"
    path.parent.mkdir()
    old = sockets.listen(path)
    sockets.connect(old)
    old.close()
    path.unlink()
    sockets.connect(sockets.listen(path))
    path.parent.chmod(0o700)
    note = f"{path} cannot be looked at (Permission denied): its sockets are told by name"
    assert read_as_nobody(path, "netlink") == [["source: netlink"], [8], [[0], [0]], 0, [note]]


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_what_is_no_socket(directory: Path, source: str) -> None:
    with pytest.raises(
        SourceError, match=r"is a directory; name the socket in it, such as /.*/\.s"
    ):
        read(directory, source)
    (directory / "file").touch()
    with pytest.raises(SourceError, match=r"/file is not a socket$"):
        read(directory / "file", source)
    assert read(directory / "nothing", source)[:4] == ([], [], 0, [])


def test_clients_of_another_network_namespace(
    sockets: Sockets, directory: Path, two_hosts: tuple[NamespaceHost, NamespaceHost]
) -> None:
    # Its accepted end belongs to the client's namespace, whatever the server's is.
    there, _ = two_hosts
    path = directory / "s"
    listener = sockets.listen(path)
    sockets.connect(listener)
    with there.entered():
        sockets.connect(listener)
        sockets.connect(listener)
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(str(path))
        for source in ("netlink", "procfs"):
            found = read(path, source)
            assert (found.listeners, len(found.sessions)) == ([], 2)
            assert found.not_accepted == (1 if source == "procfs" else 0)
    found = read(path)
    assert (len(found.listeners), len(found.sessions), found.not_accepted) == (1, 1, 1)
    found = read(path, "procfs")
    assert (len(found.listeners), len(found.sessions), found.not_accepted) == (1, 1, 0)
    waiting.close()


ON_AN_OVERLAY = """
import ctypes, os, socket, sys
from check_pgsock.deadline import Deadline
from check_pgsock.sockets.reader import SocketReader
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
os.chdir(sys.argv[1])
os.makedirs("lower")
os.makedirs("upper")
assert libc.mount(b"none", b"upper", b"tmpfs", 0, None) == 0
for name in ("upper/data", "upper/work", "upper/all"):
    os.mkdir(name)
options = b"lowerdir=lower,upperdir=upper/data,workdir=upper/work"
if libc.mount(b"overlay", b"upper/all", b"overlay", 0, options) != 0:
    sys.exit(77)
path = os.path.abspath("upper/all/s")
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(4)
client = socket.socket(socket.AF_UNIX)
client.connect(path)
accepted = listener.accept()
found = SocketReader("netlink", None, Deadline(5)).unix_sockets(path)
print(len(found.listeners), len(found.sessions), found.notes,
      found.listeners[0].file[0] != os.stat(path).st_dev, flush=True)
os._exit(0)
"""


def test_an_overlay_file_system_that_shows_another_device(directory: Path) -> None:
    support.require("root")
    code, out, err = restricted.run_code(ON_AN_OVERLAY, str(directory))
    if code == 77:
        pytest.skip("this machine has no overlay file system")
    assert (code, out, err) == (0, "1 1 [] True\n", "")


def test_auto_goes_over_to_procfs(sockets: Sockets, directory: Path) -> None:
    path = directory / "s"
    sockets.connect(sockets.listen(path))
    code, out, err = restricted.run_code(restricted.DENY_NETLINK + READ, "auto", str(path))
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        [
            "source: procfs (/proc/net)",
            "netlink did not answer: the netlink socket dump failed: Permission denied",
        ],
        [None],
        [[None], [None]],
        0,
        [UNTOLD],
    ]
    code, out, err = restricted.run_code(restricted.DENY_NETLINK + READ, "netlink", str(path))
    assert (code, json.loads(out)) == (0, "the netlink socket dump failed: Permission denied")


def test_a_proc_root(sockets: Sockets, directory: Path) -> None:
    root = directory / "proc"
    (root / "1").mkdir(parents=True)
    (root / "1" / "net").symlink_to("/proc/self/net")
    (root / "net").symlink_to("self/net")
    path = directory / "s"
    sockets.connect(sockets.listen(path))
    reader = SocketReader("auto", str(root), Deadline(5))
    found = reader.unix_sockets(str(path))
    assert (reader.used, len(found.listeners), len(found.sessions)) == ("procfs", 1, 1)
    # A live proc root may be another host's: its paths are no paths here.
    (directory / "link").symlink_to(".")
    assert reader.unix_sockets(str(directory / "link" / "s"))[:3] == ([], [], 0)


def test_a_saved_moment() -> None:
    reader = SocketReader("auto", str(DETAILS), Deadline(5))
    found = reader.unix_sockets(PATH.decode())
    assert (len(found.listeners), len(found.sessions), found.not_accepted) == (1, 4, 1)
    assert (found.strays, found.notes) == ([], [UNTOLD])
    assert sorted(one.path for one in reader.unix_listeners()) == sorted(
        one.path for one in UNIX_LISTENERS
    )


def test_a_saved_moment_without_unix_sockets() -> None:
    reader = SocketReader("auto", str(MOMENT), Deadline(5))
    sentence = (
        f"{MOMENT}/net/unix cannot be read: No such file or directory; the saved moment holds no "
        "Unix sockets"
    )
    for question in (lambda: reader.unix_sockets("/run/s"), reader.unix_listeners):
        with pytest.raises(SourceError) as caught:
            question()
        assert str(caught.value) == sentence


def test_reading_keeps_the_deadline() -> None:
    for choice in ("netlink", "procfs", "auto"):
        deadline = Deadline(0.0001)
        time.sleep(0.001)
        with pytest.raises(DeadlineError):
            SocketReader(choice, None, deadline).unix_listeners()


def test_each_session_is_there_once_while_others_come_and_go(
    sockets: Sockets, directory: Path
) -> None:
    path = directory / "s"
    listener = sockets.listen(path, 100)
    for _ in range(300):
        sockets.connect(listener)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                listener.accept()[0].close()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for source in ("netlink", "procfs"):
            for _ in range(20):
                inodes = [one.inode for one in read(path, source).sessions]
                assert len(inodes) == len(set(inodes))
                assert len(inodes) >= 290  # a walk may miss some that are there
    finally:
        stop.set()
        thread.join()
