"""The home of throw-away servers: a directory that outlives neither its process nor a SIGKILL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from check_pgsock.pgsock.lab import janitor
from check_pgsock.pgsock.lab.directories import base_candidates, base_directory
from check_pgsock.pgsock.lab.errors import LabError

# Seconds for which a home without its process is left alone: it may be just made.
_NEW = 60.0
# Seconds that a janitor may take to clear a home, and to clear one that others left.
_PATIENCE = 60.0
_PATIENCE_WITH_OTHERS = 5.0
# The file that says that a directory is a home, whatever it is called.
_MARK = ".pgsock-home"


class Home:
    """A context manager: a new directory (0755) below a base that every user can traverse.

    What works in it is killed, and it is removed, on exit; a janitor process does so when this
    process ends otherwise, also when it is killed. `name` is what follows `prefix`. Raises
    LabError where there is no such base whose path has at most `longest` bytes.
    """

    def __init__(self, prefix: str = "pgsock-home-", longest: int = 4096) -> None:
        self.name = secrets.token_hex(4)
        self.path = base_directory(executable=True, longest=longest) / f"{prefix}{self.name}"
        self._janitor: subprocess.Popen[bytes] | None = None
        self._lock = -1

    def __enter__(self) -> Home:
        # The janitor is there before the directory is: at no moment is there one without him.
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", "-S", janitor.__file__, str(self.path), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        try:
            assert self._janitor.stdout is not None
            with self._janitor.stdout as answer:
                if answer.read(1) != janitor.READY:
                    raise LabError(f"{sys.executable} does not run {janitor.__file__}")
            self.path.mkdir(mode=0o755)
            self.path.chmod(0o755)
            (self.path / _MARK).touch(mode=0o600)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        assert self._janitor is not None
        try:
            self._janitor.communicate(b"\n", timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._janitor.kill()
            self._janitor.communicate()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if os.path.lexists(self.path):
            # The janitor was killed, or failed.
            try:
                janitor.clear(self.path)
            except OSError as error:
                raise LabError(f"{self.path} cannot be removed: {error.strerror}") from None


def homes(prefix: str) -> list[Path]:
    """The homes of this user below the base directories with this `prefix`."""
    found = []
    for base in base_candidates():
        for path in sorted(base.glob(f"{prefix}*")):
            with contextlib.suppress(OSError):
                status, mark = path.lstat(), (path / _MARK).lstat()
                if (
                    re.fullmatch(r"[0-9a-f]{8}", path.name.removeprefix(prefix))
                    and stat.S_ISDIR(status.st_mode)
                    and stat.S_ISREG(mark.st_mode)
                    and status.st_uid == mark.st_uid == os.geteuid()
                ):
                    found.append(path)
    return found


def sweep(prefix: str) -> None:
    """Clear the homes whose process and janitor were both killed; all others stay, and what
    cannot be removed.
    """
    for path in homes(prefix):
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            if time.time() - os.fstat(descriptor).st_ctime > _NEW:
                # Its process holds this lock as long as it lives.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                janitor.clear(path, _PATIENCE_WITH_OTHERS)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
