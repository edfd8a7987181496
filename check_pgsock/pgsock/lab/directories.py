"""Fresh directories that an unprivileged server can reach, removed on exit."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from check_pgsock.pgsock.lab.processes import LabError


@contextlib.contextmanager
def fresh_directory(prefix: str, *, executable: bool = False) -> Iterator[Path]:
    """Make a new directory (0755) below a base that every user can traverse; remove it on exit.

    No permission of an existing path is changed. With `executable` the base must not be mounted
    noexec. Raises LabError where there is no such base.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=_base(executable)))
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path)


def traversable(path: Path) -> bool:
    """Whether every user can traverse `path` and all its parents."""
    return all(p.stat().st_mode & stat.S_IXOTH for p in (path, *path.parents))


def _base(executable: bool) -> Path:
    candidates = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    for name in candidates:
        path = Path(name).resolve()
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            continue
        # Only root starts servers as somebody else; anybody else has to reach it alone.
        if os.geteuid() == 0 and not traversable(path):
            continue
        if executable and os.statvfs(path).f_flag & os.ST_NOEXEC:
            continue
        return path
    raise LabError(
        f"none of {', '.join(dict.fromkeys(candidates))} can be used for a throw-away server "
        "(writable, traversable by every user, not noexec); set TMPDIR to one that is"
    )
