"""The embedded store on real directories: what it keeps, what it refuses, what it survives."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import StateError
from check_pgsock.state_directory import find_directory, user_name
from check_pgsock.store import Store, make_key
from tests import support

KEY = make_key("test", "key")
ME = user_name(os.geteuid())


def open_store(directory: Path | str, seconds: float = 5.0) -> Store:
    store = Store.open(str(directory), Deadline(seconds))
    assert store is not None
    return store


def data(store: Store, key: str = KEY) -> list[object]:
    return [one.data for one in store.samples(key)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that the store trusts."""
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    return made


def test_what_is_committed_is_there_for_the_next_run(directory: Path) -> None:
    store = open_store(directory)
    assert store.samples(KEY) == []
    store.commit({KEY: {"a": 1.5, "b": None, "c": "ä|"}, "other": [1]}, 1000.0, 60)
    store.close()
    again = open_store(directory)
    ((at, kept),) = [(one.at, one.data) for one in again.samples(KEY)]
    assert (at, kept) == (1000.0, {"a": 1.5, "b": None, "c": "ä|"})
    assert data(again, "other") == [[1]]
    again.close()
    assert (directory / "checks.sqlite").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(directory)) == ["checks.sqlite"]


def test_samples_are_pruned_but_for_the_last_before(directory: Path) -> None:
    store = open_store(directory)
    for at in (0, 10, 20, 100, 110):
        store.commit({KEY: at}, float(at), 15)
    # Of those older than 95 the newest stays, as the start of the next window.
    assert data(store) == [20, 100, 110]
    store.commit({"new": 1}, 41 * 86400.0, 15)
    assert data(store) == []
    assert data(store, "new") == [1]
    store.close()


def test_order_is_that_of_commits_and_a_step_back_drops_the_future(directory: Path) -> None:
    store = open_store(directory)
    store.commit({KEY: "a"}, 5000.0, 600)
    store.commit({KEY: "b"}, 4990.0, 600)  # a concurrent run
    assert data(store) == ["a", "b"]
    store.commit({KEY: "c"}, 1000.0, 600)
    assert data(store) == ["c"]
    store.close()


@pytest.mark.parametrize("name", ["check_pgsok", "check_pgsok/", "no/parent"])
def test_a_named_directory_is_never_made(name: str, tmp_path: Path) -> None:
    """A mistyped one would start a history of its own, in silence."""
    with pytest.raises(StateError) as raised:
        open_store(f"{tmp_path}/{name}")
    assert str(raised.value) == (
        f"the state directory {tmp_path}/{name} is not there; make it, owned by {ME}, mode 0700, "
        "or name another with --state-dir"
    )
    assert os.listdir(tmp_path) == []


def link(path: Path) -> str:
    (path.parent / "real").mkdir(mode=0o700)
    path.symlink_to(path.parent / "real")
    return "is a symbolic link; name the directory itself with --state-dir"


def file(path: Path) -> str:
    path.touch()
    return "is no directory; name another with --state-dir"


def world_writable(path: Path) -> str:
    path.mkdir()
    path.chmod(0o777)
    return "may be written by others (mode 0777); take that away with chmod go-w"


def group_writable(path: Path) -> str:
    path.mkdir()
    path.chmod(0o770)
    return "may be written by others (mode 0770); take that away with chmod go-w"


def foreign(path: Path) -> str:
    support.require("root")
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)
    owner = user_name(65534)
    return f"belongs to {owner}; name one of {ME} with --state-dir, or change its owner"


@pytest.mark.parametrize("make", [link, file, world_writable, group_writable, foreign])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_directory_that_cannot_be_trusted(
    make: Callable[[Path], str], slash: str, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    reason = make(path)
    with pytest.raises(StateError) as raised:
        open_store(f"{path}{slash}")
    assert str(raised.value) == f"the state directory {path}{slash} {reason}"
    assert not (tmp_path / "real" / "checks.sqlite").exists()


def test_a_file_that_cannot_be_trusted(directory: Path, tmp_path: Path) -> None:
    remedy = "remove it, or name another --state-dir"
    path = directory / "checks.sqlite"
    for target in (tmp_path / "there", tmp_path / "missing"):
        if target.name == "there":
            target.write_text("precious")
        path.symlink_to(target)
        with pytest.raises(StateError) as raised:
            open_store(directory)
        assert str(raised.value) == f"{path} is a symbolic link; {remedy}"
        path.unlink()
    assert (tmp_path / "there").read_text() == "precious"
    assert not (tmp_path / "missing").exists()
    os.link(tmp_path / "there", path)
    with pytest.raises(StateError, match="is not a file of its own"):
        open_store(directory)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StateError, match="is not a file of its own"):
        open_store(directory)
    path.unlink()
    path.touch()
    path.chmod(0o666)
    with pytest.raises(StateError) as raised:
        open_store(directory)
    assert str(raised.value) == f"{path} may be written by others (mode 0666); {remedy}"
    support.require("root")
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(StateError) as raised:
        open_store(directory)
    assert str(raised.value) == f"{path} belongs to {user_name(65534)}; {remedy}"


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database, and long enough to have a header" * 20)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:100] + b"\xff" * (len(raw) - 100))


def other_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 77")
    connection.close()


def no_table(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE sample")
    connection.close()


def bad_text(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sample SET data = CAST(x'7b80' AS TEXT)")
    connection.close()


DAMAGES = [garbage, truncated, overwritten, other_version, no_table, bad_text]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_once(damage: Callable[[Path], None], directory: Path) -> None:
    path = directory / "checks.sqlite"
    for _ in range(2):  # the second replaces what the first set aside
        store = open_store(directory)
        store.commit({KEY: {"n": 1}}, 1000.0, 60)
        store.close()
        damage(path)
        broken = path.read_bytes()
        with pytest.raises(StateError) as raised:
            data(open_store(directory))
        assert str(raised.value).startswith(f"{path} is damaged (")
        assert str(raised.value).endswith(
            ") and was set aside as checks.sqlite.damaged; the next run starts anew"
        )
        assert (directory / "checks.sqlite.damaged").read_bytes() == broken
        fresh = open_store(directory)
        assert data(fresh) == []
        fresh.close()
    assert sorted(os.listdir(directory)) == ["checks.sqlite", "checks.sqlite.damaged"]


def test_the_journal_of_a_damaged_file_goes_with_it(directory: Path) -> None:
    garbage(directory / "checks.sqlite")
    (directory / "checks.sqlite").chmod(0o600)
    (directory / "checks.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" * 100)
    with pytest.raises(StateError, match="set aside"):
        open_store(directory)
    assert not (directory / "checks.sqlite-journal").exists()


def test_only_the_damaged_file_is_set_aside(directory: Path) -> None:
    """A run that comes late does not take away what another made anew meanwhile."""
    path = directory / "checks.sqlite"
    late = open_store(directory)
    late.commit({KEY: 1}, 1000.0, 60)
    path.rename(directory / "checks.sqlite.damaged")
    new = open_store(directory)
    new.commit({KEY: 2}, 1000.0, 60)
    late._set_aside()
    assert data(new) == [2]
    assert path.exists()
    late.close()
    new.close()


def test_a_lock_is_waited_for_within_the_deadline(directory: Path) -> None:
    path = directory / "checks.sqlite"
    open_store(directory).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateError) as raised:
        open_store(directory, seconds=0.3)
    assert str(raised.value) == (
        f"{path} cannot be used: database is locked; see to the file, or name another --state-dir"
    )
    holder.execute("ROLLBACK")
    holder.close()
    open_store(directory).close()


WRITER = """
import sys
from check_pgsock.deadline import Deadline
from check_pgsock.store import Store
for number in range(int(sys.argv[2])):
    store = Store.open(sys.argv[1], Deadline(30))
    store.samples(sys.argv[3])
    store.commit({sys.argv[3]: number, "common": number}, 1000.0 + number, 1e6)
    store.close()
    print(number, flush=True)
"""


def writer(directory: Path, count: int, key: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(count), key],
        env=support.environment(support.ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_concurrent_runs_lose_nothing(directory: Path) -> None:
    """From the making of the file on."""
    running = [writer(directory, 12, f"key{number}") for number in range(5)]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out.split() == [str(number) for number in range(12)]
    store = open_store(directory)
    for number in range(5):
        assert data(store, f"key{number}") == list(range(12))
    assert len(data(store, "common")) == 60
    store.close()


def test_a_killed_run_loses_nothing(directory: Path) -> None:
    committed = -1
    for _ in range(8):
        process = writer(directory, 1000, "killed")
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[-1] == "4\n"
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()  # communicate() would leave out what readline() read ahead
        process.communicate()
        committed += 5 + len(rest.splitlines())
        store = open_store(directory)
        found = len(data(store, "killed"))
        store.close()
        # The last commit may be done and not yet printed.
        assert committed <= found - 1 <= committed + 1
        committed = found - 1


def find(system: Path, environment: dict[str, str]) -> str | None:
    return find_directory(None, environment, str(system))


def test_default_directories(tmp_path: Path) -> None:
    system, home, xdg = tmp_path / "system", tmp_path / "home", tmp_path / "xdg"
    home.mkdir(mode=0o700)
    xdg.mkdir(mode=0o700)
    everything = {"HOME": str(home), "XDG_STATE_HOME": str(xdg)}
    assert find(system, {}) is None
    assert find(system, {"HOME": "/nonexistent"}) is None
    assert find(system, {"HOME": "relative", "XDG_STATE_HOME": "relative"}) is None
    assert find(system, everything) == str(xdg / "check_pgsock")
    assert (xdg / "check_pgsock").stat().st_mode & 0o777 == 0o700
    new = {"XDG_STATE_HOME": str(home / "new") + "/"}
    assert find(system, new) == str(home / "new" / "check_pgsock")
    assert find(system, {"XDG_STATE_HOME": str(home / "a" / "b")}) is None
    # The XDG Base Directory Specification: relative paths are ignored.
    relative = {"HOME": str(home), "XDG_STATE_HOME": "state"}
    assert find(system, relative) == str(home / ".local" / "state" / "check_pgsock")
    assert (home / ".local").stat().st_mode & 0o777 == 0o700
    system.mkdir(mode=0o750)
    assert find(system, everything) == str(system)
    system.chmod(0o770)
    with pytest.raises(StateError, match="may be written by others"):
        find(system, everything)
    support.require("root")
    system.chmod(0o750)
    os.chown(system, 65534, 65534)  # another user's: passed over
    assert find(system, everything) == str(xdg / "check_pgsock")
    os.chown(home, 65534, 65534)  # as sudo leaves it
    assert find(system, {"HOME": str(home)}) is None
    with pytest.raises(StateError) as raised:
        find(system, {"HOME": "/proc"})
    assert str(raised.value) == (
        "the state directory /proc/.local cannot be made: No such file or directory; make it, "
        f"owned by {ME}, mode 0700, or name another with --state-dir"
    )


def test_an_empty_directory_name_is_refused() -> None:
    with pytest.raises(StateError, match="--state-dir is empty; name a directory"):
        Store.open("", Deadline(1))


def test_no_run_waits_for_the_disk(directory: Path) -> None:
    store = open_store(directory)
    assert store._connection.execute("PRAGMA synchronous").fetchall() == [(0,)]  # OFF
    store.close()
