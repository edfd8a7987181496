"""Record tests/data/details: Unix sockets of every kind as both sources show them, and what the
kernel tells of TCP sockets only where it is asked: drops, cgroups, and tcp_info of a peer that
does not read.

Run by hand as root (`python -m tests.record_details`); it works in network and mount namespaces of
its own, and in cgroups that it makes and removes. The unit tests parse what it recorded.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from check_pgsock.sockets import inet_diag, unix_diag
from check_pgsock.sockets.model import ESTABLISHED, LISTEN, Query
from tests.record_moment import ALL_STATES, CLONE_NEWNET, dump

DETAILS = Path(__file__).parent / "data" / "details"
CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000
CGROUPS = Path("/sys/fs/cgroup/unified")  # cgroup2, wherever it is mounted
PORT, FULL_PORT = 5432, 5433
NOBODY = 65534

keep: list[socket.socket] = []


def unix_listener(path: str, backlog: int = 5) -> socket.socket:
    """A listening Unix socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(backlog)
    keep.append(listener)
    return listener


def unix_session(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection: the client's and the accepted one."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(listener.getsockname())
    accepted = listener.accept()[0]
    keep.extend((client, accepted))
    return client, accepted


def make_unix_sockets() -> None:
    """Make them on a file system of their own, so that no path of this machine is recorded."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(None, b"/", None, MS_REC_PRIVATE, None)
    if libc.mount(b"none", b"/mnt", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    os.chdir("/mnt")
    path = "/mnt/.s.PGSQL.5432"
    earlier = unix_listener(path)
    unix_session(earlier)  # of a server that was there before
    earlier.close()
    os.unlink(path)
    listener = unix_listener(path)
    client, accepted = unix_session(listener)
    client.send(b"hello")
    accepted.send(b"world!")
    unix_session(listener)[0].close()  # the server has not noticed
    unix_session(listener)[0].shutdown(socket.SHUT_WR)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(path)
    keep.append(waiting)
    os.seteuid(NOBODY)
    unix_session(unix_listener("\0pgsock/.s.PGSQL.5433", 9))
    os.seteuid(0)
    os.mkdir("/mnt/a b\nc")
    unix_session(unix_listener("/mnt/a b\nc/.s.PGSQL.5434"))
    unix_listener(".s.PGSQL.5435")
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    packets.bind("/mnt/log")
    packets.connect("/mnt/log")
    keep.append(packets)
    keep.extend(socket.socketpair())


def enter_cgroup(name: str) -> None:
    """Go into a cgroup of this name, or into the root one for ""."""
    (CGROUPS / name).mkdir(exist_ok=True)
    (CGROUPS / name / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def make_tcp_sockets() -> None:
    """A connection between two cgroups whose client does not read, and a listener that drops."""
    enter_cgroup("pgsock_server")
    listener = socket.create_server(("127.0.0.1", PORT), backlog=40)
    enter_cgroup("pgsock_client")
    client = socket.create_connection(("127.0.0.1", PORT), source_address=("", 40001))
    accepted = listener.accept()[0]
    accepted.setblocking(False)
    try:
        while True:
            accepted.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    full = socket.create_server(("127.0.0.1", FULL_PORT), backlog=1)
    enter_cgroup("")
    keep.extend((listener, client, accepted, full))
    for source in range(40002, 40006):
        client = socket.socket()
        client.setblocking(False)
        client.bind(("127.0.0.1", source))
        client.connect_ex(("127.0.0.1", FULL_PORT))
        keep.append(client)
    time.sleep(1.5)


def main() -> None:
    """Make the sockets and record them."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    make_unix_sockets()
    make_tcp_sockets()
    shutil.rmtree(DETAILS, ignore_errors=True)
    (DETAILS / "net").mkdir(parents=True)
    (DETAILS / "unix.bin").write_bytes(dump(unix_diag.pack_request(ALL_STATES, 1)))
    (DETAILS / "net" / "unix").write_bytes(Path("/proc/self/net/unix").read_bytes())
    listeners = Query((PORT, FULL_PORT), True, 1 << LISTEN, drops=True)
    (DETAILS / "listeners.bin").write_bytes(dump(inet_diag.pack_request(listeners, 1)))
    ends = Query((PORT, 40001), True, 1 << ESTABLISHED, info=True)
    (DETAILS / "ends.bin").write_bytes(dump(inet_diag.pack_request(ends, 1)))
    for name in ("pgsock_server", "pgsock_client"):
        (CGROUPS / name).rmdir()
    os._exit(0)


if __name__ == "__main__":
    main()
