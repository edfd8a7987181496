"""Homes and their janitors: whatever ends first, and however, nothing is left."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from check_pgsock.pgsock.lab import accounts, home, janitor
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.home import Home, homes, sweep
from tests import support
from tests.conftest import Installations
from tests.leftovers import machine_leftovers, namespaces_below, naming
from tests.proving import Proof
from tests.support import wait_until

PREFIX = "pgsock-sweep-"
# Seconds within which nothing may be left.
SOON = 15.0


def start_below(directory: Path, command: str) -> subprocess.Popen[bytes]:
    """A shell's command that works in `directory`."""
    return subprocess.Popen(["sh", "-c", command], cwd=directory, start_new_session=True)


def janitor_of(path: Path) -> int:
    """The pid of the janitor of the home `path`."""
    (pid,) = (pid for pid, words in naming(path) if words[-2:-1] == [str(path)])
    return pid


@contextlib.contextmanager
def another_home(
    code: str = "", base: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a home (below `base`), in which a child works; it runs `code` and waits."""
    program = (
        "import os, subprocess, sys, time\n"
        "from check_pgsock.pgsock.lab.home import Home\n"
        f"with Home({PREFIX!r}) as home:\n"
        "    child = subprocess.Popen(['sleep', '1000'], cwd=home.path, start_new_session=True)\n"
        "    (home.path / 'file').touch()\n"
        f"    {code or 'pass'}\n"
        "    print(home.path, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(support.ROOT),
            "TMPDIR": str(base or tempfile.gettempdir()),
        },
        cwd=tempfile.gettempdir(),
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def is_gone(path: Path) -> bool:
    return not path.exists() and not janitor.working_below(path)


def test_an_ended_home_leaves_nothing() -> None:
    with Home() as one:
        assert one.path.name == f"pgsock-home-{one.name}"
        assert one.path.stat().st_mode & 0o7777 == 0o755
        child = start_below(one.path, "exec sleep 1000")
        stopped = start_below(one.path, "kill -STOP $$")
        (one.path / "file").write_text("text")
    assert (child.wait(1), stopped.wait(1)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert is_gone(one.path)
    assert naming(one.path) == []


def test_a_home_is_left_by_an_exception_as_well() -> None:
    with contextlib.suppress(ZeroDivisionError), Home() as one:
        child = start_below(one.path, "exec sleep 1000")
        raise ZeroDivisionError
    assert child.wait(1) == -signal.SIGKILL
    assert is_gone(one.path)


def test_what_multiplies_and_writes_is_ended() -> None:
    with Home() as one:
        (one.path / "deep").mkdir()
        child = start_below(
            one.path / "deep",
            'n=0; while :; do n=$((n+1)); mkdir "$n"; (cd "$n"; touch x; exec sleep 1000) & '
            "sleep 0.001; done",
        )
        wait_until(lambda: len(janitor.working_below(one.path)) > 20, "many of them")
    assert is_gone(one.path)
    child.wait(1)


def test_who_has_a_home_in_a_home_ends_with_it() -> None:
    with contextlib.ExitStack() as stack:
        with Home() as one:
            inner = stack.enter_context(another_home(base=one.path))
            beside = stack.enter_context(another_home())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tempfile, "tempdir", str(one.path))
                stack.enter_context(Home())  # ours: we are not to end ourselves
            assert inner[1].parent == one.path
        assert inner[0].wait(1) == -signal.SIGKILL
        assert beside[0].poll() is None
        assert is_gone(one.path)
    wait_until(lambda: naming(one.path) == [], "the inner janitors ended", SOON)


def test_a_home_that_vanished_is_no_error() -> None:
    with Home() as one:
        child = start_below(one.path, "exec sleep 1000")
        shutil.rmtree(one.path)
    assert child.wait(1) == -signal.SIGKILL
    with fresh_directory("pgsock-gone-") as path:
        shutil.rmtree(path)


def test_only_sigkill_ends_a_janitor() -> None:
    with Home() as one:
        pid = janitor_of(one.path)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        time.sleep(0.1)
        assert janitor_of(one.path) == pid
        child = start_below(one.path, "exec sleep 1000")
    assert child.wait(1) == -signal.SIGKILL
    assert is_gone(one.path)


def test_without_its_janitor_a_home_clears_itself() -> None:
    with Home() as one:
        child = start_below(one.path, "exec sleep 1000")
        os.kill(janitor_of(one.path), signal.SIGKILL)
    assert child.wait(1) == -signal.SIGKILL
    assert is_gone(one.path)


def test_a_janitor_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    one = Home()
    with pytest.raises(LabError, match=r"^/bin/true does not run .*janitor.py$"):
        one.__enter__()
    assert not one.path.exists()


def test_a_killed_process_leaves_nothing() -> None:
    with another_home() as (process, path):
        process.kill()
        process.wait()
        wait_until(lambda: is_gone(path), "the home cleared", SOON)
        wait_until(lambda: naming(path) == [], "the janitor ended", SOON)


def test_a_forked_child_that_lives_on_keeps_no_janitor_from_his_work() -> None:
    fork = "if not os.fork(): os.chdir('/'); time.sleep(1000)"
    with another_home(code=fork) as (process, path):
        tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def find() -> list[int]:
            children = {int(pid) for pid in tasks.read_text().split()} - {janitor_of(path)}
            return [pid for pid in children if os.readlink(f"/proc/{pid}/cwd") == "/"]

        wait_until(lambda: len(find()) == 1, "the forked child elsewhere")
        (forked,) = find()
        process.kill()
        process.wait()
        try:
            wait_until(lambda: is_gone(path), "the home cleared", SOON)
            os.kill(forked, 0)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_a_forked_child_that_lives_on_delays_no_end() -> None:
    with Home() as one:
        forked = os.fork()
        if not forked:
            time.sleep(1000)
            os._exit(0)
        began = time.monotonic()
    try:
        assert time.monotonic() - began < 5
        assert is_gone(one.path)
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)


def test_a_sweep_clears_what_lost_its_process_and_its_janitor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with another_home() as (process, path), another_home() as (_, used):
        os.kill(janitor_of(path), signal.SIGKILL)
        process.kill()
        process.wait()
        assert homes(PREFIX) == sorted([path, used])
        sweep(PREFIX)
        assert len(janitor.working_below(path)) == 1  # it is new: it may be just made
        monkeypatch.setattr(home, "_NEW", 0.0)
        sweep(PREFIX)
        assert is_gone(path)
        assert len(janitor.working_below(used)) == 1
        assert homes(PREFIX) == [used]


def test_a_sweep_touches_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    support.require("root")
    monkeypatch.setattr(home, "_NEW", 0.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "precious").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to("precious")
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}theirs").mkdir()
    accounts.own(tmp_path / f"{PREFIX}theirs", accounts.account_of("nobody"))
    (tmp_path / f"another-{PREFIX}").mkdir()
    kept = sorted(os.listdir(tmp_path))
    for name in ("notes", "0123abcd"):
        (tmp_path / f"{PREFIX}{name}").mkdir()  # no home: nobody made it one
    kept += [f"{PREFIX}{name}" for name in ("notes", "0123abcd")]
    ours = tmp_path / f"{PREFIX}89abcdef"
    ours.mkdir()
    (ours / ".pgsock-home").touch()
    sweep(PREFIX)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_who_looks_around_from_a_terminal_is_spared() -> None:
    primary, secondary = os.openpty()
    with open(primary, "rb"), open(secondary, "rb") as terminal, Home() as one:
        visitor = subprocess.Popen(
            ["setsid", "--ctty", "sleep", "1000"], stdin=terminal, cwd=one.path
        )
        wait_until(lambda: janitor.working_below(one.path) == [], "on its terminal")
    try:
        assert not one.path.exists()
        assert visitor.poll() is None
    finally:
        visitor.kill()
        visitor.wait()


def test_an_owner_who_is_not_root_removes_what_he_closed() -> None:
    support.require("root")
    support.require("system-python")
    account = accounts.account_of("nobody")
    assert account is not None
    program = (
        "import pathlib\n"
        "from check_pgsock.pgsock.lab.home import Home\n"
        "with Home() as home:\n"
        "    (home.path / 'a' / 'b').mkdir(parents=True)\n"
        "    (home.path / 'a' / 'b' / 'c').touch()\n"
        "    (home.path / 'a' / 'b').chmod(0)\n"
        "    (home.path / 'a').chmod(0o500)\n"
    )
    with fresh_directory("pgsock-closed-") as path:
        accounts.own(path, account)
        env = support.environment(support.readable_tree(), {"TMPDIR": str(path)})
        subprocess.run(
            [support.SYSTEM_PYTHON, "-c", program], check=True, cwd=path, env=env, timeout=SOON,
            user=account.uid, group=account.gid, extra_groups=[],
        )  # fmt: skip
        assert os.listdir(path) == []


@pytest.mark.parametrize("keeps", ["the mapping", "the descriptor"])
def test_posix_segments_of_the_killed_are_removed(keeps: str) -> None:
    segment = Path(f"/dev/shm/PostgreSQL.{random.randrange(2**32)}")
    drop = "os.close(f)" if keeps == "the mapping" else "del m"
    program = (
        "import mmap, os, time\n"
        f"f = os.open({str(segment)!r}, os.O_CREAT | os.O_RDWR)\n"
        "os.ftruncate(f, 4096)\n"
        f"m = mmap.mmap(f, 4096)\n{drop}\n"
        "print(flush=True)\n"
        "time.sleep(1000)\n"
    )
    with Home() as one, subprocess.Popen(
        [sys.executable, "-c", program], cwd=one.path, stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        assert segment.exists()
        assert janitor.kill_below(one.path) == []
        assert not segment.exists()


class Segment:
    """A context manager: a System V segment of this key, attached or not."""

    def __init__(self, key: int, *, attached: bool = False) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.shmat.restype = ctypes.c_void_p
        self._libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        self._libc.shmdt.argtypes = [ctypes.c_void_p]
        self._key = ctypes.c_int32(key).value
        self._attached = attached
        self.id = -1

    def exists(self) -> bool:
        """Whether it is there."""
        return int(self._libc.shmget(self._key, 0, 0)) == self.id

    def __enter__(self) -> Segment:
        self.id = int(self._libc.shmget(self._key, 56, 0o1600))  # IPC_CREAT
        assert self.id >= 0
        if self._attached:
            self._address = self._libc.shmat(self.id, None, 0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._attached:
            self._libc.shmdt(self._address)
        if self.exists():
            self._libc.shmctl(self.id, 0, None)


def test_the_system_v_segment_of_a_killed_postmaster_is_removed() -> None:
    key = random.randrange(2**24, 2**30)
    with contextlib.ExitStack() as stack:
        new = (stack.enter_context(fresh_directory("pgsock-data-")) for _ in range(4))
        written, early, emptied, theirs = new
        keys = (key, *(path.stat().st_ino for path in (early, emptied, theirs)), key + 1)
        segments = [stack.enter_context(Segment(each)) for each in keys]
        lines = ["1", str(written), "0", "5432", "", "", f"{key:9} {segments[0].id:9}", "ready"]
        (written / "postmaster.pid").write_text("\n".join(lines))
        (early / "postmaster.pid").write_text("1\n")
        accounts.own(theirs, accounts.account_of("nobody"))  # where we are root
        for directory in (written, early, emptied, theirs):
            janitor.remove_shared_memory(directory)
        are_kept = [segment.exists() for segment in segments]
        assert are_kept == [False, False, False, os.geteuid() == 0, True]


@pytest.mark.parametrize("seventh", ["{key:9} {id:9}", "{key:9} 7{id}", "7{key} {id}", "x y", ""])
def test_a_segment_that_is_in_use_or_another_is_kept(seventh: str) -> None:
    key = random.randrange(2**24, 2**27)
    matches = seventh.startswith("{key:9} {id")
    with fresh_directory("pgsock-data-") as path, Segment(key, attached=matches) as segment:
        lines = ["1", str(path), "0", "5432", "", "", seventh.format(key=key, id=segment.id)]
        (path / "postmaster.pid").write_text("\n".join(lines))
        janitor.remove_shared_memory(path, 0.1)
        assert segment.exists()


# What a lab does, again and again: a kill at any moment hits some of it.
LAB = """
import os, signal, sys, time
from check_pgsock.pgsock.lab.client_process import ClientProcess
from check_pgsock.pgsock.lab.lab import Lab
while True:
    with Lab(pg_bin=sys.argv[1], on_two_hosts=sys.argv[2] == "two hosts") as lab:
        with ClientProcess(lab, 3, "select pg_sleep(1000)"), lab.connect() as session:
            session.query("create table t as select generate_series(1, 50000)")
            os.kill(lab.postgres.pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(lab.postgres.pid, signal.SIGCONT)
            lab.postgres.restart()
"""
LIFE = 4.0


class Kill(NamedTuple):
    """A lab, and when it is killed."""

    number: int
    moment: float
    hosts: str
    major: int


class Killed(NamedTuple):
    """What was there when it was killed, and the seconds until it was gone (None: it stayed)."""

    processes: int
    seconds: float | None
    left: str


def kill_a_lab(kill: Kill, pg_bin: Path) -> Killed:
    """Start a lab, kill it at its moment, and look what it leaves."""
    # A short name: the path of a Unix socket has its limit.
    directory = Path(tempfile.gettempdir()) / f"k{kill.number}"
    directory.mkdir()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", LAB, str(pg_bin), kill.hosts],
            stderr=errors,
            env={**os.environ, "TMPDIR": str(directory), "PYTHONPATH": str(support.ROOT)},
            cwd=tempfile.gettempdir(),
            start_new_session=True,
        )
        time.sleep(kill.moment)
        namespaces = namespaces_below(directory)
        processes = len(janitor.working_below(directory))
        ended = process.poll()
        process.kill()
        process.wait()
        killed = time.monotonic()
        if ended is not None:
            errors.seek(0)
            return Killed(processes, None, f"it ended by itself: {errors.read().decode()}")
    while True:
        left = [*naming(directory), *janitor.working_below(directory), *os.listdir(directory)]
        left += [f"namespace {each}" for each in namespaces & namespaces_below(None)]
        seconds = time.monotonic() - killed
        if not left:
            directory.rmdir()
            return Killed(processes, seconds, "")
        if seconds > SOON:
            return Killed(processes, None, f"left: {left}")
        time.sleep(0.05)


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.prove)])
def test_a_lab_killed_at_any_moment_leaves_nothing(
    kills: int, installations: Installations, proof: Proof
) -> None:
    support.require("iproute2")
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random_number = random.Random(seed)
    majors = [major for major in support.ALL_MAJORS if support.has(f"postgresql-{major}")]
    hosts = ("one host", "two hosts") if support.has("root") else ("one host",)
    planned = [
        Kill(n, random_number.uniform(0, LIFE), hosts[n % len(hosts)], majors[n % len(majors)])
        for n in range(kills)
    ]
    bins = {major: installations.get(major).directory for major in majors}
    before = machine_leftovers()
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda kill: kill_a_lab(kill, bins[kill.major]), planned))
    left = [f"seed {seed}, {kill}: {one}" for kill, one in zip(planned, done) if one.left]
    for kill, one in zip(planned, done):
        print(kill, one)
    segments = functools.partial(lambda: machine_leftovers() - before)
    with contextlib.suppress(pytest.fail.Exception):
        wait_until(lambda: not segments(), "the segments removed")
    left += sorted(segments())
    slowest = max((one.seconds for one in done if one.seconds is not None), default=0.0)
    busy = sum(one.processes > 0 for one in done)
    proof(
        "labs killed at random moments leave no process, file, segment or namespace",
        f"{kills - len(left)} of {kills} clean, {busy} of them with servers at work, "
        f"{sum(kill.hosts == 'two hosts' for kill in planned)} on two hosts, "
        f"slowest {slowest:.1f} s",
        goal=f"all within {SOON:g} s",
        met=not left,
    )
    assert left == []
