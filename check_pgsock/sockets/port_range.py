"""The ephemeral ports of this process's network namespace: read, and parsed."""

from check_pgsock.errors import MalformedError, SourceError

PATH = "/proc/sys/net/ipv4/ip_local_port_range"


def read_port_count() -> int:
    """How many local ports connections from here to one destination can have (IPv6 too)."""
    try:
        with open(PATH, "rb", 0) as file:
            return parse_port_count(file.read(100))
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
