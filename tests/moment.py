"""The recorded moment of tests/data (see record_moment.py) and what stands in it."""

from __future__ import annotations

from pathlib import Path

from check_pgsock.sockets import model
from check_pgsock.sockets.model import Listener, Socket

MOMENT = Path(__file__).parent / "data" / "moment"
NET = MOMENT / "net"
LOCAL4 = bytes([127, 0, 0, 1])
LOCAL6 = bytes(15) + b"\x01"
ANY6 = bytes(16)

LISTENERS = [
    Listener(ANY6, 6432, 0, 40806, 4175, 0, 128, None, 1),
    Listener(LOCAL4, 5432, 0, 40804, 4174, 2, 40, None, 1),
    Listener(LOCAL4, 7432, 0, 40807, 4173, 0, 8, None, 1),
]


def socket(
    state: int,
    local_port: int,
    remote_port: int,
    inode: int,
    cookie: int,
    address: bytes = LOCAL4,
    timer: int = 0,
    expires_ms: int = 0,
    receive_queue: int = 0,
) -> Socket:
    """A socket of the moment: both its ends have the same address, and uid 0 owns it."""
    return Socket(
        state, address, local_port, address, remote_port, 0, inode, cookie, timer, expires_ms,
        0, receive_queue, 0, None,
    )  # fmt: skip


SOCKETS = [
    socket(model.ESTABLISHED, 5432, 40001, 40809, 4177, timer=2, expires_ms=7199892,
           receive_queue=5),
    socket(model.ESTABLISHED, 5432, 40006, 0, 4187),
    socket(model.ESTABLISHED, 5432, 40007, 0, 4190),
    socket(model.CLOSE_WAIT, 5432, 40004, 40815, 4189, receive_queue=1),
    socket(model.ESTABLISHED, 6432, 40002, 40811, 4185, LOCAL6),
    socket(model.ESTABLISHED, 6432, 40003, 40813, 4176),
    socket(model.SYN_RECV, 7432, 40008, 0, 4179, timer=1, expires_ms=944),
    socket(model.ESTABLISHED, 40001, 5432, 40808, 4180),
    socket(model.ESTABLISHED, 40002, 6432, 40810, 4186, LOCAL6),
    socket(model.ESTABLISHED, 40003, 6432, 40812, 4178),
    socket(model.FIN_WAIT2, 40004, 5432, 40814, 4181),
    socket(model.TIME_WAIT, 40005, 5432, 0, 4182, timer=3, expires_ms=59940),
    socket(model.ESTABLISHED, 40006, 5432, 39501, 4183),
    socket(model.ESTABLISHED, 40007, 5432, 39502, 4184),
    socket(model.ESTABLISHED, 40008, 7432, 39503, 4188),
]  # fmt: skip


def other_byte_order(text: bytes) -> bytes:
    """A file of /proc/net with its addresses as a host of the other byte order prints them."""
    lines = []
    for line in text.splitlines(keepends=True):
        fields = line.split(b" ")
        for number, field in enumerate(fields):
            address, colon, port = field.partition(b":")
            if colon and len(address) in (8, 32) and len(port) == 4:
                words = [address[at : at + 8] for at in range(0, len(address), 8)]
                swapped = b"".join(
                    b"".join(word[at : at + 2] for at in (6, 4, 2, 0)) for word in words
                )
                fields[number] = swapped + colon + port
        lines.append(b" ".join(fields))
    return b"".join(lines)


BYTE_ORDER = "little"  # of the host that recorded the moment
OTHER_ORDER = "big"
