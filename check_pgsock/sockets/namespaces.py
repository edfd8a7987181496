"""Network namespaces: which one a name or a process means, and how to read from within it.

Authority: network_namespaces(7), setns(2), ioctl_ns(2), ip-netns(8). To enter one takes rights over
it; /proc/PID/net of a process in it is readable by everybody who may see that process.
"""

import fcntl
import os
import threading

from check_pgsock.errors import SourceError
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Callable, Optional, TypeVar

    _T = TypeVar("_T")
    _FileId = tuple[int, int]  # device and inode

# Where iproute2 and Docker keep the names of namespaces.
DIRECTORIES = ("/run/netns", "/run/docker/netns")
_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h


class Namespace:
    """The network namespace that `text` means: a name, a process id, or `self`.

    `process` is the directory of its process, None for a name. Raises SourceError where there is
    none.
    """

    __slots__ = ("_descriptor", "identity", "name", "process", "refusal", "tables")

    def __init__(self, text: str) -> None:
        self.name = text
        self.process: Optional[str] = None
        self.identity: Optional[_FileId] = None  # None: it cannot be seen
        self.tables: Optional[_FileId] = None
        self.refusal: Optional[str] = None  # why it cannot be entered
        if text == "self" or (text.isascii() and text.isdigit()):
            self.process = f"/proc/{text}"
            path = f"{self.process}/ns/net"
            self.tables = _identify_tables(self.process)
            if self.tables is None:
                raise SourceError(f"--netns {text}: there is no process {text} that may be seen")
        else:
            path = _find(text)
        try:
            # Held open: a process may end, and a name come to mean another.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.refusal = error.strerror or str(error)
            return
        if not _is_network_namespace(self._descriptor):
            raise SourceError(f"{clean(path)} is no network namespace; see ip netns")
        found = os.fstat(self._descriptor)
        self.identity = (found.st_dev, found.st_ino)

    @property
    def is_own(self) -> bool:
        """Whether it is the one that this process is in."""
        if self.tables is not None:
            return self.tables == _identify_tables("/proc/self")
        own = os.stat("/proc/self/ns/net")
        return self.identity == (own.st_dev, own.st_ino)

    def call(self, function: "Callable[[], _T]") -> "_T":
        """What `function` returns, called in this namespace; sockets and files that it opens
        stay there. Raises what it raises, and SourceError where the namespace is not to be
        entered.
        """
        if self.is_own:
            return function()
        if self.refusal is not None:
            raise self._refused(self.refusal)
        results: list[_T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                _set_namespace(self._descriptor)
            except OSError as error:
                self.refusal = error.strerror or str(error)
                errors.append(self._refused(self.refusal))
                return
            try:
                results.append(function())
            except BaseException as error:  # noqa: BLE001 (raised again, below)
                errors.append(error)

        # A namespace belongs to a thread: this one never comes back from it.
        thread = threading.Thread(target=enter, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # what Python makes of EAGAIN
            raise OSError(str(error)) from error
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def _refused(self, why: str) -> SourceError:
        return SourceError(
            f"network namespace {clean(self.name)} may not be entered ({why}): that takes root, or "
            "CAP_SYS_ADMIN"
        )


def find_namespaces(names: "Iterable[str]") -> "list[Namespace]":
    """The network namespaces of these names and processes, each once. Raises SourceError where
    there is none, or where it cannot be told whether they are different ones.
    """
    found = [Namespace(name) for name in dict.fromkeys(names)]
    keys = [one.identity for one in found]
    if None in keys:
        keys = [one.tables for one in found]
    if None in keys and len(found) > 1:
        hidden = next(one for one in found if one.identity is None)
        raise SourceError(
            f"whether network namespace {clean(hidden.name)} is another than the rest cannot be "
            f"seen ({hidden.refusal}): that takes root, or CAP_SYS_PTRACE"
        )
    different: dict[Optional[_FileId], Namespace] = {}
    for key, one in zip(keys, found):
        different.setdefault(key, one)
    return list(different.values())


def _find(name: str) -> str:
    hidden = ""
    for directory in DIRECTORIES:
        path = os.path.join(directory, name)
        try:
            os.lstat(path)
            return path
        except PermissionError:
            hidden = f" ({directory} may not be looked into)"
        except OSError:
            continue
    raise SourceError(
        f"there is no network namespace {clean(name)} in {' or '.join(DIRECTORIES)}{hidden}; see "
        "ip netns, or name a process in it by its id"
    )


def _identify_tables(process: str) -> "Optional[_FileId]":
    """A file of a process's /proc net; None where that cannot be seen.

    Each namespace has files of its own there, and so inodes (proc_create_net in
    fs/proc/proc_net.c): by them everybody can tell whether two processes are in the same one.
    """
    try:
        found = os.stat(f"{process}/net/dev")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_network_namespace(descriptor: int) -> bool:
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def _set_namespace(descriptor: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(descriptor, _CLONE_NEWNET)
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
