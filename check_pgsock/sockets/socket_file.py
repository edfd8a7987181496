"""The socket file that a path names: which file it is, and which other names mean it."""

import os
import stat

from check_pgsock.errors import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sockets.unix_sockets import FileId


class SocketFile:
    """A path of a Unix socket, looked at once; `@name` is an abstract name, as PostgreSQL has it.

    With `here` false it is a path of another file system (a saved moment's, another host's): no
    file is looked at, and only sockets bound to that very name are meant. Raises SourceError for
    a path at which something else than a socket lies.
    """

    __slots__ = ("_directory", "_here", "_known", "file", "name", "path", "refusal")

    def __init__(self, path: str, here: bool = True) -> None:
        self.path = path
        self.file: Optional[FileId] = None
        self.refusal: Optional[OSError] = None  # why it cannot be looked at
        self._here = here and not path.startswith("@")
        self._directory: Optional[os.stat_result] = None
        self._known: dict[bytes, bool] = {}
        if path.startswith("@"):
            self.name = b"\0" + os.fsencode(path[1:])
            return
        self.name = os.fsencode(os.path.abspath(path))
        if self._here:
            self._look()

    def _look(self) -> None:
        self._directory = _stat(os.path.dirname(self.name))
        try:
            found = os.stat(self.name)
        except OSError as error:
            self.refusal = error
            return
        if stat.S_ISDIR(found.st_mode):
            raise SourceError(
                f"{self.path} is a directory; name the socket in it, such as "
                f"{os.path.join(self.path, '.s.PGSQL.5432')}"
            )
        if not stat.S_ISSOCK(found.st_mode):
            raise SourceError(f"{self.path} is not a socket")
        self.file = (found.st_dev, found.st_ino & 0xFFFFFFFF)

    @property
    def is_abstract(self) -> bool:
        """Whether it is a name without a file."""
        return self.name.startswith(b"\0")

    def is_name(self, name: bytes) -> bool:
        """Whether a socket bound to `name` is bound to this path: the same name, or the same
        file name in the same directory by another way (/var/run for /run).

        A relative name is the same only where the file tells so: relative to which directory it
        is, only the process knows.
        """
        if name not in self._known:
            self._known[name] = name == self.name or self._is_same_place(name)
        return self._known[name]

    def _is_same_place(self, name: bytes) -> bool:
        if self._directory is None or name[:1] != b"/":
            return False
        directory, base = os.path.split(name)
        if base != os.path.basename(self.name):
            return False
        found = _stat(directory)
        return found is not None and os.path.samestat(found, self._directory)


def _stat(path: bytes) -> "Optional[os.stat_result]":
    try:
        return os.stat(path)
    except OSError:
        return None
