"""Recordings made by hand, for the tests of what reads them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from check_pgsock.deadline import Deadline
from check_pgsock.recording.archive import Writer
from check_pgsock.recording.capture import Captured
from check_pgsock.recording.manifest import Finding, Header, Moment, Place
from check_pgsock.recording.processes import Recorded
from check_pgsock.recording.replay import open_recording
from check_pgsock.servers.limits import Limit
from check_pgsock.view import View
from tests.details import DETAILS
from tests.moment import MOMENT, NET

HEADER = Header("0.1.0", "6.1.0", "x86_64", sys.byteorder, 64, 100, 0, False)
BY_NETLINK = {
    "tcp.netlink": (MOMENT / "all.bin").read_bytes(),
    "unix.netlink": (DETAILS / "unix.bin").read_bytes(),
}
BY_PROCFS = {
    "tcp": (NET / "tcp").read_bytes(),
    "tcp6": (NET / "tcp6").read_bytes(),
    "unix": (DETAILS / "net" / "unix").read_bytes(),
}
LISTENER = 40804  # the inode of the listener on port 5432
FINDING = Finding(
    "port 5432", (LISTENER,), 10, "it holds the listener", Limit(100, 3, "pg_control", False),
    None, 15, "",
)  # fmt: skip


def place(tables: Mapping[str, bytes], **changes: Any) -> Place:
    """The network namespace that the recorder was in."""
    settings = {"net/core/somaxconn": "4096\n", "net/ipv4/ip_local_port_range": "32768\t60999\n"}
    made = Place("self", False, True, tuple(tables), 18, 19, None, settings, 4026531840)
    return made._replace(**changes)


def process(command: str, parent: int, *arguments: str, **changes: Any) -> Recorded:
    """A process of uid 26."""
    rest = " ".join(["S", str(parent), *["0"] * 17, "1234", *["0"] * 30])
    files = {
        "stat": f"1 ({command}) {rest}\n".encode(),
        "status": f"Name:\t{command}\nUid:\t26\t26\t26\t26\nGid:\t26\t26\t26\t26\n".encode(),
    }
    if arguments:
        files["cmdline"] = "".join(f"{one}\0" for one in arguments).encode()
    return Recorded(files, {}, {"3": LISTENER}, 4026531840)._replace(**changes)


PROCESSES = {
    1: process("systemd", 0, sockets=None, network=None),
    10: process("postgres", 1, "/usr/bin/postgres", "-D", "/srv/data"),
    11: process("postgres", 10, "postgres: checkpointer "),
}


def captured(
    tables: Sequence[Mapping[str, bytes]] = (BY_NETLINK,),
    places: Sequence[Place] = (),
    processes: Mapping[int, Recorded] = PROCESSES,
    cgroups: Mapping[int, str] | None = None,
    **changes: Any,
) -> Captured:
    """One moment."""
    where = tuple(places or [place(one) for one in tables])
    about = Moment(1.7e9, 5000.0, 0.1, len(processes), False, 0, where, (FINDING,))
    return Captured(
        about._replace(**changes),
        tuple(dict(one) for one in tables),
        dict(processes),
        dict(cgroups or {}),
    )


def write(path: Path, *moments: Captured, header: Header = HEADER) -> Path:
    """Write a recording of these moments, or of one."""
    with Writer(str(path), header) as writer:
        for number, one in enumerate(moments or (captured(),), 1):
            writer.add(one.about, one.members(number))
        writer.commit()
    return path


def replay(path: Path, moment: int | None = None, netns: Sequence[str] = ()) -> View:
    """What is to be seen in a recording."""
    return open_recording(str(path), moment, netns, Deadline(5))
