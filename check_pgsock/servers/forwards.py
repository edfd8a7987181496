"""What the command line of a forwarder says: where it listens, and where it connects on; pure.

Authorities: ssh(1), socat(1), pasta(1), kubectl port-forward --help, and docker-proxy's flags
(cmd/docker-proxy in moby). The other forwarders read that from elsewhere.
"""

import re
import socket
from collections import namedtuple

from check_pgsock.sockets.model import fold_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable, NamedTuple, Optional

    class Forward(NamedTuple):
        """One listener of a forwarder; `address` is None where any may be meant, `target` where
        the command line does not say one.
        """

        address: "Optional[bytes]"
        port: int
        target: "Optional[str]"

else:
    Forward = namedtuple("Forward", "address port target")

# getopt's string of ssh; those followed by a colon take a value.
_SSH_OPTIONS = "46AB:CD:E:F:GI:J:KL:MNO:P:Q:R:S:TVW:XYab:c:e:fgi:kl:m:no:p:qstvw:xy"
_SSH_FORWARDS = {"-L", "-D"}
# host:port:host:port, where brackets hold a literal IPv6 address.
_FIELD = re.compile(r"\[([^\]]*)\]|([^:\[\]]+)|(?<=:)(?=:)")
_SOCAT_LISTEN = re.compile(r"(?:tcp|openssl|ssl)[46]?-l(?:isten)?:(\d+)((?:,.*)?)", re.IGNORECASE)
_SOCAT_CONNECT = re.compile(
    r"(?:(?:tcp|openssl|ssl)[46]?(?:-connect)?|unix(?:-connect|-client)?):([^,]+)", re.IGNORECASE
)
_KUBECTL_PORTS = re.compile(r"(\d+)(?::(\d+))?")
_PASTA_PORTS = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?")


def parse_forwards(command: str, arguments: "list[str]") -> "Optional[list[Forward]]":
    """What the program `command` forwards; None where its command line does not say it all."""
    parser = _PARSERS.get(command)
    return None if parser is None else parser(arguments[1:])


def find_forward(
    command: str, arguments: "list[str]", address: bytes, port: int
) -> "tuple[Optional[bool], Optional[str]]":
    """(whether the command line names this listener, where it connects on).

    The first is None where the command line does not say, the second likewise.
    """
    forwards = parse_forwards(command, arguments)
    if forwards is None:
        return None, None
    for one in forwards:
        if one.port == port and one.address in (None, address):
            return True, one.target
    return False, None


def _docker_proxy(arguments: "list[str]") -> "Optional[list[Forward]]":
    flags = dict(_flags(arguments))
    port = flags.get("host-port", "")
    if not port.isdigit():
        return None
    if flags.get("proto", "tcp") != "tcp":
        return []
    host, number = flags.get("container-ip"), flags.get("container-port")
    target = f"{_bracketed(host)}:{number}" if host and number else None
    return [Forward(_packed(flags.get("host-ip", "")), int(port), target)]


def _flags(arguments: "list[str]") -> "Iterator[tuple[str, str]]":
    """Flags as Go's flag package reads them: -name value, --name=value."""
    rest = iter(arguments)
    for one in rest:
        if one.startswith("-"):
            name, equals, value = one.lstrip("-").partition("=")
            yield name, value if equals else next(rest, "")


def _ssh(arguments: "list[str]") -> "Optional[list[Forward]]":
    import getopt

    found: list[Forward] = []
    try:
        # Options may stand before and after the host; what follows them is the command.
        options, rest = getopt.getopt(arguments, _SSH_OPTIONS)
        options += getopt.getopt(rest[1:], _SSH_OPTIONS)[0]
    except getopt.GetoptError:
        return None
    for name, value in options:
        if name == "-o":
            key, _, text = re.sub(r"\s*=\s*|\s+", " ", value, count=1).partition(" ")
            if (key.lower(), text.lower()) == ("clearallforwardings", "yes"):
                return []  # as scp and sftp have it: also those of its configuration
            name = {"localforward": "-L", "dynamicforward": "-D"}.get(key.lower(), name)
            value = text.replace(" ", ":")
        if name in _SSH_FORWARDS:
            found += _ssh_forward(name, value)
    return found or None  # its configuration may name more


def _ssh_forward(name: str, value: str) -> "Iterator[Forward]":
    """[address:]port of a dynamic forward; else that and host:port, or a Unix socket's path."""
    fields = [match[1] or match[2] or "" for match in _FIELD.finditer(value)]
    if value.startswith(":"):
        fields.insert(0, "")
    target = None
    if name == "-L":
        size = 1 if fields and fields[-1].startswith("/") else 2
        parts, fields = fields[-size:], fields[:-size]
        target = parts[0] if size == 1 else ":".join((_bracketed(parts[0]), *parts[1:]))
    if 1 <= len(fields) <= 2 and fields[-1].isdigit():
        # Without an address it is loopback's, or all with -g: not told apart.
        yield Forward(_packed(fields[0]) if len(fields) == 2 else None, int(fields[-1]), target)


def _socat(arguments: "list[str]") -> "Optional[list[Forward]]":
    # Options that take a value have it in the next argument or behind them.
    addresses = [one for one in arguments if ":" in one or "," in one]
    for one in addresses:
        match = _SOCAT_LISTEN.fullmatch(one)
        if match is None:
            continue
        bound = re.search(r",bind=(\[[^\]]*\]|[^,:]*)", match[2], re.IGNORECASE)
        target = None
        for other in addresses:
            connects = _SOCAT_CONNECT.match(other)
            target = connects[1] if connects and other is not one else target
        address = _packed(bound[1].strip("[]")) if bound else None
        return [Forward(address, int(match[1]), target)]
    return None


def _kubectl(arguments: "list[str]") -> "Optional[list[Forward]]":
    if "port-forward" not in arguments:
        return []
    found = []
    position = arguments.index("port-forward") + 1
    positional = [one for one in arguments[position:] if not one.startswith("-")]
    for one in positional:
        match = _KUBECTL_PORTS.fullmatch(one)
        if match:
            found.append(Forward(None, int(match[1]), f"port {match[2] or match[1]} of a pod"))
    return found or None


def _pasta(arguments: "list[str]") -> "Optional[list[Forward]]":
    found = []
    given = iter(arguments)
    for one in given:
        name, equals, value = one.partition("=")
        if name == "--tcp-ports" or name == "-t":
            value = value if equals else next(given, "")
        elif one.startswith("-t"):
            value = one[2:]
        else:
            continue
        bound, slash, ports = value.rpartition("/")
        for spec in ports.split(","):
            match = _PASTA_PORTS.match(spec)
            if match is None or int(match[2] or match[1]) > 65535:
                return None  # auto, all, or ports left out
            first, last = int(match[1]), int(match[2] or match[1])
            address = _packed(bound.partition("%")[0]) if slash else None
            found += [Forward(address, port, None) for port in range(first, last + 1)]
    return found or None


def _packed(text: str) -> "Optional[bytes]":
    """The packed address; None for a name, and where there is none."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return fold_address(socket.inet_pton(family, text))
        except (OSError, ValueError):
            continue
    return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


_PARSERS: "dict[str, Callable[[list[str]], Optional[list[Forward]]]]" = {
    "docker-proxy": _docker_proxy,
    "kubectl": _kubectl,
    "pasta": _pasta,
    "pasta.avx2": _pasta,
    "passt": _pasta,
    "passt.avx2": _pasta,
    "socat": _socat,
    "ssh": _ssh,
}
