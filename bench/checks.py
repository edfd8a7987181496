"""Compare check_pgsock_saturation with the smallest nagiosplugin check, ss and its peers.

`python -m bench.checks [--json] [PAIRS]`, as root: it makes a network namespace of its own for
100,000 sockets, and starts a throw-away PostgreSQL. What is not installed is left out, by name. The
exit code is 1 where a goal is missed. `make prove` takes it into its table.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.harness import Comparison, compare
from check_pgsock.pgsock.lab.binaries import embedded
from check_pgsock.pgsock.lab.home import Home
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
# What a run of saturation needs nothing of, with a limit that is given, on a TCP port read by
# netlink.
UNNEEDED = (
    "psycopg", "sqlite3", "typing", "dataclasses", "pathlib", "subprocess", "ipaddress", "rich",
    "check_pgsock.host_names", "check_pgsock.recording", "check_pgsock.servers.auto_limit",
    "check_pgsock.sql_limit", "check_pgsock.sockets.proc_net", "check_pgsock.store",
    "check_pgsock.waiting",
)  # fmt: skip


class Measurement(NamedTuple):
    """What was measured, its numbers, the goal ("" without one), and whether that is met."""

    what: str
    measured: str
    goal: str
    met: bool


def check(name: str, *arguments: str) -> list[str]:
    """The command line of a check, from this tree."""
    code = START.format(f"check_pgsock_{name}", name)
    return [PYTHON, "-c", code, *arguments]


def environment() -> dict[str, str]:
    """What all commands run with; byte code is written once, as an installed package has it."""
    return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


def against_peers(pairs: int, directory: Path) -> Iterator[Measurement]:
    """Compare with a listener and 100 connections."""
    env = environment()
    settings = {"max_connections": 200}
    with contextlib.ExitStack() as stack:
        binaries = stack.enter_context(embedded(parent=directory))
        server = stack.enter_context(PostgresServer(binaries, settings=settings, parent=directory))
        for _ in range(100):
            stack.enter_context(server.connect())
        port = str(server.port)
        ours = check("saturation", "-p", port, "--limit", "197")
        auto = check("saturation", "-p", port)
        smallest = [PYTHON, str(ROOT / "bench" / "smallest.py")]
        yield judged(compare("smallest nagiosplugin check", ours, smallest, env, pairs))
        name = "smallest nagiosplugin check (ours with --limit auto)"
        yield judged(compare(name, auto, smallest, env, pairs))
        yield unneeded(port)
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
                yield Measurement(_against(name), "left out: it is not installed", "", True)
                continue
            yield judged(compare(name, ours, command, env, max(pairs // 2, 3)))


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


def against_ss(pairs: int, count: int = SOCKETS) -> Iterator[Measurement]:
    """Compare in a crowded namespace, and measure the peak memory of ours."""
    env = environment()
    with crowd(count) as port:
        for source in ("netlink", "procfs"):
            ours = check("saturation", "-p", str(port), "--limit", "1000000", "--source", source)
            peak = peak_memory(ours, env)
            note = "" if source == "netlink" else " (ours with --source procfs)"
            yield judged(compare(f"ss -Htan{note}", ours, ["ss", "-Htan"], env, pairs))
            yield Measurement(
                f"peak memory with {count} sockets{note}",
                f"{peak:.1f} MiB",
                f"<= {PEAK_GOAL:g} MiB",
                peak <= PEAK_GOAL,
            )


# The kernel counts what a process was before exec, too: start it from something small.
_PEAK = """
import os, sys
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
                         file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, usage = os.wait4(process, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""


def peak_memory(command: Sequence[str], env: Mapping[str, str]) -> float:
    """The peak of a command's resident memory in MiB."""
    small = [PYTHON, "-I", "-S", "-c", _PEAK, *command]
    done = subprocess.run(small, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) / 1024


def judged(one: Comparison) -> Measurement:
    """A comparison and its goal."""
    goal = GOALS.get(one.name)
    return Measurement(
        _against(one.name),
        f"{one.wall_ratio:.2f} ({one.first.wall * 1000:.1f} / {one.second.wall * 1000:.1f} ms), "
        f"processor {one.cpu_ratio:.2f}",
        "" if goal is None else f"<= {goal:.2f}",
        goal is None or one.wall_ratio <= goal,
    )


def _against(name: str) -> str:
    return f"time against {name}"


def imported(arguments: Sequence[str]) -> list[str]:
    """Modules that a run of saturation imports although it needs none of them."""
    code = (
        "import atexit, os, sys\n"
        "real = os._exit\n"
        "def leave(code):\n"
        f"    found = [one for one in {UNNEEDED} if one in sys.modules]\n"
        "    os.write(1, (' '.join(found) + chr(10)).encode())\n"
        "    real(code)\n"
        "os._exit = leave\n" + START.format("check_pgsock_saturation", "saturation")
    )
    done = subprocess.run(
        [PYTHON, "-c", code, *arguments], env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.splitlines()[-1].split()


def unneeded(port: str) -> Measurement:
    """What a run of saturation imports without need."""
    found = imported(["-p", port, "--limit", "197"])
    return Measurement("imported without need", " ".join(found) or "nothing", "nothing", not found)


def measure(pairs: int) -> Iterator[Measurement]:
    """Measure everything."""
    with Home("pgsock-bench-") as home:
        # What it forks works there, too: a janitor ends it when this process is killed.
        os.chdir(home.path)
        try:
            yield from against_peers(pairs, home.path)
            yield from against_ss(max(pairs // 2, 3))
        finally:
            os.chdir("/")


def main() -> int:
    """Measure and print line by line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("pairs", nargs="?", type=int, default=15, help="default: 15")
    options = parser.parse_args()
    if not options.json:
        print(f"{options.pairs} pairs each, ours / the other; {os.uname().release}, "
              f"{os.cpu_count()} cores")  # fmt: skip
    code = 0
    for one in measure(options.pairs):
        if options.json:
            print(json.dumps(one._asdict()), flush=True)
        else:
            verdict = f"  goal {one.goal}: {'met' if one.met else 'MISSED'}" if one.goal else ""
            print(f"{one.what:<66} {one.measured}{verdict}", flush=True)
        code |= not one.met
    return code


if __name__ == "__main__":
    sys.exit(main())
