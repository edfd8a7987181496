"""Compare check_pgsock_saturation with the smallest nagiosplugin check, ss and its peers.

`python -m bench.checks [PAIRS]`, as root: it makes a network namespace of its own for 100,000
sockets, and starts a throw-away PostgreSQL. What is not installed is named and left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.harness import Comparison, compare, run_once
from check_pgsock.pgsock.lab.binaries import embedded
from check_pgsock.pgsock.lab.postgres import PostgresServer

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"
SOCKETS = 100_000
CLONE_NEWNET = 0x40000000
START = "import sys; sys.argv[0] = {0!r}; from check_pgsock.checks.{1} import main; main()"
# Goals: ratio of processor time, and of memory in MiB.
GOALS = {
    "smallest nagiosplugin check": 1.5,
    "check_postgres --action=backends": 0.30,
    "check_pgactivity --service backends": 0.35,
    "ss -Htan": 0.6,
}
PEAK_GOAL = 25.0


def check(name: str, *arguments: str) -> list[str]:
    """The command line of a check, from this tree."""
    code = START.format(f"check_pgsock_{name}", name)
    return [PYTHON, "-c", code, *arguments]


def environment() -> dict[str, str]:
    """What all commands run with; byte code is written once, as an installed package has it."""
    return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


def against_peers(pairs: int) -> Iterator[Comparison]:
    """Compare with a listener and 100 connections."""
    env = environment()
    settings = {"max_connections": 200}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            PostgresServer(stack.enter_context(embedded()), settings=settings)
        )
        for _ in range(100):
            stack.enter_context(server.connect())
        port = str(server.port)
        ours = check("saturation", "-p", port, "--limit", "197")
        auto = check("saturation", "-p", port)
        smallest = [PYTHON, str(ROOT / "bench" / "smallest.py")]
        yield compare("smallest nagiosplugin check", ours, smallest, env, pairs)
        yield compare("smallest nagiosplugin check (ours with --limit auto)", auto, smallest, env,
                      pairs)  # fmt: skip
        client = ["-h", "127.0.0.1", "-p", port, "-U", "postgres"]
        peers = {
            "check_postgres --action=backends": [
                "check_postgres", "--action=backends", "--host=127.0.0.1", f"--port={port}",
                "--dbuser=postgres", "--db=postgres",
            ],
            "check_pgactivity --service backends": [
                "/usr/lib/nagios/plugins/check_pgactivity", "--service", "backends", *client,
                "-d", "postgres", "-w", "90%", "-c", "95%",
            ],
        }  # fmt: skip
        for name, command in peers.items():
            if shutil.which(command[0]) is None:
                print(f"left out, not installed: {command[0]}")
                continue
            yield compare(name, ours, command, env, max(pairs // 2, 3))


@contextlib.contextmanager
def crowd(count: int) -> Iterator[int]:
    """A namespace of this process's own with `count` sockets, half of them on the yielded port.

    Several processes hold them: one may not have that many descriptors everywhere.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("2000 65000")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    share = min((most - 200) // 2, 20_000)
    listener = socket.create_server(("", 1538), backlog=1024)
    holders = []
    for number, first in enumerate(range(0, count // 2, share)):
        ready, holder = _hold(listener, f"127.0.0.{number + 1}", min(share, count // 2 - first))
        holders.append(holder)
        if os.read(ready, 1) != b"!":
            raise RuntimeError("the sockets could not be made")
        os.close(ready)
    try:
        yield 1538
    finally:
        for holder in holders:
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
        listener.close()


def _hold(listener: socket.socket, address: str, count: int) -> tuple[int, int]:
    """A child that holds `count` connections: (pipe that says when, process id)."""
    ready, say = os.pipe()
    holder = os.fork()
    if holder:
        os.close(say)
        return ready, holder
    kept = []
    for _ in range(count):
        kept.append(socket.create_connection((address, 1538)))
        kept.append(listener.accept()[0])
    os.write(say, b"!")
    signal.pause()
    os._exit(0)


def against_ss(pairs: int, count: int = SOCKETS) -> Iterator[tuple[Comparison, float]]:
    """Compare in a crowded namespace; with the peak memory of ours in MiB."""
    env = environment()
    with crowd(count) as port:
        for source in ("netlink", "procfs"):
            ours = check("saturation", "-p", str(port), "--limit", "1000000", "--source", source)
            peak = run_once(ours, env).peak
            name = "ss -Htan" if source == "netlink" else "ss -Htan (ours with --source procfs)"
            yield compare(name, ours, ["ss", "-Htan"], env, pairs), peak


def show(one: Comparison, goal: float | None) -> None:
    """Print one row."""
    verdict = "" if goal is None else f"  goal {goal:g}: {_met(one.wall_ratio, goal)}"
    print(
        f"{one.name:<52} wall {one.first.wall * 1000:7.1f} / {one.second.wall * 1000:7.1f} ms = "
        f"{one.wall_ratio:5.2f}   cpu {one.cpu_ratio:5.2f}{verdict}",
        flush=True,
    )


def _met(value: float, goal: float) -> str:
    return "met" if value <= goal else "MISSED"


def imported(arguments: Sequence[str]) -> list[str]:
    """Modules that a run of saturation imports although it needs none of them."""
    code = (
        "import atexit, os, sys\n"
        "real = os._exit\n"
        "def leave(code):\n"
        "    wanted = ('psycopg', 'sqlite3', 'typing', 'dataclasses', 'pathlib', 'subprocess',"
        " 'ipaddress', 'rich')\n"
        "    os.write(1, (' '.join(m for m in wanted if m in sys.modules) + chr(10)).encode())\n"
        "    real(code)\n"
        "os._exit = leave\n" + START.format("check_pgsock_saturation", "saturation")
    )
    done = subprocess.run(
        [PYTHON, "-c", code, *arguments], env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.splitlines()[-1].split()


def main() -> None:
    """Run everything and print the table."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(f"{pairs} pairs each; ours / the other; {os.uname().release}, {os.cpu_count()} cores")
    for one in against_peers(pairs):
        show(one, GOALS.get(one.name))
    moment = ["--proc-root", str(ROOT / "tests" / "data" / "moment"), "--limit", "9"]
    print(f"imported without need: {' '.join(imported(moment)) or 'nothing'}")
    for one, peak in against_ss(max(pairs // 2, 3)):
        show(one, GOALS.get(one.name))
        met = _met(peak, PEAK_GOAL)
        print(f"{'peak memory of ours':<52} {peak:.1f} MiB  goal {PEAK_GOAL:g}: {met}")


if __name__ == "__main__":
    main()
