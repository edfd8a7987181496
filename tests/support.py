"""What the tests share: checks as subprocesses, what this machine lacks, waiting, counting."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from check_pgsock.pgsock.lab import accounts, binaries, pgbouncer
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.home import Home, sweep
from check_pgsock.pgsock.lab.hosts import LOCAL, Host

ROOT = Path(__file__).resolve().parent.parent
# The distribution's own Python: the one that an unprivileged user can always run.
SYSTEM_PYTHON = "/usr/bin/python3"
PYTHONS = ("3.9", "3.11", "3.13")
# `make test` takes the distribution's and the newest; `make prove` all.
SOME_MAJORS = (15, 18)
ALL_MAJORS = (14, 15, 16, 17, 18)
HOME_PREFIX = "pgsock-test-"

_cleanup = contextlib.ExitStack()


def enter_home() -> None:
    """Let everything temporary of this process and its children lie in a directory that is
    removed when this process ends, with what works in it, also after SIGKILL.
    """
    sweep(HOME_PREFIX)
    home = _cleanup.enter_context(Home(HOME_PREFIX))
    patch = _cleanup.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("TMPDIR", str(home.path))
    patch.setattr(tempfile, "tempdir", str(home.path))


def clean_up() -> None:
    """Remove what was made for the whole session; called when it ends."""
    readable_tree.cache_clear()
    _cleanup.close()


class Completed(NamedTuple):
    """What a run of a check left: exit code, whole standard output, whole standard error."""

    code: int
    out: str
    err: str


def command(check: str, *args: str, python: str = sys.executable) -> list[str]:
    """The command line of `check` (`saturation` or `check_pgsock_saturation`), or of `pgsock`."""
    name = check.removeprefix("check_pgsock_")
    program, module = f"check_pgsock_{name}", f"checks.{name}"
    if check == "pgsock":
        program, module = check, "pgsock.main"
    code = (
        f"import sys; sys.argv[0] = '{program}'; "
        f"from check_pgsock.{module} import main; sys.exit(main())"
    )
    return [python, "-c", code, *args]


def environment(tree: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean environment for a check from the source `tree`."""
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "error",
        **(extra or {}),
    }


def run(
    check: str,
    *args: str,
    user: str | None = None,
    timeout: float = 30,
    env: Mapping[str, str] | None = None,
    python: str | None = None,
    on: Host = LOCAL,
    stdin: str = "",
) -> Completed:
    """Run a check, or `pgsock`, to its end, as `user` where we are root, and return all it left.

    As another user it is the system's Python (or `python`) with a copy of the sources that user
    can read; we need not be root: then we are unprivileged already. `timeout` in seconds. It works
    where the janitor of this session finds it.
    """
    account = None if user is None else accounts.account_of(user)
    if account is None:
        if python is None and user is not None and has("system-python"):
            python = SYSTEM_PYTHON
        argv, tree = command(check, *args, python=python or sys.executable), ROOT
    else:
        if python is None:
            require("system-python")
        argv, tree = command(check, *args, python=python or SYSTEM_PYTHON), readable_tree()
    argv = on.command(argv, account)
    if on.switches_user:
        account = None
    done = subprocess.run(
        argv,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(tree, env),
        cwd=tempfile.gettempdir(),
        start_new_session=True,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
        check=False,
    )
    return Completed(done.returncode, done.stdout, done.stderr)


def uncounted(why: str, over: str = "Unix sockets", remedy: str = "") -> str:
    """The note of saturation where the slots in use are not known; by default that of a port."""
    if not remedy:
        remedy = "run the check as root or as the server's user"
        if over == "Unix sockets":
            remedy += ", or add the server's Unix sockets with --socket to count at least these"
    return (
        f"not counted: sessions over {over}, and those whose client is gone, which hold connection "
        f"slots as well ({why}); {remedy}\n"
    )


def who(
    count: int,
    noun: str = "established",
    *,
    peer: str = "127.0.0.1",
    user: str | None = "postgres",
    activity: str | None = "idle",
    sees_processes: bool = False,
) -> str:
    """The lines of a check on who holds `count` connections, all of one kind: a PostgreSQL
    server's, or with `user` None another's; where it `sees_processes`, those of this process.
    """
    lines = [f"peer {peer}: {count} {noun}"]
    if user is not None:
        lines += [f"user {user}: {count} {noun}", f"database postgres: {count} {noun}"]
    if sees_processes:
        lines.append(f"process {own_command()}: {count} {noun}")
    if activity is not None:
        lines.append(f"activity: {count} {activity}")
    return "".join(f"{line}\n" for line in lines)


def own_command() -> str:
    """What this process is called (task comm)."""
    return Path("/proc/self/comm").read_text(encoding="utf-8").strip()


@functools.cache
def readable_tree() -> Path:
    """A copy of the package that every user can read, compiled for the system's Python."""
    tree = _cleanup.enter_context(fresh_directory("pgsock-sources-"))
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "check_pgsock", tree / "check_pgsock", ignore=ignored)
    for parent, _, names in os.walk(tree):
        os.chmod(parent, 0o755)
        for name in names:
            os.chmod(os.path.join(parent, name), 0o644)
    compile_all = [SYSTEM_PYTHON, "-m", "compileall", "-q", str(tree)]
    subprocess.run(compile_all, check=False, stdout=subprocess.DEVNULL)
    return tree


@functools.cache
def interpreter(version: str) -> str | None:
    """An interpreter of this version ("3.9") that runs, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [shutil.which(f"python{version}"), SYSTEM_PYTHON, sys.executable]
    candidates += [str(p) for p in pyenv.glob(f"versions/{version}.*/bin/python{version}")]
    wanted = version.replace(".", ", ")
    code = f"import sys; sys.exit(sys.version_info[:2] != ({wanted}))"
    for path in candidates:
        # It has to run: pyenv leaves shims of versions that do not.
        if path is not None and _answers(path, code):
            return path
    return None


@functools.cache
def postgres_directories() -> dict[int, Path]:
    """Bin directories by major: the distribution's, and those of PGSOCK_TEST_PG_BINS (`:`)."""
    named = [Path(p) for p in os.environ.get("PGSOCK_TEST_PG_BINS", "").split(":") if p]
    found: dict[int, Path] = {}
    for path in [*named, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]:
        with contextlib.suppress(LabError):
            found.setdefault(binaries.major_of(path), path)
    return found


@functools.cache
def embedded_majors() -> tuple[int, ...]:
    """The majors in the embedded wheel."""
    return tuple(sorted(binaries.embedded_installations()))


def newest_major() -> int:
    """The newest PostgreSQL here: 18 with the embedded wheel (16 with that of Python 3.9)."""
    return max((*postgres_directories(), *embedded_majors()), default=18)


@functools.cache
def has(name: str) -> bool:
    """Whether this machine has what `name` names: one of NAMES, or `postgresql-N`."""
    if name.startswith("postgresql-"):
        major = int(name.partition("-")[2])
        return major in postgres_directories() or major in embedded_majors()
    return PROBES[name]()


def missing() -> list[str]:
    """The names of what this machine lacks."""
    return [name for name in NAMES if not has(name)]


def require(name: str) -> None:
    """Skip the test, by that name, where this machine lacks it."""
    if not has(name):
        pytest.skip(f"this machine has no {name}")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    """Wait until `condition` holds; fail the test, naming `what`, when it does not."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            pytest.fail(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def tcp_states(port: int, remote_ports: Iterable[int] | None = None) -> Counter[str]:
    """Sockets whose local port is `port` (and whose peer's is among `remote_ports`), by state.

    Read from /proc/net with nothing of the package; states in the kernel's spelling.
    """
    wanted = None if remote_ports is None else set(remote_ports)
    # By its ends and inode: while others come and go the kernel may list a socket twice.
    states: dict[tuple[str, str, str], str] = {}
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}", encoding="ascii") as stream:
            for line in stream.readlines()[1:]:
                _, local, remote, state, _, _, _, _, _, inode = line.split()[:10]
                peer = int(remote.rpartition(":")[2], 16)
                if int(local.rpartition(":")[2], 16) == port and (wanted is None or peer in wanted):
                    states[local, remote, inode] = _STATES[int(state, 16)]
    return Counter(states.values())


# include/net/tcp_states.h
_STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "NEW_SYN_RECV",
}


def _answers(python: str, code: str) -> bool:
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, check=False, timeout=20)
    except OSError:
        return False
    return done.returncode == 0


PROBES: dict[str, Callable[[], bool]] = {
    **{f"python{v}": functools.partial(lambda v: interpreter(v) is not None, v) for v in PYTHONS},
    "embedded-wheel": lambda: bool(embedded_majors()),
    "pgbouncer": lambda: os.access(pgbouncer.EXECUTABLE, os.X_OK),
    "icinga2": lambda: shutil.which("icinga2", path="/usr/sbin:/usr/bin") is not None,
    "nrpe": lambda: os.access("/usr/sbin/nrpe", os.X_OK),
    "check_nrpe": lambda: os.access("/usr/lib/nagios/plugins/check_nrpe", os.X_OK),
    "iproute2": lambda: shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin") is not None,
    "system-python": lambda: _answers(SYSTEM_PYTHON, "import nagiosplugin, psycopg"),
    "root": lambda: os.geteuid() == 0,
}
NAMES = ("postgresql-15", "postgresql-18", *PROBES)
