"""Peers by the names of their hosts: parsed purely, resolved once a run, in one place.

The name is what messages and the keys of stored samples say: samples stay those of the same peer
when its addresses change. What the system's resolver answers is taken, of IPv4 and IPv6.
"""

import re
import socket

from check_pgsock.errors import SourceError
from check_pgsock.legs import format_address
from check_pgsock.sockets.model import fold_address
from check_pgsock.waiting import call_within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from check_pgsock.deadline import Deadline

_PEER_OPTIONS = ("peer", "exclude_peer")
_LONGEST = 253  # RFC 1035, 2.3.4, less what is not written
# RFC 1123, 2.1; underscores are in names that containers have.
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# inet_aton(3), and with it getaddrinfo(3), takes such a name for an IPv4 address.
_NUMBER = re.compile(r"\d+|0[xX][0-9A-Fa-f]*")


class HostName:
    """The name of a host, whose addresses are not known yet."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Host:
    """A host by its name `text`, and the addresses (packed and folded) that it has now."""

    __slots__ = ("addresses", "text")

    def __init__(self, text: str, addresses: "frozenset[bytes]") -> None:
        self.text = text
        self.addresses = addresses

    def __contains__(self, packed: bytes) -> bool:
        return packed in self.addresses

    def describe(self) -> str:
        """`db.example is 192.0.2.7, 2001:db8::7`"""
        listed = sorted(self.addresses, key=lambda one: (len(one), one))
        return f"{self.text} is {', '.join(map(format_address, listed))}"


def parse_host_name(text: str) -> HostName:
    """The name of a host; raises ValueError for what cannot be one."""
    last = text.rstrip(".").rpartition(".")[2]
    if len(text) > _LONGEST or not _HOST_NAME.fullmatch(text) or _NUMBER.fullmatch(last):
        raise ValueError(
            f"'{text}' is neither a network such as 10.0.0.0/8 or 2001:db8::/32 nor the name of a "
            "host"
        )
    return HostName(text)


def resolve_peers(options: "Namespace", deadline: "Deadline") -> None:
    """Put the host in the place of each host name in `options`, within the deadline.

    Raises SourceError for a name that has no address, or when no resolver tells, and DeadlineError.
    """
    for option in _PEER_OPTIONS:
        given = getattr(options, option, [])
        if any(isinstance(one, HostName) for one in given):
            peers = [
                _resolve(one.text, option, deadline) if isinstance(one, HostName) else one
                for one in given
            ]
            setattr(options, option, peers)


def describe_peers(options: "Namespace") -> "list[str]":
    """A line for each host name in `options`: which addresses it has."""
    peers = [one for option in _PEER_OPTIONS for one in getattr(options, option, [])]
    return [one.describe() for one in peers if isinstance(one, Host)]


def _resolve(name: str, option: str, deadline: "Deadline") -> Host:
    deadline.doing = f"resolving the host name {name}"
    try:
        found = call_within(
            deadline, lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        )
    except (socket.gaierror, UnicodeError) as error:
        raise SourceError(
            f"the host name {name} cannot be resolved: {getattr(error, 'strerror', error)}; see to "
            f"--{option.replace('_', '-')} and to this host's resolver, or give addresses"
        ) from None
    # A link-local address may come with its zone: fe80::1%eth0.
    texts = [(family, str(address[0]).partition("%")[0]) for family, *_, address in found]
    return Host(name, frozenset(fold_address(socket.inet_pton(*one)) for one in texts))
