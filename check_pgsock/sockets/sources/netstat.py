"""What a network namespace has counted of TCP: /proc/net/netstat.

Authority: proc_pid_net(5), net/ipv4/proc.c, and tcp_listendrop() in include/net/tcp.h.
"""

from check_pgsock.errors import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sockets.namespaces import Namespace


def read_listen_drops(namespace: "Optional[Namespace]") -> "Optional[int]":
    """How many SYNs and handshakes all listeners of a namespace (None: this process's) have
    refused since it was made; None where that cannot be read.
    """

    def read() -> bytes:
        # /proc/net is the process's, whatever namespace its thread is in.
        with open("/proc/thread-self/net/netstat", "rb", 0) as file:
            return file.read()

    try:
        raw = read() if namespace is None else namespace.call(read)
        return parse_netstat(raw)[b"ListenDrops"]
    except (OSError, SourceError, ValueError, KeyError):
        return None


def parse_netstat(raw: bytes) -> "dict[bytes, int]":
    """The counters of the kind TcpExt by name: a line of names, and one of numbers. Raises
    ValueError.
    """
    lines = [one.split()[1:] for one in raw.splitlines() if one.startswith(b"TcpExt:")]
    if len(lines) != 2 or len(lines[0]) != len(lines[1]):
        raise ValueError("netstat: no line of names and one of numbers of TcpExt")
    return {name: int(number) for name, number in zip(*lines)}
