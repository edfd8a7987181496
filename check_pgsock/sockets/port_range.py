"""The ephemeral ports of a network namespace: read, and parsed."""

from check_pgsock.errors import MalformedError, SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sockets.namespaces import Namespace

PATH = "/proc/sys/net/ipv4/ip_local_port_range"


def read_port_count(namespace: "Optional[Namespace]" = None) -> int:
    """How many local ports connections to one destination can have (IPv6 too), from `namespace`
    or that of this process.
    """

    def read() -> bytes:
        with open(PATH, "rb", 0) as file:
            return file.read(100)

    try:
        return parse_port_count(read() if namespace is None else namespace.call(read))
    except OSError as error:
        raise SourceError(
            f"{PATH} cannot be read: {error.strerror}; give --time-wait-warning and "
            "--time-wait-critical without %"
        ) from error


def parse_port_count(text: bytes) -> int:
    """The number of ports in `lowest highest`."""
    words = text.split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        raise MalformedError(f"{PATH}: no two numbers, but {text.decode('latin-1')!r}")
    lowest, highest = map(int, words)
    if not 0 < lowest <= highest <= 65535:
        raise MalformedError(f"{PATH}: no range of ports: {lowest} to {highest}")
    return highest - lowest + 1
