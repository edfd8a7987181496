"""The ephemeral ports of a network namespace: read, and parsed."""

from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.sockets.settings import read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sockets.namespaces import Namespace

NAME = "net/ipv4/ip_local_port_range"


def read_port_count(namespace: "Optional[Namespace]" = None) -> int:
    """How many local ports connections to one destination can have (IPv6 too), from `namespace`
    or that of this process.
    """
    try:
        return parse_port_count(read_whole(NAME, namespace))
    except OSError as error:
        raise SourceError(
            f"/proc/sys/{NAME} cannot be read: {error.strerror}; give --time-wait-warning and "
            "--time-wait-critical without %"
        ) from error


def parse_port_count(text: bytes) -> int:
    """The number of ports in `lowest highest`."""
    words = text.split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        raise MalformedError(f"/proc/sys/{NAME}: no two numbers, but {text.decode('latin-1')!r}")
    lowest, highest = map(int, words)
    if not 0 < lowest <= highest <= 65535:
        raise MalformedError(f"/proc/sys/{NAME}: no range of ports: {lowest} to {highest}")
    return highest - lowest + 1
