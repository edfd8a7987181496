"""The kernel's settings below /proc/sys, as a network namespace has them."""

from check_pgsock.errors import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sockets.namespaces import Namespace


def read_setting(name: str, namespace: "Optional[Namespace]" = None) -> "Optional[int]":
    """A whole number, such as net/core/somaxconn; None where it cannot be read."""
    try:
        return int((read_setting_file(name, namespace) or b"").split()[0])
    except (ValueError, IndexError):
        return None


def read_setting_file(name: str, namespace: "Optional[Namespace]" = None) -> "Optional[bytes]":
    """The file of a setting; None where it cannot be read."""
    try:
        return read_whole(name, namespace)
    except (OSError, SourceError):
        return None


def read_whole(name: str, namespace: "Optional[Namespace]" = None) -> bytes:
    """The file of a setting; raises OSError, and SourceError where the namespace is not to be
    entered.
    """

    def read() -> bytes:
        with open(f"/proc/sys/{name}", "rb", 0) as file:
            return file.read()

    return read() if namespace is None else namespace.call(read)
