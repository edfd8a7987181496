"""The embedded store: samples that a check keeps from run to run, in one SQLite file.

A run opens the store, reads the samples of its keys once, computes purely, and commits once,
after the evaluation. Runs of several services share the file: SQLite's locks keep them apart,
waited for within the deadline. A commit is one transaction with a rollback journal: a run that
is killed in the middle leaves what was there before. It does not wait for the disk: a verdict must
not be late because that is busy, which is when it matters, and all that a power failure can cost
is the samples. Times are the caller's, never read here.

A file that SQLite cannot read is set aside (`checks.sqlite.damaged`, replacing an earlier one)
and reported once; the next run starts with an empty store. sqlite3 is imported when a store is
opened: a check that needs none does not pay for it.
"""

import json
import os
import stat

from check_pgsock.deadline import Deadline
from check_pgsock.errors import StateError
from check_pgsock.state_directory import find_directory, user_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping
    from typing import Any, Callable, Optional, TypeVar

    T = TypeVar("T")

FILE_NAME = "checks.sqlite"
DAMAGED_SUFFIX = ".damaged"
_SCHEMA_VERSION = 1
_SCHEMA = (
    "CREATE TABLE sample (id INTEGER PRIMARY KEY, key TEXT NOT NULL, at REAL NOT NULL, "
    "data TEXT NOT NULL)",
    "CREATE INDEX sample_key ON sample (key, id)",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)
# A key that no run has used for so long belongs to a service that is gone.
_FORGET_AFTER = 40 * 86400.0
# Samples from the future are of before a backward step of the clock; concurrent runs are not.
_FUTURE = 60.0


class Sample:
    """One stored sample: `data` is what the check committed, `at` the wall-clock time it gave."""

    __slots__ = ("at", "data")

    def __init__(self, at: float, data: object) -> None:
        self.at = at
        self.data = data


def make_key(*parts: object) -> str:
    """One text of all that tells a service's samples from another's."""
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=True)


class Store:
    """An open store. Every method raises StateError: one sentence, with the file in it."""

    def __init__(self, path: str, deadline: Deadline) -> None:
        self.path = path
        self._deadline = deadline
        self._identity = self._check_file()
        self._connection = self._connect()
        self._guarded(self._prepare)

    @classmethod
    def open(
        cls,
        state_dir: "Optional[str]",
        deadline: Deadline,
        environment: "Mapping[str, str]" = os.environ,
    ) -> "Optional[Store]":
        """The store in `state_dir`, else in a default directory; None where there is none."""
        directory = find_directory(state_dir, environment)
        return None if directory is None else cls(os.path.join(directory, FILE_NAME), deadline)

    def samples(self, key: str) -> "list[Sample]":
        """The samples of `key` in the order of their commits, whatever their times say."""

        def read() -> "list[Sample]":
            rows = self._execute("SELECT at, data FROM sample WHERE key = ? ORDER BY id", key)
            return [_parse_row(*row) for row in rows]

        return self._guarded(read)

    def commit(self, new: "Mapping[str, object]", now: float, keep_seconds: float) -> None:
        """Add one sample to each key of `new`, all or none, and drop what is too old.

        Kept are the samples of the last `keep_seconds` and the one before them, so that a check
        that runs less often still finds its last one.
        """

        def write() -> None:
            self._execute("BEGIN IMMEDIATE")
            for key, data in new.items():
                self._execute("DELETE FROM sample WHERE key = ? AND at > ?", key, now + _FUTURE)
                self._execute(
                    "DELETE FROM sample WHERE key = ? AND id < (SELECT max(id) FROM sample "
                    "WHERE key = ? AND at <= ?)",
                    key, key, now - keep_seconds,
                )  # fmt: skip
                self._execute(
                    "INSERT INTO sample (key, at, data) VALUES (?, ?, ?)",
                    key, now, json.dumps(data, separators=(",", ":")),
                )  # fmt: skip
            self._execute("DELETE FROM sample WHERE at < ?", now - _FORGET_AFTER)
            self._execute("COMMIT")

        self._guarded(write)

    def close(self) -> None:
        """Close the file; what was not committed is gone."""
        self._connection.close()

    def _check_file(self) -> "tuple[int, int]":
        """Make the file where it is missing; return its identity, or refuse one that is not ours.

        The descriptor is closed before SQLite opens the file: closing any later would drop
        SQLite's locks (fcntl(2), POSIX record locks).
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            link = os.path.islink(self.path)
            why = "is a symbolic link" if link else f"cannot be opened: {error.strerror}"
            raise StateError(f"{self.path} {why}; remove it, or name another --state-dir") from None
        try:
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            why = "is not a file of its own"
        elif found.st_uid != os.geteuid():
            why = f"belongs to {user_name(found.st_uid)}"
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            why = f"may be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
        else:
            return found.st_dev, found.st_ino
        raise StateError(f"{self.path} {why}; remove it, or name another --state-dir")

    def _connect(self) -> "sqlite3.Connection":
        try:
            import sqlite3
        except ImportError as error:
            raise StateError(
                f"this Python has no sqlite3 to keep the state with: {error}; use one that has"
            ) from None
        try:
            connection = sqlite3.connect(self.path, isolation_level=None)
        except sqlite3.Error as error:
            raise StateError(f"{self.path} cannot be opened: {error}") from None
        connection.text_factory = bytes  # text that is damaged is found by whoever parses it
        return connection

    def _prepare(self) -> None:
        """Make the tables in a new file; raise DatabaseError for a file of another kind."""
        import sqlite3

        self._execute("PRAGMA synchronous = OFF")
        version = self._version()
        if version == 0:
            self._execute("BEGIN IMMEDIATE")
            if self._version() == 0:  # else another run was first
                for statement in _SCHEMA:
                    self._execute(statement)
            self._execute("COMMIT")
        elif version != _SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"version {version} of its contents is unknown here")

    def _version(self) -> int:
        ((version,),) = self._execute("PRAGMA user_version")
        return int(version)

    def _execute(self, statement: str, *values: object) -> "list[Any]":
        # Give up a little before the watchdog does: to say what was waited for.
        wait = int(self._deadline.remaining() * 900)
        self._connection.execute(f"PRAGMA busy_timeout = {wait}")
        return self._connection.execute(statement, values).fetchall()

    def _guarded(self, action: "Callable[[], T]") -> "T":
        """Do `action`; turn what SQLite raises into a StateError, setting a damaged file aside."""
        import sqlite3

        self._deadline.doing = f"using {self.path}"
        try:
            return action()
        except sqlite3.Error as error:
            self._connection.close()
            if not _is_damage(error):
                raise StateError(
                    f"{self.path} cannot be used: {error}; see to the file, or name another "
                    "--state-dir"
                ) from None
            self._set_aside()
            raise StateError(
                f"{self.path} is damaged ({error}) and was set aside as "
                f"{FILE_NAME}{DAMAGED_SUFFIX}; the next run starts anew"
            ) from None

    def _set_aside(self) -> None:
        """Rename the file and its journal, unless another run has already done so.

        A journal that stayed would be rolled back into the new file.
        """
        import fcntl

        directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) != self._identity:
                return
            journal = self.path + "-journal"
            if os.path.lexists(journal):
                os.replace(journal, f"{self.path}{DAMAGED_SUFFIX}-journal")
            os.replace(self.path, self.path + DAMAGED_SUFFIX)
        except (BlockingIOError, FileNotFoundError):
            return  # another run does the same
        except OSError as error:
            raise StateError(
                f"{self.path} is damaged and cannot be renamed: {error.strerror}; remove it"
            ) from None
        finally:
            os.close(directory)


def _parse_row(at: object, data: bytes) -> Sample:
    """One row; raises sqlite3.DatabaseError, as SQLite does for damage that it sees itself."""
    import sqlite3

    try:
        return Sample(float(at), json.loads(data))  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"a sample cannot be read: {error}") from None


def _is_damage(error: "sqlite3.Error") -> bool:
    """Whether the file's contents are wrong, and not a lock, a permission or a full disk.

    Python raises SQLITE_CORRUPT and SQLITE_NOTADB as DatabaseError itself, those others as
    subclasses of it; a table that is missing is an OperationalError like a lock.
    """
    import sqlite3

    return type(error) is sqlite3.DatabaseError or str(error).startswith("no such ")
