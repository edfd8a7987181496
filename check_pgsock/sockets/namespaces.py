"""Network namespaces: which one a name or a process means, and how to read from within it.

Authority: network_namespaces(7), setns(2), ip-netns(8). Where setns is refused, /proc/PID/net of
a process in it may still be readable: that of one's own user.
"""

import os
import threading

from check_pgsock.errors import SourceError
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional, TypeVar

    _T = TypeVar("_T")

# Where iproute2 and Docker keep the names of namespaces.
DIRECTORIES = ("/run/netns", "/run/docker/netns")
_CLONE_NEWNET = 0x40000000


class Namespace:
    """The network namespace that `text` means: a name, a process id, or `self`.

    `process` is the directory of its process, None for a name; `identity` is device and inode of
    the namespace, None where they cannot be seen. Raises SourceError where there is none.
    """

    __slots__ = ("identity", "name", "path", "process", "refusal")

    def __init__(self, text: str) -> None:
        self.name = text
        self.process: Optional[str] = None
        self.identity: Optional[tuple[int, int]] = None
        self.refusal: Optional[str] = None  # why it cannot be entered
        if text == "self" or text.isdigit():
            self.process = f"/proc/{text}"
            self.path = f"{self.process}/ns/net"
            if not os.path.exists(self.process):
                raise SourceError(f"--netns {text}: there is no process {text}")
        else:
            self.path = _find(text)
        try:
            found = os.stat(self.path)
            self.identity = (found.st_dev, found.st_ino)
        except OSError as error:
            self.refusal = error.strerror or str(error)

    @property
    def is_own(self) -> bool:
        """Whether it is the one that this process is in."""
        own = os.stat("/proc/self/ns/net")
        return self.identity == (own.st_dev, own.st_ino)

    def call(self, function: "Callable[[], _T]") -> "_T":
        """What `function` returns, called in this namespace; sockets and files that it opens
        stay there. Raises what it raises, and SourceError where the namespace is not to be
        entered.
        """
        if self.refusal is not None:
            raise self._refused(self.refusal)
        if self.is_own:
            return function()
        results: list[_T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                with open(self.path, "rb", 0) as file:
                    _set_namespace(file.fileno())
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


def _find(name: str) -> str:
    for directory in DIRECTORIES:
        path = os.path.join(directory, name)
        if os.path.lexists(path):
            return path
    raise SourceError(
        f"there is no network namespace {clean(name)} in {' or '.join(DIRECTORIES)}; see ip netns, "
        "or name a process in it by its id"
    )


def _set_namespace(descriptor: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(descriptor, _CLONE_NEWNET)
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
