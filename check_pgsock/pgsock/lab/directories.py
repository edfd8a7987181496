"""Fresh directories that an unprivileged server can reach, removed on exit."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.text import plural


@contextlib.contextmanager
def fresh_directory(
    prefix: str, *, executable: bool = False, parent: Path | None = None
) -> Iterator[Path]:
    """Make a new directory (0755) and remove it on exit; it lies in `parent`, or else below a base
    that every user can traverse.

    No permission of an existing path is changed. With `executable` the base must not be mounted
    noexec. Raises LabError where there is no such base.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent or base_directory(executable)))
    try:
        path.chmod(0o755)
        yield path
    finally:
        # A janitor may be at it, too.
        while os.path.lexists(path):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)


def copy_tree(
    source: Path,
    target: Path,
    *,
    ignore: Callable[[str, list[str]], Iterable[str]] | None = None,
    copy: Callable[[str, str], object] = shutil.copy2,
) -> None:
    """Copy a directory, its links as links, as shutil.copytree() does; raises LabError."""
    try:
        shutil.copytree(
            source, target, symlinks=True, ignore=ignore, copy_function=copy, dirs_exist_ok=True
        )
    except shutil.Error as error:
        # One entry (source, target, why) for each file: of a full disk thousands.
        failed = error.args[0]
        files = plural(len(failed), "file")
        raise LabError(
            f"{source} cannot be copied: {files} not, the first: {failed[0][2]}"
        ) from None
    except OSError as error:
        raise LabError(f"{source} cannot be copied: {error}") from None


def traversable(path: Path) -> bool:
    """Whether every user can traverse `path` and all its parents."""
    return all(p.stat().st_mode & stat.S_IXOTH for p in (path, *path.parents))


def base_directory(executable: bool, longest: int = 4096) -> Path:
    """A directory for temporary files that we can write to and servers can reach.

    With `executable` it is not mounted noexec; `longest` are the bytes that its path may have.
    Raises LabError where there is none.
    """
    candidates = base_candidates()
    for path in candidates:
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            continue
        # Only root starts servers as somebody else; anybody else has to reach it alone.
        if os.geteuid() == 0 and not traversable(path):
            continue
        if executable and os.statvfs(path).f_flag & os.ST_NOEXEC:
            continue
        if len(os.fsencode(path)) > longest:
            continue
        return path
    raise LabError(
        f"none of {', '.join(map(str, candidates))} can be used for a throw-away server "
        "(writable, traversable by every user, not noexec, short); set TMPDIR to one that is"
    )


def base_candidates() -> list[Path]:
    """Where directories for temporary files may lie, the preferred one first."""
    # tempfile.gettempdir() would make a file to try one, which SIGKILL may leave.
    names = (tempfile.tempdir, os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm")
    return list(dict.fromkeys(Path(name).resolve() for name in names if name))
