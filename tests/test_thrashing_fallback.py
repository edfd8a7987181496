"""check_pgsock_thrashing without events, and what it refuses."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.processes import free_port
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.watching import Check, counts, listening, masked, thrash

# setsockopt by machine: asm/unistd.h
_SETSOCKOPT = {"x86_64": 54, "aarch64": 208}
_PROBES = (
    "--ignore-probes needs netlink, procfs does not tell which connections had no data; drop it, "
    "or --source procfs and --proc-root"
)
_SERVER = (
    "time_wait is judged in % on the client leg alone: the server leg uses up no ephemeral ports; "
    "give --time-wait-warning and --time-wait-critical without %"
)
_ROOT = (
    "time_wait in % is of ip_local_port_range, which --proc-root cannot tell of another "
    "namespace; give absolute bounds"
)
_BOUND = (
    "a lower bound, from snapshots: connections opened and closed between two of them are not "
    "seen ({})"
)


def without_events() -> list[str]:
    """A command that executes its arguments where the kernel refuses setsockopt(SOL_NETLINK)."""
    machine = os.uname().machine
    if machine not in _SETSOCKOPT or sys.byteorder != "little":
        pytest.skip(f"this machine has no seccomp filter for {machine}")
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # the number of the system call
            (0x15, 0, 3, _SETSOCKOPT[machine]),
            (0x20, 0, 0, 24),  # its second argument
            (0x15, 0, 1, 270),  # SOL_NETLINK
            (0x06, 0, 0, 0x00050001),  # SECCOMP_RET_ERRNO, EPERM
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    code = (
        "import ctypes, os, struct, sys; libc = ctypes.CDLL(None, use_errno=True); "
        f"code = ctypes.create_string_buffer({program!r}); "
        "head = struct.pack('@HP', 6, ctypes.addressof(code)); "
        "assert libc.prctl(38, 1, 0, 0, 0) == 0; "  # PR_SET_NO_NEW_PRIVS
        "assert libc.prctl(22, 2, ctypes.c_char_p(head), 0, 0) == 0; "  # PR_SET_SECCOMP
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [support.SYSTEM_PYTHON, "-c", code]


@pytest.mark.parametrize("leg", ["server", "client"])
def test_procfs_gives_a_lower_bound(make_pg: MakePg, sessions: OpenSessions, leg: str) -> None:
    server = make_pg()
    held = sessions(server, 15)
    args = ("-p", str(server.port), "--leg", leg, "--source", "procfs", "-w", "5", "-v")
    with Check(*args, "--window", "2", events=False) as check:
        for session in held:
            session.close()
        sessions(server, 4)
    done = check.result()
    assert masked(done, time_wait=False) == [
        "PGSOCK_THRASHING WARNING - at least 15/s connections closed per second (4/s opened) "
        f"{'on' if leg == 'server' else 'to'} port {server.port} "
        "(closed_rate outside range 0:5) | closed_rate=15/s;5;50;0 opened_rate=4/s;;;0 "
        "cycle_rate=4/s;;;0 established=4;;;0 time_wait=N;;;0",
        _BOUND.format("procfs has no events"),
        "peer 127.0.0.1: 15 closed",
        "counted in T s: 15 closed, 4 opened",
    ]
    assert (done.code, done.err) == (1, "")


@pytest.mark.parametrize("probes", [(), ("--ignore-probes",)], ids=["all", "ignore-probes"])
def test_refused_events_are_replaced_by_snapshots(
    make_pg: MakePg, sessions: OpenSessions, probes: tuple[str, ...]
) -> None:
    support.require("system-python")
    server = make_pg()
    held = sessions(server, 15)
    silent = [socket.create_connection((server.host, server.port)) for _ in range(3)]
    args = ("-p", str(server.port), "-w", "5", "-vv", "--window", "2", *probes)
    with Check(*args, prefix=without_events(), events=False) as check:
        for session in held:
            session.close()
        for connection in silent:
            connection.close()
    done = check.result()
    number = 15 if probes else 18
    aside = ", probes not counted" if probes else ""
    refusal = "the kernel's destroy events are refused: Operation not permitted"
    lines = masked(done, time_wait=False)
    assert lines[:5] == [
        f"PGSOCK_THRASHING WARNING - at least {number}/s connections closed per second "
        f"(0/s opened{aside}) on port {server.port} (closed_rate outside range 0:5) | "
        f"closed_rate={number}/s;5;50;0 opened_rate=0/s;;;0 cycle_rate=0/s;;;0 established=0;;;0 "
        "time_wait=N;;;0",
        _BOUND.format(refusal),
        f"peer 127.0.0.1: {number} closed",
        f"counted in T s: {number} closed, 0 opened",
        "source: netlink",
    ]
    assert lines[5] == f"no destroy events: {refusal}"
    assert lines[6].startswith("snapshots: ")
    assert (done.code, done.err) == (1, "")


def test_netlink_by_name_is_never_replaced() -> None:
    with listening(socket.AF_INET, "127.0.0.1") as port:
        args = ("-p", str(port), "--source", "netlink")
        with Check(*args, prefix=without_events(), events=False) as check:
            pass
    assert check.result() == (
        3,
        "PGSOCK_THRASHING UNKNOWN - the kernel's destroy events are refused: Operation not "
        "permitted; use --source auto for snapshots, which give a lower bound\n",
        "",
    )


def test_live_proc_root_is_watched() -> None:
    support.require("root")
    with listening(socket.AF_INET, "127.0.0.1") as port:
        args = ("-p", str(port), "--proc-root", "/proc", "--window", "0.3", "-v")
        done = support.run("thrashing", *args)
    if "/proc/1/net/tcp" in done.out or "nothing listens" in done.out:
        pytest.skip("this machine has process 1 in another network namespace")
    assert masked(done) == [
        "PGSOCK_THRASHING OK - at least 0/s connections closed per second (0/s opened) "
        f"on port {port} | closed_rate=0/s;10;50;0 opened_rate=0/s;;;0 cycle_rate=0/s;;;0 "
        "established=0;;;0 time_wait=0;;;0",
        _BOUND.format("procfs has no events"),
        "counted in T s: 0 closed, 0 opened",
        "TIME_WAIT: 0",
    ]
    assert done.code == 0


def test_saved_moment_tells_no_rate() -> None:
    root = Path(__file__).parent / "data" / "moment"
    done = support.run("thrashing", "--proc-root", str(root))
    assert done == (
        3,
        "PGSOCK_THRASHING UNKNOWN - a saved moment (--proc-root) cannot tell a rate; watch a live "
        "system, or judge the moment by check_pgsock_saturation or check_pgsock_close_wait\n",
        "",
    )


def test_no_listener_is_said_before_the_window() -> None:
    port = free_port()
    done = support.run("thrashing", "-p", str(port), "--window", "7", user="nobody", timeout=4)
    assert done == (
        3,
        f"PGSOCK_THRASHING UNKNOWN - nothing listens on port {port}; is the server down or the "
        "port another (--port)? --no-listener decides what this means\n",
        "",
    )


@pytest.mark.parametrize(
    ("state", "code", "reason"),
    [
        ("ok", 0, ""),
        ("warning", 1, " (nothing listens on port {})"),
        ("critical", 2, " (nothing listens on port {})"),
    ],
)
def test_no_listener_as_chosen(state: str, code: int, reason: str) -> None:
    port = free_port()
    done = thrash("-p", str(port), "--window", "1", "-v", "--no-listener", state)
    assert masked(done) == [
        f"PGSOCK_THRASHING {state.upper()} - 0/s connections closed per second (0/s opened) "
        f"on port {port}{reason.format(port)} | closed_rate=0/s;10;50;0 opened_rate=0/s;;;0 "
        "cycle_rate=0/s;;;0 probe_rate=0/s;;;0 established=0;;;0 time_wait=0;;;0",
        "counted in T s: 0 closed, 0 opened; of the closed 0 probes, 0 lost",
        "TIME_WAIT: 0",
    ]
    assert done.code == code


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ("--window", "8"),
            "--window 8 is not below --timeout 8; lower the one or raise the other",
        ),
        (
            ("--window", "0.01"),
            "--window 0.01 is too short; at least 0.1",
        ),
        (
            ("--window", "0"),
            "argument --window: '0' is no time in seconds, above 0, at most 3600; "
            "see check_pgsock_thrashing --help",
        ),
        (
            ("-w", "10%"),
            "'10%': closed_rate is judged in absolute numbers, without %; "
            "see check_pgsock_thrashing --help",
        ),
        (("--ignore-probes", "--source", "procfs"), _PROBES),
        (("--ignore-probes", "--proc-root", "/proc"), _PROBES),
        (("--time-wait-warning", "80%"), _SERVER),
        (("--time-wait-critical", "80%"), _SERVER),
        (("--leg", "client", "--time-wait-critical", "80%", "--proc-root", "/proc"), _ROOT),
        (
            tuple(word for port in range(1, 1002) for word in ("-p", str(port))),
            "more than 1000 ports cannot be watched; drop some --port",
        ),
    ],
)
def test_usage_errors(args: tuple[str, ...], sentence: str) -> None:
    done = support.run("thrashing", *args, timeout=5)
    assert done == (3, f"PGSOCK_THRASHING UNKNOWN - {sentence}\n", "")


def test_time_wait_on_the_server_leg() -> None:
    with listening(socket.AF_INET, "127.0.0.1", answer=False) as port:
        args = ("-p", str(port), "--time-wait-critical", "3", "-w", "100", "-c", "200")
        with Check(*args, "--window", "1", "-v") as check:
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", port), 5) as connection:
                    assert connection.recv(1) == b""  # the listener's end closes first
    done = check.result()
    assert masked(done) == [
        "PGSOCK_THRASHING CRITICAL - 5/s connections closed per second (5/s opened) "
        f"on port {port} (time_wait outside range 0:3) | closed_rate=5/s;100;200;0 "
        "opened_rate=5/s;;;0 cycle_rate=5/s;;;0 probe_rate=5/s;;;0 established=0;;;0 "
        "time_wait=5;;3;0",
        "peer 127.0.0.1: 5 closed",
        "peer 127.0.0.1: 5 in TIME_WAIT",
        "counted in T s: 5 closed, 5 opened; of the closed 5 probes, 0 lost",
        "TIME_WAIT: 5",
    ]
    assert (done.code, done.err) == (2, "")
    assert counts(done)["probes"] == 5
