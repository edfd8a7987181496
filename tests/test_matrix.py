"""The executables as pip installs them, on each Python and with the oldest and newest libraries.

`make test` takes the oldest libraries on Python 3.9, the distribution's own packages, and the
newest on 3.11 and 3.13; `make prove` the other combinations.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import ctypes.util
import functools
import itertools
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from check_pgsock import __version__
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import OpenSessions, Servers
from tests.support import Completed

OLDEST = {"nagiosplugin": "1.3.2", "psycopg": "3.1.7"}  # what setup.cfg names
NEWEST = "newest"
DEBIAN = "debian"  # the distribution's package


class Combination(NamedTuple):
    """An interpreter and the versions of the libraries with it."""

    python: str
    nagiosplugin: str
    psycopg: str

    def __str__(self) -> str:
        return f"py{self.python}-nagiosplugin-{self.nagiosplugin}-psycopg-{self.psycopg}"


def combinations() -> Iterator[tuple[Combination, bool]]:
    """Every combination, and whether `make test` takes it."""
    yield Combination("3", DEBIAN, DEBIAN), True
    nagiosplugins, psycopgs = ((version, NEWEST) for version in OLDEST.values())
    for each in itertools.product(support.PYTHONS, nagiosplugins, psycopgs):
        python, *versions = each
        oldest = python == support.PYTHONS[0]
        usual = list(OLDEST.values()) if oldest else [NEWEST, NEWEST]
        yield Combination(*each), versions == usual


def executables() -> list[str]:
    """The checks among the console_scripts of setup.cfg, by name."""
    setup = configparser.ConfigParser()
    setup.read(support.ROOT / "setup.cfg", encoding="utf-8")
    scripts = setup["options.entry_points"]["console_scripts"]
    return re.findall(r"^check_pgsock_(\w+) *=", scripts, re.MULTILINE)


class Installation:
    """A virtual environment with the project in it."""

    def __init__(self, directory: Path, combination: Combination) -> None:
        self.directory = directory
        self.combination = combination

    def program(self, name: str) -> str:
        """The path of a program of the environment."""
        return str(self.directory / "bin" / name)

    def start(self, check: str, *arguments: str) -> subprocess.Popen[str]:
        """Start the installed executable of a check."""
        return subprocess.Popen(
            [self.program(f"check_pgsock_{check}"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_ENVIRONMENT,
            cwd="/",
        )

    def run(self, check: str, *arguments: str) -> Completed:
        """Run the installed executable of a check to its end."""
        with self.start(check, *arguments) as process:
            out, err = process.communicate(timeout=60)
        return Completed(process.returncode, out, err)

    def evaluate(self, code: str) -> str:
        """What Python `code` prints in the environment."""
        command = [self.program("python"), "-c", code]
        return subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT, cwd="/", check=True
        ).stdout.strip()


_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class Installations:
    """The virtual environments of this run, each made when it is first asked for."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._made: dict[Combination, Installation] = {}

    def get(self, combination: Combination) -> Installation:
        """The environment of `combination`; skips the test where this machine cannot have it."""
        if combination not in self._made:
            python = _interpreter(combination)
            directory = fresh_directory("pgsock-venv-", executable=True)
            path = self._stack.enter_context(directory)
            made = Installation(path, combination)
            self._install(made, python)
            self._made[combination] = made
        return self._made[combination]

    def _install(self, one: Installation, python: str) -> None:
        combination = one.combination
        options = ["--system-site-packages"] if combination.psycopg == DEBIAN else []
        _run(python, "-m", "venv", *options, str(one.directory))
        extras = ["test", *(["binary"] if combination.psycopg == NEWEST else [])]
        wanted = [f"{self._sources}[{','.join(extras)}]"]
        for name, oldest in OLDEST.items():
            if getattr(combination, name) == oldest:
                wanted.append(f"{name}=={oldest}")
        pip = [one.program("python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _run(*pip, "install", "--no-compile", *wanted)

    @functools.cached_property
    def _sources(self) -> Path:
        """A copy of what pip needs: it would build in the tree itself."""
        path = self._stack.enter_context(fresh_directory("pgsock-project-"))
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(support.ROOT / name, path)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(support.ROOT / "check_pgsock", path / "check_pgsock", ignore=ignored)
        return path


def _interpreter(combination: Combination) -> str:
    if combination.psycopg == DEBIAN:
        support.require("system-python")
        return support.SYSTEM_PYTHON
    support.require(f"python{combination.python}")
    if combination.psycopg != NEWEST and ctypes.util.find_library("pq") is None:
        pytest.skip("this machine has no libpq5")
    found = support.interpreter(combination.python)
    assert found is not None
    return found


def _run(*command: str) -> None:
    unset = ("PYTHONPATH", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def environments() -> Iterator[Installations]:
    """The virtual environments, removed after the last test."""
    with contextlib.ExitStack() as stack:
        yield Installations(stack)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(one, id=str(one), marks=() if usual else pytest.mark.prove)
        for one, usual in combinations()
    ],
)
def installation(request: pytest.FixtureRequest, environments: Installations) -> Installation:
    """The project in an environment of each combination."""
    return environments.get(request.param)


@pytest.fixture
def server(servers: Servers) -> PostgresServer:
    """A shared PostgreSQL, the newest here."""
    return servers.get(support.newest_major())


def test_the_environment_is_what_it_is_called(installation: Installation) -> None:
    evaluate = installation.evaluate
    python, nagiosplugin, psycopg = installation.combination
    version = evaluate("import sys; print('%d.%d' % sys.version_info[:2])")
    if psycopg == DEBIAN:
        places = evaluate(
            "import nagiosplugin, psycopg, rich; "
            "print(nagiosplugin.__file__, psycopg.__file__, rich.__file__)"
        )
        assert str(installation.directory) not in places
    else:
        assert version == python
        ask = "from importlib.metadata import version; print(version('{}'))"
        for name, wanted in (("nagiosplugin", nagiosplugin), ("psycopg", psycopg)):
            found = evaluate(ask.format(name))
            assert (found == OLDEST[name]) == (wanted != NEWEST)
        kind = evaluate("from psycopg import pq; print(pq.__impl__)")
        assert kind == ("binary" if psycopg == NEWEST else "python")
    assert evaluate("import check_pgsock; print(check_pgsock.__file__)").startswith(
        str(installation.directory)
    )


@pytest.mark.parametrize("check", executables())
def test_version_and_usage_error(installation: Installation, check: str) -> None:
    expected = Completed(3, f"check_pgsock_{check} {__version__}\n", "")
    assert installation.run(check, "-V") == expected
    sentence = f"unknown option --nonsense; see check_pgsock_{check} --help"
    expected = Completed(3, f"PGSOCK_{check.upper()} UNKNOWN - {sentence}\n", "")
    assert installation.run(check, "--nonsense") == expected
    # Its layout is that Python's argparse's.
    done = installation.run(check, "--help")
    assert (done.code, done.err) == (3, "")
    assert done.out.startswith(f"usage: check_pgsock_{check} ")


def test_saturation(
    installation: Installation, server: PostgresServer, sessions: OpenSessions
) -> None:
    sessions(server, 5)
    port = str(server.port)
    rest = (
        "slots_used=5;13;15;0;17 limit=17;;;0 utilization=29.4%;;;0 free=12;;;0;17 "
        "close_wait=0;;;0 syn_recv=0;;;0 not_accepted=0;;;0\n"
    )
    start = f"5 of 17 connections (29 %) on port {port}"
    who = support.who(5, sees_processes=True)
    for source in ("netlink", "procfs"):
        run = functools.partial(installation.run, "saturation", "-p", port, "--source", source)
        assert run() == (
            0, f"PGSOCK_SATURATION OK - {start} | established=5;13;15;0;17 {rest}", "",
        )  # fmt: skip
        assert run("-w", "20%") == (
            1,
            f"PGSOCK_SATURATION WARNING - {start} (established outside range 0:3) "
            f"| established=5;3;15;0;17 {rest}{who}",
            "",
        )
        assert run("-c", "4") == (
            2,
            f"PGSOCK_SATURATION CRITICAL - {start} (established outside range 0:4) "
            f"| established=5;13;4;0;17 {rest}{who}",
            "",
        )
        assert run("-w", "5:1") == (
            3,
            "PGSOCK_SATURATION UNKNOWN - argument -w/--warning: '5:1' starts above its end; see "
            "check_pgsock_saturation --help\n",
            "",
        )


@pytest.fixture
def unclosed() -> Iterator[int]:
    """The port of a listener that closed its 3 connections; the other ends did not."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port: int = listener.getsockname()[1]
        for _ in range(3):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            listener.accept()[0].close()
            ended = functools.partial(_in_close_wait, client.getsockname()[1])
            support.wait_until(ended, "closed by the listener")
        yield port


def _in_close_wait(port: int) -> bool:
    return support.tcp_states(port)["CLOSE_WAIT"] == 1


def test_close_wait(installation: Installation, unclosed: int) -> None:
    arguments = ("-p", str(unclosed), "--leg", "client", "--settle", "0.1")
    stay = f"unchanged for 0.1 s to port {unclosed}"
    for source in ("netlink", "procfs"):

        def run(*more: str, source: str = source) -> Completed:
            done = installation.run("close_wait", *arguments, "--source", source, *more)
            return done._replace(out=re.sub(r"(oldest=|least )[\d.]+ ?s", r"\1#", done.out))

        # procfs does not tell for how long.
        oldest = " oldest=#;;;0" if source == "netlink" else ""
        longest = "the longest for at least #\n" if source == "netlink" else ""
        assert run() == (
            0,
            f"PGSOCK_CLOSE_WAIT OK - 3 connections in CLOSE_WAIT to port {unclosed} "
            f"| close_wait=3;5;20;0 established=0;;;0{oldest}\n",
            "",
        )
        for option, bounds, state, code in (
            ("-w", "2;20", "WARNING", 1),
            ("-c", "5;2", "CRITICAL", 2),
        ):
            assert run(option, "2") == (
                code,
                f"PGSOCK_CLOSE_WAIT {state} - 3 connections in CLOSE_WAIT, {stay} "
                f"(close_wait outside range 0:2) | close_wait=3;{bounds};0 established=0;;;0"
                f"{oldest}\n"
                + support.who(3, "in CLOSE_WAIT", user=None, activity=None, sees_processes=True)
                + longest
                + f"at fault: the program on this host ({support.own_command()}), which has not "
                "closed what the server closed (3 not looked at since): let its pool validate "
                "connections, or limit their idle time\n",
                "",
            )


@contextlib.contextmanager
def churn(port: int) -> Iterator[None]:
    """A client that connects, sends and closes, 50 times a second at most."""
    stop = threading.Event()

    def connect() -> None:
        while not stop.wait(0.02):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.send(b"data")

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def polite() -> Iterator[int]:
    """The port of a server that closes a connection when its client did."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]

        def serve() -> None:
            while True:
                client, _ = listener.accept()
                with client:
                    last = client.recv(100) == b"last"
                    while client.recv(100):
                        pass
                if last:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        yield port
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.send(b"last")
        thread.join()


def test_thrashing(installation: Installation, polite: int) -> None:
    arguments = ("-p", str(polite), "--window", "0.5")
    run = functools.partial(installation.run, "thrashing", *arguments)
    rest = "established=0;;;0 time_wait=0;;;0\n"
    rates = "opened_rate=0.0;;;0 cycle_rate=0.0;;;0"
    quiet = f"0.0 connections closed per second (0.0 opened) on port {polite}"
    assert run() == (
        0,
        f"PGSOCK_THRASHING OK - {quiet} | closed_rate=0.0;10;50;0 {rates} probe_rate=0.0;;;0 "
        f"{rest}",
        "",
    )
    bound = (
        "a lower bound, from snapshots: connections opened and closed between two of them are "
        "not seen (procfs has no events)\n"
    )
    assert run("--source", "procfs", "-w", "1:") == (
        1,
        f"PGSOCK_THRASHING WARNING - at least {quiet} (closed_rate outside range 1:) "
        f"| closed_rate=0.0;1:;50;0 {rates} {rest}{bound}",
        "",
    )
    with churn(polite):
        done = run("-w", "1", "-c", "5")
    number = r"(?<![\d.])\d+\.\d+(?![\d.])|(?<=established=)\d|\d+(?= closed$)"
    out = re.sub(number, "N", done.out, flags=re.MULTILINE)
    assert (done.code, out, done.err) == (
        2,
        f"PGSOCK_THRASHING CRITICAL - N connections closed per second (N opened) on port {polite} "
        "(closed_rate outside range 0:5) | closed_rate=N;1;5;0 opened_rate=N;;;0 "
        "cycle_rate=N;;;0 probe_rate=N;;;0 established=N;;;0 time_wait=0;;;0\n"
        "peer 127.0.0.1: N closed\n",
        "",
    )


def test_pool_size(installation: Installation, server: PostgresServer) -> None:
    """The line is what the tree's own says with the libraries of this run, but for the numbers."""
    if server.execute(_NEVER_RESET) == [("t",)]:
        server.execute("SELECT pg_stat_reset()")
        server.execute("SELECT pg_sleep(2)")  # something to judge, over a time that is known
    here = ("--dsn", server.dsn(), "--cores", "1", "--since", "1")
    for arguments, code in (
        ((*here, "--min-busy", "0", "--pool-size", "1"), 0),
        ((*here, "--min-busy", "0", "--pool-size", "1000000000"), 1),
        ((*here, "--min-busy", "0", "--pool-size", "1000000000", "-c", "100%"), 2),
        ((*here, "--min-busy", "1000", "--pool-size", "1"), 0),
        (("--dsn", f"{server.dsn()} password=secret"), 3),
        (("--dsn", "host=127.0.0.1 port=1 dbname=postgres"), 3),
    ):
        expected = support.run("pool_size", *arguments)
        done = installation.run("pool_size", *arguments)
        assert (done.code, _varying(done.out), done.err) == (code, _varying(expected.out), "")
        assert done.out.startswith(f"PGSOCK_POOL_SIZE {_STATES[code]} - ")


_STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_NEVER_RESET = "SELECT stats_reset IS NULL FROM pg_stat_database WHERE datname = current_database()"


def _varying(output: str) -> str:
    """The first line without its numbers, and without what psycopg 3.1.7 drops of libpq's words."""
    line = output.partition("\n")[0]
    line = re.sub(r'connection to server at "[^"]*", port \d+ failed: ', "", line)
    return re.sub(r"\d+(\.\d+)?", "N", line)


def imports(path: Path) -> set[str]:
    """The modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found.update(f"{node.module}.{one.name}" for one in node.names)
    return found


_LAB = "check_pgsock.pgsock.lab"


def is_unit(path: Path) -> bool:
    """Whether the tests of a file are without I/O: what it imports starts and connects nothing."""
    found = imports(path)
    if found & {"subprocess", "socket"} or any(one.startswith(_LAB) for one in found):
        return False
    own = (support.ROOT / f"{one.replace('.', '/')}.py" for one in found)
    return all(is_unit(one) for one in own if one.parent == path.parent and one.exists())


def test_unit_tests(installation: Installation) -> None:
    units = [p.name for p in sorted(Path(__file__).parent.glob("test_*.py")) if is_unit(p)]
    assert {"test_inet_diag.py", "test_proc_net.py", "test_thresholds.py"} <= set(units)
    with fresh_directory("pgsock-tests-") as path:
        # Without the tree beside them they test what is installed.
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(support.ROOT / "tests", path / "tests", ignore=ignored)
        shutil.copy(support.ROOT / "pyproject.toml", path)
        python, options = installation.program("python"), ("-p", "no:cacheprovider", "--no-header")
        done = subprocess.run(
            [python, "-m", "pytest", "-q", *options, *(f"tests/{name}" for name in units)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_ENVIRONMENT,
            cwd=path,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout
