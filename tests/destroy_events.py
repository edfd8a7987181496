"""The recorded destroy events of tests/data/destroy_events.hex, by name; port 15432.

`_server` and `_client` name the end of the connection: close_* a clean close after 20 bytes from
the client and 50 back, probe_* a connection without data, *_abort a close with SO_LINGER 0,
refused a non-blocking connect that was refused, listener_* a listener that closed. `mapped` is an
IPv4 client of an IPv6 listener.
"""

from __future__ import annotations

from pathlib import Path

from check_pgsock.sockets.destroy_filter import parse_events
from check_pgsock.sockets.model import Socket

PORT = 15432
_FILE = Path(__file__).parent / "data" / "destroy_events.hex"


def datagrams() -> dict[str, bytes]:
    """The netlink datagrams by name."""
    lines = _FILE.read_text(encoding="ascii").splitlines()
    pairs = (line.split() for line in lines if not line.startswith("#"))
    return {name: bytes.fromhex(data) for name, data in pairs}


DATAGRAMS = datagrams()


def event(name: str) -> Socket:
    """The one socket of a datagram."""
    (one,) = parse_events(DATAGRAMS[name])
    return one
