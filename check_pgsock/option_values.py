"""The values of options: from the text on the command line to what a check works with; pure.

Each parser takes one text and raises ValueError, one clause that quotes it, for what it does not
take. Whether a file, a directory or a namespace is there is seen when it is used.
"""

import math
import socket

from check_pgsock.legs import Network
from check_pgsock.sockets.model import fold_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    from check_pgsock.host_names import HostName

LIVE_SOURCES = ("auto", "netlink", "procfs")
LONGEST_TIMEOUT = 3600.0
LONGEST_AGE = 30 * 86400.0  # what the store keeps of a service that does not run is 40 days


def parse_number(text: str) -> float:
    """A finite number."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"'{text}' is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"'{text}' is no number")
    return number


def parse_positive(text: str, noun: str = "number", most: float = 10**6) -> float:
    """A number above 0, at most `most`."""
    number = parse_number(text)
    if not 0 < number <= most:
        raise ValueError(f"'{text}' is no {noun} above 0, at most {most:.0f}")
    return number


def parse_seconds(text: str) -> float:
    """A positive time in seconds, of a run."""
    return parse_positive(text, "time in seconds,", LONGEST_TIMEOUT)


def parse_age(text: str) -> float:
    """A positive time in seconds; it may be longer than a run."""
    return parse_positive(text, "time in seconds,", LONGEST_AGE)


def parse_count(text: str) -> int:
    """A whole number, 1 or more."""
    return _parse_whole(text, 10**9, "whole number of 1 or more")


def parse_count_or_zero(text: str) -> int:
    """A whole number as parse_count() takes it, or 0."""
    return 0 if text == "0" else parse_count(text)


def parse_port(text: str) -> int:
    """A TCP port, 1 to 65535."""
    return _parse_whole(text, 65535, "port, 1 to 65535")


def _parse_whole(text: str, most: int, noun: str) -> int:
    """A whole number, 1 to `most`; int() would take signs, spaces and digits of any script."""
    is_whole = text.isascii() and text.isdigit() and len(text) < 20
    if not is_whole or not 1 <= int(text) <= most:
        raise ValueError(f"'{text}' is no {noun}")
    return int(text)


def parse_file(text: str) -> str:
    """The name of a file."""
    return _parse_text(text, "no file")


def parse_directory(text: str) -> str:
    """The name of a directory."""
    return _parse_text(text, "no directory")


def parse_name(text: str) -> str:
    """The name of a user or a database."""
    return _parse_text(text, "no name of a user or a database")


def parse_source(text: str) -> str:
    """A source's name, or that of a file: see names_recording()."""
    return _parse_text(text, f"neither {', '.join(LIVE_SOURCES)} nor a file")


def _parse_text(text: str, otherwise: str) -> str:
    """Any text that a system call or a server takes; `otherwise` is what it is if it does not."""
    if not text or "\0" in text:
        raise ValueError(f"'{text}' is {otherwise}")
    return text


def names_recording(source: str) -> bool:
    """Whether a source is the file of a recording, and none of the live sources."""
    return source not in LIVE_SOURCES


def parse_namespace(text: str) -> str:
    """The name of a network namespace or a process id."""
    if not text or "/" in text or "\0" in text or text in (".", ".."):
        raise ValueError(f"'{text}' is neither a name (ip netns) nor a process id")
    return text


def parse_socket(text: str) -> str:
    """The path of a Unix socket, or @ and an abstract name."""
    if "\0" in text or not (text.startswith("/") or (text.startswith("@") and len(text) > 1)):
        raise ValueError(
            f"'{text}' is neither the absolute path of a Unix socket nor @NAME of an abstract one"
        )
    return text


def parse_address(text: str) -> bytes:
    """An IPv4 or IPv6 address, packed and folded."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return fold_address(socket.inet_pton(family, text))
        except (OSError, ValueError):
            continue
    raise ValueError(f"'{text}' is no IPv4 or IPv6 address")


def parse_network(text: str) -> Network:
    """A network in CIDR notation, or a single address."""
    import ipaddress  # 4 ms, and rarely needed

    if "%" in text:
        raise ValueError(f"'{text}' has a zone; name the network alone")
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            right = ipaddress.ip_network(text, strict=False)
            raise ValueError(f"'{text}' has host bits set; did you mean {right}?") from None
        raise ValueError(f"'{text}' is no network such as 10.0.0.0/8 or 2001:db8::/32") from None
    packed = network.network_address.packed
    folded = fold_address(packed)
    length = network.prefixlen
    if len(folded) < len(packed) and length >= 96:
        return Network(folded, length - 96, text)
    return Network(packed, length, text)


def parse_peer(text: str) -> "Union[Network, HostName]":
    """A network as parse_network() takes it, or the name of a host, without asking a resolver."""
    if any(one in text for one in "/:%") or text.replace(".", "").isdigit():
        return parse_network(text)
    from check_pgsock.host_names import parse_host_name  # few runs name a host

    return parse_host_name(text)
