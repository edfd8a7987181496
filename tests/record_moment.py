"""Record tests/data/moment: one moment of sockets in all states, as both sources show it.

Run by hand as root (`python -m tests.record_moment`); it works in a network namespace of its own.
The unit tests parse what it recorded.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

from check_pgsock.sockets import inet_diag
from check_pgsock.sockets.model import Query

MOMENT = Path(__file__).parent / "data" / "moment"
CLONE_NEWNET = 0x40000000
V4_PORT, V6_PORT, DEFERRED_PORT = 5432, 6432, 7432
ALL_STATES = 0xFFFF


def dump(request: bytes) -> bytes:
    """The raw datagrams that answer `request`, one after the other."""
    parts = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as channel:
        channel.send(request)
        while True:
            data = channel.recv(1 << 16)
            parts.append(data)
            if struct.unpack_from("=IH", data)[1] == 3 or b"\x03\0" in data[-20:-8]:
                return b"".join(parts)


def main() -> None:
    """Make the sockets and record them."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    keep: list[socket.socket] = []
    four = socket.create_server(("127.0.0.1", V4_PORT), backlog=40)
    six = socket.create_server(
        ("::", V6_PORT), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True
    )
    deferred = socket.create_server(("127.0.0.1", DEFERRED_PORT), backlog=8)
    deferred.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)

    def pair(address: str, port: int, source: int, server: socket.socket) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        client = socket.socket(family)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("::1" if ":" in address else "127.0.0.1", source))
        client.connect((address, port))
        keep.append(client)
        accepted = server.accept()[0]
        keep.append(accepted)
        return accepted

    accepted = pair("127.0.0.1", V4_PORT, 40001, four)  # ESTABLISHED, with data
    keep[0].send(b"hello")  # 5 bytes in the receive queue of the accepted end
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    pair("::1", V6_PORT, 40002, six)  # IPv6
    pair("127.0.0.1", V6_PORT, 40003, six)  # IPv4-mapped on the server's end
    pair("127.0.0.1", V4_PORT, 40004, four)
    keep[-2].shutdown(socket.SHUT_WR)  # CLOSE_WAIT on the server's end, FIN_WAIT2 on the client's
    waiting = pair("127.0.0.1", V4_PORT, 40005, four)
    keep[-2].close()
    time.sleep(0.05)
    waiting.close()  # TIME_WAIT on the client's end
    for source in (40006, 40007):  # not accepted: inode 0
        client = socket.create_connection(("127.0.0.1", V4_PORT), source_address=("", source))
        keep.append(client)
    client = socket.create_connection(("127.0.0.1", DEFERRED_PORT), source_address=("", 40008))
    keep.append(client)  # SYN_RECV on the server's end: the handshake's ACK is ignored
    time.sleep(0.05)
    shutil.rmtree(MOMENT, ignore_errors=True)
    (MOMENT / "net").mkdir(parents=True)
    everything = inet_diag.pack_request(Query((), True, ALL_STATES), 1)
    infos = inet_diag.pack_request(Query((V4_PORT,), True, ALL_STATES, info=True), 1)
    (MOMENT / "all.bin").write_bytes(dump(everything))
    (MOMENT / "info.bin").write_bytes(dump(infos))
    for name in ("tcp", "tcp6"):
        (MOMENT / "net" / name).write_bytes(Path(f"/proc/self/net/{name}").read_bytes())
    os._exit(0)


if __name__ == "__main__":
    main()
