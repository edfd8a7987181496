"""The zip file of a recording: read without trust, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Callable, TypeVar

from check_pgsock.deadline import Deadline
from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.proc_files import open_plain
from check_pgsock.recording.manifest import Header, Manifest, Moment, pack_manifest, parse_manifest
from check_pgsock.text import plural

_T = TypeVar("_T")

MANIFEST = "manifest.json"
# 600,000 TCP sockets with all that a dump tells of them; what is longer is a bomb.
MOST_BYTES = 1 << 28
_MOST_FILE_BYTES = 1 << 30
_MOST_MEMBERS = 60_000  # 65,535 and more need zip64
_MOST_DIRECTORY_BYTES = 1 << 23
_END = struct.Struct("<IHHHHIIH")  # end of central directory (APPNOTE.TXT, 4.3.16)
_END_SIGNATURE = 0x06054B50
_ZIP64_LOCATOR = b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES = 20
# What zipfile raises for what it cannot read; RuntimeError for what is encrypted.
_BAD = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error)
_DATE = (1980, 1, 1, 0, 0, 0)  # the same content makes the same file


def member_of(moment: int, place: int, table: str) -> str:
    """The name of a table's member; `moment` and `place` are counted from 1."""
    return f"moments/{moment}/{place}/{table}"


def processes_of(moment: int) -> str:
    """The name of the member with a moment's processes."""
    return f"moments/{moment}/processes.json"


def cgroups_of(moment: int) -> str:
    """The name of the member with a moment's cgroups."""
    return f"moments/{moment}/cgroups.json"


class Archive:
    """A recording to be read: its `manifest`, and its members one by one.

    Raises SourceError for what cannot be opened, MalformedError for what is no recording.
    """

    def __init__(self, path: str, deadline: Deadline) -> None:
        self.path = path
        self._deadline = deadline
        self._identity: tuple[float, ...] | None = None
        self.manifest: Manifest = self.parse(MANIFEST, parse_manifest)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        """The zip, for as long as one member is read: nobody has to close a view."""
        self._deadline.doing = f"reading the recording {self.path}"
        self._deadline.remaining()
        with _open(self.path) as file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime)
            if self._identity not in (None, identity):
                raise SourceError(f"{self.path} was changed while it was read; try again")
            self._identity = identity
            try:
                _require_plain_zip(file)
                opened = zipfile.ZipFile(file)
            except _BAD as error:
                raise MalformedError(
                    f"{self.path} is no recording, or not the whole of one: {error}"
                ) from None
            with opened:
                yield opened

    def choose(self, moment: int | None) -> int:
        """The number of a moment, if there is one of it; None is the last one."""
        held = len(self.manifest.moments)
        if moment is not None and moment > held:
            raise SourceError(
                f"{self.path} holds {plural(held, 'moment')}: there is no --moment {moment}"
            )
        return held if moment is None else moment

    def read(self, member: str) -> bytes:
        """The content of a member; raises MalformedError naming it."""
        with self._opened() as opened:
            try:
                info = opened.getinfo(member)
                if info.file_size > MOST_BYTES:
                    raise ValueError(f"it holds more than {MOST_BYTES >> 20} MiB")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is not deflated")
                return opened.read(info)
            except KeyError:
                raise MalformedError(f"{self.path}, {member}: it is not there") from None
            except _BAD as error:
                raise MalformedError(f"{self.path}, {member}: {error}") from None

    def parse(self, member: str, parse: Callable[[bytes], _T]) -> _T:
        """What `parse` makes of a member; where it raises MalformedError, this names the member."""
        raw = self.read(member)
        try:
            return parse(raw)
        except MalformedError as error:
            raise MalformedError(f"{self.path}, {error}") from None


def _open(path: str) -> BinaryIO:
    try:
        return open(open_plain(path), "rb")
    except FileNotFoundError:
        raise SourceError(
            f"there is no recording {path}; --source takes auto, netlink, procfs, or the file that "
            "pgsock record wrote"
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _require_plain_zip(file: BinaryIO) -> None:
    """Raise ValueError unless the file ends as a zip of ours does.

    zipfile builds its list of members from whatever the end of the file promises.
    """
    size = file.seek(0, os.SEEK_END)
    if size > _MOST_FILE_BYTES:
        raise ValueError(f"it is longer than {_MOST_FILE_BYTES >> 20} MiB")
    file.seek(max(size - _END.size - _ZIP64_LOCATOR_BYTES, 0))
    tail = file.read(_END.size + _ZIP64_LOCATOR_BYTES)
    if len(tail) < _END.size:
        raise ValueError(f"it has {size} bytes")
    signature, *_, directory_bytes, _, comment = _END.unpack(tail[-_END.size :])
    if signature != _END_SIGNATURE or comment:
        raise ValueError("it does not end as a zip file of pgsock record does")
    if directory_bytes > _MOST_DIRECTORY_BYTES or tail.startswith(_ZIP64_LOCATOR):
        raise ValueError("it promises too many members")


class Writer:
    """A recording being written: to a file beside `path`, which takes its name in commit().

    Raises SourceError where `path` is there already (without `force`), is anything but a regular
    file, or cannot be made; OSError where writing fails. As a context manager it removes what was
    not committed.
    """

    def __init__(self, path: str, header: Header, force: bool = False) -> None:
        self.path = path
        self.moments: list[Moment] = []
        self._header = header
        self._force = force
        self._members = 0
        _require_plain(path)
        if not force and os.path.lexists(path):
            raise self._exists()
        directory = os.path.dirname(path) or "."
        try:
            descriptor, self._temporary = tempfile.mkstemp(
                prefix=f".{os.path.basename(path)[:100]}.", dir=directory
            )
        except OSError as error:
            raise SourceError(f"{directory} cannot be written to: {error.strerror}") from error
        self._file = os.fdopen(descriptor, "w+b")
        self._zip = zipfile.ZipFile(
            self._file, "w", zipfile.ZIP_DEFLATED, allowZip64=False, compresslevel=6
        )

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._zip.close()  # which writes, if it is not closed yet
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)

    def add(self, about: Moment, members: Iterator[tuple[str, bytes]]) -> None:
        """Add a moment, whose number is the next one; raises SourceError where it does not fit."""
        for name, content in members:
            self._members += 1
            if len(content) > MOST_BYTES:
                raise SourceError(f"{name} has more than {MOST_BYTES >> 20} MiB: no recording fits")
            if self._members > _MOST_MEMBERS or self._file.tell() > _MOST_FILE_BYTES // 2:
                raise SourceError(f"{self.path} holds all that a recording can")
            self._write(name, content)
        self._file.flush()
        self.moments.append(about)

    def commit(self) -> int:
        """Write the manifest and give the file its name; return its size in bytes."""
        self._write(MANIFEST, pack_manifest(self._header, self.moments))
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._rename()
        _sync_directory(os.path.dirname(self.path) or ".")
        return size

    def _write(self, name: str, content: bytes) -> None:
        info = zipfile.ZipInfo(name, _DATE)
        info.external_attr = (stat.S_IFREG | 0o600) << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        self._zip.writestr(info, content)

    def _rename(self) -> None:
        if self._force:
            _require_plain(self.path)
            os.replace(self._temporary, self.path)
            return
        try:
            os.link(self._temporary, self.path)  # unlike rename(2) it replaces nothing
        except FileExistsError:
            raise self._exists() from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            if os.path.lexists(self.path):
                raise self._exists() from None
            os.rename(self._temporary, self.path)  # a file system without links

    def _exists(self) -> SourceError:
        return SourceError(f"{self.path} is there already; name another file, or --force")


def _require_plain(path: str) -> None:
    """Raise SourceError where anything but a regular file is there: a device, which root would
    replace, or a link, which may lead to one.
    """
    with contextlib.suppress(OSError):  # nothing is there, or nothing can be
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise SourceError(f"{path} is not a regular file; name another file")


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
