"""The socket file that a path names: which file it is, and which names and sockets mean it."""

import os
import stat

from check_pgsock.errors import SourceError
from check_pgsock.sockets.unix_sockets import UnixListener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sockets.unix_sockets import AnyUnix, FileId, UnixEndpoint


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

    def may_be_of(self, one: "AnyUnix") -> bool:
        """Whether a socket is bound to the file, or to a name that means this path."""
        return one.path is not None and (
            (self.file is not None and one.file == self.file) or self.is_name(one.path)
        )

    def qualify(self, endpoint: "UnixEndpoint", found: "list[AnyUnix]") -> "Optional[str]":
        """What qualifies the `endpoint` of this path, chosen from the sockets `found`."""
        if self.is_abstract:
            return None
        if any(one.file is None for one in found):
            return (
                "procfs does not tell apart a socket file and an earlier one of the same name: "
                "sessions that an earlier server accepted are counted too"
            )
        if isinstance(self.refusal, FileNotFoundError):
            if endpoint.listeners:
                return f"{self.path} is gone: nobody can connect to its listener any more"
        elif self.refusal is not None:
            return (
                f"{self.path} cannot be looked at ({self.refusal.strerror}): its sockets are "
                "told by name"
            )
        elif not endpoint.listeners and any(isinstance(one, UnixListener) for one in found):
            return (
                f"the listener named {self.path} is bound to another file: that was replaced, or "
                "the listener sees other file systems than this check"
            )
        return None


def _stat(path: bytes) -> "Optional[os.stat_result]":
    try:
        return os.stat(path)
    except OSError:
        return None
